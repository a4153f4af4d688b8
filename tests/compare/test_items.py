"""Single test items: recorded by runs, kept in one small file, and what they say of a difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.compare.checks import measure, read_checks
from limbeck.compare.items import difference, keep_items, kept_items, split
from limbeck.errors import CheckpointCorrupt
from limbeck.grammar.scores import Scores
from limbeck.run.per_item import load_items, save_items


def records(seeds: int = 4, items: int = 50, gain: float = 0.3) -> dict[str, dict[str, dict[str, Any]]]:
    """A row whose student is right on more items than the student alone."""
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        alone = rng.random(items) < 0.5
        found[str(seed)] = {
            "student/accuracy": alone | (rng.random(items) < gain),
            "alone/accuracy": alone,
            "student/nll": rng.random(items),
            "alone/nll": rng.random(items) + 1,
        }
    return {"kd": found}


def test_parts_of_rows_are_told_apart() -> None:
    assert split("kd") == ("kd", "student") and split("kd:kmeans") == ("kd", "kmeans")
    assert split("alone", "kd") == ("kd", "alone") and split("random", "kd:student") == ("kd", "alone")
    assert split("nkd", "kd", ["kd", "nkd"]) == ("nkd", "student")


def test_a_difference_is_the_mean_over_seeds_and_items_and_needs_the_same_items() -> None:
    items = records()
    e = difference(items, "kd", "alone", "accuracy")
    pairs = [(r["student/accuracy"], r["alone/accuracy"]) for r in items["kd"].values()]
    assert e is not None and e.kind == "seeds and items"
    assert e.mean == pytest.approx(np.mean([a.mean() - b.mean() for a, b in pairs]))
    assert e.low < e.mean < e.high
    assert difference(items, "kd", "alone", "ece") is None
    assert difference(items, "kd", "teacher", "accuracy") is None
    items["kd"]["3"]["alone/accuracy"] = np.ones(7, dtype=bool)
    assert difference(items, "kd", "alone", "accuracy") is None


def test_two_rows_are_paired_by_seed_and_weights_count() -> None:
    weights = np.array([1.0, 3.0])
    one = {s: {"student/cross_entropy": np.array([2.0, 9.0]), "weights": weights} for s in ("0", "1")}
    two = {s: {"student/cross_entropy": np.array([1.0, 3.0]), "weights": weights} for s in ("1", "2", "0")}
    e = difference({"a": one, "b": two}, "a", "b", "cross_entropy")
    assert e is not None and e.n == 2 and e.mean == pytest.approx((3.0 - 1.0 + 9.0 - 3.0 - 1.0) / 4)


def test_what_is_kept_comes_back_and_is_small(tmp_path: Path) -> None:
    items, path = records(seeds=10, items=700), tmp_path / "x.items.safetensors"
    keep_items(path, items, [("kd", "student", "accuracy"), ("kd", "alone", "accuracy"), ("kd", "student", "nll")])
    back = kept_items(path)
    assert list(back["kd"]) == [str(s) for s in range(10)]
    for seed, run in items["kd"].items():
        assert (back["kd"][seed]["student/accuracy"] == run["student/accuracy"]).all()
        assert back["kd"][seed]["student/nll"] == pytest.approx(run["student/nll"], rel=1e-3, abs=1e-6)
        assert "alone/nll" not in back["kd"][seed]
    assert path.stat().st_size < 10 * (88 + 88 + 1400) + 1000
    assert difference(back, "kd", "alone", "accuracy") == difference(items, "kd", "alone", "accuracy")
    keep_items(path, items, [("kd", "student", "rmse")])
    assert not path.exists() and kept_items(path) == {}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.items.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointCorrupt, match=r"x\.items"):
        kept_items(path)
    save_items(tmp_path, {"student": Scores({}, {"accuracy": torch.ones(3, dtype=torch.bool)})})
    (tmp_path / "per_item.safetensors").rename(path)
    with pytest.raises(CheckpointCorrupt, match="no items as they are kept"):
        kept_items(path)


def test_a_run_keeps_the_items_of_everybody_who_has_any(tmp_path: Path) -> None:
    scored = {
        "student": Scores({"accuracy": 0.5}, {"accuracy": torch.tensor([True, False])}, torch.tensor([2, 3])),
        "teacher": {"accuracy": 1.0},
        "kmeans": Scores({"accuracy": 0.25}, {"accuracy": torch.tensor([0.5, 0.0], dtype=torch.float64)}),
    }
    save_items(tmp_path, scored)
    found = load_items(tmp_path)
    assert sorted(found) == ["kmeans/accuracy", "student/accuracy", "weights"]
    assert found["student/accuracy"].tolist() == [True, False] and found["weights"].tolist() == [2, 3]
    save_items(tmp_path / "none", {"teacher": {"accuracy": 1.0}})
    assert load_items(tmp_path / "none") == {}


def test_a_check_takes_the_items_along() -> None:
    items = records()
    runs = {
        "kd": [
            {
                "seed": int(s),
                "metrics": {
                    "student": {"accuracy": float(r["student/accuracy"].mean())},
                    "alone": {"accuracy": float(r["alone/accuracy"].mean())},
                },
            }
            for s, r in items["kd"].items()
        ]
    }
    (check,) = read_checks({"at": "x", "row": "kd", "better": "alone", "in": "accuracy"}, "x")
    found, without = measure(check, runs, None, items), measure(check, runs)
    assert found["items"]["low"] < found["low"] < found["high"] < found["items"]["high"]
    assert "items" not in without and {k: v for k, v in found.items() if k != "items"} == without
