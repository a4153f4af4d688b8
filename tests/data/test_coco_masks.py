"""COCO's instances and panoptic images as a class at every pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.coco_masks import CocoMasks
from limbeck.errors import DataError

pytest.importorskip("pycocotools")

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 20, "name": "grass"}]


def box(x: int, y: int, w: int, h: int) -> list[list[int]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def instances(root: Path) -> Path:
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        Image.new("RGB", (20, 16)).save(root / split / f"{split}.jpg")
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        common = {"image_id": 1, "iscrowd": 0}
        annotations = [
            {"id": 1, "category_id": 9, "area": 4, "segmentation": box(6, 6, 2, 2), **common},  # a small dog on a cat
            {"id": 2, "category_id": 7, "area": 64, "segmentation": box(4, 4, 8, 8), **common},
            {"id": 3, "category_id": 7, "area": 30, "iscrowd": 1, "image_id": 1,
             "segmentation": {"size": [16, 20], "counts": [15 * 20, 20]}},
        ]  # fmt: skip
        tree = {
            "images": [{"id": 1, "file_name": f"{split}.jpg", "height": 16, "width": 20}],
            "annotations": annotations,
            "categories": CATEGORIES,
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
    return root


def test_instances_are_painted_over_one_another(tmp_path: Path) -> None:
    splits = CocoMasks(str(instances(tmp_path))).maps()
    assert splits.labels == ["background", "cat", "dog", "grass"] and len(splits.train) == 1
    batch = splits.train.fetch(torch.tensor([0]))
    y, where = batch["y"][0], batch["where"][0]
    assert (int(y[7, 7]), int(y[5, 5]), int(y[0, 0])) == (2, 1, 0)
    assert int((~where).sum()) == 20 and bool(where[:, :15].all())  # the crowd: a column-wise run at the right
    only = CocoMasks(str(tmp_path), only=["dog"], background=None).maps()
    assert only.labels == ["dog"] and int(only.train.fetch(torch.tensor([0]))["where"].sum()) == 4


def test_panoptic_pictures(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "a.jpg")
    ids = np.zeros((4, 6), dtype=np.int64)
    ids[:2], ids[2:, :3] = 70_000, 300
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    place = tmp_path / "annotations" / "panoptic_train2017"
    place.mkdir(parents=True)
    Image.fromarray(rgb).save(place / "a.png")
    segments = [{"id": 70_000, "category_id": 20, "iscrowd": 0}, {"id": 300, "category_id": 7, "iscrowd": 0}]
    tree = {
        "images": [{"id": 5, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": segments}],
        "categories": CATEGORIES,
    }
    (tmp_path / "annotations" / "panoptic_train2017.json").write_text(json.dumps(tree))
    batch = CocoMasks(str(tmp_path), only=["grass"]).maps().train.fetch(torch.tensor([0]))
    assert torch.equal(batch["y"][0, :2], torch.ones(2, 6, dtype=torch.long)) and int(batch["y"].sum()) == 12
    assert not batch["where"][0, 2:, 3:].any() and bool(batch["where"][0, 2:, :3].all())


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations/instances\*\.json"):
        CocoMasks(str(tmp_path)).maps()
    root = instances(tmp_path / "a")
    with pytest.raises(DataError, match=r"no category bird.*cat"):
        CocoMasks(str(root), only=["bird"]).maps()
    for picture in root.glob("*/*.jpg"):
        picture.unlink()
    with pytest.raises(DataError, match="none of the annotated images"):
        CocoMasks(str(root)).maps()
    (root / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(DataError, match="no file of COCO's instances"):
        CocoMasks(str(root)).maps()
