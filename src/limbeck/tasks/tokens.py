"""Batches of token ids: documents as rows, which position predicts which token, and which of these count."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from limbeck.data.text import Document, places_of
from limbeck.errors import DataError, ShapeError
from limbeck.functional.sparse import TopK
from limbeck.grammar.heads import Head, Logits
from limbeck.grammar.method import Batch
from limbeck.storage.memory import need
from limbeck.tasks.offsets import BYTE, extent
from limbeck.tasks.spelling import Spelled, spell
from limbeck.tasks.tokenizers import pad_id, special_ids

if TYPE_CHECKING:
    from limbeck.tasks.language import Language

TooLong = Literal["cut-right", "cut-left", "drop", "refuse"]
"""What becomes of a document that is longer than a row."""

IGNORE = -100
"""The label of a position that does not count. It lives in batches only; inside limbeck it is a mask at once."""


def make_batch(rows: Tensor, sizes: Tensor, prompts: Tensor, begins: Tensor, counts: Tensor | None = None) -> Batch:
    """Right-padded rows ``[N, T]`` as a batch.

    Args:
        rows: token ids ``[N, T]``.
        sizes: how many of them are no padding ``[N]``.
        prompts: how many of these are prompt ``[N]``.
        begins: from which position on tokens count ``[N]``.
        counts: which tokens count ``[N, T]``, where that is no matter of a beginning (conversations).
    """
    at = torch.arange(rows.shape[1], device=rows.device)
    real = at < sizes.unsqueeze(1)
    counted = real & (at >= begins.unsqueeze(1) if counts is None else counts)
    labels = torch.where(counted, rows, torch.full_like(rows, IGNORE))
    where = torch.zeros_like(real)
    where[:, :-1] = counted[:, 1:]
    return {"input_ids": rows, "attention_mask": real.long(), "labels": labels, "where": where, "prompt": prompts}


_COUNTED: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Labels -> the mask of next tokens that count: one tensor for every term of a batch, so that the engine knows it again."""


def next_counts(batch: Batch) -> Tensor:
    """Which next tokens of a batch count, bool ``[N, T-1]``; the same tensor whenever it is asked for the same labels."""
    labels: Tensor = batch["labels"]
    found = _COUNTED.get(labels)
    if found is None:
        found = _COUNTED[labels] = labels[:, 1:] != IGNORE
    return found


Z = TypeVar("Z", Tensor, Head, TopK, Logits)


def shifted(logits: Z, batch: Batch) -> tuple[Z, Tensor, Tensor]:
    """Logits ``[N, T-1, V]`` of positions that predict, the tokens they should predict, and which of these count."""
    labels = batch["labels"][:, 1:]
    if len(logits.shape) != 3 or logits.shape[:2] != batch["labels"].shape:
        expected = f"logits [N, T, V] for token ids {list(batch['labels'].shape)}"
        raise ShapeError("student", "the model is no language model", given=list(logits.shape), expected=expected)
    return logits[:, :-1], labels, next_counts(batch)


class TokenData:
    """Documents as rows of token ids. Rows are made when first asked for, by the task's tokenizer.

    A batch holds ``input_ids`` int64 ``[N, T]``; ``attention_mask`` int64 ``[N, T]``, 0 on padding, which is always on
    the right; ``labels`` int64 ``[N, T]``, -100 where they do not count; ``where`` bool ``[N, T]``: the positions whose
    next token counts; and ``prompt`` int64 ``[N]``: how many tokens of the row are prompt.

    Packed rows overlap by one token, so that every token but the first is predicted exactly once.
    """

    def __init__(self, task: Language, documents: list[Document], name: str, most: int | None = None) -> None:
        self.task: Language | None = task
        self.documents, self.name, self.most = documents, name, most
        self._made: _Made | None = None
        self._fingerprint = ""

    def __getstate__(self) -> dict[str, Any]:
        # loader processes get the rows, not the tokenizer
        self._rows()
        return {**self.__dict__, "task": None, "documents": [], "_prompts_count": self._prompts_count, "pad": self.pad}

    def forget(self) -> None:
        """Make the rows anew when they are next asked for: the task's length has changed."""
        self._made, self._fingerprint = None, ""

    def _rows(self) -> _Made:
        if self._made is None:
            assert self.task is not None
            task = self.task
            self._prompts_count = task.counts_prompts
            self.pad = pad_id(task.tokenizer)
            self._made = self._pack(task) if task.packed else self._pad(task)
            n = len(self._made.ids)
            if n == 0:
                raise DataError(
                    "data",
                    f"the {self.name} split has too little text for one sequence",
                    remedy="add text, or lower task.length",
                )
            unknown = task.tokenizer.unk_token_id
            if unknown is not None and self.name != "student":
                share = float((self._made.ids == unknown).sum()) / float(self._made.sizes.sum())
                if share > 0:
                    task.note(f"{self.name}: {100 * share:.2g} % of the tokens are {task.tokenizer.unk_token}, words that "
                              "the tokenizer does not know")  # fmt: skip
            if self.most is not None and self.most < n:
                task.note(
                    f"{self.name}: {self.most} of {n} sequences are evaluated, evenly spread (task.eval_sequences)"
                )
                self._made = self._made.some(torch.arange(self.most) * n // self.most)
        return self._made

    def _pack(self, task: Language) -> _Made:
        spelled = spell(task, self.documents, task.ends)
        stream = [token for row in spelled for token in row.ids]
        n, step = len(stream), task.length - 1
        size = _bytes(self.documents)
        if n < 2:
            none = torch.zeros(0, dtype=torch.long)
            return _Made(torch.zeros(0, task.length, dtype=torch.int32), none, none, 1.0)
        rows = -(-(n - 1) // step)
        need(8 * (rows * step + 1), "task.length", f"{rows:,} rows of {task.length:,} tokens", "lower task.length")
        flat = torch.full((rows * step + 1,), self.pad, dtype=torch.int32)
        flat[:n] = torch.tensor(stream, dtype=torch.int32)
        ids = flat.unfold(0, task.length, step).contiguous()
        sizes = torch.full((rows,), task.length)
        sizes[-1] = n - (rows - 1) * step
        lines = None
        if task.ends is not None:
            whole = Lines(self.documents, spelled)
            at = torch.full((rows * step + 1,), -1)
            at[:n] = whole.ends
            begins = torch.arange(rows) * step
            before = torch.where(whole.first[begins], -1, whole.ends[(begins - 1).clamp_min(0)])
            lines = _Places(at.unfold(0, task.length, step).contiguous(), before, whole.document[begins])
        return _Made(ids, sizes, torch.zeros(rows, dtype=torch.long), n / max(1, size), places=lines)

    def _pad(self, task: Language) -> _Made:
        spelled = spell(task, self.documents, task.ends)
        kept: list[Spelled] = []
        numbers: list[int] = []
        spent = size = 0
        hidden: list[Document] = []
        cut: list[Document] = []
        shortened: list[Document] = []
        dropped: list[Document] = []
        longest = whole = 0
        for number, (document, row) in enumerate(zip(self.documents, spelled, strict=True)):
            longest, whole = max(longest, row.begins), max(whole, len(row.ids))
            if len(row.ids) > task.length and task.too_long in ("drop", "refuse"):
                dropped.append(document)
                continue
            if len(row.ids) > task.length and task.too_long == "cut-left":
                row = row.without_beginning(task.length, len(special_ids(task.tokenizer)[0]))
                shortened.append(document)
            if task.long_prompts == "cut" and len(row.ids) > task.length and row.prompt and row.answers is None:
                row = row.with_shorter_prompt(task.length, len(special_ids(task.tokenizer)[0]))
                shortened.append(document)
            if row.begins >= task.length or len(row.ids) < 2:
                hidden.append(document)
                continue
            if len(row.ids) > task.length:
                cut.append(document)
            counted = len(row.ids) - row.prompt if row.answers is None else sum(row.answers)
            spent += len(row.ids) if self._prompts_count else counted
            size += len(document.text.encode("utf-8", "surrogatepass"))
            size += len(document.prompt.encode("utf-8", "surrogatepass")) if self._prompts_count else 0
            kept.append(row.cut(task.length))
            numbers.append(number)
        if dropped and task.too_long == "refuse":
            places = places_of(dropped, 10)
            raise DataError(
                "task.too_long",
                f"{len(dropped)} of {len(self.documents)} documents of the {self.name} split exceed {task.length} tokens"
                f"{f' ({places})' if places else ''}; the longest has {whole}",
                given="refuse",
                remedy=f"set task.length={whole}, or task.too_long=cut-right, cut-left or drop",
            )
        left = task.too_long == "cut-left"
        how = f"task.too_long={task.too_long}; the longest has {whole}"
        for documents, said, setting in (
            (dropped, "left out: they exceed", how),
            (hidden, "left out: the prompt alone fills", f"task.length; the longest has {longest}"),
            (shortened, "lost the beginning" + (", to fit" if left else " of their prompt, to fit"),
             how if left else "task.long_prompts=cut"),
            (cut, "cut off at the end: they exceed", how),
        ):  # fmt: skip
            if documents:
                places = places_of(documents, 5)
                where = f" ({places})" if places else ""
                task.note(
                    f"{self.name}: {len(documents)} of {len(self.documents)} documents {said} {task.length} tokens{where} "
                    f"({setting})"
                )
        if dropped and not kept:
            raise DataError(
                "task.too_long",
                f"every document of the {self.name} split exceeds {task.length} tokens; the longest has {whole}",
                given="drop",
                remedy="raise task.length, or set task.too_long=cut-right or cut-left",
            )
        if hidden and not kept:
            raise DataError(
                "task.length",
                f"every prompt of the {self.name} split alone fills a sequence: the longest has {longest} tokens",
                given=task.length,
                remedy="raise task.length, or keep the end of long prompts with task.long_prompts=cut",
            )
        need(
            8 * len(kept) * task.length,
            "task.length",
            f"{len(kept):,} rows of {task.length:,} tokens",
            "lower task.length",
        )
        ids = torch.full((len(kept), task.length), self.pad, dtype=torch.int32)
        talks = any(row.answers is not None for row in kept) and not self._prompts_count
        counts = torch.zeros(len(kept), task.length, dtype=torch.bool) if talks else None
        for i, row in enumerate(kept):
            ids[i, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.int32)
            if counts is not None and row.answers is not None:
                counts[i, : len(row.ids)] = torch.tensor(row.answers)
        sizes = torch.tensor([len(row.ids) for row in kept], dtype=torch.long)
        prompts = torch.tensor([row.prompt for row in kept], dtype=torch.long)
        lies = None
        if task.ends is not None:
            at = torch.full((len(kept), task.length), -1)
            origins = origins_of(self.documents)
            for i, row in enumerate(kept):
                assert row.ends is not None
                at[i, : len(row.ids)] = torch.tensor(row.ends) + origins[numbers[i]]
            lies = _Places(at, torch.full((len(kept),), -1), torch.tensor(numbers, dtype=torch.long))
        return _Made(ids, sizes, prompts, spent / max(1, size), counts, lies)

    def __len__(self) -> int:
        return len(self._rows().ids)

    def fetch(self, items: Tensor) -> Batch:
        """The rows as a batch."""
        made = self._rows().some(items)
        begins = torch.zeros_like(made.prompts) if self._prompts_count else made.prompts
        return make_batch(made.ids.long(), made.sizes, made.prompts, begins, made.counts)

    @property
    def places(self) -> _Places:
        """Where the rows lie in the text; the task must have asked for it (`Language.mark_ends`)."""
        found = self._rows().places
        assert found is not None
        return found

    @property
    def largest_id(self) -> int:
        """The largest token id of the split."""
        return int(self._rows().ids.max())

    @property
    def tokens_per_byte(self) -> float:
        """Tokens that are predicted per byte of text, end tokens included, over the whole split."""
        return self._rows().density

    @property
    def fingerprint(self) -> str:
        """A content hash of the rows and of what counts in them."""
        if not self._fingerprint:
            made = self._rows()
            digest = hashlib.blake2b(repr((tuple(made.ids.shape), self._prompts_count)).encode(), digest_size=16)
            for tensor in (made.ids, made.sizes, made.prompts, *([] if made.counts is None else [made.counts])):
                digest.update(tensor.numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def origins_of(documents: list[Document]) -> Tensor:
    """Where each document begins, in quarters of a byte, when all are laid end to end: int64 ``[n + 1]``, the end last."""
    sizes = torch.tensor([0, *[extent(d) for d in documents]], dtype=torch.long)
    return sizes.cumsum(0) * BYTE


class Lines:
    """Spelled documents end to end.

    Attributes:
        ids: token ids int64 ``[n]``.
        ends: where each token ends ``[n]``, in quarters of a byte from the first document's beginning; never falling.
        document: which document each is of ``[n]``.
        first: which tokens begin a document ``[n]``.
        starts: the first token of each document ``[documents + 1]``, and the end of all.
    """

    def __init__(self, documents: list[Document], spelled: list[Spelled]) -> None:
        sizes = torch.tensor([len(row.ids) for row in spelled], dtype=torch.long)
        self.document = torch.repeat_interleave(torch.arange(len(spelled)), sizes)
        self.ids = torch.tensor([i for row in spelled for i in row.ids], dtype=torch.long)
        ends = torch.tensor([e for row in spelled for e in row.ends or ()], dtype=torch.long)
        self.ends = ends + origins_of(documents)[self.document]
        self.starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        self.first = torch.zeros(len(self.ids), dtype=torch.bool)
        self.first[self.starts[:-1][sizes > 0]] = True


@dataclass(frozen=True)
class _Places:
    """Where rows lie in the text.

    Attributes:
        ends: where each token ends ``[n, T]``, -1 for padding.
        before: where the token before a row's first one ends ``[n]``; -1 where the row begins with a document.
        document: of the first token ``[n]``.
    """

    ends: Tensor
    before: Tensor
    document: Tensor

    def some(self, rows: Tensor) -> _Places:
        """Some of the rows."""
        return _Places(self.ends[rows], self.before[rows], self.document[rows])


@dataclass(frozen=True)
class _Made:
    """Rows of token ids.

    Attributes:
        ids: int32 ``[n, T]``.
        sizes: size of each row ``[n]``.
        prompts: prompt tokens of each row ``[n]``.
        density: tokens that are predicted, per byte of text.
        counts: which tokens count ``[n, T]``, where that is no matter of a beginning.
        places: where the rows lie in the text, where the task asks for it.
    """

    ids: Tensor
    sizes: Tensor
    prompts: Tensor
    density: float
    counts: Tensor | None = None
    places: _Places | None = None

    def some(self, rows: Tensor) -> _Made:
        """Some of the rows."""
        counts = None if self.counts is None else self.counts[rows]
        places = None if self.places is None else self.places.some(rows)
        return _Made(self.ids[rows], self.sizes[rows], self.prompts[rows], self.density, counts, places)


def _bytes(documents: list[Document]) -> int:
    return sum(len((d.prompt + d.text).encode("utf-8", "surrogatepass")) for d in documents)
