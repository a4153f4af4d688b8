"""What is checked of a comparison: every kind with the right figures, both ways, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from scipy import stats

from limbeck.compare.checks import Check, judge, measure, read_checks, values_of
from limbeck.errors import ConfigError


def runs(student: list[float], alone: list[float], teacher: list[float] | None = None, **more: list[float]) -> Any:
    """Results of one row, one a seed."""
    found = []
    for i, (s, a) in enumerate(zip(student, alone, strict=True)):
        metrics = {"student": {"accuracy": s, "nll": s}, "alone": {"accuracy": a, "nll": a}}
        if teacher:
            metrics["teacher"] = {"accuracy": teacher[i], "nll": teacher[i]}
        found.append({"seed": i, "metrics": metrics, "baselines": {k: {"accuracy": v[i]} for k, v in more.items()}})
    return found


GOOD, BAD = [0.90, 0.92, 0.91, 0.93], [0.80, 0.81, 0.83, 0.80]


def one(node: dict[str, Any], results: Any) -> dict[str, Any]:
    """The single check of an entry, measured and evaluated by itself."""
    (check,) = read_checks({"at": "x", "in": "accuracy", **node}, "list")
    return judge([measure(check, results)])[0]


def test_better_is_the_paired_t_test_and_has_both_sides() -> None:
    results = {"kd": runs(GOOD, BAD), "other": runs(BAD, BAD)}
    found = one({"row": "kd", "better": "alone"}, results)
    assert found["mean"] == pytest.approx(0.105) and found["n"] == 4 and found["row_mean"] == pytest.approx(0.915)
    assert found["p"] == pytest.approx(stats.ttest_rel(GOOD, BAD).pvalue)
    assert found["verdict"] == "confirmed" and found["holds"] is True
    assert one({"row": "other", "better": "kd"}, results)["verdict"] == "contradicted"
    assert one({"row": "other", "better": "alone"}, results)["verdict"] == "not shown"
    # of a loss the lower is the better one; a number that it must exceed moves the hypothesis
    assert one({"row": "kd", "better": "alone", "in": "nll"}, results)["verdict"] == "contradicted"
    assert one({"row": "kd", "better": "alone", "by": 0.08}, results)["verdict"] == "not shown"
    assert one({"row": "kd", "better": "alone", "by": 0.2}, results)["verdict"] == "contradicted"


def test_not_worse_and_equal_need_their_margin() -> None:
    near = [0.901, 0.919, 0.912, 0.929]
    results = {"kd": runs(GOOD, BAD), "near": runs(near, BAD)}
    assert one({"row": "near", "not_worse": "kd", "within": 0.01}, results)["verdict"] == "confirmed"
    assert one({"row": "near", "equal": "kd", "within": 0.01}, results)["verdict"] == "confirmed"
    # four seeds of this spread cannot show so small a margin, and a difference far outside of it speaks against it
    assert one({"row": "near", "equal": "kd", "within": 0.0005}, results)["verdict"] == "not shown"
    assert one({"row": "near", "not_worse": "kd", "within": 0.0005}, results)["verdict"] == "not shown"
    for kind in ("equal", "not_worse"):
        assert one({"row": "kd:alone", kind: "kd", "within": 0.01}, results)["verdict"] == "contradicted"
    better = one({"row": "kd", "equal": "alone", "within": 0.01}, results)
    assert better["verdict"] == "contradicted", "much better is not the same"
    assert one({"row": "kd", "not_worse": "alone", "within": 0.01}, results)["verdict"] == "confirmed"


def test_a_share_of_another_and_of_the_way_to_the_teacher() -> None:
    errors = {"d": runs([0.11, 0.10, 0.12], [0.30, 0.30, 0.30])}
    half = one({"row": "d", "at_most": "ddim", "share": 0.5, "in": "nll"}, errors)
    assert half["verdict"] == "confirmed" and half["mean"] == pytest.approx(0.11 / 0.30)
    assert half["low"] < half["mean"] < half["high"] < 0.5
    assert half["p"] == pytest.approx(stats.ttest_1samp([0.04, 0.05, 0.03], 0).pvalue)
    assert one({"row": "d", "at_most": "alone", "share": 0.2, "in": "nll"}, errors)["verdict"] == "contradicted"
    sets = {"m": runs([0.90, 0.91, 0.90], [0.70, 0.69, 0.71], [0.98, 0.98, 0.98], kmeans=[0.87, 0.86, 0.88])}
    closes = one({"row": "m", "closes": "random", "share": 0.5}, sets)
    assert closes["verdict"] == "confirmed" and closes["mean"] == pytest.approx(0.61 / 0.84)
    assert "50 % of the way from random images to all images" in closes["said"]
    assert one({"row": "m", "closes": "random", "share": 0.9}, sets)["verdict"] == "contradicted"
    assert one({"row": "m", "better": "kmeans"}, sets)["mean"] == pytest.approx(0.1 / 3)


def test_exact_values_are_compared_as_they_are() -> None:
    results = {"d": runs([2.0, 2.0], [4.0, 4.0])}
    found = one({"row": "d", "at_most": "ddim", "share": 0.5, "in": "nll", "exact": True}, results)
    assert found["verdict"] == "confirmed" and found["p"] is None and found["detectable"] is None
    found = one({"row": "d", "at_most": "ddim", "share": 0.4, "in": "nll", "exact": True}, results)
    assert found["verdict"] == "contradicted"


def test_holm_makes_confirming_harder_and_never_excuses_what_speaks_against() -> None:
    good, other = [0.03, 0.01, 0.025, 0.02], [0.0, 0.0, 0.0, 0.0]
    results = {"a": runs(good, other), "b": runs(other, good)}
    better = measure(Check("x", "a", "alone", "accuracy", "better"), results)
    worse = measure(Check("x", "b", "alone", "accuracy", "better"), results)
    assert better["p"] == pytest.approx(worse["p"]) and 0.005 < better["p"] < 0.05
    noise = [{**better, "check": {**better["check"], "at": f"n{i}"}, "p": 0.5} for i in range(20)]
    alone = judge([better, worse])
    many = judge([better, worse, *noise])
    assert [m["verdict"] for m in alone] == ["confirmed", "contradicted"]
    assert [m["verdict"] for m in many[:2]] == ["not shown", "contradicted"]
    assert many[0]["p_holm"] == pytest.approx(22 * better["p"])
    # the same check cited twice is one
    assert judge([better, better])[0]["p_holm"] == better["p"]


def test_one_seed_shows_nothing_and_no_seed_is_no_check() -> None:
    results = {"a": runs([0.9], [0.8]), "b": []}
    assert one({"row": "a", "better": "alone"}, results)["verdict"] == "n=1"
    found = one({"row": "b", "better": "alone"}, results)
    assert found["verdict"] == "not shown" and found["n"] == 0 and found["p"] is None


def test_pairs_are_of_the_same_seed() -> None:
    results = {"a": runs([0.9, 0.8, 0.7], [0.0] * 3), "b": runs([0.5, 0.5, 0.5], [0.0] * 3)[1:]}
    found = one({"row": "a", "better": "b"}, results)
    assert found["n"] == 2 and found["mean"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        ({"row": "kd"}, "no kind of check"),
        ({"row": "kd", "better": "alone", "equal": "alone", "within": 1}, "or several"),
        ({"row": "kd", "equal": "alone"}, "lacks within"),
        ({"better": "alone"}, "lacks row"),
        ({"row": "kd", "better": "alone", "margin": 1}, "does not take margin"),
        ({"row": "kd", "equal": "alone", "within": 0}, "a number above 0"),
        ({"row": "kd", "at_most": "alone", "share": -1}, "a number above 0"),
    ],
)
def test_a_wrong_entry_is_refused(node: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_checks({"at": "x", "in": "accuracy", **node}, "list")


def test_rows_parts_and_metrics_that_are_not_there_are_refused() -> None:
    results = {"kd": runs(GOOD, BAD)}
    for who, metric in (("nkd", "accuracy"), ("kd:herding", "accuracy"), ("kd", "acuracy")):
        with pytest.raises(ConfigError):
            values_of(results, who, metric)
    with pytest.raises(ConfigError, match="direction"):
        measure(Check("x", "kd", "alone", "entropy", "better"), results)
    checks = read_checks({"at": "x", "row": "kd", "better": "alone", "in": ["accuracy", "nll"]}, "list")
    assert [c.metric for c in checks] == ["accuracy", "nll"]
