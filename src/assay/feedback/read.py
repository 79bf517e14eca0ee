"""Read human feedback from files, folders, the hub or memory into records, before any model is loaded.

A source is a .jsonl (also .gz), .json, .parquet or .csv file, a folder of those, a data set written by
`Dataset.save_to_disk`, a hub id ("owner/name" or "owner/name:configuration"; needs the package datasets), or rows in
memory. `formats` says which columns are understood. Nothing is dropped or changed without a count in the report.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from assay.feedback import formats
from assay.feedback.folders import rows
from assay.feedback.sources import BLANK, Problem, Row, is_path
from assay.feedback.turns import BadRow, Note
from assay.feedback.validate import Oddities, Read, Tally, check, failure
from assay.records import Comparison, Demonstration, Prompt
from assay.settings import InputError

OnBad = Literal["error", "skip"]
R = TypeVar("R", Prompt, Comparison, Demonstration)


def read_comparisons(
    source: Any, *, split: str | None = None, on_bad: OnBad = "error", limit: int | None = None
) -> Read[Comparison]:
    """Pairs of responses with a preference; `limit` stops after that many usable records.

    Raises `InputError` naming file and line for what cannot be used; with `on_bad="skip"` such records are dropped
    and counted, unless none is left.
    """
    return _read(source, formats.comparison, split, on_bad, limit)


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


def read_texts(
    source: Any, *, split: str | None = None, on_bad: OnBad = "error", limit: int | None = None
) -> Read[Demonstration]:
    """Plain `text`: responses of role "text" to a prompt without messages. Errors as for `read_comparisons`."""
    return _read(source, formats.text, split, on_bad, limit)


def _read(
    source: Any, convert: Callable[[dict[str, Any], Note], R], split: str | None, on_bad: OnBad, limit: int | None
) -> Read[R]:
    if on_bad not in ("error", "skip"):
        raise InputError(f"on_bad must be 'error' or 'skip'; got {on_bad!r}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1; got {limit}")
    name = str(source) if is_path(source) else "<records>"
    tally, records = Tally(), []
    oddities = Oddities(tally)
    for found in rows(source, split):
        record = _record(found, convert, tally, oddities)
        if record is not None:
            records.append(record)
        if len(records) == limit:
            break
    if tally.dropped and on_bad == "error":
        advice = "mend them, or drop and count them with on_bad='skip'"
        raise failure(name, tally.num_read, tally.dropped, tally.problems, advice)
    if not records:
        if not tally.dropped:
            raise InputError(f"{name} holds no records")
        raise failure(name, tally.num_read, tally.dropped, tally.problems, "none is left")
    return Read(tuple(records), tally.report(name, len(records)))


def _record(
    found: Row | Problem, convert: Callable[[dict[str, Any], Note], R], tally: Tally, oddities: Oddities
) -> R | None:
    if isinstance(found, Problem) and found.reason == BLANK:
        tally.note(BLANK)
        return None
    tally.num_read += 1
    if isinstance(found, Problem):
        tally.drop(found)
        return None
    notes: list[str] = []
    try:
        record = convert(dict(found.data), notes.append)
        check(record)
    except BadRow as bad:
        tally.drop(found.problem(bad.reason, bad.message))
        return None
    for note in notes:
        tally.note(note)
    oddities.look(found, record)
    return record
