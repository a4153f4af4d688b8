"""What a stage will take, told from a few of its steps: for ``limbeck plan``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck.engine.context import RunContext
from limbeck.engine.inner import Loss
from limbeck.engine.memory import Memory
from limbeck.errors import ConfigError
from limbeck.functional.sparse import TopK
from limbeck.grammar.heads import Head
from limbeck.grammar.method import Batch, Data, Method, Query, Stage
from limbeck.grammar.optim import Optim
from limbeck.grammar.signal import Edit, Signal
from limbeck.storage import store

if TYPE_CHECKING:
    from limbeck.engine.engine import Engine


@dataclass
class Timed:
    """What was seen of a stage.

    Attributes:
        each: seconds of a step, or of an item; ``None`` where it could not be tried.
        count: how many of them there are to do.
        items: of a stage of items, how many it has: those that an earlier run left are not among ``count``.
        note: how it was tried, or why it could not be.
        memory: what a step of it holds; ``None`` where that was not looked at.
    """

    each: float | None
    count: int
    items: int | None = None
    note: str = ""
    memory: Memory | None = None

    @property
    def seconds(self) -> float | None:
        """The whole stage."""
        return None if self.each is None else self.each * self.count


class Trial(RunContext):
    """The context of a stage that is tried: what its items train is trained for a few steps, and told as a whole.

    Args:
        engine, method, stage, device: as of any context.
        left: what the items of earlier stages left that were tried, by stage: each stands for all that aren't there yet.
        few: how many steps are timed.

    Attributes:
        beyond: a list of seconds that the work of an item would take beyond what it took here.
        shown: by participant the bytes and the shape of the largest output it has shown.
    """

    def __init__(
        self, engine: Engine, method: Method, stage: Stage, device: torch.device, left: dict[str, Any], few: int
    ) -> None:
        super().__init__(engine, method, stage, device)
        self.left, self.few, self.short = left, few, stage.items is not None
        self.beyond: list[float] = []
        self.shown: dict[str, tuple[int, list[int]]] = {}

    def at(self, step: int) -> Trial:
        """The context of one micro-batch of one step."""
        made = object.__new__(Trial)
        made.__dict__.update(super().at(step).__dict__)
        return made

    def call(self, role: str, *args: Any, grad: bool | None = None, by: str = "", **kwargs: Any) -> Any:
        """Call a role's module, and keep in mind how much it answers."""
        out = super().call(role, *args, grad=grad, by=by, **kwargs)
        return self._seen(role, out)

    def signal(
        self,
        role: str,
        batch: Batch,
        taps: Sequence[str] = (),
        grad: bool | None = None,
        by: str = "",
        edit: Mapping[str, Edit] | None = None,
    ) -> Signal:
        """Feed a batch to a role, and keep in mind how much it answers."""
        found = super().signal(role, batch, taps, grad, by, edit)
        # of what is never written out whole, what is there in its place
        shown = found.out.hidden if isinstance(found.out, Head) else found.out
        shown = shown.values if isinstance(shown, TopK) else shown
        self._seen(role, getattr(shown, "logits", shown))
        return found

    def _seen(self, role: str, out: Any) -> Any:
        size = out.numel() * out.element_size() if isinstance(out, torch.Tensor) else 0
        if size > self.shown.get(role, (0, []))[0]:
            self.shown[role] = size, list(out.shape)
        return out

    def missing(self, stage: Stage) -> list[str]:
        """The items of a stage that no earlier run left."""
        assert stage.items is not None
        return [item for item in stage.items(self) if not self._there(stage.name, item)]

    def _there(self, stage: str, item: str) -> bool:
        try:
            return store.is_complete(self._engine.item_folder(self._method, stage, item))
        except ConfigError:  # nothing is kept
            return False

    def artifact(self, stage: str, item: str) -> Any:
        """What an item left; of one that isn't there yet, what the one left that was tried."""
        if stage in self.left and not self._there(stage, item):
            return self.left[stage]
        return super().artifact(stage, item)

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
        """The inner loop for a few steps where it is an item's work; within a step it is part of what is timed."""
        few = self.few + 1
        if not self.short or optim.steps <= few:
            return super().fit(module, data, loss, optim, scope=scope, queries=queries, each=each)
        marks: list[float] = []
        before: list[torch.Tensor] = []

        def mark(done: int, net: nn.Module) -> None:
            if each is not None:
                each(done, net)
            if done == few - 1:
                before.extend(p.detach().clone() for p in net.parameters())
            wait_for(self.device)
            marks.append(time.perf_counter())

        began = time.perf_counter()
        made = super().fit(module, data, loss, optim.with_(steps=few), scope=scope, queries=queries, each=mark)
        if each is not None:
            _walk_on(made, before, few, optim.steps, each)
        spent = time.perf_counter() - began
        self.beyond.append(median([b - a for a, b in pairwise(marks)]) * optim.steps - spent)
        return made


@torch.no_grad()
def _walk_on(
    module: nn.Module, before: list[torch.Tensor], done: int, total: int, each: Callable[[int, nn.Module], None]
) -> None:
    """Go on along the last step, ever slower, without a gradient: whoever looks finds as many states as of a training,
    no two of them the same."""
    params: list[torch.Tensor] = list(module.parameters())
    way = [p - b for p, b in zip(params, before, strict=True)]
    for step in range(done + 1, total + 1):
        torch._foreach_add_(params, way, alpha=1.0 / (step - done + 1))
        each(step, module)


def median(values: Sequence[float]) -> float:
    """The middle one, the upper of two."""
    return sorted(values)[len(values) // 2]


def wait_for(device: torch.device) -> None:
    """Until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


__all__ = ["Timed", "Trial", "median", "wait_for"]
