"""All adapters of the recorded vectors: ``ADAPTERS["slug:function"](arrays, hyperparameters) -> arrays``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Adapter = Callable[[Arrays, dict[str, Any]], Arrays]

ADAPTERS: dict[str, Adapter] = {}


def _load(path: Path) -> dict[str, Adapter]:
    """The ``ADAPTERS`` of a sibling file, however this folder was put on the path."""
    name = f"limbeck_golden_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    found: dict[str, Adapter] = module.ADAPTERS
    return found


for _path in sorted(Path(__file__).parent.glob("adapters_*.py")):
    for _key, _adapter in _load(_path).items():
        if _key in ADAPTERS:
            raise RuntimeError(f"two adapters for {_key}, the second in {_path.name}")
        ADAPTERS[_key] = _adapter
