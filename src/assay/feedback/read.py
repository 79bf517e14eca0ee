"""Read human feedback from files, folders, the hub or memory into records, before any model is loaded.

A source is a .jsonl (also .gz), .json, .parquet or .csv file, a folder of those, a data set written by
`Dataset.save_to_disk`, a hub id ("owner/name" or "owner/name:configuration"; needs the package datasets), or rows in
memory. `formats` says which columns are understood. Nothing is dropped or changed without a count in the report.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from assay.feedback import formats, judgements, places
from assay.feedback.folders import rows
from assay.feedback.sources import BLANK, Problem, Row, is_path
from assay.feedback.turns import BadRow, Note
from assay.feedback.validate import Oddities, Read, Tally, by_reason, check, failure
from assay.records import Comparison, Demonstration, Prompt, Ranking, Rating, SpanLabels
from assay.settings import InputError

OnBad = Literal["error", "skip"]
R = TypeVar("R", Prompt, Comparison, Ranking, Rating, SpanLabels, Demonstration)


def read_comparisons(
    source: Any,
    *,
    split: str | None = None,
    on_bad: OnBad = "error",
    limit: int | None = None,
    objectives: Sequence[str] = (),
) -> Read[Comparison]:
    """Pairs of responses with a preference; `limit` stops after that many usable records.

    A ranking becomes its pairs. With `objectives`, a row becomes one comparison for each of them that it judges.
    Raises `InputError` naming file and line for what cannot be used; with `on_bad="skip"` such records are dropped
    and counted, unless none is left.
    """
    if objectives:
        return _read(source, partial(judgements.by_objective, objectives=objectives), split, on_bad, limit)
    return _read(source, judgements.comparisons, split, on_bad, limit)


def read_rankings(
    source: Any, *, split: str | None = None, on_bad: OnBad = "error", limit: int | None = None
) -> Read[Ranking]:
    """Ranked `responses`. Errors as for `read_comparisons`."""
    return _read(source, judgements.ranking, split, on_bad, limit)


def read_ratings(
    source: Any,
    *,
    split: str | None = None,
    on_bad: OnBad = "error",
    limit: int | None = None,
    objectives: Sequence[str] = (),
) -> Read[Rating]:
    """Responses with a number each; with `objectives`, one for each of them. Errors as for `read_comparisons`."""
    return _read(source, partial(judgements.rating, objectives=objectives), split, on_bad, limit)


def read_steps(
    source: Any,
    *,
    split: str | None = None,
    on_bad: OnBad = "error",
    limit: int | None = None,
    separator: str = "\n",
) -> Read[SpanLabels]:
    """`completions`, the steps of a response, with a label each; `separator` joins them. Errors as above."""
    if not separator:
        raise InputError("the separator that ends a step is empty: give one (--likelihood.separator)")
    return _read(source, partial(places.steps, separator=separator), split, on_bad, limit)


def read_spans(
    source: Any, *, split: str | None = None, on_bad: OnBad = "error", limit: int | None = None
) -> Read[SpanLabels]:
    """Responses with named `spans` of their characters. Errors as for `read_comparisons`."""
    return _read(source, places.spans, split, on_bad, limit)


def read_prompts(
    source: Any, *, split: str | None = None, on_bad: OnBad = "error", limit: int | None = None
) -> Read[Prompt]:
    """Prompts, also those of preference data and conversations; other columns go to `meta`. Errors as above."""
    return _read(source, formats.prompt, split, on_bad, limit)


def read_demonstrations(
    source: Any, *, split: str | None = None, on_bad: OnBad = "error", limit: int | None = None
) -> Read[Demonstration]:
    """Responses to imitate, from `messages` or `prompt, completion`. Errors as for `read_comparisons`."""
    return _read(source, formats.demonstration, split, on_bad, limit)


def read_answers(
    source: Any, *, split: str | None = None, on_bad: OnBad = "error", limit: int | None = None
) -> Read[Demonstration]:
    """Responses to judge: as `read_demonstrations`, those with `label` false too."""
    return _read(source, formats.answer, split, on_bad, limit)


def read_texts(
    source: Any, *, split: str | None = None, on_bad: OnBad = "error", limit: int | None = None
) -> Read[Demonstration]:
    """Plain `text`: responses of role "text" to a prompt without messages. Errors as for `read_comparisons`."""
    return _read(source, formats.text, split, on_bad, limit)


def _read(
    source: Any,
    convert: Callable[[dict[str, Any], Note], R | tuple[R, ...]],
    split: str | None,
    on_bad: OnBad,
    limit: int | None,
) -> Read[R]:
    if on_bad not in ("error", "skip"):
        raise InputError(f"on_bad must be 'error' or 'skip'; got {on_bad!r}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1; got {limit}")
    name = str(source) if is_path(source) else "<records>"
    tally, records = Tally(), []
    oddities = Oddities(tally)
    for found in rows(source, split):
        records += _records(found, convert, tally, oddities)
        if limit is not None and len(records) >= limit:
            del records[limit:]
            break
    if tally.dropped and on_bad == "error":
        advice = "mend them, or drop and count them with on_bad='skip'"
        raise failure(name, tally.num_read, tally.dropped, tally.problems, advice)
    if not records:
        if not tally.dropped:
            left_out = {note: num for note, num in tally.notes.items() if note != BLANK}
            raise InputError(f"{name} holds no records" + (f" ({by_reason(left_out)})" if left_out else ""))
        raise failure(name, tally.num_read, tally.dropped, tally.problems, "none is left")
    return Read(tuple(records), tally.report(name, len(records)))


def _records(
    found: Row | Problem,
    convert: Callable[[dict[str, Any], Note], R | tuple[R, ...]],
    tally: Tally,
    oddities: Oddities,
) -> tuple[R, ...]:
    """What a row holds; nothing for one that cannot be used, which is counted."""
    if isinstance(found, Problem) and found.reason == BLANK:
        tally.note(BLANK)
        return ()
    tally.num_read += 1
    if isinstance(found, Problem):
        tally.drop(found)
        return ()
    notes: list[str] = []
    try:
        made = convert(dict(found.data), notes.append)
        records = made if isinstance(made, tuple) else (made,)
        for record in records:
            check(record)
    except BadRow as bad:
        tally.drop(found.problem(bad.reason, bad.message))
        return ()
    for note in notes:
        tally.note(note)
    for record in records:
        oddities.look(found, record)
    return records
