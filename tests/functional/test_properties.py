"""Laws that hold for any logits: hypothesis looks for a counterexample."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck import functional as F

settings.register_profile(
    "laws", max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
LAWS = settings.get_profile("laws")

KINDS = {
    "kl": F.kl,
    "reverse": lambda s, t, **k: F.kl(s, t, direction="reverse", **k),
    "jeffreys": F.jeffreys,
    "js": F.jensen_shannon,
    "js-0.2": lambda s, t, **k: F.jensen_shannon(s, t, beta=0.2, **k),
    "skew": F.skew_kl,
    "skew-reverse": lambda s, t, **k: F.skew_kl(s, t, direction="reverse", **k),
    "tv": F.total_variation,
    "adaptive": F.adaptive_kl,
}
kinds = st.sampled_from(sorted(KINDS))


@st.composite
def pairs(draw: Any, least: int = 2) -> tuple[Tensor, Tensor]:
    """Student and teacher logits [N, C] in float64, from gentle to extreme."""
    n, c, seed = draw(st.integers(1, 4)), draw(st.integers(least, 9)), draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([0.01, 1.0, 5.0, 100.0]))
    g = torch.Generator().manual_seed(seed)
    s, t = (scale * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t


@LAWS
@given(kinds, pairs(), st.floats(0.05, 20.0))
def test_never_negative_and_zero_for_equals(name: str, pair: tuple[Tensor, Tensor], T: float) -> None:
    s, t = pair
    for dtype in (torch.float64, torch.float32):
        assert (KINDS[name](s.to(dtype), t.to(dtype), temperature=T) >= 0).all()
        same = KINDS[name](s.to(dtype), s.to(dtype).clone(), temperature=T)
        assert torch.equal(same, torch.zeros_like(same))


@LAWS
@given(kinds, pairs())
def test_positive_for_different(name: str, pair: tuple[Tensor, Tensor]) -> None:
    s, t = pair
    apart = (s.softmax(-1) - t.softmax(-1)).abs().amax(-1) > 1e-4
    assert (KINDS[name](s, t)[apart] > 0).all()


@LAWS
@given(kinds, pairs(), st.floats(-1e4, 1e4))
def test_a_constant_added_to_the_logits_changes_nothing(name: str, pair: tuple[Tensor, Tensor], shift: float) -> None:
    s, t = pair
    s, t = s.clamp(-20, 20), t.clamp(-20, 20)
    torch.testing.assert_close(KINDS[name](s + shift, t - shift), KINDS[name](s, t), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(  # in float32 the sum itself rounds: shifts that it can hold exactly
        KINDS[name]((s * 8).round().float() / 8 + round(shift), t.float()),
        KINDS[name]((s * 8).round().float() / 8, t.float()),
        rtol=1e-6,
        atol=1e-6,
    )


@LAWS
@given(kinds, pairs(), st.integers(0, 10**6))
def test_the_order_of_classes_does_not_matter(name: str, pair: tuple[Tensor, Tensor], seed: int) -> None:
    s, t = pair
    order = torch.randperm(s.shape[-1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(KINDS[name](s[:, order], t[:, order]), KINDS[name](s, t), rtol=1e-9, atol=1e-12)


@LAWS
@given(kinds, pairs(), st.floats(0.1, 20.0))
def test_t_squared(name: str, pair: tuple[Tensor, Tensor], T: float) -> None:
    s, t = pair
    torch.testing.assert_close(
        KINDS[name](s, t, temperature=T), T * T * KINDS[name](s / T, t / T), rtol=1e-9, atol=1e-12
    )


@LAWS
@given(pairs(), st.floats(0.01, 0.99))
def test_jensen_shannon(pair: tuple[Tensor, Tensor], beta: float) -> None:
    s, t = pair
    torch.testing.assert_close(F.jensen_shannon(s, t), F.jensen_shannon(t, s), rtol=1e-9, atol=1e-14)
    value = F.jensen_shannon(s, t, beta=beta)
    torch.testing.assert_close(value, F.jensen_shannon(t, s, beta=1 - beta), rtol=1e-9, atol=1e-14)
    bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    assert (value <= bound + 1e-12).all() and bound <= math.log(2) + 1e-12
    assert (F.skew_kl(s, t, mix=beta) <= -math.log(beta) + 1e-12).all()


@LAWS
@given(pairs())
def test_jensen_shannon_tends_to_the_kls(pair: tuple[Tensor, Tensor]) -> None:
    s, t = (x.clamp(-4, 4) for x in pair)
    tiny = 1e-6
    torch.testing.assert_close(F.jensen_shannon(s, t, beta=tiny) / tiny, F.kl(s, t), rtol=5e-2, atol=1e-4)
    torch.testing.assert_close(
        F.jensen_shannon(s, t, beta=1 - tiny) / tiny, F.kl(s, t, direction="reverse"), rtol=5e-2, atol=1e-4
    )


@LAWS
@given(pairs())
def test_inequalities(pair: tuple[Tensor, Tensor]) -> None:
    s, t = pair
    tv = F.total_variation(s, t)
    assert (tv <= 1 + 1e-12).all()
    for direction in ("forward", "reverse"):  # Pinsker
        assert (2 * tv.square() <= F.kl(s, t, direction=direction) + 1e-9).all()
    torch.testing.assert_close(F.kl(s, t), F.kl(t, s, direction="reverse"))
    torch.testing.assert_close(F.jeffreys(s, t), F.kl(s, t) + F.kl(t, s), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(F.soft_cross_entropy(s, t), F.kl(s, t) + F.entropy(t), rtol=1e-9, atol=1e-12)


@LAWS
@given(pairs(), st.floats(-5, 5), st.floats(-5, 5), st.integers(0, 10**6))
def test_nkd_nontarget_gradient(pair: tuple[Tensor, Tensor], shift: float, own: float, seed: int) -> None:
    t = pair[1].clamp(-20, 20)
    y = torch.randint(0, t.shape[-1], t.shape[:1], generator=torch.Generator().manual_seed(seed))
    s = (t + shift).scatter_add(1, y[:, None], torch.full_like(t[:, :1], own)).requires_grad_()
    grad = torch.autograd.grad(F.nkd(s, t, y, gamma=1.0).nontarget.sum(), s)[0]
    assert grad.abs().max() < 1e-12


@LAWS
@given(
    pairs(),
    st.sampled_from(["drop", "renormalise", "uniform_rest", "lump_rest"]),
    st.sampled_from(["forward", "reverse"]),
    st.data(),
)
def test_sparse(pair: tuple[Tensor, Tensor], tail: Any, direction: Any, data: Any) -> None:
    s, t = (x.clamp(-6, 6) for x in pair)  # a tail of less than 1e-6 is mostly rounding: 1 minus all the others
    k = data.draw(st.integers(1, t.shape[-1]))
    top = t.log_softmax(-1).topk(k)
    value = F.sparse_kl(s, top.indices, top.values, tail=tail, direction=direction)
    assert (value >= 0).all()
    order = torch.randperm(k, generator=torch.Generator().manual_seed(k))
    again = F.sparse_kl(s, top.indices[:, order], top.values[:, order], tail=tail, direction=direction)
    torch.testing.assert_close(value, again, rtol=1e-7, atol=1e-9)
    if k == t.shape[-1]:
        torch.testing.assert_close(value, F.kl(s, t, direction=direction), rtol=1e-7, atol=1e-9)
    if tail == "lump_rest":
        assert (value <= F.kl(s, t, direction=direction) + 1e-7).all()


@LAWS
@given(
    pairs(),
    st.sampled_from(["forward", "reverse", "jeffreys", "jensen_shannon", "skew_forward", "taid", "total_variation"]),
    st.integers(1, 5),
    st.floats(0.3, 5.0),
)
def test_chunks_do_not_show(pair: tuple[Tensor, Tensor], kind: Any, chunk: int, T: float) -> None:
    s, t = pair
    eye = torch.eye(s.shape[-1], dtype=torch.float64)
    one = F.chunked_divergence(s, eye, t, eye, kind=kind, chunk=10**6, temperature=T, t=0.3)
    cut = F.chunked_divergence(s, eye, t, eye, kind=kind, chunk=chunk, temperature=T, t=0.3)
    ready = F.chunked_logits(s, t, kind=kind, temperature=T, t=0.3)
    torch.testing.assert_close(one, cut, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one, ready, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"tv"}))  # whose gradient, having a kink, fades as 1/T
def test_the_gradient_fades_as_one_over_t_squared_without_the_switch(name: str) -> None:
    g = torch.Generator().manual_seed(3)
    s, t = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    sizes = []
    for T in (50.0, 100.0):
        x = s.clone().requires_grad_()
        sizes.append(torch.autograd.grad(KINDS[name](x, t, temperature=T, scale_t2=False).sum(), x)[0].norm())
    assert sizes[0] / sizes[1] == pytest.approx(4.0, rel=0.1)
