"""Small language models on made-up texts, and a method bound to them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limbeck.data.text import Document, TextSource
from limbeck.engine.context import RunContext
from limbeck.engine.engine import Engine
from limbeck.engine.settings import EngineSettings
from limbeck.grammar.method import Built, Method, Setup, Terms
from limbeck.grammar.optim import Optim
from limbeck.models.causal_lm import CausalLm
from limbeck.tasks.language import Language
from tests.toy import within

M = TypeVar("M", bound=Method[Any])


class Some(TextSource):
    """A few made-up texts, or prompts with responses."""

    def __init__(self, pairs: bool = False) -> None:
        self.pairs = pairs

    def read(self) -> dict[str, list[Document]]:
        names = ["red", "blue", "green", "small", "large", "round", "square", "heavy", "light", "old", "new", "warm"]
        texts = [" ".join(names[(i * j + j) % 12] for j in range(1, 6)) + f" {i}." for i in range(60)]
        return {"all": [Document(t, f"ask {i}" if self.pairs else "") for i, t in enumerate(texts)]}


class Cell(nn.Module):
    """A causal model without transformers: an embedding, a running mean, a layer."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(size, width), nn.Linear(width, size)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        steps = torch.arange(1, ids.shape[1] + 1, dtype=h.dtype).view(1, -1, 1)
        return self.head(h + h.cumsum(1) / steps)


def setup_of(steps: int = 8, pairs: bool = False, plain: bool = False, batch: int = 4, **optim: Any) -> Setup:
    task = Language(
        data=Some(pairs), vocab_size=270, length=32 if pairs else 16, loss_on="response" if pairs else "all"
    )
    task.load(0)
    torch.manual_seed(0)
    if plain:
        student, teacher = (Built(Cell(task.vocabulary, width)) for width in (4, 8))
    else:
        student = CausalLm(layers=1, width=8, heads=2).build(task)
        teacher = CausalLm(layers=1, width=16, heads=2).build(task)
    return Setup(task, student, teacher, Optim(steps=steps, batch_size=batch, lr=1e-2, **optim))


def start(method: M, setup: Setup | None = None) -> tuple[M, RunContext, Engine]:
    """The method with its participants, the context of its first stage, and the engine that would run it."""
    method.bind(setup or setup_of())
    engine = Engine(EngineSettings(device="cpu", log_every=1))
    engine.prepare(method)
    return method, within(engine, method, engine.stages[0]), engine


def first(method: Method[Any], ctx: RunContext, n: int = 4) -> tuple[dict[str, Any], Terms]:
    batch = method.task.example(n)
    terms = method.step(batch, ctx.at(0))
    assert isinstance(terms, Terms)
    return batch, terms


def gradient(term: Any, module: nn.Module) -> list[Tensor]:
    grads = torch.autograd.grad(term.total(), list(module.parameters()), allow_unused=True)
    return [g for g in grads if g is not None]
