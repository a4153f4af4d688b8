"""Losses over a large vocabulary that never hold the logits of all tokens.

A language model's logits are ``hidden @ weight.T``, tokens by vocabulary: for 4,096 tokens and 128,000 words 2 GB in
float32, for each of student, teacher, both log-probabilities and both gradients. Here tokens are taken a chunk at a
time: project, compare, and turn at once into the gradients of the hidden states and of the weight by the closed form of
the loss, so nothing of size tokens times vocabulary outlives a chunk and the backward pass projects nothing again.

`chunked_divergence` compares a student given by hidden states and output weight with a teacher given likewise or by its
logits. `chunked_logits` does the same from ready logits, sparing the intermediate copies. `chunked_head` takes any loss
of logits (a sparse teacher, say). All return differentiable values per token; see `limbeck.functional.divergence` for
what the kinds mean.

The first two can run Triton kernels on CUDA devices (``backend="triton"``, or ``"auto"``): every kind, temperature, mask
and infinity as here, on float32, bfloat16 and float16 logits. float64 and `chunked_head` stay with torch. The kernels have
been checked in Triton's interpreter and compiled for GPUs, but have not run on one, so nobody gets them unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError, TeacherMismatch
from ._closed_forms import Kind, Loss, make_loss
from ._common import (
    Value,
    as_mask,
    as_temperature,
    check_classes,
    check_labels,
    check_pair,
    choose,
    statistics_dtype,
)
from ._once import eager, refuse_second
from .sparse import TopK

DENSE = "the dense function (kl, jensen_shannon, taid, ...)"

Backend = Literal["auto", "torch", "triton"]


@dataclass(frozen=True)
class _Head:
    """How hidden states become logits."""

    scale: float
    softcap: float | None
    dtype: torch.dtype  # of the matrix products

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        """``[n, V]`` in the statistics' dtype, written into ``out``."""
        if self.dtype == out.dtype:
            z = torch.mm(hidden.to(self.dtype), weight.t(), out=out)
        else:
            z = out.copy_(hidden.to(self.dtype) @ weight.t())
        if bias is not None:
            z.add_(bias)
        if self.scale != 1.0:
            z.mul_(self.scale)
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z

    def pull_back(self, slope: Tensor, z: Tensor) -> Tensor:
        """Gradient in ``hidden @ weight.T + bias`` from the gradient in the logits ``z`` (a copy made before)."""
        if self.softcap is not None:
            slope = slope * (1.0 - (z / self.softcap).square_())
        return slope * self.scale if self.scale != 1.0 else slope


# Compares one block: (student logits [n, V] not to be changed, its rows within the chunk, whether a slope is wanted)
# -> soft values [n], hard values [n], slope [n, V] or None.
Compare = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor, Tensor | None]]

# The teacher's logits [n, V] of some rows of a chunk that has been projected; None where there is no teacher.
Teacher = Callable[[slice], Tensor | None]

# The same for a whole chunk in one kernel: (matrix product [n, V], which becomes its own gradient if one is wanted, its
# span of rows, factors of the rows' gradients, whether one is wanted) -> soft values [n], hard values [n].
Fused = Callable[[Tensor, slice, Tensor | None, bool], tuple[Tensor, Tensor]]


def _spans(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@dataclass(frozen=True)
class _Plan:
    """One call: the student's head, its loss, and how rows are cut."""

    name: str  # of the public function
    head: _Head
    compare: Callable[[slice], Compare]  # made once a chunk: this is where the teacher is projected
    combine: tuple[float, float]  # factors of the soft and the hard values
    chunk: int  # rows projected at once
    block: int  # rows compared at once: small enough for the processor's cache
    weights: Tensor | None
    statistics: torch.dtype
    fused: Fused | None = None  # in place of compare and of what the head does after the product


Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def _run(
    plan: _Plan,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    needs: tuple[bool, ...],
    upstream: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Grads]:
    """All chunks once: values, their two parts, and the gradients asked for, each row's times its upstream."""
    n, (vocabulary, width) = len(hidden), weight.shape
    kind, product, device = plan.statistics, plan.head.dtype, hidden.device
    factor = plan.weights
    if upstream is not None:
        factor = upstream.to(kind) if factor is None else factor * upstream.to(kind)
    soft, hard = torch.zeros(n, dtype=kind, device=device), torch.zeros(n, dtype=kind, device=device)
    d_hidden = torch.empty(n, width, dtype=kind, device=device) if needs[0] else None
    # Sums over tokens are kept in float32 or better, however coarse the weight.
    d_weight = (torch.empty if n else torch.zeros)(vocabulary, width, dtype=kind, device=device) if needs[1] else None
    d_bias = torch.zeros(vocabulary, dtype=kind, device=device) if needs[2] else None
    coarse = weight.to(product)
    store = kind if plan.fused is None else product
    buffer = torch.empty(min(plan.chunk, n), vocabulary, dtype=store, device=device)
    for span in _spans(n, plan.chunk):
        h = hidden[span].to(product)
        if plan.fused is not None:
            z = torch.mm(h, coarse.t(), out=buffer[: len(h)])
            soft[span], hard[span] = plan.fused(z, span, _at(factor, span), any(needs))
        else:
            z = plan.head.logits(h, coarse, bias, buffer[: len(h)])
            compare = plan.compare(span)
            for rows in _spans(len(h), plan.block):
                at = slice(span.start + rows.start, span.start + rows.stop)
                soft[at], hard[at], slope = compare(z[rows], rows, any(needs))
                if slope is not None:
                    slope = plan.head.pull_back(slope, z[rows])
                    z[rows] = slope if factor is None else slope.mul_(factor[at].unsqueeze(1))
        if not any(needs):
            continue
        dz = z.to(product)  # the logits have become their gradient
        if d_hidden is not None:
            if product == kind:
                torch.mm(dz, coarse, out=d_hidden[span])
            else:
                d_hidden[span] = dz @ coarse
        if d_weight is not None:
            if product == kind:  # the first chunk writes, later ones add
                torch.addmm(d_weight, dz.t(), h, beta=float(span.start > 0), out=d_weight)
            elif span.start:
                d_weight.add_(dz.t() @ h)
            else:
                d_weight.copy_(dz.t() @ h)
        if d_bias is not None:
            d_bias.add_(z.sum(0, dtype=kind))
    values = _combine(plan.combine, soft, hard)
    if plan.weights is not None:
        values = values * plan.weights
    return values, soft, hard, (d_hidden, d_weight, d_bias)


def _as_written(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast: the products have been given their dtype, and it would round the inner products of the values too."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _combine(factors: tuple[float, float], soft: Tensor, hard: Tensor) -> Tensor:
    """The weighted sum; a weight of zero silences even an infinite part."""
    if factors[1] == 0.0:
        return factors[0] * soft
    return factors[1] * hard if factors[0] == 0.0 else factors[0] * soft + factors[1] * hard


class _Chunked(torch.autograd.Function):
    """Values per row, with the gradients for an upstream of one computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan, grad: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs = tuple(grad and need for need in ctx.needs_input_grad[:3])
        ctx.save_for_backward(hidden, weight, bias)
        with _as_written(hidden.device):
            values, soft, hard, ctx.grads = _run(plan, hidden, weight, bias, needs)
        ctx.plan = plan
        ctx.mark_non_differentiable(soft, hard)
        ctx.set_materialize_grads(False)
        return values, soft, hard

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return None, None, None, None, None
        inputs = ctx.saved_tensors
        with torch.no_grad():
            slopes = _Chunked._slopes(ctx, upstream)
        return *refuse_second(slopes, (*inputs, upstream), ctx.plan.name, DENSE), None, None

    @staticmethod
    def _slopes(ctx: Any, upstream: Tensor) -> list[Tensor | None]:
        hidden, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        grads, ctx.grads = ctx.grads, None
        summed = (needs[1] or needs[2]) and len(upstream) > 0
        if grads is None or (summed and not bool((upstream == upstream[0]).all())):
            # A second backward, or tokens without a common factor: the sums over tokens are taken anew.
            grads = _run(ctx.plan, hidden, weight, bias, needs, upstream)[3]
        else:
            for d, factor in zip(grads, (upstream.unsqueeze(1), *[upstream[:1]] * 2), strict=True):
                if d is not None and len(upstream):
                    d.mul_(factor)
        inputs = (hidden, weight, bias)
        return [None if d is None else d.to(x.dtype) for d, x in zip(grads, inputs, strict=True)]


def _matmul_dtype(hidden: Tensor, weight: Tensor, device: torch.device) -> torch.dtype:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _sizes(chunk: int | None, vocabulary: int, device: torch.device) -> tuple[int, int]:
    """Rows per projection and rows per comparison."""
    if chunk is not None and chunk < 1:
        raise ConfigError("chunk", given=chunk, expected="a number of tokens, at least 1")
    if device.type == "cpu":
        rows = chunk or min(128, max(32, 2**23 // vocabulary))  # 32 MB of float32
        return rows, min(rows, max(1, 2**17 // vocabulary))
    rows = chunk or max(128, 2**26 // vocabulary)  # 256 MB of float32
    return rows, rows


def _kernels(backend: Backend, device: torch.device, statistics: torch.dtype) -> Any:
    """The module of Triton kernels where they are to be used, else None."""
    choose("backend", backend, Backend)
    if backend == "torch":
        return None
    if backend == "auto" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        return None
    try:
        from . import _kernels as kernels
    except ImportError:
        if backend == "auto":
            return None
        raise ConfigError(
            "backend", "Triton is not installed", given=backend, remedy="pip install triton, or set backend='torch'"
        ) from None
    if device.type != "cuda" and not kernels.INTERPRETED:
        raise ConfigError(
            "backend",
            "Triton's kernels need a CUDA device",
            given=f"'triton' and tensors on {device}",
            remedy="move models and data to a GPU, or set backend='auto'; only to try the kernels here, slowly, "
            "start Python with TRITON_INTERPRET=1",
        )
    return kernels if statistics == torch.float32 else None


def _whole(weight: Any) -> Any:
    """A weight that is sharded over processes, gathered once (its gradient finds the way back); others as they are."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def _check_head(name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2 or hidden.ndim == 0 or hidden.shape[-1] != weight.shape[-1]:
        raise ShapeError(
            f"weight_{name}",
            given=f"hidden {list(hidden.shape)}, weight {list(weight.shape)}",
            expected="hidden [..., H] and weight [V, H]",
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"bias_{name}", given=list(bias.shape), expected=f"[{weight.shape[0]}]")


def _flat(x: Tensor, items: torch.Size, name: str, width: bool = True) -> Tensor:
    if x.shape[: len(items)] != items or x.ndim != len(items) + width:
        raise ShapeError(name, given=list(x.shape), expected=f"one entry per item {list(items)}")
    return x.reshape(-1, x.shape[-1]) if width else x.reshape(-1)


class _Rows:
    """The valid rows of the flattened items, and the way back."""

    def __init__(self, where: Tensor | None, items: torch.Size) -> None:
        mask = as_mask(where, items)
        self.items = items
        self.index = None if mask is None else mask.reshape(-1).nonzero().squeeze(1)
        if self.index is not None and len(self.index) == items.numel():
            self.index = None
        self.count = items.numel() if self.index is None else len(self.index)

    def take(self, x: Tensor) -> Tensor:
        return x if self.index is None else x.index_select(0, self.index)

    def at(self, span: slice) -> Any:
        """What to index a flattened tensor with, for a span of valid rows."""
        return span if self.index is None else self.index[span]

    def pick(self, x: Tensor, span: slice) -> tuple[Tensor, Tensor | None]:
        """A tensor and which of its rows a span of valid rows means, None for all of them; without copying any."""
        return (x[span], None) if self.index is None else (x, self.index[span])

    def back(self, values: Tensor) -> Tensor:
        if self.index is not None:
            values = values.new_zeros(self.items.numel()).index_copy(0, self.index, values)
        return values.reshape(self.items)


def _constant(x: Tensor, name: str) -> Tensor:
    if x.requires_grad:
        raise ConfigError(name, "chunked losses give no gradient to it", remedy=f"detach it, or use {DENSE}")
    return x


def _fixed(x: float | Tensor, items: torch.Size, rows: _Rows, name: str) -> float | Tensor:
    return rows.take(_constant(x, name).expand(items).reshape(-1)) if isinstance(x, Tensor) else x


def _factors(weights: Tensor | None, items: torch.Size, rows: _Rows, dtype: torch.dtype) -> Tensor | None:
    if weights is None:
        return None
    return rows.take(_flat(_constant(weights, "weights"), items, "weights", width=False)).to(dtype)


def _others(value: Tensor, leaf: Tensor) -> bool:
    """Whether a graph leads to anything that wants a gradient beside ``leaf``."""
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", leaf) is not leaf:
            return True
        nodes += [further for further, _ in node.next_functions]
    return False


@eager(DENSE)
def chunked_divergence(
    hidden_s: Tensor,
    weight_s: Tensor,
    hidden_t: Tensor | None = None,
    weight_t: Tensor | None = None,
    *,
    kind: Kind = "forward",
    teacher_logits: Tensor | TopK | None = None,
    bias_s: Tensor | None = None,
    bias_t: Tensor | None = None,
    beta: float = 0.5,
    mix: float = 0.1,
    t: float = 1.0,
    value: Value = "cross_entropy",
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    labels: Tensor | None = None,
    soft_weight: float = 1.0,
    hard_weight: float = 0.0,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    chunk: int | None = None,
    scale_s: float = 1.0,
    scale_t: float = 1.0,
    softcap_s: float | None = None,
    softcap_t: float | None = None,
    return_parts: bool = False,
    backend: Backend = "torch",
) -> Any:
    """A divergence between two language-model heads, one value per token, a chunk of tokens at a time.

    Equal, but for rounding, to the dense function of `limbeck.functional.divergence` on ``hidden_s @ weight_s.T`` and
    ``hidden_t @ weight_t.T``, in value and gradient; but at most ``chunk`` rows of each model's logits exist at once.
    Only valid positions are projected. The teacher gets no gradient. A second derivative is refused, and so are torch.func's
    transforms; torch.compile leaves a gap in its graph for it.

    The gradient of the output weight is summed while going forward, for tokens that share one upstream factor (any sum
    or mean over tokens). Where they do not, backward sums it anew, at the cost of one more pass: pass factors known
    beforehand as ``weights`` instead.

    Args:
        hidden_s: the student's last hidden states ``[..., H_s]``.
        weight_s: its output weight ``[V, H_s]``. Where vocabularies are padded differently, slice both to the shared
            ids first (``weight[:v]``).
        hidden_t: the teacher's last hidden states ``[..., H_t]``.
        weight_t: its output weight ``[V, H_t]``.
        kind: ``forward``, ``reverse``, ``jeffreys``, ``jensen_shannon`` (beta), ``skew_forward``, ``skew_reverse``
            (mix), ``soft_cross_entropy``, ``total_variation``, ``taid`` (t, value), or ``cross_entropy``: labels alone,
            no teacher.
        teacher_logits: ``[..., V]`` instead of hidden_t and weight_t (a recorded teacher); or a `TopK`, whose rows are written
            out a few at a time.
        bias_s, bias_t: of the output layers ``[V]``; minus infinity rules a word out.
        beta: the teacher's share in the Jensen-Shannon mixture.
        mix: of the skew KL.
        t: TAID's interpolation.
        value: TAID's value, ``cross_entropy`` or ``kl``.
        temperature: of the divergence: a number, or one per token ``[...]``. Labels always see temperature 1.
        scale_t2: multiply the divergence by the temperature squared.
        labels: class ids ``[...]`` for a hard-label cross-entropy; needed when ``hard_weight`` is not 0.
        soft_weight, hard_weight: the value is ``soft_weight * divergence + hard_weight * cross_entropy``.
        weights: constant factors per token ``[...]``, applied to the values.
        where: valid tokens ``[...]``; others give 0.
        chunk: tokens per chunk; by default at most 128 and 32 MB of logits on a CPU, and 256 MB of logits elsewhere.
        scale_s, scale_t: factor on the logits, as some architectures have it.
        softcap_s, softcap_t: logits become ``cap * tanh(logits / cap)``.
        return_parts: also return the divergence and the cross-entropy per token, unweighted and detached.
        backend: ``torch``, or ``triton`` for kernels that read and write each logit as seldom as can be; ``auto`` takes
            them for tensors on CUDA devices of capability 8 and above, if triton can be imported. In float64 every
            backend is torch's. In half precision the gradient of the bias is, with ``triton``, the sum of rounded rows.

    Returns:
        Values ``[...]``; with ``return_parts`` a triple (values, divergence, cross_entropy).

    Raises:
        ConfigError: a setting out of its range; ``backend="triton"`` without triton or without a GPU.
        ShapeError, TeacherMismatch: tensors that do not fit each other.
        DataError: a label outside the vocabulary (seen on a CPU).

    Example:
        >>> h, w = torch.randn(5, 8), torch.randn(30, 8)
        >>> chunked_divergence(h, w, h, w, kind="reverse", chunk=2).abs().max().item()
        0.0
    """
    choose("kind", kind, Kind, "kind of loss")
    choose("value", value, Value)
    weight_s, weight_t, bias_s, bias_t = _whole(weight_s), _whole(weight_t), _whole(bias_s), _whole(bias_t)
    _check_head("s", hidden_s, weight_s, bias_s)
    items, vocabulary, device = hidden_s.shape[:-1], weight_s.shape[0], hidden_s.device
    rows = _Rows(where, items)
    loss = make_loss(kind, beta, mix, t, value, scale_t2, soft_weight, hard_weight)
    if kind == "cross_entropy":
        hidden_t = weight_t = teacher_logits = None
    else:
        _check_teacher(hidden_t, weight_t, teacher_logits, vocabulary)
    head = _Head(scale_s, softcap_s, _matmul_dtype(hidden_s, weight_s, device))
    statistics = statistics_dtype(hidden_s, weight_s)
    ids = _ids(loss, labels, (*items, vocabulary), as_mask(where, items), rows)
    heat = _fixed(as_temperature(temperature, items, statistics), items, rows, "temperature")
    floor = _has_infinity(bias_s) or _has_infinity(bias_t) or teacher_logits is not None
    chunk, block = _sizes(chunk, vocabulary, device)
    kernels = _kernels(backend, device, statistics)

    if isinstance(teacher_logits, TopK):
        known = _flat_known(teacher_logits, items)

        def project(span: slice) -> Teacher:
            return lambda part: known.rows(rows.at(part)).to(statistics)

        def theirs(span: slice) -> Any:
            return kernels.Logits(known.rows(rows.at(span)), None)

    elif teacher_logits is not None:
        flat_t = _flat(teacher_logits.detach(), items, "teacher_logits")

        def project(span: slice) -> Teacher:
            return lambda part: flat_t[rows.at(part)].to(statistics)

        def theirs(span: slice) -> Any:
            return kernels.Logits(*rows.pick(flat_t, span))

    elif hidden_t is not None and weight_t is not None:
        _check_head("t", hidden_t, weight_t, bias_t)
        head_t = _Head(scale_t, softcap_t, _matmul_dtype(hidden_t, weight_t, device))
        flat_t, coarse = _flat(hidden_t.detach(), items, "hidden_t"), weight_t.detach().to(head_t.dtype)
        store = statistics if kernels is None else head_t.dtype
        buffer = torch.empty(min(chunk, items.numel()), vocabulary, dtype=store, device=device)
        fixed_bias = None if bias_t is None else bias_t.detach()

        def project(span: slice) -> Teacher:
            h = flat_t[rows.at(span)].to(head_t.dtype)
            z = head_t.logits(h, coarse, fixed_bias, buffer[: len(h)])
            return lambda part: z[part.start - span.start : part.stop - span.start]

        def theirs(span: slice) -> Any:
            h = flat_t[rows.at(span)].to(head_t.dtype)
            z = torch.mm(h, coarse.t(), out=buffer[: len(h)])
            return kernels.Logits(z, None, fixed_bias, scale_t, softcap_t)

    else:

        def project(span: slice) -> Teacher:
            return lambda part: None

        def theirs(span: slice) -> Any:
            return None

    def compare_chunk(span: slice) -> Compare:
        block_of = project(span)

        def compare(z_s: Tensor, part: slice, grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
            at = slice(span.start + part.start, span.start + part.stop)
            return loss.block(z_s, block_of(at), _at(ids, at), _at(heat, at), floor, grad)

        return compare

    def fused(z: Tensor, span: slice, factor: Tensor | None, grad: bool) -> tuple[Tensor, Tensor]:
        return kernels.compare(
            loss,
            kernels.Logits(z, None, None if bias_s is None else bias_s.detach(), scale_s, softcap_s),
            theirs(span),
            out=z if grad else None,
            labels=_at(ids, span),
            temperature=_at(heat, span),
            factor=factor,
            floor=floor,
        )

    factors = _factors(weights, items, rows, statistics)
    whole = None if kernels is None else fused
    plan = _Plan(
        "chunked_divergence", head, compare_chunk, (loss.soft, loss.hard), chunk, block, factors, statistics, whole
    )
    flat_s = rows.take(_flat(hidden_s, items, "hidden_s"))
    values, soft, hard = _Chunked.apply(flat_s, weight_s, bias_s, plan, torch.is_grad_enabled())
    if return_parts:
        return rows.back(values), rows.back(soft), rows.back(hard)
    return rows.back(values)


def _ids(loss: Loss, labels: Tensor | None, shape: tuple[int, ...], mask: Tensor | None, rows: _Rows) -> Tensor | None:
    """Class ids of the valid rows, where the loss looks at labels at all."""
    if not loss.hard:
        return None
    if labels is None:
        raise ConfigError("labels", given=None, expected="class ids, since the hard-label weight is not 0")
    return rows.take(check_labels(labels, shape, mask, soft=False).reshape(-1))


def _at(x: Any, span: slice) -> Any:
    """Rows of a tensor; anything else as it is."""
    return x[span] if isinstance(x, Tensor) else x


def _has_infinity(bias: Tensor | None) -> bool:
    return bias is not None and bool(torch.isinf(bias).any())


def _flat_known(known: TopK, items: torch.Size) -> TopK:
    if known.indices.shape != known.values.shape or known.indices.shape[:-1] != items:
        given = f"indices {list(known.indices.shape)}, values {list(known.values.shape)}"
        raise ShapeError("teacher_logits", given=given, expected=f"both {[*items, 'k']}")
    return known.flat()


def _check_teacher(
    hidden_t: Tensor | None, weight_t: Tensor | None, teacher_logits: Tensor | TopK | None, vocabulary: int
) -> None:
    if teacher_logits is None and (hidden_t is None or weight_t is None):
        raise ConfigError("hidden_t", given=None, expected="hidden_t and weight_t, or teacher_logits")
    theirs = teacher_logits.shape[-1] if teacher_logits is not None else weight_t.shape[0]  # type: ignore[union-attr]
    if theirs != vocabulary:
        raise TeacherMismatch(
            "weight_t",
            f"the student's vocabulary has {vocabulary} entries and the teacher's {theirs}",
            remedy="if ids agree up to v, slice both (weight[:v]); otherwise use a cross-tokenizer method",
        )


@eager(DENSE)
def chunked_head(
    hidden: Tensor,
    weight: Tensor,
    loss: Callable[[Tensor, Any], Tensor],
    *,
    bias: Tensor | None = None,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    chunk: int | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Any loss of a language model's logits, one value per token, a chunk of tokens at a time.

    The loss is differentiated inside the forward pass, chunk by chunk, by automatic differentiation. Where
    `chunked_divergence` has a closed form, that is faster; what is said there of second derivatives, torch.func and
    torch.compile holds here too.

    Args:
        hidden: last hidden states ``[..., H]``.
        weight: output weight ``[V, H]``.
        loss: called with logits ``[n, V]`` and ``rows``, which picks these tokens from any tensor of flattened
            items (``target.flatten(0, 1)[rows]``, say); returns values ``[n]``. Only the logits get a gradient.
            It is called again in a second backward pass, so it must not draw random numbers or keep count.
        bias: of the output layer ``[V]``.
        weights: constant factors per token ``[...]``.
        where: valid tokens ``[...]``; others give 0.
        chunk: tokens per chunk.
        scale: factor on the logits.
        softcap: logits become ``cap * tanh(logits / cap)``.

    Returns:
        Values ``[...]``.

    Example (a recorded teacher of whom the best k words are known):
        >>> from limbeck.functional import sparse_kl
        >>> h, w = torch.randn(6, 8), torch.randn(50, 8)
        >>> top = (h @ w.T).log_softmax(-1).topk(5)
        >>> loss = lambda z, rows: sparse_kl(z, top.indices[rows], top.values[rows])
        >>> bool((chunked_head(h, w, loss, chunk=4) < 1e-5).all())
        True
    """
    weight, bias = _whole(weight), _whole(bias)
    _check_head("s", hidden, weight, bias)
    items, device = hidden.shape[:-1], hidden.device
    rows = _Rows(where, items)
    head = _Head(scale, softcap, _matmul_dtype(hidden, weight, device))
    statistics = statistics_dtype(hidden, weight)
    rows_projected, _ = _sizes(chunk, weight.shape[0], device)

    def compare_chunk(span: slice) -> Compare:
        def compare(z: Tensor, part: slice, grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
            at = rows.at(slice(span.start + part.start, span.start + part.stop))
            with torch.set_grad_enabled(grad):
                leaf = z.detach().requires_grad_(grad)
                value = loss(leaf, at)
                if value.shape != z.shape[:1]:
                    raise ShapeError("loss", given=list(value.shape), expected=f"one value per token [{len(z)}]")
                if grad and not span.start and not part.start and _others(value, leaf):
                    raise ConfigError(
                        "loss",
                        "depends on tensors that want a gradient, and chunked_head gives one to the logits alone",
                        remedy=f"detach them, or use {DENSE}",
                    )
                slope = torch.autograd.grad(value.sum(), leaf)[0] if grad else None
            return value.detach(), z.new_zeros(len(z)), slope

        return compare

    factors = _factors(weights, items, rows, statistics)
    plan = _Plan("chunked_head", head, compare_chunk, (1.0, 0.0), rows_projected, rows_projected, factors, statistics)
    flat = rows.take(_flat(hidden, items, "hidden"))
    return rows.back(_Chunked.apply(flat, weight, bias, plan, torch.is_grad_enabled())[0])


# All rows of ready logits: (student logits [N, V], whether a slope is wanted) -> soft values [N], hard values [N], slope.
RunReady = Callable[[Tensor, bool], tuple[Tensor, Tensor, Tensor | None]]


class _Ready(torch.autograd.Function):
    """Values per row from ready logits, with the gradient for an upstream of one computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, run: RunReady, combine: tuple[float, float], grad: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.run = run
        ctx.save_for_backward(logits)
        ctx.set_materialize_grads(False)
        with _as_written(logits.device):
            soft, hard, ctx.slope = run(logits, grad and ctx.needs_input_grad[0])
        ctx.mark_non_differentiable(soft, hard)
        return _combine(combine, soft, hard), soft, hard

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return None, None, None, None
        logits = ctx.saved_tensors[0]
        slope, ctx.slope = ctx.slope, None
        with torch.no_grad():
            if slope is None:
                slope = ctx.run(logits, True)[2]
            assert slope is not None
            slope.mul_(upstream.unsqueeze(1))
        return *refuse_second([slope], (logits, upstream), "chunked_logits", DENSE), None, None, None


def _compare_ready(compare: Compare, rows: _Rows, logits: Tensor, grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    n, (total, vocabulary), kind = rows.count, logits.shape, statistics_dtype(logits)
    soft, hard = (torch.zeros(total, dtype=kind, device=logits.device) for _ in range(2))
    slope = None
    if grad:
        slope = torch.empty_like(logits) if rows.index is None else torch.zeros_like(logits)
    block = _sizes(None, vocabulary, logits.device)[1]
    for span in _spans(n, block):
        at = rows.at(span)
        soft[at], hard[at], part = compare(logits[at].to(kind), span, grad)
        if slope is not None:
            slope[at] = 0.0 if part is None else part.to(slope.dtype)
    return soft, hard, slope


@eager(DENSE)
def chunked_logits(
    student: Tensor,
    teacher: Tensor | None = None,
    *,
    kind: Kind = "forward",
    beta: float = 0.5,
    mix: float = 0.1,
    t: float = 1.0,
    value: Value = "cross_entropy",
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
    labels: Tensor | None = None,
    soft_weight: float = 1.0,
    hard_weight: float = 0.0,
    where: Tensor | None = None,
    return_parts: bool = False,
    backend: Backend = "torch",
) -> Any:
    """`chunked_divergence` from logits that exist already: of intermediate size only the student's gradient is held.

    The dense functions keep several tensors of the logits' size for the backward pass; here it is one. No gradient to the
    teacher, no second derivative; see `chunked_divergence`.

    Args:
        student: logits ``[..., V]``.
        teacher: logits ``[..., V]``; None for ``kind="cross_entropy"``.
        where: valid tokens ``[...]``; others give 0 and are not looked at.

    The other arguments and the result are those of `chunked_divergence`.

    Example:
        >>> from limbeck.functional import kl
        >>> a, b = torch.randn(7, 40), torch.randn(7, 40)
        >>> torch.allclose(chunked_logits(a, b, kind="reverse"), kl(a, b, direction="reverse"), atol=1e-5)
        True
    """
    choose("kind", kind, Kind, "kind of loss")
    choose("value", value, Value)
    check_classes(student, 1, "nothing to compare")
    loss = make_loss(kind, beta, mix, t, value, scale_t2, soft_weight, hard_weight)
    items, statistics = student.shape[:-1], statistics_dtype(student)
    kernels = _kernels(backend, student.device, statistics)
    rows = _Rows(where, items)
    ids = _ids(loss, labels, student.shape, as_mask(where, items), rows)
    heat = _fixed(as_temperature(temperature, items, statistics), items, rows, "temperature")
    flat_t = None
    if kind != "cross_entropy":
        if teacher is None:
            raise ConfigError("teacher", given=None, expected="the teacher's logits")
        check_pair(student, teacher)
        flat_t = _flat(teacher.detach(), items, "teacher")

    def compare(z_s: Tensor, span: slice, grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        z_t = None if flat_t is None else flat_t[rows.at(span)].to(statistics)
        return loss.block(z_s, z_t, _at(ids, span), _at(heat, span), True, grad)

    def fused(z: Tensor, grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        slope = None
        if grad:
            slope = (torch.empty if rows.index is None else torch.zeros)(z.shape, dtype=z.dtype, device=z.device)
        soft, hard = (torch.zeros(len(z), dtype=statistics, device=z.device) for _ in range(2))
        all_rows = slice(None)
        at = rows.at(all_rows)
        soft[at], hard[at] = kernels.compare(
            loss,
            kernels.Logits(*rows.pick(z, all_rows)),
            None if flat_t is None else kernels.Logits(*rows.pick(flat_t, all_rows)),
            out=slope,
            labels=ids,
            temperature=heat,
        )
        return soft, hard, slope

    flat = _flat(student, items, "student")
    run = partial(_compare_ready, compare, rows) if kernels is None else fused
    values, soft, hard = _Ready.apply(flat, run, (loss.soft, loss.hard), torch.is_grad_enabled())
    if return_parts:
        return values.reshape(items), soft.reshape(items), hard.reshape(items)
    return values.reshape(items)
