"""Trees resolved along signatures, with everything that is wrong listed at once, and turned into objects."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from limbeck.errors import ConfigError, LimbeckError, nearest, shorten
from limbeck.grammar.component import Component, Settings
from limbeck.recipe import names as _names
from limbeck.recipe.credentials import part
from limbeck.recipe.hints import Mismatch, leaf, typed
from limbeck.recipe.overrides import short
from limbeck.recipe.renamed import renamed
from limbeck.recipe.scalars import encodable
from limbeck.recipe.schema import (
    PYTHON_NEEDED,
    PYTHON_ONLY,
    REQUIRED,
    Param,
    find_class,
    known_names,
    name_of,
    node_of,
    schema,
    to_plain,
)
from limbeck.recipe.values import read_value
from limbeck.storage.disk import expanded

NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
"""How an entry of a mapping of components may be called."""


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


def raise_all(problems: Sequence[LimbeckError]) -> None:
    """Raise what was found wrong, all at once; nothing where nothing was."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise RecipeErrors(problems)


class Checker:
    """Walks a tree along the signatures and collects what is wrong.

    Args:
        build: tasks and methods may be built to ask for their defaults. Without it no constructor is run, so that nothing
            that a tree names can happen; a student or teacher that the tree does not name stays open.

    Attributes:
        problems: what is wrong.
        met: every component that was resolved: (path, class, resolved node).
    """

    def __init__(self, build: bool = True) -> None:
        self.build = build
        self.problems: list[LimbeckError] = []
        self.met: list[tuple[str, type[Component], dict[str, Any]]] = []
        self.refused = False  # a constructor refused its values

    def recipe(self, cls: type, tree: Mapping[str, Any]) -> dict[str, Any]:
        """The whole of a recipe, whose class is ``cls``."""
        params = schema(cls)
        tree = renamed(tree)
        unknown = self._unknown_keys(tree, params)
        found: dict[str, Any] = {}
        first = ("task", "method")
        for name in (*first, *(n for n in params if n not in first)):
            param = params[name]
            if name in ("student", "teacher", "evaluator"):
                before, given = len(self.problems), tree.get(name)
                default = self._default(params, name, found, given)
                if before and default is None and isinstance(given, Mapping) and "use" not in given:
                    found[name] = None  # which one it is depends on what is wrong
                    continue
                param = dataclasses.replace(param, default=default)
                value = default if tree.get(name) is None else tree[name]
                found[name] = self.value(param, value, name)
            elif name == "participants":
                given = tree.get(name)
                found[name] = self._param(param, {name: self._participants(params, found, given)}, "", "a recipe")
            else:
                found[name] = self._param(param, tree, "", "a recipe")
        for key in unknown:
            inside = [f"{name}.{key}" for name, node in found.items() if isinstance(node, dict) and key in node]
            self._unknown("", key, [*params], "a recipe", inside)
        if self.refused and not self.problems:
            Builder().settings(cls, found, "")  # raises what every constructor refuses, not the first alone
        return {name: found[name] for name in ("name", *(n for n in params if n != "name"))}

    def _participants(self, params: Mapping[str, Param], found: Mapping[str, Any], given: Any) -> Any:
        """The nodes of the method's further participants, those that are not given filled in."""
        known = found.get("task") and found.get("method") and isinstance(given or {}, Mapping)
        if self.problems or not self.build or not known:
            return {} if given is None else given
        nodes = dict(given or {})
        try:
            task: Any = Builder().component(params["task"].base, found["task"], "task")
            method: Any = Builder().component(params["method"].base, found["method"], "method")
            others = {n: p for n, p in method.participants.items() if n != "teacher"}
            what = f"participant of {found['method']['use']}"
            self.problems += [
                ConfigError.unknown(f"participants.{n}", n, others, what) for n in nodes if n not in others
            ]
            for name, participant in others.items():
                if nodes.get(name) is None and participant.needed:
                    part = task.part(participant.task) if participant.task else task
                    nodes[name] = found.get(participant.like) or part.default_teacher()
        except LimbeckError:
            self.refused = True
        except TypeError as error:
            self.problems.append(ConfigError("participants", str(error), remedy="set participants.NAME=MODEL"))
        return nodes

    def _default(self, params: Mapping[str, Param], name: str, found: Mapping[str, Any], given: Any) -> Any:
        """The node of student, teacher or evaluator that the task offers; ``None`` where none is needed or known."""
        if isinstance(given, str) or (isinstance(given, Mapping) and "use" in given):
            return None
        if not self.build or self.problems or not found.get("task") or not found.get("method"):
            return None
        try:
            task: Any = Builder().component(params["task"].base, found["task"], "task")
            if name == "teacher":
                method: Any = Builder().component(params["method"].base, found["method"], "method")
                who = method.participants.get("teacher")
                if given is None and not (who is not None and who.needed):
                    return None
                if who is not None and who.like and found.get(who.like):
                    return found[who.like]
            return getattr(task, f"default_{name}")()
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
            return self.component(param.base, value, path, default, param.owner)
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

    def component(
        self, base: type[Component], value: Any, path: str, default: Any = None, owner: Any = None
    ) -> dict[str, Any] | None:
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
            cls: Any = find_class(base, name, path, owner)
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
        if name in _names.special(base.kind):
            name = name_of(cls)  # a name of several, resolved to that of the one which is meant
        node = {"use": name, **self.arguments(cls, arguments, path, name)}
        self.met.append((path, cls, node))
        return node

    def arguments(self, cls: type, given: Mapping[str, Any], path: str, label: str) -> dict[str, Any]:
        """The arguments of a constructor, defaults filled in."""
        params = schema(cls)
        for key in self._unknown_keys(given, params):
            self._unknown(path, key, list(params), label, [])
        found = {}
        for param in params.values():
            value = self._param(param, given, path, label)
            if param.name in getattr(cls, "paths", ()):
                value = _whole(value)
            elif param.name == getattr(cls, "address", "") and isinstance(value, str):
                value = part(value)
            if value is not PYTHON_ONLY:
                found[param.name] = value
        return found

    def _param(self, param: Param, given: Mapping[str, Any], path: str, label: str) -> Any:
        place = f"{path}.{param.name}" if path else param.name
        if param.default is PYTHON_NEEDED or (param.default is PYTHON_ONLY and param.name in given):
            self.problems.append(ConfigError(place, f"{label} takes it in Python only", expected=param.words))
            return PYTHON_ONLY
        appended = given.get(f"{param.name}+")
        if appended is not None:
            return self._append(param, given.get(param.name, param.default), appended, place)
        if param.name in given:
            return self.value(param, given[param.name], place)
        if param.default is REQUIRED:
            if param.kind == "component":
                remedy = f"set {place}=NAME; known: {', '.join(known_names(param.base.kind))}"
            else:
                remedy = f"set {place}=<{param.words}>"
            self.problems.append(ConfigError(place, f"{label} needs it", remedy=remedy))
            return None
        if param.default is PYTHON_ONLY or param.default is None:
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
            if not isinstance(name, str) or not NAME.fullmatch(name):
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
        self.problems.append(ConfigError(short(place), f"{label} has no such key", remedy=remedy))

    def _mismatch(self, path: str, given: Any, expected: str, remedy: str = "") -> None:
        shown = f"got {shorten(given)} ({type(given).__name__})" if given is not None else "got null"
        self.problems.append(ConfigError(short(path), shown, expected=expected, remedy=remedy))


def _whole(path: Any) -> Any:
    """A relative path that exists, from the root on; anything else as it is (a name on a hub, a file that is missing)."""
    if not isinstance(path, str) or not path:
        return path
    try:
        return os.path.abspath(found) if (found := expanded(path)).exists() else path
    except (OSError, ValueError, RuntimeError):  # it can be no path: whoever reads it says so
        return path


class Builder:
    """Turns resolved nodes into objects; lists every refusal of independent constructors."""

    def component(self, base: type[Component], node: Mapping[str, Any], path: str) -> Any:
        """A component of a resolved node."""
        return self._make(find_class(base, node["use"], path), node, path)

    def settings(self, cls: type, node: Mapping[str, Any], path: str) -> Any:
        """A group of settings, or a recipe, of a resolved node."""
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
        raise_all(problems)
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
