"""The small unconditional UNet of DDPM tutorials for 28x28 images, trained or fresh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from limbeck.errors import ConfigError
from limbeck.functional.diffusion import DiscreteSchedule
from limbeck.grammar.method import Built
from limbeck.grammar.settings import settings
from limbeck.grammar.task import Check, Model, Task
from limbeck.models.forms import meet
from limbeck.networks.ddpm_unet import SIDE, DdpmUNet
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.weights import load_state_dict, load_strict
from limbeck.tasks.schedules import read_schedule

NAMES = {"model": {"ddpm-unet": "DdpmUNetModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class DdpmUNetModel(Model):
    """An unconditional UNet of half a million parameters for grey images of 28x28 pixels that predicts noise.

    Args:
        checkpoint: weights to load, strictly: safetensors, or a torch file without pickled objects.
        entry: the entry of a training checkpoint that holds them; ``null`` finds it, and says which it took.
        strip: a prefix to take off the names of the weights; those of known wrappers come off by themselves.
        check: try a ready teacher on images before anything is trained: ``on`` or ``off``.
    """

    forms = ("denoiser",)

    checkpoint: str | None = None
    entry: str | None = None
    strip: str = ""
    check: Check = "on"

    def build(self, task: Task) -> Built:
        """The network, at the task's schedule.

        Raises:
            ConfigError: images of another shape, or a schedule without steps.
        """
        needs = meet(self, task)
        task.load()
        if tuple(needs.inputs) != (1, SIDE, SIDE):
            raise ConfigError(
                self.role or "model",
                "takes grey images of 28x28 pixels",
                given=list(needs.inputs),
                expected=f"[1, {SIDE}, {SIDE}]",
                remedy="set task.size=28",
            )
        schedule: Any = needs.schedule
        if not isinstance(schedule, DiscreteSchedule) or schedule.timesteps != 1000:
            raise ConfigError(
                "task.schedule",
                "the network is told one of 1,000 timesteps",
                expected="ddpm, scaled-linear or squaredcos",
                remedy="set task.schedule=ddpm",
            )
        module = DdpmUNet(schedule)
        notes = []
        if self.checkpoint is not None:
            path = expanded(self.checkpoint)
            found = find_weights(path, module.state_dict(), entry=self.entry, strip=self.strip, role=self.role)
            load_strict(module, found.state, self.checkpoint, self.role)
            notes.append(str(found))
        return Built(module, model=self, notes=notes)

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """What ``sampler.json`` must say to open it again."""
        return {"library": "ddpm-unet"}


def open_ddpm_unet(folder: Path, about: dict[str, Any]) -> nn.Module:
    """A saved one of a sampler's folder."""
    module = DdpmUNet(read_schedule(about["schedule"]))
    path = folder / "student.safetensors"
    load_strict(module, load_state_dict(path), str(path))
    return module.eval()


__all__ = ["DdpmUNetModel", "open_ddpm_unet"]
