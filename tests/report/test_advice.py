"""Each sentence of advice appears where its threshold is passed, and not where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.report.advice import MOST, advice
from limbeck.report.figures import against_truth, by_label, confusion
from limbeck.report.summary import summarise
from limbeck.tasks.classification import by_label as scores_by_label


def result(teacher: float = 0.9, alone: float = 0.8, student: float = 0.85, **more: Any) -> dict[str, Any]:
    """A run's result that calls for no advice."""
    metrics = {"teacher": {"accuracy": teacher}, "alone": {"accuracy": alone}, "student": {"accuracy": student}}
    return {"recipe": "kd", "primary": "accuracy", "higher_is_better": True, "metrics": metrics, **more}


def log(values: list[float]) -> list[dict[str, Any]]:
    return [{"stage": "distil", "step": i, "kl": v, "lr": 0.1} for i, v in enumerate(values)]


FALLING = [2.0 - 0.02 * i for i in range(40)]
LEVEL = [2.0 - 0.1 * i for i in range(10)] + [1.0] * 30
EXPORTS = {"onnx": {"latency_ms": 1.0}, "onnx-int8": {"latency_ms": 1.2}}
NOISY = {
    "student": {"one_item": 1.0, "low": 0.95, "high": 1.1, "architecture": "a"},
    "teacher": {"one_item": 1.05, "low": 0.97, "high": 1.06, "architecture": "b"},
}
COST = {"latency_ms": {"teacher": {"gflops": 5.0}, "student": {"gflops": 1.0}}}


@pytest.mark.parametrize(
    ("given", "rows", "said"),
    [
        (result(teacher=0.8, alone=0.8), [], "no better than the student trained alone"),
        (result(), log(FALLING), "raise train.steps"),
        (result(labels=["a", "b"], class_items={"train": [80, 20]}), [], "80 % of the training items are of class a"),
        (result(teacher=0.9005, alone=0.9), [], "try a smaller student"),
        (result(exports=EXPORTS), [], "int8 export is slower"),
        (result(exports={"onnx-int8": {"latency_ms": 2.0, "latency_ms_before": 1.0}}), [], "than the network in torch"),
        (result(latency_ms=NOISY), [], "Latency is too noisy here to say which of student and teacher is faster"),
        (result(**COST, cost={"teacher_passes": 3.0, "seconds": {"distil": 60.0}}), [], "limbeck cache kd"),
    ],
)
def test_it_appears(given: dict[str, Any], rows: list[dict[str, Any]], said: str) -> None:
    found = advice(given, rows)
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (result(), []),
        (result(teacher=0.801, alone=0.8, student=0.9), []),  # a tenth of a point better
        (result(), log(LEVEL)),
        (result(), log(FALLING[:19])),  # too few rows to tell
        (result(notes=["stage 'distil' stopped early after 40 of 80 steps"]), log(FALLING)),
        (result(labels=["a", "b"], class_items={"train": [79, 21]}), []),
        (result(exports={"onnx": {"latency_ms": 1.0}, "onnx-int8": {"latency_ms": 1.04}}), []),
        (result(latency_ms={**NOISY, "student": {**NOISY["student"], "high": 1.09}}), []),  # both scatter little
        (result(latency_ms={**NOISY, "teacher": {**NOISY["teacher"], "low": 1.11, "high": 2.0}}), []),  # told apart
        (result(latency_ms={n: {**t, "architecture": "a"} for n, t in NOISY.items()}), []),
        (result(**COST, cost={"teacher_passes": 2.9, "seconds": {"distil": 60.0}}), []),
        (result(**COST, cost={"teacher_passes": 9.0, "seconds": {"distil": 59.0}}), []),
        (result(**COST, cost={"seconds": {"distil": 600.0}}), []),  # recorded, or augmented
        (result(teacher=float("nan")), []),
    ],
)
def test_it_does_not(given: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    assert advice(given, rows) == []


def test_at_most_three_and_the_most_important_first() -> None:
    given = result(
        teacher=0.8, exports=EXPORTS, labels=["a", "b"], class_items={"train": [9, 1]}, **COST,
        cost={"teacher_passes": 9.0, "seconds": {"distil": 600.0}},
    )  # fmt: skip
    found = advice(given, log(FALLING))
    assert len(found) == MOST and "no better" in found[0] and "train.steps" in found[1]


def test_a_metric_that_is_better_when_lower() -> None:
    rows = {"teacher": {"rmse": 2.0}, "alone": {"rmse": 3.0}}
    assert not advice({"primary": "rmse", "higher_is_better": False, "metrics": rows})
    rows["teacher"]["rmse"] = 3.5
    assert "no better" in advice({"primary": "rmse", "higher_is_better": False, "metrics": rows})[0]


def test_the_confusion_matrix_is_drawn_with_its_numbers() -> None:
    picture = confusion({"student": [[8, 2], [1, 4]], "alone": [[9, 1], [5, 0]]}, ["cat", "dog"])
    assert picture is not None and "cat would be right on 66.7 %" in picture.caption and "<svg" in picture.svg
    assert picture.rows[0] == ["cat", "88.9 %", "80.0 %", "84.2 %", "10"]
    assert picture.rows[3] == ["dog (alone)", "0.0 %", "0.0 %", "0.0 %", "5"]
    many = confusion({"student": torch.eye(60, dtype=torch.int64).tolist()}, None)
    assert many is not None and not many.svg and len(many.rows) == 60
    assert confusion(None, None) is None


def test_several_labels_against_scikit_learn() -> None:
    from sklearn.metrics import precision_recall_fscore_support

    torch.manual_seed(0)
    said, true = torch.rand(50, 3) > 0.5, torch.rand(50, 3) > 0.6
    found = scores_by_label(said, true, ["a", "b", "c"])
    p, r, f, n = precision_recall_fscore_support(true.numpy(), said.numpy(), zero_division=0)
    for i, name in enumerate("abc"):
        assert list(found[name].values()) == pytest.approx([p[i], r[i], f[i], n[i]])
    picture = by_label({"student": found})
    assert picture is not None and len(picture.rows) == 3


def test_numbers_are_drawn_against_the_truth() -> None:
    s = summarise(result(seed=0, artifact="network", task="classification", sizes={}, latency_ms={}, cost={}))
    picture = against_truth({"price": {"true": [1.0, 2.0], "predicted": [1.5, 1.5]}}, s)
    assert picture is not None and "price" in picture.svg and against_truth(None, s) is None


def test_a_teacher_of_another_language_is_not_called_weak() -> None:
    assert not advice(result(teacher=0.2, alone=0.5, task="cross-lingual"))
    assert advice(result(teacher=0.2, alone=0.5, task="classification"))
