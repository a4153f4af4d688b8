"""Adapters of the token-level systems' vectors: SinKD, Swing, multi-granularity revision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import limbeck.functional as F
from limbeck.functional import privacy, revision, transport
from limbeck.functional.schedule import linear


def _tensors(arrays: Any, *names: str) -> list[Tensor]:
    return [torch.from_numpy(np.array(arrays[n])) for n in names]


def _grads(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    if not loss.requires_grad:
        return [np.zeros(x.shape, dtype=x.detach().numpy().dtype) for x in inputs]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [(torch.zeros_like(x) if g is None else g).numpy() for g, x in zip(found, inputs, strict=True)]


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp_min(1)


def _flag(value: Any) -> bool:
    return value if isinstance(value, bool) else str(value).lower() in ("true", "1", "yes")


# -------------------------------------------------------------------------------------------------------------- sinkd


def _settings(hyper: Any) -> dict[str, Any]:
    """What a case says of the transport; the published constants where it says nothing."""
    found: dict[str, Any] = {"temperature": float(hyper["T"]), "eps": 0.1, "iterations": 20}
    for name, own in (
        ("epsilon", "eps"),
        ("eps", "eps"),
        ("lambda", "eps"),
        ("n_iters", "iterations"),
        ("iters", "iterations"),
    ):
        if name in hyper:
            found[own] = int(hyper[name]) if own == "iterations" else float(hyper[name])
    if "order" in hyper and not str(hyper["order"]).startswith("rows then columns"):
        raise ValueError(f"order {hyper['order']!r} is not known")
    return found


def batch_sinkhorn(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_s, z_t = _tensors(arrays, "student_logits", "teacher_logits")
    z_s.requires_grad_()
    how, factor = _settings(hyper), float(hyper["factor"]) if "factor" in hyper else 1e-3
    T = how["temperature"]
    cost = transport.pairwise_cost((z_s / T).softmax(-1), (z_t / T).softmax(-1))
    plan = transport.sinkhorn_plan(cost, eps=how["eps"], iterations=how["iterations"])
    loss = factor * transport.sinkhorn(z_s, z_t, **how).sum()
    (grad,) = _grads(loss, z_s)
    return {
        "cost": cost.detach().numpy(),
        "plan": plan.detach().numpy(),
        "loss": loss.detach().numpy(),
        "grad_student": grad,
    }


def released_sinkhorn(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_s, z_t = _tensors(arrays, "student_logits", "teacher_logits")
    z_s.requires_grad_()
    factor = float(hyper["factor"]) if "factor" in hyper else 8e-4
    variant = "released" if z_s.ndim == 3 else "paper"
    loss = factor * transport.sinkhorn(z_s, z_t, **_settings(hyper), variant=variant).sum()
    (grad,) = _grads(loss, z_s)
    return {"loss": loss.detach().numpy(), "grad_student": grad}


def soft(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_s, z_t = _tensors(arrays, "student_logits", "teacher_logits")
    z_s.requires_grad_()
    loss = F.soft_cross_entropy(z_s, z_t, temperature=float(hyper["T"]), scale_t2=False).mean()
    (grad,) = _grads(loss, z_s)
    return {"loss": loss.detach().numpy(), "grad_student": grad}


def annealed(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_s, z_t = _tensors(arrays, "student_logits", "teacher_logits")
    epochs, T = int(hyper["total_epoch"]), float(hyper["T"])
    heats = [linear(e, epochs - 1, start=T, end=1.0) if epochs > 1 else T for e in range(epochs)]
    losses = [F.soft_cross_entropy(z_s, z_t, temperature=h, scale_t2=False).mean() for h in heats]
    return {"loss_per_epoch": torch.stack(losses).numpy().astype(np.float64)}


# -------------------------------------------------------------------------------------------------------------- swing


def span_score(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    return {"out_score": privacy.span_score(*_tensors(arrays, "in_offsets", "in_spans", "in_span_probability")).numpy()}


def memorisation(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    teacher, reference = _tensors(arrays, "in_teacher_log_prob", "in_reference_log_prob")
    how = {"offset": float(hyper["offset"]), "width": float(hyper["width"])}
    return {"out_score": privacy.memorisation_score(teacher, reference, **how).numpy()}


def _temperature(score: Tensor, hyper: Any) -> Tensor:
    return privacy.per_token_temperature(
        score,
        t_min=float(hyper["t_min"]),
        t_max=float(hyper["t_max"]),
        shape=str(hyper["shape"]),  # type: ignore[arg-type]
    )


def token_temperature(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    (score,) = _tensors(arrays, "in_score")
    return {"out_temperature": _temperature(score, hyper).numpy()}


def _scale(score: Tensor, hyper: Any) -> Any:
    epsilon = float(hyper["epsilon"]) if "epsilon" in hyper and hyper["epsilon"] is not None else None
    return privacy.noise_scale(float(hyper["sigma"]), epsilon=epsilon, score=score, tied=_flag(hyper["tied_to_score"]))


def soft_target(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z, T, score, noise = _tensors(arrays, "in_teacher_logits", "in_temperature", "in_score", "in_noise")
    target = privacy.protected_target(z, T, noise, scale=_scale(score, hyper), space=str(hyper["space"]))  # type: ignore[arg-type]
    return {"out_target": target.exp().numpy()}


def swing_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_s, z_t, labels, score, mask, noise = _tensors(
        arrays, "in_student_logits", "in_teacher_logits", "in_labels", "in_score", "in_mask", "in_noise"
    )
    z_s.requires_grad_()
    valid = mask.bool()
    T = _temperature(score, hyper)
    space = str(hyper["space"]) if "space" in hyper else "logit"
    target = privacy.protected_target(z_t, T, noise, scale=_scale(score, hyper), space=space)  # type: ignore[arg-type]
    drop = _flag(hyper["drop_hard_on_private"])
    threshold = float(hyper["private_threshold"]) if "private_threshold" in hyper else 0.5
    hard_where = valid & (score < threshold) if drop else valid
    hard = _mean(F.cross_entropy(z_s, labels, where=hard_where), hard_where)
    values = T.square() * F.kl(z_s / T.unsqueeze(-1), target, where=valid)
    softly = _mean(values, valid)
    alpha = float(hyper["alpha"])
    loss = (1 - alpha) * hard + alpha * softly
    (grad,) = _grads(loss, z_s)
    return {
        "out_temperature": T.numpy(),
        "out_hard": hard.detach().numpy(),
        "out_soft": softly.detach().numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_student": grad,
    }


def exposed(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    found = privacy.exposure(*_tensors(arrays, "in_log_perplexity", "in_index"))
    return {"out_rank": found.rank.numpy(), "out_exposure": found.exposure.numpy()}


def reduction(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    found = privacy.exposure(*_tensors(arrays, "in_log_perplexity", "in_index")).exposure
    return {
        "out_exposure": found.numpy(),
        "out_mean_exposure": found.mean(-1).numpy(),
        "out_reduction": privacy.leakage_reduction(found[2], found[1]).numpy(),
    }


# -------------------------------------------------------------------------------------------------- multi-granularity


def repair(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_t, z_s, mine, theirs, mask = _tensors(
        arrays, "in_teacher_logits", "in_student_logits", "in_student_tokens", "in_teacher_tokens", "in_mask"
    )
    found = revision.locate_and_repair(
        z_s,
        z_t,
        mine,
        theirs,
        mask,
        difference=str(hyper["difference"]),
        pad=int(hyper["pad"]),  # type: ignore[arg-type]
    )
    return {f"out_{name}": value.numpy() for name, value in found._asdict().items()}


def thresholds(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    p, u, l = _tensors(arrays, "in_p", "in_u", "in_l")  # noqa: E741
    u.requires_grad_(), l.requires_grad_()
    found = revision.clip_thresholds(p, u, l, level=str(hyper["level"]), k=int(hyper["k"]))  # type: ignore[arg-type]
    g_u, g_l = _grads(found.upper.sum() + found.lower.sum(), u, l)
    return {
        "out_t_u": found.upper.detach().numpy(),
        "out_t_l": found.lower.detach().numpy(),
        "out_grad_u": g_u,
        "out_grad_l": g_l,
    }


def clipped(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_t, z_s, low, high, mask = _tensors(
        arrays, "in_teacher_logits", "in_student_logits", "in_t_l", "in_t_u", "in_mask"
    )
    for x in (z_s, low, high):
        x.requires_grad_()
    found = revision.clipped_kl(
        z_s,
        z_t,
        low,
        high,
        mask=str(hyper["mask"]),  # type: ignore[arg-type]
        tau=float(hyper["tau"]),
        renormalise=_flag(hyper["renormalise"]),
        keep_target=_flag(hyper["keep_target"]),
        min_mass=float(hyper["min_mass"]),
    )
    loss = _mean(found.values, mask.bool())
    g_s, g_low, g_high = _grads(loss, z_s, low, high)
    return {
        "out_clip_mask": found.mask.detach().numpy(),
        "out_kept_mass": found.kept_mass.detach().numpy(),
        "out_per_token": found.values.detach().numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_student": g_s,
        "out_grad_t_l": g_low,
        "out_grad_t_u": g_high,
    }


def pairs(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    return {"out_pairs": revision.span_pairs(*_tensors(arrays, "in_spans", "in_mask")).numpy()}


def relation(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    z_t, z_s, at = _tensors(arrays, "in_teacher_logits", "in_student_logits", "in_pairs")
    z_s.requires_grad_()
    how = {"relation": str(hyper["relation"])} if "relation" in hyper else {}
    values = revision.span_relation(z_s, z_t, at.reshape(-1, 2).long(), norm=str(hyper["norm"]), **how)  # type: ignore[arg-type]
    loss = values.sum() / max(1, len(values))
    (grad,) = _grads(loss, z_s)
    return {"out_per_pair": values.detach().numpy(), "out_loss": loss.detach().numpy(), "out_grad_student": grad}


ADAPTERS = {
    "sinkd:loss.py:Sinkhorn.forward": batch_sinkhorn,
    "sinkd:loss.py:DistillKL.forward": soft,
    "sinkd:loss.py:DistillKL_anneal.forward": annealed,
    "sinkd:T0/lossd.py:Sinkhorn.forward": released_sinkhorn,
    "sinkd:T0/lossd.py:Sinkhorn.forward_3d": released_sinkhorn,
    "swing:swing:span_score": span_score,
    "swing:swing:memorisation_score": memorisation,
    "swing:swing:per_token_temperature": token_temperature,
    "swing:swing:soft_target": soft_target,
    "swing:swing:loss": swing_loss,
    "swing:swing:exposure": exposed,
    "swing:swing:leakage_reduction": reduction,
    "multi-granularity:multi-granularity:locate_and_repair": repair,
    "multi-granularity:multi-granularity:clip_thresholds": thresholds,
    "multi-granularity:multi-granularity:clipped_kl": clipped,
    "multi-granularity:multi-granularity:span_pairs": pairs,
    "multi-granularity:multi-granularity:span_relation_loss": relation,
}
