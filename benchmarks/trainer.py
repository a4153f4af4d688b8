"""A whole step of language-model distillation: ours, TRL's GKDTrainer and a bare loop.

The floor is a hand-written loop: the teacher's forward pass without graph, the student's forward and backward pass, the
divergence from torch's own functions over the tokens that count, clipping, AdamW; the same rows of tokens; no log, no
check. Ours runs as ``limbeck run`` runs it. TRL's GKDTrainer trains on the same rows with ``lmbda=0, beta=0``: forward KL
on the data, nothing generated.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from benchmarks import peers
from benchmarks.harness import Check, Report, Row, Say, Ticks, cpu_seconds, interleave, quiet, ratios, spread
from limbeck.engine.engine import Engine
from limbeck.engine.logs import make_loggers
from limbeck.recipe.recipe import Recipe, build, check
from limbeck.run import prepare

RATE, MIXED = 1e-3, 0.5
METHODS: dict[str, dict[str, Any]] = {
    "forward KL": {"use": "token-kd", "value": "kl"},
    "TAID": {"use": "taid", "t_start": MIXED, "alpha": "auto"},
}


@dataclass(frozen=True)
class Settings:
    """Sizes: a Llama of 4 layers and width 256 teaches one of 2 and 128."""

    vocabulary: int = 2000
    length: int = 64
    batch: int = 8
    teacher: tuple[int, int] = (4, 256)
    student: tuple[int, int] = (2, 128)
    steps: int = 8
    warm: int = 3
    rounds: int = 9


TOY = Settings(vocabulary=300, length=8, batch=2, teacher=(1, 16), student=(1, 16), steps=2, warm=1, rounds=1)


class Pair:
    """Teacher and student as recipes build them; every variant works on copies of its own."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.recipes: dict[str, Recipe] = {}
        for name, method in METHODS.items():
            self.recipes[name] = build(self.tree(method))
            bench = prepare(self.recipes[name], None, say=quiet)
        assert bench.teacher is not None
        self.task: Any = bench.task
        self._teacher, self._student = bench.teacher.module, copy.deepcopy(bench.student.module)
        self.rows = self.task.train.fetch(torch.arange(min(len(self.task.train), 20 * settings.batch)))

    def tree(self, method: dict[str, Any]) -> dict[str, Any]:
        """The recipe."""
        s = self.settings
        return check(
            {
                "name": "bench-trainer",
                "task": {"use": "language", "data": "pydoc", "vocab_size": s.vocabulary, "length": s.length},
                "teacher": {"use": "causal-lm", "layers": s.teacher[0], "width": s.teacher[1], "heads": 4},
                "student": {"use": "causal-lm", "layers": s.student[0], "width": s.student[1], "heads": 4},
                "method": method,
                "teach": {"steps": 1, "batch_size": 2},
                "train": {
                    "steps": s.warm + s.steps + 1,
                    "batch_size": s.batch,
                    "lr": RATE,
                    "schedule": "constant",
                    "clip": 1.0,
                },
                "engine": {"device": "cpu"},
            }
        )

    def networks(self) -> tuple[Any, Any]:
        """A frozen teacher and a student."""
        return copy.deepcopy(self._teacher).eval().requires_grad_(False), copy.deepcopy(self._student).train()

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Shuffled batches without end."""
        draw = torch.Generator().manual_seed(0)
        names = ("input_ids", "attention_mask", "labels")
        while True:
            for ids in torch.randperm(len(self.rows["labels"]), generator=draw).split(self.settings.batch):
                if len(ids) == self.settings.batch:
                    yield {name: self.rows[name][ids] for name in names}

    def floor(self, name: str) -> Callable[[], float]:
        """CPU seconds of a step of the bare loop."""
        teacher, student = self.networks()
        optimiser = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0, fused=True)
        distance = forward_kl if name == "forward KL" else taid
        batches = self.batches()

        def step() -> None:
            batch = next(batches)
            given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
            where = batch["labels"][:, 1:] != -100
            with torch.inference_mode():
                z_t = teacher(**given).logits[:, :-1]
            values = distance(student(**given).logits[:, :-1], z_t)
            loss = (values * where).sum() / where.sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0, foreach=True)
            optimiser.step()

        def block() -> float:
            for _ in range(self.settings.warm):
                step()
            return cpu_seconds(step, self.settings.steps)

        return block

    def engine(self, name: str) -> Callable[[], float]:
        """CPU seconds of a step of our engine."""
        recipe = self.recipes[name]

        def block() -> float:
            ticks = Ticks(self.settings.warm, self.settings.warm + self.settings.steps)
            with (
                tempfile.TemporaryDirectory(dir=self.folder) as place,
                make_loggers(["csv", "jsonl", "tensorboard"], Path(place), {}) as logs,
            ):
                Engine(recipe.engine, recipe.seed, Path(place), None, logs, ticks).run(recipe.method)
            ticks.close()
            return ticks.seconds

        return block

    def trl(self) -> Callable[[], float]:
        """CPU seconds of a step of TRL's GKDTrainer."""
        gkd = peers.load("trl", "trl.experimental.gkd")
        transformers = peers.load("trl", "transformers")
        datasets = peers.load("trl", "datasets")
        transformers.logging.set_verbosity_error()
        first, last = self.settings.warm, self.settings.warm + self.settings.steps
        teacher, student = self.networks()
        names = ("input_ids", "attention_mask", "labels")
        data = datasets.Dataset.from_dict({n: self.rows[n].tolist() for n in names})
        ticks = Ticks(first, last)

        class Clock(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                ticks.advance(1)

        def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            return {n: torch.tensor([row[n] for row in rows]) for n in names}

        def block() -> float:
            with tempfile.TemporaryDirectory(dir=self.folder) as place:
                args = gkd.GKDConfig(
                    output_dir=place,
                    lmbda=0.0,
                    beta=0.0,
                    temperature=1.0,
                    max_steps=last,
                    per_device_train_batch_size=self.settings.batch,
                    learning_rate=RATE,
                    lr_scheduler_type="constant",
                    optim="adamw_torch",
                    max_grad_norm=1.0,
                    use_cpu=True,
                    bf16=False,
                    gradient_checkpointing=False,
                    save_strategy="no",
                    report_to=[],
                    logging_steps=20,
                    disable_tqdm=True,
                )
                trainer = gkd.GKDTrainer(
                    model=student,
                    teacher_model=teacher,
                    args=args,
                    data_collator=collate,
                    train_dataset=data,
                    processing_class=self.task.tokenizer,
                    callbacks=[Clock()],
                )
                trainer.remove_callback(transformers.PrinterCallback)
                ticks.done = 0
                trainer.train()
            return ticks.seconds

        return block


def forward_kl(z_s: Tensor, z_t: Tensor) -> Tensor:
    """KL(teacher || student) of every token."""
    return nnf.kl_div(z_s.log_softmax(-1), z_t.log_softmax(-1), log_target=True, reduction="none").sum(-1)


def taid(z_s: Tensor, z_t: Tensor) -> Tensor:
    """Cross-entropy to a target half-way between the student, held constant, and the teacher."""
    target = torch.lerp(z_s.detach(), z_t, MIXED).softmax(-1)
    return -(target * z_s.log_softmax(-1)).sum(-1)


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """Whole steps beside the floor."""
    settings = settings or Settings()
    report = Report("trainer", "A step of language distillation beside a bare loop (CPU time)", asdict(settings))
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        say("building the models")
        pair = Pair(settings, Path(place))
        variants: dict[str, Callable[[], float]] = {}
        for name in METHODS:
            variants[f"{name}: floor"] = pair.floor(name)
            variants[f"{name}: limbeck"] = pair.engine(name)
        with report.peer("forward KL: TRL GKDTrainer"):
            block = pair.trl()
            block()
            variants["forward KL: TRL GKDTrainer"] = block
        raw = interleave(variants, settings.rounds, say)
    report.raw["seconds a step"] = raw
    for name in sorted(raw):
        floor = f"{name.split(':')[0]}: floor"
        over = [1000 * (a - b) for a, b in zip(raw[name], raw[floor], strict=True)]
        cells = {"ms": 1000 * statistics.median(raw[name]), "of the floor": spread(ratios(raw, name, floor))}
        report.rows.append(Row(name, {**cells, "ms over it": statistics.median(over)}))
    for name in METHODS:
        share = statistics.median(ratios(raw, f"{name}: limbeck", f"{name}: floor"))
        report.checks.append(Check(f"{name}: whole step over the floor", share, 1.05))
    return report


__all__ = ["TOY", "Settings", "run"]
