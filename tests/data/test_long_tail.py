"""Training items made rare by class, test items left alone; which classes are the tail."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.long_tail import LongTailed, long_tailed
from limbeck.data.printed import Printed
from limbeck.data.sources import Digits
from limbeck.errors import DataError, LimbeckError
from limbeck.functional.metrics import frequency_groups
from limbeck.recipe.recipe import build, check, load_tree


def test_sizes_fall_by_a_constant_factor() -> None:
    y = torch.arange(4).repeat(80)[torch.randperm(320)]
    kept = long_tailed(y, 4, 27)
    assert torch.bincount(y[kept]).tolist() == [80, 27, 9, 3]
    assert torch.equal(kept, kept.unique()) and torch.equal(kept, long_tailed(y, 4, 27))
    assert torch.bincount(y[long_tailed(y, 4, 1)]).tolist() == [80] * 4
    assert torch.bincount(y[long_tailed(y, 4, 1e6)]).min() == 1
    other = torch.bincount(y[long_tailed(y, 4, 27, deal=3)])
    assert sorted(other.tolist()) == [3, 9, 27, 80] and other.tolist() != [80, 27, 9, 3]
    few = torch.tensor([0] * 10 + [1] * 2 + [2] * 10)
    assert torch.bincount(few[long_tailed(few, 3, 2)]).tolist() == [10, 2, 5], "no more than there are"


def test_test_and_validation_items_stay() -> None:
    whole, tail = Digits().divided("label"), LongTailed(ratio=20).divided("label")
    assert whole.valid and whole.test and tail.valid and tail.test
    assert torch.equal(tail.test.y, whole.test.y) and torch.equal(tail.valid.y, whole.valid.y)
    sizes = torch.bincount(tail.train.y)
    assert sizes[0] == torch.bincount(whole.train.y)[0] and sizes[9] == round(int(sizes[0]) / 20)
    assert any("ratio 20" in n for n in tail.notes) and sum("items of each class" in n for n in tail.notes) == 1
    x = tail.train.fetch(torch.arange(3))["x"]
    assert any(torch.equal(x[0], p) for p in whole.train.fetch(torch.arange(len(whole.train)))["x"])
    undivided = LongTailed(Printed(items=300), ratio=10).divided("label")  # no test split: set aside before
    assert undivided.test is not None and torch.equal(undivided.test.y, Printed(items=300).divided("label").test.y)  # type: ignore[union-attr]


def test_a_long_tail_needs_classes() -> None:
    with pytest.raises(DataError, match="items of one class each"):
        LongTailed().read("number")


def test_groups_by_frequency() -> None:
    found = frequency_groups(torch.tensor([5, 0, 500, 60, 21, 100]), (20, 100))
    assert {k: v.tolist() for k, v in found.items()} == {"head": [2], "medium": [3, 4, 5], "tail": [0]}
    assert frequency_groups(torch.tensor([9, 8, 7])) == {} and frequency_groups(torch.tensor([9, 0, 1])) == {}
    thirds = frequency_groups(torch.tensor([1, 50, 20, 3]))
    assert {k: v.tolist() for k, v in thirds.items()} == {"head": [1, 2], "medium": [3], "tail": [0]}
    with pytest.raises(LimbeckError, match="number for each class"):
        frequency_groups(torch.ones(2, 2))
    with pytest.raises(LimbeckError, match="two numbers in order"):
        build(check(load_tree("kd", ["task={use: classification, shots: [100, 20]}"])))
