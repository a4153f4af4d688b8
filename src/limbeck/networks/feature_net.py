"""The small classifier in whose features samples of tiny images are evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["FeatureNet"]


class FeatureNet(nn.Module):
    """The small classifier whose penultimate features the Fréchet distance is taken in.

    Up to 1,024 input values a perceptron with 128 and 32 units; above, three strided convolutions.

    Args:
        shape: (channels, height, width) of an image.
        classes: number of classes.
        width: size of the features.

    Example:
        >>> net = FeatureNet((1, 8, 8), 10)
        >>> net.embed(torch.zeros(2, 1, 8, 8)).shape, net(torch.zeros(2, 1, 8, 8)).shape
        (torch.Size([2, 32]), torch.Size([2, 10]))
    """

    def __init__(self, shape: Sequence[int], classes: int, width: int = 32) -> None:
        super().__init__()
        channels, height, across = shape
        values = channels * height * across
        if values <= 1024:
            body: list[nn.Module] = [nn.Flatten(), nn.Linear(values, 128), nn.ReLU()]
            last = 128
        else:
            body, last = [], channels
            for size in (32, 64, 128):
                body += [nn.Conv2d(last, size, 3, stride=2, padding=1), nn.GroupNorm(8, size), nn.ReLU()]
                last = size
            body += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.body = nn.Sequential(*body, nn.Linear(last, width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Features [N, width] of images [N, C, H, W] in [0, 1]."""
        out: Tensor = self.body(x * 2.0 - 1.0)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        out: Tensor = self.head(self.embed(x))
        return out
