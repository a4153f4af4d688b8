"""Landmarks from two teachers, one accurate and one smooth: they assist where the student is far off, and fade near the truth.

    L      = 2 L_main + A(t_tough) + A(t_tolerant)
    L_main = s |e| where |e| <= d_tolerant, else e^2 + s d_tolerant - d_tolerant^2
    A(t)   = w ||e| - d|      w = alpha where |e| > d, beta < 0 where b d <= |e| <= d, else 0;     d = |t - g|
    t_tough learns g, t_tolerant learns mean + V clip(V^T (g - mean), 3 sqrt(l)), redrawn from principal components

p, g, t: student, truth, teacher [N, K, 2], in shares of the image about its middle;  e = p - g
s, b: slope and boundary, 3 and 0.15 (code), 1 and 0.4 (figures);  V, l: components and variances of the training poses
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Gt, Le, Lt
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from limbeck.functional.landmarks import assistive_values, main_values
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Participant, Setup, Term, Terms
from limbeck.grammar.settings import Fraction, NonNegative, Positive, settings
from limbeck.tasks.keypoints import Keypoints

CARD = Card(
    number=62,
    slug="landmark-kd",
    title="Facial Landmark Points Detection Using Knowledge Distillation-Based Neural Networks",
    year=2022,
    venue="Computer Vision and Image Understanding 215",
    arxiv="2111.07047",
    repository="aliprf/KD-Loss",
    licence="CC-BY-NC-ND-4.0",
    family="pose",
    methods={"landmark-kd": "LandmarkKd"},
    optimised="the student's weights",
    signals=("landmarks of both teachers", "labels"),
    provenance={
        "both losses, their weights and constants": "the published code; its vectors are in the tests",
        "preset figure": "plots of the losses in the repository: slope 1, boundary 0.4, a ramp below it, 1 and -0.5",
        "smooth landmarks": "the published code; landmarks that are not labelled are filled from the fit: ours",
        "variance": "the code has 85, 90 and 97 %; which of them the tolerant teacher learnt is reconstructed",
        "mirrored=false, the plain distance, main losses beside kd": "ours, for comparison",
        "augmentation": "not built: the code augments beforehand; queries do so while training",
    },
    claim="With KD-Loss the student's normalised error is smaller than with L2 alone and than with the plain squared distance "
    "to both teachers; the accurate teacher's is the smallest.",
    recipe="landmark-kd",
    at_equality={
        "tough": "value",
        "main": "it compares with the truth",
        "tolerant": "the tolerant teacher is another network",
    },
    baseline={
        "landmark-kd": (
            "method.main=l2",
            "method.main_weight=1",
            "method.tough_weight=0",
            "method.tolerant_weight=0",
        )
    },
    notes="teacher is the tough (accurate) teacher, tolerant the smooth one, by default of the same architecture. Each is trained, "
    "or loaded (teacher.checkpoint=FILE, participants.tolerant.checkpoint=FILE). Terms that assist may be negative.",
)


class Constants(NamedTuple):
    """Of both losses: ``alpha`` and ``beta`` of the tough and of the tolerant teacher."""

    slope: float
    boundary: float
    ramp: bool
    alpha: tuple[float, float]
    beta: tuple[float, float]


PRESETS = {
    "code": Constants(3.0, 0.15, False, (1.9, 1.8), (-0.45, -0.40)),
    "figure": Constants(1.0, 0.4, True, (1.0, 1.0), (-0.5, -0.5)),
}


@settings
class LandmarkKd(Method[Keypoints]):
    """KD-Loss: a main loss, and the assistance of a tough and a tolerant teacher.

    Args:
        preset: constants of the published ``code``, or those that its ``figure``s of the losses show.
        main: loss to the truth: the paper's ``kd``, which the tolerant teacher switches, or ``l1``, ``l2``, ``smooth_l1``
            (beta 0.01).
        assist: how teachers take part: ``kd``, or ``mse``, the plain squared distance to each.
        main_weight: of the main loss.
        tough_weight: of the accurate teacher's assistance; 0 leaves the teacher out.
        tolerant_weight: of the smooth teacher's; 0 leaves it out, but for the switch of ``main=kd``.
        variance: share of the training poses' variance that the tolerant teacher's landmarks keep (code: 0.85, 0.9, 0.97).
        slope: of the main loss near the truth, in place of the preset's.
        boundary: share of a teacher's error, nearer than which it does not assist, in place of the preset's.
        ramp: assistance grows from 0 at the truth up to the boundary, in place of the preset's.
        alpha_tough: weight where the student is worse than the tough teacher, in place of the preset's.
        beta_tough: weight where it is better, 0 or less, in place of the preset's.
        alpha_tolerant: as ``alpha_tough``, of the tolerant teacher.
        beta_tolerant: as ``beta_tough``, of the tolerant teacher.
        mirrored: distances are those to the teacher's point on the student's side of the truth; else to its own point.
    """

    preset: Literal["code", "figure"] = "code"
    main: Literal["kd", "l1", "l2", "smooth_l1"] = "kd"
    assist: Literal["kd", "mse"] = "kd"
    main_weight: NonNegative = 2.0
    tough_weight: NonNegative = 1.0
    tolerant_weight: NonNegative = 1.0
    variance: Annotated[float, Gt(0), Lt(1)] = 0.9
    slope: Positive | None = None
    boundary: Fraction | None = None
    ramp: bool | None = None
    alpha_tough: NonNegative | None = None
    beta_tough: Annotated[float, Le(0)] | None = None
    alpha_tolerant: NonNegative | None = None
    beta_tolerant: Annotated[float, Le(0)] | None = None
    mirrored: bool = True

    def validate(self) -> None:
        """Teachers take part where something is asked of them."""
        self.weights = {"main": self.main_weight, "tough": self.tough_weight, "tolerant": self.tolerant_weight}
        if not any(self.weights.values()):
            raise ValueError("main_weight must be above 0 where no teacher assists")
        self.participants = {}
        if self.tough_weight:
            self.participants["teacher"] = Participant()
        if self.tolerant_weight or (self.main == "kd" and self.main_weight):
            self.participants["tolerant"] = Participant(task=f"smooth:{self.variance!r}", like="teacher")

        def chosen(own: float | None, preset: float) -> float:
            return preset if own is None else own

        c = PRESETS[self.preset]
        self.constants = Constants(
            chosen(self.slope, c.slope),
            chosen(self.boundary, c.boundary),
            c.ramp if self.ramp is None else self.ramp,
            (chosen(self.alpha_tough, c.alpha[0]), chosen(self.alpha_tolerant, c.alpha[1])),
            (chosen(self.beta_tough, c.beta[0]), chosen(self.beta_tolerant, c.beta[1])),
        )

    def bind(self, setup: Setup) -> None:
        """Take the participants; a tolerant teacher that was loaded must know the task's landmarks, in this order."""
        super().bind(setup)
        if "tolerant" in self.participants:
            self.task.by_name(setup.built["tolerant"])

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The main loss and both teachers' assistance, over labelled landmarks."""
        p = ctx.signal("student", batch).logits.float()  # [N, K, 2]
        where = self.task.counted(batch)  # [N, K]
        g = self.task.normalised(batch["points"])
        g = torch.where(where.unsqueeze(-1), g, p.detach())  # no error where nothing is labelled, even beside NaN
        t = {n: ctx.signal(n, batch).logits.float() for n in self.participants}
        found = {"main": self.distance(p, g, t.get("tolerant"))} if self.main_weight else {}
        for i, (name, role) in enumerate((("tough", "teacher"), ("tolerant", "tolerant"))):
            if self.weights[name]:
                found[name] = self.assistance(p, g, t[role], i)
        terms = {n: Term(v.mean(-1), weight=self.weights[n], where=where) for n, v in found.items()}
        return Terms({}, **terms)

    def distance(self, p: Tensor, g: Tensor, tolerant: Tensor | None) -> Tensor:
        """The main loss at each coordinate [N, K, 2]."""
        if self.main == "kd":
            assert tolerant is not None
            return main_values(p, g, tolerant, slope=self.constants.slope)
        if self.main == "smooth_l1":
            return smooth_l1_loss(p, g, beta=0.01, reduction="none")
        return (p - g).square() if self.main == "l2" else (p - g).abs()

    def assistance(self, p: Tensor, g: Tensor, t: Tensor, which: int) -> Tensor:
        """What the tough (0) or the tolerant teacher (1) adds at each coordinate [N, K, 2]."""
        if self.assist == "mse":
            return (p - t).square()
        c = self.constants
        far, near = c.alpha[which], c.beta[which]
        return assistive_values(p, g, t, far=far, near=near, boundary=c.boundary, ramp=c.ramp, mirrored=self.mirrored)
