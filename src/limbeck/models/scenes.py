"""Scenes as students: free pictures, Gaussians, a small field. Others come through ``import:PACKAGE.MODULE:FUNCTION``."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Interval
from torch import nn

from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.settings import Count, Fraction, Positive, settings
from limbeck.grammar.task import Model, Task
from limbeck.models.forms import meet
from limbeck.networks.scenes import Field, Gaussians, Init, Pictures
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.weights import load_strict

NAMES = {"model": {"pictures": "PicturesModel", "gaussians": "GaussiansModel", "field": "FieldModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class SceneModel(Model):
    """What scenes share.

    Args:
        particles: how many scenes are made side by side.
        checkpoint: weights of the very scene to go on from.
    """

    forms = ("scene",)
    particles: Count = 1
    checkpoint: str | None = None

    def make(self, needs: Needs) -> nn.Module:
        """The scene for pictures of this shape."""
        raise TypeError(f"{type(self).__name__} must define make")

    def build(self, task: Task) -> Built:
        """The scene, its weights loaded where a checkpoint is named."""
        needs = meet(self, task)
        module = self.make(needs)
        notes = []
        if self.checkpoint is not None:
            path = expanded(self.checkpoint)
            found = find_weights(path, module.state_dict(), role=self.role)
            load_strict(module, found.state, self.checkpoint, self.role)
            notes.append(str(found))
        return Built(module, labels=task.labels, model=self, notes=notes)


@settings
class PicturesModel(SceneModel):
    """Particles that are pictures.

    Args:
        spread: standard deviation of the noise that they start from, in [-1, 1].
    """

    particles: Count = 16
    spread: Positive = 0.5

    def make(self, needs: Needs) -> nn.Module:
        """`limbeck.networks.scenes.Pictures`."""
        return Pictures(self.particles, needs.inputs, self.spread)


@settings
class GaussiansModel(SceneModel):
    """Clouds of Gaussians, drawn by gsplat where it is installed and the run is on a GPU, else by plain torch.

    Args:
        count: Gaussians of each particle.
        sh_degree: of colours that depend on the direction, 0 (none) to 3.
        radius: of the ball that they start in.
        init: ``blob`` in the middle, or ``hollow``: around the cameras.
        background: grey value behind them.
    """

    count: Count = 300
    sh_degree: Annotated[int, Interval(ge=0, le=3)] = 0
    radius: Positive = 0.5
    init: Init = "blob"
    background: Fraction = 0.0

    def make(self, needs: Needs) -> nn.Module:
        """`limbeck.networks.scenes.Gaussians`."""
        made: dict[str, Any] = {"count": self.count, "sh_degree": self.sh_degree, "radius": self.radius}
        return Gaussians(self.particles, needs.inputs, **made, init=self.init, background=self.background)


@settings
class FieldModel(SceneModel):
    """Small radiance fields, drawn by marching along rays.

    Args:
        width: of the hidden layers.
        frequencies: octaves of sines and cosines of the place.
        samples: along a ray.
        bound: radius in which there is matter.
        init: ``blob``: density in the middle; ``hollow``: around the cameras.
    """

    width: Count = 32
    frequencies: Count = 4
    samples: Count = 24
    bound: Positive = 1.0
    init: Init = "blob"

    def make(self, needs: Needs) -> nn.Module:
        """`limbeck.networks.scenes.Field`."""
        made: dict[str, Any] = {"width": self.width, "frequencies": self.frequencies, "samples": self.samples}
        return Field(self.particles, needs.inputs, **made, bound=self.bound, init=self.init)
