"""Delimited text (CSV, TSV) as columns: by pyarrow where it is installed and reads the same, else by Python's csv module.

Both give the same cells. pyarrow is asked only where the file says the same to both: plain UTF-8 whose quotes stand around
whole fields. Everything odd is left to the csv module, which names it by its line.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.cells import Cells, Coded, Rows, from_arrow
from limbeck.data.names import composed, counted, some
from limbeck.errors import DataError
from limbeck.storage.plain import opened

Texts = Callable[[Sequence[str]], "set[str]"]
"""From the header to the columns that must stay as they are written: labels, where 01 and 1 are two."""

FAST = 4 << 20
"""Bytes from which on pyarrow is worth its start."""

_BLOCK = 4096  # rows that are looked at together


def read_delimited(path: Path, encoding: str, delimiter: str | None, texts: Texts, skip: bool = False) -> Rows:
    """A file of delimited text. A place is a line number of the file.

    Args:
        path: the file.
        encoding: of its text; a byte order mark wins over it.
        delimiter: what stands between fields; ``None``: what the header line uses most of ``,`` ``;`` tab and ``|``.
        texts: which columns stay as they are written; others of numbers become numbers.
        skip: leave out rows with more or fewer fields than the header, and say so; else they are an error.

    Raises:
        DataError: it is no text in that encoding, no table, empty, or two columns have the same name.
    """
    file = _Opened(path, encoding)
    try:
        header = _header(file, delimiter)
        wanted = texts(header.names)
        rows = _by_pyarrow(file, header, wanted) if _is_plain(file, header) else None
        while rows is None:
            rows = _Records(file, header).columns(wanted | header.late, skip)
        return rows
    finally:
        file.close()


def read_text(path: Path, encoding: str) -> str:
    """A whole text file.

    Raises:
        DataError: it is no text in that encoding.
    """
    file = _Opened(path, encoding)
    try:
        return "".join(file.lines())
    finally:
        file.close()


class _Opened:
    """A text file: its bytes, mapped; its encoding; and its lines."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.path, self.asked = path, encoding
        self.raw: mmap.mmap | bytes = b""
        try:
            with opened(path) as file:
                if os.fstat(file.fileno()).st_size:
                    self.raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(str(path), f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
        head = bytes(self.raw[:3])
        self.encoding = encoding
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            self.encoding = "utf-16"
        elif head == b"\xef\xbb\xbf":
            self.encoding = "utf-8-sig"
        zero = (
            self.raw.find(b"\0")
            if self.encoding != "utf-16" and not re.match(r"utf[-_]?(16|32)", encoding, re.I)
            else -1
        )
        if zero >= 0:
            raise DataError(f"{path}, line {self._line(zero)}", "holds a null character; is it a text?")

    def close(self) -> None:
        """Let go of the file."""
        if isinstance(self.raw, mmap.mmap):
            with contextlib.suppress(BufferError):  # pyarrow may still hold it, and lets it go with its table
                self.raw.close()

    def lines(self) -> Iterator[str]:
        """The lines with their ends; DataError names the line that is no text."""
        try:
            with io.TextIOWrapper(opened(self.path), encoding=self.encoding, newline="") as stream:
                yield from stream
        except UnicodeDecodeError:
            raise self._undecodable() from None
        except OSError as error:  # a disk that fails; what only looks like a file (/proc/self/mem)
            raise DataError(str(self.path), f"cannot be read: {error.strerror or error}") from None

    def _undecodable(self) -> DataError:
        try:
            bytes(self.raw).decode(self.encoding)
        except UnicodeDecodeError as error:
            return DataError(
                f"{self.path}, line {self._line(error.start)}",
                f"is no {self.encoding} text: {error.reason}",
                remedy="name the encoding, for example task.data.encoding=cp1252 (Windows) or latin-1",
            )
        return DataError(str(self.path), f"is no {self.encoding} text")

    def _line(self, at: int) -> int:
        return bytes(self.raw[:at]).count(b"\n") + 1


class _Header:
    """The names of the columns, and what stands between them.

    Attributes:
        names: as they are compared; empty for a column without a name.
        late: columns that looked like numbers at first and are none.
    """

    def __init__(self, names: list[str], delimiter: str) -> None:
        self.names, self.delimiter = names, delimiter
        self.late: set[str] = set()


def _header(file: _Opened, delimiter: str | None) -> _Header:
    first = next((line for line in file.lines() if line.strip()), None)
    if first is None:
        raise DataError(str(file.path), "the table is empty", expected="a header line and rows")
    if delimiter is None:
        delimiter = "\t" if file.path.suffix.lower() in (".tsv", ".tab") else _delimiter(first)
    found = next((record for record, _ in _Records(file, _Header([], delimiter)).records()), [])
    names = [composed(name.strip()) for name in found]
    twice = sorted({n for n in names if n and names.count(n) > 1})
    if twice:
        raise DataError(str(file.path), f"columns have the same name: {some(twice)}")
    return _Header(names, delimiter)


def _delimiter(header: str) -> str:
    outside = re.sub(r'"[^"]*"', "", header)
    return max(",;\t|", key=outside.count)  # the first of equals: a comma


def _rows(header: _Header, columns: Sequence[Cells], where: Callable[[int], str], n: int) -> Rows:
    unnamed = header.names.count("")
    notes = [f"{counted(unnamed, 'column')} without a name in the header left out"] if unnamed else []
    named = {name: column for name, column in zip(header.names, columns, strict=True) if name}
    return Rows(named, where, n, notes)


# ------------------------------------------------------------------------------------------------------- the csv module
class _Records:
    """The records of a file, by the csv module."""

    def __init__(self, file: _Opened, header: _Header) -> None:
        self.file, self.header = file, header

    def records(self) -> Iterator[tuple[list[str], int]]:
        """Each record that is not blank, with the line on which it begins; the header first."""
        csv.field_size_limit(2**31 - 1)  # the default refuses fields above 131,072 characters
        reader = csv.reader(self.file.lines(), delimiter=self.header.delimiter, strict=True)
        line = 1
        try:
            for record in reader:
                begun, line = line, reader.line_num + 1
                if record and (len(record) > 1 or record[0].strip()):
                    yield record, begun
        except csv.Error as error:
            where = f"{self.file.path}, line {reader.line_num}"
            raise DataError(where, f"cannot be read as a table: {error}") from None

    def lines(self) -> np.ndarray[Any, Any]:
        """On which line each row begins."""
        records = self.records()
        next(records)
        return np.fromiter((line for _, line in records), np.int64)

    def columns(self, texts: set[str], skip: bool) -> Rows | None:
        """The table; ``None`` if a column of numbers turned out to be none (``header.late``)."""
        names, late = self.header.names, self.header.late
        odd: list[str] = []
        lines: list[np.ndarray[Any, Any]] = []
        made: list[_Column] = []
        records = self.records()
        next(records)
        for block, begun in _blocks(records, len(names), odd):
            if not made:
                numeric = [n not in texts and _numbers(c) is not None for n, c in zip(names, block, strict=True)]
                made = [_Column(n) for n in numeric]
            for column, name, cells in zip(made, names, block, strict=True):
                if not column.add(cells):
                    late.add(name)
            lines.append(begun)
        if odd and not skip:
            raise DataError(
                str(self.file.path),
                f"the header has {len(names)} fields, separated by {self.header.delimiter!r}, but not {some(odd)}",
                remedy="quote fields that hold the delimiter, name another with task.data.delimiter=, "
                "or leave these rows out with task.data.bad_rows=skip",
            )
        if late - texts:
            return None
        begins = np.concatenate(lines) if lines else np.zeros(0, np.int64)
        columns = [column.cells() for column in made] if made else [[] for _ in names]
        rows = _rows(self.header, columns, lambda i: f"line {begins[i]}", len(begins))
        if odd:
            rows.notes.append(f"{counted(len(odd), 'row')} left out without {len(names)} fields: {some(odd)}")
        return rows


def _blocks(
    records: Iterable[tuple[list[str], int]], width: int, odd: list[str]
) -> Iterator[tuple[list[tuple[str, ...]], np.ndarray[Any, Any]]]:
    """Columns of some thousand rows at a time, and their lines; records of another width go to ``odd``."""
    held: list[list[str]] = []
    lines: list[int] = []
    for record, line in records:
        if len(record) != width:
            odd.append(f"line {line} ({len(record)})")
            continue
        held.append(record)
        lines.append(line)
        if len(held) == _BLOCK:
            yield list(zip(*held, strict=True)), np.array(lines)
            held, lines = [], []
    if held:
        yield list(zip(*held, strict=True)), np.array(lines)


class _Column:
    """A column while it is read: numbers, or places in the list of its texts."""

    def __init__(self, numeric: bool) -> None:
        self.numeric = numeric
        self.parts: list[np.ndarray[Any, Any]] = []
        self.places: dict[str, int] = {}

    def add(self, cells: Sequence[str]) -> bool:
        """Some more cells; whether they are what the first ones were."""
        if not self.numeric:
            places = self.places
            self.parts.append(np.fromiter((places.setdefault(c, len(places)) for c in cells), np.int32, len(cells)))
            return True
        values = _numbers(cells)
        if values is not None:
            self.parts.append(values)
        return values is not None

    def cells(self) -> Cells:
        """All of them."""
        together = np.concatenate(self.parts)
        return together if self.numeric else Coded(together, list(self.places))


def _numbers(cells: Sequence[str]) -> np.ndarray[Any, Any] | None:
    text = "".join(cells)
    if "_" in text or not text.isascii():  # Python reads 1_000 and other scripts' digits as numbers
        return None
    try:
        return np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        return None


# -------------------------------------------------------------------------------------------------------------- pyarrow
def _is_plain(file: _Opened, header: _Header) -> bool:
    """Whether pyarrow is here, worth its start, and reads this file as the csv module does."""
    if len(file.raw) < FAST or file.encoding not in ("utf-8", "utf-8-sig", "utf8") or len(header.names) < 2:
        return False
    if importlib.util.find_spec("pyarrow") is None or not header.delimiter.isascii():
        return False
    return _reads_alike(file.raw, header.delimiter)


def _reads_alike(raw: mmap.mmap | bytes, delimiter: str) -> bool:
    """Whether the header is the first line, and every quoted field begins and ends where a field does: a quote elsewhere
    is read in different ways."""
    data = np.frombuffer(raw, np.uint8)
    data = data[3:] if data[:3].tobytes() == b"\xef\xbb\xbf" else data
    if data[0] in (10, 13):  # pyarrow would take the blank line for the header
        return False
    at = np.flatnonzero(data == ord('"'))
    if len(at) % 2:
        return False
    ends = np.zeros(256, bool)
    ends[[ord(delimiter), 10, 13, 34]] = True  # a quote beside a quote is one of the text
    opening, closing = at[::2], at[1::2]
    before, after = opening[opening > 0] - 1, closing[closing < len(data) - 1] + 1
    return bool(ends[data[before]].all() and ends[data[after]].all())


def _by_pyarrow(file: _Opened, header: _Header, wanted: set[str]) -> Rows | None:
    """The table; ``None`` where pyarrow stumbles, so that the csv module can say over what."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    names = [str(i) for i in range(len(header.names))]
    sample = next(_blocks(_after_header(_Records(file, header)), len(names), []), None)
    if sample is None:
        return None
    kinds = {
        i: pa.float64() if header.names[int(i)] not in wanted and _numbers(cells) is not None else pa.string()
        for i, cells in zip(names, sample[0], strict=True)
    }
    for types in (kinds, dict.fromkeys(names, pa.string())):
        try:
            table = arrow.read_csv(
                pa.py_buffer(file.raw),
                arrow.ReadOptions(column_names=names, skip_rows_after_names=1),
                arrow.ParseOptions(delimiter=header.delimiter, newlines_in_values=True),
                arrow.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=False),
            )
        except pa.ArrowInvalid:
            continue
        columns = [from_arrow(table.column(i)) for i in names]
        places = _Places(file.path, file.asked, header)
        return _rows(header, columns, places, table.num_rows)
    return None


def _after_header(records: _Records) -> Iterator[tuple[list[str], int]]:
    found = records.records()
    next(found)
    yield from found


class _Places:
    """On which line a row begins: looked up when it is first asked, which is when something is wrong."""

    def __init__(self, path: Path, encoding: str, header: _Header) -> None:
        self.path, self.encoding, self.header = path, encoding, header
        self.lines: np.ndarray[Any, Any] | None = None

    def __call__(self, row: int) -> str:
        if self.lines is None:
            file = _Opened(self.path, self.encoding)
            try:
                self.lines = _Records(file, self.header).lines()
            finally:
                file.close()
        return f"line {self.lines[row]}"
