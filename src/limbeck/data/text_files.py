"""Where text lies: files, JSON lines, parquet, Hugging Face data sets; documents, pairs, or conversations."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from limbeck.data.cells import check_size
from limbeck.data.columns import OnBadRows
from limbeck.data.items import as_path
from limbeck.data.listing import list_all
from limbeck.data.names import choose_splits, counted, is_blank, some, split_of
from limbeck.data.text import Document, TextSource, grouped
from limbeck.errors import DataError, OutOfMemory, first_line, human, nearest, require
from limbeck.grammar.settings import Count, settings
from limbeck.storage.memory import available
from limbeck.storage.plain import check_folder, check_plain, opened, read_bytes

NAMES = {
    "source": {
        "text": "TextFiles",
        "text-jsonl": "TextJsonl",
        "text-parquet": "TextParquet",
        "text-hf": "TextHuggingFace",
    }
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
class _Rows(TextSource):
    """What sources of rows share.

    Args:
        field: the key that holds the text; dots go into nested objects and lists (``instances.0.output``). By default
            ``text``; where there is none, conversations are looked for in ``messages``, ``conversations`` or ``chat``.
        prompt: the key that holds the prompt; with it, ``response`` is read instead of ``field``.
        response: the key that holds the response.
        messages: the key that holds a conversation: a list of ``{"role": ..., "content": ...}`` (or ``from``, ``value``).
        bad_rows: ``error`` names every row that cannot be read and stops; ``skip`` leaves them out and says so.
    """

    _: KW_ONLY
    field: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    bad_rows: OnBadRows = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.columns = Columns(self.field, self.prompt, self.response, self.messages)

    def _documents(
        self, rows: Iterable[tuple[str, str, int, Any]], known: Sequence[str] = (), notes: Sequence[str] = ()
    ) -> dict[str, list[Document]]:
        """Documents of rows (split, source, number, the row or what is wrong with it), by split."""
        rows = list(rows)
        columns, said = self.columns.settled([row for *_, row in rows if isinstance(row, dict)])
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
                f"{counted(len(bad), 'row')} cannot be read: {_by_fault(bad)}",
                remedy="mend them, leave them out with task.data.bad_rows=skip, or name other fields (task.data.field, "
                "task.data.prompt with task.data.response, or task.data.messages)",
            )
        if bad:
            self.notes.append(f"{counted(len(bad), 'row')} of {len(rows)} left out: {_by_fault(bad)}")
        return found


@settings
class TextJsonl(_Rows):
    """JSON lines: one object a line.

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
                for number, line in enumerate(decode(load_bytes(file), file, self.encoding).split("\n"), 1):
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
class TextParquet(_Rows):
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
class TextHuggingFace(_Rows):
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
        datasets = require("datasets", "language", "reading a Hugging Face data set")
        check_folder(self.name, "task.data.name")
        try:
            splits = datasets.load_dataset(self.name, self.subset)
        except Exception as error:  # the library raises a dozen kinds; all mean that this name gives no data here
            raise DataError(
                "task.data.name",
                f"the datasets library cannot load it: {first_line(error)}",
                given=self.name,
                remedy="check the name, task.data.subset, and that the machine is online or has it cached",
            ) from None
        sizes = {str(name): len(splits[name]) for name in splits}
        chosen, notes = choose_splits(sizes, self.asked if len(sizes) > 1 else {"train": next(iter(sizes), None)})
        cut = [n for n in chosen if self.limit is not None and sizes[n] > self.limit]
        if cut:
            notes.append(f"of {some([f'{n} ({sizes[n]:,})' for n in cut])} the first {self.limit:,} rows were read")

        def rows() -> Iterator[tuple[str, str, int, Any]]:
            for name, split in chosen.items():
                count = sizes[name] if self.limit is None else min(self.limit, sizes[name])
                for number, row in enumerate(splits[name].select(range(count)), 1):
                    yield split, f"{name} row", number, row

        return self._documents(rows(), notes=notes)


# ----------------------------------------------------------------------------------------------------------------- rows
ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""What other layouts call who speaks."""


@dataclass(frozen=True)
class Columns:
    """Which fields of a row hold the text, the prompt and the response, or the conversation.

    Attributes:
        text: the field of the text; ``None``: ``text``, or a conversation where there is one instead.
        prompt, response: the fields of a pair.
        messages: the field of a conversation.
    """

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None

    USUAL: ClassVar[tuple[str, ...]] = ("messages", "conversations", "conversation", "chat")

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.response is None):
            raise ValueError("prompt and response go together: name both, or neither")
        if self.messages is not None and (self.prompt is not None or self.text is not None):
            raise ValueError("messages holds whole conversations: name no field, prompt or response beside it")

    @property
    def tops(self) -> list[str]:
        """The top-level names of what is read."""
        named = [n for n in (self.prompt, self.response, self.messages) if n is not None]
        wanted = named or ([self.text] if self.text is not None else ["text", *self.USUAL])
        return [name.split(".")[0] for name in wanted]

    def settled(self, rows: Sequence[dict[str, Any]]) -> tuple[Columns, list[str]]:
        """The same with a field chosen where none was named, and a sentence about that."""
        if self.text is not None or self.prompt is not None or self.messages is not None:
            return self, []
        if not any("text" in row for row in rows):
            for name in self.USUAL:
                if any(isinstance(row.get(name), list) for row in rows):
                    return Columns(messages=name), [f"conversations are read from {name!r}"]
        return Columns("text"), []

    def document(self, row: dict[str, Any], source: str = "", number: int = 0, known: Sequence[str] = ()) -> Document:
        """The row as a document; ValueError with a sentence if a field is missing or holds no text."""
        if self.messages is not None:
            turns = _turns(_pick(row, self.messages, known, "a conversation", list), self.messages)
            answered = "\n".join(content for role, content in turns if role == "assistant")
            asked = "\n".join(content for role, content in turns if role != "assistant")
            return Document(answered, asked, turns, source, number)
        if self.prompt is not None and self.response is not None:
            text, prompt = (_pick(row, name, known) for name in (self.response, self.prompt))
            return Document(text, prompt, (), source, number)
        return Document(_pick(row, self.text or "text", known), "", (), source, number)


def _turns(messages: list[Any], field: str) -> tuple[tuple[str, str], ...]:
    turns = []
    for i, message in enumerate(messages, 1):
        where = f"turn {i} of {field!r}"
        if not isinstance(message, dict):
            raise ValueError(f"{where} is no object with role and content")
        role: Any = next((message[k] for k in ("role", "from") if k in message), None)
        content: Any = next((message[k] for k in ("content", "value") if k in message), None)
        if isinstance(content, list) and all(isinstance(c, dict) and isinstance(c.get("text"), str) for c in content):
            content = "".join(c["text"] for c in content)  # parts, of which all are text
        for what, value in (("role", role), ("content", content)):
            if value is None:
                raise ValueError(f"{where} has no {what}")
            if not isinstance(value, str):
                raise ValueError(f"{where} has {type(value).__name__} as {what}, not text")
        turns.append((ROLES.get(role.lower(), role.lower()), content))
    if not any(role == "assistant" for role, _ in turns):
        raise ValueError(f"nobody answers in {field!r}: it has no turn of the assistant")
    return tuple(turns)


def _pick(row: dict[str, Any], path: str, known: Sequence[str], what: str = "text", kind: type = str) -> Any:
    value: Any = row
    for part in [path] if path in row else path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            names = list(known) or list(row)
            close = nearest(path, names)
            hint = f"did you mean {close[0]!r}?" if close else f"fields: {', '.join(map(str, names[:12]))}"
            raise ValueError(f"no field {path!r}; {hint}")
    if not isinstance(value, kind):
        raise ValueError(f"field {path!r} holds {'nothing' if value is None else type(value).__name__}, not {what}")
    return value


def _by_fault(bad: Sequence[tuple[str, int, str]]) -> str:
    """Offending rows, those with the same fault together."""
    faults: dict[str, list[tuple[str, int]]] = {}
    for source, number, fault in bad:
        faults.setdefault(fault, []).append((source, number))
    said = [f"{grouped(places, 5)}: {fault}" for fault, places in list(faults.items())[:8]]
    return "; ".join(said) + ("; ..." if len(faults) > 8 else "")


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
    known = [(TextFiles.SUFFIXES, "text"), (TextJsonl.SUFFIXES, "text-jsonl"), ((".parquet",), "text-parquet")]
    for suffixes, source in known:
        if name.endswith((*suffixes, *(s + ".gz" for s in suffixes))):
            return f"for this file say {source}:{file}"
    return "known: text:FILE, text-jsonl:FILE, text-parquet:FILE, text-hf:NAME"


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
