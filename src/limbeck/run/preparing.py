"""From a recipe to participants that know each other."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.engine import distributed as dist
from limbeck.engine.bench import TEACHER_SEED, Bench, build_model
from limbeck.engine.engine import Engine
from limbeck.errors import ConfigError
from limbeck.grammar.method import Built, Setup
from limbeck.grammar.signal import frozen_statistics, refuse_shared
from limbeck.objectives.queries import accept_all
from limbeck.recipe.recipe import Recipe


def prepare(
    recipe: Recipe,
    folder: Path | None,
    progress: Any = None,
    say: Callable[[str], None] = print,
    untaught: bool = False,
    check: bool = True,
) -> Bench:
    """Data read, models built, the teacher loaded or trained (remembered), everything checked against everything.

    With ``untaught`` a teacher that would have to be trained is only built, and without ``check`` a ready one is not tried
    on labelled items: enough to read back what a run made.
    """
    task, method = recipe.task, recipe.method
    device = dist.pick_device(recipe.engine.device)
    dist.start(device)
    task.load(recipe.seed)
    for note in task.notes:  # before hours are spent on data that was not meant
        say(note)
    method.accept(task)
    accept_all(recipe.queries, task)
    student_model, teacher_model = recipe.student, recipe.teacher
    assert student_model is not None
    bench = Bench(
        task=task,
        student=build_model(student_model, task, recipe.seed, "student"),
        teacher=None,
        student_model=student_model,
        train=recipe.train,
        seed=recipe.seed,
        device=device,
        folder=folder,
        settings=recipe.engine,
        method=method,
        queries=recipe.queries,
        progress=progress,
        say=say,
    )
    if method.needs_teacher:
        if teacher_model is None:
            raise ConfigError(
                "teacher", f"{recipe.name or type(method).__name__} needs a teacher", remedy="set teacher=NAME"
            )
        # built first: only then is it known whether a library's pretrained classes are the task's
        bench.teacher = build_model(teacher_model, task, TEACHER_SEED, "teacher")
        if check:
            task.check_teacher(bench.teacher, device)
        if not (teacher_model.trained or untaught):
            _rehearse(recipe, bench)
            gc.collect()  # a tapped copy and its hooks hold each other
            bench.teacher = teacher_model.teach(bench, recipe.teach)
        contract = bench.teacher.contract.describe()
        if contract:
            say(f"teacher input: {contract}")
    for role, built in (("teacher", bench.teacher), ("student", bench.student)):
        bench.notes += [f"{role}: {note}" for note in (built.told if built is not None else [])]
    for note in bench.notes:
        say(note)
    _join(recipe, bench, bench.student, bench.teacher)
    still = frozen_statistics(bench.student.module) if recipe.train.keep_statistics else []
    if still:
        who = (
            "1 layer with frozen weights keeps its"
            if len(still) == 1
            else f"{len(still)} layers with frozen weights keep their"
        )
        bench.notes.append(f"student: {who} running statistics; train.keep_statistics=false lets them follow the data")
        say(bench.notes[-1])
    return bench


def _join(recipe: Recipe, bench: Bench, student: Built, teacher: Built | None) -> None:
    """Student and teacher matched to each other, and the method bound to them."""
    if teacher is not None:
        if isinstance(student.module, nn.Module) and isinstance(teacher.module, nn.Module):
            refuse_shared(student.module, teacher.module)
        bench.task.match(student, teacher)
    recipe.method.bind(
        Setup(
            task=bench.task,
            student=student,
            teacher=teacher,
            train=recipe.train,
            seed=recipe.seed,
            objectives=recipe.objectives,
            queries=recipe.queries,
            device=bench.device,
            shard=recipe.engine.shard,
        )
    )
    learner = recipe.method.roles["student"]
    if not learner.parameters():
        raise ConfigError(
            "student",
            "all of its parameters are frozen (requires_grad is off)"
            if list(learner.module.parameters())
            else "it has no parameters",
            expected="something to train",
            remedy="turn requires_grad on for what is to learn: net.requires_grad_(True)",
        )


def _rehearse(recipe: Recipe, bench: Bench) -> None:
    """All that student, teacher, method and add-ons have to say of each other, before a teacher is trained for hours.

    They are copies, for nothing of it may stay: no weights in memory while the teacher is trained, no vocabulary cut for a
    pair while one of them learns alone, no sentence noted twice. What cannot be copied is tried when its turn comes.
    """
    assert bench.teacher is not None
    task = copy.copy(bench.task)
    task.notes = list(task.notes)
    modules = (bench.student.module, bench.teacher.module)
    try:
        told = copy.deepcopy((recipe.method, recipe.objectives, *modules), {id(bench.task): task})
    except Exception:  # a library's network says this as it likes
        return
    twin = copy.copy(recipe)
    twin.method, twin.objectives, *twins = told
    student, teacher = (replace(b, module=m) for b, m in zip((bench.student, bench.teacher), twins, strict=True))
    with torch.random.fork_rng(devices=[]):
        _join(twin, replace(bench, task=task), student, teacher)
        Engine(recipe.engine, recipe.seed).rehearse(twin.method)
