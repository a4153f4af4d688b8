"""A small U-Net for tasks that are answered with maps."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval
from torch import nn

from limbeck.grammar.needs import Needs
from limbeck.grammar.settings import Count, settings
from limbeck.models.classifier import Normalised

NAMES = {"model": {"unet": "UNetModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class UNetModel(Normalised):
    """A small U-Net, for maps.

    Args:
        width: channels of the first block; doubled with each level.
        depth: how often the image is halved.
        stride: pixels of the image for each place of the output: 1, 2, ... up to ``2**depth``.
        norm: ``group``, which treats each image by itself, or ``batch``.
    """

    forms = ("map",)
    takes = ("pictures",)

    width: Count = 16
    depth: Annotated[int, Interval(ge=1, le=8)] = 3
    stride: Count = 1
    norm: Literal["group", "batch"] = "group"

    def validate(self) -> None:
        """The stride is that of one of the levels."""
        super().validate()
        if self.stride not in [2**i for i in range(self.depth + 1)]:
            raise ValueError(f"stride must be a power of two up to {2**self.depth}, 2**depth")

    def make(self, needs: Needs) -> nn.Module:
        """A ``limbeck.networks.maps.UNet``."""
        from limbeck.networks.maps import UNet

        return UNet(needs.inputs[0], needs.outputs, self.width, self.depth, self.stride, self.norm)
