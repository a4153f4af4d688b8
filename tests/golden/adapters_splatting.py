"""Adapters of the Gaussian renderer's vectors: projection, harmonics, images with all gradients, changes of number, losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.functional import splatting as S


def _tensors(arrays: Any, *names: str, grad: bool = False) -> list[Tensor]:
    return [torch.from_numpy(np.array(arrays[n])).requires_grad_(grad) for n in names]


def _grad(t: Tensor) -> np.ndarray:
    return torch.zeros_like(t).numpy() if t.grad is None else t.grad.numpy()


def projection(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    means, quats, scales, viewmats = _tensors(arrays, "in_means", "in_quats", "in_scales", "in_viewmats", grad=True)
    Ks, weights = _tensors(arrays, "in_Ks", "in_weights")
    if str(hyper["camera_model"]) != "pinhole":
        hyper.doubt("only pinhole cameras are projected")
    covars = S.covariances(quats, scales)
    p = S.project(
        means,
        covars,
        viewmats,
        Ks,
        int(hyper["width"]),
        int(hyper["height"]),
        eps2d=float(hyper["eps2d"]),
        near_plane=float(hyper["near_plane"]),
        far_plane=float(hyper["far_plane"]),
    )
    seen = (p.radii > 0).all(-1)[..., None]
    parts = [p.means2d, p.depths[..., None], p.conics]
    loss = (torch.cat(parts, -1) * weights * seen).sum()
    made = {
        "out_covars": covars,
        "out_means2d": p.means2d,
        "out_depths": p.depths,
        "out_conics": p.conics,
    }
    if bool(hyper["antialiased"]):
        loss = loss + (p.compensations[..., None] * weights[..., :1] * seen).sum()
        made["out_compensations"] = p.compensations
    loss.backward()
    grads = {
        f"out_g_{n}": _grad(t)
        for n, t in zip(("means", "quats", "scales", "viewmats"), (means, quats, scales, viewmats), strict=True)
    }
    return {k: v.detach().numpy() for k, v in made.items()} | {"out_radii": p.radii.numpy()} | grads


def harmonics(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    dirs, coeffs = _tensors(arrays, "in_dirs", "in_coeffs", grad=True)
    made = S.spherical_harmonics(int(hyper["degree"]), dirs, coeffs)
    made.square().sum().backward()
    return {"out_colors": made.detach().numpy(), "out_g_dirs": _grad(dirs), "out_g_coeffs": _grad(coeffs)}


def render(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    names = ("means", "quats", "scales", "opacities", "sh", "viewmats")
    given = _tensors(arrays, *(f"in_{n}" for n in names), grad=True)
    means, quats, scales, opacities, sh, viewmats = given
    Ks, w_color, w_alpha = _tensors(arrays, "in_Ks", "in_w_color", "in_w_alpha")
    behind = _tensors(arrays, "in_backgrounds")[0] if "in_backgrounds" in arrays else None
    picture, alpha, meta = S.rasterization(
        means,
        quats,
        scales,
        opacities,
        sh,
        viewmats,
        Ks,
        int(hyper["width"]),
        int(hyper["height"]),
        near_plane=float(hyper["near_plane"]),
        eps2d=float(hyper["eps2d"]),
        sh_degree=int(hyper["sh_degree"]),
        backgrounds=behind,
        render_mode=str(hyper["render_mode"]),  # type: ignore[arg-type]
        rasterize_mode=str(hyper["rasterize_mode"]),  # type: ignore[arg-type]
        max_alpha=float(hyper["max_alpha"]) if "max_alpha" in hyper else 0.99,
        backend="torch",
    )
    meta["means2d"].retain_grad()
    ((picture * w_color).sum() + (alpha * w_alpha).sum()).backward()
    return {
        "out_render": picture.detach().numpy(),
        "out_alpha": alpha.detach().numpy(),
        "out_radii": meta["radii"].numpy(),
        "out_g_means2d": _grad(meta["means2d"]),
        **{f"out_g_{n}": _grad(t) for n, t in zip(names, given, strict=True)},
    }


def densify(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    params = dict(
        zip(
            ("means", "scales", "quats", "opacities"),
            _tensors(arrays, "in_means", "in_scales", "in_quats", "in_opacities"),
            strict=True,
        )
    )
    mask, noise = _tensors(arrays, "in_mask", "in_noise")
    divide = float(hyper["split_scale_div"])
    twice, out = S.duplicate(params, mask), S.remove(params, mask)
    halves = S.split(params, mask, noise, divide=divide)
    revised = S.split(params, mask, noise, divide=divide, revised=True)
    made = {f"out_dup_{n}": t for n, t in twice.params.items()}
    made |= {f"out_split_{n}": t for n, t in halves.params.items()}
    made |= {f"out_rm_{n}": t for n, t in out.params.items()}
    made["out_split_revised_opacities"] = revised.params["opacities"]
    made["out_reset_opacities"] = S.reset_opacities(params["opacities"], float(hyper["reset_value"]))
    # what was recorded of each row before: its number, and Adam's first moment after one step of a gradient of 0.5
    made["out_dup_state_grad2d"] = S.carry_rows(torch.arange(float(len(mask))), twice, zero=False)
    made["out_dup_exp_avg_means"] = S.carry_rows(torch.full_like(params["means"], 0.1 * 0.5), twice)
    return {name: t.numpy() for name, t in made.items()}


def relocation(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    o, s, r = _tensors(arrays, "in_opacities", "in_scales", "in_ratios")
    new_o, new_s = S.relocate(o, s, r, min_opacity=float(hyper["min_opacity"]))
    return {"out_new_opacities": new_o.numpy(), "out_new_scales": new_s.numpy()}


def photometric(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    (a,), (b,) = _tensors(arrays, "in_a", grad=True), _tensors(arrays, "in_b")
    options: dict[str, Any] = {"window": int(hyper["window"]), "sigma": float(hyper["sigma"])}
    options |= {"c1": float(hyper["C1"]), "c2": float(hyper["C2"])}
    if str(hyper["padding"]) != "zero":
        hyper.doubt("only zeros stand beside an image")
    loss = S.l1_dssim(a, b, weight=float(hyper["lambda_dssim"]), **options).mean()
    loss.backward()
    return {
        "out_ssim_map": S.ssim_map(a, b, **options).detach().numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad": _grad(a),
    }


ADAPTERS = {
    "base-gaussian-splatting:gsplat/cuda/_torch_impl.py:_fully_fused_projection": projection,
    "base-gaussian-splatting:gsplat/cuda/_torch_impl.py:_spherical_harmonics": harmonics,
    "base-gaussian-splatting:gsplat/rendering.py:rasterization": render,
    "base-gaussian-splatting:gsplat/strategy/ops.py:duplicate+split+remove+reset_opa": densify,
    "base-gaussian-splatting:gsplat/cuda/csrc/RelocationCUDA.cu:relocation_kernel": relocation,
    "base-gaussian-splatting:gsplat/losses.py:l1_dssim_loss": photometric,
}
