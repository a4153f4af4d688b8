"""Difference sampling, pooling of tokens, weights of exits, attention scores, symmetric InfoNCE."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional.attention import score_distance
from limbeck.functional.contrast import info_nce, paired_info_nce
from limbeck.functional.corpora import difference_scores, highest_share
from limbeck.functional.exits import exit_weights
from limbeck.functional.pooling import pool_choices, pool_tokens, unexplained_variance


def test_difference_sampling_on_the_dossier_s_example() -> None:
    scores = difference_scores(torch.tensor([1.0, 3.0, 2.0, 4.0]), torch.tensor([1.2, 4.5, 3.5, 4.1]))
    torch.testing.assert_close(scores, torch.tensor([0.2, 1.5, 1.5, 0.1]))
    assert highest_share(scores, 0.5).tolist() == [1, 2]


def test_a_share_is_the_highest_scores_in_the_order_of_the_corpus() -> None:
    scores = torch.randn(101, generator=torch.Generator().manual_seed(0))
    for share in (0.01, 0.3, 0.5, 1.0):
        kept = highest_share(scores, share)
        assert len(kept) == int(share * 101) and kept.tolist() == sorted(kept.tolist())
        rest = scores[~torch.isin(torch.arange(101), kept)]
        assert not len(rest) or scores[kept].min() >= rest.max()
    assert highest_share(torch.zeros(6), 0.5).tolist() == [0, 1, 2]  # of equal scores the first


def test_scores_that_cannot_be_used_are_rejected() -> None:
    with pytest.raises(ShapeError, match="same corpus"):
        difference_scores(torch.zeros(3), torch.zeros(4))
    with pytest.raises(DataError, match="chunks 1 are not"):
        difference_scores(torch.tensor([0.0, math.nan]), torch.zeros(2))
    for share in (0.0, 1.1):
        with pytest.raises(ConfigError, match="share"):
            highest_share(torch.zeros(3), share)
    with pytest.raises(DataError, match="keeps nothing"):
        highest_share(torch.zeros(3), 0.1)
    with pytest.raises(ShapeError, match="one score per chunk"):
        highest_share(torch.zeros(3, 1), 0.5)


@pytest.mark.parametrize("left", [False, True])
def test_pooling_ignores_padding_on_either_side(left: bool) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    junk = torch.full((2, 2, 4), 1e6, dtype=torch.float64)
    ones, none = torch.ones(2, 3), torch.zeros(2, 2)
    hidden = torch.cat([junk, x] if left else [x, junk], 1)
    mask = torch.cat([none, ones] if left else [ones, none], 1)
    torch.testing.assert_close(pool_tokens(hidden, mask), x.mean(1))
    torch.testing.assert_close(pool_tokens(hidden, mask, "first"), x[:, 0])
    torch.testing.assert_close(pool_tokens(hidden, mask, "last"), x[:, -1])


def test_pooled_choices_against_a_loop_and_gradcheck() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, 3, dtype=torch.float64, generator=draw, requires_grad=True)
    where = torch.rand(2, 5, 2, generator=draw) < 0.6
    where[:, 0] = True
    found = pool_choices(hidden, where)
    for n in range(2):
        for c in range(2):
            torch.testing.assert_close(found[n, c], hidden[n, where[n, :, c]].mean(0))
    assert torch.autograd.gradcheck(lambda h: pool_choices(h, where), hidden)
    for bad in (torch.zeros(2, 5, 2), torch.zeros(2, 4, 2)):
        with pytest.raises(ShapeError, match="where"):
            pool_choices(hidden, bad)
    with pytest.raises(ShapeError, match="one real token"):
        pool_tokens(hidden.detach(), torch.zeros(2, 5))
    with pytest.raises(ConfigError, match="how"):
        pool_tokens(hidden.detach(), torch.ones(2, 5), "middle")  # type: ignore[arg-type]


def test_unexplained_variance_is_zero_at_equality_and_one_for_the_mean() -> None:
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert unexplained_variance(x, x) == 0
    torch.testing.assert_close(unexplained_variance(x, x.mean(0).expand_as(x)), torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(ShapeError):
        unexplained_variance(x, x[:4])


def test_weights_of_exits() -> None:
    weights = exit_weights([4, 9, 18, 27, 36], 36)
    torch.testing.assert_close(weights, torch.tensor([4, 9, 18, 27, 36]) / 36)
    assert exit_weights([1, 3], 4, "uniform").tolist() == [1, 1]
    assert exit_weights([1, 3], 4, "last").tolist() == [0, 1]
    for bad in ([], [0, 1], [1, 5], [2, 1], [2, 2]):
        with pytest.raises(ConfigError, match="exits"):
            exit_weights(bad, 4)


def test_paired_info_nce_is_the_mean_of_both_directions() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(5, 4, dtype=torch.float64, generator=draw) for _ in "qk")
    both = (info_nce(q, k, temperature=0.1) + info_nce(k, q, temperature=0.1)) / 2
    torch.testing.assert_close(paired_info_nce(q, k, scale=10.0), both)
    # a share of the pairs, told from the rest, as processes see it
    part = paired_info_nce(q[:2], k[:2], scale=10.0, queries=q[2:], others=k[2:])
    torch.testing.assert_close(part, both[:2])
    small = [x[:3].clone().requires_grad_() for x in (q, k)]
    assert torch.autograd.gradcheck(lambda a, b: paired_info_nce(a, b, scale=2.0), small)
    eye = torch.eye(4)
    torch.testing.assert_close(paired_info_nce(eye, eye, scale=3.0), torch.full((4,), math.log(1 + 3 * math.exp(-3))))
    with pytest.raises(ShapeError, match="told from"):
        paired_info_nce(eye[:1], eye[:1])
    with pytest.raises(ShapeError, match="one key per query"):
        paired_info_nce(eye, eye[:3])
    with pytest.raises(ConfigError, match="scale"):
        paired_info_nce(eye, eye, scale=0.0)


def test_attention_scores_leave_padding_out() -> None:
    draw = torch.Generator().manual_seed(0)
    s, t = (torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=draw) for _ in "st")
    s.requires_grad_()
    torch.testing.assert_close(score_distance(s, t), (s - t).square().mean((-1, -2)))
    pad = torch.zeros(2, 1, 1, 4)
    pad[0, ..., 2:] = -10_000
    masked = score_distance(s + pad, t + pad)
    seen = (s - t).square()
    torch.testing.assert_close(masked[1], seen[1].mean((-1, -2)))
    torch.testing.assert_close(masked[0], seen[0, ..., :2].sum((-1, -2)) / 16)
    assert torch.autograd.gradcheck(lambda x: score_distance(x, t), s)
    with pytest.raises(ShapeError, match="relation_divergence"):
        score_distance(s, t[:, :2])
