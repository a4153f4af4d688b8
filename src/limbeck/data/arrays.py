"""Arrays and other people's data sets as items: which axis is which, what values mean, what classes are called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.data.columns import Target, read_targets, some
from limbeck.data.items import ArrayData, Items, Kind, Splits, digest, to_unit
from limbeck.data.pictures import fit, three_channels
from limbeck.errors import DataError
from limbeck.grammar.method import Batch

Layout = Literal["auto", "first", "last"]


# -------------------------------------------------------------------------------------------------------------- reading
def open_npz(path: Path) -> dict[str, Any]:
    """The arrays of a ``.npz`` file; nothing in it is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zip, header and pickle refusals come as all kinds
        raise DataError(str(path), f"cannot be read: {_brief(error)}", expected="a .npz of plain arrays") from None


def open_npy(path: Path) -> Any:
    """The array of a ``.npy`` file; nothing in it is unpickled."""
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:
        raise DataError(str(path), f"cannot be read: {_brief(error)}", expected="a .npy of plain numbers") from None


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
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"the class names cannot be read: {error}") from None
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
def as_inputs(x: Any, where: str, layout: Layout = "auto", scale: float | None = None) -> Tensor:
    """Inputs as [N, C, H, W] or rows [N, F], of a type that is fetched in the right range.

    Args:
        x: [N, H, W], [N, H, W, C], [N, C, H, W] or [N, F], NumPy or torch.
        where: what an error is about.
        layout: where the channels are; ``auto``: last if 1, 3 or 4 of them are there, else first.
        scale: what values are divided by; ``None``: 255 for bytes, 65535 for 16 bits, nothing for floats.

    Raises:
        DataError: no such shape, or values whose range is unknown.
    """
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    if x.dtype.kind not in "biuf" or not 2 <= x.ndim <= 4:
        raise DataError(where, given=f"{x.dtype} {list(x.shape)}", expected="numbers [N, F], [N, H, W] or [N, H, W, C]")
    x = _channels_first(x, where, layout)
    if scale is not None:
        x = x.astype(np.float32) / scale
    elif x.ndim == 2 or x.dtype.kind in "bf":
        x = x.astype(np.float32)
    elif x.dtype not in (np.uint8, np.uint16):
        low, high = (int(x.min()), int(x.max())) if x.size else (0, 0)
        if low < 0 or high > 255:
            raise DataError(
                where,
                f"pictures of {x.dtype} from {low} to {high}",
                expected="bytes, 16-bit values, or floats in [0, 1]",
                remedy="say what they are divided by: task.data.scale=NUMBER",
            )
        x = x.astype(np.uint8)
    tensor = torch.from_numpy(np.ascontiguousarray(x.astype(x.dtype.newbyteorder("="), copy=False)))
    if tensor.ndim == 4 and tensor.shape[1] == 4:  # the fourth is transparency: laid over white, as in picture files
        values = to_unit(tensor)
        colour = values[:, :3] * values[:, 3:] + (1.0 - values[:, 3:])
        return colour.mul_(255).round_().to(torch.uint8) if tensor.dtype == torch.uint8 else colour
    return tensor


def _channels_first(x: Any, where: str, layout: Layout) -> Any:
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 2:
        return x
    last, first = x.shape[3] in (1, 3, 4), x.shape[1] in (1, 3, 4)
    if layout == "auto" and not (last or first):
        raise DataError(
            where,
            f"pictures of shape {list(x.shape[1:])} have 1, 3 or 4 channels neither first nor last",
            remedy="say where the channels are: task.data.layout=first or last",
        )
    if layout == "last" or (layout == "auto" and last and (not first or x.shape[1] == x.shape[2])):
        return x.transpose(0, 3, 1, 2)
    return x


# -------------------------------------------------------------------------------------------------------------- targets
def as_targets(y: Any, asked: Target, names: Sequence[str] | None, where: str) -> tuple[Tensor, list[str], Kind]:
    """Targets of an array: class ids, texts, numbers, or [N, C] of zeros and ones (several labels) or numbers.

    Class ids without names are called by their numbers, and keep their places where that leaves no more gaps than
    classes, so that a class that is missing here shifts nothing.

    Raises:
        DataError: ids that no name fits, negative ids, targets of another shape.
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

    def place(i: int) -> str:
        return f"item {i}"

    if y.ndim == 2:
        own = list(names) if names is not None and len(names) == y.shape[1] else [str(i) for i in range(y.shape[1])]
        columns = {n: y[:, i].tolist() for i, n in enumerate(own)}
        return read_targets(columns, asked, place, argument=where)
    if names is not None and y.ndim == 1 and y.dtype.kind == "f" and asked != "number" and (y == np.floor(y)).all():
        y = y.astype(np.int64)  # class ids that were saved as floats
    ids = y.dtype.kind in "iu"
    if not ids or asked not in ("auto", "label"):
        if y.dtype.kind == "f" and asked == "auto":
            asked = "number"
        return read_targets({"y": y.tolist()}, asked, place, known=names if ids else None, argument=where)
    if names is None and y.size:
        low, high, distinct = int(y.min()), int(y.max()), len(np.unique(y))
        if low < 0 and asked == "auto":
            raise DataError(
                where,
                "targets are negative whole numbers",
                given=low,
                expected="class ids from 0",
                remedy="set task.target=number for numbers, or task.target=label to make each value a class",
            )
        if low >= 0 and high < 2 * distinct:
            names = [str(i) for i in range(high + 1)]
    return read_targets({"y": y.tolist()}, "label", place, known=names, argument=where)


# --------------------------------------------------------------------------------------------- other people's data sets
class CalledItems:
    """Items that are asked for one by one from a torch ``Dataset``.

    Args:
        data: the data set, whose items are pairs (input, target).
        y: the targets, collected already.
        size: side length of pictures.
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
    made = as_inputs(x[None], f"item {i}", "first" if isinstance(x, Tensor) else "auto")[0]
    return fit(made, size) if made.ndim == 3 else made


def gather(data: Any, size: int | None, memory_mb: int, where: str) -> tuple[Any, list[Any]]:
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
            x, y = pair_of(data[i], i)
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
        raise DataError(
            where, f"inputs differ in shape: {shown}", remedy="bring pictures to one size with task.size=64"
        )
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
    made: Mapping[str, Any], target: Target, size: int | None, memory_mb: int, names: Sequence[str] | None, where: str
) -> Splits:
    """Splits from torch data sets or pairs of arrays (x, y), with targets read over all of them together.

    Args:
        made: split -> data set, or pair.
        target: what the targets are.
        size: side length of pictures.
        memory_mb: how much is kept in memory.
        names: the classes; by default what a data set calls its ``classes``.
        where: what an error is about.
    """
    makers: dict[str, Any] = {}
    raw: dict[str, list[Any]] = {}
    for split, data in made.items():
        about = f"{where} ({split})"
        if _is_pair(data):
            x = as_inputs(np.asarray(data[0]) if not isinstance(data[0], Tensor) else data[0], about)
            x = fit(x, size) if x.ndim == 4 else x
            makers[split] = lambda y, x=x: ArrayData(x, y)
            raw[split] = np.asarray(data[1]).tolist()
            if len(x) != len(raw[split]):
                raise DataError(about, f"{len(x)} inputs but {len(raw[split])} targets", expected="one target an input")
        else:
            makers[split], raw[split] = gather(data, size, memory_mb, about)
            names = names if names is not None else _class_names(data)
    everything = [y for ys in raw.values() for y in ys]
    try:
        array = np.array(everything)
    except ValueError:  # lists of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind in "biufU":
        y, labels, kind = as_targets(array, target, names, where)
    else:
        y, labels, kind = read_targets(
            {"target": everything}, target, lambda i: f"item {i}", known=names, argument=where
        )
    found: dict[str, Items] = {}
    start = 0
    for split, ys in raw.items():
        found[split] = makers[split](y[start : start + len(ys)])
        start += len(ys)
    return judge_by_valid(found, labels, kind, [])


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


def judge_by_valid(found: Mapping[str, Items], labels: list[str], kind: Kind, notes: list[str]) -> Splits:
    """Splits by name; a validation split without a test split judges, as it is data that was held out."""
    found = dict(found)
    if "train" not in found:
        raise DataError("data", "there are no training items", given=sorted(found), expected="a train split")
    if "test" not in found and "valid" in found:
        found["test"] = found.pop("valid")
        notes.append("no test split: the validation split judges, and part of train is set aside for choosing")
    return Splits(found["train"], found.get("valid"), found.get("test"), labels, kind, notes)
