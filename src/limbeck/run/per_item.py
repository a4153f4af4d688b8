"""What single test items contributed to a run's metrics: written beside its result, read by comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.grammar.scores import Scores
from limbeck.storage import store

FILE = "per_item.safetensors"
"""In a run's folder: ``WHO/METRIC`` -> values [N], ``weights`` [N] where items count differently."""

WEIGHTS = "weights"


def save_items(folder: Path, scored: Mapping[str, Mapping[str, float]]) -> None:
    """Write the items' values of everybody who has any.

    Args:
        folder: the run's.
        scored: who -> metrics, those with single items as ``Scores``. Yes or no is kept in a byte, the rest in float32.
    """
    tensors: dict[str, Tensor] = {}
    for who, scores in scored.items():
        if not isinstance(scores, Scores):
            continue
        for metric, values in scores.per_item.items():
            tensors[f"{who}/{metric}"] = values.clone() if values.dtype == torch.bool else values.float().clone()
        if scores.per_item and scores.weights is not None:
            tensors[WEIGHTS] = scores.weights.float().clone()
    if tensors:
        store.save_state_dict(folder / FILE, tensors)


def load_items(folder: Path) -> dict[str, Any]:
    """``WHO/METRIC`` -> values [N] as NumPy arrays, ``weights`` among them where there are any; empty where none were kept.

    Raises:
        CheckpointCorrupt: the file is damaged.
    """
    path = folder / FILE
    return {name: values.numpy() for name, values in store.load_state_dict(path).items()} if path.is_file() else {}


__all__ = ["FILE", "WEIGHTS", "load_items", "save_items"]
