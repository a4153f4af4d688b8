"""Two vocabularies compared: logits of one brought to classes that both have, and distances that need no classes at all.

A student and a teacher with different tokenizers answer over different tokens. `grouped_logits` makes both answers
distributions over the same K classes, after which every divergence of `limbeck.functional.divergence` applies; adding up
classes never makes two distributions look further apart than they are. `uld` compares the sorted probabilities and needs
no classes. `span_logits` turns the probability of a whole span of tokens, a product of conditional probabilities, into
logits of two classes: this span, or anything else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError
from ._common import as_mask, as_temperature, hide, keep, statistics_dtype


def uld(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """Universal logit distillation: the distance of two distributions after each is sorted (Boizard et al. 2024, eq. 7).

    ``sum_i |p_(i) - q_(i)|`` with probabilities in falling order, the shorter vocabulary filled up with zeros: the
    Wasserstein-1 distance where every move of mass costs the same. Zero exactly where one distribution is a permutation of
    the other. Between 0 and 2.

    Args:
        student: logits ``[..., V]``.
        teacher: logits ``[..., U]`` over any other vocabulary.
        temperature: divides both logits: a number, or one value an item ``[...]``.
        scale_t2: multiply by the square of the temperature.
        where: which items count ``[...]``; others give 0.

    Returns:
        Values ``[...]``.

    Example:
        >>> z = torch.randn(4, 9)
        >>> bool((uld(z, z[:, torch.randperm(9)]) < 1e-6).all())
        True
    """
    items = student.shape[:-1]
    if (
        student.ndim == 0
        or teacher.ndim == 0
        or teacher.shape[:-1] != items
        or not student.shape[-1] * teacher.shape[-1]
    ):
        raise ShapeError(
            "teacher", given=list(teacher.shape), expected=f"logits [..., U] of the student's items {list(items)}"
        )
    dtype = statistics_dtype(student, teacher)
    mask = as_mask(where, items)
    heat = as_temperature(temperature, items, dtype)
    divisor = heat.unsqueeze(-1) if isinstance(heat, Tensor) else heat
    p, q = (
        (hide(z, mask).to(dtype) / divisor).softmax(-1).sort(-1, descending=True).values for z in (teacher, student)
    )
    n = min(p.shape[-1], q.shape[-1])
    value = (p[..., :n] - q[..., :n]).abs().sum(-1) + p[..., n:].sum(-1) + q[..., n:].sum(-1)
    return keep(value * heat**2 if scale_t2 else value, mask)


def grouped_logits(
    logits: Tensor, groups: Tensor, classes: int, *, temperature: float | Tensor = 1.0, where: Tensor | None = None
) -> Tensor:
    """Logits of classes that are sets of tokens: ``softmax(result / T)`` adds up ``softmax(logits / T)`` over each set.

    Args:
        logits: ``[..., V]``.
        groups: the class of each token, int64 ``[V]``; -1 leaves a token out, and what is left is a distribution again.
        classes: how many classes K there are.
        temperature: the T that a divergence of the result will have: a number, or one value an item ``[...]``.
        where: which items count ``[...]``; others give zeros.

    Returns:
        Logits ``[..., K]``, minus infinity for a class without tokens. A class of one token has its logit.

    Example:
        >>> z = torch.tensor([[1.0, 2.0, 3.0]])
        >>> grouped_logits(z, torch.tensor([1, 0, 0]), 2).softmax(-1).allclose(
        ...     torch.stack([z.softmax(-1)[:, 1:].sum(-1), z.softmax(-1)[:, 0]], -1))
        True
    """
    if groups.ndim != 1 or logits.ndim == 0 or logits.shape[-1] != len(groups):
        raise ShapeError("groups", given=list(groups.shape), expected=f"[V] for logits {list(logits.shape)}")
    dtype = statistics_dtype(logits)
    items = logits.shape[:-1]
    mask = as_mask(where, items)
    heat = as_temperature(temperature, items, dtype)
    divisor = heat.unsqueeze(-1) if isinstance(heat, Tensor) else heat
    z = hide(logits, mask).to(dtype)
    # what is left out goes to one class more, which is cut off
    to = torch.where(groups < 0, classes, groups).to(z.device)
    cold = z / divisor
    top = cold.new_full((*items, classes + 1), -torch.inf).scatter_reduce(
        -1, to.expand(cold.shape), cold.detach(), "amax"
    )
    top = top[..., :classes]
    shift = torch.where(top.isfinite(), top, torch.zeros_like(top))
    full = torch.cat([shift, shift.new_zeros(*items, 1)], -1).index_select(-1, to)
    shares = (torch.where(to == classes, torch.full_like(cold, -torch.inf), cold) - full).exp()
    total = cold.new_zeros(*items, classes + 1).index_add(-1, to, shares)[..., :classes]
    known = total > 0
    logs = torch.where(known, total, torch.ones_like(total)).log() + shift
    found = torch.where(known, logs, torch.full_like(logs, -torch.inf)) * divisor
    return found if mask is None else torch.where(mask.unsqueeze(-1), found, torch.zeros_like(found))


def span_logits(log_probs: Tensor, spans: Tensor, count: int) -> Tensor:
    """The probability of each span of tokens, by the chain rule, as logits of two classes: this span, or anything else.

    Args:
        log_probs: of each token given all before it ``[N, T]``, at most 0.
        spans: which span of its row a token is in, int64 ``[N, T]``, from 0; -1 for none.
        count: how many spans S a row has at most.

    Returns:
        Logits ``[N, S, 2]`` (log-probabilities). A span without tokens is certain.

    Example:
        >>> both = span_logits(torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0, 0]]), 1)
        >>> both.exp().allclose(torch.tensor([[[0.125, 0.875]]]))
        True
    """
    if log_probs.ndim != 2 or spans.shape != log_probs.shape:
        raise ShapeError("spans", given=list(spans.shape), expected=f"one number a token {list(log_probs.shape)}")
    dtype = statistics_dtype(log_probs)
    inside = spans >= 0
    logs = torch.where(inside, log_probs.to(dtype), torch.zeros((), dtype=dtype, device=log_probs.device))
    whole = logs.new_zeros(len(logs), count).scatter_add(1, spans.clamp_min(0), logs)
    # 1 - p without cancellation, and with a finite gradient where p is 1 within rounding
    least = torch.finfo(dtype).tiny
    rest = (-torch.expm1(whole)).clamp_min(least).log()
    return torch.stack([whole, rest], -1)


__all__ = ["grouped_logits", "span_logits", "uld"]
