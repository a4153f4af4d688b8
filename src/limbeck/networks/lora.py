"""Low-rank adapters as views of a network: called through the view the adapter acts, called directly it does not.

    y = W x + (alpha / r) B A x,      A: [r, in], B: [out, r], B = 0 at first

The network itself is not edited (its state dict, hash and parameters stay its own): the view adds to the outputs of the
layers it aims at by hooks that do nothing outside it. So one network can be a frozen teacher and, with an adapter, a role
that learns. Source: Hu et al. 2021 (arXiv 2106.09685). Folders are written as peft reads them.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.component import Settings
from limbeck.grammar.settings import Count, Positive, Share, settings
from limbeck.storage.store import atomic_write, save_state_dict


@settings
class Lora(Settings):
    """A low-rank adapter.

    Args:
        rank: r, the inner width.
        alpha: the update is multiplied by alpha / r.
        targets: layers it acts on, by the end of their names (``q_proj``, ``to_k``) or a regular expression over whole
            names; ``all`` takes every linear layer and 1x1 or larger convolution.
        dropout: share of the adapter's inputs dropped while it learns.
    """

    rank: Count = 16
    alpha: Positive = 16.0
    targets: str | list[str] = "all"
    dropout: Share = 0.0

    def view(self, base: nn.Module) -> LoraView:
        """A view of a network through a fresh adapter, which changes nothing yet.

        Raises:
            ConfigError: no layer has such a name.
        """
        return LoraView(base, self)

    def aims(self, base: nn.Module) -> list[str]:
        """The names of the layers that it acts on."""
        layers = [n for n, m in base.named_modules() if n and isinstance(m, (nn.Linear, nn.Conv2d)) and _whole(m)]
        wanted = [self.targets] if isinstance(self.targets, str) else list(self.targets)
        if wanted == ["all"]:
            found = layers
        else:
            found = [n for n in layers if any(n == w or n.endswith(f".{w}") or re.fullmatch(w, n) for w in wanted)]
        if not found:
            ends = sorted({n.rsplit(".", 1)[-1] for n in layers})
            raise ConfigError(
                "adapter.targets", given=self.targets, expected=f"layers such as {', '.join(ends[:8])}, or all"
            )
        return found


def _whole(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Conv2d) or layer.groups == 1


class LoraView(nn.Module):
    """A network seen through an adapter. Its parameters and state are the adapter's alone.

    Args:
        base: the network; it stays whoever's it is.
        lora: the adapter's settings.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4))
        >>> view = Lora(rank=2).view(net)
        >>> x = torch.ones(1, 4)
        >>> torch.equal(view(x), net(x)), sorted(view.state_dict())
        (True, ['down.0', 'up.0'])
    """

    def __init__(self, base: nn.Module, lora: Lora) -> None:
        super().__init__()
        object.__setattr__(self, "base", base)  # not registered: its weights are not the adapter's
        self.lora, self.acting = lora, False
        self.names = lora.aims(base)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self.dropout = nn.Dropout(lora.dropout)
        for name in self.names:
            layer = base.get_submodule(name)
            weight: Tensor = layer.weight  # type: ignore[assignment]
            down = weight.new_empty(lora.rank, *weight.shape[1:], dtype=torch.float32)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            self.down[_key(name)] = nn.Parameter(down)
            up = torch.zeros(weight.shape[0], lora.rank, *(1,) * (weight.ndim - 2), device=weight.device)
            self.up[_key(name)] = nn.Parameter(up)
            layer.register_forward_hook(_Add(self, _key(name)))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base, name)  # what the network says of itself

    def __deepcopy__(self, memo: dict[int, Any]) -> LoraView:
        """A view of the same network with weights of its own; where the network is copied too, a view of that copy."""
        alone = id(self.base) not in memo
        if alone:
            memo[id(self.base)] = self.base
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        if alone:
            del memo[id(self.base)]
        for name in self.names if alone else ():  # otherwise the network's own copy brings the hooks along
            twin.base.get_submodule(name).register_forward_hook(_Add(twin, _key(name)))
        return twin

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.lora.alpha / self.lora.rank

    @contextlib.contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The network, with the adapter acting."""
        was, self.acting = self.acting, True
        try:
            yield self.base
        finally:
            self.acting = was

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output with the adapter acting."""
        with self.active() as base:
            return base(*args, **kwargs)

    def method_of(self, name: str) -> Callable[..., Any]:
        """A method of the network, with the adapter acting."""

        def called(*args: Any, **kwargs: Any) -> Any:
            with self.active() as base:
                return getattr(base, name)(*args, **kwargs)

        return called

    def update_of(self, name: str) -> Tensor:
        """What the adapter adds to a layer's weight."""
        down, up = self.down[_key(name)], self.up[_key(name)]
        return self.scale * (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])

    def merged(self) -> nn.Module:
        """A copy of the network with the adapter in its weights: a plain network of the same architecture."""
        twin = copy.deepcopy(self.base, {id(self): None})
        for _, module in twin.named_modules():
            for key in [k for k, hook in module._forward_hooks.items() if isinstance(hook, _Add)]:
                del module._forward_hooks[key]
        with torch.no_grad():
            for name in self.names:
                weight: Any = twin.get_submodule(name).weight
                weight.add_(self.update_of(name).to(weight.dtype))
        return twin

    def save(self, folder: Path) -> None:
        """``adapter_model.safetensors`` and ``adapter_config.json``, as peft reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name in self.names:
            tensors[f"base_model.model.{name}.lora_A.weight"] = self.down[_key(name)].detach()
            tensors[f"base_model.model.{name}.lora_B.weight"] = self.up[_key(name)].detach()
        save_state_dict(folder / "adapter_model.safetensors", tensors)
        about = {
            "peft_type": "LORA",
            "r": self.lora.rank,
            "lora_alpha": self.lora.alpha,
            "lora_dropout": self.lora.dropout,
            "target_modules": self.names,
            "bias": "none",
            "inference_mode": True,
        }
        atomic_write(folder / "adapter_config.json", json.dumps(about, indent=2).encode())


class _Add:
    """The hook of one layer: adds the adapter's part while it acts."""

    def __init__(self, view: LoraView, key: str) -> None:
        self.view, self.key = view, key

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        view = self.view
        if view is None or not view.acting:
            return None
        x, down, up = view.dropout(args[0]), view.down[self.key], view.up[self.key]
        if isinstance(layer, nn.Conv2d):
            mode: Any = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
            inner = nn.functional.conv2d(x, down.to(x.dtype), **mode)
            return out + view.scale * nn.functional.conv2d(inner, up.to(x.dtype))
        return out + view.scale * nn.functional.linear(nn.functional.linear(x, down.to(x.dtype)), up.to(x.dtype))


def _key(name: str) -> str:
    return name.replace(".", "/")


__all__ = ["Lora", "LoraView"]
