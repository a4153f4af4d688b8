"""Objectives on relations between the items of a batch: distances and angles, kernels, neighbours."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.functional.relation import angles, congruence, distances, neighbours
from limbeck.grammar.method import Batch, Context, Objective, Term
from limbeck.grammar.settings import Count, NonNegative, Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.objectives.feature import shown, without_rest

NAMES = {"objective": {"rkd": "Rkd", "cc": "Congruence", "pkt": "Pkt"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class _Related(Objective):
    """Base: two features of the same items, whose widths may differ."""

    reads_labels = False

    coupled = "compares the items of a batch with each other"

    student: str
    teacher: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.student_taps, self.teacher_taps = (self.student,), (self.teacher,)

    def values(self, s: Tensor, t: Tensor) -> Tensor:
        """The value of each item [N] of features [N, ...]."""
        raise NotImplementedError

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """Relations need no projector."""
        shown(self, student, teacher, batch)
        return None

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The values of the batch's items."""
        s, t = (without_rest(f, batch) for f in shown(self, student, teacher, batch))
        if len(s) < self.fewest:
            raise ConfigError(
                f"objectives.{self.name}",
                "compares the items of a batch with each other",
                given=f"{len(s)} item" if len(s) == 1 else f"{len(s)} items",
                expected=f"{self.fewest} or more",
                remedy="raise train.batch_size, or lower engine.accumulate",
            )
        return Term(self.values(s, t), weight=self.weight)


@settings
class Rkd(_Related):
    """How far items are from each other, and at which angles they are seen from each other (Park et al. 2019).

    Args:
        student: module of the student.
        teacher: module of the teacher.
        weight: weight of the term.
        distance: weight of the distances. The paper takes 25 for classification.
        angle: weight of the angles, which take N cubed numbers of a batch of N; 0 leaves them out. The paper takes 50.
    """

    student: str
    teacher: str
    weight: float = 1.0
    distance: NonNegative = 1.0
    angle: NonNegative = 2.0

    def validate(self) -> None:
        """Something is compared; an angle takes three items."""
        if not self.distance and not self.angle:
            raise ValueError("angle must be above 0 where distance is 0: nothing is compared")
        self.fewest = 3 if self.angle else 2

    def values(self, s: Tensor, t: Tensor) -> Tensor:
        """Huber losses of both."""
        found = s.new_zeros(len(s))
        if self.distance:
            found = found + self.distance * distances(s, t)
        return found + self.angle * angles(s, t) if self.angle else found


@settings
class Congruence(_Related):
    """Which items resemble each other by a kernel: correlation congruence (CC; Peng et al. 2019).

    Args:
        student: module of the student.
        teacher: module of the teacher.
        weight: weight of the term.
        kernel: ``rbf`` of features of length one, or ``bilinear``, their scalar product.
        gamma: of ``rbf``.
        order: highest power of the Taylor series of ``rbf``; ``null`` is the kernel itself.
    """

    student: str
    teacher: str
    weight: float = 1.0
    kernel: Literal["rbf", "bilinear"] = "rbf"
    gamma: Positive = 0.4
    order: Count | None = 2

    def values(self, s: Tensor, t: Tensor) -> Tensor:
        """Squared distances of the rows."""
        return congruence(s, t, kernel=self.kernel, gamma=self.gamma, order=self.order)


@settings
class Pkt(_Related):
    """How probable each item is as another's neighbour (PKT; Passalis and Tefas 2018).

    Args:
        student: module of the student.
        teacher: module of the teacher.
        weight: weight of the term.
        itself: count an item among its own neighbours, as the released code does.
    """

    student: str
    teacher: str
    weight: float = 1.0
    itself: bool = False

    def values(self, s: Tensor, t: Tensor) -> Tensor:
        """KL divergences."""
        return neighbours(s, t, itself=self.itself)


__all__ = ["Congruence", "Pkt", "Rkd"]
