"""Vision transformers by recipe: a masked autoencoder of transformers answers alike; weights found, interpolated, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import CheckpointCorrupt, ConfigError, ShapeError
from limbeck.functional.pretraining import random_masking
from limbeck.models.vit import Vit, VitMae, interpolated
from limbeck.networks.masked_autoencoder import MaskedAutoencoder
from limbeck.networks.vision_transformer import sine_cosine_positions
from limbeck.storage.store import save_state_dict
from limbeck.tasks.classification import Classification
from tests.tiny import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=2,
        num_channels=1,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    place = tmp_path_factory.mktemp("mae")
    transformers.ViTMAEForPreTraining(config).save_pretrained(place)
    return place


def test_a_masked_autoencoder_of_transformers_answers_alike(folder: Path) -> None:
    import transformers

    theirs: Any = transformers.ViTMAEForPreTraining.from_pretrained(folder).eval()
    task = Classification()
    task.load()
    ours = VitMae(str(folder)).autoencoder(task.needs).eval()
    x, noise = torch.randn(3, 1, 8, 8), torch.rand(3, 16)
    masking = random_masking(noise, 0.75)
    with torch.no_grad():
        states: list[torch.Tensor] = []
        for layer in theirs.decoder.decoder_layers:
            layer.register_forward_hook(lambda m, i, o: states.append(o[0] if isinstance(o, tuple) else o))
        out = theirs(x, noise=noise)
    assert torch.equal(out.mask.bool(), masking.hidden)
    torch.testing.assert_close(ours(x, masking), out.logits, atol=1e-5, rtol=1e-5)
    for layer in (1, 2):
        torch.testing.assert_close(ours.hidden(x, masking, layer), states[layer - 1], atol=1e-5, rtol=1e-5)


def test_it_teaches_by_its_folder(folder: Path, tmp_path: Path) -> None:
    made = tiny("g2sd", tmp_path, "teacher={use: vit-mae, name: " + str(folder) + "}", "method.target_layer=1")
    assert [s.name for s in made.method.stages()] == ["tune", "generic", "specific"]  # nothing is left to pre-train
    assert any("loaded all" in n for n in made.bench.built["teacher"].told)
    made.run()
    drawn = tiny("g2sd", tmp_path / "drawn", "teacher={use: vit-mae, name: " + str(folder) + ", pretrained: false}")
    assert drawn.method.stages()[0].name == "pretrain"


def test_a_fine_tuned_teacher_comes_beside_its_masked_autoencoder(folder: Path, tmp_path: Path) -> None:
    made = tiny(
        "g2sd",
        tmp_path,
        "teacher={use: vit-mae, name: " + str(folder) + ", pretrained: false}",
        "participants.mae={use: vit-mae, name: " + str(folder) + "}",
    )
    assert [s.name for s in made.method.stages()] == ["tune", "generic", "specific"]
    with pytest.raises(ConfigError, match="another shape"):
        tiny("g2sd", tmp_path / "x", "participants.mae={use: vit-mae, name: " + str(folder) + "}", "teacher.width=32")


def test_checkpoints_without_decoder_are_refused(folder: Path, tmp_path: Path) -> None:
    import transformers

    net = transformers.ViTMAEForPreTraining.from_pretrained(folder)
    net.vit.save_pretrained(tmp_path / "bare")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=2
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "tuned")
    for name, why in (("bare", "no decoder"), ("tuned", "no masked autoencoder")):
        with pytest.raises(ConfigError, match=f"(?s){why}.*encoder and decoder.*tuned from"):
            tiny("g2sd", tmp_path / "run", "teacher={use: vit-mae, name: " + str(tmp_path / name) + "}")
    with pytest.raises(ConfigError, match="vit-mae:"):
        tiny("g2sd", tmp_path / "run", f"teacher.weights={folder}")
    save_state_dict(tmp_path / "encoder.safetensors", Vit(2, 16, 2, 2).encoder(_needs()).state_dict())
    with pytest.raises(ConfigError, match="no decoder"):
        tiny("g2sd", tmp_path / "run", f"teacher.weights={tmp_path / 'encoder.safetensors'}")


def _needs() -> Any:
    task = Classification()
    task.load()
    return task.needs


def test_weights_of_mae_s_own_files_begin_an_encoder_or_a_ready_teacher(tmp_path: Path) -> None:
    net = MaskedAutoencoder(8, 2, 1, 16, 2, 2, 8, 2, 1, eps=1e-6)
    torch.save({"model": net.state_dict()}, tmp_path / "mae.pth")
    made = tiny("g2sd", tmp_path / "run", f"teacher.weights={tmp_path / 'mae.pth'}", "teacher.decoder_depth=1")
    assert made.method.stages()[0].name == "tune"
    mae = made.method.roles["mae"].module
    assert len(mae.decoder_blocks) == 2 and torch.equal(mae.mask_token, net.mask_token)
    small = Vit(2, 16, 2, 2, weights=str(tmp_path / "mae.pth"))
    task = Classification()
    built = small.build(task)
    assert torch.equal(built.module.encoder.cls_token, net.cls_token) and not small.trained
    assert "began with" in built.told[0]
    with pytest.raises(ShapeError):
        Vit(2, 32, 2, 2, weights=str(tmp_path / "mae.pth")).build(task)
    with pytest.raises(CheckpointCorrupt, match=r"missing.*blocks\.2"):
        Vit(2, 16, 3, 2, weights=str(tmp_path / "mae.pth")).build(task)
    save_state_dict(tmp_path / "other.safetensors", {"fc.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointCorrupt, match="no vision transformer"):
        Vit(2, 16, 2, 2, weights=str(tmp_path / "other.safetensors")).build(task)


def test_positions_are_interpolated() -> None:
    same = sine_cosine_positions(16, 4)
    torch.testing.assert_close(interpolated(same, (4, 4)), same)
    grown = interpolated(same, (8, 4))
    assert grown.shape == (1, 33, 16) and torch.equal(grown[:, :1], same[:, :1])
    with pytest.raises(CheckpointCorrupt, match="no square"):
        interpolated(torch.zeros(1, 8, 4), (2, 2))
