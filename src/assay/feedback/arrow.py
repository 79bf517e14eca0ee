"""Rows from Parquet files and from the Arrow files of a saved Hugging Face data set, with pyarrow alone."""

import datetime
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assay.feedback.sources import Found, checked
from assay.settings import InputError

BATCH_ROWS = 1024


def parquet_rows(path: Path) -> Found:
    """The rows of one Parquet file."""
    with _damage_named(path, "Parquet"), pq.ParquetFile(path) as file:
        yield from _rows(path, file.iter_batches(BATCH_ROWS))


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote this folder."""
    return (folder / "state.json").is_file()


def saved_rows(folder: Path) -> Found:
    """The rows of a data set written by `Dataset.save_to_disk`."""
    try:
        names = [part["filename"] for part in json.loads((folder / "state.json").read_text("utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder}: its state.json is not that of a data set: name the file of records") from None
    for name in names:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{folder} lacks {name}, which its state.json names: copy the folder again")
        with _damage_named(path, "Arrow"), path.open("rb") as file:
            yield from _rows(path, pa.ipc.open_stream(file))


@contextmanager
def _damage_named(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a damaged column name
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a whole {kind} file ({first}): write or download it again") from error


def _rows(path: Path, batches: Iterable[pa.RecordBatch]) -> Found:
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_row_or_bytes(batch, index) for index in range(batch.num_rows)]
        for data in rows:
            number += 1
            yield checked(str(path), number, {name: plain(value) for name, value in data.items()})


def _row_or_bytes(batch: pa.RecordBatch, index: int) -> dict[str, Any]:
    """One row in which text that is not UTF-8 is marked, to be reported where it stands."""
    row = batch.slice(index, 1)
    return {name: _column(row.column(name), lambda cell: cell.as_py()) for name in row.schema.names}


def _column(column: pa.Array, read: Callable[[Any], Any]) -> Any:
    try:
        return read(column[0])
    except UnicodeDecodeError as error:
        return bytes(error.object).decode("utf-8", "surrogateescape")


def plain(value: Any) -> Any:
    """Structs have every key of every row: those that are null here were not given. Times become ISO text.

    NaN, which stands for a missing number in these files, becomes null.
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
