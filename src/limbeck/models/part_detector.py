"""Detectors of parts and their joints: a small one, and DOPE's on a ResNet of torchvision."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import nn

from limbeck.errors import ConfigError
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, Fraction, settings
from limbeck.grammar.task import Task
from limbeck.models.classifier import Loaded
from limbeck.networks.part_detector import PartDetector, resnet_detector
from limbeck.networks.two_stage import small_detector

NAMES = {"model": {"part-detector": "PartDetectorModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

ANCHORS = {"body": 20}
"""Anchor poses of a part where the recipe names no number; of every other part 10."""


@settings
class PartDetectorModel(Loaded):
    """Proposals shared by all parts, and for each part scores and poses of its anchor poses, which are those of the training
    data: their means after k-means.

    Args:
        body: ``small`` (a few convolutions, for images of their own size), or a ResNet of torchvision (``resnet50`` is
            DOPE's, ``resnet18`` a real-time one).
        weights: of that ResNet, pretrained (``DEFAULT``).
        anchors: part -> how many anchor poses; parts that are not named have 10, a body 20.
        side: shorter side to which a ResNet's images are brought; ``null``: the task's own size.
        width: channels of the small body.
        proposals: regions that the first stage hands on (a ResNet's: when it is evaluated) and that are learnt from.
        pool: side of the small body's pooled regions.
        min_score: score below which no pose is found.
        overlap: of the boxes of two poses of a part, above which the lower one goes.
        detections: poses of each part an image, at most.
    """

    forms = ("poses",)
    takes = ("pictures",)

    body: str = "small"
    weights: str | None = None
    anchors: dict[str, Count] = {}  # noqa: RUF012 (copied by settings)
    side: Annotated[int, Ge(32)] | None = None
    width: Count = 32
    proposals: Count = 64
    pool: Count = 5
    min_score: Fraction = 0.3
    overlap: Annotated[float, Gt(0), Le(1)] = 0.1
    detections: Count = 10

    def make(self, needs: Needs) -> nn.Module:
        """The detector, its anchor poses those of the task."""
        channels, high, wide = needs.inputs
        assert needs.parts is not None
        parts = {n: needs.parts.anchors(n, self.anchors.get(n, ANCHORS.get(n, 10))) for n in needs.parts.joints}
        given = {"lowest": self.min_score, "overlap": self.overlap, "most": self.detections}
        if self.body == "small":
            from torchvision.models.detection.faster_rcnn import TwoMLPHead

            net = small_detector(
                channels, 1, (high, wide), width=self.width, proposals=self.proposals, pool=self.pool, masks=False
            )
            head = TwoMLPHead(self.width * self.pool**2, 4 * self.width)
            return PartDetector(net, head, 4 * self.width, parts, **given)  # type: ignore[arg-type]
        from torchvision import models

        known = [n for n in models.list_models(module=models) if "resnet" in n]
        if self.body not in known:
            raise ConfigError.unknown(self.setting("body"), self.body, ["small", *known], "body")
        sides = {"min_size": min(high, wide), "max_size": max(high, wide)}
        if self.side is not None:
            sides = {"min_size": self.side, "max_size": round(self.side * 1333 / 800)}
        weights = self.weights if self.checkpoint is None else None
        try:
            made, last, width = resnet_detector(
                self.body,
                weights,
                rpn_post_nms_top_n_test=self.proposals,
                box_batch_size_per_image=self.proposals,
                **sides,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                self.setting("weights"),
                f"{self.body}'s weights cannot be loaded: {error}",
                given=self.weights,
                remedy="name local weights with checkpoint=FILE",
            ) from None
        return PartDetector(made, last, width, parts, **given)  # type: ignore[arg-type]

    def contract(self, module: nn.Module, task: Task) -> Contract:
        """It normalises inside; a ResNet takes colours."""
        return Contract(channels=task.needs.inputs[0] if self.body == "small" else 3)


__all__ = ["PartDetectorModel"]
