"""Two vocabularies: sorted distances and sums over classes against slow loops, their gradients and what must hold of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.errors import ShapeError


def slow_uld(student: Tensor, teacher: Tensor, T: float) -> float:
    p, q = (sorted(torch.softmax(z / T, -1).tolist(), reverse=True) for z in (teacher, student))
    return T**2 * sum(abs(a - b) for a, b in itertools.zip_longest(p, q, fillvalue=0.0))


def slow_groups(z: Tensor, groups: list[int], classes: int, T: float) -> list[float]:
    found = []
    for c in range(classes):
        mass = sum(math.exp(float(v) / T) for v, g in zip(z, groups, strict=True) if g == c)
        found.append(T * math.log(mass) if mass else -math.inf)
    return found


@pytest.mark.parametrize(("V", "U"), [(6, 6), (4, 9), (9, 4)])
@pytest.mark.parametrize("T", [1.0, 2.5])
def test_uld_against_a_loop_and_its_gradient(V: int, U: int, T: float) -> None:
    s, t = torch.randn(3, V, dtype=torch.float64, requires_grad=True), torch.randn(3, U, dtype=torch.float64)
    found = F.uld(s, t, temperature=T)
    assert found.tolist() == pytest.approx([slow_uld(a, b, T) for a, b in zip(s, t, strict=True)])
    assert torch.autograd.gradcheck(lambda x: F.uld(x, t, temperature=T), (s,))


def test_uld_is_zero_for_permutations_alone_symmetric_and_at_most_two() -> None:
    z = 5 * torch.randn(50, 8, dtype=torch.float64)
    assert float(F.uld(z, z[:, torch.randperm(8)]).max()) < 1e-12
    wide = torch.cat([z, torch.full((50, 3), -math.inf)], -1)
    assert float(F.uld(z, wide).max()) < 1e-12
    other = 5 * torch.randn(50, 8, dtype=torch.float64)
    assert torch.allclose(F.uld(z, other), F.uld(other, z)) and float(F.uld(z, other).min()) > 1e-6
    spread, peak = torch.zeros(1, 10_000), torch.tensor([[0.0] + [-100.0] * 4])
    assert 1.99 < float(F.uld(spread, peak)) <= 2


@pytest.mark.parametrize("T", [0.5, 1.0, 3.0])
def test_groups_against_a_loop_and_their_gradient(T: float) -> None:
    groups = [2, 0, 0, -1, 2, 2, 1]
    z = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    found = F.grouped_logits(z, torch.tensor(groups), 4, temperature=T)
    assert torch.allclose(found, torch.tensor([slow_groups(r, groups, 4, T) for r in z.detach()], dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: F.grouped_logits(x, torch.tensor(groups), 3, temperature=T), (z,))


def test_a_renaming_changes_no_divergence_and_merging_makes_none_larger() -> None:
    s, t = torch.randn(30, 8, dtype=torch.float64), torch.randn(30, 8, dtype=torch.float64)
    order = torch.randperm(8)
    for T in (1.0, 2.0):
        plain = F.kl(s, t, temperature=T)
        renamed = [F.grouped_logits(z, order, 8, temperature=T) for z in (s, t)]
        assert torch.equal(renamed[0], s[:, order.argsort()])
        assert torch.allclose(F.kl(*renamed, temperature=T), plain)
        coarse = [F.grouped_logits(z, torch.arange(8) // 3, 3, temperature=T) for z in (s, t)]
        assert bool((F.kl(*coarse, temperature=T) <= plain + 1e-12).all())


def test_infinite_and_masked_logits_keep_gradients_finite() -> None:
    z = torch.tensor([[1.0, -math.inf, -math.inf, 2.0], [math.nan] * 4], requires_grad=True)
    where = torch.tensor([True, False])
    found = F.grouped_logits(z, torch.tensor([0, 1, 1, 2]), 3, where=where)
    assert found[0, 1] == -math.inf and not found[1].any()
    found[:, [0, 2]].sum().backward()
    assert z.grad is not None and z.grad.tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]
    big = torch.tensor([[1000.0, -1000.0, 999.0, 0.0]])
    assert torch.isfinite(F.grouped_logits(big, torch.tensor([0, 1, 0, 1]), 2, temperature=0.05)).all()


def test_spans_multiply_conditional_probabilities() -> None:
    p = torch.tensor([[0.5, 0.5, 0.9, 0.25], [1.0, 0.1, 1e-30, 0.3]], dtype=torch.float64)
    spans = torch.tensor([[0, 0, -1, 1], [-1, 0, 1, 1]])
    found = F.span_logits(p.log(), spans, 3).exp()
    assert torch.allclose(found[..., 0], torch.tensor([[0.25, 0.25, 1.0], [0.1, 3e-31, 1.0]], dtype=torch.float64))
    assert torch.allclose(found.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    logs = torch.randn(2, 4, dtype=torch.float64).abs().neg().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.span_logits(x, spans, 2), (logs,))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="groups"):
        F.grouped_logits(torch.randn(2, 5), torch.zeros(4, dtype=torch.long), 1)
    with pytest.raises(ShapeError, match="teacher"):
        F.uld(torch.randn(2, 5), torch.randn(3, 5))
    with pytest.raises(ShapeError, match="spans"):
        F.span_logits(torch.randn(2, 5), torch.zeros(2, 4, dtype=torch.long), 1)
