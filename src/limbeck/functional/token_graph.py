"""Relations between sampled tokens of a batch: neighbours, nearness, context (TRG, Zhang et al. 2023, arXiv 2306.12442)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import choose, statistics_dtype
from .contrast import info_nce

__all__ = [
    "Axis",
    "Direction",
    "Over",
    "TokenGraph",
    "context_distance",
    "cut_tokens",
    "global_relation",
    "local_relation",
    "token_graph",
]

Axis = Literal["column", "row"]
"""Column j holds the neighbours of token j, as the paper's note prints it; or row i those of token i."""
Direction = Literal["student_first", "teacher_first"]
Over = Literal["all", "neighbours"]


class TokenGraph(NamedTuple):
    """Who is near whom.

    Attributes:
        adjacency: ``exp(-|t_i - t_j|^2 / (2 sigma))`` of neighbours, 0 elsewhere ``[N, N]``.
        neighbours: bool ``[N, N]``.
        sigma: the width of the kernel that was used, a scalar without gradient.
    """

    adjacency: Tensor
    neighbours: Tensor
    sigma: Tensor


def cut_tokens(maps: Tensor, side: int = 1) -> Tensor:
    """Feature maps ``[B, D, H, W]`` cut into square patches, a token each: ``[B, D side side, H / side, W / side]``.

    Raises:
        ShapeError: not maps, or the side does not divide theirs.

    Example:
        >>> cut_tokens(torch.arange(8.0).reshape(1, 1, 2, 4), 2)[0, :, 0, 1]
        tensor([2., 3., 6., 7.])
    """
    if maps.ndim != 4:
        raise ShapeError("maps", given=list(maps.shape), expected="maps [B, D, H, W]")
    if side < 1 or maps.shape[2] % side or maps.shape[3] % side:
        raise ShapeError("side", given=side, expected=f"a divisor of the map's {maps.shape[2]} x {maps.shape[3]}")
    return torch.nn.functional.pixel_unshuffle(maps, side) if side > 1 else maps


def token_graph(
    tokens: Tensor,
    k: int,
    *,
    sigma: float | Literal["mean_knn"] = "mean_knn",
    axis: Axis = "column",
    neighbours: Tensor | None = None,
) -> TokenGraph:
    """The graph of the k nearest neighbours of tokens ``[N, D]``; no token is its own neighbour.

    Source: TRG, section 3 by way of a public note; the width of the kernel, the axis and self-edges are [reconstructed].

    Args:
        tokens: of one network.
        k: neighbours of each token, 1 to N - 1; of equally far ones, the earlier.
        sigma: above 0, or ``mean_knn``: the mean squared distance over all neighbours.
        axis: see ``Axis``.
        neighbours: bool ``[N, N]`` of another graph, the teacher's, to be taken instead of the tokens' own.

    Raises:
        ConfigError: ``k`` or ``sigma`` is out of range.
        ShapeError: not ``[N, D]``, or neighbours of other tokens.

    Example:
        >>> token_graph(torch.tensor([[0.0], [1.0], [5.0]]), 1).neighbours.int()
        tensor([[0, 1, 0],
                [1, 0, 1],
                [0, 0, 0]], dtype=torch.int32)
    """
    choose("axis", axis, Axis)
    if tokens.ndim != 2:
        raise ShapeError("tokens", given=list(tokens.shape), expected="tokens [N, D]")
    n = len(tokens)
    if not 1 <= k < n:
        raise ConfigError("k", given=k, expected=f"1 to {n - 1}, fewer than the {n} tokens")
    if sigma != "mean_knn" and not sigma > 0:
        raise ConfigError("sigma", given=sigma, expected="a number > 0, or mean_knn")
    x = tokens.to(statistics_dtype(tokens))
    norm = x.square().sum(1)
    squares = (norm[:, None] + norm[None] - 2 * x @ x.T).clamp(min=0)
    if neighbours is None:
        own = torch.eye(n, dtype=torch.bool, device=x.device)
        nearest = squares.detach().masked_fill(own, torch.inf).sort(dim=0, stable=True).indices[:k]  # of each column
        mask = torch.zeros_like(own).scatter(0, nearest, True)
        mask = mask if axis == "column" else mask.T
    elif neighbours.shape != squares.shape:
        raise ShapeError("neighbours", given=list(neighbours.shape), expected=f"[{n}, {n}], as there are tokens")
    else:
        mask = neighbours
    width = squares.detach()[mask].mean() if sigma == "mean_knn" else squares.new_tensor(float(sigma))
    return TokenGraph((-squares / (2 * width)).exp() * mask, mask, width)


def local_relation(
    student: TokenGraph, teacher: TokenGraph, *, direction: Direction = "student_first", over: Over = "all"
) -> Tensor:
    """KL between the softmax of each row of the two graphs ``[N]``.

    Source: TRG by way of a public note, which prints the student first.

    Args:
        student, teacher: graphs of the same N tokens; no gradient goes to the teacher.
        direction: ``student_first`` is KL(student || teacher).
        over: the softmax runs over ``all`` tokens, those that are no neighbours entering as 0; or over the
            ``neighbours`` in either network, where rows without any count 0 [reconstructed].
    """
    choose("direction", direction, Direction)
    choose("over", over, Over)
    s, t = student.adjacency, teacher.adjacency.detach().to(student.adjacency.dtype)
    if s.shape != t.shape:
        raise ShapeError("teacher", given=list(t.shape), expected=f"a graph of the student's tokens, {list(s.shape)}")
    where = torch.ones_like(student.neighbours) if over == "all" else student.neighbours | teacher.neighbours
    low = torch.finfo(s.dtype).min
    q, p = (x.masked_fill(~where, low).log_softmax(1) for x in (s, t))
    first, second = (q, p) if direction == "student_first" else (p, q)
    return (first.exp() * (first - second)).masked_fill(~where, 0).sum(1)


def global_relation(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of naming each student token's own teacher token among all of them ``[N]``, by cosines.

    Source: TRG by way of a public note.

    Args:
        student, teacher: projected tokens ``[N, d]``, in the same order.
        temperature: divides the cosines, above 0.
    """
    return info_nce(student, teacher, temperature=temperature)


def context_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of the two contexts of each image ``[B]``: softmax of ``F F^T / sqrt(D)`` by rows.

    Source: TRG by way of a public note; the mean over tokens is [reconstructed].

    Args:
        student: all tokens of each image ``[B, P, Ds]``.
        teacher: ``[B, P, Dt]``, at the same places; no gradient goes there.

    Raises:
        ShapeError: other images or places.
    """
    if student.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ShapeError(
            "teacher",
            given=list(teacher.shape),
            expected=f"tokens [B, P, D] with {list(student.shape[:2])} images and places",
            remedy="pool the larger map to the grid of the smaller one",
        )
    dtype = statistics_dtype(student, teacher)
    s, t = (
        (x @ x.transpose(1, 2) / x.shape[-1] ** 0.5).softmax(-1)
        for x in (student.to(dtype), teacher.detach().to(dtype))
    )
    return (s - t).square().mean((1, 2))
