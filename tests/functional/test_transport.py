"""Sinkhorn distances: against loops, at their limits, and what they do not see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import limbeck.functional as F
from limbeck.errors import ConfigError, DataError, ShapeError, TeacherMismatch
from limbeck.functional.transport import pairwise_cost, sinkhorn, sinkhorn_classes, sinkhorn_plan


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def by_loops(z_s: Tensor, z_t: Tensor, T: float, eps: float, n: int) -> tuple[list[list[float]], float]:
    """Plan and distance, number by number."""
    q, p = (z_s / T).softmax(-1).tolist(), (z_t / T).softmax(-1).tolist()
    D = [[sum(abs(a - b) for a, b in zip(x, y, strict=True)) for y in p] for x in q]
    K = [[math.exp(-d / eps) for d in row] for row in D]
    for _ in range(n):
        K = [[k / sum(row) for k in row] for row in K]
        sums = [sum(row[j] for row in K) for j in range(len(K[0]))]
        K = [[k / s for k, s in zip(row, sums, strict=True)] for row in K]
    return K, sum(k * d for a, b in zip(K, D, strict=True) for k, d in zip(a, b, strict=True))


def test_plan_and_distance_are_those_of_loops() -> None:
    z_s, z_t = logits(5, 4), logits(5, 4, seed=1)
    for T, eps, n in ((2.0, 0.1, 20), (1.0, 0.5, 3), (4.0, 0.05, 1)):
        K, total = by_loops(z_s, z_t, T, eps, n)
        cost = pairwise_cost((z_s / T).softmax(-1), (z_t / T).softmax(-1))
        plan = sinkhorn_plan(cost, eps=eps, iterations=n)
        torch.testing.assert_close(plan, torch.tensor(K, dtype=torch.float64))
        torch.testing.assert_close(sinkhorn_plan(cost, eps=eps, iterations=n, log_domain=False), plan)
        assert sinkhorn(z_s, z_t, temperature=T, eps=eps, iterations=n).sum().item() == pytest.approx(total)
        torch.testing.assert_close(plan.sum(0), torch.ones(5, dtype=torch.float64))


def test_the_hand_example() -> None:
    z_s, z_t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    cost = pairwise_cost((z_s / 2).softmax(-1), (z_t / 2).softmax(-1))
    torch.testing.assert_close(cost[0], torch.tensor([0.217198, 0.707036]), rtol=0, atol=1e-6)
    torch.testing.assert_close(sinkhorn_plan(cost)[0], torch.tensor([0.992597, 0.007403]), rtol=0, atol=1e-6)


def test_it_matches_sets_and_the_plain_kernel_says_when_it_underflows() -> None:
    z_s, z_t = logits(6, 3), logits(6, 3, seed=1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    whole = sinkhorn(z_s, z_t).sum()
    torch.testing.assert_close(sinkhorn(z_s, z_t[order]).sum(), whole)
    torch.testing.assert_close(sinkhorn(z_s[order], z_t).sum(), whole)
    far = torch.tensor([[9.0, 0.0, 0.0]] * 2)
    with pytest.raises(DataError, match="log_domain=True"):
        sinkhorn(far, -far, eps=1e-3, log_domain=False)
    assert torch.isfinite(sinkhorn(far, -far, eps=1e-3)).all()
    # equal batches cost little, and less with a smaller eps
    costs = [sinkhorn(z_t, z_t, eps=e, iterations=200).sum().item() for e in (0.3, 0.1, 0.01, 0.002)]
    assert costs == sorted(costs, reverse=True) and costs[0] > 0.01 and costs[-1] < 1e-3


def test_masked_rows_leave_the_others_as_if_alone() -> None:
    z_s, z_t = logits(6, 3).requires_grad_(), logits(6, 3, seed=1)
    where = torch.tensor([True, False, True, True, False, True])
    masked = sinkhorn(z_s, z_t, where=where)
    alone = sinkhorn(z_s[where], z_t[where])
    torch.testing.assert_close(masked[where], alone)
    (a,) = torch.autograd.grad(masked.sum(), z_s)
    (b,) = torch.autograd.grad(alone.sum(), z_s)
    torch.testing.assert_close(a, b)
    assert torch.isfinite(a).all()
    none = sinkhorn(z_s, z_t, where=torch.zeros(6))
    assert not none.any()
    assert not torch.autograd.grad(none.sum(), z_s)[0].any()


def test_a_constant_plan_has_the_unrolled_gradient_at_convergence() -> None:
    """At the optimum the plan's own change costs nothing but the entropy: both gradients point the same way."""
    z_s, z_t = logits(4, 3, scale=1).requires_grad_(), logits(4, 3, seed=1, scale=1)
    cost = pairwise_cost((z_s / 2).softmax(-1), (z_t / 2).softmax(-1))
    plan = sinkhorn_plan(cost.detach(), iterations=500)
    (by_hand,) = torch.autograd.grad((plan * cost).sum(), z_s)
    (detached,) = torch.autograd.grad(sinkhorn(z_s, z_t, iterations=500, detach_plan=True).sum(), z_s)
    torch.testing.assert_close(detached, by_hand)
    # the envelope theorem: the gradient of cost - eps entropy is the plan itself
    leaf = cost.detach().requires_grad_()
    P = sinkhorn_plan(leaf, iterations=500)
    entropic = (P * leaf).sum() + 0.1 * (P * P.log()).sum()
    (slope,) = torch.autograd.grad(entropic, leaf)
    torch.testing.assert_close(slope, P.detach(), rtol=1e-4, atol=1e-6)


def test_the_released_sequences_normalise_over_the_batch() -> None:
    z_s, z_t = logits(2, 3, 4), logits(2, 3, 4, seed=1)
    q, p = (z_s / 2).softmax(1), (z_t / 2).softmax(1)
    D = (q[:, :, None] - p[:, None]).abs().sum(-1)
    K = (-D / 0.1).exp()
    for _ in range(20):
        K = K / K.sum(1, keepdim=True)
        K = K / K.sum(0, keepdim=True)
    torch.testing.assert_close(sinkhorn(z_s, z_t, variant="released"), (K * D).sum(-1))
    each = torch.stack([sinkhorn(a, b) for a, b in zip(z_s, z_t, strict=True)])
    torch.testing.assert_close(sinkhorn(z_s, z_t), each)


def test_the_most_likely_classes_stand_for_all() -> None:
    z_s, z_t = logits(4, 9, scale=4), logits(4, 9, seed=1, scale=4)
    whole = sinkhorn(z_s, z_t)
    torch.testing.assert_close(sinkhorn(z_s, z_t, top=8), whole)
    q, p = (z_s / 2).softmax(-1), (z_t / 2).softmax(-1)
    best = torch.maximum(q, p).amax(0).topk(3).indices
    q, p = (torch.cat([x[:, best], 1 - x[:, best].sum(1, keepdim=True)], 1) for x in (q, p))
    cost = pairwise_cost(q, p)
    torch.testing.assert_close(sinkhorn(z_s, z_t, top=3), (sinkhorn_plan(cost) * cost).sum(-1))


@pytest.mark.parametrize("metric", ["zero_one", "distance"])
def test_between_classes_it_is_the_transport_of_loops(metric: str) -> None:
    z_s, z_t = logits(3, 5, scale=1), logits(3, 5, seed=1, scale=1)
    got = sinkhorn_classes(z_s, z_t, temperature=1.5, eps=0.2, iterations=300, metric=metric)  # type: ignore[arg-type]
    for i in range(3):
        q, p = (z_s[i] / 1.5).softmax(-1), (z_t[i] / 1.5).softmax(-1)
        at = torch.arange(5.0, dtype=torch.float64)
        C = (at[:, None] - at).abs() / 4 if metric == "distance" else 1 - torch.eye(5, dtype=torch.float64)
        K = (-C / 0.2).exp()
        v = torch.ones(5, dtype=torch.float64)
        for _ in range(300):
            u = q / (K @ v)
            v = p / (K.T @ u)
        assert got[i].item() == pytest.approx(((u[:, None] * K * v) * C).sum().item(), rel=1e-9)
    sharp = sinkhorn_classes(z_s, z_t, temperature=1.0, eps=0.005, iterations=3000, metric="zero_one")
    torch.testing.assert_close(sharp, F.total_variation(z_s, z_t), rtol=1e-3, atol=1e-3)
    assert sinkhorn_classes(z_s * 1e3, z_t * 1e3, eps=0.01).isfinite().all()


def test_between_classes_a_constant_plan_descends() -> None:
    z_s, z_t = logits(4, 5).requires_grad_(), logits(4, 5, seed=1)
    for metric in ("zero_one", "distance"):
        value = sinkhorn_classes(z_s, z_t, eps=0.05, iterations=500, metric=metric, detach_plan=True)  # type: ignore[arg-type]
        plain = sinkhorn_classes(z_s, z_t, eps=0.05, iterations=500, metric=metric)  # type: ignore[arg-type]
        torch.testing.assert_close(value, plain)
        (a,) = torch.autograd.grad(value.sum(), z_s, retain_graph=True)
        (b,) = torch.autograd.grad(plain.sum(), z_s)
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.8


def test_gradients_survive_disjoint_supports_where_jensen_shannon_fades() -> None:
    """The paper's reason: in the probabilities the transport's slope stays where those of JS and KL vanish or explode."""
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    slopes = []
    for tiny in (1e-3, 1e-9):
        q = torch.tensor([[tiny, 1 - tiny]] * 2, dtype=torch.float64, requires_grad=True)
        D = pairwise_cost(q, p)
        (g,) = torch.autograd.grad((sinkhorn_plan(D) * D).sum(), q)
        slopes.append(g.abs().max().item())
    assert slopes[0] == pytest.approx(1.0, rel=1e-6) and slopes[1] == pytest.approx(1.0, rel=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    z = logits(3, 4)
    for words, error in (
        ({"eps": 0.0}, ConfigError),
        ({"iterations": 0}, ConfigError),
        ({"temperature": 0.0}, ConfigError),
        ({"norm": "l3"}, ConfigError),
    ):
        with pytest.raises(error):
            sinkhorn(z, z, **words)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        sinkhorn_classes(z, z, metric="other")  # type: ignore[arg-type]
    with pytest.raises(TeacherMismatch):
        sinkhorn(z, z[:, :3])
    with pytest.raises(ShapeError):
        sinkhorn(z[0], z[0])
    with pytest.raises(ShapeError):
        sinkhorn_plan(torch.zeros(2, 3), where=torch.ones(2))
