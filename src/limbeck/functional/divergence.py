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

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import (
    Direction,
    Variant,
    as_mask,
    as_temperature,
    check_pair,
    choose,
    cool,
    expect,
    hide,
    in_range,
    keep,
    not_negative,
    scaled,
    statistics_dtype,
)
from ._pair import Pair, quick, relative


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
    if direction not in ("forward", "reverse"):
        choose("direction", direction, Direction, "direction")
    where = None if where is None else as_mask(where, student.shape[:-1])
    values = quick(student, teacher, temperature, where, direction == "forward")
    if values is not None:
        return keep(scaled(values, temperature, scale_t2), where)
    pair = Pair.of(student, teacher, temperature, where)
    ends = (pair.log_p, pair.log_q) if direction == "forward" else (pair.log_q, pair.log_p)
    return pair.done(relative(*ends), scale_t2)


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
    pair = Pair.of(student, teacher, temperature, where)
    return pair.done(_both_ways(pair.log_p, pair.log_q), scale_t2)


def half_jeffreys(
    student: Tensor,
    teacher: Tensor,
    *,
    eps: float = 0.0,
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """The mean of the forward and the reverse KL, which SSLD calls a JS divergence. Logits ``[..., C]`` to values ``[...]``.

    It is not the Jensen-Shannon divergence: that compares each distribution with the mixture of both.

    Source: Cui et al. 2021 (SSLD, arXiv 2103.05959).

    Args:
        student, teacher: logits ``[..., C]``.
        eps: added to both sides of each ratio of probabilities, as the released code does (1e-10, later 1e-12); 0 is exact.
        temperature, scale_t2, where: as in `kl`.

    Example:
        >>> a, b = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
        >>> torch.allclose(half_jeffreys(a, b), jeffreys(a, b) / 2)
        True
    """
    pair = Pair.of(student, teacher, temperature, where)
    if not eps:
        return pair.done(0.5 * _both_ways(pair.log_p, pair.log_q), scale_t2)
    p, q = pair.log_p.exp(), pair.log_q.exp()
    gap = ((p + eps) / (q + eps)).log()
    return pair.done(0.5 * ((p - q) * gap).sum(-1), scale_t2)


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
    pair = Pair.of(student, teacher, temperature, where)
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
    pair = Pair.of(student, teacher, temperature, where)
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
    pair = Pair.of(student, teacher, temperature, where)
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
    pair = Pair.of(student, teacher, temperature, where)
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
    forward = relative(pair.log_p, pair.log_q) if variant == "paper" else -expect(p, pair.log_q)
    return pair.done(share * forward + (1 - share) * relative(pair.log_q, pair.log_p), scale_t2)


def entropy(logits: Tensor, *, temperature: float | Tensor = 1.0, where: Tensor | None = None) -> Tensor:
    """Entropy in nats of ``softmax(logits / temperature)``: ``[..., C]`` to ``[...]``, between 0 and ln C.

    Example:
        >>> round(entropy(torch.zeros(1, 8)).item(), 5) == round(math.log(8), 5)
        True
    """
    pair = Pair.of(logits, logits, temperature, where)
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
    pair = Pair.of(student, teacher, temperature, where)
    return pair.done(-expect(pair.log_p.exp(), pair.log_q), scale_t2)


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
