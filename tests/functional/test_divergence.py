"""Every divergence against a slow float64 reference written from its definition, and at the edges of its domain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.errors import ConfigError, DataError, ShapeError, TeacherMismatch

C = 7

# --------------------------------------------------------------------------------------------------------------------
# References: one row at a time, in plain float64.


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def rel(p: np.ndarray, q: np.ndarray) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def cross(p: np.ndarray, q: np.ndarray) -> float:
    return -math.fsum(a * math.log(b) for a, b in zip(p, q, strict=True) if a > 0)


def ref_kl(s: np.ndarray, t: np.ndarray, y: int, T: float) -> float:
    return T * T * rel(softmax(t / T), softmax(s / T))


def ref_reverse(s: np.ndarray, t: np.ndarray, y: int, T: float) -> float:
    return T * T * rel(softmax(s / T), softmax(t / T))


def ref_jeffreys(s: np.ndarray, t: np.ndarray, y: int, T: float) -> float:
    return ref_kl(s, t, y, T) + ref_reverse(s, t, y, T)


def ref_js(s: np.ndarray, t: np.ndarray, y: int, T: float, beta: float) -> float:
    p, q = softmax(t / T), softmax(s / T)
    m = beta * p + (1 - beta) * q
    return T * T * (beta * rel(p, m) + (1 - beta) * rel(q, m))


def ref_skew(s: np.ndarray, t: np.ndarray, y: int, T: float, direction: str, mix: float) -> float:
    p, q = softmax(t / T), softmax(s / T)
    a, b = (p, q) if direction == "forward" else (q, p)
    return T * T * rel(a, mix * a + (1 - mix) * b)


def ref_tv(s: np.ndarray, t: np.ndarray, y: int, T: float) -> float:
    return T * T * 0.5 * float(np.abs(softmax(t / T) - softmax(s / T)).sum())


def ref_adaptive(s: np.ndarray, t: np.ndarray, y: int, T: float, threshold: float, variant: str) -> float:
    p, q = softmax(t / T), softmax(s / T)
    head = np.zeros(len(p), dtype=bool)
    if variant == "paper":
        mass = 0.0
        for c in np.argsort(-p, kind="stable"):
            if mass >= threshold:
                break
            head[c] = True
            mass += p[c]
    else:
        head = np.cumsum(np.sort(p)) >= threshold  # sorted positions laid over unsorted classes: the released slip
    gap = np.abs(p - q)
    share = gap[head].sum() / gap.sum()
    forward = rel(p, q) if variant == "paper" else cross(p, q)
    return float(T * T * (share * forward + (1 - share) * rel(q, p)))


def ref_soft(s: np.ndarray, t: np.ndarray, y: int, T: float) -> float:
    return T * T * cross(softmax(t / T), softmax(s / T))


def ref_dkd(s: np.ndarray, t: np.ndarray, y: int, T: float, alpha: float, beta: float) -> float:
    p, q = softmax(t / T), softmax(s / T)
    rest = [c for c in range(len(p)) if c != y]
    target = rel(np.array([p[y], p[rest].sum()]), np.array([q[y], q[rest].sum()]))
    others = rel(p[rest] / p[rest].sum(), q[rest] / q[rest].sum())
    return T * T * (alpha * target + beta * others)


def ref_nkd(s: np.ndarray, t: np.ndarray, y: int, T: float, gamma: float) -> float:
    rest = [c for c in range(len(s)) if c != y]
    target = -softmax(t)[y] * math.log(softmax(s)[y])
    return target + gamma * T * T * cross(softmax(t[rest] / T), softmax(s[rest] / T))


def ref_taid(s: np.ndarray, t: np.ndarray, y: int, T: float, at: float, space: str, value: str) -> float:
    if space == "logits":
        target = softmax((1 - at) * s / T + at * t / T)
    else:
        target = (1 - at) * softmax(s / T) + at * softmax(t / T)
    return T * T * (cross if value == "cross_entropy" else rel)(target, softmax(s / T))


def ref_binary(s: np.ndarray, t: np.ndarray, y: int, T: float) -> float:
    total = 0.0
    for a, b in zip(s / T, t / T, strict=True):
        q, p = ([1 / (1 + math.exp(-z)), 1 / (1 + math.exp(z))] for z in (a, b))
        total += rel(np.array(p), np.array(q))
    return T * T * total


Call = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Case = tuple[Call, Callable[..., float], tuple[Any, ...]]


def _case(call: Call, reference: Callable[..., float], *extra: Any) -> Case:
    return call, reference, extra


CASES: dict[str, Case] = {
    "kl": _case(lambda s, t, y, T: F.kl(s, t, temperature=T), ref_kl),
    "reverse": _case(lambda s, t, y, T: F.kl(s, t, direction="reverse", temperature=T), ref_reverse),
    "jeffreys": _case(lambda s, t, y, T: F.jeffreys(s, t, temperature=T), ref_jeffreys),
    "js": _case(lambda s, t, y, T: F.jensen_shannon(s, t, temperature=T), ref_js, 0.5),
    "js-0.1": _case(lambda s, t, y, T: F.jensen_shannon(s, t, beta=0.1, temperature=T), ref_js, 0.1),
    "skew": _case(lambda s, t, y, T: F.skew_kl(s, t, temperature=T), ref_skew, "forward", 0.1),
    "skew-reverse": _case(
        lambda s, t, y, T: F.skew_kl(s, t, direction="reverse", mix=0.3, temperature=T), ref_skew, "reverse", 0.3
    ),
    "tv": _case(lambda s, t, y, T: F.total_variation(s, t, temperature=T), ref_tv),
    "adaptive": _case(lambda s, t, y, T: F.adaptive_kl(s, t, temperature=T), ref_adaptive, 0.5, "paper"),
    "adaptive-0.8": _case(
        lambda s, t, y, T: F.adaptive_kl(s, t, head_threshold=0.8, temperature=T), ref_adaptive, 0.8, "paper"
    ),
    "adaptive-released": _case(
        lambda s, t, y, T: F.adaptive_kl(s, t, head_threshold=0.3, variant="released", temperature=T),
        ref_adaptive,
        0.3,
        "released",
    ),
    "soft": _case(lambda s, t, y, T: F.soft_cross_entropy(s, t, temperature=T), ref_soft),
    "dkd": _case(lambda s, t, y, T: sum(F.dkd(s, t, y, alpha=0.5, beta=2.0, temperature=T)), ref_dkd, 0.5, 2.0),
    "nkd": _case(lambda s, t, y, T: sum(F.nkd(s, t, y, gamma=1.5, temperature=T)), ref_nkd, 1.5),
    "taid": _case(lambda s, t, y, T: F.taid(s, t, 0.4, temperature=T), ref_taid, 0.4, "logits", "cross_entropy"),
    "taid-kl": _case(lambda s, t, y, T: F.taid(s, t, 0.4, value="kl", temperature=T), ref_taid, 0.4, "logits", "kl"),
    "taid-probabilities": _case(
        lambda s, t, y, T: F.taid(s, t, 0.7, space="probabilities", temperature=T),
        ref_taid,
        0.7,
        "probabilities",
        "cross_entropy",
    ),
    "binary": _case(lambda s, t, y, T: F.binary_kl(s, t, temperature=T), ref_binary),
}
DIVERGENCES = ["kl", "reverse", "jeffreys", "js", "js-0.1", "skew", "skew-reverse", "tv", "adaptive", "dkd", "binary"]
INFINITY_SAFE = [name for name in CASES if name != "binary"]


def draw(
    n: int, dtype: torch.dtype = torch.float64, scale: float = 3.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    s, t = (scale * torch.randn(n, C, generator=g, dtype=torch.float64) for _ in range(2))
    return s.to(dtype), t.to(dtype), torch.randint(0, C, (n,), generator=g)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_oracle(name: str, dtype: torch.dtype, tolerance: float) -> None:
    call, reference, extra = CASES[name]
    for seed, T in enumerate((1.0, 0.5, 4.0, 1.0)):
        s, t, y = draw(50, dtype, seed=seed)
        got = call(s, t, y, T)
        assert got.dtype == dtype and got.shape == (50,)
        rows = zip(s.double().numpy(), t.double().numpy(), y.tolist(), strict=True)
        want = torch.tensor([reference(a, b, c, T, *extra) for a, b, c in rows], dtype=torch.float64)
        # float32 logits of size 10 are known to half a unit in the seventh digit: so are logs of probabilities
        torch.testing.assert_close(got.double(), want, rtol=2 * tolerance, atol=tolerance * max(1.0, T * T))


def test_kl_agrees_with_scipy() -> None:
    special = pytest.importorskip("scipy.special")
    s, t, _ = draw(200)
    want = special.rel_entr(t.softmax(-1).numpy(), s.softmax(-1).numpy()).sum(-1)
    np.testing.assert_allclose(F.kl(s, t).numpy(), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["kl", "reverse", "jeffreys", "js", "skew"])
def test_float32_still_sees_small_differences(name: str) -> None:
    """A KL of 5e-5 over 1,000 classes: the plain sum of p log(p/q) is off by up to a percent."""
    g = torch.Generator().manual_seed(0)
    t = 2 * torch.randn(200, 1000, generator=g)
    s, y = t + 1e-2 * torch.randn(200, 1000, generator=g), torch.zeros(200, dtype=torch.long)
    call = CASES[name][0]
    got, want = call(s, t, y, 1.0).double(), call(s.double(), t.double(), y, 1.0)
    assert ((got - want).abs() / want).max() < 2e-3
    plain = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1).double()
    assert ((plain - F.kl(s.double(), t.double())).abs() / F.kl(s.double(), t.double())).max() > 5e-3


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str) -> None:
    call = CASES[name][0]
    s, t, y = draw(3, scale=1.5, seed=5)
    if name.startswith("taid"):  # the student is a constant in TAID's target: only the ablation is an ordinary function
        space = "probabilities" if name.endswith("probabilities") else "logits"
        value = "kl" if name.endswith("kl") else "cross_entropy"

        def call(s: Tensor, t: Tensor, y: Tensor, T: float) -> Tensor:
            return F.taid(s, t, 0.4, space=space, value=value, detach_student=False, temperature=T)

    s, t = s.requires_grad_(), t.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: call(a, b, y, 2.0), (s, t))
    assert torch.autograd.gradgradcheck(lambda a, b: call(a, b, y, 2.0), (s, t))


@pytest.mark.parametrize("name", ["kl", "reverse", "js", "skew", "tv", "soft"])
def test_temperature_has_a_gradient(name: str) -> None:
    call = CASES[name][0]
    s, t, y = draw(3, scale=1.5, seed=6)
    T = torch.tensor([0.7, 1.3, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: call(s, t, y, x), (T,))  # type: ignore[arg-type]
    each = torch.stack([call(s[i, None], t[i, None], y[i, None], h) for i, h in enumerate(T.tolist())]).squeeze(1)
    torch.testing.assert_close(call(s, t, y, T.detach()), each)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    call = CASES[name][0]
    s, t, y = draw(6, dtype)
    got, want = call(s, t, y, 2.0), call(s.float(), t.float(), y, 2.0)
    assert got.dtype == torch.float32 and torch.equal(got, want)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_and_gradients_are_finite(name: str, dtype: torch.dtype) -> None:
    call = CASES[name][0]
    for T in (0.05, 0.3, 1.0, 20.0):
        for scale in (0.0, 1.0, 1e3):
            s, t, y = draw(5, dtype, scale=scale, seed=1)
            s, t = s.clamp(-1e3, 1e3).requires_grad_(), t.clamp(-1e3, 1e3).requires_grad_()
            value = call(s, t, y, T)
            grads = torch.autograd.grad(value.sum(), (s, t), allow_unused=True)
            assert value.isfinite().all(), (T, scale)
            assert all(g is None or g.isfinite().all() for g in grads), (T, scale)


@pytest.mark.parametrize("name", INFINITY_SAFE)
def test_classes_ruled_out_in_both_models(name: str) -> None:
    call = CASES[name][0]
    s, t, y = draw(5, torch.float32, seed=2)
    y = y.clamp(max=C - 3)
    small = call(s[:, :-2].contiguous(), t[:, :-2].contiguous(), y, 2.0)
    for x in (s, t):
        x[:, -2:] = -math.inf
    s, t = s.requires_grad_(), t.requires_grad_()
    value = call(s, t, y, 2.0)
    if name != "adaptive-released":  # which lays sorted positions over the classes, so the number of classes matters
        torch.testing.assert_close(value, small)
    gs, gt = torch.autograd.grad(value.sum(), (s, t), allow_unused=True)
    assert value.isfinite().all() and gs.isfinite().all() and (gs[:, -2:] == 0).all()
    assert gt is None or (gt.isfinite().all() and (gt[:, -2:] == 0).all())


def test_a_class_ruled_out_in_one_model() -> None:
    s, t = torch.zeros(1, 3), torch.zeros(1, 3)
    s[0, 0] = -math.inf
    assert F.kl(s, t).item() == math.inf
    assert F.kl(s, t, direction="reverse").item() == pytest.approx(math.log(1.5))
    assert F.kl(t, s).item() == pytest.approx(math.log(1.5))
    assert F.jensen_shannon(s, t).isfinite().all() and F.skew_kl(s, t).isfinite().all()
    s.requires_grad_()
    assert torch.autograd.grad(F.kl(s, t).sum(), s)[0].isfinite().all()


@pytest.mark.parametrize("name", [n for n in INFINITY_SAFE if n in DIVERGENCES])
def test_rows_ruled_out_entirely(name: str) -> None:
    s, t, y = draw(3, torch.float32)
    s[1], t[1] = -math.inf, -math.inf
    s.requires_grad_()
    value = CASES[name][0](s, t, y, 2.0)
    assert value[1] == 0 and value.isfinite().all()
    assert torch.autograd.grad(value.sum(), s)[0].isfinite().all()


WHERE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "kl": lambda s, t, y, w: F.kl(s, t, where=w),
    "reverse": lambda s, t, y, w: F.kl(s, t, direction="reverse", where=w),
    "jeffreys": lambda s, t, y, w: F.jeffreys(s, t, where=w),
    "js": lambda s, t, y, w: F.jensen_shannon(s, t, where=w),
    "skew": lambda s, t, y, w: F.skew_kl(s, t, where=w),
    "tv": lambda s, t, y, w: F.total_variation(s, t, where=w),
    "adaptive": lambda s, t, y, w: F.adaptive_kl(s, t, where=w),
    "soft": lambda s, t, y, w: F.soft_cross_entropy(s, t, where=w),
    "entropy": lambda s, t, y, w: F.entropy(s, where=w),
    "ce": lambda s, t, y, w: F.cross_entropy(s, y, where=w),
    "ce-soft": lambda s, t, y, w: F.cross_entropy(s, t.softmax(-1), where=w),
    "ce-smooth": lambda s, t, y, w: F.cross_entropy(s, y, label_smoothing=0.1, where=w),
    "dkd": lambda s, t, y, w: sum(F.dkd(s, t, y, where=w)),
    "nkd": lambda s, t, y, w: sum(F.nkd(s, t, y, where=w)),
    "uskd": lambda s, t, y, w: sum(F.uskd(s, y, t, where=w)),
    "taid": lambda s, t, y, w: F.taid(s, t, 0.3, where=w),
    "ctkd": lambda s, t, y, w: F.ctkd(s, t, torch.zeros(()), where=w),
    "binary": lambda s, t, y, w: F.binary_kl(s, t, where=w),
    "squared": lambda s, t, y, w: F.squared_error(s, t, where=w),
    "sparse": lambda s, t, y, w: F.sparse_kl(s, *reversed(t.log_softmax(-1).topk(3)), where=w),
}


@pytest.mark.parametrize("name", WHERE)
def test_masked_items_change_nothing(name: str) -> None:
    where = torch.tensor([True, False, True, True, False])
    s, t, y = draw(5, torch.float32, seed=4)
    values, grads = [], []
    for junk in (None, math.nan, math.inf, -math.inf, 1e30):
        a, b, c = s.clone(), t.clone(), y.clone()
        if junk is not None:
            a[~where], b[~where], c[~where] = junk, junk, -100
        a.requires_grad_()
        value = WHERE[name](a, b, c, where)
        values.append(value.detach())
        grads.append(torch.autograd.grad(value.sum(), a)[0])
    assert (values[0][~where] == 0).all() and (values[0][where] != 0).all()
    assert all(torch.equal(values[0], v) for v in values[1:])
    assert all(torch.equal(grads[0], g) for g in grads[1:])
    moved = s.clone()
    moved[where] += torch.arange(C) * 0.1
    assert (WHERE[name](moved, t, y, where)[where] != values[0][where]).all()


@pytest.mark.parametrize("name", WHERE)
def test_everything_masked(name: str) -> None:
    s, t, y = draw(4, torch.float32)
    s.requires_grad_()
    value = WHERE[name](s, t, y, torch.zeros(4, dtype=torch.bool))
    assert torch.equal(value, torch.zeros(4))
    assert torch.equal(torch.autograd.grad(value.sum(), s)[0], torch.zeros_like(s))


def test_leading_dimensions_and_masks_of_numbers() -> None:
    s, t, y = draw(12)
    mask = torch.randint(0, 2, (3, 4))
    shaped = F.kl(s.view(3, 4, C), t.view(3, 4, C), where=mask)
    assert torch.equal(shaped, torch.where(mask != 0, F.kl(s, t).view(3, 4), 0.0))
    assert F.kl(s[0], t[0]).shape == ()
    assert F.nkd(s.view(3, 4, C), t.view(3, 4, C), y.view(3, 4)).target.shape == (3, 4)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_t_squared_is_a_switch(name: str) -> None:
    s, t, _ = draw(4)
    functions: dict[str, Callable[..., Tensor]] = {
        "kl": F.kl,
        "reverse": lambda *a, **k: F.kl(*a, direction="reverse", **k),
        "jeffreys": F.jeffreys,
        "js": F.jensen_shannon,
        "js-0.1": lambda *a, **k: F.jensen_shannon(*a, beta=0.1, **k),
        "skew": F.skew_kl,
        "skew-reverse": lambda *a, **k: F.skew_kl(*a, direction="reverse", **k),
        "tv": F.total_variation,
        "adaptive": F.adaptive_kl,
        "dkd": lambda *a, **k: sum(F.dkd(*a, torch.zeros(4, dtype=torch.long), **k)),
        "binary": F.binary_kl,
    }
    off, on = (functions[name](s, t, temperature=3.0, scale_t2=flag) for flag in (False, True))
    torch.testing.assert_close(on, 9.0 * off)


# --------------------------------------------------------------------------------------------------------------------
# Labels


def test_cross_entropy_equals_torch() -> None:
    s, t, y = draw(20)
    soft = t.softmax(-1)
    plain = torch.nn.functional.cross_entropy
    for smoothing in (0.0, 0.1):
        for labels in (y, soft):
            got = F.cross_entropy(s, labels, label_smoothing=smoothing)
            torch.testing.assert_close(got, plain(s, labels, reduction="none", label_smoothing=smoothing))
    x = s[:3].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: F.cross_entropy(z, y[:3], label_smoothing=0.1), (x,))
    one_hot = torch.nn.functional.one_hot(y, C).double()
    torch.testing.assert_close(F.cross_entropy(s, one_hot), F.cross_entropy(s, y))


def test_smoothing_leaves_out_ruled_out_classes() -> None:
    s = torch.tensor([[0.0, 0.0, -math.inf]])
    assert F.cross_entropy(s, torch.tensor([0]), label_smoothing=0.1).item() == pytest.approx(math.log(2))


def test_dkd_weights_of_one_and_the_teachers_rest_are_the_kl() -> None:
    s, t, y = draw(30, seed=9)
    parts = F.dkd(s, t, y, alpha=1.0, beta=1.0, temperature=2.0)
    rest = 1 - (t / 2).softmax(-1).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(parts.target + rest * parts.nontarget, F.kl(s, t, temperature=2.0))


def test_soft_labels_count_by_their_largest_entry() -> None:
    s, t, y = draw(6)
    soft = 0.7 * torch.nn.functional.one_hot(y, C) + 0.3 * torch.nn.functional.one_hot((y + 1) % C, C)
    for loss in (F.dkd, F.nkd):
        for a, b in zip(loss(s, t, y), loss(s, t, soft.double()), strict=True):
            assert torch.equal(a, b)


def test_nkd_switches() -> None:
    s, t, y = draw(8)
    p, q = t.softmax(-1), s.softmax(-1)
    own = torch.nn.functional.one_hot(y, C).bool()
    one = F.nkd(s, t, y, target_weight="one").target
    torch.testing.assert_close(one, -q[own].log())
    plain = F.nkd(s, t, y, normalise=False, gamma=2.0).nontarget
    torch.testing.assert_close(plain, -2.0 * (p * q.log()).masked_fill(own, 0.0).sum(-1))


def test_nkd_nontarget_is_settled_by_a_constant_shift_and_kd_is_not() -> None:
    _, t, y = draw(5)
    s = (t + 3.0).scatter_add(1, y[:, None], torch.full((5, 1), 1.7, dtype=t.dtype)).requires_grad_()
    grad = torch.autograd.grad(F.nkd(s, t, y, temperature=2.0).nontarget.sum(), s)[0]
    assert grad.abs().max() < 1e-14
    assert torch.autograd.grad(F.kl(s, t, temperature=2.0).sum(), s)[0].abs().max() > 1e-3


def test_masked_log_softmax() -> None:
    s, _, y = draw(5)
    got = F.masked_log_softmax(s, y[:, None])
    for row, z, label in zip(got, s, y, strict=True):
        rest = [c for c in range(C) if c != label]
        torch.testing.assert_close(row[rest], z[rest].log_softmax(0))
        assert row[label] == -math.inf
    drop = torch.nn.functional.one_hot(y, C).bool()
    assert torch.equal(F.masked_log_softmax(s, drop), got)
    x = s.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: F.masked_log_softmax(z, drop, temperature=2.0)[~drop], (x,))


# --------------------------------------------------------------------------------------------------------------------
# USKD


def ref_uskd(
    s: np.ndarray, w: np.ndarray, labels: np.ndarray, square: bool, source: str, variant: str
) -> tuple[list[float], list[float], list[float]]:
    """The dossier's steps 1 to 3, item by item; labels [N, C]."""
    n, classes = s.shape
    tops = [sorted(range(classes), key=lambda c, row=row: -row[c])[: 2 if (row > 0).sum() > 1 else 1] for row in labels]
    own = [[softmax(z)[c] ** (2 if square else 1) for c in top] for z, top in zip(s, tops, strict=True)]
    centre = np.mean(own, axis=0)
    target, nontarget, weak = [], [], []
    for i in range(n):
        q, h, top = softmax(s[i]), softmax(w[i]), tops[i]
        target.append(-sum((own[i][k] + labels[i][c] - centre[k]) * math.log(q[c]) for k, c in enumerate(top)))
        rest = [c for c in range(classes) if c not in top]
        score = np.zeros(classes)
        if source != "final":
            score += h / (h[rest].sum() if variant == "paper" else 1 - h[top].sum() + 1e-6)
        if source != "weak":
            final = q if variant == "paper" else np.log(q)
            score += final / (q[rest].sum() if variant == "paper" else 1 - np.log(q[top]).sum() + 1e-6)
        place = {c: i for i, c in enumerate(np.argsort(-score, kind="stable"))}
        zipf = np.array([1 / (place[c] + 1) for c in rest])
        nontarget.append(cross(zipf / zipf.sum(), q[rest] / q[rest].sum()))
        weak.append(cross(0.9 * labels[i] + 0.1 / classes, h))
    return target, nontarget, weak


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("source", ["both", "weak", "final"])
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_uskd(variant: str, source: str, square: bool, soft: bool) -> None:
    s, w, y = draw(9, seed=11)
    labels = torch.nn.functional.one_hot(y, C).double()
    if soft:
        labels = 0.65 * labels + 0.35 * labels.roll(2, dims=1)
    got = F.uskd(
        s,
        labels if soft else y,
        w,
        alpha=2.0,
        beta=0.5,
        mu=0.25,
        square=square,
        rank_source=source,  # type: ignore[arg-type]
        variant=variant,  # type: ignore[arg-type]
    )
    want = ref_uskd(s.numpy(), w.numpy(), labels.numpy(), square, source, variant)
    for weight, a, b in zip((2.0, 0.5, 0.25), got, want, strict=True):
        torch.testing.assert_close(a, weight * torch.tensor(b, dtype=torch.float64))


def test_uskd_switches() -> None:
    s, w, y = draw(6, seed=12)
    plain = F.uskd(s, y, w, smooth_target=False)
    torch.testing.assert_close(plain.target, F.cross_entropy(s, y))
    uniform = F.uskd(s, y, w, nontarget="uniform", beta=1.0).nontarget
    log_q = F.masked_log_softmax(s, y[:, None])
    torch.testing.assert_close(uniform, -log_q.masked_fill(log_q.isinf(), 0).sum(-1) / (C - 1))
    # ranked by a teacher whose order is the student's own, the weights are those of the final head
    same = F.uskd(s, y, w, nontarget="teacher", teacher=s * 2).nontarget
    assert torch.equal(same, F.uskd(s, y, None, rank_source="final").nontarget)
    assert (F.uskd(s, y, None, rank_source="final").weak == 0).all()
    # the batch's mean may come from outside: then one item alone gets what it gets among the others
    own = s.softmax(-1).gather(1, y[:, None]).square().mean(0)
    alone = torch.cat([F.uskd(s[i : i + 1], y[i : i + 1], w[i : i + 1], center=own).target for i in range(6)])
    torch.testing.assert_close(alone, F.uskd(s, y, w).target)


def test_uskd_gradients_reach_both_heads_but_not_the_targets() -> None:
    s, w, y = draw(5, seed=13)
    s, w = s.requires_grad_(), w.requires_grad_()
    parts = F.uskd(s, y, w, alpha=1.0, beta=1.0, mu=1.0)
    gs, gw = torch.autograd.grad(sum(parts).sum(), (s, w))
    label = F.uskd_target(s, y[:, None], torch.ones(5, 1))
    assert not label.requires_grad
    torch.testing.assert_close(gw, torch.autograd.grad(F.cross_entropy(w, y, label_smoothing=0.1).sum(), w)[0])
    assert gs.abs().sum() > 0


# --------------------------------------------------------------------------------------------------------------------
# TAID and CTKD


def test_taid_numbers_by_hand() -> None:
    t = torch.tensor([2.0, 1.0, 0.0])
    want = {0.0: (0.0, 0.0, 0.0), 0.5: (-0.243303, -0.088605, 0.331908), 1.0: (-0.575210, 0.0, 0.575210)}
    for at, slope in want.items():
        s = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
        grad = torch.autograd.grad(F.taid(s, t, at), s)[0]
        torch.testing.assert_close(grad, torch.tensor(slope), atol=2e-6, rtol=0)


def test_taid_limits() -> None:
    s, t, _ = draw(6)
    for space in ("logits", "probabilities"):
        x = s.clone().requires_grad_()
        start = F.taid(x, t, 0.0, space=space)
        torch.testing.assert_close(start, F.entropy(s))
        assert torch.autograd.grad(start.sum(), x)[0].abs().max() < 1e-15
        torch.testing.assert_close(F.taid(s, t, 1.0, space=space), F.soft_cross_entropy(s, t))
        torch.testing.assert_close(F.taid(s, t, 1.0, space=space, value="kl"), F.kl(s, t))
    each = torch.linspace(0, 1, 6, dtype=torch.float64)
    rows = torch.stack([F.taid(s[i], t[i], float(each[i])) for i in range(6)])
    torch.testing.assert_close(F.taid(s, t, each), rows)


def test_taid_without_detaching_is_another_gradient() -> None:
    s, t, _ = draw(4)
    x = s.requires_grad_()
    with_stop, without = (
        torch.autograd.grad(F.taid(x, t, 0.4, detach_student=flag).sum(), x)[0] for flag in (True, False)
    )
    torch.testing.assert_close(with_stop, x.softmax(-1) - F.taid_target(x, t, 0.4).exp())
    assert (with_stop - without).abs().max() > 1e-3


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_taid_with_a_class_the_student_rules_out(space: str, t: float) -> None:
    s, z, _ = draw(3, torch.float32)
    s[:, 0] = -math.inf
    s.requires_grad_()
    value = F.taid(s, z, t, space=space)  # type: ignore[arg-type]
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), s)[0].isfinite().all()
    torch.testing.assert_close(value, F.taid(s[:, 1:], z[:, 1:], t, space=space) if space == "logits" else value)


def test_ctkd_climbs_what_the_student_descends() -> None:
    s, t, _ = draw(5)
    raw = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    heat = F.curriculum_temperature(raw, 1.0, start=1.0, span=20.0)
    assert heat.item() == pytest.approx(1 + 20 / (1 + math.exp(-0.3)))
    torch.testing.assert_close(F.ctkd(s, t, raw), F.kl(s, t, temperature=heat.detach()))
    up = torch.autograd.grad(F.ctkd(s, t, raw, strength=0.5).sum(), raw)[0]
    down = torch.autograd.grad(F.ctkd(s, t, raw, strength=-1.0).sum(), raw)[0]
    torch.testing.assert_close(up, -0.5 * down)
    eps = 1e-6
    numeric = (F.ctkd(s, t, raw + eps).sum() - F.ctkd(s, t, raw - eps).sum()) / (2 * eps)
    torch.testing.assert_close(down, numeric.detach(), rtol=1e-6, atol=1e-6)
    port = F.ctkd(s, t, raw, value="cross_entropy")
    torch.testing.assert_close(port, F.soft_cross_entropy(s, t, temperature=heat.detach()))


def test_squared_error() -> None:
    s, t, _ = draw(4)
    torch.testing.assert_close(F.squared_error(s, t), ((s - t) ** 2).sum(-1))
    torch.testing.assert_close(F.squared_error(s, t, dims=2), ((s - t) ** 2).sum())
    assert torch.equal(F.squared_error(s[:, 0], t[:, 0], dims=0), (s[:, 0] - t[:, 0]) ** 2)
    assert torch.autograd.gradcheck(F.squared_error, (s.requires_grad_(), t.requires_grad_()))


# --------------------------------------------------------------------------------------------------------------------
# Sparse teachers


@pytest.mark.parametrize("tail", ["drop", "renormalise", "uniform_rest", "lump_rest"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_sparse_reaches_dense_and_is_never_negative(tail: Any, direction: Any) -> None:
    s, t, _ = draw(8, seed=20)
    dense = F.kl(s, t, direction=direction)
    log_p = t.log_softmax(-1)
    gaps = []
    for k in range(1, C + 1):
        top = log_p.topk(k)
        value = F.sparse_kl(s, top.indices, top.values, tail=tail, direction=direction)
        assert (value >= 0).all()
        assert (F.sparse_kl(t, top.indices, top.values, tail="renormalise") < 1e-12).all()
        gaps.append((value - dense).abs().max().item())
        if tail == "lump_rest":
            assert (value <= dense + 1e-12).all()
    assert gaps[-1] < 1e-12
    assert gaps[-2] < max(gaps[0], 1e-12)


def test_sparse_rules_by_hand() -> None:
    s, t, _ = draw(4, seed=21)
    p, q = t.softmax(-1), s.softmax(-1)
    top = p.topk(3)
    hit_p, hit_q = top.values, q.gather(1, top.indices)
    rest_p, rest_q = 1 - hit_p.sum(1, keepdim=True), 1 - hit_q.sum(1, keepdim=True)

    def of(tail: Any) -> Tensor:
        return F.sparse_kl(s, top.indices, hit_p.log(), tail=tail)

    torch.testing.assert_close(of("drop"), (hit_p * (hit_p / hit_q).log() - hit_p + hit_q).sum(1))
    a, b = hit_p / hit_p.sum(1, keepdim=True), hit_q / hit_q.sum(1, keepdim=True)
    torch.testing.assert_close(of("renormalise"), (a * (a / b).log()).sum(1))
    a, b = torch.cat([hit_p, rest_p], 1), torch.cat([hit_q, rest_q], 1)
    torch.testing.assert_close(of("lump_rest"), (a * (a / b).log()).sum(1))
    full = (rest_p / (C - 3)).expand_as(q).scatter(1, top.indices, hit_p)
    torch.testing.assert_close(of("uniform_rest"), (full * (full / q).log()).sum(1))


@pytest.mark.parametrize("tail", ["drop", "renormalise", "uniform_rest", "lump_rest"])
def test_sparse_at_a_temperature(tail: Any) -> None:
    s, t, _ = draw(5, seed=22)
    T = 3.0
    top = t.topk(4)
    norm = (t / T).logsumexp(-1)
    known = F.sparse_kl(s, top.indices, top.values, tail=tail, temperature=T, log_norm=norm)
    at_one = F.sparse_kl(s / T, top.indices, (t / T).log_softmax(-1).gather(1, top.indices), tail=tail)
    torch.testing.assert_close(known, T * T * at_one)
    full = F.sparse_kl(s, t.topk(C).indices, t.topk(C).values, tail=tail, temperature=T, log_norm=norm)
    torch.testing.assert_close(full, F.kl(s, t, temperature=T))
    values = t.log_softmax(-1).gather(1, top.indices)
    if tail in ("drop", "lump_rest"):
        with pytest.raises(ConfigError, match="log_norm"):
            F.sparse_kl(s, top.indices, values, tail=tail, temperature=T)
    else:
        assert (F.sparse_kl(s, top.indices, values, tail=tail, temperature=T) >= 0).all()
    if tail == "uniform_rest":  # exact where the rest is uniform indeed
        flat = torch.full((1, C), -2.0, dtype=torch.float64)
        flat[0, :2] = torch.tensor([3.0, 1.0])
        best = flat.log_softmax(-1).topk(2)
        got = F.sparse_kl(s[:1], best.indices, best.values, tail=tail, temperature=T)
        torch.testing.assert_close(got, F.kl(s[:1], flat, temperature=T))


@pytest.mark.parametrize("tail", ["drop", "renormalise", "uniform_rest", "lump_rest"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_sparse_gradcheck(tail: Any, direction: Any) -> None:
    s, t, _ = draw(3, scale=1.0, seed=23)
    top = t.log_softmax(-1).topk(3)
    x = s.requires_grad_()
    call = lambda z: F.sparse_kl(z, top.indices, top.values, tail=tail, direction=direction)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x,))


def test_sparse_is_finite_at_extremes() -> None:
    for scale in (1e3, 0.0):
        s, t, _ = draw(4, torch.float32, scale=scale)
        top = t.log_softmax(-1).topk(2)
        x = s.requires_grad_()
        for tail in ("drop", "renormalise", "uniform_rest", "lump_rest"):
            for direction in ("forward", "reverse"):
                value = F.sparse_kl(x, top.indices, top.values, tail=tail, direction=direction)  # type: ignore[arg-type]
                assert value.isfinite().all(), (tail, direction, scale)
                assert torch.autograd.grad(value.sum(), x)[0].isfinite().all(), (tail, direction, scale)


# --------------------------------------------------------------------------------------------------------------------
# Answers to mistakes


def test_errors_say_what_to_do() -> None:
    s, t, y = draw(4)
    table: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (TeacherMismatch, "7 classes and the teacher 6", lambda: F.kl(s, t[:, :6])),
        (ShapeError, r"expected the student's shape \[4, 7\]", lambda: F.kl(s, t[:3])),
        (ShapeError, "floating point", lambda: F.kl(s.long(), t.long())),
        (ShapeError, "at least one class", lambda: F.kl(s[:, :0], t[:, :0])),
        (ConfigError, "did you mean 'forward'", lambda: F.kl(s, t, direction="foward")),  # type: ignore[arg-type]
        (ConfigError, "number > 0", lambda: F.kl(s, t, temperature=0.0)),
        (ConfigError, "number > 0", lambda: F.kl(s, t, temperature=math.nan)),
        (ConfigError, "numbers > 0", lambda: F.kl(s, t, temperature=torch.tensor([1.0, 1.0, -1.0, 1.0]))),
        (ShapeError, "one per item", lambda: F.kl(s, t, temperature=torch.ones(3))),
        (ShapeError, "where", lambda: F.kl(s, t, where=torch.ones(3, dtype=torch.bool))),
        (ConfigError, r"kl\(direction=", lambda: F.jensen_shannon(s, t, beta=0.0)),
        (ConfigError, r"mix=0 is kl", lambda: F.skew_kl(s, t, mix=0.0)),
        (ConfigError, r"\(0, 1\]", lambda: F.adaptive_kl(s, t, head_threshold=0.0)),
        (DataError, "ignore_index", lambda: F.cross_entropy(s, y - 100)),
        (DataError, r"outside 0\.\.6", lambda: F.cross_entropy(s, y + C)),
        (ShapeError, "class ids", lambda: F.cross_entropy(s, y[:3])),
        (ShapeError, "class ids", lambda: F.cross_entropy(s, t[:, :3])),
        (ConfigError, "label_smoothing", lambda: F.cross_entropy(s, y, label_smoothing=1.5)),
        (ShapeError, "a target and a rest", lambda: F.nkd(s[:, :1], t[:, :1], y * 0)),
        (ShapeError, "a target and a rest", lambda: F.dkd(s[:, :1], t[:, :1], y * 0)),
        (ConfigError, "weak head", lambda: F.uskd(s, y)),
        (ShapeError, "weak", lambda: F.uskd(s, y, t[:, :3])),
        (ConfigError, "teacher's logits", lambda: F.uskd(s, y, t, nontarget="teacher")),
        (ShapeError, "three classes", lambda: F.uskd(s[:, :2], t[:, :2].softmax(-1), s[:, :2])),
        (ConfigError, r"\[0, 1\]", lambda: F.taid(s, t, 1.5)),
        (ConfigError, "start", lambda: F.curriculum_temperature(torch.zeros(()), 1.0, start=0.0, span=0.0)),
        (ShapeError, "1 <= k <= 7", lambda: F.sparse_kl(s, torch.zeros(4, 0, dtype=torch.long), torch.zeros(4, 0))),
        (ConfigError, "did you mean 'lump_rest'", lambda: F.sparse_kl(s, y[:, None], t[:, :1], tail="lump")),  # type: ignore[arg-type]
        (ConfigError, "trailing", lambda: F.squared_error(s, t, dims=3)),
    ]
    for kind, text, call in table:
        with pytest.raises(kind, match=text):
            call()


def test_compiles_without_a_graph_break() -> None:
    s, t, _ = draw(3)
    x = s.requires_grad_()
    step = torch.compile(lambda a, b: F.kl(a, b, temperature=2.0).mean(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(step(x, t), F.kl(s, t, temperature=2.0).mean())


def test_vmap() -> None:
    s, t, _ = draw(4)
    torch.testing.assert_close(torch.func.vmap(F.kl)(s, t), F.kl(s, t))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("nontarget", ["zipf", "uniform", "teacher"])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_uskd_of_a_class_ruled_out_is_uskd_without_that_class(soft: bool, nontarget: Any, variant: Any) -> None:
    g = torch.Generator().manual_seed(4)
    z, w, t = (torch.randn(5, 6, generator=g, dtype=torch.float64) for _ in range(3))
    y: Tensor = torch.tensor([0, 1, 2, 4, 5])
    if soft:
        y = torch.zeros(5, 6, dtype=torch.float64).scatter(1, torch.stack([y, (y + 1) % 3], 1), 0.5)
        y = y / y.sum(1, keepdim=True)
    left = torch.tensor([0, 1, 2, 4, 5])  # class 3 is ruled out
    less = y[:, left] if soft else torch.tensor([0, 1, 2, 3, 4])
    inf = float("-inf")
    ruled = torch.tensor([False, False, False, True, False, False])
    whole = z.masked_fill(ruled, inf).requires_grad_()
    settings: dict[str, Any] = {"nontarget": nontarget, "variant": variant}
    got = F.uskd(whole, y, w.masked_fill(ruled, inf), teacher=t, **settings)
    want = F.uskd(z[:, left], less, w[:, left], teacher=t[:, left], **settings)
    for a, b in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(a, b)
    slope = torch.autograd.grad(sum(part.sum() for part in got), whole)[0]
    assert torch.isfinite(slope).all() and not slope[:, 3].any()


def test_uskd_with_nothing_beside_the_target() -> None:
    z = torch.tensor([[1.0, float("-inf"), float("-inf")]], requires_grad=True)
    parts = F.uskd(z, torch.tensor([0]), rank_source="final")
    assert parts.nontarget.item() == 0.0 and parts.target.item() == 0.0
    assert torch.isfinite(torch.autograd.grad(sum(part.sum() for part in parts), z)[0]).all()
    assert F.masked_log_softmax(torch.zeros(1, 2), torch.tensor([[0, 1]])).tolist() == [[-float("inf")] * 2]
