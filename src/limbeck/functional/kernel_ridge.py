"""Repeated self-distillation of kernel ridge regression in closed form (Borup and Andersen 2021, arXiv 2102.13088)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import in_range

__all__ = ["SelfDistilledRidge", "optimal_weight", "self_distilled_ridge"]


class SelfDistilledRidge(NamedTuple):
    """All steps of a repeatedly distilled kernel ridge regression.

    Attributes:
        fitted: values on the training inputs ``[T + 1, n, k]``; the first are the targets themselves.
        coefficients: ``[T, n, k]``: the prediction of step t is ``K(x, X) @ coefficients[t - 1]``.
        limit: the coefficients after infinitely many steps ``[n, k]``; zero for weight 0.
        diagonals: ``[T, n]``, how much of each eigenvector of the kernel remains after each step, eigenvalues ascending.
        limit_diagonal: ``[n]``, the same after infinitely many steps.
        weights: the weight of the true targets at each step ``[T]``; that of the first has no effect.
    """

    fitted: Tensor
    coefficients: Tensor
    limit: Tensor
    diagonals: Tensor
    limit_diagonal: Tensor
    weights: Tensor


def optimal_weight(targets: Tensor, first: Tensor, distilled: Tensor) -> float | None:
    """The weight of the true targets that fits held-out targets best, in [0, 1]; None where both predictions are equal.

    The prediction of a step is linear in its weight: ``distilled`` at 0, ``first`` at 1.

    Source: a closed form is stated in the paper; this expression is derived from the linearity [reconstructed].

    Args:
        targets: of held-out items ``[m, k]``, which must not be training items.
        first: predictions of the first step for them.
        distilled: predictions of a step that learns from the previous step alone.

    Example:
        >>> optimal_weight(torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[0.0]]))
        0.5
    """
    gap = first - distilled
    size = float(gap.square().sum())
    return None if size == 0 else min(1.0, max(0.0, float(((targets - distilled) * gap).sum()) / size))


def self_distilled_ridge(
    kernel: Tensor,
    targets: Tensor,
    *,
    ridge: float,
    weight: float | Sequence[float] | None,
    steps: int,
    held_out: tuple[Tensor, Tensor] | None = None,
) -> SelfDistilledRidge:
    """Kernel ridge regression that learns ``steps`` times from a mix of the targets and of its own previous fit.

    Step t learns ``weight * Y + (1 - weight) * Y_(t-1)``; step 1 learns ``Y``. One eigendecomposition serves all steps,
    and for a constant weight the limit is the ridge regression with the penalty ``ridge / weight``.

    Source: equations (3) to (9) of the paper, and its released notebook.

    Args:
        kernel: of the training inputs with each other ``[n, n]``, symmetric and positive.
        targets: ``[n, k]``.
        ridge: the penalty, above 0.
        weight: of the true targets, in [0, 1]: one number, or one per step (the first has no effect); None chooses it at
            each step on ``held_out``. The limit goes on with the last.
        steps: 1 or more.
        held_out: (kernel of held-out with training inputs ``[m, n]``, their targets ``[m, k]``).

    Raises:
        ConfigError: a setting is out of range, or the weight is to be chosen without held-out items.
        ShapeError: kernel and targets do not fit.

    Example:
        >>> found = self_distilled_ridge(torch.eye(2), torch.ones(2, 1), ridge=1.0, weight=0.0, steps=2)
        >>> found.fitted[:, 0, 0]
        tensor([1.0000, 0.5000, 0.2500])
    """
    if not ridge > 0:
        raise ConfigError("ridge", given=ridge, expected="a number > 0")
    if steps < 1:
        raise ConfigError("steps", given=steps, expected="1 or more")
    if weight is None and held_out is None:
        raise ConfigError("held_out", given=None, expected="held-out items to choose the weight on")
    given = None if weight is None else [weight] * steps if isinstance(weight, float | int) else list(weight)
    if given is not None and len(given) != steps:
        raise ConfigError("weight", given=f"{len(given)} numbers", expected=f"one, or one for each of {steps} steps")
    for one in given or ():
        in_range("weight", one, 0, 1)
    if kernel.ndim != 2 or targets.ndim != 2 or kernel.shape != (len(targets), len(targets)):
        raise ShapeError(
            "kernel", given=list(kernel.shape), expected=f"[n, n] for targets {list(targets.shape)}, [n, k]"
        )
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp(min=0)
    shrunk = (values / (values + ridge))[:, None]  # A
    y = vectors.T @ targets  # in the eigenbasis
    inverse = 1 / (values + ridge)[:, None]

    learned, fits = y, [targets]
    used: list[float] = []
    diagonal, diagonals, coefficients = torch.ones_like(values), [], []
    first: Tensor | None = None
    for step in range(steps):
        share: float | None = None if given is None else float(given[step])
        if step and share is None:
            assert held_out is not None and first is not None
            share = optimal_weight(held_out[1], first, held_out[0] @ (vectors @ (inverse * learned)))
            share = used[-1] if share is None else share
        share = 1.0 if share is None else share
        if step:
            target = share * y + (1 - share) * learned
            diagonal = shrunk[:, 0] * (share + (1 - share) * diagonal)
        else:
            target, diagonal = y, shrunk[:, 0]
        coefficients.append(vectors @ (inverse * target))
        if first is None and held_out is not None:
            first = held_out[0] @ coefficients[0]
        learned = shrunk * target
        fits.append(vectors @ learned)
        diagonals.append(diagonal)
        used.append(share)
    last = used[-1]
    ended = last * values / (last * values + ridge)
    limit = vectors @ (last / (last * values + ridge)[:, None] * y)
    return SelfDistilledRidge(
        torch.stack(fits),
        torch.stack(coefficients),
        limit,
        torch.stack(diagonals),
        ended,
        torch.tensor(used, dtype=kernel.dtype),
    )
