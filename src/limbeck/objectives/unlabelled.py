"""Items without labels beside labelled ones, for methods whose terms read no labels but through the task's own loss."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Context, Query
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.task import Task

NAMES = {"query": {"unlabelled": "WithUnlabelled"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class WithUnlabelled(Query):
    """Unlabelled items beside the labelled ones of a batch, ``times`` of them for each, drawn by its key and the step.

    The teacher answers them as it does the others. ``batch["labelled"]`` marks the labelled items: the task's loss counts
    those alone. The student that is trained alone as the baseline sees labelled items only.

    Args:
        times: unlabelled items for each labelled one.
    """

    alone: ClassVar[bool] = False

    times: Count = 1

    def accept(self, task: Task) -> None:
        """The task has unlabelled items, and a loss that can leave them out.

        Raises:
            ConfigError: which of the two it has not.
        """
        if not task.masks_unlabelled:
            raise ConfigError(
                "task.unlabelled",
                f"the loss of {type(task).__name__.lower()} cannot leave out items without labels",
                expected="task=classification",
                remedy="leave it out",
            )
        if getattr(task, "unlabelled_items", None) is None:
            raise ConfigError(
                "unlabelled", "the task has no unlabelled items", remedy="name them: task.unlabelled=folder:PATH"
            )

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """The batch [N (1 + times), ...], the labelled items first."""
        pool, items = ctx.task.unlabelled_items, batch["item"]  # type: ignore[attr-defined]
        ids = ctx.draws.randint("unlabelled", items, len(pool), (self.times,)).flatten().cpu()  # [N times]
        x = pool.fetch(ids)["x"].to(batch["x"])
        more = {"x": x, "item": len(ctx.task.train) + ids.to(items)}  # no labelled item has these keys
        found = dict(batch)
        for name, value in batch.items():
            if isinstance(value, Tensor) and value.ndim and len(value) == len(items):
                rest = more.get(name, torch.zeros(len(ids), *value.shape[1:], dtype=value.dtype, device=value.device))
                found[name] = torch.cat([value, rest])
        found["labelled"] = torch.arange(len(found["x"]), device=x.device) < len(items)
        return found


__all__ = ["WithUnlabelled"]
