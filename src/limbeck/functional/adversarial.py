"""Learned augmentations that look for disagreement (HARD, Nix et al. 2023, arXiv 2305.14890).

Only the paper's abstract was readable: what is computed here follows its structure; weights, cap, matrices and the rule of
switching are [reconstructed].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as f

from ..errors import ConfigError, ShapeError
from ._common import as_mask, choose, keep
from .divergence import kl

Sampling = Literal["bilinear", "nearest", "bicubic"]
Padding = Literal["zeros", "border", "reflection"]
Mode = Literal["augment", "student"]


def affine_matrices(sigma: Tensor, noise: Tensor) -> Tensor:
    """Random affine matrices ``[N, 2, 3]`` around the identity: ``I + sigma * noise``, both in the order a11 a12 tx a21 a22 ty.

    Args:
        sigma: standard deviations ``[6]``, or ``[N, 6]``.
        noise: standard normal ``[N, 6]``.

    Example:
        >>> affine_matrices(torch.zeros(6), torch.ones(1, 6))
        tensor([[[1., 0., 0.],
                 [0., 1., 0.]]])
    """
    if noise.ndim != 2 or noise.shape[1] != 6 or sigma.shape not in (noise.shape, noise.shape[1:]):
        given = [list(sigma.shape), list(noise.shape)]
        raise ShapeError("noise", given=given, expected="sigma [6] or [N, 6], and noise [N, 6]")
    identity = noise.new_tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    return (identity + sigma * noise).reshape(-1, 2, 3)


def warp(
    x: Tensor,
    matrix: Tensor,
    *,
    mode: Sampling = "bilinear",
    padding: Padding = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Images seen through affine matrices, differentiable in both.

    Args:
        x: images ``[N, C, H, W]``.
        matrix: ``[N, 2, 3]``, from places in the result to places in ``x``, both in [-1, 1], across before down: a shift of
            2 / W is one pixel.
        mode: how values between pixels are made.
        padding: what lies outside of an image.
        align_corners: whether -1 and 1 are the middles of the outermost pixels, or their edges.

    Returns:
        ``[N, C, H, W]``, in the dtype of ``x``.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> warp(x, torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])).flatten().tolist()
        [2.0, 0.0, 4.0, 0.0]
    """
    choose("mode", mode, Sampling)
    choose("padding", padding, Padding)
    if x.ndim != 4 or not x.is_floating_point():
        raise ShapeError("x", given=f"{x.dtype} {list(x.shape)}", expected="floating point images [N, C, H, W]")
    if matrix.shape != (len(x), 2, 3):
        raise ShapeError("matrix", given=list(matrix.shape), expected=f"[{len(x)}, 2, 3]")
    dtype = torch.promote_types(torch.promote_types(x.dtype, matrix.dtype), torch.float32)
    m = matrix.to(dtype)
    lines = []
    for side in x.shape[2:]:
        if side > 1:
            line = torch.linspace(-1.0, 1.0, side, dtype=dtype, device=x.device)
        else:
            line = torch.zeros(1, dtype=dtype, device=x.device)
        lines.append(line if align_corners else line * (side - 1) / side)
    down, across = lines[0][None, :, None], lines[1][None, None, :]
    # written out: affine_grid is a matrix product, whose places TF32 or autocast would move
    a = m[:, :, :, None, None]
    rows = [a[:, i, 0] * across + a[:, i, 1] * down + a[:, i, 2] for i in (0, 1)]  # [N, H, W]
    grid = torch.stack(rows, -1)
    return f.grid_sample(x.to(dtype), grid, mode=mode, padding_mode=padding, align_corners=align_corners).to(x.dtype)


def patch_weights(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """One weight per patch, repeated to the pixels: sigmoid of ``logits`` ``[N, h, w]``, ``[N, 1, H, W]``.

    Raises:
        ShapeError: the patches do not divide the image.

    Example:
        >>> patch_weights(torch.zeros(1, 1, 2), (2, 4)).shape
        torch.Size([1, 1, 2, 4])
    """
    if logits.ndim != 3 or any(not p or s % p for s, p in zip(size, logits.shape[1:], strict=True)):
        raise ShapeError("logits", given=list(logits.shape), expected=f"[N, h, w], which divide {list(size)}")
    w = logits.sigmoid()
    high, wide = (s // p for s, p in zip(size, logits.shape[1:], strict=True))
    return w.repeat_interleave(high, 1).repeat_interleave(wide, 2).unsqueeze(1)


def patch_mix(x: Tensor, logits: Tensor, other: Tensor) -> Tensor:
    """``w x + (1 - w) x[other]``, patch by patch, with ``w`` the sigmoid of ``logits``.

    Args:
        x: images ``[N, C, H, W]``.
        logits: ``[N, h, w]``; h and w divide H and W.
        other: each image's partner, int64 ``[N]``.

    Example:
        >>> patch_mix(torch.tensor([[[[0.0]]], [[[4.0]]]]), torch.zeros(2, 1, 1), torch.tensor([1, 1])).flatten()
        tensor([2., 4.])
    """
    if x.ndim != 4:
        raise ShapeError("x", given=list(x.shape), expected="images [N, C, H, W]")
    w = patch_weights(logits, (x.shape[2], x.shape[3]))
    return w * x + (1 - w) * x[other]


class AugmentorTerms(NamedTuple):
    """What an augmentor is trained on, per item ``[...]``; ``loss`` is their weighted sum, with the disagreement capped."""

    loss: Tensor
    disagreement: Tensor
    consistency: Tensor


def augmentor_loss(
    student_aug: Tensor,
    teacher_aug: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    lambda_s: float = 1.0,
    lambda_t: float = 0.2,
    cap: float = 20.0,
    where: Tensor | None = None,
) -> AugmentorTerms:
    """``-lambda_s min(KL(T(x~) || S(x~)), cap) + lambda_t KL(T(x) || T(x~))``: disagreement that keeps the teacher's answer.

    Gradients flow through both networks' answers on the augmented item, and none where the disagreement is above the cap.

    Args:
        student_aug, teacher_aug: logits ``[..., C]`` on the augmented items.
        teacher: logits ``[..., C]`` on the items as they were; a constant.
        temperature: of all distributions; T squared is multiplied in.
        lambda_s: weight of the disagreement.
        lambda_t: weight of the consistency.
        cap: largest disagreement of one item that counts, T squared included.
        where: valid items ``[...]``.

    Example:
        >>> z = torch.tensor([[0.0, 1.0]])
        >>> [v.item() for v in augmentor_loss(z, z, z)]
        [0.0, 0.0, 0.0]
    """
    if not cap > 0:
        raise ConfigError("cap", given=cap, expected="a number > 0")
    disagreement = kl(student_aug, teacher_aug, temperature=temperature, where=where)
    consistency = kl(teacher_aug, teacher.detach(), temperature=temperature, where=where)
    capped = torch.where(disagreement > cap, torch.full_like(disagreement, cap), disagreement)
    loss = lambda_t * consistency - lambda_s * capped
    return AugmentorTerms(keep(loss, as_mask(where, loss.shape)), disagreement, consistency)


@dataclass(frozen=True)
class Switch:
    """Who learns next, and what that was decided by.

    Attributes:
        mode: who acts in the coming step.
        mean: moving average of the disagreement; ``None`` before the first.
        run: how many steps in a row the augmentor has learnt.
    """

    mode: Mode = "augment"
    mean: float | None = None
    run: int = 0


def switch_mode(
    state: Switch, loss: float, *, l_min: float, l_max: float, decay: float = 0.9, max_augment_steps: int = 50
) -> Switch:
    """The state after one step with this mean disagreement on augmented items.

    The moving average takes it in first (the first value starts it, and it is never reset); then the mode of the next step
    is decided: the augmentor learns until the average is above ``l_max``, or for ``max_augment_steps`` steps in a row; the
    student learns until it is below ``l_min``.

    Raises:
        ConfigError: ``l_min`` is not below ``l_max``, or a share outside [0, 1).

    Example:
        >>> state = switch_mode(Switch(), 2.0, l_min=0.3, l_max=1.0)
        >>> state.mode, switch_mode(state, 0.0, l_min=0.3, l_max=1.0, decay=0.0).mode
        ('student', 'augment')
    """
    if not l_min < l_max:
        raise ConfigError("l_min", given=l_min, expected=f"less than l_max={l_max:g}")
    if not 0 <= decay < 1:
        raise ConfigError("decay", given=decay, expected="a number in [0, 1)")
    mean = loss if state.mean is None else decay * state.mean + (1 - decay) * loss
    if state.mode == "augment":
        run = state.run + 1
        done = mean > l_max or run >= max_augment_steps
        return replace(state, mode="student" if done else "augment", mean=mean, run=0 if done else run)
    return replace(state, mode="augment" if mean < l_min else "student", mean=mean, run=0)


__all__ = [
    "AugmentorTerms",
    "Switch",
    "affine_matrices",
    "augmentor_loss",
    "patch_mix",
    "patch_weights",
    "switch_mode",
    "warp",
]
