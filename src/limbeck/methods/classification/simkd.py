"""SimKD: the student answers through the teacher's own classifier; only its features are distilled.

    L = mean( ( F_t - P(F_s) )^2 ),        the result is   head_t( pool( P(F_s(x)) ) )

No label is read. P is a projector of three layers, 1x1, 3x3 and 1x1 convolutions with batch normalisation, which stays in the
network that is delivered.

F_s, F_t: the last maps [N, D, H, W] before pooling, or the features [N, D] where a network shows none;  head_t: stands still
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from limbeck.artifacts.chain import ChainArtifact
from limbeck.errors import ConfigError
from limbeck.functional.feature import feature_distance
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Built, Context, Method, Setup, Term, Terms
from limbeck.grammar.needs import Needs
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.task import Task
from limbeck.models.bottleneck import BottleneckModel
from limbeck.models.chain import LinkSettings
from limbeck.models.linear import LinearModel
from limbeck.networks.shows import last_linear
from limbeck.parts.heads import copied_head
from limbeck.parts.pyramids import pyramid_of
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=None,
    slug="simkd",
    title="Knowledge Distillation with the Reused Teacher Classifier",
    year=2022,
    venue="CVPR 2022",
    arxiv="2203.14001",
    repository="DefangChen/SimKD",
    licence="none stated",
    family="classification",
    methods={"simkd": "SimKd"},
    optimised="the student's weights before its classifier, and a projector",
    signals=("last feature maps",),
    provenance={
        "reused classifier, feature loss alone, no labels": "paper, section 3.2, equation 5",
        "projector of three layers, factor 2": "paper, section 3.2",
        "features of networks without maps": "ours: three linear layers, without the maps' places",
        "the larger of two maps is averaged to the smaller": "paper, section 3.2",
    },
    claim="A student that answers through the teacher's classifier is more accurate than one distilled by KD.",
    recipe="simkd",
    exceptions={"moves": "the student's own classifier is not part of the result, and no term reaches it"},
    notes="The projector is part of what is delivered: see its parameters in the report.",
)


@settings
class SimKd(Method[Classification]):
    """Feature distillation with the teacher's classifier.

    Args:
        factor: how many times narrower than the teacher's feature the projector is inside.
        features: ``maps`` before pooling, ``vectors`` before the classifier, or ``auto``: maps where both networks show them
            and the teacher's classifier reads their mean.
        norm: batch normalisation in the projector.
        student_map, teacher_map: modules that show the maps; ``null`` takes the last one.
    """

    takes_unlabelled = "terms"

    factor: Count = 2
    features: Literal["auto", "maps", "vectors"] = "auto"
    norm: bool = True
    student_map: str | None = None
    teacher_map: str | None = None

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        super().accept(task)
        one_label(self, task)

    def bind(self, setup: Setup) -> None:
        """Find the features; make the projector and the copy of the teacher's classifier."""
        super().bind(setup)
        teacher = setup.teacher
        assert teacher is not None
        head, own = self._head("teacher", teacher), self._head("student", setup.student)
        taps = self._maps(setup, teacher, head)
        self.maps = taps is not None
        s_tap, t_tap = taps if taps is not None else (f"{own}:in", f"{head}:in")
        self.student_taps, self.teacher_taps = (s_tap,), (t_tap,)
        s, t = self.dry("student", [s_tap]).acts[s_tap], self.dry("teacher", [t_tap]).acts[t_tap]
        if not self.maps and (s.ndim != 2 or t.ndim != 2):
            raise ConfigError(
                "method.features",
                "what goes into a classifier is no row of features an item",
                given=f"student {list(s.shape)}, teacher {list(t.shape)}",
                expected="[N, D]: a linear layer after pooling",
            )
        self.shapes = list(s.shape[1:]), int(t.shape[1])
        self.projector = BottleneckModel(factor=self.factor, relu=bool((t >= 0).all()), norm=self.norm)
        self.new("projector", lambda: self.projector.make(Needs(tuple(self.shapes[0]), self.shapes[1], "vector")))
        self.new("classifier", lambda: copied_head(teacher, head, self.task.outputs, "teacher"))
        self.learners = ("student", "projector")

    @staticmethod
    def _head(role: str, built: Built) -> str:
        """The name of a network's last linear layer."""
        if hasattr(type(built.module), "answer") or not isinstance(built.module, nn.Module):
            raise ConfigError(
                role, "SimKD takes over the teacher's classifier", given="answers alone", expected="a network at hand"
            )
        try:
            return last_linear(built.module).removesuffix(":in")
        except ConfigError:
            raise ConfigError(
                role, "it has no linear layer", expected="a network whose classifier is one", remedy="take another"
            ) from None

    def _maps(self, setup: Setup, teacher: Built, head: str) -> tuple[str, str] | None:
        """The modules that show the last maps of both; ``None`` where features are vectors."""
        if self.features == "vectors":
            return None
        try:
            taps = (
                self.student_map or self._last("student", setup.student),
                self.teacher_map or self._last("teacher", teacher),
            )
            shown = self.dry("teacher", [taps[1], f"{head}:in"]).acts
            f, v = shown[taps[1]], shown[f"{head}:in"]
            s = self.dry("student", [taps[0]]).acts[taps[0]]
            for who, x, tap in (("student", s, taps[0]), ("teacher", f, taps[1])):
                if x.ndim != 4:
                    raise ConfigError(f"method.{who}_map", f"{tap} shows {list(x.shape)}", expected="maps [N, D, H, W]")
            if v.shape != f.shape[:2] or not torch.allclose(f.mean((2, 3)), v, rtol=1e-3, atol=1e-4):
                raise ConfigError(
                    "method.teacher_map",
                    f"the teacher's classifier does not read the mean of what {taps[1]} shows",
                    expected="the last map before global average pooling",
                    remedy="name it, or set method.features=vectors",
                )
        except ConfigError:
            if self.features == "maps" or self.student_map or self.teacher_map:
                raise
            return None
        return taps

    def _last(self, role: str, built: Built) -> str:
        """The last map that a network shows."""
        x = self.task.example(2)["x"].to(next(built.module.parameters()).device)
        levels = pyramid_of(built.module, built.contract.inputs(x)) if x.ndim == 4 else []
        if not levels:
            raise ConfigError(f"method.{role}_map", f"the {role} shows no maps", remedy="set method.features=vectors")
        return levels[-1].path

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The distance of the projected feature from the teacher's."""
        s, t = ctx.signal("student", batch), ctx.signal("teacher", batch)
        f_s, f_t = s.acts[self.student_taps[0]], t.acts[self.teacher_taps[0]]
        if self.maps:
            size = min(f_s.shape[-2], f_t.shape[-2]), min(f_s.shape[-1], f_t.shape[-1])
            f_s, f_t = (nn.functional.adaptive_avg_pool2d(f, size) for f in (f_s, f_t))
        p = ctx.call("projector", f_s, by="project")
        values = feature_distance(p, f_t, dims=p.ndim - 1)  # [N]
        return Terms(feature=Term(values, ("student", "projector")))

    def artifact(self) -> Artifact:
        """Backbone, projector and the teacher's classifier as one network."""
        student, (inputs, width) = self.setup.student, self.shapes
        head = LinearModel()
        links = {
            "backbone": (student, LinkSettings(student.model, until=self.student_taps[0])),
            "projector": (
                Built(self.roles["projector"].module, model=self.projector),
                LinkSettings(self.projector, inputs=inputs, outputs=width, form="vector"),
            ),
            "classifier": (
                Built(self.roles["classifier"].module, model=head, labels=self.task.labels),
                LinkSettings(head, inputs=[width]),
            ),
        }
        contract = student.contract.with_(classes=None, width=None)
        return ChainArtifact(self.task, replace(student, contract=contract, labels=self.task.labels), links)
