"""The participants of a run and its budget, and networks trained on the task's own labels: teachers and baselines."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from limbeck.engine import distributed as dist
from limbeck.engine import identity
from limbeck.engine.engine import Engine
from limbeck.engine.room import within_memory
from limbeck.engine.settings import EngineSettings
from limbeck.engine.turns import describe, place, take_turn, why_anew
from limbeck.engine.unaided import Unaided
from limbeck.errors import LimbeckError
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.method import Built, Data, Method, Participant, Query, Setup
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import key_of, seed_modules
from limbeck.grammar.task import Model, Task
from limbeck.storage import store
from limbeck.storage.disk import workspace


@dataclass
class Bench:
    """What scoring and teaching may use (see ``limbeck.grammar.evaluator.Bench``), and networks that are remembered.

    Attributes:
        task, student, teacher: ``teacher`` is ``None`` for a method without one.
        student_model: the student's Model component, to build it afresh.
        train: the student's budget.
        seed, device, folder, settings: of this run.
        queries: augmentations of the recipe, applied to the baseline too.
        seconds: what each remembered stage cost when it was made.
        notes: sentences about the participants, for the report.
        others: participants beside these two.
        name: whose network is taught on it.
        made: what the method delivers, once it is scored.
        teacher_seed: teachers are trained from this seed whatever the run's is, so that runs and methods share them.
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
    notes: list[str] = field(default_factory=list)
    others: dict[str, Built] = field(default_factory=dict)
    name: str = "teacher"
    teacher_seed: int = 0
    made: Artifact | None = None

    @property
    def built(self) -> dict[str, Built]:
        """Every participant by name."""
        teacher = {} if self.teacher is None else {"teacher": self.teacher}
        return {"student": self.student, **teacher, **self.others}

    def put(self, name: str, built: Built) -> None:
        """Take a participant: built, or taught."""
        if name in ("student", "teacher"):
            setattr(self, name, built)
        else:
            self.others[name] = built

    def alone(self) -> Built:
        """The student's architecture trained by the task's own loss: same data, steps, optimiser, seed, augmentations."""
        queries = {n: q for n, q in self.queries.items() if q.alone}
        return self.train_network(self.student_model, self.task.train, self.train, "alone", self.seed, queries)

    def teaching(self, name: str, participant: Participant) -> Bench:
        """The same bench as the model of a participant sees it that is to be taught: its own name, task and data."""
        task = self.task.part(participant.task) if participant.task else self.task
        if participant.data == "train":
            task = copy.copy(task)
            task.teacher_train = task.train
        return replace(self, task=task, name=name)

    def train_network(
        self,
        model: Model,
        data: Data,
        optim: Optim,
        name: str,
        seed: int | None = None,
        queries: dict[str, Query] | None = None,
    ) -> Built:
        """A network trained by the task's own loss: a remembered stage, shared by every run with the same key.

        ``seed`` is that of teachers where none is given.
        """
        seed = self.teacher_seed if seed is None else seed
        role = "student" if name == "alone" else name
        built = build_model(model, self.task, seed, role)
        parts = self.parts_of(built, data, optim, seed, queries)
        folder = place(workspace(), name, parts)
        lock = take_turn(folder, lambda: store.is_complete(folder / "network"), self.say, name)
        if lock is not None:
            self.say(f"{name}: training it ({optim.steps} steps){why_anew(folder, name, parts)}")
            with lock:
                describe(folder, parts)
                method = self.unaided(built, data, optim, name, seed, queries)
                engine = Engine(self.settings.of_network(role), seed, folder, progress=self.progress, say=self.say)
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

    def parts_of(
        self, built: Built, data: Data, optim: Optim, seed: int, queries: dict[str, Query] | None
    ) -> dict[str, Any]:
        """What a network that `train_network` trains is remembered by; ``built``: as it is before that."""
        return {
            "network": identity.network(built.module, built.contract, model=built.model),
            "task": identity.of_task(self.task),
            "data": identity.of_data(data),
            "optim": identity.value(optim),
            "queries": {n: identity.value(q) for n, q in (queries or {}).items()},
            "seed": seed,
        }

    def unaided(
        self, built: Built, data: Data, optim: Optim, name: str, seed: int, queries: dict[str, Query] | None
    ) -> Method:
        """The method that trains a network by the task's own loss, bound to it."""
        method = Unaided(data, name)
        method.bind(Setup(self.task, built, None, optim, seed, queries=dict(queries or {}), device=self.device))
        return method


def build_model(model: Model, task: Task, seed: int, name: str) -> Built:
    """A model built with its own key of randomness: the same seed gives the same first weights in every run."""
    with torch.random.fork_rng(devices=[]):
        seed_modules(key_of(seed, "init", name), torch.device("cpu"))
        model.role = name
        try:
            with within_memory(name, model.config):
                built = model.build(task)
        except LimbeckError as error:  # named by the role that the recipe calls it by
            head = error.argument.split(".")[0]
            if error.argument == "model":
                error.argument = name
            elif head in inspect.signature(type(model)).parameters:
                error.argument = f"{name}.{error.argument}"
            raise
    built.model = built.model or model
    return built
