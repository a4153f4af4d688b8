"""Items of which some classes have far fewer than others: another source, thinned class by class."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.data.columns import Target
from limbeck.data.items import Part, Splits
from limbeck.data.sources import Digits, Source
from limbeck.data.splits import EmptyClasses, sizes_of, tell_classes
from limbeck.errors import DataError
from limbeck.grammar.random import bits, key_of
from limbeck.grammar.settings import Natural, settings

NAMES = {"source": {"long-tailed": "LongTailed"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


def long_tailed(y: Tensor, classes: int, ratio: float, deal: int = 0) -> Tensor:
    """Which items are left when class sizes fall exponentially from the first class to the last.

    Class c of C keeps ``n_1 ratio^(-c / (C - 1))`` items, rounded, at least one and at most those that it has; n_1 is the
    size of the first class (Cui et al. 2019, arXiv 1901.05555, as for CIFAR-LT).

    Args:
        y: class ids int64 [N].
        classes: C, 2 or more.
        ratio: of the first class to the last, 1 or more.
        deal: 0 takes the classes in their order; any other number shuffles them, and draws other items.

    Returns:
        Sorted ids int64 [n].

    Example:
        >>> y = torch.arange(3).repeat(100)
        >>> torch.bincount(y[long_tailed(y, 3, 100)])
        tensor([100,  10,   1])
    """
    key = ("long-tailed", deal)
    turn = torch.arange(classes)
    if deal:
        turn = bits(key_of(*key, "classes"), turn, 1)[:, 0].argsort(stable=True)
    sizes = torch.bincount(y, minlength=classes)
    share = ratio ** -(torch.arange(classes, dtype=torch.float64) / max(1, classes - 1))
    quota = torch.empty_like(sizes)
    quota[turn] = (sizes[turn[0]] * share).round().long().clamp(min=1)
    quota = torch.minimum(quota, sizes)
    order = bits(key_of(*key, "items"), torch.arange(len(y)), 1)[:, 0].argsort(stable=True)
    mine, grouped = y[order].sort(stable=True)
    rank = torch.empty_like(y)
    rank[order[grouped]] = torch.arange(len(y)) - (sizes.cumsum(0) - sizes)[mine]  # of each item within its class
    return (rank < quota[y]).nonzero()[:, 0]


@settings
class LongTailed(Source):
    """Another source whose training classes become rarer from the first to the last; validation and test items stay all.

    The source is divided first, so a test or validation split that is set aside has its classes' old shares.

    Args:
        source: where the items come from: items of one class each.
        ratio: how many times as many items the first class has as the last: 10, 50 and 100 are usual.
        deal: 0 takes the classes in their order; any other number shuffles which of them are rare, and draws other items.
    """

    paths: ClassVar[tuple[str, ...]] = ()

    source: Source = Digits()
    ratio: Annotated[float, Ge(1)] = 50.0
    deal: Natural = 0

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The source's splits, the training items thinned."""
        return self._thinned(self.source.read(target, size))

    def divided(
        self,
        target: Target = "auto",
        size: int | None = None,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.2,
        empty_classes: EmptyClasses | None = None,
        deal: int = 0,
    ) -> Splits:
        """The source's three splits, the training items thinned."""
        found = self.source.divided(target, size, valid_fraction, test_fraction, empty_classes, deal)
        before = set(tell_classes(found.labels, sizes_of(found)))
        made = self._thinned(found)
        notes = [n for n in made.notes if n not in before]
        return replace(made, notes=notes + tell_classes(made.labels, sizes_of(made)))

    def _thinned(self, found: Splits) -> Splits:
        if found.kind != "label" or not found.labelled:
            raise DataError(
                "task.data.source",
                "a long tail is made of classes",
                given={"label": "no labels", "labels": "several labels an item", "number": "numbers"}[found.kind],
                expected="items of one class each",
            )
        kept = long_tailed(found.train.y, len(found.labels), self.ratio, self.deal)
        said = f"long tail: {len(kept)} of {len(found.train)} training items are kept, ratio {self.ratio:g}"
        if found.test is found.train:  # data that are evaluated as a whole
            return found
        return replace(found, train=Part(found.train, kept), notes=[*found.notes, said])


__all__ = ["LongTailed", "long_tailed"]
