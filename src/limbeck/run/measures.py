"""What a result is told with: size, speed and memory of networks, versions, hardware."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import limbeck
from limbeck.engine import distributed as dist
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built
from limbeck.grammar.task import Task
from limbeck.networks.costs import milliseconds, operations


def sizes(built: Built | None) -> dict[str, float]:
    """Parameters and bytes of a network."""
    if built is None or not isinstance(built.module, nn.Module):
        return {}
    return NetworkArtifact(None, built).size()  # type: ignore[arg-type]


def latency(task: Task, thing: Any, repeats: int = 20) -> dict[str, float]:
    """Median milliseconds of a forward pass for one item, and billions of operations; empty for what is no network."""
    built = thing.built if isinstance(thing, NetworkArtifact) else thing
    if not isinstance(built, Built) or not isinstance(built.module, nn.Module):
        return {}
    module = built.module.eval()
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in task.example(1).items()}
    batch = built.contract.feed(batch)

    def call() -> Any:
        return task.feed(module, batch)

    return {"one_item": milliseconds(call, device, repeats), "gflops": operations(call) / 1e9}


def peak_memory() -> float:
    """The largest memory this process held so far, in MB."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"limbeck": limbeck.__version__, "python": platform.python_version()}
    if commit():
        found["commit"] = commit()
    for name in ("torch", "torchvision", "numpy", "timm", "transformers", "diffusers", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def commit() -> str:
    """The commit that limbeck is run from, with ``+`` behind it where its sources have been changed since; empty for an
    installed package, and where git cannot be asked."""
    package = Path(limbeck.__file__).resolve().parent
    root = package.parents[1]
    if not ((root / ".git").exists() and (root / "pyproject.toml").is_file()):
        return ""
    try:
        asked = [["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", str(package)]]
        said = [
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            for words in asked
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return said[0].strip() + ("+" if said[1].strip() else "")


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's model name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine, as far as it matters for a figure."""
    found: dict[str, Any] = {
        "device": str(device),
        "machine": platform.machine(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "processes": dist.world(),
    }
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found
