"""The mathematics of distillation: tensors in, tensors out, unreduced, no state. Usable in anyone's loop."""

from __future__ import annotations

from . import (
    adversarial,
    attention,
    augment,
    contrast,
    dense,
    diffusion,
    feature,
    matching,
    meshes,
    metrics,
    mixing,
    packing,
    recovery,
    relation,
    schedule,
    selection,
    splatting,
    views,
    zca,
)
from .chunked import chunked_divergence, chunked_head, chunked_logits
from .curriculum import ctkd, curriculum_temperature, reverse_gradient
from .divergence import (
    adaptive_kl,
    binary_kl,
    entropy,
    jeffreys,
    jensen_shannon,
    kl,
    skew_kl,
    soft_cross_entropy,
    squared_error,
    total_variation,
)
from .interpolation import taid, taid_target
from .labels import cross_entropy
from .nontarget import TargetNontarget, dkd, masked_log_softmax, nkd
from .self_knowledge import SelfKnowledge, uskd, uskd_labels, uskd_rank, uskd_target
from .sparse import sparse_kl
from .temperature import divide_by_std

__all__ = [
    "SelfKnowledge",
    "TargetNontarget",
    "adaptive_kl",
    "adversarial",
    "attention",
    "augment",
    "binary_kl",
    "chunked_divergence",
    "chunked_head",
    "chunked_logits",
    "contrast",
    "cross_entropy",
    "ctkd",
    "curriculum_temperature",
    "dense",
    "diffusion",
    "divide_by_std",
    "dkd",
    "entropy",
    "feature",
    "jeffreys",
    "jensen_shannon",
    "kl",
    "masked_log_softmax",
    "matching",
    "meshes",
    "metrics",
    "mixing",
    "nkd",
    "packing",
    "recovery",
    "relation",
    "reverse_gradient",
    "schedule",
    "selection",
    "skew_kl",
    "soft_cross_entropy",
    "sparse_kl",
    "splatting",
    "squared_error",
    "taid",
    "taid_target",
    "total_variation",
    "uskd",
    "uskd_labels",
    "uskd_rank",
    "uskd_target",
    "views",
    "zca",
]
