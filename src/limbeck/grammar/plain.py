"""The plain method: any named mapping of weighted objectives. No file is needed to combine two papers' ideas."""

from __future__ import annotations

from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Context, Method, Objective, Participant, Setup, Terms

NAMES = {"method": {"objectives": "Objectives"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Objectives(Method):
    """A mapping of objectives, by the names they have in logs, overrides and errors.

    Args:
        objectives: name -> objective, each with its own weight.
    """

    def __init__(self, objectives: dict[str, Objective] | None = None) -> None:
        self.objectives = dict(objectives or {})
        if not any(o.reads_labels for o in self.objectives.values()):
            self.takes_unlabelled = "terms"
        self.participants = {"teacher": Participant()} if any(o.needs_teacher for o in self.objectives.values()) else {}

    def bind(self, setup: Setup) -> None:
        """Take the participants; at least one objective must be there."""
        super().bind(setup)
        if not self.objectives and not setup.objectives:
            raise ConfigError(
                "method.objectives", "there is nothing to match", remedy="add one: method.objectives.kl=kl"
            )

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """One term per objective."""
        student = ctx.signal("student", batch)
        teacher = ctx.signal("teacher", batch) if "teacher" in self.roles else None
        return Terms({}, **{n: o(student, teacher, batch, ctx) for n, o in self.objectives.items()})
