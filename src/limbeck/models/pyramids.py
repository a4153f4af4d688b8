"""A small pyramid of feature maps from scratch, and the student that rebuilds a pyramid."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Interval
from torch import Tensor, nn

from limbeck.functional.anomaly import Fusion, LevelWeights
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, NonEmpty, settings
from limbeck.grammar.task import Task
from limbeck.models.classifier import Classifier, Normalised
from limbeck.models.forms import meet

NAMES = {"model": {"conv-pyramid": "ConvPyramidModel", "reverse-decoder": "ReverseDecoderModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class ConvPyramid(nn.Module):
    """Stages of two 3x3 convolutions, each halving the sides: maps of 1/2, 1/4, ... of an image, the finest first.

    Args:
        channels: of the image.
        widths: of the stages.
    """

    def __init__(self, channels: int, widths: list[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
                *(nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
            )
            for before, after in zip([channels, *widths[:-1]], widths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps."""
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


@settings
class ConvPyramidModel(Normalised):
    """A small pyramid of feature maps, to be trained.

    Args:
        widths: channels of the stages, each of half the sides of the one before.
    """

    forms = ("pyramid",)
    takes = ("pictures",)

    widths: Annotated[list[Count], NonEmpty] = [16, 16, 32, 64]  # noqa: RUF012 (copied, never changed)

    def make(self, needs: Needs) -> nn.Module:
        """A `ConvPyramid`."""
        return ConvPyramid(needs.inputs[0], self.widths)


@settings
class ReverseDecoderModel(Classifier):
    """The student of reverse distillation: rebuilds its teacher's pyramid, and maps where that fails.

    It is built when the teacher's channels are known. The defaults are the published ones.

    Args:
        shortcuts: gate what is decoded by the level below it; off is the variant that holds for other fabrics ("DG").
        attention: the gates of shortcuts and bottleneck.
        sspcab: the masked convolution in the bottleneck.
        levels: which of the four levels are compared.
        level_weights: ``area`` divides a level's gaps by its number of places in the map, ``equal`` does not.
        fusion: of the levels' maps: ``sum`` or ``product``.
        sigma: of the Gaussian that smooths maps, in pixels.
        normalise: compare directions of features, not their lengths.
        widths: channels of the teacher's four levels; ``null``: they are read from it.
        checkpoint: must be ``null``: it has no weights before its teacher's channels are known.
    """

    forms = ("pyramid",)
    takes = ("pictures",)

    shortcuts: bool = True
    attention: bool = True
    sspcab: bool = True
    levels: list[int] = [0, 1, 2, 3]  # noqa: RUF012 (copied, never changed)
    level_weights: LevelWeights = "area"
    fusion: Fusion = "sum"
    sigma: Annotated[float, Interval(ge=0, lt=1e4)] = 4.0
    normalise: bool = True
    widths: list[Count] | None = None
    checkpoint: str | None = None

    def validate(self) -> None:
        """Four levels."""
        if not self.levels or sorted(set(self.levels)) != list(self.levels) or not set(self.levels) <= {0, 1, 2, 3}:
            raise ValueError("levels must be some of 0, 1, 2, 3, in this order")
        if self.widths is not None and len(self.widths) != 4:
            raise ValueError("widths must be the channels of four levels, or null")
        if self.checkpoint is not None:
            raise ValueError(
                "checkpoint must be null: the student has no weights before its teacher's channels are known"
            )

    def make(self, needs: Needs) -> nn.Module:
        """A ``limbeck.networks.reverse.PyramidStudent``."""
        from limbeck.networks.reverse import PyramidStudent

        return PyramidStudent(
            (needs.inputs[1], needs.inputs[2]),
            self.widths,
            shortcuts=self.shortcuts,
            attention=self.attention,
            sspcab=self.sspcab,
            levels=self.levels,
            level_weights=self.level_weights,
            fusion=self.fusion,
            sigma=self.sigma,
            normalise=self.normalise,
        )

    def build(self, task: Task) -> Built:
        """The student, still without weights where ``widths`` are to be read from the teacher."""
        needs = meet(self, task)
        task.load()
        return Built(self.make(needs), Contract(), None, self)

    def with_widths(self, widths: list[int]) -> ReverseDecoderModel:
        """The same for a known teacher, as a chain that holds it is rebuilt."""
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("shortcuts", "attention", "sspcab", "levels", "level_weights", "fusion", "sigma", "normalise")
        }
        return ReverseDecoderModel(**given, widths=widths)


__all__ = ["ConvPyramid", "ConvPyramidModel", "ReverseDecoderModel"]
