"""What is said of extras is what the package declares."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import limbeck
from limbeck.commands import doctor
from limbeck.recipe.extras import EXTRAS, extra_of

IMPORTED_AS = {"mlflow-skinny": "mlflow", "scikit-image": "skimage"}
ROOT = Path(__file__).parents[2]


def test_extras_are_those_of_the_package() -> None:
    file = ROOT / "pyproject.toml"
    if not file.is_file():
        pytest.skip("no source tree around the tests")
    declared = tomllib.loads(file.read_text())["project"]["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        packages = [name.split(">")[0].split(";")[0].strip() for name in declared[extra]]
        assert {IMPORTED_AS.get(name, name) for name in packages} == set(modules), extra
    assert set(EXTRAS) == set(declared) - {"all", "dev"} - {e for e in declared if e.startswith("doc")}


def test_every_extra_that_is_offered_is_used_and_told_of() -> None:
    code = "".join(p.read_text() for p in Path(limbeck.__file__).parent.rglob("*.py"))
    asked = {match[1] for match in re.finditer(r"""require\([^()]+?, "(\w+)", """, code)}
    assert set(EXTRAS) <= asked, "an extra that nothing asks for is not to be offered"
    offered = {row.name.removeprefix("extra ") for row in doctor.examine() if row.name.startswith("extra ")}
    assert offered == set(EXTRAS)
    page = ROOT / "docs" / "getting-started.md"
    if page.is_file():
        assert set(re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", page.read_text(), re.M)) >= offered


def test_a_package_is_brought_by_its_extra() -> None:
    assert extra_of("peft") == "language" and extra_of("onnx") == "export" and extra_of("numpy") is None
