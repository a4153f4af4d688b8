"""Soft labels of stored crops: compressed, recovered, and treated by how sure the teacher is (FKD and FerKD).

FKD: Shen and Xing 2022 (arXiv 2112.01528). FerKD: Shen 2023 (arXiv 2312.17473).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import choose, extremes, in_range, statistics_dtype

__all__ = [
    "DISCARDED",
    "KEPT",
    "SOFTENED",
    "Form",
    "Shortage",
    "compress_labels",
    "recover_labels",
    "softened_labels",
    "stored_confidence",
    "treat_crops",
]

Form = Literal["hard", "smoothing", "marginal_smoothing", "marginal_renorm"]
"""The likeliest class; the same with its probability; the k likeliest with theirs, the rest spread evenly or left out."""

DISCARDED, SOFTENED, KEPT = range(3)
"""What becomes of a crop: never shown; shown with its true class, smoothed; shown with the teacher's label."""


def compress_labels(probabilities: Tensor, form: Form = "marginal_smoothing", k: int = 5) -> Tensor:
    """A teacher's probabilities ``[N, C]`` in the form in which they are stored.

    Source: FKD, section 3.2 and its released code.

    Args:
        probabilities: rows that sum to 1.
        form: ``hard`` gives class ids, int64 ``[N]``; ``smoothing`` (id, probability) ``[N, 2]``; the others ids and
            probabilities ``[N, 2, k]``, the likeliest first, ids as numbers of the same type as the probabilities.
        k: how many classes the marginal forms keep, 1 to C.

    Raises:
        ConfigError: ``k`` is out of range, or ids do not fit the type exactly (half precision beyond 2,048 classes).
        ShapeError: not ``[N, C]``.

    Example:
        >>> compress_labels(torch.tensor([[0.1, 0.6, 0.3]]), k=2)
        tensor([[[1.0000, 2.0000],
                 [0.6000, 0.3000]]])
    """
    choose("form", form, Form, "form of labels")
    if probabilities.ndim != 2 or not probabilities.is_floating_point():
        raise ShapeError("probabilities", given=list(probabilities.shape), expected="floating point [N, C]")
    classes = probabilities.shape[1]
    if form == "hard":
        return probabilities.argmax(1)
    if not 1 <= k <= classes:
        raise ConfigError("k", given=k, expected=f"1 to the number of classes, {classes}")
    if classes > 2 / torch.finfo(probabilities.dtype).eps:
        raise ConfigError(
            "probabilities",
            given=f"{classes} classes in {probabilities.dtype}",
            expected="a type that holds every class id",
        )
    value, place = probabilities.topk(1 if form == "smoothing" else k, 1)
    stored = torch.stack([place.to(value.dtype), value], 1)  # [N, 2, k]
    return stored[..., 0] if form == "smoothing" else stored


def recover_labels(stored: Tensor, classes: int, form: Form = "marginal_smoothing") -> Tensor:
    """The probabilities ``[N, C]`` that a stored label stands for.

    ``smoothing`` spreads what is missing over the other classes, ``marginal_smoothing`` over those that are not stored,
    ``marginal_renorm`` divides what is stored by its sum.

    Args:
        stored: as `compress_labels` gives it.
        classes: C.
        form: the form in which it was stored.

    Raises:
        ShapeError: the label was stored in another form.
        ConfigError: a class id lies outside 0 to C - 1 (looked at on the CPU alone, where it costs no synchronisation).

    Example:
        >>> recover_labels(torch.tensor([[[1.0, 2.0], [0.5, 0.25]]]), 4)
        tensor([[0.1250, 0.5000, 0.2500, 0.1250]])
    """
    choose("form", form, Form, "form of labels")
    shapes = {"hard": (1, "[N]"), "smoothing": (2, "[N, 2]"), "marginal_smoothing": (3, "[N, 2, k]")}
    dims, said = shapes.get(form, shapes["marginal_smoothing"])
    if stored.ndim != dims or (dims > 1 and stored.shape[1] != 2):
        raise ShapeError("stored", given=list(stored.shape), expected=f"labels of the form {form}, {said}")
    if form == "hard":
        place, value = stored[:, None].long(), torch.ones(len(stored), 1, device=stored.device)
    else:
        both = stored if dims == 3 else stored[..., None]
        place, value = both[:, 0].long(), both[:, 1].to(statistics_dtype(both))
    ids = extremes(place)
    if ids is not None and not (ids[0] >= 0 and ids[1] < classes):
        raise ConfigError("classes", given=classes, expected=f"more than the largest class id, {ids[1]}")
    k = place.shape[1]
    if form == "marginal_renorm":
        rest, value = torch.zeros_like(value[:, :1]), value / value.sum(1, keepdim=True)
    else:
        # probabilities kept in half precision may sum to a little more than 1
        rest = (1 - value.sum(1, keepdim=True)).clamp(min=0) / max(1, classes - k)
    return rest.expand(-1, classes).scatter(1, place, value)


def softened_labels(labels: Tensor, classes: int, smoothing: float = 0.1) -> Tensor:
    """FerKD's softened hard labels ``[N, C]``: ``1 - smoothing`` on the true class, the rest spread over the others.

    How the rest is spread is [reconstructed].

    Example:
        >>> softened_labels(torch.tensor([1]), 3, 0.5)
        tensor([[0.2500, 0.5000, 0.2500]])
    """
    in_range("smoothing", smoothing, 0, 1)
    if classes < 2:
        raise ConfigError("classes", given=classes, expected="two or more")
    rest = torch.full((len(labels), classes), smoothing / (classes - 1), device=labels.device)
    return rest.scatter(1, labels[:, None], 1 - smoothing)


def stored_confidence(
    stored: Tensor, classes: int, form: Form = "marginal_smoothing", labels: Tensor | None = None
) -> Tensor:
    """How sure a teacher was of each crop, read from its stored label without recovering all classes: ``[N]``.

    Args:
        stored: as `compress_labels` gives it, in any form but ``hard``, which keeps no probability.
        classes: C.
        form: the form in which it was stored.
        labels: class ids ``[N]``; the probability of these is taken (what is not stored has what `recover_labels` gives
            it, but for ``marginal_renorm``, whose stored probabilities are taken as they are), else the largest one.

    Raises:
        ConfigError: the form keeps no probability.

    Example:
        >>> stored_confidence(torch.tensor([[[1.0, 2.0], [0.5, 0.25]]] * 2), 4, labels=torch.tensor([2, 0]))
        tensor([0.2500, 0.1250])
    """
    if form == "hard":
        raise ConfigError("form", "a hard label says nothing of how sure the teacher was", given=form)
    both = stored if stored.ndim == 3 else stored[..., None]
    place, value = both[:, 0].long(), both[:, 1].to(statistics_dtype(both))  # [N, k]
    if labels is None:
        return value[:, 0]
    rest = (1 - value.sum(1)).clamp(min=0) / max(1, classes - place.shape[1])
    if form == "marginal_renorm":
        rest = torch.zeros_like(rest)
    same = place == labels[:, None]
    return torch.where(same.any(1), (value * same).sum(1), rest)


Shortage = Literal["relax", "raise"]
"""Where too few crops of an image remain: take back those nearest to a threshold, or refuse."""


def treat_crops(
    confidence: Tensor,
    thresholds: tuple[float, float, float] = (0.1, 0.3, 0.95),
    *,
    least: int = 1,
    shortage: Shortage = "relax",
) -> tuple[Tensor, Tensor]:
    """What becomes of each of the M crops of each image, by the teacher's confidence (FerKD, section 3).

    Below the first threshold or above the last a crop is discarded (0); up to the second its label becomes a softened
    hard label (1); between the second and the last the teacher's label is kept (2). Thresholds and the rule for a shortage
    are [reconstructed]: the paper's numbers are not known.

    Args:
        confidence: ``[N, M]``, in [0, 1].
        thresholds: three ascending numbers in [0, 1]; 0 and 1 switch the outer ones off.
        least: how many crops each image must keep.
        shortage: ``relax`` takes back the discarded crops that lie nearest to a threshold, with the rule of the group
            beside it; ``raise`` refuses.

    Returns:
        (treatment, int64 ``[N, M]``; which of them were taken back, bool ``[N, M]``).

    Raises:
        ConfigError: thresholds do not ascend, or an image has fewer than ``least`` crops left (with ``raise``) or at all.

    Example:
        >>> treat_crops(torch.tensor([[0.05, 0.2, 0.5, 0.99]]))[0]
        tensor([[0, 1, 2, 0]])
    """
    choose("shortage", shortage, Shortage)
    low, middle, top = thresholds
    if not 0 <= low <= middle <= top <= 1:
        raise ConfigError("thresholds", given=list(thresholds), expected="three ascending numbers from 0 to 1")
    if confidence.ndim != 2 or confidence.shape[1] < least:
        raise ConfigError("confidence", given=list(confidence.shape), expected=f"[N, M] with M of {least} or more")
    beside = torch.where(confidence < middle, SOFTENED, KEPT)
    away = torch.maximum(low - confidence, confidence - top)  # above 0 where a crop is discarded
    kept = away <= 0
    short = (kept.sum(1) < least).nonzero()[:, 0]
    if len(short) and shortage == "raise":
        raise ConfigError(
            "thresholds",
            f"too few crops remain of images {', '.join(map(str, short[:5].tolist()))}",
            given=list(thresholds),
            expected=f"{least} crops of each image, or shortage='relax'",
        )
    order = away.clamp(min=0).argsort(dim=1, stable=True)
    nearest = torch.zeros_like(kept).scatter(1, order[:, :least], torch.ones_like(kept[:, :least]))
    back = nearest & ~kept
    return torch.where(kept | back, beside, DISCARDED), back
