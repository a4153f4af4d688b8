"""What a step holds in its device's memory, told from one step: for ``limbeck plan``.

On a GPU its allocator knows the peak. Elsewhere every storage that an operation makes is followed until it is let go, so
that a laptop can tell what a step will take on another device.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.engine import distributed as dist


@dataclass
class Memory:
    """Bytes that a step holds at once.

    Attributes:
        parameters: of every participant on the device, buffers included.
        gradients: of those that learn.
        optimiser: its state.
        activations: what the backward passes of one micro-batch need.
        outputs: what the participants answer to one micro-batch (of a language model the logits over its vocabulary); what
            backward passes need of it is among the activations too.
        peak: the most that was held at once, of these and of all that is made on the way.
        shown: the shape of each participant's largest output.
    """

    parameters: int = 0
    gradients: int = 0
    optimiser: int = 0
    activations: int = 0
    outputs: int = 0
    peak: int = 0
    shown: dict[str, list[int]] = field(default_factory=dict)


class Watch:
    """Follows what a step makes.

    Args:
        device: where it is taken.
        modules: every participant's; what they hold is no activation.
        follow: follow storages where the device has no allocator that tells (not with compiled networks).

    Attributes:
        saved: the most bytes that backward passes waited for at once.
        peak: the most bytes that were made and held at once; of a GPU, everything that is allocated.
    """

    def __init__(self, device: torch.device, modules: Iterable[nn.Module], follow: bool = True) -> None:
        self.device = device
        self.saved = self.peak = self._now = 0
        self._own = {_place(t) for m in modules for t in (*m.parameters(), *m.buffers())}
        self._held: dict[Any, int] = {}  # how many saved tensors lie in a storage
        self._follows = _Storages() if follow and device.type != "cuda" else None

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, _Kept.give))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self._follows is not None:
            self._stack.enter_context(self._follows)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        elif self._follows is not None:
            self.peak = self._follows.peak

    def _keep(self, tensor: Tensor) -> _Kept:
        place = _place(tensor)
        if place in self._own or not tensor.numel():
            return _Kept(tensor, None, place)
        if not self._held.get(place):
            self._now += tensor.untyped_storage().nbytes()
            self.saved = max(self.saved, self._now)
        self._held[place] = self._held.get(place, 0) + 1
        return _Kept(tensor, self, place)

    def let_go(self, place: Any, size: int) -> None:
        """A saved tensor is no longer waited for."""
        self._held[place] -= 1
        if not self._held[place]:
            self._now -= size


class _Kept:
    """A tensor that a backward pass waits for."""

    def __init__(self, tensor: Tensor, watch: Watch | None, place: Any) -> None:
        self.tensor, self.watch, self.place = tensor, watch, place

    def give(self) -> Tensor:
        """The tensor."""
        return self.tensor

    def __del__(self) -> None:
        if self.watch is not None:
            self.watch.let_go(self.place, self.tensor.untyped_storage().nbytes())


class _Storages(TorchDispatchMode):
    """Adds up the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _plain(t)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not _plain(tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in given or storage._cdata in self._known:
                continue
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return out

    def _freed(self, which: int, size: int) -> None:
        self._known.discard(which)
        self.now -= size


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.device.type != "meta"


def _place(tensor: Tensor) -> Any:
    return tensor.untyped_storage().data_ptr() if _plain(tensor) else id(tensor)


def held(tensors: Iterable[Tensor]) -> int:
    """The bytes of some tensors, each storage once."""
    return sum({_place(t): t.untyped_storage().nbytes() for t in tensors if _plain(t)}.values())


def of_step(
    watch: Watch,
    modules: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    shown: Mapping[str, tuple[int, list[int]]],
    shard: Collection[str] = (),
    devices: int = 1,
) -> Memory:
    """What a step that was watched holds.

    Args:
        watch: it, when the step is over. It was not the first one, so that the optimisers had their state before.
        modules: every participant's.
        optimisers: of those that learn.
        shown: by participant the bytes and the shape of its largest output.
        shard: participants that will be split over the devices; while it was watched they were whole.
        devices: over how many.
    """
    found = Memory(activations=watch.saved, shown={name: shape for name, (_, shape) in shown.items()})
    found.outputs = sum(size for size, _ in shown.values())
    spared = [0, 0, 0]  # of parameters, gradients and optimisers, by splitting
    for name, module in modules.items():
        opt = optimisers.get(name)
        state = [v for s in opt.state.values() for v in s.values() if isinstance(v, Tensor)] if opt is not None else []
        moved = [p for group in opt.param_groups for p in group["params"]] if opt is not None else []
        whole = [held((*module.parameters(), *module.buffers())), held(moved), held(state)]
        parts = list(whole)
        if name in shard and devices > 1:
            largest = max((held(m.parameters()) for m in dist.blocks(module)), default=parts[0])
            parts = [-(-p // devices) for p in whole]
            parts[0] += largest  # what computes is put together for that time
        spared = [s + w - p for s, w, p in zip(spared, whole, parts, strict=True)]
        found.parameters, found.gradients = found.parameters + parts[0], found.gradients + parts[1]
        found.optimiser += parts[2]
    if watch.device.type == "cuda":
        found.peak = watch.peak - sum(spared)
    elif watch.peak:  # what was there before the step counts too
        found.peak = found.parameters + found.optimiser + watch.peak - spared[1]
    else:
        found.peak = found.parameters + found.optimiser + found.gradients + found.activations + found.outputs
    return found


__all__ = ["Memory", "Watch", "held", "of_step"]
