"""Names of components: declared where they live, read without importing."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from limbeck.errors import ConfigError
from limbeck.recipe import names, schema
from limbeck.recipe.names import declared, table, tables


def test_our_own_names_are_found_without_torch() -> None:
    code = (
        "import sys; from limbeck.recipe.names import tables; t = tables(); "
        "assert t['model']['mlp'] == 'limbeck.models.small:MlpModel' and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"task", "model", "source", "query", "objective", "evaluator", "method"} <= set(tables())
    assert table("nothing") == {}


def test_a_declaration_is_a_literal(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("x = 1\nNAMES: dict = {'task': {'mine': 'Mine'}}\nraise RuntimeError\n")
    assert declared(file) == {"task": {"mine": "Mine"}}
    file.write_text("def f():\n    NAMES = {}\n")
    assert declared(file) == {}
    for wrong in (
        "NAMES = {'task': {n: n for n in 'ab'}}",
        "NAMES = {'task': 'Mine'}",
        "NAMES = {'task': {'mine': 1}}",
    ):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=r"own\.py:1.*NAMES is no literal"):
            declared(file)


def test_other_packages_offer_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere_parts.py").write_text(
        "from limbeck.grammar.method import Query\n"
        "NAMES = {'query': {'elsewhere': 'Elsewhere'}}\n"
        "class Elsewhere(Query):\n    'Passes a batch through.'\n    def __call__(self, batch, ctx):\n        return batch\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    real = importlib.metadata.entry_points
    point = SimpleNamespace(name="x", value="elsewhere_parts", dist=None)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] if group == names.GROUP else real(group=group)
    )
    tables.cache_clear()
    try:
        assert table("query")["elsewhere"] == "elsewhere_parts:Elsewhere"
        from limbeck.grammar.method import Query

        assert schema.find_class(Query, "elsewhere", "queries.x").__name__ == "Elsewhere"
        (tmp_path / "elsewhere_parts.py").write_text("NAMES = {'model': {'mlp': 'Other'}}\n")
        tables.cache_clear()
        with pytest.raises(ConfigError, match="'mlp' is taken by"):
            tables()
    finally:
        tables.cache_clear()
