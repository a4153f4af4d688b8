"""What a network's pass costs: operations and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def milliseconds(call: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """The median time of a call, without a graph, after three that warm up."""
    times = []
    with torch.no_grad():
        for _ in range(3):
            call()
        for _ in range(repeats):
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
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


__all__ = ["milliseconds", "operations"]
