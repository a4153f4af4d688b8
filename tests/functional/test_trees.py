"""Computation trees against trees that are drawn out naively, frequent sets against every set there is."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from limbeck.functional.trees import (
    TooManySets,
    branching,
    canonical,
    computation_trees,
    frequent_sets,
    reachable,
    unroll,
)


def random_graph(
    rng: random.Random, n: int, labels: int, kinds: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels [n], edges both ways [E, 2] and their labels [E]; some nodes have no edge."""
    pairs = [(a, b) for a in range(n) for b in range(a) if rng.random() < 2.2 / n]
    kind = [rng.randrange(kinds) for _ in pairs]
    edges = torch.tensor([*pairs, *((b, a) for a, b in pairs)]).reshape(-1, 2)
    return (
        torch.tensor([rng.randrange(labels) for _ in range(n)]),
        edges,
        torch.tensor([*kind, *kind], dtype=torch.long),
    )


def naive(label: list[int], edges: list[list[int]], kind: list[int], node: int, hops: int) -> tuple:
    """A node's tree as nested tuples."""
    below = (
        sorted((k, naive(label, edges, kind, a, hops - 1)) for (a, b), k in zip(edges, kind, strict=True) if b == node)
        if hops
        else []
    )
    return (label[node], tuple(below))


@pytest.mark.parametrize("seed", range(12))
def test_nodes_share_a_tree_exactly_where_it_is_the_same_drawn_out(seed: int) -> None:
    rng = random.Random(seed)
    label, edges, kind = random_graph(rng, rng.randrange(2, 40), rng.choice([1, 2, 12]), rng.choice([1, 3]))
    hops = rng.randrange(1, 4)
    trees, code = computation_trees(label, edges, hops, kind)
    drawn = [naive(label.tolist(), edges.tolist(), kind.tolist(), v, hops) for v in range(len(label))]
    first: dict[tuple, int] = {}
    assert code.tolist() == [first.setdefault(t, len(first)) for t in drawn]  # numbered as they first appear
    names = [f"L{i}" for i in range(12)]
    texts = canonical(trees, names, ["a", "b", "c"])[-1]
    assert len(set(texts)) == len(texts) == len(first)
    # drawn out again, every root has its tree; a smaller table draws the same
    which = torch.tensor(rng.sample(range(len(first)), min(5, len(first))))
    forest = unroll(trees, which, names, ["a", "b", "c"])
    roots = forest.root.nonzero()[:, 0].tolist()
    args = (forest.label.tolist(), forest.edges.tolist(), forest.edge.tolist())
    known = {i: t for t, i in first.items()}
    assert [naive(*args, r, hops) for r in roots] == [known[int(i)] for i in which]
    fewer, place = reachable(trees, which)
    assert all(torch.equal(a, b) for a, b in zip(forest, unroll(fewer, place, names, ["a", "b", "c"]), strict=True))
    assert all(len(a.label) <= len(b.label) for a, b in zip(fewer, trees, strict=True))
    alone = torch.bincount(edges[:, 1], minlength=len(label)) == 0
    assert torch.equal(~branching(trees)[code], alone)


def test_trees_do_not_depend_on_how_nodes_and_edges_are_numbered() -> None:
    label, edges, kind = random_graph(random.Random(1), 30, 3, 2)
    trees, code = computation_trees(label, edges, 2, kind)
    names, kinds = list("abc"), list("xy")
    texts = canonical(trees, names, kinds)[-1]
    new = torch.randperm(30, generator=torch.Generator().manual_seed(0))  # node v becomes new[v]
    order = torch.randperm(len(edges), generator=torch.Generator().manual_seed(1))
    other, there = computation_trees(label[new.argsort()], new[edges][order], 2, kind[order])
    again = canonical(other, names, kinds)[-1]
    assert [texts[i] for i in code.tolist()] == [again[i] for i in there[new].tolist()]


def test_many_digits_do_not_run_into_each_other() -> None:
    """The released canonical label joins digits without separators: 1 and 23 there are 12 and 3."""
    label = torch.tensor([1, 23, 12, 3])
    _, code = computation_trees(label, torch.tensor([[1, 0], [0, 1], [3, 2], [2, 3]]), 1)
    assert len(set(code.tolist())) == 4


def brute(pairs: set[tuple[int, int]], support: int, max_size: int | None) -> dict[tuple[int, ...], int]:
    """Every set of items, counted."""
    items = sorted({i for _, i in pairs})
    held = {t: {i for a, i in pairs if a == t} for t in {t for t, _ in pairs}}
    found = {}
    for size in range(1, (max_size or len(items)) + 1):
        for s in itertools.combinations(items, size):
            n = sum(set(s) <= h for h in held.values())
            if n >= support:
                found[s] = n
    return found


@pytest.mark.parametrize("seed", range(25))
def test_frequent_sets_are_those_of_every_set_counted(seed: int) -> None:
    rng = random.Random(seed)
    names = rng.sample(range(1000), rng.randrange(1, 10))
    dense = rng.random()
    pairs = {(t, i) for t in range(rng.randrange(1, 25)) for i in names if rng.random() < dense}
    support, max_size = rng.randrange(1, 6), rng.choice([None, 1, 2, 3])
    listed = rng.sample(sorted(pairs), len(pairs)) + sorted(pairs)[:3]  # in any order, some twice
    t, i = torch.tensor(listed, dtype=torch.long).reshape(-1, 2).T
    found = frequent_sets(t, i, support, max_size)
    assert dict(found.listed()) == brute(pairs, support, max_size)
    assert found.listed() == sorted(found.listed(), key=lambda pair: (len(pair[0]), pair[0]))


def test_sets_of_one_group_and_too_many_sets() -> None:
    t, i = torch.arange(12).repeat_interleave(20), torch.arange(20).repeat(12)
    with pytest.raises(TooManySets, match="more than 1,000 sets"):
        frequent_sets(t, i, 2, most=1000)  # 2^20 of them
    found = frequent_sets(t, i, 2, group=torch.arange(20) // 10)
    assert len(found.support) == 20 + 10 * 10
    with pytest.raises(ValueError, match="support must be 1"):
        frequent_sets(t, i, 0)
    with pytest.raises(ValueError, match="hops must be 1"):
        computation_trees(i, torch.zeros(0, 2, dtype=torch.long), 0)


def test_a_thousand_trees_that_always_occur_together_do_not_end_the_program() -> None:
    with pytest.raises(TooManySets):
        frequent_sets(torch.arange(3).repeat_interleave(1500), torch.arange(1500).repeat(3), 2, most=3000)
