"""What a step holds in memory: against arithmetic."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine.memory import Memory, Watch, held
from limbeck.engine.unaided import Unaided
from tests.toy import Toy, bound, engine, network

WIDE = 400


def wide() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, 3))


def planned(method: Any = None, **settings: Any) -> Memory:
    bound_ = bound(method or Unaided(), student=wide(), batch_size=64, optimizer="adam")
    run = engine(**settings)
    run.prepare(bound_)
    found = next(iter(run.time_steps(bound_, 1).values())).memory
    assert found is not None
    return found


@pytest.mark.parametrize(("settings", "parts"), [({}, 1), ({"accumulate": 4}, 4), ({"devices": 2}, 2)])
def test_a_step_holds_what_arithmetic_says(settings: dict[str, int], parts: int) -> None:
    found = planned(**settings)
    weights = sum(p.numel() for p in wide().parameters())
    items = 64 // parts
    assert found.parameters == found.gradients == 4 * weights
    assert found.optimiser == pytest.approx(8 * weights, abs=100)  # two moments, and a counter for each tensor
    # the input, what both tanh gave (which the linear layers behind them share), log-probabilities and labels
    assert found.activations == pytest.approx(4 * items * (6 + 2 * WIDE + 3 + 2), rel=0.02)
    assert found.shown == {"student": [items, 3]} and found.outputs == 4 * items * 3
    least = found.parameters + found.optimiser + found.gradients
    assert least < found.peak < least + found.gradients + 3 * found.activations


def test_every_participant_counts_and_averages_too() -> None:
    found = planned(Toy())
    teacher = sum(p.numel() for p in network(7, seed=1).parameters())
    weights = sum(p.numel() for p in wide().parameters())
    assert found.parameters == 4 * (2 * weights + teacher)
    assert found.gradients == 4 * weights
    assert set(found.shown) == {"student", "teacher", "mean"}


def test_what_is_split_is_a_share_and_the_largest_block() -> None:
    whole, split = planned(devices=2), planned(devices=2, shard=("student",))
    largest = 4 * (WIDE * WIDE + WIDE)
    assert split.gradients == whole.gradients // 2 and split.optimiser == -(-whole.optimiser // 2)
    assert split.parameters == whole.parameters // 2 + largest
    assert split.activations == whole.activations
    assert split.peak < whole.peak


def test_what_is_freed_is_not_counted_again() -> None:
    net = wide()
    x = torch.randn(64, 6)
    peaks = []
    for passes in (1, 3):
        with Watch(torch.device("cpu"), [net]) as watch:
            for _ in range(passes):
                net(x).square().sum().backward()
                net.zero_grad()
                gc.collect()
        peaks.append((watch.saved, watch.peak))
    assert peaks[0] == peaks[1]
    with Watch(torch.device("cpu"), [net]) as watch:
        both = net(x).square().sum() + net(x).square().sum()
    # but for the input, which both passes share
    assert watch.saved == pytest.approx(2 * peaks[0][0] - 4 * x.numel(), rel=0.01)
    del both


def test_storages_are_followed_until_they_go() -> None:
    with Watch(torch.device("cpu"), []) as watch:
        for _ in range(5):
            kept = torch.zeros(1000)
            kept.add_(1.0)
            view = kept[10:].reshape(-1)
            del kept, view
        two = torch.zeros(500), torch.zeros(500)
    assert watch.peak == 4000
    assert held([two[0], two[0][5:], two[1]]) == 4000
