"""Skeletons drawn over images, for reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

COLOURS = ("deepskyblue", "orange", "limegreen", "violet", "gold", "tomato", "turquoise", "pink")
"""One for each part, over again."""

SIDE = 192
"""Pixels that an image has at least in the report."""


@dataclass
class Drawn:
    """One pose.

    Attributes:
        points: [J, 2] in pixels.
        where: bool [J], points that are drawn.
        edges: pairs of them that are joined.
        colour: a colour's name.
    """

    points: Tensor
    where: Tensor
    edges: Sequence[tuple[int, int]] = ()
    colour: str = COLOURS[0]


def skeletons(x: Tensor, poses: Sequence[Drawn]) -> Tensor:
    """A image [C, H, W] in [0, 1], enlarged, with lines and points over it: uint8 [3, H', W']."""
    from PIL import Image, ImageDraw

    x = x[:3].expand(3, -1, -1) if len(x) == 1 else x[:3]
    times = max(1, -(-SIDE // max(x.shape[1:])))
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).contiguous().numpy()
    image = Image.fromarray(pixels).resize((x.shape[2] * times, x.shape[1] * times), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for pose in poses:
        at = (pose.points.double().nan_to_num(0.0).clamp(-1e4, 1e4) * times).tolist()
        seen = pose.where.tolist()
        for a, b in pose.edges:
            if seen[a] and seen[b]:
                pen.line([*at[a], *at[b]], fill=pose.colour, width=2)
        radius = 2 if len(at) < 30 else 1
        for (left, top), here in zip(at, seen, strict=True):
            if here:
                pen.ellipse([left - radius, top - radius, left + radius, top + radius], fill=pose.colour)
    return torch.from_numpy(np.array(image)).movedim(-1, 0)


def write_rows(rows: Sequence[Sequence[Tensor]], path: Path) -> None:
    """Rows of images uint8 [3, H, W] of one size as a PNG."""
    from PIL import Image

    whole = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    image = Image.fromarray(whole.movedim(0, -1).contiguous().numpy())
    if image.width > 1600:
        image = image.resize((1600, round(image.height * 1600 / image.width)))
    image.save(path)


__all__ = ["COLOURS", "Drawn", "skeletons", "write_rows"]
