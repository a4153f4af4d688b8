"""Average precision of boxes and masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import require


@dataclass
class Truth:
    """What is on one image, or what was found there: boxes [m, 4], labels [m], scores [m], masks bool [m, H, W]."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    masks: Tensor | None = None


def average_precision(found: Sequence[Truth], truths: Sequence[Truth], classes: int, kind: str = "bbox") -> Tensor:
    """AP [10, C] of each class at overlaps of 0.5, 0.55, ..., 0.95; NaN for classes that do not occur.

    Args:
        found: detections by image, with scores.
        truths: what is there.
        classes: how many.
        kind: ``bbox``, or ``segm`` for masks.

    Raises:
        MissingExtra: pycocotools is not installed.
    """
    coco = require("pycocotools.coco", "vision", "average precision")
    scoring = require("pycocotools.cocoeval", "vision", "average precision")
    real: dict[str, Any] = {
        "info": {},
        "images": [{"id": i, **_size(one)} for i, one in enumerate(truths)],
        "categories": [{"id": c} for c in range(classes)],
        "annotations": [],
    }
    for i, one in enumerate(truths):
        for entry in _entries(one, i, kind):
            real["annotations"].append(entry | {"id": len(real["annotations"]) + 1, "iscrowd": 0})
    guesses = [entry for i, one in enumerate(found) for entry in _entries(one, i, kind)]
    if not guesses or not real["annotations"]:
        table = torch.full((10, classes), float("nan"))
        for entry in real["annotations"]:
            table[:, entry["category_id"]] = 0.0
        return table
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = real
        truth.createIndex()
        scorer = scoring.COCOeval(truth, truth.loadRes(guesses), kind)
        scorer.params.areaRng, scorer.params.areaRngLbl = [[0, 1e10]], ["all"]
        scorer.evaluate()
        scorer.accumulate()
    precision = scorer.eval["precision"][:, :, :, 0, -1]  # [T, R, C]
    table = precision.mean(1)
    return torch.from_numpy(np.where((precision > -1).any(1), table, np.nan)).float()


def _size(one: Truth) -> dict[str, int]:
    if one.masks is None:
        return {}
    high, wide = one.masks.shape[-2:]
    return {"height": int(high), "width": int(wide)}


def _entries(one: Truth, picture: int, kind: str) -> list[dict[str, Any]]:
    boxes = torch.cat([one.boxes[:, :2], one.boxes[:, 2:] - one.boxes[:, :2]], 1).double().tolist()
    made = []
    for n, (box, label) in enumerate(zip(boxes, one.labels.tolist(), strict=True)):
        entry: dict[str, Any] = {"image_id": picture, "category_id": label, "bbox": box, "area": box[2] * box[3]}
        if one.scores is not None:
            entry["score"] = float(one.scores[n])
        if kind == "segm" and one.masks is not None:
            rle = require("pycocotools.mask", "vision", "average precision of masks")
            entry["segmentation"] = rle.encode(np.asfortranarray(one.masks[n].numpy().astype(np.uint8)))
        made.append(entry)
    return made


def pasted(masks: Tensor, boxes: Tensor, where: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks within boxes, [N, K, m, m] in [0, 1], as masks of whole images, bool [N, K, H, W]."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    n, k = where.shape
    whole = torch.zeros(n, k, *size, dtype=torch.bool)
    for i in range(n):
        here = where[i]
        if bool(here.any()):
            whole[i, here] = paste_masks_in_image(masks[i, here][:, None], boxes[i, here], size)[:, 0] > 0.5
    return whole


__all__ = ["Truth", "average_precision", "pasted"]
