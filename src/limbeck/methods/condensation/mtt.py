"""MTT: synthetic data on which a network walks as experts walked on the real data.

Experts are trained on the real data and their parameters kept after every epoch. A student starts at an expert's
epoch t, takes N plain gradient steps on the synthetic images with a learned step size alpha, and should arrive where
the expert was M epochs later:

    theta_{n+1} = theta_n - alpha grad CE(theta_n; A(x_n), y_n),    L = ||theta_N - theta*_{t+M}||^2 / ||theta*_t - theta*_{t+M}||^2

S: images [M, C, H, W];  alpha: step size;  theta: flat parameters [P];  A: differentiable siamese augmentation
"""

from __future__ import annotations

import math
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.augment import dsa, keyed_draw
from limbeck.functional.matching import flat_parameters, flat_step_loss, syn_batches, trajectory_gradient, unflatten
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Participant, Query, Setup, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws, key_of, seed_modules
from limbeck.grammar.role import Role
from limbeck.grammar.task import Task
from limbeck.objectives.queries import Augment
from limbeck.tasks.condensation import Condensation, LearnedLabels, StepSize, SyntheticSet
from limbeck.tasks.synthetic_set import SetArtifact

CARD = Card(
    number=None,
    slug="mtt",
    title="Dataset Distillation by Matching Training Trajectories",
    year=2022,
    venue="CVPR 2022",
    arxiv="2203.11932",
    repository="GeorgeCazenavette/mtt-distillation",
    licence="MIT",
    family="condensation",
    methods={"mtt": "Mtt"},
    optimised="images and a step size",
    signals=("parameter trajectories",),
    provenance={
        "loss, buffer, inner training": "paper and code, checked against recorded vectors",
        "clones of the snapshots": "ours: on a CPU the code's snapshots alias the live weights",
        "floor of the step size": "ours: alpha <= 0 would break the inner training",
        "gradient": "unrolled as published; two-pass (TESLA) and exact (the constant-memory adjoint, ours) on request",
    },
    claim="Synthetic images teach far better than as many random real ones.",
    recipe="mtt",
    exceptions={"at_equality": "the student is a data set: there is no teacher network it could equal"},
    notes="The base that TESLA, FTD and FYI build on.",
)

Gradient = Literal["unrolled", "two-pass", "exact"]
LabelKind = Literal["hard", "target", "fixed", "learned"]
MODES: dict[str, Any] = {"unrolled": "unrolled", "two-pass": "first_order", "exact": "exact"}
SMALLEST_STEP = 1e-6


class Mtt(Method):
    """Matching training trajectories.

    Args:
        gradient: ``unrolled`` through all inner steps; ``two-pass``, TESLA's first-order gradient in constant memory;
            ``exact``, the unrolled gradient in constant memory by the adjoint recursion.
        experts: networks trained on the real data.
        expert_epochs: epochs of each; a snapshot is kept after every one.
        expert: how experts are trained (its ``steps`` are set by the epochs).
        steps: inner steps N of the student.
        ahead: epochs M between the start and the target.
        latest_start: the start t is drawn below this epoch.
        batch_syn: images of one inner step; ``null`` takes all.
        lr_images: learning rate of the images.
        lr_step: learning rate of the step size.
        step_size: where the step size starts.
        initial: images start as random ``real`` ones, or as ``noise``.
        labels: ``hard``; ``target``: the expert's own at the target epoch, new each iteration; ``fixed``: of a fully
            trained expert; ``learned``.
        lr_labels: learning rate of learned labels.
        variant: ``released`` repeats TESLA's code, whose two-pass gradient of the images is half as large.
    """

    participants = MappingProxyType[str, Participant]({})

    def __init__(
        self,
        gradient: Gradient = "unrolled",
        experts: int = 100,
        expert_epochs: int = 50,
        expert: Optim = Optim(lr=0.01, batch_size=256, optimizer="sgd", momentum=0.0, schedule="constant"),  # noqa: B008
        steps: int = 50,
        ahead: int = 2,
        latest_start: int = 5,
        batch_syn: int | None = None,
        lr_images: float = 100.0,
        lr_step: float = 1e-7,
        step_size: float = 0.01,
        initial: Literal["real", "noise"] = "real",
        labels: LabelKind = "hard",
        lr_labels: float = 1.0,
        variant: Literal["paper", "released"] = "paper",
    ) -> None:
        for name, value in (
            ("experts", experts),
            ("expert_epochs", expert_epochs),
            ("steps", steps),
            ("ahead", ahead),
            ("latest_start", latest_start),
        ):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more")
        if latest_start - 1 + ahead > expert_epochs:
            raise ValueError(
                f"latest_start ({latest_start}) - 1 + ahead ({ahead}) must not exceed expert_epochs ({expert_epochs})"
            )
        for name, rate in (("lr_images", lr_images), ("step_size", step_size), ("lr_labels", lr_labels)):
            if not (rate > 0 and math.isfinite(rate)):
                raise ValueError(f"{name} must be a finite number above 0")
        if lr_step < 0:
            raise ValueError("lr_step must be 0 or more")
        if batch_syn is not None and batch_syn < 1:
            raise ValueError("batch_syn must be 1 or more, or null for all images")
        self.gradient: Gradient = gradient
        self.experts, self.expert_epochs, self.expert = experts, expert_epochs, expert
        self.inner_steps, self.ahead, self.latest_start, self.batch_syn = steps, ahead, latest_start, batch_syn
        self.lr_images, self.lr_step, self.step_size, self.initial = lr_images, lr_step, step_size, initial
        self.labels: LabelKind = labels
        self.lr_labels, self.variant = lr_labels, variant

    def accept(self, task: Task) -> None:
        """A data set is made for the condensation task alone."""
        if not isinstance(task, Condensation):
            problem = f"{type(self).__name__} makes a data set"
            raise ConfigError("task", problem, given=type(task).__name__, expected="task=condensation")

    def bind(self, setup: Setup) -> None:
        """Make the synthetic set; keep the network as the shape of experts and students."""
        self.setup, self.state = setup, {}
        task: Any = setup.task
        images, ids = task.choose_real("random", setup.seed)
        if self.batch_syn is not None and self.batch_syn > len(ids):
            raise ConfigError(
                "method.batch_syn", given=self.batch_syn, expected=f"at most the {len(ids)} synthetic images"
            )
        if self.initial == "noise":
            with torch.random.fork_rng(devices=[]):
                seed_modules(key_of(setup.seed, "init", "noise"), torch.device("cpu"))
                images = torch.randn_like(images)
        student = SyntheticSet(images, ids, task.outputs, soft=self.labels in ("target", "fixed"))
        self.network: nn.Module = setup.student.module.requires_grad_(True).eval()
        self.roles = {"student": Role(student), "step_size": Role(StepSize(self.step_size))}
        if self.labels == "learned":
            self.roles["labels"] = Role(LearnedLabels(ids, task.outputs))
        self._cache: dict[int, Tensor] = {}

    def stages(self) -> list[Stage]:
        """Experts (remembered, shared by every method that matches trajectories), then distillation."""
        train = self.setup.train
        optim = {"student": train.with_(lr=self.lr_images, optimizer="sgd", momentum=0.5, schedule="constant")}
        optim["step_size"] = optim["student"].with_(lr=max(self.lr_step, 1e-30))
        if self.labels == "learned":
            optim["labels"] = optim["student"].with_(lr=self.lr_labels)
        return [
            Stage(
                "experts",
                items=lambda ctx: [f"expert{i:03d}" for i in range(self.experts)],
                work=self.train_expert,
                data=self.task.teacher_train,
                optim={"expert": self.expert},
                remember=[self.expert_epochs, self.setup.student],
                roles=(),
            ),
            Stage(
                "distil",
                steps=train.steps,
                batch_size=train.batch_size,
                optim=optim,
                begin=self.begin,
                finish=self.finish,
            ),
        ]

    def train_expert(self, item: str, ctx: Context) -> dict[str, Tensor]:
        """One expert: flat parameters [epochs + 1, P], the first before any step."""
        task, data = self.task, self.task.teacher_train
        net = self.setup.student.model.build(task).module.to(ctx.device)
        optim = ctx.optim["expert"]
        per_epoch = max(1, len(data) // optim.batch_size)
        optim = optim.with_(steps=self.expert_epochs * per_epoch, batch_size=min(optim.batch_size, len(data)))
        snapshots = [flat_parameters(net)]

        def keep(done: int, module: nn.Module) -> None:
            if done % per_epoch == 0:
                snapshots.append(flat_parameters(module))

        def loss(module: nn.Module, batch: Batch, inner: Any) -> Tensor:
            return F.cross_entropy(module(batch["x"]), batch["y"])

        queries = [_Enter(task), *([Augment(task.strategy, task.align_corners)] if task.strategy else [])]
        ctx.fit(net, data, loss, optim, scope=f"experts/{item}", queries=queries, each=keep)
        return {"snapshots": torch.stack(snapshots).cpu()}

    def trajectory(self, number: int, ctx: Context) -> Tensor:
        """An expert's snapshots [epochs + 1, P]."""
        if number not in self._cache:
            if len(self._cache) >= 8:
                self._cache.pop(next(iter(self._cache)))
            self._cache[number] = ctx.artifact("experts", f"expert{number:03d}")["snapshots"].to(ctx.device)
        return self._cache[number]

    def begin(self, ctx: Context) -> None:
        """Fixed soft labels come from a fully trained expert."""
        if self.labels == "fixed":
            student: Any = self.roles["student"].module
            student.soft_labels.copy_(self.soften(self.trajectory(0, ctx)[-1], student.images))

    def soften(self, theta: Tensor, images: Tensor) -> Tensor:
        """Class probabilities [M, C] of a network with parameters theta [P], without augmentation."""
        with torch.no_grad():
            return torch.func.functional_call(self.network, unflatten(theta, self.network), (images.detach(),)).softmax(
                -1
            )

    def pair(self, item: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """The start and the target [P] that an item's draws choose."""
        who = int(ctx.draws.randint("expert", item[None], self.experts))
        t = int(ctx.draws.randint("start", item[None], self.latest_start))
        path = self.trajectory(who, ctx)
        return path[t], path[t + self.ahead]

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """One trajectory for each item of the batch (1 as published): the matching loss through its own gradient."""
        student: Any = self.roles["student"].module
        images, labels = student()
        if self.labels == "learned":
            labels = self.roles["labels"].module()
        alpha = self.roles["step_size"].module.value
        self.network.to(ctx.device)
        values, losses = [], []
        for item in batch["item"]:
            start, target = self.pair(item, ctx)
            draws = ctx.draws.at("inner", int(item))
            y = self.soften(target, images) if self.labels == "target" else labels
            found = trajectory_gradient(
                flat_step_loss(self.network),
                start,
                target,
                images,
                y,
                syn_batches(partial(self.order, draws, images), len(images), self.inner_steps, self.batch_syn),
                alpha.detach(),
                mode=MODES[self.gradient],
                variant=self.variant,
                augment=self.augmentation(draws),
                learn_labels=self.labels == "learned",
            )
            values.append(found.surrogate(images, alpha, y if self.labels == "learned" else None))
            losses.append(found.loss)
        to = tuple(self.roles)
        none = images.new_zeros(0)
        shown = {"step_size": (alpha.detach() * len(values), float(len(values)))}
        return Terms(
            shown,
            match=Term(torch.stack(values) if values else none, to=to, show=torch.stack(losses) if losses else none),
        )

    @staticmethod
    def order(draws: Draws, images: Tensor, k: int) -> Tensor:
        """The order in which the k-th pass goes through the images."""
        return draws.permutation(f"pass{k}", len(images)).to(images.device)

    def augmentation(self, draws: Draws) -> Any:
        """The augmentation of inner step n, replayed from its key."""
        task = self.task
        if not task.strategy:
            return None
        return lambda n, x: dsa(
            x,
            task.strategy,
            keyed_draw(draws, torch.arange(len(x), device=x.device), f"n{n}"),
            align_corners=task.align_corners,
        )

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        """Keep the step size above its floor."""
        with torch.no_grad():
            self.roles["step_size"].module.value.clamp_(min=SMALLEST_STEP)

    def finish(self, ctx: Context) -> None:
        """Labels that followed the target keep those of the last target, for the final images."""
        if self.labels == "target":
            student: Any = self.roles["student"].module
            last = torch.tensor((self.setup.train.steps - 1) * self.setup.train.batch_size)
            draws = ctx.at(self.setup.train.steps - 1)  # type: ignore[attr-defined]
            student.soft_labels.copy_(self.soften(self.pair(last, draws)[1], student.images))

    @property
    def task(self) -> Any:
        """The condensation task."""
        return self.setup.task

    def artifact(self) -> SetArtifact:
        """The synthetic set."""
        student: Any = self.roles["student"].module
        images, labels = student()
        if self.labels == "learned":
            labels = self.roles["labels"].module()
        return SetArtifact(self.task, images, labels, student.ids, float(self.roles["step_size"].module.value.detach()))


class _Enter(Query):
    """Real items into the synthetic space."""

    def __init__(self, task: Condensation) -> None:
        self.task = task

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        return {**batch, "x": self.task.space.enter(batch["x"])}
