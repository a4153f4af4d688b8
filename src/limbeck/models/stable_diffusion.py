"""A latent diffusion pipeline as a teacher of scenes: its network, its text encoder's answers, and its autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limbeck.errors import ConfigError, ShapeError, require
from limbeck.grammar.method import Built
from limbeck.grammar.task import Task
from limbeck.models.diffusers_denoiser import Diffusers
from limbeck.models.forms import meet

NAMES = {"model": {"stable-diffusion": "StableDiffusion"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class LatentDenoiser(nn.Module):
    """A denoiser of latents with the encoder that makes them. What it says of itself is what the denoiser says.

    Args:
        denoiser: ``(z, logsnr, labels) -> output``.
        vae: diffusers' ``AutoencoderKL``.
    """

    def __init__(self, denoiser: nn.Module, vae: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.vae = denoiser, vae

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("denoiser"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's output."""
        return self.denoiser(*args, **kwargs)

    def encode(self, x: Tensor) -> Tensor:
        """Scaled latents [N, c, h, w] of images [N, 3, H, W] in [-1, 1]; the gradient goes through.

        The mean of the posterior is taken, where the published code draws from it: its deviation is some thousandths.
        """
        config: Any = self.vae.config
        if x.shape[1] != config.in_channels:
            raise ShapeError("student", given=list(x.shape), expected=f"[N, {config.in_channels}, H, W]")
        mean: Tensor = self.vae.encode(x).latent_dist.mean  # type: ignore[operator]
        return (mean - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


class StableDiffusion(Diffusers):
    """A text-to-image pipeline of diffusers (a folder with ``unet``, ``vae``, ``text_encoder``, ``tokenizer``, ``scheduler``).

    It teaches scenes of the task ``views`` with a ``prompt``: each view is told from which side it is. What its output means
    (eps or v) is read from its scheduler, as is its noise schedule, which must be the task's.
    """

    def build(self, task: Task) -> Built:
        """Network, texts and autoencoder.

        Raises:
            ConfigError: no prompt; no autoencoder in the folder; latents of another shape.
        """
        needs = meet(self, task)
        if needs.target != "prompt" or not needs.names:
            raise ConfigError(
                "task.prompt", "a model of texts must be told what to draw", remedy="set task.prompt='a red cup'"
            )
        folder = Path(self.name)
        if not self.name or not (folder / "vae").is_dir():
            raise ConfigError("name", given=self.name, expected="the folder of a pipeline, with vae/ in it")
        diffusers = require("diffusers", "diffusion", "a latent diffusion pipeline")
        self.prompt, self.architecture = "{}", "UNet2DConditionModel"
        built = super().build(task)
        vae = diffusers.AutoencoderKL.from_pretrained(
            str(folder / "vae"), use_safetensors=True, trust_remote_code=False
        ).eval()
        config: Any = vae.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        if config.latent_channels != needs.inputs[0]:
            raise ConfigError(
                "task.latents",
                "its autoencoder makes others",
                given=needs.inputs[0],
                expected=f"{config.latent_channels} channels, a side {factor} times smaller",
                remedy=f"set task.latents=[{config.latent_channels}, {factor}]",
            )
        built.module = LatentDenoiser(built.module, vae)
        built.notes.append(f"latents are scaled by {config.scaling_factor:g}, as its autoencoder says")
        return built
