"""How the numbers that a model gives a conversation become its reward, and how sure that reward is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assay.losses.preference import deviation
from assay.settings import InputError, Settings
from assay.shapes import RowFloat, RowLevels

Kind = Literal["single", "ensemble", "attributes", "mean_variance", "categorical"]
Rule = Literal["mean", "min", "cautious", "soft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout(Settings):
    """What the columns of `outputs` [B, L] mean, and how they are put together.

    kind: "single" one reward; "ensemble" L opinions of it; "attributes" L rewards of their own, `names`, added up with
    `weights`; "mean_variance" a mean and what softplus makes its standard deviation; "categorical" logits of L levels
    of worth from 0 to 1. Where there is a spread `rule` says what counts: "mean"; "cautious", mean - penalty
    * variance; of an ensemble also "min", the least opinion, and "soft", -1/penalty log mean exp(-penalty r).

    Source: Coste et al. 2024, arXiv:2310.02743, eqs. 2 to 4 (mean, worst case, uncertainty-weighted). Their variance
    divides by the number k of opinions, ours by k - 1, which is unbiased: a penalty costs k / (k - 1) of theirs.
    """

    kind: Kind = "single"
    rule: Rule = "mean"
    penalty: float = 1.0
    names: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.names):
            raise InputError(f"readout.weights has {len(self.weights)} numbers for {len(self.names)} attributes")
        if self.kind == "attributes" and not self.names:
            raise InputError("readout.names is empty: attributes need a name each")
        if self.rule in ("min", "soft") and self.kind != "ensemble":
            raise InputError(
                f"readout.rule {self.rule}: only an ensemble has opinions to choose from; this is {self.kind}"
            )
        if self.penalty < 0 or (self.rule == "soft" and self.penalty == 0):
            raise InputError(f"readout.penalty must be positive; got {self.penalty}")

    def reward(self, outputs: RowLevels, weights: Sequence[float] | None = None) -> RowFloat:
        """[B] the reward; `weights` of this call's attributes instead of the model's own."""
        if self.kind == "single":
            return outputs[:, 0]
        if self.kind == "attributes":
            told = weights or self.weights or (1 / len(self.names),) * len(self.names)
            return outputs @ torch.tensor(told, dtype=outputs.dtype)
        if self.rule == "min":
            return outputs.min(-1).values
        if self.rule == "soft":
            return (math.log(outputs.shape[-1]) - torch.logsumexp(-self.penalty * outputs, -1)) / self.penalty
        mean, spread = self._moments(outputs)
        return mean - self.penalty * spread**2 if self.rule == "cautious" else mean

    def uncertainty(self, outputs: RowLevels) -> RowFloat | None:
        """[B] the standard deviation of the reward, where the model knows one."""
        return None if self.kind in ("single", "attributes") else self._moments(outputs)[1]

    def _moments(self, outputs: RowLevels) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, [B] each."""
        if self.kind == "ensemble":
            return outputs.mean(-1), outputs.std(-1, correction=1)
        if self.kind == "mean_variance":
            return outputs[:, 0], deviation(outputs)
        shares, worth = outputs.softmax(-1), torch.linspace(0, 1, outputs.shape[-1])
        mean = shares @ worth
        return mean, torch.sqrt((shares * (worth - mean[:, None]) ** 2).sum(-1))
