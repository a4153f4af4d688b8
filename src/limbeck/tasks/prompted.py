"""What a diffusion model of texts is asked: one text for each side that a scene is seen from, and a plain one.

front, side, back, side by the angle around; overhead and bottom near the poles; the plain text for the model of the scene
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from limbeck.data.items import digest
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.random import Draws
from limbeck.tasks.generation import Generation
from limbeck.tasks.schedules import make_schedule

SIDES = ("front view", "side view", "back view", "overhead view", "bottom view")
PLAIN = len(SIDES)


def side_of(camera: Tensor, front: float = 60.0, overhead: float = 30.0) -> Tensor:
    """The number of the side in `SIDES` that cameras [B, 4, 4] see, int64 [B].

    Args:
        camera: from the world to the camera; the scene's front looks along +x, up is +z.
        front: opening angle of the front (and of the back) around it, in degrees.
        overhead: angle from the poles within which a view is from above or below.

    Source: the published code's angles.
    """
    R, t = camera[:, :3, :3], camera[:, :3, 3]
    eye = -(R.mT @ t[..., None]).squeeze(-1)
    turn = torch.atan2(eye[:, 1], eye[:, 0]).abs() * (180 / math.pi)  # 0 in front, 180 behind
    up = torch.asin((eye[:, 2] / eye.norm(dim=-1).clamp_min(1e-9)).clamp(-1, 1)) * (180 / math.pi)
    side = torch.where(turn < front / 2, 0, torch.where(turn > 180 - front / 2, 2, 1))
    side = torch.where(up > 90 - overhead, 3, side)
    return torch.where(up < overhead - 90, 4, side)


class Texts:
    """No pictures: the texts are known.

    Args:
        labels: the texts.
    """

    def __init__(self, labels: list[str]) -> None:
        self.labels, self.y = labels, torch.arange(len(labels))

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, items: Tensor) -> Batch:
        """Their numbers."""
        return {"y": self.y[items]}

    @property
    def fingerprint(self) -> str:
        """A content hash."""
        return digest(torch.tensor(list("\n".join(self.labels).encode()) or [0]))


class Prompted(Generation):
    """A denoiser of latents that is told texts; there are no images to learn from.

    Args:
        prompt: what is drawn.
        shape: of the latents, (channels, height, width).
        schedule: of the denoiser.
    """

    def __init__(self, prompt: str, shape: tuple[int, ...], schedule: str) -> None:
        super().__init__(schedule=schedule)
        self.latent = shape
        self.labels = [*(f"{prompt}, {side}" for side in SIDES), prompt]
        self.train = self.teacher_train = self.valid = self.test = Texts(self.labels)  # type: ignore[assignment]

    def load(self, seed: int | None = None) -> None:
        """Read the schedule."""
        if self._schedule is None:
            self._schedule = make_schedule(self.schedule_name, self.zero_terminal_snr)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latents."""
        return self.latent

    @property
    def classes(self) -> int:
        """The texts, the empty one not counted."""
        return len(self.labels or [])

    @property
    def needs(self) -> Needs:
        """A denoiser of latents."""
        return Needs(self.shape, self.classes, "denoiser", tuple(self.labels or ()), "prompt", schedule=self.schedule)

    def example(self, n: int = 2) -> Batch:
        """Noise for the first texts."""
        ids = torch.arange(n) % self.classes
        z = Draws(0, ("example",)).randn("z", torch.arange(n), self.shape)
        return {
            "z": z,
            "logsnr": torch.zeros(n),
            "y": ids,
            "w": torch.zeros(n),
            "item": ids,
            "view": torch.zeros_like(ids),
        }

    def check_teacher(self, teacher: Built, device: torch.device | None = None) -> None:
        """It cannot be tried: there are no images."""
        teacher.notes.append("not tried on pictures: a model of texts comes without them")

    def describe(self) -> dict[str, Any]:
        """The texts."""
        return {"texts": self.labels, "shape": list(self.shape)}


__all__ = ["PLAIN", "SIDES", "Prompted", "Texts", "side_of"]
