"""Settings that were called otherwise in an earlier version: recipes and run folders of then are read as they were meant."""

from __future__ import annotations

import copy
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

_TRAJECTORIES = {
    "expert": "stages.experts.expert",
    "lr_images": "stages.distil.student.lr",
    "lr_step": "stages.distil.step_size.lr",
    "lr_labels": "stages.distil.labels.lr",
}
STAGED: Final[dict[str, dict[str, str]]] = {"mtt": _TRAJECTORIES, "tesla": _TRAJECTORIES}
"""Settings of a method that are settings of its stages since 0.2: method -> its old name -> where it stands now."""

OF_TAID: Final = ("schedule", "t_start", "t_end", "alpha", "beta", "space", "detach_student")
"""What only TAID itself has, and its baselines did not read."""

OF_BASELINES: Final = ("mix", "head", "dkd_alpha", "dkd_beta", "variant")
"""What only they had."""


def renamed(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree with old names replaced.

    Raises:
        ConfigError: a setting stands there under both names; it says what to type.
    """
    return _rounds(_baselines_of_taid(_staged(_evaluated(_short(tree)))))


def _short(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """``task.loss`` of texts is short for ``task.loss_on``."""
    task = tree.get("task")
    if not isinstance(task, Mapping) or task.get("use") != "language" or "loss" not in task:
        return tree
    if "loss_on" in task and task["loss_on"] != task["loss"]:
        raise ConfigError("task.loss", "is task.loss_on, and that is set too", remedy="leave one of them out")
    return {**tree, "task": {**{k: v for k, v in task.items() if k != "loss"}, "loss_on": task["loss"]}}


def _staged(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    method = tree.get("method")
    if not isinstance(method, Mapping):
        return tree
    moved = STAGED.get(str(method.get("use")), {})
    old = {name: method[name] for name in moved if name in method}
    if not old:
        return tree
    stages: dict[str, Any] = copy.deepcopy(dict(tree.get("stages") or {}))
    for name, value in old.items():
        if name == "lr_labels" and method.get("labels") != "learned":
            continue  # nobody learns them, and no such role stands in the stage
        if name == "lr_step" and value == 0:
            value = 1e-30  # what kept the step size where it began
        for key, own in value.items() if isinstance(value, Mapping) else [("", value)]:
            if (name, key) != ("expert", "steps"):  # the epochs say how long
                _put(stages, f"{moved[name]}.{key}".rstrip("."), own, f"method.{name}.{key}".rstrip("."))
    return {**tree, "method": {k: v for k, v in method.items() if k not in old}, "stages": stages}


def _baselines_of_taid(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The divergences that stood in TAID's place are ``token-kd``."""
    method = tree.get("method")
    if not isinstance(method, Mapping) or method.get("use") != "taid" or "divergence" not in method:
        return tree
    if method["divergence"] == "taid":
        return {**tree, "method": {k: v for k, v in method.items() if k not in ("divergence", *OF_BASELINES)}}
    return {**tree, "method": {**{k: v for k, v in method.items() if k not in OF_TAID}, "use": "token-kd"}}


def _rounds(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The lengths of guided-diffusion's rounds are its stages' (since 0.2)."""
    method = tree.get("method")
    if not isinstance(method, Mapping) or not {"round_steps", "last_round_steps"} & set(method):
        return tree
    stages: dict[str, Any] = copy.deepcopy(dict(tree.get("stages") or {}))
    n, end = method.get("start_steps", 16), method.get("end_steps", 1)
    halved: list[int] = []
    while isinstance(n, int) and isinstance(end, int) and n > max(1, end):
        halved.append(n := n // 2)
    kinds = {"halve": halved, "stochastic": method.get("stochastic") or [], "encode": method.get("encoder_steps") or []}
    for kind, rounds in kinds.items():
        steps, last = method.get("round_steps"), method.get("last_round_steps")
        if rounds and steps is not None:
            _put(stages, f"stages.{kind}*.steps", steps, "method.round_steps")
        for n in rounds if last is not None and isinstance(rounds, list) else ():
            if n <= 4:
                _put(stages, f"stages.{kind}{n}.steps", last, "method.last_round_steps")
    kept = {k: v for k, v in method.items() if k not in ("round_steps", "last_round_steps")}
    return {**tree, "method": kept, **({"stages": stages} if stages else {})}


def _put(stages: dict[str, Any], place: str, value: Any, old: str) -> None:
    *path, last = place.split(".")[1:]
    node = stages
    for name in path:
        node = node.setdefault(name, {})
    if last in node and node[last] != value:
        raise ConfigError(old, f"is called {place} now, and that is set too", remedy=f"type {place}={value}")
    node[last] = value


def _evaluated(tree: Mapping[str, Any]) -> Mapping[str, Any]:
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
