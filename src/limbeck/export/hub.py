"""The folder that a student's library reads: timm, transformers, diffusers; and the card that goes with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from limbeck.errors import ConfigError
from limbeck.export import use
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.storage.store import atomic_write


def library_of(folder: Path) -> str:
    """Which library opens a written folder: ``timm``, ``transformers``, ``diffusers``, or ``limbeck``."""
    if (folder / "model_index.json").is_file():
        return "diffusers"
    path = folder / "config.json"
    if not path.is_file():
        return "limbeck"
    config = json.loads(path.read_text(encoding="utf-8"))
    if "pretrained_cfg" in config:
        return "timm"
    return "diffusers" if "_class_name" in config else "transformers"


def is_timm(module: Any) -> bool:
    """Whether a network is one of timm's, and not put together here."""
    return hasattr(module, "pretrained_cfg") and type(module).__module__.startswith("timm.")


def write_hub(artifact: Artifact, out: Path) -> str:
    """Write the folder; returns the name of the library that opens it."""
    if not isinstance(artifact, NetworkArtifact):
        raise ConfigError("--format", f"a {artifact.kind} has no library's folder", given="hub")
    module = artifact.built.module
    out.mkdir(parents=True, exist_ok=True)
    about = artifact.about()
    if is_timm(module):
        _write_timm(artifact, out, about)
        use.write_about(out, about)
        return "timm"
    artifact.save(out)
    if (out / "sampler.json").is_file():
        if _unconditional(module):
            _write_pipeline(out, bool(getattr(artifact, "clip", False)))
            return "diffusers"
        return "limbeck"
    inside = out / "student"
    if (inside / "config.json").is_file():  # the library opens what lies at the top
        for path in inside.iterdir():
            if path.name == "manifest.json":
                continue
            target = out / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
        shutil.rmtree(inside)
        if "tokenizer" in about["preprocessing"]:
            about["preprocessing"]["tokenizer"]["folder"] = "."
        use.write_about(out, about)
    return library_of(out)


# ----------------------------------------------------------------------------------------------------------------- timm
def _write_timm(artifact: NetworkArtifact, out: Path, about: dict[str, Any]) -> None:
    """timm's layout, with the preprocessing that the network was trained with in place of the original weights'."""
    from timm.models import save_for_hf

    built = artifact.built
    module: Any = built.module
    save_for_hf(module, str(out), model_config={}, safe_serialization=True)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    said = about["preprocessing"]
    options = dict(getattr(built.model, "options", {}) or {})
    given = {k: v for k, v in options.items() if k != "num_classes"}
    if given:
        config["model_args"] = {**config.get("model_args", {}), **given}
    cfg = config["pretrained_cfg"]
    for gone in ("test_input_size", "test_crop_pct", "min_input_size", "tag", "label_offset", "custom_load"):
        cfg.pop(gone, None)
    if said["kind"] == "image":
        channels = said["input"][0]
        mean, std = ((said[n] * channels)[:channels] for n in ("mean", "std"))
        cfg |= {
            "input_size": said["input"],
            "interpolation": said["interpolation"],
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": mean or [0.0] * channels,
            "std": std or [1.0] * channels,
        }
    cfg["num_classes"] = config["num_classes"]
    if built.labels:
        config["label_names"] = cfg["label_names"] = list(built.labels)
    atomic_write(out / "config.json", json.dumps(config, indent=2).encode())


# ------------------------------------------------------------------------------------------------------------ diffusers
def _unconditional(module: Any) -> bool:
    """Whether diffusers' pipelines of noise alone draw with a network: no classes, no words, no guidance input."""
    net = getattr(module, "net", None)
    config: Any = getattr(net, "config", None)
    plain = type(net).__name__ == "UNet2DModel" and not getattr(config, "num_class_embeds", None)
    return plain and not getattr(module, "guided", False) and getattr(config, "class_embed_type", None) is None


def _write_pipeline(out: Path, clip: bool) -> None:
    """``model_index.json`` with ``unet/`` and ``scheduler/``, as `DDIMPipeline` lies on the hub."""
    import diffusers

    inside = out / "student"
    shutil.rmtree(out / "unet", ignore_errors=True)
    shutil.rmtree(out / "scheduler", ignore_errors=True)
    inside.replace(out / "unet")
    (out / "unet" / "scheduler").replace(out / "scheduler")
    path = out / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(path.read_text(encoding="utf-8"))
    scheduler |= {"clip_sample": clip, "clip_sample_range": 1.0}
    atomic_write(path, json.dumps(scheduler, indent=2).encode())
    index = {
        "_class_name": "DDIMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    atomic_write(out / "model_index.json", json.dumps(index, indent=2).encode())


__all__ = ["is_timm", "library_of", "write_hub"]
