"""How what a run made is scored, the same for every row of its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.component import Component
from limbeck.grammar.method import Built, Data, Method, Query
from limbeck.grammar.optim import Optim
from limbeck.grammar.task import Model, Task


class Bench(Protocol):
    """What scoring and teaching may use of a run.

    Attributes:
        task: what the student is for.
        student, teacher: the two that most methods have; ``built`` holds every participant by name.
        student_model: the student's Model component, to build it afresh.
        train: the student's budget.
        method: what runs; ``None`` where networks are only trained.
        seed, device, folder: of this run; ``teacher_seed``: of the teachers that are trained in it.
        queries: augmentations of the recipe, applied to the baseline too.
        made: what the method delivers, once it is scored: baselines may be made as large.
    """

    task: Task
    student: Built
    student_model: Model
    train: Optim
    seed: int
    teacher_seed: int
    device: torch.device
    folder: Path | None
    method: Method | None
    queries: dict[str, Query]
    made: Artifact | None

    @property
    def teacher(self) -> Built | None:
        """The teacher; ``None`` for a method without one."""

    @property
    def built(self) -> dict[str, Built]:
        """Every participant by name."""

    @property
    def name(self) -> str:
        """Whose network is taught on it."""

    def alone(self) -> Built:
        """The student trained by the task's own loss at the same budget: a remembered stage."""

    def train_network(self, model: Model, data: Data, optim: Optim, name: str, seed: int | None = None) -> Built:
        """A network trained by the task's own loss: a remembered stage, shared by every run with the same key."""


Rows = Mapping[str, Callable[[], "Artifact | Mapping[str, float] | None"]]
"""Name -> what makes the row's artifact when its turn comes; or its metrics, where they were measured before; or nothing."""


class Evaluator(Component):
    """How an artifact is scored on a split. Every row of a report goes through the same one.

    Attributes:
        primary: name of the main metric; empty takes the task's.
        higher_is_better: its direction, where ``primary`` is named here.
        baseline: the row that the student is held against (``metrics.alone`` of a result).
        called: row -> what a report calls it, where its own name does not say it.
        even: whether its time grows evenly with the items of the split and the steps of its `Optim` settings, so that a
            plan can tell it from a few.
    """

    kind: ClassVar[str] = "evaluator"
    primary: str = ""
    higher_is_better: bool = False
    baseline: str = "alone"
    called: Mapping[str, str] = MappingProxyType({})
    even: bool = True

    def accept(self, task: Task) -> None:
        """Refuse a task whose artifacts it cannot score: asked when the data are read, before anything is trained."""

    def score(self, artifact: Artifact, bench: Bench, split: str = "test") -> dict[str, float]:
        """Metrics of an artifact on ``train``, ``valid`` or ``test``.

        Raises:
            TypeError: what kind of artifact this evaluator scores.
        """
        raise TypeError(f"{type(self).__name__} must define score")

    def judges(self, task: Task) -> Task:
        """The task whose items rows are evaluated on: the run's, or the labelled one of an encoder that learnt without labels."""
        return task

    def rows(self, bench: Bench) -> Rows:
        """The participants (`participants`) and the baselines, by name; a recipe's ``baselines`` chooses among the latter.

        They run once the student is there.
        """
        return {}

    def extras(self, artifact: Artifact, bench: Bench) -> dict[str, Any]:
        """Further entries of ``result.json`` (images), for the report."""
        return {}


def participants(bench: Bench) -> dict[str, Callable[[], Artifact | Mapping[str, float] | None]]:
    """Rows for those who take part beside the student: the teacher, experts, peers, as far as they are evaluated.

    Of a recorded teacher it is what the recording says of its own: a cache knows its training items only.
    """
    found: dict[str, Callable[[], Artifact | Mapping[str, float] | None]] = {}
    for name, built in bench.built.items():
        who = bench.method.participants.get(name) if bench.method is not None else None
        if name == "student" or (who is not None and not who.scored and (name != "teacher" or who.judged is False)):
            continue
        recorded = getattr(built.module, "metrics", None)
        if isinstance(recorded, dict):
            found[name] = partial(dict, recorded)
        elif isinstance(built.module, nn.Module) or hasattr(built.module, "answer"):
            found[name] = partial(NetworkArtifact, bench.task, built, who.task if who is not None else "")
    return found


def main_metric(evaluator: Evaluator, task: Task) -> tuple[str, bool]:
    """The name of the metric that decides, and whether more of it is better."""
    if evaluator.primary:
        return evaluator.primary, evaluator.higher_is_better
    return task.primary, task.higher_is_better
