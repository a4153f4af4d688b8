"""The page of the leaderboard says what its files say, and what has not been run."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from docs import what_helps


def row(values: list[float], **more: Any) -> list[dict[str, Any]]:
    metrics = [{"student": {"accuracy": v}, "teacher": {"accuracy": 0.9}} for v in values]
    return [{"seed": i, "metrics": m, "cost": {"cpu_seconds": 2.0}, **more} for i, m in enumerate(metrics)]


def record(name: str = "leaderboard/a", **runs: list[float]) -> dict[str, Any]:
    tuned = {"kd": {"settings": {"train.lr": 0.02, "method.temperature": 4}}}
    return {
        "name": name,
        "say": "What is said.",
        "primary": "accuracy",
        "higher_is_better": True,
        "tuned": tuned,
        "runs": {label: row(values) for label, values in runs.items()},
    }


ASKED = {"leaderboard/a": ["alone", "kd", "dkd", "at"], "leaderboard/b": ["alone", "kd"]}


def page(*records: dict[str, Any]) -> str:
    return "\n\n".join(what_helps.parts(ASKED, {r["name"]: r for r in records}))


def test_differences_are_paired_and_called_by_what_is_shown() -> None:
    alone = [0.70, 0.72, 0.74, 0.71, 0.73]
    text = page(
        record(
            alone=alone,
            kd=[v + d for v, d in zip(alone, [0.050, 0.051, 0.049, 0.050, 0.050], strict=True)],
            dkd=[v + d for v, d in zip(alone, [0.02, -0.03, 0.01, -0.02, 0.03], strict=True)],
            at=[v - d for v, d in zip(alone, [0.040, 0.041, 0.039, 0.040, 0.040], strict=True)],
        )
    )
    lines = text.splitlines()
    assert "**4 of 6 rows have been run** (a: 4 of 4, b: 0 of 2)." in text
    assert "| `kd` | logits | +5.0 [+4.9, +5.1] **helps** |" in lines
    assert "| `at` | features | -4.0 [-4.1, -3.9] **hurts** |" in lines
    assert any(line.startswith("| `dkd` | logits | +0.2 [") and "**" not in line for line in lines)
    assert "- **a**, of 3 rows: better are `kd`; worse are `at`; no difference is shown for `dkd`." in lines
    # beside plain KD the student alone is not compared once more
    beside = text.split("### Beside plain KD")[1].split("### a")[0]
    assert "`alone`" not in beside and "| `at` | features | -9.0 [" in beside
    assert "The teacher has 90.0 %" in text
    assert "| `kd` | 77.0 [75.1, 78.9] | 5 | `train.lr=0.02`, `method.temperature=4` | 2 |" in lines
    assert text.rstrip().endswith("- **b**: `alone`, `kd`")


def test_what_was_not_run_is_said() -> None:
    text = page()
    assert "**0 of 6 rows have been run**" in text and "Nothing can be said yet" in text
    text = page(record(alone=[0.5], kd=[0.6]), record("leaderboard/b", alone=[0.5]))
    assert "| `kd` | logits | +10.0 (one seed) |" in text, "a single seed has no interval and no verdict"
    assert "- **b**: not run yet." in text and "- **a**: `dkd`, `at`" in text
    text = page(record(alone=[0.5, 0.6], kd=[0.6, 0.7]), record("leaderboard/b", alone=[0.5, 0.6], kd=[0.4, 0.5]))
    assert "| `kd` | logits | +10.0 [+10.0, +10.0] **helps** | -10.0 [-10.0, -10.0] **hurts** |" in text


def test_every_planned_row_has_a_signal_and_a_space() -> None:
    kinds = [label for names in what_helps.MATCHED.values() for label in names]
    assert len(kinds) == len(set(kinds))
    text = (what_helps.evidence.EVIDENCE / "list" / "leaderboard.yaml").read_text(encoding="utf-8")
    listed = yaml.safe_load(text)["comparisons"]
    assert list(listed) == list(what_helps.planned())
    for entry in listed.values():
        labels, search = set(entry["rows"]), entry["search"]
        assert {"alone", "kd"} <= labels <= set(kinds) and labels <= set(search["space"])
        assert (search["trials"], search["share"]) == (8, 0.25), "alike for every method"


def test_the_page_is_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(what_helps, "measured", dict)
    assert what_helps.leaderboard().startswith("**0 of ")
