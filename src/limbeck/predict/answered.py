"""Answers as a sequence, a table, files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from limbeck.errors import ConfigError, require
from limbeck.grammar.answers import Answer
from limbeck.storage.store import atomic_write

ENDINGS = (".csv", ".jsonl")


class Predictions(Sequence[dict[str, Any]]):
    """What a network answered, one plain dictionary an item, in the order that was asked in.

    Args:
        answers: one an item.
        classes: names of the classes, where there are any.

    Attributes:
        answers: with their tensors (masks, maps, images).

    Example:
        >>> found = limbeck.load("runs/birds").predict(["a.jpg", "b.jpg"])  # doctest: +SKIP
        >>> found[0]["label"], found.labels, found.scores.shape  # doctest: +SKIP
        ('wren', ['wren', 'robin'], torch.Size([2, 5]))
    """

    def __init__(self, answers: Sequence[Answer], classes: Sequence[str] = ()) -> None:
        self.answers, self.classes = list(answers), list(classes)

    def __len__(self) -> int:
        return len(self.answers)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Predictions: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Predictions(self.answers[index], self.classes)
        return self.answers[index].row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (a.row for a in self.answers)

    @property
    def labels(self) -> list[Any]:
        """The class of every item; of several labels a list of them."""
        return [a.row.get("label", a.row.get("labels")) for a in self.answers]

    def stacked(self, name: str) -> Tensor:
        """A tensor of every answer, as one: ``scores`` [N, C], ``values`` [N, K], ``mask`` [N, H, W]...

        Raises:
            KeyError: the answers have no such tensor.
        """
        return torch.stack([a.tensors[name] for a in self.answers])

    @property
    def scores(self) -> Any:
        """Probabilities [N, C] of all classes; where there are no classes, each item's own score as a list."""
        if self.answers and "scores" in self.answers[0].tensors:
            return self.stacked("scores")
        return [a.row.get("score") for a in self.answers]

    @property
    def values(self) -> Tensor:
        """Numbers [N, K] in the data's units, of a network that answers with such."""
        return self.stacked("values")

    def to_frame(self) -> Any:
        """The answers as a pandas DataFrame, the columns of `save`'s CSV.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return require("pandas", "tabular", "tables as DataFrames").DataFrame(flat_rows(self))

    def save(self, path: str | Path) -> Path:
        """Write ``.csv`` (one row an item, of detections one a box) or ``.jsonl`` (one object an item).

        Raises:
            ConfigError: another ending.
        """
        path = Path(path)
        write(path, list(self))
        return path

    def __repr__(self) -> str:
        first = ", ".join(f"{k}={v!r}" for k, v in list(self[0].items())[:3]) if self.answers else ""
        return f"Predictions of {len(self)} items" + (f" (the first: {first})" if first else "")


def flat(row: dict[str, Any]) -> list[dict[str, Any]]:
    """An answer as rows of plain cells: a row a box of detections, a column a key of what is nested."""
    rest = {k: v for k, v in row.items() if k != "boxes"}
    cells: dict[str, Any] = {}
    for name, value in rest.items():
        if isinstance(value, dict) and name == "top":
            for i, (k, v) in enumerate(value.items(), 1):
                cells |= {f"label{i}": k, f"score{i}": v}
        elif name == "points":
            cells |= {f"{k} {axis}": v for k, pair in value.items() for axis, v in zip("xy", pair, strict=True)}
        elif isinstance(value, dict):
            cells |= {(k if name == "values" else f"{name}:{k}"): v for k, v in value.items()}
        elif name == "fills":
            cells[name] = " | ".join(", ".join(f"{k} {v:.3g}" for k, v in one.items()) for one in value)
        elif isinstance(value, (list, tuple)):
            cells[name] = ";".join(map(str, value))
        else:
            cells[name] = value
    if "boxes" not in row:
        return [cells]
    sides = ("left", "top", "right", "bottom")
    found = []
    for b in row["boxes"]:
        own = {**cells, "label": b["label"], "score": b["score"], **dict(zip(sides, b["box"], strict=True))}
        for name, axes in (("points", "xy"), ("space", "XYZ")):  # of poses
            own |= {f"{j} {axis}": v for j, at in b.get(name, {}).items() for axis, v in zip(axes, at, strict=True)}
        found.append(own)
    return found


def flat_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All answers so."""
    return [cells for row in rows for cells in flat(row)]


def check_ending(path: Path) -> None:
    """Refuse a file whose ending does not say how it is written."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError("--out", given=str(path), expected="a file that ends in .csv or .jsonl")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as ``.csv`` or ``.jsonl``: the whole file or none.

    Raises:
        ConfigError: another ending.
    """
    check_ending(path)
    if path.suffix.lower() == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        cells = flat_rows(rows)
        names = list(dict.fromkeys(k for row in cells for k in row))
        held = io.StringIO()
        writer = csv.DictWriter(held, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)
        text = held.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.encode("utf-8", "surrogatepass"))


__all__ = ["Predictions", "check_ending", "flat", "flat_rows", "write"]
