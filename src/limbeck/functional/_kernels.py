"""Triton kernels for the vocabulary losses of `limbeck.functional.chunked`: the same closed forms, row by row on a GPU.

One program takes one token. It reads the logits as the matrix products left them (float32, bfloat16 or float16), does
what the head still does to them (bias, scale, cap), computes in float32, and writes the gradient over the student's
logits. Nothing else of size tokens times vocabulary is read or written: the first pass over the vocabulary gathers the
normalisers and, for the reverse and Jeffreys' divergences, the mean that their gradient needs; the last pass gives
values and gradient. The Jensen-Shannon and skew divergences and total variation need a pass between the two, since what
they average depends on both normalisers.

Every kind of `chunked_divergence` is here. float64 is not: those calls stay with torch.

The forms and factors are limbeck's own. Liger's fused loss could not stand in: it leaves out the factor T^2, mixes a
cross-entropy in unless told otherwise, returns one mean over the tokens instead of a value for each, and sums the
gradient of the weight in the weight's own precision.

This module imports triton, and is imported where the kernels are used and nowhere else.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from ._closed_forms import Loss

BLOCK = 4096
"""Most words looked at together."""

MEANS = ("jensen_shannon", "skew_forward", "skew_reverse", "total_variation")
"""Kinds that need a pass for a mean, between the normalisers and the gradient."""


@triton.jit
def _capped(
    pointer: tl.tensor, bias: tl.tensor, scale: tl.tensor, cap: tl.tensor, words: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """A block of logits in float32, as the head gives them."""
    z = tl.load(pointer + words, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        z += tl.load(bias + words, mask=inside, other=0.0).to(tl.float32)
    z *= scale
    if cap is not None:
        # tanh by hand: the one of the CUDA library is not known to the interpreter
        e = tl.exp(tl.abs(z / cap) * -2.0)
        z = tl.where(z < 0, e - 1.0, 1.0 - e) / (1.0 + e) * cap
    return z


@triton.jit
def _floored(z: tl.tensor, least: tl.tensor) -> tl.tensor:
    """At least ``least``; unlike a maximum it lets NaN through."""
    return tl.where(z < least, least, z)


@triton.jit
def _grown(top: tl.tensor, total: tl.tensor, z: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Largest logit and sum of exponentials so far, with another block; its exponentials, and the sum's rescaling."""
    new = tl.maximum(top, tl.max(tl.where(inside, z, float("-inf")), 0))
    e = tl.where(inside, tl.exp(z - new), 0.0)
    shrunk = tl.exp(top - new)
    return new, total * shrunk + tl.sum(e, 0), e, shrunk


@triton.jit
def _target(z_s: tl.tensor, z_t: tl.tensor, share: tl.tensor, least: tl.tensor) -> tl.tensor:
    """TAID's target: logits between the student's and the teacher's; a word out of either is out of it."""
    step = z_t - z_s
    mixed = tl.where(share < 0.5, z_s + share * step, z_t - step * (1.0 - share))
    gone = (z_s <= 0.5 * least) | ((z_t <= 0.5 * least) & (share > 0.0))
    return tl.where(gone, least, mixed)


@triton.jit
def _terms(
    log_q: tl.tensor, log_p: tl.tensor, q: tl.tensor, p: tl.tensor, share: tl.tensor, KIND: tl.constexpr
) -> tl.tensor:
    """Each word's part of the value, and the derivative of the value in ``q`` but for a constant."""
    tiny = 1.1754943508222875e-38
    gap = log_q - log_p
    part = gap
    slope = gap
    if KIND == "forward":
        part = q - p - p * gap  # q - p sums to zero but for rounding, and makes the rounding second order
    elif KIND == "soft_cross_entropy":
        part = -p * log_q
    elif KIND == "reverse":
        part = q * gap + (p - q)
    elif KIND == "jeffreys":
        part = (q - p) * gap
    elif KIND == "jensen_shannon":
        mixed = tl.log(tl.maximum(share * p + (1.0 - share) * q, tiny))
        part = share * p * (log_p - mixed) + (1.0 - share) * q * (log_q - mixed)
        slope = (1.0 - share) * (log_q - mixed)
    elif KIND == "skew_forward":
        mixed = tl.log(tl.maximum(share * p + (1.0 - share) * q, tiny))
        part = p * (log_p - mixed)
        slope = (share - 1.0) * tl.exp(log_p - mixed)
    elif KIND == "skew_reverse":
        mixed = tl.log(tl.maximum(share * q + (1.0 - share) * p, tiny))
        part = q * (log_q - mixed)
        slope = log_q - mixed - share * tl.exp(log_q - mixed)
    elif KIND == "total_variation":
        part = 0.5 * tl.abs(q - p)
        slope = tl.where(q > p, 0.5, tl.where(q < p, -0.5, q - p))  # the difference, if neither, is zero or NaN
    return part, slope


@triton.jit
def _kernel(
    out: tl.tensor,
    s: tl.tensor,
    t: tl.tensor,
    stride_out: tl.tensor,
    stride_s: tl.tensor,
    stride_t: tl.tensor,
    rows_s: tl.tensor,
    rows_t: tl.tensor,
    bias_s: tl.tensor,
    bias_t: tl.tensor,
    scale_s: tl.tensor,
    scale_t: tl.tensor,
    cap_s: tl.tensor,
    cap_t: tl.tensor,
    labels: tl.tensor,
    heat: tl.tensor,
    factor: tl.tensor,
    soft: tl.tensor,
    hard: tl.tensor,
    share: tl.tensor,
    soft_weight: tl.tensor,
    hard_weight: tl.tensor,
    least: tl.tensor,
    huge: tl.tensor,
    vocabulary: tl.tensor,
    KIND: tl.constexpr,
    MIXED: tl.constexpr,
    SQUARED: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Values and gradient of one token; an argument that is None is compiled away."""
    item = tl.program_id(0).to(tl.int64)
    row = item
    if rows_s is not None:
        row = tl.load(rows_s + item).to(tl.int64)
    s += row * stride_s
    if out is not None:
        out += row * stride_out
    if t is not None:
        row = item
        if rows_t is not None:
            row = tl.load(rows_t + item).to(tl.int64)
        t += row * stride_t
    T = 1.0
    if heat is not None:
        T = tl.load(heat + item).to(tl.float32)
    label = -1
    if labels is not None:
        label = tl.load(labels + item).to(tl.int64)

    # First pass: normalisers of the student at T and at 1, and of the target.
    top_s = float("-inf")
    top_t = float("-inf")
    top_1 = float("-inf")
    sum_s = 0.0
    sum_t = 0.0
    sum_1 = 0.0
    mean = 0.0
    chosen = 0.0
    for start in range(0, vocabulary, BLOCK):
        words = start + tl.arange(0, BLOCK)
        inside = words < vocabulary
        z_1 = _floored(_capped(s, bias_s, scale_s, cap_s, words, inside), least)
        z_s = z_1
        if labels is not None:
            chosen += tl.sum(tl.where(words == label, z_1, 0.0), 0)
            if heat is not None:
                top_1, sum_1, e, shrunk = _grown(top_1, sum_1, z_1, inside)
        if heat is not None:
            z_s = _floored(z_1 / T, least)
        top_s, sum_s, e, shrunk = _grown(top_s, sum_s, z_s, inside)
        if t is not None:
            z_t = _floored(_capped(t, bias_t, scale_t, cap_t, words, inside), least)
            if heat is not None:
                z_t = _floored(z_t / T, least)
            if MIXED:
                z_t = _target(z_s, z_t, share, least)
            if (KIND == "reverse") or (KIND == "jeffreys"):
                mean = mean * shrunk + tl.sum(e * (z_s - z_t), 0)
            top_t, sum_t, e, shrunk = _grown(top_t, sum_t, z_t, inside)
    log_s = top_s + tl.log(sum_s)
    log_t = log_s
    log_1 = log_s
    if t is not None:
        log_t = top_t + tl.log(sum_t)
        mean = mean / sum_s - log_s + log_t
    cross = 0.0
    if labels is not None:
        if heat is not None:
            log_1 = top_1 + tl.log(sum_1)
        cross = log_1 - chosen
        cross = tl.where(cross > huge, float("inf"), cross)
        cross = tl.where((label >= 0) & (label < vocabulary), cross, float("nan"))
    tl.store(hard + item, cross)

    # Pass between: the value, and the mean of the slope under q.
    value = 0.0
    if MEAN:
        mean = 0.0
        for start in range(0, vocabulary, BLOCK):
            words = start + tl.arange(0, BLOCK)
            inside = words < vocabulary
            z_s = _floored(_capped(s, bias_s, scale_s, cap_s, words, inside), least)
            z_t = _floored(_capped(t, bias_t, scale_t, cap_t, words, inside), least)
            if heat is not None:
                z_s = _floored(z_s / T, least)
                z_t = _floored(z_t / T, least)
            q = tl.where(inside, tl.exp(z_s - log_s), 0.0)
            p = tl.where(inside, tl.exp(z_t - log_t), 0.0)
            part, slope = _terms(z_s - log_s, z_t - log_t, q, p, share, KIND)
            value += tl.sum(tl.where(inside, part, 0.0), 0)
            mean += tl.sum(tl.where(inside, q * slope, 0.0), 0)

    # Last pass: the gradient, written where the logits were; the value too unless it is known.
    pull = soft_weight / T
    if SQUARED:
        pull = soft_weight * T
    push = scale_s
    if factor is not None:
        push = push * tl.load(factor + item).to(tl.float32)
    if (out is not None) or ((t is not None) and (not MEAN)):
        for start in range(0, vocabulary, BLOCK):
            words = start + tl.arange(0, BLOCK)
            inside = words < vocabulary
            capped = _capped(s, bias_s, scale_s, cap_s, words, inside)
            z_1 = _floored(capped, least)
            d = tl.zeros((BLOCK,), tl.float32)
            if t is not None:
                z_s = z_1
                z_t = _floored(_capped(t, bias_t, scale_t, cap_t, words, inside), least)
                if heat is not None:
                    z_s = _floored(z_1 / T, least)
                    z_t = _floored(z_t / T, least)
                if MIXED:
                    z_t = _target(z_s, z_t, share, least)
                q = tl.where(inside, tl.exp(z_s - log_s), 0.0)
                p = tl.where(inside, tl.exp(z_t - log_t), 0.0)
                part, slope = _terms(z_s - log_s, z_t - log_t, q, p, share, KIND)
                if not MEAN:
                    value += tl.sum(tl.where(inside, part, 0.0), 0)
                if (KIND == "forward") or (KIND == "soft_cross_entropy"):
                    d = q - p
                else:
                    d = q * (slope - mean)
                if KIND == "jeffreys":
                    d += q - p
                d *= pull
            if out is not None:
                if labels is not None:
                    d += hard_weight * (tl.exp(z_1 - log_1) - tl.where(words == label, 1.0, 0.0))
                d *= push
                if cap_s is not None:
                    bent = capped / cap_s
                    d *= 1.0 - bent * bent
                tl.store(out + words, d.to(out.dtype.element_ty), mask=inside)
    if t is not None:
        if KIND != "soft_cross_entropy":
            value = tl.where(value < 0.0, 0.0, value)
        if SQUARED:
            value = value * T * T
        value = tl.where(value > huge, float("inf"), value)
    tl.store(soft + item, value)


INTERPRETED = not isinstance(_kernel, triton.JITFunction)
"""Whether triton was imported with TRITON_INTERPRET=1: then the kernels run, slowly, on any tensors."""


@dataclass(frozen=True)
class Logits:
    """Logits as a matrix product left them, and what the head still does to them.

    Attributes:
        raw: ``[*, V]``.
        rows: which rows of ``raw``, in order; None for all.
        bias: ``[V]``, added first.
        scale: then multiplied by this.
        softcap: then ``cap * tanh(z / cap)``.
    """

    raw: Tensor
    rows: Tensor | None = None
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def arguments(self, name: str) -> dict[str, Any]:
        """What the kernel wants to know, its names ending in ``name``."""
        raw = self.raw if self.raw.stride(-1) == 1 else self.raw.contiguous()
        bias = None if self.bias is None else self.bias.contiguous()
        return {
            name: raw,
            f"stride_{name}": raw.stride(0),
            f"rows_{name}": self.rows,
            f"bias_{name}": bias,
            f"scale_{name}": float(self.scale),
            f"cap_{name}": None if self.softcap is None else float(self.softcap),
        }


ABSENT = {"t": None, "stride_t": 0, "rows_t": None, "bias_t": None, "scale_t": 1.0, "cap_t": None}


def arguments(
    loss: Loss,
    student: Logits,
    teacher: Logits | None,
    out: Tensor | None,
    labels: Tensor | None,
    temperature: float | Tensor,
    factor: Tensor | None,
    floor: bool,
) -> tuple[int, dict[str, Any]]:
    """The number of programs and the kernel's arguments by name."""
    vocabulary, device = student.raw.shape[1], student.raw.device
    n = len(student.raw if student.rows is None else student.rows)
    kind = loss.kind
    if kind == "taid":
        kind = "forward" if loss.taid_kl else "soft_cross_entropy"
    heat: Tensor | None = None
    if isinstance(temperature, Tensor):
        heat = temperature.contiguous()
    elif temperature != 1.0:
        heat = torch.full((n,), temperature, dtype=torch.float32, device=device)
    values = torch.empty(2, n, dtype=torch.float32, device=device)
    return n, {
        "out": out,
        "stride_out": 0 if out is None else out.stride(0),
        **student.arguments("s"),
        **(ABSENT if teacher is None else teacher.arguments("t")),
        "labels": None if labels is None else labels.contiguous(),
        "heat": heat,
        "factor": None if factor is None else factor.contiguous(),
        "soft": values[0],
        "hard": values[1],
        "share": float(loss.share),
        "soft_weight": float(loss.soft),
        "hard_weight": float(loss.hard),
        # as in the torch path: minus infinities become large finite numbers, and values that come of them infinite
        "least": -0.1 * torch.finfo(torch.float32).max if floor else float("-inf"),
        "huge": 1e15 if floor else float("inf"),
        "vocabulary": vocabulary,
        "KIND": kind,
        "MIXED": loss.kind == "taid",
        "SQUARED": loss.scale_t2,
        "MEAN": teacher is not None and kind in MEANS,
        "BLOCK": min(BLOCK, triton.next_power_of_2(vocabulary)),
    }


def compare(
    loss: Loss,
    student: Logits,
    teacher: Logits | None,
    *,
    out: Tensor | None = None,
    labels: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    factor: Tensor | None = None,
    floor: bool = True,
) -> tuple[Tensor, Tensor]:
    """Soft values ``[n]`` and hard values ``[n]``, both float32, of the chosen rows.

    Args:
        loss: what is computed.
        student: its logits, of ``n`` rows.
        teacher: likewise; None for labels alone.
        out: takes the gradient of the weighted sum in the student's *raw* logits, in its own dtype; it has the shape of
            ``student.raw``, of which only the chosen rows are written, and may be that very tensor. Its last dimension
            is dense. None if no gradient is wanted.
        labels: class ids ``[n]``; one outside the vocabulary gives NaN, since a GPU cannot stop to complain.
        temperature: a number, or one per row ``[n]``.
        factor: of each row's gradient ``[n]``; the values are left alone.
        floor: whether minus infinities are to be expected.
    """
    n, given = arguments(loss, student, teacher, out, labels, temperature, factor, floor)
    if n:
        block = given["BLOCK"]
        where = torch.cuda.device(student.raw.device) if student.raw.is_cuda else contextlib.nullcontext()
        with where:
            _kernel[(n,)](**given, num_warps=max(1, min(8, block // 256)))
    return given["soft"], given["hard"]
