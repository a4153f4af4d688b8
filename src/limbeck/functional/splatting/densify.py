"""Scenes that change their number of Gaussians: copies, splits, removals, resets, and the relocation of dead ones.

Parameters are raw: ``means`` [N, 3], ``scales`` (logarithms) [N, 3], ``quats`` [N, 4], ``opacities`` (logits) [N], and
others whose first axis is N. What an optimiser remembers of each row follows by `carry_rows`. gsplat's own
``DefaultStrategy`` does the same on a CPU too and decides when; these are its operations as functions of tensors.

Sources: Kerbl et al. 2023 (arXiv 2308.04079), Kheradmand et al. 2024 (3DGS-MCMC, arXiv 2404.09591), as gsplat has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import ConfigError, ShapeError
from .projection import rotation_matrices

Params = Mapping[str, Tensor]


class Rows(NamedTuple):
    """Changed parameters, and where their rows come from.

    Attributes:
        params: the new tensors, first axis M.
        source: int64 [M], the old row of each.
        fresh: bool [M], new ones, of which an optimiser knows nothing.
    """

    params: dict[str, Tensor]
    source: Tensor
    fresh: Tensor


def _check(params: Params, mask: Tensor) -> None:
    n = len(mask)
    odd = {name: list(p.shape) for name, p in params.items() if len(p) != n}
    if mask.ndim != 1 or mask.dtype != torch.bool or odd:
        raise ShapeError(
            "mask", given=odd or [str(mask.dtype), list(mask.shape)], expected=f"bool [N] and tensors [N={n}, ...]"
        )


def _rows(params: Params, source: Tensor, new: int) -> Rows:
    fresh = torch.zeros(len(source), dtype=torch.bool, device=source.device)
    fresh[len(source) - new :] = True
    return Rows({name: p.detach()[source] for name, p in params.items()}, source, fresh)


def duplicate(params: Params, mask: Tensor) -> Rows:
    """The rows that ``mask`` names stand twice, the copies at the end.

    Example:
        >>> duplicate({"means": torch.zeros(2, 3)}, torch.tensor([False, True])).source.tolist()
        [0, 1, 1]
    """
    _check(params, mask)
    chosen = mask.nonzero().squeeze(1)
    all_ = torch.arange(len(mask), device=mask.device)
    return _rows(params, torch.cat([all_, chosen]), len(chosen))


def split(params: Params, mask: Tensor, noise: Tensor, *, divide: float = 1.6, revised: bool = False) -> Rows:
    """The rows that ``mask`` names become two smaller ones each, drawn from them, at the end: all first, then all second.

    Args:
        params: with ``means``, ``scales``, ``quats``, ``opacities``.
        mask: bool [N].
        noise: standard normal [2, n, 3] for the n chosen ones.
        divide: by what their standard deviations are divided.
        revised: their opacities become ``1 - sqrt(1 - o)``, so that both together cover as the one did.
    """
    _check(params, mask)
    if not divide > 0:
        raise ConfigError("divide", given=divide, expected="a number above 0")
    chosen, rest = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
    if list(noise.shape) != [2, len(chosen), 3]:
        raise ShapeError("noise", given=list(noise.shape), expected=f"[2, {len(chosen)}, 3]")
    made = _rows(params, torch.cat([rest, chosen, chosen]), 2 * len(chosen))
    scales = params["scales"].detach()[chosen].exp()
    R = rotation_matrices(params["quats"].detach()[chosen])
    shift = (R @ (scales * noise)[..., None]).squeeze(-1)  # [2, n, 3]
    new = slice(len(rest), None)
    made.params["means"][new] += shift.flatten(0, 1)
    made.params["scales"][new] = (scales / divide).log().repeat(2, 1)
    if revised:
        o = params["opacities"].detach()[chosen].sigmoid()
        made.params["opacities"][new] = torch.logit(1 - (1 - o).sqrt()).repeat(2)
    return made


def remove(params: Params, mask: Tensor) -> Rows:
    """Without the rows that ``mask`` names."""
    _check(params, mask)
    return _rows(params, (~mask).nonzero().squeeze(1), 0)


def reset_opacities(opacities: Tensor, value: float) -> Tensor:
    """Logits ``[N]`` of opacities that are at most ``value``; what an optimiser remembers of them is to be forgotten."""
    if not 0 < value < 1:
        raise ConfigError("value", given=value, expected="an opacity between 0 and 1")
    return opacities.detach().clamp_max(math.log(value / (1 - value)))


def carry_rows(state: Tensor, rows: Rows, *, zero: bool = True) -> Tensor:
    """What was kept of each old row ``[N, ...]`` for the new ones ``[M, ...]``: nothing for fresh ones, or a copy.

    Example:
        >>> rows = duplicate({"means": torch.zeros(2, 3)}, torch.tensor([False, True]))
        >>> carry_rows(torch.tensor([5.0, 7.0]), rows).tolist()
        [5.0, 7.0, 0.0]
    """
    kept = state[rows.source].clone()
    if zero:
        kept[rows.fresh] = 0
    return kept


MOST_COPIES = 51
"""More copies of one Gaussian are counted as so many, as gsplat's table has it."""


def relocate(opacities: Tensor, scales: Tensor, copies: Tensor, *, min_opacity: float = 0.005) -> tuple[Tensor, Tensor]:
    """Opacities ``[N]`` and scales ``[N, 3]`` with which so many copies in one place look as the one did.

    ``o' = 1 - (1 - o)^(1/r)`` and ``s' = s o / sum_k C(r, k+1) (-1)^k o'^(k+1) / sqrt(k+1)``.

    Args:
        opacities: ``[N]`` activated, in [0, 1]. scales: ``[N, 3]`` activated.
        copies: r, integers ``[N]``, 1 or more, the original included.
        min_opacity: floor of the new opacities.

    Source: Kheradmand et al. 2024, equation 9; the sums over copies and powers are exchanged here.

    Example:
        >>> o, s = relocate(torch.tensor([0.75]), torch.ones(1, 3), torch.tensor([2]))
        >>> round(o.item(), 4)
        0.5
    """
    o, r = opacities.double(), copies.clamp(1, MOST_COPIES)
    new = -torch.expm1(torch.log1p(-o) / r)
    k = torch.arange(MOST_COPIES, device=o.device, dtype=o.dtype)  # [K]
    rk = r[:, None].to(o.dtype)
    used = k < rk
    # log C(r, k + 1); what is not used is replaced before the logarithm of a gamma function at a pole
    left = torch.where(used, rk - k, torch.ones_like(rk))
    binomial = torch.exp(torch.lgamma(rk + 1) - torch.lgamma(k + 2) - torch.lgamma(left))
    sign = 1 - 2 * (k % 2)
    total = torch.where(used, binomial * sign * new[:, None] ** (k + 1) / (k + 1).sqrt(), torch.zeros_like(rk)).sum(1)
    # an opacity of 0 stays as large as it is: the quotient tends to 1/r there
    factor = torch.where(o > 0, o / torch.where(o > 0, total, torch.ones_like(o)), 1.0 / r)
    eps = torch.finfo(torch.float32).eps
    return new.clamp(min_opacity, 1 - eps).to(opacities.dtype), (factor[:, None] * scales.double()).to(scales.dtype)


def exploration(covars: Tensor, opacities: Tensor, noise: Tensor, scale: float) -> Tensor:
    """Steps ``[N, 3]`` by which nearly transparent Gaussians wander: ``Sigma (noise sigmoid(-100 (o - 0.005)) scale)``.

    Args:
        covars: ``[N, 3, 3]``. opacities: ``[N]`` activated. noise: standard normal ``[N, 3]``.
        scale: gsplat takes 5e5 times the rate at which means learn.
    """
    gate = torch.sigmoid(-100 * (opacities - 0.005))
    return (covars @ (noise * gate[:, None] * scale)[..., None]).squeeze(-1)


__all__ = ["Rows", "carry_rows", "duplicate", "exploration", "relocate", "remove", "reset_opacities", "split"]
