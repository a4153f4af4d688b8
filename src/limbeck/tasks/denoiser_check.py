"""A ready denoiser tried on noised images before anything is trained: is its output what it is taken to be?

Its error is held against that of a linear guess, pixel by pixel, which knows each pixel's mean and variance (Wiener's
filter, the best that knows nothing of the others). Who is worse, while another meaning of the same output or another noise
schedule makes it better, is misread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck.errors import TeacherMismatch
from limbeck.functional import diffusion
from limbeck.functional.diffusion import Kind
from limbeck.grammar.method import Built
from limbeck.grammar.random import Draws
from limbeck.grammar.signal import device_of, evaluating
from limbeck.tasks.sampler import reading
from limbeck.tasks.schedules import make_schedule

if TYPE_CHECKING:
    from limbeck.tasks.generation import Generation

ITEMS = 128
LEVELS = (3.0, 1.0, -1.0)
"""Log-SNR at which images are noised. In more noise the noise alone is guessed, whose least error is a large one in x."""

SCHEDULES = ("cosine", "linear", "ddpm", "scaled-linear", "squaredcos")


def check(task: Generation, teacher: Built, device: torch.device | None = None) -> None:
    """Try a ready denoiser on up to 128 training images; what is found goes into its notes.

    Raises:
        TeacherMismatch: its output is misread, or it was trained on another noise schedule.
    """
    module = teacher.module.to(device or device_of(teacher.module))
    said = reading(module, "teacher")
    ids = torch.linspace(0, len(task.teacher_train) - 1, min(ITEMS, len(task.teacher_train))).round().long()
    batch = task.teacher_train.fetch(ids)
    x, y = task.signed(batch["x"]).to(device_of(module)), batch["y"].to(device_of(module))
    eps = Draws(0, ("denoiser-check",)).randn("eps", ids, x.shape[1:]).to(x)
    own = ratios(module, said, x, y, eps)
    mine = own[said.mean_type]
    told = f"its error on {len(x)} noised training images is {mine:.2g} times that of a linear guess pixel by pixel"
    if mine <= 1:
        teacher.notes.append(told)
        return
    best = min(own, key=lambda kind: own[kind])
    role, model = teacher.model.role or "teacher", teacher.model
    if own[best] <= 1:
        raise TeacherMismatch(
            role,
            f"{told}; read as {best} it is {own[best]:.2g}",
            remedy=f"set {model.setting('mean_type')}={best}, or {model.setting('check')}=off to go on all the same",
        )
    if hasattr(module, "schedule") and hasattr(module, "timestep"):  # told a timestep, not how noisy z is
        was = module.schedule
        try:
            for name in SCHEDULES:
                module.schedule = make_schedule(name)
                found = ratios(module, said, x, y, eps)
                if found[said.mean_type] <= 1:
                    raise TeacherMismatch(
                        role,
                        f"{told}; told the timesteps of the schedule {name} it is {found[said.mean_type]:.2g}",
                        remedy=f"set task.schedule={name}, or {model.setting('check')}=off to go on all the same",
                    )
        finally:
            module.schedule = was
    teacher.notes.append(f"{told}: it is weak, or was trained on other images or another noise schedule")


def ratios(module: Any, said: Any, x: Tensor, y: Tensor, eps: Tensor) -> dict[Kind, float]:
    """For each meaning of the output its error in x over that of a linear guess, averaged over noise levels."""
    variance = x.var(0, correction=0)
    kinds: list[Kind] = ["both"] if said.mean_type == "both" else ["eps", "x", "v"]
    found = dict.fromkeys(kinds, 0.0)
    with torch.no_grad(), evaluating([module]):
        for level in LEVELS:
            logsnr = torch.full((len(x),), level).to(x)
            alpha, sigma = (v[0] for v in diffusion.alpha_sigma(logsnr))
            z = diffusion.diffuse(x, eps, logsnr).to(x)
            out = module(z, logsnr, y, torch.zeros_like(logsnr)) if said.guided else module(z, logsnr, y)
            guess = (variance * sigma**2 / (alpha**2 * variance + sigma**2)).mean()
            for kind in kinds:
                error = (diffusion.to_x_eps(out.float(), z, logsnr, kind).x - x).square().mean()
                found[kind] += float(error / guess) / len(LEVELS)
    return found
