"""A space of choices, and regularised evolution in it (Real et al. 2019, arXiv 1802.01548): the oldest one leaves.

    population   so many different members of the space, drawn at random
    a cycle      of so many drawn from the population the best one is the parent; one of its genes changes;
                 the child joins and the oldest member leaves
    the result   everything that was measured, in order

A member is told by its genes: for each of the space's settings the number of the choice that it has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

R = TypeVar("R")

Genes = tuple[int, ...]

ENUMERATED = 1 << 16
"""Members up to which a space is gone through where chance finds nothing new."""

TRIES = 100
"""Draws in a row that may bring nothing new before the space is gone through, or the search ends."""


@dataclass(frozen=True)
class Space:
    """Settings, each with its choices.

    Attributes:
        choices: by the setting's name; each at least one, different from each other.
    """

    choices: Mapping[str, Sequence[Any]]

    @property
    def size(self) -> int:
        """How many members it has."""
        return math.prod(map(len, self.choices.values()))

    def values(self, genes: Genes) -> dict[str, Any]:
        """What a member has of each setting."""
        return {name: of[g] for (name, of), g in zip(self.choices.items(), genes, strict=True)}

    def draw(self, rng: np.random.Generator) -> Genes:
        """A member at random."""
        return tuple(int(rng.integers(len(of))) for of in self.choices.values())

    def mutate(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """A member that differs in one setting; the same where there is but one."""
        sizes = [len(of) for of in self.choices.values()]
        open_ = [i for i, n in enumerate(sizes) if n > 1]
        if not open_:
            return genes
        i = open_[int(rng.integers(len(open_)))]
        other = int(rng.integers(sizes[i] - 1))
        return (*genes[:i], other + (other >= genes[i]), *genes[i + 1 :])

    def shuffled(self, rng: np.random.Generator, most: int | None = None) -> list[Genes]:
        """Members in random order, each once: all of them, or so many; of a large space that many draws."""
        most = self.size if most is None else min(most, self.size)
        if self.size <= ENUMERATED:
            every = list(itertools.product(*(range(len(of)) for of in self.choices.values())))
            return [every[i] for i in rng.permutation(len(every))[:most]]
        found: dict[Genes, None] = {}
        while len(found) < most:
            found[self.draw(rng)] = None
        return list(found)


@dataclass
class History(Generic[R]):
    """What a search has seen.

    Attributes:
        members: genes and record of each that was measured, in order.
        refused: how many were outside the limits.
        complete: whether every member of the space was seen.
    """

    members: list[tuple[Genes, R]] = field(default_factory=list)
    refused: int = 0
    complete: bool = False


def evolve(
    space: Space,
    measure: Callable[[Genes], R | None],
    rate: Callable[[Sequence[R]], NDArray[np.float64]],
    rng: np.random.Generator,
    *,
    population: int = 36,
    tournament: int = 8,
    cycles: int = 1000,
    go_on: Callable[[], bool] = lambda: True,
    worst: int = 0,
) -> History[R]:
    """Regularised evolution. No member is measured twice, and none outside of the limits joins the population.

    Args:
        space: where.
        measure: a member's record; ``None`` where it is outside of the limits.
        rate: how good records are ``[n]``, the larger the better; it is asked of the members of a tournament together.
        rng: every draw.
        population: members at a time.
        tournament: how many are drawn for a parent.
        cycles: how many children are tried.
        go_on: asked before each member whether there is time left.
        worst: a parent is drawn from so many of the worst of its tournament instead (as DisWOT's published script does).
    """
    found: History[R] = History()
    seen: set[Genes] = set()
    alive: list[int] = []

    def fresh(make: Callable[[], Genes]) -> Genes | None:
        for _ in range(TRIES):
            genes = make()
            if genes not in seen:
                return genes
        if len(seen) < space.size <= ENUMERATED:
            return next(g for g in space.shuffled(rng) if g not in seen)
        return None

    def join(genes: Genes) -> bool:
        seen.add(genes)
        record = measure(genes)
        if record is None:
            found.refused += 1
            return False
        alive.append(len(found.members))
        found.members.append((genes, record))
        return True

    while len(alive) < population and len(seen) < space.size and go_on():
        genes = fresh(lambda: space.draw(rng))
        if genes is None:
            break
        join(genes)
    for _ in range(cycles if alive else 0):
        if len(seen) == space.size or not go_on():
            break
        drawn = rng.choice(len(alive), min(tournament, len(alive)), replace=False)
        rated = rate([found.members[alive[i]][1] for i in drawn])
        place = int(np.argsort(rated, kind="stable")[rng.integers(min(worst, len(drawn)))] if worst else rated.argmax())
        parent = found.members[alive[drawn[place]]][0]
        genes = fresh(lambda parent=parent: space.mutate(parent, rng)) or fresh(lambda: space.draw(rng))  # type: ignore[misc]
        if genes is None:
            break
        if join(genes):
            alive.pop(0)
    found.complete = len(seen) == space.size
    return found


def measured(
    order: Sequence[Genes], measure: Callable[[Genes], R | None], go_on: Callable[[], bool] = lambda: True
) -> History[R]:
    """Members measured one after the other: a random search, or the whole space."""
    found: History[R] = History()
    for genes in order:
        if not go_on():
            break
        record = measure(genes)
        if record is None:
            found.refused += 1
        else:
            found.members.append((genes, record))
    return found


__all__ = ["Genes", "History", "Space", "evolve", "measured"]
