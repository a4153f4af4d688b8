"""Conclusions from differences, against scipy, against their definitions, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from limbeck.report.inference import detectable, equivalence, holm, one_sided, over_seeds_and_items, ratio
from limbeck.report.statistics import t_interval

numbers = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=3, max_size=12)


def test_holm_against_a_worked_example_and_its_definition() -> None:
    # Holm (1979) by hand: 4 x 0.005, 3 x 0.01, then 2 x 0.03 and 1 x 0.04, which may not fall below it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.6, 0.7]) == [1.0, 1.0]
    found = holm([0.01, math.nan, 0.02])  # what could not be tested is no test
    assert found[0] == 0.02 and math.isnan(found[1]) and found[2] == 0.02
    with pytest.raises(ValueError, match="lies in"):
        holm([1.5])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(ps: list[float]) -> None:
    found = holm(ps)
    assert [found[i] for i in np.argsort(ps, kind="stable")] == sorted(found)
    assert all(p - 1e-12 <= f <= min(1.0, len(ps) * p) + 1e-12 for p, f in zip(ps, found, strict=True))


@settings(max_examples=50, deadline=None)
@given(numbers, st.floats(0.1, 5))
def test_equivalence_is_two_one_sided_tests_and_the_90_percent_interval(values: list[float], margin: float) -> None:
    if np.std(values) < 1e-3:
        return
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    p = equivalence(values, margin)
    assert p == pytest.approx(max(above, below), abs=1e-9)
    e = t_interval(values, 0.9)
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (-margin < e.low and e.high < margin)
    assert one_sided(values) == pytest.approx(stats.ttest_1samp(values, 0, alternative="greater").pvalue, abs=1e-9)


def test_values_without_spread_and_single_values() -> None:
    assert one_sided([1.0, 1.0]) == 0.0 and one_sided([-1.0, -1.0]) == 1.0 and one_sided([0.0, 0.0]) == 0.5
    assert equivalence([0.5, 0.5], 1.0) == 0.0 and equivalence([2.0, 2.0], 1.0) == 1.0
    assert math.isnan(one_sided([1.0])) and math.isnan(detectable([1.0])) and detectable([2.0, 2.0]) == 0.0
    with pytest.raises(ValueError, match="margin"):
        equivalence([1.0, 2.0], 0.0)


@pytest.mark.parametrize(("n", "expected"), [(5, 1.682), (10, 0.996), (20, 0.660), (34, 0.495)])
def test_the_detectable_difference_is_found_in_four_cases_of_five(n: int, expected: float) -> None:
    values = list(np.linspace(-1, 1, n))
    spread = float(np.std(values, ddof=1))
    found = detectable(values)
    assert found / spread == pytest.approx(expected, abs=1e-3)  # Cohen's d of published tables of power
    # the power at that difference, by scipy's noncentral t
    critical = stats.t.ppf(0.975, n - 1)
    assert stats.nct.sf(critical, n - 1, found / spread * math.sqrt(n)) == pytest.approx(0.8, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(numbers, st.randoms(use_true_random=False))
def test_fiellers_interval_holds_the_ratios_that_the_paired_test_does_not_refuse(
    values: list[float], rng: object
) -> None:
    other = [20.0 + rng.uniform(-1, 1) for _ in values]  # type: ignore[attr-defined]
    e = ratio(values, other)
    assert e.mean == pytest.approx(sum(values) / sum(other))
    if np.std(values) < 1e-2:
        return
    for end in (e.low, e.high):
        p = stats.ttest_1samp([a - end * b for a, b in zip(values, other, strict=True)], 0).pvalue
        assert p == pytest.approx(0.05, abs=1e-6)


def test_a_ratio_over_something_that_may_be_zero_is_unbounded() -> None:
    assert ratio([1.0, 2.0, 3.0], [-1.0, 1.0, 0.5]).high == math.inf
    assert ratio([1.0], [4.0]).kind == "none"
    with pytest.raises(ValueError, match="zero"):
        ratio([1.0, 1.0], [1.0, -1.0])
    with pytest.raises(ValueError, match="as many"):
        ratio([1.0], [1.0, 2.0])


def test_items_widen_the_interval_and_weights_make_a_ratio_of_sums() -> None:
    rng = np.random.default_rng(3)
    seeds, items = rng.normal(0, 0.01, (6, 1)), rng.normal(0, 0.3, (1, 400))
    values = 0.1 + seeds + items + rng.normal(0, 0.1, (6, 400))
    e, only = over_seeds_and_items(values), t_interval(values.mean(1).tolist())
    assert e.mean == pytest.approx(values.mean()) and e.kind == "seeds and items" and e.n == 6
    # the analytic variance over items of what the seeds have in common, in place of the bootstrap's
    by_items = 1.96 * math.sqrt(values.mean(0).var(ddof=1) / 400)
    assert e.half == pytest.approx(math.hypot(only.half, by_items), rel=0.05)
    assert e.half > 1.5 * only.half
    assert over_seeds_and_items(values) == e, "the draws are always the same"
    weights = rng.integers(1, 9, 400)
    assert over_seeds_and_items(values * weights, weights).mean == pytest.approx(
        (values * weights).mean(0).sum() / weights.sum()
    )
    assert over_seeds_and_items(values[:1]).kind == "none"
    assert over_seeds_and_items(np.ones((3, 5))).half == 0.0
    for wrong in (np.ones(3), np.ones((0, 3))):
        with pytest.raises(ValueError, match="seeds, items"):
            over_seeds_and_items(wrong)
    with pytest.raises(ValueError, match="weights"):
        over_seeds_and_items(np.ones((2, 3)), np.ones(2))


def test_the_interval_over_seeds_and_items_covers_the_truth() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        values = rng.normal(0, 0.01, (8, 1)) + rng.normal(0, 0.2, (1, 200)) + rng.normal(0, 0.2, (8, 200))
        e = over_seeds_and_items(values, draws=200)
        hits += e.low < 0 < e.high
    assert hits >= 90  # 95 expected; over seeds alone it is about 75
