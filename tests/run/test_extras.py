"""Names and further entries of a result: from method, task and evaluator, none of which takes another's place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.errors import MethodError
from limbeck.methods.condensation.cda import Cda
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.report.headline import headline
from limbeck.run import run_recipe
from limbeck.run.rows import Scored, called, merged


def test_pictures_of_several_sides_stand_beside_one_another() -> None:
    found = merged(
        {"metrics"}, method={"pictures": [1], "told": {"a": 1}}, task={"pictures": [2, 3]}, evaluator={"told": {"b": 2}}
    )
    assert found == {"pictures": [1, 2, 3], "told": {"a": 1, "b": 2}}
    with pytest.raises(MethodError, match=r"task\.extras.*'metrics'"):
        merged({"metrics"}, task={"metrics": {}})
    with pytest.raises(MethodError, match=r"evaluator\.extras.*'told' is there already"):
        merged({}, method={"told": 1}, evaluator={"told": 2})


def test_rows_are_called_what_they_are() -> None:
    scored = Scored(metrics={"student": {}, "teacher": {}, "pixels": {}}, baseline="pixels")
    assert called(scored, {"pixels": "each pixel's distance", "random": "x"}, {"teacher": "the table"}) == {
        "alone": "each pixel's distance",
        "teacher": "the table",
    }
    assert called(Scored(metrics={"student": {}}, baseline="pixels"), {"pixels": "x"}) == {}


@pytest.mark.parametrize(("labels", "baseline"), [("stored", "random-soft"), ("hard", "")])
def test_cda_is_held_against_real_images_with_the_same_labels(labels: str, baseline: str) -> None:
    assert Cda(labels=labels).baseline == baseline  # type: ignore[arg-type]


def test_the_headline_names_the_true_baseline(tmp_path: Path) -> None:
    tree = check(load_tree("fair-data", tiny=True))
    run_recipe(build(tree), tree, tmp_path, quiet=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["names"]["alone"] == "the real rows"
    said = " ".join(headline(result))
    assert "the real rows" in said and "without distillation" not in said and "at equal budget" not in said
