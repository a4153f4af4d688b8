"""KD-Loss: what each teacher learns and adds, which coordinates count, and where nothing pulls away from the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.data.keypoints import KeypointSet
from limbeck.errors import ConfigError, DataError, TeacherMismatch
from limbeck.functional.landmarks import fit_shapes
from limbeck.grammar.method import Built
from limbeck.methods.pose.landmark_kd import LandmarkKd
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.tasks.keypoints import Keypoints, smoothed
from tests.tiny import tiny


def faces(folder: Path, n: int = 20, missing: bool = False) -> Keypoints:
    """Random poses of 5 points in images of noise; of the task's training poses some points are not labelled."""
    g = np.random.default_rng(0)
    for name in ("train", "valid", "test"):
        points = g.uniform(4, 28, (n, 5, 2)).astype(np.float32)
        if missing:
            points[::3, 1] = np.nan
        np.savez(folder / f"{name}.npz", x=g.integers(0, 255, (n, 32, 32)).astype(np.uint8), keypoints=points)
    task = Keypoints(data=KeypointSet(str(folder)), student_items=n - 4)
    task.load(0)
    return task


def terms_of(method: LandmarkKd, p: Tensor, g: Tensor, tough: Tensor, tolerant: Tensor) -> dict[str, Tensor]:
    """Means of a step's terms, without a run."""
    found = {"main": method.distance(p, g, tolerant)}
    found["tough"], found["tolerant"] = method.assistance(p, g, tough, 0), method.assistance(p, g, tolerant, 1)
    return {n: v.mean() for n, v in found.items()}


def by_hand(method: str, p: float, g: float, tough: float, tolerant: float) -> tuple[float, float, float]:
    """One coordinate, case by case, from the region tables of both presets."""
    s, b, ramp = (3.0, 0.15, False) if method == "code" else (1.0, 0.4, True)
    e, d = abs(p - g), abs(tolerant - g)
    main = s * e if e <= d else e * e + s * d - d * d
    added = []
    for t, (alpha, beta) in ((tough, (1.9, -0.45)), (tolerant, (1.8, -0.4))):
        if method == "figure":
            alpha, beta = 1.0, -0.5
        d = abs(t - g)
        w = alpha if e > d else beta if e >= b * d else beta * e / (b * d) if ramp else 0.0
        added.append(w * abs(e - d) if e else 0.0)
    return main, added[0], added[1]


@pytest.mark.parametrize("preset", ["code", "figure"])
def test_terms_by_hand(preset: Any) -> None:
    gen = torch.Generator().manual_seed(1)
    p, g, tough, tolerant = (torch.rand(4, 6, 2, generator=gen, dtype=torch.float64) - 0.5 for _ in range(4))
    p[0, 0] = g[0, 0]
    p[1] = g[1] + 0.5 * (tough[1] - g[1])
    p[2] = g[2] + 0.1 * (tough[2] - g[2])
    want = [
        by_hand(preset, *(float(v) for v in row))
        for row in zip(p.flatten(), g.flatten(), tough.flatten(), tolerant.flatten(), strict=True)
    ]
    found = terms_of(LandmarkKd(preset=preset), p, g, tough, tolerant)
    for i, name in enumerate(("main", "tough", "tolerant")):
        assert float(found[name]) == pytest.approx(sum(w[i] for w in want) / len(want), rel=1e-9), name


def test_no_region_pulls_away_from_the_truth() -> None:
    gen = torch.Generator().manual_seed(2)
    g, tough, tolerant = (torch.rand(400, 3, 2, generator=gen, dtype=torch.float64) - 0.5 for _ in range(3))
    p = (torch.rand(400, 3, 2, generator=gen, dtype=torch.float64) - 0.5).requires_grad_()
    method = LandmarkKd()
    found = terms_of(method, p, g, tough, tolerant)
    total = sum(method.weights[n] * v for n, v in found.items())
    (slope,) = torch.autograd.grad(total, p)  # type: ignore[arg-type]
    assert bool((slope * (p.detach() - g) >= 0).all()) and bool(slope.any())
    raw = LandmarkKd(mirrored=False)
    same = torch.sign(p.detach() - g) == torch.sign(tough - g)
    a, b = method.assistance(p, g, tough, 0), raw.assistance(p, g, tough, 0)
    torch.testing.assert_close(a[same], b[same])
    assert not torch.allclose(a[~same], b[~same])


def test_own_constants_replace_the_presets() -> None:
    own = LandmarkKd(preset="figure", slope=2, boundary=0.3, ramp=False, alpha_tough=4, beta_tolerant=0)
    assert own.constants == (2, 0.3, False, (4, 1.0), (-0.5, 0))
    p = torch.rand(3, 2, 2)
    g = torch.zeros_like(p)
    assert not LandmarkKd(boundary=1, beta_tough=0).assistance(p, g, g + 2, 0).any()  # the student is everywhere nearer
    torch.testing.assert_close(LandmarkKd(main="l1").distance(p, g, None), p)
    torch.testing.assert_close(LandmarkKd(main="smooth_l1").distance(p + 1, g, None), p + 0.995)
    torch.testing.assert_close(LandmarkKd(assist="mse").assistance(p, g, g + 2, 1), (p - 2).square())


def test_smooth_poses_are_of_low_rank_and_of_training_poses_alone(tmp_path: Path) -> None:
    task = faces(tmp_path)
    soft: Any = task.part("smooth:0.7")
    shapes = fit_shapes(task.normalised(task.loaded().points).double().flatten(1), 0.7)  # type: ignore[attr-defined]
    about = soft.normalised(soft.teacher_train.points).double().flatten(1) - shapes.mean
    b = about @ shapes.components.T
    torch.testing.assert_close(b @ shapes.components, about, rtol=0, atol=1e-6)
    assert len(shapes.variances) < 10 and bool((b.abs() <= 3 * shapes.variances.sqrt() + 1e-6).all())
    # the student's items keep their numbers; poses for choosing and evaluation are the true ones
    ids = torch.arange(4)
    assert torch.equal(soft.train.fetch(ids)["x"], task.train.fetch(ids)["x"])
    assert not torch.equal(soft.train.fetch(ids)["points"], task.train.fetch(ids)["points"])
    assert soft.test is task.test and soft.valid is task.valid
    assert soft.teacher_train.fingerprint != task.teacher_train.fingerprint
    assert task.part("smooth:0.7") is soft and task.part("smooth:0.9") is not soft


def test_points_that_are_not_labelled_are_filled_and_stay_unlabelled(tmp_path: Path) -> None:
    task = faces(tmp_path, missing=True)
    soft: Any = task.part("smooth:0.8")
    data = soft.teacher_train
    assert bool(data.points.isfinite().all()) and not bool(data.where.all())
    # of poses on a line through shape space, what is missing is found again
    t = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None, None]
    line = torch.rand(1, 4, 2, dtype=torch.float64) + t * torch.rand(1, 4, 2, dtype=torch.float64)
    where = torch.ones(30, 4, dtype=torch.bool)
    where[::7, 2] = False
    torch.testing.assert_close(smoothed(line.where(where[..., None], torch.nan), where, 0.9), line, atol=0.02, rtol=0)


def test_unlabelled_points_change_nothing(tmp_path: Path) -> None:
    from limbeck.engine.context import RunContext
    from limbeck.grammar.role import cast

    made = tiny("landmark-kd", tmp_path, "task.data.items=24")
    method: Any = made.method
    made.engine.prepare(method)
    stage = made.engine.stages[0]
    cast(method.roles, tuple(stage.optim))
    batch = method.task.example(4)
    batch["where"][:, 2] = False
    found = []
    for value in (0.0, 1e4, torch.nan):
        batch["points"][:, 2] = value
        terms = method.step(batch, RunContext(made.engine, method, stage, made.engine.device))
        assert set(terms) == {"main", "tough", "tolerant"} and [t.weight for t in terms.values()] == [2, 1, 1]
        total = sum(t.weight * t.total() / t.n() for t in terms.values())
        own = list(method.roles["student"].parameters().values())
        found.append([g.clone() for g in torch.autograd.grad(total, own)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    with pytest.raises(TeacherMismatch, match="order"):
        method.setup.others["tolerant"] = Built(
            method.setup.built["tolerant"].module, labels=list(reversed(method.task.labels))
        )
        method.bind(method.setup)


def test_who_takes_part() -> None:
    def names(**settings: Any) -> list[str]:
        return list(LandmarkKd(**settings).participants)

    assert names() == ["teacher", "tolerant"]
    # main=kd asks the tolerant teacher where to switch
    assert names(tough_weight=0) == names(tough_weight=0, tolerant_weight=0) == ["tolerant"]
    assert names(tolerant_weight=0, main="l2") == ["teacher"]
    assert names(tough_weight=0, tolerant_weight=0, main="l1") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.beta_tough=0.5"], "beta_tough: got 0.5"),
        (["method.variance=1"], "variance: got 1"),
        (["method.boundary=1.5"], "boundary: got 1.5"),
        (["method.main_weight=0", "method.tough_weight=0", "method.tolerant_weight=0"], "main_weight"),
        (["task=classification"], "task=keypoints"),
        (["task.data=digits"], "keypoints"),
        (["queries=[flip]"], "flip"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    from limbeck.run.running import run

    with pytest.raises((ConfigError, DataError), match=said):
        tree = check(load_tree("landmark-kd", words, tiny=True))
        build(tree)
        run(tree, tmp_path, quiet=True)


def test_poses_that_cannot_be_smoothed_are_refused(tmp_path: Path) -> None:
    task = faces(tmp_path, 6)
    with pytest.raises(DataError, match="6 training poses need 5 components for 99% of the variance"):
        task.part("smooth:0.99")
    with pytest.raises(DataError, match="do not differ"):
        smoothed(torch.ones(5, 3, 2), torch.ones(5, 3, dtype=torch.bool), 0.9)
    with pytest.raises(ConfigError, match="smooth:0"):
        task.part("hands")
