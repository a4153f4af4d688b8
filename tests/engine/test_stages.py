"""Who learns in a stage, who stands still, and that all of it comes back after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.data.items import Part
from limbeck.engine import interrupt
from limbeck.errors import ConfigError, MethodError, Stopped
from limbeck.grammar.method import Batch, Context, Method, Setup, Stage, Term, Terms
from limbeck.grammar.role import Role, averaged, cast
from limbeck.storage import store
from tests.tiny import StopAfter, differences
from tests.toy import bound, engine, learnt, network


@pytest.fixture(autouse=True)
def _no_request() -> Iterator[None]:
    interrupt.clear()
    yield
    interrupt.clear()


def resumed(make: Callable[[], Method], folder: Path, stop: int, **settings: Any) -> Method:
    """A run that stops after so many steps and goes on with fresh objects."""
    with pytest.raises(Stopped):
        engine(folder, StopAfter(stop), **settings).run(make())
    interrupt.clear()
    method = make()
    engine(folder, **settings).run(method)
    return method


class Relay(Method):
    """A critic learns, then the student from it; both are the student's own loss and a pull towards the other."""

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.roles["critic"] = Role(network(4, seed=3))
        self.roles["mean"] = averaged(self.roles["critic"], "critic", 0.5)
        self.seen: list[tuple[str, str, bool, bool]] = []

    def stages(self) -> list[Stage]:
        train = self.setup.train
        common: dict[str, Any] = {"steps": 4, "data": self.task.train, "batch_size": 8}
        return [
            Stage("critic", optim={"critic": train}, step=self.critic_step, **common),
            Stage("distil", optim={"student": train}, **common),
        ]

    def critic_step(self, batch: Batch, ctx: Context) -> Terms:
        self.look(ctx)
        return Terms(critic=Term(ctx.signal("critic", batch).logits.square().sum(1), to="critic"))

    def step(self, batch: Batch, ctx: Context) -> Terms:
        self.look(ctx)
        z, target = ctx.signal("student", batch).logits, ctx.signal("critic", batch).logits
        assert not target.requires_grad
        return Terms(pull=Term((z - target - ctx.signal("mean", batch).logits).square().sum(1)))

    def look(self, ctx: Context) -> None:
        for name in ("student", "critic"):
            module: Any = ctx.roles[name].module
            self.seen.append((ctx.stage, name, module.training, next(module.parameters()).requires_grad))


@pytest.mark.parametrize("stop", [1, 3, 5, 6])
def test_who_learnt_earlier_and_stands_still_now_comes_back(stop: int, tmp_path: Path) -> None:
    def make() -> Method:
        return bound(Relay())

    whole: Any = make()
    engine(tmp_path / "whole").run(whole)
    assert not differences(learnt(whole), learnt(resumed(make, tmp_path / "halves", stop)))
    assert set(whole.seen) == {
        ("critic", "critic", True, True),
        ("critic", "student", False, False),
        ("distil", "student", True, True),
        ("distil", "critic", False, False),
    }
    for role in whole.roles.values():  # a run leaves what it was given as it found it
        assert not role.module.training
    assert all(p.requires_grad for n in ("student", "teacher", "critic") for p in whole.roles[n].module.parameters())


def test_an_average_stands_still_where_its_role_does(tmp_path: Path) -> None:
    method = bound(Relay())
    run = engine(tmp_path, StopAfter(4))
    with pytest.raises(Stopped):
        run.run(method)
    interrupt.clear()
    after_first = learnt(method)["roles"]["mean"]
    again = bound(Relay())
    engine(tmp_path).run(again)
    assert not differences(after_first, learnt(again)["roles"]["mean"])
    assert differences(after_first, learnt(again)["roles"]["critic"])


class Halved(Method):
    """The teacher, which learns nowhere, is changed once when the stage begins."""

    def stages(self) -> list[Stage]:
        (stage,) = super().stages()
        stage.begin = self.begin
        return [stage]

    def begin(self, ctx: Context) -> None:
        with torch.no_grad():
            for p in self.roles["teacher"].module.parameters():
                p.mul_(0.5)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        gap = ctx.signal("student", batch).logits - ctx.signal("teacher", batch).logits
        return Terms(gap=Term(gap.square().sum(1)))


@pytest.mark.parametrize("stop", [1, 5])
def test_a_role_that_learns_nowhere_comes_back_as_a_stage_changed_it(stop: int, tmp_path: Path) -> None:
    whole = bound(Halved())
    engine(tmp_path / "whole").run(whole)
    assert not differences(learnt(whole), learnt(resumed(lambda: bound(Halved()), tmp_path / "halves", stop)))
    saved = store.Checkpoints(tmp_path / "whole" / "checkpoints").latest()
    assert saved is not None and set(saved[1]["roles"]) == {"student", "teacher"}


def test_a_teacher_that_nothing_changes_is_in_no_checkpoint(tmp_path: Path) -> None:
    engine(tmp_path).run(bound())
    saved = store.Checkpoints(tmp_path / "checkpoints").latest()
    assert saved is not None and set(saved[1]["roles"]) == {"student", "mean"}


def test_what_its_maker_froze_stays_frozen_in_every_stage() -> None:
    student = network()
    student[0].requires_grad_(False)
    method = bound(Relay(), student=student)
    before = learnt(method)["roles"]["student"]
    engine().run(method)
    now = learnt(method)["roles"]["student"]
    assert torch.equal(before["0.weight"], now["0.weight"]) and not torch.equal(before["4.weight"], now["4.weight"])
    assert [p.requires_grad for p in student.parameters()] == [False, False, True, True]


def test_modules_that_two_roles_share_follow_the_one_that_learns() -> None:
    trunk, heads = nn.Linear(6, 4), [nn.Linear(4, 3), nn.Linear(4, 3)]
    roles = {name: Role(nn.Sequential(trunk, head)) for name, head in zip("ab", heads, strict=True)}
    for name, other in (("a", "b"), ("b", "a"), ("a", "b")):
        cast(roles, (name,))
        assert trunk.training and trunk.weight.requires_grad
        assert roles[name].module[1].weight.requires_grad and not roles[other].module[1].weight.requires_grad
        assert list(roles[name].parameters()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
        assert list(roles[other].parameters()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


# -------------------------------------------------------------------------------------- what is known when it begins
class Chosen(Method):
    """A first stage decides, in the method's state, what the second is built of, trained on, and for how long."""

    def stages(self) -> list[Stage]:
        train = self.setup.train
        return [
            Stage("look", 3, self.task.train, 8, {"student": train}, finish=self.choose),
            Stage("distil", self.length, self.rest, 8, {"student": train, "head": train}, setup=self.build),
        ]

    def choose(self, ctx: Context) -> None:
        self.state["width"], self.state["from"] = 4, 7
        self.state["log"] = []

    def build(self, ctx: Context) -> None:
        assert self.state["log"] == [], "the state that it found at first"
        assert torch.equal(self.roles["student"].module.state_dict()["0.weight"], self.expected), "restored weights"
        self.roles["head"] = Role(network(self.state["width"], seed=9))

    def length(self, ctx: Context) -> int:
        return self.state["width"] + 1  # type: ignore[no-any-return]

    def rest(self, ctx: Context) -> Any:
        return Part(self.task.train, torch.arange(self.state["from"], 40))  # type: ignore[arg-type]

    def step(self, batch: Batch, ctx: Context) -> Terms:
        z = ctx.signal("student", batch).logits
        if ctx.stage == "look":
            return Terms(z=Term(z.square().sum(1)))
        assert ctx.total == 5
        return Terms(both=Term((z - ctx.signal("head", batch).logits).square().sum(1), to=("student", "head")))

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        if ctx.stage == "distil":
            self.state["log"].append(seen["both"])


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_a_stage_learns_from_an_earlier_one_what_it_is(stop: int, tmp_path: Path) -> None:
    def make() -> Method:
        method: Any = bound(Chosen())
        method.expected = expected
        return method

    expected: Any = None
    probe: Any = bound(Chosen())
    probe.build = lambda ctx: (_ for _ in ()).throw(Stopped(15))
    with pytest.raises(Stopped):
        engine().run(probe)
    expected = learnt(probe)["roles"]["student"]["0.weight"]
    whole = make()
    engine(tmp_path / "whole").run(whole)
    assert len(whole.state["log"]) == 5 and whole.roles["head"].module[0].out_features == 4  # type: ignore[index, union-attr]
    with pytest.raises(Stopped):
        engine(tmp_path / "halves", StopAfter(stop)).run(make())
    interrupt.clear()
    again: Any = make()
    if stop > 3:  # in the middle of the second stage its door sees what has been learnt since
        saved = store.Checkpoints(tmp_path / "halves" / "checkpoints").latest()
        assert saved is not None
        again.expected = saved[1]["roles"]["student"]["0.weight"]
    engine(tmp_path / "halves").run(again)
    assert not differences(learnt(whole), learnt(again))


@pytest.mark.parametrize("steps", [-1, 2.5, None])
def test_a_length_that_is_none_is_refused(steps: Any) -> None:
    class Wrong(Chosen):
        def length(self, ctx: Context) -> int:
            return steps  # type: ignore[no-any-return]

        def build(self, ctx: Context) -> None:
            self.roles["head"] = Role(network())

    with pytest.raises(ConfigError, match=r"stage 'distil'.steps: .* expected a whole number"):
        engine().run(bound(Wrong()))


@pytest.mark.parametrize(
    ("name", "said"), [("critc", "did you mean 'critic'"), ("mean", "average"), ("tape", "Recorded")]
)
def test_an_optimiser_for_no_role_or_one_that_cannot_learn_is_refused(name: str, said: str) -> None:
    class Recorded:
        def answer(self, batch: Batch, taps: Any) -> Any:
            """Never asked."""

    class Wrong(Relay):
        def bind(self, setup: Setup) -> None:
            super().bind(setup)
            self.roles["tape"] = Role(Recorded())

        def stages(self) -> list[Stage]:
            first, second = super().stages()
            second.optim[name] = self.setup.train
            return [first, second]

    with pytest.raises(ConfigError, match=said):
        engine().run(bound(Wrong()))


def test_stages_of_items_let_nobody_learn_and_nothing_move(tmp_path: Path) -> None:
    class Searching(Relay):
        moves = False

        def stages(self) -> list[Stage]:
            return [Stage("search", items=lambda ctx: ["a"], work=self.work)]

        def work(self, item: str, ctx: Context) -> Any:
            self.look(ctx)
            if self.moves:
                self.roles["critic"].module[0].weight.data.add_(1.0)  # type: ignore[index, operator, union-attr]
            return {"x": ctx.call("critic", torch.ones(1, 6))}

    method: Any = bound(Searching())
    engine(tmp_path / "a").run(method)
    assert method.seen == [("search", "student", False, False), ("search", "critic", False, False)]
    wrong = bound(Searching())
    wrong.moves = True  # type: ignore[attr-defined]
    with pytest.raises(MethodError, match=r"stage search: the work of item 'a' has moved role 'critic'"):
        engine(tmp_path / "b").run(wrong)
