"""Language models short of their output layer: a loss takes its logits a few tokens at a time, and all of them never exist.

`answer` calls a model and takes the input of its output layer where the logits would be large. What comes back is a `Head`,
beside which a teacher may be another Head, logits that are there, or a recorded `TopK`; `in_chunks` and `in_chunks_by`
compare them. Whoever asks a Head for its ``logits`` gets all of them, as if nothing had been spared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.functional.chunked import Backend, chunked_divergence, chunked_head
from limbeck.functional.sparse import TopK
from limbeck.grammar.signal import Signal

LARGE = 1 << 24
"""Logits, tokens times vocabulary, above which they are taken a few tokens at a time."""

_TOLD: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Models whose own logits were compared with their output layer's: whether they agreed."""


@dataclass(frozen=True)
class Head:
    """A model short of its output layer: ``logits = softcap(scale * (hidden @ weight.T + bias))``.

    Attributes:
        hidden: last hidden states ``[N, T, H]``.
        weight: of the output layer, cut to the shared vocabulary ``[V, H]``.
        bias: of the output layer ``[V]``, or ``None``.
        scale, softcap: what some architectures do with the logits.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the logits: ``[N, T, V]``."""
        return torch.Size((*self.hidden.shape[:-1], self.weight.shape[0]))

    @property
    def logits(self) -> Tensor:
        """All logits ``[N, T, V]``, in float32 at least."""
        return self.rows(slice(None)).unflatten(0, self.hidden.shape[:-1])

    def rows(self, at: Tensor | slice) -> Tensor:
        """Logits ``[n, V]`` of some of the flattened positions, in float32 at least."""
        h = self.hidden.flatten(0, 1)[at].to(torch.promote_types(self.hidden.dtype, self.weight.dtype))
        z = nn.functional.linear(h, self.weight.to(h.dtype), None if self.bias is None else self.bias.to(h.dtype))
        z = (z.float() if z.dtype in (torch.bfloat16, torch.float16) else z) * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def cut(self, columns: int | None) -> Head:
        """The first words of the vocabulary alone; all of them for ``None``."""
        if columns is None:
            return self
        return replace(self, weight=self.weight[:columns], bias=None if self.bias is None else self.bias[:columns])

    def __getitem__(self, at: Any) -> Head:
        """Some of the positions."""
        return replace(self, hidden=self.hidden[at])


Logits: TypeAlias = Tensor | Head | TopK
"""What is known of predictions ``[N, T, V]``: all logits, the states they are made of, or the k likeliest words."""

Dense = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""A divergence from logits: (student [..., V], teacher [..., V], tokens that come [...], where [...] or None) -> values [...]."""


def rows_of(z: Logits, at: Tensor | slice) -> Tensor:
    """Logits ``[n, V]`` of some of the flattened positions."""
    return z.flatten(0, 1)[at] if isinstance(z, Tensor) else z.rows(at)


def in_chunks(
    student: Head,
    teacher: Logits | None,
    closed: Mapping[str, Any],
    *,
    labels: Tensor | None = None,
    where: Tensor | None = None,
    chunk: int | None = None,
    backend: Backend = "torch",
) -> Tensor:
    """A loss with a closed form: values ``[N, T]``, 0 where a position does not count.

    Args:
        student: whose loss it is.
        teacher: whom it is compared with; ``None`` where ``closed`` is a cross-entropy.
        closed: arguments of `chunked_divergence`.
        labels: the tokens that come ``[N, T]``, where it looks at them.
        where: which positions count ``[N, T]``.
        chunk: tokens whose logits exist at a time; ``None`` for the default.
        backend: see `chunked_divergence`.
    """
    theirs: dict[str, Any] = {}
    if closed["kind"] != "cross_entropy":
        theirs = {"teacher_logits": teacher}
        if isinstance(teacher, Head):
            theirs = {"hidden_t": teacher.hidden, "weight_t": teacher.weight, "bias_t": teacher.bias}
            theirs |= {"scale_t": teacher.scale, "softcap_t": teacher.softcap}
    own: dict[str, Any] = {"bias_s": student.bias, "scale_s": student.scale, "softcap_s": student.softcap}
    more: dict[str, Any] = {"labels": labels, "where": where, "chunk": chunk, "backend": backend}
    values: Tensor = chunked_divergence(student.hidden, student.weight, **theirs, **own, **closed, **more)
    return values


def in_chunks_by(
    student: Head,
    teacher: Logits | None,
    dense: Dense,
    labels: Tensor,
    where: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Any loss whose value at a token depends on no other token: values ``[N, T]``, 0 where a position does not count."""
    ids = labels.flatten()

    def loss(z: Tensor, rows: Any) -> Tensor:
        with torch.no_grad():
            theirs = z.new_zeros(0) if teacher is None else rows_of(teacher, rows)
        return dense(z, theirs.to(z.dtype), ids[rows], None)

    extra: dict[str, Any] = {"bias": student.bias, "scale": student.scale, "softcap": student.softcap}
    return chunked_head(student.hidden, student.weight, loss, **extra, where=where, chunk=chunk)


def by_parts(
    student: Logits,
    teacher: Logits | None,
    parts: Iterable[Tensor],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """A loss of some positions at a time, whose logits are made again in the backward pass.

    For what `in_chunks` cannot compute: a loss whose positions depend on each other, or with parameters of its own.

    Args:
        student: whose loss it is.
        teacher: whom it is compared with.
        parts: numbers [n] of flattened positions that are taken together.
        loss: (student's logits [n, V], teacher's [n, V], numbers [n]) -> a tensor. It is called twice: no random numbers but keyed
            ones.

    Returns:
        What the loss made of each part.
    """

    def one(at: Tensor) -> Tensor:
        with torch.no_grad():
            theirs = torch.zeros(0, device=at.device) if teacher is None else rows_of(teacher, at)
        return loss(rows_of(student, at), theirs, at)

    spare = isinstance(student, Head) and torch.is_grad_enabled()
    return [checkpoint(one, at, use_reentrant=False, preserve_rng_state=False) if spare else one(at) for at in parts]


def cross_entropy(student: Head, labels: Tensor, where: Tensor) -> Tensor:
    """Against the tokens that come: values ``[N, T]``, 0 where a position does not count."""
    return in_chunks(student, None, {"kind": "cross_entropy"}, labels=labels, where=where)


def answered(signal: Signal) -> Logits:
    """What a signal knows of predictions, in the form in which it is there."""
    return signal.out if isinstance(signal.out, (Head, TopK)) else signal.logits


# ------------------------------------------------------------------------------------------------------------- asking


def head_of(module: Any) -> nn.Linear | None:
    """The output layer of a transformers causal model if it is a plain linear layer whose output is the logits."""
    find = getattr(module, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if type(head) is nn.Linear else None


def shape_of(module: Any) -> tuple[float, float | None]:
    """Factor and cap that a transformers model puts on its logits after the output layer, by its configuration."""
    config = getattr(module, "config", None)
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    return scale / float(divisor or 1.0), None if cap is None else float(cap)


def agrees(head: Head, own: Tensor) -> bool:
    """Whether a model's own logits of the first position ``[N, V]`` are what its output layer says."""
    with torch.no_grad():
        first = head[:, :1].rows(slice(None))
        own = own[:, : first.shape[-1]].float()
        return bool((first - own).abs().max() <= 0.02 * own.abs().max() + 1e-3)


def answer(module: Any, call: Callable[[], Any], least: int | None = None) -> Any:
    """What ``call`` makes of a model; in the place of more than ``least`` logits a `Head`.

    Only of a transformers model with a plain output layer that does no more with its logits than its configuration says, not
    compiled and not sharded; of others the answer is as they give it.

    Args:
        module: the model that ``call`` calls, once, on a batch of rows of tokens.
        call: returns the model's output as it is: its logits, or an object that holds them.
        least: logits that are taken whole, at most; ``None`` for `LARGE`.
    """
    head = None if hasattr(module, "_orig_mod") or _TOLD.get(module) is False else head_of(module)
    if head is None or hasattr(head.weight, "full_tensor"):
        return call()
    taken: list[Tensor] = []

    def spare(_layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        h = args[0]
        if h.ndim != 3 or h.shape[1] < 2 or h.shape[0] * h.shape[1] * head.weight.shape[0] <= (least or LARGE):
            return None
        taken.append(h)
        return (h[:, :1], *args[1:])

    handle = head.register_forward_pre_hook(spare)
    try:
        out = call()
    finally:
        handle.remove()
    if not taken:
        return out
    found = Head(taken[-1], head.weight, head.bias, *shape_of(module))
    if module not in _TOLD:
        own = out if isinstance(out, Tensor) else getattr(out, "logits", None)
        fits = isinstance(own, Tensor) and own.ndim == 3 and own.shape[1:] == (1, len(head.weight))
        _TOLD[module] = len(taken) == 1 and fits and agrees(found, own[:, 0])  # type: ignore[index]
        if not _TOLD[module]:
            return call()
    return found
