"""The leaderboard as Markdown: what helps beside the student alone and beside plain KD, and what has not been run.

Made from ``evidence/leaderboard/*.json`` and the list of what is planned, ``evidence/list/leaderboard.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from docs import evidence
from docs.markdown import table
from limbeck.report.inference import holm
from limbeck.report.metrics import Metric, metric_of
from limbeck.report.statistics import p_value, paired, t_interval

LEVEL = 0.05
"""Of all comparisons on the page together, after Holm."""

MATCHED = {
    "nothing": ("alone", "smoothing", "uskd"),
    "logits": ("kd", "dkd", "nkd", "dist", "bd-kd", "tgeo-kd", "mixup-kd", "hard"),
    "features": ("fitnets", "at", "vid", "nst", "review", "simkd", "nd-kd"),
    "relations": ("rkd", "sp", "cc", "pkt", "crd", "trg"),
}
"""What of the teacher each row matches."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A row's difference to another row in one comparison, over the seeds that both have."""

    mean: float
    low: float
    high: float
    n: int
    p: float


def planned() -> dict[str, list[str]]:
    """The comparisons of the leaderboard, each with its rows, in the list's order."""
    text = (evidence.EVIDENCE / "list" / "leaderboard.yaml").read_text(encoding="utf-8")
    return {name: list(entry["rows"]) for name, entry in yaml.safe_load(text)["comparisons"].items()}


def measured() -> dict[str, Record]:
    """What has been run of them, by name."""
    return {r["name"]: r for r in evidence.records() if r["name"].startswith("leaderboard/")}


def values(record: Record, label: str) -> dict[int, float]:
    """A row's metric by seed."""
    return {r["seed"]: r["metrics"]["student"][record["primary"]] for r in record["runs"].get(label, [])}


def against(record: Record | None, label: str, over: str) -> Cell | None:
    """A row beside another; ``None`` where one of them has not been run."""
    if record is None or label == over:
        return None
    own, other = values(record, label), values(record, over)
    e = paired(own, other)
    if e is None:
        return None
    return Cell(e.mean, e.low, e.high, e.n, p_value([own[s] - other[s] for s in own if s in other]))


def leaderboard(*_: str) -> str:
    """Both tables of differences, every comparison's own table, and what is still to be run."""
    return "\n\n".join(parts(planned(), measured()))


def parts(asked: Mapping[str, Sequence[str]], found: Mapping[str, Record]) -> Iterator[str]:
    """The page's parts, for what is planned and what was run."""
    done = sum(len(found[n]["runs"]) for n in asked if n in found)
    rows = sum(map(len, asked.values()))
    yield f"**{done} of {rows} rows have been run** ({', '.join(progress(asked, found))})."
    if not done:
        yield "Nothing can be said yet: `python evidence/run.py --next` runs a row."
        return
    labels = list(dict.fromkeys(label for labels in asked.values() for label in labels))
    cells = {
        (over, name, label): cell
        for over in ("alone", "kd")
        for name in asked
        for label in labels
        if not (over == "kd" and label == "alone")
        if (cell := against(found.get(name), label, over)) is not None
    }
    known = [key for key, cell in cells.items() if math.isfinite(cell.p)]
    adjusted = dict(zip(known, holm([cells[k].p for k in known]), strict=True))
    for over, title in (("alone", "Beside the student alone"), ("kd", "Beside plain KD")):
        yield f"### {title}"
        yield "\n".join(sentences(over, asked, cells, adjusted, found))
        yield differences(over, asked, labels, cells, adjusted, found)
    for name in asked:
        if name in found:
            yield own_table(found[name])
    yield "### Not run yet"
    yield "\n".join(waiting(asked, found)) or "Every row has been run."


def progress(asked: Mapping[str, Sequence[str]], found: Mapping[str, Record]) -> Iterator[str]:
    """How far each comparison is."""
    for name, labels in asked.items():
        yield f"{short(name)}: {len(found[name]['runs']) if name in found else 0} of {len(labels)}"


def short(name: str) -> str:
    """A comparison in a head: ``leaderboard/fashion-500`` is ``fashion-500``."""
    return name.partition("/")[2]


def waiting(asked: Mapping[str, Sequence[str]], found: Mapping[str, Record]) -> Iterator[str]:
    """The rows that are still to be run, a line a comparison."""
    for name, labels in asked.items():
        later = [f"`{label}`" for label in labels if label not in found.get(name, {"runs": {}})["runs"]]
        if later:
            yield f"- **{short(name)}**: {', '.join(later)}"


Key = tuple[str, str, str]


def verdict(key: Key, cells: Mapping[Key, Cell], adjusted: Mapping[Key, float], better: float = 1.0) -> str:
    """``helps``, ``hurts``, or nothing where no difference is shown; ``better`` is -1 where lower values are."""
    if adjusted.get(key, 1.0) >= LEVEL:
        return ""
    return "helps" if better * cells[key].mean > 0 else "hurts"


def sentences(
    over: str,
    asked: Mapping[str, Sequence[str]],
    cells: Mapping[Key, Cell],
    adjusted: Mapping[Key, float],
    found: Mapping[str, Record],
) -> Iterator[str]:
    """What the table says, a line a comparison."""
    for name, labels in asked.items():
        keys = [(over, name, label) for label in labels if (over, name, label) in cells]
        if not keys:
            yield f"- **{short(name)}**: not run yet."
            continue
        better = 1.0 if found[name].get("higher_is_better", True) else -1.0
        told = {
            w: [f"`{k[2]}`" for k in keys if verdict(k, cells, adjusted, better) == w] for w in ("helps", "hurts", "")
        }
        said = [
            f"better are {', '.join(told['helps'])}" if told["helps"] else "none is shown to be better",
            f"worse are {', '.join(told['hurts'])}" if told["hurts"] else "none is shown to be worse",
            f"no difference is shown for {', '.join(told[''])}" if told[""] else "",
        ]
        yield f"- **{short(name)}**, of {len(keys)} rows: {'; '.join(filter(None, said))}."


def differences(
    over: str,
    asked: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    cells: Mapping[Key, Cell],
    adjusted: Mapping[Key, float],
    found: Mapping[str, Record],
) -> str:
    """A row a method, a column a comparison; the best of the first comparison on top."""
    kind = {label: signal for signal, names in MATCHED.items() for label in names}

    def place(label: str) -> tuple[float, ...]:
        means = [cells[over, n, label].mean if (over, n, label) in cells else -math.inf for n in asked]
        return tuple(-m for m in means)

    names = [n for n in asked if any(key[:2] == (over, n) for key in cells)]
    shown = [label for label in labels if any((over, n, label) in cells for n in names)]
    body = []
    for label in sorted(shown, key=place):
        row = [f"`{label}`", kind.get(label, "")]
        for name in names:
            cell = cells.get((over, name, label))
            if cell is None:
                row.append("not run yet" if label in asked[name] else "left out")
                continue
            metric = metric_of(found[name]["primary"], found[name].get("higher_is_better"))
            better = 1.0 if found[name].get("higher_is_better", True) else -1.0
            said = verdict((over, name, label), cells, adjusted, better)
            row.append(written(metric, cell) + (f" **{said}**" if said else ""))
        body.append(row)
    return table(("", "matched", *(short(n) for n in names)), body)


def written(metric: Metric, cell: Cell) -> str:
    """A difference with its interval."""
    text = metric.difference(cell.mean, False)
    if cell.n < 2:
        return f"{text} (one seed)"
    return f"{text} [{metric.difference(cell.low, False)}, {metric.difference(cell.high, False)}]"


def own_table(record: Record) -> str:
    """A comparison's rows by their means, with what was found for each and what a run cost."""
    metric = metric_of(record["primary"], record.get("higher_is_better"))
    unit = ", %" if metric.percent else ""
    sign = -1 if record.get("higher_is_better", True) else 1
    means = {label: t_interval(list(values(record, label).values())).mean for label in record["runs"]}
    body = []
    for label in sorted(means, key=lambda label: sign * means[label]):
        tuned = record.get("tuned", {}).get(label, {})
        settings = ", ".join(
            f"`{k}={v:g}`" if isinstance(v, float) else f"`{k}={v}`" for k, v in tuned.get("settings", {}).items()
        )
        runs = record["runs"][label]
        spent = sum(r["cost"].get("cpu_seconds") or 0.0 for r in runs) / len(runs)
        interval = evidence.interval(metric, list(values(record, label).values()))
        body.append((f"`{label}`", interval, str(len(runs)), settings, f"{spent:.0f}"))
    teachers = [r["metrics"].get("teacher", {}).get(record["primary"]) for rs in record["runs"].values() for r in rs]
    known = [v for v in teachers if v is not None]
    said = f" The teacher has {metric.value(sum(known) / len(known))}." if known else ""
    head = ("", f"{metric.label}{unit}, mean [95 %]", "seeds", "settings that were found", "CPU seconds a run")
    return "\n\n".join([f"### {short(record['name'])}", f"{record['say']}{said}", table(head, body)])


__all__ = ["leaderboard", "measured", "parts", "planned"]
