"""Self-play preference optimisation. Wu et al. 2024, arXiv:2405.00675, algorithm 1."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from assay.algorithms.base import Learners, Memory
from assay.algorithms.on_policy import OnPolicy, old_logprobs
from assay.batch import Metrics, ModelOutput, TokenBatch
from assay.losses.credit import win_rates
from assay.losses.masked import masked_sum
from assay.losses.policy import win_regression
from assay.shapes import RowFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class SPPO(OnPolicy):
    """Moves log pi(y) - log pi_t(y) towards (P(y beats pi_t) - 1/2) / beta, pi_t being the policy that sampled.

    How often an answer wins is estimated on its siblings. Each batch of rollouts is an iteration; there is no pull to
    the reference, which is watched only. The authors train on the best and the worst of five answers, with beta 0.001.
    """

    name: Literal["sppo"] = "sppo"
    beta: float = 0.1
    kl_coef: float = 0.0
    num_epochs: int = 2

    min_answers: ClassVar[int] = 2
    charges_kl: ClassVar[bool] = False

    def credit(self, batch: TokenBatch, learners: Learners, memory: Memory) -> TokenBatch:
        """How probably each answer beats another of its prompt."""
        return batch.fill(declared={"wins": RowFloat}, wins=win_rates(batch.rewards, batch.group))

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[RowFloat, Metrics]:
        """The squared distance to what the win rate asks for."""
        moved = masked_sum(out.logprobs - old_logprobs(out, batch), batch.mask)
        return win_regression(moved, batch.wins, self.beta), {}
