"""Feature, attention and relation distances against plain numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional import feature as A
from limbeck.functional import relation as R


def draw(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64), torch.randn(*shape, generator=g, dtype=torch.float64)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_distances_between_features() -> None:
    s, t = draw(6, 5)
    a, b = s.numpy(), t.numpy()
    gap = a - b
    huber = np.where(np.abs(gap) < 1, gap**2 / 2, np.abs(gap) - 0.5)
    table: list[tuple[dict[str, Any], np.ndarray]] = [
        ({}, (gap**2).mean(1)),
        ({"reduce": "sum"}, (gap**2).sum(1)),
        ({"metric": "l1"}, np.abs(gap).mean(1)),
        ({"metric": "smooth_l1"}, huber.mean(1)),
        ({"metric": "cosine"}, 1 - (unit(a) * unit(b)).sum(1)),
        ({"normalise": "unit", "reduce": "sum"}, ((unit(a) - unit(b)) ** 2).sum(1)),
    ]
    for setting, want in table:
        np.testing.assert_allclose(A.feature_distance(s, t, **setting), want, rtol=1e-12)
    whitened = [(x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) for x in (a, b)]
    got = A.feature_distance(s, t, normalise="standard")
    np.testing.assert_allclose(got, ((whitened[0] - whitened[1]) ** 2).mean(1), rtol=1e-4)
    folded = A.feature_distance(s.view(2, 3, 5), t.view(2, 3, 5), dims=2)
    np.testing.assert_allclose(folded, (gap**2).reshape(2, -1).mean(1), rtol=1e-12)


@pytest.mark.parametrize("metric", ["l2", "l1", "smooth_l1", "cosine"])
@pytest.mark.parametrize("normalise", ["none", "unit", "standard"])
def test_gradients(metric: Any, normalise: Any) -> None:
    s, t = (x.requires_grad_() for x in draw(3, 4))
    call = lambda a, b: A.feature_distance(a, b, metric=metric, normalise=normalise)  # noqa: E731
    assert torch.autograd.gradcheck(call, (s, t))
    zero = torch.zeros(2, 4, requires_grad=True)
    grad = torch.autograd.grad(call(zero, torch.ones(2, 4)).sum(), zero)[0]
    assert grad.isfinite().all()


def test_masked_items() -> None:
    s, t = draw(4, 3)
    where = torch.tensor([True, False, True, True])
    clean = A.feature_distance(s, t, where=where)
    s[1] = math.nan
    s.requires_grad_()
    got = A.feature_distance(s, t, where=where)
    assert torch.equal(got, clean) and got[1] == 0
    assert torch.autograd.grad(got.sum(), s)[0].isfinite().all()


def test_attention_transfer() -> None:
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(3, 4, 5, 5, generator=g), torch.randn(3, 7, 5, 5, generator=g)
    a, b = ((x.numpy().astype(np.float64) ** 2).sum(1).reshape(3, -1) for x in (s, t))
    np.testing.assert_allclose(A.attention_transfer(s, t), ((unit(a) - unit(b)) ** 2).sum(1), rtol=1e-5)
    coarse = torch.nn.functional.adaptive_avg_pool2d(t, 2)
    assert torch.equal(A.attention_transfer(coarse, t), A.attention_transfer(coarse, coarse))
    assert A.attention_transfer(torch.randn(2, 3, 8), torch.randn(2, 5, 4)).shape == (2,)
    x = s.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: A.attention_transfer(z, t.double()), (x,), fast_mode=True)


def test_gram() -> None:
    s, t = draw(5, 4)[0], draw(5, 7, seed=1)[0]
    a, b = s.numpy(), t.numpy()
    gap = unit(a @ a.T) - unit(b @ b.T)
    got = R.gram(s, t)
    np.testing.assert_allclose(got, (gap**2).sum(1) / 5, rtol=1e-10)
    assert got.mean().item() == pytest.approx((gap**2).sum() / 25)


def test_relational_distances() -> None:
    s, t = draw(5, 4)[0], draw(5, 7, seed=1)[0]
    total, scaled = np.zeros(5), []
    for x in (s.numpy(), t.numpy()):
        d = np.linalg.norm(x[:, None] - x[None], axis=-1)
        scaled.append(d / d[d > 0].mean())
    gap = scaled[0] - scaled[1]
    total = np.where(np.abs(gap) < 1, gap**2 / 2, np.abs(gap) - 0.5).sum(1) / 4
    np.testing.assert_allclose(R.distances(s, t), total, rtol=1e-10)
    same = torch.ones(4, 3, requires_grad=True)
    value = R.distances(same, draw(4, 3)[0].float())
    assert value.isfinite().all() and torch.autograd.grad(value.sum(), same)[0].isfinite().all()


def test_dist() -> None:
    s, t = draw(6, 4)
    q, p = ((x / 2).softmax(1).numpy() for x in (s, t))
    inter, intra = R.dist(s, t, temperature=2.0)
    np.testing.assert_allclose(inter, [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)], rtol=1e-9)
    np.testing.assert_allclose(intra, [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)], rtol=1e-9)


RELATIONS: dict[str, Callable[..., Any]] = {
    "gram": lambda s, t, **k: (R.gram(s, t, **k),),
    "distances": lambda s, t, **k: (R.distances(s, t, **k),),
    "dist": R.dist,
}


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_of_the_valid_items_alone(name: str) -> None:
    s, t = draw(7, 4)
    where = torch.tensor([1, 1, 0, 1, 0, 1, 1]) != 0
    want = RELATIONS[name](s[where], t[where])
    s[~where], t[~where] = math.nan, math.inf
    s.requires_grad_()
    got = RELATIONS[name](s, t, where=where)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a[where] if len(a) == 7 else a, b)
    assert torch.autograd.grad(sum(x.sum() for x in got), s)[0].isfinite().all()
    assert all(v.abs().max() < 1e-12 for v in RELATIONS[name](t[where], t[where].clone()))
    x = draw(4, 3)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: RELATIONS[name](z, draw(4, 3, seed=9)[0]), (x,))


def test_errors() -> None:
    s, t = draw(4, 3)
    table: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ShapeError, "projector", lambda: A.feature_distance(s, t[:, :2])),
        (ConfigError, "metric", lambda: A.feature_distance(s, t, metric="l3")),  # type: ignore[arg-type]
        (ConfigError, "dims", lambda: A.feature_distance(s, t, dims=3)),
        (ShapeError, r"\[N, C, H, W\]", lambda: A.attention_map(s)),
        (ShapeError, "like the student", lambda: A.attention_transfer(s[:, :, None], t[:2, :, None])),
        (ShapeError, "student's items", lambda: R.gram(s, t[:2])),
        (ShapeError, "student's shape", lambda: R.pearson(s, t[:2])),
        (ShapeError, r"\[N, C\]", lambda: R.dist(s[None], t[None])),
        (DataError, "empty batch", lambda: R.dist(s[:0], t[:0])),
    ]
    for kind, text, call in table:
        with pytest.raises(kind, match=text):
            call()
