"""Rows with judgements other than one chosen answer: rankings, ratings, and several objectives or annotators at once.

Ranking: `responses`, texts best first, or objects of `text` and `rank`; or texts and a list `ranks`.
Rating: `response` (or `completion`) and a number under `rating`, `score` or `label`.
Objectives: a judgement named NAME is looked for in the column NAME or NAME_preferred, in `scores`, `ratings` and
`preferences`, and in each entry of `annotations`, which may name its `annotator`. Of two `responses` it says which is
better: 0 or "A" the first, 1 or "B" the second, a word for a tie. `responses` are in the order they were shown in, and
`meta` of each comparison keeps which came first, "chosen" or "rejected", under `shown_first`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from assay.feedback.formats import (
    EVEN,
    FIRST,
    JUDGED_COLUMNS,
    PAIR_COLUMNS,
    SECOND,
    blank,
    comparison,
    make_prompt,
    own_record,
    take_meta,
    take_word,
    wanted,
)
from assay.feedback.relabel import OF_LABEL
from assay.feedback.turns import BadRow, Note, content, need, with_prompt
from assay.records import Comparison, Prompt, Ranking, Rating, Response, stable_id
from assay.settings import nearest

R = TypeVar("R", Comparison, Rating)

READ = ("responses", "annotations", "scores", "ratings", "preferences")
ANSWERS = ("responses", "chosen", "rejected", "response", "completion")


def ranking(row: dict[str, Any], note: Note) -> Ranking:
    """A row of ranked responses."""
    if (record := own_record(row)) is not None:
        return wanted(record, Ranking)
    told = need(row, "responses")
    if not isinstance(told, Sequence) or isinstance(told, str) or len(told) < 2:
        raise BadRow("wrong type", "responses must be a list of at least two answers")
    texts = [item.get("text", item.get("content")) if isinstance(item, Mapping) else item for item in told]
    turns, answers = with_prompt(content(need(row, "prompt"), "prompt"), tuple(map(_answer, texts)), note)
    if any(map(blank, answers)):
        raise BadRow("empty answer", f"responses[{next(i for i, a in enumerate(answers) if blank(a))}] is empty")
    fields = {name: take_word(row, name) for name in ("id", "source", "annotator")}
    fields["objective"] = take_word(row, "objective") or "overall"
    meta = take_meta(row, (*JUDGED_COLUMNS, "objective", "responses", "ranks"))
    try:
        return Ranking(
            prompt=make_prompt(turns, row), responses=tuple(answers), ranks=_ranks(row, told), meta=meta, **fields
        )
    except ValueError as error:
        raise BadRow("bad ranking", str(error)) from error


def comparisons(row: dict[str, Any], note: Note) -> tuple[Comparison, ...]:
    """A row's comparison, or all pairs of its ranking."""
    if row.get("chosen") is None and row.get("responses") is not None and row.get("kind") != "comparison":
        pairs = ranking(row, note).comparisons()
        note("ranking expanded into its pairs")
        return pairs
    return (comparison(row, note),)


def rating(row: dict[str, Any], note: Note, objectives: Sequence[str] = ()) -> tuple[Rating, ...]:
    """A row's ratings: one, or one under each objective that it has."""
    if (record := own_record(row)) is not None:
        return _under(wanted(record, Rating), objectives, note)
    if objectives and _of_one(row, objectives):
        return _under(rating(row, note)[0], objectives, note)
    answer = need(row, "response", "completion", "responses")
    turns, (response,) = with_prompt(content(need(row, "prompt"), "prompt"), (_answer(answer),), note)
    if blank(response):
        raise BadRow("empty answer", "the answer is empty")
    prompt = make_prompt(turns, row)
    meta = take_meta(row, (*JUDGED_COLUMNS, "objective", "response", "completion", "scores", "ratings"))
    word = {name: take_word(row, name) for name in ("source", "annotator")}
    if not objectives:
        value = _number(need(row, "rating", "score", "label"), "rating")
        own = {**word, "id": take_word(row, "id"), "objective": take_word(row, "objective") or "overall"}
        return (Rating(prompt=prompt, response=response, value=value, meta=meta, **own),)
    found = []
    for objective in objectives:
        for place, (said_by, told) in enumerate(_told(row, objective)):
            fields = {**word, "annotator": said_by or word["annotator"], "meta": meta}
            fields["id"] = _id_of_vote(place, prompt, response, objective, fields["annotator"])
            value = _number(told, objective)
            found.append(Rating(prompt=prompt, response=response, value=value, objective=objective, **fields))
    if not found:
        raise _no_judgement(row, objectives)
    return tuple(found)


def by_objective(row: dict[str, Any], note: Note, objectives: Sequence[str]) -> tuple[Comparison, ...]:
    """A comparison for each objective, and each annotator, that judged the row's two responses."""
    if (record := own_record(row)) is not None:
        return _under(wanted(record, Comparison), objectives, note)
    if row.get("responses") is None and _of_one(row, objectives):
        return _under(comparison(row, note), objectives, note)
    told = row.get("responses")
    if told is None:
        told = [need(row, "chosen"), need(row, "rejected")]
    if not isinstance(told, Sequence) or isinstance(told, str) or len(told) != 2:
        raise BadRow("wrong type", "responses must be a list of two answers")
    turns, answers = with_prompt(content(need(row, "prompt"), "prompt"), (_answer(told[0]), _answer(told[1])), note)
    if answers[0] == answers[1]:
        raise BadRow("identical pair", "the two responses are identical")
    if any(map(blank, answers)):
        raise BadRow("empty answer", f"the {'first' if blank(answers[0]) else 'second'} response is empty")
    prompt, pair = make_prompt(turns, row), (answers[0], answers[1])
    source, in_order = take_word(row, "source"), row.get("responses") is not None
    meta = take_meta(row, (*PAIR_COLUMNS, *OF_LABEL, *READ, *(n for name in objectives for n in _columns(name))))
    found: list[Comparison] = []
    for objective in objectives:
        for place, (said_by, value) in enumerate(_told(row, objective)):
            preference = _preference(value, objective)
            annotator = said_by or take_word(row, _columns(objective)[2]) or take_word(row, "annotator")
            found.append(
                Comparison(
                    prompt=prompt,
                    responses=pair,
                    preference=preference,
                    id=_id_of_vote(place, prompt, pair, objective, annotator),
                    annotator=annotator,
                    source=source,
                    objective=objective,
                    meta=meta | ({"shown_first": "chosen" if preference >= 0.5 else "rejected"} if in_order else {}),
                )
            )
    if not found:
        raise _no_judgement(row, objectives)
    return tuple(found)


def _under(record: R, objectives: Sequence[str], note: Note) -> tuple[R, ...]:
    """A record of our own files, unless its objective was not asked for."""
    if not objectives or record.objective in objectives:
        return (record,)
    note("judgement under another objective left out")
    return ()


def _of_one(row: dict[str, Any], objectives: Sequence[str]) -> bool:
    """Whether the row as a whole is one judgement, under the objective that it names."""
    return row.get("objective") is not None and not any(_told(row, objective) for objective in objectives)


def _no_judgement(row: dict[str, Any], objectives: Sequence[str]) -> BadRow:
    known = [name for name in row if name not in (*JUDGED_COLUMNS, *ANSWERS)]
    hint = nearest(objectives[0], known)
    return BadRow("no judgement", f"no judgement under {' or '.join(map(repr, objectives))}.{hint}")


def _columns(objective: str) -> tuple[str, str, str]:
    """Two that may hold the judgement, and who gave it."""
    return objective, f"{objective}_preferred", f"{objective}_annotator"


def _told(row: dict[str, Any], objective: str) -> list[tuple[str, Any]]:
    """(annotator, judgement) under an objective; annotator "" where nobody is named."""
    entries = row.get("annotations")
    if isinstance(entries, Sequence) and not isinstance(entries, str):
        found = [
            (take_word(entry, "annotator"), entry[objective])
            for entry in entries
            if isinstance(entry, dict) and entry.get(objective) is not None
        ]
        if found:
            return found
    for name in _columns(objective)[:2]:
        if row.get(name) is not None:
            return [("", row[name])]
    for name in ("scores", "ratings", "preferences"):
        inner = row.get(name)
        if isinstance(inner, Mapping) and inner.get(objective) is not None:
            return [("", inner[objective])]
    return []


def _id_of_vote(place: int, prompt: Prompt, judged: Any, objective: str, annotator: str) -> str:
    """Tells votes apart that nobody signed; '' where the record's own id does."""
    return "" if annotator or not place else stable_id(prompt.id, judged, objective, f"vote {place}")


def _preference(value: Any, objective: str) -> float:
    """1 where the first is better, 0 where the second is, 0.5 for a tie."""
    word = str(value).strip().casefold()
    if word in FIRST or word == "0":
        return 1.0
    if word in SECOND or word == "1":
        return 0.0
    if word in EVEN:
        return 0.5
    raise BadRow("wrong preference", f"{objective}={value!r}: write 0 or A, 1 or B, or tie")


def _answer(value: Any) -> str | Response:
    return content(value, "a response")


def _ranks(row: dict[str, Any], told: Sequence[Any]) -> tuple[int, ...]:
    ranks = row.get("ranks")
    if ranks is None and all(isinstance(item, Mapping) and "rank" in item for item in told):
        ranks = [item["rank"] for item in told]
    if ranks is None:
        return ()
    numbers = isinstance(ranks, Sequence) and all(isinstance(rank, int | float) for rank in ranks)
    if not numbers or not all(map(math.isfinite, ranks)):
        raise BadRow("wrong type", f"ranks must be a list of numbers; got {ranks!r}")
    levels = sorted(set(ranks))
    return tuple(map(levels.index, ranks))


def _number(value: Any, column: str) -> float:
    try:
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise BadRow("wrong type", f"{column} must be a finite number; got {value!r}") from error
    return number
