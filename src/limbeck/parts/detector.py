"""Detectors for methods: proposals, their crops seen by an image tower, a detector made of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, roi_align

from limbeck.functional import boxes as B
from limbeck.functional.regions import crop_scores, region_logits, unit
from limbeck.grammar.role import Contract
from limbeck.networks.two_stage import OpenDetector, Proposals, anchored, maps_of, proposals_of


@torch.no_grad()
def propose(net: Any, x: Tensor, most: int) -> Proposals:
    """The best boxes of a two-stage detector's first stage, in the pixels of the images ``x`` [N, C, H, W].

    Args:
        net: torchvision's, or an `OpenDetector`.
        x: images as the network takes them.
        most: boxes an image, [N, most, 4]; padded with zeros where there are fewer.
    """
    net = net.net if isinstance(net, OpenDetector) else net
    maps = maps_of(net, x)
    found = proposals_of(net, maps, anchored(net, maps), training=False)
    boxes, scores, where = (t[:, :most] for t in found)
    boxes = B.clipped(boxes / maps.scale, (x.shape[-2], x.shape[-1])) * where.unsqueeze(-1)
    if boxes.shape[1] < most:
        more = (0, most - boxes.shape[1])
        boxes = nn.functional.pad(boxes, (0, 0, *more))
        scores, where = nn.functional.pad(scores, more), nn.functional.pad(where, more)
    return Proposals(boxes, scores, where)


def crops_of(x: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Boxes [N, K, 4] of images [N, C, H, W] cut out and brought to one size, [N * K, C, side, side]."""
    n, k = boxes.shape[:2]
    number = torch.arange(n, device=x.device, dtype=x.dtype).repeat_interleave(k)[:, None]
    made: Tensor = roi_align(x, torch.cat([number, boxes.flatten(0, 1).to(x.dtype)], 1), (side, side), aligned=True)
    return made


def embed_crops(
    tower: Callable[[Tensor], Tensor],
    x: Tensor,
    boxes: Tensor,
    *,
    side: int,
    scales: Sequence[float] = (1.0, 1.5),
    contract: Contract | None = None,
    chunk: int = 1024,
) -> Tensor:
    """What an image tower says of boxes [N, K, 4]: the sum over crops of several sizes about their middle, [N, K, D].

    Args:
        tower: from images [n, C, h, w] to embeddings [n, D].
        x: images in [0, 1].
        side: of the crops.
        scales: how much larger than the box each crop is.
        contract: how the tower takes its images.
        chunk: crops at a time.

    Returns:
        Embeddings of unit length.
    """
    n, k = boxes.shape[:2]
    total: Tensor | None = None
    for scale in scales:
        crops = crops_of(x, B.grown(boxes, scale, (x.shape[-2], x.shape[-1])), side)
        crops = contract.inputs(crops) if contract is not None else crops
        e = torch.cat([tower(part).float() for part in crops.split(chunk)])
        total = e if total is None else total + e
    assert total is not None
    return unit(total).view(n, k, -1)


class CropDetector(nn.Module):
    """A detector that asks an image tower about the crop of every proposal: slow, and as good as the tower.

    Args:
        net: whose first stage proposes.
        tower: embeds crops.
        text: embeddings of class names [C, D].
        contracts: of ``net`` and ``tower``.
        side, scales: of the crops.
        most: proposals an image.
        overlap: above which the lower one of two proposals goes, whatever their classes.
        temperature: multiplies cosines.
    """

    finds_boxes = True
    text: Tensor

    def __init__(
        self,
        net: nn.Module,
        tower: nn.Module,
        text: Tensor,
        *,
        contracts: tuple[Contract, Contract],
        side: int,
        scales: Sequence[float],
        most: int,
        overlap: float = 0.9,
        temperature: float = 100.0,
    ) -> None:
        super().__init__()
        self.net, self.tower, self.contracts = net, tower, contracts
        self.register_buffer("text", text)
        self.side, self.scales, self.most, self.overlap, self.temperature = (
            side,
            tuple(scales),
            most,
            overlap,
            temperature,
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Detections of images [N, C, H, W] in [0, 1]."""
        from limbeck.networks.two_stage import detected

        found = propose(self.net, self.contracts[0].inputs(x), self.most)
        keep = torch.zeros_like(found.where)
        for i in range(len(x)):
            ids = found.where[i].nonzero()[:, 0]
            alike = torch.zeros_like(ids)
            keep[i, ids[batched_nms(found.boxes[i, ids], found.scores[i, ids], alike, self.overlap)]] = True
        e = embed_crops(self.tower, x, found.boxes, side=self.side, scales=self.scales, contract=self.contracts[1])
        p = region_logits(e, self.text, temperature=self.temperature).softmax(-1)
        size = (x.shape[-2], x.shape[-1])
        return detected(found.boxes, crop_scores(p, found.scores), keep, size, lowest=0.0, overlap=0.5, most=50)


__all__ = ["CropDetector", "crops_of", "embed_crops", "propose"]
