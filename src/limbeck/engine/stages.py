"""Who learns in a stage, how a recipe tunes it, and what it is once the run has reached it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError
from limbeck.grammar.method import Method, Stage
from limbeck.grammar.optim import Optim
from limbeck.grammar.role import Role

COUNTS = ("steps", "batch_size", "epochs")
"""What a recipe may say of a stage itself."""


def learners(stage: Stage, roles: Mapping[str, Role], early: bool = False) -> dict[str, Optim]:
    """How each role that learns in a stage is optimised. Projectors of add-ons are, as the student is.

    Args:
        stage: of a run.
        roles: the method's.
        early: the stage is not reached yet, and what its `setup` will make is left out.

    Raises:
        ConfigError: the stage's ``optim`` names no role, or one that cannot learn.
    """
    if stage.items is not None:
        return {}
    for name in stage.optim:
        if name not in roles and early:
            continue
        if name not in roles:
            raise ConfigError.unknown(f"stage {stage.name!r}.optim", name, roles, "role")
        if roles[name].of is not None or not isinstance(roles[name].module, nn.Module):
            what = "an average of another role" if roles[name].of is not None else type(roles[name].module).__name__
            raise ConfigError(f"stage {stage.name!r}.optim", f"role {name!r} cannot learn: it is {what}")
    found = {n: o for n, o in stage.optim.items() if n in roles}
    if "student" in found:
        whole = found["student"]
        if whole.groups or whole.only or whole.layer_decay:  # these are about the student's own parameters
            whole = whole.with_(groups=None, only=None, layer_decay=None)
        found |= {n: whole for n in sorted(roles) if n.startswith("projector:") and n not in found}
    return {n: o for n, o in found.items() if roles[n].parameters()}


def check_patterns(method: Method, stage: Stage, role: str) -> None:
    """Refuse patterns of an optimiser that fit no parameter: said before anything is trained.

    Settings that several roles share (a recipe's ``train``) must fit in one of them; of ``only`` in each, for a role in
    which nothing learns is to be left out of the stage.

    Raises:
        ConfigError: the pattern, and the nearest names.
    """
    optim = stage.optim[role]
    shared = [n for n, o in stage.optim.items() if o is optim and n in method.roles]
    names = {n: list(method.roles[n].parameters()) for n in shared}
    place = stage.section if optim is method.setup.train else f"stages.{stage.name}.{role}"
    for setting, pattern in optim.unmatched([name for n in shared for name in names[n]]):
        whose = f"parameter of {' or '.join(shared)}"
        raise ConfigError.unknown(f"{place}.{setting}", pattern, [name for n in shared for name in names[n]], whose)
    if not optim.learning(names[role]):
        raise ConfigError(
            f"{place}.only",
            f"it fits no parameter of role {role!r}, which learns in stage {stage.name!r}",
            given=optim.only,
            remedy=f"set stages.{stage.name}.ROLE.only for the roles that it is meant for",
        )


def tuned(
    stages: Sequence[Stage], settings: Mapping[str, Mapping[str, Any]], others: Sequence[str] = ()
) -> list[Stage]:
    """A method's stages as a recipe tunes them.

    Args:
        stages: as the method gives them.
        settings: for stages by name, or by pattern (``halve*``, which a name goes before): ``steps`` or ``epochs``,
            ``batch_size``, and changes of the optimiser of a role that learns there. Of a stage of items: changes of the
            optimisers of what its work trains, their own ``steps`` and ``batch_size`` among them.
        others: stages that the method has under other settings (`Method.stage_names`): nothing here is said of them.

    Raises:
        ConfigError: no such stage, or no such role in it.
    """
    found = {s.name: s for s in stages}
    by_name = sorted(settings, key=lambda pattern: pattern in found)  # names last, so that they have the last word
    for pattern in by_name:
        names = [n for n in found if n == pattern or (pattern not in found and fnmatchcase(n, pattern))]
        if not names and pattern not in others:
            known = dict.fromkeys([*found, *others])
            raise ConfigError.unknown(f"stages.{pattern}", pattern, known, "stage of this method")
        for name in names:
            found[name] = _changed(found[name], settings[pattern], f"stages.{pattern}")
    return list(found.values())


def _changed(stage: Stage, changes: Mapping[str, Any], place: str) -> Stage:
    optim, counts = dict(stage.optim), dict[str, Any]()
    for key, value in changes.items():
        if key in COUNTS and stage.items is not None:
            raise ConfigError(
                f"{place}.{key}",
                f"stage {stage.name!r} has items, which are no steps",
                remedy=f"what its work trains is set by {place}.{next(iter(optim))}" if optim else "leave it out",
            )
        if key == "epochs" and (stage.data is None or stage.choose is not None):
            why = "has no data to go through" if stage.data is None else "chooses its items anew, and counts in steps"
            raise ConfigError(f"{place}.{key}", f"stage {stage.name!r} {why}", remedy=f"set {place}.steps")
        if key in COUNTS:
            counts[key] = value
        elif key in optim:
            own = [name for name in COUNTS if name in value] if stage.items is None else []
            if own:
                expected = f"{place}.{own[0]}, which all roles of the stage share"
                raise ConfigError(f"{place}.{key}.{own[0]}", given=value[own[0]], expected=expected)
            optim[key] = _with(optim[key], value, f"{place}.{key}")
        else:
            known = [*optim, *(COUNTS if stage.items is None else ())]
            raise ConfigError.unknown(f"{place}.{key}", key, known, f"role or setting of stage {stage.name!r}")
    if "steps" in counts:
        optim = {n: _with(o, {"steps": counts["steps"]}, f"{place}.steps") for n, o in optim.items()}
        counts["epochs"] = None
    elif "epochs" in counts:
        counts["steps"] = None
    if "batch_size" in counts:
        counts["section"] = place  # what a message about it names
    return replace(stage, optim=optim, **counts)


def _with(optim: Optim, changes: Mapping[str, Any], place: str) -> Optim:
    try:
        return optim.with_(**changes)
    except ValueError as error:
        raise ConfigError(place, str(error)) from None


def reached(stage: Stage, ctx: RunContext) -> Stage:
    """The stage with its data and the number of its steps known: functions of the context are asked now."""
    data: Any = stage.data
    if callable(data) and not hasattr(data, "fetch"):
        data = data(ctx)
    if stage.epochs is not None:
        total = replace(stage, data=data).total
        stage = replace(stage, steps=total, epochs=None)
    steps = stage.steps(ctx) if callable(stage.steps) else stage.steps
    if stage.items is None and (not isinstance(steps, int) or steps < 0):
        raise ConfigError(f"stage {stage.name!r}.steps", given=steps, expected="a whole number, 0 or more")
    found = replace(stage, data=data, steps=steps)
    ctx.total = found.total
    return found


__all__ = ["COUNTS", "check_patterns", "learners", "reached", "tuned"]
