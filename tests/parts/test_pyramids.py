"""The pyramid of a network, read off it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from limbeck.errors import TapError
from limbeck.grammar.signal import Tap
from limbeck.parts.pyramids import Level, pyramid_of


class Block(nn.Module):
    """A convolution that halves the sides, and its activation, shown twice."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(low, high, 3, 2, 1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x))


def test_the_outermost_module_of_each_resolution() -> None:
    net = nn.Sequential(Block(1, 4), Block(4, 8), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = net[2].running_mean.clone()  # type: ignore[union-attr, operator]
    x = torch.randn(2, 1, 16, 12)
    levels = pyramid_of(net, x)
    assert levels == [Level("0", 4, 8, 6), Level("2", 8, 4, 3)]
    assert torch.equal(before, net[2].running_mean) and net.training  # type: ignore[arg-type, union-attr]
    with Tap(net, [level.path for level in levels]) as tap:
        net(x)
    assert [list(tap.acts[level.path].shape[1:]) for level in levels] == [[4, 8, 6], [8, 4, 3]]


def test_of_a_network_of_a_library_and_too_many_levels() -> None:
    net, x = timm.create_model("test_resnet"), torch.zeros(1, 3, 64, 64)
    levels = pyramid_of(net, x, 3)
    assert [level.height for level in levels] == sorted((level.height for level in levels), reverse=True)
    assert levels[-1].channels == net.num_features and len(levels) == 3
    with pytest.raises(TapError, match=r"shows maps at \d resolutions"):
        pyramid_of(net, x, 9)
    with pytest.raises(TapError, match="a network of images"):
        pyramid_of(nn.Flatten(), x, 1)
