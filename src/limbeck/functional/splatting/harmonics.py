"""Colours that depend on the direction they are seen from: real spherical harmonics up to degree 4."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, ShapeError

SH0 = 0.28209479177387814
"""The constant of degree 0: ``f_dc = (rgb - 0.5) / SH0``."""


def sh_basis(dirs: Tensor, degree: int) -> Tensor:
    """The ``(degree + 1)^2`` basis functions ``[..., K]`` at unit directions ``[..., 3]``.

    Raises:
        ConfigError: a degree that is not 0 to 4.

    Example:
        >>> (100 * sh_basis(torch.tensor([0.0, 0.0, 1.0]), 1)).round().abs().tolist()
        [28.0, 0.0, 49.0, 0.0]
    """
    if not 0 <= degree <= 4:
        raise ConfigError("sh_degree", given=degree, expected="0 to 4")
    x, y, z = dirs.unbind(-1)
    found = [torch.full_like(x, SH0)]
    if degree > 0:
        c = 0.4886025119029199
        found += [-c * y, c * z, -c * x]
    if degree > 1:
        xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
        found += [
            1.0925484305920792 * xy,
            -1.0925484305920792 * yz,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * xz,
            0.5462742152960396 * (xx - yy),
        ]
    if degree > 2:
        found += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * xy * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    if degree > 3:
        found += [
            2.5033429417967046 * xy * (xx - yy),
            -1.7701307697799304 * yz * (3 * xx - yy),
            0.9461746957575601 * xy * (7 * zz - 1),
            -0.6690465435572892 * yz * (7 * zz - 3),
            0.10578554691520431 * (zz * (35 * zz - 30) + 3),
            -0.6690465435572892 * xz * (7 * zz - 3),
            0.47308734787878004 * (xx - yy) * (7 * zz - 1),
            -1.7701307697799304 * xz * (xx - 3 * yy),
            0.6258357354491761 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
        ]
    return torch.stack(found, -1)


def spherical_harmonics(degree: int, dirs: Tensor, coeffs: Tensor) -> Tensor:
    """Values ``[..., D]`` of coefficients ``[..., K, D]``, of which the first ``(degree + 1)^2`` count, at directions.

    Args:
        degree: 0 to 4.
        dirs: ``[..., 3]``, of any length but zero; leading axes broadcast with those of ``coeffs``.
        coeffs: ``[..., K, D]``.

    Colours are ``max(value + 0.5, 0)``.

    Raises:
        ShapeError: too few coefficients.

    Example:
        >>> round(spherical_harmonics(0, torch.tensor([1.0, 0.0, 0.0]), torch.ones(1, 3))[0].item(), 4)
        0.2821
    """
    count = (degree + 1) ** 2
    if coeffs.shape[-2] < count:
        raise ShapeError(
            "colors", given=list(coeffs.shape), expected=f"at least {count} coefficients for degree {degree}"
        )
    basis = sh_basis(F.normalize(dirs, dim=-1), degree)  # [..., K]
    return (basis[..., None] * coeffs[..., :count, :]).sum(-2)
