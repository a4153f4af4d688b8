"""Networks that are pre-trained on images of which most patches are hidden: views, masks, what is compared, layers' rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.functional.pretraining import (
    Masking,
    Supervise,
    hidden_state_distance,
    patch_distance,
    patches_of,
    qkv_relation_divergence,
    random_masking,
)
from limbeck.functional.views import TRIES, crop_boxes, crop_each
from limbeck.grammar.method import Batch, Context
from limbeck.grammar.role import Role
from limbeck.networks.masked_autoencoder import MaskedAutoencoder
from limbeck.networks.vision_transformer import VisionTransformer, encoder_of

Target = Literal["decoder", "encoder", "pixels", "relation"]
"""What a student predicts: a teacher's decoder's or encoder's hidden states, the pixels, or how tokens relate in it."""

SHOWN, SIDE = 6, 64
"""Images that a report shows, and their longest side in pixels."""


def viewed(batch: Batch, ctx: Context, least: float = 1.0, mirror: bool = False) -> Tensor:
    """A batch's images [N, C, H, W], each cropped at random and resized to its own size, and mirrored every other time.

    Args:
        batch: with ``x`` and ``item``.
        ctx: of the step: draws are keyed by it and the items.
        least: share of the area that a crop has at least; 1 takes whole images.
        mirror: left and right.
    """
    x: Tensor = batch["x"]
    if least < 1:
        size = (x.shape[2], x.shape[3])
        boxes = crop_boxes(ctx.draws.rand("crop", batch["item"], (TRIES, 4)), size, lowest=least)
        x = crop_each(x, boxes, size)
    if mirror:
        left = ctx.draws.rand("mirror", batch["item"]) < 0.5
        x = torch.where(left.view(-1, 1, 1, 1), x.flip(-1), x)
    return x


def masked(batch: Batch, ctx: Context, patches: int, ratio: float) -> Masking:
    """Which patches of a batch's images are hidden, keyed by step and item."""
    return random_masking(ctx.draws.rand("masking", batch["item"], (patches,)), ratio)


def over_tokens(values: Tensor, masking: Masking, which: Supervise, first: bool = True) -> Tensor:
    """The mean of values of tokens [N, T] over those that are compared, [N].

    Args:
        values: of the class token and all patches [N, 1 + L]; of patches alone [N, L] where there is no ``first``.
        masking: which patches are hidden: as many of every image.
        which: tokens are compared.
        first: the class token is there; it counts with ``all`` alone.
    """
    if which == "all":
        return values.mean(1)
    patches = values[:, 1:] if first else values
    chosen = masking.hidden if which == "masked" else ~masking.hidden
    seen, every = masking.visible.shape[1], masking.hidden.shape[1]
    return torch.where(chosen, patches, 0.0).sum(1) / (seen if which == "visible" else every - seen)


def rebuilt(prediction: Tensor, x: Tensor, masking: Masking, patch: int, normalise: bool) -> Tensor:
    """MAE's loss [N]: the squared error of hidden patches, of pixels as `patch_distance` has them."""
    return over_tokens(patch_distance(prediction, x, patch, normalise=normalise), masking, "masked", first=False)


def hidden_target(ctx: Context, teacher: str, x: Tensor, masking: Masking, target: Target, layer: int | None) -> Tensor:
    """What the teacher shows of visible patches, without graph.

    Returns:
        decoder: [N, 1 + L, D] behind block ``layer``; encoder: [N, 1 + K, D] before the last norm; relation: queries, keys
        and values [depth, 3, N, 1 + K, D].
    """
    if target == "decoder":
        found: Tensor = ctx.call(teacher, x, masking, layer, by="hidden")
    elif target == "encoder":
        found = ctx.call(teacher, x, masking, norm=False, by="encode")
    else:
        found = ctx.call(teacher, x, masking, by="projections")
    return found


def relations(student: Tensor, teacher: Tensor, heads: int) -> Tensor:
    """Divergence of all nine relations [N], the mean over the student's layers; each repeats the teacher's at its height.

    Args:
        student, teacher: queries, keys and values [layers, 3, N, T, C].
        heads: relation heads, into which both are cut.
    """
    m, n = len(student), len(teacher)
    at = torch.tensor([(i + 1) * n // m - 1 for i in range(m)], device=teacher.device)
    s, t = (q.transpose(0, 1).flatten(1, 2) for q in (student, teacher[at]))  # [3, layers * N, T, C]
    return qkv_relation_divergence(s, t, heads).unflatten(0, (m, -1)).mean(0)


def compared(
    prediction: Tensor, target: Tensor, masking: Masking, which: Supervise, *, beta: float, normalise: bool, whole: bool
) -> Tensor:
    """Smooth L1 of predicted hidden states [N]; ``whole``: of all patches, else of the visible ones, which all count."""
    each = hidden_state_distance(prediction, target, beta=beta, normalise=normalise)
    return over_tokens(each, masking, which if whole else "all")


def layer_rates(module: Any, decay: float, given: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Groups of an `Optim` in which a vision transformer's layers learn the slower the deeper they lie.

    With D blocks, what stands on the encoder has the rate itself, block i (from 0) ``decay ** (D - i)`` of it, patches and
    class token ``decay ** (D + 1)``; biases, norms, tokens and positions are not decayed.

    Args:
        module: with the encoder in it.
        decay: 1 leaves all rates alike.
        given: further groups, which have the last word.

    Source: Bao et al. 2022 (BEiT, arXiv 2106.08254), as MAE and G2SD are fine-tuned.
    """
    found: dict[str, dict[str, Any]] = {}
    place = encoder_of(module)
    if place is not None:
        name, encoder = place
        prefix = f"{name}." if name else ""
        if decay < 1:
            depth = encoder.depth
            for part in ("cls_token", "patch_embed.*"):
                found[f"{prefix}{part}"] = {"lr": f"x{decay ** (depth + 1):.6g}"}
            found |= {f"{prefix}blocks.{i}.*": {"lr": f"x{decay ** (depth - i):.6g}"} for i in range(depth)}
        plain = ("*.bias", f"{prefix}*norm*.weight", f"{prefix}cls_token", "dist_*")
        names = [n for n, _ in module.named_parameters()]
        kept = [p for p in plain if any(_fits(n, p) for n in names)]
        found |= {p: {**found.get(p, {}), "weight_decay": 0.0} for p in kept}
    return found | {p: dict(v) for p, v in (given or {}).items()}


def _fits(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern)


def drawn(role: Role, x: Tensor, ratio: float, normalise: bool) -> list[Any]:
    """Images, what is seen of them, and what a masked autoencoder makes of that: rows of a report's image."""
    net = role.module
    assert isinstance(net, MaskedAutoencoder)
    device = net.cls_token.device
    x = x[:SHOWN].to(device)
    given = role.contract.inputs(x)
    noise = torch.rand(len(x), net.patches, generator=torch.Generator().manual_seed(0)).to(device)
    masking = random_masking(noise, ratio)
    with torch.no_grad():
        found = net(given, masking)
    true = patches_of(given, net.patch)
    if normalise:
        var, mean = torch.var_mean(true, -1, keepdim=True)
        found = found * (var + 1e-6).sqrt() + mean
    hidden = masking.hidden.unsqueeze(-1)
    rows = [given, _images(torch.where(hidden, 0.0, true), net), _images(torch.where(hidden, found, true), net)]
    shape = (1, -1, 1, 1)
    mean, std = (
        torch.tensor(v, device=device).view(shape) for v in (role.contract.mean or (0.0,), role.contract.std or (1.0,))
    )
    return [_small(r * std + mean) for r in rows]


def _images(patches: Tensor, net: VisionTransformer) -> Tensor:
    """[N, C, H, W] of patches [N, L, patch * patch * C]."""
    p, (rows, columns) = net.patch, net.grid
    x = patches.unflatten(1, (rows, columns)).unflatten(3, (p, p, net.channels))  # [N, rows, columns, p, p, C]
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def _small(x: Tensor) -> list[Any]:
    side = max(x.shape[2:])
    if side > SIDE:
        x = torch.nn.functional.avg_pool2d(x, -(-side // SIDE))
    pixels: list[Any] = (255 * x[:, :3]).round().clamp(0, 255).int().tolist()
    return pixels


def fits_in(heads: int, widths: Sequence[int]) -> bool:
    """Whether relation heads divide all widths."""
    return all(w % heads == 0 for w in widths)
