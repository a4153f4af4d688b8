"""Which of two divergences an item needs, by who is less certain of it (BD-KD, Amara et al. 2022, arXiv 2212.12965)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from .divergence import entropy

Rule = Literal["hard", "soft", "constant"]


class GapWeights(NamedTuple):
    """Weights [...] of the forward and the reverse divergence, and the entropies [...] they come from."""

    forward: Tensor
    reverse: Tensor
    teacher_entropy: Tensor
    student_entropy: Tensor


def entropy_gap_weights(
    student: Tensor,
    teacher: Tensor,
    *,
    delta: float = 2.0,
    rule: Rule = "hard",
    sharpness: float = 5.0,
    temperature: float | Tensor = 1.0,
    where: Tensor | None = None,
) -> GapWeights:
    """Per-item weights of forward and reverse KL from the entropy gap g = H(teacher) - H(student); no gradient.

    ``hard``: where the teacher is less certain (g > 0) the forward divergence is weighted by delta, where the student is
    (g < 0) the reverse one, the other by 1; both by 1 at a tie. ``soft``: ``1 + (delta - 1) sigmoid(sharpness g)`` and
    ``1 + (delta - 1) sigmoid(-sharpness g)`` [reconstructed]. ``constant``: 1 and 1.

    Args:
        student: logits ``[..., C]``.
        teacher: logits ``[..., C]``.
        delta: the larger weight, 1 or more.
        rule: ``hard``, ``soft`` or ``constant``.
        sharpness: of the soft rule.
        temperature: divides both logits.
        where: valid items ``[...]``; the others have entropy 0 and weight 1.

    Raises:
        ConfigError: delta below 1, or an unknown rule.

    Example:
        >>> sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> w = entropy_gap_weights(sure, unsure)
        >>> w.forward.item(), w.reverse.item()
        (2.0, 1.0)
    """
    if not delta >= 1:
        raise ConfigError("delta", given=delta, expected="1 or more")
    with torch.no_grad():
        h_t = entropy(teacher, temperature=temperature, where=where)
        h_s = entropy(student, temperature=temperature, where=where)
        gap = h_t - h_s
        if rule == "hard":
            forward, reverse = (gap > 0).to(gap.dtype), (gap < 0).to(gap.dtype)
        elif rule == "soft":
            forward, reverse = (sharpness * gap).sigmoid(), (-sharpness * gap).sigmoid()
        elif rule == "constant":
            forward = reverse = torch.zeros_like(gap)
        else:
            raise ConfigError.unknown("rule", rule, ("hard", "soft", "constant"), "rule")
        return GapWeights(1 + (delta - 1) * forward, 1 + (delta - 1) * reverse, h_t, h_s)


__all__ = ["GapWeights", "Rule", "entropy_gap_weights"]
