"""A step of ViLD with embeddings of proposals that were kept, beside one that crops and embeds them on the way.

Both are the recipe's own step on the same batches, with the backward pass and the optimizer; the second asks the proposer for
boxes and the image tower for their crops first, as it must where nothing is kept.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Check, Report, Row, Say, cpu_seconds, interleave, quiet, ratios, spread
from limbeck.engine.context import RunContext
from limbeck.engine.engine import Engine
from limbeck.grammar.role import cast
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run import prepare


@dataclass(frozen=True)
class Settings:
    """What the recipe is told, and how much is measured."""

    words: tuple[str, ...] = ("task.data.items=64", "task.data.test_items=16", "teach.steps=2", "train.steps=1")
    tiny: bool = False
    batch: int = 8
    steps: int = 4
    rounds: int = 7


TOY = Settings((), tiny=True, batch=4, steps=1, rounds=1)


def stepper(method: Any, ctx: Any, batches: list[Any], online: bool) -> Callable[[], float]:
    """CPU seconds of a step."""
    params = [p for p in method.roles["student"].module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.0)

    def one(batch: Any) -> None:
        if online:
            method.embed(batch, ctx)
        terms = method.step(batch, ctx)
        loss = sum((t.weight * t.total() for t in terms.values()), torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def all_of_them() -> None:
        for batch in batches:
            one(batch)

    return lambda: cpu_seconds(all_of_them) / len(batches)


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """Kept embeddings against cropping on the way."""
    settings = settings or Settings()
    report = Report(
        "vild", "A step of ViLD: kept embeddings, and crops embedded on the way (CPU time)", asdict(settings)
    )
    with tempfile.TemporaryDirectory() as place:
        words = [*settings.words, f"train.batch_size={settings.batch}", "engine.device=cpu", "method.crops=false"]
        recipe = build(check(load_tree("vild", words, tiny=settings.tiny)))
        bench = prepare(recipe, None, say=quiet)
        engine = Engine(recipe.engine, recipe.seed, Path(place))
        engine.run(recipe.method)
        method: Any = recipe.method
        ctx = RunContext(engine, method, engine.stages[-1], engine.device)
        cast(method.roles, ("student",))  # the student learns, everybody else stands still
        count = settings.steps * settings.batch
        ids = (torch.arange(count) % len(bench.task.train)).split(settings.batch)
        batches = [{**bench.task.train.fetch(i), "item": i, "view": torch.zeros_like(i)} for i in ids]
        variants = {
            "limbeck, kept": stepper(method, ctx.at(0), batches, online=False),
            "limbeck, on the way": stepper(method, ctx.at(0), batches, online=True),
        }
        raw = interleave(variants, settings.rounds, say)
    report.raw["step"] = raw
    for name, values in raw.items():
        cells = {"ms": 1000 * statistics.median(values), "of kept": spread(ratios(raw, name, "limbeck, kept"))}
        report.rows.append(Row(name, cells))
    report.checks.append(
        Check(
            "kept embeddings over crops on the way",
            statistics.median(ratios(raw, "limbeck, kept", "limbeck, on the way")),
            1.0,
        )
    )
    return report


__all__ = ["TOY", "Settings", "run"]
