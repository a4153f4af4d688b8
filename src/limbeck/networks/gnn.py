"""Message-passing networks of torch_geometric's layers, which pool all nodes of a graph, or the roots of its trees alone."""

from __future__ import annotations

import itertools
import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from limbeck.errors import require

Kind = Literal["gin", "sage", "graphconv", "gat", "gcn"]
Pooling = Literal["sum", "mean"]

KINDS: tuple[str, ...] = get_args(Kind)

INEXACT = ("gcn",)
"""Kinds whose layers look at the degrees of neighbours, which the leaves of a computation tree do not have."""


def layers_of_pyg() -> Any:
    """``torch_geometric.nn``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, when it is imported
        return require("torch_geometric.nn", "graph", "a network for graphs")


def convolution(kind: str, inputs: int, outputs: int, edges: int = 0, heads: int = 1) -> nn.Module:
    """One layer: ``gin`` (sum and a perceptron; with edge labels GINE), ``sage`` (mean), ``graphconv`` (sum), ``gat``, ``gcn``.

    Args:
        kind: which.
        inputs, outputs: width of the nodes before and after.
        edges: width of edge features; 0: none are looked at.
        heads: of ``gat``, which divide ``outputs``.

    Raises:
        MissingExtra: torch_geometric is not installed.
    """
    pyg = layers_of_pyg()
    if kind == "gin":
        steps = nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
        return pyg.GINEConv(steps, edge_dim=edges) if edges else pyg.GINConv(steps)
    if kind == "sage":
        return pyg.SAGEConv(inputs, outputs)
    if kind == "graphconv":
        return pyg.GraphConv(inputs, outputs)
    if kind == "gat":
        return pyg.GATConv(inputs, outputs // heads, heads=heads, edge_dim=edges or None)
    return pyg.GCNConv(inputs, outputs)


def pool(nodes: Tensor, owner: Tensor, graphs: int, root: Tensor | None, how: str) -> Tensor:
    """Sum or mean [graphs, D] over each graph's nodes [R, D], or over its roots alone.

    Args:
        nodes: embeddings.
        owner: which graph each belongs to, int64 [R].
        graphs: how many there are.
        root: which are pooled, bool [R]; ``None``: all.
        how: ``sum`` or ``mean``.
    """
    if root is not None:
        nodes, owner = nodes[root], owner[root]
    total = nodes.new_zeros(graphs, nodes.shape[1]).index_add(0, owner, nodes)
    if how == "sum":
        return total
    return total / torch.bincount(owner, minlength=graphs).clamp(min=1)[:, None].to(total.dtype)


class GraphHead(nn.Module):
    """An encoder of nodes, pooling, dropout and a linear layer.

    Args:
        encoder: from (x [R, F], edge_index [2, E], edge_attr or ``None``) to embeddings [R, D].
        width: D.
        outputs: values a graph.
        pooling: ``sum`` or ``mean``.
        dropout: share of pooled values dropped while training.
    """

    def __init__(
        self, encoder: nn.Module, width: int, outputs: int, pooling: str = "sum", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, outputs)

    def embed(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """Embeddings [R, D] of the nodes."""
        return self.encoder(x, edge_index, edge_attr)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        owner: Tensor,
        graphs: int,
        edge_attr: Tensor | None = None,
        root: Tensor | None = None,
    ) -> Tensor:
        """Values [graphs, outputs] of ragged graphs (see `pool`)."""
        nodes = self.embed(x, edge_index, edge_attr)
        return self.head(self.drop(pool(nodes, owner, graphs, root, self.pooling)))


class Gnn(nn.Module):
    """Layers of one kind with ReLU behind each: an encoder of nodes.

    Args:
        kind: see `convolution`.
        inputs: width of the nodes' features.
        hidden: width behind each layer.
        layers: how many.
        edges: width of edge features; 0: none are looked at. ``sage``, ``graphconv`` and ``gcn`` never look at them.
        heads: of ``gat``.
    """

    def __init__(self, kind: str, inputs: int, hidden: int, layers: int, edges: int = 0, heads: int = 1) -> None:
        super().__init__()
        self.edges = edges if kind in ("gin", "gat") else 0
        widths = [inputs, *[hidden] * layers]
        self.convs = nn.ModuleList(convolution(kind, a, b, self.edges, heads) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """Embeddings [R, hidden]."""
        for conv in self.convs:
            x = (conv(x, edge_index, edge_attr) if self.edges else conv(x, edge_index)).relu()
        return x


__all__ = ["INEXACT", "KINDS", "Gnn", "GraphHead", "Kind", "Pooling", "convolution", "layers_of_pyg", "pool"]
