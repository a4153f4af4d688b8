"""What a network's output means, and how a prediction is carried from one noise level to another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, ShapeError
from .._common import choose, extremes
from ..precision import widest
from ._precision import as_wide, expand, result_dtype
from .schedules import alpha_sigma

Kind = Literal["eps", "x", "v", "both"]
Predict = Callable[[Tensor, Tensor], Tensor]
KINDS: tuple[str, ...] = get_args(Kind)


class XEps(NamedTuple):
    """A prediction as the pair every formula wants: the clean sample and the noise, both ``[B, ...]``."""

    x: Tensor
    eps: Tensor


def diffuse(x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """``z = alpha x + sigma eps``: the noisy sample ``[B, ...]`` at log-SNR ``[B]``.

    Example:
        >>> x, eps = torch.ones(2, 3), torch.zeros(2, 3)
        >>> diffuse(x, eps, torch.zeros(2)).square().mean().round(decimals=6).item()
        0.5
    """
    dtype = result_dtype(x, eps)
    alpha, sigma = (expand(c, x).to(dtype) for c in alpha_sigma(logsnr))
    return alpha * x.to(dtype) + sigma * eps.to(dtype)


def ddim_jump(x: Tensor, eps: Tensor, logsnr_s: Tensor) -> Tensor:
    """Psi(x, eps, s): carry a prediction to another noise level, ``alpha_s x + sigma_s eps`` (DDIM, eta = 0).

    Args:
        x: ``[B, ...]`` predicted clean sample.
        eps: ``[B, ...]`` predicted noise.
        logsnr_s: ``[B]`` log-SNR to arrive at; either direction.

    Example:
        >>> x = torch.full((1, 2), 0.5)
        >>> torch.allclose(ddim_jump(x, torch.zeros(1, 2), torch.tensor([40.0])), x)
        True
    """
    return diffuse(x, eps, logsnr_s)


def to_x_eps(
    out: Tensor,
    z: Tensor,
    logsnr: Tensor,
    kind: Kind,
    *,
    clip_x: bool = False,
    channel_dim: int = 1,
) -> XEps:
    """Read a network's output as the pair (x, eps) with ``alpha x + sigma eps = z``.

    Args:
        out: ``[B, ...]`` like ``z``; for ``"both"`` twice as many channels, x first.
        z: ``[B, ...]`` the noisy sample the network saw.
        logsnr: ``[B]``.
        kind: what the output means.
        clip_x: clamp x to [-1, 1] and let eps follow. For sampling only: in a training target it biases the target.
        channel_dim: where ``"both"`` is split.

    At a log-SNR of plus infinity there is no noise to be read, at minus infinity no sample: that one is 0 then, unless
    the network says it itself.

    Raises:
        ConfigError: for an unknown kind. ShapeError: if ``out`` does not fit ``z``.

    Source: Salimans and Ho 2022, section 4 and appendix D.

    Example:
        >>> x, eps, lam = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([1.0, -2.0])
        >>> z = diffuse(x, eps, lam)
        >>> torch.allclose(to_x_eps(from_x_eps(x, eps, lam, "v"), z, lam, "v").x, x, atol=1e-5)
        True
    """
    choose("kind", kind, Kind, "parameterisation")
    wanted = list(z.shape)
    if kind == "both":
        wanted[channel_dim] *= 2
    if list(out.shape) != wanted:
        raise ShapeError("out", f"a {kind!r} output must fit z", given=tuple(out.shape), expected=str(tuple(wanted)))
    dtype, wide = result_dtype(out, z), widest(z.device)
    alpha, sigma = (expand(c, z) for c in alpha_sigma(logsnr))
    z, out = z.to(wide), out.to(wide)
    eps: Tensor | None = None
    if kind == "eps":
        x, eps = (z - sigma * out) / _divisor(alpha), out
    elif kind == "x":
        x = out
    elif kind == "v":
        x, eps = alpha * z - sigma * out, sigma * z + alpha * out
    else:
        direct, noise = out.chunk(2, dim=channel_dim)
        # sigma^2 x + alpha^2 (z - sigma eps) / alpha, without the division: exact however small alpha is
        x = sigma.square() * direct + alpha * (z - sigma * noise)
    if clip_x:
        x, eps = x.clamp(-1.0, 1.0), None
    if eps is None:
        eps = (z - alpha * x) / _divisor(sigma)
    return XEps(x.to(dtype), eps.to(dtype))


def _divisor(coefficient: Tensor) -> Tensor:
    """A coefficient to divide by; where it is exactly 0 nothing is known of the quotient, which becomes 0."""
    return torch.where(coefficient == 0, math.inf, coefficient)


def from_x_eps(x: Tensor, eps: Tensor, logsnr: Tensor, kind: Kind, *, channel_dim: int = 1) -> Tensor:
    """The inverse of :func:`to_x_eps`: the output of that kind which means (x, eps).

    Example:
        >>> x, eps = torch.zeros(1, 2), torch.ones(1, 2)
        >>> from_x_eps(x, eps, torch.zeros(1), "both").shape
        torch.Size([1, 4])
    """
    choose("kind", kind, Kind, "parameterisation")
    dtype = result_dtype(x, eps)
    if kind == "x":
        return x.to(dtype)
    if kind == "eps":
        return eps.to(dtype)
    if kind == "both":
        return torch.cat([x.to(dtype), eps.to(dtype)], dim=channel_dim)
    alpha, sigma = (expand(c, x).to(dtype) for c in alpha_sigma(logsnr))
    return alpha * eps.to(dtype) - sigma * x.to(dtype)


def invert_jump(z: Tensor, z_s: Tensor, logsnr: Tensor, logsnr_s: Tensor) -> XEps:
    """The (x, eps) with which one DDIM jump from ``z`` at ``logsnr`` lands on ``z_s`` at ``logsnr_s``.

    Two linear equations: ``z = alpha x + sigma eps`` and ``z_s = alpha_s x + sigma_s eps``. Towards less noise they are
    solved for x first, with ``sigma_s / sigma = exp((softplus(lambda) - softplus(lambda_s)) / 2)``; towards more noise
    for eps first, with the mirrored ratio ``alpha_s / alpha``. Each is the well-conditioned order.

    Args:
        z, z_s: ``[B, ...]``.
        logsnr, logsnr_s: ``[B]``; they must differ.

    Source: Salimans and Ho 2022, appendix G, equation 43 and after; the reverse direction is Meng et al. 2023, 3.4.

    Example:
        >>> x, eps = torch.randn(2, 3), torch.randn(2, 3)
        >>> a, b = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, -2.0])
        >>> torch.allclose(invert_jump(diffuse(x, eps, a), diffuse(x, eps, b), a, b).x, x, atol=1e-4)
        True
    """
    dtype, wide = result_dtype(z, z_s), widest(z.device)
    lam, lam_s = as_wide(logsnr), as_wide(logsnr_s)
    z, z_s = z.to(wide), z_s.to(wide)
    alpha, sigma = (expand(c, z) for c in alpha_sigma(lam))
    alpha_s, sigma_s = (expand(c, z) for c in alpha_sigma(lam_s))
    # towards less noise
    ratio = expand(torch.exp(0.5 * (F.softplus(lam) - F.softplus(lam_s))), z)
    x = (z_s - ratio * z) / (alpha_s - ratio * alpha)
    eps = (z - alpha * x) / _divisor(sigma)
    # towards more noise
    mirrored = expand(torch.exp(0.5 * (F.softplus(-lam) - F.softplus(-lam_s))), z)
    eps_up = (z_s - mirrored * z) / (sigma_s - mirrored * sigma)
    x_up = (z - sigma * eps_up) / _divisor(alpha)
    down = expand(lam_s >= lam, z)
    return XEps(torch.where(down, x, x_up).to(dtype), torch.where(down, eps, eps_up).to(dtype))


def renoise(z: Tensor, noise: Tensor, logsnr: Tensor, logsnr_s: Tensor) -> Tensor:
    """Add noise to ``z`` at ``logsnr`` until it is a sample at the noisier ``logsnr_s``.

    ``z_s = (alpha_s / alpha) z + sigma_{s|} noise`` with ``sigma_{s|}^2 = (1 - exp(lambda_s - lambda)) sigma_s^2``.

    Source: Meng et al. 2023, equations 14 and 16.

    Example:
        >>> z = torch.ones(1, 2)
        >>> torch.equal(renoise(z, torch.randn(1, 2), torch.tensor([3.0]), torch.tensor([3.0])), z)
        True
    """
    dtype, wide = result_dtype(z, noise), widest(z.device)
    lam, lam_s = as_wide(logsnr), as_wide(logsnr_s)
    seen = extremes(lam_s - lam)
    if seen is not None and seen[1] > 0:
        raise ConfigError("logsnr_s", "noise can only be added", expected="a log-SNR not above the present one")
    ratio = torch.exp(0.5 * (F.softplus(-lam) - F.softplus(-lam_s)))
    added = torch.sqrt(-torch.expm1(torch.where(lam_s == lam, torch.zeros_like(lam), lam_s - lam)))
    sigma_s = alpha_sigma(lam_s)[1]
    return (expand(ratio, z) * z.to(wide) + expand(added * sigma_s, z) * noise.to(wide)).to(dtype)


def read(
    predict: Predict,
    z: Tensor,
    logsnr: Tensor,
    kind: Kind,
    clip_x: bool,
    channel_dim: int,
    seen: torch.dtype,
) -> XEps:
    """One network call in the dtype it is used to, read in the width of ``z``."""
    out = predict(z.to(seen), logsnr.to(torch.promote_types(seen, torch.float32)))
    return to_x_eps(out, z, logsnr, kind, clip_x=clip_x, channel_dim=channel_dim)
