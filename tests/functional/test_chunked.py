"""Chunked losses equal the dense ones, in value and in every gradient, and hold one chunk of logits at a time."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.errors import ConfigError, DataError, ShapeError, TeacherMismatch
from limbeck.functional.chunked import Kind

KINDS = list(get_args(Kind))
V = 19


def dense(kind: str, s: Tensor, t: Tensor, y: Tensor, hard: float, value: str = "cross_entropy", **k: Any) -> Tensor:
    table: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: F.kl(s, t, **k),
        "reverse": lambda: F.kl(s, t, direction="reverse", **k),
        "jeffreys": lambda: F.jeffreys(s, t, **k),
        "jensen_shannon": lambda: F.jensen_shannon(s, t, beta=0.3, **k),
        "skew_forward": lambda: F.skew_kl(s, t, mix=0.2, **k),
        "skew_reverse": lambda: F.skew_kl(s, t, direction="reverse", mix=0.2, **k),
        "soft_cross_entropy": lambda: F.soft_cross_entropy(s, t, **k),
        "total_variation": lambda: F.total_variation(s, t, **k),
        "taid": lambda: F.taid(s, t, 0.4, value=value, **k),  # type: ignore[arg-type]
    }
    if kind == "cross_entropy":
        return (hard or 1.0) * F.cross_entropy(s, y, where=k["where"])
    return table[kind]() + (hard * F.cross_entropy(s, y, where=k["where"]) if hard else 0.0)


class Setting:
    """Two little heads over the same vocabulary."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
        self.h_s, self.w_s, self.b_s = (make(*x).requires_grad_() for x in ((2, 5, 4), (V, 4), (V,)))
        self.h_t, self.w_t, self.b_t = make(2, 5, 3), make(V, 3), make(V)
        self.y = torch.randint(0, V, (2, 5), generator=g)
        self.where = torch.tensor([[1, 0, 1, 1, 1], [0, 0, 1, 1, 0]]) != 0
        self.uneven = torch.rand(2, 5, generator=g).to(dtype)

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.h_s, self.w_s, self.b_s


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-11)])
def test_equals_dense(kind: Any, dtype: torch.dtype, tolerance: float) -> None:
    close = {"rtol": tolerance, "atol": tolerance}
    x = Setting(dtype)
    for T, hard, masked, cap, even in itertools.product(
        (1.0, 3.0), (0.0, 0.7), (False, True), (None, 5.0), (True, False)
    ):
        where = x.where if masked else None
        shape = lambda z, cap=cap: z if cap is None else cap * torch.tanh(z / cap)  # noqa: E731
        s, t = shape(0.9 * (x.h_s @ x.w_s.T + x.b_s)), shape(1.1 * (x.h_t @ x.w_t.T + x.b_t))
        up = torch.full((2, 5), 0.3, dtype=dtype) if even else x.uneven
        value = "kl" if even else "cross_entropy"
        want = dense(kind, s, t, x.y, hard, value, temperature=T, where=where)
        grads = torch.autograd.grad((want * up).sum(), x.leaves)
        common: dict[str, Any] = {"beta": 0.3, "mix": 0.2, "t": 0.4, "value": value, "temperature": T}
        common |= {"labels": x.y, "hard_weight": hard}
        got = F.chunked_divergence(
            x.h_s,
            x.w_s,
            x.h_t,
            x.w_t,
            kind=kind,
            bias_s=x.b_s,
            bias_t=x.b_t,
            where=where,
            chunk=3,
            scale_s=0.9,
            scale_t=1.1,
            softcap_s=cap,
            softcap_t=cap,
            **common,
        )
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, **close)
        for again in range(2):  # the second backward finds the stored gradients gone and sums them anew
            found = torch.autograd.grad((got * up).sum(), x.leaves, retain_graph=not again)
            for a, b in zip(found, grads, strict=True):
                torch.testing.assert_close(a, b, **close)
        z = s.detach().requires_grad_()
        ready = F.chunked_logits(z, t, kind=kind, where=where, **common)
        torch.testing.assert_close(ready, want, **close)
        again_dense = dense(kind, z, t, x.y, hard, value, temperature=T, where=where)
        torch.testing.assert_close(
            torch.autograd.grad((ready * up).sum(), z)[0], torch.autograd.grad((again_dense * up).sum(), z)[0], **close
        )


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"taid"}))  # whose own target is held constant
def test_gradcheck(kind: Any) -> None:
    x = Setting(torch.float64, seed=2)
    mine = lambda h, w, b: F.chunked_divergence(  # noqa: E731
        h, w, x.h_t, x.w_t, kind=kind, bias_s=b, labels=x.y, where=x.where, chunk=2, temperature=2.0, softcap_s=4.0
    )
    assert torch.autograd.gradcheck(mine, x.leaves, fast_mode=True)
    z = (x.h_s @ x.w_s.T).detach().requires_grad_()
    ready = lambda a: F.chunked_logits(a, x.h_t @ x.w_t.T, kind=kind, labels=x.y, where=x.where)  # noqa: E731
    assert torch.autograd.gradcheck(ready, (z,), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_asked_for(kind: Any) -> None:
    x = Setting(torch.float32)
    run = lambda h, w: F.chunked_divergence(h, w, x.h_t, x.w_t, kind=kind, labels=x.y, chunk=3)  # noqa: E731
    full = torch.autograd.grad(run(x.h_s, x.w_s).sum(), (x.h_s, x.w_s))
    frozen = torch.autograd.grad(run(x.h_s, x.w_s.detach()).sum(), x.h_s)[0]
    head = torch.autograd.grad(run(x.h_s.detach(), x.w_s).sum(), x.w_s)[0]
    assert torch.equal(frozen, full[0]) and torch.equal(head, full[1])
    with torch.no_grad():
        assert torch.equal(run(x.h_s, x.w_s), run(x.h_s.detach(), x.w_s.detach()))
    assert not run(x.h_s.detach(), x.w_s.detach()).requires_grad


def test_weights_known_beforehand() -> None:
    x = Setting(torch.float64)
    run = lambda **k: F.chunked_divergence(x.h_s, x.w_s, x.h_t, x.w_t, where=x.where, chunk=2, **k)  # noqa: E731
    before, after = run(weights=x.uneven), run() * x.uneven
    torch.testing.assert_close(before, after)
    for a, b in zip(*(torch.autograd.grad(v.sum(), (x.h_s, x.w_s)) for v in (before, after)), strict=True):
        torch.testing.assert_close(a, b)


def test_temperature_for_each_token() -> None:
    x = Setting(torch.float64)
    heat = 0.5 + x.uneven
    got = F.chunked_divergence(x.h_s, x.w_s, x.h_t, x.w_t, temperature=heat, where=x.where, chunk=2)
    want = F.kl(x.h_s @ x.w_s.T, x.h_t @ x.w_t.T, temperature=heat, where=x.where)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), x.w_s)[0], torch.autograd.grad(want.sum(), x.w_s)[0])
    ready = F.chunked_logits(x.h_s @ x.w_s.T, x.h_t @ x.w_t.T, temperature=heat, where=x.where)
    torch.testing.assert_close(ready, want)


def test_a_recorded_teacher_and_the_two_parts() -> None:
    x = Setting(torch.float32)
    logits = x.h_t @ x.w_t.T
    whole, soft, hard = F.chunked_divergence(
        x.h_s,
        x.w_s,
        teacher_logits=logits,
        labels=x.y,
        soft_weight=0.9,
        hard_weight=0.1,
        where=x.where,
        chunk=4,
        return_parts=True,
    )
    s = x.h_s @ x.w_s.T
    torch.testing.assert_close(soft, F.kl(s, logits, where=x.where).detach())
    torch.testing.assert_close(hard, F.cross_entropy(s, x.y, where=x.where).detach())
    torch.testing.assert_close(whole, 0.9 * soft + 0.1 * hard)
    assert whole.requires_grad and not soft.requires_grad and not hard.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_change_nothing(kind: Any) -> None:
    x = Setting(torch.float32)
    results = []
    for junk in (None, math.nan, 1e30):
        h_s, h_t, y = x.h_s.detach().clone(), x.h_t.clone(), x.y.clone()
        if junk is not None:
            h_s[~x.where], h_t[~x.where], y[~x.where] = junk, junk, -100
        h_s.requires_grad_()
        value = F.chunked_divergence(h_s, x.w_s, h_t, x.w_t, kind=kind, labels=y, where=x.where, chunk=3)
        results.append((value.detach(), *torch.autograd.grad(value.sum(), (h_s, x.w_s))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert (results[0][0][~x.where] == 0).all() and (results[0][1][~x.where] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_valid_token(kind: Any) -> None:
    x = Setting(torch.float32)
    none = torch.zeros(2, 5, dtype=torch.bool)
    value = F.chunked_divergence(x.h_s, x.w_s, x.h_t, x.w_t, kind=kind, bias_s=x.b_s, labels=x.y, where=none)
    assert torch.equal(value, torch.zeros(2, 5))
    for grad, leaf in zip(torch.autograd.grad(value.sum(), x.leaves), x.leaves, strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))
    z = torch.randn(2, 5, V, requires_grad=True)
    ready = F.chunked_logits(z, z.detach(), kind=kind, labels=x.y, where=none)
    assert torch.equal(torch.autograd.grad(ready.sum(), z)[0], torch.zeros_like(z))


@pytest.mark.parametrize("kind", KINDS)
def test_words_ruled_out_in_both_models(kind: Any) -> None:
    x = Setting(torch.float32)
    out = torch.zeros(V)
    out[-4:] = -math.inf
    y = x.y.clamp(max=V - 5)
    for T in (1.0, 0.05):
        value = F.chunked_divergence(
            x.h_s, x.w_s, x.h_t, x.w_t, kind=kind, bias_s=out, bias_t=out, labels=y, chunk=3, t=0.4, temperature=T
        )
        cut = F.chunked_divergence(
            x.h_s, x.w_s[:-4], x.h_t, x.w_t[:-4], kind=kind, labels=y, chunk=3, t=0.4, temperature=T
        )
        torch.testing.assert_close(value, cut)
        a, b = (torch.autograd.grad(v.sum(), x.w_s)[0] for v in (value, cut))
        torch.testing.assert_close(a, b)
        s, t = (x.h_s @ x.w_s.T + out).detach().requires_grad_(), x.h_t @ x.w_t.T + out
        ready = F.chunked_logits(s, t, kind=kind, labels=y, t=0.4, temperature=T)
        torch.testing.assert_close(ready, cut)
        assert torch.autograd.grad(ready.sum(), s)[0].isfinite().all()


def test_a_word_ruled_out_in_the_student_alone_is_infinite() -> None:
    x = Setting(torch.float32)
    out = torch.zeros(V)
    out[0] = -math.inf
    assert (F.chunked_divergence(x.h_s, x.w_s, x.h_t, x.w_t, bias_s=out) == math.inf).all()
    assert F.chunked_divergence(x.h_s, x.w_s, x.h_t, x.w_t, bias_s=out, kind="reverse").isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_extremes_are_finite(kind: Any) -> None:
    x = Setting(torch.float32)
    for T, scale in itertools.product((0.05, 1.0, 20.0), (0.0, 1e3)):
        value = F.chunked_divergence(
            x.h_s, x.w_s * scale, x.h_t, x.w_t * scale, kind=kind, labels=x.y, temperature=T, t=0.4, chunk=3
        )
        assert value.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), (x.h_s, x.w_s)))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"soft_cross_entropy", "cross_entropy", "taid"}))
def test_equal_models_agree(kind: Any) -> None:
    x = Setting(torch.float32)
    value = F.chunked_divergence(x.h_s, x.w_s, x.h_s, x.w_s, kind=kind, chunk=3)
    assert value.abs().max() < 1e-7 and (value >= 0).all()
    assert torch.autograd.grad(value.sum(), x.w_s)[0].abs().max() < 1e-6


def test_half_precision_sums_the_weight_in_float32() -> None:
    g = torch.Generator().manual_seed(0)
    h, w, t = (torch.randn(n, 8, generator=g) for n in (600, V, 600))
    half = [x.bfloat16() for x in (h, w, t)]
    leaf_h, leaf_w = half[0].requires_grad_(), half[1].requires_grad_()
    value = F.chunked_divergence(leaf_h, leaf_w, half[2], half[1].detach(), chunk=16)
    assert value.dtype == torch.float32
    got = torch.autograd.grad(value.sum(), (leaf_h, leaf_w))
    assert got[0].dtype == torch.bfloat16 and got[1].dtype == torch.bfloat16
    full_h, full_w = (x.detach().float().requires_grad_() for x in half[:2])
    want = torch.autograd.grad(
        F.kl(full_h @ full_w.T, half[2].float() @ half[1].detach().float().T).sum(), (full_h, full_w)
    )
    for a, b in zip(got, want, strict=True):
        assert (a.float() - b).norm() / b.norm() < 0.02


def test_autocast() -> None:
    x = Setting(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = F.chunked_divergence(x.h_s, x.w_s, x.h_t, x.w_t, chunk=3)
    plain = F.chunked_divergence(x.h_s, x.w_s, x.h_t, x.w_t, chunk=3)
    assert value.dtype == torch.float32 and not torch.equal(value, plain)
    torch.testing.assert_close(value, plain, rtol=0.1, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):  # it does not reach into the loss
        same = F.chunked_logits(x.h_s @ x.w_s.T, x.h_t @ x.w_t.T)
        z = [h.bfloat16() @ w.T.bfloat16() for h, w in ((x.h_s, x.w_s), (x.h_t, x.w_t))]
    torch.testing.assert_close(same, F.kl(z[0].float(), z[1].float()))
    torch.testing.assert_close(value, same)
    assert torch.autograd.grad(value.sum(), x.w_s)[0].dtype == torch.float32


def test_any_loss_of_the_logits() -> None:
    x = Setting(torch.float64)
    t = (x.h_t @ x.w_t.T).flatten(0, 1)
    top = t.log_softmax(-1).topk(5)
    s = x.h_s @ x.w_s.T
    want = F.sparse_kl(s.flatten(0, 1), top.indices, top.values).view(2, 5)
    loss = lambda z, rows: F.sparse_kl(z, top.indices[rows], top.values[rows])  # noqa: E731
    for where in (None, x.where):
        got = F.chunked_head(x.h_s, x.w_s, loss, where=where, chunk=3)
        expected = want if where is None else torch.where(where, want, 0.0)
        torch.testing.assert_close(got, expected)
        for up in (torch.ones_like(x.uneven), x.uneven):
            for a, b in zip(
                torch.autograd.grad((got * up).sum(), (x.h_s, x.w_s), retain_graph=True),
                torch.autograd.grad((expected * up).sum(), (x.h_s, x.w_s), retain_graph=True),
                strict=True,
            ):
                torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(F.chunked_head(x.h_s, x.w_s, loss, chunk=4), want)
    with pytest.raises(ShapeError, match="one value per token"):
        F.chunked_head(x.h_s, x.w_s, lambda z, rows: z.sum())


def test_errors_say_what_to_do() -> None:
    x = Setting(torch.float32)
    run = lambda *a, **k: lambda: F.chunked_divergence(*a, **k)  # noqa: E731
    four = (x.h_s, x.w_s, x.h_t, x.w_t)
    table: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (TeacherMismatch, r"19 entries and the teacher's 18.*weight\[:v\]", run(x.h_s, x.w_s, x.h_t, x.w_t[:-1])),
        (TeacherMismatch, "19 entries and the teacher's 4", run(x.h_s, x.w_s, teacher_logits=x.h_s)),
        (ShapeError, "weight_s", run(x.h_s, x.w_t, x.h_t, x.w_t)),
        (ShapeError, "weight_t", run(x.h_s, x.w_s, x.h_s, x.w_t)),
        (ShapeError, "bias_s", run(*four, bias_s=x.b_s[:3])),
        (ShapeError, "one entry per item", run(x.h_s, x.w_s, x.h_t[:1], x.w_t)),
        (ShapeError, "where", run(*four, where=torch.ones(3, dtype=torch.bool))),
        (ShapeError, "weights", run(*four, weights=torch.ones(3))),
        (ConfigError, "teacher_logits", run(x.h_s, x.w_s)),
        (ConfigError, "did you mean 'reverse'", run(*four, kind="revers")),
        (ConfigError, "labels", run(*four, hard_weight=0.5)),
        (ConfigError, r"\(0, 1\)", run(*four, kind="jensen_shannon", beta=0.0)),
        (ConfigError, r"\[0, 1\]", run(*four, kind="taid", t=2.0)),
        (ConfigError, "chunk", run(*four, chunk=0)),
        (ConfigError, "dense function", run(*four, temperature=torch.ones(2, 5, requires_grad=True))),
        (DataError, "outside 0..18", run(*four, labels=x.y + V, hard_weight=1.0)),
        (ShapeError, r"class ids \[2, 5\],?", run(*four, labels=torch.rand(2, 5, V), hard_weight=1.0)),
        (ConfigError, "teacher", lambda: F.chunked_logits(x.h_s)),
        (TeacherMismatch, "4 classes and the teacher 3", lambda: F.chunked_logits(x.h_s, x.h_t)),
    ]
    for kind, text, call in table:
        with pytest.raises(kind, match=text):
            call()


MEMORY = """
import sys, torch
from limbeck import functional as F
torch.set_num_threads(1)
w, u = torch.randn(8000, 32, requires_grad=True), torch.randn(8000, 32)
def status(key):
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))
for kind in ('forward', 'jensen_shannon'):
    for n in (64, 256, 4096):
        h, t = torch.randn(n, 32, requires_grad=True), torch.randn(n, 32)
        w.grad = None
        open('/proc/self/clear_refs', 'w').write('5')
        base = status('VmRSS')
        F.chunked_divergence(h, w, t, u, kind=kind, chunk=64).mean().backward()
        print(kind, n, (status('VmHWM') - base) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_tokens() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pytest.skip("the peak cannot be reset here")
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    peaks = {(kind, int(n)): float(mb) for kind, n, mb in (line.split() for line in done.stdout.splitlines())}
    one_dense_tensor = 4096 * 8000 * 4 / 2**20  # 125 MB; a dense loss holds five to nine of them
    for kind in ("forward", "jensen_shannon"):
        assert peaks[kind, 4096] < peaks[kind, 256] + 20 and peaks[kind, 4096] < 0.25 * one_dense_tensor, peaks
