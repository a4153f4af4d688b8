"""For functions that take their gradient while going forward: what they cannot do is refused by name.

Such a gradient is a number by the time anyone differentiates it: a second derivative of it would be zero without a word.
Nor do such functions live inside of compiled graphs, or of torch.func's transforms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

_outside: dict[Callable[..., Any], Callable[..., Any]] = {}


def eager(instead: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Run a function outside of compiled graphs, and refuse it inside of torch.func's transforms.

    Args:
        instead: what to use there.
    """

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(fn)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                torch._dynamo.graph_break(
                    msg=f"limbeck.functional.{fn.__name__} runs outside of compiled graphs: compile without "
                    f"fullgraph=True, or use {instead}"
                )
                return _left_alone(fn)(*args, **kwargs)
            if torch._C._are_functorch_transforms_active():
                raise ConfigError(
                    fn.__name__, "cannot be transformed by torch.func (vmap, grad, jvp)", remedy=f"use {instead} there"
                )
            return fn(*args, **kwargs)

        return call

    return decorate


def _left_alone(fn: Callable[..., Any]) -> Callable[..., Any]:
    if fn not in _outside:  # made here, for importing torch's compiler takes as long as importing torch
        _outside[fn] = torch.compiler.disable(fn)
    return _outside[fn]


class _NoSecond(torch.autograd.Function):
    """The identity on a gradient, whose own derivative is an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor, name: str, instead: str, *inputs: Tensor) -> Tensor:
        return slope.view_as(slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name, ctx.instead = inputs[1:3]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise ConfigError(
            ctx.name, "has no second derivative: its gradient is computed in closed form", remedy=f"use {ctx.instead}"
        )


def refuse_second(
    slopes: Sequence[Tensor | None], inputs: Sequence[Tensor | None], name: str, instead: str
) -> tuple[Tensor | None, ...]:
    """Gradients as a backward pass returns them; whoever differentiates them again by the inputs is told who cannot.

    Args:
        slopes: the gradients, without graph.
        inputs: what they depend on.
        name: of the function.
        instead: what to use for second derivatives.
    """
    if not torch.is_grad_enabled():
        return tuple(slopes)
    by = [x for x in inputs if x is not None and x.requires_grad]
    return tuple(None if g is None else _NoSecond.apply(g, name, instead, *by) for g in slopes)


class _Known(torch.autograd.Function):
    """Zero, whose gradient by a tensor is known."""

    generate_vmap_rule = True

    @staticmethod
    def forward(given: Tensor, slope: Tensor, name: str, instead: str) -> Tensor:
        return slope.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        given, slope, ctx.name, ctx.instead = inputs
        ctx.save_for_backward(given, slope)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        given, slope = ctx.saved_tensors
        with torch.no_grad():
            found = (upstream[0] * slope).to(given.dtype)
        return *refuse_second([found], [given, *upstream], ctx.name, ctx.instead), None, None, None


def known_gradient(given: Tensor, slope: Tensor, name: str, instead: str) -> Tensor:
    """A zero to be added to a value, so that ``backward()`` hands ``slope`` to ``given``; twice is refused by name."""
    return _Known.apply(given, slope.detach(), name, instead)
