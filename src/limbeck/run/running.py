"""A recipe run in its folder: the baseline, distillation, evaluation, report."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from limbeck import report
from limbeck.engine import distributed as dist
from limbeck.engine.bench import Bench
from limbeck.engine.engine import Engine
from limbeck.engine.logs import check_loggers, make_loggers
from limbeck.engine.progress import Progress
from limbeck.engine.room import telling
from limbeck.errors import ConfigError, LimbeckError, Stopped, StorageError
from limbeck.export import check_format, export
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.evaluator import main_metric
from limbeck.grammar.random import own_generators
from limbeck.grammar.task import Task
from limbeck.recipe.recipe import Recipe, build, dump
from limbeck.recipe.trust import remember
from limbeck.run.best import Best
from limbeck.run.folder import Claim, admit, default_folder, empty, finished, grown, read_result, settings
from limbeck.run.measures import hardware, latencies, peak_memory, sizes, versions
from limbeck.run.per_item import save_items
from limbeck.run.preparing import prepare
from limbeck.run.restoring import Restored, bring_back
from limbeck.run.rows import Scored, called, evaluator_of, merged, score_rows
from limbeck.storage import store
from limbeck.storage.disk import workspace
from limbeck.storage.memory import SMALLER


def run(tree: dict[str, Any], out: Path | None = None, force: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Run a recipe and leave a run folder.

    Args:
        tree: the resolved recipe (``limbeck.recipe.recipe.load_tree`` then ``check``).
        out: the run folder; ``runs/NAME-seedN`` when not given.
        force: repeat a finished run, or replace another run in that folder.
        quiet: no progress and no sentences.

    Returns:
        What ``result.json`` holds, with ``folder`` and ``reused`` added.

    Raises:
        StorageError: the folder holds another run, is in use, or cannot be written.
    """
    recipe = build(tree)
    folder = Path(out) if out is not None else default_folder(recipe)
    result, _ = run_recipe(recipe, tree, folder, force, quiet)
    return result


def run_recipe(
    recipe: Recipe,
    tree: dict[str, Any],
    folder: Path,
    force: bool = False,
    quiet: bool = False,
    open: bool = False,
) -> tuple[dict[str, Any], Artifact | None]:
    """Run a built recipe in a folder. See `run`; what it made comes too, of a finished run where it is to be ``open``."""
    for form in recipe.export:  # said now, not when everything is trained
        check_format(form, recipe.task, "export")
    check_loggers(recipe.loggers)
    text = dump(tree)
    main = int(os.environ.get("RANK", "0")) == 0
    check_processes(recipe.engine.devices)
    if dist.launched():
        dist.start(dist.pick_device(recipe.engine.device))
    if not main and dist.world() > 1:
        # the first process looks at the folder before anything is written there, and tells what it found
        refused, result = dist.told_by_all(None)[0]
        if refused:
            raise StorageError(str(folder), "was refused by the first process")
        if result is not None:
            return result, None
        return _run_in(recipe, tree, folder, force, quiet, text)
    claim = Claim(folder)
    try:
        found, artifact = finished(folder, tree, force), None
        if found is not None:
            artifact = _found(recipe, tree, folder, open)
    except LimbeckError:
        dist.told_by_all((True, None))
        claim.take_back()
        raise
    dist.told_by_all((False, found))
    if found is not None:
        return found, artifact
    try:
        return _run_in(recipe, tree, folder, force, quiet, text)
    except LimbeckError:
        claim.take_back()
        raise


def check_processes(devices: int) -> None:
    """Several devices need as many processes, and who calls this is one: they are started by whoever starts it.

    Raises:
        ConfigError: there are not as many as the recipe asks for.
    """
    started = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.launched() else 1
    if devices in (1, started):
        return
    if started > 1:
        raise ConfigError(
            "engine.devices",
            f"torchrun has started {started} processes on this machine",
            given=devices,
            remedy=f"set engine.devices={started}, or leave it out under torchrun",
        )
    raise ConfigError(
        "engine.devices",
        "this process is one, and starts no others",
        given=devices,
        expected=f"{devices} processes",
        remedy=f"on the command line limbeck run starts them; a script is started by torchrun --nproc-per-node {devices} "
        "SCRIPT.py; or leave engine.devices=1",
    )


def _found(recipe: Recipe, tree: dict[str, Any], folder: Path, open: bool) -> Artifact | None:
    """Whether the same would enter the finished run in a folder today; and what it made, where it is to be opened.

    Raises:
        StorageError: something else would; what differs is named.
    """
    with own_generators(recipe.seed):
        bench = prepare(
            recipe, folder, say=lambda text: None, untaught=True, check=False, admit=partial(admit, folder, tree)
        )
        return bring_back(recipe, bench, folder).artifact if open else None


def _run_in(
    recipe: Recipe, tree: dict[str, Any], folder: Path, force: bool, quiet: bool, text: str
) -> tuple[dict[str, Any], Artifact | None]:
    main = int(os.environ.get("RANK", "0")) == 0
    config = folder / "config.yaml"
    with store.RunLock(folder) if main else contextlib.nullcontext():
        if main:
            for place in (folder, folder / "checkpoints"):
                store.clean_leftovers(place, exclusive=True)  # the lock is ours: nobody else is writing here

        def begin() -> None:
            """What was there is removed only when what was asked for could be read and built."""
            if force:
                empty(folder)
            (folder / "result.json").unlink(missing_ok=True)  # of a run that goes on to more steps
            store.atomic_write(config, text.encode())
            remember(tree)

        progress = Progress(enabled=main and not quiet)
        say: Callable[[str], None] = progress.say if main and not quiet else lambda text: None
        try:
            with own_generators(recipe.seed), telling("memory", SMALLER):
                longer = not force and bool(grown(folder, tree))
                return _run(recipe, tree, folder, progress, say, begin if main else None, longer)
        except Stopped as stopped:
            same = "the same command again without --force" if force else "the same command again"
            stopped.resume = stopped.resume or f"everything is saved; type {same} to go on in {folder}"
            raise
        finally:
            progress.close()


def _run(
    recipe: Recipe,
    tree: dict[str, Any],
    folder: Path,
    progress: Any,
    say: Callable[[str], None],
    begin: Callable[[], None] | None,
    longer: bool,
) -> tuple[dict[str, Any], Artifact]:
    began, main = (time.perf_counter(), time.process_time()), begin is not None
    for note in recipe.notes:
        say(note)
    entering: dict[str, Any] = {}

    def enters(found: dict[str, Any]) -> None:
        entering.update(found)
        refused: LimbeckError | None = None
        try:
            if begin is not None and not longer:
                begin()
            if begin is not None:
                admit(folder, tree, found, write=not longer)
        except LimbeckError as error:
            refused = error
        if dist.told_by_all(refused is not None)[0]:
            raise refused or StorageError(str(folder), "was refused by the first process")

    bench = prepare(recipe, folder, progress, say, admit=enters)
    about = {"recipe": settings(tree), "data": entering["data"]}
    Engine(recipe.engine, recipe.seed).rehearse(recipe.method)  # what is refused leaves no log
    if longer:  # and leaves the shorter run as it is
        Engine(recipe.engine, recipe.seed, folder, workspace(), about=about).may_go_on(recipe.method)
        dist.barrier()
        if begin is not None:
            begin()
            admit(folder, tree, entering)
    with make_loggers(recipe.loggers if main else [], folder, tree) as logs:
        return _distil(recipe, folder, bench, logs, main, began, about)


def _distil(
    recipe: Recipe,
    folder: Path,
    bench: Bench,
    logs: Any,
    main: bool,
    began: tuple[float, float],
    about: dict[str, Any],
) -> tuple[dict[str, Any], Artifact]:
    task, method, progress, say = bench.task, recipe.method, bench.progress, bench.say
    evaluator = evaluator_of(recipe)
    best = Best(bench, method, evaluator, folder)
    say(f"{recipe.name}: distilling")
    engine = Engine(
        recipe.engine,
        recipe.seed,
        folder,
        workspace(),
        logs,
        progress,
        best.evaluate,
        say,
        about,
        best_step=lambda: best.step,
    )
    for note in engine.coupling(method):
        engine.note(note)
    engine.run(method)
    artifact = method.artifact()
    scored = score_rows(evaluator, bench, method, artifact, recipe.baselines, recipe.average)
    metrics = scored.told()
    if best.metrics:
        metrics["best"] = best.metrics
    result = _told(recipe, bench, scored, metrics, engine)
    result["wall_seconds"] = time.perf_counter() - began[0]
    result["cost"]["cpu_seconds"] = time.process_time() - began[1]
    of_task, of_evaluator = task.extras(scored.rows, bench), evaluator.extras(artifact, bench)
    asked = {f"queries.{n}": q.extras() for n, q in recipe.queries.items()}
    result.update(merged(result, method=method.extras(), **asked, task=of_task, evaluator=of_evaluator))
    if main:
        if isinstance(artifact, NetworkArtifact):
            artifact.metrics = dict(metrics["student"])  # it travels with what it is worth
        artifact.save(folder)
        save_items(folder, scored.named())
        logs.summary(result)
        store.atomic_write(folder / "result.json", (json.dumps(result, indent=2, allow_nan=True) + "\n").encode())
        report.write_report(folder)
        held = _held(about["recipe"], recipe, bench, artifact)
        for form in recipe.export:
            export(folder, form, say=say, progress=progress, held=held)
        result["exports"] = read_result(folder / "result.json")["exports"]
    dist.barrier()
    return {**result, "folder": str(folder), "reused": False}, artifact


def _held(settings: dict[str, Any], recipe: Recipe, bench: Bench, made: Artifact) -> Restored | None:
    """The run for its exports, where the caller gave networks or data that its folder cannot bring back."""
    if "given" not in (value for name, value in settings.items() if name.endswith(".use")):
        return None
    for role in recipe.method.roles.values():
        role.untap()
    return Restored(recipe, bench, made, "", 0, True)


def _told(recipe: Recipe, bench: Bench, scored: Scored, metrics: dict[str, Any], engine: Engine) -> dict[str, Any]:
    """What ``result.json`` says of a run, but for how long it took in all and what the task adds."""
    task, method, artifact = bench.task, recipe.method, scored.rows["student"]
    primary, higher = main_metric(evaluator_of(recipe), task)
    return {
        "recipe": recipe.name,
        "method": method.config.get("use", type(method).__name__),
        "seed": recipe.seed,
        "task": task.config.get("use", type(task).__name__),
        "primary": primary,
        "higher_is_better": higher,
        "metrics": metrics,
        "names": called(scored, task.called, evaluator_of(recipe).called, method.called),
        "measures": {n: float(v) for n, v in method.measures().items()},
        "artifact": artifact.kind,
        "sizes": {
            **{n: row.size() for n, row in scored.rows.items()},
            **{n: sizes(b) for n, b in bench.built.items() if n != "student"},
            **({"teacher": sizes(bench.teacher)} if bench.teacher is not None or "teacher" not in scored.rows else {}),
        },
        "latency_ms": {"student": {}, "teacher": {}, **latencies(_timed(bench, scored, artifact))},
        "cost": {
            "seconds": {**bench.seconds, **engine.seconds},
            "peak_memory_mb": peak_memory(),
            **_teacher_passes(recipe, bench, engine),
        },
        "items": {
            "train": len(task.train),
            "teacher_train": len(task.teacher_train),
            "valid": len(task.valid),
            "test": len(evaluator_of(recipe).judges(task).test),
        },
        "class_items": {split: list(n) for split, n in task.class_sizes.items()},
        "labels": task.labels,
        **({} if (shown := task.specimen()) is None else {"example": shown}),
        "versions": versions(),
        "hardware": hardware(bench.device),
        "notes": [
            *recipe.notes,
            *task.notes,
            *bench.notes,
            *getattr(method, "notes", []),
            *engine.notes,
        ],
        "exports": {},
    }


def _teacher_passes(recipe: Recipe, bench: Bench, engine: Engine) -> dict[str, float]:
    """How often each item went through a teacher that is not recorded and sees it the same each time."""
    stages = [s for s in engine.stages if s.total and s.data is not None and s.judged]
    teacher = recipe.method.roles.get("teacher")
    alike = not recipe.queries and not any(s.queries for s in stages) and len(bench.task.train) > 0
    if teacher is None or not isinstance(teacher.module, torch.nn.Module) or teacher.of is not None or not alike:
        return {}
    learns = any("teacher" in s.optim for s in stages)
    return {} if learns else {"teacher_passes": sum(s.total * s.batch_size for s in stages) / len(bench.task.train)}


def _timed(bench: Bench, scored: Scored, made: Artifact) -> dict[str, tuple[Task, Any]]:
    """The student and each participant, as far as it answers for a part of the task, with that part."""
    found: dict[str, tuple[Task, Any]] = {"student": (bench.task, made)}
    for name, row in scored.rows.items():
        if name in bench.built and name != "student" and isinstance(row, NetworkArtifact):
            found[name] = (row.judge(bench.task), row)
    if "teacher" not in found and bench.teacher is not None:
        who = bench.method.participants.get("teacher") if bench.method is not None else None
        part = bench.task.part(who.task) if who is not None and who.task else bench.task
        found["teacher"] = (part, bench.teacher)
    return found
