"""Items that lie in tables: CSV, TSV, JSON lines, parquet, data sets of the ``datasets`` library."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from limbeck.data.arrays import read_names
from limbeck.data.columns import Target, read_features, read_targets, some
from limbeck.data.items import SPLITS, ArrayData, Splits, as_path
from limbeck.data.pictures import EXTENSIONS, BadFiles, Blob, Bytes, Check, File, list_files
from limbeck.data.sources import PictureSource, assemble
from limbeck.errors import ConfigError, DataError, require


class Rows:
    """A table: columns of cells, and the place of each row for messages."""

    def __init__(self, columns: Mapping[str, Sequence[Any]], where: Callable[[int], str], n: int) -> None:
        self.columns, self.where, self.n = columns, where, n
        self.classes: dict[str, list[str]] = {}
        self.pictures: list[str] = []

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return list(self.columns)


class _Tabular(PictureSource):
    """What sources of rows share.

    Args:
        path: the file, or a folder with one file a split (``train.*``, ``valid.*``, ``test.*``; shards are joined).
        label: the column that holds the label, or a list of columns for several numbers or yes-or-no labels; by default
            ``label``, ``labels``, ``class``, ``target``, ``category`` or ``y``.
        image: the column of picture paths (relative to ``root``) or picture bytes; by default one that is called and
            looks like it. Without pictures the columns of numbers are the input.
        features: the columns that are the input; by default all columns of numbers but the label. A text column that is
            named here becomes a yes-or-no column a value.
        separator: what stands between several labels in one cell; ``null``: one label a cell.
        split: the column that says which split a row belongs to; by default one that is called ``split``.
        valid, test: further files with rows for choosing and for judging.
        classes: a file of class names, where the label's cells are places in it.
        root: where picture paths start: a folder or an uncompressed tar archive; by default the table's own folder.
    """

    paths: ClassVar[tuple[str, ...]] = ("path", "valid", "test", "classes", "root")

    SUFFIXES: ClassVar[tuple[str, ...]] = ()
    LABELS: ClassVar[tuple[str, ...]] = ("label", "labels", "class", "target", "category", "y")
    IMAGES: ClassVar[tuple[str, ...]] = (
        *("image", "img", "picture", "photo", "file", "filename", "file_name", "filepath", "path", "image_path"),
    )

    def __init__(
        self,
        path: str,
        label: str | list[str] | None = None,
        image: str | None = None,
        features: list[str] | None = None,
        separator: str | None = None,
        split: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        classes: str | None = None,
        root: str | None = None,
        bad_files: BadFiles = "error",
        size: int | None = None,
        check: Check = "full",
        memory_mb: int = 1024,
    ) -> None:
        self.path, self.label, self.image, self.features = path, label, image, features
        self.separator, self.split, self.valid, self.test = separator, split, valid, test
        self.classes, self.root = classes, root
        self._picture_settings(bad_files, size, check, memory_mb)

    def rows(self, path: Path) -> Rows:
        """One file's rows."""
        raise TypeError(f"{type(self).__name__} must define rows")

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The rows of all files, divided by file or by the split column."""
        start = as_path(self.path, "task.data.path")
        files = [("train", start)] if not start.is_dir() else self._folder(start)
        for name, extra in (("valid", self.valid), ("test", self.test)):
            if extra is not None:
                files.append((name, as_path(extra, "task.data.test")))
        for _, path in files:
            if not path.is_file():
                raise DataError(str(path), "there is no such file", remedy="check the path")
        files.sort(key=lambda f: f[0] != "train")  # the training table says which columns there are
        tables = [(s, self.rows(path)) for s, path in files]
        return self.from_rows(tables, start if start.is_dir() else start.parent, target, size)

    def _folder(self, folder: Path) -> list[tuple[str, Path]]:
        """The split of each file in a folder, from its name."""
        found = [
            p for p in sorted(folder.iterdir()) if p.suffix.lower() in self.SUFFIXES and not p.name.startswith(".")
        ]
        if not found and (folder / "data").is_dir():
            return self._folder(folder / "data")
        files, kinds = [], set()
        for path in found:
            words = [w for w in re.split(r"[-_.\s\d]+", path.stem.lower()) if w]
            splits = [SPLITS[w] for w in words if w in SPLITS]
            if len(splits) == 1:
                files.append((splits[0], path))
                kinds.add(" ".join(w for w in words if w not in SPLITS and w != "of"))
        if len(found) == 1 and not files:
            return [("train", found[0])]
        if not files or len(kinds) > 1:
            raise DataError(
                str(folder),
                f"holds several tables: {some(sorted(kinds))}" if kinds else "holds no files of this kind",
                given=[p.name for p in found][:10],
                expected=f"train{self.SUFFIXES[0]}, and valid or test beside it",
                remedy="name one file, and further ones with task.data.valid= and task.data.test=",
            )
        return files

    def from_rows(self, tables: Sequence[tuple[str, Rows]], folder: Path, target: Target, size: int | None) -> Splits:
        """Splits from tables."""
        first = tables[0][1]
        if sum(t.n for _, t in tables) == 0:
            raise DataError(str(self.path), "there are no rows", expected="at least one row of each class")
        labels = self._labels(first)
        image = self._image(first)
        split_column = self._known(first, self.split, "task.data.split") if self.split else None
        if split_column is None and len(tables) == 1 and "split" in first.columns and "split" not in labels:
            split_column = "split"
        reserved = {*labels, *([split_column] if split_column else [])}
        if image is None:
            asked = [self._known(first, f, "task.data.features") or f for f in self.features] if self.features else None
            wanted = asked or [n for n in first.names if n not in reserved and n not in first.pictures and n]
        else:
            wanted = [image]
        columns: dict[str, list[Any]] = {n: [] for n in dict.fromkeys([*labels, *wanted, *reserved])}
        where: list[str] = []
        splits: list[str] = []
        for split, table in tables:
            missing = [n for n in columns if n not in table.columns and n != split_column]
            if missing:
                raise DataError(
                    f"{self.path} ({split})",
                    f"lacks the columns {some(missing)}",
                    given=table.names,
                    expected="the same columns",
                )
            for n in columns:
                if n in table.columns:
                    columns[n].extend(table.columns[n])
            where.extend(table.where(i) for i in range(table.n))
            splits.extend([split] * table.n)
        if split_column is not None:
            splits = self._splits(columns[split_column], where)
        known = first.classes.get(labels[0]) if len(labels) == 1 else None
        if self.classes is not None:
            known = read_names(as_path(self.classes, "task.data.classes"))
        y, names, kind = read_targets(
            {n: columns[n] for n in labels}, target, where.__getitem__, known=known, separator=self.separator
        )
        everything = torch.arange(len(y))
        if image is None:
            train = np.array([s == "train" for s in splits])
            x, _, notes = read_features({n: columns[n] for n in wanted}, self.features, train, where.__getitem__)
            return assemble(ArrayData(x, y), everything, splits, names, kind, notes)
        files = self._files(columns[image], where, image, folder)
        items, good, notes = self._load(files, y, size)
        return assemble(items, good, splits, names, kind, notes)

    def _known(self, rows: Rows, name: str, argument: str) -> str:
        if name not in rows.columns:
            raise DataError.unknown(argument, name, rows.names, "column")
        return name

    def _labels(self, rows: Rows) -> list[str]:
        if self.label is not None:
            asked = [self.label] if isinstance(self.label, str) else list(self.label)
            if not asked:
                raise ConfigError("task.data.label", given=self.label, expected="at least one column")
            return [self._known(rows, n, "task.data.label") for n in asked]
        named = [n for n in rows.names if n in rows.classes]
        lowered = {n.lower(): n for n in rows.names}
        for n in self.LABELS:
            if n in lowered:
                return [lowered[n]]
        if len(named) == 1:
            return named
        raise DataError(
            str(self.path), "which column is the label?", given=rows.names, remedy="name it with task.data.label=COLUMN"
        )

    def _image(self, rows: Rows) -> str | None:
        if self.image is not None:
            return self._known(rows, self.image, "task.data.image")
        if self.features is not None:
            return None
        if rows.pictures:
            return rows.pictures[0]
        lowered = {n.lower(): n for n in rows.names}
        for n in self.IMAGES:
            if n in lowered and rows.n:
                cell = rows.columns[lowered[n]][0]
                if isinstance(cell, (bytes, dict)) or (
                    isinstance(cell, str) and Path(cell).suffix.lower() in EXTENSIONS
                ):
                    return lowered[n]
        return None

    def _splits(self, cells: Sequence[Any], where: Sequence[str]) -> list[str]:
        found = [SPLITS.get(str(c).strip().lower(), "") for c in cells]
        bad = [f"{where[i]} ({cells[i]})" for i, s in enumerate(found) if not s]
        if bad:
            raise DataError("task.data.split", f"names no split at {some(bad)}", expected="train, valid or test")
        return found

    def _files(self, cells: Sequence[Any], where: Sequence[str], column: str, folder: Path) -> list[Bytes]:
        """A picture file for each cell: bytes, ``{bytes, path}`` or a path below ``root``."""
        root = as_path(self.root, "task.data.root") if self.root else folder
        archive = {f.name: f for f in list_files(root)} if root.is_file() else None
        short: dict[str, list[File]] = {}
        if archive is not None:  # a table often leaves the split's folder out of the name
            for f in archive.values():
                short.setdefault(f.name.rsplit("/", 1)[-1], []).append(f)
        elif not root.is_dir():
            raise DataError("task.data.root", "there is no such folder or archive", given=str(root))
        made: list[Bytes] = []
        bad: list[str] = []
        for cell, place in zip(cells, where, strict=True):
            inner = cell.get("bytes") if isinstance(cell, dict) else cell
            path = cell.get("path") if isinstance(cell, dict) else cell
            if isinstance(inner, (bytes, bytearray, memoryview)):
                made.append(Blob(place, bytes(inner)))
            elif isinstance(cell, (Blob, File)) or hasattr(cell, "read"):
                made.append(cell)
            elif not isinstance(path, str) or not path.strip():
                bad.append(place)
            elif archive is not None:
                name = path.strip().removeprefix("./")
                near = short.get(name.rsplit("/", 1)[-1], [])
                if name in archive:
                    made.append(archive[name])
                elif len(near) == 1:
                    made.append(near[0])
                else:
                    made.append(File(f"{root.name}:{name}", root / name))
            else:
                made.append(File(path.strip(), root / path.strip()))
        if bad:
            raise DataError("task.data.image", f"column {column!r} names no picture at {some(bad)}")
        return made


class Table(_Tabular):
    """A CSV or TSV file: fields may be quoted and hold line breaks, a byte order mark is dropped, ``NA`` is a label.

    Args:
        delimiter: what stands between fields; by default a tab in ``.tsv``, else what the header line uses most of
            ``,`` ``;`` tab and ``|``.
        encoding: of the text; UTF-16 is recognised by its byte order mark.
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".tab", ".txt")

    def __init__(
        self,
        path: str,
        label: str | list[str] | None = None,
        image: str | None = None,
        features: list[str] | None = None,
        separator: str | None = None,
        split: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        classes: str | None = None,
        root: str | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        bad_files: BadFiles = "error",
        size: int | None = None,
        check: Check = "full",
        memory_mb: int = 1024,
    ) -> None:
        super().__init__(
            path,
            label,
            image,
            features,
            separator,
            split,
            valid,
            test,
            classes,
            root,
            bad_files,
            size,
            check,
            memory_mb,
        )
        if delimiter is not None and len(delimiter) != 1:
            raise ValueError("delimiter must be one character, or null")
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(f"encoding {encoding!r} is unknown") from None
        self.delimiter, self.encoding = delimiter, encoding

    def rows(self, path: Path) -> Rows:
        """The rows; a place is a line number of the file."""
        text = _text(path, self.encoding)
        first = text.lstrip("\r\n").split("\n", 1)[0]
        delimiter = self.delimiter or ("\t" if path.suffix.lower() in (".tsv", ".tab") else _delimiter(first))
        csv.field_size_limit(2**31 - 1)  # the default refuses fields above 131,072 characters
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        cells: list[list[str]] = []
        lines: list[int] = []
        odd: list[str] = []
        line = 1
        try:
            for record in reader:
                begun, line = line, reader.line_num + 1
                if not record or (len(record) == 1 and not record[0].strip()):
                    continue
                if header is None:
                    header = [name.strip() for name in record]
                    continue
                if len(record) != len(header):
                    odd.append(f"line {begun} ({len(record)})")
                    continue
                cells.append(record)
                lines.append(begun)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}", f"cannot be read as a table: {error}") from None
        if header is None:
            raise DataError(str(path), "the table is empty", expected="a header line and rows")
        if odd:
            raise DataError(
                str(path),
                f"the header has {len(header)} fields, but not {some(odd)}",
                remedy="quote fields that hold the delimiter, or name another with task.data.delimiter=",
            )
        twice = sorted({n for n in header if n and header.count(n) > 1})
        if twice:
            raise DataError(str(path), f"columns have the same name: {some(twice)}")
        columns = {n: [r[i] for r in cells] for i, n in enumerate(header) if n}
        return Rows(columns, lambda i: f"line {lines[i]}", len(cells))


def _text(path: Path, encoding: str) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror or error}") from None
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif raw[:3] == b"\xef\xbb\xbf":
        encoding = "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}",
            f"is no {encoding} text: {error.reason}",
            remedy="name the encoding, for example task.data.encoding=latin-1" if encoding == "utf-8" else "",
        ) from None
    if "\0" in text:
        raise DataError(
            f"{path}, line {text.count(chr(10), 0, text.index(chr(0))) + 1}", "holds a null character; is it a text?"
        )
    return text


def _delimiter(header: str) -> str:
    outside = re.sub(r'"[^"]*"', "", header)
    return max(",;\t|", key=outside.count)  # the first of equals: a comma


class Jsonl(_Tabular):
    """JSON lines: one object a line (or one JSON list of objects). What is wrong is named by its line."""

    SUFFIXES: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")

    def rows(self, path: Path) -> Rows:
        """The objects; keys are columns, and a key that an object lacks is an empty cell."""
        text = _text(path, "utf-8")
        records: list[dict[str, Any]] = []
        places: list[str] = []
        bad: list[str] = []
        if text.lstrip()[:1] == "[" and path.suffix.lower() == ".json":
            try:
                listed = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(str(path), f"is no JSON: {error}") from None
            for i, record in enumerate(listed):
                if isinstance(record, dict):
                    records.append(record)
                    places.append(f"object {i + 1}")
                else:
                    bad.append(f"object {i + 1}: not an object")
        else:
            for number, line in enumerate(text.split("\n"), 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    bad.append(f"line {number}: {getattr(error, 'msg', error)}")
                    continue
                if isinstance(record, dict):
                    records.append(record)
                    places.append(f"line {number}")
                else:
                    bad.append(f"line {number}: not an object")
        if bad:
            raise DataError(
                str(path), f"{len(bad)} lines cannot be read: {some(bad, 20)}", expected="one JSON object a line"
            )
        names = list(dict.fromkeys(k for r in records for k in r))
        return Rows({n: [r.get(n) for r in records] for n in names}, places.__getitem__, len(records))


class Parquet(_Tabular):
    """A parquet file. Class names and picture columns that the ``datasets`` library noted in it are heeded."""

    SUFFIXES: ClassVar[tuple[str, ...]] = (".parquet",)

    def rows(self, path: Path) -> Rows:
        """The rows; columns are read when they are used."""
        parquet = require("pyarrow.parquet", "language", "reading parquet")
        try:
            table = parquet.read_table(path)
        except Exception as error:
            raise DataError(
                str(path), f"cannot be read: {' '.join(str(error).split())[:200]}", expected="a parquet file"
            ) from None
        rows = Rows(
            _Lazily(table.column_names, lambda n: table.column(n).to_pylist()), lambda i: f"row {i}", table.num_rows
        )
        noted = (table.schema.metadata or {}).get(b"huggingface")
        try:
            features = json.loads(noted)["info"]["features"] if noted else {}
            for name, feature in features.items():
                if feature.get("_type") == "ClassLabel":
                    rows.classes[name] = [str(n) for n in feature["names"]]
                elif feature.get("_type") == "Image":
                    rows.pictures.append(name)
        except (ValueError, KeyError, TypeError, AttributeError):
            rows.classes, rows.pictures = {}, []
        return rows


class _Lazily(Mapping[str, Sequence[Any]]):
    """Columns that are read when they are asked for."""

    def __init__(self, names: Sequence[str], column: Callable[[str], Sequence[Any]]) -> None:
        self._names, self._column = list(names), column
        self._read: dict[str, Sequence[Any]] = {}

    def __getitem__(self, name: str) -> Sequence[Any]:
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
    """

    paths: ClassVar[tuple[str, ...]] = ("name",)

    def __init__(
        self,
        name: str,
        config: str | None = None,
        label: str | list[str] | None = None,
        image: str | None = None,
        features: list[str] | None = None,
        separator: str | None = None,
        bad_files: BadFiles = "error",
        size: int | None = None,
        check: Check = "full",
        memory_mb: int = 1024,
    ) -> None:
        super().__init__(
            name, label, image, features, separator, bad_files=bad_files, size=size, check=check, memory_mb=memory_mb
        )
        self.name, self.configuration = name, config

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The data set's splits."""
        local = as_path(self.name, "task.data.name")
        for source in (Table, Jsonl, Parquet):
            if local.suffix.lower() in source.SUFFIXES or (local.is_dir() and self._files_of(local, source.SUFFIXES)):
                return source(
                    self.name,
                    self.label,
                    self.image,
                    self.features,
                    self.separator,
                    bad_files=self.bad_files,
                    size=self.size,
                    check=self.check,
                    memory_mb=self.memory_mb,
                ).read(target, size)
        library = require("datasets", "language", "reading Hugging Face data sets")
        try:
            found = (
                library.load_from_disk(str(local))
                if local.is_dir()
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
        tables, left = [], []
        for name, part in groups.items():
            split = SPLITS.get(re.split(r"[-_.\d]", name.lower())[0])
            (tables.append((split, self._rows_of(part, library))) if split else left.append(name))
        if not any(s == "train" for s, _ in tables):
            raise DataError("task.data.name", "the data set has no train split", given=list(groups))
        splits = self.from_rows(tables, local if local.is_dir() else Path(), target, size)
        if left:
            splits.notes.append(f"splits that are neither train, valid nor test were left out: {some(left)}")
        return splits

    @staticmethod
    def _files_of(folder: Path, suffixes: Sequence[str]) -> bool:
        if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
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
        rows.pictures = pictures
        for n, f in part.features.items():
            inner = getattr(f, "feature", f)
            if isinstance(inner, library.ClassLabel):
                rows.classes[n] = list(inner.names)
        return rows


class _Cell:
    """A picture in a row of a Hugging Face data set, read from disk when it is needed."""

    def __init__(self, part: Any, row: int, column: str) -> None:
        self.part, self.row, self.column, self.name = part, row, column, f"row {row}"

    def read(self) -> bytes:
        """All bytes."""
        cell = self.part[self.row][self.column]
        if cell is None:
            raise OSError("the cell is empty")
        raw = cell.get("bytes")
        return bytes(raw) if raw is not None else Path(cell["path"]).read_bytes()
