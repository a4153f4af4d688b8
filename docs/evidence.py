"""The evidence as Markdown: every claim clause by clause, and every comparison with what was measured.

Made from the JSON files under evidence/; a figure that stands here was taken from one of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.markdown import table
from limbeck.report.metrics import Metric, metric_of
from limbeck.report.numbers import significant
from limbeck.report.statistics import t_interval

EVIDENCE = Path(__file__).resolve().parent.parent / "evidence"

Record = dict[str, Any]


def records() -> list[Record]:
    """The comparisons that have been run, in order of their names."""
    paths = sorted(p for p in EVIDENCE.glob("*/*.json") if p.parent.name != "benchmarks")
    return [json.loads(p.read_text(encoding="utf-8")) for p in paths]


def summary() -> dict[str, Any]:
    """What all comparisons come to; empty where nothing was run."""
    path = EVIDENCE / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"checks": 0, "claims": {}}


# ------------------------------------------------------------------------------------------------------------- claims


def clauses_table(slug: str, claims: Mapping[str, Any] | None = None) -> str:
    """A claim's clauses, their checks and their verdicts; then the checks beside it. Empty where there is none.

    Args:
        slug: of the Card.
        claims: of ``summary.json``, by default this checkout's.
    """
    claim = (summary()["claims"] if claims is None else claims).get(slug)
    if claim is None:
        return ""
    rows: list[Sequence[str]] = []
    for clause in claim["clauses"]:
        if clause["why"] or not clause["checks"]:
            rows.append((clause["says"], _sentence(clause["why"]), "", "", "", f"**{clause['status']}**"))
        rows += _check_rows("" if clause["why"] else clause["says"], clause["checks"])
    rows += _check_rows("*beside the claim*", claim["beside"])
    head = ("clause", "check", "measured [95 %]", "p (after Holm)", "detectable", "verdict")
    return table(head, rows)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!")) else ".")


def _check_rows(says: str, checks: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    later = [m for m in checks if not m["n"]]
    for i, m in enumerate(m for m in checks if m["n"]):
        at = m["check"]["at"]
        place = f"`evidence/{at}.json`" if at.startswith("benchmarks/") else f"[{at}](compare.md#{anchor(at)})"
        check = f"{m['said']} ({place})"
        yield (says if i == 0 else "", check, measured(m), chance(m), smallest(m), f"**{m['verdict']}**")
    if later:
        names = ", ".join(dict.fromkeys(m["check"]["at"] for m in later))
        count = f"{len(later)} more check{'s' if len(later) > 1 else ''}"
        yield (says if len(later) == len(checks) else "", f"{count}: {names}", "", "", "", "not run yet")


SHARES: dict[str, Callable[[float], str]] = {
    "at_most": lambda x: f"{significant(x, 3)} times",
    "closes": lambda x: f"{significant(x, 2)} of the way",
}
"""Kinds of check whose figures are shares, and how those are written."""


def measured(m: Mapping[str, Any]) -> str:
    """A check's difference or ratio with its intervals, and over how many seeds."""
    metric, kind = metric_of(m["check"]["metric"]), m["check"]["kind"]
    if kind in SHARES:
        digits = 3 if kind == "at_most" else 2
        text = SHARES[kind](m["mean"])
        around = f" [{significant(m['low'], digits)}, {significant(m['high'], digits)}]"
    else:
        text = metric.difference(m["mean"])
        around = f" [{metric.difference(m['low'], False)}, {metric.difference(m['high'], False)}]"
    if m["check"]["exact"] or m["n"] < 2:
        return text if m["check"]["exact"] else f"{text}, one seed"
    items = m.get("items")
    more = ""
    if items:
        more = f"; [{metric.difference(items['low'], False)}, {metric.difference(items['high'], False)}] with items"
    runs = "rounds" if m["check"]["at"].startswith("benchmarks/") else "seeds"
    return f"{text}{around}, {m['n']} {runs}{more}"


def chance(m: Mapping[str, Any]) -> str:
    """A check's p, and what Holm's procedure makes of it."""
    if m["p"] is None:
        return "exact" if m["check"]["exact"] else ""
    return f"{_p(m['p'])} ({_p(m['p_holm'])})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def smallest(m: Mapping[str, Any]) -> str:
    """The difference that as many seeds would have shown in four cases of five."""
    value = m["detectable"]
    if value is None:
        return ""
    kind = m["check"]["kind"]
    return SHARES[kind](value) if kind in SHARES else metric_of(m["check"]["metric"]).amount(value)


# -------------------------------------------------------------------------------------------------------- comparisons


def all_comparisons(*_: str) -> str:
    """How to read the evidence in figures, then every comparison there is."""
    found = records()
    if not found:
        return "No comparison has been run yet: `python evidence/run.py --next` runs a row."
    runs = sum(len(results) for record in found for results in record["runs"].values())
    counted = (
        f"{runs} runs stand behind this page, each counted once; {summary()['checks']} different checks are judged "
        "together, by Holm's procedure."
    )
    return "\n\n".join([counted, *map(comparison, found)])


def comparison(record: Record) -> str:
    """One comparison: what it is, who took part with mean and 95 % interval over seeds, on which machine."""
    metric = metric_of(record["primary"], record.get("higher_is_better"))
    better = "higher" if record.get("higher_is_better") else "lower"
    unit = ", %" if metric.percent else ""
    rows = [(name, interval(metric, list(values.values())), str(len(values))) for name, values in participants(record)]
    parts = [
        f"### {record['name']}",
        f"{record['say']}{varied(record)}",
        table(("", f"{metric.label}{unit} ({better} is better), mean [95 %]", "seeds"), rows),
        *grids(record),
    ]
    if record.get("tuned"):
        parts.append("Each row's settings were searched on the validation split: [what helps when](what-helps.md).")
    if record.get("before"):
        parts.append(f"**Seen before.** {record['before']}")
    for label, seeds in (record.get("failed") or {}).items():
        parts.append(f"{label} failed for seeds {', '.join(seeds)}.")
    parts.append(f"{machine(record)} Made by `{record['made_by']}`: {settings(record)}")
    return "\n\n".join(parts)


def varied(record: Record) -> str:
    """What differs from seed to seed beside what a seed draws."""
    teachers, seeds = record.get("teachers", 1), len(record.get("seeds", []))
    said = ""
    if teachers > 1:
        said += (
            " Each seed has a teacher of its own."
            if teachers >= seeds
            else f" {teachers} teachers, dealt to the seeds."
        )
    if record.get("redeal"):
        said += " The data are dealt anew into training and test items for each seed."
    return said


def participants(record: Record) -> list[tuple[str, dict[int, float]]]:
    """Every row, then what stands beside the rows, each with its value by seed; what is the same for several, once."""
    primary, names = record["primary"], record["called"]
    found: list[tuple[str, dict[int, float]]] = []
    beside: dict[str, list[tuple[list[str], dict[int, float]]]] = {}
    for label, results in record["runs"].items():
        own = per_seed(results, "student", primary)
        called = names["student"]
        found.append((f"`{label}`" + ("" if called == "student" else f" ({called})"), own))
        others = dict.fromkeys(name for r in results for name in r.get("baselines") or {})
        for who in ("alone", *others, "teacher"):
            values = per_seed(results, who, primary)
            if not values:
                continue
            twin = next(
                (o for o in others if o != who and who in others and per_seed(results, o, primary) == values), ""
            )
            if twin and list(others).index(twin) < list(others).index(who):
                continue
            who = f"{who} and {twin}" if twin else who
            same = beside.setdefault(who, [])
            for labels, known in same:
                if known == values:
                    labels.append(label)
                    break
            else:
                same.append(([label], values))
    usual = {
        "kmeans": "real images by k-means",
        "herding": "real images by herding",
        "kmeans and herding": "real images by k-means, and by herding: the same ones",
        **names,
    }
    for who, groups in beside.items():
        for labels, values in groups:
            whose = f" ({', '.join(labels)})" if len(groups) > 1 else ""
            found.append((f"{usual.get(who, who)}{whose}", values))
    return found


def per_seed(results: Sequence[Mapping[str, Any]], who: str, metric: str) -> dict[int, float]:
    """A metric of a participant by seed, where it was measured."""
    found = {}
    for r in results:
        value = ({**(r.get("baselines") or {}), **r["metrics"]}.get(who) or {}).get(metric)
        if value is not None:
            found[r["seed"]] = value
    return found


def interval(metric: Metric, values: Sequence[float]) -> str:
    """Mean and interval over seeds; the mean alone where all seeds have the same (one teacher)."""
    e = t_interval(values)
    if math.isclose(e.low, e.high, rel_tol=1e-9, abs_tol=1e-12):
        return metric.value(e.mean, False)
    return f"{metric.value(e.mean, False)} [{metric.value(e.low, False)}, {metric.value(e.high, False)}]"


GRID = re.compile(r"(.+)_w([\d.]+)_n(\d+)")


def grids(record: Record) -> Iterator[str]:
    """Metrics of samplers, ``NAME_wW_nN``: a table a metric, everybody at each number of steps, with his network calls."""
    cells: dict[str, dict[tuple[float, str, str], dict[int, list[float]]]] = {}
    calls: dict[tuple[float, str, str], float] = {}
    for label, results in record["runs"].items():
        for result in results:
            for who in ("student", "alone", "teacher"):
                for key, value in (result["metrics"].get(who) or {}).items():
                    found = GRID.fullmatch(key)
                    if found and value is not None:
                        name, place, n = found[1], (float(found[2]), label, who), int(found[3])
                        if name == "calls":
                            calls[place] = value / n
                        else:
                            cells.setdefault(name, {}).setdefault(place, {}).setdefault(n, []).append(value)
    for name, rows in cells.items():
        metric = metric_of(name)
        steps = sorted({n for row in rows.values() for n in row})
        order = {"student": 0, "alone": 1, "teacher": 2}
        body = []
        for (w, label, who), row in sorted(rows.items(), key=lambda x: (x[0][0], x[0][1], order[x[0][2]])):
            told = f"`{label}`" if who == "student" else record["called"][who]
            per = calls.get((w, label, who))
            body.append(
                (
                    f"{w:g}",
                    told,
                    "" if per is None else f"{per:g}",
                    *(interval(metric, row[n]) if n in row else "" for n in steps),
                )
            )
        unit = ", %" if metric.percent else ""
        head = ("w", "", "calls a step", *(f"{n} step{'s' if n > 1 else ''}" for n in steps))
        yield f"{metric.label}{unit}:\n\n{table(head, body)}"


def settings(record: Record) -> str:
    """Which recipe each row is."""
    rows = {label: words for label, words in record["rows"].items() if label in record["runs"]}
    shared = [w for w in next(iter(rows.values()))[1:] if all(w in words for words in rows.values())]
    own = [
        f"{label} is `{' '.join([words[0], *(w for w in words[1:] if w not in shared)])}`"
        for label, words in rows.items()
    ]
    both = f", all with `{' '.join(shared)}`" if shared and len(rows) > 1 else ""
    if shared and len(rows) == 1:
        own = [f"{label} is `{' '.join(words)}`" for label, words in rows.items()]
    return f"{', '.join(own)}{both}."


def machine(record: Record) -> str:
    """How many runs, how long, where and of which commit, in words."""
    runs = [r for results in record["runs"].values() for r in results]
    seconds = sum(r.get("wall_seconds") or 0.0 for r in runs)
    places, commits = [], []
    for run in runs:
        hardware, versions = run.get("hardware") or {}, run.get("versions") or {}
        where = (
            hardware.get("accelerator")
            or hardware.get("cpu")
            or f"{hardware.get('machine', 'a machine')} (model not recorded)"
        )
        threads = hardware.get("threads", "?")
        places.append(f"{where}, {threads} thread{'' if threads == 1 else 's'}, torch {versions.get('torch', '?')}")
        commits.append(str(versions.get("commit") or "not recorded"))
    return (
        f"{len(runs)} runs, {seconds / 60:.0f} minutes in all, on {' and '.join(dict.fromkeys(places))}; "
        f"commit {' and '.join(dict.fromkeys(commits))}."
    )


def anchor(name: str) -> str:
    """The id of a heading."""
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-")
