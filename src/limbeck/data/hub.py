"""Data sets of the Hugging Face Hub, and local folders that the ``datasets`` library reads, split by split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.data.names import choose_splits
from limbeck.errors import DataError, first_line, require
from limbeck.storage.plain import check_folder


@dataclass
class Part:
    """One of a data set's splits.

    Attributes:
        split: which it is to us: train, valid or test.
        name: what the data set calls it.
        rows: the library's own ``Dataset``, whose rows lie on disk.
    """

    split: str
    name: str
    rows: Any


def hub_parts(
    name: str, subset: str | None, asked: Mapping[str, str | None], setting: str = "task.data.name"
) -> tuple[list[Part], list[str]]:
    """The splits that are train, valid and test, and what is to be said of them.

    Args:
        name: a Hub id, a folder of data files, or one that ``save_to_disk`` wrote.
        subset: the data set's own configuration name.
        asked: split -> what the data set calls it; those that are ``None`` are told by their names.
        setting: the setting that holds the name, for messages.

    Raises:
        DataError: the library cannot load it, or none of its splits is one for training.
    """
    datasets = require("datasets", "language", "reading a Hugging Face data set")
    check_folder(name, setting)
    saved = any((Path(name) / f).is_file() for f in ("dataset_info.json", "dataset_dict.json"))
    try:
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, subset)
    except Exception as error:  # the library raises a dozen kinds; all mean that this name gives no data here
        raise DataError(
            setting,
            f"the datasets library cannot load it: {first_line(error)}",
            given=name,
            remedy="check the name, task.data.subset, and that the machine is online or has it cached",
        ) from None
    splits = found if isinstance(found, dict) else {"train": found}
    sizes = {str(n): len(rows) for n, rows in splits.items()}
    chosen, notes = choose_splits(sizes, asked if len(sizes) > 1 else {"train": next(iter(sizes), None)})
    return [Part(split, n, splits[n]) for n, split in chosen.items()], notes


def hub_columns(part: Part) -> dict[str, list[Any]]:
    """The cells of a split by their columns' names, classes by theirs."""
    found: dict[str, list[Any]] = {}
    for name in part.rows.column_names:
        cells = list(part.rows[name])
        names = getattr(part.rows.features.get(name), "names", None)
        if isinstance(names, list):
            cells = [names[c] if isinstance(c, int) and 0 <= c < len(names) else None for c in cells]
        found[name] = cells
    return found


__all__ = ["Part", "hub_columns", "hub_parts"]
