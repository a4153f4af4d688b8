"""Made-up texts, and small language tasks on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.data.text import Document, TextSource
from limbeck.tasks.language import Language


class Some(TextSource):
    """A few made-up texts, or prompts with responses."""

    def __init__(self, pairs: bool = False, count: int = 60, words: int = 12) -> None:
        self.pairs, self.count, self.words = pairs, count, words

    def read(self) -> dict[str, list[Document]]:
        names = ["red", "blue", "green", "small", "large", "round", "square", "heavy", "light", "old", "new", "warm"]
        texts = [" ".join(names[(i * j + j) % 12] for j in range(1, self.words)) + f" {i}." for i in range(self.count)]
        return {"all": [Document(t, f"question {i}" if self.pairs else "") for i, t in enumerate(texts)]}


def small(**changes: Any) -> Language:
    """A task of a few tokens on made-up texts, read."""
    settings = {"data": Some(), "vocab_size": 280, "length": 16, **changes}
    task = Language(**settings)  # type: ignore[arg-type]
    task.load(0)
    return task


def everything(data: Any) -> dict[str, Tensor]:
    """All rows as one batch."""
    return data.fetch(torch.arange(len(data)))
