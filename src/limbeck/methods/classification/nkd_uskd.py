"""Normalised KD, and self-distillation without any teacher.

NKD splits the cross-entropy to the teacher into the target class and the others, and renormalises the others on both
sides, so that they can agree:

    L = CE(q, y)  -  p_y log q_y  -  gamma T^2 sum_{c != y} p^_c log q^_c

USKD makes the soft label itself: the target's from the student's own smoothed probability, the others' from a Zipf law
over their ranking by the student and by a weak head on an intermediate feature:

    L = CE(q, y)  +  alpha L_target  +  beta L_nontarget  +  mu CE(w, smoothed y)

z_s, z_t: logits [N, C];  f: intermediate feature [N, D];  w = W f + b: weak logits [N, C];  k: 1, or 2 for soft labels
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Participant, Setup, Share, Term, Terms
from limbeck.grammar.settings import NonNegative, Positive, settings
from limbeck.grammar.task import Task
from limbeck.networks.shows import middle_of, picture_of, pooled
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=52,
    slug="nkd-uskd",
    title="From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels",
    year=2023,
    venue="ICCV 2023",
    arxiv="2303.13005",
    repository="yzd-v/cls_KD",
    licence="Apache-2.0",
    family="classification",
    methods={"nkd": "Nkd", "uskd": "Uskd"},
    optimised="network weights",
    signals=("logits", "an intermediate feature (USKD)"),
    provenance={
        "NKD": "paper and code, checked against recorded vectors",
        "USKD losses": "paper and code, checked against recorded vectors",
        "USKD ranking": "paper adds probabilities; variant=released adds log-probabilities of the final head, as the code does",
        "batch mean in USKD's target": "over the whole batch; the code takes each process's own",
    },
    claim="NKD > KD > student alone for the same teacher (temperature 1, gamma 1.5).",
    recipe="nkd",
    at_equality={
        "target": "a cross-entropy on the target class alone: it goes on raising the student's probability there",
        "nontarget": "gradient",
    },
    notes="The original cross-entropy keeps its weight 1: it is not multiplied by 1 - alpha.",
)


@settings
class Nkd(Method[Classification]):
    """Normalised knowledge distillation.

    Args:
        temperature: of the non-target part only; the target part always has temperature 1.
        gamma: weight of the non-target part.
        normalise: renormalise over the non-target classes; off is the paper's ablation.
        target_weight: weigh the target's log-probability with the teacher's probability, or with one.
    """

    temperature: Positive = 1.0
    gamma: NonNegative = 1.5
    normalise: bool = True
    target_weight: Literal["teacher", "one"] = "teacher"

    def accept(self, task: Task) -> None:
        """Targets must be a single class."""
        super().accept(task)
        one_label(self, task)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """Cross-entropy, target part, non-target part."""
        student = ctx.signal("student", batch)
        z_s, z_t = student.logits, ctx.signal("teacher", batch).logits  # [N, C]
        target, nontarget = F.nkd(
            z_s,
            z_t,
            batch["y"],
            temperature=self.temperature,
            gamma=self.gamma,
            normalise=self.normalise,
            target_weight=self.target_weight,
        )
        return Terms(ce=self.task.supervised(student, batch), target=Term(target), nontarget=Term(nontarget))


@settings
class Uskd(Method[Classification]):
    """Universal self-knowledge distillation: no teacher.

    Args:
        feature: module of the student whose output feeds the weak head: a feature map [N, D, H, W] (pooled), tokens
            [N, L, D] (the class token, index 0) or vectors [N, D]. ``null`` takes the middle one of the student's
            blocks. The paper takes a CNN's last stage but one, and a ViT's block ``depth // 2 - 1``.
        alpha: weight of the target part.
        beta: weight of the non-target part.
        mu: weight of the weak head's loss.
        smooth_target: the student's smoothed probability as the target's label; off keeps the label itself.
        square: square that probability.
        nontarget: the others' soft label: ``zipf`` by rank, ``uniform``, or ``teacher`` (ranked by a teacher).
        rank_source: whose ranking: the weak head's, the final one's, or both.
        weak_head: off trains no weak head (then the final one ranks).
        variant: ``paper``, or ``released`` for the code's ranking.
    """

    coupled = "the target's label is centred on the batch mean"
    feature: str | None = None
    alpha: NonNegative = 1.0
    beta: NonNegative = 0.1
    mu: NonNegative = 0.005
    smooth_target: bool = True
    square: bool = True
    nontarget: Literal["zipf", "uniform", "teacher"] = "zipf"
    rank_source: Literal["both", "weak", "final"] = "both"
    weak_head: bool = True
    variant: Literal["paper", "released"] = "paper"

    def validate(self) -> None:
        """Without the weak head nothing but the final one can rank. A teacher takes part where it is to rank."""
        if not self.weak_head and self.rank_source != "final" and self.nontarget == "zipf":
            raise ValueError("rank_source must be 'final' without the weak head")
        self.participants = {"teacher": Participant()} if self.nontarget == "teacher" else {}

    def accept(self, task: Task) -> None:
        """Targets must be a single class."""
        super().accept(task)
        one_label(self, task)

    def bind(self, setup: Setup) -> None:
        """Take the student; make the weak head by one dry pass."""
        super().bind(setup)
        if not self.weak_head:
            return
        self.path = self.feature or middle_of(setup.student.module)
        self.student_taps = (self.path,)
        shown = self.dry("student", [self.path])
        width, classes = pooled(shown.acts[self.path], self.task.shape[1:]).shape[-1], shown.logits.shape[-1]
        self.new("weak", lambda: nn.Linear(width, classes))
        self.learners = ("student", "weak")

    def step(self, batch: Batch, ctx: Context) -> Generator[Terms | Share, dict[str, Tensor], None]:
        """Cross-entropy and USKD's three parts; the mean of q_t^2 is taken over the whole batch."""
        student = ctx.signal("student", batch, self.student_taps)
        z = student.logits  # [N, C]
        w = ctx.call("weak", pooled(student.acts[self.path], picture_of(batch))) if self.weak_head else None  # [N, C]
        t = ctx.signal("teacher", batch).logits if self.nontarget == "teacher" else None
        ids, _ = F.uskd_labels(batch["y"], z.shape[-1])  # [N, k]
        own = z.detach().softmax(-1).gather(-1, ids)
        own = own * own if self.square else own
        sums: dict[str, Tensor] = yield Share(own=own.sum(0), n=torch.tensor(float(len(own)), device=z.device))
        parts = F.uskd(
            z,
            batch["y"],
            w,
            alpha=self.alpha,
            beta=self.beta,
            mu=self.mu,
            smooth_target=self.smooth_target,
            square=self.square,
            nontarget=self.nontarget,
            rank_source=self.rank_source,
            teacher=t,
            center=sums["own"] / sums["n"],
            variant=self.variant,
        )
        terms = Terms(
            ce=self.task.supervised(student, batch), target=Term(parts.target), nontarget=Term(parts.nontarget)
        )
        if self.weak_head:
            terms["weak"] = Term(parts.weak, to=("student", "weak"))  # the feature is not detached
        yield terms
