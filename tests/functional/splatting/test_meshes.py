"""The soft rasteriser: gradients, visibility, background; how rough meshes are."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional import meshes

K = torch.tensor([[6.0, 0, 4], [0, 6, 4], [0, 0, 1]], dtype=torch.float64)
EYE = torch.eye(4, dtype=torch.float64)


def square(z: float) -> torch.Tensor:
    return torch.tensor([[-1.0, -1, z], [1, -1, z], [1, 1, z], [-1, 1, z]], dtype=torch.float64)


FACES = torch.tensor([[0, 1, 2], [0, 2, 3]])


def test_the_nearer_of_two_squares_is_seen_and_the_background_beside_them() -> None:
    near, far = square(2.0) * torch.tensor([0.6, 0.6, 1]), square(3.0)
    vertices = torch.cat([near, far])
    faces = torch.cat([FACES, FACES + 4])
    colour = torch.tensor([[1.0, 0]] * 4 + [[0, 1.0]] * 4, dtype=torch.float64)
    behind = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for order in (faces, faces.flip(0)):
        picture, cover = meshes.soft_rasterize(vertices, order, colour, EYE, K, 8, 8, behind=behind)
        assert picture[4, 4, 0] > 0.95 and cover[4, 4] > 0.9
        assert (picture[0, 0] - behind).abs().max() < 0.1
    hidden = vertices * torch.tensor([1.0, 1, -1])
    picture, cover = meshes.soft_rasterize(hidden, faces, colour, EYE, K, 8, 8, behind=behind)
    assert torch.equal(picture, behind.expand(8, 8, 2)) and not cover.any()


def test_gradients_are_those_of_finite_differences() -> None:
    g = torch.Generator().manual_seed(0)
    vertices = (square(2.5) + 0.2 * torch.randn(4, 3, generator=g, dtype=torch.float64)).requires_grad_()
    colour = torch.rand(4, 2, generator=g, dtype=torch.float64).requires_grad_()

    def picture(v: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        made, cover = meshes.soft_rasterize(v, FACES, c, EYE, K, 6, 6, gamma=0.1)
        return torch.cat([made, cover], -1)

    assert torch.autograd.gradcheck(picture, (vertices, colour), eps=1e-7, atol=1e-4, rtol=1e-3, fast_mode=True)


def test_flat_meshes_are_smooth_and_tents_are_not() -> None:
    edges, pairs = meshes.edges_of(FACES)
    assert len(edges) == 5 and pairs.tolist() == [[0, 1]]
    flat, tent = square(1.0), square(1.0)
    tent[1, 2] += 1.0
    assert meshes.normal_consistency(flat, FACES, pairs).abs().max() < 1e-12
    assert meshes.normal_consistency(tent, FACES, pairs).item() > 0.1
    grid = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]], dtype=torch.float64)
    assert meshes.laplacian(grid, torch.tensor([[0, 1], [1, 2]]))[1] == 0
    torch.testing.assert_close(meshes.vertex_normals(flat, FACES), meshes.face_normals(flat, FACES)[:1].expand(4, 3))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ShapeError, match="vertices"):
        meshes.soft_rasterize(torch.zeros(3, 2), FACES, torch.zeros(3, 1), EYE, K, 4, 4)
    with pytest.raises(ShapeError, match="attributes"):
        meshes.soft_rasterize(square(1.0), FACES, torch.zeros(3, 1), EYE, K, 4, 4)
    with pytest.raises(ConfigError, match="faces"):
        meshes.soft_rasterize(square(1.0), FACES, torch.zeros(4, 1), EYE, K, 100_000, 100_000)
