"""Networks for graphs: of a named kind, or any torch_geometric module that embeds nodes."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, LimbeckError, first_line
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Share, settings
from limbeck.grammar.task import DEEPEST, Check, Depth, Task
from limbeck.models.classifier import Loaded
from limbeck.networks.gnn import INEXACT, Gnn, GraphHead, Kind, Pooling
from limbeck.recipe.imports import imported

NAMES = {"model": {"gnn": "GnnModel", "gnn-import": "ImportedGnnModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class _GraphModel(Loaded):
    """What models of graphs share.

    Attributes:
        layers: how far a node's embedding sees (each has it); ``None`` where that is not told.
        inexact: why what it says of a node differs from what it says of the root of that node's tree; empty where it is
            the same.
    """

    forms = ("graphs",)
    inexact: str = ""

    def contract(self, module: nn.Module, task: Task) -> Contract:
        """Labels are one-hot: nothing is normalised."""
        return Contract()


class GnnModel(_GraphModel):
    """A message-passing network: layers of one kind, all nodes pooled, dropout, a linear layer.

    Args:
        kind: ``gin``, ``sage``, ``graphconv``, ``gat``, or ``gcn``, which normalises by degrees.
        hidden: width of the nodes.
        layers: how many; a node sees as far.
        pooling: ``sum`` or ``mean`` of the nodes.
        dropout: share of pooled values dropped while training.
        heads: of ``gat``.
    """

    def __init__(
        self,
        kind: Kind = "gin",
        hidden: int = 64,
        layers: int = 2,
        pooling: Pooling = "sum",
        dropout: float = 0.0,
        heads: int = 1,
        checkpoint: str | None = None,
        labels: str | list[str] | None = None,
        entry: str | None = None,
        strip: str = "",
        check: Check = "on",
    ) -> None:
        # written out: the setting "kind" has the name of what a component is of
        if hidden < 1 or heads < 1 or hidden % heads:
            raise ValueError("hidden must be 1 or more, and a multiple of heads")
        if not 1 <= layers <= DEEPEST:
            raise ValueError(f"layers must be from 1 to {DEEPEST:,}")
        if not 0 <= dropout < 1:
            raise ValueError("dropout must lie in [0, 1)")
        super().__init__(checkpoint=checkpoint, labels=labels, entry=entry, strip=strip, check=check)
        self.kind_of: str = kind
        self.hidden, self.layers, self.pooling, self.dropout, self.heads = hidden, layers, pooling, dropout, heads
        self.inexact = f"{kind} normalises by degrees, which the leaves of trees do not keep" if kind in INEXACT else ""

    def make(self, needs: Needs) -> nn.Module:
        """A `limbeck.networks.gnn.GraphHead` on a `limbeck.networks.gnn.Gnn`."""
        encoder = Gnn(self.kind_of, needs.inputs[0], self.hidden, self.layers, needs.edges, self.heads)
        return GraphHead(encoder, self.hidden, needs.outputs, self.pooling, self.dropout)


@settings
class ImportedGnnModel(_GraphModel):
    """Any module that embeds the nodes of a graph, by its path; pooling and a linear layer follow. Naming it runs its code.

    It is made with ``options``, and with the width of the nodes' features where its signature has ``in_channels``. It is
    called with ``x`` [R, F], ``edge_index`` [2, E], and ``edge_attr`` [E, K] where its ``forward`` has that name, and answers
    with [R, D]. ``torch_geometric.nn:GIN`` with ``{hidden_channels: 64, num_layers: 2}`` is one.

    Args:
        function: ``package.module:Class``, or a function that returns a module.
        options: its arguments.
        layers: how far a node's embedding sees; ``null`` takes ``num_layers`` of the options.
        pooling: ``sum`` or ``mean`` of the nodes.
        dropout: share of pooled values dropped while training.
    """

    code: ClassVar[str] = "function"

    function: str
    options: dict[str, Any] | None = None
    layers: Depth | None = None
    pooling: Pooling = "sum"
    dropout: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        told = (self.options or {}).get("num_layers")
        if self.layers is None and isinstance(told, int):
            self.layers = told

    def make(self, needs: Needs) -> nn.Module:
        """What the function returns, with a head."""
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.jit, when torch_geometric is imported
            made = imported(self.function, "function")
        arguments = dict(self.options or {})
        try:
            accepted = inspect.signature(made).parameters
        except (TypeError, ValueError):
            accepted = {}  # type: ignore[assignment]
        if "in_channels" in accepted:
            arguments.setdefault("in_channels", needs.inputs[0])
        try:
            module = made(**arguments)
        except LimbeckError:
            raise
        except Exception as error:
            raise ConfigError(
                "function", f"{self.function} failed: {type(error).__name__}: {first_line(error)}"
            ) from error
        if not isinstance(module, nn.Module):
            raise ConfigError("function", given=type(module).__name__, expected="a torch.nn.Module")
        encoder = _Called(module)
        x, edges = torch.zeros(3, needs.inputs[0]), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        attr = torch.zeros(4, needs.edges) if needs.edges else None
        try:
            with torch.no_grad():
                out = encoder.eval()(x, edges, attr)
        except Exception as error:
            problem = f"{self.function} fails on three nodes of width {needs.inputs[0]}: {type(error).__name__}: {first_line(error)}"
            raise ConfigError("function", problem, expected="a module that takes x and edge_index") from error
        finally:
            encoder.train()
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 3:
            raise ConfigError(
                "function",
                f"{self.function} does not answer with a row for each node",
                given=list(out.shape) if isinstance(out, Tensor) else type(out).__name__,
                expected="embeddings [nodes, D]; pooling and the linear layer follow",
            )
        return GraphHead(encoder, out.shape[1], needs.outputs, self.pooling, self.dropout)


class _Called(nn.Module):
    """A module that embeds nodes, called with what its ``forward`` takes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.takes_edges = "edge_attr" in inspect.signature(module.forward).parameters

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """Embeddings [R, D]."""
        more = {"edge_attr": edge_attr} if self.takes_edges and edge_attr is not None else {}
        return self.module(x, edge_index, **more)


__all__ = ["GnnModel", "ImportedGnnModel"]
