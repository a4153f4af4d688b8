"""The losses of `limbeck.functional.chunked` on one block of rows: values, and their gradients by a closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ._common import in_range

Kind = Literal[
    "forward",
    "reverse",
    "jeffreys",
    "jensen_shannon",
    "skew_forward",
    "skew_reverse",
    "soft_cross_entropy",
    "total_variation",
    "taid",
    "cross_entropy",
]
Both = tuple[Tensor, Tensor | None]

HUGE = 1e15  # a value beyond this comes from mass on a class at minus infinity


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row inner product ``[n, V], [n, V] -> [n]``."""
    if a.device.type == "cpu":
        return torch.linalg.vecdot(a, b)  # bmm is several times slower there, and rounds worse; a block fits the cache
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).reshape(len(a))  # without a product of size [n, V]


def _through_softmax(q: Tensor, g: Tensor) -> Tensor:
    """Gradient in the logits from the gradient ``g`` in the probabilities: ``q (g - sum q g)``; overwrites ``g``."""
    return g.sub_(_dot(q, g).unsqueeze(1)).mul_(q)


# Each closed form takes log q and log p [n, V] (its own to overwrite) and gives the values [n] and, when asked, the
# gradient of each value in the student's logits [n, V]. Minus infinities have been replaced by large finite numbers.


def _forward(log_q: Tensor, log_p: Tensor, grad: bool) -> Both:
    p = log_p.exp()
    gap = log_p.sub_(log_q)
    slope = log_q.exp_().sub_(p)
    # The slope sums to zero but for rounding; adding it makes the rounding error of the value second order.
    return _dot(p, gap) + slope.sum(1), slope if grad else None


def _soft_cross_entropy(log_q: Tensor, p: Tensor, grad: bool) -> Both:
    # takes p itself: its logarithm is not needed
    value = -_dot(p, log_q)
    return value, log_q.exp_().sub_(p) if grad else None


def _reverse(log_q: Tensor, log_p: Tensor, grad: bool) -> Both:
    q = log_q.exp()
    gap = log_q.sub_(log_p)
    value = _dot(q, gap)
    return value, gap.sub_(value.unsqueeze(1)).mul_(q) if grad else None


def _jeffreys(log_q: Tensor, log_p: Tensor, grad: bool) -> Both:
    q, p = log_q.exp(), log_p.exp()
    gap = log_q.sub_(log_p)
    slope = q - p
    value = _dot(slope, gap)
    return value, _through_softmax(q, gap).add_(slope) if grad else None


def _log_mix(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """``log(weight a + (1 - weight) b)`` from probabilities; where both underflow it does not matter."""
    return a.mul(weight).add_(b, alpha=1.0 - weight).clamp_(min=torch.finfo(a.dtype).tiny).log_()


def _jensen_shannon(log_q: Tensor, log_p: Tensor, grad: bool, beta: float) -> Both:
    q, p = log_q.exp(), log_p.exp()
    mixed = _log_mix(p, q, beta)
    teacher = _dot(p, log_p.sub_(mixed))
    gap = log_q.sub_(mixed)
    student = _dot(q, gap)
    value = beta * teacher + (1.0 - beta) * student
    return value, gap.sub_(student.unsqueeze(1)).mul_(q).mul_(1.0 - beta) if grad else None


def _skew_forward(log_q: Tensor, log_p: Tensor, grad: bool, mix: float) -> Both:
    q, p = log_q.exp(), log_p.exp()
    mixed = _log_mix(p, q, mix)
    value = _dot(p, log_p - mixed)
    if not grad:
        return value, None
    return value, _through_softmax(q, log_p.sub_(mixed).exp_().mul_(mix - 1.0))


def _skew_reverse(log_q: Tensor, log_p: Tensor, grad: bool, mix: float) -> Both:
    q, p = log_q.exp(), log_p.exp_()
    gap = log_q.sub_(_log_mix(q, p, mix))
    value = _dot(q, gap)
    if not grad:
        return value, None
    return value, _through_softmax(q, gap.sub_(gap.exp(), alpha=mix))


def _total_variation(log_q: Tensor, log_p: Tensor, grad: bool) -> Both:
    q = log_q.exp_()
    gap = torch.sub(q, log_p.exp_(), out=log_p)
    value = 0.5 * gap.abs().sum(1)
    return value, _through_softmax(q, gap.sign_().mul_(0.5)) if grad else None


@dataclass(frozen=True)
class Loss:
    """What is computed on one block of rows."""

    kind: str
    share: float  # beta of jensen_shannon, mix of the skews, t of taid
    taid_kl: bool
    scale_t2: bool
    soft: float
    hard: float

    def block(
        self,
        z_s: Tensor,
        z_t: Tensor | None,
        labels: Tensor | None,
        temperature: float | Tensor,
        floor: bool,
        grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Soft values ``[n]``, hard values ``[n]``, gradient of their weighted sum in the student's logits."""
        if floor and z_s.device.type == "cpu":
            # The floor takes a third of the time and matters only beside an infinity, which shows in the values.
            found = self._block(z_s, z_t, labels, temperature, False, grad)
            if bool(torch.isfinite(found[0] + found[1]).all()):
                return found
        return self._block(z_s, z_t, labels, temperature, floor, grad)

    def _block(
        self,
        z_s: Tensor,
        z_t: Tensor | None,
        labels: Tensor | None,
        temperature: float | Tensor,
        floor: bool,
        grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        least = -0.1 * torch.finfo(z_s.dtype).max
        t = temperature.unsqueeze(1) if isinstance(temperature, Tensor) else temperature
        plain = not isinstance(t, Tensor) and t == 1.0
        if floor:
            z_s = z_s.clamp(min=least)
        hard, slope = z_s.new_zeros(len(z_s)), None
        if labels is not None:
            log_q = z_s.log_softmax(1)
            hard = -log_q.gather(1, labels.unsqueeze(1)).squeeze(1)
            if grad and self.hard:
                slope = log_q.exp_()
                slope.scatter_add_(1, labels.unsqueeze(1), slope.new_full((len(slope), 1), -1.0))
                slope.mul_(self.hard)
        if z_t is None:
            return z_s.new_zeros(len(z_s)), hard, slope
        if floor:
            z_t = z_t.clamp(min=least)
        if not plain:
            z_s, z_t = z_s / t, z_t / t
            if floor:
                z_s, z_t = z_s.clamp_(min=least), z_t.clamp_(min=least)
        value, soft_slope = self._closed_form(z_s, z_t, least if floor else None, grad)
        if self.scale_t2 and not plain:
            value = value * temperature * temperature
        if grad and soft_slope is not None:
            if not plain:
                soft_slope.mul_(t if self.scale_t2 else 1.0 / t)
            if self.soft != 1.0:
                soft_slope.mul_(self.soft)
            slope = soft_slope if slope is None else slope.add_(soft_slope)
        if floor:
            value = torch.where(value > HUGE, torch.full_like(value, float("inf")), value)
            hard = torch.where(hard > HUGE, torch.full_like(hard, float("inf")), hard)
        return value, hard, slope

    def _closed_form(self, z_s: Tensor, z_t: Tensor, least: float | None, grad: bool) -> Both:
        if self.kind == "taid":
            mixed = torch.lerp(z_s, z_t, self.share)
            if least is not None:
                gone = (z_s <= 0.5 * least) | ((z_t <= 0.5 * least) & (self.share > 0))
                mixed.masked_fill_(gone, least)
            z_t = mixed
        kind = self.kind
        if kind == "taid":
            kind = "forward" if self.taid_kl else "soft_cross_entropy"
        if kind == "soft_cross_entropy":
            return _soft_cross_entropy(z_s.log_softmax(1), z_t.softmax(1), grad)
        log_q, log_p = z_s.log_softmax(1), z_t.log_softmax(1)
        if kind in _SHARED:
            value, slope = _SHARED[kind](log_q, log_p, grad, self.share)
        else:
            value, slope = _PLAIN[kind](log_q, log_p, grad)
        return value.clamp_(min=0.0), slope


_PLAIN: dict[str, Callable[[Tensor, Tensor, bool], Both]] = {
    "forward": _forward,
    "reverse": _reverse,
    "jeffreys": _jeffreys,
    "total_variation": _total_variation,
}
_SHARED: dict[str, Callable[[Tensor, Tensor, bool, float], Both]] = {
    "jensen_shannon": _jensen_shannon,
    "skew_forward": _skew_forward,
    "skew_reverse": _skew_reverse,
}


def make_loss(
    kind: str, beta: float, mix: float, t: float, value: str, scale_t2: bool, soft: float, hard: float
) -> Loss:
    if kind == "cross_entropy":
        soft, hard = 0.0, hard or 1.0
    share = 0.0
    if kind in ("jensen_shannon", "skew_forward", "skew_reverse"):
        name, share = ("beta", beta) if kind == "jensen_shannon" else ("mix", mix)
        in_range(name, share, 0.0, 1.0, open_low=True, open_high=True)
    elif kind == "taid":
        in_range("t", t, 0.0, 1.0)
        share = float(t)
    return Loss(kind, share, value == "kl", scale_t2, soft, hard)
