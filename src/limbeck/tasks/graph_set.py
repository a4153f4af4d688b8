"""Distilled graphs: sets of computation trees with the graphs that hold them, as files, as data to learn from, and drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.data.graphs import Alphabet, GraphData, narrow, ragged
from limbeck.data.items import digest
from limbeck.engine.batches import to_device
from limbeck.engine.inner import fit
from limbeck.errors import CheckpointCorrupt, ConfigError, require
from limbeck.functional.trees import Level, Trees, computation_trees, unroll
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.method import Batch, Built, Context, Query
from limbeck.grammar.optim import Optim
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import device_of, evaluating
from limbeck.storage.store import atomic_write
from limbeck.storage.weights import load_state_dict, save_state_dict


def feed(module: Any, batch: Batch) -> Any:
    """How ragged graphs go into a network: (x, edge_index, owner, graphs, edge_attr, root)."""
    size = len(batch["y"])
    return module(batch["x"], batch["edges"].t(), batch["owner"], size, batch.get("edge_attr"), batch.get("root"))


def sizes_of(trees: Trees) -> Tensor:
    """Nodes of each tree of the last depth, were it drawn out: float64 [n], for trees grow as degrees to the depth."""
    below = torch.ones(len(trees[0].label), dtype=torch.float64)
    for level in trees[1:]:
        owner = torch.repeat_interleave(torch.arange(len(level.label)), level.ptr.diff())
        below = 1 + torch.zeros(len(level.label), dtype=torch.float64).index_add(0, owner, below[level.child])
    return below


def drawn_out(trees: Trees, which: Tensor, alphabet: Alphabet) -> GraphData:
    """Trees as graphs of which the roots alone are pooled; their edges lead from child to parent."""
    forest = unroll(trees, which)
    count = torch.bincount(forest.owner, minlength=len(which))
    ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    whose = forest.owner[forest.edges[:, 0]]
    links = torch.bincount(whose, minlength=len(which))
    edge_ptr = torch.cat([links.new_zeros(1), links.cumsum(0)])
    kind = None if alphabet.edges is None else forest.edge
    edges = forest.edges - ptr[whose][:, None]
    y = torch.zeros(len(which), dtype=torch.long)
    return GraphData(alphabet, ptr, forest.label, edge_ptr, edges, kind, y, forest.root)


def tree_error(module: nn.Module, data: GraphData, hops: int, graphs: int = 32, largest: int = 20_000) -> float:
    """How far a network's embeddings of nodes are from those of the roots of their trees: the largest difference over the
    largest value, in evaluation mode; NaN where the network shows no embeddings or the trees are too large to draw out.

    Args:
        module: a network with ``embed(x, edge_index, edge_attr)``.
        data: graphs.
        hops: depth of the trees.
        graphs: how many of them are tried.
        largest: nodes of the trees at most.
    """
    embed = getattr(module, "embed", None)
    if embed is None:
        return float("nan")
    few = data.take(torch.arange(len(data))[:: max(1, len(data) // graphs)])
    trees, code = computation_trees(few.label, few.global_edges(), hops, few.edge_label)
    size = sizes_of(trees).cumsum(0)
    known = torch.arange(len(size))[size <= largest]
    at = torch.isin(code, known)
    if not bool(at.any()):
        return float("nan")
    forest, device = drawn_out(trees, known, data.alphabet), device_of(module)
    a = to_device(few.fetch(torch.arange(len(few))), device)
    b = to_device(forest.fetch(torch.arange(len(forest))), device)
    with torch.no_grad(), evaluating([module]):
        nodes, roots = (embed(t["x"], t["edges"].t(), t.get("edge_attr")) for t in (a, b))
        roots = roots[b["root"]]
        gap = (nodes[at.to(device)] - roots[code[at].to(device)]).abs().max()
        return float(gap / nodes.abs().max().clamp_min(1e-30))


class Weighted(Query):
    """Items drawn anew with a probability for each, in place of the batch's own.

    Args:
        data: where they are fetched.
        weights: float [N] of 0 or more.
    """

    coupled = ""

    def __init__(self, data: Any, weights: Tensor) -> None:
        self.data, self.edges = data, weights.double().cumsum(0)

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """As many items, drawn by the key of each of the batch's own."""
        u = ctx.draws.rand("choice", batch["item"]).double().cpu() * self.edges[-1]
        ids = torch.searchsorted(self.edges, u, right=True).clamp_max(len(self.edges) - 1)
        found = to_device(self.data.fetch(ids), batch["item"].device)
        return {**found, "item": batch["item"], "view": batch["view"]}


class GraphsArtifact(Artifact):
    """Graphs that networks can be trained on: real ones here.

    Args:
        data: the graphs.
        labels: names of the classes.
    """

    kind: ClassVar[str] = "dataset"
    lr: float | None = None
    networks: int | None = None
    scope: str = ""

    def __init__(self, data: Any, labels: list[str]) -> None:
        self.data, self.labels = data, labels

    @property
    def queries(self) -> list[Query]:
        """What the set itself does with its batches."""
        return []

    def train(
        self,
        module: nn.Module,
        optim: Optim,
        seed: int = 0,
        scope: str = "train",
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a value)
        queries: Sequence[Query] = (),
    ) -> Built:
        """A network trained on the graphs by cross-entropy; ``scope`` keys the draws."""
        optim = optim.with_(batch_size=min(optim.batch_size, len(self.data)))

        def loss(net: nn.Module, batch: Batch, ctx: Any) -> Tensor:
            return F.cross_entropy(feed(net, batch), batch["y"])

        asked = [*self.queries, *queries]
        net = fit(module, self.data, loss, optim, seed=seed, scope=scope, device=device, queries=asked)
        return Built(net, Contract(), self.labels)

    def size(self) -> dict[str, float]:
        """Graphs, their nodes, and bytes (`limbeck.data.graphs.GraphData.bytes_each`)."""
        nodes, count = float(len(self.data.label)), float(self.data.bytes_each().sum())
        return {"items": float(len(self.data)), "nodes": nodes, "bytes": count}


@dataclass
class Mined:
    """What a set of trees is made of.

    Attributes:
        trees: the table of all trees that are needed.
        ptr: where each set's trees begin, int64 [S + 1].
        items: trees of the table's last depth, int64 [m]; one that a graph holds several times may stand there as often.
        support: graphs of the class that hold all of a set's trees, int64 [S].
        y: class of each set, int64 [S].
        graphs: how many graphs each class had, int64 [classes].
    """

    trees: Trees
    ptr: Tensor
    items: Tensor
    support: Tensor
    y: Tensor
    graphs: Tensor

    def state(self) -> dict[str, Tensor]:
        """As plain tensors by name."""
        parts = {f"level{d}.{name}": getattr(t, name) for d, t in enumerate(self.trees) for name in Level._fields}
        rest = ("ptr", "items", "support", "y", "graphs")
        return {**parts, **{name: getattr(self, name) for name in rest}}

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> Mined:
        """Back from `state`."""
        depth = 1 + max(int(name[5:].split(".")[0]) for name in state if name.startswith("level"))
        trees = tuple(Level(*(state[f"level{d}.{n}"].long() for n in Level._fields)) for d in range(depth))
        return cls(trees, *(state[n].long() for n in ("ptr", "items", "support", "y", "graphs")))

    def bytes(self) -> int:
        """Bytes of the table and the sets, in the narrowest whole numbers; trees are not drawn out."""
        total = 0
        for d, level in enumerate(self.trees):
            above = len(self.trees[d - 1].label) if d else 0
            total += len(level.label) * narrow(_most(level.label))
            total += len(level.ptr) * narrow(_most(level.ptr)) + len(level.child) * narrow(above)
            total += len(level.edge) * narrow(_most(level.edge)) if bool((level.edge > 0).any()) else 0
        total += len(self.items) * narrow(len(self.trees[-1].label)) + len(self.ptr) * narrow(_most(self.ptr))
        return total + len(self.support) * narrow(_most(self.support)) + len(self.y)


def _most(values: Tensor) -> int:
    return int(values.max()) + 1 if len(values) else 1


class _Sets:
    """Sets of trees as Items: a set is the disjoint union of its trees, drawn out when it is fetched."""

    def __init__(self, trees: GraphData, ptr: Tensor, items: Tensor, y: Tensor) -> None:
        self.trees, self.ptr, self.items, self.y, self.shape = trees, ptr, items, y, trees.shape

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, items: Tensor) -> Batch:
        """The sets, one after another."""
        rows, owner, _ = ragged(self.ptr, items)
        found = self.trees.fetch(self.items[rows])
        return {**found, "owner": owner[found["owner"]], "y": self.y[items]}

    @property
    def fingerprint(self) -> str:
        """A content hash."""
        return digest(self.trees.fingerprint, self.ptr, self.items, self.y)


class GraphSet(GraphsArtifact):
    """Frequent sets of computation trees, each with its class and its support.

    Args:
        mined: the sets.
        alphabet: what node and edge labels are.
        labels: names of the classes.
        weighting: how often each is learnt from: ``frequency``, as often as graphs hold it; ``class``, likewise within
            each class, and each class as often as it has graphs; ``none``, all alike.
        facts: what else was found, for the report.
    """

    formats = ("safetensors",)

    def __init__(
        self,
        mined: Mined,
        alphabet: Alphabet,
        labels: list[str],
        weighting: str = "frequency",
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.mined, self.alphabet, self.labels, self.weighting = mined, alphabet, labels, weighting
        self.facts = dict(facts or {})

    @cached_property
    def data(self) -> Any:
        """The sets, to be learnt from. Each tree is drawn out once, however many sets hold it."""
        mined = self.mined
        trees = drawn_out(mined.trees, torch.arange(len(mined.trees[-1].label)), self.alphabet)
        return _Sets(trees, mined.ptr, mined.items, mined.y)

    @property
    def weights(self) -> Tensor | None:
        """How often each set is drawn, float64 [S]; ``None``: all alike."""
        support = self.mined.support.double()
        if self.weighting == "none":
            return None
        if self.weighting == "frequency":
            return support
        of = torch.zeros(len(self.labels), dtype=torch.float64).index_add(0, self.mined.y, support)
        return support / of[self.mined.y] * self.mined.graphs[self.mined.y]

    @property
    def queries(self) -> list[Query]:
        """Sets drawn by their frequency."""
        weights = self.weights
        return [] if weights is None else [Weighted(self.data, weights)]

    def state(self) -> dict[str, Any]:
        """Table, sets, supports, classes, and what the labels are."""
        edges = {} if self.alphabet.edges is None else {"edge_labels": self.alphabet.edges}
        return {**self.mined.state(), "node_labels": self.alphabet.nodes, **edges}

    def save(self, folder: Path) -> None:
        """``student.safetensors`` (whole numbers alone) and ``student.json`` (class names, depth, how sets are drawn)."""
        self.export("safetensors", folder)

    def export(self, form: str, folder: Path) -> list[Path]:
        """As `save`."""
        if form not in self.formats:
            raise ConfigError.unknown("format", form, self.formats, "format of a set of graphs")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.to(_type(t)) for name, t in self.state().items()}
        save_state_dict(folder / "student.safetensors", tensors)
        about = {
            "kind": self.kind,
            "labels": self.labels,
            "hops": len(self.mined.trees) - 1,
            "weighting": self.weighting,
            **self.facts,
        }
        atomic_write(folder / "student.json", json.dumps(about, indent=2).encode())
        return [folder / "student.safetensors", folder / "student.json"]

    @classmethod
    def load(cls, folder: Path | str) -> GraphSet:
        """What `save` left in a folder.

        Raises:
            CheckpointCorrupt: no such set lies there.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "student.json").read_text(encoding="utf-8"))
            tensors = load_state_dict(folder / "student.safetensors")
            known = {"kind", "labels", "hops", "weighting"}
            edges = tensors.get("edge_labels")
            alphabet = Alphabet(tensors["node_labels"].long(), None if edges is None else edges.long())
            facts = {k: v for k, v in about.items() if k not in known}
            return cls(Mined.of(tensors), alphabet, list(about["labels"]), str(about["weighting"]), facts)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointCorrupt(str(folder), f"holds no set of graphs: {error}") from None

    def opened(self, form: str, folder: Path) -> GraphSet:
        """What was exported, read back."""
        return GraphSet.load(folder)

    def to_pyg(self) -> list[Any]:
        """The sets as torch_geometric's ``Data``: x, edge_index, edge_attr, y, ``root`` (which nodes to pool), ``support``."""
        data = require("torch_geometric.data", "graph", "its data objects").Data
        found = []
        for i in range(len(self.data)):
            b = self.data.fetch(torch.tensor([i]))
            found.append(
                data(x=b["x"], edge_index=b["edges"].t().contiguous(), edge_attr=b.get("edge_attr"), y=b["y"], root=b["root"],
                     support=self.mined.support[i : i + 1])
            )  # fmt: skip
        return found

    def size(self) -> dict[str, float]:
        """Sets, distinct trees, nodes were all sets drawn out, and bytes of the table and the sets."""
        nodes = sizes_of(self.mined.trees)[self.mined.items].sum()
        return {
            "items": float(len(self.mined.support)),
            "trees": float(len(self.mined.trees[-1].label)),
            "nodes": float(nodes),
            "bytes": float(self.mined.bytes()),
        }

    def draw(self, folder: Path, most: int = 6) -> list[dict[str, str]]:
        """The most frequent sets of each class, drawn into ``pictures/trees.png`` below a folder; an entry for the report."""
        import io

        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        mined, rows = self.mined, len(self.labels)
        figure = Figure(figsize=(2.1 * most, 2.3 * rows), dpi=90)
        FigureCanvasAgg(figure)
        for c in range(rows):
            title = f"class {self.labels[c]}" if self.labels[c].lstrip("-").isdigit() else self.labels[c]
            mine = (mined.y == c).nonzero()[:, 0]
            order = mine[mined.support[mine].argsort(descending=True, stable=True)][:most].tolist()
            for k, i in enumerate(order):
                axes = figure.add_subplot(rows, most, c * most + k + 1)
                axes.set_axis_off()
                _draw_forest(axes, self.data.fetch(torch.tensor([i])), self.alphabet)
                share = f"{int(mined.support[i])} of {int(mined.graphs[c])}"
                axes.set_title(f"{title}\n{share}" if k == 0 else share, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight")
        path = folder / "pictures" / "trees.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, buffer.getvalue())
        caption = (
            "A row for each class, its most frequent sets of computation trees first, and how many of its graphs hold each. "
            "The root is at the top; numbers and colours are node labels."
        )
        return [{"title": "the most frequent trees", "caption": caption, "file": "pictures/trees.png"}]


def _type(values: Tensor) -> torch.dtype:
    if len(values) and int(values.min()) < 0:
        return torch.int64
    return {1: torch.uint8, 2: torch.int32, 4: torch.int64, 8: torch.int64}[
        narrow(int(values.max()) + 1 if values.numel() else 1)
    ]


def _draw_forest(axes: Any, batch: Batch, alphabet: Alphabet) -> None:
    """A set of trees beside each other, roots at the top."""
    parent = {int(a): int(b) for a, b in batch["edges"].tolist()}
    count = len(batch["x"])
    below: dict[int, list[int]] = {}
    for child, up in sorted(parent.items()):
        below.setdefault(up, []).append(child)
    depth, place, free = np.zeros(count), np.zeros(count), 0.0
    for v in range(count):  # preorder: a parent comes before its children
        depth[v] = depth[parent[v]] + 1 if v in parent else 0
    for v in range(count):
        if v not in below:
            free += 0.6 if v not in parent else 0.0
            place[v], free = free, free + 1
        if v + 1 == count or v + 1 not in parent:
            free += 0.8  # a gap between trees
    for v in range(count - 1, -1, -1):
        if v in below:
            place[v] = np.mean([place[u] for u in below[v]])
    for child, up in parent.items():
        axes.plot([place[child], place[up]], [-depth[child], -depth[up]], color="0.6", linewidth=0.8, zorder=1)
    names = _names(batch["x"], alphabet)
    from matplotlib import colormaps

    colours = [colormaps["tab20"](i % 20) for i in names]
    size = 60 if count <= 24 else 22
    axes.scatter(place, -depth, c=colours, s=size, zorder=2, edgecolors="0.3", linewidths=0.4)
    for v in range(count if count <= 24 else 0):
        axes.text(place[v], -depth[v], _called(alphabet, names[v]), fontsize=5, ha="center", va="center", zorder=3)
    axes.margins(0.15)


def _called(alphabet: Alphabet, label: int) -> str:
    """A label as the data have it; of several columns its number."""
    row = alphabet.nodes[label].tolist()
    return str(row[0]) if len(row) == 1 else str(label)


def _names(x: Tensor, alphabet: Alphabet) -> list[int]:
    """Which label each node has, by its features."""
    return (x[:, None] == alphabet.node_features()[None]).all(2).int().argmax(1).tolist()


__all__ = ["GraphSet", "GraphsArtifact", "Mined", "Weighted", "drawn_out", "feed", "sizes_of", "tree_error"]
