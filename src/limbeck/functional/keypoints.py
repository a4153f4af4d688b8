"""Poses of parts in boxes: anchor poses, how poses are coded and labelled, partial labels, what experts add.

A part (body, hand, face) has J joints and K anchor poses [K, J, 5]: x, y in the unit box, then X, Y, Z about the root.
A region's vector [5J] for one anchor holds x, y of joint 0, of joint 1, ... and then X, Y, Z of joint 0, of joint 1, ...
Classes are K + 1: 0 is the background, k + 1 is anchor k. Boxes are (left, top, right, bottom) in pixels.

Source: DOPE, Weinzaepfel et al., ECCV 2020. Decoding, suppression and association do as its published test code. Of
training there is no published code: targets, loss, merging and distillation are reconstructed, which each function says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from limbeck.errors import ConfigError, ShapeError, TeacherMismatch
from limbeck.functional._common import choose, in_range, keep, statistics_dtype
from limbeck.functional.boxes import iou
from limbeck.functional.divergence import kl, soft_cross_entropy
from limbeck.functional.labels import cross_entropy

SoftTarget = Literal["kl", "ce", "logits_l2"]
"""How an expert's scores are copied: divergence, cross-entropy, or the mean square of the logits' differences."""

RegWeighting = Literal["expert_score", "labelled_anchor"]
"""Which anchors' vectors are copied: all by the expert's score of each, or that of the region's label alone."""

SMALLEST = 1e-6
"""Sides of boxes count as no shorter than this many pixels where they divide."""


class Poses(NamedTuple):
    """Poses of regions.

    Attributes:
        pose2d: [..., K, J, 2] in pixels.
        pose3d: [..., K, J, 3] about the root.
    """

    pose2d: Tensor
    pose3d: Tensor


class Detected(NamedTuple):
    """What is left of N regions, the best first.

    Attributes:
        region: int64 [n], numbers of the regions.
        anchor: int64 [n], the best anchor of each, from 0.
        score: [n].
    """

    region: Tensor
    anchor: Tensor
    score: Tensor


class PoseLabels(NamedTuple):
    """What regions are labelled with.

    Attributes:
        label: int64 [..., R]: anchor + 1, 0 for the background, -1 for regions that nothing is known of.
        target: int64 [..., R]: number of the instance, -1 for none.
    """

    label: Tensor
    target: Tensor


class PartLoss(NamedTuple):
    """A part's loss on each region; exactly 0 on those left out.

    Attributes:
        classification: [..., R].
        regression: [..., R].
    """

    classification: Tensor
    regression: Tensor


class Merged(NamedTuple):
    """Instances of one part: the A annotated ones first, then all D detections, those that became instances marked.

    Attributes:
        boxes: [..., A + D, 4].
        pose: [..., A + D, J, 5], 0 where nothing is known.
        source: int64 [..., A + D, J, 5]: of each value, 0 unknown, 1 annotated, 2 an expert's.
        pseudo: bool [A + D], true for detections.
        where: bool [..., A + D], instances that are there.
    """

    boxes: Tensor
    pose: Tensor
    source: Tensor
    pseudo: Tensor
    where: Tensor


def _is_pose(name: str, pose: Tensor, last: int, lead: str = "...") -> None:
    if pose.ndim < 2 or pose.shape[-1] != last or pose.shape[-2] == 0:
        raise ShapeError(name, given=list(pose.shape), expected=f"[{lead}, J, {last}] with at least one joint")


def _overlaps(a: Tensor, b: Tensor) -> Tensor:
    """`iou` in at least single precision."""
    dtype = statistics_dtype(a, b)
    return iou(a.to(dtype), b.to(dtype))


def pose_boxes(pose2d: Tensor, margin: float = 0.1, where: Tensor | None = None) -> Tensor:
    """The tight box of each pose, made wider on each side by ``margin`` times its width or height: [..., 4].

    Args:
        pose2d: [..., J, 2] in pixels.
        margin: at least 0.
        where: [..., J], joints that count; a pose of none gives an empty box at 0.

    Example:
        >>> [round(v, 4) for v in pose_boxes(torch.tensor([[0.0, 0], [10, 20]])).tolist()]
        [-1.0, -2.0, 11.0, 22.0]
    """
    _is_pose("pose2d", pose2d, 2)
    in_range("margin", margin, 0.0, float("inf"), open_high=True)
    if where is None:
        low, high = pose2d.amin(-2), pose2d.amax(-2)
    else:
        gone = ~where.bool().unsqueeze(-1)
        low = pose2d.masked_fill(gone, torch.inf).amin(-2)
        high = pose2d.masked_fill(gone, -torch.inf).amax(-2)
        some = where.bool().any(-1, keepdim=True)
        low, high = keep(low, some), keep(high, some)
    side = margin * (high - low)
    return torch.cat([low - side, high + side], -1)


def encode_poses(
    boxes: Tensor, anchors: Tensor, pose2d: Tensor, pose3d: Tensor, weights: tuple[float, float] = (5.0, 5.0)
) -> Tensor:
    """The vectors [..., 5J] that lead from anchor poses in boxes to poses: what `decode_poses` undoes.

    d2 = w2 ((pose2d - corner) / size - anchor2d), d3 = w3 (pose3d - anchor3d).

    Args:
        boxes: [..., 4]; an empty one gives finite values that mean nothing.
        anchors: the anchor pose of each box [..., J, 5].
        pose2d: [..., J, 2] in pixels.
        pose3d: [..., J, 3] about the root.
        weights: factors w2 of the plane and w3 of space.
    """
    for name, pose, last in (("anchors", anchors, 5), ("pose2d", pose2d, 2), ("pose3d", pose3d, 3)):
        _is_pose(name, pose, last)
    joints = {"anchors": anchors.shape[-2], "pose2d": pose2d.shape[-2], "pose3d": pose3d.shape[-2]}
    if len(set(joints.values())) > 1:
        raise ShapeError("anchors", given=joints, expected="poses of equally many joints")
    w2, w3 = weights
    corner, size = boxes[..., None, :2], (boxes[..., 2:] - boxes[..., :2]).clamp_min(SMALLEST).unsqueeze(-2)
    d2 = w2 * ((pose2d - corner) / size - anchors[..., :2])
    d3 = w3 * (pose3d - anchors[..., 2:])
    return torch.cat([d2.flatten(-2), d3.flatten(-2)], -1)


def decode_poses(
    regressions: Tensor, anchors: Tensor, boxes: Tensor, weights: tuple[float, float] = (5.0, 5.0)
) -> Poses:
    """Every anchor's pose in every box: pose2d = corner + (anchor2d + d2 / w2) size, pose3d = anchor3d + d3 / w3.

    Args:
        regressions: [..., K, 5J], or [..., K * 5J] as a linear layer gives them.
        anchors: [K, J, 5].
        boxes: [..., 4].
        weights: w2 and w3.

    Returns:
        Poses [..., K, J, 2] and [..., K, J, 3].

    Example:
        >>> anchor = torch.tensor([[[0.5, 0.25, 0.0, 0.0, 1.0]]])
        >>> made = decode_poses(torch.zeros(1, 5), anchor, torch.tensor([[10.0, 10, 30, 50]]))
        >>> made.pose2d.flatten().tolist(), made.pose3d.flatten().tolist()
        ([20.0, 20.0], [0.0, 0.0, 1.0])
    """
    _is_pose("anchors", anchors, 5, "K")
    k, j = anchors.shape[:2]
    if regressions.shape == (*boxes.shape[:-1], k * 5 * j):
        regressions = regressions.unflatten(-1, (k, 5 * j))
    if regressions.shape != (*boxes.shape[:-1], k, 5 * j):
        expected = f"[..., {k}, {5 * j}] or [..., {k * 5 * j}] for {k} anchors of {j} joints, one row a box"
        raise ShapeError("regressions", given=list(regressions.shape), expected=expected)
    w2, w3 = weights
    d2 = regressions[..., : 2 * j].unflatten(-1, (j, 2)) / w2
    d3 = regressions[..., 2 * j :].unflatten(-1, (j, 3)) / w3
    corner, size = boxes[..., None, None, :2], (boxes[..., 2:] - boxes[..., :2])[..., None, None, :]
    return Poses(corner + (anchors[..., :2] + d2) * size, anchors[..., 2:] + d3)


def suppress_poses(
    scores: Tensor, pose2d: Tensor, *, min_score: float = 0.3, iou_threshold: float = 0.1, margin: float = 0.1
) -> Detected:
    """Poses that are left when each region keeps its best anchor and boxes of poses may overlap only so much.

    Args:
        scores: [N, 1 + K] of N regions, the background first; a background's own score decides nothing.
        pose2d: [N, K, J, 2] in pixels.
        min_score: a best anchor below this goes.
        iou_threshold: a pose whose box overlaps that of a better one by more than this goes.
        margin: of the boxes, see `pose_boxes`.

    Example:
        >>> pose = torch.tensor([[0.0, 0], [4, 4]]).expand(3, 1, 2, 2) + torch.tensor([0.0, 1, 90]).view(3, 1, 1, 1)
        >>> suppress_poses(torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.4, 0.6]]), pose).region.tolist()
        [1, 2]
    """
    from torchvision.ops import nms

    _is_pose("pose2d", pose2d, 2, "N, K")
    if scores.ndim != 2 or pose2d.shape[:2] != (scores.shape[0], scores.shape[1] - 1):
        given = {"scores": list(scores.shape), "pose2d": list(pose2d.shape)}
        raise ShapeError("scores", given=given, expected="scores [N, 1 + K] and poses [N, K, J, 2]")
    score, anchor = scores[:, 1:].max(-1)
    region = (score >= min_score).nonzero().squeeze(-1)
    best = pose2d[region, anchor[region]]
    kept = region[nms(pose_boxes(best, margin), score[region], iou_threshold)] if len(region) else region
    return Detected(kept, anchor[kept], score[kept])


def mutual_nearest(distances: Tensor, limit: Tensor | None = None) -> Tensor:
    """For each of A, that one of B to which it is the nearest and which is the nearest to it: int64 [..., A], or -1.

    Args:
        distances: [..., A, B].
        limit: [..., B], pairs farther apart than this are none.

    Example:
        >>> mutual_nearest(torch.tensor([[1.0, 5.0], [2.0, 9.0]])).tolist()
        [0, -1]
    """
    if 0 in distances.shape[-2:]:
        return torch.full(distances.shape[:-1], -1, dtype=torch.long, device=distances.device)
    b = distances.argmin(-1)
    back = distances.argmin(-2).gather(-1, b)
    paired = back == torch.arange(distances.shape[-2], device=distances.device)
    if limit is not None:
        near = distances.gather(-1, b.unsqueeze(-1)).squeeze(-1) <= limit.gather(-1, b)
        paired = paired & near
    return torch.where(paired, b, torch.full_like(b, -1))


def hands_of_bodies(
    body: Tensor,
    hand: Tensor,
    *,
    wrists: tuple[int, int] = (7, 6),
    hand_wrist: int = 0,
    reach: float = 1.0,
    margin: float = 0.1,
) -> Tensor:
    """The hand at each wrist of each body: the mutually nearest, within ``reach`` times the hand's size.

    Args:
        body: [..., B, J, 2] in pixels.
        hand: [..., H, L, 2] in pixels.
        wrists: joints of the body, left and right; each side is matched by itself.
        hand_wrist: joint of the hand.
        reach: in units of the longer side of the hand's box.
        margin: of that box.

    Returns:
        int64 [..., B, 2], number of the left and of the right hand, -1 for none.
    """
    _is_pose("body", body, 2, "..., B")
    _is_pose("hand", hand, 2, "..., H")
    box = pose_boxes(hand, margin)
    limit = reach * (box[..., 2:] - box[..., :2]).amax(-1)
    root = hand[..., hand_wrist, :]
    gaps = [(body[..., w, None, :] - root.unsqueeze(-3)).norm(dim=-1) for w in wrists]
    return torch.stack([mutual_nearest(gap, limit) for gap in gaps], -1)


def faces_of_bodies(body: Tensor, face: Tensor, *, head: int = 12, margin: float = 0.1) -> Tensor:
    """The face of each body: the only one whose box holds its head, if that box holds no other head: int64 [..., B], or -1.

    Args:
        body: [..., B, J, 2] in pixels.
        face: [..., F, L, 2] in pixels.
        head: joint of the body.
        margin: of the faces' boxes.
    """
    _is_pose("body", body, 2, "..., B")
    _is_pose("face", face, 2, "..., F")
    if 0 in (body.shape[-3], face.shape[-3]):
        return torch.full(body.shape[:-2], -1, dtype=torch.long, device=body.device)
    box, point = pose_boxes(face, margin).unsqueeze(-3), body[..., head, None, :]
    inside = ((point >= box[..., :2]) & (point <= box[..., 2:])).all(-1)  # [..., B, F]
    alone = inside & (inside.sum(-1, keepdim=True) == 1) & (inside.sum(-2, keepdim=True) == 1)
    found = alone.int().argmax(-1)
    return torch.where(alone.any(-1), found, torch.full_like(found, -1))


def with_wrists(
    body: Tensor, hand: Tensor, hands: Tensor, *, wrists: tuple[int, int] = (7, 6), hand_wrist: int = 0
) -> Tensor:
    """Bodies [..., B, J, 2] whose wrists are those of their hands; the given ones stay as they are.

    Args:
        body: [..., B, J, 2].
        hand: [..., H, L, 2].
        hands: what `hands_of_bodies` says [..., B, 2].
        wrists, hand_wrist: as there.
    """
    if hand.shape[-3] == 0:
        return body
    root, at = hand[..., hand_wrist, :].to(body.dtype), torch.tensor(wrists, device=body.device)
    index = hands.clamp_min(0).flatten(-2).unsqueeze(-1)
    moved = root.gather(-2, index.expand(*index.shape[:-1], 2)).unflatten(-2, hands.shape[-2:])
    own = body.index_select(-2, at)
    return body.index_copy(-2, at, torch.where((hands >= 0).unsqueeze(-1), moved, own))


def nearest_anchors(
    boxes: Tensor, pose2d: Tensor, pose3d: Tensor, where2d: Tensor, where3d: Tensor, anchors: Tensor
) -> Tensor:
    """The anchor of each pose, by the mean distance of labelled joints: int64 [..., G]; -1 where no joint is labelled.

    In space where any joint has a label there, else in the plane with the pose in its unit box; the lowest of equals.
    Reconstructed.

    Args:
        boxes: [..., G, 4].
        pose2d, pose3d: [..., G, J, 2] in pixels and [..., G, J, 3]; unlabelled entries may hold anything.
        where2d, where3d: [..., G, J], labelled joints.
        anchors: [K, J, 5].
    """
    for name, pose, last in (("anchors", anchors, 5), ("pose2d", pose2d, 2), ("pose3d", pose3d, 3)):
        _is_pose(name, pose, last)
    joints = {"anchors": anchors.shape[-2], "pose2d": pose2d.shape[-2], "pose3d": pose3d.shape[-2]}
    if len(set(joints.values())) > 1:
        raise ShapeError("anchors", given=joints, expected="poses of equally many joints")
    size = (boxes[..., 2:] - boxes[..., :2]).clamp_min(SMALLEST).unsqueeze(-2)
    flat = (pose2d - boxes[..., None, :2]) / size

    def gap(pose: Tensor, of: Tensor, where: Tensor) -> Tensor:
        """Mean distances [..., G, K]."""
        far = (pose.unsqueeze(-3) - of).norm(dim=-1)  # [..., G, K, J]
        return keep(far, where.unsqueeze(-2).expand_as(far)).sum(-1) / where.sum(-1, keepdim=True).clamp_min(1)

    where2d, where3d = where2d.bool(), where3d.bool()
    spatial = where3d.any(-1, keepdim=True)
    found = torch.where(spatial, gap(pose3d, anchors[..., 2:], where3d), gap(flat, anchors[..., :2], where2d)).argmin(
        -1
    )
    known = spatial.squeeze(-1) | where2d.any(-1)
    return torch.where(known, found, torch.full_like(found, -1))


def label_regions(
    proposals: Tensor,
    boxes: Tensor,
    nearest: Tensor,
    *,
    iou_threshold: float = 0.5,
    labelled: bool | Tensor = True,
    where: Tensor | None = None,
) -> PoseLabels:
    """Labels of regions: the best overlapping instance's anchor, or the background, or -1 where nothing is known.

    An image that has no labels of the part says nothing of it: all its regions are -1, and none is background. So are
    regions of an instance whose anchor is -1. Reconstructed.

    Args:
        proposals: [..., R, 4].
        boxes: instances of the part [..., G, 4].
        nearest: anchor of each [..., G], from 0, see `nearest_anchors`.
        iou_threshold: an instance is met from this overlap on.
        labelled: whether the image is labelled for this part, by annotators or by an expert [...].
        where: [..., G], instances that are there.

    Example:
        >>> here = torch.tensor([[0.0, 0, 4, 4], [9, 9, 12, 12]])
        >>> label_regions(here, here[:1], torch.tensor([2])).label.tolist()
        [3, 0]
        >>> label_regions(here, here[:0], torch.tensor([], dtype=torch.long), labelled=False).label.tolist()
        [-1, -1]
    """
    in_range("iou_threshold", iou_threshold, 0.0, 1.0, open_low=True)
    overlaps = _overlaps(proposals, boxes)
    none = torch.full(overlaps.shape[:-1], -1, dtype=torch.long, device=overlaps.device)
    label, target = torch.zeros_like(none), none
    if boxes.shape[-2]:
        if where is not None:
            overlaps = overlaps.masked_fill(~where.bool().unsqueeze(-2), -1.0)
        value, best = overlaps.max(-1)
        met = value >= iou_threshold
        anchor = nearest.expand(boxes.shape[:-1]).gather(-1, best)
        label = torch.where(met, torch.where(anchor >= 0, anchor + 1, none), label)
        target = torch.where(met, best, none)
    there = torch.as_tensor(labelled, device=none.device).bool().unsqueeze(-1)
    return PoseLabels(torch.where(there, label, none), torch.where(there, target, none))


def merge_pseudo_labels(
    real_boxes: Tensor,
    real_pose: Tensor,
    real_mask: Tensor,
    boxes: Tensor,
    scores: Tensor,
    pose: Tensor,
    *,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    fill_missing: bool = True,
    real_where: Tensor | None = None,
    where: Tensor | None = None,
) -> Merged:
    """Annotated instances of a part, and those that its expert found beside them; reconstructed.

    A detection that scores at least ``score_threshold`` becomes an instance if it overlaps every annotated one by less
    than ``iou_threshold``. Annotated values win; those that are missing come from the best overlapping such detection.

    Args:
        real_boxes: annotated instances [..., A, 4].
        real_pose: [..., A, J, 5]; unlabelled entries may hold anything.
        real_mask: bool [..., A, J, 5], values that are annotated.
        boxes, scores, pose: the expert's detections [..., D, 4], [..., D], [..., D, J, 5].
        fill_missing: off leaves missing values unknown.
        real_where, where: [..., A] and [..., D], those that are there.

    Returns:
        Instances [..., A + D, ...]; take those of ``where``.

    Example:
        >>> box, pose = torch.tensor([[0.0, 0, 4, 4], [8, 8, 9, 9]]), torch.ones(2, 1, 5)
        >>> nothing = torch.zeros(1, 1, 5).bool()
        >>> made = merge_pseudo_labels(box[:1], 7 * pose[:1], nothing, box, torch.tensor([0.9, 0.8]), pose)
        >>> made.where.tolist(), made.source[:, 0, 0].tolist()
        ([True, False, True], [2, 0, 2])
    """
    in_range("score_threshold", score_threshold, 0.0, 1.0)
    in_range("iou_threshold", iou_threshold, 0.0, 1.0, open_low=True)
    if real_pose.shape[-2:] != pose.shape[-2:] or pose.shape[-1] != 5:
        given = {"real_pose": list(real_pose.shape), "pose": list(pose.shape)}
        raise ShapeError("pose", given=given, expected="poses [..., J, 5] of equally many joints")
    if real_mask.shape != real_pose.shape:
        raise ShapeError("real_mask", given=list(real_mask.shape), expected=str(list(real_pose.shape)))
    annotated, found = real_boxes.shape[-2], boxes.shape[-2]
    if real_where is None:
        real_where = torch.ones(real_boxes.shape[:-1], dtype=torch.bool, device=boxes.device)
    sure = scores >= score_threshold
    sure = sure if where is None else sure & where.bool()
    overlaps = _overlaps(real_boxes, boxes).masked_fill(~real_where.bool().unsqueeze(-1), 0.0)  # [..., A, D]
    meets = overlaps >= iou_threshold
    new = sure & ~meets.any(-2)
    mask = real_mask.bool()
    filled, source = keep(real_pose, mask), mask.long()
    if fill_missing and annotated and found:
        value, best = overlaps.masked_fill(~(meets & sure.unsqueeze(-2)), -1.0).max(-1)
        index = best[..., None, None].expand_as(real_pose)
        fill = (value >= 0)[..., None, None] & ~mask
        filled = torch.where(fill, pose.gather(-3, index).to(filled.dtype), filled)
        source = source + 2 * fill
    return Merged(
        torch.cat([real_boxes, boxes.to(real_boxes.dtype)], -2),
        torch.cat([filled, keep(pose, new[..., None, None].expand_as(pose)).to(filled.dtype)], -3),
        torch.cat([source, 2 * new[..., None, None].expand_as(pose).long()], -3),
        torch.arange(annotated + found, device=boxes.device) >= annotated,
        torch.cat([real_where.bool(), new], -1),
    )


def _fits(logits: Tensor, regressions: Tensor) -> None:
    if regressions.ndim < 2 or logits.shape != (*regressions.shape[:-2], regressions.shape[-2] + 1):
        given = {"logits": list(logits.shape), "regressions": list(regressions.shape)}
        raise ShapeError("regressions", given=given, expected="logits [..., 1 + K] and regressions [..., K, 5J]")


def _of_anchor(regressions: Tensor, label: Tensor) -> Tensor:
    """The vectors [..., 5J] of the labelled anchors; of any anchor where there is none."""
    index = (label.long() - 1).clamp_min(0)[..., None, None]
    return regressions.gather(-2, index.expand(*index.shape[:-1], regressions.shape[-1])).squeeze(-2)


def pose_loss(
    logits: Tensor, regressions: Tensor, label: Tensor, targets: Tensor, where: Tensor, *, beta: float = 1.0
) -> PartLoss:
    """What labels say: cross-entropy, and for positives the smooth L1 distance to the target; reconstructed.

    ``labelled_mean`` of both by ``label >= 0`` is the paper's L_p: regression is summed over positives, and divided by all
    regions that are not ignored.

    Args:
        logits: [..., R, 1 + K], the background first.
        regressions: [..., R, K, 5J].
        label: int64 [..., R]: anchor + 1, 0 for the background, -1 to ignore.
        targets: [..., R, 5J] for the labelled anchor, see `encode_poses`; unlabelled entries may hold anything.
        where: bool [..., R, 5J], values that are labelled; a positive without any has no regression.
        beta: where the smooth L1 distance turns from squares to lengths.

    Example:
        >>> z, r, t = torch.zeros(3, 2), torch.zeros(3, 1, 5), torch.ones(3, 5)
        >>> loss = pose_loss(z, r, torch.tensor([1, 0, -1]), t, t > 0)
        >>> [[round(v, 4) for v in part.tolist()] for part in loss]
        [[0.6931, 0.6931, 0.0], [0.5, 0.0, 0.0]]
    """
    _fits(logits, regressions)
    in_range("beta", beta, 0.0, float("inf"), open_high=True)
    if targets.shape != (*label.shape, regressions.shape[-1]) or where.shape != targets.shape:
        given = {"targets": list(targets.shape), "where": list(where.shape)}
        raise ShapeError("targets", given=given, expected=str([*label.shape, regressions.shape[-1]]))
    dtype = statistics_dtype(logits, regressions)
    own = where.bool() & (label > 0).unsqueeze(-1)
    near = keep(_of_anchor(regressions, label).to(dtype), own)
    gap = smooth_l1_loss(near, keep(targets.to(dtype), own), reduction="none", beta=beta)
    return PartLoss(cross_entropy(logits.to(dtype), label, where=label >= 0), gap.sum(-1) / own.sum(-1).clamp_min(1))


def pose_distillation(
    student_logits: Tensor,
    student_regressions: Tensor,
    expert_logits: Tensor,
    expert_regressions: Tensor,
    *,
    soft_target: SoftTarget = "kl",
    reg_weighting: RegWeighting = "expert_score",
    label: Tensor | None = None,
    beta: float = 1.0,
    where: Tensor | None = None,
    part: str = "",
) -> PartLoss:
    """What a part's expert says of the student's own boxes: its scores q, and its vectors r.

    classification = KL(q || softmax(z)), regression = sum_k q_k sum smoothL1(s_k - r_k) / 5J without the background's
    q_0, so that boxes which the expert takes for background regress little. This form is a reconstruction: the paper
    says that the student mimics the experts' outputs, and no training code was published.

    Args:
        student_logits: [..., R, 1 + K].
        student_regressions: [..., R, K, 5J].
        expert_logits, expert_regressions: the expert's on the same boxes; without gradient.
        soft_target: ``ce`` adds the expert's entropy to ``kl``; ``logits_l2`` is the mean of (z - z_expert)^2 over 1 + K.
        reg_weighting: ``labelled_anchor`` puts 1 on the anchor of ``label`` and 0 on others; negatives regress nothing.
        label: int64 [..., R], anchor + 1; needed by ``labelled_anchor`` alone.
        beta: of the smooth L1 distance.
        where: bool [..., R], relevant regions; `labelled_mean` by it is the paper's L_dist.
        part: name of the part, for messages.

    Example:
        >>> z, r = torch.zeros(1, 3), torch.zeros(1, 2, 5)
        >>> loss = pose_distillation(z, r + 1, z, r)
        >>> loss.classification.item(), round(loss.regression.item(), 4)
        (0.0, 0.3333)
    """
    _fits(student_logits, student_regressions)
    choose("soft_target", soft_target, SoftTarget)
    choose("reg_weighting", reg_weighting, RegWeighting)
    in_range("beta", beta, 0.0, float("inf"), open_high=True)
    if expert_logits.shape != student_logits.shape or expert_regressions.shape != student_regressions.shape:
        (k, j), (own_k, own_j) = (
            (x.shape[-2], x.shape[-1] / 5) if x.ndim > 1 else (0, 0) for x in (expert_regressions, student_regressions)
        )
        raise TeacherMismatch(
            "expert_regressions",
            f"the expert{' of ' + part if part else ''} has {k} anchors of {j:g} joints, the student {own_k} of {own_j:g}",
            given={"logits": list(expert_logits.shape), "regressions": list(expert_regressions.shape)},
            expected=f"logits {list(student_logits.shape)} and regressions {list(student_regressions.shape)}",
            remedy="give both the same anchor poses and joints for each part",
        )
    if reg_weighting == "labelled_anchor" and label is None:
        raise ConfigError("label", given=None, expected="labels [..., R], which labelled_anchor picks anchors by")
    dtype = statistics_dtype(student_logits, student_regressions)
    z, s = student_logits.to(dtype), student_regressions.to(dtype)
    q, r = expert_logits.detach().to(dtype), expert_regressions.detach().to(dtype)
    if where is not None:  # what is not relevant may hold anything
        where = where.bool()
        z, q = (keep(x, where.unsqueeze(-1)) for x in (z, q))
        s, r = (keep(x, where[..., None, None]) for x in (s, r))
    if soft_target == "kl":
        classification = kl(z, q, where=where)
    elif soft_target == "ce":
        classification = soft_cross_entropy(z, q, where=where)
    else:
        classification = (z - q).square().mean(-1)
    if reg_weighting == "expert_score":
        gap = smooth_l1_loss(s, r, reduction="none", beta=beta).mean(-1)  # [..., R, K]
        regression = (q.softmax(-1)[..., 1:] * gap).sum(-1)
    else:
        assert label is not None
        near, far = _of_anchor(s, label), _of_anchor(r, label)
        regression = keep(smooth_l1_loss(near, far, reduction="none", beta=beta).mean(-1), label > 0)
    return PartLoss(keep(classification, where), keep(regression, where))


def labelled_mean(loss: PartLoss, where: Tensor) -> PartLoss:
    """Means over the regions of ``where`` [..., R], all together; exactly 0, with gradient 0, where there is none.

    Example:
        >>> loss = PartLoss(torch.tensor([1.0, 3.0, 0.0]), torch.tensor([2.0, 0.0, 0.0]))
        >>> [x.item() for x in labelled_mean(loss, torch.tensor([True, True, False]))]
        [2.0, 1.0]
    """
    count = where.bool().sum().clamp_min(1)
    return PartLoss(*(keep(x, where.bool()).sum() / count for x in loss))


def parts_total(
    labelled: Mapping[str, Tensor],
    distilled: Mapping[str, Tensor],
    lambdas: Mapping[str, float] | float = 1.0,
) -> Tensor:
    """sum over parts of L_p + lambda_p L_dist,p; reconstructed.

    Args:
        labelled, distilled: of each part by name; a part may be in one alone.
        lambdas: one number, or one for each part that is distilled.

    Raises:
        ConfigError: a part that is distilled has no number, or a number no part.

    Example:
        >>> one = torch.tensor(1.0)
        >>> parts_total({"body": one, "hand": one}, {"hand": one}, {"hand": 0.5}).item()
        2.5
    """
    names = [*labelled, *(name for name in distilled if name not in labelled)]
    if not names:
        raise ConfigError("labelled", given={}, expected="at least one part")
    if isinstance(lambdas, Mapping):
        for name in [n for n in lambdas if n not in names]:
            raise ConfigError.unknown("lambdas", name, names, "part")
        missing = [n for n in distilled if n not in lambdas]
        if missing:
            raise ConfigError("lambdas", given=sorted(lambdas), expected=f"a number for each part, also {missing}")
        factors = {n: float(lambdas[n]) for n in distilled}
    else:
        factors = dict.fromkeys(distilled, float(lambdas))
    for factor in factors.values():
        in_range("lambdas", factor, 0.0, float("inf"), open_high=True)
    return torch.stack([*labelled.values(), *(factors[n] * x for n, x in distilled.items())]).sum()


__all__ = [
    "Detected",
    "Merged",
    "PartLoss",
    "PoseLabels",
    "Poses",
    "RegWeighting",
    "SoftTarget",
    "decode_poses",
    "encode_poses",
    "faces_of_bodies",
    "hands_of_bodies",
    "label_regions",
    "labelled_mean",
    "merge_pseudo_labels",
    "mutual_nearest",
    "nearest_anchors",
    "parts_total",
    "pose_boxes",
    "pose_distillation",
    "pose_loss",
    "suppress_poses",
    "with_wrists",
]
