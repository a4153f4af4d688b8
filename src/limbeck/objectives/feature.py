"""Objectives on what is inside: features through a projector, attention maps, relations between items."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from limbeck.errors import ShapeError
from limbeck.functional.feature import attention_transfer, feature_distance
from limbeck.functional.relation import gram
from limbeck.grammar.method import Batch, Context, Objective, Term
from limbeck.grammar.signal import Signal


def places(f: Tensor) -> Tensor:
    """A feature as [N, L, D]: maps [N, D, H, W] become H*W places, vectors [N, D] one place, tokens stay."""
    if f.ndim == 4:
        return f.flatten(2).transpose(1, 2)
    return f[:, None] if f.ndim == 2 else f


def _both(
    objective: FeatureMatch | AttentionTransfer | Relation, student: Signal, teacher: Signal | None
) -> tuple[Tensor, Tensor]:
    """The two tapped features in float32, the student's map at the teacher's resolution."""
    assert teacher is not None
    s, t = student.acts[objective.student].float(), teacher.acts[objective.teacher].float()
    if s.ndim == 4 and t.ndim == 4 and s.shape[-2:] != t.shape[-2:]:
        s = nn.functional.adaptive_avg_pool2d(s, (t.shape[-2], t.shape[-1]))
    return s, t


class FeatureMatch(Objective):
    """A feature of the student, through a learned linear projector, matches one of the teacher's (FitNets, Romero 2015).

    Args:
        student: module of the student (``named_modules()`` name).
        teacher: module of the teacher.
        distance: ``squared`` mean over places and channels, or ``cosine`` distance per place.
        weight: weight of the term.
        project: ``auto`` adds the projector where widths differ, ``always``, or ``never``.
    """

    def __init__(
        self,
        student: str,
        teacher: str,
        distance: Literal["squared", "cosine"] = "squared",
        weight: float = 1.0,
        project: Literal["auto", "always", "never"] = "auto",
    ) -> None:
        self.student, self.teacher, self.weight = student, teacher, weight
        self.distance: Literal["squared", "cosine"] = distance
        self.project: Literal["auto", "always", "never"] = project
        self.student_taps, self.teacher_taps = (student,), (teacher,)
        self.projects = False

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """Check the two shapes; make the projector."""
        s, t = _both(self, student, teacher)
        a, b = places(s), places(t)
        if a.shape[:2] != b.shape[:2]:
            raise ShapeError(
                f"objectives.{self.name}",
                f"student {self.student!r} shows {list(s.shape)}, teacher {self.teacher!r} shows {list(t.shape)}",
                expected="the same number of places",
                remedy="tap another module, or one before pooling",
            )
        self.projects = self.project == "always" or (self.project == "auto" and a.shape[2] != b.shape[2])
        if not self.projects and a.shape[2] != b.shape[2]:
            raise ShapeError(
                f"objectives.{self.name}",
                f"widths {a.shape[2]} and {b.shape[2]} differ",
                remedy=f"set objectives.{self.name}.project=auto",
            )
        return nn.Linear(a.shape[2], b.shape[2]) if self.projects else None

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The distance of each item; of tokens, where the batch says which of them count, of each that does."""
        s, t = _both(self, student, teacher)
        a, b = places(s), places(t)  # [N, L, D]
        if self.projects:
            a = ctx.call(self.projector, a)
        values = feature_distance(a, b, metric="cosine" if self.distance == "cosine" else "l2")  # [N, L]
        where = batch.get("where")
        if s.ndim != 3 or not isinstance(where, Tensor) or where.shape != values.shape:
            where, values = None, values.mean(1)
        to = ("student", self.projector) if self.projects else "student"
        return Term(values, to=to, weight=self.weight, where=where)


class AttentionTransfer(Objective):
    """Where each looks: mean squared activation per place, unit norm (Zagoruyko, Komodakis 2017).

    Args:
        student: module of the student that shows a map [N, D, H, W] or tokens [N, L, D].
        teacher: module of the teacher.
        weight: weight of the term.
    """

    def __init__(self, student: str, teacher: str, weight: float = 1.0) -> None:
        self.student, self.teacher, self.weight = student, teacher, weight
        self.student_taps, self.teacher_taps = (student,), (teacher,)

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The squared distance of the two attention maps, per item."""
        return Term(attention_transfer(*_both(self, student, teacher)), weight=self.weight)


class Relation(Objective):
    """Which items resemble each other: row-normalised similarity matrices of the batch (Tung, Mori 2019).

    Items of a batch are coupled, so accumulating micro-batches changes it.

    Args:
        student: module of the student.
        teacher: module of the teacher.
        weight: weight of the term.
    """

    def __init__(self, student: str, teacher: str, weight: float = 1.0) -> None:
        self.student, self.teacher, self.weight = student, teacher, weight
        self.student_taps, self.teacher_taps = (student,), (teacher,)

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The squared distance of each item's row, divided by the number of items."""
        return Term(gram(*_both(self, student, teacher)), weight=self.weight)
