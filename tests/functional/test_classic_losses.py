"""RKD, CC, PKT, VID, NST, CRD and ReviewKD's loss: each equation in slow loops, and torchdistill's value beside it.

The recorded values are those of torchdistill 1.1.5 for the tensors below; where it is installed, it is asked again.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional import contrast, feature, relation
from limbeck.functional.divergence import kl

N = 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(x: Tensor) -> Tensor:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_angles_are_the_loops() -> None:
    s, t = draw(5, 3), draw(5, 4, seed=1)

    def cosine(x: Tensor, i: int, j: int, k: int) -> Tensor:
        a, b = x[i] - x[j], x[k] - x[j]
        return a @ b / (a.norm() * b.norm())

    want = [
        sum(huber(cosine(t, i, j, k) - cosine(s, i, j, k)) for i in range(5) for k in range(5) if len({i, j, k}) == 3)
        / (4 * 3)
        for j in range(5)
    ]
    torch.testing.assert_close(relation.angles(s, t), torch.stack(want))  # type: ignore[arg-type]
    turned = torch.linalg.qr(draw(3, 3, seed=2))[0]
    assert relation.angles(3 * s @ turned + 1, s).max() < 1e-20  # turned, moved and scaled: the same angles
    where = torch.tensor([1, 0, 1, 1, 1]).bool()
    masked = relation.angles(torch.where(where[:, None], s, torch.nan), t, where=where)
    torch.testing.assert_close(masked[where], relation.angles(s[where], t[where]))
    assert masked[1] == 0


@pytest.mark.parametrize("order", [1, 2, None])
def test_congruence_is_the_loops(order: int | None) -> None:
    s, t, gamma = draw(5, 3), draw(5, 4, seed=1), 0.4

    def k(x: Tensor, y: Tensor) -> Tensor:
        x, y = x / x.norm(), y / y.norm()
        if order is None:
            return torch.exp(-gamma * (x - y).square().sum())
        return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * (x @ y) ** p for p in range(order + 1))  # type: ignore[return-value]

    want = torch.stack([sum((k(s[i], s[j]) - k(t[i], t[j])) ** 2 for j in range(5)) / 5 for i in range(5)])  # type: ignore[misc]
    torch.testing.assert_close(relation.congruence(s, t, gamma=gamma, order=order), want)
    plain = ((s @ s.T - t @ t.T) ** 2).sum(1) / 5
    torch.testing.assert_close(relation.congruence(s, t, kernel="bilinear"), plain)
    where = torch.tensor([1, 0, 1, 1, 1]).bool()
    masked = relation.congruence(torch.where(where[:, None], s, torch.nan), t, order=order, where=where)
    torch.testing.assert_close(masked[where], relation.congruence(s[where], t[where], order=order))
    for wrong in ({"gamma": 0.0}, {"order": 0}, {"kernel": "cubic"}):
        with pytest.raises(ConfigError):
            relation.congruence(s, t, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("itself", [False, True])
def test_neighbours_are_the_loops(itself: bool) -> None:
    s, t = draw(5, 3), draw(5, 4, seed=1)

    def p(x: Tensor, i: int) -> list[Tensor]:
        near = [(1 + x[i] @ x[j] / (x[i].norm() * x[j].norm())) / 2 for j in range(5) if itself or j != i]
        return [v / sum(near) for v in near]

    want = torch.stack([sum(a * (a / b).log() for a, b in zip(p(t, i), p(s, i), strict=True)) for i in range(5)])  # type: ignore[misc]
    torch.testing.assert_close(relation.neighbours(s, t, itself=itself), want)
    assert (relation.neighbours(s, t) > 0).all() and relation.neighbours(2 * t, t).abs().max() < 1e-12
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    relation.neighbours(opposite, opposite.detach().flip(0)).sum().backward()
    assert opposite.grad is not None and bool(opposite.grad.isfinite().all())


def test_variational_is_a_gaussian_s_likelihood() -> None:
    m, t, v = draw(4, 3, 5), draw(4, 3, 5, seed=1), draw(3, seed=2).exp()
    exact = -torch.distributions.Normal(m, v.sqrt()[:, None]).log_prob(t).mean((1, 2)) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(feature.variational(m, t, v), exact)
    flat = feature.variational(m[:, :, 0], t[:, :, 0], v)
    torch.testing.assert_close(flat, feature.variational(m[:, :, :1], t[:, :, :1], v))
    # the best variance is the mean squared error of the channel
    best = (t - m).square().mean((0, 2))
    assert all(feature.variational(m, t, best).mean() < feature.variational(m, t, best * k).mean() for k in (0.9, 1.1))
    with pytest.raises(ShapeError, match="variance"):
        feature.variational(m, t, v[:2])
    with pytest.raises(ShapeError, match="teacher"):
        feature.variational(m, t[:, :2], v)


@pytest.mark.parametrize("kernel", ["polynomial", "linear", "gaussian"])
def test_channel_selectivity_is_the_loops(kernel: Any) -> None:
    s, t = draw(2, 3, 2, 2), draw(2, 4, 2, 2, seed=1)
    for n in range(2):
        a, b = ([x / x.norm() for x in f[n].flatten(1)] for f in (s, t))
        squares = torch.stack([(x - y).square().sum() for x in [*a, *b] for y in [*a, *b]])

        def k(x: Tensor, y: Tensor, width: float = float(squares.mean())) -> Tensor:
            return {
                "polynomial": (x @ y) ** 2,
                "linear": x @ y,
                "gaussian": torch.exp(-(x - y).square().sum() / (2 * width)),
            }[kernel]

        def mean(p: list[Tensor], q: list[Tensor]) -> Tensor:
            return sum(k(x, y) for x in p for y in q) / (len(p) * len(q))  # type: ignore[return-value]

        want = mean(b, b) + mean(a, a) - 2 * mean(b, a)
        torch.testing.assert_close(feature.channel_selectivity(s, t, kernel=kernel)[n], want)
    same = feature.channel_selectivity(3 * t[:, [3, 1, 0, 2]], t, kernel=kernel)
    assert same.abs().max() < 1e-12  # which channel is which does not matter
    larger = torch.nn.functional.interpolate(t, scale_factor=2, mode="nearest")
    torch.testing.assert_close(
        feature.channel_selectivity(s, larger, kernel=kernel), feature.channel_selectivity(s, t, kernel=kernel)
    )
    with pytest.raises(ShapeError):
        feature.channel_selectivity(s.flatten(1), t.flatten(1))


def test_pyramid_distance_is_the_loops() -> None:
    s, t = draw(2, 3, 5, 5), draw(2, 3, 5, 5, seed=1)
    pool = torch.nn.functional.adaptive_avg_pool2d
    want = sum(
        w * (pool(s, k) - pool(t, k)).square().flatten(1).mean(1) for w, k in ((1, 5), (0.5, 4), (0.25, 2), (0.125, 1))
    )
    torch.testing.assert_close(feature.pyramid_distance(s, t), want / 1.875)  # type: ignore[operator]
    small = feature.pyramid_distance(s[..., :2, :2], t[..., :2, :2], sizes=(4, 2, 1))
    gap = s[..., :2, :2] - t[..., :2, :2]
    torch.testing.assert_close(
        small, (gap.square().mean((1, 2, 3)) + 0.5 * gap.mean((2, 3)).square().mean(1)) / 1.5
    )  # sizes of the map or above are left out
    with pytest.raises(ShapeError):
        feature.pyramid_distance(s, t[:, :2])


def test_the_critic_is_the_equation() -> None:
    z, own = draw(4, 6), torch.tensor([[1, 0, 1, 1, 0]] * 4).bool()
    for log_z in (0.0, 1.3):
        for mask in (None, own):
            want = []
            for row in z:
                k = 5 if mask is None else 3
                h = [(math.exp(v - log_z)) / (math.exp(v - log_z) + k / 100) for v in row.tolist()]
                others = [
                    v for v, kept in zip(h[1:], [1] * 5 if mask is None else [1, 0, 1, 1, 0], strict=True) if kept
                ]
                want.append(-math.log(h[0]) - sum(math.log(1 - v) for v in others))
            got = contrast.contrastive_critic(z, items=100, own=mask, log_z=log_z)
            torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))
    wild = torch.tensor([[1e3, -1e3], [-1e3, 1e3]], requires_grad=True)
    contrast.contrastive_critic(wild, items=100).sum().backward()
    assert wild.grad is not None and bool(wild.grad.isfinite().all())
    for wrong in ({"items": 0}, {"items": 5, "own": own[:, :2]}):
        with pytest.raises((ConfigError, ShapeError)):
            contrast.contrastive_critic(z, **wrong)
    with pytest.raises(ShapeError, match="scores"):
        contrast.contrastive_critic(z[:, :1], items=5)


# ------------------------------------------------------------------------------------------------ beside torchdistill


class Given:
    """Features of both networks, float32."""

    def __init__(self) -> None:
        self.maps_s, self.maps_t = draw(N, 6, 8, 8).float(), draw(N, 10, 8, 8, seed=1).float()
        self.s, self.t = draw(N, 12, seed=2).float(), draw(N, 16, seed=3).float()
        self.z_s, self.z_t = 3 * draw(N, 5, seed=4).float(), 3 * draw(N, 5, seed=5).float()
        self.unit_s, self.unit_t = feature.unit(self.s), feature.unit(self.t)
        self.wide = draw(N, 10, 8, 8, seed=6).float()
        self.variance = draw(10, seed=7).float().exp()
        self.memory = feature.unit(draw(40, 12, seed=8)).float()
        self.chosen = torch.randint(0, 40, (N, 6), generator=torch.Generator().manual_seed(9))


def out(x: Any) -> dict[str, Any]:
    return {"m": {"output": x}}


def pairs(**more: Any) -> dict[str, Any]:
    at = {"path": "m", "io": "output"}
    return {"p": {"student": at, "teacher": at, "weight": 1.0, "factor": 1.0, **more}}


def crd(m: Any, g: Given) -> Tensor:
    made = m.CRDLoss("m", "e", "m", 12, 40, 5, 40)
    made.memory_v1.copy_(g.memory)
    made.memory_v2.copy_(g.memory.flip(0))
    at = {"input": {"pos_idx": g.chosen[:, 0], "contrast_idx": g.chosen}}
    return made({**out(g.unit_s), "e": at}, out(feature.unit(g.s + 0.5 * g.t[:, :12])))  # type: ignore[no-any-return]


def our_crd(g: Given) -> Tensor:
    total = torch.zeros(())
    other = feature.unit(g.s + 0.5 * g.t[:, :12])
    for v, memory in ((g.unit_s, g.memory.flip(0)), (other, g.memory)):
        scores = torch.einsum("nd,nkd->nk", v, memory[g.chosen]) / 0.07
        log_z = (scores.exp().mean() * 40).log()
        total = total + contrast.contrastive_critic(scores, items=40, log_z=log_z).mean()
    return total


# name: (the value recorded, theirs, ours converted)
TABLE: dict[str, tuple[float, Callable[[Any, Given], Tensor], Callable[[Given], Tensor]]] = {
    "ATLoss(mode=code)": (
        0.006705284,
        lambda m, g: m.ATLoss(pairs(), mode="code")(out(g.maps_s), out(g.maps_t)),
        lambda g: feature.attention_transfer(g.maps_s, g.maps_t).mean() / 64,
    ),
    "ATLoss(mode=paper)": (
        0.6529866,
        lambda m, g: m.ATLoss(pairs(), mode="paper")(out(g.maps_s), out(g.maps_t)),
        lambda g: feature.attention_transfer(g.maps_s, g.maps_t).sqrt().mean(),
    ),
    "RKDLoss(dist_factor=1)": (
        0.02982659,
        lambda m, g: m.RKDLoss("m", "m", 1.0, 0.0, "mean")(out(g.s), out(g.t)),
        lambda g: relation.distances(g.s, g.t).mean() * (N - 1) / N,
    ),
    "RKDLoss(angle_factor=1)": (
        0.03192629,
        lambda m, g: m.RKDLoss("m", "m", 0.0, 1.0, "mean")(out(g.s), out(g.t)),
        lambda g: relation.angles(g.s, g.t).mean() * (N - 1) * (N - 2) / N**2,
    ),
    "PKTLoss()": (
        0.004401665,
        lambda m, g: m.PKTLoss("m", "output", "m", "output")(out(g.s), out(g.t)),
        lambda g: relation.neighbours(g.s, g.t, itself=True).mean() / N,
    ),
    "CCKDLoss(gaussian), features of length one": (
        0.0138512,
        lambda m, g: m.CCKDLoss("m", "m", {"type": "gaussian", "gamma": 0.4, "max_p": 2}, "batchmean")(
            out(g.unit_s), out(g.unit_t)
        ),
        lambda g: relation.congruence(g.s, g.t).mean().sqrt() / N,
    ),
    "CCKDLoss(bilinear)": (
        0.537624,
        lambda m, g: m.CCKDLoss("m", "m", {"type": "bilinear"}, "batchmean")(out(g.s), out(g.t)),
        lambda g: relation.congruence(g.s, g.t, kernel="bilinear").mean().sqrt() / N,
    ),
    "VIDLoss()": (
        1.551489,
        lambda m, g: m.VIDLoss(pairs())(out((g.wide, g.variance[None, :, None, None])), out(g.maps_t)),
        lambda g: feature.variational(g.wide, g.maps_t, g.variance).mean(),
    ),
    "HierarchicalContextLoss()": (
        1.166842,
        lambda m, g: m.HierarchicalContextLoss("m", "output", "m", "output")(out((g.wide, None)), out(g.maps_t)),
        lambda g: feature.pyramid_distance(g.wide, g.maps_t).mean(),
    ),
    "CRDLoss()": (15.40002, crd, our_crd),
    "DISTLoss(tau=2)": (
        8.342784,
        lambda m, g: m.DISTLoss("m", "output", "m", "output", tau=2.0)(out(g.z_s), out(g.z_t)),
        lambda g: sum(4 * v.mean() for v in relation.dist(g.z_s, g.z_t, temperature=2.0, eps=1e-8)),  # type: ignore[return-value, misc]
    ),
    "KDLoss(alpha=1e-9)": (
        6.017484,
        lambda m, g: m.KDLoss("m", "output", "m", "output", temperature=4.0, alpha=1e-9)(
            out(g.z_s), out(g.z_t), torch.zeros(N).long()
        ),
        lambda g: kl(g.z_s, g.z_t, temperature=4.0).mean(),
    ),
}


@pytest.fixture(scope="module")
def given() -> Given:
    return Given()


def mid_level() -> Any:
    peers = importlib.import_module("benchmarks.peers") if (Path(__file__).parents[2] / "benchmarks").is_dir() else None
    if peers is not None:
        peers.reach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchdistill.losses.mid_level", reason="torchdistill is not installed")


@pytest.mark.parametrize("name", TABLE)
def test_the_recorded_value_is_ours_converted(name: str, given: Given) -> None:
    value, _, ours = TABLE[name]
    assert float(ours(given)) == pytest.approx(value, rel=1e-4)


def test_torchdistill_still_says_so(given: Given) -> None:
    m = mid_level()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {name: float(theirs(m, given)) for name, (_, theirs, _) in TABLE.items()}
        sp = float(m.SPKDLoss("m", "m", "batchmean")(out(given.maps_s), out(given.maps_t)))
    assert found == pytest.approx({name: row[0] for name, row in TABLE.items()}, rel=1e-4)
    # its SP divides rows by the sum of their absolute values, where the paper divides by their length
    grams = [x.flatten(1) @ x.flatten(1).T for x in (given.maps_s, given.maps_t)]
    other = [k / k.abs().sum(1, keepdim=True) for k in grams]
    assert sp == pytest.approx(float((other[0] - other[1]).square().sum()) / N**2, rel=1e-4)
    assert sp != pytest.approx(float(relation.gram(given.maps_s, given.maps_t).mean()), rel=1e-2)


def test_the_page_states_the_conversions() -> None:
    page = Path(__file__).parents[2] / "docs" / "conventions.md"
    if not page.is_file():
        pytest.skip("the documentation is not beside the tests")
    text = page.read_text(encoding="utf-8")
    for name in TABLE:
        if not name.startswith("KDLoss"):
            assert f"`{name.split(',')[0]}`" in text, name
