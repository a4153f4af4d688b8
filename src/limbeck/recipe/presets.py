"""Named sets of queries, as ``queries=timm-default`` asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from limbeck.errors import ConfigError

PRESETS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "timm-default": {
        "view": {"use": "resized-crop", "lowest": 0.08},
        "flip": {"use": "flip"},
        "policy": {"use": "rand-augment", "operations": 2, "magnitude": 9.0},
        "erase": {"use": "erase", "probability": 0.25},
    },
    "trivial": {
        "view": {"use": "resized-crop", "lowest": 0.08},
        "flip": {"use": "flip"},
        "policy": {"use": "trivial-augment"},
        "erase": {"use": "erase", "probability": 0.1},
    },
    "small-images": {"crop": {"use": "crop", "pad": 4}, "flip": {"use": "flip"}},
    "colour": {"flip": {"use": "flip"}, "jitter": {"use": "jitter"}},
}
"""Named sets of queries: ``queries=timm-default``."""


def preset(name: str) -> dict[str, dict[str, Any]]:
    """The queries of a preset.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in PRESETS:
        raise ConfigError.unknown("queries", name, PRESETS, "preset of queries")
    return {k: dict(v) for k, v in PRESETS[name].items()}


def expanded(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tree with a named preset of queries written out."""
    named = tree.get("queries")
    return {**tree, "queries": preset(named)} if isinstance(named, str) else dict(tree)


__all__ = ["PRESETS", "expanded", "preset"]
