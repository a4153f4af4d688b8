"""The page that helps to choose a method names every one, and says what is not known."""

from __future__ import annotations

from typing import Any

import pytest

from docs import which
from limbeck.grammar.card import catalogue


def record(rows: dict[str, list[str]], values: dict[str, list[tuple[float, float]]], **more: Any) -> dict[str, Any]:
    runs = {
        label: [
            {"seed": i, "metrics": {"student": {"accuracy": student}, "alone": {"accuracy": alone}}}
            for i, (student, alone) in enumerate(pairs)
        ]
        for label, pairs in values.items()
    }
    given = {"name": "x/y", "primary": "accuracy", "higher_is_better": True, "called": {}, "rows": rows, "runs": runs}
    return {**given, **more}


def test_every_method_is_there_and_its_needs_are_counted_or_said_to_be_unknown() -> None:
    text = which.families()
    for card in catalogue():
        for name in card.methods:
            assert f"\n| `{name}` | " in text and f"| [`{name}`](methods.md#{card.slug}) | " in text
    assert text.count("\n## ") + 1 == len({card.family for card in catalogue()})


def test_needs_are_those_of_the_papers() -> None:
    # known by reading the methods: plain KD calls each network once; deep mutual learning trains both; SSLD reads no label
    assert (which.labels("kd"), which.teachers("kd"), which.passes("kd")) == ("yes", "teacher", "student 1, teacher 1")
    assert which.labels("ssld") == "no" and which.labels("token-kd") == "text alone" and which.labels("vild") == "yes"
    assert which.trained("bd-kd") == "student, teacher" and which.trained("kd") == "student"
    assert which.teachers("uskd") == "none" and which.before("tesla") == "experts"
    assert which.labels("guided-self-distillation") == "in step1, step2"


def test_a_method_that_nobody_counted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(which, "measured", dict)
    assert "| `kd` | not counted yet |" in which.families()


@pytest.mark.parametrize(
    ("pairs", "verdict", "says"),
    [
        ([(0.9, 0.8), (0.91, 0.8), (0.89, 0.8)], "better", "+10.0 points [+7.5, +12.5], 3 seeds"),
        ([(0.8, 0.9), (0.8, 0.91), (0.8, 0.89)], "worse", "-10.0 points [-12.5, -7.5], 3 seeds"),
        ([(0.8, 0.9), (0.9, 0.8)], "open", "2 seeds"),
        ([(0.9, 0.8)], "open", "+10.0 points, one seed"),
    ],
)
def test_a_gain_is_paired_by_seed(pairs: list[tuple[float, float]], verdict: str, says: str) -> None:
    ((at, said, found),) = which.gains("kd", [record({"kd": ["kd"]}, {"kd": pairs})])
    assert (at, found) == ("x/y", verdict) and says in said


def test_where_less_is_better_a_smaller_value_is_a_gain() -> None:
    given = record({"kd": ["kd"]}, {"kd": [(0.1, 0.3), (0.11, 0.3)]}, higher_is_better=False)
    ((_, _, verdict),) = which.gains("kd", [given])
    assert verdict == "better"


def test_the_row_nearest_to_the_recipe_is_taken_and_a_row_of_another_method_is_not() -> None:
    rows = {"kd": ["nkd", "method=kd"], "hot": ["kd", "method.temperature=9"], "plain": ["kd"]}
    values = {"kd": [(0.5, 0.5)], "hot": [(0.6, 0.5)], "plain": [(0.9, 0.5)]}
    given = record(rows, values)
    assert [said for _, said, _ in which.gains("kd", [given])] == ["+40.0 points, one seed"]
    assert not list(which.gains("nkd", [given]))
