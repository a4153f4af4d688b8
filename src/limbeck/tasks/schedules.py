"""Noise schedules: by name, from and to the schedulers of diffusers, and as the plain values that a sampler keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import ConfigError, require
from limbeck.functional import diffusion
from limbeck.functional.diffusion import DiscreteSchedule, Kind, Schedule

TIMESTEPS = 1000
"""Timesteps by which a network is told a continuous schedule: time u is timestep ``1000 u - 1``."""

PREDICTION = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}


def make_schedule(name: str, zero_terminal_snr: bool = False) -> Schedule:
    """A noise schedule by name, or that of a diffusers scheduler's folder or ``scheduler_config.json``.

    Raises:
        ConfigError: unknown name; a scheduler without ``alphas_cumprod``; rescaling a continuous schedule.

    Example:
        >>> type(make_schedule("cosine")).__name__
        'CosineSchedule'
    """
    if name in ("cosine", "linear"):
        if zero_terminal_snr and name == "linear":
            raise ConfigError("task.zero_terminal_snr", "a continuous linear schedule cannot be rescaled")
        return diffusion.CosineSchedule() if name == "cosine" else diffusion.LinearSchedule()
    return diffusion.DiscreteSchedule.from_alphas_cumprod(read_scheduler(name, zero_terminal_snr))


def describe_schedule(schedule: Schedule) -> dict[str, Any]:
    """A schedule as plain values."""
    if isinstance(schedule, DiscreteSchedule):
        alphas, _ = diffusion.alpha_sigma(schedule.table)
        return {"kind": "discrete", "alphas_cumprod": alphas.square().tolist(), "logsnr": schedule.table.tolist()}
    if isinstance(schedule, diffusion.CosineSchedule):
        return {"kind": "cosine", "logsnr_min": schedule.logsnr_min, "logsnr_max": schedule.logsnr_max}
    if isinstance(schedule, diffusion.LinearSchedule):
        return {"kind": "linear", "beta_min": schedule.beta_min, "beta_max": schedule.beta_max}
    raise ConfigError("schedule", given=type(schedule).__name__, expected="a cosine, linear or discrete schedule")


def read_schedule(about: Mapping[str, Any]) -> Schedule:
    """The schedule that :func:`describe_schedule` described."""
    kind = about["kind"]
    if kind == "discrete":
        return DiscreteSchedule(torch.tensor(about["logsnr"], dtype=torch.float64))
    if kind == "cosine":
        return diffusion.CosineSchedule(float(about["logsnr_min"]), float(about["logsnr_max"]))
    if kind == "linear":
        return diffusion.LinearSchedule(float(about["beta_min"]), float(about["beta_max"]))
    raise ValueError(f"schedule {kind!r}")


def scheduler_file(where: Path) -> Path | None:
    """The scheduler configuration that belongs to a network's folder, or to the pipeline around it."""
    for path in (where / "scheduler", where, where.parent / "scheduler"):
        if (path / "scheduler_config.json").is_file():
            return path / "scheduler_config.json"
    return None


def scheduler_kind(where: Path | None) -> Kind | None:
    """What a network's output means, by its scheduler."""
    path = scheduler_file(where) if where is not None else None
    if path is None:
        return None
    kind: Any = PREDICTION.get(json.loads(path.read_text()).get("prediction_type", "epsilon"))
    return kind


def read_scheduler(name: str, zero_terminal_snr: bool) -> Any:
    """A diffusers scheduler by name, or from its folder or file.

    Raises:
        ConfigError: no such name or file.
    """
    require("diffusers", "diffusion", "a schedule of diffusers")
    from diffusers import DDIMScheduler

    known: dict[str, dict[str, Any]] = {
        "ddpm": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        "scaled-linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        "squaredcos": {"beta_schedule": "squaredcos_cap_v2"},
    }
    if name in known:
        return DDIMScheduler(**known[name], rescale_betas_zero_snr=zero_terminal_snr)
    path = Path(name.removeprefix("diffusers:"))
    for place in (path, path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json"):
        if place.is_file():
            try:
                config = json.loads(place.read_text())
                more = {"rescale_betas_zero_snr": True} if zero_terminal_snr else {}
                return DDIMScheduler.from_config({k: v for k, v in config.items() if not k.startswith("_")}, **more)
            except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
                raise ConfigError("task.schedule", f"{place} is no scheduler's configuration: {error}") from None
    raise ConfigError.unknown(
        "task.schedule", name, ["cosine", "linear", *known, "a folder with scheduler_config.json"], "schedule"
    )


def scheduler_for(schedule: Schedule, mean_type: Kind) -> Any:
    """The DDIM scheduler that samples as we do: trailing steps, the last one to the clean end, nothing clipped.

    A continuous schedule becomes a table of 1,000 timesteps. ``both`` has no name there and is written as ``sample``.
    """
    from diffusers import DDIMScheduler

    if isinstance(schedule, DiscreteSchedule):
        logsnr = schedule.table
    else:
        logsnr = schedule.logsnr(torch.arange(1, TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS)
    abar = torch.sigmoid(logsnr.double())
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    betas = (1.0 - abar / before).clamp(0.0, 1.0 - 1e-12)
    kind = {"eps": "epsilon", "x": "sample", "v": "v_prediction", "both": "sample"}[mean_type]
    return DDIMScheduler(
        num_train_timesteps=len(betas),
        trained_betas=betas.tolist(),
        prediction_type=kind,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
