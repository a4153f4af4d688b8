"""Spaces as a user writes them; a search that is stopped and goes on; what it may not look at."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from limbeck.commands import search as command
from limbeck.engine import interrupt
from limbeck.errors import ConfigError, LimbeckError, Stopped, StorageError
from limbeck.evaluators.direct import Direct
from limbeck.methods.classification.kd import Kd
from limbeck.recipe.overrides import read_tree, split_recipe
from limbeck.recipe.recipe import check, load_tree
from limbeck.search import Choice, Range, default_space, parse_space, search
from limbeck.search.searching import _Watch

pytest.importorskip("optuna")

TINY = ("task.student_items=60", "train.steps=8", "train.batch_size=20", "teach.steps=2", "teacher=mlp:[8]",
        "engine.device=cpu", "loggers=[]")  # fmt: skip


def quiet(text: str) -> None:
    """Nothing."""


def test_spaces_are_read() -> None:
    found = parse_space(["train.lr=1e-4..1e-2", "train.warmup=0..5", "a.b=1..5.5", "x=true|null|word"])
    assert found["train.lr"] == Range(1e-4, 1e-2, log=True)
    assert found["train.warmup"] == Range(0, 5, whole=True) and found["a.b"] == Range(1, 5.5)
    assert found["x"] == Choice((True, None, "word"))
    assert found["x"].holds(True) and not found["x"].holds(1) and not found["train.warmup"].holds(2.5)


@pytest.mark.parametrize(
    "word", ["train.lr", "train.lr=1..", "train.lr=2..1", "a=1", "=1..2", "a=x..y", "a=[1]|2", "a=1..2..3"]
)
def test_spaces_that_cannot_be_read(word: str) -> None:
    with pytest.raises(ConfigError, match="--space"):
        parse_space([word])


def test_the_space_of_a_method_is_its_positive_numbers() -> None:
    found = default_space(check(load_tree("kd")), Kd)
    assert set(found) == {"train.lr", "method.temperature", "method.alpha"}
    assert found["train.lr"] == Range(pytest.approx(3e-4), pytest.approx(3e-2), log=True)
    assert found["method.alpha"] == Range(0.0, 1.0) and found["method.temperature"] == Range(1.0, 16.0, log=True)


def test_settings_behind_a_recipe() -> None:
    assert split_recipe("kd method.alpha=1 train.lr=0.1") == ("kd", ["method.alpha=1", "train.lr=0.1"])
    tree = read_tree("kd method.alpha=0.5", ["train.steps=3"])
    assert tree["method"]["alpha"] == 0.5 and tree["train"]["steps"] == 3 and tree["name"] == "kd-method.alpha-0.5"
    check(tree)


def test_a_search_that_is_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path, trials: int = 4) -> dict[str, Any]:
        return search(["kd", "nkd"], TINY, trials=trials, out=folder, final=False, prune=False, say=quiet)

    whole = run(tmp_path / "a")
    assert [t["settings"] for t in whole["trials"][:2]] == [
        {"train.lr": 0.003, "method.temperature": 4.0, "method.alpha": 0.9},
        {"train.lr": 0.003, "method.temperature": 1.0, "method.gamma": 1.5},
    ]
    evaluate = _Watch.evaluate

    def stopping(watch: Any, step: int) -> dict[str, float]:
        if watch.trial.number == 1 and step == 4:
            interrupt.request(signal.SIGTERM)
        return evaluate(watch, step)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(_Watch, "evaluate", stopping)
        run(tmp_path / "b")
    interrupt.clear()
    again = run(tmp_path / "b")
    assert len(again["trials"]) == 4
    key = {json.dumps(t["settings"]): t["score"] for t in whole["trials"][:2]}
    assert {json.dumps(t["settings"]): t["score"] for t in again["trials"][:2]} == key
    assert len(run(tmp_path / "b")["trials"]) == 4, "nothing is tried again"
    with pytest.raises(StorageError, match="another search"):
        search(["kd"], TINY, trials=2, out=tmp_path / "b", say=quiet)


def test_trials_see_the_validation_split_alone_and_the_best_is_run_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    score = Direct.score

    def watched(self: Any, artifact: Any, bench: Any, split: str = "test") -> dict[str, float]:
        seen.append(split)
        return score(self, artifact, bench, split)

    monkeypatch.setattr(Direct, "score", watched)
    found = search(["kd"], TINY, trials=2, out=tmp_path, final=False, space=["train.lr=1e-4..0.1"], say=quiet)
    assert set(seen) == {"valid"}
    best = max(found["trials"], key=lambda t: t["score"])
    assert found["best"] == best
    full = search(["kd"], TINY, trials=2, out=tmp_path, space=["train.lr=1e-4..0.1"], say=quiet)
    assert "test" in seen and full["result"]["metrics"]["student"]["accuracy"] >= 0
    assert load_tree(full["recipe"])["train"]["lr"] == best["settings"]["train.lr"]


def test_a_trial_that_lags_behind_is_stopped(tmp_path: Path) -> None:
    rates = ["train.lr=1e-9|0.02"]
    found = search(["kd"], (*TINY, "train.steps=24"), trials=9, out=tmp_path, final=False, space=rates, say=quiet)
    stopped = [t for t in found["trials"] if t["state"] == "stopped early"]
    assert stopped and all(t["settings"]["train.lr"] == 1e-9 for t in stopped)
    assert found["best"]["settings"]["train.lr"] == 0.02


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "RECIPE: is missing"),
        (["kd", "kd"], "called 'kd'"),
        (["kd", "--trials", "0"], "--trials"),
        (["kd", "--share", "2"], "--share"),
        (["kd", "--minutes", "-1"], "--minutes"),
        (["kd", "--minutes", "soon"], "--minutes"),
        (["kd", "--space", "train.rl=1..2"], "train.rl"),
        (["kd", "token-kd"], "task"),
        (["nokd"], "nokd"),
    ],
)
def test_bad_input_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError) as refused:
        command.main([*words, "--out", str(tmp_path / "out")])
    assert said in refused.value.line()


def test_the_command_prints_trials_and_the_final_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["kd", *TINY, "--trials", "2", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (
        "2 finished" in out
        and "run in full" in out
        and "best.yaml" in out
        and "not searched by themselves" in " ".join(out.split())
    )
