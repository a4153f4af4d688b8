"""A recorded teacher with add-ons: class means from its recorded features, and what needs a network refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.cache import build_cache
from limbeck.engine.engine import Engine
from limbeck.errors import ConfigError, LimbeckError
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run import prepare
from tests.tiny import quiet, tree_of

TAP = "head:in"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, shared_workspace: Path) -> Path:
    """The tiny KD recipe's teacher with its penultimate feature."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        folder = tmp_path_factory.mktemp("cache") / "kd"
        build_cache(tree_of("kd"), folder, features=[TAP], yes=True)
    return folder


@pytest.mark.parametrize("host", ["kd", "nkd", "nd-loss", "bd-kd"])
def test_norm_and_direction_of_a_recorded_teacher(host: str, recorded: Path) -> None:
    words = ["engine.device=cpu", "loggers=[]", f"teacher=cached:{recorded}", "train.steps=2"]
    words += [
        f"method.teacher_feature={TAP}"
        if host == "nd-loss"
        else f"objectives.nd={{use: norm-direction, teacher: '{TAP}'}}"
    ]
    words += ["method.mode=offline"] if host == "bd-kd" else []
    words += ["task.student_items=200", "student.hidden=[8]"]
    recipe = build(check(load_tree(host, words, tiny=True)))
    prepare(recipe, None, say=quiet)
    Engine(recipe.engine, recipe.seed).run(recipe.method)
    means = recipe.method.roles["projector:nd"].module.means
    assert means.shape == (10, 16) and bool(means.any())


@pytest.mark.parametrize("host", ["kd", "nkd", "dkd", "bd-kd"])
def test_a_recorded_teacher_with_an_averaged_student(host: str, recorded: Path) -> None:
    words = ["engine.device=cpu", "loggers=[]", f"teacher=cached:{recorded}", "train.steps=2", "average.decay=0.5"]
    words += ["task.student_items=200", "student.hidden=[8]", *(["method.mode=offline"] if host == "bd-kd" else [])]
    recipe = build(check(load_tree(host, words, tiny=True)))
    prepare(recipe, None, say=quiet)
    roles = recipe.method.roles
    before = {k: v.clone() for k, v in roles["average"].module.state_dict().items()}
    Engine(recipe.engine, recipe.seed).run(recipe.method)
    assert not isinstance(roles["teacher"].module, torch.nn.Module)
    moved = roles["average"].module.state_dict()
    assert all(not torch.equal(before[k], v) for k, v in moved.items())
    assert any(not torch.equal(moved[k], v) for k, v in roles["student"].module.state_dict().items())


def test_what_needs_a_network_is_refused(recorded: Path) -> None:
    words = ["engine.device=cpu", "loggers=[]", f"teacher=cached:{recorded}"]
    unnamed = build(check(load_tree("kd", [*words, "objectives.nd=norm-direction"], tiny=True)))
    prepare(unnamed, None, say=quiet)
    with pytest.raises(ConfigError, match="recorded or remote"):
        Engine(unnamed.engine, unnamed.seed).prepare(unnamed.method)
    hard = build(check(load_tree("hard", [*words, "student.hidden=[8]"], tiny=True)))
    with pytest.raises(LimbeckError, match="gradients through the teacher"):
        prepare(hard, None, say=quiet)
    assert torch.is_grad_enabled()
