"""Blocks made smaller: losses, importance and first weights do what their formulas say."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.blocks import (
    AttentionWeights,
    batch_scores,
    init_ffn,
    init_kv,
    iterative_channels,
    linear_attention,
    linear_ffn,
    normalized_mse,
    pruning_schedule,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mode", ["tensor", "token", "sample"])
def test_a_blocks_loss_is_zero_at_equality_blind_to_scale_and_to_what_does_not_count(mode: str) -> None:
    c, p = draw(2, 5, 4).requires_grad_(), draw(2, 5, 4, seed=1)
    where = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return normalized_mse(x, y, mode=mode, where=where)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(lambda x: loss(x, p), (c,))
    assert not loss(p, p).any()
    torch.testing.assert_close(loss(c * 1e3, p * 1e3), loss(c, p), rtol=1e-4, atol=0)
    poisoned = torch.where(where[..., None], c, torch.full_like(c, float("nan")))
    torch.testing.assert_close(loss(poisoned, p), loss(c, p))
    with pytest.raises(ShapeError):
        normalized_mse(c, p[:1])


def test_the_iterative_rank_keeps_what_the_output_needs() -> None:
    # two channels that undo each other add nothing together: the first to go takes the other with it
    w = torch.tensor([[1.0, -1.0, 0.3], [0.0, 0.0, 0.0]])
    x = torch.ones(1, 3)
    assert iterative_channels(w, [x, x, x]).order[0] == 2
    assert pruning_schedule(7, 3) == [3, 2, 2]
    kept = iterative_channels(draw(4, 6), [draw(8, 6, seed=s) for s in (1, 2)], [2, 1])
    assert sorted(kept.order.tolist()) == list(range(6))
    assert torch.equal(kept.rank[kept.order], torch.arange(6))
    with pytest.raises(ConfigError, match="a number for each of 1 batches"):
        iterative_channels(w, [x], [1, 1])


def attend(weights: AttentionWeights, x: Tensor, d: int) -> Tensor:
    """A plain causal attention with shared KV heads."""
    q, k, v = (torch.nn.functional.linear(x, w).unflatten(-1, (-1, d)).movedim(-2, 1) for w in weights[:3])
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return torch.nn.functional.linear(out.movedim(1, -2).flatten(-2), weights.o)


def test_first_weights_of_an_attention() -> None:
    parent = AttentionWeights(draw(12, 5), draw(6, 5, seed=1), draw(6, 5, seed=2), draw(5, 12, seed=3))  # 4 heads, 2 kv
    x = draw(2, 7, 5, seed=4)
    more = init_kv(parent, 4, head_dim=3, how="repeat")
    torch.testing.assert_close(attend(more, x, 3), attend(parent, x, 3))
    # pruned, the child answers as the parent whose dropped head's queries are silent
    least = torch.tensor([0.1, 0.9])
    pruned = init_kv(parent, 1, head_dim=3, how="prune", importance=least)
    silent = parent._replace(o=parent.o * torch.tensor([0.0] * 6 + [1.0] * 6))
    torch.testing.assert_close(attend(pruned, x, 3), attend(silent, x, 3))
    for how in ("average", "first"):
        same = init_kv(parent, 2, head_dim=3, how=how)
        assert all(torch.equal(a, b) for a, b in zip(same, parent, strict=True))
    # a sequence of one token sees itself alone: the linear layer is then exact
    torch.testing.assert_close(
        x[:, :1] @ linear_attention(parent.v, parent.o, head_dim=3).T, attend(parent, x[:, :1], 3)
    )
    for wrong in ({"kv_heads": 3}, {"kv_heads": 1, "how": "repeat"}, {"kv_heads": 1, "how": "prune"}):
        with pytest.raises(ConfigError):
            init_kv(parent, head_dim=3, **wrong)


def test_first_weights_of_a_feed_forward_layer() -> None:
    up, gate, down, score = draw(6, 4), draw(6, 4, seed=1), draw(4, 6, seed=2), draw(6, seed=3)
    x = draw(3, 4, seed=4)

    def ffn(u: Tensor, g: Tensor, d: Tensor) -> Tensor:
        return (torch.nn.functional.silu(x @ g.T) * (x @ u.T)) @ d.T

    a, b, c = init_ffn(up, down, score, 6, gate=gate)
    assert c is not None
    torch.testing.assert_close(ffn(a, c, b), ffn(up, gate, down))  # a permutation
    assert torch.equal(init_ffn(up, down, score, 3, scale=True)[1], 2 * init_ffn(up, down, score, 3)[1])
    torch.testing.assert_close(x @ linear_ffn(up, down).T, (x @ up.T) @ down.T)
    with pytest.raises(ConfigError, match="1 to the parent's 6 channels"):
        init_ffn(up, down, score, 7)


def test_scores_count_what_counts() -> None:
    z, p, y = draw(2, 4, 9), draw(2, 4, 9, seed=1), torch.tensor([[1, 2, -1, -1], [0, 3, 4, 8]])
    paper, released = (batch_scores(z, p, y, z, p, variant=v) for v in ("paper", "released"))
    for name, value in batch_scores(p, p, y, p, p).items():
        if name.startswith(("kl", "js", "tv", "mse", "cos", "norm")):
            assert value.abs().max() < 1e-6, name
    torch.testing.assert_close(released["lm_loss"][0], paper["lm_loss"][0] / 2)
    torch.testing.assert_close(released["kl_div"][1], paper["kl_div"][1])
    short = batch_scores(z[:1, :2], p[:1, :2], y[:1, :2], z[:1, :2], p[:1, :2])
    for name in paper:
        torch.testing.assert_close(paper[name][:1], short[name])
    assert all(bool((released[f"token_accuracy_top_{a}"] <= released[f"token_accuracy_top_{b}"]).all())
               for a, b in itertools.pairwise((1, 5, 10)))  # fmt: skip
