"""Likelihoods of a judgement of one response alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from assay.algorithms.base import Data
from assay.batch import Metrics, ModelOutput, Reduction, TokenBatch
from assay.losses import rating as losses
from assay.rewards.likelihoods.base import Likelihood
from assay.shapes import RowFloat


class Rated(Likelihood):
    """Base of the likelihoods below: `rating` [B], one number for each response."""

    __slots__ = ()
    data: ClassVar[Data] = "ratings"
    columns: ClassVar[Mapping[str, Any]] = {"rating": RowFloat}
    reduction: ClassVar[Reduction] = "response"


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression(Rated):
    """Ratings are the reward with Gaussian noise: squared error. Chaudhari et al. 2024, arXiv:2404.08555, sec. 4.2."""

    name: Literal["regression"] = "regression"

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[RowFloat, Metrics]:
        """(r - rating)^2."""
        nll = losses.regression(out.rewards, batch.rating)
        return nll, {"nll": nll, "mean_reward": out.rewards}


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary(Rated):
    """Good or bad: P(good) = sigmoid(r)."""

    name: Literal["binary"] = "binary"

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[RowFloat, Metrics]:
        """Cross entropy; a rating between 0 and 1 is a soft label."""
        nll = losses.binary(out.rewards, batch.rating)
        right = ((out.rewards > 0) == (batch.rating > 0.5)).float()
        return nll, {"nll": nll, "accuracy": right, "mean_reward": out.rewards}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordinal(Rated):
    """Levels of a scale (Likert): P(at most j) = sigmoid(theta_j - r), thresholds learned. McCullagh 1980."""

    name: Literal["ordinal"] = "ordinal"
    low: int = 1  # the scale's lowest level
    high: int = 5  # and its highest

    @property
    def learned(self) -> dict[str, Tensor]:
        """Thresholds a unit apart, centred."""
        count = self.high - self.low
        free = torch.full((count,), 0.5413)  # softplus of it is 1
        free[0] = -(count - 1) / 2
        return {"thresholds": free}

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[RowFloat, Metrics]:
        """Of the level that was given."""
        thresholds = losses.increasing(out.parameters["thresholds"])
        levels = batch.rating.round().long() - self.low
        nll = losses.ordinal(out.rewards, thresholds, levels)
        found = torch.bucketize(out.rewards.detach().contiguous(), thresholds.detach())  # one head of several is not
        return nll, {"nll": nll, "accuracy": (found == levels).float(), "mean_reward": out.rewards}
