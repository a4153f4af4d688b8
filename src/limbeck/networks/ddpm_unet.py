"""A small unconditional UNet for 28x28 images that predicts noise, as tutorials of DDPM have it; weights by path.

    b1 -> down1 -> b2 -> down2 -> b3 -> down3 -> b_mid -> up1 -> b4 -> up2 -> b5 -> up3 -> b_out -> conv_out

Each stage holds three blocks and gets an embedding of the timestep, added to its input channel by channel.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn

from limbeck.errors import ShapeError
from limbeck.functional.diffusion import DiscreteSchedule, Kind, Schedule

SIDE: Final = 28

STAGES: Final[dict[str, tuple[str, int, tuple[int, int, int, int]]]] = {
    "b1": ("te1", 28, (1, 10, 10, 10)),
    "b2": ("te2", 14, (10, 20, 20, 20)),
    "b3": ("te3", 7, (20, 40, 40, 40)),
    "b_mid": ("te_mid", 3, (40, 20, 20, 40)),
    "b4": ("te4", 7, (80, 40, 20, 20)),
    "b5": ("te5", 14, (40, 20, 10, 10)),
    "b_out": ("te_out", 28, (20, 10, 10, 10)),
}
"""Of each stage: its embedding, its side, and the channels before, between and behind its blocks."""


class _Block(nn.Module):
    """``silu(conv(silu(conv(norm(x)))))``; the norm is over channels and places together."""

    def __init__(self, inputs: int, outputs: int, side: int, normed: bool = True) -> None:
        super().__init__()
        self.ln = nn.LayerNorm((inputs, side, side))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.normed = normed
        self.ln.requires_grad_(normed)  # weights that are there and not used

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln(x) if self.normed else x
        out: Tensor = nn.functional.silu(self.conv2(nn.functional.silu(self.conv1(h))))
        return out


class DdpmUNet(nn.Module):
    """Noise in ``[N, 1, 28, 28]`` of a discrete schedule; unconditional. The table of timesteps stands still.

    Args:
        schedule: which timestep a log-SNR is.
        steps: timesteps of the table.

    Example:
        >>> from limbeck.tasks.schedules import make_schedule
        >>> net = DdpmUNet(make_schedule("ddpm", False))
        >>> net(torch.randn(2, 1, 28, 28), torch.zeros(2)).shape
        torch.Size([2, 1, 28, 28])
    """

    mean_type: Kind = "eps"
    null_condition: int | None = None
    guided = False
    conditional = False

    def __init__(self, schedule: Schedule, steps: int = 1000) -> None:
        super().__init__()
        self.schedule, self.steps = schedule, steps
        self.time_embed = nn.Embedding(steps, 100)
        self.time_embed.weight.data.copy_(_sinusoids(steps, 100))
        self.time_embed.requires_grad_(False)
        for name, (embedding, side, widths) in STAGES.items():
            c = widths[0]
            self.add_module(embedding, nn.Sequential(nn.Linear(100, c), nn.SiLU(), nn.Linear(c, c)))
            last = name == "b_out"  # its last block does not use its norm
            blocks = [_Block(a, b, side, not (last and i == 2)) for i, (a, b) in enumerate(pairwise(widths))]
            self.add_module(name, nn.Sequential(*blocks))
        self.down1, self.down2 = (nn.Conv2d(c, c, 4, 2, 1) for c in (10, 20))
        self.down3 = nn.Sequential(nn.Conv2d(40, 40, 2), nn.SiLU(), nn.Conv2d(40, 40, 4, 2, 1))
        self.up1 = nn.Sequential(nn.ConvTranspose2d(40, 40, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(40, 40, 2))
        self.up2, self.up3 = (nn.ConvTranspose2d(c, c, 4, 2, 1) for c in (20, 10))
        self.conv_out = nn.Conv2d(10, 1, 3, padding=1)

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """z [N, 1, 28, 28], logsnr [N] -> the noise in it; labels are not looked at."""
        if tuple(z.shape[1:]) != (1, SIDE, SIDE):
            raise ShapeError("z", given=tuple(z.shape), expected=f"[N, 1, {SIDE}, {SIDE}]")
        e = self.time_embed(self.timestep(logsnr.expand(len(z)))).to(z.dtype)  # [N, 100]

        def stage(name: str, h: Tensor) -> Tensor:
            embedding: Any = getattr(self, STAGES[name][0])
            out: Tensor = getattr(self, name)(h + embedding(e)[:, :, None, None])
            return out

        one = stage("b1", z)
        two = stage("b2", self.down1(one))
        three = stage("b3", self.down2(two))
        h = self.up1(stage("b_mid", self.down3(three)))
        h = self.up2(stage("b4", torch.cat([three, h], 1)))
        h = self.up3(stage("b5", torch.cat([two, h], 1)))
        out: Tensor = self.conv_out(stage("b_out", torch.cat([one, h], 1)))
        return out

    def timestep(self, logsnr: Tensor) -> Tensor:
        """The nearest timestep of a log-SNR, int64 [N]."""
        u = self.schedule.time(logsnr)
        count = self.schedule.timesteps if isinstance(self.schedule, DiscreteSchedule) else self.steps
        return (u * count - 1.0).round().long().clamp(0, self.steps - 1)


def _sinusoids(steps: int, width: int) -> Tensor:
    """Sines at even, cosines at odd places, ``[steps, width]``, at rates from 1 down to nearly 1e-8."""
    rate = torch.exp(-2 * math.log(1e4) * torch.arange(0, width, 2) / width)
    phase = torch.arange(steps)[:, None] * rate
    return torch.stack([phase.sin(), phase.cos()], -1).flatten(1)


__all__ = ["DdpmUNet"]
