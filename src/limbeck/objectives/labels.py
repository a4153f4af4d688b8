"""Queries that change labels: smoothed ones, and wrong ones that stay wrong."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Context, Query
from limbeck.grammar.settings import Fraction, Share, settings
from limbeck.grammar.task import Task
from limbeck.objectives.queries import _mixable

NAMES = {"query": {"label-smoothing": "LabelSmoothing", "wrong-labels": "WrongLabels"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


def _check(task: Task, name: str, classes: int | None) -> None:
    """Refuse a task whose items do not have one class each, and a number of classes that is not the task's.

    Raises:
        ConfigError: which of the two.
    """
    labels, kind = task.labels, getattr(task, "kind_of_target", None)
    y = task.example(1).get("y")
    if kind != "label" or labels is None or not isinstance(y, Tensor) or y.ndim > 2:
        raise ConfigError(
            f"queries.{name}",
            f"{type(task).__name__} does not have items of one class each",
            given=kind,
            expected="a classification task with one label per item",
            remedy="leave it out",
        )
    if classes is not None and classes != len(labels):
        raise ConfigError(
            "classes",
            given=classes,
            expected=f"{len(labels)}, the classes of this task",
            remedy="leave it out: it is then taken from the task",
        )


@settings
class LabelSmoothing(Query):
    """Labels of which a share is spread evenly over all classes: ``(1 - share) y + share / C`` (Szegedy et al. 2016).

    It is distillation from a teacher that knows nothing: ``CE(smoothed) = (1 - share) CE(y) + share CE(uniform)``.

    Args:
        share: what is taken from the label; 0 leaves it as it is, and hard labels as class ids.
        classes: number of classes; ``null`` takes the task's.
    """

    changes_labels = True

    share: Share = 0.1
    classes: Annotated[int, Ge(2)] | None = None

    def accept(self, task: Task) -> None:
        """Items of one class each."""
        _check(task, "label-smoothing", self.classes)

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Soft labels [N, C]."""
        if not self.share:
            return batch
        y = _mixable(batch, ctx, "label-smoothing", self.classes)
        return {**batch, "y": (1 - self.share) * y + self.share / y.shape[1]}


@settings
class WrongLabels(Query):
    """Wrong labels for a share of the training items, to try how a method bears them: the same items, each time the same.

    The wrong class is one of the others, each with the same probability. Validation and test items keep their labels.

    Args:
        share: of the items.
        classes: number of classes; ``null`` takes the task's.
    """

    changes_labels = True

    share: Fraction = 0.3
    classes: Annotated[int, Ge(2)] | None = None

    def accept(self, task: Task) -> None:
        """Items of one class each."""
        _check(task, "wrong-labels", self.classes)

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Class ids [N] (soft labels [N, C] with their classes moved round), some of them wrong."""
        y = batch["y"]
        classes = _mixable(batch, ctx, "wrong-labels", self.classes).shape[1]
        draws = ctx.draws.anywhere()
        wrong = (draws.rand("wrong-labels", batch["item"]) < self.share).to(y.device)
        on = draws.randint("wrong-class", batch["item"], classes, low=1).to(y.device)  # 1 .. C - 1 classes further
        if not y.is_floating_point():
            return {**batch, "y": torch.where(wrong, (y + on) % classes, y)}
        at = (torch.arange(classes, device=y.device) - on[:, None]) % classes
        return {**batch, "y": torch.where(wrong[:, None], y.gather(1, at), y)}


__all__ = ["LabelSmoothing", "WrongLabels"]
