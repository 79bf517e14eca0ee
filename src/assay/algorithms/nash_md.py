"""Nash-MD: the policy plays against a mixture of itself and the reference. Munos et al. 2024, arXiv:2312.00886, sec. 7.

No reward has to exist for it, and cycles of preference are no trouble. Its fixed point is pi ~ pi_ref exp(P(. beats the
mixture) / kl_coef): with `mixture` 0 the equilibrium of the game that pays the preference less the KL, else near it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from assay.algorithms.base import Learners, Memory
from assay.algorithms.on_policy import TokenWise, kl_of_sample, old_logprobs, on_tokens
from assay.batch import ModelOutput, TokenBatch
from assay.losses.masked import masked_sum
from assay.losses.policy import policy_gradient
from assay.settings import InputError
from assay.shapes import RowFloat, TokenFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class NashMD(TokenWise):
    """Raises answers that beat the mixture's answer to the same prompt, by sigmoid of the difference of rewards.

    The mixture's next token is drawn from pi^(1 - mixture) pi_ref^mixture, normalised.
    """

    name: Literal["nash_md"] = "nash_md"
    mixture: float = 0.125

    draws: ClassVar[tuple[str, ...]] = ("mixture",)

    def __post_init__(self) -> None:
        if not 0 <= self.mixture <= 1:
            raise InputError(f"algorithm.mixture must lie between 0 and 1; got {self.mixture}")

    @property
    def reference(self) -> bool:
        """The mixture is made with it."""
        return True

    def prepare(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """How probably each answer beats the mixture's; the mixture's answers then go."""
        mine, theirs = batch.source == 0, batch.source == 1
        level = batch.rewards.new_zeros(len(batch.prompts)).index_add(0, batch.group[theirs], batch.rewards[theirs])
        wins = torch.sigmoid(batch.rewards - level[batch.group])
        told = batch.fill(declared={"wins": RowFloat}, wins=wins)
        return TokenWise.prepare(self, told.select(mine.nonzero().squeeze(1)), learners, memory)

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """Probability of winning less one half, the KL taken off."""
        gained = batch.wins - 0.5
        if self.kl_off_reward:
            gained = gained - batch.kl_coef * masked_sum(kl_of_sample(batch), batch.mask)
        return batch.fill(advantages=on_tokens(gained, batch))

    def tokens(self, out: ModelOutput, batch: TokenBatch) -> TokenFloat:
        """The policy gradient."""
        return policy_gradient(out.logprobs - old_logprobs(out, batch), batch.advantages)
