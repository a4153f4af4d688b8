"""Learning without labels: crops told alike by a teacher that is the student's own average, views contrasted; hidden patches,
and what another network makes of them, foretold.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from ..errors import ConfigError, ShapeError
from ._common import as_mask, check_pair, choose, keep, statistics_dtype
from .attention import divide, relation_divergence
from .contrast import info_nce
from .feature import standardise, unit
from .labels import cross_entropy


def multicrop_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    where: Tensor | None = None,
) -> Tensor:
    """What the teacher says of large crops, asked of all other crops: the mean over pairs of a cross-entropy, ``[N]``.

    ``P_q = softmax((t_q - c) / tau_t)`` and ``1/#pairs sum_q sum_{v != q} -P_q . log_softmax(s_v / tau_s)``: a crop is
    never asked about itself. The teacher's side carries no gradient. Less sharp than the student (``tau_t >= tau_s``)
    or not centred, such a teacher leads to one answer for everything.

    Source: Caron et al. 2021 (DINO, arXiv 2104.14294), eq. 3 and section 3.1.

    Args:
        student: logits ``[V, N, K]`` of V crops; the first Q are those the teacher sees.
        teacher: logits ``[Q, N, K]``, as they are.
        centre: c ``[K]``, as it was before this batch: see `moved_centre`.
        student_temperature, teacher_temperature: tau_s and tau_t, above 0.
        where: valid items ``[N]``; the others count 0.

    Raises:
        ConfigError: a temperature is not above 0.
        ShapeError: crops, items or outputs do not fit, or there is no pair of different crops.

    Example:
        >>> s, c = torch.zeros(3, 2, 4), torch.zeros(4)
        >>> multicrop_cross_entropy(s, s[:2], c)
        tensor([1.3863, 1.3863])
    """
    for name, value in (("student_temperature", student_temperature), ("teacher_temperature", teacher_temperature)):
        if not value > 0:
            raise ConfigError(name, given=value, expected="a number > 0")
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[1:] != teacher.shape[1:]:
        raise ShapeError(
            "teacher", given=list(teacher.shape), expected=f"[Q, N, K] of the student's [V, N, K] {list(student.shape)}"
        )
    v, q = len(student), len(teacher)
    if not 1 <= q <= v or v < 2:
        raise ShapeError(
            "student", given=f"{v} crops, the teacher {q}", expected="the teacher's crops first, and two or more"
        )
    if centre.shape != student.shape[2:]:
        raise ShapeError(
            "centre", given=list(centre.shape), expected=f"one number an output, {list(student.shape[2:])}"
        )
    dtype = statistics_dtype(student, teacher)
    mask = as_mask(where, student.shape[1:2])
    p = ((teacher.detach().to(dtype) - centre.to(dtype)) / teacher_temperature).softmax(-1)
    log_q = (student.to(dtype) / student_temperature).log_softmax(-1)
    pairs = torch.einsum("qnk,vnk->nqv", p, log_q)
    other = ~torch.eye(q, v, dtype=torch.bool, device=student.device)
    return keep(-keep(pairs, other).sum((1, 2)) / (q * v - q), mask)


def moved_centre(centre: Tensor, teacher: Tensor, momentum: float = 0.9) -> Tensor:
    """The centre ``[K]`` after a batch: ``m c + (1 - m) mean of t``, of raw logits, without gradient.

    Call it when the batch's loss is taken, and with the logits of all processes.

    Args:
        centre: ``[K]``.
        teacher: logits ``[..., K]``.
        momentum: m, in [0, 1].

    Source: Caron et al. 2021 (DINO, arXiv 2104.14294), eq. 4.

    Example:
        >>> moved_centre(torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0.5)
        tensor([1.0000, 1.5000])
    """
    if not 0 <= momentum <= 1:
        raise ConfigError("momentum", given=momentum, expected="a number in [0, 1]")
    mean = teacher.detach().flatten(0, -2).to(statistics_dtype(teacher, centre)).mean(0)
    return momentum * centre + (1 - momentum) * mean


def cross_view_contrast(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor | None = None,
    *,
    own: Tensor | None = None,
    temperature: float = 0.07,
    where: Tensor | None = None,
) -> Tensor:
    """The student's embedding of one view names the teacher's of the other among all items, and the other way: ``[N]``.

    ``1/2 [CE(z_s^a . Z_t^b / tau) + CE(z_s^b . Z_t^a / tau)]`` of embeddings of length one: `info_nce` both ways. The
    teacher's side carries no gradient. DCGLR's abstract has such a term; this form of it is a [reconstruction].

    Args:
        student: embeddings of two views ``[2, N, D]``, of any length.
        teacher: likewise ``[2, M, D]``, the student's items among them: those of the whole batch.
        queue: the teacher's embeddings of other items ``[M, D]``, which nobody's is.
        own: which of the teacher's items are the student's, int64 ``[N]``; left out, both have the same.
        temperature: tau, above 0.
        where: valid items ``[N]``; the others count 0.

    Raises:
        ShapeError: not two views, or one item and no queue: then there is nothing to be told from.

    Example:
        >>> z = torch.eye(3).expand(2, 3, 3)
        >>> cross_view_contrast(z, z, temperature=1.0)
        tensor([0.5514, 0.5514, 0.5514])
    """
    fits = student.ndim == 3 and len(student) == 2 and teacher.ndim == 3 and teacher.shape[::2] == student.shape[::2]
    if not fits or (own is None and student.shape != teacher.shape):
        raise ShapeError(
            "student", given=f"{list(student.shape)} and {list(teacher.shape)}", expected="both two views [2, N, D]"
        )
    own = torch.arange(student.shape[1], device=student.device) if own is None else own
    keys = teacher.detach()
    if queue is not None:
        keys = torch.cat([keys, queue.detach().to(keys).expand(2, -1, -1)], 1)  # [2, N + M, D]
    ways = [info_nce(student[i], keys[1 - i], own, temperature=temperature, where=where) for i in (0, 1)]
    return (ways[0] + ways[1]) / 2


def n_pair(
    student: Tensor,
    teacher: Tensor,
    *,
    own: Tensor | None = None,
    scale: float = 64.0,
    where: Tensor | None = None,
) -> Tensor:
    """The teacher's answer to an item names the student's among those to all items, crop by crop: the mean, ``[N]``.

    ``-log softmax_j(scale p_i . s_jv)_i`` averaged over crops v. The scalar products are plain: p is a distribution, s
    are the student's logits (over its temperature). The teacher's side carries no gradient.

    Source: Sohn 2016 for the N-pair loss; in this form POS-BERT, the sibling of DCGLR.

    Args:
        student: ``[V, M, K]`` of V crops: of the teacher's items, and of others that they are told from.
        teacher: distributions ``[N, K]``.
        own: which of the student's items are the teacher's, int64 ``[N]``; left out, both have the same.
        scale: multiplies the scalar products.
        where: valid items ``[N]``; the others count 0.

    Example:
        >>> p = torch.eye(2)
        >>> n_pair(p.expand(3, 2, 2), p, scale=1.0)
        tensor([0.3133, 0.3133])
    """
    if (
        student.ndim != 3
        or student.shape[2:] != teacher.shape[1:]
        or (own is None and student.shape[1] != len(teacher))
    ):
        raise ShapeError(
            "teacher", given=list(teacher.shape), expected=f"[N, K] of the student's [V, N, K] {list(student.shape)}"
        )
    dtype = statistics_dtype(student, teacher)
    mask = as_mask(where, teacher.shape[:1])
    scores = scale * torch.einsum("ik,vjk->vij", teacher.detach().to(dtype), student.to(dtype))
    if own is None:
        named = scores.diagonal(dim1=1, dim2=2)
    else:
        named = scores.gather(2, own.expand(len(scores), -1).unsqueeze(2)).squeeze(2)
    return keep((scores.logsumexp(-1) - named).mean(0), mask)


def queued(queue: Tensor | None, new: Tensor, size: int) -> Tensor | None:
    """A queue of embeddings of length one ``[M, D]``, new ones ``[N, D]`` at its end, the oldest gone: at most ``size``.

    Example:
        >>> queued(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 1)
        tensor([[0., 1.]])
    """
    if size < 1:
        return None
    fresh = unit(new.detach())
    return (fresh if queue is None else torch.cat([queue, fresh]))[-size:]


class Masking(NamedTuple):
    """Which patches are hidden.

    Attributes:
        visible: ids of those that are seen, in the order in which they are handed on, int64 ``[N, K]``.
        restore: where each patch lies in ``visible`` followed by the hidden ones, int64 ``[N, L]``.
        hidden: True where a patch is not seen, ``[N, L]``.
    """

    visible: Tensor
    restore: Tensor
    hidden: Tensor


def random_masking(noise: Tensor, ratio: float = 0.75) -> Masking:
    """Patches hidden at random: those with the least noise are seen, ``int(L (1 - ratio))`` of them.

    The same noise gives two networks the same masking, without which their answers cannot be compared.

    Source: He et al. 2022 (MAE, arXiv 2111.06377), section 3.

    Args:
        noise: uniform numbers ``[N, L]``, one a patch.
        ratio: share that is hidden, in (0, 1).

    Raises:
        ConfigError: the ratio leaves nothing to see, or hides nothing.

    Example:
        >>> random_masking(torch.tensor([[0.9, 0.1, 0.5, 0.7]]), 0.5).hidden
        tensor([[ True, False, False,  True]])
    """
    if noise.ndim != 2:
        raise ShapeError("noise", given=list(noise.shape), expected="one number a patch, [N, L]")
    length = noise.shape[1]
    if not 0 < ratio < 1:
        raise ConfigError("ratio", given=ratio, expected="a number in (0, 1): the share of patches that is hidden")
    seen = int(length * (1 - ratio))
    if seen < 1:
        raise ConfigError("ratio", given=ratio, expected=f"a share that leaves one of {length} patches to be seen")
    order = noise.argsort(dim=1, stable=True)
    restore = order.argsort(1)
    return Masking(order[:, :seen], restore, restore >= seen)


Supervise = Literal["all", "masked", "visible"]
"""Which tokens are compared: all with the class token, or the hidden or the visible patches without it."""


def supervised_tokens(masking: Masking, which: Supervise = "all") -> Tensor:
    """Which of a class token and L patches are compared, boolean ``[N, 1 + L]``.

    Example:
        >>> supervised_tokens(random_masking(torch.tensor([[0.9, 0.1]]), 0.5), "masked")
        tensor([[False,  True, False]])
    """
    choose("supervise", which, Supervise)
    first = masking.hidden[:, :1]
    if which == "all":
        return torch.cat([torch.ones_like(first), torch.ones_like(masking.hidden)], 1)
    return torch.cat([torch.zeros_like(first), masking.hidden if which == "masked" else ~masking.hidden], 1)


def hidden_state_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 2.0,
    normalise: bool = True,
    eps: float = 1e-6,
    where: Tensor | None = None,
) -> Tensor:
    """Smooth L1 between predicted and standardised hidden states, the mean over channels: ``[..., D]`` to ``[...]``.

    ``d^2 / (2 beta)`` up to ``|d| = beta``, ``|d| - beta / 2`` from there, of ``d = student - standardise(teacher)``:
    the teacher's channels get mean 0 and deviation 1, the student's prediction stays as it is.

    Source: Huang et al. 2023 (G2SD, arXiv 2302.14771), generic distillation.

    Args:
        student, teacher: ``[..., D]``; no gradient goes to the teacher.
        beta: where the square turns into a line, above 0.
        normalise: off, the teacher's states stay as they are too.
        eps: added to the variance of a state.
        where: valid tokens ``[...]``; the others count 0.

    Example:
        >>> hidden_state_distance(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([1.1250])
    """
    if not beta > 0:
        raise ConfigError("beta", given=beta, expected="a number > 0")
    if student.shape != teacher.shape:
        raise ShapeError(
            "teacher",
            given=list(teacher.shape),
            expected=f"the student's shape {list(student.shape)}",
            remedy="give the student a predictor as wide as the teacher's decoder",
        )
    dtype = statistics_dtype(student, teacher)
    mask = as_mask(where, student.shape[:-1])
    target = teacher.detach().to(dtype)
    target = standardise(target, eps=eps) if normalise else target
    gap = smooth_l1_loss(student.to(dtype), target, reduction="none", beta=beta)
    return keep(gap.mean(-1), mask)


def patches_of(x: Tensor, patch: int) -> Tensor:
    """Images cut into square patches, row by row: ``[N, C, H, W]`` to ``[N, L, patch * patch * C]``, channels last.

    Raises:
        ShapeError: the patch does not divide the sides.

    Example:
        >>> patches_of(torch.arange(4.0).view(1, 1, 2, 2), 1).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    if x.ndim != 4 or patch < 1 or x.shape[2] % patch or x.shape[3] % patch:
        raise ShapeError("x", given=list(x.shape), expected=f"images [N, C, H, W] whose sides {patch} divides")
    rows, columns = x.shape[2] // patch, x.shape[3] // patch
    cut = x.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))  # [N, C, rows, p, columns, p]
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def patch_distance(
    prediction: Tensor, x: Tensor, patch: int, *, normalise: bool = True, eps: float = 1e-6, where: Tensor | None = None
) -> Tensor:
    """Mean squared error of rebuilt patches, one value a patch ``[N, L]``; MAE's loss is its mean over hidden patches.

    Source: He et al. 2022 (MAE, arXiv 2111.06377), section 3 and table 1d.

    Args:
        prediction: ``[N, L, patch * patch * C]``, as `patches_of` lays pixels out.
        x: images ``[N, C, H, W]``.
        patch: side of a patch.
        normalise: each patch is brought to mean 0 and (unbiased) variance 1 first.
        eps: added to that variance.
        where: patches that count ``[N, L]``; the others count 0.

    Example:
        >>> patch_distance(torch.zeros(1, 1, 4), torch.tensor([[[[0.0, 0.0], [2.0, 2.0]]]]), 2, normalise=False)
        tensor([[2.]])
    """
    dtype = statistics_dtype(prediction, x)
    target = patches_of(x.detach(), patch).to(dtype)
    if target.shape != prediction.shape:
        raise ShapeError("prediction", given=list(prediction.shape), expected=f"patches {list(target.shape)}")
    mask = as_mask(where, prediction.shape[:-1])
    if normalise:
        var, mean = torch.var_mean(target, -1, keepdim=True)
        target = (target - mean) / (var + eps).sqrt()
    return keep((prediction.to(dtype) - target).square().mean(-1), mask)


def qkv_relation_divergence(student: Tensor, teacher: Tensor, heads: int, *, where: Tensor | None = None) -> Tensor:
    """KL between all nine relations of queries, keys and values: per item ``[N]``, the mean over pairs, heads and tokens.

    Vectors are cut into as many relation heads on both sides, whatever heads they came from; each relation is
    ``softmax(x y^T / sqrt(d))`` with the width d of a head of its own network.

    Source: Wang et al. 2021 (MiniLMv2, arXiv 2012.15828) for three pairs; all nine as in TinyMIM and in G2SD's code
    (arXiv 2302.14771).

    Args:
        student: queries, keys, values ``[3, N, T, C]``.
        teacher: likewise ``[3, N, T, C']``; no gradient goes there.
        heads: that both are cut into.
        where: real tokens ``[N, T]``.

    Raises:
        ShapeError: other items or tokens, or widths that are no multiples of the heads.

    Example:
        >>> x = torch.arange(24.0).view(3, 1, 2, 4)
        >>> qkv_relation_divergence(x, x, 2)
        tensor([0.])
    """
    for name, x in (("student", student), ("teacher", teacher)):
        if x.ndim != 4 or len(x) != 3:
            raise ShapeError(name, given=list(x.shape), expected="queries, keys, values [3, N, T, C]")
    n = student.shape[1]

    def pairs(x: Tensor) -> tuple[Tensor, Tensor]:  # each [9 N, A, T, D]
        cut = divide(x.flatten(0, 1), heads).unflatten(0, (3, n if x is student else x.shape[1]))
        return cut.repeat_interleave(3, 0).flatten(0, 1), cut.repeat(3, 1, 1, 1, 1).flatten(0, 1)

    mask = None if where is None else where.repeat(9, 1)
    return relation_divergence(pairs(student), pairs(teacher), where=mask).unflatten(0, (9, n)).mean((0, 2))


def token_distillation(
    logits: Tensor, token_logits: Tensor, teacher: Tensor, labels: Tensor, *, where: Tensor | None = None
) -> Tensor:
    """The mean of two cross-entropies ``[N]``: one head's to the labels, another's to the class that the teacher names.

    Source: Touvron et al. 2021 (DeiT, arXiv 2012.12877), eq. 3 (hard distillation).

    Args:
        logits: of the head behind the class token ``[N, C]``.
        token_logits: of the head behind the distillation token ``[N, C]``.
        teacher: logits ``[N, C]``.
        labels: class ids ``[N]``, or soft ones ``[N, C]`` as mixing images makes them.
        where: valid items ``[N]``.

    Example:
        >>> z = torch.zeros(1, 4)
        >>> token_distillation(z, z, z, torch.tensor([1]))
        tensor([1.3863])
    """
    check_pair(token_logits, teacher)
    hard = teacher.detach().argmax(-1)
    return (cross_entropy(logits, labels, where=where) + cross_entropy(token_logits, hard, where=where)) / 2


__all__ = [
    "Masking",
    "Supervise",
    "cross_view_contrast",
    "hidden_state_distance",
    "moved_centre",
    "multicrop_cross_entropy",
    "n_pair",
    "patch_distance",
    "patches_of",
    "qkv_relation_divergence",
    "queued",
    "random_masking",
    "supervised_tokens",
    "token_distillation",
]
