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
    """A recipe's tree with a named preset of queries written out, and changed as single settings beside its name say.

    Example:
        >>> tree = expanded({"queries": {"use": "small-images", "crop": {"pad": 2}, "noise": {"use": "noise"}}})
        >>> tree["queries"]["crop"], list(tree["queries"])
        ({'use': 'crop', 'pad': 2}, ['crop', 'flip', 'noise'])
    """
    named = tree.get("queries")
    if isinstance(named, str):
        return {**tree, "queries": preset(named)}
    if not isinstance(named, Mapping) or not isinstance(named.get("use"), str):
        return dict(tree)
    found = preset(named["use"])
    for name, given in named.items():
        if name == "use":
            continue
        known = found.get(name)
        laid = isinstance(given, Mapping) and known is not None and given.get("use", known["use"]) == known["use"]
        if given is None:
            found.pop(name, None)
        else:
            found[name] = {**(known or {}), **given} if laid else given
    return {**tree, "queries": found}


__all__ = ["PRESETS", "expanded", "preset"]
