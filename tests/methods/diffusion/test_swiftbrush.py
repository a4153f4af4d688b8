"""SwiftBrush: who is moved by what, teachers of every output, its average, its switches, its errors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.context import RunContext
from limbeck.engine.engine import Engine
from limbeck.engine.settings import EngineSettings
from limbeck.errors import ConfigError, ShapeError, TeacherMismatch
from limbeck.functional import diffusion
from limbeck.grammar.method import Built, Setup, Stage, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.role import cast
from limbeck.methods.diffusion.swiftbrush import SwiftBrush
from limbeck.networks.lora import LoraView
from limbeck.networks.residual_mlp import ResidualMLP
from limbeck.tasks.generation import Generation
from limbeck.tasks.sampler import SamplerArtifact, nothing

OPTIM = Optim(steps=2, batch_size=6, lr=1e-3, optimizer="adam", schedule="constant", clip=1.0)


@pytest.fixture(scope="module")
def task() -> Generation:
    made = Generation()
    made.load(0)
    return made


def network(kind: Any = "v", seed: int = 0, width: int = 16) -> ResidualMLP:
    torch.manual_seed(seed)
    net = ResidualMLP(width=width, blocks=1, kind=kind)
    for p in net.parameters():  # a fresh network answers zero whatever it is asked
        if p.ndim > 1 and not bool(p.any()):
            nn.init.normal_(p, std=0.1)
    return net


def bound(task: Generation, student: Any = None, teacher: Any = None, **settings: Any) -> SwiftBrush:
    method = SwiftBrush(**{"rank": 2, "alpha": 2.0, "targets": "all", "guidance_scale": 2.0, **settings})
    student, teacher = student or network(seed=1), teacher or network()
    method.bind(Setup(task, Built(student, labels=task.labels), Built(teacher, labels=task.labels), OPTIM))
    if "fake" in method.roles and isinstance(method.roles["fake"].module, LoraView):
        for up in method.roles["fake"].module.up.values():  # an adapter that has learnt something
            nn.init.normal_(up, std=0.1)
    return method


def context(method: SwiftBrush, step: int = 0) -> RunContext:
    cast(method.roles, tuple(method.learners))
    return RunContext(Engine(EngineSettings(device="cpu")), method, Stage("distil", steps=1), torch.device("cpu")).at(
        step
    )


def batch_of(task: Generation, n: int = 6) -> dict[str, Tensor]:
    ids = torch.arange(n) * 7
    return {**task.conditions.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}


def phases_of(method: SwiftBrush, step: int = 0) -> list[Terms]:
    return list(method.step(batch_of(method.task), context(method, step)))


def grads(term: Any, module: nn.Module) -> float:
    params = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(term.total(), params, allow_unused=True, retain_graph=True) if params else ()
    return max((float(g.abs().max()) for g in found if g is not None), default=0.0)


# ------------------------------------------------------------------------------------------------------- the two updates


@pytest.mark.parametrize("fake", ["lora", "full"])
def test_each_update_moves_its_own_role(task: Generation, fake: str) -> None:
    method = bound(task, fake=fake)
    if fake == "full":
        with torch.no_grad():
            for p in method.roles["fake"].module.parameters():
                p.add_(0.05)
    vsd, score = phases_of(method)
    roles = {n: method.roles[n].module for n in ("student", "teacher", "fake")}
    moved = {n: (grads(vsd["vsd"], m), grads(score["fake"], m)) for n, m in roles.items()}
    assert moved["student"][0] > 0 and moved["student"][1] == 0
    assert moved["fake"][0] == 0 and moved["fake"][1] > 0
    assert moved["teacher"] == (0.0, 0.0)


def test_nothing_moves_the_generator_before_the_fake_score_has_learnt(task: Generation) -> None:
    method = bound(task)
    for up in method.roles["fake"].module.up.values():
        nn.init.zeros_(up)
    assert grads(phases_of(method)[0]["vsd"], method.roles["student"].module) == 0


def test_the_surrogate_has_the_gradient_of_half_the_squared_error(task: Generation) -> None:
    method = bound(task)
    term = phases_of(method)[0]["vsd"]
    own = list(method.roles["student"].module.parameters())
    found = torch.autograd.grad(term.values.mean(), own, allow_unused=True)
    ctx, batch = context(method), batch_of(task)
    w = torch.full((6,), 1.0)
    x = method.generate(ctx, ctx.draws.randn("z", batch["item"], task.shape), batch["y"], w)
    t = method._times(ctx, "t", batch["item"], method.t_min, method.t_max)
    x_t = diffusion.diffuse(x.detach(), ctx.draws.randn("eps", batch["item"], task.shape), t)
    with torch.no_grad():
        p, q = (d.read(ctx, x_t, t, batch["y"], w, grad=False).eps for d in (method.teacher, method.score))
    G = diffusion.score_difference(p, q, t)
    again = torch.autograd.grad(0.5 * nn.functional.mse_loss(x, (x - G).detach()), own, allow_unused=True)
    for a, b in zip(found, again, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-6)


def test_without_a_fake_score_it_is_score_distillation_sampling(task: Generation) -> None:
    method = bound(task, fake="none", guidance_scale=1.0)
    (only,) = phases_of(method)
    assert list(only) == ["vsd"] and grads(only["vsd"], method.roles["student"].module) > 0
    assert method.learners == ("student",) and "fake" not in method.roles


def test_a_fake_score_that_predicts_v_is_fitted_by_its_own_error(task: Generation) -> None:
    x, c, ids = torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.long), torch.arange(6)
    found = {}
    for kind in ("v", "eps"):
        for way in ("auto", "eps", "v"):
            method = bound(task, teacher=network(kind), fake_loss=way, p_null=0.0)
            found[kind, way] = method.fitted(context(method), x, c, ids)
            t = method._times(context(method), "fake-t", ids, 0.0, 1.0)
    alpha2 = torch.sigmoid(t).float()
    assert torch.equal(found["v", "auto"], found["v", "v"]) and torch.equal(found["eps", "auto"], found["eps", "eps"])
    torch.testing.assert_close(
        found["v", "eps"], alpha2**2 * found["v", "v"], rtol=1e-3, atol=1e-7
    )  # eps = alpha v + sigma z


def unconditional(seed: int = 0) -> ResidualMLP:
    torch.manual_seed(seed)
    return ResidualMLP(classes=0, width=16, blocks=1, kind="v")


def test_a_teacher_without_classes(task: Generation) -> None:
    method = bound(task, unconditional(1), unconditional(), guidance_scale=1.0, fake="full")
    assert all(len(p) for p in phases_of(method)) and method.teacher.said.null_condition is None
    with pytest.raises(ConfigError, match="unconditional"):
        bound(task, unconditional(1), unconditional(), guidance_scale=2.0)


def test_the_unet_of_28_pixels_is_distilled_saved_and_opened(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from limbeck.networks.ddpm_unet import DdpmUNet
    from limbeck.recipe.recipe import build, check, load_tree
    from limbeck.run import run_recipe
    from limbeck.tasks.schedules import make_schedule

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for name, n in (("train", 40), ("test", 12)):
        np.savez(tmp_path / f"{name}.npz", x=rng.integers(0, 255, (n, 28, 28), dtype=np.uint8), y=np.arange(n) % 2)
    teacher = DdpmUNet(make_schedule("ddpm", False))
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    words = [f"task.data={{use: arrays, path: {tmp_path}}}", f"teacher.checkpoint={tmp_path / 'teacher.safetensors'}",
             "teacher.check=off", "train.steps=1", "train.batch_size=4", "evaluator.samples=8", "evaluator.reference_steps=2",
             "evaluator.times_more=2", "engine.device=cpu", "loggers=[]"]  # fmt: skip
    tree = check(load_tree("swiftbrush", words, preset="unconditional"))
    result, made = run_recipe(build(tree), tree, tmp_path / "run", force=True, quiet=True)
    assert "fid" in result["metrics"]["student"] and "class_accuracy" not in result["metrics"]["student"]
    again = SamplerArtifact.load(tmp_path / "run")
    z = torch.randn(2, 1, 28, 28)
    both = [a.student_for(1)(z, torch.zeros(2), torch.zeros(2, dtype=torch.long)) for a in (made, again)]
    torch.testing.assert_close(*both)
    words[1] = "teacher.checkpoint=null"
    with pytest.raises(ConfigError, match=r"1,000 timesteps.*task\.schedule=ddpm"):
        tree = check(load_tree("swiftbrush", [*words, "task.schedule=cosine"], preset="unconditional"))
        run_recipe(build(tree), tree, tmp_path / "other", force=True, quiet=True)


def test_without_a_fake_score_there_is_a_preset() -> None:
    from limbeck.recipe.recipe import build, check, load_tree

    assert build(check(load_tree("swiftbrush", preset="sds"))).method.learners == ("student",)


@pytest.mark.parametrize("difference", ["sigma2", "uniform", "dmd"])
@pytest.mark.parametrize("kind", ["v", "x"])
def test_teachers_of_every_output_give_the_same_gradient(task: Generation, kind: str, difference: str) -> None:
    """A teacher that says the same in another parameterisation teaches the same."""
    net = network("v")
    torch.manual_seed(3)

    class Says(nn.Module):
        mean_type, null_condition, guided = kind, net.null_class, False

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor, logsnr: Tensor, c: Tensor) -> Tensor:
            read = diffusion.to_x_eps(self.net(z, logsnr, c), z, logsnr, "v")
            return diffusion.from_x_eps(read.x, read.eps, logsnr, kind)  # type: ignore[arg-type]

    plain = bound(task, teacher=net, init="random", difference=difference)
    other = bound(task, teacher=Says(), init="random", difference=difference)
    for a, b in zip(plain.roles["fake"].module.parameters(), other.roles["fake"].module.parameters(), strict=True):
        b.data.copy_(a.data)
    a, b = (phases_of(m)[0]["vsd"].show for m in (plain, other))
    assert a is not None and b is not None and torch.allclose(a, b, rtol=1e-3)


def test_the_fake_score_forgets_conditions_for_a_whole_batch(task: Generation) -> None:
    method = bound(task, p_null=0.5)
    seen: list[bool] = []
    real = type(method.score).read

    def read(self: Any, ctx: Any, z: Any, t: Any, c: Tensor, *more: Any, **kw: Any) -> Any:
        if self.role == "fake" and kw.get("grad") is None:
            seen.append(bool((c == 10).all()))
            assert seen[-1] or not bool((c == 10).any())
        return real(self, ctx, z, t, c, *more, **kw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method.score), "read", read)
        for step in range(12):
            phases_of(method, step)
    assert 0 < sum(seen) < 12


@pytest.mark.parametrize("scale", [1, 2])
def test_at_scale_one_each_score_is_asked_once(task: Generation, scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = bound(task, guidance_scale=float(scale))
    rows = dict.fromkeys(("student", "teacher", "fake"), 0)
    real = RunContext.call

    def call(self: Any, role: str, z: Tensor, *more: Any, **kw: Any) -> Any:
        rows[role] += len(z)
        return real(self, role, z, *more, **kw)

    monkeypatch.setattr(RunContext, "call", call)
    phases_of(method)
    assert rows == {"student": 6, "teacher": 6 * scale, "fake": 6 * scale + 6}


def test_the_average_warms_up_as_that_of_diffusers(task: Generation) -> None:
    EMAModel = pytest.importorskip("diffusers.training_utils").EMAModel
    theirs = EMAModel([nn.Parameter(torch.zeros(1))])
    method = SwiftBrush()
    assert [method.decay(k, 0) for k in range(60)] == pytest.approx([theirs.get_decay(k + 1) for k in range(60)])
    assert method.decay(10**6, 0) == 0.9999


def test_it_delivers_the_average_as_a_sampler_of_one_step(task: Generation) -> None:
    method = bound(task)
    made = method.artifact()
    assert isinstance(made, SamplerArtifact) and made.student_for(1) is method.roles["ema"].module is made.built.module
    assert made.sample(3, w=1.0).shape == (3, 1, 8, 8) and not made.takes(2)
    assert set(method.rows()) == {"last"} and not bound(task, ema=None).rows()


def test_a_null_condition_may_be_an_embedding() -> None:
    null = torch.randn(2, 3)
    assert torch.equal(nothing(torch.zeros(4, 2, 3), null), null.expand(4, 2, 3))
    with pytest.raises(ShapeError, match=r"\[N, 2, 3\]"):
        nothing(torch.zeros(4, 2, 5), null)


# -------------------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_is_refused(task: Generation) -> None:
    for settings, said in (
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"t_min": 0.5, "t_max": 0.4}, "t_min"),
        ({"p_null": 1.5}, "p_null"),
    ):
        with pytest.raises(ValueError, match=said):
            SwiftBrush(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="eps says nothing about x"):
        bound(task, student=network("eps"), init="random")
    with pytest.raises(ConfigError, match=r"method\.variant"):
        bound(task, variant="released")
    with pytest.raises(TeacherMismatch, match="do not fit"):
        bound(task, student=network(width=24))
    with pytest.raises(ConfigError, match=r"method\.targets"):
        bound(task, targets=["to_q"])
    lone = network()
    lone.null_condition = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"guidance_scale=1"):
        bound(task, teacher=lone)
    adapted = network()
    adapted.read.peft_config = {"default": 1}  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="adapters are loaded"):
        bound(task, teacher=adapted)
    judge: Any = SimpleNamespace(steps=[1, 4], guidance=[0.0])
    with pytest.raises(ConfigError, match=r"evaluator\.guidance=\[1\]"):
        bound(task).judged_by(judge)
