"""Several teachers: each way of combining them against its formula, and one against the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.grammar.method import Built
from limbeck.methods.classification.multi_teacher import MultiTeacher
from tests.toy import engine, network, setup, within

T = 2.0


def stepped(combine: Any, step: int = 0, teachers: int = 3) -> tuple[Any, Tensor, list[Tensor], Tensor]:
    """Terms, logits of student and teachers, and the gradient of the divergence at the student's logits."""
    method = MultiTeacher(teachers, combine, T, 1.0)
    given = setup()
    given.others = {f"teacher{k}": Built(network(4, seed=k), labels=given.task.labels) for k in range(2, teachers + 1)}
    method.bind(given)
    run = engine()
    run.prepare(method)
    ctx: Any = within(run, method, run.stages[0]).at(step)
    terms = method.step(method.task.example(6), ctx)
    z_s = ctx.signals["student"].logits
    z = [ctx.signals[n].logits for n in method.names if n in ctx.signals]
    (gradient,) = torch.autograd.grad(terms["kl"].total(), z_s, retain_graph=True)
    return terms, z_s, z, gradient


def kl(p: Tensor, q: Tensor) -> Tensor:
    return T * T * (p * (p / q).log()).sum(1)


def test_the_mean_of_the_teachers() -> None:
    terms, z_s, z, _ = stepped("average")
    assert len(z) == 3
    p = torch.stack([(a.double() / T).softmax(1) for a in z]).mean(0)
    torch.testing.assert_close(terms["kl"].values.double(), kl(p, (z_s.double() / T).softmax(1)), rtol=1e-4, atol=1e-6)


def test_each_teacher_has_the_same_gradient_as_their_mean() -> None:
    terms, z_s, z, gradient = stepped("streams")
    q = (z_s.double() / T).softmax(1)
    each = torch.stack([kl((a.double() / T).softmax(1), q) for a in z]).mean(0)
    torch.testing.assert_close(terms["kl"].values.double(), each, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, stepped("average")[3], rtol=1e-4, atol=1e-6)


def test_one_teacher_a_step_and_each_in_its_turn() -> None:
    shown = [stepped("switch", step)[2] for step in range(12)]
    assert all(len(z) == 1 for z in shown)
    sums = {round(float(z[0].double().sum()), 4) for z in shown}
    assert len(sums) == 3  # all of them within twelve steps
    again = stepped("switch", 5)[2][0]
    assert torch.equal(again, shown[5][0])  # drawn by key


@pytest.mark.parametrize("settings", [{"teachers": 1}, {"alpha": 2}, {"temperature": 0}, {"combine": "vote"}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        MultiTeacher(**settings)
