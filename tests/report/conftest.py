"""Run folders as a run leaves them, with made-up numbers: what is tested is how they are shown."""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

CONFIG = """# a recipe, resolved
task:
  use: classification
  data: digits
method:
  use: {method}
  temperature: 4.0
student:
  use: mlp
  hidden: [16]
train: {{steps: 400, batch_size: 64, lr: 0.003, note: "<b>&amp;"}}
seed: {seed}
"""
GAINS = {"kd": 0.012, "nkd": 0.021, "nd-loss": 0.004}


def wobble(*key: object) -> float:
    """A number in [-1, 1] that depends on the key alone."""
    return zlib.crc32(repr(key).encode()) / 2**31 - 1


def bins(sharpness: float) -> dict[str, list[float]]:
    """A reliability diagram of an over-confident network."""
    confidence = [(i + 0.5) / 15 for i in range(3, 15)]
    return {
        "confidence": confidence,
        "accuracy": [
            max(0.05, c - sharpness * (1 - c) * c * 2 + 0.03 * wobble("bin", i)) for i, c in enumerate(confidence)
        ],
        "count": [int(4 + 2.6**i / 40) for i in range(12)],
    }


def make_result(method: str = "nkd", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """What a run on digits writes to ``result.json``."""
    alone = 0.921 + 0.006 * wobble("alone", seed)
    student = alone + GAINS.get(method, 0.0) + 0.004 * wobble(method, seed)
    sizes = {"student": {"parameters": 1210.0, "bytes": 4840.0}, "teacher": {"parameters": 50826.0, "bytes": 203304.0}}
    result: dict[str, Any] = {
        "recipe": method,
        "method": method,
        "seed": seed,
        "task": "classification",
        "primary": "accuracy",
        "higher_is_better": True,
        "metrics": {
            "teacher": {"accuracy": 0.9733, "nll": 0.104, "ece": 0.0121},
            "student": {
                "accuracy": student,
                "nll": 0.19,
                "ece": 0.018 + 0.004 * wobble("e", seed),
                "agreement": student + 0.004,
            },
            "alone": {"accuracy": alone, "nll": 0.31, "ece": 0.041 + 0.004 * wobble("f", seed), "agreement": alone},
            "best": {"valid/accuracy": student + 0.01, "step": 350.0},
        },
        "artifact": "network",
        "sizes": sizes,
        "latency_ms": {
            "student": {"one_item": 0.0412, "gflops": 2.3e-6},
            "teacher": {"one_item": 0.0921, "gflops": 1.01e-4},
        },
        "cost": {"seconds": {"teacher": 21.0, "alone": 2.2, "distil": 3.4 + 0.2 * seed}, "peak_memory_mb": 412.0},
        "items": {"train": 200, "teacher_train": 1000, "test": 450},
        "labels": [str(i) for i in range(10)],
        "versions": {"limbeck": "0.1.0", "python": "3.11.7", "torch": "2.14.1"},
        "hardware": {"device": "cpu", "machine": "x86_64", "threads": 2, "processes": 1},
        "wall_seconds": 31.4,
        "notes": [
            "The teacher saw 1,000 labelled items, the student 200: this is the regime in which distilling helps."
        ],
        "exports": {},
        "calibration": {"teacher": bins(0.1), "student": bins(0.3), "alone": bins(0.8)},
    }
    return {**result, **changes}


def make_log(method: str, seed: int) -> str:
    """A ``log.jsonl``: a teacher's stage and a stage of distilling."""
    lines = []
    for stage, total in (("teacher", 600), ("distil", 400)):
        for step in range(10, total + 1, 10):
            decay = math.exp(-step / (0.25 * total))
            noise = 1 + 0.12 * wobble(method, seed, stage, step)
            row: dict[str, Any] = {"stage": stage, "step": step, "wall": 1.7e9 + step, "lr": 3e-3 * (1 - step / total)}
            if stage == "teacher":
                row["task"] = (0.05 + 2.2 * decay) * noise
            else:
                row |= {
                    "ce": (0.2 + 2 * decay) * noise,
                    "target": (0.1 + 1.5 * decay) * noise,
                    "nontarget": (0.3 + decay) * noise,
                }
            lines.append(row)
            if stage == "distil" and step % 50 == 0:
                accuracy = 0.93 - 0.8 * decay + 0.004 * wobble(seed, step)
                lines.append({"stage": stage, "step": step, "wall": 1.7e9 + step, "valid/accuracy": accuracy})
    return "".join(json.dumps(line) + "\n" for line in lines)


def png(width: int = 80, height: int = 16, seed: int = 0) -> bytes:
    """A small grey PNG of blobs."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def level(x: int, y: int) -> int:
        cx, cy = 8 + 3 * wobble(seed, x // 16), 8 + 3 * wobble(seed, x // 16, 1)
        return int(255 * math.exp(-((x % 16 - cx) ** 2 + (y % 16 - cy) ** 2) / 14))

    rows = b"".join(b"\0" + bytes(level(x, y) for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_run(folder: Path, method: str = "nkd", seed: int = 0, **changes: Any) -> Path:
    """A finished run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.format(method=method, seed=seed))
    (folder / "result.json").write_text(json.dumps(make_result(method, seed, **changes)))
    (folder / "log.jsonl").write_text(make_log(method, seed))
    return folder


def make_comparison(
    folder: Path, methods: tuple[str, ...] = ("kd", "nkd", "nd-loss"), seeds: int = 5, **changes: Any
) -> Path:
    """A finished comparison's folder, with its run folders."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    for method in methods:
        for seed in range(seeds):
            make_run(folder / f"{method}-seed{seed}", method, seed)
            rows.setdefault(method, {})[str(seed)] = {**make_result(method, seed), "folder": f"{method}-seed{seed}"}
    comparison = {
        "task": "classification",
        "primary": "accuracy",
        "higher_is_better": True,
        "seeds": list(range(seeds)),
        "rows": rows,
        **changes,
    }
    (folder / "comparison.json").write_text(json.dumps(comparison))
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run."""
    return make_run(tmp_path / "run")


@pytest.fixture
def comparison_folder(tmp_path: Path) -> Path:
    """A finished comparison of three methods over five seeds."""
    return make_comparison(tmp_path / "comparison")
