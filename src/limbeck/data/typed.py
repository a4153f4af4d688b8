"""Columns of a table with types: numbers in bins, categories by name; values to codes, and codes back to values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from limbeck.data.cells import Cells, coded, is_missing, number_of, numbers_of, text_of
from limbeck.data.columns import BadRows, Where, refuse_numberless
from limbeck.data.names import some
from limbeck.data.targets import name_order
from limbeck.errors import DataError

Binning = Literal["quantile", "width"]
Unseen = Literal["error", "most-common"]

INSIDE = 17
"""Quantiles of the training values that are kept of each bin: what a drawn bin is given values from."""


@dataclass
class Typed:
    """One column, as its training rows show it.

    Attributes:
        name: its own.
        values: of categories: their names, in order; empty for numbers.
        edges: of numbers: the inner edges of their bins [bins - 1]; a value on an edge lies below.
        inside: of numbers: quantiles of each bin's training values [bins, INSIDE].
        digits: how many digits behind the point numbers have; -1: more than 6.
        common: the code that most training rows have.
        mean, std: of numbers.
    """

    name: str
    values: list[str] = field(default_factory=list)
    edges: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0))
    inside: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros((0, INSIDE)))
    digits: int = -1
    common: int = 0
    mean: float = 0.0
    std: float = 1.0

    @property
    def number(self) -> bool:
        """Whether it holds numbers."""
        return not self.values

    @property
    def width(self) -> int:
        """How many codes there are."""
        return len(self.values) or len(self.inside)

    def read(self, cells: Cells, where: Where, unseen: Unseen = "error") -> np.ndarray[Any, Any]:
        """Cells as float64 [N]: numbers as they are, categories as codes.

        Raises:
            DataError: values that training rows have not; cells that are no numbers; each with its place.
        """
        if self.number:
            values = numbers_of(cells)
            rows = np.flatnonzero(np.isnan(values)).tolist()
            refuse_numberless(self.name, rows, cells, where, "task.data", "fill in or remove these rows")
            return values
        column = coded(cells)
        index = {v: i for i, v in enumerate(self.values)}
        found = [index.get(_text(v), -1) for v in column.values]
        new = column.where([i for i, code in enumerate(found) if code < 0])
        if new and unseen == "error":
            said = some([f"{where(i)} ({_text(cells[i])!r})" for i in new])
            raise DataError(
                f"column {self.name!r}",
                f"values that no training row has, at {said}",
                expected=some(self.values),
                remedy="set task.unseen=most-common to take them for the column's most common value, or remove these rows",
            )
        made = column.spread(np.array(found or [-1], dtype=np.float64))
        return np.where(made < 0, float(self.common), made)

    def codes(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What `read` gave as int64 codes [N]: bins of numbers."""
        if self.number:
            return np.searchsorted(self.edges, values, side="left").astype(np.int64)
        return values.astype(np.int64)

    def drawn(self, codes: np.ndarray[Any, Any], u: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Values [N] as `read` gives them, from codes [N]; of a bin the value at the quantile ``u`` in [0, 1) within it."""
        if not self.number:
            return codes.astype(np.float64)
        at = u * (INSIDE - 1)
        low = np.minimum(at.astype(np.int64), INSIDE - 2)
        a, b = self.inside[codes, low], self.inside[codes, low + 1]
        made = a + (at - low) * (b - a)
        return made if self.digits < 0 else np.round(made, self.digits)

    def cells(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What `read` gave, as a table has it: texts of categories, whole numbers as integers."""
        if not self.number:
            return np.array(self.values, dtype=object)[values.astype(np.int64)]
        return values if self.digits else values.astype(np.int64)

    def as_config(self) -> dict[str, Any]:
        """All that is known of the column, as plain values; `from_config` makes it again."""
        return {
            "name": self.name, "values": self.values, "edges": self.edges.tolist(), "inside": self.inside.tolist(),
            "digits": self.digits, "common": self.common, "mean": self.mean, "std": self.std,
        }  # fmt: skip

    @classmethod
    def from_config(cls, about: Mapping[str, Any]) -> Typed:
        """What `as_config` gave."""
        inside = np.array(about["inside"], dtype=np.float64).reshape(-1, INSIDE)
        return cls(
            str(about["name"]), [str(v) for v in about["values"]], np.array(about["edges"], dtype=np.float64), inside,
            int(about["digits"]), int(about["common"]), float(about["mean"]), float(about["std"]),
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Plain facts, for a file beside the table."""
        if self.number:
            return {"name": self.name, "type": "number", "edges": self.edges.tolist(), "digits": self.digits}
        return {"name": self.name, "type": "category", "values": self.values}


def _text(value: Any) -> str:
    return "" if is_missing(value) else text_of(value)


def is_number(cells: Cells) -> bool:
    """Whether every filled cell of a column is a number, and at least one is."""
    if isinstance(cells, np.ndarray):
        return bool(cells.dtype.kind in "iuf")
    there = [v for v in coded(cells).values if not is_missing(v)]
    return bool(there) and all(not isinstance(v, bool) and number_of(v) is not None for v in there)


def fit_category(name: str, cells: Cells, train: np.ndarray[Any, Any], empty: bool = True) -> Typed:
    """A column of categories, as the training rows have it; empty cells are a category of their own, where they may be.

    Raises:
        BadRows: empty cells where there may be none.
        DataError: nearly as many values as rows.
    """
    column = coded(cells)
    texts = [_text(v) for v in column.values]
    if not empty and "" in texts:
        rows = column.where([i for i, t in enumerate(texts) if not t])
        raise BadRows(
            f"column {name!r}", f"{len(rows)} cells are empty or NaN (rows {some([str(r) for r in rows])})", rows
        )
    count = np.bincount(column.codes[train], minlength=len(texts))
    of: dict[str, int] = {}
    for text, n in zip(texts, count.tolist(), strict=True):
        if n:
            of[text] = of.get(text, 0) + n
    if len(of) > 1000 or (len(of) > 20 and 2 * len(of) > len(train)):
        raise DataError(
            f"column {name!r}",
            f"has {len(of)} different values in {len(train)} training rows: identifiers or free text",
            expected="categories that come again, or numbers",
            remedy=f"leave it out with task.drop=[{name}]",
        )
    values = name_order(set(of))
    return Typed(name, values, common=values.index(max(values, key=lambda v: of[v])))


def fit_number(
    name: str, cells: Cells, train: np.ndarray[Any, Any], where: Where, bins: int, binning: Binning, log: bool
) -> Typed:
    """A column of numbers, its bins set on the training rows; up to twice as many different values have a bin each.

    ``quantile`` bins hold about as many rows each (a value that fills several fills one: so a column of mostly zeros is
    zero or not); ``width`` bins are equally wide, in log(1 + x) where that is asked for.
    """
    made = Typed(name)
    every = Typed.read(made, cells, where)
    values = every[train]
    made.digits = next((d for d in range(7) if (every == np.round(every, d)).all()), -1)
    made.mean, made.std = float(values.mean()), float(values.std()) or 1.0
    there = np.unique(values)
    count = bins or 1
    if bins and len(there) <= 2 * bins:
        made.edges = (there[1:] + there[:-1]) / 2
    elif binning == "quantile" and bins:
        edges = np.unique(np.quantile(values, np.arange(1, count) / count, method="lower"))
        made.edges = edges[edges < there[-1]]
    elif bins:
        scale = np.log1p if log else (lambda v: v)
        back = np.expm1 if log else (lambda v: v)
        if log and there[0] <= -1:
            raise DataError(
                f"column {name!r}",
                "has numbers of -1 or below, which have no log(1 + x)",
                remedy="take it out of task.log",
            )
        edges = back(np.linspace(scale(there[0]), scale(there[-1]), count + 1)[1:-1])
        code = np.searchsorted(edges, values, side="left")
        filled = np.unique(code)  # bins without a training row are joined to the next one that has some
        made.edges = edges[filled[:-1]]
    code = made.codes(values) if len(made.edges) else np.zeros(len(values), dtype=np.int64)
    grid = np.linspace(0, 1, INSIDE)
    made.inside = np.stack([np.quantile(values[code == b], grid) for b in range(len(made.edges) + 1)])
    made.common = int(np.bincount(code).argmax())
    return made


__all__ = ["Binning", "Typed", "Unseen", "fit_category", "fit_number", "is_number"]
