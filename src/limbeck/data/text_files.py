"""Where text lies: files, JSON lines, parquet, Hugging Face data sets; documents, pairs, or conversations."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any, ClassVar, Literal

from limbeck.data.cells import check_size, is_missing
from limbeck.data.columns import OnBadRows
from limbeck.data.delimited import read_delimited
from limbeck.data.hub import hub_parts
from limbeck.data.items import as_path
from limbeck.data.listing import list_all
from limbeck.data.names import counted, is_blank, some, split_of
from limbeck.data.text import Document, TextSource
from limbeck.data.text_rows import Columns, by_fault
from limbeck.errors import DataError, OutOfMemory, human, nearest, require
from limbeck.grammar.settings import Count, settings
from limbeck.storage.memory import available
from limbeck.storage.plain import check_plain, opened, read_bytes

NAMES = {
    "source": {
        "text": "TextFiles",
        "text-csv": "TextCsv",
        "text-jsonl": "TextJsonl",
        "text-parquet": "TextParquet",
        "text-hf": "TextHuggingFace",
    },
    "source for TextSource": {
        "csv": "TextCsv",
        "jsonl": "TextJsonl",
        "parquet": "TextParquet",
        "hf": "TextHuggingFace",
    },
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class TextFiles(TextSource):
    """Text files: one, or a folder of them.

    Files or sub-folders called train, valid (val, validation, dev) and test are taken as the splits.

    Args:
        path: a ``.txt``, ``.md``, ``.rst`` or ``.text`` file (``.gz`` too), or a folder with such files.
        encoding: how bytes are read; a byte order mark wins over it.
        unit: what one document is: a ``file``, a ``paragraph`` between blank lines, or a ``line``.
        bad_files: ``error`` names every unreadable file and stops; ``skip`` leaves them out and says so.
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = (".txt", ".md", ".rst", ".text")

    path: str
    encoding: str = "utf-8"
    unit: Literal["file", "paragraph", "line"] = "file"
    bad_files: Literal["error", "skip"] = "error"

    def validate(self) -> None:
        """An encoding that Python knows."""
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(
                f"encoding {self.encoding!r} is unknown to Python; utf-8, latin-1 and cp1252 are common"
            ) from None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.long = self.unit == "file"

    def read(self) -> dict[str, list[Document]]:
        """The files' texts; DataError names every file that cannot be read."""
        found: dict[str, list[Document]] = {}
        bad: list[str] = []
        files, notes = find(self.path, self.SUFFIXES)
        for split, name, file in files:
            try:
                text = decode(load_bytes(file), file, self.encoding)
            except DataError as error:
                bad.append(f"{name}: {error.problem}")
                continue
            found.setdefault(split, []).extend(self._documents(text, name))
        if bad and self.bad_files == "error":
            raise DataError(
                "task.data.path",
                f"{counted(len(bad), 'file')} cannot be read as {self.encoding}: {'; '.join(bad[:8])}",
                remedy="set task.data.encoding=latin-1 (or what they are), or task.data.bad_files=skip",
            )
        if bad:
            notes.append(f"{counted(len(bad), 'unreadable file')} left out: {'; '.join(bad[:8])}")
        self.notes = notes
        return found

    def _documents(self, text: str, name: str) -> Iterator[Document]:
        """The units; blank lines stand between paragraphs, and are no document."""
        if self.unit == "file":
            yield Document(text, source=name)
            return
        first = 1
        held: list[str] = []
        for number, line in enumerate([*text.split("\n"), ""], 1):
            if is_blank(line) and held:
                yield Document("\n".join(held), source=f"{name} line", number=first)
                held = []
            elif not is_blank(line) and self.unit == "line":
                yield Document(line, source=f"{name} line", number=number)
            elif not is_blank(line):
                first = first if held else number
                held.append(line)


@settings
class TextRows(TextSource):
    """What sources of rows share.

    Args:
        field: the key that holds the text; dots go into nested objects and lists (``instances.0.output``). By default
            ``text``; where there is none, a conversation (``messages``, ``conversations`` or ``chat``) or a pair (``prompt``
            and ``completion`` or ``response``, ``instruction`` and ``output``, ``question`` and ``answer``).
        prompt: the key that holds the prompt; with it, ``response`` is read instead of ``field``.
        response: the key that holds the response.
        messages: the key that holds a conversation: a list of ``{"role": ..., "content": ...}`` (or ``from``, ``value``).
        bad_rows: ``error`` names every row that cannot be read and stops; ``skip`` leaves them out and says so.
        input: the key of what an instruction is about, which follows the prompt after a blank line.
        system: the key of a system prompt; by default ``system`` where there is one beside a conversation or a pair.
        tools: the key of the tools that a conversation may call (a list of JSON schemas); by default ``tools``.
        roles: what the data call who speaks: system, user, assistant or tool (``{narrator: user}``).
    """

    neutral = ("input", "system", "tools", "roles")

    _: KW_ONLY
    field: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    bad_rows: OnBadRows = "error"
    input: str | None = None
    system: str | None = None
    tools: str | None = None
    roles: dict[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.columns = Columns(
            self.field, self.prompt, self.response, self.messages, self.input, self.system, self.tools, self.roles
        )

    def _documents(
        self, rows: Iterable[tuple[str, str, int, Any]], known: Sequence[str] = (), notes: Sequence[str] = ()
    ) -> dict[str, list[Document]]:
        """Documents of rows (split, source, number, the row or what is wrong with it), by split."""
        rows = list(rows)
        columns, said = self.columns.settled([row for *_, row in rows if isinstance(row, dict)])
        self.answers = columns.prompt is not None and self.prompt is None
        found: dict[str, list[Document]] = {}
        bad: list[tuple[str, int, str]] = []
        for split, source, number, row in rows:
            try:
                if isinstance(row, Exception):
                    raise row
                if not isinstance(row, dict):
                    raise ValueError(f"an object was expected, not {type(row).__name__}")
                found.setdefault(split, []).append(columns.document(row, source, number, known))
            except ValueError as error:
                bad.append((source, number, str(error)))
        self.notes = [*notes, *said]
        if bad and self.bad_rows == "error":
            raise DataError(
                "data",
                f"{counted(len(bad), 'row')} cannot be read: {by_fault(bad)}",
                remedy="mend them, leave them out with task.data.bad_rows=skip, or name other fields (task.data.field, "
                "task.data.prompt with task.data.response, or task.data.messages)",
            )
        if bad:
            self.notes.append(f"{counted(len(bad), 'row')} of {len(rows)} left out: {by_fault(bad)}")
        return found


@settings
class TextJsonl(TextRows):
    """JSON lines: one object a line; a ``.json`` file may be a list of objects.

    Args:
        path: a ``.jsonl``, ``.ndjson`` or ``.json`` file (``.gz`` too), or a folder of them; files called train, valid
            and test are the splits.
        encoding: how bytes are read; a byte order mark wins over it.
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")

    path: str
    encoding: str = "utf-8"

    def read(self) -> dict[str, list[Document]]:
        """The lines' texts; DataError names every line that cannot be read."""
        files, notes = find(self.path, self.SUFFIXES)

        def rows() -> Iterator[tuple[str, str, int, Any]]:
            for split, name, file in files:
                text = decode(load_bytes(file), file, self.encoding)
                listed = parsed(text) if ".json" in file.suffixes and text.lstrip()[:1] == "[" else None
                if isinstance(listed, list) and all(isinstance(row, dict) for row in listed):
                    yield from ((split, f"{name} object", number, row) for number, row in enumerate(listed, 1))
                    continue
                for number, line in enumerate(text.split("\n"), 1):
                    if line.strip():
                        yield split, f"{name} line", number, parsed(line)

        return self._documents(rows(), notes=notes)


def parsed(line: str) -> Any:
    """A line of JSON, or the ValueError that says what is wrong with it."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"{error.msg.removesuffix(' at')} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return ValueError(str(error))


@settings
class TextCsv(TextRows):
    """CSV or TSV tables with columns of text: fields may be quoted and hold line breaks.

    Args:
        path: a ``.csv`` or ``.tsv`` file, or a folder of them; files called train, valid and test are the splits.
        delimiter: what stands between fields; by default a tab in ``.tsv``, else what the header line uses most of
            ``,`` ``;`` tab and ``|``.
        encoding: how bytes are read; a byte order mark wins over it.
    """

    path: str
    delimiter: str | None = None
    encoding: str = "utf-8"

    def validate(self) -> None:
        """One character between fields."""
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError("delimiter must be one character, or null")

    def read(self) -> dict[str, list[Document]]:
        """The rows' texts; DataError names every row that holds none."""
        known: dict[str, None] = {}
        rows: list[tuple[str, str, int, Any]] = []
        files, notes = find(self.path, (".csv", ".tsv"))
        for split, name, file in files:
            check_plain(file)
            delimiter = self.delimiter or ("\t" if file.name.lower().endswith(".tsv") else None)
            table = read_delimited(file, self.encoding, delimiter, set, self.bad_rows == "skip")
            notes += table.notes
            known |= dict.fromkeys(table.names)
            columns = {n: [None if is_missing(c) else c for c in table.columns[n]] for n in table.names}
            for i in range(table.n):
                rows.append((split, f"{name} row", i + 1, {n: cells[i] for n, cells in columns.items()}))
        return self._documents(rows, list(known), notes)


@settings
class TextParquet(TextRows):
    """Parquet tables with a column of text.

    Args:
        path: a ``.parquet`` file, or a folder of them; files called train, valid and test are the splits.
    """

    path: str

    def read(self) -> dict[str, list[Document]]:
        """The rows' texts; DataError names every row that holds none."""
        parquet = require("pyarrow.parquet", "language", "reading parquet files")
        known: dict[str, None] = {}
        rows: list[tuple[str, str, int, Any]] = []
        files, notes = find(self.path, (".parquet",))
        for split, name, file in files:
            try:
                check_plain(file)
                table = parquet.ParquetFile(file)
                check_size(table.metadata, file)
                names = list(table.schema_arrow.names)
                wanted = [n for n in self.columns.tops if n in names]
                found = table.read(columns=wanted or None).to_pylist()
            except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
                raise DataError("task.data.path", f"{file} is no readable parquet file: {error}") from None
            known |= dict.fromkeys(names)
            rows += [(split, f"{name} row", number, row) for number, row in enumerate(found, 1)]
        return self._documents(rows, list(known), notes)


@settings
class TextHuggingFace(TextRows):
    """A data set of the Hugging Face Hub, or a local folder that the ``datasets`` library reads.

    Args:
        name: the id (``wikitext``) or folder.
        subset: the data set's own configuration name (``wikitext-2-raw-v1``).
        train, valid, test: which of its splits they are; by default those whose names say so, several joined to one.
        limit: read at most so many rows of each split.
    """

    paths: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    subset: str | None = None
    train: str | None = None
    valid: str | None = None
    test: str | None = None
    limit: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.asked = {"train": self.train, "valid": self.valid, "test": self.test}

    def read(self) -> dict[str, list[Document]]:
        """The rows' texts; DataError names every row that holds none."""
        parts, notes = hub_parts(self.name, self.subset, self.asked)
        sizes = {part.name: len(part.rows) for part in parts}
        cut = [n for n in sizes if self.limit is not None and sizes[n] > self.limit]
        if cut:
            notes.append(f"of {some([f'{n} ({sizes[n]:,})' for n in cut])} the first {self.limit:,} rows were read")

        def rows() -> Iterator[tuple[str, str, int, Any]]:
            for part in parts:
                count = len(part.rows) if self.limit is None else min(self.limit, len(part.rows))
                for number, row in enumerate(part.rows.select(range(count)), 1):
                    yield part.split, f"{part.name} row", number, row

        return self._documents(rows(), notes=notes)


# ---------------------------------------------------------------------------------------------------------------- files
def find(
    path: str, suffixes: tuple[str, ...], argument: str = "task.data.path"
) -> tuple[list[tuple[str, str, Path]], list[str]]:
    """The files of a source with their split and their name for messages, in a fixed order; and what was left out.

    Hidden files and folders are passed over and no folder is entered twice. Names count as splits only where one of them
    is train; otherwise every file belongs to ``all``.

    Args:
        path: a file or folder.
        suffixes: how files end; each with ``.gz`` too.
        argument: the setting that names it, for messages.

    Raises:
        DataError: there is no such path (the nearest names are given), or no file with one of the suffixes.
    """
    root = as_path(path, argument)
    if not root.exists():
        parent = root.parent if root.parent.is_dir() else None
        close = nearest(root.name, [p.name for p in parent.iterdir()]) if parent else []
        raise DataError(
            argument,
            "there is no such file or folder",
            given=str(path),
            remedy=f"did you mean {str(root.parent / close[0])!r}?" if close else "give the path of a file or folder",
        )
    endings = (*suffixes, *(suffix + ".gz" for suffix in suffixes))
    if root.is_file():
        if not root.name.lower().endswith(endings):
            raise DataError(
                argument,
                given=str(path),
                expected=f"a file that ends in {', '.join(endings)}",
                remedy=_other(root),
            )
        return [("all", root.name, root)], []
    listing = list_all(root, lambda name: name.lower().endswith(endings), "text")
    if not listing.found:
        raise DataError(argument, f"the folder holds no file that ends in {', '.join(endings)}", given=str(path))
    notes = listing.notes()
    named = [(_split_of(file.name), file) for file in listing.found]
    if any(split == "train" for split, _ in named):
        rest = [file.name for split, file in named if not split]
        if rest:
            notes.append(f"files whose names say no split belong to train: {some(rest, 5)}")
        return [(split or "train", file.name, file.path) for split, file in named], notes
    if any(split for split, _ in named):
        odd = [file.name for split, file in named if split]
        notes.append(f"no file is called train, so that {some(odd, 5)} and all others are dealt anew")
    return [("all", file.name, file.path) for _, file in named], notes


def _other(file: Path) -> str:
    name = file.name.lower()
    known = [
        (TextFiles.SUFFIXES, "text"),
        (TextJsonl.SUFFIXES, "jsonl"),
        ((".parquet",), "parquet"),
        ((".csv", ".tsv"), "csv"),
    ]
    for suffixes, source in known:
        if name.endswith((*suffixes, *(s + ".gz" for s in suffixes))):
            return f"for this file say {source}:{file}"
    return "known: text:FILE, jsonl:FILE, csv:FILE, parquet:FILE, hf:NAME"


def _split_of(name: str) -> str:
    return next((split for part in name.split("/") if (split := split_of(part))), "")


def load_bytes(file: Path) -> bytes:
    """A file's bytes, unpacked if its name ends in ``.gz``."""
    try:
        if not file.name.lower().endswith(".gz"):
            return read_bytes(file)
        free = available()
        with opened(file) as stream, gzip.GzipFile(fileobj=stream) as packed:
            raw = packed.read(-1 if free is None else free // 2)
            if free is not None and packed.read(1):
                said = f"{file} unpacks to more than {human(free // 2, 'B')}, half of the memory that is free"
                raise OutOfMemory("task.data.path", said, remedy="divide it into several files")
        return raw
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError("task.data.path", f"cannot be read: {why}", given=str(file)) from None


_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(raw: bytes, file: Path, encoding: str = "utf-8") -> str:
    """Bytes as text with plain line ends. A byte order mark decides the encoding, and goes.

    Raises:
        DataError: the bytes are not in that encoding, or no text at all.
    """
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), encoding)
    try:
        text = raw.decode(encoding)
    except UnicodeError as error:
        at = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(
            "task.data.path",
            f"not {encoding}{at}",
            given=str(file),
            remedy="set task.data.encoding=latin-1 (or what it is)",
        ) from None
    if "\0" in text:
        raise DataError("task.data.path", "no text: it holds zero bytes", given=str(file))
    return text.replace("\r\n", "\n").replace("\r", "\n")
