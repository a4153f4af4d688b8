"""Whatever can be wrong between the participants is said before a teacher is trained for them."""

from __future__ import annotations

import copy
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from limbeck.engine.bench import Bench
from limbeck.errors import LimbeckError
from limbeck.grammar.method import Built
from limbeck.grammar.task import Model
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run import prepare
from limbeck.run.running import run_recipe
from limbeck.tasks.language import Language
from tests.tiny import tree_of


@pytest.mark.parametrize(
    ("recipe", "changes", "word"),
    [
        ("guided-diffusion", ["student.guided=false"], "guidance"),
        ("kd", ["objectives.hint={use: feature, student: layer9, teacher: fc1}"], "layer9"),
        ("kd", ["objectives.hint={use: feature, student: fc1, teacher: layer9}"], "layer9"),
        ("kd", ["engine.shard=[critic]"], "critic"),
        ("kd", ["train.optimizer=muon"], "muon"),
        ("kd", ["train.options={betaz: 1}"], "betaz"),
        ("kd", ["train.batch_size=3", "engine.accumulate=4"], "batch_size"),
    ],
)
def test_a_mistake_is_said_before_a_teacher_is_trained(
    recipe: str, changes: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path))

    def teach(self: Model, *args: Any) -> Any:
        raise AssertionError("a teacher is trained")

    monkeypatch.setattr(Model, "teach", teach)
    with pytest.raises(LimbeckError, match=word):
        prepare(build(check(load_tree(recipe, changes))), None, say=lambda text: None)


def test_the_rehearsal_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound once or twice, the student is the same, and so is what the method holds."""
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path))
    changes = ["teach.steps=2", "train.steps=2", "objectives.hint={use: feature, student: fc1, teacher: fc1}"]
    recipes = [build(check(load_tree("kd", changes))) for _ in range(2)]
    first = prepare(recipes[0], None, say=lambda text: None)
    monkeypatch.setattr("limbeck.run.preparing._rehearse", lambda *args: None)
    second = prepare(recipes[1], None, say=lambda text: None)
    a, b = (bench.student.module.state_dict() for bench in (first, second))
    assert all((a[k] == b[k]).all() for k in a)
    assert recipes[0].method.roles["student"].module is first.student.module
    assert recipes[0].method.roles["teacher"].module is first.teacher.module  # type: ignore[union-attr]


def test_while_a_teacher_is_trained_nothing_is_bound_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rehearsal works on copies: they would lie in memory for hours, and its sentences would be noted twice."""
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path))
    seen = []

    def match(self: Language, student: Built, teacher: Built) -> None:
        self.columns = 5
        self.notes.append("cut")

    def teach(self: Model, bench: Bench, *args: Any) -> Built:
        seen.append((hasattr(bench.method, "roles"), bench.task.columns, list(bench.task.notes).count("cut")))  # type: ignore[attr-defined]
        assert bench.teacher is not None
        return bench.teacher

    monkeypatch.setattr(Language, "match", match)
    monkeypatch.setattr(Model, "teach", teach)
    recipe = build(check(load_tree("taid", ["train.steps=3", "method.alpha=0.01", "engine.device=cpu"])))
    bench = prepare(recipe, None, say=lambda text: None)
    assert seen == [(False, None, 0)]
    assert list(bench.task.notes).count("cut") == 1
    assert len(recipe.method.notes) == 1, "alpha * steps is below 2"  # type: ignore[attr-defined]


def test_copies_are_gone_when_the_teacher_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path))
    copies, alive = [], []

    def deepcopy(what: Any, memo: Any) -> Any:
        made = copy.deepcopy(what, memo)
        copies.extend(weakref.ref(m) for m in made[2].values())
        return made

    def teach(self: Model, bench: Bench, *args: Any) -> Built:
        alive.extend(found() is not None for found in copies)
        assert bench.teacher is not None
        return bench.teacher

    monkeypatch.setattr("limbeck.run.preparing.copy", SimpleNamespace(copy=copy.copy, deepcopy=deepcopy))
    monkeypatch.setattr(Model, "teach", teach)
    taps = "objectives.hint={use: feature, student: fc1, teacher: fc1}"
    prepare(build(check(load_tree("kd", ["engine.device=cpu", taps]))), None, say=lambda text: None)
    assert alive == [False, False]


def test_a_network_that_cannot_be_copied_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path))
    recipe = build(check(load_tree("kd", ["teach.steps=1", "engine.device=cpu"])))

    class Single(type(recipe.student)):  # type: ignore[misc]
        def make(self, *args: Any) -> nn.Module:
            made = super().make(*args)
            made.lock = threading.Lock()
            return made  # type: ignore[no-any-return]

    assert recipe.student is not None
    recipe.student.__class__ = Single
    bench = prepare(recipe, None, say=lambda text: None)
    assert recipe.method.roles["student"].module is bench.student.module


def test_a_teacher_that_a_method_does_not_have_is_told(tmp_path: Path) -> None:
    tree = tree_of("uskd", "teacher=mlp:[8]", "train.steps=1", "baselines=[]")
    notes = run_recipe(build(tree), tree, tmp_path, quiet=True)[0]["notes"]
    assert sum("uskd has no teacher, so teacher=... is not used" in n for n in notes) == 1
