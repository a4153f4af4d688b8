"""DBFAD: a decoder rebuilds its teacher's feature pyramid from a narrow bottleneck; what is defective is rebuilt badly.

    L = mean_l 1 / (h_l w_l) sum_ij 1/2 | f_l / |f_l| - s_l / |s_l| |^2,       s = student(f_0, f_1, f_2, f_3)
    map = G_sigma * sum_l up(1/2 | ... |^2 / (h_l w_l)),       score of an image = max of its map

The student never sees the picture: it is fed the teacher's pyramid. Each shortcut gives it the level below the one that it
decodes, so that it cannot copy what it must predict. All training images are normal.

f_l: teacher's features of level l [N, C_l, h_l, w_l];  s_l: those that the student rebuilds;  G: Gaussian
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

import limbeck.functional as F
from limbeck.artifacts.chain import ChainArtifact
from limbeck.data.anomalies import PHOTOGRAPHS, Photographs
from limbeck.errors import ConfigError
from limbeck.functional.anomaly import pyramid_distance
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Built, Context, Method, Participant, Setup, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import key_of, seed_modules
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.signal import evaluating
from limbeck.models.chain import LinkSettings
from limbeck.models.pyramids import ReverseDecoderModel
from limbeck.networks.reverse import Beside, PyramidStudent, levels_of
from limbeck.tasks.anomaly import Anomaly

CARD = Card(
    number=17,
    slug="fabric-rd",
    title="Distillation-based fabric anomaly detection",
    year=2024,
    venue="Textile Research Journal",
    arxiv="2401.02287",
    repository="SimonThomine/DBFAD",
    licence="MIT",
    family="anomaly",
    methods={"fabric-rd": "FabricRd"},
    optimised="the student's weights",
    signals=("feature pyramid",),
    provenance={
        "student, loss, maps": "the code",
        "sum over the batch, batch norm that stands still after the first epoch": "the code (variant=released)",
        "thresholds": "ours: a quantile of normal validation items; the code takes the best F1 of the test items",
        "min-max over the test set": "left out: areas under the curve do not change, and a deployed detector has no test set",
        "teacher from photographs": "ours, where no trained weights are named",
    },
    claim="Image AUROC is well above chance and above pixel statistics on held-out textures, and no worse than a student beside "
    "its teacher (STPM); without shortcuts it holds better for other textures.",
    recipe="fabric-rd",
    at_equality={"rebuilt": "a student that returned what it is shown would have the value 0, and it is a decoder"},
    exceptions={
        "accumulation": "the decoder's batch norm sees a micro-batch",
        "processes": "the decoder's batch norm sees a process's part of the batch",
        "at_equality": "the student is a decoder, and no twin of its teacher",
        "moves": "a bias before a softmax over the width changes nothing",
    },
    notes="Name a teacher with trained weights (timm:resnet34 with a checkpoint); one without is taught to tell photographs "
    "apart, which gives weak features.",
)


class Detector(ChainArtifact):
    """Teacher and student as one network: from an image to its anomaly map."""

    kind = "detector"


@settings
class FabricRd(Method[Anomaly]):
    """Reverse distillation for textures.

    Args:
        blur: side of the Gaussian kernel that training images are blurred with, odd; 0 for none.
        stpm: train a student beside the teacher too (student-teacher feature pyramid matching, Wang et al. 2021): of the
            teacher's architecture, on the same batches; a row of the report.
        pretext: what a teacher without trained weights is taught by: ``photographs``, to tell those of scikit-image apart,
            or ``none``, which leaves it as it was drawn.
        pretext_steps: how long that takes, in steps of 32 crops.
        variant: ``released`` sums over the batch, and batch norm keeps its statistics from the second epoch on, as the
            published code does; ``paper`` averages, and it goes on.
    """

    participants = {"teacher": Participant(taught=False, judged=False)}  # noqa: RUF012 (never changed)

    blur: Annotated[int, Ge(0)] = 3
    stpm: bool = False
    pretext: Literal["photographs", "none"] = "photographs"
    pretext_steps: Count = 400
    variant: Literal["paper", "released"] = "paper"

    def validate(self) -> None:
        """A kernel has a middle; batch norm couples a batch."""
        if self.blur and self.blur % 2 == 0:
            raise ValueError("blur must be odd, or 0")
        self.learners = ("student", "stpm") if self.stpm else ("student",)
        self.coupled = "the decoder's batch norm takes the batch's statistics"

    def bind(self, setup: Setup) -> None:
        """Build the decoder for the teacher's channels, and the student beside the teacher."""
        super().bind(setup)
        student = setup.student.module
        if not isinstance(student, PyramidStudent):
            raise ConfigError(
                "student", given=type(student).__name__, expected="a decoder", remedy="set student=reverse-decoder"
            )
        shown = levels_of(self.dry("teacher").out)
        widths = [f.shape[1] for f in shown]
        if setup.train.batch_size == 1 and shown[3].shape[2] * shown[3].shape[3] == 4:
            raise ConfigError(
                "train.batch_size",
                "the bottleneck has one place, and batch norm cannot normalise a single value",
                given=1,
                expected="2 or more",
                remedy="or larger pictures: task.size=64",
            )
        side = min(self.task.shape[1:])
        if self.blur // 2 >= side:
            raise ConfigError(
                "method.blur", given=self.blur, expected=f"at most {2 * side - 1}, as images have {side} pixels"
            )
        known = getattr(setup.student.model, "widths", None)
        if known is not None and list(known) != widths:
            raise ConfigError("student.widths", given=known, expected=f"the teacher's channels {widths}, or null")
        with torch.random.fork_rng(devices=[]):
            seed_modules(key_of(setup.seed, "init", "student"), torch.device("cpu"))
            student.grow(widths)
        if isinstance(setup.student.model, ReverseDecoderModel):
            self.model = setup.student.model.with_widths(widths)
        if self.stpm:
            beside = self.new("stpm", like="teacher")
            with torch.random.fork_rng(devices=[]):
                seed_modules(key_of(setup.seed, "init", "stpm"), torch.device("cpu"))
                for module in beside.module.modules():
                    if callable(reset := getattr(module, "reset_parameters", None)):
                        reset()
            beside.module.requires_grad_(True)
        self.unready = self.pretext == "photographs" and not getattr(
            setup.teacher and setup.teacher.model, "trained", True
        )
        if self.unready:
            total = sum(widths)
            self.new("head", lambda: nn.Linear(total, len(PHOTOGRAPHS)))

    def stages(self) -> list[Stage]:
        """The teacher is taught where it is not ready; then the student rebuilds."""
        if not self.unready:
            return super().stages()
        optim = Optim(lr=2e-3)
        data = Photographs(self.task.shape)
        teach = Stage(
            "teach",
            steps=self.pretext_steps,
            data=data,
            batch_size=32,
            optim={"teacher": optim, "head": optim},
            step=self.teach,
            judged=False,
            augmented=False,
            remember=["photographs"],
            roles=["teacher", "head"],
        )
        return [teach, *super().stages()]

    def teach(self, batch: Batch, ctx: Context) -> Terms:
        """Which photograph a crop is of, from the means of all levels."""
        pooled = [f.float().mean((2, 3)) for f in levels_of(ctx.signal("teacher", batch).out)]
        z = ctx.call("head", torch.cat(pooled, 1))
        return Terms(photograph=Term(F.cross_entropy(z, batch["y"]), to=("teacher", "head")))

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """How badly the pyramid of normal images is rebuilt, one value an item."""
        if self.blur:
            batch = {**batch, "x": gaussian_blur(batch["x"], [self.blur, self.blur])}
        pyramid: Sequence[Tensor] = ctx.signal("teacher", batch).out
        released = self.variant == "released"
        student: Any = self.roles["student"].module
        still = released and ctx.epoch > 0
        with evaluating([student] if still else []):
            s, t = ctx.call("student", pyramid, by="rebuilt")
        weight = float(ctx.batch_size) if released else 1.0  # the code does not divide by the batch
        terms = {"rebuilt": Term(pyramid_distance(s, t, normalise=student.normalise), weight=weight)}
        if self.stpm:
            beside = levels_of(ctx.signal("stpm", batch).out)[1:]
            terms["stpm"] = Term(pyramid_distance(beside, levels_of(pyramid)[1:]), to="stpm")
        return Terms({}, **terms)

    def artifact(self) -> Artifact:
        """Teacher and student as one network."""
        teacher = self.setup.teacher
        assert teacher is not None
        student = Built(self.roles["student"].module, model=self.model)
        links = {"teacher": (teacher, LinkSettings(teacher.model)), "student": (student, LinkSettings(self.model))}
        return Detector(self.task, teacher, links)

    def rows(self) -> dict[str, Artifact]:
        """The student beside its teacher."""
        if not self.stpm:
            return {}
        teacher = self.setup.teacher
        assert teacher is not None
        student: Any = self.roles["student"].module
        both = Beside(teacher.module, self.roles["stpm"].module, student.sigma)
        return {"stpm": NetworkArtifact(self.task, Built(both, teacher.contract))}
