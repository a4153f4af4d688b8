"""Distances between features: what a hint, a regression to tokens or a direction loss is made of.

Features are ``[..., D]`` (or any trailing ``dims`` dimensions); one value per item comes back, ``where`` marks the valid
items. Widths must agree: a projector is the caller's (it has weights, so it is a role).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, ShapeError
from ._common import as_mask, check_labels, choose, extremes, keep, statistics_dtype

Metric = Literal["l2", "l1", "smooth_l1", "cosine"]
Reduce = Literal["mean", "sum"]
Normalise = Literal["none", "unit", "standard"]
Part = Literal["both", "direction", "norm"]
Denominator = Literal["max", "teacher"]
ChannelKernel = Literal["polynomial", "linear", "gaussian"]


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
    both = _fitted(student.to(statistics_dtype(student)), teacher.to(statistics_dtype(teacher)))
    maps = [attention_map(x, power=power) for x in both]
    where = as_mask(where, student.shape[:1])
    return keep((maps[0] - maps[1]).square().sum(-1), where)


def variational(mean: Tensor, teacher: Tensor, variance: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of a teacher's feature under a Gaussian that the student predicts, without its constant ``[N]``.

    ``log sigma_c + (t - mu)^2 / (2 sigma_c^2)``, averaged over channels and places. (The paper's sum over them is this times
    their number.)

    Source: Ahn et al. 2019 (VID, arXiv 1904.05835), eqs. 5 and 6.

    Args:
        mean: mu, what the student predicts ``[N, C, ...]``.
        teacher: the teacher's feature, of the same shape.
        variance: sigma squared of each channel ``[C]``, above 0.
        where: valid items ``[N]``.

    Example:
        >>> variational(torch.zeros(2, 3), torch.ones(2, 3), torch.ones(3))
        tensor([0.5000, 0.5000])
    """
    if mean.shape != teacher.shape or mean.ndim < 2:
        raise ShapeError("teacher", given=list(teacher.shape), expected=f"[N, C, ...] like the mean {list(mean.shape)}")
    if variance.shape != mean.shape[1:2]:
        raise ShapeError("variance", given=list(variance.shape), expected=f"one for each channel [{mean.shape[1]}]")
    dtype = statistics_dtype(mean, teacher, variance)
    mask = as_mask(where, mean.shape[:1])
    m, t = (x.to(dtype).flatten(2) if x.ndim > 2 else x.to(dtype).unsqueeze(2) for x in (mean, teacher))
    if mask is not None:
        m, t = (torch.where(mask[:, None, None], x, torch.zeros_like(x)) for x in (m, t))
    v = variance.to(dtype)[:, None]
    return keep((0.5 * v.log() + (t - m).square() / (2.0 * v)).mean((1, 2)), mask)


def channel_selectivity(
    student: Tensor, teacher: Tensor, *, kernel: ChannelKernel = "polynomial", where: Tensor | None = None
) -> Tensor:
    """Neuron selectivity transfer: squared maximum mean discrepancy between the channels of two feature maps ``[N]``.

    A channel is where it is active: a vector over the places, of length one. Numbers of channels may differ; the larger of
    two maps is averaged down to the size of the smaller.

    Source: Huang and Wang 2017 (NST, arXiv 1707.01219), eqs. 5 to 9.

    Args:
        student: ``[N, C, H, W]`` or ``[N, C, L]``.
        teacher: likewise.
        kernel: ``polynomial``, ``(x . y)^2``, the paper's best; ``linear``, ``x . y``; or ``gaussian`` with the mean squared
            distance as its variance.
        where: valid items ``[N]``.

    Example:
        >>> x = torch.randn(2, 3, 4, 4)
        >>> channel_selectivity(x[:, [2, 0, 1]], 2 * x).abs().max().item() < 1e-6
        True
    """
    choose("kernel", kernel, ChannelKernel)
    if student.ndim < 3 or student.ndim != teacher.ndim or student.shape[:1] != teacher.shape[:1]:
        raise ShapeError(
            "teacher",
            given=f"{list(teacher.shape)}, student {list(student.shape)}",
            expected="two maps [N, C, H, W], or [N, C, L], of the same items",
        )
    mask = as_mask(where, student.shape[:1])
    dtype = statistics_dtype(student, teacher)
    s, t = (unit(x.flatten(2)) for x in _fitted(student.to(dtype), teacher.to(dtype)))  # [N, C, places]

    if kernel == "gaussian":
        square = lambda a, b: 2.0 - 2.0 * (a @ b.transpose(1, 2))  # noqa: E731 (of vectors of length one)
        both = torch.cat([s, t], 1)
        width = square(both, both).mean((1, 2)).clamp_min(1e-12)[:, None, None]
        alike = lambda a, b: (-square(a, b) / (2.0 * width)).exp().mean((1, 2))  # noqa: E731
    elif kernel == "linear":
        alike = lambda a, b: (a @ b.transpose(1, 2)).mean((1, 2))  # noqa: E731
    else:
        alike = lambda a, b: (a @ b.transpose(1, 2)).square().mean((1, 2))  # noqa: E731
    return keep(alike(t, t) + alike(s, s) - 2.0 * alike(t, s), mask)


def pyramid_distance(
    student: Tensor, teacher: Tensor, *, sizes: tuple[int, ...] = (4, 2, 1), where: Tensor | None = None
) -> Tensor:
    """Hierarchical context loss: squared difference of two maps, as they are and averaged to smaller sizes ``[N]``.

    Each further size weighs half of the one before, the map as it is weighs 1, and the sum is divided by the weights' sum.
    Sizes that the map does not exceed are left out.

    Source: Chen et al. 2021 (ReviewKD, arXiv 2104.09044), section 3.3; the weights are the released code's.

    Args:
        student: ``[N, C, H, W]``.
        teacher: of the same shape.
        sizes: heights (and widths) to which both are averaged, in turn.
        where: valid items ``[N]``.

    Example:
        >>> pyramid_distance(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8))
        tensor([1., 1.])
    """
    if student.ndim != 4 or student.shape != teacher.shape:
        raise ShapeError(
            "teacher", given=list(teacher.shape), expected=f"maps like the student's {list(student.shape)}"
        )
    dtype = statistics_dtype(student, teacher)
    mask = as_mask(where, student.shape[:1])
    gap = student.to(dtype) - teacher.to(dtype)
    if mask is not None:
        gap = torch.where(mask[:, None, None, None], gap, torch.zeros_like(gap))
    values, weight, total = gap.square().mean((1, 2, 3)), 1.0, 1.0
    for size in sizes:
        if size >= gap.shape[2]:
            continue
        weight /= 2.0
        total += weight
        values = values + weight * torch.nn.functional.adaptive_avg_pool2d(gap, (size, size)).square().mean((1, 2, 3))
    return keep(values / total, mask)


def _fitted(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps ``[N, C, ...]`` at the same size, the larger one averaged down."""
    sizes = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    pool2d, pool1d = torch.nn.functional.adaptive_avg_pool2d, torch.nn.functional.adaptive_avg_pool1d

    def fit(x: Tensor) -> Tensor:
        if list(x.shape[2:]) == sizes:
            return x
        return pool2d(x, (sizes[0], sizes[1])) if x.ndim == 4 else pool1d(x, sizes[0])

    return fit(student), fit(teacher)


def class_means(
    features: Tensor, labels: Tensor, classes: int, *, where: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean feature of each class ``[C, D]`` and the number of items it is the mean of ``[C]``; no items, zeros.

    Args:
        features: ``[N, D]``.
        labels: class ids ``[N]``, or soft labels ``[N, C]``, by which items count for several classes.
        classes: C.
        where: valid items ``[N]``.

    Means of batches are joined by their numbers: ``(m1 * n1 + m2 * n2) / (n1 + n2)``.

    Raises:
        ShapeError, DataError: labels that fit neither form, or lie outside ``0 .. C-1``.

    Example:
        >>> class_means(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([1, 1]), 2)
        (tensor([[0., 0.],
                [2., 0.]]), tensor([0., 2.]))
    """
    if features.ndim != 2:
        raise ShapeError("features", given=list(features.shape), expected="[N, D]")
    x = features.to(statistics_dtype(features))
    where = as_mask(where, x.shape[:1])
    labels = check_labels(labels, (len(x), classes), where)
    share = (
        labels.to(x.dtype) if labels.is_floating_point() else torch.nn.functional.one_hot(labels, classes).to(x.dtype)
    )
    if where is not None:
        x, share = (torch.where(where.unsqueeze(-1), v, torch.zeros_like(v)) for v in (x, share))
    count = share.sum(0)
    return share.T @ x / torch.where(count > 0, count, torch.ones_like(count)).unsqueeze(-1), count


def class_directions(means: Tensor, labels: Tensor, *, where: Tensor | None = None) -> Tensor:
    """The unit vector of each item's class mean ``[N, D]``; of a soft label the mixture of unit vectors, not made unit again.

    `norm_direction` is linear in it, so a soft label's loss is the mixture of its classes' losses.

    Args:
        means: class means ``[C, D]``.
        labels: class ids ``[N]`` or soft labels ``[N, C]``.
        where: valid items ``[N]``; the others have direction zero.

    Raises:
        DataError: a class whose mean is zero has no direction (seen on the CPU only); the error names such classes.

    Example:
        >>> class_directions(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([1, 0]))
        tensor([[0.0000, 1.0000],
                [0.6000, 0.8000]])
    """
    if means.ndim != 2:
        raise ShapeError("means", given=list(means.shape), expected="[C, D]")
    e = unit(means)
    where = as_mask(where, labels.shape[:1])
    labels = check_labels(labels, (len(labels), len(means)), where)
    found = labels.to(e.dtype) @ e if labels.is_floating_point() else e[labels]
    length = means.detach().square().sum(-1)
    if extremes(length) is not None and bool((length == 0).any()):
        asked = (labels > 0).any(0) if labels.is_floating_point() else torch.bincount(labels, minlength=len(means)) > 0
        none = (asked & (length == 0)).nonzero().flatten().tolist()
        if none:
            raise DataError(
                "means",
                f"the means of classes {none} are zero, which has no direction",
                remedy="give each class an item",
            )
    return keep(found, None if where is None else where.unsqueeze(-1).expand_as(found))


def norm_direction(
    student: Tensor,
    teacher: Tensor,
    direction: Tensor | None = None,
    *,
    part: Part = "both",
    denominator: Denominator = "max",
    where: Tensor | None = None,
) -> Tensor:
    """Norm and direction of a feature: ``1 - f_s . e / max(|f_s|, |f_t|)``, one value per item in [0, 2].

    Where the student's feature is the shorter one, the denominator is a constant, and its projection on ``e`` grows; where
    it is the longer one, this is ``1 - cos(f_s, e)``. The teacher's feature has no gradient.

    Args:
        student: features ``[..., D]`` before the classifier.
        teacher: features ``[..., D]``.
        direction: ``e`` ``[..., D]``, of length one: the item's class mean in the teacher (`class_directions`); ``None``
            takes the direction of the teacher's feature of the same item.
        part: ``both``; ``direction`` alone, ``1 - cos(f_s, e)``; or ``norm`` alone, ``1 - |f_s| / max(|f_s|, |f_t|)``
            [reconstructed: the loss of a feature that has the right direction].
        denominator: ``max``, or the ``teacher``'s norm always: the student's then grows without end.
        where: valid items ``[...]``.

    Source: Wang et al. 2023 (arXiv 2305.17007), eq. of the ND loss, and the released code.

    Example:
        >>> e = torch.tensor([[1.0, 0.0]])
        >>> norm_direction(3 * e, 2 * e, e), norm_direction(e, 2 * e, e), norm_direction(-3 * e, 2 * e, e)
        (tensor([0.]), tensor([0.5000]), tensor([2.]))
    """
    choose("part", part, Part)
    choose("denominator", denominator, Denominator)
    for name, given in (("teacher", teacher), ("direction", direction)):
        if given is not None and given.shape != student.shape:
            raise ShapeError(
                name,
                given=list(given.shape),
                expected=f"the student's shape {list(student.shape)}",
                remedy="bring the student's feature to the teacher's width with an adapter",
            )
    dtype = statistics_dtype(student, teacher)
    where = as_mask(where, student.shape[:-1])
    s, t = student.to(dtype), teacher.detach().to(dtype)
    e = unit(t) if direction is None else direction.detach().to(dtype)
    if where is not None:
        s, t, e = (torch.where(where.unsqueeze(-1), x, torch.zeros_like(x)) for x in (s, t, e))
    own, other = s.square().sum(-1), t.square().sum(-1)
    # at a tie the student's norm, as the released code takes it: torch.maximum would halve the gradient there
    largest = other if denominator == "teacher" else torch.where(own >= other, own, other)
    tiny = torch.finfo(dtype).tiny
    if part == "direction":
        value = (s * e).sum(-1) * own.clamp_min(tiny).rsqrt()
    elif part == "norm":
        value = own.clamp_min(tiny).sqrt() * largest.clamp_min(tiny).rsqrt()
    else:
        value = (s * e).sum(-1) * largest.clamp_min(tiny).rsqrt()
    return keep(1.0 - value, where)
