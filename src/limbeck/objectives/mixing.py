"""Full, partial and scheduled mixup, and temperatures that follow from the logits (MIX-KD, Choi et al. 2023)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.functional.mixing import mix_pairs, partial_shares
from limbeck.grammar.method import Batch, Context, Method, Query
from limbeck.grammar.settings import Fraction, Positive, settings
from limbeck.grammar.task import Task
from limbeck.objectives.queries import _check_labels, _mixable, images_of

NAMES = {"query": {"partial-mixup": "PartialMixup"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Temperature = Literal["method", "std", "std-detached"]


def check_std(task: Task, argument: str) -> None:
    """Refuse per-item temperatures for two classes.

    Raises:
        ConfigError: with two classes the scaled logits are always the same.
    """
    if task.labels is not None and len(task.labels) < 3:
        raise ConfigError(
            argument,
            "logits of two classes, divided by their standard deviation, are always 0.707 and -0.707 about their mean",
            given=f"{len(task.labels)} classes",
            expected="3 classes or more",
            remedy=f"set {argument} to a number (method mixup-kd) or to method (query partial-mixup)",
        )


@settings
class PartialMixup(Query):
    """Mixup with a share of its own for each item, of all items or of a part of them; images and labels.

    Args:
        unmixed: the share of the batch that is not mixed; 0 is full mixup, 1 is none.
        unmixed_end: the share at the end of training: it changes linearly over the steps; ``null`` keeps ``unmixed``.
        alpha: of the Beta distribution of the shares.
        replacement: draw the unmixed items with replacement, as the released code does: of 0.9 N draws about 41 % of the
            items are missed and stay mixed, instead of 10 %.
        per_item: one share for each item, or one for the whole batch.
        partners: ``own`` mixes each item with another one; ``independent`` draws both items of a pair, as the released
            code does (items that are not mixed then change places, with their labels and numbers).
        temperature: of every distillation loss on logits: the ``method``'s; ``std`` divides the logits of student and
            teacher by their own standard deviation in training; ``std-detached`` without gradient through it.
        classes: number of classes, for the soft labels; ``null`` takes the task's.
    """

    changes_labels = True

    coupled = "mixes each item with another of the batch"

    unmixed: Fraction = 0.9
    unmixed_end: Fraction | None = None
    alpha: Positive = 1.0
    replacement: bool = False
    per_item: bool = True
    partners: Literal["own", "independent"] = "own"
    temperature: Temperature = "method"
    classes: Annotated[int, Ge(2)] | None = None

    def accept(self, task: Task) -> None:
        """Images with labels, of as many classes as the task has."""
        _check_labels(task, "partial-mixup", self.classes)
        if self.temperature != "method":
            check_std(task, "temperature")

    def attach(self, method: Method[Any]) -> None:
        """With ``temperature=std``: scale the logits of student and teacher, wherever the method uses them."""
        if self.temperature == "method":
            return
        way: Any = "through" if self.temperature == "std" else "detached"
        for name in ("student", "teacher"):
            if name in method.roles:
                method.roles[name].contract = method.roles[name].contract.with_(by_std=way)

    def share(self, ctx: Context) -> float:
        """The share of unmixed items at this step."""
        if self.unmixed_end is None:
            return self.unmixed
        done = ctx.step / max(1, ctx.total - 1)
        return self.unmixed + (self.unmixed_end - self.unmixed) * done

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Mixed images and soft labels."""
        x = images_of(batch, "partial-mixup")
        y = _mixable(batch, ctx, "partial-mixup", self.classes)
        n, rng = len(x), ctx.draws.numpy("partial-mixup")
        lam = torch.as_tensor(rng.beta(self.alpha, self.alpha, n if self.per_item else 1)).expand(n)
        drawn = int(self.share(ctx) * n + 1e-9)  # 0.29 * 100 is 28.999...
        unmixed = rng.integers(n, size=drawn) if self.replacement else rng.permutation(n)[:drawn]
        first = torch.as_tensor(rng.permutation(n)) if self.partners == "independent" else torch.arange(n)
        second = torch.as_tensor(rng.permutation(n))
        lam = partial_shares(lam.clone(), torch.as_tensor(unmixed))
        lam, first, second = (t.to(x.device) for t in (lam, first, second))
        moved = batch
        if self.partners == "independent":
            moved = {k: v[first] if isinstance(v, Tensor) and v.ndim and len(v) == n else v for k, v in batch.items()}
        return {**moved, "x": mix_pairs(x, lam, first, second), "y": mix_pairs(y, lam, first, second)}


__all__ = ["PartialMixup"]
