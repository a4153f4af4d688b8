"""Puzzle's exact search over its paper's space: 54 pairs of blocks in each layer, two budgets, made-up scores and costs."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.harness import Check, Report, Row, Say, cpu_seconds, quiet
from limbeck.parts.search import Knapsack


@dataclass(frozen=True)
class Settings:
    """Sizes of the searches: layers of each, pairs of blocks of a layer, how many tables are drawn."""

    layers: tuple[int, ...] = (32, 80)
    pairs: int = 54
    draws: int = 5


TOY = Settings((4,), 6, 1)


def table(layers: int, pairs: int, seed: int) -> Knapsack:
    """Scores that rise as blocks get smaller, with noise, and budgets of seven tenths of the parent's."""
    rng = np.random.default_rng(seed)
    size = np.sort(rng.random((layers, pairs)), 1)[:, ::-1]
    size[:, 0] = 1.0
    score = (1 - size) ** 2 * rng.lognormal(0.0, 1.0, (layers, 1)) * rng.uniform(0.7, 1.3, (layers, pairs))
    score[:, 0] = 0.0
    slow = size * rng.uniform(0.8, 1.2, (layers, pairs))
    costs = {"parameters": size, "latency_ms": slow}
    return Knapsack(score, costs, {"parameters": 0.7 * layers, "latency_ms": 0.7 * slow[:, 0].sum()})


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """Seconds of the exact search, and how much worse the greedy choice is estimated."""
    settings = settings or Settings()
    report = Report("puzzle", "Puzzle's exact search (CPU time)", asdict(settings))
    for layers in settings.layers:
        tables = [table(layers, settings.pairs, seed) for seed in range(settings.draws)]
        seconds = [cpu_seconds(t.exact) for t in tables]
        worse = [t.greedy().score / max(t.exact().score, 1e-12) for t in tables]
        say(f"{layers} layers: {statistics.median(seconds):.3g} s")
        cells = {"s": statistics.median(seconds), "most s": max(seconds), "greedy's score": statistics.median(worse)}
        report.rows.append(Row(f"limbeck, {layers} layers of {settings.pairs} pairs", cells))
        report.raw[f"{layers} layers"] = {"exact": seconds}
        report.checks.append(Check(f"seconds of the search, {layers} layers", max(seconds), 10.0))
    return report


__all__ = ["TOY", "Settings", "run"]
