"""Advantage-induced policy alignment. Zhu et al. 2023, arXiv:2306.02231, sec. 3."""

from dataclasses import dataclass
from typing import Any

from assay.algorithms.a2c import A2C
from assay.batch import ModelOutput, TokenBatch
from assay.losses.policy import advantage_regression
from assay.shapes import TokenFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class APA(A2C):
    """Regresses the log-ratio to the initial policy on advantage / `temperature`: no ratio, no clip.

    The KL is in the target, so none is taken off the reward unless `kl_coef` says so. The authors' code whitens the
    advantages and has a temperature of 0.1 for them.
    """

    name: Any = "apa"
    kl_coef: float = 0.0
    num_epochs: int = 4
    whiten_advantages: bool = False
    vf_coef: float = 1.0
    temperature: float = 0.5

    @property
    def reference(self) -> bool:
        """The initial policy is part of the loss."""
        return True

    def tokens(self, out: ModelOutput, batch: TokenBatch) -> TokenFloat:
        """The squared distance to what the advantage asks for."""
        moved = out.logprobs - batch.ref_logprobs
        return self.with_entropy(advantage_regression(moved, batch.advantages, self.temperature), out)
