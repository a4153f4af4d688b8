"""A step of each classification method beside the floor of its own passes.

The floor is a bare loop that reads the same images and makes the passes that the method's mathematics asks for: the teacher
without a graph, the student forward and backward with cross-entropy, the optimizer in its fastest form; where a method needs
more passes (a second student, gradients with respect to images, a look ahead, networks of its own), the table says which, and
the floor has them. What a method computes on top (divergences, relations, memories) is not in the floor: it is what is
measured. One run of the engine takes the floor's step between two of its own, so that both meet the same moment of the machine;
four steps are one round.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.harness import Between, Check, Report, Row, Say, quiet, spread
from limbeck.engine.engine import Engine
from limbeck.engine.logs import make_loggers
from limbeck.recipe.recipe import Recipe, build, check
from limbeck.run import prepare

ROUND = 4
"""Steps of a round: a method that alternates (HARD) has taken each kind of step equally often in it."""

LIMIT, SHORT, LEAST = 1.10, 15.0, 0.25
"""The promise: at most this multiple of the floor, and for a floor of fewer milliseconds, so many milliseconds over it."""


@dataclass(frozen=True)
class Passes:
    """Passes of one step, on average.

    Attributes:
        student: forward and backward.
        teacher: forward, without a graph.
        second: forward and backward of a second network that learns, built like the teacher.
        other: forward of a second student without a graph (an average, an earlier self).
        through: forward and backward of student and teacher with respect to images, of an augmentation that learns.
        ahead: a step that is looked through: the student's gradient twice, with its own graph, and the passes of held-out items.
    """

    student: float = 1
    teacher: float = 1
    second: float = 0
    other: float = 0
    through: float = 0
    ahead: float = 0

    def __str__(self) -> str:
        return ", ".join(f"{n} {v:g}" for n, v in asdict(self).items() if v)


@dataclass(frozen=True)
class Case:
    """A method and its passes.

    Attributes:
        recipe: what its recipe has beside the common one.
        passes: of a step.
        stage: the stage that is measured; by default all.
        why: what the passes beyond one of each are for.
    """

    recipe: Mapping[str, Any]
    passes: Passes = Passes()
    stage: str | None = None
    why: str = ""


def hint(use: str, **settings: Any) -> dict[str, Any]:
    """Cross-entropy and one objective."""
    taps = {} if use in ("crd", "dist", "norm-direction") else {"student": TAP, "teacher": TAP}
    return {"method": {"use": "kd", "alpha": 0.0}, "objectives": {use: {"use": use, **taps, **settings}}}


def method(use: str, **settings: Any) -> dict[str, Any]:
    """A method of its own."""
    return {"method": {"use": use, **settings}}


TAP, LAST = "features.7", "classifier:in"
CASES: dict[str, Case] = {
    "kd": Case(method("kd")),
    "dkd": Case(method("dkd")),
    "nkd": Case(method("nkd")),
    "uskd": Case({**method("uskd", feature=TAP), "teacher": None}, Passes(teacher=0)),
    "dist": Case(hint("dist")),
    "fitnets": Case(hint("feature")),
    "at": Case(hint("attention")),
    "sp": Case(hint("relation", student=LAST, teacher=LAST)),
    "cc": Case(hint("cc", student=LAST, teacher=LAST)),
    "rkd": Case(hint("rkd", student=LAST, teacher=LAST, distance=25.0, angle=50.0)),
    "pkt": Case(hint("pkt", student=LAST, teacher=LAST)),
    "vid": Case(hint("vid")),
    "nst": Case(hint("nst")),
    "review": Case(hint("review", student=["features.3", TAP], teacher=["features.3", TAP], middle=32)),
    "crd": Case(hint("crd", count=128)),
    "simkd": Case(method("simkd")),
    "label smoothing": Case(
        {**method("kd", alpha=0.0), "queries": {"smooth": {"use": "label-smoothing"}}}, Passes(teacher=0)
    ),
    "nd-loss": Case(method("nd-loss", warm_up=0)),
    "mixup-kd": Case(method("mixup-kd")),
    "trg": Case(method("trg", tokens=4, k=8)),
    "ssld": Case(method("ssld", finetune=0, fix=0), stage="everything"),
    "guided-self-distillation": Case(
        {**method("guided-self-distillation", steps=2, weights="constant"), "teacher": None},
        Passes(teacher=0, other=1),
        stage="step2",
        why="the network of the step before answers beside",
    ),
    "tgeo-kd": Case(
        method("tgeo-kd"),
        Passes(ahead=1),
        why="the controller's gradient through one step of the student: its gradient with a graph, held-out items, and back",
    ),
    "hard": Case(
        method("hard", augmentor="affine", schedule="ratio", augment_steps=1, student_steps=1),
        Passes(student=1, teacher=1.5, through=0.5),
        why="every other step learns the augmentation, by gradients through both networks; the others have two sets of images",
    ),
    "bd-kd": Case(
        method("bd-kd"), Passes(teacher=0, second=1), why="the teacher learns beside its student: two backward passes"
    ),
    "multi-teacher": Case(
        {
            **method("multi-teacher"),
            "participants": {"teacher2": {"use": "convnet", "width": 32, "depth": 3, "norm": "batch", "check": "off"}},
        },
        Passes(teacher=2),
        why="two teachers",
    ),
    "mean-teacher": Case(
        {**method("mean-teacher"), "teacher": None}, Passes(teacher=0, other=1), why="the average answers beside"
    ),
}


@dataclass(frozen=True)
class Settings:
    """Sizes of images and networks, and how much is measured."""

    side: int = 32
    items: int = 256
    classes: int = 10
    student: int = 32
    teacher: int = 64
    batch: int = 32
    warm: int = 4
    rounds: int = 5
    cases: tuple[str, ...] = field(default_factory=lambda: tuple(CASES))


TOY = Settings(16, 48, 4, 4, 4, 8, warm=1, rounds=1, cases=("kd", "review", "hard", "bd-kd"))


class Lane(Between):
    """`Between` that counts the steps of one stage alone."""

    def __init__(self, others: Mapping[str, Callable[[], Any]], warm: int, only: str | None) -> None:
        super().__init__(others, warm)
        self.only, self.counts = only, only is None

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """A stage begins."""
        self.counts = self.only in (None, name)
        super().stage(name, total, done)

    def advance(self, n: int = 1, **metrics: Any) -> None:
        """A step is done."""
        if self.counts:
            super().advance(n, **metrics)


class Bare:
    """The floor of a case: its passes, by networks built as the recipe builds them.

    Args:
        recipe: a prepared recipe; its networks are copied.
        passes: of a step.
        settings: sizes.
        task: whose images are read.
        teacher: the recipe's teacher; ``None`` where it has none.
    """

    def __init__(
        self, recipe: Recipe, passes: Passes, settings: Settings, task: Any, teacher: nn.Module | None
    ) -> None:
        roles: Any = recipe.method.roles
        self.passes, self.task, self.taken = passes, task, 0
        self.roles = roles
        self.own: dict[str, tuple[nn.Module, list[Any]]] = {}
        self.student = copy.deepcopy(roles["student"].module).train().requires_grad_(True)
        self.second = copy.deepcopy(teacher).train().requires_grad_(True) if teacher is not None else None
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False) if teacher is not None else None
        learners = [*self.student.parameters()]
        if passes.second and self.second is not None:
            learners += self.second.parameters()
        self.optimizer = torch.optim.SGD(learners, lr=1e-3, fused=True)
        draw = torch.Generator().manual_seed(0)
        order = torch.randperm(settings.items, generator=draw).split(settings.batch)
        self.order = itertools.cycle([ids for ids in order if len(ids) == settings.batch])

    def due(self, count: float) -> int:
        """How often a pass is made in this step, where it is made ``count`` times a step on average."""
        return int(count * (self.taken + 1)) - int(count * self.taken)

    def step(self) -> None:
        """One step."""
        p, batch = self.passes, self.task.train.fetch(next(self.order))
        x, y = batch["x"].float(), batch["y"]
        if self.teacher is not None:
            with torch.inference_mode():
                for _ in range(self.due(p.teacher)):
                    self.teacher(x)
        with torch.inference_mode():
            for _ in range(self.due(p.other)):
                self.student(x)
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.due(p.ahead)):
            self.ahead(x, y)
        for _ in range(self.due(p.through)):
            assert self.teacher is not None
            image = x.clone().requires_grad_()
            torch.autograd.grad(self.student(image).sum() + self.teacher(image).sum(), image)
        for module, given in self.own_networks():
            answer = module(*given)
            parts = answer if isinstance(answer, (tuple, list)) else (answer,)
            shown = [part for part in parts if isinstance(part, Tensor) and part.requires_grad]
            torch.autograd.backward(shown, [torch.ones_like(part) for part in shown])
        learns = 0
        for net, count in ((self.student, p.student), (self.second, p.second)):
            for _ in range(self.due(count) if net is not None else 0):
                assert net is not None
                cross_entropy(net(x), y).backward()
                learns += 1
        if learns:
            self.optimizer.step()
        self.taken += 1

    def own_networks(self) -> Iterator[tuple[nn.Module, list[Any]]]:
        """Copies of the method's projectors, each with what it was called with last: their passes are the mathematics', too."""
        for name, role in self.roles.items():
            if not name.startswith("projector") or not isinstance(role.module, nn.Module):
                continue
            if not any(p.requires_grad for p in role.module.parameters()):
                continue
            if name not in self.own:
                seen: list[Any] = []
                self.own[name] = (copy.deepcopy(role.module), seen)

                def note(_: nn.Module, given: tuple[Any, ...], seen: list[Any] = seen) -> None:
                    seen[:] = given

                role.module.register_forward_pre_hook(note)
            module, last = self.own[name]
            if last:
                floats = [isinstance(a, Tensor) and a.is_floating_point() for a in last]
                # the student's feature gets a gradient, the teacher's does not
                yield (
                    module,
                    [a.detach().requires_grad_(a.requires_grad) if f else a for a, f in zip(last, floats, strict=True)],
                )

    def ahead(self, x: Tensor, y: Tensor) -> None:
        """A gradient through one step of the student, to one number."""
        share = torch.ones((), requires_grad=True)
        named = dict(self.student.named_parameters())
        found = torch.autograd.grad(share * cross_entropy(self.student(x), y), [*named.values()], create_graph=True)
        moved = {n: v - 1e-3 * g for (n, v), g in zip(named.items(), found, strict=True)}
        z = torch.func.functional_call(self.student, moved, (x,))
        torch.autograd.grad(cross_entropy(z, y), share)


def tree(case: Case, settings: Settings) -> dict[str, Any]:
    """The recipe of a case, as a user would write it."""
    s = settings
    size = {"items": s.items, "size": s.side, "channels": 3, "classes": s.classes}
    common = {"use": "convnet", "depth": 3, "norm": "batch"}
    train = {"optimizer": "sgd", "lr": 1e-3, "schedule": "constant"}
    own = dict(case.recipe)
    teacher = own.pop("teacher", {**common, "width": s.teacher, "check": "off"})
    given = {
        "name": "bench-steps",
        "task": {
            "use": "classification",
            "data": {"use": "import", "function": "benchmarks.pictures:pictures", "options": size},
        },
        "student": {**common, "width": s.student},
        "train": {**train, "steps": s.warm + ROUND * s.rounds + 1, "batch_size": s.batch},
        "engine": {"device": "cpu"},
        "baselines": [],
        **own,
    }
    if teacher is not None:
        given |= {"teacher": teacher, "teach": {**train, "steps": 1, "batch_size": 8}}
    return check(given)


def measure(case: Case, settings: Settings, folder: Path) -> tuple[dict[str, list[float]], list[str]]:
    """CPU seconds of every round, of the engine and of the floor; and the networks of the method's own."""
    recipe = build(tree(case, settings))
    bench = prepare(recipe, None, say=quiet)
    bare = Bare(recipe, case.passes, settings, bench.task, None if bench.teacher is None else bench.teacher.module)
    lane = Lane({"floor": bare.step}, settings.warm, case.stage)
    with (
        tempfile.TemporaryDirectory(dir=folder) as place,
        make_loggers(["csv", "jsonl", "tensorboard"], Path(place), {}) as logs,
    ):
        Engine(recipe.engine, recipe.seed, Path(place), None, logs, lane).run(recipe.method)
    lane.close()
    # the last step is followed by what a stage does at its end
    count = ROUND * settings.rounds
    found = {
        name: [sum(taken[i : i + ROUND]) / ROUND for i in range(0, count, ROUND)]
        for name, taken in lane.seconds.items()
    }
    return found, list(bare.own)


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """Every method beside the floor of its passes."""
    settings = settings or Settings()
    report = Report("steps", "A step of each classification method beside its own passes (CPU time)", asdict(settings))
    report.raw["seconds"] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in settings.cases:
            say(name)
            case = CASES[name]
            with report.peer(f"limbeck: {name}"):
                found, own = measure(case, settings, Path(place))
                report.raw["seconds"][name] = found
                add(report, name, case, found, own)
    report.notes.append(
        "diswot has no step of its own: its students are distilled by kd; ferkd has a benchmark of its own"
    )
    return report


def add(report: Report, name: str, case: Case, found: Mapping[str, list[float]], own: list[str]) -> None:
    """A method's row, and its promise."""
    over = [a / b for a, b in zip(found["engine"], found["floor"], strict=True)]
    more = [1000 * (a - b) for a, b in zip(found["engine"], found["floor"], strict=True)]
    ms, floor = (1000 * statistics.median(found[k]) for k in ("engine", "floor"))
    cells = {"ms": ms, "floor": floor, "of the floor": spread(over), "passes": ", ".join([str(case.passes), *own])}
    report.rows.append(Row(f"limbeck: {name}", cells, case.why))
    if floor >= SHORT:
        report.checks.append(Check(f"{name}: step over its passes", statistics.median(over), LIMIT))
    else:
        report.checks.append(Check(f"{name}: milliseconds over its passes", statistics.median(more), LEAST))


__all__ = ["CASES", "TOY", "Case", "Passes", "Settings", "run"]
