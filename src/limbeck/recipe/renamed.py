"""Settings that were called otherwise in an earlier version: recipes and run folders of then are read as they were meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from limbeck.errors import ConfigError

RENAMED: Final[dict[str, dict[str, str]]] = {
    "condensation": {
        "evaluation": "optim",
        "networks": "networks",
        "architectures": "architectures",
        "baselines": "baselines",
    },
    "generation": {name: name for name in ("guidance", "steps", "samples", "times_more", "reference_steps")},
}
"""Settings of a task that are settings of its evaluator since 0.2: task -> its old name -> the new one."""


def renamed(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree with old names replaced.

    Raises:
        ConfigError: a setting stands there under both names.
    """
    task = tree.get("task")
    if not isinstance(task, Mapping):
        return tree
    moved = RENAMED.get(str(task.get("use")), {})
    old = {name: task[name] for name in moved if name in task}
    if not old:
        return tree
    given = tree.get("evaluator")
    evaluator = {"use": given} if isinstance(given, str) else dict(given or {})
    for name, value in old.items():
        if moved[name] in evaluator:
            raise ConfigError(
                f"task.{name}",
                f"is called evaluator.{moved[name]} now, and that is set too",
                remedy=f"leave task.{name} out",
            )
        evaluator[moved[name]] = value
    return {**tree, "task": {k: v for k, v in task.items() if k not in old}, "evaluator": evaluator}
