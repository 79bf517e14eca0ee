"""What each kind of feedback is read as, which answers it holds, and how it becomes a batch."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.batch import TokenBatch
from assay.config import DataSettings
from assay.feedback.read import read_comparisons, read_rankings, read_ratings, read_spans, read_steps
from assay.records import Comparison, Judgement, Prompt, Ranking, Rating, Response, SpanLabels, stable_id
from assay.rewards.likelihoods import Likelihood
from assay.settings import InputError
from assay.stages.common import keep_fitting, read
from assay.tokens.chat import Encoded, Encoder, collate

Item = tuple[Judgement, Sequence[Encoded]]

READERS: Mapping[str, Callable[..., Any]] = {
    "comparisons": read_comparisons,
    "rankings": read_rankings,
    "ratings": read_ratings,
    "steps": read_steps,
    "spans": read_spans,
}


def read_judgements(likelihood: Likelihood, data: DataSettings) -> tuple[Judgement, ...]:
    """The feedback that a likelihood speaks of; what it could not learn from is an error that says so."""
    reader = READERS.get(likelihood.data)
    if reader is None:
        raise InputError(
            f"{type(likelihood).__name__} learns from {likelihood.data!r}, which is not one of {', '.join(READERS)}"
        )
    records = read(partial(reader, **likelihood.reading), data)
    if missing := [name for name in data.objectives if name not in objectives_of(records)]:
        raise InputError(f"{data.path}: no row has a judgement under {missing[0]!r} (--data.objectives)")
    if reason := likelihood.refuse(records):
        raise InputError(f"{data.path}: {reason}")
    return records


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

    def encoded(judgement: Judgement) -> list[Encoded]:
        return [conversation((judgement.prompt, answer)) for answer in answers_of(judgement)]

    return keep_fitting(judgements, encoded, limit, data)


def objectives_of(judgements: Sequence[Judgement]) -> tuple[str, ...]:
    """The objectives in the order they first appear."""
    return tuple(dict.fromkeys(judgement.objective for judgement in judgements))


def collator(
    encoder: Encoder, likelihood: Likelihood | None = None, objectives: Sequence[str] = ()
) -> Callable[[list[Item]], TokenBatch]:
    """Makes a batch of judgements of one kind, with the columns that the likelihood declares.

    With `objectives`, rows say which of them they speak of.
    """

    def make(items: list[Item]) -> TokenBatch:
        judgements, encoded = [judgement for judgement, _ in items], [answers for _, answers in items]
        sizes = torch.tensor([len(answers) for answers in encoded])
        columns = {
            "key": torch.tensor([key_of(j) for j in judgements]).repeat_interleave(sizes),
            **_columns(judgements),
        }
        if objectives:
            places = torch.tensor([objectives.index(j.objective) for j in judgements])
            columns["objective"] = places.repeat_interleave(sizes)
        batch = collate(encoded, encoder.tokenizer.pad_token_id)
        own = likelihood.fill(judgements, encoded, encoder, batch.mask) if likelihood is not None else {}
        return batch.fill(declared=likelihood.columns if likelihood is not None else {}, **columns, **own)

    return make


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


def key_of(judgement: Judgement) -> int:
    """48 bits of the id, the batch's `key`; an id of any form is hashed to the same place each time."""
    return int(stable_id(judgement.id), 16)
