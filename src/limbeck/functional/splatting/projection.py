"""Gaussians in space as Gaussians in a picture: covariances, cameras, and the linearised perspective between (EWA).

Cameras look along +z, x goes right and y down (OpenCV); ``viewmats`` go from the world to the camera, ``Ks`` from there to
pixels. Centres of pixels lie at halves.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EXTENT = 3.33
"""Standard deviations to each side that a Gaussian is drawn in: beyond them its alpha is below 1/255."""


class Projected(NamedTuple):
    """Gaussians as cameras see them.

    Attributes:
        radii: int32 [C, N, 2] half the box in pixels along x and y; 0 where it is not in the image.
        means2d: [C, N, 2] centres in pixels.
        depths: [C, N] distance along the camera's axis.
        conics: [C, N, 3] the inverse of the blurred covariance: xx, xy, yy.
        compensations: [C, N] by what the blur has thickened it, at most 1.
    """

    radii: Tensor
    means2d: Tensor
    depths: Tensor
    conics: Tensor
    compensations: Tensor


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotations ``[..., 3, 3]`` of quaternions ``[..., 4]`` (w, x, y, z), of any length but zero.

    Example:
        >>> rotation_matrices(torch.tensor([2.0, 0.0, 0.0, 0.0])).diagonal().tolist()
        [1.0, 1.0, 1.0]
    """
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).reshape(*quats.shape[:-1], 3, 3)


def covariances(quats: Tensor, scales: Tensor) -> Tensor:
    """``R S S^T R^T`` ``[..., 3, 3]`` of quaternions ``[..., 4]`` and standard deviations ``[..., 3]``.

    Example:
        >>> covariances(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 3.0])).diagonal().tolist()
        [1.0, 4.0, 9.0]
    """
    m = rotation_matrices(quats) * scales[..., None, :]
    return m @ m.mT


def project(
    means: Tensor,
    covars: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    least_compensation: float = 0.0,
) -> Projected:
    """Project Gaussians into cameras.

    Args:
        means: ``[N, 3]``. covars: ``[N, 3, 3]``.
        viewmats: ``[C, 4, 4]``, from the world to the camera. Ks: ``[C, 3, 3]``, in pixels; they get no gradient.
        width, height: of the image.
        eps2d: added to the covariance in the image, in pixels squared, so that nothing falls between pixels.
        near_plane, far_plane: what lies nearer or farther is not drawn.
        radius_clip: what is no larger in both directions is not drawn.
        least_compensation: floor of ``compensations`` squared.

    Source: Zwicker et al. 2001; Kerbl et al. 2023 (arXiv 2308.04079), whose limits on the slope act in the Jacobian alone.
    """
    Ks = Ks.detach()
    R, T = viewmats[:, None, :3, :3], viewmats[:, None, :3, 3]  # [C, 1, 3, 3], [C, 1, 3]
    t = (R @ means[None, :, :, None]).squeeze(-1) + T  # [C, N, 3]
    depths = t[..., 2]
    inside = (depths > near_plane) & (depths < far_plane)
    # nothing is divided by the depth of what lies behind: 0 * inf would reach the gradient
    z = torch.where(inside, depths, torch.ones_like(depths))
    fx, fy, cx, cy = (Ks[:, None, i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))  # [C, 1]
    x, y = t[..., 0] / z, t[..., 1] / z  # slopes
    lim_x, lim_y = 0.15 * width / fx, 0.15 * height / fy
    u = torch.minimum(torch.maximum(x, -(cx / fx + lim_x)), (width - cx) / fx + lim_x)
    v = torch.minimum(torch.maximum(y, -(cy / fy + lim_y)), (height - cy) / fy + lim_y)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z], -1).reshape(*z.shape, 2, 3)
    JW = J @ R  # [C, N, 2, 3]
    S = JW @ covars[None] @ JW.mT  # [C, N, 2, 2]
    xx, yy, xy = S[..., 0, 0], S[..., 1, 1], 0.5 * (S[..., 0, 1] + S[..., 1, 0])
    det0 = xx * yy - xy * xy
    xx, yy = xx + eps2d, yy + eps2d
    det = (xx * yy - xy * xy).clamp_min(1e-10)
    conics = torch.stack([yy, -xy, xx], -1) / det[..., None]
    ratio = (det0 / det).clamp_min(least_compensation)
    # the root of an exact zero has no slope
    comp = torch.where(ratio > 0, ratio, torch.ones_like(ratio)).sqrt() * (ratio > 0)
    means2d = torch.stack([fx * x + cx, fy * y + cy], -1)
    with torch.no_grad():
        r = torch.stack([EXTENT * xx.clamp_min(0).sqrt(), EXTENT * yy.clamp_min(0).sqrt()], -1).ceil()  # [C, N, 2]
        size = means2d.new_tensor([width, height])
        seen = inside & ((means2d + r > 0) & (means2d - r < size)).all(-1) & (r > radius_clip).any(-1)
        radii = torch.where(seen[..., None], r, torch.zeros_like(r)).clamp_max(2**30).to(torch.int32)
    return Projected(radii, means2d, depths, conics, comp)


def look_at(eye: Tensor, target: Tensor, up: tuple[float, float, float] = (0.0, 0.0, 1.0)) -> Tensor:
    """World-to-camera matrices ``[C, 4, 4]`` of cameras at ``eye`` ``[C, 3]`` that look at ``target`` ``[3]``, ``up`` upwards.

    Example:
        >>> m = look_at(torch.tensor([[2.0, 0.0, 0.0]]), torch.zeros(3))
        >>> (m[0, :3, :3] @ torch.zeros(3) + m[0, :3, 3]).tolist()  # the origin lies 2 ahead
        [0.0, 0.0, 2.0]
    """
    ahead = F.normalize(target - eye, dim=-1)
    sky = eye.new_tensor(up).expand_as(eye)
    # straight up or down any direction may be "right"
    other = eye.new_tensor([up[1], up[2], up[0]]).expand_as(eye)
    right = torch.linalg.cross(ahead, sky)
    right = torch.where(right.norm(dim=-1, keepdim=True) < 1e-6, torch.linalg.cross(ahead, other), right)
    right = F.normalize(right, dim=-1)
    down = torch.linalg.cross(ahead, right)
    R = torch.stack([right, down, ahead], -2)  # rows are the camera's axes
    T = -(R @ eye[..., None])
    top = torch.cat([R, T], -1)
    bottom = eye.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(eye), 1, 4)
    return torch.cat([top, bottom], -2) + 0.0


def intrinsics(fovy: Tensor | float, width: int, height: int) -> Tensor:
    """Camera matrices ``[C, 3, 3]`` (or ``[3, 3]``) in pixels of a vertical opening angle in degrees.

    Example:
        >>> intrinsics(90.0, 8, 8)[0].round(decimals=4).tolist()
        [4.0, 0.0, 4.0]
    """
    angle = torch.as_tensor(fovy, dtype=torch.get_default_dtype())
    f = 0.5 * height / torch.tan(angle * (math.pi / 360))
    zero, one = torch.zeros_like(f), torch.ones_like(f)
    rows = [f, zero, one * width / 2, zero, f, one * height / 2, zero, zero, one]
    return torch.stack(rows, -1).reshape(*f.shape, 3, 3)
