"""How per-item losses become one number: weights that sum to 1 over a whole step, whatever its micro-batches."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from assay.batch import Reduction, TokenBatch


def item_weights(batch: TokenBatch, reduction: Reduction, *, own: bool = False) -> Tensor:
    """[B, T] for "token" and "sequence", [B] for "response", [P] for "pair", [G] for "ranking"; all 0 if none counts.

    A pair or ranking with a response that does not count, does not count; with `own` only the policy's responses do.
    """
    row = batch.weight if "weight" in batch else torch.ones(batch.num_rows)
    if own and "source" in batch:
        row = row * (batch.source == 0)
    counts = batch.mask.float() * row[:, None]
    length = batch.mask.sum(dim=1)
    if reduction == "token":
        return _share(counts)
    present = row * (length > 0)
    if reduction == "sequence":
        return _share(present)[:, None] * batch.mask / length.clamp(min=1)[:, None]
    if reduction == "response":
        return _share(present)
    if reduction == "ranking":
        return _share(torch.ones(int(batch.ranking.max()) + 1).scatter_reduce(0, batch.ranking, present, "prod"))
    return _share(present[0::2] * present[1::2])


def _share(weights: Tensor) -> Tensor:
    total = weights.sum()
    return weights / total if total > 0 else weights


def rows_of(batch: TokenBatch, weights: Tensor, rows: Tensor, reduction: Reduction, width: int) -> Tensor:
    """The weights that belong to these rows of the batch, `width` tokens of each."""
    if reduction == "pair":
        return weights[rows[0::2] // 2]
    if reduction == "ranking":
        return weights[batch.ranking[rows].unique_consecutive()]
    return weights[rows] if reduction == "response" else weights[rows, :width]


def units_of(batch: TokenBatch, reductions: Sequence[Reduction]) -> list[list[int]]:
    """Rows that one forward pass must hold together: whole rankings or pairs where a loss reads them, else single."""
    if "ranking" in reductions:
        ends = torch.bincount(batch.ranking).cumsum(0).tolist()
        return [list(range(first, last)) for first, last in itertools.pairwise([0, *ends])]
    size = 2 if "pair" in reductions else 1
    return [list(range(first, first + size)) for first in range(0, batch.num_rows, size)]
