"""Token vectors pooled to one vector per text, and how much of one set of vectors another explains."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import ShapeError
from ._common import as_mask, choose, statistics_dtype

__all__ = ["Pooling", "pool_choices", "pool_tokens", "unexplained_variance"]

Pooling = Literal["mean", "first", "last"]
"""The mean over real tokens, the first real token, or the last one."""


def pool_tokens(hidden: Tensor, where: Tensor, how: Pooling = "mean", *, check: bool = True) -> Tensor:
    """One vector per text ``[N, D]`` from its tokens' vectors. Padding may stand on either side.

    Source: MT-LLM (Schmidt et al. 2024, arXiv 2406.12739), whose names for first and last are ``cls`` and ``eos``.

    Args:
        hidden: ``[N, T, D]``.
        where: which tokens are real ``[N, T]``; each text has at least one.
        how: ``mean``, ``first`` or ``last``.
        check: refuse a text without a real token, for which the mask has to be read from the device; off, where every text is
            known to have one (in graphs that are traced).

    Raises:
        ShapeError: the mask does not fit, or a text has no real token.

    Example:
        >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
        >>> mask = torch.tensor([[1, 1, 0]])
        >>> [pool_tokens(hidden, mask, how).item() for how in ("mean", "first", "last")]
        [2.0, 1.0, 3.0]
    """
    choose("how", how, Pooling, "pooling")
    if hidden.ndim != 3:
        raise ShapeError("hidden", given=list(hidden.shape), expected="token vectors [N, T, D]")
    mask = as_mask(where != 0, hidden.shape[:2])
    assert mask is not None
    if check:
        _none_empty(mask)
    if how == "mean":
        return _means(hidden, mask[..., None])[:, 0]
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    if how == "first":
        at = places.masked_fill(~mask, mask.shape[1]).amin(1)
    else:
        at = places.masked_fill(~mask, -1).amax(1)
    return hidden.gather(1, at[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]


def pool_choices(hidden: Tensor, where: Tensor) -> Tensor:
    """The mean of the tokens of each of C choices: ``[N, C, D]``.

    Source: MT-LLM's multiple-choice head: a choice's tokens are its own and those of its context.

    Args:
        hidden: ``[N, T, D]``.
        where: which tokens belong to which choice ``[N, T, C]``; each choice has at least one.

    Raises:
        ShapeError: the mask does not fit, or a choice has no token.
    """
    if hidden.ndim != 3 or where.ndim != 3 or where.shape[:2] != hidden.shape[:2]:
        raise ShapeError(
            "where", given=f"{list(where.shape)} for {list(hidden.shape)}", expected="[N, T, C] for vectors [N, T, D]"
        )
    mask = where != 0
    _none_empty(mask)
    return _means(hidden, mask)


def _means(hidden: Tensor, mask: Tensor) -> Tensor:
    weight = mask.to(statistics_dtype(hidden))
    return weight.transpose(1, 2) @ hidden.to(weight.dtype) / weight.sum(1)[..., None]


def _none_empty(mask: Tensor) -> None:
    if not bool(mask.any(1).all()):
        raise ShapeError("where", given="a row without a token", expected="at least one real token in each row")


def unexplained_variance(student: Tensor, teacher: Tensor) -> Tensor:
    """The fraction of variance unexplained: squared distance over the student's variance within the batch, a scalar.

    0 where both agree; 1 where the teacher's vectors are no better than the student's mean.

    Source: MT-LLM's released code, in which the variance is the student's, per dimension around the mean of the batch.

    Args:
        student: ``[N, D]``.
        teacher: ``[N, D]``.

    Raises:
        ShapeError: the two have different shapes.

    Example:
        >>> b, a = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 1], [3, 5]])
        >>> unexplained_variance(b, a).item()
        0.5
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ShapeError("teacher", given=list(teacher.shape), expected=f"vectors {list(student.shape)}, [N, D]")
    dtype = statistics_dtype(student, teacher)
    x, y = student.to(dtype), teacher.to(dtype)
    return (x - y).square().mean() / (x - x.mean(0)).square().mean()
