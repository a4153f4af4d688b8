"""Samplers in N equal steps: deterministic (DDIM), stochastic, ancestral; and the encoder, DDIM run backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError
from .._common import extremes
from ..precision import widest
from ._precision import as_wide, expand, result_dtype
from .halving import check_steps
from .predictions import Kind, Predict, ddim_jump, read, renoise
from .schedules import Schedule, alpha_sigma


def _levels(schedule: Schedule, place: int, steps: int, z: Tensor) -> Tensor:
    u = torch.full((z.shape[0],), place / steps, dtype=widest(z.device), device=z.device)
    return schedule.logsnr(u)


def _places(steps: int, first: int | None) -> Iterator[int]:
    check_steps(steps)
    top = steps if first is None else first
    if not 1 <= top <= steps:
        raise ConfigError("first", given=first, expected=f"between 1 and steps = {steps}")
    return iter(range(top, 0, -1))


def ddim_sample(
    predict: Predict,
    z: Tensor,
    steps: int,
    schedule: Schedule,
    kind: Kind,
    *,
    clip_x: bool = False,
    first: int | None = None,
    constrain: Callable[[Tensor, Tensor], Tensor] | None = None,
    channel_dim: int = 1,
) -> Tensor:
    """Deterministic sampling in N equal steps from ``u = 1``; the last call's x is the sample.

    Args:
        predict: the network, ``(z, logsnr) -> out``.
        z: ``[B, ...]`` noise (or, with ``first``, a sample diffused to ``u = first / steps``: image-to-image).
        steps: N, the number of network calls from ``u = 1``.
        schedule, kind: see :func:`two_step_target`.
        clip_x: clamp every predicted x to [-1, 1].
        first: start at ``u = first / steps`` instead of 1.
        constrain: called as ``constrain(z, logsnr)`` before each call; it may replace what is known of z (inpainting:
            ``torch.where(mask, diffuse(known, noise, logsnr), z)``).

    Returns:
        ``[B, ...]`` samples, with a graph if the network has one.

    Example:
        >>> x = torch.full((2, 3), 0.5)
        >>> torch.allclose(ddim_sample(lambda z, lam: x, torch.randn(2, 3), 4, CosineSchedule(), "x"), x)
        True
    """
    seen, working = z.dtype, result_dtype(z)
    z = z.to(widest(z.device))
    x = z
    for place in _places(steps, first):
        logsnr = _levels(schedule, place, steps, z)
        if constrain is not None:
            z = constrain(z, logsnr).to(z.dtype)
        x, eps = read(predict, z, logsnr, kind, clip_x, channel_dim, seen)
        if place > 1:
            z = ddim_jump(x, eps, _levels(schedule, place - 1, steps, z))
    return x.to(working)


def encode(
    predict: Predict,
    x: Tensor,
    steps: int,
    schedule: Schedule,
    kind: Kind,
    *,
    channel_dim: int = 1,
) -> Tensor:
    """The deterministic sampler run backwards: from data to the noise it would have been sampled from.

    Starts at ``u = 0`` with ``z = alpha_0 x`` and jumps ``i/N -> (i + 1)/N`` with the prediction made at ``i/N``. A
    network that puts out x says nothing about eps at ``u = 0``; use v or eps there.

    Args:
        predict, schedule, kind: see :func:`ddim_sample`; the network should have been trained for this direction
            (:func:`halving_times` with ``reverse=True``) when the steps are few.
        x: ``[B, ...]`` data.

    Returns:
        ``[B, ...]`` at ``u = 1``. Style transfer decodes it with the other class or domain (Meng et al. 2023, 3.4).

    Example:
        >>> noise = torch.randn(2, 3)
        >>> back = encode(lambda z, lam: noise, torch.zeros(2, 3), 4, CosineSchedule(), "eps")
        >>> torch.allclose(back, noise, atol=1e-3)
        True
    """
    check_steps(steps)
    seen, working = x.dtype, result_dtype(x)
    x = x.to(widest(x.device))
    z = expand(alpha_sigma(_levels(schedule, 0, steps, x))[0], x) * x
    for place in range(steps):
        pair = read(predict, z, _levels(schedule, place, steps, z), kind, False, channel_dim, seen)
        z = ddim_jump(pair.x, pair.eps, _levels(schedule, place + 1, steps, z))
    return z.to(working)


def stochastic_sample(
    predict: Predict,
    z: Tensor,
    steps: int,
    schedule: Schedule,
    kind: Kind,
    noise: Callable[[int, torch.Size], Tensor],
    *,
    clip_x: bool = False,
    channel_dim: int = 1,
) -> Tensor:
    """Sampling by a double step towards the data and a single step of noise back, N network calls in all.

    From ``t``: jump to ``t - 2/N``, add noise up to ``t - 1/N``, jump to ``t - 3/N``, add noise up to ``t - 2/N``, and
    so on. The network must have been trained for jumps of that length (:func:`stochastic_times`). Where less than a
    double step is left, the jump ends at ``u = 0`` and its x is the sample [reconstructed: the paper's equations stop
    at ``t > 1/N``].

    Args:
        predict, z, schedule, kind, clip_x: see :func:`ddim_sample`.
        steps: N, at least 2 to be stochastic at all.
        noise: ``noise(j, shape)`` gives the j-th draw of standard normal noise, j = 0, 1, ...

    Source: Meng et al. 2023, section 3.3, equations 13 to 16.

    Example:
        >>> x = torch.full((2, 3), 0.5)
        >>> draw = lambda j, shape: torch.randn(shape)
        >>> torch.allclose(stochastic_sample(lambda z, lam: x, torch.randn(2, 3), 4, CosineSchedule(), "x", draw), x)
        True
    """
    seen, working = z.dtype, result_dtype(z)
    z = z.to(widest(z.device))
    x = z
    for draw, place in enumerate(_places(steps, None)):
        logsnr = _levels(schedule, place, steps, z)
        x, eps = read(predict, z, logsnr, kind, clip_x, channel_dim, seen)
        if place > 1:
            below = _levels(schedule, max(place - 2, 0), steps, z)
            back = _levels(schedule, place - 1, steps, z)
            z = renoise(ddim_jump(x, eps, below), noise(draw, z.shape), below, back)
    return x.to(working)


def ancestral_step(
    x: Tensor,
    z: Tensor,
    noise: Tensor,
    logsnr: Tensor,
    logsnr_s: Tensor,
    *,
    variance: float = 0.0,
) -> Tensor:
    """A draw from q(z_s | z, x), the reverse of the diffusion given a predicted x.

    Mean ``r (alpha_s/alpha) z + (1 - r) alpha_s x`` with ``r = exp(lambda - lambda_s)``; the variance lies between
    ``(1 - r) sigma_s^2`` and ``(1 - r) sigma^2``.

    Args:
        x: ``[B, ...]`` predicted clean sample. z: ``[B, ...]`` at ``logsnr``. noise: ``[B, ...]``.
        logsnr, logsnr_s: ``[B]``, present level and the less noisy one to arrive at.
        variance: 0 the smaller variance, 1 the larger, between them interpolated in log space.

    Source: Ho et al. 2020 (arXiv 2006.11239), section 3.2; Nichol and Dhariwal 2021 for the interpolation.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> ancestral_step(x, x, x, torch.tensor([-1.0]), torch.tensor([1.0])).tolist()
        [[0.0, 0.0]]
    """
    if not 0.0 <= variance <= 1.0:
        raise ConfigError("variance", given=variance, expected="between 0 (small) and 1 (large)")
    dtype, wide = result_dtype(x, z, noise), widest(z.device)
    lam, lam_s = as_wide(logsnr), as_wide(logsnr_s)
    seen = extremes(lam_s - lam)
    if seen is not None and seen[0] < 0:
        raise ConfigError(
            "logsnr_s", "the step goes towards less noise", expected="a log-SNR not below the present one"
        )
    r, rest = torch.exp(lam - lam_s), -torch.expm1(lam - lam_s)
    ratio = torch.exp(0.5 * (F.softplus(-lam) - F.softplus(-lam_s)))  # alpha_s / alpha
    alpha_s = alpha_sigma(lam_s)[0]
    spread = torch.sqrt(rest) * alpha_sigma(lam_s)[1] ** (1.0 - variance) * alpha_sigma(lam)[1] ** variance
    mean = expand(r * ratio, z) * z.to(wide) + expand(rest * alpha_s, z) * x.to(wide)
    return (mean + expand(spread, z) * noise.to(wide)).to(dtype)


def ancestral_sample(
    predict: Predict,
    z: Tensor,
    steps: int,
    schedule: Schedule,
    kind: Kind,
    noise: Callable[[int, torch.Size], Tensor],
    *,
    variance: float = 0.0,
    clip_x: bool = False,
    channel_dim: int = 1,
) -> Tensor:
    """Ancestral sampling in N equal steps from ``u = 1``; the last call's x is the sample.

    Args: as :func:`stochastic_sample`; ``variance`` as :func:`ancestral_step`.

    Example:
        >>> x = torch.full((2, 3), 0.5)
        >>> draw = lambda j, shape: torch.randn(shape)
        >>> torch.allclose(ancestral_sample(lambda z, lam: x, torch.randn(2, 3), 4, CosineSchedule(), "x", draw), x)
        True
    """
    seen, working = z.dtype, result_dtype(z)
    z = z.to(widest(z.device))
    x = z
    for draw, place in enumerate(_places(steps, None)):
        logsnr = _levels(schedule, place, steps, z)
        x, _ = read(predict, z, logsnr, kind, clip_x, channel_dim, seen)
        if place > 1:
            lower = _levels(schedule, place - 1, steps, z)
            z = ancestral_step(x, z, noise(draw, z.shape), logsnr, lower, variance=variance)
    return x.to(working)
