"""An encoder of code with several exits: a bidirectional transformer of StarCoder 2's blocks that can be cut behind each exit.

Parameters of the encoder are named as in transformers' ``Starcoder2Model``, whose weights therefore load by name. Against it
the causal mask and the sliding window are gone: every token sees all real ones. Rows may be padded on either side: positions
count relative to each other (RoPE).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.feature import unit
from limbeck.functional.pooling import pool_tokens

__all__ = ["CodeEncoder", "MultiExit", "Normalise"]

Normalise = Literal["unit", "at_least_one"]
"""Embeddings of length one; or divided by their length where that is above 1 (as StarEncoder has them)."""


def rotated(x: Tensor, theta: float) -> Tensor:
    """Queries or keys [N, heads, T, d] with their positions (RoPE, Su et al. 2021, arXiv 2104.09864; halves as in Llama)."""
    half = x.shape[-1] // 2
    rate = theta ** -(torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(x.shape[2], device=x.device, dtype=torch.float32).unsqueeze(1) * rate  # [T, d / 2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, theta: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.theta, self.dropout = heads, kv_heads, theta, dropout
        d = width // heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, kv_heads * d)
        self.v_proj, self.o_proj = nn.Linear(width, kv_heads * d), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (h, -1)).transpose(1, 2)  # [N, heads, T, d]
            for p, h in ((self.q_proj, self.heads), (self.k_proj, self.kv_heads), (self.v_proj, self.kv_heads))
        )
        q, k = rotated(q, self.theta), rotated(k, self.theta)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, 1) for y in (k, v))
        p = self.dropout if self.training else 0.0
        out: Tensor = self.o_proj(scaled_dot_product_attention(q, k, v, mask, p).transpose(1, 2).flatten(2))
        return out


class _Perceptron(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(gelu(self.c_fc(x), approximate="tanh"))
        return out


class _Block(nn.Module):
    def __init__(
        self, width: int, heads: int, kv_heads: int, inner: int, theta: float, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads, kv_heads, theta, dropout)
        self.mlp = _Perceptron(width, inner)
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), mask))
        out: Tensor = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return out


class CodeEncoder(nn.Module):
    """Token embeddings and transformer blocks: grouped-query attention, RoPE, biases, GELU (tanh), layer norm before each part.

    Args:
        vocabulary: number of token ids.
        width: size of the hidden states, a multiple of ``2 * heads``.
        layers: number of blocks.
        heads, kv_heads: attention heads, and how many of keys and values; the second divides the first.
        inner: size of the perceptron's inner layer.
        theta: base of RoPE's frequencies.
        dropout: of embeddings, attention and what each part adds, while training.
        eps: of the layer norms.
        normed: the last block's output goes through a layer norm. One that was cut has none: its exit never had one.
        pad: the id that rows are filled up with; it is never seen.

    Raises:
        ConfigError: heads and widths do not go together.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        inner: int,
        *,
        theta: float = 1e6,
        dropout: float = 0.1,
        eps: float = 1e-5,
        normed: bool = True,
        pad: int = 0,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ConfigError("width", given=width, expected=f"a multiple of twice the {heads} heads")
        if heads % kv_heads:
            raise ConfigError("kv_heads", given=kv_heads, expected=f"a divisor of the {heads} heads")
        self.pad, self.width = pad, width
        self.embed_tokens = nn.Embedding(vocabulary, width, padding_idx=pad)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Block(width, heads, kv_heads, inner, theta, dropout, eps) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps) if normed else nn.Identity()
        std = (
            0.018 * (1024 / width) ** 0.5
        )  # the published network's at its width; narrower ones would hardly begin to learn
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)
        with torch.no_grad():
            self.embed_tokens.weight[pad] = 0

    def states(self, ids: Tensor, after: Sequence[int], *, detach: bool = False) -> list[Tensor]:
        """Hidden states [N, T, width] behind some layers, counted from 1; only as many layers are run as the last needs.

        Behind the last layer of the whole encoder they have its norm, behind others none, as ``hidden_states`` of
        transformers.

        Args:
            ids: token ids [N, T].
            after: layers, ascending.
            detach: cut the graph behind each: its loss then reaches the layers since the one before alone.

        Raises:
            ShapeError: no rows of ids, or a row of padding alone.
        """
        if ids.ndim != 2 or ids.is_floating_point():
            raise ShapeError("ids", given=f"{ids.dtype} {list(ids.shape)}", expected="token ids [N, T]")
        mask = (ids != self.pad)[:, None, None, :]
        x, found = self.dropout(self.embed_tokens(ids)), []
        for i, layer in enumerate(self.layers[: max(after)], 1):
            x = layer(x, mask)
            if i in after:
                found.append(self.norm(x) if i == len(self.layers) else x)
                x = x.detach() if detach else x
        return found


class MultiExit(nn.Module):
    """An encoder whose exits each have a head: every token is projected, tokens are pooled, the vector is normalised.

    It answers with the embedding of its last exit.

    Args:
        encoder: with as many layers as the last exit needs, or more.
        exits: layers, counted from 1, ascending; the exits lie behind them.
        pooling: ``last``: the last real token, which is [CLS] as sentences are laid out here; ``mean``: over real tokens.
        normalise: see `Normalise`.
        shared: one head for all exits, in place of one each.

    Raises:
        ConfigError: an exit is 0 or beyond the depth, or they are not ascending, each once.
    """

    def __init__(
        self,
        encoder: CodeEncoder,
        exits: Sequence[int],
        pooling: Literal["last", "mean"] = "last",
        normalise: Normalise = "unit",
        shared: bool = False,
    ) -> None:
        super().__init__()
        depth = len(encoder.layers)
        if not exits or sorted(set(exits)) != list(exits) or exits[0] < 1 or exits[-1] > depth:
            raise ConfigError("exits", given=list(exits), expected=f"layers from 1 to {depth}, ascending, each once")
        self.encoder, self.exits = encoder, list(exits)
        self.pooling: Literal["last", "mean"] = pooling
        self.normalise: Normalise = normalise
        self.shared = shared
        names = ["all"] if shared else [str(i) for i in exits]
        self.heads = nn.ModuleDict({name: nn.Linear(encoder.width, encoder.width) for name in names})
        for head in self.heads.values():
            nn.init.normal_(head.weight, std=encoder.width**-0.5)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def head(self, exit: int) -> nn.Module:
        """The head of an exit."""
        return self.heads["all" if self.shared else str(exit)]

    def states(self, ids: Tensor, detach: bool = False) -> list[Tensor]:
        """Hidden states [N, T, D] at every exit, before the heads."""
        return self.encoder.states(ids, self.exits, detach=detach)

    def every(self, ids: Tensor, detach: bool = False) -> Tensor:
        """Embeddings at every exit [E, N, D]."""
        states = self.states(ids, detach)
        return torch.stack([self.embedding(x, ids, i) for x, i in zip(states, self.exits, strict=True)])

    def embedding(self, states: Tensor, ids: Tensor, exit: int) -> Tensor:
        """The embedding [N, D] of hidden states [N, T, D] of rows of ids [N, T] at an exit."""
        head = self.head(exit)
        where = ids != self.encoder.pad
        # of one token the projection of the pooled is the pooled projection, at a fraction of the cost; so is it of a mean
        pooled = head(pool_tokens(states, where, self.pooling, check=False))
        if self.normalise == "unit":
            return unit(pooled)
        return pooled / pooled.norm(dim=-1, keepdim=True).clamp_min(1.0)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [N, D] of rows of ids [N, T] at the last exit."""
        (states,) = self.encoder.states(ids, self.exits[-1:])
        return self.embedding(states, ids, self.exits[-1])

    def cut(self, exit: int) -> MultiExit:
        """A network of its own that ends behind an exit: the layers up to it, and its head; weights are copied.

        Raises:
            ConfigError: there is no such exit.
        """
        if exit not in self.exits:
            raise ConfigError("exit", given=exit, expected=f"one of {self.exits}")
        encoder = copy.copy(self.encoder)
        encoder._modules = dict(self.encoder._modules)
        whole = exit == len(self.encoder.layers)
        encoder.layers = self.encoder.layers[:exit]
        encoder.norm = self.encoder.norm if whole else nn.Identity()
        made = copy.copy(self)
        made._modules = dict(self._modules)
        made.encoder, made.exits = encoder, [exit]
        name = "all" if self.shared else str(exit)
        made.heads = nn.ModuleDict({name: self.heads[name]})
        return copy.deepcopy(made)
