"""Divergences between a student's and a teacher's logits, one value per item.

Every function takes logits ``[..., C]`` and returns unreduced values ``[...]``; who calls divides by the number of
valid items. Shared conventions:

* **Directions are words.** ``forward`` is KL(teacher || student), ``reverse`` is KL(student || teacher); arguments
  always come as (student, teacher).
* **Sum over classes, zero exactly when the two agree** (cross-entropies say in their name that they are not zero).
* ``temperature`` divides both logits: a number, or a tensor with one value per item ``[...]``. ``scale_t2=True``
  multiplies the value by its square, so that the gradient does not fade as the temperature grows.
* ``where`` ``[...]`` marks valid items: the others give an exact 0 and no gradient, whatever their logits hold.
* Half precision logits are computed on, and returned as, float32; float64 stays float64.
* A class at minus infinity in both models takes no part, with finite gradients. In one model only, the value follows
  the mathematics: infinite where one model's mass meets the other's impossibility.
* Nothing is detached, except where a definition says so (TAID's and USKD's own predictions as targets): freezing the
  teacher is the caller's decision.

p is the teacher's distribution, q the student's, throughout.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from ..core.errors import ConfigError, ShapeError
from ._common import (
    NEG_INF,
    Direction,
    Variant,
    as_mask,
    as_temperature,
    check_classes,
    check_labels,
    check_pair,
    choose,
    cool,
    expect,
    extremes,
    hard_labels,
    hide,
    in_range,
    keep,
    not_negative,
    scaled,
    statistics_dtype,
)

Space = Literal["logits", "probabilities"]
Tail = Literal["drop", "renormalise", "uniform_rest", "lump_rest"]


class _Pair(NamedTuple):
    """Log-probabilities of both models, ready to compare."""

    log_q: Tensor
    log_p: Tensor
    temperature: float | Tensor
    where: Tensor | None
    finite: bool  # known to hold finite log-probabilities alone; always False where looking would cost too much

    def done(self, values: Tensor, scale_t2: bool) -> Tensor:
        return keep(scaled(values, self.temperature, scale_t2), self.where)


def _pair(student: Tensor, teacher: Tensor, temperature: float | Tensor, where: Tensor | None) -> _Pair:
    check_pair(student, teacher)
    dtype = statistics_dtype(student, teacher)
    items = student.shape[:-1]
    where = as_mask(where, items)
    temperature = as_temperature(temperature, items, dtype)
    s, t = hide(student.to(dtype), where), hide(teacher.to(dtype), where)
    # A row at minus infinity in both models is no distribution: both become uniform, so they agree.
    seen = extremes(s)
    if seen is None or not seen[0] > NEG_INF:  # none seen, nothing to mend; unseen (on a GPU), mended in any case
        dead = (s.detach().amax(-1, keepdim=True) == NEG_INF) & (t.detach().amax(-1, keepdim=True) == NEG_INF)
        s, t = s.masked_fill(dead, 0.0), t.masked_fill(dead, 0.0)
    log_q, log_p = cool(s, temperature).log_softmax(-1), cool(t, temperature).log_softmax(-1)
    finite = isinstance(temperature, float) and temperature >= 1e-3 and _small(seen) and _small(extremes(t))
    return _Pair(log_q, log_p, temperature, where, finite)


def _relative(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) from log-probabilities, summed as ``a (log a - log b) + b - a``.

    The added terms sum to zero for distributions, but make every summand non-negative and cancel the first order of the
    rounding errors: for distributions that nearly agree about ten times closer in float32, and never below zero.
    """
    a, b = log_a.exp(), log_b.exp()
    gap = torch.where(a > 0, log_a - log_b, torch.zeros_like(a))
    return not_negative((a * gap + (b - a)).sum(-1))


def _relative_finite(log_a: Tensor, log_b: Tensor) -> Tensor:
    """The same for two distributions whose log-probabilities are all finite: half the operations."""
    a, b = log_a.exp(), log_b.detach().exp()  # sums of probabilities are constant, so the added terms need no graph
    return not_negative(torch.addcmul(b - a.detach(), a, log_a - log_b).sum(-1))


def _small(seen: tuple[float, float] | None) -> bool:
    """Whether logits of these extremes cannot overflow in any difference."""
    return seen is not None and seen[0] > -1e30 and seen[1] < 1e30


def kl(
    student: Tensor,
    teacher: Tensor,
    *,
    direction: Direction = "forward",
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of two sets of logits.

    Args:
        student: logits ``[..., C]``.
        teacher: logits ``[..., C]``.
        direction: ``forward`` is KL(teacher || student), which covers the teacher's mass (Hinton et al. 2015);
            ``reverse`` is KL(student || teacher), which seeks its modes.
        temperature: divides both logits; a number or one per item.
        scale_t2: multiply by the temperature squared.
        where: valid items ``[...]``.

    Returns:
        Values ``[...]``, at least 0, and 0 exactly when the distributions are equal.

    Example:
        >>> z = torch.tensor([[0.0, 1.0, 2.0]])
        >>> kl(z, z + 7.0).item()
        0.0
        >>> round(kl(z, torch.tensor([[2.0, 1.0, 0.0]])).item(), 6)
        1.150421
    """
    choose("direction", direction, Direction, "direction")
    pair = _pair(student, teacher, temperature, where)
    ends = (pair.log_p, pair.log_q) if direction == "forward" else (pair.log_q, pair.log_p)
    return pair.done((_relative_finite if pair.finite else _relative)(*ends), scale_t2)


def jeffreys(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """Jeffreys' divergence: forward plus reverse KL (a sum, not a mean). Logits ``[..., C]`` to values ``[...]``.

    Example:
        >>> a, b = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
        >>> torch.equal(jeffreys(a, b), jeffreys(b, a))
        True
    """
    pair = _pair(student, teacher, temperature, where)
    return pair.done(_both_ways(pair.log_p, pair.log_q), scale_t2)


def _both_ways(log_a: Tensor, log_b: Tensor) -> Tensor:
    """``sum (a - b)(log a - log b)``: both directions of the KL in one sum whose terms are all non-negative."""
    a, b = log_a.exp(), log_b.exp()
    gap = torch.where((a > 0) | (b > 0), log_a - log_b, torch.zeros_like(a))
    return ((a - b) * gap).sum(-1)


def _towards(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """KL(a || weight a + (1 - weight) b) from log-probabilities: ``sum a (x - log(1 + x))``, x = (1 - weight)(b/a - 1).

    Exactly 0 where a equals b, and every summand non-negative.
    """
    a, b = log_a.exp(), log_b.exp()
    gap = torch.where(a > 0, log_b - log_a, torch.zeros_like(a)).clamp_max(88.0)  # beyond it, a is below 1e-38
    return not_negative(((1.0 - weight) * (b - a) - a * torch.log1p((1.0 - weight) * torch.expm1(gap))).sum(-1))


def jensen_shannon(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 0.5,
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """Generalised Jensen-Shannon divergence, ``beta`` being the teacher's share of the mixture.

    ``JSD = beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``: symmetric and at most ln 2 at
    0.5. As ``beta`` goes to 0, ``JSD / beta`` goes to the forward KL; as it goes to 1, ``JSD / (1 - beta)`` goes to
    the reverse KL. At 0 and 1 themselves the value is 0 everywhere, so they are refused (TRL's ``beta=0`` means the
    forward KL: write ``kl(...)``).

    Example:
        >>> a, b = torch.tensor([0.0, 90.0]), torch.tensor([90.0, 0.0])
        >>> round(jensen_shannon(a, b).item(), 6) == round(math.log(2), 6)
        True
    """
    _share("beta", beta, "at 0 and 1 it is zero everywhere; use kl(direction='forward' or 'reverse')")
    pair = _pair(student, teacher, temperature, where)
    teacher_part = _towards(pair.log_p, pair.log_q, beta)
    student_part = _towards(pair.log_q, pair.log_p, 1.0 - beta)
    return pair.done(beta * teacher_part + (1.0 - beta) * student_part, scale_t2)


def _share(argument: str, value: float, remedy: str) -> None:
    if not 0.0 < value < 1.0:
        raise ConfigError(argument, given=value, expected="a number strictly between 0 and 1", remedy=remedy)


def skew_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    direction: Direction = "forward",
    mix: float = 0.1,
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """Skew KL (DistiLLM, Ko et al. 2024, eq. 4): the second argument is pulled towards the first by ``mix``.

    ``forward`` is KL(p || mix p + (1 - mix) q), ``reverse`` is KL(q || mix q + (1 - mix) p). At most ``-log(mix)``, so
    one impossible class cannot explode it.

    Example:
        >>> a, b = torch.tensor([0.0, 300.0]), torch.tensor([300.0, 0.0])
        >>> round(skew_kl(a, b, mix=0.1).item(), 4)
        2.3026
    """
    choose("direction", direction, Direction, "direction")
    _share("mix", mix, "mix=0 is kl(...), mix=1 is zero everywhere")
    pair = _pair(student, teacher, temperature, where)
    first, second = (pair.log_p, pair.log_q) if direction == "forward" else (pair.log_q, pair.log_p)
    return pair.done(_towards(first, second, mix), scale_t2)


def total_variation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """Total variation distance ``0.5 sum_c |p_c - q_c|``, in [0, 1] at temperature 1.

    Example:
        >>> total_variation(torch.tensor([0.0, 99.0]), torch.tensor([99.0, 0.0])).item()
        1.0
    """
    pair = _pair(student, teacher, temperature, where)
    return pair.done(0.5 * (pair.log_p.exp() - pair.log_q.exp()).abs().sum(-1), scale_t2)


def adaptive_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    head_threshold: float = 0.5,
    variant: Variant = "paper",
    detach_weights: bool = False,
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """Adaptive KL (Wu et al. 2024, arXiv 2404.02657): forward KL where the head disagrees, reverse where the tail does.

    The head is the smallest set of the teacher's likeliest classes whose mass reaches ``head_threshold``. With
    ``g = sum |p - q|`` over head and tail, the value is ``g_head/g * KL(p||q) + g_tail/g * KL(q||p)``.

    Args:
        student: logits ``[..., C]``.
        teacher: logits ``[..., C]``.
        head_threshold: mass of the head, in (0, 1].
        variant: ``paper`` as above. ``released`` repeats TAID's code: the head is marked in ascending sorted order and
            laid unsorted over the classes, and the forward part is a cross-entropy instead of a KL, so its value is
            not zero for equal models.
        detach_weights: treat the two weights as constants (the released code lets gradients through them).
        temperature: divides both logits.
        scale_t2: multiply by the temperature squared.
        where: valid items ``[...]``.

    Example:
        >>> z = torch.tensor([0.3, -1.0, 2.0])
        >>> adaptive_kl(z, z).item()
        0.0
    """
    choose("variant", variant, Variant, "variant")
    in_range("head_threshold", head_threshold, 0.0, 1.0, open_low=True)
    pair = _pair(student, teacher, temperature, where)
    p, q = pair.log_p.exp(), pair.log_q.exp()
    ordered, order = p.detach().sort(dim=-1, descending=variant == "paper", stable=True)
    mass = ordered.cumsum(-1)
    if variant == "paper":
        head = torch.zeros_like(mass, dtype=torch.bool).scatter(-1, order, mass - ordered < head_threshold)
    else:
        head = mass >= head_threshold
    gap = (p - q).abs()
    in_head, in_tail = keep(gap, head).sum(-1), keep(gap, ~head).sum(-1)
    total = in_head + in_tail
    share = torch.where(
        total > 0, in_head / total.where(total > 0, torch.ones_like(total)), torch.full_like(total, 0.5)
    )
    if detach_weights:
        share = share.detach()
    forward = _relative(pair.log_p, pair.log_q) if variant == "paper" else -expect(p, pair.log_q)
    return pair.done(share * forward + (1 - share) * _relative(pair.log_q, pair.log_p), scale_t2)


def entropy(logits: Tensor, *, temperature: float | Tensor = 1.0, where: Tensor | None = None) -> Tensor:
    """Entropy in nats of ``softmax(logits / temperature)``: ``[..., C]`` to ``[...]``, between 0 and ln C.

    Example:
        >>> round(entropy(torch.zeros(1, 8)).item(), 5) == round(math.log(8), 5)
        True
    """
    pair = _pair(logits, logits, temperature, where)
    return keep(-expect(pair.log_q.exp(), pair.log_q), pair.where)


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """Cross-entropy to the teacher, ``-sum_c p_c log q_c``: the forward KL plus the teacher's entropy.

    Its gradient in the student is that of ``kl(direction="forward")``; its least value is the entropy, not 0.

    Example:
        >>> z = torch.zeros(1, 4)
        >>> round(soft_cross_entropy(z, z).item(), 6) == round(math.log(4), 6)
        True
    """
    pair = _pair(student, teacher, temperature, where)
    return pair.done(-expect(pair.log_p.exp(), pair.log_q), scale_t2)


def _at_labels(log_q: Tensor, labels: Tensor) -> Tensor:
    """``-log_q`` of each label, ``[..., C], [...] -> [...]``."""
    if log_q.ndim == 2:  # in one operation, which ignores no class id: masks are ``where``
        return nll_loss(log_q, labels, reduction="none", ignore_index=-(2**31))
    return -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    where: Tensor | None = None,
) -> Tensor:
    """Cross-entropy to labels, one value per item.

    Args:
        logits: ``[..., C]``.
        labels: class ids ``[...]`` (integers), or soft labels ``[..., C]`` (floating).
        label_smoothing: share of the label spread evenly over all C classes.
        where: valid items ``[...]``; labels elsewhere may hold anything (-100, say).

    Raises:
        ShapeError, DataError: labels that fit neither form, or lie outside ``0 .. C-1``.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, -100]), where=torch.tensor([True, False]))
        tensor([1.3863, 0.0000])
    """
    check_classes(logits, 1, "nothing to choose from")
    in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    dtype = statistics_dtype(logits)
    where = as_mask(where, logits.shape[:-1])
    labels = check_labels(labels, logits.shape, where)
    log_q = hide(logits.to(dtype), where).log_softmax(-1)
    if labels.is_floating_point():
        value = -expect(hide(labels.to(dtype), where), log_q)
    else:
        value = _at_labels(log_q, labels)
    if label_smoothing:
        live = log_q > NEG_INF  # a class ruled out by minus infinity takes no part in the smoothing either
        spread = -keep(log_q, live).sum(-1) / live.sum(-1)
        value = (1 - label_smoothing) * value + label_smoothing * spread
    return keep(value, where)


def masked_log_softmax(logits: Tensor, drop: Tensor, *, temperature: float | Tensor = 1.0) -> Tensor:
    """Log-softmax over the classes that are not dropped; dropped classes hold minus infinity and get no gradient.

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
    return cool(logits.to(dtype).masked_fill(drop, NEG_INF), temperature).log_softmax(-1)


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
    pair = _pair(student, teacher, temperature, where)
    drop = _drop_targets(student, labels, pair.where)
    _, rest_q, sure_q = _split(pair.log_q, drop)
    _, rest_p, sure_p = _split(pair.log_p, drop)
    return TargetNontarget(
        alpha * pair.done(_relative(sure_p, sure_q), scale_t2),
        beta * pair.done(_relative(rest_p, rest_q), scale_t2),
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
    target_weight: Literal["teacher", "one"] = "teacher",
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
    choose("target_weight", target_weight, Literal["teacher", "one"])
    check_classes(student, 2, "a target and a rest")
    plain = _pair(student, teacher, 1.0, where)
    warm = _pair(student, teacher, temperature, where)
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
    if not smooth:
        return values
    with torch.no_grad():
        own = hide(student, where).softmax(-1).gather(-1, ids)
        own = own * own if square else own
        if center is None:
            flat = own.reshape(-1, own.shape[-1])
            if where is None:
                center = flat.mean(0)
            else:
                valid = where.reshape(-1, 1).to(flat.dtype)
                center = (flat * valid).sum(0) / valid.sum().clamp_min(1.0)
        soft = own + values - center
        return torch.where(values == 0, torch.zeros_like(soft), soft)


def uskd_rank(
    final: Tensor,
    weak: Tensor | None,
    drop: Tensor,
    *,
    source: Literal["both", "weak", "final"] = "both",
    variant: Variant = "paper",
) -> Tensor:
    """Place of each class ``[..., C]`` in USKD's ranking: 0 for the likeliest, target classes included; no gradient.

    The score (eq. 12) adds the weak head's and the final head's probability, each divided by its non-target mass.
    ``variant="released"`` repeats the published code, which takes log-probabilities for the final head and adds 1e-6
    to the masses.

    Args:
        final: logits of the final head ``[..., C]``.
        weak: logits of the weak head ``[..., C]``; may be None when ``source="final"``.
        drop: mask of the target classes ``[..., C]``.
        source: whose scores to add.
        variant: see above.
    """
    choose("rank_source", source, Literal["both", "weak", "final"])
    choose("variant", variant, Variant, "variant")
    if weak is None and source != "final":
        raise ConfigError("weak", given=None, expected="the weak head's logits", remedy="or set rank_source='final'")
    with torch.no_grad():
        score = torch.zeros_like(final)
        if weak is not None and source != "final":
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
        return _places(score)


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
    nontarget: Literal["zipf", "uniform", "teacher"] = "zipf",
    rank_source: Literal["both", "weak", "final"] = "both",
    teacher: Tensor | None = None,
    label_smoothing: float = 0.1,
    center: Tensor | None = None,
    variant: Variant = "paper",
    where: Tensor | None = None,
) -> SelfKnowledge:
    """Universal self-knowledge distillation (Yang et al. 2023, arXiv 2303.13005, section 3.2): no teacher at all.

    ``target``: cross-entropy to the student's own smoothed target probability (`uskd_target`). ``nontarget``:
    cross-entropy, over the non-target classes, to Zipf weights 1/place (`uskd_rank`). ``weak``: label-smoothed
    cross-entropy of the weak head.

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
    choose("nontarget", nontarget, Literal["zipf", "uniform", "teacher"])
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

    if nontarget == "uniform":
        order = torch.zeros_like(z)
    elif nontarget == "teacher":
        if teacher is None:
            raise ConfigError("teacher", given=None, expected="the teacher's logits, since nontarget='teacher'")
        check_pair(student, teacher)
        order = _places(hide(teacher.detach().to(dtype), where)).to(dtype)
    else:
        order = uskd_rank(z, w, drop, source=rank_source, variant=variant).to(dtype)
    weight = (1.0 / (order + 1.0)).masked_fill(drop, 0.0)
    weight = weight / weight.sum(-1, keepdim=True)
    others = -expect(weight, masked_log_softmax(z, drop))

    if weak is None or w is None:
        weakly = torch.zeros_like(target)
    else:
        weakly = cross_entropy(w, labels, label_smoothing=label_smoothing, where=where)
    return SelfKnowledge(alpha * keep(target, where), beta * keep(others, where), mu * weakly)


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None  # type: ignore[attr-defined]


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    """The identity, whose gradient comes back times ``-strength`` (Ganin and Lempitsky 2015).

    Example:
        >>> x = torch.ones((), requires_grad=True)
        >>> reverse_gradient(x, 0.5).backward()
        >>> x.grad
        tensor(-0.5000)
    """
    return _ReverseGradient.apply(x, strength)


def curriculum_temperature(raw: Tensor, strength: float, *, start: float = 1.0, span: float = 20.0) -> Tensor:
    """CTKD's learned temperature (Li et al. 2023, arXiv 2211.16231): ``start + span * sigmoid(raw)``, made adversarial.

    ``raw`` is trained by the same loss as the student, but up its slope: its gradient returns times ``-strength``,
    which the paper raises from 0 to 1 by a cosine (`limbeck.functional.schedule.cosine`).

    Example:
        >>> curriculum_temperature(torch.zeros(()), 1.0).item()
        11.0
    """
    if start < 0 or span < 0 or start + span <= 0:
        raise ConfigError("start", given=(start, span), expected="start >= 0 and span >= 0, not both 0")
    return start + span * torch.sigmoid(reverse_gradient(raw, strength))


def ctkd(
    student: Tensor,
    teacher: Tensor,
    raw: Tensor,
    *,
    strength: float = 1.0,
    start: float = 1.0,
    span: float = 20.0,
    value: Literal["kl", "cross_entropy"] = "kl",
    where: Tensor | None = None,
) -> Tensor:
    """Curriculum temperature KD: T squared times the forward KL at the learned temperature of `curriculum_temperature`.

    Args:
        student: logits ``[..., C]``.
        teacher: logits ``[..., C]``.
        raw: the learned number before the sigmoid: a scalar, or one per item ``[...]``.
        strength: of the gradient reversal; 0 freezes the temperature, a negative one descends instead.
        start: least temperature.
        span: distance to the greatest.
        value: ``kl``, or ``cross_entropy`` as TAID's port of it computes; they differ by T squared times the teacher's
            entropy, which depends on T: so the student's gradient is the same and the temperature's is not.
        where: valid items ``[...]``.

    Example:
        >>> raw = torch.zeros((), requires_grad=True)
        >>> z = torch.tensor([[0.0, 1.0]])
        >>> ctkd(z, z, raw).item()
        0.0
    """
    choose("value", value, Literal["kl", "cross_entropy"])
    temperature = curriculum_temperature(raw, strength, start=start, span=span)
    loss = kl if value == "kl" else soft_cross_entropy
    return loss(student, teacher, temperature=temperature, where=where)


def taid_target(
    student: Tensor,
    teacher: Tensor,
    t: float | Tensor,
    *,
    space: Space = "logits",
    detach_student: bool = True,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """TAID's moving target (Shing et al. 2025, arXiv 2501.16937, eq. 3), as log-probabilities ``[..., C]``.

    ``log softmax((1 - t) z_student + t z_teacher)`` in logit space, or the log of ``(1 - t) q + t p``.

    Args:
        student: logits ``[..., C]``.
        teacher: logits ``[..., C]``.
        t: from 0 (the student itself) to 1 (the teacher); a number or one per item ``[...]``.
        space: where to interpolate; ``logits`` is the paper's.
        detach_student: the student is a constant inside the target; off only for the ablation.
        temperature: divides both logits.

    Classes that the student rules out with minus infinity are left out of the target at every t, and those the
    teacher rules out (in logit space) at every t > 0.

    Example:
        >>> z_s, z_t = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2.0, 1.0, 0.0])
        >>> taid_target(z_s, z_t, 0.5).exp()
        tensor([0.3333, 0.3333, 0.3333])
    """
    choose("space", space, Space)
    check_pair(student, teacher)
    dtype = statistics_dtype(student, teacher)
    if not isinstance(t, Tensor):
        in_range("t", t, 0.0, 1.0)
    temperature = as_temperature(temperature, student.shape[:-1], dtype)
    s = cool((student.detach() if detach_student else student).to(dtype), temperature)
    z = cool(teacher.to(dtype), temperature)
    share = torch.as_tensor(t, dtype=dtype, device=s.device)
    share = share.unsqueeze(-1) if share.ndim else share
    out = torch.isneginf(s)
    if space == "logits":
        gone = out | (torch.isneginf(z) & (share > 0))
        mixed = (1 - share) * s.masked_fill(gone, 0.0) + share * z.masked_fill(torch.isneginf(z) | gone, 0.0)
        return mixed.masked_fill(gone, NEG_INF).log_softmax(-1)
    log_q, log_p = s.log_softmax(-1), z.masked_fill(out, NEG_INF).log_softmax(-1)
    empty = out | ((share == 0) & torch.isneginf(log_q)) | ((share == 1) & torch.isneginf(log_p))
    a = (log_q + torch.log1p(-share)).masked_fill(empty, 0.0)
    b = (log_p + torch.log(share)).masked_fill(empty, 0.0)
    return torch.logaddexp(a, b).masked_fill(empty, NEG_INF)


def taid(
    student: Tensor,
    teacher: Tensor,
    t: float | Tensor,
    *,
    space: Space = "logits",
    value: Literal["cross_entropy", "kl"] = "cross_entropy",
    detach_student: bool = True,
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """TAID's loss: the student against the interpolated target of `taid_target`, one value per item.

    ``cross_entropy`` is what the published code computes and what its schedule of t has seen; ``kl`` is the paper's
    formula. The gradients are equal (with the student detached in the target); the values differ by the target's
    entropy, so t moves differently.

    Example:
        >>> z_s, z_t = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2.0, 1.0, 0.0])
        >>> [round(taid(z_s, z_t, t).item(), 6) for t in (0.0, 0.5, 1.0)]
        [0.832396, 1.407606, 1.982816]
    """
    choose("value", value, Literal["cross_entropy", "kl"])
    pair = _pair(student, teacher, temperature, where)
    s, z = hide(student, pair.where), hide(teacher, pair.where)
    log_target = taid_target(s, z, t, space=space, detach_student=detach_student, temperature=temperature)
    if value == "kl":
        return pair.done(_relative(log_target, pair.log_q), scale_t2)
    return pair.done(-expect(log_target.exp(), pair.log_q), scale_t2)


def binary_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    direction: Direction = "forward",
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """KL between independent yes/no labels with sigmoid outputs, summed over the labels: ``[..., C]`` to ``[...]``.

    Example:
        >>> binary_kl(torch.zeros(1, 5), torch.zeros(1, 5)).item()
        0.0
    """
    choose("direction", direction, Direction, "direction")
    check_pair(student, teacher)
    dtype = statistics_dtype(student, teacher)
    where = as_mask(where, student.shape[:-1])
    temperature = as_temperature(temperature, student.shape[:-1], dtype)
    s, t = (cool(hide(x.to(dtype), where), temperature) for x in (student, teacher))
    if direction == "reverse":
        s, t = t, s
    logsigmoid = torch.nn.functional.logsigmoid
    yes = _each_way(logsigmoid(t), logsigmoid(s))
    no = _each_way(logsigmoid(-t), logsigmoid(-s))
    return keep(scaled(not_negative((yes + no).sum(-1)), temperature, scale_t2), where)


def _each_way(log_a: Tensor, log_b: Tensor) -> Tensor:
    """``a (log a - log b)`` element by element, 0 where a is 0."""
    a = log_a.exp()
    return a * torch.where(a > 0, log_a - log_b, torch.zeros_like(a))


def squared_error(student: Tensor, teacher: Tensor, *, dims: int = 1, where: Tensor | None = None) -> Tensor:
    """Squared error summed over the last ``dims`` dimensions, one value per item: for regression outputs.

    Example:
        >>> squared_error(torch.zeros(2, 3), torch.ones(2, 3))
        tensor([3., 3.])
    """
    if student.shape != teacher.shape:
        raise ShapeError("teacher", given=list(teacher.shape), expected=f"the student's shape {list(student.shape)}")
    if not 0 <= dims <= student.ndim:
        raise ConfigError("dims", given=dims, expected=f"0 to {student.ndim} trailing dimensions to sum over")
    dtype = statistics_dtype(student, teacher)
    where = as_mask(where, student.shape[: student.ndim - dims])
    gap = student.to(dtype) - teacher.to(dtype)
    if where is not None:
        gap = torch.where(where.reshape(*where.shape, *[1] * dims), gap, torch.zeros_like(gap))
    value = gap * gap
    return value.flatten(student.ndim - dims).sum(-1) if dims else value


def sparse_kl(
    student: Tensor,
    indices: Tensor,
    values: Tensor,
    *,
    tail: Tail = "lump_rest",
    direction: Direction = "forward",
    temperature: float | Tensor = 1.0,
    log_norm: Tensor | None = None,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """KL to a teacher of whom only k classes are known, with an explicit rule for the rest.

    Args:
        student: logits ``[..., V]``.
        indices: the known classes ``[..., k]``, each at most once per item.
        values: the teacher's log-probabilities ``[..., k]`` of those classes, at temperature 1 and normalised over all
            V classes; or its logits, when ``log_norm`` is given.
        tail: what the other V - k classes are taken for.
            ``drop``: no part, and unnormalised KL over the known ones, ``sum p log(p/q) - p + q``;
            ``renormalise``: no part, and both models renormalised over the known ones;
            ``lump_rest``: one class that holds the remaining mass (a lower bound of the dense KL);
            ``uniform_rest``: the remaining mass spread evenly.
        direction: ``forward`` is KL(teacher || student).
        temperature: divides the student's logits and the teacher's values. Other than 1 it needs ``log_norm`` for
            ``drop`` and ``lump_rest``: the mass of an unknown tail at another temperature is unknown.
        log_norm: ``logsumexp(teacher logits / temperature)`` ``[...]``; ``values`` are then logits.
        scale_t2: multiply by the temperature squared.
        where: valid items ``[...]``.

    Returns:
        Values ``[...]``, at least 0 under every rule, and equal to the dense KL when k = V.

    Example:
        >>> z = torch.tensor([[3.0, 1.0, 0.0, -2.0]])
        >>> top = z.log_softmax(-1).topk(2)
        >>> sparse_kl(z, top.indices, top.values, tail="lump_rest").item() < 1e-6
        True
    """
    choose("tail", tail, Tail, "tail rule")
    choose("direction", direction, Direction, "direction")
    items, size = student.shape[:-1], student.shape[-1]
    if indices.shape != values.shape or indices.shape[:-1] != items or not 0 < indices.shape[-1] <= size:
        raise ShapeError(
            "indices",
            given=f"indices {list(indices.shape)}, values {list(values.shape)}",
            expected=f"both {[*items, 'k']} with 1 <= k <= {size}",
        )
    dtype = statistics_dtype(student, values)
    where = as_mask(where, items)
    temperature = as_temperature(temperature, items, dtype)
    unit = not isinstance(temperature, Tensor) and temperature == 1.0
    if not unit and log_norm is None and tail in ("drop", "lump_rest"):
        raise ConfigError(
            "tail",
            f"{tail!r} at a temperature other than 1 needs the teacher's log-normaliser at that temperature",
            remedy="pass log_norm with logits as values, or use tail='renormalise' or 'uniform_rest'",
        )
    ids = indices.long() if where is None else torch.where(where.unsqueeze(-1), indices.long(), 0)
    known = hide(values.to(dtype), where)
    log_q = cool(hide(student.to(dtype), where), temperature).log_softmax(-1)
    hit_q = log_q.gather(-1, ids)
    missing = size - ids.shape[-1]

    def finish(log_p: Tensor, log_s: Tensor) -> Tensor:
        value = _relative(log_p, log_s) if direction == "forward" else _relative(log_s, log_p)
        return keep(scaled(value, temperature, scale_t2), where)

    if tail == "renormalise" or not missing:
        return finish(cool(known, temperature).log_softmax(-1), hit_q.log_softmax(-1))
    rest_p = None
    if log_norm is not None:
        norm = log_norm.to(dtype) if where is None else torch.where(where, log_norm.to(dtype), known.logsumexp(-1))
        log_p = cool(known, temperature) - norm.unsqueeze(-1)
        rest_p = _log_rest(log_p)
    elif tail == "uniform_rest" and not unit:
        each = cool(_log_rest(known) - math.log(missing), temperature)
        norm = torch.logaddexp(cool(known, temperature).logsumexp(-1, keepdim=True), each + math.log(missing))
        log_p, rest_p = cool(known, temperature) - norm, each + math.log(missing) - norm
    else:
        log_p, rest_p = known, _log_rest(known)
    if tail == "drop":
        return finish(log_p, hit_q)
    listed = torch.zeros_like(log_q, dtype=torch.bool).scatter(-1, ids, True)
    if tail == "lump_rest":
        rest_q = log_q.masked_fill(listed, NEG_INF).logsumexp(-1, keepdim=True)
        return finish(torch.cat([log_p, rest_p], -1), torch.cat([hit_q, rest_q], -1))
    dense = (rest_p - math.log(missing)).expand_as(log_q).scatter(-1, ids, log_p)
    return finish(dense, log_q)


def _log_rest(log_p: Tensor) -> Tensor:
    """Log of the mass that the listed classes leave ``[..., 1]``; never below what the precision can tell from 0."""
    floor = torch.finfo(log_p.dtype).eps
    return (1.0 - log_p.exp().sum(-1, keepdim=True)).clamp_min(floor).log()
