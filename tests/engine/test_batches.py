"""Loader processes: the same batches from any number of them, and none where the data can't be sent."""

from __future__ import annotations

import logging
import multiprocessing
from typing import Any

import pytest
import torch

from limbeck.data.arrays import CalledItems
from limbeck.data.items import ArrayData, Part
from limbeck.engine import batches
from limbeck.engine.batches import able


class Own:
    """A data set that holds a lambda, as many do."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return self.change(torch.ones(2)), i % 2


class Plan:
    def __init__(self, data: Any) -> None:
        self.data = data


def double(x: Any) -> Any:
    return 2 * x


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_said", set())
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")


def called(change: Any) -> Any:
    y = torch.tensor([0, 1, 0, 1])
    return Part(CalledItems(Own(change), y, None, (2,), "mark"), torch.arange(4))


def test_what_cannot_be_sent_is_fetched_here_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "limbeck.engine"):
        plan = Plan(called(lambda x: 2 * x))
        assert (able(plan, 2), able(plan, 2), able(plan, 0)) == (0, 0, 0)
    (said,) = [r.getMessage() for r in caplog.records]
    assert said.startswith("engine.workers: Own can't be sent") and "lambda" in said and "workers=0" in said


def test_what_can_be_sent_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert able(Plan(called(double)), 2) == 2
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "fork")
    assert able(Plan(called(lambda x: x)), 2) == 2  # forked processes inherit it


def test_numbers_are_not_copied_to_try_it() -> None:
    class Heavy(torch.Tensor):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise AssertionError("a tensor was pickled")

    heavy = torch.zeros(4, 2).as_subclass(Heavy)
    assert able(Plan(ArrayData(heavy, torch.zeros(4, dtype=torch.long), "mark")), 3) == 3
