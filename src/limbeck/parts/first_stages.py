"""Two detectors compared by their first stages: pyramids brought to one width, and what stands where an object may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.functional.richness import richness_terms
from limbeck.grammar.method import Batch
from limbeck.grammar.role import Role
from limbeck.networks.two_stage import is_two_stage
from limbeck.networks.vision_transformer import first_stage

TAPS = ("rpn.head.conv:in:all", "rpn.head.cls_logits:all")
"""Where a two-stage detector of torchvision shows the maps of its pyramid, and their objectness, level by level."""


class Adapted(nn.Module):
    """A 3x3 convolution for each level of a pyramid.

    Args:
        before, after: channels of the levels.
    """

    def __init__(self, before: Sequence[int], after: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(before, after, strict=True))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [N, D_i, h, w] to [N, E_i, h, w]."""
        return [level(f.float()) for level, f in zip(self.levels, maps, strict=True)]


def widths_of(student: Role, teacher: Role, x: Tensor) -> tuple[list[int], list[int]]:
    """Channels of both pyramids, level by level.

    Args:
        student, teacher: the roles of two detectors.
        x: a few images.

    Raises:
        ConfigError: one has no first stage, or levels have different places or anchors.
    """
    shown = []
    for name, role in (("student", student), ("teacher", teacher)):
        if not is_two_stage(role.module):
            raise ConfigError(name, "has no first stage", expected="a two-stage detector, as vit or torchvision's")
        near = x.to(next(role.module.parameters()).device)
        with torch.no_grad():
            shown.append(first_stage(role.module, role.contract.inputs(near)))
    shapes = [[(*f.shape[2:], z.shape[1]) for f, z in zip(s["features"], s["objectness"], strict=True)] for s in shown]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            "student",
            "pyramids and anchors differ: rows, columns and anchors of each level",
            given=shapes[0],
            expected=f"the teacher's {shapes[1]}",
            remedy="give both as many levels (levels), over the same images",
        )
    s, t = ([f.shape[1] for f in side["features"]] for side in shown)
    return s, t


def asked(batch: Batch) -> Batch:
    """A batch of which `fed` takes the first stage alone."""
    return {**batch, "first_stage": True}


def fed(module: Any, batch: Batch) -> Any:
    """What a detector's first stage says of a batch (`first_stage`): nothing behind it is run."""
    return first_stage(getattr(module, "_orig_mod", module), batch["x"])


def richly(
    maps: Sequence[Tensor], acts: Mapping[str, Any], shown: Mapping[str, Sequence[Tensor]]
) -> tuple[dict[str, Tensor], Tensor]:
    """What is compared of every image where the teacher sees objects, level by level.

    Args:
        maps: the student's pyramid, brought to the teacher's channels.
        acts: what the student shows at `TAPS`.
        shown: what `first_stage` says of the teacher.

    Returns:
        ``features`` and ``objectness``, weighted sums over places [levels, N]; and the sums of the weights [levels], over
        which the whole batch's are divided (`limbeck.functional.richness.richness_mean`).
    """
    sides = (maps, shown["features"], acts[TAPS[1]], shown["objectness"])
    levels = [richness_terms(*level) for level in zip(*sides, strict=True)]
    sums = {
        name: torch.stack([(getattr(level, name) * level.weight).sum((1, 2)) for level in levels])
        for name in ("features", "objectness")
    }
    return sums, torch.stack([level.weight.sum() for level in levels])
