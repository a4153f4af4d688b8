"""Images with boxes: COCO's JSON, YOLO's text files, VOC's XML, and scenes composed of objects over photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import interpolate

from limbeck.data.arrays import judge_by_valid
from limbeck.data.columns import Target
from limbeck.data.items import Items, Part, Splits, as_path, digest, to_unit
from limbeck.data.masks import parted, read_classes
from limbeck.data.names import counted, some, split_of
from limbeck.data.pictures import Unreadable, decode, list_pictures
from limbeck.data.sources import Digits, Source
from limbeck.errors import DataError
from limbeck.grammar.method import Batch
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, settings
from limbeck.storage.plain import read_json

NAMES = {
    "source": {
        "coco-boxes": "CocoBoxes",
        "yolo": "Yolo",
        "voc": "Voc",
        "objects-on-photos": "ObjectsOnPhotos",
    }
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

OnOutside = Literal["error", "clip"]


@dataclass
class Boxed:
    """One image and what is on it.

    Attributes:
        x: [C, H, W], bytes, or floats in [0, 1].
        boxes: float32 [m, 4] (left, top, right, bottom) in its pixels.
        labels: int64 [m].
        masks: bool [m, H, W], or ``None`` where the data have none.
    """

    x: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None


class BoxItems:
    """Images with boxes, padded to as many as the fullest image has.

    Args:
        found: the images, of one size.
        classes: how many classes.

    Attributes:
        y: which classes each item has, float32 [N, C].
        most: boxes of the fullest image.
    """

    def __init__(self, found: Sequence[Boxed], classes: int) -> None:
        self.found, self.classes = list(found), classes
        self.y = torch.zeros(len(found), classes)
        for i, one in enumerate(found):
            self.y[i, one.labels.unique()] = 1.0
        self.shape = tuple(found[0].x.shape) if found else ()
        self.most = max((len(one.boxes) for one in found), default=0)
        self.masked = bool(found) and all(one.masks is not None for one in found)
        parts = [(one.x, one.boxes, one.labels, *([] if one.masks is None else [one.masks])) for one in found]
        self.fingerprint = digest(*(digest(*p) for p in parts))

    def __len__(self) -> int:
        return len(self.found)

    def fetch(self, items: Tensor) -> Batch:
        """``x`` float32 [n, C, H, W]; ``boxes`` [n, M, 4], ``labels`` int64 [n, M], ``where`` bool [n, M]; ``masks``."""
        some_ = [self.found[i] for i in items.tolist()]
        n, m = len(some_), max(1, self.most)
        batch: Batch = {
            "x": to_unit(torch.stack([one.x for one in some_])),
            "boxes": torch.zeros(n, m, 4),
            "labels": torch.zeros(n, m, dtype=torch.long),
            "where": torch.zeros(n, m, dtype=torch.bool),
        }
        if self.masked:
            batch["masks"] = torch.zeros(n, m, *self.shape[1:], dtype=torch.bool)
        for i, one in enumerate(some_):
            k = len(one.boxes)
            batch["boxes"][i, :k], batch["labels"][i, :k], batch["where"][i, :k] = one.boxes, one.labels, True
            if self.masked and one.masks is not None:
                batch["masks"][i, :k] = one.masks
        return batch


class BoxSource(Source):
    """Base of sources whose items are images with boxes."""

    def boxes(self, size: int | None = None) -> Splits:
        """The data; ``size``: the side of the square that images are brought to, boxes with them.

        Raises:
            DataError: nothing there, or something that cannot be read, named.
        """
        raise TypeError(f"{type(self).__name__} must define boxes")

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """As `boxes`; there is no one target an item."""
        if target != "auto":
            raise DataError("task.data", "its items have boxes", remedy="set task=boxes")
        return self.boxes(size)


def letterboxed(one: Boxed, size: int | None) -> Boxed:
    """A image scaled so that it fits into a square, the rest of which is black at its right or lower end."""
    high, wide = one.x.shape[-2:]
    if size is None or (high, wide) == (size, size):
        return one
    scale = size / max(high, wide)
    new = max(1, round(high * scale)), max(1, round(wide * scale))

    def placed(t: Tensor, mode: str) -> Tensor:
        given: dict[str, Any] = {"align_corners": False, "antialias": True} if mode == "bilinear" else {}
        t = interpolate(t[None], new, mode=mode, **given)[0] if new != (high, wide) else t
        whole = t.new_zeros(len(t), size, size)
        whole[:, : new[0], : new[1]] = t
        return whole

    factor = torch.tensor([new[1] / wide, new[0] / high] * 2)
    masks = one.masks
    if masks is not None:
        masks = placed(masks.float(), "nearest-exact").bool() if len(masks) else masks.new_zeros(0, size, size)
    return Boxed(placed(one.x, "bilinear"), one.boxes * factor, one.labels, masks)


@dataclass
class Listed:
    """What annotations say of one image, before it is read: boxes [m, 4] in its pixels, or in shares of it."""

    name: str
    path: Path
    split: str
    boxes: Tensor
    labels: Tensor
    shares: bool = False
    masks: Callable[[int, int], Tensor] | None = None


def assembled(
    listed: Sequence[Listed], labels: Sequence[str], size: int | None, outside: OnOutside, notes: list[str]
) -> Splits:
    """Images read and checked, in their splits.

    Raises:
        DataError: images that cannot be read, are of several sizes, or boxes that lie outside of them, all named.
    """
    if not listed:
        raise DataError("task.data", "there are no annotated images")
    found: list[Boxed] = []
    bad, out, total, worst = [], 0, 0, ""
    for one in listed:
        try:
            x = decode(one.path.read_bytes(), size=size)
        except (Unreadable, OSError) as error:
            bad.append(f"{one.name}: {error}")
            continue
        high, wide = x.shape[-2:]
        boxes = one.boxes.clone()
        if one.shares:
            boxes *= torch.tensor([wide, high, wide, high])
        over = (boxes[:, :2] < -1).any(1) | (boxes[:, 2] > wide + 1) | (boxes[:, 3] > high + 1)
        out, total = out + int(over.sum()), total + len(boxes)
        if bool(over.any()) and not worst:
            worst = f"{one.name} ({wide}x{high}) has {[round(v, 1) for v in boxes[over][0].tolist()]}"
        for k in range(4):
            boxes[:, k].clamp_(0, (wide, high)[k % 2])
        thin = ((boxes[:, 2:] - boxes[:, :2]) < 1e-3).any(1)
        try:
            masks = one.masks(high, wide)[~thin] if one.masks is not None else None
        except ValueError as error:
            bad.append(f"{one.name} ({error})")
            continue
        found.append(letterboxed(Boxed(x, boxes[~thin], one.labels[~thin], masks), size))
        if bool(thin.any()):
            notes.append(f"{one.name}: {counted(int(thin.sum()), 'box')} without extent left out")
    if bad:
        raise DataError("task.data", f"{counted(len(bad), 'image')} cannot be used: {some(bad, 5)}")
    if out and outside == "error":
        raise DataError(
            "task.data",
            f"{100 * out / max(1, total):.1f} % of the boxes ({out} of {total}) lie outside of their pictures: {worst}",
            expected="boxes in the pixels of the image that they belong to",
            remedy="check their scale and order, or cut them with task.data.outside=clip",
        )
    sizes = {tuple(one.x.shape) for one in found}
    if len(sizes) > 1:
        raise DataError(
            "task.data",
            f"its images have {len(sizes)} sizes",
            given=some([str(list(s)) for s in sorted(sizes)], 4),
            expected="one size",
            remedy="bring them to one: task.size=N",
        )
    items = BoxItems(found, len(labels))
    split = np.asarray([one.split for one in listed], dtype=object)
    return judge_by_valid(parted(items, split), list(labels), "labels", notes)


def file_by_name(root: Path) -> dict[str, Path]:
    return {Path(f.name).name: Path(f.path) for f in list_pictures(root).found}


# ------------------------------------------------------------------------------------------------------------------ COCO
def polygons(segmentation: Any) -> Callable[[int, int], Tensor]:
    """What draws a list of COCO's polygons as a mask [H, W] (height, width)."""

    def draw(high: int, wide: int) -> Tensor:
        from PIL import Image, ImageDraw

        image = Image.new("L", (wide, high))
        pen = ImageDraw.Draw(image)
        for ring in segmentation:
            if len(ring) >= 6:
                pen.polygon([(float(a), float(b)) for a, b in zip(ring[::2], ring[1::2], strict=True)], fill=1)
        return torch.from_numpy(np.asarray(image) > 0)

    return draw


def run_lengths(segmentation: Mapping[str, Any]) -> Callable[[int, int], Tensor]:
    """What draws a mask [H, W] of COCO's run lengths: ``size`` (height, width) and ``counts``, as a list or compressed.

    Runs go down the columns, one after the other, and begin with those outside of the mask.

    Raises:
        ValueError: they do not fill the image. Raised when the mask is drawn too, where the image has another size.
    """
    high, wide = (int(v) for v in segmentation["size"])
    counts = segmentation["counts"]
    runs = _uncompressed(counts) if isinstance(counts, (str, bytes)) else [int(c) for c in counts]
    if sum(runs) != high * wide or min(runs, default=-1) < 0:
        raise ValueError(f"its runs hold {sum(runs)} pixels, and {wide}x{high} are {high * wide}")
    mask = torch.from_numpy(np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(wide, high).T.copy())

    def draw(h: int, w: int) -> Tensor:
        if (h, w) != (high, wide):
            raise ValueError(f"a mask is of {wide}x{high} pixels, and its image of {w}x{h}")
        return mask

    return draw


def _uncompressed(counts: str | bytes) -> list[int]:
    """COCO's string of run lengths: five bits a character from ``0`` on, a sixth says that more follow, the last one's
    highest is the sign; from the fourth run on what is told is the difference to the run before the last."""
    runs: list[int] = []
    value = shift = 0
    for c in counts.encode("latin1") if isinstance(counts, str) else counts:
        bits = c - 48
        if not 0 <= bits < 64:
            raise ValueError("its compressed counts hold a character that does not belong there")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its compressed counts end within a number")
    return runs


def drawn_by(segmentation: Any) -> Callable[[int, int], Tensor] | None:
    """What draws COCO's polygons or run lengths; ``None`` where there are neither."""
    if isinstance(segmentation, list) and segmentation:
        return polygons(segmentation)
    return run_lengths(segmentation) if isinstance(segmentation, Mapping) and "counts" in segmentation else None


@settings
class CocoBoxes(BoxSource):
    """Boxes in COCO's JSON: ``images``, ``annotations`` with ``bbox`` (left, top, width, height), ``categories``.

    Args:
        path: a folder with one JSON or several (their names say the split: ``instances_val2017.json``), or a JSON.
        images: the folder of the images, by default anywhere beside the JSON.
        only: the classes to keep; ``null`` keeps all.
        crowd: keep boxes of crowds.
        outside: boxes outside of their image are an ``error``, or are cut (``clip``).
    """

    paths = ("path", "images")

    path: str
    images: str | None = None
    only: list[str] | None = None
    crowd: bool = False
    outside: OnOutside = "error"

    def boxes(self, size: int | None = None) -> Splits:
        """The annotated images."""
        root = as_path(self.path, "task.data.path")
        files = [root] if root.is_file() else sorted(root.glob("*.json")) + sorted(root.glob("annotations/*.json"))
        read = [(f, self._read(f)) for f in files]
        read = [(f, r) for f, r in read if isinstance(r, Mapping) and {"images", "annotations"} <= set(r)]
        if not read:
            raise DataError(
                "task.data.path", given=self.path, expected="COCO's JSON with images, annotations and categories"
            )
        folder = as_path(self.images, "task.data.images") if self.images else root if root.is_dir() else root.parent
        pictures = file_by_name(folder)
        names: dict[int, str] = {}
        for _, r in read:
            names |= {int(c["id"]): str(c["name"]) for c in r.get("categories", [])}
        used = {int(a["category_id"]) for _, r in read for a in r["annotations"]}
        if strange := sorted(used - set(names)):
            raise DataError(
                str(read[0][0]), f"annotations name categories {some([str(s) for s in strange])}, which are not listed"
            )
        labels = [names[i] for i in sorted(names)] if self.only is None else list(self.only)
        if lacking := [n for n in labels if n not in names.values()]:
            raise DataError(
                "task.data.only", f"there is no class {some(lacking)}", expected=some(sorted(names.values()), 20)
            )
        place = {i: labels.index(n) for i, n in names.items() if n in labels}
        listed, missing, bad = [], [], []
        for file, r in read:
            of: dict[Any, list[Any]] = {}
            for a in r["annotations"]:
                if not _is_box(a.get("bbox")):
                    bad.append(f"annotation {a.get('id', '?')} of {file.name}: bbox {str(a.get('bbox'))[:40]}")
                elif int(a["category_id"]) in place and (self.crowd or not a.get("iscrowd")):
                    of.setdefault(a["image_id"], []).append(a)
            for image in r["images"]:
                name = Path(str(image["file_name"])).name
                if name not in pictures:
                    missing.append(name)
                    continue
                mine = of.get(image["id"], [])
                xywh = torch.tensor([[float(v) for v in a["bbox"]] for a in mine]).reshape(-1, 4)
                drawn = []
                for a in mine:
                    try:
                        one = drawn_by(a.get("segmentation"))
                    except (ValueError, TypeError, KeyError) as error:
                        bad.append(f"annotation {a.get('id', '?')} of {file.name}: its mask cannot be read: {error}")
                        continue
                    drawn += [] if one is None else [one]
                listed.append(
                    Listed(
                        name,
                        pictures[name],
                        split_of(file.stem)
                        or next((s for w in file.stem.split("_") if (s := split_of(w.rstrip("0123456789")))), "train"),
                        torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
                        torch.tensor([place[int(a["category_id"])] for a in mine], dtype=torch.long),
                        masks=_stacked(drawn) if len(drawn) == len(mine) else None,
                    )
                )
        if bad:
            raise DataError(
                "task.data.path",
                f"{counted(len(bad), 'annotation')} cannot be used: {some(bad, 5)}",
                expected="bbox: four finite numbers (left, top, width, height); segmentation: polygons or run lengths",
            )
        if missing:
            raise DataError(
                "task.data.images",
                f"{counted(len(missing), 'image')} are not there: {some(missing, 5)}",
                given=str(folder),
            )
        return assembled(listed, labels, size, self.outside, [])

    def _read(self, file: Path) -> Any:
        try:
            return read_json(file)
        except (OSError, ValueError) as error:
            raise DataError(str(file), f"cannot be read: {error}") from None


def _is_box(given: Any) -> bool:
    """Four finite numbers."""
    number = isinstance(given, (list, tuple)) and len(given) == 4 and all(isinstance(v, (int, float)) for v in given)
    return number and all(map(math.isfinite, given))


def _stacked(drawn: Sequence[Callable[[int, int], Tensor]]) -> Callable[[int, int], Tensor]:
    def draw(high: int, wide: int) -> Tensor:
        return torch.stack([d(high, wide) for d in drawn]) if drawn else torch.zeros(0, high, wide, dtype=torch.bool)

    return draw


# ------------------------------------------------------------------------------------------------------------------ YOLO
@settings
class Yolo(BoxSource):
    """YOLO's layout: ``images/`` and ``labels/`` with folders of splits; a text file for each image, a box a line:
    class, middle (x, y), width, height, in shares of the image.

    Args:
        path: the folder that holds both.
        classes: names in the order of their numbers, or a file of them (``data.yaml``, ``classes.txt``); by default what
            lies in ``path``, else the numbers.
        outside: boxes outside of their image are an ``error``, or are cut (``clip``).
    """

    paths = ("path", "classes")

    path: str
    classes: str | list[str] | None = None
    outside: OnOutside = "error"

    def boxes(self, size: int | None = None) -> Splits:
        """The annotated images; one without a text file has no box."""
        root = as_path(self.path, "task.data.path")
        if not root.is_dir():
            raise DataError("task.data.path", given=self.path, expected="a folder with images/ and labels/")
        names = self._names(root)
        listed, bad, most = [], [], -1
        for file in list_pictures(root).found:
            parts = Path(file.name).parts
            where = [i for i, p in enumerate(parts[:-1]) if p.lower() == "images"]
            if not where:
                continue
            beside = [*parts[: where[-1]], "labels", *parts[where[-1] + 1 : -1], Path(parts[-1]).stem + ".txt"]
            text = root.joinpath(*beside)
            rows = []
            for k, line in enumerate(text.read_text(encoding="utf-8").splitlines() if text.is_file() else [], 1):
                try:
                    row = [float(v) for v in line.split()]
                    if row and (
                        len(row) < 5 or row[0] != int(row[0]) or row[0] < 0 or not all(map(math.isfinite, row))
                    ):
                        raise ValueError
                except ValueError:
                    bad.append(f"{'/'.join(beside)}, line {k}: {line[:40]!r}")
                    continue
                if row:
                    rows.append(row[:5])
            table = torch.tensor(rows).reshape(-1, 5)
            middle, extent = table[:, 1:3], table[:, 3:5]
            corners = torch.cat([middle - extent / 2, middle + extent / 2], 1)
            labels = table[:, 0].long()
            most = max(most, int(labels.max()) if len(labels) else -1)
            split = next((s for p in parts[:-1] if (s := split_of(p))), "train")
            listed.append(Listed(file.name, Path(file.path), split, corners, labels, shares=True))
        if bad:
            raise DataError(
                "task.data.path",
                f"{counted(len(bad), 'line')} cannot be read: {some(bad, 5)}",
                expected="class x y width height",
            )
        names = names or [str(i) for i in range(most + 1)]
        if most >= len(names):
            raise DataError(
                "task.data.classes",
                f"a box has class {most}",
                expected=f"0 to {len(names) - 1}, the classes that are named",
            )
        return assembled(listed, names, size, self.outside, [])

    def _names(self, root: Path) -> list[str] | None:
        if isinstance(self.classes, list):
            return self.classes
        beside = [root / n for n in ("data.yaml", "dataset.yaml", "classes.txt", "classes.json")]
        given = [as_path(self.classes, "task.data.classes")] if self.classes else [p for p in beside if p.is_file()]
        if not given:
            return None
        if given[0].suffix.lower() in (".yaml", ".yml"):
            import yaml

            try:
                found = (yaml.safe_load(given[0].read_text(encoding="utf-8")) or {}).get("names")
            except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
                raise DataError(str(given[0]), f"cannot be read: {error}") from None
            if isinstance(found, Mapping):
                found = [found[k] for k in sorted(found)]
            if not isinstance(found, list) or not found:
                raise DataError(str(given[0]), "names no classes", expected="names: [...]")
            return [str(n) for n in found]
        return read_classes(given[0])[0]


# ------------------------------------------------------------------------------------------------------------------- VOC
@settings
class Voc(BoxSource):
    """Pascal VOC's layout: ``JPEGImages/`` and ``Annotations/*.xml``; ``ImageSets/Main/train.txt`` and the like divide.

    Args:
        path: the folder that holds them (``VOC2012``).
        difficult: keep objects that are marked as difficult.
        outside: boxes outside of their image are an ``error``, or are cut (``clip``).
    """

    path: str
    difficult: bool = False
    outside: OnOutside = "error"

    def boxes(self, size: int | None = None) -> Splits:
        """The annotated images."""
        from xml.parsers.expat import ExpatError

        root = as_path(self.path, "task.data.path")
        files = sorted(root.glob("Annotations/*.xml"))
        if not files:
            raise DataError(
                "task.data.path", given=self.path, expected="a folder with Annotations/*.xml and JPEGImages/"
            )
        split: dict[str, str] = {}
        for listing in sorted(root.glob("ImageSets/Main/*.txt")):
            if (s := split_of(listing.stem)) is not None:
                for line in listing.read_text(encoding="utf-8").split("\n"):
                    if line.strip():
                        split.setdefault(line.split()[0], s)
        pictures = {Path(n).stem: p for n, p in file_by_name(root / "JPEGImages").items()}
        read, bad = [], []
        for file in files:
            if split and file.stem not in split:
                continue
            try:
                objects = _voc_objects(file.read_bytes(), self.difficult)
            except (ExpatError, ValueError, KeyError, OSError) as error:
                bad.append(f"{file.name}: {error}")
                continue
            if file.stem not in pictures:
                bad.append(f"{file.name}: there is no image of that name")
                continue
            read.append((file.stem, objects))
        if bad:
            raise DataError("task.data.path", f"{counted(len(bad), 'file')} cannot be used: {some(bad, 5)}")
        labels = sorted({name for _, objects in read for name, _ in objects})
        listed = [
            Listed(
                stem,
                pictures[stem],
                split.get(stem, "train"),
                torch.tensor([box for _, box in objects]).reshape(-1, 4),
                torch.tensor([labels.index(name) for name, _ in objects], dtype=torch.long),
            )
            for stem, objects in read
        ]
        return assembled(listed, labels, size, self.outside, [])


def _voc_objects(raw: bytes, difficult: bool) -> list[tuple[str, list[float]]]:
    """Names and boxes of one annotation; the pixels that VOC counts from 1 are counted from 0."""
    from xml.parsers import expat

    found: list[dict[str, str]] = []
    path: list[str] = []
    parser = expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise ValueError("it declares entities, which annotations have no use for")

    def start(name: str, _: Any) -> None:
        path.append(name)
        if path[1:] == ["object"]:
            found.append({})

    def text(data: str) -> None:
        if len(path) >= 3 and path[1] == "object" and path[2] != "part":
            found[-1][path[-1]] = found[-1].get(path[-1], "") + data.strip()

    parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda _: path.pop()
    parser.Parse(raw, True)
    made = []
    for one in found:
        if difficult or one.get("difficult", "0") != "1":
            corners = [float(one[k]) for k in ("xmin", "ymin", "xmax", "ymax")]
            made.append((one["name"], [corners[0] - 1, corners[1] - 1, corners[2], corners[3]]))
    return made


# -------------------------------------------------------------------------------------------------------------- composed
@settings
class ObjectsOnPhotos(BoxSource):
    """Scenes composed of two real things: objects of a source of small images, laid over pieces of photographs.

    Where objects are and how large is drawn by a fixed draw, said so in the notes. The test scenes have other objects, and
    other parts of the photographs, than the training scenes.

    Args:
        objects: a source of small images with one class each, bright on black.
        photos: ``scikit-learn`` (the two it ships), ``scikit-image`` (those it ships), or a folder of images.
        items: training scenes.
        test_items: test scenes.
        side: of a scene in pixels.
        most: objects in a scene are one up to so many.
        smallest, largest: side of an object, as shares of the scene's.
        contrast: how much brighter than the photograph an object is.
    """

    objects: Source = Digits()
    photos: str = "scikit-learn"
    items: Count = 400
    test_items: Count = 200
    side: Annotated[int, Ge(16)] = 64
    most: Count = 3
    smallest: Annotated[float, Gt(0), Le(1)] = 0.25
    largest: Annotated[float, Gt(0), Le(1)] = 0.45
    contrast: Annotated[float, Gt(0), Le(1)] = 0.9

    def validate(self) -> None:
        """The smallest is not the largest."""
        if self.smallest > self.largest:
            raise ValueError("smallest must be at most largest")

    def boxes(self, size: int | None = None) -> Splits:
        """The scenes."""
        read = self.objects.divided("label")
        assert read.test is not None
        photos = _photos(self.photos)
        parts: dict[str, Items] = {}
        for name, items, n in (("train", read.train, self.items), ("test", read.test, self.test_items)):
            parts[name] = BoxItems(
                [letterboxed(one, size) for one in self._drawn(items, photos, n, name)], len(read.labels)
            )
        note = f"scenes composed of objects over photographs ({self.photos}); where objects lie is drawn"
        return Splits(parts["train"], None, parts["test"], list(read.labels), "labels", [note])

    def _drawn(self, items: Items, photos: Sequence[Tensor], n: int, name: str) -> list[Boxed]:
        side, k = self.side, self.most
        draws, ids = Draws(0, ("objects-on-photos", name)), torch.arange(n)
        order = draws.permutation("which", len(items))
        which = order[torch.arange(n * k) % len(items)].view(n, k)
        many = draws.randint("many", ids, k, (), 1 - 0) + 0 if k == 1 else draws.randint("many", ids, k + 1, (), low=1)
        extent = draws.rand("extent", ids, (k,)) * (self.largest - self.smallest) + self.smallest
        at, photo = draws.rand("at", ids, (k, 2)), draws.randint("photo", ids, len(photos), ())
        piece, light = draws.rand("piece", ids, (2,)), draws.rand("light", ids, (k, 3)) * 0.4 + 0.6
        found: list[Boxed] = []
        for i in range(n):
            whole = photos[int(photo[i])]
            high, wide = whole.shape[1:]
            half = wide // 2
            left = 0 if name == "train" else half  # test scenes lie on the right half of each photograph
            top = int(piece[i, 0] * (high - 2 * side + 1)) if high > 2 * side else 0
            across = left + int(piece[i, 1] * (half - 2 * side + 1)) if half > 2 * side else left
            ground = whole[:, top : top + 2 * side, across : across + 2 * side]
            x = interpolate(ground[None], (side, side), mode="bilinear", align_corners=False, antialias=True)[0].clone()
            boxes: list[list[float]] = []
            labels: list[int] = []
            masks: list[Tensor] = []
            for j in range(int(many[i])):
                got = items.fetch(which[i, j : j + 1])
                small = got["x"].float().mean(1, keepdim=True) if got["x"].ndim == 4 else got["x"][None].float()
                s = max(4, round(float(extent[i, j]) * side))
                shape = interpolate(small, (s, s), mode="bilinear", align_corners=False)[0, 0].clamp(0, 1)
                on = shape > 0.25
                rows, columns = on.any(1).nonzero()[:, 0], on.any(0).nonzero()[:, 0]
                if not len(rows):
                    continue
                y0, x0 = (int(at[i, j, c] * (side - s + 1)) for c in (0, 1))
                box = [x0 + int(columns[0]), y0 + int(rows[0]), x0 + int(columns[-1]) + 1, y0 + int(rows[-1]) + 1]
                if any(_covered(box, other) for other in boxes):
                    continue
                part = x[:, y0 : y0 + s, x0 : x0 + s]
                alpha = (shape * self.contrast)[None]
                x[:, y0 : y0 + s, x0 : x0 + s] = part * (1 - alpha) + light[i, j][:, None, None] * alpha
                mask = torch.zeros(side, side, dtype=torch.bool)
                mask[y0 : y0 + s, x0 : x0 + s] = on
                boxes.append([float(v) for v in box])
                labels.append(int(got["y"][0]))
                masks.append(mask)
            found.append(
                Boxed(
                    x.mul(255).round().clamp(0, 255).to(torch.uint8),
                    torch.tensor(boxes).reshape(-1, 4),
                    torch.tensor(labels, dtype=torch.long),
                    torch.stack(masks) if masks else torch.zeros(0, side, side, dtype=torch.bool),
                )
            )
        return found


def _covered(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two boxes overlap by more than a fifth of the smaller."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    least = min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return wide > 0 and high > 0 and wide * high > 0.2 * least


def _photos(name: str) -> list[Tensor]:
    """Photographs, float32 [3, H, W] in [0, 1]."""
    if name == "scikit-learn":
        from sklearn.datasets import load_sample_images

        return [torch.from_numpy(np.array(p)).movedim(-1, 0).float() / 255 for p in load_sample_images().images]
    if name == "scikit-image":
        from limbeck.errors import require

        data = require("skimage.data", "scene", "photographs of scikit-image")
        shipped = [getattr(data, n)() for n in ("astronaut", "chelsea", "coffee", "rocket")]
        return [torch.from_numpy(np.array(p)).movedim(-1, 0).float() / 255 for p in shipped]
    root = as_path(name, "task.data.photos")
    files = list_pictures(root).found if root.is_dir() else []
    if not files:
        raise DataError("task.data.photos", given=name, expected="scikit-learn, scikit-image, or a folder of images")
    return [to_unit(decode(f.read())) for f in files]


__all__ = ["BoxItems", "BoxSource", "Boxed", "CocoBoxes", "ObjectsOnPhotos", "Part", "Voc", "Yolo", "letterboxed"]
