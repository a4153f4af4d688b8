"""The residual MLP that denoises tiny pictures, and who opens the networks of a saved sampler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.errors import CheckpointCorrupt, ConfigError, DataError
from limbeck.functional.diffusion import Kind
from limbeck.grammar.method import Built
from limbeck.grammar.task import Model, Task
from limbeck.networks import ResidualMLP
from limbeck.storage.weights import load_state_dict, load_strict
from limbeck.tasks.generation import Generation

NAMES = {"model": {"denoiser": "Denoiser"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Denoiser(Model):
    """A residual MLP for pictures up to 16x16 or so: a teacher that one core trains in a minute.

    Args:
        width: width of the residual stream.
        blocks: number of blocks.
        mean_type: what its output means: ``v``, ``x``, ``eps`` or ``both``.
        guided: take the guidance weight as an input (students of guided distillation).
        checkpoint: weights to load, strictly.
    """

    def __init__(
        self,
        width: int = 256,
        blocks: int = 4,
        mean_type: Kind = "v",
        guided: bool = False,
        checkpoint: str | None = None,
    ) -> None:
        if width < 1 or blocks < 1:
            raise ValueError("width and blocks must be 1 or more")
        self.width, self.blocks, self.guided, self.checkpoint = width, blocks, guided, checkpoint
        self.mean_type: Kind = mean_type

    def build(self, task: Task) -> Built:
        """The network for the task's pictures, its null condition after the last class."""
        if not isinstance(task, Generation):
            raise ConfigError(
                "model", "a denoiser makes samples", given=type(task).__name__, expected="task=generation"
            )
        task.load()
        channels, side, across = task.shape
        if side != across:
            raise DataError(
                "task.size", "the denoiser takes square pictures", given=(side, across), remedy="set task.size"
            )
        module = ResidualMLP(
            channels, side, task.classes, self.width, self.blocks, kind=self.mean_type, guidance=self.guided
        )
        if self.checkpoint is not None:
            load_strict(module, load_state_dict(self.checkpoint), self.checkpoint)
        return Built(module, labels=task.labels, model=self)

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
    raise CheckpointCorrupt(
        "sampler.json", f"its networks are of {about['model'].get('name')}, which only the task can build"
    )
