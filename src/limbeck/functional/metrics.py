"""Metrics as sums that add up: over batches, over processes, and only then divided.

Functions return ``(sum, count)`` or a table of sums; adding two results is the result of both batches together. Sums
are float64 where the device has it. Logits are ``[..., C]``, labels class ids ``[...]`` or soft ``[..., C]``, and
``where`` ``[...]`` marks the valid items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, ShapeError
from ._common import as_mask, check_classes, check_labels, check_pair, hard_labels, hide, keep, statistics_dtype
from .labels import cross_entropy
from .precision import widened

Pair = tuple[Tensor, Tensor]


def _total(values: Tensor, where: Tensor | None) -> Pair:
    values = widened(values.detach())
    total = keep(values, where).sum()
    count = torch.full_like(total, values.numel()) if where is None else where.sum().to(total.dtype)
    return total, count


def accuracy(logits: Tensor, labels: Tensor, *, k: int = 1, where: Tensor | None = None) -> Pair:
    """Items whose label is among the k largest logits, and their number.

    A label that ties with others at the edge counts as found only if fewer than k logits are larger and the ties before
    it (by class id) leave room: the same answer on every device, and no credit for constant logits.

    Example:
        >>> hits, count = accuracy(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
        >>> (hits / count).item()
        0.5
    """
    check_classes(logits, 1, "nothing to rank")
    if not 1 <= k <= logits.shape[-1]:
        raise ConfigError("k", given=k, expected=f"1 to {logits.shape[-1]}, the number of classes")
    where = as_mask(where, logits.shape[:-1])
    ids = hard_labels(check_labels(labels, logits.shape, where)).unsqueeze(-1)
    own = logits.gather(-1, ids)
    earlier = torch.arange(logits.shape[-1], device=logits.device) < ids
    place = ((logits > own) | ((logits == own) & earlier)).sum(-1)
    return _total((place < k) & ~torch.isnan(own.squeeze(-1)), where)


def agreement(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Pair:
    """Items on which both models' first choice is the same, and their number.

    Example:
        >>> same, count = agreement(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[5.0, 1.0], [3.0, 1.0]]))
        >>> (same / count).item()
        0.5
    """
    check_pair(student, teacher)
    where = as_mask(where, student.shape[:-1])
    return _total(student.argmax(-1) == teacher.argmax(-1), where)


def negative_log_likelihood(logits: Tensor, labels: Tensor, *, where: Tensor | None = None) -> Pair:
    """Sum of the cross-entropy to the labels in nats, and the number of items.

    Example:
        >>> total, count = negative_log_likelihood(torch.zeros(2, 4), torch.tensor([0, 3]))
        >>> round((total / count).item(), 5) == round(math.log(4), 5)
        True
    """
    where = as_mask(where, logits.shape[:-1])
    return _total(cross_entropy(logits, labels, where=where), where)


def perplexity(total: Tensor | float, count: Tensor | float) -> float:
    """``exp(total / count)`` of a summed negative log-likelihood; infinite rather than an error when it overflows.

    Example:
        >>> round(perplexity(2 * math.log(7.0), 2), 6)
        7.0
    """
    if not float(count) > 0:
        raise DataError("count", given=float(count), expected="at least one valid token")
    mean = float(total) / float(count)
    return math.exp(mean) if mean < 709.0 else (math.nan if math.isnan(mean) else math.inf)


def brier(logits: Tensor, labels: Tensor, *, where: Tensor | None = None) -> Pair:
    """Sum of the squared distance between probabilities and labels (0 to 2 an item; Brier 1950), and the number.

    Example:
        >>> total, count = brier(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        >>> (total / count).item()
        0.5
    """
    check_classes(logits, 1, "nothing to evaluate")
    where = as_mask(where, logits.shape[:-1])
    labels = check_labels(labels, logits.shape, where)
    p = hide(logits.to(statistics_dtype(logits)), where).softmax(-1)
    if labels.is_floating_point():
        target = hide(labels.to(p.dtype), where)
    else:
        target = torch.zeros_like(p).scatter(-1, labels.unsqueeze(-1), 1.0)
    return _total((p - target).square().sum(-1), where)


def calibration_table(logits: Tensor, labels: Tensor, *, bins: int = 15, where: Tensor | None = None) -> Tensor:
    """Sums for the calibration error ``[bins, 3]``: items, summed confidence and correct answers per confidence bin.

    Confidence is the largest probability; bins are of equal width, closed above. Tables of batches add up.

    Example:
        >>> calibration_table(torch.tensor([[9.0, 0.0]]), torch.tensor([0]), bins=2)[1, [0, 2]]
        tensor([1., 1.], dtype=torch.float64)
    """
    if bins < 1:
        raise ConfigError("bins", given=bins, expected="at least 1")
    check_classes(logits, 1, "nothing to evaluate")
    where = as_mask(where, logits.shape[:-1])
    ids = hard_labels(check_labels(labels, logits.shape, where))
    confidence, choice = hide(logits.to(statistics_dtype(logits)), where).softmax(-1).max(-1)
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)[1:-1]
    place = torch.bucketize(confidence.contiguous(), edges).reshape(-1)
    sums = torch.stack([torch.ones_like(confidence), confidence, (choice == ids).to(confidence.dtype)], -1)
    if where is not None:
        sums = sums * where.unsqueeze(-1)
    sums = widened(sums.detach().reshape(-1, 3))
    return torch.zeros(bins, 3, dtype=sums.dtype, device=sums.device).index_add(0, place, sums)


def calibration_error(table: Tensor, *, norm: str = "l1") -> float:
    """Expected (``l1``), root mean square (``l2``) or greatest (``max``) calibration error of a `calibration_table`.

    The gap between accuracy and mean confidence of each bin, weighted by the share of items (Guo et al. 2017, eq. 3).

    Example:
        >>> table = calibration_table(torch.full((4, 2), 0.0), torch.tensor([0, 0, 1, 1]))
        >>> calibration_error(table)
        0.0
    """
    if norm not in ("l1", "l2", "max"):
        raise ConfigError.unknown("norm", norm, ("l1", "l2", "max"))
    count = table[:, 0]
    total = count.sum()
    if not total > 0:
        raise DataError("table", given=float(total), expected="at least one valid item")
    gap = (table[:, 2] - table[:, 1]).abs() / count.clamp_min(1.0)
    if norm == "max":
        return float(gap.max())
    share = count / total
    return float((gap * share).sum()) if norm == "l1" else float((gap.square() * share).sum().sqrt())


@dataclass(frozen=True)
class Moments:
    """First and second moments of features, ready to be added up field by field.

    Attributes:
        count: number of items, a scalar.
        total: their sum ``[D]``.
        outer: sum of their outer products ``[D, D]``.
        shift: what was subtracted from every item first ``[D]``; equal in all that are added.
    """

    count: Tensor
    total: Tensor
    outer: Tensor
    shift: Tensor

    def __add__(self, other: Moments) -> Moments:
        if not torch.equal(self.shift, other.shift):
            raise ConfigError("shift", "the moments were taken around different points")
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer, self.shift)

    def mean(self) -> Tensor:
        """Mean ``[D]``."""
        return self.shift + self.total / self.count

    def covariance(self) -> Tensor:
        """Unbiased covariance ``[D, D]``."""
        if not self.count > 1:
            raise DataError("count", given=float(self.count), expected="at least two items for a covariance")
        mean = self.total / self.count
        return (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)


def moments(features: Tensor, *, shift: Tensor | None = None, where: Tensor | None = None) -> Moments:
    """Moments of features ``[N, D]`` in float64; give all batches the same ``shift`` near the mean if it is large.

    Example:
        >>> m = moments(torch.tensor([[0.0], [2.0]])) + moments(torch.tensor([[4.0]]))
        >>> m.mean().item(), m.covariance().item()
        (2.0, 4.0)
    """
    if features.ndim != 2:
        raise ShapeError("features", given=list(features.shape), expected="[N, D]")
    where = as_mask(where, features.shape[:1])
    x = widened(features.detach())
    shift = torch.zeros_like(x[:0].sum(0)) if shift is None else widened(shift)
    x = hide(x - shift, where)
    count = torch.full_like(x.sum(), len(x)) if where is None else where.sum().to(x.dtype)
    return Moments(count, x.sum(0), x.T @ x, shift)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Frechet distance between two Gaussians with these moments (FID, Heusel et al. 2017, eq. 6).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``. The trace of the root is the sum of the square roots of the
    eigenvalues of the symmetric ``C1^(1/2) C2 C1^(1/2)``, which are real and not negative: no complex remainder, no
    failure on singular covariances (fewer items than dimensions).

    Example:
        >>> a = moments(torch.tensor([[0.0], [2.0]]))
        >>> b = moments(torch.tensor([[3.0], [5.0]]))
        >>> round(frechet_distance(a, b), 9)
        9.0
    """
    if first.total.shape != second.total.shape:
        raise ShapeError("second", given=list(second.total.shape), expected=f"{list(first.total.shape)} like the first")
    c1, c2 = first.covariance(), second.covariance()
    values, vectors = torch.linalg.eigh(c1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    middle = root @ c2 @ root
    shared = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp_min(0).sqrt().sum()
    gap = (first.mean() - second.mean()).square().sum()
    return max(0.0, float(gap + c1.trace() + c2.trace() - 2 * shared))


def frequency_groups(
    sizes: Tensor, bounds: tuple[int, int] | list[int] | None = None, *, least: float = 10.0
) -> dict[str, Tensor]:
    """Which classes belong to the head, the middle and the tail of a long-tailed training set.

    Source: Liu et al. 2019 (arXiv 1904.05160), who name classes with over 100 training items many-shot, with fewer than 20
    few-shot; the thirds are ours, for sets of any size.

    Args:
        sizes: training items of each class ``[C]``; classes without any are left out.
        bounds: tail below the first, head above the second; ``None`` takes thirds of the classes by size.
        least: how many times as large the largest class must be as the smallest, for thirds; otherwise there are none.

    Returns:
        Class ids by name, ``head``, ``medium`` and ``tail``; groups without a class are left out.

    Example:
        >>> {k: v.tolist() for k, v in frequency_groups(torch.tensor([2, 100, 14])).items()}
        {'head': [1], 'medium': [2], 'tail': [0]}
        >>> {k: v.tolist() for k, v in frequency_groups(torch.tensor([2, 200, 14]), (20, 100)).items()}
        {'head': [1], 'tail': [0, 2]}
    """
    if sizes.ndim != 1:
        raise ShapeError("sizes", given=list(sizes.shape), expected="a number for each class, [C]")
    there = (sizes > 0).nonzero()[:, 0]
    if bounds is not None:
        low, high = bounds
        n = sizes[there]
        found = {"head": there[n > high], "medium": there[(n >= low) & (n <= high)], "tail": there[n < low]}
    else:
        if len(there) < 3 or sizes[there].max() < least * sizes[there].min():
            return {}
        order = there[sizes[there].argsort(descending=True, stable=True)]
        found = dict(zip(("head", "medium", "tail"), order.tensor_split(3), strict=True))
    return {name: ids.sort().values for name, ids in found.items() if len(ids)}
