"""Figures as inline SVG that serve a light and a dark page: drawn in placeholder colours that become CSS variables.

The same data give the same bytes: no dates, fixed hash salt, ids prefixed by the figure's name (ids of several figures
in one page would collide). matplotlib's global state is left alone.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from limbeck.errors import human, visible
from limbeck.report.metrics import Metric, metric_of
from limbeck.report.numbers import significant
from limbeck.report.statistics import mean
from limbeck.report.summary import Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INK: Final = "#010101"  # text and axes
SOFT: Final = "#020202"  # secondary text
LINE: Final = "#030303"  # grid
PAGE: Final = "#040404"  # background
TEACHER: Final = "#050505"
ALONE: Final = "#060606"
GOOD: Final = "#070707"
BAD: Final = "#080808"
SERIES: Final = tuple(f"#1{i}1{i}1{i}" for i in range(8))
VARIABLES: Final = {
    INK: "--ink",
    SOFT: "--soft",
    LINE: "--line",
    PAGE: "--card",
    TEACHER: "--teacher",
    ALONE: "--alone",
    GOOD: "--good",
    BAD: "--bad",
    **{colour: f"--s{i}" for i, colour in enumerate(SERIES)},
}
MARKERS: Final = ("o", "D", "^", "v", "P", "X", "<", "h")
DASHES: Final = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (3, 1.5)),
    (0, (8, 3)),
    (0, (4, 1, 1, 1, 1, 1)),
    "-",
)

FEW: Final = 5
"""Answers below which a bin of a reliability diagram says too little to lead a line through it."""

_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "limbeck",
    "svg.id": None,
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 12.0,
    "axes.facecolor": "none",
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titlepad": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 1.0,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 11.0,
    "ytick.labelsize": 11.0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 11.5,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 6 / 72,
    "figure.constrained_layout.h_pad": 7 / 72,
    "figure.constrained_layout.wspace": 0.02,
    "figure.constrained_layout.hspace": 0.02,
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
}


@dataclass(frozen=True)
class Picture:
    """A figure for the page.

    Attributes:
        name: unique within the page; prefix of its ids.
        title: what it shows.
        caption: how to read it.
        svg: the drawing, self-contained.
        head, rows: the same numbers as a table.
    """

    name: str
    title: str
    caption: str
    svg: str
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def colour_of(summary: Summary, row: Row) -> str:
    """A participant's placeholder colour, the same in every figure."""
    if row.role == "teacher":
        return TEACHER
    if row.role in ("alone", "baseline"):
        return ALONE
    return SERIES[[r.name for r in summary.methods].index(row.name) % len(SERIES)]


def marker_of(summary: Summary, row: Row) -> str:
    """A participant's marker, the same in every figure."""
    if row.role != "method":
        return {"teacher": "s", "alone": "o"}.get(row.role, "d")
    return MARKERS[1:][[r.name for r in summary.methods].index(row.name) % (len(MARKERS) - 1)]


def _mark(summary: Summary, row: Row) -> dict[str, Any]:
    return {
        "marker": marker_of(summary, row),
        "color": colour_of(summary, row),
        "markeredgecolor": PAGE,
        "markeredgewidth": 1.2,
    }


def variable_of(summary: Summary, row: Row) -> str:
    """A participant's CSS variable."""
    return VARIABLES[colour_of(summary, row)]


def canvas(width: float, height: float) -> Canvas:
    """An empty figure of so many pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72)  # as SVG has it


def to_svg(figure: Canvas, name: str, title: str, description: str) -> str:
    """A figure as inline SVG: accessible, coloured by CSS variables, ids prefixed, the same bytes every time."""
    import matplotlib

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    layout = figure.get_layout_engine()
    if layout is not None:  # here, and then no more: saving would draw everything once just for it
        layout.execute(figure)
        with matplotlib.rc_context({"figure.constrained_layout.use": False}):
            figure.set_layout_engine(None)
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.S)  # would apply to the whole page
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    text = re.sub(r"<defs>\s*</defs>\s*", "", text)
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    text = re.sub(r'\sid="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(
        r"font(-family)?: ?([^;\"]*?)'DejaVu Sans'[^;\"]*", lambda m: f"font{m[1] or ''}: {m[2]}var(--sans)", text
    )
    text = re.sub(r"<g>\s*</g>\s*", "", text)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    width = box[1].split()[2]
    head = (
        f'<svg class="figure" viewBox="{box[1]}" style="max-width: {float(width):g}px" role="img" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(description)}</desc>'
    )
    body = text[text.index(">") + 1 :]
    return re.sub(r"\n\s*", "\n", head + body).strip()


def _styled(function: Any) -> Any:
    """Draw under the house style without touching matplotlib's global settings."""
    import functools

    @functools.wraps(function)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return function(*args, **kwargs)

    return drawn


def _percent(metric: Metric) -> float:
    return 100.0 if metric.percent else 1.0


# -- the metric with its intervals -------------------------------------------------------------------------------------


@_styled
def scores(s: Summary, name: str = "scores") -> Picture | None:
    """The primary metric of every participant with its interval, and the paired differences beside it."""
    rows = [r for r in s.rows if r.score is not None and math.isfinite(r.score.mean)]
    if not rows:
        return None
    paired = [r for r in rows if r.to_alone is not None and math.isfinite(r.to_alone.mean)]
    unit = _percent(s.metric)
    figure = canvas(1034, 84 + 38 * len(rows))
    axes = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1)) if paired else [figure.subplots()]
    left = axes[0]
    for i, r in enumerate(rows):
        assert r.score is not None
        y, colour = len(rows) - 1 - i, colour_of(s, r)
        if len(r.values) > 1:
            spread = [unit * v for v in r.values.values()]
            left.scatter(spread, [y - 0.22] * len(spread), s=14, color=colour, alpha=0.45, linewidths=0)
        if r.score.kind != "none":
            left.plot(
                [unit * r.score.low, unit * r.score.high], [y, y], color=colour, linewidth=3, solid_capstyle="butt"
            )
        left.plot([unit * r.score.mean], [y], markersize=10, **_mark(s, r))
    for level in rows:
        if level.role in ("teacher", "alone") and level.score is not None:
            dash = (0, (5, 3)) if level.role == "teacher" else (0, (1.5, 2))
            left.axvline(unit * level.score.mean, color=colour_of(s, level), linewidth=1.2, linestyle=dash, zorder=0.5)
    left.set_yticks(range(len(rows)), [r.name for r in reversed(rows)])
    left.tick_params(axis="y", length=0, labelcolor=INK, labelsize=12)
    _plain_axis(left)
    left.set_ylim(-0.6, len(rows) - 0.4)
    left.grid(axis="y", visible=False)
    left.margins(x=0.08)
    left.set_title(f"{s.metric.label}{' (%)' if s.metric.percent else ''}")
    if paired:
        right = axes[1]
        right.axvline(0, color=SOFT, linewidth=1.2)
        for i, r in enumerate(rows):
            if r not in paired:
                continue
            assert r.to_alone is not None
            y, e = len(rows) - 1 - i, r.to_alone
            colour = {1: GOOD, -1: BAD}.get(s.metric.better(float(e.sign)), SOFT)
            if e.kind != "none":
                right.plot([unit * e.low, unit * e.high], [y, y], color=colour, linewidth=3, solid_capstyle="butt")
            right.plot([unit * e.mean], [y], markersize=10, **{**_mark(s, r), "color": colour})
        low, high = right.get_xlim()
        reach = max(abs(low), abs(high), 1e-12)
        right.set_xlim(min(low, -0.12 * reach), max(high, 0.12 * reach))
        right.margins(x=0.1)
        right.tick_params(axis="y", length=0)
        _plain_axis(right)
        right.grid(axis="y", visible=False)
        right.set_title(f"{s.against[0]}{' (points)' if s.metric.percent else ''}")
    caption = {
        "seeds": "Marks are means over seeds with 95 % intervals, small dots single seeds. ",
        "items": "One seed: the bars are 95 % intervals over the test items. ",
        "none": "One seed, no interval. ",
    }[next((r.score.kind for r in rows if r.score and r.score.kind != "none"), "none")]
    if paired:
        seeds = any(r.to_alone is not None and r.to_alone.kind != "none" for r in paired)
        caption += (
            "On the right the same seeds are compared: a bar that crosses zero shows no difference."
            if seeds
            else "On the right the difference in this one run, which proves nothing by itself."
        )
    head = ["", s.metric.label, "low", "high", "seeds"]
    table = [
        [r.name, *(s.metric.value(v) for v in (r.score.mean, r.score.low, r.score.high)), str(max(1, len(r.values)))]
        for r in rows
        if r.score is not None
    ]
    known = any(r.score is not None and r.score.kind != "none" for r in rows)
    title = f"{s.metric.label[:1].upper()}{s.metric.label[1:]}{' with intervals' if known else ''}"
    said = "; ".join(f"{row[0]} {row[1]}" for row in table)
    return Picture(name, title, caption, to_svg(figure, name, title, said), head, table)


# -- size against quality ----------------------------------------------------------------------------------------------


@_styled
def size_and_quality(s: Summary, name: str = "size") -> Picture | None:
    """The primary metric over the number of parameters (or bytes)."""
    by = "parameters" if sum(r.parameters is not None for r in s.rows) > 1 else "bytes"
    rows = [r for r in s.rows if r.score is not None and math.isfinite(r.score.mean) and getattr(r, by)]
    low, high = min((getattr(r, by) for r in rows), default=1), max((getattr(r, by) for r in rows), default=1)
    if high < 1.2 * low:
        return None
    unit = _percent(s.metric)
    figure = canvas(488, 390)
    ax = figure.subplots()
    ax.set_xscale("log")
    for r in rows:
        assert r.score is not None
        # equal sizes stand side by side, or their intervals would hide each other
        same = [q for q in rows if getattr(q, by) == getattr(r, by)]
        place = same.index(r) - (len(same) - 1) / 2
        x, colour = getattr(r, by) * (high / low) ** (0.018 * place), colour_of(s, r)
        if r.score.kind != "none":
            ax.plot([x, x], [unit * r.score.low, unit * r.score.high], color=colour, linewidth=2, alpha=0.6)
        ax.plot([x], [unit * r.score.mean], markersize=10, **_mark(s, r))
    ax.set_xlim(low / (high / low) ** 0.25, high * (high / low) ** 0.25)
    ax.margins(y=0.12)
    one = sum(r.role == "teacher" for r in rows) == 1  # there is little room, and nobody takes it for another
    labels = [r.called if one and r.role == "teacher" else r.name for r in rows]
    _spread_labels(
        ax,
        [
            (getattr(r, by), unit * r.score.mean, label, r.role == "teacher")
            for r, label in zip(rows, labels, strict=True)
            if r.score
        ],
    )
    _log_ticks(ax, low, high, "B" if by == "bytes" else "")
    ax.set_xlabel("parameters, log scale" if by == "parameters" else "size, log scale")
    ax.set_title(f"{s.metric.label}{' (%)' if s.metric.percent else ''}")
    head = ["", by, s.metric.label]
    table = [
        [r.name, human(getattr(r, by), "B" if by == "bytes" else ""), s.metric.value(r.score.mean)]
        for r in rows
        if r.score
    ]
    title = "Size and quality"
    direction = "Up" if s.metric.higher_is_better else "Down"
    return Picture(
        name,
        title,
        f"{direction} is better, left is smaller.",
        to_svg(figure, name, title, "; ".join(" ".join(row) for row in table)),
        head,
        table,
    )


def _spread_labels(ax: Axes, points: Sequence[tuple[float, float, str, bool]]) -> None:
    """Names beside their points; names of points that lie close are moved apart."""
    low, high = ax.get_ylim()
    gap = (high - low) * 0.062
    for left in (False, True):
        side = sorted((p for p in points if p[3] == left), key=lambda p: p[1])
        places = [p[1] for p in side]
        for _ in range(50):
            for i in range(1, len(places)):
                lack = gap - (places[i] - places[i - 1])
                if lack > 1e-9:
                    places[i - 1] -= lack / 2
                    places[i] += lack / 2
        for (x, _, text, _), place in zip(side, places, strict=True):
            beside = x / _shift(ax) if left else x * _shift(ax)
            ax.text(beside, place, text, ha="right" if left else "left", va="center", fontsize=11.5)


def _shift(ax: Axes) -> float:
    low, high = ax.get_xlim()
    return float((high / low) ** 0.045)


def _log_ticks(ax: Axes, low: float, high: float, unit: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    first, last = ax.get_xlim()
    decades = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    steps = (1,) if last / first > 300 else (1, 3) if last / first > 12 else (1, 2, 5)
    ticks = [k * 10.0**d for d in decades for k in steps if first <= k * 10.0**d <= last]
    ax.xaxis.set_major_locator(FixedLocator(ticks or [low, high]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: re.sub(r"\.0+(?= |$)", "", human(x, unit))))


# -- samplers: quality by number of steps ------------------------------------------------------------------------------


@_styled
def by_steps(s: Summary, name: str = "steps") -> Picture | None:
    """How a sampler's metrics change with its number of steps, a panel for each metric and guidance weight."""
    found: dict[tuple[str, float], dict[str, list[tuple[int, float]]]] = {}
    for r in s.rows:
        for key, e in r.metrics.items():
            match = re.fullmatch(r"(fid|endpoint_mse)_w([0-9.e+-]+)_n(\d+)", key)
            if match and math.isfinite(e.mean):
                found.setdefault((match[1], float(match[2])), {}).setdefault(r.name, []).append((int(match[3]), e.mean))
    panels = {k: v for k, v in sorted(found.items()) if max(len(points) for points in v.values()) > 1}
    if not panels:
        return None
    weights = sorted({w for _, w in panels})[:4]
    quantities = sorted({q for q, _ in panels})
    figure = canvas(1034, 36 + 230 * len(quantities))
    axes = figure.subplots(len(quantities), len(weights), squeeze=False)
    floor = next((r.metrics["fid_floor"].mean for r in s.rows if "fid_floor" in r.metrics), None)
    handles: dict[str, Any] = {}
    table = []
    for i, quantity in enumerate(quantities):
        for j, w in enumerate(weights):
            ax, label = axes[i][j], metric_of(quantity).label
            for r in s.rows:
                points = sorted(panels.get((quantity, w), {}).get(r.name, []))
                if not points:
                    continue
                dash: Any = {"teacher": (0, (5, 2)), "alone": (0, (1.5, 1.5))}.get(r.role, "-")
                xs, ys = [n for n, _ in points], [y for _, y in points]
                (handles[r.name],) = ax.plot(xs, ys, linestyle=dash, markersize=7, **_mark(s, r))
                table += [[r.name, label, f"{w:g}", str(n), significant(y)] for n, y in points]
            if quantity == "fid" and floor is not None and floor > 0:
                ax.axhline(floor, color=SOFT, linewidth=1.1, linestyle=(0, (2, 3)))
            ax.set_xscale("log", base=2)
            values = [y for points in panels.get((quantity, w), {}).values() for _, y in points if y > 0]
            if values and max(values) / min(values) > 5:
                ax.set_yscale("log", nonpositive="mask")
                _plain_log(ax)
            else:
                _plain_linear(ax)
            ticks = sorted({n for points in panels.get((quantity, w), {}).values() for n, _ in points})
            ax.set_xticks(ticks, [str(n) for n in ticks])
            ax.minorticks_off()
            ax.set_title(f"{label}, w = {w:g}")
            if i == len(quantities) - 1:
                ax.set_xlabel("steps")
    known = [r.name for r in s.rows if r.name in handles]
    figure.legend(
        [handles[x] for x in known], known, loc="outside upper left", ncols=min(5, len(known)), handlelength=2.6
    )
    title = "Quality by number of steps"
    caption = "Lower is better; w is the guidance weight."
    if floor is not None and "fid" in quantities:
        caption += (
            " The dotted line is the Fréchet distance of real samples from real samples: nothing can be told below it."
        )
    svg = to_svg(
        figure, name, title, "; ".join(f"{row[0]}, {row[1]}, w {row[2]}, {row[3]} steps: {row[4]}" for row in table)
    )
    return Picture(name, title, caption, svg, ["", "metric", "w", "steps", "value"], table)


# -- reliability -------------------------------------------------------------------------------------------------------


@_styled
def reliability(
    bins: Mapping[str, Mapping[str, Sequence[float]]], s: Summary, name: str = "reliability"
) -> Picture | None:
    """How often a participant is right when it says how sure it is.

    Args:
        bins: by row name: ``confidence``, ``accuracy`` and ``count`` of each bin.
    """
    found = []
    for r in s.rows:
        b = bins.get(r.name)
        if b is None:
            continue
        triples = [
            (float(c), float(a), int(n))
            for c, a, n in zip(b["confidence"], b["accuracy"], b["count"], strict=True)
            if n > 0 and math.isfinite(c) and math.isfinite(a)
        ]
        if triples:
            found.append((r, triples))
    if not found:
        return None
    from matplotlib.lines import Line2D

    handles: list[Line2D] = []
    figure = canvas(488, 420)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    top.plot([0, 100], [0, 100], color=SOFT, linewidth=1.1, linestyle=(0, (2, 3)))
    table = []
    for i, (r, triples) in enumerate(found):
        colour, total = colour_of(s, r), sum(n for *_, n in triples)
        dash: Any = {"teacher": (0, (5, 2)), "alone": (0, (1.5, 1.5))}.get(r.role, "-")
        xs, ys = [100 * c for c, _, _ in triples], [100 * a for _, a, _ in triples]
        # a bin of a few answers jumps about: it is shown faintly, and no line is led through it
        firm = [t for t in triples if t[2] >= max(FEW, 0.005 * total)]
        top.plot([100 * t[0] for t in firm], [100 * t[1] for t in firm], color=colour, linestyle=dash, linewidth=1.8)
        handles.append(Line2D([], [], color=colour, linestyle=dash, linewidth=1.8, label=r.name))
        top.scatter(
            xs,
            ys,
            s=[8 + 110 * math.sqrt(n / total) for *_, n in triples],
            color=colour,
            linewidths=0.6,
            edgecolors=PAGE,
            alpha=[1.0 if t in firm else 0.35 for t in triples],
        )
        width = 5.2 / len(found)
        shift = (i - (len(found) - 1) / 2) * width
        bottom.bar(
            [x + shift for x in xs],
            [100 * n / total for *_, n in triples],
            width=width * 0.9,
            color=colour,
            linewidth=0,
        )
        table += [[r.name, f"{100 * c:.1f} %", f"{100 * a:.1f} %", str(n)] for c, a, n in triples]
    low = max(0.0, min(min(c, a) for _, t in found for c, a, _ in t) * 100 - 6)
    top.set_xlim(low, 103)
    top.set_ylim(low, 103)
    top.set_title("right (%)")
    figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(handles)), handlelength=2.6)
    bottom.set_title("share of the answers (%)", fontsize=11.5)
    bottom.set_xlabel("confidence (%)")
    bottom.grid(axis="x", visible=False)
    title = "Calibration"
    return Picture(
        name,
        title,
        "On the dotted line a network is right as often as it is sure; below it, it is over-confident. "
        f"Larger marks hold more answers; no line leads through those of fewer than {FEW}.",
        to_svg(
            figure,
            name,
            title,
            "Share of right answers over stated confidence for " + ", ".join(r.name for r, _ in found),
        ),
        ["", "confidence", "right", "answers"],
        table,
    )


# -- classes and numbers -----------------------------------------------------------------------------------------------

MOST_CLASSES: Final = 40
"""Classes up to which a confusion matrix can be read."""


@_styled
def confusion(
    counts: Mapping[str, Sequence[Sequence[int]]] | None, labels: Sequence[str] | None, name: str = "confusion"
) -> Picture | None:
    """Which class is taken for which, drawn for the student; precision, recall and F1 of every class and row as numbers.

    Args:
        counts: by row, test items [true class][predicted class].
        labels: names of the classes.
    """
    table = (counts or {}).get("student")
    if not table or not sum(map(sum, table)):
        return None
    n = len(table)
    names = [visible(str(x)) for x in labels] if labels and len(labels) == n else [str(i) for i in range(n)]
    totals = [sum(row) for row in table]
    most = max(range(n), key=totals.__getitem__)
    title = "Confusion matrix of the student" if n <= MOST_CLASSES else "The student by class"
    share = 100 * totals[most] / sum(totals)
    caption = f"Always answering {names[most]} would be right on {share:.1f} % of the test items."
    svg = ""
    if n <= MOST_CLASSES:
        caption = f"Rows: the true class; columns: the student's answer; shades: share of the true class. {caption}"
        side = min(560, max(300, 150 + 26 * n))
        figure = canvas(side, side)
        ax = figure.subplots()
        for i, row in enumerate(table):
            for j, count in enumerate(row):
                if not count:
                    continue
                part = count / totals[i]
                colour = SERIES[1] if i == j else BAD
                ax.add_patch(_square(j, i, colour, 0.12 + 0.78 * part))
                if n <= 20:
                    ax.text(
                        j,
                        i,
                        str(count),
                        ha="center",
                        va="center",
                        fontsize=11 if n <= 12 else 8,
                        color=PAGE if part > 0.5 else INK,
                    )
        ax.set_xlim(-0.5, n - 0.5)
        ax.set_ylim(n - 0.5, -0.5)
        ax.set_aspect("equal")
        ax.grid(visible=False)
        short = [x if len(x) <= 14 else x[:13] + "…" for x in names]
        ax.set_xticks(range(n), short, rotation=90 if max(map(len, short)) > 2 else 0)
        ax.set_yticks(range(n), short)
        ax.set_xlabel("answer")
        ax.set_ylabel("true class")
        svg = to_svg(figure, name, title, f"Confusion matrix over {n} classes")
    rows = []
    for role, found in (counts or {}).items():
        for c in range(n):
            right, said, true = found[c][c], sum(found[i][c] for i in range(n)), sum(found[c])
            precision, recall = right / said if said else math.nan, right / true if true else math.nan
            f1 = 2 * right / (said + true) if said + true else math.nan
            cells = [f"{100 * v:.1f} %" if math.isfinite(v) else "–" for v in (precision, recall, f1)]
            rows.append([names[c] if role == "student" else f"{names[c]} ({role})", *cells, str(true)])
    return Picture(name, title, caption, svg, ["class", "precision", "recall", "F1", "test items"], rows)


def by_label(found: Mapping[str, Mapping[str, Mapping[str, float]]] | None, name: str = "labels") -> Picture | None:
    """Precision, recall and F1 of each of several labels, by row: numbers without a drawing."""
    if not found:
        return None
    rows = []
    for role, labels in found.items():
        for label, v in labels.items():
            cells = [f"{100 * v[k]:.1f} %" for k in ("precision", "recall", "f1")]
            rows.append([label if role == "student" else f"{label} ({role})", *cells, str(int(v["items"]))])
    return Picture(name, "By label", "", "", ["label", "precision", "recall", "F1", "test items with it"], rows)


def _square(x: float, y: float, colour: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=colour, alpha=alpha, linewidth=0)


@_styled
def against_truth(
    points: Mapping[str, Mapping[str, Sequence[float]]] | None, s: Summary, name: str = "truth"
) -> Picture | None:
    """Numbers that the student answers over the true ones, one panel a target.

    Args:
        points: by target: ``true`` and ``predicted`` of some test items, in the data's units.
    """
    if not points:
        return None
    targets = list(points)[:4]
    figure = canvas(488, 300 * len(targets))
    panels = figure.subplots(len(targets), 1, squeeze=False)[:, 0]
    for ax, target in zip(panels, targets, strict=True):
        true, said = ([float(v) for v in points[target][k]] for k in ("true", "predicted"))
        low, high = min(*true, *said), max(*true, *said)
        ax.plot([low, high], [low, high], color=SOFT, linewidth=1.1, linestyle=(0, (2, 3)))
        ax.scatter(true, said, s=14, color=SERIES[0], alpha=0.6, linewidths=0)
        ax.set_title(visible(str(target)))
        ax.set_xlabel("true")
        ax.set_ylabel("predicted")
    title = "Predicted against true"
    return Picture(
        name,
        title,
        f"Each mark is one of {len(points[targets[0]]['true'])} test items; on the dotted line the student is right.",
        to_svg(figure, name, title, "Predicted over true values of " + ", ".join(map(str, targets))),
    )


# -- training curves ---------------------------------------------------------------------------------------------------


@dataclass
class Curve:
    """One line: its name, colour index and points."""

    label: str
    points: list[tuple[float, float]]


@_styled
def curves(
    panels: Mapping[str, Sequence[Curve]], name: str, title: str, caption: str, order: Sequence[str] = ()
) -> Picture | None:
    """Small panels, one a quantity, all over the optimiser's step.

    Args:
        panels: quantity: its curves.
        order: every label of the figure, which fixes the colours; a single label is drawn without a legend.
    """
    shown = {q: [c for c in cs if len(c.points) > 1] for q, cs in panels.items()}
    shown = {q: cs for q, cs in shown.items() if cs}
    if not shown:
        return None
    labels = list(order) or list(dict.fromkeys(c.label for cs in shown.values() for c in cs))
    across = min(3, len(shown))
    down = math.ceil(len(shown) / across)
    figure = canvas(1034, (34 if len(labels) > 1 else 8) + (250 if across < 3 else 210) * down)
    grid = figure.subplots(down, across, squeeze=False)
    handles: dict[str, Any] = {}
    table = []
    for ax, (quantity, lines) in zip(grid.flat, shown.items(), strict=False):
        # a term is called as its method calls it; only what is measured on a split is a metric
        metric = (
            metric_of(quantity) if "/" in quantity and not quantity.startswith("lr/") else Metric(quantity, quantity)
        )
        unit = _percent(metric)
        for line in lines:
            i = labels.index(line.label)
            points = thin(line.points)
            xs, ys = [x for x, _ in points], [unit * y if math.isfinite(y) else math.nan for _, y in points]
            rate = quantity == "lr" or quantity.startswith("lr/")
            (handles[line.label],) = ax.plot(
                xs,
                ys,
                color=SOFT if rate and len(labels) == 1 else SERIES[i % len(SERIES)],
                linestyle=DASHES[i % len(DASHES)],
                linewidth=1.8,
                marker=MARKERS[i % len(MARKERS)] if len(points) <= 12 else None,
                markersize=4,
            )
            last = line.points[-1]
            table.append([line.label, metric.label, f"{last[0]:g}", metric.value(last[1])])
        values = [y for line in lines for _, y in line.points if math.isfinite(y)]
        if (
            values
            and min(values) > 0
            and max(values) / min(values) > 30
            and not quantity.startswith("lr")
            and not metric.percent
        ):
            ax.set_yscale("log")
            _plain_log(ax)
        else:
            _plain_linear(ax)
        ax.set_title(f"{metric.label}{' (%)' if metric.percent else ''}")
        ax.margins(x=0.02)
        _plain_steps(ax)
    for ax in list(grid.flat)[len(shown) :]:
        ax.set_visible(False)
    for ax in grid[-1]:
        ax.set_xlabel("step")
    if len(labels) > 1:
        known = [label for label in labels if label in handles]
        figure.legend(
            [handles[x] for x in known], known, loc="outside upper left", ncols=min(6, len(known)), handlelength=2.4
        )
    said = "; ".join(f"{row[1]} of {row[0]} ends at {row[3]}" for row in table)
    return Picture(
        name, title, caption, to_svg(figure, name, title, said), ["", "quantity", "last step", "last value"], table
    )


def _plain_steps(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if abs(x) < 1e4 else f"{x / 1e3:g}k"))


def _plain_axis(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.6g}".replace("-", "−")))


def _plain_linear(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.6g}".replace("-", "−")))


def _plain_log(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 3.0), numticks=6))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.6g}"))


def thin(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """At most ``most`` points: means over stretches of equal length, so that noise is not cut away at random.

    Stretches that hold a value that is not finite are left as gaps.
    """
    if len(points) <= most:
        return list(points)
    thinned = []
    for i in range(most):
        part = points[i * len(points) // most : (i + 1) * len(points) // most]
        thinned.append(
            (mean(x for x, _ in part), mean(y for _, y in part) if all(math.isfinite(y) for _, y in part) else math.nan)
        )
    return thinned


__all__ = [
    "Curve",
    "Picture",
    "against_truth",
    "by_label",
    "by_steps",
    "confusion",
    "curves",
    "reliability",
    "scores",
    "size_and_quality",
    "to_svg",
]
