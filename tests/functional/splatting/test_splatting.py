"""The Gaussian renderer: tiles equal the dense form in value and every gradient, and what cannot be is refused by name."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional import splatting as S


def scene(
    n: int = 60, cameras: int = 2, side: int = 40, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Any]:
    """A cloud of Gaussians and cameras that look at it."""
    g = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    eye = torch.nn.functional.normalize(drawn(cameras, 3), dim=-1) * 3
    return {
        "means": (0.6 * drawn(n, 3)).to(dtype),
        "quats": drawn(n, 4).to(dtype),
        "scales": (0.12 * (0.5 * drawn(n, 3)).exp()).to(dtype),
        "opacities": drawn(n).sigmoid().to(dtype),
        "colors": drawn(n, 4, 3).to(dtype),
        "viewmats": S.look_at(eye, torch.zeros(3, dtype=torch.float64)).to(dtype),
        "Ks": S.intrinsics(torch.full((cameras,), 45.0), side, side).to(dtype),
        "width": side,
        "height": side,
        "sh_degree": 1,
        "backend": "torch",
    }


def test_tiles_equal_the_dense_form_in_value_and_gradient() -> None:
    given = scene(90, cameras=1, side=36)
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats")
    given["backgrounds"] = torch.rand(1, 3, dtype=torch.float64)
    weights = torch.randn(1, 36, 36, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = {}
    for dense in (True, False):
        call = {**given, **{n: given[n].clone().requires_grad_() for n in names}}
        picture, cover, meta = S.rasterization(**call, render_mode="RGB+ED", dense=dense, tile_size=8)
        meta["means2d"].retain_grad()
        ((picture * weights).sum() + cover.square().sum()).backward()
        found[dense] = [picture, cover, meta["means2d"].grad, *(call[n].grad for n in names)]
    assert 36 * 36 * 90 > 100_000, "else both are one tile"
    for a, b in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    given = scene(5, cameras=1, side=6)
    given["opacities"] = given["opacities"] * 0.5  # far from the cut at 0.99
    names = ("means", "quats", "scales", "opacities", "colors")
    given["scales"] = given["scales"] * 3  # no alpha crosses 1/255 within a difference

    def picture(*parts: Tensor) -> Tensor:
        return S.rasterization(**{**given, **dict(zip(names, parts, strict=True))})[0]

    inputs = [given[n].clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(picture, inputs, eps=1e-7, atol=1e-4, rtol=1e-4, fast_mode=True)


def test_a_turned_world_looks_the_same_and_order_does_not_matter() -> None:
    given = scene(30)
    given.update(sh_degree=None, colors=given["colors"][:, 0].sigmoid())
    picture = S.rasterization(**given)[0]
    q = torch.tensor([[0.3, -0.5, 0.7, 0.2]], dtype=torch.float64)
    R = S.rotation_matrices(q)[0]
    a, b = q / q.norm(), given["quats"]
    w = a[:, :1] * b[:, :1] - (a[:, 1:] * b[:, 1:]).sum(1, keepdim=True)
    v = a[:, :1] * b[:, 1:] + b[:, :1] * a[:, 1:] + torch.linalg.cross(a[:, 1:].expand(len(b), 3), b[:, 1:])
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = R.T
    turned = {
        **given,
        "means": given["means"] @ R.T,
        "quats": torch.cat([w, v], 1),
        "viewmats": given["viewmats"] @ turn,
    }
    torch.testing.assert_close(S.rasterization(**turned)[0], picture, rtol=1e-8, atol=1e-9)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    mixed = {**given, **{n: given[n][order] for n in ("means", "quats", "scales", "opacities", "colors")}}
    torch.testing.assert_close(S.rasterization(**mixed)[0], picture, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("side", [12, 80], ids=["one tile", "tiles"])
def test_what_is_not_seen_adds_nothing_whatever_it_is(side: int) -> None:
    g = torch.Generator().manual_seed(0)
    n = 30
    leaves = [
        torch.rand(n, 2, generator=g, dtype=torch.float64) * side,
        torch.tensor([0.3, 0.05, 0.2], dtype=torch.float64).repeat(n, 1),
        torch.rand(n, generator=g, dtype=torch.float64),
        torch.rand(n, 3, generator=g, dtype=torch.float64),
    ]
    depths, radii = torch.rand(n, generator=g, dtype=torch.float64), torch.full((n, 2), 20)
    radii[::3] = 0
    kept = torch.arange(n) % 3 > 0
    want = S.composite(*(x[kept] for x in leaves), depths[kept], radii[kept], side, side)
    for x in (*leaves, depths):
        x[::3] = float("nan")
    for x in leaves:
        x.requires_grad_()
    got = S.composite(*leaves, depths, radii, side, side)
    torch.testing.assert_close(got, want)
    for slope in torch.autograd.grad(got[0].square().sum() + got[1].sum(), leaves):
        assert slope.isfinite().all() and not slope[::3].any() and slope[kept].any()


def test_an_empty_or_unseen_scene_is_the_background() -> None:
    given = scene(0)
    behind = torch.rand(2, 3, dtype=torch.float64)
    picture, cover, _ = S.rasterization(**given, backgrounds=behind)
    assert not cover.any() and torch.equal(picture, behind[:, None, None].expand_as(picture))
    given = scene(4)
    given["viewmats"] = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)) @ given["viewmats"]
    with pytest.warns(UserWarning, match="OpenGL"):
        S.rasterization(**given)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"opacities": lambda t: t - 2}, DataError, "sigmoid"),
        ({"scales": lambda t: -t}, DataError, "exp"),
        ({"quats": lambda t: 0 * t}, DataError, "all zero"),
        ({"Ks": lambda t: t / 44}, DataError, "in pixels"),
        ({"means": lambda t: t[:, :2]}, ShapeError, "means"),
        ({"means": lambda t: t.long()}, DataError, "floating"),
        ({"viewmats": lambda t: t[:, :3]}, ShapeError, "viewmats"),
        ({"colors": lambda t: t[:, :2]}, ShapeError, "at least 4 coefficients"),
        ({"backgrounds": lambda _: torch.zeros(2, 5)}, ShapeError, "backgrounds"),
        ({"width": lambda _: 10_000_000}, ConfigError, "too many for a CPU"),
        ({"render_mode": lambda _: "RGBD"}, ConfigError, "render_mode"),
        ({"absgrad": lambda _: True}, ConfigError, "absgrad"),
        ({"with_ut": lambda _: True}, ConfigError, "with_ut"),
        ({"backend": lambda _: "gsplat"}, ConfigError, "gsplat"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], error: type[Exception], said: str) -> None:
    given = scene(60)
    given = {**given, **{k: f(given.get(k)) for k, f in change.items()}}
    with pytest.raises(error, match=said):
        S.rasterization(**given)


def test_relocated_copies_cover_as_the_one_did() -> None:
    o, s, r = torch.tensor([0.9, 0.3]), torch.ones(2, 3), torch.tensor([4, 1])
    new, scale = S.relocate(o, s, r)
    torch.testing.assert_close(1 - (1 - new) ** r, o)
    torch.testing.assert_close(scale[1], s[1])
    assert bool((scale[0] < 1).all())
    step = S.exploration(torch.eye(3).expand(2, 3, 3), torch.tensor([0.9, 0.0]), torch.ones(2, 3), 1.0)
    assert step[0].abs().max() < 1e-6 < step[1].abs().min()


def test_changes_of_number_keep_what_an_optimiser_remembers() -> None:
    params = {
        "means": torch.rand(5, 3),
        "scales": torch.zeros(5, 3),
        "quats": torch.rand(5, 4),
        "opacities": torch.zeros(5),
    }
    mask = torch.tensor([True, False, False, True, False])
    rows = S.split(params, mask, torch.zeros(2, 2, 3), revised=True)
    assert rows.source.tolist() == [1, 2, 4, 0, 3, 0, 3] and rows.fresh.sum() == 4
    assert S.carry_rows(torch.arange(1.0, 6.0), rows).tolist() == [2, 3, 5, 0, 0, 0, 0]
    both = 1 - (1 - rows.params["opacities"][-2:].sigmoid()) ** 2
    torch.testing.assert_close(both, params["opacities"][mask].sigmoid())
    with pytest.raises(ShapeError):
        S.split(params, mask, torch.zeros(2, 3, 3))


def test_ssim_has_its_largest_value_where_pictures_agree() -> None:
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert S.ssim_map(x, x).min() > 1 - 1e-5 > S.ssim_map(x, x.flip(-1)).mean()
    with pytest.raises(ShapeError):
        S.ssim_map(x, x[..., :8])
    with pytest.raises(ConfigError, match="odd"):
        S.ssim_map(x, x, window=4)


def test_cameras_see_what_they_look_at_in_the_middle() -> None:
    eye = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 4.0]])
    target = torch.tensor([0.2, -0.1, 0.3])
    view = S.look_at(eye, target)
    R = view[:, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3).expand(2, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(2))
    seen = (R @ target) + view[:, :3, 3]
    assert seen[:, :2].abs().max() < 1e-6 and bool((seen[:, 2] > 0).all())
    above = (R[0] @ (target + torch.tensor([0.0, 0.0, 1.0]))) + view[0, :3, 3]
    assert above[1] < 0, "up is towards row 0"


def test_tiles_are_faster_than_the_dense_form() -> None:
    """The limit of the benchmark, with room for a busy machine."""
    given = scene(1000, cameras=1, side=64, dtype=torch.float32)
    given["means"].requires_grad_()
    best = {}
    for dense in (False, True):
        times = []
        for _ in range(2):
            start = time.perf_counter()
            S.rasterization(**given, dense=dense)[0].sum().backward()
            times.append(time.perf_counter() - start)
        best[dense] = min(times)
    assert best[False] < best[True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        S.rasterization(**given)
