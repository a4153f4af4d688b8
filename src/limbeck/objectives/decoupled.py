"""Losses of DKD and DIST as objectives: hosts and add-ons for other methods."""

from __future__ import annotations

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.relation import dist
from limbeck.grammar.method import Batch, Context, Objective, Term
from limbeck.grammar.settings import NonNegative, Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Task

NAMES = {"objective": {"dkd": "Dkd", "dist": "Dist"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


def _one_label(task: Task) -> None:
    kind = getattr(task, "kind_of_target", type(task).__name__.lower())
    if kind != "label":
        raise ConfigError(
            "task",
            "it needs items of one class each",
            given=kind,
            expected="a classification task with one label per item",
            remedy="use objectives.NAME=divergence",
        )


@settings
class Dkd(Objective):
    """Decoupled knowledge distillation: target and non-target classes with weights of their own (Zhao et al. 2022).

    Args:
        weight: weight of the term.
        alpha: weight of the target part.
        beta: weight of the non-target part.
        temperature: divides both logits; T squared is multiplied in.
    """

    weight: float = 1.0
    alpha: NonNegative = 1.0
    beta: NonNegative = 8.0
    temperature: Positive = 4.0

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        _one_label(task)

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """Both parts, per item [N]."""
        assert teacher is not None
        parts = F.dkd(
            student.logits,
            teacher.logits,
            batch["y"],
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
        )
        return Term(parts.target + parts.nontarget, weight=self.weight)


@settings
class Dist(Objective):
    """DIST: Pearson distance of the predictions, between classes of an item and between items of a class (Huang et al. 2022).

    Args:
        weight: weight of the term.
        beta: weight of the relation between classes.
        gamma: weight of the relation between items.
        temperature: of both softmaxes; T squared is multiplied in.
    """

    reads_labels = False

    coupled = "compares the items of a batch with each other"

    weight: float = 1.0
    beta: NonNegative = 1.0
    gamma: NonNegative = 1.0
    temperature: Positive = 1.0

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        _one_label(task)

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The relation between classes, per item [N], plus the mean over classes of the relation between items."""
        assert teacher is not None
        # the released code's eps: without it a class that no item of the batch is given has a gradient of any size
        inter, intra = dist(student.logits, teacher.logits, temperature=self.temperature, eps=1e-8)
        return Term(self.temperature**2 * (self.beta * inter + self.gamma * intra.mean()), weight=self.weight)


__all__ = ["Dist", "Dkd"]
