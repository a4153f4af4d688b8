"""Where items come from: embedded data, folders, arrays, tables, libraries' data sets, the user's own function."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from limbeck.data.arrays import (
    Layout,
    as_inputs,
    from_datasets,
    judge_by_valid,
    open_npy,
    open_npz,
    placed,
    read_names,
    targets_of,
)
from limbeck.data.columns import OnBadRows, Target
from limbeck.data.items import ArrayData, Items, Kind, Part, Splits, as_path, choose
from limbeck.data.listing import File, Listing
from limbeck.data.names import SPLITS, counted, plain, several_forms, some, split_of
from limbeck.data.pictures import BadFiles, Bytes, Check, fit, list_pictures, load_pictures
from limbeck.data.splits import EmptyClasses, ready
from limbeck.data.targets import read_targets
from limbeck.errors import DataError, LimbeckError, nearest
from limbeck.grammar.component import Component
from limbeck.grammar.settings import Count, Natural, Positive, settings
from limbeck.storage.plain import check_folder

NAMES = {
    "source": {
        "digits": "Digits",
        "folder": "Folder",
        "torchvision": "TorchvisionSet",
        "arrays": "Arrays",
        "import": "ImportedSource",
    }
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Source(Component):
    """A place that items come from. ``read`` gives the splits that are there, ``divided`` all three."""

    kind: ClassVar[str] = "source"
    paths: ClassVar[tuple[str, ...]] = ("path",)

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The data.

        Args:
            target: what the items are answered with; ``auto`` sees it in the data.
            size: side length images are brought to (shorter side resized, middle cut out); ``None`` keeps theirs.

        Raises:
            DataError: nothing there, or something that cannot be read, named.
        """
        raise TypeError(f"{type(self).__name__} must define read")

    def pool(self, size: int | None = None) -> tuple[Items, Tensor | None, list[str] | None, list[str]]:
        """Its items as a pool of which no label is asked for; of several splits the training items.

        Args:
            size: as in `read`.

        Returns:
            The items; their classes int64 [N] and the classes' names where it has such, else ``None``; notes.
        """
        splits = self.read("auto", size)
        known = splits.kind == "label"
        return splits.train, splits.train.y if known else None, splits.labels if known else None, list(splits.notes)

    def divided(
        self,
        target: Target = "auto",
        size: int | None = None,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.2,
        empty_classes: EmptyClasses | None = None,
        deal: int = 0,
    ) -> Splits:
        """The data in three splits, checked, with what is to be said of it. See ``limbeck.data.splits.ready``."""
        return ready(self.read(target, size), valid_fraction, test_fraction, empty_classes, deal)


@settings
class PictureSource(Source):
    """What sources of image files share.

    Args:
        bad_files: ``error`` names every unreadable image before anything is trained; ``skip`` leaves them out.
        size: side length images are brought to, if the task names none; ``null`` keeps theirs.
        scale: what values of more than 8 bits are divided by, the same in every image; ``null``: 65535 for integers
            up to that, 1 for floats; larger ones are refused.
        check: ``full`` decodes every image once before training; ``quick`` looks at those that do not fit into memory
            only at their head and end.
        memory_mb: how much decoded images may take in memory; what does not fit is decoded each time it is used.
    """

    _: KW_ONLY
    bad_files: BadFiles = "error"
    size: Count | None = None
    scale: Positive | None = None
    check: Check = "full"
    memory_mb: Natural = 1024

    def _load(self, files: Sequence[Bytes], y: Tensor, size: int | None) -> tuple[Items, Tensor, list[str]]:
        return load_pictures(
            files,
            y,
            size=size if size is not None else self.size,
            bad_files=self.bad_files,
            check=self.check,
            memory_mb=self.memory_mb,
            scale=self.scale,
        )


def assemble(
    items: Items,
    good: Tensor,
    split_of: Sequence[str] | np.ndarray[Any, Any],
    labels: list[str],
    kind: Kind,
    notes: list[str],
    declared: bool = False,
) -> Splits:
    """Splits from one set, given each item's split by its position before unreadable ones were left out (``good``)."""
    names = np.asarray(split_of, dtype=object)[good.numpy()]
    parts: dict[str, Items] = {}
    for split in ("train", "valid", "test"):
        ids = torch.from_numpy(np.flatnonzero(names == split))
        if len(ids):
            parts[split] = Part(items, ids)
    return judge_by_valid(parts, labels, kind, notes, declared)


# ------------------------------------------------------------------------------------------------------ embedded
class Digits(Source):
    """Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8 pixels (Alpaydin and Kaynak, 1998).

    700 are the test split, drawn once, in equal shares of the classes. No download.
    """

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The digits; ``target="number"`` answers with the digit's value."""
        from sklearn.datasets import load_digits

        found = load_digits()
        x = torch.from_numpy(found.images).to(torch.float32).div_(16.0).unsqueeze(1)  # [N, 1, 8, 8], 17 grey levels
        digits = torch.from_numpy(found.target).to(torch.int64)
        test = choose(digits, 700, "digits", "test")
        rest = torch.ones(len(digits), dtype=torch.bool)
        rest[test] = False
        names = [str(d) for d in range(10)]
        kind: Kind = "label" if target == "auto" else target
        y = digits
        if kind == "labels":
            y = torch.nn.functional.one_hot(digits, 10).to(torch.float32)
        elif kind == "number":
            y, names = digits.to(torch.float32).unsqueeze(1), ["digit"]
        data = ArrayData(fit(x, size), y)
        return Splits(Part(data, rest.nonzero()[:, 0]), None, Part(data, test), names, kind)


# ------------------------------------------------------------------------------------------------------ folders
@settings
class Folder(PictureSource):
    """Images in folders: one folder a class, inside ``train``, ``val`` and ``test`` folders where there are such.

    Classes are matched by name across the splits, so that one that a split lacks shifts nothing; a class folder without
    an image is an error. Hidden files and folders are passed over and named, symbolic links followed but never in a
    circle. An uncompressed ``.tar`` is read like a folder.

    Args:
        path: the folder.
    """

    path: str

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The images, each with its folder's name as label (or number)."""
        root = as_path(self.path, "task.data.path")
        listing = list_pictures(root)
        split = _split_folders(root, listing)
        picked: list[File] = []
        names: list[str] = []
        splits: list[str] = []
        stray: list[str] = []
        deeper: dict[str, int] = {}
        for file in listing.found:
            parts = file.name.split("/")
            below = parts[1:] if split else parts
            if len(below) < 2:
                stray.append(file.name)
                continue
            picked.append(file)
            names.append(plain(below[0]))
            splits.append(split[parts[0]] if split else "train")
            if len(below) > 2:
                folder = "/".join(parts[:-1])
                deeper[folder] = deeper.get(folder, 0) + 1
        if not picked:
            raise DataError(
                str(root),
                f"{len(stray)} images lie outside any class folder"
                if stray
                else "there are no images in class folders",
                expected="one folder a class, with images in it",
                remedy="for images named in a table use csv:FILE",
            )
        _refuse_empty(root, listing, split, set(names))
        y, labels, kind = read_targets(
            {"folder": names}, "label" if target == "auto" else target, lambda i: picked[i].name, argument=str(root)
        )
        items, good, notes = self._load(picked, y, size)
        if len(good) < len(picked):
            _refuse_unread(root, names, good, self.bad_files)
        notes += listing.notes()
        forms: dict[str, set[str]] = {}
        for file, name in zip(picked, names, strict=True):
            forms.setdefault(name, set()).add(file.name.split("/")[1 if split else 0])
        notes += several_forms(forms)
        if stray:
            notes.append(f"{counted(len(stray), 'image')} outside any class folder left out: {some(stray, 5)}")
        for one in dict.fromkeys(split.values()):
            same = [folder for folder, s in split.items() if s == one]
            if len(same) > 1:
                notes.append(f"{one} is {' and '.join(same)} together")
        if deeper:
            said = [f"{folder} ({n})" for folder, n in deeper.items()]
            notes.append(f"images in folders below a class folder belong to its class: {some(said, 5)}")
        return assemble(items, good, splits, labels, kind, notes)

    def pool(self, size: int | None = None) -> tuple[Items, Tensor | None, list[str] | None, list[str]]:
        """All images below the folder, wherever they lie; the folder that one lies in says its class."""
        root = as_path(self.path, "task.data.path")
        listing = list_pictures(root)
        if not listing.found:
            raise DataError(str(root), "there are no images", expected="images in it, or in folders below it")
        folders = [plain(f.name.split("/")[-2]) if "/" in f.name else "" for f in listing.found]
        names = sorted(set(folders))
        number = {name: i for i, name in enumerate(names)}
        y = torch.tensor([number[name] for name in folders])
        items, good, notes = self._load(listing.found, y, size)
        return items, y[good], names, notes + listing.notes()


def _split_folders(root: Path, listing: Listing) -> dict[str, str]:
    """Folder -> split, for the folders at the top; empty where these are the classes.

    Raises:
        DataError: some are splits and others are classes, or they are splits without class folders.
    """
    pictures = [f.name for f in listing.found]
    tops = {name.split("/")[0] for name in pictures if "/" in name}
    nested = {name.split("/")[0] for name in pictures if name.count("/") >= 2}
    known = {t: split for t in tops if (split := SPLITS.get(plain(t).lower()))}
    if not known and tops and tops == nested:  # train2017 and val2017: only where no folder says another thing
        known = {t: s for t in tops if (s := split_of(t))}
        known = known if len(known) == len(tops) and "train" in known.values() else {}
    if not known or (known.keys() != tops and not set(known) & nested):
        return {}  # a class may be called test, where it lies beside others
    if "train" not in known.values():
        raise DataError(
            str(root),
            f"holds {some(sorted(known))} but no train folder",
            given=sorted(tops),
            expected="train, and val or test beside it, each with one folder a class; or class folders",
            remedy="rename the folder of training images to train",
        )
    flat = sorted(set(known) - nested)
    if flat:
        raise DataError(
            str(root),
            f"{some(flat)} holds images, but no class folders",
            expected=f"one folder a class in {some(sorted(known))}",
            remedy="sort the images into class folders, or move that folder elsewhere",
        )
    if known.keys() != tops:
        raise DataError(
            str(root),
            f"beside {', '.join(sorted(known))} there are folders that are no split: {some(sorted(tops - set(known)))}",
            expected="either split folders, or class folders",
            remedy="move them elsewhere, or into the folder of a split",
        )
    return known


def _refuse_empty(root: Path, listing: Listing, split: dict[str, str], names: set[str]) -> None:
    """Class folders without a picture: what was declared must not vanish."""
    tops = [f for f in listing.folders if "/" not in f]
    bare = [f for f in tops if split and f not in split and (f.lower() in SPLITS or split_of(f))]
    if bare:
        raise DataError(
            str(root),
            f"the folder {some(bare)} holds no image",
            expected="images in each split's class folders",
            remedy="put them there, or remove the folder",
        )
    depth = 2 if split else 1
    folders = [f for f in listing.folders if f.count("/") == depth - 1 and (not split or f.split("/")[0] in split)]
    empty = [f for f in folders if plain(f.split("/")[-1]) not in names]
    if empty:
        others = any(f.name.startswith(f"{e}/") for e in empty for f in listing.files)
        raise DataError(
            str(root),
            f"{counted(len(empty), 'class folder holds', 'class folders hold')} no picture: {some(empty)}"
            + (" (other files lie there)" if others else ""),
            expected="at least one image of each class",
            remedy="put its images there, or remove the folder",
        )


def _refuse_unread(root: Path, names: Sequence[str], good: Tensor, bad_files: BadFiles) -> None:
    left = {names[i] for i in good.tolist()}
    lost = sorted(set(names) - left)
    if lost:
        raise DataError(
            str(root),
            f"of {counted(len(lost), 'class', 'classes')} no image can be read: {some(lost)}",
            expected="at least one image of each class",
            remedy=f"mend its images, or remove the folder (task.data.bad_files={bad_files} left them out)",
        )


# ------------------------------------------------------------------------------------------------------ arrays
@settings
class Arrays(Source):
    """NumPy arrays: one ``.npz`` or ``.npy`` file, or a folder with ``train.npz`` and, if there is one, ``test.npz``.

    Images are [N, H, W], [N, H, W, C] or [N, C, H, W]; rows of numbers [N, F]. A file may hold all splits at once
    (``x_train``, ``y_train``, ``x_test``, ``y_test``). Class names are read from ``classes.json`` or ``labels.json``
    beside the arrays, or from an array ``classes``; without any they are the numbers themselves.

    Args:
        path: the file or folder.
        x: name of the inputs' array; by default ``x``, ``images`` or ``data``.
        y: name of the targets' array; by default ``y``, ``labels``, ``label``, ``targets`` or ``target``. For a
            ``.npy`` file: the file of targets beside it (by default ``y.npy``).
        layout: where the channels are: ``last``, ``first``, or ``auto``: where 1, 3 or 4 of them fit.
        scale: what inputs are divided by; ``null``: 255 or 65535 for bytes and 16-bit values, nothing for others.
        classes: file of class names, or which list of a ``classes.json`` that holds several.
        bad_rows: ``error`` names every item without a label (-1, NaN, empty); ``skip`` leaves them out.
    """

    paths: ClassVar[tuple[str, ...]] = ("path", "classes")

    X: ClassVar[tuple[str, ...]] = ("x", "X", "images", "image", "data")
    Y: ClassVar[tuple[str, ...]] = ("y", "Y", "labels", "label", "targets", "target")

    path: str
    x: str | None = None
    y: str | None = None
    layout: Layout = "auto"
    scale: Positive | None = None
    classes: str | None = None
    bad_rows: OnBadRows = "error"

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The arrays; floating targets are numbers, [N, C] of zeros and ones several labels."""
        root = as_path(self.path, "task.data.path")
        if not root.exists():
            raise DataError(str(root), "there is no such file or folder", remedy="check the path")
        notes: list[str] = []
        pairs, names = self._folder(root, notes) if root.is_dir() else self._file(root, notes)
        if names is None:
            names = self._names(root if root.is_dir() else root.parent)
        inputs: dict[str, Tensor] = {}
        for split, (x, y, where) in pairs.items():
            told = notes if split == "train" else None
            made = as_inputs(x, where, self.layout, self.scale, notes=told)
            inputs[split] = fit(made, size) if made.ndim == 4 else made
            if len(made) != len(y):
                raise DataError(where, f"{len(made)} inputs but {len(y)} targets", expected="one target an input")
        if len({y.shape[1:] for _, y, _ in pairs.values()}) > 1:
            shapes = ", ".join(f"{split} {list(y.shape)}" for split, (_, y, _) in pairs.items())
            raise DataError(str(root), f"the splits' targets differ in shape: {shapes}")
        raw = {split: y for split, (_, y, _) in pairs.items()}
        targets, items, labels, kind = targets_of(raw, target, names, str(root), self.bad_rows, notes)
        found = {
            split: placed(partial(ArrayData, inputs[split]), targets[split], items[split], len(raw[split]))
            for split in targets
        }
        return judge_by_valid(found, labels, kind, notes, names is not None)

    def pool(self, size: int | None = None) -> tuple[Items, Tensor | None, list[str] | None, list[str]]:
        """Inputs, of which nothing need stand beside: an ``.npy`` file, or ``x`` in an ``.npz`` file without targets."""
        root = as_path(self.path, "task.data.path")
        if not root.is_file():
            return super().pool(size)
        arrays = {self.x or "x": open_npy(root)} if root.suffix.lower() == ".npy" else open_npz(root)
        if any(self._named(arrays, self.y, self.Y, split) for split in ("", "train")) or (
            root.suffix.lower() == ".npy" and (root.parent / (self.y or "y.npy")).is_file()
        ):
            return super().pool(size)
        name = next((n for split in ("", "train") if (n := self._named(arrays, self.x, self.X, split))), None)
        if name is None:
            raise DataError(
                str(root),
                f"holds no array {self.x or 'x'}",
                given=sorted(arrays),
                remedy="name it: task.data.x=...",
            )
        notes: list[str] = []
        x = as_inputs(arrays[name], str(root), self.layout, self.scale, notes=notes)
        return ArrayData(fit(x, size) if x.ndim == 4 else x, torch.zeros(len(x), dtype=torch.int64)), None, None, notes

    def _folder(self, root: Path, notes: list[str]) -> tuple[dict[str, tuple[Any, Any, str]], list[str] | None]:
        pairs: dict[str, tuple[Any, Any, str]] = {}
        names = None
        files = [p for p in sorted(root.iterdir()) if p.suffix in (".npz", ".npy") and not p.name.startswith(".")]
        splits = {p: s for p in files if p.suffix == ".npz" and (s := SPLITS.get(p.stem.lower()) or split_of(p.stem))}
        for path, split in splits.items():
            if split in pairs:
                same = [p.name for p, s in splits.items() if s == split]
                raise DataError(str(root), f"{' and '.join(same)} are the same split", remedy="name one file")
            found, inside = self._file(path, notes)
            if len(found) > 1 and split not in found:
                raise DataError(
                    str(path), f"holds {some(sorted(found))}, but is called {split}", remedy="name the file"
                )
            pairs[split] = found.get(split) or next(iter(found.values()))
            names = names if names is not None else inside
        left = [p.name for p in files if p not in splits]
        if not pairs:
            pairs = (
                self._pick({p.stem: open_npy(p) for p in files if p.suffix == ".npy"}, str(root), notes)
                if any(p.suffix == ".npy" for p in files)
                else {}
            )
            left = [name for name in left if name.endswith(".npz")]
        if not pairs:
            raise DataError(
                str(root),
                "holds no train.npz and no x.npy with y.npy",
                given=[p.name for p in sorted(root.iterdir())][:10],
            )
        if left:
            notes.append(f"files that were not read: {some(left)}")
        return pairs, names

    def _file(self, path: Path, notes: list[str]) -> tuple[dict[str, tuple[Any, Any, str]], list[str] | None]:
        if path.suffix.lower() == ".npy":
            beside = path.parent / (self.y or "y.npy")
            if not beside.is_file():
                raise DataError(
                    str(beside), "the file of targets is missing", remedy="name it with task.data.y=FILE.npy"
                )
            return {"train": (open_npy(path), open_npy(beside), str(path))}, None
        arrays = open_npz(path)
        inside = next((arrays.pop(n) for n in ("classes", "class_names", "label_names") if n in arrays), None)
        return self._pick(arrays, str(path), notes), None if inside is None else [
            plain(str(n)) for n in inside.tolist()
        ]

    def _pick(self, arrays: dict[str, Any], where: str, notes: list[str]) -> dict[str, tuple[Any, Any, str]]:
        """Inputs and targets by split, from names such as ``x``, ``x_train`` or ``train_images``."""
        pairs: dict[str, tuple[Any, Any, str]] = {}
        used: set[str] = set()
        for split in ("", *SPLITS):
            x = self._named(arrays, self.x, self.X, split)
            y = self._named(arrays, self.y, self.Y, split)
            if x is not None and y is not None and SPLITS.get(split, "train") not in pairs:
                pairs[SPLITS.get(split, "train")] = (arrays[x], arrays[y], where)
                used |= {x, y}
        if not pairs:
            close = [c for n in (self.x, self.y) if n and n not in arrays for c in nearest(n, arrays)]
            raise DataError(
                where,
                f"holds no arrays {self.x or 'x'} and {self.y or 'y'}",
                given=sorted(arrays),
                remedy=f"did you mean {' or '.join(map(repr, close))}?"
                if close
                else "name them: task.data.x=... task.data.y=...",
            )
        left = [f"{n} {list(a.shape)}" for n, a in arrays.items() if n not in used]
        if left:
            notes.append(f"arrays in {Path(where).name} that were not read: {some(left)}")
        return pairs

    @staticmethod
    def _named(arrays: dict[str, Any], asked: str | None, usual: Sequence[str], split: str) -> str | None:
        for name in [asked] if asked else usual:
            for full in (f"{name}_{split}", f"{split}_{name}") if split else (name,):
                if full in arrays:
                    return full
        return None

    def _names(self, folder: Path) -> list[str] | None:
        if self.classes:
            for path in (as_path(self.classes, "task.data.classes"), folder / self.classes):
                if path.is_file():
                    return read_names(path)
        for name in ("classes.json", "labels.json", "classes.txt", "labels.txt"):
            if (folder / name).is_file():
                return read_names(folder / name, self.classes or self.y)
        if self.classes:
            raise DataError("task.data.classes", given=self.classes, expected="a file of class names")
        return None


# ------------------------------------------------------------------------------------------------------ libraries
@settings
class TorchvisionSet(PictureSource):
    """A data set of ``torchvision.datasets`` by its class name.

    Args:
        name: the class, as ``CIFAR10``.
        root: the folder where its files are.
        download: let torchvision download what is missing; off, nothing leaves or enters the machine.
        options: further arguments of the class.
        bad_rows: ``error`` names every item without a label (-1, NaN); ``skip`` leaves them out.
    """

    name: str
    root: str = "data"
    download: bool = False
    options: dict[str, Any] | None = None
    bad_rows: OnBadRows = "error"

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The data set's splits, by its own ``train`` or ``split`` argument."""
        from torchvision import datasets

        known = {n: c for n, c in vars(datasets).items() if isinstance(c, type) and hasattr(c, "__getitem__")}
        cls = known.get(self.name)
        if cls is None:
            raise DataError.unknown("task.data.name", self.name, known, "torchvision data set")
        accepted = inspect.signature(cls).parameters
        if "train" in accepted and "train" not in (self.options or {}):
            made = {"train": self._make(cls, accepted, train=True), "test": self._make(cls, accepted, train=False)}
        elif "split" in accepted and "split" not in (self.options or {}):
            made = {"train": self._make(cls, accepted, split="train")}
            for split in ("val", "valid", "test"):
                try:
                    made[SPLITS[split]] = self._make(cls, accepted, split=split)
                except DataError as error:
                    if "split" not in error.problem:  # a split that the class does not know is no fault
                        raise
        else:
            made = {"train": self._make(cls, accepted)}
        size = size if size is not None else self.size
        if all(_samples(d) is not None for d in made.values()):
            return self._from_files(made, target, size)
        held = {split: _in_memory(d) or d for split, d in made.items()}
        names = getattr(made["train"], "classes", None)
        names = [_first(n) for n in names] if isinstance(names, (list, tuple)) else None
        return from_datasets(held, target, size, self.memory_mb, names, f"torchvision:{self.name}", self.bad_rows)

    def _from_files(self, made: dict[str, Any], target: Target, size: int | None) -> Splits:
        """Sets that name image files (ImageFolder and its kin), read as such."""
        files: list[File] = []
        names: list[str] = []
        splits: list[str] = []
        for split, data in made.items():
            for path, place in _samples(data) or []:
                files.append(File(str(path), Path(path)))
                names.append(_first(data.classes[place]))
                splits.append(split)
        y, labels, kind = read_targets(
            {"class": names}, "label" if target == "auto" else target, lambda i: files[i].name, argument=self.name
        )
        items, good, notes = self._load(files, y, size)
        if len(good) < len(files):
            _refuse_unread(Path(self.root), names, good, self.bad_files)
        return assemble(items, good, splits, labels, kind, notes)

    def _make(self, cls: Any, accepted: Mapping[str, Any], **more: Any) -> Any:
        arguments = {**more, **(self.options or {})}
        check_folder(as_path(self.root, "task.data.root"), "task.data.root")
        for name, value in (("root", str(as_path(self.root, "task.data.root"))), ("download", self.download)):
            if name in accepted:
                arguments.setdefault(name, value)
        try:
            return cls(**arguments)
        except (
            Exception
        ) as error:  # RuntimeError, FileNotFoundError, TypeError, ValueError: all are the arguments' fault
            text = " ".join(str(error).split())[:300]
            remedy = (
                "" if self.download else "set task.data.download=true to fetch it, or task.data.root to where it is"
            )
            raise DataError(f"torchvision:{self.name}", text or type(error).__name__, remedy=remedy) from None


def _samples(data: Any) -> list[tuple[str, int]] | None:
    found = getattr(data, "samples", None)
    if isinstance(found, list) and found and isinstance(getattr(data, "classes", None), (list, tuple)):
        pairs = [s for s in found if isinstance(s, tuple) and len(s) == 2 and isinstance(s[0], (str, Path))]
        return pairs if len(pairs) == len(found) else None
    return None


def _in_memory(data: Any) -> tuple[Any, Any] | None:
    """Images and targets of a set that holds them as arrays (CIFAR, MNIST, SVHN, STL-10)."""
    x = getattr(data, "data", None)
    y = next((v for n in ("targets", "labels") if (v := getattr(data, n, None)) is not None), None)
    if not isinstance(x, (np.ndarray, Tensor)) or x.ndim not in (3, 4) or y is None:
        return None
    if not len(x) == len(y) == len(data):
        return None
    return x, np.asarray(y)


def _first(name: Any) -> str:
    """A class's name; ImageNet's come as tuples of synonyms."""
    return ", ".join(map(str, name)) if isinstance(name, (tuple, list)) else str(name)


@settings
class ImportedSource(Source):
    """What the user's own function returns. Naming it runs its code.

    The function returns a torch ``Dataset`` with items (input, target), a pair of arrays (x, y), limbeck's own
    ``Splits``, or several of the former as a mapping with ``train`` and, if there are such, ``valid`` and ``test``; the
    mapping may hold ``labels``, the class names. Images are PIL images, arrays [H, W, C] or tensors [C, H, W]. Items
    should not change between calls: what is random belongs into a query.

    Args:
        function: ``package.module:function``.
        options: arguments of the function.
        memory_mb: how much may be kept in memory; beyond, items are asked for each time.
        bad_rows: ``error`` names every item without a label (-1, NaN, empty); ``skip`` leaves them out.
    """

    code: ClassVar[str] = "function"

    function: str
    options: dict[str, Any] | None = None
    memory_mb: Natural = 1024
    bad_rows: OnBadRows = "error"

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """What the function returned, as splits."""
        from limbeck.recipe.imports import imported

        made = imported(self.function, "task.data.function")
        try:
            found = made(**(self.options or {}))
        except LimbeckError:
            raise
        except Exception as error:
            raise DataError("task.data.function", f"{self.function} failed: {type(error).__name__}: {error}") from error
        if isinstance(found, Splits):
            return found
        labels = None
        if isinstance(found, Mapping):
            found = dict(found)
            labels = found.pop("labels", None)
            unknown = [str(k) for k in found if str(k) not in SPLITS]
            if unknown or "train" not in {SPLITS[str(k)] for k in found if str(k) in SPLITS}:
                raise DataError(
                    "task.data.function", given=[str(k) for k in found], expected="train, and valid or test beside it"
                )
            if len({SPLITS[str(k)] for k in found}) < len(found):
                raise DataError("task.data.function", "names one split twice", given=[str(k) for k in found])
            found = {SPLITS[str(k)]: v for k, v in found.items()}
        else:
            found = {"train": found}
        names = [str(n) for n in labels] if labels is not None else None
        return from_datasets(found, target, size, self.memory_mb, names, self.function, self.bad_rows)
