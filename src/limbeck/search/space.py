"""Which settings a search varies, and over which values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt

from limbeck.errors import ConfigError
from limbeck.recipe.schema import schema
from limbeck.recipe.values import read_value

WIDE = 4.0
"""By what factor a number of a method is varied up and down where nobody says otherwise."""

RATE = 10.0
"""The same of the learning rate."""


@dataclass(frozen=True)
class Range:
    """Numbers between two ends.

    Attributes:
        low, high: the ends, included.
        log: whether they are drawn evenly on a logarithmic scale.
        whole: whether they are whole numbers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def draw(self, trial: Any, name: str) -> Any:
        """A value of an Optuna trial."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in it."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.whole or value == int(value))


@dataclass(frozen=True)
class Choice:
    """Some values.

    Attributes:
        values: texts, numbers, true, false or null.
    """

    values: tuple[Any, ...]

    def draw(self, trial: Any, name: str) -> Any:
        """A value of an Optuna trial."""
        return trial.suggest_categorical(name, list(self.values))

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in self.values)


def parse_space(words: Sequence[str]) -> dict[str, Range | Choice]:
    """Settings to vary, as a user writes them: ``train.lr=1e-4..1e-2``, ``method.alpha=0.5|0.9|1``.

    A range whose ends are above 0 and lie ten times apart or more is drawn on a logarithmic scale. Whole ends give whole
    numbers.

    Raises:
        ConfigError: what cannot be read, ends in the wrong order, one value alone.

    Example:
        >>> parse_space(["train.lr=1e-4..1e-2", "train.warmup=0..50"])["train.lr"]
        Range(low=0.0001, high=0.01, log=True, whole=False)
        >>> parse_space(["method.alpha=0.5|0.9"])
        {'method.alpha': Choice(values=(0.5, 0.9))}
    """
    found: dict[str, Range | Choice] = {}
    for word in words:
        key, sign, text = word.partition("=")
        expected = "KEY=LOW..HIGH or KEY=A|B|C, as train.lr=1e-4..1e-2"
        if not sign or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise ConfigError("--space", given=word, expected=expected)
        if ".." in text:
            ends = [read_value(t, "--space") for t in text.split("..")]
            numbers = [e for e in ends if isinstance(e, (int, float)) and not isinstance(e, bool) and math.isfinite(e)]
            if len(ends) != 2 or len(numbers) != 2:
                raise ConfigError("--space", given=word, expected=expected)
            low, high = numbers
            if not low < high:
                raise ConfigError("--space", "the lower end must be below the upper one", given=word)
            whole = isinstance(low, int) and isinstance(high, int)
            found[key] = Range(low, high, low > 0 and high / low >= 10, whole)
        else:
            values = tuple(read_value(t, "--space") for t in text.split("|"))
            if len(values) < 2 or any(isinstance(v, (list, dict)) for v in values):
                raise ConfigError("--space", given=word, expected=expected)
            found[key] = Choice(values)
    return found


def value_at(tree: Mapping[str, Any], path: str) -> Any:
    """What a resolved recipe holds at a dotted path.

    Raises:
        ConfigError: it has no such setting.
    """
    node: Any = tree
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            known = list(node) if isinstance(node, Mapping) else []
            raise ConfigError.unknown("--space", path, [path.rpartition(".")[0] + "." + k for k in known], "setting")
        node = node[part]
    return node


def default_space(tree: Mapping[str, Any], method: type) -> dict[str, Range | Choice]:
    """What is varied where nobody says otherwise: the learning rate, and the method's own positive numbers.

    The learning rate lies within a factor of ten around the recipe's; a share (from 0 to 1) anywhere between its ends; any
    other number that is above 0 in the recipe within a factor of four, and within what its type allows. Switches, counts
    and whatever is 0 or null stay as the recipe has them; name them with ``--space``.

    Args:
        tree: a resolved recipe.
        method: the class of its method.
    """
    lr = float(tree["train"]["lr"])
    found: dict[str, Range | Choice] = {"train.lr": Range(lr / RATE, lr * RATE, log=True)}
    params = schema(method)
    for name, value in tree["method"].items():
        if name not in params or isinstance(value, bool) or not isinstance(value, float) or not value > 0:
            continue
        low, high = _ends(params[name].hint)
        if low == 0 and high == 1:
            found[f"method.{name}"] = Range(0.0, 1.0 if math.isclose(high, 1) else high)
            continue
        low, high = max(low, value / WIDE), min(high, value * WIDE)
        if low < high:
            found[f"method.{name}"] = Range(low, high, log=low > 0)
    return found


def _ends(hint: Any) -> tuple[float, float]:
    """Between which ends a type hint keeps a number."""
    low, high = -math.inf, math.inf
    for part in (hint, *get_args(hint)):
        if get_origin(part) is not Annotated:
            continue
        for mark in get_args(part)[1:]:
            for one in (mark, *(mark if isinstance(mark, Interval) else ())):
                if isinstance(one, (Ge, Gt)):
                    low = max(low, float(one.ge if isinstance(one, Ge) else one.gt))  # type: ignore[arg-type]
                if isinstance(one, (Le, Lt)):
                    high = min(high, float(one.le if isinstance(one, Le) else one.lt))  # type: ignore[arg-type]
    return low, high


__all__ = ["Choice", "Range", "default_space", "parse_space", "value_at"]
