"""REINFORCE++: PPO's clip without a critic, advantages normalised over the whole batch. Hu et al. 2025,
arXiv:2501.03262, sec. 3.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from assay.algorithms.base import Learners, Memory
from assay.algorithms.on_policy import TokenWise, old_logprobs
from assay.batch import ModelOutput, Reduction, TokenBatch
from assay.losses.credit import group_mean, rewards_to_go, whiten
from assay.losses.policy import clipped
from assay.shapes import TokenFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class REINFORCEPP(TokenWise):
    """Token-wise KL in the reward, rewards to go, one normalisation for all prompts; clipped as PPO is.

    The paper's variant with a baseline is `baseline` "group", `kl_in` "loss" and `kl_estimator` "k2". Here all tokens
    of a batch count alike, in the mean of the loss and in the normalisation.
    """

    name: Literal["reinforce_pp"] = "reinforce_pp"
    kl_coef: float = 0.01
    num_epochs: int = 2
    clip: float = 0.2
    baseline: Literal["none", "group"] = "none"  # "group": the prompt's mean is taken off first

    credits_tokens: ClassVar[bool] = True

    @property
    def reduction(self) -> Reduction:
        """All tokens count alike."""
        return "token"

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """Rewards to go over their standard deviation among all tokens of the batch."""
        rewards = batch.rewards - group_mean(batch.rewards, batch.group) if self.baseline == "group" else batch.rewards
        to_go = rewards_to_go(self.token_rewards(batch, rewards), batch.mask, 1.0)
        return batch.fill(advantages=whiten(to_go, batch.mask))

    def tokens(self, out: ModelOutput, batch: TokenBatch) -> TokenFloat:
        """The clipped surrogate."""
        return clipped(out.logprobs - old_logprobs(out, batch), batch.advantages, self.clip, self.clip)
