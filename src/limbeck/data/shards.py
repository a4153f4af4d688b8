"""Corpora larger than memory: shards of JSON lines, parquet or tar that are read as they are learnt.

One pass through the files counts their rows, block by block, and hashes them; it is remembered. After that a row is known by its
number. An epoch goes through the blocks in an order drawn by key; neighbours in that order are mixed within windows of `buffer`
rows, likewise drawn by key. Which rows a step takes is therefore a function of its number: a run that was stopped goes on with
the same ones, and nothing before them is read again. In memory are the blocks of a window or two.
"""

from __future__ import annotations

import bisect
import glob
import hashlib
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.data.names import is_blank, split_of
from limbeck.data.text import Document, Texts
from limbeck.data.text_files import TextRows, find, parsed
from limbeck.data.text_rows import Columns
from limbeck.errors import DataError, human, require
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, settings
from limbeck.storage.disk import expanded
from limbeck.storage.memory import need
from limbeck.storage.plain import check_plain, opened
from limbeck.storage.store import remembered

NAMES = {"source": {"shards": "Shards"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".tar")
"""What shards may be."""

BLOCK = 1 << 20
"""Bytes of a block of lines or of a tar archive, about; in parquet a block is a row group."""

SEEN = 512
"""Rows that are looked at before training: their layout, and how many of them fit."""


@settings
class Shards(TextRows):
    """Shards that are read while they are learnt: a folder, a file or a pattern of JSON lines, parquet or tar (WebDataset).

    A sample of a tar archive is a ``.json`` file, which is read like a line, or a ``.txt`` file. Files called valid and test
    are held in memory; where there are none, rows spread over the corpus are set aside, and left out of training.

    Args:
        path: a folder, a file, or a pattern (``corpus/*.jsonl``).
        buffer: rows among which neighbours are mixed; the blocks that they stand in are in memory.
        held_out: rows set aside for choosing, and as many for evaluation, where no files are called so.
    """

    path: str
    buffer: Count = 10_000
    held_out: Count = 200

    streamed: ClassVar[bool] = True

    def read(self) -> dict[str, list[Document]]:
        """Not in memory.

        Raises:
            DataError: always; only the task language reads a stream.
        """
        raise DataError(
            "task.data",
            "shards are a stream, which the task language alone reads, undivided and unchanged",
            given="shards",
            remedy="name the files themselves: jsonl:FILE, parquet:FILE",
        )

    def streaming(self) -> Texts:
        """The training rows as a stream; rows for choosing and evaluation in memory."""
        files = self._files()
        split = {s: [f for f in files if f[0] == s] for s in ("train", "valid", "test")}
        stream = Stream([(name, file) for s, name, file in files if s in ("train", "all")], self)
        notes = [*self.notes, *stream.notes]
        found: dict[str, list[Document]] = {}
        for s in ("valid", "test"):
            if split[s]:
                whole = Stream([(name, file) for _, name, file in split[s]], self, stream.columns)
                found[s] = [d for d in whole if not is_blank(d.text)]
        missing = [s for s in ("test", "valid") if not found.get(s)]
        if missing:
            count = min(self.held_out, len(stream) // (4 * len(missing)))
            if not count:
                raise DataError(
                    "task.data.path", f"{len(stream)} rows are too few to set some aside", expected="at least 8 rows"
                )
            places = (torch.arange(count * len(missing)) * len(stream) // (count * len(missing))).tolist()
            for i, s in enumerate(missing):
                taken = {d.key: d for n in places[i :: len(missing)] if not is_blank((d := stream[n]).text)}
                found[s] = [
                    d for k, d in taken.items() if all(k != o.key for o in found.get("test", []) if s == "valid")
                ]
                notes.append(
                    f"no {s} shards: {len(found[s])} of {len(stream):,} rows set aside (task.data.held_out={self.held_out})"
                )
        stream.held = frozenset(d.key for s in ("valid", "test") for d in found[s])
        stream.looked_at = stream.first()
        if not stream.looked_at:
            raise DataError("task.data.path", "there is no text in it that could be learnt", given=self.path)
        pairs = any(d.prompt or d.turns for d in stream.looked_at)
        answers = stream.columns.prompt is not None and self.prompt is None
        return Texts(stream, found["valid"], found["test"], pairs, notes, answers=answers)  # type: ignore[arg-type]

    def _files(self) -> list[tuple[str, str, Path]]:
        """Split, name and path of every shard, in order."""
        if not glob.has_magic(self.path) or expanded(self.path).exists():
            packed = [p for p in expanded(self.path).glob("**/*") if p.suffix in (".gz", ".zst", ".bz2", ".xz")]
            plain = any(p.name.lower().endswith(SUFFIXES) for p in expanded(self.path).glob("**/*"))
            if (packed and not plain) or self.path.endswith((".gz", ".zst", ".bz2", ".xz")):
                raise _packed(packed[0].name if packed else self.path)
            files, notes = find(self.path, SUFFIXES)
            self.notes = notes
            bad = [name for _, name, file in files if file.suffix in (".gz",)]
            if bad:
                raise _packed(bad[0])
            return files
        paths = sorted(Path(p) for p in glob.glob(str(expanded(self.path)), recursive=True) if Path(p).is_file())
        odd = [p.name for p in paths if not p.name.lower().endswith(SUFFIXES)]
        if odd or not paths:
            raise DataError(
                "task.data.path",
                f"{odd[0]} is no shard" if odd else "no file fits the pattern",
                given=self.path,
                expected=f"files that end in {', '.join(SUFFIXES)}",
            )
        named = [(split_of(p.stem), p) for p in paths]
        train = any(s == "train" for s, _ in named)
        self.notes = []
        return [((s or "train") if train else "all", p.name, p) for s, p in named]


def _packed(name: str) -> DataError:
    return DataError(
        "task.data.path",
        f"{name} is packed, and packed files cannot be read from their middle",
        remedy="unpack the shards, or write them as parquet, which packs its columns itself",
    )


@dataclass(frozen=True)
class Block:
    """Some neighbouring rows of a shard.

    Attributes:
        file: its number.
        begin: where the block begins: a byte, or the number of a row group.
        rows: how many there are.
        first: the number of its first row in the shard, from 1 on.
    """

    file: int
    begin: int
    rows: int
    first: int


class Stream(Sequence[Document]):
    """The rows of shards as documents, read block by block when they are asked for.

    Args:
        files: (name, path) of each shard.
        source: how its rows are read.
        columns: their fields, where another stream has settled them.

    Attributes:
        columns: the fields that are read.
        held: keys of documents that are evaluated.
        looked_at: the first documents that are learnt.
        digest: a hash of all shards' content.
        notes: what is to be said.
    """

    KEPT: ClassVar[int] = 64 << 20
    """Bytes of blocks that are kept beside those of the present window."""

    def __init__(self, files: Sequence[tuple[str, Path]], source: Shards, columns: Columns | None = None) -> None:
        self.files, self.source = list(files), source
        self.held: frozenset[str] = frozenset()
        self.looked_at: list[Document] = []
        self.notes: list[str] = []
        self.blocks: list[Block] = []
        content = hashlib.blake2b(digest_size=16)
        size = 0
        for i, (_, file) in enumerate(self.files):
            check_plain(file)
            stat = file.stat()
            size += stat.st_size
            parts = {"format": 1, "file": str(file.resolve()), "size": stat.st_size, "changed": stat.st_mtime_ns}
            found = remembered("shard", parts, partial(_indexed, file))
            content.update(str(found["hash"]).encode())
            first = 1
            for begin, rows in zip(found["begins"].tolist(), found["rows"].tolist(), strict=True):
                self.blocks.append(Block(i, begin, rows, first))
                first += rows
        self.digest = content.hexdigest()
        self.ends = list(accumulate(b.rows for b in self.blocks))
        if not self.ends:
            raise DataError("task.data.path", "there are no rows in it", given=source.path)
        self._blocks: OrderedDict[int, list[Any]] = OrderedDict()
        if columns is None:
            looked = [row for row in islice(self._rows(), SEEN) if isinstance(row, dict)]
            columns, said = source.columns.settled(looked)
            self.notes += said
        self.columns = columns
        self.notes.append(
            f"{len(self):,} rows in {len(self.files)} shards ({human(size, 'B')}) are read as they are learnt, mixed within "
            f"{source.buffer:,} rows (task.data.buffer)"
        )

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: Any) -> Any:
        """The document of a row, or those of a slice; DataError where one cannot be read."""
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        at, inside = self.place(number)
        return self.document(at, inside)

    def __iter__(self) -> Iterator[Document]:
        return (self.document(at, i) for at, block in enumerate(self.blocks) for i in range(block.rows))

    def first(self, count: int = SEEN) -> list[Document]:
        """The first rows that are learnt."""
        return list(islice((d for d in self if d.key not in self.held and not is_blank(d.text)), count))

    def place(self, number: int) -> tuple[int, int]:
        """A row's block, and its place there."""
        at = bisect.bisect_right(self.ends, number)
        return at, number - (self.ends[at] - self.blocks[at].rows)

    def document(self, at: int, inside: int) -> Document:
        """A row of a block as a document.

        Raises:
            DataError: it cannot be read; with ``bad_rows=skip`` it is a document without text.
        """
        block, row = self.blocks[at], self._block(at)[inside]
        name = self.files[block.file][0]
        source, number = f"{name} row", block.first + inside
        try:
            if isinstance(row, Exception):
                raise row
            if not isinstance(row, dict):
                raise ValueError(f"an object was expected, not {type(row).__name__}")
            return self.columns.document(row, source, number)
        except ValueError as error:
            if self.source.bad_rows == "skip":
                return Document("", source=source, number=number)
            raise DataError(
                "data",
                f"{source} {number}: {error}",
                remedy="mend it, leave such rows out with task.data.bad_rows=skip, or name other fields (task.data.field, "
                "task.data.prompt with task.data.response, or task.data.messages)",
            ) from None

    def order(self, draws: Draws, epoch: int, low: int, high: int) -> Tensor:
        """Rows ``low`` to ``high - 1`` of an epoch, int64: blocks in a drawn order, mixed within windows."""
        blocks = draws.permutation(f"epoch{epoch} blocks", len(self.blocks)).tolist()
        ends = list(accumulate(self.blocks[b].rows for b in blocks))
        size, found = self.source.buffer, []
        for window in range(low // size, (high - 1) // size + 1):
            begin, end = window * size, min((window + 1) * size, len(self))
            mixed = draws.permutation(f"epoch{epoch} window{window}", end - begin) + begin
            for n in mixed[max(low - begin, 0) : high - begin].tolist():
                at = bisect.bisect_right(ends, n)
                b = blocks[at]
                found.append(self.ends[b] - self.blocks[b].rows + n - (ends[at] - self.blocks[b].rows))
        return torch.tensor(found, dtype=torch.int64)

    def _rows(self) -> Iterator[Any]:
        return (row for at in range(len(self.blocks)) for row in self._block(at))

    def _block(self, at: int) -> list[Any]:
        """The rows of a block, kept as long as there is room."""
        if at in self._blocks:
            self._blocks.move_to_end(at)
            return self._blocks[at]
        block = self.blocks[at]
        rows = _read(self.files[block.file][1], block.begin, block.rows)
        if len(rows) != block.rows:
            raise DataError(
                "task.data.path",
                f"{self.files[block.file][0]} has changed since it was counted",
                remedy="begin again: type the command once more",
            )
        self._blocks[at] = rows
        room = 2 + -(-self.source.buffer // max(1, len(self) // len(self.blocks))) + self.KEPT // BLOCK
        while len(self._blocks) > room:
            self._blocks.popitem(last=False)
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": OrderedDict()}


# ---------------------------------------------------------------------------------------------------------------- shards
def _indexed(file: Path) -> dict[str, Any]:
    """Where the blocks of a shard begin, how many rows each has, and a hash of its content."""
    low = file.name.lower()
    content = hashlib.blake2b(digest_size=16)
    begins: list[int] = []
    rows: list[int] = []
    if low.endswith(".parquet"):
        table = _table(file)
        about = table.metadata
        begins, rows = (
            list(range(about.num_row_groups)),
            [about.row_group(k).num_rows for k in range(about.num_row_groups)],
        )
        need(
            max((about.row_group(k).total_byte_size for k in begins), default=0),
            "task.data",
            f"a row group of {file}",
            "write it with smaller row groups",
        )
        _hash(file, content)
    elif low.endswith(".tar"):
        _hash(file, content)
        with opened(file) as stream:
            last = ""
            for member in _members(stream, file):
                key = _key(member.name)
                if key == last:
                    continue
                last = key
                if not begins or member.offset - begins[-1] >= BLOCK:
                    begins.append(member.offset)
                    rows.append(0)
                rows[-1] += 1
    else:
        at = 0
        with opened(file) as stream:
            while chunk := stream.read(BLOCK):
                chunk += stream.readline()
                content.update(chunk)
                lines = sum(1 for line in chunk.split(b"\n") if line.strip())
                if lines:
                    begins.append(at)
                    rows.append(lines)
                at += len(chunk)
    kept = [i for i, n in enumerate(rows) if n]
    return {
        "hash": content.hexdigest(),
        "begins": torch.tensor([begins[i] for i in kept], dtype=torch.int64),
        "rows": torch.tensor([rows[i] for i in kept], dtype=torch.int64),
    }


def _hash(file: Path, content: Any) -> None:
    with opened(file) as stream:
        while chunk := stream.read(BLOCK):
            content.update(chunk)


def _read(file: Path, begin: int, rows: int) -> list[Any]:
    """The rows of a block: objects, or what is wrong with them."""
    low = file.name.lower()
    if low.endswith(".parquet"):
        found: list[Any] = _table(file).read_row_group(begin).to_pylist()
        return found
    with opened(file) as stream:
        stream.seek(begin)
        if low.endswith(".tar"):
            return _samples(stream, file, rows)
        chunk = stream.read(BLOCK)
        chunk += stream.readline()
    lines = [line for line in chunk.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    return [_line(line) for line in lines]


def _line(line: bytes) -> Any:
    try:
        return parsed(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return ValueError(f"not utf-8 at byte {error.start}")


def _members(stream: Any, file: Path) -> Iterator[tarfile.TarInfo]:
    """The texts of a tar archive, from where the stream stands."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.isfile() and member.name.lower().endswith((".json", ".txt")):
                    yield member
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
    except tarfile.TarError as error:
        raise DataError("task.data.path", f"{file.name} is no readable tar archive: {error}") from None


def _key(name: str) -> str:
    """Of the files of one sample the common beginning of their names, as WebDataset has it."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _samples(stream: Any, file: Path, rows: int) -> list[Any]:
    """The next samples of a tar archive: of one with several texts, JSON wins."""
    found: dict[str, Any] = {}
    for member in _members(stream, file):
        key = _key(member.name)
        if key not in found and len(found) == rows:
            break
        here = stream.tell()
        stream.seek(member.offset_data)
        raw = stream.read(member.size)
        stream.seek(here)
        if member.name.lower().endswith(".json"):
            found[key] = _line(raw)
        elif key not in found:
            try:
                found[key] = {"text": raw.decode("utf-8")}
            except UnicodeDecodeError as error:
                found[key] = ValueError(f"{member.name} is not utf-8 at byte {error.start}")
    return list(found.values())


def _table(file: Path) -> Any:
    parquet = require("pyarrow.parquet", "language", "reading parquet files")
    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise DataError("task.data.path", f"{file} is no readable parquet file: {error}") from None


__all__ = ["Shards", "Stream"]
