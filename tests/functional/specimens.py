"""One call of every public function of `limbeck.functional`, ready to be put through anything.

A specimen is made for a number of items: a function of floating tensors alone, and such tensors. What a function cannot
do is said in ``never``, and then it must refuse it by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.functional import (
    augment,
    contrast,
    diffusion,
    feature,
    matching,
    metrics,
    privacy,
    relation,
    revision,
    transport,
    zca,
)

C = 5
Make = Callable[[int, "Draw"], tuple[Callable[..., Any], tuple[Tensor, ...]]]


class Draw:
    """Normal numbers and class ids, always the same.

    Args:
        dtype: of the numbers.
        rounded: they are rounded to this first.
        order: the items, in this order.
        classes: the classes, in this order.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.float64,
        rounded: torch.dtype = torch.float64,
        order: list[int] | None = None,
        classes: list[int] | None = None,
    ) -> None:
        self.dtype, self.rounded = dtype, rounded
        self.order, self.classes = order, classes
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if self.order is not None and shape[0] == len(self.order):
            x = x[self.order]
        for dim in {0, len(shape) - 1}:
            if self.classes is not None and shape[dim] == C:
                x = x.index_select(dim, torch.tensor(self.classes))
        return x.to(self.rounded).to(self.dtype)

    def _named(self, ids: Tensor) -> Tensor:
        ids = ids if self.order is None else ids[self.order]
        return ids if self.classes is None else torch.tensor(self.classes).argsort()[ids]

    def ids(self, n: int, high: int = C) -> Tensor:
        """A class for each item."""
        return self._named(torch.randint(0, high, (n,), generator=self.generator))

    def some(self, n: int, k: int) -> Tensor:
        """Different classes ``[n, k]`` for each item."""
        return self._named(torch.rand(n, C, generator=self.generator).argsort(-1)[:, :k])


def up(x: Tensor) -> Tensor:
    """What a specimen itself computes is not what is being tried."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Specimen:
    """A call.

    Attributes:
        of: the function's public name, as ``module.function`` where it is in a module of its own.
        make: (items, draw) -> (function of tensors, tensors).
        never: what it refuses: ``second`` (derivatives), ``func`` (torch.func's transforms), ``graph`` (to be compiled
            as one graph), ``empty`` (a batch of no items).
        constant: its answer has no gradient at all.
        coupled: items of a batch depend on each other.
        whole: its tensors have no common first dimension of items, or its answer has not.
    """

    of: str
    make: Make
    never: frozenset[str] = frozenset()
    constant: bool = False
    coupled: bool = False
    whole: bool = False


SPECIMENS: dict[str, Specimen] = {}


def add(name: str, of: str, make: Make, *never: str, **more: Any) -> None:
    SPECIMENS[name] = Specimen(of, make, frozenset(never), **more)


def pair(call: Callable[..., Any]) -> Make:
    return lambda n, d: (call, (d(n, C), d(n, C)))


# ------------------------------------------------------------------------------------------------------- divergences

for _name in ("kl", "jeffreys", "jensen_shannon", "skew_kl", "total_variation", "adaptive_kl", "soft_cross_entropy"):
    add(_name, _name, pair(getattr(F, _name)))
add("reverse", "kl", pair(lambda s, t, **k: F.kl(s, t, direction="reverse", temperature=2.0, **k)))
add("skew-reverse", "skew_kl", pair(lambda s, t, **k: F.skew_kl(s, t, direction="reverse", **k)))
add("adaptive-released", "adaptive_kl", pair(lambda s, t, **k: F.adaptive_kl(s, t, variant="released", **k)))
add(
    "temperatures",
    "kl",
    lambda n, d: (lambda s, t, h, **k: F.kl(s, t, temperature=up(h).exp(), **k), (d(n, C), d(n, C), d(n))),
)
add("binary_kl", "binary_kl", pair(F.binary_kl))
add("squared_error", "squared_error", pair(F.squared_error))
add("uld", "uld", pair(F.uld))
add(
    "uld-wider",
    "uld",
    lambda n, d: (lambda s, t, **k: F.uld(s, t, **{"temperature": 2.0, **k}), (d(n, C), d(n, C + 2))),
)
_GROUPS = torch.tensor([1, 0, 1, -1, 2])
add(
    "grouped_logits",
    "grouped_logits",
    lambda n, d: (lambda z, **k: F.grouped_logits(z, _GROUPS, 3, **{"temperature": 3.0, **k}), (d(n, C),)),
)
add(
    "span_logits",
    "span_logits",
    lambda n, d: (
        lambda x: F.span_logits(-up(x).square(), torch.tensor([[0, 0, 1, -1]]).expand(len(x), -1), 2),
        (d(n, 4),),
    ),
)
add("entropy", "entropy", lambda n, d: (F.entropy, (d(n, C),)))


def _labelled(call: Callable[..., Any], logits: int = 2) -> Make:
    def make(n: int, d: Draw) -> Any:
        y = d.ids(n)
        return (lambda *z, **k: call(*z, y, **k)), tuple(d(n, C) for _ in range(logits))

    return make


add(
    "cross_entropy",
    "cross_entropy",
    _labelled(lambda z, y, **k: F.cross_entropy(z, y, **{"label_smoothing": 0.1, **k}), 1),
)
add(
    "cross_entropy-soft",
    "cross_entropy",
    lambda n, d: (lambda z, p, **k: F.cross_entropy(z, up(p).softmax(-1), **k), (d(n, C), d(n, C))),
)
add(
    "masked_log_softmax",
    "masked_log_softmax",
    _labelled(lambda z, y, **k: F.masked_log_softmax(z, y[:, None], **k).exp(), 1),
)
add("dkd", "dkd", _labelled(F.dkd))
add("nkd", "nkd", _labelled(F.nkd))
add("nkd-plain", "nkd", _labelled(lambda s, t, y, **k: F.nkd(s, t, y, normalise=False, temperature=3.0, **k)))
add("uskd", "uskd", _labelled(lambda s, w, y, **k: F.uskd(s, y, w, **k)), coupled=True)
add("uskd-released", "uskd", _labelled(lambda s, w, y, **k: F.uskd(s, y, w, variant="released", **k)), coupled=True)
add(
    "uskd-teacher",
    "uskd",
    _labelled(lambda s, w, y, **k: F.uskd(s, y, w, nontarget="teacher", teacher=w, **k)),
    coupled=True,
)
add(
    "uskd-soft",
    "uskd",
    lambda n, d: (lambda s, w, p, **k: F.uskd(s, up(p).softmax(-1).detach(), w, **k), (d(n, C), d(n, C), d(n, C))),
    coupled=True,
)
add(
    "uskd_labels",
    "uskd_labels",
    lambda n, d: (lambda p, **k: F.uskd_labels(up(p).softmax(-1).detach(), C, **k)[1], (d(n, C),)),
    constant=True,
)
add(
    "uskd_target",
    "uskd_target",
    _labelled(lambda z, y, **k: F.uskd_target(z, y[:, None], up(torch.ones_like(z[:, :1])), **k), 1),
    constant=True,
    coupled=True,
)
add(
    "uskd_rank",
    "uskd_rank",
    _labelled(lambda s, w, y, **k: F.uskd_rank(s, w, nn.functional.one_hot(y, C).bool(), **k)),
    constant=True,
)
add("taid", "taid", pair(lambda s, t, **k: F.taid(s, t, 0.3, **k)))
add("taid-through", "taid", pair(lambda s, t, **k: F.taid(s, t, 0.3, detach_student=False, value="kl", **k)))
add("taid-probabilities", "taid", pair(lambda s, t, **k: F.taid(s, t, 0.3, space="probabilities", **k)))
add(
    "taid-each",
    "taid",
    lambda n, d: (lambda s, t, u, **k: F.taid(s, t, up(u).sigmoid(), **k), (d(n, C), d(n, C), d(n))),
)
add("taid_target", "taid_target", pair(lambda s, t, **k: F.taid_target(s, t, 0.3, **{"detach_student": False, **k})))
add("ctkd", "ctkd", lambda n, d: (lambda s, t, r, **k: F.ctkd(s, t, r, **k), (d(n, C), d(n, C), d(n))))
add(
    "curriculum_temperature",
    "curriculum_temperature",
    lambda n, d: (lambda r, **k: F.curriculum_temperature(r, 1.0, **k), (d(n),)),
)
add("reverse_gradient", "reverse_gradient", lambda n, d: (lambda x, **k: F.reverse_gradient(x, 0.5, **k), (d(n, C),)))


def _sparse(tail: Any, **settings: Any) -> Make:
    def make(n: int, d: Draw) -> Any:
        ids = d.some(n, 2)

        def call(z: Tensor, t: Tensor, **k: Any) -> Tensor:
            return F.sparse_kl(z, ids, up(t).log_softmax(-1).gather(-1, ids), **{"tail": tail, **settings, **k})

        return call, (d(n, C), d(n, C))

    return make


for _tail in ("drop", "renormalise", "uniform_rest", "lump_rest"):
    add(f"sparse_kl-{_tail}", "sparse_kl", _sparse(_tail))
    add(f"sparse_kl-{_tail}-reverse", "sparse_kl", _sparse(_tail, direction="reverse"))

# ----------------------------------------------------------------------------------------------------------- chunked

CHUNKED = ("second", "func", "graph")
KINDS = [
    "forward",
    "reverse",
    "jeffreys",
    "jensen_shannon",
    "skew_forward",
    "skew_reverse",
    "soft_cross_entropy",
    "total_variation",
    "taid",
]
for _kind in KINDS:
    add(
        f"chunked_logits-{_kind}",
        "chunked_logits",
        pair(lambda s, t, kind=_kind, **k: F.chunked_logits(s, t.detach(), **{"kind": kind, "t": 0.3, **k})),
        *CHUNKED,
    )
    add(
        f"chunked_divergence-{_kind}",
        "chunked_divergence",
        lambda n, d, kind=_kind: (
            lambda h, w, b, t, **k: F.chunked_divergence(
                h, w, kind=kind, bias_s=b, teacher_logits=t.detach(), **{"t": 0.3, "chunk": 2, "temperature": 2.0, **k}
            ),
            (d(n, 3), d(C, 3), d(C), d(n, C)),
        ),
        *CHUNKED,
        whole=True,
    )
add(
    "chunked_logits-labels",
    "chunked_logits",
    _labelled(lambda z, y, **k: F.chunked_logits(z, kind="cross_entropy", labels=y, **k), 1),
    *CHUNKED,
)
add(
    "chunked_divergence-heads",
    "chunked_divergence",
    lambda n, d: (
        lambda h, w, g, v, **k: F.chunked_divergence(
            h, w, g.detach(), v.detach(), **{"chunk": 2, "softcap_s": 5.0, "scale_s": 0.5, **k}
        ),
        (d(n, 3), d(C, 3), d(n, 2), d(C, 2)),
    ),
    *CHUNKED,
    whole=True,
)


def _chunked_head(n: int, d: Draw) -> Any:
    teacher = up(d(n, C))

    def call(h: Tensor, w: Tensor, **k: Any) -> Tensor:
        return F.chunked_head(h, w, lambda z, rows: F.kl(z, teacher[rows].to(z.dtype)), **{"chunk": 2, **k})

    return call, (d(n, 3), d(C, 3))


add("chunked_head", "chunked_head", _chunked_head, *CHUNKED, whole=True)

# ------------------------------------------------------------------------------------------------ features, relations

add("unit", "feature.unit", lambda n, d: (feature.unit, (d(n, C),)))
add("standardise", "feature.standardise", lambda n, d: (feature.standardise, (d(n, C),)))
for _metric in ("l2", "l1", "smooth_l1", "cosine"):
    for _norm in ("none", "unit", "standard"):
        add(
            f"feature_distance-{_metric}-{_norm}",
            "feature.feature_distance",
            pair(
                lambda s, t, m=_metric, n=_norm, **k: feature.feature_distance(
                    s, t, **{"metric": m, "normalise": n, **k}
                )
            ),
        )
add("attention_map", "feature.attention_map", lambda n, d: (feature.attention_map, (d(n, 3, 2, 2),)))
add(
    "attention_transfer",
    "feature.attention_transfer",
    lambda n, d: (feature.attention_transfer, (d(n, 3, 4, 4), d(n, 2, 2, 2))),
)
add("gram", "relation.gram", pair(relation.gram), coupled=True)
add("distances", "relation.distances", pair(relation.distances), coupled=True)
add("pearson", "relation.pearson", pair(relation.pearson))
add("dist", "relation.dist", pair(relation.dist), "empty", coupled=True)

# ----------------------------------------------------------------------------------------------------------- metrics

for _name in ("accuracy", "negative_log_likelihood", "brier", "calibration_table"):
    add(f"metrics.{_name}", f"metrics.{_name}", _labelled(getattr(metrics, _name), 1), constant=True, whole=True)
add("metrics.agreement", "metrics.agreement", pair(metrics.agreement), constant=True, whole=True)
add(
    "metrics.moments",
    "metrics.moments",
    lambda n, d: (lambda x, **k: metrics.moments(x, **k).outer, (d(n, C),)),
    constant=True,
    whole=True,
)

# ---------------------------------------------------------------------------------------------- transport of predictions

add(
    "pairwise_cost",
    "transport.pairwise_cost",
    pair(lambda s, t, **k: transport.pairwise_cost(up(s).softmax(-1), up(t).softmax(-1), **k)),
    whole=True,
)
add(
    "sinkhorn_plan",
    "transport.sinkhorn_plan",
    lambda n, d: (transport.sinkhorn_plan, (d(n, n),)),
    coupled=True,
    whole=True,
)
add("sinkhorn", "transport.sinkhorn", pair(lambda s, t, **k: transport.sinkhorn(s, t, **k)), coupled=True)


def _groups(s: Tensor, t: Tensor, where: Tensor | None = None, **k: Any) -> Tensor:
    return transport.sinkhorn(s, t, where=None if where is None else where[:, None], norm="l2", **k)


add("sinkhorn-groups", "transport.sinkhorn", lambda n, d: (_groups, (d(n, 2, C), d(n, 2, C))))
add("sinkhorn_classes", "transport.sinkhorn_classes", pair(transport.sinkhorn_classes))
add(
    "sinkhorn_classes-distance",
    "transport.sinkhorn_classes",
    pair(lambda s, t, **k: transport.sinkhorn_classes(s, t, **{"metric": "distance", **k})),
)

# ----------------------------------------------------------------------------------------------- privacy and revision

add(
    "span_score",
    "privacy.span_score",
    lambda n, d: (
        lambda x: privacy.span_score(
            torch.tensor([[0, 0], [0, 3], [3, 6]]),
            torch.tensor([[2 * i, 2 * i + 1] for i in range(n)]).reshape(n, 2),
            up(x).sigmoid(),
        ),
        (d(n),),
    ),
    whole=True,
)
add("memorisation_score", "privacy.memorisation_score", lambda n, d: (privacy.memorisation_score, (d(n), d(n))))
add(
    "per_token_temperature",
    "privacy.per_token_temperature",
    lambda n, d: (lambda x, **k: privacy.per_token_temperature(up(x).sigmoid(), **k), (d(n),)),
)
add(
    "protected_target",
    "privacy.protected_target",
    lambda n, d: (
        lambda z, h, e, **k: privacy.protected_target(z, up(h).exp(), e, **{"scale": 0.5, **k}).exp(),
        (d(n, C), d(n), d(n, C)),
    ),
    constant=True,
)
add(
    "exposure",
    "privacy.exposure",
    lambda n, d: (lambda x: privacy.exposure(x, torch.tensor([0, 3])), (d(n, C),)),
    constant=True,
)
add(
    "leakage_reduction",
    "privacy.leakage_reduction",
    lambda n, d: (privacy.leakage_reduction, (d(n), d(n))),
    "empty",
    whole=True,
)


def _repair(n: int, d: Draw) -> Any:
    mine, theirs = d.some(n, 3), d.some(n, 3)

    def call(s: Tensor, t: Tensor, where: Tensor | None = None, **k: Any) -> tuple[Tensor, Tensor]:
        mask = torch.ones(n, 3, dtype=torch.bool) if where is None else where[:, None].expand(n, 3)
        found = revision.locate_and_repair(s, t, mine, theirs, mask, **k)
        return found.difference, found.keep_length

    return call, (d(n, 3, C), d(n, 3, C))


def _clip(call: Callable[..., Any]) -> Make:
    """Teacher's probabilities or logits, and two levels."""
    return lambda n, d: (
        lambda t, u, v, **k: call(up(t), up(u).sigmoid(), 0.3 * up(v).sigmoid(), **k),
        (d(n, C), d(n), d(n)),
    )


add("locate_and_repair", "revision.locate_and_repair", _repair, constant=True)
add(
    "clip_thresholds",
    "revision.clip_thresholds",
    _clip(lambda t, u, v, **k: revision.clip_thresholds(t.softmax(-1), u, v, **k)),
)
add(
    "clip_mask",
    "revision.clip_mask",
    _clip(lambda t, u, v, **k: revision.clip_mask(t.softmax(-1), v, u, **k)),
)
add(
    "clipped_kl",
    "revision.clipped_kl",
    lambda n, d: (
        lambda s, t, u, v, **k: revision.clipped_kl(s, t, 0.3 * up(v).sigmoid(), up(u).sigmoid(), **k),
        (d(n, C), d(n, C), d(n), d(n)),
    ),
)
for _relation in ("hadamard", "cosine", "outer"):
    add(
        f"span_relation-{_relation}",
        "revision.span_relation",
        lambda n, d, r=_relation: (
            lambda s, t, **k: revision.span_relation(
                s, t, torch.arange(max(0, n - 1))[:, None] + torch.arange(2), **{"relation": r, **k}
            ),
            (d(n, C), d(n, C)),
        ),
        whole=True,
    )

# --------------------------------------------------------------------------------------------------------- diffusion


def wavy(z: Tensor, logsnr: Tensor) -> Tensor:
    return torch.tanh(z) * (1 + 0.1 * logsnr.reshape(-1, *[1] * (z.ndim - 1)).to(z.dtype))


COSINE = diffusion.CosineSchedule()
for _kind in diffusion.KINDS:
    _wide = 2 if _kind == "both" else 1
    add(
        f"to_x_eps-{_kind}",
        "diffusion.to_x_eps",
        lambda n, d, k=_kind, m=_wide: (
            lambda out, z, lam: diffusion.to_x_eps(out, z, lam, k),
            (d(n, C * m), d(n, C), d(n)),
        ),
    )
    add(
        f"from_x_eps-{_kind}",
        "diffusion.from_x_eps",
        lambda n, d, k=_kind: (lambda x, e, lam: diffusion.from_x_eps(x, e, lam, k), (d(n, C), d(n, C), d(n))),
    )
for _call in (diffusion.diffuse, diffusion.ddim_jump):
    add(_call.__name__, f"diffusion.{_call.__name__}", lambda n, d, f=_call: (f, (d(n, C), d(n, C), d(n))))
add(
    "invert_jump",
    "diffusion.invert_jump",
    lambda n, d: (lambda z, zs, lam: diffusion.invert_jump(z, zs, lam, up(lam) + 1.0), (d(n, C), d(n, C), d(n))),
)
add(
    "renoise",
    "diffusion.renoise",
    lambda n, d: (lambda z, e, lam: diffusion.renoise(z, e, lam, up(lam) - 1.0), (d(n, C), d(n, C), d(n))),
)
add(
    "ancestral_step",
    "diffusion.ancestral_step",
    lambda n, d: (
        lambda x, z, e, lam: diffusion.ancestral_step(x, z, e, lam, up(lam) + 1.0, variance=0.5),
        (d(n, C), d(n, C), d(n, C), d(n)),
    ),
)
add("alpha_sigma", "diffusion.alpha_sigma", lambda n, d: (diffusion.alpha_sigma, (d(n),)))
add("guide", "diffusion.guide", lambda n, d: (lambda c, u, w: diffusion.guide(c, u, w=w), (d(n, C), d(n, C), d(n))))
add(
    "guided_x",
    "diffusion.guided_x",
    lambda n, d: (
        lambda c, u, z, lam, w: diffusion.guided_x(c, u, z, lam, "v", w=w),
        (d(n, C), d(n, C), d(n, C), d(n), d(n)),
    ),
)
add(
    "guidance_embedding",
    "diffusion.guidance_embedding",
    lambda n, d: (lambda w: diffusion.guidance_embedding(w, 6, multiplier=2.0), (d(n),)),
)
for _weight in ("constant", "snr", "snr_trunc", "v_mse"):
    add(
        f"loss_weight-{_weight}",
        "diffusion.loss_weight",
        lambda n, d, w=_weight: (lambda lam: diffusion.loss_weight(lam, w), (d(n),)),
        constant=_weight == "constant",
    )
    add(
        f"select_error-{_weight}",
        "diffusion.select_error",
        lambda n, d, w=_weight: (
            lambda a, b, c: diffusion.select_error(diffusion.Errors(up(a), up(b), up(c)), w),
            (d(n), d(n), d(n)),
        ),
    )
add(
    "prediction_errors",
    "diffusion.prediction_errors",
    lambda n, d: (
        lambda a, b, c, e, lam: diffusion.prediction_errors(diffusion.XEps(a, b), diffusion.XEps(c, e), lam),
        (*(d(n, C) for _ in range(4)), d(n)),
    ),
)


def _two_step(n: int, d: Draw) -> Any:
    times = diffusion.halving_times(d.ids(n, 2), 2)
    return (lambda z: tuple(diffusion.two_step_target(wavy, z, times, COSINE, "v"))[:5]), (d(n, C),)


add("two_step_target", "diffusion.two_step_target", _two_step, constant=True)
add(
    "ddim_sample",
    "diffusion.ddim_sample",
    lambda n, d: (lambda z: diffusion.ddim_sample(wavy, z, 2, COSINE, "v"), (d(n, C),)),
)
add("encode", "diffusion.encode", lambda n, d: (lambda z: diffusion.encode(wavy, z, 2, COSINE, "v"), (d(n, C),)))
for _sampler in (diffusion.stochastic_sample, diffusion.ancestral_sample):
    add(
        _sampler.__name__,
        f"diffusion.{_sampler.__name__}",
        lambda n, d, f=_sampler: (
            lambda z, e: f(wavy, z, 3, COSINE, "v", lambda j, shape: e[:, j]),
            (d(n, C), d(n, 2, C)),
        ),
    )

# ----------------------------------------------------------------------------------------------- augmentation, matching

U = torch.tensor([0.2])
DRAWN = augment.uniform_draw(lambda name, shape: torch.full(shape, 0.2))
IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness": lambda x: augment.brightness(x, U.to(x.dtype)),
    "saturation": lambda x: augment.saturation(x, U.to(x.dtype)),
    "contrast": lambda x: augment.contrast(x, U.to(x.dtype)),
    "translate": lambda x: augment.translate(x, torch.tensor([1]), torch.tensor([-1])),
    "cutout": lambda x: augment.cutout(x, torch.tensor([1]), torch.tensor([2])),
    "flip": lambda x: augment.flip(x, U),
    "scale": lambda x: augment.scale(x, U, 1 - U),
    "rotate": lambda x: augment.rotate(x, U),
    "dsa": lambda x: augment.dsa(x, "color_crop_flip_scale", DRAWN, siamese=True, mode="M"),
    "mirror_batch": lambda x: augment.mirror_batch(x, torch.zeros(len(x)))[0],
}
for _name, _call in IMAGES.items():
    add(_name, f"augment.{_name}", lambda n, d, f=_call: (f, (d(n, 3, 4, 4),)), whole=_name == "mirror_batch")

add(
    "match_loss",
    "matching.match_loss",
    lambda n, d: (lambda a, b: matching.match_loss([a], [b]), (d(n, C), d(n, C))),
    whole=True,
)
add(
    "match_loss-mse",
    "matching.match_loss",
    lambda n, d: (lambda a, b: matching.match_loss([a], [b], "mse"), (d(n, C), d(n, C))),
    whole=True,
)


def _net(d: Draw) -> nn.Module:
    net = nn.Sequential(nn.Linear(C, 4), nn.Tanh(), nn.Linear(4, 3)).to(d.dtype)
    for i, p in enumerate(net.parameters()):
        p.data.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape).sin() * (i + 1) / 3)
    return net


def _gradient_matching(n: int, d: Draw) -> Any:
    net, y, real = _net(d), d.ids(n, 3), d(4, C)
    return (lambda x: matching.gradient_matching(net, (real, torch.tensor([0, 1, 2, 0])), (x, y))), (d(n, C),)


def _surrogate(n: int, d: Draw) -> Any:
    slope, rate = d(n, C), d(1)[0]
    found = matching.Trajectory(up(d(1)[0]), slope, rate, d(2))
    return (lambda x, a: found.surrogate(x, a[0])), (d(n, C), d(1))


def _trajectory(n: int, d: Draw) -> Any:
    net, y = _net(d), d.ids(n, 3)
    start = matching.flat_parameters(net)
    loss = matching.flat_step_loss(net)
    return (
        lambda x: matching.trajectory_gradient(loss, start, start + 0.1, x, y, [torch.arange(n)] * 2, 0.1).grad_images
    ), (d(n, C),)


add(
    "gradient_matching",
    "matching.gradient_matching",
    _gradient_matching,
    "second",
    "func",
    "graph",
    "empty",
    whole=True,
)
add("surrogate", "matching.Trajectory", _surrogate, "second", whole=True)
add(
    "trajectory_gradient",
    "matching.trajectory_gradient",
    _trajectory,
    "func",
    "graph",
    "empty",
    constant=True,
    whole=True,
)
add(
    "mean_matching",
    "matching.mean_matching",
    lambda n, d: (lambda a, b: matching.mean_matching(torch.tanh, [a.detach()], [b]), (d(n, C), d(n, C))),
    "empty",
    whole=True,
)


def _whitening(n: int, d: Draw) -> Any:
    fitted = zca.fit_zca(
        torch.randn(20, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(d.dtype)
    )
    return (lambda x: (fitted.apply(x), fitted.invert(x))), (d(n, C),)


add("zca", "zca.ZCA", _whitening)

# ------------------------------------------------------------------------------------------------- add-ons of methods

for _part in ("both", "direction", "norm"):
    for _below in ("max", "teacher"):
        add(
            f"norm_direction-{_part}-{_below}",
            "feature.norm_direction",
            lambda n, d, p=_part, b=_below: (
                lambda s, t, e, **k: feature.norm_direction(
                    s, t.detach(), feature.unit(e).detach(), **{"part": p, "denominator": b, **k}
                ),
                (d(n, C), d(n, C), d(n, C)),
            ),
        )


def _class_means(n: int, d: Draw) -> Any:
    y = d.ids(n)
    return (lambda x, **k: feature.class_means(x, y, C, **k)[0]), (d(n, 3),)


def _class_directions(n: int, d: Draw) -> Any:
    y = d.ids(n)
    return (lambda m, **k: feature.class_directions(m, y, **k)), (d(C, 3),)


add("class_means", "feature.class_means", _class_means, coupled=True, whole=True)
add("class_directions", "feature.class_directions", _class_directions, whole=True)
add("divide_by_std", "divide_by_std", lambda n, d: (F.divide_by_std, (d(n, C),)))
add(
    "mix_pairs",
    "mixing.mix_pairs",
    lambda n, d: (
        lambda x, u: F.mixing.mix_pairs(x, u.sigmoid(), torch.arange(len(x)).flip(0), torch.arange(len(x))),
        (d(n, C), d(n)),
    ),
    whole=True,
)
add(
    "partial_shares",
    "mixing.partial_shares",
    lambda n, d: (lambda u: F.mixing.partial_shares(u, torch.arange(min(1, len(u)))), (d(n),)),
    whole=True,
)
add(
    "affine_matrices",
    "adversarial.affine_matrices",
    lambda n, d: (F.adversarial.affine_matrices, (d(n, 6), d(n, 6))),
)
add(
    "warp",
    "adversarial.warp",
    lambda n, d: (
        lambda x, m, **k: F.adversarial.warp(x, torch.eye(2, 3, dtype=m.dtype) + 0.1 * m, **k),
        (d(n, 2, 4, 4), d(n, 2, 3)),
    ),
)
add(
    "patch_mix",
    "adversarial.patch_mix",
    lambda n, d: (
        lambda x, w: F.adversarial.patch_mix(x, w, torch.arange(len(x)).flip(0)),
        (d(n, 2, 4, 4), d(n, 2, 2)),
    ),
    whole=True,
)
add(
    "patch_weights",
    "adversarial.patch_weights",
    lambda n, d: (lambda w: F.adversarial.patch_weights(w, (4, 4)), (d(n, 2, 2),)),
)
add(
    "augmentor_loss",
    "adversarial.augmentor_loss",
    lambda n, d: (
        lambda s, a, t, **k: F.adversarial.augmentor_loss(s, a, t.detach(), **{"cap": 1.0, **k}),
        (d(n, C), d(n, C), d(n, C)),
    ),
)

# --------------------------------------------------------------------------------------------------------------- texts

add("half jeffreys", "half_jeffreys", pair(F.half_jeffreys))
add(
    "channel correlation",
    "relation.channel_correlation",
    lambda n, d: (relation.channel_correlation, (d(n, 3, 4), d(n, 3, 4))),
)
add("paired nce", "contrast.paired_info_nce", pair(contrast.paired_info_nce), "empty", coupled=True)

BASE = tuple(SPECIMENS)
"""Those of this file, whose options `test_metamorphic` knows; `specimens_systems` adds others for the sweep alone."""
