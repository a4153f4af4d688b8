"""DBFAD: the student sees features alone, sums and batch norm as the code has them, one network is delivered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, LimbeckError
from limbeck.grammar.role import cast
from limbeck.grammar.task import Model
from limbeck.recipe.recipe import build, check, load_tree, make
from limbeck.run.running import run
from limbeck.storage.store import load_state_dict
from tests.tiny import Tiny, tiny, tree_of

READY = "method.pretext=none"


def terms_of(made: Tiny, n: int = 4, twice: bool = False, step: int = 0) -> Any:
    """The terms of one step on a few items."""
    method: Any = made.method
    made.engine.prepare(method)
    stage = made.engine.stages[-1]
    cast(method.roles, tuple(stage.optim))
    batch = method.task.example(n)
    if twice:
        batch = {k: torch.cat([v, v]) for k, v in batch.items()}
    return method.step(batch, RunContext(made.engine, method, stage, made.engine.device).at(step))


def test_the_student_sees_its_teachers_features_alone(tmp_path: Path) -> None:
    made = tiny("fabric-rd", tmp_path, READY)
    method: Any = made.method
    made.engine.prepare(method)

    class Blind(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [f[: len(x)] for f in shown]

    batch = method.task.example(2)
    shown = [f.detach() for f in method.roles["teacher"].module(batch["x"])]
    method.roles["teacher"].module = Blind()
    first = terms_of(made, 2)["rebuilt"].values
    method.task.train.data.x = 255 - method.task.train.data.x
    torch.testing.assert_close(terms_of(made, 2)["rebuilt"].values, first)
    assert not terms_of(made, 2)["rebuilt"].values.isnan().any()


def test_released_sums_over_the_batch_and_holds_its_statistics_after_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunContext, "epoch", property(lambda self: self.step // 4))
    paper, released = (tiny("fabric-rd", tmp_path / v, READY, f"method.variant={v}") for v in ("paper", "released"))
    torch.testing.assert_close(terms_of(paper)["rebuilt"].values, terms_of(released)["rebuilt"].values)
    assert terms_of(released)["rebuilt"].weight == 4.0 and terms_of(paper)["rebuilt"].weight == 1.0
    bn: Any = released.method.roles["student"].module.decoder.b4.bn  # type: ignore[union-attr]
    terms_of(released, step=0)
    moved = bn.running_mean.clone()
    terms_of(released, step=50)
    assert torch.equal(bn.running_mean, moved) and bn.training
    goes_on: Any = paper.method.roles["student"].module.decoder.b4.bn  # type: ignore[union-attr]
    before = goes_on.running_mean.clone()
    terms_of(paper, step=50)
    assert not torch.equal(goes_on.running_mean, before)


def test_it_delivers_one_network_from_picture_to_map(tmp_path: Path) -> None:
    result = run(tree_of("fabric-rd", "method.stpm=true"), tmp_path, quiet=True)
    assert result["artifact"] == "detector" and list(result["metrics"]["rows"]) == ["student", "stpm", "pixels"]
    assert {"image_auroc", "pixel_auroc", "recall", "false_alarms", "threshold"} <= set(result["metrics"]["student"])
    import json

    about = json.loads((tmp_path / "student.json").read_text())
    recipe = build(tree_of("fabric-rd"))
    recipe.task.load(0)
    net = make(Model, about["model"], "model", tmp_path).make(recipe.task.needs)  # type: ignore[attr-defined]
    net.load_state_dict(load_state_dict(tmp_path / "student.safetensors"), strict=True)
    x = recipe.task.test.fetch(torch.arange(2))["x"]
    assert net.eval()(x).shape == (2, 1, 64, 64)
    assert (tmp_path / "maps.png").is_file()


def test_a_teacher_of_timm(tmp_path: Path) -> None:
    made = tiny("fabric-rd", tmp_path, READY, "teacher={use: timm, name: resnet10t}", "method.stpm=false")
    assert made.method.roles["student"].module.decoder.widths == (64, 64, 128, 256)  # type: ignore[union-attr]
    assert bool((terms_of(made)["rebuilt"].values > 0).all())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.blur=2"], "blur"),
        (["method.blur=129"], "at most 127, as images have 64 pixels"),
        (["student.levels=[0,5]"], "levels"),
        (["student.sigma=-1"], "sigma"),
        (["task.data.train=[wood]"], "wood"),
        (["task.deal=1"], "deal"),
        (["task.quantile=0"], "quantile"),
        (["student=unet"], "pyramid"),
        (["teacher=unet"], "pyramid"),
        (["student.widths=[4,4,4,4]"], "teacher's channels"),
        (["task.data.side=40"], "multiple of 32"),
        (["teacher.widths=[4,4]"], "four"),
        (["task.data=digits"], "anomaly-folder"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        tiny("fabric-rd", tmp_path, READY, *words)


def test_an_untaught_teacher_is_taught_by_photographs_and_a_ready_one_is_not(tmp_path: Path) -> None:
    made = tiny("fabric-rd", tmp_path)
    assert [s.name for s in made.method.stages()] == ["teach", "distil"]
    weights = tmp_path / "t.safetensors"
    from limbeck.storage.store import save_state_dict

    save_state_dict(weights, made.method.roles["teacher"].module.state_dict())
    ready = tiny("fabric-rd", tmp_path, f"teacher.checkpoint={weights}")
    assert [s.name for s in ready.method.stages()] == ["distil"]


def test_presets_say_the_papers_settings() -> None:
    tree = check(load_tree("fabric-rd", preset="mvtec"))
    assert tree["train"]["batch_size"] == 4 and tree["task"]["size"] == 256
    with pytest.raises(ConfigError):
        build(check(load_tree("fabric-rd", ["method.blur=-1"])))
