"""What is said of extras is what the package declares."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from limbeck.core.extras import EXTRAS, extra_of

IMPORTED_AS = {"torch-geometric": "torch_geometric", "mlflow-skinny": "mlflow"}


def test_extras_are_those_of_the_package() -> None:
    file = Path(__file__).parents[2] / "pyproject.toml"
    if not file.is_file():
        pytest.skip("no source tree around the tests")
    declared = tomllib.loads(file.read_text())["project"]["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        packages = [name.split(">")[0].split(";")[0].strip() for name in declared[extra]]
        assert {IMPORTED_AS.get(name, name) for name in packages} == set(modules), extra
    assert set(EXTRAS) == set(declared) - {"all", "dev"} - {e for e in declared if e.startswith("doc")}


def test_a_package_is_brought_by_its_extra() -> None:
    assert extra_of("peft") == "language" and extra_of("onnx") == "export" and extra_of("numpy") is None
