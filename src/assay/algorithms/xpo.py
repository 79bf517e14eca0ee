"""Exploratory preference optimisation: Online DPO against the reference's answers, with a bonus for leaving them.

Xie et al. 2024, arXiv:2405.21046, algorithm 1. Trained on all comparisons so far, labels drawn by Bradley-Terry, the
policy pushed no further than V_max / beta from the reference where `v_max` is set; public versions train on the newest
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
    meanwhile, the last one on to the end. With `v_max` no log-ratio counts beyond v_max / beta, nor is pulled further
    out; from there it is still pulled back.
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
        """Online DPO's, and the bonus."""
        loss, metrics = OnlineDPO.loss(self, out, batch)
        ratio, is_theirs = self.ratios(out, batch), batch.source[0::2] == 1
        bonus = batch.alpha[0::2] * torch.where(is_theirs, ratio[0::2], ratio[1::2])
        return loss + bonus, {**metrics, "bonus": bonus.detach()}

    def ratios(self, out: ModelOutput, batch: TokenBatch) -> torch.Tensor:
        """[B] log pi / pi_ref, held within the bound."""
        ratio = OnlineDPO.ratios(self, out, batch)
        bound = self.v_max / self.beta
        return _Held.apply(ratio, bound) if self.v_max else ratio  # pyright: ignore[reportReturnType]


class _Held(torch.autograd.Function):
    """A clamp whose slope is 0 only where a step down the gradient would go further out."""

    @staticmethod
    def forward(ctx: Any, ratio: torch.Tensor, bound: float) -> torch.Tensor:
        ctx.save_for_backward(ratio > bound, ratio < -bound)
        return ratio.clamp(-bound, bound)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        above, below = ctx.saved_tensors
        outwards = (above & (grads[0] < 0)) | (below & (grads[0] > 0))
        return grads[0].masked_fill(outwards, 0.0), None
