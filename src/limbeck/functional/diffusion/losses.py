"""Errors of a prediction in three parameterisations, and the weights by which papers choose among them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._common import choose
from ._precision import as_wide, expand, result_dtype
from .predictions import XEps
from .schedules import alpha_sigma

Weight = Literal["constant", "snr", "snr_trunc", "v_mse"]


class Errors(NamedTuple):
    """Squared errors of one prediction in three parameterisations, each ``[B]``, averaged over a sample's elements."""

    x: Tensor
    eps: Tensor
    v: Tensor


def loss_weight(logsnr: Tensor, weight: Weight) -> Tensor:
    """omega(lambda) ``[B]`` by which an x-error must be multiplied to become the named loss.

    ``constant`` 1; ``snr`` exp(lambda); ``snr_trunc`` max(exp(lambda), 1); ``v_mse`` 1 + exp(lambda).

    Source: Salimans and Ho 2022, section 4; Meng et al. 2023, section 3.1.

    Example:
        >>> loss_weight(torch.tensor([-3.0, 0.0]), "snr_trunc").tolist()
        [1.0, 1.0]
    """
    choose("weight", weight, Weight, "loss weight")
    snr = torch.exp(as_wide(logsnr))
    omega = {
        "constant": torch.ones_like(snr),
        "snr": snr,
        "snr_trunc": snr.clamp_min(1.0),
        "v_mse": 1.0 + snr,
    }[weight]
    return omega.to(result_dtype(logsnr))


def prediction_errors(predicted: XEps, target: XEps, logsnr: Tensor) -> Errors:
    """Mean squared error per sample of x, of eps and of v. Each ``[B]``; nothing is weighted or averaged over B.

    Example:
        >>> a = XEps(torch.zeros(2, 3), torch.zeros(2, 3)); b = XEps(torch.ones(2, 3), torch.zeros(2, 3))
        >>> prediction_errors(a, b, torch.zeros(2)).x.tolist()
        [1.0, 1.0]
    """
    dtype = result_dtype(*predicted, *target)
    dx, deps = ((p.to(dtype) - t.to(dtype)) for p, t in zip(predicted, target, strict=True))
    alpha, sigma = (expand(c, dx).to(dx.dtype) for c in alpha_sigma(logsnr))
    dv = alpha * deps - sigma * dx
    return Errors(*(d.square().flatten(1).mean(1) for d in (dx, deps, dv)))


def select_error(errors: Errors, weight: Weight) -> Tensor:
    """The loss per sample ``[B]`` by name: which of the three errors counts.

    ``constant`` the error of x; ``snr`` of eps; ``snr_trunc`` the larger of the two *per sample* (equal to weighting
    the x-error with max(SNR, 1), because the eps-error is SNR times the x-error); ``v_mse`` of v.

    Example:
        >>> select_error(Errors(torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([4.0])), "snr_trunc").item()
        3.0
    """
    choose("weight", weight, Weight, "loss weight")
    if weight == "constant":
        return errors.x
    if weight == "snr":
        return errors.eps
    if weight == "snr_trunc":
        return torch.maximum(errors.x, errors.eps)
    return errors.v
