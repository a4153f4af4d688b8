"""Computation trees of graphs, exactly: their codes, the sets of them that are frequent, and the trees drawn out again.

The computation tree of a node to depth k has the node's label at its root, and below it, for every edge that comes in, the
tree to depth k - 1 of the node at the other end (the one it was reached from included). What a message-passing network of k
layers says of a node is a function of that tree alone. Trees are never drawn out here: two nodes have the same tree to
depth k where they have the same label and the same multiset of (edge label, neighbour's tree to depth k - 1), so k rounds
of sorting tell all of them apart, in time k |E| log |E| and without a hash that could collide (Weisfeiler and Leman, 1968).

Sets of trees that are frequent together are found by intersecting the graphs that hold them, depth first (Zaki 2000): all
of them, with their exact supports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Level(NamedTuple):
    """All distinct trees of one depth.

    Attributes:
        label: label of each root, int64 [n].
        ptr: where each tree's branches begin, int64 [n + 1].
        child: the trees of the depth below that hang there, int64 [m].
        edge: labels of the edges that lead to them, int64 [m].
    """

    label: Tensor
    ptr: Tensor
    child: Tensor
    edge: Tensor


Trees = tuple[Level, ...]
"""A table of trees: depth 0 (single labels), depth 1, ...; each depth's branches are trees of the one before."""


class Forest(NamedTuple):
    """Trees drawn out, one after another, each in preorder.

    Attributes:
        label: int64 [R].
        edges: (child, parent) of every edge, int64 [E, 2].
        edge: labels of the edges, int64 [E].
        root: which nodes are roots, bool [R].
        owner: which of the trees that were asked for each node belongs to, int64 [R].
    """

    label: Tensor
    edges: Tensor
    edge: Tensor
    root: Tensor
    owner: Tensor


class FrequentSets(NamedTuple):
    """Sets of items with their supports, by size, then by their items in order.

    Attributes:
        items: the items of all sets, one set after another, int64 [m].
        ptr: where each set begins, int64 [S + 1].
        support: transactions that hold all of a set's items, int64 [S].
    """

    items: Tensor
    ptr: Tensor
    support: Tensor

    def listed(self) -> list[tuple[tuple[int, ...], int]]:
        """As plain values: (items, support) of every set."""
        items, ptr = self.items.tolist(), self.ptr.tolist()
        return [(tuple(items[a:b]), s) for a, b, s in zip(ptr[:-1], ptr[1:], self.support.tolist(), strict=True)]


class TooManySets(ValueError):
    """There are more frequent sets than were allowed."""


def computation_trees(
    label: Tensor, edges: Tensor, hops: int, edge_label: Tensor | None = None
) -> tuple[Trees, Tensor]:
    """The computation tree of every node, as a table of all distinct ones and each node's place in it.

    Args:
        label: label of each node, int64 [R] of 0 or more.
        edges: (from, to) of every edge, int64 [E, 2]; an undirected edge stands there both ways.
        hops: depth of the trees, 1 or more.
        edge_label: label of each edge, int64 [E]; ``None``: all alike.

    Returns:
        The table (``hops + 1`` depths) and the tree of each node, int64 [R]: a row of the table's last depth. Trees are
        numbered as they first appear.

    Example:
        >>> path = torch.tensor([[0, 1], [1, 0], [1, 2], [2, 1]])
        >>> trees, code = computation_trees(torch.zeros(3, dtype=torch.long), path, hops=1)
        >>> code.tolist(), trees[1].ptr.tolist()
        ([0, 1, 0], [0, 1, 3])
    """
    if hops < 1:
        raise ValueError("hops must be 1 or more")
    names = label.cpu().numpy().astype(np.int64)
    source, target = edges.cpu().numpy().astype(np.int64).T if len(edges) else np.zeros((2, 0), np.int64)
    kind = np.zeros(len(source), np.int64) if edge_label is None else edge_label.cpu().numpy().astype(np.int64)
    n = len(names)
    degree = np.bincount(target, minlength=n)
    start = np.concatenate([[0], degree.cumsum()])
    most = int(names.max(initial=-1)) + 1
    levels = [
        Level(*map(torch.from_numpy, (np.arange(most), np.zeros(most + 1, np.int64), *np.zeros((2, 0), np.int64))))
    ]
    code = names
    nodes_by_degree = np.argsort(-degree, kind="stable")
    sizes = degree[nodes_by_degree]
    for _ in range(hops):
        width = int(code.max(initial=-1)) + 1
        branch = kind * width + code[source]  # an edge label and a tree of the depth below, as one number
        order = np.lexsort((branch, target))
        branch = branch[order]
        _, short = np.unique(branch, return_inverse=True)
        made = np.unique(names * (int(degree.max(initial=0)) + 1) + degree, return_inverse=True)[1]
        for j in range(int(degree.max(initial=0))):  # branch by branch, of the nodes that have as many
            nodes = nodes_by_degree[: np.searchsorted(-sizes, -j, side="left")]
            folded = made[nodes] * len(branch) + short[start[nodes] + j]
            made[nodes] = np.unique(folded, return_inverse=True)[1]
        # nodes of other degrees keep numbers of their own: the degree tells them apart
        _, first, made = np.unique(made + n * degree, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        turn = np.argsort(first, kind="stable")
        rank[turn] = np.arange(len(first))
        code, shown = rank[made], first[turn]
        count = degree[shown]
        ptr = np.concatenate([[0], count.cumsum()])
        at = np.repeat(start[shown] - ptr[:-1], count) + np.arange(ptr[-1])
        levels.append(
            Level(*map(torch.from_numpy, (names[shown], ptr, branch[at] % max(1, width), branch[at] // max(1, width))))
        )
    return tuple(levels), torch.from_numpy(code)


def reachable(trees: Trees, which: Tensor) -> tuple[Trees, Tensor]:
    """The part of a table that some trees of the last depth need, and where these lie in it.

    Args:
        trees: a table.
        which: trees of its last depth, int64 [K].

    Returns:
        The smaller table, and the same trees in it, int64 [K].
    """
    needed, renumbered = which, which
    found: list[Level] = []
    for depth in range(len(trees) - 1, -1, -1):
        level = trees[depth]
        kept, place = needed.unique(return_inverse=True)
        if depth == len(trees) - 1:
            renumbered = place
        else:
            above = found[-1]
            found[-1] = above._replace(child=place)
        count = level.ptr[kept + 1] - level.ptr[kept]
        ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
        at = torch.repeat_interleave(level.ptr[kept] - ptr[:-1], count) + torch.arange(int(ptr[-1]))
        needed = level.child[at]
        found.append(Level(level.label[kept], ptr, needed, level.edge[at]))
    return tuple(reversed(found)), renumbered


def branching(trees: Trees) -> Tensor:
    """Which trees of the last depth are more than a single node, bool [n]."""
    return trees[-1].ptr.diff() > 0


def canonical(trees: Trees, labels: Sequence[str], edges: Sequence[str]) -> list[list[str]]:
    """The canonical text of every tree: ``label``, then of each branch its edge label and text in order, then ``$``.

    Args:
        trees: a table; its texts grow as fast as trees that are drawn out.
        labels: what stands for each node label.
        edges: likewise for each edge label.

    Returns:
        Texts by depth. Equal texts are equal trees where no label holds a blank.
    """
    found: list[list[str]] = []
    for depth, level in enumerate(trees):
        label, ptr, child, edge = (part.tolist() for part in level)
        below = found[depth - 1] if depth else []
        found.append(
            [
                " ".join(
                    [
                        labels[name],
                        *sorted(f"{edges[e]} {below[c]}" for c, e in zip(child[a:b], edge[a:b], strict=True)),
                        "$",
                    ]
                )
                for name, a, b in zip(label, ptr[:-1], ptr[1:], strict=True)
            ]
        )
    return found


def unroll(
    trees: Trees, which: Tensor, labels: Sequence[str] | None = None, edges: Sequence[str] | None = None
) -> Forest:
    """Trees drawn out as graphs whose edges lead from child to parent.

    Args:
        trees: a table.
        which: trees of its last depth, int64 [K].
        labels, edges: texts of the labels: branches then stand in the order of their canonical texts (`canonical`).

    Returns:
        The forest of the K trees.
    """
    if edges is None:
        edges = [
            str(e) for e in range(1 + max((int(level.edge.max()) for level in trees if len(level.edge)), default=0))
        ]
    texts = canonical(trees, labels, edges) if labels is not None else None
    Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]  # labels, parents, labels of the edges to them
    below: list[Drawn] = []
    for depth, level in enumerate(trees):
        label, ptr, child, edge = (part.tolist() for part in level)
        here: list[Drawn] = []
        wanted = set(which.tolist()) if depth == len(trees) - 1 else None
        for i, (name, a, b) in enumerate(zip(label, ptr[:-1], ptr[1:], strict=True)):
            if wanted is not None and i not in wanted:
                here.append((np.zeros(0, np.int64),) * 3)
                continue
            branches = list(zip(child[a:b], edge[a:b], strict=True))
            if texts is not None:
                names = texts[depth - 1]
                branches.sort(key=lambda pair: f"{edges[pair[1]]} {names[pair[0]]}")
            parts = [(np.array([name]), np.array([-1]), np.array([-1]))]
            offset = 1
            for c, e in branches:
                own, parent, kind = below[c]
                parent, kind = parent + offset, kind.copy()
                parent[0], kind[0] = 0, e
                parts.append((own, parent, kind))
                offset += len(own)
            here.append(tuple(np.concatenate(column) for column in zip(*parts, strict=True)))  # type: ignore[arg-type]
        below = here
    chosen = [below[i] for i in which.tolist()]
    sizes = np.array([len(own) for own, _, _ in chosen], np.int64)
    begins = np.concatenate([[0], sizes.cumsum()])
    empty = np.zeros(0, np.int64)
    label_, parent_, edge_ = (
        np.concatenate(
            [empty, *(t[k] + (start if k == 1 else 0) * (t[k] >= 0) for t, start in zip(chosen, begins, strict=False))]
        )
        for k in range(3)
    )
    at = np.flatnonzero(parent_ >= 0)
    return Forest(
        torch.from_numpy(label_),
        torch.from_numpy(np.stack([at, parent_[at]], 1)),
        torch.from_numpy(edge_[at]),
        torch.from_numpy(parent_ < 0),
        torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
    )


def frequent_sets(
    transaction: Tensor,
    item: Tensor,
    support: int,
    max_size: int | None = None,
    most: int | None = None,
    group: Tensor | None = None,
) -> FrequentSets:
    """All sets of items that at least ``support`` transactions hold, with their exact supports.

    Args:
        transaction, item: the pairs that there are, int64 [P] of 0 or more each; a pair that stands there twice counts once.
        support: the least number of transactions, 1 or more.
        max_size: items of a set at most; ``None``: any number.
        most: sets at most; ``None``: any number.
        group: of each item, int64 [items]: no set holds two items of one group.

    Raises:
        TooManySets: there are more than ``most``.

    Example:
        >>> t, i = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([5, 7, 5, 7, 5])
        >>> frequent_sets(t, i, support=2).listed()
        [((5,), 3), ((7,), 2), ((5, 7), 2)]
    """
    if support < 1:
        raise ValueError("support must be 1 or more")
    rows, items = transaction.cpu().numpy().astype(np.int64), item.cpu().numpy().astype(np.int64)
    if len(rows) and int(rows.max()) > 4 * len(rows):
        rows = np.unique(rows, return_inverse=True)[1]
    width = int(rows.max(initial=0)) + 1
    pairs = np.sort(items * width + rows)
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]
    items, rows = pairs // width, pairs % width
    begins = np.flatnonzero(np.diff(items, prepend=-1))
    count = np.diff(begins, append=len(items))
    kept = np.flatnonzero(count >= support)
    kept = kept[np.argsort(count[kept], kind="stable")]  # rare ones first: short lists below them
    table = np.zeros((len(kept), width), bool)
    for line, start, size in zip(table, begins[kept].tolist(), count[kept].tolist(), strict=True):
        line[rows[start : start + size]] = True
    held = [int.from_bytes(line.tobytes(), "big") for line in np.packbits(table, axis=1)]
    names = items[begins[kept]].tolist()
    groups = names if group is None else group.cpu()[torch.as_tensor(names, dtype=torch.long)].tolist()
    found: list[tuple[tuple[int, ...], int]] = []
    Candidates = list[tuple[int, int, int]]  # item, its group, the transactions that hold it and the set (bits)
    first: Candidates = list(zip(names, groups, held, strict=True))
    # sets whose supersets are still to be looked for: with the candidates they came from, and their place among these
    waiting: list[tuple[tuple[int, ...], Candidates, int]] = [((), first, -1)]
    while waiting:
        grown, candidates, k = waiting.pop()
        further = candidates
        if k >= 0:
            _, own, having = candidates[k]
            further = [
                (other, theirs, both)
                for other, theirs, bits in candidates[k + 1 :]
                if theirs != own and (both := having & bits).bit_count() >= support
            ]
        found += [((*grown, name), bits.bit_count()) for name, _, bits in further]
        if most is not None and len(found) > most:
            raise TooManySets(f"more than {most:,} sets have a support of {support:,} or more")
        if max_size is None or len(grown) + 1 < max_size:
            waiting += [((*grown, name), further, i) for i, (name, _, _) in enumerate(further[:-1])]
    listed = sorted((len(s), tuple(sorted(s)), n) for s, n in found)
    sizes = torch.tensor([0, *(size for size, _, _ in listed)])
    return FrequentSets(
        torch.tensor([i for _, s, _ in listed for i in s], dtype=torch.long),
        sizes.cumsum(0),
        torch.tensor([n for _, _, n in listed], dtype=torch.long),
    )


__all__ = [
    "Forest",
    "FrequentSets",
    "Level",
    "TooManySets",
    "Trees",
    "branching",
    "canonical",
    "computation_trees",
    "frequent_sets",
    "reachable",
    "unroll",
]
