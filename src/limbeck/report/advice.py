"""What to try next, where a result of a run calls for it: at most three sentences, each with its threshold.

Advice is given by a run only, not by a comparison, and never changes a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from limbeck.report.metrics import metric_of

MOST: Final = 3
"""Sentences in one report."""

MAJORITY: Final = 0.8
"""Share of the training items from which one class is said to hold most of them."""

FALLING: Final = 0.02
"""Relative fall of the loss, from the last but one tenth of the training to the last, from which it is still falling."""

SATURATED: Final = 0.1
"""Points of a percent metric (of other metrics: percent of the teacher's value) below which baseline and teacher are alike."""

SLOW: Final = 1.05
"""Factor of latency from which an export is called slower."""

NOISY: Final = 0.15
"""Share of the median between the quartiles of a latency from which overlapping ones are called too noisy to rank."""

PASSES: Final = 3.0
"""Passes over the student's items from which a recorded teacher saves time."""

ELSEWHERE: Final = ("cross-lingual",)
"""Tasks whose test items are mostly of a kind that the teacher is not meant for."""

WORTH: Final = 60.0
"""Seconds of distilling from which a recorded teacher is worth a sentence."""

HEAVY: Final = 4.0
"""Factor of the teacher's cost of an item over the student's from which a recorded teacher saves time."""


def advice(result: Mapping[str, Any], log: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """Sentences with the next thing to try, the most important first, at most three.

    Args:
        result: a run's ``result.json``. Of its ``cost``, ``teacher_passes`` tells how often each item went through an
            unrecorded teacher; it is missing where inputs are augmented, or the teacher is recorded or absent.
        log: its log rows: ``stage``, ``step`` and the mean terms since the row before.

    Example:
        >>> scores = {"teacher": {"accuracy": 0.8}, "alone": {"accuracy": 0.85}}
        >>> print(*advice({"primary": "accuracy", "metrics": scores}))
        The teacher (80.0 %) is no better than the student trained alone (85.0 %): train it longer ... better one (teacher=...).
    """
    found = [
        _weak_teacher(result),
        _few_steps(result, list(log)),
        _one_class(result),
        _saturated(result),
        _slow_export(result),
        _noisy(result),
        _cache(result),
    ]
    return [sentence for sentence in found if sentence][:MOST]


def _scores(result: Mapping[str, Any], *rows: str) -> list[float] | None:
    """The deciding metric of some rows; ``None`` where one has none."""
    metrics, name = result.get("metrics", {}), result.get("primary", "")
    values = [metrics[r].get(name) if isinstance(metrics.get(r), Mapping) else None for r in rows]
    if any(not isinstance(v, (int, float)) or not math.isfinite(v) for v in values):
        return None
    return [float(v) for v in values if v is not None]


def _weak_teacher(result: Mapping[str, Any]) -> str:
    scores = _scores(result, "teacher", "alone")
    if scores is None or result.get("artifact", "network") != "network" or result.get("task") in ELSEWHERE:
        return ""
    teacher, alone = scores
    better = teacher > alone if result.get("higher_is_better", True) else teacher < alone
    if better:
        return ""
    metric = metric_of(str(result["primary"]))
    return (
        f"The teacher ({metric.value(teacher)}) is no better than the student trained alone ({metric.value(alone)}): "
        "train it longer (teach.steps), or choose a better one (teacher=...)."
    )


def _few_steps(result: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    rows = [r for r in log if r.get("stage") == "distil"]
    terms = [k for k in (rows[0] if rows else {}) if k not in ("stage", "step", "wall", "time", "lr") and "/" not in k]
    if len(rows) < 20 or not terms or any("stopped early" in str(n) for n in result.get("notes", ())):
        return ""
    tenth = len(rows) // 10
    falls = []
    for term in terms:
        values = [float(r[term]) for r in rows if isinstance(r.get(term), (int, float)) and math.isfinite(r[term])]
        if len(values) < len(rows):
            return ""
        before, last = sum(values[-2 * tenth : -tenth]) / tenth, sum(values[-tenth:]) / tenth
        falls.append((before - last) / abs(before) if before else 0.0)
    if min(falls) < FALLING:
        return ""
    return (
        f"The loss was still falling when training ended (by {100 * min(falls):.0f} % from the last but one tenth to the "
        "last): raise train.steps."
    )


def _one_class(result: Mapping[str, Any]) -> str:
    counts = result.get("class_items", {}).get("train") or []
    labels = result.get("labels") or []
    if result.get("primary") != "accuracy" or not sum(counts) or max(counts) < MAJORITY * sum(counts):
        return ""
    most = counts.index(max(counts))
    name = labels[most] if most < len(labels) else most
    return (
        f"{100 * max(counts) / sum(counts):.0f} % of the training items are of class {name!s}, and accuracy hides what becomes "
        "of the others: look at balanced accuracy, and try train.sampling=balanced or task.class_weights=balanced."
    )


def _saturated(result: Mapping[str, Any]) -> str:
    scores = _scores(result, "teacher", "alone", "student")
    if scores is None or result.get("artifact", "network") != "network" or _weak_teacher(result):
        return ""
    teacher, alone, _ = scores
    metric = metric_of(str(result["primary"]))
    unit = 0.01 if metric.percent else max(abs(teacher), 1e-12)
    if abs(teacher - alone) >= SATURATED * unit:
        return ""
    return (
        f"The student trained alone ({metric.value(alone)}) already does what its teacher does ({metric.value(teacher)}): try a "
        "smaller student (student=...), or fewer items (task.student_items)."
    )


def _slow_export(result: Mapping[str, Any]) -> str:
    times = {
        form: facts.get("latency_ms")
        for form, facts in (result.get("exports") or {}).items()
        if isinstance(facts, Mapping)
    }
    int8, plain = times.get("onnx-int8"), times.get("onnx")
    whose = "the ONNX export in float32"
    if plain is None and isinstance(result.get("exports", {}).get("onnx-int8"), Mapping):
        plain, whose = result["exports"]["onnx-int8"].get("latency_ms_before"), "the network in torch"
    if int8 is None or plain is None or int8 < SLOW * plain:
        return ""
    return (
        f"The int8 export is slower here than {whose} ({int8:.3g} ms against {plain:.3g} ms an item): int8 pays "
        "for larger networks and on processors with int8 instructions; measure it on the machine where it will run."
    )


def _noisy(result: Mapping[str, Any]) -> str:
    times = result.get("latency_ms", {})
    student, teacher = times.get("student") or {}, times.get("teacher") or {}
    if not all(isinstance(t.get(k), (int, float)) for t in (student, teacher) for k in ("one_item", "low", "high")):
        return ""
    if student.get("architecture") == teacher.get("architecture"):
        return ""
    overlap = student["low"] <= teacher["high"] and teacher["low"] <= student["high"]
    wide = max((t["high"] - t["low"]) / max(t["one_item"], 1e-12) for t in (student, teacher))
    if not overlap or wide < NOISY:
        return ""
    return (
        "Latency is too noisy here to say which of student and teacher is faster (half of the student's passes took "
        f"{student['low']:.2g} to {student['high']:.2g} ms, of the teacher's {teacher['low']:.2g} to {teacher['high']:.2g} ms): "
        "compare their FLOPs, or run it again (--force) while nothing else runs."
    )


def _cache(result: Mapping[str, Any]) -> str:
    passes, flops = result.get("cost", {}).get("teacher_passes"), result.get("latency_ms", {})
    teacher, student = (flops.get(r, {}).get("gflops") for r in ("teacher", "student"))
    seconds = result.get("cost", {}).get("seconds", {}).get("distil", 0.0)
    if passes is None or passes < PASSES or seconds < WORTH or not teacher or not student or teacher < HEAVY * student:
        return ""
    return (
        f"Each item went through the teacher {passes:.0f} times with the same result: record its answers once (limbeck cache "
        f"{result.get('recipe') or 'RECIPE'}), and the runs that follow need no teacher."
    )


__all__ = ["advice"]
