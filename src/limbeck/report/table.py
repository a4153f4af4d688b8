"""A run or a comparison as a table: in the terminal, in Markdown, in plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from limbeck.errors import human
from limbeck.report.metrics import Metric, metric_of
from limbeck.report.numbers import brief, brief_duration, duration, significant
from limbeck.report.statistics import Estimate
from limbeck.report.summary import Result, Row, Summary, summarise

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Tone = Literal["", "good", "bad", "dim"]

_SHORT: Final = {
    "area under the ROC curve": "AUC",
    "demographic parity ratio": "parity",
    "equalised odds ratio": "odds",
    "calibration error": "calib. error",
    "agreement with the teacher": "agree",
    "negative log-likelihood": "nll",
    "root mean square error": "rmse",
    "mean absolute error": "mae",
    "Fréchet distance": "Fréchet",
    "KL from the teacher": "KL",
    "network calls": "calls",
    "of the right class": "class",
}


@dataclass(frozen=True)
class Cell:
    """Text, the interval that belongs to it, whether it is good news, and the same in few letters for a terminal."""

    text: str = ""
    interval: str = ""
    tone: Tone = ""
    short: str = ""


@dataclass(frozen=True)
class Column:
    """A column's heading, short and long, and its unit."""

    short: str
    label: str
    unit: str = ""


@dataclass
class Grid:
    """A table ready to be written in any form."""

    columns: list[Column]
    rows: list[tuple[Row, list[Cell]]]


def grid(data: Result | Sequence[Result] | Summary) -> Grid:
    """The comparison table: columns that no row fills are left out."""
    s = data if isinstance(data, Summary) else summarise(data)
    m = s.metric
    columns: list[tuple[Column, list[Cell]]] = []

    def add(short: str, label: str, unit: str, cells: list[Cell]) -> None:
        if any(c.text for c in cells):
            columns.append((Column(short, label, unit), cells))

    def each(
        value: Callable[[Row], float | None], long: Callable[[float], str], short: Callable[[float], str]
    ) -> list[Cell]:
        found = [value(r) for r in s.rows]
        return [Cell() if x is None else Cell(long(x), short=short(x)) for x in found]

    unit = "%" if m.percent else ""
    points = "points" if m.percent else ""
    add(f"{_SHORT.get(m.label, m.label)} {unit}".rstrip(), m.label, unit, [_value_cell(m, r.score) for r in s.rows])
    add(s.against[1], s.against[0], points, [_difference_cell(m, r.to_alone) for r in s.rows])
    if s.reference is not None:
        cells = [
            # told from a row that has nothing to be compared with: a method that may not be
            Cell("–", tone="dim")
            if r.role == "method" and r.name != s.reference and r.to_reference is None
            else _difference_cell(m, r.to_reference)
            for r in s.rows
        ]
        add(f"vs {s.reference}", f"against {s.reference}", points, cells)
    for name in ("ece", "auroc", "dpr", "eor", "perplexity", "kl", "fid", "class_accuracy", "calls", "agreement"):
        if name == m.name:
            continue
        other = metric_of(name)
        cells = [_value_cell(other, r.metrics.get(name), brief=True) for r in s.rows]
        if name in ("agreement", "kl"):
            cells = [Cell() if r.role == "teacher" else c for r, c in zip(s.rows, cells, strict=True)]
        unit = "%" if other.percent else ""
        label = "agreement" if name == "agreement" else other.label
        add(f"{_SHORT.get(other.label, other.label)} {unit}".rstrip(), label, unit, cells)
    add("params", "parameters", "", each(lambda r: r.parameters, human, brief))
    for key in ("images", "items", "samples", "tokens"):
        add(key, key, "", each(lambda r, key=key: r.sizes.get(key), human, brief))  # type: ignore[misc]
    add("size", "size", "", each(lambda r: r.bytes, lambda x: human(x, "B"), lambda x: brief(x, "B")))
    # of data sets whose labels take room
    add("images", "of which images", "", each(lambda r: r.sizes.get("image_bytes"), _bytes, _few_bytes))
    add("labels", "of which soft labels", "", each(lambda r: r.sizes.get("label_bytes"), _bytes, _few_bytes))
    add("ms", "latency", "ms", [_latency(r) for r in s.rows])
    add("FLOPs", "FLOPs", "", each(lambda r: r.gflops or None, lambda x: human(1e9 * x), lambda x: brief(1e9 * x)))
    add("cost", "training", "", each(lambda r: r.seconds, duration, brief_duration))
    return Grid([c for c, _ in columns], [(r, [cells[i] for _, cells in columns]) for i, r in enumerate(s.rows)])


def _latency(r: Row) -> Cell:
    if r.latency_ms is None:
        return Cell()
    text = significant(r.latency_ms, 3)
    if r.latency_range is None:
        return Cell(text, short=significant(r.latency_ms, 2))
    low, high = (significant(x, 3) for x in r.latency_range)
    return Cell(text, f"[{low}, {high}]", short=significant(r.latency_ms, 2))


def _bytes(x: float) -> str:
    return human(x, "B")


def _few_bytes(x: float) -> str:
    return brief(x, "B")


def _value_cell(metric: Metric, e: Estimate | None, brief: bool = False) -> Cell:
    if e is None:
        return Cell()
    text = metric.value(e.mean, False)
    if e.kind == "none":
        return Cell(text)
    interval = f"[{metric.value(e.low, False)}, {metric.value(e.high, False)}]"
    return Cell(text, interval, short="" if brief else f"{text} ±{_reach(metric, e)}")


def _difference_cell(metric: Metric, e: Estimate | None) -> Cell:
    if e is None:
        return Cell()
    text = metric.difference(e.mean, False)
    if e.kind == "none":
        return Cell(text, "n=1", "dim", f"{text} n=1")
    tone: Tone = {1: "good", -1: "bad"}.get(metric.better(float(e.sign)), "dim")  # type: ignore[assignment]
    interval = f"[{metric.difference(e.low, False)}, {metric.difference(e.high, False)}]"
    return Cell(text, interval, tone, f"{text} ±{_reach(metric, e)}")


def _reach(metric: Metric, e: Estimate) -> str:
    """The longer half of an interval, in the digits of a value."""
    x = max(e.high - e.mean, e.mean - e.low)
    return f"{100 * x:.1f}" if metric.percent else significant(x, 2)


def _heading(column: Column) -> str:
    return f"{column.label} ({column.unit})" if column.unit else column.label


def comparison_table(data: Result | Sequence[Result] | Summary, title: str = "", width: int | None = None) -> RichTable:
    """The comparison as a table for the terminal.

    Args:
        data: a result, a comparison, or a list of results.
        title: printed above.
        width: characters in a line; those of the terminal by default. Where they are too few, intervals go below their
            values; then columns are left out, and the caption says which.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    s = data if isinstance(data, Summary) else summarise(data)
    found = grid(s)

    def widest(texts: Iterable[str]) -> int:
        return max((len(word) for text in texts for word in text.split()), default=1)

    first = widest(r.name for r, _ in found.rows)
    # wrapped between a value and its interval where room is short, never inside
    least = [widest([c.short, *(r[i].short or r[i].text for _, r in found.rows)]) for i, c in enumerate(found.columns)]
    room = (Console().width if width is None else width) - first - 2
    kept = list(range(len(found.columns)))
    left_out = []
    for short in ("FLOPs", "ms", "size", "agree %", "class %", "KL", "calib. error %"):
        here = next((i for i in kept if found.columns[i].short == short), None)
        if here is not None and sum(least[i] + 1 for i in kept) > room:
            kept.remove(here)
            left_out.append(found.columns[here].label)
    loose = sum(least[i] + 2 for i in kept) <= room
    padding = (0, 1 if loose else 0, 0, 0)
    table = Table(title=title or None, box=SIMPLE_HEAD, padding=padding, pad_edge=False, title_justify="left")
    if left_out:
        table.caption = f"no room for: {', '.join(left_out)}"
    table.add_column("", overflow="fold", min_width=first)
    for i in kept:
        table.add_column(found.columns[i].short, justify="right", overflow="fold", min_width=least[i])
    best = s.winners()
    for row, cells in found.rows:
        tones = {"good": "green", "bad": "red", "dim": "dim", "": ""}
        shown = [Text(cells[i].short or cells[i].text, style=tones[cells[i].tone]) for i in kept]
        name = Text(row.name, style="dim" if row.role != "method" else "bold" if any(row is b for b in best) else "")
        table.add_row(name, *shown)
    return table


def _texts(data: Result | Sequence[Result] | Summary, short: bool) -> list[list[str]]:
    found = grid(data)
    head = ["", *(c.short if short else _heading(c) for c in found.columns)]
    rows = [
        [r.name, *((c.short or c.text) if short else f"{c.text} {c.interval}".rstrip() for c in cells)]
        for r, cells in found.rows
    ]
    return [head, *rows]


def markdown_table(data: Result | Sequence[Result] | Summary) -> str:
    """The comparison as a Markdown table, intervals included, ending with a newline."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in _texts(data, False)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
    return "\n".join(lines) + "\n"


def plain_table(data: Result | Sequence[Result] | Summary) -> str:
    """The comparison as aligned plain text, ending with a newline."""
    rows = _texts(data, True)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"
