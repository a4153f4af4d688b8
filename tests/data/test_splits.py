"""Three splits, none empty, and what is said of them: what was set aside, how many items each class has, which it lacks."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.items import ArrayData, Splits, as_path
from limbeck.data.names import choose_splits, composed, is_blank, look_up, plain, some, split_of
from limbeck.data.splits import ready, sizes_of, tell_classes
from limbeck.errors import DataError


def items(y: list[int]) -> ArrayData:
    return ArrayData(torch.rand(len(y), 2), torch.tensor(y))


def test_what_is_set_aside_is_said() -> None:
    found = ready(Splits(items([0, 1] * 10 + [2]), None, None, ["ant", "bee", "cow"], "label"), 0.1, 0.2)
    assert (len(found.train), len(found.valid or []), len(found.test or [])) == (15, 2, 4)
    assert found.notes[:2] == [
        "no test split: 4 of 21 items set aside for evaluation (task.test_fraction=0.2)",
        "no validation split: 2 of 17 training items set aside for choosing (task.valid_fraction=0.1)",
    ]
    assert found.notes[2] == "items of each class (train + valid + test): ant 7 + 1 + 2, bee 7 + 1 + 2, cow 1 + 0 + 0"
    assert found.notes[3] == "no test item has the class cow: the result says nothing of it"
    assert sizes_of(found) == {"train": [7, 7, 1], "valid": [1, 1, 0], "test": [2, 2, 0]}


def test_given_splits_stay_and_classes_without_training_items_are_said() -> None:
    found = ready(Splits(items([0, 1, 0]), items([0]), items([0, 1, 2]), ["a", "b", "c"], "label"), 0.1, 0.2)
    assert (len(found.train), len(found.valid or []), len(found.test or [])) == (3, 1, 3)
    assert found.notes == [
        "items of each class (train + valid + test): a 2 + 1 + 1, b 1 + 0 + 1, c 0 + 0 + 1",
        "no training item has the class c",
    ]


def test_declared_classes_do_not_vanish() -> None:
    held = Splits(items([0, 1] * 6), items([0]), items([1]), ["a", "b", "c", "d"], "label", declared=True)
    with pytest.raises(DataError, match=r"2 classes of 4 without any item: c, d.*task\.empty_classes=keep"):
        ready(held, 0.1, 0.2, "error")
    with pytest.raises(DataError) as error:
        ready(held, 0.1, 0.2)
    assert "empty_classes" not in str(error.value)
    assert ready(held, 0.1, 0.2, "keep").labels == ["a", "b", "c", "d"]
    held.declared = False
    assert ready(held, 0.1, 0.2, "error").labels == ["a", "b", "c", "d"]
    several = Splits(ArrayData(torch.rand(4, 2), torch.tensor([[1.0, 0.0]] * 4)), None, None, ["a", "b"], "labels")
    several.declared = True
    with pytest.raises(DataError, match="1 class of 2 without any item: b"):
        ready(several, 0.3, 0.3, "error")


def test_many_classes_are_told_in_short_and_like_names_are_named() -> None:
    labels = [f"c{i}" for i in range(40)]
    said = tell_classes(labels, {"train": [3] * 39 + [7], "test": [1] * 39 + [0]})
    assert said == [
        "40 classes; items of each: train 3 to 7, test 0 to 1",
        "no test item has the class c39: the result says nothing of it",
    ]
    assert "'Cat' and 'cat'" in tell_classes(["Cat", "cat", "dog"], {"train": [1, 1, 1]})[1]
    assert tell_classes([], {}) == []


# --------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train_sft", "train"),
        ("val2017", "valid"),
        ("test-00000-of-00004", "test"),
        ("validation.clean", "valid"),
        ("Training set", "train"),
        ("my_test", "test"),
        ("train_test", ""),
        ("the-train-journey", ""),
        ("contest", ""),
        ("extra", ""),
    ],
)
def test_the_split_that_a_name_speaks_of(name: str, split: str) -> None:
    assert split_of(name) == split


def test_splits_of_a_library_are_joined_chosen_and_named() -> None:
    sizes = {"train_sft": 60, "test_sft": 12, "train_gen": 50, "test_gen": 10, "rest": 7}
    found, notes = choose_splits(sizes, {})
    assert found == {"train_sft": "train", "test_sft": "test", "train_gen": "train", "test_gen": "test"}
    assert notes == [
        "train is train_sft (60) and train_gen (50)",
        "test is test_sft (12) and test_gen (10)",
        "not read: split rest (7)",
    ]
    found, notes = choose_splits(sizes, {"train": "rest", "valid": None, "test": "test_gen"})
    assert found == {"rest": "train", "test_gen": "test"} and notes == [
        "not read: splits train_sft (60), test_sft (12), train_gen (50)"
    ]
    # a split that is called train is no part of another
    assert choose_splits({"train": 5, "train_extra": 9}, {})[0] == {"train": "train"}
    with pytest.raises(DataError, match=r"called train.*task\.data\.train=SPLIT"):
        choose_splits({"test": 5, "rest": 3}, {})
    with pytest.raises(DataError, match="did you mean 'train_sft'"):
        choose_splits(sizes, {"train": "train_stf"})


def test_names_are_compared_composed() -> None:
    apart = unicodedata.normalize("NFD", "Ångelholm")
    assert composed(apart) == "Ångelholm" != apart and plain(f"\u200b {apart}\ufeff\n") == "Ångelholm"
    assert is_blank("\t\u200b\u00a0") and not is_blank("\u200bx") and some(list("abcd"), 3) == "a, b, c and 1 more"


def test_a_path_is_found_in_the_form_in_which_it_lies_on_disk(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "Malmö")
    (tmp_path / apart / "é").mkdir(parents=True)
    assert look_up(tmp_path / "Malmö" / "é") == tmp_path / apart / "é"
    assert as_path(str(tmp_path / "Malmö"), "x").is_dir()
    assert look_up(tmp_path / "Malmö" / "ü") == tmp_path / apart / "ü"


def test_a_report_lists_the_classes() -> None:
    from limbeck.report.page import _classes

    result: dict[str, Any] = {"labels": ["a", "b"], "class_items": {"train": [3, 2], "test": [1, 0]}}
    assert _classes(result) == {"head": ["train", "test"], "rows": [("a", [3, 1]), ("b", [2, 0])], "more": 0}
    assert _classes({}) == {} == _classes({"labels": None, "class_items": {}})
