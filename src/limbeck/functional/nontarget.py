"""The target class and the others, taken apart: DKD and NKD.

Conventions are those of `limbeck.functional.divergence`; p is the teacher's distribution, q the student's.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ._common import (
    NEG_INF,
    as_temperature,
    check_classes,
    check_labels,
    choose,
    cool,
    expect,
    hard_labels,
    keep,
    statistics_dtype,
)
from ._pair import Pair, relative

TargetWeight = Literal["teacher", "one"]


def masked_log_softmax(logits: Tensor, drop: Tensor, *, temperature: float | Tensor = 1.0) -> Tensor:
    """Log-softmax over the classes that are not dropped; dropped classes hold minus infinity and get no gradient.

    Where no class is left, all hold minus infinity.

    Args:
        logits: ``[..., C]``.
        drop: class ids ``[..., k]`` to leave out, or a boolean mask ``[..., C]`` (True is left out).
        temperature: divides the logits.

    Example:
        >>> masked_log_softmax(torch.zeros(1, 3), torch.tensor([[0]])).exp()
        tensor([[0.0000, 0.5000, 0.5000]])
    """
    dtype = statistics_dtype(logits)
    if drop.dtype != torch.bool:
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, drop, True)
    temperature = as_temperature(temperature, logits.shape[:-1], dtype)
    left = logits.to(dtype).masked_fill(drop, NEG_INF)
    gone = left.detach().amax(-1, keepdim=True) == NEG_INF  # no class is left: no distribution, and no NaN either
    return cool(left.masked_fill(gone, 0.0), temperature).log_softmax(-1).masked_fill(gone, NEG_INF)


class TargetNontarget(NamedTuple):
    """The two parts of a decoupled loss, each ``[...]``, weights and T squared multiplied in."""

    target: Tensor
    nontarget: Tensor


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float | Tensor = 4.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> TargetNontarget:
    """Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679, eq. 7).

    The forward KL splits into a binary KL (target class against the rest) and, weighted by the teacher's non-target
    mass, a KL among the non-target classes. DKD gives the two parts weights of their own.

    Args:
        student: logits ``[..., C]``, C >= 2.
        teacher: logits ``[..., C]``.
        labels: class ids ``[...]``; soft labels ``[..., C]`` count by their largest entry.
        alpha: weight of the target part.
        beta: weight of the non-target part.
        temperature: divides both logits, in both parts.
        scale_t2: multiply by the temperature squared.
        where: valid items ``[...]``.

    Returns:
        ``(target, nontarget)``, each ``[...]``; both 0 for equal models.

    Example:
        >>> z, y = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([2])
        >>> [part.item() for part in dkd(z, z, y)]
        [0.0, 0.0]
    """
    check_classes(student, 2, "a target and a rest")
    pair = Pair.of(student, teacher, temperature, where)
    drop = _drop_targets(student, labels, pair.where)
    _, rest_q, sure_q = _split(pair.log_q, drop)
    _, rest_p, sure_p = _split(pair.log_p, drop)
    return TargetNontarget(
        alpha * pair.done(relative(sure_p, sure_q), scale_t2),
        beta * pair.done(relative(rest_p, rest_q), scale_t2),
    )


def _drop_targets(student: Tensor, labels: Tensor, where: Tensor | None) -> Tensor:
    """Mask ``[..., C]`` of the target class."""
    ids = hard_labels(check_labels(labels, student.shape, where))
    return torch.zeros_like(student, dtype=torch.bool).scatter(-1, ids.unsqueeze(-1), True)


def _split(log_p: Tensor, drop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the target ``[..., 1]``, log-softmax of the rest ``[..., C]``, log-masses ``[..., 2]``."""
    target = keep(log_p, drop).sum(-1, keepdim=True)
    others = log_p.masked_fill(drop, NEG_INF)
    # A row whose non-target classes all vanished has no distribution among them: leave it uniform, with mass zero.
    gone = others.detach().amax(-1, keepdim=True) == NEG_INF
    filled = torch.where(gone & ~drop, torch.zeros_like(others), others)
    mass = torch.where(gone, torch.full_like(target, NEG_INF), filled.logsumexp(-1, keepdim=True))
    return target, filled.log_softmax(-1), torch.cat([target, mass], -1)


def nkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    gamma: float = 1.5,
    normalise: bool = True,
    target_weight: TargetWeight = "teacher",
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> TargetNontarget:
    """Normalised knowledge distillation (Yang et al. 2023, arXiv 2303.13005, eq. 5).

    ``target = -p_y log q_y`` at temperature 1, and ``nontarget = -gamma T^2 sum_{c != y} p^_c log q^_c`` with both
    distributions renormalised over the non-target classes at temperature T. Both are cross-entropies: the second's
    least value is the teacher's non-target entropy, reached when the non-target logits differ by a constant.

    Args:
        student: logits ``[..., C]``, C >= 2.
        teacher: logits ``[..., C]``.
        labels: class ids ``[...]``; soft labels ``[..., C]`` count by their largest entry.
        temperature: of the non-target part only.
        gamma: weight of the non-target part.
        normalise: renormalise over the non-target classes; off, plain softmax probabilities are used (the ablation).
        target_weight: weigh ``log q_y`` with the teacher's probability, or with one.
        scale_t2: multiply the non-target part by the temperature squared.
        where: valid items ``[...]``.

    Returns:
        ``(target, nontarget)``, each ``[...]``.

    Example:
        >>> z, y = torch.zeros(1, 3), torch.tensor([0])
        >>> target, nontarget = nkd(z, z, y, gamma=1.0)
        >>> round(target.item(), 5), round(nontarget.item(), 5)
        (0.3662, 0.69315)
    """
    choose("target_weight", target_weight, TargetWeight)
    check_classes(student, 2, "a target and a rest")
    plain = Pair.of(student, teacher, 1.0, where)
    warm = Pair.of(student, teacher, temperature, where)
    drop = _drop_targets(student, labels, plain.where)
    log_target_q = keep(plain.log_q, drop).sum(-1)
    weight = keep(plain.log_p, drop).sum(-1).exp() if target_weight == "teacher" else torch.ones_like(log_target_q)
    target = -torch.where(weight > 0, weight * log_target_q, torch.zeros_like(weight))
    if normalise:
        log_q, log_p = _split(warm.log_q, drop)[1], _split(warm.log_p, drop)[1]
    else:
        log_q, log_p = warm.log_q, warm.log_p.masked_fill(drop, NEG_INF)
    nontarget = -gamma * expect(log_p.exp(), log_q)
    return TargetNontarget(keep(target, plain.where), warm.done(nontarget, scale_t2))
