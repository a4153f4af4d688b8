"""Networks that answer with a map: a small U-Net, and a decoder over the pyramid of any encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from limbeck.errors import ConfigError

__all__ = ["Decoded", "Pyramid", "UNet"]

Norm = Literal["group", "batch"]


def _norm(kind: Norm, width: int) -> nn.Module:
    groups = next(g for g in (8, 4, 2, 1) if width % g == 0)
    return nn.GroupNorm(groups, width) if kind == "group" else nn.BatchNorm2d(width)


def _block(before: int, after: int, norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for given in (before, after):
        layers += [nn.Conv2d(given, after, 3, padding=1, bias=False), _norm(norm, after), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Blocks of two 3x3 convolutions on the way down, and up again beside what was there (Ronneberger et al., 2015).

    Images of any size: the sides need not divide by the strides.

    Args:
        channels: of an image.
        outputs: values at each place.
        width: channels of the first block; doubled with each level.
        depth: how often the image is halved.
        stride: pixels of the image for each place of the output, a power of two up to ``2**depth``.
        norm: ``group``, which treats each image by itself, or ``batch``.

    Example:
        >>> UNet(3, 5, width=4, depth=2, stride=2)(torch.zeros(1, 3, 18, 25)).shape
        torch.Size([1, 5, 9, 12])
    """

    def __init__(
        self, channels: int, outputs: int, width: int = 16, depth: int = 3, stride: int = 1, norm: Norm = "group"
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        if stride not in [2**i for i in range(depth + 1)]:
            raise ConfigError("stride", given=stride, expected=f"a power of two up to {2**depth}, 2**depth")
        last = stride.bit_length() - 1  # the level on which it answers
        self.down = nn.ModuleList(
            _block(before, after, norm) for before, after in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            _block(widths[i] + widths[i + 1], widths[i], norm) for i in reversed(range(last, depth))
        )
        self.head = nn.Conv2d(widths[last], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, outputs, h, w] of images [N, channels, H, W]; h = H // stride."""
        beside: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if i else x)
            beside.append(x)
        for block, fine in zip(self.up, reversed(beside[:-1]), strict=False):
            x = block(torch.cat([interpolate(x, fine.shape[-2:], mode="nearest"), fine], 1))
        out: Tensor = self.head(x)
        return out


class Pyramid(nn.Module):
    """An encoder whose maps [N, h, w, D] are turned to [N, D, h, w].

    Args:
        encoder: returns a list of maps, the finest first.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps."""
        return [f.movedim(-1, 1) for f in self.encoder(x)]


class Decoded(nn.Module):
    """A map from an encoder's pyramid: every level to one width, the coarse added to the fine (Lin et al., 2017).

    Args:
        encoder: returns a list of maps [N, D_i, h_i, w_i], the finest first.
        widths: their channels D_i.
        outputs: values at each place; the output has the sides of the finest map.
        width: channels of the decoder.
        norm: ``group``, which treats each image by itself, or ``batch``.
    """

    def __init__(
        self, encoder: nn.Module, widths: Sequence[int], outputs: int, width: int = 64, norm: Norm = "group"
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.lateral = nn.ModuleList(nn.Conv2d(d, width, 1) for d in widths)
        self.smooth = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), _norm(norm, width), nn.ReLU())
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, outputs, h, w] of images [N, C, H, W]."""
        levels = [layer(f) for layer, f in zip(self.lateral, self.encoder(x), strict=True)]
        merged = levels[-1]
        for fine in reversed(levels[:-1]):
            merged = fine + interpolate(merged, fine.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.head(self.smooth(merged))
        return out
