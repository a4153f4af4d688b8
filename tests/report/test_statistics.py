"""Statistics against scipy."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from limbeck.report.statistics import (
    Estimate,
    binomial_interval,
    deviation,
    estimate,
    mean,
    p_value,
    paired,
    t_interval,
)

numbers = st.lists(st.floats(-100, 100).map(lambda x: round(x, 4)), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(numbers, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_t_interval(values: list[float], level: float) -> None:
    found = t_interval(values, level)
    spread = statistics.stdev(values)
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert deviation(values) == pytest.approx(spread, abs=1e-9)
    if spread > 1e-3:
        low, high = stats.t.interval(level, len(values) - 1, loc=found.mean, scale=stats.sem(values))
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-7)
    assert found.kind == "seeds" and found.n == len(values)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95]))
def test_binomial_interval(counted: tuple[int, int], level: float) -> None:
    hits, n = counted
    found = binomial_interval(hits / n, n, level)
    known = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9)
    assert found.low <= found.mean <= found.high and found.kind == "items" and found.n == 1


@settings(max_examples=40, deadline=None)
@given(numbers)
def test_paired_difference_and_its_p_value(values: list[float]) -> None:
    one = dict(enumerate(values))
    other = {seed: value - 0.5 + 0.1 * (seed % 3) for seed, value in enumerate(values)}
    other[99] = 1e9  # a seed that only one has does not count
    found = paired(one, other)
    assert found is not None and found.n == len(values)
    differences = [one[s] - other[s] for s in one]
    assert found.mean == pytest.approx(mean(differences), abs=1e-9)
    if deviation(differences) > 1e-3:
        known = stats.ttest_rel([one[s] for s in one], [other[s] for s in one])
        assert p_value(differences) == pytest.approx(float(known.pvalue), rel=1e-5, abs=1e-12)
        assert (found.sign != 0) == (p_value(differences) < 0.05)


def test_single_values_have_no_interval_over_seeds() -> None:
    assert t_interval([0.5]) == Estimate(0.5, 0.5, 0.5, 1, "none")
    assert t_interval([0.5]).sign == 0
    assert estimate([0.5], items=100, proportion=True).kind == "items"
    assert estimate([2.5], items=100, proportion=True).kind == "none"
    assert estimate([0.5], items=100).kind == "none"
    assert estimate([0.5, 0.6], items=100, proportion=True).kind == "seeds"
    assert math.isnan(p_value([0.1]))
    assert (p_value([0.0, 0.0]), p_value([1.0, 1.0])) == (1.0, 0.0)


def test_values_that_are_not_finite_have_no_interval() -> None:
    found = t_interval([1.0, math.nan])
    assert math.isnan(found.mean) and found.kind == "none"


def test_what_cannot_be_answered_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean([])
    with pytest.raises(ValueError, match="level"):
        t_interval([1.0, 2.0], 95)
    with pytest.raises(ValueError, match="proportion"):
        binomial_interval(94.0, 100)
    with pytest.raises(ValueError, match="items"):
        binomial_interval(0.5, 0)
    assert paired({0: 1.0}, {1: 2.0}) is None


def test_sign_is_the_side_of_zero() -> None:
    assert t_interval([1.0, 1.1, 0.9]).sign == 1
    assert t_interval([-1.0, -1.1, -0.9]).sign == -1
    assert t_interval([-1.0, 1.0]).sign == 0
    assert t_interval([1.0, 1.1]).half == pytest.approx(t_interval([1.0, 1.1]).high - 1.05)
