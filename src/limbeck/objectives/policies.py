"""Augmentation policies on torchvision's kernels, each draw keyed by item and view so that it can be replayed.

Sources: RandAugment (Cubuk et al. 2020), TrivialAugment (Müller and Hutter 2021), random erasing (Zhong et al. 2020). The
operations and their ranges are those that torchvision documents for its transforms of these names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Context, Query
from limbeck.grammar.settings import Count, Fraction, Natural, NonNegative, settings
from limbeck.grammar.task import Task
from limbeck.objectives.queries import images_of, key_of_view, over_pixels, refuse_places

NAMES = {
    "query": {
        "rand-augment": "RandAugment",
        "trivial-augment": "TrivialAugment",
        "erase": "Erase",
        "jitter": "Jitter",
    }
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

LEVELS: Final = 30.0
"""The strongest magnitude of a policy."""


def _kernels(wide: bool) -> list[Callable[[Tensor, float, float], Tensor]]:
    """Operations (image [C, H, W] in [0, 1], strength in [0, 1], sign) -> image; ``wide``: TrivialAugment's ranges."""
    from torchvision.transforms.v2 import functional as V

    shear, shift, turn, colour, bits = (0.99, 32.0 / 224, 135.0, 0.99, 6) if wide else (0.3, 150.0 / 331, 30.0, 0.9, 4)

    def moved(x: Tensor, **how: Any) -> Tensor:
        plain: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
        return V.affine(x, **{**plain, **how})

    def degrees(s: float) -> float:
        return float(torch.rad2deg(torch.atan(torch.tensor(s))))

    def enhanced(kernel: Any) -> Callable[[Tensor, float, float], Tensor]:
        return lambda x, m, s: kernel(x, 1.0 + s * colour * m)

    return [
        lambda x, m, s: x,
        lambda x, m, s: moved(x, shear=[degrees(s * shear * m), 0.0]),
        lambda x, m, s: moved(x, shear=[0.0, degrees(s * shear * m)]),
        lambda x, m, s: moved(x, translate=[round(s * shift * m * x.shape[-1]), 0]),
        lambda x, m, s: moved(x, translate=[0, round(s * shift * m * x.shape[-2])]),
        lambda x, m, s: V.rotate(x, s * turn * m),
        enhanced(V.adjust_brightness),
        lambda x, m, s: V.adjust_saturation(x, 1.0 + s * colour * m) if x.shape[0] == 3 else x,
        enhanced(V.adjust_contrast),
        enhanced(V.adjust_sharpness),
        lambda x, m, s: V.posterize(x, 8 - round(bits * m)),
        lambda x, m, s: V.solarize(x, 1.0 - m),
        lambda x, m, s: V.autocontrast(x),
        lambda x, m, s: V.equalize(x),
    ]


class _Policy(Query):
    """Operations drawn for each item."""

    views: int
    wide = False

    def accept(self, task: Task) -> None:
        """Images in [0, 1] of one or three channels, whose masks, boxes and points do not move with them."""
        name = str(self.config.get("use", type(self).__name__))
        example = task.example(1)
        x = images_of(example, name)
        refuse_places(task, name)
        if over_pixels(example):
            raise ConfigError(f"queries.{name}", "it moves images and leaves their masks", remedy="leave it out")
        if x.shape[1] not in (1, 3):
            raise ConfigError(
                f"queries.{name}", given=f"images of {x.shape[1]} channels", expected="1 or 3", remedy="leave it out"
            )

    def drawn(self, u: Tensor) -> list[list[tuple[int, float, float]]]:
        """For each item the operations: (which, strength in [0, 1], sign), from uniform numbers [N, K, 3]."""
        raise NotImplementedError

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Changed images."""
        x = images_of(batch, "policy")
        kernels = _kernels(self.wide)
        u = ctx.draws.anywhere().rand(type(self).__name__, key_of_view(batch, self.views), (self.count, 3))
        made = []
        for image, operations in zip(x, self.drawn(u.cpu()), strict=True):
            for which, strength, sign in operations:
                image = kernels[which](image, strength, sign)
            made.append(image)
        return {**batch, "x": torch.stack(made).clamp(0.0, 1.0)}

    @property
    def count(self) -> int:
        """How many operations an item gets."""
        return 1


@settings
class RandAugment(_Policy):
    """RandAugment: a few operations on each image, drawn from fourteen, all of one magnitude (Cubuk et al. 2020).

    Identity, shear and shift along both axes, rotation, brightness, saturation, contrast, sharpness, posterising,
    solarising, automatic contrast, equalising; the sign of a change is drawn.

    Args:
        operations: how many on each image.
        magnitude: how strong, from 0 to 30.
        views: draws repeat after this many passes (so a cache can hold them); 0: never.
    """

    operations: Count = 2
    magnitude: NonNegative = 9.0
    views: Natural = 0

    def validate(self) -> None:
        """A magnitude within its range."""
        if self.magnitude > LEVELS:
            raise ValueError(f"magnitude must be at most {LEVELS:g}")

    @property
    def count(self) -> int:
        """``operations``."""
        return self.operations

    def drawn(self, u: Tensor) -> list[list[tuple[int, float, float]]]:
        """Operations with replacement, all of one strength."""
        n = 14
        return [
            [(min(n - 1, int(a * n)), self.magnitude / LEVELS, 1.0 if c < 0.5 else -1.0) for a, _, c in row]
            for row in u.tolist()
        ]


@settings
class TrivialAugment(_Policy):
    """TrivialAugment: one operation on each image, of a strength that is drawn too (Müller and Hutter 2021, wide ranges).

    Args:
        views: draws repeat after this many passes (so a cache can hold them); 0: never.
    """

    views: Natural = 0
    wide = True

    def drawn(self, u: Tensor) -> list[list[tuple[int, float, float]]]:
        """One operation, any strength."""
        n = 14
        return [[(min(n - 1, int(a * n)), b, 1.0 if c < 0.5 else -1.0) for a, b, c in row] for row in u.tolist()]


@settings
class Erase(Query):
    """Random erasing: a rectangle of each chosen image is filled with noise (Zhong et al. 2020).

    Args:
        probability: of erasing in an image.
        lowest: the smallest share of the image's area.
        highest: the largest.
        aspect: the longest shape, as height over width or the reverse.
        views: draws repeat after this many passes; 0: never.
    """

    probability: Fraction = 0.25
    lowest: Fraction = 0.02
    highest: Fraction = 1.0 / 3.0
    aspect: NonNegative = 3.0
    views: Natural = 0

    def validate(self) -> None:
        """Ranges."""
        if not 0 < self.lowest <= self.highest:
            raise ValueError("lowest must be above 0 and at most highest")
        if self.aspect < 1:
            raise ValueError("aspect must be 1 or more")

    def accept(self, task: Task) -> None:
        """Images alone."""
        images_of(task.example(1), "erase")

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Images with rectangles of uniform noise."""
        x = images_of(batch, "erase")
        _, c, h, w = x.shape
        keys, draws = key_of_view(batch, self.views), ctx.draws.anywhere()
        u = draws.rand("erase", keys, (5,)).to(x.device)
        area = (self.lowest + (self.highest - self.lowest) * u[:, 1]) * h * w
        ratio = torch.exp((2.0 * u[:, 2] - 1.0) * torch.log(torch.tensor(max(self.aspect, 1.0))))
        height = (area * ratio).sqrt().round().clamp(1, h)
        width = (area / ratio).sqrt().round().clamp(1, w)
        top, left = (u[:, 3] * (h - height + 1)).floor(), (u[:, 4] * (w - width + 1)).floor()
        rows, cols = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
        inside = ((rows >= top[:, None]) & (rows < (top + height)[:, None]))[:, :, None] & (
            (cols >= left[:, None]) & (cols < (left + width)[:, None])
        )[:, None, :]
        chosen = (inside & (u[:, 0] < self.probability)[:, None, None])[:, None]
        noise = draws.rand("erase-noise", keys, (c, h, w)).to(x)
        return {**batch, "x": torch.where(chosen, noise, x)}


@settings
class Jitter(Query):
    """Brightness, contrast and saturation of each image changed by factors that are drawn for it.

    Args:
        brightness, contrast, saturation: a factor is drawn from 1 - value to 1 + value; 0 leaves it.
        views: draws repeat after this many passes; 0: never.
    """

    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.4
    views: Natural = 0

    def accept(self, task: Task) -> None:
        """Images alone."""
        images_of(task.example(1), "jitter")

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Changed images, values in [0, 1]."""
        x = images_of(batch, "jitter")
        u = ctx.draws.anywhere().rand("jitter", key_of_view(batch, self.views), (3,)).to(x) * 2.0 - 1.0
        b, c, s = (
            1.0 + v * u[:, i, None, None, None] for i, v in enumerate((self.brightness, self.contrast, self.saturation))
        )
        x = (x * b).clamp(0.0, 1.0)
        x = ((x - _grey(x).mean((1, 2, 3), keepdim=True)) * c + _grey(x).mean((1, 2, 3), keepdim=True)).clamp(0.0, 1.0)
        return {**batch, "x": (_grey(x) + (x - _grey(x)) * s).clamp(0.0, 1.0)}


def _grey(x: Tensor) -> Tensor:
    """Luma [N, 1, H, W]; of one channel itself, of other numbers of channels their mean."""
    if x.shape[1] == 3:
        weights = x.new_tensor([0.2989, 0.587, 0.114])[:, None, None]
        return (x * weights).sum(1, keepdim=True)
    return x.mean(1, keepdim=True)


__all__ = ["Erase", "Jitter", "RandAugment", "TrivialAugment"]
