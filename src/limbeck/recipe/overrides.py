"""Recipes found by name or path, and dotted overrides merged into them. Nothing is checked yet, and no torch is needed."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from limbeck.errors import ConfigError, nearest, shorten
from limbeck.grammar.card import recipe_path, recipes
from limbeck.recipe.scalars import TOKEN, encodable
from limbeck.recipe.values import DEPTH, read_value, read_yaml_file
from limbeck.storage.disk import expanded

_SHIPPED = Path(__file__).resolve().parents[1]

LIMITS = ("student_items", "student_documents")
"""Settings of a task that a shipped recipe chose for its own small data: whoever names other data gets all of it."""

OF_MODELS = ("length",)
"""Settings of a task that a shipped recipe chose for its own models: who names others did not give them."""


PRESETS = "presets"
"""The key of a recipe under which settings for other data or scales stand by name: the paper's for each data set."""

TINY = "tiny"
"""The key of a recipe whose settings shrink it to seconds: to try it, and for the tests."""


def read_tree(
    name_or_path: str | Path,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    preset: str = "",
    tiny: bool = False,
) -> dict[str, Any]:
    """A recipe as a plain tree, with overrides merged: `limbeck.recipe.recipe.load_tree` before trust is asked for.

    Raises:
        ConfigError: no such recipe or preset (the nearest names are listed), YAML that is refused, an override that is
            none.
    """
    name_or_path, inline = split_recipe(name_or_path)
    path = find_recipe(name_or_path)
    tree = read_yaml_file(path)
    if not isinstance(tree, dict):
        what = "is empty" if tree is None else "holds no settings"
        raise ConfigError(str(path), what, expected="keys such as task: and method:")
    tree = {"name": path.stem, **tree} if "name" not in tree else tree
    tree = _chosen(tree, preset, tiny)
    tokens = [*inline, *overrides]
    if inline:
        tree["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([str(tree["name"]), *inline])).strip("-")
    gone = _let_limits_go(tree, tokens) if path.is_relative_to(_SHIPPED) else {}
    merge(tree, tokens)
    note_gone(tree, gone)
    if seed is not None:
        tree["seed"] = seed
    return tree


def split_recipe(name_or_path: str | Path) -> tuple[str | Path, list[str]]:
    """A recipe with settings of its own behind its name, as a command that takes several recipes is given it.

    Example:
        >>> split_recipe("kd method.temperature=2 train.lr=0.01")
        ('kd', ['method.temperature=2', 'train.lr=0.01'])
        >>> split_recipe("my recipes/kd.yaml")
        ('my recipes/kd.yaml', [])
    """
    text = str(name_or_path)
    found = re.search(r"\s+[A-Za-z_][\w.*-]*\+?=", text)
    if isinstance(name_or_path, Path) or found is None:
        return name_or_path, []
    try:
        return text[: found.start()].strip(), shlex.split(text[found.start() :])
    except ValueError as error:
        raise ConfigError("recipe", f"its settings cannot be divided: {error}", given=text) from None


def _chosen(tree: dict[str, Any], preset: str, tiny: bool) -> dict[str, Any]:
    """A recipe with a preset, and what shrinks it, laid over it; without these two keys."""
    presets, small = tree.pop(PRESETS, None) or {}, tree.pop(TINY, None) or {}
    for key, value in ((PRESETS, presets), (TINY, small)):
        if not isinstance(value, Mapping) or (
            key == PRESETS and not all(isinstance(v, Mapping) for v in value.values())
        ):
            raise ConfigError(key, given=value, expected="settings" if key == TINY else "settings by name")
    if preset:
        if preset not in presets:
            raise ConfigError.unknown("--preset", preset, presets, f"preset of {tree.get('name', 'this recipe')}")
        tree = overlay(tree, presets[preset])
    return overlay(tree, small) if tiny else tree


def overlay(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings laid over a tree: mappings key by key, anything else in its place; another component replaces it whole."""
    found = dict(tree)
    for key, value in changes.items():
        old = found.get(key)
        if isinstance(old, str) and isinstance(value, Mapping):
            old = {"use": old}
        other = (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("use", old.get("use")) != old.get("use")
        )
        found[key] = (
            overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) and not other else value
        )
    return found


def presets_of(name_or_path: str | Path) -> dict[str, dict[str, Any]]:
    """A recipe's presets by name."""
    tree = read_yaml_file(find_recipe(name_or_path))
    return dict(tree.get(PRESETS) or {}) if isinstance(tree, dict) else {}


def is_run_folder(file: Path) -> bool:
    """Whether a recipe's file is the configuration of a run: ``config.yaml``, as every run's folder holds it.

    A run's folder is data. A recipe under another name is a program that the user chose to run.
    """
    return file.name == "config.yaml"


def merge(tree: dict[str, Any], overrides: Iterable[str]) -> None:
    """Merge overrides into a tree, in place and in any order: of the same key the last one counts.

    ``teacher=timm:resnet18`` makes a new teacher, so it comes before ``teacher.checkpoint=...`` wherever it was typed;
    ``loggers=[csv]`` comes before ``loggers+=wandb``.

    Raises:
        ConfigError: an override is none, or does not fit what is there.
    """
    for token in sorted(overrides, key=_depth):
        apply(tree, token)


def _depth(token: str) -> tuple[int, bool]:
    parts, append, _ = split_override(token)
    return len(parts), append


def _let_limits_go(tree: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Take out of a recipe's task what belongs to data or models in whose place others are named; the limits of data."""
    task = tree.get("task")
    gone: dict[str, Any] = {}
    if not isinstance(task, dict):
        return {}
    for parts, _, value in map(split_override, overrides):
        if parts == ["task", "data"] and _name(value) != _name(task.get("data")):
            gone |= {limit: task.pop(limit) for limit in LIMITS if limit in task}
        if parts in (["student"], ["teacher"]) and _kind(value) != _kind(tree.get(parts[0])):
            for setting in OF_MODELS:
                task.pop(setting, None)
    return gone


def note_gone(tree: dict[str, Any], gone: Mapping[str, Any]) -> None:
    """Say in a recipe's ``notes`` which limits were let go with its data, and what that means for the teacher.

    Args:
        tree: the recipe, all overrides merged; a limit that is set in it was not let go.
        gone: the limits that the shipped recipe had.
    """
    task = tree.get("task")
    for limit, value in gone.items():
        if not (isinstance(task, Mapping) and limit in task):
            said = (
                f"your data replace the recipe's, so its task.{limit}={value} no longer applies: the student learns from "
                f"all training data, as does a teacher that is trained here; set task.{limit}=N to give the student less"
            )
            tree["notes"] = [*(tree.get("notes") or []), said]


def _name(node: Any) -> Any:
    return node.get("use") if isinstance(node, dict) else node


def _kind(node: Any) -> str:
    return str(_name(node)).split(":")[0]


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe: a shipped one by name, a YAML file, or the ``config.yaml`` of a run folder.

    Raises:
        ConfigError: there is none; the nearest names are listed.
    """
    text = str(name_or_path)
    if not text or not encodable(text) or "\0" in text:
        raise ConfigError("recipe", given=text, expected="the name of a recipe, a YAML file or a run folder")
    path = expanded(text)
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
            short(token) or "override", "is no setting", expected="key=value", remedy="for example train.steps=200"
        )
    key, text = token[: match.end() - 1], token[match.end() :]
    append = key.endswith("+")
    key = key.removesuffix("+")
    parts = key.split(".")
    if not all(parts):
        raise ConfigError(short(key), "has an empty part", expected="names joined by single dots")
    if len(parts) > DEPTH:
        raise ConfigError(short(key), f"has {len(parts)} parts", expected=f"at most {DEPTH}")
    if not text.strip():
        raise ConfigError(key, "has no value", remedy=f"write {key}=null for nothing, {key}='\"\"' for empty text")
    if len(parts) > 1 and parts[-1] == "use" and not append:
        parts = parts[:-1]  # method.use=nkd is method=nkd: another component keeps no settings of the old one
    return parts, append, read_value(text, key)


def apply(tree: dict[str, Any], token: str) -> None:
    """Merge one override into a tree, in place."""
    parts, append, value = split_override(token)
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


def short(path: str) -> str:
    """A dotted path as it may stand in a message."""
    return path if len(path) <= 120 and path.isprintable() else shorten(path)
