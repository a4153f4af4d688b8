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


@pytest.mark.parametrize(
    ("task", "source", "meant"),
    [
        ("language", "jsonl", "text-jsonl"),
        ("language", "csv", "text-csv"),
        ("language", "hf", "text-hf"),
        ("masked-words", "parquet", "text-parquet"),
        ("questions", "jsonl", "text-jsonl"),
        ("text-classes", "csv", "labelled-text"),
        ("text-classes", "hf", "labelled-hf"),
        ("text-pairs", "parquet", "pair-table"),
        ("text-pairs", "hf", "pair-hf"),
        ("cross-lingual", "jsonl", "parallel-text"),
        ("statements", "csv", "glosses"),
        ("keypoints", "csv", "keypoints"),
        ("poses", "jsonl", "keypoints"),
        ("graphs", "csv", "smiles"),
        ("classification", "csv", "csv"),
        ("table", "jsonl", "jsonl"),
    ],
)
def test_one_name_for_every_task(task: str, source: str, meant: str) -> None:
    """``jsonl:FILE`` is the source that the task reads; the resolved recipe has the name of that one."""
    from limbeck.grammar.task import Task
    from limbeck.recipe.resolving import Checker

    checker = Checker(build=False)
    found = checker.component(Task, {"use": task, "data": f"{source}:f"}, "task")
    assert not checker.problems and found is not None and found["data"]["use"] == meant
    again = checker.component(Task, found, "task")
    assert again == found and not checker.problems


def test_loss_of_texts_is_short_for_loss_on() -> None:
    from limbeck.recipe.renamed import renamed

    assert renamed({"task": {"use": "language", "loss": "last"}})["task"] == {"use": "language", "loss_on": "last"}
    assert renamed({"task": {"use": "keypoints", "loss": "wing"}})["task"]["loss"] == "wing"
    with pytest.raises(ConfigError, match=r"task\.loss_on, and that is set too"):
        renamed({"task": {"use": "language", "loss": "last", "loss_on": "all"}})
