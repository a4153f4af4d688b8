"""The examples in the docstrings say what really happens."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil

import pytest
import torch

import limbeck.functional

NAMES = [
    m.name.removeprefix("limbeck.functional.")
    for m in pkgutil.walk_packages(limbeck.functional.__path__, "limbeck.functional.")
    if not m.ispkg and "._" not in m.name
]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"limbeck.functional.{name}")
    package = importlib.import_module(module.__package__ or "")
    result = doctest.testmod(module, globs={"math": math, "torch": torch, **vars(package), **vars(module)})
    assert result.failed == 0 and result.attempted > 0
