"""What a claim says of a comparison, checked: the kinds of check, their figures and their verdicts.

A check compares two rows of a comparison in one metric, paired by seed, in one of these ways (``d`` is how much better the row
is than the other, ``m`` the number that is stated with it):

======================= ================================== ======================================================
kind                    holds where                        is tested by
======================= ================================== ======================================================
``better`` (``by`` m)   d > m (0 if left out)              the two-sided paired t test of d = m
``not_worse`` (within)  d > -m                             the two-sided paired t test of d = -m
``equal`` (within)      -m < d < m                         two one-sided tests (equivalence), or beyond the margin
``at_most`` (share)     the row <= m times the other       the two-sided paired t test of row = m times other
``closes`` (share)      d >= m times what the teacher is   the two-sided paired t test of d = m times that
                        better than the other
======================= ================================== ======================================================

A check is **confirmed** where the test shows that it holds, even after Holm's procedure for as many checks as are made
together (see :func:`judge`). It is **contradicted** where its own test shows that it does not hold: what speaks against a
claim is not excused by how much else was tried. Between them it is **not shown**.
``exact`` checks are of values that no seed changes (network calls): they are compared as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from limbeck.compare.items import Items, difference, split
from limbeck.errors import ConfigError
from limbeck.report.inference import detectable, equivalence, holm, one_sided, ratio
from limbeck.report.metrics import metric_of
from limbeck.report.statistics import mean, t_interval

Kind = Literal["better", "not_worse", "equal", "at_most", "closes"]
Verdict = Literal["confirmed", "contradicted", "not shown", "n=1"]

BOUNDS: Final[dict[str, str]] = {
    "better": "by",
    "not_worse": "within",
    "equal": "within",
    "at_most": "share",
    "closes": "share",
}
"""What the number of each kind of check is called."""

LEVEL: Final = 0.05
"""The probability with which any of the checks that are made together may be confirmed wrongly."""


@dataclass(frozen=True)
class Check:
    """Two rows of a comparison in one metric.

    Attributes:
        at: the comparison's name.
        row: a row's label; ``LABEL:teacher``, ``LABEL:alone`` or ``LABEL:BASELINE`` is what stands beside it.
        over: likewise; a bare ``alone``, ``teacher`` or baseline is that of ``row``.
        metric: as in ``result.json``.
        kind: see the module.
        bound: its number, in the metric's unit (``by``, ``within``) or a factor (``share``).
        exact: no seed changes the values: compared as they are, without a test.
    """

    at: str
    row: str
    over: str
    metric: str
    kind: Kind
    bound: float = 0.0
    exact: bool = False

    def said(self) -> str:
        """The check in words."""
        metric = metric_of(self.metric)
        amount = (
            f"{100 * self.bound:g} point{'' if self.bound == 0.01 else 's'}" if metric.percent else f"{self.bound:g}"
        )
        over = _named(self.over)
        words = {
            "better": f"better than {over}" + (f" by more than {amount}" if self.bound else ""),
            "not_worse": f"not worse than {over} (margin {amount})",
            "equal": f"the same as {over} (margin {amount})",
            "at_most": f"at most {self.bound:g} times {over}",
            "closes": f"at least {100 * self.bound:g} % of the way from {over} to {self._top()}",
        }[self.kind]
        return f"{_named(self.row)} {words}, in {metric.label}"

    def _top(self) -> str:
        return _named("all" if self.over.rpartition(":")[2] in ("random", "kmeans", "herding") else "teacher")


NAMES: Final = {
    "alone": "the student alone",
    "teacher": "the teacher",
    "random": "random images",
    "kmeans": "k-means",
    "all": "all images",
    "ddim": "DDIM in as many steps",
}
"""How parts of a row are called in a sentence."""


def _named(who: str) -> str:
    """A row, or a part of one, as it is called in a sentence."""
    label, _, part = who.rpartition(":")
    name = NAMES.get(part, part)
    return name if not label else f"{label}'s {name.removeprefix('the ')}"


def read_checks(node: Mapping[str, Any], where: str) -> list[Check]:
    """The checks of one entry of the list: one for each metric it names.

    An entry holds ``at``, ``row``, the kind with what the row is compared with (``better: alone``), ``in`` (a metric or a
    list of them), the kind's number, and perhaps ``exact: true``.

    Args:
        node: the entry.
        where: what errors call it.

    Raises:
        ConfigError: a key is missing, unknown, or has no such value.

    Example:
        >>> entry = {"at": "kd/digits", "row": "kd", "better": "alone", "in": "accuracy"}
        >>> [check.said() for check in read_checks(entry, "kd")]
        ['kd better than the student alone, in accuracy']
    """
    kinds = [k for k in get_args(Kind) if k in node]
    if len(kinds) != 1:
        raise ConfigError(where, "names no kind of check, or several", given=dict(node), expected=", ".join(BOUNDS))
    kind: Kind = kinds[0]
    name = BOUNDS[kind]
    known = {"at", "row", "in", "exact", kind, name}
    unknown = sorted(set(node) - known)
    missing = sorted({"at", "row", "in"} - set(node)) + ([name] if kind != "better" and name not in node else [])
    if unknown or missing:
        problem = f"does not take {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}"
        raise ConfigError(where, problem, given=dict(node), expected=", ".join(sorted(known)))
    bound = float(node.get(name, 0.0))
    if not bound >= 0 or (kind != "better" and bound == 0):
        raise ConfigError(f"{where}.{name}", given=node.get(name), expected="a number above 0")
    metrics = [node["in"]] if isinstance(node["in"], str) else list(node["in"])
    exact = bool(node.get("exact", False))
    return [Check(node["at"], node["row"], node[kind], m, kind, bound, exact) for m in metrics]


# ---------------------------------------------------------------------------------------------------------- the figures


Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""A comparison's runs: label -> results, each with ``seed``, ``metrics`` and perhaps ``baselines``."""


def values_of(results: Results, who: str, metric: str, beside: str = "") -> dict[str, float]:
    """One participant's values by seed.

    Args:
        results: the comparison's runs.
        who: ``LABEL``, ``LABEL:PART``, or a bare ``PART`` of the row ``beside``; a part is ``alone``, ``teacher``, one of
            ``limbeck.compare.items.ALIASES`` or the name of a baseline.
        metric: as in ``result.json``.
        beside: the row that a bare part belongs to.

    Raises:
        ConfigError: there is no such row or part, or it lacks the metric in every run.
    """
    label, part = split(who, beside, results)
    if label not in results:
        raise ConfigError("row", given=who, expected=f"one of {', '.join(results)}, or a part of one")
    found: dict[str, float] = {}
    for result in results[label]:
        own = {**(result.get("baselines") or {}), **result["metrics"]}
        value = (own.get(part) or {}).get(metric)
        if value is not None and math.isfinite(value):
            found[str(result["seed"])] = float(value)
    if not found and results[label]:
        raise ConfigError(who, f"has no {metric} in the runs of {label}", remedy="check the spelling of row and metric")
    return found


def measure(check: Check, results: Results, higher: bool | None = None, items: Items | None = None) -> dict[str, Any]:
    """The figures of one check: difference or ratio with its 95 % interval, p, what could have been detected.

    Args:
        check: what is compared.
        results: the comparison's runs.
        higher: the direction of a metric whose name does not tell it.
        items: what the runs recorded of single test items, where they did.

    Returns:
        ``check`` (its fields), ``said``, ``n``; ``mean``, ``low``, ``high`` and ``detectable``: of row minus other, or, of
        ``at_most`` and ``closes``, of the share; ``row_mean``, ``over_mean``; ``p`` (``None`` for exact checks and below two
        seeds); ``holds``: what the mean says; ``items``: ``low`` and ``high`` of a difference over seeds and test items,
        where the items are known.

    Raises:
        ConfigError: a row, part or metric that is not there.
    """
    metric = metric_of(check.metric, None)
    direction = metric.higher_is_better if metric.higher_is_better is not None else higher
    if check.kind == "at_most":
        direction = False  # whatever is to be at most a share of another is the better the less it is
    if direction is None:
        raise ConfigError(check.metric, "is a metric of unknown direction")
    sign = 1.0 if direction else -1.0
    one = values_of(results, check.row, check.metric)
    other = values_of(results, check.over, check.metric, check.row)
    top = values_of(results, "teacher", check.metric, check.row) if check.kind == "closes" else {}
    seeds = [s for s in one if s in other and (check.kind != "closes" or s in top)]
    x, y, t = ([values[s] for s in seeds] for values in (one, other, top if top else other))
    found: dict[str, Any] = {"check": asdict(check), "said": check.said(), "n": len(seeds)}
    if not seeds:
        return {**found, "p": None, "holds": None, "mean": None, "low": None, "high": None, "detectable": None}
    differences = [a - b for a, b in zip(x, y, strict=True)]
    shares = {"at_most": (x, y), "closes": (differences, [c - b for b, c in zip(y, t, strict=True)])}
    contrast = _contrast(check, x, y, t, sign)
    shown = ratio(*shares[check.kind]) if check.kind in shares else t_interval(differences)
    holds = math.fsum(contrast) > 0
    if check.kind == "equal":
        holds = abs(shown.mean) < check.bound
    if check.exact:
        holds = all(c >= 0 for c in contrast)
    tested = not check.exact and len(seeds) > 1
    wide = difference(items, check.row, check.over, check.metric) if items and check.kind not in shares else None
    scale = abs(mean(shares[check.kind][1])) if check.kind in shares else 1.0
    return {
        **found,
        "mean": shown.mean,
        "low": shown.low,
        "high": shown.high,
        "row_mean": mean(x),
        "over_mean": mean(y),
        "p": _p(check, differences, contrast, holds) if tested else None,
        "holds": holds,
        "detectable": detectable(contrast) / scale if tested else None,
        **({"items": {"low": wide.low, "high": wide.high}} if wide is not None and wide.kind != "none" else {}),
    }


def _contrast(check: Check, x: list[float], y: list[float], t: list[float], sign: float) -> list[float]:
    """What must be above 0 for the check to hold, one value a seed."""
    rules: dict[str, Callable[[float, float, float], float]] = {
        "better": lambda a, b, c: sign * (a - b) - check.bound,
        "not_worse": lambda a, b, c: sign * (a - b) + check.bound,
        "equal": lambda a, b, c: sign * (a - b),
        "at_most": lambda a, b, c: check.bound * b - a,
        "closes": lambda a, b, c: sign * (a - b - check.bound * (c - b)),
    }
    return [rules[check.kind](a, b, c) for a, b, c in zip(x, y, t, strict=True)]


def _p(check: Check, differences: list[float], contrast: list[float], holds: bool) -> float:
    """The p value of the side on which the mean lies."""
    if check.kind == "equal":
        if holds:
            return equivalence(differences, check.bound)
        beyond = [math.copysign(1.0, math.fsum(differences)) * d - check.bound for d in differences]
        return min(1.0, 2 * one_sided(beyond))
    p = one_sided(contrast)
    return min(1.0, 2 * min(p, 1 - p))


def judge(measured: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdicts over all checks that are made together; Holm's procedure takes those that are different.

    Args:
        measured: as :func:`measure` gives them. A check that occurs twice is one.

    Returns:
        Each with ``p_holm`` and ``verdict``.
    """
    measured = list(measured)
    different: dict[tuple[Any, ...], float] = {}
    for m in measured:
        if m["p"] is not None:
            different.setdefault(_key(m), m["p"])
    adjusted = dict(zip(different, holm(list(different.values())), strict=True))
    found = []
    for m in measured:
        p = adjusted.get(_key(m)) if m["p"] is not None else None
        if m["check"]["exact"] and m["holds"] is not None:
            verdict: Verdict = "confirmed" if m["holds"] else "contradicted"
        elif m["n"] < 2:
            verdict = "n=1" if m["n"] else "not shown"
        else:
            assert p is not None
            if m["holds"]:
                verdict = "confirmed" if p < LEVEL else "not shown"
            else:
                verdict = "contradicted" if m["p"] < LEVEL else "not shown"
        found.append({**m, "p_holm": p, "verdict": verdict})
    return found


def _key(measured: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(measured["check"].values())


__all__ = ["Check", "judge", "measure", "read_checks", "values_of"]
