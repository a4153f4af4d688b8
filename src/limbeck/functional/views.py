"""Views of images that can be written down and taken again: random resized crops, rolls, cut-mix boxes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as f

from ..errors import ShapeError

TRIES = 10
"""How often a crop is drawn before the largest central one is taken (as torchvision's RandomResizedCrop)."""


def crop_boxes(
    u: Tensor,
    size: tuple[int, int],
    *,
    lowest: float | Tensor = 0.08,
    highest: float | Tensor = 1.0,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Boxes (top, left, height, width), int64 [N, 4], of random resized crops, from uniform numbers.

    A crop has a share of the area uniform in [lowest, highest] and an aspect ratio log-uniform in ``ratio``; one that does
    not fit is drawn again, `TRIES` times in all, and then the central one of the nearest ratio is taken.

    Args:
        u: uniform in [0, 1): ``[N, tries, 4]``, for area, ratio, top and left.
        size: (height, width) of the images.
        lowest, highest: shares of the area, or one for each box [N].
        ratio: least and greatest width / height.

    Example:
        >>> crop_boxes(torch.zeros(1, 10, 4), (8, 8), lowest=1.0).tolist()
        [[0, 0, 8, 8]]
    """
    if u.ndim != 3 or u.shape[-1] != 4:
        raise ShapeError("u", given=list(u.shape), expected="[N, tries, 4]")
    h, w = size
    u = u.double()
    low, high = (torch.as_tensor(v, dtype=u.dtype, device=u.device).reshape(-1, 1) for v in (lowest, highest))
    area = h * w * (low + (high - low) * u[..., 0])  # [N, tries]
    log_low, log_high = (math.log(r) for r in ratio)
    aspect = torch.exp(log_low + (log_high - log_low) * u[..., 1])
    wide, tall = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
    fits = (wide > 0) & (wide <= w) & (tall > 0) & (tall <= h)
    top, left = (u[..., 2] * (h - tall + 1)).floor(), (u[..., 3] * (w - wide + 1)).floor()
    boxes = torch.stack([top, left, tall, wide], -1).long()  # [N, tries, 4]
    first = fits.to(torch.int8).argmax(1)
    chosen = boxes[torch.arange(len(u), device=u.device), first]
    # whole images where their ratio is allowed, as large as it goes where it is not
    whole_h, whole_w = h, w
    if w / h < ratio[0]:
        whole_h = round(w / ratio[0])
    elif w / h > ratio[1]:
        whole_w = round(h * ratio[1])
    central = torch.tensor([(h - whole_h) // 2, (w - whole_w) // 2, whole_h, whole_w], device=u.device)
    return torch.where(fits.any(1, keepdim=True), chosen, central)


def crop_all(x: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """One crop (top, left, height, width) of all images [N, C, H, W], resized to ``size`` (bilinear, pixels as areas).

    Example:
        >>> crop_all(torch.rand(2, 1, 8, 8), (0, 0, 4, 4), (8, 8)).shape
        torch.Size([2, 1, 8, 8])
    """
    top, left, h, w = box
    part = x[..., top : top + h, left : left + w]
    if tuple(part.shape[-2:]) == tuple(size):
        return part
    return f.interpolate(part, size, mode="bilinear", align_corners=False)


def crop_each(x: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Of every image [N, C, H, W] its own crop, ``boxes`` [N, 4] (top, left, height, width), resized as `crop_all` does.

    Example:
        >>> x = torch.rand(2, 1, 8, 8)
        >>> box = torch.tensor([[1, 2, 5, 4], [0, 0, 8, 8]])
        >>> torch.allclose(crop_each(x, box, (8, 8))[0], crop_all(x[:1], (1, 2, 5, 4), (8, 8))[0], atol=1e-5)
        True
    """
    if boxes.shape != (len(x), 4):
        raise ShapeError("boxes", given=list(boxes.shape), expected=f"[{len(x)}, 4]")
    lines = []
    for first, length, n, side in ((0, 2, size[0], x.shape[-2]), (1, 3, size[1], x.shape[-1])):
        start, span = (boxes[:, k, None].to(x.dtype) for k in (first, length))  # [N, 1]
        place = (torch.arange(n, device=x.device, dtype=x.dtype)[None] + 0.5) * span / n - 0.5
        place = start + place.clamp(min=torch.zeros_like(span), max=span - 1)  # nothing from beyond the crop
        lines.append((2 * place + 1) / side - 1)
    down, across = lines
    grid = torch.stack(
        [across[:, None, :].expand(-1, size[0], -1), down[:, :, None].expand(-1, -1, size[1])], -1
    )  # [N, h, w, 2]
    return f.grid_sample(x, grid, align_corners=False, padding_mode="border")


class View(NamedTuple):
    """One view of a whole batch: the crop (top, left, height, width), whether it is mirrored, how far it is rolled."""

    box: tuple[int, int, int, int]
    flip: bool
    roll: tuple[int, int]


def take_view(x: Tensor, view: View) -> Tensor:
    """The same view of all images [N, C, H, W]: cropped and resized to their own size, then mirrored, then rolled.

    Example:
        >>> take_view(torch.tensor([[[[0.0, 1.0]]]]), View((0, 0, 1, 2), True, (0, 0))).flatten().tolist()
        [1.0, 0.0]
    """
    x = crop_all(x, view.box, (x.shape[-2], x.shape[-1]))
    x = x.flip(-1) if view.flip else x
    return torch.roll(x, view.roll, (-2, -1)) if any(view.roll) else x


def cutmix_boxes(lam: Tensor, centres: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of cut-mix (first row, first column, last row, last column; the last ones excluded), int64 [N, 4].

    The sides are ``int(side * sqrt(1 - lam))``, halved downwards around the centre and cut off at the border (Yun et al.
    2019, arXiv 1905.04899).

    Args:
        lam: share that stays, ``[N]`` in [0, 1].
        centres: (row, column), integers ``[N, 2]``.
        size: (height, width).

    Example:
        >>> cutmix_boxes(torch.tensor([0.75]), torch.tensor([[4, 1]]), (8, 8)).tolist()
        [[2, 0, 6, 3]]
    """
    side = torch.tensor(size, device=lam.device)
    half = torch.floor(side * torch.sqrt(1.0 - lam.double())[:, None]).long() // 2  # [N, 2]
    first, last = (torch.minimum((c).clamp(min=0), side) for c in (centres - half, centres + half))
    return torch.cat([first, last], 1)


def paste(x: Tensor, other: Tensor, boxes: Tensor) -> Tensor:
    """Images [N, C, H, W] with the boxes [N, 4] of ``other`` pasted in (as `cutmix_boxes` gives them).

    Example:
        >>> paste(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.tensor([[0, 0, 1, 2]])).flatten().tolist()
        [1.0, 1.0, 0.0, 0.0]
    """
    rows, columns = (torch.arange(n, device=x.device)[None] for n in x.shape[-2:])
    inside = [(line >= boxes[:, k, None]) & (line < boxes[:, k + 2, None]) for k, line in ((0, rows), (1, columns))]
    return torch.where(inside[0][:, None, :, None] & inside[1][:, None, None, :], other, x)


__all__ = [
    "TRIES",
    "View",
    "crop_all",
    "crop_boxes",
    "crop_each",
    "cutmix_boxes",
    "paste",
    "take_view",
]
