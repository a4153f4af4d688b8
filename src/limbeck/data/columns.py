"""Columns of a table as numbers and as features, with every bad cell named by its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.data.cells import (
    Cells,
    Coded,
    coded,
    decimal_comma,
    is_missing,
    number_of,
    numbers_of,
    text_of,
    thousands_comma,
)
from limbeck.data.names import some
from limbeck.errors import DataError

Target = Literal["auto", "label", "labels", "number"]
Decimal = Literal[".", ","]
OnBadRows = Literal["error", "skip"]
Where = Callable[[int], str]


class BadRows(DataError):
    """Rows that cannot be used as they are: what is missing in them, or no number.

    Args:
        argument, problem, more: as of any error.
        rows: which; they could be left out.
    """

    def __init__(self, argument: str, problem: str, rows: Sequence[int], **more: Any) -> None:
        super().__init__(argument, problem, **more)
        self.rows = list(rows)


FILL = "fill in or remove these rows, or leave them out with task.data.bad_rows=skip"
CHOOSE = f"{FILL}; or name the columns to use with task.data.features=[...]"


def shown(cell: Any) -> str:
    """A cell as a message shows it."""
    if isinstance(cell, (float, np.floating)) and np.isnan(cell):
        return "empty or NaN"
    if isinstance(cell, (float, np.floating)):
        return f"{cell:g}"
    return "empty" if is_missing(cell) else text_of(cell)


def refuse_numberless(name: str, rows: Sequence[int], cells: Cells, where: Where, argument: str, remedy: str) -> None:
    """Raise `BadRows` for rows whose cell is no finite number; nothing where there are none."""
    if rows:
        said = f"column {name!r} has no finite number at {some([f'{where(i)} ({shown(cells[i])})' for i in rows])}"
        raise BadRows(argument, said, rows, expected="numbers that float32 can hold", remedy=remedy)


# ------------------------------------------------------------------------------------------------------------- numbers
def number_reader(
    name: str, values: Sequence[Any], decimal: Decimal | None, argument: str, notes: list[str] | None = None
) -> Callable[[Any], float | None]:
    """How a column's cells become numbers: as Python reads them, or with a comma before fractions or between thousands.

    Args:
        name: the column.
        values: what occurs in it and is not missing.
        decimal: the sign before fractions; ``None``: as the values show it.
        argument: what an error is about.
        notes: what was found is appended here.

    Raises:
        DataError: ``1,234`` may be one and a bit, or more than a thousand.
    """
    commas = [v for v in values if isinstance(v, str) and "," in v]
    if not commas or (decimal is None and all(number_of(v) is not None for v in values)):
        return number_of

    def fraction(value: Any) -> float | None:
        return decimal_comma(value) if isinstance(value, str) else number_of(value)

    def thousands(value: Any) -> float | None:
        found = number_of(value)
        return thousands_comma(value) if found is None and isinstance(value, str) else found

    if decimal is not None:
        return fraction if decimal == "," else thousands
    comma, group = (sum(f(v) is not None for v in values) for f in (fraction, thousands))
    if 2 * max(comma, group) <= len(values):
        return number_of
    if comma == group and all((fraction(v) is None) == (thousands(v) is None) for v in commas):
        raise DataError(
            argument,
            f"column {name!r} has numbers with a comma that can be read in two ways: {some(commas, 3)}",
            expected="to be told what the comma means",
            remedy="set task.data.decimal=',' if a fraction follows it, or task.data.decimal='.' if it sets off thousands",
        )
    if notes is not None:
        notes.append(f"column {name}: the comma is read as the {'decimal sign' if comma > group else 'mark of thousands'}"
                     f" ({commas[0]} is {(fraction if comma > group else thousands)(commas[0]):g})")  # fmt: skip
    return fraction if comma > group else thousands


# ------------------------------------------------------------------------------------------------------------ features
def read_features(
    columns: Mapping[str, Cells],
    asked: Sequence[str] | None,
    train: np.ndarray[Any, Any],
    where: Where,
    argument: str = "task.data.features",
    decimal: Decimal | None = None,
) -> tuple[Tensor, list[str], list[str]]:
    """Numbers [N, F], the name of each column of them, and notes.

    Numeric columns are taken as they are, lists of numbers side by side; a text column that is asked for by name
    becomes one yes-or-no column for each value it has in training rows.

    Args:
        columns: candidates, name -> cells.
        asked: which; ``None`` takes every column of numbers and says which it left out.
        train: mask of the training rows.
        where: the place of a row, for messages.
        argument: what an error is about.
        decimal: the sign before fractions; ``None``: as each column shows it.

    Raises:
        BadRows: cells that are empty or no finite numbers, each with its place.
        DataError: no features, or a column that can be read in two ways.
    """
    blocks: list[np.ndarray[Any, Any]] = []
    names: list[str] = []
    left: list[str] = []
    faults: list[BadRows] = []
    notes: list[str] = []
    for name, cells in columns.items():
        try:
            block, own = _feature(name, cells, asked is not None, train, where, argument, decimal, notes)
        except BadRows as error:
            faults.append(error)
            continue
        if block is None:
            left.append(f"{name} ({own})")
        else:
            blocks.append(block)
            names += [name] if block.ndim == 1 else own if isinstance(own, list) else []
    if faults:
        raise several_faults(faults)
    if not blocks:
        raise DataError(
            argument,
            "no column holds numbers",
            given=list(columns),
            remedy="name text columns to use: task.data.features=[...], or the column of picture paths: task.data.image=...",
        )
    width = sum(1 if b.ndim == 1 else b.shape[1] for b in blocks)
    x = np.empty((len(blocks[0]), width), dtype=np.float32)
    at = 0
    for block in blocks:  # one at a time: all columns side by side in float64 would be three times as large
        wide = 1 if block.ndim == 1 else block.shape[1]
        x[:, at : at + wide] = block[:, None] if block.ndim == 1 else block
        at += wide
    counting = [n for n, b in zip(names, blocks, strict=False) if asked is None and b.ndim == 1 and _counts_rows(b)]
    notes.insert(0, f"inputs: {some(names, 20)}")
    if counting and len(names) == len(blocks):
        notes.append(f"{some(counting)} counts the rows and is an input; task.data.features=[...] leaves it out")
    if left:
        notes.append(f"columns not used: {some(left, 20)}; task.data.features=[...] names the inputs")
    return torch.from_numpy(x), names, notes


def _counts_rows(values: np.ndarray[Any, Any]) -> bool:
    """Whether a column numbers its rows one by one: an identifier, which tells nothing of an item."""
    return len(values) >= 5 and bool((np.diff(values) == 1).all())


def several_faults(faults: Sequence[BadRows]) -> BadRows:
    """The bad cells of several columns as one error."""
    if len(faults) == 1:
        return faults[0]
    rows = sorted({row for fault in faults for row in fault.rows})
    said = "; ".join(fault.problem for fault in faults)
    return BadRows(faults[-1].argument, said, rows, expected=faults[-1].expected, remedy=faults[-1].remedy)


def _feature(
    name: str,
    cells: Cells,
    asked: bool,
    train: np.ndarray[Any, Any],
    where: Where,
    argument: str,
    decimal: Decimal | None,
    notes: list[str],
) -> tuple[np.ndarray[Any, Any] | None, Any]:
    """A column as numbers [N] or [N, K] with the names of the K; or ``None``, and why it is no input."""
    if not isinstance(cells, (np.ndarray, Coded)):
        width = Counter(len(c) for c in cells if isinstance(c, (list, tuple, np.ndarray))).most_common(1)
        if width and width[0][0]:
            return _lists(name, cells, width[0][0], where, argument), [f"{name}[{i}]" for i in range(width[0][0])]
        if any(isinstance(c, dict) for c in cells):
            return None, "objects"
    if isinstance(cells, np.ndarray):
        values = numbers_of(cells)
    else:
        column = coded(cells)
        there = [v for v in column.values if not is_missing(v)]
        read = number_reader(name, there, decimal, argument, notes)
        found = [None if is_missing(v) else read(v) for v in column.values]
        values = column.spread([np.nan if v is None else v for v in found] or [np.nan])
        numbers = int((~np.isnan(values)).sum())
        if 2 * numbers <= len(values) and numbers < len(values):
            if asked and there:
                return _categories(name, column, train, argument)
            empty = int(column.spread([is_missing(v) for v in column.values]).sum())
            if 2 * empty > len(values):
                return None, f"{empty} of {len(values)} cells are empty"
            return None, f"no numbers, such as {shown(next(v for v in there if read(v) is None))!r}"
    rows = np.flatnonzero(np.isnan(values)).tolist()
    refuse_numberless(name, rows, cells, where, argument, CHOOSE)
    return values, None


def _categories(
    name: str, column: Coded, train: np.ndarray[Any, Any], argument: str
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """A text column as one yes-or-no column for each value of the training rows."""
    texts = ["" if is_missing(v) else text_of(v) for v in column.values]
    values = sorted({texts[i] for i in np.unique(column.codes[train]).tolist()})
    rows = int(train.sum())
    if len(values) > 1000 or (len(values) > 20 and 2 * len(values) > rows):
        raise DataError(
            argument,
            f"the text column {name!r} has {len(values)} different values in {rows} training rows, too many for one "
            "yes-or-no column each",
            expected="a few values that come again, or numbers",
            remedy="leave it out of task.data.features",
        )
    index = {v: i for i, v in enumerate(values)}
    places = column.spread([index.get(t, -1) for t in texts] or [-1])
    return (places[:, None] == np.arange(len(values))[None, :]), [f"{name}={v}" for v in values]


def _lists(name: str, cells: Cells, width: int, where: Where, argument: str) -> np.ndarray[Any, Any]:
    bad = []
    rows = np.full((len(cells), width), np.nan)
    for i, cell in enumerate(cells):
        values = [number_of(v) for v in cell] if isinstance(cell, (list, tuple, np.ndarray)) else []
        if len(values) != width or any(v is None for v in values):
            bad.append(i)
        else:
            rows[i] = values
    if bad:
        said = f"column {name!r} has not {width} finite numbers at {some([where(i) for i in bad])}"
        raise BadRows(argument, said, bad, expected="equal lists", remedy=CHOOSE)
    return rows
