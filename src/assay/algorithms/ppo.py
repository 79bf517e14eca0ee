"""Proximal Policy Optimization with a critic, and PPO-max, the same with every trick that keeps it stable.

Schulman et al. 2017, arXiv:1707.06347; for language models Stiennon et al. 2020, arXiv:2009.01325; the tricks and which
of them matter: Zheng et al. 2023, arXiv:2307.04964, secs. 5.3 and 5.4, fig. 5. Its eqs. 2, 8, 11 and 15 have slips of
sign and index and are not transcribed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from assay.algorithms.a2c import A2C
from assay.algorithms.base import Data, Learners, Memory
from assay.algorithms.on_policy import old_logprobs
from assay.algorithms.sft import imitate
from assay.batch import Metrics, ModelOutput, Term, TokenBatch
from assay.losses.policy import clipped
from assay.losses.running import pooled_moments, running_deviation
from assay.losses.value import clipped_error, squared_error
from assay.shapes import TokenFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO(A2C):
    """Several clipped steps on each batch of rollouts. Each trick of PPO-max is a field, off where 0 or "none".

    `reward_norm` divides rewards by the standard deviation of all so far ("scale"), or takes their mean off first
    ("moments"), and `reward_clip` cuts what comes out; `advantage_clip` cuts whitened advantages; `value_clip` bounds a
    step of the critic; `ptx_coef` weighs the likelihood of a further stream of text, "ptx".
    """

    name: Any = "ppo"
    num_epochs: int = 4
    clip_low: float = 0.2
    clip_high: float = 0.2
    value_clip: float = 0.2
    reward_norm: Literal["none", "scale", "moments"] = "none"
    reward_clip: float = 0.0
    advantage_clip: float = 0.0
    ptx_coef: float = 0.0

    streams: ClassVar[Mapping[str, Data]] = {"ptx": "demonstrations"}

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """As actor-critic, and cut."""
        batch = A2C.credit(self, batch, learners, memory)
        if not self.advantage_clip:
            return batch
        return batch.fill(advantages=batch.advantages.clamp(-self.advantage_clip, self.advantage_clip))

    @property
    def reshapes(self) -> bool:
        """Whether rewards are made into others."""
        return self.reward_norm != "none" or self.reward_clip > 0

    def shaped_rewards(self, batch: TokenBatch, memory: Memory) -> Tensor:
        """Rewards normalised over history, and cut."""
        rewards = batch.rewards
        if self.reward_norm != "none":
            seen = memory.get("reward_moments", torch.zeros(3, dtype=torch.float64))
            memory["reward_moments"] = seen = pooled_moments(seen, rewards)
            rewards = (rewards - (seen[1].item() if self.reward_norm == "moments" else 0.0)) / running_deviation(seen)
        return rewards.clamp(-self.reward_clip, self.reward_clip) if self.reward_clip else rewards

    def tokens(self, out: ModelOutput, batch: TokenBatch) -> TokenFloat:
        """The clipped surrogate, and the entropy bonus."""
        ratios = out.logprobs - old_logprobs(out, batch)
        return self.with_entropy(clipped(ratios, batch.advantages, self.clip_low, self.clip_high), out)

    def losses(self) -> tuple[Term, ...]:
        """Actor, critic, and with `ptx_coef` the text that is not to be forgotten."""
        terms = A2C.losses(self)
        if self.ptx_coef:
            terms += (Term("policy", imitate, "token", weight=self.ptx_coef, stream="ptx"),)
        return terms

    def value_loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[TokenFloat, Metrics]:
        """The critic's error, its step bounded."""
        if self.value_clip:
            loss = clipped_error(out.values, batch.values, batch.returns, self.value_clip)
        else:
            loss = squared_error(out.values, batch.returns)
        return loss, self.watched_values(loss, out, batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOMax(PPO):
    """PPO as its tricks were found to work together: token-wise KL, rewards normalised over history and cut, a bounded
    critic, small buffers. The critic starts from the reward model and is trained alone first, unless `critic` settings
    say otherwise.
    """

    name: Any = "ppo_max"
    kl_coef: float = 0.05
    lam: float = 0.9
    num_epochs: int = 1
    num_minibatches: int = 4
    whiten_advantages: bool = False
    reward_norm: Literal["none", "scale", "moments"] = "moments"
    reward_clip: float = 0.8

    critic_start: ClassVar[str] = "reward"
    critic_alone: ClassVar[int] = 16  # optimiser steps; the paper tells no number
