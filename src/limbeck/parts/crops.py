"""Views of point clouds: large and small pieces of space, brought to one length, each changed a little by itself."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.functional.points import (
    complete_points,
    crop_length,
    farthest_points,
    jitter,
    nearest_points,
    shift,
    stretch,
)
from limbeck.grammar.component import Settings
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Natural, NonNegative, settings

NEIGHBOURS = 4
"""Points whose mean a new point is."""

Span = list[float]


class Crops(NamedTuple):
    """Views of N clouds.

    Attributes:
        large: pieces that teacher and student see, [2, N, S, 3].
        others: further groups [V, N, s, 3], which the student alone sees; all views of a group have as many points.
    """

    large: Tensor
    others: list[Tensor]

    @property
    def views(self) -> int:
        """How many the student sees."""
        return len(self.large) + sum(len(group) for group in self.others)


@settings
class CloudViews(Settings):
    """Which pieces of a cloud are seen, and how they are changed.

    Two large pieces and ``local`` small ones: each the points nearest to one of the cloud's own, as many as a share of it
    that is drawn for each piece. All large ones are brought to one length, and all small ones.

    Args:
        local: small pieces.
        global_share: the least and largest share of a cloud that a large piece keeps.
        local_share: likewise of a small one.
        global_points: length that large pieces are brought to; ``null``: the cloud's own.
        local_points: likewise of small ones; ``null``: half the cloud's.
        shape: what is near: ``sphere``, ``cube``, or ``fps``: no piece of space, but as many points of the whole cloud, far
            from each other.
        completion: how pieces get their length: ``neighbours`` adds means of four neighbouring points, ``resample`` repeats
            points drawn at random; of pieces that are too long points are left out either way.
        resolutions: further views of the whole cloud by so many points far from each other, for the student alone.
        each: views at each of the resolutions.
        rotation: none, or drawn about the ``vertical`` (y), or about ``any`` axis.
        jitter: deviation of the noise of every point; none of it moves farther than five times that.
        scale: the least and largest factor that each axis is stretched by.
        shift: by how much a view is moved along each axis, at most.
        shuffle: put the points in a random order.
    """

    local: Natural = 8
    global_share: Span = [0.5, 0.9]  # noqa: RUF012 (copied, never changed)
    local_share: Span = [0.2, 0.5]  # noqa: RUF012
    global_points: Count | None = None
    local_points: Count | None = None
    shape: Literal["sphere", "cube", "fps"] = "sphere"
    completion: Literal["neighbours", "resample"] = "neighbours"
    resolutions: list[Count] = []  # noqa: RUF012
    each: Annotated[int, Ge(1)] = 2
    rotation: Literal["none", "vertical", "any"] = "none"
    jitter: NonNegative = 0.01
    scale: Span = [2 / 3, 3 / 2]  # noqa: RUF012
    shift: NonNegative = 0.2
    shuffle: bool = True

    def validate(self) -> None:
        """Shares are shares, from the smaller to the larger."""
        for name in ("global_share", "local_share"):
            low, high = self._span(name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be two shares above 0 and at most 1, the smaller first")
        low, high = self._span("scale")
        if not 0 < low <= high < math.inf:
            raise ValueError("scale must be two factors above 0, the smaller first")

    def _span(self, name: str) -> Span:
        span: Span = getattr(self, name)
        if len(span) != 2:
            raise ValueError(f"{name} must be two numbers, as [0.5, 0.9]")
        return span

    def sizes(self, points: int) -> list[int]:
        """Points of the views of a cloud with so many: of large pieces, of small ones, of the further resolutions."""
        small = [self.local_points or max(1, points // 2)] if self.local else []
        return [self.global_points or points, *small, *self.resolutions]

    def check(self, points: int, argument: str = "method.views") -> None:
        """Refuse what cannot be cut from clouds of so many points.

        Raises:
            ConfigError: pieces with too few points to be completed, resolutions above the cloud's.
        """
        for name, wanted in (("global_share", True), ("local_share", bool(self.local))):
            low = getattr(self, name)[0]
            kept = crop_length(points, low)
            if wanted and self.completion == "neighbours" and kept < NEIGHBOURS:
                raise ConfigError(
                    f"{argument}.{name}",
                    f"a share of {low:g} of {points} points is {kept}, and new points are means of {NEIGHBOURS}",
                    given=getattr(self, name),
                    expected=f"{NEIGHBOURS / points:.3g} or more",
                    remedy=f"raise it, or set {argument}.completion=resample",
                )
        if self.resolutions and max(self.resolutions) > points:
            raise ConfigError(
                f"{argument}.resolutions",
                given=max(self.resolutions),
                expected=f"at most the {points} points of a cloud",
                remedy="lower it, or raise task.data.points",
            )

    def cut(self, x: Tensor, items: Tensor, draws: Draws) -> Crops:
        """Views of clouds, drawn by the key of each.

        Args:
            x: clouds [N, P, 3].
            items: int64 [N], what each cloud's draws are keyed by.
            draws: of the step.
        """
        points = x.shape[1]
        sizes = self.sizes(points)
        large = self._changed(
            self._pieces(x, items, draws.at("large"), 2, self.global_share, sizes[0]), items, draws.at("large")
        )
        others = []
        if self.local:
            small = self._pieces(x, items, draws.at("small"), self.local, self.local_share, sizes[1])
            others.append(self._changed(small, items, draws.at("small")))
        for n in self.resolutions:
            at = draws.at("resolution", n)
            others.append(self._changed(_thinned(x, items, at, self.each, n), items, at))
        return Crops(large, others)

    def _pieces(self, x: Tensor, items: Tensor, draws: Draws, views: int, share: Span, size: int) -> Tensor:
        """[views, N, size, 3]."""
        n, p = x.shape[:2]
        low, high = share
        kept = (p * draws.rand("share", items, (views,), low, high)).ceil().clamp(max=p).long()  # [N, views]
        least = crop_length(p, low)
        flat = x.unsqueeze(1).expand(-1, views, -1, -1).reshape(n * views, p, 3)
        if self.shape == "fps":
            order = farthest_points(
                flat, p if high == 1 else crop_length(p, high), draws.randint("centre", items, p, (views,)).flatten()
            )
        else:
            centre = draws.randint("centre", items, p, (views,))
            places = x[torch.arange(n, device=x.device).unsqueeze(1), centre]  # [N, views, 3]
            order = nearest_points(places, x, crop_length(p, high), shape=self.shape).flatten(0, 1)
        near = flat.gather(
            1, order.unsqueeze(2).expand(-1, -1, 3)
        )  # the first of them, as many as are kept, are the piece
        length = kept.flatten().clamp(min=least, max=near.shape[1])
        u = draws.rand("order", items, (views, near.shape[1])).flatten(0, 1)
        if self.completion == "neighbours":
            cut = complete_points(near, size, u.argsort(1), neighbours=NEIGHBOURS, length=length, least=least)
        else:
            cut = _resampled(near, length, size, u, draws.rand("again", items, (views, size)).flatten(0, 1))
        return cut.unflatten(0, (n, views)).transpose(0, 1)

    def _changed(self, x: Tensor, items: Tensor, draws: Draws) -> Tensor:
        """Views [V, N, S, 3], each changed by itself."""
        v, n, s = x.shape[:3]
        flat = x.transpose(0, 1).flatten(0, 1)  # [N V, S, 3]
        if self.rotation != "none":
            flat = flat @ _turns(draws.rand("turn", items, (v, 3)).flatten(0, 1), self.rotation)
        if self.jitter:
            flat = jitter(
                flat, draws.randn("jitter", items, (v, s, 3)).flatten(0, 1), deviation=self.jitter, most=5 * self.jitter
            )
        low, high = self.scale
        flat = stretch(flat, draws.rand("scale", items, (v, 3)).flatten(0, 1), low=low, high=high)
        if self.shift:
            flat = shift(flat, draws.rand("shift", items, (v, 3)).flatten(0, 1), most=self.shift)
        if self.shuffle:
            order = draws.rand("shuffle", items, (v, s)).flatten(0, 1).argsort(1)
            flat = flat.gather(1, order.unsqueeze(2).expand(-1, -1, 3))
        return flat.unflatten(0, (n, v)).transpose(0, 1)


def _thinned(x: Tensor, items: Tensor, draws: Draws, views: int, size: int) -> Tensor:
    """Whole clouds by points far from each other, from a random one on: [views, N, size, 3]."""
    n, p = x.shape[:2]
    flat = x.unsqueeze(1).expand(-1, views, -1, -1).reshape(n * views, p, 3)
    ids = farthest_points(flat, size, draws.randint("start", items, p, (views,)).flatten())
    return flat.gather(1, ids.unsqueeze(2).expand(-1, -1, 3)).unflatten(0, (n, views)).transpose(0, 1)


def _resampled(x: Tensor, length: Tensor, size: int, order: Tensor, again: Tensor) -> Tensor:
    """The first points of each cloud in a random order, as many as ``length`` says, then some of them again: [N, size, 3]."""
    there = torch.arange(x.shape[1], device=x.device) < length.unsqueeze(1)
    first = order.masked_fill(~there, 2.0).argsort(1)
    turn = torch.arange(size, device=x.device).expand(len(x), -1)
    repeated = (again * length.unsqueeze(1)).long()
    ids = first.gather(1, torch.where(turn < length.unsqueeze(1), turn, repeated).clamp(max=x.shape[1] - 1))
    return x.gather(1, ids.unsqueeze(2).expand(-1, -1, 3))


def _turns(u: Tensor, about: str) -> Tensor:
    """Rotations [N, 3, 3] from uniform numbers [N, 3]: about the y axis, or evenly drawn (Shoemake 1992)."""
    if about == "vertical":
        c, s, z = (2 * math.pi * u[:, 0]).cos(), (2 * math.pi * u[:, 0]).sin(), torch.zeros_like(u[:, 0])
        return torch.stack([c, z, s, z, z + 1, z, -s, z, c], 1).view(-1, 3, 3)
    a, b = (1 - u[:, 0]).sqrt(), u[:, 0].sqrt()
    x, y = a * (2 * math.pi * u[:, 1]).sin(), a * (2 * math.pi * u[:, 1]).cos()
    z, w = b * (2 * math.pi * u[:, 2]).sin(), b * (2 * math.pi * u[:, 2]).cos()
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, 1).view(-1, 3, 3)


def sketch(points: Tensor, side: int = 48) -> list[list[list[int]]]:
    """One cloud [P, 3] seen from the front, as a grey image [1][side][side] of whole numbers up to 255: near points bright."""
    x = points.float().cpu()
    at = ((x[:, :2].clamp(-1.6, 1.6) / 3.2 + 0.5) * (side - 1)).round().long()
    spread = (x[:, 2].max() - x[:, 2].min()).clamp_min(1e-6)
    bright = (
        (127 + 128 * (x[:, 2] - x[:, 2].min()) / spread) if float(spread) > 1e-3 else torch.full_like(x[:, 0], 255.0)
    )
    canvas = torch.zeros(side * side)
    canvas.scatter_reduce_(0, (side - 1 - at[:, 1]) * side + at[:, 0], bright, "amax")
    return [canvas.view(side, side).round().int().tolist()]


__all__ = ["CloudViews", "Crops", "sketch"]
