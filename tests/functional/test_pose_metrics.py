"""PCK, NME, failures, area and MPJPE against loops over points."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional import pose_metrics as P


def poses(n: int = 5, k: int = 7, d: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    true = 10 * torch.randn(n, k, d, generator=g, dtype=torch.float64)
    where = torch.rand(n, k, generator=g) > 0.3
    where[0] = False
    return true + torch.randn(n, k, d, generator=g, dtype=torch.float64), true, where


@pytest.mark.parametrize("pair", [None, (0, 1)])
def test_against_loops(pair: tuple[int, int] | None) -> None:
    z, true, where = poses()
    if pair:
        where[1, 0] = False
    sizes = P.pose_sizes(true, where, pair)
    hits, count = P.pck(z, true, sizes, alpha=0.05, where=where)
    error = P.nme(z, true, sizes, where)
    for i in range(len(z)):
        there = [j for j in range(z.shape[1]) if where[i, j]]
        if pair:
            size = math.dist(true[i, 0].tolist(), true[i, 1].tolist()) if {0, 1} <= set(there) else 0.0
        else:
            xy = [[float(true[i, j, c]) for j in there] for c in (0, 1)]
            size = max((max(v) - min(v) for v in xy), default=0.0) if there else 0.0
        gaps = [math.dist(z[i, j].tolist(), true[i, j].tolist()) for j in there]
        assert float(sizes[i]) == pytest.approx(size)
        assert float(count[i]) == (len(there) if size else 0)
        assert float(hits[i]) == (sum(g <= 0.05 * size for g in gaps) if size else 0)
        assert float(error[i]) == pytest.approx(sum(gaps) / len(gaps) / size if size else 0.0)


def test_what_is_not_labelled_changes_nothing() -> None:
    z, true, where = poses()
    sizes = P.pose_sizes(true, where)
    spoilt = torch.where(where.unsqueeze(-1), z, torch.nan)
    lost = torch.where(where.unsqueeze(-1), true, torch.inf)
    torch.testing.assert_close(P.nme(spoilt, lost, sizes, where), P.nme(z, true, sizes, where))
    torch.testing.assert_close(P.pose_sizes(lost, where), sizes)
    assert torch.equal(P.pck(spoilt, lost, sizes, where=where)[0], P.pck(z, true, sizes, where=where)[0])


def test_the_area_is_that_under_the_curve() -> None:
    error = torch.tensor([0.01, 0.03, 0.09, 0.4], dtype=torch.float64)
    steps = torch.linspace(0, 0.1, 100_001, dtype=torch.float64)
    curve = (error[:, None] <= steps).double().mean(0)
    assert float(P.error_area(error, 0.1).mean()) == pytest.approx(float(curve.mean()), abs=1e-4)


def test_in_space() -> None:
    z, true, where = poses(d=3)
    where[0, 2] = True
    for i, got in enumerate(P.mpjpe(z, true, where).tolist()):
        gaps = [math.dist(z[i, j].tolist(), true[i, j].tolist()) for j in range(7) if where[i, j]]
        assert got == pytest.approx(sum(gaps) / len(gaps))
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    q = q * torch.linalg.det(q).sign()
    moved = 2.5 * true @ q + 4
    where[0] = torch.arange(7) < 4
    assert float(P.mpjpe(true, moved, where, aligned=True).max()) < 1e-9
    mirrored = true * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    assert float(P.mpjpe(mirrored, true, where, aligned=True)[0]) > 0.1  # a mirror image is another pose
    for _ in range(20):  # nothing near the solution is nearer
        near = P.procrustes(z, true, where)
        w = torch.linalg.matrix_exp(0.1 * (a := torch.randn(3, 3, dtype=torch.float64)) - 0.1 * a.T)
        other = 1.02 * near @ w + 0.05 * torch.randn(3, dtype=torch.float64)
        gap = (near - true).square().sum(-1) * where, (other - true).square().sum(-1) * where
        assert bool((gap[0].sum(-1)[1:] <= gap[1].sum(-1)[1:]).all())


def test_refusals() -> None:
    z, true, where = poses()
    with pytest.raises(ShapeError, match="points"):
        P.nme(z[:, 1:], true, torch.ones(5))
    with pytest.raises(ShapeError, match="where"):
        P.nme(z, true, torch.ones(5), where[:, 1:])
    with pytest.raises(ConfigError, match="alpha"):
        P.pck(z, true, torch.ones(5), alpha=0.0)
    with pytest.raises(ConfigError, match="threshold"):
        P.error_area(torch.ones(2), 0.0)
