"""The page: a run folder or a comparison folder as one self-contained HTML file without JavaScript."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np

from limbeck.engine.logs import read_log
from limbeck.errors import DataError, human
from limbeck.report import figures
from limbeck.report.advice import advice
from limbeck.report.figures import Curve, Picture, variable_of
from limbeck.report.headline import footnotes, headline
from limbeck.report.metrics import metric_of
from limbeck.report.numbers import duration, ratio, significant
from limbeck.report.statistics import mean
from limbeck.report.students import listed
from limbeck.report.summary import Row, Summary, summarise
from limbeck.report.table import grid
from limbeck.storage.plain import read_bytes, read_json

LARGEST_IMAGE: Final = 4 * 2**20
MOST_PANELS: Final = 9


@dataclass
class Sample:
    """A image that a run left: its title, caption, PNG as a data URI, and how wide it is shown, in pixels."""

    title: str
    caption: str
    uri: str
    width: int


@dataclass
class Tile:
    """One figure to take away: the number, what it is, what it is compared with."""

    value: str
    label: str
    detail: str = ""
    tone: str = ""


def load(folder: Path) -> tuple[dict[str, Any], str]:
    """A folder's ``comparison.json`` or ``result.json``, and which of the two it is.

    Raises:
        DataError: there is neither, or it cannot be read.
    """
    for name, kind in (("comparison.json", "comparison"), ("result.json", "run")):
        path = folder / name
        if not path.exists():
            continue
        try:
            data = read_json(path)
            needed = ("primary", "higher_is_better", "rows" if kind == "comparison" else "metrics")
            missing = [key for key in needed if key not in data]
        except OSError as error:
            raise DataError(str(path), f"cannot be read: {error.strerror}") from None
        except (ValueError, TypeError):
            raise DataError(
                str(path), "this is not a result that can be read", expected="JSON as a run writes it"
            ) from None
        if missing:
            raise DataError(str(path), f"the result lacks {', '.join(missing)}", remedy="repeat the run with --force")
        return data, kind
    raise DataError(
        str(folder),
        "there is no result here",
        expected="a folder with result.json or comparison.json",
        remedy="a run writes it when it is finished; 'limbeck run' in the same folder goes on",
    )


def render(folder: Path) -> str:
    """The page of a run folder or a comparison folder, as HTML."""
    import jinja2

    folder = Path(folder)
    data, kind = load(folder)
    s = summarise(data)
    runs = _runs(data, kind, folder)
    first = runs[0][1] if kind == "run" else {}
    pictures = [figures.scores(s) if len(s.rows) > 1 else None, figures.by_steps(s)]
    half = [figures.size_and_quality(s), figures.reliability(_bins(s, runs), s)]
    half += [
        figures.confusion(first.get("confusion"), first.get("labels")),
        figures.against_truth(first.get("truth"), s),
    ]
    training = _curves(s, runs, kind)
    notes = list(s.notes)
    samples = _samples(runs, notes, kind)
    config = folder / "config.yaml"
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = resources.files("limbeck.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    found = grid(s)
    example = runs[0][1] if runs else {}
    environment.filters["set"] = typeset
    text: str = environment.from_string(source).render(
        title=_title(s, example),
        subtitle=_subtitle(s, example),
        headline=headline(s),
        advice=advice(data, read_log(folder)) if kind == "run" else [],
        tiles=_tiles(s),
        columns=found.columns,
        rows=[(r, variable_of(s, r), cells) for r, cells in found.rows],
        best=[r.name for r in s.winners()],
        footnotes=footnotes(s),
        pictures=[p for p in pictures if p is not None],
        halves=[p for p in half if p is not None],
        training=training,
        samples=samples,
        shown=example.get("example") if kind == "run" else None,
        metrics=_all_metrics(s, runs, kind),
        timings=_timings(s, runs),
        tables=tables_of(first) if kind == "run" else [],
        classes=_classes(example),
        exports=_exports(first) if kind == "run" else [],
        notes=notes,
        config=read_bytes(config).decode("utf-8", "replace") if config.is_file() else "",
        versions=_shared(runs, "versions"),
        hardware=_shared(runs, "hardware"),
        kind=kind,
        safe=_safe,
    )
    return text


def write(folder: Path) -> Path:
    """Write ``report.html`` into the folder and return its path."""
    from limbeck.storage.disk import atomic_write

    path = Path(folder) / "report.html"
    atomic_write(path, render(Path(folder)).encode())
    return path


def typeset(text: str) -> str:
    """Text for a page: true minus signs, and units that stay with their numbers."""
    text = re.sub(r"\[([^\s,\[\]]+), ([^\s,\[\]]+)\]", "[\\1,\u00a0\\2]", str(text))
    text = re.sub(r"(?<![\w.)\]])-(?=\d)", "\u2212", text)
    return re.sub(r"(?<=\d) (?=(?:%|points?|[kMGT]?B|[kMGT]|ms|s|min|h|times)(?![\w-]))", "\u00a0", text)


def _safe(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # drawn here, every text in it escaped by matplotlib


def _runs(data: Mapping[str, Any], kind: str, folder: Path) -> list[tuple[str, Mapping[str, Any], Path | None]]:
    """Every run: its row, its result, its folder where there is one."""
    if kind == "run":
        return [(summarise(data).methods[0].name, data, folder)]
    found: list[tuple[str, Mapping[str, Any], Path | None]] = []
    for label, runs in data["rows"].items():
        for result in runs.values():
            where = result.get("folder")
            path = (folder / str(where)) if where else None
            found.append((str(label), result, path if path is not None and path.is_dir() else None))
    return found


def _title(s: Summary, first: Mapping[str, Any]) -> str:
    if s.kind == "comparison":
        names = [r.name for r in s.methods]
        return (
            ", ".join(names[:-1]) + f" and {names[-1]}"
            if 1 < len(names) <= 5
            else f"{len(names)} methods"
            if names
            else "Nothing"
        )
    return str(first.get("recipe") or first.get("method") or "run")


def _subtitle(s: Summary, first: Mapping[str, Any]) -> str:
    parts = ["comparison" if s.kind == "comparison" else "run"]
    if s.task:
        parts.append(s.task)
    parts.append(f"{len(s.seeds)} seeds" if len(s.seeds) > 1 else f"seed {s.seeds[0]}" if s.seeds else "no seed")
    if s.kind == "run" and _finite(first.get("wall_seconds")):
        parts.append(f"{duration(first['wall_seconds'])} in all")
    return " · ".join(parts)


def _finite(x: Any) -> bool:
    return isinstance(x, (int, float)) and math.isfinite(x)


def _tiles(s: Summary) -> list[Tile]:
    groups = [(g, best) for g in s.alike() if (best := s.best(g)) is not None]
    if len(groups) == 1:
        return _tiles_of(s, groups[0][1], f"best mean: {groups[0][1].name}")
    # of several students each has its value and its gain, and no more: what is side by side would be compared
    return [
        tile
        for group, best in groups
        for tile in _tiles_of(
            s, best, best.name if len(group) == 1 else f"best mean of {listed([r.name for r in group])}: {best.name}"
        )[: 1 if best.to_alone is None else 2]
    ]


def _tiles_of(s: Summary, best: Row, who: str) -> list[Tile]:
    if best.score is None:
        return []
    m = s.metric
    if s.kind == "run":
        who = "data set" if s.artifact == "dataset" else "student"
    points = "points " if m.percent else ""
    tiles = [Tile(m.value(best.score.mean), m.label, who)]
    teacher, alone = best.teacher, best.alone
    if best.to_alone is not None and math.isfinite(best.to_alone.mean):
        e = best.to_alone
        tone = {1: "good", -1: "bad"}.get(m.better(float(e.sign)), "")
        detail = (
            "n=1"
            if e.kind == "none"
            else f"[{m.difference(e.low, False)}, {m.difference(e.high, False)}] over {e.n} seeds"
        )
        name = "the student alone" if alone is None or alone.called == "student alone" else alone.called
        tiles.append(Tile(m.difference(e.mean, False), f"{points}against {name}", detail, tone))
    if teacher is not None and teacher.score is not None:
        tiles.append(
            Tile(
                m.difference(best.score.mean - teacher.score.mean, False),
                f"{points}against {'the teacher' if teacher.called == 'teacher' else teacher.called}",
                f"{m.value(teacher.score.mean)} there",
            )
        )
    if s.artifact == "network" and teacher is not None and teacher.score is not None:
        if teacher.parameters and best.parameters:
            scale = teacher.parameters / best.parameters
            word = "smaller" if scale >= 1 else "larger"
            detail = f"{human(best.parameters)} of {human(teacher.parameters)} parameters"
            tiles.append(Tile(f"{ratio(max(scale, 1 / scale))}×", word, detail))
        if teacher.latency_ms and best.latency_ms:
            scale = teacher.latency_ms / best.latency_ms
            word = "faster" if scale >= 1 else "slower"
            detail = f"{significant(best.latency_ms, 2)} of {significant(teacher.latency_ms, 2)} ms for one item"
            if best.faster_than(teacher) is None:
                tiles.append(Tile("≈", "as fast", f"{detail}, within their scatter"))
            else:
                tiles.append(Tile(f"{ratio(max(scale, 1 / scale))}×", word, detail))
    ece = best.metrics.get("ece")
    if ece is not None and alone is not None and "ece" in alone.metrics:
        error = metric_of("ece")
        whose = "alone" if alone.called == "student alone" else f"for {alone.called}"
        tiles.append(Tile(error.value(ece.mean), error.label, f"{error.value(alone.metrics['ece'].mean)} {whose}"))
    return tiles


def _bins(s: Summary, runs: Sequence[tuple[str, Mapping[str, Any], Path | None]]) -> dict[str, Any]:
    """Reliability bins by row name: of a comparison, those of the first seed of each method."""
    found: dict[str, Any] = {}
    for label, result, _ in runs:
        calibration = result.get("calibration")
        if not isinstance(calibration, Mapping):
            continue
        own = next((r for r in s.methods if r.name == label), None)
        names = {"student": label}
        for role, other in (("teacher", own.teacher), ("alone", own.alone)) if own is not None else ():
            if other is not None:
                names[role] = other.name
        for role in ("teacher", "alone", "student"):
            row, bins = names.get(role), calibration.get(role)
            if row is not None and isinstance(bins, Mapping) and {"confidence", "accuracy", "count"} <= bins.keys():
                found.setdefault(row, bins)
    if len(found) > 4 and s.kind == "comparison":
        keep = {r.name for r in s.rows if r.role != "method"} | {s.reference or ""}
        keep |= {best.name for g in s.alike() if (best := s.best(g)) is not None}
        found = {k: v for k, v in found.items() if k in keep}
    return found


def _series(rows: Iterable[Mapping[str, Any]], stage: str) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["stage"] == stage:
            for key, value in row.items():
                if key not in ("stage", "step", "wall") and isinstance(value, (int, float)):
                    found.setdefault(key, []).append((float(row["step"]), float(value)))
    return found


def _ordered(quantities: Iterable[str]) -> list[str]:
    """Losses first, then metrics on the validation split, rates last; each in the order of the log."""
    quantities = list(quantities)
    return sorted(
        quantities, key=lambda q: (2 if q == "lr" or q.startswith("lr/") else 1 if "/" in q else 0, quantities.index(q))
    )


def _curves(s: Summary, runs: Sequence[tuple[str, Mapping[str, Any], Path | None]], kind: str) -> list[Picture]:
    logs = [(label, read_log(path)) for label, _, path in runs if path is not None]
    stages = list(dict.fromkeys(row["stage"] for _, rows in logs for row in rows))
    pictures = []
    order = [r.name for r in s.methods]
    for number, stage in enumerate(stages):
        gathered: dict[str, dict[str, list[list[tuple[float, float]]]]] = {}
        for label, rows in logs:
            for quantity, points in _series(rows, stage).items():
                gathered.setdefault(quantity, {}).setdefault(label, []).append(points)
        chosen = _ordered(gathered)
        left_out = len(chosen) - MOST_PANELS
        panels = {
            q: [Curve(label, average(lines)) for label, lines in gathered[q].items()] for q in chosen[:MOST_PANELS]
        }
        caption = "Means over seeds. " if any(len(v) > 1 for q in gathered.values() for v in q.values()) else ""
        caption += f"{left_out} more quantities are in the log. " if left_out > 0 else ""
        picture = figures.curves(
            panels,
            f"curves{number}",
            f"Stage {stage}",
            caption.strip(),
            order if kind == "comparison" and len(order) > 1 else (),
        )
        if picture is not None:
            pictures.append(picture)
    return pictures


def average(lines: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean of several curves over the steps that all of them have."""
    if len(lines) == 1:
        return list(lines[0])
    tables = [dict(line) for line in lines]
    shared = [step for step in tables[0] if all(step in t for t in tables[1:])]
    return [(step, mean(t[step] for t in tables)) for step in shared]


def _samples(runs: Sequence[tuple[str, Mapping[str, Any], Path | None]], notes: list[str], kind: str) -> list[Sample]:
    """The images of the first run of each row."""
    found: list[Sample] = []
    seen: set[str] = set()
    for label, result, folder in runs:
        listed: list[Mapping[str, Any]] = []
        for key in ("pictures", "images"):
            given = result.get(key)
            listed += [given] if isinstance(given, Mapping) else [p for p in given or () if isinstance(p, Mapping)]
        if not listed or label in seen:
            continue
        seen.add(label)
        for picture in listed:
            title, data, way = str(picture.get("title", "samples")), b"", "top to bottom"
            if "pixels" in picture:
                rows, tall = picture["pixels"], False
                if isinstance(rows, list) and all(isinstance(row, list) for row in rows):
                    tall = len(rows) > 1.5 * max(map(len, rows), default=0)
                if tall:  # a sheet is easier to look at when it lies
                    most, way = max(map(len, rows)), "left to right"
                    rows = [[row[i] for row in rows if i < len(row)] for i in range(most)]
                data = _sheet(rows)
            elif folder is not None:
                path = folder / str(picture.get("file", ""))
                try:
                    inside = path.resolve().is_relative_to(folder.resolve())
                    data = read_bytes(path, LARGEST_IMAGE) if inside else b""
                except OSError:
                    data = b""
            if not data.startswith(b"\x89PNG\r\n\x1a\n"):
                notes.append(
                    f"The image {str(picture.get('file', title))!r} is not shown: "
                    "it is missing, too large or no PNG of this run."
                )
                continue
            uri = "data:image/png;base64," + base64.b64encode(data).decode()
            names = picture.get("rows") or picture.get("labels") or []
            caption = str(picture.get("caption", ""))
            if names and not caption:
                caption = f"From {way}: " + "; ".join(str(n) for n in names)
            across, down = (max(1, int.from_bytes(data[i : i + 4], "big")) for i in (16, 20))
            width = round(across * min(940 / across, 640 / down, 12.0))
            found.append(Sample(f"{label}: {title}" if kind == "comparison" else title, caption, uri, width))
    return found


def _sheet(rows: Any, gap: int = 1) -> bytes:
    """Rows of images ``[C][H][W]`` (C = 1 or 3, whole numbers up to 255) as one PNG; nothing when they do not fit."""
    from PIL import Image

    try:
        pictures = [[np.asarray(p, dtype=np.int64) for p in row] for row in rows]
        channels, high, across = pictures[0][0].shape
        most = max(len(row) for row in pictures)
        width, height = most * (across + gap) + gap, len(pictures) * (high + gap) + gap
        if width * height > 4_000_000:
            return b""
        canvas = np.full((height, width, channels), 128, np.int64)
        for i, row in enumerate(pictures):
            for j, picture in enumerate(row):
                top, left = gap + i * (high + gap), gap + j * (across + gap)
                canvas[top : top + high, left : left + across] = picture.transpose(1, 2, 0)
        if channels not in (1, 3) or canvas.min() < 0 or canvas.max() > 255:
            return b""
    except (TypeError, ValueError, IndexError):
        return b""
    body = io.BytesIO()
    drawn = canvas.astype(np.uint8)
    Image.fromarray(drawn if channels == 3 else drawn[..., 0]).save(body, "PNG", optimize=True)
    return body.getvalue()


def _all_metrics(s: Summary, runs: Sequence[tuple[str, Mapping[str, Any], Path | None]], kind: str) -> dict[str, Any]:
    """Every metric of every row."""
    names = list(dict.fromkeys(name for r in s.rows for name in r.metrics))
    body = []
    for name in names:
        metric = metric_of(name)
        cells = []
        for r in s.rows:
            e = r.metrics.get(name)
            if e is None:
                cells.append("")
            else:
                interval = (
                    f" [{metric.value(e.low, False)}, {metric.value(e.high, False)}]" if e.kind == "seeds" else ""
                )
                cells.append(metric.value(e.mean) + interval)
        body.append((metric.label, name, cells))
    best = runs[0][1]["metrics"].get("best") if kind == "run" and runs else None
    chosen = []
    if isinstance(best, Mapping):
        chosen = [(metric_of(k).label, metric_of(k).value(v)) for k, v in best.items() if k != "step" and _finite(v)]
    step = int(best["step"]) if isinstance(best, Mapping) and _finite(best.get("step")) else None
    return {"head": [r.name for r in s.rows], "body": body, "best": chosen, "step": step}


def _timings(s: Summary, runs: Sequence[tuple[str, Mapping[str, Any], Path | None]]) -> list[dict[str, Any]]:
    """Bars of seconds: teacher, student alone, and each method's stages."""
    bars: list[dict[str, Any]] = []
    for r in s.rows:
        for stage, seconds in r.stages.items():
            label = r.name if r.role != "method" else stage if s.kind == "run" else f"{r.name}: {stage}"
            bars.append({"label": label, "seconds": seconds, "text": duration(seconds), "variable": variable_of(s, r)})
    longest = max((b["seconds"] for b in bars), default=0.0)
    for bar in bars:
        bar["share"] = round(100 * bar["seconds"] / longest, 1) if longest > 0 else 0.0
    memory = [(r, r.memory_mb) for r in s.methods if r.memory_mb]
    for row, megabytes in memory:
        text = human(1e6 * megabytes, "B")
        bars.append(
            {"label": "peak memory" if s.kind == "run" else f"{row.name}: peak memory", "text": text, "share": None}
        )
    return bars


def tables_of(result: Mapping[str, Any], most: int = 200) -> list[dict[str, Any]]:
    """The small tables that a method adds to its result, cells as text: ``title``, ``head``, ``rows``; ``more`` left out."""
    found = []
    given = result.get("tables")
    for table in given if isinstance(given, list) else ():
        if not isinstance(table, Mapping) or not isinstance(table.get("rows"), list) or not table["rows"]:
            continue
        rows = [[str(cell) for cell in row] for row in table["rows"] if isinstance(row, (list, tuple))]
        head = [str(name).replace("_", " ") for name in table.get("head") or ()]
        title = str(table.get("title", "table"))
        found.append({"title": title, "head": head, "rows": rows[:most], "more": max(0, len(rows) - most)})
    return found


def _classes(result: Mapping[str, Any], most: int = 1000) -> dict[str, Any]:
    """How many items of each class every split has; empty where there are no classes."""
    sizes, labels = result.get("class_items"), result.get("labels")
    if not isinstance(sizes, Mapping) or not sizes or not isinstance(labels, list):
        return {}
    rows = [(str(name), [n[i] for n in sizes.values()]) for i, name in enumerate(labels)]
    return {"head": list(sizes), "rows": rows[:most], "more": max(0, len(rows) - most)}


def _exports(result: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What was exported: for each format its facts."""
    found = []
    exports = result.get("exports")
    for form, facts in exports.items() if isinstance(exports, Mapping) else ():
        if not isinstance(facts, Mapping):
            facts = {"path": facts}
        rows = []
        for key, value in facts.items():
            if str(key).endswith("_range") and isinstance(value, list):
                text = " to ".join(significant(float(x), 3) for x in value)
            elif isinstance(value, bool) or not isinstance(value, (int, float)):
                text = str(value)
            elif key == "bytes":
                text = human(value, "B")
            else:
                text = metric_of(key).value(float(value))
            rows.append((str(key).replace("_", " "), text))
        found.append((str(form), rows))
    return found


def _shared(runs: Sequence[tuple[str, Mapping[str, Any], Path | None]], key: str) -> list[tuple[str, str]]:
    """Versions or hardware: each fact once, with every value that occurred."""
    facts: dict[str, list[str]] = {}
    for _, result, _ in runs:
        values = result.get(key)
        if isinstance(values, Mapping):
            for name, value in values.items():
                if str(value) not in facts.setdefault(str(name), []):
                    facts[str(name)].append(str(value))
    return [(name, ", ".join(values)) for name, values in facts.items()]


__all__ = ["Row", "load", "render", "write"]
