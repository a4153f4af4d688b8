"""Clouds from arrays, files, functions and images; what is no cloud is named."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data.clouds import CloudArrays, CloudFolder, CloudImported, PictureClouds
from limbeck.data.meshes import read_cloud
from limbeck.errors import DataError
from limbeck.tasks.clouds import CloudFeatures, Clouds

RNG = np.random.default_rng(0)
SQUARE = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
OFF = "OFF\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3 255 0 0\n"
HEAD = (
    "ply\nformat {} 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\nproperty uchar red\n"
)
FACES = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"


def ply(form: str) -> bytes:
    head = (HEAD + FACES).format(form).encode()
    if form == "ascii":
        return head + b"".join(b"%g %g %g 7\n" % tuple(p) for p in SQUARE) + b"4 0 1 2 3\n"
    order = "<" if "little" in form else ">"
    points = b"".join(struct.pack(order + "fffB", *p, 7) for p in SQUARE)
    return head + points + struct.pack(order + "B4i", 4, 0, 1, 2, 3)


def cloud(points: int = 12) -> np.ndarray:
    return RNG.normal(size=(points, 3)).astype(np.float32)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_files_of_all_three_forms(form: str) -> None:
    points, faces = read_cloud("a.ply", ply(form))
    np.testing.assert_allclose(points, SQUARE)
    assert faces is not None and faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_other_files_of_one_cloud() -> None:
    for text in (OFF, OFF.replace("OFF\n4", "OFF4"), "# made\n" + OFF, OFF.replace(" 255 0 0", "")):
        points, faces = read_cloud("a.off", text.encode())
        np.testing.assert_allclose(points, SQUARE)
        assert faces is not None and faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    triangles = OFF.replace("4 1 0", "4 2 0").replace("4 0 1 2 3 255 0 0\n", "3 0 1 2\n3 0 2 3\n")
    assert read_cloud("a.off", triangles.encode())[1].tolist() == [[0, 1, 2], [0, 2, 3]]  # type: ignore[union-attr]
    for text in ("0 0 0\n1,0,0\n1 1 0 9 9\n0 1 0\n", "x,y,z\n0,0,0\n1,0,0\n1,1,0\n0,1,0"):
        np.testing.assert_allclose(read_cloud("a.xyz", text.encode())[0], SQUARE)
    for name, content in (
        ("a.off", b"PLY"),
        ("a.off", b"OFF 4 1 0 0 0"),
        ("a.off", OFF.replace("4 0 1 2 3", "4 0 1 2 9").encode()),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nend_header\n1\n"),
        ("a.ply", ply("binary_little_endian")[:-9]),
        ("a.ply", b"plyx"),
        ("a.xyz", b"nothing\n"),
        ("a.npy", b"PK"),
    ):
        with pytest.raises(DataError, match="cannot be read"):
            read_cloud(name, content)


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_folders_by_class_in_both_layouts(layout: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind in ("chair", "table"):
            place = tmp_path / layout.format(split=split, kind=kind)
            place.mkdir(parents=True)
            (place / "a.off").write_text(OFF)
            np.save(place / "b.npy", cloud(30))
    splits = CloudFolder(str(tmp_path), points=16).read()
    assert (
        splits.labels == ["chair", "table"] and splits.test is not None and len(splits.train) == len(splits.test) == 4
    )
    x = splits.train.fetch(torch.arange(4))["x"]
    assert (
        x.shape == (4, 16, 3)
        and bool((x[0, :, 2] == 0).all())
        and bool(((x[0, :, :2] >= 0) & (x[0, :, :2] <= 1)).all())
    )
    assert any("more than 16 points" in n for n in splits.notes)
    assert torch.equal(x, CloudFolder(str(tmp_path), points=16).read().train.fetch(torch.arange(4))["x"])
    bare = CloudFolder(str(tmp_path), points=16, labels=False).read()
    assert bare.labels == ["cloud"]
    (tmp_path / "stray.xyz").write_text("0 0 0\n1 0 0\n0 1 0\n0 0 1\n")
    with pytest.raises(DataError, match="labels=false"):
        CloudFolder(str(tmp_path)).read()
    (tmp_path / "stray.xyz").write_text("x")
    with pytest.raises(DataError, match=r"stray\.xyz"):
        CloudFolder(str(tmp_path), labels=False).read()


def test_arrays_with_and_without_labels(tmp_path: Path) -> None:
    x = np.stack([cloud() for _ in range(8)])
    y = np.arange(8) % 2
    np.savez(
        tmp_path / "all.npz", points_train=x, y_train=y, points_test=x[:4], y_test=y[:4], classes=np.array(["a", "b"])
    )
    splits = CloudArrays(str(tmp_path / "all.npz")).read()
    assert splits.labels == ["a", "b"] and splits.test is not None and len(splits.test) == 4
    (tmp_path / "dir").mkdir()
    np.savez(tmp_path / "dir" / "train.npz", points=(40 * x).astype(np.int16), y=y)
    assert len(CloudArrays(str(tmp_path / "dir"), points=20).read().train) == 8
    assert CloudArrays(str(tmp_path / "dir"), points=20).read().train.shape == (20, 3)
    np.save(tmp_path / "bare.npy", x)
    bare = CloudArrays(str(tmp_path / "bare.npy"))
    assert bare.read().labels == ["cloud"]
    with pytest.raises(DataError, match="cloud-features"):
        Clouds(data=bare).load()
    task = CloudFeatures(data=bare)
    task.load()
    assert task.kind_of_target == "none" and task.needs.form == "vector" and task.needs.items == "clouds"


def test_what_is_no_cloud_is_named(tmp_path: Path) -> None:
    x = np.stack([cloud() for _ in range(6)])

    def refused(said: str, **arrays: np.ndarray) -> None:
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(DataError, match=said):
            CloudArrays(str(tmp_path / "bad.npz")).read()

    refused("transpose", points=x.transpose(0, 2, 1))
    refused("no array points", other=x)
    refused("no rows of x, y, z", points=x[..., :2])
    refused("fewer than 4 points", points=np.concatenate([x[:, :3]]))
    spoilt = x.copy()
    spoilt[3, 0, 0] = np.nan
    spoilt[5] = 1.0
    refused("not finite: train item 3; 1 cloud have all of their points in one place: train item 5", points=spoilt)
    refused("6 clouds but 2 labels", points=x, y=np.zeros(2, np.int64))
    refused("single cloud", points=x[0])


def of_two_lengths() -> tuple[list[np.ndarray], list[str]]:
    return [np.random.default_rng(i).normal(size=(8 + 4 * (i % 2), 3)) for i in range(6)], ["a", "b"] * 3


def upside_down() -> dict[str, np.ndarray]:
    return {"everything": cloud()[None]}


def test_the_users_own_function() -> None:
    with pytest.raises(DataError, match=r"8 to 12 points.*points=12"):
        CloudImported("tests.data.test_clouds:of_two_lengths").read()
    splits = CloudImported("tests.data.test_clouds:of_two_lengths", points=10).read()
    assert splits.train.shape == (10, 3) and splits.labels == ["a", "b"] and len(splits.notes) >= 2
    with pytest.raises(DataError, match="train"):
        CloudImported("tests.data.test_clouds:upside_down").read()


def test_pictures_become_points_where_they_are_bright() -> None:
    source = PictureClouds(points=50)
    splits, pictures = source.read(), source.of.read()
    for i in (0, 40):
        x, picture = splits.train.fetch(torch.tensor([i]))["x"][0], pictures.train.fetch(torch.tensor([i]))["x"][0, 0]
        at = ((x[:, 0] * 4 + 4).floor().long(), (4 - x[:, 1] * 4).ceil().long() - 1)
        assert bool((picture[at[1].clamp(0, 7), at[0].clamp(0, 7)] > 0).all())
    assert splits.test is not None and len(splits.test) == 700
    task = Clouds(data=source)
    task.load()
    radius = task.train.fetch(torch.arange(5))["x"].norm(dim=-1).amax(1)
    torch.testing.assert_close(radius, torch.ones(5))
    with pytest.raises(ValueError, match="points"):
        Clouds(size=5)
