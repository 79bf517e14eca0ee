"""A likelihood that tells people apart: how noisy each one is, and how much each favours what is shown first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from assay.batch import TokenBatch
from assay.losses import preference as losses
from assay.records import Judged
from assay.rewards.likelihoods.base import preferences
from assay.rewards.likelihoods.comparisons import Compared
from assay.settings import InputError
from assay.shapes import PairFloat, RowFloat, RowInt, RowLevels
from assay.tokens.chat import Encoded, Encoder

SHOWN_FIRST: Mapping[Any, float] = {"chosen": 1.0, "rejected": -1.0}
"""Which response was shown first -> the sign of a bias in favour of the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotators(Compared):
    """P(chosen preferred by a) = sigmoid((r(chosen) - r(rejected)) / temperature_a +- bias_a): one reward for all.

    The bias is in favour of what was shown first, and each annotator's own: a person who judged some pairs has an
    intercept and a slope, which is what these two are. Where the order is not known it is left out, and a bias about
    which nothing is known stays 0. Rewards are in units of the typical annotator's noise: the geometric mean of the
    temperatures is 1. A temperature is positive, so people who want the opposite only become infinitely noisy here:
    `AnnotatorGroups` is about those.
    """

    name: Literal["annotators"] = "annotators"
    names: tuple[str, ...] = ()  # whose numbers are learned; filled from the feedback
    columns: ClassVar[Mapping[str, Any]] = {"annotator": RowInt, "shown_first": PairFloat}

    @property
    def learned(self) -> dict[str, Tensor]:
        """The logarithms of the temperatures, and the biases, in the order of the names."""
        return {"log_temperature": torch.zeros(len(self.names)), "order_bias": torch.zeros(len(self.names))}

    def refuse(self, judgements: Sequence[Judged]) -> str:
        """People who cannot be told apart, and orders that are no order."""
        if reason := nobody_to_tell_apart(judgements):
            return reason
        if wrong := [j for j in judgements if j.meta.get("shown_first") not in (None, *SHOWN_FIRST)]:
            told = wrong[0].meta["shown_first"]
            return f"{wrong[0].id}: shown_first={told!r}: write chosen or rejected, or leave it out"
        return ""

    def knowing(self, judgements: Sequence[Judged]) -> Self:
        """The annotators in the order they first appear."""
        if self.names:
            raise InputError("likelihood.names is filled from the feedback: leave it out")
        return replace(self, names=names_of(judgements))

    def fill(
        self, judgements: Sequence[Judged], encoded: Sequence[Sequence[Encoded]], encoder: Encoder, mask: Tensor
    ) -> dict[str, Tensor]:
        """Who speaks, [B]; and the sign of a bias for what was shown first, [P]."""
        signs = torch.tensor([sign_of_order(judgement) for judgement in judgements])
        return {"annotator": speakers(self.names, judgements, encoded), "shown_first": signs}

    def told(self, learned: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """Each annotator's temperature and order bias (in log-odds)."""
        logs = learned["log_temperature"]
        temperatures, biases = (logs - logs.mean()).exp().tolist(), learned["order_bias"].tolist()
        both = zip(self.names, temperatures, biases, strict=True)
        return {name: {"temperature": temperature, "order_bias": bias} for name, temperature, bias in both}

    def log_odds(
        self,
        outputs: RowLevels,
        rewards: RowFloat,
        judgements: Sequence[Judged],
        told: Mapping[str, Mapping[str, float]],
    ) -> PairFloat:
        """For the annotator who judged; one not heard before is typical, without bias."""
        typical = {"temperature": 1.0, "order_bias": 0.0}
        known = [told.get(judgement.annotator, typical) for judgement in judgements]
        bias = [k["order_bias"] * sign_of_order(j) for k, j in zip(known, judgements, strict=True)]
        temperature = torch.tensor([k["temperature"] for k in known], dtype=rewards.dtype)
        return (rewards[0::2] - rewards[1::2]) / temperature + torch.tensor(bias, dtype=rewards.dtype)

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


def nobody_to_tell_apart(judgements: Sequence[Judged]) -> str:
    """Why people cannot be told apart; '' where they can."""
    names = {judgement.annotator for judgement in judgements}
    advice = "rows name theirs in `annotator`, or in `annotations`, which --data.objectives reads"
    if "" in names:
        num = sum(not judgement.annotator for judgement in judgements)
        return f"{num} of {len(judgements)} judgements name no annotator: {advice}"
    if len(names) < 2:
        return f"all judgements are by {judgements[0].annotator!r}: there is nobody to tell apart; {advice}"
    return ""


def names_of(judgements: Sequence[Judged]) -> tuple[str, ...]:
    """The annotators in the order they first appear."""
    return tuple(dict.fromkeys(judgement.annotator for judgement in judgements))


def speakers(names: Sequence[str], judgements: Sequence[Judged], encoded: Sequence[Sequence[Encoded]]) -> RowInt:
    """[B] who judged each response, by the place of the name."""
    place_of = {name: place for place, name in enumerate(names)}
    sizes = torch.tensor([len(answers) for answers in encoded])
    return torch.tensor([place_of[judgement.annotator] for judgement in judgements]).repeat_interleave(sizes)


def sign_of_order(judgement: Judged) -> float:
    """1 where the chosen response was shown first, -1 where the other one was, 0 where nobody knows."""
    return SHOWN_FIRST.get(judgement.meta.get("shown_first"), 0.0)
