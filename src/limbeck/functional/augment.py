"""Differentiable siamese augmentation (DSA): random transforms that let gradients through to the pixels.

Zhao and Bilen 2021 (arXiv 2102.08259). Eight functions on images ``[N, C, H, W]``, each pure: the random numbers are
arguments. :func:`dsa` draws them. *Siamese* means that one transform serves the whole batch, so that a real and a
synthetic batch of different sizes are changed alike; otherwise every image has its own.

Where numbers come from is the caller's business. A :class:`Draw` is called as ``draw(name, shape)`` for uniform floats
in [0, 1) and ``draw(name, shape, high)`` for integers in [0, high); :func:`keyed_draw` reads counter-based draws (the
same for the same key, so replayable), :func:`generator_draw` a torch generator, :func:`seeded_draw` follows the
published code, which seeds anew before each draw. Siamese draws ask for one number, whatever the batch.

Released codes differ in ``align_corners`` of the two affine transforms: False in DC, DSA and DM, True in MTT and in
what descends from it. It changes results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import ConfigError, ShapeError

__all__ = [
    "DSAParams",
    "Draw",
    "brightness",
    "contrast",
    "cutout",
    "dsa",
    "flip",
    "generator_draw",
    "keyed_draw",
    "mirror_batch",
    "rotate",
    "saturation",
    "scale",
    "seeded_draw",
    "strategy_names",
    "translate",
    "uniform_draw",
]

AugMode = Literal["S", "M"]


class Draw(Protocol):
    """Where random numbers come from: uniform floats in [0, 1), or int64 in [0, high) when ``high`` is given."""

    def __call__(self, name: str, shape: tuple[int, ...], high: int | None = None) -> Tensor:
        """Numbers of that shape for the stream called ``name``."""
        ...


class _Streams(Protocol):
    """What :func:`keyed_draw` needs of counter-based draws (``limbeck.grammar.random.Draws`` has it)."""

    def rand(self, stream: str, items: Tensor | int, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform floats in [0, 1), ``[N, *shape]``."""
        ...

    def randint(self, stream: str, items: Tensor | int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Integers in [0, high), ``[N, *shape]``."""
        ...


@dataclass(frozen=True)
class DSAParams:
    """How strong each function is; the published values.

    Args:
        prob_flip: probability of a horizontal flip.
        ratio_scale: zoom between 1/ratio and ratio, rows and columns apart.
        ratio_rotate: degrees, to either side.
        ratio_crop_pad: largest shift as a part of the side.
        ratio_cutout: side of the removed square as a part of the side.
        brightness: width of the interval added from.
        saturation: upper end of the factor on the distance from grey.
        contrast: lower end of the factor on the distance from the mean (it is one wide).
    """

    prob_flip: float = 0.5
    ratio_scale: float = 1.2
    ratio_rotate: float = 15.0
    ratio_crop_pad: float = 0.125
    ratio_cutout: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5


# -------------------------------------------------------------------------------------------------------------- streams


def keyed_draw(draws: _Streams, items: Tensor | None = None, prefix: str = "dsa") -> Draw:
    """Counter-based numbers: a function of their key, so the same transform can be replayed at any time.

    Args:
        draws: an object with ``rand(stream, items, shape)`` and ``randint(stream, items, high, shape)``.
        items: int64 ids ``[N]`` of the batch, one row of numbers each; None for siamese use, keyed by the stream alone.
        prefix: keeps these streams apart from others; put the inner step's number here.

    Example:
        >>> from limbeck.grammar.random import Draws
        >>> draw = keyed_draw(Draws(0, ("train", 5)), torch.tensor([4, 9]))
        >>> torch.equal(draw("flip", (2,)), draw("flip", (2,)))
        True
    """

    def draw(name: str, shape: tuple[int, ...], high: int | None = None) -> Tensor:
        # which function is chosen concerns the call, not an image
        who: Tensor | int = shape[0] if items is None or name == "choice" else items
        stream, rest = f"{prefix}.{name}", tuple(shape[1:])
        numbers = draws.rand(stream, who, rest) if high is None else draws.randint(stream, who, high, rest)
        if numbers.shape != tuple(shape):
            raise ShapeError("items", "one id per image", given=tuple(numbers.shape), expected=str(tuple(shape)))
        return numbers

    return draw


def uniform_draw(uniform: Callable[[str, tuple[int, ...]], Tensor]) -> Draw:
    """A :class:`Draw` from a source of uniform floats alone; integers are ``floor(u * high)``.

    Example:
        >>> draw = uniform_draw(lambda name, shape: torch.full(shape, 0.75))
        >>> draw("crop.rows", (2,), 4).tolist()
        [3, 3]
    """

    def draw(name: str, shape: tuple[int, ...], high: int | None = None) -> Tensor:
        u = uniform(name, shape)
        return u if high is None else (u * high).long().clamp(0, high - 1)

    return draw


def generator_draw(generator: torch.Generator | None = None) -> Draw:
    """Numbers from a torch generator (the global one by default), in the order of the calls.

    Example:
        >>> generator_draw(torch.Generator().manual_seed(0))("flip", (3,)).shape
        torch.Size([3])
    """
    device = "cpu" if generator is None else generator.device

    def draw(name: str, shape: tuple[int, ...], high: int | None = None) -> Tensor:
        if high is None:
            return torch.rand(shape, generator=generator, device=device)
        return torch.randint(0, high, shape, generator=generator, device=device)

    return draw


def seeded_draw(seed: int) -> Draw:
    """Numbers as in the published siamese mode: the k-th draw comes from a generator seeded with ``seed + k``.

    Unlike the published code it leaves the global generator alone.

    Example:
        >>> torch.equal(seeded_draw(3)("a", (1,)), seeded_draw(3)("b", (1,)))
        True
    """
    generator = torch.Generator()
    inner, calls = generator_draw(generator), 0

    def draw(name: str, shape: tuple[int, ...], high: int | None = None) -> Tensor:
        nonlocal calls
        generator.manual_seed(seed + calls)
        calls += 1
        return inner(name, shape, high)

    return draw


# ------------------------------------------------------------------------------------------------------ the functions


def _images(x: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ShapeError("x", "images are floats", given=(tuple(x.shape), x.dtype), expected="[N, C, H, W]")


def _each(value: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``[N]`` or ``[1]`` as ``[N]`` on the images' device; floats in ``dtype``, that of the images by default."""
    value = value.reshape(-1).to(x.device)
    if value.shape[0] not in (1, x.shape[0]):
        raise ShapeError("draw", given=tuple(value.shape), expected=f"[{x.shape[0]}], or [1] for all alike")
    value = value.expand(x.shape[0])
    return value.to(dtype or x.dtype) if value.is_floating_point() else value


def brightness(x: Tensor, u: Tensor, strength: float = 1.0) -> Tensor:
    """``x + (u - 1/2) strength``: lighter or darker by a constant. ``u``: ``[N]`` or ``[1]`` in [0, 1).

    Example:
        >>> brightness(torch.zeros(1, 1, 2, 2), torch.tensor([0.75])).unique().item()
        0.25
    """
    return x + ((_each(u, x) - 0.5) * strength)[:, None, None, None]


def saturation(x: Tensor, u: Tensor, strength: float = 2.0) -> Tensor:
    """Distance from grey (the mean over channels, pixel by pixel) times ``u * strength``; ``u``: ``[N]`` or ``[1]``.

    Example:
        >>> x = torch.rand(2, 3, 4, 4)
        >>> torch.allclose(saturation(x, torch.tensor([0.5])), x, atol=1e-6)
        True
    """
    grey = x.mean(dim=1, keepdim=True)
    return (x - grey) * (_each(u, x) * strength)[:, None, None, None] + grey


def contrast(x: Tensor, u: Tensor, strength: float = 0.5) -> Tensor:
    """Distance from the image's mean times ``u + strength``; ``u``: ``[N]`` or ``[1]`` in [0, 1).

    Example:
        >>> x = torch.rand(2, 3, 4, 4)
        >>> torch.allclose(contrast(x, torch.tensor([0.5])), x, atol=1e-6)
        True
    """
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (_each(u, x) + strength)[:, None, None, None] + mean


def translate(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Shift by whole pixels, zeros come in: ``out[i, j] = x[i + rows, j + columns]``. Shifts: int64 ``[N]`` or ``[1]``.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> translate(x, torch.tensor([1]), torch.tensor([0])).tolist()
        [[[[2.0, 3.0], [0.0, 0.0]]]]
    """
    n, _, h, w = x.shape
    padded = F.pad(x, (1, 1, 1, 1))
    row = (torch.arange(h, device=x.device)[None] + _each(rows, x)[:, None] + 1).clamp(0, h + 1)  # [N, H]
    column = (torch.arange(w, device=x.device)[None] + _each(columns, x)[:, None] + 1).clamp(0, w + 1)  # [N, W]
    batch = torch.arange(n, device=x.device)[:, None, None]
    # advanced indices around the channel slice put the channels last
    return padded[batch, :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)


def cutout(x: Tensor, rows: Tensor, columns: Tensor, ratio: float = 0.5) -> Tensor:
    """Set a rectangle to zero. It is centred on the offsets (int64 ``[N]`` or ``[1]``) and cut off at the border.

    Its sides are ``int(ratio * side + 1/2)``; clamping at the border leaves at least the border row or column of it.

    Example:
        >>> cutout(torch.ones(1, 1, 4, 4), torch.tensor([2]), torch.tensor([2])).sum().item()
        12.0
    """
    _, _, h, w = x.shape
    gone = []
    for side, offset in ((h, rows), (w, columns)):
        size = int(side * ratio + 0.5)
        place = torch.arange(side, device=x.device)[None]  # [1, side]
        first = _each(offset, x)[:, None] - size // 2
        low, high = first.clamp(0, side - 1), (first + size - 1).clamp(0, side - 1)
        gone.append((place >= low) & (place <= high) if size > 0 else place.expand(x.shape[0], -1) < 0)
    hole = gone[0][:, None, :, None] & gone[1][:, None, None, :]  # [N, 1, H, W]
    return x.masked_fill(hole, 0.0)


def flip(x: Tensor, u: Tensor, prob: float = 0.5) -> Tensor:
    """Mirror left and right where ``u < prob``; ``u``: ``[N]`` or ``[1]`` in [0, 1).

    Example:
        >>> x = torch.arange(2.0).reshape(1, 1, 1, 2)
        >>> flip(x, torch.tensor([0.2])).flatten().tolist(), flip(x, torch.tensor([0.7])).flatten().tolist()
        ([1.0, 0.0], [0.0, 1.0])
    """
    return torch.where((_each(u, x) < prob)[:, None, None, None], x.flip(3), x)


def _geometry(x: Tensor) -> torch.dtype:
    """Coordinates are never computed in half precision, and bilinear sampling has no such kernel everywhere."""
    return torch.promote_types(x.dtype, torch.float32)


def _affine(x: Tensor, matrix: tuple[Tensor, Tensor, Tensor, Tensor], align_corners: bool) -> Tensor:
    """Sample ``x`` at ``(a X + b Y, c X + d Y)`` for pixel centres (X, Y) in [-1, 1]; a, b, c, d are ``[N]``."""
    # written out, because affine_grid is a matrix product: TF32 or autocast would move pixels there
    dtype = _geometry(x)
    axes = []
    for side in x.shape[2:]:
        line = (
            torch.linspace(-1.0, 1.0, side, dtype=dtype, device=x.device) if side > 1 else x.new_zeros(1, dtype=dtype)
        )
        axes.append(line if align_corners else line * (side - 1) / side)
    down, across = axes[0][None, :, None], axes[1][None, None, :]
    a, b, c, d = (m[:, None, None] for m in matrix)
    grid = torch.stack([across * a + down * b, across * c + down * d], dim=-1)  # [N, H, W, 2]
    return F.grid_sample(x.to(dtype), grid, align_corners=align_corners).to(x.dtype)


def scale(x: Tensor, u_x: Tensor, u_y: Tensor, ratio: float = 1.2, *, align_corners: bool = False) -> Tensor:
    """Zoom columns and rows by independent factors, uniform in [1/ratio, ratio]; zeros outside.

    ``u_x``, ``u_y``: ``[N]`` or ``[1]`` in [0, 1). A factor above 1 samples a larger window, so the image shrinks.

    Example:
        >>> x, none = torch.rand(1, 1, 4, 4), torch.tensor([0.3])
        >>> torch.allclose(scale(x, none, none, ratio=1.0), x, atol=1e-6)
        True
    """
    x_factor, y_factor = (_each(u, x, _geometry(x)) * (ratio - 1.0 / ratio) + 1.0 / ratio for u in (u_x, u_y))
    zero = torch.zeros_like(x_factor)
    return _affine(x, (x_factor, zero, zero, y_factor), align_corners)


def rotate(x: Tensor, u: Tensor, degrees: float = 15.0, *, align_corners: bool = False) -> Tensor:
    """Turn by ``(u - 1/2) 2 degrees`` about the centre; zeros outside. ``u``: ``[N]`` or ``[1]`` in [0, 1).

    Example:
        >>> x = torch.rand(1, 1, 4, 4)
        >>> torch.allclose(rotate(x, torch.tensor([0.5])), x, atol=1e-6)
        True
    """
    # operation by operation as published: in float32 another order moves border pixels by more than 1e-6
    angle = (_each(u, x, _geometry(x)) - 0.5) * 2.0 * degrees / 180.0 * math.pi
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _affine(x, (cos, -sin, sin, cos), align_corners)


# --------------------------------------------------------------------------------------------------------------- dsa


class _Call:
    """One call of DSA: what it draws, and how many numbers at a time."""

    def __init__(self, draw: Draw, siamese: bool, params: DSAParams, align_corners: bool) -> None:
        self.draw, self.siamese, self.params, self.align_corners = draw, siamese, params, align_corners

    def u(self, name: str, x: Tensor) -> Tensor:
        return self.draw(name, (1 if self.siamese else x.shape[0],))

    def k(self, name: str, x: Tensor, low: int, high: int) -> Tensor:
        return self.draw(name, (1 if self.siamese else x.shape[0],), high - low) + low

    def color(self, x: Tensor) -> Tensor:
        x = brightness(x, self.u("brightness", x), self.params.brightness)
        x = saturation(x, self.u("saturation", x), self.params.saturation)
        return contrast(x, self.u("contrast", x), self.params.contrast)

    def crop(self, x: Tensor) -> Tensor:
        h, w = (int(side * self.params.ratio_crop_pad + 0.5) for side in x.shape[2:])
        rows = self.k("crop.rows", x, -h, h + 1)
        return translate(x, rows, self.k("crop.columns", x, -w, w + 1))

    def cutout(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        odd_h, odd_w = (int(side * self.params.ratio_cutout + 0.5) % 2 for side in (h, w))
        rows = self.k("cutout.rows", x, 0, h + 1 - odd_h)
        return cutout(x, rows, self.k("cutout.columns", x, 0, w + 1 - odd_w), self.params.ratio_cutout)

    def flip(self, x: Tensor) -> Tensor:
        return flip(x, self.u("flip", x), self.params.prob_flip)

    def scale(self, x: Tensor) -> Tensor:
        u_x = self.u("scale.x", x)
        u_y = self.u("scale.y", x)
        return scale(x, u_x, u_y, self.params.ratio_scale, align_corners=self.align_corners)

    def rotate(self, x: Tensor) -> Tensor:
        return rotate(x, self.u("rotate", x), self.params.ratio_rotate, align_corners=self.align_corners)


FUNCTIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def strategy_names(strategy: str) -> list[str]:
    """The functions of a strategy like ``"color_crop_cutout_flip_scale_rotate"``; none for ``""`` and ``"none"``.

    Raises:
        ConfigError: for an unknown name, with the nearest valid ones.

    Example:
        >>> strategy_names("color_flip")
        ['color', 'flip']
    """
    if strategy.lower() in ("", "none"):
        return []
    names = strategy.split("_")
    for name in names:
        if name not in FUNCTIONS:
            raise ConfigError.unknown("strategy", name, FUNCTIONS, "augmentation")
    return names


def dsa(
    x: Tensor,
    strategy: str,
    draw: Draw,
    *,
    siamese: bool = False,
    mode: AugMode = "S",
    align_corners: bool = False,
    flip_first: bool = False,
    params: DSAParams | None = None,
) -> Tensor:
    """Differentiable siamese augmentation of a batch.

    Args:
        x: images ``[N, C, H, W]``.
        strategy: names joined by ``_``, of color (brightness, saturation, contrast in that order), crop, cutout, flip,
            scale, rotate. Leave flip out where a mirrored image is another class (digits).
        draw: where random numbers come from, see :class:`Draw`; the same draws give the same transform.
        siamese: one transform for the whole batch instead of one per image.
        mode: ``"S"`` one of the functions, drawn per call, for the whole batch; ``"M"`` all of them in turn.
        align_corners: False in DC, DSA, DM; True in MTT, FTD, TESLA, FYI.
        flip_first: take flip out of the choice and apply it first, always (FYI).
        params: strengths; the published ones by default.

    Returns:
        ``[N, C, H, W]``, differentiable by ``x``.

    Raises:
        ConfigError: for an unknown strategy or mode. ShapeError: if ``x`` is not a batch of float images.

    Example:
        >>> a, b = torch.ones(5, 1, 8, 8), torch.ones(2, 1, 8, 8)
        >>> one = [dsa(x, "crop_rotate", seeded_draw(3), siamese=True) for x in (a, b)]
        >>> torch.equal(one[0][:2], one[1])
        True
    """
    names = strategy_names(strategy)
    if mode not in ("S", "M"):
        raise ConfigError.unknown("mode", mode, ("S", "M"))
    _images(x)
    call = _Call(draw, siamese, params or DSAParams(), align_corners)
    if flip_first and "flip" in names:
        x = call.flip(x)
        names = [name for name in names if name != "flip"]
    if mode == "S" and names:
        names = [names[int(draw("choice", (1,), len(names)))]]
    for name in names:
        x = getattr(call, name)(x)
    return x.contiguous()


def mirror_batch(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Images followed by their mirror images ``[2N, C, H, W]``, labels followed by themselves (FYI's batch).

    Source: Son et al. 2024 (FYI, arXiv 2407.08113), section 3.

    Example:
        >>> x, y = mirror_batch(torch.arange(2.0).reshape(1, 1, 1, 2), torch.tensor([7]))
        >>> x.flatten().tolist(), y.tolist()
        ([0.0, 1.0, 1.0, 0.0], [7, 7])
    """
    _images(x)
    return torch.cat([x, x.flip(-1)]), torch.cat([y, y])
