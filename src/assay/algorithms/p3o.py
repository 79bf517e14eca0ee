"""P3O, the pairwise policy gradient with importance ratios clipped. Wu et al. 2023, arXiv:2310.00212, sec. 4."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from assay.algorithms.base import Learners, Memory
from assay.algorithms.on_policy import OnPolicy, old_logprobs
from assay.batch import Metrics, ModelOutput, Reduction, TokenBatch
from assay.losses.masked import masked_sum
from assay.losses.policy import pair_clipped_apart, pair_clipped_together
from assay.shapes import PairFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class P3O(OnPolicy):
    """Learns from the difference of two answers' rewards, so what they share by their prompt cancels.

    `clipping` "separate" bounds the ratio of each answer, "joint" the ratio of the two. Answers of a prompt are paired
    in their order: an even number is sampled.
    """

    name: Literal["p3o"] = "p3o"
    num_epochs: int = 2
    clipping: Literal["separate", "joint"] = "separate"
    clip: float = 0.2

    min_answers: ClassVar[int] = 2
    even_answers: ClassVar[bool] = True

    @property
    def reduction(self) -> Reduction:
        """Pairs stay together."""
        return "pair"

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """The difference of each pair's rewards."""
        rewards = self.answer_rewards(batch)
        return batch.fill(declared={"difference": PairFloat}, difference=rewards[0::2] - rewards[1::2])

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[PairFloat, Metrics]:
        """The clipped pairwise surrogate."""
        moved = masked_sum(out.logprobs - old_logprobs(out, batch), batch.mask)
        clip = pair_clipped_apart if self.clipping == "separate" else pair_clipped_together
        return clip(moved[0::2], moved[1::2], batch.difference, self.clip), {}
