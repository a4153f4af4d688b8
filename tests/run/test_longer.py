"""A run that goes on to more steps than it was begun with is the longer run, or says why it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine import interrupt
from limbeck.engine.longer import lengthened
from limbeck.errors import Stopped, StorageError
from limbeck.grammar.method import Batch, Context, Setup, Stage, Terms
from limbeck.methods.classification.kd import Kd
from limbeck.recipe.recipe import build
from limbeck.run.running import run_recipe
from limbeck.storage import store
from tests.tiny import StopAfter, differences, tree_of
from tests.toy import Toy, bound, engine, learnt

SHORT = ("student=mlp:[6]", "teach.steps=5", "train.batch_size=16", "baselines=[]")


def run(folder: Path, steps: int, *changes: str, method: Any = None, force: bool = False) -> dict[str, Any]:
    tree = tree_of("kd", *SHORT, f"train.steps={steps}", *changes)
    recipe = build(tree)
    if method is not None:
        recipe.method = method
    return run_recipe(recipe, tree, folder, force=force, quiet=True)[0]


def student(folder: Path) -> dict[str, torch.Tensor]:
    return store.load_state_dict(folder / "student.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_going_on_is_the_longer_run_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    constant = ("train.schedule=constant", f"train.optimizer={optimizer}", "train.warmup=3")
    run(tmp_path / "a", 7, *constant)
    assert run(tmp_path / "a", 7, *constant)["reused"]
    result = run(tmp_path / "a", 15, *constant)
    assert not result["reused"] and any("goes on after 7 of 7 steps, to 15" in n for n in result["notes"])
    assert not any("stretched" in n for n in result["notes"])
    whole = run(tmp_path / "b", 15, *constant)
    assert not differences(student(tmp_path / "a"), student(tmp_path / "b"))
    assert result["metrics"]["student"] == whole["metrics"]["student"]
    assert run(tmp_path / "a", 15, *constant)["reused"]
    with pytest.raises(StorageError, match=r"train\.steps \(15 then, 9 now\)"):
        run(tmp_path / "a", 9, *constant)
    with pytest.raises(StorageError, match="another configuration"):
        run(tmp_path / "a", 30, *constant, "train.lr=0.5")


def test_a_stretched_schedule_is_said(tmp_path: Path) -> None:
    run(tmp_path, 7)
    notes = run(tmp_path, 15)["notes"]
    assert any("learning rate of student (cosine)" in n and "stretched to 15 from step 7 on" in n for n in notes)
    again = json.loads((tmp_path / "result.json").read_text())
    assert any("stretched" in n for n in again["notes"])


class Asks(Kd):
    """Reads how long it is."""

    def step(self, batch: Batch, ctx: Context) -> Terms:
        terms = super().step(batch, ctx)
        terms["kl"].weight = (ctx.step + 1) / ctx.total
        return terms


def test_a_method_that_asks_how_long_it_is_does_not_go_on(tmp_path: Path) -> None:
    run(tmp_path, 7, method=Asks())
    before = (tmp_path / "result.json").read_bytes(), (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(StorageError, match=r"'distil' asks how long it is \(ctx\.total\).*--out"):
        run(tmp_path, 15, method=Asks())
    assert before == ((tmp_path / "result.json").read_bytes(), (tmp_path / "config.yaml").read_bytes())
    assert run(tmp_path, 7, method=Asks())["reused"]


def toys(folder: Path, method: Any, stop: int | None = None, **about: Any) -> Any:
    made = engine(folder, None if stop is None else StopAfter(stop))
    made.about = {"recipe": {"train.steps": method.setup.train.steps, "seed": 0, **about}}
    made.run(method)
    return learnt(method)


def toy(cls: type[Toy], steps: int) -> Any:
    return bound(cls(), steps=steps, schedule="constant", n=22)


class Finishing(Toy):
    """Two stages, of which the last ends with something that cannot be undone, over epochs."""

    def stages(self) -> list[Stage]:
        (stage,) = super().stages()
        first = replace(stage, name="first", steps=3)
        return [first, replace(stage, finish=self.done, keep=("student",), every={"epoch": self.look})]

    def look(self, ctx: Context) -> None:
        self.state["looked"] = [*self.state.get("looked", []), ctx.step]

    def done(self, ctx: Context) -> None:
        self.state["t"] = -1.0
        with torch.no_grad():
            self.roles["student"].module[0].weight.mul_(0.5)


def test_stages_epochs_and_what_comes_last(tmp_path: Path) -> None:
    whole = toys(tmp_path / "whole", toy(Finishing, 11))
    toys(tmp_path / "a", toy(Finishing, 4))
    assert not differences(whole, toys(tmp_path / "a", toy(Finishing, 11)))
    for stop in (5, 9):  # stopped in the shorter run, or in what follows it
        folder = tmp_path / str(stop)
        with pytest.raises(Stopped):
            toys(folder, toy(Finishing, 4 if stop == 5 else 11), stop)
        interrupt.clear()
        assert not differences(whole, toys(folder, toy(Finishing, 11)))
    toys(tmp_path / "b", toy(Finishing, 4))
    with pytest.raises(Stopped):
        toys(tmp_path / "b", toy(Finishing, 11), 3)
    interrupt.clear()
    assert not differences(whole, toys(tmp_path / "b", toy(Finishing, 11)))


class Both(Toy):
    def stages(self) -> list[Stage]:
        (stage,) = super().stages()
        return [replace(stage, name="first"), stage]


class Slowing(Toy):
    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.new("slow", like="student", decay=lambda step, total: step / total)


class Making(Toy):
    def stages(self) -> list[Stage]:
        return [*super().stages(), Stage("items", items=lambda ctx: ["a"], work=lambda item, ctx: {"n": 1})]


class Telling(Toy):
    def stages(self) -> list[Stage]:
        (stage,) = super().stages()
        return [replace(stage, steps=lambda ctx: self.setup.train.steps)]


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Both, r"stage 1 \('first'\) took 4 steps and would take 9.*set stages\.distil\.steps alone"),
        (Slowing, "the average 'slow' moves by a share that depends on how long"),
        (Making, "stage 1 \\('distil'\\) took 4 steps"),
        (Telling, "tells its length only when it begins"),
    ],
)
def test_what_would_be_another_run_is_refused(tmp_path: Path, cls: type[Toy], said: str) -> None:
    toys(tmp_path, toy(cls, 4))
    with pytest.raises(StorageError, match=said):
        toys(tmp_path, toy(cls, 9))
    with pytest.raises(StorageError, match="made from something else"):
        toys(tmp_path, toy(cls, 9), **{"train.lr": 2})


def test_which_settings_may_grow() -> None:
    assert lengthened({"stages": {}, "a": 1}, {"stages.halve*.steps": 7, "a": 1}) == ["stages.halve*.steps"]
    assert lengthened({"stages.x.epochs": 1.5}, {"stages.x.epochs": 2.0}) == ["stages.x.epochs"]
    for then, now in (
        ({"teach.steps": 1}, {"teach.steps": 2}),
        ({"train.steps": 2}, {"train.steps": 1}),
        ({"train.steps": 2}, {}),
        ({"train.steps": "2"}, {"train.steps": "3"}),
        ({"stages.x.student.lr": 1}, {"stages.x.student.lr": 2}),
        ({}, {}),
    ):
        assert lengthened(then, now) == []
