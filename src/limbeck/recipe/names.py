"""Names that a recipe may use: each module says its own, and is imported only when one of them is chosen.

A module with components declares them as a literal at its top::

    NAMES = {"task": {"dense": "Dense"}, "model": {"unet": "UNetModel"}}

which is read from the text, as Cards are. Methods are not listed: a method's name is read from its Card
(``limbeck.grammar.card``). Installed packages offer components of theirs by entry points of the group
``limbeck.components`` (``anything = package.module``), whose files are read alike.

A name written ``import:package.module:function`` reaches the user's own function and runs their code.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from limbeck.errors import ConfigError

GROUP = "limbeck.components"
"""The entry-point group in which an installed package offers components."""

PLACES = ("cache", "data", "evaluators", "grammar", "models", "networks", "objectives", "parts", "tasks")
"""Our packages whose modules may declare names."""

_BEGINS = re.compile(r"^NAMES\b[^=\n]*= *\{", re.MULTILINE)


@cache
def tables() -> dict[str, dict[str, str]]:
    """Kind -> name -> ``module:Class``, of all our modules and of installed packages.

    Raises:
        ConfigError: a declaration is no literal, or two modules claim one name.
    """
    found: dict[str, dict[str, str]] = {}
    for file, module in (*_own(), *_offered()):
        for kind, names in declared(file).items():
            table = found.setdefault(kind, {})
            for name, cls in names.items():
                if name in table:
                    raise ConfigError(str(file), f"the {kind} {name!r} is taken by {table[name]}")
                table[name] = f"{module}:{cls}"
    return found


def table(kind: str) -> dict[str, str]:
    """Name -> ``module:Class`` of one kind of component."""
    return tables().get(kind, {})


def special(kind: str) -> frozenset[str]:
    """The names of a kind that mean another component for some who want one (``source for TextSource``)."""
    return frozenset(n for k, names in tables().items() if k.startswith(f"{kind} for ") for n in names)


def declared(file: Path) -> dict[str, dict[str, str]]:
    """What a file declares as ``NAMES``: kind -> name -> class; nothing where it declares none.

    Raises:
        ConfigError: it is no literal of that form, with file and line.
    """
    text = file.read_text(encoding="utf-8")
    begins = _BEGINS.search(text)
    if begins is None:
        return {}
    try:
        tree = ast.parse(text, str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise ConfigError(f"{file}:{line}" if line else str(file), f"is not Python: {error}") from None
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if not any(isinstance(t, ast.Name) and t.id == "NAMES" for t in targets):
            continue
        try:
            value = ast.literal_eval(node.value)
        except (ValueError, TypeError, SyntaxError):
            value = None
        fits = isinstance(value, dict) and all(
            isinstance(k, str) and isinstance(t, dict) and all(isinstance(x, str) for pair in t.items() for x in pair)
            for k, t in value.items()
        )
        if not fits:
            raise ConfigError(
                f"{file}:{node.lineno}", "NAMES is no literal", expected='{"kind": {"name": "Class"}}, in text alone'
            )
        return value
    return {}


def _own() -> Iterator[tuple[Path, str]]:
    root = Path(__file__).resolve().parents[1]
    for place in PLACES:
        for file in sorted((root / place).rglob("*.py")):
            parts = file.relative_to(root.parent).with_suffix("").parts
            yield file, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _offered() -> Iterator[tuple[Path, str]]:
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        module = point.value.split(":")[0].strip()
        try:
            spec = importlib.util.find_spec(module)
        except Exception as error:
            raise ConfigError(
                f"entry point {GROUP}: {point.name}", f"{module} cannot be found: {error}", remedy="update that package"
            ) from None
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            yield Path(spec.origin), module
