"""Views of clouds: pieces of space of their lengths, the same whoever is beside them, changed as they should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.functional.points import complete_points
from limbeck.grammar.random import Draws
from limbeck.parts.crops import CloudViews, _turns, sketch

STILL: dict[str, Any] = {"jitter": 0.0, "scale": [1.0, 1.0], "shift": 0.0, "shuffle": False}
DRAWS = Draws(0, ("crops", 1))


def clouds(n: int = 5, points: int = 40) -> Tensor:
    return torch.randn(n, points, 3, generator=torch.Generator().manual_seed(0))


def kept(piece: Tensor, cloud: Tensor) -> Tensor:
    """Which points of the cloud are in the piece."""
    return (torch.cdist(cloud, piece, compute_mode="donot_use_mm_for_euclid_dist") < 1e-6).any(1)


@pytest.mark.parametrize("shape", ["sphere", "cube"])
def test_a_piece_is_what_is_nearest_to_one_of_its_points(shape: Any) -> None:
    x = clouds()
    views = CloudViews(local=3, shape=shape, completion="resample", **STILL)
    crops = views.cut(x, torch.arange(5), DRAWS)
    assert crops.large.shape == (2, 5, 40, 3) and crops.others[0].shape == (3, 5, 20, 3) and crops.views == 5
    lengths = set()
    for i in range(5):
        for piece in crops.large[:, i]:
            mine = kept(piece, x[i])
            lengths.add(int(mine.sum()))
            assert 20 <= mine.sum() <= 36
            gap = x[i].unsqueeze(1) - x[i].unsqueeze(0)
            far = gap.abs().amax(-1) if shape == "cube" else gap.norm(dim=-1)
            # some point of the piece is nearer to all of the piece than to anything else
            assert any(far[c][mine].max() <= far[c][~mine].min() for c in mine.nonzero()[:, 0])
    assert len(lengths) > 3  # each has a share of its own


def test_pieces_are_the_same_whoever_is_beside_them() -> None:
    x, views = clouds(), CloudViews(local=2, resolutions=[8], rotation="any")
    whole = views.cut(x, torch.tensor([7, 3, 9, 1, 4]), DRAWS)
    some = views.cut(x[[2, 0]], torch.tensor([9, 7]), DRAWS)
    torch.testing.assert_close(some.large, whole.large[:, [2, 0]])
    for a, b in zip(some.others, whole.others, strict=True):
        torch.testing.assert_close(a, b[:, [2, 0]])
    other = views.cut(x, torch.tensor([7, 3, 9, 1, 4]), Draws(0, ("crops", 2)))
    assert not torch.allclose(other.large, whole.large)


def test_lengths_are_made_by_companions_of_kept_points() -> None:
    x = clouds(4, 30)
    crops = CloudViews(local=2, local_points=25, **STILL).cut(x, torch.arange(4), DRAWS)
    for i in range(4):
        for piece in crops.others[0][:, i]:
            mine = kept(piece, x[i])
            assert 6 <= mine.sum() <= 15 and torch.isfinite(piece).all()
            low, high = x[i][mine].amin(0), x[i][mine].amax(0)
            assert bool((piece >= low - 1e-6).all()) and bool((piece <= high + 1e-6).all())


def test_clouds_of_differing_lengths_are_completed_as_one_by_one() -> None:
    x, length = clouds(6), torch.tensor([40, 5, 9, 31, 16, 8])
    order = torch.rand(6, 40, generator=torch.Generator().manual_seed(2)).argsort(1)
    for size in (7, 30, 64, 90):
        found = complete_points(x, size, order, length=length)
        for i, n in enumerate(length.tolist()):
            alone = complete_points(x[i : i + 1, :n], size, order[i][order[i] < n].unsqueeze(0))
            torch.testing.assert_close(found[i : i + 1], alone)


def test_thinned_views_are_of_the_whole_cloud() -> None:
    x = clouds(3)
    crops = CloudViews(local=0, resolutions=[10, 6], each=3, shape="fps", completion="resample", **STILL).cut(
        x, torch.arange(3), DRAWS
    )
    assert [g.shape for g in crops.others] == [(3, 3, 10, 3), (3, 3, 6, 3)]
    for i in range(3):
        assert kept(crops.others[0][0, i], x[i]).sum() == 10
        spread = crops.large[0, i].std(0) / x[i].std(0)
        assert bool((spread > 0.6).all())  # no piece of space


def test_turns_are_rotations() -> None:
    u = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    for about in ("vertical", "any"):
        r = _turns(u, about)
        torch.testing.assert_close(r @ r.transpose(1, 2), torch.eye(3).expand(50, 3, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.linalg.det(r), torch.ones(50))
    assert bool((_turns(u, "vertical")[:, 1] == torch.tensor([0.0, 1.0, 0.0])).all())


def test_shares_and_sizes_are_checked() -> None:
    for given in ({"local_share": [0.5, 0.2]}, {"global_share": [0.0, 0.5]}, {"scale": [1.0]}, {"scale": [0.0, 1.0]}):
        with pytest.raises(ValueError, match=next(iter(given))):
            CloudViews(**given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="completion=resample"):
        CloudViews().check(10)
    CloudViews(completion="resample").check(10)
    with pytest.raises(ConfigError, match="resolutions"):
        CloudViews(resolutions=[512]).check(100)


def test_a_sketch_shows_points_where_they_are() -> None:
    picture = sketch(torch.tensor([[1.6, 1.6, 0.0], [-1.6, -1.6, 1.0]]), 5)[0]
    assert picture[0][4] == 127 and picture[4][0] == 255 and sum(map(sum, picture)) == 382
