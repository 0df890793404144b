"""Measurements as columns: CSV, JSON, JSON lines, Parquet."""

from __future__ import annotations

import csv
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import MissingDependencyError
from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Columns of equal length, as read (text or numbers)."""

    columns: Mapping[str, Sequence[Any]]
    origin: str

    @property
    def count(self) -> int:
        """Rows."""
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> Sequence[Any]:
        """A column as it was read. Raises FitError naming those that exist."""
        if name not in self.columns:
            raise FitError(f"{self.origin} has no column {name!r}; it has {', '.join(self.columns)}")
        return self.columns[name]

    def numbers(self, name: str) -> Real:
        """A column as numbers; an empty cell or a word is an error naming its row."""
        values = self.column(name)
        made = np.empty(len(values))
        for row, value in enumerate(values):
            try:
                made[row] = float(value)
            except (TypeError, ValueError):
                raise FitError(f"{self.origin}, column {name!r}, row {row}: {value!r} is no number") from None
        return made

    def where(self, condition: str) -> Table:
        """The rows that satisfy `COLUMN OP VALUE`, OP one of = != < <= > >=."""
        found = re.fullmatch(r"\s*(.+?)\s*(<=|>=|!=|=|<|>)\s*(.+?)\s*", condition)
        if not found:
            raise FitError(f"{condition!r} is no condition: write COLUMN=VALUE, COLUMN<=VALUE, ...")
        name, sign, text = found.groups()
        values = self.column(name)
        try:
            limit: Any = float(text)
            compared: Sequence[Any] = list(self.numbers(name))
        except (ValueError, FitError):
            if sign not in ("=", "!="):
                raise FitError(f"{condition!r}: only = and != apply to text") from None
            limit, compared = text, [str(value) for value in values]
        kept = [row for row, value in enumerate(compared) if _COMPARE[sign](value, limit)]
        if not kept:
            raise FitError(f"no row of {self.origin} satisfies {condition!r}")
        return Table({key: [column[row] for row in kept] for key, column in self.columns.items()}, self.origin)


def read_table(path: Path) -> Table:
    """Read a file by its ending: .csv, .tsv, .json (rows, or columns), .jsonl, .parquet (needs pyarrow)."""
    kind = path.suffix.lower()
    if not path.is_file():
        raise FitError(f"{path} does not exist")
    try:
        if kind in (".csv", ".tsv"):
            with path.open(newline="", encoding="utf-8-sig") as handle:
                rows: Any = list(csv.DictReader(handle, delimiter="\t" if kind == ".tsv" else ","))
        elif kind == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        elif kind == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif kind in (".parquet", ".pq"):
            rows = _parquet(path)
        else:
            raise FitError(f"{path}: unknown kind {kind!r}; give .csv, .tsv, .json, .jsonl, .parquet or a bundle")
    except (ValueError, UnicodeDecodeError, csv.Error) as error:
        raise FitError(f"{path} cannot be read as {kind[1:]}: {error}") from None
    return _table(rows, str(path))


def _table(rows: Any, origin: str) -> Table:
    if isinstance(rows, dict) and rows and all(isinstance(column, list) for column in rows.values()):
        columns = {str(name): column for name, column in rows.items()}
    elif isinstance(rows, dict) and rows and all(isinstance(column, dict) for column in rows.values()):
        keys = list(next(iter(rows.values())))  # pandas' to_json: column -> row name -> value
        columns = {str(name): [column.get(key) for key in keys] for name, column in rows.items()}
    elif isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {str(name): [row.get(name) for row in rows] for name in names}
    else:
        raise FitError(f"{origin} holds no rows: expected a table with a heading, a list of objects, or columns")
    if len({len(column) for column in columns.values()}) != 1:
        raise FitError(f"{origin}: its columns differ in length")
    return Table(columns, origin)


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise MissingDependencyError("reading Parquet: pyarrow", "pip install pyarrow") from None
    return parquet.read_table(path).to_pydict()


def indices(values: Sequence[Any]) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """(index of every value, the distinct values) of a column of names."""
    names, index = np.unique([str(value) for value in values], return_inverse=True)
    return index.astype(np.float64), tuple(str(name) for name in names)
