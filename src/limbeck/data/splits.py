"""What a source read, made ready: divided where it is not, checked, and told class by class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Literal

import torch

from limbeck.data.items import Items, Joined, Part, Splits, check_items, choose, divide
from limbeck.data.names import composed, counted, some
from limbeck.errors import DataError

FEW = 12
"""Up to so many classes are listed in a sentence; the report and ``result.json`` list all."""


EmptyClasses = Literal["error", "keep"]

_WHOLE: ContextVar[list[str] | None] = ContextVar("limbeck_judged_whole", default=None)


@contextmanager
def judged_whole(yes: bool = True) -> Iterator[list[str]]:
    """Inside, data without a test split are read as one: all of their items are the test split, and none is set aside.

    Yields a list, in which stands afterwards what was read so.
    """
    found: list[str] = []
    token = _WHOLE.set(found if yes else None)
    try:
        yield found
    finally:
        _WHOLE.reset(token)


def whole_wanted(what: str) -> bool:
    """Whether data without a test split are evaluated as a whole; noted where they are."""
    found = _WHOLE.get()
    if found is None:
        return False
    found.append(what)
    return True


def check_shares(valid_fraction: float, test_fraction: float) -> None:
    """Refuse shares by which no data can be divided into three parts, with ValueError."""
    for name, share in (("valid_fraction", valid_fraction), ("test_fraction", test_fraction)):
        if not 0 < share < 1:
            raise ValueError(f"{name} must lie between 0 and 1")
    if valid_fraction + test_fraction >= 1:
        raise ValueError("valid_fraction and test_fraction together must leave something to train on")


def ready(
    splits: Splits,
    valid_fraction: float,
    test_fraction: float,
    empty_classes: EmptyClasses | None = None,
    deal: int = 0,
) -> Splits:
    """The same data in three splits, of which none is empty, with what was set aside and how many items each class has.

    Missing splits come out of train. Which items depends on their number and classes (and on ``deal``) alone, so that they
    are the same for every seed, method and machine.

    Args:
        splits: what a source holds.
        valid_fraction: share of the training items set aside for choosing, where there is no such split.
        test_fraction: share of the items set aside for evaluation, where there is no such split.
        empty_classes: whether classes that the data names and has no item of are an ``error``, or are kept as outputs
            that are never right; ``None``: an error, and the task has no such setting.
        deal: 0 keeps the source's own splits; every other number deals all items anew, in splits of the same sizes.

    Raises:
        DataError: nothing to learn from, classes without any item, items that do not fit, or too few to divide.
    """
    if len(splits.train) == 0:
        raise DataError("data", "there are no training items", expected="at least one item of each class")
    if splits.test is None and whole_wanted("items"):
        everything = splits.train if splits.valid is None else _joined([splits.train, splits.valid])
        check_items(everything, "test", splits.kind, splits.labels)
        notes = [*splits.notes, f"no test split: all {len(everything)} items are evaluated"]
        made = Splits(everything, everything, everything, splits.labels, splits.kind, notes)
        return made
    _check_classes(splits, empty_classes)
    key = ("deal", deal) if deal else ()
    if deal:
        for name, items in _parts(splits).items():  # said of the splits that the user knows
            check_items(items, name, splits.kind, splits.labels)
        splits = deal_anew(splits, deal)
    train, valid, test, notes = splits.train, splits.valid, splits.test, list(splits.notes)
    if test is None:
        whole = len(train)
        train, test = _divide(train, test_fraction, "test", *key)
        notes.append(
            f"no test split: {len(test)} of {whole} items set aside for evaluation (task.test_fraction={test_fraction:g})"
        )
    if valid is None:
        whole = len(train)
        train, valid = _divide(train, valid_fraction, "valid", *key)
        notes.append(
            f"no validation split: {len(valid)} of {whole} training items set aside for choosing "
            f"(task.valid_fraction={valid_fraction:g})"
        )
    parts = {"train": train, "valid": valid, "test": test}
    for name, items in parts.items():
        check_items(items, name, splits.kind, splits.labels)
    shapes = {name: items.shape for name, items in parts.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(
            "data",
            "the splits' inputs differ in shape: " + ", ".join(f"{k} {list(v)}" for k, v in shapes.items()),
            remedy="set task.size to bring images to one size",
        )
    made = Splits(
        train, valid, test, splits.labels, splits.kind, notes, columns=splits.columns, labelled=splits.labelled
    )
    if splits.labelled:
        notes += tell_classes(splits.labels, sizes_of(made))
    return made


def _parts(splits: Splits) -> dict[str, Items]:
    """The splits that there are."""
    parts = {"train": splits.train, "valid": splits.valid, "test": splits.test}
    return {name: items for name, items in parts.items() if items is not None}


def _joined(sets: Sequence[Items]) -> Items:
    """Sets as one; of parts of the same whole, a part of it, which looks an item up once."""
    parts = [s for s in sets if isinstance(s, Part)]
    if len(parts) == len(sets) and all(p.data is parts[0].data for p in parts):
        return Part(parts[0].data, torch.cat([p.ids for p in parts]))
    return Joined(sets)


def deal_anew(splits: Splits, deal: int) -> Splits:
    """All items of a source dealt anew into splits of the sizes that it had, stratified: another draw for each ``deal``.

    Args:
        splits: what the source holds; with a single split there is nothing to deal, and it is returned as it is.
        deal: number of the draw.

    Raises:
        DataError: the splits' inputs differ in shape.
    """
    parts = _parts(splits)
    if len(parts) < 2:
        return splits
    if len({items.shape for items in parts.values()}) > 1:
        raise DataError(
            "task.deal",
            "the splits' inputs differ in shape, so they cannot be dealt anew",
            remedy="set task.size to bring images to one size, or task.deal=0 for the data's own splits",
        )
    rest = _joined(list(parts.values()))
    dealt: dict[str, Items] = {}
    for name in ("test", "valid"):
        if name in parts:
            ids = choose(rest.y, len(parts[name]), name, "deal", deal)
            kept = torch.ones(len(rest), dtype=torch.bool)
            kept[ids] = False
            dealt[name], rest = Part(rest, ids), Part(rest, kept.nonzero()[:, 0])
    return replace(splits, train=rest, valid=dealt.get("valid"), test=dealt.get("test"))


def _check_classes(splits: Splits, empty_classes: EmptyClasses | None) -> None:
    if splits.kind == "number" or not splits.labelled:
        return
    everything = [items for items in (splits.train, splits.valid, splits.test) if items is not None]
    if splits.kind == "label":
        present = {int(c) for items in everything for c in items.y.unique()}
        if len(splits.labels) < 2 or len(splits.train.y.unique()) < 2:
            only = splits.labels[int(splits.train.y[0])] if splits.labels else "none"
            raise DataError(
                "data",
                f"the training items have one class only: {only!r}",
                expected="at least two classes",
                remedy="check the folder or the label column that is read",
            )
    else:
        present = {int(c) for items in everything for c in (items.y > 0).any(0).nonzero()[:, 0]}
    if not splits.declared or empty_classes == "keep":
        return
    lost = [label for i, label in enumerate(splits.labels) if i not in present]
    if lost:
        raise DataError(
            "data",
            f"{counted(len(lost), 'class', 'classes')} of {len(splits.labels)} without any item: {some(lost)}",
            expected="at least one item of each class that is declared",
            remedy="check that all of the data is there, or leave them out of the list of classes"
            + (", or keep them with task.empty_classes=keep" if empty_classes else ""),
        )


def _divide(items: Items, fraction: float, name: str, *key: Any) -> tuple[Items, Items]:
    rest, part = divide(items, fraction, name, *key)
    if len(part) == 0:
        raise DataError(
            "data",
            f"{len(items)} items with hardly more than one of each class cannot be divided into train and {name}",
            expected=f"a {name} split, or more items",
        )
    return rest, part


# --------------------------------------------------------------------------------------------------------------- telling
Sizes = dict[str, list[int]]
"""Split -> number of items of each class."""


def sizes_of(splits: Splits) -> Sizes:
    """How many items of each class every split has; empty where the targets are numbers."""
    if splits.kind == "number":
        return {}
    parts = {"train": splits.train, "valid": splits.valid, "test": splits.test}
    n = len(splits.labels)
    if splits.kind == "label":
        return {k: torch.bincount(v.y, minlength=n).tolist() for k, v in parts.items() if v is not None}
    return {k: (v.y > 0.5).sum(0).tolist() for k, v in parts.items() if v is not None}


def tell_classes(labels: Sequence[str], sizes: Sizes) -> list[str]:
    """Sentences: how many items each class has in every split, which class a split lacks, which names are alike."""
    if not sizes:
        return []
    of = " + ".join(sizes)
    if len(labels) <= FEW:
        each = ", ".join(f"{label} {' + '.join(str(n[i]) for n in sizes.values())}" for i, label in enumerate(labels))
        said = [f"items of each class ({of}): {each}"]
    else:
        ranges = ", ".join(f"{split} {min(n)} to {max(n)}" for split, n in sizes.items())
        said = [f"{len(labels):,} classes; items of each: {ranges}"]
    for split, n in sizes.items():
        lacking = [label for label, count in zip(labels, n, strict=True) if count == 0]
        if lacking and split != "valid":
            what = {"train": "no training item has", "test": "no test item has"}[split]
            more = ": the result says nothing of it" if split == "test" else ""
            said.append(f"{what} the class {some(lacking)}{more}")
    return said + _alike(labels)


def _alike(labels: Sequence[str]) -> list[str]:
    """Names that differ in capitals, blanks and hyphens only: two classes, or one that was typed in two ways?"""
    forms: dict[str, list[str]] = {}
    for label in labels:
        form = " ".join(composed(label).casefold().replace("_", " ").replace("-", " ").split())
        forms.setdefault(form, []).append(label)
    twins = [" and ".join(map(repr, names)) for names in forms.values() if len(names) > 1]
    return [f"classes whose names are alike, taken as different: {some(twins, 5)}"] if twins else []


__all__ = ["EmptyClasses", "Sizes", "check_shares", "deal_anew", "ready", "sizes_of", "tell_classes"]
