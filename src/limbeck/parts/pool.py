"""Images that join the task's own without a label: their inputs as one set, near-duplicates, teachers that normalise by batches.

What SSLD's mining does with an unlabelled pool, and what its teacher does with a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.data.items import digest
from limbeck.grammar.method import Batch, Data


class Inputs:
    """Several sets as one, one after another, of which only ``x`` is fetched: nothing can read a label of them.

    Args:
        sets: at least one; all with inputs of one shape.

    Example:
        >>> from limbeck.data.items import ArrayData
        >>> one = ArrayData(torch.zeros(2, 3), torch.tensor([0, 1]))
        >>> list(Inputs(one, one).fetch(torch.tensor([3, 0]))), len(Inputs(one, one))
        (['x'], 4)
    """

    def __init__(self, *sets: Data) -> None:
        self.sets = sets
        self.ends = torch.tensor([len(s) for s in sets]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def fetch(self, items: Tensor) -> Batch:
        """The inputs ``{"x": float32 [n, ...]}``, in the order of ``items``."""
        whose = torch.bucketize(items, self.ends, right=True)
        places, parts = [], []
        for k in whose.unique().tolist():
            mine = (whose == k).nonzero()[:, 0]
            places.append(mine)
            parts.append(self.sets[k].fetch(items[mine] - int(self.ends[k]) + len(self.sets[k]))["x"])
        return {"x": torch.cat(parts)[torch.cat(places).argsort()]}

    @property
    def fingerprint(self) -> str:
        """Hash of the sets, in order."""
        return digest("inputs", *(s.fingerprint for s in self.sets))


def nearest_cosine(features: Tensor, others: Tensor) -> Tensor:
    """The largest cosine similarity of each feature to any of ``others``, in chunks; -1 where there are none.

    Args:
        features: ``[M, D]``.
        others: ``[H, D]``.

    Returns:
        Values in [-1, 1], float32 ``[M]``.

    Example:
        >>> nearest_cosine(torch.tensor([[2.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])).tolist()
        [1.0, 0.0]
    """
    if not len(others) or not len(features):
        return torch.full((len(features),), -1.0, device=features.device)
    unit = nn.functional.normalize(others.flatten(1).float(), dim=1)
    parts = [
        (nn.functional.normalize(part.flatten(1).float(), dim=1) @ unit.T).amax(1)
        for part in features.split(max(1, 2**24 // len(others)))
    ]
    return torch.cat(parts).clamp(-1, 1)


def normalising(module: Any) -> list[_BatchNorm]:
    """The BatchNorm layers of a network that keep running statistics."""
    found = module.modules() if isinstance(module, nn.Module) else ()
    return [m for m in found if isinstance(m, _BatchNorm) and m.track_running_stats and m.running_mean is not None]


@contextmanager
def batch_statistics(module: Any) -> Iterator[None]:
    """Let BatchNorm normalise by the batch for a while, and leave its running statistics as they are.

    Dropout and the like keep their mode.
    """
    layers = [(m, m.training) for m in normalising(module)]
    for m, _ in layers:
        m.training, m.track_running_stats = True, False  # so it uses the batch's statistics and keeps none of them
    try:
        yield
    finally:
        for m, was in layers:
            m.training, m.track_running_stats = was, True


def shown_images(data: Data, items: Tensor) -> list[Any]:
    """Images of a set as a report shows them: nested lists of whole numbers 0 to 255 ``[n, C, H, W]``.

    Args:
        data: whose inputs lie from 0 to 1; those that are no images of one or three channels are not shown.
        items: which of them.
    """
    shape = data.shape  # type: ignore[attr-defined]
    if len(shape) != 3 or shape[0] not in (1, 3) or not len(items):
        return []
    found: list[Any] = data.fetch(items)["x"].clamp(0, 1).mul(255).round().long().tolist()
    return found


__all__ = ["Inputs", "batch_statistics", "nearest_cosine", "normalising", "shown_images"]
