"""A teacher of whom only the likeliest classes are known, with an explicit rule for the rest.

Conventions are those of `limbeck.functional.divergence`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import (
    NEG_INF,
    Direction,
    as_mask,
    as_temperature,
    choose,
    cool,
    hide,
    keep,
    scaled,
    statistics_dtype,
)
from ._pair import relative

Tail = Literal["drop", "renormalise", "uniform_rest", "lump_rest"]


def sparse_kl(
    student: Tensor,
    indices: Tensor,
    values: Tensor,
    *,
    tail: Tail = "lump_rest",
    direction: Direction = "forward",
    temperature: float | Tensor = 1.0,
    log_norm: Tensor | None = None,
    scale_t2: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """KL to a teacher of whom only k classes are known, with an explicit rule for the rest.

    Args:
        student: logits ``[..., V]``.
        indices: the known classes ``[..., k]``, each at most once per item.
        values: the teacher's log-probabilities ``[..., k]`` of those classes, at temperature 1 and normalised over all
            V classes; or its logits, when ``log_norm`` is given.
        tail: what the other V - k classes are taken for.
            ``drop``: no part, and unnormalised KL over the known ones, ``sum p log(p/q) - p + q``;
            ``renormalise``: no part, and both models renormalised over the known ones;
            ``lump_rest``: one class that holds the remaining mass (a lower bound of the dense KL);
            ``uniform_rest``: the remaining mass spread evenly.
        direction: ``forward`` is KL(teacher || student).
        temperature: divides the student's logits and the teacher's values. Other than 1 it needs ``log_norm`` for
            ``drop`` and ``lump_rest``: the mass of an unknown tail at another temperature is unknown.
        log_norm: ``logsumexp(teacher logits / temperature)`` ``[...]``; ``values`` are then logits.
        scale_t2: multiply by the temperature squared.
        where: valid items ``[...]``.

    Returns:
        Values ``[...]``, at least 0 under every rule, and equal to the dense KL when k = V.

    Example:
        >>> z = torch.tensor([[3.0, 1.0, 0.0, -2.0]])
        >>> top = z.log_softmax(-1).topk(2)
        >>> sparse_kl(z, top.indices, top.values, tail="lump_rest").item() < 1e-6
        True
    """
    choose("tail", tail, Tail, "tail rule")
    choose("direction", direction, Direction, "direction")
    items, size = student.shape[:-1], student.shape[-1]
    if indices.shape != values.shape or indices.shape[:-1] != items or not 0 < indices.shape[-1] <= size:
        raise ShapeError(
            "indices",
            given=f"indices {list(indices.shape)}, values {list(values.shape)}",
            expected=f"both {[*items, 'k']} with 1 <= k <= {size}",
        )
    dtype = statistics_dtype(student, values)
    where = as_mask(where, items)
    temperature = as_temperature(temperature, items, dtype)
    unit = not isinstance(temperature, Tensor) and temperature == 1.0
    if not unit and log_norm is None and tail in ("drop", "lump_rest"):
        raise ConfigError(
            "tail",
            f"{tail!r} at a temperature other than 1 needs the teacher's log-normaliser at that temperature",
            remedy="pass log_norm with logits as values, or use tail='renormalise' or 'uniform_rest'",
        )
    ids = indices.long() if where is None else torch.where(where.unsqueeze(-1), indices.long(), 0)
    known = hide(values.to(dtype), where)
    log_q = cool(hide(student.to(dtype), where), temperature).log_softmax(-1)
    hit_q = log_q.gather(-1, ids)
    missing = size - ids.shape[-1]

    def finish(log_p: Tensor, log_s: Tensor) -> Tensor:
        value = relative(log_p, log_s) if direction == "forward" else relative(log_s, log_p)
        return keep(scaled(value, temperature, scale_t2), where)

    if tail == "renormalise" or not missing:
        return finish(cool(known, temperature).log_softmax(-1), hit_q.log_softmax(-1))
    rest_p = None
    if log_norm is not None:
        norm = log_norm.to(dtype) if where is None else torch.where(where, log_norm.to(dtype), known.logsumexp(-1))
        log_p = cool(known, temperature) - norm.unsqueeze(-1)
        rest_p = _log_rest(log_p)
    elif tail == "uniform_rest" and not unit:
        each = cool(_log_rest(known) - math.log(missing), temperature)
        norm = torch.logaddexp(cool(known, temperature).logsumexp(-1, keepdim=True), each + math.log(missing))
        log_p, rest_p = cool(known, temperature) - norm, each + math.log(missing) - norm
    else:
        log_p, rest_p = known, _log_rest(known)
    if tail == "drop":
        return finish(log_p, hit_q)
    listed = torch.zeros_like(log_q, dtype=torch.bool).scatter(-1, ids, True)
    if tail == "lump_rest":
        rest_q = log_q.masked_fill(listed, NEG_INF).logsumexp(-1, keepdim=True)
        return finish(torch.cat([log_p, rest_p], -1), torch.cat([hit_q, rest_q], -1))
    dense = (rest_p - math.log(missing)).expand_as(log_q).scatter(-1, ids, log_p)
    return finish(dense, log_q)


@dataclass(frozen=True)
class TopK:
    """A teacher's distributions of whom k classes are known: a distribution over all classes, held in the size of k.

    Args:
        indices: the known classes ``[..., k]``, each at most once.
        values: their log-probabilities ``[..., k]``, normalised over all classes.
        classes: how many classes there are, V.
        tail: what becomes of the mass of the others: ``uniform_rest`` spreads it evenly, ``renormalise`` gives it to the
            known ones.

    Example:
        >>> known = TopK(torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.3]]).log(), 4)
        >>> known.logits.softmax(-1)
        tensor([[0.3000, 0.1000, 0.5000, 0.1000]])
    """

    indices: Tensor
    values: Tensor
    classes: int
    tail: Literal["uniform_rest", "renormalise"] = "uniform_rest"

    @property
    def shape(self) -> torch.Size:
        """Of what it stands for: ``[..., V]``."""
        return torch.Size((*self.indices.shape[:-1], self.classes))

    @property
    def logits(self) -> Tensor:
        """Log-probabilities of all classes ``[..., V]``: every one of them is written out."""
        log_p, rest = self.values.float(), self.classes - self.indices.shape[-1]
        tail = torch.log1p(-log_p.exp().sum(-1).clamp(max=1 - 1e-6)) - math.log(max(1, rest))
        if self.tail == "renormalise":
            log_p, tail = log_p - log_p.logsumexp(-1, keepdim=True), torch.full_like(tail, -1e4)
        return tail.unsqueeze(-1).repeat_interleave(self.classes, -1).scatter_(-1, self.indices.long(), log_p)

    def rows(self, at: Any) -> Tensor:
        """Log-probabilities ``[n, V]`` of some of the flattened items."""
        return self.flat()[at].logits

    def flat(self) -> TopK:
        """The items in one axis ``[N, k]``."""
        k = self.indices.shape[-1]
        return replace(self, indices=self.indices.reshape(-1, k), values=self.values.reshape(-1, k))

    def __getitem__(self, at: Any) -> TopK:
        """Some of the items."""
        return replace(self, indices=self.indices[at], values=self.values[at])

    def to(self, device: torch.device | str) -> TopK:
        """On another device."""
        return replace(self, indices=self.indices.to(device), values=self.values.to(device))


def _log_rest(log_p: Tensor) -> Tensor:
    """Log of the mass that the listed classes leave ``[..., 1]``; never below what the precision can tell from 0."""
    floor = torch.finfo(log_p.dtype).eps
    return (1.0 - log_p.exp().sum(-1, keepdim=True)).clamp_min(floor).log()
