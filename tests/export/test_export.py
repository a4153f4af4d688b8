"""Exports, each opened again by the library it was written for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

from limbeck.errors import ConfigError
from limbeck.export import export
from limbeck.run import run
from limbeck.tasks.condensation import SetArtifact, Space
from tests.tiny import tree_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shared_workspace: Path) -> Path:
    """A finished tiny KD run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        folder = tmp_path_factory.mktemp("export") / "run"
        run(tree_of("kd"), folder, quiet=True)
    return folder


def test_onnx_runs_elsewhere_with_any_batch(finished: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = export(finished, "onnx", tmp_path / "onnx")
    about = json.loads((out / "student.json").read_text())
    assert about["labels"] == [str(i) for i in range(10)]
    session = runtime.InferenceSession(str(out / "student.onnx"), providers=["CPUExecutionProvider"])
    for n in (1, 7):
        x = np.zeros((n, *about["task"]["input"]), np.float32)
        assert session.run(None, {"x": x})[0].shape == (n, 10)
    facts = json.loads((finished / "result.json").read_text())["exports"]["onnx"]
    student = json.loads((finished / "result.json").read_text())["metrics"]["student"]
    assert facts["largest_error"] < 1e-4 and facts["bytes"] > 0 and facts["latency_ms"] > 0
    assert facts["accuracy"] == pytest.approx(student["accuracy"], abs=0.005)


def test_int8_is_calibrated_and_judged(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = export(finished, "onnx-int8", tmp_path / "int8")
    assert (out / "student.int8.onnx").is_file() and not (out / "student.onnx").exists()
    facts = json.loads((finished / "result.json").read_text())["exports"]["onnx-int8"]
    student = json.loads((finished / "result.json").read_text())["metrics"]["student"]
    assert abs(facts["accuracy"] - student["accuracy"]) < 0.1


def test_safetensors_loads_without_limbeck(finished: Path, tmp_path: Path) -> None:
    out = export(finished, "safetensors", tmp_path / "st")
    state = load_file(out / "student.safetensors")
    assert all(isinstance(v, torch.Tensor) for v in state.values())
    assert (
        sum(v.numel() for v in state.values())
        == json.loads((finished / "result.json").read_text())["sizes"]["student"]["parameters"]
    )


def test_a_checkpoint_in_the_middle_exports(tmp_path: Path) -> None:
    from tests.tiny import tiny

    folder = tmp_path / "run"
    folder.mkdir()
    from limbeck.recipe.recipe import dump

    (folder / "config.yaml").write_text(dump(tree_of("kd", "engine.save_every=2", "engine.keep=9")))
    tiny("kd", folder, "engine.save_every=2", "engine.keep=9").run()
    middle = export(folder, "safetensors", tmp_path / "middle", checkpoint=2)
    last = export(folder, "safetensors", tmp_path / "last")
    a, b = (load_file(p / "student.safetensors") for p in (middle, last))
    assert set(a) == set(b) and any(not torch.equal(a[k], b[k]) for k in a)


def test_what_cannot_be_written_is_said(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'onnx'"):
        export(finished, "onxx", tmp_path)
    with pytest.raises(ConfigError, match=r"not written so .got 'images'"):
        export(finished, "images", tmp_path)
    with pytest.raises(ConfigError, match="--checkpoint"):
        export(finished, "safetensors", tmp_path / "x", checkpoint=999)


def test_a_synthetic_set_is_an_image_folder_and_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run(tree_of("tesla"), tmp_path / "run", quiet=True)
    images = export(tmp_path / "run", "images", tmp_path / "images")
    assert sorted(p.name for p in images.iterdir() if p.is_dir()) == [str(i) for i in range(10)]
    table = parquet.read_table(export(tmp_path / "run", "parquet", tmp_path / "parquet") / "data.parquet")
    assert table.num_rows == 10 and set(table.column_names) >= {"image", "label"}
    # what the files cannot hold lies beside each
    plain = export(tmp_path / "run", "safetensors", tmp_path / "plain")
    abouts = [json.loads((p / "student.json").read_text()) for p in (plain, images, tmp_path / "parquet")]
    shared = ("labels", "per_class", "step_size", "space")
    assert all(about[key] == abouts[0][key] for about in abouts for key in shared)
    assert abouts[0]["labels"] == [str(i) for i in range(10)] and abouts[0]["per_class"] == 1
    assert abouts[1]["step_size"] == pytest.approx(float(load_file(plain / "student.safetensors")["step_size"]))
    assert abouts[1]["pixels"] == abouts[2]["pixels"] == {"bits": 8, "range": [0, 1], "clipped": True}
    assert abouts[1]["folders"] == [str(i) for i in range(10)]
    read = ImageFolder(str(images))
    assert len(read) == 10
    for path, i in read.samples:
        name = Path(path).relative_to(images).as_posix()
        assert abouts[1]["folders"][abouts[1]["files"][name]["label"]] == read.classes[i]


def test_soft_labels_go_with_the_images(tmp_path: Path) -> None:
    class Task:
        labels: ClassVar[list[str]] = ["b", "a"]
        per_class, zca, space = 1, False, Space([0.5], [0.25])

    soft = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    made = SetArtifact(Task(), torch.zeros(2, 1, 4, 4), soft, torch.tensor([0, 1]), None)  # type: ignore[arg-type]
    written = made.export("images", tmp_path)
    about = json.loads((tmp_path / "student.json").read_text())
    assert written[-1] == tmp_path / "student.json" and about["step_size"] is None
    assert about["files"]["b/00000.png"] == {"label": 0, "soft_label": [0.75, 0.25]}
    assert about["folders"] == ["b", "a"] and about["space"] == {"mean": [0.5], "std": [0.25], "zca": False}
