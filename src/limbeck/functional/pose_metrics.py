"""How far predicted keypoints are from the true ones: PCK, NME with its failures and area, and MPJPE in space.

Points are [..., K, 2] or [..., K, 3]; ``where`` [..., K] marks those that are labelled. Values of single poses come back
unreduced, so that means over any set of items can be taken of them; poses without a labelled point are 0 and count nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import ShapeError
from limbeck.functional._common import in_range, keep, statistics_dtype

Pair = tuple[Tensor, Tensor]


def _checked(points: Tensor, true: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both in at least single precision, and what counts."""
    if points.shape != true.shape or points.ndim < 2 or points.shape[-1] not in (2, 3):
        given = {"points": list(points.shape), "true": list(true.shape)}
        raise ShapeError("points", given=given, expected="both [..., K, 2] or both [..., K, 3]")
    dtype = statistics_dtype(points, true)
    if where is None:
        where = torch.ones(points.shape[:-1], dtype=torch.bool, device=points.device)
    elif where.shape != points.shape[:-1]:
        raise ShapeError("where", given=list(where.shape), expected=str(list(points.shape[:-1])))
    where = where.bool()
    return keep(points.to(dtype), where.unsqueeze(-1)), keep(true.to(dtype), where.unsqueeze(-1)), where


def pose_sizes(true: Tensor, where: Tensor | None = None, pair: tuple[int, int] | None = None) -> Tensor:
    """What errors are measured in, for each pose [...]: the distance of two of its points, or its box's longer side.

    Args:
        true: [..., K, 2].
        where: [..., K]; a pose whose pair is not labelled, and one of less than two places, has size 0.
        pair: numbers of two points (outer corners of the eyes, head and neck).

    Example:
        >>> p = torch.tensor([[0.0, 0], [3, 4], [8, 0]])
        >>> pose_sizes(p).item(), pose_sizes(p, pair=(0, 1)).item()
        (8.0, 5.0)
    """
    true, _, where = _checked(true, true, where)
    if pair is not None:
        a, b = pair
        return keep((true[..., a, :] - true[..., b, :]).norm(dim=-1), where[..., a] & where[..., b])
    gone = ~where.unsqueeze(-1)
    side = true.masked_fill(gone, -torch.inf).amax(-2) - true.masked_fill(gone, torch.inf).amin(-2)
    return keep(side.amax(-1), where.any(-1))


def pck(points: Tensor, true: Tensor, sizes: Tensor, *, alpha: float = 0.1, where: Tensor | None = None) -> Pair:
    """Points that lie within ``alpha`` times the pose's size of the true one [...], and how many are labelled [...].

    Source: Yang and Ramanan, 2013. Points of poses without a size count in neither.

    Args:
        points, true: [..., K, D].
        sizes: [...], see `pose_sizes`.
        alpha: share of the size, above 0.
        where: [..., K].

    Example:
        >>> hits, count = pck(torch.tensor([[0.0, 0], [9, 0]]), torch.tensor([[0.0, 0.5], [4, 0]]), torch.tensor(10.0))
        >>> hits.item(), count.item()
        (1.0, 2.0)
    """
    in_range("alpha", alpha, 0.0, float("inf"), open_low=True, open_high=True)
    points, true, where = _checked(points.detach(), true.detach(), where)
    sizes = sizes.to(points.dtype).unsqueeze(-1)
    counts = where & (sizes > 0)
    hits = ((points - true).norm(dim=-1) <= alpha * sizes) & counts
    return hits.sum(-1).to(points.dtype), counts.sum(-1).to(points.dtype)


def nme(points: Tensor, true: Tensor, sizes: Tensor, where: Tensor | None = None) -> Tensor:
    """Normalised mean error of each pose [...]: the mean distance of labelled points, in units of the pose's size.

    Args:
        points, true: [..., K, D].
        sizes: [...], see `pose_sizes`; where it is 0 the error is 0 and means nothing.
        where: [..., K].

    Example:
        >>> nme(torch.tensor([[0.0, 0], [9, 0]]), torch.tensor([[0.0, 1], [4, 0]]), torch.tensor(10.0)).item()
        0.30000001192092896
    """
    points, true, where = _checked(points, true, where)
    mean = (points - true).norm(dim=-1).sum(-1) / where.sum(-1).clamp_min(1)
    sizes = sizes.to(mean.dtype)
    return keep(mean, sizes > 0) / torch.where(sizes > 0, sizes, torch.ones_like(sizes))


def error_area(errors: Tensor, threshold: float = 0.1) -> Tensor:
    """Each error's share of the area under the cumulative error curve up to a threshold: their mean is the AUC.

    The curve of one error e is 0 before and 1 from it on, so that its area, in units of the threshold, is 1 - e / threshold.

    Example:
        >>> error_area(torch.tensor([0.0, 0.025, 0.3])).tolist()
        [1.0, 0.75, 0.0]
    """
    in_range("threshold", threshold, 0.0, float("inf"), open_low=True, open_high=True)
    return (1 - errors / threshold).clamp(0, 1)


def procrustes(points: Tensor, true: Tensor, where: Tensor | None = None) -> Tensor:
    """Points moved, turned and scaled as a whole so that they come as near to the true ones as they can: [..., K, D].

    The least squares solution over rotations, shift and scale, without reflection (Umeyama, 1991). Its gradient is not taken.

    Example:
        >>> p = torch.tensor([[0.0, 0], [1, 0], [0, 2]])
        >>> q = 3 * p @ torch.tensor([[0.0, 1], [-1, 0]]) + 5
        >>> bool(torch.allclose(procrustes(p, q), q, atol=1e-5))
        True
    """
    moved, aim, there = _checked(points.detach(), true.detach(), where)
    n = there.sum(-1).clamp_min(1)[..., None, None]
    of = there.unsqueeze(-1)
    a_mean, b_mean = moved.sum(-2, keepdim=True) / n, aim.sum(-2, keepdim=True) / n
    a, b = keep(moved - a_mean, of), keep(aim - b_mean, of)
    u, s, vt = torch.linalg.svd(a.mT @ b)
    sign = torch.ones_like(s)
    sign[..., -1] = torch.where(torch.linalg.det(u @ vt) < 0, -1.0, 1.0)
    turn = u @ (sign.unsqueeze(-1) * vt)
    spread = a.square().sum((-2, -1))
    scale = (s * sign).sum(-1) / spread.clamp_min(torch.finfo(spread.dtype).tiny)
    whole = points.detach().to(moved.dtype)
    return scale[..., None, None] * (whole - a_mean) @ turn + b_mean


def mpjpe(points: Tensor, true: Tensor, where: Tensor | None = None, *, aligned: bool = False) -> Tensor:
    """Mean distance of the joints of each pose [...], in the units of its coordinates.

    Args:
        points, true: [..., K, 3] about the root.
        where: [..., K].
        aligned: after `procrustes` (PA-MPJPE), without a gradient.

    Example:
        >>> mpjpe(torch.zeros(2, 3), torch.tensor([[0.0, 3, 4], [0, 0, 1]])).item()
        3.0
    """
    if aligned:
        points = procrustes(points, true, where)
    points, true, where = _checked(points, true, where)
    return (points - true).norm(dim=-1).sum(-1) / where.sum(-1).clamp_min(1)


__all__ = ["error_area", "mpjpe", "nme", "pck", "pose_sizes", "procrustes"]
