"""HARD: who learns when, where gradients go, every augmentor, every host, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck.functional as F
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, LimbeckError
from limbeck.functional.adversarial import Switch, affine_matrices, switch_mode, warp
from limbeck.methods.classification.hard import Hard
from limbeck.run.running import run
from tests.tiny import shared_tiny as tiny
from tests.tiny import tree_of


def step_of(made: Any, **state: Any) -> tuple[list[Any], RunContext, Any]:
    """The phases of one step, its context and its batch."""
    from limbeck.grammar.role import cast

    method: Any = made.method
    made.engine.prepare(method)
    method._own.update(state)
    stage = made.engine.stages[-1]
    cast(method.roles, tuple(stage.optim))
    ctx = RunContext(made.engine, method, stage, made.engine.device).at(0)
    batch = method.task.example(6)
    return list(stage.step(batch, ctx)), ctx, batch


def reached(method: Any, term: Any) -> set[str]:
    """The roles to which a term's gradient flows."""
    found = set()
    for name, role in method.roles.items():
        params = [p for p in role.module.parameters() if p.requires_grad]
        if not params:
            continue
        grads = torch.autograd.grad(term.total(), params, allow_unused=True, retain_graph=True)
        if any(g is not None and bool(g.any()) for g in grads):
            found.add(name)
    return found


def test_a_warp_of_no_deviation_is_the_identity_and_a_shift_is_in_half_sides() -> None:
    x = torch.rand(3, 2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(3, 6, dtype=torch.float64)
    assert (warp(x, affine_matrices(torch.zeros(6, dtype=torch.float64), noise)) - x).abs().max() < 1e-12
    shift = torch.eye(2, 3, dtype=torch.float64).repeat(3, 1, 1)
    shift[:, 0, 2] = 2 * 2 / 8  # two pixels across
    torch.testing.assert_close(warp(x, shift)[..., :-2], x[..., 2:])
    grid = torch.nn.functional.affine_grid(
        affine_matrices(noise[0].abs() / 5, noise), [3, 2, 6, 8], align_corners=False
    )
    want = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    torch.testing.assert_close(warp(x, affine_matrices(noise[0].abs() / 5, noise)), want)


def test_who_learns_follows_the_thresholds() -> None:
    state, modes = Switch(), []
    for loss in [0.5, 2.0, 2.0, 0.5, 0.1, 0.1]:
        modes.append(state.mode)
        state = switch_mode(state, loss, l_min=0.3, l_max=1.0, decay=0.0)
    assert modes == ["augment", "augment", "student", "student", "student", "augment"]
    for _ in range(2):
        state = switch_mode(state, 0.1, l_min=0.3, l_max=1.0, max_augment_steps=3)
    assert state.mode == "student", "a weak augmentor does not stop training"
    with pytest.raises(ConfigError, match="l_min"):
        switch_mode(state, 0.1, l_min=1.0, l_max=0.3)


def test_terms_are_the_equations_and_reach_one_role(tmp_path: Path) -> None:
    made = tiny("hard", tmp_path)
    method: Any = made.method
    (terms,), ctx, batch = step_of(made, mode="augment")
    x_aug = method.augment(batch, ctx).detach()
    with torch.no_grad():
        z = {n: ctx.signal(n, batch).logits for n in ("student", "teacher")}
        a = {n: ctx.signal(n, {**batch, "x": x_aug}).logits for n in ("student", "teacher")}
    gap = F.kl(a["student"], a["teacher"])
    want = 0.2 * F.kl(a["teacher"], z["teacher"]) - gap.clamp(max=20)
    torch.testing.assert_close(terms["augment"].values.detach(), want)
    assert reached(method, terms["augment"]) == {"augmentor"} and "student" not in terms
    (terms,), ctx, _ = step_of(made, mode="student")
    assert set(terms) == {"ce", "kl", "hard"}
    torch.testing.assert_close(terms["hard"].values.detach(), gap)
    torch.testing.assert_close(terms["kl"].values.detach(), F.kl(z["student"], z["teacher"]))
    assert all(reached(method, t) == {"student"} for t in terms.values())
    torch.testing.assert_close(ctx.signals["student"].logits.detach(), z["student"])


@pytest.mark.parametrize("kind", ["affine-net", "mix", "vae"])
def test_every_augmentor_learns_and_gives_images(kind: str, tmp_path: Path) -> None:
    words = [f"method.augmentor={kind}", *(["stages.vae.steps=3"] if kind == "vae" else [])]
    made = tiny("hard", tmp_path, *words)
    method: Any = made.method
    before = {n: p.clone() for n, p in method.roles["augmentor"].module.named_parameters()}
    made.run()
    after = dict(method.roles["augmentor"].module.named_parameters())
    assert any(not torch.equal(p, before[n]) for n, p in after.items())
    (picture,) = method.extras()["pictures"]
    real, learned = (torch.tensor(row) for row in picture["pixels"])
    assert (
        real.shape == learned.shape and learned.min() >= 0 and learned.max() <= 255 and not torch.equal(real, learned)
    )
    if kind == "vae":
        assert [s.name for s in made.engine.stages] == ["vae", "distil"]


@pytest.mark.parametrize("host", ["kd", "nkd", "nd-loss", "mixup-kd", "{use: bd-kd, mode: offline}"])
def test_attaches_to_other_methods_by_recipe(host: str, tmp_path: Path) -> None:
    made = tiny("hard", tmp_path, f"method.host={host}", "method.start=student", "train.steps=3")
    method: Any = made.method
    before = {k: v.clone() for k, v in method.roles["student"].module.state_dict().items()}
    made.run()
    assert any(not torch.equal(v, before[k]) for k, v in method.roles["student"].module.state_dict().items())
    assert method._own["seen"] == 1 and method.host.state is method.state["host"]


def test_a_random_augmentation_learns_nothing(tmp_path: Path) -> None:
    made = tiny("hard", tmp_path, "method.learn=false", "method.sigmas=[0.1,0.1,0.3,0.1,0.1,0.3]").run()
    sigma = made.method.roles["augmentor"].module.log_sigma.detach().exp()
    torch.testing.assert_close(sigma, torch.tensor([0.1, 0.1, 0.3, 0.1, 0.1, 0.3]))
    assert made.method._own["mode"] in ("augment", "student") and "augmentor" not in made.engine.stages[0].optim


def test_learned_images_and_deviations_are_in_the_result(tmp_path: Path) -> None:
    result = run(tree_of("hard"), tmp_path, quiet=True)
    assert result["pictures"][0]["title"] == "Learned augmentations"
    assert (tmp_path / "result.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.l_min=2"], "l_min"),
        (["method.sigmas=[0.1,0.2]"], "six numbers"),
        (["method.host=uskd"], "teacher"),
        (["method.host=hard"], "another method"),
        (["method.augmentor=mix", "method.patch=3"], "divisor"),
        (["method.augmentor=vae", "method.vae=/nowhere"], "config.json"),
        (["task.data=scikit-learn:wine", "task.student_items=null", "teacher=mlp", "student=mlp"], "images"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        tiny("hard", tmp_path, *words)


def test_a_host_of_its_own_kind_is_refused() -> None:
    with pytest.raises((ConfigError, ValueError), match="another method"):
        Hard(host=Hard())


def test_shifted_images_are_the_source_s_moved_on_a_margin() -> None:
    from limbeck.data.shifted import Shifted
    from limbeck.data.sources import Digits
    from limbeck.data.tables import ScikitTable

    plain, moved = Digits().read(), Shifted(pixels=2).read()
    assert plain.test is not None and moved.test is not None and moved.train.shape == (1, 12, 12)
    items = torch.arange(30)
    x, z = plain.train.fetch(items)["x"], moved.train.fetch(items)["x"]
    assert torch.equal(z[..., 2:-2, 2:-2], x) and float(z.sum()) == pytest.approx(float(x.sum()))
    x, z = plain.test.fetch(items)["x"], moved.test.fetch(items)["x"]
    assert torch.equal(z, moved.test.fetch(items)["x"]) and not torch.equal(z[..., 2:-2, 2:-2], x)
    places = [(a, b) for a in range(5) for b in range(5)]
    assert all(any(torch.equal(z[i, :, a : a + 8, b : b + 8], x[i]) for a, b in places) for i in range(30))
    assert moved.test.fingerprint != Shifted(pixels=2, moved=False).read().test.fingerprint  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"test split|images"):
        Shifted(ScikitTable("wine")).read()
