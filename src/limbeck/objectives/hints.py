"""Objectives on feature maps with modules of their own: VID, NST, and ReviewKD's fusion of several stages."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from limbeck.errors import ShapeError
from limbeck.functional.feature import channel_selectivity, pyramid_distance, variational
from limbeck.grammar.method import Batch, Context, Objective, Term
from limbeck.grammar.settings import Count, Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.networks.shows import channels_first, picture_of
from limbeck.objectives.feature import places, same_places, shown, without_rest

NAMES = {"objective": {"vid": "Vid", "nst": "Nst", "review": "Review"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Predicted(nn.Module):
    """The mean of a teacher's feature from a student's, place by place, and a variance for each channel.

    Args:
        width: channels of the student's feature.
        wanted: of the teacher's.
        layers: linear layers with ReLU in between.
        first: the variance to begin with.
        least: what is added to it.
    """

    def __init__(self, width: int, wanted: int, layers: int, first: float, least: float) -> None:
        super().__init__()
        sizes = [width, *[wanted] * layers]
        made: list[nn.Module] = []
        for a, b in pairwise(sizes):
            made += [nn.Linear(a, b), nn.ReLU()]
        self.mean = nn.Sequential(*made[:-1])
        self.least = least
        self.scale = nn.Parameter(torch.full((wanted,), math.log(math.expm1(first - least))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [N, L, C] of features [N, L, D], and variance [C]."""
        return self.mean(x), nn.functional.softplus(self.scale) + self.least


@settings
class Vid(Objective):
    """The teacher's feature is probable under a Gaussian that the student predicts (VID; Ahn et al. 2019).

    The mean is predicted place by place, through linear layers (1x1 convolutions of a map); every channel has a variance that
    is learned too.

    Args:
        student: module of the student.
        teacher: module of the teacher.
        weight: weight of the term, a mean over channels and places.
        layers: of the network that predicts the mean.
        variance: to begin with.
        least: the least variance.
    """

    reads_labels = False

    student: str
    teacher: str
    weight: float = 1.0
    layers: Annotated[int, Ge(1)] = 3
    variance: Positive = 5.0
    least: Positive = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.student_taps, self.teacher_taps = (self.student,), (self.teacher,)

    def validate(self) -> None:
        """The first variance lies above the least."""
        if not self.variance > self.least:
            raise ValueError(f"variance must be above least, {self.least:g}")

    def _places(self, student: Signal, teacher: Signal | None, batch: Batch) -> tuple[Tensor, Tensor]:
        s, t = shown(self, student, teacher, batch)
        same_places(self, s, t)
        if s.ndim == 4 and t.ndim == 4 and s.shape[-2:] != t.shape[-2:]:
            size = (min(s.shape[-2], t.shape[-2]), min(s.shape[-1], t.shape[-1]))
            s, t = (nn.functional.adaptive_avg_pool2d(x, size) for x in (s, t))
        return places(without_rest(s, batch)), places(without_rest(t, batch))

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """Check both shapes; make the network that predicts."""
        s, t = self._places(student, teacher, batch)
        return Predicted(s.shape[2], t.shape[2], self.layers, self.variance, self.least)

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The negative log-likelihood of each item."""
        s, t = self._places(student, teacher, batch)
        mean, variance = ctx.call(self.projector, s)
        values = variational(mean.float().transpose(1, 2), t.transpose(1, 2), variance.float())
        return Term(values, to=("student", self.projector), weight=self.weight)


@settings
class Nst(Objective):
    """Channels look at the same places, whichever is which: maximum mean discrepancy (NST; Huang and Wang 2017).

    Args:
        student: module of the student that shows a map [N, D, H, W] or tokens [N, L, D].
        teacher: module of the teacher.
        weight: weight of the term.
        kernel: ``polynomial`` (the paper's best), ``linear`` or ``gaussian``.
    """

    reads_labels = False

    student: str
    teacher: str
    weight: float = 1.0
    kernel: Literal["polynomial", "linear", "gaussian"] = "polynomial"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.student_taps, self.teacher_taps = (self.student,), (self.teacher,)

    def _maps(self, student: Signal, teacher: Signal | None, batch: Batch) -> tuple[Tensor, Tensor]:
        s, t = shown(self, student, teacher, batch)
        if min(s.ndim, t.ndim) < 3:
            raise ShapeError(
                f"objectives.{self.name}",
                f"student {self.student!r} shows {list(s.shape)}, teacher {self.teacher!r} shows {list(t.shape)}",
                expected="maps [N, D, H, W] or tokens [N, L, D]",
                remedy="tap a module before pooling",
            )
        same_places(self, s, t)
        s, t = without_rest(s, batch), without_rest(t, batch)
        if not s.ndim == t.ndim == 4:
            s, t = (places(x).transpose(1, 2) for x in (s, t))
        return s, t

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """Check that both show the same places."""
        self._maps(student, teacher, batch)
        return None

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The discrepancy of each item."""
        return Term(channel_selectivity(*self._maps(student, teacher, batch), kernel=self.kernel), weight=self.weight)


class Fusion(nn.Module):
    """ReviewKD's attention-based fusion: from the deepest stage up, each joined with what the deeper ones gave.

    Args:
        widths: channels of the student's stages, shallow to deep.
        wanted: channels of the teacher's.
        middle: channels in between.
    """

    def __init__(self, widths: list[int], wanted: list[int], middle: int) -> None:
        super().__init__()

        def block(a: int, b: int, size: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, size, padding=size // 2, bias=False), nn.BatchNorm2d(b))

        self.enter = nn.ModuleList(block(w, middle, 1) for w in widths)
        self.leave = nn.ModuleList(block(middle, w, 3) for w in wanted)
        self.attend = nn.ModuleList(nn.Conv2d(2 * middle, 2, 1) for _ in widths[1:])

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """One map for each of the student's [N, D, H, W], with the teacher's channels."""
        found: list[Tensor] = []
        deeper: Tensor | None = None
        for i in reversed(range(len(maps))):
            x = self.enter[i](maps[i])
            if deeper is not None:
                y = nn.functional.interpolate(deeper, size=x.shape[-2:], mode="nearest")
                share = torch.sigmoid(self.attend[i](torch.cat([x, y], 1)))  # [N, 2, H, W]
                x = x * share[:, :1] + y * share[:, 1:]
            found.append(self.leave[i](x))
            deeper = x
        return tuple(reversed(found))


@settings
class Review(Objective):
    """Each of the teacher's stages is matched by the student's stages from there on, fused (ReviewKD; Chen et al. 2021).

    Fusion begins at the deepest stage; maps are compared as they are and averaged to smaller sizes. The weights of fusion are
    trained with the student and left out of it.

    Args:
        student: modules of the student that show maps, shallow to deep.
        teacher: as many modules of the teacher.
        weight: weight of the term.
        middle: channels inside the fusion. The paper's code takes 512, and 64 for small networks.
        sizes: to which both maps are averaged besides.
    """

    reads_labels = False

    student: Annotated[list[str], MinLen(1)]
    teacher: Annotated[list[str], MinLen(1)]
    weight: float = 1.0
    middle: Count = 64
    sizes: list[Count] = [4, 2, 1]  # noqa: RUF012 (copied, never changed)

    def validate(self) -> None:
        """As many stages of both."""
        if len(self.student) != len(self.teacher):
            raise ValueError(f"teacher must name as many modules as student: {len(self.student)}")
        if len(set(self.student)) != len(self.student) or len(set(self.teacher)) != len(self.teacher):
            raise ValueError("student and teacher must name each module once")
        self.student_taps, self.teacher_taps = tuple(self.student), tuple(self.teacher)

    def _maps(self, student: Signal, teacher: Signal | None, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        assert teacher is not None
        picture = picture_of(batch)
        s = [channels_first(student.acts[n].float(), picture) for n in self.student]
        t = [channels_first(teacher.acts[n].float(), picture) for n in self.teacher]
        for who, names, maps in (("student", self.student, s), ("teacher", self.teacher, t)):
            for name, x in zip(names, maps, strict=True):
                if x.ndim != 4:
                    raise ShapeError(
                        f"objectives.{self.name}.{who}",
                        f"module {name!r} shows {list(x.shape)}",
                        expected="maps [N, D, H, W]",
                        remedy="name modules before pooling",
                    )
        return s, t

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """Check that all show maps; make the fusion."""
        s, t = self._maps(student, teacher, batch)
        return Fusion([x.shape[1] for x in s], [x.shape[1] for x in t], self.middle)

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The sum over the stages, per item."""
        s, t = self._maps(student, teacher, batch)
        total = s[0].new_zeros(len(s[0]))
        for mine, theirs in zip(ctx.call(self.projector, *s), t, strict=True):
            mine = mine.float()
            if mine.shape[-2:] != theirs.shape[-2:]:
                mine = nn.functional.adaptive_avg_pool2d(mine, (theirs.shape[-2], theirs.shape[-1]))
            total = total + pyramid_distance(mine, theirs, sizes=tuple(self.sizes))
        return Term(total, to=("student", self.projector), weight=self.weight)


__all__ = ["Fusion", "Nst", "Predicted", "Review", "Vid"]
