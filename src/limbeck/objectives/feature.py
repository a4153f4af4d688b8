"""Objectives on what is inside: features through a projector, attention maps, relations between items."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import ShapeError
from limbeck.core.method import Batch, Context, Objective, Term
from limbeck.core.signal import Signal


def flat(f: Tensor) -> Tensor:
    """A feature as [N, L, D]: maps [N, D, H, W] become H*W places, vectors [N, D] one place, tokens stay."""
    if f.ndim == 4:
        return f.flatten(2).transpose(1, 2)
    return f[:, None] if f.ndim == 2 else f


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
        assert teacher is not None
        s, t = student.acts[self.student], teacher.acts[self.teacher]
        if s.ndim == 4 and t.ndim == 4:
            s = _resized(s, t)
        a, b = flat(s), flat(t)
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
        """The distance of each item."""
        assert teacher is not None
        s, t = student.acts[self.student].float(), teacher.acts[self.teacher].float()
        if s.ndim == 4 and t.ndim == 4:
            s = _resized(s, t)
        a, b = flat(s), flat(t)
        if self.projects:
            a = ctx.call(self.projector, a)
        values = (
            (a - b).square().mean((1, 2))
            if self.distance == "squared"
            else (1 - nn.functional.cosine_similarity(a, b, dim=2)).mean(1)
        )
        return Term(values, to=("student", self.projector) if self.projects else "student", weight=self.weight)


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
        assert teacher is not None
        s, t = student.acts[self.student].float(), teacher.acts[self.teacher].float()
        if s.ndim == 4 and t.ndim == 4:
            s = _resized(s, t)
        a, b = (nn.functional.normalize(flat(f).square().mean(2), dim=1) for f in (s, t))
        if a.shape != b.shape:
            raise ShapeError(f"objectives.{self.name}", f"{list(a.shape)} and {list(b.shape)} places differ")
        return Term((a - b).square().sum(1), weight=self.weight)


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
        assert teacher is not None
        g = []
        for f in (student.acts[self.student], teacher.acts[self.teacher]):
            rows = f.float().flatten(1)
            g.append(nn.functional.normalize(rows @ rows.T, dim=1))
        return Term((g[0] - g[1]).square().sum(1) / g[0].shape[0], weight=self.weight)


def _resized(s: Tensor, t: Tensor) -> Tensor:
    """The student's map at the teacher's resolution (area averaging when it shrinks)."""
    if s.shape[-2:] == t.shape[-2:]:
        return s
    return torch.nn.functional.adaptive_avg_pool2d(s, (t.shape[-2], t.shape[-1]))
