"""ZCA whitening: decorrelate pixels and keep the image, as the trajectory-matching family prepares its data.

Fit on raw training pixels in [0, 1] without any mean and deviation; transform training and test data alike; invert to
look at distilled images. Same definition as kornia's ``ZCAWhitening`` with ``eps = 0.1``, as in MTT, FTD and TESLA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import ConfigError, DataError, ShapeError

from ._common import statistics_dtype
from .precision import widened

__all__ = ["ZCA", "fit_zca"]


@dataclass(frozen=True, eq=False)
class ZCA:
    """A fitted transform: three plain tensors, to be stored as they are.

    Args:
        mean: ``[1, D]``.
        matrix: ``[D, D]`` symmetric, ``U diag((s + eps)^(-1/2)) U^T`` of the covariance ``U diag(s) U^T``.
        inverse: ``[D, D]``, ``U diag((s + eps)^(1/2)) U^T``.

    Example:
        >>> x = torch.rand(50, 1, 3, 3)
        >>> zca = fit_zca(x)
        >>> torch.allclose(zca.invert(zca.apply(x)), x, atol=1e-5)
        True
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    def _flat(self, x: Tensor) -> Tensor:
        flat = x.flatten(1).to(statistics_dtype(x))
        if x.ndim < 2 or flat.shape[1] != self.mean.shape[1]:
            raise ShapeError(
                "x",
                "the whitening was fitted on other data",
                given=tuple(x.shape),
                expected=f"[N, ...] with {self.mean.shape[1]} values per item",
            )
        return flat

    def apply(self, x: Tensor) -> Tensor:
        """Whiten ``[N, ...]``: ``(flat - mean) @ matrix``, in the shape and dtype of ``x``; differentiable."""
        flat = self._flat(x)
        mean, matrix = self.mean.to(flat), self.matrix.to(flat)
        return ((flat - mean) @ matrix).reshape(x.shape).to(x.dtype)

    def invert(self, x: Tensor) -> Tensor:
        """Undo :meth:`apply` on whitened ``[N, ...]``."""
        flat = self._flat(x)
        mean, inverse = self.mean.to(flat), self.inverse.to(flat)
        return (flat @ inverse + mean).reshape(x.shape).to(x.dtype)


def fit_zca(x: Tensor, eps: float = 0.1, *, unbiased: bool = True) -> ZCA:
    """Fit ZCA whitening on ``[N, ...]``; the decomposition runs in float64 where the device has it.

    Args:
        x: training data, flattened to ``D`` values per item. The covariance has ``D^2`` entries.
        eps: added to every eigenvalue of the covariance; 0 whitens exactly, if the covariance has full rank.
        unbiased: divide by N - 1 (otherwise N).

    Returns:
        A :class:`ZCA` in the dtype of ``x`` (at least float32).

    Raises:
        DataError: for fewer than two items, values that are not finite, or ``eps = 0`` with a singular covariance.
        ConfigError: for a negative ``eps``.

    Example:
        >>> x = torch.randn(200, 4, dtype=torch.float64)
        >>> white = fit_zca(x, eps=0.0).apply(x)
        >>> torch.allclose(white.T.cov(), torch.eye(4, dtype=torch.float64), atol=1e-9)
        True
    """
    if eps < 0:
        raise ConfigError("eps", given=eps, expected=">= 0 (0.1 is usual)")
    if x.ndim < 2 or len(x) < 2:
        raise DataError("x", "whitening needs a covariance", given=tuple(x.shape), expected="[N, ...] with N >= 2")
    flat = widened(x.detach().flatten(1))
    if not bool(torch.isfinite(flat).all()):
        bad = (~torch.isfinite(flat)).any(1).nonzero().flatten().tolist()
        raise DataError("x", "some items are not finite", given=bad, expected="finite pixels")
    mean = flat.mean(0, keepdim=True)
    centred = flat - mean
    covariance = centred.T @ centred / (len(flat) - (1 if unbiased else 0))
    # symmetric and positive up to rounding, so the eigenvalues are the singular values
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0.0)
    if eps == 0 and bool((values <= values.max() * values.numel() * torch.finfo(flat.dtype).eps).any()):
        raise DataError(
            "x",
            f"the covariance of {len(flat)} items with {flat.shape[1]} values each has no inverse",
            expected="more items, or eps > 0",
            remedy="use eps=0.1",
        )
    root = torch.sqrt(values + eps)
    dtype = torch.promote_types(x.dtype, torch.float32)
    matrix, inverse = (vectors / root) @ vectors.T, (vectors * root) @ vectors.T
    return ZCA(mean.to(dtype), matrix.to(dtype), inverse.to(dtype))
