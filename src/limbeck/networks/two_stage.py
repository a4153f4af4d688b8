"""A two-stage detector of torchvision taken apart: maps, proposals, pooled regions, losses by image, detections.

Everything is padded and batched; a loss is a value for each image, so that cutting a batch changes nothing. Where
torchvision draws a balanced sample of anchors and regions, the loss here is that sample's expectation
(`limbeck.functional.boxes.sampling_weights`): the same gradient on average, without draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from limbeck.functional import boxes as B
from limbeck.functional.labels import cross_entropy
from limbeck.functional.regions import Masking, joint_scores, region_cross_entropy
from limbeck.networks.regions import RegionHead

SMALLEST = 1e-2
"""Proposals with a side of less than so many pixels are left out."""


class Proposals(NamedTuple):
    """Boxes [N, K, 4] in the network's pixels, their objectness [N, K] in [0, 1], and which are there [N, K]."""

    boxes: Tensor
    scores: Tensor
    where: Tensor


@dataclass
class Maps:
    """What the backbone says of images.

    Attributes:
        features: name -> [N, D, h, w], the finest first.
        size: (height, width) of the images as the network sees them.
        scale: its pixels for each pixel of the images that were given, (x, y, x, y).
        images: the images as the network sees them, in torchvision's own form.
    """

    features: dict[str, Tensor]
    size: tuple[int, int]
    scale: Tensor
    images: Any


def is_two_stage(net: Any) -> bool:
    """Whether it has torchvision's parts: transform, backbone, proposals, regions."""
    return all(hasattr(net, n) for n in ("transform", "backbone", "rpn", "roi_heads"))


def maps_of(net: Any, x: Tensor) -> Maps:
    """The pyramid of images [N, C, H, W] in [0, 1]."""
    images, _ = net.transform(list(x))
    features = net.backbone(images.tensors)
    features = {"0": features} if isinstance(features, Tensor) else dict(features)
    high, wide = images.image_sizes[0]
    scale = x.new_tensor([wide / x.shape[-1], high / x.shape[-2]] * 2, dtype=torch.float32)
    return Maps(features, (high, wide), scale, images)


class Anchored(NamedTuple):
    """The first stage's answers: anchors [A, 4], logits [N, A] and offsets [N, A, 4]; anchors of each map."""

    anchors: Tensor
    logits: Tensor
    offsets: Tensor
    levels: list[int]


def anchored(net: Any, maps: Maps) -> Anchored:
    """What the region proposal network says at every anchor."""
    listed = list(maps.features.values())
    logits, offsets = net.rpn.head(listed)
    anchors = net.rpn.anchor_generator(maps.images, listed)[0]
    n = len(listed[0])
    levels = [z[0].numel() for z in logits]
    z = torch.cat([z.permute(0, 2, 3, 1).reshape(n, -1) for z in logits], 1)
    d = torch.cat([d.view(n, -1, 4, *d.shape[-2:]).permute(0, 3, 4, 1, 2).reshape(n, -1, 4) for d in offsets], 1)
    return Anchored(anchors.float(), z.float(), d.float(), levels)


@torch.no_grad()
def proposals_of(net: Any, maps: Maps, found: Anchored, training: bool) -> Proposals:
    """The first stage's best boxes, without graph."""
    from torchvision.ops import batched_nms

    rpn = net.rpn
    before, after = ((p["training"] if training else p["testing"]) for p in (rpn._pre_nms_top_n, rpn._post_nms_top_n))
    boxes = B.clipped(B.decode(found.offsets.detach(), found.anchors, rpn.box_coder.weights), maps.size)
    scores = found.logits.detach()  # ranked as they are: near one half a sigmoid makes ties of them
    kept_b, kept_s, kept_l, start = [], [], [], 0
    for level, count in enumerate(found.levels):
        s, at = scores[:, start : start + count].topk(min(before, count), 1)
        kept_b.append(boxes[:, start : start + count].gather(1, at.unsqueeze(-1).expand(-1, -1, 4)))
        kept_s.append(s)
        kept_l.append(torch.full_like(at, level))
        start += count
    boxes, scores, level_of = torch.cat(kept_b, 1), torch.cat(kept_s, 1), torch.cat(kept_l, 1)
    there = ((boxes[..., 2:] - boxes[..., :2]) >= SMALLEST).all(-1)
    keep = torch.zeros_like(there)
    for i in range(len(boxes)):  # by picture: offsets of a whole batch would move roundings with its size
        ids = there[i].nonzero()[:, 0]
        keep[i, ids[batched_nms(boxes[i, ids], scores[i, ids], level_of[i, ids], rpn.nms_thresh)]] = True
    best, at = scores.masked_fill(~keep, -torch.inf).topk(min(after, scores.shape[1]), 1)
    boxes, where = boxes.gather(1, at.unsqueeze(-1).expand(-1, -1, 4)), best > -torch.inf
    return Proposals(boxes * where.unsqueeze(-1), best.sigmoid(), where)


def _mean(values: Tensor, w: Tensor) -> Tensor:
    """The weighted mean of [N, R] over R, [N]."""
    return (values * w).sum(1) / w.sum(1).clamp_min(1)


def proposal_losses(net: Any, found: Anchored, boxes: Tensor, where: Tensor) -> dict[str, Tensor]:
    """``objectness`` and ``rpn_box`` [N] for true boxes [N, M, 4] in the network's pixels."""
    rpn = net.rpn
    match, sample = rpn.proposal_matcher, rpn.fg_bg_sampler
    overlaps = B.iou(found.anchors.expand(len(boxes), -1, -1), boxes)
    a = B.assign(overlaps, where, high=match.high_threshold, low=match.low_threshold, best=True)
    w = B.sampling_weights(a.positive, a.negative, sample.batch_size_per_image, sample.positive_fraction)
    score = binary_cross_entropy_with_logits(found.logits, a.positive.float(), reduction="none")
    matched = boxes.gather(1, a.target.unsqueeze(-1).expand(-1, -1, 4))
    aim = B.encode(matched, found.anchors, rpn.box_coder.weights)
    aim = torch.where(a.positive.unsqueeze(-1), aim, found.offsets.detach())
    gap = smooth_l1_loss(found.offsets, aim, beta=1 / 9, reduction="none").sum(-1)
    return {"objectness": _mean(score, w), "rpn_box": (gap * w * a.positive).sum(1) / w.sum(1).clamp_min(1)}


class Sampled(NamedTuple):
    """Regions that the second stage learns from.

    Attributes:
        boxes: [N, R, 4]; ``where`` [N, R].
        labels: int64 [N, R], 0 for the background; ``target``: which true box.
        weights: [N, R].
    """

    boxes: Tensor
    where: Tensor
    labels: Tensor
    target: Tensor
    weights: Tensor


def sampled(net: Any, proposals: Proposals, boxes: Tensor, labels: Tensor, where: Tensor) -> Sampled:
    """The best proposals and the true boxes themselves, with the classes that they stand for."""
    heads = net.roi_heads
    match, sample = heads.proposal_matcher, heads.fg_bg_sampler
    size = sample.batch_size_per_image
    r = torch.cat([proposals.boxes[:, :size], boxes], 1)
    there = torch.cat([proposals.where[:, :size], where], 1)
    a = B.assign(B.iou(r, boxes), where, high=match.high_threshold, low=match.low_threshold)
    positive, negative = a.positive & there, a.negative & there
    w = B.sampling_weights(positive, negative, size, sample.positive_fraction)
    y = torch.where(positive, labels.gather(1, a.target) + 1, 0)
    return Sampled(r, there, y, a.target, w)


def pooled(net: Any, maps: Maps, boxes: Tensor, mask: bool = False) -> Tensor:
    """Features of boxes [N, R, 4] in the network's pixels, [N * R, D, s, s]."""
    pool = net.roi_heads.mask_roi_pool if mask else net.roi_heads.box_roi_pool
    found: Tensor = pool(
        maps.features, list(boxes.to(next(iter(maps.features.values())).dtype)), maps.images.image_sizes
    )
    return found


def box_loss(offsets: Tensor, s: Sampled, boxes: Tensor, weights: Any, beta: float) -> Tensor:
    """[N]: Huber loss of offsets [N, R, 4] for regions that stand for an object."""
    aim = B.encode(boxes.gather(1, s.target.unsqueeze(-1).expand(-1, -1, 4)), s.boxes, weights)
    inside = s.labels > 0
    aim = torch.where(inside.unsqueeze(-1), aim, offsets.detach())
    gap = smooth_l1_loss(offsets, aim, beta=beta, reduction="none").sum(-1)
    return (gap * s.weights * inside).sum(1) / s.weights.sum(1).clamp_min(1)


def mask_loss(net: Any, maps: Maps, s: Sampled, masks: Tensor, scale: Tensor, agnostic: bool) -> Tensor:
    """[N]: binary cross-entropy of the masks of at most an eighth of the regions, those that stand for an object first."""
    from torchvision.ops import roi_align

    n, r = s.labels.shape
    k = max(1, min(r, net.roi_heads.fg_bg_sampler.batch_size_per_image // 8))
    inside = s.labels > 0
    at = (s.weights * inside).topk(k, 1).indices  # [N, k]
    boxes = s.boxes.gather(1, at.unsqueeze(-1).expand(-1, -1, 4))
    z = net.roi_heads.mask_predictor(net.roi_heads.mask_head(pooled(net, maps, boxes, mask=True)))  # [N * k, C, m, m]
    label, there = s.labels.gather(1, at), inside.gather(1, at)
    own = torch.zeros_like(label) if agnostic else label
    z = z[torch.arange(n * k, device=z.device), own.flatten()].float()
    side = z.shape[-1]
    flat = masks.flatten(0, 1)[:, None].float()  # [N * M, 1, H, W]
    number = torch.arange(n, device=z.device)[:, None] * masks.shape[1] + s.target.gather(1, at)
    rois = torch.cat([number.flatten()[:, None].float(), (boxes / scale).flatten(0, 1)], 1)
    aim = roi_align(flat, rois, (side, side), aligned=True)[:, 0]
    loss = binary_cross_entropy_with_logits(z, aim, reduction="none").mean((1, 2)).view(n, k)
    return (loss * there).sum(1) / there.sum(1).clamp_min(1)


def detected(
    boxes: Tensor, scores: Tensor, where: Tensor, size: tuple[int, int], *, lowest: float, overlap: float, most: int
) -> dict[str, Tensor]:
    """Detections after non-maximum suppression by class, padded: ``boxes`` [N, K, 4], ``scores``, ``labels``, ``where``.

    Args:
        boxes: [N, R, 4] for all classes alike, or [N, R, C, 4].
        scores: [N, R, C].
        where: [N, R].
        size: (height, width) of the images.
        lowest: score below which nothing is kept; ``overlap``: above which the lower one goes; ``most``: an image.
    """
    from torchvision.ops import batched_nms

    n, r, c = scores.shape
    every = boxes.unsqueeze(2).expand(-1, -1, c, -1) if boxes.ndim == 3 else boxes
    every = B.clipped(every, size)
    k = min(most, r * c)
    found = {
        "boxes": boxes.new_zeros(n, k, 4),
        "scores": scores.new_zeros(n, k),
        "labels": torch.zeros(n, k, dtype=torch.long, device=scores.device),
        "where": torch.zeros(n, k, dtype=torch.bool, device=scores.device),
    }
    good = (scores > lowest) & where.unsqueeze(-1) & ((every[..., 2:] - every[..., :2]) >= SMALLEST).all(-1)
    for i in range(n):
        at, label = good[i].nonzero(as_tuple=True)
        b, s = every[i, at, label], scores[i, at, label]
        keep = batched_nms(b, s, label, overlap)[:k]
        m = len(keep)
        found["boxes"][i, :m], found["scores"][i, :m] = b[keep], s[keep]
        found["labels"][i, :m], found["where"][i, :m] = label[keep], True
    return found


def with_masks(net: Any, maps: Maps, found: dict[str, Tensor], agnostic: bool) -> dict[str, Tensor]:
    """Masks of detections (boxes in the network's pixels): probabilities [N, K, m, m] within each box."""
    z = net.roi_heads.mask_predictor(net.roi_heads.mask_head(pooled(net, maps, found["boxes"], mask=True)))
    n, k = found["labels"].shape
    own = torch.zeros_like(found["labels"]) if agnostic else found["labels"] + 1
    z = z[torch.arange(n * k, device=z.device), own.flatten()]
    return found | {"masks": z.float().sigmoid().view(n, k, *z.shape[-2:])}


def run_plain(net: Any, x: Tensor, targets: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """torchvision's Faster or Mask R-CNN, taken apart: ``losses`` [N] by name while it trains, else detections."""
    maps = maps_of(net, x)
    first = anchored(net, maps)
    proposals = proposals_of(net, maps, first, net.training)
    heads = net.roi_heads
    coder = heads.box_coder.weights
    n = len(x)
    if net.training and targets is not None:
        boxes, where = targets["boxes"] * maps.scale, targets["where"]
        losses = proposal_losses(net, first, boxes, where)
        s = sampled(net, proposals, boxes, targets["labels"], where)
        z, offsets = heads.box_predictor(heads.box_head(pooled(net, maps, s.boxes)))
        r = s.labels.shape[1]
        losses["class"] = _mean(cross_entropy(z.float().view(n, r, -1), s.labels), s.weights)
        of = offsets.float().view(n, r, -1, 4).gather(2, s.labels[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
        losses["box"] = box_loss(of, s, boxes, coder, 1 / 9)
        if "masks" in targets and getattr(heads, "mask_head", None) is not None:
            losses["mask"] = mask_loss(net, maps, s, targets["masks"], maps.scale, agnostic=False)
        return {"losses": losses}
    r = proposals.boxes.shape[1]
    z, offsets = heads.box_predictor(heads.box_head(pooled(net, maps, proposals.boxes)))
    p = z.float().view(n, r, -1).softmax(-1)[..., 1:]
    b = B.decode(offsets.float().view(n, r, -1, 4), proposals.boxes.unsqueeze(2), coder)[:, :, 1:]
    found = detected(
        b,
        p,
        proposals.where,
        maps.size,
        lowest=heads.score_thresh,
        overlap=heads.nms_thresh,
        most=heads.detections_per_img,
    )
    if getattr(heads, "mask_head", None) is not None:
        found = with_masks(net, maps, found, agnostic=False)
    return found | {"boxes": found["boxes"] / maps.scale}


class OpenDetector(nn.Module):
    """A two-stage detector whose classes are embeddings.

    Args:
        net: torchvision's Faster or Mask R-CNN: backbone, proposals, pooling and mask head are its own; its box head is
            not used and taken out.
        head: what stands in its place.
        classes: how many.

    Attributes:
        masking: what becomes of the logits of classes that `base` does not name while it trains.
        base: bool [C]: classes that have labels.
        share: the larger exponent where two branches are joined.
        by_image: regions are scored by the softmax without the background, times objectness.
        label_free: leave the class loss out.
    """

    base: Tensor
    share: Tensor
    by_image: Tensor

    def __init__(self, net: Any, head: RegionHead, classes: int) -> None:
        super().__init__()
        net.roi_heads.box_head = nn.Identity()
        net.roi_heads.box_predictor = nn.Identity()
        self.net, self.head = net, head
        self.register_buffer("base", torch.ones(classes, dtype=torch.bool))
        self.masking: Masking = "none"
        self.register_buffer("share", torch.tensor(2 / 3))
        self.register_buffer("by_image", torch.tensor(False))
        self.label_free = False
        self.lowest = 0.0

    @property
    def masked(self) -> bool:
        """Whether it has a mask head; its masks are the same for all classes."""
        return getattr(self.net.roi_heads, "mask_head", None) is not None

    def forward(
        self, x: Tensor, targets: Mapping[str, Tensor] | None = None, regions: Tensor | None = None
    ) -> dict[str, Any]:
        """``losses`` [N] by name while it trains, else detections; ``embedding`` [N, P, D] of further boxes.

        Args:
            x: images [N, C, H, W] in [0, 1].
            targets: ``boxes`` [N, M, 4], ``labels``, ``where``, and ``masks`` [N, M, H, W] for a mask head.
            regions: boxes [N, P, 4] in the pixels of ``x`` to be embedded by the branch that is matched to images.
        """
        net, n = self.net, len(x)
        maps = maps_of(net, x)
        first = anchored(net, maps)
        proposals = proposals_of(net, maps, first, self.training)
        out: dict[str, Any] = {}
        if regions is not None:
            e = self.head.embed(pooled(net, maps, regions * maps.scale))
            out["embedding"] = e.float().view(n, regions.shape[1], -1)
        if self.training and targets is not None:
            out["losses"] = self.losses(maps, first, proposals, targets)
            return out
        found = self.head(pooled(net, maps, proposals.boxes))
        r = proposals.boxes.shape[1]
        boxes = B.decode(found.offsets.float().view(n, r, 4), proposals.boxes, (10.0, 10.0, 5.0, 5.0))
        made = detected(
            boxes,
            self.scores(maps, proposals, found.embedding).view(n, r, -1),
            proposals.where,
            maps.size,
            lowest=self.lowest,
            overlap=net.roi_heads.nms_thresh,
            most=net.roi_heads.detections_per_img,
        )
        if self.masked:
            made = with_masks(net, maps, made, agnostic=True)
        return out | made | {"boxes": made["boxes"] / maps.scale}

    def scores(self, maps: Maps, proposals: Proposals, e: Tensor) -> Tensor:
        """Of every proposal and class [N * R, C], as the variant reads them."""
        head = self.head
        if head.two:
            e_image = head.embed(pooled(self.net, maps, proposals.boxes))
            return joint_scores(head.logits(e).float(), head.image_logits(e_image).float(), self.base, self.share)
        if bool(self.by_image):
            p = head.image_logits(e).float().softmax(-1)
            return (p * proposals.scores.flatten()[:, None]).sqrt()
        return head.logits(e).float().softmax(-1)[:, 1:]

    def losses(
        self, maps: Maps, first: Anchored, proposals: Proposals, targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Both stages' losses [N]."""
        n, boxes, where = len(proposals.boxes), targets["boxes"] * maps.scale, targets["where"]
        losses = proposal_losses(self.net, first, boxes, where)
        s = sampled(self.net, proposals, boxes, targets["labels"], where)
        found = self.head(pooled(self.net, maps, s.boxes))
        r = s.labels.shape[1]
        if not self.label_free:
            trained = torch.cat([self.base.new_ones(1), self.base])
            z = self.head.logits(found.embedding).float().view(n, r, -1)
            losses["class"] = _mean(region_cross_entropy(z, s.labels, trained, self.masking), s.weights)
        losses["box"] = box_loss(found.offsets.float().view(n, r, 4), s, boxes, (10.0, 10.0, 5.0, 5.0), 1.0)
        if self.masked and "masks" in targets:
            losses["mask"] = mask_loss(self.net, maps, s, targets["masks"], maps.scale, agnostic=True)
        return losses


class SmallPyramid(nn.Module):
    """Convolutions with group normalisation, halved step by step; two levels brought to one width.

    Args:
        channels: of the images.
        width: of the pyramid; the coarser stages are as wide.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        half = max(8, width // 2)

        def block(a: int, b: int) -> nn.Sequential:
            groups = next(g for g in (8, 4, 2, 1) if b % g == 0)
            return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.GroupNorm(groups, b), nn.ReLU())

        self.stem = nn.Sequential(block(channels, half), block(half, width))  # stride 4
        self.deeper = block(width, width)  # stride 8
        self.lateral = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(2)])
        self.out_channels = width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``0`` of stride 4, ``1`` of stride 8."""
        fine = self.stem(x)
        coarse = self.deeper(fine)
        top = self.lateral[1](coarse)
        up = nn.functional.interpolate(top, fine.shape[-2:], mode="nearest")
        return {"0": self.lateral[0](fine) + up, "1": top}


def small_detector(
    channels: int, classes: int, side: tuple[int, int], *, width: int, proposals: int, pool: int, masks: bool
) -> nn.Module:
    """torchvision's Faster R-CNN (Mask R-CNN) on `SmallPyramid`, for images of their own size.

    Args:
        channels: of the images; ``side``: (height, width).
        classes: without the background.
        width: of the pyramid and of the box head.
        proposals: that the first stage hands on.
        pool: side of pooled features.
        masks: with a mask head.
    """
    given = {"width": width, "proposals": proposals, "pool": pool, "masks": masks}
    normalise = ([0.5] * channels, [0.25] * channels)
    return pyramid_detector(SmallPyramid(channels, width), classes, side, normalise=normalise, **given)  # type: ignore[arg-type]


def pyramid_detector(
    body: nn.Module,
    classes: int,
    side: tuple[int, int],
    *,
    width: int,
    proposals: int,
    pool: int,
    masks: bool,
    levels: int = 2,
    channels: int = 0,
    normalise: tuple[list[float], list[float]] | None = None,
) -> nn.Module:
    """torchvision's Faster R-CNN (Mask R-CNN) on any pyramid of strides 4, 8, ..., for images of their own size.

    Args:
        body: gives its levels by name, ``0`` the finest, and has ``out_channels``.
        classes: without the background.
        side: (height, width) of the images.
        width: of the pyramid and of the box head.
        proposals: that the first stage hands on.
        pool: side of pooled features.
        masks: with a mask head.
        levels: of the pyramid. Two have anchors of an eighth to a half of the image's short side; of any other number
            each has those of eight times its stride.
        channels: of the images, where they come normalised.
        normalise: mean and deviation of each channel, by which the detector normalises itself.
    """
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    short = min(side)
    sizes: tuple[tuple[int, ...], ...] = ((short // 8, short // 5), (short // 4, short // 2))
    ratios: tuple[float, ...] = (0.7, 1.4)
    if levels != 2:
        sizes, ratios = tuple((32 * 2**i,) for i in range(levels)), (0.5, 1.0, 2.0)
    mean, std = normalise or ([0.0] * channels, [1.0] * channels)
    names = [str(i) for i in range(levels)]
    given: dict[str, Any] = {
        "min_size": short,
        "max_size": max(side),
        "image_mean": mean,
        "image_std": std,
        "rpn_anchor_generator": AnchorGenerator(sizes, (ratios,) * levels),
        "rpn_pre_nms_top_n_train": 4 * proposals,
        "rpn_pre_nms_top_n_test": 4 * proposals,
        "rpn_post_nms_top_n_train": proposals,
        "rpn_post_nms_top_n_test": proposals,
        "rpn_batch_size_per_image": 64,
        "box_roi_pool": MultiScaleRoIAlign(names, pool, 1),
        "box_head": TwoMLPHead(width * pool * pool, 2 * width),
        "box_predictor": FastRCNNPredictor(2 * width, classes + 1),
        "box_batch_size_per_image": proposals,
        "box_detections_per_img": 50,
        "box_score_thresh": 0.01,
    }
    if masks:
        given |= {
            "mask_roi_pool": MultiScaleRoIAlign(names, 2 * pool, 1),
            "mask_head": MaskRCNNHeads(width, (width,) * 2, 1),
            "mask_predictor": MaskRCNNPredictor(width, width, classes + 1),
        }
    made: nn.Module = (MaskRCNN if masks else FasterRCNN)(body, **given)
    made.transform.size_divisible = 4 * 2 ** (levels - 1)  # type: ignore[union-attr]
    return made
