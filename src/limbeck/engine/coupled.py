"""What a network does with a batch as a whole: by such layers cutting the batch into parts changes the result.

The engine's own sums are the same however a batch is cut. BatchNorm normalises by the part it sees, dropout draws for each
part afresh: that is the network's doing, so it is looked for and said. Layers are known by their classes; of the student it
is also tried on two items whether one's output depends on the other's, which finds what nobody has a class for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine import distributed as dist
from limbeck.errors import ConfigError
from limbeck.grammar.method import Method, Objective, Query
from limbeck.grammar.random import seed_modules
from limbeck.grammar.role import Role
from limbeck.grammar.signal import train_mode

_RATES = ("p", "drop_prob", "drop_rate", "dropout")
_DRAWING = ("DropPath", "StochasticDepth", "DropBlock2d", "DropBlock3d")  # of timm and torchvision


@dataclass
class Coupled:
    """The layers of a network in training mode that look at the whole batch, or draw at random.

    Attributes:
        statistics: those that normalise by the batch's statistics, by class: the paths of each.
        draws: those that draw from the global generator (dropout and its like), likewise.
        mixes: whether an item's output depends on the other items; ``None``: not tried.
        varies: whether the output is another one when the generator is seeded otherwise; ``None``: not tried.
        moves: buffers that every pass moves, but for those of `statistics` (spectral norm, codebooks).
    """

    statistics: dict[str, list[str]] = field(default_factory=dict)
    draws: dict[str, list[str]] = field(default_factory=dict)
    mixes: bool | None = None
    varies: bool | None = None
    moves: list[str] = field(default_factory=list)


def layers(module: nn.Module) -> Coupled:
    """What the classes of a module's layers tell, as far as they are in training mode."""
    found = Coupled()
    for path, part in module.named_modules():
        kind = type(part).__name__
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            if part.training or part.running_mean is None:
                found.statistics.setdefault(kind, []).append(path)
        elif part.training and _draws(part):
            found.draws.setdefault(kind, []).append(path)
    return found


def _draws(part: nn.Module) -> bool:
    known = isinstance(part, (nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.RNNBase))
    if known or type(part).__name__ in _DRAWING:
        return any(isinstance(getattr(part, n, None), float) and getattr(part, n) > 0.0 for n in _RATES)
    return isinstance(part, nn.RReLU)


def tried(module: nn.Module, show: Callable[[dict[str, Any]], Tensor], batch: Mapping[str, Any]) -> Coupled:
    """What its layers' classes tell of a network, and what two items tell: whether one depends on the other, and on draws.

    Args:
        module: in training mode.
        show: from a batch to its outputs [N, ...].
        batch: two items. Of ragged ones only the layers' classes tell.
    """
    found = layers(module)
    if "owner" in batch:  # one after another, of any length: an item cannot be taken out by its place
        return found
    alone = {k: v[[0, 0]] if isinstance(v, Tensor) and v.ndim and len(v) == 2 else v for k, v in batch.items()}
    device = next((v.device for v in batch.values() if isinstance(v, Tensor)), torch.device("cpu"))
    known = {f"{path}." for paths in found.statistics.values() for path in paths}
    before = {n: b.detach().clone() for n, b in module.named_buffers() if not n.startswith(tuple(known))}

    def first(given: Mapping[str, Any], seed: int) -> Tensor:
        seed_modules(seed, device)
        return show(dict(given))[0].float()

    with torch.no_grad():
        beside = first(batch, 0)
        found.mixes = _differ(beside, first(alone, 0))
        found.varies = _differ(beside, first(batch, 1))
    found.moves = [n for n, b in module.named_buffers() if n in before and not torch.equal(b, before[n])]
    return found


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and not torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


@contextmanager
def as_in_training(role: Role) -> Iterator[None]:
    """A role in training mode for a while; its modes and buffers come back as they were."""
    modes = {m: m.training for m in role.module.modules()}
    buffers = [(b, b.detach().clone()) for b in role.module.buffers()]
    train_mode(role.module, role.keep_statistics)
    try:
        yield
    finally:
        for m, was in modes.items():
            m.training = was
        with torch.no_grad():
            for b, was in buffers:
                b.copy_(was)


def cut_by(accumulate: int, world: int) -> str:
    """What cuts a batch, in words; empty if nothing does."""
    parts = [f"engine.accumulate={accumulate}"] if accumulate > 1 else []
    parts += [f"{world} processes"] if world > 1 else []
    return " and ".join(parts)


def by_mathematics(method: Method, objectives: Mapping[str, Objective], accumulate: int, world: int) -> list[str]:
    """What a method, objectives and its queries themselves do with a batch as a whole, where batches are cut."""
    parts: dict[str, Method | Objective | Query] = {"method": method}
    parts |= {f"objectives.{name}": part for name, part in objectives.items()}
    parts |= {f"queries.{name}": part for name, part in method.setup.queries.items()}
    return [
        f"{who}: {part.coupled}, so with {cut_by(accumulate, world)} it learns otherwise than from the whole batch at once"
        for who, part in parts.items()
        if part.coupled
    ]


def sentences(who: str, found: Coupled, accumulate: int, world: int, together: bool) -> list[str]:
    """What is to be said of a role whose batches are cut.

    Args:
        who: how it is called.
        found: its layers.
        accumulate: micro-batches a step.
        world: processes.
        together: BatchNorm normalises over all processes (`torch.nn.SyncBatchNorm`).
    """
    how = cut_by(accumulate, world)
    if not how:
        return []
    said = []
    if found.statistics and not (together and accumulate == 1):
        each = "micro-batch" if accumulate > 1 else "process's part of the batch"
        over = " over all processes" if together else ""
        said.append(
            f"{who}: {_counted(found.statistics)} normalises each {each} by itself{over}, so with {how} it learns "
            "otherwise than from the whole batch at once"
        )
    elif found.mixes and not found.statistics:
        said.append(
            f"{who}: what it says of an item depends on the other items of the batch, so with {how} it learns otherwise "
            "than from the whole batch at once"
        )
    if found.draws or (found.varies and not found.draws):
        what = _counted(found.draws) if found.draws else "the network"
        said.append(f"{who}: {what} draws at random for each part of a batch, so {how} draws as another seed would")
    if found.moves and accumulate > 1:
        names = ", ".join(found.moves[:3]) + (f" and {len(found.moves) - 3} more" if len(found.moves) > 3 else "")
        said.append(
            f"{who}: every pass moves {names}, so engine.accumulate={accumulate} moves them {accumulate} times a step"
        )
    return said


def _counted(kinds: Mapping[str, list[str]]) -> str:
    return " and ".join(f"{kind} ({len(paths)} layer{'s' * (len(paths) > 1)})" for kind, paths in kinds.items())


NEEDS_TWO = "Expected more than 1 value per channel when training"
"""How torch's BatchNorm refuses a batch of one item."""


def one_item(section: str, size: int, accumulate: int, objective: str = "", fewest: int = 2) -> ConfigError:
    """What is to be said where BatchNorm found a single item to normalise, or an objective one to compare.

    Args:
        section: the section of the recipe that sets the batch size.
        size: items per optimiser step.
        accumulate: micro-batches a step.
        objective: the name of the objective that compares items; empty for BatchNorm.
        fewest: how many items it needs.
    """
    world = dist.world()
    parts = world * accumulate
    who = (
        f"objectives.{objective} has {'a single item' if fewest == 2 else f'fewer than {fewest} items'} to compare"
        if objective
        else "BatchNorm has a single item to normalise"
    )
    cut = f"{section}.batch_size={size}"
    if accumulate > 1:
        cut += f" cut by engine.accumulate={accumulate}"
    if world > 1:
        cut += f"{' and' if accumulate > 1 else ' cut by'} {world} processes"
    fits = min(accumulate, size // (fewest * world))
    remedy = f"set {section}.batch_size={fewest * parts}"
    if 0 < fits < accumulate:
        remedy += f", or engine.accumulate={fits}"
    return ConfigError(
        f"{section}.batch_size",
        f"{who}: {cut} leaves parts of {max(1, size // parts)}",
        expected=f"{'two' if fewest == 2 else fewest} items or more in every part",
        remedy=remedy if objective else f"{remedy}; or take a network without BatchNorm",
    )


__all__ = ["NEEDS_TWO", "Coupled", "as_in_training", "layers", "one_item", "sentences", "tried"]
