"""What a plan tells: every part of the run, measured on a few steps, or named as missing from the total."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import cli
from limbeck.data.items import ArrayData
from limbeck.engine.timing import Timed, Trial
from limbeck.evaluators.direct import Direct
from limbeck.evaluators.fresh import Fresh
from limbeck.grammar.optim import Optim
from limbeck.methods.condensation.mtt import Mtt
from limbeck.parts.trajectories import Experts
from limbeck.recipe.recipe import build
from limbeck.run import plan, planning, prepare
from limbeck.storage.disk import workspace
from tests.tiny import quiet, tiny, tree_of


@pytest.fixture(autouse=True)
def _own_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from other tests."""
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "workspace"))


def rows(planned: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert planned["seconds"] == pytest.approx(sum(p["seconds"] or 0.0 for p in planned["parts"]))
    missing = [p["part"] for p in planned["parts"] if p["seconds"] is None]
    assert planned["without"] == [*missing, *planning.WITHOUT]
    assert all(p["note"].startswith("not measured: ") for p in planned["parts"] if p["seconds"] is None)
    return {p["part"]: p for p in planned["parts"]}


@pytest.mark.parametrize("name", ["kd", "taid"])
def test_every_part_of_a_run_is_a_row_of_its_plan(name: str) -> None:
    planned = plan(tree_of(name, "train.steps=70", "teach.steps=50"), steps=1)
    found = rows(planned)
    assert list(found) == ["preparing", "teacher", "alone", "distil", "evaluation"]
    assert [found[p]["steps"] for p in ("teacher", "alone", "distil")] == [50, 70, 70]
    for part in ("teacher", "alone", "distil"):
        assert found[part]["seconds"] > 0
        assert found[part]["seconds"] == pytest.approx(found[part]["steps"] * found[part]["seconds_a_step"])
    assert found["evaluation"]["seconds"] > 0 and planned["stages"][0]["stage"] == "distil"
    assert planned["stages"][0]["seconds_a_step"] == found["distil"]["seconds_a_step"]
    assert planned["teacher_stage"]["steps"] == 50
    left = [p.name for p in workspace().iterdir()] if workspace().exists() else []
    assert all(n.startswith("tokenizer-") for n in left), "a plan trains nothing that would be remembered"


def test_what_is_remembered_is_not_paid_for_again(tmp_path: Path) -> None:
    tree = tree_of("kd")
    recipe = build(tree)
    bench = prepare(recipe, None, say=quiet)
    bench.alone()
    found = rows(plan(tree, steps=1))
    for part in ("teacher", "alone"):
        assert (found[part]["seconds"], found[part]["note"]) == (0.0, "reused from the workspace")
    weights = str(tmp_path / "net.safetensors")
    from limbeck.storage.store import save_state_dict

    save_state_dict(Path(weights), bench.teacher.module.state_dict())  # type: ignore[union-attr]
    found = rows(plan(tree_of("kd", f"teacher.checkpoint={weights}"), steps=1))
    assert (found["teacher"]["seconds"], found["teacher"]["note"]) == (0.0, "trained already")
    assert "teacher" not in rows(plan(tree_of("uskd"), steps=1))


def test_each_member_of_a_teacher_and_each_validation_is_counted() -> None:
    teacher = "teacher={use: ensemble, members: [mlp, mlp]}"
    found = rows(plan(tree_of("kd", teacher, "engine.eval_every=4", "train.steps=10", "teach.steps=7"), steps=1))
    assert [found[f"teacher {i}"]["steps"] for i in (1, 2)] == [7, 7]
    assert found["validation"]["steps"] == 3  # at 4, 8 and at the end


def test_items_are_tried_short_and_stand_in_for_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Experts of 40 epochs are not trained to be counted, and the stage that walks along them is timed all the same."""
    changes = ("method.expert_epochs=40", "method.experts=5", "method.latest_start=30", "method.ahead=2")
    seen = []
    train_expert = Experts.train

    def watched(self: Experts, item: str, ctx: Any) -> Any:
        seen.append(train_expert(self, item, ctx))
        return seen[-1]

    monkeypatch.setattr(Experts, "train", watched)
    for name in ("mtt", "tesla"):
        planned = plan(tree_of(name, *changes), steps=1)
        found = rows(planned)
        assert list(found) == ["preparing", "experts", "distil", "evaluation"]
        assert all(p["seconds"] > 0 for p in found.values())
        assert found["experts"]["steps"] == 5 and planned["stages"][0]["items"] == 5
        assert found["distil"]["note"] == "on stand-ins for what experts will leave"
    assert len(seen) == 2 and len(seen[0]["snapshots"]) == 41
    assert (seen[0]["snapshots"].diff(dim=0).abs().sum(1) > 0).all(), "no two states of a stand-in are the same"

    tiny("mtt", tmp_path, "train.steps=1").run()  # experts of the shrunk recipe, remembered
    found = rows(plan(tree_of("mtt"), steps=1))
    assert (found["experts"]["seconds"], found["experts"]["note"]) == (0.0, "remembered from an earlier run")
    assert found["distil"]["seconds"] > 0 and not found["distil"]["note"]


def test_a_stage_that_takes_no_stand_in_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Mtt, *args: Any) -> Any:
        raise ValueError("odd path\nand more")

    monkeypatch.setattr(Mtt, "step", step)
    found = rows(plan(tree_of("mtt"), steps=1))
    assert found["distil"]["note"] == "not measured: it needs what experts will leave (odd path)"
    assert found["experts"]["seconds"] > 0 and found["distil"]["steps"] == 6


def test_judging_that_cannot_be_tried_in_part_is_named() -> None:
    found = rows(plan(tree_of("guided-diffusion"), steps=1))
    assert found["evaluation"]["note"] == "not measured: how the evaluator Sampler scores cannot be tried in part"
    assert "alone" not in found
    assert found["teacher"]["seconds"] > 0


def test_work_is_scaled_by_items_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(planning, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    recipe = build(tree_of("mtt"))
    task, evaluator = recipe.task, Fresh(Optim(steps=100))
    task.load(0)
    whole = len(task.test)
    bench = planning._Trial(task, None, None, None, None, 0, None, None, None)  # type: ignore[arg-type]

    def work(short: Any, quiet: Any) -> None:
        assert quiet.task is not task and quiet.found is None and evaluator.optim.steps == 100
        clock[0] += 7 + 2 * len(quiet.task.test) + 3 * short.optim.steps

    row = planning._scaled("evaluation", work, bench, evaluator)
    assert row.seconds == pytest.approx(7 + 2 * whole + 3 * 100)
    assert (row.steps, row.seconds_a_step) == (100, pytest.approx(3.0))
    row = planning._scaled("evaluation", lambda *args: 1 // 0, bench, Direct())
    assert row.seconds is None and "on 2 items alone it fails" in row.note


def test_an_inner_loop_is_told_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    run = build(tree_of("kd"))
    prepare(run, None, say=quiet, untaught=True)
    from limbeck.engine.engine import Engine
    from limbeck.grammar.method import Stage

    engine = Engine(run.engine, 0)
    stage = Stage("search", items=lambda ctx: ["a"], work=lambda item, ctx: None)
    ctx = Trial(engine, run.method, stage, torch.device("cpu"), {}, few=2)
    data = ArrayData(torch.rand(8, 3), torch.zeros(8, dtype=torch.long))
    asked: list[int] = []

    def loss(net: nn.Module, batch: Any, inner: Any) -> Tensor:
        asked.append(inner.step)
        clock[0] += 2.0
        return net(batch["x"]).square().sum(1)

    clock, done = [0.0], []
    monkeypatch.setattr("limbeck.engine.timing.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    net = ctx.at(0).fit(
        nn.Linear(3, 1), data, loss, Optim(steps=50, batch_size=4), scope="s", each=lambda n, m: done.append(n)
    )
    assert asked == [0, 1, 2] and done == list(range(1, 51)) and not net.training
    assert clock[0] + sum(ctx.beyond) == pytest.approx(50 * 2.0)
    asked.clear()
    ctx.fit(nn.Linear(3, 1), data, loss, Optim(steps=3, batch_size=4), scope="s")
    assert len(asked) == 3 and len(ctx.beyond) == 1, "what is as short as that is done"
    assert Timed(None, 4).seconds is None and Timed(0.5, 4).seconds == 2.0


def test_the_table_has_every_part_and_says_what_the_total_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "guided-diffusion", "teach.steps=3", "train.steps=3"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    for word in ("teacher", "evaluation", "not measured", "total", "without evaluation, starting Python"):
        assert word in " ".join(said.split()), said
    assert cli.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"stages", "teacher_stage", "seconds", "memory_mb", "cache_mb", "items", "parts", "without"} <= set(told)
