"""Objectives on outputs: the data's labels, and divergences between student and teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.errors import ConfigError, ShapeError
from limbeck.grammar.heads import Head, answered, in_chunks, in_chunks_by
from limbeck.grammar.method import Batch, Context, Objective, Term
from limbeck.grammar.role import check_classes_last
from limbeck.grammar.settings import Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.recipe.imports import imported

NAMES = {
    "objective": {"supervised": "Supervised", "kl": "Kl", "divergence": "Divergence", "import": "ImportedObjective"}
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Kind = Literal[
    "forward",
    "reverse",
    "jensen-shannon",
    "jeffreys",
    "total-variation",
    "skew-forward",
    "skew-reverse",
    "soft-cross-entropy",
    "binary",
    "squared",
]

Open01 = Annotated[float, Gt(0), Lt(1)]
"""Strictly between 0 and 1."""


@settings
class Supervised(Objective):
    """The task's own loss against the data's labels.

    Args:
        weight: weight of the term.
    """

    reads_labels = False

    needs_teacher: ClassVar[bool] = False

    weight: float = 1.0

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The supervised term."""
        term = ctx.task.supervised(student, batch)
        term.weight = self.weight
        return term


class OutputDivergence(Objective):
    """Base of divergences between the output distributions."""

    reads_labels = False

    divergence: Kind = "forward"
    weight: float = 1.0
    temperature: float = 1.0
    scale_t2: bool = True
    beta: float = 0.5
    mix: float = 0.1
    classes: int | None = None

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """Per-item values of the divergence; for tokens, where the labels count."""
        assert teacher is not None
        if isinstance(student.out, Head):
            return Term(self._of_a_head(student.out, teacher), weight=self.weight, where=batch.get("where"))
        if self.divergence != "squared":
            self._check_layout(student.output, ctx)
        return Term(self.values(student.logits, teacher.logits), weight=self.weight, where=batch.get("where"))

    def _of_a_head(self, student: Head, teacher: Signal) -> Tensor:
        """Of tokens [N, T] whose logits never exist all at once."""
        theirs = answered(teacher)
        if theirs.shape != student.shape:
            raise ShapeError(f"objectives.{self.name}", given=list(theirs.shape), expected=str(list(student.shape)))
        if self.divergence in ("binary", "squared"):
            none = torch.zeros(student.shape[:-1], dtype=torch.long, device=student.hidden.device)
            return in_chunks_by(student, theirs, lambda z_s, z_t, labels, where: self.values(z_s, z_t), none)
        closed: dict[str, Any] = {"kind": self.divergence.replace("-", "_"), "beta": self.beta, "mix": self.mix}
        return in_chunks(student, theirs, {**closed, "temperature": self.temperature, "scale_t2": self.scale_t2})

    def _check_layout(self, z: Tensor, ctx: Context) -> None:
        """Refuse outputs in which the classes are not the last dimension, or may not be."""
        task = getattr(ctx, "task", None)  # a loop of one's own has none
        labels = getattr(task, "labels", None) if getattr(task, "kind_of_target", None) in ("label", "labels") else None
        classes = self.classes or (len(labels) if labels else None)
        if classes is not None:
            check_classes_last(z, classes, f"objectives.{self.name}")
        elif z.ndim > 3:
            raise ShapeError(
                f"objectives.{self.name}",
                "nothing says which dimension of the outputs is that of the classes",
                given=list(z.shape),
                expected="[..., C], the classes last, and their number",
                remedy="set classes=C; where they are the second dimension, return z.movedim(1, -1) from the network or feed",
            )

    def values(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """The divergence of logits [..., C], per item [...]."""
        t: dict[str, Any] = {"temperature": self.temperature, "scale_t2": self.scale_t2}
        table: dict[str, Callable[[], Tensor]] = {
            "forward": lambda: F.kl(z_s, z_t, direction="forward", **t),
            "reverse": lambda: F.kl(z_s, z_t, direction="reverse", **t),
            "jensen-shannon": lambda: F.jensen_shannon(z_s, z_t, beta=self.beta, **t),
            "jeffreys": lambda: F.jeffreys(z_s, z_t, **t),
            "total-variation": lambda: F.total_variation(z_s, z_t, **t),
            "skew-forward": lambda: F.skew_kl(z_s, z_t, direction="forward", mix=self.mix, **t),
            "skew-reverse": lambda: F.skew_kl(z_s, z_t, direction="reverse", mix=self.mix, **t),
            "soft-cross-entropy": lambda: F.soft_cross_entropy(z_s, z_t, **t),
            "binary": lambda: F.binary_kl(z_s, z_t, **t),
            "squared": lambda: F.squared_error(z_s, z_t),
        }
        return table[self.divergence]()


@settings
class Divergence(OutputDivergence):
    """A divergence between the output distributions.

    Args:
        divergence: which one; ``forward`` is KL(teacher || student).
        weight: weight of the term.
        temperature: softens both distributions; of numbers (``squared``) there are none.
        scale_t2: multiply by the temperature squared.
        beta: of ``jensen-shannon``: the teacher's share in the mixture.
        mix: of the ``skew`` kinds: the share of the first distribution in the mixture.
        classes: how many there are, as the last dimension of the outputs; ``null`` takes the task's.
    """

    divergence: Kind = "forward"
    weight: float = 1.0
    temperature: Positive = 1.0
    scale_t2: bool = True
    beta: Open01 = 0.5
    mix: Open01 = 0.1
    classes: int | None = None

    def validate(self) -> None:
        """What is set changes something."""
        idle = {
            "beta": self.beta != 0.5 and self.divergence != "jensen-shannon",
            "mix": self.mix != 0.1 and not self.divergence.startswith("skew"),
            "temperature": self.temperature != 1.0 and self.divergence == "squared",
            "scale_t2": not self.scale_t2 and self.divergence == "squared",
        }
        for name in (n for n, it_is in idle.items() if it_is):
            raise ValueError(f"{name} changes nothing in the divergence {self.divergence!r}: leave it out")


@settings
class Kl(OutputDivergence):
    """The forward KL divergence, KL(teacher || student).

    Args:
        weight: weight of the term.
        temperature: softens both distributions.
        scale_t2: multiply by the temperature squared.
        classes: how many there are, as the last dimension of the outputs; ``null`` takes the task's.
    """

    weight: float = 1.0
    temperature: Positive = 1.0
    scale_t2: bool = True
    classes: int | None = None


@settings
class ImportedObjective(Objective):
    """The user's own objective: a function (student, teacher, batch, context) -> Term or per-item values.

    Naming it runs its module's code.

    Args:
        function: ``package.module:function``.
        weight: weight of the term.
        student_taps: modules of the student whose activations it reads.
        teacher_taps: modules of the teacher whose activations it reads.
    """

    code: ClassVar[str] = "function"

    function: str
    weight: float = 1.0
    student_taps: list[str] | None = None  # type: ignore[assignment]
    teacher_taps: list[str] | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.called = imported(self.function, "function")
        self.student_taps, self.teacher_taps = tuple(self.student_taps or ()), tuple(self.teacher_taps or ())  # type: ignore[assignment]

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """The function's ``prepare`` attribute, where it has one."""
        prepare = getattr(self.called, "prepare", None)
        return None if prepare is None else prepare(student, teacher, batch)

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The user's term."""
        made = self.called(student, teacher, batch, ctx)
        if isinstance(made, Tensor):
            made = Term(made)
        if not isinstance(made, Term):
            raise ConfigError(
                f"objectives.{self.name}", given=type(made).__name__, expected="a Term, or a tensor of per-item values"
            )
        made.weight = made.weight * self.weight
        return made
