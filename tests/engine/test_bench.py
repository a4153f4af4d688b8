"""What a remembered teacher or baseline is known by."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine import identity
from limbeck.recipe.recipe import build
from limbeck.run import prepare
from tests.tiny import quiet, tree_of
from tests.toy import ToyTask, network

NET = """from torch import nn
def net(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, {width}), nn.{act}(), nn.Linear({width}, num_classes))
"""


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The key of the teacher of a recipe whose network is the user's own, as it is now."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def found(act: str = "ReLU", width: int = 8, note: str = "", overrides: tuple[str, ...] = (), seed: int = 0) -> str:
        (tmp_path / "own_teacher.py").write_text(NET.format(act=act, width=width) + note)
        sys.modules.pop("own_teacher", None)
        recipe = build(tree_of("kd", "teacher=import:own_teacher:net", *overrides, seed=seed))
        bench = prepare(recipe, None, say=quiet, untaught=True)
        assert bench.teacher is not None
        data = bench.task.teacher_train
        return identity.key(bench.parts_of(bench.teacher, data, recipe.teach, 0, recipe.queries))

    yield found
    sys.modules.pop("own_teacher", None)


def test_code_settings_and_data_make_another_teacher_and_nothing_else_does(key: Any) -> None:
    same = [key(), key(seed=1), key(overrides=("train.lr=0.5", "task.student_items=30", "engine.workers=1"))]
    assert len(set(same)) == 1
    others = [
        key(act="Sigmoid"),  # of the same shapes
        key(width=9),
        key(note="# edited\n"),
        key(overrides=("teach.lr=0.5",)),
        key(overrides=("teach.options={eps: 0.001}",)),
        key(overrides=("task.valid_fraction=0.3",)),
        key(overrides=("queries.mix.use=mixup",)),
    ]
    assert len({same[0], *others}) == len(others) + 1


def test_the_baseline_of_a_half_frozen_student_is_its_own() -> None:
    task, half = ToyTask(), network()
    half[0].requires_grad_(False)
    full, frozen = ({"network": identity.network(net), "task": identity.of_task(task)} for net in (network(), half))
    assert identity.key(full) != identity.key(frozen)
    assert torch.equal(network()[0].weight, half[0].weight)
