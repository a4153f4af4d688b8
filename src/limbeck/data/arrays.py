"""Arrays and other people's data sets as items: which axis is which, what values mean, what classes are called."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.data.cells import Cells, coded
from limbeck.data.columns import BadRows, OnBadRows, Target, Where
from limbeck.data.items import ArrayData, Items, Kind, Part, Splits, digest, to_unit
from limbeck.data.names import counted, plain, some
from limbeck.data.pictures import fit, three_channels
from limbeck.data.targets import read_targets, refuse_negative
from limbeck.errors import DataError, LimbeckError
from limbeck.grammar.method import Batch
from limbeck.storage.memory import need
from limbeck.storage.plain import opened, read_text

Layout = Literal["auto", "first", "last"]


# -------------------------------------------------------------------------------------------------------------- reading
def open_npz(path: Path) -> dict[str, Any]:
    """The arrays of a ``.npz`` file; nothing in it is unpickled."""
    try:
        with opened(path) as stream:
            with zipfile.ZipFile(stream) as packed:
                unpacked = sum(entry.file_size for entry in packed.infolist())
            need(unpacked, "task.data.path", f"the arrays of {path}", _FEWER)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
    except LimbeckError:
        raise
    except Exception as error:  # zip, header and pickle refusals come as all kinds
        raise DataError(str(path), f"cannot be read: {_brief(error)}", expected="a .npz of plain arrays") from None


def open_npy(path: Path) -> Any:
    """The array of a ``.npy`` file; nothing in it is unpickled."""
    try:
        with opened(path) as file:
            need(os.fstat(file.fileno()).st_size, "task.data.path", f"the array in {path}", _FEWER)
            return np.lib.format.read_array(file, allow_pickle=False)
    except LimbeckError:
        raise
    except Exception as error:
        raise DataError(str(path), f"cannot be read: {_brief(error)}", expected="a .npy of plain numbers") from None


_FEWER = "store fewer items, or a smaller type of numbers"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def read_names(path: Path, key: str | None = None) -> list[str]:
    """Class names from a file, in order.

    A JSON list of names (or of objects with ``name``); a JSON object from name to place or from place to name; one of
    several lists, which ``key`` chooses; an object that holds any of these as ``labels``, ``classes`` or ``id2label``;
    or a text file with one name a line.

    Raises:
        DataError: the file holds nothing of the kind, or a name twice.
    """
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"the class names cannot be read: {getattr(error, 'strerror', error)}") from None
    if path.suffix.lower() != ".json":
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(str(path), f"is no JSON: {error}") from None
        names = _names_in(found, path, key)
    if not names:
        raise DataError(str(path), "names no class", expected="a list of class names")
    names = [plain(n) for n in names]
    twice = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(str(path), f"classes are named twice: {some(twice)}", expected="names that differ")
    return names


def _names_in(found: Any, path: Path, key: str | None) -> list[str]:
    if isinstance(found, dict):
        for inner in ("labels", "classes", "id2label", "label2id"):
            if isinstance(found.get(inner), (list, dict)):
                return _names_in(found[inner], path, key)
        if found and all(isinstance(v, list) for v in found.values()):
            fits = [k for k in found if key is not None and (k == key or k in key.split("_"))]
            return _names_in(found[fits[0] if fits else next(iter(found))], path, key)
        if found and all(isinstance(v, int) and not isinstance(v, bool) for v in found.values()):
            found = {v: k for k, v in found.items()}
        try:
            places = sorted(found, key=int)
        except (TypeError, ValueError):
            raise DataError(str(path), "is no list of class names", given=list(found)[:5]) from None
        if [int(p) for p in places] != list(range(len(places))):
            raise DataError(str(path), "the classes' places have gaps", given=[int(p) for p in places][:10])
        found = [found[p] for p in places]
    if isinstance(found, list) and found and all(isinstance(n, dict) and "name" in n for n in found):
        found = [n["name"] for n in found]
    if not isinstance(found, list) or not all(isinstance(n, (str, int)) for n in found):
        raise DataError(str(path), "is no list of class names", given=found, expected='for example ["cat", "dog"]')
    return [str(n) for n in found]


# --------------------------------------------------------------------------------------------------------------- inputs
def as_inputs(
    x: Any,
    where: str,
    layout: Layout = "auto",
    scale: float | None = None,
    *,
    usual: Layout = "auto",
    notes: list[str] | None = None,
) -> Tensor:
    """Inputs as [N, C, H, W] or rows [N, F], of a type that is fetched in the right range.

    Args:
        x: [N, H, W], [N, H, W, C], [N, C, H, W] or [N, F], NumPy or torch.
        where: what an error is about.
        layout: where the channels are; ``auto``: where 1, 3 or 4 of them are. If that is first and last, where the
            images are square then.
        scale: what values are divided by; ``None``: 255 for bytes, 65535 for 16 bits, nothing for floats.
        usual: where they are if that tells nothing either; ``auto`` refuses.
        notes: how they were read is appended here.

    Raises:
        DataError: no such shape, or values whose range is unknown.
    """
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    if x.dtype.kind not in "biuf" or not 2 <= x.ndim <= 4:
        raise DataError(where, given=f"{x.dtype} {list(x.shape)}", expected="numbers [N, F], [N, H, W] or [N, H, W, C]")
    stored = x
    x = _channels_first(x, where, layout, usual)
    by = scale
    if scale is not None:
        x = _floats(x) / np.float32(scale)
    elif x.ndim == 2 or x.dtype.kind in "bf":
        x = _floats(x)
    elif x.dtype in (np.uint8, np.uint16):
        by = 255.0 if x.dtype == np.uint8 else 65535.0
    else:
        low, high = (int(x.min()), int(x.max())) if x.size else (0, 0)
        if low < 0 or high > 255:
            raise DataError(
                where,
                f"images of {x.dtype} from {low} to {high}",
                expected="bytes, 16-bit values, or floats in [0, 1]",
                remedy="say what they are divided by: task.data.scale=NUMBER",
            )
        x, by = x.astype(np.uint8), 255.0
    if notes is not None:
        notes.append(_told(stored, x, by))
    tensor = torch.from_numpy(np.ascontiguousarray(x.astype(x.dtype.newbyteorder("="), copy=False)))
    if tensor.ndim == 4 and tensor.shape[1] == 4:  # the fourth is transparency: laid over white, as in image files
        values = to_unit(tensor)
        colour = values[:, :3] * values[:, 3:] + (1.0 - values[:, 3:])
        return colour.mul_(255).round_().to(torch.uint8) if tensor.dtype == torch.uint8 else colour
    return tensor


def _floats(x: Any) -> Any:
    """Values as float32; what is too large becomes infinite, and is refused as that."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def _told(stored: Any, x: Any, by: float | None) -> str:
    """How inputs were read, in a sentence."""
    if x.ndim == 2:
        said = f"inputs: rows of {counted(x.shape[1], 'number')}"
    else:
        where = "" if stored.ndim == 3 else " (first)" if stored.shape == x.shape else " (last)"
        said = f"inputs: images {x.shape[2]}x{x.shape[3]}, {counted(x.shape[1], 'channel')}{where}"
    high = f"{float(stored.max()):g}" if stored.size else "0"
    return f"{said}, {stored.dtype} up to {high}" + (f" divided by {by:g}" if by is not None else "")


def _channels_first(x: Any, where: str, layout: Layout, usual: Layout) -> Any:
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 2:
        return x
    last, first = x.shape[3] in (1, 3, 4), x.shape[1] in (1, 3, 4)
    if layout == "auto" and last and first:
        square_last, square_first = x.shape[1] == x.shape[2], x.shape[2] == x.shape[3]
        last, first = (
            (square_last, square_first) if square_last != square_first else (usual == "last", usual == "first")
        )
        if not (last or first):
            raise DataError(
                where,
                f"images of shape {list(x.shape[1:])} may have their channels first or last",
                remedy="say where the channels are: task.data.layout=first or last",
            )
    if layout == "auto" and not (last or first):
        raise DataError(
            where,
            f"images of shape {list(x.shape[1:])} have 1, 3 or 4 channels neither first nor last",
            remedy="say where the channels are: task.data.layout=first or last"
            if usual == "auto"
            else "give arrays [N, H, W, C], or tensors [N, C, H, W]",
        )
    return x.transpose(0, 3, 1, 2) if layout == "last" or (layout == "auto" and last) else x


# -------------------------------------------------------------------------------------------------------------- targets
def as_targets(
    y: Any,
    asked: Target,
    names: Sequence[str] | None,
    where: str,
    place: Where = "item {}".format,
    notes: list[str] | None = None,
) -> tuple[Tensor, list[str], Kind]:
    """Targets of an array: class ids, texts, numbers, or [N, C] of zeros and ones (several labels) or numbers.

    Class ids without names are called by their numbers, and keep their places where that leaves no more gaps than
    classes, so that a class that is missing here shifts nothing.

    Raises:
        BadRows: negative ids, targets that are empty or NaN.
        DataError: ids that no name fits, whole numbers stored as floats, targets of another shape.
    """
    y = np.asarray(y)
    if y.ndim > 2 and y.dtype.kind == "f":  # points and the like: one number each
        y = y.reshape(len(y), -1)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "biufU" or y.ndim not in (1, 2):
        raise DataError(
            where, given=f"targets {y.dtype} {list(y.shape)}", expected="class ids or numbers [N] or [N, K]"
        )
    if y.ndim == 2:
        own = list(names) if names is not None and len(names) == y.shape[1] else [str(i) for i in range(y.shape[1])]
        columns = {n: y[:, i] for i, n in enumerate(own)}
        return read_targets(columns, asked, place, argument=where, notes=notes)
    if names is not None and y.dtype.kind == "f" and asked != "number" and (y == np.floor(y)).all():
        y = y.astype(np.int64)  # class ids that were saved as floats
    ids = y.dtype.kind in "iu"
    if not ids or asked not in ("auto", "label"):
        return read_targets({"y": y.tolist()}, asked, place, known=names if ids else None, argument=where, notes=notes)
    if names is None and y.size:
        low, high, distinct = int(y.min()), int(y.max()), len(np.unique(y))
        if low < 0 and asked == "auto":
            refuse_negative("y", coded(y), place, where)
        if low >= 0 and high < 2 * distinct:
            names = [str(i) for i in range(high + 1)]
    return read_targets({"y": y}, "label", place, known=names, argument=where, notes=notes)


def targets_of(
    raw: Mapping[str, Cells],
    asked: Target,
    names: Sequence[str] | None,
    where: str,
    bad_rows: OnBadRows,
    notes: list[str],
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str], Kind]:
    """The targets of all splits, read together, so that a class is the same in each.

    Args:
        raw: split -> targets.
        asked: what the user wants them to be.
        names: the classes.
        where: what an error is about.
        bad_rows: whether items without a label are an ``error`` or left out (``skip``).
        notes: what was left out, and how targets were read, is appended here.

    Returns:
        Split -> its targets; split -> which items they are of; names; kind. A split without a target is left out.
    """
    everything = [y for ys in raw.values() for y in (ys.tolist() if isinstance(ys, np.ndarray) else ys)]
    sizes = {split: len(ys) for split, ys in raw.items()}
    place_of = [(split, i) for split, n in sizes.items() for i in range(n)]
    kept = list(range(len(everything)))
    array = _as_array(everything, list(raw.values()))
    while True:

        def place(i: int, kept: list[int] = kept) -> str:
            split, item = place_of[kept[i]]
            return f"item {item}" if len(sizes) == 1 else f"{split} item {item}"

        said: list[str] = []
        try:
            if array is not None:
                y, labels, kind = as_targets(array[kept], asked, names, where, place, said)
            else:
                cells = [everything[i] for i in kept]
                y, labels, kind = read_targets({"target": cells}, asked, place, known=names, argument=where, notes=said)
            break
        except BadRows as error:
            if bad_rows == "error" or not error.rows or len(error.rows) == len(kept):
                raise
            notes.append(f"{counted(len(error.rows), 'item')} left out: {error.problem}")
            bad = set(error.rows)
            kept = [k for i, k in enumerate(kept) if i not in bad]
    notes += said
    targets, items = {}, {}
    for split in sizes:
        mine = [i for i, k in enumerate(kept) if place_of[k][0] == split]
        if mine:
            targets[split] = y[mine]
            items[split] = torch.tensor([place_of[kept[i]][1] for i in mine])
    return targets, items, labels, kind


def _as_array(everything: list[Any], parts: Sequence[Any]) -> np.ndarray[Any, Any] | None:
    """All targets as one array, if they are plain numbers or texts of one shape."""
    try:
        made = np.concatenate(parts) if all(isinstance(p, np.ndarray) for p in parts) else np.array(everything)
    except ValueError:  # lists of different lengths
        return None
    return made if made.dtype.kind in "biufU" else None


# --------------------------------------------------------------------------------------------- other people's data sets
class CalledItems:
    """Items that are asked for one by one from a torch ``Dataset``.

    Args:
        data: the data set, whose items are pairs (input, target).
        y: the targets, collected already.
        size: side length of images.
        shape: shape of one input.
        fingerprint: a content hash.
    """

    def __init__(self, data: Any, y: Tensor, size: int | None, shape: tuple[int, ...], fingerprint: str) -> None:
        self.data, self.y, self.size, self.shape = data, y, size, shape
        self._fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch."""
        x = torch.stack([to_unit(one_input(pair_of(self.data[i], i)[0], self.size, i)) for i in items.tolist()])
        return {"x": x, "y": self.y[items]}

    @property
    def fingerprint(self) -> str:
        """Hash of inputs and targets."""
        return self._fingerprint


def pair_of(item: Any, i: int) -> tuple[Any, Any]:
    """(input, target) of a data set's item: a pair, or a mapping with the usual names."""
    if isinstance(item, Mapping):
        x = next((item[k] for k in ("x", "image", "img", "pixel_values", "input") if k in item), None)
        y = next((item[k] for k in ("y", "label", "labels", "target") if k in item), None)
        if x is not None and y is not None:
            return x, y
    elif isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    raise DataError(
        f"item {i}", given=type(item).__name__, expected="(input, target), or a mapping with 'image' and 'label'"
    )


def one_input(x: Any, size: int | None, i: int) -> Tensor:
    """One input as a tensor [C, H, W] or [F]: a PIL image, an array [H, W] or [H, W, C], or a tensor [C, H, W]."""
    if hasattr(x, "convert"):
        return fit(three_channels(x), size)
    if not isinstance(x, (np.ndarray, Tensor)):
        raise DataError(f"item {i}", given=type(x).__name__, expected="a PIL image, an array or a tensor as input")
    if x.ndim not in (1, 2, 3):
        raise DataError(f"item {i}", given=list(x.shape), expected="an input [F], [H, W] or [C, H, W]")
    made = as_inputs(x[None], f"item {i}", "first" if isinstance(x, Tensor) else "auto", usual="last")[0]
    return fit(made, size) if made.ndim == 3 else made


def gather(data: Any, size: int | None, memory_mb: int, where: str, notes: list[str]) -> tuple[Any, list[Any]]:
    """Everything a data set holds, asked for once: a function from targets to Items, and the raw targets.

    Raises:
        DataError: it cannot be asked, or its inputs differ in shape.
    """
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise DataError(
            where,
            f"a {type(data).__name__} cannot be asked for item number i",
            expected="a torch Dataset with __getitem__ and __len__, or a pair of arrays",
        )
    kept: list[Tensor] | None = []
    targets: list[Any] = []
    marks: list[str] = []
    shapes: dict[tuple[int, ...], int] = {}
    spent = 0
    for i in range(len(data)):
        try:
            item = data[i]
            x, y = pair_of(item, i)
            if i == 0 and isinstance(item, (tuple, list)) and len(item) > 2:
                notes.append(f"{where}: of the {len(item)} parts of an item the first two are input and target")
            made = one_input(x, size, i)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{where}, item {i}", f"cannot be read: {type(error).__name__}: {_brief(error)}") from error
        targets.append(plain_target(y))
        marks.append(digest(made))
        shapes.setdefault(tuple(made.shape), i)
        spent += made.numel() * made.element_size()
        if kept is not None:
            kept.append(made)
            if spent > memory_mb * 2**20:
                kept = None
    if len(shapes) > 1:
        shown = ", ".join(f"{list(s)} (item {i})" for s, i in list(shapes.items())[:4])
        raise DataError(where, f"inputs differ in shape: {shown}", remedy="bring images to one size with task.size=64")
    shape = next(iter(shapes), ())

    def items(y: Tensor) -> Items:
        mark = digest("called", marks, y)
        if kept is not None and len({k.dtype for k in kept}) == 1:
            return ArrayData(torch.stack(kept), y, mark)
        return CalledItems(data, y, size, shape, mark)

    return items, targets


def plain_target(y: Any) -> Any:
    """A target as plain Python: tensors and arrays become numbers and lists."""
    if isinstance(y, (Tensor, np.ndarray)):
        return y.tolist()
    return y.item() if isinstance(y, np.generic) else y


def from_datasets(
    made: Mapping[str, Any],
    target: Target,
    size: int | None,
    memory_mb: int,
    names: Sequence[str] | None,
    where: str,
    bad_rows: OnBadRows = "error",
) -> Splits:
    """Splits from torch data sets or pairs of arrays (x, y), with targets read over all of them together.

    Args:
        made: split -> data set, or pair.
        target: what the targets are.
        size: side length of images.
        memory_mb: how much is kept in memory.
        names: the classes; by default what a data set calls its ``classes``.
        where: what an error is about.
        bad_rows: whether items without a label are an ``error`` or left out (``skip``).
    """
    makers: dict[str, Any] = {}
    raw: dict[str, Cells] = {}
    notes: list[str] = []
    for split, data in made.items():
        about = f"{where} ({split})"
        if _is_pair(data):
            tensor = isinstance(data[0], Tensor)
            x = as_inputs(
                data[0] if tensor else np.asarray(data[0]),
                about,
                usual="first" if tensor else "last",
                notes=notes if split == "train" else None,
            )
            x = fit(x, size) if x.ndim == 4 else x
            makers[split] = partial(ArrayData, x)
            raw[split] = np.asarray(data[1])
            if len(x) != len(raw[split]):
                raise DataError(about, f"{len(x)} inputs but {len(raw[split])} targets", expected="one target an input")
        else:
            makers[split], raw[split] = gather(data, size, memory_mb, about, notes)
            names = names if names is not None else _class_names(data)
    names = [plain(n) for n in names] if names is not None else None
    targets, items, labels, kind = targets_of(raw, target, names, where, bad_rows, notes)
    found = {split: placed(makers[split], targets[split], items[split], len(raw[split])) for split in targets}
    return judge_by_valid(found, labels, kind, list(dict.fromkeys(notes)), names is not None)


def placed(make: Callable[[Tensor], Items], y: Tensor, ids: Tensor, n: int) -> Items:
    """Items with their targets, where some of the ``n`` have none."""
    if len(ids) == n:
        return make(y)
    whole = torch.zeros(n, *y.shape[1:], dtype=y.dtype)
    whole[ids] = y
    return Part(make(whole), ids)


def _is_pair(data: Any) -> bool:
    return (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and isinstance(data[0], (np.ndarray, Tensor))
        and isinstance(data[1], (np.ndarray, Tensor, list))
    )


def _class_names(data: Any) -> list[str] | None:
    names = getattr(data, "classes", None)
    if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
        return list(names)
    return None


def judge_by_valid(
    found: Mapping[str, Items], labels: list[str], kind: Kind, notes: list[str], declared: bool = False
) -> Splits:
    """Splits by name; a validation split without a test split evaluates, as it is data that was held out."""
    found = dict(found)
    if "train" not in found:
        raise DataError("data", "there are no training items", given=sorted(found), expected="a train split")
    if "test" not in found and "valid" in found:
        found["test"] = found.pop("valid")
        notes.append("no test split: the validation split evaluates, and part of train is set aside for choosing")
    return Splits(found["train"], found.get("valid"), found.get("test"), labels, kind, notes, declared)
