"""Graphs with discrete labels, answered with one class each; and small sets of them in the place of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.asked import is_path
from limbeck.data.graphs import Alphabet, DrawnGraphs, GraphData, GraphSource, from_pyg, recoded
from limbeck.data.items import Items, Part, Splits
from limbeck.data.sources import Source
from limbeck.errors import DataError, shorten
from limbeck.functional.trees import computation_trees
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.method import Batch
from limbeck.grammar.needs import Needs
from limbeck.grammar.random import Draws
from limbeck.grammar.role import Contract
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, settings
from limbeck.tasks.classification import Labelled
from limbeck.tasks.graph_set import GraphsArtifact, GraphSet, feed

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench

NAMES = {"task": {"graphs": "Graphs", "graph-condensation": "GraphCondensation"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Choice = Literal["random", "herding"]


def auc(z: Tensor, y: Tensor) -> float:
    """Area under the ROC curve: of two classes, or the mean of each class against the rest. NaN where one class is there.

    Args:
        z: scores [N, C].
        y: classes [N].

    Example:
        >>> auc(torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]), torch.tensor([0, 0, 1]))
        1.0
    """
    from sklearn.metrics import roc_auc_score

    p = z.double().softmax(-1)
    margin = torch.log(p) - torch.log1p(
        -p
    )  # of two classes the difference of their scores, without rounding at 0 and 1
    if z.shape[1] == 2:
        margin = torch.stack([z[:, 0] - z[:, 1], z[:, 1] - z[:, 0]], 1).double()
    found = []
    for c in range(1 if z.shape[1] == 2 else 0, z.shape[1]):
        yes = (y == c).numpy()
        if 0 < yes.sum() < len(yes):
            found.append(float(roc_auc_score(yes, margin[:, c].clamp(-1e300, 1e300).numpy())))
    return float(np.mean(found)) if found else float("nan")


@settings
class _Graphs(Labelled):
    """What tasks of graphs share.

    Args:
        data: where the graphs come from.
        edge_labels: look at the labels of edges, where they have any.
        layers: of the networks that are taken where none is named.
        size: of pictures: graphs have none.
    """

    onnx_names = ()
    takes_unlabelled = False

    reads = "graphs"

    data: Source = DrawnGraphs()
    edge_labels: bool = True
    layers: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.alphabet: Alphabet | None = None
        self._look()

    def validate(self) -> None:
        """Graphs have no sides."""
        if self.size is not None:
            raise ValueError("size is a side of images, and graphs have none: leave it out")

    def _look(self) -> None:
        self.primary, self.higher_is_better = "auc", True

    @property
    def formats(self) -> tuple[str, ...]:
        """What a network for graphs can be exported as."""
        return ("safetensors",)

    @property
    def needs(self) -> Needs:
        """A row of values a graph."""
        return super().needs.with_(form="graphs", edges=self.edge_width)

    def preprocessing(self, contract: Contract) -> dict[str, Any]:
        """Graphs go in as they are."""
        return {"kind": "graph", "edge_labels": self.edge_labels, **contract.as_config()}

    def read(self) -> Splits:
        """The graphs in three splits."""
        splits = super().read()
        whole = splits.train.data if isinstance(splits.train, Part) else splits.train
        if not isinstance(whole, GraphData):
            raise DataError(
                "task.data",
                "its items are no graphs",
                given=self.data.config.get("use", type(self.data).__name__),
                expected="drawn-graphs, tu, graph-arrays, pyg, pyg-import or smiles",
            )
        if self.alphabet is not None:
            told = recoded(whole if self.edge_labels else whole.without_edge_labels(), self.alphabet, "task.data")
            splits.train, splits.valid, splits.test = (
                _moved(s, told) for s in (splits.train, splits.valid, splits.test)
            )
            return splits
        if not self.edge_labels and whole.edge_label is not None:
            bare = whole.without_edge_labels()
            splits.train, splits.valid, splits.test = (
                _moved(s, bare) for s in (splits.train, splits.valid, splits.test)
            )
        return splits

    def _recall(self, about: Mapping[str, Any]) -> None:
        super()._recall(about)
        known = about["alphabet"]
        edges = known.get("edges")
        self.alphabet = Alphabet(torch.tensor(known["nodes"]), None if edges is None else torch.tensor(edges))

    def describe(self) -> dict[str, Any]:
        """What must travel with a network: the labels of nodes and edges, in the order in which it sees them."""
        whole: Any = self.loaded()
        whole = whole.data if isinstance(whole, Part) else whole
        known = getattr(whole, "alphabet", self.alphabet)
        assert known is not None
        edges = None if known.edges is None else known.edges.tolist()
        return {**super().describe(), "alphabet": {"nodes": known.nodes.tolist(), "edges": edges}}

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Graphs: torch_geometric's ``Data`` objects, or the name of a source of graphs (``graph-arrays:FILE``, ``tu:FOLDER``,
        ``smiles:FILE``), of which a ``.npz`` file needs none."""
        listed = list(given) if isinstance(given, (list, tuple)) else [given]
        if listed and all(is_path(one) for one in listed):
            found = [self._source(str(one)) for one in listed]
        else:
            odd = [one for one in listed if not hasattr(one, "edge_index")]
            if odd or not listed:
                raise DataError(
                    "inputs", given=shorten(odd[0] if odd else given),
                    expected="torch_geometric Data objects, or graph-arrays:FILE, tu:FOLDER, smiles:FILE",
                )  # fmt: skip
            found = [from_pyg(map(_classed, listed), "mirror", "inputs")[0]]
        assert self.alphabet is not None
        data = [recoded(d if self.edge_labels else d.without_edge_labels(), self.alphabet) for d in found]
        names = [f"{one}#{i}" for one, d in zip(listed, data, strict=False) for i in range(len(d))]
        whole: Any = data[0] if len(data) == 1 else joined_graphs(data)
        return AskedGraphs(whole, [str(i) for i in range(len(whole))] if len(data) != len(listed) else names)

    def _source(self, text: str) -> GraphData:
        from limbeck.recipe.recipe import make

        name = text if ":" in text and not text.endswith(".npz") else f"graph-arrays:{text}"
        if text.endswith(".npz") and text.partition(":")[0] in ("graph-arrays",):
            name = text
        source = make(Source, name, "inputs")
        if not isinstance(source, GraphSource):
            raise DataError(
                "inputs", "holds no graphs", given=text, expected="graph-arrays:FILE, tu:FOLDER, smiles:FILE"
            )
        data: GraphData = source.collected()[0]
        return data

    def graphs(self, items: Items | None = None) -> GraphData:
        """Training graphs (or those of another split) as graphs of their own."""
        self.loaded()
        chosen: Any = self.train if items is None else items
        whole: Any = chosen.data if isinstance(chosen, Part) else chosen
        return whole.take(chosen.ids) if isinstance(chosen, Part) else whole

    @property
    def edge_width(self) -> int:
        """Width of edge features; 0 where edges have none."""
        items: Any = self.loaded()
        whole: Any = items.data if isinstance(items, Part) else items
        if self.alphabet is not None and not hasattr(whole, "edge_width"):
            seen = self.alphabet.edge_features()
            return 0 if seen is None else int(seen.shape[1])
        return int(whole.edge_width)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Labels are one-hot: nothing is normalised."""
        return (), ()

    def feed(self, module: Any, batch: Batch) -> Any:
        """Ragged graphs as networks take them (`limbeck.tasks.graph_set.feed`)."""
        return feed(module, batch)

    def _judge_label(self, z: Tensor, y: Tensor, t: Tensor | None) -> Scores:
        found = super()._judge_label(z, y, t)
        return Scores({"auc": auc(z, y), **found}, found.per_item)

    def default_student(self) -> dict[str, Any]:
        """A GIN."""
        return {"use": "gnn", "kind": "gin", "layers": self.layers}

    def default_teacher(self) -> dict[str, Any]:
        """A wider GIN."""
        return {"use": "gnn", "kind": "gin", "layers": self.layers, "hidden": 128}


@settings
class Graphs(_Graphs):
    """Graphs whose nodes have discrete labels, answered with one class each.

    Args:
        student_items: size of the student's training set, each class in proportion, drawn by the seed; all if ``null``.
    """

    judging = ("student_items", "eval_batch")

    student_items: Count | None = None


class AskedGraphs:
    """Graphs that somebody asks about.

    Args:
        data: the graphs; their classes are nothing.
        names: how they are called.
    """

    def __init__(self, data: Any, names: list[str]) -> None:
        self.data, self.names = data, names

    def __len__(self) -> int:
        return len(self.names)

    def fetch(self, items: Tensor) -> Batch:
        """The graphs, one after another."""
        batch: Batch = self.data.fetch(items)
        return batch


def joined_graphs(sets: Sequence[GraphData]) -> GraphData:
    """Graphs of one alphabet as one set, one after another."""
    first = sets[0]

    def pointers(name: str) -> Tensor:
        parts, begun = [torch.zeros(1, dtype=torch.int64)], 0
        for s in sets:
            ptr = getattr(s, name)
            parts.append(ptr[1:] + begun)
            begun += int(ptr[-1])
        return torch.cat(parts)

    kinds = [s.edge_label for s in sets if s.edge_label is not None]
    return GraphData(
        first.alphabet,
        pointers("ptr"),
        torch.cat([s.label for s in sets]),
        pointers("edge_ptr"),
        torch.cat([s.edges for s in sets]),
        torch.cat(kinds) if len(kinds) == len(sets) else None,
        torch.cat([s.y for s in sets]),
    )


class _classed:
    """A graph without a class as one that has some."""

    def __init__(self, graph: Any) -> None:
        self.x, self.edge_index, self.num_nodes = getattr(graph, "x", None), graph.edge_index, graph.num_nodes
        self.edge_attr = getattr(graph, "edge_attr", None)
        self.y = [0]


def _moved(items: Any, whole: GraphData) -> Any:
    return Part(whole, items.ids) if isinstance(items, Part) else whole


@settings
class GraphCondensation(_Graphs):
    """A small set of graphs or trees that teaches like the whole.

    The recipe's ``student`` is the network that the set is made for; the recipe's ``evaluator`` evaluates it.

    Args:
        measure: what the real graphs of a baseline are as large as what was made in: ``bytes`` as it is stored, or
            ``nodes`` of its trees drawn out. Each class has its part of them.
    """

    judging = ("eval_batch", "measure")

    measure: Literal["bytes", "nodes"] = "bytes"

    choices = ("random", "herding")
    called = MappingProxyType({"random": "random real graphs", "herding": "real graphs chosen by herding"})
    """How real graphs can be chosen as a baseline."""

    @property
    def formats(self) -> tuple[str, ...]:
        """What a set of trees can be exported as."""
        return GraphSet.formats

    def choose_real(self, how: Choice, seed: int, budget: float) -> Tensor:
        """Ids of training graphs that together are about as large as ``budget`` (`measure`), at least one of each class.

        ``random``; ``herding``: greedily, so that the mean of how often a graph holds each tree of depth 1 follows the mean
        of the class (Welling 2009).
        """
        data = self.graphs()
        cost = data.bytes_each().double() if self.measure == "bytes" else data.ptr.diff().double()
        rng = Draws(seed, ("graphs", how)).numpy("choice")
        chosen: list[int] = []
        for c in range(self.outputs):
            ids = (data.y == c).nonzero()[:, 0].numpy()
            left = budget * len(ids) / len(data)
            order = rng.permutation(ids) if how == "random" else ids[_herded(data.take(torch.as_tensor(ids)))]
            spent = np.cumsum(cost[order].numpy())
            count = int(np.searchsorted(spent - cost[order].numpy() / 2, left))  # the last one where most of it fits
            chosen += order[: max(1, count)].tolist()
        return torch.tensor(chosen)

    def real(self, how: Choice, seed: int, made: Artifact | None = None) -> GraphsArtifact:
        """Real graphs as large as what was made, chosen so (`choose_real`)."""
        assert self.labels is not None
        budget = made.size()[self.measure] if isinstance(made, GraphsArtifact) else 0.0
        return GraphsArtifact(self.graphs().take(self.choose_real(how, seed, budget)), self.labels)

    def whole(self) -> GraphsArtifact:
        """All training graphs: what networks learn from them is the row of the teacher."""
        assert self.labels is not None
        return GraphsArtifact(self.graphs(), self.labels)

    def pool(self) -> dict[str, Callable[[], nn.Module]]:
        """The architectures that a set is also evaluated with."""
        from limbeck.networks.gnn import KINDS

        return {kind: partial(self._network, kind) for kind in KINDS}

    def _network(self, kind: str) -> nn.Module:
        from limbeck.networks.gnn import Gnn, GraphHead

        return GraphHead(Gnn(kind, self.shape[0], 64, self.layers, self.edge_width), 64, self.outputs)

    def default_evaluator(self) -> dict[str, Any]:
        """Fresh networks trained on the set."""
        optim = {
            "steps": 300,
            "batch_size": 64,
            "lr": 0.003,
            "optimizer": "adam",
            "weight_decay": 0.0,
            "schedule": "cosine",
        }
        return {"use": "fresh", "optim": optim}

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """Nothing: a set has no calibration of its own."""
        return {}


def _herded(data: GraphData) -> list[int]:
    """All graphs in the order in which herding takes them."""
    trees, code = computation_trees(data.label, data.global_edges(), 1, data.edge_label)
    flat = torch.zeros(len(data), len(trees[-1].label), dtype=torch.float64)
    flat.index_put_((data.owner, code), torch.ones(len(code), dtype=torch.float64), accumulate=True)
    mean, total, free = (
        flat.mean(0),
        torch.zeros(flat.shape[1], dtype=torch.float64),
        torch.zeros(len(flat), dtype=torch.float64),
    )
    taken: list[int] = []
    square = flat.square().sum(1)
    for k in range(len(flat)):
        aim = mean * (k + 1) - total
        best = int((square - 2 * flat @ aim + free).argmin())
        taken.append(best)
        free[best] = float("inf")
        total += flat[best]
    return taken


__all__ = ["GraphCondensation", "Graphs", "auc"]
