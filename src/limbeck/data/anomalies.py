"""Images of which some are defective, and where: MVTec's folders, arrays, and textures with drawn defects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.data.arrays import open_npz
from limbeck.data.columns import Target
from limbeck.data.items import Splits, as_path, digest, to_unit
from limbeck.data.listing import File
from limbeck.data.masks import Size, brought_to
from limbeck.data.names import counted, some
from limbeck.data.pictures import Unreadable, decode, list_pictures
from limbeck.data.sources import Source
from limbeck.errors import DataError, require
from limbeck.grammar.method import Batch
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, settings
from limbeck.storage.plain import read_json

NAMES = {"source": {"anomaly-folder": "AnomalyFolder", "anomaly-arrays": "AnomalyArrays", "textures": "Textures"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

LABELS = ["normal", "anomalous"]
NORMAL = ("good", "normal", "ok")
"""What a folder of items without a defect is called."""

Texture = Literal["brick", "grass", "gravel"]
TEXTURES: tuple[Texture, ...] = ("brick", "grass", "gravel")


class AnomalyItems:
    """Images, whether each is anomalous, and where.

    Args:
        x: uint8 or floating [N, C, H, W].
        masks: bool [N, H, W]; ``None`` where no pixels are known.
        y: int64 [N], 1 for anomalous; by default those with a pixel in their mask.
    """

    def __init__(self, x: Tensor, masks: Tensor | None = None, y: Tensor | None = None) -> None:
        self.x, self.located = x, masks is not None
        self.masks = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool) if masks is None else masks
        self.y = self.masks.flatten(1).any(1).long() if y is None else y
        self.shape = tuple(x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, items: Tensor) -> Batch:
        """``x`` float32 [n, C, H, W] in [0, 1], ``y`` int64 [n], ``mask`` bool [n, H, W]."""
        return {"x": to_unit(self.x[items]), "y": self.y[items], "mask": self.masks[items]}

    @property
    def fingerprint(self) -> str:
        """A content hash."""
        return digest(self.x, self.masks, self.y)


class AnomalySource(Source):
    """Base of sources whose training items are all normal."""

    def anomalies(self, size: Size = None) -> Splits:
        """Normal training items, and test items of both kinds; ``size``: what images and masks are brought to together.

        Raises:
            DataError: nothing there, something that cannot be read, or defects among the training items.
        """
        raise TypeError(f"{type(self).__name__} must define anomalies")

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """As `anomalies`."""
        if target != "auto":
            raise DataError("task.data", "its training items are all normal", remedy="set task=anomaly")
        return self.anomalies(size)


@settings
class AnomalyFolder(AnomalySource):
    """Folders as MVTec AD has them: ``train/good``, ``test/KIND`` with ``test/good``, ``ground_truth/KIND/NAME_mask.png``.

    Without ``ground_truth`` images are evaluated, and no pixels.

    Args:
        path: the folder that holds ``train`` and ``test``.
        suffix: what stands behind the stem of a mask.
    """

    path: str
    suffix: str = "_mask"

    def anomalies(self, size: Size = None) -> Splits:
        """The images."""
        root = as_path(self.path, "task.data.path")
        if not (root / "train").is_dir() or not (root / "test").is_dir():
            raise DataError(
                "task.data.path",
                given=self.path,
                expected="a folder that holds train/good, test/good and test/KIND",
                remedy="name the folder of one category, such as mvtec/carpet" if root.is_dir() else "",
            )
        train, test, truth = (list_pictures(root / n).found if (root / n).is_dir() else [] for n in _FOLDERS)
        wrong = sorted({kind for f in train if (kind := _kind(f)) not in NORMAL})
        if wrong:
            raise DataError(
                "task.data.path",
                f"train holds {some([w or 'pictures beside its folders' for w in wrong])}",
                expected="train/good alone: it is learnt what is normal",
                remedy="move defects to test/KIND",
            )
        masks = {(_kind(f), Path(f.name).stem.removesuffix(self.suffix)): f for f in truth}
        lone = [f.name for f in test if masks and _kind(f) not in NORMAL and (_kind(f), Path(f.name).stem) not in masks]
        if lone:
            raise DataError(
                "task.data.path",
                f"{counted(len(lone), 'defect')} without a mask: {some(lone, 5)}",
                expected=f"ground_truth/KIND/NAME{self.suffix}.png for each",
                remedy="set task.data.suffix, or remove ground_truth to evaluate images alone",
            )
        made = [_loaded(train, {}, size), _loaded(test, masks, size)]
        y = torch.tensor([int(_kind(f) not in NORMAL) for f in test])
        items = AnomalyItems(made[0][0]), AnomalyItems(made[1][0], made[1][1] if masks else None, y)
        kinds = sorted({_kind(f) for f in test} - set(NORMAL))
        notes = [f"kinds of defects: {some(kinds, 20)}" + ("" if masks else "; no masks, so no pixels are evaluated")]
        return Splits(items[0], None, items[1], LABELS, "label", notes)


_FOLDERS = ("train", "test", "ground_truth")


def _kind(file: File) -> str:
    """The folder that an image lies in; empty for none."""
    parts = Path(file.name).parts
    return parts[0] if len(parts) > 1 else ""


def _loaded(files: Sequence[File], masks: dict[tuple[str, str], File], size: Size) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, C, H, W] and masks bool [N, H, W] of one size."""
    if not files:
        raise DataError("task.data.path", "there are no images", expected="train/good and test/KIND with images")
    x: list[Tensor] = []
    m: list[Tensor] = []
    bad: list[str] = []
    for file in files:
        try:
            picture = decode(file.read())
            mask = torch.zeros(picture.shape[1:], dtype=torch.int16)
            truth = masks.get((_kind(file), Path(file.name).stem))
            if truth is not None:
                mask = (decode(truth.read()).amax(0) > 0).to(torch.int16)
            if mask.shape != picture.shape[1:]:
                raise Unreadable(f"has {list(picture.shape[1:])} pixels, its mask {list(mask.shape)}")
            picture, mask = brought_to(picture, mask, size)
            if x and picture.shape != x[0].shape:
                raise Unreadable(f"is {list(picture.shape)}, the first {list(x[0].shape)}: set task.size")
        except (Unreadable, OSError) as error:
            bad.append(f"{file.name}: {error}")
            continue
        x.append(picture)
        m.append(mask > 0)
    if bad:
        raise DataError("task.data.path", f"{counted(len(bad), 'image')} cannot be used: {some(bad, 5)}")
    return torch.stack(x), torch.stack(m)


@settings
class AnomalyArrays(AnomalySource):
    """Arrays: ``train.npz`` with ``x``, normal images alone, and ``test.npz`` with ``x`` and ``mask`` [N, H, W] or ``y`` [N].

    Images are [N, H, W], [N, C, H, W] or [N, H, W, C], bytes or floats in [0, 1]; what is not 0 in ``mask`` or ``y`` is
    anomalous.

    Args:
        path: the folder of both.
    """

    path: str

    def anomalies(self, size: Size = None) -> Splits:
        """The arrays."""
        root = as_path(self.path, "task.data.path")
        if not (root / "train.npz").is_file() or not (root / "test.npz").is_file():
            raise DataError("task.data.path", given=self.path, expected="a folder that holds train.npz and test.npz")
        train, test = (open_npz(root / f"{n}.npz") for n in ("train", "test"))
        for name in ("mask", "y"):
            if name in train and bool(np.asarray(train[name]).any()):
                bad = int((np.asarray(train[name]).reshape(len(train[name]), -1) != 0).any(1).sum())
                raise DataError(
                    "task.data.path",
                    f"train.npz holds {counted(bad, 'anomalous item')} by its {name}",
                    expected="normal items alone",
                    remedy="move them to test.npz",
                )
        if "mask" not in test and "y" not in test:
            raise DataError("task.data.path", f"test.npz holds {some(sorted(test))}", expected="x with mask or y")
        items = []
        for name, arrays in (("train", train), ("test", test)):
            if "x" not in arrays:
                raise DataError("task.data.path", f"{name}.npz holds {some(sorted(arrays))}", expected="an array x")
            x = _pictures(arrays["x"], name)
            masks = torch.from_numpy(np.asarray(arrays["mask"]) != 0) if "mask" in arrays else None
            if masks is not None and masks.shape != (len(x), *x.shape[2:]):
                raise DataError(f"{name}.npz", f"mask is {list(masks.shape)}", expected=str([len(x), *x.shape[2:]]))
            y = torch.from_numpy(np.asarray(arrays["y"]) != 0).long() if "y" in arrays else None
            if y is not None and y.shape != (len(x),):
                raise DataError(f"{name}.npz", f"y is {list(y.shape)}", expected=str([len(x)]))
            deep = torch.zeros(len(x), *x.shape[2:]) if masks is None else masks
            both = [brought_to(a, b.to(torch.int16), size) for a, b in zip(x, deep, strict=True)]
            x, deep = torch.stack([a for a, _ in both]), torch.stack([b > 0 for _, b in both])
            items.append(AnomalyItems(x, None if masks is None else deep, y))
        notes = []
        about = root / "meta.json"
        if about.is_file():
            kinds = read_json(about)
            notes = [f"kinds of defects: {some([str(k) for k in kinds['kinds']], 20)}"] if "kinds" in kinds else []
        return Splits(items[0], None, items[1], LABELS, "label", notes)


def _pictures(found: Any, name: str) -> Tensor:
    x = torch.from_numpy(np.asarray(found))
    x = x.unsqueeze(1) if x.ndim == 3 else x
    if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[-1] in (1, 3):
        x = x.movedim(-1, 1)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
        raise DataError(f"{name}.npz", f"x is {list(x.shape)}", expected="images [N, H, W], [N, C, H, W]")
    if x.is_floating_point():
        if not bool(torch.isfinite(x).all()) or float(x.min()) < 0 or float(x.max()) > 1:
            raise DataError(f"{name}.npz", "x holds values outside of [0, 1]", expected="bytes, or values in [0, 1]")
    elif x.dtype != torch.uint8:
        raise DataError(f"{name}.npz", f"x is {x.dtype}", expected="bytes, or floats in [0, 1]")
    return x


# -------------------------------------------------------------------------------------------------------------- embedded
@settings
class Textures(AnomalySource):
    """Crops of scikit-image's photographs of brick, grass and gravel; the defects of the test items are drawn.

    Real textures: training items come from the left five eighths of each photograph, test items from the right three
    eighths. Half of the test items have a defect: a patch of another texture, a flat blob, or a scratch.

    Args:
        train: textures that are learnt from.
        test: those that are evaluated on; ``null`` for the same.
        items: training crops.
        test_items: test crops, every other one with a defect.
        side: of a crop in pixels.
    """

    train: list[Texture] = ["brick"]  # noqa: RUF012 (copied by settings)
    test: list[Texture] | None = None
    items: Count = 200
    test_items: Annotated[int, Ge(2)] = 100
    side: Annotated[int, Ge(16)] = 64

    def validate(self) -> None:
        """Textures are named once, and a crop fits."""
        for name, given in (("train", self.train), ("test", self.test)):
            if given is not None and (not given or len(set(given)) < len(given)):
                raise ValueError(f"{name} must name some of {', '.join(TEXTURES)}, each once")
        if self.side > 160:
            raise ValueError("side must be at most 160")

    def anomalies(self, size: Size = None) -> Splits:
        """The crops."""
        draws = Draws(0, ("textures",))
        photographs = {name: torch.from_numpy(np.asarray(photograph(name))) for name in TEXTURES}
        train = self._crops(photographs, self.train, self.items, draws, "train")
        test = self._crops(photographs, self.test or self.train, self.test_items, draws, "test")
        masks = torch.zeros(len(test), self.side, self.side, dtype=torch.bool)
        for i in range(1, len(test), 2):
            named = (self.test or self.train)[i % len(self.test or self.train)]
            others = [photographs[n] for n in TEXTURES if n != named]
            masks[i] = _spoil(test[i], others, draws.rand("defect", torch.tensor([i]), (12,))[0].tolist())
        both = [
            [brought_to(a, b.to(torch.int16), size) for a, b in zip(x, m, strict=True)]
            for x, m in ((train, torch.zeros(len(train), self.side, self.side)), (test, masks))
        ]
        items = [
            AnomalyItems(
                torch.stack([a for a, _ in pairs]).unsqueeze(1)
                if pairs[0][0].ndim == 2
                else torch.stack([a for a, _ in pairs]),
                torch.stack([b > 0 for _, b in pairs]),
            )
            for pairs in both
        ]
        return Splits(items[0], None, items[1], LABELS, "label", ["scikit-image's textures; the defects are drawn"])

    def _crops(
        self, photographs: dict[Texture, Tensor], names: Sequence[Texture], n: int, draws: Draws, split: str
    ) -> Tensor:
        """Crops uint8 [n, 1, side, side]."""
        ids, side = torch.arange(n), self.side
        low, high = (0, 320) if split == "train" else (320, 512)
        at = draws.rand(f"at/{split}", ids, (2,))
        made = []
        for i in range(n):
            x = photographs[names[i % len(names)]]
            top = int(at[i, 0] * (x.shape[0] - side + 1))
            left = low + int(at[i, 1] * (high - low - side + 1))
            made.append(x[top : top + side, left : left + side])
        return torch.stack(made).unsqueeze(1).clone()


def _spoil(x: Tensor, others: Sequence[Tensor], u: Sequence[float]) -> Tensor:
    """Draw a defect into a crop uint8 [1, side, side]; where it is, bool [side, side]. ``u``: twelve numbers in [0, 1)."""
    side = x.shape[-1]
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    high, wide = (int(side * (0.15 + 0.2 * v)) for v in u[:2])
    top, left = int(u[2] * (side - high)), int(u[3] * (side - wide))
    kind = int(u[4] * 3)
    if kind == 0:  # a patch of another texture
        other = others[int(u[5] * len(others))]
        a, b = int(u[6] * (other.shape[0] - side)), int(u[7] * (other.shape[1] - side))
        where = (rows >= top) & (rows < top + high) & (columns >= left) & (columns < left + wide)
        value = other[a : a + side, b : b + side]
    elif kind == 1:  # a flat blob
        where = ((rows - top - high / 2) / (high / 2)) ** 2 + ((columns - left - wide / 2) / (wide / 2)) ** 2 <= 1
        value = torch.full_like(x[0], int(60 + 136 * u[5]))
    else:  # a scratch
        slope = 3.1416 * u[5]
        along = (columns - side * u[6]) * np.cos(slope) + (rows - side * (0.25 + u[7] / 2)) * np.sin(slope)
        across = -(columns - side * u[6]) * np.sin(slope) + (rows - side * (0.25 + u[7] / 2)) * np.cos(slope)
        where = (across.abs() <= 1 + u[8]) & (along.abs() <= side * (0.2 + 0.2 * u[9]))
        value = torch.full_like(x[0], 235 if u[10] > 0.5 else 20)
    x[0] = torch.where(where, value, x[0])
    return where


PHOTOGRAPHS = (
    *("astronaut", "camera", "cell", "chelsea", "coffee", "coins", "hubble_deep_field"),
    *("immunohistochemistry", "moon", "page", "retina", "rocket", "text"),
)
"""Photographs that scikit-image brings along, without the textures."""


def photograph(name: str) -> Any:
    """One of scikit-image's photographs as an array of bytes."""
    data = require("skimage.data", "vision", "embedded photographs")
    return getattr(data, name)()


class Photographs:
    """Crops of photographs, answered with the photograph: what a teacher can learn to see from without other data.

    Args:
        shape: (channels, height, width) of a crop.
        items: how many crops there are.
    """

    def __init__(self, shape: Sequence[int], items: int = 4096) -> None:
        self.shape, self.items = tuple(shape), items
        self.pictures = [_planes(photograph(name), self.shape[0]) for name in PHOTOGRAPHS]
        self.y = torch.arange(items) % len(self.pictures)
        self.at = Draws(0, ("photographs",)).rand("at", torch.arange(items), (3,))

    def __len__(self) -> int:
        return self.items

    def fetch(self, items: Tensor) -> Batch:
        """``x`` float32 [n, *shape] in [0, 1], ``y`` int64 [n]: the photograph."""
        return {"x": to_unit(torch.stack([self._crop(i) for i in items.tolist()])), "y": self.y[items]}

    def _crop(self, i: int) -> Tensor:
        x = self.pictures[int(self.y[i])]
        high, wide = (min(a, b) for a, b in zip(self.shape[1:], x.shape[1:], strict=True))
        top, left = (int(u * (n - m + 1)) for u, n, m in zip(self.at[i], x.shape[1:], (high, wide), strict=False))
        x = x[:, top : top + high, left : left + wide]
        if self.at[i, 2] > 0.5:
            x = x.flip(2)
        if x.shape[1:] != self.shape[1:]:
            x = torch.nn.functional.interpolate(x[None].float(), self.shape[1:], mode="bilinear")[0].to(torch.uint8)
        return x

    @property
    def fingerprint(self) -> str:
        """Of the photographs, the crops' shape and their number."""
        return digest("photographs", self.shape, self.items, *self.pictures)


def _planes(found: Any, channels: int) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(found))
    x = x.unsqueeze(-1) if x.ndim == 2 else x[..., :3]
    x = x.movedim(-1, 0)
    if channels == 1 and len(x) == 3:
        x = x.float().mean(0, keepdim=True).to(torch.uint8)
    return x.expand(channels, -1, -1).contiguous()


__all__ = ["AnomalyArrays", "AnomalyFolder", "AnomalyItems", "AnomalySource", "Photographs", "Textures"]
