"""Progressive distillation: at which times a student jumps, and what it must predict to do in one jump what took two."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import ConfigError
from ..precision import widest
from ._precision import expand, result_dtype
from .predictions import Kind, Predict, ddim_jump, invert_jump, read
from .schedules import Schedule, alpha_sigma


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
    check_steps(steps)
    i = i.to(widest(i.device))
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
    check_steps(steps)
    i = i.to(widest(i.device))
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
    working, seen = result_dtype(z), z.dtype
    with torch.no_grad():
        logsnr, logsnr_mid, logsnr_s = (schedule.logsnr(t) for t in (u, u_mid, u_s))
        z0 = z.to(widest(z.device))
        first = read(predict, z0, logsnr, kind, clip_x, channel_dim, seen)
        z_mid = ddim_jump(first.x, first.eps, logsnr_mid)
        second = read(predict, z_mid, logsnr_mid, kind, clip_x, channel_dim, seen)
        z_s = ddim_jump(second.x, second.eps, logsnr_s)
        x, eps = invert_jump(z0, z_s, logsnr, logsnr_s)
        # the jump to the clean end: x_target is the second x itself, and eps follows from it
        clean = expand(u_s <= 0.0, z0)
        alpha, sigma = (expand(c, z0) for c in alpha_sigma(logsnr))
        x = torch.where(clean, second.x, x)
        eps = torch.where(clean, (z0 - alpha * second.x) / sigma, eps)
        v = alpha * eps - sigma * x
        x, eps, v, z_mid, z_s = (t.to(working) for t in (x, eps, v, z_mid, z_s))
    return TwoStepTarget(x, eps, v, z_mid, z_s, logsnr, logsnr_mid, logsnr_s)


def check_steps(steps: int) -> None:
    """Refuse a sampler of no steps."""
    if steps < 1:
        raise ConfigError("steps", "a sampler takes at least one step", given=steps, expected=">= 1")
