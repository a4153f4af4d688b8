"""Temperatures that follow from the logits themselves, so that there is none to tune."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import NEG_INF, as_mask, check_classes, hide, statistics_dtype


def divide_by_std(logits: Tensor, *, detach: bool = False, eps: float = 1e-6, where: Tensor | None = None) -> Tensor:
    """Logits divided by their own standard deviation over the classes: every item has a temperature of its own.

    The deviation is the unbiased one (C - 1), over the classes that are not ruled out by minus infinity. With C = 2 the
    result is always (0.707, -0.707) about its mean: nothing about the margin is left.

    Args:
        logits: ``[..., C]``, C >= 2.
        detach: let no gradient through the deviation.
        eps: least deviation; constant logits stay constant.
        where: valid items ``[...]``; the others become zeros.

    Returns:
        ``[..., C]``, at least float32.

    Source: Choi et al. 2023 (MIX-KD, arXiv 2211.03946); the released code does not detach.

    Example:
        >>> divide_by_std(torch.tensor([[0.0, 10.0, 20.0]]))
        tensor([[0., 1., 2.]])
    """
    check_classes(logits, 2, "one class has no deviation")
    where = as_mask(where, logits.shape[:-1])
    z = hide(logits.to(statistics_dtype(logits)), where)
    given = z.detach() if detach else z
    live = given > NEG_INF
    number = live.sum(-1, keepdim=True)
    kept = torch.where(live, given, torch.zeros_like(given))
    gap = torch.where(live, kept - kept.sum(-1, keepdim=True) / number.clamp_min(1), torch.zeros_like(given))
    variance = gap.square().sum(-1, keepdim=True) / (number - 1).clamp_min(1)
    return z * variance.clamp_min(eps * eps).rsqrt()


__all__ = ["divide_by_std"]
