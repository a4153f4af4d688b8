"""A translation encoder stacked under a language model, and a language model pooled to one vector a text.

    e = front(ids);   u = W e + b;   h = body(u) with its adapter acting;   z = head(pool(h))

Source: MT-LLM (Schmidt et al. 2024, arXiv 2406.12739).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.pooling import Pooling, pool_tokens
from limbeck.grammar.signal import evaluating
from limbeck.networks.lora import Lora


class PooledLm(nn.Module):
    """A language model whose last states are pooled to a vector, and a linear head without bias.

    Args:
        body: a transformers model without head.
        classes: outputs of the head.
        pooling: see `limbeck.functional.pooling.pool_tokens`.
        bidirectional: let every token see all others, where the body is a decoder.

    Raises:
        ConfigError: the body takes no vectors in place of tokens.
    """

    def __init__(self, body: nn.Module, classes: int, pooling: Pooling = "mean", bidirectional: bool = False) -> None:
        super().__init__()
        if "inputs_embeds" not in inspect.signature(body.forward).parameters:
            raise ConfigError(
                "lm.path",
                f"{type(body).__name__} takes no vectors in place of tokens",
                expected="a transformers model with inputs_embeds",
            )
        self.body, self.pooling, self.bidirectional = body, pooling, bidirectional
        self.width = int(body.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.head = nn.Linear(self.width, classes, bias=False)

    def vectors(self, ids: Tensor | None, mask: Tensor, embeds: Tensor | None = None, body: Any = None) -> Tensor:
        """One vector a text ``[N, D]`` from token ids ``[N, T]`` or from vectors ``[N, T, D]`` in their place.

        Args:
            ids: token ids, or ``None``.
            mask: which are real ``[N, T]``.
            embeds: in place of ids.
            body: the body with an adapter acting; its own by default.
        """
        seen: Tensor = mask
        if self.bidirectional:
            seen = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        given = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds}
        states = (self.body if body is None else body)(**given, attention_mask=seen).last_hidden_state
        return pool_tokens(states, mask, self.pooling)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits ``[N, C]``."""
        out: Tensor = self.head(self.vectors(ids, torch.ones_like(ids) if mask is None else mask))
        return out


class StackedEncoder(nn.Module):
    """Front, projection, and a pooled language model with an adapter.

    Called as a module it reads tokens of the front; `plain` reads the language model's own tokens, its adapter off.

    Args:
        front: a transformers encoder, which stands still in ``forward``.
        lm: the language model.
        lora: its adapter.
    """

    def __init__(self, front: nn.Module, lm: PooledLm, lora: Lora) -> None:
        super().__init__()
        self.front, self.lm = front, lm
        config: Any = front.config
        self.proj = nn.Linear(int(getattr(config, "d_model", None) or config.hidden_size), lm.width)
        self.lora = lora.view(lm.body)

    def translate(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The front's states ``[N, T, d]``, with a graph where it learns."""
        states: Tensor = self.front(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    def vectors(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The stack's vector of a text ``[N, D]``, from the front's tokens ``[N, K]``."""
        with torch.no_grad(), evaluating([self.front]):
            e = self.translate(ids, mask)
        with self.lora.active() as body:
            return self.lm.vectors(None, mask, self.proj(e), body)

    def plain(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The language model's own vector ``[N, D]``: adapter off, evaluation mode, no graph."""
        with torch.no_grad(), evaluating([self.lm]):
            return self.lm.vectors(ids, mask)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits ``[N, C]`` from the front's tokens."""
        out: Tensor = self.lm.head(self.vectors(ids, mask))
        return out

    @torch.no_grad()
    def take(self, lm: PooledLm | None = None, front: nn.Module | None = None, body: nn.Module | None = None) -> None:
        """Begin with the weights of a language model (head included), of a front, of another body.

        Raises:
            ShapeError: one of them is built otherwise.
        """
        for name, mine, other in (("lm", self.lm, lm), ("front", self.front, front), ("lm", self.lm.body, body)):
            if other is None:
                continue
            shapes = [{n: list(t.shape) for n, t in m.state_dict().items()} for m in (mine, other)]
            if shapes[0] != shapes[1]:
                odd = next(n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
                raise ShapeError(
                    f"student.{name}",
                    f"its parameters have other shapes than those that it starts from, as {odd}",
                    given=shapes[0].get(odd),
                    expected=str(shapes[1].get(odd)),
                    remedy=f"give student.{name} the settings of teacher.{name}" if name == "lm" else "",
                )
            mine.load_state_dict(other.state_dict())


__all__ = ["PooledLm", "StackedEncoder"]
