"""A second source of items without labels: images from the web, whatever else may look like the task's items."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from limbeck.data.classes import plain_name
from limbeck.data.items import Items, Part, choose, digest
from limbeck.data.names import counted, some
from limbeck.data.sources import Source
from limbeck.errors import DataError, LimbeckError
from limbeck.grammar.method import Batch, Data
from limbeck.grammar.role import Contract

OVERLAP = 20_000
"""Up to so many items of pool and task are compared one by one."""


class Unlabelled:
    """Items of another source, without labels, brought to the shape of the task's.

    Args:
        items: what the source gave.
        shape: of the task's items: (channels, height, width) or (features,).
        truth: the task's class of each item, -1 for one that is of none, int64 [M]; ``None`` where nobody knows. Nothing
            learns from it: it measures what a method has selected.

    Attributes:
        notes: sentences about how it was read.
    """

    def __init__(self, items: Items, shape: tuple[int, ...], truth: Tensor | None = None) -> None:
        self.items, self.shape, self.truth = items, shape, truth
        self.notes: list[str] = []
        own = tuple(items.shape)
        self._fit = Contract()
        if own != shape:
            size = (shape[1], shape[2]) if own[1:] != shape[1:] else None
            self._fit = Contract(size=size, channels=shape[0] if own[0] != shape[0] else None)

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch ``{"x": float32 [n, *shape]}``."""
        return {"x": self._fit.inputs(self.items.fetch(items)["x"])}

    @property
    def fingerprint(self) -> str:
        """Hash of the items and of the shape they are brought to."""
        return digest("unlabelled", self.items.fingerprint, self.shape)

    def share(self, share: float, *key: Any) -> Unlabelled:
        """A part of it, drawn by a key; at least one item."""
        if share >= 1:
            return self
        ids = choose(torch.zeros(len(self), dtype=torch.int64), max(1, math.ceil(share * len(self))), "pool", *key)
        return Unlabelled(Part(self.items, ids), self.shape, None if self.truth is None else self.truth[ids])


def read_unlabelled(source: Source, shape: tuple[int, ...], labels: list[str]) -> Unlabelled:
    """The items of a source as an unlabelled pool for a task.

    Images of another size or number of channels are brought to the task's: the shorter side resized and the middle cut
    out, where the source reads them so, else stretched; grey repeated, colour averaged. Labels are not used, but to measure
    what is selected, where they name classes of the task.

    Args:
        source: where the items come from; of several splits the training items are taken.
        shape: of the task's items.
        labels: the task's classes.

    Raises:
        DataError: what cannot be read, or does not fit, as a fault of ``task.unlabelled``.
    """
    size = shape[1] if len(shape) == 3 and shape[1] == shape[2] else None
    try:
        items, y, names, notes = source.pool(size)
    except LimbeckError as error:
        raise _about(error) from None
    if not len(items):
        raise DataError("task.unlabelled", "there are no items", expected="at least one")
    own = tuple(items.shape)
    if len(own) != len(shape) or (len(shape) == 1 and own != shape):
        words = "images (channels, height, width)" if len(shape) == 3 else f"rows of {shape[0]} numbers"
        raise DataError(
            "task.unlabelled",
            "its items are of another kind than the task's",
            given=list(own),
            expected=f"{words}, as the task's {list(shape)}",
        )
    pool = Unlabelled(items, shape, truth_of(y, names, labels))
    pool.notes += [f"unlabelled: {note}" for note in notes]
    told = f"unlabelled: {counted(len(items), 'item')}"
    if own != shape:
        told += f" of {list(own)}, brought to the task's {list(shape)}"
    if pool.truth is not None:
        mine = int((pool.truth >= 0).sum())
        told += f"; by their labels, which nothing learns from, {mine} are of the task's classes"
    elif y is not None and names:
        told += f"; their labels are not used (none of {some(names, 3)} is called as a class of the task is)"
    pool.notes.append(told)
    return pool


def truth_of(y: Tensor | None, names: list[str] | None, labels: list[str]) -> Tensor | None:
    """The task's class of each item by the names of both, -1 where it has none; ``None`` where no name is shared.

    Example:
        >>> truth_of(torch.tensor([0, 1, 2]), ["Cat", "teapot", "dog"], ["dog", "cat"])
        tensor([ 1, -1,  0])
    """
    if y is None or names is None or y.ndim != 1 or y.is_floating_point():
        return None
    known = {plain_name(name): i for i, name in enumerate(labels)}
    table = torch.tensor([known.get(plain_name(name), -1) for name in names] or [-1])
    return table[y] if bool((table >= 0).any()) else None


def overlap(pool: Unlabelled, data: Data) -> int:
    """How many items of a pool are also items of ``data``, to 8 bits a value; 0 where there are too many to compare."""
    if len(pool) > OVERLAP or len(data) > OVERLAP:
        return 0
    found = torch.isin(_marks(pool), _marks(data))
    return int(found.sum())


def _marks(data: Data) -> Tensor:
    """A number for each item, the same where all values are the same to 8 bits: int64 [N]."""
    marks = []
    for ids in torch.arange(len(data)).split(512):
        x = data.fetch(ids)["x"].flatten(1).double().mul(255).round().long()
        odd = torch.arange(1, x.shape[1] + 1) * 0x9E3779B97F4A7C1 | 1
        mixed = (x + 1) * odd
        mixed = (mixed ^ (mixed >> 29)) * 0x2545F4914F6CDD1D  # a plain weighted sum is the same for many images
        marks.append((mixed ^ (mixed >> 32)).sum(1))
    return torch.cat(marks)


def _about(error: LimbeckError) -> LimbeckError:
    """The same error about the pool: sources speak of the task's own data."""
    for name in ("argument", "problem", "remedy", "expected"):
        setattr(error, name, getattr(error, name).replace("task.data", "task.unlabelled"))
    if not error.argument.startswith("task.unlabelled"):
        error.problem = f"{error.argument}: {error.problem}" if error.argument != "data" else error.problem
        error.argument = "task.unlabelled"
    return error


__all__ = ["Unlabelled", "overlap", "read_unlabelled", "truth_of"]
