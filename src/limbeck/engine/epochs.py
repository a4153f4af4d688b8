"""Passes through a stage's data: which epoch a step is in, what is done at its door, and which items it goes through.

All of it is a function of the step's number and of what a checkpoint holds: the items of the present epoch where they are
chosen anew, and the last step at whose door was done what is to be done there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import MethodError
from limbeck.grammar.method import Batch, Data, Stage


class Chosen:
    """Some items of data, which keep their numbers: what is recorded by them, and drawn by them, stays theirs.

    Args:
        data: the whole.
        ids: int64 [n]: which of its items, in which order.
    """

    def __init__(self, data: Data, ids: Tensor) -> None:
        self.data, self.ids = data, ids

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, items: Tensor) -> Batch:
        """Items by their place in the choice, with ``item``: their numbers in the whole."""
        ids = self.ids.index_select(0, items)
        return {**self.data.fetch(ids), "item": ids}

    @property
    def fingerprint(self) -> str:
        """That of the whole: what is chosen follows from the rest."""
        return self.data.fingerprint


class Epochs:
    """Where a stage of steps stands in its data.

    Args:
        stage: its data and the number of its steps known.

    Attributes:
        number: of the epoch that is going on.
        first: the step with which it began.
        ids: the items it goes through; ``None`` for all.
        done: the last step at whose door everything was done.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage, self.number, self.first, self.done = stage, 0, 0, -1
        self.ids: Tensor | None = None
        self._items = len(stage.source) if stage.data is not None and stage.source is not None else 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        ids = {} if self.ids is None else {"ids": self.ids}
        return {"number": self.number, "first": self.first, "done": self.done, **ids}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """As a checkpoint has it."""
        self.number, self.first, self.done = (int(saved[k]) for k in ("number", "first", "done"))
        self.ids = saved.get("ids")

    def of(self, step: int) -> int:
        """The epoch of a step: how often the data were gone through before it; of chosen items, how often chosen."""
        if self.stage.choose is not None:
            return self.number + (self.ids is not None and self._next() == step)
        return step * self.stage.batch_size // self._items if self._items else 0

    def _next(self) -> int:
        """The step with which the next choice begins; the first one begins with step 0."""
        if self.ids is None:
            return 0
        return self.first - (-len(self.ids) // self.stage.batch_size)

    def begins(self, step: int) -> bool:
        """Whether an epoch begins with a step."""
        if self.stage.choose is not None:
            return step == self._next()
        return step == 0 or self.of(step) > self.of(step - 1)

    def doors(self, step: int) -> list[Any]:
        """What is to be done before a step, in the order in which the stage names it."""
        if self.done == step:
            return []
        due = (self.begins(step) if every == "epoch" else step % int(every) == 0 for every in self.stage.every)
        return [fn for fn, now in zip(self.stage.every.values(), due, strict=True) if now]

    def until(self, step: int) -> int:
        """The next step, after this one, before which something is to be done, or the stage's last and one."""
        found = [self.stage.total]
        for every in self.stage.every:
            if every != "epoch":
                found.append((step // int(every) + 1) * int(every))
        if self.stage.choose is not None:
            found.append(self._next())
        elif "epoch" in self.stage.every and self._items:
            found.append(-(-(self.of(step) + 1) * self._items // self.stage.batch_size))
        return min(n for n in found if n > step)

    def choose(self, step: int, ids: Any) -> None:
        """A new epoch, through these items.

        Raises:
            MethodError: they are no numbers of the stage's items, or none.
        """
        place = f"stage {self.stage.name!r}.choose"
        if not isinstance(ids, Tensor) or ids.ndim != 1 or ids.dtype != torch.int64:
            given = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise MethodError(place, given=given, expected="the items' numbers, int64 [n]")
        ids = ids.detach().cpu()
        if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= self._items:
            given = f"numbers from {int(ids.min())} to {int(ids.max())}" if len(ids) else "no item"
            raise MethodError(place, given=given, expected=f"at least one item, numbers from 0 to {self._items - 1}")
        self.number, self.first = self.of(step) if self.ids is not None else 0, step
        self.ids = ids

    @property
    def data(self) -> Data | None:
        """What the present epoch goes through."""
        source = self.stage.source
        return source if self.ids is None or source is None else Chosen(source, self.ids)


__all__ = ["Chosen", "Epochs"]
