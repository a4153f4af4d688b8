"""What an export says of itself: its cost, its warnings, which weights it holds, that it is at work; what it refuses."""

from __future__ import annotations

import ast
import csv
import io
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from limbeck.commands.export import main
from limbeck.engine import interrupt
from limbeck.engine.progress import Progress
from limbeck.errors import ConfigError, Stopped
from limbeck.export import _Work, export
from limbeck.export.cost import is_loss, told, warnings_of
from limbeck.export.onnx import write_onnx
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built
from limbeck.run import run
from limbeck.storage.store import load_tree
from limbeck.tasks.classification import Classification
from tests.export.files import trained, used
from tests.tiny import tree_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shared_workspace: Path) -> Path:
    folder = tmp_path_factory.mktemp("cost") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        run(tree_of("kd"), folder, quiet=True)
    return folder


def test_size_metric_and_latency_stand_beside_what_they_were(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("LIMBECK_PROGRESS", "plain")
    assert main([str(finished), "--format", "onnx", "--teacher"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{finished / 'export' / 'onnx'}\n"
    result = json.loads((finished / "result.json").read_text())
    facts, student = result["exports"]["onnx"], result["metrics"]["student"]
    assert (
        facts["accuracy_before"] == student["accuracy"] and facts["bytes_before"] == result["sizes"]["student"]["bytes"]
    )
    for key in ("latency_ms", "latency_ms_before", "teacher_latency_ms", "teacher_latency_ms_before"):
        low, high = facts[f"{key}_range"]
        assert 0 < low <= facts[key] <= high
    assert f"{facts['latency_ms_range'][0]:.3g}"[:4] in (finished / "report.html").read_text()
    line = next(text for text in said.err.splitlines() if text.startswith("limbeck export: onnx: size"))
    assert line.count("before") == 4 and "its teacher" in line and "accuracy" in line and "latency" in line
    for step in (
        "reading the run",
        "writing the graph",
        "comparing it with torch",
        "scoring the graph",
        "timing them in turns",
    ):
        assert step in said.err


def test_what_is_slower_or_worse_is_warned_of() -> None:
    better = {"accuracy": 0.9, "accuracy_before": 0.905, "latency_ms": 1.05, "latency_ms_before": 1.0, "bytes": 10}
    assert warnings_of("onnx", better, "accuracy", True) == []
    scattered = {**better, "latency_ms": 1.3, "latency_ms_range": [1.0, 1.6], "latency_ms_before_range": [0.9, 1.1]}
    assert warnings_of("onnx", scattered, "accuracy", True) == []
    worse = {"accuracy": 0.88, "accuracy_before": 0.905, "latency_ms": 1.3, "latency_ms_before": 1.0}
    slow, lost = warnings_of("onnx-int8", worse, "accuracy", True)
    assert slow.startswith("onnx-int8 is slower here than the network in torch: 1.3 ms an item against 1 ms")
    assert lost == "onnx-int8 loses 2.5 points of accuracy: 88.0 %, and 90.5 % before"
    assert is_loss("rmse", 10.0, 10.2, False) and not is_loss("rmse", 10.0, 10.05, False)
    assert told("onnx", {**better, "bytes_before": 20.0}, "accuracy").startswith(
        "onnx: size 10 B (20 B before), accuracy 90.0 %"
    )


def test_the_best_weights_on_validation_are_exported(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(tree_of("kd", "engine.eval_every=1", "train.steps=4", "train.lr=0.5"), folder, quiet=True)
    kept = load_tree(folder / "best")
    best = load_file(export(folder, "safetensors", tmp_path / "best", checkpoint="best") / "student.safetensors")
    assert best.keys() == kept["state"]["network"].keys()
    assert all(torch.equal(best[k], v) for k, v in kept["state"]["network"].items())
    last = load_file(export(folder, "safetensors", tmp_path / "last", checkpoint="last") / "student.safetensors")
    assert all(torch.equal(last[k], v) for k, v in load_file(folder / "student.safetensors").items())
    exports = json.loads((folder / "result.json").read_text())["exports"]
    name = f"safetensors (best on validation, step {kept['step']})"
    assert (
        exports[name]["weights"] == f"best on validation, step {kept['step']}"
        and "weights" not in exports["safetensors"]
    )
    with pytest.raises(ConfigError, match=r"--checkpoint: .*expected best, last, a number"):
        export(folder, "safetensors", tmp_path / "x", checkpoint=Path("worst"))
    with pytest.raises(ConfigError, match=r"--checkpoint: .*engine\.eval_every"):
        export(finished, "safetensors", tmp_path / "x", checkpoint="best")


@pytest.mark.parametrize(
    ("recipe", "form", "said"),
    [
        ("prolificdreamer", "onnx", "a scene, which is not written so"),
        pytest.param("fair-data", "hub", "a table, which is not written so", marks=pytest.mark.expensive),
    ],
)
def test_what_an_artifact_has_not_is_refused_in_one_line(recipe: str, form: str, said: str, tmp_path: Path) -> None:
    run(tree_of(recipe), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match=said):
        export(tmp_path / "run", form)
    assert not (tmp_path / "run" / "export").exists()


def test_a_format_that_no_student_of_the_task_has(finished: Path) -> None:
    with pytest.raises(ConfigError, match="is not written so"):
        export(finished, "csv")


def test_options_of_graphs_are_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--normalise: is about ONNX graphs"):
        export(tmp_path, "hub", normalise="outside")
    with pytest.raises(ConfigError, match="--teacher: is about ONNX graphs"):
        export(tmp_path, "safetensors", teacher=True)
    with pytest.raises(ConfigError, match="--input: is about ONNX graphs"):
        export(tmp_path, "safetensors", pixels="uint8")


def test_work_shows_that_it_goes_on_and_stops_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_PROGRESS", "plain")
    shown = io.StringIO()
    work = _Work(Progress(file=shown, rank=0))
    with work.doing("a long step"):
        time.sleep(1.7)
        assert "a long step  0:01" in shown.getvalue(), "a sign of life within two seconds"
    try:
        with pytest.raises(Stopped, match="type the same command again"), work.doing("scoring", 10) as each:
            each(5)
            interrupt.request(signal.SIGTERM)
            each(5)
    finally:
        interrupt.clear()


def test_numbers_come_in_the_units_of_the_data(tmp_path: Path) -> None:
    """A table's own rows, a text column among them, through the graph and its script."""
    pytest.importorskip("onnxscript")
    rng = np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 40)):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["size", "colour", "price"])
            for _ in range(count):
                size, colour = rng.normal(50, 10), rng.choice(["red", "blue"])
                out.writerow([f"{size:.3f}", colour, f"{1000 + 20 * size + 300 * (colour == 'red'):.3f}"])
    files = f"path: '{tmp_path / 'train.csv'}', test: '{tmp_path / 'test.csv'}'"
    data = f"task.data={{use: csv, {files}, label: price, features: [size, colour]}}"
    result = trained(
        tmp_path / "run",
        data,
        "student=mlp:[8]",
        "teacher=mlp:[8]",
        "train.steps=150",
        "teach.steps=1",
        "train.lr=0.05",
    )
    out = export(tmp_path / "run", "onnx", tmp_path / "onnx")
    about = json.loads((out / "student.json").read_text())
    assert about["preprocessing"]["columns"] == ["size", "colour=blue", "colour=red"]
    assert about["onnx"]["outputs"][0] == {"name": "numbers", "meaning": "numbers in the data's units"}
    with (tmp_path / "test.csv").open() as file:
        truth = [float(row["price"]) for row in csv.DictReader(file)]
    answers = [ast.literal_eval(line.split(" ", 1)[1])[0] for line in used(out, tmp_path / "test.csv")]
    rmse = float(np.sqrt(np.mean((np.array(answers) - truth) ** 2)))
    assert rmse == pytest.approx(result["metrics"]["student"]["rmse"], rel=1e-3) and rmse < 300


def test_a_network_that_fixes_its_batch_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.reshape(len(x), 64)) + torch.zeros(len(x), 10)

    task = Classification()
    task.load()
    with pytest.raises(ConfigError, match=r"fixes how many items go in at once \(x\).*x\.shape\[0\]"):
        write_onnx(NetworkArtifact(task, Built(Fixed())), tmp_path)
    assert not list(tmp_path.glob("*.onnx"))
