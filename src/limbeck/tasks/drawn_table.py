"""A table that was drawn: rows, files, and images of what they are beside the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from limbeck.errors import ConfigError, require
from limbeck.grammar.artifact import Artifact
from limbeck.storage.store import atomic_write

if TYPE_CHECKING:
    from limbeck.functional.tables import Rates
    from limbeck.tasks.table import Drawn, Table


class TableArtifact(Artifact):
    """A table, or what draws one.

    Args:
        task: whose columns it has.
        rows: the number of a draw -> rows; draw 0 is the one that is saved.
        sizes: of what draws it (``parameters``).

    Attributes:
        rates: how often each group is answered favourably by what learnt from it; known once it was evaluated.
    """

    kind: ClassVar[str] = "table"
    formats = ("csv", "parquet")
    networks: int | None = None
    lr: float | None = None
    scope = ""

    def __init__(self, task: Table, rows: Callable[..., Drawn], sizes: Mapping[str, float] | None = None) -> None:
        self.task, self._rows, self._sizes = task, rows, dict(sizes or {})
        self._first: Drawn | None = None
        self.rates: Rates | None = None

    def rows(self, k: int = 0) -> Drawn:
        """The k-th draw."""
        if k:
            return self._rows(k)
        if self._first is None:
            self._first = self._rows(0)
        return self._first

    def sample(self, n: int, seed: int = 0) -> Any:
        """A DataFrame of n rows.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return self.task.frame(self._rows(seed, n))

    def state(self) -> dict[str, Any]:
        """The rows of the first draw."""
        made = self.rows()
        return {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in vars(made).items()}

    def take(self, state: Mapping[str, Any], where: str = "best") -> None:
        """The rows of the first draw."""
        from limbeck.tasks.table import Drawn

        self._first = Drawn(**{name: value.numpy() for name, value in state.items()})

    def size(self) -> dict[str, float]:
        """Rows, and the parameters of what draws them."""
        return {"items": float(len(self.rows().y)), **self._sizes}

    def save(self, folder: Path) -> None:
        """``table.csv``, and ``student.json`` (columns, groups, classes)."""
        self.export("csv", folder)

    def export(self, form: str, folder: Path) -> list[Path]:
        """Write the table as ``csv`` (UTF-8, with a header) or ``parquet``; ``student.json`` lies beside it.

        Raises:
            ConfigError: an unknown format.
            MissingExtra: pyarrow is not installed.
        """
        if form not in self.formats:
            raise ConfigError.unknown("format", form, self.formats, "format of a table")
        folder.mkdir(parents=True, exist_ok=True)
        task = self.task
        about = {
            "kind": self.kind,
            "target": task.target_column.name,
            "labels": task.labels,
            "favourable": (task.labels or [])[task.favourable],
            "protected": [c.name for c in task.protected_columns],
            "groups": task.groups,
            "columns": [c.describe() for c in task.columns],
        }
        cells = task.cells(self.rows())
        if form == "csv":
            import csv
            import io

            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(cells)
            writer.writerows(zip(*(c.tolist() for c in cells.values()), strict=True))
            path = folder / "table.csv"
            atomic_write(path, text.getvalue().encode())
        else:
            pa = require("pyarrow", "tabular", "writing parquet")
            pq = require("pyarrow.parquet", "tabular", "writing parquet")
            table, path = pa.table({n: pa.array(c.tolist()) for n, c in cells.items()}), folder / "table.parquet"
            atomic_write(path, lambda f: pq.write_table(table, f))
        atomic_write(folder / "student.json", json.dumps(about, indent=2).encode())
        return [path, folder / "student.json"]

    def opened(self, form: str, folder: Path) -> TableArtifact:
        """What was exported, read back as any table is, by the task's columns."""
        from limbeck.data.tables import Parquet
        from limbeck.data.tables import Table as Csv
        from limbeck.tasks.table import Drawn

        task = self.task
        source = Csv(str(folder / "table.csv")) if form == "csv" else Parquet(str(folder / "table.parquet"))
        found = source.table()
        values = np.stack([c.read(found.columns[c.name], found.place) for c in task.columns], 1)
        codes = [c.read(found.columns[c.name], found.place).astype(np.int64) for c in task.protected_columns]
        s = (task.group_values[None] == np.stack(codes, 1)[:, None]).all(-1).argmax(1)
        y = task.target_column.read(found.columns[task.target_column.name], found.place).astype(np.int64)
        made = Drawn(values, s, y)
        return TableArtifact(task, lambda k=0, n=None: made, self._sizes)

    def draw(self, folder: Path) -> list[dict[str, Any]]:
        """``columns.png``: every column's distribution, real rows beside drawn ones. For the report."""
        from matplotlib.figure import Figure

        task, real, made = self.task, self.task._split("train"), self.rows()
        shown = [(c.name, k) for k, c in enumerate(task.columns)][:18]
        panels: list[tuple[str, list[str], Any, Any]] = []
        a: Any
        b: Any
        for name, k in shown:
            c = task.columns[k]
            names = [f"{v:.4g}" for v in c.inside[:, 0]] if c.number else c.values
            a, b = (np.bincount(c.codes(r.values[:, k]), minlength=c.width) for r in (real, made))
            panels.append((name, names, a, b))
        labels = list(task.labels or [])
        ends: list[tuple[str, list[str], str]] = [("group", task.groups, "s"), (task.target_column.name, labels, "y")]
        for name, names, of in ends:
            a, b = (np.bincount(getattr(r, of), minlength=len(names)) for r in (real, made))
            panels.append((name, names, a, b))
        across = 5
        down = -(-len(panels) // across)
        figure = Figure(figsize=(11, 1.8 * down), dpi=110, layout="constrained")
        for i, (name, names, a, b) in enumerate(panels):
            ax = figure.add_subplot(down, across, i + 1)
            at = np.arange(len(names))
            ax.bar(at - 0.2, a / max(1, a.sum()), 0.4, color="#8a8a8a", label="real")
            ax.bar(at + 0.2, b / max(1, b.sum()), 0.4, color="#2f6fb0", label="drawn")
            ax.set_title(name, fontsize=8)
            few = len(names) <= 4
            ax.set_xticks(at if few else [], [n[:12] for n in names] if few else [], fontsize=7)
            ax.tick_params(axis="y", labelsize=6)
            ax.spines[["top", "right"]].set_visible(False)
            if i == 0:
                ax.legend(fontsize=7, frameon=False)
        figure.savefig(folder / "columns.png")
        more = f"; the first {len(shown)} of {len(task.columns)} columns" if len(shown) < len(task.columns) else ""
        return [
            {
                "file": "columns.png",
                "title": "Columns, real and drawn",
                "caption": f"Shares of rows by bin or category{more}.",
            }
        ]


def parity_picture(rates: Mapping[str, Rates], groups: list[str], path: Path) -> None:
    """Bars: the share of favourable answers of each group, by what was learnt from."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 1.5 * len(rates), 2.8), dpi=110, layout="constrained")
    ax = figure.add_subplot()
    at, wide = np.arange(len(rates)), 0.8 / len(groups)
    for g, group in enumerate(groups):
        heights = [float(r.selection[g]) for r in rates.values()]
        ax.bar(at + (g - (len(groups) - 1) / 2) * wide, heights, wide * 0.92, label=group)
    ax.set_xticks(at, list(rates), fontsize=8)
    ax.set_ylabel("share answered favourably", fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=7, frameon=False, ncols=min(4, len(groups)), loc="outside upper center")
    figure.savefig(path)


__all__ = ["TableArtifact", "parity_picture"]
