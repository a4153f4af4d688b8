"""Adapters of ProlificDreamer's vectors: gradients of SDS and VSD in both published codes, the loss of phi, the schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.functional import diffusion
from limbeck.functional.schedule import piecewise


def _tensor(arrays: Any, name: str) -> Tensor:
    return torch.from_numpy(np.array(arrays[name]))


def _logsnr(arrays: Any, t: Tensor) -> Tensor:
    abar = _tensor(arrays, "in_alphas_cumprod").double()[t]
    return torch.log(abar) - torch.log1p(-abar)


def _weighting(hyper: Any) -> diffusion.Weighting:
    said = str(hyper.get("weight", "1-alphas_cumprod[t]"))
    known: dict[str, diffusion.Weighting] = {
        "1-alphas_cumprod[t]": "sigma2",
        "1-abar": "sigma2",
        "sigma^2": "sigma2",
        "uniform": "uniform",
    }
    if said not in known:
        hyper.doubt(f"weight {said!r} is unknown")
    return known.get(said, "sigma2")


def _clip(hyper: Any) -> float | None:
    value = hyper.get("grad_clip", None)
    return None if value is None else float(value)


def official(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    x = _tensor(arrays, "in_latents").requires_grad_()
    t, noise, z = (_tensor(arrays, n) for n in ("in_t", "in_noise", "in_latents_noisy"))
    logsnr = _logsnr(arrays, t.expand(len(x)))
    low, high = hyper.get("t_range", (0, 1000))
    if not bool(((t >= low) & (t <= high)).all()):
        hyper.doubt("a timestep lies outside t_range")
    if not torch.allclose(diffusion.diffuse(x.detach(), noise, logsnr).to(z.dtype), z, atol=1e-4):
        hyper.doubt("in_latents_noisy is not the latents at that timestep")
    pre = diffusion.guide(
        _tensor(arrays, "in_eps_text"), _tensor(arrays, "in_eps_uncond"), scale=float(hyper["guidance_scale"])
    )
    kind: diffusion.Kind = "v" if bool(hyper["v_pred"]) else "eps"
    other = noise
    if str(hyper["mode"]) == "vsd":
        other = diffusion.to_x_eps(_tensor(arrays, "in_phi_out"), z, logsnr, kind).eps
    g = diffusion.score_difference(pre, other, logsnr, weighting=_weighting(hyper), clamp=_clip(hyper))
    loss = diffusion.carry(x, g).sum() / len(x)
    loss.backward()
    assert x.grad is not None
    return {"out_grad_latents": x.grad.numpy(), "out_loss": loss.detach().reshape(1).numpy()}


def threestudio(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    x = _tensor(arrays, "in_latents").requires_grad_()
    t, noise, z = (_tensor(arrays, n) for n in ("in_t", "in_noise", "in_latents_noisy"))
    logsnr = _logsnr(arrays, t)
    if not torch.allclose(diffusion.diffuse(x.detach(), noise, logsnr).to(z.dtype), z, atol=1e-4):
        hyper.doubt("in_latents_noisy is not the latents at that timestep")
    kind: diffusion.Kind = "v" if str(hyper["lora_prediction"]) == "v_prediction" else "eps"
    text, uncond = _tensor(arrays, "in_pre_text_uncond").chunk(2)
    camera, none = _tensor(arrays, "in_est_cam_uncond").chunk(2)
    pre = diffusion.guide(text, uncond, scale=float(hyper["guidance_scale"]))
    est = diffusion.guide(camera, none, scale=float(hyper["guidance_scale_lora"]))
    other = diffusion.to_x_eps(est, z, logsnr, kind).eps
    g = diffusion.score_difference(pre, other, logsnr, weighting=_weighting(hyper), clamp=_clip(hyper))
    loss = diffusion.pull(x, g).sum() / len(x)
    loss.backward()
    assert x.grad is not None
    lam = _logsnr(arrays, _tensor(arrays, "in_lora_t"))
    lora = diffusion.denoising_error(
        _tensor(arrays, "in_lora_pred"), x.detach(), _tensor(arrays, "in_lora_noise"), lam, kind
    )
    return {
        "out_grad": g.numpy(),
        "out_loss_vsd": loss.detach().numpy(),
        "out_grad_latents": x.grad.numpy(),
        "out_loss_lora": lora.mean().numpy(),
    }


def schedule(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    steps = np.array(arrays["in_steps"]).tolist()
    hyper.same("steps", steps)
    specs = hyper["specs"]
    return {f"out_{name}": np.array([piecewise(specs[name], step) for step in steps]) for name in specs}


ADAPTERS = {
    "prolificdreamer:nerf/sd.py:StableDiffusion.train_step": official,
    "prolificdreamer:threestudio/stable_diffusion_vsd_guidance.py:compute_grad_vsd+train_lora": threestudio,
    "prolificdreamer:threestudio/utils/misc.py:C": schedule,
}
