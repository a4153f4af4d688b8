"""Images recovered from a frozen network: optimised until it recognises them and its BatchNorm layers see what they saw.

The loop of SRe2L (Yin, Xing, Shen 2023, arXiv 2306.13092), which CDA and others vary:

    L = CE(f(A_t(x)), y) + r_bn (first * r_0 + sum_{l >= 1} r_l) + r_tv TV_2(A_t(x)) + r_l2 mean ||A_t(x)||_2
    r_l = r_var ||var*_l - var_l||_2 + ||mean*_l - mean_l||_2,     the statistics of BatchNorm l's input, of the batch

A_t is one crop, flip and roll for the whole batch; after each step x is clamped to the pixels that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.errors import ConfigError, NonFinite
from limbeck.functional.recovery import image_norm, image_variation, statistics_gap
from limbeck.functional.views import TRIES, View, crop_boxes, take_view
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws

_LOOK_EVERY = 100  # steps between two looks at whether all was finite: looking waits for the device


def batch_norms(net: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that keep a running mean and variance of what goes in, by path.

    torch's, timm's, and torchvision's frozen ones; not InstanceNorm, whose statistics are of single images.
    """
    found = {}
    for path, layer in net.named_modules():
        kept = all(isinstance(getattr(layer, n, None), Tensor) for n in ("running_mean", "running_var"))
        if kept and not isinstance(layer, nn.modules.instancenorm._InstanceNorm):
            found[path] = layer
    return found


def refuse_without_statistics(net: nn.Module, r_bn: float, argument: str = "teacher") -> None:
    """Refuse a network that has no running statistics to match, where they weigh something.

    Raises:
        ConfigError: what it has instead, and what to type.
    """
    if not r_bn or (isinstance(net, nn.Module) and batch_norms(net)):
        return
    kinds = sorted({type(m).__name__ for m in net.modules() if "Norm" in type(m).__name__}) if net else []
    has = f"its normalisations are {', '.join(kinds)}" if kinds else "it has no normalisation"
    if any("BatchNorm" in k for k in kinds):
        has += ", which keep no running statistics (track_running_stats is off)"
    raise ConfigError(
        argument,
        f"no BatchNorm2d layer with running statistics was found, so the statistics loss cannot be computed: {has}",
        expected="a network with BatchNorm",
        remedy=f"take one ({argument}=cifar-resnet:20, timm:resnet18, convnet with norm=batch), or set method.r_bn=0",
    )


class StatisticsTap:
    """The gap of every BatchNorm layer to its running statistics, collected as a batch passes through.

    A context: hooks are there while it is open. `gaps` are those of the last pass, in the order of the pass.

    Args:
        net: a network.
        var_weight: weight of the variance's gap beside the mean's.
    """

    def __init__(self, net: nn.Module, var_weight: float = 1.0) -> None:
        self.layers, self.var_weight = batch_norms(net), var_weight
        self.gaps: list[Tensor] = []
        self._handles: list[Any] = []

    def __enter__(self) -> StatisticsTap:
        self._handles = [layer.register_forward_pre_hook(self._see) for layer in self.layers.values()]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        gap = statistics_gap(inputs[0], layer.running_mean, layer.running_var, var_weight=self.var_weight)
        self.gaps.append(gap)

    def take(self) -> Tensor:
        """The gaps [layers] since they were last taken."""
        found, self.gaps = self.gaps, []
        return torch.stack(found)


class Weights(NamedTuple):
    """Of the terms beside the cross-entropy.

    Attributes:
        bn: of all statistics.
        first: further factor of the first layer's.
        var: of a layer's variance beside its mean.
        tv: of the total variation.
        l2: of the images' norm.
    """

    bn: float = 0.01
    first: float = 10.0
    var: float = 1.0
    tv: float = 0.0
    l2: float = 0.0


class Losses(NamedTuple):
    """The terms of one step, unweighted: cross-entropy [N], gaps [layers], total variation and norm (scalars)."""

    ce: Tensor
    gaps: Tensor
    tv: Tensor
    l2: Tensor

    def total(self, w: Weights) -> Tensor:
        """Their weighted sum, a scalar."""
        loss = self.ce.mean() + w.tv * self.tv + w.l2 * self.l2
        if len(self.gaps):
            loss = loss + w.bn * self.statistics(w)
        return loss

    def statistics(self, w: Weights) -> Tensor:
        """The gaps' sum, the first one's multiplied."""
        return w.first * self.gaps[0] + self.gaps[1:].sum()


class Answers(Protocol):
    """What is asked of a network: images [N, C, H, W] as they are optimised, to logits [N, classes]."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


def recovery_losses(answer: Answers, tap: StatisticsTap, x: Tensor, y: Tensor, w: Weights) -> Losses:
    """The terms for images ``x`` [N, C, H, W] that are to be of classes ``y`` [N]; terms of weight 0 are not computed."""
    z = answer(x)
    gaps = tap.take() if tap.layers and w.bn else x.new_zeros(0)
    none = x.new_zeros(())
    return Losses(
        F.cross_entropy(z, y),
        gaps,
        image_variation(x).l2 if w.tv else none,
        image_norm(x).mean() if w.l2 else none,
    )


def plan_views(
    draws: Draws,
    floors: Sequence[float],
    size: tuple[int, int],
    *,
    highest: float = 1.0,
    flip: float = 0.5,
    jitter: int = 0,
) -> list[View]:
    """The view of each step: all drawn at once, on the CPU.

    Args:
        draws: keyed randomness of this batch of images.
        floors: the least share of the area of a crop, for each step.
        size: (height, width) of the images.
        highest: the greatest share.
        flip: how often they are mirrored.
        jitter: greatest roll, down and to the right.
    """
    cpu = Draws(draws.seed, draws.scope)
    n = len(floors)
    boxes = crop_boxes(cpu.rand("crop", n, (TRIES, 4)), size, lowest=torch.tensor(floors).double(), highest=highest)
    mirrored = (cpu.rand("flip", n) < flip).tolist()
    rolls = cpu.randint("roll", n, jitter + 1, (2,)).tolist()
    return [
        View((b[0], b[1], b[2], b[3]), m, (r[0], r[1])) for b, m, r in zip(boxes.tolist(), mirrored, rolls, strict=True)
    ]


class Recovered(NamedTuple):
    """Recovered images [N, C, H, W], and the terms of every step: cross-entropy, statistics, variation, norm [steps, 4]."""

    images: Tensor
    trace: Tensor


def recover(
    net: nn.Module,
    start: Tensor,
    y: Tensor,
    optim: Optim,
    views: Sequence[View],
    *,
    weights: Weights = Weights(),  # noqa: B008 (plain numbers)
    limits: tuple[Tensor, Tensor] | None = None,
    answer: Answers | None = None,
    each: Callable[[int, Tensor], None] | None = None,
    what: str = "recovery",
) -> Recovered:
    """Optimise images until a network recognises them and its BatchNorm layers see their running statistics.

    Args:
        net: in evaluation mode, its parameters frozen (``with ctx.through(role)``): a graph through it reaches the images alone.
        start: where the images start [N, C, H, W]; left as it is.
        y: their classes [N].
        optim: how they are optimised, in ``len(views)`` steps; its state is new.
        views: what the network sees at each step.
        weights: of the terms.
        limits: least and greatest values, broadcastable to the images; after each step they are clamped to these.
        answer: how the images go into the network and its logits come out, if not directly.
        each: called after every step with (steps done, images).
        what: named in errors.

    Raises:
        ConfigError: the network is in training mode, and would normalise by the batch that it is to be compared with.
        NonFinite: a loss was not finite.
    """
    training = [path for path, layer in batch_norms(net).items() if layer.training]
    if training:
        raise ConfigError(
            "net",
            f"{len(training)} BatchNorm layers are in training mode (such as {training[0]!r}), and would move their statistics",
            remedy="call net.eval() first",
        )
    x = nn.Parameter(start.detach().clone())
    opt, ask = optim.build([x]), answer or net
    trace = []
    with StatisticsTap(net, weights.var) as tap:
        for step, view in enumerate(views):
            found = recovery_losses(ask, tap, take_view(x, view), y, weights)
            loss = found.total(weights)
            (x.grad,) = torch.autograd.grad(loss, x)
            for group in opt.param_groups:
                group["lr"] = optim.rate(step, len(views))
            opt.step()
            with torch.no_grad():
                if limits is not None:
                    x.clamp_(*limits)
                statistics = found.statistics(weights) if len(found.gaps) else found.tv.new_zeros(())
                trace.append(torch.stack([found.ce.mean(), statistics, found.tv, found.l2]).detach())
            last = step + 1 == len(views)
            if (last or step % _LOOK_EVERY == 0) and not bool(torch.isfinite(loss.detach() + x.detach().sum())):
                raise NonFinite(what, f"the loss or the images were not finite by step {step}", remedy="lower train.lr")
            if each is not None:
                each(step + 1, x.detach())
    return Recovered(x.detach(), torch.stack(trace) if trace else x.new_zeros(0, 4))


__all__ = [
    "Losses",
    "Recovered",
    "StatisticsTap",
    "Weights",
    "batch_norms",
    "plan_views",
    "recover",
    "recovery_losses",
    "refuse_without_statistics",
]
