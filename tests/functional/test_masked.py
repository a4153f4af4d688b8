"""Hidden patches and what is foretold of them, relations of all pairs, two heads, maps weighed by richness."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as nf

from limbeck import functional as F
from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.attention import divide, relation_divergence
from limbeck.functional.dense import channel_divergence
from limbeck.functional.pretraining import (
    hidden_state_distance,
    qkv_relation_divergence,
    random_masking,
    supervised_tokens,
    token_distillation,
)
from limbeck.functional.richness import richness, richness_mean, richness_terms


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_least_noise_is_seen_and_everything_finds_its_place_again() -> None:
    noise = some(3, 49).sigmoid()
    m = random_masking(noise, 0.75)
    assert m.visible.shape == (3, 12) and m.hidden.sum(1).tolist() == [37] * 3
    seen = noise.gather(1, m.visible)
    assert bool((seen[:, 1:] >= seen[:, :-1]).all())
    assert bool((seen.amax(1) < noise.masked_fill(~m.hidden, 9).amin(1)).all())
    tokens = torch.arange(49).expand(3, -1)
    there = torch.cat([tokens.gather(1, m.visible), torch.full((3, 37), -1)], 1).gather(1, m.restore)
    assert torch.equal(there, tokens.masked_fill(m.hidden, -1))
    every, masked, visible = (supervised_tokens(m, w) for w in ("all", "masked", "visible"))  # type: ignore[arg-type]
    assert bool(every.all()) and not bool((masked & visible).any()) and not bool((masked | visible)[:, 0].any())
    assert bool((masked | visible)[:, 1:].all())
    for ratio in (0.0, 1.0, 0.999):
        with pytest.raises(ConfigError, match="ratio"):
            random_masking(noise, ratio)


def test_hidden_states_are_compared_with_standardised_ones() -> None:
    s, t = some(2, 5, 8), some(2, 5, 8, seed=1)
    want = nf.smooth_l1_loss(s, nf.layer_norm(t, (8,), eps=1e-6), beta=2.0, reduction="none").mean(-1)
    torch.testing.assert_close(hidden_state_distance(s, t), want)
    torch.testing.assert_close(hidden_state_distance(s, 3 * t + 5, eps=1e-12), hidden_state_distance(s, t, eps=1e-12))
    assert not bool(hidden_state_distance(s, s, normalise=False).any())
    where = torch.rand(2, 5, generator=torch.Generator().manual_seed(2)) > 0.5
    torch.testing.assert_close(hidden_state_distance(s, t, where=where), want * where)
    t.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hidden_state_distance(x, t.detach()), (s.requires_grad_(),))
    hidden_state_distance(s, t).sum().backward()
    assert t.grad is None
    with pytest.raises(ConfigError, match="beta"):
        hidden_state_distance(s, t, beta=0.0)
    with pytest.raises(ShapeError, match="predictor"):
        hidden_state_distance(s, t[..., :4])


def test_all_nine_relations_count_alike() -> None:
    s, t = some(3, 2, 5, 8), some(3, 2, 5, 12, seed=1)
    a, b = [divide(x, 4) for x in s], [divide(x, 4) for x in t]
    pairs = list(itertools.product(range(3), repeat=2))
    each = [relation_divergence((a[i], a[j]), (b[i], b[j])).mean(1) for i, j in pairs]
    torch.testing.assert_close(qkv_relation_divergence(s, t, 4), torch.stack(each).mean(0))
    where = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    short = qkv_relation_divergence(s[:, :1, :3], t[:, :1, :3], 4)
    torch.testing.assert_close(qkv_relation_divergence(s, t, 4, where=where)[:1], short)
    assert float(qkv_relation_divergence(s, s, 2).abs().max()) < 1e-12
    small, like = s[:, :1, :3, :4].clone().requires_grad_(), t[:, :1, :3, :4]
    assert torch.autograd.gradcheck(lambda x: qkv_relation_divergence(x, like, 2), (small,))
    with pytest.raises(ShapeError, match="queries"):
        qkv_relation_divergence(s[0], t[0], 4)


def test_two_heads_learn_from_labels_and_from_the_teacher() -> None:
    z, d, t = some(4, 6), some(4, 6, seed=1), some(4, 6, seed=2)
    soft, hard = some(4, 6, seed=3).softmax(-1), torch.tensor([0, 5, 2, 2])
    named = nf.cross_entropy(d, t.argmax(-1), reduction="none")
    for y in (soft, hard):
        torch.testing.assert_close(
            token_distillation(z, d, t, y), (nf.cross_entropy(z, y, reduction="none") + named) / 2
        )
    assert torch.autograd.gradcheck(
        lambda a, b: token_distillation(a, b, t, soft), (z.requires_grad_(), d.requires_grad_())
    )
    with pytest.raises(Exception, match="teacher"):
        token_distillation(z, d, t[:, :4], hard)


def test_richness_weighs_places_and_not_their_number() -> None:
    f_s, f_t, z_s, z_t = some(2, 5, 3, 4), some(2, 5, 3, 4, seed=1), some(2, 3, 3, 4, seed=2), some(2, 3, 3, 4, seed=3)
    terms = richness_terms(f_s, f_t, z_s, z_t)
    w = z_t.sigmoid().amax(1)
    torch.testing.assert_close(terms.weight, w)
    want = ((f_t - f_s).square() * w.unsqueeze(1)).sum() / w.sum()
    torch.testing.assert_close(richness_mean(terms.features, terms.weight), want)
    want = (nf.binary_cross_entropy(z_s.sigmoid(), z_t.sigmoid(), reduction="none") * w.unsqueeze(1)).sum() / w.sum()
    torch.testing.assert_close(richness_mean(terms.objectness, terms.weight), want)
    twice = richness_terms(*(torch.cat([x, x]) for x in (f_s, f_t, z_s, z_t)))
    torch.testing.assert_close(richness_mean(twice.features, twice.weight), richness_mean(terms.features, terms.weight))
    assert not bool(richness_terms(f_s, f_s, z_s, z_t).features.any())
    blind = richness(torch.full((1, 2, 3, 4), float("-inf")))
    assert richness_mean(torch.ones(1, 3, 4), blind) == 0  # and not 0 / 0
    t = [x.clone().requires_grad_() for x in (f_t, z_t)]
    both = richness_terms(f_s.requires_grad_(), t[0], z_s.requires_grad_(), t[1])
    (both.features.sum() + both.objectness.sum() + both.weight.sum()).backward()
    assert t[0].grad is None and t[1].grad is None and f_s.grad is not None and z_s.grad is not None
    assert torch.autograd.gradcheck(lambda f, z: richness_terms(f, f_t, z, z_t)[:2], (f_s, z_s))
    with pytest.raises(ShapeError, match="places"):
        richness_terms(f_s, f_t, z_s[..., :2], z_t[..., :2])
    with pytest.raises(ShapeError, match="teacher"):
        richness_terms(f_s, f_t[:, :2], z_s, z_t)


def test_channels_by_cross_entropy_are_channels_by_kl_and_an_entropy() -> None:
    s, t = some(2, 3, 4, 5), some(2, 3, 4, 5, seed=1)
    for T in (1.0, 4.0):
        both = [channel_divergence(s, t, temperature=T, value=v) for v in ("cross_entropy", "kl")]  # type: ignore[arg-type]
        rest = T * T * F.entropy(t.flatten(1, 2).transpose(1, 2), temperature=T)
        torch.testing.assert_close(both[0] - both[1], rest)
    with pytest.raises(ConfigError, match="value"):
        channel_divergence(s, t, value="mse")  # type: ignore[arg-type]
