"""Norm and direction of the penultimate feature: the student's follows the teacher's class mean (Wang et al. 2023)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional.feature import Denominator, Part, class_directions, class_means, norm_direction
from limbeck.grammar.method import Batch, Context, Term
from limbeck.grammar.settings import Share, settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Task
from limbeck.networks.shows import picture_of, pooled
from limbeck.objectives.classifier_input import OfClassifierInput

NAMES = {"objective": {"norm-direction": "NormDirection"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Adapter(nn.Module):
    """Brings the student's feature to the teacher's width, and holds the teacher's class means.

    Attributes:
        means: mean of the teacher's feature for each class, float32 ``[C, D_t]``.
        net: the adapter ``[N, D_s] -> [N, D_t]``.
    """

    means: Tensor

    def __init__(self, classes: int, width: int, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("means", torch.zeros(classes, width))

    def forward(self, x: Tensor) -> Tensor:
        """The adapted feature."""
        out: Tensor = self.net(x)
        return out


@settings
class NormDirection(OfClassifierInput):
    """The student's penultimate feature points along the teacher's class mean and is at least as long as the teacher's.

    The class means are computed once, before the first step, from the task's training items and the recipe's queries.
    Items without a label count for the class that the teacher predicts. Soft labels (mixup) take the mixture of the
    classes' losses.

    Args:
        weight: weight of the term.
        student: module of the student that gives the feature before the classifier; ``null`` takes the input of the last
            linear layer.
        teacher: module of the teacher; ``null`` likewise (a recorded teacher has no modules: name the recorded tap).
        part: ``both``, ``direction`` alone (1 - cosine to the class mean), or ``norm`` alone.
        target: the direction: the ``class`` mean, or the teacher's feature of the same ``item``.
        denominator: ``max`` of both norms, or the ``teacher``'s norm always.
        adapter: for features of different width: ``batch-norm`` (batch normalisation, dropout, linear, as the released
            code), ``linear``, or ``never``.
        dropout: of the ``batch-norm`` adapter.
    """

    weight: float = 1.0
    student: str | None = None
    teacher: str | None = None
    part: Part = "both"
    target: Literal["class", "item"] = "class"
    denominator: Denominator = "max"
    adapter: Literal["batch-norm", "linear", "never"] = "batch-norm"
    dropout: Share = 0.5

    def validate(self) -> None:
        """Settings that would change nothing are refused."""
        if self.denominator == "teacher" and self.part == "direction":
            raise ValueError("denominator changes nothing for part=direction: leave it out")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tap()

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        kind = getattr(task, "kind_of_target", type(task).__name__.lower())
        if kind != "label":
            raise ConfigError(
                "task",
                "class means need items of one class each",
                given=kind,
                expected="a classification task with one label per item",
                remedy="leave the objective out",
            )

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module:
        """Check both features; make the adapter, with room for the class means."""
        s, t = self.features(student, teacher, batch)
        classes = student.logits.shape[-1]
        if s.shape[1] == t.shape[1]:
            return Adapter(classes, t.shape[1], nn.Identity())
        if self.adapter == "never":
            raise ShapeError(
                f"objectives.{self.name}",
                f"the features have different widths: student {s.shape[1]}, teacher {t.shape[1]}",
                remedy=f"set objectives.{self.name}.adapter=batch-norm or linear",
            )
        layers: list[nn.Module] = [nn.Linear(s.shape[1], t.shape[1])]
        if self.adapter == "batch-norm":
            layers = [nn.BatchNorm1d(s.shape[1]), nn.Dropout(self.dropout), *layers]
        return Adapter(classes, t.shape[1], nn.Sequential(*layers))

    def _labels(self, teacher: Signal, batch: Batch) -> Tensor:
        y = batch.get("y")
        return y if isinstance(y, Tensor) else teacher.logits.argmax(-1)

    def begin(self, ctx: Context) -> None:
        """Compute the class means, in float64, with the teacher in evaluation mode.

        Raises:
            ConfigError: the teacher learns too, so its means would soon be wrong.
            DataError: a class has no item, or a mean of zero.
        """
        if self.target == "item" or self.part == "norm":
            return
        if "teacher" in ctx.optim:
            raise ConfigError(
                f"objectives.{self.name}.target",
                "the teacher learns in this run, so class means from before the first step do not hold",
                given=self.target,
                expected="item",
                remedy=f"set objectives.{self.name}.target=item",
            )
        means: Tensor = ctx.roles[self.projector].module.means
        total = torch.zeros(means.shape, dtype=torch.float64, device=means.device)
        count = total.new_zeros(len(means))
        queries = [q for q in ctx.queries.values() if not q.coupled]
        for batch in ctx.over(ctx.task.train):
            for query in queries:
                batch = query(batch, ctx)
            shown = ctx.signal("teacher", batch)
            assert self.teacher is not None
            f = pooled(shown.acts[self.teacher].double(), picture_of(batch))
            mean, n = class_means(f, self._labels(shown, batch), len(means))
            total += mean * n.unsqueeze(-1)
            count += n
        names = ctx.task.labels or [str(i) for i in range(len(means))]
        missing = [names[i] for i in (count == 0).nonzero().flatten().tolist()]
        if missing:
            raise DataError(
                f"objectives.{self.name}",
                f"no training item of class {', '.join(missing)}, so there is no class mean",
                remedy="add items of these classes, or set target=item",
            )
        means.copy_(total / count.unsqueeze(-1))
        flat = [names[i] for i in (means.square().sum(1) == 0).nonzero().flatten().tolist()]
        if flat:
            raise DataError(
                f"objectives.{self.name}",
                f"the teacher's mean feature of class {', '.join(flat)} is zero, which has no direction",
                remedy="check the teacher, or name another module",
            )

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The loss of each item [N]."""
        s, t = self.features(student, teacher, batch)
        assert teacher is not None
        s = ctx.call(self.projector, s).float()
        e = None
        if self.target == "class" and self.part != "norm":
            e = class_directions(ctx.roles[self.projector].module.means, self._labels(teacher, batch))
        values = norm_direction(s, t, e, part=self.part, denominator=self.denominator)
        learns = any(p.requires_grad for p in ctx.roles[self.projector].module.parameters())
        return Term(values, to=("student", self.projector) if learns else "student", weight=self.weight)


__all__ = ["NormDirection"]
