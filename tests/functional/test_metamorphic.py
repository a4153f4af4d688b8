"""Does a setting change what it says it changes, and nothing else? Items permuted, repeated, masked; classes permuted;
numbers shifted and scaled; every option of every function given another value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck import functional as F
from tests.functional import specimens
from tests.functional.specimens import BASE, C, Draw
from tests.functional.test_sweep import flat, total

SPECIMENS = {name: specimens.SPECIMENS[name] for name in BASE}

PER_ITEM = [n for n, s in SPECIMENS.items() if not s.whole or s.of.startswith("chunked")]
LOGITS = (
    *("kl", "jeffreys", "jensen_shannon", "skew_kl", "total_variation", "adaptive_kl", "soft_cross_entropy"),
    *("entropy", "cross_entropy", "dkd", "nkd", "uskd", "taid", "ctkd", "sparse_kl", "chunked_logits"),
)
"""Functions of logits: a constant added to a row changes nothing."""
CLASSES = [*LOGITS, "binary_kl", "squared_error", "chunked_divergence", "chunked_head"]
"""Those that do not care which class is which."""


def function(of: str) -> Callable[..., Any]:
    """A public function by its name."""
    thing: Any = F
    for part in of.split("."):
        thing = getattr(thing, part)
    return thing


def first(of: str) -> str:
    """A function's plainest specimen."""
    return next(name for name, s in SPECIMENS.items() if s.of == of)


def answer(name: str, **how: Any) -> list[Tensor]:
    call, tensors = SPECIMENS[name].make(3, Draw(**how))
    return flat(call(*tensors))


@pytest.mark.parametrize("name", PER_ITEM)
def test_items_in_another_order_or_twice(name: str) -> None:
    """Each item has its own value, whatever stands beside it; where items are coupled, whatever order they stand in."""
    order = [2, 0, 1] if SPECIMENS[name].coupled else [2, 0, 0]
    for a, b in zip(answer(name, order=order), answer(name), strict=True):
        torch.testing.assert_close(a, b[order] if len(b) == 3 else b, rtol=1e-9, atol=1e-12)


SLIP = "adaptive-released"
"""Whose published code takes places in a sorted list for classes."""


@pytest.mark.parametrize("name", [n for n, s in SPECIMENS.items() if s.of in CLASSES and n != SLIP])
def test_classes_in_another_order(name: str) -> None:
    for a, b in zip(answer(name, classes=[3, 0, 4, 1, 2]), answer(name), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n, s in SPECIMENS.items() if s.of in LOGITS])
def test_a_constant_added_to_all_logits_of_an_item(name: str) -> None:
    call, tensors = SPECIMENS[name].make(3, Draw())
    shifted = [x + torch.tensor([[3.0], [-7.0], [0.5]]) if x.shape == (3, C) else x for x in tensors]
    for a, b in zip(flat(call(*shifted)), flat(call(*tensors)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


MASKED = [n for n, s in SPECIMENS.items() if "where" in inspect.signature(function(s.of)).parameters]
WHERE = torch.tensor([True, False, True])


@pytest.mark.parametrize("name", MASKED)
def test_masked_items_do_not_exist(name: str) -> None:
    """They give 0 and get none; what they hold, NaN included, changes nothing for the others."""
    spec = SPECIMENS[name]
    call, tensors = spec.make(3, Draw())
    rows = [len(x) == 3 for x in tensors]

    def with_masked(value: float) -> list[Tensor]:
        """The tensors with another value where the mask is; what stands for one number an item keeps being a number."""
        fill = [value if x.ndim > 1 else 2.0 for x in tensors]
        masks = [WHERE.reshape(3, *[1] * (x.ndim - 1)) if r else None for x, r in zip(tensors, rows, strict=True)]
        made = [x if m is None else torch.where(m, x, v) for x, m, v in zip(tensors, masks, fill, strict=True)]
        return [x.requires_grad_() for x in made]

    plain, free = flat(call(*tensors, where=WHERE)), flat(call(*tensors))
    for value in (1e3, float("nan")):
        for a, b in zip(flat(call(*with_masked(value), where=WHERE)), plain, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    if spec.of.startswith("metrics"):
        return
    for a, b in zip(plain, free, strict=True):
        if len(a) == 3:
            assert not a[1].any()
            if not spec.coupled:
                torch.testing.assert_close(a[WHERE], b[WHERE])
    if not spec.constant:
        leaves = with_masked(1e3)
        slopes = torch.autograd.grad(
            total(call(*leaves, where=WHERE)), leaves, materialize_grads=True, allow_unused=True
        )
        assert all(torch.isfinite(g).all() and not (r and g[1].any()) for r, g in zip(rows, slopes, strict=True))


def test_every_function_with_a_mask_is_here() -> None:
    named = {SPECIMENS[n].of for n in MASKED}
    assert {
        "kl",
        "uskd",
        "sparse_kl",
        "chunked_head",
        "feature.feature_distance",
        "relation.gram",
        "metrics.brier",
    } <= named


# Another value of each option; with what else it is given, where it means nothing alone.
ANOTHER: dict[str, Any] = {
    "align_corners": True,
    "alpha": 0.3,
    "beta": 0.2,
    "center": torch.full((1,), 0.4, dtype=torch.float64),
    "cap": 0.05,
    "chunk": None,  # changes the memory that is taken, and nothing else: test_chunks_do_not_show
    "denominator": "teacher",
    "detach": True,
    "detach_student": False,
    "detach_weights": True,
    "dims": 1,
    "direction": "reverse",
    "gamma": 0.3,
    "head_threshold": 0.9,
    "label_smoothing": 0.4,
    "lambda_s": 0.3,
    "lambda_t": 0.9,
    "metric": "l1",
    "mix": 0.4,
    "mode": "nearest",
    "mu": 0.7,
    "nontarget": "uniform",
    "normalise": "unit",
    "padding": "border",
    "part": "norm",
    "power": 3.0,
    "rank_source": "final",
    "reduce": "sum",
    "scale_t2": (False, {"temperature": 2.0}),
    "smooth": False,
    "smooth_target": False,
    "source": "final",
    "space": "probabilities",
    "span": 3.0,
    "square": False,
    "start": 2.0,
    "strength": 0.2,
    "tail": "renormalise",
    "target_weight": "one",
    "temperature": 2.0,
    "value": "kl",
    "variant": "released",
    "log_norm": None,  # other values too: test_sparse_at_a_temperature
    "backend": None,  # the same numbers from elsewhere: test_kernels
    "return_parts": None,
    "teacher": None,  # only with nontarget
    "eps": 9.0,
    "scale": 0.3,
    "where": None,  # above
    "labels": None,
    "bias_s": torch.linspace(-1, 1, C, dtype=torch.float64),
    "bias_t": torch.linspace(-1, 1, C, dtype=torch.float64),
    "bias": torch.linspace(-1, 1, C, dtype=torch.float64),
    "scale_s": 0.3,
    "scale_t": 0.3,
    "softcap_s": 1.0,
    "softcap_t": 1.0,
    "softcap": 1.0,
    "weights": torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64),
    "soft_weight": 0.3,
    "hard_weight": (0.5, {"labels": torch.tensor([0, 1, 2])}),
    "teacher_logits": None,
    "kind": None,  # specimens of their own
    "t": None,
    "dim": 0,
    "iterations": 1,
    "norm": "l2",
    "log_domain": None,  # the same numbers: test_transport
    "detach_plan": True,
    "offset": 1.0,
    "width": 0.5,
    "t_min": 0.5,
    "t_max": 20.0,
    "shape": "exp",
    "difference": "reverse_kl",
    "pad": None,  # what stands behind the prefix, which the specimen does not show
    "level": "fraction_of_max",
    "k": 3,
    "mask": "hard",
    "tau": 0.3,
    "top": 2,
    "keep_target": False,
    "min_mass": 0.9,
    "renormalise": False,
    "relation": "cosine",
    "masked": 0.0,
    "queries": torch.eye(2, 5, dtype=torch.float64),
    "others": torch.eye(2, 5, dtype=torch.float64),
}
SPECIAL: dict[tuple[str, str], tuple[str, Any]] = {
    # an option that only some specimen can show: (specimen, value)
    ("chunked_divergence", "beta"): ("chunked_divergence-jensen_shannon", 0.2),
    ("chunked_divergence", "mix"): ("chunked_divergence-skew_forward", 0.4),
    ("chunked_divergence", "value"): ("chunked_divergence-taid", "kl"),
    ("chunked_divergence", "bias_s"): ("chunked_divergence-heads", ANOTHER["bias_s"]),
    ("chunked_divergence", "bias_t"): ("chunked_divergence-heads", ANOTHER["bias_t"]),
    ("chunked_divergence", "scale_t"): ("chunked_divergence-heads", 0.3),
    ("chunked_divergence", "softcap_t"): ("chunked_divergence-heads", 1.0),
    ("chunked_divergence", "temperature"): ("chunked_divergence-forward", 3.0),
    ("chunked_logits", "beta"): ("chunked_logits-jensen_shannon", 0.2),
    ("chunked_logits", "mix"): ("chunked_logits-skew_forward", 0.4),
    ("chunked_logits", "value"): ("chunked_logits-taid", "kl"),
    ("dkd", "beta"): ("dkd", 2.0),
    ("nkd", "normalise"): ("nkd", False),
    ("nkd", "scale_t2"): ("nkd", (False, {"temperature": 2.0})),
    ("squared_error", "dims"): ("squared_error", 2),
    ("feature.feature_distance", "dims"): ("feature_distance-l2-none", 2),
    ("sparse_kl", "tail"): ("sparse_kl-lump_rest", "renormalise"),
    ("sparse_kl", "temperature"): ("sparse_kl-renormalise", 2.0),
    ("sparse_kl", "scale_t2"): ("sparse_kl-renormalise", (False, {"temperature": 2.0})),
    ("taid_target", "detach_student"): ("taid_target", True),
    ("ctkd", "value"): ("ctkd", "cross_entropy"),
    ("transport.sinkhorn_plan", "variant"): ("sinkhorn_plan", None),  # of two dimensions both say the same
    ("transport.sinkhorn", "variant"): ("sinkhorn-groups", "released"),
    ("transport.sinkhorn", "temperature"): ("sinkhorn", 1.0),
    ("transport.sinkhorn_classes", "temperature"): ("sinkhorn_classes", 1.0),
    ("transport.sinkhorn_classes", "metric"): ("sinkhorn_classes", "distance"),
    ("revision.clip_mask", "mask"): ("clip_mask", None),  # a hard one has no gradient: test_revision
    ("privacy.protected_target", "space"): ("protected_target", "probability"),
}


def options() -> list[tuple[str, str]]:
    """Every option of every function that has one."""
    found = []
    for of in sorted({s.of for s in SPECIMENS.values()}):
        thing = function(of)
        if inspect.isclass(thing) or of.split(".")[0] in ("metrics", "augment", "matching", "diffusion"):
            continue
        found += [(of, p.name) for p in inspect.signature(thing).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return found


@pytest.mark.parametrize(("of", "option"), options(), ids=lambda x: x)
def test_an_option_changes_something(of: str, option: str) -> None:
    name, other = SPECIAL.get((of, option), (first(of), ANOTHER[option]))
    if other is None:
        return
    value, more = other if isinstance(other, tuple) else (other, {})
    seen = []
    for settings in (more, {**more, option: value}):
        call, tensors = SPECIMENS[name].make(3, Draw())
        leaves = [x.requires_grad_() for x in tensors]
        out = flat(call(*leaves, **settings))
        slopes = (
            []
            if SPECIMENS[name].constant
            else torch.autograd.grad(total(out), leaves, materialize_grads=True, allow_unused=True)
        )
        seen.append([*out, *slopes])
    assert any(a.shape != b.shape or not torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(*seen, strict=True))
