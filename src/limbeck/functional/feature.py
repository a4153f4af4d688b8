"""Distances between features: what a hint, a regression to tokens or a direction loss is made of.

Features are ``[..., D]`` (or any trailing ``dims`` dimensions); one value per item comes back, ``where`` marks the valid
items. Widths must agree: a projector is the caller's (it has weights, so it is a role).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import as_mask, choose, keep, statistics_dtype

Metric = Literal["l2", "l1", "smooth_l1", "cosine"]
Reduce = Literal["mean", "sum"]
Normalise = Literal["none", "unit", "standard"]


def unit(x: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Rows ``[..., D]`` of length one; a zero row stays zero, with a zero gradient.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    x = x.to(statistics_dtype(x))
    square = x.square().sum(-1, keepdim=True)
    return x * torch.rsqrt(square.clamp_min(eps * eps))


def standardise(x: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Rows ``[..., D]`` with mean 0 and standard deviation 1 (population), as layer normalisation without weights.

    Example:
        >>> standardise(torch.tensor([[1.0, 3.0]])).round(decimals=3)
        tensor([[-1.,  1.]])
    """
    x = x.to(statistics_dtype(x))
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)


def feature_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    metric: Metric = "l2",
    normalise: Normalise = "none",
    dims: int = 1,
    reduce: Reduce = "mean",
    where: Tensor | None = None,
) -> Tensor:
    """Distance between features, one value per item.

    Args:
        student: features ``[..., D]``, or with ``dims`` trailing dimensions that are flattened.
        teacher: features of the same shape.
        metric: ``l2`` squared difference, ``l1`` absolute, ``smooth_l1`` (Huber, threshold 1), or ``cosine``,
            ``1 - cos``, in [0, 2].
        normalise: nothing, rows to length one, or rows to mean 0 and deviation 1, in both.
        dims: number of trailing dimensions that make one feature.
        reduce: mean or sum over the feature's entries (a cosine is one number already).
        where: valid items ``[...]``.

    Example:
        >>> feature_distance(torch.zeros(2, 4), torch.ones(2, 4))
        tensor([1., 1.])
    """
    choose("metric", metric, Metric)
    choose("normalise", normalise, Normalise)
    choose("reduce", reduce, Reduce)
    if student.shape != teacher.shape:
        raise ShapeError(
            "teacher",
            given=list(teacher.shape),
            expected=f"the student's shape {list(student.shape)}",
            remedy="bring the student's feature to the teacher's shape with a projector or by pooling",
        )
    if not 1 <= dims <= student.ndim:
        raise ConfigError("dims", given=dims, expected=f"1 to {student.ndim}")
    dtype = statistics_dtype(student, teacher)
    items = student.shape[: student.ndim - dims]
    where = as_mask(where, items)
    s, t = (x.to(dtype).flatten(len(items)) for x in (student, teacher))
    if where is not None:
        s, t = (torch.where(where.unsqueeze(-1), x, torch.zeros_like(x)) for x in (s, t))
    if metric == "cosine":
        return keep(1.0 - (unit(s) * unit(t)).sum(-1), where)
    if normalise != "none":
        s, t = (unit(x) if normalise == "unit" else standardise(x) for x in (s, t))
    gap = s - t
    each = {"l2": gap.square, "l1": gap.abs, "smooth_l1": lambda: _huber(gap)}[metric]()
    return keep(each.mean(-1) if reduce == "mean" else each.sum(-1), where)


def _huber(gap: Tensor) -> Tensor:
    return torch.where(gap.abs() < 1.0, 0.5 * gap.square(), gap.abs() - 0.5)


def attention_map(feature: Tensor, *, power: float = 2.0) -> Tensor:
    """Where a feature map looks: ``sum_c |A_c|^power`` over the channels, as a unit vector ``[N, H * W]``.

    Args:
        feature: ``[N, C, H, W]`` (or ``[N, C, L]``).
        power: exponent of the activations.

    Source: Zagoruyko and Komodakis 2017 (arXiv 1612.03928), section 3.1.

    Example:
        >>> attention_map(torch.ones(1, 3, 1, 4))
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    if feature.ndim < 3:
        raise ShapeError("feature", given=list(feature.shape), expected="[N, C, H, W] or [N, C, L]")
    return unit(feature.to(statistics_dtype(feature)).abs().pow(power).sum(1).flatten(1))


def attention_transfer(student: Tensor, teacher: Tensor, *, power: float = 2.0, where: Tensor | None = None) -> Tensor:
    """Squared distance between the attention maps of two feature maps ``[N, C, H, W]``, one value per item ``[N]``.

    Channel numbers may differ; a larger map is averaged down to the smaller one's height and width first.

    Source: Zagoruyko and Komodakis 2017 (arXiv 1612.03928), eq. 2, squared.

    Example:
        >>> attention_transfer(torch.ones(2, 3, 4, 4), torch.ones(2, 8, 4, 4))
        tensor([0., 0.])
    """
    if student.ndim != teacher.ndim or student.shape[:1] != teacher.shape[:1]:
        raise ShapeError(
            "teacher", given=list(teacher.shape), expected=f"[{student.shape[0]}, C, ...] like the student"
        )
    sizes = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    maps = []
    for x in (student.to(statistics_dtype(student)), teacher.to(statistics_dtype(teacher))):
        fitted = x
        if list(x.shape[2:]) != sizes:
            pool2d, pool1d = torch.nn.functional.adaptive_avg_pool2d, torch.nn.functional.adaptive_avg_pool1d
            fitted = pool2d(x, (sizes[0], sizes[1])) if x.ndim == 4 else pool1d(x, sizes[0])
        maps.append(attention_map(fitted, power=power))
    where = as_mask(where, student.shape[:1])
    return keep((maps[0] - maps[1]).square().sum(-1), where)
