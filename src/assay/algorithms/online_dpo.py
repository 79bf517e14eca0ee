"""DPO on pairs that the policy samples and a reward compares. Guo et al. 2024, arXiv:2402.04792, algorithm 1."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from assay.algorithms.base import Learners, Memory
from assay.algorithms.on_policy import OnPolicy
from assay.batch import Metrics, ModelOutput, Reduction, TokenBatch
from assay.losses.policy import log_ratio
from assay.losses.preference import dpo, ipo
from assay.shapes import PairFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineDPO(OnPolicy):
    """Two answers a prompt, or more in pairs; which one is preferred is drawn or decided by their rewards.

    `label`: "bernoulli" draws it with Bradley-Terry's probability, as a person would answer; "argmax" always takes the
    higher reward; "soft" keeps the probability. Equal rewards are a tie, which a coin would only make noisier; so are
    equal answers.
    """

    name: Any = "online_dpo"
    beta: float = 0.1
    objective: Literal["sigmoid", "ipo"] = "sigmoid"
    label: Literal["bernoulli", "argmax", "soft"] = "bernoulli"
    kl_coef: float = 0.0  # DPO's beta is the KL's price already

    min_answers: ClassVar[int] = 2
    charges_kl: ClassVar[bool] = False
    even_answers: ClassVar[bool] = True

    @property
    def reference(self) -> bool:
        """The reference is part of the loss."""
        return True

    @property
    def reduction(self) -> Reduction:
        """Pairs."""
        return "pair"

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """Probabilities that each pair's first answer is preferred."""
        there = torch.arange(batch.ids.shape[1], device=batch.ids.device) < batch.lengths[:, None]
        said = torch.where(there, batch.ids, -1)  # also by an environment
        same = (said[0::2] == said[1::2]).all(1)
        gap = (batch.rewards[0::2] - batch.rewards[1::2]).double()
        chance = torch.sigmoid(gap)
        if self.label != "soft":
            drawn = torch.bernoulli(chance) if self.label == "bernoulli" else (gap > 0).double()
            chance = torch.where(gap == 0, 0.5, drawn)
        return batch.fill(preference=torch.where(same, 0.5, chance).float())

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[PairFloat, Metrics]:
        """DPO's, or IPO's, on the two answers."""
        ratio = self.ratios(out, batch)
        fit = {"sigmoid": dpo, "ipo": ipo}[self.objective]
        loss = fit(ratio[0::2], ratio[1::2], beta=self.beta, preference=batch.preference)
        ahead = (ratio[0::2] - ratio[1::2]).detach()
        agrees = 0.5 + 0.5 * torch.sign(ahead) * torch.sign(batch.preference - 0.5)  # a tie on either side: half
        return loss, {"rewards/accuracies": agrees, "margin": self.beta * ahead}

    def ratios(self, out: ModelOutput, batch: TokenBatch) -> torch.Tensor:
        """[B] log pi / pi_ref of whole answers."""
        return log_ratio(out.logprobs, batch.ref_logprobs, batch.mask)
