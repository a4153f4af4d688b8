"""Rounds of write, keep, learn: a generator writes, filters keep some of it, and the generator learns from what was kept.

What I2D2, Impossible Distillation and other self-taught corpora share. A round is three stages: ``write`` (items, so that
an interrupted run writes on), ``keep`` (one item: every text with its scores, and how many each filter left) and ``learn``
(steps). After the last round the generator writes once more, and that is kept too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from limbeck.data.text import Document
from limbeck.errors import DataError
from limbeck.grammar.method import Batch, Context, Stage, Terms
from limbeck.grammar.optim import Optim
from limbeck.tasks.language import Language
from limbeck.tasks.spelling import Spelled, spell
from limbeck.tasks.tokenizers import pad_id
from limbeck.tasks.tokens import make_batch


@dataclass(slots=True)
class Row:
    """A text that was written.

    Attributes:
        text: all of it, the prompt included.
        prompt: what was given.
        group: what it is about: texts are capped by group.
        complete: whether it came to its end.
        round: in which round.
        score: a critic's probability; NaN where none was asked.
        note: what there is to say of it: why it ended, or another text that belongs to it.
        asked: tokens of the question, where a teacher counts them.
        tokens: tokens that were written, likewise.
    """

    text: str
    prompt: str = ""
    group: str = ""
    complete: bool = True
    round: int = 0
    score: float = float("nan")
    note: str = ""
    asked: int = 0
    tokens: int = 0

    @property
    def said(self) -> str:
        """What was written behind the prompt."""
        return self.text.removeprefix(self.prompt)

    @property
    def same(self) -> str:
        """By what two texts are the same: words in lower case."""
        return " ".join(self.text.lower().split())


def packed(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows as columns, as an item of a stage keeps them."""
    found: dict[str, Any] = {f.name: [getattr(r, f.name) for r in rows] for f in fields(Row)}
    return {**found, "score": torch.tensor(found["score"], dtype=torch.float64)}


def unpacked(tree: Mapping[str, Any]) -> list[Row]:
    """The inverse of ``packed``.

    Example:
        >>> unpacked(packed([Row("A b.", "A")]))[0].said
        ' b.'
    """
    columns = [tree[f.name].tolist() if f.name == "score" else tree[f.name] for f in fields(Row)]
    return [Row(*values) for values in zip(*columns, strict=True)]


# ------------------------------------------------------------------------------------------------------------- filters


@dataclass(frozen=True)
class Filter:
    """A filter by name.

    Attributes:
        name: in tables.
        keep: rows -> which of them stay, one truth value each.
    """

    name: str
    keep: Callable[[Sequence[Row]], Sequence[bool]]


@dataclass(frozen=True)
class Survivors:
    """What a filter was given and what it left."""

    filter: str
    given: int
    left: int


def sift(rows: Sequence[Row], filters: Sequence[Filter]) -> tuple[list[Row], list[Survivors]]:
    """Rows through filters in order, with how many each one left.

    Example:
        >>> kept, told = sift([Row("A b."), Row("a  b."), Row("C d.")], [distinct()])
        >>> [r.text for r in kept], told[0].left
        (['A b.', 'C d.'], 2)
    """
    kept, told = list(rows), []
    for one in filters:
        given = len(kept)
        kept = [row for row, stays in zip(kept, one.keep(kept), strict=True) if stays]
        told.append(Survivors(one.name, given, len(kept)))
    return kept, told


def complete(least: int = 2) -> Filter:
    """Texts that came to an end, with so many words behind the prompt."""
    return Filter("complete", lambda rows: [r.complete and len(r.said.split()) >= least for r in rows])


def scored(name: str, threshold: float) -> Filter:
    """Texts whose score is at least the threshold; a text without a score stays."""
    return Filter(name, lambda rows: [not r.score < threshold for r in rows])


def distinct(before: Sequence[str] = ()) -> Filter:
    """The first of the texts that are the same but for capitals and spaces, and were not there ``before``."""
    seen = {Row(text).same for text in before}

    def keep(rows: Sequence[Row]) -> list[bool]:
        own: set[str] = set()
        found = []
        for row in rows:
            key = row.same
            found.append(key not in own and key not in seen)
            own.add(key)
        return found

    return Filter("distinct", keep)


def capped(most: int) -> Filter:
    """Of every group the ``most`` texts with the highest scores; among equals those that came first."""

    def keep(rows: Sequence[Row]) -> list[bool]:
        score = [-1.0 if r.score != r.score else r.score for r in rows]
        order = sorted(range(len(rows)), key=lambda i: -score[i])
        taken: dict[str, int] = {}
        found = [False] * len(rows)
        for i in order:
            n = taken.get(rows[i].group, 0)
            found[i] = n < most
            taken[rows[i].group] = n + 1
        return found

    return Filter("cap", keep)


# --------------------------------------------------------------------------------------------------------------- texts


class KeptTexts:
    """Kept texts as rows of tokens that a language model learns from; empty until ``fill``.

    A batch is one of the language task's with ``weight`` float32 [N].

    Args:
        task: whose tokenizer spells them.
        on: which tokens count: ``all``, or the ``statement`` behind the prompt.
        document: a row as a conversation, or as a prompt with its response: then what is answered counts, spelled as the
            task spells such documents.
    """

    def __init__(self, task: Language, on: str = "all", document: Callable[[Row], Document] | None = None) -> None:
        self.task, self.on, self.document = task, on, document
        self.counts: Tensor | None = None
        self.ids = torch.zeros(0, 1, dtype=torch.long)
        self.sizes = self.begins = torch.zeros(0, dtype=torch.long)
        self.weight = torch.zeros(0)

    def fill(self, rows: Sequence[Row], weight: Sequence[float] | None = None) -> None:
        """Take texts in the place of what was there."""
        task = self.task
        if self.document is not None:
            self._answers(spell(task, [self.document(r) for r in rows]), weight)
            return
        spelt = [s.ids[: task.length] for s in spell(task, [Document(r.text) for r in rows])]
        prompts = [len(s.ids) for s in spell(task, [Document(r.prompt) for r in rows])]
        ends = 1 if task.tokenizer.eos_token_id is not None else 0  # that of the prompt alone, which is not there
        self.sizes = torch.tensor([len(s) for s in spelt], dtype=torch.long)
        begins = [
            min(p - ends, len(s) - 1) if self.on == "statement" else 0 for p, s in zip(prompts, spelt, strict=True)
        ]
        self.begins = torch.tensor(begins, dtype=torch.long)
        width = int(self.sizes.max()) if len(spelt) else 1
        self.ids = torch.full((len(spelt), width), pad_id(task.tokenizer), dtype=torch.long)
        for i, row in enumerate(spelt):
            self.ids[i, : len(row)] = torch.tensor(row)
        self.weight = torch.ones(len(spelt)) if weight is None else torch.tensor(list(weight), dtype=torch.float32)

    def _answers(self, spelt: Sequence[Spelled], weight: Sequence[float] | None) -> None:
        """Rows of which only what is answered counts."""
        length = self.task.length
        width = min(length, max((len(s.ids) for s in spelt), default=1))
        self.ids = torch.full((len(spelt), width), pad_id(self.task.tokenizer), dtype=torch.long)
        counts = torch.zeros(len(spelt), width, dtype=torch.bool)
        for i, s in enumerate(spelt):
            row = torch.tensor(s.ids[:width])
            self.ids[i, : len(row)] = row
            own = [False] * s.prompt + [True] * (len(s.ids) - s.prompt) if s.answers is None else s.answers
            counts[i, : len(row)] = torch.tensor(own[:width])
        self.counts = counts
        self.sizes = torch.tensor([min(width, len(s.ids)) for s in spelt], dtype=torch.long)
        self.begins = torch.tensor([min(s.begins, width) for s in spelt], dtype=torch.long)
        self.weight = torch.ones(len(spelt)) if weight is None else torch.tensor(list(weight), dtype=torch.float32)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "task": None, "document": None}  # loader processes get the rows, not the tokenizer

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, items: Tensor) -> Batch:
        """The rows as a batch, as wide as the longest."""
        sizes = self.sizes[items]
        ids = self.ids[items, : int(sizes.max())]
        counts = None if self.counts is None else self.counts[items, : ids.shape[1]]
        made = make_batch(ids, sizes, torch.zeros_like(sizes), self.begins[items], counts)
        return {**made, "weight": self.weight[items]}

    @property
    def fingerprint(self) -> str:
        """A content hash."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.ids, self.sizes, self.begins, self.weight, *([] if self.counts is None else [self.counts])):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


# -------------------------------------------------------------------------------------------------------------- rounds


@dataclass
class Kept:
    """What the keeping of a round leaves.

    Attributes:
        learn: rows that the generator learns from.
        release: rows that go into the corpus.
        survivors: of every filter, in order, those of the release last.
        measures: further numbers by name.
        weight: of the rows used for training; ``None`` for 1 each.
    """

    learn: list[Row]
    release: list[Row]
    survivors: list[Survivors]
    measures: dict[str, float] = field(default_factory=dict)
    weight: list[float] | None = None

    def tree(self) -> dict[str, Any]:
        """As an item of a stage keeps it."""
        return {
            "learn": packed(self.learn),
            "release": packed(self.release),
            "survivors": [asdict(s) for s in self.survivors],
            "measures": self.measures,
            "weight": self.weight,
        }

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Kept:
        """The inverse of ``tree``."""
        told = [Survivors(**s) for s in tree["survivors"]]
        return cls(unpacked(tree["learn"]), unpacked(tree["release"]), told, dict(tree["measures"]), tree["weight"])


@dataclass
class Rounds:
    """The stages of so many rounds.

    Attributes:
        count: rounds; the generator writes once more than it learns.
        data: what the kept texts are read into, filled anew for each round.
        items: what is written item by item: their ids.
        write: (round, item, context) -> rows.
        keep: (round, rows of the round, context) -> what is kept.
        step: (batch, context) -> the term of the kept texts.
        optim: how the generator learns, in every round.
        role: the generator.
        begin: done before the first step of a round's learning, with its number: to start from another network.
        finish: done when a round is kept, with its number.
        least: texts below which a round is refused.
        again: whether the generator writes once more after its last learning; not where somebody else writes.
        remedy: what a round that is refused says should be done.

    Example:
        ``Rounds(2, KeptTexts(task), items, write, keep, step, optim).stages()``
    """

    count: int
    data: KeptTexts
    items: Callable[[Context], Sequence[str]]
    write: Callable[[int, str, Context], Sequence[Row]]
    keep: Callable[[int, list[Row], Context], Kept]
    step: Callable[[Batch, Context], Terms]
    optim: Optim
    role: str = "student"
    begin: Callable[[int, Context], None] | None = None
    finish: Callable[[int, Context], None] | None = None
    least: int = 1
    again: bool = True
    remedy: str = "write more (method.concepts, method.texts), or lower method.threshold or method.least"

    def stages(self) -> list[Stage]:
        """``write0``, ``keep0``, ``learn0``, ``write1`` and so on, ``keepN`` last (``learnN-1`` without ``again``)."""
        return [stage for r in range(self.count + self.again) for stage in self._round(r)]

    def _round(self, r: int) -> Iterator[Stage]:
        def write(item: str, ctx: Context) -> dict[str, Any]:
            rows = list(self.write(r, item, ctx))
            for row in rows:
                row.round = r
            return packed(rows)

        def fill(ctx: Context) -> None:
            kept = self.kept(r, ctx)
            if len(kept.learn) < self.least:
                raise DataError(
                    f"round {r}",
                    f"{len(kept.learn)} texts are left to learn from: {told(kept.survivors)}",
                    expected=f"at least {self.least}",
                    remedy=self.remedy,
                )
            self.data.fill(kept.learn, kept.weight)

        yield Stage(f"write{r}", items=self.items, work=write)
        yield Stage(
            f"keep{r}",
            items=lambda ctx: ["kept"],
            work=lambda item, ctx: self.keep(r, self.written(r, ctx), ctx).tree(),
            finish=None if self.finish is None else (lambda ctx: self.finish(r, ctx)),  # type: ignore[misc]
        )
        if r < self.count:
            yield Stage(
                f"learn{r}",
                steps=self.optim.steps,
                data=self.data,
                batch_size=self.optim.batch_size,
                optim={self.role: self.optim},
                setup=fill,
                begin=None if self.begin is None else (lambda ctx: self.begin(r, ctx)),  # type: ignore[misc]
                step=self.step,
                augmented=False,
            )

    def written(self, r: int, ctx: Context) -> list[Row]:
        """All rows of a round, in the order of its items."""
        return [row for item in ctx.items(f"write{r}") for row in unpacked(ctx.artifact(f"write{r}", item))]

    def kept(self, r: int, ctx: Context) -> Kept:
        """What a round kept."""
        return Kept.of(ctx.artifact(f"keep{r}", "kept"))


def told(survivors: Sequence[Survivors]) -> str:
    """Survivors in words: ``400 written, complete 310, critic 120``.

    Example:
        >>> told([Survivors("complete", 400, 310), Survivors("critic", 310, 120)])
        '400 written, complete 310, critic 120'
    """
    given = survivors[0].given if survivors else 0
    return ", ".join([f"{given} written", *(f"{s.filter} {s.left}" for s in survivors)])


__all__ = [
    "Filter",
    "Kept",
    "KeptTexts",
    "Rounds",
    "Row",
    "Survivors",
    "capped",
    "complete",
    "distinct",
    "packed",
    "scored",
    "sift",
    "told",
    "unpacked",
]
