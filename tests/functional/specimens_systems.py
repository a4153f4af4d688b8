"""Specimens of what the first systems brought: relations, contrast, maps, scores, meshes, recovery, Gaussians, views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.functional import (
    attention,
    contrast,
    dense,
    diffusion,
    feature,
    meshes,
    packing,
    recovery,
    relation,
    selection,
    splatting,
    views,
)
from tests.functional.specimens import C, Draw, add, up

# -------------------------------------------------------------------------------------------------- relations, contrast

add("divide", "attention.divide", lambda n, d: (lambda x: attention.divide(x, 2), (d(n, 3, 4),)))
add("relation_logits", "attention.relation_logits", lambda n, d: (attention.relation_logits, (d(n, 3, 4), d(n, 3, 4))))
add("relation", "attention.relation", lambda n, d: (attention.relation, (d(n, 2, 3, 4), d(n, 2, 3, 4))))
for _measure in ("kl", "js", "mse"):
    add(
        f"relation_divergence-{_measure}",
        "attention.relation_divergence",
        lambda n, d, m=_measure: (
            lambda q, k, a, b: attention.relation_divergence((q, k), (a.detach(), b.detach()), measure=m, cells=20),
            (d(n, 2, 3, 4), d(n, 2, 3, 4), d(n, 2, 3, 2), d(n, 2, 3, 2)),
        ),
        "second",
        "func",
        "graph",
    )
add(
    "channel_statistics",
    "contrast.channel_statistics",
    lambda n, d: (contrast.channel_statistics, (d(n, 2, 3),)),
    constant=True,
)


def _info_nce(n: int, d: Draw) -> Any:
    own = torch.arange(n)
    return (lambda q, k: contrast.info_nce(q, k, own)), (d(n, C), d(n + 2, C))


add("info_nce", "contrast.info_nce", _info_nce, coupled=True, whole=True)


def _mixed(n: int, d: Draw) -> Any:
    members = torch.stack([torch.arange(n), torch.arange(n).flip(0)], 1)
    return (lambda x, w: contrast.mix_distribution(x, up(w).softmax(-1).detach(), members)), (d(n, 2, 3, 3), d(n, 2))


add("mix_distribution", "contrast.mix_distribution", _mixed, coupled=True)


def _variational(n: int, d: Draw) -> Any:
    return (lambda m, t, v: feature.variational(m, t, up(v).exp())), (d(n, 3, 4), d(n, 3, 4), d(3))


def _critic(n: int, d: Draw) -> Any:
    return (lambda z: contrast.contrastive_critic(z, items=9)), (d(n, C),)


add(
    "score distance",
    "attention.score_distance",
    lambda n, d: (attention.score_distance, (d(n, 2, 3, 3), d(n, 2, 3, 3))),
)
add(
    "classifier gradient",
    "relation.classifier_gradient",
    lambda n, d: (lambda f, z: relation.classifier_gradient(f, z, torch.arange(n) % C), (d(n, 3), d(n, C))),
    coupled=True,
)
add("angles", "relation.angles", lambda n, d: (relation.angles, (d(n, C), d(n, C))), coupled=True)
add("neighbours", "relation.neighbours", lambda n, d: (relation.neighbours, (d(n, C), d(n, C))), coupled=True)
for _kernel in ("rbf", "bilinear"):
    add(
        f"congruence-{_kernel}",
        "relation.congruence",
        lambda n, d, k=_kernel: ((lambda s, t: relation.congruence(s, t, kernel=k)), (d(n, C), d(n, C))),
        coupled=True,
    )
add("variational", "feature.variational", _variational, whole=True)
for _kernel in ("polynomial", "linear", "gaussian"):
    add(
        f"channel_selectivity-{_kernel}",
        "feature.channel_selectivity",
        lambda n, d, k=_kernel: (
            (lambda s, t: feature.channel_selectivity(s, t, kernel=k)),
            (d(n, 3, 4, 4), d(n, 2, 2, 2)),
        ),
    )
add(
    "pyramid_distance",
    "feature.pyramid_distance",
    lambda n, d: (feature.pyramid_distance, (d(n, 3, 4, 4), d(n, 3, 4, 4))),
)
add("contrastive_critic", "contrast.contrastive_critic", _critic)

# ----------------------------------------------------------------------------------------------------------------- maps

add("resized", "dense.resized", lambda n, d: (lambda z: dense.resized(z, (3, 5)), (d(n, 4, 4, C),)))
for _value in ("kl", "cross_entropy"):
    add(
        f"channel_divergence-{_value}",
        "dense.channel_divergence",
        lambda n, d, v=_value: (
            lambda s, t: dense.channel_divergence(s, t, temperature=2.0, value=v),
            (d(n, 2, 3, C), d(n, 2, 3, C)),
        ),
    )


def _bands(n: int) -> tuple[Tensor, Tensor]:
    """Shares of bands [n, 2, 3, C], some of them 0, and places that count [n, 2, 3]."""
    at = torch.arange(n * 2 * 3 * C).reshape(n, 2, 3, C)  # quarters are the same number in every precision
    return (at % 4 != 0) * (at % 3 + 1) / 4.0, ((at[..., 0] % 7 != 2) * 1.0)


def _edge(**how: Any) -> Any:
    def make(n: int, d: Draw) -> Any:
        mask, valid = _bands(n)
        return (lambda s, t: dense.edge_divergence(s, t, mask.to(s.dtype), valid=valid.to(s.dtype), **how)), (
            d(n, 2, 3, C),
            d(n, 2, 3, C),
        )

    return make


def _body(**how: Any) -> Any:
    def make(n: int, d: Draw) -> Any:
        mask, valid = _bands(n)
        return (lambda s, t: dense.body_divergence(s, t, mask.to(s.dtype), valid.to(s.dtype), **how)), (
            d(n, 2, 3, C),
            d(n, 2, 3, C),
        )

    return make


add("edge_divergence", "dense.edge_divergence", _edge())
add("edge_divergence-plain", "dense.edge_divergence", _edge(premask=False, postmask=False, temperature=2.0))
add("body_divergence", "dense.body_divergence", _body())
add("body_divergence-exclude", "dense.body_divergence", _body(exclude=True, temperature=2.0))
add("body_divergence-pixel", "dense.body_divergence", _body(kind="pixel"))

# --------------------------------------------------------------------------------------------------------------- scores

add("carry", "diffusion.carry", lambda n, d: (diffusion.carry, (d(n, C), d(n, C))))
add("pull", "diffusion.pull", lambda n, d: (diffusion.pull, (d(n, C), d(n, C))))
for _weighting in ("sigma2", "uniform"):
    add(
        f"score_difference-{_weighting}",
        "diffusion.score_difference",
        lambda n, d, w=_weighting: (
            lambda p, q, lam: diffusion.score_difference(p, q, lam, weighting=w),
            (d(n, C), d(n, C), d(n)),
        ),
        constant=True,
    )
add(
    "normalised_difference",
    "diffusion.normalised_difference",
    lambda n, d: (diffusion.normalised_difference, (d(n, C), d(n, C), d(n, C))),
    constant=True,
)
for _kind in diffusion.KINDS:
    add(
        f"denoising_error-{_kind}",
        "diffusion.denoising_error",
        lambda n, d, k=_kind: (
            lambda out, x, e, lam: diffusion.denoising_error(out, x, e, lam, k),
            (d(n, C * (2 if k == "both" else 1)), d(n, C), d(n, C), d(n)),
        ),
    )
add(
    "mixture_eps",
    "diffusion.mixture_eps",
    lambda n, d: (lambda z, lam, x: diffusion.mixture_eps(z, lam, x, 0.5), (d(n, C), d(n), d(4, C))),
    whole=True,
)

# --------------------------------------------------------------------------------------------------------------- meshes

FACES = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1]])
EDGES, PAIRS = meshes.edges_of(FACES)


def _mesh(call: Any) -> Any:
    """A tetrahedron without its ground, in front of the camera, wherever the numbers push its corners."""
    corners = torch.tensor([[0.0, 0, 2], [1, 0, 3], [-0.5, 1, 3], [-0.5, -1, 3]])
    return lambda n, d: (lambda v: call(corners.to(up(v).dtype) + 0.1 * up(v)), (d(4, 3),))


for _name, _call in {
    "face_normals": lambda v: meshes.face_normals(v, FACES),
    "vertex_normals": lambda v: meshes.vertex_normals(v, FACES),
    "laplacian": lambda v: meshes.laplacian(v, EDGES),
    "normal_consistency": lambda v: meshes.normal_consistency(v, FACES, PAIRS),
    "soft_rasterize": lambda v: meshes.soft_rasterize(
        up(v), FACES, up(v), *(x[0].to(up(v).dtype) for x in _camera()), 4, 4
    ),
}.items():
    add(_name, f"meshes.{_name}", _mesh(_call), whole=True)


def _camera() -> tuple[Tensor, Tensor]:
    """One camera [1, 4, 4], [1, 3, 3] of 4 x 4 pixels."""
    return torch.eye(4)[None], torch.tensor([[[4.0, 0, 2], [0, 4, 2], [0, 0, 1]]])


# ------------------------------------------------------------------------------------------- packing, recovery, selection

for _form in ("fp16", "int8", "top-k"):
    add(
        f"unpack_logits-{_form}",
        "packing.unpack_logits",
        lambda n, d, f=_form: (lambda z: packing.unpack_logits(packing.pack_logits(z, f, 2), C).double(), (d(n, C),)),
        constant=True,
    )
add(
    "pack_logits",
    "packing.pack_logits",
    lambda n, d: (lambda z: packing.pack_logits(z)["logits"].double(), (d(n, C),)),
    constant=True,
)
add(
    "channel_moments",
    "recovery.channel_moments",
    lambda n, d: (lambda x: tuple(recovery.channel_moments(x)), (d(n, 2, 3),)),
    "empty",
    coupled=True,
    whole=True,
)
add(
    "statistics_gap",
    "recovery.statistics_gap",
    lambda n, d: (recovery.statistics_gap, (d(n, 2, 3), d(2), d(2))),
    "empty",
    coupled=True,
    whole=True,
)
add("image_norm", "recovery.image_norm", lambda n, d: (recovery.image_norm, (d(n, 2, 3, 3),)))
add(
    "image_variation",
    "recovery.image_variation",
    lambda n, d: (lambda x: tuple(recovery.image_variation(x)), (d(n, 2, 3, 3),)),
    coupled=True,
    whole=True,
)
add(
    "confidence_weights",
    "selection.confidence_weights",
    lambda n, d: (lambda c: selection.confidence_weights(up(c).sigmoid(), 0.5), (d(n),)),
    constant=True,
)
add(
    "best_per_class",
    "selection.best_per_class",
    lambda n, d: (lambda c: selection.best_per_class(c, torch.arange(len(c)) % 2, 2), (d(n),)),
    constant=True,
    coupled=True,
    whole=True,
)
add(
    "student_share",
    "selection.student_share",
    lambda n, d: (lambda x: selection.student_share(up(x).sigmoid(), 2.0), (d(n),)),
    constant=True,
)
for _score in ("msp", "entropy", "energy"):
    add(
        f"select-{_score}",
        "selection.select",
        lambda n, d, s=_score: (
            lambda t, z: selection.select(t, z, beta=0.3, rule="topk", score=s).score,
            (d(n, C), d(n, C)),
        ),
        constant=True,
        coupled=True,
    )

# ------------------------------------------------------------------------------------------------------------ Gaussians
# Geometry is computed in the precision of its numbers, so it is given float32 at least: pixels are no place for half.


def _balls(d: Draw, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drawn means, quaternions, scales and opacities, before they are brought to where the camera looks."""
    return d(n, 3), d(n, 4), d(n, 3), d(n)


def _seen(m: Tensor, s: Tensor, o: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ahead = torch.tensor([0.0, 0, 3], dtype=up(m).dtype)
    return 0.3 * up(m) + ahead, (0.2 * up(s) - 1).exp(), up(o).sigmoid() * 0.8


def _rendered(n: int, d: Draw) -> Any:
    def call(m: Tensor, q: Tensor, s: Tensor, o: Tensor, c: Tensor) -> Any:
        m, s, o = _seen(m, s, o)
        view, K = (x.to(m.dtype) for x in _camera())
        return splatting.rasterization(m, up(q), s, o, up(c), view, K, 4, 4, max_alpha=0.99, backend="torch")[:2]

    return call, (*_balls(d, n), d(n, 2))


def _projected(n: int, d: Draw) -> Any:
    def call(m: Tensor, q: Tensor, s: Tensor) -> Any:
        m, s, _ = _seen(m, s, m[:, 0])
        view, K = (x.to(m.dtype) for x in _camera())
        found = splatting.project(m, splatting.covariances(up(q), s), view, K, 4, 4)
        return found.means2d, found.depths, found.conics

    return call, (d(n, 3), d(n, 4), d(n, 3))


def _composed(n: int, d: Draw) -> Any:
    def call(m: Tensor, o: Tensor, c: Tensor, z: Tensor) -> Any:
        conics = torch.tensor([1.0, 0.2, 1.5], dtype=up(m).dtype).expand(len(m), 3)
        radii = torch.full((len(m), 2), 4)
        return splatting.composite(up(m) + 2, conics, up(o).sigmoid() * 0.8, up(c), up(z).detach(), radii, 4, 4)

    return call, (d(n, 2), d(n), d(n, 2), d(n))


add("rasterization", "splatting.rasterization", _rendered, "func", "graph", whole=True)
add("project", "splatting.project", _projected, whole=True)
add("composite", "splatting.composite", _composed, whole=True)
add(
    "covariances",
    "splatting.covariances",
    lambda n, d: (lambda q, s: splatting.covariances(up(q), up(s)), (d(n, 4), d(n, 3))),
)
add(
    "rotation_matrices",
    "splatting.rotation_matrices",
    lambda n, d: (lambda q: splatting.rotation_matrices(up(q)), (d(n, 4),)),
)
add("sh_basis", "splatting.sh_basis", lambda n, d: (lambda x: splatting.sh_basis(up(x), 2), (d(n, 3),)))
add(
    "spherical_harmonics",
    "splatting.spherical_harmonics",
    lambda n, d: (lambda x, c: splatting.spherical_harmonics(1, up(x), up(c)), (d(n, 3), d(n, 4, 2))),
)
add(
    "look_at",
    "splatting.look_at",
    lambda n, d: (lambda e: splatting.look_at(up(e) + 3, torch.zeros(3, dtype=up(e).dtype)), (d(n, 3),)),
)
add(
    "psnr",
    "splatting.psnr",
    lambda n, d: (lambda a, b: splatting.psnr(up(a).sigmoid(), up(b).sigmoid()), (d(n, C), d(n, C))),
)
for _pictures in (splatting.ssim_map, splatting.l1_dssim):
    add(
        _pictures.__name__,
        f"splatting.{_pictures.__name__}",
        lambda n, d, f=_pictures: (
            lambda a, b: f(up(a).sigmoid(), up(b).sigmoid(), window=3),
            (d(n, 2, 4, 4), d(n, 2, 4, 4)),
        ),
    )
add(
    "exploration",
    "splatting.exploration",
    lambda n, d: (
        lambda q, s, o, e: splatting.exploration(splatting.covariances(up(q), up(s)), up(o).sigmoid() * 0.01, e, 2.0),
        (d(n, 4), d(n, 3), d(n), d(n, 3)),
    ),
    constant=True,
)
add(
    "relocate",
    "splatting.relocate",
    lambda n, d: (
        lambda o, s: splatting.relocate(up(o).sigmoid(), up(s).exp(), torch.arange(len(o)) % 3 + 1),
        (d(n), d(n, 3)),
    ),
    constant=True,
)
add(
    "reset_opacities",
    "splatting.reset_opacities",
    lambda n, d: (lambda o: splatting.reset_opacities(up(o), 0.1), (d(n),)),
    constant=True,
)

# ---------------------------------------------------------------------------------------------------------------- views


def _crops(n: int, d: Draw) -> Any:
    boxes = torch.tensor([[0, 1, 3, 2], [1, 0, 2, 4], [0, 0, 4, 4]])[torch.arange(n) % 3]
    return (lambda x: views.crop_each(x, boxes, (4, 4))), (d(n, 2, 4, 4),)


def _pasted(n: int, d: Draw) -> Any:
    boxes = torch.tensor([[0, 1, 3, 2], [1, 0, 2, 4]])[torch.arange(n) % 2]
    return (lambda x, y: views.paste(x, y, boxes)), (d(n, 2, 4, 4), d(n, 2, 4, 4))


add("crop_all", "views.crop_all", lambda n, d: (lambda x: views.crop_all(x, (0, 1, 3, 2), (4, 4)), (d(n, 2, 4, 4),)))
add("crop_each", "views.crop_each", _crops)
add("paste", "views.paste", _pasted)
add(
    "take_view",
    "views.take_view",
    lambda n, d: (lambda x: views.take_view(x, views.View((0, 1, 3, 2), True, (1, -1))), (d(n, 2, 4, 4),)),
)
