"""How far student, teacher, label and the teacher's class mean lie apart (TGeo-KD, Hu et al. 2024, arXiv 2312.15112)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import ShapeError
from ._common import choose
from .labels import cross_entropy

__all__ = ["Edges", "adaptive_weight", "fused", "trilateral_state", "wls_weight"]

Edges = Literal["all", "angles", "intra", "vertices", "edges"]
"""Which parts of the state: all nine; these and two products; without the class mean; the probabilities alone; the squared
differences alone."""


def trilateral_state(student: Tensor, teacher: Tensor, label: Tensor, mean: Tensor, edges: Edges = "all") -> Tensor:
    """What TGeo-KD's controller sees of an item: four probability vectors and their squared differences ``[N, 9 C]``.

    In order: student S, teacher T, label G, class mean O, then ``(O-S)^2, (G-S)^2, (T-S)^2, (T-G)^2, (O-G)^2``, all by
    element.

    Source: section 3.2 of the paper; the order and the squares are those of the released code.

    Args:
        student, teacher: probabilities ``[N, C]``.
        label: one-hot ``[N, C]``.
        mean: mean of the teacher's probabilities over the training items of the item's class ``[N, C]``.
        edges: ``all``; ``angles`` ``[N, 11 C]`` adds ``(O-S)(G-S)`` and ``(T-S)(G-S)``; ``intra`` ``[N, 6 C]`` leaves the class
            mean out; ``vertices`` ``[N, 4 C]``; ``edges`` ``[N, 5 C]``.

    Raises:
        ShapeError: the four have different shapes.
    """
    choose("edges", edges, Edges)
    for name, x in (("teacher", teacher), ("label", label), ("mean", mean)):
        if student.ndim != 2 or x.shape != student.shape:
            raise ShapeError(name, given=list(x.shape), expected=f"{list(student.shape)}, [N, C]")
    s, t, g, o = student, teacher, label, mean

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square()

    inner = [apart(g, s), apart(t, s), apart(t, g)]
    if edges == "vertices":
        return torch.cat([s, t, g, o], 1)
    if edges == "edges":
        return torch.cat([apart(o, s), *inner, apart(o, g)], 1)
    if edges == "intra":
        return torch.cat([s, t, g, *inner], 1)
    angles = [(o - s) * (g - s), (t - s) * (g - s)] if edges == "angles" else []
    return torch.cat([s, t, g, o, apart(o, s), *inner, apart(o, g), *angles], 1)


def fused(distilled: Tensor, supervised: Tensor, weight: Tensor) -> Tensor:
    """``weight distilled + (1 - weight) supervised`` of each item ``[N]``.

    Weights ``[N, 1]`` are refused: beside losses ``[N]`` they would give every pair of items, whose mean weighs nothing.

    Raises:
        ShapeError: the three differ in shape.

    Example:
        >>> fused(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0]), torch.tensor([0.5, 0.0]))
        tensor([2., 3.])
    """
    for name, x in (("supervised", supervised), ("weight", weight)):
        if x.shape != distilled.shape:
            raise ShapeError(name, given=list(x.shape), expected=f"{list(distilled.shape)}, one value an item")
    return weight * distilled + (1 - weight) * supervised


def wls_weight(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The teacher's weight ``1 - exp(-CE_student / CE_teacher)`` of each item ``[N]`` (WSLD, Zhou et al. 2021).

    Args:
        student, teacher: logits ``[N, C]``. The code that TGeo-KD released gives probabilities here, and so takes the
            softmax twice.
        labels: class ids ``[N]``.
    """
    ours, theirs = cross_entropy(student, labels), cross_entropy(teacher, labels)
    return 1 - (-ours / theirs.clamp(min=torch.finfo(theirs.dtype).tiny)).exp()


def adaptive_weight(teacher: Tensor, labels: Tensor) -> Tensor:
    """The teacher's weight by how far its true class stands above the mean of the others ``[N]``, 0 where below.

    Args:
        teacher: probabilities ``[N, C]``, C of 2 or more.
        labels: class ids ``[N]``.

    Example:
        >>> adaptive_weight(torch.tensor([[0.8, 0.1, 0.1]]), torch.tensor([0]))
        tensor([0.7000])
    """
    own = teacher.gather(1, labels[:, None])[:, 0]
    return (own - (teacher.sum(1) - own) / (teacher.shape[1] - 1)).clamp(min=0)
