"""Both models' log-probabilities, ready to compare, and the relative entropy of two such rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._common import (
    NEG_INF,
    as_mask,
    as_temperature,
    check_pair,
    cool,
    extremes,
    hide,
    keep,
    not_negative,
    scaled,
    statistics_dtype,
)


class Pair(NamedTuple):
    """Log-probabilities of both models, ready to compare."""

    log_q: Tensor
    log_p: Tensor
    temperature: float | Tensor
    where: Tensor | None

    @classmethod
    def of(cls, student: Tensor, teacher: Tensor, temperature: float | Tensor, where: Tensor | None) -> Pair:
        """Two sets of logits ``[..., C]``, checked, cooled and normalised; what ``where`` excludes is hidden first."""
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
        return cls(log_q, log_p, temperature, where)

    def done(self, values: Tensor, scale_t2: bool) -> Tensor:
        """Values times T squared where that is wanted, 0 for what does not count."""
        return keep(scaled(values, self.temperature, scale_t2), self.where)


def relative(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) from log-probabilities, summed as ``a (log a - log b) + b - a``.

    The added terms sum to zero for distributions, but make every summand non-negative and cancel the first order of the
    rounding errors: for distributions that nearly agree about ten times closer in float32, and never below zero.
    """
    a, b = log_a.exp(), log_b.exp()
    gap = torch.where(a > 0, log_a - log_b, torch.zeros_like(a))
    return not_negative((a * gap + (b - a)).sum(-1))


def relative_finite(log_a: Tensor, log_b: Tensor, dim: int = -1) -> Tensor:
    """The same for two distributions whose log-probabilities are all finite: half the operations. Rounding may give -1e-8."""
    a, b = log_a.exp(), log_b.detach().exp()  # sums of probabilities are constant, so the added terms need no graph
    return torch.addcmul(b - a.detach(), a, log_a - log_b).sum(dim)


def quick(
    student: Tensor, teacher: Tensor, temperature: float | Tensor, where: Tensor | None, forward: bool
) -> Tensor | None:
    """The KL divergence on a CPU, by the fewest operations; ``None`` where it takes more care. The temperature's square and
    the mask's zeros are not in it.

    A small network's step is no longer than a few dozen operations. Whatever needs care (minus infinity, an overflow,
    NaN) shows in the values; elsewhere than on a CPU looking at them would wait for the device.
    """
    if (
        isinstance(temperature, Tensor)
        or student.device.type != "cpu"
        or student.shape != teacher.shape
        or not student.ndim
        or not student.shape[-1]
        or not 0 < temperature < float("inf")
        or torch.compiler.is_compiling()
    ):
        return None
    if student.dtype != torch.float32 or teacher.dtype != torch.float32:
        dtype = statistics_dtype(student, teacher)
        student, teacher = student.to(dtype), teacher.to(dtype)
    if where is not None:
        student, teacher = hide(student, where), hide(teacher, where)
    if temperature != 1.0:
        student, teacher = student / temperature, teacher / temperature
    dim = -1
    if student.ndim == 4 and not student.is_contiguous() and student.movedim(-1, 1).is_contiguous():
        student, teacher, dim = student.movedim(-1, 1), teacher.movedim(-1, 1), 1  # as a network's map lies in memory
    log_q, log_p = student.log_softmax(dim), teacher.log_softmax(dim)
    value = relative_finite(log_p, log_q, dim) if forward else relative_finite(log_q, log_p, dim)
    plain = value.detach().clamp_min_(0.0)  # in place: rounding may have pushed it below zero
    try:
        return value if math.isfinite(plain.sum().item()) else None
    except RuntimeError:  # inside vmap a value has no number
        return None
