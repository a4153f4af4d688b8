"""Epochs, weight decay of matrices alone, layer-wise rates, balanced sampling, stopping early."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data.items import ArrayData
from limbeck.engine import identity, interrupt
from limbeck.engine.batches import balanced
from limbeck.errors import ConfigError, LimbeckError, Stopped
from limbeck.grammar.optim import Optim, layer_shares
from limbeck.grammar.random import Stream
from limbeck.recipe.recipe import build
from limbeck.run.best import Best
from limbeck.run.running import run_recipe
from limbeck.storage import store
from tests.tiny import differences, tree_of

SMALL = ("train.batch_size=20", "train.lr=0.01", "teach.steps=2", "task.student_items=100", "baselines=[]")


def ran(folder: Path, *changes: str) -> dict[str, Any]:
    """A tiny run of kd without a baseline."""
    tree = tree_of("kd", *SMALL, *changes)
    return run_recipe(build(tree), tree, folder, quiet=True)[0]


def student(folder: Path) -> dict[str, torch.Tensor]:
    return store.load_state_dict(folder / "student.safetensors")


def test_vectors_are_not_decayed_where_only_matrices_are_to_be() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    made = Optim(optimizer="sgd", momentum=0.0, lr=0.1, weight_decay=0.5, decay_vectors=False)
    opt = made.build(dict(net.named_parameters()))
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    for name, p in net.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if p.ndim > 1 else before[name]
        torch.testing.assert_close(p.detach(), expected)


def test_a_pattern_goes_before_the_rule_for_vectors() -> None:
    named = {"a.weight": nn.Parameter(torch.ones(2, 2)), "a.bias": nn.Parameter(torch.ones(2))}
    made = Optim(weight_decay=0.5, decay_vectors=False, groups={"*.bias": {"weight_decay": 0.25}})
    by = {len(g["params"][0].shape): g["weight_decay"] for g in made.build(named).param_groups}
    assert by == {2: 0.5, 1: 0.25}


def test_rates_fall_from_layer_to_layer() -> None:
    names = ["embed.w", "enc.layer.0.a", "enc.layer.0.b", "enc.layer.1.a", "norm.w", "head.w"]
    assert layer_shares(names, 0.5) == {
        "embed.w": 0.125, "enc.layer.0.a": 0.25, "enc.layer.0.b": 0.25, "enc.layer.1.a": 0.5, "norm.w": 1.0, "head.w": 1.0,
    }  # fmt: skip
    assert layer_shares(["w", "b"], 0.5) == {"w": 1.0, "b": 1.0}
    named = {n: nn.Parameter(torch.ones(2, 2)) for n in names}
    opt = Optim(lr=0.1, layer_decay=0.5, groups={"head.w": {"lr": "x10"}}).build(named)
    times = {n: g["times"] for g in opt.param_groups for p in g["params"] for n, q in named.items() if p is q}
    assert times["head.w"] == 10 and times["embed.w"] == 0.125 and times["norm.w"] == 1


def test_balanced_draws_see_each_class_equally_often() -> None:
    y = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    stream = Stream(1000, 100, 0, "x", chances=balanced(ArrayData(torch.zeros(1000, 1), y), "train.sampling"))
    seen = torch.cat([stream.items(step)[0] for step in range(60)])
    share = torch.bincount(y[seen]).double() / len(seen)
    assert (share - 1 / 3).abs().max() < 0.03  # deviation 0.006
    again = Stream(1000, 100, 0, "x", chances=stream.chances)
    assert torch.equal(again.items(41)[0], stream.items(41)[0])


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    """Rows with a number each, as a source of a recipe."""
    draws = np.random.default_rng(0)
    np.savez(tmp_path / "train.npz", x=draws.normal(size=(200, 4)).astype("float32"), y=draws.normal(size=200))
    return f"task.data=arrays:{tmp_path}"


def test_balanced_sampling_needs_one_class_an_item(tmp_path: Path, numbers: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.sampling.*no single class"):
        ran(tmp_path / "run", "train.sampling=balanced", numbers)


def test_epochs_become_steps(tmp_path: Path) -> None:
    result = ran(tmp_path, "train.epochs=1.5", "teach.epochs=0.05", "loggers=[jsonl]")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert max(r["step"] for r in rows if r["stage"] == "distil") == 8  # 1.5 x 100 items in batches of 20
    assert result["items"]["train"] == 100


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.epochs=-1"], "must be above 0"),
        (["train.epochs=1", "train.warmup=50"], r"train\.epochs.*warmup"),
        (["train.patience=2"], r"train\.patience.*engine\.eval_every"),
        (["teach.patience=2"], r"teach\.patience"),
        (["train.layer_decay=1.5"], "layer_decay"),
        (["task.class_weights=[1.0]"], r"task\.class_weights.*10 numbers"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, settings: list[str], said: str) -> None:
    with pytest.raises(LimbeckError, match=rf"(?s){said}"):
        ran(tmp_path, *settings)


def test_labels_that_are_numbers_are_not_smoothed(tmp_path: Path, numbers: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.label_smoothing.*numbers"):
        ran(tmp_path / "run", "task.label_smoothing=0.1", numbers)


def test_settings_that_change_nothing_leave_an_identity_as_it_was() -> None:
    assert not set(Optim.neutral) & set(identity.value(Optim(lr=0.1)))
    assert identity.value(Optim(decay_vectors=False))["decay_vectors"] is False


def test_training_stops_early_and_a_resumed_run_at_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.steps=40", "train.lr=5.0", "engine.eval_every=2", "train.patience=2", "engine.save_every=3")
    whole = ran(tmp_path / "whole", *settings)
    said = [n for n in whole["notes"] if "stopped early" in n]
    assert len(said) == 1 and "train.patience=2" in said[0]
    evaluate = Best.evaluate

    def interrupted(best: Best, step: int) -> dict[str, float]:
        found = evaluate(best, step)
        if step == 4:
            interrupt.request(signal.SIGTERM)
        return found

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Best, "evaluate", interrupted)
        ran(tmp_path / "cut", *settings)
    interrupt.clear()
    cut = ran(tmp_path / "cut", *settings)
    assert [n for n in cut["notes"] if "stopped early" in n] == said
    assert not differences(student(tmp_path / "whole"), student(tmp_path / "cut"))


def test_smoothed_and_weighted_labels() -> None:
    from limbeck.data.items import Splits
    from limbeck.grammar.signal import Signal
    from limbeck.tasks.classification import Classification

    y = torch.tensor([0, 0, 0, 1])
    items = ArrayData(torch.rand(4, 2), y)
    task = Classification(label_smoothing=0.1, class_weights="balanced")
    task.check_splits(Splits(items, items, items, ["a", "b"], "label", []))
    z = torch.randn(4, 2)
    log_q = z.log_softmax(-1)
    plain = -0.9 * log_q[range(4), y] - 0.1 * log_q.mean(-1)
    weights = torch.tensor([4 / 6, 4 / 6, 4 / 6, 2.0])  # n / (classes x items of the class), of mean 1
    torch.testing.assert_close(task.supervised(Signal(z), {"y": y}).values, plain * weights)
    soft = torch.nn.functional.one_hot(y, 2).float()
    torch.testing.assert_close(task.supervised(Signal(z), {"y": soft}).values, plain * weights)
