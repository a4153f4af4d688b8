"""A step of DOPE beside the bare floor: the student forward and backward, three experts on its boxes, the optimizer.

The floor takes batches that are read, and whose labels are merged, before the clock starts; ours reads them, joins what is
annotated with what the experts found, and runs as ``limbeck run`` runs it, with guard, logs and progress. Beside both stands a
step without experts, and one whose experts look for boxes of their own, as three separate detectors would.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Check, Report, Row, Say, engine_seconds, interleave, loop_seconds, quiet, ratios, spread
from limbeck.engine.context import RunContext
from limbeck.engine.engine import Engine
from limbeck.functional.keypoints import pose_distillation
from limbeck.grammar.method import Batch
from limbeck.networks.part_detector import region_mean
from limbeck.recipe.recipe import build, check
from limbeck.run import prepare

PARTS = ("body", "hand", "face")


@dataclass(frozen=True)
class Settings:
    """Sizes of images and detectors, and how much is measured."""

    side: int = 96
    items: int = 64
    width: int = 32
    proposals: int = 64
    batch: int = 8
    steps: int = 8
    rounds: int = 7
    warm: int = 2


TOY = Settings(48, 16, 8, 8, 4, steps=2, rounds=1, warm=1)


class Pair:
    """Student and experts as the recipe builds them; every variant works on copies of its own."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.recipe = build(check(self.tree()))
        prepare(self.recipe, None, say=quiet)
        method: Any = self.recipe.method
        self.modules = {n: copy.deepcopy(r.module) for n, r in method.roles.items()}
        with tempfile.TemporaryDirectory(dir=folder) as place:
            engine = Engine(self.recipe.engine, self.recipe.seed, Path(place), None)
            engine.prepare(method)
            for stage in engine.stages:
                ctx = RunContext(engine, method, stage, engine.device)
                if stage.items is not None:
                    engine.run_items(method, stage, ctx)
            merged = method.merged(ctx)
            order = torch.arange(len(merged)).split(settings.batch)
            self.read = [merged.fetch(ids) for ids in order if len(ids) == settings.batch]

    def tree(self) -> dict[str, Any]:
        """The recipe, as a user would write it."""
        s = self.settings
        optimizer = {"lr": 1e-3, "optimizer": "sgd", "schedule": "constant", "batch_size": s.batch}
        counts = dict.fromkeys(PARTS, 2)
        return {
            "name": "bench-dope",
            "task": {
                "use": "poses",
                "data": {"use": "drawn-figures", "items": s.items, "test_items": 4, "side": s.side},
                "labelled": "one",
                "valid_fraction": 0.25,
            },
            "student": {"use": "part-detector", "width": s.width, "proposals": s.proposals, "anchors": counts},
            "method": {"use": "dope"},
            "train": {"steps": s.warm + s.steps + 1, **optimizer},
            "teach": {"steps": 1, **optimizer},
            "engine": {"device": "cpu"},
        }

    def loop(self, step: Callable[[Batch], Any]) -> Callable[[], float]:
        """CPU seconds of a step, in somebody's own loop."""
        return loop_seconds(step, itertools.cycle(self.read), self.settings.warm, self.settings.steps)

    def engine(self) -> float:
        """CPU seconds of a step, in our engine."""
        return engine_seconds(self.recipe, self.folder, self.settings.warm, self.settings.steps, "distil")

    def bare(self, experts: bool = True, own_boxes: bool = False) -> Callable[[Batch], None]:
        """A bare step: with experts on the student's boxes, with experts that find their own too, or without any."""
        student = copy.deepcopy(self.modules["student"]).train().requires_grad_(True)
        others: dict[str, Any] = {
            p: copy.deepcopy(self.modules[f"expert_{p}"]).eval().requires_grad_(False) for p in PARTS
        }
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)

        def step(batch: Batch) -> None:
            out = student(batch["x"], {k: v for k, v in batch.items() if k == "labelled" or ":" in k})
            total = sum(out["losses"][n][c].sum() / c.sum().clamp_min(1) for n, c in out["counts"].items())
            for p, expert in others.items() if experts else ():
                with torch.no_grad():
                    if own_boxes:
                        expert(batch["x"])
                    q = expert(batch["x"], regions=out["regions"])["answers"][p]
                z, y = out["answers"][p], out["labels"][p]
                where = (y >= 0) & (out["weights"] > 0)
                loss = pose_distillation(z.logits, z.regressions, q.logits, q.regressions, where=where)
                total = total + sum(region_mean(v, out["weights"] * where).mean() for v in loss)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()

        return step


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """The step beside its floor."""
    settings = settings or Settings()
    report = Report("dope", "A step of DOPE beside the bare floor (CPU time)", asdict(settings))
    with tempfile.TemporaryDirectory() as place:
        pair = Pair(settings, Path(place))
        variants = {
            "floor": pair.loop(pair.bare()),
            "limbeck": pair.engine,
            "the student without experts": pair.loop(pair.bare(experts=False)),
            "experts that find boxes of their own too": pair.loop(pair.bare(own_boxes=True)),
        }
        raw = interleave(variants, settings.rounds, say)
    report.raw["step"] = raw
    for name, values in raw.items():
        cells = {"ms": 1000 * statistics.median(values), "of the floor": spread(ratios(raw, name, "floor"))}
        report.rows.append(Row(name, cells))
    report.checks.append(Check("step over the floor", statistics.median(ratios(raw, "limbeck", "floor")), 1.05))
    return report


__all__ = ["TOY", "Settings", "run"]
