"""A detector of parts and their joints: one backbone, proposals and pooling, and for each part scores and poses of anchors.

Poses are [..., J, 5]: x, y in pixels, then X, Y, Z about the root. Of every part K anchor poses stand for its poses; a region
has a score for each (and for the background), and a vector that leads from it to the pose. The network is LCR-Net's and
DOPE's (Weinzaepfel et al., ECCV 2020); where the authors draw regions, the loss is their expectation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.functional import boxes as B
from limbeck.functional import keypoints as K
from limbeck.networks.two_stage import SMALLEST, Maps, anchored, maps_of, pooled, proposal_losses, proposals_of


class Answer(NamedTuple):
    """What regions say of one part: scores [N, R, 1 + K] before the softmax, the background first, and vectors [N, R, K, 5J]."""

    logits: Tensor
    regressions: Tensor


class PartDetector(nn.Module):
    """A two-stage detector with a branch for each part.

    Args:
        net: torchvision's Faster R-CNN: transform, backbone, proposals and pooling are its own; its box head is taken out.
        head: from pooled features [R, D, s, s] to [R, width].
        width: of what the head gives.
        parts: name -> anchor poses [K, J, 5].
        lowest: score below which no pose is found; ``overlap`` of boxes above which the lower one goes.
        most: poses of each part an image.

    Attributes:
        names: of the parts.
    """

    def __init__(
        self,
        net: Any,
        head: nn.Module,
        width: int,
        parts: Mapping[str, Tensor],
        lowest: float = 0.3,
        overlap: float = 0.1,
        most: int = 10,
    ) -> None:
        super().__init__()
        net.roi_heads.box_head = nn.Identity()
        net.roi_heads.box_predictor = nn.Identity()
        self.net, self.head, self.names = net, head, list(parts)
        self.scores = nn.ModuleList(nn.Linear(width, 1 + len(a)) for a in parts.values())
        self.poses = nn.ModuleList(nn.Linear(width, 5 * a.shape[0] * a.shape[1]) for a in parts.values())
        for i, a in enumerate(parts.values()):
            self.register_buffer(f"anchors_{i}", a.clone())
            nn.init.normal_(self.poses[i].weight, std=0.001)  # type: ignore[arg-type]
            nn.init.zeros_(self.poses[i].bias)  # type: ignore[arg-type]
        self.lowest, self.overlap, self.most = lowest, overlap, most

    def anchors(self, part: str) -> Tensor:
        """Anchor poses [K, J, 5] of a part."""
        found: Tensor = getattr(self, f"anchors_{self.names.index(part)}")
        return found

    def forward(
        self,
        x: Tensor,
        targets: Mapping[str, Tensor] | None = None,
        regions: Tensor | None = None,
        lowest: float | None = None,
    ) -> dict[str, Any]:
        """Answers at regions, losses while it trains, or poses.

        Args:
            x: images [N, C, H, W] in [0, 1].
            targets: ``labelled`` bool [N, P] and of each part ``pose:P``, ``known:P``, ``where:P``, ``box:P``.
            regions: boxes [N, R, 4] in the pixels of ``x``: only what the parts say of them is answered.
            lowest: score below which no pose is found.

        Returns:
            ``answers`` (part -> `Answer`) for regions. In training also ``regions`` [N, R, 4], ``weights`` [N, R] and
            ``labels`` (part -> int64 [N, R]) of those that were learnt from, and ``losses`` and ``counts``: name -> [N], which
            images they are of. Else of each part, the best first, padded: ``pose:P`` [N, D, J, 5], ``box:P`` [N, D, 4],
            ``score:P`` [N, D], ``anchor:P`` [N, D] and ``where:P`` [N, D].
        """
        net = self.net
        maps = maps_of(net, x)
        if regions is not None:
            return {"answers": self.answers(maps, regions * maps.scale)}
        first = anchored(net, maps)
        proposals = proposals_of(net, maps, first, self.training)
        if not (self.training and targets is not None):
            return self.found(self.answers(maps, proposals.boxes), proposals.boxes, proposals.where, maps, lowest)
        scale = maps.scale
        boxes = torch.cat([targets[f"box:{p}"] for p in self.names], 1) * scale
        where = torch.cat([targets[f"where:{p}"] for p in self.names], 1)
        losses = proposal_losses(net, first, boxes, where)
        counts = {n: torch.ones(len(x), dtype=torch.bool, device=x.device) for n in losses}
        sample = net.roi_heads.fg_bg_sampler
        size = sample.batch_size_per_image
        r = torch.cat([proposals.boxes[:, :size], boxes], 1)
        there = torch.cat([proposals.where[:, :size], where], 1)
        labelled = {p: self._labels(p, i, r, there, targets, scale) for i, p in enumerate(self.names)}
        every = torch.stack([v.label for v in labelled.values()])
        positive = (every > 0).any(0)
        w = B.sampling_weights(positive, (every == 0).any(0) & ~positive, size, sample.positive_fraction)
        answers = self.answers(maps, r)
        for p, found in labelled.items():
            z, s = answers[p]
            at = found.target.clamp_min(0)
            pose = targets[f"pose:{p}"].gather(1, at[..., None, None].expand(-1, -1, *targets[f"pose:{p}"].shape[2:]))
            known = targets[f"known:{p}"].gather(
                1, at[..., None, None].expand(-1, -1, *targets[f"known:{p}"].shape[2:])
            )
            anchor = self.anchors(p)[(found.label - 1).clamp_min(0)]
            aim = K.encode_poses(r, anchor, pose[..., :2] * scale[:2], pose[..., 2:])
            told = torch.cat(
                [
                    known[..., :1].expand_as(pose[..., :2]).flatten(-2),
                    known[..., 1:].expand_as(pose[..., 2:]).flatten(-2),
                ],
                -1,
            )
            loss = K.pose_loss(z, s, found.label, aim, told)
            of = found.label >= 0
            losses[f"{p}_class"] = region_mean(loss.classification, w * of)
            losses[f"{p}_pose"] = region_mean(loss.regression, w * of)
            counts[f"{p}_class"] = counts[f"{p}_pose"] = (w * of).sum(1) > 0
        return {
            "losses": losses,
            "counts": counts,
            "answers": answers,
            "regions": r / scale,
            "weights": w,
            "labels": {p: v.label for p, v in labelled.items()},
        }

    def answers(self, maps: Maps, boxes: Tensor) -> dict[str, Answer]:
        """What every part says of boxes [N, R, 4] in the network's pixels."""
        n, r = boxes.shape[:2]
        f = self.head(pooled(self.net, maps, boxes)).flatten(1)
        found = {}
        for i, p in enumerate(self.names):
            k, j = self.anchors(p).shape[:2]
            found[p] = Answer(
                self.scores[i](f).float().view(n, r, 1 + k), self.poses[i](f).float().view(n, r, k, 5 * j)
            )
        return found

    def _labels(
        self, part: str, i: int, r: Tensor, there: Tensor, targets: Mapping[str, Tensor], scale: Tensor
    ) -> K.PoseLabels:
        box, pose, known = (targets[f"{n}:{part}"] for n in ("box", "pose", "known"))
        near = K.nearest_anchors(box, pose[..., :2], pose[..., 2:], known[..., 0], known[..., 1], self.anchors(part))
        found = K.label_regions(
            r,
            box * scale,
            near,
            iou_threshold=self.net.roi_heads.proposal_matcher.high_threshold,
            labelled=targets["labelled"][:, i],
            where=targets[f"where:{part}"],
        )
        none = torch.full_like(found.label, -1)
        return K.PoseLabels(torch.where(there, found.label, none), torch.where(there, found.target, none))

    def found(
        self, answers: Mapping[str, Answer], boxes: Tensor, where: Tensor, maps: Maps, lowest: float | None = None
    ) -> dict[str, Tensor]:
        """Poses of answers at boxes [N, R, 4], after suppression."""
        out: dict[str, Tensor] = {}
        n, d = len(boxes), self.most
        lowest = self.lowest if lowest is None else lowest
        for p, (z, s) in answers.items():
            anchors = self.anchors(p)
            j = anchors.shape[1]
            made = {
                "pose": boxes.new_zeros(n, d, j, 5),
                "box": boxes.new_zeros(n, d, 4),
                "score": boxes.new_zeros(n, d),
                "anchor": torch.zeros(n, d, dtype=torch.long, device=boxes.device),
                "where": torch.zeros(n, d, dtype=torch.bool, device=boxes.device),
            }
            poses = K.decode_poses(s, anchors, boxes)
            scores = z.softmax(-1)
            for i in range(n):
                here = (where[i] & ((boxes[i, :, 2:] - boxes[i, :, :2]) >= SMALLEST).all(-1)).nonzero()[:, 0]
                flat, deep = poses.pose2d[i, here] / maps.scale[:2], poses.pose3d[i, here]
                kept = K.suppress_poses(scores[i, here], flat, min_score=lowest, iou_threshold=self.overlap)
                m = min(d, len(kept.region))
                at, anchor = kept.region[:m], kept.anchor[:m]
                made["pose"][i, :m] = torch.cat([flat[at, anchor], deep[at, anchor]], -1)
                made["box"][i, :m] = K.pose_boxes(flat[at, anchor])
                made["score"][i, :m], made["anchor"][i, :m], made["where"][i, :m] = kept.score[:m], anchor, True
            out |= {f"{name}:{p}": t for name, t in made.items()}
        return out


def region_mean(values: Tensor, w: Tensor) -> Tensor:
    """The weighted mean of [N, R] over R, [N]; 0 where nothing has a weight."""
    total = w.sum(1)
    return (values * w).sum(1) / torch.where(total > 0, total, torch.ones_like(total))


def resnet_detector(name: str, weights: str | None, **given: Any) -> tuple[nn.Module, nn.Module, int]:
    """DOPE's network on a ResNet of torchvision, its batch statistics standing still: blocks 1 to 3 (stride 16) are shared,
    block 4 looks at pooled regions of 7 x 7.

    Args:
        name: ``resnet18``, ``resnet50`` and their like.
        weights: pretrained ones of torchvision (``DEFAULT``).
        given: further arguments of ``FasterRCNN``.

    Returns:
        Detector, head and the head's width.
    """
    from collections import OrderedDict

    from torchvision import models
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

    made: Any = models.get_model(name, weights=weights, norm_layer=FrozenBatchNorm2d)
    trunk: Any = nn.Sequential(
        OrderedDict((n, getattr(made, n)) for n in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"))
    )
    last = list(made.layer3[-1].children())
    trunk.out_channels = next(m for m in reversed(last) if isinstance(m, nn.Conv2d)).out_channels
    net = FasterRCNN(
        trunk,
        num_classes=2,
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        rpn_pre_nms_top_n_train=2000,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_train=2000,
        **{"rpn_post_nms_top_n_test": 1000, "min_size": 800, "max_size": 1333, **given},
    )
    return net, nn.Sequential(made.layer4, nn.AdaptiveAvgPool2d(1)), int(made.fc.in_features)


__all__ = ["Answer", "PartDetector", "region_mean", "resnet_detector"]
