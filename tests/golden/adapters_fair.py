"""Adapters of fair data's vectors: distance covariance, the autoencoder's step, distillation losses, parity, fidelity."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.functional.gaussian import gaussian_kl, prior_kl
from limbeck.functional.tables import (
    alpha_precision,
    column_cross_entropy,
    density_coverage,
    group_rates,
    parity,
)
from limbeck.methods.tabular.fair_data import FairData
from limbeck.networks.table_vae import Latent, TableDecoder, TableEncoder


def _tensors(arrays: Any, *names: str) -> list[Tensor]:
    return [torch.from_numpy(np.array(arrays[n])) for n in names]


def _grads(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [(torch.zeros_like(x) if g is None else g).numpy() for g, x in zip(found, inputs, strict=True)]


def _scaled(method: FairData, mean: Tensor, logvar: Tensor, s: Tensor, groups: int, batch_size: int) -> Tensor:
    """V2 of a batch that may be smaller than others."""
    return method.dependence(mean, logvar, s, groups=groups).mean() * (len(s) / batch_size)


def fairdisco(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    mean, logvar, s = _tensors(arrays, "in_mean", "in_logvar", "in_s")
    mean.requires_grad_(), logvar.requires_grad_()
    hyper.same("z_dim", mean.shape[1])
    dis = _scaled(FairData(variant="released"), mean, logvar, s, int(hyper["s_dim"]), int(hyper["batch_size"]))
    kl = prior_kl(mean, logvar).mean()
    g_mean, g_logvar = _grads(dis + 0.1 * kl, mean, logvar)
    return {
        "out_dis": dis.detach().numpy(),
        "out_kl": kl.detach().numpy(),
        "out_g_mean": g_mean,
        "out_g_logvar": g_logvar,
    }


def vae(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    x, codes, s, eps = _tensors(arrays, "in_x", "in_C", "in_s", "in_eps")
    widths, z, groups, hidden = list(hyper["D"]), int(hyper["z_dim"]), int(hyper["s_dim"]), [int(hyper["h_dim"])]
    encoder = TableEncoder(sum(widths), z, groups, hidden).to(x.dtype)
    decoder = TableDecoder(z, groups, widths, hidden=hidden).to(x.dtype)
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        keys = {k.removeprefix("body."): k for k in module.state_dict()}
        module.load_state_dict({own: _tensors(arrays, f"in_W.{name}.{k}")[0] for k, own in keys.items()})
    method = FairData(variant="released", beta=float(hyper["beta"]))
    q = encoder.posterior(encoder(x, s))
    latent = q.at(eps)
    logits = decoder(latent, s)
    re, kl = column_cross_entropy(logits, codes, widths).mean(), prior_kl(q.mean, q.logvar).mean()
    dis = method.dependence(q.mean, q.logvar, s, groups=groups).mean()
    loss = re + kl + (method.beta if method.weighs else 0.0) * dis
    (g,) = _grads(loss, encoder.body[0].weight)
    return {
        "out_z": latent.detach().numpy(),
        "out_x_hat": logits.detach().numpy(),
        "out_re": re.detach().numpy(),
        "out_kl": kl.detach().numpy(),
        "out_dis": dis.detach().numpy(),
        "out_loss": loss.detach().numpy(),
        "out_g_enc0": g,
    }


def fidelity(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    real, made = _tensors(arrays, "in_X", "in_X_syn")
    if str(hyper["emb_center"]) not in ("mean of X", "None"):
        raise ValueError(f"emb_center {hyper['emb_center']!r} is not known")
    found = alpha_precision(real, made, steps=int(hyper["n_steps"]), variant="released")
    return {
        "out_alpha_precision_curve": found.precision_curve.numpy(),
        "out_beta_coverage_curve": found.coverage_curve.numpy(),
        "out_delta_precision_alpha": np.array(found.precision),
        "out_delta_coverage_beta": np.array(found.coverage),
        "out_authenticity": np.array(found.authenticity),
    }


def ratios(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    y, told, s = _tensors(arrays, "in_y_true", "in_y_pred", "in_s")
    found = parity(group_rates(y, told, s))
    return {f"out_{name}": np.array(value) for name, value in found._asdict().items()}


def utility(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    mu_t, lv_t, mu_s, lv_s = _tensors(arrays, "in_mu_t", "in_logvar_t", "in_mu_s", "in_logvar_s")
    mu_s.requires_grad_(), lv_s.requires_grad_()
    direction = str(hyper["direction"]).replace(" ", "")
    names = {"KL(teacher||student)": "forward", "KL(student||teacher)": "reverse"}
    if direction not in names:
        raise ValueError(f"direction {direction!r} is not known")
    loss = gaussian_kl(mu_s, lv_s, mu_t, lv_t, direction=names[direction]).mean()  # type: ignore[arg-type]
    g_mu, g_logvar = _grads(loss, mu_s, lv_s)
    return {"out_loss": loss.detach().numpy(), "out_g_mu": g_mu, "out_g_logvar": g_logvar}


def covariance(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    mu, logvar, s = _tensors(arrays, "in_mu", "in_logvar", "in_group")
    mu.requires_grad_(), logvar.requires_grad_()
    v2 = _scaled(FairData(), mu, logvar, s, int(hyper["groups"]), int(hyper["batch_size"]))
    g_mu, g_logvar = _grads(v2, mu, logvar)
    return {"out_v2": v2.detach().numpy(), "out_grad_mu": g_mu, "out_grad_logvar": g_logvar}


def distill(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    mu_s, lv_s, mu_t, lv_t = _tensors(arrays, "in_mu_s", "in_logvar_s", "in_mu_t", "in_logvar_t")
    mu_s.requires_grad_(), lv_s.requires_grad_()
    h: Any = {n: str(hyper[n]) for n in ("quality", "quality_on", "utility")}
    if h["utility"] not in ("kl", "reverse_kl", "none"):
        raise ValueError(f"utility {h['utility']!r} needs a decoder")
    width = float(hyper["bandwidth2"]) if hyper.get("bandwidth2") else None
    w_q, w_u = float(hyper["w_quality"]), float(hyper["w_utility"])
    method = FairData(**{k: v for k, v in h.items() if v != "none"}, bandwidth2=width)
    eps = _tensors(arrays, "in_eps")[0] if "in_eps" in arrays else torch.zeros_like(mu_s)
    student, teacher = Latent(mu_s, lv_s), Latent(mu_t, lv_t)
    zero = mu_s.sum() * 0
    quality = method.quality_of(student, teacher, eps).mean() if h["quality"] != "none" else zero
    useful = method.utility_of(student, teacher).mean() if h["utility"] != "none" else zero
    loss = w_q * quality + w_u * useful
    g_mu, g_logvar = _grads(loss, mu_s, lv_s)
    return {
        "out_quality": quality.detach().numpy(),
        "out_utility": useful.detach().numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_mu_s": g_mu,
        "out_grad_logvar_s": g_logvar,
    }


def parities(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    y, told, s = _tensors(arrays, "in_y_true", "in_y_pred", "in_group")
    for name, known in (("empty_rate", "left out"), ("zero_over_zero", "nan")):
        if str(hyper[name]) != known:
            raise ValueError(f"{name} {hyper[name]!r} is not known")
    _, group = s.unique(return_inverse=True)
    rates = group_rates(y, told, group)
    found = {f"out_{name}": np.array(value) for name, value in parity(rates)._asdict().items()}
    return {
        "out_selection_rate": rates.selection.numpy(),
        "out_tpr": rates.true_positive.numpy(),
        "out_fpr": rates.false_positive.numpy(),
        **found,
    }


def density(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    real, made = _tensors(arrays, "in_real", "in_synthetic")
    found = density_coverage(real, made, k=int(hyper["k"]))
    return {
        "out_radius": found.radius.numpy(),
        "out_density": np.array(found.density),
        "out_coverage": np.array(found.coverage),
    }


ADAPTERS = {
    "fair-data:module.py:FairDisCo.calculate_dis+calculate_kl": fairdisco,
    "fair-data:module.py:FairDisCo.loss": vae,
    "fair-data:src/fairx/metrics/synthetic/alpha.py:SyntheticEvaluation.metrics": fidelity,
    "fair-data:fairlearn.metrics:parity+odds_ratios": ratios,
    "fair-data:reconstruction:gaussian_kl_loss": utility,
    "fair-data:fair-data:distance_covariance": covariance,
    "fair-data:fair-data:distill_loss": distill,
    "fair-data:fair-data:parity_ratios": parities,
    "fair-data:fair-data:density_coverage": density,
}
