"""Timing in turns: every call as often, warm, in both orders, with its quartiles."""

from __future__ import annotations

import time

import pytest
import torch

from limbeck.networks import costs


def test_calls_take_turns_and_warm_up_first() -> None:
    seen: list[str] = []
    found = costs.in_turns({n: lambda n=n: seen.append(n) for n in "ab"}, torch.device("cpu"))
    rounds = found["a"].rounds
    assert costs.ROUNDS[0] <= rounds == found["b"].rounds <= costs.ROUNDS[1]
    assert "".join(seen) == "ab" * 3 + ("abba" * rounds)[: 2 * rounds], "three rounds to warm up, then to and fro"


def test_quartiles_hold_the_median_and_a_slower_call_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "ROUNDS", (9, 9))
    found = costs.in_turns({"slow": lambda: time.sleep(0.003), "fast": lambda: None}, torch.device("cpu"))
    slow, fast = found["slow"], found["fast"]
    assert slow.low <= slow.median <= slow.high and slow.low >= 3.0 > fast.high


def test_calls_of_seconds_are_repeated_seldom_and_each_round_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "LONG", (0.0, 0.01))
    told: list[int] = []
    found = costs.in_turns({"a": lambda: time.sleep(0.006)}, torch.device("cpu"), lambda: told.append(1))
    assert found["a"].rounds == costs.FEWEST and len(told) == costs.FEWEST + 1, "one round warms it"
