"""What somebody hands to a trained network: image files, arrays, tables, texts, without targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from limbeck.data.cells import Cells, Coded, Rows, coded, is_missing, number_of, numbers_of, text_of
from limbeck.data.delimited import read_delimited
from limbeck.data.items import as_path, to_unit
from limbeck.data.labelled_text import PAIRS, TEXTS
from limbeck.data.listing import LARGEST
from limbeck.data.names import same_letters, some
from limbeck.data.pictures import EXTENSIONS, Unranged, Unreadable, decode, fit, list_pictures, three_channels
from limbeck.data.tables import Jsonl, Parquet, rows_of_frame
from limbeck.data.text import Document
from limbeck.errors import DataError, shorten
from limbeck.grammar.method import Batch
from limbeck.storage.plain import read_bytes

TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet")
"""Endings of files with rows."""


class Asked(Protocol):
    """Items without targets, and how each is called in what is answered.

    Attributes:
        names: of the items: a file, ``file row 3``, or a number.
    """

    names: list[str]

    def __len__(self) -> int: ...

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch, as the task feeds them."""


def is_path(given: Any) -> bool:
    """Whether something is the name of a file or folder."""
    return isinstance(given, (str, Path))


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, (list, tuple)) else [given]


# -------------------------------------------------------------------------------------------------------------- images
class AskedPictures:
    """Images, brought to the size of those that a network was trained on.

    Args:
        given: files, folders of images (all below them), arrays ``[N, C, H, W]`` or ``[N, H, W, C]`` (bytes, or floats in
            [0, 1]; a single one too), PIL images, or a list of such.
        shape: (channels, height, width) of the task's images.
        steps: ``resize_mode`` of `limbeck.tasks.items`: ``cover``, ``stretch`` or ``contain``; ``scale`` of deep images.

    Raises:
        DataError: a file that is not there, or no image by its ending; an array of another shape or range.
    """

    def __init__(self, given: Any, shape: tuple[int, ...], steps: Mapping[str, Any]) -> None:
        if len(shape) != 3:
            raise DataError("inputs", "the network takes rows, not images", expected=f"rows of {shape[0]} numbers")
        self.shape, self.how = shape, str(steps.get("resize_mode") or "cover")
        self.scale = steps.get("scale")
        self.names: list[str] = []
        self._read: list[Any] = []
        for one in _listed(given):
            self._take(one)
        if not self._read:
            raise DataError("inputs", "there are no images", expected="image files, folders of them, or arrays")
        self._pool: ThreadPoolExecutor | None = None
        self._sizes: dict[int, tuple[int, int]] = {}

    def _take(self, one: Any) -> None:
        if is_path(one):
            path = as_path(one, "inputs")
            if path.is_dir():
                found = list_pictures(path).found
                if not found:
                    raise DataError(str(path), "there are no images in this folder", expected="image files")
                self.names += [str(path / f.name) for f in found]
                self._read += found
                return
            if not path.exists():
                raise DataError(str(path), "there is no such file or folder", remedy="check the path")
            if path.suffix.lower() not in EXTENSIONS:
                raise DataError(
                    str(path), "is not an image file, and this network takes images", expected="jpg, png, ..."
                )
            self.names.append(str(one))
            self._read.append(path)
            return
        if hasattr(one, "getbands") and hasattr(one, "convert"):  # a PIL image
            self.names.append(str(getattr(one, "filename", "") or len(self.names)))
            self._read.append(three_channels(one))
            return
        for x in as_pictures(one):
            self.names.append(str(len(self.names)))
            self._read.append(x)

    def __len__(self) -> int:
        return len(self.names)

    def original(self, i: int) -> Tensor:
        """A image as it was given, upright, [C, H, W].

        Raises:
            DataError: it cannot be read.
        """
        one = self._read[i]
        if isinstance(one, Tensor):
            return one
        try:
            raw = read_bytes(one, LARGEST) if isinstance(one, Path) else one.read()
            return decode(raw, self.scale, max(self.shape[1:]) if self.how == "cover" else None)
        except (Unreadable, Unranged) as error:
            raise DataError(self.names[i], f"cannot be read: {error}", expected="an image file") from None
        except OSError as error:
            raise DataError(self.names[i], f"cannot be read: {error.strerror or error}") from None

    def size_of(self, i: int) -> tuple[int, int]:
        """(height, width) of an image as it was given."""
        if i not in self._sizes:
            x = self.original(i)
            self._sizes[i] = int(x.shape[-2]), int(x.shape[-1])
        return self._sizes[i]

    def _one(self, i: int) -> Tensor:
        x = self.original(i)
        self._sizes[i] = int(x.shape[-2]), int(x.shape[-1])
        return self.brought(x)

    def brought(self, x: Tensor) -> Tensor:
        """A image [C, H, W] with the task's size and channels, float32 in [0, 1]."""
        return to_unit(of_channels(fitted(x, (self.shape[1], self.shape[2]), self.how), self.shape[0]))

    def fetch(self, items: Tensor) -> Batch:
        """``x`` float32 [n, C, H, W] in [0, 1]."""
        ids = items.tolist()
        if len(ids) > 4 and not isinstance(self._read[ids[0]], Tensor):
            self._pool = self._pool or ThreadPoolExecutor(4)
            return {"x": torch.stack(list(self._pool.map(self._one, ids)))}
        return {"x": torch.stack([self._one(i) for i in ids])}


def as_pictures(given: Any) -> Tensor:
    """An array of images [N, C, H, W], of one [C, H, W] or [H, W], channels first or last: bytes, or floats in [0, 1].

    Raises:
        DataError: another shape; values outside of [0, 1].
    """
    try:
        x = given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(np.asarray(given))
    except (TypeError, ValueError):
        raise DataError("inputs", given=shorten(given), expected="image files, folders, or arrays") from None
    if x.ndim == 2:
        x = x[None, None]
    elif x.ndim == 3:  # one image of few channels, or several grey ones
        x = x[None] if x.shape[0] in (1, 3) or x.shape[-1] in (1, 3) else x[:, None]
    if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[-1] in (1, 3):
        x = x.movedim(-1, 1)
    if x.ndim != 4 or not x.numel():
        raise DataError(
            "inputs", "is not an array of images", given=list(x.shape), expected="[N, C, H, W] or [N, H, W, C]"
        )
    if x.dtype in (torch.uint8, torch.uint16):
        return x
    x = x.float()
    if not bool(torch.isfinite(x).all()) or float(x.min()) < 0 or float(x.max()) > 1:
        low, high = float(x.min()), float(x.max())
        raise DataError(
            "inputs", f"the values run from {low:g} to {high:g}", expected="bytes, or floats in [0, 1]",
            remedy="divide them by 255, or hand over uint8",
        )  # fmt: skip
    return x


def fitted(x: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """A image [C, H, W] brought to (height, width) in the way of the training images.

    Args:
        x: bytes, or floats in [0, 1].
        size: where to.
        how: ``cover``: resized until it covers the size, the middle cut out; ``stretch``: resized to it; ``contain``: resized
            until it fits, the rest at right and below black.
    """
    high, wide = x.shape[-2:]
    if (high, wide) == tuple(size):
        return x
    if how == "cover" and size[0] == size[1]:
        return fit(x, size[0])
    x = to_unit(x) if x.dtype == torch.uint16 else x
    if how == "stretch":
        new = size
    else:
        pick = max if how == "cover" else min
        scale = pick(size[0] / high, size[1] / wide)
        new = max(1, round(high * scale)), max(1, round(wide * scale))
        if how == "cover":
            new = max(size[0], new[0]), max(size[1], new[1])
    if new != (high, wide):
        x = interpolate(x[None], new, mode="bilinear", align_corners=False, antialias=True)[0]
        x = x.clamp(0, 1) if x.is_floating_point() else x
    if how == "stretch":
        return x
    if how == "cover":
        top, left = (new[0] - size[0]) // 2, (new[1] - size[1]) // 2
        return x[:, top : top + size[0], left : left + size[1]].contiguous()
    whole = x.new_zeros(len(x), *size)
    whole[:, : new[0], : new[1]] = x[:, : size[0], : size[1]]
    return whole


def unfitted(points: Tensor, given: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Points [..., 2] (x, y) of an image that was brought into a size by ``contain``, in the pixels of the image itself.

    Args:
        points: in the pixels of what the network saw.
        given: (height, width) of the image.
        size: (height, width) that it was brought into.

    Example:
        >>> unfitted(torch.tensor([24.0, 12.0]), (40, 80), (48, 48)).tolist()
        [40.0, 20.0]
    """
    if tuple(given) == tuple(size):
        return points
    scale = min(size[0] / given[0], size[1] / given[1])
    new = max(1, round(given[0] * scale)), max(1, round(given[1] * scale))
    return points / torch.tensor([new[1] / given[1], new[0] / given[0]])


def of_channels(x: Tensor, channels: int) -> Tensor:
    """A image [C, H, W] with as many channels as those that were trained on: grey repeated, colours weighted to grey."""
    if len(x) == channels:
        return x
    if len(x) == 1:
        return x.expand(channels, -1, -1)
    if channels == 1:
        if all(torch.equal(x[0], c) for c in x[1:]):  # a grey image, which files hold in three channels
            return x[:1]
        weights = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601 luma
        return (to_unit(x)[:3] * weights.view(3, 1, 1)).sum(0, keepdim=True)
    raise DataError("inputs", f"an image has {len(x)} channels", expected=f"1 or {channels}")


# ------------------------------------------------------------------------------------------------------------------ rows
class AskedRows:
    """Rows of numbers as they are.

    Args:
        x: [N, F] of float32.
        names: of the rows.
    """

    def __init__(self, x: Tensor, names: list[str]) -> None:
        self.x, self.names = x, names

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, items: Tensor) -> Batch:
        """``x`` float32 [n, F]."""
        return {"x": self.x.index_select(0, items)}


def read_tables(given: Any) -> tuple[list[Rows], list[str]]:
    """Files of rows, or DataFrames, as tables with the names of their rows.

    Raises:
        DataError: something else.
    """
    tables, names = [], []
    for one in _listed(given):
        if hasattr(one, "columns") and hasattr(one, "iloc"):
            tables.append(rows_of_frame(one))
            names += [str(i) for i in one.index]
            continue
        if isinstance(one, Mapping):
            tables.append(Rows({str(k): list(v) for k, v in one.items()}, str, max(map(len, one.values()), default=0)))
            names += [str(i) for i in range(tables[-1].n)]
            continue
        if not is_path(one):
            raise DataError("inputs", given=shorten(one), expected="a DataFrame, or a csv, jsonl or parquet file")
        path = as_path(one, "inputs")
        if not path.is_file():
            raise DataError(str(path), "there is no such file", remedy="check the path")
        low = path.suffix.lower()
        if low in (".csv", ".tsv", ".tab"):
            tables.append(read_delimited(path, "utf-8", None, lambda names: set()))
        elif low in (".jsonl", ".ndjson", ".json"):
            tables.append(Jsonl(str(path)).rows(path))
        elif low == ".parquet":
            tables.append(Parquet(str(path)).rows(path))
        else:
            raise DataError(str(path), "is not a table", expected=", ".join(TABLES))
        names += [f"{path.name} row {i + 1}" for i in range(tables[-1].n)]
    return tables, names


def asked_rows(given: Any, width: int, columns: Sequence[str]) -> AskedRows:
    """Rows of numbers: an array [N, F], or a table whose columns are found by the names of those that were trained on.

    Args:
        given: arrays, a DataFrame, or files of rows.
        width: numbers in a row.
        columns: what each of them was called (``colour=red``: whether the column colour says red; ``x[2]``: the third
            number of lists); empty where that is not known: then all columns of numbers are taken in their order.

    Raises:
        DataError: columns that are missing, cells that are no numbers, another number of columns.
    """
    if isinstance(given, (Tensor, np.ndarray)) or (
        isinstance(given, (list, tuple)) and given and not is_path(given[0]) and not hasattr(given[0], "columns")
        and not isinstance(given[0], Mapping)
    ):  # fmt: skip
        try:
            x = torch.as_tensor(np.asarray(given.cpu() if isinstance(given, Tensor) else given, dtype=np.float32))
        except (TypeError, ValueError):
            raise DataError("inputs", given=shorten(given), expected=f"rows of {width} numbers") from None
        x = x[None] if x.ndim == 1 else x
        if x.ndim != 2 or x.shape[1] != width:
            raise DataError("inputs", given=list(x.shape), expected=f"[N, {width}], a row of {width} numbers an item")
        return AskedRows(_finite(x), [str(i) for i in range(len(x))])
    tables, names = read_tables(given)
    parts = []
    for table in tables:
        wanted = list(columns)
        if not wanted:
            wanted = [n for n in table.names if _numeric(table.columns[n])]
        if len(wanted) != width:
            raise DataError(
                "inputs", f"the table has {len(wanted)} columns of numbers", given=wanted, expected=f"{width} of them"
            )
        parts.append(np.stack([_column(table, name) for name in wanted], 1) if table.n else np.zeros((0, width)))
    return AskedRows(_finite(torch.from_numpy(np.concatenate(parts)).float()), names)


def _finite(x: Tensor) -> Tensor:
    bad = (~torch.isfinite(x)).any(1).nonzero()[:, 0]
    if len(bad):
        shown = some([str(int(i)) for i in bad])
        raise DataError(
            "inputs", f"{len(bad)} rows hold NaN, infinity or no number: {shown}", expected="finite numbers"
        )
    return x


def _numeric(cells: Cells) -> bool:
    if isinstance(cells, np.ndarray):
        return bool(cells.dtype.kind in "iuf")
    return all(number_of(c) is not None for c in (cells.values if isinstance(cells, Coded) else cells))


def _column(table: Rows, name: str) -> np.ndarray[Any, Any]:
    """A trained column by its name: itself, one value of a text column, or one place of a column of lists."""
    base, _, value = name.rpartition("=")
    of = same_letters(name, table.names) if name not in table.columns else name
    if of is not None:
        return numbers_of(table.columns[of])
    if base and (same := base if base in table.columns else same_letters(base, table.names)):
        return np.array([0.0 if is_missing(c) else float(text_of(c) == value) for c in table.columns[same]])
    inner, _, place = name.removesuffix("]").rpartition("[")
    if inner in table.columns and place.isdigit():
        return np.array([float(c[int(place)]) for c in table.columns[inner]])
    raise DataError.unknown("inputs", name, table.names, "column that the network was trained on")


def columns_of(given: Any, needed: Sequence[str]) -> tuple[dict[str, Cells], list[str]]:
    """Columns of a table by their names, over all files, and the names of the rows.

    Raises:
        DataError: columns that are missing.
    """
    tables, names = read_tables(given)
    found: dict[str, Cells] = {}
    for name in needed:
        cells: list[Any] = []
        for table in tables:
            of = name if name in table.columns else same_letters(name, table.names)
            if of is None:
                raise DataError.unknown("inputs", name, table.names, "column that the network was trained on")
            cells += list(table.columns[of])
        found[name] = coded(cells)
    return found, names


# ----------------------------------------------------------------------------------------------------------------- texts
def asked_texts(given: Any, files: bool | None = None) -> tuple[list[Document], list[str]]:
    """Texts, or pairs of texts, and how they are called.

    Args:
        given: texts, pairs of them (tuples), a DataFrame, or files: ``.txt`` is one text, a table has a column of them.
        files: whether words name files; ``None``: those do that are a path and exist.

    Raises:
        DataError: something else, or a text without letters.
    """
    documents: list[Document] = []
    names: list[str] = []
    many = given if isinstance(given, (list, tuple)) and not _pair(given) else [given]
    for one in many:
        if _pair(one):
            documents.append(Document(str(one[1]), str(one[0])))
            names.append(str(len(names)))
        elif hasattr(one, "columns") and hasattr(one, "iloc"):
            _from_table(*read_tables(one), documents, names)
        elif isinstance(one, Path) or (isinstance(one, str) and (files or (files is None and _exists(one)))):
            _from_file(as_path(one, "inputs"), documents, names)
        elif isinstance(one, str):
            documents.append(Document(one))
            names.append(str(len(names)))
        else:
            raise DataError("inputs", given=shorten(one), expected="texts, pairs of texts, a DataFrame, or files")
    if not documents:
        raise DataError("inputs", "there is no text", expected="texts or files")
    blank = [n for n, d in zip(names, documents, strict=True) if not d.text.strip()]
    if blank:
        raise DataError("inputs", f"{len(blank)} texts are blank: {some(blank)}", expected="texts")
    return documents, names


def _pair(one: Any) -> bool:
    return isinstance(one, tuple) and len(one) == 2 and all(isinstance(t, str) for t in one)


def _exists(text: str) -> bool:
    try:
        return len(text) < 4096 and "\n" not in text and Path(text).is_file()
    except (OSError, ValueError):
        return False


def _from_file(path: Path, documents: list[Document], names: list[str]) -> None:
    if not path.is_file():
        raise DataError(str(path), "there is no such file", remedy="check the path")
    if path.suffix.lower() in TABLES:
        _from_table(*read_tables(path), documents, names)
        return
    if path.suffix.lower() in EXTENSIONS:
        raise DataError(str(path), "is an image, and this network takes texts", expected="txt, csv, jsonl or parquet")
    try:
        text = read_bytes(path, LARGEST).decode("utf-8-sig")
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(str(path), "is not UTF-8 text", expected="a text file") from None
    documents.append(Document(text, "", (), str(path)))
    names.append(str(path))


def _from_table(tables: Sequence[Rows], rows: list[str], documents: list[Document], names: list[str]) -> None:
    for table in tables:
        pair = next((p for p in PAIRS if all(n in table.columns for n in p)), None)
        prompt = next(
            (p for p in (("prompt", "completion"), ("question", "answer")) if set(p) <= set(table.names)), None
        )
        both = pair or prompt
        one = next((n for n in TEXTS if n in table.columns), None)
        if both is None and one is None:
            texts = [n for n in table.names if not _numeric(table.columns[n])]
            if len(texts) != 1:
                raise DataError(
                    "inputs", f"no column is called {', '.join(TEXTS)}", given=table.names, expected="a column of texts"
                )
            one = texts[0]
        if both is not None:
            documents += [
                Document(text_of(b), text_of(a))
                for a, b in zip(table.columns[both[0]], table.columns[both[1]], strict=True)
            ]
        else:
            assert one is not None
            documents += [Document("" if is_missing(c) else text_of(c)) for c in table.columns[one]]
    names += rows


__all__ = [
    "Asked",
    "AskedPictures",
    "AskedRows",
    "as_pictures",
    "asked_rows",
    "asked_texts",
    "columns_of",
    "fitted",
    "is_path",
    "of_channels",
    "read_tables",
    "unfitted",
]
