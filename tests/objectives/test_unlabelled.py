"""Unlabelled items beside labelled ones: the task's loss leaves them out, the teacher's terms do not, others refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.run import run
from tests.test_battery import first_phases
from tests.tiny import Tiny, differences, state_of, tiny, tree_of

POOL = "task.unlabelled={use: printed, items: 60, relevant: 0.3}"


def terms_of(made: Tiny) -> dict[str, Any]:
    terms, ctx = next(first_phases(made))
    return {"terms": terms, "ctx": ctx}


@pytest.mark.parametrize("times", [1, 3])
def test_the_labels_loss_counts_labelled_items_and_the_divergence_all(times: int, tmp_path: Path) -> None:
    words = ["train.batch_size=8", "method.temperature=2"]
    plain = terms_of(tiny("kd", tmp_path / "a", *words))["terms"]
    more = ["queries.unlabelled.use=unlabelled", f"queries.unlabelled.times={times}"] if times > 1 else []
    found = terms_of(tiny("kd", tmp_path / "b", *words, POOL, *more))
    terms, ctx = found["terms"], found["ctx"]
    n = 8 * (1 + times)
    assert len(terms["kl"].values) == n and int(terms["kl"].n()) == n
    assert int(terms["ce"].n()) == 8
    torch.testing.assert_close(terms["ce"].total(), plain["ce"].total())
    torch.testing.assert_close(terms["kl"].values[:8], plain["kl"].values)
    # the items beside them are of the pool, and are answered by teacher and student
    s, t = ctx.signals["student"].logits, ctx.signals["teacher"].logits
    torch.testing.assert_close(terms["kl"].values[8:], F.kl(s, t, temperature=2)[8:])
    assert len(s) == n and not torch.equal(s[8:16], s[:8])


def test_what_stands_in_the_place_of_their_labels_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.objectives.unlabelled import WithUnlabelled

    plain = tiny("kd", tmp_path / "a", POOL).run()
    real = WithUnlabelled.__call__

    def other(self: WithUnlabelled, batch: Any, ctx: Any) -> Any:
        found = real(self, batch, ctx)
        return {**found, "y": torch.where(found["labelled"], found["y"], 7)}

    monkeypatch.setattr(WithUnlabelled, "__call__", other)
    assert not differences(state_of(plain), state_of(tiny("kd", tmp_path / "b", POOL).run()))


def test_a_batch_that_is_cut_learns_the_same(tmp_path: Path) -> None:
    whole = tiny("kd", tmp_path / "a", POOL).run()
    parts = tiny("kd", tmp_path / "b", POOL, "engine.accumulate=2").run()
    assert not differences(state_of(whole), state_of(parts), tolerance=1e-5)


def test_the_baseline_sees_labelled_items_only(tmp_path: Path) -> None:
    with_pool = run(tree_of("kd", POOL), tmp_path / "a", quiet=True)
    without = run(tree_of("kd"), tmp_path / "b", quiet=True)
    assert with_pool["metrics"]["alone"] == without["metrics"]["alone"]
    assert with_pool["metrics"]["student"] != without["metrics"]["student"]


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("nkd", [], "nkd has no term for items without labels.*take one of kd, multi-teacher"),
        ("dkd", [], "dkd has no term for items without labels"),
        ("kd", ["objectives.more=dkd"], r"objectives\.more reads labels.*objectives\.more=null"),
        ("kd", ["queries.smooth=label-smoothing"], r"queries\.smooth mixes labels.*queries\.smooth=null"),
    ],
)
def test_what_cannot_take_them_is_refused_by_name(name: str, words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"task\.unlabelled: {said}"):
        tiny(name, tmp_path, POOL, *words)


def test_without_a_pool_the_query_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"queries\.more.*task\.unlabelled=folder:PATH"):
        tiny("kd", tmp_path, "queries.more=unlabelled")


@pytest.mark.parametrize("name", ["multi-teacher", "bd-kd", "simkd"])
def test_methods_whose_terms_allow_it_run(name: str, tmp_path: Path) -> None:
    made = tiny(name, tmp_path, POOL)
    terms = terms_of(made)["terms"]
    assert any(len(t.values) == 2 * made.recipe.train.batch_size for t in terms.values() if t.values.ndim)


def test_methods_that_are_named_take_them() -> None:
    from limbeck.grammar.card import find_method
    from limbeck.grammar.method import Method
    from limbeck.recipe.schema import find_class
    from limbeck.run.preparing import TAKES_UNLABELLED

    for name in TAKES_UNLABELLED:
        cls: Any = find_class(Method, name, "method")
        assert cls.takes_unlabelled or name == "objectives", name
    assert find_method("kd")
