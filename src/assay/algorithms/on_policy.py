"""What methods that learn from their own answers share: the KL, several updates on one batch, what is watched."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from assay.algorithms.base import Data, Learners, Memory
from assay.batch import Metrics, ModelOutput, Reduction, Term, TokenBatch
from assay.losses.credit import at_last_token
from assay.losses.kl import ESTIMATORS, adapted, k1, k3
from assay.losses.masked import masked_mean, masked_sum
from assay.losses.policy import truncated_weights
from assay.settings import Settings
from assay.shapes import RowFloat, TokenFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicy(Settings, ABC):
    """Base of the methods that train on rollouts: a subclass gives credit and says what it does with it.

    The KL to the reference is taken off the reward. With `target_kl` the coefficient follows the KL.
    """

    kl_coef: float = 0.05  # reward per nat of KL to the reference
    target_kl: float = 0.0  # nats an answer that the coefficient aims at; 0: it stays as it is
    kl_horizon: float = 10000.0  # answers over which it adapts
    track_kl: bool = True  # compute the reference even where nothing but the metrics reads it
    num_epochs: int = 1  # passes over each batch of rollouts
    num_minibatches: int = 1  # optimiser steps of a pass

    data: ClassVar[Data] = "rollouts"
    columns: ClassVar[Mapping[str, Any]] = {}
    streams: ClassVar[Mapping[str, Data]] = {}
    draws: ClassVar[tuple[str, ...]] = ()
    min_answers: ClassVar[int] = 1
    charges_kl: ClassVar[bool] = True  # False where a method's own beta is the KL's only price
    credits_tokens: ClassVar[bool] = False  # True where a token is credited with what is paid from it on

    @property
    def reference(self) -> bool:
        """Whether the reference is computed."""
        return bool(self.kl_coef or self.target_kl or self.track_kl)

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the policy's output that the loss uses."""
        return ("logprobs",)

    @property
    def reduction(self) -> Reduction:
        """How `loss` becomes a number."""
        return "response"

    @property
    def kl_off_reward(self) -> bool:
        """Whether rewards are paid with the KL taken off."""
        return self.reference

    def prepare(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """Log-probabilities of reference and policy, then advantages."""
        if self.reference:
            batch = batch.fill(ref_logprobs=learners["reference"].forward(batch, ("logprobs",)).logprobs)
        together = learners.get("value") is learners.get("policy")  # one body, one pass
        if self.num_epochs * self.num_minibatches > 1:
            out = learners["policy"].forward(batch, ("logprobs", "values") if together else ("logprobs",))
            batch = batch.fill(old_logprobs=out.logprobs)
            if together:
                batch = batch.fill(values=out.values)
        coef = self.coefficient(batch, memory)
        batch = batch.fill(declared={"kl_coef": RowFloat}, kl_coef=torch.full((batch.num_rows,), coef))
        return self.credit(batch, learners, memory)

    @abstractmethod
    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """Fill `advantages`, or whatever else the loss reads."""

    @abstractmethod
    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """Unreduced, of the shape that `reduction` asks for."""

    def losses(self) -> tuple[Term, ...]:
        """The method's loss, and a term without weight that looks at the policy."""
        own = Term("policy", self.loss, self.reduction, reads=self.reads)
        return (own, Term("policy", watched, "response", weight=0.0, reads=("logprobs", "entropy"), own=True))

    def coefficient(self, batch: TokenBatch, memory: Memory) -> float:
        """The KL's coefficient for this batch; with a target, moved by what this batch's KL was for the next one."""
        if not self.target_kl:
            return self.kl_coef
        coef = float(memory.get("kl_coef", torch.tensor(self.kl_coef, dtype=torch.float64)))
        read = batch.mask.any(1)  # an answer that is masked as a whole has no KL, not one of 0
        if "source" in batch:
            read &= batch.source == 0
        if not read.any():
            return coef
        kl = float(masked_sum(kl_of_sample(batch), batch.mask)[read].mean())
        after = adapted(coef, kl, self.target_kl, num=int(read.sum()), horizon=self.kl_horizon)
        memory["kl_coef"] = torch.tensor(after, dtype=torch.float64)
        return coef

    def token_rewards(self, batch: TokenBatch, rewards: RowFloat | None = None) -> TokenFloat:
        """[B, T] what each token is paid: `rewards` at the last one, or the batch's dense ones; the KL taken off.

        Where both are there, what `rewards` differ by from the batch's is paid at the end.
        """
        if "token_rewards" not in batch:
            paid = at_last_token(batch.rewards if rewards is None else rewards, batch.mask)
        else:
            paid = batch.token_rewards
            if rewards is not None:
                paid = paid + at_last_token(rewards - batch.rewards, batch.mask)
        if self.kl_off_reward:
            paid = paid - batch.kl_coef[:, None] * torch.where(batch.mask, kl_of_sample(batch), 0.0)
        return paid

    def answer_rewards(self, batch: TokenBatch) -> RowFloat:
        """[B] the reward of each response, the KL taken off."""
        if not self.kl_off_reward:
            return batch.rewards
        return batch.rewards - batch.kl_coef * masked_sum(kl_of_sample(batch), batch.mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWise(OnPolicy):
    """Base of those whose loss is one of tokens. The KL can be added to it instead of being taken off the reward.

    There `kl_estimator` k2 has the gradient of KL(pi || pi_ref) and k3 that of KL(pi_ref || pi), on the first step of a
    batch: what is sampled is not weighed anew when the policy has moved.
    """

    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: Literal["k2", "k3"] = "k2"  # of the loss; in the reward it is k1, which is exact there
    sampler_clip: float = 2.0  # most weight of a token whose sampler was not quite the policy; 0: not corrected

    @property
    def kl_off_reward(self) -> bool:
        """Not where the loss has it."""
        return self.reference and self.kl_in == "reward"

    @abstractmethod
    def tokens(self, out: ModelOutput, batch: TokenBatch) -> TokenFloat:
        """The loss of each token before the KL's."""

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """The tokens' losses corrected for the sampler, the KL added; summed over a response unless they stay apart."""
        values = self.tokens(out, batch)
        if self.sampler_clip:
            values = values * truncated_weights(old_logprobs(out, batch), batch.sampler_logprobs, self.sampler_clip)
        if self.kl_in == "loss" and (self.kl_coef or self.target_kl):
            estimate = ESTIMATORS[self.kl_estimator](out.logprobs, batch.ref_logprobs)
            values = values + batch.kl_coef[:, None] * estimate
        return (masked_sum(values, batch.mask) if self.reduction == "response" else values), {}


def kl_of_sample(batch: TokenBatch) -> TokenFloat:
    """log pi - log pi_ref of what was sampled, by the policy that is about to be updated."""
    logprobs = batch.old_logprobs if "old_logprobs" in batch else batch.sampler_logprobs
    return k1(logprobs, batch.ref_logprobs)


def old_logprobs(out: ModelOutput, batch: TokenBatch) -> TokenFloat:
    """The policy before this batch's updates; where there is one update alone, the policy itself as a constant."""
    return batch.old_logprobs if "old_logprobs" in batch else out.logprobs.detach()


def on_tokens(values: RowFloat, batch: TokenBatch) -> TokenFloat:
    """A response's value at each of its counted tokens."""
    return torch.where(batch.mask, values[:, None], 0.0)


def watched(out: ModelOutput, batch: TokenBatch) -> tuple[RowFloat, Metrics]:
    """How far the policy went from the reference, from the one that sampled and from its own first step; no loss.

    The KL is that of the policy before this batch's updates, from which the samples are; of a later one they would say
    too little.
    """
    old, mask = old_logprobs(out, batch), batch.mask
    moved = (out.logprobs.detach() - old).exp()
    metrics = {
        "entropy": masked_mean(out.entropy.detach(), mask),
        "sampler_gap": masked_mean((old - batch.sampler_logprobs).abs(), mask),
        "ratio_spread": masked_mean((moved - 1).abs(), mask),
    }
    if "ref_logprobs" in batch:
        for name, estimate in (("kl", k1), ("kl_k3", k3)):
            values = estimate(old, batch.ref_logprobs)
            metrics |= {name: masked_sum(values, mask), f"{name}_per_token": masked_mean(values, mask)}
        metrics["ref_nll"] = masked_mean(-batch.ref_logprobs, mask)
    if "kl_coef" in batch:
        metrics["kl_coef"] = batch.kl_coef
    return torch.zeros(batch.num_rows, device=mask.device), metrics
