"""Metrics against plain loops and torchmetrics; adding up batches is the same as one batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional import metrics as M


def draw(n: int = 200, c: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, c, generator=g), torch.randint(0, c, (n,), generator=g)


def mean(pair: tuple[Tensor, Tensor]) -> float:
    return float(pair[0] / pair[1])


def test_accuracy() -> None:
    z, y = draw()
    for k in (1, 2, 6):
        hits = [int(label) in torch.topk(row, k).indices.tolist() for row, label in zip(z, y, strict=True)]
        assert mean(M.accuracy(z, y, k=k)) == pytest.approx(np.mean(hits))
    soft = 0.6 * torch.nn.functional.one_hot(y, 6) + 0.4 * torch.nn.functional.one_hot((y + 1) % 6, 6)
    assert M.accuracy(z, soft)[0] == M.accuracy(z, y)[0]


def test_constant_and_undefined_logits_earn_no_credit() -> None:
    _, y = draw(300)
    assert mean(M.accuracy(torch.zeros(300, 6), y)) == float((y == 0).double().mean())
    assert mean(M.accuracy(torch.full((300, 6), math.nan), y)) == 0.0


def test_likelihood_brier_perplexity() -> None:
    z, y = draw()
    p = z.double().softmax(-1)
    rows = range(len(y))
    assert mean(M.negative_log_likelihood(z, y)) == pytest.approx(
        -np.mean([math.log(p[i, y[i]]) for i in rows]), rel=1e-6
    )
    one_hot = torch.nn.functional.one_hot(y, 6).double()
    assert mean(M.brier(z, y)) == pytest.approx(float(((p - one_hot) ** 2).sum(1).mean()), rel=1e-6)
    assert mean(M.brier(z, one_hot)) == pytest.approx(mean(M.brier(z, y)), rel=1e-6)
    total, count = M.negative_log_likelihood(z, y)
    assert M.perplexity(total, count) == pytest.approx(math.exp(total / count))
    assert M.perplexity(1e6, 1) == math.inf and math.isnan(M.perplexity(math.nan, 1))


def test_agreement() -> None:
    z, _ = draw()
    w, _ = draw(seed=1)
    assert mean(M.agreement(z, w)) == pytest.approx(float((z.argmax(1) == w.argmax(1)).double().mean()))
    assert mean(M.agreement(z, z)) == 1.0


def test_calibration_by_hand() -> None:
    z, y = draw()
    p = z.softmax(-1)
    confidence, choice = p.max(1)
    want, worst, square = 0.0, 0.0, 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gap = abs(float((choice == y)[inside].double().mean() - confidence[inside].double().mean()))
            share = float(inside.double().mean())
            want, square, worst = want + share * gap, square + share * gap**2, max(worst, gap)
    table = M.calibration_table(z, y)
    assert table.shape == (15, 3) and table[:, 0].sum() == 200
    assert M.calibration_error(table) == pytest.approx(want, rel=1e-5)
    assert M.calibration_error(table, norm="l2") == pytest.approx(math.sqrt(square), rel=1e-5)
    assert M.calibration_error(table, norm="max") == pytest.approx(worst, rel=1e-5)


def test_torchmetrics_agrees() -> None:
    tm = pytest.importorskip("torchmetrics.functional.classification")
    z, y = draw(500, 10)
    for k in (1, 3):
        want = tm.multiclass_accuracy(z, y, num_classes=10, top_k=k, average="micro")
        assert mean(M.accuracy(z, y, k=k)) == pytest.approx(float(want), rel=1e-6)
    for norm in ("l1", "l2", "max"):
        want = tm.multiclass_calibration_error(z.softmax(-1), y, num_classes=10, n_bins=15, norm=norm)
        got = M.calibration_error(M.calibration_table(z, y), norm=norm)
        assert got == pytest.approx(float(want), rel=1e-5)


SUMS: dict[str, Callable[..., Any]] = {
    "accuracy": M.accuracy,
    "top3": lambda z, y, **k: M.accuracy(z, y, k=3, **k),
    "nll": M.negative_log_likelihood,
    "brier": M.brier,
    "calibration": lambda z, y, **k: (M.calibration_table(z, y, **k),),
    "agreement": lambda z, y, **k: M.agreement(z, z.roll(1, -1) * (y % 2)[..., None] + z * (1 - y % 2)[..., None], **k),
}


@pytest.mark.parametrize("name", SUMS)
def test_batches_add_up_and_masks_leave_out(name: str) -> None:
    z, y = draw(60)
    whole = SUMS[name](z, y)
    parts = [SUMS[name](a, b) for a, b in zip(z.split(17), y.split(17), strict=True)]
    where = torch.arange(60) % 3 != 0
    torch.testing.assert_close(whole, tuple(sum(x) for x in zip(*parts, strict=True)))
    dirty, labels = z.clone(), y.clone()
    if name != "agreement":
        dirty[~where], labels[~where] = math.nan, -100
    masked = SUMS[name](dirty, labels, where=where)
    torch.testing.assert_close(masked, SUMS[name](z[where], y[where]))
    shaped = SUMS[name](z.view(5, 12, 6), y.view(5, 12), where=where.view(5, 12))
    torch.testing.assert_close(shaped, masked)
    assert all(not x.requires_grad for x in SUMS[name](z.clone().requires_grad_(), y))


def test_moments_add_up() -> None:
    g = torch.Generator().manual_seed(0)
    x = 1e3 + torch.randn(50, 4, generator=g, dtype=torch.float64)
    shift = torch.full((4,), 1e3)
    whole = M.moments(x)
    parts = M.moments(x[:20], shift=shift) + M.moments(x[20:], shift=shift)
    for m in (whole, parts):
        torch.testing.assert_close(m.mean(), x.mean(0))
        torch.testing.assert_close(m.covariance(), torch.cov(x.T), rtol=1e-6, atol=1e-8)
    where = torch.arange(50) < 30
    torch.testing.assert_close(M.moments(x, where=where).mean(), x[:30].mean(0))
    with pytest.raises(ConfigError, match="different points"):
        M.moments(x) + M.moments(x, shift=shift)


def test_frechet_distance() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    g = torch.Generator().manual_seed(1)
    mixing = torch.randn(5, 5, generator=g, dtype=torch.float64)
    x, y = torch.randn(40, 5, generator=g, dtype=torch.float64), torch.randn(60, 5, generator=g, dtype=torch.float64)
    y = y @ mixing + 0.5
    a, b = M.moments(x), M.moments(y)
    c1, c2 = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    want = float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    assert M.frechet_distance(a, b) == pytest.approx(want, rel=1e-8)
    assert M.frechet_distance(b, a) == pytest.approx(want, rel=1e-8)
    assert M.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-7)


def test_frechet_distance_of_diagonal_gaussians() -> None:
    unit = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    scale = torch.tensor([2.0, 0.5], dtype=torch.float64)
    got = M.frechet_distance(M.moments(unit), M.moments(unit * scale + 3.0))
    assert got == pytest.approx(18.0 + 4 / 3 * (1.0 + 0.25))  # |m|^2 + sum (s1 - s2)^2, with variance 4/3


def test_frechet_distance_with_fewer_items_than_dimensions() -> None:
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(5, 40, generator=g), torch.randn(6, 40, generator=g)
    assert math.isfinite(M.frechet_distance(M.moments(x), M.moments(y)))
    assert M.frechet_distance(M.moments(x), M.moments(x)) == pytest.approx(0.0, abs=1e-5)


def test_errors() -> None:
    z, y = draw(4)
    table: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ConfigError, "1 to 6", lambda: M.accuracy(z, y, k=7)),
        (DataError, "labels", lambda: M.accuracy(z, y - 100)),
        (ConfigError, "bins", lambda: M.calibration_table(z, y, bins=0)),
        (ConfigError, "norm", lambda: M.calibration_error(M.calibration_table(z, y), norm="l3")),
        (DataError, "valid item", lambda: M.calibration_error(torch.zeros(15, 3))),
        (DataError, "valid token", lambda: M.perplexity(0.0, 0)),
        (ShapeError, r"\[N, D\]", lambda: M.moments(z[0])),
        (DataError, "two items", lambda: M.moments(z[:1]).covariance()),
        (ShapeError, "like the first", lambda: M.frechet_distance(M.moments(z), M.moments(z[:, :3]))),
    ]
    for kind, text, call in table:
        with pytest.raises(kind, match=text):
            call()
