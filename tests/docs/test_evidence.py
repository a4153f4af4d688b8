"""The pages of the evidence are made from its files, and say what those say."""

from __future__ import annotations

from typing import Any

import pytest

from docs import evidence


def run(seed: int, student: float, **more: Any) -> dict[str, Any]:
    metrics = {"student": {"accuracy": student}, "alone": {"accuracy": 0.5}, "teacher": {"accuracy": 0.75}}
    return {"seed": seed, "metrics": metrics, "wall_seconds": 60.0, **more}


def record(**more: Any) -> dict[str, Any]:
    return {
        "name": "x/y",
        "say": "What is said.",
        "before": "",
        "made_by": "a command",
        "rows": {"a": ["kd", "task.size=8", "train.steps=1"], "b": ["kd", "task.size=8"]},
        "primary": "accuracy",
        "higher_is_better": True,
        "called": {"student": "synthetic images", "alone": "random real images", "teacher": "all real images"},
        "runs": {"a": [run(0, 0.5), run(1, 0.75)], "b": [run(0, 0.25), run(1, 0.25)]},
        **more,
    }


def test_figures_come_from_the_json_and_everybody_is_called_what_he_is() -> None:
    text = evidence.comparison(record())
    assert "### x/y" in text and "What is said." in text and "Seen before" not in text
    assert "| `a` (synthetic images) | 62.5 [-96.3, 221.3] | 2 |" in text
    assert "| `b` (synthetic images) | 25.0 | 2 |" in text, "no interval where nothing varies"
    # both rows have the same baseline and teacher: they stand there once
    assert text.count("| random real images | 50.0 | 2 |") == 1 and text.count("| all real images | 75.0 | 2 |") == 1
    assert "a is `kd train.steps=1`, b is `kd`, all with `task.size=8`" in text
    assert "4 runs, 4 minutes in all" in text and "commit not recorded" in text


def test_a_baseline_of_another_row_is_kept_apart_and_twins_are_said_to_be_one() -> None:
    given = record()
    given["runs"]["b"] = [run(0, 0.25), run(1, 0.25)]
    for result in given["runs"]["b"]:
        result["metrics"]["teacher"] = {"accuracy": 0.625}
        result["baselines"] = {"kmeans": {"accuracy": 0.375}, "herding": {"accuracy": 0.375}}
    text = evidence.comparison(given)
    assert "all real images (a) | 75.0" in text and "all real images (b) | 62.5" in text
    assert text.count("37.5") == 1 and "by k-means, and by herding: the same ones" in text


def test_what_was_seen_before_and_where_it_was_run_are_told() -> None:
    hardware, versions = {"cpu": "A processor", "threads": 2}, {"torch": "9", "commit": "abc123"}
    runs = {"a": [run(0, 0.5, hardware=hardware, versions=versions)]}
    given = record(before="Less.", runs=runs, failed={"a": {"1": "no memory"}}, teachers=2, redeal=True, seeds=[0, 1])
    text = evidence.comparison(given)
    assert "Each seed has a teacher of its own. The data are dealt anew" in text
    assert "**Seen before.** Less." in text and "a failed for seeds 1." in text
    assert "on A processor, 2 threads, torch 9; commit abc123." in text


def test_a_sampler_stands_beside_ddim_with_its_calls() -> None:
    names = {"student": "student", "alone": "DDIM in as many steps", "teacher": "DDIM in 16 times as many steps"}
    result = run(0, 0.5)
    for who, calls in (("student", 4), ("alone", 8), ("teacher", 128)):
        result["metrics"][who] |= {"fid_w1_n4": 2.0 + calls, "calls_w1_n4": calls}
    text = evidence.comparison(record(called=names, runs={"a": [result]}))
    assert "| 1 | `a` | 1 | 6.000 |" in text
    assert "| 1 | DDIM in as many steps | 2 | 10.00 |" in text
    assert "| 1 | DDIM in 16 times as many steps | 32 | 130.0 |" in text


def check(kind: str = "better", **more: Any) -> dict[str, Any]:
    asked = {"at": "kd/digits", "row": "kd", "over": "alone", "metric": "accuracy", "kind": kind, "exact": False}
    figures = {"mean": 0.024, "low": 0.011, "high": 0.038, "n": 10, "p": 0.0028, "p_holm": 0.039, "detectable": 0.019}
    return {"check": asked, "said": "kd better", "verdict": "confirmed", **figures, **more}


def test_a_claims_table_has_a_line_for_each_check_and_each_clause_without_one() -> None:
    clauses = [
        {"says": "It gains.", "status": "confirmed", "why": "", "checks": [check(), check(verdict="not shown")]},
        {"says": "It is small.", "status": "not checked", "why": "memory is not measured", "checks": []},
    ]
    text = evidence.clauses_table(
        "kd", {"kd": {"clauses": clauses, "beside": [check(n=0, verdict="not shown"), check(n=0)]}}
    )
    lines = text.splitlines()
    assert lines[2] == (
        "| It gains. | kd better ([kd/digits](compare.md#kd-digits)) | +2.4 points [+1.1, +3.8], 10 seeds "
        "| 0.0028 (0.039) | 1.9 points | **confirmed** |"
    )
    assert lines[3].startswith("|  | kd better") and lines[3].endswith("**not shown** |")
    assert lines[4].startswith("| It is small. | Memory is not measured. |") and "**not checked**" in lines[4]
    assert lines[5] == "| *beside the claim* | 2 more checks: kd/digits |  |  |  | not run yet |"
    assert evidence.clauses_table("nkd", {}) == ""


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (check("at_most", mean=0.4, low=0.35, high=0.45), "0.400 times [0.350, 0.450], 10 seeds"),
        (check("closes", mean=0.6, low=0.55, high=0.65), "0.60 of the way [0.55, 0.65], 10 seeds"),
        (check(items={"low": 0.0, "high": 0.05}), "+2.4 points [+1.1, +3.8], 10 seeds; [+0.0, +5.0] with items"),
        (check(n=1), "+2.4 points, one seed"),
    ],
)
def test_what_was_measured_in_words(given: dict[str, Any], text: str) -> None:
    assert evidence.measured(given) == text


def test_every_figure_of_the_pages_is_linked_to_a_comparison_that_is_there() -> None:
    names = {r["name"] for r in evidence.records()}
    for claim in evidence.summary()["claims"].values():
        assert {n for n in claim["comparisons"] if not n.startswith("benchmarks/")} <= names
