"""Cross-entropy to the data's labels, one value per item.

Labels are class ids ``[...]`` or soft labels ``[..., C]``; positions to ignore are a mask, never a magic number. Conventions
are those of `limbeck.functional.divergence`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as nll_of_logits
from torch.nn.functional import nll_loss

from ._common import NEG_INF, as_mask, check_classes, check_labels, expect, hide, in_range, keep, statistics_dtype

_NONE = -(2**31)
"""The class id that torch would pass over: masks are ``where``."""


def _at_labels(log_q: Tensor, labels: Tensor) -> Tensor:
    """``-log_q`` of each label, ``[..., C], [...] -> [...]``."""
    if log_q.ndim == 2:  # in one operation, which ignores no class id: masks are ``where``
        return nll_loss(log_q, labels, reduction="none", ignore_index=_NONE)
    return -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    where: Tensor | None = None,
) -> Tensor:
    """Cross-entropy to labels, one value per item.

    Args:
        logits: ``[..., C]``.
        labels: class ids ``[...]`` (integers), or soft labels ``[..., C]`` (floating).
        label_smoothing: share of the label spread evenly over all C classes.
        where: valid items ``[...]``; labels elsewhere may hold anything (-100, say).

    Raises:
        ShapeError, DataError: labels that fit neither form, or lie outside ``0 .. C-1``.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, -100]), where=torch.tensor([True, False]))
        tensor([1.3863, 0.0000])
    """
    check_classes(logits, 1, "nothing to choose from")
    plain = where is None and not label_smoothing and labels.dtype == torch.int64
    if plain and logits.ndim == 2 and labels.shape == logits.shape[:1] and logits.dtype == torch.float32:
        try:
            return nll_of_logits(logits, labels, reduction="none", ignore_index=_NONE)
        except IndexError:  # a label outside of the classes: below it is said which
            pass
    in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    dtype = statistics_dtype(logits)
    where = as_mask(where, logits.shape[:-1])
    labels = check_labels(labels, logits.shape, where)
    log_q = hide(logits.to(dtype), where).log_softmax(-1)
    if labels.is_floating_point():
        value = -expect(hide(labels.to(dtype), where), log_q)
    else:
        value = _at_labels(log_q, labels)
    if label_smoothing:
        live = log_q > NEG_INF  # a class ruled out by minus infinity takes no part in the smoothing either
        spread = -keep(log_q, live).sum(-1) / live.sum(-1)
        value = (1 - label_smoothing) * value + label_smoothing * spread
    return keep(value, where)
