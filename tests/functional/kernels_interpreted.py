"""The Triton kernels against the torch path; run by test_kernels.py in a process where triton interprets.

Not collected by itself: TRITON_INTERPRET=1 must be set before anything imports triton.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.functional import _kernels
from limbeck.functional._closed_forms import Kind, make_loss
from limbeck.functional.chunked import Backend

KINDS = list(get_args(Kind))
PATHS: tuple[Backend, Backend] = ("triton", "torch")
V = 21  # odd, and more than one block


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "BLOCK", 16)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every call of the kernels."""
    seen: list[int] = []
    real = _kernels.compare

    def compare(loss: Any, student: Any, *rest: Any, **options: Any) -> Any:
        seen.append(len(student.raw))
        return real(loss, student, *rest, **options)

    monkeypatch.setattr(_kernels, "compare", compare)
    return seen


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Heads:
    """Two little heads over three tokens, the second of which is masked."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        shapes = ((3, 4), (V, 4), (V,), (3, 3), (V, 3), (V,))
        self.h_s, self.w_s, self.b_s, self.h_t, self.w_t, self.b_t = (
            draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)
        )
        self.leaves = tuple(x.requires_grad_() for x in (self.h_s, self.w_s, self.b_s))
        self.y, self.where = torch.tensor([V - 1, -100, 3]), torch.tensor([True, False, True])

    def run(self, backend: Backend, up: Tensor | float = 0.3, **options: Any) -> list[Tensor]:
        """The values, and the gradients of hidden states, weight and bias through both products."""
        value = F.chunked_divergence(
            self.h_s, self.w_s, self.h_t, self.w_t, bias_s=self.b_s, where=self.where, backend=backend, **options
        )
        return [value.detach(), *torch.autograd.grad((value * up).sum(), self.leaves)]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch_with_all_that_a_head_can_do(kind: Kind, launches: list[int]) -> None:
    x = Heads()
    got, want = (
        x.run(
            backend,
            kind=kind,
            bias_t=x.b_t,
            beta=0.3,
            mix=0.2,
            t=0.4,
            value="kl",
            temperature=3.0,
            labels=x.y,
            soft_weight=0.8,
            hard_weight=0.7,
            scale_s=0.9,
            scale_t=1.1,
            softcap_s=2.0,
            softcap_t=3.0,
            chunk=1,
        )
        for backend in PATHS
    )
    assert launches == [1, 1]  # a chunk each, and no masked row
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert got[0][1] == 0 and (got[1][1] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_rounded_no_more_than_torch_rounds(kind: Kind, launches: list[int]) -> None:
    x = Heads(torch.bfloat16)
    options: dict[str, Any] = {"kind": kind, "labels": x.y, "beta": 0.3, "t": 0.4}
    got, want = (x.run(backend, **options) for backend in PATHS)
    assert launches == [2] and got[0].dtype == torch.float32
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)  # of the same rounded logits, in float32
    for a, b in zip(got[1:], want[1:], strict=True):
        assert a.dtype == torch.bfloat16 and (a.float() - b.float()).norm() <= 0.02 * b.float().norm()


@pytest.mark.parametrize(("kind", "t"), [*((kind, 0.4) for kind in KINDS), ("taid", 1.0)])
def test_words_ruled_out(kind: Kind, t: float) -> None:
    """A word out of both models is as if it were not there; a word out of the student alone is as torch has it."""
    a, b = draw(2, V, seed=1), draw(2, V, seed=2)
    a[:, 3], b[:, 3] = -math.inf, -math.inf
    a[1, 5] = -math.inf
    found = []
    for backend in PATHS:
        z = a.clone().requires_grad_()
        y = torch.tensor([0, 1])
        value = F.chunked_logits(z, b, kind=kind, labels=y, t=t, temperature=0.5, backend=backend)
        found.append((value.detach(), torch.autograd.grad(value.sum(), z)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][1][0], found[1][1][0], rtol=1e-5, atol=1e-6)
    assert (found[0][1][:, 3] == 0).all() and found[0][0][0].isfinite()
    if kind in ("forward", "jeffreys", "soft_cross_entropy"):
        assert found[0][0][1] == math.inf


def test_a_recorded_teacher_a_temperature_a_factor_and_an_upstream_for_each_token(launches: list[int]) -> None:
    x = Heads()
    recorded = draw(3, V, seed=9).half()
    recorded[:, 7] = -math.inf
    heat, factor, up = torch.tensor([0.5, 1.0, 4.0]), torch.tensor([1.0, 5.0, 0.2]), torch.tensor([1.0, 1.0, 3.0])
    out = []
    for backend in PATHS:
        value, soft, hard = F.chunked_divergence(
            x.h_s,
            x.w_s,
            teacher_logits=recorded,
            kind="taid",
            t=0.3,
            temperature=heat,
            scale_t2=False,
            weights=factor,
            labels=x.y,
            hard_weight=0.5,
            where=x.where,
            return_parts=True,
            backend=backend,
        )
        first = torch.autograd.grad((value * up).sum(), x.leaves[:2], retain_graph=True)
        again = torch.autograd.grad((value * up).sum(), x.leaves[:2])
        out.append([value.detach(), soft, hard, *first, *again])
    assert len(launches) == 3  # forward, and twice anew for uneven factors
    for a, b in zip(*out, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["forward", "jensen_shannon"])
def test_ready_logits_masked_and_laid_out_the_other_way(kind: Kind) -> None:
    a, b = draw(V, 3, seed=1, dtype=torch.bfloat16).t(), draw(3, V + 2, seed=2)[:, :V]
    a[1], b[1] = math.nan, math.nan
    where = torch.tensor([True, False, True])
    found = []
    for backend in PATHS:
        z = a.detach().requires_grad_()
        value = F.chunked_logits(z, b, kind=kind, where=where, backend=backend)
        found.append((value.detach(), torch.autograd.grad((value * where).sum(), z)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0.01, atol=1e-5)
    assert found[0][0][1] == 0 and (found[0][1][1] == 0).all()


@pytest.mark.parametrize("kind", ["taid", "reverse", "skew_forward"])
def test_a_whole_block_and_more(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    words = _kernels.BLOCK + 905
    a, b = 3.0 * draw(1, words, seed=1), 3.0 * draw(1, words, seed=2)
    a[0, -1], b[0, -1] = 14.0, 13.0  # so that the second block outweighs the first
    found = []
    for backend in PATHS:
        z = a.clone().requires_grad_()
        value = F.chunked_logits(z, b, kind=kind, value="kl", backend=backend)
        found.append((value.detach(), torch.autograd.grad(value.sum(), z)[0]))
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=1e-7)


def test_extremes(launches: list[int]) -> None:
    a, b = 1e4 * draw(2, V, seed=1), 1e4 * draw(2, V, seed=2)
    for kind in ("forward", "reverse", "jensen_shannon"):
        z = a.clone().requires_grad_()
        value, plain = (F.chunked_logits(z, b, kind=kind, temperature=0.05, backend=path) for path in PATHS)
        torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-6)
        assert torch.autograd.grad(value.sum(), z)[0].isfinite().all()
        same = F.chunked_logits(b.clone().requires_grad_(), b, kind=kind, backend="triton")
        assert (same >= 0).all() and same.max() < 1e-6
    assert len(launches) == 6


def test_nan_is_not_hidden() -> None:
    a, b = draw(1, V, seed=1), draw(1, V, seed=2)
    for spoilt in (a, b):
        keep = spoilt[0, 4].item()
        spoilt[0, 4] = math.nan
        for kind in ("reverse", "total_variation"):
            z = a.clone().requires_grad_()
            value = F.chunked_logits(z, b, kind=kind, backend="triton")
            assert value.isnan().all() and torch.autograd.grad(value.sum(), z)[0].isnan().any()
        spoilt[0, 4] = keep


def test_a_label_outside_the_vocabulary_shows() -> None:
    """Where labels are on a GPU they are not looked at before."""
    loss = make_loss("cross_entropy", 0.5, 0.1, 1.0, "kl", True, 1.0, 1.0)
    labels = torch.tensor([0, V, -100, V - 1])
    hard = _kernels.compare(loss, _kernels.Logits(draw(4, V, seed=1)), None, labels=labels)[1]
    assert hard.isnan().tolist() == [False, True, True, False]


def test_only_what_is_asked_for(launches: list[int]) -> None:
    x = Heads()
    run = lambda h, w: F.chunked_divergence(h, w, x.h_t, x.w_t, chunk=2, backend="triton")  # noqa: E731
    full = torch.autograd.grad(run(x.h_s, x.w_s).sum(), (x.h_s, x.w_s))
    assert torch.equal(torch.autograd.grad(run(x.h_s, x.w_s.detach()).sum(), x.h_s)[0], full[0])
    with torch.no_grad():
        assert not run(x.h_s, x.w_s).requires_grad
    count = len(launches)
    none = torch.zeros(3, dtype=torch.bool)
    z = draw(3, V, seed=1).requires_grad_()
    value = F.chunked_logits(z, z.detach(), where=none, backend="triton")
    assert torch.equal(torch.autograd.grad(value.sum(), z)[0], torch.zeros_like(z)) and len(launches) == count + 1


def test_autocast() -> None:
    x = Heads()
    found = []
    for backend in PATHS:
        with torch.autocast("cpu", torch.bfloat16):
            found.append(x.run(backend, kind="jensen_shannon"))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    assert found[0][2].dtype == torch.float32
    assert (found[0][2] - found[1][2]).norm() < 0.02 * found[1][2].norm()


def test_float64_and_auto_stay_with_torch(launches: list[int]) -> None:
    a, b = draw(2, V, seed=1, dtype=torch.float64), draw(2, V, seed=2, dtype=torch.float64)
    assert torch.equal(F.chunked_logits(a, b, backend="triton"), F.chunked_logits(a, b, backend="torch"))
    F.chunked_logits(a.float(), b.float())
    assert not launches
