"""Mixing items in pairs, each with a share of its own (MIX-KD, Choi et al. 2023, arXiv 2211.03946)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError, ShapeError
from ._common import extremes


def partial_shares(share: Tensor, unmixed: Tensor) -> Tensor:
    """Shares ``[N]`` of which those of the items ``unmixed`` (int64 ``[M]``, repetitions count once) become 1.

    Partial mixup names the unmixed part of a batch. The released code draws it with replacement, so that of
    ``floor(percent * N)`` draws about ``1 - exp(-percent)`` of the items are hit: at 0.9 about 41 % stay mixed, not 10 %.

    Example:
        >>> partial_shares(torch.tensor([0.2, 0.3, 0.4]), torch.tensor([0, 0]))
        tensor([1.0000, 0.3000, 0.4000])
    """
    if share.ndim != 1:
        raise ShapeError("share", given=list(share.shape), expected="[N], one share per item")
    seen = extremes(unmixed)
    if seen is not None and (seen[0] < 0 or seen[1] >= len(share)):
        raise DataError("unmixed", given=list(seen), expected=f"items 0..{len(share) - 1}")
    return share.scatter(0, unmixed, 1.0)


def mix_pairs(x: Tensor, share: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``share * x[first] + (1 - share) * x[second]``, item by item.

    Args:
        x: ``[N, ...]``: images, rows of numbers, or labels as probabilities ``[N, C]``.
        share: of the first of each pair, in [0, 1], ``[M]``.
        first, second: which items of ``x`` make the pair, int64 ``[M]``.

    Returns:
        ``[M, ...]``, in the dtype of ``x``.

    Example:
        >>> x = torch.tensor([[0.0], [10.0]])
        >>> mix_pairs(x, torch.tensor([1.0, 0.25]), torch.tensor([1, 0]), torch.tensor([0, 1]))
        tensor([[10.0000],
                [ 7.5000]])
    """
    if not x.is_floating_point():
        raise ShapeError("x", given=str(x.dtype), expected="a floating point tensor", remedy="convert it before mixing")
    if share.ndim != 1 or first.shape != share.shape or second.shape != share.shape:
        shapes = [list(t.shape) for t in (share, first, second)]
        raise ShapeError("share", given=shapes, expected="share, first and second of the same shape [M]")
    dtype = torch.promote_types(x.dtype, torch.float32)
    lam = share.to(dtype).reshape(-1, *[1] * (x.ndim - 1))
    return (lam * x[first].to(dtype) + (1 - lam) * x[second].to(dtype)).to(x.dtype)


__all__ = ["mix_pairs", "partial_shares"]
