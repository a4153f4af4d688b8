"""Results and comparisons as rows: what tables, headlines and the report page are made from.

A **result** is the content of a run's ``result.json``. Read here: ``method``, ``recipe``, ``seed``, ``task``,
``primary``, ``higher_is_better``, ``artifact``, ``metrics: {teacher, student, alone, best}`` (flat maps of name to
number; proportions lie in [0, 1]), ``sizes: {teacher, student, ...}`` (``parameters``, ``bytes``...),
``latency_ms: {teacher, student, ...}`` (``one_item``, ``gflops``), ``cost: {seconds: {stage: s}, peak_memory_mb}``,
``items: {test}``, ``notes``. Optional:

- ``labels`` and ``class_items: {train, valid, test}``: the classes, and how many items of each every split has;

- ``names: {teacher, student, alone}``: how the participants are called, where 'student alone' would be wrong;
- ``budget: {student: {...}, alone: {...}}``: what each was allowed (steps, batch size); where both are given and
  differ, no gain is claimed;
- ``metrics.rows: {name: {metric: value}}``: every row by its own name; beside the three above further baselines
  (herding, k-means) and what the method adds (a peer, an early exit). Results from before 0.2 have ``baselines`` instead;
- ``calibration: {role: {confidence: [...], accuracy: [...], count: [...]}}``: the bins of a reliability diagram;
- ``pictures: [{title, caption, file}]`` (``images`` is read alike): PNG files below the run folder; or, instead of
  ``file``, ``pixels``: rows of images ``[C][H][W]`` of whole numbers up to 255. ``rows`` and ``labels`` name the
  rows;
- ``example: {title, parts: [[text, learnt], ...]}``: a training example as it is learnt (conversations);
- ``tables: [{title, head, rows}]``: small tables of what was made, for a run's page and the screen.

Metrics called ``NAME_wW_nN`` are of a sampler at guidance weight W in N steps.

A **comparison** is the content of ``comparison.json``::

    {
      "task": "classification",              # name, or the recipe's node
      "primary": "accuracy", "higher_is_better": true,
      "seeds": [0, 1, 2],
      "reference": "kd",                     # optional: the row that others are paired with beside 'alone'
      "teacher": {"metrics": {...}, "sizes": {...}, "latency_ms": {...}},  # where no result has a teacher's
      "rows": {"kd": {"0": result, "1": result}, "nkd": {"0": result}},    # label: {seed: result}
      "settings": {"kd": {"student": {...}, "teacher": {...}, "train": {...}, "teach": {...}}},  # optional
      "failed": {"nkd": {"1": "what went wrong"}},                          # optional
      "teachers": 1, "redeal": False,                                       # optional: what else differs from seed to seed
      "with_items": {"kd": {"alone": {"mean": 0.02, "low": 0.0, "high": 0.04}}},  # optional: over seeds and test items
      "notes": ["..."]                                                      # optional
    }

A result inside a comparison may add ``folder``, its run folder relative to ``comparison.json``: the report then draws
training curves and shows its images. :func:`comparison_of` makes a comparison from a list of results.

Methods are compared with each other only where their **students are alike**: the same ``settings.student`` (where they are
not recorded: as many parameters) that learns from as many items. Each further student has a row alone of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from limbeck.errors import ConfigError
from limbeck.report.metrics import Metric, metric_of
from limbeck.report.statistics import Estimate, estimate, mean, paired
from limbeck.report.students import Student

Result = Mapping[str, Any]
Role = Literal["teacher", "alone", "baseline", "method"]

SHARES: Final = frozenset({"accuracy", "top1", "top5", "exact", "agreement"})
"""Metrics that are shares of the test items, for which Wilson's interval holds where the primary metric is one of them;
a calibration error or an F1 is none."""

BEFORE: Final = ("teacher", "alone")
"""Stages whose seconds are not the cost of distilling."""

USUAL_NAMES: Final[dict[str, tuple[str, str]]] = {
    "network": ("teacher", "student alone"),
    "dataset": ("all real items", "random real items"),
    "sampler": ("teacher, many steps", "teacher, few steps"),
    "scene": ("the teacher's own samples", "real images"),
    "detector": ("teacher", "pixel statistics"),
    "table": ("teacher", "real rows"),
    "corpus": ("the first generator", "trained further on real texts"),
}
"""By what a run made: how the teacher and the baseline are called."""

USUAL_BASELINES: Final[dict[str, str]] = {"dataset": "random", "detector": "pixels", "table": "real", "scene": "real"}
"""By what a run made: the row of a result that the baseline's name is meant for; another is called as its row is."""


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
        latency_range: quartiles of the latency, where known.
        timings: of each run whose network was timed with its architecture: that, the median and the quartiles.
        sizes: everything that its size says.
        stages: seconds by stage, over the seeds.
        called: what it is called beside only one of its kind (``student alone``), where ``name`` says whose it is.
        teacher, alone: of a method, the rows of its own teacher and of its own student alone; ``None`` where it has none.
        student: of a method, which of the comparison's students it has.
        learnt_from: of a teacher that was trained for these runs: how many items it learnt from.
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
    latency_range: tuple[float, float] | None = None
    timings: list[tuple[str, float, float, float]] = field(default_factory=list, repr=False)
    gflops: float | None = None
    seconds: float | None = None
    memory_mb: float | None = None
    sizes: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    called: str = ""
    teacher: Row | None = field(default=None, repr=False, compare=False)
    alone: Row | None = field(default=None, repr=False, compare=False)
    student: int = 0
    learnt_from: int | None = None

    def faster_than(self, other: Row) -> float | None:
        """How many times as fast as another; ``None`` where unknown, or where their quartiles overlap: nobody can tell."""
        if not self.latency_ms or not other.latency_ms:
            return None
        mine, others = self.latency_range, other.latency_range
        if mine and others and mine[0] <= others[1] and others[0] <= mine[1]:
            return None
        return other.latency_ms / self.latency_ms


@dataclass
class Summary:
    """Everything a table, a headline or a page is made from.

    Attributes:
        kind: ``run`` or ``comparison``.
        metric: the primary metric.
        rows: teachers, students alone, other baselines, then the methods in their order.
        seeds: the seeds that were asked for.
        reference: name of the row that others are paired with, or ``None``.
        items: test items, where known.
        artifact: what the runs made (``network``, ``dataset``...).
        notes: sentences to show, the reasons for refused comparisons among them.
        students: every student that occurs, with the methods that have it.
        teachers: how many were trained, and dealt to the seeds in turn.
        redealt: whether each seed has its own division into training and test items.
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
    students: list[Student] = field(default_factory=list)
    teachers: int = 1
    redealt: bool = False

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
        if alone is None or alone.called == "student alone":
            return "against alone", "vs alone"
        return f"against {alone.called}", f"vs {alone.called.split(', ')[-1].split(' ')[0]}"

    def alike(self) -> list[list[Row]]:
        """The methods with a result by their student: only those of one list are compared with each other."""
        scored = [r for r in self.methods if r.score is not None]
        groups = [[r for r in scored if r.student == i] for i in range(max(1, len(self.students)))]
        return [g for g in groups if g]

    def winners(self) -> list[Row]:
        """The best method of each student that several methods have."""
        return [b for g in self.alike() if len(g) > 1 and (b := self.best(g)) is not None]

    def best(self, among: Sequence[Row] | None = None) -> Row | None:
        """The method with the best mean of the primary metric.

        Args:
            among: methods with the same student; all by default, of which there is no best where their students differ.
        """
        if among is None and len(self.alike()) > 1:
            return None
        chosen = self.methods if among is None else among
        found = [r for r in chosen if r.score is not None and math.isfinite(r.score.mean)]
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
    usual = USUAL_NAMES.get(artifact, ("teacher", "baseline"))
    single = all(len(runs) < 2 for runs in table.values())
    if primary not in SHARES or artifact != "network":
        items = None
    students = _students(data, table)
    kind_of = dict.fromkeys(table, 0) | {label: i for i, student in enumerate(students) for label in student.rows}
    finished = {label for label, runs in table.items() if runs}
    teachers = _teachers(data, table, primary, items if single else None)
    alones = _alones(data, table, kind_of, primary, items, artifact)
    owned: dict[str, dict[str, Row]] = {"teacher": {}, "alone": {}}
    for role, found, called in (
        ("teacher", teachers, str(names.get("teacher", usual[0]))),
        ("alone", alones, str(names.get("alone", _baseline_called(results, artifact, usual[1])))),
    ):
        for row, labels in found:
            # whose it is has to be said where it isn't everybody's
            row.called = called
            row.name = f"{called} ({', '.join(labels)})" if kind == "comparison" and set(labels) < finished else called
            owned[role].update(dict.fromkeys(labels, row))
            rows.append(row)
    if len(alones) > len({kind_of[labels[0]] for _, labels in alones}):
        notes.append("One student was trained alone in different ways: each method is compared with its own.")
    for i, student in enumerate(students):
        own_results = [r for label in student.rows for r in table[label].values()]
        for row in _baselines(own_results, primary, items):
            row.called, row.student = row.name, i
            row.name = f"{row.name} ({', '.join(student.rows)})" if len(students) > 1 else row.name
            rows.append(row)
    reference = data.get("reference", "kd" if "kd" in table else None)
    reference = str(reference) if reference is not None and str(reference) in table and len(table) > 1 else None
    for label, runs in table.items():
        row = _row(label, "method", {s: r["metrics"].get("student") or {} for s, r in runs.items()}, primary, items)
        _describe(row, list(runs.values()), "student")
        row.student, row.teacher, row.alone = kind_of[label], owned["teacher"].get(label), owned["alone"].get(label)
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
        if reference is not None and label != reference and kind_of[label] == kind_of[reference]:
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
    if not any(row.values for row, _ in alones):
        notes.append("No baseline of equal budget was run: no gain from distilling is stated.")
    _one_latency_each(rows)
    notes += _with_items(data.get("with_items") or {}, metric, {r.name: r for r in rows})
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
        students=students,
        teachers=int(data.get("teachers") or 1),
        redealt=bool(data.get("redeal")),
    )


def _with_items(found: Mapping[str, Any], metric: Metric, rows: Mapping[str, Row]) -> list[str]:
    """One sentence with the differences whose intervals cover other test items, too."""
    said = []
    for label, others in found.items():
        for over, e in others.items():
            alone = rows[label].alone if label in rows else None
            name = over if over != "alone" or alone is None else alone.name
            interval = f"[{metric.difference(e['low'], False)}, {metric.difference(e['high'], False)}]"
            said.append(f"{label} against {name} {metric.difference(e['mean'])} {interval}")
    return [f"For other test items as well as other seeds (bootstrap): {'; '.join(said)}."] if said else []


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
    if one is None or other is None or (one != one and other != other):  # not a number is like itself here
        return False
    return bool(one != other)


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
    row.timings = [
        (str(s["architecture"]), float(s["one_item"]), float(s["low"]), float(s["high"]))
        for s in speed
        if isinstance(s.get("architecture"), str)
        and all(_number(s.get(k)) is not None for k in ("one_item", "low", "high"))
    ]


def _one_latency_each(rows: Sequence[Row]) -> None:
    """Networks of one architecture have one latency: the middle of all that was measured of them, in whatever run."""
    for row in rows:
        of = {t[0] for t in row.timings}
        alike = {t for other in rows for t in other.timings if t[0] in of}
        if len(of) == 1 and alike:
            middle = [sorted(values)[len(values) // 2] for values in list(zip(*alike, strict=True))[1:]]
            row.latency_ms, row.latency_range = middle[0], (middle[1], middle[2])


@dataclass
class _Shared:
    """A teacher, or a student alone, that several methods have in common."""

    labels: list[str]
    seen: dict[str, Mapping[str, Any]]
    results: list[Result]


def _shared(
    table: Mapping[str, Mapping[str, Result]], role: str, same: Callable[[str, str], bool | None], primary: str
) -> list[_Shared]:
    """Who has which teacher, or which student alone.

    Args:
        table: results by label and seed.
        role: ``teacher`` or ``alone``.
        same: whether two rows have the same one; ``None`` where that isn't known: then where their values agree.
        primary: the metric whose values have to.
    """
    found: list[_Shared] = []
    for label, runs in table.items():
        own = {seed: values for seed, r in runs.items() if (values := r["metrics"].get(role))}
        if not own:
            continue

        def joins(group: _Shared, label: str = label, own: Mapping[str, Mapping[str, Any]] = own) -> bool:
            known = same(group.labels[0], label)
            if known is not None:
                return known
            return not any(_unequal(group.seen[s].get(primary), own[s].get(primary)) for s in own if s in group.seen)

        group = next((g for g in found if joins(g)), None)
        if group is None:
            found.append(group := _Shared([], {}, []))
        group.labels.append(label)
        for seed, values in own.items():
            if seed not in group.seen:
                group.results.append(runs[seed])
            # a method without a teacher knows nothing of agreeing with one: another may
            group.seen[seed] = {**values, **group.seen.get(seed, {})}
    return found


def _settings(data: Mapping[str, Any], label: str) -> Mapping[str, Any] | None:
    settings = data.get("settings")
    found = settings.get(label) if isinstance(settings, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _students(data: Mapping[str, Any], table: Mapping[str, Mapping[str, Result]]) -> list[Student]:
    """Every student that occurs, with the rows that have it, in their order."""
    found: dict[Hashable, Student] = {}
    for label, runs in table.items():
        if not runs:  # nothing finished: there is no student to tell from others
            continue
        settings, results = _settings(data, label) or {}, list(runs.values())
        model = settings.get("student") if isinstance(settings.get("student"), Mapping) else None
        items = [n for r in results if isinstance(r.get("items"), Mapping) and (n := r["items"].get("train"))]
        row = Row(label, "method")
        _describe(row, results, "student")
        likeness = json.dumps(model, sort_keys=True, default=str) if model is not None else row.parameters
        student = found.setdefault(
            (likeness, items[0] if items else None),
            Student([], model, row.parameters, int(items[0]) if items else None),
        )
        student.rows.append(label)
    return list(found.values())


def _teachers(
    data: Mapping[str, Any], table: Mapping[str, Mapping[str, Result]], primary: str, items: int | None
) -> list[tuple[Row, list[str]]]:
    """Each teacher, with the rows that learn from it."""

    def size(label: str) -> Any:
        return next((n for r in table[label].values() if (n := (r.get("sizes") or {}).get("teacher"))), None)

    def same(one: str, other: str) -> bool | None:
        a, b = _settings(data, one), _settings(data, other)
        if a is not None and a == b:
            return True
        return False if _unequal(size(one), size(other)) else None

    found = []
    for group in _shared(table, "teacher", same, primary):
        seen = group.seen
        if len({tuple(sorted((k, v) for k, v in m.items() if _number(v) is not None)) for m in seen.values()}) == 1:
            # one and the same network in every run: its repetition is no sample
            seen = {"": next(iter(seen.values()))}
        row = _row("teacher", "teacher", seen, primary, items)
        _describe(row, group.results, "teacher")
        row.stages = _stages(group.results, lambda stage: stage == "teacher")
        row.seconds = row.stages.get("teacher")
        if row.seconds is not None:  # not one that was there before
            counts = [n for r in group.results if (n := (r.get("items") or {}).get("teacher_train"))]
            row.learnt_from = int(counts[0]) if counts else None
        found.append((row, group.labels))
    given = data.get("teacher")
    if not found and isinstance(given, Mapping) and given.get("metrics"):
        row = _row("teacher", "teacher", {"": given["metrics"]}, primary, items)
        _describe(row, [{k: {"teacher": given.get(k)} for k in ("sizes", "latency_ms")}], "teacher")
        found.append((row, list(table)))
    return found


def _baselines(results: Sequence[Result], primary: str, items: int | None) -> list[Row]:
    seen: dict[str, dict[str, Mapping[str, Any]]] = {}
    for result in results:
        metrics = result["metrics"]
        known = [metrics.get(role) for role in ("teacher", "student", "alone")]
        given = {**(result.get("baselines") or {}), **(metrics.get("rows") or {})}
        for name, values in given.items():
            if isinstance(values, Mapping) and name not in ("teacher", "student", "alone") and values not in known:
                seen.setdefault(str(name), {}).setdefault(str(result.get("seed")), values)
    found = []
    for name, by_seed in seen.items():
        row = _row(name, "baseline", by_seed, primary, items)
        _describe(row, [r for r in results if name in (r["metrics"].get("rows") or {})], name)
        found.append(row)
    return found


def _baseline_called(results: Sequence[Result], artifact: str, usual: str) -> str:
    """The usual name, or that of the row which the baseline is, where it is another one."""
    for result in results:
        metrics = result["metrics"]
        alone, rows = metrics.get("alone"), metrics.get("rows") or {}
        same = (
            [str(n) for n, v in rows.items() if v == alone and n not in ("teacher", "student", "alone")]
            if alone
            else []
        )
        if same and artifact in USUAL_BASELINES:
            return usual if USUAL_BASELINES[artifact] in same else same[0]
    return usual


def _alones(
    data: Mapping[str, Any],
    table: Mapping[str, Mapping[str, Result]],
    kind_of: Mapping[str, int],
    primary: str,
    items: int | None,
    artifact: str,
) -> list[tuple[Row, list[str]]]:
    """Each student alone, with the rows that it is the baseline of."""

    def same(one: str, other: str) -> bool | None:
        if kind_of[one] != kind_of[other]:
            return False
        a, b = _settings(data, one), _settings(data, other)
        return True if a is not None and b is not None and a.get("train") == b.get("train") else None

    found = []
    for group in _shared(table, "alone", same, primary):
        row = _row("student alone", "alone", group.seen, primary, items)
        row.student = kind_of[group.labels[0]]
        if artifact == "network":
            sizes = [r.get("sizes") or {} for r in group.results]
            apart = all(z.get("alone") and z["alone"] != z.get("student") for z in sizes)
            # the same architecture, but where what is delivered is put together of more
            _describe(row, group.results, "alone" if apart else "student")
        row.stages = _stages(group.results, lambda stage: stage == "alone")
        row.seconds = row.stages.get("alone")
        found.append((row, group.labels))
    return found
