"""Descending the difference of two scores: distillation of a diffusion model into what draws samples, as SDS and VSD do it.

    G = w(t) (eps_pre(x_t, t) - eps_other(x_t, t)),     x_t = alpha x_0 + sigma eps,     grad = G dx_0/dtheta

``eps_other`` is the noise itself in score distillation sampling (SDS, Poole et al. 2022, arXiv 2209.14988), and the noise
that a second network predicts, which is fitted to what is drawn, in variational score distillation (VSD, Wang et al. 2023,
arXiv 2305.16213). ``w = sigma^2`` in both (the codes write 1 - alphas_cumprod[t]). No gradient goes through a prediction, so
G stands for itself: a surrogate has it as its gradient, one value an item, and whoever averages divides G by the batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...errors import ConfigError, ShapeError
from .._common import choose, statistics_dtype
from ._precision import expand, result_dtype
from .predictions import Kind, from_x_eps
from .schedules import alpha_sigma

Weighting = Literal["sigma2", "uniform"]
"""w(t): ``sigma2`` (1 - alphas_cumprod[t]) or 1."""


def score_difference(
    pre: Tensor,
    other: Tensor,
    logsnr: Tensor,
    *,
    weighting: Weighting = "sigma2",
    clamp: float | None = None,
    clean: bool = True,
) -> Tensor:
    """G ``[B, ...]``: the direction in which a sample is moved away, without a graph, at least float32.

    Args:
        pre: ``[B, ...]`` the frozen model's eps, guided.
        other: ``[B, ...]`` the noise (SDS), or the eps of the model of what is drawn (VSD).
        logsnr: ``[B]`` or a scalar.
        weighting: w.
        clamp: G is cut elementwise at plus and minus this; ``None`` for no limit.
        clean: what is not finite becomes 0 (NaN) or the largest number, as in the published codes.

    Raises:
        ConfigError: an unknown weighting, a limit that is not positive. ShapeError: the predictions differ in shape.

    Example:
        >>> score_difference(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1)).tolist()
        [[0.5, 0.5]]
    """
    choose("weighting", weighting, Weighting, "weighting")
    if pre.shape != other.shape:
        raise ShapeError("other", given=list(other.shape), expected=f"{list(pre.shape)}, as the frozen model's")
    if clamp is not None and not clamp > 0:
        raise ConfigError("clamp", given=clamp, expected="a number above 0, or none")
    dtype = result_dtype(pre, other)
    gap = pre.detach().to(dtype) - other.detach().to(dtype)
    if weighting == "sigma2":
        gap = expand(alpha_sigma(logsnr)[1].square(), gap).to(dtype) * gap
    gap = torch.nan_to_num(gap) if clean else gap
    return gap if clamp is None else gap.clamp(-clamp, clamp)


def normalised_difference(x: Tensor, pre: Tensor, other: Tensor) -> Tensor:
    """The difference of two predicted clean samples over the mean distance of the frozen model's to what was drawn.

    ``(x_other - x_pre) / mean|x - x_pre|``, the mean over a sample's elements: a step that is as large at every noise level.

    Args:
        x: ``[B, ...]`` what was drawn.
        pre, other: ``[B, ...]`` the clean samples that the frozen and the other model see in it.

    Source: Yin et al. 2024 (DMD, arXiv 2311.18828), equation 8.

    Example:
        >>> normalised_difference(torch.zeros(1, 2), torch.full((1, 2), -2.0), torch.zeros(1, 2)).tolist()
        [[1.0, 1.0]]
    """
    _alike(x, pre)
    _alike(x, other)
    dtype = result_dtype(x, pre, other)
    x, pre, other = x.detach().to(dtype), pre.detach().to(dtype), other.detach().to(dtype)
    far = (x - pre).abs().flatten(1).mean(1)
    return torch.nan_to_num((other - pre) / expand(far, x))


def carry(x: Tensor, gradient: Tensor) -> Tensor:
    """``[B]`` zeros whose gradient with respect to ``x`` ``[B, ...]`` is ``gradient``: exact, whatever the size of x.

    Example:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> carry(x, torch.full((2, 3), 7.0)).sum().backward()
        >>> x.grad[0].tolist()
        [7.0, 7.0, 7.0]
    """
    _alike(x, gradient)
    x = x.to(statistics_dtype(x))
    return ((x - x.detach()) * gradient.detach()).flatten(1).sum(1)


def pull(x: Tensor, gradient: Tensor) -> Tensor:
    """``0.5 ||x - sg(x - G)||^2`` ``[B]``: the same gradient, and half the squared length of G as its value.

    Example:
        >>> pull(torch.ones(1, 2), torch.tensor([[3.0, 4.0]])).item()
        12.5
    """
    _alike(x, gradient)
    x = x.to(statistics_dtype(x))
    return 0.5 * (x - (x - gradient).detach()).square().flatten(1).sum(1)


def _alike(x: Tensor, gradient: Tensor) -> None:
    if x.shape != gradient.shape or x.ndim < 1:
        raise ShapeError("gradient", given=list(gradient.shape), expected=f"{list(x.shape)}, as what it moves")


def denoising_error(out: Tensor, x: Tensor, eps: Tensor, logsnr: Tensor, kind: Kind) -> Tensor:
    """The mean squared error ``[B]`` of a raw output against what it should have been: eps, x, v or both.

    Args:
        out: ``[B, ...]`` the network's output at ``alpha x + sigma eps``.
        x, eps: ``[B, ...]`` the clean sample (detached by the caller) and the noise.
        logsnr: ``[B]``.
        kind: what the output means.

    Example:
        >>> denoising_error(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1), "eps").item()
        1.0
    """
    goal = from_x_eps(x, eps, logsnr, kind)
    if out.shape != goal.shape:
        raise ShapeError("out", given=list(out.shape), expected=f"{list(goal.shape)} for a {kind!r} output")
    return (out.to(goal.dtype) - goal).square().flatten(1).mean(1)


def mixture_eps(z: Tensor, logsnr: Tensor, samples: Tensor, scale: float) -> Tensor:
    """The exact eps ``[B, ...]`` of samples smoothed by a Gaussian: what a perfect denoiser of that mixture answers.

    ``eps = -sigma (sum_i p_i alpha x_i - z) / (alpha^2 s^2 + sigma^2)``, p = softmax(-||z - alpha x_i||^2 / (2 (...)))``.

    Args:
        z: ``[B, ...]`` noisy samples.
        logsnr: ``[B]``.
        samples: ``[M, ...]`` the mixture's centres x_i.
        scale: s, the width of each, 0 or more.

    Example:
        >>> z = torch.tensor([[2.0]])
        >>> round(mixture_eps(z, torch.zeros(1), torch.zeros(1, 1), 0.0).item(), 4)  # z / sigma
        2.8284
    """
    if not scale >= 0:
        raise ConfigError("scale", given=scale, expected="0 or more")
    if samples.shape[1:] != z.shape[1:] or len(samples) == 0:
        raise ShapeError(
            "samples", given=list(samples.shape), expected=f"[M, {', '.join(map(str, z.shape[1:]))}], M > 0"
        )
    dtype = result_dtype(z, samples)
    alpha, sigma = (c.to(dtype).reshape(-1, 1) for c in alpha_sigma(logsnr))
    flat, centres = z.to(dtype).flatten(1), samples.to(dtype).flatten(1)
    var = alpha.square() * scale**2 + sigma.square()  # [B, 1]
    # ||z - alpha x||^2 without the terms that are the same for all x
    far = alpha.square() * centres.square().sum(1) - 2 * alpha * (flat @ centres.T)  # [B, M]
    mean = torch.softmax(-far / (2 * var), 1) @ centres  # [B, D]
    return (-sigma * (alpha * mean - flat) / var).reshape(z.shape)
