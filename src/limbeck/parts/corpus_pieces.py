"""A corpus in pieces, cut into chunks of tokens that lie on disk: it may be larger than memory.

A corpus is read piece by piece (`Held`: documents that a task has in memory; `Streamed`: files; `Scored`: the chunks of an
earlier run). `chunked` makes rows of tokens of a piece, which a stage of items stores; `Chunks` reads them back, mapped into
memory, as training data.

ids: tokens [n, T];  size: how many of them are no padding [n];  number: piece << 32 | row
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from limbeck.artifacts.scored_corpus import ScoredCorpus
from limbeck.data.items import digest
from limbeck.data.names import counted, is_blank
from limbeck.data.text import Document
from limbeck.data.text_files import decode, find, load_bytes, parsed
from limbeck.data.text_rows import Columns
from limbeck.errors import ConfigError, DataError, require
from limbeck.functional.corpora import cut_points
from limbeck.grammar.method import Batch
from limbeck.storage.memory import need
from limbeck.storage.plain import check_plain, opened
from limbeck.storage.records import Recorded
from limbeck.tasks.language import Language
from limbeck.tasks.spelling import spell
from limbeck.tasks.tokenizers import PROBES, pad_id
from limbeck.tasks.tokens import make_batch

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".txt", ".md", ".rst", ".text")
"""Files that are streamed, ``.gz`` too where they are no parquet."""

TOGETHER = 256
"""Documents that are spelled at a time."""


class Corpus(Protocol):
    """Text in pieces, in a fixed order."""

    @property
    def fingerprint(self) -> str:
        """A content hash of all text, and of how it is read."""

    def pieces(self) -> list[str]:
        """Names of the pieces, in order."""

    def documents(self, piece: str) -> Iterable[Document]:
        """The documents of a piece."""


class Held:
    """Documents in memory, in pieces of about so many characters.

    Args:
        documents: of a task's training split.
        size: characters in a piece.
    """

    def __init__(self, documents: Sequence[Document], size: int) -> None:
        self._documents = documents
        held, self._ends = 0, [0]
        for i, document in enumerate(documents, 1):
            held += len(document.text)
            if held >= size or i == len(documents):
                self._ends.append(i)
                held = 0

    @property
    def fingerprint(self) -> str:
        """Hash of the documents, in order."""
        return digest("documents", *(d.key for d in self._documents))

    def pieces(self) -> list[str]:
        """Ranges of documents: ``0-120``."""
        return [f"{a}-{b}" for a, b in zip(self._ends, self._ends[1:], strict=False)]

    def documents(self, piece: str) -> Iterable[Document]:
        """The documents of a range."""
        a, b = map(int, piece.split("-"))
        return self._documents[a:b]


class Streamed:
    """Files that are read piece by piece: never more than one piece is in memory.

    ``.parquet``: a piece is a row group, a document the ``text`` column of a row. ``.jsonl``: a document is the ``text`` of a
    line. Text files: running text, cut into pieces at line ends. Packed files (``.gz``) are one piece each.

    Args:
        path: a file, or a folder of them.
        size: bytes in a piece of a file that is cut.
        field: the column or key that holds the text.
        held: documents that are evaluated, by `Document.key`: they are left out.
    """

    def __init__(self, path: str, size: int, field: str = "text", held: Iterable[str] = ()) -> None:
        self.files = [
            (name, file) for split, name, file in find(path, SUFFIXES, "method.corpus")[0] if split in ("train", "all")
        ]
        self.size, self.field, self._held = size, field, frozenset(held)
        self._pieces: dict[str, tuple[Path, str, int, int]] = {}
        for i, (name, file) in enumerate(self.files):
            check_plain(file)
            if file.name.lower().endswith(".parquet"):
                parts = [(k, k + 1) for k in range(self._table(file).metadata.num_row_groups)]
            elif file.name.lower().endswith(".gz"):
                parts = [(0, -1)]
            else:
                whole = file.stat().st_size
                parts = [(a, min(whole, a + size)) for a in range(0, whole, size)]
            self._pieces |= {f"{i}-{a}": (file, name, a, b) for a, b in parts}
        if not self._pieces:
            raise DataError("method.corpus", "there is no text in it", given=path)
        for file, name, a, b in {v[0]: v for v in reversed(self._pieces.values())}.values():
            if b >= 0:  # a packed file would have to be unpacked whole
                next(iter(self._read(file, name, a, b)), None)  # its first document is there, or refused
        self._fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """Hash of the files' bytes, and of how they are read."""
        if not self._fingerprint:
            h = hashlib.blake2b(repr((self.size, self.field, sorted(self._held))).encode(), digest_size=16)
            for _, file in self.files:
                with opened(file) as stream:
                    h.update(hashlib.file_digest(cast(Any, stream), "blake2b").digest())
            self._fingerprint = h.hexdigest()
        return self._fingerprint

    def pieces(self) -> list[str]:
        """File and beginning: ``0-4194304``."""
        return list(self._pieces)

    def documents(self, piece: str) -> Iterator[Document]:
        """The documents of a piece; blank ones and those that are evaluated are left out.

        Raises:
            DataError: a row or line holds no text, or a file cannot be read.
        """
        file, name, a, b = self._pieces[piece]
        for document in self._read(file, name, a, b):
            if not is_blank(document.text) and document.key not in self._held:
                yield document

    def _read(self, file: Path, name: str, a: int, b: int) -> Iterator[Document]:
        kind = file.name.lower().removesuffix(".gz")
        if kind.endswith(".parquet"):
            table = self._table(file)
            names = list(table.schema_arrow.names)
            if self.field not in names:
                raise DataError.unknown("method.corpus_field", self.field, names, f"column of {name}")
            for number, text in enumerate(table.read_row_group(a, columns=[self.field]).column(0).to_pylist(), 1):
                yield _document({self.field: text}, self.field, f"{name} row group {a}, row", number)
            return
        try:
            text = decode(load_bytes(file) if b < 0 else _lines(file, a, b), file)
        except DataError as error:
            raise DataError("method.corpus", f"{name}: {error.problem}", expected="text in UTF-8") from None
        if not kind.endswith((".jsonl", ".ndjson")):
            yield Document(text, source=name)
            return
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _document(parsed(line), self.field, f"{name} (from byte {a}) line", number)

    def _table(self, file: Path) -> Any:
        parquet = require("pyarrow.parquet", "language", "reading parquet files")
        try:
            table = parquet.ParquetFile(file)
            sizes = [table.metadata.row_group(k).total_byte_size for k in range(table.metadata.num_row_groups)]
            need(max(sizes, default=0), "method.corpus", f"a row group of {file}", "write it with smaller row groups")
        except (OSError, ValueError) as error:
            raise DataError("method.corpus", f"{file} is no readable parquet file: {error}") from None
        return table


def _document(row: Any, field: str, source: str, number: int) -> Document:
    try:
        if isinstance(row, Exception):
            raise row
        if not isinstance(row, dict):
            raise ValueError(f"an object was expected, not {type(row).__name__}")
        return Columns(field).document(row, source, number)
    except ValueError as error:
        raise DataError(
            "method.corpus", f"{source} {number}: {error}", remedy="name the text by method.corpus_field"
        ) from None


def _lines(file: Path, a: int, b: int) -> bytes:
    """The lines of a file that begin at byte ``a`` or later, and before ``b``."""
    with opened(file) as stream:
        if a:
            stream.seek(a - 1)
            stream.readline()  # the rest of a line that began before; nothing but its end where one begins at a
        held = stream.read(max(0, b - stream.tell()))
        return held + stream.readline() if held and not held.endswith(b"\n") else held


class Scored:
    """The chunks that an earlier run scored, a row group a piece.

    Args:
        scores: its file.
    """

    def __init__(self, scores: ScoredCorpus) -> None:
        self.scores = scores

    @property
    def fingerprint(self) -> str:
        """Hash of the file."""
        return self.scores.fingerprint

    def pieces(self) -> list[str]:
        """Numbers of the row groups."""
        return [str(k) for k in range(self.scores.groups)]

    def documents(self, piece: str) -> Iterable[Document]:
        """The texts of all chunks."""
        return [Document(t) for texts in self.scores.texts(int(piece)) for t in texts]


# ---------------------------------------------------------------------------------------------------------------- chunks
def end_marks(tokenizer: Any) -> Tensor:
    """Which tokens end a sentence or a line, bool ``[V]``: those that end in ``.``, ``!``, ``?``, hold a line break, or end a text."""
    size = max(tokenizer.get_vocab().values()) + 1
    texts = tokenizer.batch_decode([[i] for i in range(size)])
    found = torch.tensor([t.rstrip(" \"')]”’").endswith((".", "!", "?", "。", "！", "？")) or "\n" in t for t in texts])
    if tokenizer.eos_token_id is not None:
        found[tokenizer.eos_token_id] = True
    return found


def chunked(task: Language, documents: Iterable[Document], ends: Tensor | None) -> dict[str, Tensor]:
    """Documents, each with its end token, laid end to end and cut: rows of at most ``task.length`` tokens.

    Args:
        task: whose tokenizer spells them.
        documents: of a piece.
        ends: which tokens a chunk is cut back to, bool ``[V]`` (`end_marks`); ``None`` cuts by length alone.

    Returns:
        ``ids`` int32 ``[n, T]``, padded at the right, and ``size`` int32 ``[n]``, 2 or more: a last token that stands alone
        is left out, for nothing of it could be predicted.
    """
    parts: list[np.ndarray[Any, Any]] = []
    held: list[Document] = []

    def flush() -> None:
        parts.append(np.fromiter((i for row in spell(task, held) for i in row.ids), dtype=np.int32))
        held.clear()

    for document in documents:
        held.append(document)
        if len(held) == TOGETHER:
            flush()
    if held:
        flush()
    stream = torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *parts]))
    flags = torch.ones(len(stream), dtype=torch.bool) if ends is None else ends[stream.long()]
    return rows_of([stream[a:b] for a, b in cut_points(flags, task.length) if b - a > 1], task)


def rows_of(chunks: Sequence[Tensor], task: Language) -> dict[str, Tensor]:
    """Chunks of tokens as rows ``ids`` int32 ``[n, T]`` with their ``size`` int32 ``[n]``."""
    ids = torch.full((len(chunks), task.length), pad_id(task.tokenizer), dtype=torch.int32)
    for i, chunk in enumerate(chunks):
        ids[i, : len(chunk)] = chunk
    return {"ids": ids, "size": torch.tensor([len(c) for c in chunks], dtype=torch.int32)}


def respelled(task: Language, chunks: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """Texts of chunks in the spelling of another tokenizer: a row each, cut off at ``task.length`` tokens."""
    spelled = iter(spell(task, [Document(t) for texts in chunks for t in texts]))
    end = task.tokenizer.eos_token_id
    rows = []
    for texts in chunks:
        ids = [i for _ in texts for i in next(spelled).ids]
        if ids and ids[-1] == end:
            ids = ids[:-1]  # the chunk may go on where its text ends here
        rows.append(torch.tensor(ids[: task.length], dtype=torch.int32))
    return rows_of(rows, task)


def tokenizer_hash(tokenizer: Any) -> str:
    """What a tokenizer is: its vocabulary, its special tokens, and how it cuts a few texts."""
    cut = [tokenizer(p, verbose=False)["input_ids"] for p in PROBES]
    return digest("tokenizer", sorted(tokenizer.get_vocab().items()), cut, tokenizer.eos_token_id)


class Chunks:
    """Rows of tokens on disk as training data: they are mapped into memory, and only the rows of a batch are read.

    A batch is one of `limbeck.tasks.tokens.TokenData`. Further tensors ``[n, ...]`` by row may stand beside it.

    Args:
        rows: what the stage that made the chunks left.
        task: of the run.
        places: which rows, in this order, int64 ``[n]``; all of them by default.
        **beside: further values of each place ``[n, ...]``.
    """

    def __init__(self, rows: Recorded, task: Language, places: Tensor | None = None, **beside: Tensor) -> None:
        self.rows, self.numbers, self.beside = rows, rows.items, beside
        self.places = torch.arange(len(self.numbers)) if places is None else places
        if not len(self.numbers):
            raise DataError(
                "task.data", "the corpus has too little text for one chunk", remedy="add text, or lower task.length"
            )
        self.tokens_per_byte = None

    def __len__(self) -> int:
        return len(self.places)

    def raw(self, items: Tensor) -> dict[str, Tensor]:
        """``ids`` int32 ``[n, T]`` and ``size`` int32 ``[n]``."""
        return self.rows.fetch(self.numbers[self.places[items]])

    def fetch(self, items: Tensor) -> Batch:
        """The rows as a batch, every token counting."""
        found = self.raw(items)
        none = torch.zeros(len(items), dtype=torch.long)
        batch = make_batch(found["ids"].long(), found["size"].long(), none, none)
        return batch | {name: values[items] for name, values in self.beside.items()}

    @property
    def fingerprint(self) -> str:
        """Hash of the rows, and of which are taken."""
        return digest("chunks", self.rows.fingerprint, self.places, *sorted(self.beside), *self.beside.values())


def check_plain_text(task: Language, whose: str) -> None:
    """Refuse prompts with responses.

    Raises:
        ConfigError: the task has such pairs, or counts no other tokens than those of responses.
    """
    if task.texts.pairs:
        raise ConfigError(
            "task.data",
            f"{whose} learns from plain text, and these are {counted(len(task.texts.train), 'prompt')} with responses",
            expected="documents of text",
        )


__all__ = [
    "Chunks",
    "Corpus",
    "Held",
    "Scored",
    "Streamed",
    "check_plain_text",
    "chunked",
    "end_marks",
    "respelled",
    "rows_of",
    "tokenizer_hash",
]
