"""Items that lie in tables: CSV, TSV, JSON lines, parquet, data sets of the ``datasets`` library."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from limbeck.data.arrays import read_names
from limbeck.data.cells import (
    HEAD,
    Cells,
    Coded,
    Rows,
    check_size,
    coded,
    from_arrow,
    is_missing,
    joined_cells,
    number_of,
    taken,
)
from limbeck.data.columns import BadRows, Decimal, OnBadRows, Target, read_features, several_faults, shown
from limbeck.data.delimited import read_delimited, read_text
from limbeck.data.items import ArrayData, Splits, as_path
from limbeck.data.listing import File
from limbeck.data.lookup import Lookup
from limbeck.data.names import SPLITS, choose_splits, composed, counted, plain, same_letters, some, split_of
from limbeck.data.pictures import EXTENSIONS, BadFiles, Blob, Bytes, Check
from limbeck.data.sources import PictureSource, assemble
from limbeck.data.targets import read_targets
from limbeck.errors import ConfigError, DataError, LimbeckError, require
from limbeck.grammar.settings import settings
from limbeck.storage.plain import check_folder, check_plain, read_bytes

NAMES = {
    "source": {
        "hf": "HuggingFaceSet",
        "csv": "Table",
        "jsonl": "Jsonl",
        "parquet": "Parquet",
        "scikit-learn": "ScikitTable",
    }
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class _Tabular(PictureSource):
    """What sources of rows share.

    Args:
        path: the file, or a folder with one file a split (``train.*``, ``valid.*``, ``test.*``; shards are joined).
        label: the column that holds the label, or a list of columns for several numbers or yes-or-no labels; by default
            ``label``, ``labels``, ``class``, ``target``, ``category`` or ``y``.
        image: the column of image paths (relative to ``root``) or image bytes; by default the one that holds such.
            Without images the columns of numbers are the input.
        features: the columns that are the input; by default all columns of numbers but the label. A text column that is
            named here becomes a yes-or-no column a value.
        separator: what stands between several labels in one cell; ``null``: one label a cell.
        split: the column that says which split a row belongs to; by default one that is called ``split`` or the like.
        valid, test: further files with rows for choosing and for evaluation.
        classes: a file of class names, where the label's cells are places in it.
        root: where image paths start: a folder or an uncompressed tar archive; by default the table's own folder.
        decimal: the sign before fractions, ``.`` or ``,``; ``null``: as each column shows it, refused where both fit.
        bad_rows: ``error`` names every row without a label, or with a cell that is no number; ``skip`` leaves them out.
    """

    paths: ClassVar[tuple[str, ...]] = ("path", "valid", "test", "classes", "root")

    SUFFIXES: ClassVar[tuple[str, ...]] = ()
    LABELS: ClassVar[tuple[str, ...]] = ("label", "labels", "class", "target", "category", "y")
    SPLIT: ClassVar[tuple[str, ...]] = ("split", "set", "subset", "partition", "phase")
    IMAGES: ClassVar[tuple[str, ...]] = (
        *("image", "img", "picture", "photo", "file", "filename", "file_name", "filepath", "path", "image_path"),
    )

    path: str
    label: str | list[str] | None = None
    image: str | None = None
    features: list[str] | None = None
    separator: str | None = None
    split: str | None = None
    valid: str | None = None
    test: str | None = None
    classes: str | None = None
    root: str | None = None
    decimal: Decimal | None = None
    bad_rows: OnBadRows = "error"

    def rows(self, path: Path) -> Rows:
        """One file's rows."""
        raise TypeError(f"{type(self).__name__} must define rows")

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The rows of all files, divided by file or by the split column."""
        tables, folder, notes = self._tables()
        made = self.from_rows(tables, folder, target, size)
        made.notes[:0] = notes
        return made

    def table(self) -> Gathered:
        """All columns as they are written, and the split of each row: for tasks whose columns have types."""
        tables, _, notes = self._tables()
        first = tables[0].rows
        if sum(t.rows.n for t in tables) == 0:
            raise DataError(str(self.path), "there are no rows", expected="at least one row of each class")
        split = self._split_column(first, [], len(tables) > 1)
        found = self._gather(tables, [n for n in first.names if n != split and not _is_index(n)], split)
        found.notes[:0] = notes
        return found

    def _tables(self) -> tuple[list[_Part], Path, list[str]]:
        """The tables, the training one first, the folder that paths in them start from, and notes."""
        start = as_path(self.path, "task.data.path")
        files, notes = self._folder(start) if start.is_dir() else ([("train", start)], [])
        for name, extra in (("valid", self.valid), ("test", self.test)):
            if extra is not None:
                files.append((name, as_path(extra, f"task.data.{name}")))
        for _, path in files:
            if not path.is_file():
                raise DataError(str(path), "there is no such file", remedy="check the path")
        files.sort(key=lambda f: f[0] != "train")  # the training table says which columns there are
        tables = [_Part(split, path.name, self.rows(path)) for split, path in files]
        return tables, start if start.is_dir() else start.parent, notes

    def _folder(self, folder: Path) -> tuple[list[tuple[str, Path]], list[str]]:
        """The split of each file in a folder, from its name, and what was left out."""
        entries = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
        found = [p for p in entries if p.suffix.lower() in self.SUFFIXES]
        if not found and (folder / "data").is_dir():
            return self._folder(folder / "data")
        files = [(split, p) for p in found if (split := split_of(p.stem))]
        if len(found) == 1 and not files:
            files = [("train", found[0])]
        kinds = {" ".join(w for w in _words(p) if w not in SPLITS and w != "of") for _, p in files}
        if not files or len(kinds) > 1:
            raise DataError(
                str(folder),
                f"holds several tables: {some(sorted(p.name for p in found))}"
                if found
                else "holds no files of this kind",
                expected=f"train{self.SUFFIXES[0]}, and valid or test beside it",
                remedy="name one file, and further ones with task.data.valid= and task.data.test=",
            )
        taken_up = {p for _, p in files}
        left = [p.name for p in entries if p not in taken_up and p.is_file()]
        return files, [f"files in {folder} that were not read: {some(left, 5)}"] if left else []

    # ------------------------------------------------------------------------------------------------------ columns
    def from_rows(self, tables: Sequence[_Part], folder: Path, target: Target, size: int | None) -> Splits:
        """Splits from tables."""
        first = tables[0].rows
        if sum(t.rows.n for t in tables) == 0:
            raise DataError(str(self.path), "there are no rows", expected="at least one row of each class")
        labels = self._labels(first)
        image = self._image(first)
        split_column = self._split_column(first, labels, len(tables) > 1)
        reserved = dict.fromkeys([*labels, *([split_column] if split_column else [])])
        others = [n for n in first.names if n not in reserved and n != image]
        aside = [n for n in others if n in first.classes or n in first.pictures or _is_index(n)]
        if image is not None:
            wanted = [image]
        elif self.features:
            wanted = [self._known(first, n, "task.data.features") for n in self.features]
        else:
            wanted = [n for n in others if n not in aside]
        gathered = self._gather(tables, [*labels, *wanted], split_column)
        unused = others if image is not None else aside if self.features is None else []
        if unused:
            why = "beside the images" if image is not None else "class names, images or row numbers"
            gathered.notes.append(f"columns not used ({why}): {some(unused, 20)}")
        known = first.classes.get(labels[0]) if len(labels) == 1 else None
        if self.classes is not None:
            known = read_names(as_path(self.classes, "task.data.classes"))
        while True:
            try:
                return self._read_gathered(gathered, labels, wanted, image, known, folder, target, size)
            except BadRows as error:
                if self.bad_rows == "error" or not error.rows:
                    raise
                gathered.leave_out(error)

    def _gather(self, tables: Sequence[_Part], names: Sequence[str], split_column: str | None) -> Gathered:
        """The columns that are used, of all tables."""
        wanted = list(dict.fromkeys(names))
        columns: list[dict[str, Cells]] = []
        for table in tables:
            missing = [n for n in wanted if n not in table.rows.columns]
            if missing:
                raise DataError(
                    f"{self.path} ({table.split}: {table.name})",
                    f"lacks the columns {some(missing)}",
                    given=table.rows.names,
                    expected="the same columns",
                )
            columns.append({n: table.rows.columns[n] for n in wanted})
        splits = np.concatenate([np.full(t.rows.n, t.split, dtype=object) for t in tables])
        starts = [0, *accumulate(t.rows.n for t in tables)]

        def where(row: int) -> str:
            at = bisect.bisect_right(starts, row) - 1
            place = tables[at].rows.where(row - starts[at])
            return f"{tables[at].name} {place}" if len(tables) > 1 else place

        notes = [n for t in tables for n in t.rows.notes]
        if split_column is not None:
            splits = self._splits(tables[0].rows.columns[split_column], where)
            if split_column != self.split:
                notes.append(f"column {split_column!r} says which split a row belongs to")
        together = {n: joined_cells([c[n] for c in columns]) for n in wanted}
        return Gathered(together, splits, np.arange(len(splits)), where, list(dict.fromkeys(notes)))

    def _read_gathered(
        self,
        found: Gathered,
        labels: Sequence[str],
        wanted: Sequence[str],
        image: str | None,
        known: Sequence[str] | None,
        folder: Path,
        target: Target,
        size: int | None,
    ) -> Splits:
        faults: list[BadRows] = []
        notes: list[str] = []
        where, columns = found.place, found.columns
        try:
            y, names, kind = read_targets(
                {n: columns[n] for n in labels},
                target,
                where,
                known=known,
                separator=self.separator,
                decimal=self.decimal,
                notes=notes,
            )
        except BadRows as error:
            faults.append(error)
        try:
            if image is None:
                train = np.asarray(found.splits == "train", dtype=bool)
                x, wide, said = read_features(
                    {n: columns[n] for n in wanted}, self.features, train, where, decimal=self.decimal
                )
                notes = [*said, *notes]
            else:
                files, said = self._files(columns[image], where, image, folder)
                notes = [f"inputs: the images that column {image!r} names", *said, *notes]
        except BadRows as error:
            faults.append(error)
        if faults:
            raise several_faults(faults)
        notes = [*notes, *found.notes]
        if image is None:
            data = ArrayData(x, y)
            made = assemble(data, torch.arange(len(y)), found.splits, names, kind, notes, known is not None)
            made.columns = wide
            return made
        items, good, said = self._load(files, y, size)
        return assemble(items, good, found.splits, names, kind, [*notes, *said], known is not None)

    def _known(self, rows: Rows, name: str, argument: str) -> str:
        if name in rows.columns:
            return name
        same = same_letters(name, rows.names)
        if same is None:
            raise DataError.unknown(argument, name, rows.names, "column")
        return same

    def _labels(self, rows: Rows) -> list[str]:
        if self.label is not None:
            asked = [self.label] if isinstance(self.label, str) else list(self.label)
            if not asked:
                raise ConfigError("task.data.label", given=self.label, expected="at least one column")
            return [self._known(rows, n, "task.data.label") for n in asked]
        named = self._named(rows.names, self.LABELS)
        if "y" in map(str.lower, named) and len(named) > 1:
            named = [n for n in named if n.lower() != "y"]  # beside a label it is a number like x
        if not named:
            named = [n for n in rows.names if n in rows.classes]
        if len(named) == 1:
            return named
        numbers = sum(number_of(n) is not None for n in rows.names)
        if 2 * numbers > len(rows.names):
            raise DataError(
                str(self.path),
                "the first line holds numbers where the columns should be named",
                given=rows.names,
                expected="a header line, with the column of the label called label, or named with task.data.label",
                remedy="write one above the rows",
            )
        raise DataError(
            str(self.path),
            f"which column is the label: {' or '.join(named)}?" if named else "which column is the label?",
            given=rows.names,
            remedy="name it with task.data.label=COLUMN",
        )

    @staticmethod
    def _named(names: Sequence[str], usual: Sequence[str]) -> list[str]:
        lowered = {n.lower(): n for n in names}
        return [lowered[n] for n in usual if n in lowered]

    def _image(self, rows: Rows) -> str | None:
        if self.image is not None:
            return self._known(rows, self.image, "task.data.image")
        if self.features is not None:
            return None
        found = rows.pictures or [n for n in rows.names if _holds_pictures(rows.head(n))]
        best = self._named(found, self.IMAGES) or found
        if len(found) > 1 and best == found:
            raise DataError(
                "task.data.image",
                f"which column holds the pictures: {' or '.join(found)}?",
                remedy="name it with task.data.image=COLUMN",
            )
        return best[0] if best else None

    def _split_column(self, rows: Rows, labels: Sequence[str], several: bool) -> str | None:
        if self.split:
            return self._known(rows, self.split, "task.data.split")
        if several:
            return None
        for name in self._named(rows.names, self.SPLIT):
            if name in labels or name in (self.features or ()):
                continue
            if name.lower() == "split":
                return name
            words = {plain(str(v)).lower() for v in coded(rows.columns[name]).values}
            if "train" in {SPLITS.get(w) for w in words} and words <= set(SPLITS):
                return name
        return None

    def _splits(self, cells: Cells, where: Callable[[int], str]) -> np.ndarray[Any, Any]:
        column = coded(cells)
        found = [SPLITS.get(plain(str(c)).lower()) or split_of(str(c)) for c in column.values]
        rows = column.where([i for i, s in enumerate(found) if not s])
        if rows:
            bad = [f"{where(i)} ({shown(cells[i])})" for i in rows]
            raise DataError("task.data.split", f"names no split at {some(bad)}", expected="train, valid or test")
        return column.spread(np.array(found, dtype=object))

    def _files(
        self, cells: Cells, where: Callable[[int], str], column: str, folder: Path
    ) -> tuple[list[Bytes], list[str]]:
        """A image file for each cell: bytes, ``{bytes, path}`` or a path below ``root``; and notes."""
        look_up = Lookup(as_path(self.root, "task.data.root") if self.root else folder)
        made: list[Bytes] = []
        bad: list[int] = []
        for i, cell in enumerate(cells):
            inner = cell.get("bytes") if isinstance(cell, dict) else cell
            path = cell.get("path") if isinstance(cell, dict) else cell
            if isinstance(inner, (bytes, bytearray, memoryview)):
                made.append(Blob(where(i), bytes(inner)))
            elif isinstance(cell, (Blob, File)) or hasattr(cell, "read"):
                made.append(cell)
            elif isinstance(path, str) and not is_missing(path):
                made.append(look_up(path))
            else:
                bad.append(i)
        if bad:
            said = f"column {column!r} names no image at {some([where(i) for i in bad])}"
            raise BadRows("task.data.image", said, bad, remedy="fill in or remove these rows, or set task.data.bad_rows=skip")  # fmt: skip
        return made, look_up.notes()


@dataclass
class _Part:
    """One file's rows, or one split's."""

    split: str
    name: str
    rows: Rows


@dataclass
class Gathered:
    """The used columns of all tables.

    Attributes:
        columns: name -> cells.
        splits: the split of each row.
        rows: which row of the tables each is.
        where: the place of a row of the tables.
        notes: sentences about how they were read.
    """

    columns: dict[str, Cells]
    splits: np.ndarray[Any, Any]
    rows: np.ndarray[Any, Any]
    where: Callable[[int], str]
    notes: list[str] = field(default_factory=list)

    def place(self, row: int) -> str:
        """The place of a row that is left."""
        return self.where(int(self.rows[row]))

    def leave_out(self, error: BadRows) -> None:
        """Go on without the rows of an error."""
        self.notes.append(f"{counted(len(error.rows), 'row')} left out: {error.problem}")
        kept = np.setdiff1d(np.arange(len(self.rows)), error.rows)
        if not len(kept):
            raise error
        self.columns = {n: taken(c, kept) for n, c in self.columns.items()}
        self.splits, self.rows = self.splits[kept], self.rows[kept]


def _is_index(name: str) -> bool:
    """Whether a column is what pandas writes of the numbers of its rows."""
    return bool(re.fullmatch(r"__index_level_\d+__|Unnamed: 0(_level_\d+)?", name))


def _words(path: Path) -> list[str]:
    return [w for w in re.split(r"[-_.\s\d]+", path.stem.lower()) if w]


def _holds_pictures(cells: Cells) -> bool:
    """Whether the filled ones of some cells are images, or the paths of such."""
    filled = [c for c in cells if not is_missing(c)]
    return bool(filled) and all(
        _is_picture(c) or (isinstance(c, str) and Path(c.strip()).suffix.lower() in EXTENSIONS) for c in filled
    )


def _is_picture(cell: Any) -> bool:
    if isinstance(cell, dict):
        return isinstance(cell.get("bytes"), bytes) or (
            isinstance(cell.get("path"), str) and Path(cell["path"]).suffix.lower() in EXTENSIONS
        )
    return isinstance(cell, (bytes, Blob, File)) or hasattr(cell, "read")


@settings
class Table(_Tabular):
    """A CSV or TSV file: fields may be quoted and hold line breaks, a byte order mark is dropped, ``NA`` is a label.

    Args:
        delimiter: what stands between fields; by default a tab in ``.tsv``, else what the header line uses most of
            ``,`` ``;`` tab and ``|``.
        encoding: of the text; UTF-16 is recognised by its byte order mark.
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".tab", ".txt")

    delimiter: str | None = None
    encoding: str = "utf-8"

    def validate(self) -> None:
        """One character, and an encoding that Python knows."""
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError("delimiter must be one character, or null")
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(f"encoding {self.encoding!r} is unknown") from None

    def rows(self, path: Path) -> Rows:
        """The rows; a place is a line number of the file."""
        return read_delimited(path, self.encoding, self.delimiter, self._written, self.bad_rows == "skip")

    def _written(self, names: Sequence[str]) -> set[str]:
        """The columns that must stay as they are written: those of one label, and of the split."""
        split = [self.split] if self.split else self._named(names, self.SPLIT)
        if isinstance(self.label, list) and len(self.label) > 1:
            return set(split)
        label = [self.label] if isinstance(self.label, str) else self.label or self._named(names, self.LABELS)
        return {same for n in (*split, *label) if (same := same_letters(n, names))}


class Jsonl(_Tabular):
    """JSON lines: one object a line (or one JSON list of objects). What is wrong is named by its line."""

    SUFFIXES: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")

    def rows(self, path: Path) -> Rows:
        """The objects; keys are columns, and a key that an object lacks is an empty cell."""
        records: list[dict[str, Any]] = []
        places: list[str] = []
        bad: list[str] = []
        for place, record in _records(path, read_text(path, "utf-8")):
            if isinstance(record, dict):
                records.append({composed(k): v for k, v in record.items()})
                places.append(place)
            else:
                bad.append(f"{place}: {record if isinstance(record, ValueError) else 'not an object'}")
        if bad and self.bad_rows == "error":
            raise DataError(
                str(path),
                f"{counted(len(bad), 'line')} cannot be read: {some(bad, 20)}",
                expected="one JSON object a line",
                remedy="mend the lines, or leave them out with task.data.bad_rows=skip",
            )
        notes = [f"{counted(len(bad), 'line')} left out that cannot be read: {some(bad)}"] if bad else []
        names = list(dict.fromkeys(k for r in records for k in r))
        return Rows({n: [r.get(n) for r in records] for n in names}, places.__getitem__, len(records), notes)


def _records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The place of each value in a file of JSON lines (or one list), and the value, or what is wrong with it."""
    if text.lstrip()[:1] == "[" and path.suffix.lower() == ".json":
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(str(path), f"is no JSON: {error}") from None
        yield from ((f"object {i + 1}", record) for i, record in enumerate(listed))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", ValueError(getattr(error, "msg", str(error)))


class Parquet(_Tabular):
    """A parquet file. Class names and image columns that the ``datasets`` library noted in it are heeded."""

    SUFFIXES: ClassVar[tuple[str, ...]] = (".parquet",)

    def rows(self, path: Path) -> Rows:
        """The rows; columns are read when they are used."""
        parquet = require("pyarrow.parquet", "language", "reading parquet")
        try:
            check_plain(path)
            check_size(parquet.read_metadata(path), path)
            table = parquet.read_table(path)
        except LimbeckError:
            raise
        except Exception as error:
            raise DataError(
                str(path), f"cannot be read: {' '.join(str(error).split())[:200]}", expected="a parquet file"
            ) from None
        stored = {composed(n): n for n in table.column_names}
        cells = _Lazily(stored, lambda n: from_arrow(table.column(stored[n])))
        rows = Rows(cells, lambda i: f"row {i}", table.num_rows)
        rows.head = lambda n: table.column(stored[n]).slice(0, HEAD).to_pylist()
        noted = (table.schema.metadata or {}).get(b"huggingface")
        try:
            features = json.loads(noted)["info"]["features"] if noted else {}
            for name, feature in features.items():
                if feature.get("_type") == "ClassLabel":
                    rows.classes[composed(name)] = [str(n) for n in feature["names"]]
                elif feature.get("_type") == "Image":
                    rows.pictures.append(composed(name))
        except (ValueError, KeyError, TypeError, AttributeError):
            rows.classes, rows.pictures = {}, []
        return rows


class _Lazily(Mapping[str, Cells]):
    """Columns that are read when they are asked for."""

    def __init__(self, names: Iterable[str], column: Callable[[str], Cells]) -> None:
        self._names, self._column = list(names), column
        self._read: dict[str, Cells] = {}

    def __getitem__(self, name: str) -> Cells:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._read:
            self._read[name] = self._column(name)
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class HuggingFaceSet(_Tabular):
    """A data set of the Hugging Face Hub by name, a folder of ``save_to_disk``, or local parquet, CSV or JSONL.

    Args:
        name: the Hub id, or a local file or folder.
        config: which configuration of the data set, where it has several.
        train, valid, test: which of its splits they are; by default those whose names say so, several joined to one.
    """

    paths: ClassVar[tuple[str, ...]] = ("name", "classes", "root")

    def __init__(
        self,
        name: str,
        config: str | None = None,
        label: str | list[str] | None = None,
        image: str | None = None,
        features: list[str] | None = None,
        separator: str | None = None,
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        classes: str | None = None,
        root: str | None = None,
        decimal: Decimal | None = None,
        bad_rows: OnBadRows = "error",
        bad_files: BadFiles = "error",
        size: int | None = None,
        scale: float | None = None,
        check: Check = "full",
        memory_mb: int = 1024,
    ) -> None:
        # written out: the setting "config" has the name of the node that a component was built from
        self._same = {
            "label": label,
            "image": image,
            "features": features,
            "separator": separator,
            "classes": classes,
            "root": root,
            "decimal": decimal,
            "bad_rows": bad_rows,
            "bad_files": bad_files,
            "size": size,
            "scale": scale,
            "check": check,
            "memory_mb": memory_mb,
        }
        super().__init__(name, **self._same)  # type: ignore[arg-type]
        self.name, self.configuration = name, config
        self.asked = {"train": train, "valid": valid, "test": test}

    def _local(self) -> _Tabular | None:
        """What reads a local file or folder of rows; ``None`` for what the ``datasets`` library knows."""
        local = as_path(self.name, "task.data.name")
        for source in (Table, Jsonl, Parquet) if not any(self.asked.values()) else ():
            if local.suffix.lower() in source.SUFFIXES or (local.is_dir() and self._files_of(local, source.SUFFIXES)):
                return source(self.name, **self._same)  # type: ignore[arg-type]
        return None

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The data set's splits."""
        local = self._local()
        return super().read(target, size) if local is None else local.read(target, size)

    def table(self) -> Gathered:
        """All columns of all splits."""
        local = self._local()
        return super().table() if local is None else local.table()

    def _tables(self) -> tuple[list[_Part], Path, list[str]]:
        local = as_path(self.name, "task.data.name")
        library = require("datasets", "language", "reading Hugging Face data sets")
        check_folder(local, "task.data.name")
        try:
            found = (
                library.load_from_disk(str(local))
                if local.is_dir() and not self._is_files(local)
                else library.load_dataset(self.name, self.configuration)
            )
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise DataError(
                "task.data.name",
                f"the data set cannot be loaded: {text}",
                given=self.name,
                remedy="check the name and the connection, or name local files",
            ) from None
        groups = found if isinstance(found, dict) else {"train": found}
        chosen, notes = choose_splits({n: len(part) for n, part in groups.items()}, self.asked)
        tables = [_Part(split, name, self._rows_of(groups[name], library)) for name, split in chosen.items()]
        return tables, local if local.is_dir() else Path(), notes

    @staticmethod
    def _is_files(folder: Path) -> bool:
        return not ((folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists())

    @staticmethod
    def _files_of(folder: Path, suffixes: Sequence[str]) -> bool:
        if not HuggingFaceSet._is_files(folder):
            return False  # written by save_to_disk
        return any(
            p.suffix.lower() in suffixes and p.suffix != ".txt"
            for d in (folder, folder / "data")
            if d.is_dir()
            for p in d.iterdir()
        )

    def _rows_of(self, part: Any, library: Any) -> Rows:
        pictures = [n for n, f in part.features.items() if isinstance(f, library.Image)]
        for n in pictures:
            part = part.cast_column(n, library.Image(decode=False))
        cells = _Lazily(
            part.column_names,
            lambda n: [_Cell(part, i, n) for i in range(len(part))] if n in pictures else list(part[n]),
        )
        rows = Rows(cells, lambda i: f"row {i}", len(part))
        rows.head = lambda n: list(part.select(range(min(HEAD, len(part))))[n])
        rows.pictures = pictures
        for n, f in part.features.items():
            inner = getattr(f, "feature", f)
            if isinstance(inner, library.ClassLabel):
                rows.classes[n] = list(inner.names)
        return rows


class ScikitTable(_Tabular):
    """A small table that comes with scikit-learn. No download.

    Args:
        name: ``breast-cancer`` (569 rows, 30 numbers, 2 classes), ``wine`` (178, 13, 3) or ``iris`` (150, 4, 3).
        halves: a column of numbers in whose place stands whether a row is ``above`` or ``below`` the median: a stand-in
            for a protected attribute, which none of these tables has.
    """

    paths: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        name: Literal["breast-cancer", "wine", "iris"] = "breast-cancer",
        halves: str | None = None,
        features: list[str] | None = None,
    ) -> None:
        # written out: of the settings of its base it has one
        super().__init__(f"scikit-learn:{name}", "class", features=features)
        self.name, self.halves = name, halves

    def _tables(self) -> tuple[list[_Part], Path, list[str]]:
        from sklearn import datasets

        loaders = {"breast-cancer": datasets.load_breast_cancer, "wine": datasets.load_wine, "iris": datasets.load_iris}
        found = loaders[self.name]()
        columns: dict[str, Cells] = {
            str(n): np.ascontiguousarray(c) for n, c in zip(found.feature_names, found.data.T, strict=True)
        }
        columns["class"] = Coded(found.target.astype(np.int64), [str(n) for n in found.target_names])
        notes = []
        if self.halves is not None:
            rows = Rows(columns, lambda i: f"row {i}", len(found.target))
            name = self._known(rows, self.halves, "task.data.halves")
            values = np.asarray(columns[name])
            middle = float(np.median(values))
            columns[name] = Coded((values > middle).astype(np.int64), ["below", "above"])
            notes.append(
                f"{name} is whether a row lies above its median {middle:g}: a stand-in, no protected attribute"
            )
        return [_Part("train", self.name, Rows(columns, lambda i: f"row {i}", len(found.target)))], Path(), notes


class FrameTable(_Tabular):
    """A pandas DataFrame that the caller holds, and one for evaluation, if there is one.

    Args:
        frame, test: the rows.
        label: the column that holds the label; as of the other tables.
    """

    def __init__(
        self, frame: Any, test: Any = None, label: str | None = None, features: list[str] | None = None
    ) -> None:
        super().__init__("DataFrame", label, features=features)
        self.frames = {"train": frame, **({} if test is None else {"test": test})}

    def __len__(self) -> int:
        return len(self.frames["train"])

    def _tables(self) -> tuple[list[_Part], Path, list[str]]:
        return [_Part(split, f"{split} frame", rows_of_frame(f)) for split, f in self.frames.items()], Path(), []


def rows_of_frame(frame: Any) -> Rows:
    """The columns of a DataFrame; a place is the row's own index."""
    names = [str(c) for c in frame.columns]
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise DataError("data", f"the frame has several columns called {some(twice)}", expected="names that differ")
    columns: dict[str, Cells] = {}
    for i, name in enumerate(names):
        cells = frame.iloc[:, i]
        if cells.dtype.kind in "iuf":
            columns[name] = np.ascontiguousarray(cells.to_numpy())
        else:
            columns[name] = coded(
                [None if missing else v for v, missing in zip(cells.tolist(), cells.isna(), strict=True)]
            )
    index = frame.index
    return Rows(columns, lambda i: f"row {index[i]}", len(frame))


class _Cell:
    """A image in a row of a Hugging Face data set, read from disk when it is needed."""

    def __init__(self, part: Any, row: int, column: str) -> None:
        self.part, self.row, self.column, self.name = part, row, column, f"row {row}"

    def read(self) -> bytes:
        """All bytes."""
        cell = self.part[self.row][self.column]
        if cell is None:
            raise OSError("the cell is empty")
        raw = cell.get("bytes")
        return bytes(raw) if raw is not None else read_bytes(cell["path"])
