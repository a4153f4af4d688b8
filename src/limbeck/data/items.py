"""Items that can be fetched by number, in memory or on disk, and how a set of them is divided."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.data.names import look_up
from limbeck.errors import DataError
from limbeck.grammar.method import Batch
from limbeck.grammar.random import bits, key_of
from limbeck.storage.disk import expanded
from limbeck.storage.plain import special

Kind = Literal["label", "labels", "number"]
"""What an item is answered with: one class, several classes at once (yes or no each), or numbers."""


class Items(Protocol):
    """Data with targets: what every source gives.

    Attributes:
        y: all targets: int64 [N] for one label, float32 [N, C] for several, float32 [N, K] for numbers.
        shape: shape of one input, as fetched.
    """

    y: Tensor
    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def fetch(self, items: Tensor) -> Batch:
        """The items as ``{"x": float32 [n, *shape], "y": targets}``."""

    @property
    def fingerprint(self) -> str:
        """A content hash."""


@dataclass
class Splits:
    """What a source holds.

    Attributes:
        train: training items.
        valid, test: further splits, ``None`` where the source has none.
        labels: names of the classes (or of the numbers), the same for all splits.
        kind: what the targets are.
        notes: sentences about how the data was read, a line each, for the screen, the report and ``result.json``.
        declared: whether the classes were named by the data itself, so that each should have items.
        columns: of rows: what each number of a row is, in order (``colour=red`` of a text column); empty where not known.
        labelled: whether the items have labels; without any all are of one class, which says nothing.
    """

    train: Items
    valid: Items | None
    test: Items | None
    labels: list[str]
    kind: Kind
    notes: list[str] = field(default_factory=list)
    declared: bool = False
    columns: list[str] = field(default_factory=list)
    labelled: bool = True


def as_path(text: str | Path, argument: str) -> Path:
    """A path as the user typed it, ``~`` resolved, in whichever form of Unicode its letters are stored on disk.

    Raises:
        DataError: it can be none (a null character, an unknown user).
    """
    try:
        path = expanded(text)
        path = path if path.exists() else look_up(path)
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(argument, f"is no path: {getattr(error, 'strerror', None) or error}", given=str(text)) from None
    if kind := special(path):
        raise DataError(argument, f"is {kind}", given=str(text), expected="a file or folder")
    return path


def digest(*parts: Any) -> str:
    """A content hash of arrays, tensors, strings and numbers, in order."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().numpy()
        if isinstance(part, np.ndarray):
            h.update(f"{part.dtype.str}{part.shape}".encode())
            h.update(np.ascontiguousarray(part).view(np.uint8).reshape(-1).data)
        elif isinstance(part, bytes):
            h.update(b"b%d:" % len(part))
            h.update(part)
        else:
            text = repr(part).encode("utf-8", "surrogatepass")
            h.update(b"r%d:" % len(text))
            h.update(text)
    return h.hexdigest()


def to_unit(x: Tensor) -> Tensor:
    """Stored values as float32: bytes divided by 255, 16-bit values by 65535, floats unchanged."""
    if x.dtype == torch.uint8:
        return x.to(torch.float32).div_(255.0)
    if x.dtype == torch.uint16:
        return x.to(torch.float32).div_(65535.0)
    return x.to(torch.float32)


class ArrayData:
    """Items in memory.

    Args:
        x: inputs [N, ...]: uint8 or uint16 (fetched as float32 in [0, 1]) or floating (fetched as they are).
        y: targets [N] or [N, C].
        fingerprint: a content hash that is known already.

    Example:
        >>> data = ArrayData(torch.full((4, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> data.fetch(torch.tensor([3]))["x"].max().item(), data.fetch(torch.tensor([3]))["y"].item()
        (1.0, 1)
    """

    def __init__(self, x: Tensor, y: Tensor, fingerprint: str = "") -> None:
        if len(x) != len(y):
            raise DataError("data", f"{len(x)} inputs but {len(y)} targets", expected="one target an input")
        self.x, self.y = x, y
        self.shape = tuple(x.shape[1:])
        self._fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch."""
        # not x[items]: for bytes that is twenty times as slow
        return {"x": to_unit(self.x.index_select(0, items)), "y": self.y.index_select(0, items)}

    @property
    def fingerprint(self) -> str:
        """Hash of inputs and targets."""
        if not self._fingerprint:
            self._fingerprint = digest(self.x, self.y)
        return self._fingerprint


class Part:
    """Some items of another set, renumbered from 0.

    Args:
        data: the whole.
        ids: int64 [n], which items and in which order.
    """

    def __init__(self, data: Items, ids: Tensor) -> None:
        self.data: Items = data
        self.ids = ids
        if isinstance(data, Part):  # one look-up, however often a set is divided
            self.data, self.ids = data.data, data.ids[ids]
        self.y = data.y[ids]
        self.shape = data.shape

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch."""
        return self.data.fetch(self.ids.index_select(0, items))

    @property
    def fingerprint(self) -> str:
        """Hash of the whole and of the choice."""
        return digest(self.data.fingerprint, self.ids)


class Joined:
    """Several sets as one, one after another.

    Args:
        sets: at least one; of the same kind of targets and the same shape of inputs.
    """

    def __init__(self, sets: Sequence[Items]) -> None:
        self.sets = list(sets)
        self.y = torch.cat([s.y for s in self.sets])
        self.shape = self.sets[0].shape
        self.ends = torch.tensor([len(s) for s in self.sets]).cumsum(0)

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch, in the order that is asked for."""
        whose = torch.bucketize(items, self.ends, right=True)
        places, batches = [], []
        for k in whose.unique().tolist():
            mine = (whose == k).nonzero()[:, 0]
            start = int(self.ends[k]) - len(self.sets[k])
            places.append(mine)
            batches.append(self.sets[k].fetch(items[mine] - start))
        order = torch.cat(places).argsort()
        return {name: torch.cat([b[name] for b in batches])[order] for name in batches[0]}

    @property
    def fingerprint(self) -> str:
        """Hash of the sets, in order."""
        return digest(*(s.fingerprint for s in self.sets))


class Nothing:
    """No items, of a known shape: the data of a task that is only asked for answers.

    Args:
        shape: of an input.
        y: targets of no item, [0] or [0, C].
    """

    fingerprint = ""

    def __init__(self, shape: tuple[int, ...], y: Tensor) -> None:
        self.shape, self.y = shape, y

    def __len__(self) -> int:
        return 0

    def fetch(self, items: Tensor) -> Batch:
        """There are none."""
        raise DataError("data", "no data are read where a network is only asked for answers")


class Renumbered:
    """Items whose classes have other numbers: those of a network that knows more of them, or in another order.

    Args:
        items: as a source gives them.
        place: the number of each of their classes [C].
        classes: how many there are now.
    """

    def __init__(self, items: Items, place: Tensor, classes: int) -> None:
        self.items, self.place, self.classes = items, place, classes
        self.shape, self.y = items.shape, self._moved(items.y)

    def _moved(self, y: Tensor) -> Tensor:
        if not y.is_floating_point() and y.ndim != 2:
            return self.place[y]
        return y.new_zeros(len(y), self.classes).index_copy(1, self.place, y)

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch."""
        batch = self.items.fetch(items)
        for name in ("y", "labels"):
            if name in batch:
                y = batch[name]
                plain = not y.is_floating_point()
                batch[name] = self.place[y] if plain else self._moved(y)
        return batch

    @property
    def fingerprint(self) -> str:
        """Hash of the items and of the numbers."""
        return digest(self.items.fingerprint, self.place, self.classes)


def renumbered(splits: Splits, names: Sequence[str]) -> Splits:
    """Splits whose classes are numbered as a network knows them.

    Raises:
        DataError: classes that the network does not know.
    """
    if list(splits.labels) == list(names) or splits.kind == "number":
        return splits
    fold = {n.casefold(): i for i, n in enumerate(names)}
    odd = [n for n in splits.labels if n.casefold() not in fold]
    if odd:
        shown = ", ".join(map(repr, odd[:8])) + (", ..." if len(odd) > 8 else "")
        raise DataError(
            "task.data",
            f"{len(odd)} classes that the network does not know: {shown}",
            expected=", ".join(map(str, list(names)[:12])),
            remedy="leave these items out, or name the network's own classes",
        )
    place = torch.tensor([fold[n.casefold()] for n in splits.labels], dtype=torch.int64)
    lost = len(names) - len(splits.labels)
    made = [None if s is None else Renumbered(s, place, len(names)) for s in (splits.train, splits.valid, splits.test)]
    notes = [*splits.notes, *([f"{lost} of the network's {len(names)} classes have no items here"] if lost else [])]
    return Splits(made[0], made[1], made[2], list(names), splits.kind, notes, splits.declared)  # type: ignore[arg-type]


def choose(y: Tensor, count: int, *key: Any, leave: int = 0) -> Tensor:
    """``count`` items drawn without replacement, each class in proportion (stratified). Sorted ids, int64 [count].

    Every class gets at least one where ``count`` allows it; ``leave`` items of each class are never taken. Classes are
    told apart for int64 targets [N]; other targets are drawn evenly. The draw depends on ``key`` and on the number of
    items of each class alone.
    """
    n = len(y)
    if not 0 <= count <= n:
        raise ValueError(f"cannot draw {count} of {n} items")
    order = bits(key_of("choose", *key), torch.arange(n), 1)[:, 0].argsort(stable=True)
    if y.is_floating_point() or y.ndim != 1:
        return order[:count].sort().values
    classes, where = y.unique(return_inverse=True)
    sizes = torch.bincount(where, minlength=len(classes))
    turn = bits(key_of("classes", *key), classes, 1)[:, 0].argsort(
        stable=True
    )  # who comes first where shares are equal
    quota = torch.empty_like(sizes)
    quota[turn] = _quotas((sizes - leave).clamp_min(0)[turn], sizes[turn], count)
    mine, grouped = where[order].sort(stable=True)
    rank = torch.empty_like(where)
    rank[order[grouped]] = torch.arange(n) - (sizes.cumsum(0) - sizes)[mine]
    return (rank < quota[where]).nonzero()[:, 0]


def _quotas(room: Tensor, sizes: Tensor, count: int) -> Tensor:
    """How many of each class: in proportion to ``sizes``, at most ``room``, at least one where there is enough."""
    count = min(count, int(room.sum()))
    least = (room > 0).long() if count >= int((room > 0).sum()) else torch.zeros_like(room)
    share = sizes.double() * (count / max(1, int(sizes.sum())))
    quota = share.floor().long().clamp(min=least, max=room)
    lack = count - int(quota.sum())
    if lack > 0:
        return _step(quota, share, room, lack)
    return -_step(-quota, -share, -least, -lack)


def _step(quota: Tensor, share: Tensor, most: Tensor, times: int) -> Tensor:
    """``quota`` raised by one so many times, each time where ``share`` is missed most and ``most`` is not reached."""
    values, wanted, ends = quota.tolist(), share.tolist(), most.tolist()
    heap = [
        (value - want, i) for i, (value, want, end) in enumerate(zip(values, wanted, ends, strict=True)) if value < end
    ]
    heapq.heapify(heap)
    for _ in range(times):
        _, i = heap[0]
        values[i] += 1
        if values[i] < ends[i]:
            heapq.heapreplace(heap, (values[i] - wanted[i], i))
        else:
            heapq.heappop(heap)
    return torch.tensor(values, dtype=quota.dtype)


def divide(data: Items, fraction: float, *key: Any) -> tuple[Items, Items]:
    """(the rest, the part split off): a deterministic stratified split that leaves each class at least one item."""
    count = min(max(1, round(fraction * len(data))), max(0, len(data) - 1))
    ids = choose(data.y, count, *key, leave=1)
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[ids] = False
    return Part(data, rest.nonzero()[:, 0]), Part(data, ids)


def check_items(items: Items, split: str, kind: Kind, labels: Sequence[str]) -> None:
    """Refuse data that would only fail later: nothing there, labels out of range, values that are not finite."""
    where = f"data ({split})"
    if len(items) == 0:
        raise DataError(where, "the split is empty", expected="at least one item")
    y = items.y
    if kind == "label":
        bad = ((y < 0) | (y >= len(labels))).nonzero()[:, 0]
        if len(bad):
            raise DataError(
                where,
                f"{len(bad)} labels lie outside 0..{len(labels) - 1}: items {_some(bad)}",
                given=int(y[bad[0]]),
                expected=f"class ids below {len(labels)}",
            )
    else:
        bad = (~torch.isfinite(y)).reshape(len(y), -1).any(1).nonzero()[:, 0]
        if len(bad):
            raise DataError(where, f"{len(bad)} targets are not finite: items {_some(bad)}", expected="finite numbers")
        if kind == "labels" and ((y < 0) | (y > 1)).any():
            bad = ((y < 0) | (y > 1)).any(1).nonzero()[:, 0]
            raise DataError(
                where, f"{len(bad)} targets lie outside 0..1: items {_some(bad)}", expected="0 (no) to 1 (yes)"
            )
    base = items.data if isinstance(items, Part) else items
    if isinstance(base, ArrayData) and base.x.is_floating_point():
        x = base.x[items.ids] if isinstance(items, Part) else base.x
        flat = x.reshape(len(x), -1)
        bad = (~torch.isfinite(flat)).any(1).nonzero()[:, 0]
        if len(bad):
            raise DataError(
                where,
                f"{len(bad)} inputs hold NaN or infinity: items {_some(bad)}",
                expected="finite values",
                remedy="mend or leave out these items",
            )
        if x.ndim == 4 and (flat.min() < 0 or flat.max() > 1):
            raise DataError(
                where,
                f"floating images hold values from {flat.min():.4g} to {flat.max():.4g}",
                expected="values in [0, 1]",
                remedy="divide them first (for arrays: task.data.scale=255)",
            )


def _some(ids: Tensor) -> str:
    shown = ", ".join(str(int(i)) for i in ids[:10])
    return f"{shown}, ..." if len(ids) > 10 else shown
