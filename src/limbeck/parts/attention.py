"""Queries, keys and values of any layer of a Transformer, by taps on its projections; no model is edited.

Fused attention (SDPA, flash) hands out no attention map, so that what it is made of is read: the outputs of the
projections, after the norms and the rotation that the model itself applies to queries and keys, so that their scores are
the model's own. Known are the spellings of BERT, RoBERTa, XLM-R, ELECTRA and MiniLM, DistilBERT, ViT, Llama, Qwen, Mistral
and OPT, GPT-2 (transformers), and timm's ViTs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.functional.attention import divide, relation
from limbeck.grammar.signal import Tap

SPELLINGS: tuple[tuple[str, ...], ...] = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("qkv",),
    ("c_attn",),
)
"""What libraries call the projections inside an attention module; a single one holds all three, one after the other."""

ACROSS = ("cross", "encoder_attn", "encdec")
"""In the name of attention to another sequence."""


_NONE = nn.Identity()


class Qkv(NamedTuple):
    """Queries, keys and values of one layer, each [N, A, T, D]; of grouped heads, keys and values are repeated."""

    q: Tensor
    k: Tensor
    v: Tensor

    def joined(self, heads: int = 0) -> Qkv:
        """Heads laid side by side and cut anew into ``heads`` [N, heads, T, A * D / heads]; 0 leaves them.

        Raises:
            ShapeError: the width is no multiple of the heads.
        """
        if not heads:
            return self
        return Qkv(*(divide(x.transpose(1, 2).flatten(2), heads) for x in self))

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Two of them by their letters: ``qk`` queries and keys, ``vv`` values twice."""
        return getattr(self, name[0]), getattr(self, name[1])


@dataclass(frozen=True)
class Projections:
    """Where one layer shows its queries, keys and values.

    Attributes:
        path: its attention module, as ``named_modules()`` spells it.
        layer, depth: which of how many, from 0.
        taps: the modules whose outputs are read.
        heads: of queries; ``groups``: of keys and values.
        width: of all queries together.
        fused: whether one module makes all three.
        causal: whether a token sees earlier ones alone.
        rotary: the module that rotates queries and keys by position; empty where none does.
    """

    path: str
    layer: int
    depth: int
    taps: tuple[str, ...]
    heads: int
    groups: int
    width: int
    fused: bool = False
    causal: bool = False
    rotary: str = ""

    @property
    def block(self) -> str:
        """The whole layer that the attention belongs to."""
        parts = self.path.split(".")
        last = max(i for i, part in enumerate(parts) if part.isdigit())
        return ".".join(parts[: last + 1])

    def read(self, acts: Mapping[str, Tensor], module: nn.Module) -> Qkv:
        """What was tapped, in heads.

        Args:
            acts: activations by path, of `taps` at least.
            module: the model, which is asked how it rotates.
        """
        q, *more = (acts[path] for path in self.taps)
        if self.fused:
            q, *pair = q.chunk(3, -1)
            q, k, v = (*more, pair[1]) if more else (q, *pair)
        else:
            k, v = more
        q, k, v = (self._in_heads(x, n) for x, n in ((q, self.heads), (k, self.groups), (v, self.groups)))
        if self.rotary:
            q, k = self._rotated(q, k, module)
        if self.groups != self.heads:
            k, v = (x.repeat_interleave(self.heads // self.groups, 1) for x in (k, v))
        return Qkv(q, k, v)

    def _in_heads(self, x: Tensor, heads: int) -> Tensor:
        if x.ndim == 3:
            return divide(x, heads)
        # a norm of heads: [N, T, A, D] in transformers, [N, A, T, D] in timm
        return x if self.fused else x.transpose(1, 2)

    def _rotated(self, q: Tensor, k: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Queries and keys turned by their positions 0, 1, 2..., in halves as Llama has it."""
        at = torch.arange(q.shape[2], device=q.device).unsqueeze(0)
        with torch.no_grad():
            cos, sin = (x.unsqueeze(1) for x in module.get_submodule(self.rotary)(q, at))  # [1, 1, T, D]
        d = cos.shape[-1]

        def turned(x: Tensor) -> Tensor:
            head, rest = x[..., :d], x[..., d:]
            half = torch.cat([-head[..., d // 2 :], head[..., : d // 2]], -1)
            return torch.cat([head * cos + half * sin, rest], -1)

        return turned(q), turned(k)


def attentions_of(module: nn.Module) -> list[tuple[str, tuple[str, ...]]]:
    """The self-attention modules of a network, first layer first, each with the names of its projections."""
    found = []
    for path, part in module.named_modules():
        if any(word in f"{path} {type(part).__name__}".lower() for word in ACROSS):
            continue
        inside = dict(part.named_children())
        spelling = next((s for s in SPELLINGS if all(isinstance(inside.get(n), nn.Module) for n in s)), None)
        if spelling is not None and any(piece.isdigit() for piece in path.split(".")):
            found.append((path, spelling))
    return found


def projections(module: nn.Module, layer: int = -1, name: str = "layer") -> Projections:
    """Where a layer's queries, keys and values are to be tapped.

    Args:
        module: a Transformer.
        layer: from 0, or from the end: -1 is the last.
        name: what messages call it.

    Raises:
        ConfigError: no projections are found, or the network has fewer layers.
    """
    found = attentions_of(module)
    if not found:
        raise ConfigError(
            name,
            f"{type(module).__name__} shows no queries, keys and values: "
            + (
                "nn.MultiheadAttention makes them inside one function, where nothing can be tapped"
                if any(isinstance(m, nn.MultiheadAttention) for m in module.modules())
                else "no module holds projections of a known name"
            ),
            expected=f"self-attention with modules called {', '.join('/'.join(s) for s in SPELLINGS)}",
            remedy="take the model from transformers (BERT, RoBERTa, ViT, Llama, GPT-2...) or a ViT from timm",
        )
    depth = len(found)
    if not -depth <= layer < depth:
        raise ConfigError(
            name,
            f"{type(module).__name__} has {depth} layers",
            given=layer,
            expected=f"a whole number from {-depth} to {depth - 1} (-1 is the last)",
        )
    path, spelling = found[layer]
    attention = module.get_submodule(path)
    config: Any = getattr(attention, "config", None) or getattr(module, "config", None)
    first = attention.get_submodule(spelling[0])
    out: Any = getattr(first, "out_features", None) or getattr(first, "nf", None)  # GPT-2's Conv1D calls it nf
    width = int(out or 0) // (3 if len(spelling) == 1 else 1)
    heads = _number(attention, config, "num_attention_heads", "num_heads", "n_heads", "n_head")
    if not heads or width % heads:
        raise ConfigError(
            name, f"{path!r} does not say how many heads it has", given=heads, expected=f"a part of {width}"
        )
    size = width // heads
    keys: Any = attention.get_submodule(spelling[min(1, len(spelling) - 1)])
    groups = heads if len(spelling) == 1 else int(keys.out_features) // size
    taps = [f"{path}.{n}" for n in spelling]
    norms = [f"{path}.{n}" for n in ("q_norm", "k_norm") if not isinstance(getattr(attention, n, _NONE), nn.Identity)]
    taps = [*norms, taps[2]] if norms and len(spelling) == 3 else [*taps, *norms]
    rotary = next((n for n, m in module.named_modules() if type(m).__name__.endswith("RotaryEmbedding")), "")
    causal = bool(getattr(attention, "is_causal", False))
    fused = len(spelling) == 1
    return Projections(path, layer % depth, depth, tuple(taps), heads, groups, width, fused, causal, rotary)


def _number(attention: nn.Module, config: Any, *names: str) -> int:
    found = [getattr(place, n, None) for place in (attention, config) for n in names]
    return next((n for n in found if isinstance(n, int)), 0)


def qkv(module: nn.Module, layer: int, *args: Any, **kwargs: Any) -> Qkv:
    """Queries, keys and values of one forward pass, for a look: taps are set for this call and taken off again.

    Args:
        module: a Transformer.
        layer: from 0, or from the end.
        *args: what it is called with, and ``**kwargs``.
    """
    where = projections(module, layer)
    tap = Tap(module, where.taps)
    try:
        with tap:
            module(*args, **kwargs)
        return where.read(tap.acts, module)
    finally:
        tap.close()


def attention_map(module: nn.Module, layer: int, *args: Any, **kwargs: Any) -> Tensor:
    """The attention map [N, A, T, T] of one layer for one call, before dropout; ``attention_mask`` hides padding."""
    found, mask = qkv(module, layer, *args, **kwargs), kwargs.get("attention_mask")
    return relation(found.q, found.k, where=mask, causal=projections(module, layer).causal)


__all__ = ["Projections", "Qkv", "attention_map", "attentions_of", "projections", "qkv"]
