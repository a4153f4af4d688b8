"""Several networks that answer as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import ShapeError
from limbeck.grammar.method import Built
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import NonEmpty, Positive, settings
from limbeck.grammar.signal import Signal, classes_last
from limbeck.grammar.task import Check, Model, Task
from limbeck.models.forms import meet

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench
    from limbeck.grammar.optim import Optim

NAMES = {"model": {"ensemble": "EnsembleOf"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Ensemble(nn.Module):
    """Several networks that answer as one, each through its own contract.

    Args:
        members: the networks.
        contracts: their contracts; the ensemble itself takes the task's items as they are.
        weights: of each member, positive; they are brought to a sum of 1.
        average: ``probabilities`` (the output is the logarithm, or log-odds, of their mean) or ``logits``.
        kind: ``label``, ``labels`` or ``number`` (whose outputs are simply averaged).
        maps: the members answer with maps as libraries do, [N, C, h, w], and so does the ensemble.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        contracts: Sequence[Contract],
        weights: Sequence[float],
        average: Literal["probabilities", "logits"] = "probabilities",
        kind: str = "label",
        maps: bool = False,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.contracts = list(contracts)
        self.weights = [w / sum(weights) for w in weights]
        self.average, self.kind, self.maps = average, kind, maps

    def forward(self, x: Tensor) -> Tensor:
        """Logits (or numbers) [N, C] in the task's order, of maps [N, C, h, w]."""
        outs = []
        for member, contract in zip(self.members, self.contracts, strict=True):
            out = member(contract.inputs(x))
            outs.append(Signal(contract.outputs(classes_last(out) if self.maps else out)).logits)
        if len({z.shape for z in outs}) > 1:
            raise ShapeError(
                "members", given=[list(z.shape) for z in outs], expected="answers of one shape, classes last"
            )
        z = torch.stack(outs)  # [members, N, ..., C]
        w = torch.tensor(self.weights, dtype=z.dtype, device=z.device).reshape(-1, *[1] * (z.ndim - 1))
        z = self._averaged(z, w)
        return z.movedim(-1, 1) if self.maps else z

    def _averaged(self, z: Tensor, w: Tensor) -> Tensor:
        if self.average == "logits" or self.kind == "number":
            return (w * z).sum(0)
        if self.kind == "labels":
            log_yes = (nn.functional.logsigmoid(z) + w.log()).logsumexp(0)
            log_no = (nn.functional.logsigmoid(-z) + w.log()).logsumexp(0)
            return log_yes - log_no
        return (z.log_softmax(-1) + w.log()).logsumexp(0)


@settings
class EnsembleOf(Model):
    """Several models as one teacher: each through its own normalisation and classes, their answers averaged.

    Members without trained weights are trained one by one from different seeds, each a remembered stage.

    Args:
        members: the models.
        weights: of each member; equal by default.
        average: ``probabilities``, or ``logits``.
        check: try each ready member on labelled items before anything is trained: ``on`` or ``off``.
    """

    forms = ("classes", "map")

    members: Annotated[list[Model], NonEmpty]
    weights: list[Positive] | None = None
    average: Literal["probabilities", "logits"] = "probabilities"
    check: Check = "on"

    def validate(self) -> None:
        """A weight for each."""
        if self.weights is not None and len(self.weights) != len(self.members):
            raise ValueError("weights must be one number above 0 for each member")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._made: list[Built] = []

    @property
    def trained(self) -> bool:
        """Whether every member is."""
        return all(m.trained for m in self.members)

    @property
    def brings_tokenizer(self) -> bool:
        """Whether one of its members does."""
        return any(member.brings_tokenizer for member in self.members)

    def build(self, task: Task) -> Built:
        """All members, joined.

        Raises:
            ConfigError: the task needs a form whose answers are not averaged.
        """
        meet(self, task)
        task.load()
        for i, member in enumerate(self.members):
            member.role = self.setting(f"members.{i}")
            member.check = member.check if self.check == "on" else "off"
        self._made = [m.build(task) for m in self.members]
        return self._join(self._made, task)

    def teach(self, bench: Bench, optim: Optim) -> Built:
        """Each member that is not trained yet, trained by itself from its own seed."""
        made, first = [], bench.teacher_seed * len(self.members)
        for i, member in enumerate(self.members):
            if member.trained:
                made.append(self._made[i] if self._made else member.build(bench.task))
            else:
                made.append(bench.train_network(member, bench.task.teacher_train, optim, bench.name, seed=first + i))
        return self._join(made, bench.task)

    def _join(self, made: Sequence[Built], task: Task) -> Built:
        needs = meet(self, task)
        weights = self.weights or [1.0] * len(made)
        module = Ensemble(
            [b.module for b in made],
            [b.contract for b in made],
            weights,
            self.average,
            needs.target,
            needs.form == "map",
        )
        return Built(module, Contract(), list(task.labels or []), self, members=list(made))
