"""How tables are declared (columns with types, units, ranges) and how a data frame is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from pandas.api import types as dtypes
from pydantic import BaseModel, ConfigDict, Field, create_model

Kind = Literal["text", "integer", "number", "flag"]

# A mean of ones may exceed one by rounding.
_ROUNDING = 1e-6


class TableError(ValueError):
    """A table that does not follow its declaration."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    name, kind, meaning
        Its name, the type of its cells, and what they mean.
    unit
        Unit of a number; empty if it has none.
    low, high
        Least and greatest value, or None.
    nullable
        Whether a cell may be missing.
    optional
        Whether the whole column, or some of its cells, may be missing.
    values
        The allowed texts; empty if any is allowed.
    """

    name: str
    kind: Kind
    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    nullable: bool = False
    optional: bool = False
    values: tuple[str, ...] = ()

    def problem(self, cells: pd.Series[Any]) -> str:
        """Say what is wrong with the cells; empty when nothing is."""
        missing = cells.isna()
        if missing.any() and not (self.nullable or self.optional):
            return f"{int(missing.sum())} of {len(cells)} cells are missing"
        known = cells[~missing]
        if not len(known):
            return ""
        if not self._fits(known):
            return f"holds {known.iloc[0]!r}, which is not of kind {self.kind}"
        if self.values and not known.isin(self.values).all():
            return f"holds {known[~known.isin(self.values)].iloc[0]!r}, not one of {self.values}"
        if self.kind in ("integer", "number"):
            numbers = known.astype(float)
            for end, bad in (
                (self.low, numbers < (self.low or 0.0) - _ROUNDING),
                (self.high, numbers > (self.high or 0.0) + _ROUNDING),
            ):
                if end is not None and bad.any():
                    return f"holds {numbers[bad].iloc[0]:g}, outside [{self.low}, {self.high}]"
        return ""

    def _fits(self, known: pd.Series[Any]) -> bool:
        """Whether every cell is of the kind."""
        if self.kind == "text":
            return all(isinstance(cell, str) for cell in known)
        if self.kind == "flag":
            return all(cell in (True, False) for cell in known)
        if not dtypes.is_numeric_dtype(known.infer_objects()):
            return False
        return self.kind == "number" or bool((known.astype(float) % 1 == 0).all())

    @property
    def field(self) -> tuple[Any, Any]:
        """The type and the Pydantic field of this column in a row's model."""
        type_: Any = {"text": str, "integer": int, "number": float, "flag": bool}[self.kind]
        if self.values:
            type_ = Literal[self.values]
        may_miss = self.nullable or self.optional
        text = f"{self.meaning} [{self.unit}]" if self.unit else self.meaning
        bounded = self.kind in ("integer", "number")
        default: Any = None if may_miss else ...
        return (
            type_ | None if may_miss else type_,
            Field(
                default=default,
                description=text,
                ge=self.low if bounded else None,
                le=self.high if bounded else None,
            ),
        )


@dataclass(frozen=True)
class Table:
    """One table: its name, what a row is, and its columns.

    Attributes
    ----------
    name, meaning, columns
        Its name, what a row is, and its columns.
    intervals
        Names of three columns each: a number and the two ends of its interval. The number must
        lie between them.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    intervals: tuple[tuple[str, str, str], ...] = ()

    def check(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the frame unchanged if it follows the declaration.

        Raises
        ------
        TableError
            If it does not; the message names the table, the column and the value.
        """
        declared = {column.name: column for column in self.columns}
        if unknown := [str(name) for name in frame if name not in declared]:
            raise TableError(f"table {self.name}: columns {unknown} are not declared")
        for column in self.columns:
            if column.name not in frame:
                if not column.optional and len(frame):
                    raise TableError(f"table {self.name}: column {column.name!r} is missing")
                continue
            if problem := column.problem(frame[column.name]):
                raise TableError(f"table {self.name}, column {column.name}: {problem}")
        for names in self.intervals:
            if set(names) <= set(frame):
                self._check_interval(frame[list(names)].astype("float64"))
        return frame

    def _check_interval(self, ends: pd.DataFrame) -> None:
        """Check that numbers lie in their intervals; one outside belongs to another quantity."""
        value, low, high = (ends[name] for name in ends)
        outside = ends[(value < low - _ROUNDING) | (value > high + _ROUNDING)]
        if len(outside):
            at, *interval = outside.iloc[0]
            raise TableError(
                f"table {self.name}, column {ends.columns[0]}: {at:g} lies outside its interval "
                f"[{interval[0]:g}, {interval[1]:g}]"
            )

    def empty(self) -> pd.DataFrame:
        """Return the table without rows."""
        types = {"flag": "bool", "integer": "int64", "number": "float64"}
        return pd.DataFrame(
            {one.name: pd.Series(dtype=types.get(one.kind, "object")) for one in self.columns}
        )

    def row_model(self) -> type[BaseModel]:
        """Return the Pydantic model of one row."""
        fields: dict[str, Any] = {column.name: column.field for column in self.columns}
        config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
        name = f"{self.name.capitalize()}Row"
        return create_model(name, __config__=config, __doc__=self.meaning, **fields)


def text(name: str, meaning: str, **fields: Any) -> Column:
    """Declare a column of words."""
    return Column(name, "text", meaning, **fields)


def count(name: str, meaning: str, **fields: Any) -> Column:
    """Declare a column of whole numbers from 0."""
    return Column(name, "integer", meaning, **{"low": 0, **fields})


def number(name: str, meaning: str, **fields: Any) -> Column:
    """Declare a column of numbers that may be missing."""
    return Column(name, "number", meaning, **{"nullable": True, **fields})


def share(name: str, meaning: str, **fields: Any) -> Column:
    """Declare a column of numbers from 0 to 1 that may be missing."""
    return number(name, meaning, low=0.0, high=1.0, **fields)


def flag(name: str, meaning: str, **fields: Any) -> Column:
    """Declare a column of truth values."""
    return Column(name, "flag", meaning, **fields)
