"""Next-token predictions of two language models, compared: on their logits while these are small, in chunks above.

Every divergence that papers on language models use as a baseline has a name here (`TokenDivergence`), and every one has
both forms. In chunks, the models run up to their last hidden states and the output layer is applied inside the loss, so
that logits of all tokens never exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.engine import distributed as dist
from limbeck.errors import ConfigError
from limbeck.functional.chunked import Backend, chunked_divergence, chunked_head, chunked_logits
from limbeck.grammar.method import Batch, Context, Method
from limbeck.grammar.role import Role
from limbeck.tasks.causal import head_of
from limbeck.tasks.tokens import next_counts, shifted

Kind = Literal[
    "forward", "reverse", "js", "skew-forward", "skew-reverse", "tv", "adaptive", "dkd", "ctkd", "taid"
]  # fmt: skip

LARGE = 1 << 24
"""Tokens times vocabulary above which ``chunk="auto"`` computes in chunks."""


@dataclass
class Head:
    """A model short of its output layer: ``logits = softcap(scale * (hidden @ weight.T + bias))``.

    Attributes:
        hidden: last hidden states of the positions that predict ``[N, T-1, H]``.
        weight: of the output layer, cut to the shared vocabulary ``[V, H]``.
        bias: of the output layer ``[V]``, or ``None``.
        scale, softcap: what some architectures do with the logits.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, rows: Tensor | slice) -> Tensor:
        """Logits ``[n, V]`` of some of the flattened positions, in float32 at least."""
        h = self.hidden.flatten(0, 1)[rows].to(torch.promote_types(self.hidden.dtype, self.weight.dtype))
        z = nn.functional.linear(h, self.weight.to(h.dtype), None if self.bias is None else self.bias.to(h.dtype))
        z = (z.float() if z.dtype in (torch.bfloat16, torch.float16) else z) * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


@dataclass
class Tokens:
    """What two models predict for a batch, position by position.

    Attributes:
        student, teacher: logits ``[N, T-1, V]``, or a `Head`. A dense teacher may stand beside a student's Head.
        labels: the tokens that come ``[N, T-1]``.
        where: which positions count ``[N, T-1]``.
        chunk: tokens whose logits exist at a time; ``None`` for the default.
        backend: of the losses with a closed form; see `chunked_divergence`.
    """

    student: Tensor | Head
    teacher: Tensor | Head | None
    labels: Tensor
    where: Tensor
    chunk: int | None = None
    backend: Backend = "torch"

    def cross_entropy(self) -> Tensor:
        """Against the tokens that come: values ``[N, T-1]``."""
        if isinstance(self.student, Tensor):
            return F.cross_entropy(self.student, self.labels, where=self.where)
        return self._chunked({"kind": "cross_entropy"}, self.labels)

    def _chunked(self, settings: dict[str, Any], labels: Tensor | None = None) -> Tensor:
        s, t = self.student, self.teacher
        assert isinstance(s, Head)
        theirs: dict[str, Any] = {}
        if settings["kind"] != "cross_entropy":
            if isinstance(t, Head):
                theirs = {"hidden_t": t.hidden, "weight_t": t.weight, "bias_t": t.bias}
                theirs |= {"scale_t": t.scale, "softcap_t": t.softcap}
            else:
                theirs = {"teacher_logits": t}
        own: dict[str, Any] = {"bias_s": s.bias, "scale_s": s.scale, "softcap_s": s.softcap}
        values: Tensor = chunked_divergence(
            s.hidden,
            s.weight,
            **theirs,
            **own,
            **settings,
            labels=labels,
            where=self.where,
            chunk=self.chunk,
            backend=self.backend,
        )
        return values


@dataclass(frozen=True)
class TokenDivergence:
    """A token-level divergence by name, with its settings. Zero for equal models unless a cross-entropy is asked for.

    Attributes:
        kind: ``forward`` KL(p || q), ``reverse`` KL(q || p), ``js`` generalised Jensen-Shannon, ``skew-forward`` and
            ``skew-reverse`` (DistiLLM), ``tv`` total variation, ``adaptive`` (forward on the teacher's head, reverse on
            its tail), ``dkd`` (decoupled), ``ctkd`` (forward, learned temperature), ``taid`` (forward, to a mixture).
        value: ``forward``, ``ctkd`` and ``taid`` as ``cross_entropy`` or as ``kl``: equal gradients in the student.
        temperature: divides both logits; values are multiplied by its square.
        mix: the teacher's share in ``js``; the first argument's in the ``skew`` kinds.
        head: mass of the teacher's head in ``adaptive``.
        target, nontarget: the two weights of ``dkd``.
        start, span: range of the temperature of ``ctkd``.
        space, detach: where ``taid`` interpolates, and whether the student is a constant in the mixture.
        variant: ``released`` repeats the published code of ``adaptive`` (head mask not sorted back, cross-entropy) and
            of ``ctkd`` (the temperature descends, with a strength that fades).
    """

    kind: Kind = "forward"
    value: Literal["cross_entropy", "kl"] = "cross_entropy"
    temperature: float = 1.0
    mix: float = 0.1
    head: float = 0.5
    target: float = 1.0
    nontarget: float = 0.5
    start: float = 1.0
    span: float = 20.0
    space: Literal["logits", "probabilities"] = "logits"
    detach: bool = True
    variant: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError.unknown("divergence", self.kind, get_args(Kind), "divergence")

    def dense(
        self,
        z_s: Tensor,
        z_t: Tensor,
        labels: Tensor,
        where: Tensor | None = None,
        t: float = 1.0,
        raw: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Values ``[...]`` from logits ``[..., V]``."""
        heat: dict[str, Any] = {"temperature": self.temperature, "where": where}
        forward = F.kl if self.value == "kl" else F.soft_cross_entropy
        table: dict[str, Callable[[], Tensor]] = {
            "forward": lambda: forward(z_s, z_t, **heat),
            "reverse": lambda: F.kl(z_s, z_t, direction="reverse", **heat),
            "js": lambda: F.jensen_shannon(z_s, z_t, beta=self.mix, **heat),
            "skew-forward": lambda: F.skew_kl(z_s, z_t, direction="forward", mix=self.mix, **heat),
            "skew-reverse": lambda: F.skew_kl(z_s, z_t, direction="reverse", mix=self.mix, **heat),
            "tv": lambda: F.total_variation(z_s, z_t, **heat),
            "adaptive": lambda: F.adaptive_kl(z_s, z_t, head_threshold=self.head, variant=self.variant, **heat),
            "dkd": lambda: sum_of(F.dkd(z_s, z_t, labels, alpha=self.target, beta=self.nontarget, **heat)),
            "ctkd": lambda: F.ctkd(
                z_s,
                z_t,
                needed(raw),
                strength=strength,
                start=self.start,
                span=self.span,
                value=self.value,
                where=where,
            ),
            "taid": lambda: F.taid(z_s, z_t, t, space=self.space, value=self.value, detach_student=self.detach, **heat),
        }
        return table[self.kind]()

    def closed_form(self, t: float = 1.0) -> dict[str, Any] | None:
        """The arguments with which `chunked_divergence` computes it, or ``None`` where it has no closed form."""
        if self.kind == "taid" and (self.space != "logits" or not self.detach):
            return None
        forward = "forward" if self.value == "kl" else "soft_cross_entropy"
        table: dict[str, dict[str, Any]] = {
            "forward": {"kind": forward},
            "reverse": {"kind": "reverse"},
            "js": {"kind": "jensen_shannon", "beta": self.mix},
            "skew-forward": {"kind": "skew_forward", "mix": self.mix},
            "skew-reverse": {"kind": "skew_reverse", "mix": self.mix},
            "tv": {"kind": "total_variation"},
            "taid": {"kind": "taid", "t": t, "value": self.value},
        }
        found = table.get(self.kind)
        return None if found is None else {**found, "temperature": self.temperature}

    def __call__(self, tokens: Tokens, t: float = 1.0, raw: Tensor | None = None, strength: float = 1.0) -> Tensor:
        """Values ``[N, T-1]``, 0 where a position does not count.

        Args:
            tokens: both predictions.
            t: the teacher's share in ``taid``.
            raw: the learned number of ``ctkd``.
            strength: of ``ctkd``'s gradient reversal.
        """
        s, p = tokens.student, tokens.teacher
        assert p is not None
        closed = self.closed_form(t)
        if isinstance(s, Tensor):
            assert isinstance(p, Tensor)
            if closed is not None:  # one tensor of the logits' size is kept for the backward pass, not four
                values: Tensor = chunked_logits(s, p, **closed, where=tokens.where, backend=tokens.backend)
                return values
            return self.dense(s, p, tokens.labels, tokens.where, t, raw, strength)
        if closed is not None:
            return tokens._chunked(closed)
        labels = tokens.labels.flatten()

        def loss(z: Tensor, rows: Any) -> Tensor:
            with torch.no_grad():
                theirs = p.logits(rows) if isinstance(p, Head) else p.flatten(0, 1)[rows]
            return self.dense(z, theirs.to(z.dtype), labels[rows], None, t)

        extra: dict[str, Any] = {"bias": s.bias, "scale": s.scale, "softcap": s.softcap}
        return chunked_head(s.hidden, s.weight, loss, **extra, where=tokens.where, chunk=tokens.chunk)


def sum_of(parts: tuple[Tensor, ...]) -> Tensor:
    """The sum of the parts of a loss."""
    return torch.stack(tuple(parts)).sum(0)


def needed(raw: Tensor | None) -> Tensor:
    """The learned number of ``ctkd``, which has to be given."""
    if raw is None:
        raise ConfigError("raw", given=None, expected="the learned number before the sigmoid")
    return raw


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
    """

    def __init__(
        self, method: Method, chunk: int | Literal["auto"] = "auto", dense: str = "", backend: Backend = "torch"
    ) -> None:
        self.task = method.task
        self.chunk, self.dense, self.backend = chunk, dense, backend
        self.taps: dict[str, HeadTap] = {}
        self.shapes: dict[str, tuple[float, float | None]] = {}
        self.checked: set[str] = set()
        if chunk == 0 or dense:
            return
        for name, role in method.roles.items():
            head = head_of(role.module) if name in ("student", "teacher") else None
            if head is not None and not (role.shard and dist.world() > 1):
                self.taps[name] = HeadTap(role.module, head)
                self.shapes[name] = _shape_of(role)

    def read(self, batch: Batch, ctx: Context) -> Tokens:
        """Both predictions for a batch."""
        labels = batch["labels"][:, 1:]
        where = next_counts(batch)
        if not self._large(batch):
            z_s = ctx.signal("student", batch).logits
            z_t = ctx.signal("teacher", batch).logits if "teacher" in ctx.roles else None
            theirs = None if z_t is None else shifted(z_t, batch)[0]
            return Tokens(shifted(z_s, batch)[0], theirs, labels, where, backend=self.backend)
        chunk = None if self.chunk == "auto" else self.chunk
        teacher: Tensor | Head | None = None
        if "teacher" in self.taps:
            teacher = self._head("teacher", batch, ctx)
        elif "teacher" in ctx.roles:
            teacher = shifted(ctx.signal("teacher", batch).logits, batch)[0]
        return Tokens(self._head("student", batch, ctx), teacher, labels, where, chunk, self.backend)

    def _large(self, batch: Batch) -> bool:
        if "student" not in self.taps:
            return False
        return self.chunk != "auto" or batch["labels"].numel() * self.taps["student"].head.weight.shape[0] > LARGE

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
        columns = getattr(self.task, "columns", None)
        weight, bias = tap.head.weight, tap.head.bias
        head = Head(hidden[:, :-1], weight[:columns], None if bias is None else bias[:columns], scale, softcap)
        if name not in self.checked:
            self._check(name, head, out.logits[:, 0])
            self.checked.add(name)
        return head

    def _check(self, name: str, head: Head, own: Tensor) -> None:
        """Once: the model's own logits of the first position, against ours."""
        with torch.no_grad():
            first = Head(head.hidden[:, :1], head.weight, head.bias, head.scale, head.softcap).logits(slice(None))
            own = own[:, : first.shape[-1]].float()
            near = (first - own).abs().max() <= 0.02 * own.abs().max() + 1e-3
        if not bool(near):
            raise ConfigError(
                "method.chunk",
                f"the {name} does more with its logits than its output layer says",
                given=self.chunk,
                remedy="set method.chunk=0",
            )


def _shape_of(role: Role) -> tuple[float, float | None]:
    """Factor and cap that a transformers model puts on its logits after the output layer, by its configuration."""
    config = getattr(role.module, "config", None)
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    return scale / float(divisor or 1.0), None if cap is None else float(cap)


__all__ = ["Head", "HeadTap", "Kind", "Reader", "TokenDivergence", "Tokens"]
