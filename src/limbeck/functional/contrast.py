"""Views of an item drawn together, those of others pushed apart; and views made by changing the statistics of channels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import as_mask, keep, statistics_dtype
from .feature import unit


def info_nce(
    query: Tensor,
    keys: Tensor,
    positives: Tensor | None = None,
    *,
    temperature: float = 0.1,
    where: Tensor | None = None,
) -> Tensor:
    """Cross-entropy [N] of naming each query's own key among all keys, by the cosine of both over the temperature.

    Source: van den Oord et al. 2018 (arXiv 1807.03748); with keys from the same batch as in SimCLR.

    Args:
        query: embeddings ``[N, D]``, of any length: they are normalised here.
        keys: embeddings ``[M, D]``, the queries' own among them; at least two.
        positives: which key is whose, int64 ``[N]``; left out, the n-th is the n-th query's.
        temperature: divides the cosines, above 0.
        where: valid queries ``[N]``; the others count 0.

    Raises:
        ConfigError: the temperature is not above 0.
        ShapeError: widths differ, there is one key only (nothing to tell it from), or ``positives`` is needed.

    Example:
        >>> e = torch.eye(3)
        >>> info_nce(e, e, temperature=1.0)
        tensor([0.5514, 0.5514, 0.5514])
    """
    if not temperature > 0:
        raise ConfigError("temperature", given=temperature, expected="a number > 0")
    if query.ndim != 2 or keys.ndim != 2 or query.shape[1] != keys.shape[1]:
        raise ShapeError(
            "query", given=f"{list(query.shape)} and keys {list(keys.shape)}", expected="[N, D] and keys [M, D]"
        )
    if len(keys) < 2:
        raise ShapeError("keys", given=list(keys.shape), expected="two or more: one alone has nothing to be told from")
    if positives is None:
        if len(keys) != len(query):
            raise ShapeError(
                "positives", given=None, expected=f"which of the {len(keys)} keys belong to the {len(query)} queries"
            )
        positives = torch.arange(len(query), device=query.device)
    dtype = torch.promote_types(statistics_dtype(query), statistics_dtype(keys))
    mask = as_mask(where, query.shape[:1])
    cosines = unit(query.to(dtype)) @ unit(keys.to(dtype)).T / temperature  # [N, M]
    own = cosines.gather(1, positives[:, None])[:, 0]
    return keep(cosines.logsumexp(1) - own, mask)


def contrastive_critic(
    scores: Tensor, *, items: int, own: Tensor | None = None, log_z: float | Tensor = 0.0, where: Tensor | None = None
) -> Tensor:
    """Contrastive representation distillation: telling an item's own pair from K pairs with other items ``[N]``.

    ``-log h(own) - sum_k log(1 - h(other_k))`` with ``h = e^(score - log_z) / (e^(score - log_z) + K / M)``.

    Source: Tian et al. 2020 (CRD, arXiv 1910.10699), eqs. 17 and 18; the released code divides by a constant Z besides.

    Args:
        scores: cosines of student's and teacher's embeddings over the temperature ``[N, 1 + K]``, the own pair's first.
        items: M, the number of items in the data set.
        own: which of the other pairs count ``[N, K]`` (those of items of another class); K is then their number.
        log_z: the logarithm of Z; 0 is none.
        where: valid items ``[N]``.

    Example:
        >>> contrastive_critic(torch.tensor([[50.0, -50.0]]), items=100).item() < 1e-6
        True
    """
    if items < 1:
        raise ConfigError("items", given=items, expected="1 or more")
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ShapeError("scores", given=list(scores.shape), expected="[N, 1 + K] with K of 1 or more")
    z = scores.to(statistics_dtype(scores)) - log_z
    count = torch.full_like(z[:, :1], z.shape[1] - 1.0)
    if own is not None:
        if own.shape != z[:, 1:].shape:
            raise ShapeError("own", given=list(own.shape), expected=f"{list(z[:, 1:].shape)}")
        own = own.bool()
        count = own.sum(1, keepdim=True).to(z.dtype)
    noise = (count.clamp_min(1.0) / items).log()
    both = torch.logaddexp(z, noise)
    others = noise - both[:, 1:]
    if own is not None:
        others = keep(others, own)
    return keep(both[:, 0] - z[:, 0] - others.sum(1), as_mask(where, z.shape[:1]))


def paired_info_nce(
    query: Tensor,
    keys: Tensor,
    *,
    scale: float | Tensor = 10.0,
    queries: Tensor | None = None,
    others: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE [N]: the mean of naming each query's key among all keys, and each key's query among all queries.

    Source: Radford et al. 2021 (CLIP, arXiv 2103.00020), figure 3; ModularStarEncoder (arXiv 2503.03008) uses ``scale`` 10.

    Args:
        query: embeddings ``[N, D]`` of any length; the n-th belongs to the n-th key. They are normalised here.
        keys: embeddings ``[N, D]``.
        scale: multiplies the cosines, above 0 (the inverse of a temperature).
        queries: more queries ``[M, D]``, for the keys to be told from (those of other processes).
        others: more keys ``[M, D]``, for the queries to be told from.

    Raises:
        ConfigError: a scale that is a number is not above 0.
        ShapeError: queries and keys differ in shape, or there is one pair only and nothing to tell it from.

    Example:
        >>> e = torch.eye(3)
        >>> paired_info_nce(e, e, scale=1.0)
        tensor([0.5514, 0.5514, 0.5514])
    """
    if not isinstance(scale, Tensor) and not scale > 0:
        raise ConfigError("scale", given=scale, expected="a number > 0")
    if query.ndim != 2 or query.shape != keys.shape:
        raise ShapeError("keys", given=list(keys.shape), expected=f"one key per query, {list(query.shape)}")
    q, k = (
        (query if queries is None else torch.cat([query, queries])),
        (keys if others is None else torch.cat([keys, others])),
    )
    if min(len(q), len(k)) < 2:
        raise ShapeError(
            "query", given=list(query.shape), expected="two pairs or more: one has nothing to be told from"
        )
    dtype = statistics_dtype(query, keys)
    q, k = unit(q.to(dtype)), unit(k.to(dtype))
    own, n = torch.arange(len(query), device=query.device), len(query)
    rows = scale * q[:n] @ k.T  # [N, N + M]
    columns = rows.T if len(q) == n == len(k) else scale * k[:n] @ q.T
    return 0.5 * ((rows.logsumexp(1) - rows[own, own]) + (columns.logsumexp(1) - columns[own, own]))


def channel_statistics(x: Tensor, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean and deviation [N, C] of each channel of images or feature maps, without gradient.

    The deviation is ``sqrt(unbiased variance + eps)``, so that a channel of one value has a small one.

    Args:
        x: ``[N, C, *space]``.
        eps: added to the variance.

    Raises:
        ShapeError: a channel has fewer than two positions, and so no deviation.
    """
    if x.ndim < 3 or x.shape[2:].numel() < 2:
        raise ShapeError("x", given=list(x.shape), expected="maps [N, C, H, W] with two or more positions a channel")
    flat = x.detach().to(statistics_dtype(x)).flatten(2)
    mean = flat.mean(2)
    var = (flat - mean.unsqueeze(2)).square().sum(2) / (flat.shape[2] - 1)  # torch's own warns where there are no items
    return mean, (var + eps).sqrt()


def mix_distribution(
    x: Tensor,
    weights: Tensor,
    members: Tensor,
    statistics: tuple[Tensor, Tensor] | None = None,
    *,
    eps: float = 1e-6,
) -> Tensor:
    """Maps whose channels have the mean and deviation of a mixture of items: ``sigma~ (x - mu) / sigma + mu~``.

    ``mu~ = sum_k w_k mu(x_k)``, and ``sigma~`` likewise; statistics carry no gradient. With two members, the item itself
    and another, it is the operation of MixStyle (Zhou et al. 2021, arXiv 2104.02008).

    Args:
        x: images or feature maps ``[N, C, H, W]``.
        weights: of each member ``[N, K]``, summing to 1.
        members: the items whose statistics are mixed, int64 ``[N, K]``: rows of ``statistics``, or of x.
        statistics: means and deviations ``[M, C]`` of all items; left out, those of x.
        eps: added to the variance.

    Raises:
        ShapeError: weights and members have different shapes, or a channel has one position.

    Example:
        >>> x = torch.tensor([[[[0.0, 2.0]]], [[[10.0, 10.4]]]])
        >>> mixed = mix_distribution(x, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[0, 1], [1, 0]]))
        >>> mixed.flatten(1).round(decimals=2)
        tensor([[10.0000, 10.4000],
                [ 0.0000,  2.0000]])
    """
    if weights.ndim != 2 or weights.shape != members.shape or len(weights) != len(x):
        raise ShapeError(
            "weights",
            given=f"{list(weights.shape)} for members {list(members.shape)}",
            expected=f"both [{len(x)}, K]",
        )
    mean, std = channel_statistics(x, eps=eps)  # [N, C]
    means, stds = (mean, std) if statistics is None else statistics  # [M, C]
    w = weights.to(mean.dtype).unsqueeze(-1)
    new_mean, new_std = (w * means[members]).sum(1), (w * stds[members]).sum(1)  # [N, C]
    shape = (*mean.shape, *[1] * (x.ndim - 2))
    scale = (new_std / std).reshape(shape)
    return ((x - mean.reshape(shape)) * scale + new_mean.reshape(shape)).to(x.dtype)


__all__ = ["channel_statistics", "info_nce", "mix_distribution"]
