"""Classes of two lists matched by their names."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.data.names import composed
from limbeck.errors import TeacherMismatch


def match_classes(teacher: Sequence[str], task: Sequence[str]) -> tuple[int, ...] | None:
    """For each of the task's classes the teacher's own output, by name; ``None`` when the lists agree.

    Names are compared exactly; what is then still missing is compared without regard to case, spaces, hyphens and
    underscores, and by any one of a teacher's comma-separated synonyms, where that leaves no doubt.

    Raises:
        TeacherMismatch: the teacher lacks a class, or a name fits two of its classes.

    Example:
        >>> match_classes(["cat", "dog", "emu"], ["emu", "cat"])
        (2, 0)
    """
    if list(teacher) == list(task):
        return None
    exact: dict[str, list[int]] = {}
    loose: dict[str, list[int]] = {}
    for i, name in enumerate(teacher):
        exact.setdefault(name, []).append(i)
        for form in {plain_name(name), *(plain_name(part) for part in name.split(","))}:
            loose.setdefault(form, []).append(i)
    index: list[int] = []
    missing: list[str] = []
    doubtful: list[str] = []
    for name in task:
        found = exact.get(name) or loose.get(plain_name(name), [])
        if len(found) == 1:
            index.append(found[0])
        else:
            (doubtful if found else missing).append(name)
    if missing or doubtful or len(set(index)) < len(index):
        said = []
        if missing:
            said.append(f"the teacher has no class {_names(missing)}")
        if doubtful:
            said.append(f"more than one of the teacher's classes may be {_names(doubtful)}")
        if not said:
            said.append("two of the task's classes fit the same class of the teacher")
        raise TeacherMismatch(
            "teacher.labels",
            "; ".join(said),
            given=list(teacher),
            expected=f"a class for each of {_names(list(task))}",
            remedy="name the teacher's classes in order with teacher.labels=FILE, or train a teacher on this data",
        )
    return tuple(index)


def plain_name(name: str) -> str:
    """A class name without regard to case, hyphens, underscores and spaces."""
    return " ".join(composed(name).casefold().replace("_", " ").replace("-", " ").split())


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
