"""REINFORCE with a leave-one-out baseline. Ahmadian et al. 2024, arXiv:2402.14740, sec. 3.

The KL to the reference is taken off the reward, response by response, as the paper does (its eq. 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from assay.algorithms.base import Data, Learners
from assay.batch import Metrics, ModelOutput, Term, TokenBatch
from assay.losses.credit import leave_one_out
from assay.losses.kl import k1, k3
from assay.losses.masked import masked_mean, masked_sum
from assay.losses.policy import reinforce
from assay.settings import Settings
from assay.shapes import RowFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class RLOO(Settings):
    """Raises responses that are better than their siblings."""

    name: Literal["rloo"] = "rloo"
    kl_coef: float = 0.05  # reward per nat of KL to the reference

    data: ClassVar[Data] = "rollouts"
    columns: ClassVar[Mapping[str, Any]] = {}
    reference: ClassVar[bool] = True
    streams: ClassVar[Mapping[str, Data]] = {}
    min_answers: ClassVar[int] = 2  # the baseline is the mean of the others

    def prepare(self, batch: TokenBatch, learners: Learners) -> TokenBatch:
        """Reference log-probabilities, and the advantage of each response over its siblings, given to every token."""
        ref_logprobs = learners["reference"].forward(batch, ("logprobs",)).logprobs
        kl = masked_sum(k1(batch.sampler_logprobs, ref_logprobs), batch.mask)
        advantages = leave_one_out(batch.rewards - self.kl_coef * kl, batch.group)
        return batch.fill(ref_logprobs=ref_logprobs, advantages=torch.where(batch.mask, advantages[:, None], 0.0))

    def losses(self) -> tuple[Term, ...]:
        """Mean over responses."""
        return (Term("policy", self.loss, "response", reads=("logprobs", "entropy")),)

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[RowFloat, Metrics]:
        """Policy gradient; its metrics say how far the policy has gone from the reference, in nats."""
        logprobs = out.logprobs.detach()
        metrics = {
            "kl": masked_sum(k1(logprobs, batch.ref_logprobs), batch.mask),
            "kl_k3": masked_sum(k3(logprobs, batch.ref_logprobs), batch.mask),
            "kl_per_token": masked_mean(k1(logprobs, batch.ref_logprobs), batch.mask),
            "kl_k3_per_token": masked_mean(k3(logprobs, batch.ref_logprobs), batch.mask),
            "entropy": masked_mean(out.entropy.detach(), batch.mask),
            "sampler_gap": masked_mean((logprobs - batch.sampler_logprobs).abs(), batch.mask),
        }
        return reinforce(out.logprobs, batch.advantages, batch.mask), metrics
