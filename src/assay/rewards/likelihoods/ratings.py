"""Likelihoods of a judgement of one response alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from assay.algorithms.base import Data
from assay.batch import Metrics, ModelOutput, Reduction, TokenBatch
from assay.losses import rating as losses
from assay.records import Judged, Rating
from assay.rewards.likelihoods.base import Likelihood, all_alike, check_field
from assay.shapes import RowFloat


class Rated(Likelihood):
    """Base of the likelihoods of `rating` [B], one number for each response."""

    __slots__ = ()
    data: ClassVar[Data] = "ratings"
    columns: ClassVar[Mapping[str, Any]] = {"rating": RowFloat}
    reduction: ClassVar[Reduction] = "response"

    @property
    def scale(self) -> str:
        """The ratings that it takes, in words."""
        return "any number"

    def fits(self, value: float) -> bool:
        """Whether a rating is on the scale."""
        return True

    def refuse(self, judgements: Sequence[Judged]) -> str:
        """Ratings off the scale, or all alike."""
        ratings = [r for r in judgements if isinstance(r, Rating)]
        if wrong := [r for r in ratings if not self.fits(r.value)]:
            return (
                f"{len(wrong)} of {len(ratings)} ratings are outside of the scale, the first, {wrong[0].id}, with "
                f"{wrong[0].value:g}: {self.name} takes {self.scale}"
            )
        return all_alike([r.value for r in ratings], "ratings")


class Graded(Rated):
    """Base of those that read good or bad, or a grade between."""

    __slots__ = ()

    @property
    def scale(self) -> str:
        """0 bad, 1 good."""
        return "numbers from 0 to 1"

    def fits(self, value: float) -> bool:
        """As the scale says."""
        return 0 <= value <= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression(Rated):
    """Ratings are the reward with Gaussian noise: squared error. Chaudhari et al. 2024, arXiv:2404.08555, sec. 4.2."""

    name: Literal["regression"] = "regression"

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[RowFloat, Metrics]:
        """(r - rating)^2."""
        nll = losses.regression(out.rewards, batch.rating)
        return nll, {"nll": nll, "mean_reward": out.rewards}


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary(Graded):
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

    def __post_init__(self) -> None:
        check_field("high", self.high, self.high > self.low, f"be above likelihood.low, {self.low}")

    @property
    def scale(self) -> str:
        """The levels."""
        return f"whole numbers from {self.low} to {self.high} (--likelihood.low, --likelihood.high)"

    def fits(self, value: float) -> bool:
        """As the scale says."""
        return value % 1 == 0 and self.low <= value <= self.high

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
