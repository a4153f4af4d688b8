"""Counter-based randomness: a draw is a function of its key, never of what was drawn before.

The key is (seed, stage, step, stream, item). Resuming, the number of loader workers, the number of processes and the
replay of a cache are therefore exact by construction. Numbers come from SplitMix64 (Steele, Lea, Flood 2014) applied to
``key + counter``, in integer tensor operations, so that they are made on the device and are the same on every device.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def key_of(*parts: Any) -> int:
    """A 64-bit key from any sequence of strings and integers.

    Example:
        >>> key_of(0, "train", 3) == key_of(0, "train", 3) != key_of(0, "train", 4)
        True
    """
    text = "\x1f".join(f"{type(p).__name__[0]}{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(z: Tensor, bits: int) -> Tensor:
    # torch's >> on int64 is arithmetic; SplitMix64 wants the logical shift
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX_2)
    return z ^ _shift(z, 31)


def bits(key: int, items: Tensor, count: int) -> Tensor:
    """64 random bits for each of ``items`` [N] and each of ``count`` counters: int64 [N, count]."""
    start = _mix(items.to(torch.int64) * _signed(_GOLDEN) + _signed(key))
    counter = torch.arange(1, count + 1, device=items.device, dtype=torch.int64) * _signed(_GOLDEN)
    return _mix(start[:, None] + counter[None, :])


class Draws:
    """Random numbers for one step of one stage. ``ctx.draws`` in a method; every call names its stream.

    Args:
        seed: the run's seed.
        scope: what else the key holds (stage name, step).
        device: where tensors are made.

    Example:
        >>> d = Draws(0, ("train", 5))
        >>> items = torch.tensor([7, 9])
        >>> torch.equal(d.randn("noise", items, (3,))[1], d.randn("noise", items[1:], (3,))[0])
        True
    """

    def __init__(self, seed: int, scope: Sequence[Any] = (), device: torch.device | str = "cpu") -> None:
        self.seed = int(seed)
        self.scope = tuple(scope)
        self.device = torch.device(device)

    def at(self, *more: Any) -> Draws:
        """The draws of a narrower scope, for an inner loop."""
        return Draws(self.seed, (*self.scope, *more), self.device)

    def anywhere(self) -> Draws:
        """Draws keyed by the seed alone: the same at every step (views replayed from a cache)."""
        return Draws(self.seed, (), self.device)

    def key(self, stream: str) -> int:
        """The 64-bit key of a stream in this scope."""
        return key_of(self.seed, *self.scope, stream)

    def _items(self, items: Tensor | int) -> Tensor:
        if isinstance(items, int):
            return torch.arange(items, device=self.device)
        return items.to(self.device)

    def rand(
        self, stream: str, items: Tensor | int, shape: Sequence[int] = (), low: float = 0.0, high: float = 1.0
    ) -> Tensor:
        """Uniform float32 in [low, high), shape [N, *shape]. ``items``: int64 ids [N], or N for ids 0..N-1."""
        ids = self._items(items)
        count = math.prod(shape)
        u = _shift(bits(self.key(stream), ids, count), 40).to(torch.float32) * 2.0**-24
        return (u * (high - low) + low).reshape(len(ids), *shape)

    def randn(self, stream: str, items: Tensor | int, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal float32 [N, *shape] (Box-Muller)."""
        ids = self._items(items)
        count = math.prod(shape)
        half = (count + 1) // 2
        raw = bits(self.key(stream), ids, 2 * half)
        u = (_shift(raw, 40).to(torch.float32) + 0.5) * 2.0**-24  # open interval: log is finite
        radius = torch.sqrt(-2.0 * torch.log(u[:, :half]))
        angle = 2.0 * math.pi * u[:, half:]
        z = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)[:, :count]
        return z.reshape(len(ids), *shape)

    def randint(self, stream: str, items: Tensor | int, high: int, shape: Sequence[int] = (), low: int = 0) -> Tensor:
        """Integers in [low, high), int64 [N, *shape]. The bias is below ``(high - low) / 2**63``."""
        if high <= low:
            raise ValueError(f"randint needs high > low, got low={low}, high={high}")
        ids = self._items(items)
        raw = _shift(bits(self.key(stream), ids, math.prod(shape)), 1)
        return (raw % (high - low) + low).reshape(len(ids), *shape)

    def generator(self, stream: str) -> torch.Generator:
        """A CPU generator seeded with the stream's key, for library calls that want one."""
        return torch.Generator().manual_seed(self.key(stream) & ((1 << 63) - 1))

    def numpy(self, stream: str) -> np.random.Generator:
        """A NumPy generator (Philox) keyed by the stream: beta, choice, permutation and the rest."""
        return np.random.Generator(np.random.Philox(key=self.key(stream)))

    def permutation(self, stream: str, n: int) -> Tensor:
        """A permutation of 0..n-1, int64 [n], on the CPU."""
        return torch.randperm(n, generator=self.generator(stream))


class Stream:
    """Which items a step sees: epochs of permutations (or draws) laid end to end, cut into batches, indexed by step.

    Args:
        n: number of items in the data.
        batch: items per optimiser step, over all processes and micro-batches.
        seed: the run's seed.
        scope: the stage's name.
        shuffle: permute each epoch; off keeps the order of the data.
        chances: float64 [n]: an epoch draws n items with replacement, each in proportion to its chance; ``None``: every
            item once an epoch.
        order: the items from one place of an epoch to another, (draws, epoch, low, high) -> int64 [high - low], of data
            that lie where any order but their own is slow; ``None``: a permutation.

    Example:
        >>> s = Stream(5, 2, 0, "train")
        >>> torch.equal(torch.cat([s.items(0)[0], s.items(1)[0], s.items(2)[0]])[:5].sort().values, torch.arange(5))
        True
    """

    def __init__(
        self,
        n: int,
        batch: int,
        seed: int,
        scope: str,
        shuffle: bool = True,
        chances: Tensor | None = None,
        order: Callable[[Draws, int, int, int], Tensor] | None = None,
    ) -> None:
        if n < 1:
            raise ValueError("a stream needs at least one item")
        self.n, self.batch, self.shuffle, self.chances = n, batch, shuffle, chances
        self.draws = Draws(seed, (scope,))
        self._epochs: dict[int, Tensor] = {}
        self.order = order if shuffle and chances is None else None

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.n)
        if epoch not in self._epochs:
            for old in [e for e in self._epochs if e < epoch - 1]:
                del self._epochs[old]
            name = f"epoch{epoch}"
            if self.chances is None:
                self._epochs[epoch] = self.draws.permutation(name, self.n)
            else:  # by bisection: torch.multinomial takes 2**24 items at most
                ends = self.chances.cumsum(0)
                points = torch.rand(self.n, generator=self.draws.generator(name), dtype=torch.float64) * ends[-1]
                self._epochs[epoch] = torch.searchsorted(ends, points, right=True).clamp_(max=self.n - 1)
        return self._epochs[epoch]

    def _part(self, epoch: int, low: int, high: int) -> Tensor:
        return self._order(epoch)[low:high] if self.order is None else self.order(self.draws, epoch, low, high)

    def items(self, step: int) -> tuple[Tensor, Tensor]:
        """The item ids [batch] of a step, and how often each was seen before (its epoch) [batch]."""
        start, stop = step * self.batch, (step + 1) * self.batch
        ids, views = [], []
        first, last = start // self.n, (stop - 1) // self.n
        if first == last:  # all but one batch an epoch
            part = self._part(first, start - first * self.n, stop - first * self.n)
            return part.clone(), torch.full((self.batch,), first)
        for epoch in range(first, last + 1):
            low, high = max(start, epoch * self.n), min(stop, (epoch + 1) * self.n)
            part = self._part(epoch, low - epoch * self.n, high - epoch * self.n)
            ids.append(part)
            views.append(torch.full_like(part, epoch))
        return torch.cat(ids), torch.cat(views)


def seed_modules(key: int, device: torch.device) -> None:
    """Seed the global generator that dropout and its like draw from (engine-notes: 1.4 microseconds on a CPU)."""
    torch.default_generator.manual_seed(key & ((1 << 63) - 1))
    if device.type == "cuda":
        torch.cuda.manual_seed(key & ((1 << 63) - 1))
    elif device.type == "mps":
        torch.mps.manual_seed(key & ((1 << 63) - 1))


@contextlib.contextmanager
def own_generators(seed: int | None = None) -> Iterator[None]:
    """Global generators (torch's on every device, NumPy's, Python's) come back as they were, whatever happens inside.

    A run seeds them for what draws from nowhere else (dropout); to its caller they are somebody else's.

    Args:
        seed: what they begin with inside; ``None`` begins where they stand.
    """
    begun, first = torch.cuda.is_initialized(), torch.initial_seed()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    devices = torch.cuda.get_rng_state_all() if begun else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    if seed is not None:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if begun:
            torch.cuda.set_rng_state_all(devices)
        elif torch.cuda.is_available():  # begun inside, or to begin later: where torch.manual_seed had put them
            torch.cuda.manual_seed_all(first)
        if mps is not None:
            torch.mps.set_rng_state(mps)
