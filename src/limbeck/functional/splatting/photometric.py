"""How far a rendered image is from a photograph: SSIM, and L1 with its complement, as scenes are fitted; PSNR."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, ShapeError


def _window(size: int, sigma: float, like: Tensor) -> Tensor:
    at = torch.arange(size, dtype=torch.float64) - size // 2
    g = torch.exp(-at.square() / (2 * sigma**2))
    return (g / g.sum()).to(like.device, like.dtype)


def ssim_map(
    a: Tensor, b: Tensor, *, window: int = 11, sigma: float = 1.5, c1: float = 0.01**2, c2: float = 0.03**2
) -> Tensor:
    """SSIM ``[B, C, H, W]`` at every pixel and channel of images ``[B, C, H, W]`` in [0, 1]; zeros stand beside them.

    Args:
        a, b: the images.
        window, sigma: of the Gaussian weights, in pixels; an odd window.
        c1, c2: constants that keep it finite.

    Source: Wang et al. 2004, with the defaults of 3D Gaussian splatting.

    Example:
        >>> x = torch.rand(1, 3, 12, 12)
        >>> torch.allclose(ssim_map(x, x), torch.ones(1))
        True
    """
    if a.shape != b.shape or a.ndim != 4:
        raise ShapeError("b", given=list(b.shape), expected=f"[B, C, H, W] as the other image, {list(a.shape)}")
    if window < 1 or window % 2 == 0:
        raise ConfigError("window", given=window, expected="an odd number of pixels")
    channels = a.shape[1]
    g = _window(window, sigma, a)
    stack = torch.cat([a, b, a * a, b * b, a * b], 1)
    # one two-dimensional kernel: rounded as the published code rounds, where variances nearly vanish
    kernel = (g[:, None] @ g[None]).expand(5 * channels, 1, window, window)
    stack = F.conv2d(stack, kernel, padding=window // 2, groups=5 * channels)
    mu_a, mu_b, aa, bb, ab = stack.split(channels, 1)
    va, vb, cov = aa - mu_a**2, bb - mu_b**2, ab - mu_a * mu_b
    return ((2 * mu_a * mu_b + c1) * (2 * cov + c2)) / ((mu_a**2 + mu_b**2 + c1) * (va + vb + c2))


def l1_dssim(a: Tensor, b: Tensor, *, weight: float = 0.2, **options: float) -> Tensor:
    """``(1 - weight) |a - b| + weight (1 - SSIM)`` ``[B]``, each averaged over an image's pixels and channels.

    ``options`` are those of :func:`ssim_map`.

    Example:
        >>> x = torch.rand(2, 3, 12, 12)
        >>> l1_dssim(x, x).abs().max().item() < 1e-6
        True
    """
    if not 0 <= weight <= 1:
        raise ConfigError("weight", given=weight, expected="0 to 1")
    far = (a - b).abs().flatten(1).mean(1)
    return (1 - weight) * far + weight * (1 - ssim_map(a, b, **options).flatten(1).mean(1))  # type: ignore[arg-type]


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio ``[B]`` in decibels of images ``[B, ...]`` in [0, 1]; infinite where they are equal.

    Example:
        >>> round(psnr(torch.zeros(1, 4), torch.full((1, 4), 0.1)).item(), 3)
        20.0
    """
    return -10.0 / math.log(10.0) * (a - b).square().flatten(1).mean(1).log()
