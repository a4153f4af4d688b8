"""A task, networks and methods of a few numbers, to try the engine on: milliseconds a run."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.items import ArrayData
from limbeck.engine.context import RunContext
from limbeck.engine.engine import Engine
from limbeck.engine.settings import EngineSettings
from limbeck.engine.stages import learners
from limbeck.grammar.method import Batch, Built, Context, Method, Objective, Query, Setup, Share, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.role import Role, averaged, cast
from limbeck.grammar.task import Task

CLASSES, WIDTH = 3, 6


def data(n: int = 40, seed: int = 0) -> ArrayData:
    """Rows of six numbers and the class of each."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, WIDTH, generator=g)
    return ArrayData(x, (x[:, :CLASSES] + 0.1 * torch.randn(n, CLASSES, generator=g)).argmax(1))


class ToyTask(Task):
    """Three classes from six numbers."""

    primary = "accuracy"
    higher_is_better = True
    shape = (6,)

    def __init__(self, n: int = 40) -> None:
        self.train = self.teacher_train = data(n)
        self.valid, self.test = data(20, 1), data(20, 2)
        self.labels = [str(i) for i in range(CLASSES)]

    def load(self, seed: int | None = None) -> None:
        """Nothing to read."""

    def supervised(self, signal: Any, batch: Batch) -> Term:
        """Cross-entropy."""
        return Term(nn.functional.cross_entropy(signal.logits, batch["y"], reduction="none"))

    def evaluate(self, built: Built, split: Any, teacher: Built | None = None, device: Any = None) -> dict[str, float]:
        """Accuracy and loss."""
        batch = split.fetch(torch.arange(len(split)))
        built.module.eval()
        with torch.no_grad():
            z = built.module(batch["x"])
        return {
            "accuracy": float((z.argmax(1) == batch["y"]).float().mean()),
            "loss": float(nn.functional.cross_entropy(z, batch["y"])),
        }


def network(width: int = 5, seed: int = 0, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Two layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(WIDTH, width),
            nn.BatchNorm1d(width) if norm else nn.Identity(),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(width, CLASSES),
        )


class Toy(Method):
    """The task's loss, a divergence to the teacher, a centred term by `Share`, an averaged role, adaptive state."""

    def __init__(self, decay: float = 0.9, shard: tuple[str, ...] = ()) -> None:
        self.decay, self.shard = decay, shard

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.roles["mean"] = averaged(self.roles["student"], "student", self.decay)
        for name in self.shard:
            self.roles[name].shard = True
        self.state = {"t": 0.25}

    def step(self, batch: Batch, ctx: Context) -> Generator[Terms | Share, dict[str, Tensor], None]:
        student = ctx.signal("student", batch)
        z_t, z_m = ctx.signal("teacher", batch).logits, ctx.signal("mean", batch).logits
        z = student.logits
        sums = yield Share(z=z.sum(0), n=torch.tensor(float(len(z))))
        gap = (z.softmax(1) - (z_t + z_m).softmax(1)).square().sum(1)
        centred = (z - sums["z"] / sums["n"]).square().sum(1)
        valid = batch["item"] % 3 != 0
        yield Terms(
            {"valid": (valid.sum(), 1)},
            ce=self.task.supervised(student, batch),
            gap=Term(gap, weight=1.0 + self.state["t"], where=valid),
            centred=Term(centred.sum(), weight=0.1, count=len(z)),
        )

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        self.state["t"] = 0.9 * self.state["t"] + 0.1 * seen["gap"]


def setup(
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    objectives: dict[str, Objective] | None = None,
    queries: dict[str, Query] | None = None,
    n: int = 40,
    **train: Any,
) -> Setup:
    """Everything a toy method is bound to."""
    given = {"steps": 8, "batch_size": 8, "lr": 0.05, **train}
    return Setup(
        ToyTask(n),
        Built(student or network()),
        Built(teacher or network(7, seed=1)),
        Optim(**given),
        objectives=objectives or {},
        queries=queries or {},
    )


def bound(method: Method | None = None, **given: Any) -> Method:
    """A method with its participants."""
    made = method or Toy()
    made.bind(setup(**given))
    return made


def engine(folder: Path | None = None, progress: Any = None, evaluate: Any = None, **settings: Any) -> Engine:
    """An engine on the CPU."""
    return Engine(EngineSettings(device="cpu", **settings), 0, folder, progress=progress, evaluate=evaluate)


def within(run: Engine, method: Method, stage: Stage) -> Any:
    """The context of a stage, its learners learning, for a step that is taken by hand."""
    cast(method.roles, tuple(learners(stage, method.roles)))
    return RunContext(run, method, stage, run.device)


def learnt(method: Method) -> dict[str, Any]:
    """Weights and buffers of every role, and the method's state."""
    roles: dict[str, Role] = method.roles
    return {
        "roles": {n: {k: v.clone() for k, v in r.module.state_dict().items()} for n, r in roles.items()},
        "state": dict(method.state),
    }
