"""Wide residual networks for small images: three stages of pre-activated blocks at 32, 16 and 8 pixels.

Zagoruyko, Komodakis: Wide Residual Networks (BMVC 2016), table 1: depth 6n + 4, widths 16, 16k, 32k, 64k. Normalisation and
activation come before each convolution; where the width changes, the shortcut is a 1x1 convolution of the activated input.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as f

from limbeck.errors import ConfigError

__all__ = ["WideResNet"]


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each behind its normalisation: ``[N, before, H, W]`` to ``[N, width, H / stride, W / stride]``.

    Args:
        before: channels of the input.
        width: channels of the output.
        stride: of the first convolution.
        dropout: share of values dropped between the convolutions while training.
    """

    def __init__(self, before: int, width: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.drop = nn.Dropout(dropout) if dropout else None
        same = before == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, before the next block's normalisation."""
        active = f.relu(self.bn1(x))
        out = f.relu(self.bn2(self.conv1(active)))
        out = self.conv2(out if self.drop is None else self.drop(out))
        # where the width changes, the paper's shortcut sees the activated input
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A wide residual network for small images, WRN-depth-widen.

    Args:
        depth: 6n + 4 layers: 10, 16, 22, 28, 40.
        widen: k, by which every stage is wider than 16, 32 and 64 channels.
        classes: number of outputs.
        channels: of the input.
        dropout: share of values dropped inside blocks while training.

    Raises:
        ConfigError: a depth that is not 6n + 4, a factor below 1, or a share outside of [0, 1).

    Example:
        >>> import torch
        >>> net = WideResNet(40, 1, classes=100)
        >>> net(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in net.parameters())
        (torch.Size([2, 100]), 569780)
    """

    def __init__(
        self, depth: int = 40, widen: int = 1, classes: int = 10, channels: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ConfigError("depth", given=depth, expected="6n + 4, as 10, 16, 22, 28 or 40")
        if widen < 1:
            raise ConfigError("widen", given=widen, expected="1 or more")
        if not 0 <= dropout < 1:
            raise ConfigError("dropout", given=dropout, expected="from 0 to below 1")
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]

        def stage(i: int, stride: int) -> nn.Sequential:
            before, width = widths[i - 1], widths[i]
            rest = [WideBlock(width, width, 1, dropout) for _ in range(blocks - 1)]
            return nn.Sequential(WideBlock(before, width, stride, dropout), *rest)

        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.layer1, self.layer2, self.layer3 = stage(1, 1), stage(2, 2), stage(3, 2)
        self.bn = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def embed(self, x: Tensor) -> Tensor:
        """Pooled features ``[N, 64 * widen]``, the last layer's input."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return f.relu(self.bn(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, channels, H, W]``."""
        logits: Tensor = self.linear(self.embed(x))
        return logits
