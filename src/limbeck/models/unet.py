"""A small U-Net for tasks that are answered with maps."""

from __future__ import annotations

from typing import Literal

from torch import nn

from limbeck.grammar.needs import Needs
from limbeck.grammar.task import Check
from limbeck.models.classifier import Classifier

NAMES = {"model": {"unet": "UNetModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class UNetModel(Classifier):
    """A small U-Net, for maps.

    Args:
        width: channels of the first block; doubled with each level.
        depth: how often the picture is halved.
        stride: pixels of the picture for each place of the output: 1, 2, ... up to ``2**depth``.
        norm: ``group``, which treats each picture by itself, or ``batch``.
    """

    forms = ("map",)
    takes = ("pictures",)

    def __init__(
        self,
        width: int = 16,
        depth: int = 3,
        stride: int = 1,
        norm: Literal["group", "batch"] = "group",
        checkpoint: str | None = None,
        labels: str | list[str] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        entry: str | None = None,
        strip: str = "",
        check: Check = "on",
    ) -> None:
        if width < 1:
            raise ValueError("width must be 1 or more")
        if not 1 <= depth <= 8:
            raise ValueError("depth must be from 1 to 8")
        if stride not in [2**i for i in range(depth + 1)]:
            raise ValueError(f"stride must be a power of two up to {2**depth}, 2**depth")
        self.width, self.depth, self.stride, self.norm = width, depth, stride, norm
        self._source(checkpoint, labels, mean, std, entry, strip, check)

    def make(self, needs: Needs) -> nn.Module:
        """A ``limbeck.networks.maps.UNet``."""
        from limbeck.networks.maps import UNet

        return UNet(needs.inputs[0], needs.outputs, self.width, self.depth, self.stride, self.norm)
