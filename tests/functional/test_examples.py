"""The examples in the docstrings say what really happens."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import limbeck.functional

NAMES = [m.name for m in pkgutil.iter_modules(limbeck.functional.__path__) if not m.name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"limbeck.functional.{name}"))
    assert result.failed == 0 and result.attempted > 0
