"""Several teachers: the student learns from their mean, from each of them, or from another one in each step.

    L = (1 - alpha) CE(z_s, y) + alpha T^2 D
    average:  D = KL( mean_k p_k || p_s )       streams:  D = mean_k KL( p_k || p_s )       switch:  D = KL( p_k || p_s ), k drawn

average and streams have the same gradient: they differ by how far the teachers are apart, which the student cannot change.

z_s, z_k: logits of student and teacher k [N, C];  p = softmax(z / T);  y: labels [N]
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge

import limbeck.functional as F
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Participant, Term, Terms
from limbeck.grammar.settings import Fraction, Positive, settings
from limbeck.grammar.task import Task
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=None,
    slug="multi-teacher",
    title="Efficient Knowledge Distillation from an Ensemble of Teachers",
    year=2017,
    venue="Interspeech 2017",
    family="classification",
    methods={"multi-teacher": "MultiTeacher"},
    optimised="network weights",
    signals=("logits",),
    provenance={
        "switch, streams": "the paper's two strategies, by its abstract: teachers' labels switched from minibatch to minibatch, "
        "and all of them as further training data",
        "average": "Distilling the Knowledge in a Neural Network (2015), section 1: the mean of an ensemble",
        "weight, temperature": "ours: those of plain KD",
    },
    claim="A student of several teachers is at least as accurate as that of one of them.",
    recipe="multi-teacher",
    at_equality={"kl": "value"},
    baseline={"multi-teacher": ("method.alpha=0",)},
    notes="Networks that answer together as one teacher, whatever the method, are teacher=ensemble.",
)


@settings
class MultiTeacher(Method[Classification]):
    """Distillation from several teachers.

    Args:
        teachers: how many: ``teacher``, and ``participants.teacher2``, ``participants.teacher3``..., each made as the first
            where the recipe does not name it.
        combine: ``average`` of their probabilities, ``streams`` (each is matched), or ``switch``: one of them a step.
        temperature: softens all distributions.
        alpha: weight of the distillation term; the supervised term has 1 - alpha.
    """

    takes_unlabelled = "terms"

    teachers: Annotated[int, Ge(2)] = 2
    combine: Literal["average", "streams", "switch"] = "average"
    temperature: Positive = 4.0
    alpha: Fraction = 0.9

    def validate(self) -> None:
        """Who takes part."""
        self.names = ["teacher", *(f"teacher{k}" for k in range(2, self.teachers + 1))]
        self.participants = {n: Participant(like="" if n == "teacher" else "teacher") for n in self.names}

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        super().accept(task)
        one_label(self, task)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The supervised term and the divergence from the teachers."""
        student = ctx.signal("student", batch)
        ce = self.task.supervised(student, batch)
        ce.weight = 1.0 - self.alpha
        if not self.alpha:
            return Terms(ce=ce)
        T, z_s, names = self.temperature, student.logits, self.names
        if self.combine == "switch":  # one draw a step, the same in every micro-batch and process
            names = [names[int(ctx.draws.numpy("teacher").integers(len(names)))]]
        z = torch.stack([ctx.signal(n, batch).logits for n in names])  # [K, N, C]
        if self.combine == "average":
            log_p = (z / T).log_softmax(-1).logsumexp(0)  # [N, C], of the mean but for a constant
            values = F.kl(z_s, T * log_p, temperature=T)
        else:
            values = F.kl(z_s.expand_as(z), z, temperature=T).mean(0)  # [N]
        return Terms(ce=ce, kl=Term(values, weight=self.alpha))
