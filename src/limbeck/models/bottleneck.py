"""A projector of three layers through a bottleneck, for the maps or features of a composed student."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.grammar.needs import Needs
from limbeck.grammar.settings import Count, settings
from limbeck.models.classifier import Normalised

NAMES = {"model": {"bottleneck": "BottleneckModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions of maps [N, D, H, W], or three linear layers of vectors [N, D].

    Args:
        width: D of what comes in.
        wanted: D of what goes out.
        middle: D in between.
        maps: of maps, which are averaged over their places at the end.
        relu: a ReLU at the end too.
        norm: batch normalisation after each layer.
    """

    def __init__(self, width: int, wanted: int, middle: int, maps: bool, relu: bool, norm: bool = True) -> None:
        super().__init__()
        sizes = [(width, middle, 1), (middle, middle, 3), (middle, wanted, 1)]
        layers: list[nn.Module] = []
        for a, b, k in sizes:
            layers += [nn.Conv2d(a, b, k, padding=k // 2, bias=not norm) if maps else nn.Linear(a, b, bias=not norm)]
            layers += [nn.BatchNorm2d(b) if maps else nn.BatchNorm1d(b)] if norm else []
            layers += [nn.ReLU()]
        self.body = nn.Sequential(*(layers if relu else layers[:-1]))
        self.pooled = maps

    def project(self, x: Tensor) -> Tensor:
        """The projected maps [N, D, H, W], or vectors [N, D]."""
        out: Tensor = self.body(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Vectors [N, D]."""
        out = self.project(x)
        return out.mean((2, 3)) if self.pooled else out


@settings
class BottleneckModel(Normalised):
    """Three layers, the middle one narrow; maps are averaged over their places at the end.

    Args:
        factor: how many times narrower than the output the middle is.
        relu: a ReLU at the end too.
        norm: batch normalisation after each layer.
    """

    forms = ("vector",)
    takes = ("pictures", "rows", "table")

    factor: Count = 2
    relu: bool = True
    norm: bool = True

    def make(self, needs: Needs) -> nn.Module:
        """For maps [D, H, W] or vectors [D]."""
        middle = max(1, needs.outputs // self.factor)
        return Bottleneck(needs.inputs[0], needs.outputs, middle, len(needs.inputs) == 3, self.relu, self.norm)


__all__ = ["Bottleneck", "BottleneckModel"]
