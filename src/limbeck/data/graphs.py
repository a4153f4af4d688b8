"""Labelled graphs: TUDataset folders, arrays, torch_geometric's data sets, molecules as SMILES, or drawn ones.

A batch of graphs is ragged: their nodes stand one after another, ``x`` [R, F] beside ``owner`` [R], which graph each belongs
to; ``edges`` [E, 2] are (from, to) in these rows, an undirected edge both ways, ``edge_attr`` [E, K] beside them. Labels are
discrete: a node's is a tuple of whole numbers, and what a network sees is each of them one-hot.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from limbeck.data.columns import Target
from limbeck.data.items import Part, Splits, as_path, digest
from limbeck.data.names import counted
from limbeck.data.sources import Source
from limbeck.errors import ConfigError, DataError, LimbeckError, first_line, nearest, require
from limbeck.grammar.method import Batch
from limbeck.grammar.settings import Count, settings
from limbeck.recipe.imports import imported

NAMES = {
    "source": {
        "drawn-graphs": "DrawnGraphs",
        "graph-arrays": "GraphArrays",
        "tu": "TuFolder",
        "pyg": "PygSet",
        "pyg-import": "PygImported",
        "smiles": "Smiles",
    },
    "source for graphs": {"csv": "Smiles"},
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Array = np.ndarray[Any, Any]
Directed = Literal["error", "mirror"]


@dataclass(frozen=True)
class Alphabet:
    """What the labels of a data set are: the same for all of its splits, and for what is distilled from them.

    Attributes:
        nodes: the tuple of whole numbers that each node label stands for, int64 [labels, columns].
        edges: likewise of edge labels; ``None`` where edges have none.
    """

    nodes: Tensor
    edges: Tensor | None = None

    def node_features(self) -> Tensor:
        """What a network sees of each node label: every column one-hot, float32 [labels, F]."""
        return _one_hot(self.nodes)

    def edge_features(self) -> Tensor | None:
        """Likewise of each edge label; ``None`` where edges have none."""
        return None if self.edges is None else _one_hot(self.edges)


def recoded(data: GraphData, alphabet: Alphabet, where: str = "inputs") -> GraphData:
    """Graphs whose labels are told by another alphabet: that of the graphs that a network was trained on.

    Raises:
        DataError: labels that it does not have, columns more or less, or edge labels where the other has none.
    """
    label = _moved(data.alphabet.nodes, alphabet.nodes, data.label, "node", where)
    edge = None
    if alphabet.edges is not None:
        if data.alphabet.edges is None or data.edge_label is None:
            raise DataError(where, "edges have no labels, and those that the network was trained on have some")
        edge = _moved(data.alphabet.edges, alphabet.edges, data.edge_label, "edge", where)
    return GraphData(alphabet, data.ptr, label, data.edge_ptr, data.edges, edge, data.y, data.root)


def _moved(given: Tensor, known: Tensor, label: Tensor, what: str, where: str) -> Tensor:
    if given.shape[1] != known.shape[1]:
        raise DataError(where, f"{what} labels have {given.shape[1]} columns", expected=f"{known.shape[1]}")
    same = (given[:, None] == known[None]).all(-1)
    new = (~same.any(1)).nonzero()[:, 0].tolist()
    if new:
        shown = ", ".join(str(given[i].tolist()) for i in new[:5])
        raise DataError(
            where, f"{counted(len(new), f'{what} label')} that the network was not trained on: {shown}",
            expected="labels of the training graphs",
        )  # fmt: skip
    return same.int().argmax(1)[label]


def _one_hot(table: Tensor) -> Tensor:
    columns = [column.unique(return_inverse=True)[1] for column in table.T]
    return torch.cat([torch.nn.functional.one_hot(c) for c in columns], 1).float()


def ragged(ptr: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of some items in a concatenation: (rows [R], which of the items each belongs to [R], where each begins [n])."""
    start, count = ptr[items], ptr[items + 1] - ptr[items]
    owner = torch.repeat_interleave(torch.arange(len(items)), count)
    begins = count.cumsum(0) - count
    return torch.arange(len(owner)) + (start - begins)[owner], owner, begins


class GraphData:
    """Graphs in memory, as Items.

    Args:
        alphabet: what the labels are.
        ptr: where each graph's nodes begin, int64 [N + 1].
        label: label of each node, int64 [R].
        edge_ptr: where each graph's edges begin, int64 [N + 1].
        edges: (from, to) of every edge, counted within its graph, int64 [E, 2]; an undirected one stands there both ways.
        edge_label: label of each edge, int64 [E], where edges have any.
        y: class of each graph, int64 [N].
        root: which nodes a network pools, bool [R]; ``None``: all.
    """

    def __init__(
        self,
        alphabet: Alphabet,
        ptr: Tensor,
        label: Tensor,
        edge_ptr: Tensor,
        edges: Tensor,
        edge_label: Tensor | None,
        y: Tensor,
        root: Tensor | None = None,
    ) -> None:
        self.alphabet, self.ptr, self.label, self.edge_ptr, self.edges = alphabet, ptr, label, edge_ptr, edges
        self.edge_label, self.y, self.root = edge_label, y, root
        self._nodes, self._edges = alphabet.node_features(), alphabet.edge_features()
        self.shape: tuple[int, ...] = (self._nodes.shape[1],)
        self.edge_width = 0 if self._edges is None else self._edges.shape[1]
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, items: Tensor) -> Batch:
        """The graphs, one after another: see the module. ``root`` [R] is there where not all nodes are pooled."""
        rows, owner, begins = ragged(self.ptr, items)
        links, whose, _ = ragged(self.edge_ptr, items)
        batch = {
            "x": self._nodes[self.label[rows]],
            "owner": owner,
            "edges": self.edges[links] + begins[whose][:, None],
            "y": self.y[items],
        }
        if self._edges is not None and self.edge_label is not None:
            batch["edge_attr"] = self._edges[self.edge_label[links]]
        if self.root is not None:
            batch["root"] = self.root[rows]
        return batch

    def take(self, items: Tensor) -> GraphData:
        """Some of the graphs, as graphs of their own."""
        rows, owner, _ = ragged(self.ptr, items)
        links, whose, _ = ragged(self.edge_ptr, items)

        def ptr(of: Tensor) -> Tensor:
            return torch.cat([of.new_zeros(1), torch.bincount(of, minlength=len(items)).cumsum(0)])

        kind = None if self.edge_label is None else self.edge_label[links]
        root = None if self.root is None else self.root[rows]
        return GraphData(
            self.alphabet, ptr(owner), self.label[rows], ptr(whose), self.edges[links], kind, self.y[items], root
        )

    def without_edge_labels(self) -> GraphData:
        """The same graphs, their edges all alike."""
        alphabet = Alphabet(self.alphabet.nodes)
        return GraphData(alphabet, self.ptr, self.label, self.edge_ptr, self.edges, None, self.y, self.root)

    def global_edges(self) -> Tensor:
        """(from, to) of every edge among all nodes, int64 [E, 2]."""
        return self.edges + torch.repeat_interleave(self.ptr[:-1], self.edge_ptr.diff())[:, None]

    @property
    def owner(self) -> Tensor:
        """Which graph each node belongs to, int64 [R]."""
        return torch.repeat_interleave(torch.arange(len(self)), self.ptr.diff())

    def bytes_each(self) -> Tensor:
        """Bytes that each graph takes at least: labels, undirected edges once, sizes and class, in the narrowest whole numbers."""
        nodes, links = self.ptr.diff(), (self.edge_ptr.diff() + 1) // 2
        labels = narrow(len(self.alphabet.nodes))
        kinds = 0 if self.alphabet.edges is None else narrow(len(self.alphabet.edges))
        ends = torch.tensor([narrow(int(n)) for n in nodes.tolist()], dtype=torch.long)
        return nodes * labels + links * (2 * ends + kinds) + 2 + 2 + 1

    @property
    def fingerprint(self) -> str:
        """A content hash."""
        if not self._fingerprint:
            edges = [t for t in (self.alphabet.edges, self.edge_label, self.root) if t is not None]
            parts = (self.alphabet.nodes, self.ptr, self.label, self.edge_ptr, self.edges, self.y, *edges)
            self._fingerprint = digest(*parts)
        return self._fingerprint


def narrow(values: int) -> int:
    """Bytes of a whole number below ``values``: 1, 2, 4 or 8.

    Example:
        >>> narrow(256), narrow(257)
        (1, 2)
    """
    return next(size for size in (1, 2, 4, 8) if values <= 256**size)


def make_graphs(
    nodes: Array,
    owner: Array,
    edges: Array,
    y: Array,
    edge_columns: Array | None = None,
    directed: Directed = "error",
    where: str = "data",
) -> tuple[GraphData, list[str]]:
    """Graphs from columns, checked.

    Args:
        nodes: labels [R, columns] of the nodes, whole numbers.
        owner: which graph each node belongs to [R]; ascending.
        edges: (from, to) [E, 2] among all nodes.
        y: class of each graph [N].
        edge_columns: labels [E, columns] of the edges.
        directed: what is done with edges that lead one way only.
        where: what an error is about.

    Returns:
        The graphs, and sentences about them.

    Raises:
        DataError: edges that leave their graph, directed graphs, graphs without nodes, labels that are not discrete.
    """
    n, notes = len(y), list[str]()
    if len(owner) and (np.diff(owner) < 0).any():
        raise DataError(
            where, "the nodes of a graph do not stand together", expected="graph numbers in ascending order"
        )
    sizes = np.bincount(owner, minlength=n)
    if len(sizes) > n:
        raise DataError(
            where, f"{len(sizes)} graphs have nodes, and {n} have a class", expected="a class for each graph"
        )
    if (sizes == 0).any():
        raise DataError(where, f"{counted(int((sizes == 0).sum()), 'graph')} without nodes: {_some(sizes == 0)}")
    if len(edges) and (edges.min() < 0 or edges.max() >= len(owner)):
        raise DataError(where, f"edges name nodes outside of 0..{len(owner) - 1}", given=int(edges.max()))
    crossing = owner[edges[:, 0]] != owner[edges[:, 1]]
    if crossing.any():
        raise DataError(
            where, f"{counted(int(crossing.sum()), 'edge')} lead from one graph into another: {_some(crossing)}"
        )
    kinds = np.zeros((len(edges), 1), np.int64) if edge_columns is None else discrete(edge_columns, f"{where} (edges)")
    edges, kinds = _both_ways(edges, kinds, owner, directed, where, notes)
    order = np.lexsort((edges[:, 1], edges[:, 0]))
    edges, kinds = edges[order], kinds[order]
    (table, label), (bonds, bond) = rows_of(discrete(nodes, where)), rows_of(kinds)
    whose = owner[edges[:, 0]]
    bare = np.bincount(whose, minlength=n) == 0
    if bare.all():
        raise DataError(where, "no graph has an edge", expected="graphs with edges")
    if bare.any():
        notes.append(f"{counted(int(bare.sum()), 'graph')} of {n} without edges: {_some(bare)}")
    ptr = np.concatenate([[0], sizes.cumsum()])
    edge_ptr = np.concatenate([[0], np.bincount(whose, minlength=n).cumsum()])
    labelled = edge_columns is not None and len(bonds) > 1
    if edge_columns is not None and not labelled:
        notes.append("all edges have the same label, which is left out")
    data = GraphData(
        Alphabet(torch.from_numpy(table), torch.from_numpy(bonds) if labelled else None),
        torch.from_numpy(ptr),
        torch.from_numpy(label),
        torch.from_numpy(edge_ptr),
        torch.from_numpy(edges - ptr[whose][:, None]),
        torch.from_numpy(bond) if labelled else None,
        torch.from_numpy(y.astype(np.int64)),
    )
    mean = f"{sizes.mean():.3g} nodes and {len(edges) / 2 / n:.3g} edges on average"
    kinds_of = f", {len(bonds)} edge labels" if labelled else ""
    notes.append(f"{n:,} graphs of {sizes.min()} to {sizes.max()} nodes ({mean}), {len(table)} node labels{kinds_of}")
    return data, notes


def _both_ways(
    edges: Array, kinds: Array, owner: Array, directed: Directed, where: str, notes: list[str]
) -> tuple[Array, Array]:
    """The edges, each of which must stand there both ways with the same label."""
    bonds, kind = rows_of(kinds)
    ends, many = len(owner), max(1, len(bonds))
    there = np.sort((edges[:, 0] * ends + edges[:, 1]) * many + kind)
    back = np.sort((edges[:, 1] * ends + edges[:, 0]) * many + kind)
    if np.array_equal(there, back):
        return edges, kinds
    if directed == "mirror":
        both = np.union1d(there, back)
        notes.append(
            f"{len(both) - len(np.unique(there)):,} edges led one way only and were added the other way (directed=mirror)"
        )
        pairs = both // many
        return np.stack([pairs // ends, pairs % ends], 1), bonds[both % many]
    alone = np.setxor1d(there, back) if len(np.unique(there)) == len(there) else there[there != back]
    graphs = np.unique(owner[alone // many // ends]).tolist()
    names = ", ".join(map(str, graphs[:10])) + (", ..." if len(graphs) > 10 else "")
    raise DataError(
        where,
        f"{counted(len(graphs), 'graph')} with edges that lead one way only, or have another label that way: {names}",
        expected="undirected graphs: every edge both ways, with the same label",
        remedy="set task.data.directed=mirror, or make them undirected first (torch_geometric.transforms.ToUndirected)",
    )


def rows_of(table: Array) -> tuple[Array, Array]:
    """The distinct rows of whole numbers in order, and each row's place among them."""
    ids = np.zeros(len(table), np.int64)
    for column in table.T:
        values, place = np.unique(column, return_inverse=True)
        ids = np.unique(ids * max(1, len(values)) + place, return_inverse=True)[1]
    first = np.unique(ids, return_index=True)[1]
    return table[first], ids


def discrete(columns: Any, where: str) -> Array:
    """Labels as whole numbers [R, columns]; columns that are one-hot together become one.

    Raises:
        DataError: values that are not whole numbers.
    """
    table = np.asarray(columns)
    table = table.reshape(len(table), -1)
    if table.dtype.kind == "f":
        whole = np.isfinite(table) & (table == np.round(table))
        if not whole.all():
            bad = np.flatnonzero(~whole.all(0))
            values = table[~whole]
            raise DataError(
                where,
                f"labels are not discrete: column {', '.join(map(str, bad[:8]))} holds values like {values[0]:.4g}",
                expected="whole numbers, or one-hot columns",
                remedy="bin or quantise continuous features first, or leave them out",
            )
    table = table.astype(np.int64)
    if table.shape[1] > 1 and ((table == 0) | (table == 1)).all() and (table.sum(1) == 1).all():
        return table.argmax(1)[:, None]
    return table


def _some(which: Array) -> str:
    ids = np.flatnonzero(which).tolist()
    return ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")


class GraphSource(Source):
    """What sources of graphs share: they are answered with one class each."""

    def collected(self) -> tuple[GraphData, list[str], list[str], Array | None]:
        """All graphs, the names of their classes, sentences, and the numbers of those used for evaluation only."""
        raise TypeError(f"{type(self).__name__} must define graphs")

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The graphs, those apart that the source keeps for evaluation."""
        data, labels, notes, test = self.collected()
        if test is None:
            return Splits(data, None, None, labels, "label", notes)
        if len(test) == 0 or test.min() < 0 or test.max() >= len(data) or len(np.unique(test)) < len(test):
            raise DataError(
                "data", "the test graphs are not told apart", expected=f"ids from 0 to {len(data) - 1}, each once"
            )
        rest = np.setdiff1d(np.arange(len(data)), test)
        parts = (Part(data, torch.from_numpy(ids.astype(np.int64))) for ids in (rest, np.sort(test)))
        train, judged = parts
        return Splits(train, None, judged, labels, "label", notes)


def classes(y: Any, where: str = "data") -> tuple[Array, list[str]]:
    """Class ids [N] and names, from class numbers in order.

    Raises:
        DataError: several targets a graph, or numbers that are no classes.
    """
    found = np.asarray(y)
    if found.ndim > 1 and found.size != len(found):
        raise DataError(where, f"each graph has {found.size // len(found)} targets", expected="one class a graph")
    found = found.reshape(-1)
    if found.dtype.kind == "f":
        if not (np.isfinite(found) & (found == np.round(found))).all():
            raise DataError(
                where, "the targets of graphs are no classes", given=f"{found.flat[0]:.4g}", expected="whole numbers"
            )
        found = found.astype(np.int64)
    names, ids = np.unique(found, return_inverse=True)
    return ids, [str(name) for name in names.tolist()]


@settings
class DrawnGraphs(GraphSource):
    """Drawn graphs that look like molecules: rings and chains of a few kinds of atoms, bonds of two kinds.

    A class differs from the next by which groups of atoms are attached; a tenth of the graphs have another class's.

    Args:
        graphs: how many.
        classes: how many.
        seed: of the drawing.
    """

    graphs: Count = 600
    classes: Annotated[int, Interval(ge=2, le=4)] = 2
    seed: int = 0

    def validate(self) -> None:
        """Enough of each class."""
        if self.graphs < 10 * self.classes:
            raise ValueError("graphs must be 10 or more for each class")

    def collected(self) -> tuple[GraphData, list[str], list[str], Array | None]:
        """Drawn by the seed."""
        rng = np.random.Generator(np.random.Philox(key=self.seed))
        labels: list[int] = []
        owner: list[int] = []
        links: list[tuple[int, int, int]] = []  # from, to, kind
        # what marks a class: chains of atoms that hang on the skeleton
        marks = [[(3, 1), (2, 0)], [(2, 0), (3, 1)], [(2, 0), (2, 0)], [(3, 0), (3, 1)]]
        y = rng.integers(0, self.classes, self.graphs)
        for graph, true in enumerate(y.tolist()):
            begin = len(labels)
            for _ in range(int(rng.integers(1, 4))):  # rings, joined by a bond
                size, first = int(rng.integers(5, 7)), len(labels)
                labels += rng.choice([0, 0, 0, 0, 1], size).tolist()
                links += [(first + i, first + (i + 1) % size, i % 2) for i in range(size)]
                if first > begin:
                    links.append((int(rng.integers(begin, first)), first, 0))
            shown = int(rng.integers(0, self.classes)) if rng.random() < 0.1 else true
            hung = [marks[shown]] * int(rng.integers(1, 3)) + [[(0, 0)]] * int(rng.integers(1, 4))
            for mark in hung:
                at = int(rng.integers(begin, len(labels)))
                for atom, kind in mark:
                    labels.append(atom)
                    links.append((at, len(labels) - 1, kind))
                    at = len(labels) - 1
            owner += [graph] * (len(labels) - begin)
        table = np.array(links)
        both = np.concatenate([table[:, :2], table[:, 1::-1]])
        data, notes = make_graphs(
            np.array(labels)[:, None], np.array(owner), both, y, np.concatenate([table[:, 2:]] * 2)
        )
        return data, [f"class {i}" for i in range(self.classes)], [*notes, "the graphs are drawn, not measured"], None


@settings
class GraphArrays(GraphSource):
    """One ``.npz`` file: ``ptr`` [N + 1], ``node_label`` [R] or [R, columns], ``edge_index`` [2, E] among all nodes, ``y`` [N].

    ``edge_label`` [E] or [E, columns] is read where it is there, and an array whose name begins with ``test`` as the numbers
    of the test graphs.

    Args:
        path: the file.
        directed: ``error``, or ``mirror`` adds to edges that lead one way only the other way.
    """

    path: str
    directed: Directed = "error"

    def collected(self) -> tuple[GraphData, list[str], list[str], Array | None]:
        """The file's graphs."""
        path = as_path(self.path, "task.data.path")
        if not path.is_file():
            raise DataError("task.data.path", "there is no such file", given=str(path))
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise DataError("task.data.path", f"cannot be read as .npz: {first_line(error)}", given=str(path)) from None
        lacking = [name for name in ("ptr", "node_label", "edge_index", "y") if name not in arrays]
        if lacking:
            raise DataError(
                str(path),
                f"lacks {', '.join(lacking)}",
                given=", ".join(sorted(arrays)),
                expected="ptr, node_label, edge_index, y",
            )
        ptr, edges = arrays["ptr"].astype(np.int64), arrays["edge_index"]
        if edges.ndim != 2 or edges.shape[0] != 2:
            raise DataError(str(path), "edge_index has another shape", given=list(edges.shape), expected="[2, E]")
        nodes = arrays["node_label"]
        if ptr.ndim != 1 or len(ptr) < 2 or ptr[0] != 0 or (np.diff(ptr) < 0).any() or ptr[-1] != len(nodes):
            raise DataError(
                str(path), "ptr does not divide the nodes", expected=f"ascending numbers from 0 to {len(nodes)}"
            )
        y, labels = classes(arrays["y"], str(path))
        if len(y) != len(ptr) - 1:
            raise DataError(str(path), f"{len(ptr) - 1} graphs and {len(y)} classes", expected="a class for each graph")
        owner = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
        kinds = arrays.get("edge_label")
        data, notes = make_graphs(
            nodes.reshape(len(nodes), -1), owner, edges.astype(np.int64).T, y,
            None if kinds is None else kinds.reshape(len(kinds), -1), self.directed, str(path),
        )  # fmt: skip
        test = next((arrays[n].astype(np.int64) for n in sorted(arrays) if n.startswith("test")), None)
        return data, labels, notes, test


@settings
class TuFolder(GraphSource):
    """A data set in TUDataset's text form: ``NAME_A.txt``, ``NAME_graph_indicator.txt``, ``NAME_graph_labels.txt``.

    ``NAME_node_labels.txt`` and ``NAME_edge_labels.txt`` are read where they are there; without node labels a node's degree
    stands for one. Continuous attributes are not read.

    Args:
        path: the folder, or one above it (``MUTAG``, where ``MUTAG/raw`` or ``MUTAG/MUTAG`` holds the files).
        directed: ``error``, or ``mirror`` adds to edges that lead one way only the other way.
    """

    path: str
    directed: Directed = "error"

    def collected(self) -> tuple[GraphData, list[str], list[str], Array | None]:
        """The folder's graphs."""
        root = as_path(self.path, "task.data.path")
        if not root.is_dir():
            raise DataError("task.data.path", "there is no such folder", given=str(root))
        found = sorted(
            p for place in (root, root / "raw", root / root.name) for p in place.glob("*_graph_indicator.txt")
        )
        if len(found) != 1:
            problem = f"holds {len(found)} data sets" if found else "holds no NAME_graph_indicator.txt"
            raise DataError("task.data.path", problem, given=str(root), expected="the folder of one TUDataset")
        stem = str(found[0]).removesuffix("_graph_indicator.txt")

        def table(name: str, needed: bool = True) -> Array | None:
            path = Path(f"{stem}_{name}.txt")
            if not path.is_file():
                if needed:
                    raise DataError(str(path), "is missing", expected="A, graph_indicator and graph_labels")
                return None
            try:
                return np.loadtxt(path, delimiter=",", dtype=np.int64, ndmin=2)
            except (ValueError, OSError) as error:
                raise DataError(
                    str(path), f"cannot be read: {first_line(error)}", expected="whole numbers, by commas"
                ) from None

        edges, owner, y = table("A"), table("graph_indicator"), table("graph_labels")
        assert edges is not None and owner is not None and y is not None
        nodes, kinds = table("node_labels", False), table("edge_labels", False)
        notes: list[str] = []
        edges = edges.reshape(-1, 2) - 1
        if nodes is None:
            nodes = np.bincount(edges[:, 1], minlength=len(owner))[:, None]
            notes.append("nodes have no labels: their degrees stand for these")
        for name, rows, of, many in (
            ("node_labels", nodes, "nodes", len(owner)),
            ("edge_labels", kinds, "edges", len(edges)),
        ):
            if rows is not None and len(rows) != many:
                raise DataError(f"{stem}_{name}.txt", f"{len(rows)} rows for {many} {of}", expected="a row for each")
        if Path(f"{stem}_node_attributes.txt").is_file():
            notes.append("node attributes are continuous, and are not read")
        ids, labels = classes(y, f"{stem}_graph_labels.txt")
        data, more = make_graphs(nodes, owner[:, 0] - 1, edges, ids, kinds, self.directed, stem)
        return data, labels, [*notes, *more], None


def from_pyg(items: Iterable[Any], directed: Directed, where: str) -> tuple[GraphData, list[str], list[str]]:
    """Graphs from torch_geometric's ``Data`` objects: ``x``, ``edge_index``, ``y`` and, where it is there, ``edge_attr``.

    Without ``x`` a node's degree stands for its label.

    Raises:
        DataError: what of them is missing or does not fit.
    """
    nodes: list[Array] = []
    links: list[Array] = []
    kinds: list[Array] = []
    sizes: list[int] = []
    y: list[Any] = []
    offset = 0
    for number, item in enumerate(items):
        if getattr(item, "edge_index", None) is None or getattr(item, "y", None) is None:
            lacking = "edge_index" if getattr(item, "edge_index", None) is None else "y"
            raise DataError(
                where, f"graph {number} has no {lacking}", given=type(item).__name__, expected="edge_index and y"
            )
        edges = np.asarray(item.edge_index).astype(np.int64).T
        count = int(item.num_nodes)
        x = getattr(item, "x", None)
        if x is None:
            x = np.bincount(edges[:, 1], minlength=count)[:, None]
        nodes.append(np.asarray(x).reshape(count, -1))
        links.append(edges + offset)
        if getattr(item, "edge_attr", None) is not None:
            kinds.append(np.asarray(item.edge_attr).reshape(len(edges), -1))
        sizes.append(count)
        y.append(np.asarray(item.y).reshape(-1))
        offset += count
    if not sizes:
        raise DataError(where, "there are no graphs", expected="at least one of each class")
    if kinds and len(kinds) < len(sizes):
        raise DataError(
            where, f"{len(sizes) - len(kinds)} graphs have no edge_attr, and others have", expected="all or none"
        )
    widths = sorted({n.shape[1] for n in nodes})
    if len(widths) > 1:
        raise DataError(
            where, f"the graphs' nodes have {' and '.join(map(str, widths[:5]))} features", expected="as many in each"
        )
    ids, labels = classes(np.stack(y) if len({len(v) for v in y}) == 1 else np.concatenate(y), where)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    edge_columns = np.concatenate(kinds) if kinds else None
    data, notes = make_graphs(np.concatenate(nodes), owner, np.concatenate(links), ids, edge_columns, directed, where)
    return data, labels, notes


@contextmanager
def _plain_files() -> Iterator[None]:
    """What a library loads meanwhile holds no pickled objects, whatever it asks for; and no warnings of its imports."""
    name, before = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ[name] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@settings
class PygSet(GraphSource):
    """A data set of ``torch_geometric.datasets`` by its class, from a local root.

    Args:
        name: the class, as ``TUDataset``, ``GNNBenchmarkDataset`` or ``MoleculeNet``.
        root: the folder that holds it.
        options: further arguments of the class, as ``{name: MUTAG}``.
        download: let the library fetch what is not there.
        directed: ``error``, or ``mirror`` adds to edges that lead one way only the other way.
    """

    paths: ClassVar[tuple[str, ...]] = ("root",)

    name: str
    root: str
    options: dict[str, Any] | None = None
    download: bool = False
    directed: Directed = "error"

    def collected(self) -> tuple[GraphData, list[str], list[str], Array | None]:
        """The data set's graphs."""
        with _plain_files():
            sets = require("torch_geometric.datasets", "graph", "reading its data sets")
            cls = getattr(sets, self.name, None)
            if not isinstance(cls, type):
                known = [n for n in dir(sets) if n[:1].isupper()]
                raise ConfigError.unknown(
                    "task.data.name", self.name, nearest(self.name, known) or known[:5], "data set"
                )
            root = as_path(self.root, "task.data.root")

            def refuse(self: Any) -> None:
                raise DataError(
                    "task.data.root",
                    "the data set is not there",
                    given=str(root),
                    remedy="set task.data.download=true, or lay its raw files there",
                )

            made = cls if self.download else type(self.name, (cls,), {"download": refuse})
            try:
                items = made(root=str(root), **(self.options or {}))
                found = list(items)
            except LimbeckError:
                raise
            except Exception as error:
                raise DataError(
                    "task.data", f"{self.name} cannot be read: {type(error).__name__}: {first_line(error)}"
                ) from None
        data, labels, notes = from_pyg(found, self.directed, f"{self.name}")
        return data, labels, notes, None


@settings
class PygImported(GraphSource):
    """What the user's own function returns: a list of torch_geometric's ``Data``. Naming it runs its code.

    Args:
        function: ``package.module:function``.
        options: its arguments.
        directed: ``error``, or ``mirror`` adds to edges that lead one way only the other way.
    """

    code: ClassVar[str] = "function"
    paths: ClassVar[tuple[str, ...]] = ()

    function: str
    options: dict[str, Any] | None = None
    directed: Directed = "error"

    def collected(self) -> tuple[GraphData, list[str], list[str], Array | None]:
        """What the function returns."""
        made = imported(self.function, "task.data.function")
        try:
            found = list(made(**(self.options or {})))
        except Exception as error:
            problem = f"{self.function} failed: {type(error).__name__}: {first_line(error)}"
            raise ConfigError("task.data.function", problem) from error
        data, labels, notes = from_pyg(found, self.directed, self.function)
        return data, labels, notes, None


@settings
class Smiles(GraphSource):
    """Molecules of a CSV file as graphs of atoms and bonds, through rdkit.

    An atom's label is its element, degree, charge, hydrogens, hybridisation, whether it is aromatic and in a ring; a bond's
    is its type, whether it is conjugated and in a ring.

    Args:
        path: a CSV file with a header.
        smiles: the column of SMILES.
        label: the column of classes.
    """

    path: str
    smiles: str = "smiles"
    label: str = "label"

    def collected(self) -> tuple[GraphData, list[str], list[str], Array | None]:
        """The molecules that rdkit reads; the others are named."""
        import csv

        chem = require("rdkit.Chem", "molecules", "reading SMILES")
        path = as_path(self.path, "task.data.path")
        if not path.is_file():
            raise DataError("task.data.path", "there is no such file", given=str(path))
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        for argument, column in (("smiles", self.smiles), ("label", self.label)):
            if not rows or column not in rows[0]:
                raise ConfigError.unknown(f"task.data.{argument}", column, list(rows[0]) if rows else [], "column")
        require("rdkit.RDLogger", "molecules", "reading SMILES").DisableLog("rdApp.*")
        nodes: list[list[int]] = []
        links: list[tuple[int, int]] = []
        kinds: list[list[int]] = []
        owner: list[int] = []
        names: list[str] = []
        bad: list[int] = []
        for number, row in enumerate(rows, 2):
            molecule = chem.MolFromSmiles(row[self.smiles] or "")
            if molecule is None or molecule.GetNumAtoms() == 0 or not row[self.label]:
                bad.append(number)
                continue
            begin = len(nodes)
            for atom in molecule.GetAtoms():
                nodes.append(
                    [atom.GetAtomicNum(), atom.GetDegree(), atom.GetFormalCharge(), atom.GetTotalNumHs(),
                     int(atom.GetHybridization()), int(atom.GetIsAromatic()), int(atom.IsInRing())]
                )  # fmt: skip
            for bond in molecule.GetBonds():
                a, b = begin + bond.GetBeginAtomIdx(), begin + bond.GetEndAtomIdx()
                kind = [int(bond.GetBondTypeAsDouble() * 2), int(bond.GetIsConjugated()), int(bond.IsInRing())]
                links += [(a, b), (b, a)]
                kinds += [kind, kind]
            owner += [len(names)] * (len(nodes) - begin)
            names.append(row[self.label])
        if not names:
            raise DataError(str(path), "no row holds a molecule that can be read", expected="SMILES and a class")
        y, labels = classes(np.array(names), str(path))
        data, notes = make_graphs(
            np.array(nodes),
            np.array(owner),
            np.array(links).reshape(-1, 2),
            y,
            np.array(kinds).reshape(-1, 3),
            "error",
            str(path),
        )
        if bad:
            shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
            notes.append(
                f"{counted(len(bad), 'row')} left out, without a molecule that can be read or a class: lines {shown}"
            )
        return data, labels, notes, None


__all__ = [
    "Alphabet",
    "DrawnGraphs",
    "GraphArrays",
    "GraphData",
    "GraphSource",
    "PygImported",
    "PygSet",
    "Smiles",
    "TuFolder",
    "discrete",
    "from_pyg",
    "make_graphs",
    "narrow",
    "ragged",
]
