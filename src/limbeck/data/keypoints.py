"""Images with keypoints: what a part's joints are, poses of any number of instances, and sets of one pose an image."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.arrays import as_inputs, judge_by_valid, open_npz
from limbeck.data.boxes import Boxed, letterboxed
from limbeck.data.items import Items, Splits, as_path, digest, to_unit
from limbeck.data.masks import parted
from limbeck.data.names import counted, some, split_of
from limbeck.data.pictures import Unreadable, decode
from limbeck.data.sources import Source
from limbeck.errors import DataError
from limbeck.grammar.method import Batch
from limbeck.grammar.settings import settings
from limbeck.storage.plain import read_json

NAMES = {
    "source": {"keypoints": "KeypointSet"},
    "source for keypoints": {"csv": "KeypointSet", "jsonl": "KeypointSet"},
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Range = str | int


@dataclass(frozen=True)
class Skeleton:
    """A part's joints.

    Attributes:
        joints: their names.
        edges: pairs of joints that are drawn as lines.
        flip: the joint that each becomes in a mirrored image; empty where that is not known.
        pair: two joints whose distance errors are measured in (outer corners of the eyes), or ``None``: the pose's box.
    """

    joints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    flip: tuple[int, ...] = ()
    pair: tuple[int, int] | None = None

    def part(self, ids: Sequence[int]) -> Skeleton:
        """Some of its joints, with the edges, mirror images and pair among them."""
        place = {j: i for i, j in enumerate(ids)}
        flip = tuple(place[self.flip[j]] for j in ids) if self.flip and {self.flip[j] for j in ids} == set(ids) else ()
        pair = (place[self.pair[0]], place[self.pair[1]]) if self.pair and set(self.pair) <= set(ids) else None
        edges = tuple((place[a], place[b]) for a, b in self.edges if a in place and b in place)
        return Skeleton(tuple(self.joints[j] for j in ids), edges, flip, pair)


def _chain(*runs: tuple[int, int], closed: Sequence[tuple[int, int]] = ()) -> tuple[tuple[int, int], ...]:
    """Edges along runs of joints (first, last), and around closed ones."""
    edges = [(i, i + 1) for a, b in (*runs, *closed) for i in range(a, b)]
    return tuple(edges + [(b, a) for a, b in closed])


_FACE_FLIP = (
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41,
    40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
)  # fmt: skip
FACE68 = Skeleton(
    tuple(f"face {i}" for i in range(68)),
    _chain((0, 16), (17, 21), (22, 26), (27, 30), (31, 35), closed=((36, 41), (42, 47), (48, 59), (60, 67))),
    _FACE_FLIP,
    (36, 45),
)
"""The 68 landmarks of iBUG and 300-W: jaw, brows, nose, eyes, mouth; measured by the outer corners of the eyes."""

_COCO = "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist "
_COCO += "left_hip right_hip left_knee right_knee left_ankle right_ankle"
COCO17 = Skeleton(
    tuple(_COCO.split()),
    ((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10), (0, 1),
     (0, 2), (1, 3), (2, 4)),
    (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
)  # fmt: skip
"""COCO's persons."""

_FINGERS = ("thumb", "index", "middle", "ring", "little")
HAND21 = Skeleton(
    ("wrist", *(f"{f} {i}" for f in _FINGERS for i in range(4))),
    tuple(e for f in range(5) for e in ((0, 4 * f + 1), *((4 * f + i, 4 * f + i + 1) for i in (1, 2, 3)))),
    tuple(range(21)),
)
"""The wrist, and four joints of each finger from its root; the mirror image of a left hand is a right hand."""

_SIDES = [f"{s} {j}" for j in ("ankle", "knee", "hip", "wrist", "elbow", "shoulder") for s in ("right", "left")]
BODY13 = Skeleton(
    (*_SIDES, "head"),
    ((0, 2), (2, 4), (1, 3), (3, 5), (6, 8), (8, 10), (7, 9), (9, 11), (4, 5), (10, 11), (4, 10), (5, 11), (10, 12), (11, 12)),
    (1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12),
)  # fmt: skip
"""DOPE's body: its wrists are joints 6 (right) and 7 (left), its head is joint 12."""

LAYOUTS = {"face68": FACE68, "coco17": COCO17, "hand21": HAND21, "body13": BODY13}
"""Layouts that are known by name, or by their number of points."""


@dataclass
class Posed:
    """One image and the poses on it.

    Attributes:
        x: [C, H, W], bytes, or floats in [0, 1].
        poses: part -> float32 [m, J, 5]: x, y in its pixels, then X, Y, Z about the root; 0 where nothing is known.
        known: part -> bool [m, J, 2]: whether a joint's place in the image, and in space, is labelled.
        labelled: the parts whose instances on this image were annotated, all of them.
        boxes: part -> float32 [m, 4], boxes of the annotators; where a part has none they are those of the poses.
    """

    x: Tensor
    poses: dict[str, Tensor]
    known: dict[str, Tensor]
    labelled: frozenset[str]
    boxes: dict[str, Tensor] = field(default_factory=dict)


class PoseItems:
    """Images with poses by part, padded to as many instances as the fullest image has.

    Args:
        found: the images, of one size.
        parts: name -> joints.
        links: how instances of parts belong together, see `limbeck.tasks.poses.Links`.

    Attributes:
        y: float32 [N, P], which parts are labelled.
        most: instances of each part on the fullest image.
    """

    def __init__(
        self, found: Sequence[Posed], parts: Mapping[str, Skeleton], links: Mapping[str, Any] | None = None
    ) -> None:
        self.found, self.parts, self.links = list(found), dict(parts), dict(links or {})
        names = list(parts)
        self.y = torch.tensor([[float(n in one.labelled) for n in names] for one in found]).reshape(-1, len(names))
        self.shape = tuple(found[0].x.shape) if found else ()
        self.most = {n: max((len(one.poses[n]) for one in found), default=0) for n in names}
        told = repr([(n, s.joints) for n, s in self.parts.items()])
        self.fingerprint = digest(
            told, self.y, *(digest(one.x, *(t for n in names for t in (one.poses[n], one.known[n]))) for one in found)
        )

    def __len__(self) -> int:
        return len(self.found)

    def fetch(self, items: Tensor) -> Batch:
        """``x`` float32 [n, C, H, W]; ``labelled`` bool [n, P]; of each part P ``pose:P`` [n, M, J, 5], ``known:P`` bool
        [n, M, J, 2], ``where:P`` bool [n, M] and ``box:P`` [n, M, 4].
        """
        some_ = [self.found[i] for i in items.tolist()]
        n = len(some_)
        batch: Batch = {"x": to_unit(torch.stack([one.x for one in some_])), "labelled": self.y[items] > 0}
        for name, skeleton in self.parts.items():
            m, j = max(1, self.most[name]), len(skeleton.joints)
            pose, known = torch.zeros(n, m, j, 5), torch.zeros(n, m, j, 2, dtype=torch.bool)
            where, box = torch.zeros(n, m, dtype=torch.bool), torch.zeros(n, m, 4)
            for i, one in enumerate(some_):
                k = len(one.poses[name])
                pose[i, :k], known[i, :k], where[i, :k] = one.poses[name], one.known[name], True
                if name in one.boxes:
                    box[i, :k] = one.boxes[name]
            batch |= {f"pose:{name}": pose, f"known:{name}": known, f"where:{name}": where, f"box:{name}": box}
        return batch


class KeypointSource(Source):
    """Base of sources whose items are images with poses."""

    def poses(self, size: int | None = None) -> Splits:
        """The data, whose items are `PoseItems`; ``size``: side of the square that images are brought to, poses with them.

        Raises:
            DataError: nothing there, or something that cannot be read, named.
        """
        raise TypeError(f"{type(self).__name__} must define poses")

    def read(self, target: Any = "auto", size: int | None = None) -> Splits:
        """As `poses`; there is no one target an item."""
        if target != "auto":
            raise DataError("task.data", "its items have keypoints", remedy="set task=keypoints or task=poses")
        return self.poses(size)


def in_square(one: Posed, size: int | None) -> Posed:
    """A image scaled so that it fits into a square (`letterboxed`), its poses and boxes with it."""
    corner = Boxed(one.x, torch.tensor([[0.0, 0, 1, 1]]), torch.zeros(1, dtype=torch.long))
    made = letterboxed(corner, size)
    factor = made.boxes[0, 2:]  # where the corner of the first pixel has gone says how much the image has grown
    if bool((factor == 1).all()):
        return Posed(made.x, one.poses, one.known, one.labelled, one.boxes)
    poses = {n: torch.cat([p[..., :2] * factor, p[..., 2:]], -1) for n, p in one.poses.items()}
    boxes = {n: b * factor.repeat(2) for n, b in one.boxes.items()}
    return Posed(made.x, poses, one.known, one.labelled, boxes)


def pose_splits(
    found: Sequence[Posed], split: Sequence[str], parts: Mapping[str, Skeleton], notes: list[str], **links: Any
) -> Splits:
    """Images in their splits.

    Raises:
        DataError: images of several sizes, no image, or a part that no training image is labelled for.
    """
    sizes = {tuple(one.x.shape) for one in found}
    if len(sizes) != 1:
        raise DataError(
            "task.data",
            f"its images have {len(sizes)} sizes" if sizes else "there are no annotated images",
            given=some([str(list(s)) for s in sorted(sizes)], 4) or None,
            expected="one size",
            remedy="bring them to one: task.size=N" if sizes else "",
        )
    items = PoseItems(found, parts, links)
    made = judge_by_valid(parted(items, np.asarray(split, dtype=object)), list(parts), "number", notes)
    lacking = [n for n, y in zip(parts, made.train.y.sum(0).tolist(), strict=True) if not y]
    if lacking:
        raise DataError(
            "task.data", f"no training image is labelled for {some(lacking)}", expected="labels of every part"
        )
    for i, name in enumerate(parts):
        share = int(made.train.y[:, i].sum())
        if share < len(made.train):
            notes.append(f"{name}: labelled on {share} of {len(made.train)} training images")
    return made


def ids_of(ranges: Sequence[Range], count: int, where: str) -> list[int]:
    """Numbers and ranges (``"36-47"``) as numbers of joints.

    Raises:
        DataError: one is none, or lies outside.

    Example:
        >>> ids_of(["2-4", 7], 8, "parts")
        [2, 3, 4, 7]
    """
    found: list[int] = []
    for one in ranges:
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(one))
        if match is None:
            raise DataError(where, given=one, expected='numbers of joints and ranges such as "36-47"')
        low = int(match[1])
        found += range(low, int(match[2] or low) + 1)
    if not found or len(set(found)) < len(found) or max(found) >= count:
        raise DataError(where, given=list(ranges), expected=f"joints of 0 to {count - 1}, each once")
    return found


def split_parts(
    pose: Tensor, known: Tensor, skeleton: Skeleton, parts: Mapping[str, Sequence[Range]]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Skeleton]]:
    """Poses [N, K, 5] and what is known of them [N, K, 2] by part, and the joints of each."""
    of = {n: ids_of(r, len(skeleton.joints), f"task.data.parts.{n}") for n, r in parts.items()}
    of = of or {"all": list(range(len(skeleton.joints)))}
    return (
        {n: pose[:, i] for n, i in of.items()},
        {n: known[:, i] for n, i in of.items()},
        {n: skeleton.part(i) for n, i in of.items()},
    )


@dataclass
class _Read:
    """One split of a set of single poses: images [C, H, W] each, points [N, K, 2 or 3], in space [N, K, 3], labelled parts."""

    x: Sequence[Tensor]
    points: np.ndarray[Any, Any]
    space: np.ndarray[Any, Any] | None = None
    labelled: np.ndarray[Any, Any] | None = None
    parts: list[str] | None = None


@settings
class KeypointSet(KeypointSource):
    """One pose a picture: arrays, a table of points beside a folder of images, or a JSON list.

    - ``train.npz`` (``valid.npz``, ``test.npz``) of a folder, or one ``.npz``: ``x`` [N, H, W] or [N, H, W, C],
      ``keypoints`` [N, K, 2] in pixels or [N, K, 3] with a third number that is 0 where a point is not labelled; perhaps
      ``keypoints3d`` [N, K, 3] about the root, and ``labelled`` [N, P] (with ``parts``, their names): which parts' labels
      of an image are to be trusted, also where they say that nothing is there. Points that are NaN are not labelled.
    - a ``.csv``: the file of an image in the first column, then x and y of each point; empty where it is not labelled.
    - a ``.json`` list, or ``.jsonl`` lines, of ``{"image": FILE, "keypoints": [[x, y], ...], "keypoints3d": [[X, Y, Z], ...]}``.

    Args:
        path: the folder or file. A folder may also hold ``train.csv`` or ``train.json``.
        images: the folder of images that tables and lists name; by default where they lie.
        layout: ``face68``, ``coco17``, ``hand21`` or ``body13``: names, lines and mirror images of the points; by default
            the one with so many points, if there is one.
        parts: name -> joints, by numbers and ranges (``eyes: ["36-47"]``); one part ``all`` where it is empty.
        edges: pairs of points that are drawn as lines, in place of the layout's.
        flip: the point that each becomes in a mirrored image, in place of the layout's.
        pair: two points whose distance errors are measured in, in place of the layout's; else it is the pose's box.
    """

    paths = ("path", "images")

    path: str
    images: str | None = None
    layout: str | None = None
    parts: dict[str, list[str | int]] = {}  # noqa: RUF012 (copied by settings)
    edges: list[list[int]] | None = None
    flip: list[int] | None = None
    pair: list[int] | None = None

    def validate(self) -> None:
        """A layout is one of those that are known."""
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, or null")

    def poses(self, size: int | None = None) -> Splits:
        """The images with their poses, by part."""
        root = as_path(self.path, "task.data.path")
        files = (
            [root]
            if root.is_file()
            else sorted(f for t in ("npz", "csv", "json", "jsonl") for f in root.glob(f"*.{t}"))
        )
        files = [f for f in files if f.suffix != ".json" or (f.is_file() and isinstance(self._json(f), list))]
        if not files:
            raise DataError(
                "task.data.path", given=self.path, expected="train.npz, a .csv, .json or .jsonl of keypoints"
            )
        read = {f: self._read(f, size) for f in files}
        counts = {r.points.shape[1] for r in read.values()}
        if len(counts) > 1:
            raise DataError(
                "task.data.path", f"its files have {sorted(counts)} points", expected="one number of points"
            )
        skeleton, notes = self._skeleton(counts.pop())
        found: list[Posed] = []
        split: list[str] = []
        parts: dict[str, Skeleton] = {}
        outside = total = 0
        for file, one in read.items():
            pose, known = self._pose(file, one)
            poses, knows, parts = split_parts(pose, known, skeleton, self.parts)
            told = self._labelled(file, one, list(parts), knows)
            for i, x in enumerate(one.x):
                if not bool(torch.isfinite(x.float()).all()):
                    raise DataError(str(file), f"image {i} holds NaN or infinity", expected="finite values")
                here = frozenset(n for p, n in enumerate(parts) if told[i, p])
                kept = {n: bool(knows[n][i].any()) and n in here for n in parts}
                at = pose[i, known[i, :, 0], :2]
                over = ((at < -1) | (at > torch.tensor([x.shape[-1] + 1, x.shape[-2] + 1]))).any(-1)
                outside, total = outside + int(over.sum()), total + len(at)
                found.append(
                    in_square(
                        Posed(
                            x,
                            {n: poses[n][i : i + 1] if kept[n] else poses[n][:0] for n in parts},
                            {n: knows[n][i : i + 1] if kept[n] else knows[n][:0] for n in parts},
                            here,
                        ),
                        size,
                    )
                )
                split.append(split_of(file.stem) or "train")
        if outside:
            share = f"{outside} of {total} points lie outside of their images"
            if outside > 0.2 * total:
                raise DataError(
                    "task.data.path", share, expected="points in the pixels of the image", remedy="check their scale"
                )
            notes.append(share)
        return pose_splits(found, split, parts, notes)

    def _skeleton(self, count: int) -> tuple[Skeleton, list[str]]:
        name = self.layout or next((n for n, s in LAYOUTS.items() if len(s.joints) == count), None)
        base, notes = Skeleton(tuple(f"point {i}" for i in range(count))), []
        if name is not None:
            base = LAYOUTS[name]
            if len(base.joints) != count:
                raise DataError(
                    "task.data.layout", given=f"{name}, {len(base.joints)} points", expected=f"{count} points"
                )
            if self.layout is None:
                notes.append(f"{count} points: taken as the layout {name} (task.data.layout)")
        edges, flip = base.edges, base.flip
        if self.edges is not None:
            bad = [e for e in self.edges if len(e) != 2 or not all(0 <= j < count for j in e)]
            if bad:
                raise DataError("task.data.edges", given=bad[0], expected=f"pairs of points of 0 to {count - 1}")
            edges = tuple((e[0], e[1]) for e in self.edges)
        if self.flip is not None:
            ids = list(self.flip)
            if sorted(ids) != list(range(count)) or any(ids[ids[i]] != i for i in range(count)):
                raise DataError(
                    "task.data.flip", given=ids, expected=f"{count} numbers, each the mirror image of the other"
                )
            flip = tuple(ids)
        pair = base.pair
        if self.pair is not None:
            if len(self.pair) != 2 or not all(0 <= j < count for j in self.pair) or self.pair[0] == self.pair[1]:
                raise DataError("task.data.pair", given=list(self.pair), expected=f"two points of 0 to {count - 1}")
            pair = (self.pair[0], self.pair[1])
        return Skeleton(base.joints, edges, flip, pair), notes

    def _read(self, file: Path, size: int | None) -> _Read:
        if file.suffix == ".npz":
            arrays = open_npz(file)
            if not {"x", "keypoints"} <= set(arrays):
                raise DataError(str(file), f"holds {some(sorted(arrays))}", expected="arrays x and keypoints")
            x = as_inputs(arrays["x"], f"{file} x", usual="last")
            names = [str(n) for n in arrays["parts"]] if "parts" in arrays else None
            one = _Read(list(x), arrays["keypoints"], arrays.get("keypoints3d"), arrays.get("labelled"), names)
        else:
            one = self._listed(file, size)
        n, points = len(one.x), one.points
        if points.ndim != 3 or len(points) != n or points.shape[2] not in (2, 3) or points.dtype.kind not in "iuf":
            raise DataError(
                f"{file} keypoints", given=f"{points.dtype} {list(points.shape)}", expected=f"numbers [{n}, K, 2 or 3]"
            )
        if one.space is not None and one.space.shape != (*points.shape[:2], 3):
            raise DataError(f"{file} keypoints3d", given=list(one.space.shape), expected=str([*points.shape[:2], 3]))
        return one

    def _listed(self, file: Path, size: int | None) -> _Read:
        folder = as_path(self.images, "task.data.images") if self.images else file.parent
        rows: list[tuple[str, Any, Any]] = []
        if file.suffix == ".csv":
            with file.open(newline="", encoding="utf-8-sig") as stream:
                table = list(csv.reader(stream))
            width = len(table[0]) if table else 0
            for number, row in enumerate(table, 1):
                if len(row) != width or width < 3 or width % 2 == 0:
                    raise DataError(
                        f"{file}:{number}", given=f"{len(row)} cells", expected="a image, then x and y of every point"
                    )
                try:
                    values = [float(c) if c.strip() else float("nan") for c in row[1:]]
                except ValueError:
                    if number == 1:
                        continue  # the header
                    raise DataError(f"{file}:{number}", given=row[1:5], expected="numbers, or empty cells") from None
                rows.append((row[0], np.asarray(values, dtype=np.float32).reshape(-1, 2), None))
        else:
            for number, entry in enumerate(self._json(file)):
                if not isinstance(entry, Mapping) or not {"image", "keypoints"} <= set(entry):
                    raise DataError(
                        f"{file}[{number}]", given=entry, expected='{"image": FILE, "keypoints": [[x, y], ...]}'
                    )
                try:
                    at = np.asarray(
                        [[float("nan")] * 2 if p is None else p for p in entry["keypoints"]], dtype=np.float32
                    )
                    deep = entry.get("keypoints3d")
                    space = None if deep is None else np.asarray(deep, dtype=np.float32)
                except (TypeError, ValueError):
                    raise DataError(f"{file}[{number}]", "its keypoints are no rows of numbers") from None
                rows.append((str(entry["image"]), at, space))
        if not rows:
            raise DataError(str(file), "names no image")
        shapes = {r[1].shape for r in rows}
        if len(shapes) > 1:
            raise DataError(str(file), f"its poses have the shapes {some([str(list(s)) for s in sorted(shapes)])}")
        pictures, bad = [], []
        for name, _, _ in rows:
            try:
                pictures.append(decode((folder / name).read_bytes(), size=size))
            except (Unreadable, OSError) as error:
                bad.append(f"{name}: {getattr(error, 'strerror', None) or error}")
        if bad:
            raise DataError(
                str(file),
                f"{counted(len(bad), 'image')} cannot be used: {some(bad, 5)}",
                remedy="name their folder: task.data.images",
            )
        points = np.stack([r[1] for r in rows])
        spaces = [np.full((*points.shape[1:2], 3), np.nan, np.float32) if s is None else s for _, _, s in rows]
        return _Read(pictures, points, np.stack(spaces) if any(r[2] is not None for r in rows) else None)

    def _json(self, file: Path) -> Any:
        try:
            if file.suffix == ".jsonl":
                return [json.loads(line) for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            return read_json(file)
        except (OSError, ValueError) as error:
            raise DataError(str(file), f"cannot be read: {error}") from None

    def _pose(self, file: Path, one: _Read) -> tuple[Tensor, Tensor]:
        """[N, K, 5], and what is known [N, K, 2]."""
        points = torch.as_tensor(one.points.astype(np.float32))
        flat = points[..., :2].isfinite().all(-1)
        if points.shape[-1] == 3:
            flat &= points[..., 2] > 0
        space = (
            torch.zeros(*points.shape[:2], 3) if one.space is None else torch.as_tensor(one.space.astype(np.float32))
        )
        deep = space.isfinite().all(-1) if one.space is not None else torch.zeros_like(flat)
        inner = points[..., :2][flat]
        if len(inner) > 8 and float(inner.abs().max()) <= 2.0:
            raise DataError(
                f"{file} keypoints",
                f"lie between {float(inner.min()):.3g} and {float(inner.max()):.3g}",
                expected="pixels of the image",
                remedy="multiply shares of the image by its width and height",
            )
        pose = torch.cat([points[..., :2].where(flat[..., None], 0.0), space.where(deep[..., None], 0.0)], -1)
        return pose, torch.stack([flat, deep], -1)

    def _labelled(self, file: Path, one: _Read, parts: list[str], knows: Mapping[str, Tensor]) -> Tensor:
        """Which parts each image is labelled for, bool [N, P]: told, or those of which a point is known."""
        if one.labelled is None:
            return torch.stack([knows[n].flatten(1).any(1) for n in parts], 1)
        told = torch.as_tensor(np.asarray(one.labelled) != 0)
        names = one.parts or parts
        lacking = [n for n in parts if n not in names]
        if told.shape != (len(one.x), len(names)) or lacking:
            raise DataError(
                f"{file} labelled",
                given=f"{list(told.shape)} for {some(names)}",
                expected=f"[{len(one.x)}, P], a column for each of {some(parts)}",
                remedy=f"name {some(lacking)} in the array parts too" if lacking else "",
            )
        return told[:, [names.index(n) for n in parts]]


__all__ = [
    "BODY13", "COCO17", "FACE68", "HAND21", "LAYOUTS", "Items", "KeypointSet", "KeypointSource", "PoseItems", "Posed",
    "Skeleton", "ids_of", "in_square", "pose_splits", "split_parts",
]  # fmt: skip
