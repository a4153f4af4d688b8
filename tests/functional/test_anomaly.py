"""Gaps of pyramids and maps of anomalies: limits, invariances, SciPy's filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from torch import Tensor

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.anomaly import anomaly_map, feature_gap, gaussian_smooth, pyramid_distance

G = torch.Generator().manual_seed(0)
SHAPES = [(4, 16, 16), (6, 8, 8), (8, 4, 4)]


def pyramid(n: int = 2) -> list[Tensor]:
    return [torch.randn(n, *shape, generator=G, dtype=torch.float64) for shape in SHAPES]


def test_any_positive_factor_at_a_place_changes_nothing() -> None:
    t = pyramid()
    s = [f * torch.rand(2, 1, *f.shape[2:], generator=G, dtype=torch.float64).add(0.1) for f in t]
    assert float(pyramid_distance(s, t).abs().max()) < 1e-14
    assert float(anomaly_map(s, t, (32, 32)).max()) < 1e-14
    assert float(pyramid_distance(s, t, normalise=False).min()) > 0


def test_gaps_are_one_minus_cosine_and_bounded() -> None:
    s, t = pyramid()[0], pyramid()[0]
    torch.testing.assert_close(feature_gap(s, t), 1 - torch.cosine_similarity(s, t, 1))
    torch.testing.assert_close(feature_gap(-t, t), torch.full((2, 16, 16), 2.0, dtype=torch.float64))
    one = anomaly_map([-t], [t], (16, 16), sigma=0)
    torch.testing.assert_close(one, torch.full_like(one, 2.0 / 256))


def test_a_batch_shown_twice_counts_twice() -> None:
    s, t = pyramid(), pyramid()
    twice = pyramid_distance([torch.cat([f, f]) for f in s], [torch.cat([f, f]) for f in t]).sum()
    torch.testing.assert_close(twice, 2 * pyramid_distance(s, t).sum())


def test_gradients_are_those_of_differences_and_a_zero_vector_has_none() -> None:
    s = [torch.randn(1, 3, 2, 2, generator=G, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    t = [f.detach().roll(1, 1) for f in s]
    assert torch.autograd.gradcheck(lambda *f: pyramid_distance(f, t), tuple(s))
    assert torch.autograd.gradcheck(lambda *f: anomaly_map(f, t, (4, 4), sigma=1.0, fusion="product"), tuple(s))
    zero = torch.zeros(1, 3, 1, 1, requires_grad=True)
    pyramid_distance([zero], [torch.ones(1, 3, 1, 1)]).sum().backward()
    assert zero.grad is not None and bool(torch.isfinite(zero.grad).all())
    half = feature_gap(torch.ones(1, 300, 1, 1).half() * 60, torch.ones(1, 300, 1, 1).half())
    assert half.dtype == torch.float32 and float(half) < 1e-6


@pytest.mark.parametrize(("shape", "sigma"), [((2, 9, 14), 1.3), ((1, 5, 3), 4.0), ((3, 32, 32), 4.0)])
def test_smoothing_is_scipys(shape: tuple[int, ...], sigma: float) -> None:
    x = torch.randn(shape, generator=G, dtype=torch.float64)
    expected = np.stack([gaussian_filter(m.numpy(), sigma) for m in x])
    np.testing.assert_allclose(gaussian_smooth(x, sigma).numpy(), expected, atol=1e-12)
    rows = gaussian_filter1d(x.numpy(), sigma, axis=-1)
    np.testing.assert_allclose(gaussian_smooth(x, sigma, axes="rows").numpy(), rows, atol=1e-12)


def test_levels_are_weighed_and_fused_as_asked() -> None:
    s, t = pyramid(), pyramid()
    parts = [anomaly_map([a], [b], (16, 16), sigma=0) for a, b in zip(s, t, strict=True)]
    torch.testing.assert_close(anomaly_map(s, t, (16, 16), sigma=0), sum(parts))
    product = parts[0] * parts[1] * parts[2]
    torch.testing.assert_close(anomaly_map(s, t, (16, 16), sigma=0, fusion="product"), product)
    even = [anomaly_map([a], [b], (16, 16), sigma=0, level_weights="equal") for a, b in zip(s, t, strict=True)]
    torch.testing.assert_close(even[2], parts[2] * 16)


def test_what_does_not_fit_is_refused() -> None:
    t = pyramid()
    with pytest.raises(ShapeError, match="levels"):
        pyramid_distance(t[:2], t)
    with pytest.raises(ShapeError, match="shape"):
        feature_gap(t[0], t[1])
    with pytest.raises(ConfigError, match="sigma"):
        gaussian_smooth(t[0], -1.0)
    with pytest.raises(ConfigError, match="fusion"):
        anomaly_map(t, t, (8, 8), fusion="mean")  # type: ignore[arg-type]
