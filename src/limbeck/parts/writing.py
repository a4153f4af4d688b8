"""Texts that a language model writes: keyed generation, and queries in whose place the student writes itself.

Texts come from transformers' ``generate``; every token is drawn with a key of its own (seed, step, item, position), by
adding Gumbel noise to the logits and taking the largest (Gumbel 1954), which samples from the softmax exactly. So a
resumed run, another number of processes or of micro-batches writes the same texts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from limbeck.engine import distributed as dist
from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Context, Data, Method, Query
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Fraction, Natural, NonNegative, settings
from limbeck.grammar.signal import evaluating
from limbeck.tasks.tokens import IGNORE, make_batch

NAMES = {"query": {"on-policy": "OnPolicy", "replay": "Replay"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


def written(
    module: Any,
    batch: Batch,
    draws: Draws,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prompt: float = 0.5,
    columns: int | None = None,
    name: str = "student",
) -> Batch:
    """A model's continuations of a batch's prompts, as a batch of the same shape, without a graph.

    Args:
        module: a transformers model with ``generate``, in any mode; it writes in evaluation mode.
        batch: texts as the language task makes them: ``input_ids``, ``attention_mask``, ``labels`` [N, T], ``prompt`` [N].
        draws: where words are drawn from, by ``item`` and ``view``; the same draws write the same texts.
        temperature: of the words; 0 takes the likeliest.
        top_k: only the k likeliest words; 0 for all.
        top_p: only the likeliest words that make up this mass.
        prompt: share of a text that is kept as prompt where the data has none.
        columns: words from this index on are never written; ``None`` for all.
        name: what messages call the model.

    Raises:
        ConfigError: the module cannot generate.
    """
    if not callable(getattr(module, "generate", None)):
        raise ConfigError(
            "method.sampler",
            f"the {name} ({type(module).__name__}) has no generate method",
            remedy="use a transformers model (causal-lm, hf), or no sampler",
        )
    ids: Tensor = batch["input_ids"]
    length = ids.shape[1]
    sizes = batch["attention_mask"].sum(1)
    given = batch["prompt"]
    prompts = torch.where(given > 0, given, (sizes * prompt).long()).clamp(min=1)
    prompts = torch.minimum(prompts, (sizes - 1).clamp(min=1))  # [N]: at least one word is written
    longest = int(prompts.max())
    back = torch.arange(longest, device=ids.device) - (longest - prompts).unsqueeze(1)  # < 0 on the left padding
    left = ids.gather(1, back.clamp(min=0))
    key = batch["item"] + (batch["view"] << 40)
    words = _Words(draws, key, longest, temperature, top_k, top_p, columns)
    ends = _ends(module)
    with torch.no_grad(), evaluating([module]):
        new = _generate(module, left, back >= 0, length - int(prompts.min()), words, ends)  # [N, written]
    at = torch.arange(length, device=ids.device)
    place = (at - prompts.unsqueeze(1)).clamp(0, new.shape[1] - 1)
    kept = at < prompts.unsqueeze(1)
    rows = torch.where(kept, ids, new.gather(1, place))
    total = torch.minimum(prompts + new.shape[1], torch.full_like(prompts, length))
    if ends:
        end = torch.isin(rows, torch.tensor(ends, device=rows.device)) & ~kept
        first = torch.where(end.any(1), end.int().argmax(1) + 1, total)
        total = torch.minimum(total, first)
    counts = batch["labels"] != IGNORE
    begins = (~counts).long().cumprod(1).sum(1)  # what does not count at the start still does not
    # of a conversation what others say between answers does not count either: only what is written here does
    between = (~counts & batch["attention_mask"].bool() & (at >= begins.unsqueeze(1))).any(1)
    made = make_batch(rows, total, given, torch.where(between, prompts, torch.minimum(begins, prompts)))
    return {**batch, **made}


@settings
class Writer(Query):
    """A query in whose place the student writes. A method that holds one tells it when the run begins and steps are done.

    Args:
        temperature: of the student's words; 0 takes the likeliest.
        top_k: only the k likeliest words; 0 for all.
        top_p: only the likeliest words that make up this mass.
        prompt: share of a text that is kept as prompt where the data has none.
    """

    temperature: NonNegative = 1.0
    top_k: Natural = 0
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    prompt: Annotated[float, Interval(gt=0, lt=1)] = 0.5

    def bind(self, method: Method[Any]) -> None:
        """Called by the method that holds it."""

    def begin(self, ctx: Context) -> None:
        """Called once, before the first step."""

    def observe(self, ctx: Context) -> None:
        """Called after every step."""

    def write(self, batch: Batch, ctx: Context) -> Batch:
        """The student's continuations of a batch's prompts, as a batch of the same shape."""
        return written(
            ctx.roles["student"].module,
            batch,
            ctx.draws,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            prompt=self.prompt,
            columns=getattr(ctx.task, "columns", None),  # a vocabulary that is cut to what both models share
        )


@settings
class OnPolicy(Writer):
    """With probability ``fraction``, a step's whole batch is continued by the student from its prompts.

    The "mixed" sampler of generalised knowledge distillation (Agarwal et al. 2024, arXiv 2306.13649, algorithm 1).

    Args:
        fraction: probability, drawn once a step.
    """

    fraction: Fraction = 0.5

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """The batch, or the student's continuation of its prompts."""
        if float(ctx.draws.rand("on-policy", 1)[0]) >= self.fraction:
            return batch
        return self.write(batch, ctx)


def _ends(module: Any) -> list[int]:
    config = getattr(module, "generation_config", None) or module.config
    found = getattr(config, "eos_token_id", None)
    if found is None:
        return []
    return [int(i) for i in found] if isinstance(found, (list, tuple)) else [int(found)]


def _generate(module: Any, left: Tensor, mask: Tensor, most: int, words: _Words, ends: list[int]) -> Tensor:
    from transformers import GenerationConfig, LogitsProcessorList

    config = GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        use_cache=True,
    )
    out = module.generate(
        input_ids=left,
        attention_mask=mask.long(),
        generation_config=config,
        logits_processor=LogitsProcessorList([words]),
        synced_gpus=False,
    )
    return out[:, left.shape[1] :]


class _Words:
    """A logits processor after which greedy decoding samples: temperature, top-k, top-p, then Gumbel noise."""

    def __init__(
        self, draws: Draws, key: Tensor, start: int, temperature: float, top_k: int, top_p: float, columns: int | None
    ) -> None:
        self.draws, self.key, self.start = draws, key, start
        self.temperature, self.top_k, self.top_p, self.columns = temperature, top_k, top_p, columns

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        z = scores.float()  # [N, V]
        if self.columns is not None:
            z[:, self.columns :] = float("-inf")  # words that the teacher does not know
        if self.temperature == 0:
            return z
        z = z / self.temperature
        if 0 < self.top_k < z.shape[1]:
            z = z.masked_fill(z < z.topk(self.top_k).values[:, -1:], float("-inf"))
        if self.top_p < 1.0:
            ordered, order = z.softmax(-1).sort(descending=True)
            late = ordered.cumsum(-1) - ordered >= self.top_p
            z = z.masked_fill(torch.zeros_like(late).scatter(1, order, late), float("-inf"))
        u = self.draws.rand(f"word{input_ids.shape[1] - self.start}", self.key, (z.shape[1],))
        return z - torch.log(-torch.log(u + 2.0**-25))


@settings
class Replay(Writer):
    """DistiLLM's adaptive sampler: the worse the student does on the data, the more of its own texts, used repeatedly.

    (Ko et al. 2024, arXiv 2402.03898, section 3.2.) A threshold starts at ``start`` and rises by ``rise`` whenever the
    validation loss has risen by more than ``tolerance`` since the last look. A step draws u: below the threshold times
    the ratio that falls with progress (or while the buffer fills) the student writes, and what it writes is kept; below
    the threshold, texts come from the buffer; above, from the data.

    The buffer, the threshold and the last loss are part of the method's state, so a resumed run goes on exactly.

    Args:
        capacity: texts that are kept, the newest.
        start: the first threshold.
        rise: how much the threshold rises.
        tolerance: how much worse the validation loss may be before it does.
        ratio: of new texts to kept ones: ``decreasing`` with progress, ``constant`` (one half), ``increasing``.
        check_every: optimiser steps between looks at the validation loss.
        valid_items: sequences of the validation split that a look takes.
    """

    capacity: Count = 1000
    start: Fraction = 0.0
    rise: Fraction = 0.1
    tolerance: NonNegative = 0.1
    ratio: Literal["decreasing", "constant", "increasing"] = "decreasing"
    check_every: Count = 100
    valid_items: Count = 64

    def validate(self) -> None:
        """Nothing is written yet."""
        self.method: Method[Any] | None = None
        self._step, self._fresh = -1, list[Tensor]()

    def bind(self, method: Method[Any]) -> None:
        """Lay the buffer into the method's state."""
        self.method = method
        method.state["replay"] = {"threshold": self.start, "loss": None, "texts": torch.zeros(0, 0, dtype=torch.int32)}

    @property
    def state(self) -> dict[str, Any]:
        """Threshold, last validation loss, and texts ``[n, 3 + T]``: size, prompt, first that counts, token ids."""
        if self.method is None:
            raise ConfigError(
                "queries", "this sampler keeps a buffer in a method's state", remedy="name it as method.sampler instead"
            )
        found: dict[str, Any] = self.method.state["replay"]
        return found

    def begin(self, ctx: Context) -> None:
        """The validation loss before training."""
        self.state["loss"] = self._look(ctx)

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """The batch, the student's continuation of it, or texts from the buffer."""
        state = self.state
        if ctx.step != self._step:
            self._step, self._fresh = ctx.step, []
        done = ctx.step / max(1, ctx.total)
        fresh = state["threshold"] * {"decreasing": 1.0 - done, "constant": 0.5, "increasing": done}[self.ratio]
        kept: Tensor = state["texts"]
        u = float(ctx.draws.rand("replay", 1)[0])
        if u < fresh or (u < state["threshold"] and len(kept) < self.capacity):
            made = self.write(batch, ctx)
            begins = (made["labels"] == IGNORE).long().cumprod(1).sum(1)
            head = torch.stack([made["attention_mask"].sum(1), made["prompt"], begins], 1)
            self._fresh.append(torch.cat([head, made["input_ids"]], 1).to("cpu", torch.int32))
            return made
        if u < state["threshold"]:
            chosen = ctx.draws.randint("kept", batch["item"], len(kept)).cpu()
            rows = kept[chosen].long().to(ctx.device)
            return {**batch, **make_batch(rows[:, 3:], rows[:, 0], rows[:, 1], rows[:, 2])}
        return batch

    def observe(self, ctx: Context) -> None:
        """Keep what was written by all processes; now and then look at the validation loss."""
        state = self.state
        fresh = self._fresh if self._step == ctx.step else []
        if dist.largest_over_ranks([int(bool(fresh))])[0]:
            texts = gather(torch.cat(fresh) if fresh else None, ctx.device)
            old: Tensor = state["texts"]
            state["texts"] = (torch.cat([old, texts]) if len(old) else texts)[-self.capacity :].clone()
        self._fresh = []
        if (ctx.step + 1) % self.check_every == 0:
            loss = self._look(ctx)
            if loss > state["loss"] + self.tolerance:
                state["threshold"] = min(1.0, state["threshold"] + self.rise)
            state["loss"] = loss

    def _look(self, ctx: Context) -> float:
        assert self.method is not None
        task = self.method.task
        some = First(task.valid, min(self.valid_items, len(task.valid)))
        return task.evaluate(self.method.setup.student, some, device=ctx.device)["cross_entropy"]


class First:
    """The first ``n`` items of some data."""

    def __init__(self, data: Data, n: int) -> None:
        self.data, self.n = data, n

    def __len__(self) -> int:
        return self.n

    def fetch(self, items: Tensor) -> Batch:
        """The items, unchanged."""
        return self.data.fetch(items)

    @property
    def fingerprint(self) -> str:
        """The data's, and how many."""
        return f"{self.data.fingerprint}-{self.n}"


def gather(rows: Tensor | None, device: torch.device) -> Tensor:
    """Rows ``[n, W]`` of all processes, in the order of their ranks; every process may bring another number."""
    if dist.world() == 1:
        assert rows is not None
        return rows
    sizes = torch.zeros(dist.world(), 2, dtype=torch.long, device=device)
    if rows is not None:
        sizes[dist.rank()] = torch.tensor(rows.shape, device=device)
    dist.sum_over_ranks(sizes)
    count, width = int(sizes[:, 0].sum()), int(sizes[:, 1].max())
    start = int(sizes[: dist.rank(), 0].sum())
    out = torch.zeros(count, width, dtype=torch.int32, device=device)
    if rows is not None:
        out[start : start + len(rows)] = rows.to(device)
    return dist.sum_over_ranks(out).cpu()


__all__ = ["First", "OnPolicy", "Replay", "Writer", "gather", "written"]
