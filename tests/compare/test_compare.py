"""Recipes times seeds: reused, resumed, over processes and over Ray, and honest about what failed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from limbeck.compare import compare
from limbeck.errors import ConfigError
from limbeck.recipe.recipe import dump
from limbeck.report.headline import footnotes, headline
from limbeck.report.summary import summarise

TINY = [
    "train.steps=4",
    "train.batch_size=8",
    "teach.steps=3",
    "teacher.hidden=[16]",
    "engine.device=cpu",
    "loggers=[]",
]


def put(out: Path, **more: Any) -> dict[str, Any]:
    return compare(["kd", "nkd"], TINY, seeds=2, out=out, quiet=True, **more)


def test_rows_pairs_and_reuse(tmp_path: Path) -> None:
    found = put(tmp_path)
    assert {label: sorted(row) for label, row in found["rows"].items()} == {"kd": ["0", "1"], "nkd": ["0", "1"]}
    assert json.loads((tmp_path / "comparison.json").read_text())["reference"] == "kd"
    assert (tmp_path / "report.html").is_file() and headline(summarise(found))
    # what single test items say: an interval for other items, too, about the same difference
    for label, others in (("kd", ["alone"]), ("nkd", ["alone", "kd"])):
        assert list(found["with_items"][label]) == others
        metrics = [r["metrics"] for r in found["rows"][label].values()]
        gain = sum(m["student"]["accuracy"] - m["alone"]["accuracy"] for m in metrics) / len(metrics)
        assert found["with_items"][label]["alone"]["mean"] == pytest.approx(gain)
    assert "For other test items as well as other seeds" in " ".join(summarise(found).notes)
    # both methods were measured against the same student alone, trained once a seed
    for seed in ("0", "1"):
        assert found["rows"]["kd"][seed]["metrics"]["alone"] == found["rows"]["nkd"][seed]["metrics"]["alone"]
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*-seed*/result.json")}
    again = put(tmp_path)
    assert again["rows"] == found["rows"]
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*-seed*/result.json")}, "finished runs are reused"
    more = compare(["kd", "nkd"], TINY, seeds=3, out=tmp_path, quiet=True)
    assert sorted(more["rows"]["kd"]) == ["0", "1", "2"] and more["rows"]["kd"]["0"] == found["rows"]["kd"]["0"]


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The recipes that a comparison would run; each run is finished at once, with a result that holds its seed."""
    trees: list[dict[str, Any]] = []

    def run(tree: dict[str, Any], folder: Path, force: bool, quiet: bool) -> None:
        trees.append(tree)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump(tree))
        metrics = {who: {"accuracy": tree["seed"] / 100} for who in ("student", "alone", "teacher")}
        told = {"method": "kd", "task": "classification", "primary": "accuracy", "higher_is_better": True, "sizes": {}}
        result = {**told, "metrics": metrics, "latency_ms": {}, "seed": tree["seed"], "artifact": "network"}
        (folder / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr("limbeck.run.run", run)
    return trees


def test_teachers_and_splits_may_differ_from_seed_to_seed(tmp_path: Path, noted: list[dict[str, Any]]) -> None:
    more: dict[str, Any] = {"seeds": 4, "out": tmp_path, "first_seed": 10, "quiet": True}
    compare(["kd"], TINY, **more)
    assert [(t["seed"], t["teacher_seed"], t["task"]["deal"]) for t in noted] == [(s, 0, 0) for s in range(10, 14)]
    noted.clear()
    found = compare(["kd"], TINY, teachers=2, redeal=True, **more)
    seen = [(t["seed"], t["teacher_seed"], t["task"]["deal"]) for t in noted]
    assert seen == [(10, 0, 11), (11, 1, 12), (12, 0, 13), (13, 1, 14)]
    noted.clear()
    compare(["kd"], TINY, teachers=2, redeal=True, **more)
    assert not noted, "finished runs are reused"
    said = " ".join(footnotes(summarise(found)))
    assert "dealt anew" in said and "2 teachers in turn" in said and "stays the same" not in said


def test_teachers_and_splits_that_cannot_differ_are_refused(tmp_path: Path, noted: list[dict[str, Any]]) -> None:
    loaded = [*TINY, "teacher.checkpoint=teacher.safetensors"]
    for words, more, problem in (
        (loaded, {"teachers": 2}, "teachers: kd's teacher is loaded from teacher.safetensors"),
        (TINY, {"teachers": 0}, "teachers: got 0"),
    ):
        with pytest.raises(ConfigError, match=problem):
            compare(["kd"], words, seeds=2, out=tmp_path, quiet=True, **more)
    assert not noted


def test_other_settings_make_other_runs(tmp_path: Path) -> None:
    put(tmp_path)
    changed = compare(["kd"], [*TINY, "method.temperature=2"], seeds=1, out=tmp_path, quiet=True)
    assert "temperature: 2" in (tmp_path / "kd-seed0" / "config.yaml").read_text()
    assert list(changed["rows"]) == ["kd"]


def test_different_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\."):
        compare(["kd", "uskd", "tesla"], [], seeds=1, out=tmp_path, quiet=True)


def test_recipes_with_different_students_are_told_before_and_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(["kd", "uskd"], TINY, seeds=1, out=tmp_path)
    told = capsys.readouterr().err
    assert told.startswith("-- The students differ: kd has mlp hidden=[8]; uskd has mlp hidden=[32,16].")
    assert told.index("Setting student.hidden=[8]") < told.index("-- kd, seed 0")
    s = summarise(found)
    assert [r.name for r in s.rows if r.role == "alone"] == ["student alone (kd)", "student alone (uskd)"]
    assert s.methods[1].to_reference is None and s.methods[1].teacher is None
    # what it says to type is enough
    alike = compare(["kd", "uskd"], [*TINY, "student.hidden=[8]"], seeds=1, out=tmp_path)
    assert "students differ" not in capsys.readouterr().err
    s = summarise(alike)
    assert [r.name for r in s.rows if r.role == "alone"] == ["student alone"]
    assert s.methods[1].to_reference is not None


def test_what_fails_is_said_and_the_rest_stands(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "name: bad\ntask: {use: classification, data: digits, student_items: 200}\n"
        "teacher: {use: mlp, checkpoint: /nowhere.safetensors}\nstudent: {use: mlp, hidden: [8]}\nmethod: kd\n"
    )
    found = compare(
        ["kd", str(bad)],
        ["train.steps=4", "teach.steps=3", "engine.device=cpu", "loggers=[]"],
        seeds=1,
        out=tmp_path / "out",
        quiet=True,
    )
    assert found["rows"]["kd"] and not found["rows"]["bad"]
    assert "/nowhere.safetensors" in found["failed"]["bad"]["0"]


def test_over_processes_equals_here(tmp_path: Path) -> None:
    here, there = put(tmp_path / "here"), put(tmp_path / "there", workers=2)
    assert not there["failed"]
    for label, row in here["rows"].items():
        for seed, result in row.items():
            assert result["metrics"]["student"] == there["rows"][label][seed]["metrics"]["student"]


def test_over_a_local_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH")])))
    found = compare(["kd"], TINY, seeds=2, out=tmp_path, engine="ray", workers=2, quiet=True)
    assert not found["failed"] and sorted(found["rows"]["kd"]) == ["0", "1"]
