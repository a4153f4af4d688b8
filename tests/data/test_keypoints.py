"""Readers of keypoints: what they read, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.coco_keypoints import CocoKeypoints
from limbeck.data.figures import DrawnFigures
from limbeck.data.keypoints import FACE68, LAYOUTS, KeypointSet, ids_of
from limbeck.errors import DataError

ONE = torch.tensor([0])


def picture(path: Path, wide: int = 40, high: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((high, wide, 3), 90, np.uint8)).save(path)


def test_layouts_mirror_onto_themselves() -> None:
    for name, one in LAYOUTS.items():
        assert sorted(one.flip) == list(range(len(one.joints))), name
        assert all(one.flip[one.flip[j]] == j for j in range(len(one.joints))), name
        assert all(0 <= j < len(one.joints) for e in one.edges for j in e), name
    eyes = FACE68.part(ids_of(["36-47"], 68, "parts"))
    assert eyes.flip == (9, 8, 7, 6, 11, 10, 3, 2, 1, 0, 5, 4) and eyes.pair == (0, 9)
    assert FACE68.part([36, 37]).flip == () and FACE68.part([36, 37]).pair is None


def test_arrays(tmp_path: Path) -> None:
    at = np.array([[[4, 5, 2], [8, 2, 1], [0, 0, 0]]], np.float32)
    space = np.array([[[0, 0, 0], [1, 2, 3], [np.nan] * 3]], np.float32)
    np.savez(tmp_path / "train.npz", x=np.zeros((1, 10, 20, 3), np.uint8), keypoints=at, keypoints3d=space)
    read = KeypointSet(str(tmp_path), parts={"a": ["0-1"], "b": [2]}, flip=[1, 0, 2], edges=[[0, 1]])
    with pytest.raises(DataError, match="labelled for b"):
        read.poses()
    split = KeypointSet(str(tmp_path), parts={"a": ["0-1"]}, flip=[1, 0, 2], edges=[[0, 1]]).poses()
    assert split.train.data.parts["a"].flip == (1, 0) and split.train.data.parts["a"].edges == ((0, 1),)  # type: ignore[attr-defined]
    batch = split.train.fetch(ONE)
    assert batch["pose:a"].tolist() == [[[[4, 5, 0, 0, 0], [8, 2, 1, 2, 3]]]] and bool(batch["known:a"].all())
    square = KeypointSet(str(tmp_path)).poses(10).train.fetch(ONE)  # 20 x 10 becomes 10 x 5, black below
    assert square["x"].shape == (1, 3, 10, 10)
    assert square["pose:all"][0, 0, :2].tolist() == [[2, 2.5, 0, 0, 0], [4, 1, 1, 2, 3]]
    assert square["known:all"][0, 0].tolist() == [[True, True], [True, True], [False, False]]
    np.savez(
        tmp_path / "train.npz", x=np.zeros((2, 10, 20), np.uint8), keypoints=np.repeat(at, 2, 0), labelled=[[1], [0]]
    )
    told = KeypointSet(str(tmp_path)).poses()
    assert told.train.y.tolist() == [[1], [0]] and told.train.fetch(torch.tensor([0, 1]))["where:all"].tolist() == [
        [True],
        [False],
    ]
    assert "all: labelled on 1 of 2 training images" in told.notes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keypoints": np.zeros((2, 3), np.float32)}, "expected numbers"),
        ({"keypoints": np.random.default_rng(0).random((2, 9, 2), np.float32)}, "expected pixels"),
        ({"keypoints": np.full((2, 3, 2), 99.0, np.float32)}, "6 of 6 points lie outside"),
        ({"keypoints3d": np.zeros((2, 3, 2), np.float32)}, "keypoints3d"),
        ({"labelled": np.ones((2, 4))}, "a column for each"),
        ({"x": np.full((2, 1, 9, 9), np.nan, np.float32)}, "NaN"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    arrays = {"x": np.zeros((2, 20, 20), np.uint8), "keypoints": np.full((2, 3, 2), 9.0, np.float32)} | change
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(DataError, match=said):
        KeypointSet(str(tmp_path)).poses()


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=np.zeros((2, 20, 20), np.uint8), keypoints=np.full((2, 3, 2), 9.0, np.float32))
    for given, said in (
        ({"layout": "face68"}, r"68 points.*expected 3"),
        ({"parts": {"a": ["2-3"]}}, "parts.a"),
        ({"parts": {"a": ["x"]}}, "parts.a"),
        ({"flip": [1, 2, 0]}, "flip"),
        ({"edges": [[0, 3]]}, "edges"),
        ({"pair": [0, 0]}, "pair"),
    ):
        with pytest.raises(DataError, match=said):
            KeypointSet(str(tmp_path), **given).poses()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layout"):
        KeypointSet(str(tmp_path), layout="nobody")
    with pytest.raises(DataError, match=r"train\.npz"):
        (tmp_path / "empty").mkdir()
        KeypointSet(str(tmp_path / "empty")).poses()


def test_tables_and_lists(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "train.csv").write_text("file,x0,y0,x1,y1\na.png,4,5,,\n")
    (tmp_path / "test.json").write_text(
        json.dumps([{"image": "a.png", "keypoints": [[7, 8], None], "keypoints3d": [[1, 1, 1], [2, 2, 2]]}])
    )
    read = KeypointSet(str(tmp_path), images=str(tmp_path / "in")).poses()
    assert read.test is not None
    one, other = read.train.fetch(ONE), read.test.fetch(ONE)
    assert one["pose:all"][0, 0, 0].tolist() == [4, 5, 0, 0, 0] and one["known:all"][0, 0, :, 0].tolist() == [
        True,
        False,
    ]
    assert other["pose:all"][0, 0].tolist() == [[7, 8, 1, 1, 1], [0, 0, 2, 2, 2]]
    assert other["known:all"][0, 0].tolist() == [[True, True], [False, True]]
    with pytest.raises(DataError, match="images"):
        KeypointSet(str(tmp_path / "train.csv")).poses()
    (tmp_path / "train.csv").write_text("a.png,4,5,x,1\na.png,4,5,x,1\n")
    with pytest.raises(DataError, match=r"train\.csv:2"):
        KeypointSet(str(tmp_path / "train.csv"), images=str(tmp_path / "in")).poses()
    (tmp_path / "train.csv").write_text("a.png,4,5,6\n")
    with pytest.raises(DataError, match="x and y of every point"):
        KeypointSet(str(tmp_path / "train.csv"), images=str(tmp_path / "in")).poses()
    (tmp_path / "test.json").write_text('[{"image": "a.png"}]')
    with pytest.raises(DataError, match="keypoints"):
        KeypointSet(str(tmp_path / "test.json")).poses()


def coco(root: Path, name: str = "person_keypoints_train2017", **more: Any) -> None:
    picture(root / "images" / f"{name}.png")
    points = [10, 4, 2, 30, 14, 1, 0, 0, 0]
    annotation = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [8, 2, 24, 14], "keypoints": points} | more
    tree = {
        "images": [{"id": 7, "file_name": f"{name}.png", "width": 40, "height": 20}],
        "categories": [
            {"id": 1, "name": "person", "keypoints": ["nose", "left_wrist", "right_wrist"], "skeleton": [[1, 2]]}
        ],
        "annotations": [
            annotation,
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 0, 0], "keypoints": [0] * 9},
        ],
    }
    (root / f"{name}.json").write_text(json.dumps(tree))


def test_coco(tmp_path: Path) -> None:
    coco(tmp_path)
    coco(tmp_path, "hands", keypoints=[0] * 9, lefthand_kpts=[5, 6, 2] * 20 + [9, 9, 2], keypoints_3d=[1, 2, 3, 1] * 3)
    read = CocoKeypoints(str(tmp_path), labelled={"hands": ["hand"]}).poses()
    assert read.labels == ["body", "hand"] and read.train.y.tolist() == [[0, 1], [1, 0]]
    batch = read.train.fetch(torch.tensor([1]))
    assert batch["pose:body"][0, 0].tolist() == [[10, 4, 0, 0, 0], [30, 14, 0, 0, 0], [0] * 5]
    assert batch["where:body"].tolist() == [[True]] and batch["box:body"].tolist() == [[[8, 2, 32, 16]]]
    items: Any = read.train.data  # type: ignore[attr-defined]
    assert items.parts["body"].flip == (0, 2, 1) and items.parts["body"].edges == ((0, 1),)
    assert items.links == {"wrists": ["body", 1, 2, "hand", 0]}
    hand = read.train.fetch(torch.tensor([0]))
    assert hand["where:hand"].tolist() == [[True]] and hand["where:body"].tolist() == [[False]]
    deep = CocoKeypoints(str(tmp_path)).poses().train.fetch(torch.tensor([0]))
    assert deep["known:body"][0, 0].tolist() == [[False, True]] * 3 if deep["where:body"].any() else True


def test_coco_refusals(tmp_path: Path) -> None:
    coco(tmp_path, keypoints=[1, 2, 2])
    with pytest.raises(DataError, match=r"1 points.*expected 3"):
        CocoKeypoints(str(tmp_path)).poses()
    coco(tmp_path, keypoints=[0] * 9)
    with pytest.raises(DataError, match="no annotation has keypoints"):
        CocoKeypoints(str(tmp_path)).poses()
    coco(tmp_path)
    for given, said in (
        ({"category": "cat"}, "person"),
        ({"labelled": {"x": []}}, "no file"),
        ({"labelled": {"person_keypoints_train2017": ["foot"]}}, "foot"),
    ):
        with pytest.raises(DataError, match=said):
            CocoKeypoints(str(tmp_path), **given).poses()  # type: ignore[arg-type]
    (tmp_path / "images" / "person_keypoints_train2017.png").unlink()
    with pytest.raises(DataError, match="is not there"):
        CocoKeypoints(str(tmp_path)).poses()
    with pytest.raises(DataError, match="COCO"):
        CocoKeypoints(str(tmp_path / "images")).poses()


def test_drawn_figures() -> None:
    read = DrawnFigures(items=6, test_items=2, side=48, most=2).poses()
    batch = read.train.fetch(torch.arange(6))
    for part, many in (("body", 1), ("hand", 2), ("face", 1)):
        pose, where = batch[f"pose:{part}"], batch[f"where:{part}"]
        assert where.sum(1).tolist() == [many * n for n in batch["where:body"].sum(1).tolist()]
        inside = pose[..., :2][where]
        assert float(inside.min()) > 0 and float(inside.max()) < 48
        flat, deep = pose[..., :2][where], pose[..., 2:4][where]  # the plane is space without depth, scaled and moved
        scale = (flat - flat.mean(1, keepdim=True)).norm(dim=(1, 2)) / (deep - deep.mean(1, keepdim=True)).norm(
            dim=(1, 2)
        )
        torch.testing.assert_close(
            flat - flat.mean(1, keepdim=True),
            scale[:, None, None] * (deep - deep.mean(1, keepdim=True)),
            atol=1e-3,
            rtol=1e-3,
        )
    again = DrawnFigures(items=6, test_items=2, side=48, most=2).poses()
    assert again.train.fingerprint == read.train.fingerprint
    assert not DrawnFigures(items=2, test_items=1, space=False).poses().train.fetch(ONE)["known:hand"][..., 1].any()
    with pytest.raises(ValueError, match="parts"):
        DrawnFigures(parts=["tail"])
