"""Objectives in anyone's own loop: one module from a batch to a loss. No engine, no recipe."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from limbeck.errors import ConfigError
from limbeck.grammar.heads import answer
from limbeck.grammar.method import Batch, Objective
from limbeck.grammar.random import Draws
from limbeck.grammar.signal import Signal, Tap, device_of, evaluating, refuse_shared
from limbeck.objectives.output import Supervised


class Criterion(nn.Module):
    """Weighted objectives between a student and a frozen teacher, as a loss module.

    The networks are not submodules: ``criterion.parameters()`` are its projectors alone, so give your optimiser
    ``[*student.parameters(), *criterion.parameters()]``, or make both submodules of what is optimised.
    ``criterion.to(device)`` moves the teacher along. The teacher stays in evaluation mode, whoever calls ``.train()``. Taps
    are set only while the criterion runs: between two calls both networks are as they were, to be pickled, copied,
    exported or compiled.

    Losses are taken outside autocast, in float32 at least, as the engine takes them.

    Args:
        objectives: name -> objective, as in a recipe's ``objectives``.
        student: the network that is trained.
        teacher: put into evaluation mode, frozen, and run without a graph.
        example: one batch's inputs, to check shapes and make projectors.
        feed: how inputs go into a network; by default ``network(x)``.
        chunks: of causal language models of transformers, logits that would be large (more than 2**24 of a batch) never exist
            as a whole: divergences of outputs take them a few tokens at a time from the hidden states, and ``out`` is then a
            `limbeck.grammar.heads.Head`, of which ``cross_entropy(out[:, :-1], labels, where)`` in the same file is the loss
            on the text. ``feed`` must return the model's output as it is.

    Attributes:
        out: the student's output of the last call, for a loss of your own.
        shown: each objective's mean over the last batch: a detached scalar, where the student lies.

    Raises:
        TapError, ShapeError: an objective's taps do not fit the networks.
        ConfigError: there is no objective, or one that asks a task for its loss; or student and teacher share weights
            that would be trained.

    Example:
        >>> from limbeck.objectives import FeatureMatch, Kl
        >>> net = lambda width: nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        >>> student, teacher = net(5), net(7)
        >>> objectives = {"kl": Kl(temperature=2), "hint": FeatureMatch("1", "1", weight=0.5)}
        >>> criterion = Criterion(objectives, student, teacher, torch.zeros(2, 4))
        >>> loss = criterion(torch.randn(6, 4))
        >>> loss.backward(); sorted(criterion.parts)
        ['hint', 'kl']
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        student: nn.Module,
        teacher: nn.Module,
        example: Any,
        feed: Callable[[nn.Module, Any], Any] | None = None,
        chunks: bool = False,
    ) -> None:
        super().__init__()
        self.chunks = chunks
        self.objectives = dict(objectives)
        if not self.objectives:
            raise ConfigError("objectives", "there is nothing to match", remedy='name one: {"kl": Kl(temperature=4)}')
        for name, objective in self.objectives.items():
            if isinstance(objective, Supervised):
                raise ConfigError(
                    f"objectives.{name}",
                    "asks the run's task for its loss, and a loop of your own has none",
                    remedy="add your own loss of criterion.out",
                )
            if type(objective).begin is not Objective.begin:
                raise ConfigError(
                    f"objectives.{name}",
                    "it computes values over a run's training data, and a loop of your own has no run",
                    remedy="use its function (limbeck.functional) in your loop",
                )
        for objective in self.objectives.values():
            objective.look(student, teacher)
        refuse_shared(student, teacher)
        self.projectors = nn.ModuleDict()
        self.shown: dict[str, Tensor] = {}
        self.out: Any = None
        self._feed = feed or _plainly
        self._calls = 0
        self._autocast: tuple[str, bool, torch.dtype] = ("cpu", False, torch.bfloat16)
        teacher.eval().requires_grad_(False)
        # hidden from nn.Module: saving the criterion must not save the networks
        self._networks = (student, teacher)
        self._teaching = tuple(teacher.modules())
        self._taps = (
            Tap(student, [p for o in self.objectives.values() for p in o.student_taps], lasting=False),
            Tap(teacher, [p for o in self.objectives.values() for p in o.teacher_taps], lasting=False),
        )
        with evaluating([student]), torch.no_grad():
            signals = [self._signal(i, example) for i in (0, 1)]
        for name, objective in self.objectives.items():
            objective.name = name
            projector = objective.prepare(signals[0], signals[1], {"x": example})
            if projector is not None:
                self.projectors[name] = projector.to(device_of(student))
        self._watch = _Watch(student, self.projectors)

    def __getstate__(self) -> dict[str, Any]:
        # a copy begins without what the last call has left: its output hangs on a graph, and optimisers are other ones
        return {**self.__dict__, "out": None, "shown": {}, "_watch": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for tap in self._taps:
            tap.acts = {}
        self._watch = _Watch(self._networks[0], self.projectors)

    def _signal(self, which: int, x: Any, network: nn.Module | None = None) -> Signal:
        with self._taps[which] as tap:
            called = self._networks[which] if network is None else network
            if self.chunks:
                out = answer(self._networks[which], lambda: self._feed(called, x))
            else:
                out = self._feed(called, x)
        return Signal(out, dict(tap.acts))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Criterion:
        # the teacher goes where the criterion goes, though it is not saved with it
        self._networks[1]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def parts(self) -> dict[str, float]:
        """`shown` as numbers. Reading them waits for the device."""
        return {name: float(value) for name, value in self.shown.items()}

    def call(self, role: str, *args: Any, grad: bool | None = None, **kwargs: Any) -> Any:
        """A projector, by its role's name; part of what objectives expect of their context."""
        projector = self.projectors[role.removeprefix("projector:")]
        device, lower, dtype = self._autocast
        own = next((p.dtype for p in projector.parameters()), torch.float32)
        given = [a.to(own) if isinstance(a, Tensor) and a.is_floating_point() and not lower else a for a in args]
        with torch.autocast(device, dtype=dtype, enabled=lower):
            out = projector(*given, **kwargs)
        return out.float() if isinstance(out, Tensor) and out.dtype in (torch.bfloat16, torch.float16) else out

    @property
    def draws(self) -> Draws:
        """Random numbers for objectives that ask for some: others at every call."""
        return Draws(0, ("criterion", self._calls))

    def forward(
        self,
        x: Any,
        batch: Batch | None = None,
        student: nn.Module | None = None,
        count: Tensor | float | None = None,
    ) -> Tensor:
        """The weighted sum of the objectives' means over a batch.

        Without ``count`` each mean is over this batch: of batches of equal size the mean of these losses is right.
        With ``count`` this batch gives its share of the means over a whole update, which is cut into micro-batches, over
        processes, or both: the sum of all these losses is the loss of the update, however unequal its parts are. (A
        wrapper that averages gradients over processes wants that sum times their number.)

        Args:
            x: the inputs, for both networks. The student's output is kept in ``out``, for your own loss.
            batch: what objectives may want beside them (labels, masks).
            student: the student as a trainer wraps it (DistributedDataParallel), to be called in its place.
            count: how much counts in the whole update: positions that ``batch["where"]`` marks, where there is such a
                mask (transformers' ``num_items_in_batch``); items otherwise.

        Returns:
            The loss, a scalar of at least float32.
        """
        if any(m.training for m in self._teaching):  # its owner's .train() reached it
            self._networks[1].eval()
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._watch.look()
        shown = self._signal(0, x, student)
        with torch.no_grad():
            teacher = self._signal(1, x)
        self.out = shown.out
        self._calls += 1
        given: Batch = {"x": x, **(batch or {})}
        device = device_of(self._networks[0]).type
        self._autocast = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        share: Tensor | float = 1.0
        if count is not None:
            where = given.get("where")
            least = count.clamp(min=1) if isinstance(count, Tensor) else max(1, count)
            share = (where.bool().sum() if isinstance(where, Tensor) else _items(x)) / least
        total: Tensor | None = None
        with torch.autocast(device, enabled=False):
            for name, objective in self.objectives.items():
                term = objective(shown, teacher, given, self)  # type: ignore[arg-type]
                n = term.n()
                mean = term.total() / (n.clamp(min=1) if isinstance(n, Tensor) else max(1, n))
                self.shown[name] = mean.detach()
                part = mean * term.weight * share
                total = part if total is None else total + part
        assert total is not None
        return total


def _plainly(module: nn.Module, x: Any) -> Any:
    """How inputs go into a network where nothing else is said."""
    return module(x)


class _Watch:
    """Sees that an optimiser holds the student and none holds a projector, and says so, once.

    torch tells of every optimiser's step. Nothing is watched any longer once every projector's optimiser has been seen.
    """

    def __init__(self, student: nn.Module, projectors: nn.ModuleDict) -> None:
        self.student = student
        own = {n: {id(p) for p in m.parameters() if p.requires_grad} for n, m in projectors.items()}
        self.missing = {n: ids for n, ids in own.items() if ids}
        self.steps = 0  # of the student's optimiser, with somebody missing
        self.handle: Any = None

    def look(self) -> None:
        """Called before each forward pass that trains."""
        if self.missing and self.handle is None:
            me = weakref.ref(self)  # torch's list of watchers must not keep a criterion alive

            def stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
                watch = me()
                if watch is not None and watch.missing:
                    watch.stepped(optimizer)

            self.handle = register_optimizer_step_post_hook(stepped)
            weakref.finalize(self, self.handle.remove)
        elif not self.missing and self.handle is not None:
            self.handle.remove()
            self.handle = None

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimiser, anyone's, has taken a step."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.missing = {n: own for n, own in self.missing.items() if not own & held}
        self.steps += any(id(p) in held for p in self.student.parameters())
        if self.missing and self.steps > 1:  # one of their own may come after the student's
            names, self.missing = ", ".join(map(repr, self.missing)), {}
            warnings.warn(
                f"Criterion: the student is being optimised and the projector of {names} is in no optimiser: give yours "
                "[*student.parameters(), *criterion.parameters()], or make student and criterion submodules of the "
                "module that is optimised",
                stacklevel=2,
            )


def _items(x: Any) -> int:
    """How many items a batch of inputs has: the first axis of the first tensor in it."""
    if isinstance(x, Mapping):
        x = next((v for v in x.values() if isinstance(v, Tensor)), None)
    elif isinstance(x, (tuple, list)):
        x = next((v for v in x if isinstance(v, Tensor)), None)
    if not isinstance(x, Tensor) or not x.ndim:
        raise ConfigError("count", "the inputs hold no tensor whose items could be counted", given=type(x).__name__)
    return len(x)
