"""SimKD: features matched before the teacher's own classifier, through which the student answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError
from limbeck.grammar.role import cast
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run.restoring import restore
from limbeck.run.running import run as run_recipe
from tests.tiny import shared_tiny as tiny
from tests.tiny import tree_of

RESNETS = ("teacher={use: cifar-resnet, depth: 8, width: 4}", "student={use: cifar-resnet, depth: 8, width: 2}")


@pytest.mark.parametrize("form", ["maps", "vectors", "mixed"])
def test_the_loss_and_the_answer_are_the_equations(form: str, tmp_path: Path) -> None:
    words = {"maps": RESNETS, "vectors": (), "mixed": (RESNETS[0], "student={use: mlp, hidden: [8]}")}[form]
    made = tiny("simkd", tmp_path, *words)
    method: Any = made.method
    assert method.maps == (form == "maps")
    stage = method.stages()[0]
    made.engine.prepare(method)
    cast(method.roles, tuple(stage.optim))
    ctx = RunContext(made.engine, method, stage, made.engine.device).at(0)
    ids = torch.arange(6)
    batch = {**method.task.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
    terms = method.step(batch, ctx)
    assert list(terms) == ["feature"] and terms["feature"].to == ("student", "projector")
    signals = {n: ctx.signal(n, batch) for n in ("student", "teacher")}
    f_s, f_t = signals["student"].acts[method.student_taps[0]], signals["teacher"].acts[method.teacher_taps[0]]
    projector = method.roles["projector"].module
    want = (projector.body(f_s) - f_t).square().flatten(1).mean(1)
    torch.testing.assert_close(terms["feature"].values, want, rtol=1e-4, atol=1e-6)
    grads = torch.autograd.grad(terms["feature"].total(), list(projector.parameters()), allow_unused=True)
    assert all(g is not None for g in grads)
    assert not any(p.requires_grad for r in ("teacher", "classifier") for p in method.roles[r].module.parameters())
    # through the teacher's own feature the answer is the teacher's
    pooled = f_t.mean((2, 3)) if f_t.ndim == 4 else f_t
    torch.testing.assert_close(method.roles["classifier"].module(pooled), signals["teacher"].logits)
    net = method.artifact().built.module.eval()
    projector.eval()
    method.roles["student"].module.eval()
    with torch.no_grad():
        x = method.roles["student"].contract.inputs(batch["x"])
        f = ctx.signal("student", batch).acts[method.student_taps[0]]
        torch.testing.assert_close(net(x), method.roles["classifier"].module(projector(f)))


def test_it_is_saved_and_opened_again(tmp_path: Path) -> None:
    run_recipe(tree_of("simkd", *RESNETS, "train.steps=2", "baselines=[]"), tmp_path / "run", quiet=True)
    back = restore(tmp_path / "run")
    found = [k for k in back.artifact.built.module.state_dict() if "body" in k]  # type: ignore[attr-defined]
    assert found and (tmp_path / "run" / "student.safetensors").is_file()


def test_networks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.student_map.*shows no maps"):
        tiny("simkd", tmp_path / "a", "method.features=maps")
    with pytest.raises(ConfigError, match=r"method\.teacher_map.*does not read the mean"):
        tiny("simkd", tmp_path / "b", *RESNETS, "method.teacher_map=layer1")
    for word in ("factor=0", "features=all"):
        with pytest.raises(ConfigError, match=rf"method\.{word.split('=')[0]}"):
            build(check(load_tree("simkd", [f"method.{word}"], tiny=True)))


def test_the_classifier_s_classes_are_in_the_task_s_order() -> None:
    from limbeck.grammar.method import Built
    from limbeck.grammar.role import Contract
    from limbeck.parts.heads import copied_head

    net = nn.Sequential(nn.Linear(3, 4))
    x = torch.randn(2, 3)
    head = copied_head(Built(net, Contract(classes=(2, 0))), "0", 2, "teacher")
    torch.testing.assert_close(head(x), net(x)[:, [2, 0]])
    with pytest.raises(ConfigError, match=r"teacher.*4 outputs"):
        copied_head(Built(net), "0", 2, "teacher")
