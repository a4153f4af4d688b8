"""DKD: the divergence taken apart into the target class against the rest, and the rest among itself.

    L = CE(z_s, y) + w(epoch) ( alpha TCKD + beta NCKD )
    TCKD = T^2 KL( b_t || b_s ),  b = (p_y, 1 - p_y)          NCKD = T^2 KL( r_t || r_s ),  r = softmax(z / T without y)

Plain KD is TCKD + (1 - p_y of the teacher) NCKD: where the teacher is sure, what it knows of the other classes hardly counts.

z_s, z_t: logits of student and teacher [N, C];  y: labels [N];  p = softmax(z / T);  w: rises from 0 to 1 over the warm-up
"""

from __future__ import annotations

import limbeck.functional as F
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Term, Terms
from limbeck.grammar.settings import Natural, NonNegative, Positive, settings
from limbeck.grammar.task import Task
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=None,
    slug="dkd",
    title="Decoupled Knowledge Distillation",
    year=2022,
    venue="CVPR 2022",
    arxiv="2203.08679",
    repository="megvii-research/mdistiller",
    licence="MIT",
    family="classification",
    methods={"dkd": "Dkd"},
    optimised="network weights",
    signals=("logits",),
    provenance={
        "both parts, weights": "paper, equations 5 to 7",
        "warm-up": "the published settings: the distillation terms rise over the first 20 epochs of CIFAR-100",
    },
    claim="With both parts weighted by themselves a student is more accurate than with plain KD from the same teacher.",
    recipe="dkd",
    at_equality={"target": "value", "nontarget": "value"},
    baseline={"dkd": ("method.alpha=0", "method.beta=0")},
    notes="beta is chosen by the teacher: the surer it is of its class, the larger (8 on CIFAR-100, 0.5 on ImageNet).",
)


@settings
class Dkd(Method[Classification]):
    """Decoupled knowledge distillation.

    Args:
        alpha: weight of the target part.
        beta: weight of the non-target part.
        temperature: softens both distributions, in both parts.
        warmup: epochs over which both parts rise from nothing to their weights.
    """

    alpha: NonNegative = 1.0
    beta: NonNegative = 8.0
    temperature: Positive = 4.0
    warmup: Natural = 0

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        super().accept(task)
        one_label(self, task)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The supervised term and the two parts."""
        student = ctx.signal("student", batch)
        ce = self.task.supervised(student, batch)
        if not self.alpha and not self.beta:
            return Terms(ce=ce)
        z_t = ctx.signal("teacher", batch).logits  # [N, C]
        parts = F.dkd(student.logits, z_t, batch["y"], alpha=1.0, beta=1.0, temperature=self.temperature)  # each [N]
        w = min(1.0, ctx.epoch / self.warmup) if self.warmup else 1.0
        return Terms(
            ce=ce,
            target=Term(parts.target, weight=w * self.alpha),
            nontarget=Term(parts.nontarget, weight=w * self.beta),
        )
