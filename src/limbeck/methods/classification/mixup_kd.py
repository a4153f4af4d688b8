"""MIX-KD: distillation on partly mixed images, with a temperature for each item that follows from its logits.

    x~ = l x_i + (1 - l) x_j,   y~ = l y_i + (1 - l) y_j,   l ~ Beta(a, a) for each item, l = 1 for the unmixed part
    L = gamma CE(z_s / sd(z_s), y~) + alpha KL( softmax(z_t / sd(z_t)) || softmax(z_s / sd(z_s)) )

With a fixed temperature T: gamma CE(z_s, y~) + alpha T^2 KL_T. Around any other method it is a query:
``limbeck run nkd queries.mix=partial-mixup queries.mix.temperature=std``.

z_s, z_t: logits of student and teacher on the mixed images [N, C];  sd: standard deviation over the classes
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import limbeck.functional as F
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Stage, Term, Terms
from limbeck.grammar.settings import Fraction, NonNegative, Positive, settings
from limbeck.grammar.task import Task
from limbeck.objectives.mixing import PartialMixup, check_std
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=31,
    slug="mixup-kd",
    title="Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study",
    year=2023,
    venue="WACV 2023",
    arxiv="2211.03946",
    repository="hchoi71/MIX-KD",
    licence="none stated",
    family="classification",
    methods={"mixup-kd": "MixupKd"},
    optimised="the student's weights",
    signals=("logits",),
    provenance={
        "loss, full and partial mixup": "code, checked against recorded vectors",
        "gamma 0.1, alpha 0.9": "code",
        "unmixed items drawn without replacement": "the code's own description of the setting; replacement=true does what it does",
        "schedule of the unmixed share": "ours: linear over the steps",
    },
    claim="A temperature from the logits' standard deviation is better than the fixed T = 4, and partial mixup than full mixup.",
    recipe="mixup-kd",
    at_equality={"kl": "value"},
    exceptions={
        "accumulation": "items are mixed within a micro-batch",
        "processes": "items are mixed within a process's part of the batch",
    },
    notes="The labels' loss sees scaled logits, so the student's raw probabilities are not calibrated: scale its logits by their "
    "standard deviation, or calibrate them. A recorded teacher cannot be used: the mixed images are new in every step.",
)


@settings
class MixupKd(Method[Classification]):
    """Distillation on mixed images with a temperature for each item.

    Args:
        mix: ``partial``, ``full``, or ``none``.
        unmixed: of ``partial``: the share of the batch that is not mixed.
        unmixed_end: the share at the end of training (linear over the steps); ``null`` keeps ``unmixed``.
        beta: both parameters of the Beta distribution of the shares.
        replacement: draw the unmixed items with replacement, as the released code does: at 0.9 about 41 % stay mixed.
        per_item: one share for each item, or one for the whole batch.
        partners: ``own`` mixes each item with another one; ``independent`` draws both, as the released code does.
        temperature: ``std`` takes each item's standard deviation of the logits, ``std-detached`` without gradient through
            it; a number is the same for all items, and T squared is then multiplied in.
        gamma: weight of the labels' loss.
        alpha: weight of the distillation.
    """

    mix: Literal["partial", "full", "none"] = "partial"
    unmixed: Fraction = 0.9
    unmixed_end: Fraction | None = None
    beta: Positive = 1.0
    replacement: bool = False
    per_item: bool = True
    partners: Literal["own", "independent"] = "own"
    temperature: Positive | Literal["std", "std-detached"] = "std"
    gamma: NonNegative = 0.1
    alpha: NonNegative = 0.9

    def validate(self) -> None:
        """Make the query; refuse a schedule where nothing is partial."""
        if self.unmixed_end is not None and self.mix != "partial":
            raise ValueError(f"unmixed_end changes nothing for mix={self.mix}: leave it out")
        self.query = PartialMixup(
            self.unmixed if self.mix == "partial" else 0.0,
            self.unmixed_end,
            self.beta,
            self.replacement,
            self.per_item,
            self.partners,
        )
        if self.mix != "none":
            self.coupled = self.query.coupled

    def accept(self, task: Task) -> None:
        """Items have one class each; images are needed for mixing, three classes for ``std``."""
        super().accept(task)
        one_label(self, task)
        if self.mix != "none":
            self.query.accept(task)
        if isinstance(self.temperature, str):
            check_std(task, "method.temperature")

    def stages(self) -> list[Stage]:
        """One stage, whose batches are mixed."""
        (stage,) = super().stages()
        return [stage if self.mix == "none" else replace(stage, queries=[self.query])]

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The labels' loss and the divergence, both on mixed images."""
        student = ctx.signal("student", batch)
        z_s, z_t = student.logits, ctx.signal("teacher", batch).logits  # [N, C]
        if isinstance(self.temperature, str):
            z_s = F.divide_by_std(z_s, detach=self.temperature == "std-detached")
            ce = F.cross_entropy(z_s, batch["y"])
            kl = F.kl(z_s, F.divide_by_std(z_t))
        else:
            ce = F.cross_entropy(z_s, batch["y"])
            kl = F.kl(z_s, z_t, temperature=float(self.temperature))
        return Terms(ce=Term(ce, weight=self.gamma), kl=Term(kl, weight=self.alpha))
