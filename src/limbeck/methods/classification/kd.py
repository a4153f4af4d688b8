"""Knowledge distillation: the student matches the teacher's softened class probabilities.

    L = (1 - alpha) CE(q, y) + alpha T^2 KL(p_T || q_T),     p_T = softmax(z_t / T), q_T = softmax(z_s / T)

Several labels per item are matched by the binary relative of the divergence, class by class; numbers by the squared
distance to the teacher's numbers (alpha between the data's and the teacher's).

z_s, z_t: logits of student and teacher [N, C];  y: labels [N] or soft labels [N, C]
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

import limbeck.functional as F
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Term, Terms
from limbeck.grammar.settings import Fraction, Positive, settings

CARD = Card(
    number=None,
    slug="kd",
    title="Distilling the Knowledge in a Neural Network",
    year=2015,
    venue="NIPS 2014 deep learning workshop",
    arxiv="1503.02531",
    family="classification",
    methods={"kd": "Kd"},
    optimised="network weights",
    signals=("logits",),
    provenance={
        "divergence and T squared": "paper, section 2",
        "alpha 0.9, T 4": "the convention of later benchmarks; the paper tunes both per task",
        "several labels, numbers": "ours: the binary divergence per class, the squared distance",
    },
    claim="A small student trained on few images gains accuracy from a teacher that has seen more of them.",
    recipe="kd",
    at_equality={"kl": "value"},
    baseline={"kd": ("method.alpha=0",)},
    notes="The baseline of every comparison.",
)


@settings
class Kd(Method):
    """Plain knowledge distillation (Hinton, Vinyals, Dean 2015).

    Args:
        temperature: softens both distributions in the distillation term.
        alpha: weight of the distillation term; the supervised term has 1 - alpha. 0 is the student alone, bit for bit.
        direction: ``forward`` is KL(teacher || student), ``reverse`` the other way round.
        scale_t2: multiply the divergence by the temperature squared, as the paper does.
    """

    takes_unlabelled = "terms"

    temperature: Positive = 4.0
    alpha: Fraction = 0.9
    direction: Literal["forward", "reverse"] = "forward"
    scale_t2: bool = True

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The supervised term and the divergence."""
        student = ctx.signal("student", batch)
        ce = self.task.supervised(student, batch)
        ce.weight = 1.0 - self.alpha
        if self.alpha == 0.0:
            return Terms(ce=ce)
        z_t = ctx.signal("teacher", batch).logits  # [N, C]
        values = self.divergence(student.logits, z_t)  # [N]; of text [N, T], of which some tokens count
        return Terms(ce=ce, kl=Term(values, weight=self.alpha, where=batch.get("where")))

    def divergence(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """Per-item values [N] for the kind of target the task has."""
        target = getattr(self.task, "kind_of_target", "label")
        if target == "number":
            return F.squared_error(z_s, z_t)
        if target == "labels":
            return F.binary_kl(z_s, z_t, temperature=self.temperature, scale_t2=self.scale_t2)
        return F.kl(z_s, z_t, direction=self.direction, temperature=self.temperature, scale_t2=self.scale_t2)
