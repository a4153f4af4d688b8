"""Noise schedules: by name, from and to the schedulers of diffusers, and as the plain values that a sampler keeps."""

from __future__ import annotations

import inspect
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

PREDICTION: dict[str, Kind] = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}


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


def scheduler_config(name: str) -> tuple[str, dict[str, Any]] | None:
    """The configuration of the scheduler that belongs to a network, and where it lies; ``None`` where there is none.

    Args:
        name: the network's folder, the pipeline's around it, or a Hub id.

    Raises:
        ConfigError: it cannot be read.
    """
    where = Path(name)
    if where.exists():
        places = (where / "scheduler", where, where.parent / "scheduler")
        path = next((p for p in places if (p / "scheduler_config.json").is_file()), None)
        if path is None:
            return None
        try:
            found = json.loads((path / "scheduler_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(str(path / "scheduler_config.json"), f"cannot be read: {error}") from None
        return str(path), found if isinstance(found, dict) else {}
    require("diffusers", "diffusion", "a scheduler of diffusers")
    from diffusers import DDIMScheduler

    for sub in ("scheduler", None):
        try:
            return name, dict(DDIMScheduler.load_config(name, **({"subfolder": sub} if sub else {})))
        except (OSError, ValueError):
            continue
    return None


def read_scheduler(name: str | dict[str, Any], zero_terminal_snr: bool) -> Any:
    """A diffusers scheduler by name, from its folder or file, or from its configuration.

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
    if isinstance(name, dict):
        return _from_config(name, zero_terminal_snr, "the scheduler")
    if name in known:
        return DDIMScheduler(**known[name], rescale_betas_zero_snr=zero_terminal_snr)
    path = Path(name.removeprefix("diffusers:"))
    for place in (path, path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json"):
        if place.is_file():
            try:
                config = json.loads(place.read_text())
            except ValueError as error:
                raise ConfigError("task.schedule", f"{place} is no scheduler's configuration: {error}") from None
            return _from_config(config, zero_terminal_snr, str(place))
    raise ConfigError.unknown(
        "task.schedule", name, ["cosine", "linear", *known, "a folder with scheduler_config.json"], "schedule"
    )


def _from_config(config: Any, zero_terminal_snr: bool, what: str) -> Any:
    from diffusers import DDIMScheduler

    more = {"rescale_betas_zero_snr": True} if zero_terminal_snr else {}
    known = inspect.signature(
        DDIMScheduler.__init__
    ).parameters  # of other schedulers' settings none bears on the betas
    try:
        return DDIMScheduler.from_config({k: v for k, v in config.items() if k in known}, **more)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise ConfigError("task.schedule", f"{what} is no scheduler's configuration: {error}") from None


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
        steps_offset=1,  # trailing steps do not look at it; pipelines of Stable Diffusion insist on it
        clip_sample=False,
        set_alpha_to_one=True,
    )
