"""Score distillation with networks: a frozen denoiser, a second one that is fitted to what is drawn, and the step between.

Two updates, each a phase of its own: `variational` moves what draws (a generator, a scene) along the difference of the two
denoisers; `fitted` teaches the second denoiser what is drawn now. Without a second one the first is SDS.

    def step(self, batch, ctx):
        x = ...                                                    # what the student draws [B, C, H, W], with a graph
        pre = asked(ctx, "teacher", y, scale=7.5)
        moved = variational(x, eps, logsnr, pre, asked(ctx, "fake", y))
        yield Terms(vsd=Term(moved.values, show=moved.size))
        yield Terms(fake=Term(fitted(x, eps_2, logsnr_2, asked(ctx, "fake", y)), "fake"))

Noise and levels of the two are drawn independently. Sources: Wang et al. 2023 (ProlificDreamer, arXiv 2305.16213), Poole et
al. 2022 (DreamFusion, arXiv 2209.14988), Nguyen and Tran 2024 (SwiftBrush, arXiv 2312.05239).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.errors import ConfigError, MethodError
from limbeck.functional import diffusion
from limbeck.functional.diffusion import Kind, Weighting
from limbeck.grammar.method import Context
from limbeck.tasks.sampler import classifier_free, conditional, reading


class Asked(NamedTuple):
    """A denoiser with its condition closed over.

    Attributes:
        predict: (z [B, ...], logsnr [B]) to its raw output.
        kind: what that means.
    """

    predict: Callable[[Tensor, Tensor], Tensor]
    kind: Kind

    def eps(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """The noise [B, ...] that it sees in ``z``."""
        return diffusion.to_x_eps(self.predict(z, logsnr), z, logsnr, self.kind).eps


class Moved(NamedTuple):
    """One step along a difference of scores.

    Attributes:
        values: [B], with a graph to what draws; its gradient with respect to x is ``gradient``.
        gradient: G [B, ...], without a graph.
        size: [B], the root mean square of G, to be shown.
    """

    values: Tensor
    gradient: Tensor
    size: Tensor


def asked(
    ctx: Context, role: str, labels: Tensor, scale: float = 1.0, *, grad: bool | None = None, **more: Any
) -> Asked:
    """A role's denoiser under classifier-free guidance; ``scale`` 1 is the plain conditional one (a single call).

    Args:
        ctx: of the step.
        role: of a denoiser (`limbeck.tasks.sampler.reading`); a view through an adapter is asked with the adapter acting.
        labels: [B].
        scale: guidance, 0 or more: ``e_u + scale (e_c - e_u)``.
        grad: whether a graph is built; by default for roles that learn.
        **more: further arguments of the network (a camera).

    Raises:
        ConfigError: a negative scale; guidance of a network without a null condition; one that takes the weight itself.
    """
    if not scale >= 0:
        raise ConfigError("guidance_scale", given=scale, expected="0 or more; 1 is the plain conditional model")
    said = reading(ctx.roles[role].module, role)
    if said.guided:
        raise ConfigError(role, "it takes a guidance weight as an input", expected="a plain conditional denoiser")

    def call(z: Tensor, logsnr: Tensor, y: Tensor) -> Tensor:
        out: Tensor = ctx.call(role, z, logsnr, y, grad=grad, **more)
        return out

    if scale == 1.0:
        return Asked(conditional(call, labels), said.mean_type)
    if said.null_condition is None:
        raise ConfigError(
            f"{role}.null_condition",
            "guidance needs the null condition's index, and the model has none",
            remedy=f"{role}.null_condition=INDEX, or method.guidance_scale=1",
        )
    w = torch.full((len(labels),), scale - 1.0, device=labels.device)
    return Asked(classifier_free(call, labels, said.null_condition, w), said.mean_type)


def variational(
    x: Tensor,
    eps: Tensor,
    logsnr: Tensor,
    pre: Asked,
    other: Asked | None,
    *,
    weighting: Weighting = "sigma2",
    clamp: float | None = None,
    clean: bool = False,
) -> Moved:
    """One step of VSD, or of SDS where there is no second model.

    Args:
        x: what was drawn [B, ...], in the range that the denoisers were trained on, with a graph.
        eps: noise [B, ...].
        logsnr: its level [B].
        pre: the frozen model, guided.
        other: the model of what is drawn; ``None`` takes the noise itself.
        weighting, clamp, clean: see `limbeck.functional.diffusion.score_difference`; what is not finite stops the run
            where it is not cleaned.

    Raises:
        MethodError: x has no graph.
    """
    if torch.is_grad_enabled() and not x.requires_grad:
        raise MethodError("render", "renderer output does not require grad", expected="a image with a graph")
    with torch.no_grad():
        z = diffusion.diffuse(x.detach(), eps, logsnr)
        seen = eps if other is None else other.eps(z, logsnr)
        g = diffusion.score_difference(pre.eps(z, logsnr), seen, logsnr, weighting=weighting, clamp=clamp, clean=clean)
    return Moved(diffusion.carry(x, g), g, g.float().square().flatten(1).mean(1).sqrt())


def fitted(x: Tensor, eps: Tensor, logsnr: Tensor, model: Asked) -> Tensor:
    """The denoising error [B] of the second model on what was drawn, which is detached here: the mean square in its own kind.

    Args:
        x: what was drawn [B, ...].
        eps, logsnr: noise [B, ...] and its level [B], independent of those of the other update.
        model: with a graph.
    """
    x = x.detach()
    out = model.predict(diffusion.diffuse(x, eps, logsnr), logsnr)
    return diffusion.denoising_error(out, x, eps, logsnr, model.kind)


__all__ = ["Asked", "Moved", "asked", "fitted", "variational"]
