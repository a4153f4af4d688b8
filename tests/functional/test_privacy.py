"""Swing's pieces: scores, temperatures, targets, exposure; by hand and at their limits."""

from __future__ import annotations

import math

import pytest
import torch

import limbeck.functional as F
from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional.privacy import (
    exposure,
    leakage_reduction,
    memorisation_score,
    noise_scale,
    per_token_temperature,
    protected_target,
    span_score,
)


def test_a_token_takes_the_largest_probability_of_spans_that_touch_it() -> None:
    offsets = torch.tensor([[0, 0], [0, 3], [3, 5], [5, 9]])
    spans, p = torch.tensor([[4, 6], [5, 6], [9, 12], [3, 3]]), torch.tensor([0.4, 0.9, 1.0, 1.0])
    assert span_score(offsets, spans, p).tolist() == pytest.approx([0, 0, 0.4, 0.9])
    assert span_score(offsets, spans[:0], p[:0]).tolist() == [0, 0, 0, 0]
    with pytest.raises(DataError, match="outside"):
        span_score(offsets, spans, p + 1)
    with pytest.raises(DataError, match="before it begins"):
        span_score(offsets, spans.flip(-1), p)
    with pytest.raises(ShapeError):
        span_score(offsets, spans, p[:2])


def test_temperatures_and_targets_of_the_dossier() -> None:
    T = per_token_temperature(torch.tensor([0.0, 0.5, 1.0]))
    assert T.tolist() == [1.0, 5.5, 10.0]
    z = torch.tensor([4.0, 2.0, 0.0, 0.0]).expand(3, 4)
    want = [[0.8533, 0.1155, 0.0156, 0.0156], [0.3757, 0.2612, 0.1816, 0.1816], [0.3165, 0.2591, 0.2122, 0.2122]]
    torch.testing.assert_close(protected_target(z, T).exp(), torch.tensor(want), rtol=0, atol=1e-4)
    assert per_token_temperature(torch.tensor([0.5]), shape="exp").item() == pytest.approx(math.sqrt(10))
    assert memorisation_score(torch.tensor([0.0]), torch.tensor([-2.0])).item() == 0.5


def test_without_scores_and_noise_it_is_ordinary_distillation() -> None:
    g = torch.Generator().manual_seed(0)
    z_s, z_t, e = (torch.randn(3, 4, 6, generator=g, dtype=torch.float64) for _ in range(3))
    s = torch.zeros(3, 4, dtype=torch.float64)
    T = per_token_temperature(s, t_min=2.0)
    target = protected_target(z_t, T, e, scale=noise_scale(0.5, score=s))
    swing = T.square() * F.kl(z_s / T.unsqueeze(-1), target)
    torch.testing.assert_close(swing, F.kl(z_s, z_t, temperature=2.0))
    flat = protected_target(z_t, 1e9).exp()
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 6), rtol=1e-6, atol=1e-6)


def test_targets_are_distributions_whatever_the_noise() -> None:
    g = torch.Generator().manual_seed(0)
    z, e = torch.randn(50, 7, generator=g), 3 * torch.randn(50, 7, generator=g)
    for space in ("logit", "probability"):
        p = protected_target(z, 1.0, e, scale=0.5, space=space).exp()  # type: ignore[arg-type]
        assert bool((p >= 0).all())
        torch.testing.assert_close(p.sum(-1), torch.ones(50))
    nothing = protected_target(z, 1.0, -torch.ones_like(z) * 9, scale=1.0, space="probability").exp()
    torch.testing.assert_close(nothing, torch.full_like(z, 1 / 7))
    leaf = z.clone().requires_grad_()
    assert not protected_target(leaf, 1.0, e, scale=0.5).requires_grad


def test_exposure_by_rank() -> None:
    perplexity = torch.arange(10_000.0)
    found = exposure(perplexity, torch.tensor([0, 312, 4999]))
    assert found.exposure.tolist() == pytest.approx([13.2877, 4.9977, 1.0], abs=1e-4)
    assert found.rank.tolist() == [1, 313, 5000]
    ties = exposure(torch.tensor([1.0, 1.0, 1.0, 2.0]), torch.tensor([0, 2, 3]))
    assert ties.rank.tolist() == [2, 2, 4] and ties.exposure[2] == 0
    assert leakage_reduction(torch.tensor([2.0, 2.0]), torch.tensor([10.0, 10.0])).item() == pytest.approx(0.8)
    with pytest.raises(DataError, match="not among"):
        exposure(perplexity, torch.tensor([10_000]))
    with pytest.raises(DataError, match="nan"):
        exposure(torch.tensor([1.0, math.nan]), torch.tensor([0]))
    with pytest.raises(ShapeError, match="two candidates"):
        exposure(torch.tensor([1.0]), torch.tensor([0]))


def test_settings_out_of_range_are_refused() -> None:
    s = torch.tensor([0.5])
    for words in ({"t_min": 0.0}, {"t_max": 0.5}, {"shape": "square"}):
        with pytest.raises(ConfigError):
            per_token_temperature(s, **words)  # type: ignore[arg-type]
    with pytest.raises(DataError):
        per_token_temperature(s + 1)
    for more in ({"sigma": -1.0}, {"epsilon": 0.0}, {"tied": True}):
        with pytest.raises(ConfigError):
            noise_scale(**more)  # type: ignore[arg-type]
    assert noise_scale(epsilon=0.5) == 4.0
    with pytest.raises(ConfigError):
        memorisation_score(s, s, width=0.0)
    with pytest.raises(ShapeError):
        protected_target(torch.zeros(2, 3), 1.0, torch.zeros(3))
