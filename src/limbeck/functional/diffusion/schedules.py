"""Noise schedules: how noisy a sample is at time u, in continuous time or as a table of numbered timesteps."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError
from ..precision import widest
from ._precision import as_wide


class Schedule:
    """How noisy a sample is at time ``u`` in [0, 1]: 0 is clean, 1 is noise. Subclasses give ``logsnr`` and ``time``.

    All methods take a tensor of any shape or a number, and answer in float64 (float32 where the device has none).
    """

    def logsnr(self, u: Tensor | float) -> Tensor:
        """``log(alpha^2 / sigma^2)`` at time ``u``, falling in ``u``."""
        raise TypeError(f"{type(self).__name__} does not say its log-SNR")

    def time(self, logsnr: Tensor | float) -> Tensor:
        """The time ``u`` at which the log-SNR is the given one (clamped to [0, 1])."""
        raise TypeError(f"{type(self).__name__} does not say its time")

    def alpha(self, u: Tensor | float) -> Tensor:
        """The factor of the clean sample at time ``u``."""
        return alpha_sigma(self.logsnr(u))[0]

    def sigma(self, u: Tensor | float) -> Tensor:
        """The factor of the noise at time ``u``."""
        return alpha_sigma(self.logsnr(u))[1]


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """The cosine schedule with its log-SNR clipped smoothly: ``lambda(u) = -2 log tan(a u + b)``.

    With infinite bounds it is exactly ``alpha = cos(pi u / 2)``, ``sigma = sin(pi u / 2)``.

    Args:
        logsnr_min: log-SNR at ``u = 1``.
        logsnr_max: log-SNR at ``u = 0``.

    Raises:
        ConfigError: if ``logsnr_min >= logsnr_max``.

    Example:
        >>> float(CosineSchedule().logsnr(0.5).round(decimals=6).abs())
        0.0
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __post_init__(self) -> None:
        if not self.logsnr_min < self.logsnr_max:
            raise ConfigError(
                "schedule.logsnr_min",
                given=self.logsnr_min,
                expected=f"less than logsnr_max = {self.logsnr_max}",
            )

    def _line(self) -> tuple[float, float]:
        b = math.atan(math.exp(-0.5 * self.logsnr_max))
        # exp overflows where the arctangent has long been pi / 2
        a = math.atan(math.exp(min(-0.5 * self.logsnr_min, 700.0))) - b
        return a, b

    def logsnr(self, u: Tensor | float) -> Tensor:
        """``-2 log tan(a u + b)``."""
        a, b = self._line()
        return -2.0 * torch.log(torch.tan(a * as_wide(u) + b))

    def time(self, logsnr: Tensor | float) -> Tensor:
        """``(arctan(exp(-lambda/2)) - b) / a``."""
        a, b = self._line()
        return ((torch.atan(torch.exp(-0.5 * as_wide(logsnr))) - b) / a).clamp(0.0, 1.0)


_CLEANEST = 20.0
"""Log-SNR at which a schedule that would reach infinity is held: a noise of 5e-5."""


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """The continuous schedule of linearly growing beta: ``log alpha = -u^2 (beta_max - beta_min)/4 - u beta_min/2``.

    At ``u = 0`` there would be no noise at all, and nothing to divide by: the log-SNR is held at 20, its value at
    ``u = 2e-8`` by default, as the cosine schedule's is.

    Source: Song et al. 2021 (arXiv 2011.13456), VP-SDE.

    Args:
        beta_min: rate of noising at ``u = 0``.
        beta_max: rate of noising at ``u = 1``.

    Example:
        >>> bool(LinearSchedule().alpha(1.0) < 0.01)
        True
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min <= self.beta_max:
            raise ConfigError("schedule.beta_min", given=self.beta_min, expected=f"in (0, beta_max = {self.beta_max}]")

    def logsnr(self, u: Tensor | float) -> Tensor:
        """``-log(exp(-log alpha^2) - 1)``, at most 20."""
        u = as_wide(u)
        rate = 0.5 * u * u * (self.beta_max - self.beta_min) + u * self.beta_min  # -log alpha^2
        rate = rate.clamp_min(math.log1p(math.exp(-_CLEANEST)))
        return -(rate + torch.log(-torch.expm1(-rate)))  # exp(rate) itself would overflow

    def time(self, logsnr: Tensor | float) -> Tensor:
        """The positive root of the quadratic ``-log alpha^2 = softplus(-lambda)``."""
        rate = F.softplus(-as_wide(logsnr))
        slope = self.beta_max - self.beta_min
        # the root of slope/2 u^2 + beta_min u = rate, in the form that survives slope = 0
        root = torch.sqrt(self.beta_min**2 + 2.0 * slope * rate)
        return (2.0 * rate / (self.beta_min + root)).clamp(0.0, 1.0)


@dataclass(frozen=True, eq=False)
class DiscreteSchedule(Schedule):
    """The schedule of a network trained at ``T`` numbered timesteps, as a function of continuous time.

    Timestep ``t`` sits at ``u = (t + 1) / T``, so ``u = 1`` is the noisiest one. Between timesteps the log-SNR is
    interpolated linearly; below the first it is held, as diffusers does with ``set_alpha_to_one=False``.

    Args:
        table: ``[T]`` log-SNR of every timestep, falling, finite, float64 on the CPU.

    Example:
        >>> schedule = DiscreteSchedule.from_alphas_cumprod(torch.linspace(0.99, 0.01, 10))
        >>> schedule.timestep(torch.tensor([0.1, 1.0])).tolist()
        [0, 9]
    """

    table: Tensor
    _there: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def from_alphas_cumprod(
        cls, source: Any, *, logsnr_min: float = -20.0, logsnr_max: float = 20.0
    ) -> DiscreteSchedule:
        """Read a table of ``alpha^2`` per timestep, or any diffusers scheduler that has ``alphas_cumprod``.

        Args:
            source: ``[T]`` tensor, array or list, or an object with such an attribute ``alphas_cumprod``.
            logsnr_min: floor of the log-SNR; it is reached where a scheduler was rescaled to zero terminal SNR.
            logsnr_max: ceiling of the log-SNR.

        Raises:
            ConfigError: if the source has no such table, or the table does not fall from 1 towards 0.
        """
        values = getattr(source, "alphas_cumprod", source)
        if not isinstance(values, (Tensor, list, tuple)) and not hasattr(values, "__array__"):
            raise ConfigError(
                "schedule",
                "there is no alphas_cumprod to read",
                given=type(source).__name__,
                expected="a table [T] of alpha^2, or a scheduler with the attribute alphas_cumprod",
            )
        abar = torch.as_tensor(values).detach().to("cpu", torch.float64)
        falls = abar.ndim == 1 and abar.numel() > 0 and bool((abar.diff() < 0).all())
        if not falls or not bool(((abar >= 0) & (abar <= 1)).all()):
            raise ConfigError(
                "schedule",
                "alphas_cumprod must fall strictly inside [0, 1], one value per timestep",
                given=abar.tolist() if abar.ndim == 1 else tuple(abar.shape),
            )
        logsnr = (torch.log(abar) - torch.log1p(-abar)).clamp(logsnr_min, logsnr_max)
        return cls(logsnr)

    @property
    def timesteps(self) -> int:
        """How many timesteps the network knows."""
        return int(self.table.numel())

    def _nodes(self, device: torch.device) -> Tensor:
        if device not in self._there:
            self._there[device] = self.table.to(device, widest(device))
        return self._there[device]

    def logsnr(self, u: Tensor | float) -> Tensor:
        """The table at ``u T - 1``, linear between timesteps."""
        u = as_wide(u)
        nodes = self._nodes(u.device)
        place = (u * self.timesteps - 1.0).clamp(0.0, self.timesteps - 1.0)
        low = place.floor().long()
        high = (low + 1).clamp_max(self.timesteps - 1)
        part = place - low
        return nodes[low] * (1.0 - part) + nodes[high] * part

    def time(self, logsnr: Tensor | float) -> Tensor:
        """The inverse by search and interpolation; where the table is flat, the earliest such time."""
        value = as_wide(logsnr)
        nodes = self._nodes(value.device)
        high = torch.searchsorted(-nodes, -value.contiguous()).clamp(1, max(self.timesteps - 1, 1))
        if self.timesteps == 1:
            return torch.ones_like(value)
        low = high - 1
        span = nodes[high] - nodes[low]
        # a table clamped at its floor is flat there: any time of the flat piece is right, take its start
        part = torch.where(span == 0, torch.zeros_like(span), (value - nodes[low]) / span).clamp(0.0, 1.0)
        return (low + part + 1.0) / self.timesteps

    def timestep(self, u: Tensor | float) -> Tensor:
        """The number of the nearest timestep, int64, for networks that are told the step instead of the log-SNR."""
        return (as_wide(u) * self.timesteps - 1.0).round().long().clamp(0, self.timesteps - 1)


def alpha_sigma(logsnr: Tensor | float) -> tuple[Tensor, Tensor]:
    """``alpha = sqrt(sigmoid(lambda))`` and ``sigma = sqrt(sigmoid(-lambda))``, in float64 where there is one.

    Example:
        >>> alpha, sigma = alpha_sigma(0.0)
        >>> bool((alpha**2 + sigma**2 - 1).abs() < 1e-12)
        True
    """
    value = as_wide(logsnr)
    return torch.sqrt(torch.sigmoid(value)), torch.sqrt(torch.sigmoid(-value))


def check_terminal_snr(schedule: Schedule, tolerance: float = 0.01) -> float:
    """``alpha`` at ``u = 1``; warns if it is not near 0, for then pure noise is not what the network was trained on.

    Stable Diffusion's scaled-linear table ends at alpha = 0.068.

    Example:
        >>> check_terminal_snr(CosineSchedule()) < 0.001
        True
    """
    alpha = float(schedule.alpha(1.0))
    if alpha > tolerance:
        warnings.warn(
            f"schedule: alpha at the noisiest step is {alpha:.4f}, not 0; samples started from pure noise are "
            "mis-scaled. Rescale the scheduler to zero terminal SNR, or start from a diffused sample",
            UserWarning,
            stacklevel=2,
        )
    return alpha
