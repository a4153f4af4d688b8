"""Landmarks learned from two teachers, one accurate and one smooth (KD-Loss, Fard and Mahoor 2022, arXiv 2111.07047)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import statistics_dtype

__all__ = ["ShapeModel", "assistive_values", "fit_shapes", "main_values", "soft_landmarks"]


class ShapeModel(NamedTuple):
    """Principal components of landmark vectors.

    Attributes:
        mean: ``[D]``.
        components: ``[k, D]``, orthonormal rows.
        variances: ``[k]``, falling.
    """

    mean: Tensor
    components: Tensor
    variances: Tensor


def fit_shapes(landmarks: Tensor, variance: float) -> ShapeModel:
    """The fewest principal components that keep more than a share of the variance.

    Args:
        landmarks: vectors ``[n, D]``, n of 2 or more.
        variance: the share, above 0 and below 1.

    Raises:
        ConfigError: the share is out of range.
        ShapeError: fewer than two vectors.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.1], [4.0, 0.0]])
        >>> fit_shapes(x, 0.9).components.shape
        torch.Size([1, 2])
    """
    if not 0 < variance < 1:
        raise ConfigError("variance", given=variance, expected="a share above 0 and below 1")
    if landmarks.ndim != 2 or len(landmarks) < 2:
        raise ShapeError("landmarks", given=list(landmarks.shape), expected="two or more vectors [n, D]")
    mean = landmarks.mean(0)
    _, singular, rows = torch.linalg.svd(landmarks - mean, full_matrices=False)
    variances = singular.square() / (len(landmarks) - 1)
    share = (variances / variances.sum()).cumsum(0)
    k = min(len(share), int((share <= variance).sum()) + 1)
    return ShapeModel(mean, rows[:k], variances[:k])


def soft_landmarks(landmarks: Tensor, shapes: ShapeModel, *, deviations: float = 3.0) -> Tensor:
    """Landmarks ``[n, D]`` redrawn from the components, each coefficient within so many standard deviations.

    Source: the soft landmarks of the paper (active shape models).
    """
    b = (landmarks - shapes.mean) @ shapes.components.T
    most = deviations * shapes.variances.sqrt()
    return shapes.mean + b.clamp(-most, most) @ shapes.components


def assistive_values(
    student: Tensor,
    truth: Tensor,
    teacher: Tensor,
    *,
    far: float,
    near: float,
    boundary: float = 0.15,
    ramp: bool = False,
    mirrored: bool = True,
) -> Tensor:
    """How a teacher assists at each coordinate, of the shape of the student; values may be negative.

    With the student's error e and the teacher's error d: ``far * (|e| - d)`` where the student is worse than the teacher;
    ``near * (|e| - d) * -1`` in absolute value, that is ``near * (d - |e|)``, between the boundary and the teacher; 0
    nearer to the truth. ``near`` is negative, so that every region pushes towards the truth.

    Source: the paper's ALoss; constants and the boundary of 0.15 are the released code's. The paper's figures show a boundary
    at 0.4 and a ramp from 0 to ``near`` below it.

    Args:
        student, truth, teacher: coordinates of the same shape; no gradient goes to truth and teacher.
        far: weight where the student is worse (code: 1.9 for the accurate teacher, 1.8 for the smooth one).
        near: weight between (code: -0.45 and -0.40).
        boundary: share of the teacher's error, in [0, 1].
        ramp: below the boundary the weight grows from 0 at the truth to ``near``, instead of being 0.
        mirrored: distances are those to the teacher's point on the student's side of the truth; else to the teacher's own.

    Raises:
        ConfigError: the boundary is out of range.
        ShapeError: shapes differ.
    """
    if not 0 <= boundary <= 1:
        raise ConfigError("boundary", given=boundary, expected="a share in [0, 1]")
    _same(student, truth=truth, teacher=teacher)
    dtype = statistics_dtype(student, truth, teacher)
    g, t = truth.detach().to(dtype), teacher.detach().to(dtype)
    e, d = (student.to(dtype) - g).abs(), (t - g).abs()
    at = e.detach()
    inside = near * at / (boundary * d).clamp(min=torch.finfo(dtype).tiny) if ramp else torch.zeros_like(at)
    weight = torch.where(at > d, far, torch.where(at >= boundary * d, near, inside))
    weight = torch.where(at == 0, torch.zeros_like(weight), weight)
    return weight * ((e - d) if mirrored else student.to(dtype) - t).abs()


def main_values(student: Tensor, truth: Tensor, smooth: Tensor, *, slope: float = 3.0) -> Tensor:
    """The main loss at each coordinate: linear up to the smooth teacher's error d, quadratic beyond.

    ``slope * |e|`` for ``|e| <= d``, else ``e^2 + slope * d - d^2``. With coordinates in [-0.5, 0.5] the quadratic part is the
    flatter one.

    Source: the released code (slope 3); the paper's figures show slope 1.

    Args:
        student, truth: coordinates of the same shape.
        smooth: the smooth teacher's prediction, which switches between the parts; no gradient goes there.
        slope: of the linear part.
    """
    _same(student, truth=truth, smooth=smooth)
    dtype = statistics_dtype(student, truth, smooth)
    g = truth.detach().to(dtype)
    e, d = student.to(dtype) - g, (smooth.detach().to(dtype) - g).abs()
    return torch.where(e.abs() <= d, slope * e.abs(), e.square() + slope * d - d.square())


def _same(student: Tensor, **others: Tensor) -> None:
    for name, x in others.items():
        if x.shape != student.shape:
            raise ShapeError(name, given=list(x.shape), expected=f"coordinates {list(student.shape)} as the student's")
