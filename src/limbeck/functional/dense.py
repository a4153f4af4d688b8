"""Maps of logits [N, h, w, C]: bands along boundaries, and what is matched inside and outside of them.

BPKD (Liu et al. 2023, arXiv 2306.08075; no training code was published: the form is that of three public
reimplementations) and channel-wise distillation (Shu et al. 2021, arXiv 2011.13256).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ..errors import ConfigError, ShapeError
from ._common import Value, choose, statistics_dtype
from .divergence import kl, soft_cross_entropy

Count = Literal["nonzero", "mask_sum", "pixels"]

WORD = 62
"""How many classes a word holds, a bit each."""


def _check_width(width: int) -> None:
    if width < 3 or width % 2 == 0:
        raise ConfigError("edge_width", given=width, expected="an odd number of 3 or more, in pixels of the labels")


def boundary_bands(
    labels: Tensor, classes: int, *, width: int = 7, where: Tensor | None = None, check: bool = True
) -> Tensor:
    """Where each class's boundary is: dilated by a square window, less eroded by it.

    Pixels that do not count belong to no class, and lie in no band; the border of the image is no boundary.

    Args:
        labels: class ids ``[N, H, W]``.
        classes: how many there are.
        width: side of the window in pixels, odd, 3 or more.
        where: which pixels count ``[N, H, W]``; ``None``: all.
        check: look at the labels first; off saves waiting for the device where they have been looked at.

    Returns:
        bool ``[N, H, W, C]``.

    Raises:
        ConfigError: the width is even or below 3; a label that counts is none of the classes, named.

    Example:
        >>> halves = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
        >>> boundary_bands(halves, 2, width=3)[0, 0, :, 0].int()
        tensor([0, 0, 1, 1, 0, 0], dtype=torch.int32)
    """
    _check_width(width)
    valid = torch.ones_like(labels, dtype=torch.bool) if where is None else where.bool()
    wrong = valid & ((labels < 0) | (labels >= classes)) if check else None
    if wrong is not None and bool(wrong.any()):
        values = labels[wrong].unique().tolist()
        raise ConfigError(
            "labels",
            f"hold {', '.join(map(str, values[:8]))}, which is no class",
            expected=f"0 to {classes - 1}, or a pixel that does not count (where=, task.ignore)",
        )
    void = _spread((~valid).long(), width) > 0
    kinds = void.long()  # how many different things the window holds, counted up to two a word
    words = []
    for first in range(0, classes, WORD):  # a bit a class: a word is as cheap as one class
        mine = valid & (labels >= first) & (labels < first + WORD)
        word = _spread(torch.where(mine, 1 << (labels - first).clamp(0, WORD - 1), 0), width)
        kinds = kinds + (word != 0).long() + ((word & (word - 1)) != 0).long()
        words.append(word)
    several = (kinds > 1) & valid  # a class's window is not all of it
    found = []
    for first, word in zip(range(0, classes, WORD), words, strict=True):
        bits = torch.arange(min(WORD, classes - first), device=labels.device)
        found.append(((torch.where(several, word, 0).unsqueeze(1) >> bits[:, None, None]) & 1).bool())  # [N, c, H, W]
    return torch.cat(found, 1).movedim(1, -1)


def _spread(word: Tensor, width: int) -> Tensor:
    """The bits [N, H, W] that are set anywhere in a square window; outside of the image there are none."""
    for dim in (-1, -2):
        half = width // 2
        run = torch.nn.functional.pad(word, (half, half) if dim == -1 else (0, 0, half, half))
        done = 1
        while done < width:  # the window grows by as much as it has
            step = min(done, width - done)
            n = run.shape[dim] - step
            run = run.narrow(dim, 0, n) | run.narrow(dim, step, n)
            done += step
        word = run
    return word


def edge_masks(
    labels: Tensor,
    classes: int,
    size: tuple[int, int],
    *,
    width: int = 7,
    where: Tensor | None = None,
    hard: bool = False,
    union: bool = False,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """Bands along boundaries, and pixels that count, averaged down to the places of a map of logits.

    Args:
        labels: class ids ``[N, H, W]``.
        classes: how many there are.
        size: (h, w) of the map of logits; it need not divide (H, W).
        width: of the band, in pixels of the labels.
        where: which pixels count ``[N, H, W]``.
        hard: 1 wherever a band is touched, in place of its share of the place.
        union: the same mask for every class: wherever any band is.
        check: as in `boundary_bands`.

    Returns:
        The mask M ``[N, h, w, C]`` and the share of pixels that count ``[N, h, w]``, both in [0, 1].

    Example:
        >>> mask, valid = edge_masks(torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]]), 2, (1, 4), width=3)
        >>> mask[0, 0, :, 0].tolist(), valid.min().item()
        ([0.0, 0.5, 0.5, 0.0], 1.0)
    """
    band = boundary_bands(labels, classes, width=width, where=where, check=check)
    valid = torch.ones_like(labels, dtype=torch.bool) if where is None else where.bool()
    share = _averaged(valid.unsqueeze(1), size)[:, 0]
    mask = (_averaged(band.movedim(-1, 1), size) * share.unsqueeze(1)).movedim(1, -1)
    if union:
        mask = mask.amax(-1, keepdim=True).expand_as(mask)
    if hard:
        mask = (mask > 0).to(mask.dtype)
    return mask, share


def _averaged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Truth values [N, C, H, W] as their share in each place [N, C, h, w]."""
    return x.float() if tuple(x.shape[-2:]) == tuple(size) else adaptive_avg_pool2d(x.float(), size)


def edge_divergence(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    alpha: float | Tensor = 2.0,
    premask: bool = True,
    postmask: bool = True,
    count: Count = "nonzero",
    valid: Tensor | None = None,
) -> Tensor:
    """What is matched along boundaries, one value an item ``[N]``; T squared is multiplied in.

    ``phi = T^2 KL(softmax(M z_t / T) || softmax(M z_s / T))`` at every place, then ``sum_c alpha_c / n_c sum_i phi_i M_ci``:
    each class's band is averaged by itself, so that a pixel between two classes counts for both.

    Args:
        student, teacher: logits ``[N, h, w, C]``.
        mask: M ``[N, h, w, C]`` (`edge_masks`).
        temperature: divides the (masked) logits.
        alpha: a number, or one a class ``[C]``.
        premask: multiply the logits by the mask (PrM); off compares them as they are.
        postmask: weigh phi by each class's mask (PoM); off takes the mean of phi over the places that any mask touches, or,
            without ``premask`` too, over all that count, times the mean alpha [reconstructed].
        count: what n_c is: places of the item whose mask is not zero, the sum of the mask, or ``pixels``: for all classes
            together (then the term is an average over the band, and weights near 1 suit it).
        valid: share of pixels that count ``[N, h, w]``, for the mean without masks.

    Example:
        >>> z = torch.randn(2, 4, 4, 3)
        >>> edge_divergence(z, z, torch.ones(2, 4, 4, 3)).abs().max().item() < 1e-5
        True
    """
    _same(student, teacher)
    mask = mask.to(statistics_dtype(student, mask))  # products of logits are no place for half precision
    s, t = (mask * student, mask * teacher) if premask else (student, teacher)
    phi = kl(s, t, temperature=temperature)  # [N, h, w]
    alpha = torch.as_tensor(alpha, dtype=phi.dtype, device=phi.device)
    if not postmask:
        seen = mask.amax(-1) > 0 if premask else (torch.ones_like(phi) if valid is None else valid) > 0
        inside = torch.where(seen, phi, torch.zeros_like(phi)).sum((1, 2))
        return alpha.mean() * inside / seen.sum((1, 2)).clamp_min(1)
    n = mask.sum((1, 2)) if count == "mask_sum" else (mask > 0).sum((1, 2)).to(phi.dtype)  # [N, C]
    if count == "pixels":
        n = n.sum(-1, keepdim=True)
    n = n.clamp_min(1e-6) if count == "mask_sum" else n.clamp_min(1.0)
    each = (mask * (alpha / n)[:, None, None]).sum(-1)  # [N, h, w]: what a place counts for, over all bands it lies in
    return (phi * each).sum((1, 2))


def channel_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    value: Value = "kl",
    where: Tensor | None = None,
) -> Tensor:
    """Where each channel is active: KL between spatial distributions, one value an item and channel ``[N, C]``.

    ``T^2 sum_i softmax_i(z_t / T) [log softmax_i(z_t / T) - log softmax_i(z_s / T)]`` over the places i of a map
    (channel-wise distillation; its loss is the mean over channels and items).

    Args:
        student, teacher: maps ``[N, h, w, C]``, of logits or features.
        temperature: divides both.
        value: ``kl``, or ``cross_entropy``: the same gradient, with the entropy of the teacher's maps in the value.
        where: places that count ``[N, h, w]`` or ``[N, h, w, C]``; the others take no part in the distributions, and a
            channel without any has the value 0.

    Example:
        >>> channel_divergence(torch.zeros(1, 2, 2, 3), torch.ones(1, 2, 2, 3)).tolist()
        [[0.0, 0.0, 0.0]]
    """
    _same(student, teacher)
    compare = {"kl": kl, "cross_entropy": soft_cross_entropy}[choose("value", value, Value)]
    s, t = (z.flatten(1, 2).transpose(1, 2) for z in (student, teacher))  # [N, C, P]
    if where is None:
        return compare(s, t, temperature=temperature)
    if where.ndim == 3:
        where = where.unsqueeze(-1).expand_as(student)
    kept = where.bool().flatten(1, 2).transpose(1, 2)
    some = kept.any(-1)
    kept = kept | ~some.unsqueeze(-1)  # nothing to leave out of a channel that does not count at all
    s, t = (z.masked_fill(~kept, float("-inf")) for z in (s, t))
    return compare(s, t, temperature=temperature, where=some)


def body_divergence(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    valid: Tensor,
    *,
    temperature: float = 1.0,
    kind: Literal["channel", "pixel"] = "channel",
    exclude: bool = False,
) -> Tensor:
    """What is matched outside the bands, one value an item ``[N]``; T squared is multiplied in.

    ``channel``: the mean over channels of `channel_divergence` of ``(1 - M) valid z``: places of the band stay in the
    spatial distribution with logit 0, or, with ``exclude``, take no part. ``pixel``: the mean of the KL over classes, at
    places weighted by ``(1 - max_c M) valid``.

    Args:
        student, teacher: logits ``[N, h, w, C]``.
        mask: M ``[N, h, w, C]``; valid: ``[N, h, w]`` (`edge_masks`).
        temperature: divides the logits.
        kind: ``channel`` or ``pixel``.
        exclude: see above.
    """
    _same(student, teacher)
    if kind == "pixel":
        weight = (1.0 - mask.amax(-1)) * valid
        phi = kl(student, teacher, temperature=temperature)
        return (phi * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-6)
    if kind != "channel":
        raise ConfigError.unknown("body", kind, ("channel", "pixel"), "body")
    body = (1.0 - mask.to(statistics_dtype(student, mask))) * valid.unsqueeze(-1)
    if exclude:
        return channel_divergence(student, teacher, temperature=temperature, where=body > 0).mean(-1)
    return channel_divergence(body * student, body * teacher, temperature=temperature).mean(-1)


def resized(z: Tensor, size: tuple[int, int]) -> Tensor:
    """A map ``[N, h, w, C]`` brought to another (h, w), bilinearly (corners not aligned); the same tensor where it has it."""
    if tuple(z.shape[1:3]) == tuple(size):
        return z
    return interpolate(z.movedim(-1, 1), tuple(size), mode="bilinear", align_corners=False).movedim(1, -1)


def confusion(guess: Tensor, labels: Tensor, classes: int, where: Tensor | None = None) -> Tensor:
    """How often pixels of each class (rows) are taken for each class (columns): int64 ``[C, C]``.

    Args:
        guess, labels: class ids of any one shape.
        classes: how many there are.
        where: which count.
    """
    kept = torch.ones_like(labels, dtype=torch.bool) if where is None else where.bool()
    pairs = labels[kept].long() * classes + guess[kept].long()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def mean_iou(table: Tensor) -> float:
    """The mean over classes of intersection / union from a confusion table ``[C, C]``; classes that neither occur nor are
    guessed are left out. NaN where there are none.

    Example:
        >>> round(mean_iou(torch.tensor([[3, 1], [0, 4]])), 3)
        0.775
    """
    table = table.double()
    both, either = table.diag(), table.sum(0) + table.sum(1) - table.diag()
    return float((both[either > 0] / either[either > 0]).mean())


def _same(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.ndim != 4:
        raise ShapeError(
            "teacher",
            given=list(teacher.shape),
            expected=f"maps [N, h, w, C] of one shape, as the student's {list(student.shape)}",
            remedy="functional.dense.resized brings one to the other's size",
        )


__all__ = [
    "body_divergence",
    "boundary_bands",
    "channel_divergence",
    "confusion",
    "edge_divergence",
    "edge_masks",
    "mean_iou",
    "resized",
]
