"""How a role is optimised: the optimiser, its rate over time, clipping. Plain settings, read from the recipe."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.component import Settings

Schedule = Literal["constant", "linear", "cosine", "step", "drop"]


class Optim(Settings):
    """How a stage is optimised.

    Args:
        steps: optimiser steps.
        batch_size: items per optimiser step, over all processes and micro-batches together.
        lr: the peak learning rate.
        optimizer: any optimiser of torch.optim, in lower case (``sgd``, ``adam``, ``adamw``, ``rmsprop``, ``nadam``...).
        weight_decay: decay of the weights per unit of learning rate.
        momentum: for optimisers that have it.
        schedule: ``constant``; ``linear`` or ``cosine`` to zero; ``step``: a tenth after 1/2 and again after 3/4;
            ``drop``: a tenth after 1/2.
        warmup: steps of linear warm-up.
        clip: largest gradient norm of each role in each phase; ``null`` never clips.
        options: further arguments of the optimiser, passed as they are.
        keep_statistics: layers with running statistics (BatchNorm) whose weights are frozen keep these statistics and
            normalise by them; off, a frozen body goes on normalising by each batch, and its statistics follow the data.
    """

    def __init__(
        self,
        steps: int = 1000,
        batch_size: int = 64,
        lr: float = 1e-3,
        optimizer: str = "adamw",
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        schedule: Schedule = "cosine",
        warmup: int = 0,
        clip: float | None = None,
        options: dict[str, Any] | None = None,
        keep_statistics: bool = True,
    ) -> None:
        if steps < 0:
            raise ValueError("steps must be 0 or more")
        if batch_size < 1:
            raise ValueError("batch_size must be 1 or more")
        if not (lr > 0 and math.isfinite(lr)):
            raise ValueError("lr must be a finite number above 0")
        if weight_decay < 0:
            raise ValueError("weight_decay must be 0 or more")
        if warmup < 0 or (steps and warmup > steps):
            raise ValueError(f"warmup must lie between 0 and steps ({steps})")
        if clip is not None and not clip > 0:
            raise ValueError("clip must be above 0, or null for no clipping")
        if optimizer.lower() not in optimizer_names():
            raise ValueError(f"optimizer {optimizer!r} is unknown; known: {', '.join(sorted(optimizer_names()))}")
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.optimizer, self.weight_decay, self.momentum = optimizer.lower(), weight_decay, momentum
        self.schedule: Schedule = schedule
        self.warmup, self.clip, self.options = warmup, clip, dict(options or {})
        self.keep_statistics = keep_statistics

    def rate(self, step: int, total: int | None = None) -> float:
        """The learning rate of step ``step`` (from 0) of ``total``: a pure function, so resuming is exact."""
        total = self.steps if total is None else total
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        x = (step - self.warmup) / max(1, total - self.warmup)
        if self.schedule == "linear":
            return self.lr * (1.0 - x)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1.0 + math.cos(math.pi * x))
        if self.schedule == "step":
            return self.lr * (1.0 if x < 0.5 else 0.1 if x < 0.75 else 0.01)
        if self.schedule == "drop":
            return self.lr * (1.0 if x < 0.5 else 0.1)
        return self.lr

    def build(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over ``params``."""
        cls = optimizer_names()[self.optimizer]
        known = cls.__init__.__code__.co_varnames
        args: dict[str, Any] = {"lr": self.lr}
        if "weight_decay" in known:
            args["weight_decay"] = self.weight_decay
        if "momentum" in known:
            args["momentum"] = self.momentum
        held = list(params)
        if "fused" in known and _fusible(held) and not self.options.get("dampening"):
            args["fused"] = True  # one pass over the weights: AdamW on a CPU takes a third of the time
        elif "foreach" in known:
            args["foreach"] = True
        if {"fused", "foreach"} & set(self.options):  # one of them excludes the other
            args = {k: v for k, v in args.items() if k not in ("fused", "foreach")}
        try:
            made = cls(held, **{**args, **self.options})
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                "options", f"{self.optimizer} refuses its arguments: {error}", given=self.options
            ) from None
        if isinstance(made, torch.optim.SGD) and made.defaults["fused"]:
            _begin_momentum(made)
        return made

    def with_(self, **changes: Any) -> Optim:
        """A changed copy."""
        return Optim(**{**settings_of(self), **changes})


def settings_of(optim: Optim) -> dict[str, Any]:
    """All settings as plain values, defaults included."""
    return {name: getattr(optim, name) for name in inspect.signature(Optim).parameters}


def _fusible(params: list[nn.Parameter]) -> bool:
    """Whether torch's fused optimisers take them: whole, floating, on one device of a kind that has the kernels.

    And lying in memory without gaps, for the kernels walk from the first number to the last and ask no stride.
    """
    kinds = {p.device.type for p in params}
    plain = all(type(p) is nn.Parameter and p.is_floating_point() for p in params)  # a sharded one holds a DTensor
    return plain and len(kinds) == 1 and kinds <= {"cpu", "cuda"} and all(map(_dense, params))


def _dense(p: Tensor) -> bool:
    return torch.empty_like(p, device="meta").stride() == p.stride()  # strides are kept only where there are no gaps


def _begin_momentum(opt: torch.optim.SGD) -> None:
    """Momentum at zero from the start, which is the first step's rule without a case of its own.

    torch's fused form makes it for all parameters or for none, so one that gets its first gradient later than others
    would stop it; and it leaves it unwritten where the first step is skipped.
    """
    for group in opt.param_groups:
        if group["momentum"] and not group["dampening"]:
            for p in group["params"]:
                opt.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)


def lay_out(param: nn.Parameter, grad: Tensor) -> Tensor:
    """The gradient in the parameter's memory layout: fused optimisers walk both in the order they lie in, and ask nothing.

    Autograd lays gradients out so by itself; those that come from elsewhere (other processes) may not be.
    """
    sides = zip(param.shape, param.stride(), grad.stride(), strict=True)
    same = all(a == b for length, a, b in sides if length > 1)
    return grad if same else torch.empty_like(param, requires_grad=False).copy_(grad)


def held_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What an optimiser moves: a list to walk through, where asking the module would search it at every step."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def optimizer_names() -> dict[str, type[torch.optim.Optimizer]]:
    """The optimisers of torch by lower-case name; not those that evaluate the loss themselves or want sparse gradients."""
    found, unfit = {}, (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    for name in dir(torch.optim):
        cls = getattr(torch.optim, name)
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls not in unfit:
            found[name.lower()] = cls
    return found
