"""REINFORCE: Williams 1992, sec. 4; each token is credited with the rewards from it on, less a baseline."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from assay.algorithms.base import Learners, Memory
from assay.algorithms.on_policy import TokenWise, old_logprobs
from assay.batch import ModelOutput, TokenBatch
from assay.losses.credit import rewards_to_go
from assay.losses.policy import policy_gradient
from assay.settings import InputError
from assay.shapes import TokenFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class REINFORCE(TokenWise):
    """The plain policy gradient; a "moving" baseline is the mean of earlier batches, the newest weighing most."""

    name: Literal["reinforce"] = "reinforce"
    baseline: Literal["none", "moving"] = "moving"
    decay: float = 0.9  # of the moving baseline

    credits_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise InputError(f"algorithm.decay must be at least 0 and less than 1; got {self.decay}")

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """Rewards to go, less the baseline; the first batch has none to take off."""
        to_go = rewards_to_go(self.token_rewards(batch), batch.mask, 1.0)
        if self.baseline == "none" or not batch.mask.any():
            return batch.fill(advantages=to_go)
        zero = torch.zeros((), dtype=torch.float64)
        total, weight = memory.get("baseline", zero), memory.get("weight", zero)
        memory["baseline"] = self.decay * total + (1 - self.decay) * to_go[batch.mask].double().mean()
        memory["weight"] = self.decay * weight + (1 - self.decay)
        level = float(total / weight) if weight > 0 else 0.0
        return batch.fill(advantages=torch.where(batch.mask, to_go - level, 0.0))

    def tokens(self, out: ModelOutput, batch: TokenBatch) -> TokenFloat:
        """The policy gradient."""
        return policy_gradient(out.logprobs - old_logprobs(out, batch), batch.advantages)
