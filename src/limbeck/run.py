"""One run, end to end: teacher, student alone, distillation, judgement, report. ``limbeck run`` and ``limbeck plan``."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import limbeck
from limbeck.core import distributed as dist
from limbeck.core import interrupt, store
from limbeck.core.artifact import Artifact, NetworkArtifact
from limbeck.core.disk import workspace
from limbeck.core.engine import Engine, EngineSettings
from limbeck.core.errors import CheckpointCorrupt, ConfigError, LimbeckError, Stopped, StorageError
from limbeck.core.logs import Progress, make_loggers
from limbeck.core.method import Built, Data, Method, Query, Setup
from limbeck.core.optim import Optim
from limbeck.core.random import key_of, seed_modules
from limbeck.core.recipe import Recipe, build, dump
from limbeck.core.supervised import Supervised
from limbeck.core.task import Model, Task

TEACHER_SEED = 0
"""Teachers are trained from this seed whatever the run's seed is, so that runs and methods share them."""


@dataclass
class Bench:
    """What judging may use: the participants, the budget, and stages that are remembered.

    Attributes:
        task, student, teacher: the participants; ``teacher`` is ``None`` for a method without one.
        student_model: the student's Model component, to build it afresh.
        train: the student's budget.
        seed, device, folder, settings: of this run.
        queries: augmentations of the recipe, applied to the baseline too.
        seconds: what each remembered stage cost when it was made.
    """

    task: Task
    student: Built
    teacher: Built | None
    student_model: Model
    train: Optim
    seed: int
    device: torch.device
    folder: Path | None
    settings: EngineSettings
    method: Method | None = None
    queries: dict[str, Query] = field(default_factory=dict)
    progress: Any = None
    say: Callable[[str], None] = print
    seconds: dict[str, float] = field(default_factory=dict)

    def train_alone(self) -> dict[str, float]:
        """The student's architecture trained by the task's own loss: same data, steps, optimiser, seed, augmentations."""
        built = self.train_network(self.student_model, self.task.train, self.train, "alone", self.seed, self.queries)
        return self.task.evaluate(built, self.task.test, self.teacher, device=self.device)

    def train_network(
        self,
        model: Model,
        data: Data,
        optim: Optim,
        name: str,
        seed: int = TEACHER_SEED,
        queries: dict[str, Query] | None = None,
    ) -> Built:
        """A network trained by the task's own loss: a remembered stage, shared by every run with the same key."""
        built = build_model(model, self.task, seed, "student" if name == "alone" else name)
        key = store.hash_tree(
            {
                "model": model.config
                or {"class": type(built.module).__qualname__, "weights": store.fingerprint(built.module)},
                "task": {k: v for k, v in self.task.config.items() if k not in ("data", *self.task.judging)},
                "data": data.fingerprint,
                "optim": settings_of(optim),
                "queries": {n: q.config for n, q in (queries or {}).items()},
                "seed": seed,
                "format": 1,
            }
        )[:20]
        folder = workspace() / f"{name}-{key}"
        lock = _turn(folder, folder / "network", self.say, name)
        if lock is not None:
            self.say(f"{name}: training it ({optim.steps} steps)")
            with lock:
                method = Supervised(data, name)
                method.bind(Setup(self.task, built, None, optim, seed, queries=dict(queries or {}), device=self.device))
                engine = Engine(self.settings, seed, folder, progress=self.progress, say=self.say)
                engine.run(method)
                if dist.rank() == 0:
                    store.save_tree(
                        folder / "network",
                        {"state": dict(built.module.state_dict()), "seconds": sum(engine.seconds.values())},
                    )
                    engine.discard_checkpoints()
                dist.barrier()
        else:
            self.say(f"{name}: reused from the workspace")
        saved = store.load_tree(folder / "network")
        store.load_strict(built.module, saved["state"], name)
        self.seconds[name] = float(saved["seconds"])
        built.module.to(self.device).eval()
        return built


def _turn(folder: Path, done: Path, say: Callable[[str], None], name: str) -> Any:
    """The lock under which a remembered stage is made; ``None`` once it is there.

    Another run that makes it at this moment is waited for: both want the same thing. Of several processes the first one
    looks and tells the others, so that all of them train or none.

    Raises:
        Stopped: a signal asked to stop while it was waited for.
    """
    if dist.rank() > 0 and dist.world() > 1:
        return contextlib.nullcontext() if dist.told_by_all(None)[0] else None
    turn = _first_turn(folder, done, say, name)
    dist.told_by_all(turn is not None)
    return turn


def _first_turn(folder: Path, done: Path, say: Callable[[str], None], name: str) -> Any:
    said = False
    while not store.is_complete(done):
        store.check_writable(folder)
        lock = store.RunLock(folder)
        try:
            lock.acquire()
        except StorageError:
            if not said:
                say(f"{name}: another run is making it; waiting")
                said = True
            asked = interrupt.requested()
            if asked is not None:
                raise Stopped(asked) from None
            time.sleep(0.5)
            continue
        if store.is_complete(done):
            lock.release()
            return None
        return contextlib.closing(_Held(lock))
    return None


class _Held:
    """A lock that is held already, for a ``with`` statement."""

    def __init__(self, lock: store.RunLock) -> None:
        self.lock = lock

    def close(self) -> None:
        """Let it go."""
        self.lock.release()


def settings_of(optim: Optim) -> dict[str, Any]:
    """An Optim as plain values."""
    names = (
        "steps",
        "batch_size",
        "lr",
        "optimizer",
        "weight_decay",
        "momentum",
        "schedule",
        "warmup",
        "clip",
        "options",
    )
    return {n: getattr(optim, n) for n in names}


def build_model(model: Model, task: Task, seed: int, name: str) -> Built:
    """A model built with its own key of randomness: the same seed gives the same first weights in every run."""
    with torch.random.fork_rng(devices=[]):
        seed_modules(key_of(seed, "init", name), torch.device("cpu"))
        try:
            built = model.build(task)
        except LimbeckError as error:  # a model does not know which role it was to play
            head = error.argument.split(".")[0]
            if error.argument == "model":
                error.argument = name
            elif head in (model.config or {}):
                error.argument = f"{name}.{error.argument}"
            raise
    built.model = built.model or model
    return built


def prepare(
    recipe: Recipe,
    folder: Path | None,
    progress: Any = None,
    say: Callable[[str], None] = print,
    untaught: bool = False,
) -> Bench:
    """Data read, models built, the teacher loaded or trained (remembered), everything checked against everything.

    With ``untaught`` a teacher that would have to be trained is only built: enough to read back what a run made.
    """
    task, method = recipe.task, recipe.method
    device = dist.pick_device(recipe.engine.device)
    dist.start(device)
    task.load(recipe.seed)
    method.accept(task)
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
        if not (teacher_model.trained or untaught):
            bench.teacher = teacher_model.teach(bench, recipe.teach)
        for text in (bench.teacher.contract.describe(),):
            if text:
                say(f"teacher input: {text}")
    if bench.teacher is not None:
        task.match(bench.student, bench.teacher)
    method.bind(
        Setup(
            task=task,
            student=bench.student,
            teacher=bench.teacher,
            train=recipe.train,
            seed=recipe.seed,
            objectives=recipe.objectives,
            queries=recipe.queries,
            device=device,
            shard=recipe.engine.shard,
        )
    )
    return bench


def default_folder(recipe: Recipe) -> Path:
    """Where a run goes when no ``--out`` is given."""
    return Path("runs") / f"{recipe.name}-seed{recipe.seed}"


def run(tree: dict[str, Any], out: Path | None = None, force: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Run a recipe and leave a run folder.

    Args:
        tree: the resolved recipe (``limbeck.core.recipe.load_tree`` then ``check``).
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
    recipe: Recipe, tree: dict[str, Any], folder: Path, force: bool = False, quiet: bool = False
) -> tuple[dict[str, Any], Artifact | None]:
    """Run a built recipe in a folder. See `run`; the artifact comes too, except of a finished run that is only reported."""
    from limbeck.export import FORMATS

    for form in recipe.export:  # said now, not when everything is trained
        if form not in FORMATS:
            raise ConfigError.unknown("export", form, FORMATS, "format")
    text = dump(tree)
    config = folder / "config.yaml"
    main = int(os.environ.get("RANK", "0")) == 0
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
    try:
        found = _finished(config, text, folder, force)
    except LimbeckError:
        dist.told_by_all((True, None))
        raise
    dist.told_by_all((False, found))
    if found is not None:
        return found, None
    return _run_in(recipe, tree, folder, force, quiet, text)


def _finished(config: Path, text: str, folder: Path, force: bool) -> dict[str, Any] | None:
    """The result of a run that is finished already; ``None`` where there is something to do in the folder."""
    finished = folder / "result.json"
    if config.exists() and not force:
        if _settled(config.read_text()) != _settled(text):
            raise StorageError(
                str(folder),
                "the folder holds a run with another configuration",
                remedy="choose --out, or --force to replace it",
            )
        if finished.exists():
            result = read_result(finished)
            return {**result, "folder": str(folder), "reused": True}
    elif folder.is_dir() and not config.exists() and any(folder.iterdir()) and not force:
        raise StorageError(
            str(folder), "the folder is not empty and holds no run", remedy="choose --out, or --force to use it"
        )
    store.check_writable(folder)
    return None


def read_result(path: Path) -> dict[str, Any]:
    """A run's ``result.json``.

    Raises:
        CheckpointCorrupt: it is damaged.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointCorrupt(str(path), f"is no JSON: {error}", remedy="repeat the run with --force") from None
    if not isinstance(found, dict):
        raise CheckpointCorrupt(str(path), f"holds a {type(found).__name__}", remedy="repeat the run with --force")
    return found


def _run_in(
    recipe: Recipe, tree: dict[str, Any], folder: Path, force: bool, quiet: bool, text: str
) -> tuple[dict[str, Any], Artifact | None]:
    main = int(os.environ.get("RANK", "0")) == 0
    config = folder / "config.yaml"
    with store.RunLock(folder) if main else contextlib.nullcontext():
        if main:
            for place in (folder, folder / "checkpoints"):
                store.clean_leftovers(place, exclusive=True)  # the lock is ours: nobody else is writing here
            if force:
                _empty(folder)
            store.atomic_write(config, text.encode())
        progress = Progress(enabled=main and not quiet)
        say: Callable[[str], None] = progress.say if main and not quiet else lambda text: None
        try:
            return _run(recipe, tree, folder, progress, say, main)
        except Stopped as stopped:
            stopped.resume = stopped.resume or f"everything is saved; type the same command again to go on in {folder}"
            raise
        finally:
            progress.close()


def _run(
    recipe: Recipe, tree: dict[str, Any], folder: Path, progress: Any, say: Callable[[str], None], main: bool
) -> tuple[dict[str, Any], Artifact]:
    began = time.perf_counter()
    bench = prepare(recipe, folder, progress, say)
    alone = bench.task.alone(bench)
    with make_loggers(recipe.loggers if main else [], folder, tree) as logs:
        return _distil(recipe, folder, bench, alone, logs, main, began)


def _distil(
    recipe: Recipe, folder: Path, bench: Bench, alone: dict[str, float], logs: Any, main: bool, began: float
) -> tuple[dict[str, Any], Artifact]:
    task, method, progress, say = bench.task, recipe.method, bench.progress, bench.say
    best = _Best(bench, method, folder)
    say(f"{recipe.name}: distilling")
    engine = Engine(recipe.engine, recipe.seed, folder, workspace(), logs, progress, best.evaluate, say)
    engine.run(method)
    artifact = method.artifact()
    metrics = {
        "teacher": task.teacher_metrics(bench),
        "student": task.judge(artifact, bench),
        "alone": alone,
    }
    if best.metrics:
        metrics["best"] = best.metrics
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "method": recipe.method.config.get("use", type(method).__name__),
        "seed": recipe.seed,
        "task": task.config.get("use", type(task).__name__),
        "primary": task.primary,
        "higher_is_better": task.higher_is_better,
        "metrics": metrics,
        "artifact": artifact.kind,
        "sizes": {"student": artifact.size(), "teacher": sizes(bench.teacher)},
        "latency_ms": {"student": latency(task, artifact), "teacher": latency(task, bench.teacher)},
        "cost": {
            "seconds": {**bench.seconds, **engine.seconds},
            "peak_memory_mb": peak_memory(),
        },
        "items": {"train": len(task.train), "teacher_train": len(task.teacher_train), "test": len(task.test)},
        "labels": task.labels,
        "versions": versions(),
        "hardware": hardware(bench.device),
        "wall_seconds": time.perf_counter() - began,
        "notes": [*getattr(task, "notes", []), *getattr(method, "notes", [])],
        "exports": {},
    }
    result.update(task.extras(artifact, bench))
    if main:
        artifact.save(folder)
        logs.summary(result)
        store.atomic_write(folder / "result.json", (json.dumps(result, indent=2, allow_nan=True) + "\n").encode())
        from limbeck.report import write_report

        write_report(folder)
        for form in recipe.export:
            from limbeck.export import export

            export(folder, form)
        result["exports"] = read_result(folder / "result.json")["exports"]
    dist.barrier()
    return {**result, "folder": str(folder), "reused": False}, artifact


class _Best:
    """The best student on the validation split, kept beside the last one and marked as such."""

    def __init__(self, bench: Bench, method: Method, folder: Path) -> None:
        self.bench, self.method, self.folder = bench, method, folder / "best"
        # an interrupted run goes on with what it had found
        self.known: dict[str, Any] | None = store.load_tree(self.folder) if store.is_complete(self.folder) else None

    def evaluate(self, step: int) -> dict[str, float]:
        task, student = self.bench.task, self.bench.student
        if not isinstance(student.module, nn.Module):
            return {}
        values = task.evaluate(student, task.valid, device=self.bench.device)
        student.module.train()
        score = values.get(task.primary, math.nan)
        known = math.nan if self.known is None else float(self.known["score"])
        if not math.isnan(score) and (math.isnan(known) or (score > known if task.higher_is_better else score < known)):
            # every process gathers a sharded student, the first one writes
            state = {k: dist.gathered(v) for k, v in student.module.state_dict().items()}
            self.known = {"score": score, "step": step, "valid": values}
            if dist.rank() == 0:
                store.save_tree(self.folder, {**self.known, "state": state})
        return values

    @property
    def metrics(self) -> dict[str, float]:
        """What the best one scored on the validation split, and at which step; empty where nothing was judged."""
        if self.known is None:
            return {}
        return {f"valid/{k}": v for k, v in self.known["valid"].items()} | {"step": float(self.known["step"])}


@dataclass
class Restored:
    """A run read back from its folder: recipe, participants, and what it made.

    Attributes:
        recipe, bench: as they were when it ran (the teacher only where it was asked for).
        artifact: what the run made, from its last checkpoint or a named one.
        stage, step: where that checkpoint stood; ``step`` counts within the stage.
        finished: whether the run had ended.
    """

    recipe: Recipe
    bench: Bench
    artifact: Artifact
    stage: str
    step: int
    finished: bool


def restore(folder: Path, checkpoint: int | None = None, teacher: bool = False) -> Restored:
    """Read a run back from its folder, finished or interrupted in the middle.

    Args:
        folder: the run folder.
        checkpoint: the number of a checkpoint (``step-NUMBER`` in ``checkpoints/``); the newest when ``None``.
        teacher: build or train the teacher too; otherwise a method that needs one gets an untrained stand-in.

    Raises:
        ConfigError: the folder holds no run, or no such checkpoint.
        CheckpointCorrupt: the checkpoint is damaged.
    """
    from limbeck.core.recipe import check, load_tree

    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise ConfigError(str(folder), "no run lies here (config.yaml is missing)", expected="a run folder")
    recipe = build(check(load_tree(config)))
    bench = prepare(recipe, folder, say=lambda text: None, untaught=not teacher)
    engine = Engine(recipe.engine, recipe.seed, folder, workspace())
    assert engine.checkpoints is not None
    if checkpoint is not None:
        if checkpoint not in engine.checkpoints.steps():
            raise ConfigError("--checkpoint", given=checkpoint, expected=f"one of {engine.checkpoints.steps()}")
        saved = engine.checkpoints.load(checkpoint)
    else:
        found = engine.checkpoints.latest()
        if found is None:
            raise ConfigError(
                str(folder), "the run has no checkpoint yet", remedy="let it run on: type its command again"
            )
        saved = found[1]
    engine.restore(recipe.method, saved)
    finished = int(saved["stage"]) >= len(engine.stages)
    return Restored(recipe, bench, recipe.method.artifact(), str(saved["stage_name"]), int(saved["step"]), finished)


def plan(tree: dict[str, Any], steps: int = 3) -> dict[str, Any]:
    """What a run will cost, from a few real steps: parameters, memory, time a step and in all, size of a cache."""
    recipe = build(tree)
    task = recipe.task
    task.load(recipe.seed)
    recipe.method.accept(task)
    device = dist.pick_device(recipe.engine.device)
    assert recipe.student is not None
    student = build_model(recipe.student, task, recipe.seed, "student")
    teacher = (
        build_model(recipe.teacher, task, TEACHER_SEED, "teacher")
        if recipe.method.needs_teacher and recipe.teacher
        else None
    )
    recipe.method.bind(
        Setup(task, student, teacher, recipe.train, recipe.seed, recipe.objectives, recipe.queries, device)
    )
    engine = Engine(recipe.engine, recipe.seed)
    engine.prepare(recipe.method)
    rows = []
    for stage in engine.stages:
        rows.append({"stage": stage.name, "steps": stage.steps, "batch_size": stage.batch_size})
    timed = engine.time_steps(recipe.method, steps)
    total = sum((s.steps or 0) for s in engine.stages)
    n = len(task.train)
    cache = task.cache_bytes() * n
    teach = None
    if teacher is not None and recipe.teacher is not None and not recipe.teacher.trained:
        teach = {"steps": recipe.teach.steps, "batch_size": recipe.teach.batch_size}
    return {
        "recipe": recipe.name,
        "device": str(device),
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
    if teacher is not None and timed is not None and not recipe.queries:
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


def sizes(built: Built | None) -> dict[str, float]:
    """Parameters and bytes of a network."""
    if built is None or not isinstance(built.module, nn.Module):
        return {}
    return NetworkArtifact(None, built).size()  # type: ignore[arg-type]


def latency(task: Task, thing: Any, repeats: int = 20) -> dict[str, float]:
    """Median milliseconds of a forward pass for one item, and billions of operations; empty for what is no network."""
    built = thing.built if isinstance(thing, NetworkArtifact) else thing
    if not isinstance(built, Built) or not isinstance(built.module, nn.Module):
        return {}
    from torch.utils.flop_counter import FlopCounterMode

    module = built.module.eval()
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    batch = {k: v[:1].to(device) if isinstance(v, torch.Tensor) else v for k, v in task.example(1).items()}
    if "x" in batch:
        batch["x"] = built.contract.inputs(batch["x"])
    times = []
    with torch.no_grad():
        for _ in range(3):
            task.feed(module, batch)
        for _ in range(repeats):
            began = time.perf_counter()
            task.feed(module, batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        counter = FlopCounterMode(display=False)
        with counter:
            task.feed(module, batch)
    return {"one_item": 1000.0 * sorted(times)[len(times) // 2], "gflops": counter.get_total_flops() / 1e9}


def peak_memory() -> float:
    """The largest memory this process held so far, in MB."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    from importlib import metadata

    found = {"limbeck": limbeck.__version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "timm", "transformers", "diffusers", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine, as far as it matters for a figure."""
    found: dict[str, Any] = {
        "device": str(device),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": dist.world(),
    }
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def _settled(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


LEAVES = (
    *("config.yaml", "result.json", "report.html", "log.jsonl", "metrics.csv", "trackers.json", "tensorboard"),
    *(
        "checkpoints",
        "items",
        "best",
        "failure",
        "export",
        "student",
        "student.*",
        "sampler.json",
        "rounds",
        "samples.png",
    ),
)
"""What a run leaves in its folder. Only these are removed when it is repeated: a folder may hold a user's files too."""


def _empty(folder: Path) -> None:
    """Remove what an earlier run left."""
    import shutil

    for path in (p for pattern in LEAVES for p in folder.glob(pattern)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


__all__ = [
    "Artifact",
    "Bench",
    "Restored",
    "build_model",
    "plan",
    "prepare",
    "restore",
    "run",
    "run_recipe",
    "workspace",
]
