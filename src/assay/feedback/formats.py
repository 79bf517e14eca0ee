"""One row of a file -> one record. The column names are the field's.

Comparison: `chosen, rejected` and, unless both begin with it, `prompt`; each text or a list of messages.
Demonstration: `messages`, or `prompt, completion`. Prompt: `prompt`, or `messages`. Text: `text`.
With any of them: `tools`, `chat_template_kwargs`, `id`, `source`; with comparisons `annotator`, `objective`,
`margin` and the judgement (`preference`, `label`, `winner` or `tie`). Every other column goes to `meta`.
Rows of our own files name their class in `kind`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from assay.feedback.turns import BadRow, Note, content, need, prompt_turns, with_prompt, without_prompt
from assay.records import (
    Comparison,
    Demonstration,
    Message,
    Prompt,
    Ranking,
    Rating,
    Response,
    Rollout,
    SpanLabels,
    reply,
)

R = TypeVar("R")

PROMPT_COLUMNS = ("prompt", "tools", "chat_template_kwargs", "id")
JUDGED_COLUMNS = (*PROMPT_COLUMNS, "source", "annotator")
PAIR_COLUMNS = (*JUDGED_COLUMNS, "chosen", "rejected", "objective", "preference", "label", "winner", "tie")
NESTED = ("prompt", "messages", "responses", "response", "spans", "tools", "template_kwargs", "meta", "reward_parts")
FIRST = {"chosen", "first", "a", "model_a", "response_a"}
SECOND = {"rejected", "second", "b", "model_b", "response_b"}
EVEN = {"tie", "tied", "draw", "equal", "same", "neither", "both"}
PREFERENCE_HELP = "write preference (1: chosen, 0.5: tie, 0: rejected), or chosen, rejected or tie"
RECORDS = {record.kind: record for record in (Prompt, Comparison, Ranking, Rating, SpanLabels, Demonstration, Rollout)}
OTHER_KINDS = ("critique", "finding")


def comparison(row: dict[str, Any], note: Note) -> Comparison:
    """A row of preference data, or a comparison's own row."""
    if (record := own_record(row)) is not None:
        return wanted(record, Comparison)
    chosen = content(need(row, "chosen"), "chosen")
    rejected = content(need(row, "rejected"), "rejected")
    if chosen == rejected:
        raise BadRow("identical pair", "chosen and rejected are identical")
    if blank(chosen) or blank(rejected):
        raise BadRow("empty answer", f"{'chosen' if blank(chosen) else 'rejected'} is empty")
    if row.get("prompt") is None:
        turns, answers = without_prompt(chosen, rejected, note)
    else:
        turns, answers = with_prompt(content(row["prompt"], "prompt"), (chosen, rejected), note)
    preference, left_over = judgement(row, note)
    return Comparison(
        prompt=make_prompt(turns, row),
        responses=(answers[0], answers[1]),
        preference=preference,
        id=take_word(row, "id"),
        annotator=take_word(row, "annotator"),
        source=take_word(row, "source"),
        objective=take_word(row, "objective") or "overall",
        meta=take_meta(row, PAIR_COLUMNS) | _margin(row) | left_over,
    )


def answer(row: dict[str, Any], note: Note) -> Demonstration:
    """As `demonstration`, a rejected answer too: one to be judged, not imitated."""
    return demonstration(row, note, imitated=False)


def demonstration(row: dict[str, Any], note: Note, *, imitated: bool = True) -> Demonstration:
    """A row of `messages` or `prompt, completion`; a conversation's prompt is what comes before the first answer."""
    if (record := own_record(row)) is not None:
        return wanted(record, Demonstration)
    if row.get("messages") is not None:
        turns, used = _conversation(row), ("messages",)
        cut = next((index for index, turn in enumerate(turns) if turn.role == "assistant"), None)
        if cut is None:
            raise BadRow("no answer", "messages has no assistant turn to imitate")
        asked, response = turns[:cut], turns[cut:]
    else:
        said = need(row, "completion", "response", "messages")
        used = ("prompt", "completion" if row.get("completion") is not None else "response")
        if imitated and row.get("label") in (False, 0):
            raise BadRow("rejected answer", "label is false: this answer is not one to imitate")
        asked, (response,) = with_prompt(content(need(row, "prompt"), "prompt"), (content(said, used[1]),), note)
    return Demonstration(
        prompt=make_prompt(asked, row),
        response=response,
        id=take_word(row, "id"),
        source=take_word(row, "source"),
        meta=take_meta(row, (*used, "tools", "chat_template_kwargs", "id", "source")),
    )


def text(row: dict[str, Any], note: Note) -> Demonstration:
    """A row of plain `text`: a response of role "text" to no prompt at all."""
    if (record := own_record(row)) is not None:
        return wanted(record, Demonstration)
    words = need(row, "text")
    if not isinstance(words, str):
        raise BadRow("wrong type", f"text must be text; got {type(words).__name__}")
    return Demonstration(
        prompt=Prompt(messages=()),
        response=reply(words, plain=True),
        id=take_word(row, "id"),
        source=take_word(row, "source"),
        meta=take_meta(row, ("text", "id", "source")),
    )


def prompt(row: dict[str, Any], note: Note) -> Prompt:
    """A row with a `prompt`, or `messages` of which the last answer is left out; also any record that has a prompt."""
    if (record := own_record(row)) is not None:
        return record if isinstance(record, Prompt) else _with_columns(record)
    used = PROMPT_COLUMNS
    if row.get("prompt") is None and row.get("messages") is not None:
        turns, used = _conversation(row), ("messages", *PROMPT_COLUMNS)
        if turns and turns[-1].role == "assistant":
            note("last answer of a conversation left out of its prompt")
        while turns and turns[-1].role == "assistant":
            turns = turns[:-1]
    elif row.get("prompt") is None and row.get("chosen") is not None and row.get("rejected") is not None:
        turns, _ = without_prompt(content(row["chosen"], "chosen"), content(row["rejected"], "rejected"), note)
    else:
        turns = prompt_turns(content(need(row, "prompt"), "prompt"), note)
    return make_prompt(turns, row, id=take_word(row, "id"), meta=take_meta(row, used))


def own_record(row: dict[str, Any]) -> Any:
    """The record that a row of our own files holds; None for a row in the field's columns."""
    kind = row.get("kind")
    if kind in OTHER_KINDS and "prompt" in row:
        raise BadRow("wrong kind", f"the row is a {kind}, which this reader does not take")
    record = RECORDS.get(kind) if isinstance(kind, str) else None
    if record is None or not any(name in row for name in ("messages", "responses", "response")):
        return None
    data = {key: value for key, value in row.items() if value is not None}
    try:
        for name in NESTED:  # files of flat columns (Parquet, CSV) hold the nested ones as JSON
            if isinstance(data.get(name), str):
                data[name] = json.loads(data[name])
        if not isinstance(data.get("meta", {}), Mapping):
            raise TypeError(f"meta must be an object; got {type(data['meta']).__name__}")
        _margin(data.get("meta", {}))
        if "preference" in data:
            data["preference"] = float(data["preference"])
        data |= {name: take_word(data, name) for name in ("id", "annotator", "source", "objective") if name in data}
        return record.from_json(data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BadRow("wrong type", f"not a whole {kind} record: {what}") from error


def _with_columns(record: Any) -> Prompt:
    """A record's prompt with the record's other columns, of which rollouts have none."""
    return replace(record.prompt, meta={**getattr(record, "meta", {}), **record.prompt.meta})


def wanted(record: Any, kind: type[R]) -> R:
    """The record, if it is of the kind that was asked for."""
    if isinstance(record, kind):
        return record
    raise BadRow("wrong kind", f"the row is a {record.kind}, where a {kind.__name__.lower()} is needed")


def judgement(row: dict[str, Any], note: Note) -> tuple[float, dict[str, Any]]:
    """The probability that chosen is preferred (1 unless a column says otherwise), and a `label` that is no judgement.

    A number in [0, 1] is that probability; words name the preferred answer or a tie.
    """
    left_over: dict[str, Any] = {}
    found: dict[str, float] = {}
    for name in ("preference", "label", "winner"):
        if row.get(name) is None:
            continue
        value = _as_probability(row[name])
        if value is not None:
            found[name] = value
        elif name == "label":
            note("label that is no judgement kept as meta")
            left_over["label"] = row["label"]
        else:
            raise BadRow("wrong preference", f"{name}={row[name]!r}: {PREFERENCE_HELP}")
    if _is_true(row.get("tie")):
        found["tie"] = 0.5
    if len(set(found.values())) > 1:
        raise BadRow("wrong preference", f"{' and '.join(found)} contradict each other")
    return next(iter(found.values()), 1.0), left_over


def _as_probability(value: Any) -> float | None:
    if isinstance(value, str):
        word = value.strip().casefold()
        if word in EVEN or word.startswith("tie"):
            return 0.5
        if word in FIRST or word in SECOND:
            return float(word in FIRST)
        try:
            value = float(word)
        except ValueError:
            return None
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    return None


def _is_true(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().casefold() in ("true", "false", "1", "0", ""):
        return value.strip().casefold() in ("true", "1")
    raise BadRow("wrong type", f"tie must be true or false; got {value!r}")


def blank(answer: str | Response) -> bool:
    """Whether an answer says and calls nothing."""
    if isinstance(answer, str):
        return not answer.strip()
    return not any(turn.content.strip() or turn.extra.get("tool_calls") for turn in answer)


def _conversation(row: dict[str, Any]) -> tuple[Message, ...]:
    turns = content(row["messages"], "messages")
    if isinstance(turns, str):
        raise BadRow("wrong type", "messages must be a list of messages; got text")
    return turns


def make_prompt(turns: Response, row: dict[str, Any], **fields: Any) -> Prompt:
    """The prompt of a row, with its tools and template arguments."""
    if row.get("images") or row.get("image"):
        raise BadRow("not text", "the row has images, and only text is read")
    return Prompt(messages=turns, tools=_tools(row.get("tools")), template_kwargs=_template_kwargs(row), **fields)


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    value = _from_json(value, "tools")
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise BadRow("wrong type", "tools must be a list of JSON schemas, or that list as JSON text")
    return tuple(value)


def _template_kwargs(row: dict[str, Any]) -> Mapping[str, Any]:
    value = _from_json(row.get("chat_template_kwargs"), "chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRow("wrong type", f"chat_template_kwargs must be an object; got {type(value).__name__}")
    return value


def _from_json(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as error:
        raise BadRow("wrong type", f"{column} is text that is not JSON: {error}") from error


def take_word(row: dict[str, Any], column: str) -> str:
    """A text or whole number as text; "" where the row has none."""
    value = row.get(column)
    if value is None:
        return ""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise BadRow("wrong type", f"{column} must be text; got {type(value).__name__}")


def _margin(row: dict[str, Any]) -> dict[str, float]:
    value = row.get("margin")
    if value is None or value == "":
        return {}
    try:
        if isinstance(value, bool) or not math.isfinite(float(value)):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRow("wrong type", f"margin must be a finite number; got {value!r:.40}") from error
    return {"margin": float(value)}


def take_meta(row: dict[str, Any], used: tuple[str, ...]) -> dict[str, Any]:
    """The other columns; a null says as much as a column that is not there."""
    return {name: value for name, value in row.items() if name not in used and value is not None}
