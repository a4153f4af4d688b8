"""Processes: what torchrun set up, and the three collectives that the engine needs. One process is the plain case."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.optim import lay_out


def launched() -> bool:
    """Whether this process was started by torchrun, SLURM through torchrun, or the like."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(device: torch.device) -> None:
    """Join the other processes, once."""
    if launched() and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


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


def largest_over_ranks(tensor: Tensor) -> Tensor:
    """The largest value over processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


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
    dist.all_gather_object(told, value)
    return told


def same_everywhere(text: str, what: str) -> None:
    """Raise unless every process holds the same text (a fingerprint): replicas that drift are a defect, not noise."""
    told = told_by_all(text)
    if any(t != text for t in told):
        raise RuntimeError(f"{what} differs between processes: {told}")


def shard(module: nn.Module) -> nn.Module:
    """Split a large role over the processes with ``fully_shard`` (parameters, gradients and optimiser state).

    Gradients are summed, not averaged: the engine has already divided the loss by the global count.
    """
    if world() == 1:
        return module
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for child in module.children():
        if sum(p.numel() for p in child.parameters()) > 0 and not isinstance(child, nn.ModuleList):
            fully_shard(child)
    fully_shard(module)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no sum that divides on the way
    return module


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
