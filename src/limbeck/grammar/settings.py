"""Settings written once: annotated attributes are the constructor, and their ranges stand in the hints.

    @settings
    class Kd(Method):
        temperature: Positive = 4.0
        alpha: Fraction = 0.9

is a class with ``__init__(self, temperature=4.0, alpha=0.9)`` that refuses ``alpha=2``. A subclass inherits settings and
their documentation, and may give one another default. What a hint cannot say goes into ``validate``.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import operator
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar, dataclass_transform, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen

C = TypeVar("C", bound=type)

Positive = Annotated[float, Gt(0)]
"""A number above 0."""

NonNegative = Annotated[float, Ge(0)]
"""A number of 0 or more."""

Fraction = Annotated[float, Interval(ge=0, le=1)]
"""A number between 0 and 1, both included."""

Share = Annotated[float, Interval(ge=0, lt=1)]
"""A number from 0 up to, and not including, 1."""

Count = Annotated[int, Ge(1)]
"""A whole number of 1 or more."""

Natural = Annotated[int, Ge(0)]
"""A whole number of 0 or more."""

NonEmpty = MinLen(1)
"""For lists, mappings and text: ``Annotated[list[int], NonEmpty]``."""

_BOUNDS: dict[type, tuple[str, Callable[[Any, Any], bool], str]] = {
    Gt: ("gt", operator.gt, "above {}"),
    Ge: ("ge", operator.ge, "{} or more"),
    Lt: ("lt", operator.lt, "below {}"),
    Le: ("le", operator.le, "{} or less"),
}


@dataclass_transform(eq_default=False, field_specifiers=(dataclasses.field,))
def settings(cls: C) -> C:
    """Make a component's annotated attributes its constructor (a dataclass compared by identity).

    Lists and mappings given as defaults are copied for each instance. Ranges in the hints are checked when an instance is
    made, then the class's own ``validate``.
    """
    for name in inspect.get_annotations(cls):
        value = cls.__dict__.get(name)
        if isinstance(value, (list, dict, set)):
            setattr(cls, name, dataclasses.field(default_factory=lambda value=value: copy.copy(value)))  # type: ignore[misc]
    made: Any = dataclasses.dataclass(eq=False, repr=False)(cls)
    signature = inspect.signature(made.__init__)
    made.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    return made


@lru_cache(maxsize=1024)
def hints_of_settings(cls: Any) -> dict[str, Any]:
    """The resolved hints of a class made by `settings`, ranges included, each base read in its own module.

    Raises:
        TypeError: a hint names something that is not there when the program runs (a defect of the class).
    """
    names = cls._hinted() if hasattr(cls, "_hinted") else {}
    try:
        found = typing.get_type_hints(cls, localns=names or None, include_extras=True)
    except NameError as error:
        raise TypeError(f"{cls.__module__}.{cls.__qualname__}: {error}: its hints must be importable") from error
    fields = {f.name for f in dataclasses.fields(cls)}
    return {name: hint for name, hint in found.items() if name in fields}


def check_settings(instance: Any) -> None:
    """Refuse values outside the ranges of their hints.

    Raises:
        ValueError: which setting, and what it must be.
    """
    cls: Any = type(instance)
    for name, hint in hints_of_settings(cls).items():
        fault = outside(hint, getattr(instance, name))
        if fault:
            raise ValueError(f"{name} must be {fault}")


def outside(hint: Any, value: Any) -> str:
    """What a value would have to be by its hint; empty where it is that. Numbers have to be finite where they have a range."""
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        bounds = [b for m in metadata for b in (m if isinstance(m, Interval) else [m])]
        return _out_of(bounds, value) or outside(inner, value)
    args = get_args(hint)
    if value is None or not args:
        return ""
    if get_origin(hint) is Literal:
        return "" if value in args else " or ".join(map(repr, args))
    if get_origin(hint) in (list, tuple, set, frozenset, Sequence) and isinstance(value, (list, tuple, set, frozenset)):
        inner_hints = list(args) if Ellipsis not in args and len(args) == len(value) else [args[0]] * len(value)
        return next((f"{fault} each" for h, v in zip(inner_hints, value, strict=True) if (fault := outside(h, v))), "")
    if get_origin(hint) in (dict, Mapping) and isinstance(value, Mapping):
        return next((f"{fault} each" for v in value.values() if (fault := outside(args[1], v))), "")
    if type(None) in args or len(args) > 1:  # of a union: what fits one of them fits
        faults = [outside(a, value) for a in args if a is not type(None)]
        return "" if not faults or "" in faults else faults[0]
    return ""


def _out_of(bounds: Sequence[Any], value: Any) -> str:
    numbers = isinstance(value, (int, float)) and not isinstance(value, bool)
    limits = [b for b in bounds if type(b) in _BOUNDS]
    if limits and numbers:
        finite = math.isfinite(value)
        if not (finite and all(_BOUNDS[type(b)][1](value, getattr(b, _BOUNDS[type(b)][0])) for b in limits)):
            return range_words(limits)
    for bound in bounds:
        if isinstance(bound, MinLen) and hasattr(value, "__len__") and len(value) < bound.min_length:
            return "given" if bound.min_length == 1 else f"at least {bound.min_length} long"
    return ""


def range_words(bounds: Sequence[Any]) -> str:
    """Bounds in words: ``above 0``, ``between 0 and 1``."""
    flat = [b for m in bounds for b in (m if isinstance(m, Interval) else [m]) if type(b) in _BOUNDS]
    low = next((b for b in flat if isinstance(b, Ge)), None)
    high = next((b for b in flat if isinstance(b, Le)), None)
    if low is not None and high is not None and len(flat) == 2:
        return f"between {low.ge:g} and {high.le:g}"
    said = []
    for bound in flat:
        attribute, _, text = _BOUNDS[type(bound)]
        said.append(text.format(f"{getattr(bound, attribute):g}"))
    return " and ".join(said)


class Checked:
    """What `settings` relies on: every component and group of settings is one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        check_settings(self)
        self.validate()

    def validate(self) -> None:
        """Refuse what the hints cannot: settings that do not go together.

        Raises:
            ValueError: a sentence that begins with the setting's name.
        """
