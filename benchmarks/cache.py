"""A recorded teacher on disk: random reads from our shards beside one pickle a sample.

One file a sample is how torchdistill keeps a teacher's outputs (``torch.save`` and ``torch.load`` of a small dictionary);
a leaner one, a bare NumPy array in a pickle, is shown too. All files are in the system's cache, so that what is
compared is the work of reading, not the disk.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Check, Report, Row, Say, cpu_seconds, interleave, number, quiet, ratios, spread
from limbeck.cache import Cache, build_cache
from limbeck.recipe.recipe import build, check
from limbeck.run import prepare


@dataclass(frozen=True)
class Settings:
    """Sizes: a classifier of 100 classes over three shards of items, read in batches."""

    items: int = 10_000
    pickles: int = 2_000
    classes: int = 100
    batch: int = 64
    reads: int = 20
    rounds: int = 15


TOY = Settings(items=60, pickles=20, classes=4, batch=8, reads=1, rounds=1)


def tree(settings: Settings) -> dict[str, Any]:
    """A recipe whose teacher can be recorded in a second."""
    model = {
        "use": "import",
        "function": "benchmarks.pictures:network",
        "normalise": False,
        "options": {"kind": "small"},
    }
    size = {"items": settings.items, "size": 8, "channels": 1, "classes": settings.classes}
    data = {"use": "import", "function": "benchmarks.pictures:pictures", "options": size}
    return check(
        {
            "name": "bench-cache",
            "task": {"use": "classification", "data": data},
            "teacher": {**model, "ready": True, "check": "off"},
            "student": model,
            "method": "kd",
            "train": {"steps": 1},
            "engine": {"device": "cpu"},
        }
    )


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """Time and size of reading and writing."""
    settings = settings or Settings()
    report = Report("cache", "A recorded teacher on disk, random reads (CPU time)", asdict(settings))
    with tempfile.TemporaryDirectory() as place:
        _measure(settings, Path(place), report, say)
    return report


def _measure(settings: Settings, place: Path, report: Report, say: Say) -> None:
    say("recording")
    recipe = tree(settings)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        build_cache(recipe, place / "ours", yes=True)
    cache = Cache(place / "ours")
    task = prepare(build(recipe), None, say=quiet).task
    wanted = _draws(settings.items, settings.batch)
    some = _draws(settings.pickles, settings.batch)

    def read() -> Any:
        ids = next(wanted)
        return cache.rows(ids, torch.zeros_like(ids))["logits"].float()

    batches = [
        {**task.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
        for ids in (next(wanted) for _ in range(32))
    ]
    turn = iter(range(10**9))

    def answer() -> Any:
        return cache.answer(batches[next(turn) % len(batches)]).logits

    logits = torch.cat([read() for _ in range(-(-settings.pickles // settings.batch))])[: settings.pickles]
    (place / "torch").mkdir()
    (place / "numpy").mkdir()
    say("writing pickles")
    for i, row in enumerate(logits):
        torch.save({"teacher_outputs": row.clone()}, place / "torch" / f"{i}.pt")
        (place / "numpy" / f"{i}.pkl").write_bytes(pickle.dumps(row.numpy()))

    def torch_files() -> Any:
        # our own files of a moment ago: the unsafe way is the faster one
        loaded = (torch.load(place / "torch" / f"{i}.pt", weights_only=False) for i in next(some).tolist())
        return torch.stack([one["teacher_outputs"] for one in loaded])

    def numpy_files() -> Any:
        loaded = (pickle.loads((place / "numpy" / f"{i}.pkl").read_bytes()) for i in next(some).tolist())
        return torch.stack([torch.from_numpy(one) for one in loaded])

    works: dict[str, Callable[[], Any]] = {
        "limbeck: records": read,
        "limbeck: records, inputs checked": answer,
        "one torch file a sample": torch_files,
        "one pickled array a sample": numpy_files,
    }
    few = {"one torch file a sample": 1, "one pickled array a sample": 1}
    variants = {
        n: lambda w=w, n=n: cpu_seconds(w, few.get(n, settings.reads)) / settings.batch for n, w in works.items()
    }
    raw = interleave(variants, settings.rounds, say)
    report.raw["seconds a sample"] = raw
    on_disk = {
        "limbeck: records": _bytes(place / "ours") / settings.items,
        "one torch file a sample": _bytes(place / "torch") / settings.pickles,
        "one pickled array a sample": _bytes(place / "numpy") / settings.pickles,
    }
    for name, values in raw.items():
        times = [1 / r for r in ratios(raw, name, "one torch file a sample")]
        cells = {
            "us a sample": 1e6 * statistics.median(values),
            "times faster": spread(times),
            "bytes a sample": on_disk.get(name),
        }
        report.rows.append(Row(name, cells))
    faster = [b / a for a, b in zip(raw["limbeck: records"], raw["one torch file a sample"], strict=True)]
    report.checks.append(
        Check("reads, times faster than one torch file a sample", statistics.median(faster), 100, at_least=True)
    )
    about = cache.about["divergence"]
    report.notes.append(f"KL(teacher || record in half precision), a sample: {number(about)}")


def _draws(n: int, batch: int) -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(n, (batch,), generator=draw)


def _bytes(folder: Path) -> int:
    """What a folder takes on disk, whole blocks counted where the system tells them."""
    total = 0
    for path in folder.rglob("*"):
        if path.is_file():
            stat = path.stat()
            total += 512 * stat.st_blocks if hasattr(stat, "st_blocks") else stat.st_size
    return total


__all__ = ["TOY", "Settings", "run"]
