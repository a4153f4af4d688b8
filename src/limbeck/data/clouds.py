"""Clouds of points [N, P, 3]: arrays, folders of clouds and meshes by class, the user's own function, images as points.

Every source brings its clouds to one length: a cloud with more points keeps some of them, drawn by what it holds; one with
fewer gets means of neighbouring points beside its own (`limbeck.functional.points.complete_points`); of a mesh points are
drawn from its surface, by area.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.data.arrays import judge_by_valid, open_npy, open_npz, read_names, targets_of
from limbeck.data.columns import Target
from limbeck.data.items import ArrayData, Items, Part, Splits, as_path, digest
from limbeck.data.listing import File, list_all
from limbeck.data.meshes import CLOUDS, read_cloud, sample_surface
from limbeck.data.names import SPLITS, counted, plain, some, split_of
from limbeck.data.sources import Digits, Source
from limbeck.errors import DataError, LimbeckError, first_line
from limbeck.functional.points import complete_points, in_unit_sphere
from limbeck.grammar.method import Batch
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import settings
from limbeck.recipe.imports import imported

NAMES = {
    "source": {
        "cloud-arrays": "CloudArrays",
        "cloud-folder": "CloudFolder",
        "cloud-import": "CloudImported",
        "picture-clouds": "PictureClouds",
    }
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Array = np.ndarray[Any, Any]

ONE = "cloud"
"""The one class of clouds without labels."""

LEAST = 4
"""Points that every cloud must have: companions are means of so many."""

Points = Annotated[int, Ge(LEAST)]
"""So many points or more."""


@dataclass
class Clouds:
    """What a source holds before its clouds are brought to one length.

    Attributes:
        clouds: split -> arrays [P_i, 3].
        y: split -> labels, one a cloud; empty where there are none.
        names: the classes, where they are known.
        where: what an error is about.
        place: what a cloud is called, by split and number.
        notes: sentences about how they were read.
    """

    clouds: dict[str, Sequence[Array]]
    y: dict[str, Any] = field(default_factory=dict)
    names: list[str] | None = None
    where: str = "data"
    place: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@settings
class CloudSource(Source):
    """What sources of clouds share.

    Args:
        points: how many points every cloud is brought to; ``null`` keeps their own number, which must then be the same.
    """

    _: KW_ONLY
    points: Points | None = None

    def clouds(self) -> Clouds:
        """All clouds as they lie, with their labels."""
        raise TypeError(f"{type(self).__name__} must define clouds")

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The clouds of one length, float32 [N, P, 3], and their classes; without labels all are of one class."""
        found = self.clouds()
        notes = found.notes
        together = {s: [np.asarray(c) for c in clouds] for s, clouds in found.clouds.items() if len(clouds)}
        if not together:
            raise DataError(found.where, "there are no clouds", expected="at least one")
        _check(together, found)
        x = _one_length(together, self.points, found)
        if not found.y:
            notes.append("the clouds have no labels: nothing but features can be learnt from them")
            y = {s: torch.zeros(len(t), dtype=torch.int64) for s, t in x.items()}
            made = judge_by_valid({s: ArrayData(x[s], y[s]) for s in x}, [ONE], "label", notes)
            return replace(made, labelled=False)
        for split in together:
            if len(found.y[split]) != len(together[split]):
                raise DataError(
                    found.where,
                    f"{len(together[split])} clouds but {len(found.y[split])} labels in {split}",
                    expected="one label a cloud",
                )
        targets, items, labels, kind = targets_of(
            {s: found.y[s] for s in together},
            "label" if target == "auto" else target,
            found.names,
            found.where,
            "error",
            notes,
        )
        parts = {s: ArrayData(x[s][items[s]], targets[s]) for s in targets}
        return judge_by_valid(parts, labels, kind, notes, found.names is not None)


def _check(clouds: Mapping[str, Sequence[Array]], found: Clouds) -> None:
    """Refuse what is no cloud, all that are wrong at once."""
    bad: dict[str, list[str]] = {}
    for split, several in clouds.items():
        names = found.place.get(split) or [f"{split} item {i}" for i in range(len(several))]
        for name, cloud in zip(names, several, strict=True):
            if cloud.ndim != 2 or cloud.shape[1] != 3:
                turned = cloud.ndim == 2 and cloud.shape[0] == 3
                why = (
                    "have their coordinates before the points: transpose them"
                    if turned
                    else f"are no rows of x, y, z ({list(cloud.shape)})"
                )
            elif len(cloud) < LEAST:
                why = f"have fewer than {LEAST} points"
            elif cloud.dtype.kind not in "fiub":
                why = f"hold no numbers ({cloud.dtype})"
            elif not np.isfinite(cloud).all():
                why = "hold coordinates that are not finite"
            elif (cloud == cloud[0]).all():
                why = "have all of their points in one place"
            else:
                continue
            bad.setdefault(why, []).append(name)
    if bad:
        said = "; ".join(f"{counted(len(names), 'cloud')} {why}: {some(names, 5)}" for why, names in bad.items())
        raise DataError(
            found.where,
            said,
            expected=f"clouds [P, 3] of {LEAST} or more finite points",
            remedy="mend them, or leave them out",
        )


def _one_length(clouds: Mapping[str, Sequence[Array]], points: int | None, found: Clouds) -> dict[str, Tensor]:
    """All clouds as float32 [N, points, 3] by split."""
    lengths = sorted({len(c) for several in clouds.values() for c in several})
    if points is None and len(lengths) > 1:
        raise DataError(
            found.where,
            f"the clouds have {lengths[0]} to {lengths[-1]} points",
            expected="as many in each, or a number that all are brought to",
            remedy=f"set task.data.points={lengths[len(lengths) // 2]}",
        )
    size = points or lengths[0]
    made, longer, shorter = {}, 0, 0
    for split, several in clouds.items():
        x = torch.empty(len(several), size, 3)
        for i, cloud in enumerate(several):
            c = torch.from_numpy(np.ascontiguousarray(cloud, dtype=np.float32))
            if len(c) == size:
                x[i] = c
                continue
            order = Draws(0, ("points", digest(c))).permutation("order", len(c))  # the same wherever the cloud stands
            if len(c) > size:
                longer += 1
                c = c[order[:size].sort().values]
            else:
                shorter += 1
                c = complete_points(c.unsqueeze(0), size, order.unsqueeze(0))[0]
            x[i] = c
        made[split] = x
    if longer:
        found.notes.append(
            f"{counted(longer, 'cloud')} with more than {size} points: {size} of them were drawn (task.data.points)"
        )
    if shorter:
        found.notes.append(
            f"{counted(shorter, 'cloud')} with fewer than {size} points: means of neighbouring points were added (task.data.points)"
        )
    return made


class AskedClouds:
    """Clouds that somebody asks a trained network about, without labels.

    Args:
        given: files of one cloud or mesh each, folders of such, arrays [P, 3] or [N, P, 3], or a list of these.
        points: the length that each is brought to.
        normalise: move each to the origin and scale it to a radius of 1.

    Attributes:
        names: a file's, or a number.

    Raises:
        DataError: a file that is not there or cannot be read, or what is no cloud.
    """

    def __init__(self, given: Any, points: int, normalise: bool = True) -> None:
        self.names: list[str] = []
        clouds: list[Array] = []
        for one in list(given) if isinstance(given, (list, tuple)) else [given]:
            for name, cloud in _asked(one, points):
                self.names.append(name or str(len(self.names)))
                clouds.append(cloud)
        if not clouds:
            raise DataError("inputs", "there are no clouds", expected="files of clouds, folders of them, or arrays")
        found = Clouds({"inputs": clouds}, where="inputs", place={"inputs": self.names})
        _check(found.clouds, found)
        self.x = _one_length(found.clouds, points, found)["inputs"]
        self.x = in_unit_sphere(self.x) if normalise else self.x

    def __len__(self) -> int:
        return len(self.names)

    def fetch(self, items: Tensor) -> Batch:
        """The clouds as one batch."""
        return {"x": self.x[items]}


def _asked(one: Any, points: int) -> list[tuple[str, Array]]:
    """The clouds of one thing that was handed over, each with its name."""
    if not isinstance(one, (str, Path)):
        x = np.asarray(one)
        return [("", cloud) for cloud in x] if x.ndim == 3 else [("", x)]
    path = as_path(one, "inputs")
    if not path.exists():
        raise DataError(str(path), "there is no such file or folder", remedy="check the path")
    if path.is_dir():
        files = list_all(path, lambda name: name.lower().endswith(CLOUDS), "cloud").found
        return [(str(path / f.name), _cloud(f, points)) for f in files]
    if path.suffix.lower() in (".npy", ".npz"):
        x = open_npy(path) if path.suffix.lower() == ".npy" else np.zeros(0)
        if path.suffix.lower() == ".npz":
            arrays = open_npz(path)
            name = next((n for n in CloudArrays.X if n in arrays), None)
            if name is None:
                raise DataError(str(path), "holds no array points", given=sorted(arrays))
            x = arrays[name]
        return [(f"{one}#{i}", cloud) for i, cloud in enumerate(x)] if x.ndim == 3 else [(str(one), x)]
    if path.suffix.lower() not in CLOUDS:
        raise DataError(str(path), "is no cloud by its ending", expected=", ".join(CLOUDS))
    return [(str(one), _cloud(File(path.name, path), points))]


def _cloud(file: File, points: int) -> Array:
    """One file's points; of a mesh so many of its surface."""
    vertices, faces = read_cloud(file.name, file.read())
    if faces is None or not len(faces):
        return vertices
    return sample_surface(vertices, faces, points, Draws(0, ("surface", file.name)).numpy("points"))


# ------------------------------------------------------------------------------------------------------ arrays
@settings
class CloudArrays(CloudSource):
    """NumPy arrays: one ``.npz`` or ``.npy`` file of clouds [N, P, 3], or a folder with ``train.npz`` and, if there is one,
    ``test.npz``.

    An ``.npz`` file may hold all splits at once (``points_train``, ``y_train``, ``points_test``...), and class names as
    ``classes``; else these are read from ``classes.json`` or ``labels.json`` beside it. Labels may be missing.

    Args:
        path: the file or folder.
        x: name of the clouds' array; by default ``points``, ``x``, ``xyz``, ``clouds``, ``data`` or ``pos``.
        y: name of the labels' array; by default ``y``, ``labels``, ``label`` or ``targets``.
        classes: a file of class names.
    """

    paths: ClassVar[tuple[str, ...]] = ("path", "classes")

    X: ClassVar[tuple[str, ...]] = ("points", "x", "xyz", "clouds", "data", "pos")
    Y: ClassVar[tuple[str, ...]] = ("y", "labels", "label", "targets")

    path: str
    x: str | None = None
    y: str | None = None
    classes: str | None = None

    def clouds(self) -> Clouds:
        """The arrays."""
        root = as_path(self.path, "task.data.path")
        if not root.exists():
            raise DataError(str(root), "there is no such file or folder", remedy="check the path")
        found = Clouds({}, where=str(root))
        if root.is_dir():
            files = {p: s for p in sorted(root.glob("*.npz")) if (s := SPLITS.get(p.stem.lower()) or split_of(p.stem))}
            for path, split in files.items():
                self._take(open_npz(path), str(path), found, split)
            if not files:
                given = [p.name for p in sorted(root.iterdir())][:10]
                raise DataError(
                    str(root),
                    "holds no train.npz",
                    given=given,
                    remedy="for files of one cloud each use cloud-folder:PATH",
                )
        elif root.suffix.lower() == ".npy":
            self._take({"points": open_npy(root)}, str(root), found, "train")
        else:
            self._take(open_npz(root), str(root), found, "")
        if found.names is None:
            found.names = self._names(root if root.is_dir() else root.parent)
        return found

    def _take(self, arrays: dict[str, Any], where: str, found: Clouds, split: str) -> None:
        """The clouds and labels of one file."""
        inside = next((arrays[n] for n in ("classes", "class_names", "label_names") if n in arrays), None)
        if inside is not None:
            found.names = [plain(str(n)) for n in inside.tolist()]
        taken = False
        for name in ("", *SPLITS):
            x = _named(arrays, self.x, self.X, name)
            if x is None:
                continue
            place = split or SPLITS.get(name, "train")
            if place in found.clouds:
                continue
            if arrays[x].ndim != 3:
                turned = "a single cloud: give it an axis in front" if arrays[x].ndim == 2 else "no clouds"
                raise DataError(
                    where, f"the array {x} is {turned}", given=list(arrays[x].shape), expected="clouds [N, P, 3]"
                )
            if arrays[x].shape[1] == 3 != arrays[x].shape[2]:
                raise DataError(
                    where,
                    f"the coordinates of the array {x} stand before its points",
                    given=list(arrays[x].shape),
                    expected="clouds [N, P, 3]",
                    remedy="transpose it: x.transpose(0, 2, 1)",
                )
            found.clouds[place] = arrays[x]
            y = _named(arrays, self.y, self.Y, name)
            if y is not None:
                found.y[place] = arrays[y]
            elif self.y is not None:
                raise DataError(where, f"holds no array {self.y}", given=sorted(arrays))
            taken = True
        if not taken:
            raise DataError(
                where, f"holds no array {self.x or 'points'}", given=sorted(arrays), remedy="name it: task.data.x=..."
            )
        if found.y and set(found.y) != set(found.clouds):
            bare = sorted(set(found.clouds) - set(found.y))
            raise DataError(
                where, f"{some(bare)} has no labels, and other clouds have", expected="labels for all, or for none"
            )

    def _names(self, folder: Path) -> list[str] | None:
        if self.classes:
            return read_names(as_path(self.classes, "task.data.classes"))
        known = (folder / n for n in ("classes.json", "labels.json", "classes.txt", "labels.txt"))
        return next((read_names(p) for p in known if p.is_file()), None)


def _named(arrays: Mapping[str, Any], asked: str | None, usual: Sequence[str], split: str) -> str | None:
    for name in [asked] if asked else usual:
        for full in (f"{name}_{split}", f"{split}_{name}") if split else (name,):
            if full in arrays:
                return full
    return None


# ------------------------------------------------------------------------------------------------------ folders
@settings
class CloudFolder(CloudSource):
    """Files of one cloud or mesh each, in folders: one folder a class, with ``train`` and ``test`` above or below it.

    Both layouts are read: ``train/chair/a.off``, and ModelNet's ``chair/train/a.off``. Files are ``.npy``, ``.npz`` (its
    ``points``), ``.ply``, ``.off``, or tables of numbers (``.xyz``, ``.txt``, ``.pts``, ``.csv``) whose first columns are x,
    y, z. Of a mesh points are drawn from its surface, by area.

    Args:
        path: the folder.
        labels: ``false`` takes all files below the folder, whatever folders they lie in, as clouds without labels.
    """

    path: str
    labels: bool = True
    _: KW_ONLY
    points: Points | None = 1024

    def clouds(self) -> Clouds:
        """The files, each with its folder's name."""
        root = as_path(self.path, "task.data.path")
        listing = list_all(root, lambda name: name.lower().endswith(CLOUDS), "cloud")
        if not listing.found:
            raise DataError(str(root), "there are no clouds", expected=f"files {', '.join(CLOUDS)}")
        found = Clouds({}, where=str(root), notes=listing.notes())
        clouds: dict[str, list[Array]] = {}
        bad: list[str] = []
        stray: list[str] = []
        for file in listing.found:
            parts = file.name.split("/")[:-1]
            split = next((SPLITS[p.lower()] for p in parts if p.lower() in SPLITS), "train")
            above = [p for p in parts if p.lower() not in SPLITS]
            if self.labels and not above:
                stray.append(file.name)
                continue
            try:
                cloud = _cloud(file, self.points or 1024)
            except (OSError, ValueError, LimbeckError) as error:
                bad.append(f"{file.name} ({first_line(error)})")
                continue
            clouds.setdefault(split, []).append(cloud)
            found.place.setdefault(split, []).append(file.name)
            if self.labels:
                found.y.setdefault(split, []).append(plain(above[0]))
        if stray:
            raise DataError(
                str(root),
                f"{counted(len(stray), 'cloud')} outside any class folder: {some(stray, 5)}",
                expected="one folder a class",
                remedy="set task.data.labels=false to learn from clouds without labels",
            )
        if bad:
            raise DataError(
                str(root),
                f"{counted(len(bad), 'file')} that cannot be read: {some(bad, 5)}",
                remedy="mend or remove them",
            )
        found.clouds = dict(clouds)
        return found


@settings
class CloudImported(CloudSource):
    """What the user's own function returns. Naming it runs its code.

    The function returns clouds: an array or tensor [N, P, 3], or a list of arrays [P_i, 3]; a pair (clouds, labels); or a
    mapping with ``train`` and, if there are such, ``valid`` and ``test``, each of these; it may hold ``classes``, the names.

    Args:
        function: ``package.module:function``.
        options: its arguments.
    """

    code: ClassVar[str] = "function"
    paths: ClassVar[tuple[str, ...]] = ()

    function: str
    options: dict[str, Any] | None = None

    def clouds(self) -> Clouds:
        """What the function returns."""
        made = imported(self.function, "task.data.function")
        try:
            given = made(**(self.options or {}))
        except LimbeckError:
            raise
        except Exception as error:
            raise DataError(
                "task.data.function", f"{self.function} failed: {type(error).__name__}: {first_line(error)}"
            ) from error
        found = Clouds({}, where=self.function)
        if isinstance(given, Mapping):
            given = dict(given)
            names = given.pop("classes", None)
            found.names = None if names is None else [str(n) for n in names]
            if "train" not in given or not set(given) <= set(SPLITS):
                raise DataError(
                    "task.data.function", given=sorted(map(str, given)), expected="train, and valid or test beside it"
                )
        else:
            given = {"train": given}
        for name, part in given.items():
            split, y = SPLITS[name], None
            if isinstance(part, tuple) and len(part) == 2:
                part, y = part
            found.clouds[split] = [np.asarray(c) for c in part]
            if y is not None:
                found.y[split] = np.asarray(y)
        if found.y and set(found.y) != set(found.clouds):
            raise DataError(
                "task.data.function", "some splits have labels, and others have none", expected="all, or none"
            )
        return found


@settings
class PictureClouds(CloudSource):
    """Images as flat clouds: points drawn from bright places, z = 0. A stand-in where no scanned objects are at hand.

    A pixel is drawn as often as it is bright, and the point lies somewhere within it. Without settings they are the digits
    that come with scikit-learn.

    Args:
        of: the images, as any source of them.
        points: of each cloud.
    """

    of: Source = Digits()
    _: KW_ONLY
    points: Points | None = 96

    def validate(self) -> None:
        """There is no number that images would keep."""
        if self.points is None:
            raise ValueError("points must be a number: images have none of their own")

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The images' splits and classes, their pixels as clouds."""
        splits = self.of.read(target, size)
        if len(splits.train.shape) != 3:
            raise DataError(
                "task.data.of", "its items are no images", given=list(splits.train.shape), expected="pictures"
            )
        parts = {"train": splits.train, "valid": splits.valid, "test": splits.test}
        whole: dict[int, ArrayData] = {}
        made: dict[str, Items | None] = {}
        for name, items in parts.items():
            if items is None:
                made[name] = None
                continue
            base = items.data if isinstance(items, Part) else items
            if id(base) not in whole:
                whole[id(base)] = ArrayData(_drawn(base, self.points or 0), base.y)
            data = whole[id(base)]
            made[name] = Part(data, items.ids) if isinstance(items, Part) else data
        assert made["train"] is not None
        notes = [*splits.notes, f"images as flat clouds of {self.points} points (picture-clouds)"]
        return Splits(made["train"], made["valid"], made["test"], splits.labels, splits.kind, notes, splits.declared)


def _drawn(items: Items, points: int) -> Tensor:
    """Clouds [N, points, 3] of images."""
    draws, found = Draws(0, ("picture-clouds",)), []
    for ids in torch.arange(len(items)).split(256):
        x = items.fetch(ids)["x"].mean(1)  # [n, h, w]
        high, wide = x.shape[1:]
        total = x.flatten(1).double().clamp_min(0).cumsum(1)
        if bool((total[:, -1] == 0).any()):
            raise DataError(
                "task.data.of", "holds images that are all black", given=ids[total[:, -1] == 0].tolist()[:5]
            )
        u = draws.rand("pixel", ids, (points,)).double() * total[:, -1:]
        at = torch.searchsorted(total, u, right=True).clamp_max(high * wide - 1)
        within = draws.rand("within", ids, (points, 2))
        across, down = (at % wide).float() + within[..., 0], (at // wide).float() + within[..., 1]
        side = max(high, wide) / 2
        found.append(torch.stack([(across - wide / 2) / side, (high / 2 - down) / side, torch.zeros_like(across)], -1))
    return torch.cat(found)


__all__ = ["AskedClouds", "CloudArrays", "CloudFolder", "CloudImported", "CloudSource", "Clouds", "PictureClouds"]
