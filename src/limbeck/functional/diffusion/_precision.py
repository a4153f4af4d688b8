"""In what precision coefficients are computed and results returned, and how one number per sample meets a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError
from ..precision import widened


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of a result: the widest of the inputs, and at least float32."""
    dtype = torch.float32
    for t in tensors:
        if t.is_floating_point():
            dtype = torch.promote_types(dtype, t.dtype)
    return dtype


def as_wide(value: Tensor | float) -> Tensor:
    """A tensor in the widest dtype of its device; a number as a float64 scalar on the CPU."""
    return widened(value) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def expand(value: Tensor, like: Tensor) -> Tensor:
    """``[B]`` or a scalar, shaped so that it multiplies ``[B, ...]``."""
    if value.ndim == 0:
        return value
    if value.ndim != 1 or value.shape[0] not in (1, like.shape[0]):
        raise ShapeError(
            "logsnr",
            "one value per sample is needed",
            given=tuple(value.shape),
            expected=f"a scalar or [{like.shape[0]}]",
        )
    return value.reshape(-1, *([1] * (like.ndim - 1)))
