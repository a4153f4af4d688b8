"""Classifier-free guidance, in either convention of its weight, and how a network is told the weight."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, ShapeError
from ..precision import widest
from ._precision import expand, result_dtype
from .predictions import Kind, XEps, to_x_eps


def scale_from_w(w: Tensor | float) -> Tensor | float:
    """``s = 1 + w``: from the paper's extra weight (0 is plain conditional) to the libraries' scale (1 is plain)."""
    return w + 1.0


def w_from_scale(scale: Tensor | float) -> Tensor | float:
    """``w = s - 1``: the inverse of :func:`scale_from_w`."""
    return scale - 1.0


def _extra_weight(w: Tensor | float | None, scale: Tensor | float | None) -> Tensor | float:
    if (w is None) == (scale is None):
        raise ConfigError(
            "guidance",
            "give exactly one of the two conventions",
            expected="w (0 is plain conditional) or scale (1 is plain conditional)",
        )
    if w is not None:
        return w
    assert scale is not None
    return w_from_scale(scale)


def guide(
    cond: Tensor, uncond: Tensor, *, w: Tensor | float | None = None, scale: Tensor | float | None = None
) -> Tensor:
    """Classifier-free guidance of two predictions ``[B, ...]`` of the same kind, in either convention, by name.

    ``w``: ``(1 + w) cond - w uncond`` (Ho and Salimans 2022; Meng et al. 2023); ``scale``: ``uncond + s (cond -
    uncond)`` (diffusers). They are the same with ``s = 1 + w``. A number, or one value per sample ``[B]``.

    Raises:
        ConfigError: unless exactly one of ``w`` and ``scale`` is given.

    Example:
        >>> c, u = torch.tensor([[2.0]]), torch.tensor([[1.0]])
        >>> guide(c, u, w=0.0).item(), guide(c, u, w=1.0).item(), guide(c, u, scale=2.0).item()
        (2.0, 3.0, 3.0)
    """
    extra = _extra_weight(w, scale)
    dtype = result_dtype(cond, uncond)
    cond, uncond = cond.to(dtype), uncond.to(dtype)
    if isinstance(extra, Tensor):
        extra = expand(extra.to(dtype), cond)
    # written so that weight zero is the conditional prediction bit for bit
    return cond + extra * (cond - uncond)


def guided_x(
    cond: Tensor,
    uncond: Tensor,
    z: Tensor,
    logsnr: Tensor,
    kind: Kind,
    *,
    w: Tensor | float | None = None,
    scale: Tensor | float | None = None,
    clip_x: bool = False,
    channel_dim: int = 1,
) -> XEps:
    """The guided teacher as (x, eps): both raw outputs are read as x, and x is guided.

    ``x^w = (1 + w) x_c - w x_u``; eps is whatever makes ``alpha x^w + sigma eps = z``, which is also the guided eps.

    Args:
        cond, uncond: raw outputs ``[B, ...]`` with the condition and with the null condition.
        z: ``[B, ...]``. logsnr: ``[B]``. kind: of both outputs.
        w, scale: guidance, see :func:`guide`; number or ``[B]``.
        clip_x: clamp the guided x to [-1, 1]. It changes the teacher: leave it off for training targets.

    Source: Meng et al. 2023, section 3.1.

    Example:
        >>> z, lam = torch.randn(2, 3), torch.zeros(2)
        >>> c, u = torch.randn(2, 3), torch.randn(2, 3)
        >>> torch.allclose(guided_x(c, u, z, lam, "eps", w=1.0).eps, 2 * c - u, atol=1e-5)
        True
    """
    wide = widest(z.device)
    c = to_x_eps(cond.to(wide), z.to(wide), logsnr, kind, channel_dim=channel_dim)
    n = to_x_eps(uncond.to(wide), z.to(wide), logsnr, kind, channel_dim=channel_dim)
    dtype = result_dtype(cond, uncond, z)
    x = guide(c.x, n.x, w=w, scale=scale)
    if clip_x:
        return XEps(*(p.to(dtype) for p in to_x_eps(x, z.to(wide), logsnr, "x", clip_x=True)))
    return XEps(x.to(dtype), guide(c.eps, n.eps, w=w, scale=scale).to(dtype))


def check_guidance(w: Tensor | float, low: float, high: float) -> None:
    """Answer a guidance weight at the door: negative is an error, outside the trained range a warning.

    Raises:
        ConfigError: if any ``w`` is negative.

    Example:
        >>> check_guidance(1.5, 0.0, 4.0)
    """
    values = torch.as_tensor(w, dtype=torch.float32).reshape(-1)
    lowest, highest = float(values.min()), float(values.max())
    if lowest < 0.0:
        raise ConfigError(
            "w",
            "the guidance weight is negative",
            given=lowest,
            expected="w >= 0, where 0 is the plain conditional model",
            remedy="if you meant the scale s, w = s - 1",
        )
    if lowest < low or highest > high:
        warnings.warn(
            f"w: guidance {lowest:g} to {highest:g} is outside [{low:g}, {high:g}], for which the student was trained",
            UserWarning,
            stacklevel=2,
        )


def guidance_embedding(w: Tensor, dim: int, *, multiplier: float = 1000.0, longest: float = 10000.0) -> Tensor:
    """Fourier features of a guidance weight: sines, then cosines, of geometrically spaced frequencies.

    The default follows diffusers' ``get_guidance_scale_embedding``, which is given ``s - 1 = w``.

    Args:
        w: ``[B]``.
        dim: width of the result, at least 4; an odd one ends in a zero.
        multiplier: ``w`` is multiplied by it first.
        longest: ratio of the highest to the lowest frequency.

    Returns:
        ``[B, dim]`` in the dtype of ``w`` (at least float32).

    Example:
        >>> guidance_embedding(torch.zeros(2), 4).tolist()[0]
        [0.0, 0.0, 1.0, 1.0]
    """
    if dim < 4:
        raise ConfigError("dim", "the embedding needs at least two frequencies", given=dim, expected=">= 4")
    if w.ndim != 1:
        raise ShapeError("w", "one guidance weight per sample", given=tuple(w.shape), expected="[B]")
    half = dim // 2
    wide = widest(w.device)
    steps = torch.arange(half, dtype=wide, device=w.device)
    frequency = torch.exp(steps * (-math.log(longest) / (half - 1)))
    angle = w.to(wide)[:, None] * multiplier * frequency[None, :]
    features = torch.cat([angle.sin(), angle.cos()], dim=1)
    if dim % 2:
        features = F.pad(features, (0, 1))
    return features.to(result_dtype(w))
