"""The recipe: one YAML and dotted overrides over constructor signatures.

A recipe is a plain tree. ``load_tree`` reads and merges it, ``check`` fills in every default and lists everything that
is wrong at once, ``build`` makes the objects, ``dump`` writes it so that it reads back the same, ``describe`` explains.

A component (task, method, model, source, query, objective) is written flat, ``{use: name, argument: value, ...}``, or
as ``name``, or ``name:rest``, where ``rest`` goes to the first parameter of the constructor. Only the classes that a
recipe names are imported, from tables of names; no class path is ever read from a recipe. The one way to a user's own
code is ``import:package.module:function``, which runs it.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

from limbeck.core import names as _names
from limbeck.core.card import entries, locate_method, method_names, recipe_path, recipes
from limbeck.core.component import Component, Settings
from limbeck.core.errors import ConfigError, LimbeckError, MissingExtra, nearest, shorten
from limbeck.core.hints import Mismatch, expressible, hints_of, is_union, leaf, plain_check, typed, words
from limbeck.core.scalars import encodable
from limbeck.core.values import DEPTH, read_value, read_yaml_file, write_yaml

if TYPE_CHECKING:
    from limbeck.core.engine import EngineSettings
    from limbeck.core.method import Method, Objective, Query
    from limbeck.core.optim import Optim
    from limbeck.core.task import Model, Task

TOKEN = re.compile(r"[A-Za-z_][\w.-]*\+?=", re.ASCII)
"""How an override begins: ``key=`` or ``key+=``."""

_NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)

EXTRAS: Final[dict[str, str]] = {
    "transformers": "language",
    "datasets": "language",
    "peft": "language",
    "diffusers": "diffusion",
    "torch_geometric": "graph",
    "gsplat": "scene",
    "ray": "ray",
    "accelerate": "tracking",
    "wandb": "tracking",
    "mlflow": "tracking",
    "trackio": "tracking",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "torchmetrics": "metrics",
}
"""Optional packages and the extra that brings each."""


class Recipe(Settings):
    """A run: what the student is for, how it is distilled, from whom, and for how long.

    Args:
        task: what the student is for: data, loss, metrics.
        method: the paper; what is matched and how.
        student: what is trained; left out, the task's default.
        teacher: what is learnt from; left out, the task's default where the method needs one. Without a checkpoint a
            stage trains it.
        train: how the student is optimised.
        teach: how a teacher without a checkpoint is trained.
        objectives: further terms to add to the method's own, by name.
        queries: changes to the batch, by name, in order.
        engine: where and how the loop runs.
        seed: number of the random draws.
        loggers: where measurements go: csv, jsonl, tensorboard; wandb, mlflow, trackio by name.
        export: formats to write at the end: safetensors, onnx, onnx-int8, hub.
        name: what the recipe is called in reports.
    """

    def __init__(
        self,
        *,
        task: Task,
        method: Method,
        student: Model | None = None,
        teacher: Model | None = None,
        train: Optim,
        teach: Optim,
        objectives: dict[str, Objective],
        queries: dict[str, Query],
        engine: EngineSettings,
        seed: int = 0,
        loggers: tuple[str, ...] = ("csv", "jsonl", "tensorboard"),
        export: tuple[str, ...] = (),
        name: str = "recipe",
    ) -> None:
        if seed < 0:
            raise ValueError("seed must be 0 or more")
        if not _NAME.fullmatch(name.replace(".", "_")):
            raise ValueError("name must be letters, digits, '-', '_' and '.', beginning with a letter")
        self.task, self.method, self.student, self.teacher = task, method, student, teacher
        self.train, self.teach = train, teach
        self.objectives, self.queries = dict(objectives), dict(queries)
        self.engine, self.seed = engine, seed
        self.loggers, self.export, self.name = list(loggers), list(export), name


class RecipeErrors(ConfigError):
    """Several things are wrong with a recipe.

    Attributes:
        problems: each of them.
    """

    def __init__(self, problems: Sequence[LimbeckError]) -> None:
        self.problems = list(problems)
        super().__init__(problems[0].argument)

    def line(self) -> str:
        """All of them in one line."""
        return " · ".join(p.line() for p in self.problems)


def _raise(problems: Sequence[LimbeckError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise RecipeErrors(problems)


# ------------------------------------------------------------------------------------------------ reading and merging


def load_tree(name_or_path: str | Path, overrides: Iterable[str] = (), seed: int | None = None) -> dict[str, Any]:
    """A recipe as a plain tree, with overrides merged from left to right. Nothing is imported or checked yet.

    Args:
        name_or_path: a shipped recipe's name, a YAML file, or a run folder (its ``config.yaml``).
        overrides: ``key=value``, ``key+=value`` (appends to a list), ``key=null``; keys are dotted paths.
        seed: takes the place of the recipe's.

    Raises:
        ConfigError: no such recipe (the nearest names are listed), YAML that is refused, an override that is none.
    """
    path = find_recipe(name_or_path)
    tree = read_yaml_file(path)
    if not isinstance(tree, dict):
        what = "is empty" if tree is None else "holds no settings"
        raise ConfigError(str(path), what, expected="keys such as task: and method:")
    tree = {"name": path.stem, **tree} if "name" not in tree else tree
    for token in overrides:
        apply(tree, token)
    if seed is not None:
        tree["seed"] = seed
    return tree


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe: a shipped one by name, a YAML file, or the ``config.yaml`` of a run folder.

    Raises:
        ConfigError: there is none; the nearest names are listed.
    """
    text = str(name_or_path)
    if not text or not encodable(text) or "\0" in text:
        raise ConfigError("recipe", given=text, expected="the name of a recipe, a YAML file or a run folder")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError("recipe", str(error), given=text) from None
    looks_like_path = (
        isinstance(name_or_path, Path) or os.sep in text or "/" in text or path.suffix in (".yaml", ".yml")
    )
    try:
        if path.is_dir() and (looks_like_path or (path / "config.yaml").is_file()):
            if (path / "config.yaml").is_file():
                return path / "config.yaml"
            raise ConfigError("recipe", f"the folder {shorten(text)} holds no config.yaml", expected="a run folder")
        if path.is_file() and looks_like_path:
            return path
        if looks_like_path:
            beside = (
                [p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")] if path.parent.is_dir() else []
            )
            close = nearest(path.name, beside) or nearest(path.stem, recipes())
            remedy = (
                f"did you mean {' or '.join(repr(c) for c in close)}?" if close else "shipped recipes: limbeck methods"
            )
            raise ConfigError("recipe", f"there is no file {shorten(text)}", remedy=remedy)
    except OSError as error:
        raise ConfigError("recipe", f"{shorten(text)} cannot be read: {error.strerror or error}") from None
    return recipe_path(text)


def split_override(token: str) -> tuple[list[str], bool, Any]:
    """An override as (parts of its key, whether it appends, value).

    Raises:
        ConfigError: it is none, its key has an empty part, or its value is missing.
    """
    if not encodable(token):
        raise ConfigError("override", given=token, expected="UTF-8 text")
    match = TOKEN.match(token)
    if match is None:
        raise ConfigError(
            _short(token) or "override", "is no setting", expected="key=value", remedy="for example train.steps=200"
        )
    key, text = token[: match.end() - 1], token[match.end() :]
    append = key.endswith("+")
    key = key.removesuffix("+")
    parts = key.split(".")
    if not all(parts):
        raise ConfigError(_short(key), "has an empty part", expected="names joined by single dots")
    if len(parts) > DEPTH:
        raise ConfigError(_short(key), f"has {len(parts)} parts", expected=f"at most {DEPTH}")
    if not text.strip():
        raise ConfigError(key, "has no value", remedy=f"write {key}=null for nothing, {key}='\"\"' for empty text")
    return parts, append, read_value(text, key)


def apply(tree: dict[str, Any], token: str) -> None:
    """Merge one override into a tree, in place."""
    parts, append, value = split_override(token)
    if len(parts) > 1 and parts[-1] == "use" and not append:
        parts = parts[:-1]  # method.use=nkd is method=nkd: another component keeps no settings of the old one
    node: Any = tree
    for i, part in enumerate(parts[:-1]):
        path = ".".join(parts[: i + 1])
        child = _get(node, part, path)
        if child is None:
            child = {}
        elif isinstance(child, str):
            child = {"use": child}
        elif not isinstance(child, (dict, list)):
            raise ConfigError(path, f"is {shorten(child)}, it has no part {parts[i + 1]!r}")
        _set(node, part, child, path)
        node = child
    last, path = parts[-1], ".".join(parts)
    if not append:
        if isinstance(node, dict):
            node.pop(f"{last}+", None)
        _set(node, last, value, path)
        return
    items = value if isinstance(value, list) else [value]
    present = _get(node, last, path)
    if isinstance(present, list):
        present.extend(items)
    elif present is not None:
        raise ConfigError(path, f"is {shorten(present)}, += appends to lists", remedy=f"write {path}=[...]")
    elif isinstance(node, dict) and last not in node:
        node.setdefault(f"{last}+", []).extend(items)  # to be appended to the default, once that is known
    else:
        _set(node, last, items, path)


def _get(node: Any, part: str, path: str) -> Any:
    if isinstance(node, dict):
        return node.get(part)
    return node[_index(node, part, path)] if part != str(len(node)) else None


def _set(node: Any, part: str, value: Any, path: str) -> None:
    if isinstance(node, dict):
        node[part] = value
    elif part == str(len(node)):
        node.append(value)
    else:
        node[_index(node, part, path)] = value


def _index(items: list[Any], part: str, path: str) -> int:
    if not part.isascii() or not part.isdigit() or len(part) > 9 or int(part) >= len(items):
        expected = f"a position from 0 to {len(items)}" if items else "position 0"
        raise ConfigError(path, f"the list has {len(items)} entries", given=part, expected=expected)
    return int(part)


# ------------------------------------------------------------------------------------------------ signatures as schema

Kind = Literal["leaf", "component", "settings", "list", "dict"]


class _Mark:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


_REQUIRED = _Mark("required")
_PYTHON_ONLY = _Mark("python only")
_PYTHON_NEEDED = _Mark("required, python only")


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
    """

    name: str
    hint: Any
    kind: Kind
    base: Any
    inner: Kind
    optional: bool
    default: Any
    doc: str

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


def _schema_names(cls: type) -> dict[str, Any]:
    """What a recipe's own hints mean: imported when a schema is needed, so that reading a recipe needs no torch."""
    if cls is not Recipe:
        return {}
    from limbeck.core.engine import EngineSettings
    from limbeck.core.method import Method, Objective, Query
    from limbeck.core.optim import Optim
    from limbeck.core.task import Model, Task

    found = (EngineSettings, Method, Objective, Query, Optim, Model, Task)
    return {c.__name__: c for c in found}


@lru_cache(maxsize=1024)
def schema(cls: type) -> dict[str, Param]:
    """The parameters of a class's constructor, in order.

    Raises:
        TypeError: the constructor takes ``*args``, ``**kwargs`` or a parameter called ``use`` (a defect of the class).
    """
    init: Any = cls.__init__  # type: ignore[misc]
    if init is object.__init__:
        return {}
    hints = hints_of(init, _schema_names(cls))
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
        found[p.name] = Param(p.name, hint, kind, base, inner, optional, default, docs.get(p.name, ""))
    return found


def _default(cls: type, p: inspect.Parameter, hint: Any, kind: Kind, optional: bool) -> Any:
    value = p.default
    if dataclasses.is_dataclass(cls):
        for f in dataclasses.fields(cls):
            if f.name == p.name and f.default_factory is not dataclasses.MISSING:
                value = f.default_factory()
    if kind == "leaf" and not expressible(hint):
        return _PYTHON_NEEDED if value is p.empty else _PYTHON_ONLY
    if value is p.empty:
        return {} if kind in ("settings", "dict") else _REQUIRED
    if value is None:
        if kind in ("list", "dict") and not optional:
            return [] if kind == "list" else {}
        return None
    try:
        plain = to_plain(value)
        return leaf(hint, plain) if kind == "leaf" else plain
    except Mismatch:
        return _PYTHON_ONLY


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
    for name, target in _names.TABLES.get(cls.kind, {}).items():
        if target == place:
            return name
    for entry in entries() if cls.kind == "method" else ():
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
    own = _names.TABLES.get(kind, {})
    return sorted({*own, *method_names()} if kind == "method" else own)


def find_class(base: type[Component], name: str, path: str) -> type[Component]:
    """The class that a name means, imported now.

    Raises:
        ConfigError: no such name for this kind, or its class is not of the base that is wanted.
        MissingExtra: it needs a package that is not installed.
    """
    kind = base.kind
    target = _names.TABLES.get(kind, {}).get(name)
    if target is not None:
        module_name, _, class_name = target.partition(":")
    elif kind == "method":
        found = locate_method(name)
        if found is None:
            raise ConfigError.unknown(path, name, known_names(kind), kind)
        module_name, class_name = found.module, found.card.methods[name]
    else:
        raise ConfigError.unknown(path, name, known_names(kind), kind)
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in EXTRAS:
            raise MissingExtra(package, EXTRAS[package], f"{path}={name}") from None
        raise
    if not issubclass(cls, base):
        fitting = [n for n in known_names(kind) if n != name]
        raise ConfigError(path, f"{name} is no {base.__name__}", remedy=f"known: {', '.join(fitting)}")
    return cls


# ------------------------------------------------------------------------------------------------ checking


def check(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved tree: every default filled in, every value of its type, student and teacher named.

    Checking a resolved tree changes nothing. Imports the classes that the recipe names, and no other.

    Raises:
        ConfigError: something is wrong; all of it is listed (`RecipeErrors` where it is more than one thing).
    """
    checker = _Checker()
    found = checker.recipe(tree)
    _raise(checker.problems)
    return found


class _Checker:
    """Walks a tree along the signatures and collects what is wrong."""

    def __init__(self) -> None:
        self.problems: list[LimbeckError] = []
        self.refused = False  # a constructor refused its values

    def recipe(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """The whole of a recipe."""
        params = schema(Recipe)
        unknown = self._unknown_keys(tree, params)
        found: dict[str, Any] = {}
        first = ("task", "method")
        for name in (*first, *(n for n in params if n not in first)):
            param = params[name]
            if name in ("student", "teacher"):
                default = self._default_model(name, found, tree.get(name))
                param = dataclasses.replace(param, default=default)
                value = default if tree.get(name) is None else tree[name]
                found[name] = self.value(param, value, name)
            else:
                found[name] = self._param(param, tree, "", "a recipe")
        for key in unknown:
            inside = [f"{name}.{key}" for name, node in found.items() if isinstance(node, dict) and key in node]
            self._unknown("", key, [*params], "a recipe", inside)
        if self.refused and not self.problems:
            _Builder().settings(Recipe, found, "")  # raises what every constructor refuses, not the first alone
        return {name: found[name] for name in ("name", *(n for n in params if n != "name"))}

    def _default_model(self, name: str, found: Mapping[str, Any], given: Any) -> Any:
        """The node of the student or teacher that the task offers; ``None`` where none is needed or known."""
        if isinstance(given, str) or (isinstance(given, Mapping) and "use" in given):
            return None
        if self.problems or not found.get("task") or not found.get("method"):
            return None
        names = schema(Recipe)
        try:
            task: Any = _Builder().component(names["task"].base, found["task"], "task")
            if name == "teacher" and given is None:
                method: Any = _Builder().component(names["method"].base, found["method"], "method")
                if not method.needs_teacher:
                    return None
            return task.default_student() if name == "student" else task.default_teacher()
        except LimbeckError:
            self.refused = True
        except TypeError as error:
            self.problems.append(
                ConfigError(name, str(error), remedy=f"set {name}=NAME; known: {', '.join(known_names('model'))}")
            )
        return None

    def value(self, param: Param, value: Any, path: str) -> Any:
        """A value for a parameter, resolved."""
        if param.kind == "leaf":
            return self._leaf(param.hint, value, path)
        if value is None:
            if not param.optional and param.default is not None:
                self._mismatch(path, value, param.words)
            return None
        if param.kind == "list":
            return self._list(param, value, path)
        if param.kind == "dict":
            return self._dict(param, value, path)
        return self._entry(param, value, path, param.default)

    def _entry(self, param: Param, value: Any, path: str, default: Any) -> Any:
        """A component or settings."""
        if param.inner == "component":
            return self.component(param.base, value, path, default)
        if isinstance(value, Settings):
            value = to_plain(value)
        if not isinstance(value, Mapping):
            self._mismatch(
                path,
                value,
                f"settings, {param.base.__name__}",
                f"set {path}.KEY=VALUE; known: {', '.join(schema(param.base))}",
            )
            return None
        return self.arguments(param.base, {**(default if isinstance(default, Mapping) else {}), **value}, path, path)

    def component(self, base: type[Component], value: Any, path: str, default: Any = None) -> dict[str, Any] | None:
        """A component's node, resolved; ``None`` after a problem."""
        if isinstance(value, Component):
            try:
                value = node_of(value)
            except Mismatch as error:
                self._mismatch(path, error.given, error.expected)
                return None
        if isinstance(value, str):
            value = {"use": value}
        if not isinstance(value, Mapping):
            self._mismatch(path, value, f"the name of a {base.kind}", f"known: {', '.join(known_names(base.kind))}")
            return None
        if "use" not in value:
            default = {"use": default} if isinstance(default, str) else default
            if not isinstance(default, Mapping):
                known = ", ".join(known_names(base.kind))
                self.problems.append(
                    ConfigError(path, f"does not say which {base.kind}", remedy=f"set {path}=NAME; known: {known}")
                )
                return None
            value = {**default, **value}
        use = value["use"]
        if not isinstance(use, str) or not use or not encodable(use):
            self._mismatch(
                f"{path}.use", use, f"the name of a {base.kind}", f"known: {', '.join(known_names(base.kind))}"
            )
            return None
        name, colon, rest = use.partition(":")
        try:
            cls: Any = find_class(base, name, path)
        except LimbeckError as error:
            self.problems.append(error)
            return None
        arguments = {k: v for k, v in value.items() if k != "use"}
        if colon:
            params = list(schema(cls))
            if not params:
                self.problems.append(ConfigError(path, f"{name} takes no argument", given=use, expected=repr(name)))
                return None
            if not rest:
                self.problems.append(ConfigError(path, f"nothing follows '{name}:'", expected=f"{name}:<{params[0]}>"))
                return None
            try:  # what opens with a bracket is a list or a mapping, as in an override
                arguments.setdefault(params[0], read_value(rest, path) if rest[0] in "[{" else rest)
            except LimbeckError as error:
                self.problems.append(error)
                return None
        return {"use": name, **self.arguments(cls, arguments, path, name)}

    def arguments(self, cls: type, given: Mapping[str, Any], path: str, label: str) -> dict[str, Any]:
        """The arguments of a constructor, defaults filled in."""
        params = schema(cls)
        for key in self._unknown_keys(given, params):
            self._unknown(path, key, list(params), label, [])
        found = {}
        for param in params.values():
            value = self._param(param, given, path, label)
            if value is not _PYTHON_ONLY:
                found[param.name] = value
        return found

    def _param(self, param: Param, given: Mapping[str, Any], path: str, label: str) -> Any:
        place = f"{path}.{param.name}" if path else param.name
        if param.default is _PYTHON_NEEDED or (param.default is _PYTHON_ONLY and param.name in given):
            self.problems.append(ConfigError(place, f"{label} takes it in Python only", expected=param.words))
            return _PYTHON_ONLY
        appended = given.get(f"{param.name}+")
        if appended is not None:
            return self._append(param, given.get(param.name, param.default), appended, place)
        if param.name in given:
            return self.value(param, given[param.name], place)
        if param.default is _REQUIRED:
            if param.kind == "component":
                remedy = f"set {place}=NAME; known: {', '.join(known_names(param.base.kind))}"
            else:
                remedy = f"set {place}=<{param.words}>"
            self.problems.append(ConfigError(place, f"{label} needs it", remedy=remedy))
            return None
        if param.default is _PYTHON_ONLY or param.default is None:
            return param.default
        if param.kind == "leaf":
            return copy.deepcopy(param.default)
        return self.value(param, param.default, place)

    def _append(self, param: Param, present: Any, appended: Any, place: str) -> Any:
        if not isinstance(appended, list) or not (present is None or isinstance(present, list)):
            self.problems.append(ConfigError(place, "+= appends to lists", expected=param.words))
            return None
        return self.value(param, [*(present or []), *appended], place)

    def _leaf(self, hint: Any, value: Any, path: str) -> Any:
        try:
            return leaf(hint, value)
        except Mismatch as error:
            self._mismatch(f"{path}.{error.where}" if error.where else path, error.given, error.expected, error.remedy)
            return None

    def _list(self, param: Param, value: Any, path: str) -> list[Any]:
        default = param.default if isinstance(param.default, list) else []
        if isinstance(value, Mapping) and value and all(str(k).isdigit() and len(str(k)) < 10 for k in value):
            changed = list(default)  # dotted positions over the default list
            for key in sorted(value, key=int):
                if int(key) > len(changed):
                    self._mismatch(f"{path}.{key}", key, f"a position from 0 to {len(changed)}")
                    return []
                changed[int(key) : int(key) + 1] = [value[key]]
            value = changed
        elif isinstance(value, str) or (isinstance(value, Mapping) and (param.inner == "settings" or "use" in value)):
            value = [value]
        elif isinstance(value, Mapping) and value:
            self._mismatch(f"{path}.{next(iter(value))}", next(iter(value)), f"a position from 0 to {len(default)}")
            return []
        if not isinstance(value, (list, tuple)):
            self._mismatch(path, value, param.words)
            return []
        result = []
        for i, item in enumerate(value):
            result.append(self._entry(param, item, f"{path}.{i}", default[i] if i < len(default) else None))
        return result

    def _dict(self, param: Param, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            self._mismatch(path, value, param.words, f"set {path}.NAME=...")
            return {}
        default = param.default if isinstance(param.default, Mapping) else {}
        found: dict[str, Any] = {}
        for name, item in {**default, **value}.items():
            place = f"{path}.{name}"
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                self._mismatch(path, name, "a name of letters, digits, '-' and '_'")
            elif item is not None:
                found[name] = self._entry(param, item, place, default.get(name))
            elif name in default:
                found[name] = None  # stays, or the default would come back when this is read again
        return found

    def _unknown_keys(self, given: Mapping[str, Any], params: Mapping[str, Any]) -> list[Any]:
        return [
            k for k in given if k not in params and not (isinstance(k, str) and k.endswith("+") and k[:-1] in params)
        ]

    def _unknown(self, path: str, key: Any, known: list[str], label: str, inside: list[str]) -> None:
        place = f"{path}.{key}" if path else str(key)
        close = [*inside, *nearest(str(key), known)][:3]
        remedy = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        remedy += f"known: {', '.join(known) or 'none'}"
        self.problems.append(ConfigError(_short(place), f"{label} has no such key", remedy=remedy))

    def _mismatch(self, path: str, given: Any, expected: str, remedy: str = "") -> None:
        shown = f"got {shorten(given)} ({type(given).__name__})" if given is not None else "got null"
        self.problems.append(ConfigError(_short(path), shown, expected=expected, remedy=remedy))


def _short(path: str) -> str:
    return path if len(path) <= 120 and path.isprintable() else shorten(path)


# ------------------------------------------------------------------------------------------------ building


def build(tree: Mapping[str, Any]) -> Recipe:
    """The objects of a recipe. Each instance's ``config`` is its resolved node.

    Raises:
        ConfigError: see `check`; or a constructor refused a value, with the dotted path.
    """
    resolved = check(tree)
    recipe = _Builder().settings(Recipe, resolved, "")
    assert isinstance(recipe, Recipe)
    return recipe


def make(base: type[Component], node: Any, path: str) -> Any:
    """A single component from its node (``name``, ``name:rest`` or a mapping), checked and built.

    Args:
        base: the class it must be a subclass of.
        node: the recipe node.
        path: what errors call it.

    Raises:
        ConfigError: it is wrong.
    """
    checker = _Checker()
    found = checker.component(base, node, path)
    _raise(checker.problems)
    assert found is not None
    return _Builder().component(base, found, path)


class _Builder:
    """Turns resolved nodes into objects; lists every refusal of independent constructors."""

    def component(self, base: type[Component], node: Mapping[str, Any], path: str) -> Any:
        return self._make(find_class(base, node["use"], path), node, path)

    def settings(self, cls: type, node: Mapping[str, Any], path: str) -> Any:
        return self._make(cls, node, path)

    def _make(self, cls: type, node: Mapping[str, Any], path: str) -> Any:
        params = schema(cls)
        arguments: dict[str, Any] = {}
        problems: list[LimbeckError] = []
        for name, value in node.items():
            if name == "use":
                continue
            try:
                arguments[name] = self._value(params[name], value, f"{path}.{name}" if path else name)
            except RecipeErrors as error:
                problems.extend(error.problems)
            except LimbeckError as error:
                problems.append(error)
        _raise(problems)
        try:
            instance = cls(**arguments)
        except ValueError as error:
            raise _refusal(error, path, params, node) from None
        except LimbeckError as error:
            if error.argument.split(".")[0] in params and path:
                error.argument = f"{path}.{error.argument}"
            raise
        object.__setattr__(instance, "config", copy.deepcopy(dict(node)))
        return instance

    def _value(self, param: Param, value: Any, path: str) -> Any:
        if value is None:
            return None
        if param.kind == "leaf":
            return typed(param.hint, value)
        if param.kind == "list":
            items = [self._entry(param, v, f"{path}.{i}") for i, v in enumerate(value)]
            return (
                tuple(items)
                if tuple in (get_origin(param.hint), *(get_origin(a) for a in get_args(param.hint)))
                else items
            )
        if param.kind == "dict":
            return {k: self._entry(param, v, f"{path}.{k}") for k, v in value.items() if v is not None}
        return self._entry(param, value, path)

    def _entry(self, param: Param, value: Any, path: str) -> Any:
        if param.inner == "component":
            return self.component(param.base, value, path)
        return self.settings(param.base, value, path)


def _refusal(error: ValueError, path: str, params: Mapping[str, Param], node: Mapping[str, Any]) -> ConfigError:
    """A constructor's sentence with the path; where it begins with a parameter's name, that parameter's path."""
    sentence = " ".join(str(error).split()) or "is refused"
    first, _, rest = sentence.partition(" ")
    if first.strip("`'\"") in params and rest:
        name = first.strip("`'\"")
        place = f"{path}.{name}" if path else name
        given = node.get(name)
        return ConfigError(place, rest, given=given) if given is not None else ConfigError(place, rest)
    return ConfigError(path or "recipe", sentence)


# ------------------------------------------------------------------------------------------------ writing, explaining


def dump(tree: Mapping[str, Any]) -> str:
    """A tree as YAML that reads back as the same tree."""
    return write_yaml(dict(tree))


@dataclass(frozen=True)
class Row:
    """One line of a recipe's help.

    Attributes:
        key: the dotted path, as an override spells it.
        type: what it takes, in words.
        value: the recipe's value, as an override would write it.
        doc: its sentence in the docstring.
    """

    key: str
    type: str
    value: str
    doc: str


def describe(tree: Mapping[str, Any]) -> list[Row]:
    """Every key of a resolved recipe with its type, value and explanation."""
    rows: list[Row] = []
    _walk(Recipe, tree, "", rows)
    return rows


def _walk(cls: type, node: Mapping[str, Any], path: str, rows: list[Row]) -> None:
    for name, param in schema(cls).items():
        if name not in node:
            continue
        key, value = f"{path}.{name}" if path else name, node[name]
        if param.kind == "leaf":
            rows.append(Row(key, param.words, show(value), param.doc))
        elif value is None or param.kind in ("list", "dict"):
            empty = "null" if value is None else "[]" if param.kind == "list" else "{}"
            if not value:
                rows.append(Row(key, param.words, empty, param.doc))
                continue
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            for inner_key, inner in pairs:
                _describe_entry(param, inner, f"{key}.{inner_key}", rows)
        else:
            _describe_entry(param, value, key, rows)


def _describe_entry(param: Param, node: Any, key: str, rows: list[Row]) -> None:
    if node is None:
        rows.append(Row(key, param.words, "null", "removed"))
    elif param.inner == "component":
        cls = find_class(param.base, node["use"], key)
        rows.append(Row(key, param.base.kind, node["use"], summary(cls)))
        _walk(cls, node, key, rows)
    else:
        _walk(param.base, node, key, rows)


def show(value: Any) -> str:
    """A leaf as an override would write it."""
    if isinstance(value, str):
        return value if read_back(value) else write_yaml([value])[2:].strip()
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "null"
    if isinstance(value, list):
        return "[" + ", ".join(show(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {show(v)}" for k, v in value.items()) + "}"
    return repr(value)


def read_back(text: str) -> bool:
    """Whether a text may stand after ``key=`` as it is."""
    if not text or text != text.strip() or not text.isprintable() or text[:1] in "[{\"'":
        return False
    return isinstance(read_value(text, ""), str)
