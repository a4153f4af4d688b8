"""Entropic optimal transport between predictions (SinKD, Cui et al. 2024, arXiv 2402.17110).

Between two *batches* the points are items and the cost is the distance of their distributions: the two batches are matched
as sets, so this term does not see which teacher row belongs to which student row. Between two *distributions* of one item
the points are classes. All iterations are in the log domain, safe for a small ``eps``; ``log_domain=False`` is the plain form.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..errors import DataError, ShapeError
from ._common import (
    NEG_INF,
    Variant,
    as_mask,
    as_temperature,
    check_pair,
    choose,
    cool,
    extremes,
    hide,
    in_range,
    keep,
    statistics_dtype,
)

CostNorm = Literal["l1", "l2"]
ClassMetric = Literal["distance", "zero_one"]

DENSE = 1 << 22
"""Differences up to which they are written out; above, ``torch.cdist`` holds less memory and has no second derivative."""


def pairwise_cost(student: Tensor, teacher: Tensor, *, norm: CostNorm = "l1") -> Tensor:
    """Distances of every student row from every teacher row.

    Args:
        student: probabilities ``[..., B, C]``.
        teacher: probabilities ``[..., M, C]``.
        norm: ``l1`` (the paper; between 0 and 2) or ``l2``.

    Returns:
        ``[..., B, M]``: entry (i, j) compares student row i with teacher row j.

    Raises:
        ShapeError: the number of classes differs.

    Example:
        >>> pairwise_cost(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[0., 2.]])
    """
    choose("norm", norm, CostNorm, "norm")
    if student.ndim < 2 or teacher.ndim < 2 or student.shape[-1] != teacher.shape[-1]:
        raise ShapeError(
            "teacher",
            given=list(teacher.shape),
            expected=f"rows of as many classes as the student's {list(student.shape)}",
        )
    dtype = statistics_dtype(student, teacher)
    q, p = student.to(dtype), teacher.to(dtype)
    if norm == "l1" and q.numel() * p.shape[-2] > DENSE:
        return torch.cdist(q, p, p=1.0)
    gap = q.unsqueeze(-2) - p.unsqueeze(-3)  # [..., B, M, C]
    if norm == "l1":
        return gap.abs().sum(-1)
    square = gap.square().sum(-1)
    near = square > 0  # the root has no slope at 0
    return torch.where(near, torch.where(near, square, torch.ones_like(square)).sqrt(), torch.zeros_like(square))


def sinkhorn_plan(
    cost: Tensor,
    *,
    eps: float = 0.1,
    iterations: int = 20,
    log_domain: bool = True,
    where: Tensor | None = None,
    variant: Variant = "paper",
) -> Tensor:
    """Transport plan of ``exp(-cost / eps)``: rows, then columns are divided by their sums, ``iterations`` times.

    Columns sum to 1 exactly, rows nearly; the whole mass is the number of columns. Gradients flow through all iterations.

    Args:
        cost: ``[..., B, B]``; without ``where`` also ``[..., B, M]``.
        eps: the entropic regularisation, above 0 (the paper's lambda).
        iterations: 1 or more.
        log_domain: iterate on logarithms; off divides the kernel itself, which underflows for a small ``eps``.
        where: valid items ``[..., B]``; the others are matched with nobody.
        variant: ``released`` divides along dimension 1, then 0, whatever the number of dimensions: of ``[B, T, T]`` the
            published T0 script so normalises over the batch.

    Returns:
        The plan, in the shape of ``cost``.

    Raises:
        ConfigError: ``eps`` or ``iterations`` lies outside its range.
        ShapeError: ``where`` does not fit.
        DataError: the plain kernel underflows (seen on the CPU).

    Example:
        >>> P = sinkhorn_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> P.sum(0)
        tensor([1., 1.])
    """
    in_range("eps", eps, 0, math.inf, open_low=True, open_high=True)
    in_range("iterations", iterations, 1, math.inf)
    choose("variant", variant, Variant, "variant")
    if cost.ndim < 2:
        raise ShapeError("cost", given=list(cost.shape), expected="[..., B, B]")
    rows, columns = (1, 0) if variant == "released" else (-1, -2)
    log_k = -cost.to(statistics_dtype(cost)) / eps
    both = None
    if where is not None:
        mask = as_mask(where, cost.shape[:-1])
        assert mask is not None
        if cost.shape[-1] != cost.shape[-2]:
            raise ShapeError("cost", given=list(cost.shape), expected="a square [..., B, B] where items are masked")
        both = mask.unsqueeze(-1) & mask.unsqueeze(-2)
        alone = torch.eye(cost.shape[-1], dtype=torch.bool, device=cost.device) & ~mask.unsqueeze(-1)
        nothing = torch.full_like(log_k, NEG_INF)
        log_k = torch.where(both, log_k, torch.where(alone, torch.zeros_like(log_k), nothing))
    if log_domain:
        for _ in range(int(iterations)):
            log_k = log_k - log_k.logsumexp(rows, keepdim=True)
            log_k = log_k - log_k.logsumexp(columns, keepdim=True)
        return log_k.exp() if both is None else keep(log_k.exp(), both)
    k = log_k.exp()
    sums = [extremes(k.sum(d)) for d in (rows, columns)]
    if any(s is not None and not s[0] > 0 for s in sums):
        raise DataError(
            "eps",
            "the kernel exp(-cost / eps) is 0 in a whole row or column",
            given=eps,
            remedy="set log_domain=True, or a larger eps",
        )
    for _ in range(int(iterations)):
        k = k / k.sum(rows, keepdim=True)
        k = k / k.sum(columns, keepdim=True)
    return k if both is None else keep(k, both)


def sinkhorn(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float | Tensor = 2.0,
    eps: float = 0.1,
    iterations: int = 20,
    norm: CostNorm = "l1",
    top: int = 0,
    detach_plan: bool = False,
    log_domain: bool = True,
    where: Tensor | None = None,
    variant: Variant = "paper",
) -> Tensor:
    """Batch-wise Sinkhorn distance: what it costs to move the student's batch of predictions onto the teacher's.

    ``value_i = sum_j P_ij D_ij`` with ``D`` from `pairwise_cost` and ``P`` from `sinkhorn_plan`. Their sum is the paper's
    distance before its factor (0.001). Permuting the teacher's rows changes nothing, so this never stands without a term
    that sees items. Equal batches cost little, but not 0: the plan spreads by ``eps``.

    Args:
        student: logits ``[..., B, C]``; leading dimensions are groups, each transported by itself.
        teacher: logits ``[..., B, C]``.
        temperature: divides both logits; a number or one per item.
        eps: the entropic regularisation, above 0.
        iterations: of normalising rows and columns.
        norm: of the cost: ``l1`` (the paper) or ``l2``.
        top: compare that many classes, those that any row of the group gives most, and one class for the rest; 0 compares
            all. For vocabularies, whose cost is B x B x C. [reconstructed]
        detach_plan: the plan is a constant in the backward pass (the envelope theorem's gradient at convergence); off
            differentiates through all iterations, as the published code does.
        log_domain: see `sinkhorn_plan`.
        where: valid items ``[..., B]``; the others give 0.
        variant: ``released`` repeats the published T0 script for ``[B, T, V]``: a softmax over T, and a plan normalised over
            T, then over B.

    Returns:
        Values ``[..., B]``, one per student row.

    Raises:
        ConfigError: a setting lies outside its range.
        ShapeError, TeacherMismatch: the logits do not fit.

    Example:
        >>> z_s, z_t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> round(sinkhorn(z_s, z_t).sum().item(), 5)
        0.44165
    """
    choose("variant", variant, Variant, "variant")
    check_pair(student, teacher)
    if student.ndim < 2:
        raise ShapeError("student", given=list(student.shape), expected="logits of a batch [..., B, C]")
    dtype = statistics_dtype(student, teacher)
    items = student.shape[:-1]
    mask = as_mask(where, items)
    T = as_temperature(temperature, items, dtype)
    z_s, z_t = (cool(hide(z.to(dtype), mask), T) for z in (student, teacher))
    along = 1 if variant == "released" else -1
    q, p = z_s.softmax(along), z_t.softmax(along)
    in_range("top", top, 0, math.inf)
    if 0 < top < q.shape[-1] - 1:
        most = torch.maximum(q.detach(), p.detach())
        most = most if mask is None else most * mask.unsqueeze(-1)
        chosen = most.amax(-2, keepdim=True).topk(int(top)).indices.expand(*items, -1)  # [..., B, top]
        q, p = (_lumped(x, chosen) for x in (q, p))
    cost = pairwise_cost(q, p, norm=norm)  # [..., B, B]
    settings = {"eps": eps, "iterations": iterations, "log_domain": log_domain, "where": mask, "variant": variant}
    plan = sinkhorn_plan(cost.detach() if detach_plan else cost, **settings)  # type: ignore[arg-type]
    return keep((plan * cost).sum(-1), mask)


def _lumped(p: Tensor, chosen: Tensor) -> Tensor:
    """Probabilities of chosen classes, and of all others together."""
    kept = p.gather(-1, chosen)
    return torch.cat([kept, (1 - kept.sum(-1, keepdim=True)).clamp_min(0)], -1)


def sinkhorn_classes(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float | Tensor = 2.0,
    eps: float = 0.1,
    iterations: int = 20,
    metric: ClassMetric = "zero_one",
    detach_plan: bool = False,
    where: Tensor | None = None,
) -> Tensor:
    """Sample-wise Sinkhorn distance: inside each item, the student's mass is moved onto the teacher's, class by class.

    The plan has the student's probabilities as row sums (nearly) and the teacher's as column sums (exactly). With
    ``zero_one`` nothing of size C x C is made; it goes to the total variation as ``eps`` goes to 0. [reconstructed: the
    paper names both costs and prefers the batch-wise form, which needs no distance of classes]

    Args:
        student: logits ``[..., C]``.
        teacher: logits ``[..., C]``.
        temperature: divides both logits; a number or one per item.
        eps: the entropic regularisation, above 0.
        iterations: 1 or more.
        metric: cost of moving mass from class i to j: ``zero_one``, or ``distance`` |i - j| / (C - 1) for ordered classes.
        detach_plan: the plan is a constant in the backward pass. As the cost is constant too, what is left is the gradient
            of the dual potentials: the exact gradient of the entropic cost at convergence.
        where: valid items ``[...]``; the others give 0.

    Returns:
        Values ``[...]``, between 0 and 1.

    Raises:
        ConfigError: a setting lies outside its range.
        ShapeError, TeacherMismatch: the logits do not fit.

    Example:
        >>> z_s, z_t = torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 9.0])
        >>> [round(sinkhorn_classes(z_s, z_t, temperature=1.0, eps=0.01, metric=m).item(), 3) for m in ("zero_one", "distance")]
        [1.0, 1.0]
    """
    choose("metric", metric, ClassMetric, "metric")
    in_range("eps", eps, 0, math.inf, open_low=True, open_high=True)
    in_range("iterations", iterations, 1, math.inf)
    check_pair(student, teacher)
    dtype = statistics_dtype(student, teacher)
    items, classes = student.shape[:-1], student.shape[-1]
    mask = as_mask(where, items)
    T = as_temperature(temperature, items, dtype)
    log_q, log_p = (cool(hide(z.to(dtype), mask), T).log_softmax(-1) for z in (student, teacher))
    # a class without mass takes no part: a finite floor keeps its potential out of infinity minus infinity
    floor = -0.5 * math.sqrt(torch.finfo(torch.float32).max) ** 0.5
    log_q, log_p = log_q.clamp_min(floor), log_p.clamp_min(floor)
    if metric == "distance":
        at = torch.arange(classes, dtype=dtype, device=student.device)
        cost = (at[:, None] - at[None]).abs() / max(1, classes - 1)
        log_k = -cost / eps  # [C, C]

        def passed(x: Tensor) -> Tensor:
            return (log_k + x.unsqueeze(-2)).logsumexp(-1)  # symmetric, so rows and columns are alike
    else:
        stay, leave = math.log(-math.expm1(-1 / eps)), -1 / eps

        def passed(x: Tensor) -> Tensor:  # K x = (1 - e) x + e sum x
            return torch.logaddexp(x + stay, x.logsumexp(-1, keepdim=True) + leave)

    f, g = torch.zeros_like(log_q), torch.zeros_like(log_p)
    for _ in range(int(iterations)):
        f = log_q - passed(g)
        g = log_p - passed(f)
    if detach_plan:
        # <P, D> by value; by gradient eps f, the first potential, centred: d OT / d q_i
        still = eps * f.detach()
        q = log_q.exp()
        slope = (q * (still - (still * q.detach()).sum(-1, keepdim=True))).sum(-1)
        f, g = f.detach(), g.detach()
    if metric == "distance":
        values = ((f.unsqueeze(-1) + g.unsqueeze(-2) + log_k).exp() * cost).sum((-1, -2))
    else:
        values = (log_p.exp().sum(-1) - (f + g).exp().sum(-1)).clamp_min(0.0)  # all mass less what stays
    if detach_plan:
        values = values.detach() + slope - slope.detach()
    return keep(values, mask)


__all__ = ["ClassMetric", "CostNorm", "pairwise_cost", "sinkhorn", "sinkhorn_classes", "sinkhorn_plan"]
