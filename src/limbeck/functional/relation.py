"""Relations between the items of a batch: how alike they are to each other, in the student and in the teacher.

These couple a batch by their mathematics: an item's value depends on the others, so accumulating micro-batches is not
one large batch. Features are ``[N, D]``, with different D allowed; one value per item ``[N]`` comes back, whose mean over
the items is the paper's loss. ``where`` ``[N]`` leaves items out of both sides of the relation.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, ShapeError
from ._common import as_mask, check_pair, choose, keep, statistics_dtype
from .feature import unit

Kernel = Literal["rbf", "bilinear"]


def _pair(student: Tensor, teacher: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise ShapeError(
            "teacher", given=list(teacher.shape), expected=f"features [{student.shape[0]}, D] of the student's items"
        )
    dtype = statistics_dtype(student, teacher)
    mask = as_mask(where, student.shape[:1])
    if mask is None:
        mask = torch.ones(len(student), dtype=torch.bool, device=student.device)
    s, t = (x.to(dtype).flatten(1) for x in (student, teacher))
    s, t = (torch.where(mask.unsqueeze(1), x, torch.zeros_like(x)) for x in (s, t))
    return s, t, mask


def gram(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Similarity-preserving distillation: squared distance of the row-normalised Gram matrices, per row over N.

    Source: Tung and Mori 2019 (arXiv 1907.09682), eq. 4; the mean over the items is ``|G_t - G_s|_F^2 / N^2``.

    Example:
        >>> x = torch.randn(5, 3)
        >>> gram(x, 2 * x).max().item() < 1e-10
        True
    """
    s, t, mask = _pair(student, teacher, where)
    gap = unit(s @ s.T) - unit(t @ t.T)
    return keep(gap.square().sum(1) / mask.sum().clamp_min(1), mask)


def channel_correlation(student: Tensor, teacher: Tensor, *, eps: float = 1e-12, where: Tensor | None = None) -> Tensor:
    """Squared distance of the channels' correlations ``F F^T``, rows of length one, over the number of channels ``[N]``.

    Source: Liu et al. 2021 (ICKD, arXiv 2202.03680). DisWOT (Dong et al. 2023, arXiv 2303.15678) takes it of the classifier's
    gradients (`classifier_gradient`), a class for an item and one position. Such vectors have correlations of rank one, and
    are compared in ``O(C)`` instead of ``O(C^2)``.

    Args:
        student, teacher: maps ``[N, C, ...]`` with as many channels; positions may differ. Vectors ``[N, C]``: one position.
        eps: a shorter row keeps its length.
        where: items that count ``[N]``; the others count 0.

    Raises:
        ShapeError: other items or channels.

    Example:
        >>> x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
        >>> channel_correlation(2 * x, x).max().item() < 1e-10
        True
    """
    if student.ndim < 2 or student.shape[:2] != teacher.shape[:2]:
        raise ShapeError("teacher", given=list(teacher.shape), expected=f"[N, C, ...] with {list(student.shape[:2])}")
    dtype = statistics_dtype(student, teacher)
    mask = as_mask(where, student.shape[:1])

    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    if student.ndim == teacher.ndim == 2:
        # row i of F F^T is f_i f; of length one it is a_i u, u = f / |f|, a_i the sign of f_i, or less where it is too short
        def rank_one(x: Tensor) -> tuple[Tensor, Tensor]:
            length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            u = x / length.clamp_min(torch.finfo(dtype).tiny)
            return x * length / (x.abs() * length).clamp_min(eps), u

        (a, u), (b, v) = rank_one(student), rank_one(teacher)
        first, second = a - b, u - v  # a u^T - b v^T = (a - b) v^T + a (u - v)^T: no difference of large numbers
        square = first.square().sum(1) * v.square().sum(1) + a.square().sum(1) * second.square().sum(1)
        square = square + 2 * (first * a).sum(1) * (second * v).sum(1)
        return keep(square.clamp_min(0) / student.shape[1], mask)

    def related(x: Tensor) -> Tensor:
        flat = x.flatten(2) if x.ndim > 2 else x[..., None]
        return torch.nn.functional.normalize(flat @ flat.transpose(1, 2), dim=-1, eps=eps)

    gap = related(student) - related(teacher)
    return keep(gap.square().sum((1, 2)) / student.shape[1], mask)


def classifier_gradient(features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy in a linear classifier's weights ``[K, D]``: ``(softmax(z) - y)^T f / N``.

    What each class asks of each channel over a batch, as Grad-CAM weighs the channels of a class (Selvaraju et al. 2017).
    Source: Dong et al. 2023 (DisWOT, arXiv 2303.15678), section 3.2. A function of features and logits: gradients flow on to
    both, and no backward pass is needed for its value.

    Args:
        features: the classifier's input ``[N, D]``.
        logits: its output ``[N, K]``.
        labels: class ids ``[N]`` or soft labels ``[N, K]``.

    Raises:
        ShapeError: other than vectors of the same items.

    Example:
        >>> f, z = torch.ones(2, 3), torch.zeros(2, 4)
        >>> classifier_gradient(f, z, torch.tensor([0, 1]))[:, 0].tolist()
        [-0.25, -0.25, 0.25, 0.25]
    """
    if features.ndim != 2 or logits.ndim != 2 or len(features) != len(logits) or len(labels) != len(logits):
        given = [list(x.shape) for x in (features, logits, labels)]
        raise ShapeError("features", given=given, expected="features [N, D], logits [N, K] and N labels")
    dtype = statistics_dtype(features, logits)
    wrong = logits.to(dtype).softmax(1)
    y = labels.to(dtype) if labels.ndim == 2 else torch.nn.functional.one_hot(labels, logits.shape[1]).to(dtype)
    return (wrong - y).T @ features.to(dtype) / max(1, len(features))


def distances(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Relational distillation by distances: Huber loss between pairwise distances, each divided by its mean.

    Source: Park et al. 2019 (arXiv 1904.05068), eqs. 6 to 8; per item the mean over the other N - 1 items.

    Example:
        >>> x = torch.randn(5, 3)
        >>> distances(x, 2 * x + 1).max().item() < 1e-10
        True
    """
    s, t, mask = _pair(student, teacher, where)
    valid = mask.unsqueeze(0) & mask.unsqueeze(1) & ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    pairs = valid.sum().clamp_min(1)
    scaled = []
    for x in (s, t):
        # from differences, not from products, whose rounding is as large as a small distance; without holding N^2 D numbers
        away = keep(torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"), valid)
        mean = away.sum() / pairs
        scaled.append(away / torch.where(mean > 0, mean, torch.ones_like(mean)))
    gap = scaled[0] - scaled[1]
    each = torch.where(gap.abs() < 1.0, 0.5 * gap.square(), gap.abs() - 0.5)
    return keep(keep(each, valid).sum(1) / (mask.sum() - 1).clamp_min(1), mask)


def angles(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Relational distillation by angles: Huber loss between the cosines of the angles of all triples of items ``[N]``.

    Per item j the mean over all pairs of other items i != k of ``h(cos(angle i j k of the teacher) - cos(of the student))``.
    It takes ``N^3`` numbers.

    Source: Park et al. 2019 (arXiv 1904.05068), eqs. 9 to 11.

    Args:
        student: features ``[N, D]``, or more dimensions that are flattened.
        teacher: features of the same items, of any width.
        where: valid items ``[N]``.

    Example:
        >>> x = torch.randn(5, 3)
        >>> angles(x, 2 * x + 1).max().item() < 1e-10
        True
    """
    s, t, mask = _pair(student, teacher, where)
    other = mask.unsqueeze(0) & ~torch.eye(len(s), dtype=torch.bool, device=s.device)  # [j, i]
    valid = other.unsqueeze(2) & other.unsqueeze(1) & ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    cosines = []
    for x in (s, t):
        e = x.unsqueeze(0) - x.unsqueeze(1)  # [j, i, D], from j to i
        inner = e @ e.transpose(1, 2)
        # divided after the product: N^3 numbers in place of N^2 D; a pair at one place has no direction
        scale = inner.diagonal(dim1=1, dim2=2).clamp_min(1e-16).rsqrt()
        cosines.append(inner * scale.unsqueeze(2) * scale.unsqueeze(1))
    gap = cosines[0] - cosines[1]
    each = torch.where(gap.abs() < 1.0, 0.5 * gap.square(), gap.abs() - 0.5)
    n = mask.sum()
    return keep(keep(each, valid).sum((1, 2)) / ((n - 1) * (n - 2)).clamp_min(1), mask)


def congruence(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Kernel = "rbf",
    gamma: float = 0.4,
    order: int | None = 2,
    where: Tensor | None = None,
) -> Tensor:
    """Correlation congruence: squared distance of the batch's kernel matrices, per row over N.

    ``rbf``: ``exp(-gamma |x - y|^2)`` of features of length one, by its Taylor series in ``x . y`` up to ``order``;
    ``bilinear``: ``x . y`` of the features as they are.

    Source: Peng et al. 2019 (arXiv 1904.01802), eqs. 6 to 9; the mean over the items is ``|C_t - C_s|_F^2 / N^2``.

    Args:
        student: features ``[N, D]``, or more dimensions that are flattened.
        teacher: features of the same items, of any width.
        kernel: how two items are compared.
        gamma: of ``rbf``, above 0.
        order: highest power of the series; ``None`` is the kernel itself.
        where: valid items ``[N]``.

    Example:
        >>> x = torch.randn(5, 3)
        >>> congruence(x, 2 * x).max().item() < 1e-10
        True
    """
    choose("kernel", kernel, Kernel)
    if not gamma > 0:
        raise ConfigError("gamma", given=gamma, expected="a number > 0")
    if order is not None and order < 1:
        raise ConfigError("order", given=order, expected="1 or more, or None")
    s, t, mask = _pair(student, teacher, where)
    compared = []
    for x in (s, t):
        product = x @ x.T if kernel == "bilinear" else unit(x) @ unit(x).T
        if kernel == "rbf" and order is None:
            product = (2 * gamma * (product - 1)).exp()
        elif kernel == "rbf" and order is not None:
            factors = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
            series = torch.full_like(product, factors[-1])
            for factor in reversed(factors[:-1]):
                series = series * product + factor
            product = series
        compared.append(product)
    both = mask.unsqueeze(0) & mask.unsqueeze(1)
    gap = keep((compared[0] - compared[1]).square(), both)
    return keep(gap.sum(1) / mask.sum().clamp_min(1), mask)


def neighbours(student: Tensor, teacher: Tensor, *, itself: bool = False, where: Tensor | None = None) -> Tensor:
    """Probabilistic knowledge transfer: KL of how probable each other item is as an item's neighbour ``[N]``.

    ``p(j | i)`` is ``(1 + cos(x_i, x_j)) / 2``, divided by its sum over the items j; the value of item i is
    ``sum_j p_t(j | i) log (p_t(j | i) / p_s(j | i))``.

    Source: Passalis and Tefas 2018 (arXiv 1803.10837), eqs. 2, 4, 5 and 8.

    Args:
        student: features ``[N, D]``, or more dimensions that are flattened.
        teacher: features of the same items, of any width.
        itself: count an item among its own neighbours, as the released code does.
        where: valid items ``[N]``.

    Example:
        >>> x = torch.randn(5, 3)
        >>> neighbours(x, 2 * x).abs().max().item() < 1e-6
        True
    """
    s, t, mask = _pair(student, teacher, where)
    valid = mask.unsqueeze(0) & mask.unsqueeze(1)
    if not itself:
        valid = valid & ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    logs, shares = [], []
    for x in (s, t):
        near = keep((1.0 + unit(x) @ unit(x).T) / 2.0, valid)
        total = near.sum(1, keepdim=True)
        share = near / torch.where(total > 0, total, torch.ones_like(total))
        shares.append(share)
        logs.append(share.clamp_min(1e-7).log())  # an item that lies opposite has no probability
    return keep(keep(shares[1] * (logs[1] - logs[0]), valid).sum(1), mask)


def pearson(student: Tensor, teacher: Tensor, *, dim: int = -1) -> Tensor:
    """``1 - correlation`` along a dimension, in [0, 2]; constant rows count as uncorrelated (1).

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 4.0]])
        >>> round(pearson(x, 3 * x + 1).item(), 6)
        0.0
    """
    if student.shape != teacher.shape:
        raise ShapeError("teacher", given=list(teacher.shape), expected=f"the student's shape {list(student.shape)}")
    dtype = statistics_dtype(student, teacher)
    s, t = (x.to(dtype).movedim(dim, -1) for x in (student, teacher))
    s, t = (unit(x - x.mean(-1, keepdim=True)) for x in (s, t))
    return 1.0 - (s * t).sum(-1)


def _correlation(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """The cosine of rows ``[..., D]``, with ``eps`` added to the product of their norms."""
    if eps == 0:
        return (unit(a) * unit(b)).sum(-1)
    least = torch.finfo(a.dtype).tiny
    norms = [x.square().sum(-1).clamp_min(least).sqrt() for x in (a, b)]
    return (a * b).sum(-1) / (norms[0] * norms[1] + eps)


def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    eps: float = 0.0,
    where: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """DIST: Pearson distance of the predictions, between classes of an item and between items of a class.

    Args:
        student: logits ``[N, C]``.
        teacher: logits ``[N, C]``.
        temperature: of both softmaxes (T squared is the paper's weight; multiply it in yourself).
        eps: added to the product of two norms; the released code has 1e-8.
        where: valid items ``[N]``.

    Returns:
        ``(inter, intra)``: inter ``[N]`` per item, intra ``[C]`` per class.

    Source: Huang et al. 2022 (arXiv 2205.10536), eqs. 9 and 10.

    Example:
        >>> z = torch.randn(6, 4)
        >>> inter, intra = dist(z, z)
        >>> inter.shape, intra.shape, inter.abs().max().item() < 1e-6
        (torch.Size([6]), torch.Size([4]), True)
    """
    check_pair(student, teacher)
    if student.ndim != 2:
        raise ShapeError("student", given=list(student.shape), expected="logits [N, C]")
    s, t, mask = _pair(student, teacher, where)
    if len(s) == 0:
        raise DataError("student", "an empty batch has no relations")
    q, p = (s / temperature).softmax(-1), (t / temperature).softmax(-1)
    rows = [x - x.mean(-1, keepdim=True) for x in (q, p)]
    inter = keep(1.0 - _correlation(rows[0], rows[1], eps), mask)
    share = mask.to(q.dtype).unsqueeze(1) / mask.sum().clamp_min(1)
    columns = [keep(x - (x * share).sum(0), mask.unsqueeze(1).expand_as(x)) for x in (q, p)]
    return inter, 1.0 - _correlation(columns[0].T, columns[1].T, eps)
