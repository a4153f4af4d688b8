"""The batches of a stage: which items a step takes is a function of its number, whoever fetches them."""

from __future__ import annotations

import io
import logging
import multiprocessing
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.engine import distributed as dist
from limbeck.engine import interrupt
from limbeck.engine.epochs import Chosen, Epochs
from limbeck.errors import ConfigError, first_line
from limbeck.functional.precision import widest
from limbeck.grammar.method import Batch, Data, Stage
from limbeck.grammar.random import Stream

_log = logging.getLogger("limbeck.engine")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device, where float64 becomes float32 if the device has none."""
    if device.type == "cpu":
        return batch
    return {k: _moved(v, device) for k, v in batch.items()}


def _moved(x: Any, device: torch.device) -> Any:
    """A tensor, or all tensors in lists, tuples and mappings; anything else as it is."""
    if isinstance(x, Tensor):
        return (x.to(widest(device)) if x.dtype == torch.float64 else x).to(device, non_blocking=True)
    if isinstance(x, dict):
        return {k: _moved(v, device) for k, v in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_moved(v, device) for v in x))
    return type(x)(_moved(v, device) for v in x) if isinstance(x, (list, tuple)) else x


def pieces(stage: Stage, accumulate: int) -> int:
    """The number of micro-batches a step has, over all processes.

    Raises:
        ConfigError: a batch is smaller than the parts it must be cut into.
    """
    parts = dist.world() * accumulate
    if stage.batch_size < parts and stage.data is not None:
        raise ConfigError(
            f"{stage.section}.batch_size",
            f"stage {stage.name!r} cuts {stage.batch_size} items over {dist.world()} processes x {accumulate} micro-batches",
            expected=f"at least {parts}",
        )
    return parts


def chances(stage: Stage, data: Any) -> Tensor | None:
    """How likely each item is drawn where an optimiser of the stage asks for balanced classes, float64 [N].

    Raises:
        ConfigError: the items have no single class each.
    """
    if data is None or all(o.sampling == "all" for o in stage.optim.values()):
        return None
    return balanced(data, f"{stage.section}.sampling")


def balanced(data: Any, setting: str) -> Tensor:
    """Chances with which every class is drawn equally often, float64 [N].

    Raises:
        ConfigError: the items have no single class each; ``setting`` is named.
    """
    y = data.data.y[data.ids] if isinstance(data, Chosen) and hasattr(data.data, "y") else getattr(data, "y", None)
    if not isinstance(y, Tensor) or y.ndim != 1 or y.is_floating_point():
        raise ConfigError(
            setting, "the items have no single class each", given="balanced", remedy=f"leave {setting}=all"
        )
    return 1.0 / torch.bincount(y).double().clamp(min=1)[y]


def batches(
    stage: Stage,
    seed: int,
    start: int,
    total: int,
    *,
    device: torch.device,
    accumulate: int = 1,
    workers: int = 0,
    epochs: Epochs | None = None,
) -> Iterator[list[Batch]]:
    """This process's micro-batches of the steps ``start`` to ``total - 1``, one list a step, on the device.

    Args:
        stage: its data, batch size and scope.
        seed: the run's seed.
        start, total: the steps.
        device: where the tensors go.
        accumulate: micro-batches a step.
        workers: loader processes; any number gives the same batches.
        epochs: where the stage stands in its data, where an epoch's items are chosen: the steps are of that epoch.

    Raises:
        ConfigError: the batch is smaller than the parts it must be cut into.
    """
    parts = pieces(stage, accumulate)
    data, scope, first, view = stage.source, stage.scope, 0, 0
    if epochs is not None and epochs.ids is not None:
        data, scope, first, view = epochs.data, f"{scope} {epochs.number}", epochs.first, epochs.number
    n = len(data) if data is not None else stage.batch_size * max(1, total)
    shuffled = stage.shuffle and data is not None
    stream = Stream(n, stage.batch_size, seed, scope, shuffled, chances(stage, data), getattr(data, "order", None))
    plan = _Plan(data, stream, dist.rank(), accumulate, parts, start - first, total - first, view)
    return _fetched(plan, device, 0 if data is None else able(plan, workers))


def _fetched(plan: _Plan, device: torch.device, workers: int) -> Iterator[list[Batch]]:
    if workers == 0:
        for i in range(len(plan)):
            yield [to_device(b, device) for b in plan[i]]
        return
    begun = False
    loader = torch.utils.data.DataLoader(
        plan,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=2,
        worker_init_fn=interrupt.outlive_first,
    )
    try:
        for micro in loader:
            begun = True
            yield [to_device(b, device) for b in micro]
        return
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        # who was asked to stop may lose its workers first; the loop sees that batches ended early, saves and stops
        if interrupt.requested() is not None:
            return
        # they may also have died at their start: what was sent was nothing to them (a class of a notebook)
        if begun or "exited unexpectedly" not in str(error):
            raise
        _say_once(plan.data, first_line(error))
    yield from _fetched(plan, device, 0)


_said: set[str] = set()


def able(plan: object, workers: int) -> int:
    """The loader processes that data can be fetched by: none where it can't be sent to them, which is said once.

    Processes that are forked inherit it; where they are started afresh (macOS, Windows) it travels pickled.
    """
    if workers == 0 or multiprocessing.get_start_method() == "fork":
        return workers
    try:
        _Probe(io.BytesIO()).dump(plan)
    except Exception as error:  # whatever an object's own pickling raises
        _say_once(getattr(plan, "data", plan), first_line(error))
        return 0
    return workers


def _say_once(data: Any, why: str) -> None:
    source = data
    while type(source).__module__.startswith("limbeck.") and hasattr(source, "data"):  # the user's own lies within
        source = source.data
    text = (
        f"engine.workers: {type(source).__name__} can't be sent to loader processes ({why}): its items are fetched in the "
        "main process, as with engine.workers=0"
    )
    if text not in _said:
        _said.add(text)
        _log.warning(text)


class _Probe(pickle.Pickler):
    """Tries whether an object can be pickled, without copying the numbers in it."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (Tensor, np.ndarray)):
            return int, ()
        return NotImplemented


class _Plan(torch.utils.data.Dataset[list[Batch]]):
    """Step by step, the micro-batches of this process: a pure function of the step's number."""

    def __init__(
        self,
        data: Data | None,
        stream: Stream,
        rank: int,
        accumulate: int,
        parts: int,
        start: int,
        total: int,
        view: int = 0,
    ) -> None:
        self.data, self.stream, self.view = data, stream, view
        self.rank, self.accumulate, self.parts = rank, accumulate, parts
        self.start, self.total = start, total

    def __len__(self) -> int:
        return max(0, self.total - self.start)

    def __getitem__(self, index: int) -> list[Batch]:
        ids, views = self.stream.items(self.start + index)
        views = views + self.view if self.view else views
        if self.parts == 1:
            return [self._fetch(ids, views)]
        low = self.rank * self.accumulate
        pieces = list(zip(ids.tensor_split(self.parts), views.tensor_split(self.parts), strict=True))
        return [self._fetch(i, v) for i, v in pieces[low : low + self.accumulate]]

    def _fetch(self, ids: Tensor, views: Tensor) -> Batch:
        shown = getattr(self.data, "fetch_at", None)  # data that show an item otherwise at each pass
        batch = dict(shown(ids, views)) if shown else dict(self.data.fetch(ids)) if self.data is not None else {}
        batch.setdefault("item", ids)  # of items that were chosen, their own
        batch["view"] = views
        return batch


__all__ = ["able", "batches", "pieces", "to_device"]
