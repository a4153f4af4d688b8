"""Contrastive representation distillation (CRD): telling an item's own pair of features from pairs with other items."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from limbeck.errors import ConfigError, DataError
from limbeck.functional.contrast import contrastive_critic
from limbeck.functional.feature import unit
from limbeck.grammar.method import Batch, Context, Term
from limbeck.grammar.settings import Count, Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Task
from limbeck.objectives.classifier_input import OfClassifierInput

NAMES = {"objective": {"crd": "Crd"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Embeddings(nn.Module):
    """Linear embeddings of student's and teacher's features, and what they were for every item when it was last seen.

    Attributes:
        memory_s, memory_t: embeddings of length one ``[M, width]``.
        classes: of each item, int64 ``[M]``.
        log_z: of both directions ``[2]``; NaN before the first batch.
    """

    memory_s: Tensor
    memory_t: Tensor
    classes: Tensor
    log_z: Tensor

    def __init__(self, d_s: int, d_t: int, width: int, items: int) -> None:
        super().__init__()
        self.embed_s, self.embed_t = nn.Linear(d_s, width), nn.Linear(d_t, width)
        for name in ("memory_s", "memory_t"):
            self.register_buffer(name, unit(torch.randn(items, width)))
        self.register_buffer("classes", torch.zeros(items, dtype=torch.int64))
        self.register_buffer("log_z", torch.full((2,), torch.nan))

    def forward(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of length one [N, width]."""
        return unit(self.embed_s(s)), unit(self.embed_t(t))

    @torch.no_grad()
    def keep(self, item: Tensor, v_s: Tensor, v_t: Tensor, momentum: float) -> None:
        """Take a batch into the memory."""
        for memory, v in ((self.memory_s, v_s), (self.memory_t, v_t)):
            memory[item] = unit(momentum * memory[item] + (1 - momentum) * v.to(memory.dtype)).to(memory.dtype)


@settings
class Crd(OfClassifierInput):
    """Contrastive representation distillation: a linear embedding of each item's features is told from other items' (Tian 2020).

    The sum of both directions: the student's embedding among the teacher's, and the teacher's among the student's. Both
    embeddings are trained. For methods that learn from the task's own training items.

    Args:
        weight: weight of the term. The paper takes 0.8.
        student: module of the student; ``null`` takes the input of the last linear layer.
        teacher: module of the teacher; likewise.
        width: of the embeddings.
        negatives: other items, drawn from those of another class (``classes``) or from all (``items``) and remembered as they
            last were; or those of another class in the same ``batch``, without a memory.
        count: how many are drawn for each item. The paper takes 16,384.
        temperature: divides the cosines.
        momentum: share of an item's old embedding in the memory.
        variant: ``paper`` compares an item's two present embeddings and has no constant Z; ``released`` compares each with the
            other's remembered one, and divides by a Z that the first batch gives.
    """

    coupled = "compares the items of a batch with each other, or with remembered ones, and remembers them"

    weight: float = 0.8
    student: str | None = None
    teacher: str | None = None
    width: Count = 128
    negatives: Literal["classes", "items", "batch"] = "classes"
    count: Annotated[int, Ge(1)] = 1024
    temperature: Positive = 0.07
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    variant: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.items = 0
        self.tap()

    def validate(self) -> None:
        """What is remembered belongs to a memory."""
        if self.negatives == "batch" and self.variant == "released":
            raise ValueError("variant=released compares with remembered embeddings: negatives must be classes or items")

    def accept(self, task: Task) -> None:
        """Items have one class each, unless all others are negatives."""
        kind = getattr(task, "kind_of_target", type(task).__name__.lower())
        if kind != "label" and self.negatives != "items":
            raise ConfigError(
                "task",
                "other items are drawn from other classes",
                given=kind,
                expected="a classification task with one label per item",
                remedy="set objectives.NAME.negatives=items",
            )
        self.items = len(task.train)
        if self.items < 2:
            raise ConfigError(
                "task", "one item alone has nothing to be told from", given=self.items, expected="2 or more"
            )

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module:
        """Check both features; make the embeddings, with room for all items where they are remembered."""
        s, t = self.features(student, teacher, batch)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.negatives != "batch" and distributed and torch.distributed.get_world_size() > 1:
            raise ConfigError(
                f"objectives.{self.name}.negatives",
                "each process would remember other items",
                given=self.negatives,
                expected="batch, where there are several processes",
                remedy=f"set objectives.{self.name}.negatives=batch, or engine.devices=1",
            )
        return Embeddings(s.shape[1], t.shape[1], self.width, 0 if self.negatives == "batch" else self.items)

    def begin(self, ctx: Context) -> None:
        """Note the class of every training item."""
        if self.negatives != "classes":
            return
        module = ctx.roles[self.projector].module
        for batch in ctx.over(ctx.task.train):
            module.classes[batch["item"]] = _hard(batch["y"])

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The loss of both directions, per item [N]."""
        s, t = self.features(student, teacher, batch)
        v_s, v_t = (v.float() for v in ctx.call(self.projector, s, t))
        if self.negatives == "batch":
            values = self._within(v_s, v_t, _hard(batch["y"]))
        else:
            values = self._remembered(v_s, v_t, batch["item"], ctx)
        return Term(values, to=("student", self.projector), weight=self.weight)

    def _within(self, v_s: Tensor, v_t: Tensor, y: Tensor) -> Tensor:
        """Against the other items of the batch."""
        n = len(v_s)
        if n < 2:
            raise ConfigError(
                f"objectives.{self.name}",
                "compares the items of a batch with each other, and here is one item alone",
                remedy="raise train.batch_size, or lower engine.accumulate",
            )
        # each row's own column first, then the others
        order = (torch.arange(n, device=y.device)[:, None] + torch.arange(n, device=y.device)) % n
        cosines = v_s @ v_t.T / self.temperature
        apart = y[order[:, 1:]] != y[:, None]
        scores = [z.gather(1, order) for z in (cosines, cosines.T)]
        return contrastive_critic(scores[0], items=self.items, own=apart) + contrastive_critic(
            scores[1], items=self.items, own=apart
        )

    def _remembered(self, v_s: Tensor, v_t: Tensor, item: Tensor, ctx: Context) -> Tensor:
        """Against items of the memory, which takes the batch in afterwards."""
        module = ctx.roles[self.projector].module
        if item.device.type == "cpu" and int(item.max()) >= len(module.memory_s):
            raise DataError(
                f"objectives.{self.name}",
                "the method learns from other items than the task's training items",
                given=f"item {int(item.max())}",
                expected=f"numbers below {len(module.memory_s)}",
                remedy=f"set objectives.{self.name}.negatives=batch",
            )
        drawn = ctx.draws.randint("crd", item, self.items - 1, (self.count,)).to(item.device)
        others = drawn + (drawn >= item[:, None])  # never the item itself
        apart = module.classes[others] != module.classes[item][:, None] if self.negatives == "classes" else None
        total = v_s.new_zeros(len(v_s))
        # a copy, for the memory moves before the backward pass
        for i, (v, other, memory) in enumerate(((v_s, v_t, module.memory_t), (v_t, v_s, module.memory_s))):
            own = other if self.variant == "paper" else memory[item]
            scores = torch.cat([(v * own).sum(1, keepdim=True), torch.einsum("nd,nkd->nk", v, memory[others])], 1)
            scores = scores / self.temperature
            log_z: float | Tensor = 0.0
            if self.variant == "released":
                first = scores.detach().flatten().logsumexp(0) + torch.tensor(self.items / scores.numel()).log()
                module.log_z[i] = torch.where(module.log_z[i].isnan(), first, module.log_z[i])
                log_z = module.log_z[i].clone()
            total = total + contrastive_critic(scores, items=self.items, own=apart, log_z=log_z)
        if torch.is_grad_enabled():
            module.keep(item, v_s, v_t, self.momentum)
        return total


def _hard(y: Tensor) -> Tensor:
    return y.argmax(-1) if y.is_floating_point() else y


__all__ = ["Crd", "Embeddings"]
