"""Exploratory preference optimisation: Online DPO against the reference's answers, with a bonus for leaving them.

Xie et al. 2024, arXiv:2405.21046, algorithm 1. Trained on all comparisons so far, labels drawn by Bradley-Terry, the
policy held within V_max / beta of the reference where `v_max` is set; public versions train on the newest
batch and label by the higher reward (`replay` "latest", `label` "argmax").
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from assay.algorithms.base import Learners, Memory
from assay.algorithms.online_dpo import OnlineDPO
from assay.batch import Metrics, ModelOutput, TokenBatch
from assay.settings import InputError
from assay.shapes import PairFloat, RowFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class XPO(OnlineDPO):
    """One answer by the policy and one by the reference; `alpha` times the latter's log-probability is minimised too.

    A list of alphas is a schedule: each holds for `alpha_batches` batches of rollouts, on all comparisons that are used
    meanwhile, the last one on to the end. With `v_max` a log-ratio beyond v_max / beta counts as that, and half the
    square of what is beyond, in nats, is added: the paper's class of policies within the bound, which weights that all
    answers share cannot be projected on, is left by no more than the steps of the optimiser overshoot.
    """

    name: Any = "xpo"
    alpha: tuple[float, ...] = (1e-5,)
    alpha_batches: int = 100
    replay: Literal["cumulative", "latest"] = "cumulative"
    v_max: float = 0.0  # 0: no bound

    draws: ClassVar[tuple[str, ...]] = ("reference",)
    newest: ClassVar[tuple[str, ...]] = ("alpha",)
    min_answers: ClassVar[int] = 1
    even_answers: ClassVar[bool] = False
    most_answers: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.alpha or not all(alpha >= 0 for alpha in self.alpha):
            raise InputError(
                f"algorithm.alpha: give one number, or several as a schedule, none below 0; got {self.alpha}"
            )

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """As Online DPO, and which alpha holds."""
        batch = OnlineDPO.credit(self, batch, learners, memory)
        num = int(memory.get("batches", torch.zeros(())))
        memory["batches"] = torch.tensor(num + 1)
        alpha = self.alpha[min(num // self.alpha_batches, len(self.alpha) - 1)]
        return batch.fill(declared={"alpha": RowFloat}, alpha=torch.full((batch.num_rows,), alpha))

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[PairFloat, Metrics]:
        """Online DPO's, the bonus, and what pulls back."""
        loss, metrics = OnlineDPO.loss(self, out, batch)
        ratio, is_theirs = self.ratios(out, batch), batch.source[0::2] == 1
        bonus = batch.alpha[0::2] * torch.where(is_theirs, ratio[0::2], ratio[1::2])
        beyond = (OnlineDPO.ratios(self, out, batch) - ratio) ** 2 / 2
        return loss + bonus + beyond[0::2] + beyond[1::2], {**metrics, "bonus": bonus.detach()}

    def ratios(self, out: ModelOutput, batch: TokenBatch) -> torch.Tensor:
        """[B] log pi / pi_ref, cut at the bound."""
        ratio = OnlineDPO.ratios(self, out, batch)
        bound = self.v_max / self.beta
        return ratio.clamp(-bound, bound) if self.v_max else ratio
