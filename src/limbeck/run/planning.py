"""What a run will cost, before it is spent."""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from limbeck.engine.bench import Bench, build_model
from limbeck.engine.engine import Engine
from limbeck.engine.memory import Memory
from limbeck.engine.timing import Timed
from limbeck.engine.turns import place
from limbeck.errors import first_line, human
from limbeck.grammar.evaluator import Evaluator
from limbeck.grammar.method import Built, Data, Query
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import own_generators
from limbeck.grammar.task import Model
from limbeck.recipe.recipe import Recipe, build
from limbeck.run.measures import peak_memory, sizes
from limbeck.run.preparing import counted, participants, prepare
from limbeck.run.rows import evaluator_of, score_rows
from limbeck.storage import store
from limbeck.storage.disk import workspace

WITHOUT = ("starting Python", "checkpoints", "the report and exports")
"""What is in no part of a plan, however well the parts could be measured."""

_ITEMS = 32  # how many test items are evaluated at most, to tell how long all of them take


@own_generators(0)
def plan(tree: dict[str, Any], steps: int = 3) -> dict[str, Any]:
    """What a run will cost, from a few real steps of all that it trains: parameters, memory, time, size of a cache.

    ``parts`` are the rows of the run: ``part``, ``steps`` (of a stage of items: how many there are to do),
    ``seconds_a_step``, ``seconds`` (``None`` where it cannot be told without doing it) and ``note``, which says why.
    ``seconds`` is the sum of those that could be told, and ``without`` names all that is not in it. ``memory`` is what a step
    of the part holds on each device, in bytes (`limbeck.engine.memory.Memory`), and ``device_memory`` that of the part that
    holds the most. ``memory_mb`` is what the plan itself has taken of the host.
    """
    recipe = build(tree)
    began = time.perf_counter()
    bench = _Trial.of(prepare(recipe, None, say=lambda text: None, untaught=True), steps)
    task, student, teacher = bench.task, bench.student, bench.teacher
    parts = [Part("preparing", seconds=time.perf_counter() - began, note="data read, networks built")]
    engine = Engine(recipe.engine, recipe.seed, workspace=workspace())
    coupled = engine.coupling(recipe.method)
    engine.prepare(recipe.method)
    timed = engine.time_steps(recipe.method, steps)
    parts += _teaching(recipe, bench)
    judging = _judging(recipe, bench)
    parts += [row for row in judging if row.part == "alone"]
    parts += [Part.of(s.name, timed[s.name]) for s in engine.stages]
    parts += [row for row in judging if row.part != "alone"]
    if recipe.engine.eval_every:
        parts.append(_validation(recipe, engine, bench))
    n = len(task.train)
    cache = recipe.method.recorded_bytes() * n if teacher is not None and isinstance(teacher.module, nn.Module) else 0.0
    teach = None
    if teacher is not None and recipe.teacher is not None and not recipe.teacher.trained:
        optim = counted(recipe.teach, task.teacher_train, "teach")
        teach = {"steps": optim.steps, "batch_size": optim.batch_size}
    told = [p.seconds for p in parts if p.seconds is not None]
    return {
        "recipe": recipe.name,
        "device": str(bench.device),
        "devices": recipe.engine.devices,
        "parts": [dataclasses.asdict(p) for p in parts],
        "stages": [
            {
                "stage": s.name,
                "steps": s.steps,
                "items": timed[s.name].items,
                "batch_size": s.batch_size,
                "seconds_a_step": timed[s.name].each if s.items is None else None,
                "seconds": timed[s.name].seconds,
            }
            for s in engine.stages
        ],
        "teacher_stage": teach,
        "student": sizes(student),
        "teacher": sizes(teacher),
        "seconds": sum(told),
        "without": [*(p.part for p in parts if p.seconds is None), *WITHOUT],
        "memory_mb": peak_memory(),
        "device_memory": _largest(parts),
        "cache_mb": cache / 2**20,
        "items": n,
        **({} if (shown := task.specimen()) is None else {"example": shown}),
        "notes": [*recipe.notes, *task.notes, *bench.notes, *coupled],
        "advice": _advice(recipe, any(t.each is not None for t in timed.values()), cache, bench.device, parts),
    }


@dataclass
class Part:
    """A row of a plan. See `plan`."""

    part: str
    steps: int | None = None
    seconds_a_step: float | None = None
    seconds: float | None = None
    note: str = ""
    memory: Memory | None = None

    @classmethod
    def of(cls, name: str, timed: Timed) -> Part:
        """A stage's row."""
        return cls(name, timed.count, timed.each, timed.seconds, timed.note, timed.memory)


@dataclass
class _Trial(Bench):
    """A bench on which a network is trained for a few steps, and these are timed.

    Attributes:
        few: how many steps.
        found: a row for each network; ``None``: nothing is trained or timed.
    """

    few: int = 3
    found: list[Part] | None = field(default_factory=list)

    @classmethod
    def of(cls, bench: Bench, few: int) -> _Trial:
        """The same participants."""
        return cls(**{f.name: getattr(bench, f.name) for f in dataclasses.fields(bench)}, few=few)

    def train_network(
        self,
        model: Model,
        data: Data,
        optim: Optim,
        name: str,
        seed: int | None = None,
        queries: dict[str, Query] | None = None,
    ) -> Built:
        """The network, hardly trained, and a row of what training it takes: nothing where it is remembered."""
        seed = self.teacher_seed if seed is None else seed
        role = "student" if name == "alone" else name
        built = build_model(model, self.task, seed, role)
        if self.found is not None:
            folder = place(workspace(), name, self.parts_of(built, data, optim, seed, queries))
            if store.is_complete(folder / "network"):
                self.found.append(Part(name, 0, None, 0.0, "reused from the workspace"))
            else:
                method = self.unaided(built, data, optim, name, seed, queries)
                engine = Engine(self.settings.of_network(role), seed)
                engine.prepare(method)
                timed = engine.time_steps(method, self.few)[name]
                timed.note = "trained once, then remembered"
                self.found.append(Part.of(name, timed))
        built.module.to(self.device).eval()
        gc.collect()
        return built


def _teaching(recipe: Recipe, bench: _Trial) -> list[Part]:
    """What teacher and other participants take before anything is distilled."""
    parts: list[Part] = []
    for name, model in participants(recipe).items():
        who = recipe.method.participants[name]
        if not who.taught:
            continue
        if model.trained:
            parts.append(Part(name, 0, None, 0.0, "trained already"))
            continue
        place = bench.teaching(name, who)
        model.teach(place, counted(recipe.teach, place.task.teacher_train, "teach"))
        rows = list(bench.found or ())
        if bench.found is not None:
            bench.found.clear()
        for i, row in enumerate(rows):
            row.part = f"{name} {i + 1}" if len(rows) > 1 else name
        parts += rows or [Part(name, note="not measured: its model trains it in a way of its own")]
    return parts


# ------------------------------------------------------------------------------------------------------------- evaluation


class _First:
    """The first items of a split."""

    def __init__(self, data: Any, n: int) -> None:
        self.data, self.n = data, n

    def __len__(self) -> int:
        return self.n

    def __getattr__(self, name: str) -> Any:
        if name == "data":  # not there yet, while it is copied
            raise AttributeError(name)
        return getattr(self.data, name)


def _judging(recipe: Recipe, bench: _Trial) -> list[Part]:
    """The student alone, and the scoring of every row of the report."""
    evaluator = evaluator_of(recipe)
    rows: list[Part] = []
    if "alone" in evaluator.rows(bench) and (recipe.baselines is None or "alone" in recipe.baselines):
        bench.alone()
        rows, bench.found = list(bench.found or ()), []
    if not evaluator.even:
        why = f"not measured: how the evaluator {type(evaluator).__name__} scores cannot be tried in part"
        return [*rows, Part("evaluation", note=why)]

    def judge(short: Evaluator, quiet: _Trial) -> None:
        scored = score_rows(short, quiet, recipe.method, recipe.method.artifact(), recipe.baselines, recipe.average)
        quiet.task.extras(scored.rows, quiet)
        short.extras(scored.rows["student"], quiet)

    return [*rows, _scaled("evaluation", judge, bench, evaluator)]


def _scaled(name: str, work: Callable[[Evaluator, _Trial], Any], bench: _Trial, evaluator: Evaluator) -> Part:
    """Work on few test items, and with few steps of what it trains, told as a whole: its time grows evenly with both."""
    optims = {key: value for key, value in vars(evaluator).items() if isinstance(value, Optim)}
    whole, steps = len(bench.task.test), next((o.steps for o in optims.values()), 0)
    few, more = min(2, whole), min(_ITEMS, whole)

    def seconds(items: int, trained: int) -> float:
        task, short = copy.copy(bench.task), copy.copy(evaluator)
        task.test = _First(bench.task.test, items)
        for key, optim in optims.items():
            setattr(short, key, optim.with_(steps=trained))
        quiet = dataclasses.replace(bench, task=task, found=None)
        began = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            work(short, quiet)
        return time.perf_counter() - began

    try:
        seconds(few, 1)
        first = seconds(few, 1)
        an_item = max(0.0, seconds(more, 1) - first) / max(1, more - few)
        a_step = max(0.0, seconds(few, 1 + bench.few) - first) / bench.few if optims else 0.0
    except Exception as error:  # on so few items and networks hardly trained a metric may be impossible
        return Part(name, note=f"not measured: on {few} items alone it fails ({first_line(error)})")
    rest = first + an_item * (whole - few) + a_step * (steps - 1 if steps else 0)
    if not optims:
        return Part(name, seconds=rest, note=f"{whole:,} test items")
    return Part(name, steps, a_step, rest, f"{whole:,} test items; a step of all networks that it trains")


def _validation(recipe: Recipe, engine: Engine, bench: _Trial) -> Part:
    """What the method delivers scored every ``eval_every`` steps."""
    every = recipe.engine.eval_every
    times = sum(-(-s.total // every) for s in engine.stages if s.judged)
    evaluator = evaluator_of(recipe)
    if not evaluator.even:
        why = f"not measured: how the evaluator {type(evaluator).__name__} scores cannot be tried in part"
        return Part("validation", note=why)
    valid = copy.copy(bench.task)
    valid.test = bench.task.valid
    row = _scaled(
        "validation",
        lambda short, quiet: short.score(recipe.method.artifact(), quiet),
        dataclasses.replace(bench, task=valid),
        evaluator,
    )
    if row.seconds is not None:
        each, row.seconds = row.seconds, row.seconds * times
        row.steps, row.seconds_a_step, row.note = times, each, f"every {every} steps, {len(valid.test):,} items"
    return row


def _largest(parts: list[Part]) -> dict[str, Any] | None:
    """The memory of the part that holds the most at once."""
    known = [p for p in parts if p.memory is not None]
    if not known:
        return None
    most = max(known, key=lambda p: p.memory.peak if p.memory is not None else 0)
    assert most.memory is not None
    return {"part": most.part, **dataclasses.asdict(most.memory)}


def _advice(recipe: Recipe, timed: bool, cache: float, device: torch.device, parts: list[Part]) -> list[str]:
    said = []
    if cache and timed and not recipe.queries:
        said.append(
            f"record the teacher once with 'limbeck cache {recipe.name}' and the same settings ({human(cache, 'B')}), and skip "
            "its forward pass"
        )
    most = _largest(parts)
    if device.type == "cuda" and most is not None:
        here = torch.cuda.get_device_properties(device).total_memory
        if most["peak"] > 0.8 * here:
            said.append(
                f"{most['part']} holds {human(most['peak'], 'B')} of the device's {human(here, 'B')}: {_less(most)}"
            )
    elif peak_memory() > 0.7 * _total_memory_mb():
        said.append(f"memory is tight: {_less(most) if most is not None else 'lower train.batch_size'}")
    return said


def _less(most: Mapping[str, Any]) -> str:
    """What to set so that a step holds less, by what it holds most of."""
    if most["activations"] + most["outputs"] > most["parameters"] + most["gradients"] + most["optimiser"]:
        return "activations take most of it; raise engine.accumulate, or set engine.precision=bf16"
    return "parameters and optimisers take most of it; split them over processes with engine.devices and engine.shard"


def _total_memory_mb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    except (ValueError, OSError):
        return float("inf")
