"""Semantic revision at three granularities (arXiv 2407.10068): a sequence's worst token, a dense part of a distribution, spans.

The paper's equations were read through its public reviews; the clip network, the renormalisation, the squared norm and the
direction of the difference are our reading [reconstructed]. p is the teacher's distribution, q the student's, throughout.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, ShapeError
from ._common import as_mask, check_pair, choose, expect, extremes, hide, in_range, keep, statistics_dtype
from .divergence import jeffreys, jensen_shannon, kl, total_variation

Difference = Literal["forward_kl", "reverse_kl", "symmetric_kl", "jensen_shannon", "total_variation", "confidence"]
Level = Literal["value_quantile", "fraction_of_max"]
ClipMask = Literal["soft", "hard"]
SpanNorm = Literal["squared_l2", "l2", "l1"]
Relation = Literal["hadamard", "cosine", "outer"]


class Repair(NamedTuple):
    """Where a generated sequence goes wrong most, and what is kept of it.

    Attributes:
        difference: of the two predictions at each position ``[B, T]``, 0 where the mask is.
        position: int64 ``[B]``, where the teacher's token is put; -1 where no position disagrees.
        prefix: int64 ``[B, T]``, the student's tokens before it, the teacher's at it, the pad behind; the whole response
            where nothing disagrees.
        keep_length: int64 ``[B]``, tokens of the prefix; the student goes on behind them.
    """

    difference: Tensor
    position: Tensor
    prefix: Tensor
    keep_length: Tensor


@torch.no_grad()
def locate_and_repair(
    student: Tensor,
    teacher: Tensor,
    student_tokens: Tensor,
    teacher_tokens: Tensor,
    where: Tensor,
    *,
    difference: Difference | Tensor = "forward_kl",
    pad: int = -1,
) -> Repair:
    """The position at which student and teacher differ most among those where their tokens differ; no gradient.

    Ties go to the lowest position.

    Args:
        student: logits that score each response token ``[B, T, V]`` (already shifted).
        teacher: likewise, given the student's prefix ``[B, T, V]``.
        student_tokens: what the student wrote, int64 ``[B, T]``.
        teacher_tokens: what the teacher would write at each position after the student's prefix, int64 ``[B, T]``.
        where: response tokens ``[B, T]``; those of a row are a prefix of it.
        difference: ``forward_kl`` KL(p || q), ``reverse_kl``, ``symmetric_kl`` (their sum), ``jensen_shannon``,
            ``total_variation``, or ``confidence``: how much less the teacher believes in the student's token; or differences
            of your own ``[B, T]``.
        pad: token id put behind the prefix.

    Raises:
        ShapeError, TeacherMismatch: the tensors do not fit.
        DataError: response tokens of a row are no prefix of it (seen on the CPU).

    Example:
        >>> z_s, z_t = torch.tensor([[[0.0, 5.0], [0.0, 5.0]]]), torch.tensor([[[0.0, 5.0], [5.0, 0.0]]])
        >>> locate_and_repair(z_s, z_t, torch.tensor([[1, 1]]), torch.tensor([[1, 0]]), torch.ones(1, 2)).prefix
        tensor([[1, 0]])
    """
    own = difference if isinstance(difference, Tensor) else None
    if own is None:
        choose("difference", difference, Difference, "difference")
    check_pair(student, teacher)
    if student.ndim != 3:
        raise ShapeError("student", given=list(student.shape), expected="logits [B, T, V]")
    shape = student.shape[:2]
    for name, x in (("student_tokens", student_tokens), ("teacher_tokens", teacher_tokens), ("difference", own)):
        if x is not None and x.shape != shape:
            raise ShapeError(name, given=list(x.shape), expected=f"one value per token {list(shape)}")
    mask = as_mask(where, shape)
    assert mask is not None
    holes = extremes((mask[:, 1:] & ~mask[:, :-1]).long())
    if holes is not None and holes[1] > 0:
        raise DataError(
            "where", "response tokens of a row are not a prefix of it", remedy="move the responses to the left"
        )
    dtype = statistics_dtype(student, teacher)
    z_s, z_t = student.to(dtype), teacher.to(dtype)
    if own is not None:
        d = keep(own.to(dtype), mask)
    elif difference == "forward_kl":
        d = kl(z_s, z_t, where=mask)
    elif difference == "reverse_kl":
        d = kl(z_s, z_t, direction="reverse", where=mask)
    elif difference == "symmetric_kl":
        d = jeffreys(z_s, z_t, where=mask)
    elif difference == "jensen_shannon":
        d = jensen_shannon(z_s, z_t, where=mask)
    elif difference == "total_variation":
        d = total_variation(z_s, z_t, where=mask)
    else:
        at = torch.where(mask, student_tokens, torch.zeros_like(student_tokens)).unsqueeze(-1)
        q, p = (z.softmax(-1).gather(-1, at).squeeze(-1) for z in (z_s, z_t))
        d = keep(q - p, mask)
    wrong = mask & (student_tokens != teacher_tokens)
    some = wrong.any(1)
    j = torch.where(wrong, d, torch.full_like(d, -math.inf)).argmax(1) if shape[1] else wrong.sum(1)
    length = torch.where(some, j + 1, mask.sum(1))
    place = torch.arange(shape[1], device=d.device)
    tokens = torch.where(some[:, None] & (place == j[:, None]), teacher_tokens, student_tokens)
    prefix = torch.where(place < length[:, None], tokens, torch.full_like(tokens, pad))
    return Repair(d, torch.where(some, j, torch.full_like(j, -1)), prefix, length)


class Thresholds(NamedTuple):
    """Probabilities between which classes are kept, ``[...]`` each.

    Attributes:
        upper: at most this.
        lower: at least this.
    """

    upper: Tensor
    lower: Tensor


def clip_thresholds(p: Tensor, u: Tensor, l: Tensor, *, level: Level = "value_quantile", k: int = 64) -> Thresholds:  # noqa: E741
    """Thresholds on the teacher's probabilities at an upper and a lower level; differentiable in the levels.

    ``value_quantile``: the level-quantile of the ``k`` largest probabilities in ascending order, interpolated at
    ``level (k - 1)``. ``fraction_of_max``: the level times the largest probability. [reconstructed]

    Args:
        p: the teacher's probabilities ``[..., V]``; no gradient.
        u: upper level in [0, 1] ``[...]``.
        l: lower level in [0, 1] ``[...]``.
        level: ``value_quantile`` or ``fraction_of_max``.
        k: how many of the largest, cut to V.

    Raises:
        ConfigError: an unknown level, or ``k`` below 1.
        ShapeError: the levels do not fit.

    Example:
        >>> clip_thresholds(torch.tensor([0.1, 0.6, 0.3]), torch.tensor(1.0), torch.tensor(0.25)).lower
        tensor(0.2000)
    """
    choose("level", level, Level, "level")
    in_range("k", k, 1, math.inf)
    for name, x in (("u", u), ("l", l)):
        if x.shape != p.shape[:-1]:
            raise ShapeError(name, given=list(x.shape), expected=f"one level per token {list(p.shape[:-1])}")
    dtype = statistics_dtype(p, u, l)
    p = p.detach().to(dtype)
    if level == "fraction_of_max":
        top = p.amax(-1)
        return Thresholds(u.to(dtype) * top, l.to(dtype) * top)
    ordered = p.topk(min(int(k), p.shape[-1]), sorted=True).values.flip(-1)  # [..., k] ascending
    last = ordered.shape[-1] - 1

    def at(x: Tensor) -> Tensor:
        place = x.to(dtype) * last
        below = place.detach().floor().clamp(0, max(0, last - 1)).long()
        above = (below + 1).clamp_max(last)
        low, high = (ordered.gather(-1, i.unsqueeze(-1)).squeeze(-1) for i in (below, above))
        return low + (place - below) * (high - low)

    return Thresholds(at(u), at(l))


class Clipped(NamedTuple):
    """A divergence over a part of the classes.

    Attributes:
        values: of each token ``[...]``.
        mask: weight of every class ``[..., V]``.
        kept_mass: teacher's probability that the mask keeps ``[...]``.
    """

    values: Tensor
    mask: Tensor
    kept_mass: Tensor


def clip_mask(
    p: Tensor,
    lower: Tensor,
    upper: Tensor,
    *,
    mask: ClipMask = "soft",
    tau: float = 0.05,
    keep_target: bool = True,
    min_mass: float = 0.0,
) -> Tensor:
    """Weights of classes: high between the thresholds, 1 for the teacher's first class. [reconstructed]

    Args:
        p: the teacher's probabilities ``[..., V]``; no gradient.
        lower: ``[...]``.
        upper: ``[...]``.
        mask: ``soft``, ``sigmoid((p - lower) / tau) sigmoid((upper - p) / tau)``, or ``hard``, 1 within both ends.
        tau: width of the soft mask, above 0; not read by the hard one.
        keep_target: the most probable class has weight 1.
        min_mass: the smallest set of most probable classes whose mass reaches this has weight 1; 0 is no guard.

    Returns:
        ``[..., V]`` in [0, 1].

    Raises:
        ConfigError: a setting lies outside its range.

    Example:
        >>> clip_mask(torch.tensor([0.6, 0.3, 0.1]), torch.tensor(0.2), torch.tensor(0.5), mask="hard")
        tensor([1., 1., 0.])
    """
    choose("mask", mask, ClipMask, "mask")
    in_range("min_mass", min_mass, 0, 1)
    dtype = statistics_dtype(p, lower, upper)
    p = p.detach().to(dtype)
    low, high = lower.to(dtype).unsqueeze(-1), upper.to(dtype).unsqueeze(-1)
    if mask == "soft":
        in_range("tau", tau, 0, math.inf, open_low=True, open_high=True)
        m = torch.sigmoid((p - low) / tau) * torch.sigmoid((high - p) / tau)
    else:
        m = ((p >= low) & (p <= high)).to(dtype)
    whole = torch.zeros_like(p, dtype=torch.bool)
    if keep_target:
        whole = whole.scatter(-1, p.argmax(-1, keepdim=True), True)
    if min_mass > 0:
        whole = whole | _likeliest(p, min_mass)
    return torch.where(whole, torch.ones_like(m), m)


FEW = 128
"""How many of the likeliest classes are looked at before all of them are ordered."""


def _likeliest(p: Tensor, mass: float) -> Tensor:
    """The smallest set of most probable classes that reaches a mass, of equal ones the first; bool ``[..., V]``."""
    if p.shape[-1] > FEW and p.device.type == "cpu":  # elsewhere ordering costs less than to ask whether it is needed
        ordered = p.topk(FEW).values
        if bool((ordered.sum(-1) >= mass).all()):
            count = (_before(ordered) < mass).sum(-1, keepdim=True)  # how many are taken
            last = ordered.gather(-1, (count - 1).clamp_min(0))
            above, equal = p > last, p == last
            return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, _before(ordered) < mass)


def _before(ordered: Tensor) -> Tensor:
    """The mass of the classes that stand before each."""
    return torch.cat([torch.zeros_like(ordered[..., :1]), ordered.cumsum(-1)[..., :-1]], -1)


def clipped_kl(
    student: Tensor,
    teacher: Tensor,
    lower: Tensor,
    upper: Tensor,
    *,
    mask: ClipMask = "soft",
    tau: float = 0.05,
    renormalise: bool = True,
    keep_target: bool = True,
    min_mass: float = 0.0,
    where: Tensor | None = None,
) -> Clipped:
    """Forward KL over the classes that a mask keeps; gradients go to the student and to the thresholds.

    ``KL(p' || q')`` with ``p' = m p / sum m p`` and ``q' = m q / sum m q``, both weighted by m; ``renormalise=False`` is
    ``sum m p (log p - log q)``, the paper's equation 8 as it stands, which may be negative. [reconstructed: renormalising]

    Args:
        student: logits ``[..., V]``.
        teacher: logits ``[..., V]``; no gradient.
        lower: lower threshold on p ``[...]``.
        upper: upper threshold ``[...]``.
        mask, tau, keep_target, min_mass: see `clip_mask`.
        renormalise: divide both parts by their mass.
        where: valid tokens ``[...]``; the others have value 0.

    Raises:
        ConfigError: a setting lies outside its range.
        ShapeError, TeacherMismatch: the tensors do not fit.

    Example:
        >>> z_t, z_s = torch.tensor([0.6, 0.25, 0.1, 0.05]).log(), torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
        >>> round(clipped_kl(z_s, z_t, torch.tensor(0.2), torch.tensor(1.0), mask="hard").values.item(), 6)
        0.038431
    """
    check_pair(student, teacher)
    for name, x in (("lower", lower), ("upper", upper)):
        if x.shape != student.shape[:-1]:
            raise ShapeError(name, given=list(x.shape), expected=f"one threshold per token {list(student.shape[:-1])}")
    dtype = statistics_dtype(student, teacher, lower, upper)
    chosen = as_mask(where, student.shape[:-1])
    log_p = hide(teacher.detach().to(dtype), chosen).log_softmax(-1)
    log_q = hide(student.to(dtype), chosen).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    m = clip_mask(p, lower, upper, mask=mask, tau=tau, keep_target=keep_target, min_mass=min_mass)
    mp = m * p
    mass, own = mp.sum(-1), (m * q).sum(-1)
    values = expect(mp, log_p - log_q)
    if renormalise:
        some = mass > 0
        safe, theirs = (torch.where(some, x, torch.ones_like(x)) for x in (mass, own))
        values = torch.where(some, values / safe - safe.log() + theirs.log(), torch.zeros_like(values))
    return Clipped(keep(values, chosen), keep(m, None if chosen is None else chosen.unsqueeze(-1)), keep(mass, chosen))


def span_pairs(spans: Tensor, where: Tensor) -> Tensor:
    """Neighbours ``(i, i + 1)`` that lie in one span and in the response, ascending and without repeats.

    Args:
        spans: half-open token ranges, int64 ``[S, 2]``.
        where: response tokens ``[T]``.

    Returns:
        int64 ``[P, 2]``.

    Raises:
        ShapeError: the arguments do not fit.
        DataError: a span reaches beyond the sequence or ends before it begins.

    Example:
        >>> span_pairs(torch.tensor([[0, 3], [4, 5]]), torch.ones(5)).tolist()
        [[0, 1], [1, 2]]
    """
    if spans.ndim != 2 or spans.shape[-1] != 2:
        raise ShapeError("spans", given=list(spans.shape), expected="token ranges [S, 2]")
    if where.ndim != 1:
        raise ShapeError("where", given=list(where.shape), expected="a mask over the tokens [T]")
    T, mask = len(where), where.bool()
    start, end = spans[:, 0].long(), spans[:, 1].long()
    if len(spans):
        bad = (start < 0) | (end > T) | (end < start)
        if bool(bad.any()):
            raise DataError(
                "spans",
                f"{int(bad.sum())} of {len(spans)} spans do not lie in the sequence",
                given=spans[bad][:4].tolist(),
                expected=f"0 <= start <= end <= {T}",
            )
    edges = torch.zeros(T + 1, dtype=torch.long, device=where.device)
    long = (end - start > 1).long()  # a span of one token has no neighbours
    edges.index_add_(0, start, long)
    edges.index_add_(0, (end - 1).clamp_min(0), -long)
    joined = edges.cumsum(0)[:T] > 0  # i and i + 1 share a span
    i = (joined[:-1] & mask[:-1] & mask[1:]).nonzero().squeeze(-1) if T else start.new_zeros(0)
    return torch.stack([i, i + 1], 1)


def span_relation(
    student: Tensor,
    teacher: Tensor,
    pairs: Tensor,
    *,
    norm: SpanNorm = "squared_l2",
    relation: Relation = "hadamard",
) -> Tensor:
    """How differently two models relate the distributions of neighbouring tokens; one value per pair.

    ``hadamard``: distance of ``p_i * p_{i+1}`` and ``q_i * q_{i+1}``, summed over V, never averaged: products of two
    distributions are tiny. ``outer`` compares the tables ``p_i p_{i+1}^T``, by their (squared) L2 distance, without making
    them; ``cosine`` the cosines of the two neighbours. [reconstructed: squared or not; the other relations]

    Args:
        student: logits of tokens ``[N, V]``.
        teacher: logits ``[N, V]``; no gradient.
        pairs: rows that form a pair, int64 ``[P, 2]``.
        norm: ``squared_l2`` (smooth at 0), ``l2`` or ``l1``.
        relation: ``hadamard``, ``cosine`` or ``outer``.

    Returns:
        Values ``[P]``.

    Raises:
        ConfigError: unknown names; ``outer`` with ``l1``.
        ShapeError, TeacherMismatch: the tensors do not fit.
        DataError: a pair names a row that does not exist (seen on the CPU).

    Example:
        >>> p, q = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]]), torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
        >>> round(span_relation(q.log(), p.log(), torch.tensor([[0, 1]])).item(), 6)
        0.025
    """
    choose("norm", norm, SpanNorm, "norm")
    choose("relation", relation, Relation, "relation")
    check_pair(student, teacher)
    if student.ndim != 2:
        raise ShapeError("student", given=list(student.shape), expected="logits of tokens [N, V]")
    if pairs.ndim != 2 or pairs.shape[-1] != 2:
        raise ShapeError("pairs", given=list(pairs.shape), expected="rows that form pairs [P, 2]")
    if relation == "outer" and norm == "l1":
        raise ConfigError("norm", given=norm, expected="squared_l2 or l2 with relation=outer")
    seen = extremes(pairs)
    if seen is not None and (seen[0] < 0 or seen[1] >= len(student)):
        raise DataError(
            "pairs", "a pair names a row that does not exist", given=seen, expected=f"0..{len(student) - 1}"
        )
    dtype = statistics_dtype(student, teacher)
    i, j = pairs[:, 0], pairs[:, 1]
    q, p = student.to(dtype).softmax(-1), teacher.detach().to(dtype).softmax(-1)
    q1, q2, p1, p2 = q[i], q[j], p[i], p[j]
    if relation == "outer":
        square = p1.square().sum(-1) * p2.square().sum(-1) + q1.square().sum(-1) * q2.square().sum(-1)
        square = (square - 2 * (p1 * q1).sum(-1) * (p2 * q2).sum(-1)).clamp_min(0)
        return square if norm == "squared_l2" else _root(square)
    if relation == "cosine":
        gap = (_cosine(p1, p2) - _cosine(q1, q2)).unsqueeze(-1)
    else:
        gap = p1 * p2 - q1 * q2
    if norm == "l1":
        return gap.abs().sum(-1)
    square = gap.square().sum(-1)
    return square if norm == "squared_l2" else _root(square)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def _root(square: Tensor) -> Tensor:
    """The root, with slope 0 at 0."""
    some = square > 0
    return torch.where(some, torch.where(some, square, torch.ones_like(square)).sqrt(), torch.zeros_like(square))


__all__ = [
    "ClipMask",
    "Clipped",
    "Difference",
    "Level",
    "Relation",
    "Repair",
    "SpanNorm",
    "Thresholds",
    "clip_mask",
    "clip_thresholds",
    "clipped_kl",
    "locate_and_repair",
    "span_pairs",
    "span_relation",
]
