"""Plain KD's step against its formula, for every kind of target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.engine.engine import Engine
from limbeck.grammar.method import Terms
from limbeck.methods.classification.kd import Kd
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run import prepare
from tests.toy import ToyTask, bound, engine, within


def first_step(method: Any, n: int = 6) -> tuple[dict[str, Any], Terms, Tensor, Tensor]:
    """A batch, its terms, and the logits of student and teacher."""
    run = engine()
    run.prepare(method)
    batch = method.task.example(n)
    ctx: Any = within(run, method, run.stages[0])
    terms = method.step(batch, ctx)
    return batch, terms, ctx.signals["student"].logits, ctx.signals.get("teacher", ctx.signals["student"]).logits


@pytest.mark.parametrize("scale_t2", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_loss_is_the_papers(direction: Any, scale_t2: bool) -> None:
    T, alpha = 3.0, 0.7
    batch, terms, z_s, z_t = first_step(bound(Kd(T, alpha, direction, scale_t2)))
    q, p = (z_s.double() / T).softmax(1), (z_t.double() / T).softmax(1)
    a, b = (p, q) if direction == "forward" else (q, p)
    kl = (a * (a / b).log()).sum(1) * (T * T if scale_t2 else 1.0)
    assert set(terms) == {"ce", "kl"}
    assert torch.allclose(terms["kl"].values.double(), kl, rtol=1e-4)
    assert (terms["ce"].weight, terms["kl"].weight) == pytest.approx((0.3, 0.7))
    assert terms["ce"].to == terms["kl"].to == ("student",)
    ce = -z_s.double().log_softmax(1).gather(1, batch["y"][:, None])[:, 0]
    assert torch.allclose(terms["ce"].values.double(), ce, rtol=1e-4)
    assert not z_t.requires_grad


def test_without_a_share_the_teacher_is_not_asked() -> None:
    method = bound(Kd(alpha=0.0))
    method.roles["teacher"].module.forward = None  # type: ignore[union-attr, assignment]
    method.roles["teacher"].module = torch.nn.Linear(1, 1)  # would fail if it were called
    run = engine()
    ctx: Any = within(run, method, method.stages()[0])
    terms = method.step(method.task.example(6), ctx)
    assert isinstance(terms, Terms) and list(terms) == ["ce"] and terms["ce"].weight == 1.0


class Other(ToyTask):
    """The toy with another kind of target."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.target = self.kind_of_target = kind


@pytest.mark.parametrize("kind", ["labels", "number"])
def test_other_targets_are_matched_in_their_own_way(kind: str) -> None:
    method: Any = bound(Kd(temperature=2.0))
    method.setup.task = Other(kind)
    g = torch.Generator().manual_seed(0)
    z_s, z_t = torch.randn(5, 3, generator=g), torch.randn(5, 3, generator=g)
    values = method.divergence(z_s, z_t)
    if kind == "number":
        expected = (z_s - z_t).square().sum(1)
    else:
        q, p = (z_s.double() / 2).sigmoid(), (z_t.double() / 2).sigmoid()
        expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).float()
    assert torch.allclose(values, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("repdistiller", ["teacher.depth=8"]),
        ("repdistiller-wrn", ["teacher.depth=10", "student.depth=10"]),
        ("imagenet", ["task.size=32", "teacher.name=test_resnet", "student.name=test_resnet", "teach.steps=2"]),
    ],
)
def test_the_usual_protocols_take_steps(preset: str, words: list[str]) -> None:
    short = ["train.epochs=null", "train.steps=2", "train.batch_size=4", "task.student_items=20", "task.eval_batch=64"]
    small = ["task.valid_fraction=0.9", "task.test_fraction=0.02", "engine.device=cpu", "loggers=[]", "baselines=[]"]
    if preset != "imagenet":
        short += ["teach.epochs=null", "teach.steps=2", "teach.batch_size=4", "task.size=16"]
    tree = check(load_tree("kd", [*short, *small, "teacher.check=off", *words], preset=preset))
    recipe = build(tree)
    prepare(recipe, None, say=lambda text: None)
    before = {k: v.clone() for k, v in recipe.method.roles["student"].module.state_dict().items()}
    Engine(recipe.engine, recipe.seed).run(recipe.method)
    after = recipe.method.roles["student"].module.state_dict()
    assert any(not torch.equal(before[k], v) for k, v in after.items())
    assert tree["train"]["optimizer"] == "sgd" and tree["train"]["schedule"] == "step"
