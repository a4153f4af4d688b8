"""InfoNCE and mixed channel statistics: limits, identities, gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as nf

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.contrast import channel_statistics, info_nce, mix_distribution
from limbeck.functional.feature import unit

G = torch.Generator().manual_seed(0)


def some(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def test_info_nce_is_a_cross_entropy_of_cosines() -> None:
    q, k = some(6, 4), some(6, 4)
    want = nf.cross_entropy(unit(q) @ unit(k).T / 0.3, torch.arange(6), reduction="none")
    torch.testing.assert_close(info_nce(q, k, temperature=0.3), want)
    torch.testing.assert_close(info_nce(q * 7, k / 3, temperature=0.3), want)  # lengths say nothing
    at = torch.tensor([5, 0])
    torch.testing.assert_close(info_nce(q[at], k, at, temperature=0.3), want[at])
    assert info_nce(torch.ones(4, 3), torch.ones(4, 3)).tolist() == pytest.approx([math.log(4)] * 4)
    masked = info_nce(q, k, temperature=0.3, where=torch.arange(6) < 2)
    assert masked[2:].eq(0).all() and torch.equal(masked[:2], info_nce(q, k, temperature=0.3)[:2])
    assert torch.autograd.gradcheck(
        lambda a, b: info_nce(a, b, temperature=0.5), (q.requires_grad_(), k.requires_grad_())
    )


def test_own_statistics_change_nothing_and_others_are_taken_over() -> None:
    x = some(5, 3, 4, 6)
    own, other = torch.arange(5), torch.tensor([1, 2, 3, 4, 0])
    members = torch.stack([own, other], 1)
    lam = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(mix_distribution(x, torch.stack([lam, 1 - lam], 1), members), x)
    lam = torch.rand(5, generator=G, dtype=torch.float64)
    mixed = mix_distribution(x, torch.stack([lam, 1 - lam], 1), members, eps=0)
    mean, std = channel_statistics(x, eps=0)
    w = lam[:, None]
    torch.testing.assert_close(mixed.mean((2, 3)), w * mean + (1 - w) * mean[other])
    torch.testing.assert_close(mixed.flatten(2).std(2), w * std + (1 - w) * std[other])
    # statistics of a larger batch, several members
    weights = torch.rand(2, 3, generator=G, dtype=torch.float64)
    weights = weights / weights.sum(1, keepdim=True)
    among = torch.tensor([[3, 0, 1], [4, 4, 2]])
    part = mix_distribution(x[3:], weights, among, (mean, std), eps=0)
    torch.testing.assert_close(part.mean((2, 3)), (weights[..., None] * mean[among]).sum(1))


def test_statistics_carry_no_gradient() -> None:
    x = some(2, 2, 3, 3).requires_grad_()
    weights, members = torch.tensor([[0.3, 0.7]] * 2), torch.tensor([[0, 1], [1, 0]])
    (grad,) = torch.autograd.grad(mix_distribution(x, weights, members).sum(), x)
    _, std = channel_statistics(x)
    new = weights[:, :1] * std + weights[:, 1:] * std.flip(0)
    torch.testing.assert_close(grad, (new / std)[..., None, None].expand_as(grad).to(grad.dtype))
    flat = mix_distribution(torch.ones(2, 1, 3, 3), weights, members)
    torch.testing.assert_close(flat, torch.ones(2, 1, 3, 3))  # a constant channel stays finite


@pytest.mark.parametrize(
    ("error", "said", "call"),
    [
        (ConfigError, "temperature", lambda: info_nce(torch.ones(2, 2), torch.ones(2, 2), temperature=0)),
        (ShapeError, "two or more", lambda: info_nce(torch.ones(1, 2), torch.ones(1, 2))),
        (ShapeError, "positives", lambda: info_nce(torch.ones(2, 2), torch.ones(3, 2))),
        (ShapeError, "query", lambda: info_nce(torch.ones(2, 2), torch.ones(2, 3))),
        (ShapeError, "two or more positions", lambda: channel_statistics(torch.ones(2, 3, 1, 1))),
        (
            ShapeError,
            "weights",
            lambda: mix_distribution(torch.ones(2, 3, 2, 2), torch.ones(2, 2), torch.ones(1, 2).long()),
        ),
    ],
)
def test_what_cannot_be(error: type[Exception], said: str, call: Any) -> None:
    with pytest.raises(error, match=said):
        call()
