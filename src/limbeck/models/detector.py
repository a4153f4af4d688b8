"""Detectors: a small one of our own, and one of an open vocabulary over any two-stage detector."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any, Literal

from torch import nn

from limbeck.errors import ConfigError
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, Natural, Positive, settings
from limbeck.grammar.task import Task
from limbeck.models.classifier import Loaded
from limbeck.networks.regions import Norm, RegionHead
from limbeck.networks.two_stage import OpenDetector, is_two_stage, small_detector

NAMES = {"model": {"small-detector": "SmallDetector", "open-detector": "OpenDetectorModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class SmallDetector(Loaded):
    """torchvision's Faster R-CNN on a pyramid of a few convolutions, for images of their own size, from scratch.

    Args:
        width: channels of the pyramid.
        proposals: how many the first stage hands on.
        pool: side of pooled features.
        masks: with a mask head (Mask R-CNN).
    """

    forms = ("boxes",)
    takes = ("pictures",)

    width: Count = 32
    proposals: Count = 48
    pool: Count = 4
    masks: bool = False

    def make(self, needs: Needs) -> nn.Module:
        """The detector; its weights are its own, so that ``state_dict`` is torchvision's."""
        channels, high, wide = needs.inputs
        given = {"width": self.width, "proposals": self.proposals, "pool": self.pool, "masks": self.masks}
        return small_detector(channels, needs.outputs, (high, wide), **given)  # type: ignore[arg-type]

    def contract(self, module: nn.Module, task: Task) -> Contract:
        """It normalises inside."""
        return Contract(channels=task.needs.inputs[0])


@settings
class OpenDetectorModel(SmallDetector):
    """A two-stage detector whose classes are embeddings: regions become unit vectors that are compared to those of names.

    Trained alone, its classifier's embeddings are learnt like any other weights; a method may put those of texts there.

    Args:
        dim: of the embeddings: that of the table of texts and of the image tower.
        body: a detector of torchvision by its name (``maskrcnn_resnet50_fpn_v2``), whose backbone, proposals and mask head
            are used; ``small`` for one as `SmallDetector` makes it.
        weights: pretrained weights of that body (``DEFAULT``); its own classes are dropped.
        heads: ``one`` branch for texts and images, or ``two``.
        convs, conv_width, fcs, fc_width: of each branch; with a small body by default no convolution, one layer of 2 width.
        norm: after each of them: ``batch``, ``group`` or ``none``.
        temperature: multiplies cosines.
        detections: how many an image are kept.
    """

    _: KW_ONLY
    dim: Count = 32
    body: str = "small"
    weights: str | None = None
    heads: Literal["one", "two"] = "one"
    convs: Natural | None = None
    conv_width: Count = 256
    fcs: Count | None = None
    fc_width: Count | None = None
    norm: Norm = "group"
    temperature: Positive = 100.0
    detections: Count | None = None

    def make(self, needs: Needs) -> nn.Module:
        """Body and region head."""
        body: Any = super().make(needs) if self.body == "small" else self._library(needs)
        if self.detections is not None:
            body.roi_heads.detections_per_img = self.detections
        small = self.body == "small"
        pool = body.roi_heads.box_roi_pool.output_size
        head = RegionHead(
            body.backbone.out_channels,
            int(pool[0] if isinstance(pool, (tuple, list)) else pool),
            self.dim,
            needs.outputs,
            two=self.heads == "two",
            convs=self.convs if self.convs is not None else 0 if small else 4,
            conv_width=self.conv_width,
            fcs=self.fcs or (1 if small else 2),
            width=self.fc_width or (2 * self.width if small else 1024),
            norm=self.norm,
            temperature=self.temperature,
        )
        return OpenDetector(body, head, needs.outputs)

    def _library(self, needs: Needs) -> nn.Module:
        from torchvision import models

        from limbeck.models.libraries import Torchvision

        known = [n for n in models.list_models(module=models.detection) if "rcnn" in n and "keypoint" not in n]
        if self.body not in models.list_models(module=models.detection):
            raise ConfigError.unknown(self.setting("body"), self.body, ["small", *known], "body of a detector")
        library = Torchvision(self.body, weights=self.weights)
        library.role = self.role
        made = library.make(needs)
        if not is_two_stage(made):
            raise ConfigError(self.setting("body"), "has one stage", given=self.body, expected=" or ".join(known))
        return made

    def contract(self, module: nn.Module, task: Task) -> Contract:
        """Bodies of torchvision take colours."""
        return Contract(channels=3) if self.body != "small" else super().contract(module, task)


__all__ = ["OpenDetectorModel", "SmallDetector"]
