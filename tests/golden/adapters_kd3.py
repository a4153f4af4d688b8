"""Adapters of KD3's definition vectors: selection, weighted terms through the shared classifier, mixing, contrast, ramp."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.functional.contrast import info_nce, mix_distribution
from limbeck.functional.feature import feature_distance
from limbeck.functional.selection import confidence_weights, select, student_share


def _tensors(arrays: Any, *names: str) -> list[Tensor]:
    return [torch.from_numpy(np.array(arrays[n])) for n in names]


def _linear(arrays: Any, name: str) -> nn.Linear:
    weight, bias = _tensors(arrays, f"in_weight_{name}", f"in_bias_{name}")
    made = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made


def selection(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_t, z_s = _tensors(arrays, "in_z_t", "in_z_s")
    found = select(
        z_t,
        z_s,
        beta=float(hyper["beta"]),
        rule=str(hyper["rule"]),  # type: ignore[arg-type]
        threshold=float(hyper["threshold"]),
        ratio=float(hyper["ratio"]),
        per_class=int(hyper["per_class"]),
        require_agreement=bool(hyper["require_agreement"]),
    )
    return {
        "out_score": found.score.numpy(),
        "out_pseudo_class": found.classes.numpy(),
        "out_selected": found.kept.long().numpy(),
    }


def alignment(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    f_s, f_t, score = _tensors(arrays, "in_f_s", "in_f_t", "in_score")
    project = _linear(arrays, "p")
    f_s.requires_grad_()
    w = confidence_weights(score, score.mean() if hyper["normalise_weights"] else None)
    loss = (w * feature_distance(project(f_s), f_t)).mean()
    loss.backward()
    return {
        "out_weight": w.numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_f_s": f_s.grad.numpy(),  # type: ignore[union-attr]
        "out_grad_weight_p": project.weight.grad.numpy(),  # type: ignore[union-attr]
        "out_grad_bias_p": project.bias.grad.numpy(),  # type: ignore[union-attr]
    }


def distillation(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    f_s, f_t, score = _tensors(arrays, "in_f_s", "in_f_t", "in_score")
    project, head = _linear(arrays, "p"), _linear(arrays, "h").requires_grad_(False)
    f_s.requires_grad_()
    z_s, z_t = head(project(f_s)), head(f_t)
    w = confidence_weights(score, score.mean() if hyper["normalise_weights"] else None)
    loss = (w * F.kl(z_s, z_t, temperature=float(hyper["tau"]))).mean()
    loss.backward()
    return {
        "out_logits_s": z_s.detach().numpy(),
        "out_logits_t": z_t.numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_f_s": f_s.grad.numpy(),  # type: ignore[union-attr]
        "out_grad_weight_p": project.weight.grad.numpy(),  # type: ignore[union-attr]
    }


def mixing(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    x, lam, other, up = _tensors(arrays, "in_x", "in_lambda", "in_permutation", "in_cotangent")
    x.requires_grad_()
    members = torch.stack([torch.arange(len(x)), other], 1)
    mixed = mix_distribution(x, torch.stack([lam, 1 - lam], 1), members, eps=float(hyper["eps"]))
    mixed.backward(up)
    return {"out_x": mixed.detach().numpy(), "out_grad_x": x.grad.numpy()}  # type: ignore[union-attr]


def contrast(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    q, k = (t.requires_grad_() for t in _tensors(arrays, "in_q", "in_k"))
    t = float(hyper["t"])
    loss = info_nce(q, k, temperature=t).mean()
    if hyper["symmetric"]:
        loss = (loss + info_nce(k, q, temperature=t).mean()) / 2
    loss.backward()
    return {
        "out_loss": loss.detach().numpy(),
        "out_grad_q": q.grad.numpy(),  # type: ignore[union-attr]
        "out_grad_k": k.grad.numpy(),  # type: ignore[union-attr]
    }


def schedule(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    (epoch,) = _tensors(arrays, "in_epoch")
    whole, most, ramp = float(hyper["epochs"]), float(hyper["beta_max"]), float(hyper["ramp"])
    share = student_share(epoch.double(), whole, most=most, ramp=ramp)
    assert isinstance(share, Tensor)
    return {"out_beta": share.numpy()}


ADAPTERS = {
    "kd3:kd3:instance_selection": selection,
    "kd3:kd3:weighted_feature_alignment": alignment,
    "kd3:kd3:weighted_distillation": distillation,
    "kd3:kd3:mix_distribution": mixing,
    "kd3:kd3:info_nce": contrast,
    "kd3:kd3:beta_schedule": schedule,
}
