"""The one inner loop: a network trained in memory, inside a step or an item (an expert, the fresh network of a judgement)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from limbeck.engine.batches import balanced, to_device
from limbeck.engine.coupled import NEEDS_TWO
from limbeck.errors import ConfigError, NonFinite
from limbeck.grammar.method import Batch, Context, Data, Query, Term
from limbeck.grammar.optim import Optim, set_rate
from limbeck.grammar.random import Draws, Stream, key_of, own_generators, seed_modules
from limbeck.grammar.role import Role
from limbeck.grammar.signal import Signal, train_mode

Loss = Callable[[nn.Module, Batch, Context], "Tensor | Term"]

_LOOK_EVERY = 50  # steps between two looks at whether all was finite: looking waits for the device


@own_generators()
def fit(
    module: nn.Module,
    data: Data,
    loss: Loss,
    optim: Optim,
    *,
    seed: int,
    scope: str,
    device: torch.device | str = "cpu",
    queries: Sequence[Query] = (),
    each: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """The one inner loop: train ``module`` in memory for ``optim.steps``. No checkpoint: its caller is what is remembered.

    Args:
        module: trained in place, and returned.
        data: what it is trained on.
        loss: (module, batch, context) -> per-item values, or a Term.
        optim: how.
        seed, scope: the key of every draw.
        device: where.
        queries: applied to each batch.
        each: called after every step with (steps done, module): expert snapshots.

    Raises:
        NonFinite: the loss is not finite, or the weights are not in the end.
    """
    device, optim = torch.device(device), optim.counted(len(data))
    train_mode(module.to(device), optim.keep_statistics)
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    for setting, pattern in optim.unmatched(named):
        raise ConfigError.unknown(f"{scope}: {setting}", pattern, list(named), "parameter")
    learning = set(optim.learning(named))
    still = [p for n, p in named.items() if n not in learning]
    for p in still:
        p.requires_grad_(False)
    if still:
        train_mode(module, optim.keep_statistics)
    params = [named[n] for n in learning]
    opt = optim.build(named)
    chances = balanced(data, f"{scope}: sampling") if optim.sampling == "balanced" else None
    stream = Stream(len(data), optim.batch_size, seed, scope, chances=chances)
    ctx = InnerContext(seed, scope, device, optim.steps)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for step in range(optim.steps):
        ids, views = stream.items(step)
        batch = to_device({**data.fetch(ids), "item": ids, "view": views}, device)
        seed_modules(key_of(seed, scope, step), device)
        ctx.move(step)
        for query in queries:
            batch = query(batch, cast(Context, ctx))
        try:
            value = loss(module, batch, cast(Context, ctx))
        except ValueError as error:
            if NEEDS_TWO not in str(error):
                raise
            raise ConfigError(
                scope,
                "BatchNorm has a single item to normalise: its batches hold one",
                expected="batches of two items or more",
                remedy="raise its batch size, or take a network without BatchNorm",
            ) from None
        term = value if isinstance(value, Term) else Term(value)
        n = term.n()
        total = term.total() * term.weight / (n.clamp(min=1) if isinstance(n, Tensor) else max(1, n))
        opt.zero_grad(set_to_none=True)
        total.backward()
        finite &= torch.isfinite(total.detach())
        if (step % _LOOK_EVERY == 0 or step + 1 == optim.steps) and not bool(finite):
            raise NonFinite(scope, f"the loss was not finite by inner step {step}", remedy="lower its learning rate")
        if optim.clip is not None:
            grads = [p.grad for p in params if p.grad is not None]
            optim.shorten(grads, torch.nn.utils.get_total_norm(grads))
        set_rate(opt, optim.rate(step), optim.decay(step))
        opt.step()
        if each is not None:
            each(step + 1, module)
    for p in still:
        p.requires_grad_(True)
    if params and not bool(torch.isfinite(torch.stack(torch._foreach_norm(tuple(params)))).all()):
        raise NonFinite(scope, "the last gradient was not finite", remedy="lower its learning rate")
    return module.eval()


class InnerContext:
    """The context of an inner loop: draws and the step's number; there are no roles, and the loss is the caller's."""

    task = None

    def __init__(self, seed: int, scope: str, device: torch.device, total: int) -> None:
        self.seed, self.stage, self.device, self.total, self.step = seed, scope, device, total, 0
        self.roles: dict[str, Role] = {}
        self.signals: dict[str, Signal] = {}
        self.draws = Draws(seed, (scope, 0), device)

    def move(self, step: int) -> None:
        """On to a step."""
        self.step = step
        self.draws = Draws(self.seed, (self.stage, step), self.device)

    @property
    def epoch(self) -> int:
        """Not told: inner loops count in steps."""
        return 0

    @property
    def done(self) -> int:
        """Steps before this one."""
        return self.step

    @property
    def whole(self) -> int:
        """Steps in all."""
        return self.total


__all__ = ["InnerContext", "Loss", "fit"]
