"""Born-again networks: the loss of each treatment, who teaches whom, and the ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine.context import RunContext
from limbeck.engine.step import Phases
from limbeck.errors import ConfigError
from limbeck.grammar.method import Share, Terms
from limbeck.grammar.role import cast
from limbeck.recipe.recipe import build, check, load_tree
from tests.tiny import differences
from tests.tiny import shared_tiny as tiny


@pytest.mark.parametrize("treatment", ["none", "confidence", "permuted"])
def test_the_loss_of_the_second_generation(treatment: str, tmp_path: Path) -> None:
    run = tiny("born-again", tmp_path, f"method.treatment={treatment}", "method.temperature=2", "method.labels=0.5")
    method: Any = run.method
    method.afresh("previous", 7)
    stage = method.stages()[1]
    cast(method.roles, ("student",))
    ctx = RunContext(run.engine, method, stage, run.engine.device).at(0)
    ids = torch.arange(5)
    batch = {**method.task.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
    phases, answer, terms = Phases(stage.step, batch, ctx), None, None
    while (found := phases.send(answer)) is not None:  # type: ignore[func-returns-value]
        answer = dict(found) if isinstance(found, Share) else None
        terms = found if isinstance(found, Terms) else terms
    assert terms is not None
    x = method.roles["student"].contract.feed(batch)["x"]
    z, t = method.roles["student"].module(x), method.roles["previous"].module(x).detach()
    ce = nn.functional.cross_entropy(z, batch["y"], reduction="none")
    if treatment == "confidence":
        w = t.softmax(1).max(1).values
        assert list(terms) == ["ce"] and terms["ce"].weight == 1
        torch.testing.assert_close(terms["ce"].values, ce * w / w.mean())
        return
    if treatment == "permuted":
        moved = method.permuted(t, batch, ctx)
        assert torch.equal(moved.argmax(1), t.argmax(1)) and not torch.equal(moved, t)
        torch.testing.assert_close(moved.sort(1).values, t.sort(1).values)
        assert len({tuple(r.tolist()) for r in (moved - t).sign()}) > 1
        t = moved
    p, log_q = (t / 2).softmax(1), (z / 2).log_softmax(1)
    torch.testing.assert_close(terms["kl"].values, 4 * (p * (p.log() - log_q)).sum(1))
    torch.testing.assert_close(terms["ce"].values, ce)
    assert terms["ce"].weight == 0.5 and terms["kl"].weight == 1


def test_each_generation_learns_from_the_one_before(tmp_path: Path) -> None:
    run = tiny("born-again", tmp_path, "method.generations=2", "method.labels=0").run()
    method: Any = run.method
    assert [s.name for s in method.stages()] == ["generation0", "generation1", "generation2"]
    state = {n: dict(r.module.state_dict()) for n, r in method.roles.items()}
    assert not differences(state["previous"], state["step2"]) and differences(state["step1"], state["step2"])
    rows = method.rows()
    assert list(rows) == ["generation0", "generation1", "ensemble"]
    x = method.task.test.fetch(torch.arange(4))["x"]
    nets = [method.roles[n] for n in ("step1", "step2", "student")]
    mean = torch.stack([r.module(r.contract.inputs(x)).softmax(1) for r in nets]).mean(0)
    torch.testing.assert_close(rows["ensemble"].built.module(x).softmax(1), mean)
    first = tiny("born-again", tmp_path / "b", "method.generations=1").run()
    assert not differences(dict(first.method.roles["step1"].module.state_dict()), state["step1"])


@pytest.mark.parametrize("word", ["generations=0", "labels=-1", "temperature=0", "treatment=dark"])
def test_bad_settings_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{word.split('=')[0]}"):
        build(check(load_tree("born-again", [f"method.{word}"], tiny=True)))
