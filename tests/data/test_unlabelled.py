"""A second source without labels: read from what users have, brought to the task's shape, told apart from the task's items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.items import ArrayData
from limbeck.data.printed import Printed
from limbeck.data.sources import Arrays, Digits, Folder
from limbeck.data.unlabelled import Unlabelled, overlap, read_unlabelled, truth_of
from limbeck.errors import ConfigError, DataError
from limbeck.recipe.recipe import build, check, load_tree

LABELS = [str(i) for i in range(10)]


def picture(path: Path, shade: int, side: int = 20) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side + shade % 7), (shade, 255 - shade, 0)).save(path)


def test_a_folder_of_pictures_anywhere(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"found{i}.png", 10 * i)
        picture(tmp_path / "search" / "Five" / f"{i}.jpg", 20 * i, 33)
    pool = read_unlabelled(Folder(str(tmp_path)), (1, 8, 8), ["four", "five"])
    assert len(pool) == 8 and pool.fetch(torch.tensor([0, 7]))["x"].shape == (2, 1, 8, 8)
    assert set(pool.fetch(torch.tensor([0]))) == {"x"}
    assert pool.truth is not None and pool.truth.tolist().count(1) == 4 and pool.truth.tolist().count(-1) == 4
    assert any("brought to the task's" in note for note in pool.notes)


def test_arrays_without_targets(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (6, 12, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "pool.npz", images=x)
    np.save(tmp_path / "alone.npy", x)
    for path in ("pool.npz", "alone.npy"):
        pool = read_unlabelled(Arrays(str(tmp_path / path)), (3, 8, 8), LABELS)
        assert len(pool) == 6 and pool.truth is None and pool.fetch(torch.arange(6))["x"].shape == (6, 3, 8, 8)
    # a task whose images are not square takes them stretched
    assert read_unlabelled(Arrays(str(tmp_path / "pool.npz")), (3, 8, 10), LABELS).fetch(torch.arange(2))["x"].shape[
        2:
    ] == (8, 10)


def test_rows_of_numbers_must_be_as_wide(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.zeros((5, 4), np.float32))
    assert read_unlabelled(Arrays(str(tmp_path / "rows.npz")), (4,), LABELS).fetch(torch.arange(5))["x"].shape == (5, 4)
    for shape in ((3,), (1, 8, 8)):
        with pytest.raises(DataError, match=r"task\.unlabelled.*another kind"):
            read_unlabelled(Arrays(str(tmp_path / "rows.npz")), shape, LABELS)


def test_its_share_and_fingerprint() -> None:
    pool = Unlabelled(ArrayData(torch.rand(50, 3, 4, 4), torch.zeros(50).long()), (3, 4, 4), torch.arange(50))
    part = pool.share(0.1, 0)
    assert len(part) == 5 and part.truth is not None
    assert torch.equal(part.fetch(torch.arange(5))["x"], pool.fetch(part.truth)["x"])
    assert part.fingerprint != pool.fingerprint and pool.share(1.0) is pool
    assert part.fingerprint == pool.share(0.1, 0).fingerprint != pool.share(0.1, 1).fingerprint


def test_items_of_the_task_are_found() -> None:
    digits = Digits().read()
    pool = read_unlabelled(Digits(), (1, 8, 8), digits.labels)
    assert overlap(pool, digits.train) == len(pool)
    assert overlap(read_unlabelled(Printed(items=50), (1, 8, 8), digits.labels), digits.train) == 0
    task: Any = build(check(load_tree("kd", ["task.unlabelled=digits"]))).task
    task.load(0)
    assert any("to the last pixel" in note for note in task.notes)


def test_truth_is_by_name() -> None:
    y = torch.tensor([0, 1, 2])
    found = truth_of(y, ["Tabby-cat", "x", "dog"], ["dog", "tabby cat"])
    assert found is not None and found.tolist() == [1, -1, 0]
    assert truth_of(y, ["a", "b", "c"], ["dog"]) is None and truth_of(None, None, ["dog"]) is None


def test_what_is_drawn_is_the_same_for_a_seed() -> None:
    one, again, other = (Printed(items=60, seed=s).read(size=8).train for s in (0, 0, 1))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    x = one.fetch(torch.arange(60))["x"]
    assert x.min() >= 0 and x.max() <= 1 and int((one.y < 10).sum()) == 18


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["task.unlabelled=folder:/nowhere/at/all"], DataError, r"^task\.unlabelled"),
        (["task.unlabelled=printed", "task.unlabelled.relevant=2"], ConfigError, r"task\.unlabelled.*relevant"),
        (["task.unlabelled=printed", "task.unlabelled.items=0"], ConfigError, "items"),
        (["task.unlabelled=nothing"], ConfigError, r"task\.unlabelled"),
    ],
)
def test_what_cannot_be_read_is_a_fault_of_the_pool(words: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        build(check(load_tree("kd", words))).task.load(0)


def test_tasks_without_use_for_it_say_so() -> None:
    with pytest.raises(ConfigError, match=r"task\.unlabelled"):
        build(check(load_tree("fair-data", ["task.unlabelled=printed"])))
