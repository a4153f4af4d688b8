"""Adapters of G2SD's vectors: the masked step with all weights, its losses, relations, specific losses of three tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.functional.dense import channel_divergence
from limbeck.functional.pretraining import (
    hidden_state_distance,
    qkv_relation_divergence,
    random_masking,
    supervised_tokens,
    token_distillation,
)
from limbeck.functional.richness import richness_mean, richness_terms
from limbeck.functional.schedule import warmup
from limbeck.networks.masked_autoencoder import MaskedAutoencoder

HEADS = 2
"""Attention heads of the recorded networks, which the cases leave unsaid."""


def _tensor(arrays: Any, name: str) -> Tensor:
    return torch.from_numpy(np.array(arrays[name]))


def _grad(x: Tensor) -> np.ndarray:
    assert x.grad is not None
    return np.asarray(x.grad.numpy())


def _network(arrays: Any, role: str, size: int, eps: float) -> MaskedAutoencoder:
    weights = {
        name.removeprefix(f"in_{role}."): _tensor(arrays, name) for name in arrays if name.startswith(f"in_{role}.")
    }
    weights = {
        name.replace("decoderfeature_pred", "decoder_predictor").replace("encoderfeature_pred", "encoder_predictor"): x
        for name, x in weights.items()
    }
    width, channels, patch = weights["patch_embed.proj.weight"].shape[:3]

    def blocks(of: str) -> int:
        return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith(f"{of}."))

    def wide(head: str) -> int:
        return len(weights[f"{head}.fc2.bias"]) if f"{head}.fc2.bias" in weights else 0

    net = MaskedAutoencoder(
        size,
        patch,
        channels,
        width=width,
        depth=blocks("blocks"),
        heads=HEADS,
        decoder_width=weights["mask_token"].shape[-1],
        decoder_depth=blocks("decoder_blocks"),
        decoder_heads=HEADS,
        ratio=len(weights["blocks.0.mlp.fc1.bias"]) / width,
        eps=eps,
        predicts=wide("decoder_predictor"),
        predicts_encoder=wide("encoder_predictor"),
    )
    net.load_state_dict(weights)
    return net.to(weights["mask_token"].dtype)


def distill_step(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    x, noise = _tensor(arrays, "in_imgs"), _tensor(arrays, "in_noise")
    eps = float(hyper["ln_eps"])
    teacher, student = (_network(arrays, role, x.shape[-1], eps) for role in "TS")
    hyper.same("patch", student.patch)
    masking = random_masking(noise, float(hyper["mask_ratio"]))
    with torch.no_grad():
        target = teacher.decode(teacher.encode(x, masking), masking, int(hyper["suplayer"]))
    found = student.predict(x, masking)
    found.retain_grad()
    where = supervised_tokens(masking, "all" if hyper["supervise_all"] else "masked")
    each = hidden_state_distance(found, target, beta=float(hyper["smooth_l1_beta"]), eps=eps, where=where)
    loss = each.sum() / where.sum()
    loss.backward()
    return {
        "out_mask": masking.hidden.to(noise.dtype).numpy(),
        "out_teacher_hidden": target.numpy(),
        "out_student_pred": found.detach().numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_student_pred": _grad(found),
        "out_grad_patch_embed": _grad(student.patch_embed.proj.weight),
    }


def hidden_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    pred = _tensor(arrays, "in_pred").requires_grad_()
    teacher, beta, eps = _tensor(arrays, "in_teacher"), float(hyper["beta"]), float(hyper["eps"])
    loss = hidden_state_distance(pred, teacher, beta=beta, eps=eps).mean()
    loss.backward()
    return {"out_loss": loss.detach().numpy(), "out_grad_pred": _grad(pred)}


def relations(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    student, teacher = _tensor(arrays, "in_student").requires_grad_(), _tensor(arrays, "in_teacher")
    hyper.same("layers", len(student))
    s, t = (x.transpose(0, 1).flatten(1, 2) for x in (student, teacher))  # [3, layers * B, N, C]
    loss = qkv_relation_divergence(s, t, int(hyper["Ar"])).mean()
    loss.backward()
    return {"out_loss": loss.detach().numpy(), "out_grad_student": _grad(student)}


def nkd(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    # The released code takes the target class away by subtracting 1000 from its logit, where limbeck leaves it out: the
    # same numbers as long as 1000 / T is beyond what exp can tell from 0.
    z_s, z_t, y = (
        _tensor(arrays, "in_logit_s").requires_grad_(),
        _tensor(arrays, "in_logit_t"),
        _tensor(arrays, "in_label"),
    )
    loss = sum(
        part.mean() for part in F.nkd(z_s, z_t, y, temperature=float(hyper["temp"]), gamma=float(hyper["alpha"]))
    )
    assert isinstance(loss, Tensor)
    loss.backward()
    return {"out_loss": loss.detach().numpy(), "out_grad_s": _grad(z_s)}


def specific_cls(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    cls, dist = (_tensor(arrays, f"in_{n}_logits").requires_grad_() for n in ("cls", "dist"))
    loss = token_distillation(
        cls, dist, _tensor(arrays, "in_teacher_logits"), _tensor(arrays, "in_soft_targets")
    ).mean()
    loss.backward()
    return {"out_loss": loss.detach().numpy(), "out_grad_cls": _grad(cls), "out_grad_dist": _grad(dist)}


def specific_det(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    levels = sorted(int(name.removeprefix("in_t_obj")) for name in arrays if name.startswith("in_t_obj"))
    s_f, s_z = ([_tensor(arrays, f"in_s_{n}{i}").requires_grad_() for i in levels] for n in ("feat", "obj"))
    t_f, t_z = ([_tensor(arrays, f"in_t_{n}{i}") for i in levels] for n in ("feat", "obj"))
    terms = [richness_terms(*level) for level in zip(s_f, t_f, s_z, t_z, strict=True)]
    feat = torch.stack([richness_mean(t.features, t.weight) for t in terms]).sum()
    cls = torch.stack([richness_mean(t.objectness, t.weight) for t in terms]).sum()
    warm = float(hyper["warm_steps"])
    done = (
        float(hyper["iteration"]) if "iteration" in hyper else warm
    )  # recorded behind the warm-up where nothing is said
    total = warmup(done, warm) * (float(hyper["feat_weight"]) * feat + float(hyper["cls_weight"]) * cls)
    total.backward()
    found = {"out_feat": feat.detach().numpy(), "out_cls": cls.detach().numpy(), "out_total": total.detach().numpy()}
    found |= {f"out_g_feat{i}": _grad(x) for i, x in zip(levels, s_f, strict=True)}
    return found | {f"out_g_obj{i}": _grad(x) for i, x in zip(levels, s_z, strict=True)}


def channel_wise(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    s, t = _tensor(arrays, "in_preds_S").requires_grad_(), _tensor(arrays, "in_preds_T")
    each = channel_divergence(
        s.permute(0, 2, 3, 1), t.permute(0, 2, 3, 1), temperature=float(hyper["tau"]), value="cross_entropy"
    )
    loss = float(hyper["weight"]) * each.mean()
    loss.backward()
    return {"out_loss": loss.detach().numpy(), "out_grad_S": _grad(s)}


ADAPTERS = {
    "g2sd:G2SD/models_mae.py:MaskedAutoencoderViT.distill_step": distill_step,
    "g2sd:G2SD/engine_distill.py:loss_feature_decoder": hidden_loss,
    "g2sd:G2SD/engine_distill.py:cal_relation_loss": relations,
    "g2sd:G2SD/NKD_loss.py:NKDLoss.forward": nkd,
    "g2sd:G2SD/engine_finetune_dis.py:cls_distill_loss": specific_cls,
    "g2sd:G2SD_det_dis/tools/plain_distill_net.py:do_train_frs_losses": specific_det,
    "g2sd:G2SD_seg_dis/src/distillation/losses/cwd.py:ChannelWiseDivergence.forward": channel_wise,
}
