"""Where a network shows what papers ask for: its middle, a feature as vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from limbeck.errors import ConfigError


def channels_first(f: Tensor, picture: Sequence[int] = ()) -> Tensor:
    """A map as [N, D, h, w]: one with its channels last, as Swin shows it, is turned; what is no map is left as it is.

    Args:
        f: the feature.
        picture: height and width of the image that it is of: which two axes are its sides is told by their ratio. Where
            that leaves a doubt, or no image is given, channels come first.

    Example:
        >>> import torch
        >>> channels_first(torch.zeros(2, 8, 6, 96), (32, 24)).shape
        torch.Size([2, 96, 8, 6])
    """
    if f.ndim != 4 or len(picture) != 2:
        return f
    high, wide = picture

    def sides(h: int, w: int) -> bool:
        return h <= high and w <= wide and abs(h * wide - w * high) <= max(high, wide)  # each is rounded to a pixel

    last = sides(f.shape[1], f.shape[2]) and not sides(f.shape[2], f.shape[3])
    return f.movedim(-1, 1) if last else f


def picture_of(batch: Mapping[str, Any]) -> tuple[int, ...]:
    """Height and width of a batch's images; nothing where it has none."""
    x = batch.get("x")
    return tuple(x.shape[-2:]) if isinstance(x, Tensor) and x.ndim == 4 else ()


def pooled(f: Tensor, picture: Sequence[int] = ()) -> Tensor:
    """A feature as vectors [N, D]: maps are averaged over space, of tokens the class token is taken.

    ``picture``: as in `channels_first`.
    """
    if f.ndim == 4:
        return channels_first(f, picture).mean((2, 3))
    return f[:, 0] if f.ndim == 3 else f


def middle_of(module: nn.Module) -> str:
    """Where the weak head reads when no module is named.

    A ViT's ``blocks`` or ``layers``: index ``int(0.5 depth) - 1``; a staged CNN (``layer1``...): the last stage but one;
    anything else: the activation before the last linear layer.
    """
    names = dict(module.named_modules())
    for name, child in names.items():
        if (
            isinstance(child, (nn.ModuleList, nn.Sequential))
            and name.split(".")[-1] in ("blocks", "layers")
            and len(child) > 1
        ):
            return f"{name}.{max(0, int(0.5 * len(child)) - 1)}"
    stages = sorted(n for n in names if n.rstrip("0123456789") in ("layer", "stage", "stages.") and n[-1:].isdigit())
    if len(stages) > 1:
        return stages[-2]
    linears = [n for n, m in names.items() if isinstance(m, nn.Linear)]
    if linears:
        return f"{linears[-1]}:in"
    raise ConfigError(
        "method.feature",
        "no intermediate feature was found in the student",
        remedy="name a module: method.feature=layer3",
    )


def last_linear(module: nn.Module) -> str:
    """Where a classifier's last linear layer reads: its penultimate feature.

    Raises:
        ConfigError: there is none.
    """
    linears = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise ConfigError(
            "evaluator.feature", "the network has no linear layer", remedy="name a module: evaluator.feature=layer4"
        )
    return f"{linears[-1]}:in"


def last_places(module: nn.Module, run: Callable[[], object], picture: Sequence[int] = ()) -> str:
    """The last module whose output has several places: a map before pooling, or tokens before the head reads one of them.

    Args:
        module: the network.
        run: makes it answer once.
        picture: height and width of what it is asked about, as in `channels_first`.

    Returns:
        The module's name; empty where no output has several places.
    """
    seen: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_: nn.Module, __: Any, out: Any) -> None:
            if not isinstance(out, Tensor):
                return
            sides = channels_first(out, picture).shape[2:] if out.ndim == 4 else out.shape[1:2] if out.ndim == 3 else ()
            if math.prod(sides) > 1:
                seen.append(name)

        return look

    handles = [child.register_forward_hook(hook(name)) for name, child in module.named_modules() if name]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen[-1] if seen else ""


def grid_of(tokens: int, picture: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the largest grid of an image's shape that so many tokens fill; what is left are class tokens.

    Example:
        >>> grid_of(197, (224, 224)), grid_of(8, (32, 128))
        ((14, 14), (1, 4))
    """
    high, wide = picture
    step = math.gcd(high, wide)
    high, wide = high // step, wide // step
    scale = math.isqrt(tokens // (high * wide))
    return high * scale, wide * scale
