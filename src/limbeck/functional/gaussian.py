"""Diagonal Gaussians [..., z] by mean and log-variance, and how far a set of them depends on a group.

Distance covariance of mixtures of Gaussians with a discrete attribute as FairDisCo has it (Liu et al., KDD 2022).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError

LOG_2PI = math.log(2 * math.pi)


def prior_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL( N(mean, exp(logvar)) || N(0, 1) ), summed over the last axis: ``[...]``.

    Args:
        mean, logvar: ``[..., z]``.

    Example:
        >>> prior_kl(torch.zeros(2, 3), torch.zeros(2, 3))
        tensor([0., 0.])
    """
    return 0.5 * (mean.square() + logvar.expm1() - logvar).sum(-1)


def gaussian_kl(
    mean: Tensor,
    logvar: Tensor,
    teacher_mean: Tensor,
    teacher_logvar: Tensor,
    *,
    direction: Literal["forward", "reverse"] = "forward",
) -> Tensor:
    """KL of two diagonal Gaussians, summed over the last axis: ``[...]``. ``forward`` is KL(teacher || student).

    Args:
        mean, logvar: of the student ``[..., z]``.
        teacher_mean, teacher_logvar: of the teacher.
        direction: ``forward`` or ``reverse`` (KL(student || teacher)).

    Raises:
        ConfigError: another direction.
        ShapeError: latents of two sizes.

    Example:
        >>> one, two = torch.ones(1, 2), torch.zeros(1, 2)
        >>> gaussian_kl(one, two, two, two).item()
        1.0
    """
    if mean.shape[-1] != teacher_mean.shape[-1]:
        raise ShapeError(
            "mean", given=list(mean.shape), expected=str(list(teacher_mean.shape)), remedy="give both one size"
        )
    if direction not in ("forward", "reverse"):
        raise ConfigError.unknown("direction", direction, ("forward", "reverse"), "direction")
    gap = (mean - teacher_mean).square()
    ratio = logvar - teacher_logvar if direction == "forward" else teacher_logvar - logvar  # log var_q - log var_p
    under = logvar if direction == "forward" else teacher_logvar  # the second distribution's
    return 0.5 * (ratio + (-ratio).expm1() + gap * (-under).exp()).sum(-1)


def pair_density(mean: Tensor, logvar: Tensor, eps: float = 0.0, own: slice | None = None) -> Tensor:
    """N(mean_i - mean_j; 0, var_i + var_j) of all pairs ``[N, N]``, accumulated in log space over z; of some rows i.

    Args:
        mean, logvar: ``[N, z]``.
        eps: is added to the square root of the product of 2 pi (var_i + var_j), as the published code does (1e-10).
        own: the rows i; ``None`` for all.
    """
    found: Tensor = _PairDensity.apply(mean, logvar.exp(), eps, own or slice(None))
    return found


class _PairDensity(torch.autograd.Function):
    """Densities with their gradient in closed form: one [n, N] matrix at a time, where autograd would keep several a dimension."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, var: Tensor, eps: float, own: slice) -> Tensor:
        quadratic, volume = mean.new_zeros(()), mean.new_zeros(())
        for m, v in zip(mean.unbind(-1), var.unbind(-1), strict=True):
            total = v[own, None] + v
            quadratic = quadratic + (m[own, None] - m).square_().div_(total)
            volume = volume + total.log_()
        root = (0.5 * (volume + mean.shape[-1] * LOG_2PI)).exp() if eps else None
        if root is None:
            density = (-0.5 * (quadratic + volume + mean.shape[-1] * LOG_2PI)).exp()
        else:
            density = (-0.5 * quadratic).exp() / (root + eps)
        ctx.save_for_backward(mean, var, density, root)
        ctx.eps, ctx.own = eps, own
        return density

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, var, density, root = ctx.saved_tensors
        own = ctx.own
        g = grad * density  # [n, N], by log density
        shrunk = g if root is None else g * (root / (root + ctx.eps))
        to_mean, to_var = torch.zeros_like(mean), torch.zeros_like(var)
        for d in range(mean.shape[-1]):
            m, v = mean[:, d], var[:, d]
            inverse = (v[own, None] + v).reciprocal_()
            slope = (m[own, None] - m).mul_(inverse)
            each = g * slope
            to_mean[:, d] += each.sum(0)
            to_mean[own, d] -= each.sum(1)
            spread = each.mul_(slope).sub_(inverse.mul_(shrunk)).mul_(0.5)
            to_var[:, d] += spread.sum(0)
            to_var[own, d] += spread.sum(1)
        return to_mean, to_var, None, None


def distance_covariance(
    mean: Tensor,
    logvar: Tensor,
    group: Tensor,
    *,
    groups: int | None = None,
    eps: float = 0.0,
    own: slice | None = None,
) -> Tensor:
    """Squared distance covariance of latents and groups: values ``[N]`` whose mean it is; 0 where all groups are alike.

    V2 = sum_s (n_s / n)^2 [D(all, all) + D(s, s) - 2 D(all, s)], D(A, B) the mean density of the pairs. With K the densities
    and w_s = 1[s] - n_s / n it is sum_s w_s' K w_s / n^2: groups that are empty or hold all rows add nothing, and large
    terms do not cancel. Row i has sum_s w_is (K w_s)_i / n.

    Args:
        mean, logvar: of the posteriors ``[N, z]``.
        group: int64 ``[N]``.
        groups: how many there are; ``None``: as many as the largest number says.
        eps: see `pair_density`.
        own: of which rows the values are wanted: those of one part of a batch, against all of it.

    Raises:
        ShapeError: the groups are not one a row.

    Example:
        >>> mean = torch.tensor([[0.0], [0.0], [3.0], [3.0]])
        >>> mixed = distance_covariance(mean, torch.zeros(4, 1), torch.tensor([0, 1, 0, 1])).mean()
        >>> apart = distance_covariance(mean, torch.zeros(4, 1), torch.tensor([0, 0, 1, 1])).mean()
        >>> abs(mixed.item()) < 1e-8, round(apart.item(), 4)
        (True, 0.0631)
    """
    n = len(mean)
    if group.shape != (n,):
        raise ShapeError("group", given=list(group.shape), expected=f"[{n}]", remedy="give one group a row")
    if n == 0:
        return mean.sum(-1)
    count = groups if groups is not None else int(group.max()) + 1
    member = torch.nn.functional.one_hot(group, count).to(mean.dtype)  # [N, S]
    w = member - member.mean(0)
    mine = own or slice(None)
    return (w[mine] * (pair_density(mean, logvar, eps, own=own) @ w)).sum(-1) / n


def mmd(student: Tensor, teacher: Tensor, *, bandwidth2: float | Tensor | None = None) -> Tensor:
    """Biased estimate of the squared maximum mean discrepancy of two sets, kernel exp(-d^2 / (2 h^2)); a scalar.

    Args:
        student, teacher: ``[N, z]`` and ``[M, z]``.
        bandwidth2: h^2; by default the median squared distance of the teacher's pairs.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> mmd(x, x).item()
        0.0
    """

    def squared(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] - b).square().sum(-1)

    if bandwidth2 is None:
        far = squared(teacher, teacher).detach()
        pairs = far[~torch.eye(len(far), dtype=torch.bool, device=far.device)]
        bandwidth2 = pairs.median().clamp_min(torch.finfo(far.dtype).tiny) if len(pairs) else far.new_ones(())

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-squared(a, b) / (2 * bandwidth2)).exp().mean()

    return kernel(student, student) + kernel(teacher, teacher) - 2 * kernel(student, teacher)


__all__ = ["distance_covariance", "gaussian_kl", "mmd", "pair_density", "prior_kl"]
