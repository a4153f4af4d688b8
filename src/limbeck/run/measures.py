"""What a result is told with: size, speed and memory of networks, versions, hardware."""

from __future__ import annotations

import hashlib
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
from limbeck.grammar.signal import evaluating
from limbeck.grammar.task import Task
from limbeck.networks.costs import Timing, in_turns, operations


def sizes(built: Built | None) -> dict[str, float]:
    """Parameters and bytes of a network."""
    if built is None or not isinstance(built.module, nn.Module):
        return {}
    return NetworkArtifact(None, built).size()  # type: ignore[arg-type]


@dataclass
class _Timed:
    """One item through a network: the call, its operations and what architecture it has."""

    module: nn.Module
    device: torch.device
    call: Callable[[], Any]
    gflops: float
    architecture: str


def latencies(rows: Mapping[str, tuple[Task, Any]]) -> dict[str, dict[str, Any]]:
    """How fast networks answer one item, measured in turns and warm; networks of one architecture are measured once.

    Args:
        rows: who answers what, by name: the task, and a ``Built`` or an artifact; what is no network gets an empty entry.

    Returns:
        By name: ``one_item`` (median milliseconds of a forward pass), ``low`` and ``high`` (quartiles), ``rounds``,
        ``gflops`` (billions of operations) and ``architecture`` (equal ones have the same).
    """
    ready = {name: _ready(task, thing) for name, (task, thing) in rows.items()}
    known = {name: one for name, one in ready.items() if one is not None}
    first = {one.architecture: one for one in reversed(known.values())}
    found: dict[str, Timing] = {}
    with evaluating([one.module for one in first.values()]):
        for device in {one.device for one in first.values()}:
            found |= in_turns({k: one.call for k, one in first.items() if one.device == device}, device)
    return {
        name: {}
        if one is None
        else {**told(found[one.architecture]), "gflops": one.gflops, "architecture": one.architecture}
        for name, one in ready.items()
    }


def told(timing: Timing) -> dict[str, float]:
    """A timing as ``result.json`` has it."""
    return {"one_item": timing.median, "low": timing.low, "high": timing.high, "rounds": float(timing.rounds)}


def _ready(task: Task, thing: Any) -> _Timed | None:
    built = thing.built if isinstance(thing, NetworkArtifact) else thing
    if not isinstance(built, Built) or not isinstance(built.module, nn.Module):
        return None
    module = built.module.eval()
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in task.example(1).items()}
    batch = built.contract.feed(batch)

    def call() -> Any:
        return task.feed(module, batch)

    shapes = sorted((k, tuple(v.shape), str(v.dtype)) for k, v in batch.items() if isinstance(v, torch.Tensor))
    count = operations(call)
    return _Timed(module, device, call, count / 1e9, architecture(module, [str(device), count, *shapes]))


def architecture(module: nn.Module, beside: Iterable[Any] = ()) -> str:
    """A short name of what a network is made of, whatever its weights are: modules, shapes, dtypes.

    Args:
        module: the network.
        beside: what else tells two apart, such as the shape of their inputs.

    Example:
        >>> same = architecture(nn.Linear(3, 4)) == architecture(nn.Linear(3, 4))
        >>> same, architecture(nn.Linear(3, 4)) == architecture(nn.Linear(3, 5))
        (True, False)
    """
    parts = [
        f"{name} {type(m).__module__}.{type(m).__qualname__} {m.extra_repr()}" for name, m in module.named_modules()
    ]
    tensors = (*module.named_parameters(), *module.named_buffers())
    parts += [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in tensors]
    return hashlib.sha256("\n".join([*parts, *map(str, beside)]).encode()).hexdigest()[:16]


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
