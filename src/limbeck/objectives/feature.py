"""Objectives on what is inside: features through a projector, attention maps, relations between items."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.feature import attention_transfer, feature_distance
from limbeck.functional.relation import gram
from limbeck.grammar.method import Batch, Context, Objective, Term
from limbeck.grammar.settings import settings
from limbeck.grammar.signal import Signal
from limbeck.networks.shows import channels_first, picture_of

NAMES = {"objective": {"feature": "FeatureMatch", "attention": "AttentionTransfer", "relation": "Relation"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


def places(f: Tensor) -> Tensor:
    """A feature as [N, L, D]: maps [N, D, H, W] become H*W places, vectors [N, D] one place, tokens stay."""
    if f.ndim == 4:
        return f.flatten(2).transpose(1, 2)
    return f[:, None] if f.ndim == 2 else f


class Tapped(Protocol):
    """An objective that compares one module of the student with one of the teacher."""

    name: str
    student: str
    teacher: str


def shown(objective: Tapped, s: Signal, t: Signal | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """The two tapped features in float32, of maps the channels first."""
    assert t is not None
    picture = picture_of(batch)
    a, b = s.acts[objective.student].float(), t.acts[objective.teacher].float()
    return channels_first(a, picture), channels_first(b, picture)


def counted(f: Tensor, batch: Batch) -> Tensor | None:
    """Which tokens of a feature [N, L, D] count, where the batch says it."""
    where = batch.get("where")
    return where if f.ndim == 3 and isinstance(where, Tensor) and where.shape == f.shape[:2] else None


def without_rest(f: Tensor, batch: Batch) -> Tensor:
    """A feature with zeros in place of tokens that do not count."""
    where = counted(f, batch)
    return f if where is None else torch.where(where.bool().unsqueeze(-1), f, torch.zeros_like(f))


def same_places(objective: Tapped, s: Tensor, t: Tensor) -> None:
    """Refuse features of which nobody can say which place of one is which of the other.

    Raises:
        ShapeError: both shapes.
    """
    maps = s.ndim == t.ndim == 4 and len(s) == len(t)  # of any size: the larger is averaged down
    if not maps and (not {s.ndim, t.ndim} <= {2, 3, 4} or places(s).shape[:2] != places(t).shape[:2]):
        raise ShapeError(
            f"objectives.{objective.name}",
            f"student {objective.student!r} shows {list(s.shape)}, teacher {objective.teacher!r} shows {list(t.shape)}",
            expected="two maps [N, D, H, W], or the same number of places (tokens [N, L, D], vectors [N, D])",
            remedy="tap another module, or one before pooling",
        )


@settings
class FeatureMatch(Objective):
    """A feature of the student, through a learned linear projector, matches one of the teacher's (FitNets, Romero 2015).

    Args:
        student: module of the student (``named_modules()`` name).
        teacher: module of the teacher.
        distance: ``squared`` mean over places and channels, or ``cosine`` distance per place.
        weight: weight of the term.
        project: ``auto`` adds the projector where widths differ, ``always``, or ``never``.
    """

    reads_labels = False

    student: str
    teacher: str
    distance: Literal["squared", "cosine"] = "squared"
    weight: float = 1.0
    project: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.student_taps, self.teacher_taps = (self.student,), (self.teacher,)
        self.projects = False

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """Check the two shapes; make the projector."""
        a, b = self._places(student, teacher, batch)
        self.projects = self.project == "always" or (self.project == "auto" and a.shape[2] != b.shape[2])
        if not self.projects and a.shape[2] != b.shape[2]:
            raise ShapeError(
                f"objectives.{self.name}",
                f"widths {a.shape[2]} and {b.shape[2]} differ",
                remedy=f"set objectives.{self.name}.project=auto",
            )
        return nn.Linear(a.shape[2], b.shape[2]) if self.projects else None

    def _places(self, student: Signal, teacher: Signal | None, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both features [N, L, D], the student's map at the teacher's resolution."""
        s, t = shown(self, student, teacher, batch)
        same_places(self, s, t)
        if s.ndim == 4 and t.ndim == 4 and s.shape[-2:] != t.shape[-2:]:
            s = nn.functional.adaptive_avg_pool2d(s, (t.shape[-2], t.shape[-1]))
        return places(s), places(t)

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The distance of each item; of tokens, where the batch says which of them count, of each that does."""
        a, b = self._places(student, teacher, batch)
        if self.projects:
            a = ctx.call(self.projector, a)
        values = feature_distance(a, b, metric="cosine" if self.distance == "cosine" else "l2")  # [N, L]
        where = counted(student.acts[self.student], batch)
        if where is None:
            values = values.mean(1)
        to = ("student", self.projector) if self.projects else "student"
        return Term(values, to=to, weight=self.weight, where=where)


@settings
class AttentionTransfer(Objective):
    """Where each looks: summed squared activation of every place, unit norm over the places (Zagoruyko, Komodakis 2017).

    Widths may differ. The larger of two maps is averaged down to the size of the smaller; tokens must be as many.

    Args:
        student: module of the student that shows a map [N, D, H, W] or tokens [N, L, D].
        teacher: module of the teacher.
        weight: weight of the term.
        distance: of the two attention maps: ``squared`` as in the released code, or the ``norm`` of the paper's equation 2.
    """

    reads_labels = False

    student: str
    teacher: str
    weight: float = 1.0
    distance: Literal["squared", "norm"] = "squared"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.student_taps, self.teacher_taps = (self.student,), (self.teacher,)

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """Check that both show places, and the same ones."""
        s, t = shown(self, student, teacher, batch)
        if min(s.ndim, t.ndim) < 3:
            raise ShapeError(
                f"objectives.{self.name}",
                f"student {self.student!r} shows {list(s.shape)}, teacher {self.teacher!r} shows {list(t.shape)}",
                expected="maps [N, D, H, W] or tokens [N, L, D]",
                remedy="tap a module before pooling, or use objectives.NAME=feature",
            )
        same_places(self, s, t)
        return None

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The distance of the two attention maps, per item."""
        s, t = (without_rest(f, batch) for f in shown(self, student, teacher, batch))
        if not s.ndim == t.ndim == 4:  # which the function would take for [N, D, L]
            s, t = (places(x).transpose(1, 2) for x in (s, t))
        values = attention_transfer(s, t)
        if self.distance == "norm":  # the slope of a root is infinite at zero
            values = torch.where(values > 0, values, torch.ones_like(values)).sqrt() * (values > 0)
        return Term(values, weight=self.weight)


@settings
class Relation(Objective):
    """Which items resemble each other: row-normalised similarity matrices of the batch (Tung, Mori 2019).

    Items of a batch are coupled: where a batch is cut (``engine.accumulate``, several processes), each part is compared
    within itself.

    Args:
        student: module of the student.
        teacher: module of the teacher.
        weight: weight of the term.
    """

    reads_labels = False

    coupled = "compares the items of a batch with each other"

    student: str
    teacher: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.student_taps, self.teacher_taps = (self.student,), (self.teacher,)

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The squared distance of each item's row, divided by the number of items."""
        s, t = (without_rest(f, batch) for f in shown(self, student, teacher, batch))
        if len(s) < 2:
            raise ConfigError(
                f"objectives.{self.name}",
                "compares the items of a batch with each other, and here is one item alone",
                remedy="raise train.batch_size, or lower engine.accumulate",
            )
        return Term(gram(s, t), weight=self.weight)
