"""Boxes: overlaps, how they are coded, which of them stand for what. All of a batch at once, padded with ``where``.

Boxes are (left, top, right, bottom) in pixels, [..., R, 4]; padded ones are all zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import ShapeError

LARGEST = math.log(1000.0 / 16)
"""Widths and heights grow by no more than this, in logarithms, when offsets are decoded."""


class Assigned(NamedTuple):
    """What boxes stand for.

    Attributes:
        target: [..., R] number of the true box that each stands for; 0 where it stands for none.
        positive, negative: bool [..., R]; what is neither is left out.
    """

    target: Tensor
    positive: Tensor
    negative: Tensor


def _checked(name: str, boxes: Tensor) -> None:
    if boxes.ndim < 2 or boxes.shape[-1] != 4:
        raise ShapeError(name, given=list(boxes.shape), expected="[..., R, 4]")


def area(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes [..., 4]; none is negative."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair: [..., A, 4], [..., B, 4] -> [..., A, B]; 0 where both are empty.

    Example:
        >>> iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]])).item()
        0.3333333432674408
    """
    _checked("a", a)
    _checked("b", b)
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    both = (high - low).clamp_min(0).prod(-1)
    union = area(a)[..., :, None] + area(b)[..., None, :] - both
    return both / union.clamp_min(torch.finfo(both.dtype).tiny)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + size / 2, size


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Offsets [..., 4] that lead from anchors to boxes: shifts in units of the anchor's size, logarithms of the growth.

    Args:
        boxes, anchors: [..., 4]; empty ones give finite offsets that mean nothing.
        weights: factors of the two shifts and the two growths.
    """
    (c, s), (c0, s0) = _centres(boxes), _centres(anchors)
    s0 = s0.clamp_min(1e-6)
    w = boxes.new_tensor(list(weights))
    return torch.cat([(c - c0) / s0, (s.clamp_min(1e-6) / s0).log()], -1) * w


def decode(offsets: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """What `encode` codes: boxes [..., 4].

    Example:
        >>> a, b = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[1.0, 0, 3, 6]])
        >>> bool(torch.allclose(decode(encode(b, a), a), b))
        True
    """
    c0, s0 = _centres(anchors)
    offsets = offsets / offsets.new_tensor(list(weights))
    c, s = c0 + offsets[..., :2] * s0, s0 * offsets[..., 2:].clamp(max=LARGEST).exp()
    return torch.cat([c - s / 2, c + s / 2], -1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] cut to an image of (height, width)."""
    high, wide = size
    return torch.stack([boxes[..., k].clamp(0, (wide, high)[k % 2]) for k in range(4)], -1)


def assign(
    overlaps: Tensor,
    where: Tensor,
    *,
    high: float = 0.5,
    low: float = 0.5,
    best: bool = False,
) -> Assigned:
    """Which true box each box stands for.

    Args:
        overlaps: [..., R, M] with each true box.
        where: [..., M]: true boxes that are there.
        high: from this overlap on a box is positive; below ``low`` it is negative.
        best: a true box that no box reaches so well makes those positive that overlap it best (with more than nothing).
    """
    if overlaps.shape[-1] == 0:
        none = torch.zeros(overlaps.shape[:-1], dtype=torch.long, device=overlaps.device)
        return Assigned(none, none.bool(), ~none.bool())
    overlaps = overlaps.masked_fill(~where.unsqueeze(-2), -1.0)
    value, target = overlaps.max(-1)
    positive, negative = value >= high, value < low
    if best:
        most = overlaps.amax(-2, keepdim=True)
        reached = ((overlaps == most) & (most > 0)).any(-1)
        positive, negative = positive | reached, negative & ~reached
    return Assigned(target, positive, negative)


def sampling_weights(positive: Tensor, negative: Tensor, size: int, share: float) -> Tensor:
    """The probability with which each of [..., R] boxes is in a balanced random sample: a loss under these weights is the
    sampled one's expectation, without its draws.

    Args:
        positive, negative: bool [..., R].
        size: boxes of the sample; ``share`` of them at most are positive, the rest is filled with negative ones.
    """
    n_pos, n_neg = positive.sum(-1, keepdim=True), negative.sum(-1, keepdim=True)
    pos = n_pos.clamp(max=int(size * share))
    neg = torch.minimum(n_neg, size - pos)
    return positive * (pos / n_pos.clamp_min(1)) + negative * (neg / n_neg.clamp_min(1))


def grown(boxes: Tensor, factor: float, size: tuple[int, int] | None = None) -> Tensor:
    """Boxes [..., 4] made larger about their middle, cut to an image of ``size`` (height, width) where that is given.

    Example:
        >>> grown(torch.tensor([[2.0, 2, 4, 4]]), 2.0).tolist()
        [[1.0, 1.0, 5.0, 5.0]]
    """
    c, s = _centres(boxes)
    made = torch.cat([c - s * factor / 2, c + s * factor / 2], -1)
    return made if size is None else clipped(made, size)


__all__ = ["Assigned", "area", "assign", "clipped", "decode", "encode", "grown", "iou", "sampling_weights"]
