"""Images with keypoints, mirrored: points, poses in space and boxes with them, and left joints for right ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Context, Query
from limbeck.grammar.settings import Fraction, Natural, settings
from limbeck.grammar.task import Task

NAMES = {"query": {"flip-poses": "FlipPoses"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


def mirrored_pose(pose: Tensor, flip: tuple[int, ...], width: int) -> Tensor:
    """Poses [..., J, 2 or 5] in an image of so many pixels as its mirror image shows them; joints change sides.

    Example:
        >>> mirrored_pose(torch.tensor([[1.0, 5, 2, 0, 0], [4, 6, -1, 0, 0]]), (1, 0), 10).tolist()
        [[6.0, 6.0, 1.0, 0.0, 0.0], [9.0, 5.0, -2.0, 0.0, 0.0]]
    """
    turned = pose[..., list(flip), :].clone()
    turned[..., 0] = width - turned[..., 0]
    if pose.shape[-1] == 5:
        turned[..., 2] = -turned[..., 2]
    return turned


@settings
class FlipPoses(Query):
    """Mirror left to right, with probability one half, all keypoints with the image.

    Args:
        probability: of mirroring.
        views: draws repeat after this many passes (so a cache can hold them); 0: never.
    """

    probability: Fraction = 0.5
    views: Natural = 0

    def accept(self, task: Task) -> None:
        """Keypoints whose mirror images are known.

        Raises:
            ConfigError: the task has none, or does not know which joint becomes which.
        """
        layouts = _layouts(task)
        if not layouts:
            raise ConfigError("queries.flip-poses", given=type(task).__name__, expected="a task of keypoints or poses")
        unknown = [n for n, flip in layouts.items() if not flip]
        if unknown:
            raise ConfigError(
                "queries.flip-poses",
                f"nothing says which joints of {', '.join(unknown)} are each other's mirror images",
                remedy="name them with task.data.flip, or choose parts that hold both sides",
            )

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Mirrored images and keypoints where the draw says so."""
        view = batch["view"] % self.views if self.views else batch["view"]
        u = ctx.draws.anywhere().rand("flip", batch["item"] * 1_000_003 + view)
        turned = u < self.probability
        return mirrored(batch, turned, _layouts(ctx.task))


def _layouts(task: Any) -> dict[str, tuple[int, ...]]:
    """Part -> the joint that each becomes; ``points`` for a task of one pose."""
    if hasattr(task, "parts"):
        return {n: s.flip for n, s in task.parts.items()}
    return {"points": task.skeleton.flip} if hasattr(task, "skeleton") else {}


def mirrored(batch: Batch, turned: Tensor, layouts: Mapping[str, tuple[int, ...]]) -> Batch:
    """A batch whose items of ``turned`` [N] are mirrored."""
    made, wide = dict(batch), batch["x"].shape[-1]

    def where(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(turned.view(-1, *[1] * (old.ndim - 1)), new, old)

    made["x"] = where(batch["x"].flip(-1), batch["x"])
    for name, flip in layouts.items():
        if name == "points":
            made["points"] = where(mirrored_pose(batch["points"], flip, wide), batch["points"])
            made["where"] = where(batch["where"][:, list(flip)], batch["where"])
            continue
        made[f"pose:{name}"] = where(mirrored_pose(batch[f"pose:{name}"], flip, wide), batch[f"pose:{name}"])
        for key in (f"known:{name}", f"source:{name}"):
            if key in batch:
                made[key] = where(batch[key][:, :, list(flip)], batch[key])
        box = batch[f"box:{name}"]
        left, top, right, low = box.unbind(-1)
        seen = batch[f"where:{name}"].unsqueeze(-1)
        made[f"box:{name}"] = where(torch.stack([wide - right, top, wide - left, low], -1) * seen, box)
    return made


__all__ = ["FlipPoses", "mirrored", "mirrored_pose"]
