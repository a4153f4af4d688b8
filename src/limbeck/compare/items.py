"""Differences over seeds *and* test items, from what runs recorded of single items; and these records in one small file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.errors import CheckpointCorrupt
from limbeck.report.inference import over_seeds_and_items
from limbeck.report.statistics import Estimate
from limbeck.run.per_item import WEIGHTS
from limbeck.storage import store

Items = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Label of a row -> seed -> ``WHO/METRIC`` -> values [N] (see ``limbeck.run.per_item``)."""

ALIASES = {"random": "alone", "ddim": "alone", "all": "teacher"}
"""What the student alone and the teacher are where the student is a data set or a sampler: random images, plain DDIM,
all real images."""


def split(who: str, beside: str = "", labels: Iterable[str] = ()) -> tuple[str, str]:
    """``LABEL``, ``LABEL:PART`` or a bare ``PART`` of the row ``beside`` as (label, part); the student is the part of a row."""
    if who in labels:
        return who, "student"
    label, colon, part = who.rpartition(":")
    if not colon and not beside:
        return who, "student"
    return label if colon else beside.partition(":")[0], ALIASES.get(part, part)


def difference(items: Items, row: str, over: str, metric: str) -> Estimate | None:
    """The difference of two rows in a metric, with an interval for other seeds and other test items.

    Args:
        items: what the runs recorded.
        row, over: as in ``limbeck.compare.checks``.
        metric: a mean over the test items.

    Returns:
        ``None`` where a run of either lacks the single items' values, or they are not of the same items.
    """
    (label, part), (other, beside) = split(row, "", items), split(over, row, items)
    seeds = [s for s in items.get(label, {}) if s in items.get(other, {})]
    rows, weights = [], None
    for seed in seeds:
        one, two = items[label][seed], items[other][seed]
        a, b = one.get(f"{part}/{metric}"), two.get(f"{beside}/{metric}")
        if a is None or b is None or len(a) != len(b):
            return None
        rows.append(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))
        weights = one.get(WEIGHTS)
    if not rows or any(len(r) != len(rows[0]) for r in rows):
        return None
    return over_seeds_and_items(np.stack(rows), weights)


# --------------------------------------------------------------------------------------------------- kept in one file


def keep_items(path: Path, items: Items, wanted: Iterable[tuple[str, str, str]]) -> None:
    """Write some of the records as one small safetensors file: yes and no as bits, numbers in half precision.

    Args:
        path: the file.
        items: what the runs recorded.
        wanted: (label, part, metric) of what is kept, where it is there.
    """
    tensors: dict[str, torch.Tensor] = {}
    about: dict[str, Any] = {}
    for label, part, metric in dict.fromkeys(wanted):
        runs = {s: r[f"{part}/{metric}"] for s, r in items.get(label, {}).items() if f"{part}/{metric}" in r}
        lengths = {len(v) for v in runs.values()}
        if len(lengths) != 1:
            continue
        values = np.stack([np.asarray(v) for v in runs.values()])
        key = f"{label}/{part}/{metric}"
        about[key] = {"seeds": list(runs), "items": lengths.pop()}
        if values.dtype == np.bool_:
            tensors[key] = torch.from_numpy(np.packbits(values, axis=1))
        else:
            about[key]["scale"] = scale = float(np.abs(values).mean()) or 1.0
            tensors[key] = torch.from_numpy((values / scale).astype(np.float16))
        weights = next(iter(items[label].values())).get(WEIGHTS)
        if weights is not None:
            tensors[f"{label}/{WEIGHTS}"] = torch.from_numpy(np.asarray(weights, dtype=np.float32).copy())
    if tensors:
        path.parent.mkdir(parents=True, exist_ok=True)
        store.save_state_dict(path, tensors, {"items": json.dumps(about)})
    else:
        path.unlink(missing_ok=True)


def kept_items(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What :func:`keep_items` wrote, as the runs recorded it; empty where there is no such file.

    Raises:
        CheckpointCorrupt: the file is damaged.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    if not path.is_file():
        return found
    tensors = {k: v.numpy() for k, v in store.load_state_dict(path).items()}
    try:
        about = json.loads(store.load_metadata(path)["items"])
        for key, told in about.items():
            label, part, metric = key.split("/")
            values = tensors[key]
            if "scale" in told:
                values = values.astype(np.float64) * told["scale"]
            else:
                values = np.unpackbits(values, axis=1, count=told["items"]).astype(bool)
            for seed, row in zip(told["seeds"], values, strict=True):
                run = found.setdefault(label, {}).setdefault(seed, {})
                run[f"{part}/{metric}"] = row
                if f"{label}/{WEIGHTS}" in tensors:
                    run[WEIGHTS] = tensors[f"{label}/{WEIGHTS}"]
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointCorrupt(str(path), f"holds no items as they are kept: {error}") from None
    return found


__all__ = ["ALIASES", "Items", "difference", "keep_items", "kept_items", "split"]
