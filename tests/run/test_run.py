"""What a run says at its door, and of a folder that is damaged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from limbeck.engine.bench import Bench
from limbeck.engine.settings import EngineSettings
from limbeck.errors import CheckpointCorrupt, ConfigError, LimbeckError, MissingExtra, Stopped, StorageError
from limbeck.recipe.recipe import check, load_tree
from limbeck.run import read_result, run
from limbeck.run.running import check_processes
from tests.tiny import tree_of


def test_exports_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'onnx'"):
        run(tree_of("kd", "export=[onxx]"), tmp_path / "o", quiet=True)
    for name, form in (("kd", "images"), ("mtt", "onnx"), ("guided-diffusion", "images")):
        with pytest.raises(ConfigError, match=f"export: .*got '{form}'"):
            run(tree_of(name, f"export=[{form}]"), tmp_path / "o", quiet=True)
    assert not (tmp_path / "o").exists()


def test_loggers_are_checked_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"loggers=wandb needs .*limbeck\[tracking\]"):
        run(tree_of("kd", "loggers=[wandb]"), tmp_path / "o", quiet=True)
    assert not (tmp_path / "o").exists()


def test_a_mistake_at_the_door_claims_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    with pytest.raises(LimbeckError, match="no such file or folder"):
        run(tree_of("kd", "task.data=folder:/nowhere/birds"), folder, quiet=True)
    short = ("train.steps=2", "teach.steps=2")
    assert not run(tree_of("kd", *short), folder, quiet=True)["reused"]
    with pytest.raises(StorageError, match="another configuration"):
        run(tree_of("kd", *short, "train.lr=0.5"), folder, quiet=True)
    (folder / "result.json").unlink()
    with pytest.raises(StorageError, match="another configuration"):
        run(tree_of("kd", *short, "train.lr=0.5"), folder, quiet=True)


@pytest.mark.parametrize(
    "wrong",
    [
        ("task.data=folder:/nowhere/birds",),
        ("objectives.hint=feature", "objectives.hint.student=fc9", "objectives.hint.teacher=fc1"),
        ("student=run:/nowhere",),
        ("engine.devices=2",),
        ("train.batch_size=2", "engine.accumulate=4"),
    ],
)
def test_a_run_that_is_refused_leaves_no_folder(wrong: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(LimbeckError):
        run(tree_of("kd", *wrong, "loggers=[csv, jsonl]"), tmp_path / "runs" / "one", quiet=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(LimbeckError):
        run(tree_of("kd", *wrong), tmp_path / "mine", quiet=True)
    assert list((tmp_path / "mine").iterdir()) == [], "a folder that was there stays, and stays empty"


def test_a_run_that_is_refused_loses_nothing_of_the_one_it_was_to_replace(tmp_path: Path) -> None:
    short = ("train.steps=1", "teach.steps=1")
    run(tree_of("kd", *short), tmp_path / "o", quiet=True)
    before = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir() if p.is_file()}
    with pytest.raises(LimbeckError, match="no such file or folder"):
        run(tree_of("kd", *short, "task.data=folder:/nowhere/birds"), tmp_path / "o", force=True, quiet=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir() if p.is_file()} == before


@pytest.mark.parametrize(
    ("env", "devices", "said"),
    [
        ({}, 2, r"engine\.devices: this process is one.*got 2.*torchrun --nproc-per-node 2"),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 2, r"torchrun has started 4.*engine\.devices=4"),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 2, ""),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 1, ""),
        ({}, 1, ""),
    ],
)
def test_as_many_processes_as_devices(
    env: dict[str, str], devices: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if not said:
        return check_processes(devices)
    with pytest.raises(ConfigError, match=said):
        check_processes(devices)
    return None


def test_what_a_ready_teacher_does_not_have_is_said_before_the_baseline_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ("train.steps=1", "teach.steps=1")
    run(tree_of("kd", *short), tmp_path / "first", quiet=True)
    monkeypatch.setattr(Bench, "alone", lambda self: pytest.fail("the baseline was trained first"))
    ready = (*short, f"teacher=run:{tmp_path / 'first'}", "teacher.check=off")
    for wrong, said in (
        (("objectives.hint=feature", "objectives.hint.student=fc1", "objectives.hint.teacher=fc9"), "tap 'fc9'"),
        (("engine.shard=[critic]",), r"engine\.shard: no network of this method is called 'critic'"),
    ):
        with pytest.raises(LimbeckError, match=said):
            run(tree_of("kd", *ready, *wrong), tmp_path / "second", quiet=True)


def test_a_role_that_only_the_method_has_may_be_split_though_the_baseline_has_none(tmp_path: Path) -> None:
    short = ("train.steps=1", "teach.steps=1")
    assert run(tree_of("kd", *short, "engine.shard=[teacher]"), tmp_path / "o", quiet=True)["metrics"]["alone"]
    settings = EngineSettings(shard=("teacher",))
    assert settings.of_network("teacher").shard == ("student",) and settings.of_network("student").shard == ()


@pytest.mark.parametrize(("force", "words"), [(False, "same command again to go"), (True, "again without --force to")])
def test_who_is_stopped_is_told_what_goes_on(
    force: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **named: object) -> None:
        raise Stopped(15)

    monkeypatch.setattr("limbeck.run.running.prepare", stop)
    with pytest.raises(Stopped) as caught:
        run(tree_of("kd"), tmp_path / "o", force=force, quiet=True)
    assert words in str(caught.value.resume)


def test_a_run_may_be_typed_again_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds.csv").write_text("x,y,label\n" + "".join(f"{i},{i % 7},{'ab'[i % 2]}\n" for i in range(40)))
    tokens = ["task.data=csv:birds.csv", "student=mlp:[4]", "teacher=mlp:[5]", "engine.device=cpu"]
    short = ["train.steps=2", "teach.steps=2", "loggers=[]"]
    run(check(load_tree("kd", [*tokens, *short])), tmp_path / "o", quiet=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = run(check(load_tree("../o")), tmp_path / "o", quiet=True)
    assert again["reused"]
    # what the report must say of the run: its place, its cost, and that the teacher learnt from the student's own items
    assert again["hardware"]["cpu"] and 0 < again["cost"]["cpu_seconds"] < 600
    assert again["items"]["train"] == again["items"]["teacher_train"]
    assert "as does a teacher that is trained here" in again["notes"][0]
    assert "as does a teacher that is trained here" in (tmp_path / "o" / "report.html").read_text()
    assert run(check(load_tree("../o")), tmp_path / "again", quiet=True)["items"]["train"] > 0


def test_a_teacher_has_a_seed_of_its_own(tmp_path: Path) -> None:
    found = []
    for i, words in enumerate((["seed=1"], ["seed=2"], ["seed=2", "teacher_seed=1"])):
        tree = tree_of("kd", "train.steps=2", "teach.steps=2", *words)
        found.append(run(tree, tmp_path / str(i), quiet=True)["metrics"])
    assert found[0]["teacher"] == found[1]["teacher"] != found[2]["teacher"]
    assert found[1]["alone"]["accuracy"] == found[2]["alone"]["accuracy"], "the student alone has the run's own"
    with pytest.raises(ConfigError, match="teacher_seed: must be 0 or more"):
        run(tree_of("kd", "teacher_seed=-1"), tmp_path / "o", quiet=True)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_a_damaged_result_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(CheckpointCorrupt, match=r"result\.json.*--force"):
        read_result(tmp_path / "result.json")


def test_paths_that_exist_are_written_down_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds").mkdir()
    tree: dict[str, object] = {"task": {"use": "classification", "data": "folder:birds"}, "method": "kd"}
    tree |= {"student": "mlp:[4]", "teacher": {"use": "mlp", "checkpoint": "gone.safetensors", "labels": "birds"}}
    found = check(tree)
    assert found["task"]["data"]["path"] == str(tmp_path / "birds") == found["teacher"]["labels"]
    assert found["teacher"]["checkpoint"] == "gone.safetensors"
    assert check(found) == found
