"""Exports, each opened again by the library it was written for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

from limbeck.errors import ConfigError
from limbeck.export import export
from limbeck.functional.zca import ZCA
from limbeck.run import run
from limbeck.run.restoring import Restored
from limbeck.tasks.synthetic_set import SetArtifact, Space
from tests.tiny import Tiny, tiny, tree_of


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
    assert abouts[1]["pixels"] == abouts[2]["pixels"]
    assert abouts[1]["folders"] == [str(i) for i in range(10)]
    read = ImageFolder(str(images))
    assert len(read) == 10
    for path, i in read.samples:
        name = Path(path).relative_to(images).as_posix()
        assert abouts[1]["folders"][abouts[1]["files"][name]["label"]] == read.classes[i]


def test_soft_labels_go_with_the_images(tmp_path: Path) -> None:
    class Task:
        labels: ClassVar[list[str]] = ["b", "a"]
        per_class, zca, space, strategy = 1, False, Space([0.5], [0.25]), ""

    soft = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    made = SetArtifact(Task(), torch.zeros(2, 1, 4, 4), soft, torch.tensor([0, 1]), None)  # type: ignore[arg-type]
    written = made.export("images", tmp_path)
    about = json.loads((tmp_path / "student.json").read_text())
    assert written[-1] == tmp_path / "student.json" and about["step_size"] is None
    assert about["files"]["b/00000.png"] == {"label": 0, "soft_label": [0.75, 0.25]}
    assert about["folders"] == ["b", "a"] and about["space"] == {"mean": [0.5], "std": [0.25], "zca": False}


def made_set(folder: Path, soft: bool, *overrides: str) -> tuple[Tiny, SetArtifact, torch.Tensor]:
    """A run that has not started, and a set for it of whose pixels a quarter lie outside of [0, 1]."""
    made = tiny("tesla", folder, *overrides)
    task: Any = made.bench.task
    pixels = torch.linspace(0, 1, 10 * 64).reshape(10, 1, 8, 8)
    pixels[:, :, :2] += 3.0
    ids = torch.arange(10)
    labels = torch.eye(10) * 0.5 + 0.05 if soft else ids
    return made, SetArtifact(task, task.space.enter(pixels), labels, ids, 0.02), pixels


@pytest.mark.parametrize("form", ["images", "parquet", "safetensors"])
@pytest.mark.parametrize("soft", [False, True])
def test_a_set_is_scored_as_it_lies_there(
    form: str, soft: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What 8 bits cannot hold is gone from what is scored, and the message offers the format that holds it."""
    pytest.importorskip("pyarrow")
    from limbeck.evaluators.fresh import Fresh
    from limbeck.export import _scored

    started, made, pixels = made_set(tmp_path, soft)
    task: Any = started.bench.task
    judged: list[SetArtifact] = []

    def score(self: Fresh, artifact: Any, bench: Any, split: str = "test") -> dict[str, float]:
        judged.append(artifact)
        return {"accuracy": 0.778 if artifact is made else 0.5}

    monkeypatch.setattr(Fresh, "score", score)
    made.export(form, tmp_path / "out")
    facts = _scored(Restored(started.recipe, started.bench, made, "", 0, True), form, tmp_path / "out", None)
    if form == "safetensors":
        assert judged == [] and facts == {"note": "read back: every value is as it was made"}
        return
    own, read = judged
    assert own is made
    held = (255 * pixels.clamp(0, 1)).round() / 255
    torch.testing.assert_close(task.space.pixels(read.images), held, rtol=0, atol=1e-5)
    torch.testing.assert_close(read.labels, made.labels)
    assert torch.equal(read.ids, made.ids) and read.lr == 0.02
    assert facts["accuracy"] == 0.5 and facts["accuracy_as_made"] == 0.778
    assert facts["clipped"] == pytest.approx(0.25) and facts["beyond"] == pytest.approx(float(pixels.max()) - 1)
    said = facts["note"]
    assert said.startswith("scored as it lies there: accuracy 50.0 %, as it was made 77.8 %; 25 % of the pixel values")
    assert said.endswith("--format safetensors holds every value")


def test_values_that_fit_are_rounded_and_not_called_clipped(tmp_path: Path) -> None:
    started, made, pixels = made_set(tmp_path, soft=False)
    task: Any = started.bench.task
    made.images = task.space.enter(pixels.clamp(-0.001, 1.001))  # half a level is 0.002
    assert made.lost("images") == {"clipped": 0.0, "beyond": pytest.approx(0.001, abs=1e-5)}
    assert made.lost("safetensors") == {}


def test_both_numbers_reach_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from limbeck.commands.export import main

    run(tree_of("tesla"), tmp_path / "run", quiet=True)
    assert main([str(tmp_path / "run"), "--format", "images"]) == 0
    said = capsys.readouterr().err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    facts = result["exports"]["images"]
    assert facts["accuracy_as_made"] == result["metrics"]["student"]["accuracy"]
    assert facts["note"] in said and 0 <= facts["accuracy"] <= 1
    assert "accuracy as made" in (tmp_path / "run" / "report.html").read_text()


def test_class_names_survive_parquet(tmp_path: Path) -> None:
    """As the datasets library notes them, and as limbeck reads them."""
    pytest.importorskip("pyarrow")
    from limbeck.data.tables import Parquet

    class Task:
        labels: ClassVar[list[str]] = ["10", "9", "rouge"]
        per_class, zca, space, strategy = 1, False, Space([0.5] * 3, [0.25] * 3), ""

    ids = torch.tensor([2, 0, 1])
    soft = torch.tensor([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    SetArtifact(Task(), torch.zeros(3, 3, 4, 4), soft, ids, None).export("parquet", tmp_path)  # type: ignore[arg-type]
    splits = Parquet(str(tmp_path / "data.parquet"), label="label").read()
    assert splits.labels == ["10", "9", "rouge"] and splits.train.y.tolist() == [2, 0, 1]
    assert splits.train.shape == (3, 4, 4)
    datasets = pytest.importorskip("datasets")
    features = datasets.Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=str(tmp_path / "cache")).features
    assert features["label"].names == ["10", "9", "rouge"] and type(features["image"]).__name__ == "Image"


def test_a_whitened_set_brings_its_transform(tmp_path: Path) -> None:
    started, made, _ = made_set(tmp_path, False, "task.zca=true")
    task: Any = started.bench.task
    for form in ("images", "safetensors"):
        made.export(form, tmp_path / form)
        tensors = load_file(tmp_path / form / "zca.safetensors")
        x = torch.rand(2, 1, 8, 8)
        torch.testing.assert_close(ZCA(**tensors).apply(x), task.space.enter(x))


def test_pictures_of_two_channels_are_refused_by_formats_of_png(tmp_path: Path) -> None:
    _, made, _ = made_set(tmp_path, soft=False)
    made.images = made.images.repeat(1, 2, 1, 1)
    with pytest.raises(ConfigError, match=r"1, 3 or 4 channels, and these have 2.*safetensors"):
        made.export("images", tmp_path / "out")
    assert not (tmp_path / "out").exists()
