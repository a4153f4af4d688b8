"""The residual MLP that denoises tiny images, and who opens the networks of a saved sampler."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.errors import CheckpointCorrupt, ConfigError, DataError
from limbeck.functional.diffusion import KINDS, Kind
from limbeck.grammar.method import Built
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.task import Check, Depth, Model, Task
from limbeck.models.forms import meet
from limbeck.networks import ResidualMLP
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.weights import load_state_dict, load_strict

NAMES = {"model": {"denoiser": "Denoiser"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class Denoiser(Model):
    """A residual MLP for images up to 16x16 or so: a teacher that one core trains in a minute.

    Args:
        width: width of the residual stream.
        blocks: number of blocks.
        mean_type: what its output means: ``v``, ``x``, ``eps`` or ``both``; ``null`` is ``v``, and of a checkpoint what
            ``sampler.json`` beside it says.
        guided: take the guidance weight as an input (students of guided distillation).
        conditional: know the task's classes; off for a network of all images alike, which nothing can guide.
        checkpoint: weights to load, strictly: safetensors, or a torch file without pickled objects.
        entry: the entry of a training checkpoint that holds them; ``null`` finds it, and says which it took.
        strip: a prefix to take off the names of the weights; those of known wrappers come off by themselves.
        check: try a ready teacher on images before anything is trained: ``on`` or ``off``.
    """

    forms = ("denoiser",)

    width: Count = 256
    blocks: Depth = 4
    mean_type: Kind | None = None
    guided: bool = False
    conditional: bool = True
    checkpoint: str | None = None
    entry: str | None = None
    strip: str = ""
    check: Check = "on"

    def build(self, task: Task) -> Built:
        """The network for the task's images, its null condition after the last class."""
        needs = meet(self, task)
        task.load()
        channels, side, across = needs.inputs
        if side != across:
            raise DataError(
                "task.size", "the denoiser takes square images", given=(side, across), remedy="set task.size"
            )
        classes = needs.outputs if self.conditional else 0
        module = ResidualMLP(
            channels, side, classes, self.width, self.blocks, kind=self._meaning(), guidance=self.guided
        )
        notes = []
        if self.checkpoint is not None:
            path = expanded(self.checkpoint)
            found = find_weights(path, module.state_dict(), entry=self.entry, strip=self.strip, role=self.role)
            load_strict(module, found.state, self.checkpoint, self.role)
            notes.append(str(found))
        return Built(module, labels=task.labels, model=self, notes=notes)

    def _meaning(self) -> Kind:
        """What the network's output means.

        Raises:
            ConfigError: a checkpoint comes without a word on it.
        """
        if self.mean_type is not None or self.checkpoint is None:
            return self.mean_type or "v"
        path = expanded(self.checkpoint)
        beside = (path if path.is_dir() else path.parent) / "sampler.json"
        try:
            said = json.loads(beside.read_text(encoding="utf-8")).get("mean_type") if beside.is_file() else None
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointCorrupt(str(beside), f"cannot be read: {error}") from None
        if said not in KINDS:
            raise ConfigError(
                "mean_type",
                f"nothing beside {self.checkpoint} says what its output means",
                remedy=f"set {self.setting('mean_type')}=v (what limbeck trains by default), eps, x or both",
            )
        kind: Kind = said
        return kind

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """What ``sampler.json`` must say to open it again."""
        return {"library": "limbeck", "config": dict(module.config)}  # type: ignore[arg-type]


def open_denoiser(folder: Path, about: dict[str, Any]) -> nn.Module:
    """A saved residual MLP of a sampler's folder."""
    module = ResidualMLP(**about["model"]["config"])
    path = folder / "student.safetensors"
    load_strict(module, load_state_dict(path), str(path))
    return module.eval()


def opener(about: dict[str, Any]) -> Callable[[Path, dict[str, Any]], nn.Module]:
    """Who opens the networks of a sampler's folder."""
    library = about["model"].get("library")
    if library == "limbeck":
        return open_denoiser
    if library == "diffusers":
        from limbeck.models.diffusers_denoiser import open_diffusers

        return open_diffusers
    if library == "ddpm-unet":
        from limbeck.models.ddpm_unet import open_ddpm_unet

        return open_ddpm_unet
    raise CheckpointCorrupt(
        "sampler.json", f"its networks are of {about['model'].get('name')}, which only the task can build"
    )
