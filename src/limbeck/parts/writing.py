"""Texts that a language model writes: keyed generation, and queries in whose place the student writes itself.

Texts come from transformers' ``generate``, a batch at once, with a cache of keys and values. Every token is drawn with a
key of its own (seed, step, item, position), by adding Gumbel noise to the logits and taking the largest (Gumbel 1954),
which samples from the softmax exactly. So a resumed run, another number of processes or of micro-batches writes the same
texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from limbeck.engine import distributed as dist
from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Context, Data, Method, Query
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Fraction, Natural, NonNegative, settings
from limbeck.grammar.signal import evaluating
from limbeck.grammar.task import Task
from limbeck.tasks.tokens import IGNORE, make_batch

NAMES = {"query": {"on-policy": "OnPolicy", "replay": "Replay"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


def kept_prompts(batch: Batch, share: float = 0.5) -> Tensor:
    """How many tokens of each text are kept as its prompt, int64 [N]: the data's prompt, or a share of the text."""
    sizes, given = batch["attention_mask"].sum(1), batch["prompt"]
    prompts = torch.where(given > 0, given, (sizes * share).long()).clamp(min=1)
    return torch.minimum(prompts, (sizes - 1).clamp(min=1))  # at least one word is written


def written(
    module: Any,
    batch: Batch,
    draws: Draws,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prompt: float = 0.5,
    prompts: Tensor | None = None,
    limit: Tensor | None = None,
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
        prompts: how many tokens of each row are kept and continued, int64 [N], each below T; ``None`` follows the data.
        limit: length of each row at most, prompt included, int64 [N]; ``None`` for T.
        columns: words from this index on are never written; ``None`` for all.
        name: what messages call the model.

    Raises:
        ConfigError: the module cannot generate.
    """
    can_write(module, name)
    ids: Tensor = batch["input_ids"]
    length = ids.shape[1]
    if prompts is None:
        prompts = kept_prompts(batch, prompt)
    limit = torch.full_like(prompts, length) if limit is None else limit.clamp(max=length)
    longest = int(prompts.max())
    back = torch.arange(longest, device=ids.device) - (longest - prompts).unsqueeze(1)  # < 0 on the left padding
    left = ids.gather(1, back.clamp(min=0))
    key = batch["item"] + (batch["view"] << 40)
    words = _Words(draws, key, longest, temperature, top_k, top_p, columns)
    ends = ends_of(module)
    with torch.no_grad(), evaluating([module]):
        new = _generate(module, left, back >= 0, max(1, int((limit - prompts).max())), words, ends)  # [N, written]
    at = torch.arange(length, device=ids.device)
    place = (at - prompts.unsqueeze(1)).clamp(0, new.shape[1] - 1)
    kept = at < prompts.unsqueeze(1)
    rows = torch.where(kept, ids, new.gather(1, place))
    total = torch.minimum(prompts + new.shape[1], limit)
    if ends:
        end = torch.isin(rows, torch.tensor(ends, device=rows.device)) & ~kept
        first = torch.where(end.any(1), end.int().argmax(1) + 1, total)
        total = torch.minimum(total, first)
    counts = batch["labels"] != IGNORE
    begins = (~counts).long().cumprod(1).sum(1)  # what does not count at the start still does not
    # of a conversation what others say between answers does not count either: only what is written here does
    between = (~counts & batch["attention_mask"].bool() & (at >= begins.unsqueeze(1))).any(1)
    made = make_batch(rows, total, batch["prompt"], torch.where(between, prompts, torch.minimum(begins, prompts)))
    return {**batch, **made}


def can_write(module: Any, name: str = "student", place: str = "method.sampler") -> None:
    """Refuse a model that has no ``generate``.

    Raises:
        ConfigError: which, and what to do.
    """
    if not callable(getattr(module, "generate", None)):
        raise ConfigError(
            place,
            f"the {name} ({type(module).__name__}) has no generate method",
            remedy="use a transformers model (causal-lm, hf), or no texts written in training",
        )


def continued(
    module: Any,
    prompts: Sequence[Sequence[int]],
    draws: Draws,
    key: Tensor,
    *,
    longest: int,
    pad: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    at_once: int = 64,
    ends: Sequence[int] = (),
    columns: int | None = None,
    processors: Sequence[Any] = (),
    keep_end: bool = False,
) -> list[tuple[list[int], bool]]:
    """What a model writes behind rows of tokens of any length: the new tokens without their end, and whether they came to it.

    Prompts of like length are written together; what is written depends on the draws and the key alone.

    Args:
        module: a transformers model with ``generate``; it writes in evaluation mode, without a graph.
        prompts: token ids, one or more each.
        draws: where words are drawn from.
        key: int64 [N], of each prompt.
        longest: new tokens, at most.
        pad: what fills rows on the left.
        temperature: of the words; 0 takes the likeliest.
        top_p: only the likeliest words that make up this mass.
        at_once: rows side by side.
        ends: tokens that end a text; by default those that the model knows.
        columns: words from this index on are never written.
        processors: further logits processors of transformers, asked first (no run of tokens twice).
        keep_end: the end stays with the new tokens (a full stop).

    Raises:
        ConfigError: the module cannot generate.
    """
    can_write(module, place="student")
    stops = list(ends) or ends_of(module)
    found: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
    order = torch.tensor([len(p) for p in prompts]).argsort(stable=True)
    for part in order.split(at_once):
        rows = [list(prompts[i]) for i in part.tolist()]
        width = max(map(len, rows))
        left = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=draws.device)
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=draws.device)
        words = _Words(draws, key[part].to(draws.device), width, temperature, 0, top_p, columns)
        with torch.no_grad(), evaluating([module]):
            new = _generate(module, left, mask, longest, words, stops, processors)
        for i, row in zip(part.tolist(), new.tolist(), strict=True):
            stop = next((k for k, t in enumerate(row) if t in stops), None)
            found[i] = (row if stop is None else row[: stop + keep_end], stop is not None)
    return found


@settings
class Writer(Query):
    """A query in whose place the student writes: a method's ``sampler``, or one of a recipe's ``queries``.

    Whoever trains the student alone, as a baseline, reads the data. How long writing took stands in the report.

    Args:
        temperature: of the words; 0 takes the likeliest.
        top_k: only the k likeliest words; 0 for all.
        top_p: only the likeliest words that make up this mass.
        prompt: share of a text that is kept as prompt where the data has none.
        tokens: words written behind a prompt, at most; ``null`` fills the sequence.

    Attributes:
        revise: what is done with texts that were just written: (texts, prompts kept [N], limits [N], context) -> texts.
    """

    alone: ClassVar[bool] = False

    temperature: NonNegative = 1.0
    top_k: Natural = 0
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    prompt: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    tokens: Count | None = None

    def validate(self) -> None:
        """Nothing is written yet."""
        self.method: Method[Any] | None = None
        self.revise: Callable[[Batch, Tensor, Tensor, Context], Batch] | None = None
        self.writers: tuple[str, ...] = ("student",)
        self.place = "method.sampler"
        self.texts, self.seconds, self._began, self._ended = 0, 0.0, 0.0, 0.0

    def accept(self, task: Task) -> None:
        """Texts."""
        if getattr(task, "kind_of_target", None) != "token" or "prompt" not in task.example(1):
            raise ConfigError(
                "queries",
                f"the student writes texts, and {type(task).__name__} has none to go on with",
                expected="task=language",
                remedy="leave it out",
            )

    def attach(self, method: Method[Any]) -> None:
        """One of a recipe's queries: bound to the method whose batches it changes."""
        self.place = "queries"
        self.bind(method)

    def bind(self, method: Method[Any]) -> None:
        """Take the method whose student writes.

        Raises:
            ConfigError: who is to write cannot, or the teacher is a recording, which knows the texts of the data alone.
        """
        self.method = method
        for name in self.writers:
            if name not in method.roles:
                raise ConfigError(self.place, f"the {name} is to write, and this method has none")
            can_write(method.roles[name].module, name, self.place)
        teacher = method.roles.get("teacher")
        if teacher is not None and hasattr(type(teacher.module), "rows"):
            raise ConfigError(
                self.place,
                "a recorded teacher knows the texts of the data, and the student writes others",
                remedy="name the teacher itself, or leave texts written in training out",
            )

    def write(self, batch: Batch, ctx: Context, who: str = "student") -> Batch:
        """A role's continuations of a batch's prompts, as a batch of the same shape."""
        began = time.perf_counter()
        self._began = self._began or began
        prompts = kept_prompts(batch, self.prompt)
        length = batch["input_ids"].shape[1]
        limit = torch.full_like(prompts, length)
        if self.tokens is not None:
            limit = torch.minimum(limit, prompts + self.tokens)
        made = written(
            ctx.roles[who].module, batch, ctx.draws, prompts=prompts, limit=limit, name=who, **self.how(ctx.task)
        )
        if self.revise is not None and who == "student":
            made = self.revise(made, prompts, limit, ctx)
        self.texts += len(made["item"])
        self.seconds += (
            time.perf_counter() - began
        )  # whoever writes waits for each word, so nothing is left to wait for
        return made

    def how(self, task: Task) -> dict[str, Any]:
        """How words are drawn: arguments of `written`."""
        columns = getattr(task, "columns", None)  # a vocabulary that is cut to what both models share
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "columns": columns}

    def begin(self, ctx: Context) -> None:
        """Called once, before the first step."""

    def observe(self, ctx: Context) -> None:
        """Called after every step."""
        now = time.perf_counter()
        self._began, self._ended = self._began or now, now

    def extras(self) -> dict[str, Any]:
        """A table for the report: how many texts were written since the run last began, and how long that took."""
        if not self.texts:
            return {}
        share = 100 * self.seconds / max(self._ended - self._began, self.seconds)
        row = [str(self.texts), f"{self.seconds:.3g} s", f"{share:.0f} %"]
        head = ["texts", "time", "share of the steps' time"]
        return {"tables": [{"title": "texts written in training", "head": head, "rows": [row]}]}


@settings
class OnPolicy(Writer):
    """GKD's mixture: a step's whole batch is the data's, the student's, or the teacher's continuation of its prompts.

    (Agarwal et al. 2024, arXiv 2306.13649, algorithm 1; the teacher's texts are its supervised form.)

    Args:
        fraction: probability that the student writes, drawn once a step.
        teacher: probability that the teacher writes.
    """

    fraction: Fraction = 0.5
    teacher: Fraction = 0.0

    def validate(self) -> None:
        """Probabilities that leave no less than nothing to the data."""
        super().validate()
        if self.fraction + self.teacher > 1:
            raise ValueError(f"fraction ({self.fraction}) and teacher ({self.teacher}) must be at most 1 together")
        if self.teacher > 0:
            self.writers = ("student", "teacher")

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """The batch, or a continuation of its prompts."""
        u = float(ctx.draws.rand("on-policy", 1)[0])
        if u < self.fraction:
            return self.write(batch, ctx)
        return self.write(batch, ctx, "teacher") if u < self.fraction + self.teacher else batch


def ends_of(module: Any) -> list[int]:
    """The tokens that end a text, by a model's configuration."""
    config = getattr(module, "generation_config", None) or module.config
    found = getattr(config, "eos_token_id", None)
    if found is None:
        return []
    return [int(i) for i in found] if isinstance(found, (list, tuple)) else [int(found)]


def _generate(
    module: Any,
    left: Tensor,
    mask: Tensor,
    most: int,
    words: _Words,
    ends: list[int],
    processors: Sequence[Any] = (),
) -> Tensor:
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
        logits_processor=LogitsProcessorList([*processors, words]),
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
        """Nothing is kept yet."""
        super().validate()
        self._step, self._fresh = -1, list[Tensor]()

    def bind(self, method: Method[Any]) -> None:
        """Lay the buffer into the method's state."""
        super().bind(method)
        method.state["replay"] = {"threshold": self.start, "loss": None, "texts": torch.zeros(0, 0, dtype=torch.int32)}

    @property
    def state(self) -> dict[str, Any]:
        """Threshold, last validation loss, and texts ``[n, 3 + T]``: size, prompt, first that counts, token ids."""
        if self.method is None:
            raise ConfigError(
                self.place,
                "it keeps a buffer in a method's state, and no method has taken it",
                remedy="call bind(METHOD)",
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
        super().observe(ctx)
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


__all__ = [
    "First",
    "OnPolicy",
    "Replay",
    "Writer",
    "can_write",
    "continued",
    "ends_of",
    "gather",
    "kept_prompts",
    "written",
]
