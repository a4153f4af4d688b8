"""Triangles drawn softly, so that an image has a gradient to where they lie; and how smooth a mesh is.

    p_f = sigmoid(+-d_f^2 / sigma),   w = softmax_f(log p_f + n_f / gamma),   cover = 1 - prod_f (1 - p_f)
    image = cover sum_f w_f c_f + (1 - cover) b

d_f: distance of a pixel to triangle f, positive inside;  n_f: nearness in [0, 1];  c_f: what its corners say at the pixel

Source: Liu et al. 2019 (Soft Rasterizer, arXiv 1904.01786), but for the background, which stands behind what is not covered:
among the triangles' weights it would vanish beside near ones. Every triangle is laid over every pixel: for small images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError, ShapeError

MOST = 2e8
"""Pairs of a pixel and a triangle that are drawn at most."""


def soft_rasterize(
    vertices: Tensor,
    faces: Tensor,
    attributes: Tensor,
    view: Tensor,
    K: Tensor,
    width: int,
    height: int,
    *,
    behind: Tensor | None = None,
    sigma: float = 0.3,
    gamma: float = 1e-2,
    near: float = 0.05,
    far: float = 10.0,
) -> tuple[Tensor, Tensor]:
    """The image ``[H, W, D]`` of a mesh from one camera, and its cover ``[H, W, 1]``.

    Args:
        vertices: ``[V, 3]``. faces: int64 ``[F, 3]``, seen from both sides. attributes: ``[V, D]`` (colours, normals).
        view: ``[4, 4]`` from the world to the camera. K: ``[3, 3]`` in pixels.
        width, height: of the image.
        behind: ``[D]`` behind the mesh; zeros without.
        sigma: softness of the edges, in pixels squared.
        gamma: how sharply nearer triangles hide farther ones.
        near, far: depths between which triangles are drawn.

    Raises:
        ShapeError, ConfigError: what does not fit; too many pairs of pixels and triangles.

    Example:
        >>> corner = torch.tensor([[-1.0, -1, 2], [1, -1, 2], [0, 1, 2]])
        >>> K = torch.tensor([[4.0, 0, 4], [0, 4, 4], [0, 0, 1]])
        >>> image, cover = soft_rasterize(corner, torch.tensor([[0, 1, 2]]), torch.ones(3, 1), torch.eye(4), K, 8, 8)
        >>> bool(cover[4, 4] > 0.5), bool(cover[7, 0] < 0.1)
        (True, True)
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ShapeError(
            "vertices", given=[list(vertices.shape), list(faces.shape)], expected="[V, 3] and faces [F, 3]"
        )
    if len(attributes) != len(vertices):
        raise ShapeError("attributes", given=list(attributes.shape), expected=f"[{len(vertices)}, D]")
    if len(faces) * width * height > MOST:
        raise ConfigError("faces", given=len(faces), expected=f"at most {int(MOST / (width * height)):,} at this size")
    seen = vertices @ view[:3, :3].T + view[:3, 3]
    z = torch.where(seen[:, 2] > near, seen[:, 2], torch.full_like(seen[:, 2], near))
    xy = torch.stack([K[0, 0] * seen[:, 0] / z + K[0, 2], K[1, 1] * seen[:, 1] / z + K[1, 2]], -1)  # [V, 2]
    a, b, c = (xy[faces[:, i]] for i in range(3))  # [F, 2]
    area = _cross(b - a, c - a)  # [F]
    drawn = ((seen[:, 2] > near) & (seen[:, 2] < far))[faces].all(1) & (area.detach().abs() > 1e-6)
    area = torch.where(drawn, area, torch.ones_like(area))
    i = torch.arange(width, device=xy.device, dtype=xy.dtype) + 0.5
    j = torch.arange(height, device=xy.device, dtype=xy.dtype) + 0.5
    p = torch.stack(torch.meshgrid(i, j, indexing="xy"), -1).reshape(-1, 1, 2)  # [P, 1, 2]
    bary = (
        torch.stack([_cross(c - b, p - b), _cross(a - c, p - c), _cross(b - a, p - a)], -1) / area[:, None]
    )  # [P, F, 3]
    inside = (bary > 0).all(-1)
    far2 = torch.stack([_to_segment(p, u, v) for u, v in ((a, b), (b, c), (c, a))]).amin(0)  # [P, F]
    logit = torch.where(inside, far2, -far2) / sigma
    gone = ~drawn
    # within the triangle: what lies outside is answered by the nearest place of it, nearly
    share = bary.clamp(0, 1)
    share = share / share.sum(-1, keepdim=True).clamp_min(1e-6)
    depth = (share * z[faces]).sum(-1)  # [P, F]
    nearness = ((far - depth) / (far - near)).clamp(0, 1)
    score = F.logsigmoid(logit) + nearness / gamma
    w = torch.softmax(score.masked_fill(gone, -1e9), 1)  # [P, F]
    colour = torch.einsum("pf,pfk,fkd->pd", w, share, attributes[faces])
    cover = -torch.expm1(F.logsigmoid(-logit).masked_fill(gone, 0.0).sum(1))[:, None]  # [P, 1]
    colour = cover * colour + (0 if behind is None else (1 - cover) * behind)
    return colour.view(height, width, -1), cover.view(height, width, 1)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def _to_segment(p: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Squared distance [P, F] of places [P, 1, 2] to segments from u to v [F, 2]."""
    d = v - u
    t = (((p - u) * d).sum(-1) / d.square().sum(-1).clamp_min(1e-9)).clamp(0, 1)
    return (p - u - t[..., None] * d).square().sum(-1)


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals ``[F, 3]``.

    Example:
        >>> face_normals(torch.eye(3), torch.tensor([[0, 1, 2]])).mul(3**0.5).round().tolist()
        [[1.0, 1.0, 1.0]]
    """
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return F.normalize(torch.linalg.cross(b - a, c - a), dim=-1)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals ``[V, 3]``: the mean of those of the triangles around, by their areas."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    n = torch.linalg.cross(b - a, c - a)
    found = torch.zeros_like(vertices)
    for i in range(3):
        found = found.index_add(0, faces[:, i], n)
    return F.normalize(found, dim=-1)


def edges_of(faces: Tensor) -> tuple[Tensor, Tensor]:
    """Edges ``[E, 2]`` of a mesh, the smaller vertex first, and the pairs of faces ``[M, 2]`` that share one."""
    sides = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(1).values
    edges, which = sides.unique(dim=0, return_inverse=True)
    face = torch.arange(len(faces), device=faces.device).repeat(3)
    order = torch.sort(which, stable=True).indices
    pairs = which[order][1:] == which[order][:-1]
    return edges, torch.stack([face[order][:-1][pairs], face[order][1:][pairs]], 1).sort(1).values


def laplacian(vertices: Tensor, edges: Tensor) -> Tensor:
    """Squared distance ``[V]`` of every vertex to the middle of its neighbours: 0 on a flat, even mesh."""
    both = torch.cat([edges, edges.flip(1)])
    total = torch.zeros_like(vertices).index_add(0, both[:, 0], vertices[both[:, 1]])
    count = torch.zeros(len(vertices), device=vertices.device, dtype=vertices.dtype)
    count = count.index_add(0, both[:, 0], torch.ones(len(both), device=vertices.device, dtype=vertices.dtype))
    return (total / count.clamp_min(1)[:, None] - vertices).square().sum(-1)


def normal_consistency(vertices: Tensor, faces: Tensor, pairs: Tensor) -> Tensor:
    """1 - cosine ``[M]`` between the normals of neighbouring faces: 0 where a mesh is flat."""
    n = face_normals(vertices, faces)
    return 1 - (n[pairs[:, 0]] * n[pairs[:, 1]]).sum(-1)


__all__ = [
    "edges_of",
    "face_normals",
    "laplacian",
    "normal_consistency",
    "soft_rasterize",
    "vertex_normals",
]
