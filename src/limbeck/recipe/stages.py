"""The recipe's ``stages``: what it says of single stages, its values of the types that the settings have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from limbeck.errors import ConfigError
from limbeck.recipe.hints import Mismatch, leaf, typed
from limbeck.recipe.schema import schema

COUNTS = ("steps", "batch_size", "epochs")
"""What is said of a stage itself; any other key names a role that learns in it."""


def stage_settings(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each stage's settings, checked as far as they can be before the method's stages are known.

    Raises:
        ConfigError: no mapping, an unknown setting of an optimiser, or a value that does not fit; its path is named.
    """
    found: dict[str, dict[str, Any]] = {}
    for stage, changes in given.items():
        place = f"stages.{stage}"
        if not isinstance(changes, Mapping):
            raise ConfigError(place, given=changes, expected="a mapping, as {steps: 100, student: {lr: 0.001}}")
        found[stage] = {}
        for key, value in changes.items():
            if key in COUNTS:
                found[stage][key] = _fit(float if key == "epochs" else int, value, f"{place}.{key}")
                if not 0 <= found[stage][key] < math.inf or (key == "batch_size" and not found[stage][key]):
                    raise ConfigError(f"{place}.{key}", given=value, expected=f"{int(key == 'batch_size')} or more")
                if {"steps", "epochs"} <= set(changes):
                    raise ConfigError(place, "steps and epochs both say how long it takes", remedy="leave one out")
            elif isinstance(value, Mapping):
                found[stage][key] = _of_optimiser(value, f"{place}.{key}")
            else:
                expected = f"{' or '.join(COUNTS)}, or a role with settings of its optimiser, as {{lr: 0.001}}"
                raise ConfigError(f"{place}.{key}", given=value, expected=expected)
    return found


def _of_optimiser(given: Mapping[str, Any], place: str) -> dict[str, Any]:
    from limbeck.grammar.optim import Optim

    params = schema(Optim)
    for name in given:
        if name not in params:
            raise ConfigError.unknown(f"{place}.{name}", name, params, "setting of an optimiser")
    return {name: _fit(params[name].hint, value, f"{place}.{name}") for name, value in given.items()}


def _fit(hint: Any, value: Any, place: str) -> Any:
    try:
        return typed(hint, leaf(hint, value))
    except Mismatch as error:
        raise ConfigError(place, given=error.given, expected=error.expected, remedy=error.remedy) from None


__all__ = ["COUNTS", "stage_settings"]
