"""Objectives in anyone's own loop: one module from a batch to a loss. No engine, no recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Objective
from limbeck.grammar.random import Draws
from limbeck.grammar.signal import Signal, Tap
from limbeck.objectives.output import Supervised


class Criterion(nn.Module):
    """Weighted objectives between a student and a frozen teacher, as a loss module.

    The networks are not submodules: ``criterion.parameters()`` are its projectors alone, so give your optimiser
    ``[*student.parameters(), *criterion.parameters()]``. ``criterion.to(device)`` moves the teacher along.

    Args:
        objectives: name -> objective, as in a recipe's ``objectives``.
        student: the network that is trained.
        teacher: put into evaluation mode and run without a graph.
        example: one batch's inputs, to check shapes and make projectors.
        feed: how inputs go into a network; by default ``network(x)``.

    Raises:
        TapError, ShapeError: an objective's taps do not fit the networks.
        ConfigError: there is no objective, or one that asks a task for its loss.

    Example:
        >>> from limbeck.objectives import FeatureMatch, Kl
        >>> net = lambda width: nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        >>> student, teacher = net(5), net(7)
        >>> objectives = {"kl": Kl(temperature=2), "hint": FeatureMatch("1", "1", weight=0.5)}
        >>> criterion = Criterion(objectives, student, teacher, torch.zeros(2, 4))
        >>> loss = criterion(torch.randn(6, 4))
        >>> loss.backward(); sorted(criterion.parts)
        ['hint', 'kl']
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        student: nn.Module,
        teacher: nn.Module,
        example: Any,
        feed: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.objectives = dict(objectives)
        if not self.objectives:
            raise ConfigError("objectives", "there is nothing to match", remedy='name one: {"kl": Kl(temperature=4)}')
        for name, objective in self.objectives.items():
            if isinstance(objective, Supervised):
                raise ConfigError(
                    f"objectives.{name}",
                    "asks the run's task for its loss, and a loop of your own has none",
                    remedy="add your own loss of criterion.out",
                )
        self.projectors = nn.ModuleDict()
        self.parts: dict[str, float] = {}
        self.out: Any = None
        self._feed = feed or (lambda module, x: module(x))
        teacher.eval().requires_grad_(False)
        # hidden from nn.Module: saving the criterion must not save the networks
        self._networks = (student, teacher)
        self._taps = (
            Tap(student, [p for o in self.objectives.values() for p in o.student_taps]),
            Tap(teacher, [p for o in self.objectives.values() for p in o.teacher_taps]),
        )
        training = student.training
        student.eval()
        with torch.no_grad():
            signals = [self._signal(i, example) for i in (0, 1)]
        student.train(training)
        for name, objective in self.objectives.items():
            objective.name = name
            projector = objective.prepare(signals[0], signals[1], {"x": example})
            if projector is not None:
                device = next((p.device for p in student.parameters()), torch.device("cpu"))
                self.projectors[name] = projector.to(device)

    def _signal(self, which: int, x: Any, network: nn.Module | None = None) -> Signal:
        with self._taps[which] as tap:
            out = self._feed(self._networks[which] if network is None else network, x)
        return Signal(out, dict(tap.acts))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Criterion:
        # the teacher goes where the criterion goes, though it is not saved with it
        self._networks[1]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def call(self, role: str, *args: Any, grad: bool | None = None, **kwargs: Any) -> Any:
        """A projector, by its role's name; part of what objectives expect of their context."""
        return self.projectors[role.removeprefix("projector:")](*args, **kwargs)

    @property
    def draws(self) -> Draws:
        """Random numbers for objectives that ask for some."""
        return Draws(0, ("criterion",))

    def forward(self, x: Any, batch: Batch | None = None, student: nn.Module | None = None) -> Tensor:
        """The weighted sum of the objectives' means for a batch of inputs; their values are in ``parts``.

        Args:
            x: the inputs, for both networks. The student's output is kept in ``out``, for your own loss.
            batch: what objectives may want beside them (labels, masks).
            student: the student as a trainer wraps it (DistributedDataParallel), to be called in its place.
        """
        shown = self._signal(0, x, student)
        with torch.no_grad():
            teacher = self._signal(1, x)
        self.out = shown.out
        total: Tensor | None = None
        for name, objective in self.objectives.items():
            term = objective(shown, teacher, {"x": x, **(batch or {})}, self)  # type: ignore[arg-type]
            n = term.n()
            mean = term.total() / (n.clamp(min=1) if isinstance(n, Tensor) else max(1, n))
            self.parts[name] = float(mean.detach())
            total = mean * term.weight if total is None else total + mean * term.weight
        assert total is not None
        return total
