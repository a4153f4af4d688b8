"""Images recovered from a network: BatchNorm's statistics matched, image priors, the curriculum of crop sizes.

Sources: Yin, Xing, Shen 2023 (SRe2L, arXiv 2306.13092); Yin, Shen 2024 (CDA, arXiv 2311.18838); the priors are DeepInversion's
(Yin et al. 2020, arXiv 1912.08795).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import statistics_dtype

Curriculum = Literal["none", "step", "linear", "cosine"]
Direction = Literal["global-to-local", "local-to-global"]


class Moments(NamedTuple):
    """Mean and biased variance [C] of each channel."""

    mean: Tensor
    var: Tensor


def channel_moments(x: Tensor) -> Moments:
    """Mean and biased variance of each channel over items and places: ``x`` [N, C, ...] gives two [C].

    Example:
        >>> channel_moments(torch.tensor([[1.0], [3.0]]))
        Moments(mean=tensor([2.]), var=tensor([1.]))
    """
    if x.ndim < 2:
        raise ShapeError("x", given=list(x.shape), expected="[N, C, ...]")
    if not x.shape[0]:
        raise ShapeError("x", "no items have no statistics", given=list(x.shape), expected="[N, C, ...]")
    dims = [0, *range(2, x.ndim)]
    var, mean = torch.var_mean(x.to(statistics_dtype(x)), dims, correction=0)
    return Moments(mean, var)


def statistics_gap(x: Tensor, running_mean: Tensor, running_var: Tensor, *, var_weight: float = 1.0) -> Tensor:
    """How far a batch's statistics are from BatchNorm's running ones: ``r ||var* - var||_2 + ||mean* - mean||_2``, a scalar.

    The norms are plain ones, not squared; the variance is the biased one.

    Args:
        x: the input of the BatchNorm layer ``[N, C, ...]``.
        running_mean, running_var: its statistics ``[C]``.
        var_weight: r, 1 in SRe2L and CDA; DWA raises it.

    Example:
        >>> statistics_gap(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0]), torch.tensor([1.0])).item()
        2.0
    """
    found = channel_moments(x)
    if running_mean.shape != found.mean.shape or running_var.shape != found.var.shape:
        raise ShapeError(
            "running_mean",
            given=list(running_mean.shape),
            expected=f"{list(found.mean.shape)}, as the input has channels",
        )
    # the gradient of a norm at exactly 0 is taken as 0 by torch
    var = torch.linalg.vector_norm(running_var.to(found.var.dtype) - found.var)
    return var_weight * var + torch.linalg.vector_norm(running_mean.to(found.mean.dtype) - found.mean)


class Variation(NamedTuple):
    """Total variation of a batch of images, two scalars: means of absolute differences, and their Frobenius norms."""

    l1: Tensor
    l2: Tensor


def image_variation(x: Tensor) -> Variation:
    """Differences between neighbours, across, down and along both diagonals, of a batch [N, C, H, W] as a whole.

    ``l1`` sums the four means of absolute differences, ``l2`` the four Frobenius norms (over all images together).

    Example:
        >>> image_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])).l1.item()
        3.0
    """
    if x.ndim != 4:
        raise ShapeError("x", given=list(x.shape), expected="[N, C, H, W]")
    x = x.to(statistics_dtype(x))
    gaps = (
        x[..., :, :-1] - x[..., :, 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., :-1, :-1] - x[..., 1:, 1:],
    )
    l1 = torch.stack([g.abs().mean() if g.numel() else g.sum() for g in gaps]).sum()
    return Variation(l1, torch.stack([torch.linalg.vector_norm(g) for g in gaps]).sum())


def image_norm(x: Tensor) -> Tensor:
    """The Euclidean norm [N] of each image [N, ...].

    Example:
        >>> image_norm(torch.ones(1, 1, 2, 2)).tolist()
        [2.0]
    """
    return torch.linalg.vector_norm(x.flatten(1).to(statistics_dtype(x)), dim=1)


def crop_floor(
    step: float,
    total: float,
    *,
    curriculum: Curriculum = "cosine",
    milestone: float = 1.0,
    lowest: float = 0.08,
    highest: float = 1.0,
    direction: Direction = "global-to-local",
) -> float:
    """The least share of the image's area that a crop has at a step: CDA's curriculum, whole images first.

    With m = milestone * total and t < m: ``step``: highest; ``linear``: from highest to lowest; ``cosine``: likewise along
    half a cosine. From m on, and always with ``none``: lowest, which is SRe2L's fixed range.

    Args:
        step: t, from 0.
        total: iterations.
        curriculum: how the floor moves.
        milestone: share of the iterations in which it does, in [0, 1].
        lowest, highest: its ends, 0 < lowest <= highest <= 1.
        direction: ``local-to-global`` rises from lowest to highest until m and stays there [reconstructed].

    Raises:
        ConfigError: a value out of its range, or an unknown curriculum or direction.

    Example:
        >>> [round(crop_floor(t, 10), 2) for t in (0, 5, 10)]
        [1.0, 0.54, 0.08]
    """
    if not 0 <= milestone <= 1:
        raise ConfigError("milestone", given=milestone, expected="a share of the iterations, from 0 to 1")
    if not 0 < lowest <= highest <= 1:
        raise ConfigError("lowest", given=(lowest, highest), expected="0 < lowest <= highest <= 1")
    if direction not in ("global-to-local", "local-to-global"):
        raise ConfigError.unknown("direction", direction, ("global-to-local", "local-to-global"))
    if curriculum not in ("none", "step", "linear", "cosine"):
        raise ConfigError.unknown("curriculum", curriculum, ("none", "step", "linear", "cosine"))
    if curriculum == "none":
        return lowest
    m = milestone * total
    first, last = (highest, lowest) if direction == "global-to-local" else (lowest, highest)
    if step >= m:
        return last
    if curriculum == "step":
        return first
    left = 1.0 - step / m if curriculum == "linear" else (1.0 + math.cos(math.pi * step / m)) / 2.0
    return last + (first - last) * left


__all__ = [
    "Curriculum",
    "Direction",
    "Moments",
    "Variation",
    "channel_moments",
    "crop_floor",
    "image_norm",
    "image_variation",
    "statistics_gap",
]
