"""Which items of an unlabelled pool two networks find useful together (KD3, Tang et al. 2023, arXiv 2307.11469)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import check_pair, choose, in_range, statistics_dtype

SelectionRule = Literal["all", "threshold", "topk", "topk_per_class"]
Score = Literal["msp", "energy", "entropy"]


class Selection(NamedTuple):
    """What is known of the items of a pool, and which are kept.

    Attributes:
        score: what the rule goes by [M].
        confidence: the largest probability of the combined prediction [M].
        classes: its class, int64 [M].
        kept: bool [M].
    """

    score: Tensor
    confidence: Tensor
    classes: Tensor
    kept: Tensor


def student_share(done: float | Tensor, whole: float, *, most: float = 0.5, ramp: float = 0.5) -> float | Tensor:
    """The student's share in the combined prediction: from 0 to ``most`` over the first ``ramp`` of training, then constant.

    Args:
        done: how much is done, in epochs or steps counted from 0; a number, or a tensor of any shape.
        whole: how much there is, in the same unit.
        most: the last share, 0 to 1.
        ramp: after which part of the whole it is reached, 0 to 1; 0 has it from the beginning.

    Raises:
        ConfigError: ``most`` or ``ramp`` lies outside [0, 1].

    Example:
        >>> [student_share(epoch, 4) for epoch in range(4)]
        [0.0, 0.25, 0.5, 0.5]
    """
    in_range("most", most, 0, 1)
    in_range("ramp", ramp, 0, 1)
    length = ramp * whole
    if isinstance(done, Tensor):
        part = done.to(torch.get_default_dtype() if not done.is_floating_point() else done.dtype)
        return most * ((part / length).clamp(0, 1) if length > 0 else torch.ones_like(part))
    return most * (min(1.0, max(0.0, done / length)) if length > 0 else 1.0)


def select(
    teacher: Tensor,
    student: Tensor | None = None,
    *,
    beta: float = 0.0,
    rule: SelectionRule = "threshold",
    threshold: float = 0.9,
    ratio: float = 0.5,
    per_class: int = 100,
    require_agreement: bool = False,
    score: Score = "msp",
) -> Selection:
    """Items that the combined prediction ``p = (1 - beta) softmax(teacher) + beta softmax(student)`` is sure of; no gradient.

    First, with ``require_agreement``, items whose classes the two networks name differently are dropped; then ``threshold``
    keeps the rest from that score on, ``topk`` the ``ceil(ratio M)`` best (M: the whole pool), ``topk_per_class`` the
    ``per_class`` best of each class that p names, ``all`` everything. Ties go to the lower index. [reconstructed]

    Scores: ``msp`` is the largest probability; ``entropy`` is ``1 - H(p) / log C``, in [0, 1]; ``energy`` is
    ``(1 - beta) logsumexp(teacher) + beta logsumexp(student)``, any number (Liu et al. 2020, there with the other sign).

    Args:
        teacher: logits of the pool ``[M, C]``.
        student: logits of the pool ``[M, C]``; needed where ``beta`` is above 0 or the two are to agree.
        beta: the student's share, 0 to 1.
        rule: ``all``, ``threshold``, ``topk`` or ``topk_per_class``.
        threshold: the least score that is kept, by ``threshold``.
        ratio: the share of the pool that is kept at most, by ``topk``.
        per_class: how many of each class are kept at most, by ``topk_per_class``.
        require_agreement: drop items on which the two disagree.
        score: ``msp``, ``energy`` or ``entropy``.

    Raises:
        ConfigError: a setting lies outside its range, or the student is needed and missing.
        ShapeError: not ``[M, C]``.
        TeacherMismatch: the two have different classes.

    Example:
        >>> found = select(torch.tensor([[9.0, 0.0], [0.1, 0.0], [0.0, 5.0]]))
        >>> found.kept.tolist(), found.classes.tolist()
        ([True, False, True], [0, 0, 1])
    """
    choose("rule", rule, SelectionRule, "rule")
    choose("score", score, Score, "score")
    in_range("beta", beta, 0, 1)
    in_range("ratio", ratio, 0, 1)
    if per_class < 0:
        raise ConfigError("per_class", given=per_class, expected="0 or more")
    if teacher.ndim != 2:
        raise ShapeError("teacher", given=list(teacher.shape), expected="logits of a pool [M, C]")
    if student is None and (beta > 0 or require_agreement):
        raise ConfigError("student", given=None, expected="the student's logits, which beta or require_agreement needs")
    if student is not None:
        check_pair(student, teacher)
    with torch.no_grad():
        z_t = teacher.to(statistics_dtype(teacher))
        p = z_t.softmax(-1)  # [M, C]
        energy = z_t.logsumexp(-1)
        alike = torch.ones(len(z_t), dtype=torch.bool, device=z_t.device)
        if student is not None:
            z_s = student.to(statistics_dtype(student))
            p = (1 - beta) * p + beta * z_s.softmax(-1)
            energy = (1 - beta) * energy + beta * z_s.logsumexp(-1)
            if require_agreement:
                alike = z_t.argmax(-1) == z_s.argmax(-1)
        confidence, classes = p.max(-1)
        if score == "msp":
            value = confidence
        elif score == "entropy":
            value = 1 + torch.special.xlogy(p, p).sum(-1) / math.log(max(2, p.shape[-1]))
        else:
            value = energy
        if rule == "all":
            kept = alike
        elif rule == "threshold":
            kept = alike & (value >= threshold)
        else:
            # best first; those that are dropped come last, whatever their score
            order = value.sort(descending=True, stable=True).indices
            order = order[(~alike[order]).int().sort(stable=True).indices]
            if rule == "topk":
                order = order[: math.ceil(ratio * len(value))]
            else:
                order = order[alike[order]]
                order = order[best_per_class(value[order], classes[order], per_class)]
            kept = torch.zeros_like(alike).scatter(0, order, True) & alike
        return Selection(value, confidence, classes, kept)


def best_per_class(score: Tensor, classes: Tensor, per_class: int) -> Tensor:
    """The ``per_class`` items with the highest scores of each class, all of a class with fewer; no gradient.

    Args:
        score: ``[M]``; among equal scores the earlier item comes first.
        classes: int64 ``[M]``, 0 or above.
        per_class: how many of each class are kept at most.

    Returns:
        Which items are kept, bool ``[M]``.

    Example:
        >>> best_per_class(torch.tensor([0.1, 0.9, 0.5, 0.2]), torch.tensor([1, 1, 1, 0]), 2).tolist()
        [False, True, True, True]
    """
    order = score.detach().sort(descending=True, stable=True).indices
    named, place = classes[order].sort(stable=True)
    first = torch.searchsorted(named, named)  # where the class of each begins
    rank = torch.arange(len(named), device=named.device) - first
    return torch.zeros_like(named, dtype=torch.bool).scatter(0, order[place], rank < per_class)


def confidence_weights(confidence: Tensor, mean: Tensor | float | None = None) -> Tensor:
    """Weights of items from how sure one is of them, without gradient: as they are, or divided by a mean, so that theirs is 1.

    Args:
        confidence: above 0, any shape.
        mean: of the whole batch, where weights are to be relative to it.

    Example:
        >>> confidence_weights(torch.tensor([0.5, 1.0]), 0.75)
        tensor([0.6667, 1.3333])
    """
    w = confidence.detach()
    if mean is None:
        return w
    return w / (mean.detach() if isinstance(mean, Tensor) else mean)


__all__ = ["Score", "Selection", "SelectionRule", "best_per_class", "confidence_weights", "select", "student_share"]
