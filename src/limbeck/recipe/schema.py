"""Constructor signatures as schema: what a recipe may say of a class, and which class a name means."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from limbeck.errors import ConfigError, MissingExtra
from limbeck.grammar.card import entries, locate_method, method_names
from limbeck.grammar.component import Component, Settings
from limbeck.grammar.settings import hints_of_settings
from limbeck.recipe import names as _names
from limbeck.recipe.extras import extra_of
from limbeck.recipe.hints import Mismatch, expressible, hints_of, is_union, leaf, plain_check, words
from limbeck.storage.disk import expanded

Kind = Literal["leaf", "component", "settings", "list", "dict"]


class _Mark:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


REQUIRED = _Mark("required")
"""A default where there is none."""

PYTHON_ONLY = _Mark("python only")
"""A default that can't be written in a recipe."""

PYTHON_NEEDED = _Mark("required, python only")
"""No default, and no value can be written in a recipe."""


@dataclass(frozen=True)
class Param:
    """One parameter of a constructor, as a recipe sees it.

    Attributes:
        name: its name.
        hint: its type hint.
        kind: a leaf value, a component, plain settings, or a list or mapping of those.
        base: the component's or settings' class; ``None`` for a leaf.
        inner: for a list or mapping: what its entries are.
        optional: whether null is a value.
        default: as a plain tree, or a mark that it is required or can't be written in a recipe.
        doc: its sentence in the docstring.
        owner: the class that takes it.
    """

    name: str
    hint: Any
    kind: Kind
    base: Any
    inner: Kind
    optional: bool
    default: Any
    doc: str
    owner: Any = None

    @property
    def words(self) -> str:
        """Its type in words."""
        if self.kind == "leaf":
            return words(self.hint)
        what = getattr(self.base, "kind", "settings") if self.inner == "component" else "settings"
        said = (
            f"mapping of names to {what}" if self.kind == "dict" else f"list of {what}" if self.kind == "list" else what
        )
        return f"{said} or null" if self.optional else said


def _classify(hint: Any) -> tuple[Kind, Any, Kind, bool]:
    """(kind, base, kind of the entries, optional) of a hint."""
    optional = False
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if is_union(hint):
        members = [a for a in get_args(hint) if a is not type(None)]
        optional = len(members) < len(get_args(hint))
        if len(members) != 1:
            return "leaf", None, "leaf", optional
        hint = members[0]
    if isinstance(hint, type) and issubclass(hint, Component):
        return "component", hint, "component", optional
    if isinstance(hint, type) and issubclass(hint, Settings):
        return "settings", hint, "settings", optional
    origin, args = get_origin(hint), get_args(hint)
    if origin in (list, Sequence) or (origin is tuple and len(args) == 2 and args[1] is Ellipsis):
        inner, base, _, _ = _classify(args[0])
        if base is not None and inner in ("component", "settings"):
            return "list", base, inner, optional
    if origin in (dict, Mapping) and len(args) == 2:
        inner, base, _, _ = _classify(args[1])
        if base is not None and inner in ("component", "settings"):
            return "dict", base, inner, optional
    return "leaf", None, "leaf", optional


@lru_cache(maxsize=1024)
def schema(cls: type) -> dict[str, Param]:
    """The parameters of a class's constructor, in order.

    Raises:
        TypeError: the constructor takes ``*args``, ``**kwargs`` or a parameter called ``use`` (a defect of the class).
    """
    init: Any = cls.__init__  # type: ignore[misc]
    if init is object.__init__:
        return {}
    # what hints mean that a class imports for type checkers alone, so that reading a recipe needs no torch
    maker = next(c for c in cls.__mro__ if "__init__" in c.__dict__)
    own = "__dataclass_fields__" in maker.__dict__  # made by `settings`: ranges stand in its hints
    hints = hints_of_settings(cls) if own else hints_of(init, cls._hinted() if hasattr(cls, "_hinted") else {})
    docs = _docs(cls)
    found: dict[str, Param] = {}
    for i, p in enumerate(inspect.signature(init).parameters.values()):
        if i == 0:
            continue
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name == "use":
            raise TypeError(
                f"{cls.__module__}.{cls.__qualname__} takes {p}: a component takes named arguments, none called use"
            )
        hint = hints.get(p.name, Any)
        kind, base, inner, optional = _classify(hint)
        default = _default(cls, p, hint, kind, optional)
        found[p.name] = Param(p.name, hint, kind, base, inner, optional, default, docs.get(p.name, ""), cls)
    return found


def _default(cls: type, p: inspect.Parameter, hint: Any, kind: Kind, optional: bool) -> Any:
    value = p.default
    if dataclasses.is_dataclass(cls):
        for f in dataclasses.fields(cls):
            if f.name == p.name and f.default_factory is not dataclasses.MISSING:
                value = f.default_factory()
    if kind == "leaf" and not expressible(hint):
        return PYTHON_NEEDED if value is p.empty else PYTHON_ONLY
    if value is p.empty:
        return {} if kind in ("settings", "dict") else REQUIRED
    if value is None:
        if kind in ("list", "dict") and not optional:
            return [] if kind == "list" else {}
        return None
    try:
        plain = to_plain(value)
        return leaf(hint, plain) if kind == "leaf" else plain
    except Mismatch:
        return PYTHON_ONLY


def to_plain(value: Any) -> Any:
    """A Python value as it would stand in a recipe: components as nodes, paths as text, tuples as lists.

    Raises:
        Mismatch: it can't stand in a recipe (a tensor, a function).
    """
    if isinstance(value, Component):
        return node_of(value)
    if isinstance(value, Settings):
        return _given(value)
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return plain_check(getattr(value, "name", value) if hasattr(type(value), "__members__") else value)


def node_of(component: Component) -> dict[str, Any]:
    """A component made in Python as a recipe node.

    Raises:
        Mismatch: its class has no name in a recipe, or an argument can't be written in one.
    """
    if component.config:
        return copy.deepcopy(component.config)
    return {"use": name_of(type(component)), **_given(component)}


def _given(instance: Component | Settings) -> dict[str, Any]:
    init: Any = type(instance).__init__
    if init is object.__init__:
        return {}
    bound = inspect.signature(init).bind(None, *instance.given[0], **instance.given[1])
    return {name: to_plain(value) for i, (name, value) in enumerate(bound.arguments.items()) if i}


def name_of(cls: type[Component]) -> str:
    """The name by which a recipe calls a class.

    Raises:
        Mismatch: there is none.
    """
    place = f"{cls.__module__}:{cls.__qualname__}"
    for name, target in _names.table(cls.kind).items():
        if target == place:
            return name
    for entry in entries(broken=[]) if cls.kind == "method" else ():
        for name, class_name in entry.card.methods.items():
            if f"{entry.module}:{class_name}" == place:
                return name
    raise Mismatch(cls.__qualname__, f"a {cls.kind} that has a name in recipes")


_ENTRY = re.compile(r"(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?:\([^)]*\))?:\s*(.*)")


@lru_cache(maxsize=1024)
def _docs(cls: type) -> dict[str, str]:
    """The sentence for each parameter, from the ``Args:`` sections of a class, its bases and their constructors."""
    found: dict[str, str] = {}
    for c in reversed(cls.__mro__):
        for text in (c.__dict__.get("__doc__"), getattr(c.__dict__.get("__init__"), "__doc__", None)):
            if c is not object and isinstance(text, str):
                found.update(_args(inspect.cleandoc(text)))
    return found


def _args(text: str) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    current: list[str] = []
    inside, indent = False, 0
    for line in text.splitlines():
        stripped = line.strip()
        depth = len(line) - len(line.lstrip())
        if not inside:
            inside, indent = stripped == "Args:", 0
            continue
        if stripped and depth == 0:
            inside = stripped == "Args:"
            continue
        if not stripped:
            continue
        indent = indent or depth
        match = _ENTRY.fullmatch(stripped) if depth == indent else None
        if match:
            current = [match[2]]
            for name in match[1].split(","):
                found[name.strip().lstrip("*")] = current
        else:
            current.append(stripped)
    return {name: " ".join(lines).strip() for name, lines in found.items()}


def summary(cls: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return " ".join(text.split("\n\n")[0].split())


# ------------------------------------------------------------------------------------------------ names to classes


def known_names(kind: str) -> list[str]:
    """The names of a kind of component."""
    own = _names.table(kind)
    return sorted({*own, *method_names()} if kind == "method" else own)


SOURCES_OF = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".npz": "arrays",
    ".npy": "arrays",
    ".parquet": "parquet",
}
"""The source that reads a kind of file, as messages suggest it."""


def _refuse_place(name: str, path: str) -> None:
    """Refuse a file or folder where a source's name belongs, and say which source reads it.

    Raises:
        ConfigError: it is one, or is written as one and is not there.
    """
    place = Path(expanded(name))
    written = "/" in name or place.suffix.lower() in SOURCES_OF
    if not place.exists() and not written:
        return
    if not place.exists():
        raise ConfigError(path, "there is no such file or folder", given=name, remedy="check the path")
    known = _names.table("source")
    use = "folder" if place.is_dir() else SOURCES_OF.get(place.suffix.lower(), "")
    what = "folder" if place.is_dir() else "file"
    remedy = f"write {path}={use}:{name}" if use in known else f"name the source that reads it: {path}=SOURCE:{name}"
    raise ConfigError(path, f"{name!r} is a {what}, and no source", remedy=remedy)


def find_class(base: type[Component], name: str, path: str, owner: Any = None) -> type[Component]:
    """The class that a name means, imported now.

    One name may mean several: which is meant is told by what is wanted (a source of texts) or who wants it (a task whose
    ``reads`` names such a source). ``NAMES`` declares it as ``{"source for TextSource": {"jsonl": "TextJsonl"}}``.

    Raises:
        ConfigError: no such name for this kind, or its class is not of the base that is wanted.
        MissingExtra: it needs a package that is not installed.
    """
    kind = base.kind
    wanted = [getattr(owner, "reads", ""), *(b.__name__ for b in base.__mro__)]
    special = next((t for w in wanted if w and (t := _names.table(f"{kind} for {w}").get(name)) is not None), None)
    target = special or _names.table(kind).get(name)
    if target is not None:
        module_name, _, class_name = target.partition(":")
    elif kind == "method":
        found = locate_method(name)
        if found is None:
            raise ConfigError.unknown(path, name, known_names(kind), kind)
        module_name, class_name = found.module, found.card.methods[name]
    else:
        if kind == "source":
            _refuse_place(name, path)
        raise ConfigError.unknown(path, name, known_names(kind), kind)
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = extra_of(package)
        if extra is not None:
            raise MissingExtra(package, extra, f"{path}={name}") from None
        raise
    if not issubclass(cls, base):
        fitting = [n for n in known_names(kind) if n != name]
        raise ConfigError(path, f"{name} is no {base.__name__}", remedy=f"known: {', '.join(fitting)}")
    return cls
