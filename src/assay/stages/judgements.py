"""What each kind of feedback is read as, which answers it holds, and how it becomes a batch."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.batch import TokenBatch
from assay.config import DataSettings
from assay.feedback.read import read_comparisons, read_rankings, read_ratings, read_spans, read_steps
from assay.records import Comparison, Prompt, Ranking, Rating, Response, SpanLabels, stable_id
from assay.rewards.likelihoods import Likelihood
from assay.rewards.likelihoods.dense import Outcome, Process, Spans
from assay.rewards.likelihoods.rankings import PlackettLuce
from assay.rewards.likelihoods.ratings import Binary, Ordinal
from assay.rewards.pooling import span_tokens, step_ends
from assay.settings import InputError
from assay.stages.common import keep_fitting, read
from assay.tokens.chat import Encoded, Encoder, collate

Judgement = Comparison | Ranking | Rating | SpanLabels
Item = tuple[Judgement, Sequence[Encoded]]

READERS: Mapping[str, Callable[..., Any]] = {
    "comparisons": read_comparisons,
    "rankings": read_rankings,
    "ratings": read_ratings,
    "steps": read_steps,
    "spans": read_spans,
}
SHOWN_FIRST: Mapping[Any, float] = {"chosen": 1.0, "rejected": -1.0}
"""Which response was shown first -> the sign of a bias in favour of the first."""


def read_judgements(likelihood: Likelihood, data: DataSettings) -> tuple[Judgement, ...]:
    """The feedback that a likelihood speaks of; what it could not learn from is an error that says so."""
    reader = READERS.get(likelihood.data)
    if reader is None:
        raise InputError(
            f"{type(likelihood).__name__} learns from {likelihood.data!r}, which is not one of {', '.join(READERS)}"
        )
    if isinstance(likelihood, Process):
        reader = partial(reader, separator=likelihood.separator)
    records = read(reader, data)
    if missing := [name for name in data.objectives if name not in objectives_of(records)]:
        raise InputError(f"{data.path}: no row has a judgement under {missing[0]!r} (--data.objectives)")
    check_scale(likelihood, records, data.path)
    return records


def check_scale(likelihood: Likelihood, records: Sequence[Judgement], path: str) -> None:
    """Raises InputError for feedback outside of a likelihood's scale, of one class, or in an order it cannot read."""
    ratings = [r for r in records if isinstance(r, Rating)]
    tied = [r for r in records if isinstance(r, Ranking) and r.tied]
    if tied and isinstance(likelihood, PlackettLuce):
        raise InputError(
            f"{path}: {len(tied)} of {len(records)} rankings have ties (the first: {tied[0].id}), and Plackett-Luce "
            f"needs one order of all: use --likelihood kwise_bradley_terry"
        )
    if isinstance(likelihood, Ordinal):
        scale = f"whole numbers from {likelihood.low} to {likelihood.high} (--likelihood.low, --likelihood.high)"
        wrong = [r for r in ratings if r.value % 1 or not likelihood.low <= r.value <= likelihood.high]
    else:
        scale = "numbers from 0 to 1"
        wrong = [r for r in ratings if not 0 <= r.value <= 1] if isinstance(likelihood, Binary | Outcome) else []
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} of {len(ratings)} ratings are outside of the scale, the first, {wrong[0].id}, with "
            f"{wrong[0].value:g}: {likelihood.name} takes {scale}"
        )
    labels = [span.value for r in records if isinstance(r, SpanLabels) for span in r.spans if span.name == "step"]
    for what, values in (("ratings", [r.value for r in ratings]), ("steps", labels)):
        if values and len(set(values)) == 1:
            raise InputError(f"{path}: all {len(values)} {what} are {values[0]:g}: there is nothing to tell apart")
    if isinstance(likelihood, Spans) and not kinds_of(records):
        raise InputError(f"{path}: no row has a span: there is nothing to learn to find")


def answers_of(judgement: Judgement) -> tuple[Response, ...]:
    """The responses, in the order of a batch's rows: chosen then rejected, or best first."""
    if isinstance(judgement, Comparison):
        return judgement.chosen, judgement.rejected
    return judgement.responses if isinstance(judgement, Ranking) else (judgement.response,)


def encode(
    judgements: Sequence[Judgement],
    conversation: Callable[[tuple[Prompt, Response]], Encoded],
    limit: int,
    data: DataSettings,
) -> list[Item]:
    """Every answer of every judgement that fits, as a whole conversation: `conversation` is `Reward.encode`."""
    items = ((j, [conversation((j.prompt, answer)) for answer in answers_of(j)]) for j in judgements)
    return keep_fitting(items, limit, data)


def objectives_of(judgements: Sequence[Judgement]) -> tuple[str, ...]:
    """The objectives in the order they first appear."""
    return tuple(dict.fromkeys(judgement.objective for judgement in judgements))


def kinds_of(judgements: Sequence[Judgement]) -> tuple[str, ...]:
    """The kinds of spans, the most frequent first."""
    found = Counter(span.name for j in judgements if isinstance(j, SpanLabels) for span in j.spans)
    return tuple(name for name, _ in found.most_common())


def annotators_of(judgements: Sequence[Judgement], path: str) -> tuple[str, ...]:
    """The annotators in the order they first appear; raises InputError where they cannot be told apart."""
    names = tuple(dict.fromkeys(judgement.annotator for judgement in judgements))
    advice = "rows name theirs in `annotator`, or in `annotations`, which --data.objectives reads"
    if "" in names:
        num = sum(not judgement.annotator for judgement in judgements)
        raise InputError(f"{path}: {num} of {len(judgements)} judgements name no annotator: {advice}")
    if len(names) < 2:
        raise InputError(
            f"{path}: all judgements are by {judgements[0].annotator!r}: there is nobody to tell apart; {advice}"
        )
    if wrong := [j for j in judgements if j.meta.get("shown_first") not in (None, *SHOWN_FIRST)]:
        told = wrong[0].meta["shown_first"]
        raise InputError(f"{path}: {wrong[0].id}: shown_first={told!r}: write chosen or rejected, or leave it out")
    return names


def sign_of_order(judgement: Judgement) -> float:
    """1 where the chosen response was shown first, -1 where the other one was, 0 where nobody knows."""
    return SHOWN_FIRST.get(judgement.meta.get("shown_first"), 0.0)


def collator(
    encoder: Encoder,
    likelihood: Likelihood | None = None,
    objectives: Sequence[str] = (),
    annotators: Sequence[str] = (),
) -> Callable[[list[Item]], TokenBatch]:
    """Makes a batch of judgements of one kind, with the columns that the likelihood declares.

    With `objectives`, rows say which of them they speak of; with `annotators`, which of them speaks.
    """
    place_of = {name: place for place, name in enumerate(annotators)}
    declared = {} if likelihood is None else likelihood.columns

    def make(items: list[Item]) -> TokenBatch:
        judgements = [judgement for judgement, _ in items]
        sizes = torch.tensor([len(encoded) for _, encoded in items])
        columns = {"key": torch.tensor([_key(j) for j in judgements]).repeat_interleave(sizes), **_columns(judgements)}
        if objectives:
            places = torch.tensor([objectives.index(j.objective) for j in judgements])
            columns["objective"] = places.repeat_interleave(sizes)
        if annotators:
            columns["annotator"] = torch.tensor([place_of[j.annotator] for j in judgements]).repeat_interleave(sizes)
        if "shown_first" in declared:
            columns["shown_first"] = torch.tensor([sign_of_order(j) for j in judgements])
        batch = collate([encoded for _, encoded in items], encoder.tokenizer.pad_token_id)
        if isinstance(likelihood, Process):
            columns |= _steps(items, encoder, likelihood.separator, batch.mask)
        if isinstance(likelihood, Spans):
            columns["span"] = _spans(items, encoder, likelihood.kinds, batch.mask.shape[1])
        return batch.fill(declared=declared, **columns)

    return make


def _steps(items: Sequence[Item], encoder: Encoder, separator: str, mask: Tensor) -> dict[str, Tensor]:
    """Labels at the ends of steps, and a mask of those alone; raises InputError where steps and ends do not agree."""
    labels, ends = torch.zeros(mask.shape), torch.zeros_like(mask)
    for row, (judgement, (encoded,)) in enumerate(items):
        assert isinstance(judgement, SpanLabels)
        found = step_ends(encoded, encoder, separator)
        if len(found) != len(judgement.spans):
            raise InputError(
                f"{judgement.id}: {len(judgement.spans)} steps, but its tokens hold {separator!r} so that there are "
                f"{len(found)}: use another --likelihood.separator"
            )
        ends[row, found] = True
        labels[row, found] = torch.tensor([span.value for span in judgement.spans])
    return {"step_label": labels, "mask": ends}


def _spans(items: Sequence[Item], encoder: Encoder, kinds: Sequence[str], width: int) -> Tensor:
    """[B, T, L] which tokens lie in a span of each kind; kinds that were not trained on are left out."""
    place_of = {name: place for place, name in enumerate(kinds)}
    found = torch.zeros(len(items), width, len(kinds))
    for row, (judgement, _) in enumerate(items):
        assert isinstance(judgement, SpanLabels)
        told = [(span.start, span.end, place_of[span.name]) for span in judgement.spans if span.name in place_of]
        here = span_tokens(encoder.places(judgement.prompt, judgement.response), told, len(kinds))
        found[row, : len(here)] = here
    return found


def _columns(judgements: Sequence[Judgement]) -> dict[str, Tensor]:
    """What the judgements say, as columns."""
    if isinstance(judgements[0], SpanLabels):
        return {}
    if isinstance(judgements[0], Rating):
        return {"rating": torch.tensor([r.value for r in judgements if isinstance(r, Rating)])}
    if isinstance(judgements[0], Ranking):
        ranks = [r.ranks for r in judgements if isinstance(r, Ranking)]
        return {
            "ranking": torch.tensor([index for index, one in enumerate(ranks) for _ in one]),
            "rank": torch.tensor([rank for one in ranks for rank in one]),
        }
    pairs = [c for c in judgements if isinstance(c, Comparison)]
    columns: dict[str, Tensor] = {}
    preferences = [max(c.preference, 1 - c.preference) for c in pairs]
    if any(p != 1 for p in preferences):
        columns["preference"] = torch.tensor(preferences)
    margins = [float(c.meta.get("margin", 0.0)) for c in pairs]
    if any(margins):
        columns["margin"] = torch.tensor(margins)
    return columns


def _key(judgement: Judgement) -> int:
    """48 bits of the id; an id of any form is hashed to the same place each time."""
    return int(stable_id(judgement.id), 16)
