"""One likelihood for several numbers: a reward for each objective, or several opinions of one reward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.algorithms.base import Data
from assay.batch import Metrics, ModelOutput, Reduction, TokenBatch
from assay.records import Judged
from assay.rewards.likelihoods.base import Likelihood
from assay.rewards.pooling import Pooling
from assay.rewards.readout import Readout
from assay.shapes import PairFloat, RowFloat, RowInt, RowLevels
from assay.tokens.chat import Encoded, Encoder

POISSON_1 = (0.36788, 0.73576, 0.91970, 0.98101, 0.99634, 0.99941)  # P(at most 0, 1, 2, ...)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapped(Likelihood):
    """Base: a likelihood that adds to an inner one, and is as that one where it says nothing else."""

    name: str = "wrapped"
    inner: Likelihood

    @property
    def data(self) -> Data:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner one."""
        return self.inner.data

    @property
    def innermost(self) -> Likelihood:
        """That of the inner one."""
        return self.inner.innermost

    @property
    def reduction(self) -> Reduction:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner one."""
        return self.inner.reduction

    @property
    def columns(self) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner one."""
        return self.inner.columns

    @property
    def num_outputs(self) -> int:
        """As the inner one."""
        return self.inner.num_outputs

    @property
    def readout(self) -> Readout:
        """As the inner one."""
        return self.inner.readout

    @property
    def pooling(self) -> Pooling | None:
        """As the inner one."""
        return self.inner.pooling

    @property
    def learned(self) -> dict[str, Tensor]:
        """As the inner one."""
        return self.inner.learned

    def fill(
        self, judgements: Sequence[Judged], encoded: Sequence[Sequence[Encoded]], encoder: Encoder, mask: Tensor
    ) -> dict[str, Tensor]:
        """As the inner one."""
        return self.inner.fill(judgements, encoded, encoder, mask)

    @property
    def learns_between(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner one."""
        return self.inner.learns_between

    def between_epochs(self, outputs: RowLevels, batch: TokenBatch, learned: Mapping[str, Tensor]) -> None:
        """As the inner one."""
        self.inner.between_epochs(outputs, batch, learned)

    def log_odds(
        self,
        outputs: RowLevels,
        rewards: RowFloat,
        judgements: Sequence[Judged],
        told: Mapping[str, Mapping[str, float]],
    ) -> PairFloat | None:
        """As the inner one."""
        return self.inner.log_odds(outputs, rewards, judgements, told)

    def told(self, learned: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """As the inner one."""
        return self.inner.told(learned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Several(Wrapped):
    """Base: the inner likelihood of one reward, for several rewards."""

    name: str = "several"

    def __post_init__(self) -> None:
        if self.inner.num_outputs != 1 or self.inner.pooling is not None:
            raise ValueError(f"{type(self.inner).__name__} has numbers of its own")

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All numbers of the head."""
        return ("outputs",)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerObjective(Several):
    """Each judgement speaks of one objective and trains that objective's reward: `objective` [B] says which."""

    names: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """One for each objective."""
        return len(self.names)

    @property
    def readout(self) -> Readout:
        """Weighted together."""
        return Readout(kind="attributes", names=self.names)

    @property
    def columns(self) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner one's, and the objective."""
        return {**self.inner.columns, "objective": RowInt}

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """The inner loss on the reward of each row's objective."""
        rewards = out.outputs.gather(1, batch.objective[:, None]).squeeze(1)
        return self.inner.loss(_with_rewards(out, rewards), batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinions(Several):
    """Several heads on one body, each on a bootstrap of its own: a judgement counts Poisson(1) times for a head.

    How often is a hash of the judgement's `key` and the head, so it is the same in every epoch and after a resume.

    Source: Osband et al. 2016, arXiv:1602.04621 (bootstrapped heads); Oza & Russell 2001 (Poisson weights).
    """

    num: int

    @property
    def num_outputs(self) -> int:
        """One for each head."""
        return self.num

    @property
    def readout(self) -> Readout:
        """By a rule that whoever uses it may change."""
        return Readout(kind="ensemble")

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """The mean of the heads' losses under their weights; metrics are means over the heads."""
        keys = _per_judgement(batch, self.reduction)
        total = torch.zeros((), device=out.outputs.device)
        sums: dict[str, Tensor] = {}
        for head in range(self.num):
            values, metrics = self.inner.loss(_with_rewards(out, out.outputs[:, head]), batch)
            total = total + bootstrap_weights(keys, head).to(values.dtype) * values
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / self.num
        spread = out.outputs.detach().std(-1)
        sums["disagreement"] = (
            spread[:: len(spread) // len(keys)] if self.reduction != "ranking" else _first(spread, batch)
        )
        return total / self.num, sums


def bootstrap_weights(keys: RowInt, head: int) -> RowInt:
    """[B] how often each judgement counts for a head: Poisson of mean 1, by a hash (splitmix64) of key and head."""
    mixed = _mix(keys ^ _mix(torch.full_like(keys, head + 1)))
    uniform = (mixed >> 11).bitwise_and(2**52 - 1).double() / 2**52
    return torch.bucketize(uniform, torch.tensor(POISSON_1, dtype=torch.float64, device=keys.device))


def _mix(x: Tensor) -> Tensor:
    """Two rounds of multiply and shift; int64 wraps around."""
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)


def _with_rewards(out: ModelOutput, rewards: Tensor) -> ModelOutput:
    known = {"parameters": out.parameters} if "parameters" in out else {}
    return ModelOutput(rewards=rewards, **known)


def _per_judgement(batch: TokenBatch, reduction: Reduction) -> RowInt:
    if reduction == "ranking":
        return _first(batch.key, batch)
    return batch.key[0::2] if reduction == "pair" else batch.key


def _first(rows: Tensor, batch: TokenBatch) -> Tensor:
    """The first row of each ranking."""
    starts = torch.cat([batch.ranking.new_ones(1), batch.ranking.diff()]) > 0
    return rows[starts]
