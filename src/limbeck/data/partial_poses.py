"""Images of which only some parts' poses are told, those of one part alone, and the poses that stand for a part's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.items import Items, Part, digest
from limbeck.data.keypoints import PoseItems, Skeleton
from limbeck.errors import ConfigError, DataError
from limbeck.functional.keypoints import pose_boxes
from limbeck.grammar.method import Batch
from limbeck.grammar.random import bits, key_of

EMPTY = 1e-3
"""Boxes of poses with a side of fewer pixels are none."""


def source_of(items: Any) -> PoseItems:
    """The images that splits are parts of."""
    while not isinstance(items, PoseItems):
        items = items.data
    return items


class Boxed:
    """Images with the box of every pose: that of its joints, made wider by a tenth on each side; poses without one left out.

    Args:
        data: images with poses.
        told: bool [N, P], parts whose labels are told; of the others nothing is.
        absent: images are said to be labelled for parts that are not told: what is not labelled is not there.
    """

    def __init__(self, data: Items, told: Tensor | None = None, absent: bool = False) -> None:
        self.data, self.shape, self.absent = data, data.shape, absent
        self.parts = source_of(data).parts
        self.told = data.y > 0 if told is None else told & (data.y > 0)
        self.y = self.told.float()

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, items: Tensor) -> Batch:
        """As `PoseItems`, with ``box:P`` and ``labelled`` as it is told."""
        batch = self.data.fetch(items)
        told = self.told[items]
        batch["labelled"] = torch.ones_like(told) if self.absent else told
        for i, p in enumerate(self.parts):
            pose, known, where = (batch[f"{n}:{p}"] for n in ("pose", "known", "where"))
            tight = pose_boxes(pose[..., :2], 0.1, known[..., 0])
            flat = known[..., 0].any(-1, keepdim=True)
            box = torch.where(flat, tight, batch[f"box:{p}"])
            where = where & told[:, i : i + 1] & ((box[..., 2:] - box[..., :2]) > EMPTY).all(-1)
            batch |= {
                f"pose:{p}": pose * where[..., None, None],
                f"known:{p}": known & where[..., None, None],
                f"where:{p}": where,
                f"box:{p}": box * where.unsqueeze(-1),
            }
        return batch

    @property
    def fingerprint(self) -> str:
        """Of the images, and of what is told."""
        return digest(self.data.fingerprint, self.told, self.absent)

    def flat(self) -> int:
        """How many told poses have no extent, and are left out."""
        lost = 0
        for ids in torch.arange(len(self)).split(512):
            whole, kept = self.data.fetch(ids), self.fetch(ids)
            for i, p in enumerate(self.parts):
                lost += int((whole[f"where:{p}"] & self.told[ids, i : i + 1] & ~kept[f"where:{p}"]).sum())
        return lost


class OnePart:
    """The images that are labelled for one part, and its poses alone.

    Args:
        data: images with poses of several parts.
        part: its name.
    """

    def __init__(self, data: Items, part: str) -> None:
        parts = source_of(data).parts
        self.part, i = part, list(parts).index(part)
        self.data = Part(data, (data.y[:, i] > 0).nonzero()[:, 0])
        self.y, self.shape = self.data.y[:, i : i + 1], data.shape
        self.parts = {part: parts[part]}

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, items: Tensor) -> Batch:
        """``x``, ``labelled`` (all true, [n, 1]) and what is told of the part."""
        batch = self.data.fetch(items)
        own: Batch = {"x": batch["x"], "labelled": torch.ones(len(items), 1, dtype=torch.bool)}
        return own | {k: v for k, v in batch.items() if k.endswith(f":{self.part}")}

    @property
    def fingerprint(self) -> str:
        """Of the images and the part."""
        return digest(self.data.fingerprint, self.part)


def dealt(data: Items, *key: Any) -> Tensor:
    """One part for each image, bool [N, P]: as many for each, whatever the images show."""
    n, p = data.y.shape
    order = bits(key_of("dealt", *key), torch.arange(n), 1)[:, 0].argsort(stable=True)
    told = torch.zeros(n, p, dtype=torch.bool)
    told[order, torch.arange(n) % p] = True
    return told


class AnchorPoses:
    """The parts of a task, and poses that stand for theirs.

    Args:
        data: training images, whose told poses count.
        parts: name -> joints.
    """

    def __init__(self, data: Items, parts: Mapping[str, Skeleton]) -> None:
        self.data = data
        self.joints: Mapping[str, int] = {n: len(s.joints) for n, s in parts.items()}
        self._made: dict[tuple[str, int], Tensor] = {}

    def anchors(self, part: str, count: int) -> Tensor:
        """[count, J, 5]: means of clusters of the part's poses, in space where any pose is known there, else in the plane.

        Raises:
            ConfigError: there are fewer different poses.
        """
        if (part, count) not in self._made:
            rows = [self.data.fetch(ids) for ids in torch.arange(len(self.data)).split(512)]
            pose, known, box = (
                torch.cat([b[f"{n}:{part}"][b[f"where:{part}"]] for b in rows]) for n in ("pose", "known", "box")
            )
            if not len(pose):
                raise DataError("task.data", f"no training image shows a {part}", expected="poses of every part")
            self._made[part, count] = anchor_poses(pose, known, box, count, part)
        return self._made[part, count].clone()


def anchor_poses(pose: Tensor, known: Tensor, boxes: Tensor, count: int, part: str = "part") -> Tensor:
    """Means [count, J, 5] of clusters of poses [G, J, 5], x and y in the unit box; joints that none has are in its middle.

    Raises:
        ConfigError: fewer than ``count`` different poses.
    """
    from sklearn.cluster import KMeans

    size = (boxes[:, 2:] - boxes[:, :2]).clamp_min(EMPTY).unsqueeze(1)
    made = torch.cat([(pose[..., :2] - boxes[:, None, :2]) / size, pose[..., 2:]], -1).double()
    where = torch.cat([known[..., :1].expand(-1, -1, 2), known[..., 1:].expand(-1, -1, 3)], -1)
    spatial = where[..., 2].any(-1)
    if bool(spatial.any()):
        made, where = made[spatial], where[spatial]
    rest = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64)

    def mean(rows: Tensor) -> Tensor:
        """Over those in which a value is known."""
        n = where[rows].sum(0)
        return torch.where(n > 0, (made[rows] * where[rows]).sum(0) / n.clamp_min(1), rest.expand(made.shape[1:]))

    everyone = mean(torch.arange(len(made)))
    filled = torch.where(where, made, everyone)
    rows = (filled[..., 2:] if bool(spatial.any()) else filled[..., :2]).flatten(1).numpy()
    different = len(np.unique(rows.round(9), axis=0))
    if different < count:
        raise ConfigError(
            f"student.anchors.{part}",
            given=count,
            expected=f"at most {different}, as many as there are different poses",
        )
    cluster = torch.from_numpy(KMeans(count, n_init=3, random_state=0).fit(rows).labels_.astype(np.int64))
    found = []
    for k in range(count):
        ids = (cluster == k).nonzero()[:, 0]
        some = where[ids].any(0)
        found.append(torch.where(some, mean(ids), everyone))
    return torch.stack(found).float()


__all__ = ["AnchorPoses", "Boxed", "OnePart", "anchor_poses", "dealt", "source_of"]
