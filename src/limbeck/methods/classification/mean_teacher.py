"""Mean teacher: the student agrees with the moving average of its own weights, on labelled and on unlabelled items.

    L = CE(q(x'), y) + w(t) mean_c ( q_c(x') - p_c(x'') )^2,      theta' <- a theta' + (1 - a) theta after each step

x' and x'' are the item with noise of their own each. w rises as exp(-5 (1 - t)^2), and a is smaller at the beginning.

q: the student's probabilities [N, C];  p: the average's;  t: share of the ramp that is done, up to 1
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import limbeck.functional as F
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Setup, Term, Terms
from limbeck.grammar.settings import Fraction, Natural, NonNegative, Share, settings
from limbeck.grammar.task import Task
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=None,
    slug="mean-teacher",
    title="Mean teachers are better role models: Weight-averaged consistency targets improve semi-supervised deep learning results",
    year=2017,
    venue="NeurIPS 2017",
    arxiv="1703.01780",
    repository="CuriousAI/mean-teacher",
    licence="CC-BY-NC-4.0",
    family="classification",
    methods={"mean-teacher": "MeanTeacher"},
    optimised="network weights",
    signals=("class probabilities",),
    provenance={
        "consistency, moving average, both ramps": "paper, sections 2 and 3.1, appendix B",
        "mean over classes": "the paper's mean square; its weight of 100 belongs to it",
        "noise": "Gaussian noise on the input, drawn for each network; the paper adds translations and flips, which here are "
        "queries and the same for both",
        "the average stands still": "in evaluation mode, so that it has no dropout; the paper's teacher has",
    },
    claim="From few labelled items the averaged network is at least as accurate as the student alone, and with unlabelled ones "
    "beside them more accurate.",
    recipe="mean-teacher",
    baseline={"mean-teacher": ("method.weight=0", "method.noise=0")},
    notes="The result is the average; the student itself is a row. Name a pool by task.unlabelled=folder:PATH; without one the "
    "consistency is that of the labelled items.",
)


@settings
class MeanTeacher(Method[Classification]):
    """Consistency with a moving average of the student's own weights.

    Args:
        weight: of the consistency, after the ramp.
        decay: share of the average that is kept each step, once the ramp is over.
        early: that share during the ramp.
        ramp: share of the steps over which the consistency comes in.
        noise: standard deviation of the noise on the inputs, other noise for each of the two.
        pool: unlabelled items beside each labelled one, where the task has a pool.
    """

    takes_unlabelled = "own"

    participants = {}  # noqa: RUF012 (the teacher is the student's average)
    delivered = "mean"

    weight: NonNegative = 100.0
    decay: Share = 0.999
    early: Share = 0.99
    ramp: Fraction = 0.2
    noise: NonNegative = 0.15
    pool: Natural = 1

    def validate(self) -> None:
        """The average becomes slower."""
        if self.early > self.decay:
            raise ValueError(f"early must be at most decay, {self.decay:g}")

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        super().accept(task)
        one_label(self, task)

    def bind(self, setup: Setup) -> None:
        """The student and its average."""
        super().bind(setup)
        if not self.weight and not self.noise:  # the student alone
            self.delivered = "student"
        self.new("mean", like="student", decay=self._kept)
        self.items = self.task.unlabelled_items if self.pool else None

    def _kept(self, step: int, total: int) -> float:
        """What the average keeps: the mean of all so far at first, then ``early``, then ``decay``."""
        return min(1 - 1 / (step + 2), self.early if step < self.ramp * total else self.decay)

    def ramped(self, step: int, total: int) -> float:
        """The weight of the consistency."""
        length = self.ramp * total
        t = min(1.0, step / length) if length else 1.0
        return self.weight * math.exp(-5 * (1 - t) ** 2)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The labels' loss, and the consistency of labelled and unlabelled items."""
        student = ctx.signal("student", self.noisy(batch, "student", ctx))
        ce = self.task.supervised(student, batch)
        if not self.weight:
            return Terms(ce=ce)
        w = self.ramped(ctx.step, ctx.total)
        terms = Terms(ce=ce, consistency=Term(self.gap(student.logits, batch, ctx), weight=w))
        if self.items is not None:
            other = self.drawn(batch, ctx)
            z = ctx.signal("student", self.noisy(other, "student", ctx)).logits
            terms["unlabelled"] = Term(self.gap(z, other, ctx), weight=w)
            ctx.signals["student"] = student  # add-ons see the labelled items
        return terms

    def gap(self, z: Tensor, batch: Batch, ctx: Context) -> Tensor:
        """The mean square between both probabilities [N]."""
        p = ctx.signal("mean", self.noisy(batch, "mean", ctx)).logits.softmax(-1)
        return F.squared_error(z.softmax(-1), p) / z.shape[1]

    def noisy(self, batch: Batch, who: str, ctx: Context) -> Batch:
        """The batch with noise of a network's own."""
        if not self.noise:
            return batch
        x = batch["x"]
        stream = f"{who} {batch.get('kind', '')}"
        e = ctx.draws.randn(stream, batch["item"], tuple(x.shape[1:])).to(x)
        return {**batch, "x": x + self.noise * e}

    def drawn(self, batch: Batch, ctx: Context) -> Batch:
        """Items of the pool, ``pool`` for each labelled item, drawn by its key."""
        assert self.items is not None
        ids = ctx.draws.randint("pool", batch["item"], len(self.items), (self.pool,)).flatten().cpu()
        x = self.items.fetch(ids)["x"].to(ctx.device)
        return {"x": x, "item": ids.to(ctx.device), "view": torch.zeros_like(ids).to(ctx.device), "kind": "pool"}

    def rows(self) -> dict[str, Artifact]:
        """The student beside its average."""
        return {"learner": self.network("student")} if self.delivered == "mean" else {}
