"""Write records so that a reader never sees half a file."""

import gzip
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from assay.records import Comparison, Demonstration, Message, Prompt, Record, Response, Rollout
from assay.settings import InputError

MESSAGE_COLUMNS = ("prompt", "completion", "chosen", "rejected")


def write_records(path: str | Path, records: Iterable[Record], *, columns: bool = False) -> Path:
    """Write records as .jsonl, .jsonl.gz or .parquet, whole or not at all; the readers give back equal records.

    `columns=True` writes the field's columns (`prompt, chosen, rejected`, ...) for other tools, instead of our own.
    """
    path, records = Path(path), tuple(records)
    if not records:
        raise InputError(f"no records to write to {path}")
    write = _writer(path)
    rows = [as_columns(record) if columns else _own_row(record) for record in records]
    try:
        with _whole_file(path) as file:
            write(file, rows)
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        carries = "JSON" if ".json" in path.name else "one Parquet column (try .jsonl)"
        raise InputError(f"{path} was not written: the records hold what {carries} cannot carry: {error}") from error
    return path


def as_columns(record: Record) -> dict[str, Any]:
    """A record in the field's columns; `meta` becomes columns too."""
    if isinstance(record, Prompt):
        return {**_prompt_columns(record), "id": record.id, **record.meta}
    if isinstance(record, Demonstration):
        names = {"id": record.id, "source": record.source}
        return {**_prompt_columns(record.prompt), "completion": _turns(record.response), **names, **record.meta}
    if isinstance(record, Comparison):
        names = {name: getattr(record, name) for name in ("id", "annotator", "source", "objective")}
        answers = {"chosen": _turns(record.chosen), "rejected": _turns(record.rejected)}
        preference = max(record.preference, 1 - record.preference)
        return {**_prompt_columns(record.prompt), **answers, "preference": preference, **names, **record.meta}
    raise InputError(f"a {record.kind} has no columns that other tools know: write it with columns=False")


def _prompt_columns(prompt: Prompt) -> dict[str, Any]:
    columns: dict[str, Any] = {"prompt": _turns(prompt.messages)}
    if prompt.tools:
        columns["tools"] = json.dumps([dict(tool) for tool in prompt.tools], ensure_ascii=False)
    if prompt.template_kwargs:
        columns["chat_template_kwargs"] = dict(prompt.template_kwargs)
    return columns


def _turns(turns: Response) -> Any:
    """Plain text as a string, messages as their dictionaries."""
    if turns and all(message.role == "text" for message in turns):
        return "".join(message.content for message in turns)
    return [Message.to_json(message) for message in turns]


def _own_row(record: Record) -> dict[str, Any]:
    row = record.to_json()
    if isinstance(record, Rollout) and math.isnan(record.reward):
        del row["reward"]  # not scored yet; JSON has no NaN
    return row


def _writer(path: Path) -> Callable[[BinaryIO, Sequence[dict[str, Any]]], None]:
    name = path.name.lower()
    if name.endswith(".jsonl"):
        return _write_lines
    if name.endswith(".jsonl.gz"):
        return _write_compressed
    if name.endswith(".parquet"):
        return _write_parquet
    raise InputError(f"{path}: records are written to .jsonl, .jsonl.gz or .parquet")


def _write_lines(file: Any, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _write_compressed(file: BinaryIO, rows: Sequence[dict[str, Any]]) -> None:
    with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:  # no clock: equal records, equal bytes
        _write_lines(packed, rows)


def _write_parquet(file: BinaryIO, rows: Sequence[dict[str, Any]]) -> None:
    """Nested values are JSON text: Parquet wants one type per column, and `meta` has as many as its writer pleases.

    The messages of the field's columns stay lists of messages, as other tools expect.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    native = () if "kind" in names else MESSAGE_COLUMNS
    values = {name: [row.get(name) for row in rows] for name in names}
    columns = {name: found if name in native else _parquet_column(found) for name, found in values.items()}
    pq.write_table(pa.table(columns), file)


def _parquet_column(values: list[Any]) -> list[Any]:
    if any(isinstance(value, dict | list) and not _numbers(value) for value in values):
        return [None if value is None else _json(value) for value in values]
    return values


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int | float) for item in value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that takes its name only when it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
