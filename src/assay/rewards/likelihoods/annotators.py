"""A likelihood that tells people apart: how noisy each one is, and how much each favours what is shown first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from assay.batch import TokenBatch
from assay.losses import preference as losses
from assay.rewards.likelihoods.base import preferences
from assay.rewards.likelihoods.comparisons import Compared
from assay.shapes import PairFloat, RowInt


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotators(Compared):
    """P(chosen preferred by a) = sigmoid((r(chosen) - r(rejected)) / temperature_a +- bias_a): one reward for all.

    The bias is in favour of what was shown first, and each annotator's own: a person who judged some pairs has an
    intercept and a slope, which is what these two are. Where the order is not known it is left out, and a bias about
    which nothing is known stays 0. Rewards are in units of the typical annotator's noise: the geometric mean of the
    temperatures is 1. A temperature is positive, so people who want the opposite only become infinitely noisy here:
    `assay.lab.groups` is about those.
    """

    name: Literal["annotators"] = "annotators"
    centring_coef: float = 0.01
    names: tuple[str, ...] = ()  # whose numbers are learned; filled from the feedback
    columns: ClassVar[Mapping[str, Any]] = {"annotator": RowInt, "shown_first": PairFloat}

    @property
    def learned(self) -> dict[str, Tensor]:
        """The logarithms of the temperatures, and the biases, in the order of the names."""
        return {"log_temperature": torch.zeros(len(self.names)), "order_bias": torch.zeros(len(self.names))}

    def told(self, learned: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """Each annotator's temperature and order bias (in log-odds)."""
        logs = learned["log_temperature"]
        temperatures, biases = (logs - logs.mean()).exp().tolist(), learned["order_bias"].tolist()
        both = zip(self.names, temperatures, biases, strict=True)
        return {name: {"temperature": temperature, "order_bias": bias} for name, temperature, bias in both}

    def nll(
        self, chosen: PairFloat, rejected: PairFloat, batch: TokenBatch, learned: Mapping[str, Tensor]
    ) -> PairFloat:
        """With soft labels where the data has any; margins are not read."""
        return losses.by_annotator(
            chosen,
            rejected,
            batch.annotator[0::2],
            learned["log_temperature"],
            learned["order_bias"],
            batch.shown_first.to(chosen.dtype),
            preference=preferences(batch, chosen),
        )
