"""The list of claims and comparisons, and what was committed of them, agree; a row is run by itself and goes on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from limbeck.grammar.card import catalogue
from limbeck.recipe.recipe import check, load_tree

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    """evidence/run.py, which is a script."""
    spec = importlib.util.spec_from_file_location("evidence_run", ROOT / "evidence" / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evidence_run"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_would_be_derived_from_their_runs(evidence: ModuleType, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in (ROOT / "evidence").glob("**/*.json") if p.parent.name != "benchmarks"}
    for path, data in before.items():
        copy = tmp_path / path.relative_to(ROOT / "evidence")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
    (tmp_path / "list.yaml").write_bytes((ROOT / "evidence" / "list.yaml").read_bytes())
    evidence.HERE, here = tmp_path, evidence.HERE
    try:
        evidence.derive(*evidence.read_list())
    finally:
        evidence.HERE = here
    for path, data in before.items():
        assert (tmp_path / path.relative_to(ROOT / "evidence")).read_bytes() == data, (
            f"{path}: evidence/run.py --derive"
        )


def test_claims_are_of_cards_and_every_row_is_a_recipe(evidence: ModuleType) -> None:
    listed, rows = evidence.read_list()
    assert set(listed["claims"]) <= {c.slug for c in catalogue()}
    for row in rows:
        recipe, *settings = [word.replace(evidence.DATA, "/nowhere") for word in row.words]
        check(load_tree(recipe, settings))
        assert len(row.seeds) >= 2


def test_nothing_is_counted_twice() -> None:
    seen: dict[str, str] = {}
    for path in sorted((ROOT / "evidence").glob("*/*.json")):
        record: dict[str, Any] = json.loads(path.read_text())
        for label, words in record.get("rows", {}).items() if "runs" in record else ():
            key = json.dumps([words[0], *sorted(words[1:]), record["seeds"][0]])
            assert key not in seen, f"{path.stem}:{label} was run as {seen[key]}"
            seen[key] = f"{path.stem}:{label}"
