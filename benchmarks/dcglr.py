"""A step of DCGLR beside the bare floor: what cutting views, the engine and its checks cost.

The floor is a hand-written loop over the same views, cut by the same function: the averaged teacher's forward pass without
graph, the student's forward and backward pass over all views, both losses, the centre, AdamW in its fastest form, and the
average. Ours runs as ``limbeck run`` runs it, with guard, logs and progress. `cut` is the views alone.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.harness import Check, Report, Row, Say, engine_seconds, interleave, loop_seconds, quiet, ratios, spread
from limbeck.grammar.random import Draws
from limbeck.recipe.recipe import build, check
from limbeck.run import prepare


@dataclass(frozen=True)
class Settings:
    """Sizes: a PointNet, clouds of ``points``, two large views and ``local`` small ones of half the points."""

    points: int = 256
    local: int = 4
    widths: tuple[int, ...] = (64, 64, 128)
    features: int = 128
    prototypes: int = 256
    hidden: int = 512
    bottleneck: int = 128
    batch: int = 16
    steps: int = 6
    rounds: int = 9
    warm: int = 2


TOY = Settings(24, 2, (8,), 8, 8, 8, 4, 4, steps=2, rounds=1, warm=1)


class Pair:
    """Networks as the recipe builds them; every variant works on copies of its own."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.recipe = build(check(self.tree()))
        bench = prepare(self.recipe, None, say=quiet)
        method: Any = self.recipe.method
        self.views = method.views
        self.modules = {n: copy.deepcopy(role.module) for n, role in method.roles.items()}
        self.x = bench.task.train.fetch(torch.arange(8 * settings.batch))["x"]

    def tree(self) -> dict[str, Any]:
        """The recipe, as a user would write it."""
        s = self.settings
        optimizer = {"lr": 1e-3, "optimizer": "adamw", "schedule": "constant", "batch_size": s.batch}
        return {
            "name": "bench-dcglr",
            "task": {"use": "cloud-features", "data": {"use": "picture-clouds", "points": s.points}},
            "student": {"use": "pointnet", "widths": list(s.widths), "features": s.features},
            "method": {
                "use": "dcglr",
                "views": {"local": s.local},
                "prototypes": s.prototypes,
                "hidden": s.hidden,
                "bottleneck": s.bottleneck,
                "freeze": 0,
            },
            "train": {"steps": s.warm + s.steps + 1, **optimizer},
            "engine": {"device": "cpu"},
        }

    def batches(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Shuffled batches without end: a number, ids, clouds."""
        draw, step = torch.Generator().manual_seed(0), itertools.count()
        while True:
            for ids in torch.randperm(len(self.x), generator=draw).split(self.settings.batch):
                yield next(step), ids, self.x[ids]

    def loop(self, step: Callable[[int, Tensor, Tensor], Any]) -> Callable[[], float]:
        """CPU seconds of a step, in a bare loop."""
        return loop_seconds(lambda given: step(*given), self.batches(), self.settings.warm, self.settings.steps)

    def engine(self) -> float:
        """CPU seconds of a step, in our engine."""
        return engine_seconds(self.recipe, self.folder, self.settings.warm, self.settings.steps)

    def cut(self, number: int, ids: Tensor, x: Tensor) -> list[Tensor]:
        """The views of a batch, groups of [V, N, P, 3]."""
        crops = self.views.cut(x, ids, Draws(0, ("bench", number)))
        return [crops.large, *crops.others]

    def floor(self) -> Callable[[int, Tensor, Tensor], None]:
        """A bare step."""
        m = copy.deepcopy(self.modules)
        learn = [p for n in ("student", "head") for p in m[n].requires_grad_(True).parameters()]
        average = [p for n in ("teacher", "teacher_head") for p in m[n].requires_grad_(False).parameters()]
        optimizer = torch.optim.AdamW(learn, lr=1e-3, weight_decay=0.0, fused=True)
        centre = torch.zeros(self.settings.prototypes)

        def step(number: int, ids: Tensor, x: Tensor) -> None:
            groups = self.cut(number, ids, x)
            with torch.no_grad():
                z_t = m["teacher_head"].embed(m["teacher"](groups[0].flatten(0, 1)).unflatten(0, groups[0].shape[:2]))
                t = m["teacher_head"].compare(z_t)
                p = ((t - centre) / 0.04).softmax(-1)
            y = torch.cat([m["student"](g.flatten(0, 1)).unflatten(0, g.shape[:2]) for g in groups])
            z = m["head"].embed(y)
            log_q = (m["head"].compare(z) / 0.1).log_softmax(-1)
            pairs = torch.einsum("qnk,vnk->qv", p, log_q) / len(x)
            distil = -(pairs.sum() - pairs.diagonal().sum()) / (2 * len(y) - 2)
            own = torch.arange(len(x))
            one, two = normalize(z[:2], dim=-1), normalize(z_t, dim=-1)
            contrast = sum(cross_entropy(one[i] @ two[1 - i].T / 0.07, own) for i in (0, 1)) / 2
            optimizer.zero_grad(set_to_none=True)
            (distil + contrast).backward()
            optimizer.step()
            with torch.no_grad():
                centre.lerp_(t.mean((0, 1)), 0.1)
                torch._foreach_lerp_(average, [q.detach() for q in learn], 0.004)

        return step


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """A step beside its floor, and the views alone."""
    settings = settings or Settings()
    report = Report("dcglr", "A step of DCGLR beside the bare floor (CPU time)", asdict(settings))
    with tempfile.TemporaryDirectory() as place:
        pair = Pair(settings, Path(place))
        variants = {"floor": pair.loop(pair.floor()), "limbeck": pair.engine, "cutting the views": pair.loop(pair.cut)}
        raw = interleave(variants, settings.rounds, say)
    report.raw["step"] = raw
    for name, values in raw.items():
        cells = {"ms": 1000 * statistics.median(values), "of the floor": spread(ratios(raw, name, "floor"))}
        report.rows.append(Row(name, cells))
    report.checks.append(Check("step over the floor", statistics.median(ratios(raw, "limbeck", "floor")), 1.05))
    return report


__all__ = ["TOY", "Settings", "run"]
