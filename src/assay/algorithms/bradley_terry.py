"""Reward model by Bradley-Terry. Stiennon et al. 2020, arXiv:2009.01325, sec. 3.4."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from assay.algorithms.base import Data, Learners
from assay.batch import Metrics, ModelOutput, Term, TokenBatch
from assay.losses.preference import bradley_terry, centring
from assay.settings import Settings
from assay.shapes import PairFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class BradleyTerry(Settings):
    """P(chosen preferred) = sigmoid(r(chosen) - r(rejected) - margin)."""

    name: Literal["bradley_terry"] = "bradley_terry"
    label_smoothing: float = 0.0  # the rate at which labels are assumed to be flipped
    centring_coef: float = 0.01  # pulls the mean reward of a pair to 0, which comparisons leave open

    data: ClassVar[Data] = "comparisons"
    columns: ClassVar[Mapping[str, Any]] = {}
    reference: ClassVar[bool] = False
    streams: ClassVar[Mapping[str, Data]] = {}

    def prepare(self, batch: TokenBatch, learners: Learners) -> TokenBatch:
        """Nothing to prepare."""
        return batch

    def losses(self) -> tuple[Term, ...]:
        """Mean over pairs."""
        return (Term("reward", self.loss, "pair"),)

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[PairFloat, Metrics]:
        """Negative log-likelihood of the preferences, and the centring term."""
        chosen, rejected = out.rewards[0::2], out.rewards[1::2]
        likelihood = bradley_terry(
            chosen,
            rejected,
            preference=batch.preference if "preference" in batch else None,
            margin=batch.margin if "margin" in batch else None,
            label_smoothing=self.label_smoothing,
        )
        metrics = {
            "nll": likelihood,
            "accuracy": (chosen > rejected).float() + 0.5 * (chosen == rejected).float(),
            "margin": chosen - rejected,
            "mean_reward": (chosen + rejected) / 2,
        }
        return likelihood + self.centring_coef * centring(chosen, rejected), metrics
