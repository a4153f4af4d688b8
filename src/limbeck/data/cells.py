"""Columns of cells, held so that millions of rows are neither millions of Python objects nor looked at one by one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from limbeck.data.names import is_blank, plain
from limbeck.storage.memory import need

Cells = Sequence[Any] | np.ndarray[Any, Any]
"""A column: a list of cells, `Coded` ones, or an array of numbers."""

Numbers = np.ndarray[Any, np.dtype[np.float64]]

LARGEST = float(np.finfo(np.float32).max)
"""What a model's input can hold; a larger number would be infinite there."""


class Coded(Sequence[Any]):
    """Cells as places in the list of the values that occur.

    Args:
        codes: int [N], the place of each cell's value.
        values: what occurs, each once.
    """

    def __init__(self, codes: np.ndarray[Any, Any], values: Sequence[Any]) -> None:
        self.codes, self.values = codes, list(values)

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Coded: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Coded(self.codes[index], self.values)
        return self.values[self.codes[index]]

    def __iter__(self) -> Iterator[Any]:
        return (self.values[code] for code in self.codes.tolist())

    def where(self, wanted: Sequence[int]) -> list[int]:
        """The rows, in order, whose value is one of these places."""
        return np.flatnonzero(np.isin(self.codes, np.asarray(wanted, dtype=np.int64))).tolist()

    def spread(self, of_values: Sequence[Any] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What is known of each value, for each row."""
        made: np.ndarray[Any, Any] = np.asarray(of_values)[self.codes]
        return made


def coded(cells: Cells) -> Coded:
    """Any column of plain cells (no lists) as `Coded`; values in the order in which they first occur."""
    if isinstance(cells, Coded):
        return cells
    if isinstance(cells, np.ndarray):
        values, first, codes = np.unique(cells, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return Coded(rank[codes.reshape(-1)], values[order].tolist())
    places: dict[tuple[type, Any], int] = {}  # 1, 1.0 and True are equal, but no one label
    codes = np.fromiter((places.setdefault((type(c), c), len(places)) for c in cells), np.int64, len(cells))
    return Coded(codes, [value for _, value in places])


def joined_cells(parts: Sequence[Cells]) -> Cells:
    """Columns of several tables one below the other."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(p, np.ndarray) for p in parts):
        return np.concatenate(parts)
    if all(isinstance(p, Coded) for p in parts):
        values: dict[Any, int] = {}
        codes = []
        for part in parts:
            assert isinstance(part, Coded)
            codes.append(part.spread([values.setdefault(v, len(values)) for v in part.values] or [0]))
        return Coded(np.concatenate(codes), list(values))
    return [cell for part in parts for cell in part]


def taken(cells: Cells, rows: np.ndarray[Any, Any]) -> Cells:
    """Some rows of a column: ``rows`` are their numbers."""
    if isinstance(cells, np.ndarray):
        return cells[rows]
    if isinstance(cells, Coded):
        kept, codes = np.unique(cells.codes[rows], return_inverse=True)
        return Coded(codes.reshape(-1), [cells.values[i] for i in kept.tolist()])  # without those that no longer occur
    return [cells[i] for i in rows.tolist()]


def check_size(metadata: Any, path: Path) -> None:
    """Refuse a parquet file that unpacks to more than there is memory.

    Raises:
        OutOfMemory: by what its own head says.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    count = max(sum(g.total_byte_size for g in groups), 8 * metadata.num_rows * metadata.num_columns)
    need(count, "task.data.path", f"the {metadata.num_rows:,} rows of {path}", "divide the file, or keep fewer columns")


def from_arrow(column: Any) -> Cells:
    """A pyarrow column: numbers as an array (of floats, NaN where it is empty), texts as `Coded`, all else as a list."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_floating(kind) or (pa.types.is_integer(kind) and column.null_count == 0):
        return column.to_numpy()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return column.to_pylist()
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    return Coded(codes, [*encoded.dictionary.to_pylist(), *([None] if column.null_count else [])])


# --------------------------------------------------------------------------------------------------------------- values
def text_of(value: Any) -> str:
    """A cell as the name of a class: composed, outer blanks removed, whole numbers without a point."""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return plain(str(value))


def is_missing(value: Any) -> bool:
    """Whether a cell is empty. The text ``NA`` is not: it may be a label (Namibia, sodium, not applicable)."""
    return (
        value is None
        or (isinstance(value, str) and is_blank(value))
        or (isinstance(value, (float, np.floating)) and math.isnan(value))
    )


def number_of(value: Any) -> float | None:
    """A cell as a finite number that float32 can hold, or ``None``. ``1_000`` is no number: identifiers look like that."""
    if isinstance(value, (list, tuple, dict, bytes)) or value is None:
        return None
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) <= LARGEST else None


def numbers_of(cells: Cells) -> Numbers:
    """A column as float64 [N]; NaN where a cell is no finite number."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "biuf":
        values = cells.astype(np.float64, copy=False)
        bad = ~(np.abs(values) <= LARGEST)
        return np.where(bad, np.nan, values) if bad.any() else values
    if isinstance(cells, Coded):
        return cells.spread([math.nan if (v := number_of(c)) is None else v for c in cells.values] or [math.nan])
    try:
        made = np.asarray(cells)
        if made.ndim == 1 and made.dtype.kind in "biuf":
            return numbers_of(made)
    except (ValueError, OverflowError):  # lists among the cells, or integers beyond 64 bits
        pass
    return np.array([math.nan if (v := number_of(c)) is None else v for c in cells], dtype=np.float64)


_GAP = "[ \u00a0\u2009\u202f']"  # what stands between thousands where the comma and the point are taken
_COMMA = re.compile(rf"[+-]?(\d+|\d{{1,3}}({_GAP}\d{{3}})+|\d{{1,3}}(\.\d{{3}})+)(,\d+)?([eE][+-]?\d+)?|[+-]?,\d+")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")


def decimal_comma(text: str) -> float | None:
    """A number whose fraction follows a comma (``3,14``, ``1.234,5``, ``1 234,5``), or ``None``."""
    text = text.strip()
    if not _COMMA.fullmatch(text):
        return None
    return number_of(re.sub(rf"{_GAP}|\.", "", text).replace(",", "."))


def thousands_comma(text: str) -> float | None:
    """A number whose thousands are set off by commas (``1,234,567.8``), or ``None``."""
    return number_of(text.strip().replace(",", "")) if _THOUSANDS.fullmatch(text.strip()) else None


# ---------------------------------------------------------------------------------------------------------------- table
HEAD = 100
"""How many cells are looked at to see what a column holds."""


class Rows:
    """A table: columns of cells, and the place of each row for messages.

    Args:
        columns: name -> cells.
        where: the place of a row.
        n: number of rows.
        notes: sentences about how it was read.

    Attributes:
        classes: names of the classes of a column whose cells are places among them.
        pictures: columns that are known to hold images.
        head: the first cells of a column, without reading all of it.
    """

    def __init__(
        self, columns: Mapping[str, Cells], where: Callable[[int], str], n: int, notes: Sequence[str] = ()
    ) -> None:
        self.columns, self.where, self.n, self.notes = columns, where, n, list(notes)
        self.classes: dict[str, list[str]] = {}
        self.pictures: list[str] = []
        self.head: Callable[[str], Cells] = lambda name: columns[name][:HEAD]

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return list(self.columns)
