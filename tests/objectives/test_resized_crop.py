"""Crops whose boxes are in the batch: keyed, replayed, taken from where they are recorded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from limbeck.errors import ConfigError
from limbeck.functional.views import crop_all
from limbeck.grammar.random import Draws
from limbeck.objectives.queries import ResizedCrop
from limbeck.tasks.classification import Classification

CTX: Any = SimpleNamespace(draws=Draws(0, ("distil", 3)))


def batch(items: list[int], view: int = 0) -> dict[str, Any]:
    item = torch.tensor(items)
    x = torch.stack([torch.arange(64.0).reshape(1, 8, 8) * (i + 1) for i in items])
    return {"x": x, "item": item, "view": torch.full_like(item, view)}


def test_the_part_that_is_shown_is_the_one_that_is_told() -> None:
    made = ResizedCrop(0.2, 0.6)(batch([3, 5, 8]), CTX)
    assert made["box"].shape == (3, 4) and made["x"].shape == (3, 1, 8, 8)
    for i, box in enumerate(made["box"].tolist()):
        top, left, height, width = box
        assert top >= 0 and top + height <= 8 and left >= 0 and left + width <= 8
        assert 0.1 < height * width / 64 < 0.75
        expected = crop_all(batch([3, 5, 8])["x"][i : i + 1], tuple(box), (8, 8))[0]
        torch.testing.assert_close(made["x"][i], expected, rtol=1e-4, atol=1e-3)


def test_draws_are_the_items_and_views_repeat() -> None:
    query = ResizedCrop(views=2)
    one = query(batch([3, 5, 8]), CTX)["box"]
    assert torch.equal(query(batch([8, 3]), CTX)["box"], one[[2, 0]])
    assert torch.equal(query(batch([3, 5, 8], view=2), CTX)["box"], one)
    assert not torch.equal(query(batch([3, 5, 8], view=1), CTX)["box"], one)


def test_recorded_boxes_are_shown_again() -> None:
    first = ResizedCrop()(batch([3, 5]), CTX)
    again = ResizedCrop()({**batch([3, 5], view=7), "box": first["box"]}, CTX)
    assert torch.equal(again["box"], first["box"]) and torch.equal(again["x"], first["x"])


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="lowest must be above 0"):
        ResizedCrop(0.9, 0.5)
    with pytest.raises(ConfigError, match="resized-crop"):
        from limbeck.data.tables import ScikitTable

        rows = Classification(ScikitTable())
        rows.load()
        ResizedCrop().accept(rows)
    pictures = Classification()
    pictures.load()
    ResizedCrop().accept(pictures)
