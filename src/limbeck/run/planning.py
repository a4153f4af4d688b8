"""What a run will cost, before it is spent."""

from __future__ import annotations

import os
from typing import Any

from limbeck.core.engine import Engine
from limbeck.core.method import Built
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
    rows = []
    for stage in engine.stages:
        rows.append({"stage": stage.name, "steps": stage.steps, "batch_size": stage.batch_size})
    timed = engine.time_steps(recipe.method, steps)
    total = sum((s.steps or 0) for s in engine.stages)
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
        "seconds_a_step": timed,
        "seconds": timed * total if timed is not None else None,
        "memory_mb": peak_memory(),
        "cache_mb": cache / 2**20,
        "items": n,
        "advice": _advice(recipe, teacher, timed, cache),
    }


def _advice(recipe: Recipe, teacher: Built | None, timed: float | None, cache: float) -> list[str]:
    said = []
    if cache and timed is not None and not recipe.queries:
        said.append(
            f"record the teacher once with 'limbeck cache {recipe.name}' ({cache / 2**20:.1f} MB) and skip its forward pass"
        )
    if peak_memory() > 0.7 * _total_memory_mb():
        said.append("memory is tight: raise engine.accumulate, or set engine.precision=bf16")
    return said


def _total_memory_mb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    except (ValueError, OSError):
        return float("inf")
