"""The losses of `limbeck.functional.chunked` on one block of rows: values, and their gradients by a closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ._common import in_range
from .precision import widened

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


def _below(z: Tensor) -> Tensor:
    """Logits less the largest ``[n, V]``: exact near the top, however large they are."""
    return z - z.amax(1, keepdim=True)


class _Both:
    """Student and teacher on one block: probabilities ``q`` and ``p``, and what is made of their logarithms.

    An exponential costs as much as five other passes over a block, so there is one for each model: a log-probability is
    ``log q = z - max z + log max q``.
    """

    def __init__(self, z_s: Tensor, z_t: Tensor) -> None:
        self.z_s, self.z_t = z_s, z_t
        self.q, self.p = z_s.softmax(1), z_t.softmax(1)

    def gap(self) -> Tensor:
        """``log q - log p``, ``[n, V]``."""
        # in float64: of one number a row, so that the difference is as exact as the probabilities are
        shift = widened(self.q.amax(1)).log_().sub_(widened(self.p.amax(1)).log_()).to(self.q.dtype)
        return _below(self.z_s).sub_(_below(self.z_t)).add_(shift.unsqueeze(1))

    def log_q(self) -> Tensor:
        """``log q``, ``[n, V]``."""
        return _below(self.z_s).add_(self.q.amax(1, keepdim=True).log_())

    def log_mix(self, share: float) -> tuple[Tensor, Tensor]:
        """``share p + (1 - share) q`` and its log; where both underflow neither matters."""
        mixed = self.p.mul(share).add_(self.q, alpha=1.0 - share).clamp_(min=torch.finfo(self.q.dtype).tiny)
        return mixed, mixed.log()

    def turned(self) -> _Both:
        """Each in the other's place."""
        other = object.__new__(_Both)
        other.z_s, other.z_t, other.q, other.p = self.z_t, self.z_s, self.p, self.q
        return other


# Each closed form takes both models on a block and gives the values [n] and, when asked, the gradient of each value in the
# student's logits [n, V]; q and p are its own to overwrite. Minus infinities have been replaced by large finite numbers.


def _forward(x: _Both, grad: bool) -> Both:
    value = -_dot(x.p, x.gap())
    slope = x.q.sub_(x.p)
    # The slope sums to zero but for rounding; adding it makes the rounding error of the value second order.
    return value + slope.sum(1), slope if grad else None


def _soft_cross_entropy(x: _Both, grad: bool) -> Both:
    value = -_dot(x.p, x.log_q())
    return value, x.q.sub_(x.p) if grad else None


def _reverse(x: _Both, grad: bool) -> Both:
    q, gap = x.q, x.gap()
    value = _dot(q, gap)
    return value, gap.sub_(value.unsqueeze(1)).mul_(q) if grad else None


def _jeffreys(x: _Both, grad: bool) -> Both:
    q, gap = x.q, x.gap()
    slope = torch.sub(q, x.p, out=x.p)
    value = _dot(slope, gap)
    return value, _through_softmax(q, gap).add_(slope) if grad else None


def _jensen_shannon(x: _Both, grad: bool, beta: float) -> Both:
    mixed = x.log_mix(beta)[1]
    teacher = _dot(x.p, x.turned().log_q().sub_(mixed))
    q, gap = x.q, x.log_q().sub_(mixed)
    student = _dot(q, gap)
    value = beta * teacher + (1.0 - beta) * student
    return value, gap.sub_(student.unsqueeze(1)).mul_(q).mul_(1.0 - beta) if grad else None


def _skew_forward(x: _Both, grad: bool, mix: float) -> Both:
    mixed, log_mixed = x.log_mix(mix)
    value = _dot(x.p, x.turned().log_q().sub_(log_mixed))
    return value, _through_softmax(x.q, torch.div(x.p, mixed, out=mixed).mul_(mix - 1.0)) if grad else None


def _skew_reverse(x: _Both, grad: bool, mix: float) -> Both:
    q, (mixed, log_mixed) = x.q, x.turned().log_mix(mix)
    gap = x.log_q().sub_(log_mixed)
    value = _dot(q, gap)
    return value, _through_softmax(q, gap.sub_(torch.div(q, mixed, out=mixed), alpha=mix)) if grad else None


def _total_variation(x: _Both, grad: bool) -> Both:
    gap = torch.sub(x.q, x.p, out=x.p)
    value = 0.5 * gap.abs().sum(1)
    return value, _through_softmax(x.q, gap.sign_().mul_(0.5)) if grad else None


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
            q = z_s.softmax(1)
            top = z_s.amax(1, keepdim=True)
            hard = (top - z_s.gather(1, labels.unsqueeze(1)) - q.amax(1, keepdim=True).log_()).squeeze(1)
            if grad and self.hard:
                slope = q
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
        both = _Both(z_s, z_t)
        if kind == "soft_cross_entropy":
            return _soft_cross_entropy(both, grad)
        if kind in _SHARED:
            value, slope = _SHARED[kind](both, grad, self.share)
        else:
            value, slope = _PLAIN[kind](both, grad)
        return value.clamp_(min=0.0), slope


_PLAIN: dict[str, Callable[[_Both, bool], Both]] = {
    "forward": _forward,
    "reverse": _reverse,
    "jeffreys": _jeffreys,
    "total_variation": _total_variation,
}
_SHARED: dict[str, Callable[[_Both, bool, float], Both]] = {
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
