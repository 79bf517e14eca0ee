"""Rows from files and folders; what cannot be read is named by file and line.

A row that is bad on its own becomes a `Problem`, so that the rest can still be read; a source that is bad as a whole
(missing, empty, a truncated Parquet file) raises `InputError` at once.
"""

import codecs
import csv
import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.settings import InputError, nearest

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")
BLANK = "blank line"
SPACE = re.compile(r"[ \t\r\n]*")
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in one place. `line` counts from 1: lines of text files, else rows."""

    file: str
    line: int
    reason: str  # the group it is counted under
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Row:
    """One row as the file has it, and where it was."""

    file: str
    line: int
    data: Mapping[str, Any]

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"

    def problem(self, reason: str, message: str) -> Problem:
        """What is wrong with this row."""
        return Problem(self.file, self.line, reason, message)


Found = Iterator[Row | Problem]


def file_rows(path: Path) -> Found:
    """The rows of one file, by its suffix."""
    name = path.name.lower()
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)")
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _json_lines(path)
    if name.endswith(".json"):
        return _json_file(path)
    if name.endswith(".csv"):
        return _csv(path)
    if name.endswith(".parquet"):
        from assay.feedback.arrow import parquet_rows  # pyarrow takes a third of a second to import

        return parquet_rows(path)
    raise InputError(f"{path}: a file of records ends in {', '.join(SUFFIXES)}")


def memory_rows(records: Iterable[Any]) -> Found:
    """Rows that are already in memory: dictionaries, or a data set that yields them."""
    for number, data in enumerate(records, 1):
        yield checked("<records>", number, data)


def missing(path: Path) -> InputError:
    """The error for a path that leads nowhere, with the nearest name in its folder."""
    if path.parent.is_dir():
        hint = nearest(path.name, (entry.name for entry in path.parent.iterdir()))
    else:
        hint = f" The folder {path.parent} does not exist either."
    return InputError(f"no such file or folder: {path}.{hint}")


def checked(file: str, line: int, data: Any) -> Row | Problem:
    """A row, unless it is no object or holds text that no tokenizer and no file can carry."""
    if not isinstance(data, Mapping):
        return Problem(file, line, "wrong type", f"a record must be an object with columns; got {_json_type(data)}")
    for column, value in data.items():
        try:
            found = _bad_text(column, "a column name") or _bad_text(value, f"column {column!r}")
        except RecursionError:
            found = ("wrong type", f"column {column!r} holds lists or objects in one another, hundreds deep")
        if found:
            return Problem(file, line, *found)
    return Row(file, line, data)


def _bad_text(value: Any, where: str) -> tuple[str, str] | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite", f"{where} holds {value}, which no file of records can carry: give a number or null"
    if isinstance(value, str):
        if "\0" in value:
            return "NUL character", f"{where} holds a NUL character (at character {value.index(chr(0)) + 1}): remove it"
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                return _surrogate(value, error.start, where)
        return None
    if isinstance(value, Mapping):
        value = (part for pair in value.items() for part in pair)
    elif not isinstance(value, list | tuple):
        return None
    return next((found for item in value if (found := _bad_text(item, where))), None)


def _surrogate(value: str, start: int, where: str) -> tuple[str, str]:
    """Undecodable bytes stand in text as U+DC80 to U+DCFF (Python's surrogateescape), a lone surrogate as itself."""
    if "\udc80" <= value[start] <= "\udcff":
        byte = ord(value[start]) - 0xDC00
        return (
            "not UTF-8",
            f"{where} holds byte 0x{byte:02x} that is not UTF-8 (at character {start + 1}): save as UTF-8",
        )
    return "lone surrogate", f"{where} holds a lone surrogate U+{ord(value[start]):04X} (at character {start + 1})"


def _json_type(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)


def _raw_lines(path: Path) -> Iterator[bytes]:
    """The bytes of each line; only a line feed ends one."""
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1 and line.startswith(WIDE):
                    raise InputError(f"{path} is UTF-16: save it as UTF-8")
                yield line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}:{number + 1}: the compressed file is cut or damaged here ({error})") from error


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        twice = next(key for key, _ in pairs if sum(other == key for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return data


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json_lines(path: Path) -> Found:
    file = str(path)
    for number, raw in enumerate(_raw_lines(path), 1):
        if not raw.strip():
            yield Problem(file, number, BLANK, "the line is blank")
            continue
        if b"\0" in raw:
            yield Problem(file, number, "NUL character", f"holds a NUL byte (byte {raw.index(0) + 1}): remove it")
            continue
        try:
            data = DECODER.decode(_text(raw).rstrip("\r\n"))
        except json.JSONDecodeError as error:
            yield _bad_json(file, number, error, cut=not raw.endswith(b"\n"))
        except (ValueError, RecursionError) as error:
            yield Problem(file, number, "not JSON", f"not a record: {error}")
        else:
            yield checked(file, number, data)


def _bad_json(file: str, number: int, error: json.JSONDecodeError, *, cut: bool) -> Problem:
    if cut:
        what = "the last line is cut (no line end, and its JSON does not close): the file was not written to its end"
        return Problem(file, number, "cut line", what)
    what = f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    return Problem(file, number, "not JSON", what)


def _json_file(path: Path) -> Found:
    """A list of objects; or one object per line, which many .json files are."""
    first = next((raw for raw in _raw_lines(path) if raw.strip()), b"")
    if first.lstrip().startswith(b"["):
        return _json_list(path)
    return _json_lines(path)


def _json_list(path: Path) -> Found:
    file, text = str(path), _text(b"".join(_raw_lines(path)))
    place, line, counted = text.index("[") + 1, 1, 0
    while True:
        place = _skip(text, place)
        line, counted = line + text.count("\n", counted, place), place
        if text[place : place + 1] == "]":
            break
        try:
            data, place = DECODER.raw_decode(text, place)
        except ValueError as error:
            at_line, what = getattr(error, "lineno", line), getattr(error, "msg", str(error))
            cut = " The file looks cut." if getattr(error, "pos", 0) >= len(text.rstrip()) else ""
            raise InputError(f"{path}:{at_line}: not a JSON list of objects: {what}.{cut}") from error
        yield checked(file, line, data)
        place = _skip(text, place)
        if text[place : place + 1] == ",":
            place += 1
        elif text[place : place + 1] != "]":
            line += text.count("\n", counted, place)
            what = "the list is cut: no ']' at its end" if place == len(text) else "expected ',' or ']'"
            raise InputError(f"{path}:{line}: not a JSON list of objects: {what}")
    if _skip(text, place + 1) != len(text):
        raise InputError(f"{path}:{line}: text follows the end of the JSON list")


def _skip(text: str, place: int) -> int:
    found = SPACE.match(text, place)
    return found.end() if found else place


def _csv(path: Path) -> Found:
    csv.field_size_limit(2**31 - 1)  # the default refuses a cell over 128 KiB, which a long conversation is
    file, line = str(path), 1
    reader = csv.reader((_text(raw) for raw in _raw_lines(path)), strict=True)
    header: list[str] = []
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Problem(file, line, "cut line", f"the CSV breaks off or is malformed from here on ({error})")
            return
        if cells is None:
            return
        if not header:
            header = _header(path, cells)
        elif not cells:
            yield Problem(file, line, BLANK, "the line is blank")
        elif len(cells) != len(header):
            what = f"{len(cells)} cells, but the header names {len(header)} columns"
            yield Problem(file, line, "cut line" if len(cells) < len(header) else "wrong type", what)
        else:
            yield checked(file, line, {name: _cell(cell) for name, cell in zip(header, cells, strict=True)})
        line = reader.line_num + 1


def _header(path: Path, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not any(names):
        raise InputError(
            f"{path}:1: the header must name each column once" + (f"; {twice[0]!r} is twice" if twice else "")
        )
    return names


def _cell(cell: str) -> Any:
    """A cell that holds a JSON list of objects (messages, tools) is that list; every other one is text."""
    if cell[:1] == "[" and cell[-1:] == "]":
        try:
            data = DECODER.decode(cell)
        except ValueError:
            return cell
        if data and all(isinstance(item, dict) for item in data):
            return data
    return cell


def is_path(source: Any) -> bool:
    """Whether a source is the name of something rather than records in memory."""
    return isinstance(source, str | os.PathLike)
