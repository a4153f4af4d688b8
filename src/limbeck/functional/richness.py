"""Maps compared where a detector's teacher sees objects: its feature-richness score as weights of places."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError
from ._common import statistics_dtype


def richness(objectness: Tensor) -> Tensor:
    """How sure the best anchor of each place is of an object: ``max_a sigmoid(z_a)`` [N, h, w], without gradient.

    Args:
        objectness: logits ``[N, A, h, w]``.

    Example:
        >>> richness(torch.tensor([0.0, -2.0]).view(1, 2, 1, 1)).item()
        0.5
    """
    if objectness.ndim != 4 or objectness.shape[1] < 1:
        raise ShapeError("objectness", given=list(objectness.shape), expected="logits [N, A, h, w] of A anchors")
    z = objectness.detach()
    return z.to(statistics_dtype(z)).amax(1).sigmoid()


class RichnessTerms(NamedTuple):
    """What is compared at each place, and what the place counts.

    Attributes:
        features: squared distance of the features, summed over channels, ``[N, h, w]``.
        objectness: binary cross-entropy of the anchors' answers, summed over anchors, ``[N, h, w]``.
        weight: the teacher's `richness`, ``[N, h, w]``.
    """

    features: Tensor
    objectness: Tensor
    weight: Tensor


def richness_terms(
    student: Tensor, teacher: Tensor, student_objectness: Tensor, teacher_objectness: Tensor
) -> RichnessTerms:
    """Features and objectness of one pyramid level compared place by place; see `richness_mean` for the loss.

    ``sum_c (f_t - f_s)^2`` and ``sum_a BCE(sigmoid s_a, sigmoid t_a)``, neither divided by channels or anchors. The
    teacher's side carries no gradient.

    Source: Du et al. 2021 (feature-richness score, arXiv 2111.00674), as G2SD uses it (Huang et al. 2023, arXiv
    2302.14771).

    Args:
        student, teacher: features ``[N, C, h, w]``, the student's already brought to the teacher's channels.
        student_objectness, teacher_objectness: logits ``[N, A, h, w]``.

    Raises:
        ShapeError: the two do not have the same shape, or features and objectness not the same places.

    Example:
        >>> f, z = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
        >>> terms = richness_terms(f, f + 1, z, z)
        >>> [richness_mean(v, terms.weight).item() for v in terms[:2]]
        [3.0, 0.6931471824645996]
    """
    for name, a, b in (("teacher", student, teacher), ("teacher_objectness", student_objectness, teacher_objectness)):
        if a.ndim != 4 or a.shape != b.shape:
            raise ShapeError(name, given=list(b.shape), expected=f"the student's {list(a.shape)}, four dimensions")
    if student.shape[2:] != student_objectness.shape[2:]:
        raise ShapeError(
            "student_objectness",
            given=list(student_objectness.shape),
            expected=f"as many places as the features {list(student.shape)}",
        )
    dtype = statistics_dtype(student, teacher, student_objectness, teacher_objectness)
    gap = student.to(dtype) - teacher.detach().to(dtype)
    answers = torch.nn.functional.binary_cross_entropy_with_logits(
        student_objectness.to(dtype), teacher_objectness.detach().to(dtype).sigmoid(), reduction="none"
    )
    return RichnessTerms(gap.square().sum(1), answers.sum(1), richness(teacher_objectness).to(dtype))


def richness_mean(values: Tensor, weight: Tensor, *, eps: float = 1e-12) -> Tensor:
    """``sum(values weight) / sum(weight)`` over all places of the batch, a scalar; 0 where nothing is worth looking at.

    Example:
        >>> richness_mean(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 0.0])).item()
        1.0
    """
    return (values * weight).sum() / weight.sum().clamp_min(eps)


__all__ = ["RichnessTerms", "richness", "richness_mean", "richness_terms"]
