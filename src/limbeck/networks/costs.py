"""What a network's pass costs: operations and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

ROUNDS = (30, 200)
"""Rounds of timing: at least, and at most."""

LONG = (0.1, 10.0)
"""Seconds that timing lasts at least, within the rounds; and from which fewer rounds than the least will do."""

FEWEST = 7
"""Rounds of networks that take seconds a pass."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call over its repetitions.

    Attributes:
        median: the middle one.
        low, high: quartiles: half of the repetitions lie between them.
        rounds: how many repetitions.
    """

    median: float
    low: float
    high: float
    rounds: int


def wait(device: torch.device) -> None:
    """Until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def in_turns(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, each: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Calls timed in turns, without a graph, after three rounds that warm up: what disturbs the machine meets all alike.

    Every second round goes backwards, so that none has always the same one before it. A round is repeated 30 to 200 times,
    for a tenth of a second at least; calls that take seconds are repeated 7 times.

    Args:
        calls: what is timed, by name.
        device: where they run.
        each: called after every round.

    Example:
        >>> found = in_turns({"a": lambda: sum(range(10)), "b": lambda: None}, torch.device("cpu"))
        >>> found["a"].low <= found["a"].median <= found["a"].high, found["b"].rounds >= 30
        (True, True)
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    rounds, began = 0, time.perf_counter()
    with torch.no_grad():
        for _ in range(3):
            for name in order:
                calls[name]()
            wait(device)
            each()
            if time.perf_counter() - began > LONG[1] / 2:  # slow ones are warm after one
                break
        began = time.perf_counter()
        while order and rounds < ROUNDS[1]:
            for name in order:
                start = time.perf_counter()
                calls[name]()
                wait(device)
                times[name].append(time.perf_counter() - start)
            order.reverse()
            rounds += 1
            each()
            spent = time.perf_counter() - began
            if (rounds >= ROUNDS[0] and spent >= LONG[0]) or (rounds >= FEWEST and spent >= LONG[1]):
                break
    return {name: _timing(taken) for name, taken in times.items()}


def _timing(seconds: list[float]) -> Timing:
    ranked = [1000.0 * s for s in sorted(seconds)]
    n = len(ranked)
    return Timing(ranked[n // 2], ranked[n // 4], ranked[(3 * n) // 4], n)


def milliseconds(call: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """The median time of a call, without a graph, after three that warm up."""
    times = []
    with torch.no_grad():
        for _ in range(3):
            call()
        for _ in range(repeats):
            began = time.perf_counter()
            call()
            wait(device)
            times.append(time.perf_counter() - began)
    return 1000.0 * sorted(times)[len(times) // 2]


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call: a multiplication with its addition counts two.

    Example:
        >>> layer = torch.nn.Linear(3, 4)
        >>> operations(lambda: layer(torch.zeros(1, 3)))
        24
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        call()
    return int(counter.get_total_flops())


__all__ = ["Timing", "in_turns", "milliseconds", "operations", "wait"]
