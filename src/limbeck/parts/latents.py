"""What draws latents like those of an encoder: a small diffusion model, or a generator against a critic.

After FLDGM (Ramachandranpillai, Sikder et al., ECAI 2023): latents scaled to (z + 1) / 2, perceptrons of 256, 1,000 steps of
diffusion with predicted v. The cosine schedule and the loss of the adversarial pair (not saturating) are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from limbeck.grammar.method import Batch, Context, Term, Terms
from limbeck.grammar.random import Draws

STEPS = 1000


class LatentSampler(nn.Module):
    """A perceptron from latents, and the time where it denoises, to latents or a score.

    Args:
        z: size of the latents.
        outputs: of what it answers with; 0: latents.
        time: whether it sees a time, as a denoiser does.
        width: of its two hidden layers.
    """

    def __init__(self, z: int, outputs: int = 0, time: bool = False, width: int = 256) -> None:
        super().__init__()
        self.time = time
        extra = 16 if time else 0
        self.body = nn.Sequential(
            nn.Linear(z + extra, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs or z)
        )

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Latents or noise [N, z] and times [N] in [0, 1] to [N, outputs]."""
        if t is not None:
            rates = torch.exp(torch.linspace(0, math.log(1000.0), 8, device=x.device))
            angle = t[:, None] * rates
            x = torch.cat([x, angle.sin(), angle.cos()], -1)
        out: Tensor = self.body(x)
        return out

    @torch.no_grad()
    def sample(self, noise: Tensor, draws: Draws, item: Tensor, steps: int = 50) -> Tensor:
        """Latents [N, z] from noise: in ``steps`` steps of DDIM where it denoises, at once where it does not."""
        if not self.time:
            return 2 * self(noise) - 1
        x, times = noise, torch.linspace(1 - 1 / STEPS, 0, steps + 1)
        for now, then in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            v = self(x, noise.new_full((len(noise),), now))
            (a, b), (c, d) = _signal_noise(now), _signal_noise(then)
            start, eps = a * x - b * v, b * x + a * v
            x = c * start + d * eps
        return 2 * x - 1


def _signal_noise(t: float) -> tuple[float, float]:
    return math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)


def diffusion_steps(role: str, z: Tensor, batch: Batch, ctx: Context) -> Terms:
    """The squared error of v = a eps - b z, averaged over z: one value a row."""
    scaled = (z + 1) / 2
    t = (ctx.draws.randint("t", batch["item"], STEPS).to(z.dtype) + 0.5) / STEPS
    eps = ctx.draws.randn("noise", batch["item"], (z.shape[1],))
    a, b = (math.pi / 2 * t).cos()[:, None], (math.pi / 2 * t).sin()[:, None]
    v = ctx.call(role, a * scaled + b * eps, t)
    return Terms(denoise=Term((v - (a * eps - b * scaled)).square().mean(-1), role))


def gan_steps(role: str, critic: str, z: Tensor, batch: Batch, ctx: Context) -> Iterator[Terms]:
    """Two phases: the critic tells latents from drawn ones, then what draws them is to be taken for real."""
    scaled = (z + 1) / 2
    noise = ctx.draws.randn("noise", batch["item"], (z.shape[1],))
    made = ctx.call(role, noise)
    real, fake = ctx.call(critic, scaled), ctx.call(critic, made.detach())
    yield Terms(critic=Term((softplus(-real) + softplus(fake)).squeeze(-1), critic))
    with ctx.through(critic) as judge:
        told: Any = judge(ctx.call(role, noise))
    yield Terms(fooled=Term(softplus(-told).squeeze(-1), role))


__all__ = ["LatentSampler", "diffusion_steps", "gan_steps"]
