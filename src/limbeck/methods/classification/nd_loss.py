"""ND loss: beside any distillation loss, the student's feature follows the teacher's class mean in norm and direction.

    L = w_ce CE(q, y) + w_kd min(1, epoch / warm_up) KD + w_nd mean( 1 - f_s . e_y / max(|f_s|, |f_t|) )
    e_k = c_k / |c_k|,    c_k = mean of the teacher's features f_t over the training items of class k

KD is the KL divergence (KD++), DKD (DKD++) or DIST (DIST++). Beside any other method it is an objective:
``limbeck run nkd objectives.nd=norm-direction``.

f_s, f_t: features before the classifier [N, D], the student's through an adapter where the widths differ
"""

from __future__ import annotations

from typing import Literal

from limbeck.functional.feature import Denominator, Part
from limbeck.functional.schedule import warmup
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Objective, Terms
from limbeck.grammar.settings import NonNegative, Positive, Share, settings
from limbeck.grammar.task import Task
from limbeck.objectives.decoupled import Dist, Dkd
from limbeck.objectives.norm_direction import NormDirection
from limbeck.objectives.output import Kl
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=50,
    slug="nd-loss",
    title="Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
    year=2023,
    arxiv="2305.17007",
    repository="WangYZ1608/Knowledge-Distillation-via-ND",
    licence="none stated",
    family="classification",
    methods={"nd-loss": "NdLoss"},
    optimised="the student's weights, and an adapter where the features' widths differ",
    signals=("penultimate features", "logits"),
    provenance={
        "ND loss, class means, adapter, warm-up": "code, checked against recorded vectors",
        "KD, DKD and DIST as hosts": "code, checked against recorded vectors",
        "direction alone": "paper: the cosine to the class mean",
        "norm alone": "reconstructed: the ND loss of a feature that already has the right direction",
        "soft labels": "ours: the mixture of the classes' losses",
    },
    claim="Added to KD, the ND loss makes the student's accuracy higher, and no lower with a larger teacher.",
    recipe="nd-loss",
    at_equality={"host": "value", "nd": "it is zero only where a feature lies along its class mean"},
    baseline={"nd-loss": ("method.kd=0", "method.nd=0")},
    notes="Attaches to any classification method with a teacher: objectives.nd=norm-direction. Not included: ReviewKD++, the "
    "two-stage detector and DeiT++.",
)


@settings
class NdLoss(Method[Classification]):
    """A distillation loss with the ND loss: KD++, DKD++, DIST++.

    Args:
        host: the distillation loss: ``kl`` (KD++), ``dkd`` or ``dist``.
        ce: weight of the labels' loss.
        kd: weight of the distillation loss.
        nd: weight of the ND loss; 0 leaves it out.
        warm_up: epochs over which the distillation loss comes in; 0 is all at once.
        temperature: of the distillation loss.
        alpha: of ``dkd``: weight of the target class.
        beta: of ``dkd``: weight of the other classes; of ``dist``: of the relation between classes.
        gamma: of ``dist``: weight of the relation between items.
        part: ``both``, ``direction`` alone, or ``norm`` alone.
        target: the direction: the ``class`` mean, or the teacher's feature of the same ``item``.
        denominator: ``max`` of both norms, or the ``teacher``'s norm always.
        adapter: for features of different width: ``batch-norm``, ``linear``, or ``never``.
        dropout: of the ``batch-norm`` adapter.
        student_feature, teacher_feature: modules that give the features; ``null`` takes the input of the last linear layer.
    """

    host: Literal["kl", "dkd", "dist"] = "kl"
    ce: NonNegative = 1.0
    kd: NonNegative = 1.0
    nd: NonNegative = 2.0
    warm_up: NonNegative = 20.0
    temperature: Positive = 4.0
    alpha: NonNegative = 1.0
    beta: NonNegative = 1.0
    gamma: NonNegative = 1.0
    part: Part = "both"
    target: Literal["class", "item"] = "class"
    denominator: Denominator = "max"
    adapter: Literal["batch-norm", "linear", "never"] = "batch-norm"
    dropout: Share = 0.5
    student_feature: str | None = None
    teacher_feature: str | None = None

    def validate(self) -> None:
        """Make the two objectives."""
        t = self.temperature
        hosts: dict[str, Objective] = {
            "kl": Kl(temperature=t),
            "dkd": Dkd(alpha=self.alpha, beta=self.beta, temperature=t),
            "dist": Dist(beta=self.beta, gamma=self.gamma, temperature=t),
        }
        self.objectives: dict[str, Objective] = {"host": hosts[self.host]} if self.kd else {}
        if self.nd:
            self.objectives["nd"] = NormDirection(
                self.nd,
                self.student_feature,
                self.teacher_feature,
                self.part,
                self.target,
                self.denominator,
                self.adapter,
                self.dropout,
            )

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        super().accept(task)
        one_label(self, task)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The labels' loss, the distillation loss and the ND loss."""
        student = ctx.signal("student", batch)
        ce = self.task.supervised(student, batch)
        ce.weight = self.ce
        if not self.objectives:
            return Terms(ce=ce)
        teacher = ctx.signal("teacher", batch)
        terms = {name: objective(student, teacher, batch, ctx) for name, objective in self.objectives.items()}
        if "host" in terms:
            terms["host"].weight = self.kd * warmup(ctx.epoch, self.warm_up)
        return Terms({}, ce=ce, **terms)
