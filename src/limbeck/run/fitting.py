"""Whether what a run asks for can fit into memory: estimated from below before anything is trained.

What is counted is what a step cannot do without: the batch, what the forward pass keeps for the backward pass (measured
on one item), gradients, and the optimiser's numbers. What is refused does not fit; what is not refused may still not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from limbeck.engine import distributed as dist
from limbeck.engine.memory import Watch
from limbeck.engine.room import bytes_of, free_on
from limbeck.engine.settings import EngineSettings
from limbeck.errors import LimbeckError, OutOfMemory, human
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.optim import Optim
from limbeck.grammar.signal import evaluating
from limbeck.grammar.task import Task
from limbeck.storage.memory import available

PROCESS = 200 << 20
"""Bytes that one more process of a run takes at least: Python and torch alone."""

LOADER = 20 << 20
"""Bytes that one more loader process takes at least: what it does not share with the process it was forked from."""


def check_batch(task: Task, built: Built, optim: Optim, argument: str, settings: EngineSettings, device: Any) -> None:
    """Refuse a batch of a network's training that cannot fit.

    Args:
        task: gives the items.
        built: the network that is trained.
        optim: how.
        argument: what a recipe calls that: ``train`` or ``teach``.
        settings: over how many micro-batches and processes a batch is divided.
        device: where it is trained.

    Raises:
        OutOfMemory: naming the batch size that is too large, and one that is not.
    """
    if getattr(built.module, "fed_by", ""):
        return  # its input is what another role shows, which is not known here
    batch = task.example(1)
    item = max(1, bytes_of(batch))
    micro = math.ceil(optim.batch_size / (settings.accumulate * dist.world()))
    kept, fixed = _network(task, built, batch, optim.batch_size)
    device = torch.device(device)
    free = free_on(device)
    host = available()
    # the whole share of a process is fetched at once, and waits on the host
    rows = math.ceil(optim.batch_size / dist.world())
    if host is not None and rows * item > host:
        _refuse(argument, optim, settings, rows * item, host, host // item * dist.world(), "the host's memory")
    if free is None:
        return
    if fixed > free:
        raise OutOfMemory(
            "student" if argument == "train" else "teacher",
            f"its gradients and its optimiser's numbers need {human(fixed, 'B')}, and {human(free, 'B')} are free",
            remedy="choose a smaller network, or another optimiser",
        )
    least = micro * (item + kept) + fixed
    if least > free:
        fits = (free - fixed) // (item + kept) * settings.accumulate * dist.world()
        where = "memory" if device.type == "cpu" else f"the memory of {device}"
        _refuse(argument, optim, settings, least, free, fits, where)


def _network(task: Task, built: Built, batch: Batch, size: int) -> tuple[int, int]:
    """Bytes an item leaves for the backward pass, and bytes that training takes whatever the batch is."""
    module = built.module
    if not isinstance(module, nn.Module):
        return 0, 0
    learning = [p for p in module.parameters() if p.requires_grad]
    fixed = sum(p.numel() * p.element_size() for p in learning)  # gradients; optimisers with none of their own exist
    if size < 2:
        return 0, fixed
    try:
        here = next((t.device for t in module.parameters()), torch.device("cpu"))
        moved = {k: v.to(here) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        moved = built.contract.feed(moved)
        with torch.random.fork_rng(devices=[]):
            with evaluating([module]), torch.enable_grad(), Watch(here, [module], follow=False) as watch:
                out = task.feed(module, moved)
            del out
            return watch.saved, fixed
    except (LimbeckError, RuntimeError, ValueError, TypeError, NotImplementedError, KeyError, AttributeError):
        return 0, fixed  # what is wrong with it is said by who runs it


def _refuse(
    argument: str, optim: Optim, settings: EngineSettings, need: float, free: int, fits: int, where: str
) -> None:
    words = f"{optim.batch_size:,} items a step need {human(need, 'B')} of {where} at least, and {human(free, 'B')} are free"
    remedy = f"lower {argument}.batch_size"
    if fits >= 1:
        remedy += f" (to {_round(fits):,} or less)"
    if where != "the host's memory":
        remedy += ", or raise engine.accumulate"
    raise OutOfMemory(f"{argument}.batch_size", words, remedy=remedy)


def _round(n: int) -> int:
    """A number of one digit and zeros that is not above ``n``."""
    scale = 10 ** (len(str(n)) - 1)
    return n // scale * scale


def check_processes(settings: EngineSettings) -> None:
    """Refuse more processes than the machine can hold.

    Raises:
        OutOfMemory: naming the setting.
    """
    free = available()
    if free is None:
        return
    for name, count, each in (("devices", settings.devices - 1, PROCESS), ("workers", settings.workers, LOADER)):
        if count * each > free:
            raise OutOfMemory(
                f"engine.{name}",
                f"{count:,} further processes need {human(count * each, 'B')} at least, and {human(free, 'B')} are free",
                remedy=f"lower engine.{name}",
            )
