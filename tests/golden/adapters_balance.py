"""Adapters of BD-KD's definition vectors: entropy-gap weights, the losses of student and larger network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.functional.balance import entropy_gap_weights
from limbeck.methods.classification.bd_kd import BdKd


def _weights(z_s: Tensor, z_t: Tensor, hyper: Any) -> Any:
    rule = str(hyper["rule"])
    sharp = float(hyper["k"]) if rule == "soft" else 1.0
    hyper.prose("k")
    return entropy_gap_weights(
        z_s, z_t, delta=float(hyper["delta"]), rule=rule, sharpness=sharp, temperature=float(hyper["T"])
    )


def _tensors(arrays: Any, *names: str) -> list[Tensor]:
    return [torch.from_numpy(np.array(arrays[n])) for n in names]


def gap_weights(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_s, z_t = _tensors(arrays, "in_z_s", "in_z_t")
    w = _weights(z_s, z_t, hyper)
    return {
        "out_entropy_teacher": w.teacher_entropy.numpy(),
        "out_entropy_student": w.student_entropy.numpy(),
        "out_weight_forward": w.forward.numpy(),
        "out_weight_reverse": w.reverse.numpy(),
    }


def student_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_s, z_t, y = _tensors(arrays, "in_z_s", "in_z_t", "in_label")
    z_s.requires_grad_()
    T = float(hyper["T"])
    w = _weights(z_s, z_t, hyper)
    rule, sharp = str(hyper["rule"]), float(hyper["k"]) or 1.0
    method = BdKd(temperature=T, delta=float(hyper["delta"]), rule=rule, sharpness=sharp)  # type: ignore[arg-type]
    loss = F.cross_entropy(z_s, y).mean() + float(hyper["lambda"]) * method.balanced(z_s, z_t).mean()
    loss.backward()
    return {
        "out_forward_kl": F.kl(z_s, z_t, temperature=T, scale_t2=False).detach().numpy(),
        "out_reverse_kl": F.kl(z_s, z_t, direction="reverse", temperature=T, scale_t2=False).detach().numpy(),
        "out_weight_forward": w.forward.numpy(),
        "out_weight_reverse": w.reverse.numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_z_s": z_s.grad.numpy(),  # type: ignore[union-attr]
    }


def teacher_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_t, z_s, y = _tensors(arrays, "in_z_t", "in_z_s", "in_label")
    z_t.requires_grad_()
    T, kind = float(hyper["T"]), str(hyper["teacher_divergence"])
    way = {"reverse": "forward", "forward": "reverse"}[kind]
    value = F.kl(z_t, z_s, direction=way, temperature=T, scale_t2=False)  # type: ignore[arg-type]
    loss = F.cross_entropy(z_t, y).mean() + float(hyper["mu"]) * T**2 * value.mean()
    loss.backward()
    return {
        "out_divergence": value.detach().numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_z_t": z_t.grad.numpy(),  # type: ignore[union-attr]
    }


ADAPTERS = {
    "bd-kd:bd-kd:entropy_gap_weights": gap_weights,
    "bd-kd:bd-kd:student_loss": student_loss,
    "bd-kd:bd-kd:teacher_loss": teacher_loss,
}
