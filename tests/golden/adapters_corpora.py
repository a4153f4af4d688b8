"""Adapters of text systems: corpora that are chosen, cleaned or mined, encoders with several exits, stacked encoders."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.data.answers import STATUS, parse_answer, parse_density, survivors
from limbeck.data.paraphrases import Pair, PairFilters, joined_digits
from limbeck.functional.attention import score_distance
from limbeck.functional.contrast import paired_info_nce
from limbeck.functional.corpora import difference_scores, highest_share
from limbeck.functional.exits import exit_weights
from limbeck.functional.pooling import pool_choices, pool_tokens, unexplained_variance
from limbeck.functional.pretraining import patch_distance, random_masking
from limbeck.functional.schedule import warmup_cosine
from limbeck.models.vit import renamed
from limbeck.networks.masked_autoencoder import MaskedAutoencoder


def _tensor(arrays: Any, name: str) -> Tensor:
    return torch.from_numpy(np.array(arrays[name]))


def _grad(x: Tensor) -> np.ndarray:
    assert x.grad is not None
    return np.asarray(x.grad.numpy())


# ------------------------------------------------------------------------------------------------------------- MiniPLM


def difference(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    scores = difference_scores(_tensor(arrays, "large_nll"), _tensor(arrays, "small_nll"))
    return {"diff": scores.numpy(), "kept_indices": highest_share(scores, float(hyper["ratio"])).numpy()}


def vanilla_kd(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    student, teacher = _tensor(arrays, "student_logits").requires_grad_(), _tensor(arrays, "teacher_logits")
    where, labels, ratio = _tensor(arrays, "loss_mask").bool(), _tensor(arrays, "labels"), float(hyper["kd_ratio"])

    def mean(values: Tensor) -> Tensor:
        return values.sum(-1) / where.sum(-1)

    lm = mean(F.cross_entropy(student, labels, where=where))
    kd = mean(F.soft_cross_entropy(student, teacher, where=where))
    total = ((1 - ratio) * lm + ratio * kd).mean()
    total.backward()
    found = {"lm_loss": lm, "kd_loss": kd, "kd_entropy": mean(F.entropy(teacher) * where), "total": total}
    return {name: x.detach().numpy() for name, x in found.items()} | {"grad_student": _grad(student)}


def learning_rate(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    total, warm = int(hyper["T_max"]), float(hyper["warmup_steps"])
    peak, floor = float(hyper["lr"]), float(hyper["eta_min"])
    return {"lr": np.array([warmup_cosine(s, total, warmup=warm, peak=peak, floor=floor) for s in range(total + 1)])}


# ---------------------------------------------------------------------------------------------------------- ERNIE-Tiny


def latent_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    scores, hidden, fit = (_tensor(arrays, n).requires_grad_() for n in ("student_scores", "student_hidden", "W"))
    t_scores, t_hidden = _tensor(arrays, "teacher_scores"), _tensor(arrays, "teacher_hidden")
    hyper.same("layers_teacher", len(t_scores))
    hyper.same("layers_student", len(scores))
    _tensor(arrays, "mask")  # padding is told by the scores themselves
    att = torch.stack(
        [score_distance(s, t_scores[i]).mean() for s, i in zip(scores, hyper["layer_map"], strict=True)]
    ).sum()
    hid = torch.stack(
        [(s @ fit.T - t_hidden[i]).square().mean() for s, i in zip(hidden, hyper["hidden_map"], strict=True)]
    ).sum()
    (att + hid).backward()
    found = {"att_loss": att.detach().numpy(), "hidden_loss": hid.detach().numpy()}
    return found | {"grad_scores": _grad(scores), "grad_hidden": _grad(hidden), "grad_W": _grad(fit)}


# -------------------------------------------------------------------------------------------------- ModularStarEncoder


def multi_exit(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    query, code = _tensor(arrays, "query").requires_grad_(), _tensor(arrays, "code")
    weights = exit_weights(hyper["exits"], int(hyper["num_layers"]))
    scale = float(hyper["logit_scale"])
    losses = torch.stack([paired_info_nce(q, c, scale=scale).mean() for q, c in zip(query, code, strict=True)])
    total = (weights * losses).sum()
    total.backward()
    found = {"per_exit": losses, "weights": weights, "total": total}
    return {name: x.detach().numpy() for name, x in found.items()} | {"grad_query": _grad(query)}


# -------------------------------------------------------------------------------------------------------------- MT-LLM


def pooled(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hidden, mask = _tensor(arrays, "hidden"), _tensor(arrays, "mask")
    x, y = _tensor(arrays, "x"), _tensor(arrays, "x_hat")
    names = {"mean": "mean", "eos": "last", "cls": "first"}
    found = {name: pool_tokens(hidden, mask, how) for name, how in names.items()}  # type: ignore[arg-type]
    found |= {"mse": F.squared_error(x, y).mean() / x.shape[1], "fvu": unexplained_variance(x, y)}
    return {name: value.numpy() for name, value in found.items()}


def stacked_step(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    how = {"mean": "mean", "eos": "last", "cls": "first"}[hyper["pooling"]]
    up, lora = _tensor(arrays, "up_W").requires_grad_(), _tensor(arrays, "lora_W").requires_grad_()
    weight, bias = _tensor(arrays, "llm_W"), _tensor(arrays, "llm_b")

    def llm(e: Tensor, adapter: Tensor | None) -> Tensor:
        z = e @ weight.T + bias
        return torch.tanh(z if adapter is None else z + e @ adapter.T)

    with torch.no_grad():
        teacher = llm(_tensor(arrays, "llm_emb")[_tensor(arrays, "input_ids")], None)
        teacher = pool_tokens(teacher, _tensor(arrays, "mask"), how)  # type: ignore[arg-type]
        front = _tensor(arrays, "mt_emb")[_tensor(arrays, "mt_input_ids")]
    states = llm(front @ up.T + _tensor(arrays, "up_b"), lora)
    student = pool_tokens(states, _tensor(arrays, "mt_mask"), how)  # type: ignore[arg-type]
    loss = F.squared_error(student, teacher).mean() / student.shape[1]
    loss.backward()
    fvu = unexplained_variance(student.detach(), teacher)
    return {"loss": loss.detach().numpy(), "fvu": fvu.numpy(), "grad_up_W": _grad(up), "grad_lora_W": _grad(lora)}


def choices(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    choice = pool_choices(_tensor(arrays, "hidden"), _tensor(arrays, "mean_mask"))
    hyper.same("num_choices", choice.shape[1])
    logits = (choice @ _tensor(arrays, "head").T)[..., 0]
    loss = F.cross_entropy(logits, _tensor(arrays, "labels")).mean()
    distill = F.squared_error(choice, _tensor(arrays, "teacher_choice")).mean() / choice.shape[-1]
    return {n: x.numpy() for n, x in (("logits", logits), ("loss", loss), ("choice", choice), ("distill", distill))}


# -------------------------------------------------------------------------------------- Impossible Distillation


def _filters(hyper: Any) -> PairFilters:
    shortest, longest = (float(x) for x in str(hyper["length"]).split()[0].split(".."))
    return PairFilters(
        shortest=shortest,
        longest=longest,
        entails=float(hyper["nli"]),
        entailed=float(hyper["reverse_nli"]),
        most_overlap=float(hyper["rougeL_max"]),
        strict_numbers=False,  # as released
    )


def _listed(pairs: list[Pair]) -> dict[str, np.ndarray]:
    return {
        "pairs": np.array([[p.original, p.new] for p in pairs], dtype=np.int64).reshape(-1, 2),
        "nli_score": np.array([p.entails for p in pairs]),
        "reverse_nli": np.array([p.entailed for p in pairs]),
        "rougeL": np.array([p.overlap for p in pairs]),
    }


def bootstrap(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hyper.same("stage", 0)
    return _listed(_filters(hyper).mine(list(hyper["strings"]), np.array(arrays["nli"])))


def later_stage(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hyper.prose("stage")
    found = _filters(hyper).best(list(hyper["strings"]), np.array(arrays["nli"]))
    return _listed([] if found is None else [Pair(0, found.new - 1, found.entails, found.entailed, found.overlap)])


def digits(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    text = joined_digits(bytes(np.array(arrays["string_in"])).decode())
    return {"string_out": np.frombuffer(text.encode(), dtype=np.uint8)}


# ------------------------------------------------------------------------------------------- synthetic data of a teacher


def response_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    logits = _tensor(arrays, "in_logits").requires_grad_()
    where = _tensor(arrays, "in_target_mask")[:, 1:].bool()
    each = F.cross_entropy(logits[:, :-1], _tensor(arrays, "in_tokens")[:, 1:], where=where)
    loss = each.sum() / where.sum()
    loss.backward()
    return {"out_loss": loss.detach().numpy(), "out_count": where.sum().numpy(), "out_grad_logits": _grad(logits)}


def _bytes(texts: list[str]) -> np.ndarray:
    return np.frombuffer("\n".join(texts).encode(), dtype=np.uint8)


def _readable(hyper: Any) -> None:
    """The side file holds the same texts, and what is expected, for people to read."""
    if "side" in hyper and "inputs" in hyper["side"]:
        assert list(hyper["side"]["inputs"]["texts"]) == list(hyper["texts"])
        hyper["side"].prose("expected")
        hyper["side"]["inputs"].prose(*hyper["side"]["inputs"])


def answers(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    texts, gold = hyper["texts"], hyper["gold"]
    _readable(hyper)
    found = [
        parse_answer(
            text,
            hyper["key"],
            finished=bool(done),
            tolerant=bool(hyper["tolerant"]),
            gold=None if gold is None else gold[i],
        )
        for i, (text, done) in enumerate(zip(texts, np.array(arrays["in_finished"]), strict=True))
    ]
    return {
        "out_status": np.array([STATUS.index(a.status) for a in found]),
        "out_answers": _bytes([a.text for a in found if a.status == "kept"]),
    }


def densities(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    _readable(hyper)
    finished = np.array(arrays["in_finished"])
    most = hyper["max_words"]
    found = [
        parse_density(text, finished=bool(done), tolerant=bool(hyper["tolerant"]), max_words=most)
        for text, done in zip(hyper["texts"], finished, strict=True)
    ]
    return {
        "out_status": np.array([STATUS.index(a.status) for a in found]),
        "out_version": np.array([a.version for a in found]),
        "out_fallback": np.array([int(a.fallback) for a in found]),
        "out_summaries": _bytes([a.text for a in found if a.status == "kept"]),
    }


def counts(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    statuses = [STATUS[int(i)] for i in np.array(arrays["in_status"])]
    found = survivors(
        statuses, min_success_ratio=float(hyper["min_success_ratio"]), min_records=int(hyper["min_records"])
    )
    return {
        "out_counts": np.array(found.by_status),
        "out_kept_index": np.array(found.kept, dtype=np.int64),
        "out_success_ratio": np.array(found.success_ratio),
        "out_accepted": np.array(int(found.accepted)),
    }


# --------------------------------------------------------------------------------- self-distillation in pre-training


def _network(arrays: Any, hyper: Any, role: str) -> MaskedAutoencoder:
    """A masked autoencoder of the recorded weights; a teacher has no decoder, and an unused one is drawn here."""
    prefix = "" if role == "student" else "vit."
    stored = {f"{prefix}{n.split('::')[1]}": _tensor(arrays, n) for n in arrays if n.startswith(f"{role}::")}
    weights = renamed(stored)
    width, channels, patch = weights["patch_embed.proj.weight"].shape[:3]
    net = MaskedAutoencoder(
        int(hyper["image"]),
        patch,
        channels,
        width=width,
        depth=int(hyper["layers"]),
        heads=int(hyper["heads"]),
        decoder_width=weights["mask_token"].shape[-1] if "mask_token" in weights else width,
        decoder_depth=int(hyper["decoder_layers"]),
        decoder_heads=int(hyper["decoder_heads"]),
        ratio=len(weights["blocks.0.mlp.fc1.bias"]) / width,
        eps=float(hyper["layer_norm_eps"]),
    )
    wrong = net.load_state_dict(weights, strict=False)
    assert not wrong.unexpected_keys
    assert all(n.startswith(("decoder", "mask_token")) for n in wrong.missing_keys) or not wrong.missing_keys
    assert role == "teacher" or not wrong.missing_keys, wrong.missing_keys
    return net


def self_distilled(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    images, noise = _tensor(arrays, "images"), _tensor(arrays, "noise")
    assert hyper["gelu"] == "exact"
    student, teacher = (_network(arrays, hyper, role) for role in ("student", "teacher"))
    hyper.same("hidden", student.patch_embed.proj.weight.shape[0])
    hyper.same("patch", student.patch)
    masking = random_masking(noise, float(hyper["mask_ratio"]))
    each = patch_distance(
        student(images, masking), images, student.patch, normalise=bool(hyper["norm_pix_loss"]), where=masking.hidden
    )
    mae = each.sum() / masking.hidden.sum()
    with torch.no_grad():
        target = teacher.encode(images)[:, 0]
    own = student.encode(images)[:, 0]
    distill = F.squared_error(own, target).mean()
    (mae + float(hyper["weight_of_distill"]) * distill).backward()
    found = {"mae_loss": mae, "teacher_cls": target, "student_cls": own, "distill_loss": distill}
    weights = {
        "grad_cls_token": student.cls_token,
        "grad_patch": student.patch_embed.proj.weight,
        "grad_last_norm": student.norm.weight,
    }
    return {n: x.detach().numpy() for n, x in found.items()} | {n: _grad(x) for n, x in weights.items()}


ADAPTERS = {
    "miniplm:difference_sampling/compute_difference_scores.py:compute_diff_scores+select": difference,
    "miniplm:vanilla_kd/trainer.py:_get_kd_loss+_get_lm_loss": vanilla_kd,
    "miniplm:train_eval_utils/schedulers.py:WarmupCosineAnnealingLR": learning_rate,
    "ernie-tiny:general_distill.py:training_loop_losses": latent_loss,
    "modular-starencoder:open_clip/loss.py:ClipLoss_multi_exit": multi_exit,
    "mt-llm:src/modules/functional/pooling.py:pooling+fvu": pooled,
    "mt-llm:src/mt_llm/module.py:DistillationModule.training_step": stacked_step,
    "mt-llm:src/mt_llm/module.py:AutoModuleForMultipleChoice.forward": choices,
    "impossible-distillation:pipeline/filter.py:ConFilter.filter_bootstrap": bootstrap,
    "impossible-distillation:pipeline/filter.py:ConFilter.filter_finetuned": later_stage,
    "impossible-distillation:pipeline/util.py:bio_gpt_postprocess": digits,
    "frontier-synthetic:frontier-synthetic:response_sft_loss": response_loss,
    "frontier-synthetic:frontier-synthetic:parse_answer": answers,
    "frontier-synthetic:frontier-synthetic:parse_density": densities,
    "frontier-synthetic:frontier-synthetic:survivor_counts": counts,
    "self-distill-pretraining:trainer.py:SelfPreTrainer.losses": self_distilled,
}
