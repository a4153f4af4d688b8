"""Runs of tokens as a text classifier: a slow count says the same, padding changes nothing, word order is seen."""

from __future__ import annotations

import pytest
import torch

from limbeck.models.ngrams import _PRIMES, NgramNet, Ngrams


def slow(net: NgramNet, row: list[int]) -> torch.Tensor:
    """The sum over runs, one by one."""
    keys = [
        (sum(t * p for t, p in zip(row[i : i + n], _PRIMES, strict=False)) + 7919 * n) % net.buckets
        for n in range(1, net.longest + 1)
        for i in range(len(row) - n + 1)
    ]
    return net.gain * net.weight(torch.tensor(keys)).sum(0) / len(keys) ** 0.5 + net.bias


def test_logits_are_the_sum_over_runs_however_rows_are_padded() -> None:
    net = NgramNet(2, 3, 97, pad=0, gain=2.0).eval()
    torch.nn.init.normal_(net.weight.weight)
    rows = [[5, 9, 9, 4, 2], [7, 3]]
    padded = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
    found = net(padded)
    for row, mine in zip(rows, found, strict=True):
        assert torch.allclose(mine, slow(net, row), atol=1e-5)
    assert torch.allclose(net(torch.tensor([[7, 3]])), found[1:], atol=1e-6)
    assert not torch.allclose(net(torch.tensor([[3, 7]])), found[1:])  # another order is another text
    bag = NgramNet(2, 1, 97, pad=0)
    torch.nn.init.normal_(bag.weight.weight)
    assert torch.allclose(bag(torch.tensor([[7, 3]])), bag(torch.tensor([[3, 7]])))


@pytest.mark.parametrize(
    ("given", "said"),
    [({"longest": 4}, "longest"), ({"buckets": 1}, "buckets"), ({"dropout": 1.0}, "dropout"), ({"gain": 0.0}, "gain")],
)
def test_settings_out_of_range_are_refused(given: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        Ngrams(**given)  # type: ignore[arg-type]
