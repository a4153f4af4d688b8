"""Leaf values against type hints: parsed leniently where that loses nothing, refused in words where it would.

Plain types are decided here, in microseconds; any other hint (an ``Enum``, a restricted number) goes to jsonargparse.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from limbeck.errors import nearest, shorten
from limbeck.grammar.settings import outside, range_words
from limbeck.recipe.scalars import encodable, scalar
from limbeck.recipe.values import DEPTH
from limbeck.storage.disk import expanded


class Mismatch(Exception):
    """A value does not fit a hint.

    Args:
        given: the part of the value that does not fit.
        expected: what would, in words.
        where: where in the value, as a dotted suffix; empty for the value itself.
        remedy: what to type instead.
    """

    def __init__(self, given: Any, expected: str, where: str = "", remedy: str = "") -> None:
        self.given, self.expected, self.where, self.remedy = given, expected, where, remedy
        super().__init__(expected)


def is_union(hint: Any) -> bool:
    """Whether a hint is ``A | B``."""
    return get_origin(hint) in (Union, types.UnionType)


def words(hint: Any) -> str:
    """A hint in words a user knows.

    Example:
        >>> words(int | None), words(list[float])
        ('whole number or null', 'list of number')
    """
    if hint is Any:
        return "anything"
    if hint in _WORDS:
        return _WORDS[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        said = range_words(args[1:])
        return f"{words(args[0])} {said}" if said else words(args[0])
    if origin is Literal:
        return " or ".join(repr(a) if isinstance(a, str) else shorten(a) for a in args)
    if is_union(hint):
        return " or ".join(words(a) for a in sorted(args, key=lambda a: a is type(None)))
    if origin in (list, Sequence, set, frozenset) and args:
        return f"list of {words(args[0])}"
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"list of {words(args[0])}"
        return f"list of {len(args)}: {', '.join(words(a) for a in args)}"
    if origin in (dict, Mapping):
        return f"mapping to {words(args[1])}" if args and args[1] is not Any else "mapping"
    return str(getattr(hint, "__name__", hint))


_WORDS: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    type(None): "null",
    Path: "path",
    list: "list",
    tuple: "list",
    dict: "mapping",
}


def plain_check(value: Any, depth: int = 0) -> Any:
    """Any plain value: mappings with text keys, lists, scalars; nothing that is not a number.

    Raises:
        Mismatch: something else is inside.
    """
    if depth > DEPTH:
        raise Mismatch(value, f"at most {DEPTH} levels")
    if isinstance(value, float):
        if math.isnan(value):
            raise Mismatch(value, "a number (NaN is none)")
        return value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        if not encodable(value):
            raise Mismatch(value, "UTF-8 text")
        return value
    if isinstance(value, Mapping):
        found = {}
        for key, inner in value.items():
            if not isinstance(key, str):
                raise Mismatch(key, "text as key")
            with _inside(key):
                plain_check(key)
                found[key] = plain_check(inner, depth + 1)
        return found
    if isinstance(value, (list, tuple)):
        items = []
        for i, inner in enumerate(value):
            with _inside(str(i)):
                items.append(plain_check(inner, depth + 1))
        return items
    raise Mismatch(value, "text, number, true, false, null, list or mapping")


class _inside:
    """Prefixes the place of a Mismatch raised inside."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Mismatch):
            error.where = f"{self.key}.{error.where}" if error.where else self.key


def leaf(hint: Any, value: Any) -> Any:
    """A value as plain data that fits a hint: what is printed, compared and read again.

    Whole floats serve as whole numbers (``1e3`` steps), whole numbers as text (``resnet=18``), one value as a list of
    one. A number is never made of ``true``, and NaN is no number.

    Raises:
        Mismatch: it does not fit; says what would.

    Example:
        >>> leaf(int, 1e3), leaf(float | None, 2), leaf(tuple[int, ...], 5)
        (1000, 2.0, [5])
    """
    if hint is Any:
        return plain_check(value)
    if hint in _SIMPLE:
        return _SIMPLE[hint](value)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = leaf(args[0], value)
        if outside(hint, found):
            raise Mismatch(value, words(hint))
        return found
    if origin is Literal:
        return _literal(args, value)
    if is_union(hint):
        return _union(hint, args, value)
    if origin in (list, Sequence, set, frozenset) or hint in (list, tuple, set):
        return _list(hint, [args[0] if args else Any] * _length(value), value)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return _list(hint, [args[0]] * _length(value), value)
        return _list(hint, list(args), value)
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise Mismatch(value, words(hint))
        inner = args[1] if len(args) == 2 else Any
        found = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise Mismatch(key, "text as key")
            with _inside(key):
                plain_check(key)
                key_hint = args[0] if len(args) == 2 else str
                if key_hint is not str:
                    leaf(key_hint, scalar(key))
                found[key] = leaf(inner, item)
        return found
    return _foreign(hint, value)


def typed(hint: Any, value: Any) -> Any:
    """A checked plain value as the Python value that a constructor takes: paths, tuples, sets."""
    if hint is Path:
        return expanded(value)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return typed(args[0], value)
    if is_union(hint):
        for choice in _by_closeness(args, value):
            try:
                leaf(choice, value)
            except Mismatch:
                continue
            return typed(choice, value)
        return value
    if origin in (list, Sequence) or hint is list:
        return [typed(args[0] if args else Any, v) for v in value]
    if origin in (set, frozenset) or hint is set:
        return (frozenset if origin is frozenset else set)(typed(args[0] if args else Any, v) for v in value)
    if origin is tuple or hint is tuple:
        if not args or (len(args) == 2 and args[1] is Ellipsis):
            return tuple(typed(args[0] if args else Any, v) for v in value)
        return tuple(typed(a, v) for a, v in zip(args, value, strict=True))
    if origin in (dict, Mapping) and len(args) == 2:
        return {
            (k if args[0] in (str, Any) else typed(args[0], scalar(k))): typed(args[1], v) for k, v in value.items()
        }
    if hint is Any or hint in _SIMPLE or origin is Literal or hint is dict:
        return value
    parsed, _ = _parse(hint, value)
    return parsed


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (list, tuple)) else 1


def _bool(value: Any) -> bool:
    found = scalar(value) if isinstance(value, str) else value
    if isinstance(found, bool):
        return found
    raise Mismatch(value, "true or false")


def _int(value: Any) -> int:
    found = scalar(value) if isinstance(value, str) else value
    if isinstance(found, float) and found.is_integer() and abs(found) < 2**53:
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int):
        raise Mismatch(value, "whole number")
    if not -(2**63) <= found < 2**63:
        raise Mismatch(value, "whole number of at most 64 bits")
    return found


def _float(value: Any) -> float:
    found = scalar(value) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise Mismatch(value, "number")
    try:
        found = float(found)
    except OverflowError:
        raise Mismatch(value, "number that a float can hold") from None
    if math.isnan(found):
        raise Mismatch(value, "number (NaN is none)")
    return found


def _str(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        # what was typed is not known any more: 200.0 may have been 2e2
        quoted = value is None or isinstance(value, (bool, float))
        how = 'if the word itself is meant, put it in quotes as it was typed: "WORD" in a file, \'"WORD"\' on the command line'
        raise Mismatch(value, "text", remedy=how if quoted else "")
    if not encodable(value):
        raise Mismatch(value, "UTF-8 text")
    return value


def _none(value: Any) -> None:
    if value is not None:
        raise Mismatch(value, "null")


def _path(value: Any) -> str:
    if isinstance(value, Path):
        value = str(value)
    found = _str(value)
    if not found or "\0" in found:
        raise Mismatch(value, "path")
    return found


_SIMPLE: Final[dict[Any, Any]] = {bool: _bool, int: _int, float: _float, str: _str, type(None): _none, Path: _path}


def _literal(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    if isinstance(value, (str, int, float)):
        for choice in choices:
            if str(choice) == str(value):  # the text '1' where the number 1 is a choice, and the reverse
                return choice
    close = nearest(str(value), [str(c) for c in choices], 1) if isinstance(value, str) else []
    raise Mismatch(value, words(Literal[choices]), remedy=f"did you mean {close[0]!r}?" if close else "")


_EXACT: Final[dict[type, tuple[Any, ...]]] = {
    bool: (bool,),
    int: (int, float),
    float: (float,),
    str: (str, Path),
    type(None): (type(None),),
    list: (list, tuple, Sequence, set, frozenset),
    dict: (dict, Mapping),
}


def _by_closeness(choices: tuple[Any, ...], value: Any) -> list[Any]:
    """The members of a union, those of the value's own type first (``int`` before ``str`` for 3)."""
    wanted = _EXACT.get(type(value), ())

    def rank(choice: Any) -> int:
        if get_origin(choice) is Literal:
            return 0 if any(type(a) is type(value) and a == value for a in get_args(choice)) else len(wanted)
        base = get_origin(choice) or choice
        return wanted.index(base) if base in wanted else len(wanted) + 1

    return sorted(choices, key=rank)


def _union(hint: Any, choices: tuple[Any, ...], value: Any) -> Any:
    closest: Mismatch | None = None
    for choice in _by_closeness(choices, value):
        try:
            return leaf(choice, value)
        except Mismatch as error:
            if closest is None and (error.where or error.remedy):
                closest = error  # the member of the right kind, wrong inside: says more than the whole union
    raise closest or Mismatch(value, words(hint))


def _list(hint: Any, inner: list[Any], value: Any) -> list[Any]:
    if value is None or isinstance(value, Mapping):
        raise Mismatch(value, words(hint))
    items = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
    if len(items) != len(inner):
        raise Mismatch(value, words(hint))
    if not isinstance(value, (list, tuple, set, frozenset)):
        try:
            return [leaf(inner[0], value)]
        except Mismatch:
            raise Mismatch(value, words(hint)) from None
    found = []
    for i, (item_hint, item) in enumerate(zip(inner, items, strict=True)):
        with _inside(str(i)):
            found.append(leaf(item_hint, item))
    return found


def expressible(hint: Any) -> bool:
    """Whether a value for a hint can stand in a recipe; a tensor or a function can be given in Python only."""
    if hint is type(None):
        return False
    if hint is Any or hint in _SIMPLE or hint in (list, tuple, set, dict):
        return True
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return expressible(args[0])
    if origin is Literal:
        return True
    if is_union(hint):
        return any(expressible(a) for a in args)
    if origin in (list, tuple, set, frozenset, Sequence):
        return all(expressible(a) for a in args if a is not Ellipsis)
    if origin in (dict, Mapping):
        return expressible(args[1])
    return _parser(hint) is not None


@lru_cache(maxsize=256)
def _parser(hint: Any) -> Any:
    """jsonargparse's parser of one hint; ``None`` for a hint whose values can be made in Python only."""
    # an allow-list: for any other class the library would import whatever path the value names, before checking it
    if not (isinstance(hint, type) and issubclass(hint, (Enum, int, float, str, complex, Decimal, timedelta))):
        return None
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--v", type=hint)
    except ValueError:
        return None
    return parser


def _parse(hint: Any, value: Any) -> tuple[Any, Any]:
    """The parsed and the serialised form of a value for a hint that is not plain."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return _parse_once(hint, type(value).__name__, value)
    return _parse_once.__wrapped__(hint, "", value)


@lru_cache(maxsize=4096)
def _parse_once(hint: Any, _type: str, value: Any) -> tuple[Any, Any]:
    parser = _parser(hint)
    if parser is None:
        raise Mismatch(value, f"nothing here: {words(hint)} can be given in Python only")
    try:
        namespace = parser.parse_object({"v": value})
        dumped = json.loads(parser.dump(namespace, format="json"))
    except Exception:
        raise Mismatch(value, words(hint)) from None
    return namespace.v, dumped.get("v")


def _foreign(hint: Any, value: Any) -> Any:
    plain_check(value)
    return _parse(hint, value)[1]


def hints_of(function: Any, names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The resolved type hints of a function.

    Raises:
        TypeError: a hint names something that is not there when the program runs (a defect of the component).
    """
    try:
        return typing.get_type_hints(function, localns=dict(names or {}))
    except NameError as error:
        raise TypeError(
            f"{function.__module__}.{function.__qualname__}: {error}: its hints must be importable"
        ) from error
