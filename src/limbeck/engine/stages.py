"""Who learns in a stage, and what it is once the run has reached it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError
from limbeck.grammar.method import Stage
from limbeck.grammar.optim import Optim
from limbeck.grammar.role import Role


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
        found |= {n: found["student"] for n in sorted(roles) if n.startswith("projector:") and n not in found}
    return {n: o for n, o in found.items() if roles[n].parameters()}


def reached(stage: Stage, ctx: RunContext) -> Stage:
    """The stage with its data and the number of its steps known: functions of the context are asked now."""
    data: Any = stage.data
    if callable(data) and not hasattr(data, "fetch"):
        data = data(ctx)
    steps = stage.steps(ctx) if callable(stage.steps) else stage.steps
    if stage.items is None and (not isinstance(steps, int) or steps < 0):
        raise ConfigError(f"stage {stage.name!r}.steps", given=steps, expected="a whole number, 0 or more")
    found = replace(stage, data=data, steps=steps)
    ctx.total = found.total
    return found


__all__ = ["learners", "reached"]
