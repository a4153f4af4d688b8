"""MTT: synthetic data on which a network walks as experts walked on the real data.

Experts are trained on the real data and their parameters kept after every epoch. A student starts at an expert's
epoch t, takes N plain gradient steps on the synthetic images with a learned step size alpha, and should arrive where
the expert was M epochs later:

    theta_{n+1} = theta_n - alpha grad CE(theta_n; A(x_n), y_n),    L = ||theta_N - theta*_{t+M}||^2 / ||theta*_t - theta*_{t+M}||^2

S: images [M, C, H, W];  alpha: step size;  theta: flat parameters [P];  A: differentiable siamese augmentation
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.functional.matching import Augment, StepLoss, flat_step_loss, trajectory_gradient
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Participant, Setup, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Positive, settings
from limbeck.parts.trajectories import Experts, passes, replayed, soften
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


@settings
class Mtt(Method[Condensation]):
    """Matching training trajectories.

    Learning rates stand under ``stages``: ``stages.distil.student.lr`` of the images, ``stages.distil.step_size.lr``,
    ``stages.distil.labels.lr``; how experts are trained under ``stages.experts.expert``.

    Args:
        gradient: ``unrolled`` through all inner steps; ``two-pass``, TESLA's first-order gradient in constant memory;
            ``exact``, the unrolled gradient in constant memory by the adjoint recursion.
        experts: networks trained on the real data.
        expert_epochs: epochs of each; a snapshot is kept after every one.
        steps: inner steps N of the student.
        ahead: epochs M between the start and the target.
        latest_start: the start t is drawn below this epoch.
        batch_syn: images of one inner step; ``null`` takes all.
        step_size: where the step size starts.
        initial: images start as random ``real`` ones, or as ``noise``.
        labels: ``hard``; ``target``: the expert's own at the target epoch, new each iteration; ``fixed``: of a fully
            trained expert; ``learned``.
        variant: ``released`` repeats TESLA's code, whose two-pass gradient of the images is half as large.
    """

    participants = MappingProxyType[str, Participant]({})
    image_lr: ClassVar[float] = 100.0

    gradient: Gradient = "unrolled"
    experts: Count = 100
    expert_epochs: Count = 50
    steps: Count = 50
    ahead: Count = 2
    latest_start: Count = 5
    batch_syn: Count | None = None
    step_size: Positive = 0.01
    initial: Literal["real", "noise"] = "real"
    labels: LabelKind = "hard"
    variant: Literal["paper", "released"] = "paper"

    def validate(self) -> None:
        """Targets lie on the experts' path."""
        if self.ahead > self.expert_epochs:
            raise ValueError(f"ahead must be at most expert_epochs ({self.expert_epochs})")
        last = self.expert_epochs - self.ahead + 1
        if self.latest_start > last:
            raise ValueError(f"latest_start must be at most {last}: the target lies ahead of it, within expert_epochs")

    def bind(self, setup: Setup) -> None:
        """Make the synthetic set; keep the network as the shape of experts and students."""
        super().bind(setup)
        task = self.task
        images, ids = task.choose_real("random", setup.seed)
        if self.batch_syn is not None and self.batch_syn > len(ids):
            expected = f"at most the {len(ids)} synthetic images"
            raise ConfigError("method.batch_syn", given=self.batch_syn, expected=expected)

        def start() -> SyntheticSet:
            first = images if self.initial == "real" else torch.randn_like(images)
            return SyntheticSet(first, ids, task.outputs, soft=self.labels in ("target", "fixed"))

        self.net: nn.Module = setup.student.module.requires_grad_(True).eval()
        self.new("student", start)
        self.new("step_size", lambda: StepSize(self.step_size))
        if self.labels == "learned":
            self.new("labels", lambda: LearnedLabels(ids, task.outputs))
        sgd = Optim(lr=0.01, batch_size=256, optimizer="sgd", momentum=0.0, schedule="constant")
        self.buffer = Experts(self, self.experts, self.expert_epochs, sgd)

    def stages(self) -> list[Stage]:
        """Experts (remembered, shared by every method that matches trajectories), then distillation."""
        train = self.setup.train
        sgd = train.with_(optimizer="sgd", momentum=0.5, schedule="constant")
        rates = {"student": self.image_lr, "step_size": 1e-7, "labels": 1.0}
        optim = {role: sgd.with_(lr=lr) for role, lr in rates.items() if role in self.roles}
        distil = Stage("distil", steps=train.steps, batch_size=train.batch_size, optim=optim)
        distil.begin, distil.finish = self.first_labels, self.last_labels
        return [self.buffer.stage(), distil]

    def first_labels(self, ctx: Context) -> None:
        """Fixed soft labels come from a fully trained expert."""
        if self.labels == "fixed":
            student: Any = self.roles["student"].module
            student.soft_labels.copy_(soften(self.net, self.buffer.path(0, ctx)[-1], student.images))

    def shown(self) -> tuple[Tensor, Tensor]:
        """The images [M, C, H, W], and their classes [M] or soft labels [M, C]."""
        images, labels = self.roles["student"].module()
        return images, self.roles["labels"].module() if self.labels == "learned" else labels

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """One trajectory for each item of the batch (1 as published): the matching loss through its own gradient."""
        images, labels = self.shown()
        alpha = self.roles["step_size"].module.value
        self.net.to(ctx.device)
        values, losses = [], []
        for item in batch["item"]:
            start, target = self.buffer.pair(item, ctx, self.latest_start, self.ahead)
            y = soften(self.net, target, images) if self.labels == "target" else labels
            loss, batches, augment = self.walk(images, ctx.draws.at("inner", int(item)))
            found = trajectory_gradient(
                *(loss, start, target, images, y, batches, alpha.detach()),
                mode=MODES[self.gradient],
                variant=self.variant,
                augment=augment,
                learn_labels=self.labels == "learned",
            )
            values.append(found.surrogate(images, alpha, y if self.labels == "learned" else None))
            losses.append(found.loss)
        none = images.new_zeros(0)
        match = torch.stack(values) if values else none
        term = Term(match, to=tuple(self.roles), show=torch.stack(losses) if losses else none)
        return Terms({"step_size": (alpha.detach() * len(values), float(len(values)))}, match=term)

    def walk(self, images: Tensor, draws: Draws) -> tuple[StepLoss, list[Tensor], Augment | None]:
        """The inner training: the loss of a step, which images each of the N steps sees, and how they are augmented."""
        batches = passes(draws, images, self.steps, self.batch_syn)
        return flat_step_loss(self.net), batches, replayed(self.task, draws)

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        """Keep the step size above its floor."""
        with torch.no_grad():
            self.roles["step_size"].module.value.clamp_(min=SMALLEST_STEP)

    def last_labels(self, ctx: Context) -> None:
        """Labels that followed the target keep those of the last target, for the final images."""
        if self.labels == "target":
            student: Any = self.roles["student"].module
            last = ctx.at(ctx.total - 1)
            first_item = torch.tensor(last.step * ctx.batch_size)
            target = self.buffer.pair(first_item, last, self.latest_start, self.ahead)[1]
            student.soft_labels.copy_(soften(self.net, target, student.images))

    def artifact(self) -> SetArtifact:
        """The synthetic set."""
        ids, alpha = self.roles["student"].module.ids, float(self.roles["step_size"].module.value.detach())
        return SetArtifact(self.task, *self.shown(), ids, alpha)
