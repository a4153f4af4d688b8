from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional.zca import ZCA, fit_zca

F64 = torch.float64


def pixels(seed: int, n: int, *shape: int, dtype: torch.dtype = F64) -> Tensor:
    """Correlated data with a mean."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    mix = torch.randn(size, size, generator=generator, dtype=dtype)
    return (torch.randn(n, size, generator=generator, dtype=dtype) @ mix + 3.0).reshape(n, *shape)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_covariance_becomes_the_identity(seed: int, unbiased: bool) -> None:
    x = pixels(seed, 60, 1, 2, 3)
    white = fit_zca(x, eps=0.0, unbiased=unbiased).apply(x).flatten(1)
    torch.testing.assert_close(white.mean(0), torch.zeros(6, dtype=F64), rtol=0, atol=1e-8)
    covariance = white.T.cov(correction=1 if unbiased else 0)
    torch.testing.assert_close(covariance, torch.eye(6, dtype=F64), rtol=0, atol=1e-7)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1e-3, 0.1, 1.0]))
def test_against_the_singular_value_form(seed: int, eps: float) -> None:
    x = pixels(seed, 12, 3, 2, 2)
    flat = x.flatten(1)
    centred = flat - flat.mean(0)
    u, s, _ = torch.linalg.svd(centred.T @ centred / 11)
    expected = u @ torch.diag((s + eps) ** -0.5) @ u.T
    fitted = fit_zca(x, eps)
    torch.testing.assert_close(fitted.matrix, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fitted.apply(x), (centred @ expected).reshape(x.shape), rtol=1e-7, atol=1e-9)


def test_of_all_whitenings_it_moves_the_picture_least() -> None:
    x = pixels(0, 80, 6)
    white = fit_zca(x, 0.0).apply(x)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=F64, generator=torch.Generator().manual_seed(1))).Q
    centred = x - x.mean(0)
    assert (white - centred).square().sum() < (white @ turn - centred).square().sum()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_invert_undoes_apply_on_other_data(dtype: torch.dtype) -> None:
    fitted = fit_zca(pixels(0, 50, 1, 3, 3, dtype=dtype))
    other = pixels(1, 4, 1, 3, 3, dtype=dtype)
    back = fitted.invert(fitted.apply(other))
    torch.testing.assert_close(back, other, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 1e-9)
    assert back.dtype == fitted.matrix.dtype == dtype


def test_fewer_items_than_values_is_fine_with_eps() -> None:
    x = pixels(0, 5, 4, 4)
    white = fit_zca(x).apply(x)
    assert torch.isfinite(white).all()
    with pytest.raises(DataError, match="no inverse"):
        fit_zca(x, eps=0.0)


def test_whitening_is_differentiable() -> None:
    fitted, x = fit_zca(pixels(0, 20, 2, 2)), pixels(1, 3, 2, 2).requires_grad_(True)
    assert torch.autograd.gradcheck(fitted.apply, (x,)) and torch.autograd.gradcheck(fitted.invert, (x,))


def test_three_tensors_are_the_whole_transform() -> None:
    x = pixels(0, 20, 2, 2)
    fitted = fit_zca(x)
    again = ZCA(*(t.clone() for t in (fitted.mean, fitted.matrix, fitted.inverse)))
    assert torch.equal(again.apply(x), fitted.apply(x))


def test_bad_data_is_named() -> None:
    x = pixels(0, 20, 2, 2)
    with pytest.raises(DataError, match="N >= 2"):
        fit_zca(x[:1])
    with pytest.raises(ConfigError, match="eps"):
        fit_zca(x, -0.1)
    with pytest.raises(ShapeError, match="4 values per item"):
        fit_zca(x).apply(pixels(0, 3, 5))
    x[3, 0, 0], x[7, 1, 1] = torch.nan, torch.inf
    with pytest.raises(DataError, match=r"\[3, 7\]"):
        fit_zca(x)
