"""The feature pyramid inside any network of images: which modules show its maps, one for each resolution."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import TapError
from limbeck.grammar.signal import evaluating


class Level(NamedTuple):
    """One level of a pyramid.

    Attributes:
        path: the module that shows it, as taps are named.
        channels, height, width: of its map.
    """

    path: str
    channels: int
    height: int
    width: int


def pyramid_of(module: nn.Module, x: Tensor, levels: int | None = None) -> list[Level]:
    """The last map of every resolution that a network computes, the finest first: `Level.path` can be tapped.

    Of modules that show the same map (a block, and the layer that ends it) the outermost is named. Maps are
    [N, C, h, w]; what shows channels last, or tokens, is no map here.

    Args:
        module: the network.
        x: a batch of images [N, C, H, W] on its device.
        levels: how many, the coarsest ones; all by default.

    Raises:
        TapError: it shows fewer maps than are asked for.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.Flatten())
        >>> pyramid_of(net, torch.zeros(1, 1, 8, 8))
        [Level(path='1', channels=4, height=8, width=8), Level(path='2', channels=8, height=4, width=4)]
    """
    found: dict[tuple[int, int], tuple[str, int]] = {}
    handles = []

    def watch(path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.ndim == 4 and len(out) == len(x) and min(out.shape[2:]) > 1:
                found[int(out.shape[2]), int(out.shape[3])] = path, int(out.shape[1])  # an outer module ends last

        return hook

    try:
        for path, part in module.named_modules():
            if path:
                handles.append(part.register_forward_hook(watch(path)))
        with torch.no_grad(), evaluating([module]):
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    known = [Level(path, channels, *size) for size, (path, channels) in sorted(found.items(), reverse=True)]
    if levels is not None and len(known) < levels:
        raise TapError(
            "levels",
            f"{type(module).__name__} shows maps at {len(known)} resolutions",
            given=levels,
            expected=", ".join(f"{level.path} ({level.height}x{level.width})" for level in known)
            or "a network of images",
        )
    return known if levels is None else known[len(known) - levels :]


__all__ = ["Level", "pyramid_of"]
