"""Advantage actor-critic. Mnih et al. 2016, arXiv:1602.01783, sec. 4, with generalised advantages (Schulman et al.
2016, arXiv:1506.02438).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from assay.algorithms.base import Learners, Memory
from assay.algorithms.on_policy import TokenWise, old_logprobs
from assay.batch import Metrics, ModelOutput, Reduction, Term, TokenBatch
from assay.losses.credit import gae, whiten
from assay.losses.policy import policy_gradient
from assay.losses.value import squared_error
from assay.shapes import TokenFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class A2C(TokenWise):
    """Actor and critic; the critic says what a token's state was worth before it was written."""

    name: Any = "a2c"
    gamma: float = 1.0
    lam: float = 0.95
    vf_coef: float = 0.1  # of the critic's loss; matters where actor and critic share weights
    entropy_coef: float = 0.0  # reward per nat of the next token's entropy
    whiten_advantages: bool = True

    credits_tokens: ClassVar[bool] = True

    @property
    def reduction(self) -> Reduction:
        """All tokens count alike."""
        return "token"

    @property
    def reads(self) -> tuple[str, ...]:
        """The entropy only where it is paid for."""
        return ("logprobs", "entropy") if self.entropy_coef else ("logprobs",)

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """Values, advantages, and the returns that the critic learns."""
        values = batch.values if "values" in batch else learners["value"].forward(batch, ("values",)).values
        paid = self.token_rewards(batch, self.shaped_rewards(batch, memory))
        advantages = gae(paid, values, batch.mask, gamma=self.gamma, lam=self.lam)
        returns = advantages + torch.where(batch.mask, values, 0.0)
        if self.whiten_advantages:
            advantages = whiten(advantages, batch.mask)
        return batch.fill(values=values, returns=returns, advantages=advantages)

    def shaped_rewards(self, batch: TokenBatch, memory: Memory) -> Tensor:
        """[B] the rewards of whole responses as credit sees them."""
        return batch.rewards

    def tokens(self, out: ModelOutput, batch: TokenBatch) -> TokenFloat:
        """The policy gradient, and the entropy bonus."""
        return self.with_entropy(policy_gradient(out.logprobs - old_logprobs(out, batch), batch.advantages), out)

    def with_entropy(self, values: TokenFloat, out: ModelOutput) -> TokenFloat:
        """Less the bonus, where there is one."""
        return values - self.entropy_coef * out.entropy if self.entropy_coef else values

    def losses(self) -> tuple[Term, ...]:
        """The actor's, and the critic's mean over tokens."""
        return (*TokenWise.losses(self), Term("value", self.value_loss, "token", weight=self.vf_coef))

    def value_loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[TokenFloat, Metrics]:
        """How far the critic is from the returns."""
        loss = squared_error(out.values, batch.returns)
        return loss, self.watched_values(loss, out, batch)

    def watched_values(self, loss: TokenFloat, out: ModelOutput, batch: TokenBatch) -> Metrics:
        """The critic's error, its values and what they should be."""
        return {"value_loss": loss, "value": out.values.detach(), "return": batch.returns}
