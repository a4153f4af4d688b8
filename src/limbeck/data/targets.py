"""Columns of a table as targets: one label, several, or numbers; what may be two things is refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.cells import Cells, Coded, Numbers, coded, decimal_comma, is_missing, number_of, text_of
from limbeck.data.columns import FILL, BadRows, Decimal, Target, Where, number_reader, refuse_numberless, shown
from limbeck.data.items import Kind
from limbeck.data.names import plain, several_forms, some
from limbeck.errors import DataError


def name_order(names: set[str]) -> list[str]:
    """Class names in order: by value where all are whole numbers, else as texts."""
    if names and all(n.lstrip("-").isdecimal() for n in names):
        return sorted(names, key=lambda n: (int(n), n))
    return sorted(names)


def read_targets(
    columns: Mapping[str, Cells],
    asked: Target,
    where: Where,
    *,
    known: Sequence[str] | None = None,
    separator: str | None = None,
    decimal: Decimal | None = None,
    argument: str = "task.data.label",
    notes: list[str] | None = None,
) -> tuple[Tensor, list[str], Kind]:
    """Targets, names of the classes or numbers, and their kind, from one column or several.

    With ``asked="auto"``: lists, or texts with a separator, are several labels; several columns of zeros and ones too,
    but one class where each row has exactly one 1; a column of numbers with fractions, or of numbers that nearly all
    differ, is numbers; the rest is one label. What could be read in two ways is refused: whole numbers written as
    fractions (1.0, 2.0), negative whole numbers, labels that look like several.

    Args:
        columns: name -> cells.
        asked: what the user wants them to be.
        where: the place of a row, for messages.
        known: class names, where cells are positions in them.
        separator: what stands between labels in one cell.
        decimal: the sign before fractions; ``None``: as the column shows it.
        argument: what an error is about.
        notes: sentences about how they were read are appended here.

    Raises:
        BadRows: cells without a label or number, each with its place.
        DataError: labels out of range, or cells that can be read in two ways.
    """
    notes = [] if notes is None else notes
    if len(columns) > 1:
        return _from_several(columns, asked, where, argument, notes)
    ((name, cells),) = columns.items()
    if any(isinstance(c, (list, tuple, np.ndarray)) for c in _kinds(cells)):
        return _from_lists(name, cells, asked, where, known, argument, notes)
    column = coded(cells)
    if asked == "labels" and separator is None and known is None and _is_binary(column):
        return _from_several({name: cells}, asked, where, argument, notes)
    if separator or asked == "labels":
        return _from_cells_of_labels(name, column, asked, where, known, separator, argument)
    return _from_one(name, column, asked, where, known, decimal, argument, notes)


def _kinds(cells: Cells) -> Cells:
    """Enough cells to know whether there are lists among them."""
    return cells.values if isinstance(cells, Coded) else [] if isinstance(cells, np.ndarray) else cells


def _from_one(
    name: str,
    column: Coded,
    asked: Target,
    where: Where,
    known: Sequence[str] | None,
    decimal: Decimal | None,
    argument: str,
    notes: list[str],
) -> tuple[Tensor, list[str], Kind]:
    """One label, or one number, a row."""
    there = [v for v in column.values if not is_missing(v)]
    read: Callable[[Any], float | None] = number_of
    if known is None and asked == "auto":
        _refuse_several(name, column, there, decimal, where, argument)
    if known is None and asked in ("auto", "number"):
        read = number_reader(name, there, decimal, argument, notes)
    if known is None and asked == "auto" and there and not any(isinstance(v, (bool, np.bool_)) for v in there):
        asked = _kind_of_numbers(name, there, [read(v) for v in there], column, where, argument, notes)
    _refuse_missing(name, column, where, argument)
    if asked == "number":
        values = [read(v) for v in column.values]
        rows = column.where([i for i, v in enumerate(values) if v is None])
        refuse_numberless(name, rows, column, where, argument, FILL)
        y = column.spread(np.array(values or [0.0], dtype=np.float64)).astype(np.float32)
        return torch.from_numpy(y)[:, None], [name], "number"
    if known is not None:
        refuse_negative(name, column, where, argument)
        places = _positions(name, column.values, known, lambda i: where(column.where([i])[0]), argument)
        return torch.from_numpy(column.spread(places or [0]).astype(np.int64)), list(known), "label"
    texts = _label_texts(column.values)
    labels = name_order(set(texts))
    index = {label: i for i, label in enumerate(labels)}
    ids = column.spread([index[t] for t in texts] or [0])
    if len(labels) < len(texts):
        forms: dict[str, set[str]] = {}
        for text, value in zip(texts, column.values, strict=True):
            forms.setdefault(text, set()).add(str(value).strip(" "))
        notes += several_forms(forms)
    odd = [t for t in labels if t.lower() in _UNKNOWN]
    if odd:
        notes.append(f"classes that elsewhere mean 'unknown' are classes like any other: {some(odd)}")
    return torch.from_numpy(ids.astype(np.int64)), labels, "label"


_UNKNOWN = frozenset({"na", "n/a", "nan", "null", "none", "unknown", "?", "-", "--", "unlabelled", "unlabeled"})


def _label_texts(values: Sequence[Any]) -> list[str]:
    """Names of classes; where all are whole numbers, ``1.0`` and ``1`` are one."""
    texts = [text_of(v) for v in values]
    if all(re.fullmatch(r"[+-]?\d+(\.0*)?", t) for t in texts):
        texts = [t.split(".")[0] for t in texts]
    return texts


def _kind_of_numbers(
    name: str,
    there: Sequence[Any],
    numbers: Sequence[float | None],
    column: Coded,
    where: Where,
    argument: str,
    notes: list[str],
) -> Target:
    """What a column is whose cells may all be numbers: ``number``, or ``auto`` where it isn't one of numbers.

    Raises:
        DataError: whole numbers that were written as fractions, or negative ones: classes, or numbers?
    """
    values = [v for v in numbers if v is not None]
    if len(values) < len(numbers):
        return "auto"
    whole = all(v.is_integer() for v in values)
    if whole and any(_has_a_point(v) for v in there):
        raise DataError(
            argument,
            f"column {name!r} holds whole numbers stored as fractions ({some([str(v) for v in there], 5)}), "
            "which may be classes or numbers",
            remedy="set task.target=label for classes, or task.target=number for numbers (regression)",
        )
    many = len(values) > 100 and 2 * len(values) > len(column)
    if whole and not many:
        if min(values) < 0:
            refuse_negative(name, column, where, argument)
        return "auto"
    notes.append(
        f"the target {name} is a number from {min(values):g} to {max(values):g} (regression); "
        "for classes set task.target=label"
    )
    return "number"


def _has_a_point(value: Any) -> bool:
    """Whether a whole number was stored or written as one with a fraction: 1.0, or 1e3."""
    return isinstance(value, (float, np.floating)) or (isinstance(value, str) and not value.strip("+- ").isdigit())


def _refuse_missing(name: str, column: Coded, where: Where, argument: str) -> None:
    rows = column.where([i for i, v in enumerate(column.values) if is_missing(v)])
    if rows:
        said = f"column {name!r} is empty at {some([where(i) for i in rows])}"
        raise BadRows(argument, said, rows, expected="a value in every row", remedy=FILL)


def refuse_negative(name: str, column: Coded, where: Where, argument: str) -> None:
    """Negative whole numbers are no class ids: -1 often stands for 'unknown'.

    Raises:
        BadRows: there are some, each with its place.
    """
    found = [i for i, v in enumerate(column.values) if (n := number_of(v)) is not None and n < 0]
    rows = column.where(found)
    if not rows:
        return
    values = sorted({text_of(column.values[i]) for i in found}, key=float)
    said = f"column {name!r} holds negative labels: {some(values, 5)} at {some([where(i) for i in rows])}"
    remedy = "task.target=label makes each value a class, task.target=number takes them as numbers"
    if set(values) <= _NO_LABEL:
        remedy = f"if it means 'unknown', leave these rows out with task.data.bad_rows=skip; {remedy}"
    kind = BadRows if set(values) <= _NO_LABEL else _NoRows
    raise kind(argument, said, rows, expected="class ids from 0, or names", remedy=remedy)


_NO_LABEL = frozenset({"-1", "-100", "-999", "-9999"})  # what stands for 'unknown' among whole numbers


class _NoRows(BadRows):
    """Rows that are not bad: without them it would be other data."""

    def __init__(self, argument: str, problem: str, rows: Sequence[int], **more: Any) -> None:
        super().__init__(argument, problem, (), **more)


def _refuse_several(
    name: str, column: Coded, there: Sequence[Any], decimal: Decimal | None, where: Where, argument: str
) -> None:
    texts = {plain(v): v for v in there if isinstance(v, str)}
    listed = [t for t in texts if t.startswith("[") and t.endswith("]")]
    separator = "," if texts and len(listed) == len(texts) else likely_separator(list(texts))
    if separator is None or (separator == "," and not listed and decimal is not None):
        return
    shown = listed or [t for t in texts if separator in t]
    remedy = f"set task.data.separator={_quoted(separator)} for several labels an item"
    if listed:
        remedy = "write them with a separator (a|b), set task.data.separator='|'"
    elif separator == "," and all(decimal_comma(t) is not None for t in texts):
        if any(len(p) != 2 or p[0] == p[1] or p[1].startswith("0") for p in (t.split(",") for t in shown)):
            return  # no two labels
        remedy += ", task.data.decimal=',' for numbers with a decimal comma"
    first = column.where([column.values.index(texts[shown[0]])])[0]
    raise DataError(
        argument,
        f"column {name!r} has cells that look like several labels: {some([repr(t) for t in shown], 3)} "
        f"(first at {where(first)})",
        expected="one label a cell, or a separator",
        remedy=f"{remedy}, or task.target=label if each is the name of one class",
    )


def _quoted(separator: str) -> str:
    return f"'\"{separator}\"'" if separator.isspace() else f"'{separator}'"


def likely_separator(texts: Sequence[str]) -> str | None:
    """What seems to stand between several labels, or ``None`` where all texts may be names of single classes.

    A text counts as several labels if its parts are labels themselves, or if all parts of all such texts come again in
    others (``a|b``, ``b|c``, ``a|c``). A bar or semicolon, rare in names, needs only one part that comes again.

    Example:
        >>> likely_separator(["rain", "wind", "rain|wind"]), likely_separator(["Salem, OR", "Portland, OR"])
        ('|', None)
    """
    names = set(texts)
    for separator in ("|", ";", ",", "/", "+", "&", "\t", " "):
        parts = [[p.strip() for p in t.split(separator)] for t in texts if separator in t]
        parts = [p for p in parts if all(p)]
        if not parts:
            continue
        alone = [all(p in names for p in ps) for ps in parts]
        if separator == " ":
            if len(parts) > 1 and all(alone):
                return separator
            continue
        again = Counter(p for ps in parts for p in set(ps))
        again.update(n for n in names if separator not in n)
        if any(alone) or (len(parts) > 2 and all(again[p] > 1 for ps in parts for p in ps)):
            return separator
        if separator in "|;" and any(again[p] > 1 for ps in parts for p in ps):
            return separator
    return None


def _is_binary(column: Coded) -> bool:
    """Whether a column says yes or no in every row."""
    return bool(column.values) and all(
        isinstance(v, (bool, np.bool_)) or number_of(v) in (0.0, 1.0) or text_of(v).lower() in ("true", "false")
        for v in column.values
    )


def _truth(cells: Cells) -> Numbers:
    """Numbers, with ``true`` and ``false`` as 1 and 0."""
    column = coded(cells)
    words = {"true": 1.0, "false": 0.0}
    values = [words.get(text_of(v).lower(), number_of(v)) for v in column.values]
    return column.spread([np.nan if v is None else v for v in values] or [np.nan])


def _from_cells_of_labels(
    name: str,
    column: Coded,
    asked: Target,
    where: Where,
    known: Sequence[str] | None,
    separator: str | None,
    argument: str,
) -> tuple[Tensor, list[str], Kind]:
    """Several labels in one cell; an empty cell has none."""
    listed = [_parts(v, separator) for v in column.values]
    if asked in ("label", "number"):
        raise DataError(
            "task.data.separator",
            f"column {name!r} cannot hold several labels a cell and be read as target={asked}",
            given=separator,
            remedy="leave one of the two settings out",
        )
    places, labels = _places_of_labels(name, listed, known, lambda i: where(column.where([i])[0]), argument)
    table = np.zeros((max(1, len(listed)), len(labels)), dtype=np.float32)
    for i, found in enumerate(places):
        table[i, found] = 1.0
    return torch.from_numpy(table[column.codes]), labels, "labels"


def _parts(cell: Any, separator: str | None) -> list[Any]:
    if is_missing(cell):
        return []
    if isinstance(cell, str) and separator:
        return [part.strip() for part in cell.split(separator) if part.strip()]
    return [cell]


def _places_of_labels(
    name: str, listed: Sequence[Sequence[Any]], known: Sequence[str] | None, where: Where, argument: str
) -> tuple[list[list[int]], list[str]]:
    flat = [(r, v) for r, c in enumerate(listed) for v in c]
    if known is not None:
        labels = list(known)
        ids = _positions(name, [v for _, v in flat], known, lambda i: where(flat[i][0]), argument)
    else:
        texts = [text_of(v) for _, v in flat]
        labels = name_order(set(texts))
        index = {label: i for i, label in enumerate(labels)}
        ids = [index[t] for t in texts]
    if not labels:
        raise DataError(argument, f"column {name!r} names no label in any row", expected="at least one label")
    places: list[list[int]] = [[] for _ in listed]
    for (r, _), i in zip(flat, ids, strict=True):
        places[r].append(i)
    return places, labels


def _from_lists(
    name: str,
    cells: Cells,
    asked: Target,
    where: Where,
    known: Sequence[str] | None,
    argument: str,
    notes: list[str],
) -> tuple[Tensor, list[str], Kind]:
    """A column of lists: labels by name or place, zeros and ones, or numbers."""
    listed = [
        [] if _no_list_is_missing(c) else list(c) if isinstance(c, (list, tuple, np.ndarray)) else [c] for c in cells
    ]
    holes = [i for i, c in enumerate(listed) if any(is_missing(v) for v in c)]
    if holes:
        said = f"column {name!r} has empty entries at {some([where(i) for i in holes])}"
        raise BadRows(argument, said, holes, expected="labels or numbers", remedy=FILL)
    flat = [v for c in listed for v in c]
    numbers = known is None and bool(flat) and all(number_of(v) is not None for v in flat)
    if numbers and _is_table_of_truth(listed):
        own = {f"{name}[{i}]": [c[i] for c in listed] for i in range(len(listed[0]))}
        return _from_several(own, asked, where, argument, notes)
    if asked == "number" or (asked == "auto" and numbers and any(isinstance(v, (float, np.floating)) for v in flat)):
        return _vectors(name, listed, where, argument)
    if asked == "label":
        many = [where(i) for i, c in enumerate(listed) if len(c) != 1]
        if many:
            raise DataError(
                argument, f"column {name!r} has not exactly one label at {some(many)}", expected="one label"
            )
        return _from_one(name, coded([c[0] for c in listed]), asked, where, known, None, argument, notes)
    places, labels = _places_of_labels(name, listed, known, where, argument)
    y = torch.zeros(len(listed), len(labels))
    for r, found in enumerate(places):
        y[r, found] = 1.0
    return y, labels, "labels"


def _no_list_is_missing(cell: Any) -> bool:
    return not isinstance(cell, (list, tuple, np.ndarray)) and is_missing(cell)


def _is_table_of_truth(listed: Sequence[Sequence[Any]]) -> bool:
    """Zeros and ones, as many in each row, and not names of labels: those a row would not hold twice."""
    width = len(listed[0])
    return (
        width > 1
        and all(len(c) == width and all(number_of(v) in (0.0, 1.0) for v in c) for c in listed)
        and any(len(set(map(float, c))) < width for c in listed)
    )


def _positions(name: str, cells: Cells, known: Sequence[str], where: Where, argument: str) -> list[int]:
    place = {plain(label): i for i, label in enumerate(known)}
    found, bad = [], []
    for r, cell in enumerate(cells):
        named = place.get(plain(cell), -1) if isinstance(cell, str) else -1
        value = None if named >= 0 else number_of(cell)
        i = named if value is None else int(value) if value.is_integer() else -1
        if not 0 <= i < len(known):
            bad.append(f"{where(r)} ({shown(cell)})")
        found.append(i)
    if bad:
        raise DataError(
            argument, f"column {name!r} has labels out of range at {some(bad)}", expected=f"one of {len(known)} classes"
        )
    return found


def _vectors(name: str, listed: list[list[Any]], where: Where, argument: str) -> tuple[Tensor, list[str], Kind]:
    width = Counter(len(c) for c in listed).most_common(1)[0][0]
    odd = [i for i, c in enumerate(listed) if len(c) != width or any(number_of(v) is None for v in c)]
    if odd or width == 0:
        said = f"column {name!r} has not {width or 'any'} finite numbers at {some([where(i) for i in odd])}"
        raise BadRows(argument, said, odd, expected="lists of equally many numbers", remedy=FILL)
    y = torch.tensor([[float(v) for v in c] for c in listed], dtype=torch.float32)
    return y, [name] if width == 1 else [f"{name}[{i}]" for i in range(width)], "number"


def _from_several(
    columns: Mapping[str, Cells], asked: Target, where: Where, argument: str, notes: list[str]
) -> tuple[Tensor, list[str], Kind]:
    """One column of numbers (or yes and no) for each target."""
    made = []
    for name, cells in columns.items():
        values = _truth(cells)
        refuse_numberless(name, np.flatnonzero(np.isnan(values)).tolist(), cells, where, argument, FILL)
        made.append(torch.from_numpy(values))
    y = torch.stack(made, 1)
    binary = bool(((y == 0) | (y == 1)).all())
    one_each = binary and y.shape[1] > 1 and bool((y.sum(1) == 1).all())
    if asked == "labels" and not ((y >= 0) & (y <= 1)).all():
        raise DataError(argument, "the label columns hold other values than 0 and 1", given=list(columns))
    if asked == "label" and not one_each:
        raise DataError(
            argument,
            "not every row has exactly one 1 in the label columns",
            given=list(columns),
            expected="one class a row for target=label",
            remedy="or task.target=labels",
        )
    if one_each and asked in ("auto", "label"):
        if asked == "auto":
            notes.append(
                "every row has exactly one 1 in the label columns: they are read as one class a row "
                "(task.target=labels: as yes or no each)"
            )
        return y.argmax(1), list(columns), "label"
    kind: Kind = "labels" if asked == "labels" or (asked == "auto" and binary) else "number"
    if kind == "number" and asked == "auto":
        shares = bool(((y >= 0) & (y <= 1)).all())
        notes.append(
            f"the targets {some(list(columns))} are numbers (regression)"
            + ("; task.target=labels takes them as shares of yes" if shares else "")
        )
    return y.to(torch.float32), list(columns), kind
