"""From somebody's own files to the answers, by the libraries that open exports alone: the report's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.export import export
from tests.export.files import jpegs, share_right, test_files, trained, used

STEPS = ("train.steps=40", "teach.steps=1", "task.size=24", "train.batch_size=32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jpegs(tmp_path_factory.mktemp("files") / "hues")


@pytest.fixture(scope="module")
def timm_run(data: Path, tmp_path_factory: pytest.TempPathFactory, shared_workspace: Path) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("timm") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        result = trained(folder, f"task.data=folder:{data}", "student=timm:test_resnet", *STEPS)
    return folder, result["metrics"]["student"]["accuracy"]


def test_timm_opens_it_by_its_own_loading_and_transform(
    data: Path, timm_run: tuple[Path, float], tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm")
    folder, accuracy = timm_run
    out = export(folder, "hub", tmp_path / "hub")
    config = timm.create_model(f"local-dir:{out}", pretrained=True).pretrained_cfg
    told = timm.data.resolve_data_config({}, pretrained_cfg=config)
    assert told["input_size"] == (3, 24, 24) and told["crop_pct"] == 1.0 and told["interpolation"] == "bilinear"
    files = test_files(data)
    found = share_right(used(out, *files), files)
    assert 0.4 < accuracy < 1.0, "the test says nothing at chance or at the ceiling"
    assert found == pytest.approx(accuracy, abs=1.5 / len(files))
    about = json.loads((out / "student.json").read_text())["preprocessing"]
    assert about["resize"] == about["crop"] == [24, 24] and about["mode"] == "RGB" and about["input"] == [3, 24, 24]


@pytest.mark.parametrize(
    ("settings", "dtype"), [({}, "float"), ({"pixels": "uint8"}, "uint8"), ({"normalise": "outside"}, "float")]
)
def test_onnxruntime_from_jpeg_files(
    data: Path, timm_run: tuple[Path, float], settings: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, accuracy = timm_run
    out = export(folder, "onnx", tmp_path / "onnx", **settings)
    session = runtime.InferenceSession(str(out / "student.onnx"))
    assert session.get_inputs()[0].type == f"tensor({dtype})"
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["labels"]) == ["amber", "moss", "slate", "wine"]
    assert said["limbeck.normalise"] == settings.get("normalise", "inside")
    assert json.loads(said["limbeck.student"])["preprocessing"]["resize"] == [24, 24]
    files = test_files(data)
    assert share_right(used(out, *files), files) == pytest.approx(accuracy, abs=1.5 / len(files))
