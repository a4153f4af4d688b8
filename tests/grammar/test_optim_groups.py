"""Optimisers divided by patterns, parameters that learn alone, milestones, polynomial decay, a floor."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine import interrupt
from limbeck.engine.inner import fit
from limbeck.engine.stages import tuned
from limbeck.errors import ConfigError, MethodError, Stopped
from limbeck.grammar.method import Batch, Context, Method, Stage, Terms
from limbeck.grammar.optim import Optim, held_by, set_rate
from limbeck.objectives import FeatureMatch
from limbeck.recipe.recipe import build
from limbeck.recipe.stages import stage_settings
from limbeck.run.running import run_recipe
from tests.tiny import StopAfter, differences, tree_of
from tests.toy import Toy, bound, engine, learnt, network


def params() -> dict[str, nn.Parameter]:
    return {n: nn.Parameter(torch.ones(2)) for n in ("body.weight", "body.bias", "head.weight", "head.bias")}


def test_groups_by_pattern() -> None:
    named = params()
    optim = Optim(lr=0.1, weight_decay=0.5, groups={"head.*": {"lr": "x10"}, "*.bias": {"weight_decay": 0.0}})
    opt = optim.build(named)
    by = {n: g for g in opt.param_groups for p in g["params"] for n, q in named.items() if p is q}
    set_rate(opt, 0.05)
    assert {n: round(g["lr"], 9) for n, g in by.items()} == {
        "body.weight": 0.05, "body.bias": 0.05, "head.weight": 0.5, "head.bias": 0.5,
    }  # fmt: skip
    assert {n: g["weight_decay"] for n, g in by.items()} == {
        "body.weight": 0.5, "body.bias": 0.0, "head.weight": 0.5, "head.bias": 0.0,
    }  # fmt: skip
    assert len(held_by(opt)) == 4 and all(g["fused"] for g in opt.param_groups)
    own = Optim(lr=0.1, groups={"head.*": {"lr": 0.02}}).build(named)
    set_rate(own, 0.05)  # half of the peak is half of its own peak
    assert [g["lr"] for g in own.param_groups] == [0.05, pytest.approx(0.01)]


def test_groups_do_as_torch_does() -> None:
    ours, theirs = params(), params()
    optim = Optim(lr=0.1, optimizer="sgd", groups={"head.*": {"lr": "x10", "momentum": 0.0}}, schedule="constant")
    opt = optim.build(ours)
    ref = torch.optim.SGD(
        [
            {"params": [theirs["body.weight"], theirs["body.bias"]]},
            {"params": [theirs["head.weight"], theirs["head.bias"]], "lr": 1.0, "momentum": 0.0},
        ],
        lr=0.1,
        momentum=0.9,
    )
    for step in range(4):
        for p in (*ours.values(), *theirs.values()):
            p.grad = torch.full_like(p, 0.1 * (step + 1))
        set_rate(opt, optim.rate(step, 4))
        opt.step()
        ref.step()
    assert all(torch.allclose(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        ({"schedule": "step"}, [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]),
        ({"schedule": "step", "milestones": [3, 5], "gamma": 0.5}, [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]),
        ({"schedule": "step", "milestones": [0.25, 5], "floor": 0.05}, [1, 1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05]),
        ({"schedule": "poly"}, [(1 - i / 8) ** 0.9 for i in range(8)]),
        ({"schedule": "poly", "power": 2.0, "floor": 0.5}, [0.5 + 0.5 * (1 - i / 8) ** 2 for i in range(8)]),
        ({"schedule": "cosine", "floor": 0.2}, [0.2 + 0.4 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]),
        ({"schedule": "linear", "floor": 0.5}, [0.5 + 0.5 * (1 - i / 8) for i in range(8)]),
        ({"schedule": "drop", "floor": 0.2}, [1.0] * 4 + [0.2] * 4),
    ],
)
def test_rates(given: Any, rates: list[float]) -> None:
    optim = Optim(steps=8, lr=1.0, **given)
    assert [optim.rate(i) for i in range(8)] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"milestones": [0.5, 0.2]}, "milestones"),
        ({"milestones": [1.5]}, "milestones"),
        ({"gamma": 0.0}, "gamma"),
        ({"power": 0.0}, "power"),
        ({"floor": 2.0}, "floor"),
        ({"only": []}, "only"),
        ({"groups": {"head": 3}}, "mapping"),
        ({"groups": {"head": {}}}, "mapping"),
        ({"groups": {"head": {"lr": "10x"}}}, "x10"),
        ({"groups": {"head": {"lr": 0}}}, "above 0"),
        ({"groups": {"head": {"weight_decay": -1}}}, "weight_decay"),
        ({"groups": {"head": {"momentum": "high"}}}, "no text"),
    ],
)
def test_settings_that_make_no_sense(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Optim(lr=1.0, **given)


def test_an_unknown_argument_of_the_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"groups\.head\.\*\.weigth_decay.*weight_decay"):
        Optim(groups={"head.*": {"weigth_decay": 0}}).build(params())


def run(folder: Path | None = None, stop: int | None = None, norm: bool = True, **settings: Any) -> Method:
    student = network(norm=norm)
    optim = {"only": ["4.*", "0.bias"], "groups": {"4.*": {"lr": "x3"}}, "optimizer": "adamw", "weight_decay": 0.1}
    method = bound(Toy(), student=student, objectives={"hint": FeatureMatch("2", "2")}, **optim)
    engine(folder, None if stop is None else StopAfter(stop), **settings).run(method)
    return method


def test_only_what_is_named_learns_and_the_rest_stands_still(tmp_path: Path) -> None:
    before = {
        k: v.clone() for k, v in bound(Toy(), student=network(norm=True)).roles["student"].module.state_dict().items()
    }
    method = run()
    now = method.roles["student"].module.state_dict()
    moved = {k for k in now if not torch.equal(now[k], before[k])}
    assert moved == {"4.weight", "4.bias", "0.bias"}, "frozen BatchNorm keeps its statistics, too"
    assert all(p.requires_grad for p in method.roles["student"].module.parameters()), "as it was made"
    projector = method.roles["projector:hint"].module
    assert all(p.requires_grad for p in projector.parameters())
    with pytest.raises(Stopped):
        run(tmp_path, 3)
    interrupt.clear()
    assert not differences(learnt(method), learnt(run(tmp_path)))
    assert not differences(learnt(run(norm=False)), learnt(run(norm=False, accumulate=2)), tolerance=1e-5)


def test_what_only_leaves_out_may_not_move() -> None:
    class Moving(Toy):
        def step(self, batch: Batch, ctx: Context) -> Any:
            with torch.no_grad():
                self.roles["student"].module[0].weight.add_(0.1)
            yield Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))

        def observe(self, seen: dict[str, float], ctx: Context) -> None:
            pass

    with pytest.raises(MethodError, match="beside what `only` names"):
        engine().run(bound(Moving(), only=["4.*"]))


def test_a_later_stage_may_train_what_an_earlier_one_left() -> None:
    class Two(Toy):
        def stages(self) -> list[Stage]:
            (stage,) = super().stages()
            first = replace(stage, name="first", optim={"student": stage.optim["student"].with_(only=["4.*"])})
            return [first, stage]

    method = bound(Two())
    before = method.roles["student"].module[0].weight.clone()
    engine().run(method)
    assert not torch.equal(before, method.roles["student"].module[0].weight)


@pytest.mark.parametrize("setting", ["only", "groups"])
def test_patterns_that_fit_nothing_are_refused(setting: str) -> None:
    given: Any = {"only": ["head.*"]} if setting == "only" else {"groups": {"head.*": {"lr": "x10"}}}
    with pytest.raises(
        ConfigError, match=rf"train\.{setting}.*no parameter of student is called 'head\.\*'.*4\.weight"
    ):
        engine().run(bound(Toy(), **given))

    class Own(Toy):
        def stages(self) -> list[Stage]:
            return tuned(super().stages(), stage_settings({"distil": {"student": given}}))

    with pytest.raises(ConfigError, match=rf"stages\.distil\.student\.{setting}"):
        engine().run(bound(Own()))


def test_a_role_in_which_nothing_would_learn_is_refused() -> None:
    class Pair(Toy):
        learners = ("student", "critic")

        def bind(self, setup: Any) -> None:
            super().bind(setup)
            self.new("critic", lambda: nn.Linear(2, 2))

    with pytest.raises(ConfigError, match="no parameter of role 'critic'"):
        engine().rehearse(bound(Pair(), only=["4.*"]))


def test_inner_loops_divide_too() -> None:
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    data: Any = bound(Toy()).task.train

    def loss(module: nn.Module, batch: Batch, _: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(module(batch["x"]), batch["y"], reduction="none")

    fit(net, data, loss, Optim(steps=3, only=["4.*"]), seed=0, scope="inner")
    assert {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])} == {"4.weight", "4.bias"}
    assert all(p.requires_grad for p in net.parameters())
    with pytest.raises(ConfigError, match="inner: only"):
        fit(net, data, loss, Optim(steps=3, only=["head"]), seed=0, scope="inner")


def test_recipes_say_it(tmp_path: Path) -> None:
    changes = [
        "student=mlp:[6]",
        "train.steps=3",
        "teach.steps=3",
        "train.only=[tail.*]",
        "train.groups={head.*: {lr: x10}}",
    ]
    recipe = build(tree_of("kd", *changes))
    assert recipe.train.only == ["tail.*"] and recipe.train.groups == {"head.*": {"lr": "x10"}}
    recipe.task.load()
    assert recipe.student is not None
    names = [n for n, _ in recipe.student.build(recipe.task).module.named_parameters()]
    with pytest.raises(ConfigError, match=rf"train\.only.*{names[0]}"):
        run_recipe(recipe, tree_of("kd", *changes), tmp_path / "refused", quiet=True)
    head = names[-1].rsplit(".", 1)[0]
    changes[-2:] = [f"train.only=[{head}.*]", "train.schedule=step", "train.milestones=[2]"]
    run_recipe(build(tree_of("kd", *changes)), tree_of("kd", *changes), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match=r"stages\.distil\.student\.groups"):
        build(tree_of("kd", "stages.distil.student.groups=3"))
