"""The ResNets of CIFAR: three stages of basic blocks at 32, 16 and 8 pixels, shortcuts without parameters by default.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition (2016), section 4.2: depth 6n + 2, widths 16, 32, 64,
option A (stride-2 subsampling and zero-padded channels) where the size changes; option B is a 1x1 convolution with batch
normalisation. State-dict keys are those of the widely shared weights: ``conv1``, ``bn1``, ``layer1.0.conv1`` ... ``linear``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as f

from limbeck.errors import ConfigError

__all__ = ["CifarResNet"]

Shortcut = Literal["pad", "conv"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``[N, before, H, W]`` to ``[N, width, H / stride, W / stride]``."""

    def __init__(self, before: int, width: int, stride: int, shortcut: Shortcut = "pad") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.pad = stride, width - before
        self.downsample: nn.Sequential | None = None
        if shortcut == "conv" and (stride != 1 or self.pad):
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        out = self.bn2(self.conv2(f.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.stride != 1 or self.pad:
            front = self.pad // 2
            x = f.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.pad - front))
        return f.relu(out + x)


class CifarResNet(nn.Module):
    """A ResNet for small images.

    Args:
        depth: 6n + 2 layers: 20, 32, 44, 56, 110.
        classes: number of outputs.
        channels: of the input.
        width: channels of the first stage; the others have two and four times as many.
        blocks: of each of the three stages, in place of ``depth``, which has as many in each.
        stem: channels of the first convolution; ``None``: as many as the first stage.
        shortcut: where the size changes, ``pad`` subsamples and pads with zeros (option A), ``conv`` is a 1x1 convolution with
            batch normalisation (option B).

    Raises:
        ConfigError: a depth that is not 6n + 2, a width or stem below 1, a first stage narrower than the stem with ``pad``, or
            other than three stages of one block or more.

    Example:
        >>> import torch
        >>> net = CifarResNet(20)
        >>> net(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in net.parameters())
        (torch.Size([2, 10]), 269722)
    """

    def __init__(
        self,
        depth: int = 20,
        classes: int = 10,
        channels: int = 3,
        width: int = 16,
        blocks: Sequence[int] | None = None,
        stem: int | None = None,
        shortcut: Shortcut = "pad",
    ) -> None:
        super().__init__()
        if blocks is None and (depth < 8 or (depth - 2) % 6):
            raise ConfigError("depth", given=depth, expected="6n + 2, as 20, 32, 44, 56 or 110")
        if blocks is not None and (len(blocks) != 3 or min(blocks) < 1):
            raise ConfigError("blocks", given=list(blocks), expected="three numbers of 1 or more, one for each stage")
        if width < 1:
            raise ConfigError("width", given=width, expected="1 or more")
        stem = width if stem is None else stem
        if stem < 1 or (shortcut == "pad" and stem > width):
            most = f"from 1 to {width}, the first stage's width" if shortcut == "pad" else "1 or more"
            raise ConfigError("stem", given=stem, expected=most)
        first, second, third = blocks if blocks is not None else [(depth - 2) // 6] * 3

        def stage(before: int, width: int, stride: int, n: int) -> nn.Sequential:
            rest = [BasicBlock(width, width, 1) for _ in range(n - 1)]
            return nn.Sequential(BasicBlock(before, width, stride, shortcut), *rest)

        self.conv1 = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage(stem, width, 1, first)
        self.layer2 = stage(width, 2 * width, 2, second)
        self.layer3 = stage(2 * width, 4 * width, 2, third)
        self.linear = nn.Linear(4 * width, classes)
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(m.weight)

    def embed(self, x: Tensor) -> Tensor:
        """Pooled features ``[N, 4 * width]``, the last layer's input."""
        x = f.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, channels, H, W]``."""
        logits: Tensor = self.linear(self.embed(x))
        return logits
