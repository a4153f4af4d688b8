"""Processes: what torchrun set up, and the three collectives that the engine needs. One process is the plain case."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.functional.precision import widened
from limbeck.grammar.optim import lay_out


def launched() -> bool:
    """Whether this process was started by torchrun, SLURM through torchrun, or the like."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


_hosts: Any = None  # the group in which processes speak without their devices; None: the default one does


def start(device: torch.device) -> None:
    """Join the other processes, once."""
    global _hosts
    if launched() and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # numbers that the host reads would make it wait for everything that its device was asked before
        _hosts = dist.new_group(backend="gloo") if device.type == "cuda" else None


def stop() -> None:
    """Leave the group."""
    global _hosts
    if dist.is_initialized():
        dist.destroy_process_group()
    _hosts = None


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def pick_device(name: str) -> torch.device:
    """The device a setting names: ``auto`` takes CUDA, then MPS, then the CPU; a rank takes its own CUDA device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("engine.device", given=name, expected="auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("engine.device", "torch sees no CUDA device here", given=name, remedy="engine.device=cpu")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        there = torch.cuda.device_count()
        if device.index is not None and device.index >= there:
            alone = not launched() or name != "cuda"
            raise ConfigError(
                "engine.device" if alone else "engine.devices",
                f"torch sees {there} CUDA device{'s' * (there > 1)} here",
                given=name if alone else int(os.environ.get("LOCAL_WORLD_SIZE", world())),
                expected=f"cuda:0 to cuda:{there - 1}" if alone else f"{there} or fewer",
            )
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("engine.device", "torch sees no MPS device here", given=name, remedy="engine.device=cpu")
    elif device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError("engine.device", given=name, expected="auto, cpu, cuda, cuda:N or mps")
    return device


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over processes, in place; the tensor itself when alone."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def largest_over_ranks(values: Sequence[int]) -> list[int]:
    """The largest value over processes, of each of some numbers that the host holds."""
    if world() == 1:
        return list(values)
    held = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(held, op=dist.ReduceOp.MAX, group=_hosts)
    return [int(n) for n in held.tolist()]


def rows_of_all(rows: Tensor) -> list[Tensor]:
    """The rows [n, ...] of every process, without a graph, in the order of their numbers; each may hold another number."""
    rows = rows.detach()
    if world() == 1:
        return [rows]
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(rows)]), group=_hosts)
    counts = [int(n) for n in sizes]
    sent = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    padded = sent.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = sent
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded.contiguous())
    return [t[:n].to(rows.dtype) for t, n in zip(found, counts, strict=True)]


def sum_gradients(params: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of replicated parameters over processes, as one flat buffer per dtype.

    Not the DDP wrapper: that is silently wrong for several backwards through one forward, for ``autograd.grad`` and for
    idle roles (engine notes). A parameter without gradient on this rank contributes zeros; one without gradient on any
    rank keeps none, as in one process: an optimiser that saw zeros would still decay it and move it by its momentum.
    """
    if world() == 1 or not params:
        return
    for dtype in dict.fromkeys(p.dtype for p in params):
        group = [p for p in params if p.dtype == dtype]
        has = torch.tensor([float(p.grad is not None) for p in group], dtype=dtype).to(group[0].device)
        flat = torch.cat([*((torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in group), has])
        dist.all_reduce(flat)
        # read only where something is missing here: reading synchronises
        anywhere = flat[-len(group) :].tolist() if any(p.grad is None for p in group) else [1.0] * len(group)
        offset = 0
        for p, found in zip(group, anywhere, strict=True):
            piece = flat[offset : offset + p.numel()].view_as(p)
            offset += p.numel()
            if p.grad is not None:
                p.grad.copy_(piece)
            elif found:
                p.grad = lay_out(p, piece.clone())


def barrier() -> None:
    """Wait for the others."""
    if world() > 1:
        dist.barrier()


def told_by_all(value: Any) -> list[Any]:
    """What every process says, in the order of their numbers: plain values, no tensors."""
    if world() == 1:
        return [value]
    told: list[Any] = [None] * world()
    dist.all_gather_object(told, value, group=_hosts)
    return told


def disagreement(text: str) -> list[str]:
    """What every process says, in the order of their numbers, where they do not all say the same; empty where they do.

    Two numbers go over the wire; the texts only where they differ.
    """
    if world() == 1:
        return []
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
    most, least = largest_over_ranks((key, -key))
    return [] if most == -least else told_by_all(text)


def same_everywhere(text: str, what: str) -> None:
    """Raise unless every process holds the same text (a fingerprint): replicas that drift are a defect, not noise."""
    told = disagreement(text)
    if told:
        raise RuntimeError(f"{what} differs between processes: {told}")


class Buffers:
    """Buffers that forward passes move (BatchNorm's running statistics), kept the same in every process.

    A process sees its own part of the batch, so its statistics are its own. `agree` replaces them by their mean: of a
    moving average of means that is the moving average of the whole batch's mean. Whole numbers (counters, flags) are
    averaged too and rounded: where processes agree on them they stay. What no pass has moved is left alone.

    Args:
        modules: whose buffers; they are alike in every process now.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        found = {
            (id(m), name): (m, name)
            for top in modules
            for m in top.modules()
            for name, b in m._buffers.items()
            if b is not None and b.layout is torch.strided and not b.is_complex()
        }
        self._places = list(found.values()) if world() > 1 else []
        self._agreed = [b.detach().clone() for b in map(_at, self._places)]
        self._moving: list[int] | None = None  # places in the list; None: not looked for yet

    @torch.no_grad()
    def agree(self, look: bool = False) -> None:
        """The mean over processes, in every buffer that moves.

        Args:
            look: look for those that move again: found are those that the first step has moved.
        """
        if not self._places:
            return
        if self._moving is None or look:
            known = self._moving or []
            pairs = [(_at(place), then) for place, then in zip(self._places, self._agreed, strict=True)]
            moved = [
                int(i in known or (now.shape == then.shape and not torch.equal(now, then)))
                for i, (now, then) in enumerate(pairs)
            ]
            self._moving = [i for i, any_ in enumerate(largest_over_ranks(moved)) if any_]
        if not self._moving:
            return
        held = [_at(self._places[i]) for i in self._moving]
        before = torch.cat([widened(self._agreed[i].reshape(-1)) for i in self._moving])
        now = torch.cat([widened(b.reshape(-1)) for b in held])
        change = torch.where(now == before, 0.0, now - before)
        dist.all_reduce(change)
        mean = before + change / world()
        for i, buffer, part in zip(self._moving, held, mean.split([b.numel() for b in held]), strict=True):
            buffer.copy_((part if buffer.is_floating_point() else part.round()).view_as(buffer))
            self._agreed[i].copy_(buffer)


def _at(place: tuple[nn.Module, str]) -> Tensor:
    """The buffer in a place: asked for each time, for some modules put another tensor there."""
    found = place[0]._buffers[place[1]]
    assert found is not None
    return found


def blocks(module: nn.Module) -> list[nn.Module]:
    """The parts of a network that are worth splitting by themselves: the members of its lists and sequences.

    A transformer's layers, a residual network's blocks: while one of them computes, the others stay split. A library may
    name its own (``_no_split_modules``, as transformers does). A member that is large and made of members (a stage of
    blocks) is taken apart. What stands alone (embeddings, norms, the head) and what shares a parameter with another part
    (tied embeddings) is left to the whole.
    """
    named = {str(n) for n in getattr(module, "_no_split_modules", None) or ()}
    large = _size(module) // 8

    def divide(part: nn.Module, member: bool) -> list[nn.Module]:
        whole = type(part).__name__ in named
        inner: list[nn.Module] = []
        if not whole:
            listed = isinstance(part, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
            inner = [m for child in part.children() for m in divide(child, listed)]
        if (member or whole) and _size(part) and type(part).forward is not nn.Module.forward:
            apart = len(inner) > 1 and _size(part) > large and 2 * sum(map(_size, inner)) > _size(part)
            return inner if apart else [part]
        return inner

    everywhere = Counter(map(id, _owned(module)))
    found = dict.fromkeys(m for m in divide(module, False) if m is not module)
    return [m for m in found if all(n == everywhere[p] for p, n in Counter(map(id, _owned(m))).items())]


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _owned(module: nn.Module) -> Iterator[nn.Parameter]:
    """Every parameter as often as a module holds it."""
    for part in module.modules():
        yield from (p for p in part._parameters.values() if p is not None)


def shard(module: nn.Module) -> nn.Module:
    """Split a large role over the processes with ``fully_shard``: parameters, gradients and optimiser state, by `blocks`.

    Gradients are summed, not averaged: the engine has already divided the loss by the global count.
    """
    if world() == 1:
        return module
    from torch.distributed.fsdp import fully_shard

    for part in blocks(module):
        fully_shard(part)
    fully_shard(module)
    for part in _split_parts(module):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no sum that divides on the way
    return module


def also_forward(module: nn.Module, method: str) -> None:
    """Let a method of a split module put its parameters together, as calling the module does. Done once."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    if method not in module.__dict__:
        register_fsdp_forward_method(module, method)


def reshard(module: nn.Module) -> None:
    """Let go of the parameters that a pass has put together: those of the whole stay until a backward pass, if one comes."""
    for part in _split_parts(module):
        part.reshard()


def _split_parts(module: nn.Module) -> list[Any]:
    if world() == 1:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


@torch.no_grad()
def unshard_into(plain: nn.Module, split: nn.Module) -> None:
    """Every parameter of a split module, made whole, in its place in a plain twin; buffers and modes as they are.

    What two places share they share again.
    """
    reshard(split)
    made: dict[int, nn.Parameter] = {}
    for mine, theirs in zip(plain.modules(), split.modules(), strict=True):
        for name, p in theirs._parameters.items():
            if p is not None and id(p) not in made:
                made[id(p)] = nn.Parameter(gathered(p.detach()), p.requires_grad)
            mine._parameters[name] = None if p is None else made[id(p)]
        mine._buffers.update(theirs._buffers)
        mine.training = theirs.training


def whole_state(module: nn.Module) -> dict[str, Any]:
    """A module's state dict with everything that is split made whole, once, however many names it has."""
    reshard(module)
    made: dict[int, Any] = {}
    state = module.state_dict(keep_vars=True)
    for value in state.values():
        if isinstance(value, Tensor) and id(value) not in made:
            made[id(value)] = gathered(value.detach())
    return {name: made.get(id(value), value) for name, value in state.items()}


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def synchronise(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """BatchNorm layers replaced by `torch.nn.SyncBatchNorm`, which has the same parameters, buffers and hooks.

    Returns:
        What was replaced: (its parent, its name, the layer), for `part`.
    """
    norms: Any = importlib.import_module("timm.layers")  # torch's own conversion drops the activation of BatchNormAct2d
    # a class that somebody derived from one of these computes something else
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, norms.BatchNormAct2d)
    known: dict[nn.Module, nn.Module] = {}
    replaced = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) not in kinds:
                continue
            if child not in known:
                known[child] = norms.convert_sync_batchnorm(child).train(child.training)
                for hooks in _HOOKS:
                    setattr(known[child], hooks, getattr(child, hooks))
            parent.add_module(name, known[child])
            replaced.append((parent, name, child))
    return replaced


def part(replaced: list[tuple[nn.Module, str, nn.Module]]) -> None:
    """Undo `synchronise`: the layers that were there, with what their stand-ins have learnt."""
    for parent, name, child in replaced:
        stand_in = parent.get_submodule(name)
        child._parameters.update(stand_in._parameters)
        child._buffers.update(stand_in._buffers)
        child.train(stand_in.training)
        parent.add_module(name, child)


def gathered(tensor: Tensor) -> Tensor:
    """A sharded tensor made whole; any other tensor as it is."""
    if world() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def scattered(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor laid out as ``like``: sharded where ``like`` is sharded."""
    if world() == 1:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value
