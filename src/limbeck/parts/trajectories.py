"""Trajectories: experts whose parameters are kept after every epoch, and inner trainings that can be replayed beside them.

What matching of trajectories (MTT, TESLA, FTD, FYI) is built on. The mathematics of one walk and its gradient is
`limbeck.functional.matching.trajectory_gradient`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.augment import dsa, keyed_draw
from limbeck.functional.matching import Augment as Seen
from limbeck.functional.matching import flat_parameters, syn_batches, unflatten
from limbeck.grammar.method import Batch, Context, Method, Stage, Term
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.objectives.queries import Augment
from limbeck.tasks.condensation import Condensation
from limbeck.tasks.synthetic_set import Enter

if TYPE_CHECKING:
    from limbeck.engine.inner import Loss

HELD = 8
"""How many experts' paths lie on the device at a time."""


def cross_entropy(net: nn.Module, batch: Batch, ctx: Context) -> Tensor | Term:
    """How experts learn by default: their loss [N]."""
    return F.cross_entropy(net(batch["x"]), batch["y"])


class Experts:
    """Networks like the student, trained on the real data: a remembered stage of items, shared by all that train alike.

    They see the task's pixel space and its augmentation. The recipe tunes them under ``stages.experts.expert``.

    Args:
        method: bound; its task and the model of its student are the experts'.
        count: how many.
        epochs: of each; its parameters are kept before the first and after every one.
        optim: how they are trained; its ``steps`` follow from the epochs.
        loss: (network, batch, context) -> per-item values, or a Term. Its gradient is what they follow: a term whose
            values are a surrogate takes any other direction (sharpness-aware steps).
        remember: what ``loss`` depends on beside its own code, so that experts of other settings are others.

    Raises:
        ConfigError: the recipe says how many steps they take.

    Example:
        self.buffer = Experts(self, 100, 50, Optim(lr=0.01, batch_size=256, optimizer="sgd", momentum=0.0))
    """

    def __init__(
        self,
        method: Method[Condensation],
        count: int,
        epochs: int,
        optim: Optim,
        loss: Loss = cross_entropy,
        remember: Sequence[Any] = (),
    ) -> None:
        self.task, self.built = method.task, method.setup.student
        self.count, self.epochs, self.optim, self.loss = count, epochs, optim, loss
        self.remember = list(remember)
        for pattern, changes in method.setup.stages.items():
            if fnmatchcase("experts", pattern) and "steps" in changes.get("expert", {}):
                raise ConfigError(
                    f"stages.{pattern}.expert.steps",
                    "how long experts are trained is told in epochs",
                    given=changes["expert"]["steps"],
                    remedy="leave it out, and set method.expert_epochs",
                )
        self._held: dict[int, Tensor] = {}

    def stage(self) -> Stage:
        """The stage that makes them."""
        loss = [] if self.loss is cross_entropy else [self.loss]
        return Stage(
            "experts",
            items=lambda ctx: [_name(i) for i in range(self.count)],
            work=self.train,
            data=self.task.teacher_train,
            optim={"expert": self.optim},
            remember=[self.epochs, self.built, *loss, *self.remember],
            roles=(),
        )

    def train(self, item: str, ctx: Context) -> dict[str, Tensor]:
        """One expert: ``snapshots``, flat parameters [epochs + 1, P], the first before any step."""
        task, data, optim = self.task, self.task.teacher_train, ctx.optim["expert"]
        per_epoch = max(1, len(data) // optim.batch_size)
        optim = optim.with_(steps=self.epochs * per_epoch, batch_size=min(optim.batch_size, len(data)))
        net = self.built.model.build(task).module.to(ctx.device)
        snapshots = [flat_parameters(net)]

        def keep(done: int, module: nn.Module) -> None:
            if done % per_epoch == 0:
                snapshots.append(flat_parameters(module))

        queries = [Enter(task), *([Augment(task.strategy, task.align_corners)] if task.strategy else [])]
        ctx.fit(net, data, self.loss, optim, scope=f"experts/{item}", queries=queries, each=keep)
        return {"snapshots": torch.stack(snapshots).cpu()}

    def path(self, number: int, ctx: Context) -> Tensor:
        """An expert's snapshots [epochs + 1, P], on the device."""
        if number not in self._held:
            if len(self._held) >= HELD:
                self._held.pop(next(iter(self._held)))
            self._held[number] = ctx.artifact("experts", _name(number))["snapshots"].to(ctx.device)
        return self._held[number]

    def pair(self, item: Tensor, ctx: Context, latest_start: int, ahead: int) -> tuple[Tensor, Tensor]:
        """A start below epoch ``latest_start`` and the target ``ahead`` epochs later, [P] each: what an item's draws choose."""
        who = int(ctx.draws.randint("expert", item[None], self.count))
        t = int(ctx.draws.randint("start", item[None], latest_start))
        path = self.path(who, ctx)
        return path[t], path[t + ahead]


def _name(number: int) -> str:
    return f"expert{number:03d}"


def soften(net: nn.Module, theta: Tensor, images: Tensor) -> Tensor:
    """Class probabilities [M, C] of images [M, ...] by a network with the flat parameters theta [P]; without a graph."""
    with torch.no_grad():
        return torch.func.functional_call(net, unflatten(theta, net), (images.detach(),)).softmax(-1)


def passes(draws: Draws, images: Tensor, steps: int, batch: int | None) -> list[Tensor]:
    """Which images [M, ...] each of ``steps`` inner steps sees: ``batch`` of them (all if ``None``), pass by pass in an
    order from ``draws``. See `limbeck.functional.matching.syn_batches`."""
    count = len(images)
    return syn_batches(lambda k: draws.permutation(f"pass{k}", count).to(images.device), count, steps, batch)


def replayed(task: Condensation, draws: Draws) -> Seen | None:
    """The task's augmentation as a function of (inner step n, images): from a key, so that a second pass sees the same."""
    if not task.strategy:
        return None

    def augment(n: int, x: Tensor) -> Tensor:
        draw = keyed_draw(draws, torch.arange(len(x), device=x.device), f"n{n}")
        return dsa(x, task.strategy, draw, align_corners=task.align_corners)

    return augment


__all__ = ["Experts", "cross_entropy", "passes", "replayed", "soften"]
