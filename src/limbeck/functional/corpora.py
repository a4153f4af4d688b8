"""Which parts of a corpus a large model finds much likelier than a small one does (MiniPLM, Gu et al. 2024, arXiv 2410.17215)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, ShapeError

__all__ = ["difference_scores", "highest_share"]


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
