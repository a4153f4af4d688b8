"""Readers of boxes: what they read, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.boxes import CocoBoxes, ObjectsOnPhotos, Voc, Yolo, run_lengths
from limbeck.data.vocabulary import drawn_vocabulary, read_synonyms, read_vocabulary
from limbeck.errors import DataError


def picture(path: Path, wide: int = 40, high: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((high, wide, 3), 90, np.uint8)).save(path)


def coco(root: Path, **box: Any) -> None:
    picture(root / "images" / "a.png")
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 4, 20, 10], "iscrowd": 0} | box
    tree = {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 20}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [annotation],
    }
    (root / "instances_train2017.json").write_text(json.dumps(tree))


def test_coco(tmp_path: Path) -> None:
    coco(tmp_path, segmentation=[[10, 4, 30, 4, 30, 14, 10, 14]])
    read = CocoBoxes(str(tmp_path)).boxes()
    assert read.labels == ["cat", "dog"] and len(read.train) == 1
    batch = read.train.fetch(torch.tensor([0]))
    assert batch["boxes"].tolist() == [[[10, 4, 30, 14]]] and batch["labels"].tolist() == [[0]]
    assert bool(batch["where"].all()) and int(batch["masks"].sum()) == pytest.approx(21 * 11, abs=25)
    square = CocoBoxes(str(tmp_path)).boxes(20).train.fetch(torch.tensor([0]))
    assert square["x"].shape == (1, 3, 20, 20) and square["boxes"].tolist() == [[[5, 2, 15, 7]]]
    assert float(square["x"][:, :, 10:].max()) == 0
    assert CocoBoxes(str(tmp_path), only=["dog"]).boxes().train.fetch(torch.tensor([0]))["where"].sum() == 0


def test_masks_of_run_lengths_are_those_of_coco(tmp_path: Path) -> None:
    coder = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.9):
        mask = rng.random((20, 40)) < density
        mask[2:9, 11:30] = True
        runs = np.diff(np.flatnonzero(np.diff(np.r_[0, mask.T.ravel(), 1 - mask.T.ravel()[-1:]])), prepend=0)
        told = {"size": [20, 40], "counts": runs.tolist()}
        squeezed = coder.encode(np.asfortranarray(mask, dtype=np.uint8))
        for given in (told, squeezed, {**squeezed, "counts": squeezed["counts"].decode()}):
            assert np.array_equal(run_lengths(given)(20, 40).numpy(), mask)
    coco(tmp_path, segmentation={"size": [20, 40], "counts": squeezed["counts"].decode()})
    batch = CocoBoxes(str(tmp_path)).boxes().train.fetch(torch.tensor([0]))
    assert np.array_equal(batch["masks"][0, 0].numpy() > 0, mask)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"segmentation": {"size": [20, 40], "counts": [5, 6]}}, "annotation 1 .* hold 11 pixels, and 40x20 are 800"),
        (
            {"segmentation": {"size": [10, 10], "counts": [60, 40]}},
            "a mask is of 10x10 pixels, and its image of 40x20",
        ),
        ({"segmentation": {"size": [20, 40], "counts": "o"}}, "end within a number"),
        ({"segmentation": {"size": [20, 40], "counts": " "}}, "does not belong there"),
        ({"bbox": [1, 2, float("nan"), 4]}, "annotation 1 of .*bbox"),
        ({"bbox": [1, 2, 3]}, "four finite numbers"),
        ({"bbox": None}, "four finite numbers"),
    ],
)
def test_annotations_that_cannot_be_used_are_named(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    coco(tmp_path, **more)
    with pytest.raises(DataError, match=said):
        CocoBoxes(str(tmp_path)).boxes()


def test_boxes_in_another_scale_are_refused_with_their_share(tmp_path: Path) -> None:
    coco(tmp_path, bbox=[100, 40, 200, 100])
    with pytest.raises(DataError, match=r"100.0 % of the boxes \(1 of 1\) lie outside"):
        CocoBoxes(str(tmp_path)).boxes()
    assert len(CocoBoxes(str(tmp_path), outside="clip").boxes().train) == 1


def test_coco_names_what_is_missing(tmp_path: Path) -> None:
    coco(tmp_path, category_id=9)
    with pytest.raises(DataError, match="categories 9"):
        CocoBoxes(str(tmp_path)).boxes()
    coco(tmp_path)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"not there.*a\.png"):
        CocoBoxes(str(tmp_path)).boxes()
    with pytest.raises(DataError, match="COCO"):
        CocoBoxes(str(tmp_path / "images")).boxes()


def test_yolo(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / "a.png")
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    read = Yolo(str(tmp_path)).boxes()
    batch = read.train.fetch(torch.tensor([0]))
    assert batch["boxes"].tolist() == [[[10, 5, 30, 15]]] and batch["labels"].tolist() == [[1]]
    assert read.labels == ["cat", "dog"]
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 x 0.5 0.5\n")
    with pytest.raises(DataError, match="line 1"):
        Yolo(str(tmp_path)).boxes()
    (tmp_path / "labels/train/a.txt").write_text("4 0.5 0.5 0.5 0.5\n")
    with pytest.raises(DataError, match="class 4"):
        Yolo(str(tmp_path)).boxes()


VOC = """<annotation><object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>11</xmin><ymin>5</ymin><xmax>30</xmax><ymax>14</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object></annotation>"""


def test_voc(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "a.png")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(VOC)
    batch = Voc(str(tmp_path)).boxes().train.fetch(torch.tensor([0]))
    assert batch["boxes"].tolist() == [[[10, 4, 30, 14]]]
    (tmp_path / "Annotations/a.xml").write_text('<!DOCTYPE a [<!ENTITY x "y">]>' + VOC)
    with pytest.raises(DataError, match="entities"):
        Voc(str(tmp_path)).boxes()
    (tmp_path / "Annotations/a.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"a\.xml"):
        Voc(str(tmp_path)).boxes()


def test_composed_scenes_are_the_same_every_time_and_boxes_fit_their_masks() -> None:
    one, two = (ObjectsOnPhotos(items=6, test_items=3, side=48).boxes() for _ in range(2))
    assert one.train.fingerprint == two.train.fingerprint and one.test is not None
    batch = one.train.fetch(torch.arange(6))
    assert bool(batch["where"].any(1).all())
    for i, k in batch["where"].nonzero().tolist():
        rows, columns = batch["masks"][i, k].nonzero(as_tuple=True)
        x0, y0, x1, y1 = batch["boxes"][i, k].tolist()
        assert x0 == columns.min() and y0 == rows.min() and x1 == columns.max() + 1 and y1 == rows.max() + 1


def test_synonyms_are_averaged_with_a_classs_name(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.asarray([[3.0, 0], [0, 2], [2, 0]], np.float16))
    names, path = ["cat", "puma", "dog"], str(tmp_path / "t.npy")
    lvis = tmp_path / "lvis.json"
    lvis.write_text(
        json.dumps({"categories": [{"name": "cat", "synonyms": ["cat", "Puma", "big_cat"]}, {"name": "cow"}]})
    )
    for given in ({"cat": ["puma", "big cat"]}, str(lvis)):
        found, said = read_vocabulary(path, ["cat", "dog"], names, [], read_synonyms(given, ["cat", "dog"]))
        torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [1, 0]]))
        assert "1 synonyms: " in said[0] and "big cat" in said[0]
    # a class that is there under another name alone
    found, _ = read_vocabulary(path, ["mountain lion"], names, [], {"mountain lion": ["puma"]})
    assert found.tolist() == [[0, 1]]
    for wrong in ({"bat": ["x"]}, {"cat": "puma"}, str(tmp_path / "none.json")):
        with pytest.raises(DataError, match=r"task\.synonyms"):
            read_synonyms(wrong, ["cat", "dog"])


def test_vocabularies(tmp_path: Path) -> None:
    drawn = drawn_vocabulary(["cat", "dog"], 16)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(2))
    assert torch.equal(drawn[1:], drawn_vocabulary(["dog"], 16))
    rows = np.asarray([[3.0, 0], [0, 2], [0, 0], [2, 0]], np.float16)
    np.save(tmp_path / "t.npy", rows)
    names = ["cat", "Wild_dog", "cow", "cat"]
    found, _ = read_vocabulary(str(tmp_path / "t.npy"), ["wild dog", "cat"], names, [])
    assert found.tolist() == [[0, 1], [1, 0]]
    for labels, given, said in (
        (["cow"], names, "'?cow'? is zero"),
        (["bat"], names, "no embedding of '?bat'?"),
        (["cat"], names[:2], "2 names"),
        (["cat"], None, "rows have no names"),
    ):
        with pytest.raises(DataError, match=said):
            read_vocabulary(str(tmp_path / "t.npy"), labels, given, [])
    (tmp_path / "t.json").write_text(json.dumps({"cat": [1, 2], "dog": [3]}))
    with pytest.raises(DataError, match="cannot be read"):
        read_vocabulary(str(tmp_path / "t.json"), ["cat"], None, [])
