"""A sentence embedder: a transformers encoder, its token vectors pooled, dense layers, and a length of one where wanted.

The parts and their order are those of sentence-transformers' folders (Reimers and Gurevych 2019, arXiv 1908.10084).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from limbeck.functional.feature import unit
from limbeck.functional.pooling import pool_tokens

Pool = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How sentence-transformers calls what is made of a text's token vectors."""

POOLS: Final = get_args(Pool)

ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {
    f"torch.nn.modules.{place}.{cls.__name__}": cls
    for place, cls in (
        ("linear", nn.Identity),
        ("activation", nn.Tanh),
        ("activation", nn.ReLU),
        ("activation", nn.GELU),
        ("activation", nn.SiLU),
        ("activation", nn.Sigmoid),
    )
}
"""What may stand behind a dense layer, as folders name it."""


def pooled(states: Tensor, mask: Tensor, how: Pool) -> Tensor:
    """One vector a text ``[N, D]`` of token vectors ``[N, T, D]``; padding may stand on either side.

    Args:
        states: the token vectors.
        mask: which are real ``[N, T]``.
        how: ``mean``, ``cls`` (the first), ``lasttoken``, ``max`` in each dimension, ``mean_sqrt_len_tokens`` (the sum over the
            root of their number), or ``weightedmean`` (the n-th real token counts n times).
    """
    real = mask != 0
    if how == "max":
        return states.masked_fill(~real[..., None], -torch.inf).amax(1)
    if how == "weightedmean":
        weights = (real.cumsum(1) * real).float()
        return ((weights[:, None] @ states.float())[:, 0] / weights.sum(1, keepdim=True)).to(states.dtype)
    if how == "mean_sqrt_len_tokens":
        mean = pool_tokens(states, real, "mean", check=False)
        return (mean * real.sum(1, keepdim=True).sqrt()).to(states.dtype)
    names: dict[str, Any] = {"mean": "mean", "cls": "first", "lasttoken": "last"}
    return pool_tokens(states, real, names[how], check=False).to(states.dtype)


class DenseLayer(nn.Module):
    """A linear layer and an activation on a text's vector.

    Args:
        inputs, outputs: dimensions.
        bias: whether there is one.
        activation: a name of `ACTIVATIONS`.
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool = False, activation: str = next(iter(ACTIVATIONS))
    ) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(inputs, outputs, bias=bias), activation
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Vectors ``[N, outputs]``."""
        out: Tensor = self.act(self.linear(x))
        return out


class Embedder(nn.Module):
    """Vectors of texts.

    Args:
        body: a transformers encoder without head.
        pooling: one way to pool, or several whose vectors stand one behind the other.
        dense: layers on the pooled vector.
        normalise: bring vectors to length one.

    Attributes:
        reads: which of the task's readings it takes (`limbeck.tasks.embedding.Embedding.reading`).
        dimensions: of its vectors.
    """

    def __init__(
        self,
        body: nn.Module,
        pooling: Sequence[Pool] = ("mean",),
        dense: Sequence[DenseLayer] = (),
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.body, self.dense = body, nn.ModuleList(dense)
        self.pooling, self.normalise, self.reads = tuple(pooling), normalise, 0

    @property
    def width(self) -> int:
        """Dimensions of the pooled vector."""
        config: Any = self.body.config
        return int(config.hidden_size) * len(self.pooling)

    @property
    def dimensions(self) -> int:
        """Dimensions of its vectors."""
        last: Any = self.dense[-1] if len(self.dense) else None
        return self.width if last is None else int(last.linear.out_features)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors ``[N, D]`` of rows of ids ``[N, T]`` with their mask."""
        states = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        out = torch.cat([pooled(states, mask, how) for how in self.pooling], -1)
        for layer in self.dense:
            out = layer(out)
        return unit(out) if self.normalise else out


__all__ = ["ACTIVATIONS", "POOLS", "DenseLayer", "Embedder", "Pool", "pooled"]
