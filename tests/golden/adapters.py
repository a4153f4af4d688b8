"""All adapters of the recorded vectors: ``ADAPTERS["slug:function"](arrays, hyperparameters) -> arrays``.

An adapter keeps in ``doubts`` what its last call did not look at, or found at odds with the arrays. The open cases must
leave none, for numbers that come out right although a setting was ignored are right by accident; of other cases doubts
are told beside numbers that come out wrong.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]

ADAPTERS: dict[str, Whole] = {}


class Read(Mapping[str, Any]):
    """A mapping that knows which of its entries were read, in the mappings inside it too."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._seen: set[str] = set()
        self._inside: dict[str, Read] = {}
        self._odd: list[str] = []

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        self._seen.add(name)
        return self._inside.setdefault(name, Read(value)) if isinstance(value, Mapping) else value

    def __contains__(self, name: object) -> bool:  # to ask whether something is there is not to read it
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def peek(self, name: str) -> Any:
        """An entry, without counting as read: to see whether it is of a kind that is known."""
        return self._values.get(name)

    def prose(self, *names: str) -> None:
        """Entries that say how a case came about and change nothing."""
        self._seen.update(names)

    def same(self, name: str, actual: Any) -> None:
        """An entry that repeats what the arrays say: it is checked, if it is there."""
        if name not in self._values:
            return
        given = self[name]
        agree = math.isclose(given, actual, rel_tol=1e-6) if isinstance(actual, float) else given == actual
        if not agree:
            self.doubt(f"hyperparameter {name!r} is {given!r}, but the arrays say {actual!r}")

    def doubt(self, text: str) -> None:
        """Something that does not fit, though an answer can be given."""
        self._odd.append(text)

    def odd(self) -> list[str]:
        """What did not fit, inside too."""
        return self._odd + [text for inner in self._inside.values() for text in inner.odd()]

    def unread(self) -> list[str]:
        """Names nobody looked at, inner ones as ``outer.inner``."""
        found = [name for name in self._values if name not in self._seen]
        return found + [f"{name}.{deep}" for name, inner in self._inside.items() for deep in inner.unread()]


class Whole:
    """An adapter that keeps account of what it looked at.

    Attributes:
        doubts: what the last call left unread or found contradictory, in words.
    """

    def __init__(self, adapter: Callable[[Read, Read], dict[str, np.ndarray]]) -> None:
        self.adapter = adapter
        self.doubts: list[str] = []

    def __call__(self, arrays: Arrays, hyperparameters: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The case's outputs."""
        given, hyper = Read(arrays), Read(hyperparameters)
        hyper.prose("note", "description")
        results = self.adapter(given, hyper)
        # whoever hands over a whole recorded file hands over the answers too, which are no inputs
        extra = [name for name in given.unread() if name not in results]
        self.doubts = [f"hyperparameter {name!r} is unknown" for name in hyper.unread()]
        self.doubts += [f"array {name!r} is unknown" for name in extra] + given.odd() + hyper.odd()
        return results


def _load(path: Path) -> dict[str, Any]:
    """The ``ADAPTERS`` of a sibling file, however this folder was put on the path."""
    name = f"limbeck_golden_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    found: dict[str, Any] = module.ADAPTERS
    return found


for _path in sorted(Path(__file__).parent.glob("adapters_*.py")):
    for _key, _adapter in _load(_path).items():
        if _key in ADAPTERS:
            raise RuntimeError(f"two adapters for {_key}, the second in {_path.name}")
        ADAPTERS[_key] = Whole(_adapter)
