"""Regions of images named by embeddings: an open vocabulary's logits, what is matched, how two heads are joined."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import ShapeError
from limbeck.functional.labels import cross_entropy

Masking = Literal["zero", "remove", "none"]
"""What becomes of the logits of classes that are not trained: 0 (a fixed 1 in the denominator), left out, or nothing."""


def unit(x: Tensor, eps: float = 1e-8) -> Tensor:
    """x / |x| over the last dimension; 0 where |x| is at most ``eps``.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norm = x.square().sum(-1, keepdim=True)
    there = norm > eps * eps
    return torch.where(there, x * torch.where(there, norm, torch.ones_like(norm)).rsqrt(), torch.zeros_like(x))


def region_logits(
    e: Tensor, text: Tensor, background: Tensor | None = None, *, temperature: float | Tensor = 100.0
) -> Tensor:
    """temperature * [cos(e, background), cos(e, t_1), ..., cos(e, t_C)]; ViLD (Gu et al., ICLR 2022), equation 2.

    Args:
        e: embeddings of regions [..., D].
        text: embeddings of class names [C, D].
        background: the learnt embedding of what is no object [D], the first column; ``None`` for none.
        temperature: multiplies (the paper divides by 0.01).

    Returns:
        Logits [..., C], or [..., 1 + C].
    """
    if e.shape[-1] != text.shape[-1] or (background is not None and background.shape[-1] != text.shape[-1]):
        given = {"e": e.shape[-1], "text": text.shape[-1]}
        given |= {} if background is None else {"background": background.shape[-1]}
        raise ShapeError("text", given=given, expected="embeddings of one width")
    rows = text if background is None else torch.cat([background.reshape(1, -1).to(text.dtype), text])
    return temperature * (unit(e) @ unit(rows).to(e.dtype).T)


def region_cross_entropy(
    logits: Tensor, labels: Tensor, trained: Tensor | None = None, masking: Masking = "zero"
) -> Tensor:
    """Cross-entropy of every region [...] where some classes have no labels.

    Args:
        logits: [..., 1 + C], the background first.
        labels: int64 [...], 0 for the background.
        trained: [1 + C], which columns are trained (the background and the base classes); ``None``: all.
        masking: of the others: ``zero`` multiplies their logits by 0, as ViLD's code does, so that each remains in the
            denominator as exp(0); ``remove`` leaves them out; ``none`` trains against them.
    """
    if trained is not None and masking != "none":
        keep = trained.bool()
        logits = logits * keep.to(logits.dtype) if masking == "zero" else logits.masked_fill(~keep, -torch.inf)
    return cross_entropy(logits, labels)


def embedding_distance(s: Tensor, f: Tensor, *, power: Literal[1, 2] = 1) -> Tensor:
    """sum over dims of |s - f / |f||^power, for each region [...]; ViLD, equation 4.

    Args:
        s: the student's embeddings [..., D], of unit length.
        f: the teacher's [..., D], of any length; without gradient.
        power: 1, or 2 for squares.
    """
    if s.shape != f.shape:
        raise ShapeError("f", given=list(f.shape), expected=str(list(s.shape)))
    gap = s - unit(f.detach()).to(s.dtype)
    return gap.abs().sum(-1) if power == 1 else gap.square().sum(-1)


def joint_scores(z_text: Tensor, z_image: Tensor, base: Tensor, share: float | Tensor = 2 / 3) -> Tensor:
    """p_text^share p_image^(1 - share) for base classes, the exponents exchanged for novel ones; ViLD, equation 6.

    Args:
        z_text: logits [..., 1 + C], the background first; it is in the softmax, and then dropped.
        z_image: logits [..., C], without a background.
        base: [C], true for classes that were trained.
        share: the larger exponent.

    Returns:
        Scores [..., C]; they need not sum to one.
    """
    log_text, log_image = z_text.log_softmax(-1)[..., 1:], z_image.log_softmax(-1)
    share = torch.as_tensor(share, dtype=log_text.dtype, device=log_text.device)
    w = torch.where(base.bool(), share, 1 - share)
    return (w * log_text + (1 - w) * log_image).exp()


def crop_scores(p: Tensor, objectness: Tensor) -> Tensor:
    """The geometric mean of what a classifier says of crops [..., C] and how much each is an object [...]; both in [0, 1]."""
    return (p * objectness.unsqueeze(-1)).sqrt()


__all__ = [
    "Masking",
    "crop_scores",
    "embedding_distance",
    "joint_scores",
    "region_cross_entropy",
    "region_logits",
    "unit",
]
