"""diffusers' networks and schedulers: what goes in, what comes out, and what the library itself reads back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")

from limbeck.engine.bench import build_model  # noqa: E402
from limbeck.errors import CheckpointCorrupt, ConfigError, ShapeError  # noqa: E402
from limbeck.evaluators.sampler import Sampler  # noqa: E402
from limbeck.functional import diffusion  # noqa: E402
from limbeck.grammar.method import Built, Setup  # noqa: E402
from limbeck.grammar.optim import Optim  # noqa: E402
from limbeck.methods.diffusion.guided_diffusion import GuidedDiffusion  # noqa: E402
from limbeck.models.diffusers_denoiser import (  # noqa: E402
    Diffusers,
    DiffusersDenoiser,
    _time_for_onnx,
    small_config,
)
from limbeck.parts.denoisers import inherit  # noqa: E402
from limbeck.tasks.classification import Classification  # noqa: E402
from limbeck.tasks.generation import Generation  # noqa: E402
from limbeck.tasks.sampler import SamplerArtifact, Students, reading  # noqa: E402
from limbeck.tasks.schedules import (  # noqa: E402
    describe_schedule,
    make_schedule,
    read_schedule,
    read_scheduler,
    scheduler_for,
)

UNET = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4}
CROSS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 8}
DIT = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
ALL: dict[str, dict[str, Any]] = {"UNet2DModel": UNET, "UNet2DConditionModel": CROSS, "DiTTransformer2DModel": DIT}


@pytest.fixture(scope="module")
def task() -> Generation:
    made = Generation()
    made.load(0)
    return made


def built(task: Generation, architecture: Any, guidance: Any = "none", seed: int = 0, **more: Any) -> Built:
    torch.manual_seed(seed)
    made = Diffusers(architecture=architecture, config=ALL[architecture], guidance=guidance, **more).build(task)
    for name, p in made.module.named_parameters():  # what starts at zero hides what goes in
        if not bool(p.any()) and "guidance" not in name and "cond_proj" not in name:
            nn.init.normal_(p, std=0.1)
    made.module.eval()
    return made


def asked(n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.linspace(-4, 4, n), torch.arange(n)


@pytest.mark.parametrize("architecture", ALL)
def test_a_network_is_spoken_to_as_a_denoiser(task: Generation, architecture: str) -> None:
    module = built(task, architecture).module
    assert reading(module).null_condition == 10 and not reading(module).guided
    z, lam, y = asked()
    out = module(z, lam, y)
    assert out.shape == z.shape
    null = torch.full_like(y, 10)
    assert not torch.allclose(out, module(z, lam, null), atol=1e-5)
    assert not torch.allclose(out, module(z, lam + 1.0, y), atol=1e-5)


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("guidance", ["auto", "module"])
def test_guidance_begins_as_nothing_and_can_be_learnt(task: Generation, architecture: str, guidance: str) -> None:
    teacher, student = built(task, architecture), built(task, architecture, guidance, seed=2)
    way = "time_cond" if architecture == "UNet2DConditionModel" and guidance == "auto" else "module"
    assert student.module.way == way and reading(student.module).guided
    inherit(teacher.module, student.module)
    z, lam, y = asked()
    want = teacher.module(z, lam, y)
    w = torch.tensor([0.0, 1.0, 3.0])
    torch.testing.assert_close(student.module(z, lam, y, w), want)
    # two steps: the first moves the layer that starts at zero, the second what lies before it
    opt = torch.optim.SGD(student.module.parameters(), lr=0.05)
    for _ in range(2):
        opt.zero_grad()
        (student.module(z, lam, y, w) - 1.0).square().mean().backward()
        opt.step()
    moved = [
        n for n, p in student.module.named_parameters() if ("guidance" in n or "cond_proj" in n) and p.grad is not None
    ]
    assert moved and all(bool(dict(student.module.named_parameters())[n].grad.any()) for n in moved)
    assert not torch.allclose(student.module(z, lam, y, w), student.module(z, lam, y, w + 1.0), atol=1e-7)


@pytest.mark.parametrize("architecture", ["UNet2DModel", "DiTTransformer2DModel"])
def test_a_copy_has_a_guidance_of_its_own(task: Generation, architecture: str) -> None:
    module = built(task, architecture, "module").module
    nn.init.normal_(module.guidance.out.weight)
    twin = copy.deepcopy(module)
    nn.init.zeros_(twin.guidance.out.weight)
    z, lam, y = asked()
    w = torch.tensor([0.5, 1.0, 2.0])
    plain = module(z, lam, y)
    assert not torch.allclose(module(z, lam, y, w), plain, atol=1e-4)
    torch.testing.assert_close(twin(z, lam, y, w), plain)
    # and what was added for one call is not there in the next
    torch.testing.assert_close(module(z, lam, y), plain)


def test_the_timestep_of_a_log_snr(task: Generation) -> None:
    module = built(task, "UNet2DModel").module
    u = torch.tensor([0.001, 0.25, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        module.timestep(task.schedule.logsnr(u)), torch.tensor([0.0, 249.0, 499.0, 999.0]), rtol=1e-4, atol=1e-3
    )
    discrete = DiffusersDenoiser(module.net, make_schedule("scaled-linear"), "eps", 10)
    t = discrete.timestep(discrete.schedule.logsnr(u))
    torch.testing.assert_close(t, torch.tensor([0.0, 249.0, 499.0, 999.0]), rtol=1e-4, atol=1e-3)


def test_a_dit_does_not_drop_classes_by_itself(task: Generation) -> None:
    module = built(task, "DiTTransformer2DModel").module.train()
    z, lam, y = asked()
    z, lam, y = z.repeat(20, 1, 1, 1), lam.repeat(20), y.repeat(20)
    assert torch.equal(module(z, lam, y), module(z, lam, y))


def test_a_learned_variance_is_left_out(task: Generation) -> None:
    made = Diffusers(architecture="DiTTransformer2DModel", config={**DIT, "out_channels": 2}).build(task)
    z, lam, y = asked()
    assert made.module(z, lam, y, torch.zeros(3)).shape == z.shape


# ------------------------------------------------------------------------------------------------ folders and files


@pytest.mark.parametrize("architecture", ALL)
def test_a_sampler_is_read_back_and_by_the_library(task: Generation, tmp_path: Path, architecture: str) -> None:
    student = built(task, architecture, "auto")
    for name, p in student.module.named_parameters():
        if "guidance" in name or "cond_proj" in name:
            nn.init.normal_(p, std=0.1)
    many = copy.deepcopy(student.module)
    sampler = SamplerArtifact(
        task, student, Students({2: student.module, 4: many}), task.schedule, (0.0, 2.0), task.shape, task.labels
    )
    sampler.save(tmp_path)
    again = SamplerArtifact.load(tmp_path)
    for n in (2, 4):
        torch.testing.assert_close(sampler.sample(3, w=1.0, steps=n), again.sample(3, w=1.0, steps=n))
    net = getattr(diffusers, architecture).from_pretrained(str(tmp_path / "student"), use_safetensors=True)
    state = net.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in student.module.net.state_dict().items())
    scheduler = diffusers.DDIMScheduler.from_pretrained(str(tmp_path / "student"), subfolder="scheduler")
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.timestep_spacing == "trailing"


def test_the_library_alone_samples_the_same(task: Generation, tmp_path: Path) -> None:
    """UNet2DConditionModel takes w itself: diffusers' own loop must arrive where ours does."""
    student = built(task, "UNet2DConditionModel", "time_cond")
    nn.init.normal_(student.module.net.time_embedding.cond_proj.weight, std=0.2)
    sampler = SamplerArtifact(
        task, student, Students({4: student.module}), task.schedule, (0.0, 2.0), task.shape, task.labels
    )
    sampler.save(tmp_path)
    bench: Any = SimpleNamespace(task=task, device=torch.device("cpu"))
    z, y = Sampler(samples=20).probe(bench)
    want = sampler.sample(20, y, 1.5, 4, z=z)

    place = str(tmp_path / "student")
    net = diffusers.UNet2DConditionModel.from_pretrained(place)
    scheduler = diffusers.DDIMScheduler.from_pretrained(place, subfolder="scheduler")
    from safetensors.torch import load_file

    prompts = load_file(tmp_path / "student" / "guidance.safetensors")["prompts"]
    pipeline = diffusers.StableDiffusionPipeline
    w = pipeline.get_guidance_scale_embedding(pipeline, torch.full((20,), 1.5), net.config.time_cond_proj_dim)
    scheduler.set_timesteps(4)
    x = z
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = net(x, t, encoder_hidden_states=prompts[y], timestep_cond=w).sample
            x = scheduler.step(out, t, x).prev_sample
    torch.testing.assert_close(((x + 1) / 2).clamp(0, 1), want, rtol=1e-3, atol=1e-3)


def test_a_teacher_from_a_folder_and_a_student_with_its_one_new_weight(task: Generation, tmp_path: Path) -> None:
    teacher = built(task, "UNet2DConditionModel")
    teacher.model.save(teacher.module, tmp_path, task.labels)
    place = str(tmp_path / "student")
    model = Diffusers(place, "UNet2DConditionModel", guidance="none")
    assert model.trained
    loaded = model.build(task)
    z, lam, y = asked()
    torch.testing.assert_close(loaded.module(z, lam, y), teacher.module(z, lam, y))
    student = Diffusers(place, "UNet2DConditionModel", guidance="time_cond").build(task)
    assert student.module.net.config.time_cond_proj_dim == 256
    torch.testing.assert_close(student.module(z, lam, y, torch.ones(3)), teacher.module(z, lam, y))
    with pytest.raises(ConfigError, match=r"as .* says"):
        Diffusers(place, "UNet2DModel", guidance="none").build(task)


def test_a_pipelines_folder(task: Generation, tmp_path: Path) -> None:
    net = diffusers.UNet2DModel(**{**small_config("UNet2DModel", (1, 8, 8), 10), **UNET})
    net.save_pretrained(tmp_path / "unet")
    scheduler_for(task.schedule, "x").save_pretrained(tmp_path / "scheduler")
    module = Diffusers(str(tmp_path), guidance="none").build(task).module
    assert reading(module).mean_type == "x" and reading(module).null_condition == 10
    assert all(torch.equal(v, module.net.state_dict()[k]) for k, v in net.state_dict().items())


def test_a_schedule_that_is_not_the_teachers(tmp_path: Path) -> None:
    net = diffusers.UNet2DModel(**{**small_config("UNet2DModel", (1, 8, 8), 10), **UNET})
    net.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ConfigError, match="another noise schedule") as caught:
        Diffusers(str(tmp_path), guidance="none").build(Generation())
    assert f"task.schedule={tmp_path / 'scheduler'}" in str(caught.value)
    own = Generation(schedule=str(tmp_path / "scheduler"))
    assert Diffusers(str(tmp_path), guidance="none").build(own).module.mean_type == "eps"


def test_prompts_from_a_pipelines_text_encoder(task: Generation, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    vocabulary = {w: i for i, w in enumerate([*words, *[w + "</w>" for w in words[2:]]])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"), model_max_length=8
    )
    tokenizer.save_pretrained(tmp_path / "pipe" / "tokenizer")
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    transformers.CLIPTextModel(config).save_pretrained(tmp_path / "pipe" / "text_encoder")
    diffusers.UNet2DConditionModel(**{**small_config("UNet2DConditionModel", (1, 8, 8), 10), **CROSS}).save_pretrained(
        tmp_path / "pipe" / "unet"
    )
    pipe = str(tmp_path / "pipe")
    module = Diffusers(pipe, "UNet2DConditionModel", guidance="none", prompt="{}", mean_type="eps").build(task).module
    assert module.prompts.shape == (11, 8, 8) and not isinstance(module.prompts, nn.Parameter)
    assert not torch.equal(module.prompts[0], module.prompts[1]) and reading(module).null_condition == 10


def test_what_diffusers_cannot_give(task: Generation, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="diffusers cannot load"):
        Diffusers(str(tmp_path / "nothing")).build(task)
    with pytest.raises(ConfigError, match="refuses it"):
        Diffusers(config={"no_such_argument": 1}).build(task)
    with pytest.raises(ConfigError, match="makes denoisers"):
        Diffusers().build(Classification())
    with pytest.raises(ConfigError, match="null_condition"):
        built(task, "UNet2DModel", null_condition=11)
    with pytest.raises(ConfigError, match="knows 4 conditions"):
        Diffusers(config={**UNET, "num_class_embeds": 4}).build(task)
    net = built(task, "UNet2DConditionModel").module.net
    with pytest.raises(ConfigError, match=r"student has no guidance input \(time_cond_proj_dim is None\)"):
        DiffusersDenoiser(net, task.schedule, "v", 10, "time_cond")

    class Bare(nn.Module):
        config = None

    with pytest.raises(ConfigError, match="its timestep embedding was not found"):
        DiffusersDenoiser(Bare(), task.schedule, "v", 10, "module")
    with pytest.raises(ValueError, match="prompt"):
        Diffusers(prompt="a digit")


def test_a_damaged_folder(task: Generation, tmp_path: Path) -> None:
    made = built(task, "UNet2DModel", "module")
    made.model.save(made.module, tmp_path, task.labels)
    (tmp_path / "student" / "denoiser.json").write_text("{")
    with pytest.raises(CheckpointCorrupt):
        Diffusers(str(tmp_path / "student")).build(task)


# ------------------------------------------------------------------------------------------- strictly, and not assumed
def bare(folder: Path, **more: Any) -> Path:
    """A network's folder without a scheduler, its weights drawn by a seed."""
    torch.manual_seed(0)
    diffusers.UNet2DModel(**{**small_config("UNet2DModel", (1, 8, 8), 10), **UNET, **more}).save_pretrained(folder)
    return folder


def test_what_an_output_means_is_read_or_asked_for(task: Generation, tmp_path: Path) -> None:
    net = bare(tmp_path / "bare")
    with pytest.raises(ConfigError) as caught:
        build_model(Diffusers(str(net)), task, 0, "teacher")
    line = caught.value.line()
    assert (
        line.startswith("teacher.mean_type: nothing says what the output of ")
        and "set teacher.mean_type=eps or" in line
    )
    made = build_model(Diffusers(str(net), mean_type="eps"), task, 0, "teacher")
    assert reading(made.module).mean_type == "eps"
    assert [n.split(":")[0].split("(")[0] for n in made.notes] == [
        f"loaded all {len(made.module.net.state_dict())} tensors of {net}",
        "nothing says on which noise schedule it was trained",
        "its last condition ",
    ]
    for prediction, kind in (("epsilon", "eps"), ("sample", "x"), ("v_prediction", "v")):
        bare(tmp_path / prediction / "unet")
        scheduler = diffusers.DDIMScheduler(prediction_type=prediction, beta_schedule="squaredcos_cap_v2")
        scheduler.save_pretrained(tmp_path / prediction / "scheduler")
        ours = Generation(schedule="squaredcos", zero_terminal_snr=False)
        for place in (tmp_path / prediction, tmp_path / prediction / "unet"):
            assert reading(Diffusers(str(place)).build(ours).module).mean_type == kind


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0},
        {"_class_name": "UniPCMultistepScheduler", "beta_schedule": "linear", "prediction_type": "flow_prediction"},
    ],
)
def test_schedulers_that_are_no_diffusion_are_not_read_as_one(task: Generation, tmp_path: Path, config: Any) -> None:
    bare(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"of a {config['_class_name']} with .*no diffusion that limbeck knows"):
        Diffusers(str(tmp_path)).build(task)


def test_a_bare_network_teaches_unguided_and_learns_guided(task: Generation, tmp_path: Path) -> None:
    net = str(bare(tmp_path / "bare"))
    assert not reading(build_model(Diffusers(net, mean_type="v"), task, 0, "teacher").module).guided
    assert reading(build_model(Diffusers(net, mean_type="v"), task, 0, "student").module).guided
    assert reading(build_model(Diffusers(net, mean_type="v", guidance="module"), task, 0, "teacher").module).guided


def test_weights_of_a_folder_are_loaded_strictly_and_wrappings_come_off(task: Generation, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = "diffusion_pytorch_model.safetensors"
    state = load_file(bare(tmp_path / "good") / name)

    def change(folder: str, to: dict[str, Tensor]) -> str:
        save_file({k: v.contiguous() for k, v in to.items()}, bare(tmp_path / folder) / name, {"format": "pt"})
        return str(tmp_path / folder)

    place = change("compiled", {f"_orig_mod.{k}": v + 1 for k, v in state.items()})
    made = Diffusers(place, mean_type="v").build(task)
    assert "'_orig_mod.' taken off every name" in made.notes[0]
    assert all(torch.equal(v, state[k] + 1) for k, v in made.module.net.state_dict().items())
    place = change("prefixed", {f"unet.{k}": v for k, v in state.items()})
    with pytest.raises(CheckpointCorrupt, match=r"set teacher\.strip=unet\. to take it off"):
        build_model(Diffusers(place, mean_type="v"), task, 0, "teacher")
    assert "'unet.' taken off" in Diffusers(place, mean_type="v", strip="unet").build(task).notes[0]
    for folder, to, said in (
        ("missing", {k: v for k, v in state.items() if k != "conv_out.bias"}, r"missing conv_out\.bias"),
        ("extra", {**state, "more.weight": torch.ones(1)}, r"unexpected more\.weight"),
        ("shape", {**state, "conv_in.bias": torch.ones(4), "conv_out.bias": torch.ones(2)},
         r"conv_in\.bias is \[4\] and should be \[8\], conv_out\.bias is \[2\]"),
    ):  # fmt: skip
        with pytest.raises((CheckpointCorrupt, ShapeError), match=said):
            Diffusers(change(folder, to), mean_type="v").build(task)


def test_a_checkpoint_of_the_network_or_of_what_stands_around_it(task: Generation, tmp_path: Path) -> None:
    made = built(task, "UNet2DModel", "module")
    torch.save(
        {"ema": made.module.state_dict(), "model": built(task, "UNet2DModel", "module", 1).module.state_dict()},
        tmp_path / "a.pt",
    )
    torch.save({f"module.{k}": v for k, v in made.module.net.state_dict().items()}, tmp_path / "net.pt")
    for file, how in (("a.pt", {"entry": "ema"}), ("net.pt", {})):
        again = Diffusers(config=UNET, guidance="module", mean_type="v", checkpoint=str(tmp_path / file), **how).build(
            task
        )
        state = made.module.net.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in again.module.net.state_dict().items())
    with pytest.raises(ConfigError, match=r"mean_type: nothing beside .*net\.pt says what its output means"):
        Diffusers(config=UNET, checkpoint=str(tmp_path / "net.pt")).build(task)


def test_pictures_of_another_size_or_other_channels_are_refused(task: Generation, tmp_path: Path) -> None:
    sixteen, colour = bare(tmp_path / "sixteen", sample_size=16), bare(tmp_path / "colour", in_channels=3)
    with pytest.raises(ConfigError, match=r"made for images of 16x16, and the task's are 8x8.*task\.size=16"):
        Diffusers(str(sixteen), mean_type="v").build(task)
    Diffusers(str(sixteen), mean_type="v", config={"sample_size": 8}).build(task)
    with pytest.raises(ConfigError, match=r"takes images of 3 channels, and the task's have 1"):
        Diffusers(str(colour), mean_type="v").build(task)
    with pytest.raises(ValueError, match="sample_size alone"):
        Diffusers(str(sixteen), config={"in_channels": 1})


def test_a_teacher_told_in_words_needs_them(task: Generation, tmp_path: Path) -> None:
    diffusers.UNet2DConditionModel(**{**small_config("UNet2DConditionModel", (1, 8, 8), 10), **CROSS}).save_pretrained(
        tmp_path
    )
    model = Diffusers(str(tmp_path), "UNet2DConditionModel", mean_type="eps")
    with pytest.raises(ConfigError, match="neither a text encoder nor its prompts"):
        build_model(model, task, 0, "teacher")
    assert any("told for each class is new" in note for note in build_model(model, task, 0, "student").notes)


# -------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("name", ["ddpm", "scaled-linear", "squaredcos"])
def test_schedules_of_the_library(name: str, tmp_path: Path) -> None:
    scheduler = read_scheduler(name, False)
    schedule = make_schedule(name)
    u = (torch.tensor([0, 499, 998]) + 1).double() / 1000
    torch.testing.assert_close(
        schedule.alpha(u).square(), scheduler.alphas_cumprod[[0, 499, 998]].double(), rtol=1e-5, atol=1e-7
    )
    scheduler.save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "scheduler_config.json"):
        again = make_schedule(str(place))
        torch.testing.assert_close(schedule.logsnr(u), again.logsnr(u))
    described = read_schedule(json.loads(json.dumps(describe_schedule(schedule))))
    assert torch.equal(described.logsnr(u), schedule.logsnr(u))
    # and back: the table that is written is the one that was read
    written = scheduler_for(schedule, "v")
    torch.testing.assert_close(written.alphas_cumprod[:990], scheduler.alphas_cumprod[:990], rtol=1e-3, atol=1e-6)


def test_a_schedule_that_does_not_end_in_noise_is_named() -> None:
    with pytest.warns(UserWarning, match="not 0"):
        Generation(schedule="scaled-linear").load()
    Generation(schedule="scaled-linear", zero_terminal_snr=True).load()


@pytest.mark.parametrize("name", ["cosine", "linear", "squaredcos"])
def test_an_exported_graph_reads_the_same_timestep(name: str) -> None:
    schedule, logsnr = make_schedule(name), torch.linspace(-25, 25, 501)
    torch.testing.assert_close(
        _time_for_onnx(schedule, logsnr).double(), schedule.time(logsnr).double(), rtol=1e-5, atol=2e-7
    )


def test_unknown_schedules(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cosine"):
        make_schedule("cosin")
    (tmp_path / "scheduler_config.json").write_text('{"beta_schedule": "none such"}')
    with pytest.raises(ConfigError, match="no scheduler's configuration"):
        make_schedule(str(tmp_path))


# ----------------------------------------------------------------------------------------------------- distillation


@pytest.mark.parametrize("architecture", ALL)
def test_guided_distillation_of_a_network_of_the_library(task: Generation, architecture: str, tmp_path: Path) -> None:
    from limbeck.engine.engine import Engine
    from limbeck.engine.settings import EngineSettings

    teacher, student = built(task, architecture), built(task, architecture, "auto", seed=3)
    method = GuidedDiffusion(start_steps=2, w_max=2.0)
    method.bind(Setup(task, student, teacher, Optim(steps=2, batch_size=4, lr=1e-3)))
    Engine(EngineSettings(device="cpu"), folder=tmp_path).run(method)
    sampler = method.artifact()
    assert isinstance(sampler, SamplerArtifact) and sorted(sampler.students.steps) == [1, 2]
    assert sampler.sample(2, w=1.0, steps=1).shape == (2, 1, 8, 8)


def test_a_discrete_teacher_and_its_steps() -> None:
    task = Generation(schedule="squaredcos", zero_terminal_snr=True)
    task.load()
    module = built(task, "UNet2DModel", mean_type="v").module
    z, lam, y = asked(2)
    pair = diffusion.to_x_eps(module(z, lam, y), z, lam, "v")
    assert bool(torch.isfinite(pair.x).all())
