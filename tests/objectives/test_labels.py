"""Smoothed labels, and wrong ones that stay wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.grammar.random import Draws
from limbeck.objectives.labels import LabelSmoothing, WrongLabels
from tests.tiny import shared_tiny as tiny


class Ctx:
    def __init__(self, step: int = 0) -> None:
        self.draws = Draws(0, ("t", step))


def batch(n: int = 400) -> dict[str, torch.Tensor]:
    return {"x": torch.zeros(n, 2), "y": torch.arange(n) % 5, "item": torch.arange(n), "view": torch.zeros(n).long()}


def test_smoothing_is_distillation_from_a_teacher_that_knows_nothing() -> None:
    b, z = batch(), torch.randn(400, 5, generator=torch.Generator().manual_seed(0)).double()
    y = LabelSmoothing(0.2, classes=5)(b, Ctx())["y"]  # type: ignore[arg-type]
    torch.testing.assert_close(F.cross_entropy(z, y.double()), torch.nn.functional.cross_entropy(
        z, b["y"], label_smoothing=0.2, reduction="none"
    ), atol=1e-6, rtol=1e-6)  # fmt: skip
    flat = F.soft_cross_entropy(z, torch.zeros_like(z))
    torch.testing.assert_close(
        F.cross_entropy(z, y.double()), 0.8 * F.cross_entropy(z, b["y"]) + 0.2 * flat, atol=1e-6, rtol=1e-6
    )
    assert LabelSmoothing(0.0, classes=5)(b, Ctx()) is b  # type: ignore[arg-type]


def test_wrong_labels_stay_wrong() -> None:
    b = batch()
    y = WrongLabels(0.3, classes=5)(b, Ctx())["y"]  # type: ignore[arg-type]
    changed = y != b["y"]
    assert 0.22 < changed.double().mean() < 0.38 and set(y.tolist()) == set(range(5))
    later = {k: v.flip(0) for k, v in b.items()} | {"view": b["view"] + 3}
    assert torch.equal(WrongLabels(0.3, classes=5)(later, Ctx(7))["y"].flip(0), y)  # type: ignore[arg-type]
    assert bool((WrongLabels(1.0, classes=5)(b, Ctx())["y"] != b["y"]).all())  # type: ignore[arg-type]
    soft = {**b, "y": torch.nn.functional.one_hot(b["y"], 5).double()}
    moved = WrongLabels(0.3, classes=5)(soft, Ctx())["y"]  # type: ignore[arg-type]
    assert torch.equal(moved.argmax(1), y) and torch.equal(moved.sum(1), torch.ones(400).double())


def test_they_attach_by_recipe_and_refuse_what_has_no_class(tmp_path: Path) -> None:
    run = tiny("kd", tmp_path, "queries.s=label-smoothing", "queries.w=wrong-labels", "train.steps=2").run()
    assert list(run.method.setup.queries) == ["s", "w"]
    for name in ("label-smoothing", "wrong-labels"):
        with pytest.raises(ConfigError, match=r"queries\.q\.classes: got 3, expected 10"):
            tiny("kd", tmp_path / "b", f"queries.q={name}", "queries.q.classes=3")
        with pytest.raises(ConfigError, match=r"queries\.q: .*items of one class each"):
            tiny("taid", tmp_path / "c", f"queries.q={name}")
