"""What a method must keep to: where terms lead, what items leave alone, what processes do alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from limbeck.engine.rules import Still, leaves
from limbeck.errors import MethodError
from limbeck.grammar.method import Batch, Context, Method, Stage, Term, Terms
from limbeck.grammar.role import Role
from tests.toy import CLASSES, bound, engine, learnt, network


class Adversary(Method):
    """A student that fools a critic, which is trained in the same phase, or in the next."""

    def __init__(self, how: str = "leak") -> None:
        self.how = how

    def bind(self, setup: Any) -> None:
        super().bind(setup)
        self.roles["critic"] = Role(nn.Linear(CLASSES, 1))
        self.learners = ("student", "critic")

    def step(self, batch: Batch, ctx: Context) -> Terms | Iterator[Terms]:
        z, t = ctx.signal("student", batch).logits, ctx.signal("teacher", batch).logits
        if self.how == "through":
            with ctx.through("critic") as frozen:
                fooled = -frozen(z)
        elif self.how == "checkpointed":
            fooled = -checkpoint(self.roles["critic"].module, z, use_reentrant=False)
        else:
            fooled = -ctx.call("critic", z)
        to = ("student", "critic") if self.how == "declared" else "student"
        fool = Term(fooled.squeeze(-1), to)
        seen = ctx.call("critic", z.detach()) - ctx.call("critic", t)
        critic = Term(seen.squeeze(-1).square(), "critic")
        if self.how == "phases":
            return iter([Terms(fool=fool), Terms(critic=critic)])
        return Terms(fool=fool, critic=critic)


@pytest.mark.parametrize("how", ["leak", "checkpointed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_term_that_leaks_into_a_role_of_its_phase_is_named(how: str, accumulate: int) -> None:
    method = bound(Adversary(how))
    before = learnt(method)
    with pytest.raises(MethodError, match=r"term 'fool'.*declared for 'student'.*reaches 'critic'.*ctx\.through"):
        engine(accumulate=accumulate).run(method)
    assert all(
        torch.equal(v, before["roles"][r][k]) for r, s in learnt(method)["roles"].items() for k, v in s.items()
    ), "it is found before anything is updated"


@pytest.mark.parametrize("how", ["through", "declared", "phases"])
def test_a_term_may_pass_a_role_that_it_leaves_alone_or_declares(how: str) -> None:
    engine().run(bound(Adversary(how)))


def test_a_leak_that_a_later_step_makes_is_named_too() -> None:
    class Later(Adversary):
        def step(self, batch: Batch, ctx: Context) -> Terms:
            self.how = "leak" if ctx.step >= 5 else "through"
            found = super().step(batch, ctx)
            if ctx.step < 5:
                del found["critic"]
            return found

    with pytest.raises(MethodError, match="reaches 'critic'"):
        engine().run(bound(Later()))


def test_a_shared_parameter_belongs_to_both_roles() -> None:
    class Views(Method):
        def bind(self, setup: Any) -> None:
            super().bind(setup)
            self.roles["head"] = Role(setup.student.module[4])
            self.learners = ("student", "head")

        def step(self, batch: Batch, ctx: Context) -> Terms:
            z = ctx.signal("student", batch).logits
            hidden = torch.ones(len(z), 5)
            return Terms(all=Term(z.square().sum(1)), head=Term(ctx.call("head", hidden).sum(1), "head"))

    engine().run(bound(Views(), optimizer="sgd", lr=1e-3))


def test_leaves_are_the_parameters_a_value_depends_on() -> None:
    net, other = network(), nn.Linear(2, 2)
    z = net(torch.ones(3, 6))
    assert leaves(z.sum()) == {id(p) for p in net.parameters()}
    assert leaves((z.detach() * 2).sum()) == set()
    first = torch.autograd.grad(z.sum(), list(net.parameters()), create_graph=True)
    assert leaves(first[0].sum()) <= {id(p) for p in net.parameters()}
    assert not leaves(z.sum()) & {id(p) for p in other.parameters()}


class Constant(Method):
    """A term of the teacher's numbers alone."""

    def __init__(self, scale: float = 1.0, weight: Any = 1.0) -> None:
        self.scale, self.weight = scale, weight

    def step(self, batch: Batch, ctx: Context) -> Terms:
        z = ctx.signal("student", batch).logits
        values = z.detach().square().sum(1) * self.scale
        return Terms(ce=Term(z.square().sum(1)), stuck=Term(values, weight=self.weight))


@pytest.mark.parametrize("weight", [1.0, torch.tensor(0.5)])
def test_a_term_without_a_graph_is_named(weight: Any) -> None:
    with pytest.raises(MethodError, match=r"term 'stuck'.*no graph, so it trains nothing.*'student'"):
        engine().run(bound(Constant(weight=weight)))


@pytest.mark.parametrize(("scale", "weight"), [(0.0, 1.0), (1.0, 0.0), (1.0, torch.tensor(0.0))])
def test_a_term_may_rest(scale: float, weight: Any) -> None:
    engine().run(bound(Constant(scale, weight)))


def test_a_role_that_no_term_trains_is_told() -> None:
    class Idle(Method):
        def bind(self, setup: Any) -> None:
            super().bind(setup)
            self.roles["extra"] = Role(nn.Linear(5, 5))
            self.learners = ("student", "extra")

        def step(self, batch: Batch, ctx: Context) -> Terms:
            return Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))

    run = engine()
    run.run(bound(Idle()))
    assert run.notes == ["stage 'distil' has an optimiser for 'extra', and no term trained it"]
    run = engine()
    run.run(bound())
    assert not run.notes


def test_what_is_no_term_is_refused_where_it_is_written() -> None:
    with pytest.raises(MethodError, match=r"term 'metrics': is a dict, expected a Term; metrics come first"):
        Terms(metrics={"a": (1.0, 1.0)})  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- items
class Scored(Method):
    """Items are scored by the student, then it is trained."""

    def __init__(self, how: str) -> None:
        self.how = how

    def stages(self) -> list[Stage]:
        train = self.setup.train
        return [
            Stage("score", items=lambda ctx: ["a", "b"], work=self.work),
            Stage("distil", steps=2, data=self.task.train, batch_size=8, optim={"student": train}),
        ]

    def work(self, item: str, ctx: Context) -> Any:
        x, student = torch.ones(4, 6), self.roles["student"].module
        if self.how == "through":
            with ctx.through("student") as net:
                return {"z": net(x).detach()}
        if self.how == "weights":
            with torch.no_grad():
                student[4].bias.add_(1.0)
        if self.how == "statistics":
            student.train()
        return {"z": student(x).detach()}

    def step(self, batch: Batch, ctx: Context) -> Terms:
        return Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))


@pytest.mark.parametrize(("how", "named"), [("statistics", "1.running_mean"), ("weights", "4.bias")])
def test_an_item_that_moves_a_role_is_named_before_it_is_kept(how: str, named: str, tmp_path: Path) -> None:
    method = bound(Scored(how), student=network(norm=True))
    with pytest.raises(MethodError, match=rf"stage score: the work of item 'a' has moved role 'student' \({named}"):
        engine(tmp_path).run(method)
    assert not list((tmp_path / "items" / "score").glob("*"))


def test_an_item_may_look_at_a_role(tmp_path: Path) -> None:
    engine(tmp_path).run(bound(Scored("through"), student=network(norm=True)))


def test_still_sees_buffers_of_every_type() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3))
    still = Still({"a": Role(net)})
    assert not still.moved()
    net[0].num_batches_tracked.add_(1)
    assert still.moved() == {"a": ["0.num_batches_tracked"]}
