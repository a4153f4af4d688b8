"""Rows of the whole batch, over micro-batches and processes, with gradients to whoever made them.

A batch that is cut has its parts' graphs apart from each other. Each part's terms are computed on one leaf tensor that
holds all rows; the gradient that arrives there, summed over parts and processes, is what each part's own rows are then
differentiated with, together with its own terms. So every part's network is passed backwards once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.engine import distributed as dist
from limbeck.errors import MethodError
from limbeck.grammar.method import Gather, Gathered


class Rows:
    """What the Gathers of one step have put together.

    Attributes:
        whole: by a name of its own each, the leaf that holds all rows; empty where none has a graph.
    """

    def __init__(self) -> None:
        self.whole: dict[str, Tensor] = {}
        self._parts: dict[str, list[Tensor]] = {}  # the micro-batches' own rows, with their graphs
        self._own: dict[str, list[slice]] = {}

    def gather(self, given: Sequence[Gather]) -> list[Gathered]:
        """All rows, once for each micro-batch of this process: they differ in which of them are its own.

        Raises:
            MethodError: micro-batches give other names, or rows of another shape.
        """
        rows: dict[str, Tensor] = {}
        own: list[dict[str, slice]] = [{} for _ in given]
        for name in given[0]:
            if any(g.keys() != given[0].keys() or g[name].shape[1:] != given[0][name].shape[1:] for g in given):
                raise MethodError(
                    f"Gather({name}=)",
                    "micro-batches give other rows",
                    given=" and ".join(", ".join(f"{n} {list(t.shape)}" for n, t in g.items()) for g in given),
                    expected="the same names and the same shape but for the first axis",
                )
            parts = [g[name] for g in given]
            every = dist.rows_of_all(torch.cat([p.detach() for p in parts]))
            start = sum(len(e) for e in every[: dist.rank()])
            rows[name] = torch.cat(every)
            for found, part in zip(own, parts, strict=True):
                found[name] = slice(start, start + len(part))
                start += len(part)
            if any(p.requires_grad for p in parts):
                key = f"{name} {len(self.whole)}"
                self.whole[key] = rows[name].requires_grad_(True)
                self._parts[key] = parts
                self._own[key] = [found[name] for found in own]
        return [Gathered(rows, found) for found in own]

    def behind(self) -> dict[int, list[Tensor]]:
        """What stands behind each leaf, by its ``id``."""
        return {id(leaf): self._parts[key] for key, leaf in self.whole.items()}

    def backward(self, losses: Sequence[Tensor | None], device: torch.device) -> list[Tensor]:
        """The backward pass of one phase: of each micro-batch's loss, and of what all of them ask of its rows.

        Returns the losses, detached. Rows that no loss of the phase depends on keep their graphs for a later one.
        """
        arrived: dict[str, Tensor] = {}
        used = dict.fromkeys(self.whole, 0)
        for loss in losses:
            if loss is None or not loss.requires_grad:
                continue
            keys = list(self.whole)
            found = torch.autograd.grad(loss, [self.whole[k] for k in keys], retain_graph=True, allow_unused=True)
            for key, gradient in zip(keys, found, strict=True):
                if gradient is not None:
                    arrived[key] = arrived[key] + gradient if key in arrived else gradient
                    used[key] = 1
        for key, anywhere in zip(used, dist.largest_over_ranks(list(used.values())), strict=True):
            if anywhere:
                mine = arrived[key] if key in arrived else torch.zeros_like(self.whole[key])
                arrived[key] = dist.sum_over_ranks(mine.contiguous())
        for j, loss in enumerate(losses):
            tensors: list[Tensor] = []
            gradients: list[Tensor | None] = []
            if loss is not None and loss.requires_grad:
                tensors, gradients = [loss], [None]
            for key, gradient in arrived.items():
                if self._parts[key][j].requires_grad:
                    tensors.append(self._parts[key][j])
                    gradients.append(gradient[self._own[key][j]])
            if tensors:
                torch.autograd.backward(tensors, gradients)
        for leaf in self.whole.values():
            leaf.grad = None
        return [torch.zeros((), device=device) if loss is None else loss.detach() for loss in losses]


__all__ = ["Rows"]
