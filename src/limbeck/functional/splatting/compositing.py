"""Flat Gaussians laid over each other from front to back, at every pixel, by tiles.

    a = min(a_max, o exp(-sigma)),  sigma = (A dx^2 + C dy^2) / 2 + B dx dy;   a < 1/255 does not count
    w_i = a_i prod_{j<i} (1 - a_j),  until the product falls to 1e-4;   image = sum_i w_i f_i

All Gaussians of a tile are handled at once: the product is the exponential of a running sum of log(1 - a), and because that
only falls, cutting where it falls below log(1e-4) is the same as stopping there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STOP = math.log(1e-4)
FAINT = 1.0 / 255.0
DENSE = 100_000
"""Up to so many pairs of a pixel and a Gaussian an image is one tile."""


def composite(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    features: Tensor,
    depths: Tensor,
    radii: Tensor,
    width: int,
    height: int,
    *,
    tile_size: int | None = 16,
    max_alpha: float = 0.99,
) -> tuple[Tensor, Tensor]:
    """The image ``[H, W, D]`` of one camera, and how much of each pixel is covered ``[H, W, 1]``.

    Args:
        means2d: ``[N, 2]`` centres in pixels. conics: ``[N, 3]``: xx, xy, yy of the inverse covariance.
        opacities: ``[N]`` in [0, 1]. features: ``[N, D]``. depths: ``[N]``, which order them (no gradient).
        radii: ``[N, 2]`` half of each box; 0 where a Gaussian is not seen.
        width, height: of the image.
        tile_size: pixels along a tile's side; ``None`` lays every Gaussian over every pixel. The result is the same.
        max_alpha: a_max.

    Example:
        >>> one = [torch.tensor(v) for v in ([[1.0, 1.0]], [[9.0, 0.0, 9.0]], [0.5], [[1.0]], [1.0], [[2, 2]])]
        >>> round(composite(*one, 2, 2)[1][0, 0].item(), 4)  # 0.5 exp(-9 / 4)
        0.0527
    """
    seen = (radii > 0).all(-1)
    # rows in drawing order, one gather for all tiles
    parts = [means2d, conics, opacities[:, None], features]
    if width * height * len(radii) < DENSE:  # no shape depends on what is seen: this much compiles as one graph
        rows = torch.cat(parts, 1)
        rows = torch.where(seen[:, None], rows, torch.zeros_like(rows))  # which adds nothing, whatever was there
        order = torch.sort(depths.detach().float(), stable=True).indices
        made = _tile(rows[order], 0, 0, width, height, max_alpha)
        return made[0], made[1]
    kept = seen.nonzero().squeeze(1)
    if not len(kept):
        empty = features.new_zeros(height, width, features.shape[1] + 1)
        return empty[..., :-1] + 0 * features.sum(), empty[..., -1:] + 0 * opacities.sum()
    order = kept[torch.sort(depths.detach()[kept].float(), stable=True).indices]
    rows = torch.cat(parts, 1)[order]
    if tile_size is None or width * height * len(order) < DENSE:
        made = _tile(rows, 0, 0, width, height, max_alpha)
        return made[0], made[1]
    with torch.no_grad():
        across, down = -(-width // tile_size), -(-height // tile_size)
        m, r = means2d[order], radii[order].to(means2d.dtype)
        low = ((m - r) / tile_size).floor().long()
        high = ((m + r) / tile_size).floor().long()
        i, j = torch.arange(across, device=m.device), torch.arange(down, device=m.device)
        in_x = (low[:, 0] <= i[:, None]) & (i[:, None] <= high[:, 0])  # [across, n]
        in_y = (low[:, 1] <= j[:, None]) & (j[:, None] <= high[:, 1])  # [down, n]
        touched = (in_y[:, None] & in_x[None]).flatten(0, 1)  # [down * across, n]
        which = touched.nonzero()[:, 1].split(touched.sum(1).tolist())
    lines = []
    for row in range(down):
        line, y0 = [], row * tile_size
        h = min(tile_size, height - y0)
        for column in range(across):
            x0, ids = column * tile_size, which[row * across + column]
            w = min(tile_size, width - x0)
            if len(ids):
                made = _tile(rows[ids], x0, y0, w, h, max_alpha)
                line.append(torch.cat(made, -1))
            else:
                line.append(rows.new_zeros(h, w, features.shape[1] + 1))
        lines.append(torch.cat(line, 1))
    whole = torch.cat(lines, 0)
    return whole[..., :-1], whole[..., -1:]


def _tile(rows: Tensor, x0: int, y0: int, width: int, height: int, max_alpha: float) -> tuple[Tensor, Tensor]:
    """Pixels ``[h, w, D]`` of a tile and their cover ``[h, w, 1]`` from Gaussians in drawing order ``[n, 6 + D]``."""
    x, y, A, B, C, o = rows[:, :6].unbind(1)
    at = rows.new_tensor(0.5)
    dx = torch.arange(x0, x0 + width, device=rows.device).to(rows.dtype)[:, None] + at - x  # [w, n]
    dy = torch.arange(y0, y0 + height, device=rows.device).to(rows.dtype)[:, None] + at - y  # [h, n]
    # everything but the product of both distances belongs to a row or a column alone
    sigma = (0.5 * A * dx * dx)[None] + (0.5 * C * dy * dy)[:, None] + dy[:, None] * (B * dx)[None]  # [h, w, n]
    a = (o * torch.exp(-sigma)).clamp_max(max_alpha)
    a = torch.where((sigma < 0) | (a < FAINT), torch.zeros_like(a), a)
    log = torch.log1p(-a)
    through = log.cumsum(-1)  # log of what is left behind each
    w = a * torch.exp(through - log) * (through.detach() > STOP)
    return w @ rows[:, 6:], w.sum(-1, keepdim=True)


__all__ = ["composite"]
