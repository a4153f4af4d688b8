"""What lies in one memory, and which statistics stand still."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from limbeck.errors import ConfigError, TapError
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import Tap, frozen_statistics, refuse_shared, shared_tensors, train_mode


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_what_training_would_move_in_both_is_found_by_memory_not_by_name() -> None:
    one, two = net(), net()
    assert not shared_tensors(one, two)
    two[2].weight = one[2].weight
    assert shared_tensors(one, two) == [("2.weight", "2.weight")]
    assert shared_tensors(one, nn.Sequential(two)) == [("2.weight", "0.2.weight")]
    two[2].weight = nn.Parameter(one[2].weight.detach()[:1])  # another object, a view of the same numbers
    assert shared_tensors(one, two) == [("2.weight", "2.weight")]
    one[2].weight.requires_grad_(False)  # nobody moves what is frozen
    assert not shared_tensors(one, two)
    two[1] = one[1]
    names = ("1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert shared_tensors(one, two) == [(n, n) for n in names]
    one[1].requires_grad_(False)  # its statistics are kept too
    assert not shared_tensors(one, two)
    assert not shared_tensors(net(), copy.deepcopy(net())) and not shared_tensors(nn.ReLU(), nn.ReLU())
    flat = torch.zeros(8)  # neighbours in one storage are not shared
    one[2].bias, two[2].bias = nn.Parameter(flat[:2]), nn.Parameter(flat[2:4])
    assert not shared_tensors(one, two)


def test_the_message_names_what_is_shared() -> None:
    one, two = net(), net()
    two[0] = one[2]
    with pytest.raises(ConfigError) as caught:
        refuse_shared(one, two)
    assert "shares 2 tensors with the teacher: '2.weight' is the teacher's '0.weight'" in caught.value.line()


def test_statistics_stand_still_where_the_weights_around_them_do() -> None:
    made = net()
    assert frozen_statistics(made) == []
    made[1].requires_grad_(False)
    assert frozen_statistics(made) == [made[1]]
    bare = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)), nn.Linear(4, 2))
    assert frozen_statistics(bare) == []
    bare[0].requires_grad_(False)
    assert frozen_statistics(bare) == [bare[0][1]]
    train_mode(bare)
    assert bare.training and bare[0].training and not bare[0][1].training
    train_mode(bare, keep_statistics=False)
    assert bare[0][1].training


class Twice(nn.Module):
    """A head that runs over two maps, and returns both."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) + self.head(x[:1] * 2)


def test_a_module_that_runs_several_times_shows_every_call() -> None:
    net, x = Twice(), torch.randn(3, 4)
    tap = Tap(net, ["head", "head:all", "head:0", "head:in:all", "head:in:1"])
    for _ in range(2):  # nothing is left over from the pass before
        with tap:
            net(x)
    first, second = tap.acts["head:all"]
    assert torch.equal(first, net.head(x)) and torch.equal(second, net.head(x[:1] * 2))
    assert torch.equal(tap.acts["head:0"], first) and torch.equal(tap.acts["head"], second)
    assert torch.equal(tap.acts["head:in:1"], x[:1] * 2) and len(tap.acts["head:in:all"]) == 2
    with pytest.raises(TapError, match=r"ran 2 times.*a number up to 1"), Tap(net, ["head:2"]):
        net(x)
    with pytest.raises(TapError, match="did you mean 'head'"):
        Tap(net, ["heda:all"])


def test_a_contract_acts_on_its_own_input() -> None:
    batch = {"x": torch.ones(2, 1, 2, 2), "depth": torch.ones(2, 1, 2, 2), "ids": torch.ones(2, dtype=torch.long)}
    fed = Contract(mean=(0.5,), std=(0.5,), key="depth").feed(batch)
    assert fed["x"] is batch["x"] and torch.equal(fed["depth"], torch.ones(2, 1, 2, 2))
    assert torch.equal(Contract(mean=(1.0,), std=(1.0,)).feed(batch)["x"], torch.zeros(2, 1, 2, 2))
    assert Contract(key="other").feed(batch) is batch and batch["x"].max() == 1
    assert Contract(mean=(1.0,), std=(1.0,), key="ids").feed(batch)["ids"].dtype == torch.long
