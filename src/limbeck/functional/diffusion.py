"""Diffusion in one vocabulary: noise schedules, parameterisations, DDIM jumps, guidance, two-step targets, samplers.

Everything here is variance preserving: ``z = alpha x + sigma eps`` with ``alpha^2 + sigma^2 = 1``, so one number per
sample, the log-SNR ``lambda = log(alpha^2 / sigma^2)``, says how noisy ``z`` is. Time ``u`` runs from 0 (clean) to 1
(noise). Tensors are ``[B, ...]`` with any trailing layout; ``u``, ``lambda`` and guidance weights are ``[B]``.

A network is any callable ``predict(z, logsnr) -> out``. What ``out`` means is its ``kind``: ``"eps"`` (the noise),
``"x"`` (the clean sample), ``"v"`` (``alpha eps - sigma x``) or ``"both"`` (x and eps side by side along the channels,
mixed with the weight ``sigma^2``).

Coefficients are computed in float64 (float32 where the device has no float64), divisions by a vanishing ``alpha`` or
``sigma`` too; results come back in the input's dtype, and never below float32.

Sources: Salimans and Ho 2022 (Progressive Distillation, arXiv 2202.00512) for the parameterisations, the two-step
target and the loss weights; Meng et al. 2023 (On Distillation of Guided Diffusion Models, arXiv 2210.03142) for the
guided target, the stochastic sampler and the encoder.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import ConfigError, ShapeError

__all__ = [
    "CosineSchedule",
    "DiscreteSchedule",
    "Errors",
    "Kind",
    "LinearSchedule",
    "Predict",
    "Schedule",
    "TwoStepTarget",
    "Weight",
    "XEps",
    "alpha_sigma",
    "ancestral_sample",
    "ancestral_step",
    "check_guidance",
    "check_terminal_snr",
    "ddim_jump",
    "ddim_sample",
    "diffuse",
    "encode",
    "from_x_eps",
    "guidance_embedding",
    "guide",
    "guided_x",
    "halving_rounds",
    "halving_times",
    "invert_jump",
    "loss_weight",
    "prediction_errors",
    "renoise",
    "scale_from_w",
    "select_error",
    "stochastic_sample",
    "stochastic_times",
    "to_x_eps",
    "two_step_target",
    "w_from_scale",
]

Kind = Literal["eps", "x", "v", "both"]
Weight = Literal["constant", "snr", "snr_trunc", "v_mse"]
Predict = Callable[[Tensor, Tensor], Tensor]

KINDS: tuple[str, ...] = get_args(Kind)
WEIGHTS: tuple[str, ...] = get_args(Weight)


class XEps(NamedTuple):
    """A prediction as the pair every formula wants: the clean sample and the noise, both ``[B, ...]``."""

    x: Tensor
    eps: Tensor


class Errors(NamedTuple):
    """Squared errors of one prediction in three parameterisations, each ``[B]``, averaged over a sample's elements."""

    x: Tensor
    eps: Tensor
    v: Tensor


class TwoStepTarget(NamedTuple):
    """What a student must predict at ``z`` so that one jump equals two of the teacher's. Without graph.

    ``x``, ``eps``, ``v``: the same target in three parameterisations, ``[B, ...]``; ``z_mid``, ``z_s``: where the
    teacher's two jumps landed; ``logsnr``, ``logsnr_mid``, ``logsnr_s``: ``[B]``, in float64 where there is one.
    """

    x: Tensor
    eps: Tensor
    v: Tensor
    z_mid: Tensor
    z_s: Tensor
    logsnr: Tensor
    logsnr_mid: Tensor
    logsnr_s: Tensor


# ---------------------------------------------------------------------------------------------------------- precision


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _working(*tensors: Tensor) -> torch.dtype:
    """The dtype of a result: the widest of the inputs, and at least float32."""
    dtype = torch.float32
    for t in tensors:
        if t.is_floating_point():
            dtype = torch.promote_types(dtype, t.dtype)
    return dtype


def _as_wide(value: Tensor | float, device: torch.device | None = None) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(_wide(value.device))
    device = device or torch.device("cpu")
    return torch.tensor(value, dtype=_wide(device), device=device)


def _expand(value: Tensor, like: Tensor) -> Tensor:
    """``[B]`` or a scalar, shaped so that it multiplies ``[B, ...]``."""
    if value.ndim == 0:
        return value
    if value.ndim != 1 or value.shape[0] not in (1, like.shape[0]):
        raise ShapeError(
            "logsnr",
            "one value per sample is needed",
            given=tuple(value.shape),
            expected=f"a scalar or [{like.shape[0]}]",
        )
    return value.reshape(-1, *([1] * (like.ndim - 1)))


def _known(argument: str, value: str, names: tuple[str, ...], what: str) -> None:
    if value not in names:
        raise ConfigError.unknown(argument, value, names, what)


# ---------------------------------------------------------------------------------------------------------- schedules


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
        return -2.0 * torch.log(torch.tan(a * _as_wide(u) + b))

    def time(self, logsnr: Tensor | float) -> Tensor:
        """``(arctan(exp(-lambda/2)) - b) / a``."""
        a, b = self._line()
        return ((torch.atan(torch.exp(-0.5 * _as_wide(logsnr))) - b) / a).clamp(0.0, 1.0)


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """The continuous schedule of linearly growing beta: ``log alpha = -u^2 (beta_max - beta_min)/4 - u beta_min/2``.

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
        """``-log(exp(-log alpha^2) - 1)``."""
        u = _as_wide(u)
        rate = 0.5 * u * u * (self.beta_max - self.beta_min) + u * self.beta_min  # -log alpha^2
        return -torch.log(torch.expm1(rate))

    def time(self, logsnr: Tensor | float) -> Tensor:
        """The positive root of the quadratic ``-log alpha^2 = softplus(-lambda)``."""
        rate = F.softplus(-_as_wide(logsnr))
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
            self._there[device] = self.table.to(device, _wide(device))
        return self._there[device]

    def logsnr(self, u: Tensor | float) -> Tensor:
        """The table at ``u T - 1``, linear between timesteps."""
        u = _as_wide(u)
        nodes = self._nodes(u.device)
        place = (u * self.timesteps - 1.0).clamp(0.0, self.timesteps - 1.0)
        low = place.floor().long()
        high = (low + 1).clamp_max(self.timesteps - 1)
        part = place - low
        return nodes[low] * (1.0 - part) + nodes[high] * part

    def time(self, logsnr: Tensor | float) -> Tensor:
        """The inverse by search and interpolation; where the table is flat, the earliest such time."""
        value = _as_wide(logsnr)
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
        return (_as_wide(u) * self.timesteps - 1.0).round().long().clamp(0, self.timesteps - 1)


def alpha_sigma(logsnr: Tensor | float) -> tuple[Tensor, Tensor]:
    """``alpha = sqrt(sigmoid(lambda))`` and ``sigma = sqrt(sigmoid(-lambda))``, in float64 where there is one.

    Example:
        >>> alpha, sigma = alpha_sigma(0.0)
        >>> bool((alpha**2 + sigma**2 - 1).abs() < 1e-12)
        True
    """
    value = _as_wide(logsnr)
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


# --------------------------------------------------------------------------------------------------- parameterisations


def diffuse(x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """``z = alpha x + sigma eps``: the noisy sample ``[B, ...]`` at log-SNR ``[B]``.

    Example:
        >>> x, eps = torch.ones(2, 3), torch.zeros(2, 3)
        >>> diffuse(x, eps, torch.zeros(2)).square().mean().round(decimals=6).item()
        0.5
    """
    dtype = _working(x, eps)
    alpha, sigma = (_expand(c, x).to(dtype) for c in alpha_sigma(logsnr))
    return alpha * x.to(dtype) + sigma * eps.to(dtype)


def ddim_jump(x: Tensor, eps: Tensor, logsnr_s: Tensor) -> Tensor:
    """Psi(x, eps, s): carry a prediction to another noise level, ``alpha_s x + sigma_s eps`` (DDIM, eta = 0).

    Args:
        x: ``[B, ...]`` predicted clean sample.
        eps: ``[B, ...]`` predicted noise.
        logsnr_s: ``[B]`` log-SNR to arrive at; either direction.

    Example:
        >>> x = torch.full((1, 2), 0.5)
        >>> torch.allclose(ddim_jump(x, torch.zeros(1, 2), torch.tensor([40.0])), x)
        True
    """
    return diffuse(x, eps, logsnr_s)


def to_x_eps(
    out: Tensor,
    z: Tensor,
    logsnr: Tensor,
    kind: Kind,
    *,
    clip_x: bool = False,
    channel_dim: int = 1,
) -> XEps:
    """Read a network's output as the pair (x, eps) with ``alpha x + sigma eps = z``.

    Args:
        out: ``[B, ...]`` like ``z``; for ``"both"`` twice as many channels, x first.
        z: ``[B, ...]`` the noisy sample the network saw.
        logsnr: ``[B]``.
        kind: what the output means.
        clip_x: clamp x to [-1, 1] and let eps follow. For sampling only: in a training target it biases the target.
        channel_dim: where ``"both"`` is split.

    Raises:
        ConfigError: for an unknown kind. ShapeError: if ``out`` does not fit ``z``.

    Source: Salimans and Ho 2022, section 4 and appendix D.

    Example:
        >>> x, eps, lam = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([1.0, -2.0])
        >>> z = diffuse(x, eps, lam)
        >>> torch.allclose(to_x_eps(from_x_eps(x, eps, lam, "v"), z, lam, "v").x, x, atol=1e-5)
        True
    """
    _known("kind", kind, KINDS, "parameterisation")
    wanted = list(z.shape)
    if kind == "both":
        wanted[channel_dim] *= 2
    if list(out.shape) != wanted:
        raise ShapeError("out", f"a {kind!r} output must fit z", given=tuple(out.shape), expected=str(tuple(wanted)))
    dtype, wide = _working(out, z), _wide(z.device)
    alpha, sigma = (_expand(c, z) for c in alpha_sigma(logsnr))
    z, out = z.to(wide), out.to(wide)
    eps: Tensor | None = None
    if kind == "eps":
        x, eps = (z - sigma * out) / alpha, out
    elif kind == "x":
        x = out
    elif kind == "v":
        x, eps = alpha * z - sigma * out, sigma * z + alpha * out
    else:
        direct, noise = out.chunk(2, dim=channel_dim)
        # sigma^2 x + alpha^2 (z - sigma eps) / alpha, without the division: exact however small alpha is
        x = sigma.square() * direct + alpha * (z - sigma * noise)
    if clip_x:
        x, eps = x.clamp(-1.0, 1.0), None
    if eps is None:
        eps = (z - alpha * x) / sigma
    return XEps(x.to(dtype), eps.to(dtype))


def from_x_eps(x: Tensor, eps: Tensor, logsnr: Tensor, kind: Kind, *, channel_dim: int = 1) -> Tensor:
    """The inverse of :func:`to_x_eps`: the output of that kind which means (x, eps).

    Example:
        >>> x, eps = torch.zeros(1, 2), torch.ones(1, 2)
        >>> from_x_eps(x, eps, torch.zeros(1), "both").shape
        torch.Size([1, 4])
    """
    _known("kind", kind, KINDS, "parameterisation")
    dtype = _working(x, eps)
    if kind == "x":
        return x.to(dtype)
    if kind == "eps":
        return eps.to(dtype)
    if kind == "both":
        return torch.cat([x.to(dtype), eps.to(dtype)], dim=channel_dim)
    alpha, sigma = (_expand(c, x).to(dtype) for c in alpha_sigma(logsnr))
    return alpha * eps.to(dtype) - sigma * x.to(dtype)


def invert_jump(z: Tensor, z_s: Tensor, logsnr: Tensor, logsnr_s: Tensor) -> XEps:
    """The (x, eps) with which one DDIM jump from ``z`` at ``logsnr`` lands on ``z_s`` at ``logsnr_s``.

    Two linear equations: ``z = alpha x + sigma eps`` and ``z_s = alpha_s x + sigma_s eps``. Towards less noise they are
    solved for x first, with ``sigma_s / sigma = exp((softplus(lambda) - softplus(lambda_s)) / 2)``; towards more noise
    for eps first, with the mirrored ratio ``alpha_s / alpha``. Each is the well-conditioned order.

    Args:
        z, z_s: ``[B, ...]``.
        logsnr, logsnr_s: ``[B]``; they must differ.

    Source: Salimans and Ho 2022, appendix G, equation 43 and after; the reverse direction is Meng et al. 2023, 3.4.

    Example:
        >>> x, eps = torch.randn(2, 3), torch.randn(2, 3)
        >>> a, b = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, -2.0])
        >>> torch.allclose(invert_jump(diffuse(x, eps, a), diffuse(x, eps, b), a, b).x, x, atol=1e-4)
        True
    """
    dtype, wide = _working(z, z_s), _wide(z.device)
    lam, lam_s = _as_wide(logsnr), _as_wide(logsnr_s)
    z, z_s = z.to(wide), z_s.to(wide)
    alpha, sigma = (_expand(c, z) for c in alpha_sigma(lam))
    alpha_s, sigma_s = (_expand(c, z) for c in alpha_sigma(lam_s))
    # towards less noise
    ratio = _expand(torch.exp(0.5 * (F.softplus(lam) - F.softplus(lam_s))), z)
    x = (z_s - ratio * z) / (alpha_s - ratio * alpha)
    eps = (z - alpha * x) / sigma
    # towards more noise
    mirrored = _expand(torch.exp(0.5 * (F.softplus(-lam) - F.softplus(-lam_s))), z)
    eps_up = (z_s - mirrored * z) / (sigma_s - mirrored * sigma)
    x_up = (z - sigma * eps_up) / alpha
    down = _expand(lam_s >= lam, z)
    return XEps(torch.where(down, x, x_up).to(dtype), torch.where(down, eps, eps_up).to(dtype))


def renoise(z: Tensor, noise: Tensor, logsnr: Tensor, logsnr_s: Tensor) -> Tensor:
    """Add noise to ``z`` at ``logsnr`` until it is a sample at the noisier ``logsnr_s``.

    ``z_s = (alpha_s / alpha) z + sigma_{s|} noise`` with ``sigma_{s|}^2 = (1 - exp(lambda_s - lambda)) sigma_s^2``.

    Source: Meng et al. 2023, equations 14 and 16.

    Example:
        >>> z = torch.ones(1, 2)
        >>> torch.equal(renoise(z, torch.randn(1, 2), torch.tensor([3.0]), torch.tensor([3.0])), z)
        True
    """
    dtype, wide = _working(z, noise), _wide(z.device)
    lam, lam_s = _as_wide(logsnr), _as_wide(logsnr_s)
    if bool((lam_s > lam).any()):
        raise ConfigError("logsnr_s", "noise can only be added", expected="a log-SNR not above the present one")
    ratio = torch.exp(0.5 * (F.softplus(-lam) - F.softplus(-lam_s)))
    added = torch.sqrt(-torch.expm1(torch.where(lam_s == lam, torch.zeros_like(lam), lam_s - lam)))
    sigma_s = alpha_sigma(lam_s)[1]
    return (_expand(ratio, z) * z.to(wide) + _expand(added * sigma_s, z) * noise.to(wide)).to(dtype)


# ------------------------------------------------------------------------------------------------------------ guidance


def scale_from_w(w: Tensor | float) -> Tensor | float:
    """``s = 1 + w``: from the paper's extra weight (0 is plain conditional) to the libraries' scale (1 is plain)."""
    return w + 1.0


def w_from_scale(scale: Tensor | float) -> Tensor | float:
    """``w = s - 1``: the inverse of :func:`scale_from_w`."""
    return scale - 1.0


def _extra_weight(w: Tensor | float | None, scale: Tensor | float | None) -> Tensor | float:
    if (w is None) == (scale is None):
        raise ConfigError(
            "guidance",
            "give exactly one of the two conventions",
            expected="w (0 is plain conditional) or scale (1 is plain conditional)",
        )
    if w is not None:
        return w
    assert scale is not None
    return w_from_scale(scale)


def guide(
    cond: Tensor, uncond: Tensor, *, w: Tensor | float | None = None, scale: Tensor | float | None = None
) -> Tensor:
    """Classifier-free guidance of two predictions ``[B, ...]`` of the same kind, in either convention, by name.

    ``w``: ``(1 + w) cond - w uncond`` (Ho and Salimans 2022; Meng et al. 2023); ``scale``: ``uncond + s (cond -
    uncond)`` (diffusers). They are the same with ``s = 1 + w``. A number, or one value per sample ``[B]``.

    Raises:
        ConfigError: unless exactly one of ``w`` and ``scale`` is given.

    Example:
        >>> c, u = torch.tensor([[2.0]]), torch.tensor([[1.0]])
        >>> guide(c, u, w=0.0).item(), guide(c, u, w=1.0).item(), guide(c, u, scale=2.0).item()
        (2.0, 3.0, 3.0)
    """
    extra = _extra_weight(w, scale)
    dtype = _working(cond, uncond)
    cond, uncond = cond.to(dtype), uncond.to(dtype)
    if isinstance(extra, Tensor):
        extra = _expand(extra.to(dtype), cond)
    # written so that weight zero is the conditional prediction bit for bit
    return cond + extra * (cond - uncond)


def guided_x(
    cond: Tensor,
    uncond: Tensor,
    z: Tensor,
    logsnr: Tensor,
    kind: Kind,
    *,
    w: Tensor | float | None = None,
    scale: Tensor | float | None = None,
    clip_x: bool = False,
    channel_dim: int = 1,
) -> XEps:
    """The guided teacher as (x, eps): both raw outputs are read as x, and x is guided.

    ``x^w = (1 + w) x_c - w x_u``; eps is whatever makes ``alpha x^w + sigma eps = z``, which is also the guided eps.

    Args:
        cond, uncond: raw outputs ``[B, ...]`` with the condition and with the null condition.
        z: ``[B, ...]``. logsnr: ``[B]``. kind: of both outputs.
        w, scale: guidance, see :func:`guide`; number or ``[B]``.
        clip_x: clamp the guided x to [-1, 1]. It changes the teacher: leave it off for training targets.

    Source: Meng et al. 2023, section 3.1.

    Example:
        >>> z, lam = torch.randn(2, 3), torch.zeros(2)
        >>> c, u = torch.randn(2, 3), torch.randn(2, 3)
        >>> torch.allclose(guided_x(c, u, z, lam, "eps", w=1.0).eps, 2 * c - u, atol=1e-5)
        True
    """
    wide = _wide(z.device)
    c = to_x_eps(cond.to(wide), z.to(wide), logsnr, kind, channel_dim=channel_dim)
    n = to_x_eps(uncond.to(wide), z.to(wide), logsnr, kind, channel_dim=channel_dim)
    dtype = _working(cond, uncond, z)
    x = guide(c.x, n.x, w=w, scale=scale)
    if clip_x:
        return XEps(*(p.to(dtype) for p in to_x_eps(x, z.to(wide), logsnr, "x", clip_x=True)))
    return XEps(x.to(dtype), guide(c.eps, n.eps, w=w, scale=scale).to(dtype))


def check_guidance(w: Tensor | float, low: float, high: float) -> None:
    """Answer a guidance weight at the door: negative is an error, outside the trained range a warning.

    Raises:
        ConfigError: if any ``w`` is negative.

    Example:
        >>> check_guidance(1.5, 0.0, 4.0)
    """
    values = torch.as_tensor(w, dtype=torch.float32).reshape(-1)
    lowest, highest = float(values.min()), float(values.max())
    if lowest < 0.0:
        raise ConfigError(
            "w",
            "the guidance weight is negative",
            given=lowest,
            expected="w >= 0, where 0 is the plain conditional model",
            remedy="if you meant the scale s, w = s - 1",
        )
    if lowest < low or highest > high:
        warnings.warn(
            f"w: guidance {lowest:g} to {highest:g} is outside [{low:g}, {high:g}], for which the student was trained",
            UserWarning,
            stacklevel=2,
        )


def guidance_embedding(w: Tensor, dim: int, *, multiplier: float = 1000.0, longest: float = 10000.0) -> Tensor:
    """Fourier features of a guidance weight: sines, then cosines, of geometrically spaced frequencies.

    The default follows diffusers' ``get_guidance_scale_embedding``, which is given ``s - 1 = w``.

    Args:
        w: ``[B]``.
        dim: width of the result, at least 4; an odd one ends in a zero.
        multiplier: ``w`` is multiplied by it first.
        longest: ratio of the highest to the lowest frequency.

    Returns:
        ``[B, dim]`` in the dtype of ``w`` (at least float32).

    Example:
        >>> guidance_embedding(torch.zeros(2), 4).tolist()[0]
        [0.0, 0.0, 1.0, 1.0]
    """
    if dim < 4:
        raise ConfigError("dim", "the embedding needs at least two frequencies", given=dim, expected=">= 4")
    if w.ndim != 1:
        raise ShapeError("w", "one guidance weight per sample", given=tuple(w.shape), expected="[B]")
    half = dim // 2
    wide = _wide(w.device)
    steps = torch.arange(half, dtype=wide, device=w.device)
    frequency = torch.exp(steps * (-math.log(longest) / (half - 1)))
    angle = w.to(wide)[:, None] * multiplier * frequency[None, :]
    features = torch.cat([angle.sin(), angle.cos()], dim=1)
    if dim % 2:
        features = F.pad(features, (0, 1))
    return features.to(_working(w))


# -------------------------------------------------------------------------------------------------------------- losses


def loss_weight(logsnr: Tensor, weight: Weight) -> Tensor:
    """omega(lambda) ``[B]`` by which an x-error must be multiplied to become the named loss.

    ``constant`` 1; ``snr`` exp(lambda); ``snr_trunc`` max(exp(lambda), 1); ``v_mse`` 1 + exp(lambda).

    Source: Salimans and Ho 2022, section 4; Meng et al. 2023, section 3.1.

    Example:
        >>> loss_weight(torch.tensor([-3.0, 0.0]), "snr_trunc").tolist()
        [1.0, 1.0]
    """
    _known("weight", weight, WEIGHTS, "loss weight")
    snr = torch.exp(_as_wide(logsnr))
    omega = {
        "constant": torch.ones_like(snr),
        "snr": snr,
        "snr_trunc": snr.clamp_min(1.0),
        "v_mse": 1.0 + snr,
    }[weight]
    return omega.to(_working(logsnr))


def prediction_errors(predicted: XEps, target: XEps, logsnr: Tensor) -> Errors:
    """Mean squared error per sample of x, of eps and of v. Each ``[B]``; nothing is weighted or averaged over B.

    Example:
        >>> a = XEps(torch.zeros(2, 3), torch.zeros(2, 3)); b = XEps(torch.ones(2, 3), torch.zeros(2, 3))
        >>> prediction_errors(a, b, torch.zeros(2)).x.tolist()
        [1.0, 1.0]
    """
    dx, deps = predicted.x - target.x, predicted.eps - target.eps
    alpha, sigma = (_expand(c, dx).to(dx.dtype) for c in alpha_sigma(logsnr))
    dv = alpha * deps - sigma * dx
    return Errors(*(d.square().flatten(1).mean(1) for d in (dx, deps, dv)))


def select_error(errors: Errors, weight: Weight) -> Tensor:
    """The loss per sample ``[B]`` by name: which of the three errors counts.

    ``constant`` the error of x; ``snr`` of eps; ``snr_trunc`` the larger of the two *per sample* (equal to weighting
    the x-error with max(SNR, 1), because the eps-error is SNR times the x-error); ``v_mse`` of v.

    Example:
        >>> select_error(Errors(torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([4.0])), "snr_trunc").item()
        3.0
    """
    _known("weight", weight, WEIGHTS, "loss weight")
    if weight == "constant":
        return errors.x
    if weight == "snr":
        return errors.eps
    if weight == "snr_trunc":
        return torch.maximum(errors.x, errors.eps)
    return errors.v


# ------------------------------------------------------------------------------------------------------ two-step target


def halving_rounds(start: int, end: int = 1) -> list[int]:
    """The student's step counts, round by round: ``start`` is what the first teacher takes, ``end`` the last student.

    Raises:
        ConfigError: if ``start`` is not ``end`` times a power of two (at least one halving).

    Example:
        >>> halving_rounds(16, 2)
        [8, 4, 2]
    """
    rounds, steps = [], int(start)
    while steps > end and steps % 2 == 0:
        steps //= 2
        rounds.append(steps)
    if end < 1 or not rounds or steps != end:
        raise ConfigError(
            "steps",
            f"{start} steps cannot be halved down to {end}",
            expected=f"{max(end, 1)} times a power of two",
            remedy=f"try {max(end, 1) * 2 ** max(1, round(math.log2(max(start, 2) / max(end, 1))))}",
        )
    return rounds


def halving_times(i: Tensor, steps: int, *, reverse: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Times ``(u, u_mid, u_s)``, each ``[B]``, of the two-step target for step index ``i`` of a student with N steps.

    ``u = (i + 1)/N``, ``u_mid = u - 1/(2N)``, ``u_s = u - 1/N``; with ``reverse`` (the encoder) the same two jumps from
    ``i/N`` towards more noise.

    Example:
        >>> [t.item() for t in halving_times(torch.tensor([1]), 2)]
        [1.0, 0.75, 0.5]
    """
    _steps(steps)
    i = i.to(_wide(i.device))
    if reverse:
        return i / steps, (i + 0.5) / steps, (i + 1) / steps
    return (i + 1) / steps, (i + 0.5) / steps, i / steps


def stochastic_times(i: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Times for a student of the stochastic sampler: jumps of double length, ``2/N`` from ``u = (i + 1)/N``.

    At the edge ``i = 0`` only ``1/N`` is left, so there the plain target is used. [reconstructed: Meng et al. 2023,
    section 3.3, say that the student is trained for double-length steps; the treatment of the edge is ours.]

    Example:
        >>> [t.tolist() for t in stochastic_times(torch.tensor([0, 3]), 4)]
        [[0.25, 1.0], [0.125, 0.75], [0.0, 0.5]]
    """
    _steps(steps)
    i = i.to(_wide(i.device))
    u, u_s = (i + 1) / steps, (i - 1).clamp_min(0.0) / steps
    return u, 0.5 * (u + u_s), u_s


def two_step_target(
    predict: Predict,
    z: Tensor,
    times: tuple[Tensor, Tensor, Tensor],
    schedule: Schedule,
    kind: Kind,
    *,
    clip_x: bool = False,
    channel_dim: int = 1,
) -> TwoStepTarget:
    """Two DDIM jumps of the teacher, turned into the prediction with which one jump of the student does the same.

    The target is *not* the teacher's own x at either time. Where the second jump ends at ``u = 0`` it is the teacher's
    second x, for the quotient has no digits left there. Runs without graph, in float64 between the network calls.

    Args:
        predict: the teacher, ``(z, logsnr) -> out``; condition and guidance are closed over.
        z: ``[B, ...]`` at time ``times[0]``.
        times: ``(u, u_mid, u_s)``, each ``[B]``, from :func:`halving_times` or :func:`stochastic_times`.
        schedule: the noise schedule.
        kind: what the teacher puts out.
        clip_x: clamp the teacher's x; off by default, as in the published code.

    Source: Salimans and Ho 2022, algorithm 2 and appendix G; Meng et al. 2023, section 3.2.

    Example:
        >>> exact = torch.full((2, 3), 0.5)  # a teacher that knows x
        >>> u = halving_times(torch.tensor([0, 1]), 2)
        >>> z = diffuse(exact, torch.randn(2, 3), CosineSchedule().logsnr(u[0]))
        >>> target = two_step_target(lambda z, lam: exact, z, u, CosineSchedule(), "x")
        >>> torch.allclose(target.x, exact, atol=1e-5)
        True
    """
    u, u_mid, u_s = times
    working, seen = _working(z), z.dtype
    with torch.no_grad():
        logsnr, logsnr_mid, logsnr_s = (schedule.logsnr(t) for t in (u, u_mid, u_s))
        z0 = z.to(_wide(z.device))
        first = _read(predict, z0, logsnr, kind, clip_x, channel_dim, seen)
        z_mid = ddim_jump(first.x, first.eps, logsnr_mid)
        second = _read(predict, z_mid, logsnr_mid, kind, clip_x, channel_dim, seen)
        z_s = ddim_jump(second.x, second.eps, logsnr_s)
        x, eps = invert_jump(z0, z_s, logsnr, logsnr_s)
        # the jump to the clean end: x_target is the second x itself, and eps follows from it
        clean = _expand(u_s <= 0.0, z0)
        alpha, sigma = (_expand(c, z0) for c in alpha_sigma(logsnr))
        x = torch.where(clean, second.x, x)
        eps = torch.where(clean, (z0 - alpha * second.x) / sigma, eps)
        v = alpha * eps - sigma * x
        x, eps, v, z_mid, z_s = (t.to(working) for t in (x, eps, v, z_mid, z_s))
    return TwoStepTarget(x, eps, v, z_mid, z_s, logsnr, logsnr_mid, logsnr_s)


def _read(
    predict: Predict,
    z: Tensor,
    logsnr: Tensor,
    kind: Kind,
    clip_x: bool,
    channel_dim: int,
    seen: torch.dtype,
) -> XEps:
    """One network call in the dtype it is used to, read in the width of ``z``."""
    out = predict(z.to(seen), logsnr.to(torch.promote_types(seen, torch.float32)))
    return to_x_eps(out, z, logsnr, kind, clip_x=clip_x, channel_dim=channel_dim)


def _steps(steps: int, name: str = "steps") -> None:
    if steps < 1:
        raise ConfigError(name, "a sampler takes at least one step", given=steps, expected=">= 1")


# ------------------------------------------------------------------------------------------------------------ samplers


def _levels(schedule: Schedule, place: int, steps: int, z: Tensor) -> Tensor:
    u = torch.full((z.shape[0],), place / steps, dtype=_wide(z.device), device=z.device)
    return schedule.logsnr(u)


def _places(steps: int, first: int | None) -> Iterator[int]:
    _steps(steps)
    top = steps if first is None else first
    if not 1 <= top <= steps:
        raise ConfigError("first", given=first, expected=f"between 1 and steps = {steps}")
    return iter(range(top, 0, -1))


def ddim_sample(
    predict: Predict,
    z: Tensor,
    steps: int,
    schedule: Schedule,
    kind: Kind,
    *,
    clip_x: bool = False,
    first: int | None = None,
    constrain: Callable[[Tensor, Tensor], Tensor] | None = None,
    channel_dim: int = 1,
) -> Tensor:
    """Deterministic sampling in N equal steps from ``u = 1``; the last call's x is the sample.

    Args:
        predict: the network, ``(z, logsnr) -> out``.
        z: ``[B, ...]`` noise (or, with ``first``, a sample diffused to ``u = first / steps``: image-to-image).
        steps: N, the number of network calls from ``u = 1``.
        schedule, kind: see :func:`two_step_target`.
        clip_x: clamp every predicted x to [-1, 1].
        first: start at ``u = first / steps`` instead of 1.
        constrain: called as ``constrain(z, logsnr)`` before each call; it may replace what is known of z (inpainting:
            ``torch.where(mask, diffuse(known, noise, logsnr), z)``).

    Returns:
        ``[B, ...]`` samples, with a graph if the network has one.

    Example:
        >>> x = torch.full((2, 3), 0.5)
        >>> torch.allclose(ddim_sample(lambda z, lam: x, torch.randn(2, 3), 4, CosineSchedule(), "x"), x)
        True
    """
    seen, working = z.dtype, _working(z)
    z = z.to(_wide(z.device))
    x = z
    for place in _places(steps, first):
        logsnr = _levels(schedule, place, steps, z)
        if constrain is not None:
            z = constrain(z, logsnr).to(z.dtype)
        x, eps = _read(predict, z, logsnr, kind, clip_x, channel_dim, seen)
        if place > 1:
            z = ddim_jump(x, eps, _levels(schedule, place - 1, steps, z))
    return x.to(working)


def encode(
    predict: Predict,
    x: Tensor,
    steps: int,
    schedule: Schedule,
    kind: Kind,
    *,
    channel_dim: int = 1,
) -> Tensor:
    """The deterministic sampler run backwards: from data to the noise it would have been sampled from.

    Starts at ``u = 0`` with ``z = alpha_0 x`` and jumps ``i/N -> (i + 1)/N`` with the prediction made at ``i/N``. A
    network that puts out x says nothing about eps at ``u = 0``; use v or eps there.

    Args:
        predict, schedule, kind: see :func:`ddim_sample`; the network should have been trained for this direction
            (:func:`halving_times` with ``reverse=True``) when the steps are few.
        x: ``[B, ...]`` data.

    Returns:
        ``[B, ...]`` at ``u = 1``. Style transfer decodes it with the other class or domain (Meng et al. 2023, 3.4).

    Example:
        >>> noise = torch.randn(2, 3)
        >>> back = encode(lambda z, lam: noise, torch.zeros(2, 3), 4, CosineSchedule(), "eps")
        >>> torch.allclose(back, noise, atol=1e-3)
        True
    """
    _steps(steps)
    seen, working = x.dtype, _working(x)
    x = x.to(_wide(x.device))
    z = _expand(alpha_sigma(_levels(schedule, 0, steps, x))[0], x) * x
    for place in range(steps):
        pair = _read(predict, z, _levels(schedule, place, steps, z), kind, False, channel_dim, seen)
        z = ddim_jump(pair.x, pair.eps, _levels(schedule, place + 1, steps, z))
    return z.to(working)


def stochastic_sample(
    predict: Predict,
    z: Tensor,
    steps: int,
    schedule: Schedule,
    kind: Kind,
    noise: Callable[[int, torch.Size], Tensor],
    *,
    clip_x: bool = False,
    channel_dim: int = 1,
) -> Tensor:
    """Sampling by a double step towards the data and a single step of noise back, N network calls in all.

    From ``t``: jump to ``t - 2/N``, add noise up to ``t - 1/N``, jump to ``t - 3/N``, add noise up to ``t - 2/N``, and
    so on. The network must have been trained for jumps of that length (:func:`stochastic_times`). Where less than a
    double step is left, the jump ends at ``u = 0`` and its x is the sample [reconstructed: the paper's equations stop
    at ``t > 1/N``].

    Args:
        predict, z, schedule, kind, clip_x: see :func:`ddim_sample`.
        steps: N, at least 2 to be stochastic at all.
        noise: ``noise(j, shape)`` gives the j-th draw of standard normal noise, j = 0, 1, ...

    Source: Meng et al. 2023, section 3.3, equations 13 to 16.

    Example:
        >>> x = torch.full((2, 3), 0.5)
        >>> draw = lambda j, shape: torch.randn(shape)
        >>> torch.allclose(stochastic_sample(lambda z, lam: x, torch.randn(2, 3), 4, CosineSchedule(), "x", draw), x)
        True
    """
    seen, working = z.dtype, _working(z)
    z = z.to(_wide(z.device))
    x = z
    for draw, place in enumerate(_places(steps, None)):
        logsnr = _levels(schedule, place, steps, z)
        x, eps = _read(predict, z, logsnr, kind, clip_x, channel_dim, seen)
        if place > 1:
            below = _levels(schedule, max(place - 2, 0), steps, z)
            back = _levels(schedule, place - 1, steps, z)
            z = renoise(ddim_jump(x, eps, below), noise(draw, z.shape), below, back)
    return x.to(working)


def ancestral_step(
    x: Tensor,
    z: Tensor,
    noise: Tensor,
    logsnr: Tensor,
    logsnr_s: Tensor,
    *,
    variance: float = 0.0,
) -> Tensor:
    """A draw from q(z_s | z, x), the reverse of the diffusion given a predicted x.

    Mean ``r (alpha_s/alpha) z + (1 - r) alpha_s x`` with ``r = exp(lambda - lambda_s)``; the variance lies between
    ``(1 - r) sigma_s^2`` and ``(1 - r) sigma^2``.

    Args:
        x: ``[B, ...]`` predicted clean sample. z: ``[B, ...]`` at ``logsnr``. noise: ``[B, ...]``.
        logsnr, logsnr_s: ``[B]``, present level and the less noisy one to arrive at.
        variance: 0 the smaller variance, 1 the larger, between them interpolated in log space.

    Source: Ho et al. 2020 (arXiv 2006.11239), section 3.2; Nichol and Dhariwal 2021 for the interpolation.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> ancestral_step(x, x, x, torch.tensor([-1.0]), torch.tensor([1.0])).tolist()
        [[0.0, 0.0]]
    """
    if not 0.0 <= variance <= 1.0:
        raise ConfigError("variance", given=variance, expected="between 0 (small) and 1 (large)")
    dtype, wide = _working(x, z, noise), _wide(z.device)
    lam, lam_s = _as_wide(logsnr), _as_wide(logsnr_s)
    if bool((lam_s < lam).any()):
        raise ConfigError(
            "logsnr_s", "the step goes towards less noise", expected="a log-SNR not below the present one"
        )
    r, rest = torch.exp(lam - lam_s), -torch.expm1(lam - lam_s)
    ratio = torch.exp(0.5 * (F.softplus(-lam) - F.softplus(-lam_s)))  # alpha_s / alpha
    alpha_s = alpha_sigma(lam_s)[0]
    log_sigma2 = (1.0 - variance) * F.logsigmoid(-lam_s) + variance * F.logsigmoid(-lam)
    spread = torch.sqrt(rest) * torch.exp(0.5 * log_sigma2)
    mean = _expand(r * ratio, z) * z.to(wide) + _expand(rest * alpha_s, z) * x.to(wide)
    return (mean + _expand(spread, z) * noise.to(wide)).to(dtype)


def ancestral_sample(
    predict: Predict,
    z: Tensor,
    steps: int,
    schedule: Schedule,
    kind: Kind,
    noise: Callable[[int, torch.Size], Tensor],
    *,
    variance: float = 0.0,
    clip_x: bool = False,
    channel_dim: int = 1,
) -> Tensor:
    """Ancestral sampling in N equal steps from ``u = 1``; the last call's x is the sample.

    Args: as :func:`stochastic_sample`; ``variance`` as :func:`ancestral_step`.

    Example:
        >>> x = torch.full((2, 3), 0.5)
        >>> draw = lambda j, shape: torch.randn(shape)
        >>> torch.allclose(ancestral_sample(lambda z, lam: x, torch.randn(2, 3), 4, CosineSchedule(), "x", draw), x)
        True
    """
    seen, working = z.dtype, _working(z)
    z = z.to(_wide(z.device))
    x = z
    for draw, place in enumerate(_places(steps, None)):
        logsnr = _levels(schedule, place, steps, z)
        x, _ = _read(predict, z, logsnr, kind, clip_x, channel_dim, seen)
        if place > 1:
            lower = _levels(schedule, place - 1, steps, z)
            z = ancestral_step(x, z, noise(draw, z.shape), logsnr, lower, variance=variance)
    return x.to(working)
