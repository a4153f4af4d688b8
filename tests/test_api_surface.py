"""The public names and their signatures, as ``api_surface.json`` records them.

Whoever uses limbeck relies on them: a name that goes, or a signature that changes, must be changed in that file too, so
that it shows in the review. ``python -m tests.test_api_surface`` writes the file anew.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.recipe.names import tables

FILE = Path(__file__).with_name("api_surface.json")

MODULES = ("limbeck", "limbeck.functional", "limbeck.objectives")
"""Modules whose ``__all__`` is public, with the namespaces in it."""

GRAMMAR = {
    "limbeck.cache": ("Cache", "Cached", "build_cache"),
    "limbeck.cache.remote": ("Endpoint", "Remote", "serve"),
    "limbeck.compare": ("compare",),
    "limbeck.grammar.artifact": ("Artifact", "NetworkArtifact"),
    "limbeck.grammar.card": ("Card", "catalogue", "evidence", "find_card", "find_method", "read_card", "recipes"),
    "limbeck.grammar.component": ("Component", "Settings"),
    "limbeck.errors": (
        "CacheMismatch",
        "CheckpointCorrupt",
        "ConfigError",
        "DataError",
        "LimbeckError",
        "MissingExtra",
        "NonFinite",
        "OutOfMemory",
        "ShapeError",
        "Stopped",
        "StorageError",
        "TapError",
        "TeacherMismatch",
        "Untrusted",
        "require",
    ),
    "limbeck.grammar.method": ("Built", "Context", "Data", "Setup", "Share", "Stage"),
    "limbeck.grammar.random": ("Draws", "key_of"),
    "limbeck.recipe.recipe": ("build", "check", "describe", "dump", "load_tree"),
    "limbeck.grammar.role": ("averaged",),
    "limbeck.grammar.signal": ("through",),
    "limbeck.export": ("export",),
    "limbeck.report": ("write_report",),
    "limbeck.run": ("plan", "run"),
}
"""What a method, a task or a tool is written with, beyond what those name."""


def signature(thing: Any) -> str:
    """A signature as text, without addresses."""
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return "(...)"
    text = re.sub(r"ForwardRef\('([^']+)'[^)]*\)", r"'\1'", text)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def describe(thing: Any) -> Any:
    """What is promised of a public thing: a signature; of a class its public members too; of a module its names."""
    if inspect.ismodule(thing):
        names = getattr(thing, "__all__", None) or [
            n
            for n, v in vars(thing).items()
            if not n.startswith("_") and getattr(v, "__module__", None) == thing.__name__
        ]
        return {n: describe(getattr(thing, n)) for n in sorted(names)}
    if not inspect.isclass(thing):
        return signature(thing) if callable(thing) else type(thing).__name__
    found: dict[str, Any] = {"()": signature(thing)}
    if issubclass(thing, enum.Enum):
        found["members"] = [m.name for m in thing]
    for cls in (c for c in reversed(thing.__mro__) if c.__module__.startswith("limbeck")):
        for name, value in {**dict.fromkeys(inspect.get_annotations(cls)), **vars(cls)}.items():
            if name.startswith("_"):
                continue
            if isinstance(value, (classmethod, staticmethod)):
                value = value.__func__
            found[name] = (
                signature(value)
                if inspect.isfunction(value)
                else "property"
                if isinstance(value, property)
                else "value"
            )
    return dict(sorted(found.items()))


def surface() -> dict[str, Any]:
    """Everything that is public."""
    found = {name: describe(importlib.import_module(name)) for name in MODULES}
    for module, names in GRAMMAR.items():
        loaded = importlib.import_module(module)
        found[module] = {n: describe(getattr(loaded, n)) for n in names}
    found["limbeck"]["functional"] = "see limbeck.functional"
    found["names in recipes"] = {kind: sorted(table) for kind, table in tables().items()}
    return found


def flat(tree: Any, path: str = "") -> dict[str, str]:
    """Dotted path -> what is there."""
    if isinstance(tree, dict):
        return {k: v for name, part in tree.items() for k, v in flat(part, f"{path}.{name}" if path else name).items()}
    if isinstance(tree, list):
        return {f"{path}.{name}": "name" for name in tree}
    return {path: tree}


def test_public_names_are_those_of_the_inventory() -> None:
    recorded, now = flat(json.loads(FILE.read_text())), flat(surface())
    gone = [f"{name} is gone" for name in recorded if name not in now]
    changed = [f"{n}: {recorded[n]} became {now[n]}" for n in recorded if n in now and recorded[n] != now[n]]
    new = [f"{name} is new" for name in now if name not in recorded]
    assert not gone + changed + new, "\n".join(
        [*gone, *changed, *new, "if this is meant: python -m tests.test_api_surface, and a line in CHANGELOG.md"]
    )


def test_the_inventory_notices() -> None:
    def f(a: int, b: int = 1) -> int:
        return a + b

    def g(a: int, b: int = 2) -> int:
        return a + b

    assert describe(f) == describe(f) != describe(g)


@pytest.mark.parametrize("kind", sorted(tables()))
def test_every_name_of_a_recipe_leads_to_a_class_of_its_kind(kind: str) -> None:
    for name, where in tables()[kind].items():
        module, _, cls = where.partition(":")
        assert getattr(importlib.import_module(module), cls).kind == kind.partition(" for ")[0], name


def test_importing_limbeck_imports_no_torch() -> None:
    told = "import sys, limbeck; limbeck.__all__; dir(limbeck); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def main() -> None:
    """Write the inventory."""
    FILE.write_text(json.dumps(surface(), indent=1, sort_keys=True) + "\n")
    print(FILE)


if __name__ == "__main__":
    main()
