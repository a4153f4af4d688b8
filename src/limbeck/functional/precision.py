"""In what precision sums and coefficients are computed: float64, where the device has it."""

from __future__ import annotations

import torch
from torch import Tensor


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64 (Apple's GPUs, some of Intel's).

    Example:
        >>> widest(torch.device("cpu"))
        torch.float64
    """
    if device.type in ("cpu", "cuda"):
        return torch.float64
    if device.type == "mps":
        return torch.float32
    try:
        torch.empty((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError, NotImplementedError):
        return torch.float32
    return torch.float64


def widened(x: Tensor) -> Tensor:
    """A tensor in the widest dtype of the device it is on.

    Example:
        >>> widened(torch.ones(2)).dtype
        torch.float64
    """
    return x.to(widest(x.device))
