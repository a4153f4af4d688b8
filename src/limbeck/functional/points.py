"""Clouds of points: which are near, which stand for the others, pieces cut out and brought to one length, small changes.

Clouds are ``[N, P, 3]``: items, points, coordinates. Random numbers come from outside, as everywhere in this package.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, ShapeError
from ._common import choose

Shape = Literal["sphere", "cube"]
"""What is near: the Euclidean distance, or the largest difference of a coordinate."""


def check_clouds(points: Tensor, least: int = 1, argument: str = "points") -> None:
    """Refuse what is no batch of clouds ``[N, P, 3]`` with ``least`` points each.

    Raises:
        ShapeError: another shape; that coordinates stand before points is said by name.
        DataError: some coordinate is no finite number (looked at on the CPU only: elsewhere it would cost a wait).
    """
    if points.ndim == 3 and points.shape[1] == 3 and points.shape[2] != 3:
        raise ShapeError(
            argument,
            given=list(points.shape),
            expected="clouds [N, P, 3]",
            remedy="the coordinates stand before the points: points.transpose(1, 2)",
        )
    if points.ndim != 3 or points.shape[2] != 3 or not points.is_floating_point():
        raise ShapeError(argument, given=f"{points.dtype} {list(points.shape)}", expected="floating clouds [N, P, 3]")
    if points.shape[1] < least:
        raise ShapeError(argument, given=f"{points.shape[1]} points", expected=f"{least} or more in each cloud")
    looked = points.device.type == "cpu" and not torch.compiler.is_compiling()
    if looked and not bool(points.detach().isfinite().all()):
        raise DataError(argument, given="coordinates that are not finite", expected="finite numbers")


def in_unit_sphere(points: Tensor) -> Tensor:
    """Clouds ``[N, P, 3]`` around the origin whose farthest point has distance 1; clouds of one place stay there.

    Example:
        >>> in_unit_sphere(torch.tensor([[[1.0, 0, 0], [5.0, 0, 0]]])).flatten().tolist()
        [-1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    """
    check_clouds(points)
    centred = points - points.mean(1, keepdim=True)
    reach = centred.norm(dim=-1).amax(1)[:, None, None]
    return centred / torch.where(reach > 0, reach, torch.ones_like(reach))


def _distances(a: Tensor, b: Tensor, shape: Shape = "sphere") -> Tensor:
    """``[N, A, B]`` of points ``[N, A, 3]`` and ``[N, B, 3]``.

    From differences: by the scalar product, near points would be told apart by rounding.
    """
    p = math.inf if shape == "cube" else 2.0
    return torch.cdist(a, b, p=p, compute_mode="donot_use_mm_for_euclid_dist")


def nearest_points(centres: Tensor, points: Tensor, k: int, *, shape: Shape = "sphere") -> Tensor:
    """Ids ``[N, S, k]`` of the k points nearest to each centre, nearest first.

    Args:
        centres: places ``[N, S, 3]``.
        points: clouds ``[N, P, 3]``.
        k: how many, at most P.
        shape: ``sphere`` or ``cube``: what is near.

    Raises:
        ShapeError: a cloud has fewer than k points.

    Example:
        >>> line = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]]])
        >>> nearest_points(line[:, 2:], line, 2)
        tensor([[[2, 1]]])
    """
    choose("shape", shape, Shape, "shape")
    check_clouds(points, k)
    return _distances(centres, points, shape).topk(k, largest=False, sorted=True).indices


def farthest_points(points: Tensor, count: int, start: Tensor | int = 0) -> Tensor:
    """Ids ``[N, count]`` of points that stand for their cloud: each is the farthest from those before it.

    One step a point is what the definition asks for; each step is one over all clouds. Once nothing but repetitions is
    left, the first of them is named again and again.

    Source: Eldar et al. 1997; Qi et al. 2017 (PointNet++, arXiv 1706.02413).

    Args:
        points: clouds ``[N, P, 3]``.
        count: how many, at most P.
        start: the first point of every cloud, or of each: int64 ``[N]``. Random in training, fixed in a test.

    Raises:
        ShapeError: a cloud has fewer points.

    Example:
        >>> line = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [5.0, 0, 0], [2.0, 0, 0]]])
        >>> farthest_points(line, 3)
        tensor([[0, 2, 3]])
    """
    if count < 1:
        raise ConfigError("count", given=count, expected="1 or more points")
    check_clouds(points, count)
    x = points.detach()
    at = torch.as_tensor(start, device=x.device).expand(len(x)).long()
    found = [at]
    least = torch.full(x.shape[:2], math.inf, dtype=x.dtype, device=x.device)  # to the nearest of those found [N, P]
    rows = torch.arange(len(x), device=x.device)
    for _ in range(count - 1):
        least = torch.minimum(least, (x - x[rows, at].unsqueeze(1)).square().sum(-1))
        at = least.argmax(1)
        found.append(at)
    return torch.stack(found, 1)


def crop_length(points: int, share: float) -> int:
    """Points of a crop that keeps a share of a cloud: ``ceil(P share)``.

    Example:
        >>> crop_length(128, 0.6)
        77
    """
    if not 0 < share <= 1:
        raise ConfigError("share", given=share, expected="a number in (0, 1]: the share of points that a crop keeps")
    return math.ceil(points * share)


def nearest_crop(points: Tensor, centre: Tensor, keep: int, *, shape: Shape = "sphere") -> Tensor:
    """The piece of each cloud around one of its points: the ``keep`` nearest points ``[N, keep, 3]``, nearest first.

    A piece of space, not a thinned cloud: what is kept is whole.

    Source: the crops of POS-BERT, the sibling of DCGLR (Fu et al. 2022, arXiv 2202.04241).

    Args:
        points: clouds ``[N, P, 3]``.
        centre: ids of the points in the middle, int64 ``[N]``.
        keep: how many points, the one in the middle among them; see `crop_length`.
        shape: ``sphere``, or ``cube``.

    Example:
        >>> line = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]]])
        >>> nearest_crop(line, torch.tensor([2]), 2)[0, :, 0]
        tensor([3., 1.])
    """
    check_clouds(points, keep)
    rows = torch.arange(len(points), device=points.device)
    ids = nearest_points(points[rows, centre].unsqueeze(1), points, keep, shape=shape)[:, 0]
    return points[rows.unsqueeze(1), ids]


def complete_points(
    points: Tensor,
    size: int,
    order: Tensor | None = None,
    *,
    neighbours: int = 4,
    length: Tensor | None = None,
    least: int | None = None,
) -> Tensor:
    """Clouds brought to one length ``[N, size, 3]``: new points are the means of some points and their nearest neighbours.

    The given points stay in front, as they are. As many points as are missing get a companion, the mean of the nearest
    ``neighbours`` (itself among them); if all have one and still some are missing, so do the companions, and so on. Of
    clouds longer than ``size``, points are left out.

    Source: POS-BERT's completion of crops; that the last round takes points in a random order is how its surplus is
    dropped.

    Args:
        points: clouds ``[N, P, 3]``.
        size: the length wanted.
        order: in which order points get companions, or stay: a permutation int64 ``[N, P]``; left out, as they lie.
        neighbours: how many make a mean.
        length: clouds of differing lengths: how many of its points, from the first on, each has: int64 ``[N]``.
        least: the smallest of the lengths, where that is known: looking for it would cost a wait on a GPU.

    Example:
        >>> line = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]]])
        >>> complete_points(line, 5, neighbours=2)[0, :, 0]
        tensor([0.0000, 1.0000, 3.0000, 0.5000, 0.5000])
    """
    if size < 1:
        raise ConfigError("size", given=size, expected="1 or more points")
    check_clouds(points, neighbours)
    n, p = points.shape[:2]
    rows = torch.arange(n, device=points.device).unsqueeze(1)
    if order is None:
        order = torch.arange(p, device=points.device).expand(n, p)
    elif order.shape != (n, p):
        raise ShapeError("order", given=list(order.shape), expected=f"a permutation of the points of each, [{n}, {p}]")
    if length is not None:
        return _complete_ragged(points, size, order, neighbours, length, least)
    if p >= size:
        return points[rows, order[:, :size].sort(1).values]
    whole = points
    while whole.shape[1] < size:
        chosen = order[:, : size - whole.shape[1]]
        ids = nearest_points(whole[rows, chosen], whole, neighbours)
        made = whole[rows.unsqueeze(2), ids].mean(2)
        order = torch.cat([order, whole.shape[1] + torch.arange(made.shape[1], device=order.device).expand(n, -1)], 1)
        whole = torch.cat([whole, made], 1)
    return whole


def _complete_ragged(
    points: Tensor, size: int, order: Tensor, neighbours: int, length: Tensor, least: int | None
) -> Tensor:
    """`complete_points` of clouds that differ in length, all at once: those that are whole wait for the others."""
    n, p = points.shape[:2]
    least = int(length.min()) if least is None else least
    if length.shape != (n,) or not neighbours <= least <= p:
        given = f"{list(length.shape)}, the least {least}"
        raise ShapeError("length", given=given, expected=f"numbers of points [{n}], from {neighbours} to {p}")
    rows = torch.arange(n, device=points.device).unsqueeze(1)
    has = length.to(points.device)
    order = order[
        rows, (order >= has.unsqueeze(1)).to(torch.uint8).argsort(dim=1, stable=True)
    ]  # what is there comes first
    first = min(p, size)
    places = torch.arange(size, device=points.device)
    kept = order[:, :first].masked_fill(places[:first] >= has.clamp(max=size).unsqueeze(1), p).sort(1).values
    whole = points.new_zeros(n, size + 1, 3)  # the last place takes what is one too many
    whole[:, :first] = points[rows, kept.clamp(max=p - 1)]
    has = has.clamp(max=size)
    grows = (places < has.unsqueeze(1)) & (has < size).unsqueeze(1)
    order = torch.where(grows, torch.nn.functional.pad(order[:, :first], (0, size - first)), places)
    while least < size:
        reach = min(size, first)  # no cloud is longer yet
        chosen = order[:, : min(reach, size - least)]
        apart = _distances(whole[rows, chosen], whole[:, :reach])
        apart = apart.masked_fill((places[:reach] >= has.unsqueeze(1)).unsqueeze(1), math.inf)
        near = apart.topk(neighbours, largest=False).indices
        made = whole[rows.unsqueeze(2), near].mean(2)
        turn = places[: chosen.shape[1]]
        at = torch.where(turn < torch.minimum(has, size - has).unsqueeze(1), has.unsqueeze(1) + turn, size)
        whole = whole.scatter(1, at.unsqueeze(2).expand(-1, -1, 3), made)
        has, least, first = (2 * has).clamp(max=size), 2 * least, 2 * first
    return whole[:, :size]


class Groups(NamedTuple):
    """Neighbourhoods of a cloud.

    Attributes:
        centres: where they are, ``[N, S, 3]``.
        features: per neighbour, its feature less the centre's, then the centre's: ``[N, S, k, 2 D]``.
        ids: of the centres, ``[N, S]``.
    """

    centres: Tensor
    features: Tensor
    ids: Tensor


def sample_and_group(points: Tensor, features: Tensor, count: int, k: int, start: Tensor | int = 0) -> Groups:
    """Neighbourhoods around `farthest_points`, each of the k nearest points, described relative to their centre.

    Source: Guo et al. 2021 (PCT, arXiv 2012.09688), section 3.3; the patches of DCGLR's 3D-ViT.

    Args:
        points: clouds ``[N, P, 3]``.
        features: of the points ``[N, P, D]``.
        count: S, how many neighbourhoods.
        k: points in each, the centre among them.
        start: see `farthest_points`.

    Raises:
        ShapeError: fewer points than k or ``count``, or features of other points.

    Example:
        >>> cloud = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [5.0, 0, 0]]])
        >>> sample_and_group(cloud, cloud[..., :1], 2, 2).features[0].tolist()
        [[[0.0, 0.0], [1.0, 0.0]], [[0.0, 5.0], [-4.0, 5.0]]]
    """
    check_clouds(points, max(k, count))
    if features.ndim != 3 or features.shape[:2] != points.shape[:2]:
        raise ShapeError("features", given=list(features.shape), expected=f"{[*points.shape[:2], 'D']}, one a point")
    rows = torch.arange(len(points), device=points.device).unsqueeze(1)
    ids = farthest_points(points, count, start)
    centres, own = points[rows, ids], features[rows, ids].unsqueeze(2)  # [N, S, 3], [N, S, 1, D]
    near = features[rows.unsqueeze(2), nearest_points(centres, points, k)]  # [N, S, k, D]
    return Groups(centres, torch.cat([near - own, own.expand_as(near)], -1), ids)


def jitter(points: Tensor, normal: Tensor, *, deviation: float = 0.01, most: float = 0.05) -> Tensor:
    """Every point moved by noise ``[N, P, 3]`` of this deviation, by no more than ``most`` along an axis.

    Example:
        >>> jitter(torch.zeros(1, 1, 3), torch.tensor([[[1.0, -9.0, 0.0]]])).flatten()
        tensor([ 0.0100, -0.0500,  0.0000])
    """
    return points + (deviation * normal).clamp(-most, most)


def stretch(points: Tensor, u: Tensor, *, low: float = 2 / 3, high: float = 3 / 2) -> Tensor:
    """Each axis of each cloud scaled by a factor of its own: ``low + u (high - low)``, with u ``[N, 3]`` in [0, 1)."""
    return points * (low + u * (high - low)).unsqueeze(1)


def shift(points: Tensor, u: Tensor, *, most: float = 0.2) -> Tensor:
    """Each cloud moved by up to ``most`` along each axis, with u ``[N, 3]`` in [0, 1)."""
    return points + ((2 * u - 1) * most).unsqueeze(1)


__all__ = [
    "Groups",
    "Shape",
    "check_clouds",
    "complete_points",
    "crop_length",
    "farthest_points",
    "in_unit_sphere",
    "jitter",
    "nearest_crop",
    "nearest_points",
    "sample_and_group",
    "shift",
    "stretch",
]
