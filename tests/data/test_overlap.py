"""Images that two sets share are counted by content."""

from __future__ import annotations

import torch

from limbeck.data.items import ArrayData
from limbeck.data.sources import Digits
from limbeck.data.unlabelled import Unlabelled, overlap


def test_only_equal_images_count() -> None:
    splits = Digits().read()
    train, test = splits.train, splits.test
    assert test is not None
    x, y = (d.fetch(torch.arange(len(d)))["x"].flatten(1) for d in (train, test))
    expected = int((torch.cdist(x, y).amin(1) == 0).sum())
    assert overlap(Unlabelled(train, train.shape), test) == expected == 0
    both = ArrayData(torch.cat([x[:3], y[5:9]]), torch.zeros(7))
    assert overlap(Unlabelled(both, (64,)), ArrayData(y, torch.zeros(len(y)))) == 4
