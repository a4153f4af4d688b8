"""Networks with several exits: how much the loss of each counts (ModularStarEncoder, arXiv 2503.03008)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ._common import choose

__all__ = ["ExitWeights", "exit_weights"]

ExitWeights = Literal["depth", "uniform", "last"]
"""The share of the depth at which an exit lies; 1 for each; or 1 for the last alone."""


def exit_weights(exits: Sequence[int], layers: int, how: ExitWeights = "depth") -> Tensor:
    """The weight of each exit's loss ``[E]``; they are not normalised.

    Source: ModularStarEncoder: ``alpha_i = i / layers``, by the whole depth and not by the number of exits.

    Args:
        exits: behind which layers the exits lie, counted from 1, ascending, each once.
        layers: how many layers the network has.
        how: ``depth``, ``uniform`` or ``last``.

    Raises:
        ConfigError: an exit lies outside 1 to ``layers``, or they are not in ascending order.

    Example:
        >>> exit_weights([1, 2, 4], 4)
        tensor([0.2500, 0.5000, 1.0000])
    """
    choose("how", how, ExitWeights, "weights")
    if not exits or min(exits) < 1 or max(exits) > layers or any(a >= b for a, b in itertools.pairwise(exits)):
        raise ConfigError("exits", given=list(exits), expected=f"layers from 1 to {layers}, ascending, each once")
    depth = torch.tensor([float(i) for i in exits])
    if how == "depth":
        return depth / layers
    return torch.ones_like(depth) if how == "uniform" else (depth == depth[-1]).to(depth.dtype)
