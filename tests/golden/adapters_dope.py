"""Adapters of DOPE's vectors: decoding, suppression, association (recorded); targets, losses, merging (by definition)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.functional import keypoints as kp


def _tensor(a: Any) -> Tensor:
    return torch.from_numpy(np.array(a))


def _arrays(**named: Tensor) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in named.items()}


def decode(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    boxes = _tensor(arrays["boxes"])
    hyper.same("boxes_per_image", [*hyper["boxes_per_image"][:-1], len(boxes) - sum(hyper["boxes_per_image"][:-1])])
    weights = (float(hyper["reg_weight2d"]), float(hyper["reg_weight3d"]))
    results: dict[str, np.ndarray] = {}
    for part in [name.removesuffix("_anchor") for name in arrays if name.endswith("_anchor")]:
        anchors = _tensor(arrays[f"{part}_anchor"])
        hyper["K"].same(part, anchors.shape[0])
        hyper["J"].same(part, anchors.shape[1])
        made = kp.decode_poses(_tensor(arrays[f"{part}_reg"]), anchors, boxes, weights)
        scores = _tensor(arrays[f"{part}_logits"]).softmax(-1)
        results |= _arrays(**{f"{part}_scores": scores, f"{part}_pose2d": made.pose2d, f"{part}_pose3d": made.pose3d})
    return results


def suppress(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    pose2d, pose3d = _tensor(arrays["pose2d"]), _tensor(arrays["pose3d"])
    left = kp.suppress_poses(
        _tensor(arrays["scores"]),
        pose2d,
        min_score=float(hyper["min_score"]),
        iou_threshold=float(hyper["iou_threshold"]),
        margin=float(hyper["margin"]),
    )
    n, k = left.region, left.anchor
    return _arrays(indices=n, bestcls=k, out_score=left.score, out_pose2d=pose2d[n, k], out_pose3d=pose3d[n, k])


def associate(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    body, hand, face = (_tensor(arrays[n]) for n in ("body", "hand", "face"))
    wrists = (int(hyper["body_joint_left_wrist"]), int(hyper["body_joint_right_wrist"]))
    hands = kp.hands_of_bodies(
        body, hand, wrists=wrists, hand_wrist=int(hyper["hand_wrist"]), reach=float(hyper["margin"])
    )
    faces = kp.faces_of_bodies(body, face, head=int(hyper["body_joint_head"]))
    return _arrays(hands_of_body_left_right=hands, head_of_body=faces)


def targets(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    boxes, anchor, pose2d, pose3d = (_tensor(arrays[f"in_{n}"]) for n in ("boxes", "anchor", "pose2d", "pose3d"))
    hyper.same("J", anchor.shape[-2])
    weights = (float(hyper["reg_weight2d"]), float(hyper["reg_weight3d"]))
    return _arrays(out_targets=kp.encode_poses(boxes, anchor, pose2d, pose3d, weights))


def labels(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    names = ("gt_boxes", "gt_pose2d", "gt_pose3d", "gt_mask2d", "gt_mask3d", "anchors")
    boxes, pose2d, pose3d, where2d, where3d, anchors = (_tensor(arrays[f"in_{n}"]) for n in names)
    hyper.same("J", anchors.shape[1])
    nearest = kp.nearest_anchors(boxes, pose2d, pose3d, where2d, where3d, anchors)
    made = kp.label_regions(
        _tensor(arrays["in_proposals"]),
        boxes,
        nearest,
        iou_threshold=float(hyper["iou_threshold"]),
        labelled=bool(hyper["part_labelled"]),
    )
    return _arrays(out_label=made.label, out_gt_index=made.target)


def _leaf(a: Any) -> Tensor:
    return _tensor(a).requires_grad_()


def _labelled(arrays: Any, prefix: str, z: Tensor, r: Tensor, beta: float) -> kp.PartLoss:
    label = _tensor(arrays[f"{prefix}label"])
    given, mask = _tensor(arrays[f"{prefix}targets"]), _tensor(arrays[f"{prefix}target_mask"])
    return kp.labelled_mean(kp.pose_loss(z, r, label, given, mask, beta=beta), label >= 0)


def _distilled(arrays: Any, hyper: Any, prefix: str, z: Tensor, r: Tensor, beta: float) -> kp.PartLoss:
    relevant = _tensor(arrays[f"{prefix}relevant"])
    loss = kp.pose_distillation(
        z,
        r,
        _tensor(arrays[f"{prefix}expert_logits"]),
        _tensor(arrays[f"{prefix}expert_reg"]),
        soft_target=hyper["cls"],
        reg_weighting=hyper["reg_weighting"],
        label=_tensor(arrays[f"{prefix}label"]) if f"{prefix}label" in arrays else None,
        beta=beta,
        where=relevant,
    )
    return kp.labelled_mean(loss, relevant)


def part_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z, r = _leaf(arrays["in_logits"]), _leaf(arrays["in_regressions"])
    loss = _labelled(arrays, "in_", z, r, float(hyper["smooth_l1_beta"]))
    slopes = torch.autograd.grad(loss.classification + loss.regression, (z, r))
    return _arrays(
        out_loss_cls=loss.classification,
        out_loss_reg=loss.regression,
        out_grad_logits=slopes[0],
        out_grad_regressions=slopes[1],
    )


def distill_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z, r = _leaf(arrays["in_student_logits"]), _leaf(arrays["in_student_reg"])
    loss = _distilled(arrays, hyper, "in_", z, r, float(hyper["smooth_l1_beta"]))
    slopes = torch.autograd.grad(loss.classification + loss.regression, (z, r))
    return _arrays(
        out_loss_cls=loss.classification,
        out_loss_reg=loss.regression,
        out_grad_student_logits=slopes[0],
        out_grad_student_reg=slopes[1],
    )


def total_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    end = "_student_logits"
    parts = [name.removeprefix("in_").removesuffix(end) for name in arrays if name.endswith(end)]
    beta = float(hyper["smooth_l1_beta"])
    leaves: list[Tensor] = []
    hard: dict[str, Tensor] = {}
    soft: dict[str, Tensor] = {}
    for part in parts:
        z, r = _leaf(arrays[f"in_{part}{end}"]), _leaf(arrays[f"in_{part}_student_reg"])
        leaves += [z, r]
        hard[part] = sum(_labelled(arrays, f"in_{part}_", z, r, beta), torch.zeros((), dtype=z.dtype))
        soft[part] = sum(_distilled(arrays, hyper, f"in_{part}_", z, r, beta), torch.zeros((), dtype=z.dtype))
    lambdas = hyper["lambda"]
    if not isinstance(lambdas, (int, float)):
        for name in [name for name in lambdas if name not in parts]:
            lambdas.doubt(f"{name!r} has the factor {lambdas[name]!r}, but no arrays")
        lambdas = {part: float(lambdas[part]) for part in parts}
    loss = kp.parts_total(hard, soft, lambdas)
    slopes = torch.autograd.grad(loss, leaves)
    results = {"out_loss": loss}
    for k, part in enumerate(parts):
        results |= {f"out_part_loss_{part}": hard[part], f"out_distill_loss_{part}": soft[part]}
        results |= {f"out_grad_{part}_logits": slopes[2 * k], f"out_grad_{part}_reg": slopes[2 * k + 1]}
    return _arrays(**results)


def merge(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    names = ("real_boxes", "real_pose", "real_mask", "det_boxes", "det_scores", "det_pose")
    made = kp.merge_pseudo_labels(
        *(_tensor(arrays[f"in_{n}"]) for n in names),
        score_threshold=float(hyper["score_threshold"]),
        iou_threshold=float(hyper["iou_threshold"]),
        fill_missing=bool(hyper["fill_missing"]),
    )
    there = made.where
    return _arrays(
        out_keep=there[made.pseudo],
        out_boxes=made.boxes[there],
        out_pose=made.pose[there],
        out_value_source=made.source[there],
        out_instance_source=made.pseudo[there].long(),
    )


ADAPTERS = {
    "dope:model.py:Dope_RoIHeads.postprocess_dope": decode,
    "dope:postprocess.py:DOPE_NMS": suppress,
    "dope:postprocess.py:assign_hands+head_to_body": associate,
    "dope:dope:encode_targets": targets,
    "dope:dope:assign_labels": labels,
    "dope:dope:part_loss": part_loss,
    "dope:dope:distill_loss": distill_loss,
    "dope:dope:total_loss": total_loss,
    "dope:dope:merge_pseudo_labels": merge,
}
