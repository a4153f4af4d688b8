"""Which students a comparison holds, in words: what cannot be compared fairly is said, and how to make it comparable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import human

Node = Mapping[str, Any]


@dataclass(frozen=True)
class Student:
    """One student that some of the rows have in common.

    Attributes:
        rows: the names of those rows.
        model: the recipe's resolved ``student``, where known.
        parameters: how many it has, where known.
        items: how many items it learns from, where known.
    """

    rows: list[str]
    model: Node | None = None
    parameters: float | None = None
    items: int | None = None


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def said(students: Sequence[Student]) -> str:
    """Whose student is which: of several students, the sentence that keeps them apart."""
    nodes = [s.model for s in students if s.model is not None]
    keys = _differing(nodes)
    items = len({s.items for s in students}) > 1
    parts = []
    for s in students:
        words = "" if s.model is None else " ".join([_use(s.model), *(_setting(k, s.model) for k in keys)])
        facts = [f"{human(s.parameters)} parameters"] if s.parameters else []
        facts += [f"{s.items:,} items to learn from"] if items and s.items else []
        if words and facts:
            words += f" ({', '.join(facts)})"
        words = words or (f"one of {' and '.join(facts)}" if facts else "another")
        parts.append(f"{listed(s.rows)} {'has' if len(s.rows) == 1 else 'have'} {words}")
    return f"The students differ: {'; '.join(parts)}. Only rows with the same student are compared with each other."


def remedy(students: Sequence[Student]) -> str:
    """What to type so that every row has the student of the first; nothing where that isn't known."""
    nodes = [s.model for s in students]
    if any(n is None for n in nodes):
        return ""
    known = [n for n in nodes if n is not None]
    keys = _differing(known)
    whose = f"the student of {listed(students[0].rows)}"
    if not keys and len({_use(n) for n in known}) == 1:
        return ""
    if len({_use(n) for n in known}) > 1 or any(isinstance(n.get(k), Mapping) for n in known for k in keys):
        return "Setting student=... on the command line gives every row the same student."
    return f"Setting {' '.join(f'student.{_setting(k, known[0])}' for k in keys)} gives every row {whose}."


def _use(node: Node) -> str:
    return str(node.get("use", "a student"))


def _setting(key: str, node: Node) -> str:
    value = node.get(key)
    return f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'), default=str)}"


def _differing(nodes: Sequence[Node]) -> list[str]:
    """Settings in which models of one kind differ; of different kinds the kind says enough."""
    if len({_use(n) for n in nodes}) > 1:
        return []
    keys = dict.fromkeys(k for n in nodes for k in n)
    return [k for k in keys if any(n.get(k) != nodes[0].get(k) for n in nodes)]


__all__ = ["Student", "listed", "remedy", "said"]
