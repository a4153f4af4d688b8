"""Prompts alone: a text-to-image teacher becomes a generator of one step, which a pipeline of diffusers runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import ConfigError, DataError
from limbeck.models.diffusers_denoiser import Diffusers, small_config
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run import run_recipe
from limbeck.tasks.prompts import Prompts
from limbeck.tasks.sampler import SamplerArtifact

diffusers = pytest.importorskip("diffusers")

SHAPE, LENGTH, WIDTH = (4, 8, 8), 3, 16


def write(folder: Path, width: int = WIDTH, prediction: str = "epsilon", count: int = 9) -> None:
    """A random text-to-image network of a few thousand weights with its scheduler, and embeddings of prompts."""
    rng = np.random.default_rng(0)
    np.save(folder / "prompts.npy", rng.normal(size=(count, LENGTH, WIDTH)).astype(np.float16))
    np.save(folder / "null.npy", rng.normal(size=(LENGTH, WIDTH)).astype(np.float32))
    torch.manual_seed(0)
    config = small_config("UNet2DConditionModel", SHAPE, 0)
    config |= {
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "cross_attention_dim": width,
        "attention_head_dim": 2,
    }
    diffusers.UNet2DConditionModel(**config).save_pretrained(folder / "pipe" / "unet")
    schedule: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    diffusers.DDPMScheduler(**schedule, prediction_type=prediction).save_pretrained(folder / "pipe" / "scheduler")


def task_of(folder: Path, **more: Any) -> Prompts:
    return Prompts(str(folder / "prompts.npy"), **{"null": str(folder / "null.npy"), "shape": list(SHAPE), **more})


def test_a_pipeline_of_diffusers_runs_the_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "workspace"))
    write(tmp_path)
    net = f"{{use: diffusers, name: '{tmp_path / 'pipe'}', architecture: UNet2DConditionModel, guidance: none, check: off}}"
    prompts = f"path: '{tmp_path / 'prompts.npy'}', null: '{tmp_path / 'null.npy'}', shape: [4, 8, 8]"
    overrides = [
        f"task={{use: prompts, {prompts}}}",
        "evaluator={use: prompted, guidance: [3.5], steps: [1], samples: 4, times_more: 2, reference_steps: 2, metric: fid}",
        f"teacher={net}",
        f"student={net}",
        "method={use: swiftbrush, guidance_scale: 4.5, rank: 2, targets: [to_q, to_v], variant: released}",
        "train={steps: 2, batch_size: 2, lr: 0.001}",
        "engine.device=cpu",
        "loggers=[]",
    ]
    tree = check(load_tree("swiftbrush", overrides, tiny=True))
    result, made = run_recipe(build(tree), tree, tmp_path / "run", quiet=True)
    assert {"fid", "endpoint_mse"} <= set(result["metrics"]["student"]) and "teacher" in result["metrics"]
    assert isinstance(made, SamplerArtifact)

    z = torch.randn(2, *SHAPE)
    asked = torch.from_numpy(np.load(tmp_path / "prompts.npy")[:2].astype(np.float32))
    own = SamplerArtifact.load(tmp_path / "run").sample(2, asked, 3.5, z=z)
    assert torch.allclose(own, made.sample(2, asked, 3.5, z=z), atol=1e-5) and float(own.abs().max()) > 1
    place = tmp_path / "run" / "student"
    pipe = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        text_encoder=None,
        tokenizer=None,
        unet=diffusers.UNet2DConditionModel.from_pretrained(place),
        scheduler=diffusers.DDIMScheduler.from_pretrained(place / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    more: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 0.0, "output_type": "latent"}
    theirs = pipe(prompt_embeds=asked, latents=z, height=8 * 1, width=8 * 1, **more).images
    assert torch.allclose(theirs, own, atol=2e-3)
    with pytest.raises(ConfigError, match="embeddings of prompts"):
        made.sample(2, [1, 2], 3.5)


def test_what_a_text_encoder_cannot_have_made_is_refused(tmp_path: Path) -> None:
    write(tmp_path, width=24)
    model = Diffusers(str(tmp_path / "pipe"), "UNet2DConditionModel", guidance="none")
    with pytest.raises(ConfigError, match="width 24, and those of the prompts have 16"):
        model.build(task_of(tmp_path))
    np.save(tmp_path / "null.npy", np.zeros((LENGTH, 5), dtype=np.float32))
    with pytest.raises(DataError, match="same text encoder"):
        task_of(tmp_path).load()
    np.save(tmp_path / "prompts.npy", np.zeros((0, LENGTH, WIDTH), dtype=np.float32))
    with pytest.raises(DataError, match="too few prompts"):
        task_of(tmp_path).load()
    np.save(tmp_path / "prompts.npy", np.zeros((9, WIDTH)))
    with pytest.raises(DataError, match="tokens"):
        task_of(tmp_path).load()
    (tmp_path / "prompts.txt").write_text("\n \n")
    with pytest.raises(DataError, match="no prompts"):
        Prompts(str(tmp_path / "prompts.txt")).load()
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na bird\n")
    with pytest.raises(ConfigError, match=r"task\.encoder"):
        Prompts(str(tmp_path / "prompts.txt")).load()
    with pytest.raises(ConfigError, match=r"task\.null"):
        Prompts(str(tmp_path / "prompts.npy")).load()
    with pytest.raises(DataError, match="no such file"):
        Prompts(str(tmp_path / "nothing.npy")).load()


def test_a_teacher_must_come_ready(tmp_path: Path) -> None:
    write(tmp_path)
    task = task_of(tmp_path)
    task.load()
    made = Diffusers("", "UNet2DConditionModel", {"block_out_channels": (8, 8), "norm_num_groups": 4}).build(task)
    with pytest.raises(ConfigError, match="teach no teacher"):
        task.check_teacher(made)
