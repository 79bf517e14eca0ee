"""Likelihoods of feedback on places within a response: the head's numbers are read at every token."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from assay.algorithms.base import Data
from assay.batch import Metrics, ModelOutput, Reduction, TokenBatch
from assay.losses import dense as losses
from assay.losses import preference
from assay.losses.masked import masked_sum
from assay.records import Judged, SpanLabels
from assay.rewards.likelihoods.base import Likelihood, all_alike, judged, preferences
from assay.rewards.likelihoods.ratings import Graded
from assay.rewards.pooling import Pooling, span_tokens, step_ends
from assay.rewards.readout import Readout
from assay.settings import InputError
from assay.shapes import PairFloat, TokenFloat, TokenLevels
from assay.tokens.chat import Encoded, Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Process(Likelihood):
    """Each step is right with probability sigmoid(number at its end). Lightman et al. 2023, arXiv:2305.20050.

    The reward of a response is that of its worst step.
    """

    name: Literal["process"] = "process"
    separator: str = "\n"  # ends a step
    data: ClassVar[Data] = "steps"
    columns: ClassVar[Mapping[str, Any]] = {"step_label": TokenFloat}
    reduction: ClassVar[Reduction] = "token"
    reads: ClassVar[tuple[str, ...]] = ("token_outputs",)

    @property
    def pooling(self) -> Pooling:
        """The least probability over the ends of steps."""
        return Pooling(link="right", pool="min", separator=self.separator)

    @property
    def reading(self) -> Mapping[str, Any]:
        """How steps become a text."""
        return {"separator": self.separator}

    def refuse(self, judgements: Sequence[Judged]) -> str:
        """Steps that are all right, or all wrong."""
        return all_alike([span.value for judgement in _labelled(judgements) for span in judgement.spans], "steps")

    def fill(
        self, judgements: Sequence[Judged], encoded: Sequence[Sequence[Encoded]], encoder: Encoder, mask: Tensor
    ) -> dict[str, Tensor]:
        """Labels at the ends of steps, and a mask of those alone; raises InputError where labels and ends differ."""
        labels, ends = torch.zeros(mask.shape), torch.zeros_like(mask)
        for row, (judgement, (answer,)) in enumerate(zip(_labelled(judgements), encoded, strict=True)):
            found = step_ends(answer, encoder, self.separator)
            if len(found) != len(judgement.spans):
                raise InputError(
                    f"{judgement.id}: {len(judgement.spans)} steps, but its tokens hold {self.separator!r} so that "
                    f"there are {len(found)}: use another --likelihood.separator"
                )
            ends[row, found] = True
            labels[row, found] = torch.tensor([span.value for span in judgement.spans])
        return {"step_label": labels, "mask": ends}

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[TokenFloat, Metrics]:
        """Binary cross-entropy; the batch's mask holds the ends of steps alone."""
        logits = out.token_outputs[..., 0]
        nll = losses.token_binary(logits, batch.step_label)
        return nll, {"nll": nll, "accuracy": ((logits > 0) == (batch.step_label > 0.5)).float()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Graded):
    """Whether a response is good, told at each of its tokens. Cobbe et al. 2021, arXiv:2110.14168, sec. 4.2."""

    name: Literal["outcome"] = "outcome"
    reduction: ClassVar[Reduction] = "sequence"
    reads: ClassVar[tuple[str, ...]] = ("token_outputs",)

    @property
    def pooling(self) -> Pooling:
        """The probability at the last token."""
        return Pooling(link="right", pool="last")

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[TokenFloat, Metrics]:
        """Binary cross-entropy at every token with the rating, 0 to 1."""
        logits = out.token_outputs[..., 0]
        labels = batch.rating[:, None].expand_as(logits)
        nll = losses.token_binary(logits, labels)
        return nll, {"nll": nll, "accuracy": ((logits > 0) == (labels > 0.5)).float()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans(Likelihood):
    """Errors of several kinds, each a number at every token: the logit of lying in a span of that kind.

    The reward of a response is minus the share of its tokens in error, kinds weighted alike unless a caller says else.

    Source: Wu et al. 2023, arXiv:2306.01693 (rewards by kind of error), at tokens instead of sentences.
    """

    name: Literal["spans"] = "spans"
    kinds: tuple[str, ...] = ()  # filled from the feedback
    data: ClassVar[Data] = "spans"
    columns: ClassVar[Mapping[str, Any]] = {"span": TokenLevels}
    reduction: ClassVar[Reduction] = "sequence"
    reads: ClassVar[tuple[str, ...]] = ("token_outputs",)

    @property
    def num_outputs(self) -> int:
        """One for each kind."""
        return max(1, len(self.kinds))

    @property
    def readout(self) -> Readout:
        """The kinds, weighted together."""
        return Readout(kind="attributes", names=self.kinds)

    @property
    def pooling(self) -> Pooling:
        """Minus the mean probability of an error."""
        return Pooling(link="wrong", pool="mean")

    def refuse(self, judgements: Sequence[Judged]) -> str:
        """Responses of which none has a span."""
        spans = any(judgement.spans for judgement in _labelled(judgements))
        return "" if spans else "no row has a span: there is nothing to learn to find"

    def knowing(self, judgements: Sequence[Judged]) -> Self:
        """The kinds, the most frequent first."""
        if self.kinds:
            raise InputError("likelihood.kinds is filled from the feedback: leave it out")
        counts = Counter(span.name for judgement in _labelled(judgements) for span in judgement.spans)
        return replace(self, kinds=tuple(name for name, _ in counts.most_common()))

    def fill(
        self, judgements: Sequence[Judged], encoded: Sequence[Sequence[Encoded]], encoder: Encoder, mask: Tensor
    ) -> dict[str, Tensor]:
        """[B, T, L] which tokens lie in a span of each kind; kinds that were not trained on are left out."""
        place_of = {name: place for place, name in enumerate(self.kinds)}
        found = torch.zeros(*mask.shape, len(self.kinds))
        for row, judgement in enumerate(_labelled(judgements)):
            told = [(span.start, span.end, place_of[span.name]) for span in judgement.spans if span.name in place_of]
            here = span_tokens(encoder.places(judgement.prompt, judgement.response), told, len(self.kinds))
            found[row, : len(here)] = here
        return {"span": found}

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[TokenFloat, Metrics]:
        """Binary cross-entropy of each kind at every token, summed over kinds."""
        nll = losses.token_kinds(out.token_outputs, batch.span)
        right = ((out.token_outputs > 0) == (batch.span > 0.5)).float().mean(-1)
        return nll, {"nll": nll, "accuracy": right}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBradleyTerry(Likelihood):
    """Comparisons of sums: P(chosen preferred) = sigmoid of the difference of sum_t r_t.

    Token rewards whose sum is the sequence's reward. Chaudhari et al. 2024, arXiv:2404.08555, sec. 4.3.
    """

    name: Literal["token_bradley_terry"] = "token_bradley_terry"
    centring_coef: float = 0.01
    gives_log_odds: ClassVar[bool] = True
    reads_margins: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("token_outputs",)

    @property
    def pooling(self) -> Pooling:
        """The sum."""
        return Pooling()

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[PairFloat, Metrics]:
        """As Bradley-Terry, on sums over the tokens that the assistant wrote."""
        rewards: Tensor = masked_sum(out.token_outputs[..., 0], batch.mask)
        chosen, rejected = rewards[0::2], rewards[1::2]
        margin = batch.margin if "margin" in batch else None
        nll = preference.bradley_terry(chosen, rejected, preference=preferences(batch, chosen), margin=margin)
        metrics = {"nll": nll, **judged(chosen, rejected)}
        return nll + self.centring_coef * preference.centring(chosen, rejected), metrics


def _labelled(judgements: Sequence[Judged]) -> list[SpanLabels]:
    return [judgement for judgement in judgements if isinstance(judgement, SpanLabels)]
