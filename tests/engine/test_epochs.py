"""Passes through the data: their number, what is done between them, and items that are chosen anew for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine import interrupt
from limbeck.engine.stages import tuned
from limbeck.errors import ConfigError, MethodError, Stopped
from limbeck.grammar.method import Batch, Context, Method, Stage, Term, Terms
from limbeck.recipe.stages import stage_settings
from tests.tiny import StopAfter, differences
from tests.toy import Toy, bound, engine, learnt, network


class Selecting(Toy):
    """Every epoch goes through the items that the student is least sure of, at the state it is in; an earlier self."""

    def bind(self, setup: Any) -> None:
        super().bind(setup)
        self.new("earlier", like="student")
        self.seen: list[tuple[int, int, list[int], list[int]]] = []
        self.state |= {"purity": 0.0}

    def stages(self) -> list[Stage]:
        (stage,) = super().stages()
        return [replace(stage, choose=self.chosen, every={"epoch": self.look, 3: self.mark})]

    def chosen(self, ctx: Context) -> Tensor:
        student = self.roles["student"].module
        assert not any(m.training for m in student.modules()) and not torch.is_grad_enabled()
        sure, ids = [], []
        for batch in ctx.over(self.task.train, 16):
            sure.append(ctx.signal("student", batch).logits.softmax(1).amax(1))
            ids.append(batch["item"])
        n = 9 + 4 * (ctx.epoch % 3)  # 9, 13 or 17 items
        return torch.cat(ids)[torch.cat(sure).argsort()[:n]]

    def look(self, ctx: Context) -> None:
        self.roles["earlier"].module.load_state_dict(self.roles["student"].module.state_dict())
        self.state["purity"] += float(ctx.draws.rand("u", torch.tensor([ctx.epoch]))[0])

    def mark(self, ctx: Context) -> None:
        self.state.setdefault("marks", []).append(ctx.step)

    def step(self, batch: Batch, ctx: Context) -> Any:
        self.seen.append((ctx.step, ctx.epoch, batch["item"].tolist(), batch["view"].tolist()))
        z = ctx.signal("student", batch).logits - ctx.signal("earlier", batch).logits
        for terms in (rest := super().step(batch, ctx)):
            terms = rest.send((yield terms)) if not isinstance(terms, Terms) else terms
            if isinstance(terms, Terms):
                terms["away"] = Term(z.square().sum(1), weight=0.1)
                yield terms


def run(folder: Path | None = None, stop: int | None = None, norm: bool = True, **settings: Any) -> Selecting:
    method = bound(Selecting(), student=network(norm=norm), batch_size=4, steps=14)
    engine(folder, None if stop is None else StopAfter(stop), **settings).run(method)
    return method  # type: ignore[return-value]


def test_an_epoch_goes_through_what_was_chosen_and_takes_as_many_steps_as_that_fills() -> None:
    method = run()
    epochs = [e for _, e, _, _ in method.seen]
    assert epochs == [0] * 3 + [1] * 4 + [2] * 5 + [3] * 2  # 9, 13, 17, 9 items in batches of 4
    first = [i for step, _, items, _ in method.seen if step < 3 for i in items]
    assert len(set(first)) == 9 and len(first) == 12  # whole, and begun again to fill the last batch
    assert max(i for _, _, items, _ in method.seen for i in items) > 17, "items keep their numbers"
    assert all(v >= e for _, e, _, views in method.seen for v in views)
    assert method.state["marks"] == [0, 3, 6, 9, 12]


@pytest.mark.parametrize("stop", [1, 3, 5, 7, 11])
def test_what_was_chosen_goes_on_after_a_stop(tmp_path: Path, stop: int) -> None:
    whole = run()
    with pytest.raises(Stopped):
        run(tmp_path, stop)
    interrupt.clear()
    after = run(tmp_path, workers=2 * (stop == 5))
    assert not differences(learnt(whole), learnt(after))
    assert whole.seen[-len(after.seen) :] == after.seen


def test_choices_do_not_depend_on_how_a_batch_is_cut_or_fetched() -> None:
    assert not differences(learnt(run(norm=False)), learnt(run(norm=False, accumulate=2)), tolerance=1e-5)
    assert not differences(learnt(run()), learnt(run(workers=2)))


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (torch.zeros(0, dtype=torch.int64), "no item"),
        (torch.tensor([0, 40]), "numbers from 0 to 40"),
        (torch.ones(40, dtype=torch.bool), "torch.bool"),
        ([1, 2], "list"),
    ],
)
def test_a_choice_that_is_none_is_refused(chosen: Any, said: str) -> None:
    class Wrong(Selecting):
        def chosen(self, ctx: Context) -> Any:
            return chosen

    with pytest.raises(MethodError, match=said):
        engine().run(bound(Wrong(), batch_size=4))


class Counting(Method):
    """Notes which epoch a step is in."""

    def bind(self, setup: Any) -> None:
        super().bind(setup)
        self.seen: list[tuple[int, ...]] = []

    def stages(self) -> list[Stage]:
        (stage,) = super().stages()
        first = replace(stage, name="first", steps=3)
        self.between: list[int] = []
        second = replace(stage, steps=None, epochs=2.5, batch_size=16, every={"epoch": self.note})
        return [first, second]

    def note(self, ctx: Context) -> None:
        self.between.append(ctx.step)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        self.seen.append((ctx.step, ctx.total, ctx.epoch, ctx.done, ctx.whole))
        return Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))


def test_epochs_are_counted_and_say_how_long_a_stage_takes() -> None:
    method: Any = bound(Counting(), n=40)
    engine().run(method)
    second = method.seen[3:]
    assert [s[:3] for s in second] == [(i, 7, i * 16 // 40) for i in range(7)]  # 100 items in batches of 16
    assert [s[3:] for s in method.seen] == [(i, 10) for i in range(10)]
    assert method.between == [0, 3, 5]


def test_a_stage_that_changes_a_role_that_stands_still_elsewhere_is_told() -> None:
    class Moving(Selecting):
        def step(self, batch: Batch, ctx: Context) -> Any:
            with torch.no_grad():
                self.roles["earlier"].module[0].bias.add_(1.0)
            return super().step(batch, ctx)

    with pytest.raises(MethodError, match="roles that do not learn in it have changed: \\['earlier'\\]"):
        engine().run(bound(Moving(), batch_size=4))


def test_recipes_count_in_epochs_too() -> None:
    task = bound(Counting()).task
    stages = [Stage("a", steps=3, data=task.train, batch_size=8), Stage("noise", steps=3)]
    (a, _) = tuned(stages, stage_settings({"a": {"epochs": 2}}))
    assert (a.total, a.steps, a.epochs) == (10, None, 2.0)
    (a, _) = tuned([replace(stages[0], steps=None, epochs=1.0), stages[1]], {"a": {"steps": 4}})
    assert (a.total, a.epochs) == (4, None)
    with pytest.raises(ConfigError, match="no data to go through"):
        tuned(stages, {"noise": {"epochs": 2.0}})
    with pytest.raises(ConfigError, match="both say how long"):
        stage_settings({"a": {"epochs": 2, "steps": 4}})
    with pytest.raises(ConfigError, match="0 or more"):
        stage_settings({"a": {"epochs": -1}})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 3, "epochs": 1.0, "data": object()}, "one of them alone"),
        ({"epochs": 1.0}, "has no data"),
        ({"steps": 1, "data": object(), "every": {0: print}}, "neither 'epoch' nor a number of steps"),
        ({"steps": 1, "choose": print}, "has no data"),
    ],
)
def test_stages_that_contradict_themselves_are_refused(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Stage("s", **given)


def test_networks_are_in_evaluation_mode_between_epochs_and_learn_after_it() -> None:
    modes = []

    class Modes(Counting):
        def note(self, ctx: Context) -> None:
            modes.append(self.roles["student"].module.training)

        def step(self, batch: Batch, ctx: Context) -> Terms:
            modes.append(self.roles["student"].module.training)
            return super().step(batch, ctx)

    engine().run(bound(Modes(), student=nn.Sequential(*network(norm=True))))
    assert modes.count(False) == 3 and modes.count(True) == 10
