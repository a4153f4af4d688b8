"""Mean teacher: the consistency, both ramps, the noise of each network, the pool, and what is delivered."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError
from limbeck.grammar.role import cast
from limbeck.recipe.recipe import build, check, load_tree
from tests.tiny import differences
from tests.tiny import shared_tiny as tiny

POOL = "task.unlabelled={use: printed, items: 60, relevant: 0.3}"


@pytest.mark.parametrize("pool", [False, True])
def test_the_loss_is_the_equation(pool: bool, tmp_path: Path) -> None:
    run = tiny("mean-teacher", tmp_path, *([POOL, "method.pool=2"] if pool else []), "method.ramp=0.5")
    method: Any = run.method
    with torch.no_grad():
        for p in method.roles["mean"].module.parameters():
            p.mul_(1.1)
    stage = method.stages()[0]
    cast(method.roles, ("student",))
    ctx = RunContext(run.engine, method, stage, run.engine.device).at(1)
    ids = torch.tensor([3, 8, 5])
    batch = {**method.task.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
    terms = method.step(batch, ctx)
    assert list(terms) == ["ce", "consistency", *(["unlabelled"] if pool else [])]

    def seen(role: str, x: torch.Tensor, items: torch.Tensor, kind: str) -> torch.Tensor:
        noise = ctx.draws.randn(f"{role} {kind}", items, tuple(x.shape[1:]))
        return method.roles[role].module(method.roles[role].contract.inputs(x + 0.15 * noise))  # type: ignore[no-any-return]

    z = seen("student", batch["x"], ids, "")
    torch.testing.assert_close(terms["ce"].values, nn.functional.cross_entropy(z, batch["y"], reduction="none"))
    gap = (z.softmax(1) - seen("mean", batch["x"], ids, "").softmax(1)).square().mean(1)
    torch.testing.assert_close(terms["consistency"].values, gap)
    assert terms["consistency"].weight == pytest.approx(10 * math.exp(-5 * (1 - 1 / 3) ** 2))
    if pool:
        other = ctx.draws.randint("pool", ids, 60, (2,)).flatten()
        x = method.task.unlabelled_items.fetch(other)["x"]
        gap = (
            (seen("student", x, other, "pool").softmax(1) - seen("mean", x, other, "pool").softmax(1)).square().mean(1)
        )
        torch.testing.assert_close(terms["unlabelled"].values, gap)
    grads = torch.autograd.grad(terms["consistency"].total(), list(method.roles["student"].module.parameters()))
    assert all(g.any() for g in grads)
    assert not any(p.requires_grad for p in method.roles["mean"].module.parameters())


def test_the_average_is_slow_only_once_the_ramp_is_over(tmp_path: Path) -> None:
    method: Any = tiny("mean-teacher", tmp_path, "method.decay=0.999", "method.early=0.99").method
    assert method._kept(0, 10_000) == 0.5 and method._kept(1000, 10_000) == 0.99 and method._kept(5000, 10_000) == 0.999
    assert method.ramped(10_000, 10_000) == 10 and method.ramped(0, 10_000) == pytest.approx(10 * math.exp(-5))


def test_the_average_is_delivered_and_the_student_is_a_row(tmp_path: Path) -> None:
    method: Any = tiny("mean-teacher", tmp_path).run().method
    assert not differences(method.artifact().state(), method.network("mean").state())
    assert list(method.rows()) == ["learner"]
    assert differences(
        dict(method.roles["mean"].module.state_dict()), dict(method.roles["student"].module.state_dict())
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("decay=1", "method.decay"),
        ("early=0.9995", "method.early: must be at most decay, 0.99"),
        ("weight=-1", "method.weight"),
        ("noise=-1", "method.noise"),
        ("ramp=2", "method.ramp"),
        ("pool=-1", "method.pool"),
    ],
)
def test_bad_settings_are_refused(words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(check(load_tree("mean-teacher", [f"method.{words}"], tiny=True)))
