"""Scenes as students: free images, Gaussians, a small field. Others come through ``import:PACKAGE.MODULE:FUNCTION``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.settings import Count, Fraction, Natural, Positive, settings
from limbeck.grammar.task import Model, Task
from limbeck.models.forms import meet
from limbeck.networks.scenes import Field, Gaussians, Init, Mesh, Pictures, mesh_of
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.weights import load_state_dict, load_strict

NAMES = {
    "model": {"pictures": "PicturesModel", "gaussians": "GaussiansModel", "field": "FieldModel", "mesh": "MeshModel"}
}
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
        """The scene for images of this shape."""
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
    """Particles that are images.

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


@settings
class MeshModel(SceneModel):
    """One mesh, for the stages after a field: corners are moved (``geometry``), then it is painted (``texture``).

    Args:
        source: weights of a field (the mesh is taken out of it by marching cubes) or of an earlier mesh: a run's
            ``student.safetensors``; empty for a ball.
        stage: what learns and what is drawn: ``geometry``: corners, and normals; ``texture``: colours.
        particle: which of the field's.
        resolution: places along the side of the cube in which the surface is looked for.
        threshold: the density of the surface.
        bound: of the field.
        field_init: how the field began (its bump stays part of its density).
        sigma: softness of edges in pixels squared.
    """

    source: str = ""
    stage: Literal["geometry", "texture"] = "geometry"
    particle: Natural = 0
    resolution: Annotated[int, Interval(ge=4, le=256)] = 16
    threshold: Positive = 5.0
    bound: Positive = 1.0
    field_init: Init = "blob"
    sigma: Positive = 0.3

    paths: ClassVar[tuple[str, ...]] = ("source", "checkpoint")

    def validate(self) -> None:
        """A mesh is one."""
        if self.particles != 1:
            raise ValueError("particles must be 1: a mesh is one")

    def make(self, needs: Needs) -> nn.Module:
        """`limbeck.networks.scenes.Mesh`.

        Raises:
            ConfigError: the weights are of neither; of other channels; no surface at the threshold.
        """
        channels = needs.inputs[0]
        state = load_state_dict(expanded(self.source)) if self.source else {}
        made: dict[str, Any] = {"stage": self.stage, "sigma": self.sigma}
        if {"vertices", "offsets", "faces", "paint"} <= state.keys():
            colours = state["paint"].sigmoid() if state["paint"].shape[1] == channels else None
            return Mesh(needs.inputs, state["vertices"] + state["offsets"], state["faces"], colours, **made)
        if not state:

            def ball(x: Tensor) -> Tensor:
                return 20 * (0.75 * self.bound - x.norm(dim=-1)).clamp_min(0)

            return Mesh(needs.inputs, *mesh_of(ball, self.bound, self.resolution, self.threshold), **made)
        if not {"weights.0", "weights.2", "behind"} <= state.keys():
            raise ConfigError("source", given=self.source, expected="weights of a field or of a mesh")
        count, features, width = state["weights.0"].shape
        if state["behind"].shape[1] != channels or self.particle >= count:
            raise ConfigError(
                "source",
                f"it holds {count} fields of {state['behind'].shape[1]} channels",
                given=self.particle,
                expected=f"a particle below {count}, and {channels} channels",
            )
        shape = {"width": int(width), "frequencies": (int(features) - 3) // 6}
        field = Field(int(count), needs.inputs, **shape, bound=self.bound, init=self.field_init)
        load_strict(field, state, self.source, self.role)
        which = torch.tensor([self.particle])

        def density(x: Tensor) -> Tensor:
            return field.query(x[None], which)[0][0]

        corners, faces = mesh_of(density, self.bound, self.resolution, self.threshold)
        with torch.no_grad():
            colours = field.query(corners[None], which)[1][0]
        return Mesh(needs.inputs, corners, faces, colours, **made)
