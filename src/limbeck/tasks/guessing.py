"""Whether a ready teacher answers or only guesses, told from a few hundred labelled items, and where the fault may lie.

Two questions are put to the share of right answers, every class counted alike. Could answers that have nothing to do with
the labels have done as well? That is tried by shuffling the labels. Could a teacher worth learning from, one half way
between guessing and perfection, have done as badly? That is tried by drawing such teachers. Who may well be guessing and
is surely not worth it, is no teacher: outputs in another order than the classes', another normalisation, or weights that
were never loaded look like this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ITEMS = 512
"""How many items a teacher is tried on at most."""

DRAWS = 2000
"""Shuffled labels, and drawn teachers, that it is compared with: enough to tell p < 0.001."""

LUCK, SURE = 0.05, 0.001
"""Above ``LUCK`` guessing may have done it; below ``SURE`` a thing is taken to be ruled out."""


@dataclass(frozen=True)
class Trial:
    """What a trial of a teacher found.

    Attributes:
        score: its mark: for classes the share of right answers, every class counted alike.
        chance: the mark of guessing.
        lucky: how often guessing does as well (p-value).
        useful: how often a teacher half way between guessing and perfection does as badly (p-value).
        items: on how many items.
    """

    score: float
    chance: float
    lucky: float
    useful: float
    items: int

    @property
    def half(self) -> float:
        """The mark half way between guessing and perfection."""
        return (1.0 + self.chance) / 2

    @property
    def guesses(self) -> bool:
        """Whether it is no better than guessing."""
        return self.lucky >= LUCK and self.useful < SURE

    @property
    def weak(self) -> bool:
        """Whether it may be guessing, or is nearer to that than to perfection."""
        return self.lucky >= SURE or self.score < self.half


def spread(classes: Tensor, most: int = ITEMS) -> Tensor:
    """Ids of up to ``most`` items, as many of each class as there are, drawn in a fixed order.

    Args:
        classes: of each item, int [N].

    Example:
        >>> spread(torch.tensor([0] * 90 + [1] * 3), 6).sort().values[-3:]
        tensor([90, 91, 92])
    """
    order = torch.randperm(len(classes), generator=_generator())
    by_class = order[classes[order].argsort(stable=True)]
    sizes = torch.bincount(classes)
    rank = torch.arange(len(classes)) - (sizes.cumsum(0) - sizes)[classes[by_class]]
    return by_class[rank.argsort(stable=True)[:most]].sort().values


def try_classes(guesses: Tensor, truth: Tensor) -> Trial:
    """A trial of answers [N] against classes [N]."""
    weight = _weights(truth)
    # a shuffled answer stands for a shuffled label, and the weights stay with the labels
    shuffled = ((guesses[_shuffles(len(truth))] == truth) * weight).sum(-1)
    return _trial(float(((guesses == truth) * weight).sum()), 1 / len(truth.unique()), shuffled, weight)


def try_labels(logits: Tensor, truth: Tensor) -> Trial | None:
    """A trial of logits [N, C] against yes/no labels [N, C]; ``None`` where no item has both.

    Right is an item whose labels get higher logits on average than those that it has not.
    """
    yes = truth > 0.5
    both = yes.any(1) & ~yes.all(1)
    logits, yes = logits[both].double(), yes[both].double()
    if not len(logits):
        return None
    total = logits.sum(1)

    def right(yes: Tensor) -> Tensor:
        mine, count = (logits * yes).sum(-1), yes.sum(-1)
        return mine / count > (total - mine) / (yes.shape[-1] - count)

    weight = torch.full((len(yes),), 1 / len(yes), dtype=torch.float64)
    shuffled = torch.stack([(right(yes[order]) * weight).sum() for order in _shuffles(len(yes))])
    return _trial(float((right(yes) * weight).sum()), 0.5, shuffled, weight)


def try_numbers(answers: Tensor, truth: Tensor) -> Trial:
    """A trial of numbers [N, K] against numbers [N, K]: the mean of their correlations (0 is guessing)."""

    def standard(x: Tensor) -> Tensor:
        x = x.double() - x.double().mean(0)
        return x / x.norm(dim=0).clamp_min(1e-30)

    a, b = standard(answers), standard(truth)
    n, score = len(a), float((a * b).sum(0).mean())
    shuffled = torch.stack([(a * b[order]).sum(0).mean() for order in _shuffles(n)])
    lucky = _share(shuffled >= score - 1e-12)
    # Fisher's transform: the correlation of n items that truly correlate by one half
    z = (np.arctanh(min(max(score, -1 + 1e-9), 1 - 1e-9)) - np.arctanh(0.5)) * max(n - 3, 0) ** 0.5
    return Trial(score, 0.0, lucky, float(torch.special.ndtr(torch.tensor(z))), n)


def best_order(guesses: Tensor, truth: Tensor, outputs: int) -> tuple[list[int], Trial]:
    """The class that each output seems to stand for, and a trial of the answers read so.

    The assignment is found on one half of the items and tried on the other, and the reverse, so that it cannot flatter
    itself where there are many classes and few items; the one that is returned is found on all.
    """
    from scipy.optimize import linear_sum_assignment

    def assign(g: Tensor, t: Tensor) -> Tensor:
        weight = _weights(t)
        table = torch.zeros(outputs * outputs, dtype=torch.float64).index_add_(0, g * outputs + t, weight)
        return torch.from_numpy(np.asarray(linear_sum_assignment(-table.view(outputs, outputs).numpy())[1]))

    halves = torch.empty(len(truth), dtype=torch.long)
    order = truth.argsort(stable=True)  # so that both halves know every class
    halves[order] = torch.arange(len(truth)) % 2
    read = torch.empty_like(guesses)
    for half in (0, 1):
        there, here = halves != half, halves == half
        read[here] = assign(guesses[there], truth[there])[guesses[here]]
    return assign(guesses, truth).tolist(), try_classes(read, truth)


def _weights(truth: Tensor) -> Tensor:
    """A weight of each item, so that classes weigh alike and all of them together 1."""
    sizes = torch.bincount(truth).double()
    return 1 / sizes[truth] / (sizes > 0).sum()


def _trial(score: float, chance: float, shuffled: Tensor, weight: Tensor) -> Trial:
    right = torch.rand(DRAWS, len(weight), generator=_generator()) < (1 + chance) / 2
    drawn = (right * weight).sum(-1)
    return Trial(score, chance, _share(shuffled >= score - 1e-9), _share(drawn <= score + 1e-9), len(weight))


def _share(of: Tensor) -> float:
    """A p-value from draws: never zero, for the observed case is one of them (Phipson and Smyth, 2010)."""
    return (1 + int(of.sum())) / (1 + len(of))


def _shuffles(n: int) -> Tensor:
    return torch.rand(DRAWS, n, generator=_generator()).argsort(1)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
