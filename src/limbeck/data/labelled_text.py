"""Labelled texts, or pairs of texts, as users have them: tables (CSV, TSV, JSON lines, parquet), or a folder a class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval
from torch import Tensor

from limbeck.data.cells import check_size, is_missing
from limbeck.data.columns import Target
from limbeck.data.delimited import read_delimited
from limbeck.data.hub import hub_columns, hub_parts
from limbeck.data.items import Kind, as_path
from limbeck.data.names import counted, is_blank, some, split_of
from limbeck.data.targets import read_targets
from limbeck.data.text import Document, grouped
from limbeck.data.text_files import TextFiles, decode, find, load_bytes, parsed
from limbeck.errors import DataError, nearest, require
from limbeck.grammar.component import Component
from limbeck.grammar.settings import Count, settings
from limbeck.storage.plain import check_plain

NAMES = {
    "source": {"labelled-text": "LabelledText", "labelled-hf": "LabelledHub", "pydoc-chapters": "Chapters"},
    "source for LabelledSource": {
        "csv": "LabelledText",
        "jsonl": "LabelledText",
        "parquet": "LabelledText",
        "hf": "LabelledHub",
    },
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json")

TEXTS = ("text", "sentence", "content", "review", "document")
"""What columns of text are usually called."""

PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"))
"""And columns of two texts."""

LABELS = ("label", "labels", "class", "category", "target")


@dataclass
class Labelled:
    """Texts with what they are answered with.

    Attributes:
        documents: all of them: ``text``, and of a pair the first as ``prompt``.
        splits: of each: ``train``, ``valid``, ``test`` or ``all``.
        y: targets, one a document.
        labels: names of classes or numbers.
        kind: what the targets are.
        notes: what was left out and how it was read.
    """

    documents: list[Document]
    splits: list[str]
    y: Tensor
    labels: list[str]
    kind: Kind
    notes: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> bool:
        """Whether they are pairs of texts."""
        return any(d.prompt for d in self.documents)


class LabelledSource(Component):
    """Base of the sources of labelled texts: a subclass defines ``read``."""

    kind: ClassVar[str] = "source"

    def read(self, target: Target = "auto") -> Labelled:
        """The texts and their targets."""
        raise TypeError(f"{type(self).__name__} must define read")


@settings
class LabelledText(LabelledSource):
    """Texts with labels from a table, or from a folder with one folder of texts a class.

    Args:
        path: a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file; a folder of such files, of which those called train,
            valid (dev, validation) and test are the splits; or a folder of class folders with ``.txt`` files, below train
            and test folders where there are such.
        valid: a further file, for choosing; ``null``: what ``path`` names so, or a share of the training texts.
        test: a further file, for evaluation; likewise.
        text: the column of the text; by default the first of ``text``, ``sentence``, ``content``, ``review``.
        pair: the column of a second text (``sentence2``, ``hypothesis``); ``null`` takes the usual pairs where both are
            there and ``text`` is not named.
        label: the column of the label; by default ``label``, ``class`` or ``category``.
        encoding: of text files; a byte order mark wins over it.
        bad_rows: ``error`` names every row without text or label and stops; ``skip`` leaves them out and says so.
    """

    paths: ClassVar[tuple[str, ...]] = ("path", "valid", "test")

    path: str
    valid: str | None = None
    test: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    encoding: str = "utf-8"
    bad_rows: Literal["error", "skip"] = "error"

    def validate(self) -> None:
        """A pair has two."""
        if self.pair is not None and self.text is None:
            raise ValueError("pair names the second text: name the first one as text")

    def read(self, target: Target = "auto") -> Labelled:
        """The texts and their targets.

        Raises:
            DataError: a file or a column is not there, or rows lack a text or a label; all are named.
        """
        tables, notes = self._tables()
        if not tables:
            return self._folders(target)
        documents: list[Document] = []
        splits: list[str] = []
        cells: list[Any] = []
        bad: dict[str, list[tuple[str, int]]] = {}
        for split, name, columns in tables:
            first, second, label = self._names(columns, name)
            for number, (one, two, answer) in enumerate(
                zip(columns[first], columns[second] if second else columns[first], columns[label], strict=True), 1
            ):
                wrong = _wrong(first, one) or (second and _wrong(second, two)) or (is_missing(answer) and "no label")
                if wrong:
                    bad.setdefault(wrong, []).append((f"{name} row", number))
                    continue
                made = (
                    Document(two, one, (), f"{name} row", number)
                    if second
                    else Document(one, "", (), f"{name} row", number)
                )
                documents.append(made)
                splits.append(split)
                cells.append(answer)
        if bad:
            said = "; ".join(f"{grouped(places, 5)}: {fault}" for fault, places in bad.items())
            count = counted(sum(map(len, bad.values())), "row")
            if self.bad_rows == "error":
                raise DataError(
                    "task.data",
                    f"{count} cannot be read: {said}",
                    remedy="mend them, leave them out with task.data.bad_rows=skip, or name other columns (task.data.text, "
                    "task.data.label)",
                )
            notes.append(f"{count} left out: {said}")
        if not documents:
            raise DataError("task.data.path", "there is no labelled text in it", given=self.path)

        def where(row: int) -> str:
            return documents[row].place

        y, labels, kind = read_targets({self.label or "label": cells}, target, where, notes=notes)
        return Labelled(documents, splits, y, labels, kind, notes)

    def _tables(self) -> tuple[list[tuple[str, str, Mapping[str, Sequence[Any]]]], list[str]]:
        """The split, the name and the columns of each table; none where the path is a folder of class folders."""
        files, notes = self._files()
        return [(split, name, table_columns(file, self.encoding)) for split, name, file in files], notes

    def _files(self) -> tuple[list[tuple[str, str, Path]], list[str]]:
        """The tables with their splits; none where the path is a folder of class folders."""
        root = as_path(self.path, "task.data.path")
        if root.is_dir() and not any(p.name.lower().endswith(TABLES) for p in root.rglob("*")):
            return [], []
        files, notes = find(self.path, TABLES)
        for split, path in (("valid", self.valid), ("test", self.test)):
            if path is not None:
                files = [("train" if s == "all" else s, name, file) for s, name, file in files if s != split]
                files += [(split, name, file) for _, name, file in find(path, TABLES)[0]]
        return files, notes

    def _names(self, columns: Mapping[str, Any], file: str) -> tuple[str, str, str]:
        """The columns of the text, of a second one (or empty), and of the label."""
        known = list(columns)

        def named(argument: str, given: str | None, usual: Sequence[str]) -> str:
            found = given if given in columns else None if given else next((n for n in usual if n in columns), None)
            if found is None:
                close = nearest(given, known) if given else []
                raise DataError(
                    f"task.data.{argument}",
                    f"{file} has no column " + (repr(given) if given else f"called {', '.join(usual)}"),
                    expected=f"one of {', '.join(map(repr, known[:12]))}",
                    remedy=f"did you mean {close[0]!r}?" if close else f"name it: task.data.{argument}=NAME",
                )
            return found

        label = named("label", self.label, LABELS)
        two = next((p for p in PAIRS if self.text is None and all(n in columns for n in p)), None)
        if two is not None:
            return *two, label
        first = named("text", self.text, TEXTS)
        return first, "" if self.pair is None else named("pair", self.pair, ()), label

    def _folders(self, target: Target) -> Labelled:
        """Texts below one folder a class."""
        files, notes = find(self.path, TextFiles.SUFFIXES)
        documents, splits, names = [], [], []
        for split, name, file in files:
            folders = [part for part in name.split("/")[:-1] if not split_of(part)]
            if not folders:
                raise DataError(
                    "task.data.path",
                    f"{name} lies in no class folder",
                    given=self.path,
                    expected="one folder of texts a class (below train and test folders), or a table with a column of labels",
                )
            documents.append(Document(decode(load_bytes(file), file, self.encoding), "", (), name))
            splits.append(split)
            names.append(folders[-1])
        y, labels, kind = read_targets(
            {"label": names}, "label" if target == "auto" else target, lambda i: documents[i].place
        )
        return Labelled(documents, splits, y, labels, kind, notes)


@settings
class LabelledHub(LabelledText):
    """Labelled texts, or pairs of texts, of a data set of the Hugging Face Hub or a folder that ``datasets`` reads.

    Args:
        path: the id (``glue``) or folder.
        subset: the data set's own configuration name (``sst2``).
        train: which of its splits is learnt from; by default those whose names say so, several joined to one.
        valid, test: likewise, for choosing and for evaluation.
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)

    subset: str | None = None
    train: str | None = None

    def _tables(self) -> tuple[list[tuple[str, str, Mapping[str, Sequence[Any]]]], list[str]]:
        asked = {"train": self.train, "valid": self.valid, "test": self.test}
        parts, notes = hub_parts(self.path, self.subset, asked, "task.data.path")
        alone = len(parts) == 1 and not any(asked.values())
        return [("all" if alone else part.split, part.name, hub_columns(part)) for part in parts], notes


def table_columns(file: Path, encoding: str = "utf-8") -> Mapping[str, Sequence[Any]]:
    """The cells of a table (``TABLES``) by their columns' names.

    Raises:
        DataError: it cannot be read.
    """
    name = file.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        rows = read_delimited(file, encoding, "\t" if name.endswith(".tsv") else None, lambda names: set(names))
        return {n: list(rows.columns[n]) for n in rows.names}
    if name.endswith(".parquet"):
        parquet = require("pyarrow.parquet", "language", "reading parquet files")
        try:
            check_plain(file)
            table = parquet.ParquetFile(file)
            check_size(table.metadata, file)
            found: dict[str, list[Any]] = table.read().to_pydict()
            return found
        except (OSError, ValueError) as error:
            raise DataError("task.data.path", f"{file} is no readable parquet file: {error}") from None
    lines = [line for line in decode(load_bytes(file), file, encoding).split("\n") if line.strip()]
    rows_ = [parsed(line) for line in lines]
    if len(rows_) == 1 and isinstance(rows_[0], list):
        rows_ = rows_[0]
    odd = [i for i, row in enumerate(rows_, 1) if not isinstance(row, dict)]
    if odd:
        raise DataError("task.data.path", f"{file.name}: no objects on lines {some(list(map(str, odd)), 8)}")
    names = list(dict.fromkeys(n for row in rows_ for n in row))
    return {n: [row.get(n) for row in rows_] for n in names}


def _wrong(column: str, cell: Any) -> str:
    if not isinstance(cell, str):
        return f"column {column!r} holds {'nothing' if is_missing(cell) else type(cell).__name__}, not text"
    return f"column {column!r} is blank" if is_blank(cell) else ""


@settings
class Chapters(LabelledSource):
    """Sentences of the language reference that Python ships, to be told by the chapter they stand in. On every machine.

    Args:
        chapters: so many of the largest topics are the classes.
        shortest: characters below which a sentence is left out.
        each: at most so many sentences of a chapter.
    """

    chapters: Annotated[int, Interval(ge=2, le=30)] = 6
    shortest: Count = 40
    each: Annotated[int, Ge(10)] = 200

    def read(self, target: Target = "auto") -> Labelled:
        """The sentences, and their chapters."""
        if target not in ("auto", "label"):
            raise DataError("task.target", "chapters are classes", given=target, expected="label")
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise DataError(
                "data", "this Python was packaged without pydoc_data", remedy="name your own: labelled-text:FILE"
            ) from None
        seen: set[str] = set()
        found: dict[str, list[str]] = {}
        for name in sorted(topics, key=lambda n: (-len(topics[n]), n)):
            for piece in re.split(r"\n\s*\n|(?<=[.:])\s+(?=[A-Z])", topics[name]):
                words = " ".join(piece.split())
                if len(words) >= self.shortest and words not in seen:
                    seen.add(words)
                    found.setdefault(name, []).append(words)
        largest = sorted(found, key=lambda n: (-len(found[n]), n))[: self.chapters]
        documents = [
            Document(words, source=f"{name} sentence", number=i)
            for name in largest
            for i, words in enumerate(found[name][: self.each], 1)
        ]
        names = [d.source.removesuffix(" sentence") for d in documents]
        y, labels, kind = read_targets({"chapter": names}, "label", lambda i: documents[i].place)
        return Labelled(documents, ["all"] * len(documents), y, labels, kind)


__all__ = ["Chapters", "Labelled", "LabelledHub", "LabelledSource", "LabelledText", "table_columns"]
