"""How per-item losses become one number: weights that sum to 1 over a whole step, whatever its micro-batches."""

import torch
from torch import Tensor

from assay.batch import Reduction, TokenBatch


def item_weights(batch: TokenBatch, reduction: Reduction) -> Tensor:
    """[B, T] for "token" and "sequence", [B] for "response", [P] for "pair". All 0 if nothing counts."""
    row = batch.weight if "weight" in batch else torch.ones(batch.num_rows)
    counts = batch.mask.float() * row[:, None]
    length = batch.mask.sum(dim=1)
    if reduction == "token":
        return _share(counts)
    present = row * (length > 0)
    if reduction == "sequence":
        return _share(present)[:, None] * batch.mask / length.clamp(min=1)[:, None]
    if reduction == "response":
        return _share(present)
    return _share(present[0::2] * present[1::2])


def _share(weights: Tensor) -> Tensor:
    total = weights.sum()
    return weights / total if total > 0 else weights


def rows_of(weights: Tensor, rows: Tensor, reduction: Reduction, width: int) -> Tensor:
    """The weights that belong to these rows of the batch."""
    if reduction == "pair":
        return weights[rows[0::2] // 2]
    return weights[rows] if reduction == "response" else weights[rows, :width]
