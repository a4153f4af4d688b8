"""What a recipe may say of single stages, and how it reaches them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck.engine.stages import tuned
from limbeck.errors import ConfigError
from limbeck.grammar.method import Stage
from limbeck.grammar.optim import Optim
from limbeck.recipe.recipe import build, check, dump, load_tree
from limbeck.recipe.stages import stage_settings
from tests.tiny import tiny


def stages() -> list[Stage]:
    optim = Optim(steps=10, lr=0.1, warmup=4)
    return [
        Stage("search", items=lambda ctx: ["a"], work=lambda i, c: i, optim={"probe": optim}),
        Stage("halve2", 10, None, 8, {"student": optim, "critic": optim}),
        Stage("halve1", 10, None, 8, {"student": optim}),
    ]


def test_names_and_patterns_reach_their_stages_and_names_have_the_last_word() -> None:
    settings = {"halve1": {"steps": 7}, "halve*": {"steps": 5, "batch_size": 3, "student": {"lr": 0.2}}}
    search, two, one = tuned(stages(), settings)
    assert (two.steps, two.batch_size, one.steps) == (5, 3, 7) and search.optim["probe"].lr == 0.1
    assert two.optim["student"].lr == one.optim["student"].lr == 0.2 and two.optim["critic"].lr == 0.1
    assert two.optim["critic"].steps == 5 and two.section == "stages.halve*"
    (search, *_) = tuned(stages(), {"search": {"probe": {"schedule": "linear"}}})
    assert search.optim["probe"].schedule == "linear"
    (search, *_) = tuned(stages(), {"search": {"probe": {"steps": 7, "batch_size": 3}}})
    assert (search.optim["probe"].steps, search.optim["probe"].batch_size) == (7, 3)
    assert [s.name for s in tuned(stages(), {})] == ["search", "halve2", "halve1"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"halv2": {"steps": 1}}, r"stages.halv2: no stage .* did you mean 'halve2'"),
        ({"quarter*": {"steps": 1}}, r"stages.quarter\*: no stage of this method"),
        ({"halve1": {"critic": {"lr": 1.0}}}, r"stages.halve1.critic: .* known: batch_size, epochs, steps, student"),
        ({"search": {"steps": 3}}, r"stages.search.steps: stage 'search' has items.* stages.search.probe"),
        ({"halve1": {"student": {"steps": 3}}}, r"stages.halve1.student.steps: got 3, expected stages.halve1.steps"),
        ({"halve1": {"student": {"lr": -1.0}}}, r"stages.halve1.student: lr must be"),
        ({"halve1": {"steps": 2}}, r"stages.halve1.steps: warmup must lie between 0 and steps"),
    ],
)
def test_what_reaches_no_stage_is_refused(settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tuned(stages(), settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"distil": 3}, "stages.distil: got 3, expected a mapping"),
        ({"distil": {"steps": "many"}}, "stages.distil.steps: got 'many', expected whole number"),
        ({"distil": {"steps": -1}}, "stages.distil.steps: got -1, expected 0 or more"),
        ({"distil": {"batch_size": 0}}, "stages.distil.batch_size: got 0, expected 1 or more"),
        (
            {"distil": {"student": 0.1}},
            "stages.distil.student: got 0.1, expected steps or batch_size or epochs, or a role",
        ),
        ({"distil": {"student": {"lrr": 1}}}, "stages.distil.student.lrr: .* did you mean 'lr'"),
        ({"distil": {"student": {"steps": 1.5}}}, "stages.distil.student.steps: got 1.5, expected whole number"),
        ({"distil": {"student": {"lr": "fast"}}}, "stages.distil.student.lr: got 'fast', expected number"),
        ({"distil": {"student": {"schedule": "up"}}}, "stages.distil.student.schedule: got 'up'"),
    ],
)
def test_settings_are_checked_before_the_stages_are_known(settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        stage_settings(settings)


def test_values_have_the_types_of_the_settings() -> None:
    found = stage_settings({"distil": {"steps": 1e2, "student": {"lr": 1, "clip": None}}})
    assert found == {"distil": {"steps": 100, "student": {"lr": 1.0, "clip": None}}}
    assert type(found["distil"]["steps"]) is int and type(found["distil"]["student"]["lr"]) is float


def test_they_come_from_the_command_line_and_read_back(tmp_path: Path) -> None:
    tree = check(load_tree("mtt", ["stages.distil.student.lr=3", "stages.experts.expert={lr: 0.2, clip: 1}"]))
    (tmp_path / "again.yaml").write_text(dump(tree))
    assert check(load_tree(tmp_path / "again.yaml")) == tree
    assert build(tree).stages == {
        "distil": {"student": {"lr": 3.0}, "step_size": {"lr": 1e-5}},
        "experts": {"expert": {"lr": 0.2, "clip": 1.0}},
    }


def test_a_run_takes_the_steps_and_rates_that_its_stages_are_given(tmp_path: Path) -> None:
    run = tiny("kd", tmp_path, "stages.distil={steps: 3, batch_size: 5, student: {lr: 0.5}}").run()
    (stage,) = run.engine.stages
    assert (stage.steps, stage.batch_size, stage.optim["student"].lr) == (3, 5, 0.5)
    saved = run.engine.checkpoints.latest()  # type: ignore[union-attr]
    assert saved is not None and saved[0] == 3


def test_a_key_that_is_wrong_is_told_of_alone() -> None:
    """What the shrunk recipe says of an evaluator that the task would have named is no second fault."""
    with pytest.raises(ConfigError) as caught:
        check(load_tree("mtt", ["method.stepz=3"], tiny=True))
    assert "method.stepz" in str(caught.value) and "evaluator" not in str(caught.value)
