"""The small networks of data set distillation: its ConvNet, and the pool on which distilled data must also work.

Architectures follow Zhao, Mopuri and Bilen 2021 (arXiv 2006.05929) and Cazenavette et al. 2022 (arXiv 2203.11932):
"instance" normalisation is ``GroupNorm(C, C)`` with an affine part, the residual networks have the stem for small
images. All take ``[N, C, H, W]`` floats, answer logits ``[N, classes]``, and ``embed(x)`` gives the flat features
``[N, D]`` that the last linear layer reads. They were made for 32 x 32 pixels; here the head is sized by the image, and
where an image is too small for a pooling or a stride, that pooling or stride is left out (each class says which).

The constructor's arguments are kept in ``config``, which is plain JSON: ``type(net)(**net.config)`` is the same net.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, ShapeError

__all__ = ["MLP", "VGG11", "AlexNet", "ConvNet", "LeNet", "ResNet18", "ResNet18AP"]

Activation = Literal["relu", "leakyrelu", "sigmoid", "swish"]
Norm = Literal["none", "batch", "layer", "instance", "group"]
Pool = Literal["none", "max", "avg"]
Size = int | Sequence[int]

ACTIVATIONS = ("relu", "leakyrelu", "sigmoid", "swish")
NORMS = ("none", "batch", "layer", "instance", "group")
POOLS = ("none", "max", "avg")


def _size(im_size: Size) -> tuple[int, int]:
    """``(height, width)`` of an image given as a number or a pair."""
    pair = (im_size, im_size) if isinstance(im_size, int) else tuple(int(s) for s in im_size)
    if len(pair) != 2 or min(pair) < 1:
        raise ConfigError("im_size", given=im_size, expected="pixels on a side, or (height, width)")
    return pair[0], pair[1]


def _named(argument: str, value: str, names: Sequence[str], suffix: str = "") -> str:
    """A short name, or its published long form (``instancenorm``, ``avgpooling``)."""
    short = value[: -len(suffix)] if suffix and value.endswith(suffix) else value
    if short not in names:
        raise ConfigError.unknown(argument, value, names)
    return short


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(name, given=value, expected="at least 1")


def _activation(name: str) -> nn.Module:
    # never in place: a tap on the normalisation must see what the normalisation put out
    return {
        "relu": nn.ReLU(),
        "leakyrelu": nn.LeakyReLU(0.01),
        "sigmoid": nn.Sigmoid(),
        "swish": nn.SiLU(),
    }[name]


def _norm(name: str, channels: int, size: tuple[int, int]) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "layer":
        return nn.LayerNorm([channels, *size])
    if name == "group":
        return nn.GroupNorm(4, channels)
    return nn.GroupNorm(channels, channels)


class _Net(nn.Module):
    """What all of them share: the check at the door, ``embed`` before ``classifier``, the JSON config."""

    def __init__(self, config: dict[str, Any], channels: int, im_size: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self.im_size = im_size
        self.features: nn.Module
        self.classifier: nn.Module

    def embed(self, x: Tensor) -> Tensor:
        """Flat features ``[N, D]``, the classifier's input."""
        if x.ndim != 4 or tuple(x.shape[1:]) != (self.channels, *self.im_size):
            raise ShapeError(
                "x",
                f"{type(self).__name__} was built for other images",
                given=tuple(x.shape),
                expected=f"[N, {self.channels}, {self.im_size[0]}, {self.im_size[1]}]",
            )
        return self._features(x).flatten(1)

    def _features(self, x: Tensor) -> Tensor:
        out: Tensor = self.features(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, C, H, W]``."""
        logits: Tensor = self.classifier(self.embed(x))
        return logits


class ConvNet(_Net):
    """``depth`` blocks of 3x3 convolution, normalisation, activation, pooling; then one linear layer.

    A one-channel image is padded by 3 in the first convolution, as published, so that 28 x 28 becomes 32 x 32; the map
    grows by 4 pixels there. State-dict keys are those of the published network (``features.0.weight``, ...,
    ``classifier.bias``).

    Args:
        channels: image channels.
        classes: number of classes.
        width: channels of every convolution; a multiple of 4 with ``norm="group"``.
        depth: number of blocks. Each pooling halves the map; 3 is usual for 32 pixels, 4 for 64, 5 for 128.
        activation: ``relu``, ``leakyrelu`` (slope 0.01), ``sigmoid`` or ``swish``.
        norm: ``instance`` (a GroupNorm of one channel a group), ``group`` (4 groups), ``layer`` (over channels, rows
            and columns), ``batch`` or ``none``.
        pooling: ``avg``, ``max`` (2x2, stride 2) or ``none``.
        im_size: pixels on a side, or (height, width).

    Raises:
        ConfigError: for an unknown name, or a depth that pools the map away (it names the largest depth).

    Example:
        >>> net = ConvNet(channels=1, classes=10, width=16, depth=2, im_size=8)
        >>> net(torch.zeros(3, 1, 8, 8)).shape, net.embed(torch.zeros(3, 1, 8, 8)).shape
        (torch.Size([3, 10]), torch.Size([3, 144]))
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 10,
        width: int = 128,
        depth: int = 3,
        activation: str = "relu",
        norm: str = "instance",
        pooling: str = "avg",
        im_size: Size = 32,
    ) -> None:
        _positive(channels=channels, classes=classes, width=width, depth=depth)
        activation = _named("activation", activation, ACTIVATIONS)
        norm = _named("norm", norm, NORMS, "norm")
        pooling = _named("pooling", pooling, POOLS, "pooling")
        size = _size(im_size)
        super().__init__(
            {
                "channels": channels,
                "classes": classes,
                "width": width,
                "depth": depth,
                "activation": activation,
                "norm": norm,
                "pooling": pooling,
                "im_size": list(size),
            },
            channels,
            size,
        )
        if norm == "group" and width % 4:
            raise ConfigError("width", "norm 'group' has 4 groups", given=width, expected="a multiple of 4")
        grown = 4 if channels == 1 else 0
        h, w = size[0] + grown, size[1] + grown
        deepest = int(math.log2(min(h, w)))
        if pooling != "none" and depth > deepest:
            raise ConfigError(
                "depth",
                f"each block halves the map, and {min(size)} pixels cannot be halved so often",
                given=depth,
                expected=f"at most {deepest}",
                remedy=f"use depth={deepest}, or pooling='none'",
            )
        layers: list[nn.Module] = []
        before = channels
        for block in range(depth):
            layers.append(nn.Conv2d(before, width, 3, padding=3 if channels == 1 and block == 0 else 1))
            if norm != "none":
                layers.append(_norm(norm, width, (h, w)))
            layers.append(_activation(activation))
            if pooling != "none":
                layers.append(nn.MaxPool2d(2, 2) if pooling == "max" else nn.AvgPool2d(2, 2))
                h, w = h // 2, w // 2
            before = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * h * w, classes)


class MLP(_Net):
    """Two hidden layers of ReLU units on the flat image.

    Example:
        >>> MLP(channels=1, im_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: int = 3, classes: int = 10, width: int = 128, im_size: Size = 32) -> None:
        _positive(channels=channels, classes=classes, width=width)
        size = _size(im_size)
        config = {"channels": channels, "classes": classes, "width": width, "im_size": list(size)}
        super().__init__(config, channels, size)
        self.features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * size[0] * size[1], width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(width, classes)


class LeNet(_Net):
    """Two 5x5 convolutions with max pooling, then 120 and 84 units.

    The published network does not pad its second convolution (nor, for colour images, its first). Images under 16
    pixels (12 for one channel) are too small for that: there both are padded by 2.

    Example:
        >>> LeNet(channels=1, im_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: int = 3, classes: int = 10, im_size: Size = 32) -> None:
        _positive(channels=channels, classes=classes)
        size = _size(im_size)
        if min(size) < 4:
            raise ConfigError("im_size", "LeNet halves the map twice", given=list(size), expected="at least 4 pixels")
        super().__init__({"channels": channels, "classes": classes, "im_size": list(size)}, channels, size)
        small = min(size) < (12 if channels == 1 else 16)
        first, second = (2, 2) if small else (2 if channels == 1 else 0, 0)
        h, w = (((s + 2 * first - 4) // 2 + 2 * second - 4) // 2 for s in size)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, padding=second),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * h * w, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(84, classes)


class AlexNet(_Net):
    """Five convolutions (128, 192, 256, 192, 192 channels) with three max poolings; no hidden linear layer.

    Poolings that the image is too small for (under 8 pixels) are left out.

    Example:
        >>> AlexNet(channels=1, im_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: int = 3, classes: int = 10, im_size: Size = 32) -> None:
        _positive(channels=channels, classes=classes)
        size = _size(im_size)
        super().__init__({"channels": channels, "classes": classes, "im_size": list(size)}, channels, size)
        padding = 4 if channels == 1 else 2
        h, w = (s + 2 * padding - 4 for s in size)
        plan: list[tuple[int, int, int, int, bool]] = [
            (channels, 128, 5, padding, True),
            (128, 192, 5, 2, True),
            (192, 256, 3, 1, False),
            (256, 192, 3, 1, False),
            (192, 192, 3, 1, True),
        ]
        layers: list[nn.Module] = []
        for before, after, kernel, pad, pool in plan:
            layers += [nn.Conv2d(before, after, kernel, padding=pad), nn.ReLU()]
            if pool and min(h, w) >= 2:
                layers.append(nn.MaxPool2d(2))
                h, w = h // 2, w // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(192 * h * w, classes)


class VGG11(_Net):
    """Eight 3x3 convolutions of VGG11, each with normalisation, and its five max poolings.

    A one-channel image is padded by 3 first. Poolings after which the map would have a single pixel while a
    normalisation is still to come are left out: a group of one value normalises to a constant.

    Args:
        norm: ``instance`` or ``batch``.

    Example:
        >>> VGG11(channels=1, im_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    PLAN: tuple[int | None, ...] = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)

    def __init__(self, channels: int = 3, classes: int = 10, norm: str = "instance", im_size: Size = 32) -> None:
        _positive(channels=channels, classes=classes)
        norm = _named("norm", norm, ("instance", "batch"), "norm")
        size = _size(im_size)
        config = {"channels": channels, "classes": classes, "norm": norm, "im_size": list(size)}
        super().__init__(config, channels, size)
        grown = 4 if channels == 1 else 0
        h, w = size[0] + grown, size[1] + grown
        layers: list[nn.Module] = []
        before = channels
        for place, item in enumerate(self.PLAN):
            if item is None:
                last = place == len(self.PLAN) - 1
                if min(h, w) // 2 >= (1 if last else 2):
                    layers.append(nn.MaxPool2d(2))
                    h, w = h // 2, w // 2
                continue
            layers.append(nn.Conv2d(before, item, 3, padding=3 if channels == 1 and place == 0 else 1))
            layers += [_norm(norm, item, (h, w)), nn.ReLU()]
            before = item
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512 * h * w, classes)


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut. ``pooled``: the stride is an average pooling instead."""

    def __init__(self, before: int, after: int, stride: int, norm: str, pooled: bool) -> None:
        super().__init__()
        step = 1 if pooled else stride
        self.conv1 = nn.Conv2d(before, after, 3, stride=step, padding=1, bias=False)
        self.norm1 = _norm(norm, after, (1, 1))
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, after, (1, 1))
        self.pool: nn.Module = nn.AvgPool2d(2) if pooled and stride == 2 else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=step, bias=False),
                nn.AvgPool2d(2) if pooled and stride == 2 else nn.Identity(),
                _norm(norm, after, (1, 1)),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.pool(torch.relu(self.norm1(self.conv1(x))))
        return torch.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet18(_Net):
    """ResNet-18 with the stem for small images (3x3, stride 1, no pooling).

    The head averages 4 x 4 windows, or the whole map where that is smaller. Strides that would leave a map of fewer
    than 2 pixels are left out, so that its normalisations have something to normalise.

    Args:
        norm: ``instance`` or ``batch``.

    Example:
        >>> ResNet18(channels=1, im_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    pooled = False

    def __init__(self, channels: int = 3, classes: int = 10, norm: str = "instance", im_size: Size = 32) -> None:
        _positive(channels=channels, classes=classes)
        norm = _named("norm", norm, ("instance", "batch"), "norm")
        size = _size(im_size)
        if min(size) < 2:
            raise ConfigError("im_size", given=list(size), expected="at least 2 pixels")
        config = {"channels": channels, "classes": classes, "norm": norm, "im_size": list(size)}
        super().__init__(config, channels, size)
        h, w = size
        layers: list[nn.Module] = [nn.Conv2d(channels, 64, 3, padding=1, bias=False), _norm(norm, 64, size), nn.ReLU()]
        before = 64
        for after, wanted in ((64, 1), (128, 2), (256, 2), (512, 2)):
            # a strided convolution rounds up, a pooling down: demand 4 so that 2 are left either way
            stride = wanted if min(h, w) >= 4 else 1
            layers += [
                _Block(before, after, stride, norm, self.pooled),
                _Block(after, after, 1, norm, self.pooled),
            ]
            if stride == 2:
                h, w = (h // 2, w // 2) if self.pooled else ((h + 1) // 2, (w + 1) // 2)
            before = after
        if not self.pooled:
            window = (min(4, h), min(4, w))
            layers.append(nn.AvgPool2d(window))
            h, w = h // window[0], w // window[1]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512 * h * w, classes)


class ResNet18AP(ResNet18):
    """ResNet-18 whose strides are average poolings, and whose head reads the whole last map.

    Example:
        >>> ResNet18AP(channels=3, im_size=8)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    pooled = True
