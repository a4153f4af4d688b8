"""Where a student fails to show what its teacher shows: distances of feature pyramids, and the maps of anomalies they make.

Features are ``[N, C, h, w]``, one for each level; distances keep the places, ``[N, h, w]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from ..errors import ConfigError, ShapeError
from ._common import choose, statistics_dtype

LevelWeights = Literal["area", "equal"]
Fusion = Literal["sum", "product"]
Axes = Literal["both", "rows"]

__all__ = ["anomaly_map", "feature_gap", "gaussian_smooth", "pyramid_distance"]


def feature_gap(student: Tensor, teacher: Tensor, *, normalise: bool = True, eps: float = 1e-12) -> Tensor:
    """Half the squared distance of two features at every place ``[N, h, w]``; of unit vectors in [0, 2], ``1 - cos``.

    Args:
        student: features ``[N, C, h, w]``.
        teacher: features of the same shape.
        normalise: bring the vector at each place to length one first.
        eps: lengths below it are taken for it.

    Raises:
        ShapeError: the shapes differ, or are no maps.

    Source: Wang et al. 2021 (arXiv 2103.04257), eq. 1.

    Example:
        >>> feature_gap(torch.ones(1, 3, 1, 2), 5 * torch.ones(1, 3, 1, 2))
        tensor([[[0., 0.]]])
    """
    if student.shape != teacher.shape or student.ndim != 4:
        raise ShapeError(
            "teacher",
            given=list(teacher.shape),
            expected=f"maps [N, C, h, w] of the student's shape {list(student.shape)}",
            remedy="build the student from the teacher's channels and sides",
        )
    dtype = statistics_dtype(student, teacher)
    s, t = student.to(dtype), teacher.to(dtype)
    if normalise:
        s, t = normalize(s, dim=1, eps=eps), normalize(t, dim=1, eps=eps)
    return 0.5 * (s - t).square().sum(1)


def pyramid_distance(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, normalise: bool = True, eps: float = 1e-12
) -> Tensor:
    """The mean of `feature_gap` over the places of each level and over the levels, one value an item ``[N]``.

    Args:
        student: a map ``[N, C_l, h_l, w_l]`` for each level.
        teacher: likewise.
        normalise: as in `feature_gap`.
        eps: as in `feature_gap`.

    Example:
        >>> pyramid_distance([torch.eye(2).view(1, 2, 2, 1)], [torch.ones(1, 2, 2, 1)]).round(decimals=3)
        tensor([0.2930])
    """
    _paired(student, teacher)
    gaps = [feature_gap(s, t, normalise=normalise, eps=eps).mean((1, 2)) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(gaps).mean(0)


def gaussian_smooth(maps: Tensor, sigma: float, *, axes: Axes = "both", truncate: float = 4.0) -> Tensor:
    """Maps ``[..., H, W]`` under a Gaussian that is cut off at ``truncate`` deviations; edges are mirrored, edge included.

    As ``scipy.ndimage.gaussian_filter``, on any device and with a graph: one matrix an axis.

    Args:
        maps: ``[..., H, W]``.
        sigma: standard deviation in pixels; 0 leaves the maps as they are.
        axes: ``both``, or ``rows``: along each row alone.
        truncate: radius of the kernel in deviations.

    Example:
        >>> gaussian_smooth(torch.ones(2, 5), 3.0).round(decimals=4).unique()
        tensor([1.])
    """
    choose("axes", axes, Axes)
    if sigma < 0:
        raise ConfigError("sigma", given=sigma, expected="0 or more")
    if sigma == 0:
        return maps
    high, wide = maps.shape[-2:]
    out = maps @ _smoother(wide, sigma, truncate, maps).T
    return out if axes == "rows" else _smoother(high, sigma, truncate, maps) @ out


def _smoother(n: int, sigma: float, truncate: float, like: Tensor) -> Tensor:
    """The matrix [n, n] of a Gaussian along an axis of n places."""
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    at = (torch.arange(n, device=like.device).unsqueeze(1) + offsets) % (2 * n)  # [n, 2 radius + 1]
    at = torch.where(at < n, at, 2 * n - 1 - at)
    made = torch.zeros(n, n, dtype=torch.float64, device=like.device)
    return made.scatter_add_(1, at, (weights / weights.sum()).expand(n, -1)).to(like.dtype)


def anomaly_map(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    size: tuple[int, int],
    *,
    sigma: float = 4.0,
    level_weights: LevelWeights = "area",
    fusion: Fusion = "sum",
    normalise: bool = True,
    axes: Axes = "both",
) -> Tensor:
    """How badly each place of an image is shown, ``[N, H, W]``, 0 or more: the levels' gaps brought to one size and fused.

    Args:
        student: a map ``[N, C_l, h_l, w_l]`` for each level.
        teacher: likewise.
        size: (H, W) of the image.
        sigma: of the Gaussian that smooths the fused map, in pixels; 0 for none.
        level_weights: ``area`` divides each level's gaps by its number of places, so that coarse levels weigh more;
            ``equal`` does not.
        fusion: ``sum`` or ``product`` of the levels.
        normalise: as in `feature_gap`.
        axes: as in `gaussian_smooth`.

    Source: Thomine and Snoussi 2024 (arXiv 2401.02287); ``product`` is Wang et al. 2021 (arXiv 2103.04257), eq. 4.

    Example:
        >>> f = [torch.ones(1, 4, 8, 8), torch.ones(1, 8, 4, 4)]
        >>> anomaly_map(f, f, (16, 16)).abs().max()
        tensor(0.)
    """
    choose("level_weights", level_weights, LevelWeights)
    choose("fusion", fusion, Fusion)
    _paired(student, teacher)
    levels = []
    for s, t in zip(student, teacher, strict=True):
        gap = feature_gap(s, t, normalise=normalise)
        if level_weights == "area":
            gap = gap / (gap.shape[1] * gap.shape[2])
        levels.append(interpolate(gap.unsqueeze(1), size, mode="bilinear", align_corners=False)[:, 0])
    stacked = torch.stack(levels)
    fused = stacked.sum(0) if fusion == "sum" else stacked.prod(0)
    return gaussian_smooth(fused, sigma, axes=axes)


def _paired(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    if len(student) != len(teacher) or not student:
        raise ShapeError(
            "teacher", given=f"{len(teacher)} levels", expected=f"as many as the student's {len(student)}, at least one"
        )
