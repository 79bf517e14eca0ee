"""Rows that judge places within a response: its steps, or spans of its text.

Steps: `prompt`, `completions` (texts, one a step) and `labels` (one for each: true or false, or a number from 0 to 1).
Spans: `prompt`, `response` and `spans`, objects of `start`, `end` (characters) and `type`; `text`, where given, must be
what stands there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from assay.feedback.formats import JUDGED_COLUMNS, blank, make_prompt, own_record, take_meta, take_word, wanted
from assay.feedback.turns import BadRow, Note, content, need, with_prompt
from assay.records import Span, SpanLabels


def steps(row: dict[str, Any], note: Note, separator: str = "\n") -> SpanLabels:
    """A row of steps with a label each; the response is the steps, joined by the separator, which is not empty."""
    if (record := own_record(row)) is not None:
        return wanted(record, SpanLabels)
    texts, labels = _list(row, "completions"), _list(row, "labels")
    if len(texts) != len(labels):
        raise BadRow("wrong length", f"{len(texts)} completions and {len(labels)} labels: one label for each step")
    told = [_step(text, place, separator) for place, text in enumerate(texts)]
    spans: list[Span] = []
    start = 0
    for place, (text, label) in enumerate(zip(told, labels, strict=True)):
        spans.append(Span(start, start + len(text), "step", _label(label, place)))
        start += len(text) + len(separator)
    return _record(row, note, separator.join(told), spans, ("completions", "labels"))


def _step(text: Any, place: int, separator: str) -> str:
    """A step without the separators around it."""
    if not isinstance(text, str):
        raise BadRow("empty answer", f"completions[{place}] is no text")
    while text.startswith(separator):
        text = text.removeprefix(separator)
    while text.endswith(separator):
        text = text.removesuffix(separator)
    if not text.strip():
        raise BadRow("empty answer", f"completions[{place}] is no text")
    if separator in text:
        raise BadRow("torn step", f"completions[{place}] holds {separator!r}, which ends a step")
    return text


def spans(row: dict[str, Any], note: Note) -> SpanLabels:
    """A row of named spans of one response; no span says that nothing was found."""
    if (record := own_record(row)) is not None:
        return wanted(record, SpanLabels)
    text = need(row, "response", "completion")
    if not isinstance(text, str) or not text.strip():
        raise BadRow("empty answer", "the response is no text")
    found: list[Span] = []
    for place, told in enumerate(_list(row, "spans", empty=True)):
        if not isinstance(told, Mapping) or not {"start", "end"} <= told.keys():
            raise BadRow("wrong span", f"spans[{place}] needs start, end and type")
        start, end = told["start"], told["end"]
        name = str(told.get("type") or told.get("name") or "")
        if not name:
            raise BadRow("wrong span", f"spans[{place}] has no type")
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
            raise BadRow("wrong span", f"spans[{place}], {start} to {end}, is no part of {len(text)} characters")
        if told.get("text") not in (None, text[start:end]):
            raise BadRow("wrong span", f"spans[{place}].text is not what stands from {start} to {end}")
        found.append(Span(start, end, name))
    return _record(row, note, text, found, ("response", "completion", "spans"))


def _record(row: dict[str, Any], note: Note, text: str, spans: Sequence[Span], read: Sequence[str]) -> SpanLabels:
    turns, (response,) = with_prompt(content(need(row, "prompt"), "prompt"), (text,), note)
    if blank(response):
        raise BadRow("empty answer", "the answer is empty")
    fields = {name: take_word(row, name) for name in ("id", "source", "annotator")}
    return SpanLabels(
        prompt=make_prompt(turns, row),
        response=response,
        spans=tuple(_kept(span, text, response[0].content) for span in spans),
        meta=take_meta(row, (*JUDGED_COLUMNS, *read)),
        **fields,
    )


def _kept(span: Span, text: str, kept: str) -> Span:
    """A span of `text` as one of what is kept of it: without a repeated prompt and the spaces around it."""
    if kept == text:
        return span
    first = len(text.rstrip()) - len(kept)
    last = first + len(kept)
    start, end = max(span.start, first), min(span.end, last)
    if start >= end or (text[span.start : start] + text[end : span.end]).strip():
        raise BadRow(
            "wrong span",
            f"{span.name}, {span.start} to {span.end}, is not in the response's own words, which are from {first} to "
            f"{last}: the rest is the prompt, or spaces",
        )
    return replace(span, start=start - first, end=end - first)


def _list(row: dict[str, Any], name: str, *, empty: bool = False) -> Sequence[Any]:
    value = need(row, name) if not empty else row.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str) or not (value or empty):
        raise BadRow("wrong type", f"{name} must be a list")
    return value


def _label(value: Any, place: int) -> float:
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    raise BadRow("wrong type", f"labels[{place}]={value!r}: write true or false, or a number from 0 to 1")
