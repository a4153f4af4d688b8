"""What a run or a comparison shows, in sentences that claim no more than was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from limbeck.report import students
from limbeck.report.metrics import Metric
from limbeck.report.numbers import ratio
from limbeck.report.statistics import Estimate
from limbeck.report.summary import USUAL_NAMES, Result, Row, Summary, summarise

_PHRASES: Final[dict[str, tuple[str, str]]] = {
    "network": ("its teacher", "the same network trained alone at equal budget"),
    "dataset": ("all real items", "as many random real items"),
    "sampler": ("its teacher in many steps", "its teacher in as few steps"),
    "scene": ("samples of its teacher", "as many real images"),
    "detector": ("its teacher", "the pixel statistics of normal images"),
    "table": ("its teacher", "a model trained on the real rows"),
    "corpus": ("the first generator", "the same generator, trained further on real texts"),
}


def headline(data: Result | Sequence[Result] | Summary) -> list[str]:
    """What was lost and what was gained, claiming no more than was measured.

    Two to four sentences; of methods with different students as many for each student, and what keeps them apart.
    """
    s = data if isinstance(data, Summary) else summarise(data)
    groups = [(g, best) for g in s.alike() if (best := s.best(g)) is not None]
    if not groups:
        return ["No run finished with a result."]
    several = len(s.students) > 1
    said = [students.said(s.students)] if several else []
    for group, best in groups:
        said += [_kept(s, best, group, several), _smaller(s, best), _gained(s, best)]
        if s.reference is not None and best.name != s.reference and best.to_reference is not None:
            said.append(_against(s, best.to_reference, f"plain {s.reference}" if s.reference == "kd" else s.reference))
    if several:
        said.append(students.remedy(s.students))
    return [sentence for sentence in said if sentence]


def _with_interval(metric: Metric, e: Estimate) -> str:
    if e.kind == "none":
        return metric.value(e.mean)
    return f"{metric.value(e.mean)} [{metric.value(e.low, False)}, {metric.value(e.high, False)}]"


def _kept(s: Summary, best: Row, group: Sequence[Row], several: bool) -> str:
    assert best.score is not None
    made = {"network": "student", "dataset": "distilled data set", "sampler": "student"}.get(s.artifact, s.artifact)
    if s.kind == "run":
        subject = f"The {made}"
    elif len(group) == 1:
        subject = f"{best.name}: the {made}"
    else:
        head = f"Of {students.listed([r.name for r in group])}, the" if several else "The"
        subject = f"{head} best mean is {best.name}'s: the {made}"
    value = _with_interval(s.metric, best.score)
    text = f"{subject} reaches {f'{value} {s.metric.label}' if s.metric.percent else f'{s.metric.label} {value}'}"
    if s.kind == "comparison":
        text += f" over {best.score.n} seeds" if best.score.n > 1 else " (n=1)"
    teacher = best.teacher
    if teacher is None or teacher.score is None:
        return text + "."
    gap = best.score.mean - teacher.score.mean
    if abs(gap) < 5e-4 * (1 if s.metric.percent else max(1e-12, abs(teacher.score.mean))):
        return f"{text}, as much as {teacher.called if teacher.called != 'teacher' else 'its teacher'}."
    word = {1: "better", -1: "worse"}.get(s.metric.better(gap), "apart")
    other = _PHRASES.get(s.artifact, ("its teacher", ""))[0] if teacher.called == _usual(s)[0] else teacher.called
    return f"{text}, {s.metric.amount(gap)} {word} than {other} ({s.metric.value(teacher.score.mean)})."


def _smaller(s: Summary, best: Row) -> str:
    teacher = best.teacher
    if teacher is None or teacher.score is None or s.artifact != "network":
        return ""  # a teacher that answers something else (a tower of crops) is neither larger nor slower at this
    parts = []
    if teacher.parameters and best.parameters and teacher.parameters / best.parameters >= 1.05:
        parts.append(f"{ratio(teacher.parameters / best.parameters)} times smaller")
    quick = best.faster_than(teacher)
    if quick is not None and quick >= 1.05:
        parts.append(f"{ratio(quick)} times faster on one item")
    elif quick is not None and quick <= 0.95:
        parts.append(f"{ratio(1 / quick)} times slower on one item")
    return f"It is {' and '.join(parts)}." if parts else ""


def _usual(s: Summary) -> tuple[str, str]:
    return USUAL_NAMES.get(s.artifact, ("teacher", "baseline"))


def _baseline(s: Summary, alone: Row | None) -> str:
    if alone is not None and alone.called != _usual(s)[1]:
        return f"{alone.called} at equal budget" if "alone" in alone.called else alone.called
    return _PHRASES.get(s.artifact, ("", "its baseline"))[1]


def _gained(s: Summary, best: Row) -> str:
    if best.to_alone is None:
        whose = f"{best.name} had another budget than the student alone"
        why = next((n for n in s.notes if n.startswith(whose)), "")
        return why if why else "No baseline of equal budget was run: no gain from distilling is stated."
    return _against(s, best.to_alone, _baseline(s, best.alone))


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
        drawn = "first weights, order of the data and whatever else a seed draws"
        drawn += "; the data dealt anew into training and test items" if s.redealt else ""
        drawn += f"; {s.teachers} teachers in turn" if s.teachers > 1 else ""
        drawn += "" if s.redealt else f"; the test set{tested} stays the same"
        said.append(
            f"Intervals: 95 %, Student's t over seeds ({drawn}). Differences are paired by seed. "
            "Nothing is adjusted for comparing several methods."
        )
    elif "items" in kinds:
        said.append(
            f"n=1. Intervals: 95 %, Wilson's, over the test items{f' ({s.items:,})' if s.items else ''}: they tell how "
            "well the value of this one network is known, not what another seed would give."
        )
    else:
        said.append("n=1: one seed, no interval.")
    teachers = [r for r in s.rows if r.role == "teacher"]
    if len(teachers) == 1 and len(teachers[0].values) == 1 and "seeds" in kinds and s.artifact == "network":
        one = " that has one" if any(r.teacher is None for r in s.methods if r.score is not None) else ""
        said.append(f"The teacher is one network, the same in every run{one}.")
    if len(teachers) == 1 and s.artifact == "network":
        more = teachers[0].learnt_from
        fewer = next((s.students[r.student].items for r in s.methods if r.teacher is teachers[0]), None)
        if more is not None and fewer is not None and more > fewer:
            said.append(f"The teacher learnt from {more:,} items, the student from {fewer:,}.")
    if any(r.seconds is not None for r in s.methods):
        without = "without its teacher's and without the baseline's" if teachers else "without the baseline's"
        said.append(f"A method's training time is that of distilling alone, {without}.")
    if any("agreement" in r.metrics for r in s.rows):
        said.append(
            "Agreement: the share of test items on which it answers as the teacher does. Latency: one item, the median of "
            "passes timed in turns, with quartiles. FLOPs: one item."
        )
    return said
