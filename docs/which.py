"""Which method to use: family by family what each needs, as measured, and what the comparisons under evidence/ show.

What is called, trained and read in a step comes from ``evidence/needs.json`` (``python evidence/needs.py``), who takes part
and in which family a method is from its Card, the gains from the comparisons.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from docs.evidence import EVIDENCE, Record, anchor, per_seed, records
from docs.markdown import table
from limbeck.grammar.card import Card, catalogue, evidence
from limbeck.report.metrics import metric_of
from limbeck.report.statistics import t_interval

TEXT = ("Language", "MaskedWords", "Questions", "Statements", "Sentences")
"""Tasks whose data are text without labels."""

LABELS: Mapping[str, tuple[str, ...]] = {
    "Boxes": ("boxes", "labels"),
    "Keypoints": ("points",),
    "Poses": ("pose:body", "pose:hand", "pose:face"),
    "TextPairs": ("same", "key"),
    "CrossLingual": ("y",),
}
"""Task -> the parts of a batch that are its labels; of all others it is ``y``."""

BY_CLASS = ("Condensation", "GraphCondensation", "Generation")
"""Tasks that work class by class whatever the method."""


@lru_cache
def measured() -> dict[str, Any]:
    """What ``evidence/needs.json`` holds; empty where it has not been made."""
    path = EVIDENCE / "needs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def labels(name: str) -> str:
    """Whether a method's steps read labels, and in which stages."""
    found = measured()[name]
    if found["task"] in TEXT:
        return "text alone"
    if found["task"] in BY_CLASS:
        return "classes"
    keys = LABELS.get(found["task"], ("y",))
    reading = [stage for stage, step in found["steps"].items() if set(keys) & set(step["reads"])]
    if not reading:
        return "no"
    return "yes" if len(reading) == len(found["steps"]) else f"in {_listed(reading)}"


def teachers(name: str) -> str:
    """Who takes part beside the student."""
    found = measured()[name]["participants"]
    needed = [who for who, how in found.items() if how["needed"]]
    optional = [who for who, how in found.items() if not how["needed"]]
    said = _listed(needed) if needed else "none"
    return f"{said} ({_listed(optional)} if you have one)" if optional else said


def _main(name: str) -> tuple[str, Mapping[str, Any]] | None:
    """The stage in which a step costs most, among those in which what is delivered learns."""
    steps = measured()[name]["steps"]
    own = {stage: step for stage, step in steps.items() if "student" in step["learns"]} or steps
    return max(own.items(), key=lambda item: sum(item[1]["calls"].values())) if own else None


def passes(name: str) -> str:
    """Calls of whole networks in a step."""
    main = _main(name)
    if main is None:
        return "no steps"
    calls = main[1]["calls"]
    return ", ".join(f"{who} {n:.3g}" for who, n in calls.items()) if "student" in calls else "parts of networks"


def trained(name: str) -> str:
    """What learns at once, and so takes gradients and optimizer state."""
    main = _main(name)
    return "nothing" if main is None else _listed(main[1]["learns"])


def before(name: str) -> str:
    """Stages beside the one that is described."""
    main = _main(name)
    return _listed([s for s in measured()[name]["stages"] if main is None or s != main[0]])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


# ------------------------------------------------------------------------------------------------------------ the gains


def gains(name: str, found: Sequence[Record] | None = None) -> Iterator[tuple[str, str, str]]:
    """Comparisons with a row of this method: (comparison, what it gained over what stands beside it, its verdict).

    Of several rows of the method, the one with the fewest settings of its own is taken. The verdict is ``better``,
    ``worse`` or ``open``: on which side of zero the 95 % interval over seeds lies.
    """
    for record in records() if found is None else found:
        own_rows = [k for k, words in record["rows"].items() if k in record["runs"] and method_of(words) == name]
        if not own_rows:
            continue
        label = min(own_rows, key=lambda k: len(record["rows"][k]))
        primary = record["primary"]
        own, alone = (per_seed(record["runs"][label], who, primary) for who in ("student", "alone"))
        seeds = sorted(own.keys() & alone.keys())
        if not seeds:
            continue
        metric = metric_of(primary, record.get("higher_is_better"))
        if len(seeds) < 2:
            yield record["name"], f"{metric.difference(own[seeds[0]] - alone[seeds[0]])}, one seed", "open"
            continue
        e = t_interval([own[s] - alone[s] for s in seeds])
        sign = 1 if record.get("higher_is_better") else -1
        verdict = "better" if sign * (e.low if sign > 0 else e.high) > 0 else "open"
        if sign * (e.high if sign > 0 else e.low) < 0:
            verdict = "worse"
        around = f"[{metric.difference(e.low, False)}, {metric.difference(e.high, False)}]"
        what = "" if primary == "accuracy" else f" in {metric.label}{'' if sign > 0 else ' (lower is better)'}"
        over = record["called"].get("alone", "")
        than = "" if not over or over.startswith("student alone") else f", against {over}"
        yield record["name"], f"{metric.difference(e.mean)} {around}{what}, {len(seeds)} seeds{than}", verdict


def method_of(words: Sequence[str]) -> str:
    """The method that a row of a comparison runs."""
    return next((w.removeprefix("method=") for w in words[1:] if w.startswith("method=")), words[0])


def gain_cell(name: str) -> str:
    """The gains as they stand in a table."""
    parts = [f"{said} ([{at}](compare.md#{anchor(at)}))" for at, said, _ in gains(name)]
    return "; ".join(parts) or "not measured yet"


# --------------------------------------------------------------------------------------------------------- the families


def families(*_: str) -> str:
    """Every family with its methods."""
    cards = catalogue()
    parts = []
    for family in sorted({card.family for card in cards}):
        own = [card for card in cards if card.family == family]
        parts += [f"## {family.capitalize()}", summary_of(own), table(NEEDS, needs(own)), table(SHOWN, shown(own))]
    return "\n\n".join(parts)


NEEDS = ("method", "labels", "teachers", "network calls a step", "trained at once", "other stages")
SHOWN = ("method", "gain over the student alone", "claim of the paper")


def needs(cards: Sequence[Card]) -> Iterator[Sequence[str]]:
    """What each method needs, a row each."""
    for name in _names(cards):
        if name in measured():
            yield (f"`{name}`", *(part(name) for part in (labels, teachers, passes, trained, before)))
        else:
            yield (f"`{name}`", "not counted yet", "", "", "", "")


def shown(cards: Sequence[Card]) -> Iterator[Sequence[str]]:
    """What was measured of each method, a row each."""
    known = evidence()
    for card in cards:
        for name in card.methods:
            claim = str(known.get(card.slug, {}).get("said", "none yet"))
            yield (f"[`{name}`](methods.md#{card.slug})", gain_cell(name), claim)


def summary_of(cards: Sequence[Card]) -> str:
    """What the comparisons of a family say, in a few sentences."""
    groups: dict[str, list[str]] = {"better": [], "open": [], "worse": [], "none": []}
    for name in _names(cards):
        verdicts = [verdict for _, _, verdict in gains(name)]
        which = next((v for v in ("better", "open", "worse") if v in verdicts), "none")
        groups[which].append(f"`{name}`")
    said = {
        "better": "Better than the baseline in at least one comparison here: {}.",
        "open": "Measured, and no difference shown: {}.",
        "worse": "Worse than the baseline here: {}.",
        "none": "Not measured yet: {}.",
    }
    return " ".join(said[kind].format(_listed(names)) for kind, names in groups.items() if names)


def _names(cards: Sequence[Card]) -> list[str]:
    return [name for card in cards for name in card.methods]
