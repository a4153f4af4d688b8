"""Repair of sequences, clipped divergences, spans: by hand and at their limits."""

from __future__ import annotations

import pytest
import torch

import limbeck.functional as F
from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional import revision
from limbeck.functional.revision import (
    clip_mask,
    clip_thresholds,
    clipped_kl,
    locate_and_repair,
    span_pairs,
    span_relation,
)

P = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)
Q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_first_of_the_worst_disagreements_is_repaired() -> None:
    z_s, z_t = draw(2, 4, 5), draw(2, 4, 5, seed=1)
    z_s[0, 1], z_t[0, 1] = z_s[0, 3], z_t[0, 3]  # a tie
    mine, theirs = torch.tensor([[1, 2, 3, 4], [1, 1, 1, 1]]), torch.tensor([[1, 0, 3, 0], [1, 1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    found = locate_and_repair(z_s, z_t, mine, theirs, mask, pad=9)
    assert found.position.tolist() == [1, -1]
    assert found.prefix.tolist() == [[1, 0, 9, 9], [1, 1, 9, 9]]
    assert found.keep_length.tolist() == [2, 2]
    for name in ("reverse_kl", "symmetric_kl", "jensen_shannon", "total_variation", "confidence"):
        d = locate_and_repair(z_s, z_t, mine, theirs, mask, difference=name).difference  # type: ignore[arg-type]
        assert not d[1, 2:].any() and d[0].any()
    with pytest.raises(DataError, match="prefix"):
        locate_and_repair(z_s, z_t, mine, theirs, mask.flip(1))
    with pytest.raises(ShapeError):
        locate_and_repair(z_s, z_t, mine[:1], theirs, mask)


def test_clipping_by_hand() -> None:
    full = F.kl(Q.log(), P.log()).item()
    assert full == pytest.approx(0.093727, abs=1e-6)
    low, high = torch.tensor(0.2), torch.tensor(1.0)
    kept = clipped_kl(Q.log(), P.log(), low, high, mask="hard")
    assert kept.values.item() == pytest.approx(0.038431, abs=1e-6) and kept.kept_mass.item() == pytest.approx(0.85)
    plain = clipped_kl(Q.log(), P.log(), low, high, mask="hard", renormalise=False)
    assert plain.values.item() == pytest.approx(0.197699, abs=1e-6)
    every = clipped_kl(Q.log(), P.log(), torch.tensor(0.0), high, mask="hard")
    assert every.values.item() == pytest.approx(full, abs=1e-12)
    alone = clipped_kl(Q.log(), P.log(), torch.tensor(0.9), high, mask="hard")
    assert alone.mask.tolist() == [1, 0, 0, 0] and alone.values.item() == pytest.approx(0, abs=1e-12)
    guarded = clipped_kl(Q.log(), P.log(), torch.tensor(0.9), high, mask="hard", min_mass=0.7)
    assert guarded.mask.tolist() == [1, 1, 0, 0]
    nothing = clipped_kl(Q.log(), P.log(), torch.tensor(0.9), high, mask="hard", keep_target=False)
    assert nothing.values.item() == 0


def test_a_soft_mask_becomes_the_hard_one() -> None:
    p = draw(20, 30).softmax(-1)
    low, high = torch.full((20,), 0.011, dtype=torch.float64), torch.full((20,), 0.087, dtype=torch.float64)
    soft = clip_mask(p, low, high, tau=1e-7)
    torch.testing.assert_close(soft, clip_mask(p, low, high, mask="hard"), rtol=0, atol=1e-6)


def test_thresholds_are_quantiles_of_the_largest() -> None:
    p = draw(6, 20).softmax(-1)
    u, low = torch.rand(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = clip_thresholds(p, u, low, k=8)
    largest = p.topk(8).values
    for i in range(6):
        assert found.upper[i].item() == pytest.approx(largest[i].quantile(u[i]).item())
        assert found.lower[i].item() == pytest.approx(largest[i].quantile(low[i]).item())
    top = clip_thresholds(p, u, low, level="fraction_of_max")
    torch.testing.assert_close(top.upper, u * p.amax(-1))
    one = clip_thresholds(p, torch.ones_like(u), torch.zeros_like(u), k=500)
    torch.testing.assert_close(one.upper, p.amax(-1))
    torch.testing.assert_close(one.lower, p.amin(-1))
    torch.testing.assert_close(clip_thresholds(p, u, low, k=1).upper, p.amax(-1))
    with pytest.raises(ConfigError):
        clip_thresholds(p, u, low, k=0)
    with pytest.raises(ShapeError):
        clip_thresholds(p, u[:2], low)


def test_pairs_are_neighbours_inside_spans() -> None:
    spans = torch.tensor([[2, 5], [7, 8], [4, 6], [0, 3]])
    where = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1])
    want = sorted({(i, i + 1) for a, b in spans.tolist() for i in range(a, b - 1) if where[i] and where[i + 1]})
    assert [tuple(x) for x in span_pairs(spans, where).tolist()] == want
    assert span_pairs(spans[:0], where).shape == (0, 2)
    with pytest.raises(DataError, match="1 of 4"):
        span_pairs(torch.tensor([[2, 5], [7, 9], [4, 6], [0, 3]]), where)


def test_relations_of_neighbours() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], dtype=torch.float64).log()
    q = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]], dtype=torch.float64).log()
    pairs = torch.tensor([[0, 1]])
    assert span_relation(q, p, pairs).item() == pytest.approx(0.025)
    assert span_relation(q, p, pairs, norm="l2").item() == pytest.approx(0.025**0.5)
    assert span_relation(q, p, pairs, norm="l1").item() == pytest.approx(0.15 + 0.04 + 0.03)
    P2, Q2 = (torch.outer(x[0].exp(), x[1].exp()) for x in (p, q))
    outer = span_relation(q, p, pairs, relation="outer")
    assert outer.item() == pytest.approx((P2 - Q2).square().sum().item())
    cos = torch.nn.functional.cosine_similarity
    gap = cos(p[:1].exp(), p[1:].exp()) - cos(q[:1].exp(), q[1:].exp())
    assert span_relation(q, p, pairs, relation="cosine").item() == pytest.approx(gap.square().item())
    leaf = p.clone().requires_grad_()
    same = span_relation(leaf, p, pairs, norm="l2")
    assert same.item() == 0 and not torch.autograd.grad(same.sum(), leaf)[0].any()
    assert span_relation(q, p, pairs[:0]).shape == (0,)
    with pytest.raises(DataError, match="does not exist"):
        span_relation(q, p, pairs + 1)
    with pytest.raises(ConfigError):
        span_relation(q, p, pairs, relation="outer", norm="l1")


@pytest.mark.parametrize("mass", [0.0001, 0.3, 0.5, 0.9])
def test_the_likeliest_classes_are_those_of_the_whole_order_whether_all_are_ordered_or_not(
    mass: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = torch.Generator().manual_seed(0)
    p = torch.randint(0, 6, (40, 50), generator=drawn).float()  # many are equal
    p = torch.cat([p, p.square().square()])
    p = p / p.sum(-1, keepdim=True)
    whole = revision._likeliest(p, mass)
    monkeypatch.setattr(revision, "FEW", 30)
    assert torch.equal(revision._likeliest(p, mass), whole)
    for row, taken in zip(p.double().tolist(), whole.tolist(), strict=True):
        order = sorted(range(50), key=lambda v: (-row[v], v))
        count = sum(taken)
        assert {v for v in range(50) if taken[v]} == set(order[:count])
        assert sum(row[v] for v in order[:count]) >= mass - 1e-6
        assert sum(row[v] for v in order[: count - 1]) < mass + 1e-6
