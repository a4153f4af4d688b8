"""Text as users have it: the embedded default, files, JSON lines, parquet, Hugging Face data sets.

A source reads documents (or pairs of prompt and response) and deals them into train, valid and test *by document*, so
that no text is learnt and judged at once. The deal depends on the content alone: the same texts in another order, under
other names or with one more beside them are dealt the same way, as far as the shares allow.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from limbeck.data.names import SPLITS
from limbeck.errors import DataError, first_line, nearest, require
from limbeck.grammar.component import Component

FEW = 20  # fewer documents than this cannot be dealt by document: they are cut into passages first


@dataclass(frozen=True)
class Document:
    """One text, or one answer with the prompt it follows.

    Attributes:
        text: the text, or the response.
        prompt: what stands before it; empty for plain text.
    """

    text: str
    prompt: str = ""

    @property
    def key(self) -> str:
        """A content hash, the same wherever the document lies."""
        return hashlib.blake2b(
            f"{self.prompt}\x1e{self.text}".encode("utf-8", "surrogatepass"), digest_size=16
        ).hexdigest()


@dataclass
class Texts:
    """A corpus, dealt.

    Attributes:
        train, valid, test: the documents of each split; no document is in two.
        pairs: whether they are prompts with responses.
        notes: what was left out or cut, in sentences.
    """

    train: list[Document]
    valid: list[Document]
    test: list[Document]
    pairs: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """A content hash of all splits."""
        digest = hashlib.blake2b(digest_size=16)
        for name in ("train", "valid", "test"):
            digest.update(name.encode())
            for document in getattr(self, name):
                digest.update(document.key.encode())
        return digest.hexdigest()


class TextSource(Component):
    """Base of the text sources: where documents come from.

    A subclass defines ``read``; ``deal`` does the rest.
    """

    kind: ClassVar[str] = "source"
    paths: ClassVar[tuple[str, ...]] = ("path",)

    def read(self) -> dict[str, list[Document]]:
        """The documents by split: ``train`` with ``valid`` or ``test`` where the data names them, else ``all``."""
        raise TypeError(f"{type(self).__name__} must define read")

    def deal(self, valid: float = 0.05, test: float = 0.1) -> Texts:
        """Read and deal.

        Args:
            valid, test: shares of the characters that a split gets where the data itself names none.

        Raises:
            DataError: nothing to read, or too little to deal into three.
        """
        return deal(self.read(), valid, test, where=f"data ({type(self).__name__})")


def deal(found: dict[str, list[Document]], valid: float, test: float, where: str = "data") -> Texts:
    """Deal documents into train, valid and test. Splits that the data names are kept; missing ones come out of train.

    Empty and repeated documents are dropped (a text that is in test and in train counts for test alone); fewer than 20
    documents are cut at blank lines into passages first. Documents are taken in the order of their content hash.

    Example:
        >>> texts = deal({"all": [Document(f"text {i}") for i in range(100)]}, 0.1, 0.2)
        >>> len(texts.train) > len(texts.test) > len(texts.valid) > 0
        True
    """
    notes: list[str] = []
    pairs = any(d.prompt for documents in found.values() for d in documents)
    taken: set[str] = set()
    splits: dict[str, list[Document]] = {}
    repeated = 0
    for name in ("test", "valid", "train", "all"):
        kept = []
        for document in found.get(name, []):
            if not document.text.strip():
                continue
            if document.key in taken:
                repeated += 1
                continue
            taken.add(document.key)
            kept.append(document)
        splits[name] = kept
    if repeated:
        notes.append(f"{repeated} repeated documents were left out")
    pool = splits["train"] or splits["all"]
    if not pool:
        raise DataError(where, "there is no text in it", remedy="name a file or folder with text, or another field")
    missing = [name for name, share in (("test", test), ("valid", valid)) if not splits[name] and share > 0]
    if missing:
        if len(pool) < FEW:
            pool = [piece for document in pool for piece in passages(document, _length(pool) // 200)]
            notes.append(f"too few documents to deal by document: they were cut into {len(pool)} passages")
        if len(pool) <= len(missing):
            raise DataError(
                where,
                f"{len(pool)} documents cannot be dealt into train, {' and '.join(reversed(missing))}",
                remedy="add text, or name the splits with files called train, valid and test",
            )
    order = sorted(pool, key=lambda document: document.key)
    total = _length(order)
    for name in missing:
        share = test if name == "test" else valid
        size = 0
        while (
            order and len(order) > len(missing) and (not splits[name] or size + len(order[0].text) / 2 < share * total)
        ):
            size += len(order[0].text)
            splits[name].append(order.pop(0))
    if not order:
        raise DataError(where, "no text is left to train on", remedy="lower task.valid and task.test")
    position = {id(document): i for i, document in enumerate(pool)}
    order.sort(key=lambda document: position[id(document)])  # neighbours stay neighbours
    return Texts(order, splits["valid"], splits["test"], pairs, notes)


def _length(documents: Iterable[Document]) -> int:
    return sum(len(document.text) for document in documents)


def passages(document: Document, size: int) -> list[Document]:
    """Cut a document into passages of at least ``size`` characters: at blank lines, else line ends, else anywhere."""
    if document.prompt or len(document.text) <= size:
        return [document]
    for cut in (r"\n[ \t]*\n", r"\n", r"(?<=[.!?]) "):
        parts = re.split(f"({cut})", document.text)
        pieces, held = [], ""
        for text, gap in zip(parts[::2], [*parts[1::2], ""], strict=True):
            held += text + gap
            if len(held) >= max(size, 1):
                pieces.append(held)
                held = ""
        pieces = [*pieces, held] if held.strip() else pieces
        if len(pieces) >= 3:
            return [Document(piece) for piece in pieces if piece.strip()]
    step = max(size, 1)
    return [Document(document.text[i : i + step]) for i in range(0, len(document.text), step)]


class PythonHelp(TextSource):
    """The language reference that Python ships (``pydoc_data.topics``): real English and code on every machine.

    About 370 thousand characters in 3.11. The help texts quote each other at length; a paragraph is kept only where it
    stands in the longest text, so that nothing that is judged was also learnt. A document is a section of a topic, long
    ones cut.
    """

    def read(self) -> dict[str, list[Document]]:
        """The sections of all topics."""
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise DataError(
                "data", "this Python was packaged without pydoc_data", remedy="name your own text: data=text:FILE"
            ) from None
        seen: set[str] = set()
        sections = []
        for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
            held: list[str] = []
            for paragraph in re.split(r"\n\s*\n", topics[name]):
                words = " ".join(paragraph.split())
                if not words or words in seen:
                    continue
                seen.add(words)
                heading = re.fullmatch(r"\s*[^\n]+\n([*=\-~^])\1{2,}\s*", paragraph)
                if heading and held:
                    sections.append("\n\n".join(held))
                    held = []
                held.append(paragraph.strip("\n"))
            if held:
                sections.append("\n\n".join(held))
        return {"all": [piece for section in sections for piece in passages(Document(section + "\n"), 2000)]}


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

    def __init__(
        self,
        path: str,
        encoding: str = "utf-8",
        unit: Literal["file", "paragraph", "line"] = "file",
        bad_files: Literal["error", "skip"] = "error",
    ) -> None:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError(
                f"encoding {encoding!r} is unknown to Python; utf-8, latin-1 and cp1252 are common"
            ) from None
        self.path, self.encoding, self.unit, self.bad_files = path, encoding, unit, bad_files
        self.notes: list[str] = []

    def read(self) -> dict[str, list[Document]]:
        """The files' texts; DataError names every file that cannot be read."""
        found: dict[str, list[Document]] = {}
        bad: list[str] = []
        for split, file in find(self.path, self.SUFFIXES):
            try:
                text = decode(load_bytes(file), file, self.encoding)
            except DataError as error:
                bad.append(f"{file}: {error.problem}")
                continue
            found.setdefault(split, []).extend(Document(piece) for piece in self._units(text))
        if bad and self.bad_files == "error":
            raise DataError(
                "task.data.path",
                f"{len(bad)} files cannot be read as {self.encoding}: {'; '.join(bad[:8])}",
                remedy="set task.data.encoding=latin-1 (or what they are), or task.data.bad_files=skip",
            )
        self.notes = [f"{len(bad)} unreadable files were skipped"] if bad else []
        return found

    def _units(self, text: str) -> list[str]:
        if self.unit == "line":
            return text.split("\n")
        return re.split(r"\n[ \t]*\n", text) if self.unit == "paragraph" else [text]

    def deal(self, valid: float = 0.05, test: float = 0.1) -> Texts:
        """Read and deal; skipped files are noted."""
        texts = super().deal(valid, test)
        texts.notes = [*self.notes, *texts.notes]
        return texts


class TextJsonl(TextSource):
    """JSON lines: one object a line.

    Args:
        path: a ``.jsonl``, ``.ndjson`` or ``.json`` file (``.gz`` too), or a folder of them; files called train, valid
            and test are the splits.
        field: the key that holds the text; dots go into nested objects and lists (``instances.0.output``).
        prompt: the key that holds the prompt; with it, ``response`` is read instead of ``field``.
        response: the key that holds the response.
        encoding: how bytes are read; a byte order mark wins over it.
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")

    def __init__(
        self,
        path: str,
        field: str = "text",
        prompt: str | None = None,
        response: str | None = None,
        encoding: str = "utf-8",
    ) -> None:
        self.path, self.encoding = path, encoding
        self.columns = Columns(field, prompt, response)

    def read(self) -> dict[str, list[Document]]:
        """The lines' texts; DataError names every line that cannot be read."""
        found: dict[str, list[Document]] = {}
        bad: list[tuple[str, str]] = []
        for split, file in find(self.path, self.SUFFIXES):
            for number, line in enumerate(decode(load_bytes(file), file, self.encoding).split("\n"), 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"an object was expected, not {type(row).__name__}")
                    document = self.columns.document(row)
                except ValueError as error:
                    bad.append((f"{file.name} line {number}", str(error)))
                else:
                    found.setdefault(split, []).append(document)
        refuse(bad)
        return found


class TextParquet(TextSource):
    """Parquet tables with a column of text.

    Args:
        path: a ``.parquet`` file, or a folder of them; files called train, valid and test are the splits.
        field: the column that holds the text.
        prompt: the column that holds the prompt; with it, ``response`` is read instead of ``field``.
        response: the column that holds the response.
    """

    def __init__(self, path: str, field: str = "text", prompt: str | None = None, response: str | None = None) -> None:
        self.path = path
        self.columns = Columns(field, prompt, response)

    def read(self) -> dict[str, list[Document]]:
        """The rows' texts; DataError names every row that holds none."""
        parquet = require("pyarrow.parquet", "language", "reading parquet files")
        found: dict[str, list[Document]] = {}
        bad: list[tuple[str, str]] = []
        for split, file in find(self.path, (".parquet",)):
            try:
                table = parquet.ParquetFile(file)
                known = list(table.schema_arrow.names)
                wanted = [name for name in self.columns.tops if name in known]
                rows = table.read(columns=wanted or None).to_pylist()
            except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
                raise DataError("task.data.path", f"{file} is no readable parquet file: {error}") from None
            for number, row in enumerate(rows, 1):
                try:
                    found.setdefault(split, []).append(self.columns.document(row, known))
                except ValueError as error:
                    bad.append((f"{file.name} row {number}", str(error)))
        refuse(bad)
        return found


class TextHuggingFace(TextSource):
    """A data set of the Hugging Face Hub, or a local folder that the ``datasets`` library reads.

    Args:
        name: the id (``wikitext``) or folder.
        subset: the data set's own configuration name (``wikitext-2-raw-v1``).
        field: the column that holds the text.
        prompt: the column that holds the prompt; with it, ``response`` is read instead of ``field``.
        response: the column that holds the response.
        limit: read at most so many rows of each split.
    """

    paths: ClassVar[tuple[str, ...]] = ("name",)

    def __init__(
        self,
        name: str,
        subset: str | None = None,
        field: str = "text",
        prompt: str | None = None,
        response: str | None = None,
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError("limit must be 1 or more, or null for all rows")
        self.name, self.subset, self.limit = name, subset, limit
        self.columns = Columns(field, prompt, response)

    def read(self) -> dict[str, list[Document]]:
        """The rows' texts; DataError names every row that holds none."""
        datasets = require("datasets", "language", "reading a Hugging Face data set")
        try:
            splits = datasets.load_dataset(self.name, self.subset)
        except Exception as error:  # the library raises a dozen kinds; all mean that this name gives no data here
            raise DataError(
                "task.data.name",
                f"the datasets library cannot load it: {first_line(error)}",
                given=self.name,
                remedy="check the name, task.data.subset, and that the machine is online or has it cached",
            ) from None
        known = {SPLITS.get(str(name), "train"): name for name in splits}
        found: dict[str, list[Document]] = {}
        bad: list[tuple[str, str]] = []
        for split, name in known.items():
            table = splits[name]
            count = len(table) if self.limit is None else min(self.limit, len(table))
            for number, row in enumerate(table.select(range(count)), 1):
                try:
                    found.setdefault(split, []).append(self.columns.document(row))
                except ValueError as error:
                    bad.append((f"{name} row {number}", str(error)))
        refuse(bad)
        return found


class Columns:
    """Which fields of a row hold the text, or the prompt and the response."""

    def __init__(self, text: str, prompt: str | None, response: str | None) -> None:
        if (prompt is None) != (response is None):
            raise ValueError("prompt and response go together: name both, or neither")
        self.text, self.prompt, self.response = text, prompt, response

    @property
    def tops(self) -> list[str]:
        """The top-level names."""
        wanted = (self.prompt, self.response) if self.prompt is not None else (self.text,)
        return [name.split(".")[0] for name in wanted if name is not None]

    def document(self, row: dict[str, Any], known: Sequence[str] = ()) -> Document:
        """The row as a document; ValueError with a sentence if a field is missing or holds no text."""
        if self.prompt is not None and self.response is not None:
            return Document(_pick(row, self.response, known), _pick(row, self.prompt, known))
        return Document(_pick(row, self.text, known))


def _pick(row: dict[str, Any], path: str, known: Sequence[str]) -> str:
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
    if not isinstance(value, str):
        raise ValueError(f"field {path!r} holds {type(value).__name__}, not text")
    return value


def refuse(bad: list[tuple[str, str]]) -> None:
    """One error that names every offending row, those with the same fault together; nothing when there are none."""
    if not bad:
        return
    faults: dict[str, list[str]] = {}
    for place, fault in bad:
        faults.setdefault(fault, []).append(place)
    said = []
    for fault, places in list(faults.items())[:8]:
        more = f" and {len(places) - 5} more" if len(places) > 5 else ""
        said.append(f"{', '.join(places[:5])}{more}: {fault}")
    raise DataError(
        "data",
        f"{len(bad)} rows cannot be read: {'; '.join(said)}",
        remedy="mend the file, or name other fields (task.data.field, or task.data.prompt with task.data.response)",
    )


def find(path: str, suffixes: tuple[str, ...]) -> list[tuple[str, Path]]:
    """The files of a source with their split: the file itself, or those of a folder, in a fixed order.

    Hidden files and folders are ignored and no folder is entered twice. Names count as splits only where one of them is
    train; otherwise every file belongs to ``all``.

    Raises:
        DataError: there is no such path (the nearest names are given), or no file with one of the suffixes.
    """
    root = Path(path).expanduser()
    if not root.exists():
        parent = root.parent if root.parent.is_dir() else None
        close = nearest(root.name, [p.name for p in parent.iterdir()]) if parent else []
        raise DataError(
            "task.data.path",
            "there is no such file or folder",
            given=str(path),
            remedy=f"did you mean {str(root.parent / close[0])!r}?" if close else "give the path of a file or folder",
        )
    endings = (*suffixes, *(suffix + ".gz" for suffix in suffixes))
    if root.is_file():
        if not root.name.lower().endswith(endings):
            raise DataError(
                "task.data.path",
                given=str(path),
                expected=f"a file that ends in {', '.join(endings)}",
                remedy=_other(root),
            )
        return [("all", root)]
    files = [file for file in _walk(root) if file.name.lower().endswith(endings)]
    if not files:
        raise DataError(
            "task.data.path", f"the folder holds no file that ends in {', '.join(endings)}", given=str(path)
        )
    named = [(_split_of(file.relative_to(root)), file) for file in files]
    if any(split == "train" for split, _ in named):
        return [(split or "train", file) for split, file in named]
    return [("all", file) for file in files]


def _other(file: Path) -> str:
    name = file.name.lower()
    known = [(TextFiles.SUFFIXES, "text"), (TextJsonl.SUFFIXES, "text-jsonl"), ((".parquet",), "text-parquet")]
    for suffixes, source in known:
        if name.endswith((*suffixes, *(s + ".gz" for s in suffixes))):
            return f"for this file say {source}:{file}"
    return "known: text:FILE, text-jsonl:FILE, text-parquet:FILE, text-hf:NAME"


def _split_of(file: Path) -> str:
    for part in (*file.parts[:-1], file.name):
        word = re.split(r"[-_. ]", part.lower())[0]
        if word in SPLITS:
            return SPLITS[word]
    return ""


def _walk(root: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))


def load_bytes(file: Path) -> bytes:
    """A file's bytes, unpacked if its name ends in ``.gz``."""
    try:
        raw = file.read_bytes()
        return gzip.decompress(raw) if file.name.lower().endswith(".gz") else raw
    except (OSError, EOFError) as error:
        raise DataError("task.data.path", f"cannot be read: {error}", given=str(file)) from None


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


__all__ = [
    "Columns",
    "Document",
    "PythonHelp",
    "TextFiles",
    "TextHuggingFace",
    "TextJsonl",
    "TextParquet",
    "TextSource",
    "Texts",
    "deal",
    "passages",
]
