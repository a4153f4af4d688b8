"""What a step may ask of the engine while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.engine.batches import to_device
from limbeck.engine.inner import Loss, fit
from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Data, Method, Query, Stage
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.grammar.role import Role
from limbeck.grammar.signal import Edit, Signal, edited, through
from limbeck.storage import store
from limbeck.storage.records import Recorded

if TYPE_CHECKING:
    from limbeck.engine.engine import Engine


class RunContext:
    """What a step may ask (see ``limbeck.grammar.method.Context``). One per micro-batch; cheap."""

    def __init__(self, engine: Engine, method: Method, stage: Stage, device: torch.device) -> None:
        self._engine, self._method, self.task = engine, method, method.task
        self.stage, self.step, self.batch_size = stage.name, 0, stage.batch_size
        self._total = stage.total
        # what is remembered is shared by runs of every seed
        self.seed, self.device = engine.seed if stage.remember is None else 0, device
        self.optim = stage.optim
        self.roles = method.roles
        self.queries = method.setup.queries
        self.scope = stage.scope
        self._draws: Draws | None = Draws(self.seed, (stage.scope,), device)
        self.signals: dict[str, Signal] = {}
        self.added = False  # whether the recipe's add-ons have had this micro-batch's signals

    def at(self, step: int) -> RunContext:
        """The context of one micro-batch of one step."""
        made = object.__new__(type(self))  # copy.copy goes through pickle's protocol, and this is done every step
        made.__dict__ = {**self.__dict__, "step": step, "signals": {}, "_draws": None}
        return made

    @property
    def total(self) -> int:
        """How many steps the stage has. Who asks makes its length a part of what it does, which is kept in mind."""
        self._engine.asked.add(self.stage)
        return self._total

    @total.setter
    def total(self, value: int) -> None:
        self._total = value

    @property
    def draws(self) -> Draws:
        """Keyed randomness of this step; made when it is first asked for."""
        if self._draws is None:
            self._draws = Draws(self.seed, (self.scope, self.step), self.device)
        return self._draws

    @draws.setter
    def draws(self, value: Draws) -> None:
        self._draws = value

    @property
    def epoch(self) -> int:
        """How often the stage's data were gone through before this step."""
        epochs = self._engine.epochs
        return epochs.of(self.step) if epochs is not None and epochs.stage.name == self.stage else 0

    @property
    def done(self) -> int:
        """Optimiser steps of the run before this one."""
        names = [s.name for s in self._engine.stages]
        before = names.index(self.stage) if self.stage in names else 0
        return sum(s.total for s in self._engine.stages[:before]) + self.step

    @property
    def whole(self) -> int:
        """Optimiser steps of all stages, as far as they are known."""
        self._engine.asked.add(self.stage)
        return sum(s.total for s in self._engine.stages)

    def _role(self, name: str) -> Role:
        try:
            return self.roles[name]
        except KeyError:
            raise ConfigError.unknown("role", name, self.roles, "role") from None

    def _graph(self, role: Role, grad: bool | None) -> contextlib.AbstractContextManager[Any]:
        wanted = role.learns if grad is None else grad
        return contextlib.nullcontext() if wanted and torch.is_grad_enabled() else torch.no_grad()

    def call(self, role: str, *args: Any, grad: bool | None = None, by: str = "", **kwargs: Any) -> Any:
        """Call a role's module, or a method of it: with a graph where it learns, without otherwise, unless ``grad`` says."""
        r = self._role(role)
        with self._graph(r, grad), self._engine.autocast():
            return _plain((r.called(by) if by else r.call)(*args, **kwargs))

    def signal(
        self,
        role: str,
        batch: Batch,
        taps: Sequence[str] = (),
        grad: bool | None = None,
        by: str = "",
        edit: Mapping[str, Edit] | None = None,
    ) -> Signal:
        """Feed a batch to a role through its contract; outputs in the task's class order, and tapped activations."""
        r = self._role(role)
        if edit:
            if not isinstance(r.module, nn.Module) or r.compile:
                what = "engine.compile has no place for it" if r.compile else f"it is a {type(r.module).__name__}"
                raise ConfigError(
                    f"role {role!r}",
                    f"its activations are edited, and {what}",
                    remedy="set engine.compile=false" if r.compile else "take a network",
                )
            with edited(r.module, edit):
                return self.signal(role, batch, taps, grad, by)
        # asked of the class: a network looks for what it lacks among all its parts
        if hasattr(type(r.module), "answer"):
            signal: Signal = r.module.answer(batch, tuple(dict.fromkeys((*r.wanted, *taps))))
        else:
            tap = r.taps(tuple(taps)) if taps or r.tap is not None else None
            feed, batch = r.feed or self.task.shown, r.contract.feed(batch)
            called = r.called(by) if by else r.call
            if tap is None and self._engine.plain:
                with self._graph(r, grad):
                    out = feed(called, batch)
                    signal = Signal(out if by else r.contract.outputs(out))
            else:
                with self._graph(r, grad), self._engine.autocast(), tap or contextlib.nullcontext():
                    out = feed(called, batch)
                    out = _plain(out) if by else r.contract.outputs(out)
                signal = Signal(out, dict(tap.acts) if tap else {})
        if not by:
            self.signals[role] = signal
        return signal

    def through(self, role: str) -> contextlib.AbstractContextManager[nn.Module]:
        """Graph to the role's input, parameters frozen, evaluation mode."""
        return through(self._role(role).module)

    def artifact(self, stage: str, item: str) -> Any:
        """What an item of an earlier stage left."""
        return store.load_tree(self._engine.item_folder(self._method, stage, item))

    def items(self, stage: str) -> list[str]:
        """The ids of an earlier stage's items."""
        for s in self._engine.stages:
            if s.name == stage and s.items is not None:
                return list(s.items(self))
        raise ConfigError.unknown("stage", stage, [s.name for s in self._engine.stages], "stage of items")

    def recorded(self, stage: str) -> Recorded:
        """The rows that an earlier stage of items left, by their item's number."""
        return self._engine.recorded(self._method, stage, self)

    def over(self, data: Data, batch_size: int = 256, items: Tensor | None = None) -> Iterator[Batch]:
        """All of some data once, in order, or these items: batches on the run's device, with ``item`` ids, ``view`` 0."""
        for ids in (torch.arange(len(data)) if items is None else items.cpu()).split(batch_size):
            yield to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, self.device)

    def fit(
        self,
        module: nn.Module,
        data: Data,
        loss: Loss,
        optim: Optim,
        *,
        scope: str,
        queries: Sequence[Query] = (),
        each: Callable[[int, nn.Module], None] | None = None,
    ) -> nn.Module:
        """The one inner loop (`limbeck.engine.inner.fit`), with this run's seed and device."""
        return fit(
            module, data, loss, optim, seed=self.seed, scope=scope, device=self.device, queries=queries, each=each
        )


def _plain(out: Any) -> Any:
    """Float32 outputs under autocast: losses and statistics are never taken in a lower precision."""
    if isinstance(out, Tensor) and out.dtype in (torch.bfloat16, torch.float16):
        return out.float()
    return out


__all__ = ["RunContext"]
