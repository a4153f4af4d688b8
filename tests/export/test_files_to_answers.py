"""From somebody's own files to the answers, by the libraries that open exports alone: the report's numbers."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import limbeck
from limbeck.export import export
from tests.export.files import jpegs, share_right, test_files, trained, used

STEPS = ("train.steps=30", "teach.steps=1", "task.size=24", "train.batch_size=32")


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
    ("settings", "dtype"),
    [
        ({}, "float"),
        pytest.param({"pixels": "uint8"}, "uint8", marks=pytest.mark.expensive),
        pytest.param({"normalise": "outside"}, "float", marks=pytest.mark.expensive),
    ],
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


@pytest.mark.expensive
def test_torchvision_opens_its_own_network(data: Path, tmp_path: Path) -> None:
    """With Pillow and torchvision alone, the weights read by safetensors."""
    folder = tmp_path / "run"
    result = trained(folder, f"task.data=folder:{data}", "student=torchvision:squeezenet1_1", *STEPS)
    out = export(folder, "safetensors", tmp_path / "out")
    files = test_files(data)
    assert "limbeck" not in (out / "use.py").read_text()
    accuracy = result["metrics"]["student"]["accuracy"]
    assert share_right(used(out, *files), files) == pytest.approx(accuracy, abs=1.5 / len(files))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=24,
        patch_size=8,
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_transformers_pipeline_reads_images(data: Path, vit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    student = (f"student=hf:{vit}", "student.pretrained=false")
    result = trained(folder, f"task.data=folder:{data}", *student, *STEPS, "train.lr=0.003")
    accuracy = result["metrics"]["student"]["accuracy"]
    assert 0.4 < accuracy < 1.0, "the test says nothing at chance or at the ceiling"
    out = export(folder, "hub", tmp_path / "hub")
    assert (out / "config.json").is_file() and not (out / "student").exists()
    files = test_files(data)
    assert share_right(used(out, *files), files) == pytest.approx(accuracy, abs=1.5 / len(files))
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card and "pipeline_tag: image-classification" in card


TEXTS = {"sea": "wave tide salt reef gull sail", "wood": "oak fern moss bark root owl"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two kinds whose first words tell which; what comes after is of both."""
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("texts")
    words = {k: v.split() for k, v in TEXTS.items()}
    every = " ".join(TEXTS.values()).split()
    for split, count in (("train", 60), ("test", 40)):
        lines = []
        for i in range(count):
            label = list(words)[i % 2]
            own = [rng.choice(words[label]) for _ in range(4)] + [rng.choice(every) for _ in range(6)]
            lines.append(json.dumps({"text": " ".join(own), "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def text_run(texts: Path, tmp_path_factory: pytest.TempPathFactory, shared_workspace: Path) -> tuple[Path, float]:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("text") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        source = (f"task={{use: text-classes, data: 'labelled-text:{texts}', length: 12, vocab_size: 320}}",)
        models = ("student={use: encoder, layers: 1, width: 16}", "teacher={use: encoder, layers: 1, width: 16}")
        result = trained(folder, *source, *models, "train.steps=60", "teach.steps=1", "train.lr=0.01")
    return folder, result["metrics"]["student"]["accuracy"]


@pytest.mark.parametrize("form", ["hub", pytest.param("onnx", marks=pytest.mark.expensive)])
def test_texts_reach_the_same_classes(form: str, texts: Path, text_run: tuple[Path, float], tmp_path: Path) -> None:
    """By transformers' pipeline, and by onnxruntime with transformers' tokenizer."""
    folder, accuracy = text_run
    if form == "onnx":
        pytest.importorskip("onnxscript")
    out = export(folder, form, tmp_path / form)
    rows = [json.loads(line) for line in (texts / "test.jsonl").read_text().splitlines()]
    lines = used(out, *(row["text"] for row in rows))
    told = [
        re.findall(r"\b(sea|wood)\b", line.removeprefix(row["text"]))[0] for line, row in zip(lines, rows, strict=True)
    ]
    found = sum(t == row["label"] for t, row in zip(told, rows, strict=True)) / len(rows)
    where = next(out.rglob("tokenizer_config.json"))
    assert json.loads(where.read_text())["model_max_length"] == 12
    assert accuracy > 0.6 and found == pytest.approx(accuracy, abs=1.5 / len(rows))


def test_sentence_transformers_loads_an_encoder(text_run: tuple[Path, float], tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    out = export(text_run[0], "hub", tmp_path / "hub")
    assert library.SentenceTransformer(str(out)).encode(["oak moss"]).shape == (1, 16)


@pytest.mark.expensive
def test_a_pipeline_of_diffusers_draws_what_the_sampler_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "workspace"))
    net = "{use: diffusers, guidance: none, config: {num_class_embeds: null, block_out_channels: [8, 8], norm_num_groups: 4}}"
    settings = (f"teacher={net}", f"student={net}", "method.guidance_scale=1", "method.fake=full")
    trained(tmp_path / "run", *settings, "task.schedule=ddpm", "task.clip=true", recipe="swiftbrush")
    out = export(tmp_path / "run", "hub", tmp_path / "hub")
    pipeline = diffusers.DDIMPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(batch_size=3, num_inference_steps=1, generator=torch.manual_seed(5), output_type="np").images
    z = torch.randn(3, 1, 8, 8, generator=torch.manual_seed(5))
    want = limbeck.load(tmp_path / "run").made.sample(3, z=z, steps=1)
    np.testing.assert_allclose(made.transpose(0, 3, 1, 2), want.numpy(), atol=1e-4)
    monkeypatch.chdir(tmp_path)
    assert used(out, "2") == ["0.png", "1.png"]
    with Image.open(tmp_path / "1.png") as image:
        assert image.size == (8, 8)
    assert "library_name: diffusers" in (out / "README.md").read_text()
