"""``limbeck doctor``: what is installed, what it runs on, what does not fit."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from limbeck.commands import _common as common
from limbeck.errors import first_line
from limbeck.recipe.extras import EXTRAS
from limbeck.storage.disk import workspace

TEXT = """Show versions, devices, threads, extras and folders, and report problems (the exit status is then 2)."""

CORE = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "safetensors",
    "jsonargparse",
    "PyYAML",
    "rich",
    "matplotlib",
)


@dataclass
class Row:
    """One finding.

    Attributes:
        name: what was looked at.
        value: what was found.
        status: ``ok``; ``note`` (missing, but only some things need it); ``problem``.
        remedy: what to do.
    """

    name: str
    value: str
    status: Literal["ok", "note", "problem"] = "ok"
    remedy: str = ""


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("doctor", TEXT)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args, _ = parser.read(words)
    rows = examine()
    if args.json:
        common.print_json([asdict(r) for r in rows])
    else:
        common.table([(r.name, r.value, r.status, r.remedy) for r in rows], ["what", "found", "status", "what to do"])
    return 2 if any(r.status == "problem" for r in rows) else 0


def examine() -> list[Row]:
    """Everything that is looked at."""
    from limbeck import __version__

    rows = [
        Row("limbeck", f"{__version__} in {Path(__file__).resolve().parents[1]}"),
        _python(),
        *(_package(name) for name in CORE),
        *_torch(),
        _pairing(),
        *(_extra(name, modules) for name, modules in EXTRAS.items()),
        *_folders(),
    ]
    return rows


def _python() -> Row:
    return Row("python", f"{platform.python_version()} on {platform.platform()}")


def _package(name: str) -> Row:
    try:
        return Row(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Row(name, "not installed", "problem", f"pip install {name}")


def _torch() -> list[Row]:
    try:
        import torch
    except Exception as error:
        return [Row("torch import", first_line(error), "problem", "reinstall torch and torchvision from one index")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = [Row("threads", f"torch uses {torch.get_num_threads()} of {cores} cores")]
    devices = ["cpu"]
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        devices.append(f"cuda:{i} {torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    if torch.backends.mps.is_available():
        devices.append("mps")
    rows.append(Row("devices", "; ".join(devices)))
    if torch.version.cuda and not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        said = f"torch is built for CUDA {torch.version.cuda}, and sees no device"
        rows.append(Row("cuda", said, "problem", "check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"))
    rows.append(Row("processes", "gloo" if torch.distributed.is_available() else "none: engine.devices must be 1"))
    return rows


def _pairing() -> Row:
    """Whether torch and torchvision belong together: pip accepts pairs that fail when they are used."""
    try:
        import torch
        import torchvision

        box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        torchvision.ops.nms(box, torch.ones(1), 0.5)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "reinstall both from one index: pip install --force-reinstall torch torchvision"
        return Row("torch and torchvision", first, "problem", remedy)
    return Row("torch and torchvision", "belong together")


def _extra(name: str, modules: tuple[str, ...]) -> Row:
    found, missing = [], []
    for module in modules:
        if util.find_spec(module) is None:
            missing.append(module)
            continue
        try:
            found.append(f"{module} {metadata.version(module)}")
        except metadata.PackageNotFoundError:
            found.append(module)
    if missing:
        value = ", ".join([*found, *(f"no {m}" for m in missing)])
        return Row(f"extra {name}", value, "note", f"pip install 'limbeck[{name}]'")
    return Row(f"extra {name}", ", ".join(found))


def _folders() -> list[Row]:
    folder = workspace()
    size, files = 0, 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size
                files += 1
            except OSError:
                continue
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    row = Row("workspace", f"{folder}: {size / 2**20:.1f} MB in {files} files")
    if not os.access(there, os.W_OK):
        row.status, row.remedy = "problem", "it can't be written: set LIMBECK_WORKSPACE to a folder of yours"
    disk = Row("disk", f"{free / 2**30:.1f} GiB free there")
    if free < 2**30:
        disk.status, disk.remedy = "problem", "free some space, or set LIMBECK_WORKSPACE"
    return [row, disk]
