"""Random images and plain networks, reached from recipes as a user's own (``import:benchmarks.pictures:network``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.items import ArrayData, Splits


def pictures(items: int, size: int, channels: int, classes: int) -> Splits:
    """Noise with labels: training items, and a handful to choose and evaluate by."""
    draw = torch.Generator().manual_seed(0)

    def some(count: int) -> ArrayData:
        x = torch.rand(count, channels, size, size, generator=draw)
        return ArrayData(x, torch.arange(count) % classes)

    return Splits(some(items), some(2 * classes), some(2 * classes), [str(i) for i in range(classes)], "label")


def network(kind: str, num_classes: int, shape: tuple[int, ...], width: int = 8) -> nn.Module:
    """A network by name: any of timm's, or ``small``: two convolutions and a linear layer."""
    if kind != "small":
        import timm

        module: nn.Module = timm.create_model(kind, num_classes=num_classes, in_chans=shape[0])
        return module
    return Small(shape, num_classes, width)


class Small(nn.Module):
    """A network whose step takes a millisecond or two, with the attributes that timm's task asks a student for."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__()
        channels, side = shape[0], shape[-1] // 4
        self.first, self.second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.head = nn.Linear(width * side * side, classes)
        self.num_classes, self.in_chans = classes, channels
        self.pretrained_cfg: dict[str, Any] = {"mean": (0.5,) * channels, "std": (0.5,) * channels}

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, C] of images [N, channels, S, S]."""
        x = nn.functional.max_pool2d(self.norm1(self.first(x)).relu(), 2)
        x = nn.functional.max_pool2d(self.norm2(self.second(x)).relu(), 2)
        return self.head(x.flatten(1))


__all__ = ["network", "pictures"]
