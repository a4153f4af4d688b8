"""Differences of scores: surrogates have the gradient they stand for; an exact mixture is the score of what it is made of."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional import diffusion
from limbeck.functional.schedule import piecewise


def test_both_surrogates_hand_on_the_gradient_as_it_is() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 2, generator=g, dtype=torch.float64).mul(1e3).requires_grad_()
    wanted = torch.randn(4, 3, 2, generator=g, dtype=torch.float64)
    for surrogate, value in (
        (diffusion.carry, torch.zeros(4, dtype=torch.float64)),
        (diffusion.pull, 0.5 * wanted.square().flatten(1).sum(1)),
    ):
        made = surrogate(x, wanted)
        torch.testing.assert_close(made.detach(), value)
        torch.testing.assert_close(torch.autograd.grad(made.sum(), x)[0], wanted)


def test_the_difference_vanishes_where_both_agree_and_what_is_not_finite_is_taken_out() -> None:
    a = torch.randn(3, 2)
    lam = torch.tensor([-2.0, 0.0, 3.0])
    assert not diffusion.score_difference(a, a, lam).any()
    b = torch.zeros_like(a)
    torch.testing.assert_close(
        diffusion.score_difference(a, b, lam), a * torch.sigmoid(-lam)[:, None], rtol=1e-6, atol=0
    )
    torch.testing.assert_close(diffusion.score_difference(a, b, lam, weighting="uniform"), a)
    assert diffusion.score_difference(a, b, lam, clamp=0.01).abs().max() <= 0.01
    a[0, 0] = torch.nan
    assert diffusion.score_difference(a, b, lam)[0, 0] == 0
    with pytest.raises(ConfigError, match="clamp"):
        diffusion.score_difference(a, b, lam, clamp=0.0)
    with pytest.raises(ShapeError):
        diffusion.score_difference(a, b[:2], lam)


def test_the_mixture_is_the_score_of_its_density() -> None:
    g = torch.Generator().manual_seed(1)
    samples = torch.randn(7, 2, generator=g, dtype=torch.float64)
    z = torch.randn(5, 2, generator=g, dtype=torch.float64, requires_grad=True)
    lam, s = torch.linspace(-2, 2, 5, dtype=torch.float64), 0.3
    alpha, sigma = diffusion.alpha_sigma(lam)
    var = (alpha * s).square() + sigma.square()
    far = (z[:, None] - alpha[:, None, None] * samples).square().sum(-1)
    log_p = torch.logsumexp(-far / (2 * var[:, None]), 1)
    (score,) = torch.autograd.grad(log_p.sum(), z)
    torch.testing.assert_close(diffusion.mixture_eps(z.detach(), lam, samples, s), -sigma[:, None] * score)


def test_piecewise_counts_epochs_where_its_last_step_is_a_float() -> None:
    assert piecewise([0, 1.0, 3.0, 2.0], step=100, epoch=1) == 2.0
    assert piecewise([1.0, 0.0, 10], 5) == 0.5
    assert [piecewise([10, 1.0, 2.0, 20], s) for s in (0, 15, 99)] == [1.0, 1.5, 2.0]
    for wrong in ([1.0, 2.0], [0, 1.0, 2.0, 0], [0, 1.0, 2.0, 10, 3.0]):
        with pytest.raises(ConfigError):
            piecewise(wrong, 1)


def test_fitting_and_moving_have_a_fixed_point_at_the_data() -> None:
    """Particles spread as the data are stay where they are in VSD; SDS draws them together."""
    g = torch.Generator().manual_seed(0)
    data = torch.tensor([[-1.0], [1.0]])
    lam = torch.linspace(-2, 4, 512)
    left = {}
    for name in ("vsd", "sds"):
        x = data.repeat(256, 1).clone()
        eps = torch.randn(512, 1, generator=g)
        z = diffusion.diffuse(x, eps, lam)
        pre = diffusion.mixture_eps(z, lam, data, 0.1)
        other = diffusion.mixture_eps(z, lam, x, 0.1) if name == "vsd" else eps
        left[name] = diffusion.score_difference(pre, other, lam).abs().mean().item()
    assert left["vsd"] < 1e-5 < 1e-2 < left["sds"]
