"""Which parts of a corpus a large model finds much likelier than a small one does (MiniPLM, Gu et al. 2024, arXiv 2410.17215)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, ShapeError

__all__ = ["cut_points", "difference_scores", "drawn_share", "highest_share"]


def difference_scores(teacher: Tensor, reference: Tensor) -> Tensor:
    """How much likelier each chunk of text is under the teacher than under a reference model: ``nll_ref - nll_teacher`` [N].

    With means per token this is ``log(p / p_ref) / length``. High scores mark text that the teacher knows and the reference
    does not; easy text and noise score near zero.

    Source: MiniPLM, section 3.2 (difference sampling); the released code takes means per token, as here.

    Args:
        teacher: mean negative log-likelihood per token of each chunk under the teacher ``[N]``, in nats.
        reference: the same under the reference model ``[N]``.

    Raises:
        ShapeError: the two have different shapes, or more than one dimension.
        DataError: a score is not finite.

    Example:
        >>> difference_scores(torch.tensor([1.0, 3.0]), torch.tensor([1.25, 4.5]))
        tensor([0.2500, 1.5000])
    """
    if teacher.ndim != 1 or teacher.shape != reference.shape:
        raise ShapeError(
            "reference",
            given=f"{list(reference.shape)}, and {list(teacher.shape)} of the teacher",
            expected="one value per chunk [N] from both models, for the same corpus",
        )
    for name, scores in (("teacher", teacher), ("reference", reference)):
        bad = (~scores.isfinite()).nonzero()[:5, 0].tolist()
        if bad:
            raise DataError(name, "scores must be finite", given=f"chunks {', '.join(map(str, bad))} are not")
    return reference - teacher


def highest_share(scores: Tensor, share: float) -> Tensor:
    """Places of the ``int(share * N)`` highest scores, in the order of the corpus: int64 ``[K]``.

    Of equal scores, the earlier place is kept.

    Source: MiniPLM, section 3.2; its released code restores the corpus order as well.

    Args:
        scores: ``[N]``.
        share: above 0, at most 1.

    Raises:
        ConfigError: the share is outside (0, 1].
        ShapeError: scores have more than one dimension.
        DataError: nothing would be kept.

    Example:
        >>> highest_share(torch.tensor([0.2, 1.5, 1.5, 0.1]), 0.5)
        tensor([1, 2])
    """
    if not 0 < share <= 1:
        raise ConfigError("share", given=share, expected="a number above 0, at most 1")
    if scores.ndim != 1:
        raise ShapeError("scores", given=list(scores.shape), expected="one score per chunk [N]")
    kept = int(share * len(scores))
    if not kept:
        raise DataError(
            "scores", f"a share of {share:g} keeps nothing", given=f"{len(scores)} scores", expected="1 / share or more"
        )
    return torch.sort(scores, descending=True, stable=True).indices[:kept].sort().values


def drawn_share(scores: Tensor, share: float, uniform: Tensor, temperature: float = 1.0) -> Tensor:
    """Places of ``int(share * N)`` chunks drawn without replacement, in the order of the corpus: int64 ``[K]``.

    A chunk is drawn with a probability in proportion to ``exp(score / temperature)`` among those that are left (Gumbel
    top-k). Near temperature 0 it is `highest_share`; at a large one, a random share.

    Args:
        scores: ``[N]``.
        share: above 0, at most 1.
        uniform: draws from [0, 1) ``[N]``, one per chunk.
        temperature: above 0, in the unit of the scores.

    Raises:
        ConfigError: the share is outside (0, 1], or the temperature is not above 0.
        ShapeError: the draws are not one per score.
        DataError: nothing would be kept.

    Example:
        >>> drawn_share(torch.tensor([0.0, 9.0, 9.0, 0.0]), 0.5, torch.full((4,), 0.5), temperature=0.1)
        tensor([1, 2])
    """
    if not temperature > 0:
        raise ConfigError("temperature", given=temperature, expected="a number above 0")
    if uniform.shape != scores.shape:
        raise ShapeError("uniform", given=list(uniform.shape), expected=f"one draw per score {list(scores.shape)}")
    u = uniform.double().clamp(1e-12, 1 - 1e-12)
    return highest_share(scores.double() / temperature - (-u.log()).log(), share)


def cut_points(ends: Tensor, length: int) -> list[tuple[int, int]]:
    """Where a stream of tokens is cut into chunks of at most ``length`` tokens: (start, stop) of each, in order.

    A chunk is cut back to the last token that ends a sentence or a line, and what is left over opens the next chunk. A
    chunk in which nothing ends has the full length; the last chunk takes what there is. Chunks cover the stream without gaps.

    Source: MiniPLM's released data preparation.

    Args:
        ends: which tokens of the stream end a sentence or a line, bool ``[M]``; all true cuts by length alone.
        length: the most tokens in a chunk, 2 or more.

    Raises:
        ConfigError: the length is below 2.
        ShapeError: not one flag per token.

    Example:
        >>> cut_points(torch.tensor([False, True, False, False, True, False]), 4)
        [(0, 2), (2, 6)]
    """
    if length < 2:
        raise ConfigError("length", given=length, expected="2 or more: one token to read and one to predict")
    if ends.ndim != 1:
        raise ShapeError("ends", given=list(ends.shape), expected="one flag per token [M]")
    n = len(ends)
    place = torch.where(ends.bool(), torch.arange(n), -1)
    last = (place.cummax(0).values if n else place).tolist()  # of every token, the last end up to it
    found, start = [], 0
    while start < n:
        stop = min(start + length, n)
        if stop < n and last[stop - 1] > start:  # a chunk of one token would predict nothing
            stop = last[stop - 1] + 1
        found.append((start, stop))
        start = stop
    return found
