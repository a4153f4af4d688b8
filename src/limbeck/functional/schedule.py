"""Schedules as pure functions of Python numbers: the same on every machine, resumable from the step alone.

A schedule maps (step, total) to a value; step counts optimiser steps from 0 and is held at its ends outside them.
TAID's t also looks at the loss: its whole state is a `TaidState`, moved by `taid_update`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ..errors import ConfigError


def _progress(step: float, total: float) -> float:
    if not total > 0:
        raise ConfigError("total", given=total, expected="the number of steps, at least 1")
    return min(max(step / total, 0.0), 1.0)


def constant(step: float, total: float, *, value: float = 1.0) -> float:
    """The same value at every step.

    Example:
        >>> constant(3, 10, value=0.5)
        0.5
    """
    return float(value)


def linear(step: float, total: float, *, start: float = 0.0, end: float = 1.0) -> float:
    """From ``start`` at step 0 to ``end`` at step ``total``, in a straight line.

    Example:
        >>> linear(5, 10, start=0.2, end=1.0)
        0.6
    """
    done = _progress(step, total)
    return start * (1.0 - done) + end * done


def cosine(step: float, total: float, *, start: float = 0.0, end: float = 1.0) -> float:
    """From ``start`` to ``end`` along half a cosine: slow, fast, slow.

    Example:
        >>> round(cosine(5, 10, start=0.0, end=1.0), 12)
        0.5
    """
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * _progress(step, total)))


def exponential(step: float, total: float, *, start: float = 1.0, end: float = 0.01) -> float:
    """From ``start`` to ``end`` by a constant factor a step; both positive.

    Example:
        >>> round(exponential(1, 2, start=1.0, end=0.01), 12)
        0.1
    """
    if not (start > 0 and end > 0):
        raise ConfigError("start", given=(start, end), expected="start and end > 0")
    return float(start * (end / start) ** _progress(step, total))


def warmup(step: float, length: float, *, end: float = 1.0) -> float:
    """From 0 to ``end`` over the first ``length`` steps, then constant; ``length`` 0 is no warm-up.

    Example:
        >>> [warmup(s, 4) for s in (0, 2, 9)]
        [0.0, 0.5, 1.0]
    """
    return float(end) if length <= 0 else end * _progress(step, length)


def ramp(step: float, length: float, *, start: float = 0.0, end: float = 1.0) -> float:
    """``length`` values in a straight line, from ``start`` at step 0 to ``end`` at step ``length - 1``, then constant.

    As a warm-up of DINO is counted; `warmup` reaches its end one step later. ``length`` 0 is no ramp.

    Example:
        >>> [round(ramp(s, 3, start=0.04, end=0.08), 12) for s in (0, 1, 2, 9)]
        [0.04, 0.06, 0.08, 0.08]
    """
    if length < 0:
        raise ConfigError("length", given=length, expected="a number of steps, 0 or more")
    if step >= length:
        return float(end)
    return float(start) if length <= 1 else linear(step, length - 1, start=start, end=end)


def warm_cosine(
    step: float, total: float, *, start: float = 1.0, end: float = 0.0, warm: float = 0, first: float = 0.0
) -> float:
    """A `ramp` from ``first`` to ``start`` over ``warm`` steps, then a `cosine` to ``end`` at step ``total``.

    Source: Caron et al. 2021 (DINO, arXiv 2104.14294): rate, weight decay and the share that an average keeps.

    Example:
        >>> [round(warm_cosine(s, 6, warm=2), 6) for s in (0, 1, 2, 4, 6)]
        [0.0, 1.0, 1.0, 0.5, 0.0]
    """
    if not 0 <= warm < total:
        raise ConfigError("warm", given=warm, expected=f"a number of steps in [0, {total:g}): fewer than there are")
    return (
        ramp(step, warm, start=first, end=start)
        if step < warm
        else cosine(step - warm, total - warm, start=start, end=end)
    )


def piecewise(value: float | Sequence[float], step: float, epoch: float = 0.0) -> float:
    """A number, or a list that is linear between points: ``[step, value, value, step, value, step, ...]``.

    ``[5000, 0.98, 0.5, 5001]`` is 0.98 up to step 5,000 and 0.5 from 5,001 on; three entries ``[value, value, step]`` begin
    at step 0. It is held outside. A piece whose last step is a float (``20.0``) counts epochs instead of steps.

    Source: threestudio's ``C``.

    Raises:
        ConfigError: a list of another length, or steps that do not rise.

    Example:
        >>> piecewise([0, 0.0, 1.0, 100, 0.2, 200], 150)
        0.6
        >>> piecewise(0.98, 7)
        0.98
    """
    if isinstance(value, (int, float)):
        return float(value)
    points = list(value)
    if len(points) == 3:
        points = [0, *points]
    if len(points) < 4 or len(points) % 2:
        raise ConfigError("value", given=points, expected="a number, or [step, value, value, step, ...]")
    ends = [points[0], *points[3::2]]
    if any(b <= a for a, b in pairwise(ends)):
        raise ConfigError("value", "its steps must rise", given=points)
    # where it begins, and then pairs of where it is to arrive and when
    start, first = points[0], points[1]
    for end, last in zip(points[3::2], points[2::2], strict=True):
        now = epoch if isinstance(end, float) else step
        if now < end or end == points[-1]:
            return float(first + (last - first) * min(max((now - start) / (end - start), 0.0), 1.0))
        start, first = end, last
    raise AssertionError


def warmup_cosine(step: float, total: float, *, warmup: float, peak: float, floor: float = 0.0) -> float:
    """From 0 in a straight line to ``peak`` at step ``warmup``, then along half a cosine to ``floor`` at ``total``.

    Example:
        >>> [warmup_cosine(s, 10, warmup=2, peak=1.0) for s in (0, 1, 2, 6, 10, 99)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    if not 0 <= warmup < total:
        raise ConfigError("warmup", given=warmup, expected=f"0 or more, and less than the {total:g} steps")
    if step < warmup:
        return linear(step, warmup, end=peak)
    return cosine(step - warmup, total - warmup, start=peak, end=floor)


class TaidState(NamedTuple):
    """TAID's adaptive state: three floats and the last increment, all JSON.

    Attributes:
        t: the interpolation to use for the next batch.
        momentum: m, the running relative improvement.
        previous: the last loss; None before the first.
        delta: the last adaptive increment; NaN before the second loss.
    """

    t: float
    momentum: float = 0.0
    previous: float | None = None
    delta: float = math.nan


def taid_check(*, t_start: float, t_end: float, alpha: float, beta: float, total: float) -> None:
    """Refuse settings under which t could not rise from ``t_start`` to ``t_end``.

    Raises:
        ConfigError: unless 0 <= t_start < 1, 0 < t_end <= 1, t_start <= t_end, alpha in [0, 1], beta in [0, 1) and
            total >= 1.
    """
    rules: list[tuple[str, Any, bool, str]] = [
        ("t_start", t_start, 0.0 <= t_start < 1.0, "a number in [0, 1)"),
        ("t_end", t_end, 0.0 < t_end <= 1.0, "a number in (0, 1]"),
        ("t_start", t_start, t_start <= t_end, f"at most t_end = {t_end:g}"),
        ("alpha", alpha, 0.0 <= alpha <= 1.0, "a number in [0, 1]"),
        ("beta", beta, 0.0 <= beta < 1.0, "a number in [0, 1)"),
        ("total", total, total >= 1, "the number of optimiser steps, at least 1"),
    ]
    for name, given, fine, expected in rules:
        if not fine:
            raise ConfigError(name, given=given, expected=expected)


def taid_update(
    state: TaidState,
    loss: float,
    step: int,
    total: int,
    *,
    t_start: float = 0.4,
    t_end: float = 1.0,
    alpha: float = 5e-4,
    beta: float = 0.99,
    adaptive: bool = True,
) -> TaidState:
    """TAID's t after one more optimiser step (Shing et al. 2025, arXiv 2501.16937, eqs. 6 to 8), in float64.

    The first loss is only remembered. From the second on, with the relative improvement
    ``d = (previous - loss) / (previous + 1e-15)``: ``m <- beta m + (1 - beta) d``,
    ``t <- min(t_end, max(t_linear, t + alpha sigmoid(m) (1 - t)))``, where
    ``t_linear = t_start + (t_end - t_start) step / total``. So t never falls and never lags the linear schedule.

    Args:
        state: before this step; start with ``TaidState(t=t_start)``.
        loss: the detached loss of this step, averaged over all valid tokens of all processes.
        step: index of this step, from 0.
        total: number of optimiser steps of the run.
        t_start, t_end: first and last interpolation.
        alpha: rate of the adaptive part.
        beta: decay of the momentum.
        adaptive: off, t is the linear schedule.

    Example:
        >>> state = TaidState(t=0.4)
        >>> for step, loss in enumerate((3.0, 2.7, 2.8, 2.4)):
        ...     state = taid_update(state, loss, step, 10**9)
        >>> round(state.t, 8), round(state.momentum, 6)
        (0.40045016, 0.002042)
    """
    taid_check(t_start=t_start, t_end=t_end, alpha=alpha, beta=beta, total=total)
    loss = float(loss)
    line = linear(step, total, start=t_start, end=t_end)
    if state.previous is None:
        return TaidState(state.t if adaptive else min(t_end, line), state.momentum, loss, state.delta)
    change = (state.previous - loss) / (state.previous + 1e-15)
    momentum = beta * state.momentum + (1.0 - beta) * change
    delta = alpha * _sigmoid(momentum) * (1.0 - state.t)
    t = min(t_end, max(line, state.t + delta)) if adaptive else min(t_end, line)
    return TaidState(t, momentum, loss, delta)


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    grown = math.exp(x)
    return grown / (1.0 + grown)


def taid_alpha(total: int, *, strength: float = 7.8) -> float:
    """The adaptive rate for a run of ``total`` steps that matters as much as in the published runs.

    With t_end = 1 the adaptive part outruns the linear floor only if ``alpha * total > 2``; the published runs have
    about 7.8 (5e-4 at 15.6 thousand steps), so short runs need ``7.8 / total``.

    Example:
        >>> taid_alpha(15600)
        0.0005
    """
    if total < 1:
        raise ConfigError("total", given=total, expected="the number of optimiser steps, at least 1")
    return min(1.0, strength / total)
