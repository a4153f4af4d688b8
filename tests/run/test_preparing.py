"""Whatever can be wrong between the participants is said before a teacher is trained for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck.core.errors import LimbeckError
from limbeck.core.recipe import build, check, load_tree
from limbeck.core.task import Model
from limbeck.run import prepare


@pytest.mark.parametrize(
    ("recipe", "changes", "word"),
    [
        ("guided-diffusion", ["student.guided=false"], "guidance"),
        ("kd", ["objectives.hint={use: feature, student: layer9, teacher: fc1}"], "layer9"),
        ("kd", ["objectives.hint={use: feature, student: fc1, teacher: layer9}"], "layer9"),
        ("kd", ["engine.shard=[critic]"], "critic"),
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
