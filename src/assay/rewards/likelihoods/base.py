"""What a likelihood is: the probability of feedback given rewards, and nothing else.

A reward model is the maximum of a likelihood (Chaudhari et al. 2024, arXiv:2404.08555, sec. 2.1). Which one is a choice
and named on the command line; a user's own is one class: its fields are its settings, `loss` its negative logarithm.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from assay.algorithms.base import Data, Learners, Memory
from assay.batch import Metrics, ModelOutput, Reduction, Term, TokenBatch
from assay.records import Judged
from assay.rewards.pooling import Pooling
from assay.rewards.readout import Readout
from assay.settings import InputError, Settings
from assay.shapes import PairFloat, RowFloat, RowLevels
from assay.tokens.chat import Encoded, Encoder


class Likelihood(Settings, ABC):
    """Base of every likelihood: an algorithm with one term, on the reward learner."""

    __slots__ = ()
    name: Any  # what it is called on the command line
    data: ClassVar[Data] = "comparisons"
    columns: ClassVar[Mapping[str, Any]] = {}  # data columns that the batch must carry
    reduction: ClassVar[Reduction] = "pair"
    reads: ClassVar[tuple[str, ...]] = ("rewards",)
    reference: ClassVar[bool] = False
    gives_log_odds: ClassVar[bool] = False  # whether a difference of rewards is the log-odds of a preference, anybody's
    reads_margins: ClassVar[bool] = False
    learns_between: ClassVar[bool] = False  # whether `between_epochs` has anything to do
    streams: ClassVar[Mapping[str, Any]] = {}

    @property
    def innermost(self) -> "Likelihood":
        """Itself; for one that wraps another, the one that speaks of the feedback."""
        return self

    @property
    def num_outputs(self) -> int:
        """Numbers of the reward head."""
        return 1

    @property
    def readout(self) -> Readout:
        """How those numbers become the reward."""
        return Readout()

    @property
    def pooling(self) -> Pooling | None:
        """How numbers read at tokens become the response's; None where they are read at its end alone."""
        return None

    @property
    def learned(self) -> dict[str, Tensor]:
        """Where the numbers that are learned beside the model start; the loss finds them in `out.parameters`."""
        return {}

    @property
    def reading(self) -> Mapping[str, Any]:
        """What the reader of its kind of feedback is told beside the usual."""
        return {}

    def refuse(self, judgements: Sequence[Judged]) -> str:
        """Why it cannot learn from this feedback; '' where it can."""
        return ""

    def knowing(self, judgements: Sequence[Judged]) -> Self:
        """Itself, its fields filled with what must be known of the feedback before a model is made."""
        return self

    def fill(
        self, judgements: Sequence[Judged], encoded: Sequence[Sequence[Encoded]], encoder: Encoder, mask: Tensor
    ) -> dict[str, Tensor]:
        """Columns of a batch that it declares and only it can make; `mask` [B, T] is the batch's own.

        `encoded` holds the conversations of each judgement.
        """
        return {}

    def between_epochs(self, outputs: RowLevels, batch: TokenBatch, learned: Mapping[str, Tensor]) -> None:
        """Set in place what is learned by another way than its gradient, from the numbers [B, L] of all feedback.

        Called after each epoch but the last where `learns_between` says so.
        """

    def log_odds(
        self,
        outputs: RowLevels,
        rewards: RowFloat,
        judgements: Sequence[Judged],
        told: Mapping[str, Mapping[str, float]],
    ) -> PairFloat | None:
        """[P] of each chosen response for the very people who judged, by what was `told` of them; None if of nobody.

        `outputs` [2P, L] are the model's numbers and `rewards` [2P] what they make, chosen and rejected in turn.
        """
        return None

    def told(self, learned: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """What the `learned` numbers say of people, by their name; of nobody unless a likelihood tells them apart."""
        return {}

    @abstractmethod
    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """Unreduced negative log-likelihood: [P], [G] or [B] as `reduction` says; and metrics of the same shape."""

    def prepare(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """Nothing to prepare."""
        return batch

    def losses(self) -> tuple[Term, ...]:
        """The mean over what was judged."""
        reads = (*self.reads, *(("parameters",) if self.learned else ()))
        return (Term("reward", self.loss, self.reduction, reads=reads),)


def check_field(name: str, value: float, fits: bool, wanted: str) -> None:
    """Raises InputError for a likelihood's field that does not fit."""
    if not fits:
        raise InputError(f"likelihood.{name} must {wanted}; got {value}")


def judged(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """What every pair likelihood reports; a tie of rewards counts half."""
    return {
        "accuracy": (chosen > rejected).float() + 0.5 * (chosen == rejected).float(),
        "margin": chosen - rejected,
        "mean_reward": (chosen + rejected) / 2,
    }


def preferences(batch: TokenBatch, like: Tensor) -> Tensor:
    """The batch's preferences; 1 where the data says nothing else."""
    return batch.preference if "preference" in batch else torch.ones_like(like)


def all_alike(values: Sequence[float], what: str) -> str:
    """Why labels of one class teach nothing; '' where they differ."""
    if values and len(set(values)) == 1:
        return f"all {len(values)} {what} are {values[0]:g}: there is nothing to tell apart"
    return ""
