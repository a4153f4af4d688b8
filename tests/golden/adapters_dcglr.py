"""Adapters of DCGLR's vectors: DINO's loss, centre and schedules, POS-BERT's crops, groups, head and n-pair, the definitions."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.functional import schedule
from limbeck.functional.points import (
    complete_points,
    crop_length,
    farthest_points,
    nearest_crop,
    sample_and_group,
)
from limbeck.functional.pretraining import cross_view_contrast, moved_centre, multicrop_cross_entropy, n_pair
from limbeck.grammar.role import Role
from limbeck.networks.heads import PrototypeHead


def _tensor(arrays: Any, name: str) -> Tensor:
    return torch.from_numpy(np.array(arrays[name]))


def _grad(x: Tensor) -> np.ndarray:
    assert x.grad is not None
    return np.asarray(x.grad.numpy())


def dino_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    student = _tensor(arrays, "in_student").requires_grad_()
    teacher, centre = _tensor(arrays, "in_teacher"), _tensor(arrays, "in_center")
    crops, large = int(hyper["ncrops"]), int(hyper["n_global"])
    hyper.prose("nepochs")  # after the warm-up the temperature stays
    tau_t = schedule.ramp(
        int(hyper["epoch"]),
        int(hyper["warmup_epochs"]),
        start=float(hyper["warmup_teacher_temp"]),
        end=float(hyper["teacher_temp"]),
    )
    loss = multicrop_cross_entropy(
        student.unflatten(0, (crops, -1)),
        teacher.unflatten(0, (large, -1)),
        centre.flatten(),
        student_temperature=float(hyper["student_temp"]),
        teacher_temperature=tau_t,
    ).mean()
    loss.backward()
    after = moved_centre(centre.flatten(), teacher, float(hyper["center_momentum"]))
    return {
        "out_loss": loss.detach().numpy(),
        "out_grad_student": _grad(student),
        "out_center_after": after.view_as(centre).numpy(),
        "out_teacher_temp": np.float64(tau_t),  # type: ignore[dict-item]
    }


def npair(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    ref = _tensor(arrays, "in_ref").requires_grad_()  # [B, K, V]
    loss = n_pair(ref.permute(2, 0, 1), _tensor(arrays, "in_x"), scale=float(hyper["scale"])).mean()
    loss.backward()
    return {"out_loss": loss.detach().numpy(), "out_grad_ref": _grad(ref)}


def cosine_schedules(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    found = {}
    for name in hyper:
        if not isinstance(hyper.peek(name), (list, tuple)):
            continue
        base, final, epochs, steps, warm, *first = hyper[name]
        total = int(epochs) * int(steps)
        found[f"out_{name}"] = np.array(
            [
                schedule.warm_cosine(
                    step, total, start=base, end=final, warm=int(warm) * int(steps), first=first[0] if first else 0.0
                )
                for step in range(total)
            ]
        )
    return found


def crops(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    points = _tensor(arrays, "in_points").unsqueeze(0)
    keep = crop_length(points.shape[1], float(hyper["p_keep"]))
    crop = nearest_crop(points, _tensor(arrays, "in_seed_idx").long(), keep)
    whole = complete_points(crop, int(hyper["global_keep_len"]))
    ids = farthest_points(points, int(hyper["fps_num"]), _tensor(arrays, "in_fps_start").long())
    return {
        "out_crop": crop[0].numpy(),
        "out_n_completed": np.int64(whole.shape[1]),  # type: ignore[dict-item]
        "out_completed_first": whole[0, :keep].numpy(),
        "out_fps_ids": ids[0].numpy(),
    }


def head(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    x = _tensor(arrays, "in_x").requires_grad_()
    weights = {name.removeprefix("in_W."): _tensor(arrays, name) for name in arrays if name.startswith("in_W.")}
    net = PrototypeHead(
        x.shape[1],
        outputs=int(hyper["out_dim"]),
        hidden=int(hyper["hidden_dim"]),
        bottleneck=int(hyper["bottleneck_dim"]),
        layers=int(hyper["nlayers"]),
        norm=any("running_mean" in name for name in weights),
    ).to(x.dtype)
    net.load_state_dict(weights)
    y = net(x)
    y.square().sum().backward()
    return {"out_y": y.detach().numpy(), "out_g_x": _grad(x)}


def groups(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    xyz, feat = _tensor(arrays, "in_xyz"), _tensor(arrays, "in_feat")
    found = sample_and_group(xyz, feat, int(hyper["npoint"]), int(hyper["nsample"]), int(hyper["fps_start"]))
    return {"out_new_xyz": found.centres.numpy(), "out_sorted_group": np.sort(found.features.numpy(), axis=2)}


def contrast_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    a, b = (_tensor(arrays, f"in_student_{k}").requires_grad_() for k in "ab")
    teacher = torch.stack([_tensor(arrays, f"in_teacher_{k}") for k in "ab"])
    queue = _tensor(arrays, "in_queue") if hyper["queue"] else None
    loss = cross_view_contrast(torch.stack([a, b]), teacher, queue, temperature=float(hyper["tau"])).mean()
    loss.backward()
    return {"out_loss": loss.detach().numpy(), "out_grad_student_a": _grad(a), "out_grad_student_b": _grad(b)}


def combined_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    s, z = (_tensor(arrays, n).requires_grad_() for n in ("in_student", "in_student_embedding"))
    t, centre = _tensor(arrays, "in_teacher"), _tensor(arrays, "in_centre")
    kd = multicrop_cross_entropy(
        s, t, centre, student_temperature=float(hyper["tau_s"]), teacher_temperature=float(hyper["tau_t"])
    ).mean()
    queue = _tensor(arrays, "in_queue") if "in_queue" in arrays else None
    z_t, tau = _tensor(arrays, "in_teacher_embedding"), float(hyper["tau"])
    contrast = cross_view_contrast(z, z_t, queue, temperature=tau).mean()
    loss = kd + float(hyper["lambda"]) * contrast
    loss.backward()
    return {
        "out_loss_kd": kd.detach().numpy(),
        "out_loss_contrast": contrast.detach().numpy(),
        "out_loss": loss.detach().numpy(),
        "out_centre_after": moved_centre(centre, t, float(hyper["centre_momentum"])).numpy(),
        "out_grad_student": _grad(s),
        "out_grad_student_embedding": _grad(z),
    }


class _Held(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)


def teacher_update(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    student, teacher = (_Held(_tensor(arrays, f"in_{n}")) for n in ("student", "teacher"))
    step, total = int(hyper["step"]), int(hyper["total_steps"])
    kept = functools.partial(
        schedule.warm_cosine, start=float(hyper["momentum_start"]), end=float(hyper["momentum_end"])
    )
    Role(teacher, of="student", decay=kept).follow(Role(student), step, total)
    return {
        "out_momentum": np.float64(kept(step, total)),  # type: ignore[dict-item]
        "out_teacher_after": teacher.values.detach().numpy(),
    }


ADAPTERS = {
    "dcglr:main_dino.py:DINOLoss.forward+update_center": dino_loss,
    "dcglr:pretrain.py:DINOLoss.get_npair_loss": npair,
    "dcglr:utils.py:cosine_scheduler": cosine_schedules,
    "dcglr:dataloader.py:crop+completion+fps": crops,
    "dcglr:point_transformer.py:DINOHead.forward": head,
    "dcglr:utils_3d/pct_util.py:sample_and_group": groups,
    "dcglr:dcglr:contrast_loss": contrast_loss,
    "dcglr:dcglr:combined_loss": combined_loss,
    "dcglr:dcglr:teacher_update": teacher_update,
}
