"""From a recipe to participants that know each other."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.cache import Cache, Cached
from limbeck.engine import distributed as dist
from limbeck.engine import identity
from limbeck.engine.bench import Bench, build_model
from limbeck.engine.engine import Engine
from limbeck.engine.room import telling
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.method import Built, Data, Setup
from limbeck.grammar.optim import Optim
from limbeck.grammar.signal import frozen_statistics, refuse_shared
from limbeck.grammar.task import Model, Task
from limbeck.objectives.queries import accept_all
from limbeck.objectives.unlabelled import WithUnlabelled
from limbeck.recipe.recipe import Recipe
from limbeck.run.fitting import check_batch, check_processes
from limbeck.run.rows import check_baselines, evaluator_of
from limbeck.tasks.specimen import marked


def prepare(
    recipe: Recipe,
    folder: Path | None,
    progress: Any = None,
    say: Callable[[str], None] = print,
    untaught: bool = False,
    check: bool = True,
    admit: Callable[[dict[str, Any]], None] | None = None,
) -> Bench:
    """Data read, models built, participants loaded or trained (remembered), everything checked against everything.

    With ``untaught`` a participant that would have to be trained is only built, and without ``check`` a ready one is not
    tried on labelled items: enough to read back what a run made. ``admit`` is told what enters the run as soon as it is
    known, before anything is trained, and may refuse it.
    """
    task, method = recipe.task, recipe.method
    device = dist.pick_device(recipe.engine.device)
    check_processes(recipe.engine)
    dist.start(device)
    with telling("task.data", "take fewer or smaller items (task.size), or keep fewer in memory (task.data.memory_mb)"):
        try:
            task.load(recipe.seed)
        except OSError as error:  # a reader names its file; this stands for those that met a disk that fails
            place = f" ({error.filename})" if error.filename else ""
            raise DataError("task.data", f"cannot be read: {error.strerror or error}{place}") from None
    told: list[str] = []
    _tell(task, told, say)
    _check_patience(recipe)
    method.accept(task)
    evaluator_of(recipe).accept(task)
    method.judged_by(evaluator_of(recipe))
    _with_unlabelled(recipe)
    accept_all(recipe.queries, task)
    accept_all(recipe.objectives, task, "objectives")
    student_model = recipe.student
    assert student_model is not None
    models, built = participants(recipe), dict[str, Built]()
    # whoever brings a tokenizer comes first, so that those from scratch learn its tokens, whichever role it has; then the
    # participants before the student, for only a network that is built tells whether its pretrained classes are the task's
    for name, model in sorted({**models, "student": student_model}.items(), key=lambda m: _rank(m[1])):
        if name == "student":
            built[name] = build_model(model, task, recipe.seed, name)
            continue
        who = method.participants[name]
        part = task.part(who.task) if who.task else task
        built[name] = build_model(model, part, recipe.teacher_seed if who.taught else recipe.seed, name)
        if who.ready and not model.trained:
            raise ConfigError(
                name if name == "teacher" else f"participants.{name}",
                f"{recipe.name or type(method).__name__} needs a {name} with trained weights, and trains none",
                given=model.config.get("use", type(model).__name__),
                remedy="name its checkpoint, a pretrained model or an earlier run (run:FOLDER)",
            )
    bench = Bench(
        task=task,
        student=built["student"],
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
        teacher_seed=recipe.teacher_seed,
    )
    for name in models:
        one = built[name]
        bench.put(name, one)
        if isinstance(one.module, Cache):
            one.module.check(task)  # again: a student with fewer positions may have made the rows shorter since
    recipe.train = bench.train = counted(recipe.train, task.train, "train")  # the length of texts is known from here on
    if check:
        check_batch(task, bench.student, recipe.train, "train", recipe.engine, device)
        for name, model in models.items():
            if method.participants[name].taught and not model.trained and type(model).teach is Model.teach:
                teach = counted(recipe.teach, task.teacher_train, "teach")
                check_batch(task, bench.built[name], teach, "teach", recipe.engine, device)
    _measure(task)
    shown = task.specimen()
    for line in () if shown is None else marked(shown):  # before anything is spent on many like it
        say(line)
    if admit is not None:
        admit(_entering(recipe, bench))
    heard: list[str] = []

    def hear() -> None:
        """What is to be told of the participants, as soon as it is known: a refusal is then read beside it."""
        for name in (*models, "student"):
            for line in (f"{name}: {note}" for note in bench.built[name].told):
                if line not in heard:
                    heard.append(line)
                    say(line)

    hear()
    for name in models:
        who = method.participants[name]
        if check and (who.taught or who.ready):
            (task.part(who.task) if who.task else task).check_teacher(bench.built[name], device)
    _tell(task, told, say)
    check_baselines(evaluator_of(recipe), bench, recipe.baselines)
    untrained = [n for n, model in models.items() if method.participants[n].taught and not model.trained]
    if untrained and not untaught:
        _rehearse(recipe, bench)
        gc.collect()  # a tapped copy and its hooks hold each other
        for name in untrained:
            whose = bench.teaching(name, method.participants[name])
            bench.put(name, models[name].teach(whose, counted(recipe.teach, whose.task.teacher_train, "teach")))
    for name in models:
        contract = bench.built[name].contract.describe()
        if contract:
            say(f"{name} input: {contract}")
    hear()
    bench.notes += [f"{name}: {note}" for name in (*models, "student") for note in bench.built[name].told]
    _join(recipe, bench, bench.built)
    _measure(task)
    _tell(task, told, say)
    still = frozen_statistics(bench.student.module) if recipe.train.keep_statistics else []
    if still:
        keep = (
            "1 layer with frozen weights keeps its"
            if len(still) == 1
            else f"{len(still)} layers with frozen weights keep their"
        )
        bench.notes.append(f"student: {keep} running statistics; train.keep_statistics=false lets them follow the data")
        say(bench.notes[-1])
    return bench


def _with_unlabelled(recipe: Recipe) -> None:
    """Unlabelled items that a method does not use by itself stand beside the labelled ones, where its terms allow it.

    Raises:
        ConfigError: method, objective, query or teacher cannot take items without labels; which one it is.
    """
    task, method = recipe.task, recipe.method
    pool = getattr(task, "unlabelled_items", None)
    name = method.config.get("use", type(method).__name__)
    if pool is None or method.takes_unlabelled == "own":
        return
    reads = [n for n, o in recipe.objectives.items() if o.reads_labels]
    changes = [n for n, q in recipe.queries.items() if q.changes_labels]
    if method.takes_unlabelled != "terms":
        known = ", ".join(m for m in TAKES_UNLABELLED if m != name)
        problem, remedy = f"{name} has no term for items without labels", f"leave it out, or take one of {known}"
    elif reads:
        problem, remedy = f"objectives.{reads[0]} reads labels", f"leave one of them out: objectives.{reads[0]}=null"
    elif changes:
        problem, remedy = f"queries.{changes[0]} mixes labels", f"leave one of them out: queries.{changes[0]}=null"
    elif isinstance(recipe.teacher, Cached):
        problem, remedy = "a recorded teacher knows the task's items alone", "name the teacher itself: teacher=..."
    else:
        if not any(isinstance(q, WithUnlabelled) for q in recipe.queries.values()):
            recipe.queries = {"unlabelled": WithUnlabelled(), **recipe.queries}
        return
    raise ConfigError("task.unlabelled", problem, given=f"{len(pool):,} items", remedy=remedy)


TAKES_UNLABELLED = ("kd", "multi-teacher", "bd-kd", "simkd", "objectives", "mean-teacher", "ssld", "kd3", "g2sd")
"""Methods that take ``task.unlabelled``, as messages name them."""


def _entering(recipe: Recipe, bench: Bench) -> dict[str, Any]:
    """The identity of a run, but for its settings: its data, its participants as they are now, and the user's code."""
    task = bench.task
    data = {name: identity.of_data(getattr(task, name)) for name in ("train", "teacher_train", "valid", "test")}
    if data["teacher_train"] == data["train"]:
        del data["teacher_train"]
    pool = getattr(task, "unlabelled_items", None)
    if pool is not None:
        data["unlabelled"] = identity.of_data(pool)
    for name, who in recipe.method.participants.items():
        if who.task and name in bench.built:
            data[f"participant {name!r}"] = identity.of_data(task.part(who.task).teacher_train)
    components = [task, recipe.method, recipe.objectives, recipe.queries]
    return {
        "format": identity.FORMAT,
        "data": data,
        "roles": {name: identity.network(b.module, b.contract, model=b.model) for name, b in bench.built.items()},
        "code": identity.code_of(components),
        "revisions": identity.revisions(components),
    }


def _rank(model: Model) -> tuple[bool, bool]:
    """When a model is built: first those whose tokenizer their weights know, then those that can take another's."""
    return not model.brings_tokenizer, model.takes_tokenizer


def _measure(task: Task) -> None:
    """Have every split made: of texts, what fits into a sequence is known when the models' tokenizer is."""
    for split in (task.train, task.teacher_train, task.valid, task.test):
        len(split)


def _tell(task: Task, told: list[str], say: Callable[[str], None]) -> None:
    """What the task has noted since: before hours are spent on data that was not meant."""
    for note in task.notes:
        if note not in told:
            say(note)
            told.append(note)


def participants(recipe: Recipe) -> dict[str, Model]:
    """The models of the method's participants beside the student, in the method's order.

    Raises:
        ConfigError: one that is needed is not named; or one is named that the method does not have.
    """
    named = {"teacher": recipe.teacher, **recipe.participants}
    found: dict[str, Model] = {}
    for name, participant in recipe.method.participants.items():
        model = named.get(name)
        if model is None and participant.like:  # a recipe in text has resolved it; one that was built by hand has not
            source = recipe.student if participant.like == "student" else found.get(participant.like)
            model = copy.copy(source)
        if model is not None:
            found[name] = model
        elif participant.needed:
            setting = name if name == "teacher" else f"participants.{name}"
            raise ConfigError(
                setting, f"{recipe.name or type(recipe.method).__name__} needs a {name}", remedy=f"set {setting}=NAME"
            )
    if recipe.teacher is not None and "teacher" not in recipe.method.participants:
        unused = f"teacher: {recipe.name or type(recipe.method).__name__} has no teacher, so teacher=... is not used"
        if unused not in recipe.notes:
            recipe.notes.append(unused)
    for name in recipe.participants:
        if name not in recipe.method.participants:
            known = [n for n in recipe.method.participants if n != "teacher"]
            raise ConfigError.unknown(f"participants.{name}", name, known, "participant of this method")
    return found


def _join(recipe: Recipe, bench: Bench, built: Mapping[str, Built]) -> None:
    """Participants matched to the student, and the method bound to them."""
    student = built["student"]
    others = {name: b for name, b in built.items() if name != "student"}
    for name, other in others.items():
        if isinstance(student.module, nn.Module) and isinstance(other.module, nn.Module):
            refuse_shared(student.module, other.module)
        if not recipe.method.participants[name].task:
            bench.task.match(student, other)
    recipe.method.bind(
        Setup(
            task=bench.task,
            student=student,
            teacher=others.pop("teacher", None),
            train=recipe.train,
            seed=recipe.seed,
            stages=recipe.stages,
            objectives=recipe.objectives,
            queries=recipe.queries,
            device=bench.device,
            shard=recipe.engine.shard,
            others=others,
        )
    )
    if recipe.average is not None:
        recipe.average.attach(recipe.method)
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
    """All that student, participants, method and add-ons have to say of each other, before one is trained for hours.

    They are copies, for nothing of it may stay: no weights in memory while a teacher is trained, no vocabulary cut for a
    pair while one of them learns alone, no sentence noted twice. What cannot be copied is tried when its turn comes.
    """
    task = copy.copy(bench.task)
    task.notes = list(task.notes)
    built = bench.built
    modules = {name: b.module for name, b in built.items()}
    try:
        told = copy.deepcopy((recipe.method, recipe.objectives, modules), {id(bench.task): task})
    except Exception:  # a library's network says this as it likes
        return
    twin = copy.copy(recipe)
    twin.method, twin.objectives, twins = told
    with torch.random.fork_rng(devices=[]):
        _join(twin, replace(bench, task=task), {n: replace(b, module=twins[n]) for n, b in built.items()})
        Engine(recipe.engine, recipe.seed).rehearse(twin.method)


def counted(optim: Optim, data: Data, section: str) -> Optim:
    """With ``epochs`` as steps over the data.

    Raises:
        ConfigError: it names the setting of ``section``.
    """
    if optim.epochs is None:
        return optim
    try:
        return optim.counted(len(data))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{section}.epochs", str(error), given=optim.epochs) from None


def _check_patience(recipe: Recipe) -> None:
    """Stopping early needs evaluations while the student learns.

    Raises:
        ConfigError: there are none.
    """
    if recipe.teach.patience is not None:
        raise ConfigError(
            "teach.patience",
            "a teacher trained here is not evaluated while it learns",
            given=recipe.teach.patience,
            remedy="set teach.steps or teach.epochs, or train the teacher in a run of its own with train.patience",
        )
    if recipe.train.patience is not None and not recipe.engine.eval_every:
        raise ConfigError(
            "train.patience",
            "the student is not evaluated on the validation split while it learns",
            given=recipe.train.patience,
            remedy="set engine.eval_every to a number of steps",
        )
