"""Masks: folders in the layouts that people have, arrays, scenes; what cannot be used is named before training."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.masks import DigitScenes, MaskArrays, MaskFolder, brought_to
from limbeck.data.sources import Digits
from limbeck.errors import DataError
from limbeck.given import source_of as _source
from limbeck.tasks.dense import Dense

RNG = np.random.default_rng(0)


def put(image: Path, mask: Path, ids: Any = (0, 1, 2, 255), size: tuple[int, int] = (12, 16)) -> np.ndarray[Any, Any]:
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    m = RNG.choice(np.asarray(ids, dtype=np.uint8), size)
    Image.fromarray(RNG.integers(0, 255, (*size, 3), dtype=np.uint8)).save(image)
    Image.fromarray(m).save(mask)
    return m


def folder(root: Path, layout: str = "{kind}/{split}/{name}", n: int = 3, **more: Any) -> Path:
    for split in ("train", "test"):
        for i in range(n):
            where = {"split": split, "name": f"{split}{i}"}
            put(
                root / (layout.format(kind="images", **where) + ".jpg"),
                root / (layout.format(kind="masks", **where) + ".png"),
                **more,
            )
    return root


@pytest.mark.parametrize("layout", ["{kind}/{split}/{name}", "{split}/{kind}/{name}", "data/{split}/{kind}/{name}"])
def test_folders_are_paired_by_stem_wherever_the_splits_stand(tmp_path: Path, layout: str) -> None:
    splits = MaskFolder(str(folder(tmp_path, layout))).maps()
    assert (len(splits.train), len(splits.test or []), splits.valid) == (3, 3, None)
    assert splits.labels == ["0", "1", "2"] and "no class names" in splits.notes[0]
    batch = splits.train.fetch(torch.arange(3))
    assert batch["x"].shape == (3, 3, 12, 16) and batch["y"].shape == batch["where"].shape == (3, 12, 16)
    ids = np.asarray(Image.open(next(tmp_path.rglob("train0.png"))))
    assert torch.equal(batch["where"][0], torch.from_numpy(ids != 255))
    assert torch.equal(batch["y"][0], torch.from_numpy(np.where(ids == 255, 0, ids)).long())
    assert torch.equal(splits.train.y, torch.ones(3, 3))


def test_segnet_s_layout_and_archives(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(tmp_path / "a" / split / "0.png", tmp_path / "a" / f"{split}annot" / "0.png")
    assert len(MaskFolder(str(tmp_path / "a")).maps().train) == 1
    folder(tmp_path / "b")
    (tmp_path / "c").mkdir()
    for kind, name in (("images", "images"), ("masks", "labels")):
        with tarfile.open(tmp_path / "c" / f"{name}.tar", "w") as archive:
            archive.add(tmp_path / "b" / kind, arcname=".")
    plain, packed = (MaskFolder(str(tmp_path / x)).maps() for x in "bc")
    assert plain.train.fingerprint == packed.train.fingerprint
    named = MaskFolder(str(tmp_path / "c"), images="images.tar", masks="labels.tar").maps()
    assert named.train.fingerprint == packed.train.fingerprint


def test_classes_are_named_kept_and_left_out(tmp_path: Path) -> None:
    folder(tmp_path, ids=(0, 1, 2, 3))
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["sky", "road", "car", "void"], "ignore_index": 3}))
    splits = MaskFolder(str(tmp_path)).maps()
    assert splits.labels == ["sky", "road", "car"]
    assert not bool(splits.train.fetch(torch.tensor([0]))["where"].all())
    one = MaskFolder(str(tmp_path), only=["car", "sky"]).maps()
    assert one.labels == ["background", "car", "sky"]
    before, after = (s.train.fetch(torch.tensor([0])) for s in (splits, one))
    assert torch.equal(after["y"] == 1, (before["y"] == 2) & before["where"]) and torch.equal(
        after["where"], before["where"]
    )
    alone = MaskFolder(str(tmp_path), only=["car", "sky"], background=None).maps().train.fetch(torch.tensor([0]))
    assert torch.equal(alone["where"], before["where"] & (before["y"] != 1))
    with pytest.raises(DataError, match=r"no class cat.*sky"):
        MaskFolder(str(tmp_path), only=["cat"]).maps()
    by_id = tmp_path / "ids.json"
    by_id.write_text('{"0": "sky", "2": "car"}')
    with pytest.raises(DataError, match="holds 3, which is no class"):
        MaskFolder(str(tmp_path), classes=str(by_id)).maps()


def test_picture_and_mask_are_resized_together() -> None:
    x = torch.zeros(3, 20, 30)
    x[:, 5:15, 10:20] = 1.0
    m = (x[0] > 0).to(torch.int16)
    for size in (10, [10, 15], [40, 60]):
        small, mask = brought_to(x, m, size)
        assert small.shape[1:] == mask.shape
        assert float(((small[0] > 0.5) == (mask == 1)).float().mean()) > 0.9
    assert brought_to(x, m, None)[0] is x


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda r: [p.unlink() for p in r.glob("masks/*/*")], ["0 masks were found"]),
        (lambda r: (r / "masks/train/train0.png").write_bytes(b"no image"), ["train0.png", "1 item of 6"]),
        (lambda r: Image.new("RGB", (16, 12)).save(r / "masks/train/train1.png"), ["train1.png", "image of colours"]),
        (lambda r: put(r / "images/train/x.jpg", r / "masks/train/x.png", size=(9, 9)), ["train/x.png", "task.size=N"]),
        (lambda r: Image.new("L", (3, 3)).save(r / "masks/train/train1.png"), ["has [12, 16] pixels, its mask [3, 3]"]),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, break_it: Any, said: list[str]) -> None:
    break_it(folder(tmp_path))
    with pytest.raises(DataError) as caught:
        MaskFolder(str(tmp_path)).maps()
    assert all(part in caught.value.line() for part in said), caught.value.line()


def test_a_lone_picture_is_told(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "masks/train/train2.png").unlink()
    splits = MaskFolder(str(tmp_path)).maps()
    assert len(splits.train) == 2 and "train/train2 has no mask" in " ".join(splits.notes)


def test_arrays(tmp_path: Path) -> None:
    x, y = RNG.integers(0, 255, (6, 8, 10, 3), dtype=np.uint8), RNG.integers(0, 4, (6, 8, 10))
    y[y == 3] = 255
    np.savez(tmp_path / "train.npz", x=x, y=y)
    splits = MaskArrays(str(tmp_path)).maps()
    assert splits.labels == ["0", "1", "2"] and splits.train.shape == (3, 8, 10)
    assert torch.equal(splits.train.fetch(torch.arange(6))["where"], torch.from_numpy(y != 255))
    with pytest.raises(DataError, match=r"y holds 2, which is no class.*0 to 1"):
        MaskArrays(str(tmp_path), classes=["a", "b"]).maps()
    np.savez(tmp_path / "train.npz", x=x, y=y[:, :4])
    with pytest.raises(DataError, match=r"images of .8, 10. pixels and masks of .4, 10."):
        MaskArrays(str(tmp_path)).maps()
    np.savez(tmp_path / "train.npz", x=x)
    with pytest.raises(DataError, match="arrays x and y"):
        MaskArrays(str(tmp_path)).maps()


def test_arrays_that_the_caller_holds() -> None:
    x, y = torch.rand(8, 3, 8, 8), torch.randint(0, 2, (8, 8, 8))
    task = Dense(_source((x, y)))
    task.load(0)
    assert task.labels == ["0", "1"] and task.shape == (3, 8, 8)


def test_scenes_are_drawn_alike_and_share_no_digit() -> None:
    one, two = (DigitScenes(items=4, test_items=3, each=1).maps() for _ in range(2))
    assert one.train.fingerprint == two.train.fingerprint and one.labels == ["ground", "0", "1", "4"]
    batch = one.train.fetch(torch.arange(4))
    assert bool(batch["where"].all()) and all(len(y.unique()) == 2 for y in batch["y"])


def test_a_source_without_masks_is_refused() -> None:
    with pytest.raises(DataError, match=r"no masks.*mask-folder"):
        Dense(Digits()).load()


def test_ids_are_palette_indices_and_masks_may_be_coarser(tmp_path: Path) -> None:
    """As VOC's are stored, and as tools with alpha write them; half as large as their images."""
    ids = np.repeat(np.repeat(np.array([[0, 1], [2, 255]], dtype=np.uint8), 10, 0), 10, 1)  # 20 x 20
    for i, kind in enumerate(("P", "L", "LA")):
        for name in ("images", "masks"):
            (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "images" / f"{i}.jpg")
        mask = Image.fromarray(ids)
        if kind == "P":
            mask.putpalette([(37 * k) % 256 for k in range(768)])
        elif kind == "LA":
            mask = Image.merge("LA", [mask, Image.new("L", (20, 20), 200)])
        mask.save(tmp_path / "masks" / f"{i}.png")
    splits = MaskFolder(str(tmp_path)).maps(32)
    batch = splits.train.fetch(torch.arange(3))
    assert set(batch["y"][batch["where"]].unique().tolist()) == {0, 1, 2}
    assert torch.equal(batch["y"][0], batch["y"][1]) and torch.equal(batch["y"][0], batch["y"][2])
    assert int((~batch["where"][0]).sum()) == 16 * 16
