"""Blocks of a decoder made smaller, and how far the smaller one is from its original (Puzzle, arXiv 2411.19146).

Weights are laid out as ``nn.Linear`` holds them, [out, in]. Channels are those of a feed-forward layer's inside; heads
of keys and values (KV heads) are shared by groups of query heads, which lie one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, linear

from ..errors import ConfigError, ShapeError
from ._common import choose
from .divergence import jensen_shannon, kl, total_variation
from .labels import cross_entropy

BlockLoss = Literal["tensor", "token", "sample"]
KvInit = Literal["average", "first", "prune", "repeat"]
Importance = Literal["independent", "iterative"]
Score = Literal["kl", "lm", "cosine"]

EPS = 1e-6
"""What keeps the parent's energy from being zero."""


def normalized_mse(
    child: Tensor, parent: Tensor, *, eps: float = EPS, mode: BlockLoss = "tensor", where: Tensor | None = None
) -> Tensor:
    """Squared error of a block's output over the energy of its parent's.

    Args:
        child: ``[B, T, H]``.
        parent: ``[B, T, H]``.
        eps: small and positive.
        mode: ``tensor``: both means over everything, one value; ``token``: ``|c - p|^2 / (|p|^2 + eps)`` of each token
            ``[B, T]``; ``sample``: both means over one sample's tokens ``[B]``.
        where: which tokens count ``[B, T]``; in ``token`` the others are 0.

    Returns:
        A scalar, ``[B, T]`` or ``[B]``.

    Raises:
        ShapeError: the two differ in shape.

    Example:
        >>> p = torch.ones(1, 2, 4)
        >>> normalized_mse(p * 1.5, p, mode="token")
        tensor([[0.2500, 0.2500]])
    """
    choose("mode", mode, BlockLoss, "way to take the mean")
    if child.shape != parent.shape:
        raise ShapeError("child", given=list(child.shape), expected=f"the parent's shape {list(parent.shape)}")
    c, p = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (child, parent))
    if where is not None:  # torch.where, not a product: what does not count may hold anything
        c, p = (torch.where(where.bool().unsqueeze(-1), x, torch.zeros_like(x)) for x in (c, p))
    gap = (c - p).square()
    if mode == "token":
        value = gap.sum(-1) / (p.square().sum(-1) + eps)
        return value if where is None else torch.where(where.bool(), value, torch.zeros_like(value))
    energy = (p - eps).square()
    if where is not None:
        energy = torch.where(where.bool().unsqueeze(-1), energy, torch.zeros_like(energy))
    over = tuple(range(1, p.ndim)) if mode == "sample" else tuple(range(p.ndim))
    return gap.sum(over) / energy.sum(over).clamp(min=eps * eps)


# ------------------------------------------------------------------------------------------------------------ importance
def channel_importance(weight: Tensor, x: Tensor) -> Tensor:
    """How much each channel adds to a feed-forward layer's output: ``mean |x_i| * ||W[:, i]||``, ``[I]``.

    Args:
        weight: of the down-projection ``[H, I]``.
        x: what goes into it ``[..., I]``. Values of several batches of one size are added up.

    Example:
        >>> channel_importance(torch.tensor([[3.0, 0.0], [4.0, 1.0]]), torch.tensor([[1.0, -2.0]]))
        tensor([5., 2.])
    """
    _channels(weight, x)
    return weight.norm(dim=0) * x.abs().flatten(0, -2).mean(0)


def pruning_schedule(channels: int, steps: int) -> list[int]:
    """How many channels fall in each of some steps: spread evenly, the larger portions first.

    Example:
        >>> pruning_schedule(10, 4)
        [3, 3, 2, 2]
    """
    if steps < 1 or channels < 0:
        raise ConfigError("steps", given=(channels, steps), expected="channels of 0 or more in at least one step")
    return [channels // steps + (i < channels % steps) for i in range(steps)]


class ChannelRank(NamedTuple):
    """Channels as the iterative hook leaves them.

    Attributes:
        rank: ``[I]``, 0 for the channel that fell first.
        order: ``[I]``, the channels in the order in which they fell.
    """

    rank: Tensor
    order: Tensor


def iterative_channels(weight: Tensor, batches: Iterable[Tensor], schedule: Sequence[int] | None = None) -> ChannelRank:
    """Channels removed a few at a time, each time those without which the output would change least.

    With s the output that is already lost by what was removed, channel i counts
    ``sqrt(||s||^2 + 2 x_i s.W[:, i] + x_i^2 ||W[:, i]||^2 + 1e-8)``, the mean over tokens, added up until something is removed.

    Args:
        weight: of the down-projection ``[H, I]``.
        batches: what goes into it, ``[..., I]``, one tensor a step.
        schedule: how many fall after each batch; left out, all of them, spread evenly (`pruning_schedule`).

    Raises:
        ConfigError: the schedule has not one entry for each batch, or removes more than there are.

    Example:
        >>> w, x = torch.eye(3), torch.tensor([[1.0, 3.0, 2.0]])
        >>> iterative_channels(w, [x, x, x]).order
        tensor([0, 2, 1])
    """
    parts = list(batches)
    channels = weight.shape[1]
    plan = pruning_schedule(channels, max(1, len(parts))) if schedule is None else [int(k) for k in schedule]
    if len(plan) != len(parts) or sum(plan) > channels or min(plan, default=0) < 0:
        raise ConfigError(
            "schedule", given=plan, expected=f"a number for each of {len(parts)} batches, {channels} at most together"
        )
    square = weight.square().sum(0)  # [I]
    gone = torch.zeros(channels, dtype=torch.bool, device=weight.device)
    score = torch.zeros(channels, dtype=weight.dtype, device=weight.device)
    order: list[Tensor] = []
    for x, fall in zip(parts, plan, strict=True):
        _channels(weight, x)
        flat = x.flatten(0, -2)  # [n, I]
        lost = linear(flat * gone, weight)  # [n, H]
        own = lost.square().sum(-1, keepdim=True) + 2 * flat * (lost @ weight) + flat.square() * square
        score = score + (own + 1e-8).clamp(min=0).sqrt().mean(0)
        if not fall:
            continue
        least = score.masked_fill(gone, float("inf")).argsort(stable=True)[:fall]
        order.append(least)
        gone[least] = True
        score = torch.zeros_like(score)
    left = (~gone).nonzero()[:, 0]  # a schedule may keep some: in the order of what they count
    order.append(left[score[left].argsort(stable=True)])
    found = torch.cat(order)
    rank = torch.empty_like(found)
    rank[found] = torch.arange(channels, device=found.device)
    return ChannelRank(rank, found)


def kv_importance(weight: Tensor, x: Tensor, *, kv_heads: int) -> Tensor:
    """How much each KV head adds to an attention's output: the mean over tokens of its group's norm, ``[kv_heads]``.

    Args:
        weight: of the output projection ``[H, heads * d]``.
        x: what goes into it ``[..., heads * d]``: query heads of one KV head lie side by side.
        kv_heads: how many there are.

    Raises:
        ConfigError: they do not divide the columns.

    Example:
        >>> kv_importance(torch.eye(4), torch.tensor([[3.0, 4.0, 0.0, 1.0]]), kv_heads=2)
        tensor([5., 1.])
    """
    _channels(weight, x)
    if kv_heads < 1 or weight.shape[1] % kv_heads:
        raise ConfigError("kv_heads", given=kv_heads, expected=f"a number that divides {weight.shape[1]} columns")
    parts = x.flatten(0, -2).unflatten(-1, (kv_heads, -1))  # [n, kv, g d]
    groups = weight.unflatten(1, (kv_heads, -1))  # [H, kv, g d]
    return torch.einsum("nkc,hkc->nkh", parts, groups).norm(dim=-1).mean(0)


def _channels(weight: Tensor, x: Tensor) -> None:
    if weight.ndim != 2 or x.ndim < 2 or x.shape[-1] != weight.shape[1]:
        raise ShapeError("x", given=list(x.shape), expected=f"[..., {weight.shape[-1]}], the columns of the weight")


# --------------------------------------------------------------------------------------------------------- initialisation
class AttentionWeights(NamedTuple):
    """Projections of queries ``[heads d, H]``, keys and values ``[kv d, H]``, and of the output ``[H, heads d]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor


def init_kv(
    weights: AttentionWeights,
    kv_heads: int,
    *,
    head_dim: int,
    how: KvInit = "average",
    importance: Tensor | None = None,
) -> AttentionWeights:
    """An attention with another number of KV heads, begun from the parent's.

    Args:
        weights: the parent's. Biases are weights of one column: ``bias[:, None]``; give ``o`` as it is.
        kv_heads: how many the child has.
        head_dim: d.
        how: ``average``: each is the mean of a group of the parent's; ``first``: the first of its group; ``repeat``: more
            than the parent's, each several times; ``prune``: the most important are kept, each first in a group of its own
            with the queries that it had, and queries whose head is gone are silenced in ``o``.
        importance: of the parent's KV heads, of ``prune`` ``[kv]``.

    Raises:
        ConfigError: the numbers do not divide each other; ``prune`` without importance.

    Example:
        >>> k = torch.tensor([[1.0], [3.0]])
        >>> init_kv(AttentionWeights(torch.ones(2, 1), k, k, torch.ones(1, 2)), 1, head_dim=1).k
        tensor([[2.]])
    """
    choose("how", how, KvInit, "initialisation of KV heads")
    q, k, v, o = weights
    heads, kv = q.shape[0] // head_dim, k.shape[0] // head_dim
    fits = kv_heads % kv == 0 if how == "repeat" else kv % max(1, kv_heads) == 0
    if kv_heads < 1 or heads % kv_heads or not fits:
        expected = f"a multiple of {kv} that divides {heads}" if how == "repeat" else f"a number that divides {kv}"
        raise ConfigError("kv_heads", f"the parent has {heads} heads and {kv} of keys and values", given=kv_heads,
                          expected=expected)  # fmt: skip
    k3, v3 = (w.unflatten(0, (kv, head_dim)) for w in (k, v))  # [kv, d, H]
    if how == "repeat":
        k3, v3 = (w.repeat_interleave(kv_heads // kv, 0) for w in (k3, v3))
    elif how == "average":
        k3, v3 = (w.unflatten(0, (kv_heads, -1)).mean(1) for w in (k3, v3))
    elif how == "first":
        k3, v3 = (w[:: kv // kv_heads] for w in (k3, v3))
    else:
        if importance is None or importance.shape != (kv,):
            given = None if importance is None else list(importance.shape)
            raise ConfigError("importance", given=given, expected=f"a value for each of {kv} KV heads")
        q, k3, v3, o = _pruned(weights, kv_heads, head_dim, importance)
    return AttentionWeights(q, k3.flatten(0, 1), v3.flatten(0, 1), o)


def _pruned(weights: AttentionWeights, kv_heads: int, d: int, importance: Tensor) -> AttentionWeights:
    """KV heads kept by importance: query heads move with theirs, and the others follow behind with silent outputs."""
    q, k, v, o = weights
    heads, kv = q.shape[0] // d, k.shape[0] // d
    group, wide = heads // kv, heads // kv_heads
    ranked = importance.argsort(descending=True, stable=True)
    kept, rest = ranked[:kv_heads], ranked[kv_heads:]
    mine = kept[:, None] * group + torch.arange(group, device=kept.device)  # [kv', group] queries of what is kept
    others = (rest[:, None] * group + torch.arange(group, device=kept.device)).reshape(kv_heads, wide - group)
    order = torch.cat([mine, others], 1).flatten()  # [heads]
    silent = torch.cat([torch.zeros_like(mine), torch.ones_like(others)], 1).flatten().bool()
    q_new = q.unflatten(0, (heads, d))[order].flatten(0, 1)
    o_new = o.unflatten(1, (heads, d))[:, order].masked_fill(silent[:, None], 0.0).flatten(1)
    return AttentionWeights(q_new, k.unflatten(0, (kv, d))[kept], v.unflatten(0, (kv, d))[kept], o_new)


def kept_channels(importance: Tensor, width: int) -> Tensor:
    """The most important channels, in descending order ``[width]``.

    Raises:
        ConfigError: more than there are, or none.

    Example:
        >>> kept_channels(torch.tensor([0.1, 0.9, 0.5]), 2)
        tensor([1, 2])
    """
    if not 1 <= width <= len(importance):
        raise ConfigError("width", given=width, expected=f"1 to the parent's {len(importance)} channels")
    return importance.argsort(descending=True, stable=True)[:width]


def init_ffn(
    up: Tensor, down: Tensor, importance: Tensor, width: int, *, gate: Tensor | None = None, scale: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A narrower feed-forward layer, begun from the parent's most important channels, in descending order.

    Args:
        up: ``[I, H]``.
        down: ``[H, I]``.
        importance: higher is kept ``[I]``.
        width: how many channels the child has.
        gate: ``[I, H]``, of a gated layer.
        scale: multiply the down-projection by ``I / width``.

    Returns:
        ``up [width, H]``, ``down [H, width]`` and the gate.

    Raises:
        ConfigError: wider than the parent.

    Example:
        >>> up, down, _ = init_ffn(torch.eye(3), torch.eye(3), torch.tensor([0.1, 0.9, 0.5]), 2)
        >>> up.tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    keep = kept_channels(importance, width)
    factor = len(importance) / width if scale else 1.0
    return up[keep], down[:, keep] * factor, None if gate is None else gate[keep]


def linear_ffn(up: Tensor, down: Tensor) -> Tensor:
    """One linear layer in a feed-forward layer's place: ``W_down W_up``, ``[H, H]``; a gate is ignored."""
    return down @ up


def linear_attention(v: Tensor, o: Tensor, *, head_dim: int) -> Tensor:
    """One linear layer in an attention's place, as if each token saw itself alone: ``W_o W_v``, ``[H, H]``.

    Values that query heads share are repeated first.
    """
    heads, kv = o.shape[1] // head_dim, v.shape[0] // head_dim
    return o @ v.unflatten(0, (kv, head_dim)).repeat_interleave(heads // kv, 0).flatten(0, 1)


# ----------------------------------------------------------------------------------------------------------------- scores
def token_scores(student: Tensor, parent: Tensor, *, where: Tensor | None = None) -> dict[str, Tensor]:
    """What is told of each token by both models' logits ``[..., V]``: ``kl`` (parent || student), ``js``, ``tv``, ``mse``
    of the logits, and ``agrees`` with the parent's likeliest token; each ``[...]``.
    """
    gap = (student.float() - parent.float()).square().mean(-1)
    found = {
        "kl": kl(student, parent, where=where),
        "js": jensen_shannon(student, parent, where=where, scale_t2=False),
        "tv": total_variation(student, parent, where=where),
        "mse": gap,
        "agrees": (student.argmax(-1) == parent.argmax(-1)).float(),
    }
    return found


def hidden_cosine(student: Tensor, parent: Tensor) -> Tensor:
    """One less the cosine of two models' hidden states ``[..., H]``, of each token ``[...]``.

    Example:
        >>> hidden_cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([1.])
    """
    return 1 - cosine_similarity(student.float(), parent.float(), dim=-1)


def in_top(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label ``[...]`` is among the k likeliest of ``[..., V]``."""
    return (logits.topk(min(k, logits.shape[-1]), -1).indices == labels.unsqueeze(-1)).any(-1)


def batch_scores(
    logits: Tensor,
    parent_logits: Tensor,
    labels: Tensor,
    hidden: Tensor | None = None,
    parent_hidden: Tensor | None = None,
    *,
    ignore: int = -1,
    variant: Literal["paper", "released"] = "paper",
) -> dict[str, Tensor]:
    """Everything that a validation tells of each sample of a batch, by name ``[B]``.

    Args:
        logits, parent_logits: ``[B, T, V]``.
        labels: the tokens that come ``[B, T]``.
        hidden, parent_hidden: last hidden states ``[B, T, H]``.
        ignore: the label of positions that do not count.
        variant: ``paper`` takes means over the positions that count; ``released`` over all of them, of which those that do
            not count have no loss and are never right, and takes the cosine of a whole sample's hidden states.
    """
    where = labels != ignore
    every = torch.ones_like(where) if variant == "released" else where
    n = every.sum(-1).clamp(min=1)

    def mean(values: Tensor, counts: Tensor = every) -> Tensor:
        return torch.where(counts, values.double(), torch.zeros((), dtype=torch.double)).sum(-1) / n

    told = token_scores(logits, parent_logits, where=None if variant == "released" else where)
    found = {
        "lm_loss": mean(cross_entropy(logits, labels, where=where)),
        **{f"token_accuracy_top_{k}": mean(in_top(logits, labels, k) & where) for k in (1, 5, 10)},
        "kl_div": mean(told["kl"]),
        "js_div": mean(told["js"]),
        "tv_dist": mean(told["tv"]),
        "mse_loss_logits": mean(told["mse"]),
        "greedy_teacher_prediction_in_student_top_1": mean(told["agrees"]),
    }
    if hidden is not None and parent_hidden is not None:
        found["cosine_embedding_loss_hidden_states"] = (
            hidden_cosine(hidden.flatten(1), parent_hidden.flatten(1)).double()  # one vector a sample
            if variant == "released"
            else mean(hidden_cosine(hidden, parent_hidden))
        )
        found["normalized_mse_loss_hidden_states"] = normalized_mse(
            hidden, parent_hidden, mode="sample", where=None if variant == "released" else where
        ).double()
    return found


__all__ = [
    "AttentionWeights",
    "BlockLoss",
    "ChannelRank",
    "Importance",
    "KvInit",
    "Score",
    "batch_scores",
    "channel_importance",
    "hidden_cosine",
    "in_top",
    "init_ffn",
    "init_kv",
    "iterative_channels",
    "kept_channels",
    "kv_importance",
    "linear_attention",
    "linear_ffn",
    "normalized_mse",
    "pruning_schedule",
    "token_scores",
]
