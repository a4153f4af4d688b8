"""Vectors of texts: similarities as a student and a teacher see them, margins between answers, bases of fewer dimensions.

Vectors are ``[N, D]``; student and teacher may have different D wherever they are compared by similarities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError
from ._common import statistics_dtype
from .feature import unit

__all__ = ["correlation", "margin_distance", "principal_basis", "ranks_of", "similarities", "similarity_distance"]


def similarities(a: Tensor, b: Tensor, *, cosine: bool = True) -> Tensor:
    """Similarities ``[..., M, N]`` of vectors ``[..., M, D]`` to vectors ``[..., N, D]``.

    Args:
        a, b: the vectors.
        cosine: the cosine, in [-1, 1]; off, the dot product.

    Raises:
        ShapeError: the last dimensions differ.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ShapeError("b", given=list(b.shape), expected=f"vectors of {a.shape[-1]} numbers")
    dtype = statistics_dtype(a, b)
    a, b = a.to(dtype), b.to(dtype)
    return unit(a) @ unit(b).transpose(-1, -2) if cosine else a @ b.transpose(-1, -2)


def similarity_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    students: Tensor | None = None,
    teachers: Tensor | None = None,
    cosine: bool = True,
) -> Tensor:
    """How far the student's similarities are from the teacher's: per text ``[N]`` the mean over all texts of the squared
    difference of their similarity to it. Zero where both see the same similarities, whatever their dimensions.

    Source: similarity-preserving distillation (Tung and Mori 2019, arXiv 1907.09682) with similarities that are cosines,
    in place of rows of the Gram matrix brought to length one.

    Args:
        student: ``[N, D]``.
        teacher: ``[N, E]``, the same texts.
        students, teachers: all texts of the batch, ``[M, D]`` and ``[M, E]``; ``None``: the N given.
        cosine: of cosines; off, of dot products.

    Raises:
        ShapeError: they are not of the same texts.

    Example:
        >>> x = torch.randn(4, 8)
        >>> similarity_distance(3 * x @ torch.linalg.qr(torch.randn(8, 8))[0], x).max().item() < 1e-6
        True
    """
    students, teachers = student if students is None else students, teacher if teachers is None else teachers
    if student.ndim != 2 or len(student) != len(teacher) or len(students) != len(teachers):
        raise ShapeError(
            "teacher", given=list(teacher.shape), expected=f"vectors of the student's texts, [{len(student)}, E]"
        )
    gap = similarities(student, students, cosine=cosine) - similarities(teacher, teachers, cosine=cosine)
    return gap.square().mean(1)


def margin_distance(
    student_right: Tensor, student_wrong: Tensor, teacher_right: Tensor, teacher_wrong: Tensor
) -> Tensor:
    """Margin-MSE: the squared difference of the two margins between the score of a right and of a wrong answer.

    What the scores are counts for nothing but their difference, so that a cross-encoder's logits teach dot products.

    Source: Hofstätter et al. 2020 (arXiv 2010.02666), equation 8; the loss is the mean over the triples.

    Args:
        student_right, student_wrong: the student's scores of a query with a right and with a wrong answer ``[...]``.
        teacher_right, teacher_wrong: the teacher's.

    Raises:
        ShapeError: they have different shapes.

    Example:
        >>> margin_distance(*(torch.tensor([x]) for x in (9.0, 7.0, 1.0, 0.0)))
        tensor([1.])
    """
    given = (student_right, student_wrong, teacher_right, teacher_wrong)
    if len({x.shape for x in given}) > 1:
        raise ShapeError("teacher_right", given=str([list(x.shape) for x in given]), expected="four scores a triple")
    dtype = statistics_dtype(*given)
    a, b, c, d = (x.to(dtype) for x in given)
    return ((a - b) - (c - d)).square()


def principal_basis(moment: Tensor, dimensions: int) -> Tensor:
    """The basis ``[d, D]`` in which vectors keep most of their dot products: the leading eigenvectors of ``X^T X``.

    No mean is taken out, as principal components have it: similarities are measured from the origin. Among all projections to
    d dimensions, ``X B^T B X^T`` is the closest to the dot products ``X X^T`` (Eckart and Young 1936).

    Args:
        moment: ``X^T X`` ``[D, D]`` of vectors X ``[N, D]``.
        dimensions: d, at most D.

    Raises:
        ShapeError: no square matrix, or fewer dimensions than are asked for.

    Example:
        >>> x = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
        >>> principal_basis(x.T @ x, 1)
        tensor([[0., 1.]])
    """
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not 0 < dimensions <= len(moment):
        raise ShapeError("moment", given=list(moment.shape), expected=f"[D, D] with D >= {dimensions}")
    _, vectors = torch.linalg.eigh(moment.double())
    basis = vectors.flip(1)[:, :dimensions].T
    at = basis.abs().argmax(1, keepdim=True)  # the sign of an eigenvector is anyone's: its largest number is positive
    return (basis * basis.gather(1, at).sign()).to(moment.dtype).contiguous()


def ranks_of(x: Tensor) -> Tensor:
    """Ranks ``[N]`` from 1, float64; equal values share the mean of theirs.

    Example:
        >>> ranks_of(torch.tensor([3.0, 1.0, 3.0]))
        tensor([2.5000, 1.0000, 2.5000], dtype=torch.float64)
    """
    _, which, counts = x.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[which]


def correlation(x: Tensor, y: Tensor, *, ranked: bool = False) -> float:
    """Pearson's correlation of two lists ``[N]``, in [-1, 1]; ``ranked``: Spearman's, that of their ranks. 0 where one of
    them is constant.

    Raises:
        ShapeError: no two lists of one length, two at least.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> round(correlation(x, x**9), 3), round(correlation(x, x**9, ranked=True), 3)
        (0.877, 1.0)
    """
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ShapeError("y", given=list(y.shape), expected=f"as many numbers as x, {list(x.shape)}, two at least")
    a, b = (ranks_of(v) if ranked else v.double() for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = a.norm() * b.norm()
    return float((a * b).sum() / size) if size > 0 else 0.0
