"""Images with a class at every pixel: folders and archives of masks, arrays, and scenes drawn from digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import interpolate

from limbeck.data.arrays import judge_by_valid, open_npz
from limbeck.data.columns import Target
from limbeck.data.items import Items, Part, Splits, as_path, choose, digest, to_unit
from limbeck.data.listing import File, Listing
from limbeck.data.names import counted, some, split_of
from limbeck.data.pictures import Unreadable, decode, fit, list_pictures
from limbeck.data.sources import Source
from limbeck.errors import DataError, LimbeckError
from limbeck.grammar.method import Batch
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, settings
from limbeck.storage.disk import expanded
from limbeck.storage.plain import read_json

NAMES = {"source": {"mask-folder": "MaskFolder", "mask-arrays": "MaskArrays", "digit-scenes": "DigitScenes"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

VOID = -1
"""The class of a pixel that does not count."""

Size = int | Sequence[int] | None
"""What images and masks are brought to: a side (shorter side resized, middle cut out), (height, width), or their own."""

IMAGE_WORDS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "pictures", "rgb")
MASK_WORDS = (
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "annot",
    "gt",
    "gtfine",
    "segmentationclass",
    "semantic",
)


class MaskItems:
    """Images and their maps of classes.

    Args:
        read: the number of an item -> its image [C, H, W] (bytes, or floats in [0, 1]) and its classes [H, W], `VOID`
            where a pixel does not count.
        n: how many there are.
        classes: how many classes.
        names: of each item, for messages.
        memory_mb: how much decoded items may take in memory; what does not fit is read each time it is used.

    Attributes:
        y: which classes each item has, float32 [N, C]: what items are divided and counted by.

    Raises:
        DataError: every item that cannot be read or whose size is another than the first one's, with the reason.
    """

    def __init__(
        self,
        read: Callable[[int], tuple[Tensor, Tensor]],
        n: int,
        classes: int,
        names: Sequence[str] = (),
        memory_mb: int = 2048,
    ) -> None:
        self.read, self.n, self.classes = read, n, classes
        self.kept: list[tuple[Tensor, Tensor] | None] = [None] * n
        self.y = torch.zeros(n, classes)
        room, bad, parts = memory_mb << 20, [], []
        self.shape: tuple[int, ...] = ()
        with ThreadPoolExecutor(4) as pool:
            for i, made in enumerate(pool.map(self._try, range(n))):
                name = names[i] if names else f"item {i}"
                if isinstance(made, str):
                    bad.append(f"{name}: {made}")
                    continue
                x, m = made
                self.shape = self.shape or tuple(x.shape)
                if tuple(x.shape) != self.shape or m.shape != x.shape[1:]:
                    bad.append(f"{name}: image {list(x.shape)}, mask {list(m.shape)}, the first {list(self.shape)}")
                    continue
                self.y[i, m[m >= 0].long().unique()] = 1.0
                parts.append(digest(x, m))
                room -= x.numel() * x.element_size() + m.numel() * m.element_size()
                if room > 0:
                    self.kept[i] = made
        if bad:
            sizes = any(", the first [" in b for b in bad)
            raise DataError(
                "task.data",
                f"{counted(len(bad), 'item')} of {n} cannot be used: {some(bad, 5)}",
                expected="images and masks of one size" if sizes else "images with a mask of class ids each",
                remedy="bring them to one size: task.size=N, or task.sides=[HEIGHT,WIDTH]" if sizes else "",
            )
        self.fingerprint = digest(*parts)

    def _try(self, i: int) -> tuple[Tensor, Tensor] | str:
        try:
            return self.read(i)
        except LimbeckError as error:
            return error.line()
        except (Unreadable, OSError, ValueError) as error:
            return str(error)

    def __len__(self) -> int:
        return self.n

    def fetch(self, items: Tensor) -> Batch:
        """``x`` float32 [n, C, H, W] in [0, 1], ``y`` int64 [n, H, W] (0 where a pixel does not count), ``where`` bool."""
        pairs = [self.kept[i] or self.read(i) for i in items.tolist()]
        x = to_unit(torch.stack([p[0] for p in pairs]))
        y = torch.stack([p[1] for p in pairs]).long()
        return {"x": x, "y": y.clamp_min(0), "where": y >= 0}


class MaskSource(Source):
    """Base of sources whose items are answered with a class at every pixel."""

    def maps(self, size: Size = None) -> Splits:
        """The data; ``size``: what images and masks are brought to together, images bilinearly, masks by the nearest.

        Raises:
            DataError: nothing there, or something that cannot be read, named.
        """
        raise TypeError(f"{type(self).__name__} must define maps")

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """As `maps`; there is no one target an item."""
        if target != "auto":
            raise DataError("task.data", "its items have a class at every pixel", remedy="set task=dense")
        return self.maps(size)


def brought_to(x: Tensor, m: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """A image [C, H, W] and its mask [H, W] brought to a size together."""
    if size is None:
        return x, m
    deep = m[None, None].float()
    if isinstance(size, int):
        scale = size / min(x.shape[-2:])
        new = tuple(max(size, round(n * scale)) for n in m.shape)
        deep = interpolate(deep, new, mode="nearest-exact") if new != tuple(m.shape) else deep
        top, left = (new[0] - size) // 2, (new[1] - size) // 2
        return fit(x, size), deep[0, 0, top : top + size, left : left + size].to(m.dtype).contiguous()
    high, wide = size
    if x.shape[-2:] != (high, wide):
        x = interpolate(x[None], (high, wide), mode="bilinear", align_corners=False, antialias=True)[0]
        deep = interpolate(deep, (high, wide), mode="nearest-exact")
    return x, deep[0, 0].to(m.dtype)


# --------------------------------------------------------------------------------------------------------------- classes
def table_of(
    names: Sequence[str], ignore: Sequence[int], only: Sequence[str] | None, background: str | None
) -> tuple[list[str], Tensor]:
    """The classes of a task, and for each id of a mask (up to 65535) the class it stands for, or `VOID`.

    Args:
        names: of the ids, in order.
        ignore: ids that do not count.
        only: the classes to keep, in the order they are to have; ``None`` keeps all.
        background: what pixels of other classes are, as class 0; ``None``: they do not count.
    """
    table = torch.full((1 << 16,), VOID, dtype=torch.int16)
    known = {name: i for i, name in enumerate(names) if i not in ignore}
    if only is None:
        for c, i in enumerate(known.values()):
            table[i] = c
        return list(known), table
    lacking = [name for name in only if name not in known]
    if lacking:
        raise DataError("task.data.only", f"there is no class {some(lacking)}", expected=some(list(known), 20))
    kept = [*([background] if background else []), *only]
    if background:
        table[: len(names)] = 0
        table[[i for i in ignore if 0 <= i < 1 << 16]] = VOID
    for c, name in enumerate(only, len(kept) - len(only)):
        table[known[name]] = c
    return kept, table


def read_classes(path: Path) -> tuple[list[str], list[int]]:
    """Class names in the order of their ids, and ids that do not count: of a JSON list, a JSON object with ``classes``
    (and ``ignore_index``) or of ids to names, or a text file with a name a line."""
    if path.suffix.lower() != ".json":
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()], []
        except (OSError, ValueError) as error:
            raise DataError(str(path), f"cannot be read: {error}") from None
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"cannot be read: {error}") from None
    ignore: list[int] = []
    if isinstance(found, Mapping) and "classes" in found:
        given = found.get("ignore_index")
        ignore = [int(given)] if isinstance(given, int) else []
        found = found["classes"]
    if isinstance(found, Mapping):
        try:
            by_id = {int(i): str(n) for i, n in found.items()}
        except ValueError:
            raise DataError(str(path), "its keys are no ids", expected='{"0": "road", ...} or a list') from None
        found = [by_id.get(i, f"id {i}") for i in range(max(by_id, default=-1) + 1)]
    if not isinstance(found, list) or not found:
        raise DataError(str(path), "names no classes", expected="a list of names, or ids with their names")
    return [str(n) for n in found], ignore


def decode_mask(raw: bytes) -> Tensor:
    """The ids [H, W] that a mask's pixels store; of a palette its indices.

    Raises:
        Unreadable: no image, or one of colours.
    """
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw)) as image:
            if image.mode not in ("P", "L", "1", "I", "I;16", "LA", "PA"):
                raise Unreadable(f"is an image of colours ({image.mode}), and a mask holds one class id a pixel")
            values = np.asarray(image).astype(np.int64)
            values = values[..., 0] if values.ndim == 3 else values  # what is transparent has its id all the same
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(str(error)) from None
    if values.min() < 0 or values.max() >= 1 << 16:
        raise Unreadable(f"holds ids from {values.min()} to {values.max()}, of which 0 to 65535 are known")
    return torch.from_numpy(values)


# --------------------------------------------------------------------------------------------------------------- folders
@settings
class MaskFolder(MaskSource):
    """Images and masks by the same stem: ``images/`` beside ``masks/``, with or without folders of splits in or above
    them; both may be uncompressed tar archives. A mask is a PNG (or the like) with one class id a pixel; one of a palette is
    read by its indices, one drawn at another resolution is brought to the image's by the nearest pixel.

    Args:
        path: the folder that holds both.
        images, masks: their folders or archives in ``path``; by default those that are called so (``images``,
            ``JPEGImages``...; ``masks``, ``labels``, ``annotations``, ``trainannot``...).
        suffix: what stands behind the stem of a mask (``_mask``).
        classes: names in the order of their ids, or a file of them; by default ``classes.json`` or ``classes.txt`` in
            ``path``, else the ids that occur.
        ignore: ids that do not count; what ``classes.json`` calls ``ignore_index`` is added.
        only: the classes to keep, in the order they are to have; ``null`` keeps all.
        background: with ``only``, what pixels of other classes are; ``null``: they do not count.
        memory_mb: how much decoded items may take in memory; what does not fit is read each time it is used.
    """

    paths = ("path", "classes")

    path: str
    images: str | None = None
    masks: str | None = None
    suffix: str = ""
    classes: str | list[str] | None = None
    ignore: list[int] = [255]  # noqa: RUF012 (copied by settings)
    only: list[str] | None = None
    background: str | None = "background"
    memory_mb: Annotated[int, Ge(0)] = 2048

    def maps(self, size: Size = None) -> Splits:
        """The pairs, divided as the folders are."""
        root = as_path(self.path, "task.data.path")
        if not root.is_dir():
            raise DataError("task.data.path", given=self.path, expected="a folder that holds images and masks")
        pairs, notes = self._pairs(root)
        names, ignore = self._names(root)
        if names is None:
            ids = sorted(set().union(*(_ids(mask) for _, mask in pairs.values()))) or [0]
            names = [str(i) for i in range(max(ids) + 1)]
            ignore = [*ignore, *(i for i in range(max(ids) + 1) if i not in ids)]
            notes.append(f"no class names: the {len(set(ids) - set(ignore))} ids that occur are taken for classes")
        labels, table = table_of(names, ignore, self.only, self.background)
        listed = list(pairs.values())

        def read(i: int) -> tuple[Tensor, Tensor]:
            picture, mask = listed[i]
            ids = decode_mask(mask.read())
            unknown = [int(v) for v in ids.unique() if v >= len(names) and v not in ignore]
            if unknown:
                raise Unreadable(
                    f"its mask holds {some([str(v) for v in unknown])}, which is no class "
                    f"(0 to {len(names) - 1}; ids that do not count: task.data.ignore={list(ignore)})"
                )
            x = decode(picture.read())
            high, wide = x.shape[-2:]
            if high * ids.shape[1] != wide * ids.shape[0]:
                raise Unreadable(
                    f"the image has {[high, wide]} pixels, its mask {list(ids.shape)}: of other proportions"
                )
            m = table[ids]
            if (high, wide) != tuple(m.shape):  # drawn at another resolution
                m = interpolate(m[None, None].float(), (high, wide), mode="nearest-exact")[0, 0].to(m.dtype)
            return brought_to(x, m, size)

        shown = [m.name for _, m in listed]
        items = MaskItems(read, len(listed), len(labels), shown, self.memory_mb)
        split = np.asarray([_split(key) for key in pairs], dtype=object)
        return judge_by_valid(parted(items, split), labels, "labels", notes)

    def _names(self, root: Path) -> tuple[list[str] | None, list[int]]:
        if isinstance(self.classes, list):
            return self.classes, list(self.ignore)
        beside = [root / n for n in ("classes.json", "labels.json", "classes.txt", "labels.txt")]
        given = [as_path(self.classes, "task.data.classes")] if self.classes else [p for p in beside if p.is_file()]
        if not given:
            return None, list(self.ignore)
        names, more = read_classes(given[0])
        return names, sorted({*self.ignore, *more})

    def _pairs(self, root: Path) -> tuple[dict[str, tuple[File, File]], list[str]]:
        """Key -> (image, mask), the key being splits and stem; and what is to be said of the rest."""
        found: dict[str, dict[str, File]] = {"images": {}, "masks": {}}
        for kind, given, words in (("images", self.images, IMAGE_WORDS), ("masks", self.masks, MASK_WORDS)):
            if given is not None:
                for name, file in _below(root, given, f"task.data.{kind}"):
                    found[kind][self._key(Path(name).parts, kind)] = file
                continue
            other = MASK_WORDS if kind == "images" else IMAGE_WORDS
            for file in _everything(root):
                parts = [p.removesuffix(".tar") for p in Path(file.name).parts]
                low = [p.lower() for p in parts[:-1]]
                mine = [p in words or (kind == "masks" and p.endswith("annot") and p != "annot") for p in low]
                if not any(mine) and not (kind == "images" and self.masks is None and _beside_annot(low, root)):
                    continue
                if kind == "images" and any(p in other or p.endswith("annot") for p in low):
                    continue
                rest = [
                    p.removesuffix("annot") if hit and p.lower().endswith("annot") and p.lower() != "annot" else p
                    for p, hit in zip(parts[:-1], mine, strict=True)
                    if not hit or (p.lower().endswith("annot") and p.lower() != "annot")
                ]
                found[kind][self._key((*rest, parts[-1]), kind)] = file
        pictures, masks = found["images"], found["masks"]
        both = sorted(set(pictures) & set(masks))
        if not both:
            raise DataError(
                "task.data.path",
                f"{counted(len(pictures), 'image')} and {counted(len(masks), 'mask')} were found in {root}, and no pair",
                expected="images/NAME.jpg with masks/NAME.png",
                remedy="name their folders with task.data.images and task.data.masks, what stands behind a mask's stem "
                "with task.data.suffix",
            )
        lone = [f"{n} has no mask" for n in sorted(set(pictures) - set(masks))]
        lone += [f"{n} has no image" for n in sorted(set(masks) - set(pictures))]
        notes = [f"left out of {root}: {some(lone, 5)}"] if lone else []
        return {key: (pictures[key], masks[key]) for key in both}, notes

    def _key(self, parts: Sequence[str], kind: str) -> str:
        stem = Path(parts[-1]).stem
        return "/".join([*parts[:-1], stem.removesuffix(self.suffix) if kind == "masks" else stem])


def _beside_annot(low: Sequence[str], root: Path) -> bool:
    """SegNet's layout: ``train`` beside ``trainannot``."""
    return len(low) > 0 and any((root / (p + "annot")).is_dir() for p in low)


def _ids(mask: File) -> set[int]:
    try:
        return set(decode_mask(mask.read()).unique().tolist())
    except (Unreadable, OSError):
        return set()  # it is named when all are read


def _split(key: str) -> str:
    return next((s for part in key.split("/")[:-1] if (s := split_of(part))), "train")


def _everything(root: Path) -> list[File]:
    """Images below a folder, and in the tar archives that lie in it."""
    found = list(list_pictures(root).found)
    for archive in sorted(root.glob("*.tar")):
        listing: Listing = list_pictures(archive)
        found += [File(f"{archive.name}/{f.name}", f.path, f.start, f.size) for f in listing.found]
    return found


def _below(root: Path, given: str, argument: str) -> list[tuple[str, File]]:
    """Images below a folder of ``root``, or in an archive (``masks.tar/semantic``), by their names in it."""
    place = root / expanded(given)
    inside: list[str] = []
    while not place.exists() and place != root and place.parent != place:
        inside.insert(0, place.name)
        place = place.parent
    if (inside and place.suffix != ".tar") or not place.exists():
        raise DataError(argument, given=given, expected=f"a folder or tar archive in {root}")
    prefix = "/".join(inside) + "/" if inside else ""
    return [(f.name.removeprefix(prefix), f) for f in list_pictures(place).found if f.name.startswith(prefix)]


def parted(items: Items, split: np.ndarray[Any, Any]) -> dict[str, Items]:
    """The splits of items, by each one's split."""
    parts: dict[str, Items] = {}
    for name in ("train", "valid", "test"):
        ids = torch.from_numpy(np.flatnonzero(split == name))
        if len(ids):
            parts[name] = Part(items, ids)
    if "train" not in parts:
        raise DataError("task.data", "there are no training items", expected="a split that is called train")
    return parts


# ---------------------------------------------------------------------------------------------------------------- arrays
def maps_of(
    x: Any, y: Any, labels: Sequence[str] | None, ignore: Sequence[int], size: Size, where: str
) -> tuple[MaskItems, list[str]]:
    """Arrays as items: images [N, C, H, W] or [N, H, W, C], uint8 or floats in [0, 1], and class ids [N, H, W]."""
    x, y = torch.as_tensor(np.asarray(x)), torch.as_tensor(np.asarray(y))
    if x.ndim == 3:
        x = x.unsqueeze(1)
    if x.ndim != 4 or y.ndim != 3 or len(x) != len(y) or y.is_floating_point():
        raise DataError(
            where,
            f"x is {list(x.shape)}, y is {list(y.shape)} {str(y.dtype).removeprefix('torch.')}",
            expected="images [N, C, H, W] and integer class ids [N, H, W]",
        )
    if x.shape[2:] != y.shape[1:] and x.shape[-1] in (1, 3, 4):
        x = x.movedim(-1, 1)
    if x.shape[2:] != y.shape[1:]:
        raise DataError(where, f"images of {list(x.shape[2:])} pixels and masks of {list(y.shape[1:])}")
    if x.is_floating_point() and (not bool(torch.isfinite(x).all()) or float(x.min()) < 0 or float(x.max()) > 1):
        raise DataError(where, "floating images hold values outside of [0, 1]", expected="bytes, or values in [0, 1]")
    y = y.long()
    void = torch.zeros_like(y, dtype=torch.bool)
    for value in ignore:
        void |= y == value
    kept = y[~void]
    highest = int(kept.max()) if len(kept) else 0
    names = list(labels) if labels is not None else [str(i) for i in range(highest + 1)]
    if len(kept) and (int(kept.min()) < 0 or highest >= len(names)):
        odd = kept[(kept < 0) | (kept >= len(names))].unique().tolist()
        raise DataError(
            where,
            f"y holds {some([str(v) for v in odd])}, which is no class",
            expected=f"0 to {len(names) - 1}, or {ignore}",
        )
    m = torch.where(void, VOID, y).to(torch.int16)
    items = MaskItems(lambda i: brought_to(x[i], m[i], size), len(x), len(names), memory_mb=1 << 20)
    return items, names


@settings
class MaskArrays(MaskSource):
    """Arrays in ``train.npz`` (and ``valid.npz``, ``test.npz``) of a folder, or in one ``.npz``: ``x`` and ``y`` [N, H, W].

    Args:
        path: the folder or file.
        classes: names in the order of their ids, or a file of them; by default ``classes.json`` beside, else the numbers.
        ignore: ids that do not count.
    """

    paths = ("path", "classes")

    path: str
    classes: str | list[str] | None = None
    ignore: list[int] = [255]  # noqa: RUF012 (copied by settings)

    def maps(self, size: Size = None) -> Splits:
        """The arrays."""
        root = as_path(self.path, "task.data.path")
        files = [root] if root.is_file() else sorted(root.glob("*.npz"))
        names = self.classes if isinstance(self.classes, list) else None
        beside = (root if root.is_dir() else root.parent) / "classes.json"
        ignore = list(self.ignore)
        if isinstance(self.classes, str) or (names is None and beside.is_file()):
            file = as_path(self.classes, "task.data.classes") if isinstance(self.classes, str) else beside
            names, more = read_classes(file)
            ignore += more
            names = [n for i, n in enumerate(names) if i not in ignore]
        made: dict[str, tuple[Any, Any]] = {}
        for file in files:
            arrays = open_npz(file)
            if not {"x", "y"} <= set(arrays):
                raise DataError(str(file), f"holds {some(sorted(arrays))}", expected="arrays x and y")
            made[split_of(file.stem) or "train"] = arrays["x"], arrays["y"]
        return splits_of(made, names, ignore, size, str(root))


def splits_of(
    made: Mapping[str, tuple[Any, Any]], names: Sequence[str] | None, ignore: Sequence[int], size: Size, where: str
) -> Splits:
    """Arrays by split as splits of one list of classes."""
    if "train" not in made:
        raise DataError(where, "there are no training arrays", expected="train.npz with x and y")
    if names is None:
        most = max(int(np.max(np.where(np.isin(y, ignore), 0, y), initial=0)) for _, y in made.values())
        names = [str(i) for i in range(most + 1)]
    parts: dict[str, Items] = {k: maps_of(x, y, names, ignore, size, f"{where} ({k})")[0] for k, (x, y) in made.items()}
    return judge_by_valid(parts, list(names), "labels", [])


# -------------------------------------------------------------------------------------------------------------- embedded
@settings
class DigitScenes(MaskSource):
    """Scenes drawn from scikit-learn's handwritten digits: some of them, enlarged, on a dark ground, a class each.

    Real strokes, composed by a fixed draw: for trying methods without a download. The digits of the test scenes are none
    of those of the training scenes.

    Args:
        digits: which digits are classes (beside the ground).
        items: training scenes.
        test_items: test scenes.
        side: of a scene in pixels.
        each: digits in a scene.
        noise: how strong the noise is that lies over everything.
    """

    digits: list[int] = [0, 1, 4]  # noqa: RUF012 (copied by settings)
    items: Count = 400
    test_items: Count = 200
    side: Annotated[int, Ge(16)] = 32
    each: Count = 3
    noise: Annotated[float, Ge(0)] = 0.15

    def validate(self) -> None:
        """Digits are ten."""
        if not self.digits or len(set(self.digits)) < len(self.digits) or not set(self.digits) <= set(range(10)):
            raise ValueError("digits must be some of 0 to 9, each once")

    def maps(self, size: Size = None) -> Splits:
        """The scenes."""
        from sklearn.datasets import load_digits

        found = load_digits()
        x = torch.from_numpy(found.images).float().div_(16.0)
        y = torch.from_numpy(found.target).long()
        test = choose(y, 700, "digits", "test")
        rest = torch.ones(len(y), dtype=torch.bool)
        rest[test] = False
        labels = ["ground", *map(str, self.digits)]
        parts: dict[str, Items] = {}
        for name, ids, n in (("train", rest.nonzero()[:, 0], self.items), ("test", test, self.test_items)):
            ids = ids[torch.isin(y[ids], torch.tensor(self.digits))]
            pictures, masks = self._drawn(x[ids], y[ids], n, name)
            parts[name] = MaskItems(_reader(pictures, masks, size), n, len(labels))
        return Splits(
            parts["train"], None, parts["test"], labels, "labels", ["scenes drawn from scikit-learn's digits"]
        )

    def _drawn(self, x: Tensor, y: Tensor, n: int, name: str) -> tuple[Tensor, Tensor]:
        """Images uint8 [n, 1, side, side] and classes int16 [n, side, side]."""
        draws, ids = Draws(0, ("digit-scenes", name)), torch.arange(n * self.each)
        which = draws.randint("which", ids, len(x), ()).view(n, self.each)
        big = 2 * min(8, self.side // 4)
        at = draws.randint("at", ids, self.side - big + 1, (2,)).view(n, self.each, 2)
        ground = draws.randn("noise", torch.arange(n), (1, self.side, self.side)) * self.noise
        pictures, masks = torch.zeros(n, self.side, self.side), torch.zeros(n, self.side, self.side, dtype=torch.int16)
        large = interpolate(x.unsqueeze(1), (big, big), mode="bilinear", align_corners=False)[:, 0]
        classes = {d: c for c, d in enumerate(self.digits, 1)}
        for i in range(n):
            for k in range(self.each):
                stroke, (top, left) = large[which[i, k]], at[i, k].tolist()
                on = stroke > 0.4
                masks[i, top : top + big, left : left + big][on] = classes[int(y[which[i, k]])]
                part = pictures[i, top : top + big, left : left + big]
                pictures[i, top : top + big, left : left + big] = torch.where(on, stroke, part)
        noisy = (pictures.unsqueeze(1) + ground).clamp_(0, 1)
        return noisy.mul_(255).round_().to(torch.uint8), masks


def _reader(x: Tensor, m: Tensor, size: Size) -> Callable[[int], tuple[Tensor, Tensor]]:
    return lambda i: brought_to(x[i], m[i], size)
