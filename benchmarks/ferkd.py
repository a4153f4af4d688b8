"""A step of FerKD from a store of crops beside plain supervised training on random crops, and beside a teacher that is asked.

All take as many crops of the same images for the same student. The floor is a bare loop: images read, a random resized crop
and a mirror of each, cross-entropy, the optimizer in its fastest form. Plain training in our engine does the same with guard,
logs and progress, as ``limbeck run`` does it; FerKD reads boxes and labels from the store, and mixes crops; the last row asks the
teacher about each crop on the way, as distillation without a store must.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.harness import (
    Check,
    Report,
    Row,
    Say,
    cpu_seconds,
    engine_seconds,
    interleave,
    number,
    quiet,
    ratios,
    spread,
)
from limbeck.cache import Cache, build_cache
from limbeck.functional.views import TRIES, crop_boxes, crop_each
from limbeck.recipe.recipe import Recipe, build, check
from limbeck.run import prepare


@dataclass(frozen=True)
class Settings:
    """Sizes of images and store, and how much is measured."""

    student: str = "resnet18"
    teacher: str = "resnet18"
    side: int = 32
    items: int = 96
    classes: int = 100
    crops: int = 6
    num_crops: int = 4
    batch: int = 32
    steps: int = 3
    rounds: int = 5
    warm: int = 1


TOY = Settings("small", "small", 8, 24, 6, crops=4, num_crops=2, batch=4, steps=2, rounds=1, warm=1)


class Rows:
    """The variants; each has a student of its own."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            self.told = build_cache(self.tree({"use": "ferkd", "store": self.store()}), folder / "crops", yes=True)
        self.recipes = {
            "limbeck: FerKD from the store": self.made(
                {"use": "ferkd", "num_crops": settings.num_crops},
                teacher={"use": "cached", "path": str(folder / "crops")},
            ),
            "limbeck: plain training": self.made({"use": "kd", "alpha": 0.0}, queries=self.moves()),
            "limbeck: plain distillation, teacher asked": self.made({"use": "kd"}, queries=self.moves()),
        }

    def store(self) -> dict[str, Any]:
        """Which crops are stored."""
        return {"crops": self.settings.crops}

    def moves(self) -> dict[str, Any]:
        """Random crops, mirrored at random."""
        return {"crop": {"use": "resized-crop"}, "flip": {"use": "flip"}}

    def network(self, kind: str) -> dict[str, Any]:
        """A network of `benchmarks.pictures`."""
        options = {"kind": kind}
        return {"use": "import", "function": "benchmarks.pictures:network", "normalise": False, "options": options}

    def tree(self, method: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The recipe, as a user would write it."""
        s = self.settings
        size = {"items": s.items, "size": s.side, "channels": 3, "classes": s.classes}
        data = {"use": "import", "function": "benchmarks.pictures:pictures", "options": size}
        optimizer = {"lr": 1e-3, "optimizer": "sgd", "schedule": "constant", "batch_size": s.batch}
        return check(
            {
                "name": "bench-ferkd",
                "task": {"use": "classification", "data": data},
                "teacher": {**self.network(s.teacher), "ready": True, "check": "off"},
                "student": self.network(s.student),
                "method": method,
                "train": {"steps": s.warm + s.steps + 1, **optimizer},
                "engine": {"device": "cpu"},
                **more,
            }
        )

    def made(self, method: dict[str, Any], **more: Any) -> Recipe:
        """A recipe that is ready to run."""
        recipe = build(self.tree(method, **more))
        self.bench = prepare(recipe, None, say=quiet)
        return recipe

    def engine(self, recipe: Recipe) -> Callable[[], float]:
        """CPU seconds of a step, in our engine."""
        return lambda: engine_seconds(recipe, self.folder, self.settings.warm, self.settings.steps, "distil")

    def floor(self) -> Callable[[], float]:
        """CPU seconds of a step, in a bare loop."""
        s, train = self.settings, self.bench.task.train
        recipe = self.recipes["limbeck: plain training"]
        student = copy.deepcopy(recipe.method.roles["student"].module).train().requires_grad_(True)
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, fused=True)
        draw = torch.Generator().manual_seed(0)
        order = itertools.cycle(torch.randperm(s.items, generator=draw).split(s.batch)[: s.items // s.batch])

        def step(ids: Tensor) -> None:
            batch = train.fetch(ids)
            size = (s.side, s.side)
            boxes = crop_boxes(torch.rand(len(ids), TRIES, 4, generator=draw), size)
            x = crop_each(batch["x"], boxes, size)
            x = torch.where((torch.rand(len(ids), generator=draw) < 0.5)[:, None, None, None], x.flip(-1), x)
            loss = cross_entropy(student(x), batch["y"])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        def block() -> float:
            for ids in itertools.islice(order, s.warm):
                step(ids)
            taken = list(itertools.islice(order, s.steps))

            def all_of_them() -> None:
                for ids in taken:
                    step(ids)

            return cpu_seconds(all_of_them) / s.steps

        return block


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """A step from the store beside plain training."""
    settings = settings or Settings()
    report = Report("ferkd", "A step of FerKD beside plain supervised training on crops (CPU time)", asdict(settings))
    with tempfile.TemporaryDirectory() as place:
        say("labelling crops")
        rows = Rows(settings, Path(place))
        variants = {"bare plain training": rows.floor()} | {n: rows.engine(r) for n, r in rows.recipes.items()}
        raw = interleave(variants, settings.rounds, say)
        about = Cache(Path(place) / "crops").about
    report.raw["step"] = raw
    ours, plain = "limbeck: FerKD from the store", "limbeck: plain training"
    for name, values in raw.items():
        cells = {
            "ms": 1000 * statistics.median(values),
            "of plain training": spread(ratios(raw, name, plain)),
            "of the bare loop": spread(ratios(raw, name, "bare plain training")),
        }
        report.rows.append(Row(name, cells))
    report.checks.append(
        Check("FerKD over plain training in our engine", statistics.median(ratios(raw, ours, plain)), 1.05)
    )
    report.checks.append(
        Check("FerKD over a bare loop", statistics.median(ratios(raw, ours, "bare plain training")), 1.05)
    )
    report.notes.append(
        f"bytes a crop: {number(rows.told['bytes a crop'])}, of which the label takes {4 * about['k']}; "
        f"all {settings.classes} classes in single precision would take {4 * settings.classes}"
    )
    return report


__all__ = ["TOY", "Settings", "run"]
