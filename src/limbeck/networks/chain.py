"""Networks run one after the other: a trunk up to one of its modules, a projector, somebody else's head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.grammar.signal import module_at


class _Reached(Exception):
    """The module that was asked for has run."""


class Until(nn.Module):
    """A network up to one of its modules: the output is that module's, or, for ``name:in``, what goes into it.

    What comes after it does not run, except while the network is compiled or exported, where it is cut off anyway.

    Args:
        net: the network, whole.
        path: the module's name, as ``named_modules()`` spells it; with ``:in``, its first input.

    Raises:
        TapError: the network has no module of that name.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> Until(net, "1")(torch.zeros(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(self, net: nn.Module, path: str) -> None:
        super().__init__()
        module_at(net, path.removesuffix(":in"))
        self.net, self.path = net, path

    def forward(self, x: Any) -> Tensor:
        """What the module at ``path`` returned for x."""
        found: list[Tensor] = []

        def reached(_module: nn.Module, _args: Any, out: Any) -> None:
            found.append(out[0] if isinstance(out, (tuple, list)) else out)
            if not (torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()):
                raise _Reached

        def entered(module: nn.Module, args: Any) -> None:
            reached(module, args, args[0])

        at = module_at(self.net, self.path.removesuffix(":in"))
        handle = (
            at.register_forward_pre_hook(entered) if self.path.endswith(":in") else at.register_forward_hook(reached)
        )
        try:
            self.net(x)
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[-1]


class Chain(nn.Module):
    """Modules by name, each fed what the one before returned.

    Args:
        links: name -> module, in order.

    Example:
        >>> chain = Chain({"trunk": nn.Linear(4, 3), "head": nn.Linear(3, 2)})
        >>> chain(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(self, links: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.links = nn.ModuleDict(dict(links))

    def forward(self, x: Any) -> Any:
        """The last one's output."""
        for link in self.links.values():
            x = link(x)
        return x
