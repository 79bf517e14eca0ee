"""What a reader checks, and its account of what was read, dropped, changed and found odd."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from assay.feedback.formats import blank
from assay.feedback.sources import Problem, Row
from assay.feedback.turns import BadRow
from assay.records import Comparison, Demonstration, Feedback, Prompt, Ranking, Rating, SpanLabels, stable_id
from assay.settings import InputError

MAX_LISTED = 1000  # problems kept with their place; counts go on
MAX_SHOWN = 5  # problems that an error shows

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The account of one reading. `dropped`, `warnings` and `notes` count by reason; `num_read` counts no blank lines.

    `problems` and `oddities` give the place of the first 1,000 drops and warnings. A note is something understood or
    changed on the way in, such as a transcript parsed into messages.
    """

    source: str
    num_read: int
    num_kept: int
    dropped: Mapping[str, int]
    warnings: Mapping[str, int]
    notes: Mapping[str, int]
    problems: tuple[Problem, ...] = ()
    oddities: tuple[Problem, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.num_kept:,} of {self.num_read:,} records kept"]
        for title, counts in (("dropped", self.dropped), ("warnings", self.warnings), ("notes", self.notes)):
            if counts:
                lines.append(f"  {title}: {by_reason(counts)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The counts, for a run's records."""
        names = ("source", "num_read", "num_kept", "dropped", "warnings", "notes")
        return {name: dict(value) if isinstance(value := getattr(self, name), Mapping) else value for name in names}


@dataclass(frozen=True, slots=True)
class Read(Generic[R]):
    """Records in the order of their source, and the account of reading them."""

    records: tuple[R, ...]
    report: Report


def by_reason(counts: Mapping[str, int]) -> str:
    """'3 identical pair, 1 empty answer', the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in ordered)


def failure(
    source: str, num_read: int, dropped: Mapping[str, int], problems: Sequence[Problem], advice: str
) -> InputError:
    """One clear line, then the first few problems with their places."""
    total = sum(dropped.values())
    head = f"{source}: {total:,} of {num_read:,} records cannot be used ({by_reason(dropped)}); {advice}"
    shown = [f"  {problem}" for problem in problems[:MAX_SHOWN]]
    more = [f"  and {total - MAX_SHOWN:,} more"] if total > MAX_SHOWN else []
    return InputError("\n".join([head, *shown, *more]))


class Tally:
    """Counts while reading."""

    def __init__(self) -> None:
        self.num_read = 0
        self.dropped: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self.oddities: list[Problem] = []

    def note(self, what: str) -> None:
        """Count something understood or changed."""
        self.notes[what] += 1

    def drop(self, problem: Problem) -> None:
        """Count a row that cannot be used."""
        self.dropped[problem.reason] += 1
        if len(self.problems) < MAX_LISTED:
            self.problems.append(problem)

    def warn(self, problem: Problem) -> None:
        """Count a row that was kept but looks odd."""
        self.warnings[problem.reason] += 1
        if len(self.oddities) < MAX_LISTED:
            self.oddities.append(problem)

    def report(self, source: str, num_kept: int) -> Report:
        """The account so far."""
        return Report(
            source=source,
            num_read=self.num_read,
            num_kept=num_kept,
            dropped=dict(self.dropped),
            warnings=dict(self.warnings),
            notes=dict(self.notes),
            problems=tuple(self.problems),
            oddities=tuple(self.oddities),
        )


def check(record: Feedback) -> None:
    """Raise `BadRow` for a record that nothing can be learned from."""
    if isinstance(record, Comparison):
        first, second = record.responses
        if first == second:
            raise BadRow("identical pair", "both answers are identical")
        if blank(first) or blank(second):
            raise BadRow("empty answer", f"the {'first' if blank(first) else 'second'} answer is empty")
    elif isinstance(record, Demonstration | Rating | SpanLabels) and blank(record.response):
        raise BadRow("empty answer", "the answer is empty")
    prompt = record if isinstance(record, Prompt) else record.prompt
    if blank(prompt.messages) and (prompt.messages or isinstance(record, Prompt)):
        raise BadRow("empty prompt", "the prompt is empty")


class Oddities:
    """Finds records that repeat or contradict earlier ones. Every one is kept; what to do is the reader's choice."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.seen: dict[Any, str] = {}
        self.preferred: dict[Any, tuple[str, str]] = {}

    def look(self, row: Row, record: Feedback) -> None:
        """Warn of what is odd about this record, given those before it."""
        prompt = record if isinstance(record, Prompt) else record.prompt
        if prompt.messages and prompt.messages[-1].role == "assistant":
            self._warn(row, "prompt ends with an answer", "the prompt ends with an assistant turn, not with the user's")
        if row.data.get("id"):
            self._once(row, "duplicate id", ("id", str(row.data["id"])), f"id {record.id!r} was used before")
        if isinstance(record, Comparison):
            self._pair(row, record)
            return
        what: tuple[Any, ...] = (
            (record.messages,) if isinstance(record, Prompt) else (prompt.messages, _answers(record))
        )
        self._once(row, "duplicate", stable_id(*what), "the same record was read before")

    def _pair(self, row: Row, record: Comparison) -> None:
        if record.tie:
            self._warn(row, "tie", "neither answer is preferred (a loss must be told what to do with it)")
        first, second = (stable_id(response) for response in record.responses)
        pair = (stable_id(record.prompt.messages), frozenset((first, second)), record.objective)
        winner = "" if record.tie else first if record.preference > 0.5 else second
        self._once(
            row, "duplicate", (*pair, winner, record.annotator), "the same pair with the same label was read before"
        )
        if not winner:
            return
        earlier, place = self.preferred.setdefault(pair, (winner, row.place))
        if winner != earlier:
            self._warn(row, "opposite labels", f"the same pair has the opposite label at {place}")

    def _once(self, row: Row, reason: str, key: Any, message: str) -> None:
        place = self.seen.setdefault(key, row.place)
        if place != row.place:
            self._warn(row, reason, f"{message} ({place})")

    def _warn(self, row: Row, reason: str, message: str) -> None:
        self.tally.warn(row.problem(reason, message))


def _answers(record: Ranking | Rating | SpanLabels | Demonstration) -> Any:
    """What tells a record from another to the same prompt."""
    if isinstance(record, Ranking):
        return record.responses, record.ranks, record.annotator, record.objective
    if isinstance(record, Rating):
        return record.response, record.value, record.annotator, record.objective
    if isinstance(record, SpanLabels):
        return record.response, [dataclasses.astuple(span) for span in record.spans], record.annotator
    return record.response
