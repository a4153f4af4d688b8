"""Schedules: ends, monotony, and TAID's t against the recursion written out."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import ConfigError
from limbeck.functional import schedule as S


@pytest.mark.parametrize("shape", [S.linear, S.cosine, S.exponential])
def test_ends_and_monotony(shape: Callable[..., float]) -> None:
    for start, end in ((0.1, 0.9), (0.9, 0.1)):
        values = [shape(step, 10, start=start, end=end) for step in range(-2, 14)]
        assert values[0] == values[2] == pytest.approx(start, abs=1e-15)
        assert values[-1] == values[12] == pytest.approx(end, abs=1e-15)
        steps = [b - a for a, b in itertools.pairwise(values[2:13])]
        assert all(d * (end - start) > 0 for d in steps)


def test_shapes_by_hand() -> None:
    assert S.linear(3, 4, start=0.0, end=1.0) == 0.75
    assert S.cosine(1, 4) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert S.exponential(1, 4, start=1.0, end=16.0) == 2.0
    assert S.constant(7, 9, value=3) == 3.0
    assert [S.warmup(s, 4, end=2.0) for s in (0, 1, 4, 9)] == [0.0, 0.5, 2.0, 2.0]
    assert S.warmup(0, 0) == 1.0


def by_hand(losses: list[float], t: float, t_end: float, alpha: float, beta: float, total: int) -> list[float]:
    """Step 5 of the dossier, as a loop."""
    t_start, m, previous, out = t, 0.0, None, []
    for n, loss in enumerate(losses):
        if previous is not None:
            m = beta * m + (1 - beta) * (previous - loss) / (previous + 1e-15)
            line = t_start + (t_end - t_start) * n / total
            t = min(t_end, max(line, t + alpha * 0.5 * (1 + math.tanh(m / 2)) * (1 - t)))
        previous = loss
        out.append(t)
    return out


losses = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None, database=None)
@given(losses, st.floats(0.0, 0.9), st.floats(0.0, 1.0), st.floats(0.0, 0.999), st.integers(1, 50), st.booleans())
def test_taid(values: list[float], t_start: float, alpha: float, beta: float, total: int, adaptive: bool) -> None:
    t_end = 0.95
    setting: dict[str, Any] = {"t_start": t_start, "t_end": t_end, "alpha": alpha, "beta": beta, "adaptive": adaptive}
    state, seen = S.TaidState(t=t_start), []
    for step, loss in enumerate(values):
        state = S.taid_update(S.TaidState(*json.loads(json.dumps(state))), loss, step, total, **setting)
        seen.append(state.t)
        assert state.t >= S.linear(step, total, start=t_start, end=t_end) - 1e-15 or step == 0
        assert t_start <= state.t <= t_end
    assert all(b >= a for a, b in itertools.pairwise(seen))
    if adaptive:
        assert seen == pytest.approx(by_hand(values, t_start, t_end, alpha, beta, total), abs=1e-12)
    else:
        assert seen == pytest.approx([S.linear(n, total, start=t_start, end=t_end) for n in range(len(values))])


def test_taid_numbers_of_the_dossier() -> None:
    state, t, m = S.TaidState(t=0.4), [], []
    for step, loss in enumerate((3.0, 2.7, 2.8, 2.4)):
        state = S.taid_update(state, loss, step, 10**12)
        t.append(round(state.t, 8))
        m.append(round(state.momentum, 8))
    assert t == [0.4, 0.40015007, 0.40030008, 0.40045016]
    assert m == [0.0, 0.001, 0.00061963, pytest.approx(0.002042, abs=5e-7)]


def test_taid_does_not_overflow() -> None:
    state = S.TaidState(t=0.2, previous=1e-300)
    state = S.taid_update(state, 1e10, 1, 10, t_start=0.2)  # the relative improvement is about -1e25
    assert state.t == pytest.approx(0.28) and state.delta == 0.0 and math.isfinite(state.momentum)


def test_taid_rate_for_short_runs() -> None:
    assert S.taid_alpha(15600) == pytest.approx(5e-4)
    assert S.taid_alpha(100) == pytest.approx(0.078)
    assert S.taid_alpha(2) == 1.0
    # with the published rate a short run is the linear schedule to the last digit; with this one it runs ahead
    for alpha, ahead in ((5e-4, False), (S.taid_alpha(100), True)):
        state = S.TaidState(t=0.4)
        for step in range(50):
            state = S.taid_update(state, 3.0 - 0.01 * step, step, 100, alpha=alpha)
        assert (state.t > S.linear(49, 100, start=0.4, end=1.0) + 1e-3) is ahead


def test_errors() -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("t_start", {"t_start": 1.0}),
        ("t_end", {"t_end": 0.0}),
        ("at most t_end", {"t_start": 0.5, "t_end": 0.4}),
        ("alpha", {"alpha": 1.5}),
        ("beta", {"beta": 1.0}),
        ("alpha", {"alpha": math.nan}),
    ]
    for text, setting in bad:
        with pytest.raises(ConfigError, match=text):
            S.taid_update(S.TaidState(t=0.4), 1.0, 0, 10, **setting)
    for call in (
        lambda: S.taid_update(S.TaidState(t=0.4), 1.0, 0, 0),
        lambda: S.linear(0, 0),
        lambda: S.exponential(0, 1, start=0.0),
        lambda: S.taid_alpha(0),
    ):
        with pytest.raises(ConfigError):
            call()
