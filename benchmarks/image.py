"""One step of knowledge distillation of an image classifier: ours, peers' and the bare floor.

The floor is what nothing can beat honestly: the teacher's forward pass without graph, the student's forward and backward
pass, the optimiser in its fastest form, and the same batches; no log, no check, no checkpoint. Ours runs as ``limbeck run`` runs it: guard,
logs (CSV, JSON lines, TensorBoard) and progress included, from the recipe, measured between two steps of the engine's own
loop. ``cached``: the teacher is read from a recording that ``limbeck cache`` made.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from benchmarks import peers
from benchmarks.harness import (
    Between,
    Check,
    Report,
    Row,
    Say,
    cpu_seconds,
    engine_seconds,
    interleave,
    quiet,
    ratios,
    spread,
)
from limbeck.cache import build_cache
from limbeck.engine.engine import Engine
from limbeck.engine.logs import make_loggers
from limbeck.recipe.recipe import Recipe, build, check
from limbeck.run import prepare

T, ALPHA, RATE = 4.0, 0.9, 0.01
Step = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Case:
    """A pair of networks, and how often its step is taken."""

    name: str
    teacher: dict[str, Any]
    student: dict[str, Any]
    size: int
    channels: int
    classes: int
    batch: int
    steps: int
    rounds: int
    warm: int = 3


@dataclass(frozen=True)
class Settings:
    """Sizes: a step of some 70 ms, whose overhead is evaluated as a share, and one of 1 to 2 ms, evaluated in milliseconds."""

    large: Case = Case("large", {"kind": "resnet18"}, {"kind": "resnet10t"}, 32, 3, 100, 32, steps=8, rounds=9)
    small: Case = Case("small", {"kind": "small", "width": 16}, {"kind": "small"}, 8, 1, 10, 32, steps=100, rounds=25)
    interleaved: int = 2000  # small steps that are taken in turn with the others' one by one
    recorded: int = 60  # large ones, with a recorded teacher


_TINY = {"kind": "small", "width": 4}
TOY = Settings(
    Case("large", _TINY, _TINY, 8, 3, 4, 4, steps=2, rounds=1, warm=1),
    Case("small", _TINY, _TINY, 8, 1, 4, 4, steps=2, rounds=1, warm=1),
    interleaved=4,
    recorded=2,
)


class Pair:
    """Teacher and student, built by the recipe; every variant works on copies of its own."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.online = self.recipe(None)
        bench = prepare(self.online, None, say=quiet)
        assert bench.teacher is not None
        self._teacher, self._student = bench.teacher.module, copy.deepcopy(bench.student.module)
        items = bench.task.train.fetch(torch.arange(8 * case.batch))
        self.x, self.y = items["x"], items["y"]
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            build_cache(self.tree(None), folder / "cache", yes=True)
        self.cached = self.recipe(folder / "cache")
        prepare(self.cached, None, say=quiet)

    def tree(self, cache: Path | None) -> dict[str, Any]:
        """The recipe, as a user with networks of his own would write it."""
        case = self.case
        size = {"items": 8 * case.batch, "size": case.size, "channels": case.channels, "classes": case.classes}
        model = {"use": "import", "function": "benchmarks.pictures:network", "normalise": False}
        data = {"use": "import", "function": "benchmarks.pictures:pictures", "options": size}
        tree = {
            "name": f"bench-{case.name}",
            "task": {"use": "classification", "data": data},
            "teacher": {**model, "options": case.teacher, "ready": True, "check": "off"}
            if cache is None
            else {"use": "cached", "path": str(cache)},
            "student": {**model, "options": case.student},
            "method": {"use": "kd", "temperature": T, "alpha": ALPHA},
            "train": {
                "steps": case.warm + case.steps + 1,
                "batch_size": case.batch,
                "lr": RATE,
                "optimizer": "sgd",
                "schedule": "constant",
            },
            "engine": {"device": "cpu"},
        }
        return check(tree)

    def recipe(self, cache: Path | None) -> Recipe:
        """The recipe, built."""
        return build(self.tree(cache))

    def networks(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        """A frozen teacher, a student, and its optimiser."""
        teacher, student = (
            copy.deepcopy(self._teacher).eval().requires_grad_(False),
            copy.deepcopy(self._student).train(),
        )
        return teacher, student, torch.optim.SGD(student.parameters(), lr=RATE, momentum=0.9, fused=True)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches without end, by the same indexing that ours does."""
        draw = torch.Generator().manual_seed(0)
        while True:
            for ids in torch.randperm(len(self.y), generator=draw).split(self.case.batch):
                yield self.x[ids], self.y[ids]

    def loop(self, step: Step) -> Callable[[], float]:
        """CPU seconds of a step, in somebody's own loop."""
        batches = self.batches()

        def block() -> float:
            for x, y in itertools.islice(batches, self.case.warm):
                step(x, y)
            taken = itertools.islice(batches, self.case.steps)
            return cpu_seconds(lambda: [step(x, y) for x, y in taken]) / self.case.steps

        return block

    def engine(self, recipe: Recipe) -> Callable[[], float]:
        """CPU seconds of a step, in our engine."""
        return lambda: engine_seconds(recipe, self.folder, self.case.warm, self.case.steps)


def distance(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    """The loss that every variant computes: a tenth cross-entropy, nine tenths T squared KL."""
    kl = nnf.kl_div((z_s / T).log_softmax(1), (z_t / T).log_softmax(1), log_target=True, reduction="batchmean")
    return (1 - ALPHA) * nnf.cross_entropy(z_s, y) + ALPHA * T * T * kl


def floor(pair: Pair) -> Step:
    """The bare minimum."""
    teacher, student, optimiser = pair.networks()

    def step(x: Tensor, y: Tensor) -> None:
        with torch.inference_mode():
            z_t = teacher(x)
        loss = distance(student(x), z_t, y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def student_only(pair: Pair) -> Step:
    """Where a recorded teacher would cost nothing at all."""
    _, student, optimiser = pair.networks()
    z_t = torch.randn(pair.case.batch, pair.case.classes)

    def step(x: Tensor, y: Tensor) -> None:
        loss = distance(student(x), z_t, y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def unguarded(pair: Pair) -> Step:
    """A graph through the teacher, and a number read from every loss, as KD-Lib's loop does."""
    teacher, student, optimiser = pair.networks()
    teacher.requires_grad_(True)

    def step(x: Tensor, y: Tensor) -> float:
        loss = distance(student(x), teacher(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def timm_task(pair: Pair) -> Step:
    """timm's LogitDistillationTask."""
    teacher, student, optimiser = pair.networks()
    module = peers.load("timm", "timm.task.distillation")
    task = module.LogitDistillationTask(
        student_model=student,
        teacher_model=teacher,
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=1 - ALPHA,
        temperature=T,
        device=torch.device("cpu"),
        verbose=False,
    )
    task.train()

    def step(x: Tensor, y: Tensor) -> None:
        loss = task(x, y)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def torchdistill_box(pair: Pair) -> Step:
    """torchdistill's DistillationBox."""
    teacher, student, _ = pair.networks()
    module = peers.load("torchdistill", "torchdistill.core.distillation")
    peers.load("torchdistill", "torchdistill.losses.high_level")
    loss = {"temperature": T, "alpha": 1 - ALPHA, "reduction": "batchmean"}
    loss |= {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
    }
    term = {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": 1.0}
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": 0.9, "fused": True}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": term}}},
    }
    box = module.DistillationBox(teacher, student, {}, config, torch.device("cpu"), None, False, 1)

    def step(x: Tensor, y: Tensor) -> None:
        box.pre_forward_process()
        box.post_forward_process(box.forward_process(x, y))

    return step


def modelopt_model(pair: Pair) -> Step:
    """NVIDIA Model Optimizer's DistillationModel."""
    teacher, student, _ = pair.networks()
    distill = peers.load("modelopt", "modelopt.torch.distill")
    settings = {
        "teacher_model": teacher,
        "criterion": distill.LogitsDistillationLoss(temperature=T, reduction="batchmean"),
    }
    settings["loss_balancer"] = distill.StaticLossBalancer(kd_loss_weight=ALPHA)
    model = distill.convert(student, mode=[("kd_loss", settings)])
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE, momentum=0.9, fused=True)
    model.train()

    def step(x: Tensor, y: Tensor) -> None:
        loss = model.compute_kd_loss(student_loss=nnf.cross_entropy(model(x), y))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def textbrewer_distiller(pair: Pair) -> Step:
    """TextBrewer's GeneralDistiller, batch by batch."""
    teacher, student, optimiser = pair.networks()
    textbrewer = peers.load("textbrewer", "textbrewer")

    class Labelled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, y: Tensor) -> Any:
            return self.inner(x)

    def show(batch: Any, out: Tensor) -> dict[str, Any]:
        return {"logits": (out,), "losses": (nnf.cross_entropy(out, batch[1]),)}

    place = pair.folder / "textbrewer"
    train = textbrewer.TrainingConfig(device="cpu", output_dir=str(place), log_dir=None)
    distil = textbrewer.DistillationConfig(temperature=T, kd_loss_weight=ALPHA * T * T, hard_label_weight=1 - ALPHA)
    made = textbrewer.GeneralDistiller(train, distil, Labelled(teacher), Labelled(student), show, show)
    student.train()

    def step(x: Tensor, y: Tensor) -> None:
        loss, parts = made.train_on_batch((x, y), {})
        made.write_loss(loss, 0, parts)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


PEERS: dict[str, Callable[[Pair], Step]] = {
    "timm LogitDistillationTask": timm_task,
    "torchdistill DistillationBox": torchdistill_box,
    "modelopt DistillationModel": modelopt_model,
    "TextBrewer GeneralDistiller": textbrewer_distiller,
}


def measure(report: Report, case: Case, say: Say) -> dict[str, list[float]]:
    """All variants of one case, as rows."""
    with tempfile.TemporaryDirectory() as place:
        pair = Pair(case, Path(place))
        variants: dict[str, Callable[[], float]] = {
            "floor": pair.loop(floor(pair)),
            "limbeck, online": pair.engine(pair.online),
            "limbeck, recorded teacher": pair.engine(pair.cached),
            "student only": pair.loop(student_only(pair)),
            "no guard (formula of KD-Lib's loop)": pair.loop(unguarded(pair)),
        }
        for name, make in PEERS.items():
            with report.peer(f"{case.name}: {name}"):
                step = make(pair)
                step(*next(pair.batches()))
                variants[name] = pair.loop(step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = interleave(variants, case.rounds, lambda text: say(f"{case.name}, {text}"))
    for name, values in raw.items():
        times = ratios(raw, name, "floor")
        over = [1000 * (a - b) for a, b in zip(values, raw["floor"], strict=True)]
        cells = {
            "ms": 1000 * statistics.median(values),
            "of the floor": spread(times),
            "ms over it": statistics.median(over),
        }
        report.rows.append(Row(f"{case.name}: {name}", cells))
    report.raw[case.name] = raw
    return raw


def in_turn(report: Report, case: Case, steps: int, cached: bool, say: Say) -> dict[str, list[float]]:
    """One engine's run between whose steps others take theirs: CPU seconds of every step of everybody.

    Args:
        report: a peer that is missing is told there.
        case: the pair of networks.
        steps: how many are counted.
        cached: the engine's teacher is a recording, and the others train the student alone.
        say: told how far it is.
    """
    case = replace(case, steps=steps + case.warm)
    say(f"{case.name}, {steps} steps in turn")
    with tempfile.TemporaryDirectory() as place:
        pair = Pair(case, Path(place))
        made: dict[str, Step] = {"student only": student_only(pair)} if cached else {"floor": floor(pair)}
        if not cached:
            with report.peer(f"{case.name}, in turn: timm LogitDistillationTask"):
                made["timm"] = timm_task(pair)
        ours = Between({name: _of(step, pair.batches()) for name, step in made.items()}, case.warm)
        recipe = pair.cached if cached else pair.online
        with warnings.catch_warnings(), make_loggers(["csv", "jsonl", "tensorboard"], Path(place) / "logs", {}) as logs:
            warnings.simplefilter("ignore")
            Engine(recipe.engine, recipe.seed, Path(place) / "run", None, logs, ours).run(recipe.method)
        ours.close()
    return ours.seconds


def _of(step: Step, batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], Any]:
    return lambda: step(*next(batches))


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """The median, and the 95 % interval of it by order statistics, whatever the distribution."""
    sides = sorted(values)
    n = len(sides)
    reach = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach))
    return statistics.median(sides), sides[low], sides[high]


def against_timm(report: Report, seconds: dict[str, list[float]]) -> None:
    """What the engine's step and timm's cost over the floor: medians of the steps taken in turn."""
    middle = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    over = {name: value - middle["floor"] for name, value in middle.items()}
    for name, value in middle.items():
        shown = {"engine": "limbeck, online", "timm": "timm LogitDistillationTask"}.get(name, name)
        cells = {"ms": value, "of the floor": f"{value / middle['floor']:.3g}", "ms over it": over[name]}
        report.rows.append(Row(f"small, in turn: {shown}", cells))
    limit = 3 * max(over["timm"], 0.08) if "timm" in over else 0.24
    why = (
        "three times timm's"
        if "timm" in over and over["timm"] > 0.08
        else "three times timm's on a quiet machine, 0.08"
    )
    report.checks.append(Check(f"small step in turn, milliseconds over the floor ({why})", over["engine"], limit))


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """The step beside its floor."""
    settings = settings or Settings()
    report = Report("image", "A step of image distillation beside the bare floor (CPU time)", asdict(settings))
    large = measure(report, settings.large, say)
    small = measure(report, settings.small, say)
    online = statistics.median(ratios(large, "limbeck, online", "floor"))
    recorded = statistics.median(ratios(large, "limbeck, recorded teacher", "floor"))
    over = [1000 * (a - b) for a, b in zip(small["limbeck, online"], small["floor"], strict=True)]
    report.checks += [
        Check("large step over the floor", online, 1.05),
        Check("large step with a recorded teacher over the floor", recorded, 0.75),
        Check("small step, milliseconds over the floor", statistics.median(over), 0.7),
    ]
    against_timm(
        report,
        report.raw.setdefault("small, in turn", in_turn(report, settings.small, settings.interleaved, False, say)),
    )
    turns = in_turn(report, settings.large, settings.recorded, True, say)
    report.raw["large, recorded, in turn"] = turns
    share, low, high = interval(a / b for a, b in zip(turns["engine"], turns["student only"], strict=True))
    what = "large step with a recorded teacher over training the student alone, lower end of the median's 95 % interval"
    report.checks.append(Check(what, low, 1.03))
    report.notes.append(
        f"a recorded teacher in turn: {share:.3f} [{low:.3f}, {high:.3f}] of training the student alone"
    )
    alone = statistics.median(ratios(large, "student only", "floor"))
    report.notes.append(
        f"a recorded teacher that costs nothing would give {alone:.2f} of the floor for these two networks"
    )
    report.notes.append(
        "modelopt and TextBrewer are run as their own examples do; TextBrewer computes a cross-entropy instead of the KL"
    )
    return report


__all__ = ["PEERS", "TOY", "Settings", "run"]
