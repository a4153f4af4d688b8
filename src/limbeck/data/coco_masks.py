"""COCO's annotations as a class at every pixel: instances painted over one another, or panoptic images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.data.arrays import judge_by_valid
from limbeck.data.items import Splits, as_path
from limbeck.data.listing import File
from limbeck.data.masks import VOID, MaskItems, MaskSource, Size, brought_to, parted
from limbeck.data.names import counted, some, split_of
from limbeck.data.pictures import Unreadable, decode, list_pictures
from limbeck.errors import DataError, require
from limbeck.grammar.settings import settings
from limbeck.storage.plain import read_json

NAMES = {"source": {"coco-masks": "CocoMasks"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class CocoMasks(MaskSource):
    """A folder in COCO's layout: images, and ``annotations/instances_train2017.json`` or ``panoptic_train2017.json``
    with the folder of images that belongs to it.

    Instances are painted larger ones first, so that what is small lies on top; crowds do not count; what no instance
    covers is the ``background``.

    Args:
        path: the folder.
        annotations: the files, as a pattern in ``path``; by default the instances in ``annotations``, else the panoptic
            ones. A split is told by a file's name.
        only: the categories to keep, in the order they are to have; ``null`` keeps all that the file names.
        background: the name of class 0: what is of no kept category; ``null``: such pixels do not count.
        memory_mb: how much decoded items may take in memory; what does not fit is read each time it is used.
    """

    path: str
    annotations: str | None = None
    only: list[str] | None = None
    background: str | None = "background"
    memory_mb: Annotated[int, Ge(0)] = 2048

    def maps(self, size: Size = None) -> Splits:
        """The annotated images."""
        root = as_path(self.path, "task.data.path")
        tried = (
            [self.annotations] if self.annotations else ["annotations/instances*.json", "annotations/panoptic*.json"]
        )
        files = next((found for pattern in tried if (found := sorted(root.glob(pattern)))), [])
        if not files:
            raise DataError(
                "task.data.annotations", f"{root} holds no {' and no '.join(tried)}", remedy="name the files"
            )
        pictures = {Path(f.name).name: f for f in list_pictures(root).found if not _panoptic_folder(f.name)}
        categories: dict[int, str] = {}
        readers: list[tuple[str, File, Any]] = []
        split: list[str] = []
        lacking: list[str] = []
        for file in files:
            about, masks = _panoptic(file) if "panoptic" in file.stem else _instances(file)
            categories |= {int(c["id"]): str(c["name"]) for c in about["categories"]}
            for name, mask in masks:
                if name not in pictures:
                    lacking.append(name)
                    continue
                readers.append((name, pictures[name], mask))
                split.append(split_of(file.stem) or "train")
        if not readers:
            raise DataError("task.data.path", f"none of the annotated images lies in {root}: {some(lacking, 5)}")
        labels, table = self._table(categories)

        def read(i: int) -> tuple[Tensor, Tensor]:
            name, picture, mask = readers[i]
            x = decode(picture.read())
            ids = mask(table, VOID if self.background is None else 0)
            if x.shape[-2:] != ids.shape:
                raise Unreadable(f"{name} has {list(x.shape[-2:])} pixels, its annotations {list(ids.shape)}")
            return brought_to(x, ids, size)

        items = MaskItems(read, len(readers), len(labels), [r[0] for r in readers], self.memory_mb)
        notes = [f"{counted(len(lacking), 'annotated image')} not found: {some(lacking, 5)}"] if lacking else []
        return judge_by_valid(parted(items, np.asarray(split, dtype=object)), labels, "labels", notes)

    def _table(self, categories: Mapping[int, str]) -> tuple[list[str], dict[int, int]]:
        by_name = {name: i for i, name in categories.items()}
        names = list(by_name) if self.only is None else self.only
        unknown = [n for n in names if n not in by_name]
        if unknown:
            raise DataError("task.data.only", f"there is no category {some(unknown)}", expected=some(list(by_name), 20))
        first = 0 if self.background is None else 1
        labels = ([self.background] if self.background is not None else []) + names
        return labels, {by_name[n]: c for c, n in enumerate(names, first)}


def _panoptic_folder(name: str) -> bool:
    return any(part.startswith("panoptic") for part in Path(name).parts[:-1])


def _instances(file: Path) -> tuple[Mapping[str, Any], list[tuple[str, Any]]]:
    """The file's facts, and of each image its name and what paints its mask."""
    coco_of: Any = require("pycocotools.coco", "vision", "COCO's annotations").COCO
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = coco_of(str(file))
        assert {"images", "annotations", "categories"} <= set(coco.dataset)
    except Exception as error:  # its reader fails on whatever is not there
        raise DataError(str(file), f"is no file of COCO's instances: {type(error).__name__} {error}") from None

    def painter(image: Mapping[str, Any]) -> Any:
        def paint(table: Mapping[int, int], rest: int) -> Tensor:
            found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            ids = torch.full((int(image["height"]), int(image["width"])), rest, dtype=torch.int16)
            for one in sorted(found, key=lambda a: (not a.get("iscrowd", 0), -float(a.get("area", 0)))):
                at = torch.from_numpy(coco.annToMask(one).astype(bool))
                kept = table.get(int(one["category_id"]))
                if one.get("iscrowd", 0):
                    ids[at] = VOID
                elif kept is not None:
                    ids[at] = kept
            return ids

        return paint

    return coco.dataset, [(Path(image["file_name"]).name, painter(image)) for image in coco.dataset["images"]]


def _panoptic(file: Path) -> tuple[Mapping[str, Any], list[tuple[str, Any]]]:
    """The same of a panoptic file, whose images lie in the folder of its name."""
    from PIL import Image

    try:
        about = read_json(file)
        names = {image["id"]: Path(image["file_name"]).name for image in about["images"]}
        listed = [(names[a["image_id"]], a) for a in about["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            str(file), f"is no file of COCO's panoptic annotations: {type(error).__name__} {error}"
        ) from None

    def painter(one: Mapping[str, Any]) -> Any:
        def paint(table: Mapping[int, int], rest: int) -> Tensor:
            with Image.open(file.with_suffix("") / one["file_name"]) as image:
                rgb = np.asarray(image.convert("RGB")).astype(np.int64)
            segment = torch.from_numpy(rgb @ np.array([1, 256, 65536]))
            ids = torch.full(segment.shape, VOID, dtype=torch.int16)  # what no segment covers is unlabelled
            for s in one["segments_info"]:
                at = segment == int(s["id"])
                ids[at] = VOID if s.get("iscrowd", 0) else table.get(int(s["category_id"]), rest)
            return ids

        return paint

    return about, [(name, painter(one)) for name, one in listed]
