"""ProlificDreamer: what moves whom, what each loss is, scenes that cameras see, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.artifacts.scene import SceneArtifact, read_ply
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.evaluators.scenes import Scenes, Shown
from limbeck.functional import splatting
from limbeck.grammar.method import Built
from limbeck.grammar.signal import Signal
from limbeck.networks.scenes import Field, Gaussians, Pictures, Rendered, check_scene
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.tasks.prompted import side_of
from limbeck.tasks.sampler import reading
from limbeck.tasks.views import Photos, Views, around, read_photos
from tests.tiny import Tiny, tiny

EXACT = ("teacher={use: mixture}", "evaluator.teacher_steps=0")
"""No teacher is trained."""


def phases(made: Tiny, step: int = 0) -> list[Any]:
    """The phases of a step, everybody learning as the stage has it."""
    from limbeck.grammar.role import cast

    method: Any = made.method
    made.engine.prepare(method)
    stage = made.engine.stages[0]
    cast(method.roles, tuple(stage.optim))
    batch = next(iter(made.engine.batches(stage, step, step + 1)))[0]
    return list(method.step(batch, RunContext(made.engine, method, stage, made.engine.device).at(step)))


def test_sds_is_vsd_with_the_noise_in_place_of_phi(tmp_path: Path) -> None:
    grads = {}
    for loss in ("sds", "vsd", "frozen"):
        made = tiny("prolificdreamer", tmp_path / loss, *EXACT, f"method.loss={loss}", "method.phi=small")
        first, *rest = phases(made)
        assert [set(p) for p in rest] == ([{"phi"}] if loss == "vsd" else [])
        (term,) = first.values()
        (grads[loss],) = torch.autograd.grad(term.total(), made.method.roles["student"].module.pixels)
        assert term.values.abs().max() == 0, "a surrogate whose value means nothing"
        assert float(term.shown()) > 0
    assert all(not torch.allclose(grads["sds"], grads[o]) for o in ("vsd", "frozen"))


def test_an_exact_phi_stands_still_at_the_real_pictures(tmp_path: Path) -> None:
    """Particles that are the real images of the class are not moved at guidance 1, whatever the noise."""
    made = tiny("prolificdreamer", tmp_path, *EXACT, "method.phi=analytic", "method.guidance_scale=1")
    task: Any = made.bench.task
    data = task.pictures.teacher_train
    real = data.fetch((data.y == task.wanted).nonzero()[:, 0])["x"]
    scene = Pictures(len(real), task.shape)
    scene.pixels.data = task.signed(real)
    made.method.roles["student"].module = scene
    made.method.particles = len(real)  # type: ignore[attr-defined]
    (terms,) = phases(made)
    (grad,) = torch.autograd.grad(terms["vsd"].total(), scene.pixels)
    assert grad.abs().max() < 1e-4


def test_a_greatest_noise_level_moves_with_the_steps() -> None:
    recipe: Any = build(check(load_tree("prolificdreamer", [], preset="official"))).method
    assert [round(recipe.highest(s), 2) for s in (0, 5000, 5001, 9000)] == [0.98, 0.98, 0.5, 0.5]
    recipe = build(check(load_tree("prolificdreamer", ["method.t_max=[0.9, 0.5, 100]"]))).method
    assert round(recipe.highest(50), 2) == 0.7


def test_phi_alone_learns_in_its_phase_and_never_moves_the_teacher(tmp_path: Path) -> None:
    made = tiny("prolificdreamer", tmp_path, "teach.steps=2", "method.phi_steps=2")
    _, *rest = phases(made)
    assert len(rest) == 2
    for terms in rest:
        total = terms["phi"].total()
        pixels = made.method.roles["student"].module.pixels
        params = list(made.method.roles["phi"].parameters().values())
        teacher = list(made.method.roles["teacher"].module.parameters())
        grads = torch.autograd.grad(total, [pixels, *params], allow_unused=True, retain_graph=True)
        assert grads[0] is None and any(g is not None and bool(g.any()) for g in grads[1:])
        assert not any(p.requires_grad for p in teacher)


@pytest.mark.parametrize("scene", ["gaussians", "field"])
def test_scenes_that_cameras_see(scene: str, tmp_path: Path) -> None:
    small = (
        "{use: gaussians, particles: 2, count: 12}"
        if scene == "gaussians"
        else "{use: field, particles: 2, width: 8, samples: 6}"
    )
    made = tiny(
        "prolificdreamer",
        tmp_path,
        f"student={small}",
        "teach.steps=2",
        "train.steps=2",
        "method.phi_guidance_scale=2",
        "method.random_background=0.5",
        "method.entropy=0.1",
    )
    phi: Any = made.method.roles["phi"].module
    assert phi.camera is not None
    made.run()
    artifact: Any = made.method.artifact()
    assert isinstance(artifact, SceneArtifact)
    artifact.frames = 3
    artifact.save(tmp_path)
    assert (tmp_path / "turntable_1.gif").is_file()
    if scene == "gaussians":
        found = read_ply(tmp_path / "point_cloud_1.ply")
        module: Any = made.method.roles["student"].module
        torch.testing.assert_close(found["means"], module.means[1].detach())
        torch.testing.assert_close(found["quats"], module.quats[1].detach())
        assert found["sh"].shape == (12, 1, 3)


def test_ply_keeps_what_depends_on_the_direction(tmp_path: Path) -> None:
    from limbeck.artifacts.scene import write_ply

    scene = Gaussians(1, (3, 8, 8), count=5, sh_degree=2)
    torch.nn.init.normal_(scene.sh)
    write_ply(tmp_path / "a.ply", scene)
    torch.testing.assert_close(read_ply(tmp_path / "a.ply")["sh"], scene.sh[0].detach())
    (tmp_path / "b.ply").write_bytes((tmp_path / "a.ply").read_bytes()[:-4])
    with pytest.raises(DataError, match="bytes"):
        read_ply(tmp_path / "b.ply")


def test_a_camera_that_phi_is_told_of_matters_and_zero_is_no_camera(tmp_path: Path) -> None:
    made = tiny(
        "prolificdreamer",
        tmp_path,
        "student={use: gaussians, particles: 1, count: 6}",
        "teach.steps=2",
        "train.batch_size=2",
    )
    phi: Any = made.method.roles["phi"].module
    z, lam, y = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, 3])
    torch.testing.assert_close(phi(z, lam, y, camera=torch.ones(2, 16)), phi(z, lam, y)), "nothing at first"
    torch.nn.init.normal_(phi.camera[-1].weight)
    assert not torch.allclose(phi(z, lam, y, camera=torch.ones(2, 16)), phi(z, lam, y))
    base: Any = made.method.roles["teacher"].module
    before = base(z, lam, y)
    phi(z, lam, y, camera=torch.ones(2, 16))
    assert torch.equal(base(z, lam, y), before), "the teacher is never told"


def test_any_scene_by_the_protocol() -> None:
    def render(params: Any, camera: Any) -> Tensor:
        return params["colour"].sigmoid()[:, :, None, None].expand(-1, -1, camera.height, camera.width)

    scene = Rendered(render, {"colour": torch.zeros(3, 1)}, (1, 8, 8))
    made = scene(torch.eye(4).expand(2, 4, 4), torch.eye(3).expand(2, 3, 3), torch.tensor([0, 2]))
    made.sum().backward()
    assert scene.params["colour"].grad[1] == 0 != scene.params["colour"].grad[2]
    with pytest.raises(ShapeError, match="params"):
        Rendered(render, {"a": torch.zeros(3, 1), "b": torch.zeros(2, 1)}, (1, 8, 8))
    with pytest.raises(ConfigError, match="255"):
        check_scene(torch.full((2, 1, 8, 8), 255.0), (1, 8, 8), 2)
    with pytest.raises(ShapeError):
        check_scene(torch.zeros(2, 8, 8), (1, 8, 8), 2)


def photographs(n: int, key: int) -> Photos:
    """Drawn photographs: a few coloured Gaussians from all around."""
    g = torch.Generator().manual_seed(7)
    truth = Gaussians(1, (3, 16, 16), count=8)
    for p in truth.parameters():
        p.data = torch.randn(p.shape, generator=g) * 0.3 + (
            -2.0 if p is truth.log_scales else 1.0 if p is truth.logits else 0
        )
    turn = torch.linspace(0, 360, n + 1)[:-1] + key
    batch = around(turn, torch.full((n,), 20.0), torch.full((n,), 2.5), torch.full((n,), 40.0), 16, 16)
    with torch.no_grad():
        x = truth(batch["camera"], batch["K"], torch.zeros(n, dtype=torch.long))
    return Photos(x, batch["camera"], batch["K"])


def test_a_scene_is_fitted_to_photographs_and_judged_by_unseen_ones(tmp_path: Path) -> None:
    task = Views(photos="given")
    task.give(photographs(8, 0), photographs(4, 10), photographs(4, 10))
    torch.manual_seed(0)
    scene = Gaussians(1, (3, 16, 16), count=30, radius=0.5)
    before = task.evaluate(Built(scene), task.test)
    optim = torch.optim.Adam(scene.parameters(), lr=0.03)
    ids = torch.arange(8)
    for _ in range(25):
        batch = {**task.train.fetch(ids), "item": ids}
        loss = task.supervised(Signal(task.feed(scene, batch)), batch).values.mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
    after = task.evaluate(Built(scene), task.test)
    assert after["psnr"] > before["psnr"] + 1
    with pytest.raises(DataError, match="photographs"):
        task.supervised(Signal(None), {"item": ids})


def test_photographs_in_nerfs_layout(tmp_path: Path) -> None:
    from PIL import Image

    gl = torch.eye(4)
    gl[2, 3] = 3.0  # three behind the middle, looking along -z
    for split, n in (("train", 2), ("test", 1)):
        frames = [{"file_path": f"./{split}_{i}", "transform_matrix": gl.tolist()} for i in range(n)]
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.8, "frames": frames}))
        for i in range(n):
            Image.new("RGBA", (8, 8), (255, 0, 0, 0 if i else 255)).save(tmp_path / f"{split}_{i}.png")
    found = read_photos(str(tmp_path), "train")
    assert found is not None
    assert found.pictures[0, :, 0, 0].tolist() == [1, 0, 0] and found.pictures[1, :, 0, 0].tolist() == [1, 1, 1]
    assert (found.cameras[0] @ torch.tensor([0.0, 0, 0, 1]))[2] == 3, "the middle lies ahead"
    task = Views(photos=str(tmp_path))
    task.load()
    assert task.needs.inputs == (3, 8, 8) and task.default_evaluator()["metric"] == "psnr"
    (tmp_path / "train_0.png").unlink()
    with pytest.raises(DataError, match="train_0"):
        read_photos(str(tmp_path), "train")


def test_the_evaluator_tells_noise_and_collapse_from_real_pictures(tmp_path: Path) -> None:
    made = tiny("prolificdreamer", tmp_path, *EXACT, "method.loss=sds")
    judge = Scenes(classifier=False)
    real = made.bench.task.pictures.test.fetch(torch.arange(200))  # type: ignore[attr-defined]
    threes = real["x"][real["y"] == 3][:12]
    told = {
        "real": judge.score(Shown(threes), made.bench),
        "one": judge.score(Shown(threes[:1].expand(12, -1, -1, -1)), made.bench),
        "noise": judge.score(Shown(torch.rand(12, 1, 8, 8)), made.bench),
    }
    assert told["real"]["energy"] < min(told["one"]["energy"], told["noise"]["energy"])
    assert told["one"]["diversity"] < 1e-3 and told["one"]["distinct"] == pytest.approx(1 / 12)
    assert told["noise"]["nearest"] > 1.3 > told["real"]["nearest"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.t_min=0.5", "method.t_max=0.4"], "t_max"),
        (["method.t_max=1.5"], "at most 1"),
        (["method.t_max=[5, 0.9]"], "t_max"),
        (["method.guidance_scale=-1"], "guidance_scale"),
        (["task.label=ten"], "task.label"),
        (["task.fovy=[70, 40]"], "fovy"),
        (["student=mlp"], "scene"),
        (["evaluator.metric=psnr"], "evaluator.metric"),
        ([*EXACT, "student.particles=1", "evaluator.metric=diversity"], "one particle"),
        ([*EXACT, "method.phi=lora"], "no layers"),
        ([*EXACT, "method.phi=analytic", "student={use: gaussians, particles: 2, count: 4}"], "images"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        if any(w.startswith(("method.", "task.fovy")) for w in words) and EXACT[0] not in words:
            build(check(load_tree("prolificdreamer", words)))
        tiny("prolificdreamer", tmp_path, *words)


def test_fields_are_seen_from_where_the_camera_stands() -> None:
    torch.manual_seed(0)
    field = Field(1, (1, 9, 9), width=8, samples=32)
    batch = around(torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([2.0]), torch.tensor([60.0]), 9, 9)
    picture, cover = field.trace(batch["camera"], batch["K"], torch.tensor([0]))
    assert cover is not None and cover[0, 0, 4, 4] > 0.9 > 0.5 > cover[0, 0, 0, 0], "a bump in the middle"
    bright, _ = field.trace(batch["camera"], batch["K"], torch.tensor([0]), torch.ones(1, 1))
    torch.testing.assert_close(bright - picture, (1 - cover) * (1 - field.behind.sigmoid().view(1, 1, 1, 1)))
    assert splatting.SH0 > 0


def pipeline(folder: Path, kind: str) -> str:
    """A latent diffusion pipeline of a few hundred weights, as diffusers lays it out."""
    import diffusers
    import transformers

    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz,"]
    vocabulary = {w: i for i, w in enumerate([*words, *[w + "</w>" for w in words[2:]]])}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=8
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    words_config = transformers.CLIPTextConfig(
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
    torch.manual_seed(0)
    transformers.CLIPTextModel(words_config).save_pretrained(folder / "text_encoder")
    diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
    ).save_pretrained(folder / "unet")
    diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    ).save_pretrained(folder / "vae")
    diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind
    ).save_pretrained(folder / "scheduler")
    return str(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["epsilon", pytest.param("v_prediction", marks=pytest.mark.expensive)])
def test_a_pipeline_of_texts_teaches_in_its_latents(kind: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "pipe", kind)
    made = tiny(
        "prolificdreamer",
        tmp_path / "run",
        f"teacher={{use: stable-diffusion, name: {folder}}}",
        "task={use: views, prompt: a cup, size: 16, latents: [4, 2], schedule: scaled-linear}",
        "student={use: gaussians, particles: 2, count: 10}",
        "evaluator={use: scenes, metric: spread, classifier: false}",
        "train.steps=2",
        "train.batch_size=2",
    )
    teacher: Any = made.bench.teacher.module  # type: ignore[union-attr]
    assert reading(teacher).mean_type == {"epsilon": "eps", "v_prediction": "v"}[kind]
    assert teacher.prompts.shape[0] == 7 and not torch.equal(teacher.prompts[0], teacher.prompts[2])
    phi: Any = made.method.roles["phi"].module
    assert phi.names and all("vae" not in n and "to_" in n for n in phi.names)
    x = torch.rand(1, 3, 16, 16).requires_grad_()
    z = teacher.encode(x)
    torch.testing.assert_close(z, teacher.vae.encode(x).latent_dist.mean * 0.18215)
    made.run()
    first, second = phases(made)
    (term,) = first.values()
    grads = torch.autograd.grad(term.total(), list(made.method.roles["student"].module.parameters()), allow_unused=True)
    assert any(g is not None and bool(g.any()) for g in grads), "the gradient goes through the encoder"
    assert set(second) == {"phi"}


def test_sides_are_told_apart() -> None:
    turn = torch.tensor([0.0, 90.0, 180.0, 270.0, 20.0, 0.0, 0.0])
    up = torch.tensor([0.0, 0.0, 0.0, 0.0, 30.0, 80.0, -80.0])
    batch = around(turn, up, torch.ones(7), torch.full((7,), 50.0), 8, 8)
    assert side_of(batch["camera"]).tolist() == [0, 1, 2, 1, 0, 3, 4]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["teacher={use: stable-diffusion, name: nowhere}"], "prompt"),
        (["task={use: views, prompt: a cup, size: 30}"], "multiple of 8"),
        (
            [
                "task={use: views, prompt: a cup, size: 64}",
                "teacher={use: stable-diffusion, name: nowhere}",
                "evaluator.metric=spread",
            ],
            "vae",
        ),
        (["task={use: views, prompt: a cup, size: 64}", "teacher={use: mixture}", "evaluator.metric=energy"], "spread"),
    ],
)
def test_what_a_teacher_of_texts_needs(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny("prolificdreamer", tmp_path, *words)


@pytest.mark.filterwarnings("ignore")
def test_a_mesh_is_taken_out_of_a_field_moved_and_painted(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    torch.manual_seed(0)
    from safetensors.torch import save_file

    field = Field(1, (1, 8, 8), width=8)
    save_file(field.state_dict(), tmp_path / "field.safetensors")
    usual = ("teach.steps=2", "train.steps=2", "train.batch_size=2")
    moved = tiny(
        "prolificdreamer",
        tmp_path / "geometry",
        *usual,
        f"student={{use: mesh, source: {tmp_path / 'field.safetensors'}, resolution: 10}}",
        "method.loss=sds",
        "method.smooth=1",
        "method.flat=1",
    )
    moved.run()
    mesh: Any = moved.method.roles["student"].module
    assert len(mesh.faces) > 20 and bool(mesh.offsets.any())
    artifact: Any = moved.method.artifact()
    artifact.frames = 2
    artifact.save(tmp_path)
    assert (tmp_path / "mesh.obj").read_text().count("\nf ") == len(mesh.faces)
    painted = tiny(
        "prolificdreamer",
        tmp_path / "texture",
        *usual,
        f"student={{use: mesh, source: {tmp_path / 'student.safetensors'}, stage: texture}}",
    )
    again: Any = painted.method.roles["student"].module
    torch.testing.assert_close(again.vertices, mesh.corners().detach())
    before = again.paint.detach().clone()
    painted.run()
    assert not torch.equal(again.paint, before) and not again.offsets.any()
    for words, said in (
        (f"student={{use: mesh, source: {tmp_path / 'field.safetensors'}, threshold: 1000}}", "no such surface"),
        (f"student={{use: mesh, source: {tmp_path / 'field.safetensors'}, particle: 3}}", "particle below 1"),
        ("student={use: mesh, particles: 2}", "a mesh is one"),
    ):
        with pytest.raises(ConfigError, match=said):
            tiny("prolificdreamer", tmp_path / "wrong", words)
    with pytest.raises(ConfigError, match="corners move"):
        tiny("prolificdreamer", tmp_path / "wrong", *usual, "method.smooth=1")
