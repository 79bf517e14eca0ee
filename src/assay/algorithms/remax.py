"""ReMax: the reward of the greedy answer is the baseline. Li et al. 2024, arXiv:2310.10505, algorithm 1."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from assay.algorithms.base import Learners, Memory
from assay.algorithms.on_policy import TokenWise, old_logprobs, on_tokens
from assay.batch import ModelOutput, TokenBatch
from assay.losses.policy import policy_gradient
from assay.shapes import TokenFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class ReMax(TokenWise):
    """REINFORCE whose baseline costs one more answer a prompt, and no critic."""

    name: Literal["remax"] = "remax"

    draws: ClassVar[tuple[str, ...]] = ("greedy",)

    def prepare(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """The greedy answers' rewards become a column, then these answers go: nothing is learned from them."""
        sampled, greedy = batch.source == 0, batch.source == 1
        baseline = batch.rewards.new_zeros(len(batch.prompts)).index_add(0, batch.group[greedy], batch.rewards[greedy])
        told = batch.fill(declared={"baseline": TokenFloat}, baseline=on_tokens(baseline[batch.group], batch))
        return TokenWise.prepare(self, told.select(sampled.nonzero().squeeze(1)), learners, memory)

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """Reward less the greedy answer's, given to every token."""
        return batch.fill(advantages=on_tokens(self.answer_rewards(batch), batch) - batch.baseline)

    def tokens(self, out: ModelOutput, batch: TokenBatch) -> TokenFloat:
        """The policy gradient."""
        return policy_gradient(out.logprobs - old_logprobs(out, batch), batch.advantages)
