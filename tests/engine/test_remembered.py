"""What stages leave for other runs: found by what they depend on, made by one run at a time, taken as it was made."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine import interrupt
from limbeck.engine.context import RunContext
from limbeck.engine.engine import Engine
from limbeck.engine.settings import EngineSettings
from limbeck.errors import MethodError, Stopped
from limbeck.grammar.method import Batch, Context, Method, Setup, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.role import Role, averaged
from limbeck.storage import store
from tests.tiny import StopAfter, differences, tiny
from tests.toy import ToyTask, bound, data, learnt, network, setup


@pytest.fixture(autouse=True)
def _no_request() -> Iterator[None]:
    interrupt.clear()
    yield
    interrupt.clear()


class Said(list[str]):
    """What engines say."""


def engine(
    folder: Path, workspace: Path, seed: int = 0, progress: Any = None, say: Callable[[str], None] | None = None
) -> Engine:
    return Engine(EngineSettings(device="cpu"), seed, folder, workspace, progress=progress, say=say)


def resumed(make: Callable[[], Method], tmp_path: Path, stop: int, seed: int = 0) -> Method:
    """A run with a workspace of its own that stops after so many steps and goes on with fresh objects."""
    place = tmp_path / f"halves{stop}", tmp_path / f"workspace{stop}"
    with pytest.raises(Stopped):
        engine(*place, seed, StopAfter(stop)).run(make())
    interrupt.clear()
    method = make()
    engine(*place, seed).run(method)
    return method


# ---------------------------------------------------------------------------------------------------- stages of items
class Searching(Method):
    """Three items, one of them a network that is trained; then a stage that reads them."""

    def __init__(self, width: int = 3) -> None:
        self.width, self.worked = width, Said()

    def stages(self) -> list[Stage]:
        train = self.setup.train
        search = Stage(
            "search",
            items=lambda ctx: ["a", "b", "c"],
            work=self.work,
            data=self.task.train,
            optim={"probe": Optim(steps=3, lr=0.1)},
            remember=[self.width],
            roles=("teacher",),
        )
        return [search, Stage("distil", 2, self.task.train, 8, {"student": train})]

    def work(self, item: str, ctx: Context) -> Any:
        self.worked.append(item)
        net = network(self.width)

        def loss(module: Any, batch: Batch, inner: Any) -> Any:
            return module(batch["x"]).square().sum(1)

        ctx.fit(net, self.task.train, loss, ctx.optim["probe"], scope=f"search/{item}")
        return {"w": net[0].weight.detach(), "r": ctx.draws.randn("r", 2, (2,))}

    def step(self, batch: Batch, ctx: Context) -> Terms:
        pull = ctx.artifact("search", "b")["w"].square().mean()
        return Terms(ce=Term(ctx.signal("student", batch).logits.square().sum(1) * pull))


def test_items_are_made_once_for_every_run_and_seed(tmp_path: Path) -> None:
    first, second, other = (bound(Searching()) for _ in range(3))
    engine(tmp_path / "1", tmp_path / "w").run(first)
    engine(tmp_path / "2", tmp_path / "w", seed=5).run(second)
    engine(tmp_path / "3", tmp_path / "v", seed=5).run(other)
    assert first.worked == other.worked == ["a", "b", "c"] and second.worked == []  # type: ignore[attr-defined]
    assert not differences(learnt(second), learnt(other)), "as if it had made them itself"
    (folder,) = (tmp_path / "w").iterdir()
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["a", "b", "c"]


def test_whoever_wants_items_that_another_run_makes_waits_and_takes_them(tmp_path: Path) -> None:
    engine(tmp_path / "1", tmp_path / "w").run(bound(Searching()))
    (folder,) = (tmp_path / "w").iterdir()
    made = tmp_path / "made"
    shutil.copytree(folder, made)
    for item in ("b", "c"):
        shutil.rmtree(folder / item)
    lock = store.RunLock(folder).acquire()

    waiting = threading.Event()

    def finish() -> None:
        waiting.wait(20)
        for item in ("b", "c"):
            shutil.copytree(made / item, folder / item)
        lock.release()

    other = threading.Thread(target=finish)
    other.start()
    said, method = Said(), bound(Searching())

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    try:
        engine(tmp_path / "2", tmp_path / "w", say=say).run(method)
    finally:
        other.join()
    assert said == ["search: another run is making it; waiting"] and method.worked == []  # type: ignore[attr-defined]


def test_whoever_takes_over_makes_the_rest(tmp_path: Path) -> None:
    engine(tmp_path / "1", tmp_path / "w").run(bound(Searching()))
    (folder,) = (tmp_path / "w").iterdir()
    shutil.rmtree(folder / "b")
    method = bound(Searching())
    engine(tmp_path / "2", tmp_path / "w").run(method)
    assert method.worked == ["b"]  # type: ignore[attr-defined]


def key_of(method: Method, stage: str = "search", index: int = 0, seed: int = 0) -> str:
    """The key of a stage, as a run that reaches it has it."""
    run = engine(Path("nowhere"), Path("nowhere"), seed)
    run.prepare(method)
    run._know(method, run.stages[index])
    return run.remembered.keys[stage]


def test_what_makes_other_items() -> None:
    def made(change: str = "") -> str:
        method = bound(Searching(4 if change == "remember" else 3), n=41 if change == "data" else 40)
        if change == "a role that it names":
            method.roles["teacher"].module[0].bias.data += 1  # type: ignore[index, operator, union-attr]
        if change == "a role that it does not name":
            method.roles["student"].module[0].bias.data += 1  # type: ignore[index, operator, union-attr]
        if change == "state":
            method.state = {"t": 1.0}
        first, *rest = method.stages()
        if change.startswith("optim."):
            name = change.removeprefix("optim.")
            value = {"options": {"eps": 1e-3}, "schedule": "linear", "warmup": 1, "clip": 1.0, "lr": 0.2}[name]
            first.optim["probe"] = first.optim["probe"].with_(**{name: value})
        if change == "earlier":
            first, rest = Stage("before", items=lambda ctx: ["x"], work=lambda i, c: i, remember=[]), [first, *rest]
        method.stages = lambda: [first, *rest]  # type: ignore[method-assign]
        if change != "earlier":
            return key_of(method)
        run = engine(Path("nowhere"), Path("nowhere"))
        run.prepare(method)
        for stage in run.stages[:2]:
            run._know(method, stage)
        return run.remembered.keys["search"]

    same = {made(), made("a role that it does not name")}
    others = ["remember", "data", "a role that it names", "state", "earlier"]
    others += [f"optim.{name}" for name in ("options", "schedule", "warmup", "clip", "lr")]
    assert len(same) == 1 and len(same | {made(change) for change in others}) == len(others) + 1


def test_mtt_and_tesla_share_experts_that_are_trained_alike(tmp_path: Path) -> None:
    """Every setting of their training counts, and nothing of what is distilled from them."""

    def made(name: str, *overrides: str, seed: int = 0) -> str:
        return key_of(tiny(name, tmp_path, *overrides, seed=seed).method, "experts", seed=seed)

    same = {made("mtt"), made("tesla"), made("mtt", seed=3), made("tesla", "task.per_class=3", "method.step_size=0.5")}
    others = [
        "expert.lr=0.5",
        "expert.schedule=linear",
        "expert.clip=1",
        "expert.warmup=1",
        "expert.options={foreach: false}",
    ]
    others += ["expert.momentum=0.5", "expert.weight_decay=0.1", "expert.optimizer=adam", "expert.batch_size=100"]
    changed = {made("mtt", f"stages.experts.{o}") for o in others}
    changed |= {
        made("mtt", o) for o in ("method.expert_epochs=3", "student.depth=2", "task.strategy=''", "task.zca=true")
    }
    assert len(same) == 1 and len(same | changed) == 1 + len(others) + 4


# ---------------------------------------------------------------------------------------------------- stages of steps
class Warmed(Method):
    """A critic that is warmed up, with state and an average of it, and remembered; then a student that learns from it."""

    def __init__(self, value: int = 1, roles: tuple[str, ...] | None = None) -> None:
        self.value, self.narrow, self.taken = value, roles, 0

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.roles["critic"] = Role(network(4, seed=3, dropout=0.3))
        self.roles["mean"] = averaged(self.roles["critic"], "critic", 0.5)
        self.state = {"seen": 0.0}

    def stages(self) -> list[Stage]:
        train = self.setup.train
        warm = Stage("warm", 4, self.task.train, 8, {"critic": train}, step=self.warm, begin=self.begin)
        warm.remember, warm.roles = [self.value], self.narrow
        return [warm, Stage("distil", 4, self.task.train, 8, {"student": train})]

    def begin(self, ctx: Context) -> None:
        with torch.no_grad():
            self.roles["teacher"].module[0].bias.add_(1.0)  # type: ignore[index, operator, union-attr]

    def warm(self, batch: Batch, ctx: Context) -> Terms:
        self.taken += 1
        z = ctx.signal("critic", batch).logits + ctx.draws.randn("z", batch["item"], (3,))
        return Terms(warm=Term((z - ctx.signal("teacher", batch).logits).square().sum(1), to="critic"))

    def step(self, batch: Batch, ctx: Context) -> Terms:
        z = ctx.signal("critic", batch).logits + ctx.signal("mean", batch).logits
        return Terms(pull=Term((ctx.signal("student", batch).logits - z).square().sum(1) * (1 + self.state["seen"])))

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        self.state["seen"] = 0.5 * self.state["seen"] + 0.1 * seen.get("warm", 0.0)


def test_steps_are_taken_once_for_every_run_and_seed(tmp_path: Path) -> None:
    said = Said()
    first, second, alone = (bound(Warmed()) for _ in range(3))
    engine(tmp_path / "1", tmp_path / "w").run(first)
    engine(tmp_path / "2", tmp_path / "w", seed=5, say=said.append).run(second)
    engine(tmp_path / "3", tmp_path / "v", seed=5).run(alone)
    assert (first.taken, second.taken, alone.taken) == (4, 0, 4)  # type: ignore[attr-defined]
    assert "warm: reused from the workspace" in said
    assert not differences(learnt(second), learnt(alone)), "as if it had trained it itself"
    assert differences(learnt(first)["roles"]["student"], learnt(second)["roles"]["student"]), (
        "the rest has its own seed"
    )


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_remembered_stage_of_steps_is_resumed(stop: int, tmp_path: Path) -> None:
    whole = bound(Warmed())
    engine(tmp_path / "whole", tmp_path / "w", 5).run(whole)
    halves = resumed(lambda: bound(Warmed()), tmp_path, stop, 5)
    assert not differences(learnt(whole), learnt(halves))
    third = bound(Warmed())
    engine(tmp_path / "third", tmp_path / f"workspace{stop}", 5).run(third)
    assert not differences(learnt(whole), learnt(third)) and third.taken == 0  # type: ignore[attr-defined]


def test_what_makes_other_steps() -> None:
    def made(change: str = "") -> str:
        given: dict[str, Any] = {"lr": 0.1} if change == "optim" else {"n": 41} if change == "data" else {}
        method = bound(Warmed(2 if change == "remember" else 1), **given)
        if change == "student":
            method.roles["student"].module[0].bias.data += 1  # type: ignore[index, operator, union-attr]
        if change == "what is trained":
            method.roles["critic"].module[0].requires_grad_(False)  # type: ignore[index, operator, union-attr]
        stages = method.stages()
        if change == "steps":
            stages[0].steps = 5
        if change == "batch":
            stages[0].batch_size = 4
        if change == "kept":
            stages[1].keep, stages[1].optim = ("critic",), {**stages[1].optim, "critic": method.setup.train}
        method.stages = lambda: stages  # type: ignore[method-assign]
        return key_of(method, "warm")

    changes = ["optim", "data", "remember", "student", "what is trained", "steps", "batch", "kept"]
    assert len({made(), made(), *(made(change) for change in changes)}) == len(changes) + 1


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (("critic", "teacher", "mean"), ""),
        (("critic", "mean"), r"has changed roles that its `roles` leave out: \['teacher'\]"),
        (("teacher",), r"its `roles` \['teacher'\] do not go with \['critic'\]"),
        (("critic", "teachr"), r"do not go with \['teachr'\]"),
    ],
)
def test_the_roles_that_a_stage_names_must_be_all(roles: tuple[str, ...], said: str, tmp_path: Path) -> None:
    if said:
        with pytest.raises(MethodError, match=said):
            engine(tmp_path / "1", tmp_path / "w").run(bound(Warmed(roles=roles)))
        return
    engine(tmp_path / "1", tmp_path / "w").run(bound(Warmed(roles=roles)))
    other = bound(Warmed(roles=roles), student=network(seed=9))
    engine(tmp_path / "2", tmp_path / "w").run(other)
    assert other.taken == 0, "another student, and the same critic"  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------- optimisers that go on
class Twice(Method):
    """The student learns in two stages from the same whole batch."""

    def __init__(self, keep: tuple[str, ...] = ("student",), split: bool = True, **changes: Any) -> None:
        self.keep, self.split, self.changes, self.remember = keep, split, changes, False

    def stages(self) -> list[Stage]:
        train = self.setup.train.with_(schedule="constant", batch_size=40)
        if not self.split:
            return [Stage("all", 6, self.task.train, 40, {"student": train}, shuffle=False, scope="s")]
        first = Stage("first", 3, self.task.train, 40, {"student": train}, shuffle=False, scope="s")
        between = Stage("between", items=lambda ctx: ["x"], work=lambda item, ctx: {"x": 1})
        second = Stage("second", 3, self.task.train, 40, {"student": train.with_(**self.changes)}, keep=self.keep)
        second.shuffle, second.scope, first.remember = False, "s", [] if self.remember else None
        return [first, between, second]

    def step(self, batch: Batch, ctx: Context) -> Terms:
        return Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_optimiser_that_is_kept_goes_on_as_if_there_were_one_stage(optimizer: str, tmp_path: Path) -> None:
    def made(**how: Any) -> Method:
        return bound(Twice(**how), optimizer=optimizer)

    one, two, cut = made(split=False), made(), made(keep=())
    for number, method in enumerate((one, two, cut)):
        engine(tmp_path / str(number), tmp_path / "w").run(method)
    assert not differences(learnt(one), learnt(two))
    assert differences(learnt(one), learnt(cut))


@pytest.mark.parametrize("stop", [2, 3, 4, 6])
def test_what_is_kept_survives_an_interruption(stop: int, tmp_path: Path) -> None:
    whole = bound(Twice())
    engine(tmp_path / "whole", tmp_path / "w").run(whole)
    assert not differences(learnt(whole), learnt(resumed(lambda: bound(Twice()), tmp_path, stop)))


def test_what_is_kept_is_remembered(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        method: Any = bound(Twice())
        method.remember = True
        engine(tmp_path / str(number), tmp_path / "w").run(method)
        found.append(learnt(method))
    plain = bound(Twice())
    engine(tmp_path / "plain", tmp_path / "w").run(plain)
    assert not differences(*found) and not differences(found[0], learnt(plain))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"keep": ("teacher",)}, "role 'teacher' does not learn in it"),
        ({"optimizer": "sgd"}, "role 'student' was optimised by AdamW and is now by SGD"),
    ],
)
def test_what_cannot_be_kept_is_said(how: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=f"stage second: `keep`: {said}"):
        engine(tmp_path / "1", tmp_path / "w").run(bound(Twice(**how)))


def test_what_no_stage_has_trained_cannot_be_kept(tmp_path: Path) -> None:
    class First(Twice):
        def stages(self) -> list[Stage]:
            return super().stages()[2:]

    with pytest.raises(MethodError, match="role 'student' has learnt in no stage before it"):
        engine(tmp_path / "1", tmp_path / "w").run(bound(First()))


def test_a_context_tells_the_stages_optimisers() -> None:
    method = bound(Searching())
    run = engine(Path("nowhere"), Path("nowhere"), 7)
    run.prepare(method)
    ctx = RunContext(run, method, run.stages[0], run.device)
    assert ctx.optim["probe"].lr == 0.1 and ctx.seed == 0
    assert RunContext(run, method, run.stages[1], run.device).seed == 7
    assert setup().task.train.fingerprint == ToyTask().train.fingerprint != data(39).fingerprint
