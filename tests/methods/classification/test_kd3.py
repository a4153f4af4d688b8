"""KD3: what is selected, what is shared, what is mixed, and what is delivered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import limbeck.functional as F
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, LimbeckError
from limbeck.functional.contrast import channel_statistics
from limbeck.grammar.method import Gather, Gathered, Share, Terms
from limbeck.models.from_run import FromRun
from limbeck.networks.chain import Chain
from limbeck.parts.heads import copied_head
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run.running import run
from tests.tiny import Tiny, tree_of
from tests.tiny import shared_tiny as tiny

CONV = ("teacher={use: convnet, width: 6, depth: 1}", "student={use: convnet, width: 4, depth: 1}")


def first_step(made: Tiny) -> tuple[Terms, Any, Any]:
    """The terms of the first step of the last stage, its batch and its context."""
    from limbeck.engine.step import Phases
    from limbeck.grammar.role import cast

    method: Any = made.method
    made.engine.prepare(method)
    answers, distil = made.engine.stages
    made.engine.run_items(method, answers, RunContext(made.engine, method, answers, made.engine.device))
    ctx = RunContext(made.engine, method, distil, made.engine.device).at(0)
    method.open(ctx)
    method.look(ctx)
    cast(method.roles, tuple(distil.optim))
    ids = method.state["kept"][:8]
    batch = {**method.pool.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
    phases, answer = Phases(method.step, batch, ctx), None
    while (found := phases.send(answer)) is not None:  # type: ignore[func-returns-value]
        if isinstance(found, Terms):
            return found, batch, ctx
        answer = Gathered(found) if isinstance(found, Gather) else dict(found) if isinstance(found, Share) else None
    raise AssertionError


def test_terms_are_the_equations(tmp_path: Path) -> None:
    made = tiny("kd3", tmp_path)
    method: Any = made.method
    terms, batch, ctx = first_step(made)
    teacher = method.setup.teacher
    x = teacher.contract.inputs(batch["x"])
    f_t = teacher.module[:-1](x)
    torch.testing.assert_close(method.f_t[batch["item"]], f_t.detach())
    p, z_s = method.logits(ctx.signal("student", batch, method.student_taps), ctx)
    head = teacher.module[-1]
    torch.testing.assert_close(z_s, nn.functional.linear(p, head.weight, head.bias))
    c = method.z_t.softmax(1).amax(1)[batch["item"]]  # beta is 0 in the first epoch
    w = c / c.mean()
    torch.testing.assert_close(terms["kd"].values, w * F.kl(z_s, head(f_t), temperature=4.0))
    torch.testing.assert_close(terms["align"].values, w * (p - f_t).square().mean(1))
    grads = torch.autograd.grad(terms["kd"].total(), list(method.roles["projector"].parameters().values()))
    assert all(g.any() for g in grads) and not any(
        p.requires_grad for p in method.roles["classifier"].module.parameters()
    )


def test_equal_networks_have_nothing_to_learn(tmp_path: Path) -> None:
    made = tiny("kd3", tmp_path, "student.hidden=[16]")
    method: Any = made.method
    assert "projector" not in method.roles
    student, teacher = method.roles["student"], method.setup.teacher
    student.module.load_state_dict(teacher.module.state_dict())
    student.contract = teacher.contract
    terms, _, _ = first_step(made)
    for name in ("kd", "align"):
        assert float(terms[name].values.detach().abs().max()) < 1e-6
        own = list(student.module.parameters())
        grads = torch.autograd.grad(terms[name].total(), own, allow_unused=True, retain_graph=True)
        assert max(float(g.abs().max()) for g in grads if g is not None) < 1e-5


def test_the_image_is_mixed_with_partners_of_the_whole_batch(tmp_path: Path) -> None:
    made = tiny("kd3", tmp_path, *CONV, "method.ways=3")
    method: Any = made.method
    _, batch, ctx = first_step(made)
    mu, sigma = channel_statistics(batch["x"])
    seen: list[torch.Tensor] = []
    real = ctx.signal
    ctx.signal = lambda role, b, taps=(): seen.append(b["x"]) or real(role, b, taps)  # type: ignore[func-returns-value]
    method.mixed(batch, Gathered({"mu": mu, "sigma": sigma}), ctx)
    (view,) = seen
    low, high = mu.min(0).values, mu.max(0).values
    new = view.mean((2, 3))
    assert not torch.allclose(view, batch["x"]) and ((new > low - 1e-4) & (new < high + 1e-4)).all()


def test_the_selection_is_made_anew_and_measured(tmp_path: Path) -> None:
    made = tiny("kd3", tmp_path, "method.ratio=0.2", "method.beta=0.05", "task.unlabelled.items=60")
    method: Any = made.method
    shares: list[float] = []
    real = method.look

    def look(ctx: Any) -> None:
        real(ctx)
        shares.append(method.state["seen"]["confidence"])

    method.look = look
    made.run()
    assert len(method.state["kept"]) == 12 and len(shares) == 3  # 12 items are two steps of 8
    found = method.measures()
    assert found["selected"] == pytest.approx(0.2) and found["pool_purity"] == pytest.approx(0.3)
    assert 0 <= found["purity"] <= 1 and "teacher_agreement" in found


@pytest.mark.parametrize(
    "words",
    [
        [
            "method.selection=none",
            "method.classifier=own",
            "method.align=0",
            "method.contrast=0",
            "method.weighted=false",
        ],
        pytest.param(
            ["method.selection=random", "method.classifier=init", "method.normalise_weights=false"],
            marks=pytest.mark.expensive,
        ),
        pytest.param(
            ["method.selection=teacher", "method.rule=topk_per_class", "method.per_class=2", "method.projector=norm"],
            marks=pytest.mark.expensive,
        ),
        pytest.param(
            [
                "method.rule=threshold",
                "method.threshold=0.11",
                "method.invariance=consistency",
                "method.symmetric=false",
            ],
            marks=pytest.mark.expensive,
        ),
        ["method.score=energy", "method.rule=threshold", "method.threshold=-10", "method.pool_share=0.5"],
        [*CONV, "method.mix=feature", "method.mix_at=features.2", "method.ways=3", "method.selection=none"],
        pytest.param(["method.score=entropy", "method.mix=off", "method.ramp=0"], marks=pytest.mark.expensive),
        pytest.param(["queries={view: {use: flip}}", "method.kd=0"], marks=pytest.mark.expensive),
    ],
)
def test_every_switch_runs(words: list[str], tmp_path: Path) -> None:
    made = tiny("kd3", tmp_path, *words, "train.steps=3").run()
    artifact: Any = made.method.artifact()
    scores = artifact.task.evaluate(artifact.built, artifact.task.test)
    assert 0 <= scores["accuracy"] <= 1


def test_what_is_delivered_opens_again_with_the_same_answers(tmp_path: Path) -> None:
    result = run(tree_of("kd3"), tmp_path, quiet=True)
    about = json.loads((tmp_path / "student.json").read_text())
    assert about["model"]["use"] == "chain" and list(about["model"]["links"]) == ["backbone", "projector", "classifier"]
    task: Any = build(tree_of("kd3")).task
    task.load(0)
    opened = FromRun(str(tmp_path)).build(task)
    assert isinstance(opened.module, Chain)
    assert task.evaluate(opened, task.test)["accuracy"] == result["metrics"]["student"]["accuracy"]
    assert result["measures"]["pool_purity"] == pytest.approx(0.3)
    (picture,) = result["pictures"]
    assert picture["title"] == "What was selected of the pool" and "of the whole pool 30%" in picture["caption"]


def test_the_teacher_answers_in_its_own_order_of_classes(tmp_path: Path) -> None:
    made = tiny("kd3", tmp_path)
    method: Any = made.method
    teacher = method.setup.teacher
    order = tuple(reversed(range(10)))
    teacher.contract = teacher.contract.with_(classes=order)
    head: Any = copied_head(teacher, "head", 10, "method.teacher_classifier").get_submodule("head")
    assert torch.equal(head.weight, teacher.module.head.weight[list(order)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.unlabelled=null"], r"task\.unlabelled.*folder:PATH"),
        (
            ["method.rule=threshold", "method.threshold=0.9999"],
            r"method\.threshold.*of 0 classes.*10% below.*topk_per_class",
        ),
        (["method.require_agreement=true", "method.ratio=1"], r"method\.ratio.*of 1 class"),
        (["method.teacher_classifier=act1"], r"method\.teacher_classifier.*ReLU"),
        (["method.teacher_classifier=fc1"], "task's classes"),
        (["method.student_classifier=nose"], "nose"),
        (["train.batch_size=1"], "batch_size"),
        (["student.hidden=[]"], "student.*backbone"),
        (["method.mix=feature"], r"method\.mix_at"),
        (["method.mix=feature", "method.mix_at=act1"], r"method\.mix_at.*maps"),
        (["method.kd=0", "method.align=0"], "kd"),
        (["method.kd=0", "method.classifier=own"], "kd"),
        (["method.mix_at=layer1"], "mix_at"),
        (["method.threshold=2"], "threshold"),
        (["method.beta=2"], "beta"),
        (["method.ways=1"], "ways"),
        (["method.pool_share=0"], "pool_share"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        tiny("kd3", tmp_path, *words).run()


def test_rows_of_numbers_have_no_channels(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(60, 5)).astype("f4"), y=rng.integers(0, 2, 60))
    rows = f"{{use: arrays, path: {tmp_path}/rows.npz}}"
    words = [f"task.data={rows}", f"task.unlabelled={rows}", "train.steps=2", "teach.steps=2", "train.batch_size=4"]
    tree = check(load_tree("kd3", words))
    with pytest.raises(ConfigError, match=r"method\.mix.*mix=off"):
        run(tree, tmp_path / "a", quiet=True)
