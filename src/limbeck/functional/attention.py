"""Relations between the tokens of a sequence: attention maps of queries and keys, value relations, and how far two differ.

Vectors are ``[N, A, T, D]``: items, heads, tokens, and the width of a head, which student and teacher need not share: a
relation is ``[T, T]`` whatever it is made of. `divide` cuts vectors ``[N, T, A * D]`` into heads.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ShapeError
from ._common import as_mask, choose, statistics_dtype
from ._once import eager, refuse_second

Measure = Literal["kl", "js", "mse"]
"""How two rows of a relation are compared: KL(teacher || student), Jensen-Shannon, or the squared distance."""

CELLS = 1 << 22
"""Cells of relations that are held at a time."""


def divide(x: Tensor, heads: int) -> Tensor:
    """Vectors [N, T, D] cut into heads [N, A, T, D / A], each of neighbouring columns.

    Raises:
        ShapeError: the width is no multiple of the heads.

    Example:
        >>> divide(torch.zeros(2, 5, 12), 3).shape
        torch.Size([2, 3, 5, 4])
    """
    if x.ndim != 3 or x.shape[-1] % heads:
        raise ShapeError("x", given=list(x.shape), expected=f"vectors [N, T, D] with D a multiple of {heads} heads")
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def relation_logits(x: Tensor, y: Tensor) -> Tensor:
    """``x y^T / sqrt(D)`` [..., T, T] of vectors [..., T, D]: attention scores, where they are queries and keys.

    In their own dtype, as attention multiplies them; `relation` goes on in float32.
    """
    return x @ y.transpose(-1, -2) / math.sqrt(x.shape[-1])


def relation(x: Tensor, y: Tensor, *, where: Tensor | None = None, causal: bool = False) -> Tensor:
    """Rows of the softmax of `relation_logits`: [N, A, T, T]; of queries and keys the attention map, before dropout.

    Args:
        x, y: vectors [N, A, T, D].
        where: which tokens are real, [N, T]; columns of others are 0, and so are their rows.
        causal: a row sees no later columns.

    Example:
        >>> x = torch.eye(2).view(1, 1, 2, 2)
        >>> relation(x, x).sum(-1)
        tensor([[[1., 1.]]])
    """
    mask = as_mask(where, x.shape[:1] + x.shape[2:3])
    dtype = statistics_dtype(x, y)
    p = _log_rows(x.to(dtype), y.to(dtype), mask, causal).exp()
    return p if mask is None else p * mask[:, None, :, None] * mask[:, None, None, :]


def _log_rows(x: Tensor, y: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Log-softmax of relations; what is not seen has the least logit that there is, so that no row is empty."""
    z = relation_logits(x, y)
    hidden = None if mask is None else ~mask.unsqueeze(-2).unflatten(0, (-1, *([1] * (z.ndim - 3))))
    if causal:
        later = torch.ones(z.shape[-2:], dtype=torch.bool, device=z.device).triu(1)
        hidden = later if hidden is None else hidden | later
    return (z if hidden is None else z.masked_fill(hidden, torch.finfo(z.dtype).min)).log_softmax(-1)


def score_distance(student: Tensor, teacher: Tensor, *, masked: float = -100.0, where: Tensor | None = None) -> Tensor:
    """Mean squared distance of attention scores before the softmax, one value per item and head ``[N, A]``.

    Source: TinyBERT (Jiao et al. 2020, arXiv 1909.10351), eq. 7, as its released code has it, which ERNIE-Tiny's latent loss
    follows [reconstructed].

    Args:
        student: scores ``[N, A, T, T]``, those of padding at a large negative number.
        teacher: scores ``[N, A, T, T]``; no gradient goes there.
        masked: scores at or below count as 0 in both, so that padding does not outweigh everything else.
        where: the real tokens ``[N, T]``: the mean is then over pairs of these alone, and padding changes nothing; ``None``
            takes the mean over all pairs, as the code does.

    Raises:
        ShapeError: the two have other items, heads or tokens.

    Example:
        >>> s, t = torch.tensor([[[[1.0, -1e4], [1.0, -1e4]]]]), torch.tensor([[[[3.0, -1e4], [1.0, -1e4]]]])
        >>> score_distance(s, t)
        tensor([[1.]])
    """
    if student.ndim != 4 or student.shape != teacher.shape:
        raise ShapeError(
            "teacher",
            given=list(teacher.shape),
            expected=f"scores {list(student.shape)}, [N, A, T, T]",
            remedy="networks with other numbers of heads are compared by relations: relation_divergence",
        )
    dtype = statistics_dtype(student, teacher)
    x, y = student.to(dtype), teacher.detach().to(dtype)
    gap = x.masked_fill(x <= masked, 0) - y.masked_fill(y <= masked, 0)
    if where is None:
        return gap.square().mean((-1, -2))
    real = where.bool()
    pairs = (real.unsqueeze(-1) & real.unsqueeze(-2)).unsqueeze(1)  # [N, 1, T, T]
    found = gap.masked_fill(~pairs, 0).square().sum((-1, -2)) / pairs.sum((-1, -2)).clamp_min(1)
    return found


@eager("relation and a divergence of its rows")
def relation_divergence(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    *,
    where: Tensor | None = None,
    measure: Measure = "kl",
    causal: bool = False,
    cells: int = CELLS,
) -> Tensor:
    """How far the student's relation is from the teacher's: per item and head [N, A], the mean over the item's real tokens.

    Each row is a distribution over the item's real tokens. The gradient by the student's vectors is taken in closed form on
    the way forward, some heads at a time, so that no more than ``cells`` numbers of a relation exist at once.

    Args:
        student: (x, y), vectors [N, A, T, D]: queries and keys for attention, values twice for the value relation.
        teacher: likewise [N, A, T, D'], of any width; no gradient goes there.
        where: which tokens are real, [N, T]. Others are seen by nobody, see nothing, and do not count; an item without any
            has the value 0.
        measure: ``kl`` is KL(teacher || student), summed over a row; ``js`` the Jensen-Shannon divergence; ``mse`` the
            squared distance, summed over a row.
        causal: rows see no later tokens.
        cells: numbers of one relation at a time.

    Raises:
        ShapeError: the two have other items, heads or tokens.

    Source: Wang et al. 2020 (arXiv 2002.10957), eqs. 4 to 6; their loss is the mean of this over items and heads.

    Example:
        >>> q_t, k_t = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [1, 1]])
        >>> q_s, k_s = torch.tensor([[1.0], [0]]), torch.tensor([[1.0], [2]])
        >>> values = relation_divergence((q_s[None, None], k_s[None, None]), (q_t[None, None], k_t[None, None]))
        >>> round(values.item(), 5)
        0.08946
    """
    choose("measure", measure, Measure, "measure")
    x, y = student
    u, v = teacher
    for name, a, b in (("student", x, y), ("teacher", u, v)):
        if a.ndim != 4 or a.shape != b.shape:
            raise ShapeError(name, given=[list(a.shape), list(b.shape)], expected="two of vectors [N, A, T, D], alike")
    if x.shape[:3] != u.shape[:3]:
        raise ShapeError(
            "teacher",
            given=list(u.shape),
            expected=f"vectors {[*x.shape[:3], 'D']} of as many items, heads and tokens as the student's",
            remedy="cut both into as many heads: divide(x, heads)",
        )
    dtype = statistics_dtype(x, y, u, v)
    mask = as_mask(where, x.shape[:1] + x.shape[2:3])
    if mask is None:
        mask = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
    u, v = u.detach().to(dtype), v.detach().to(dtype)
    found: Tensor = _Divergence.apply(x.to(dtype), y.to(dtype), u, v, mask, measure, causal, max(1, cells))
    return found


class _Divergence(torch.autograd.Function):
    """Values [N, A] and, on the way, the gradients of their sum by x and y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, u: Tensor, v: Tensor, mask: Tensor, measure: Measure, causal: bool, cells: int
    ) -> Tensor:
        n, heads, length, width = x.shape
        wanted = x.requires_grad or y.requires_grad
        share = (mask / mask.sum(1, keepdim=True).clamp_min(1)).to(x.dtype)  # [N, T]: of each row in its item's mean
        share, mask = share.repeat_interleave(heads, 0), mask.repeat_interleave(heads, 0)  # [N * A, T]
        # what padding holds, NaN included, changes nothing
        x_, y_, u_, v_ = (w.flatten(0, 1).masked_fill(~mask.unsqueeze(-1), 0.0) for w in (x, y, u, v))
        values = x.new_empty(n * heads)
        by_x, by_y = (torch.empty_like(w) if wanted else None for w in (x_, y_))
        step = max(1, cells // max(1, length * length))
        for start in range(0, n * heads, step):
            at = slice(start, start + step)
            log_q = _log_rows(x_[at], y_[at], mask[at], causal)  # [n, T, T]
            log_p = _log_rows(u_[at], v_[at], mask[at], causal)
            rows, slope = _compare(log_q, log_p, measure, wanted)
            values[at] = (rows * share[at]).sum(-1)
            if by_x is not None and by_y is not None and slope is not None:
                slope = slope * (share[at] / math.sqrt(width)).unsqueeze(-1)
                torch.bmm(slope, y_[at], out=by_x[at])
                torch.bmm(slope.transpose(1, 2), x_[at], out=by_y[at])
        if by_x is not None and by_y is not None:
            ctx.save_for_backward(x, y, by_x.unflatten(0, (n, heads)), by_y.unflatten(0, (n, heads)))
        return values.view(n, heads)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        x, y, by_x, by_y = ctx.saved_tensors
        with torch.no_grad():
            made = [upstream[0][..., None, None] * slope for slope in (by_x, by_y)]
        instead = "relation and a divergence of its rows"
        return *refuse_second(made, [x, y, *upstream], "relation_divergence", instead), *[None] * 6


def _compare(log_q: Tensor, log_p: Tensor, measure: Measure, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Rows' values [n, T] of student q and teacher p [n, T, T], and their gradient by the student's logits."""
    q, p = log_q.exp(), log_p.exp()
    if measure == "kl":
        return (p * (log_p - log_q)).sum(-1).clamp_min(0.0), (q - p) if wanted else None
    if measure == "mse":
        gap = q - p
        by_q = 2 * gap
        rows = gap.square().sum(-1)
    else:
        log_m = torch.logaddexp(log_q, log_p) - math.log(2)
        by_q = 0.5 * (log_q - log_m)
        rows = ((q * by_q) + 0.5 * p * (log_p - log_m)).sum(-1).clamp_min(0.0)
    return rows, q * (by_q - (q * by_q).sum(-1, keepdim=True)) if wanted else None


__all__ = ["CELLS", "Measure", "divide", "relation", "relation_divergence", "relation_logits"]
