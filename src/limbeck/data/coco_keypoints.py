"""Keypoints in COCO's JSON: persons, and the hands and faces of whole-body annotations; each file says what it labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.boxes import file_by_name
from limbeck.data.items import Splits, as_path
from limbeck.data.keypoints import COCO17, FACE68, HAND21, KeypointSource, Posed, Skeleton, in_square, pose_splits
from limbeck.data.names import counted, some, split_of
from limbeck.data.pictures import Unreadable, decode
from limbeck.errors import DataError
from limbeck.grammar.settings import settings
from limbeck.storage.plain import read_json

NAMES = {"source": {"coco-keypoints": "CocoKeypoints"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

WHOLE = {"lefthand_kpts": "hand", "righthand_kpts": "hand", "face_kpts": "face"}
"""Fields of whole-body annotations, and the parts that they are of."""

BOXES = {"lefthand_kpts": "lefthand_box", "righthand_kpts": "righthand_box", "face_kpts": "face_box"}


@settings
class CocoKeypoints(KeypointSource):
    """COCO's JSON: ``images``, ``annotations`` with ``keypoints`` (x, y, v in turn; v is 0 where a point is not labelled)
    and ``categories`` with the names of the points and their ``skeleton``.

    The fields ``lefthand_kpts``, ``righthand_kpts`` and ``face_kpts`` of whole-body annotations become instances of the parts
    hand and face beside the body; ``keypoints_3d`` (and ``face_kpts_3d`` and so on: X, Y, Z, v about the root) are poses in
    space. Several JSONs may lie side by side, each labelling other parts. An image is labelled for those parts that
    occur anywhere in its file, unless ``labelled`` says otherwise; persons whose ``num_keypoints`` is 0 are not told.

    Args:
        path: a folder with one JSON or several (their names say the split: ``person_keypoints_val2017.json``), or a JSON.
        images: the folder of the images, by default anywhere beside the JSON.
        category: the category whose keypoints are read; by default the only one that has any.
        labelled: stem of a file -> the parts that it labels on every one of its images.
        crowd: keep annotations of crowds.
    """

    paths = ("path", "images")

    path: str
    images: str | None = None
    category: str | None = None
    labelled: dict[str, list[str]] = {}  # noqa: RUF012 (copied by settings)
    crowd: bool = False

    def poses(self, size: int | None = None) -> Splits:
        """The annotated images."""
        root = as_path(self.path, "task.data.path")
        files = [root] if root.is_file() else sorted(root.glob("*.json")) + sorted(root.glob("annotations/*.json"))
        read = {f: r for f in files if isinstance(r := self._read(f), Mapping) and {"images", "annotations"} <= set(r)}
        if not read:
            raise DataError(
                "task.data.path", given=self.path, expected="COCO's JSON with images, annotations, categories"
            )
        folder = as_path(self.images, "task.data.images") if self.images else root if root.is_dir() else root.parent
        pictures = file_by_name(folder)
        body, numbers = self._body(read)
        parts = {"body": body, "hand": HAND21, "face": FACE68}
        fields = {"keypoints": "body", **WHOLE}
        present = {
            f: {p for a in r["annotations"] for k, p in fields.items() if _told(a.get(k))} for f, r in read.items()
        }
        if unknown := sorted(set(self.labelled) - {f.stem for f in read}):
            raise DataError(
                "task.data.labelled", f"there is no file {some(unknown)}", expected=some([f.stem for f in read])
            )
        for file in read:
            said = self.labelled.get(file.stem)
            if said is not None:
                if strange := [p for p in said if p not in parts]:
                    raise DataError(f"task.data.labelled.{file.stem}", given=some(strange), expected=some(list(parts)))
                present[file] = set(said)
        kept = [p for p in parts if any(p in told for told in present.values())]
        if not kept:
            raise DataError("task.data.path", "no annotation has keypoints that are labelled", given=self.path)
        found: list[Posed] = []
        split: list[str] = []
        bad: list[str] = []
        empty = 0
        for file, r in read.items():
            of: dict[Any, list[Any]] = {}
            for a in r["annotations"]:
                if (numbers is None or a.get("category_id") in numbers) and (self.crowd or not a.get("iscrowd")):
                    of.setdefault(a["image_id"], []).append(a)
            name_of = split_of(file.stem) or next(
                (s for w in file.stem.split("_") if (s := split_of(w.rstrip("0123456789")))), "train"
            )
            for image in r["images"]:
                name = Path(str(image["file_name"])).name
                try:
                    x = decode(pictures[name].read_bytes(), size=size)
                except KeyError:
                    bad.append(f"{name}: is not there")
                    continue
                except (Unreadable, OSError) as error:
                    bad.append(f"{name}: {error}")
                    continue
                rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {p: [] for p in kept}
                for a in of.get(image["id"], []):
                    for key, part in fields.items():
                        if part in present[file] and part in kept and key in a:
                            one = self._pose(a, key, len(parts[part].joints), file)
                            if one is not None and bool((one[2][2:] - one[2][:2] > 0).all()):
                                rows[part].append(one)
                            elif one is not None:
                                empty += 1
                joined = {p: [torch.stack(t) for t in zip(*v, strict=True)] for p, v in rows.items() if v}
                none = (torch.zeros(0, 1, 5), torch.zeros(0, 1, 2, dtype=torch.bool), torch.zeros(0, 4))
                made = {
                    p: joined.get(p) or [n.expand(0, len(parts[p].joints), -1) if n.ndim == 3 else n for n in none]
                    for p in kept
                }
                found.append(
                    in_square(
                        Posed(
                            x,
                            {p: m[0] for p, m in made.items()},
                            {p: m[1] for p, m in made.items()},
                            frozenset(present[file]) & frozenset(kept),
                            {p: m[2] for p, m in made.items()},
                        ),
                        size,
                    )
                )
                split.append(name_of)
        if bad:
            raise DataError(
                "task.data.images", f"{counted(len(bad), 'image')} cannot be used: {some(bad, 5)}", given=str(folder)
            )
        notes = [f"{counted(empty, 'pose')} without extent left out"] if empty else []
        return pose_splits(found, split, {p: parts[p] for p in kept}, notes, **self._links(body, kept))

    def _read(self, file: Path) -> Any:
        try:
            return read_json(file)
        except (OSError, ValueError) as error:
            raise DataError(str(file), f"cannot be read: {error}") from None

    def _body(self, read: Mapping[Path, Any]) -> tuple[Skeleton, set[int] | None]:
        """The points of the category that has some, and its numbers."""
        having = {str(c["name"]): c for r in read.values() for c in r.get("categories", []) if c.get("keypoints")}
        if self.category is not None and self.category not in having:
            raise DataError(
                "task.data.category", given=self.category, expected=f"one with keypoints: {some(sorted(having))}"
            )
        if not having:
            return COCO17, None
        if len(having) > 1 and self.category is None:
            raise DataError("task.data.category", "several categories have keypoints", expected=some(sorted(having)))
        name = self.category or next(iter(having))
        joints = tuple(str(j) for j in having[name]["keypoints"])
        edges = tuple((int(a) - 1, int(b) - 1) for a, b in having[name].get("skeleton", []))
        mirrored = [j.replace("left", "\0").replace("right", "left").replace("\0", "right") for j in joints]
        flip = tuple(joints.index(j) for j in mirrored) if set(mirrored) == set(joints) else ()
        numbers = {int(c["id"]) for r in read.values() for c in r.get("categories", []) if str(c["name"]) == name}
        return Skeleton(joints, edges if all(0 <= j < len(joints) for e in edges for j in e) else (), flip), numbers

    def _pose(self, a: Mapping[str, Any], key: str, joints: int, file: Path) -> tuple[Tensor, Tensor, Tensor] | None:
        """A pose [J, 5], what is known of it [J, 2] and its box [4]; ``None`` where no point is labelled."""
        place = f"{file} annotation {a.get('id')}"
        flat, known = _numbers(a[key], joints, 3, f"{place} {key}")
        deep, knows = torch.zeros(joints, 3), torch.zeros(joints, dtype=torch.bool)
        if a.get(f"{key}_3d") is not None:
            deep, knows = _numbers(a[f"{key}_3d"], joints, 4, f"{place} {key}_3d")
        if not bool(known.any() | knows.any()):
            return None
        given = a.get("bbox" if key == "keypoints" else BOXES[key])
        if given is not None and len(given) == 4 and min(float(v) for v in given[2:]) > 0:
            left, top, wide, high = (float(v) for v in given)
            box = torch.tensor([left, top, left + wide, top + high])
        else:
            from limbeck.functional.keypoints import pose_boxes

            box = pose_boxes(flat, 0.1, known)
        return torch.cat([flat, deep], -1), torch.stack([known, knows], -1), box

    def _links(self, body: Skeleton, kept: list[str]) -> dict[str, Any]:
        """How hands and faces belong to bodies, where the body has such joints."""
        names, links = list(body.joints), {}
        if {"body", "hand"} <= set(kept) and {"left_wrist", "right_wrist"} <= set(names):
            links["wrists"] = ["body", names.index("left_wrist"), names.index("right_wrist"), "hand", 0]
        head = next((j for j in ("head", "nose") if j in names), None)
        if {"body", "face"} <= set(kept) and head is not None:
            links["head"] = ["body", names.index(head), "face"]
        return links


def _told(values: Any) -> bool:
    """Whether any point of a flat list x, y, v, ... is labelled."""
    return bool(values) and any(float(v) > 0 for v in values[2::3])


def _numbers(values: Any, joints: int, width: int, place: str) -> tuple[Tensor, Tensor]:
    """A flat list as points [J, width - 1], 0 where the last number says that one is not labelled, and that [J]."""
    try:
        rows = torch.from_numpy(np.asarray(values, dtype=np.float32).reshape(-1, width).copy())
    except (TypeError, ValueError):
        raise DataError(place, "is no list of numbers", expected=f"{joints * width} numbers") from None
    if len(rows) != joints:
        raise DataError(place, given=f"{len(rows)} points", expected=f"{joints}")
    known = (rows[:, -1] > 0) & rows.isfinite().all(-1)
    return torch.where(known[:, None], rows[:, :-1], 0.0), known


__all__ = ["CocoKeypoints"]
