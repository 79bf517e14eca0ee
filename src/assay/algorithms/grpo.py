"""GRPO and its descendants, which differ in four choices. Shao et al. 2024, arXiv:2402.03300, sec. 4.1.

The last four are used without a KL (`kl_coef` 0). The bounds of CISPO are DAPO's here: its paper tells none.

                 scale   ratio     objective  average   clip
GRPO             group   token     clip       sequence  0.2
Dr. GRPO         none    token     clip       sum       0.2           Liu et al. 2025, arXiv:2503.20783
DAPO             group   token     clip       token     0.2 and 0.28  Yu et al. 2025, arXiv:2503.14476; dynamic sampling
GSPO             group   sequence  clip       sequence  3e-4 and 4e-4 Zheng et al. 2025, arXiv:2507.18071
CISPO            group   token     weights    token     1 and 0.28    MiniMax 2025, arXiv:2506.13585
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from assay.algorithms.base import Learners, Memory
from assay.algorithms.on_policy import TokenWise, old_logprobs, on_tokens
from assay.batch import ModelOutput, Reduction, TokenBatch
from assay.losses.credit import group_deviation, group_mean
from assay.losses.policy import clipped, cut_weights, sequence_log_ratios
from assay.shapes import TokenFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPO(TokenWise):
    """Rewards standardised within each prompt's group, the KL in the loss."""

    name: Literal["grpo"] = "grpo"
    kl_coef: float = 0.04
    kl_in: Literal["reward", "loss"] = "loss"
    kl_estimator: Literal["k2", "k3"] = "k3"
    scale: Literal["group", "batch", "none"] = "group"  # whose standard deviation divides the advantages
    ratio: Literal["token", "sequence"] = "token"
    objective: Literal["clip", "weights"] = "clip"  # "weights": the ratio is cut and not differentiated
    average: Literal["sequence", "token", "sum"] = "sequence"  # over tokens: of each answer, of all; or no average
    clip_low: float = 0.2
    clip_high: float = 0.2
    dynamic_sampling: bool = False  # sample on until the batch is full of prompts whose answers differ in reward

    min_answers: ClassVar[int] = 2

    @property
    def reduction(self) -> Reduction:
        """As `average` says."""
        return "response" if self.average == "sum" else self.average

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """(r - mean) / std of the group, given to every token; 0 where all rewards of a group are equal."""
        rewards = self.answer_rewards(batch)
        advantages = rewards - group_mean(rewards, batch.group)
        if self.scale == "group":
            advantages = advantages / (group_deviation(rewards, batch.group) + 1e-4)
        elif self.scale == "batch":
            advantages = advantages / ((rewards.std() if len(rewards) > 1 else 0.0) + 1e-4)
        return batch.fill(advantages=on_tokens(advantages, batch))

    def tokens(self, out: ModelOutput, batch: TokenBatch) -> TokenFloat:
        """The surrogate of the ratio to the policy that sampled."""
        old = old_logprobs(out, batch)
        ratios = out.logprobs - old
        if self.ratio == "sequence":
            ratios = sequence_log_ratios(out.logprobs, old, batch.mask)
        if self.objective == "weights":
            return cut_weights(out.logprobs, ratios, batch.advantages, self.clip_low, self.clip_high)
        return clipped(ratios, batch.advantages, self.clip_low, self.clip_high)
