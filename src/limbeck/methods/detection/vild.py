"""ViLD: a detector of any class that a text can name, its regions embedded as an image tower embeds their crops.

    z(r)    = tau [cos(e_r, b), cos(e_r, t_1), ..., cos(e_r, t_C)]                         b learnt, t of texts, frozen
    L_text  = CE(softmax(z(r)), y_r),   regions r sampled from proposals, base classes alone have labels
    L_image = mean over proposals p of | s_p - f_p |_1,   f_p = unit(V(crop_1x p) + V(crop_1.5x p)),  kept before training
    L       = L_rpn + L_box + L_mask + L_text + w L_image
    ensemble: two branches; a class scores p_text^(2/3) p_image^(1/3) where it is base, the exponents exchanged where novel

e_r, s_p: unit embeddings of the student's regions [N, R, D], [N, P, D];  f_p: the teacher's;  t: texts [C, D]
V: image tower;  w: weight of the distillation;  tau: temperature, which multiplies
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.functional.regions import Masking, embedding_distance
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Built, Context, Method, Participant, Setup, Stage, Term, Terms
from limbeck.grammar.settings import Count, NonEmpty, NonNegative, Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.networks.two_stage import OpenDetector
from limbeck.parts.detector import CropDetector, embed_crops, propose
from limbeck.tasks.boxes import Boxes

CARD = Card(
    number=7,
    slug="vild",
    title="Open-vocabulary Object Detection via Vision and Language Knowledge Distillation",
    year=2021,
    venue="ICLR 2022",
    arxiv="2104.13921",
    repository="tensorflow/tpu/tree/master/models/official/detection/projects/vild",
    licence="Apache-2.0",
    family="detection",
    methods={"vild": "Vild"},
    optimised="the student's weights",
    signals=("embeddings of regions", "embeddings of class names", "labels"),
    provenance={
        "head, both losses, joined scores": "the code; its vectors are in the tests",
        "novel classes in the denominator": "left out as the paper trains base classes alone; variant=released multiplies their "
        "logits by 0, as the code does",
        "crops at 1x and 1.5x, NMS 0.9 before cropping": "the paper",
        "sampled anchors and regions": "the expectation of torchvision's balanced sample, in place of draws: ours",
        "ViLD-image's scores": "reconstructed: the softmax without background, times objectness, geometrically",
    },
    claim="On novel classes ViLD's AP is above that of ViLD-text; two branches win back what a shared one loses on base classes; "
    "and it is many times faster than an image tower on crops, near its novel AP.",
    recipe="vild",
    exceptions={"at_equality": "student and teacher are of different kinds: a detector, and an image tower"},
    notes="task.novel names the classes without labels, task.text what names mean (a table, or a CLIP's folder). The student "
    "is an open-detector: heads=two for method.mode=ensemble. A teacher of your own is any network of the form vector.",
)

log = logging.getLogger("limbeck.methods")


@settings
class Vild(Method[Boxes]):
    """Region embeddings from texts and from an image tower.

    Args:
        mode: ``text`` (labels against texts alone), ``image`` (the tower alone), ``joint`` (both, one branch) or
            ``ensemble`` (both, a branch each).
        weight: of the distillation (the paper's w).
        distance: between embeddings: ``l1``, or ``l2`` (squares).
        proposals: boxes an image whose crops the tower embeds, at most.
        scales: sizes of the crops, in units of the box; their embeddings are added.
        variant: ``paper`` leaves novel classes out of the softmax while it trains, ``released`` multiplies their logits by 0.
        masking: of those logits, if not as the variant has it: ``remove``, ``zero``, or ``none`` (trained against them).
        share: the larger exponent where two branches are joined.
        embed_batch: images at a time whose crops are embedded.
        crops: evaluate the tower on crops too, as a row of the report.
    """

    mode: Literal["text", "image", "joint", "ensemble"] = "joint"
    weight: NonNegative = 0.5
    distance: Literal["l1", "l2"] = "l1"
    proposals: Count = 300
    scales: Annotated[list[Positive], NonEmpty] = [1.0, 1.5]  # noqa: RUF012 (copied by settings)
    variant: Literal["paper", "released"] = "paper"
    masking: Masking | None = None
    share: Annotated[float, Gt(0), Lt(1)] = 2 / 3
    embed_batch: Count = 16
    crops: bool = True

    def validate(self) -> None:
        """Without the tower nobody but the student takes part."""
        tower = {"teacher": Participant(task="crops"), "proposer": Participant(like="student")}
        self.participants = {} if self.mode == "text" else tower

    def bind(self, setup: Setup) -> None:
        """Name the student's classes, and check that texts, tower and student speak of the same space."""
        super().bind(setup)
        net, text = setup.student.module, self.task.vocabulary  # [C, D]
        if not isinstance(net, OpenDetector):
            raise ConfigError("student", "has no embeddings of regions", expected="student=open-detector")
        widths = {"student.dim": net.head.dim, "embeddings of the class names": text.shape[1]}
        if self.mode != "text":
            teacher = setup.built["teacher"]
            e = self._tower(teacher, self.task.part("crops").example(1))
            widths["embeddings of the teacher"] = e.shape[-1]
        if len(set(widths.values())) > 1:
            raise ConfigError(
                "student.dim",
                "embeddings have different widths: " + ", ".join(f"{n} {w}" for n, w in widths.items()),
                expected="one width",
                remedy=f"set student.dim={text.shape[1]}",
            )
        if net.head.two != (self.mode == "ensemble"):
            wanted = "two" if self.mode == "ensemble" else "one"
            raise ConfigError(
                "student.heads",
                f"method.mode={self.mode} needs {wanted}",
                given="two" if net.head.two else "one",
                remedy=f"set student.heads={wanted}",
            )
        if self.task.masks and not net.masked:
            raise ConfigError(
                "task.masks",
                "the student answers with boxes alone, so no mask would be learnt or evaluated",
                given=True,
                expected="a student with a mask head",
                remedy="set student.masks=true (or a body with one: maskrcnn_resnet50_fpn), or task.masks=false",
            )
        if net.masked and not self.task.masks:
            log.warning("the student has a mask head, and nothing teaches it: set task.masks=true")
        net.head.name_classes(text)
        net.base.copy_(self.task.base)
        net.masking = self.masking or ("remove" if self.variant == "paper" else "zero")
        net.by_image.fill_(self.mode == "image")
        net.share.fill_(self.share)
        net.label_free = self.mode == "image"
        if "proposer" in self.roles:
            most = setup.built["proposer"].module.net.rpn._post_nms_top_n["testing"]
            if self.proposals > most:
                log.warning(
                    "method.proposals=%d is cut to %d, as many as the first stage hands on", self.proposals, most
                )
            self.most = min(self.proposals, most)

    def _tower(self, teacher: Built, batch: Batch) -> Tensor:
        with torch.no_grad():
            device = next(teacher.module.parameters()).device
            return Signal(teacher.module.eval()(teacher.contract.inputs(batch["x"].to(device)))).logits

    def stages(self) -> list[Stage]:
        """What the tower says of proposals is kept; then the student learns."""
        stages = super().stages()
        if self.mode == "text":
            return stages
        kept = Stage(
            "embeddings",
            data=self.task.train,
            batch_size=self.embed_batch,
            record=self.embed,
            remember=[self.most, list(self.scales), self.task.crop],
            roles=("teacher", "proposer"),
            judged=False,
            augmented=False,
        )
        return [kept, *stages]

    def embed(self, batch: Batch, ctx: Context) -> Mapping[str, Tensor]:
        """Proposals of a batch [n, P, 4], zeros where there are fewer, and the tower's embeddings [n, P, D] in half precision."""
        proposer, teacher = ctx.roles["proposer"], ctx.roles["teacher"]
        found = propose(proposer.module, proposer.contract.inputs(batch["x"]), self.most)
        f = embed_crops(
            lambda x: Signal(ctx.call("teacher", x)).logits,
            batch["x"],
            found.boxes,
            side=self.task.crop,
            scales=self.scales,
            contract=teacher.contract,
        )
        return {"regions": found.boxes, "embedding": (f * found.where.unsqueeze(-1)).half()}

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The detector's own losses, and the distance to the kept embeddings at their boxes."""
        if self.mode == "text" or not self.weight:
            return Terms(own=self.task.supervised(ctx.signal("student", batch), batch))
        kept = ctx.recorded("embeddings").fetch(batch["item"].cpu())
        regions, f = (kept[n].to(ctx.device) for n in ("regions", "embedding"))
        student = ctx.signal("student", {**batch, "regions": regions})
        valid = regions.amax(-1) > 0  # [N, P]; padded boxes are all zero
        image = self.image_loss(student.out["embedding"], f.float())
        terms = Terms(own=self.task.supervised(student, batch))
        terms["image"] = Term(image, weight=self.weight, where=valid)
        return terms

    def image_loss(self, s: Tensor, f: Tensor) -> Tensor:
        """[N, P]: the distance of unit embeddings s from unit(f), summed over dims."""
        return embedding_distance(s, f, power=1 if self.distance == "l1" else 2)

    def rows(self) -> dict[str, Artifact]:
        """The tower on crops of the proposer's boxes."""
        if self.mode == "text" or not self.crops:
            return {}
        teacher, proposer = (self.setup.built[n] for n in ("teacher", "proposer"))
        module = CropDetector(
            copy.deepcopy(proposer.module),
            copy.deepcopy(teacher.module),
            self.task.vocabulary,
            contracts=(proposer.contract, teacher.contract),
            side=self.task.crop,
            scales=self.scales,
            most=self.most,
        )
        made = Built(module.to(self.setup.device).eval(), model=teacher.model)
        return {"tower on crops": NetworkArtifact(self.task, made)}
