"""Objectives that DisWOT measures untrained networks by: what each class asks of each channel, and how channels move together."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.relation import channel_correlation, classifier_gradient
from limbeck.grammar.method import Batch, Context, Objective, Term
from limbeck.grammar.settings import NonNegative, settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Task
from limbeck.networks.shows import channels_first, last_linear, picture_of
from limbeck.tasks.classification import one_label

NAMES = {"objective": {"semantic": "Semantic", "channel-correlation": "ChannelCorrelation"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class Semantic(Objective):
    """What each class asks of each channel (DisWOT's semantic metric; Dong et al. 2023, arXiv 2303.15678).

    ``g = (softmax(z) - y)^T f / N``, the gradient of the cross-entropy in the classifier's weights, as Grad-CAM weighs channels;
    ``sum_k |E_k^s - E_k^t|^2 / (C K)`` with ``E_k = g_k g_k^T``, rows of length one. It is a function of the whole batch: where
    one is cut, each part has a gradient of its own.

    Args:
        weight: weight of the term.
        student: where the classifier's input is shown; by default the input of the last linear layer.
        teacher: likewise of the teacher.
        project: ``auto`` adds a learned linear projector of the student's features where widths differ, or ``never``.
    """

    coupled = "adds up the classifier's gradient over the items of a batch"

    weight: NonNegative = 1.0
    student: str | None = None
    teacher: str | None = None
    project: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.projects = False
        self._tap()

    def _tap(self) -> None:
        self.student_taps = (self.student,) if self.student is not None else ()
        self.teacher_taps = (self.teacher,) if self.teacher is not None else ()

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        one_label(self, task)

    def look(self, student: Any, teacher: Any) -> None:
        """Find the last linear layers."""
        for name, module in (("student", student), ("teacher", teacher)):
            if getattr(self, name) is not None:
                continue
            if not isinstance(module, nn.Module):
                raise ConfigError(
                    f"objectives.{self.name}.{name}",
                    "the network is not at hand, so where its classifier reads is not known",
                    remedy=f"set objectives.{self.name}.{name}=MODULE:in, as it was recorded",
                )
            setattr(self, name, last_linear(module))
        self._tap()

    def _features(self, student: Signal, teacher: Signal | None) -> tuple[Tensor, Tensor]:
        assert teacher is not None and self.student is not None and self.teacher is not None
        f = student.acts[self.student].float(), teacher.acts[self.teacher].float()
        for name, path, x in zip(("student", "teacher"), (self.student, self.teacher), f, strict=True):
            if x.ndim != 2:
                raise ShapeError(
                    f"objectives.{self.name}.{name}",
                    f"{path!r} shows no row of features an item",
                    given=list(x.shape),
                    expected="[N, C], the classifier's input",
                )
        return f

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """Check both features; make the projector."""
        s, t = self._features(student, teacher)
        self.projects = s.shape[1] != t.shape[1]
        if self.projects and self.project == "never":
            raise ShapeError(
                f"objectives.{self.name}",
                f"the classifiers read {s.shape[1]} and {t.shape[1]} channels",
                remedy=f"set objectives.{self.name}.project=auto",
            )
        return nn.Linear(s.shape[1], t.shape[1], bias=False) if self.projects else None

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The distance of each class [K]."""
        s, t = self._features(student, teacher)
        assert teacher is not None
        if self.projects:
            s = ctx.call(self.projector, s)
        g_s = classifier_gradient(s, student.logits, batch["y"])
        g_t = classifier_gradient(t, teacher.logits, batch["y"])
        to = ("student", self.projector) if self.projects else "student"
        return Term(channel_correlation(g_s, g_t), to=to, weight=self.weight)


@settings
class ChannelCorrelation(Objective):
    """Which channels move together (ICKD; Liu et al. 2021, arXiv 2202.03680), the form of DisWOT's metric for features.

    ``|E^s - E^t|^2 / C`` an item, ``E = F F^T`` over the places of a map, rows of length one. Resolutions may differ.

    Args:
        student: module of the student that shows a map [N, C, h, w] or tokens [N, L, C].
        teacher: module of the teacher.
        weight: weight of the term.
        project: ``auto`` adds a learned linear projector of the student's channels where widths differ, or ``never``.
    """

    reads_labels = False

    student: str
    teacher: str
    weight: NonNegative = 1.0
    project: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.student_taps, self.teacher_taps = (self.student,), (self.teacher,)
        self.projects = False

    def _features(self, student: Signal, teacher: Signal | None, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both as [N, places, C]."""
        assert teacher is not None
        found = []
        for name, path, act in (
            ("student", self.student, student.acts[self.student]),
            ("teacher", self.teacher, teacher.acts[self.teacher]),
        ):
            f = channels_first(act.float(), picture_of(batch))
            if f.ndim not in (3, 4):
                raise ShapeError(
                    f"objectives.{self.name}.{name}",
                    f"{path!r} shows no places",
                    given=list(f.shape),
                    expected="maps [N, C, h, w] or tokens [N, L, C]",
                )
            found.append(f.flatten(2).transpose(1, 2) if f.ndim == 4 else f)
        return found[0], found[1]

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """Check both features; make the projector."""
        s, t = self._features(student, teacher, batch)
        self.projects = s.shape[2] != t.shape[2]
        if self.projects and self.project == "never":
            raise ShapeError(
                f"objectives.{self.name}",
                f"the features have {s.shape[2]} and {t.shape[2]} channels",
                remedy=f"set objectives.{self.name}.project=auto",
            )
        return nn.Linear(s.shape[2], t.shape[2], bias=False) if self.projects else None

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The distance of each item."""
        s, t = self._features(student, teacher, batch)
        if self.projects:
            s = ctx.call(self.projector, s)
        to = ("student", self.projector) if self.projects else "student"
        return Term(channel_correlation(s.transpose(1, 2), t.transpose(1, 2)), to=to, weight=self.weight)


__all__ = ["ChannelCorrelation", "Semantic"]
