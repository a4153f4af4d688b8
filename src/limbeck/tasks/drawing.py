"""Answers drawn on pictures: a caption, coloured masks, heat, boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.items import to_unit

LEAST = 160
"""Pixels that the shorter side of a drawn image has at least."""


def canvas(x: Tensor) -> tuple[Tensor, int]:
    """A image [C, H, W] as uint8 [3, H, W], enlarged by a whole number where it is small; and that number."""
    y = to_unit(x)[:3]
    y = y.expand(3, -1, -1) if len(y) == 1 else y
    times = max(1, -(-LEAST // min(y.shape[-2:])))
    big = (y * 255).round().clamp(0, 255).to(torch.uint8)
    return big.repeat_interleave(times, 1).repeat_interleave(times, 2), times


def captioned(x: Tensor, text: str) -> Tensor:
    """A image with a line of text above it."""
    from PIL import Image, ImageDraw

    big, _ = canvas(x)
    strip = Image.new("RGB", (big.shape[-1], 16), "white")
    ImageDraw.Draw(strip).text((3, 2), text.encode("latin-1", "replace").decode("latin-1"), fill="black")
    above = torch.from_numpy(np.asarray(strip).copy()).movedim(-1, 0)
    return torch.cat([above, big], 1)


def overlaid(x: Tensor, colours: Tensor, share: float = 0.55) -> Tensor:
    """A image under half-transparent colours [3, H, W] in [0, 1] of the same size."""
    big, times = canvas(x)
    over = colours.repeat_interleave(times, 1).repeat_interleave(times, 2) * 255
    mixed: Tensor = (1 - share) * big + share * over
    return mixed.round().clamp(0, 255).to(torch.uint8)


def heated(x: Tensor, heat: Tensor) -> Tensor:
    """A image beside a map [H, W] in [0, 1]: black, red, yellow, white."""
    big, times = canvas(x)
    h = heat.clamp(0, 1)
    hot = torch.stack([(3 * h).clamp(0, 1), (3 * h - 1).clamp(0, 1), (3 * h - 2).clamp(0, 1)])
    hot = (hot.repeat_interleave(times, 1).repeat_interleave(times, 2) * 255).round().to(torch.uint8)
    return torch.cat([big, hot], 2)


def boxed(x: Tensor, boxes: Sequence[dict[str, Any]]) -> Tensor:
    """A image with boxes, each with its class and score."""
    from torchvision.utils import draw_bounding_boxes

    big, times = canvas(x)
    good = [b for b in boxes if b["box"][2] - b["box"][0] >= 1 / times and b["box"][3] - b["box"][1] >= 1 / times]
    if not good:
        return big
    corners = torch.tensor([b["box"] for b in good]) * times
    corners[:, 2:] = torch.maximum(corners[:, 2:], corners[:, :2] + 1)
    said = [f"{b['label']} {b['score']:.2f}" for b in good]
    drawn: Tensor = draw_bounding_boxes(big, corners, said, "orange", width=2)
    return drawn


__all__ = ["boxed", "canvas", "captioned", "heated", "overlaid"]
