"""The one loop on toys: resuming, cutting batches, averages, statistics of a batch, add-ons, compiling, evaluation."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine import interrupt
from limbeck.engine.context import RunContext
from limbeck.engine.engine import Engine
from limbeck.engine.inner import fit
from limbeck.engine.step import Stepper
from limbeck.engine.unaided import Unaided
from limbeck.errors import ConfigError, MethodError, NonFinite, Stopped
from limbeck.evaluators.direct import Direct
from limbeck.grammar.method import Batch, Context, Method, Query, Share, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Stream
from limbeck.grammar.role import Role
from limbeck.objectives import FeatureMatch, Kl
from limbeck.run.best import Best
from limbeck.storage import store
from tests import toy
from tests.tiny import StopAfter, differences
from tests.toy import Toy, bound, data, engine, learnt, network


@pytest.fixture(autouse=True)
def _no_request() -> Iterator[None]:
    interrupt.clear()
    yield
    interrupt.clear()


def halves(make: Any, folder: Path, stop: int, **settings: Any) -> Method:
    """A run that is stopped after so many steps and goes on with fresh objects."""
    first: Method = make()
    with pytest.raises(Stopped):
        engine(folder, StopAfter(stop), **settings).run(first)
    interrupt.clear()
    second: Method = make()
    engine(folder, **settings).run(second)
    return second


def hints() -> dict[str, Any]:
    return {"hint": FeatureMatch("2", "2", weight=0.5), "soft": Kl(weight=0.3)}


# ---------------------------------------------------------------------------------------------------------- resuming
@pytest.mark.parametrize("stop", [1, 3, 7])
@pytest.mark.parametrize("kind", ["plain", "norm and dropout", "add-ons"])
def test_resuming_is_exact_with_averages_shares_projectors_and_state(kind: str, stop: int, tmp_path: Path) -> None:
    def make() -> Method:
        student = network(norm=True, dropout=0.3) if kind == "norm and dropout" else network()
        return bound(student=student, objectives=hints() if kind == "add-ons" else {})

    whole = make()
    engine(tmp_path / "whole").run(whole)
    assert not differences(learnt(whole), learnt(halves(make, tmp_path / "halves", stop)))
    assert whole.state["t"] != 0.25
    if kind == "add-ons":
        fresh = make()
        engine().prepare(fresh)
        moved = differences(learnt(fresh)["roles"]["projector:hint"], learnt(whole)["roles"]["projector:hint"])
        assert len(moved) == 2, "the projector is trained"


def test_an_average_follows_its_role(monkeypatch: pytest.MonkeyPatch) -> None:
    method = bound(Toy(decay=0.5))
    run = engine()
    expected = {k: v.clone() for k, v in method.roles["mean"].module.state_dict().items()}
    take, seen = Stepper.take, []

    def watched(self: Stepper, step: int, micro: Any) -> Any:
        found = take(self, step, micro)
        for k, v in method.roles["student"].module.state_dict().items():
            expected[k].mul_(0.5).add_(v, alpha=0.5)
        seen.append(1)
        return found

    monkeypatch.setattr(Stepper, "take", watched)
    run.run(method)
    assert len(seen) == 8
    assert not differences(dict(method.roles["mean"].module.state_dict()), expected, tolerance=1e-6)
    assert all(not p.requires_grad for p in method.roles["mean"].module.parameters())


def test_who_goes_on_with_other_threads_is_told(tmp_path: Path) -> None:
    def stopped(*stops: int) -> Engine:
        run = engine(tmp_path, StopAfter(stops[0]) if stops else None)
        with contextlib.suppress(Stopped):
            run.run(bound())
        interrupt.clear()
        return run

    stopped(2)
    assert stopped(2).notes == []
    torch.set_num_threads(2)
    try:
        said = stopped(1).notes
    finally:
        torch.set_num_threads(1)
    assert len(said) == 1 and "threads 1 then, 2 now" in said[0] and "not bit for bit" in said[0]
    again = stopped().notes
    assert said[0] in again and len(again) == 2, "what was said stays said, and going back is another change"


class Rooms(Method):
    """Two stages; the second one's `setup` cuts the trained network down to a new structure."""

    def stages(self) -> list[Stage]:
        train = self.setup.train
        common: dict[str, Any] = {"steps": 4, "data": self.task.train, "batch_size": 8, "optim": {"student": train}}
        return [Stage("first", **common), Stage("second", setup=self.cut, **common)]

    def cut(self, ctx: Context) -> None:
        old: Any = self.roles["student"].module
        made = network(3)
        if old[0].out_features == 5:
            made[0].weight.data, made[0].bias.data = old[0].weight.data[:3].clone(), old[0].bias.data[:3].clone()
            made[4].weight.data = old[4].weight.data[:, :3].clone()
        self.roles["student"] = Role(made)
        self.setup.student.module = made

    def step(self, batch: Batch, ctx: Context) -> Terms:
        return Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_a_stage_that_changes_structure_resumes_before_at_and_after_its_door(stop: int, tmp_path: Path) -> None:
    def make() -> Method:
        return bound(Rooms())

    whole = make()
    engine(tmp_path / "whole").run(whole)
    assert whole.setup.student.module[0].out_features == 3
    assert not differences(learnt(whole), learnt(halves(make, tmp_path / "halves", stop)))


@pytest.mark.parametrize(("stop", "width"), [(3, 5), (4, 5), (6, 3), (None, 3)])
def test_a_checkpoint_is_read_back_as_it_stands(stop: int | None, width: int, tmp_path: Path) -> None:
    method = bound(Rooms())
    if stop is None:
        engine(tmp_path).run(method)
    else:
        with pytest.raises(Stopped):
            engine(tmp_path, StopAfter(stop)).run(method)
        interrupt.clear()
    again = bound(Rooms())
    run = engine(tmp_path)
    assert run.checkpoints is not None
    found = run.checkpoints.latest()
    assert found is not None
    run.restore(again, found[1])
    if stop != 4:  # after the fourth step the flag is seen at the next door, in the second stage
        assert again.roles["student"].module[0].out_features == width  # type: ignore[index, union-attr]
        assert not differences(learnt(method)["roles"], learnt(again)["roles"])


# ------------------------------------------------------------------------------------------------------ cutting batches
@pytest.mark.parametrize("parts", [2, 3, 8])
@pytest.mark.parametrize("size", [8, 9])
def test_cutting_a_batch_changes_nothing(parts: int, size: int) -> None:
    found = []
    for accumulate in (1, parts):
        method = bound(objectives=hints(), batch_size=size)
        engine(accumulate=accumulate).run(method)
        found.append(learnt(method))
    assert not differences(found[0], found[1], tolerance=1e-5)


class Shapes(Method):
    """Terms of every shape: an item's value, several an item, pairs of items, a scalar, sums with unequal counts."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def step(self, batch: Batch, ctx: Context) -> Terms:
        z = ctx.signal("student", batch).logits
        picked = batch["item"] % 4 == 0
        made = {
            "item": lambda: Term(z.square().sum(1)),
            "several": lambda: Term(z.square()),
            "pairs": lambda: Term((z @ z.T).square()),
            "flat": lambda: Term(z.square().flatten()),
            "scalar": lambda: Term(z.square().sum()),
            "sum": lambda: Term(z[picked].square().sum(), count=int(picked.sum())),
            "masked": lambda: Term(z.square(), where=picked[:, None]),
        }[self.kind]()
        return Terms(term=made)


@pytest.mark.parametrize("kind", ["item", "several", "flat", "scalar", "sum", "masked"])
@pytest.mark.parametrize("size", [7, 8])
def test_a_term_of_any_shape_is_divided_by_its_count_over_everything(kind: str, size: int) -> None:
    results = []
    for accumulate in (1, 2, 4):
        method = bound(Shapes(kind), batch_size=size, optimizer="sgd", momentum=0.0, lr=0.01, steps=3)
        logged: list[float] = []
        run = engine(accumulate=accumulate, log_every=1)
        run.logs = _Log(logged)
        run.run(method)
        scale = accumulate if kind == "scalar" else 1  # a sum without a count counts as one value a micro-batch
        results.append((learnt(method), [v * scale for v in logged]))
    if kind != "scalar":
        for found in results[1:]:
            assert not differences(results[0][0], found[0], tolerance=1e-5)
    assert results[1][1][0] == pytest.approx(results[0][1][0], rel=1e-5)


class _Log:
    def __init__(self, values: list[float]) -> None:
        self.values = values

    def resume(self, stage: str, step: int) -> None:
        """Nothing."""

    def log(self, stage: str, step: int, values: dict[str, float]) -> None:
        self.values.append(values["term"])


def test_pairs_of_items_are_counted_where_they_are() -> None:
    method = bound(Shapes("pairs"), batch_size=5, steps=1)
    logged: list[float] = []
    run = engine(accumulate=2, log_every=1)
    run.logs = _Log(logged)
    z: list[Tensor] = []
    method.roles["student"].module.register_forward_hook(lambda m, a, out: z.append(out.detach()))
    run.run(method)
    pairs = [(v @ v.T).square() for v in z[-2:]]
    assert [p.numel() for p in pairs] == [9, 4]
    assert logged[0] == pytest.approx(float(sum(p.sum() for p in pairs)) / 13, rel=1e-5)


def test_a_sum_without_any_item_costs_nothing() -> None:
    class Empty(Method):
        def step(self, batch: Batch, ctx: Context) -> Terms:
            z = ctx.signal("student", batch).logits
            none = torch.zeros(len(z), dtype=torch.bool)
            return Terms(a=Term(z.sum(1), where=none), b=Term(z.sum() * 0, count=0))

    method = bound(Empty(), optimizer="sgd")
    before = learnt(method)
    engine().run(method)
    assert not differences(before["roles"]["student"], learnt(method)["roles"]["student"])


# -------------------------------------------------------------------------------------------------------------- phases
class Phases(Method):
    """Two phases: the student, then a critic twice; each must leave the other alone."""

    learners = ("student", "critic")

    def bind(self, setup: Any) -> None:
        super().bind(setup)
        self.roles["critic"] = Role(network(4, seed=3))

    def step(self, batch: Batch, ctx: Context) -> Iterator[Terms]:
        yield Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))
        for _ in range(2):
            z = ctx.signal("critic", batch).logits
            yield Terms(critic=Term(z.square().sum(1), to="critic"))


def test_each_phase_steps_its_own_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    method = bound(Phases())
    run = engine()
    counted: dict[str, int] = {}
    run.prepare(method)
    update = Stepper._update

    def counting(self: Stepper, touched: list[str], *rest: Any) -> None:
        for name in touched:
            counted[name] = counted.get(name, 0) + 1
        others = {
            n: copy.deepcopy(r.module.state_dict())
            for n, r in self.method.roles.items()
            if n not in touched and isinstance(r.module, nn.Module)
        }
        update(self, touched, *rest)
        for n, state in others.items():
            assert not differences(dict(state), dict(self.method.roles[n].module.state_dict())), n

    monkeypatch.setattr(Stepper, "_update", counting)
    run.run(method)
    assert counted == {"student": 8, "critic": 16}


def test_a_role_without_an_optimiser_is_named() -> None:
    class Stray(Method):
        def step(self, batch: Batch, ctx: Context) -> Terms:
            return Terms(ce=Term(ctx.signal("student", batch).logits.sum(1), to=("student", "critc")))

    with pytest.raises(ConfigError, match="critc"):
        engine().run(bound(Stray()))


def test_an_add_on_may_not_take_the_name_of_a_term() -> None:
    with pytest.raises(ConfigError, match=r"objectives\.gap: the method already has a term of that name"):
        engine().run(bound(objectives={"gap": Kl()}))


def test_micro_batches_that_disagree_are_a_defect() -> None:
    class Uneven(Method):
        def step(self, batch: Batch, ctx: Context) -> Iterator[Terms]:
            for _ in range(1 + int(batch["item"].min() == 0)):
                yield Terms(a=Term(ctx.signal("student", batch).logits.sum(1)))

    with pytest.raises(MethodError, match="do not come to the same phase"):
        engine(accumulate=2).run(bound(Uneven()))


# ----------------------------------------------------------------------------------------------------------- compiling
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # dynamo looks, and hides it from its own log only
@pytest.mark.parametrize("isolated", [True, False])
def test_taps_record_under_compile_and_the_numbers_stay(isolated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    real = torch.compile

    def eager(module: nn.Module, isolate_recompiles: bool = False) -> Any:
        compiled.append(module)
        return real(module, backend="eager", isolate_recompiles=isolate_recompiles)

    def eager_without(module: nn.Module) -> Any:
        return eager(module)

    monkeypatch.setattr("limbeck.grammar.role.torch.compile", eager if isolated else eager_without)
    plain, fast = bound(objectives=hints(), steps=3), bound(objectives=hints(), steps=3)
    engine().run(plain)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):  # as it is by default
        # a network of the same kind without taps is compiled first, as the baseline of a run is
        engine(compile=True).run(bound(Unaided(), steps=2))
        engine(compile=True).run(fast)
    assert {id(fast.roles[n].module) for n in ("student", "teacher")} <= {id(m) for m in compiled}
    assert not differences(learnt(plain), learnt(fast), tolerance=1e-5)
    torch._dynamo.reset()


# ------------------------------------------------------------------------------------------------------------- evaluation
def prepared(folder: Path) -> tuple[Best, Method]:
    class Bench:
        task = toy.ToyTask()
        device = torch.device("cpu")
        student: Any = None
        teacher: Any = None

    method = bound()
    bench: Any = Bench()
    bench.student = method.setup.student
    return Best(bench, method, Direct(), folder), method


def best_of(folder: Path, shard: tuple[str, ...]) -> tuple[Best, Method]:
    """A whole run that is evaluated every second step."""
    best, method = prepared(folder)
    engine(folder, None, best.evaluate, eval_every=2, shard=shard).run(method)
    return best, method


def judged(folder: Path, stop: int | None = None, every: int = 2) -> tuple[Best, Method, list[int]]:
    best, method = prepared(folder)
    steps: list[int] = []

    def evaluate(step: int) -> dict[str, float]:
        steps.append(step)
        return best.evaluate(step)

    run = engine(folder, None if stop is None else StopAfter(stop), evaluate, eval_every=every)
    if stop is None:
        run.run(method)
    else:
        with pytest.raises(Stopped):
            run.run(method)
        interrupt.clear()
    return best, method, steps


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_the_best_on_validation_survives_a_resumption(stop: int, tmp_path: Path) -> None:
    whole, method, steps = judged(tmp_path / "whole")
    assert steps == [2, 4, 6, 8] and whole.metrics["step"] in steps
    judged(tmp_path / "halves", stop)
    again, resumed, _ = judged(tmp_path / "halves")
    assert again.metrics == whole.metrics
    assert not differences(learnt(method), learnt(resumed)), "evaluation changes nothing"
    assert not differences(store.load_tree(tmp_path / "whole" / "best"), store.load_tree(tmp_path / "halves" / "best"))


def test_the_best_is_known_though_nothing_is_judged_after_the_resumption(tmp_path: Path) -> None:
    judged(tmp_path, every=8)
    again, _, steps = judged(tmp_path, every=8)
    assert steps == [] and again.metrics["step"] == 8.0


def test_a_loader_that_ends_with_the_signal_ends_no_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler signals the whole group, and the loader's processes may be gone first."""
    whole = bound()
    engine(tmp_path / "whole").run(whole)

    def cut(self: Engine, stage: Stage, start: int, total: int) -> Iterator[list[Batch]]:
        for number, micro in enumerate(real(self, stage, start, total)):
            if number == 3:
                interrupt.request()
                return
            yield micro

    real = Engine.batches
    monkeypatch.setattr(Engine, "batches", cut)
    with pytest.raises(Stopped):
        engine(tmp_path / "cut").run(bound())
    interrupt.clear()
    monkeypatch.setattr(Engine, "batches", real)
    again = bound()
    engine(tmp_path / "cut").run(again)
    assert not differences(learnt(whole), learnt(again))


def test_loader_processes_outlive_the_first_signal() -> None:
    class Struck:
        fingerprint = "struck"

        def __len__(self) -> int:
            return 40

        def fetch(self, items: Tensor) -> Batch:
            if torch.utils.data.get_worker_info() is not None and not hasattr(self, "hit"):
                self.hit = True
                os.kill(os.getpid(), signal.SIGTERM)
            return data().fetch(items)

    whole, struck = bound(), bound()
    engine().run(whole)
    struck.task.train = Struck()
    engine(workers=1).run(struck)
    assert not differences(learnt(whole), learnt(struck))


def test_batches_that_end_unasked_are_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Engine.batches
    monkeypatch.setattr(Engine, "batches", lambda self, stage, start, total: real(self, stage, start, total - 1))
    with pytest.raises(RuntimeError, match="ended at step 7 of 8"):
        engine().run(bound())


# --------------------------------------------------------------------------------------------------------- not finite
@pytest.mark.parametrize("accumulate", [1, 2])
def test_nan_in_one_item_names_it_and_keeps_the_batch(accumulate: int, tmp_path: Path) -> None:
    method = bound(lr=0.01)
    x: Any = method.task.train
    x.x[13] = float("nan")
    with pytest.raises(NonFinite) as caught:
        engine(tmp_path, accumulate=accumulate).run(method)
    said = str(caught.value)
    assert "term ce" in said and "the batch itself is not finite in ['x']" in said
    kept = store.load_tree(tmp_path / "failure")
    assert any(13 in b["item"].tolist() for b in kept["batches"])
    assert not differences(kept["roles"]["student"], dict(method.roles["student"].module.state_dict()))


def test_without_the_guard_nothing_is_checked() -> None:
    method = bound()
    data_: Any = method.task.train
    data_.x[13] = float("nan")
    engine(guard=False).run(method)
    assert any(bool(v.isnan().any()) for v in method.roles["student"].module.state_dict().values())


# ----------------------------------------------------------------------------------------------------------- the rest
def test_a_frozen_role_that_changes_is_a_defect() -> None:
    class Leak(Method):
        def step(self, batch: Batch, ctx: Context) -> Terms:
            with torch.no_grad():
                next(self.roles["teacher"].module.parameters()).add_(1.0)
            return Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))

    with pytest.raises(MethodError, match="roles that do not learn in it have changed"):
        engine().run(bound(Leak()))


def test_clipping_and_the_rate_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    method = bound(Shapes("item"), optimizer="sgd", momentum=0.0, lr=1.0, clip=1e-3, schedule="linear", steps=4)
    before = learnt(method)["roles"]["student"]
    run = engine()
    moved: list[float] = []
    update = Stepper._update

    def watched(*args: Any) -> None:
        was = learnt(method)["roles"]["student"]
        update(*args)
        now = learnt(method)["roles"]["student"]
        moved.append(float(torch.stack([(now[k] - was[k]).square().sum() for k in was]).sum().sqrt()))

    monkeypatch.setattr(Stepper, "_update", watched)
    run.run(method)
    assert moved == pytest.approx([1e-3 * r for r in (1.0, 0.75, 0.5, 0.25)], rel=1e-2)
    assert differences(before, learnt(method)["roles"]["student"])


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 1e6])
def test_one_step_is_the_formula(accumulate: int, clip: float | None) -> None:
    """The weighted means' gradient, taken by hand; what is shown and observed are the means."""
    observed: list[dict[str, float]] = []

    class Two(Method):
        def step(self, batch: Batch, ctx: Context) -> Terms:
            z = ctx.signal("student", batch).logits
            a = Term(z.square().sum(1), weight=3.0, where=batch["item"] % 2 == 0)
            b = Term(z.sum(1), weight=torch.tensor(0.5), show=z.abs().sum(1))
            return Terms({"three": (torch.tensor(6.0), 2)}, a=a, b=b)

        def observe(self, seen: dict[str, float], ctx: Context) -> None:
            observed.append(seen)

    method = bound(Two(), steps=1, batch_size=9, optimizer="sgd", momentum=0.0, lr=0.1, schedule="constant", clip=clip)
    twin = copy.deepcopy(method.roles["student"].module)
    run = engine(accumulate=accumulate)
    ids, _ = Stream(40, 9, 0, "distil").items(0)
    run.run(method)
    z = twin(method.task.train.fetch(ids)["x"])
    even = ids % 2 == 0
    a, b = z.square().sum(1)[even].mean(), z.sum(1).mean()
    (3.0 * a + 0.5 * b).backward()
    moved = method.roles["student"].module.state_dict()
    for name, p in twin.named_parameters():
        assert p.grad is not None
        assert torch.allclose(moved[name], p.detach() - 0.1 * p.grad, atol=1e-6), name
    (seen,) = observed
    assert seen == pytest.approx(
        {"a": float(a.detach()), "b": float(z.abs().sum(1).mean().detach()), "three": 3.0}, rel=1e-5
    )


def test_an_item_draws_anew_at_every_step() -> None:
    drawn: list[dict[int, float]] = []

    class Draw(Method):
        def step(self, batch: Batch, ctx: Context) -> Terms:
            u = ctx.draws.rand("u", batch["item"])
            drawn.append(dict(zip(batch["item"].tolist(), u.tolist(), strict=True)))
            return Terms(ce=Term(ctx.signal("student", batch).logits.sum(1)))

    engine().run(bound(Draw(), steps=3, n=8))
    assert all(len({step[item] for step in drawn}) == 3 for item in range(8))


def test_dropout_after_a_share_is_not_the_one_before_it() -> None:
    masks: list[Tensor] = []

    class Twice(Method):
        def step(self, batch: Batch, ctx: Context) -> Iterator[Terms | Share]:
            masks.append(torch.nn.functional.dropout(torch.ones(64)))
            yield Share(n=torch.ones(()))
            masks.append(torch.nn.functional.dropout(torch.ones(64)))
            yield Terms(ce=Term(ctx.signal("student", batch).logits.sum(1)))

    engine().run(bound(Twice(), steps=2))
    assert len({tuple(m.tolist()) for m in masks}) == 4


def test_draws_and_dropout_differ_from_step_to_step_and_item_to_item() -> None:
    masks: list[Tensor] = []

    class Drop(Method):
        def step(self, batch: Batch, ctx: Context) -> Terms:
            z = ctx.signal("student", batch).logits
            masks.append(torch.nn.functional.dropout(torch.ones(64)))
            masks.append(ctx.draws.rand("u", batch["item"]))
            return Terms(ce=Term(z.square().sum(1)))

    engine(accumulate=2).run(bound(Drop(), steps=3, n=8))
    dropped, drawn = masks[0::2], masks[1::2]
    for several in (dropped, drawn):
        assert len({tuple(m.tolist()) for m in several}) == 6


def test_every_epoch_sees_every_item_once_in_another_order() -> None:
    seen: list[Tensor] = []

    class Look(Method):
        def step(self, batch: Batch, ctx: Context) -> Terms:
            seen.append(batch["item"])
            return Terms(ce=Term(ctx.signal("student", batch).logits.sum(1)))

    engine(accumulate=3).run(bound(Look(), steps=8, batch_size=10))
    first, second = torch.cat(seen).split(40)
    assert torch.equal(first.sort().values, torch.arange(40)) and torch.equal(second.sort().values, torch.arange(40))
    assert not torch.equal(first, second)


def test_a_batch_smaller_than_its_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 9"):
        engine(accumulate=9).run(bound())


def test_an_unknown_role_and_an_unknown_stage_are_named() -> None:
    method = bound()
    run = engine()
    ctx: Any = RunContext(run, method, Stage("s", steps=1), run.device)
    with pytest.raises(ConfigError, match="did you mean 'student'"):
        ctx.call("studnt")
    with pytest.raises(ConfigError, match="stage"):
        ctx.items("experts")
    with pytest.raises(ConfigError, match=r"engine\.shard"):
        engine(shard=("techer",)).run(bound())


def test_the_inner_loop_trains_and_refuses_what_is_not_finite() -> None:
    items = data(30)
    optim = Optim(steps=30, batch_size=10, lr=0.1)

    def loss(module: nn.Module, batch: Batch, ctx: Any) -> Tensor:
        return nn.functional.cross_entropy(module(batch["x"]), batch["y"], reduction="none")

    counted: list[int] = []
    net = fit(network(), items, loss, optim, seed=0, scope="inner", each=lambda n, m: counted.append(n))
    again = fit(network(), items, loss, optim, seed=0, scope="inner")
    other = fit(network(), items, loss, optim, seed=1, scope="inner")
    assert counted == list(range(1, 31)) and not net.training
    assert not differences(dict(net.state_dict()), dict(again.state_dict()))
    assert differences(dict(net.state_dict()), dict(other.state_dict()))
    with torch.no_grad():
        z = net(items.x)
    assert float((z.argmax(1) == items.y).float().mean()) > 0.8
    with pytest.raises(NonFinite, match="inner step 0"):
        fit(network(), items, lambda m, b, c: m(b["x"]).sum(1) / 0.0, optim, seed=0, scope="inner")
    with pytest.raises(NonFinite, match="last gradient"):  # the loss is 0, its slope is infinite
        fit(
            network(), items, lambda m, b, c: (m(b["x"]) * 0).sum(1).sqrt(), optim.with_(steps=1), seed=0, scope="inner"
        )


# ------------------------------------------------------------------------------------------- stages that prepare


class Prepared(toy.Toy):
    """A stage that prepares, then the toy's own."""

    def stages(self) -> list[Stage]:
        (own,) = super().stages()
        first = replace(own, name="prepare", scope="prepare", steps=4, judged=False, augmented=False)
        return [first, own]


class Counted(Query):
    """Counts what it is given."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        self.seen += 1
        return batch


def test_a_stage_may_be_neither_judged_nor_augmented() -> None:
    query, steps = Counted(), []
    method = bound(Prepared(), queries={"q": query})
    engine(None, None, lambda step: steps.append(step) or {}, eval_every=2).run(method)
    assert steps == [2, 4, 6, 8] and query.seen == 8


def test_an_optimiser_is_not_restored_to_parameters_of_another_shape() -> None:
    from limbeck.engine.checkpoints import restore_optimiser

    small, large = (torch.nn.Parameter(torch.zeros(n)) for n in (3, 5))
    opt = torch.optim.Adam([small])
    small.grad = torch.ones(3)
    opt.step()
    saved = [dict(opt.state[small])]
    restore_optimiser(torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))]), saved)
    with pytest.raises(ConfigError, match=r"exp_avg.*\[3\].*\[5\]"):
        restore_optimiser(torch.optim.Adam([large]), saved)
