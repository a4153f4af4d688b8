"""Networks that change images so that gradients reach what they learn: HARD's augmentors, and the VAE of one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, require
from limbeck.functional.adversarial import affine_matrices, patch_mix, warp


class AffineAugmentor(nn.Module):
    """Random affine transforms around the identity, of six learned standard deviations.

    Args:
        sigma: their first values, in the order a11 a12 tx a21 a22 ty; a shift of 2 / W is one pixel.
    """

    noise = 6

    def __init__(self, sigma: Sequence[float]) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.tensor(list(sigma), dtype=torch.float32).clamp_min(1e-8).log())

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` and standard normal noise ``[N, 6]`` to images."""
        return warp(x, affine_matrices(self.log_sigma.exp(), noise))


class AffineNet(nn.Module):
    """Affine transforms that a perceptron makes of noise, within a quarter of the identity, applied with a learned probability.

    The perceptron has two hidden layers with batch normalisation without running statistics; its last layer begins at zero.
    """

    noise = 129

    def __init__(self, hidden: int = 512, dropout: float = 0.8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (128, hidden):
            layers += [
                nn.Linear(before, hidden),
                nn.BatchNorm1d(hidden, track_running_stats=False),
                nn.LeakyReLU(0.2),
                nn.Dropout(dropout),
            ]
        self.body, self.last = nn.Sequential(*layers), nn.Linear(hidden, 6)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.chance = nn.Parameter(torch.zeros(()))  # log-odds of being applied

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` and standard normal noise ``[N, 129]`` to images."""
        delta = 0.5 * (self.last(self.body(noise[:, :128])).sigmoid() - 0.5)  # [N, 6]
        u = (0.5 * (1 + torch.erf(noise[:, 128:] / math.sqrt(2)))).clamp(1e-6, 1 - 1e-6)
        gate = ((self.chance + u.logit()) / 0.05).sigmoid()  # relaxed Bernoulli, [N, 1]
        return warp(x, affine_matrices(torch.ones_like(delta), gate * delta))


class PatchMixer(nn.Module):
    """Mixes two images patch by patch, with weights that a small attention network gives.

    Args:
        channels: of the images.
        patch: side of a patch.
        width: of the network.
    """

    noise = 0

    def __init__(self, channels: int, patch: int, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Conv2d(2 * channels, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.last = nn.Linear(width, 1)
        nn.init.constant_(self.last.bias, 2.0)  # at first mostly the image itself

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` and each one's partner (int64 ``[N]``) to images."""
        f = self.embed(torch.cat([x, x[other]], 1))
        h, w = f.shape[2:]
        tokens = f.flatten(2).transpose(1, 2)
        q = self.norm(tokens)
        tokens = tokens + self.attention(q, q, q, need_weights=False)[0]
        return patch_mix(x, self.last(tokens).reshape(-1, h, w), other)


class LatentShift(nn.Module):
    """A learned shift and standard deviation for each channel of a VAE's latents.

    Args:
        channels: of the latents.
        sigma: first standard deviation.
    """

    def __init__(self, channels: int, sigma: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_sigma = nn.Parameter(torch.full((channels, 1, 1), math.log(max(sigma, 1e-8))))

    def forward(self, z: Tensor, noise: Tensor) -> Tensor:
        """Latents ``[N, D, h, w]`` and standard normal noise of their shape to latents."""
        return z + self.shift + self.log_sigma.exp() * noise


class ImageVae(nn.Module):
    """A small convolutional VAE: images in [-1, 1] to latents of a quarter of the side.

    Args:
        channels: of the images.
        size: their height and width.
        latents: channels of the latents.
    """

    def __init__(self, channels: int, size: tuple[int, int], latents: int = 8, width: int = 32) -> None:
        super().__init__()
        self.size = size
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * latents, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(latents, 2 * width, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, padding=1), nn.SiLU(), nn.Upsample(size=size),
            nn.Conv2d(width, channels, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def encode(self, x: Tensor) -> Tensor:
        """The posterior's mean ``[N, D, h, w]``."""
        mean: Tensor = self.encoder(x).chunk(2, 1)[0]
        return mean

    def decode(self, z: Tensor) -> Tensor:
        """Images in [-1, 1]."""
        x: Tensor = self.decoder(z)
        return x

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The squared error of the reconstruction and the KL divergence to N(0, 1), summed, each ``[N]``."""
        mean, log_var = self.encoder(x).chunk(2, 1)
        log_var = log_var.clamp(-10, 10)
        back = self.decode(mean + (0.5 * log_var).exp() * noise.reshape(mean.shape))
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var)
        return (back - x).square().flatten(1).sum(1), kl.flatten(1).sum(1)


class DiffusersVae(nn.Module):
    """An ``AutoencoderKL`` or ``AutoencoderTiny`` of diffusers, from a folder, for images of any size and channels.

    Args:
        folder: with ``config.json`` and the weights in safetensors.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        diffusers = require("diffusers", "diffusion", "a VAE of diffusers")
        place = Path(folder).expanduser()
        if not (place / "config.json").is_file():
            raise ConfigError("method.vae", given=folder, expected="a folder with config.json and safetensors of a VAE")
        import json

        kind = json.loads((place / "config.json").read_text(encoding="utf-8")).get("_class_name")
        if kind not in ("AutoencoderKL", "AutoencoderTiny"):
            raise ConfigError("method.vae", given=kind, expected="an AutoencoderKL or AutoencoderTiny")
        self.net = getattr(diffusers, kind).from_pretrained(str(place), use_safetensors=True)

    def encode(self, x: Tensor) -> Tensor:
        """The latents (of an AutoencoderKL the posterior's mean) of images in [-1, 1]."""
        self._seen = x.shape
        side = [-(-s // 8) * 8 for s in x.shape[2:]]
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        made: Any = self.net.encode(nn.functional.interpolate(x, side, mode="bilinear"))
        z: Tensor = made.latents if hasattr(made, "latents") else made.latent_dist.mean
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Images in [-1, 1], of the size and channels of those that were encoded last."""
        x = nn.functional.interpolate(self.net.decode(z).sample, self._seen[2:], mode="bilinear").clamp(-1, 1)
        return x.mean(1, keepdim=True) if self._seen[1] == 1 else x


__all__ = ["AffineAugmentor", "AffineNet", "DiffusersVae", "ImageVae", "LatentShift", "PatchMixer"]
