"""Which items of a batch made a step infinite or NaN: looked for when the run stops anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.grammar.method import Batch, Terms

NAMED = 16
"""So many items are named in a message."""

Alone = Callable[[Batch], "bool | None"]
"""Whether a batch by itself has a gradient that is not finite; ``None`` where that cannot be asked."""


@dataclass
class Phase:
    """One phase of a step, as it stands between its backward passes and its update.

    Attributes:
        batches: what the micro-batches held.
        shown: their terms; ``None`` for one that had none.
        alone: asks about some of the items by themselves.
    """

    batches: Sequence[Batch]
    shown: Sequence[Terms | None]
    alone: Alone


@dataclass
class Found:
    """What is known of the culprits.

    Attributes:
        items: their ids; those of the whole batch where nothing tells them apart.
        why: ``input``, ``term``, ``gradient``, or empty: nothing tells them apart.
        fields: tensors of the batch that hold them, for ``input``.
        of: how many items the batch had.
    """

    items: list[int]
    why: str
    fields: list[str]
    of: int

    def line(self) -> str:
        """The items in words."""
        named = ", ".join(map(str, self.items[:NAMED])) + (
            f" and {len(self.items) - NAMED} more" if len(self.items) > NAMED else ""
        )
        if not self.why:
            return f"which of its {self.of} items it was cannot be told ({named})"
        what = "item" if len(self.items) == 1 else "items"
        return f"{what} {named} ({len(self.items)} of the batch's {self.of})"


def culprits(phase: Phase) -> Found:
    """The items whose inputs are not finite; if there are none, those whose terms are not; or whose gradients are not."""
    items = [b["item"].reshape(-1).tolist() for b in phase.batches]
    of = sum(map(len, items))

    def named(rows: list[Tensor | None], why: str, fields: Sequence[str] = ()) -> Found | None:
        ids = [i for own, bad in zip(items, rows, strict=True) if bad is not None for i in _chosen(own, bad)]
        return Found(sorted(dict.fromkeys(ids)), why, list(fields), of) if ids else None

    fields = [k for b in phase.batches for k, v in b.items() if isinstance(v, Tensor) and not _finite(v)]
    inputs = [_rows([v for v in b.values() if isinstance(v, Tensor)], len(own)) for b, own in _with(phase, items)]
    values = [_of_terms(t, len(own)) for t, own in zip(phase.shown, items, strict=True)]
    found = named(inputs, "input", sorted(set(fields))) or named(values, "term")
    if found is None and all(t is None or all(_finite(v.values) for v in t.values()) for t in phase.shown):
        found = named([_search(b, len(own), phase.alone) for b, own in _with(phase, items)], "gradient")
    return found or Found([i for own in items for i in own], "", sorted(set(fields)), of)


def _with(phase: Phase, items: list[list[int]]) -> list[tuple[Batch, list[int]]]:
    return list(zip(phase.batches, items, strict=True))


def _chosen(ids: list[int], bad: Tensor) -> list[int]:
    return [i for i, wrong in zip(ids, bad.tolist(), strict=True) if wrong]


def _finite(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex()) or bool(torch.isfinite(x).all())


def _rows(tensors: Sequence[Tensor], n: int) -> Tensor | None:
    """Which of ``n`` items hold something that is not finite, in tensors whose first axis is the items; ``None``: none."""
    bad = torch.zeros(n, dtype=torch.bool)
    for x in tensors:
        if x.ndim and len(x) == n and not _finite(x):
            bad |= ~torch.isfinite(x).reshape(n, -1).all(1).cpu()
    return bad if bool(bad.any()) else None


def _of_terms(terms: Terms | None, n: int) -> Tensor | None:
    """Which items have a term that is not finite; a term that is so everywhere tells nothing."""
    bad = torch.zeros(n, dtype=torch.bool)
    for term in (terms or {}).values():
        for x in (term.values, term.show):
            if x is None or not x.ndim or len(x) != n:
                continue
            kept = x.detach() if term.where is None else torch.where(term.where.bool(), x.detach(), 0.0)
            own = _rows([kept], n)
            if own is not None and (n == 1 or not bool(own.all())):
                bad |= own
    return bad if bool(bad.any()) else None


def _search(batch: Batch, n: int, alone: Alone) -> Tensor | None:
    """Which items have a gradient that is not finite by themselves: halves of halves, so that a few cost little."""
    bad = torch.zeros(n, dtype=torch.bool)
    waiting = [torch.arange(n)]
    while waiting:
        rows = waiting.pop()
        wrong = alone({k: _part(v, n, rows) for k, v in batch.items()})
        if wrong is None:
            return None
        if wrong and len(rows) > 1:
            waiting += rows.tensor_split(2)
        elif wrong:
            bad[rows] = True
    return bad if bool(bad.any()) else None


def _part(value: Any, n: int, rows: Tensor) -> Any:
    if isinstance(value, Tensor) and value.ndim and len(value) == n:
        return value[rows.to(value.device)]
    return value
