"""A target that moves from the student to the teacher: TAID (Shing et al. 2025, arXiv 2501.16937).

Its schedule is in `limbeck.functional.schedule`, the other conventions in `limbeck.functional.divergence`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._common import (
    NEG_INF,
    Value,
    as_temperature,
    check_pair,
    choose,
    cool,
    expect,
    hide,
    in_range,
    statistics_dtype,
)
from ._pair import Pair, relative

Space = Literal["logits", "probabilities"]


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
    value: Value = "cross_entropy",
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
    choose("value", value, Value)
    pair = Pair.of(student, teacher, temperature, where)
    s, z = hide(student, pair.where), hide(teacher, pair.where)
    log_target = taid_target(s, z, t, space=space, detach_student=detach_student, temperature=temperature)
    if value == "kl":
        return pair.done(relative(log_target, pair.log_q), scale_t2)
    return pair.done(-expect(log_target.exp(), pair.log_q), scale_t2)
