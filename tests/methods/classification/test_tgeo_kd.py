"""TGeo-KD: the update of the controller against differences and loops, who is taught, the other ratios, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.engine.context import RunContext
from limbeck.engine.epochs import Epochs
from limbeck.engine.step import Phases
from limbeck.errors import ConfigError, LimbeckError
from limbeck.functional.trilateral import fused, trilateral_state
from limbeck.grammar.method import Gather, Gathered, Terms
from limbeck.grammar.role import cast
from limbeck.recipe.recipe import build, check, load_tree
from tests.tiny import Tiny
from tests.tiny import shared_tiny as tiny

CONV = "student={use: convnet, width: 4, depth: 1, norm: batch}"
VIT = "student={use: vit, patch: 4, width: 8, depth: 1, heads: 2}"


def opened(made: Tiny, step: int = 0) -> tuple[Any, dict[str, Any], Any]:
    """The bound method, a batch and the context of a step."""
    method: Any = made.method
    made.engine.prepare(method)
    (stage,) = made.engine.stages
    made.engine.epochs = Epochs(stage)
    ctx = RunContext(made.engine, method, stage, made.engine.device).at(step)
    cast(method.roles, tuple(stage.optim))
    method.begin(ctx)
    ids = torch.arange(8)
    return method, {**method.data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, ctx


def phases(method: Any, batch: dict[str, Any], ctx: Any) -> list[Terms]:
    """The phases of a step, none of which updates anything."""
    going, answer, found = Phases(method.step, batch, ctx), None, []
    while (made := going.send(answer)) is not None:  # type: ignore[func-returns-value]
        answer = Gathered(made) if isinstance(made, Gather) else None
        found += [made] if isinstance(made, Terms) else []
    return found


def by_hand(method: Any, batch: dict[str, Any], ctx: Any, steps: int = 1) -> Tensor:
    """Held-out loss [n] after plain gradient steps, layer by layer, without flat vectors or functional calls."""
    student, teacher, controller = (method.roles[n] for n in ("student", "teacher", "controller"))
    first, _, last = (m for m in student.module.modules() if isinstance(m, (nn.Linear, nn.ReLU)))
    weights = [p.detach().clone().requires_grad_() for m in (first, last) for p in (m.weight, m.bias)]

    def run(x: Tensor, w: list[Tensor]) -> Tensor:
        return (x.flatten(1) @ w[0].T + w[1]).relu() @ w[2].T + w[3]

    y, tau = batch["y"], method.temperature
    with torch.no_grad():
        z_t = teacher.module(teacher.contract.inputs(batch["x"]))
    for _ in range(steps):
        z = run(student.contract.inputs(batch["x"]), weights)
        s, t, g = z.detach().softmax(1), z_t.softmax(1), nn.functional.one_hot(y, 10).float()
        alpha = controller.module(trilateral_state(s, t, g, method.state["means"][y]))
        q, log_p = (z_t / tau).softmax(1), (z / tau).log_softmax(1)
        kl = (q * (q.log() - log_p)).sum(1)
        loss = (alpha * tau**2 * kl + (1 - alpha) * nn.functional.cross_entropy(z, y, reduction="none")).mean()
        slopes = torch.autograd.grad(loss, weights, create_graph=True)
        weights = [w - method.eta_used * d for w, d in zip(weights, slopes, strict=True)]
    pick = ctx.draws.randint("held-out", batch["item"], len(method.valid))
    held = method.valid.fetch(pick)
    return nn.functional.cross_entropy(run(student.contract.inputs(held["x"]), weights), held["y"], reduction="none")


@pytest.mark.parametrize("steps", [1, 2])
def test_the_controller_learns_through_steps_of_the_student(steps: int, tmp_path: Path) -> None:
    method, batch, ctx = opened(tiny("tgeo-kd", tmp_path, f"method.unroll={steps}", "method.eta=0.5"))
    ctx.batch_size = 8
    weights = list(method.roles["controller"].parameters().values())
    outer, _ = phases(method, batch, ctx)
    want = by_hand(method, batch, ctx, steps)
    torch.testing.assert_close(outer["outer"].values, want, rtol=1e-4, atol=1e-5)
    got = torch.autograd.grad(outer["outer"].total(), weights)
    for a, b in zip(got, torch.autograd.grad(want.sum(), weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert all(g.any() for g in got[-2:])
    bias, h = weights[-1], 0.05  # and against differences of the loss itself
    ends = []
    for move in (h, -h):
        with torch.no_grad():
            bias += move
        ends.append(float(phases(method, batch, ctx)[0]["outer"].values.detach().double().sum()))
        with torch.no_grad():
            bias -= move
    assert float(got[-1]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=0.05)


def test_who_is_taught_in_which_phase(tmp_path: Path) -> None:
    method, batch, ctx = opened(tiny("tgeo-kd", tmp_path, CONV))
    student = method.roles["student"].module.train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    going = Phases(method.step, batch, ctx)
    rows = going.send(None)
    outer = going.send(Gathered(rows))  # type: ignore[arg-type]
    assert isinstance(outer, Terms) and set(outer) == {"outer"} and outer["outer"].to == ("controller",)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items()), "not even running statistics"
    outer["outer"].total().backward()
    assert all(p.grad is None for p in student.parameters())
    assert any(p.grad is not None and p.grad.any() for p in method.roles["controller"].module.parameters())
    with torch.no_grad():
        for p in method.roles["controller"].module.parameters():
            p.fill_(3.0)  # the controller's update, before the student's phase
    terms = going.send(None)
    assert isinstance(terms, Terms)
    assert float(terms.metrics["alpha"][0]) / 8 > 0.99, "the ratio of the student's phase is the updated controller's"
    total = terms["ce"].total() + terms["kd"].total()
    own = list(method.roles["controller"].module.parameters())
    assert all(g is None for g in torch.autograd.grad(total, own, allow_unused=True))
    tiny("tgeo-kd", tmp_path / "vit", VIT, "train.steps=2").run()  # attention has a second derivative


def test_terms_are_the_fused_loss(tmp_path: Path) -> None:
    method, batch, ctx = opened(tiny("tgeo-kd", tmp_path, "method.every=2"), step=1)
    (terms,) = phases(method, batch, ctx)  # every other step is the student's alone
    z_s, z_t = (ctx.signal(r, batch).logits for r in ("student", "teacher"))
    alpha = method.ratios(z_s, z_t, batch, ctx)
    assert not alpha.requires_grad and alpha.shape == (8,) and bool(((alpha > 0) & (alpha < 1)).all())
    kd, ce = F.kl(z_s, z_t, temperature=1.5), F.cross_entropy(z_s, batch["y"])
    torch.testing.assert_close(terms["ce"].values + terms["kd"].values, fused(kd, ce, alpha))
    right = z_t.argmax(1) == batch["y"]
    torch.testing.assert_close(terms.metrics["alpha_right"][0], alpha[right].sum())
    assert int(terms.metrics["alpha_wrong"][1]) == int((~right).sum())


def test_class_means_are_of_the_training_items(tmp_path: Path) -> None:
    words = ["task.data={use: long-tailed, ratio: 50}", "task.student_items=30", "method.state_temperature=2"]
    method, _, ctx = opened(tiny("tgeo-kd", tmp_path, *words))
    every = method.data.fetch(torch.arange(len(method.data)))
    p = (ctx.signal("teacher", every).logits / 2).softmax(1)
    for c in range(10):
        mine = every["y"] == c
        want = p[mine].mean(0) if mine.any() else torch.full((10,), 0.1)
        torch.testing.assert_close(method.state["means"][c], want)
    method.data.y[:] = 0  # a class without any item
    real = method.data.fetch
    method.data.fetch = lambda ids: {**real(ids), "y": torch.zeros_like(ids)}
    method.begin(ctx)
    torch.testing.assert_close(method.state["means"][5], torch.full((10,), 0.1))


def test_other_ratios(tmp_path: Path) -> None:
    method, batch, ctx = opened(tiny("tgeo-kd", tmp_path, "train.batch_size=250", "train.steps=12"))
    z_s, z_t = (ctx.signal(r, batch).logits for r in ("student", "teacher"))
    p, y = z_t.softmax(1), batch["y"]

    def ratio(name: str, step: int = 0) -> Tensor:
        method.ratio = name
        found: Tensor = method.ratios(z_s, z_t, batch, ctx.at(step))
        return found

    assert ratio("fixed").tolist() == [0.5] * 8
    assert [ctx.at(s).epoch for s in (0, 4, 11)] == [0, 1, 2]
    assert [float(ratio("anneal", s)[0]) for s in (0, 4, 11)] == [1.0, 0.5, 0.0]
    own = p[torch.arange(8), y]
    torch.testing.assert_close(ratio("ada"), (own - (1 - own) / 9).clamp(min=0), rtol=1e-3, atol=1e-6)
    ours, theirs = (nn.functional.cross_entropy(z, y, reduction="none") for z in (z_s, z_t))
    torch.testing.assert_close(ratio("wls"), 1 - (-ours / theirs).exp())


def test_a_ratio_of_its_own_for_each_item(tmp_path: Path) -> None:
    made = tiny("tgeo-kd", tmp_path, "method.ratio=free").run()
    raw = made.method.roles["controller"].module.raw
    assert 0 < int((raw != 0).sum()) <= 6 * 8 and len(raw) == len(made.method.task.train)


def test_a_ratio_of_nothing_is_the_student_alone(tmp_path: Path) -> None:
    made = tiny("tgeo-kd", tmp_path, "method.ratio=fixed", "method.alpha=0")
    method, batch, ctx = opened(made)
    (terms,) = phases(method, batch, ctx)
    assert set(terms) == {"ce"} and "controller" not in method.roles


def test_the_released_controller_never_learns(tmp_path: Path) -> None:
    made = tiny("tgeo-kd", tmp_path, "method.variant=released")
    before = {n: p.clone() for n, p in made.method.roles["controller"].parameters().items()}
    method, batch, ctx = opened(made)
    (terms,) = phases(method, batch, ctx)
    z_s, z_t = (ctx.signal(r, batch).logits for r in ("student", "teacher"))
    alpha = method.ratios(z_s, z_t, batch, ctx)
    torch.testing.assert_close(terms["ce"].values, (1 - alpha) * F.cross_entropy(z_s.softmax(1), batch["y"]))
    made.run()
    assert all(torch.equal(p, before[n]) for n, p in made.method.roles["controller"].parameters().items())


def test_joint_learning_has_no_held_out_phase(tmp_path: Path) -> None:
    method, batch, ctx = opened(tiny("tgeo-kd", tmp_path, "method.unroll=0"))
    (terms,) = phases(method, batch, ctx)
    own = list(method.roles["controller"].parameters().values())
    slopes = torch.autograd.grad(terms["ce"].total() + terms["kd"].total(), own)
    assert any(g.any() for g in slopes) and terms["kd"].to == ("student", "controller")


def test_items_set_aside_teach_nobody_else(tmp_path: Path) -> None:
    method, batch, ctx = opened(tiny("tgeo-kd", tmp_path, "method.held_out=0.2"))
    assert len(method.data) + len(method.valid) == len(method.task.train)
    assert not set(method.data.ids.tolist()) & set(method.valid.ids.tolist())
    assert method.stages()[0].data is method.data
    big = method.drawn(batch["item"], ctx)
    method._valid = None
    import limbeck.methods.classification.tgeo_kd as file

    before, file.HELD = file.HELD, 0  # too many to keep: read in each step
    try:
        torch.testing.assert_close(method.drawn(batch["item"], ctx)["x"], big["x"])
    finally:
        file.HELD = before


def test_a_useless_teacher_is_left(tmp_path: Path) -> None:
    words = ["train.steps=60", "train.batch_size=32", "train.lr=0.01", "stages.distil.controller.lr=0.05"]
    made = tiny("tgeo-kd", tmp_path, *words)
    last: Any = made.method.roles["teacher"].module[-1]
    with torch.no_grad():
        last.weight.copy_(-8 * last.weight)  # what it holds likely is not
    made.run()
    assert made.method.measures()["alpha"] < 0.3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["queries.mix=mixup"], "one class an item, and these labels are mixed"),
        (["method.unroll=2", "engine.accumulate=2"], "several steps need the whole batch"),
        (["method.held_out=1.0"], "held_out"),
        (["task={use: language, data: pydoc}"], "task is a Language, expected task=classification, or another"),
    ],
)
def test_what_does_not_fit_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        made = tiny("tgeo-kd", tmp_path, *words)
        assert "accumulate" in words[-1], "all else is refused before anything is trained"
        made.run()


def test_soft_labels_of_any_query_are_refused(tmp_path: Path) -> None:
    method, batch, ctx = opened(tiny("tgeo-kd", tmp_path))
    with pytest.raises(ConfigError, match="these labels are mixed"):
        phases(method, {**batch, "y": nn.functional.one_hot(batch["y"], 10).float()}, ctx)


def test_held_out_items_are_not_the_test_items(tmp_path: Path) -> None:
    made = tiny("tgeo-kd", tmp_path)
    made.method.task.valid = made.method.task.test  # type: ignore[attr-defined]
    with pytest.raises(LimbeckError, match="the validation items are the test items"):
        made.method.accept(made.method.task)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method={use: tgeo-kd, variant: released, ratio: wls}", "variant: ?=?.*released has a controller|variant"),
        ("method={use: tgeo-kd, hidden: []}", "hidden"),
        ("method={use: tgeo-kd, unroll: 0, held_out: 0.1}", "held_out: sets items aside"),
    ],
)
def test_settings_that_do_not_go_together(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(check(load_tree("tgeo-kd", [word])))


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(LimbeckError, match="one value an item"):
        fused(torch.ones(3), torch.ones(3), torch.ones(3, 1))
    x = [torch.rand(2, 3).softmax(1) for _ in range(4)]
    s, t, g, o = x
    both = trilateral_state(s, t, g, o, "angles")
    torch.testing.assert_close(both[:, 27:], torch.cat([(o - s) * (g - s), (t - s) * (g - s)], 1))
    torch.testing.assert_close(both[:, :27], trilateral_state(s, t, g, o))
