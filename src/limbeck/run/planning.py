"""What a run will cost, before it is spent."""

from __future__ import annotations

import os
from typing import Any

from limbeck.core.engine import Engine
from limbeck.core.recipe import Recipe, build
from limbeck.run.measures import peak_memory, sizes
from limbeck.run.preparing import prepare


def plan(tree: dict[str, Any], steps: int = 3) -> dict[str, Any]:
    """What a run will cost, from a few real steps: parameters, memory, time a step and in all, size of a cache."""
    recipe = build(tree)
    bench = prepare(recipe, None, say=lambda text: None, untaught=True)
    task, student, teacher = bench.task, bench.student, bench.teacher
    engine = Engine(recipe.engine, recipe.seed)
    engine.prepare(recipe.method)
    timed = engine.time_steps(recipe.method, steps)
    rows = [
        {"stage": s.name, "steps": s.steps, "batch_size": s.batch_size, "seconds_a_step": timed.get(s.name)}
        for s in engine.stages
    ]
    whole = bool(timed) and all(s.name in timed for s in engine.stages if s.steps or s.items is not None)
    n = len(task.train)
    cache = task.cache_bytes() * n if teacher is not None else 0.0
    teach = None
    if teacher is not None and recipe.teacher is not None and not recipe.teacher.trained:
        teach = {"steps": recipe.teach.steps, "batch_size": recipe.teach.batch_size}
    return {
        "recipe": recipe.name,
        "device": str(bench.device),
        "stages": rows,
        "teacher_stage": teach,
        "student": sizes(student),
        "teacher": sizes(teacher),
        "seconds": sum(timed[s.name] * (s.steps or 0) for s in engine.stages if s.name in timed) if whole else None,
        "memory_mb": peak_memory(),
        "cache_mb": cache / 2**20,
        "items": n,
        "advice": _advice(recipe, bool(timed), cache),
    }


def _advice(recipe: Recipe, timed: bool, cache: float) -> list[str]:
    said = []
    if cache and timed and not recipe.queries:
        size = f"{cache / 2**20:.1f} MB" if cache > 1e5 else f"{cache / 2**10:.1f} kB"
        said.append(f"record the teacher once with 'limbeck cache {recipe.name}' ({size}) and skip its forward pass")
    if peak_memory() > 0.7 * _total_memory_mb():
        said.append("memory is tight: raise engine.accumulate, or set engine.precision=bf16")
    return said


def _total_memory_mb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    except (ValueError, OSError):
        return float("inf")
