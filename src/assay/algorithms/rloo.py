"""REINFORCE with a leave-one-out baseline. Ahmadian et al. 2024, arXiv:2402.14740, sec. 2.3.

The KL to the reference is taken off the reward, response by response, as the paper does (its eq. 3).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from assay.algorithms.base import Learners, Memory
from assay.algorithms.on_policy import TokenWise, old_logprobs, on_tokens
from assay.batch import ModelOutput, TokenBatch
from assay.losses.credit import leave_one_out
from assay.losses.policy import policy_gradient
from assay.shapes import TokenFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class RLOO(TokenWise):
    """Raises responses that are better than their siblings."""

    name: Literal["rloo"] = "rloo"

    min_answers: ClassVar[int] = 2  # the baseline is the mean of the others

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """The advantage of each response over its siblings, given to every token."""
        return batch.fill(advantages=on_tokens(leave_one_out(self.answer_rewards(batch), batch.group), batch))

    def tokens(self, out: ModelOutput, batch: TokenBatch) -> TokenFloat:
        """The policy gradient."""
        return policy_gradient(out.logprobs - old_logprobs(out, batch), batch.advantages)
