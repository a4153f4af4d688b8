"""Clouds: neighbours, farthest points, crops, completion, groups."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional.points import (
    check_clouds,
    complete_points,
    crop_length,
    farthest_points,
    in_unit_sphere,
    jitter,
    nearest_crop,
    nearest_points,
    sample_and_group,
    shift,
    stretch,
)


def cloud(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_neighbours_are_those_of_a_loop_and_of_the_cube_too() -> None:
    x, c = cloud(2, 17), cloud(2, 4, seed=1)
    for shape in ("sphere", "cube"):
        ids = nearest_points(c, x, 5, shape=shape)  # type: ignore[arg-type]
        for n in range(2):
            for s in range(4):
                gap = (x[n] - c[n, s]).abs()
                far = gap.amax(-1) if shape == "cube" else gap.square().sum(-1)
                assert ids[n, s].tolist() == far.argsort()[:5].tolist()


def test_farthest_points_are_far_whatever_moves_the_cloud() -> None:
    x = cloud(3, 40)
    ids = farthest_points(x, 8, torch.tensor([3, 0, 39]))
    assert ids[:, 0].tolist() == [3, 0, 39] and all(len(set(row.tolist())) == 8 for row in ids)
    turn, _ = torch.linalg.qr(cloud(3, seed=5))
    assert torch.equal(farthest_points(7 * x @ turn + 2, 8, torch.tensor([3, 0, 39])), ids)
    for n in range(3):  # each is the farthest from those before it
        for k in range(1, 8):
            to = torch.cdist(x[n], x[n, ids[n, :k]]).amin(1)
            assert to[ids[n, k]] == to.max()
    assert farthest_points(torch.zeros(1, 5, 3), 3).tolist() == [[0, 0, 0]]  # one place only


def test_crops_are_pieces_of_space() -> None:
    x = cloud(2, 30)
    assert [crop_length(30, p) for p in (0.5, 0.51, 1.0)] == [15, 16, 30]
    crop = nearest_crop(x, torch.tensor([4, 9]), 10)
    assert torch.equal(crop[:, 0], x[torch.arange(2), torch.tensor([4, 9])])
    far = (crop - crop[:, :1]).norm(dim=-1)
    assert bool((far[:, 1:] >= far[:, :-1]).all())
    inside = ((x - crop[:, :1]).norm(dim=-1) <= far[:, -1:]).sum(1)
    assert inside.tolist() == [10, 10]
    box = nearest_crop(x, torch.tensor([4, 9]), 10, shape="cube")
    wide = (box - box[:, :1]).abs().amax((1, 2))
    assert ((x - box[:, :1]).abs().amax(-1) <= wide[:, None]).sum(1).tolist() == [10, 10]


@pytest.mark.parametrize("size", [9, 10, 13, 20, 37, 90])
def test_completion_has_one_length_and_stays_inside(size: int) -> None:
    x = cloud(2, 10)
    order = torch.stack([torch.randperm(10, generator=torch.Generator().manual_seed(n)) for n in range(2)])
    whole = complete_points(x, size, order)
    assert whole.shape == (2, size, 3)
    if size >= 10:
        assert torch.equal(whole[:, :10], x)
    else:
        assert all(whole[n].tolist() == [x[n, i].tolist() for i in sorted(order[n, :size].tolist())] for n in range(2))
    assert bool((whole.amax(1) <= x.amax(1)).all()) and bool((whole.amin(1) >= x.amin(1)).all())
    if size == 13:
        near = nearest_points(x, x, 4)
        for n in range(2):
            want = torch.stack([x[n, near[n, i]].mean(0) for i in order[n, :3]])
            torch.testing.assert_close(whole[n, 10:], want)
    moved = complete_points(x + 3, size, order)
    torch.testing.assert_close(moved, whole + 3)


def test_groups_are_relative_to_their_centre_and_pass_gradients() -> None:
    x, f = cloud(2, 20), cloud(2, 20, seed=3).requires_grad_()
    found = sample_and_group(x, f, 4, 6)
    assert found.centres.shape == (2, 4, 3) and found.features.shape == (2, 4, 6, 6)
    assert not bool(found.features[:, :, 0, :3].any())  # the nearest to a centre is itself
    own = f[torch.arange(2)[:, None], found.ids]
    torch.testing.assert_close(found.features[..., 3:], own.unsqueeze(2).expand(-1, -1, 6, -1))
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    first = int((shuffled == 0).nonzero())
    again = sample_and_group(x[:, shuffled], f[:, shuffled], 4, 6, first)
    torch.testing.assert_close(again.features, found.features)
    assert torch.autograd.gradcheck(lambda g: sample_and_group(x[:1, :7], g, 2, 3).features, (f[:1, :7],))


def test_small_changes_are_of_their_size() -> None:
    x = in_unit_sphere(5 + 3 * cloud(2, 30))
    torch.testing.assert_close(x.norm(dim=-1).amax(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(x.mean(1), torch.zeros(2, 3, dtype=torch.float64))
    assert not bool(in_unit_sphere(torch.ones(1, 4, 3)).any())
    assert float((jitter(x, 100 * cloud(2, 30, seed=2)) - x).abs().max()) <= 0.05 + 1e-12
    half = torch.full((2, 3), 0.5, dtype=torch.float64)
    torch.testing.assert_close(stretch(x, half), x * (2 / 3 + 3 / 2) / 2)
    torch.testing.assert_close(shift(x, half), x)
    torch.testing.assert_close(shift(x, half * 0), x - 0.2)


def test_what_is_no_cloud_is_refused() -> None:
    with pytest.raises(ShapeError, match="transpose"):
        check_clouds(torch.zeros(2, 3, 50))
    with pytest.raises(ShapeError, match="N, P, 3"):
        check_clouds(torch.zeros(2, 50, 2))
    with pytest.raises(ShapeError, match="8 or more"):
        nearest_points(torch.zeros(1, 2, 3), torch.zeros(1, 5, 3), 8)
    with pytest.raises(DataError, match="finite"):
        farthest_points(torch.full((1, 4, 3), float("nan")), 2)
    with pytest.raises(ShapeError):
        sample_and_group(torch.zeros(1, 5, 3), torch.zeros(1, 4, 3), 2, 2)
    with pytest.raises(ShapeError, match="permutation"):
        complete_points(torch.zeros(1, 5, 3), 9, torch.zeros(1, 4, dtype=torch.int64))
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match="share"):
            crop_length(10, share)
    with pytest.raises(ConfigError, match="shape"):
        nearest_crop(torch.zeros(1, 5, 3), torch.tensor([0]), 2, shape="ball")  # type: ignore[arg-type]
