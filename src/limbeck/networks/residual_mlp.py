"""A class-conditional residual MLP that denoises tiny images: a diffusion teacher that one core trains in a minute."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.diffusion import KINDS, Kind, guidance_embedding

__all__ = ["ResidualMLP"]


class _Block(nn.Module):
    """``h + W2 silu(W1 norm(h) + A e)``; the second map starts at zero, so a fresh block passes its input on."""

    def __init__(self, width: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.condition = nn.Linear(embedding, hidden)
        self.down = nn.Linear(hidden, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        out: Tensor = self.down(nn.functional.silu(self.up(self.norm(h)) + self.condition(e)))
        return h + out


class ResidualMLP(nn.Module):
    """Denoiser of ``[B, C, H, W]`` images given log-SNR, class and (optionally) a guidance weight.

    The image is flattened; the log-SNR enters as the angle ``arctan(exp(-lambda/2))``, which runs evenly over [0, pi/2]
    along a cosine schedule, in sines and cosines. Class and guidance embeddings are added to it. The class number
    ``classes`` is the null condition of classifier-free guidance.

    With ``guidance=True`` a linear map of the Fourier features of w joins the time embedding. It starts at zero, so a
    student made by :meth:`with_guidance` begins as its teacher, whatever w.

    Args:
        channels: image channels. size: pixels on a side.
        classes: number of classes, without the null class; 0 for an unconditional network.
        width: width of the residual stream. blocks: their number. hidden: width inside a block; 1.5 times the stream
            by default.
        kind: what the output means: ``v``, ``x``, ``eps`` or ``both`` (2C channels, x first).
        guidance: take a guidance weight as an input.
        guidance_multiplier: w is multiplied by it before its Fourier features; 1000 is diffusers' convention.

    Raises:
        ConfigError: for an unknown kind or a size below 1. ShapeError: in ``forward``, for inputs that do not fit.

    Example:
        >>> net = ResidualMLP(width=32, blocks=2)
        >>> z, y = torch.randn(2, 1, 8, 8), torch.tensor([3, net.null_class])
        >>> net(z, torch.zeros(2), y).shape
        torch.Size([2, 1, 8, 8])
    """

    FEATURES = 64  # Fourier features of time and of guidance

    def __init__(
        self,
        channels: int = 1,
        size: int = 8,
        classes: int = 10,
        width: int = 256,
        blocks: int = 4,
        hidden: int | None = None,
        kind: Kind = "v",
        guidance: bool = False,
        guidance_multiplier: float = 1000.0,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("size", size), ("width", width), ("blocks", blocks)):
            if value < 1:
                raise ConfigError(name, given=value, expected="at least 1")
        if classes < 0:
            raise ConfigError("classes", given=classes, expected="0 (unconditional) or more")
        if kind not in KINDS:
            raise ConfigError.unknown("kind", kind, KINDS, "parameterisation")
        self.config: dict[str, Any] = {
            "channels": channels,
            "size": size,
            "classes": classes,
            "width": width,
            "blocks": blocks,
            "hidden": hidden,
            "kind": kind,
            "guidance": guidance,
            "guidance_multiplier": guidance_multiplier,
        }
        self.channels, self.size, self.classes, self.kind = channels, size, classes, kind
        self.guidance, self.guidance_multiplier = guidance, guidance_multiplier
        pixels = channels * size * size
        self.read = nn.Linear(pixels, width)
        self.time = nn.Sequential(nn.Linear(self.FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.weight = nn.Linear(self.FEATURES, width) if guidance else None
        if self.weight is not None:
            nn.init.zeros_(self.weight.weight)
            nn.init.zeros_(self.weight.bias)
        self.blocks = nn.ModuleList(_Block(width, hidden or 3 * width // 2, width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, pixels * (2 if kind == "both" else 1))

    @property
    def null_class(self) -> int | None:
        """The class number that means 'no condition'; ``None`` where it knows no classes."""
        return self.classes or None

    @property
    def conditional(self) -> bool:
        """Whether it knows classes."""
        return self.label is not None

    def with_guidance(self) -> ResidualMLP:
        """A copy that takes a guidance weight and, untrained, answers as this network does for every w."""
        student = ResidualMLP(**{**self.config, "guidance": True})
        mine = self.state_dict()
        fresh = {k: v for k, v in student.state_dict().items() if k.startswith("weight.")}
        student.load_state_dict({**fresh, **mine}, strict=True)
        return student.to(self.read.weight.device, self.read.weight.dtype)

    def forward(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        """The output of the configured kind.

        Args:
            z: ``[B, C, H, W]``. logsnr: ``[B]``.
            label: class numbers int64 ``[B]``, ``null_class`` for none; None means the null class for all. A network
                without classes does not look at them.
            w: guidance weights ``[B]``, extra weight convention (0 is plain conditional). Needed if and only if the
                network was built with ``guidance=True``.

        Returns:
            ``[B, C, H, W]``, or ``[B, 2C, H, W]`` for ``both``.
        """
        if tuple(z.shape[1:]) != (self.channels, self.size, self.size):
            raise ShapeError("z", given=tuple(z.shape), expected=f"[B, {self.channels}, {self.size}, {self.size}]")
        if (w is None) == self.guidance:
            said = "has no guidance input" if w is not None else "needs a guidance weight per sample"
            remedy = "make it with with_guidance()" if w is not None else "pass w, zero for the plain conditional model"
            raise ConfigError("w", f"this network {said}", remedy=remedy)
        dtype = self.read.weight.dtype
        e = self.time(self._clock(logsnr.expand(z.shape[0])).to(dtype))
        if self.label is not None:
            if label is None:
                label = torch.full((z.shape[0],), self.classes, device=z.device)
            e = e + self.label(label)
        if self.weight is not None and w is not None:
            features = guidance_embedding(w.expand(z.shape[0]), self.FEATURES, multiplier=self.guidance_multiplier)
            e = e + self.weight(features.to(dtype))
        h = self.read(z.flatten(1))
        e = nn.functional.silu(e)
        for block in self.blocks:
            h = block(h, e)
        out: Tensor = self.write(nn.functional.silu(self.norm(h)))
        return out.reshape(z.shape[0], -1, self.size, self.size)

    def _clock(self, logsnr: Tensor) -> Tensor:
        """Sines and cosines ``[B, FEATURES]`` of the noise angle: a quarter turn to 32 turns over its range."""
        angle = torch.atan(torch.exp(-0.5 * logsnr.float())) * (2.0 / math.pi)  # [B] in [0, 1]
        half = self.FEATURES // 2
        rate = 0.5 * math.pi * torch.exp2(torch.arange(half, device=logsnr.device) * (7.0 / (half - 1)))
        phase = angle[:, None] * rate[None, :]
        return torch.cat([phase.sin(), phase.cos()], dim=1)
