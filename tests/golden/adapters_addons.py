"""Adapters of what attaches to other methods: ND's vectors, MIX-KD's, and HARD's definition vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.functional.adversarial import (
    Switch,
    affine_matrices,
    augmentor_loss,
    patch_mix,
    patch_weights,
    switch_mode,
    warp,
)
from limbeck.functional.feature import class_directions, norm_direction
from limbeck.functional.mixing import mix_pairs
from limbeck.functional.relation import dist

Results = dict[str, np.ndarray]


def _tensors(arrays: Any, *names: str) -> list[Tensor]:
    return [torch.from_numpy(np.array(arrays[n])) for n in names]


def _numbers(x: Tensor | None) -> np.ndarray:
    assert x is not None
    return x.detach().numpy()


# ---------------------------------------------------------------------------------------------------------------- ND


def nd(arrays: Any, hyper: Any) -> Results:
    s, t, centers, y = _tensors(arrays, "in_s_emb", "in_t_emb", "in_centers", "in_labels")
    s.requires_grad_()
    loss = float(hyper.get("nd_loss_factor", 1.0)) * norm_direction(s, t, class_directions(centers, y)).mean()
    loss.backward()
    return {"out_loss": _numbers(loss), "out_grad_s_emb": _numbers(s.grad)}


def nd_kd(arrays: Any, hyper: Any) -> Results:
    s, t = _tensors(arrays, "in_s_logits", "in_t_logits")
    s.requires_grad_()
    loss = float(hyper.get("kl_loss_factor", 1.0)) * F.kl(s, t, temperature=float(hyper["T"])).mean()
    loss.backward()
    return {"out_loss": _numbers(loss), "out_grad_s_logits": _numbers(s.grad)}


def nd_dkd(arrays: Any, hyper: Any) -> Results:
    s, t, y = _tensors(arrays, "in_s_logits", "in_t_logits", "in_labels")
    s.requires_grad_()
    parts = F.dkd(s, t, y, alpha=float(hyper["alpha"]), beta=float(hyper["beta"]), temperature=float(hyper["T"]))
    loss = parts.target.mean() + parts.nontarget.mean()
    loss.backward()
    return {"out_loss": _numbers(loss), "out_grad_s_logits": _numbers(s.grad)}


def nd_dist(arrays: Any, hyper: Any) -> Results:
    s, t = _tensors(arrays, "in_s_logits", "in_t_logits")
    s.requires_grad_()
    tau = float(hyper.get("tau", 1.0))
    inter, intra = dist(s, t, temperature=tau, eps=1e-8)
    loss = tau**2 * (float(hyper["beta"]) * inter.mean() + float(hyper["gamma"]) * intra.mean())
    loss.backward()
    return {"out_loss": _numbers(loss), "out_grad_s_logits": _numbers(s.grad)}


# ------------------------------------------------------------------------------------------------------------ MIX-KD


def mixstd(arrays: Any, hyper: Any) -> Results:
    s, t, y = _tensors(arrays, "in_logit_s", "in_logit_t", "in_target")
    s.requires_grad_()
    z_s, z_t = F.divide_by_std(s), F.divide_by_std(t)
    cls = float(hyper["gamma"]) * F.cross_entropy(z_s, y).mean()
    div = float(hyper["alpha"]) * F.kl(z_s, z_t).mean()
    (cls + div).backward()
    return {"out_loss_cls": _numbers(cls), "out_loss_div": _numbers(div), "out_grad_logit_s": _numbers(s.grad)}


def distill_kl(arrays: Any, hyper: Any) -> Results:
    s, t = _tensors(arrays, "in_logit_s", "in_logit_t")
    s.requires_grad_()
    loss = F.kl(s, t, temperature=float(hyper["T"])).mean()
    loss.backward()
    return {"out_loss": _numbers(loss), "out_grad_logit_s": _numbers(s.grad)}


CLASSES = 100
"""Of the released code, which has them written into it."""


def mixed(arrays: Any, hyper: Any) -> Results:
    """Full and partial mixup from recorded draws; the recorded shares are those after the partial rule."""
    x, y, first, second, lam, unmixed = _tensors(
        arrays, "in_x", "in_y", "in_perm1", "in_perm2", "in_lam", "in_unmixed_idx"
    )
    hyper.prose("beta_a")
    if "percent" in hyper and int(float(hyper["percent"]) * len(x)) != len(unmixed):
        hyper.doubt(f"percent {hyper['percent']} of {len(x)} items is not {len(unmixed)}")
    classes = int(hyper.get("num_classes", hyper.get("classes", CLASSES)))
    share = F.mixing.partial_shares(lam.flatten(), unmixed.long())
    labels = y if y.is_floating_point() else torch.nn.functional.one_hot(y.long(), classes).float()
    return {
        "out_x_mix": mix_pairs(x, share, first, second).numpy(),
        "out_y_mix": mix_pairs(labels, share, first, second).numpy(),
    }


# -------------------------------------------------------------------------------------------------------------- HARD


def _nets(arrays: Any) -> Any:
    w1, b1, w2, b2, w, b = _tensors(
        arrays, "in_teacher_w1", "in_teacher_b1", "in_teacher_w2", "in_teacher_b2", "in_student_w", "in_student_b"
    )

    def teacher(x: Tensor) -> Tensor:
        return (x.flatten(1) @ w1.T + b1).tanh() @ w2.T + b2

    def student(x: Tensor) -> Tensor:
        return x.flatten(1) @ w.T + b

    return teacher, student


def _augmentor(x: Tensor, x_aug: Tensor, arrays: Any, hyper: Any) -> tuple[Tensor, Results]:
    teacher, student = _nets(arrays)
    parts = augmentor_loss(
        student(x_aug),
        teacher(x_aug),
        teacher(x),
        temperature=float(hyper["tau"]),
        lambda_s=float(hyper["lambda_s"]),
        lambda_t=float(hyper["lambda_t"]),
        cap=float(hyper["cap"]),
    )
    loss = parts.loss.mean()
    loss.backward()
    return loss, {
        "out_disagreement": _numbers(parts.disagreement),
        "out_consistency": _numbers(parts.consistency),
        "out_loss": _numbers(loss),
    }


def hard_augmentor(arrays: Any, hyper: Any) -> Results:
    x, x_aug = _tensors(arrays, "in_x", "in_x_aug")
    x_aug.requires_grad_()
    _, found = _augmentor(x, x_aug, arrays, hyper)
    return found | {"out_grad_x_aug": _numbers(x_aug.grad)}


def _ways(hyper: Any) -> dict[str, Any]:
    return {
        "mode": str(hyper.get("mode", "bilinear")),
        "padding": str(hyper.get("padding", "zeros")),
        "align_corners": bool(hyper.get("align_corners", False)),
    }


def hard_affine(arrays: Any, hyper: Any) -> Results:
    x, sigma, noise, up = _tensors(arrays, "in_x", "in_sigma", "in_noise", "in_cotangent")
    sigma.requires_grad_()
    theta = affine_matrices(sigma, noise)
    out = warp(x, theta, **_ways(hyper))
    out.backward(up)
    return {"out_theta": _numbers(theta), "out_x_aug": _numbers(out), "out_grad_sigma": _numbers(sigma.grad)}


def hard_chain(arrays: Any, hyper: Any) -> Results:
    x, sigma, noise = _tensors(arrays, "in_x", "in_sigma", "in_noise")
    sigma.requires_grad_()
    _, found = _augmentor(x, warp(x, affine_matrices(sigma, noise), **_ways(hyper)), arrays, hyper)
    return found | {"out_grad_sigma": _numbers(sigma.grad)}


def hard_student(arrays: Any, hyper: Any) -> Results:
    z_s, z_t, a_s, a_t, y = _tensors(arrays, "in_z_s", "in_z_t", "in_z_s_aug", "in_z_t_aug", "in_label")
    z_s.requires_grad_()
    a_s.requires_grad_()
    tau, alpha = float(hyper["tau"]), float(hyper["alpha"])
    match = F.kl(a_s, a_t, temperature=tau).mean()
    if hyper.get("clean", True):
        match = match + F.kl(z_s, z_t, temperature=tau).mean()
    loss = (1 - alpha) * F.cross_entropy(z_s, y).mean() + alpha * match
    loss.backward()
    return {"out_loss": _numbers(loss), "out_grad_z_s": _numbers(z_s.grad), "out_grad_z_s_aug": _numbers(a_s.grad)}


def hard_switch(arrays: Any, hyper: Any) -> Results:
    modes, means = [], []
    state = Switch(mode=str(hyper.get("start", "augment")))  # type: ignore[arg-type]
    limits = {"l_min": float(hyper["l_min"]), "l_max": float(hyper["l_max"]), "decay": float(hyper.get("decay", 0.9))}
    longest = int(hyper.get("max_augment_steps", 50))
    for loss in arrays["in_loss"]:
        modes.append(("augment", "student").index(state.mode))
        state = switch_mode(state, float(loss), max_augment_steps=longest, **limits)
        means.append(state.mean)
    return {"out_mode": np.array(modes, dtype=np.int64), "out_running_mean": np.array(means)}


def hard_patches(arrays: Any, hyper: Any) -> Results:
    x, logits, other, up = _tensors(arrays, "in_x", "in_weight_logits", "in_permutation", "in_cotangent")
    logits.requires_grad_()
    out = patch_mix(x, logits, other)
    out.backward(up)
    return {
        "out_weight": _numbers(patch_weights(logits, (x.shape[2], x.shape[3]))),
        "out_x_aug": _numbers(out),
        "out_grad_weight_logits": _numbers(logits.grad),
    }


ADAPTERS = {
    "nd-loss:CIFAR/utils.py:DirectNormLoss.forward": nd,
    "nd-loss:CIFAR/utils.py:KDLoss.forward": nd_kd,
    "nd-loss:CIFAR/utils.py:DKDLoss.forward": nd_dkd,
    "nd-loss:CIFAR/DIST++/utils.py:DIST.forward": nd_dist,
    "mixup-kd:distiller_zoo/MIXSTD.py:MIXSTDLoss.forward": mixstd,
    "mixup-kd:distiller_zoo/KD.py:DistillKL.forward": distill_kl,
    "mixup-kd:helper/loops_mixstd.py:PMU": mixed,
    "mixup-kd:helper/loops_mixstd.py:FMU": mixed,
    "hard:hard:augmentor_loss": hard_augmentor,
    "hard:hard:affine_augmentation": hard_affine,
    "hard:hard:augmentor_step_gradient": hard_chain,
    "hard:hard:student_loss": hard_student,
    "hard:hard:mode_switch": hard_switch,
    "hard:hard:patch_mix": hard_patches,
}
