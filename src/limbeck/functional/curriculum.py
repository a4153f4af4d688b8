"""A temperature that is learned against the student: CTKD (Li et al. 2023, arXiv 2211.16231)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ._common import Value, choose, statistics_dtype
from .divergence import kl, soft_cross_entropy


class _ReverseGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, strength: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.strength = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None


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
    return start + span * torch.sigmoid(reverse_gradient(raw.to(statistics_dtype(raw)), strength))


def ctkd(
    student: Tensor,
    teacher: Tensor,
    raw: Tensor,
    *,
    strength: float = 1.0,
    start: float = 1.0,
    span: float = 20.0,
    value: Value = "kl",
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
    choose("value", value, Value)
    temperature = curriculum_temperature(raw, strength, start=start, span=span)
    loss = kl if value == "kl" else soft_cross_entropy
    return loss(student, teacher, temperature=temperature, where=where)
