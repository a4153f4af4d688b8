"""DOPE: one detector of bodies, hands and faces, taught by three experts, each of which knows one part.

    L      = L_rpn + sum_p [ L_p + lambda_p L_dist,p ]
    L_p    = CE(z_p, y_p) + smoothL1(r_p, target)            regions of images labelled for p, or pseudo-labelled by its expert
    L_dist = KL(q_p || softmax(z_p)) + sum_k q_pk smoothL1(r_pk, r'_pk) / 5J          q_p, r'_p: the expert's, on the same boxes
    pseudo: an expert's pose with a score of 0.5 or more that overlaps no annotated one by 0.5; missing values are filled

z_p [N, R, 1 + K], r_p [N, R, K, 5J]: the student's scores and vectors of part p for R regions;  y_p: anchor + 1, 0, or -1
K, J: anchor poses and joints of the part;  w [N, R]: the probability with which a region would be drawn into the sample
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn

from limbeck.errors import ConfigError, TeacherMismatch
from limbeck.functional.keypoints import RegWeighting, SoftTarget, pose_distillation
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Built, Context, Method, Participant, Setup, Stage, Term, Terms
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Fraction, NonEmpty, NonNegative, settings
from limbeck.grammar.task import Task
from limbeck.networks.part_detector import PartDetector, region_mean
from limbeck.parts.pose_labels import Consistency, MergedPoses
from limbeck.tasks.poses import Poses

CARD = Card(
    number=59,
    slug="dope",
    title="DOPE: Distillation Of Part Experts for whole-body 3D pose estimation in the wild",
    year=2020,
    venue="ECCV 2020",
    arxiv="2008.09457",
    repository="naver/dope",
    licence="CC-BY-NC-SA-4.0",
    family="pose",
    methods={"dope": "Dope"},
    optimised="the student's weights",
    signals=("poses found by experts", "experts' scores and vectors on the student's boxes", "labels"),
    provenance={
        "network, decoding, suppression, association": "the published test code; its vectors are in the tests",
        "experts label what others' images lack": "the paper's abstract; thresholds, filling and merging are reconstructed",
        "anchor poses, labels and loss of regions": "LCR-Net's as we know it; their normalisation is reconstructed",
        "distillation loss": "reconstructed: the paper says that the student mimics the experts' outputs; soft_target=logits_l2 "
        "compares raw scores, as we remember the paper",
        "sampled anchors and regions": "the expectation of torchvision's balanced sample, in place of draws: ours",
        "pose proposal integration": "not built: it is not in the published code, which falls back to suppression",
    },
    claim="One student of pseudo-labels and experts' outputs finds every part's joints far better than the same network trained "
    "on the union with missing labels taken for absent, and nearly as well as each expert, in one pass for three.",
    recipe="dope",
    baseline={"dope": ("method.pseudo=false", "method.weight=0")},
    exceptions={"at_equality": "an expert knows one part, a student all: its own tests look at one part"},
    notes="task.parts and method.parts must be the same. Experts are the participants expert_PART: trained on the images that "
    "are labelled for the part, or loaded (participants.expert_hand.checkpoint=FILE). Anchor poses are no matter of side: hands "
    "of both sides share them.",
)


@settings
class Dope(Method[Poses]):
    """Part experts distilled into one detector of all parts.

    Args:
        parts: the task's parts, each with an expert.
        pseudo: experts label the training images, before the student learns.
        weight: of what experts say of the student's boxes; 0 leaves them out of the steps.
        lambdas: that weight for single parts, in its place.
        soft_target: how scores are copied: ``kl``, ``ce`` or ``logits_l2`` (mean of squared differences of the logits).
        reg_weighting: which vectors are copied: those of all anchors by the ``expert_score``, or of the ``labelled_anchor``.
        relevant: the regions on which: ``all`` of images that are labelled or pseudo-labelled, or ``positives`` alone.
        score_threshold: score from which an expert's pose becomes a label: lower ones find more poses, and more that are not there.
        iou_threshold: overlap from which two boxes are those of one instance.
        fill_missing: values that annotators left out come from the expert.
        consistency: ``wrists`` puts an expert's bodies' wrists where hands have theirs, ``filter`` also drops an expert's hands and
            faces that belong to no body, ``off`` does neither.
        together: evaluate the three experts as one, as a row of the report.
    """

    parts: Annotated[list[str], NonEmpty] = ["body", "hand", "face"]  # noqa: RUF012 (copied by settings)
    pseudo: bool = True
    weight: NonNegative = 1.0
    lambdas: dict[str, NonNegative] = {}  # noqa: RUF012 (copied by settings)
    soft_target: SoftTarget = "kl"
    reg_weighting: RegWeighting = "expert_score"
    relevant: Literal["all", "positives"] = "all"
    score_threshold: Fraction = 0.5
    iou_threshold: Annotated[float, Gt(0), Le(1)] = 0.5
    fill_missing: bool = True
    consistency: Consistency = "wrists"
    together: bool = True

    def validate(self) -> None:
        """Experts take part where something is asked of them."""
        if len(set(self.parts)) < len(self.parts) or any(":" in p or "." in p for p in self.parts):
            raise ValueError("parts must be names that differ, without : and .")
        if strange := [p for p in self.lambdas if p not in self.parts]:
            raise ValueError(f"lambdas name {', '.join(strange)}, and the parts are {', '.join(self.parts)}")
        self.factors = {p: self.lambdas.get(p, self.weight) for p in self.parts}
        asked = [p for p in self.parts if self.pseudo or self.factors[p]]
        self.participants = {f"expert_{p}": Participant(task=p, like="student") for p in asked}
        self.found: dict[str, float] = {}

    def accept(self, task: Task) -> None:
        """Poses whose parts are those of the method."""
        super().accept(task)
        assert isinstance(task, Poses)
        task.load()
        if list(task.parts) != list(self.parts):
            raise ConfigError(
                "method.parts",
                given=self.parts,
                expected=f"the task's: {list(task.parts)}",
                remedy=f"set method.parts={list(task.parts)}",
            )

    def bind(self, setup: Setup) -> None:
        """Check that experts and student have the same joints and anchor poses; a student that is new takes the experts'."""
        super().bind(setup)
        student = setup.student.module
        if not isinstance(student, PartDetector):
            raise ConfigError("student", "has no branches for parts", expected="student=part-detector")
        for name, who in self.participants.items():
            part, expert = who.task, setup.built[name].module
            if not isinstance(expert, PartDetector) or part not in expert.names:
                given = getattr(expert, "names", type(expert).__name__)
                raise TeacherMismatch(name, f"knows no {part}", given=given, expected=f"a part-detector of {part}")
            own, other = student.anchors(part), expert.anchors(part)
            if own.shape != other.shape:
                (k, j), (own_k, own_j) = other.shape[:2], own.shape[:2]
                raise TeacherMismatch(
                    name,
                    f"the expert of {part} has {k} anchor poses of {j} joints, the student {own_k} of {own_j}",
                    remedy=f"set student.anchors.{part}={k}" if j == own_j else "let both know the same joints",
                )
            if not torch.equal(own, other.to(own.device)):
                if setup.student.model is not None and setup.student.model.trained:
                    raise TeacherMismatch(
                        name, f"its anchor poses of {part} are not the student's, which is trained already"
                    )
                own.copy_(other)

    def stages(self) -> list[Stage]:
        """Experts label the images; then the student learns."""
        train, optim = self.setup.train, {"student": self.setup.train}
        if not self.pseudo:
            return super().stages()
        lowest = min(0.3, self.score_threshold)
        labels = Stage(
            "pseudo",
            data=self.task.train,
            batch_size=self.task.eval_batch,
            record=lambda batch, ctx: self.label(batch, ctx, lowest),
            remember=[lowest],
            roles=tuple(self.participants),
            judged=False,
            augmented=False,
        )
        distil = Stage(
            "distil", steps=train.steps, data=self.merged, batch_size=train.batch_size, optim=optim, setup=self.count
        )
        return [labels, distil]

    def label(self, batch: Batch, ctx: Context, lowest: float) -> dict[str, Tensor]:
        """What every expert finds in a batch of images."""
        rows: dict[str, Tensor] = {}
        for name, who in self.participants.items():
            x = ctx.roles[name].contract.inputs(batch["x"])
            out = ctx.call(name, x, lowest=lowest)
            rows |= {f"{n}:{who.task}": out[f"{n}:{who.task}"] for n in ("pose", "box", "score", "where")}
        return rows

    def merged(self, ctx: Context) -> MergedPoses:
        """The training images with both kinds of labels."""
        return MergedPoses(
            self.task.train,
            ctx.recorded("pseudo"),
            self.parts,
            self.task.links,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            fill_missing=self.fill_missing,
            consistency=self.consistency,
        )

    def count(self, ctx: Context) -> None:
        """How much the experts added, and how much of it is right where that is known."""
        self.found = self.merged(ctx).counts(self.task.truth())

    def measures(self) -> dict[str, float]:
        """Of each part: poses that its expert added an image; of those the share that is there, and that of what is there."""
        return dict(self.found)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The detector's own losses on both kinds of labels, and the distance to what experts say of its regions."""
        student = ctx.signal("student", batch)
        terms = Terms(own=self.task.supervised(student, batch))
        regions, w = student.out["regions"].detach(), student.out["weights"]  # [N, R, 4], [N, R]
        for p, factor in self.factors.items():
            if not factor:
                continue
            y = student.out["labels"][p]  # [N, R]
            where = (y >= 0 if self.relevant == "all" else y > 0) & (w > 0)
            name = f"expert_{p}"
            q = ctx.call(name, ctx.roles[name].contract.inputs(batch["x"]), regions=regions)["answers"][p]
            z = student.out["answers"][p]
            loss = pose_distillation(
                z.logits,
                z.regressions,
                q.logits,
                q.regressions,
                soft_target=self.soft_target,
                reg_weighting=self.reg_weighting,
                label=y,
                where=where,
                part=p,
            )
            some = where.any(1)  # [N]; an image that nothing is known of counts nothing
            terms[f"{p}_scores"] = Term(region_mean(loss.classification, w * where), weight=factor, where=some)
            terms[f"{p}_poses"] = Term(region_mean(loss.regression, w * where), weight=factor, where=some)
        return terms

    def rows(self) -> dict[str, Artifact]:
        """The experts side by side, each asked for its part."""
        if not self.together or len(self.participants) < len(self.parts):
            return {}
        experts = {w.task: self.setup.built[n] for n, w in self.participants.items()}
        module = Together({p: (copy.deepcopy(b.module), b.contract) for p, b in experts.items()})
        made = Built(module.to(self.setup.device).eval(), model=next(iter(experts.values())).model)
        return {"experts together": NetworkArtifact(self.task, made)}


class Together(nn.Module):
    """Several experts as one detector: as many passes as there are parts.

    Args:
        experts: part -> network and its contract.
    """

    def __init__(self, experts: Mapping[str, tuple[nn.Module, Contract]]) -> None:
        super().__init__()
        self.names = list(experts)
        self.experts = nn.ModuleList(m for m, _ in experts.values())
        self.contracts = [c for _, c in experts.values()]

    def forward(self, x: Tensor, targets: Any = None) -> dict[str, Tensor]:
        """Poses of every part."""
        out: dict[str, Tensor] = {}
        for p, expert, contract in zip(self.names, self.experts, self.contracts, strict=True):
            out |= {k: v for k, v in expert(contract.inputs(x)).items() if k.endswith(f":{p}")}
        return out
