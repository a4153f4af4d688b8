"""Teachers with another tokenizer: the same text spelled twice, positions paired, vocabularies brought to shared classes.

`AcrossTokenizers` is a base in `NextTokens`' place. Under ``alignment=ids`` it does what that does. Under
``alignment=bytes`` student and teacher read the same text in their own tokens; where both have read up to the same byte,
their next-token distributions are compared over the tokens that both know (`limbeck.tasks.offsets.classes_of`), by
whatever divergence the method has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.errors import ConfigError, TeacherMismatch
from limbeck.grammar.heads import LARGE, Dense, Head
from limbeck.grammar.method import Batch, Context, Participant, Setup, Stage, Term, Terms
from limbeck.grammar.settings import settings
from limbeck.grammar.task import Task
from limbeck.parts.next_tokens import NextTokens, Reader, Tokens
from limbeck.tasks.aligned import AlignedRows
from limbeck.tasks.language import Language
from limbeck.tasks.offsets import Classes, Rest, classes_of
from limbeck.tasks.streamed_tokens import StreamTokens
from limbeck.tasks.tokens import next_counts, shifted


@dataclass
class Spans:
    """Pieces of text between pairs, as tokens of both.

    Attributes:
        teacher: all predictions of the teacher ``[N, W-1, U]`` or a `Head`; ``ids`` are the tokens that come ``[N, W-1]``.
        ids: see there.
        own: the tokens that come in the student's rows ``[N, T-1]``, whether or not they count.
        mine, theirs: which span of its row each of these tokens is in ``[N, T-1]``, ``[N, W-1]``; -1 for none.
        number: the span that begins at each position ``[N, T-1]``; -1 where none does, or none that ends in the row.
        single: where it is one token of both ``[N, T-1]``.
    """

    teacher: Tensor | Head
    ids: Tensor
    own: Tensor
    mine: Tensor
    theirs: Tensor
    number: Tensor
    single: Tensor


@dataclass
class AlignedTokens(Tokens):
    """Predictions of two models at pairs of positions: what `Tokens` holds, the teacher's brought beside the student's.

    Attributes:
        classes: over which they are compared; ``None``: the divergence takes any two vocabularies.
        temperature: of the divergence.
        spans: pieces of text to be compared whole where they are several tokens.
    """

    classes: Classes | None = None
    temperature: float = 1.0
    spans: Spans | None = None

    def compare(self, dense: Dense, closed: Mapping[str, Any] | None = None) -> Tensor:
        """A divergence over shared classes: values ``[N, T-1]``, 0 where a position has no partner or does not count."""
        if self.spans is not None:
            return self._with_spans(dense, closed)
        if self.classes is None or self.classes.plain:
            return super().compare(dense, closed)
        return super().compare(self._over_classes(self.classes, dense))

    def compare_with(self, dense: Dense) -> Tensor:
        """As `compare`, of a divergence that has parameters of its own."""
        if self.spans is not None:
            return self._with_spans(dense, None, own=True)
        plain = self.classes is None or self.classes.plain
        return super().compare_with(dense if plain else self._over_classes(self.classes, dense))

    def _over_classes(self, classes: Classes | None, dense: Dense) -> Dense:
        """The divergence, of logits of the classes in the place of the tokens."""
        assert classes is not None
        mine, theirs = classes.on(self.labels.device)

        def over(z_s: Tensor, z_t: Tensor, labels: Tensor, where: Tensor | None) -> Tensor:
            with torch.no_grad():
                p = F.grouped_logits(z_t, theirs, classes.count, temperature=self.temperature, where=where)
            q = F.grouped_logits(z_s, mine, classes.count, temperature=self.temperature, where=where)
            return dense(q, p, mine[labels.clamp_min(0)].clamp_min(0), where)

        return over

    def _with_spans(self, dense: Dense, closed: Mapping[str, Any] | None, own: bool = False) -> Tensor:
        spans = self.spans
        assert spans is not None
        single = replace(self, where=self.where & spans.single, spans=None)
        whole = self.where & ~spans.single
        mine = -Tokens(self.student, None, spans.own, spans.mine >= 0, self.chunk, self.backend).cross_entropy()
        with torch.no_grad():
            tokens = Tokens(spans.teacher, None, spans.ids, spans.theirs >= 0, self.chunk, self.backend)
            theirs = -tokens.cross_entropy()
        count = self.where.shape[1]
        at = spans.number.clamp_min(0).unsqueeze(-1).expand(*spans.number.shape, 2)
        z_s = F.span_logits(mine, spans.mine, count).gather(1, at)
        z_t = F.span_logits(theirs, spans.theirs, count).gather(1, at)
        first = single.compare_with(dense) if own else single.compare(dense, closed)
        return first + dense(z_s, z_t, torch.zeros_like(self.labels), whole)


class AlignedReader(Reader):
    """Shows student and teacher side by side at pairs of positions; each reads its own tokens.

    Args:
        method: bound already.
        teacher: the task as the teacher has it.
        classes, merged: see `AcrossTokenizers`.
    """

    def __init__(self, method: AcrossTokenizers, teacher: Language, classes: Classes | None, merged: bool) -> None:
        super().__init__(method, method.chunk, method.dense_only(), method.backend)
        self.theirs, self.classes, self.merged = teacher, classes, merged
        self.temperature = float(getattr(method, "temperature", 1.0))
        self.labelled = method.reads_labels()

    def columns(self, name: str) -> int | None:
        """Each model is cut to its own tokenizer's outputs."""
        return self.theirs.columns if name == "teacher" else super().columns(name)

    def read(self, batch: Batch, ctx: Context) -> AlignedTokens:
        """Both predictions for a batch, at the student's positions."""
        labels, where, at = batch["labels"][:, 1:], next_counts(batch), batch["pair"][:, :-1]
        ids = batch["teacher_ids"]
        other: Batch = {"input_ids": ids, "attention_mask": batch["teacher_mask"], "labels": ids}
        big = [batch["labels"].numel() * self._outputs("student"), ids.numel() * self._outputs("teacher")]
        student: Tensor | Head
        teacher: Tensor | Head
        if "student" in self.taps and (self.chunk != "auto" or max(big) > LARGE):
            student = self._head("student", batch, ctx)
            teacher = self._head("teacher", other, ctx) if "teacher" in self.taps else self._logits(other, ctx)
        else:
            student = shifted(ctx.signal("student", batch).logits, batch)[0]
            teacher = self._logits(other, ctx)
        spans = self._spans(batch, teacher) if self.merged else None
        counts = where & (at >= 0)
        if spans is not None:
            counts = counts & (spans.number >= 0)
        if self.labelled and self.classes is not None:  # a token that no class has is no label
            counts = counts & (self.classes.on(labels.device)[0][labels.clamp_min(0)] >= 0)
        chunk = None if self.chunk == "auto" else self.chunk or None
        beside = (
            replace(teacher, hidden=_picked(teacher.hidden, at)) if isinstance(teacher, Head) else _picked(teacher, at)
        )
        return AlignedTokens(
            student, beside, labels, counts, chunk, self.backend, self.classes, self.temperature, spans
        )

    def _outputs(self, name: str) -> int:
        return int(self.taps[name].head.weight.shape[0]) if name in self.taps else 0

    def _logits(self, other: Batch, ctx: Context) -> Tensor:
        return ctx.signal("teacher", other).logits[:, :-1]

    def _spans(self, batch: Batch, teacher: Tensor | Head) -> Spans:
        """Between a pair and the next, the tokens of both that spell the same text."""
        at = batch["pair"][:, :-1]
        anchor = at >= 0
        # the student's last position may be a pair too: it ends the last span
        total = (batch["pair"] >= 0).sum(1, keepdim=True)
        mine = anchor.long().cumsum(1) - 1
        width = batch["teacher_ids"].shape[1] - 1
        marks = torch.zeros(len(at), width + 1, dtype=torch.long, device=at.device)
        marks.scatter_(1, torch.where(batch["pair"] >= 0, batch["pair"], width), 1)
        marks[:, -1] = 0
        theirs = marks[:, :-1].cumsum(1) - 1
        mine, theirs = (torch.where(n < total - 1, n, -1) for n in (mine, theirs))
        sizes = []
        for n in (mine, theirs):
            size = torch.zeros(len(at), at.shape[1] + 1, dtype=torch.long, device=at.device)
            sizes.append(size.scatter_add_(1, n.clamp_min(0), (n >= 0).long()))
        number = torch.where(anchor, mine, -1)
        one = (sizes[0] == 1) & (sizes[1] == 1)
        single = one.gather(1, number.clamp_min(0)) & (number >= 0)
        own = batch["input_ids"][:, 1:]
        return Spans(teacher, batch["teacher_ids"][:, 1:], own, mine, theirs, number, single)


def _picked(rows: Tensor, at: Tensor) -> Tensor:
    """Rows ``[N, W, D]`` at positions ``[N, T]``: ``[N, T, D]``; the first where there is none (-1)."""
    items = torch.arange(len(rows), device=rows.device).unsqueeze(1)
    return rows[items, at.clamp_min(0)]


@settings
class AcrossTokenizers(NextTokens):
    """`NextTokens` for teachers that may have another tokenizer.

    Args:
        alignment: ``ids``: student and teacher share a tokenizer, position by position; ``bytes``: each reads the text in its
            own tokens, and positions that end at the same byte are compared.
        unshared: under ``bytes``, what becomes of a token that only one vocabulary has: its probability is added to the
            token it begins with in the other (``prefix``), to one class of all such tokens (``other``), or left out and the
            rest normalised again (``drop``).
        spans: under ``bytes``: ``first`` compares the next token at each pair of positions; ``merged``: where the text up to
            the next pair is several tokens for one of the two, the probability of all of it (the product of the conditional
            ones) against that of anything else.
    """

    alignment: Literal["ids", "bytes"] = "ids"
    unshared: Rest = "prefix"
    spans: Literal["first", "merged"] = "first"

    neutral = ("alignment", "unshared", "spans")

    def validate(self) -> None:
        """What the student writes itself has not been aligned."""
        super().validate()
        if self.alignment == "ids":
            return
        if self.sampler is not None:
            raise ValueError(
                "sampler must be null with alignment=bytes: pairs are found in the data, not in what is written"
            )
        self.participants = {"teacher": Participant(task="teacher")}

    def any_vocabulary(self) -> bool:
        """Whether what is compared takes two different vocabularies as they are."""
        return False

    def reads_labels(self) -> bool:
        """Whether what is compared looks at which token comes."""
        return False

    def accept(self, task: Task) -> None:
        """Have the task mark where tokens end."""
        super().accept(task)
        if self.alignment == "bytes":
            assert isinstance(task, Language)
            if isinstance(task.train, StreamTokens):
                raise ConfigError(
                    "method.alignment",
                    "pairs are found in all of the text before training, and texts that are streamed are not read before",
                    given="bytes",
                    remedy="read the files into memory (jsonl:, parquet:)",
                )
            task.mark_ends(1)
            # nats a token of two tokenizers are not the same thing
            task.primary = "bits_per_byte"

    def bind(self, setup: Setup) -> None:
        """Pair positions, once, and find the classes that both vocabularies share."""
        super().bind(setup)
        if self.alignment == "ids":
            return
        self._addons(setup)
        task, theirs = self.task, self.task.part("teacher")
        assert isinstance(theirs, Language) and setup.teacher is not None
        self._check(setup)
        theirs.mark_ends(2)
        task.cut_padding(setup.student, "student")
        theirs.cut_padding(setup.teacher, "teacher")
        self.roles["teacher"].feed = theirs.feed
        self.rows_aligned = AlignedRows(task.train, theirs)
        task.note(f"alignment: {self.rows_aligned.told()}")
        sizes = (task.columns or task.vocabulary, theirs.columns or theirs.vocabulary)
        self.classes = None
        if not self.any_vocabulary():
            self.classes = classes_of(task.tokenizer, theirs.tokenizer, sizes, self.unshared)
            task.note(self._told(sizes))
        for note in theirs.notes:
            task.note(f"teacher: {note}")
        self.reader = AlignedReader(self, theirs, self.classes, self.spans == "merged")

    def _addons(self, setup: Setup) -> None:
        """Add-ons see the student's positions beside the teacher's, which are others."""
        for name, given in (("objectives", setup.objectives), ("queries", setup.queries)):
            if given:
                raise ConfigError(
                    name, "method.alignment=bytes compares two spellings of the text, which add-ons do not know",
                    given=", ".join(given), remedy="leave them out",
                )  # fmt: skip

    def _check(self, setup: Setup) -> None:
        """The teacher is a network whose tokenizer is known."""
        teacher = setup.teacher
        assert teacher is not None
        if not isinstance(teacher.module, nn.Module):
            raise TeacherMismatch(
                "teacher",
                "a recorded teacher answers rows of its own tokens, and method.alignment=bytes asks it other rows",
                remedy="give the network that was recorded, or a student with the recorded tokenizer",
            )
        if getattr(teacher.model, "tokenizer", None) is None:
            raise TeacherMismatch(
                "teacher",
                "nothing says which tokenizer it has",
                remedy="name it as hf:FOLDER or run:FOLDER, with its tokenizer beside it",
            )

    def _told(self, sizes: tuple[int, int]) -> str:
        classes = self.classes
        assert classes is not None
        said = f"vocabularies: {classes.same:,} tokens are the same text in the student's {sizes[0]:,} and the teacher's {sizes[1]:,}"
        if classes.plain:
            return said
        left = [int((m < 0).sum()) for m in (classes.student, classes.teacher)]
        said += f"; compared over {classes.count:,} classes (method.unshared={self.unshared})"
        return said + (f", without {left[0]:,} and {left[1]:,} tokens" if any(left) else "")

    def stages(self) -> list[Stage]:
        """The stage on rows that hold both spellings."""
        (stage,) = super().stages()
        if self.alignment == "bytes":
            stage.data = self.rows_aligned
        return [stage]

    def extras(self) -> dict[str, Any]:
        """How much was aligned."""
        if self.alignment == "ids":
            return super().extras()
        rows = self.rows_aligned
        about: dict[str, Any] = {"positions": rows.counted, "paired": rows.paired, "rows_cut": rows.cut}
        if self.classes is not None:
            about |= {"same_tokens": self.classes.same, "classes": self.classes.count}
        return {**super().extras(), "alignment": about}

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The comparison over pairs that count, and the loss on the text over all tokens that count."""
        if self.alignment == "ids" or self.distil_ratio == 0:
            return super().step(batch, ctx)
        assert isinstance(self.reader, AlignedReader)
        tokens = self.reader.read(batch, ctx)
        J, where = self.compared(tokens, ctx), next_counts(batch)
        terms = Terms({"tokens": (where.sum(), 1), "paired": (tokens.where.sum(), where.sum())})
        terms[self.term] = Term(J, self.learners, weight=self.distil_ratio, where=tokens.where)
        if self.distil_ratio < 1:
            plain = Tokens(tokens.student, None, tokens.labels, where, tokens.chunk, tokens.backend)
            terms["lm"] = Term(plain.cross_entropy(), weight=1 - self.distil_ratio, where=where)
        return terms


__all__ = ["AcrossTokenizers", "AlignedReader", "AlignedTokens"]
