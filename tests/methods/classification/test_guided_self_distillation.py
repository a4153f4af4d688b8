"""Guided self-distillation of networks: the loss, the weights, agreement with the kernel theory on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError
from limbeck.functional.kernel_ridge import self_distilled_ridge
from limbeck.grammar.role import cast
from limbeck.methods.classification.guided_self_distillation import GuidedSelfDistillation
from limbeck.recipe.recipe import build, check, load_tree
from tests.tiny import Tiny, differences
from tests.tiny import shared_tiny as tiny

NAME = "guided-self-distillation"


def weights(run: Tiny, role: str) -> dict[str, Tensor]:
    return dict(run.method.roles[role].module.state_dict())


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("compare", ["probabilities", "outputs", "cross-entropy"])
def test_the_loss_is_the_equation(compare: str, variant: str, tmp_path: Path) -> None:
    run = tiny(NAME, tmp_path, f"method.compare={compare}", f"method.variant={variant}", "method.weights=constant")
    method: Any = run.method
    method.afresh("previous", 5)
    stages = method.stages()
    assert [s.name for s in stages] == ["step1", "step2"]
    batch = {**method.task.train.fetch(torch.arange(6)), "item": torch.arange(6), "view": torch.zeros(6).long()}
    x, y = method.roles["student"].contract.feed(batch)["x"], nn.functional.one_hot(batch["y"], 10).double()
    for t, (stage, role) in enumerate(zip(stages, ("step1", "student"), strict=True)):
        cast(method.roles, (role,))
        ctx = RunContext(run.engine, method, stage, run.engine.device).at(0)
        terms = stage.step(batch, ctx)
        got = sum(term.weight * term.total() / int(term.n()) for term in terms.values())
        net, other = method.roles[role].module, method.roles["previous"].module
        z, z_t = net(x).double(), other(x).detach().double()

        def gap(z: Tensor, target: Tensor, of_labels: bool) -> Tensor:
            f = z if compare == "outputs" else z.softmax(1)
            total = torch.zeros((), dtype=torch.double)
            for i in range(len(z)):
                for c in range(10):
                    if compare == "cross-entropy":
                        entropy = 0.0 if of_labels else target[i, c] * target[i, c].log()
                        total = total + (entropy - target[i, c] * f[i, c].log()) / len(z)
                    else:
                        total = total + (f[i, c] - target[i, c]) ** 2 / (len(z) * 10)
            return total

        teacher = z_t if compare == "outputs" else z_t.softmax(1)
        want = gap(z, y, True) if t == 0 else 0.6 * gap(z, y, True) + 0.4 * gap(z, teacher, False)
        sizes = [p.double().square().sum() for p in net.parameters()]
        want = want + 1e-4 * sum(s if variant == "paper" else s.sqrt() for s in sizes)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
        mine = torch.autograd.grad(got, list(net.parameters()), retain_graph=True)
        theirs = torch.autograd.grad(want, list(net.parameters()))
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert all(not p.requires_grad for p in other.parameters())


LINEAR = (
    *("queries.wrong.use=wrong-labels", "student.hidden=[]", "task.student_items=80", "method.compare=outputs"),
    *("method.rho=0.02", "train.steps=90", "train.batch_size=80", "train.optimizer=sgd", "train.lr=0.3"),
    *("train.momentum=0.85", "train.schedule=constant"),
)


def test_a_linear_network_does_what_the_kernel_theory_says(tmp_path: Path) -> None:
    """Real digits, three in ten of their labels wrong: every network's predictions, and the estimated weight."""
    run = tiny(NAME, tmp_path, *LINEAR).run()
    method: Any = run.method
    task, contract = method.task, method.roles["student"].contract
    ctx = RunContext(run.engine, method, method.stages()[0], run.engine.device).at(0)

    def features(data: Any) -> tuple[Tensor, Tensor]:
        ids = torch.arange(len(data))
        batch = {**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
        for query in run.recipe.queries.values() if data is task.train else ():
            batch = query(batch, ctx)
        x = contract.feed(batch)["x"].flatten(1).double()
        return torch.cat([x, torch.ones(len(x), 1)], 1), nn.functional.one_hot(batch["y"], 10).double()

    (x, y), (v, y_v), (test, _) = (features(d) for d in (task.train, task.valid, task.test))
    assert 0.1 < (y.argmax(1) != task.train.fetch(torch.arange(80))["y"]).double().mean() < 0.5
    how: dict[str, Any] = {"ridge": 0.02 * y.numel(), "steps": 2}
    guided = self_distilled_ridge(x @ x.T, y, weight=None, held_out=(v @ x.T, y_v), **how)
    pure = self_distilled_ridge(x @ x.T, y, weight=0.0, **how)
    said = {"step1": guided.coefficients[0], "trial": pure.coefficients[1], "student": guided.coefficients[1]}
    batch = task.test.fetch(torch.arange(len(task.test)))
    for role, coefficients in said.items():
        with torch.no_grad():
            z = method.roles[role].module(contract.feed(batch)["x"]).double()
        torch.testing.assert_close(z, test @ x.T @ coefficients, rtol=0, atol=0.01)
    alpha = float(guided.weights[1])
    assert 0.05 < alpha < 0.95 and method.state["alphas"]["2"] == pytest.approx(alpha, abs=0.03)
    size = {r: sum(p.detach().square().sum() for p in method.roles[r].module.parameters()) for r in said}
    assert size["trial"] < size["student"] < size["step1"]  # without labels it shrinks most


def test_a_grid_keeps_the_best_on_validation(tmp_path: Path) -> None:
    run = tiny(NAME, tmp_path, "method.weights=grid", "method.grid=[0,0.5,1]", "train.steps=10").run()
    method: Any = run.method
    losses = {}
    for a in (0.0, 0.5, 1.0):
        alone = tiny(NAME, tmp_path / str(a), "method.weights=constant", f"method.alpha={a}", "train.steps=10").run()
        losses[a] = alone.method.state["losses"][1]
        if a == method.state["alphas"]["2"]:
            assert not differences(weights(alone, "student"), weights(run, "student"))
    assert min(losses, key=losses.__getitem__) == method.state["alphas"]["2"]
    assert method.state["losses"][1] == pytest.approx(min(losses.values()))
    assert list(method.rows()) == ["step1"] and set(method.measures()) == {"alpha2", "valid_loss1", "valid_loss2"}


def test_it_stops_where_a_step_is_no_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([0.3, 0.2, 0.25])
    monkeypatch.setattr(GuidedSelfDistillation, "loss", lambda self, role, ctx: next(told))
    words = ("method.steps=5", "method.weights=constant", "method.stop=true", "method.deliver=best")
    run = tiny(NAME, tmp_path, *words).run()
    method: Any = run.method
    assert method.state["losses"] == [0.3, 0.2, 0.25] and method.chosen == 1
    assert not differences(method.artifact().state(), method.network("step2").state())
    assert list(method.rows()) == ["step1", "step3"]


def test_who_teaches_and_where_each_step_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny(NAME, tmp_path / "a", "method.weights=constant").run()
    assert not differences(weights(plain, "previous"), weights(plain, "step1"))
    first = {}
    begin = GuidedSelfDistillation._begin

    def seen(self: Any, role: str, t: int, ctx: Any) -> None:
        begin(self, role, t, ctx)
        first[role] = {k: v.clone() for k, v in self.roles[role].module.state_dict().items()}

    monkeypatch.setattr(GuidedSelfDistillation, "_begin", seen)
    tiny(NAME, tmp_path / "b", "method.weights=constant").run()
    assert differences(first["step1"], first["student"])  # other first weights each time
    warm = tiny(NAME, tmp_path / "c", "method.weights=constant", "method.start=previous").run()
    assert not differences(first["student"], weights(warm, "step1"))
    told = iter([0.3, 0.1, 0.2, 0.2, *[0.5] * 8])
    monkeypatch.setattr(GuidedSelfDistillation, "loss", lambda self, role, ctx: next(told))
    words = ("method.weights=constant", "method.teach=best", "train.steps=3", "train.batch_size=600")
    best = tiny(NAME, tmp_path / "d", *words).run()
    assert differences(weights(best, "previous"), weights(best, "step1"))  # that of the second epoch's begin


def test_the_limit_is_one_fit_with_a_larger_penalty(tmp_path: Path) -> None:
    run = tiny(NAME, tmp_path, "method.weights=constant", "method.alpha=0.25", "method.limit=true").run()
    once = tiny(NAME, tmp_path / "b", "method.steps=1", "method.rho=0.0004").run()
    assert [s.name for s in run.method.stages()] == ["step1"]
    assert not differences(weights(run, "student"), weights(once, "student"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("alpha=1.2", "method.alpha: "),
        ("steps=0", "method.steps: "),
        ("rho=-1", "method.rho: "),
        ("weights=given", "method.alphas: must be set together"),
        ("steps=4 weights=given alphas=[0.5]", "method.alphas: must be 3 numbers"),
        ("alphas=[0.5]", "method.alphas: must be set together"),
        ("limit=true", "method.limit: needs weights=constant"),
        ("limit=true weights=constant alpha=0", "method.limit: .*nothing is left"),
        ("grid=[]", "method.grid: "),
        ("grid=[0.1,0.1]", "method.grid: must hold each weight once"),
    ],
)
def test_bad_settings_are_refused(words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(check(load_tree(NAME, [f"method.{word}" for word in words.split()], tiny=True)))


def test_weights_are_not_chosen_on_training_items(tmp_path: Path) -> None:
    run = tiny(NAME, tmp_path)
    method: Any = run.method
    method.task.valid = method.task.train
    for setting in ("weights", "deliver"):
        with pytest.raises(ConfigError, match=rf"method.{setting}.*these are the training items.*task.valid_fraction"):
            method.held_out(f"method.{setting}")
