"""Columns of a table as targets and as features, with every bad cell named by its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.data.items import Kind
from limbeck.errors import DataError

Target = Literal["auto", "label", "labels", "number"]
Where = Callable[[int], str]

SHOWN = 10
"""How many offending places a message lists before it says how many more there are."""


def some(places: Sequence[str], most: int = SHOWN) -> str:
    """A list cut to a readable length."""
    more = f" and {len(places) - most} more" if len(places) > most else ""
    return ", ".join(places[:most]) + more


def text_of(value: Any) -> str:
    """A cell as the name of a class: outer blanks removed, whole numbers without a point."""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def is_missing(value: Any) -> bool:
    """Whether a cell is empty. The text ``NA`` is not: it may be a label (Namibia, sodium, not applicable)."""
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, float) and math.isnan(value))
    )


def number_of(value: Any) -> float | None:
    """A cell as a finite number, or ``None``."""
    if isinstance(value, (list, tuple, dict, bytes)) or value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def name_order(names: set[str]) -> list[str]:
    """Class names in order: by value where all are whole numbers, else as texts."""
    if names and all(n.lstrip("-").isdecimal() for n in names):
        return sorted(names, key=lambda n: (int(n), n))
    return sorted(names)


def read_targets(
    columns: Mapping[str, Sequence[Any]],
    asked: Target,
    where: Where,
    *,
    known: Sequence[str] | None = None,
    separator: str | None = None,
    argument: str = "task.data.label",
) -> tuple[Tensor, list[str], Kind]:
    """Targets, names of the classes or numbers, and their kind, from one column or several.

    With ``asked="auto"``: lists, or texts with a separator, are several labels; several columns of zeros and ones too;
    other columns of numbers are numbers if any has a fraction or nearly all differ; the rest is one label.

    Args:
        columns: name -> cells.
        asked: what the user wants them to be.
        where: the place of a row, for messages.
        known: class names, where cells are positions in them.
        separator: what stands between labels in one cell.
        argument: what an error is about.

    Raises:
        DataError: empty cells, cells that are no numbers, labels out of range, each with its place.
    """
    if len(columns) > 1:
        return _from_several(columns, asked, where, argument)
    ((name, cells),) = columns.items()
    lists = any(isinstance(c, (list, tuple, np.ndarray)) for c in cells)
    if lists or separator or asked == "labels":
        listed = [_listed(c, separator) for c in cells]
        numbers = lists and known is None and all(number_of(v) is not None for c in listed for v in c)
        if asked == "number" or (asked == "auto" and numbers and any(isinstance(v, float) for c in listed for v in c)):
            return _vectors(name, listed, where, argument)
        if asked == "label":
            many = [where(i) for i, c in enumerate(listed) if len(c) != 1]
            if many:
                raise DataError(
                    argument, f"column {name!r} has not exactly one label at {some(many)}", expected="one label"
                )
            cells = [c[0] for c in listed]
        else:
            return _several(name, listed, where, known, argument)
    missing = [where(i) for i, c in enumerate(cells) if is_missing(c)]
    if missing:
        raise DataError(
            argument,
            f"column {name!r} is empty at {some(missing)}",
            expected="a value in every row",
            remedy="fill in or remove these rows",
        )
    if asked == "number" or (asked == "auto" and known is None and _looks_numeric(cells)):
        return _from_several({name: cells}, "number", where, argument)
    if known is not None:
        ids = _positions(name, cells, known, where, argument)
        return torch.tensor(ids, dtype=torch.int64), list(known), "label"
    texts = [text_of(c) for c in cells]
    labels = name_order(set(texts))
    index = {label: i for i, label in enumerate(labels)}
    return torch.tensor([index[t] for t in texts], dtype=torch.int64), labels, "label"


def _looks_numeric(cells: Sequence[Any]) -> bool:
    if any(isinstance(c, (bool, np.bool_)) for c in cells):
        return False
    values = [number_of(c) for c in cells]
    if any(v is None for v in values):
        return False
    distinct = len(set(values))
    fraction = any(not v.is_integer() for v in values if v is not None)
    return (fraction and distinct > 2) or (distinct > 100 and 2 * distinct > len(values))


def _listed(cell: Any, separator: str | None) -> list[Any]:
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, (list, tuple)):
        return list(cell)
    if is_missing(cell):
        return []
    if isinstance(cell, str) and separator:
        return [part.strip() for part in cell.split(separator) if part.strip()]
    return [cell]


def _several(
    name: str, listed: list[list[Any]], where: Where, known: Sequence[str] | None, argument: str
) -> tuple[Tensor, list[str], Kind]:
    if known is not None:
        flat = [(r, v) for r, c in enumerate(listed) for v in c]
        ids = _positions(name, [v for _, v in flat], known, lambda i: where(flat[i][0]), argument)
        listed = [[] for _ in listed]
        for (r, _), i in zip(flat, ids, strict=True):
            listed[r].append(known[i])
    texts = [[text_of(v) for v in c] for c in listed]
    labels = list(known) if known is not None else name_order({t for c in texts for t in c})
    if not labels:
        raise DataError(argument, f"column {name!r} names no label in any row", expected="at least one label")
    index = {label: i for i, label in enumerate(labels)}
    y = torch.zeros(len(texts), len(labels))
    for r, c in enumerate(texts):
        for t in c:
            y[r, index[t]] = 1.0
    return y, labels, "labels"


def _positions(name: str, cells: Sequence[Any], known: Sequence[str], where: Where, argument: str) -> list[int]:
    place = {label: i for i, label in enumerate(known)}
    found, bad = [], []
    for r, cell in enumerate(cells):
        value = None if isinstance(cell, str) and cell in place else number_of(cell)
        i = place.get(cell, -1) if value is None else int(value) if value.is_integer() else -1
        if not 0 <= i < len(known):
            bad.append(f"{where(r)} ({text_of(cell)})")
        found.append(i)
    if bad:
        raise DataError(
            argument, f"column {name!r} has labels out of range at {some(bad)}", expected=f"one of {len(known)} classes"
        )
    return found


def _vectors(name: str, listed: list[list[Any]], where: Where, argument: str) -> tuple[Tensor, list[str], Kind]:
    width = len(listed[0])
    odd = [where(r) for r, c in enumerate(listed) if len(c) != width or any(number_of(v) is None for v in c)]
    if odd or width == 0:
        raise DataError(argument, f"column {name!r} has not {width or 'any'} finite numbers at {some(odd)}")
    y = torch.tensor([[float(v) for v in c] for c in listed], dtype=torch.float32)
    return y, [name] if width == 1 else [f"{name}[{i}]" for i in range(width)], "number"


def _from_several(
    columns: Mapping[str, Sequence[Any]], asked: Target, where: Where, argument: str
) -> tuple[Tensor, list[str], Kind]:
    """One column of numbers (or yes and no) for each target."""
    if asked == "label":
        raise DataError(
            argument, given=list(columns), expected="one column for target=label", remedy="or target=labels"
        )
    made = []
    for name, cells in columns.items():
        values = [float(c) if isinstance(c, bool) else number_of(c) for c in cells]
        bad = [f"{where(i)} ({text_of(cells[i]) or 'empty'})" for i, v in enumerate(values) if v is None]
        if bad:
            raise DataError(argument, f"column {name!r} has no finite number at {some(bad)}", expected="numbers")
        made.append(torch.tensor(values, dtype=torch.float64))
    y = torch.stack(made, 1)
    binary = bool(((y == 0) | (y == 1)).all())
    if asked == "labels" and not ((y >= 0) & (y <= 1)).all():
        raise DataError(argument, "the label columns hold other values than 0 and 1", given=list(columns))
    kind: Kind = "labels" if asked == "labels" or (asked == "auto" and binary) else "number"
    return y.to(torch.float32), list(columns), kind


def read_features(
    columns: Mapping[str, Sequence[Any]],
    asked: Sequence[str] | None,
    train: np.ndarray[Any, Any],
    where: Where,
    argument: str = "task.data.features",
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

    Raises:
        DataError: no features, or cells that are empty or no finite numbers, each with its place.
    """
    blocks: list[np.ndarray[Any, Any]] = []
    names: list[str] = []
    left: list[str] = []
    for name, cells in columns.items():
        block = _numbers(cells)
        if block is None:
            width = _width(cells)
            if width:
                block = _lists(name, cells, width, where, argument)
        if block is not None:
            blocks.append(block)
            names += [name] if block.shape[1] == 1 else [f"{name}[{i}]" for i in range(block.shape[1])]
            continue
        numeric = sum(number_of(c) is not None for c in cells)
        if 2 * numeric > len(cells):
            bad = [
                f"{where(i)} ({text_of(c) if c is not None else 'empty'})"
                for i, c in enumerate(cells)
                if number_of(c) is None
            ]
            raise DataError(
                argument,
                f"column {name!r} has no finite number at {some(bad)}",
                expected="numbers",
                remedy="fill in or remove these rows, or name the columns to use with task.data.features=[...]",
            )
        if asked is None:
            left.append(name)
            continue
        texts = np.array([text_of(c) if c is not None else "" for c in cells])
        values = sorted(set(texts[train].tolist()))
        if len(values) > 1000:
            raise DataError(
                argument, f"the text column {name!r} has {len(values)} different values", expected="at most 1000"
            )
        blocks.append((texts[:, None] == np.array(values)[None, :]).astype(np.float64))
        names += [f"{name}={v}" for v in values]
    if not blocks:
        raise DataError(
            argument,
            "no column holds numbers",
            given=list(columns),
            remedy="name text columns to use: task.data.features=[...], or the column of picture paths: task.data.image=...",
        )
    notes = [f"inputs: {some(names, 20)}"]
    if left:
        notes.append(
            f"columns that are no numbers were left out: {some(left, 20)} (name them in task.data.features to use them)"
        )
    return torch.from_numpy(np.concatenate(blocks, 1).astype(np.float32)), names, notes


def _numbers(cells: Sequence[Any]) -> np.ndarray[Any, Any] | None:
    """A column as [N, 1], or ``None`` where a cell is no finite number."""
    try:
        values = np.asarray(cells)
        if values.ndim != 1 or values.dtype.kind not in "biufUO":
            return None
        values = values.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return values[:, None] if np.isfinite(values).all() else None


def _width(cells: Sequence[Any]) -> int:
    first = cells[0] if len(cells) else None
    return len(first) if isinstance(first, (list, tuple, np.ndarray)) else 0


def _lists(name: str, cells: Sequence[Any], width: int, where: Where, argument: str) -> np.ndarray[Any, Any]:
    bad = []
    rows = []
    for i, cell in enumerate(cells):
        values = [number_of(v) for v in cell] if isinstance(cell, (list, tuple, np.ndarray)) else []
        if len(values) != width or any(v is None for v in values):
            bad.append(where(i))
        rows.append(values)
    if bad:
        raise DataError(
            argument, f"column {name!r} has not {width} finite numbers at {some(bad)}", expected="equal lists"
        )
    return np.array(rows, dtype=np.float64)
