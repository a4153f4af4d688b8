"""The generation task: how denoisers are trained, and how samplers are evaluated, kept, opened and used for editing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.items import ArrayData, Splits
from limbeck.data.sources import Source, Target
from limbeck.engine.inner import fit
from limbeck.errors import CheckpointCorrupt, ConfigError, DataError, TeacherMismatch
from limbeck.evaluators.sampler import Sampler, write_grid
from limbeck.functional import diffusion
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.method import Built
from limbeck.grammar.optim import Optim
from limbeck.grammar.signal import Signal
from limbeck.models.denoiser import Denoiser
from limbeck.networks import FeatureNet, ResidualMLP
from limbeck.tasks.classification import Classification
from limbeck.tasks.generation import (
    Generation,
    fresh_ids,
    sample_guided,
)
from limbeck.tasks.sampler import (
    SamplerArtifact,
    Students,
    classifier_free,
    conditional,
    reading,
)
from limbeck.tasks.schedules import describe_schedule, make_schedule, read_schedule

EVALUATOR = Sampler(steps=[1, 2], guidance=[0.0, 1.0], samples=30, reference_steps=6, times_more=2)


def bench_of(task: Generation, teacher: nn.Module | None = None) -> Any:
    built = None if teacher is None else Built(teacher)
    return SimpleNamespace(task=task, teacher=built, device=torch.device("cpu"), folder=None)


def probe(task: Generation) -> tuple[Tensor, Tensor]:
    return EVALUATOR.probe(bench_of(task))


@pytest.fixture(scope="module")
def task() -> Generation:
    made = Generation()
    made.load(0)
    return made


def network(guided: bool = False, kind: Any = "v", seed: int = 0) -> ResidualMLP:
    torch.manual_seed(seed)
    net = ResidualMLP(width=16, blocks=1, kind=kind, guidance=guided)
    for p in net.parameters():  # a fresh network answers zero whatever it is asked
        if p.ndim > 1 and not bool(p.any()):
            nn.init.normal_(p, std=0.1)
    return net.eval()


def batch_of(task: Generation, n: int = 5, view: int = 0) -> dict[str, Tensor]:
    ids = torch.arange(n) * 11
    return {**task.train.fetch(ids), "item": ids, "view": torch.full_like(ids, view)}


class Knows(nn.Module):
    """A denoiser that knows the clean sample: every class has its own grey."""

    mean_type, null_condition, guided = "x", 10, False

    def __init__(self) -> None:
        super().__init__()
        self.shade = nn.Parameter(torch.linspace(-0.5, 0.5, 11))

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
        return self.shade[labels].view(-1, 1, 1, 1).expand_as(z)


# -------------------------------------------------------------------------------------------------------- training


def test_noise_is_a_function_of_item_and_epoch(task: Generation) -> None:
    a, b, c = (task.noised(batch_of(task, view=v)) for v in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert not torch.equal(a[1], c[1]) and not torch.equal(a[2], c[2]) and torch.equal(a[0], c[0])
    one = task.noised({k: v[2:3] for k, v in batch_of(task).items()})
    assert all(torch.equal(p[2:3], q) for p, q in zip(a, one, strict=True))
    x, eps, logsnr, z, _ = a
    alpha, sigma = (v.float().view(-1, 1, 1, 1) for v in diffusion.alpha_sigma(logsnr))
    torch.testing.assert_close(z, alpha * x + sigma * eps)
    assert float(x.min()) >= -1 and float(x.max()) <= 1 and float(x.min()) < -0.9


def test_the_same_item_twice_in_a_batch_gets_two_noises() -> None:
    ids = fresh_ids({"item": torch.tensor([5, 5]), "view": torch.tensor([0, 1])})
    assert ids[0] != ids[1]


@pytest.mark.parametrize("kind", ["v", "x", "eps", "both"])
def test_the_denoising_loss_is_zero_for_the_truth(task: Generation, kind: Any) -> None:
    batch = batch_of(task)
    x, eps, *_ = task.noised(batch)

    class Oracle(nn.Module):
        mean_type, null_condition, guided = kind, 10, False

        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
            return diffusion.from_x_eps(x, eps, logsnr, kind)

    term = task.supervised(Signal(task.feed(Oracle(), batch)), batch)
    assert term.values.shape == (5,) and task.counted(batch) is None
    # x from eps loses digits where alpha vanishes, eps from x where sigma does
    assert float(term.values.max()) < 1e-2
    wrong = task.feed(Oracle(), batch)
    wrong.sample = wrong.sample + 1.0
    assert float(task.supervised(Signal(wrong), batch).values.min()) > 0.1


def test_the_denoising_loss_is_the_named_one(task: Generation) -> None:
    batch = batch_of(task)
    out = task.feed(network(), batch)
    got = diffusion.to_x_eps(out.sample, out.z, out.logsnr, "v")
    alpha, sigma = (v.float().view(-1, 1, 1, 1) for v in diffusion.alpha_sigma(out.logsnr))
    v = alpha * out.eps - sigma * out.x
    torch.testing.assert_close(
        task.supervised(Signal(out), batch).values, (out.sample - v).square().flatten(1).mean(1), rtol=1e-3, atol=1e-5
    )
    other = Generation(weight="constant")
    want = (got.x - out.x).square().flatten(1).mean(1)
    torch.testing.assert_close(other.supervised(Signal(out), batch).values, want)


def test_the_class_is_dropped_in_training_alone() -> None:
    task = Generation(drop_condition=0.5)
    task.load()
    seen: list[Tensor] = []

    class Spy(Knows):
        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
            seen.append(labels)
            return super().forward(z, logsnr, labels)

    batch, spy = batch_of(task, 60), Spy()
    task.feed(spy.train(), batch)
    task.feed(spy.eval(), batch)
    dropped = seen[0] == 10
    assert 15 < int(dropped.sum()) < 45 and torch.equal(seen[0][~dropped], batch["y"][~dropped])
    assert torch.equal(seen[1], batch["y"])


def test_a_noised_batch_has_no_denoising_loss(task: Generation) -> None:
    batch = task.example(3)
    out = task.feed(network(guided=True), batch)
    assert out.sample.shape == (3, 1, 8, 8) and set(task.onnx_names) <= set(batch)
    with pytest.raises(DataError, match="needs images"):
        task.supervised(Signal(out), batch)


def test_a_teacher_learns_to_denoise(task: Generation) -> None:
    net = network()
    before = task.evaluate(Built(net), task.valid)

    def loss(module: nn.Module, batch: Any, _: Any) -> Any:
        return task.supervised(Signal(task.feed(module, batch)), batch)

    fit(net, task.teacher_train, loss, Optim(steps=60, batch_size=64, lr=3e-3), seed=0, scope="t")
    after = task.evaluate(Built(net), task.valid, Built(net))
    assert after["denoising_loss"] < 0.8 * before["denoising_loss"]
    assert after["agreement_mse"] == 0.0
    assert task.evaluate(Built(net), task.valid) == task.evaluate(Built(net), task.valid)


# -------------------------------------------------------------------------------------------------------- guidance


def test_guidance_is_one_batch_of_both_conditions() -> None:
    net, z, y = Knows(), torch.randn(3, 1, 8, 8), torch.tensor([0, 4, 9])
    w = torch.tensor([0.0, 1.0, 2.0])
    out = classifier_free(net, y, 10, w)(z, torch.zeros(()))
    shade = net.shade.detach()
    want = (1 + w) * shade[y] - w * shade[10]
    torch.testing.assert_close(out[:, 0, 0, 0], want)
    assert torch.equal(conditional(net, y)(z, torch.zeros(3))[:, 0, 0, 0], shade[y])


def test_w_zero_samples_the_plain_conditional_model(task: Generation) -> None:
    net, (z, y) = network(), probe(task)
    a = sample_guided(net, z, y, 0.0, 3, task.schedule, batch=7)
    b = diffusion.ddim_sample(conditional(net, y), z, 3, task.schedule, "v")
    torch.testing.assert_close(a, ((b.detach() + 1) / 2).clamp(0, 1), rtol=1e-4, atol=1e-5)
    tiny = sample_guided(net, z, y, 1e-6, 3, task.schedule)
    torch.testing.assert_close(a, tiny, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(a, sample_guided(net, z, y, 2.0, 3, task.schedule), atol=1e-2)


def test_guidance_without_a_null_condition(task: Generation) -> None:
    net = Knows()
    net.null_condition = None  # type: ignore[assignment]
    z, y = probe(task)
    with pytest.raises(ConfigError, match="null condition"):
        sample_guided(net, z, y, 1.0, 2, task.schedule)


def test_a_module_that_does_not_say_what_it_means() -> None:
    with pytest.raises(ConfigError, match=r"teacher\.mean_type"):
        reading(nn.Linear(2, 2), "teacher")


# --------------------------------------------------------------------------------------------------------- evaluation


def test_what_is_judged(task: Generation) -> None:
    teacher = network(seed=1)
    bench = bench_of(task, teacher)
    rows = EVALUATOR.rows(bench)
    plain, many = (EVALUATOR.score(rows[name](), bench) for name in ("ddim", "teacher"))  # type: ignore[arg-type]
    assert set(plain) == set(many)
    names = {
        f"{m}_w{w}_n{n}" for m in ("fid", "endpoint_mse", "class_accuracy", "calls") for w in (0, 1) for n in (1, 2)
    }
    assert names | {"fid", "endpoint_mse", "class_accuracy", "calls", "fid_floor"} == set(plain)
    assert plain["calls_w0_n2"] == 2 and plain["calls_w1_n2"] == 4 and many["calls_w1_n2"] == 8
    # nearer to the 6-step endpoints the more steps are taken
    assert many["endpoint_mse"] < plain["endpoint_mse"]
    assert plain["endpoint_mse_w1_n2"] < plain["endpoint_mse_w1_n1"]
    assert plain["fid"] > plain["fid_floor"] > 0
    assert plain["endpoint_mse"] == pytest.approx(
        sum(plain[f"endpoint_mse_w{w}_n{n}"] for w in (0, 1) for n in (1, 2)) / 4
    )
    assert plain.per_item.keys() == {k for k in plain if k.startswith("endpoint_mse")}  # type: ignore[attr-defined]
    for name, errors in plain.per_item.items():  # type: ignore[attr-defined]
        assert len(errors) == EVALUATOR.samples and errors.mean().item() == pytest.approx(plain[name], rel=1e-5)
    assert EVALUATOR.primary in plain and EVALUATOR.baseline in rows


class Drawn(Artifact):
    """What is given, whatever is asked."""

    kind = "sampler"

    def __init__(self, x: Tensor | None) -> None:
        self.x = x

    def draw(self, w: float, n: int, z: Tensor, labels: Tensor, batch: int = 256) -> tuple[Tensor, float] | None:
        return None if self.x is None else (self.x, 1.0)


def test_real_pictures_score_as_real(task: Generation) -> None:
    bench = bench_of(task, network(seed=1))
    y = task.test.y  # type: ignore[attr-defined]
    x = task.test.fetch(torch.arange(len(y)))["x"]
    labels = probe(task)[1]
    real = torch.stack([x[(y == c).nonzero()[0, 0]] for c in labels])

    good = EVALUATOR.score(Drawn(real), bench)
    bad = EVALUATOR.score(Drawn(torch.rand_like(real)), bench)
    assert good["class_accuracy"] > 0.9 > bad["class_accuracy"]
    assert good["fid"] < 0.5 * bad["fid"]


def test_a_sampler_that_can_take_none_of_the_steps(task: Generation) -> None:
    with pytest.raises(ConfigError, match=r"evaluator\.steps"):
        EVALUATOR.score(Drawn(None), bench_of(task, network(seed=1)))


def test_judging_without_a_teacher(task: Generation) -> None:
    assert not EVALUATOR.rows(bench_of(task))
    with pytest.raises(ConfigError, match="against a teacher"):
        EVALUATOR.score(Drawn(torch.zeros(30, 1, 8, 8)), bench_of(task))


def test_the_probe_asks_for_every_class(task: Generation) -> None:
    z, y = probe(task)
    assert z.shape == (30, 1, 8, 8) and set(y.tolist()) == set(range(10))
    assert torch.equal(z, probe(task)[0])


def test_features_of_larger_pictures() -> None:
    net = FeatureNet((3, 40, 40), 5)
    assert net.embed(torch.zeros(2, 3, 40, 40)).shape == (2, 32) and net(torch.zeros(2, 3, 40, 40)).shape == (2, 5)


# ------------------------------------------------------------------------------------------------------------ data


class Pictures(Source):
    """Made-up images."""

    def __init__(self, side: int = 4, across: int = 4, flat: bool = False) -> None:
        self.side, self.across, self.flat = side, across, flat

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        shape = (40, 6) if self.flat else (40, 1, self.side, self.across)
        data = ArrayData(torch.rand(shape), torch.arange(40) % 2)
        return Splits(data, None, None, ["no", "yes"], "label")


def test_rows_of_numbers_are_no_pictures() -> None:
    with pytest.raises(DataError, match="channels, height, width"):
        Generation(Pictures(flat=True)).load()


def test_the_denoiser_fits_the_data() -> None:
    task = Generation(Pictures())
    built = Denoiser(width=8, blocks=1, guided=True).build(task)
    assert reading(built.module) == reading(ResidualMLP(1, 4, 2, 8, 1, guidance=True))
    assert reading(built.module).null_condition == 2 and built.labels == ["no", "yes"]
    with pytest.raises(DataError, match="square"):
        Denoiser().build(Generation(Pictures(4, 6)))
    with pytest.raises(ConfigError, match="makes denoisers"):
        Denoiser().build(Classification())


def test_a_denoisers_checkpoint(tmp_path: Path, task: Generation) -> None:
    model = Denoiser(width=16, blocks=1)
    built = model.build(task)
    model.save(built.module, tmp_path)
    again = Denoiser(width=16, blocks=1, checkpoint=str(tmp_path / "student.safetensors"), mean_type="v")
    assert again.trained and not model.trained
    unsaid = Denoiser(width=16, blocks=1, checkpoint=str(tmp_path / "student.safetensors"))
    with pytest.raises(ConfigError, match=r"mean_type: nothing beside .* says what its output means"):
        unsaid.build(task)
    (tmp_path / "sampler.json").write_text('{"mean_type": "eps"}')  # as a run leaves it
    assert unsaid.build(task).module.kind == "eps"
    state = again.build(task).module.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in built.module.state_dict().items())
    with pytest.raises((CheckpointCorrupt, ConfigError)):
        Denoiser(width=16, blocks=2, checkpoint=str(tmp_path / "student.safetensors")).build(task)
    torch.save({"module." + k: v for k, v in built.module.state_dict().items()}, tmp_path / "wrapped.pt")
    assert "'module.' taken off" in Denoiser(16, 1, checkpoint=str(tmp_path / "wrapped.pt")).build(task).notes[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"drop_condition": 1.0},
        {"eval_batch": 0},
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Generation(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": []},
        {"guidance": [-1.0]},
        {"steps": []},
        {"steps": [0]},
        {"samples": 1},
        {"times_more": 0},
        {"reference_steps": 0},
    ],
)
def test_settings_of_the_evaluator_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sampler(**settings)


def test_classes_that_differ(task: Generation) -> None:
    a, b = Built(network(), labels=["a", "b"]), Built(network(), labels=["b", "a"])
    with pytest.raises(TeacherMismatch):
        task.match(a, b)
    task.match(a, a)


def test_schedules_survive_being_described() -> None:
    u = torch.linspace(0, 1, 7, dtype=torch.float64)
    for schedule in (make_schedule("cosine"), make_schedule("linear")):
        again = read_schedule(json.loads(json.dumps(describe_schedule(schedule))))
        assert torch.equal(schedule.logsnr(u), again.logsnr(u))
    with pytest.raises(ConfigError, match="cannot be rescaled"):
        make_schedule("linear", True)


def test_defaults_by_size(task: Generation) -> None:
    assert task.default_student() == {"use": "denoiser", "guided": True}
    assert task.default_teacher() == {"use": "denoiser", "guided": False}
    large = Generation(Pictures(20, 20))
    large.load()
    assert large.default_teacher()["use"] == "diffusers"


# --------------------------------------------------------------------------------------------------------- sampler


def artifact(task: Generation, many: int | None = 4) -> SamplerArtifact:
    model = Denoiser(width=16, blocks=1, guided=True)
    nets = {n: network(guided=True, seed=n) for n in (1, 2, 4)}
    students = Students(nets, {2: network(guided=True, seed=8)}, {2: network(guided=True, seed=9)}, many)
    built = Built(nets[1], labels=task.labels, model=model)
    return SamplerArtifact(task, built, students, task.schedule, (0.0, 2.0), task.shape, task.labels)


def test_a_sampler_uses_the_student_of_its_steps(task: Generation) -> None:
    sampler = artifact(task)
    for n in (1, 2, 4):
        assert sampler.student_for(n) is sampler.students.steps[n]
    assert sampler.student_for(9) is sampler.students.steps[4]
    assert sampler.student_for(2, "stochastic") is sampler.students.stochastic[2]
    z, y = probe(task)
    for n in (1, 2):
        net = sampler.students.steps[n]
        want = diffusion.ddim_sample(conditional(net, y, torch.ones(30)), z, n, task.schedule, "v").detach()
        got = sampler.sample(30, y, 1.0, n, z=z, batch=7)
        torch.testing.assert_close(got, ((want + 1) / 2).clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_samples_depend_on_seed_and_place_alone(task: Generation) -> None:
    sampler = artifact(task)
    for way in ("deterministic", "stochastic"):
        few = sampler.sample(3, 5, 1.0, 2, 7, way)  # type: ignore[arg-type]
        many = sampler.sample(8, 5, 1.0, 2, 7, way, batch=3)  # type: ignore[arg-type]
        torch.testing.assert_close(few, many[:3], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(few, sampler.sample(3, 5, 1.0, 2, 8, way), atol=1e-3)  # type: ignore[arg-type]
    assert not torch.allclose(sampler.sample(3, 5, 0.0, 2, 7), sampler.sample(3, 5, 2.0, 2, 7), atol=1e-3)
    assert sampler.sample(2).shape == (2, 1, 8, 8)


def test_what_a_sampler_refuses(task: Generation) -> None:
    sampler = artifact(task)
    with pytest.raises(ConfigError, match="one of 1, 2, 4, or 4 and more"):
        sampler.sample(1, steps=3)
    with pytest.raises(ConfigError, match=r"method\.stochastic"):
        sampler.sample(1, steps=4, sampler="stochastic")
    with pytest.raises(ConfigError, match="sampler"):
        sampler.sample(1, steps=2, sampler="random")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="negative"):
        sampler.sample(1, w=-0.5)
    with pytest.warns(UserWarning, match=r"outside \[0, 2\]"):
        sampler.sample(1, w=3.0)
    with pytest.raises(ConfigError, match="class ids from 0 to 9"):
        sampler.sample(2, labels=[1, 10])
    with pytest.raises(ConfigError, match="2 labels for 3 samples"):
        sampler.sample(3, labels=[1, 2])
    with pytest.raises(ConfigError, match="guidance weights"):
        sampler.sample(3, w=torch.ones(2))
    with pytest.raises(ConfigError, match="at least one sample"):
        sampler.sample(0)
    with pytest.raises(ConfigError, match=r"z: got"):
        sampler.sample(2, z=torch.zeros(2, 1, 4, 4))
    with pytest.raises(ConfigError, match="steps"):
        artifact(task, None).sample(1, steps=8)
    with pytest.raises(ConfigError, match="at least 1"):
        sampler.sample(1, steps=0)


def test_a_sampler_comes_back(task: Generation, tmp_path: Path) -> None:
    sampler = artifact(task)
    sampler.save(tmp_path)
    assert (tmp_path / "student.safetensors").is_file() and (tmp_path / "student.json").is_file()
    about = json.loads((tmp_path / "sampler.json").read_text())
    assert about["students"]["steps"]["1"] == "." and about["w"]["range"] == [0.0, 2.0]
    again = SamplerArtifact.load(tmp_path)
    for steps, way in ((1, "deterministic"), (4, "deterministic"), (6, "deterministic"), (2, "stochastic")):
        a, b = (s.sample(4, None, 1.5, steps, 3, way) for s in (sampler, again))  # type: ignore[arg-type]
        assert torch.equal(a, b)
    assert again.size() == sampler.size() and again.labels == task.labels


@pytest.mark.parametrize("harm", ["missing", "no json", "no key", "schedule", "weights", "library"])
def test_a_sampler_that_does_not_come_back(task: Generation, tmp_path: Path, harm: str) -> None:
    artifact(task).save(tmp_path)
    path = tmp_path / "sampler.json"
    about = json.loads(path.read_text())
    if harm == "missing":
        path.unlink()
    elif harm == "no json":
        path.write_text("{")
    elif harm == "weights":
        (tmp_path / "rounds" / "steps-2" / "student.safetensors").write_bytes(b"nothing")
    else:
        if harm == "no key":
            del about["students"]
        elif harm == "schedule":
            about["schedule"]["kind"] = "sudden"
        else:
            about["model"]["library"] = "other"
        path.write_text(json.dumps(about))
    with pytest.raises(CheckpointCorrupt):
        SamplerArtifact.load(tmp_path)


def test_a_sampler_is_judged_within_its_range(task: Generation) -> None:
    sampler = artifact(task)
    sampler.w_range = (0.0, 0.5)
    found = EVALUATOR.score(sampler, bench_of(task, network(seed=1)))
    assert "fid_w0_n1" in found and "fid_w1_n1" not in found and "fid_stochastic_w0_n2" in found
    assert found["calls_w0_n2"] == 2


def test_the_network_of_a_sampler_runs_in_onnx(task: Generation, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from limbeck.export.onnx import OnnxNetwork, write_onnx

    sampler = artifact(task)
    _, facts = write_onnx(sampler, tmp_path)
    assert facts["largest_error"] < 1e-4
    network = OnnxNetwork(tmp_path / "student.onnx", task.onnx_names, sampler.built.contract)
    batch = task.example(5)
    want = task.feed(sampler.built.module, batch).sample.detach()
    torch.testing.assert_close(network.answer(batch).logits, want, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- editing


def test_image_to_image_keeps_more_of_the_picture_with_less_noise(task: Generation) -> None:
    nets: dict[int, nn.Module] = {4: Knows()}
    sampler = SamplerArtifact(task, Built(nets[4]), Students(nets), task.schedule, (0.0, 2.0), task.shape, task.labels)
    x = task.test.fetch(torch.arange(3))["x"]
    # this denoiser ignores z: whatever the strength, it arrives at its class
    made = sampler.variations(x, [0, 4, 9], steps=4, strength=0.5)
    want = (Knows().shade[[0, 4, 9]].detach() + 1) / 2
    torch.testing.assert_close(made[:, 0, 0, 0], want)
    with pytest.raises(ConfigError, match=r"0\.25, 0\.5, 0\.75, 1"):
        sampler.variations(x, 0, steps=4, strength=0.05)
    started = []

    class Spy(Knows):
        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
            started.append((z, logsnr))
            return super().forward(z, logsnr, labels)

    sampler.students.steps[4] = Spy()
    sampler.variations(x, 0, steps=4, strength=0.25)
    assert len(started) == 1
    z, logsnr = started[0]
    assert float(logsnr[0]) == pytest.approx(float(task.schedule.logsnr(0.25)), rel=1e-5)
    assert float(torch.nn.functional.mse_loss(z, task.signed(x))) < 0.5


def test_inpainting_returns_what_is_known(task: Generation) -> None:
    sampler = artifact(task)
    x = task.test.fetch(torch.arange(3))["x"]
    known = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    known[..., :4] = True
    made = sampler.inpaint(x, known, 3, w=1.0, steps=4)
    torch.testing.assert_close(made[..., :4], x[..., :4], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made[..., 4:], x[..., 4:], atol=1e-2)


def test_style_transfer_goes_there_and_back(task: Generation) -> None:
    net = network(guided=True, seed=5)
    many = SamplerArtifact(task, Built(net), Students({64: net}), task.schedule, (0.0, 2.0), task.shape, task.labels)
    x = task.test.fetch(torch.arange(2))["x"]
    same = many.restyle(x, [3, 4], [3, 4], steps=64)
    other = many.restyle(x, [3, 4], [7, 8], w=1.0, steps=64)
    back, away = (float((m - x).abs().mean()) for m in (same, other))
    assert back < 0.05 and away > 2 * back
    few = artifact(task)
    assert few.restyle(x, 3, 4).shape == x.shape  # the encoder of two steps


def test_a_sheet_of_samples(tmp_path: Path) -> None:
    from PIL import Image

    write_grid([torch.zeros(3, 1, 8, 8), torch.ones(3, 1, 8, 8)], tmp_path / "a.png", least=10)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "L" and picture.size == (30, 20)
    write_grid([torch.rand(2, 3, 4, 4)], tmp_path / "b.png", least=100)
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.mode == "RGB" and picture.width >= 100
