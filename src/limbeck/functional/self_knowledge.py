"""USKD: a network that is its own teacher (Yang et al. 2023, arXiv 2303.13005, section 3.2).

Conventions are those of `limbeck.functional.divergence`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import (
    NEG_INF,
    Variant,
    as_mask,
    check_classes,
    check_labels,
    check_pair,
    choose,
    expect,
    hide,
    keep,
    statistics_dtype,
)
from .labels import cross_entropy
from .nontarget import masked_log_softmax

Nontarget = Literal["zipf", "uniform", "teacher"]
RankSource = Literal["both", "weak", "final"]


class SelfKnowledge(NamedTuple):
    """USKD's three parts, each ``[...]``, weights multiplied in."""

    target: Tensor
    nontarget: Tensor
    weak: Tensor


def uskd_labels(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Target classes of each item and their values: ids ``[..., k]`` and values ``[..., k]``.

    Hard labels give k = 1 and the value 1. Soft labels ``[..., C]`` give their two largest entries, k = 2; further
    entries are not used.
    """
    if not labels.is_floating_point():
        ids = labels.long().unsqueeze(-1)
        return ids, torch.ones_like(ids, dtype=torch.float32)
    if classes < 3:
        raise ShapeError("labels", given=list(labels.shape), expected="soft labels over at least three classes")
    values, ids = labels.sort(dim=-1, descending=True)
    return ids[..., :2], values[..., :2]


def uskd_target(
    student: Tensor,
    ids: Tensor,
    values: Tensor,
    *,
    smooth: bool = True,
    square: bool = True,
    center: Tensor | None = None,
    where: Tensor | None = None,
) -> Tensor:
    """USKD's soft target label ``[..., k]`` (eq. 9): the student's own probability, centred, plus the label.

    ``P = q_t^2 + value - mean(q_t^2)``, 0 where the value is 0; never clamped, so it may leave [0, 1]; detached.

    Args:
        student: logits ``[..., C]``.
        ids: target classes ``[..., k]``.
        values: their label values ``[..., k]``.
        smooth: off returns the values themselves.
        square: square the probability (off: use it as it is).
        center: the mean ``[k]`` to subtract; left out, the mean over the valid items given here. The target of one
            item then depends on its batch: pass the global mean when the batch is split over processes.
        where: valid items ``[...]``.
    """
    valid = None if where is None else where.unsqueeze(-1)
    if not smooth:
        return keep(values, valid)
    with torch.no_grad():
        own = hide(student.to(statistics_dtype(student)), where).softmax(-1).gather(-1, ids)
        own = own * own if square else own
        if center is None:
            flat = own.reshape(-1, own.shape[-1])
            if where is None:
                center = flat.mean(0)
            else:
                share = where.reshape(-1, 1).to(flat.dtype)
                center = (flat * share).sum(0) / share.sum().clamp_min(1.0)
        soft = own + values - center
        return keep(torch.where(values == 0, torch.zeros_like(soft), soft), valid)


def uskd_rank(
    final: Tensor,
    weak: Tensor | None,
    drop: Tensor,
    *,
    source: RankSource = "both",
    variant: Variant = "paper",
) -> Tensor:
    """Place of each class ``[..., C]`` in USKD's ranking: 0 for the likeliest, target classes included; no gradient.

    The score (eq. 12) adds the weak head's and the final head's probability, each divided by its non-target mass.
    Classes that the final head rules out with minus infinity come last.

    ``variant="released"`` repeats the published code, which takes log-probabilities for the final head and adds 1e-6
    to the masses.

    Args:
        final: logits of the final head ``[..., C]``.
        weak: logits of the weak head ``[..., C]``; may be None when ``source="final"``.
        drop: mask of the target classes ``[..., C]``.
        source: whose scores to add.
        variant: see above.
    """
    choose("rank_source", source, RankSource)
    choose("variant", variant, Variant, "variant")
    if weak is None and source != "final":
        raise ConfigError("weak", given=None, expected="the weak head's logits", remedy="or set rank_source='final'")
    with torch.no_grad():
        final = final.to(statistics_dtype(final))
        score = torch.zeros_like(final)
        if weak is not None and source != "final":
            weak = weak.to(final.dtype)
            log_w = weak.log_softmax(-1)
            if variant == "paper":
                score = score + (log_w - _split_mass(log_w, drop)).exp()
            else:
                w = weak.softmax(-1)
                score = score + w / (1 - keep(w, drop).sum(-1, keepdim=True) + 1e-6)
        if source != "weak":
            log_s = final.log_softmax(-1)
            if variant == "paper":
                score = score + (log_s - _split_mass(log_s, drop)).exp()
            else:
                score = score + log_s / (1 - keep(log_s, drop).sum(-1, keepdim=True) + 1e-6)
        return _places(score.masked_fill(torch.isneginf(final), NEG_INF))


def _split_mass(log_p: Tensor, drop: Tensor) -> Tensor:
    """Log of the mass outside the dropped classes ``[..., 1]``."""
    return log_p.masked_fill(drop, NEG_INF).logsumexp(-1, keepdim=True)


def _places(score: Tensor) -> Tensor:
    """Position of each class when sorted by decreasing score."""
    order = score.sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter(-1, order, places)


def uskd(
    student: Tensor,
    labels: Tensor,
    weak: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 0.1,
    mu: float = 0.005,
    smooth_target: bool = True,
    square: bool = True,
    nontarget: Nontarget = "zipf",
    rank_source: RankSource = "both",
    teacher: Tensor | None = None,
    label_smoothing: float = 0.1,
    center: Tensor | None = None,
    variant: Variant = "paper",
    where: Tensor | None = None,
) -> SelfKnowledge:
    """Universal self-knowledge distillation (Yang et al. 2023, arXiv 2303.13005, section 3.2): no teacher at all.

    ``target``: cross-entropy to the student's own smoothed target probability (`uskd_target`). ``nontarget``:
    cross-entropy, over the non-target classes, to Zipf weights 1/place (`uskd_rank`). ``weak``: label-smoothed
    cross-entropy of the weak head. Non-target classes that the model rules out with minus infinity take no part; a
    target class that it rules out makes its item's value infinite.

    Args:
        student: logits ``[..., C]``, C >= 2 (3 for soft labels).
        labels: class ids ``[...]``, or soft labels ``[..., C]`` of which the two largest entries are used.
        weak: logits of the weak head ``[..., C]``; None for no weak head (then ``rank_source="final"``).
        alpha: weight of the target part.
        beta: weight of the non-target part.
        mu: weight of the weak part.
        smooth_target: soft target label, or (off) the label value itself.
        square: square the student's probability in the soft target label.
        nontarget: weights of the non-target classes: ``zipf`` by the model's own ranking, ``uniform``, or ``teacher``,
            Zipf weights ranked by the teacher's logits.
        rank_source: heads that make the ranking.
        teacher: logits ``[..., C]``, for ``nontarget="teacher"``.
        label_smoothing: of the weak head's labels.
        center: see `uskd_target`.
        variant: ``paper`` ranks by probabilities; ``released`` as the published code does (see `uskd_rank`), and drops
            the second class of a soft label from the non-targets even where its value is 0.
        where: valid items ``[...]``.

    Returns:
        ``(target, nontarget, weak)``, each ``[...]``.

    Example:
        >>> parts = uskd(torch.zeros(1, 3), torch.tensor([0]), torch.zeros(1, 3))
        >>> [round(part.item(), 4) for part in parts]
        [1.0986, 0.0693, 0.0055]
    """
    choose("nontarget", nontarget, Nontarget)
    choose("variant", variant, Variant, "variant")
    check_classes(student, 2, "a target and a rest")
    if weak is not None and weak.shape != student.shape:
        raise ShapeError("weak", given=list(weak.shape), expected=f"the student's shape {list(student.shape)}")
    dtype = statistics_dtype(student)
    where = as_mask(where, student.shape[:-1])
    labels = check_labels(labels, student.shape, where)
    z = hide(student.to(dtype), where)
    w = None if weak is None else hide(weak.to(dtype), where)
    soft = labels.is_floating_point()
    ids, values = uskd_labels(hide(labels, where) if soft else labels, z.shape[-1])
    values = values.to(dtype)
    drop = torch.zeros_like(z, dtype=torch.bool)
    drop = drop.scatter(-1, ids, torch.ones_like(values, dtype=torch.bool) if variant == "released" else values > 0)

    log_q = z.log_softmax(-1)
    label = uskd_target(z, ids, values, smooth=smooth_target, square=square, center=center, where=where)
    own = log_q.gather(-1, ids)
    target = -torch.where(label != 0, label * own, torch.zeros_like(own)).sum(-1)

    out = torch.isneginf(z)  # a class that the model rules out takes no part: neither a weight nor a place
    if nontarget == "uniform":
        order = torch.zeros_like(z)
    elif nontarget == "teacher":
        if teacher is None:
            raise ConfigError("teacher", given=None, expected="the teacher's logits, since nontarget='teacher'")
        check_pair(student, teacher)
        order = _places(hide(teacher.detach().to(dtype), where).masked_fill(out, NEG_INF)).to(dtype)
    else:
        order = uskd_rank(z, w, drop, source=rank_source, variant=variant).to(dtype)
    weight = (1.0 / (order + 1.0)).masked_fill(drop | out, 0.0)
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    others = -expect(weight, masked_log_softmax(z, drop))

    if weak is None or w is None:
        weakly = torch.zeros_like(target)
    else:
        weakly = cross_entropy(w, labels, label_smoothing=label_smoothing, where=where)
    return SelfKnowledge(alpha * keep(target, where), beta * keep(others, where), mu * weakly)
