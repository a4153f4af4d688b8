"""Targets that say less where a token may be private, and how much a model gives away of planted secrets.

Swing distillation (Li et al. 2022, arXiv 2212.08349) is known to us by its abstract: temperatures per token by a privacy
score, noise on soft targets. The formulas here are our reading of it [reconstructed]. Exposure is Carlini et al. 2019
(arXiv 1802.08232). None of this is differential privacy: it is an empirical defence, and noise composes over epochs.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, ShapeError
from ._common import NEG_INF, choose, extremes, in_range, statistics_dtype

Rise = Literal["linear", "exp"]
NoiseSpace = Literal["logit", "probability"]


def span_score(offsets: Tensor, spans: Tensor, probability: Tensor) -> Tensor:
    """Privacy scores of tokens from private spans of characters: the largest probability among spans that touch the token.

    Args:
        offsets: half-open character range of every token, int64 ``[T, 2]``; ``(0, 0)`` for special tokens.
        spans: half-open character ranges, int64 ``[S, 2]``; empty ones touch nothing.
        probability: of each span ``[S]``, in [0, 1].

    Returns:
        ``[T]``, 0 where no span shares a character with the token.

    Raises:
        ShapeError: the arguments do not fit.
        DataError: a range is reversed, or a probability lies outside [0, 1].

    Example:
        >>> span_score(torch.tensor([[0, 4], [4, 8]]), torch.tensor([[5, 6]]), torch.tensor([0.9]))
        tensor([0.0000, 0.9000])
    """
    for name, x in (("offsets", offsets), ("spans", spans)):
        if x.ndim != 2 or x.shape[-1] != 2:
            raise ShapeError(name, given=list(x.shape), expected="character ranges [n, 2]")
        seen = extremes(x[:, 1] - x[:, 0])
        if seen is not None and seen[0] < 0:
            raise DataError(name, "a range ends before it begins", expected="half-open ranges (start, end)")
    if probability.shape != spans.shape[:1]:
        raise ShapeError("probability", given=list(probability.shape), expected=f"one per span {list(spans.shape[:1])}")
    _check_scores("probability", probability)
    score = probability if probability.is_floating_point() else probability.float()
    if not len(spans):
        return score.new_zeros(len(offsets)) + score.sum()  # of nothing, 0
    begin = torch.maximum(offsets[:, None, 0], spans[None, :, 0])
    end = torch.minimum(offsets[:, None, 1], spans[None, :, 1])
    return torch.where(begin < end, score, torch.zeros_like(score)).amax(1)


def memorisation_score(teacher: Tensor, reference: Tensor, *, offset: float = 2.0, width: float = 1.0) -> Tensor:
    """Privacy scores from how much better the teacher knows a token than a reference model does.

    ``logistic((teacher - reference - offset) / width)``. [reconstructed]

    Args:
        teacher: log-probability of the token that comes ``[...]``, in nats.
        reference: the same of a model that has not seen the text ``[...]``.
        offset: gap in nats at which the score is one half.
        width: nats over which it rises, above 0.

    Raises:
        ConfigError: ``width`` is not above 0.

    Example:
        >>> memorisation_score(torch.tensor([-1.0]), torch.tensor([-3.0]))
        tensor([0.5000])
    """
    in_range("width", width, 0, math.inf, open_low=True, open_high=True)
    dtype = statistics_dtype(teacher, reference)
    return torch.sigmoid((teacher.to(dtype) - reference.to(dtype) - offset) / width)


def _check_scores(name: str, score: Tensor) -> None:
    seen = extremes(score)
    if seen is not None and not (seen[0] >= 0 and seen[1] <= 1):
        raise DataError(name, "lies outside [0, 1]", given=[round(x, 6) for x in seen], expected="numbers in [0, 1]")


def per_token_temperature(score: Tensor, *, t_min: float = 1.0, t_max: float = 10.0, shape: Rise = "linear") -> Tensor:
    """Temperatures that rise with the privacy score: ``t_min`` at 0, ``t_max`` at 1. [reconstructed]

    Args:
        score: in [0, 1], any shape.
        t_min: above 0.
        t_max: at least ``t_min``.
        shape: ``linear``, ``t_min + (t_max - t_min) s``, or ``exp``, ``t_min (t_max / t_min)^s``.

    Returns:
        Temperatures in the shape of ``score``.

    Raises:
        ConfigError: the temperatures are not in order.
        DataError: a score lies outside [0, 1] (seen on the CPU).

    Example:
        >>> per_token_temperature(torch.tensor([0.0, 0.5, 1.0]))
        tensor([ 1.0000,  5.5000, 10.0000])
    """
    choose("shape", shape, Rise, "shape")
    in_range("t_min", t_min, 0, math.inf, open_low=True, open_high=True)
    in_range("t_max", t_max, t_min, math.inf, open_high=True)
    _check_scores("score", score)
    s = score.to(statistics_dtype(score))
    if shape == "linear":
        return t_min + (t_max - t_min) * s
    return t_min * torch.exp(s * math.log(t_max / t_min))


def noise_scale(
    sigma: float = 0.5, *, epsilon: float | None = None, score: Tensor | None = None, tied: bool = True
) -> float | Tensor:
    """Scale of the noise at each token: ``sigma s`` where tied to the score, else ``sigma``.

    A privacy budget ``epsilon`` is the Laplace mechanism's instead: ``2 / epsilon``, untied, 2 being how much two probability
    vectors can differ in sum. [reconstructed]

    Args:
        sigma: 0 or more.
        epsilon: above 0, or ``None``.
        score: privacy scores ``[...]``; needed where the scale is tied.
        tied: multiply by the score.

    Raises:
        ConfigError: ``sigma`` or ``epsilon`` lies outside its range, or the score is missing.

    Example:
        >>> noise_scale(0.5, tied=False), noise_scale(epsilon=4.0)
        (0.5, 0.5)
    """
    if epsilon is not None:
        in_range("epsilon", epsilon, 0, math.inf, open_low=True, open_high=True)
        return 2.0 / epsilon
    in_range("sigma", sigma, 0, math.inf, open_high=True)
    if not tied:
        return float(sigma)
    if score is None:
        raise ConfigError("score", given=None, expected="privacy scores, which the noise is tied to")
    return sigma * score.to(statistics_dtype(score))


def protected_target(
    teacher: Tensor,
    temperature: float | Tensor,
    noise: Tensor | None = None,
    *,
    scale: float | Tensor = 0.0,
    space: NoiseSpace = "logit",
) -> Tensor:
    """Log-probabilities of the teacher's softened, noised prediction; without gradient.

    ``logit``: ``log softmax(z / T + k e)``, the noise after the division. ``probability``: ``softmax(z / T) + k e``, cut off at
    0 and divided by its sum, uniform where nothing is left; this biases, so the first is the default. [reconstructed]

    Args:
        teacher: logits ``[..., V]``.
        temperature: a number, or one per token ``[...]``.
        noise: draws e of unit scale ``[..., V]``, standard normal or Laplace of scale 1; ``None`` adds none.
        scale: k, a number or one per token ``[...]``.
        space: ``logit`` or ``probability``.

    Returns:
        ``[..., V]``, minus infinity where the probability is 0; their exponentials sum to 1.

    Raises:
        ShapeError: the noise does not fit.

    Example:
        >>> protected_target(torch.tensor([4.0, 2.0, 0.0, 0.0]), 5.5).exp()
        tensor([0.3757, 0.2612, 0.1816, 0.1816])
    """
    choose("space", space, NoiseSpace, "space")
    if noise is not None and noise.shape != teacher.shape:
        raise ShapeError("noise", given=list(noise.shape), expected=f"the teacher's shape {list(teacher.shape)}")
    z = teacher.detach().to(statistics_dtype(teacher))
    T = temperature.detach().unsqueeze(-1) if isinstance(temperature, Tensor) else temperature
    z = z / T
    if noise is None:
        return z.log_softmax(-1)
    k = scale.detach().unsqueeze(-1) if isinstance(scale, Tensor) else scale
    moved = k * noise.detach().to(z.dtype)
    if space == "logit":
        return (z + moved).log_softmax(-1)
    p = (z.softmax(-1) + moved).clamp_min(0.0)
    mass = p.sum(-1, keepdim=True)
    some = mass > 0
    p = torch.where(some, p / torch.where(some, mass, torch.ones_like(mass)), torch.full_like(p, 1 / p.shape[-1]))
    return torch.where(p > 0, p, torch.ones_like(p)).log().masked_fill(p <= 0, NEG_INF)


class Exposure(NamedTuple):
    """How well a model knows planted secrets.

    Attributes:
        rank: of each canary among the candidates ``[..., K]``, 1 the most likely; ties share their mean rank.
        exposure: ``log2 R - log2 rank`` ``[..., K]``, in bits.
    """

    rank: Tensor
    exposure: Tensor


def exposure(log_perplexity: Tensor, index: Tensor) -> Exposure:
    """Exposure of canaries by their exact rank among all candidates (Carlini et al. 2019, definition 4).

    Args:
        log_perplexity: of every candidate, the canaries included ``[..., R]``; lower is more likely.
        index: places of the canaries among them, int64 ``[K]``.

    Raises:
        ShapeError: fewer than two candidates.
        DataError: a place outside the candidates, or a value that is not a number.

    Example:
        >>> exposure(torch.tensor([1.0, 0.5, 2.0, 3.0]), torch.tensor([1, 3])).exposure
        tensor([2., 0.])
    """
    if log_perplexity.ndim == 0 or log_perplexity.shape[-1] < 2:
        raise ShapeError("log_perplexity", given=list(log_perplexity.shape), expected="two candidates or more [..., R]")
    R = log_perplexity.shape[-1]
    seen = extremes(index)
    if seen is not None and (seen[0] < 0 or seen[1] >= R):
        raise DataError(
            "index", "a canary is not among the candidates", given=index.tolist(), expected=f"places in 0..{R - 1}"
        )
    values = log_perplexity.detach().to(statistics_dtype(log_perplexity))
    numbers = extremes(values)
    if numbers is not None and any(math.isnan(x) for x in numbers):
        raise DataError("log_perplexity", "some candidates have no number (nan)")
    own = values.index_select(-1, index.flatten()).unsqueeze(-1)  # [..., K, 1]
    others = values.unsqueeze(-2)
    rank = (others < own).sum(-1) + ((others == own).sum(-1) + 1) / 2
    rank = rank.to(values.dtype)
    return Exposure(rank, math.log2(R) - rank.log2())


def leakage_reduction(protected: Tensor, ordinary: Tensor) -> Tensor:
    """By which share the mean exposure of canaries is lower than after ordinary distillation: ``1 - mean / mean``.

    Args:
        protected: exposures after the protected distillation ``[K]``.
        ordinary: exposures after the ordinary one ``[K]``.

    Returns:
        A scalar; 0 for no change, 1 where nothing is exposed, negative where more is.

    Example:
        >>> leakage_reduction(torch.tensor([1.0, 3.0]), torch.tensor([10.0, 10.0]))
        tensor(0.8000)
    """
    for name, x in (("protected", protected), ("ordinary", ordinary)):
        if not x.numel():
            raise ShapeError(name, given=list(x.shape), expected="the exposure of one canary or more [K]")
    dtype = statistics_dtype(protected, ordinary)
    return 1 - protected.to(dtype).mean() / ordinary.to(dtype).mean()


__all__ = [
    "Exposure",
    "NoiseSpace",
    "Rise",
    "exposure",
    "leakage_reduction",
    "memorisation_score",
    "noise_scale",
    "per_token_temperature",
    "protected_target",
    "span_score",
]
