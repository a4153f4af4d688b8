"""Runs of tokens counted, and a linear layer on them: a text classifier that learns from few texts in seconds."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from limbeck.grammar.method import Built
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Positive, Share, settings
from limbeck.grammar.task import Check, Model, Task
from limbeck.models.adapting import adapt
from limbeck.models.forms import meet
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.weights import load_strict
from limbeck.tasks.tokenizers import pad_id

NAMES = {"model": {"ngrams": "Ngrams"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

_PRIMES = (1, 1_000_003, 998_244_353)


class NgramNet(nn.Module):
    """Logits as the sum of a row of numbers for each run of up to ``longest`` tokens, over the square root of their count.

    Runs share ``buckets`` rows by a hash.

    Args:
        outputs: classes.
        longest: tokens of a run, up to 3.
        buckets: rows.
        pad: the token that fills rows up.
        dropout: share of the numbers left out while training.
        gain: what rows are multiplied by: how fast they learn at a rate that suits a Transformer.
    """

    def __init__(
        self, outputs: int, longest: int, buckets: int, pad: int, dropout: float = 0.0, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.longest, self.buckets, self.pad, self.dropout, self.gain = longest, buckets, pad, dropout, gain
        self.weight = nn.Embedding(buckets, outputs)
        nn.init.zeros_(self.weight.weight)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [N, C] of rows of ids [N, T]."""
        real = ids != self.pad
        features, held = [], []
        for n in range(1, min(self.longest, ids.shape[1]) + 1):
            runs = ids.unfold(1, n, 1)  # [N, T - n + 1, n]
            key = (runs * torch.tensor(_PRIMES[:n], device=ids.device)).sum(-1) + 7919 * n
            features.append(key % self.buckets)
            held.append(real.unfold(1, n, 1).all(-1))
        here = torch.cat(held, 1).to(self.weight.weight.dtype)
        rows = self.weight(torch.cat(features, 1))  # [N, F, C]
        rows = nn.functional.dropout(rows, self.dropout, self.training) * here.unsqueeze(-1)
        out: Tensor = self.gain * rows.sum(1) / here.sum(1, keepdim=True).clamp(min=1).sqrt() + self.bias
        return out


@settings
class Ngrams(Model):
    """Logistic regression on hashed runs of tokens, for text classes.

    Args:
        longest: tokens of a run, up to 3.
        buckets: rows that runs share.
        dropout: share of the numbers left out while training.
        gain: what they are multiplied by: how fast they learn at a rate that suits a Transformer.
        checkpoint: weights to load, strictly.
        labels: the checkpoint's class names in its order.
        check: try a ready one on labelled items before it is used.
    """

    rehearsed = True
    forms = ("classes",)
    takes = ("tokens",)

    longest: Annotated[int, Interval(ge=1, le=3)] = 3
    buckets: Annotated[int, Interval(ge=2, le=1 << 26)] = 1 << 15
    dropout: Share = 0.1
    gain: Positive = 10.0
    checkpoint: str | None = None
    labels: list[str] | None = None
    check: Check = "on"

    def build(self, task: Task) -> Built:
        """The classifier, for the task's tokens."""
        needs = meet(self, task)
        text = needs.tokens
        assert text is not None
        task.load()
        module = NgramNet(needs.outputs, self.longest, self.buckets, pad_id(text.tokenizer), self.dropout, self.gain)
        notes = []
        if self.checkpoint is not None:
            path = expanded(self.checkpoint)
            found = find_weights(path, module.state_dict(), role=self.role)
            load_strict(module, found.state, str(path), self.role)
            notes.append(str(found))
        built = Built(module, Contract(), self.labels, self, notes)
        adapt(built, needs, needs.outputs, {}, type(self).__name__)
        task.rehearse(built)
        return built


__all__ = ["NgramNet", "Ngrams"]
