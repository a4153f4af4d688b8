"""Learning without labels from a teacher that is the student's own average: crops told alike, the centre, views contrasted."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import as_mask, keep, statistics_dtype
from .contrast import info_nce
from .feature import unit


def multicrop_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    where: Tensor | None = None,
) -> Tensor:
    """What the teacher says of large crops, asked of all other crops: the mean over pairs of a cross-entropy, ``[N]``.

    ``P_q = softmax((t_q - c) / tau_t)`` and ``1/#pairs sum_q sum_{v != q} -P_q . log_softmax(s_v / tau_s)``: a crop is
    never asked about itself. The teacher's side carries no gradient. Less sharp than the student (``tau_t >= tau_s``)
    or not centred, such a teacher leads to one answer for everything.

    Source: Caron et al. 2021 (DINO, arXiv 2104.14294), eq. 3 and section 3.1.

    Args:
        student: logits ``[V, N, K]`` of V crops; the first Q are those the teacher sees.
        teacher: logits ``[Q, N, K]``, as they are.
        centre: c ``[K]``, as it was before this batch: see `moved_centre`.
        student_temperature, teacher_temperature: tau_s and tau_t, above 0.
        where: valid items ``[N]``; the others count 0.

    Raises:
        ConfigError: a temperature is not above 0.
        ShapeError: crops, items or outputs do not fit, or there is no pair of different crops.

    Example:
        >>> s, c = torch.zeros(3, 2, 4), torch.zeros(4)
        >>> multicrop_cross_entropy(s, s[:2], c)
        tensor([1.3863, 1.3863])
    """
    for name, value in (("student_temperature", student_temperature), ("teacher_temperature", teacher_temperature)):
        if not value > 0:
            raise ConfigError(name, given=value, expected="a number > 0")
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[1:] != teacher.shape[1:]:
        raise ShapeError(
            "teacher", given=list(teacher.shape), expected=f"[Q, N, K] of the student's [V, N, K] {list(student.shape)}"
        )
    v, q = len(student), len(teacher)
    if not 1 <= q <= v or v < 2:
        raise ShapeError(
            "student", given=f"{v} crops, the teacher {q}", expected="the teacher's crops first, and two or more"
        )
    if centre.shape != student.shape[2:]:
        raise ShapeError(
            "centre", given=list(centre.shape), expected=f"one number an output, {list(student.shape[2:])}"
        )
    dtype = statistics_dtype(student, teacher)
    mask = as_mask(where, student.shape[1:2])
    p = ((teacher.detach().to(dtype) - centre.to(dtype)) / teacher_temperature).softmax(-1)
    log_q = (student.to(dtype) / student_temperature).log_softmax(-1)
    pairs = torch.einsum("qnk,vnk->nqv", p, log_q)
    other = ~torch.eye(q, v, dtype=torch.bool, device=student.device)
    return keep(-keep(pairs, other).sum((1, 2)) / (q * v - q), mask)


def moved_centre(centre: Tensor, teacher: Tensor, momentum: float = 0.9) -> Tensor:
    """The centre ``[K]`` after a batch: ``m c + (1 - m) mean of t``, of raw logits, without gradient.

    Call it when the batch's loss is taken, and with the logits of all processes.

    Args:
        centre: ``[K]``.
        teacher: logits ``[..., K]``.
        momentum: m, in [0, 1].

    Source: Caron et al. 2021 (DINO, arXiv 2104.14294), eq. 4.

    Example:
        >>> moved_centre(torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0.5)
        tensor([1.0000, 1.5000])
    """
    if not 0 <= momentum <= 1:
        raise ConfigError("momentum", given=momentum, expected="a number in [0, 1]")
    mean = teacher.detach().flatten(0, -2).to(statistics_dtype(teacher, centre)).mean(0)
    return momentum * centre + (1 - momentum) * mean


def cross_view_contrast(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor | None = None,
    *,
    temperature: float = 0.07,
    where: Tensor | None = None,
) -> Tensor:
    """The student's embedding of one view names the teacher's of the other among all items, and the other way: ``[N]``.

    ``1/2 [CE(z_s^a . Z_t^b / tau) + CE(z_s^b . Z_t^a / tau)]`` of embeddings of length one: `info_nce` both ways. The
    teacher's side carries no gradient. DCGLR's abstract has such a term; this form of it is a [reconstruction].

    Args:
        student, teacher: embeddings of two views ``[2, N, D]``, of any length.
        queue: the teacher's embeddings of other items ``[M, D]``, which nobody's is.
        temperature: tau, above 0.
        where: valid items ``[N]``; the others count 0.

    Raises:
        ShapeError: not two views, or one item and no queue: then there is nothing to be told from.

    Example:
        >>> z = torch.eye(3).expand(2, 3, 3)
        >>> cross_view_contrast(z, z, temperature=1.0)
        tensor([0.5514, 0.5514, 0.5514])
    """
    if student.ndim != 3 or len(student) != 2 or student.shape != teacher.shape:
        raise ShapeError(
            "student", given=f"{list(student.shape)} and {list(teacher.shape)}", expected="both two views [2, N, D]"
        )
    own = torch.arange(student.shape[1], device=student.device)
    keys = teacher.detach()
    if queue is not None:
        keys = torch.cat([keys, queue.detach().to(keys).expand(2, -1, -1)], 1)  # [2, N + M, D]
    ways = [info_nce(student[i], keys[1 - i], own, temperature=temperature, where=where) for i in (0, 1)]
    return (ways[0] + ways[1]) / 2


def n_pair(student: Tensor, teacher: Tensor, *, scale: float = 64.0, where: Tensor | None = None) -> Tensor:
    """The teacher's answer to an item names the student's among those to all items, crop by crop: the mean, ``[N]``.

    ``-log softmax_j(scale p_i . s_jv)_i`` averaged over crops v. The scalar products are plain: p is a distribution, s
    are the student's logits (over its temperature). The teacher's side carries no gradient.

    Source: Sohn 2016 for the N-pair loss; in this form POS-BERT, the sibling of DCGLR.

    Args:
        student: ``[V, N, K]`` of V crops.
        teacher: distributions ``[N, K]``.
        scale: multiplies the scalar products.
        where: valid items ``[N]``; the others count 0.

    Example:
        >>> p = torch.eye(2)
        >>> n_pair(p.expand(3, 2, 2), p, scale=1.0)
        tensor([0.3133, 0.3133])
    """
    if student.ndim != 3 or student.shape[1:] != teacher.shape:
        raise ShapeError(
            "teacher", given=list(teacher.shape), expected=f"[N, K] of the student's [V, N, K] {list(student.shape)}"
        )
    dtype = statistics_dtype(student, teacher)
    mask = as_mask(where, teacher.shape[:1])
    scores = scale * torch.einsum("ik,vjk->vij", teacher.detach().to(dtype), student.to(dtype))
    return keep((scores.logsumexp(-1) - scores.diagonal(dim1=1, dim2=2)).mean(0), mask)


def queued(queue: Tensor | None, new: Tensor, size: int) -> Tensor | None:
    """A queue of embeddings of length one ``[M, D]``, new ones ``[N, D]`` at its end, the oldest gone: at most ``size``.

    Example:
        >>> queued(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 1)
        tensor([[0., 1.]])
    """
    if size < 1:
        return None
    fresh = unit(new.detach())
    return (fresh if queue is None else torch.cat([queue, fresh]))[-size:]


__all__ = ["cross_view_contrast", "moved_centre", "multicrop_cross_entropy", "n_pair", "queued"]
