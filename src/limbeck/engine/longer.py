"""Going on with a run to more steps than it was begun with: what may be, and what is to be said of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from limbeck.engine.stages import learners
from limbeck.errors import StorageError
from limbeck.grammar.method import Method, Stage
from limbeck.grammar.role import Role

_LENGTH = re.compile(r"train\.(steps|epochs)|stages\..+\.(steps|epochs)")


def lengthened(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The lengths that have grown between two recipes' settings by path, where nothing else differs; else nothing.

    Example:
        >>> lengthened({"train.steps": 10, "seed": 0}, {"train.steps": 20, "seed": 0})
        ['train.steps']
        >>> lengthened({"train.steps": 10, "seed": 0}, {"train.steps": 20, "seed": 1})
        []
    """
    then, now = ({k: v for k, v in s.items() if (k, v) != ("stages", {})} for s in (then, now))
    changed = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
    for name in changed:
        before, after = then.get(name), now.get(name)
        grown = isinstance(after, (int, float)) and (
            before is None or (isinstance(before, (int, float)) and after > before)
        )
        if not _LENGTH.fullmatch(name) or not grown:
            return []
    return changed


def going_on(method: Method, stages: list[Stage], saved: Mapping[str, Any], grown: list[str], folder: str) -> Any:
    """A checkpoint as the run goes on from it under larger lengths, with what is to be said of it.

    Args:
        method: bound.
        stages: as they are to be now.
        saved: the newest checkpoint, of a run that has ended or was stopped.
        grown: the settings that differ.
        folder: for messages.

    Returns:
        (the checkpoint, sentences).

    Raises:
        StorageError: it would be neither the run that was begun nor the longer one.
    """
    at, found = int(saved["stage"]), dict(saved)
    ended = saved.get("ended") or {}

    def refused(why: str, remedy: str = "") -> StorageError:
        other = "choose another folder with --out, or replace the run with --force"
        return StorageError(
            folder,
            f"its run cannot go on to {' and '.join(grown)}: {why}",
            remedy=f"{remedy}; or {other}" if remedy else other,
        )

    for i, stage in enumerate(stages[: min(at, len(stages) - 1)]):
        before = saved.get("lengths", {}).get(stage.name)
        if stage.items is None and callable(stage.steps):
            raise refused(
                f"stage {stage.name!r} tells its length only when it begins, so it may have become another",
                f"set stages.{stages[-1].name}.steps alone",
            )
        if before is not None and stage.total != before:
            raise refused(
                f"stage {i + 1} ({stage.name!r}) took {before} steps and would take {stage.total}, and what follows learnt from it",
                f"set stages.{stages[-1].name}.steps alone",
            )
    if at == len(stages):
        stage = stages[-1]
        if not ended:
            raise refused(f"its last stage ({stage.name!r}) has left no optimiser to go on with")
        offset = int(saved["offset"]) - max(1, int(ended["step"]))
        roles = {**saved["roles"], **ended["roles"]}
        found |= {**ended, "stage": at - 1, "begun": True, "offset": offset, "roles": roles, "meter": {}}
    elif not saved["begun"]:
        return found, []
    stage = stages[int(found["stage"])]
    if stage.items is not None:
        return found, []
    if not isinstance(stage.steps, int) and stage.epochs is None:
        raise refused(f"stage {stage.name!r} tells its length only when it begins", f"set stages.{stage.name}.steps")
    old, new, step = int(found["total"]), stage.total, int(found["step"])
    if new < step:
        raise refused(f"stage {stage.name!r} has taken {step} steps already and would take {new}")
    if new == old:
        return (dict(saved) if at == len(stages) else found), []
    if stage.name in found.get("asked", ()):
        raise refused(
            f"stage {stage.name!r} asks how long it is (ctx.total): its first {step} steps would have been others in a run of {new}"
        )
    looked = sorted({*range(0, step, max(1, step // 1000)), max(0, step - 1)})
    for name, role in method.roles.items():
        if role.of in method.roles and _decays(role, looked, old) != _decays(role, looked, new):
            raise refused(f"the average {name!r} moves by a share that depends on how long the stage is")
    said = [f"stage {stage.name!r} goes on after {step} of {old} steps, to {new}"]
    for name, optim in learners(stage, method.roles, early=True).items():
        if [optim.rate(s, old) for s in looked] != [optim.rate(s, new) for s in looked]:
            said.append(
                f"the learning rate of {name} ({optim.schedule}) had been laid out over {old} steps and is stretched to {new} from "
                f"step {step} on, so this is not the run that would have taken {new} steps from the start"
            )
    return found, said


def _decays(role: Role, steps: list[int], total: int) -> list[float]:
    return [role.decay(s, total) if callable(role.decay) else float(role.decay or 0.0) for s in steps]


__all__ = ["going_on", "lengthened"]
