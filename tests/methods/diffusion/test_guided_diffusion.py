"""Guided distillation: its targets against recorded vectors, its stages, its errors, and a small run from end to end."""

from __future__ import annotations

import json
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
from limbeck.engine.stages import tuned
from limbeck.errors import ConfigError, StorageError, TeacherMismatch
from limbeck.evaluators.sampler import Sampler
from limbeck.functional import diffusion
from limbeck.functional.diffusion import XEps
from limbeck.grammar.method import Built, Setup, Stage
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.grammar.role import cast
from limbeck.methods.diffusion.guided_diffusion import GuidedDiffusion
from limbeck.networks.residual_mlp import ResidualMLP
from limbeck.parts.denoisers import Asked, inherit
from limbeck.recipe.recipe import check, load_tree
from limbeck.recipe.renamed import renamed
from limbeck.tasks.generation import Generation
from limbeck.tasks.sampler import SamplerArtifact

GOLDEN = Path(__file__).parents[2] / "golden" / "vectors" / "guided-diffusion"
CASES = [c for c in json.loads((GOLDEN / "cases.json").read_text())["cases"] if "training_losses" in c["function"]]

OPTIM = Optim(steps=2, batch_size=8, lr=1e-3, optimizer="adam", schedule="linear", clip=1.0)


@pytest.fixture(scope="module")
def task() -> Generation:
    made = Generation()
    made.load(0)
    return made


def network(guided: bool = False, kind: Any = "v", seed: int = 0, width: int = 16) -> ResidualMLP:
    torch.manual_seed(seed)
    net = ResidualMLP(width=width, blocks=1, kind=kind, guidance=guided)
    # a fresh network answers zero whatever it is asked: give it something to say
    for p in net.parameters():
        if p.ndim > 1 and not bool(p.any()):
            nn.init.normal_(p, std=0.1)
    return net


def bound(task: Generation, student: nn.Module | None = None, teacher: nn.Module | None = None, **settings: Any) -> Any:
    method = GuidedDiffusion(**{"start_steps": 4, "w_max": 2.0, **settings})
    student = network(guided=True) if student is None else student
    teacher = network(seed=1) if teacher is None else teacher
    method.bind(Setup(task, Built(student, labels=task.labels), Built(teacher, labels=task.labels), OPTIM))
    return method


def context(method: GuidedDiffusion, stage: str = "guide", step: int = 0) -> RunContext:
    return RunContext(Engine(EngineSettings(device="cpu")), method, Stage(stage, steps=1), torch.device("cpu")).at(step)


def batch_of(task: Generation, n: int = 6) -> dict[str, Tensor]:
    ids = torch.arange(n) * 7
    return {**task.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}


def asked(method: GuidedDiffusion, batch: Any, ctx: RunContext) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q = Asked.of(method.task, batch, ctx, method.w_range)
    return q.x, q.c, q.w, q.ids


# ------------------------------------------------------------------------------------------------ recorded vectors


class Toy(nn.Module):
    """The closed-form network of the recorded cases."""

    guided, null_condition = False, None

    def __init__(self, params: dict[str, float], kind: str) -> None:
        super().__init__()
        self.mean_type = kind
        for name, value in params.items():
            setattr(self, name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
        lam = logsnr.view(-1, 1, 1, 1) / 20.0
        return self.a * torch.tanh(z) + self.b * z * lam + self.c * torch.cos(3.0 * z)


class Told:
    """Draws that were recorded."""

    def __init__(self, i: Tensor, eps: Tensor) -> None:
        self.i, self.eps = i, eps

    def rand(self, stream: str, items: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.full((len(items),), low)

    def randint(self, stream: str, items: Tensor, high: int) -> Tensor:
        assert int(self.i.max()) < high
        return self.i

    def randn(self, stream: str, items: Tensor, shape: Any) -> Tensor:
        return self.eps


@pytest.mark.parametrize("case", CASES, ids=[c["case"] for c in CASES])
def test_a_halving_round_equals_the_recorded_losses(task: Generation, case: dict[str, Any]) -> None:
    hyper = case["hyperparameters"]
    with np.load(GOLDEN / case["file"]) as stored:
        told = {k: torch.from_numpy(stored[k]) for k in stored.files}
    n, kind = hyper["num_steps"], hyper["mean_type"]
    student, teacher = Toy(hyper["student"], kind), Toy(hyper["teacher"], kind)
    # the recorded eps network in one step is refused at the door; here only its arithmetic is asked
    method = GuidedDiffusion(
        start_steps=2 * n, end_steps=n, w_max=0.0, weight=hyper["mean_loss_weight_type"], init="random", keep=[]
    )
    method._check = lambda: None  # type: ignore[method-assign]
    method.bind(Setup(task, Built(student), Built(teacher), OPTIM))
    method.roles["previous"].module = teacher
    ids = torch.arange(len(told["x"]))
    batch = {"x": (told["x"] + 1.0) / 2.0, "y": torch.zeros_like(ids), "item": ids, "view": torch.zeros_like(ids)}
    ctx = context(method, f"halve{n}")
    cast(method.roles, ("student",))
    ctx.draws = Told(told["i"], told["eps"])  # type: ignore[assignment]
    term = method.halve_step(n, batch, ctx)["halve"]
    torch.testing.assert_close(term.values, told["loss"], rtol=1e-7, atol=1e-9)
    (slope,) = torch.autograd.grad(term.values.mean(), student.a)
    torch.testing.assert_close(slope, told["dloss_da"], rtol=1e-7, atol=1e-9)


# ----------------------------------------------------------------------------------------------------- stage one


def test_stage_one_asks_for_the_guided_teacher(task: Generation) -> None:
    method = bound(task)
    teacher = method.roles["teacher"].module
    batch, ctx = batch_of(task), context(method)
    x, c, w, _ = asked(method, batch, ctx)
    assert bool((w >= 0).all()) and bool((w <= 2).all()) and w.std() > 0
    logsnr = torch.tensor([-5.0, -1.0, 0.0, 1.0, 3.0, 8.0])
    z = diffusion.diffuse(x, torch.randn_like(x), logsnr)
    with torch.no_grad():
        x_c = diffusion.to_x_eps(teacher(z, logsnr, c), z, logsnr, "v").x
        x_u = diffusion.to_x_eps(teacher(z, logsnr, torch.full_like(c, 10)), z, logsnr, "v").x
    want = (1 + w.view(-1, 1, 1, 1)) * x_c - w.view(-1, 1, 1, 1) * x_u
    got = method.teacher.read(ctx, z, logsnr, c, w)
    torch.testing.assert_close(got.x, want, rtol=1e-5, atol=1e-5)
    assert not got.x.requires_grad
    # and eps is what makes up the rest of z
    alpha, sigma = (v.float().view(-1, 1, 1, 1) for v in diffusion.alpha_sigma(logsnr))
    torch.testing.assert_close(alpha * got.x + sigma * got.eps, z, rtol=1e-4, atol=1e-4)


def test_the_loss_of_stage_one_is_the_truncated_snr(task: Generation) -> None:
    method = bound(task)
    batch = batch_of(task)
    term = method.guide_step(batch, context(method))["guide"]
    ctx = context(method)
    x, c, w, ids = asked(method, batch, ctx)
    logsnr = task.schedule.logsnr(ctx.draws.rand("u", ids))
    z = diffusion.diffuse(x, ctx.draws.randn("eps", ids, x.shape[1:]), logsnr)
    target = method.teacher.read(ctx, z, logsnr, c, w)
    out = method.roles["student"].module(z, logsnr.float(), c, w)
    got = diffusion.to_x_eps(out, z, logsnr, "v")
    x_mse = (got.x - target.x).square().flatten(1).mean(1)
    weight = torch.exp(logsnr).clamp_min(1.0).float()
    torch.testing.assert_close(term.values, weight * x_mse, rtol=2e-3, atol=1e-5)
    assert term.values.shape == (6,) and term.to == ("student",)


def test_w_zero_is_the_conditional_teacher(task: Generation) -> None:
    method = bound(task, w_max=0.0)
    inherit(method.roles["teacher"].module, method.roles["student"].module)
    module = method.roles["student"].module
    nn.init.zeros_(module.weight.weight)
    term = method.guide_step(batch_of(task), context(method))["guide"]
    assert float(term.values.detach().abs().max()) < 1e-8


def test_a_student_that_inherits_answers_as_its_teacher_for_every_w(task: Generation) -> None:
    student, teacher = ResidualMLP(width=16, blocks=1, guidance=True), network()
    inherit(teacher, student)
    z, lam, y = torch.randn(4, 1, 8, 8), torch.zeros(4), torch.arange(4)
    assert torch.equal(student(z, lam, y, torch.tensor([0.0, 1.0, 2.0, 9.0])), teacher(z, lam, y))


def test_discrete_times_are_the_teachers_own(task: Generation) -> None:
    method = bound(task, times="discrete")
    asked: list[Tensor] = []

    def schedule(u: Tensor) -> Tensor:
        asked.append(u)
        return diffusion.CosineSchedule().logsnr(u)

    method.setup.task = SimpleNamespace(schedule=SimpleNamespace(logsnr=schedule), signed=task.signed)
    method.guide_step(batch_of(task, 40), context(method))
    assert set((asked[0] * 4).tolist()) == {1.0, 2.0, 3.0, 4.0}


def test_the_guided_teacher_is_one_call_of_twice_the_rows(task: Generation) -> None:
    method = bound(task)
    rows: list[int] = []
    method.roles["teacher"].module.register_forward_hook(lambda m, a, o: rows.append(len(a[0])))
    method.guide_step(batch_of(task, 6), context(method))
    assert rows == [12]


# ----------------------------------------------------------------------------------------------------- stage two


def test_without_stage_one_the_first_round_learns_from_the_guided_teacher(task: Generation) -> None:
    method = bound(task, guide=False)
    assert [s.name for s in method.stages()] == ["halve2", "halve1"]
    batch, ctx = batch_of(task), context(method, "halve2")
    x, c, w, ids = asked(method, batch, ctx)
    times = diffusion.halving_times(torch.tensor([0, 1, 0, 1, 0, 1]), 2)
    z, target, _ = method._before(2).two_steps(ctx, Asked(x, c, w, ids), times, task.schedule)
    teacher = method.roles["teacher"].module

    def guided(z: Tensor, lam: Tensor) -> Tensor:
        cond, uncond = teacher(z, lam, c), teacher(z, lam, torch.full_like(c, 10))
        return diffusion.guide(cond, uncond, w=w)

    want = diffusion.two_step_target(guided, z, times, task.schedule, "v")
    torch.testing.assert_close(target.x, want.x, rtol=1e-4, atol=1e-4)


def test_one_step_of_the_student_would_land_where_two_of_the_teacher_do(task: Generation) -> None:
    method = bound(task)
    batch, ctx = batch_of(task), context(method, "halve2")
    x, c, w, ids = asked(method, batch, ctx)
    times = diffusion.halving_times(torch.tensor([0, 1, 1, 1, 0, 1]), 2)
    z, target, _ = method._before(2).two_steps(ctx, Asked(x, c, w, ids), times, task.schedule)
    teacher = method.roles["student@4"].module
    with torch.no_grad():
        here = z
        for u, to in ((times[0], times[1]), (times[1], times[2])):
            lam = task.schedule.logsnr(u)
            pair = diffusion.to_x_eps(teacher(here, lam.float(), c, w), here, lam, "v")
            here = diffusion.ddim_jump(pair.x, pair.eps, task.schedule.logsnr(to))
    lands = diffusion.ddim_jump(target.x, target.eps, task.schedule.logsnr(times[2]))
    torch.testing.assert_close(lands, here, rtol=1e-3, atol=2e-3)


def test_stochastic_targets_two_steps_and_at_the_edge_one(task: Generation) -> None:
    method = bound(task, stochastic=[4])
    batch, ctx = batch_of(task, 4), context(method, "stochastic4")
    x, c, w, ids = asked(method, batch, ctx)
    i = torch.tensor([0, 1, 2, 3])
    times = diffusion.stochastic_times(i, 4)
    guide = method._before(2)
    assert guide.role == "student@4"
    z, target, logsnr = guide.two_steps(ctx, Asked(x, c, w, ids), times, task.schedule, one=i == 0)
    teacher = method.roles["student@4"].module
    with torch.no_grad():
        one = diffusion.to_x_eps(teacher(z, logsnr.float(), c, w), z, logsnr, "v")
        two = diffusion.two_step_target(lambda a, b: teacher(a, b, c, w), z, times, task.schedule, "v")
    torch.testing.assert_close(target.x[0], one.x[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target.x[1:], two.x[1:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(one.x[1:], two.x[1:], atol=1e-3)


def test_the_encoder_is_taught_towards_more_noise(task: Generation) -> None:
    method = bound(task, encoder_steps=2)
    asked: list[Tensor] = []
    real = method.roles["student@4"].module.forward

    def spy(z: Tensor, logsnr: Tensor, *more: Any) -> Tensor:
        asked.append(logsnr)
        return real(z, logsnr, *more)

    method.roles["student@4"].module.forward = spy
    terms = method.encode_step(2, batch_of(task), context(method, "encode2"))
    assert terms["encode"].to == ("encoder",) and bool(torch.isfinite(terms["encode"].values).all())
    assert len(asked) == 2 and bool((asked[1] < asked[0]).all())


# -------------------------------------------------------------------------------------------------------- stages


def test_stages_and_their_budgets(task: Generation) -> None:
    method = bound(task, start_steps=16, stochastic=[4], encoder_steps=8)
    settings = {"halve*": {"steps": 5}, "halve4": {"steps": 9}, "stochastic*": {"steps": 7}}
    stages = {s.name: s for s in tuned(method.stages(), settings)}
    assert list(stages) == ["guide", "halve8", "halve4", "halve2", "halve1", "stochastic4", "encode8"]
    assert [stages[n].steps for n in stages] == [2, 5, 9, 5, 5, 7, 2]
    # the learning rate starts again in each round and ends near zero
    rate = stages["halve4"].optim["student"].rate
    assert rate(0, 9) == OPTIM.lr and rate(8, 9) < 0.2 * OPTIM.lr
    assert list(stages["stochastic4"].optim) == ["stochastic@4"] and list(stages["encode8"].optim) == ["encoder"]


def test_the_lengths_of_rounds_under_their_old_names() -> None:
    old = {"use": "guided-diffusion", "start_steps": 8, "round_steps": 5, "last_round_steps": 9, "encoder_steps": 4}
    new = renamed({"method": old, "task": "generation"})
    assert new["method"] == {"use": "guided-diffusion", "start_steps": 8, "encoder_steps": 4}
    nine = {"steps": 9}
    assert new["stages"] == {
        "halve*": {"steps": 5},
        "halve4": nine,
        "halve2": nine,
        "halve1": nine,
        "encode*": {"steps": 5},
    }
    assert renamed(new) is new
    assert "stages" not in renamed({"method": {"use": "guided-diffusion", "round_steps": None}})
    tree = check(load_tree("guided-diffusion", ["stages.halve*.steps=7", "stages.stochastic4.stochastic@4.lr=0.1"]))
    assert tree["stages"] == {"halve*": {"steps": 7}, "stochastic4": {"stochastic@4": {"lr": 0.1}}}
    with pytest.raises(ConfigError, match=r"method\.round_steps.*type stages\.halve\*\.steps=7"):
        check(load_tree("guided-diffusion", ["method.round_steps=7"]))


def test_students_that_are_kept_are_their_successors_teachers(task: Generation) -> None:
    method = bound(task, start_steps=16, keep=[4])
    assert [method._before(n).role for n in method.rounds] == ["previous", "previous", "student@4", "previous"]
    assert set(method.roles) == {"student", "teacher", "student@4", "previous"}
    everyone = bound(task, start_steps=16)
    assert "previous" not in everyone.roles
    assert {r for r in everyone.roles if "@" in r} == {"student@16", "student@8", "student@4", "student@2"}


def test_only_embeddings_are_trained(task: Generation) -> None:
    method = bound(task, train_only="embeddings")
    trained = set(method.roles["student"].parameters())
    assert trained and all(n.split(".")[0] in ("time", "label", "weight") for n in trained)
    assert any(n.startswith("weight.") for n in trained)


def test_a_run_keeps_a_student_for_every_number_of_steps(task: Generation, tmp_path: Path) -> None:
    method = bound(task, stochastic=[2], encoder_steps=2)
    before = {n: r.module.state_dict()["write.weight"].clone() for n, r in method.roles.items()}
    Engine(EngineSettings(device="cpu"), folder=tmp_path / "run").run(method)
    artifact = method.artifact()
    assert isinstance(artifact, SamplerArtifact)
    assert sorted(artifact.students.steps) == [1, 2, 4]
    assert list(artifact.students.stochastic) == [2] and list(artifact.students.encoders) == [2]
    assert artifact.built.module is artifact.students.steps[1]
    ends = {n: m.state_dict()["write.weight"] for n, m in artifact.students.steps.items()}
    assert not torch.equal(ends[4], ends[2]) and not torch.equal(ends[2], ends[1])
    # begun from the teacher, not from where it was built
    assert (ends[4] - before["teacher"]).abs().max() < 0.1 < (ends[4] - before["student"]).abs().max()
    for n, role in method.roles.items():
        assert torch.equal(before[n], role.module.state_dict()["write.weight"]) == (n == "teacher"), n
    made = artifact.sample(5, w=1.0, steps=2)
    assert made.shape == (5, 1, 8, 8) and float(made.min()) >= 0 and float(made.max()) <= 1


def test_interrupted_anywhere_it_ends_the_same(task: Generation, tmp_path: Path) -> None:
    import signal

    from limbeck.engine import interrupt
    from limbeck.errors import Stopped

    class Stop:
        def __init__(self, after: int) -> None:
            self.left = after

        def stage(self, *_: Any) -> None: ...

        def advance(self, n: int = 1, **_: Any) -> None:
            self.left -= n
            if n and self.left == 0:
                interrupt.request(signal.SIGTERM)

        def show(self, *_: Any) -> None: ...

    settings: dict[str, Any] = {"stochastic": [2], "encoder_steps": 2}
    whole = bound(task, **settings)
    Engine(EngineSettings(device="cpu")).run(whole)
    for after in (1, 3, 4, 5, 9):
        first = bound(task, **settings)
        engine = Engine(EngineSettings(device="cpu"), folder=tmp_path / str(after), progress=Stop(after))
        with pytest.raises(Stopped):
            engine.run(first)
        interrupt.clear()
        again = Engine(EngineSettings(device="cpu"), folder=tmp_path / str(after))
        with pytest.raises(StorageError, match="the weights that the student begins with"):
            again.run(bound(task, network(guided=True, seed=9), **settings))
        second = bound(task, **settings)
        again.run(second)
        assert second.state == whole.state
        for name, role in whole.roles.items():
            other = second.roles[name].module.state_dict()
            assert all(torch.equal(v, other[k]) for k, v in role.module.state_dict().items()), (after, name)
        assert sorted(second.artifact().students.steps) == [1, 2, 4]


def test_the_sampler_of_an_interrupted_run_holds_what_there_is(task: Generation) -> None:
    method = bound(task, start_steps=8)
    assert sorted(method.artifact().students.steps) == [8]
    assert method.artifact().students.many == 1
    ctx = context(method, "halve4")
    method._promote(4, ctx)
    found = method.artifact().students
    assert sorted(found.steps) == [4, 8] and found.many == 8
    method._promote(2, ctx)
    assert sorted(method.artifact().students.steps) == [2, 4, 8]


def test_it_learns(tmp_path: Path) -> None:
    """A teacher that knows the answer exactly: the student must come nearer to it, in stage one and in one step."""
    task = Generation()
    task.load(0)
    torch.manual_seed(0)
    teacher = network(seed=3, width=32)
    method = GuidedDiffusion(start_steps=4, w_max=1.0)
    student = ResidualMLP(width=32, blocks=1, guidance=True)
    optim = Optim(steps=60, batch_size=64, lr=2e-3, optimizer="adam", schedule="linear", clip=1.0)
    method.bind(Setup(task, Built(student, labels=task.labels), Built(teacher, labels=task.labels), optim))
    seen: dict[str, list[float]] = {}

    class Log:
        def resume(self, stage: str, step: int) -> None:
            """Nothing was logged before."""

        def log(self, stage: str, step: int, values: dict[str, float]) -> None:
            seen.setdefault(stage, []).extend(v for k, v in values.items() if k in ("guide", "halve"))

    Engine(EngineSettings(device="cpu", log_every=5), logs=Log()).run(method)
    for stage in ("guide", "halve2", "halve1"):
        assert seen[stage][-1] < 0.7 * seen[stage][0], (stage, seen[stage])
    evaluator = Sampler(steps=[1], guidance=[0.0, 1.0], samples=64, reference_steps=16)
    bench: Any = SimpleNamespace(task=task, teacher=Built(teacher), device=torch.device("cpu"), folder=None)
    ddim: Any = evaluator.rows(bench)["ddim"]()
    mine, plain = evaluator.score(method.artifact(), bench), evaluator.score(ddim, bench)
    assert mine["endpoint_mse"] < 0.7 * plain["endpoint_mse"]
    assert mine["calls_w1_n1"] == 1 and plain["calls_w1_n1"] == 2


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start_steps": 12}, "start_steps must be end_steps (1) times a power of two, which 12 is not"),
        ({"start_steps": 2, "end_steps": 4}, "end_steps (4)"),
        ({"w_min": -1.0}, "w_min"),
        ({"w_min": 0.5, "convention": "s"}, "1 (the scale)"),
        ({"w_min": 3.0, "w_max": 1.0}, "w_min"),
        ({"guide": False, "start_steps": 1}, "nothing to do"),
        ({"stochastic": [3]}, "stochastic holds [3]"),
        ({"stochastic": [1]}, "stochastic holds [1]"),
        ({"keep": [5]}, "keep holds [5]"),
        (
            {"encoder_steps": 3, "start_steps": 8},
            "start_steps must be encoder_steps (3) times a power of two, which 8 is not",
        ),
        ({"train_only": "("}, "regular expression"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        GuidedDiffusion(**settings)
    assert words in str(caught.value)


def test_scales_are_weights_plus_one() -> None:
    method = GuidedDiffusion(w_min=2.0, w_max=14.0, convention="s")
    assert method.w_range == (1.0, 13.0)


def test_a_teacher_without_null_condition(task: Generation) -> None:
    teacher = network()
    teacher.null_condition = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="guided distillation needs the null condition index; pass null_condition"):
        bound(task, teacher=teacher)


def test_a_student_without_guidance_input(task: Generation) -> None:
    with pytest.raises(ConfigError, match="student has no guidance input"):
        bound(task, network(guided=False))
    single = bound(task, network(guided=False), w_min=1.5, w_max=1.5)
    assert float(asked(single, batch_of(task), context(single))[2].min()) == 1.5
    single.guide_step(batch_of(task), context(single))


def test_a_teacher_that_is_a_student_already(task: Generation) -> None:
    with pytest.raises(ConfigError, match="student of stage one already"):
        bound(task, teacher=network(guided=True))


def test_eps_in_one_step(task: Generation) -> None:
    with pytest.raises(ConfigError, match="from pure noise eps says nothing about x"):
        bound(task, network(guided=True, kind="eps"))
    with pytest.warns(UserWarning, match="undetermined"):
        bound(task, network(guided=True, kind="eps"), end_steps=4, start_steps=8)


def test_an_x_student_cannot_encode(task: Generation) -> None:
    with pytest.raises(ConfigError, match="from clean data x says nothing"):
        bound(task, network(guided=True, kind="x"), encoder_steps=2)


def test_an_eps_teachers_weights_learn_another_output(task: Generation) -> None:
    method = bound(task, network(guided=True, kind="v"), network(kind="eps", seed=2))
    term = method.guide_step(batch_of(task), context(method))["guide"]
    assert bool(torch.isfinite(term.values).all())


def test_weights_that_do_not_fit_are_all_named(task: Generation) -> None:
    with pytest.raises(TeacherMismatch) as caught:
        bound(task, network(guided=True, width=24))
    said = str(caught.value)
    assert "of other shapes" in said and "read.weight" in said and "method.init=random" in said
    bound(task, network(guided=True, width=24), init="random")


def test_train_only_that_names_nothing(task: Generation) -> None:
    with pytest.raises(ConfigError, match="no parameter of the student"):
        bound(task, train_only="nothing-is-called-so")


def test_another_task_is_refused() -> None:
    from limbeck.tasks.classification import Classification

    other = Classification()
    method = GuidedDiffusion()
    with pytest.raises(ConfigError, match="task=generation"):
        method.bind(Setup(other, Built(network(True)), Built(network()), OPTIM))


def test_draws_are_keyed_by_item_and_epoch(task: Generation) -> None:
    method = bound(task)
    batch = batch_of(task)
    later = {**batch, "view": batch["view"] + 1}
    one, two = (asked(method, b, context(method))[2] for b in (batch, later))
    assert not torch.equal(one, two)
    assert torch.equal(one, Draws(0, ("guide", 0)).rand("w", batch["item"], low=0.0, high=2.0))
    assert isinstance(method.teacher.read(context(method), *_asked(task, batch)), XEps)


def _asked(task: Generation, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = task.signed(batch["x"])
    return z, torch.zeros(len(z)), batch["y"], torch.ones(len(z))
