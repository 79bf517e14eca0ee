"""What an algorithm is: a frozen dataclass whose fields are its config and whose methods are its maths."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from assay.batch import ModelOutput, Term, TokenBatch, VocabularyFn

Data = Literal["comparisons", "demonstrations", "rollouts", "rankings", "ratings", "steps", "spans"]


@runtime_checkable
class Learner(Protocol):
    """What `prepare` may ask of a model."""

    def forward(
        self, batch: TokenBatch, reads: tuple[str, ...], vocabulary: Mapping[str, VocabularyFn] | None = None
    ) -> ModelOutput:
        """The columns in `reads`, without gradient."""
        ...


Learners = Mapping[str, Learner]
"""By role: "policy", "value", "reward"; "reference" where the algorithm needs one, "mask" where it has `sync`."""


Memory = dict[str, Tensor]
"""What an algorithm keeps from step to step, by name; checkpoints hold it. Empty at the start."""


class Algorithm(Protocol):
    """One file, one line in the dictionary; a user's own file works the same.

    `reference`, which a class must have too, says whether `prepare` reads learners["reference"]. What else the loop and
    the stages know of a class that has it (`num_epochs`, `draws`, `min_answers`, ...) is listed in docs/algorithms.md.
    """

    data: ClassVar[Data]
    columns: ClassVar[Mapping[str, Any]]  # data columns that the batch must carry beyond the usual ones
    streams: ClassVar[Mapping[str, Data]]  # further sources of data, by name

    def prepare(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """Fill what the losses read and no gradient flows through."""
        ...

    def losses(self) -> tuple[Term, ...]:
        """The terms of the loss; those of one learner and stream share a forward pass."""
        ...
