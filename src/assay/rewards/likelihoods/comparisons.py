"""Likelihoods of a choice between two responses."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from assay.batch import Metrics, ModelOutput, TokenBatch
from assay.losses import preference as losses
from assay.rewards.likelihoods.base import Likelihood, check_field, judged, preferences
from assay.rewards.readout import Readout
from assay.shapes import PairFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared(Likelihood):
    """Base of those that read one reward a response; a pair's mean reward, which they leave open, is centred."""

    centring_coef: float = 0.01  # pulls the mean reward of a pair to 0, which comparisons leave open

    @abstractmethod
    def nll(
        self, chosen: PairFloat, rejected: PairFloat, batch: TokenBatch, learned: Mapping[str, Tensor]
    ) -> PairFloat:
        """Negative log-likelihood of each preference."""

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[PairFloat, Metrics]:
        """The likelihood and the centring term; a number that is learned beside the model is among the metrics."""
        chosen, rejected = out.rewards[0::2], out.rewards[1::2]
        learned: Mapping[str, Tensor] = out.parameters if self.learned else {}
        nll = self.nll(chosen, rejected, batch, learned)
        told = {name: value.expand_as(nll) for name, value in learned.items() if value.ndim == 0}
        metrics = {"nll": nll, **judged(chosen, rejected), **told}
        return nll + self.centring_coef * losses.centring(chosen, rejected), metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class BradleyTerry(Compared):
    """P(chosen preferred) = sigmoid(r(chosen) - r(rejected) - margin). Stiennon et al. 2020, arXiv:2009.01325."""

    name: Literal["bradley_terry"] = "bradley_terry"
    gives_log_odds: ClassVar[bool] = True
    reads_margins: ClassVar[bool] = True
    label_smoothing: float = 0.0  # the rate at which labels are assumed to be flipped

    def __post_init__(self) -> None:
        fits = 0 <= self.label_smoothing < 0.5
        check_field("label_smoothing", self.label_smoothing, fits, "lie in [0, 0.5): at 0.5 labels say nothing")

    def nll(
        self, chosen: PairFloat, rejected: PairFloat, batch: TokenBatch, learned: Mapping[str, Tensor]
    ) -> PairFloat:
        """With soft labels and margins where the data has any."""
        return losses.bradley_terry(
            chosen,
            rejected,
            preference=batch.preference if "preference" in batch else None,
            margin=batch.margin if "margin" in batch else None,
            label_smoothing=self.label_smoothing,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Thurstone(Compared):
    """P(chosen preferred) = Phi((r(chosen) - r(rejected)) / (sqrt(2) scale)). Thurstone 1927, case V."""

    name: Literal["thurstone"] = "thurstone"
    scale: float = 1.0  # the standard deviation of what one response is felt to be worth

    def __post_init__(self) -> None:
        check_field("scale", self.scale, 0 < self.scale < math.inf, "be positive")

    def nll(
        self, chosen: PairFloat, rejected: PairFloat, batch: TokenBatch, learned: Mapping[str, Tensor]
    ) -> PairFloat:
        """As `BradleyTerry`, with Gaussian noise and no margins."""
        return losses.thurstone(chosen, rejected, scale=self.scale, preference=preferences(batch, chosen))


@dataclass(frozen=True, slots=True, kw_only=True)
class RaoKupper(Compared):
    """Wins, losses and ties: two responses closer than a learned threshold tie. Rao & Kupper 1967."""

    name: Literal["rao_kupper"] = "rao_kupper"
    threshold: float = 0.5  # where the threshold starts

    def __post_init__(self) -> None:
        check_field("threshold", self.threshold, 0 < self.threshold < math.inf, "be positive")

    @property
    def learned(self) -> dict[str, Tensor]:
        """The logarithm of the threshold."""
        return {"log_threshold": torch.tensor(math.log(self.threshold))}

    def nll(
        self, chosen: PairFloat, rejected: PairFloat, batch: TokenBatch, learned: Mapping[str, Tensor]
    ) -> PairFloat:
        """Preferences of 1/2 are ties."""
        return losses.rao_kupper(chosen, rejected, learned["log_threshold"].exp(), preferences(batch, chosen))


@dataclass(frozen=True, slots=True, kw_only=True)
class Davidson(Compared):
    """Wins, losses and ties, these as likely as nu times the geometric mean of the others. Davidson 1970."""

    name: Literal["davidson"] = "davidson"
    nu: float = 0.5  # where nu starts

    def __post_init__(self) -> None:
        check_field("nu", self.nu, 0 < self.nu < math.inf, "be positive")

    @property
    def learned(self) -> dict[str, Tensor]:
        """The logarithm of nu."""
        return {"log_nu": torch.tensor(math.log(self.nu))}

    def nll(
        self, chosen: PairFloat, rejected: PairFloat, batch: TokenBatch, learned: Mapping[str, Tensor]
    ) -> PairFloat:
        """Preferences of 1/2 are ties."""
        return losses.davidson(chosen, rejected, learned["log_nu"], preferences(batch, chosen))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanVariance(Likelihood):
    """A mean and a standard deviation for each response: people differ. Siththaranjan et al. 2024, arXiv:2312.08358."""

    name: Literal["mean_variance"] = "mean_variance"
    centring_coef: float = 0.01
    reads: ClassVar[tuple[str, ...]] = ("outputs",)

    @property
    def num_outputs(self) -> int:
        """The mean, and what softplus makes the deviation."""
        return 2

    @property
    def readout(self) -> Readout:
        """The mean, or the mean less a penalty on the variance."""
        return Readout(kind="mean_variance")

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[PairFloat, Metrics]:
        """As `Thurstone`, the noise learned per response."""
        chosen, rejected = out.outputs[0::2], out.outputs[1::2]
        nll = losses.mean_variance(chosen, rejected, preference=preferences(batch, chosen[:, 0]))
        metrics = {
            "nll": nll,
            **judged(chosen[:, 0], rejected[:, 0]),
            "deviation": (losses.deviation(chosen) + losses.deviation(rejected)) / 2,
        }
        return nll + self.centring_coef * losses.centring(chosen[:, 0], rejected[:, 0]), metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Categorical(Likelihood):
    """A distribution over ordered levels of worth. Siththaranjan et al. 2024, arXiv:2312.08358."""

    name: Literal["categorical"] = "categorical"
    levels: int = 10
    entropy_coef: float = 0.1  # keeps levels apart from 0 or 1 while nothing speaks for them
    reads: ClassVar[tuple[str, ...]] = ("outputs",)

    def __post_init__(self) -> None:
        check_field("levels", self.levels, self.levels >= 2, "be at least 2")

    @property
    def num_outputs(self) -> int:
        """A logit for each level."""
        return self.levels

    @property
    def readout(self) -> Readout:
        """The mean level, from 0 to 1."""
        return Readout(kind="categorical")

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[PairFloat, Metrics]:
        """Minus the log of P(chosen's level is higher), less the entropy of the levels."""
        chosen, rejected = out.outputs[0::2], out.outputs[1::2]
        worth = torch.linspace(0, 1, self.levels, device=chosen.device)
        nll = losses.categorical(chosen, rejected, preference=preferences(batch, chosen[:, 0]))
        entropy = (_entropy(chosen) + _entropy(rejected)) / 2
        means = [(levels.softmax(-1) * worth).sum(-1) for levels in (chosen, rejected)]
        return nll - self.entropy_coef * entropy, {"nll": nll, **judged(*means), "level_entropy": entropy}


def _entropy(logits: Tensor) -> Tensor:
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
