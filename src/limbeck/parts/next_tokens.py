"""Next-token predictions of two language models, compared: on their logits while these are small, in chunks above.

In chunks, the models run up to their last hidden states and the output layer is applied inside the loss, so that logits of
all tokens never exist. `NextTokens` is what methods share around the comparison: the weights, the loss on the text, texts
that the student writes itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.engine import distributed as dist
from limbeck.errors import ConfigError, DataError
from limbeck.functional.chunked import Backend, chunked_logits
from limbeck.grammar.heads import (
    LARGE,
    Dense,
    Head,
    Logits,
    agrees,
    answered,
    by_parts,
    head_of,
    in_chunks,
    in_chunks_by,
    rows_of,
    shape_of,
)
from limbeck.grammar.method import Batch, Context, Method, Query, Setup, Stage, Term, Terms
from limbeck.grammar.settings import Fraction, Natural, settings
from limbeck.parts.writing import Writer
from limbeck.tasks.language import Language
from limbeck.tasks.tokens import next_counts, shifted


@dataclass
class Tokens:
    """What two models predict for a batch, position by position.

    Attributes:
        student: logits ``[N, T-1, V]``, or a `Head`.
        teacher: the same; beside a student's Head dense logits or a `TopK` may stand.
        labels: the tokens that come ``[N, T-1]``.
        where: which positions count ``[N, T-1]``.
        chunk: tokens whose logits exist at a time; ``None`` for the default.
        backend: of the losses with a closed form; see `chunked_divergence`.
    """

    student: Tensor | Head
    teacher: Logits | None
    labels: Tensor
    where: Tensor
    chunk: int | None = None
    backend: Backend = "torch"

    def cross_entropy(self) -> Tensor:
        """Against the tokens that come: values ``[N, T-1]``."""
        if isinstance(self.student, Tensor):
            return F.cross_entropy(self.student, self.labels, where=self.where)
        return self._chunked({"kind": "cross_entropy"}, self.labels)

    def compare(self, dense: Dense, closed: Mapping[str, Any] | None = None) -> Tensor:
        """A divergence of the student from the teacher: values ``[N, T-1]``, 0 where a position does not count.

        Args:
            dense: computes it from logits, of all positions or of some.
            closed: the arguments with which `chunked_divergence` computes it; ``None`` where it has no closed form.
        """
        s, t = self.student, self.teacher
        assert t is not None
        if isinstance(s, Tensor):
            assert isinstance(t, Tensor)
            if closed is None:
                return dense(s, t, self.labels, self.where)
            # one tensor of the logits' size is kept for the backward pass, not four
            values: Tensor = chunked_logits(s, t, **closed, where=self.where, backend=self.backend)
            return values
        if closed is not None:
            return self._chunked(closed)
        return in_chunks_by(s, t, dense, self.labels, self.where, self.chunk)

    def _chunked(self, settings: Mapping[str, Any], labels: Tensor | None = None) -> Tensor:
        assert isinstance(self.student, Head)
        more: dict[str, Any] = {"where": self.where, "chunk": self.chunk, "backend": self.backend}
        return in_chunks(self.student, self.teacher, settings, labels=labels, **more)

    def compare_with(self, dense: Dense) -> Tensor:
        """As `compare`, of a divergence that has parameters of its own, which get a gradient too."""
        s, t = self.student, self.teacher
        assert t is not None
        if isinstance(s, Tensor):
            assert isinstance(t, Tensor)
            return dense(s, t, self.labels, self.where)
        rows, labels = self.where.flatten().nonzero()[:, 0], self.labels.flatten()
        size = self.chunk or max(1, LARGE // s.shape[-1])
        parts = by_parts(s, t, rows.split(size), lambda z_s, z_t, at: dense(z_s, z_t, labels[at], None))
        zero = torch.zeros(self.where.numel(), device=rows.device)
        values = torch.cat(parts) if parts else zero[:0]
        return zero.to(values.dtype).index_copy(0, rows, values).view(self.where.shape)


class HeadTap:
    """Takes the input of a model's output layer, and spares the layer all but the first position.

    The hook is set once, before the model may be compiled, and does something only while ``active``.
    """

    def __init__(self, module: nn.Module, head: nn.Linear) -> None:
        self.head, self.active = head, False
        self.hidden: Tensor | None = None
        head.register_forward_pre_hook(self._hook)

    def _hook(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self.active:
            return None
        self.hidden = args[0]
        return (args[0][:, :1], *args[1:])


class Reader:
    """Shows student and teacher side by side for a batch, dense or in chunks.

    Args:
        method: bound already; its task must be a language task.
        chunk: tokens in a chunk; ``auto`` goes by size; 0 is always dense.
        dense: what forbids chunks, in words; empty if nothing does.
        backend: of the losses with a closed form.
        names: the roles that may be asked in chunks.

    Where add-ons look at the same signals, these are asked for as everybody does, and ``chunk`` says no more than whether large
    ones may stay a `Head`.
    """

    def __init__(
        self,
        method: Method[Any],
        chunk: int | Literal["auto"] = "auto",
        dense: str = "",
        backend: Backend = "torch",
        names: Sequence[str] = ("student", "teacher"),
    ) -> None:
        self.task = method.task
        self.chunk, self.dense, self.backend = chunk, dense, backend
        self.beside = bool(method.setup.objectives)
        self.taps: dict[str, HeadTap] = {}
        self.shapes: dict[str, tuple[float, float | None]] = {}
        self.checked: set[str] = set()
        if chunk == 0 or dense:
            return
        for name, role in method.roles.items():
            head = head_of(role.module) if name in names else None
            if head is not None and not (role.shard and dist.world() > 1):
                self.taps[name] = HeadTap(role.module, head)
                self.shapes[name] = shape_of(role.module)

    def read(self, batch: Batch, ctx: Context) -> Tokens:
        """Both predictions for a batch."""
        labels = batch["labels"][:, 1:]
        where = next_counts(batch)
        chunk = None if self.chunk == "auto" else self.chunk
        if self.beside or not self._large(batch):
            own = ctx.signal("student", batch)
            theirs = ctx.signal("teacher", batch) if "teacher" in ctx.roles else None
            if isinstance(own.out, Head) and "student" in self.taps:
                t = None if theirs is None else shifted(answered(theirs), batch)[0]
                return Tokens(shifted(own.out, batch)[0], t, labels, where, chunk, self.backend)
            z_t = None if theirs is None else shifted(theirs.logits, batch)[0]
            return Tokens(shifted(own.logits, batch)[0], z_t, labels, where, backend=self.backend)
        teacher: Logits | None = None
        if "teacher" in self.taps:
            teacher = self._head("teacher", batch, ctx)
        elif "teacher" in ctx.roles:
            teacher = shifted(answered(ctx.signal("teacher", batch)), batch)[0]
        return Tokens(self._head("student", batch, ctx), teacher, labels, where, chunk, self.backend)

    def losses(self, name: str, batch: Batch, ctx: Context) -> Tensor:
        """One role's cross-entropy of every next token ``[N, T-1]``, 0 where it does not count; in chunks where that is large."""
        labels, where = batch["labels"][:, 1:], next_counts(batch)
        if self._large(batch, name):
            chunk = None if self.chunk == "auto" else self.chunk
            shown: Tensor | Head = self._head(name, batch, ctx)
            return Tokens(shown, None, labels, where, chunk, self.backend).cross_entropy()
        return Tokens(shifted(ctx.signal(name, batch).logits, batch)[0], None, labels, where).cross_entropy()

    def _large(self, batch: Batch, name: str = "student") -> bool:
        if name not in self.taps:
            return False
        return self.chunk != "auto" or batch["labels"].numel() * self.taps[name].head.weight.shape[0] > LARGE

    def _head(self, name: str, batch: Batch, ctx: Context) -> Head:
        tap = self.taps[name]
        tap.active, tap.hidden = True, None
        try:
            args = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
            out = ctx.call(name, **args)
        finally:
            tap.active = False
        hidden, tap.hidden = tap.hidden, None
        if hidden is None:
            raise RuntimeError(f"the output layer of the {name} did not run; set method.chunk=0")
        scale, softcap = self.shapes[name]
        columns = self.columns(name)
        weight, bias = tap.head.weight, tap.head.bias
        head = Head(hidden[:, :-1], weight[:columns], None if bias is None else bias[:columns], scale, softcap)
        if name not in self.checked:
            self._check(name, head, out.logits[:, 0])
            self.checked.add(name)
        return head

    def columns(self, name: str) -> int | None:
        """How many of a role's outputs are read; ``None`` for all."""
        return getattr(self.task, "columns", None)

    def _check(self, name: str, head: Head, own: Tensor) -> None:
        """Once: the model's own logits of the first position, against ours."""
        if not agrees(head, own):
            raise ConfigError(
                "method.chunk",
                f"the {name} does more with its logits than its output layer says",
                given=self.chunk,
                remedy="set method.chunk=0",
            )


def log_probability(z: Logits, labels: Tensor) -> Tensor:
    """Of the tokens that come ``[N, T]``, without a graph; of those below 0 that of token 0."""
    ids = labels.clamp_min(0)
    with torch.no_grad():
        if isinstance(z, Head):
            return -in_chunks(z, None, {"kind": "cross_entropy"}, labels=ids)
        rows = torch.arange(ids.numel(), device=ids.device).split(max(1, LARGE // z.shape[-1]))
        found = [rows_of(z, at).float().log_softmax(-1).gather(1, ids.flatten()[at, None])[:, 0] for at in rows]
        return torch.cat(found).view(ids.shape)


@settings
class NextTokens(Method[Language]):
    """A method that compares next tokens: ``L = (1 - r) LM + r J`` over the tokens that count, J what it compares (`compared`).

    Args:
        distil_ratio: weight r of J; the loss on the text has 1 - r. 0 is the student alone, bit for bit.
        sampler: ``on-policy`` or ``replay`` let the student write some of the texts.
        chunk: tokens whose logits exist at a time; ``auto`` computes in chunks where logits are large; 0 never does.
        backend: of the losses with a closed form: ``torch``, ``triton`` kernels, or ``auto``: the kernels where they can run.
    """

    distil_ratio: Fraction = 1.0
    sampler: Query | None = None
    chunk: Natural | Literal["auto"] = "auto"
    backend: Backend = "torch"

    term: ClassVar[str] = "J"

    def validate(self) -> None:
        """Texts are written by a sampler that the method tells of its steps."""
        if self.sampler is not None and not isinstance(self.sampler, Writer):
            raise ValueError("sampler must be on-policy or replay; other queries belong under queries")

    def dense_only(self) -> str:
        """What forbids chunks, in words; empty if nothing does."""
        return ""

    def bind(self, setup: Setup) -> None:
        """Take the participants, and what shows them side by side."""
        super().bind(setup)
        if isinstance(self.sampler, Writer):
            self.sampler.bind(self)
        self.reader = Reader(self, self.chunk, self.dense_only(), self.backend)

    def stages(self) -> list[Stage]:
        """One stage, on the data or on what the sampler makes of it."""
        (stage,) = super().stages()
        if isinstance(self.sampler, Writer):
            stage.queries, stage.begin = [self.sampler], self.sampler.begin
        return [stage]

    def extras(self) -> dict[str, Any]:
        """What the sampler tells of its texts."""
        return self.sampler.extras() if self.sampler is not None else {}

    def compared(self, tokens: Tokens, ctx: Context) -> Tensor:
        """J of every position ``[N, T-1]``."""
        raise TypeError(f"{type(self).__name__} must define compared")

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """J and the loss on the text, over the tokens that count."""
        if self.distil_ratio == 0:
            return Terms(lm=self.task.supervised(ctx.signal("student", batch), batch))
        tokens = self.reader.read(batch, ctx)
        J = self.compared(tokens, ctx)
        terms = Terms({"tokens": (tokens.where.sum(), 1)})
        terms[self.term] = Term(J, self.learners, weight=self.distil_ratio, where=tokens.where)
        if self.distil_ratio < 1:
            terms["lm"] = Term(tokens.cross_entropy(), weight=1 - self.distil_ratio, where=tokens.where)
        return terms

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        """Refuse a step without tokens; let the sampler keep what was written."""
        if self.term in seen and not seen["tokens"]:
            raise DataError("data", f"no token of step {ctx.step} counts", remedy="see task.loss_on and task.length")
        if isinstance(self.sampler, Writer):
            self.sampler.observe(ctx)


__all__ = ["Dense", "Head", "HeadTap", "NextTokens", "Reader", "Tokens"]
