"""Folders, arrays, libraries' sets and the user's function as splits, with classes matched by name."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from limbeck.data.arrays import as_inputs, as_targets, from_datasets, read_names
from limbeck.data.sources import Arrays, Digits, Folder, ImportedSource, TorchvisionSet
from limbeck.errors import ConfigError, DataError
from tests.data.picture_files import noise, write_folder


def names_of(split: Any, labels: list[str]) -> list[str]:
    return [labels[i] for i in split.y.tolist()]


# ---------------------------------------------------------------------------------------------------------- digits
def test_digits_have_one_test_split_in_equal_shares() -> None:
    found = Digits().read()
    assert (len(found.train), len(found.test)) == (1097, 700) and found.valid is None
    counts = torch.bincount(found.test.y)
    assert counts.min() >= 67 and counts.max() <= 72
    x = found.train.fetch(torch.arange(9))["x"]
    assert x.shape == (9, 1, 8, 8) and x.min() == 0 and x.max() == 1
    again = Digits().read()
    assert again.test.fingerprint == found.test.fingerprint != found.train.fingerprint
    assert Digits().read("labels").train.y.shape == (1097, 10) and Digits().read("number").labels == ["digit"]
    assert Digits().read(size=12).train.shape == (1, 12, 12)


# --------------------------------------------------------------------------------------------------------- folders
def test_class_folders(tmp_path: Path) -> None:
    write_folder(tmp_path, {"wren": 3, "10": 2, "owl": 4})
    found = Folder(str(tmp_path)).read()
    assert found.labels == ["10", "owl", "wren"] and found.kind == "label" and found.test is None
    assert sorted(names_of(found.train, found.labels)) == ["10"] * 2 + ["owl"] * 4 + ["wren"] * 3
    assert found.train.fetch(torch.tensor([0]))["x"].shape == (1, 3, 8, 8)


def test_a_class_that_a_split_lacks_shifts_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cat": 3, "emu": 3, "fox": 3})
    write_folder(tmp_path / "Val", {"emu": 2, "fox": 1})
    write_folder(tmp_path / "test", {"ant": 1, "fox": 2})
    found = Folder(str(tmp_path)).read()
    assert found.labels == ["ant", "cat", "emu", "fox"]
    assert names_of(found.valid, found.labels) == ["emu", "emu", "fox"]
    assert names_of(found.test, found.labels) == ["ant", "fox", "fox"]
    assert sorted(set(names_of(found.train, found.labels))) == ["cat", "emu", "fox"]


def test_a_validation_folder_alone_judges(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 3, "b": 3})
    write_folder(tmp_path / "val", {"a": 1, "b": 2})
    found = Folder(str(tmp_path)).read()
    assert found.valid is None and len(found.test) == 3 and "validation split evaluates" in found.notes[0]


def test_a_class_called_train_is_a_class_when_it_holds_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 2, "tram": 2})
    assert Folder(str(tmp_path)).read().labels == ["train", "tram"]


def test_folders_that_make_no_sense(tmp_path: Path) -> None:
    write_folder(tmp_path / "mixed" / "train", {"a": 1})
    write_folder(tmp_path / "mixed", {"b": 1})
    with pytest.raises(DataError, match="no split: b"):
        Folder(str(tmp_path / "mixed")).read()
    (tmp_path / "flat").mkdir()
    Image.fromarray(noise(0, 4, 4, 3)).save(tmp_path / "flat" / "a.png")
    with pytest.raises(DataError, match="outside any class folder"):
        Folder(str(tmp_path / "flat")).read()
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no images"):
        Folder(str(tmp_path / "empty")).read()
    for path in ("absent", "nul\0l", "~nobody-of-that-name/x"):
        with pytest.raises(DataError):
            Folder(str(tmp_path / path) if path == "absent" else path).read()


def test_unreadable_pictures_across_splits_are_named_together(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 2, "b": 2})
    write_folder(tmp_path / "test", {"a": 1, "b": 1})
    (tmp_path / "train/a/bad.png").write_bytes(b"no")
    (tmp_path / "test/b/gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"2 of 8 .*test/b/gone\.png.*train/a/bad\.png"):
        Folder(str(tmp_path)).read()
    found = Folder(str(tmp_path), bad_files="skip").read()
    assert (len(found.train), len(found.test)) == (4, 2) and "gone.png" in found.notes[0]


def test_folders_named_by_numbers_can_be_numbers(tmp_path: Path) -> None:
    write_folder(tmp_path, {"18": 2, "40.5": 2})
    found = Folder(str(tmp_path)).read("number")
    assert found.kind == "number" and sorted(found.train.y[:, 0].tolist()) == [18.0, 18.0, 40.5, 40.5]


# ---------------------------------------------------------------------------------------------------------- arrays
@pytest.fixture()
def arrays(tmp_path: Path) -> Path:
    for split, n in (("train", 12), ("test", 6)):
        np.savez(tmp_path / f"{split}.npz", x=noise(n, n, 5, 5, 3), y=(np.arange(n) % 2 + 1).astype(np.uint8))
    (tmp_path / "classes.json").write_text(json.dumps(["nil", "one", "two"]))
    return tmp_path


def test_a_folder_of_arrays_with_names(arrays: Path) -> None:
    found = Arrays(str(arrays)).read()
    assert found.labels == ["nil", "one", "two"] and found.train.shape == (3, 5, 5)
    assert found.train.y.tolist()[:3] == [1, 2, 1] and len(found.test) == 6
    wanted = torch.from_numpy(noise(12, 12, 5, 5, 3)[4]).permute(2, 0, 1) / 255
    assert torch.equal(found.train.fetch(torch.tensor([4]))["x"][0], wanted)
    assert Arrays(str(arrays)).read(size=3).train.shape == (3, 3, 3)


def test_single_files(tmp_path: Path) -> None:
    x, y = noise(1, 8, 4, 4), np.array([0, 3, 0, 3, 0, 3, 0, 3])
    np.savez(tmp_path / "all.npz", x_train=x[:6], y_train=y[:6], x_test=x[6:], y_test=y[6:])
    found = Arrays(str(tmp_path / "all.npz")).read()
    assert (len(found.train), len(found.test), found.train.shape) == (6, 2, (1, 4, 4))
    assert found.labels == ["0", "1", "2", "3"]  # ids keep their places though two classes are missing
    (tmp_path / "loose").mkdir()
    np.save(tmp_path / "loose" / "x.npy", x)
    np.save(tmp_path / "loose" / "y.npy", y)
    for path in (tmp_path / "loose", tmp_path / "loose" / "x.npy"):
        assert Arrays(str(path)).read().train.y.tolist() == y.tolist()
    np.savez(tmp_path / "odd.npz", pixels=x, kinds=y, classes=np.array(["a", "b", "c", "d"]))
    found = Arrays(str(tmp_path / "odd.npz"), x="pixels", y="kinds").read()
    assert found.labels == ["a", "b", "c", "d"]
    with pytest.raises(DataError, match=r"did you mean 'pixels'"):
        Arrays(str(tmp_path / "odd.npz"), x="pixel", y="kinds").read()


def test_layouts_and_ranges_of_inputs() -> None:
    last = noise(2, 3, 6, 7, 3)
    assert torch.equal(as_inputs(last, "x"), torch.from_numpy(last).permute(0, 3, 1, 2))
    assert torch.equal(as_inputs(last.transpose(0, 3, 1, 2), "x"), torch.from_numpy(last).permute(0, 3, 1, 2))
    assert as_inputs(noise(3, 2, 3, 3, 3), "x", "last").shape == (2, 3, 3, 3)
    assert as_inputs(noise(4, 2, 5, 8, 9), "x", "first").shape == (2, 5, 8, 9)
    with pytest.raises(DataError, match=r"data\.layout"):
        as_inputs(noise(4, 2, 5, 8, 9), "x")
    deep = np.array([[[0, 65535]]], np.uint16)
    assert as_inputs(deep, "x").dtype == torch.uint16
    assert as_inputs(deep.astype(np.int64) // 257, "x").dtype == torch.uint8
    with pytest.raises(DataError, match=r"data\.scale"):
        as_inputs(deep.astype(np.int64), "x")
    assert as_inputs(deep.astype(np.int64), "x", scale=65535).max() == 1
    assert as_inputs(torch.ones(2, 3, 4, 4), "x").dtype == torch.float32
    rgba = noise(5, 2, 4, 5, 4)
    rgba[..., 3] = 255
    assert torch.equal(as_inputs(rgba, "x", "last"), torch.from_numpy(rgba[..., :3]).permute(0, 3, 1, 2))
    rgba[..., 3] = 0
    assert (as_inputs(rgba, "x", "last") == 255).all()
    for bad in (np.zeros(3), np.zeros((2, 2), complex), np.array([["a"]])):
        with pytest.raises(DataError):
            as_inputs(bad, "x")


def test_kinds_of_targets() -> None:
    assert as_targets(np.array([1.5, 2.0]), "auto", None, "y")[2] == "number"
    y, labels, kind = as_targets(np.array([[1, 0], [1, 1]]), "auto", ["a", "b"], "y")
    assert (y.tolist(), labels, kind) == ([[1.0, 0.0], [1.0, 1.0]], ["a", "b"], "labels")
    assert as_targets(np.array([[1.5, 0], [1, 1]]), "auto", None, "y")[2] == "number"
    y, labels, kind = as_targets(np.array(["b", "a", "b"]), "auto", None, "y")
    assert (y.tolist(), labels, kind) == ([1, 0, 1], ["a", "b"], "label")
    y, labels, kind = as_targets(np.array([7, 1000, 7]), "auto", None, "y")
    assert (y.tolist(), labels) == ([0, 1, 0], ["7", "1000"])
    y, labels, kind = as_targets(np.array([-1, 1, -1]), "label", None, "y")
    assert (y.tolist(), labels) == ([0, 1, 0], ["-1", "1"])
    assert as_targets(np.arange(24.0).reshape(2, 4, 3), "auto", None, "y")[0].shape == (2, 12)
    y, labels, kind = as_targets(np.array([1.0, 0.0]), "auto", ["a", "b"], "y")
    assert (y.tolist(), y.dtype, kind) == ([1, 0], torch.int64, "label")
    with pytest.raises(DataError, match="negative"):
        as_targets(np.array([-1, 1]), "auto", None, "y")
    with pytest.raises(DataError, match=r"out of range at item 2 \(5\)"):
        as_targets(np.array([0, 1, 5]), "auto", ["a", "b"], "y")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Boom:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "train.npz", x=np.zeros((2, 3)), y=np.array([Boom(), Boom()], dtype=object))
    (tmp_path / "text.npz").write_text("words")
    for name in ("train.npz", "text.npz"):
        with pytest.raises(DataError, match="cannot be read"):
            Arrays(str(tmp_path / name)).read()
    assert not (tmp_path / "ran").exists()


def test_arrays_that_do_not_fit(arrays: Path, tmp_path: Path) -> None:
    np.savez(arrays / "train.npz", x=noise(1, 3, 5, 5), y=np.arange(2))
    with pytest.raises(DataError, match="3 inputs but 2 targets"):
        Arrays(str(arrays)).read()
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"train\.npz"):
        Arrays(str(tmp_path / "none")).read()


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("c.json", '["a", "b"]', ["a", "b"]),
        ("c.json", '[{"id": 1, "name": "a"}, {"name": "b"}]', ["a", "b"]),
        ("c.json", '{"b": 1, "a": 0}', ["a", "b"]),
        (
            "c.json",
            '{"1": "b", "0": "a", "10": "x", "2": "c", "3":"d","4":"e","5":"f","6":"g","7":"h","8":"i","9":"j"}',
            None,
        ),
        ("c.json", '{"id2label": {"0": "a", "1": "b"}}', ["a", "b"]),
        ("c.json", '{"fine": ["a", "b"], "coarse": ["c"]}', ["a", "b"]),
        ("c.txt", "\ufeffa\n\nb\n", ["a", "b"]),
    ],
)
def test_lists_of_names(tmp_path: Path, name: str, text: str, wanted: list[str] | None) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_names(tmp_path / name)
    assert found == (wanted or ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "x"])


def test_which_of_several_lists(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"fine": ["a", "b"], "coarse": ["c"]}')
    assert read_names(tmp_path / "c.json", "y_coarse") == ["c"]


@pytest.mark.parametrize("text", ['["a", "a"]', "[]", "{", '{"a": 0, "b": 2}', '{"a": "b"}', "[[1]]", "3"])
def test_lists_of_names_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError):
        read_names(tmp_path / "c.json")


# ------------------------------------------------------------------------------------------- other people's data sets
class Pairs(Dataset[Any]):
    classes = ("cat", "dog")

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def test_items_of_all_kinds_from_a_dataset() -> None:
    rgb = noise(1, 4, 4, 3)
    wanted = torch.from_numpy(rgb).permute(2, 0, 1) / 255
    items = [
        (Image.fromarray(rgb), 0),
        (rgb, np.int64(1)),
        (torch.from_numpy(rgb).permute(2, 0, 1), torch.tensor(0)),
        {"image": wanted, "label": 1},
    ]
    found = from_datasets({"train": Pairs(items)}, "auto", None, 64, None, "test")
    assert found.labels == ["cat", "dog"] and found.train.y.tolist() == [0, 1, 0, 1]
    assert torch.allclose(found.train.fetch(torch.arange(4))["x"], wanted.expand(4, -1, -1, -1))


def test_a_dataset_too_large_for_memory_is_asked_each_time() -> None:
    items = [(noise(i, 4, 4, 3), i % 2) for i in range(4)]
    kept = from_datasets({"train": Pairs(items)}, "auto", 6, 64, None, "test").train
    asked = from_datasets({"train": Pairs(items)}, "auto", 6, 0, None, "test").train
    assert type(kept) is not type(asked) and kept.fingerprint == asked.fingerprint
    ids = torch.tensor([2, 1])
    assert torch.equal(kept.fetch(ids)["x"], asked.fetch(ids)["x"]) and asked.shape == (3, 6, 6)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([(noise(0, 4, 4, 3), 0), (noise(0, 5, 4, 3), 1)], "differ in shape"),
        ([3, 4], r"\(input, target\)"),
        ([("text", 0)], "as input"),
        ([(noise(0, 2, 2, 2, 2, 2), 0)], "an input"),
    ],
)
def test_datasets_that_do_not_fit(items: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        from_datasets({"train": Pairs(items)}, "auto", None, 64, None, "test")


def test_what_a_dataset_raises_is_told_with_its_item() -> None:
    class Broken(Pairs):
        def __getitem__(self, i: int) -> Any:
            if i == 1:
                raise KeyError("lost")
            return super().__getitem__(i)

    with pytest.raises(DataError, match=r"item 1: cannot be read: KeyError.*lost"):
        from_datasets({"train": Broken([(np.zeros(2), 0)] * 3)}, "auto", None, 64, None, "test")


USER = """
import numpy as np, torch
def pair(n=6): return np.arange(n * 2.0).reshape(n, 2), np.arange(n) % 3
def splits(): return {"train": pair(), "val": pair(3), "labels": ["a", "b", "c"]}
def wrong(): return {"train": pair(), "somewhere": pair()}
def fails(): raise RuntimeError("no disk")
def stream(): return iter([1])
number = 3
"""


@pytest.fixture()
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "user_data_module.py").write_text(USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "user_data_module", raising=False)
    return "user_data_module"


def test_the_user_s_own_function(user: str) -> None:
    found = ImportedSource(f"{user}:pair", {"n": 4}).read()
    assert found.labels == ["0", "1", "2"] and found.train.y.tolist() == [0, 1, 2, 0] and found.train.shape == (2,)
    found = ImportedSource(f"{user}:splits").read()
    assert found.labels == ["a", "b", "c"] and len(found.test) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong", "train, and valid or test"),
        ("fails", "no disk"),
        ("stream", "__getitem__"),
        ("number", "callable"),
        ("par", "did you mean 'pair'"),
    ],
)
def test_functions_that_give_no_data(user: str, name: str, said: str) -> None:
    with pytest.raises((DataError, ConfigError), match=said):
        ImportedSource(f"{user}:{name}").read()


# ------------------------------------------------------------------------------------------------------ torchvision
def test_torchvision_sets(tmp_path: Path) -> None:
    found = TorchvisionSet("FakeData", options={"size": 6, "image_size": [3, 8, 8], "num_classes": 2}).read()
    assert len(found.train) == 6 and found.train.shape == (3, 8, 8)
    write_folder(tmp_path, {"b": 2, "a": 3})
    found = TorchvisionSet("ImageFolder", root=str(tmp_path)).read(size=4)
    assert found.labels == ["a", "b"] and found.train.y.tolist() == [0, 0, 0, 1, 1] and found.train.shape == (3, 4, 4)
    with pytest.raises(DataError, match="did you mean 'CIFAR10'"):
        TorchvisionSet("CIFAR11").read()
    with pytest.raises(DataError, match=r"download=true"):
        TorchvisionSet("MNIST", root=str(tmp_path / "none")).read()


# ------------------------------------------------------------------------------------------- what is left out is told
def test_what_a_folder_leaves_out_is_told(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cone": 2, "whelk": 2})
    for place in (
        ".old/3.png",
        "@eaDir/cone/t.png",
        "@eaDir/cone/u.jpg",
        "whelk/._2.png",
        "loose.png",
        "cone/deep/0.png",
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(9, 4, 4, 3)).save(tmp_path / place)
    (tmp_path / "whelk/notes.docx").write_bytes(b"x")
    found = Folder(str(tmp_path)).read(size=4)
    assert len(found.train) == 5 and found.notes == [
        "not read: hidden or a system's own: .old (1 image), @eaDir (2 images), whelk/._2.png (1 image); "
        "no images by their ending: whelk/notes.docx",
        "1 image outside any class folder left out: loose.png",
        "images in folders below a class folder belong to its class: cone/deep (1)",
    ]


def test_a_class_folder_without_a_picture_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"ripe": 2, "rotten": 2})
    write_folder(tmp_path / "test", {"ripe": 1})
    (tmp_path / "train/bruised").mkdir()
    (tmp_path / "train/bruised/.DS_Store").write_bytes(b"x")
    with pytest.raises(DataError, match="1 class folder holds no picture: train/bruised, "):
        Folder(str(tmp_path)).read()
    (tmp_path / "train/bruised/0.png.part").write_bytes(b"x")
    with pytest.raises(DataError, match="other files lie there"):
        Folder(str(tmp_path)).read()
    write_folder(tmp_path / "train", {"bruised": 1})
    (tmp_path / "test/rotten").mkdir()  # no test item has it, which is said later
    assert Folder(str(tmp_path)).read().labels == ["bruised", "ripe", "rotten"]
    (tmp_path / "train/bruised/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="of 1 class no image can be read: bruised"):
        Folder(str(tmp_path), bad_files="skip").read()
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="the folder val holds no image"):
        Folder(str(tmp_path)).read()


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train/a", "train/b", "test"), "test holds images, but no class folders"),
        (("train", "test"), "test, train holds images, but no class folders"),
        (("val/a", "test/a"), "no train folder"),
        (("train/a", "train/b", "old/a"), "no split: old"),
    ],
)
def test_folders_of_splits_that_are_none(folders: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(noise(1, 4, 4, 3)).save(tmp_path / folder / "0.png")
    with pytest.raises(DataError, match=said):
        Folder(str(tmp_path)).read()


def test_folders_whose_names_say_which_split_they_are(tmp_path: Path) -> None:
    write_folder(tmp_path / "two/train2017", {"a": 2, "b": 2})
    write_folder(tmp_path / "two/val2017", {"a": 1, "b": 1})
    found = Folder(str(tmp_path / "two")).read()
    assert (found.labels, len(found.train), len(found.test or [])) == (["a", "b"], 4, 2)
    write_folder(tmp_path / "flat", {"test": 2, "exam": 2})
    assert Folder(str(tmp_path / "flat")).read().labels == ["exam", "test"]


def test_one_name_in_two_forms_of_unicode_is_one_class(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {unicodedata.normalize("NFC", "Malmö"): 2, "Kiruna": 2})
    write_folder(tmp_path / "test", {unicodedata.normalize("NFD", "Malmö"): 1, "Kiruna": 1})
    found = Folder(str(tmp_path)).read()
    assert found.labels == ["Kiruna", "Malmö"] and found.test is not None and found.test.y.tolist() == [0, 1]
    assert found.notes == ["written in several ways (Unicode forms, blanks) and taken as one: Malmö"]


def test_arrays_that_are_not_read_are_named(tmp_path: Path) -> None:
    x, y = noise(1, 6, 4, 4), np.arange(6) % 2
    np.savez(tmp_path / "all.npz", x_train=x, y_train=y, x_test=x[:2], meta=np.zeros(3))
    found = Arrays(str(tmp_path / "all.npz")).read()
    assert found.notes[0] == "arrays in all.npz that were not read: x_test [2, 4, 4], meta [3]"
    assert found.notes[1].startswith("inputs: images 4x4, 1 channel, uint8 up to ") and found.test is None
    (tmp_path / "set").mkdir()
    np.savez(tmp_path / "set/train.npz", x=x, y=y)
    np.savez(tmp_path / "set/extra.npz", x=x, y=y)
    assert "files that were not read: extra.npz" in Arrays(str(tmp_path / "set")).read().notes
    np.savez(tmp_path / "set/train_b.npz", x=x, y=y)
    with pytest.raises(DataError, match=r"train\.npz and train_b\.npz are the same split"):
        Arrays(str(tmp_path / "set")).read()


def test_items_without_a_label_are_named_or_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.eye(4), y_train=[0, -1, 1, 0], x_test=np.eye(4)[:2], y_test=[-1, -1])
    with pytest.raises(DataError, match=r"-1 at train item 1, test item 0, test item 1.*task\.data\.bad_rows=skip"):
        Arrays(str(tmp_path / "a.npz")).read()
    found = Arrays(str(tmp_path / "a.npz"), bad_rows="skip").read()
    assert found.train.y.tolist() == [0, 1, 0] and found.test is None and "3 items left out" in found.notes[-1]
    assert found.train.fetch(torch.tensor([1]))["x"].tolist() == [[0.0, 0.0, 1.0, 0.0]]
    np.savez(tmp_path / "b.npz", x=np.eye(4), y=[0.0, np.nan, 1.0, 0.0])
    with pytest.raises(DataError, match=r"task\.target=label"):
        Arrays(str(tmp_path / "b.npz"), bad_rows="skip").read()
    found = Arrays(str(tmp_path / "b.npz"), bad_rows="skip").read("label")
    assert found.labels == ["0", "1"] and found.train.y.tolist() == [0, 1, 0]
    data = Pairs([(np.zeros(2), 0), (np.ones(2), -1), (np.zeros(2), 1)])
    for memory in (64, 0):
        kept = from_datasets({"train": data}, "auto", None, memory, ["a", "b"], "test", "skip")
        assert kept.train.y.tolist() == [0, 1] and kept.train.fetch(torch.tensor([1]))["x"].tolist() == [[0.0, 0.0]]


def test_channels_that_may_be_first_or_last_are_asked_for() -> None:
    assert as_inputs(noise(1, 2, 4, 4, 3), "x").shape == (2, 3, 4, 4)  # square only if they are last
    assert as_inputs(noise(1, 2, 3, 4, 4), "x").shape == (2, 3, 4, 4)
    for shape in ((2, 3, 3, 3), (2, 3, 5, 3), (2, 1, 28, 1)):
        with pytest.raises(DataError, match=r"first or last.*task\.data\.layout"):
            as_inputs(noise(1, *shape), "x")
    assert as_inputs(noise(1, 2, 1, 28, 1), "x", usual="last").shape == (2, 1, 1, 28)
