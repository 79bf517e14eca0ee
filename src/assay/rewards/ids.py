"""Iterative data smoothing: labels that move to what the model believes, so that rare comparisons are not overfitted.

Source: Zhu et al. 2024, arXiv:2401.16335, algorithm 1.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assay.settings import InputError, Settings
from assay.shapes import PairFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class IDS(Settings):
    """How far labels move, and when. `beta` 0 is maximum likelihood; 1 replaces a label by the model's belief.

    update: after each "epoch" (language models; the paper's beta is 0.7) or each "step" (tables; 0.001 beside a step
    size of 0.01). order: "paper" moves labels with the weights after the update; "simultaneous" with those before,
    for which the limit is exactly ridge regression with precision beta / step size.
    """

    beta: float = 0.0
    update: Literal["epoch", "step"] = "epoch"
    order: Literal["paper", "simultaneous"] = "paper"

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise InputError(f"ids.beta must lie in [0, 1]; got {self.beta}")

    def move(self, labels: PairFloat, difference: PairFloat) -> PairFloat:
        """(1 - beta) y + beta sigmoid(difference), the difference of the two rewards. Algorithm 1, line 4."""
        return (1 - self.beta) * labels + self.beta * torch.sigmoid(difference)


class Labels:
    """The moving labels of comparisons, found by their keys in whatever order batches come."""

    def __init__(self, keys: Tensor, labels: Tensor) -> None:
        self.place: dict[int, int] = {}
        for place, key in enumerate(keys.tolist()):
            if (first := self.place.setdefault(key, place)) != place:
                raise InputError(f"comparisons {first} and {place} have the same id: labels that move need an id each")
        self.values = labels.clone()
        self.num_moves = 0

    def of(self, keys: Tensor) -> PairFloat:
        """The labels of these comparisons."""
        return self.values[self._places(keys)]

    def move(self, keys: Tensor, difference: PairFloat, ids: IDS) -> None:
        """Move the labels of these comparisons."""
        places = self._places(keys)
        self.values[places] = ids.move(self.values[places], difference.to(self.values.dtype))
        self.num_moves += 1

    def _places(self, keys: Tensor) -> Tensor:
        return torch.tensor([self.place[key] for key in keys.tolist()])
