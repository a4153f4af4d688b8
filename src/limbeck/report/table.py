"""Results as rows: what ``limbeck run``, ``compare`` and ``demo`` print, and what the report page is made from.

A **result** is the content of a run's ``result.json``. Read here: ``method``, ``recipe``, ``seed``, ``task``,
``primary``, ``higher_is_better``, ``artifact``, ``metrics: {teacher, student, alone, best}`` (flat maps of name to
number; proportions lie in [0, 1]), ``sizes: {teacher, student}`` (``parameters``, ``bytes``...), ``latency_ms:
{teacher, student}`` (``one_item``, ``gflops``), ``cost: {seconds: {stage: s}, peak_memory_mb}``, ``items: {test}``,
``notes``. Optional:

- ``names: {teacher, student, alone}``: how the participants are called, where 'student alone' would be wrong;
- ``budget: {student: {...}, alone: {...}}``: what each was allowed (steps, batch size); where both are given and
  differ, no gain is claimed;
- ``baselines: {name: {metric: value}}``: further rows to be beaten (herding, k-means...);
- ``calibration: {role: {confidence: [...], accuracy: [...], count: [...]}}``: the bins of a reliability diagram;
- ``pictures: [{title, caption, file}]`` (``images`` is read alike): PNG files below the run folder; or, instead of
  ``file``, ``pixels``: rows of pictures ``[C][H][W]`` of whole numbers up to 255. ``rows`` and ``labels`` name the
  rows.

Metrics called ``NAME_wW_nN`` are of a sampler at guidance weight W in N steps.

A **comparison** is the content of ``comparison.json``::

    {
      "task": "classification",              # name, or the recipe's node
      "primary": "accuracy", "higher_is_better": true,
      "seeds": [0, 1, 2],
      "reference": "kd",                     # optional: the row that others are paired with beside 'alone'
      "teacher": {"metrics": {...}, "sizes": {...}, "latency_ms": {...}},  # where no result has a teacher's
      "rows": {"kd": {"0": result, "1": result}, "nkd": {"0": result}},    # label: {seed: result}
      "failed": {"nkd": {"1": "what went wrong"}},                          # optional
      "notes": ["..."]                                                      # optional
    }

A result inside a comparison may add ``folder``, its run folder relative to ``comparison.json``: the report then draws
training curves and shows its pictures. :func:`comparison_of` makes a comparison from a list of results.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from limbeck.core.errors import ConfigError
from limbeck.report.statistics import Estimate, estimate, mean, paired

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Result = Mapping[str, Any]
Role = Literal["teacher", "alone", "baseline", "method"]
Tone = Literal["", "good", "bad", "dim"]

SHARES: Final = frozenset({"accuracy", "top1", "top5", "exact", "agreement"})
"""Metrics that are shares of the test items, for which Wilson's interval holds where the primary metric is one of them;
a calibration error or an F1 is none."""

BEFORE: Final = ("teacher", "alone")
"""Stages whose seconds are not the cost of distilling."""


@dataclass(frozen=True)
class Metric:
    """How a metric is called and written.

    Attributes:
        name: as in ``result.json``.
        label: in words.
        percent: a proportion in [0, 1], shown in per cent; differences in points.
        higher_is_better: its direction; ``None`` when unknown.
    """

    name: str
    label: str
    percent: bool = False
    higher_is_better: bool | None = None

    def value(self, x: float, unit: bool = True) -> str:
        """A value as text."""
        if not math.isfinite(x):
            return "not finite" if unit else f"{x:g}"
        if self.percent:
            return f"{100 * x:.1f}{' %' if unit else ''}"
        return significant(x)

    def difference(self, x: float, unit: bool = True) -> str:
        """A difference as text, with its sign."""
        if not math.isfinite(x):
            return "not finite"
        text = f"{100 * x:+.1f}" if self.percent else f"{'+' if x >= 0 else '-'}{significant(abs(x))}"
        return f"{text} points" if unit and self.percent else text

    def amount(self, x: float) -> str:
        """The size of a difference, without its sign."""
        return self.difference(abs(x)).lstrip("+")

    def better(self, x: float) -> int:
        """+1 when a difference of this sign is an improvement, -1 when it is the opposite, 0 when that is not known."""
        if self.higher_is_better is None or x == 0 or not math.isfinite(x):
            return 0
        return 1 if (x > 0) == self.higher_is_better else -1


_PARTS: Final = re.compile(r"(.+?)(_stochastic)?_w([0-9.e+-]+)_n(\d+)")

_METRICS: Final[dict[str, tuple[str, bool, bool | None]]] = {
    "accuracy": ("accuracy", True, True),
    "balanced_accuracy": ("balanced accuracy", True, True),
    "top1": ("accuracy", True, True),
    "top5": ("top-5 accuracy", True, True),
    "exact": ("all labels right", True, True),
    "f1": ("F1", True, True),
    "f1_micro": ("F1, micro", True, True),
    "agreement": ("agreement with the teacher", True, None),
    "ece": ("calibration error", True, False),
    "nll": ("negative log-likelihood", False, False),
    "brier": ("Brier score", False, False),
    "loss": ("loss", False, False),
    "cross_entropy": ("cross-entropy", False, False),
    "entropy": ("entropy", False, None),
    "teacher_entropy": ("entropy of the teacher", False, None),
    "kl": ("KL from the teacher", False, False),
    "perplexity": ("perplexity", False, False),
    "bits_per_byte": ("bits a byte", False, False),
    "rmse": ("root mean square error", False, False),
    "mae": ("mean absolute error", False, False),
    "mse": ("mean square error", False, False),
    "r2": ("R²", False, True),
    "psnr": ("PSNR", False, True),
    "ssim": ("SSIM", False, True),
    "frechet": ("Fréchet distance", False, False),
    "fid": ("Fréchet distance", False, False),
    "fid_floor": ("Fréchet distance, real against real", False, None),
    "endpoint_mse": ("endpoint error", False, False),
    "class_accuracy": ("of the right class", True, True),
    "calls": ("network calls", False, False),
    "accuracy_std": ("deviation of accuracy", True, None),
}
_SHORT: Final = {
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
_NAMES: Final[dict[str, tuple[str, str]]] = {
    "network": ("teacher", "student alone"),
    "dataset": ("all real items", "random real items"),
    "sampler": ("teacher, many steps", "teacher, few steps"),
}
_PHRASES: Final[dict[str, tuple[str, str]]] = {
    "network": ("its teacher", "the same network trained alone at equal budget"),
    "dataset": ("all real items", "as many random real items"),
    "sampler": ("its teacher in many steps", "its teacher in as few steps"),
}


def metric_of(name: str, higher_is_better: bool | None = None) -> Metric:
    """What is known about a metric's name; ``valid/accuracy`` is accuracy on the validation split."""
    split, _, bare = name.rpartition("/")
    parts = _PARTS.fullmatch(bare)
    bare = parts[1] if parts else bare
    label, percent, higher = _METRICS.get(bare, (bare.replace("_", " "), False, None))
    if parts:
        steps = f"{parts[4]} step{'' if parts[4] == '1' else 's'}"
        label = f"{label} (w = {parts[3]}, {steps}{', stochastic' if parts[2] else ''})"
    if split:
        label = f"{label} ({'validation' if split == 'valid' else split.replace('_', ' ')})"
    return Metric(name, label, percent, higher if higher_is_better is None else higher_is_better)


# -- numbers for people ------------------------------------------------------------------------------------------------


def significant(x: float, digits: int = 4) -> str:
    """A number in a few significant digits: ``0.01234``, ``12.34``, ``12,340``, ``1.2e-07``."""
    if x == 0 or not math.isfinite(x):
        return f"{x:g}"
    if 1e-4 <= abs(x) < 10**digits:
        return f"{x:.{max(0, digits - 1 - math.floor(math.log10(abs(x))))}f}"
    return f"{x:,.0f}" if 10**digits <= abs(x) < 1e7 else f"{x:.{digits - 1}e}"


def human(x: float, unit: str = "") -> str:
    """A count with a decimal prefix: ``950``, ``12.3 k``, ``4.56 M``, ``1.2 GB``."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= scale * 0.9995:
            shown = x / scale
            return f"{shown:.{2 if shown < 10 else 1 if shown < 100 else 0}f} {prefix}{unit}"
    return f"{x:.0f} {unit}".rstrip()


def duration(seconds: float) -> str:
    """A duration: ``0.42 s``, ``31 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def brief(x: float, unit: str = "") -> str:
    """A count in few letters: ``950``, ``12k``, ``4.6M``, ``1.2GB``."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= scale * 0.995:
            return f"{x / scale:.{1 if x / scale < 9.95 else 0}f}{prefix}{unit}"
    return f"{x:.0f}{unit}"


def brief_duration(seconds: float) -> str:
    """A duration in few letters: ``0.4s``, ``31s``, ``4.2min``, ``2.1h``."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 120:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f}s"
    return f"{seconds / 60:.1f}min" if seconds < 7200 else f"{seconds / 3600:.1f}h"


def ratio(x: float) -> str:
    """A factor: ``23``, ``4.2``, ``1.08``."""
    return f"{x:.0f}" if x >= 10 else f"{x:.1f}" if x >= 2 else f"{x:.2f}"


# -- rows --------------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """A participant with all its runs.

    Attributes:
        name: as shown.
        role: ``teacher``, ``alone`` or ``method``.
        values: the primary metric by seed.
        score: the primary metric over the seeds.
        to_alone, to_reference: paired differences of the primary metric; ``None`` where there is nothing to compare
            with or the budgets differ.
        metrics: every metric over the seeds.
        parameters, bytes, latency_ms, gflops, seconds, memory_mb: what it takes, where known.
        sizes: everything that its size says.
        stages: seconds by stage, over the seeds.
    """

    name: str
    role: Role
    values: dict[str, float] = field(default_factory=dict)
    score: Estimate | None = None
    to_alone: Estimate | None = None
    to_reference: Estimate | None = None
    metrics: dict[str, Estimate] = field(default_factory=dict)
    parameters: float | None = None
    bytes: float | None = None
    latency_ms: float | None = None
    gflops: float | None = None
    seconds: float | None = None
    memory_mb: float | None = None
    sizes: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)


@dataclass
class Summary:
    """Everything a table, a headline or a page is made from.

    Attributes:
        kind: ``run`` or ``comparison``.
        metric: the primary metric.
        rows: teacher, student alone, other baselines, then the methods in their order.
        seeds: the seeds that were asked for.
        reference: name of the row that others are paired with, or ``None``.
        items: test items, where known.
        artifact: what the runs made (``network``, ``dataset``...).
        notes: sentences to show, the reasons for refused comparisons among them.
    """

    kind: Literal["run", "comparison"]
    task: str
    metric: Metric
    rows: list[Row]
    seeds: list[str]
    reference: str | None
    items: int | None
    artifact: str
    notes: list[str]

    def row(self, role: Role) -> Row | None:
        """The first row of a role."""
        return next((r for r in self.rows if r.role == role), None)

    @property
    def methods(self) -> list[Row]:
        """The rows of methods."""
        return [r for r in self.rows if r.role == "method"]

    @property
    def against(self) -> tuple[str, str]:
        """How the comparison with the baseline is headed, long and short."""
        alone = self.row("alone")
        if alone is None or alone.name == "student alone":
            return "against alone", "vs alone"
        return f"against {alone.name}", f"vs {alone.name.split(', ')[-1].split(' ')[0]}"

    def best(self) -> Row | None:
        """The method with the best mean of the primary metric."""
        found = [r for r in self.methods if r.score is not None and math.isfinite(r.score.mean)]
        if not found:
            return None
        sign = 1 if self.metric.higher_is_better else -1
        return max(found, key=lambda r: sign * r.score.mean if r.score is not None else -math.inf)


def comparison_of(results: Iterable[Result], reference: str = "kd", notes: Sequence[str] = ()) -> dict[str, Any]:
    """A comparison (see the module) made of results, rows in the order in which their methods first appear.

    A result's row is its ``label`` if it has one, else its method.

    Raises:
        ConfigError: there are none, two have the same row and seed, or they differ in task or primary metric.
    """
    results = list(results)
    if not results:
        raise ConfigError("results", "there is nothing to compare")
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        label, seed = str(result.get("label") or result["method"]), str(result["seed"])
        for key in ("task", "primary", "higher_is_better"):
            if result.get(key) != results[0].get(key):
                raise ConfigError(
                    "results",
                    f"{label} (seed {seed}) has another {key} than {results[0].get('label') or results[0]['method']}",
                    given=result.get(key),
                    expected=repr(results[0].get(key)),
                )
        if seed in rows.setdefault(label, {}):
            raise ConfigError("results", f"two results of {label} with seed {seed}", remedy="give them labels")
        rows[label][seed] = dict(result)
    first = results[0]
    return {
        "task": first.get("task", ""),
        "primary": first["primary"],
        "higher_is_better": first["higher_is_better"],
        "seeds": sorted({r["seed"] for r in results}),
        "reference": reference if reference in rows else None,
        "rows": rows,
        "notes": list(notes),
    }


def summarise(data: Result | Sequence[Result]) -> Summary:
    """A result, a comparison, or a list of results as rows."""
    if not isinstance(data, Mapping):
        data = comparison_of(data)
    return _comparison(data) if "rows" in data else _comparison(_as_comparison(data), kind="run")


def _as_comparison(result: Result) -> dict[str, Any]:
    name = str(result.get("label") or result.get("method") or result.get("recipe") or "student")
    return {**comparison_of([{**result, "label": name, "seed": result.get("seed", 0)}]), "notes": []}


def _comparison(data: Mapping[str, Any], kind: Literal["run", "comparison"] = "comparison") -> Summary:
    primary = str(data["primary"])
    metric = metric_of(primary, bool(data["higher_is_better"]))
    table: dict[str, dict[str, Result]] = {str(k): {str(s): r for s, r in v.items()} for k, v in data["rows"].items()}
    results = [result for runs in table.values() for result in runs.values()]
    notes = [str(n) for n in data.get("notes", [])]
    for result in results:
        notes += [str(n) for n in result.get("notes") or [] if str(n) not in notes]
    counts = {
        int(r["items"]["test"]) for r in results if isinstance(r.get("items"), Mapping) and r["items"].get("test")
    }
    items = counts.pop() if len(counts) == 1 else None
    names = next((dict(r["names"]) for r in results if r.get("names")), {})
    artifacts = {str(r.get("artifact", "network")) for r in results}
    artifact = artifacts.pop() if len(artifacts) == 1 else "student"

    rows: list[Row] = []
    usual = _NAMES.get(artifact, ("teacher", "baseline"))
    single = all(len(runs) < 2 for runs in table.values())
    if primary not in SHARES or artifact != "network":
        items = None
    teacher = _teacher(data, results, primary, items if single else None)
    if teacher is not None:
        teacher.name = str(names.get("teacher", usual[0]))
        rows.append(teacher)
    alone = _alone(table, metric, items, artifact, notes)
    if alone is not None:
        alone.name = str(names.get("alone", usual[1]))
        rows.append(alone)
    rows += _baselines(results, primary, items)
    reference = data.get("reference", "kd" if "kd" in table else None)
    reference = str(reference) if reference is not None and str(reference) in table and len(table) > 1 else None
    for label, runs in table.items():
        row = _row(label, "method", {s: r["metrics"].get("student") or {} for s, r in runs.items()}, primary, items)
        _describe(row, list(runs.values()), "student")
        row.stages = _stages(runs.values(), lambda stage: stage not in BEFORE)
        row.seconds = sum(row.stages.values()) if row.stages else _mean(r.get("wall_seconds") for r in runs.values())
        row.memory_mb = max((m for r in runs.values() if (m := _cost(r).get("peak_memory_mb"))), default=None)
        own = {
            s: v for s, r in runs.items() if (v := _number((r["metrics"].get("alone") or {}).get(primary))) is not None
        }
        unequal = sorted({s for s, r in runs.items() if _unequal(_budget(r, "student"), _budget(r, "alone"))})
        if unequal and own:
            notes.append(f"{label} had another budget than the student alone: no gain over it is stated.")
        else:
            row.to_alone = paired(row.values, own)
        if reference is not None and label != reference:
            other = {s: r for s, r in table[reference].items() if s in runs}
            if any(_unequal(_budget(r, "student"), _budget(runs[s], "student")) for s, r in other.items()):
                notes.append(f"{label} had another budget than {reference}: no difference between them is stated.")
            else:
                values = {s: (r["metrics"].get("student") or {}).get(primary) for s, r in other.items()}
                row.to_reference = paired(
                    row.values, {s: v for s, x in values.items() if (v := _number(x)) is not None}
                )
        missing = sorted(s for s in runs if s not in row.values)
        if missing:
            notes.append(f"{label} has no {metric.label} for seed {', '.join(missing)}.")
        rows.append(row)
    for label, failures in (data.get("failed") or {}).items():
        for seed, text in failures.items():
            notes.append(f"{label}, seed {seed}, did not finish: {text}")
    if alone is None or not alone.values:
        notes.append("No baseline of equal budget was run: no gain from distilling is stated.")
    task = data.get("task", "")
    return Summary(
        kind=kind,
        task=str(task.get("use", "")) if isinstance(task, Mapping) else str(task),
        metric=metric,
        rows=rows,
        seeds=[str(s) for s in data.get("seeds", [])],
        reference=reference,
        items=items,
        artifact=artifact,
        notes=list(dict.fromkeys(notes)),
    )


def _number(x: Any) -> float | None:
    return float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else None


def _mean(values: Iterable[Any]) -> float | None:
    found = [v for x in values if (v := _number(x)) is not None]
    return mean(found) if found else None


def _cost(result: Result) -> Mapping[str, Any]:
    cost = result.get("cost")
    return cost if isinstance(cost, Mapping) else {}


def _budget(result: Result, role: str) -> Any:
    budget = result.get("budget")
    return budget.get(role) if isinstance(budget, Mapping) else None


def _unequal(one: Any, other: Any) -> bool:
    return one is not None and other is not None and one != other


def _stages(results: Iterable[Result], chosen: Callable[[str], bool]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {}
    for result in results:
        for stage, value in (_cost(result).get("seconds") or {}).items():
            if chosen(stage) and (number := _number(value)) is not None:
                seconds.setdefault(stage, []).append(number)
    return {stage: mean(values) for stage, values in seconds.items()}


def _row(name: str, role: Role, metrics: Mapping[str, Mapping[str, Any]], primary: str, items: int | None) -> Row:
    """A row from the metrics of each seed."""
    row = Row(name, role)
    columns: dict[str, list[float]] = {}
    for seed, values in metrics.items():
        for key, value in values.items():
            if (number := _number(value)) is not None:
                columns.setdefault(key, []).append(number)
                if key == primary:
                    row.values[seed] = number
    row.metrics = {k: estimate(v, items, k in SHARES) for k, v in columns.items()}
    row.score = row.metrics.get(primary)
    return row


def _describe(row: Row, results: Sequence[Result], role: str) -> None:
    def of(key: str) -> list[Mapping[str, Any]]:
        return [
            r[key][role] for r in results if isinstance(r.get(key), Mapping) and isinstance(r[key].get(role), Mapping)
        ]

    sizes, speed = of("sizes"), of("latency_ms")
    row.sizes = {k: v for k in (sizes[0] if sizes else {}) if (v := _mean(s.get(k) for s in sizes)) is not None}
    row.parameters, row.bytes = row.sizes.get("parameters"), row.sizes.get("bytes")
    times = sorted(v for s in speed if (v := _number(s.get("one_item"))) is not None)
    row.latency_ms = times[len(times) // 2] if times else None
    row.gflops = _mean(s.get("gflops") for s in speed)


def _teacher(data: Mapping[str, Any], results: Sequence[Result], primary: str, items: int | None) -> Row | None:
    seen = {str(r.get("seed")): values for r in results if (values := r["metrics"].get("teacher"))}
    given = data.get("teacher")
    if not seen and isinstance(given, Mapping) and given.get("metrics"):
        row = _row("teacher", "teacher", {"": given["metrics"]}, primary, items)
        _describe(row, [{k: {"teacher": given.get(k)} for k in ("sizes", "latency_ms")}], "teacher")
        return row
    if not seen:
        return None
    if len({tuple(sorted((k, v) for k, v in m.items() if _number(v) is not None)) for m in seen.values()}) == 1:
        # one and the same network in every run: its repetition is no sample
        seen = {"": next(iter(seen.values()))}
    row = _row("teacher", "teacher", seen, primary, items)
    _describe(row, results, "teacher")
    row.stages = _stages(results, lambda stage: stage == "teacher")
    row.seconds = row.stages.get("teacher")
    return row


def _baselines(results: Sequence[Result], primary: str, items: int | None) -> list[Row]:
    seen: dict[str, dict[str, Mapping[str, Any]]] = {}
    for result in results:
        given = result.get("baselines")
        for name, values in given.items() if isinstance(given, Mapping) else ():
            if isinstance(values, Mapping):
                seen.setdefault(str(name), {}).setdefault(str(result.get("seed")), values)
    return [_row(name, "baseline", by_seed, primary, items) for name, by_seed in seen.items()]


def _alone(
    table: Mapping[str, Mapping[str, Result]], metric: Metric, items: int | None, artifact: str, notes: list[str]
) -> Row | None:
    seen: dict[str, Mapping[str, Any]] = {}
    results = []
    for runs in table.values():
        for seed, result in runs.items():
            values = result["metrics"].get("alone") or {}
            if not values:
                continue
            if seed not in seen:
                seen[seed] = values
                results.append(result)
            elif _unequal(seen[seed].get(metric.name), values.get(metric.name)):
                text = "Runs of one seed had different students alone: each method is compared with its own."
                if text not in notes:
                    notes.append(text)
    if not seen:
        return None
    row = _row("student alone", "alone", seen, metric.name, items)
    if artifact == "network":
        _describe(row, results, "student")  # the same architecture
    spent = _stages(results, lambda stage: stage == "alone")
    row.stages, row.seconds = spent, spent.get("alone")
    return row


# -- the headline ------------------------------------------------------------------------------------------------------


def headline(data: Result | Sequence[Result] | Summary) -> list[str]:
    """What was lost and what was gained, in two to four sentences, claiming no more than was measured."""
    s = data if isinstance(data, Summary) else summarise(data)
    best = s.best()
    if best is None or best.score is None:
        return ["No run finished with a result."]
    said = [_kept(s, best)]
    size = _smaller(s, best)
    if size:
        said.append(size)
    said.append(_gained(s, best))
    if s.reference is not None and best.name != s.reference and best.to_reference is not None:
        said.append(_against(s, best.to_reference, f"plain {s.reference}" if s.reference == "kd" else s.reference))
    return said


def _with_interval(metric: Metric, e: Estimate) -> str:
    if e.kind == "none":
        return metric.value(e.mean)
    return f"{metric.value(e.mean)} [{metric.value(e.low, False)}, {metric.value(e.high, False)}]"


def _kept(s: Summary, best: Row) -> str:
    assert best.score is not None
    made = {"network": "student", "dataset": "distilled data set", "sampler": "student"}.get(s.artifact, s.artifact)
    subject = f"The {made}" if s.kind == "run" else f"The best mean is {best.name}'s: the {made}"
    value = _with_interval(s.metric, best.score)
    text = f"{subject} reaches {f'{value} {s.metric.label}' if s.metric.percent else f'{s.metric.label} {value}'}"
    if s.kind == "comparison":
        text += f" over {best.score.n} seeds" if best.score.n > 1 else " (n=1)"
    teacher = s.row("teacher")
    if teacher is None or teacher.score is None:
        return text + "."
    gap = best.score.mean - teacher.score.mean
    if abs(gap) < 5e-4 * (1 if s.metric.percent else max(1e-12, abs(teacher.score.mean))):
        return f"{text}, as much as {teacher.name if teacher.name != 'teacher' else 'its teacher'}."
    word = {1: "better", -1: "worse"}.get(s.metric.better(gap), "apart")
    other = _PHRASES.get(s.artifact, ("its teacher", ""))[0] if teacher.name == _usual(s)[0] else teacher.name
    return f"{text}, {s.metric.amount(gap)} {word} than {other} ({s.metric.value(teacher.score.mean)})."


def _smaller(s: Summary, best: Row) -> str:
    teacher = s.row("teacher")
    if teacher is None or s.artifact != "network":
        return ""
    parts = []
    if teacher.parameters and best.parameters and teacher.parameters / best.parameters >= 1.05:
        parts.append(f"{ratio(teacher.parameters / best.parameters)} times smaller")
    if teacher.latency_ms and best.latency_ms:
        quick = teacher.latency_ms / best.latency_ms
        if quick >= 1.05:
            parts.append(f"{ratio(quick)} times faster on one item")
        elif quick <= 0.95:
            parts.append(f"{ratio(1 / quick)} times slower on one item")
    return f"It is {' and '.join(parts)}." if parts else ""


def _usual(s: Summary) -> tuple[str, str]:
    return _NAMES.get(s.artifact, ("teacher", "baseline"))


def _baseline(s: Summary) -> str:
    alone = s.row("alone")
    if alone is not None and alone.name != _usual(s)[1]:
        return f"{alone.name} at equal budget"
    return _PHRASES.get(s.artifact, ("", "the baseline without distillation at equal budget"))[1]


def _gained(s: Summary, best: Row) -> str:
    if best.to_alone is None:
        why = next((n for n in s.notes if "budget" in n), "")
        return why if why else "No baseline of equal budget was run: no gain from distilling is stated."
    return _against(s, best.to_alone, _baseline(s))


def _against(s: Summary, e: Estimate, other: str) -> str:
    if not math.isfinite(e.mean):
        return f"Its difference to {other} is not finite."
    word = {1: "better", -1: "worse"}.get(s.metric.better(e.mean), "apart")
    amount = s.metric.amount(e.mean)
    if e.kind == "none":
        if e.mean == 0:
            return f"It equals {other} (n=1: one seed shows no difference and excludes none)."
        return f"It is {amount} {word} than {other}, in a single run (n=1: one seed cannot tell this from chance)."
    interval = f"[{s.metric.difference(e.low, False)}, {s.metric.difference(e.high, False)}]"
    if e.sign == 0:
        return (
            f"Against {other}, paired over {e.n} seeds: {s.metric.difference(e.mean)} {interval}, no difference shown."
        )
    return f"It is {amount} {word} than {other}, paired over {e.n} seeds {interval}."


def footnotes(s: Summary) -> list[str]:
    """What the intervals of a table cover."""
    said = []
    kinds = {r.score.kind for r in s.rows if r.score is not None}
    tested = f" of {s.items:,} items" if s.items else ""
    if "seeds" in kinds:
        said.append(
            "Intervals: 95 %, Student's t over seeds (first weights, order of the data and whatever else a seed draws; "
            f"the test set{tested} stays the same). Differences are paired by seed. "
            "Nothing is adjusted for comparing several methods."
        )
    elif "items" in kinds:
        said.append(
            f"n=1. Intervals: 95 %, Wilson's, over the test items{f' ({s.items:,})' if s.items else ''}: they tell how "
            "well the value of this one network is known, not what another seed would give."
        )
    else:
        said.append("n=1: one seed, no interval.")
    teacher = s.row("teacher")
    if teacher is not None and len(teacher.values) == 1 and "seeds" in kinds and s.artifact == "network":
        said.append("The teacher is one network, the same in every run.")
    if any(r.seconds is not None for r in s.methods):
        said.append(
            "A method's training time is that of distilling alone, without its teacher's and without the baseline's."
        )
    if any("agreement" in r.metrics for r in s.rows):
        said.append(
            "Agreement: the share of test items on which it answers as the teacher does. Latency and FLOPs: one item."
        )
    return said


# -- tables ------------------------------------------------------------------------------------------------------------


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
        add(
            f"vs {s.reference}", f"against {s.reference}", points, [_difference_cell(m, r.to_reference) for r in s.rows]
        )
    for name in ("ece", "perplexity", "kl", "fid", "class_accuracy", "calls", "agreement"):
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
    add("ms", "latency", "ms", each(lambda r: r.latency_ms, lambda x: significant(x, 3), lambda x: significant(x, 2)))
    add("FLOPs", "FLOPs", "", each(lambda r: r.gflops or None, lambda x: human(1e9 * x), lambda x: brief(1e9 * x)))
    add("cost", "training", "", each(lambda r: r.seconds, duration, brief_duration))
    return Grid([c for c, _ in columns], [(r, [cells[i] for _, cells in columns]) for i, r in enumerate(s.rows)])


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
    best = s.best()
    for row, cells in found.rows:
        tones = {"good": "green", "bad": "red", "dim": "dim", "": ""}
        shown = [Text(cells[i].short or cells[i].text, style=tones[cells[i].tone]) for i in kept]
        name = Text(
            row.name, style="dim" if row.role != "method" else "bold" if row is best and len(s.methods) > 1 else ""
        )
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


__all__ = [
    "Metric",
    "Row",
    "Summary",
    "comparison_of",
    "comparison_table",
    "footnotes",
    "grid",
    "headline",
    "markdown_table",
    "metric_of",
    "plain_table",
    "summarise",
]
