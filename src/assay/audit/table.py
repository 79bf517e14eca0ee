"""The scored tables that every probe reads: scoring runs once, audits are pure functions of its columns."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from assay.settings import InputError, nearest

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
TextArray = NDArray[np.object_]

DTYPES: Mapping[Any, Any] = {FloatArray: np.float64, IntArray: np.int64, BoolArray: np.bool_, TextArray: object}


ABSENT: Any = ()
"""A column that may be left out: every row then holds the table's default."""


class ScoredTable:
    """Columns of equal length, one row per scored item; Parquet round trip."""

    kind: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        num_rows = len(np.atleast_1d(self.prompt_id))  # pyright: ignore[reportAttributeAccessIssue] every table has it
        for column in dataclasses.fields(self):  # pyright: ignore[reportArgumentType] subclasses are dataclasses
            object.__setattr__(self, column.name, self._checked(column, num_rows))
        self._check()

    def _checked(self, column: dataclasses.Field, num_rows: int) -> NDArray:
        value = np.asarray(getattr(self, column.name))
        if getattr(self, column.name) is ABSENT and column.name in self.defaults:
            value = np.full(num_rows, self.defaults[column.name])
        if value.ndim != 1 or len(value) != num_rows:
            raise InputError(
                f"{self.kind}: column {column.name!r} has shape {value.shape} but prompt_id has {num_rows} rows; give "
                "one value per row"
            )
        if column.type is IntArray and value.dtype.kind == "f" and not (value == np.floor(value)).all():
            raise InputError(f"{self.kind}: column {column.name!r} must hold whole numbers")
        if column.type is TextArray and (missing := np.array([item is None for item in value], bool)).any():
            raise InputError(f"{self.kind}: column {column.name!r} has no value in row {int(np.argmax(missing))}")
        try:
            converted = value.astype(DTYPES[column.type])
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.kind}: column {column.name!r}: {error}; give numbers") from error
        if column.type is TextArray and any(not isinstance(item, str) for item in converted):
            converted = np.array([str(item) for item in converted], dtype=object)
        return converted

    def _check(self) -> None:
        for name in (column.name for column in dataclasses.fields(self) if column.name.startswith("length")):  # pyright: ignore[reportArgumentType]
            values = getattr(self, name)
            if (values < 0).any():
                raise InputError(
                    f"{self.kind}: column {name!r} holds lengths; row {int(np.argmax(values < 0))} is below 0"
                )

    def __len__(self) -> int:
        return len(self.prompt_id)  # pyright: ignore[reportAttributeAccessIssue]

    def select(self, rows: NDArray) -> Self:
        """These rows (indices, or a mask that is True where a row stays)."""
        return type(self)(**{c.name: getattr(self, c.name)[rows] for c in dataclasses.fields(self)})  # pyright: ignore[reportArgumentType]

    def save(self, path: str | Path) -> None:
        """Write Parquet; the file's metadata names the kind of table."""
        columns = {c.name: pa.array(getattr(self, c.name)) for c in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        pq.write_table(pa.table(columns, metadata={"assay": self.kind}), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote, or any Parquet file with these columns.

        Raises:
            InputError: the file is missing or unreadable, lacks a column, or has one that no probe knows.
        """
        try:
            table = pq.read_table(Path(path))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; score the held-out data first") from None
        except pa.ArrowInvalid as error:
            raise InputError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
        fields = {column.name: column for column in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        for name in table.column_names:
            if name not in fields:
                raise InputError(f"{path}: {cls.kind} have no column {name!r}; remove it.{nearest(name, fields)}")
        for name in fields:
            if name not in table.column_names and name not in cls.defaults:
                raise InputError(f"{path}: column {name!r} is missing; {cls.kind} need it")
        try:
            return cls(**{name: table[name].to_numpy() for name in table.column_names})
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredPairs(ScoredTable):
    """One row per comparison: what the reward model gave the chosen and the rejected response. Lengths are characters.

    `preference` is the probability that chosen is preferred, in [0.5, 1]; 0.5 is a tie of the labels. `truncated_` is
    True where the response did not fit the context. A reward may be NaN: it counts as a failure, never as absent.
    `uncertainty` is the standard deviation of the reward difference, NaN where the model knows none.
    """

    kind: ClassVar[str] = "scored pairs"
    defaults: ClassVar[Mapping[str, Any]] = {
        "comparison_id": "",
        "subset": "",
        "truncated_chosen": False,
        "truncated_rejected": False,
        "preference": 1.0,
        "annotator": "",
        "uncertainty": np.nan,
    }
    prompt_id: TextArray
    reward_chosen: FloatArray
    reward_rejected: FloatArray
    length_chosen: IntArray
    length_rejected: IntArray
    comparison_id: TextArray = ABSENT
    subset: TextArray = ABSENT
    truncated_chosen: BoolArray = ABSENT
    truncated_rejected: BoolArray = ABSENT
    preference: FloatArray = ABSENT
    annotator: TextArray = ABSENT
    uncertainty: FloatArray = ABSENT

    def _check(self) -> None:
        super()._check()
        wrong = ~((self.preference >= 0.5) & (self.preference <= 1))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{self.kind}: preference of row {row} is {self.preference[row]}; it is the probability that chosen is "
                "preferred, in [0.5, 1]: swap chosen and rejected where it is below 0.5"
            )

    @property
    def reward_difference(self) -> FloatArray:
        """Chosen minus rejected, [P]; NaN where either reward is not finite."""
        with np.errstate(invalid="ignore"):
            difference = self.reward_chosen - self.reward_rejected
        return np.where(np.isfinite(self.reward_chosen) & np.isfinite(self.reward_rejected), difference, np.nan)

    @property
    def length_difference(self) -> IntArray:
        """Characters of chosen minus characters of rejected, [P]."""
        return self.length_chosen - self.length_rejected

    @property
    def labelled(self) -> BoolArray:
        """True where the label prefers one response, [P]."""
        return self.preference > 0.5

    @property
    def failed(self) -> BoolArray:
        """True where a reward is NaN or infinite, [P]."""
        return np.isnan(self.reward_difference)

    @property
    def correct(self) -> FloatArray:
        """1 where the reward prefers chosen, 0.5 for equal rewards, 0 otherwise or where a reward is missing, [P]."""
        difference = self.reward_difference
        return np.where(difference > 0, 1.0, np.where(difference == 0, 0.5, 0.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredSamples(ScoredTable):
    """One row per sampled response, several per prompt. `oracle` is the true reward, NaN where nobody knows it."""

    kind: ClassVar[str] = "scored samples"
    defaults: ClassVar[Mapping[str, Any]] = {"oracle": np.nan, "text": ""}
    prompt_id: TextArray
    reward: FloatArray
    length: IntArray
    oracle: FloatArray = ABSENT
    text: TextArray = ABSENT

    @property
    def failed(self) -> BoolArray:
        """True where the reward is NaN or infinite, [N]."""
        return ~np.isfinite(self.reward)
