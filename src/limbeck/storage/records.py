"""Rows of tensors by the number of their item: memory-mapped parts, opened and checked when they are first asked for.

A recorded teacher (`limbeck.cache`) and what a stage of items left (`Context.recorded`) are read through the same store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import MethodError
from limbeck.storage.disk import read_manifest, verify_folder
from limbeck.storage.store import hash_tree, load_tree


class Records:
    """Rows in numbered parts.

    Args:
        opened: from a part's number to its tensors [n, ...] by name; asked once for each part.
    """

    def __init__(self, opened: Callable[[int], Mapping[str, Tensor]]) -> None:
        self._opened = opened
        self._parts: dict[int, Mapping[str, Tensor]] = {}

    def part(self, number: int) -> Mapping[str, Tensor]:
        """A part's tensors, mapped into memory."""
        if number not in self._parts:
            self._parts[number] = self._opened(number)
        return self._parts[number]

    def rows(self, parts: np.ndarray[Any, Any], places: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """Fresh tensors [N, ...] of the rows at some places [N] of parts [N], in that order."""
        if not len(parts):
            return {}
        within = torch.from_numpy(places)
        if (parts == parts[0]).all():
            return {name: tensor.index_select(0, within) for name, tensor in self.part(int(parts[0])).items()}
        found: dict[str, Tensor] = {}
        for number in np.unique(parts):
            here = torch.from_numpy(np.flatnonzero(parts == number))
            for name, tensor in self.part(int(number)).items():
                if name not in found:
                    found[name] = tensor.new_empty((len(parts), *tensor.shape[1:]))
                found[name].index_copy_(0, here, tensor.index_select(0, within[here]))
        return found


class Recorded:
    """What a stage of items left, row by row: `Data` whose items are known by their numbers.

    An item's work leaves a mapping with ``item`` (int64 [n], the numbers of its rows) and tensors [n, ...]; or, where its
    own id is a number, tensors of a single row. What has another first axis is no row.

    Args:
        stage: its name, for messages.
        folders: the stage's items by their ids, and where each lies.

    Raises:
        MethodError: an item left no rows, or two left the same one.
    """

    def __init__(self, stage: str, folders: Mapping[str, Path]) -> None:
        self.stage, self._folders = stage, dict(folders)
        ids = [self._ids(item, load_tree(folder, verify=False, mapped=True)) for item, folder in folders.items()]
        every = np.concatenate([np.zeros(0, np.int64), *ids])
        order = every.argsort(kind="stable")
        self._numbers = every[order]
        twice = self._numbers[:-1][self._numbers[1:] == self._numbers[:-1]]
        if len(twice):
            raise MethodError(
                f"stage {stage!r}", f"two of its items have left row {int(twice[0])}", expected="every row once"
            )
        self._part = np.repeat(np.arange(len(ids)), [len(i) for i in ids])[order]
        self._place = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(i)) for i in ids)])[order]
        self._store = Records(self._open)

    def _ids(self, item: str, tree: Any) -> np.ndarray[Any, Any]:
        if isinstance(tree, Mapping) and isinstance(tree.get("item"), Tensor):
            found: np.ndarray[Any, Any] = tree["item"].to(torch.int64).numpy().copy()
            return found
        if not isinstance(tree, Mapping) or not item.isdecimal():
            raise MethodError(
                f"stage {self.stage!r}",
                f"item {item!r} has left no rows",
                given=type(tree).__name__
                if not isinstance(tree, Mapping)
                else f"a mapping of {sorted(map(str, tree))}",
                expected="a mapping with `item` (int64 [n], the numbers of its rows) and tensors [n, ...]",
            )
        return np.array([int(item)])

    def _open(self, number: int) -> Mapping[str, Tensor]:
        item, folder = list(self._folders.items())[number]
        tree = load_tree(folder, mapped=True)
        n = len(self._ids(item, tree))
        found = {}
        for name, value in tree.items():
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(value)
            if name == "item" or not isinstance(value, Tensor):
                continue
            value = value if "item" in tree else value[None]
            if value.ndim and len(value) == n:
                found[str(name)] = value
        return found

    @property
    def items(self) -> Tensor:
        """The numbers of its rows, rising: int64 [N]."""
        return torch.from_numpy(self._numbers.copy())

    def __len__(self) -> int:
        return len(self._numbers)

    def fetch(self, items: Tensor) -> dict[str, Any]:
        """The rows of items by their numbers, as fresh tensors [n, ...] on the CPU.

        Raises:
            MethodError: an item has no row.
        """
        ids = items.detach().cpu().numpy()
        found = np.searchsorted(self._numbers, ids)
        here = found < len(self._numbers)
        here[here] = self._numbers[found[here]] == ids[here]
        if not here.all():
            missing = ids[~here]
            raise MethodError(
                f"stage {self.stage!r}",
                f"it has left no row for {len(missing)} of {len(ids)} items: {', '.join(map(str, missing[:8]))}",
                expected=f"items among its {len(self)} rows",
            )
        return dict(self._store.rows(self._part[found], self._place[found]))

    @property
    def fingerprint(self) -> str:
        """Hash of everything it left."""
        return hash_tree({item: sorted(read_manifest(f).items()) for item, f in self._folders.items()})


def mapped_arrays(folder: Path) -> dict[str, Tensor]:
    """The ``.npy`` files of a folder, its hashes checked, as tensors mapped into memory."""
    verify_folder(folder)
    # plain views of the mapped files: indexing a numpy.memmap makes a memmap of every answer, four times as slow
    return {
        p.stem: torch.from_numpy(np.load(p, mmap_mode="c", allow_pickle=False).view(np.ndarray))
        for p in sorted(folder.glob("*.npy"))
    }


__all__ = ["Recorded", "Records", "mapped_arrays"]
