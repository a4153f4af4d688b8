"""3D Gaussians drawn as images, differentiably: projection, colours, compositing by tiles, losses, changes of number.

`rasterization` has gsplat's signature and definitions in plain torch, for a CPU and small scenes, with its gradients; on a
GPU gsplat's own kernels take its place where that package is installed.
"""

from __future__ import annotations

from .compositing import composite
from .densify import Rows, carry_rows, duplicate, exploration, relocate, remove, reset_opacities, split
from .harmonics import SH0 as SH0
from .harmonics import sh_basis, spherical_harmonics
from .photometric import l1_dssim, psnr, ssim_map
from .projection import Projected, covariances, intrinsics, look_at, project, rotation_matrices
from .rasterization import largest_alpha, rasterization

__all__ = [
    "Projected",
    "Rows",
    "carry_rows",
    "composite",
    "covariances",
    "duplicate",
    "exploration",
    "intrinsics",
    "l1_dssim",
    "largest_alpha",
    "look_at",
    "project",
    "psnr",
    "rasterization",
    "relocate",
    "remove",
    "reset_opacities",
    "rotation_matrices",
    "sh_basis",
    "spherical_harmonics",
    "split",
    "ssim_map",
]
