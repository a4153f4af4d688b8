"""Adapters of Puzzle's vectors: block losses, scores, importance, initialisations, the search, the schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.functional.blocks import (
    AttentionWeights,
    batch_scores,
    channel_importance,
    init_ffn,
    init_kv,
    iterative_channels,
    kv_importance,
    normalized_mse,
    pruning_schedule,
)
from limbeck.functional.schedule import warmup_cosine
from limbeck.parts.search import Knapsack

KV = {"AverageKV": "average", "FirstKV": "first", "PruneKVHeads": "prune", "Degrouping": "repeat"}


def _tensors(arrays: Any, *names: str) -> list[Tensor]:
    return [torch.from_numpy(np.array(arrays[n])) for n in names]


def losses(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    child, parent = _tensors(arrays, "child", "parent")
    found: dict[str, np.ndarray] = {}
    for name, mode in (("normalized", "tensor"), ("vectorwise", "token"), ("batched", "sample")):
        c = child.clone().requires_grad_()
        value = normalized_mse(c, parent, eps=float(hyper["epsilon"]), mode=mode).mean()  # type: ignore[arg-type]
        value.backward()
        assert c.grad is not None
        found |= {name: value.detach().numpy(), f"grad_{name}": c.grad.numpy()}
    return found


def scores(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    names = ("logits", "parent_logits", "targets", "hidden", "parent_hidden")
    found = batch_scores(*_tensors(arrays, *names), variant="released")
    return {name: value.numpy() for name, value in found.items()}


def channels(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    weight, batches = _tensors(arrays, "weight", "batches")
    hyper.same("iters", len(batches))
    plan = [int(k) for k in hyper["pruning_schedule"]]
    if plan != pruning_schedule(weight.shape[1], len(batches)):
        hyper.doubt(f"pruning_schedule {plan} is not spread evenly")
    found = iterative_channels(weight, list(batches), plan)
    return {
        "independent_score": torch.stack([channel_importance(weight, x) for x in batches]).sum(0).numpy(),
        "iterative_rank": found.rank.numpy(),
        "iterative_removal_order": found.order.numpy(),
    }


def kv_heads(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    weight, x = _tensors(arrays, "o_proj_weight", "attn_out")
    hyper.same("num_q_heads", weight.shape[1] // int(hyper["head_dim"]))
    return {"score": kv_importance(weight, x, kv_heads=int(hyper["num_kv_heads"])).numpy()}


def mip(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    score = np.array(arrays["score"], dtype=np.float64)
    sense = str(hyper["sense"]).lower()
    if sense not in ("minimise", "minimize", "maximise", "maximize"):
        raise ValueError(f"sense {sense!r} is not known")
    sign = 1.0 if sense.startswith("min") else -1.0
    limits = {n: float(hyper[f"max_{n}"]) for n in ("memory", "runtime") if hyper.get(f"max_{n}") is not None}
    costs = {n: np.array(arrays[n], dtype=np.float64) for n in ("memory", "runtime")}
    found = Knapsack(sign * score, costs, limits).exact()
    return {"choice": found.index, "total": np.array(sign * found.score)}


def rates(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    total, warm = int(hyper["lr_decay_steps"]), int(hyper["warmup_steps"])
    peak, floor = float(hyper["learning_rate"]), float(hyper["min_lr"])
    count = int(hyper["steps"]) if "steps" in hyper else total + 6  # as recorded: a few steps beyond the last
    return {"lr": np.array([warmup_cosine(s, total, warmup=warm, peak=peak, floor=floor) for s in range(count)])}


def attention(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    weights = AttentionWeights(*_tensors(arrays, "q", "k", "v", "o"))
    (importance,) = _tensors(arrays, "kv_importance")
    d, mode = int(hyper["head_dim"]), str(hyper["mode"])
    hyper.same("num_q_heads", len(weights.q) // d)
    hyper.same("kv_parent", len(weights.k) // d)
    how: Any = KV[mode]
    found = init_kv(weights, int(hyper["kv_child"]), head_dim=d, how=how, importance=importance)
    return {f"child_{name}": value.numpy() for name, value in found._asdict().items()}


def mlp(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    up, down = _tensors(arrays, "up", "down")
    hyper.same("I_parent", len(up))
    width, mode = int(hyper["I_child"]), str(hyper["mode"])
    if mode == "PruneByActivationsLog":
        (importance,) = _tensors(arrays, "importance")
    elif mode == "Truncate":  # the first channels as they stand
        arrays.get("importance")
        importance = torch.arange(len(up), 0, -1)
    elif mode == "CopyAsIs":
        arrays.get("importance")
        importance, width = torch.arange(len(up), 0, -1), len(up)
    else:
        raise ValueError(f"mode {mode!r} is not known")
    child_up, child_down, _ = init_ffn(
        up, down, importance, width, scale=bool(hyper.get("scale_pruned_weights", False))
    )
    return {"child_up": child_up.numpy(), "child_down": child_down.numpy()}


ADAPTERS = {
    "puzzle:puzzletron/tools/kd_model.py:normalized_mse_losses": losses,
    "puzzle:puzzletron/utils/validation.py:calculate_batch_outputs": scores,
    "puzzle:prune/importance_hooks/base_hooks.py:ChannelContributionHooks": channels,
    "puzzle:prune/importance_hooks/base_hooks.py:IndependentKvHeadContributionHook": kv_heads,
    "puzzle:puzzletron/mip/mip_with_multi_layer_replacements.py:run_mip": mip,
    "puzzle:bypass_distillation/schedule.py:get_learning_rate": rates,
    "puzzle:pruning/pruning_utils.py:_init_attention_weights": attention,
    "puzzle:pruning/pruning_utils.py:_init_mlp_module": mlp,
}
