"""Dependencies point one way: what a package may import of the others, wherever in a file the import stands."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import limbeck
from limbeck.grammar.task import Task

ROOT = Path(limbeck.__file__).parent

FOUNDATION = {"errors", "functional", "storage", "grammar", "recipe", "engine"}

MAY = {
    "functional": {"errors"},
    "storage": {"errors"},
    "grammar": {"errors", "functional", "storage"},
    "engine": {"errors", "functional", "storage", "grammar"},
    "recipe": {"errors", "storage", "grammar", "engine"},
    "networks": FOUNDATION,
    "data": FOUNDATION,
    "objectives": FOUNDATION | {"data", "networks", "tasks"},
    "tasks": FOUNDATION | {"data", "networks", "objectives"},
    "models": FOUNDATION | {"data", "networks", "tasks"},
    "artifacts": FOUNDATION | {"data", "networks", "objectives", "tasks", "models"},
    "evaluators": FOUNDATION | {"data", "networks", "objectives", "tasks"},
    "parts": FOUNDATION | {"data", "networks", "objectives", "tasks", "models", "evaluators", "artifacts"},
    "methods": FOUNDATION | {"data", "networks", "objectives", "tasks", "models", "evaluators", "artifacts", "parts"},
}
"""Beside itself. What is not named here (run, report, cache, compare, export, commands) may import everything."""

EXCEPTIONS = {
    ("grammar/role.py", "engine"): "a role splits its own module over the processes",
    ("grammar/artifact.py", "recipe"): "a network is saved with the recipe node that builds it",
    ("tasks/sampler.py", "models"): "a saved sampler is opened by the kind of model that wrote it",
}


def imports(path: Path) -> list[str]:
    """What a file imports of limbeck, without the first name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["limbeck", *path.relative_to(ROOT).parts[: -node.level]] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # "from limbeck import functional" imports a package, "from limbeck.grammar.role import Role" a module
            found += [f"limbeck.{alias.name}" for alias in node.names] if module == "limbeck" else [module]
    return [name.removeprefix("limbeck.") for name in found if name.startswith("limbeck.")]


def upward(path: Path) -> list[str]:
    """The imports of a file that do not point down."""
    place = path.relative_to(ROOT).as_posix()
    package = place.split("/")[0]
    may = MAY[package] | {package}
    return [
        f"{place} imports limbeck.{name}"
        for name in imports(path)
        if not any(name == p or name.startswith(f"{p}.") for p in may) and (place, name.split(".")[0]) not in EXCEPTIONS
    ]


@pytest.mark.parametrize("package", sorted(MAY))
def test_imports_point_down(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    assert not [line for path in files for line in upward(path)]


def test_exceptions_are_needed() -> None:
    for place, package in EXCEPTIONS:
        assert any(name.split(".")[0] == package for name in imports(ROOT / place)), place


def test_models_meet_needs_and_no_task_by_its_class() -> None:
    """What a model must know of a task stands in `Needs`: no file of models imports a task, or asks for a task's class."""
    tasks = {
        node.name
        for path in (ROOT / "tasks").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and _is_task(path, node.name)
    }
    assert {"Classification", "Language", "MaskedWords", "SourceTask", "Labelled", "Prompted", "Tokenized"} <= tasks
    found = []
    for path in (ROOT / "models").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("limbeck.tasks"):
                found += [f"{path.name}: {alias.name}" for alias in node.names if alias.name in tasks]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "cast"):
                asked = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {
                    n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)
                }
                found += [f"{path.name}: {name}" for name in asked & tasks]
    assert not found


def _is_task(path: Path, name: str) -> bool:
    made = getattr(importlib.import_module(f"limbeck.tasks.{path.stem}"), name)
    return isinstance(made, type) and (issubclass(made, Task) or name == "Tokenized")
