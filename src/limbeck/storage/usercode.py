"""The user's own code behind ``import:package.module:function``: which files it is, and a fingerprint of them.

Nothing is imported or run to find out. What counts as the user's is what does not come from an installed package: the
module itself, the whole package it lies in, and the modules and packages of the user's that these import. Installed
packages are known by their names alone.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from limbeck.storage.files import Seen, digest

_SUFFIXES = tuple(importlib.machinery.all_suffixes())


@dataclass(frozen=True)
class UserCode:
    """The code that a name ``package.module:function`` stands for.

    Attributes:
        name: as it stands in a recipe.
        found: whether such a module lies on the search path (whether it has the function shows only when it is run).
        files: the user's own files, none where the module is an installed package's.
        fingerprint: of the files' contents and their places relative to the folder that is searched.
        hashes: of each file, by its place relative to that folder.
    """

    name: str
    found: bool
    files: tuple[Path, ...]
    fingerprint: str
    hashes: Mapping[str, str] = field(default_factory=dict, compare=False)


def user_code(name: str) -> UserCode:
    """The files behind ``package.module:function``, found as an import would find them, with the current folder first.

    Example:
        >>> code = user_code("math:sqrt")
        >>> code.found, code.files
        (True, ())
    """
    module = name.partition(":")[0]
    top = module.partition(".")[0]
    waiting, met = [top], {top}
    files: dict[str, Path] = {}
    found = False
    with Seen() as seen:
        while waiting:
            package = waiting.pop()
            places = _places(package)
            if package == top:
                found = places is not None
            for root, file in places or ():
                if installed(file):
                    continue
                files[file.relative_to(root).as_posix()] = file
                fresh = [name for name in seen.ask(file, "imports", partial(_imports, file)) if name not in met]
                met.update(fresh)
                waiting += fresh
        hashes = {relative: _hash(files[relative], seen) for relative in sorted(files)}
    whole = hashlib.sha256(module.encode())
    for relative, content in hashes.items():
        whole.update(f"\0{relative}\0{content}".encode())
    return UserCode(name, found, tuple(files[r] for r in hashes), whole.hexdigest() if found else "", hashes)


def _places(top: str) -> list[tuple[Path, Path]] | None:
    """(folder on the search path, file) of a top-level module or of all of a package; ``None`` where there is none."""
    if top in sys.builtin_module_names:
        return []
    if not top.isidentifier():
        return None
    path = list(dict.fromkeys([os.getcwd(), *(p or os.getcwd() for p in sys.path)]))
    try:
        spec = importlib.machinery.PathFinder.find_spec(top, path)
        # a package that is installed in place is found by a hook of its installer, not on the path
        spec = spec or importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        folders = [Path(f) for f in spec.submodule_search_locations]
        return [(f.parent, file) for f in folders if not installed(f) for file in _modules(f)]
    origin = Path(spec.origin) if spec.origin and spec.has_location else None
    return [] if origin is None else [(origin.parent, origin)]


def _modules(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(d for d in folders if d.isidentifier() and d != "__pycache__")
        for name in sorted(names):
            file = Path(place, name)
            if name.endswith(_SUFFIXES) and file.is_file():
                yield file


@functools.cache
def _roots() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    own = Path(__file__).resolve().parents[1]  # limbeck is installed, even where it is installed in place
    return (own, *(Path(p).resolve() for n in names if (p := sysconfig.get_path(n))))


def installed(file: Path) -> bool:
    """Whether a file belongs to an installed package, to Python, or to limbeck."""
    whole = file.resolve()
    if {"site-packages", "dist-packages"} & set(whole.parts):
        return True
    return any(whole.is_relative_to(root) for root in _roots())


def _imports(file: Path) -> list[str]:
    """The first names of what a file imports, wherever in it that stands; relative imports stay in the package."""
    if file.suffix != ".py":
        return []
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):  # whoever runs it is told
        return []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return sorted(found)


def _hash(file: Path, seen: Seen) -> str:
    try:
        return digest(file, seen)
    except OSError:
        return "unreadable"
