"""The grammar every paper is written in: terms, objectives, queries, stages, and the method that joins them."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, get_args, get_origin

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from limbeck.errors import ConfigError, MethodError
from limbeck.grammar.component import Component
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws, key_of, seed_modules
from limbeck.grammar.role import Contract, Role
from limbeck.grammar.signal import Edit, Signal, Tap, device_of, evaluating

if TYPE_CHECKING:
    from limbeck.grammar.artifact import Artifact
    from limbeck.grammar.evaluator import Evaluator
    from limbeck.grammar.task import Task

T = TypeVar("T", bound="Task", default="Task")

Batch = dict[str, Any]
"""What is asked: tensors by name, first axis the items. ``item`` (int64 [N]) and ``view`` (int64 [N]) are always there."""


class Term:
    """Named per-item values, and which roles they may update.

    The engine computes ``weight * sum(values where `where`) / count``, with the count taken over all micro-batches and
    processes, so that accumulating or distributing changes nothing.

    Args:
        values: per-item values of any shape, at least float32. A sum already taken is a scalar with ``count``.
        to: the roles this term may update. Its graph must reach no other trained role (detach by construction).
        weight: its weight in the sum.
        where: which values count, broadcastable to ``values``; ``None`` counts all.
        count: for a sum already taken: over how many items (trajectory matching: 1).
        show: for a surrogate whose value means nothing: what is logged, guarded and given to ``observe`` beside it;
            a scalar, or per-item values like ``values``.
    """

    __slots__ = ("count", "show", "to", "values", "weight", "where")

    def __init__(
        self,
        values: Tensor,
        to: str | Sequence[str] = ("student",),
        weight: float | Tensor = 1.0,
        where: Tensor | None = None,
        count: int | None = None,
        show: Tensor | None = None,
    ) -> None:
        self.values = values
        self.to = (to,) if isinstance(to, str) else tuple(to)
        self.weight = weight
        self.where = where
        self.count = count
        self.show = show

    def total(self) -> Tensor:
        """The sum of the values that count (a scalar with graph)."""
        if self.where is None:
            return self.values.sum()
        # torch.where, not a product: a masked NaN must not poison the sum
        return torch.where(
            self.where.bool(), self.values, torch.zeros((), dtype=self.values.dtype, device=self.values.device)
        ).sum()

    def n(self) -> Tensor | int:
        """How many values count, in this micro-batch."""
        if self.count is not None:
            return self.count
        if self.where is None:
            return self.values.numel()
        return self.where.bool().expand_as(self.values).sum()

    def shown(self) -> Tensor:
        """What is logged for it: a detached scalar sum that is divided by the same count."""
        if self.show is None:
            return self.total().detach()
        show = self.show.detach().float()
        if show.ndim == 0:
            return show * self.n()
        return show.sum() if self.where is None else torch.where(self.where.bool(), show, torch.zeros_like(show)).sum()


class Bundle(Term):
    """Several named terms that are handled as one: what a task's own loss is where it has parts (a detector's has five).

    ``weight`` multiplies the weight of each, ``to`` is that of each. In `Terms` it becomes its parts, ``ce.box``,
    ``ce.objectness``; each is averaged over its own count.

    Args:
        **terms: the parts.

    Example:
        >>> both = Bundle(box=Term(torch.ones(2)), score=Term(torch.ones(3), weight=0.5))
        >>> both.weight = 2.0
        >>> {name: term.weight for name, term in Terms(own=both).items()}
        {'own.box': 2.0, 'own.score': 1.0}
    """

    __slots__ = ("terms",)

    def __init__(self, **terms: Term) -> None:
        if not terms:
            raise ValueError("a bundle holds at least one term")
        self.terms = terms
        first = next(iter(terms.values()))
        super().__init__(first.values.new_zeros(()), first.to, count=1)

    def parts(self) -> dict[str, Term]:
        """The terms, each with the bundle's weight and roles."""
        made = {}
        for name, term in self.terms.items():
            one = copy.copy(term)
            one.weight, one.to = self.weight * term.weight, self.to
            made[name] = one
        return made

    def total(self) -> Tensor:
        """The weighted sum of the means of its parts (a scalar with graph), as an inner loop takes it."""
        sums = []
        for term in self.terms.values():
            n = term.n()
            sums.append(term.weight * term.total() / (n.clamp(min=1) if isinstance(n, Tensor) else max(1, n)))
        return torch.stack(sums).sum()


class Terms(dict[str, Term]):
    """One phase: everything that is summed into one backward pass, by name. A `Bundle` becomes its parts, ``name.part``.

    Args:
        metrics: further quantities to log, each a pair (sum, count).
        **terms: the terms.
    """

    def __init__(
        self, metrics: Mapping[str, tuple[Tensor | float, Tensor | float]] | None = None, /, **terms: Term
    ) -> None:
        for name, term in terms.items():
            if not isinstance(term, Term):
                tensor = isinstance(term, Tensor)
                remedy = (
                    f"write {name}=Term(...): it takes the values of the items, [N], and says which roles learn from them"
                    if tensor
                    else "metrics come first and without a name: Terms({name: (sum, count)}, kd=Term(...))"
                )
                given = f"a tensor {list(term.shape)}" if tensor else f"a {type(term).__name__}"
                raise MethodError(f"term {name!r}", f"is {given}", expected="a Term", remedy=remedy)
        super().__init__()
        for name, term in terms.items():
            self[name] = term
        self.metrics = dict(metrics or {})

    def __setitem__(self, name: str, term: Term) -> None:
        if isinstance(term, Bundle):
            for part, one in term.parts().items():
                super().__setitem__(f"{name}.{part}", one)
        else:
            super().__setitem__(name, term)


class Share(dict[str, Tensor]):
    """Statistics that a step needs of the whole batch before it can go on: ``sums = yield Share(name=tensor)``.

    Each tensor is summed over all micro-batches and processes, detached, and the sums come back from the ``yield`` (a
    count is a tensor like any other). So a term that centres on the batch is the same however the batch is cut.
    """


class Gather(dict[str, Tensor]):
    """Rows that a step needs of the whole batch: ``rows = yield Gather(e=tensor)`` (InfoNCE, relations between items).

    Each tensor [n, ...] holds the rows of this micro-batch; all rows [N, ...], over micro-batches and processes in the
    batch's order, come back as a `Gathered`. Gradients flow through them to whoever made them, also from other
    micro-batches' and processes' terms (``tensor.detach()`` where they should not), so a term that compares each own row
    with all rows is the same however the batch is cut. A batch that is cut keeps the graphs of all of its parts until the
    phase's backward pass.
    """


class Gathered(dict[str, Tensor]):
    """All rows of the batch, by name; see `Gather`.

    Attributes:
        own: by name, which of the rows are those that were given: ``rows["e"][rows.own["e"]]``.
    """

    def __init__(self, rows: Mapping[str, Tensor], own: Mapping[str, slice] | None = None) -> None:
        super().__init__(rows)
        self.own = dict(own) if own is not None else {n: slice(0, len(t)) for n, t in rows.items()}

    def numbers(self, name: str) -> Tensor:
        """Which rows are those that were given: int64 [n] (the labels of an InfoNCE against all rows)."""
        own = self.own[name]
        return torch.arange(own.start, own.stop, device=self[name].device)


class Context(Protocol):
    """What a step may ask of the engine.

    Attributes:
        step, total: the number of the optimiser step within the stage, and how many there are.
        batch_size: items of an optimiser step, over all micro-batches and processes.
        stage: the stage's name.
        seed, draws: the run's seed, and keyed randomness of this step.
        device: where the batch lies.
        task: what the student is for.
        roles: every participant by name.
        queries: the recipe's queries, by name.
        optim: the stage's optimisers, as the recipe has tuned them.
        signals: what `signal` has shown in this micro-batch, by role.
    """

    step: int
    total: int
    batch_size: int
    stage: str
    seed: int
    device: torch.device
    task: Task
    roles: dict[str, Role]
    queries: dict[str, Query]
    optim: dict[str, Optim]
    draws: Draws
    signals: dict[str, Signal]

    @property
    def epoch(self) -> int:
        """How often the stage's data were gone through before this step (or chosen, `Stage.choose`)."""

    @property
    def done(self) -> int:
        """Optimiser steps of the run before this one, earlier stages included."""

    @property
    def whole(self) -> int:
        """Optimiser steps of all stages: one that tells its number when it begins counts from then on."""

    def call(self, role: str, *args: Any, grad: bool | None = None, by: str = "", **kwargs: Any) -> Any:
        """Call a role's module, or its method ``by`` (``encode_text``).

        Roles that learn build a graph, others do not, unless ``grad`` says otherwise.
        """

    def signal(
        self,
        role: str,
        batch: Batch,
        taps: Sequence[str] = (),
        grad: bool | None = None,
        by: str = "",
        edit: Mapping[str, Edit] | None = None,
    ) -> Signal:
        """Feed a batch to a role as the task does, through its contract, and show outputs and tapped activations.

        With ``by`` it goes into that method of the module (``encode_image``), and what this returns is shown as it is.
        ``edit={"layer3": fn}`` puts what a function makes of an activation in its place, for this pass.
        """

    def through(self, role: str) -> AbstractContextManager[nn.Module]:
        """Graph to the role's input, its parameters frozen, in evaluation mode."""

    def at(self, step: int) -> Context:
        """The same at another step: its draws are that step's."""

    def artifact(self, stage: str, item: str) -> Any:
        """What an item of an earlier stage left."""

    def items(self, stage: str) -> list[str]:
        """The ids of an earlier stage's items."""

    def recorded(self, stage: str) -> Data:
        """The rows that an earlier stage of items left, by their item's number (`limbeck.storage.records.Recorded`).

        ``ctx.recorded("answers").fetch(batch["item"])`` gives tensors [n, ...] on the CPU, read from memory-mapped files.
        """

    def over(self, data: Data, batch_size: int = 256, items: Tensor | None = None) -> Iterator[Batch]:
        """All of some data once, in order, or these items: batches on the run's device, with ``item`` ids, ``view`` 0."""

    def fit(
        self,
        module: nn.Module,
        data: Data,
        loss: Callable[[nn.Module, Batch, Context], Tensor | Term],
        optim: Optim,
        *,
        scope: str,
        queries: Sequence[Query] = (),
        each: Callable[[int, nn.Module], None] | None = None,
    ) -> nn.Module:
        """Train a network in memory, inside a step or an item (see `limbeck.engine.inner.fit`)."""


class Objective(Component):
    """What is matched: a function from (student signal, teacher signal, batch, context) to a Term.

    Attributes:
        student_taps, teacher_taps: modules whose activations it needs.
        needs_teacher: whether a teacher signal must exist.
        coupled: what it does with a batch as a whole, so that a batch that is cut gives another result; empty if nothing.
        fewest: of one that is coupled: how many items it needs in each part of a batch that is cut.
        reads_labels: whether it looks at the labels of the items: then it cannot take items without.
    """

    kind: ClassVar[str] = "objective"
    coupled: ClassVar[str] = ""
    fewest: int = 2
    reads_labels: bool = True
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    needs_teacher: ClassVar[bool] = True
    name: str = ""

    def accept(self, task: Task) -> None:
        """Refuse a task that the objective is not for: asked when the data are read, before anything is trained.

        Raises:
            ConfigError: what was given, what is expected.
        """

    def look(self, student: Any, teacher: Any) -> None:
        """Name the taps that the recipe leaves out, from the two networks (``teacher``: ``None`` where there is none)."""

    def begin(self, ctx: Context) -> None:
        """Compute what it needs of all data, once, before the run's first step, into buffers of its projector."""

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """Check shapes on one dry batch; return the projector to train, if there is one (it becomes a role)."""
        return None

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The term of one batch."""
        raise TypeError(f"{type(self).__name__} must define __call__")

    @property
    def projector(self) -> str:
        """The name of the role that holds its projector."""
        return f"projector:{self.name}"


class Query(Component):
    """What is asked: a function (batch, context) -> batch that passes it through or changes it.

    A query draws from ``ctx.draws`` keyed by ``batch["item"]`` (and ``batch["view"]`` where a cache must replay it).

    Attributes:
        coupled: what it does with a batch as a whole, so that a batch that is cut gives another result; empty if nothing.
        alone: whether the student that is trained alone, as a baseline, gets its batches too.
        changes_labels: whether it makes labels from those of several items, or others than the data's.
    """

    kind: ClassVar[str] = "query"
    coupled: ClassVar[str] = ""
    alone: ClassVar[bool] = True
    changes_labels: ClassVar[bool] = False

    def accept(self, task: Task) -> None:
        """Refuse a task whose batches the query cannot change: asked when the data are read, before anything is trained.

        Raises:
            ConfigError: what was given, what is expected.
        """

    def attach(self, method: Method[Any]) -> None:
        """Change what the bound method's roles show (their contracts), before anything is trained; may be called again."""

    def begin(self, ctx: Context) -> None:
        """Change values once, when the run begins: not where it goes on."""

    def observe(self, ctx: Context) -> None:
        """Called after every optimiser step, like a method's ``observe``; what it moves lies in the method's state."""

    def extras(self) -> dict[str, Any]:
        """Further entries of ``result.json``, for the report."""
        return {}

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """The batch to use."""
        raise TypeError(f"{type(self).__name__} must define __call__")


class Adapter(Protocol):
    """What makes a view of a network with weights of its own (`limbeck.networks.lora.Lora`)."""

    def view(self, base: nn.Module) -> nn.Module:
        """A module that answers as ``base`` with the adapter acting, and whose parameters are the adapter's alone."""


RECORDED = 4096
"""Rows in a piece of what a stage records."""


class Data(Protocol):
    """Items that can be fetched by number. Randomness lives in queries, so fetching is a pure function.

    Data that show an item otherwise at each pass (other ones of its stored crops) may have ``fetch_at(items, views)``, a
    pure function of both [N], which the batches of a stage of steps are fetched by; ``fetch`` then shows view 0.
    """

    def __len__(self) -> int: ...

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch of tensors, without ``item`` and ``view``."""

    @property
    def fingerprint(self) -> str:
        """A content hash: what the data is, not where it lies."""


@dataclass
class Stage:
    """A piece of a run that is remembered: who learns in it, from what, and by what it is known again.

    A stage of ``steps`` loops over ``data`` with an optimiser per role; a stage of ``items`` does work item by item,
    one atomic folder each (searches, mining, scoring, generation, experts). Roles that ``optim`` does not name stand still.

    Attributes:
        name: unique within the method.
        steps: number of optimiser steps, or a function of the context that tells it when the stage begins.
        epochs: in their place, how often its data are gone through.
        data: what is iterated, or a function of the context that gives it when the stage begins; ``None``: no data, the
            batch holds ids alone (noise, prompts).
        batch_size: items per optimiser step over everything.
        optim: how each role that learns here is optimised. Of a stage of items: how what its work trains is optimised,
            by names of its own (`Context.optim`).
        keep: roles whose optimiser goes on from the state in which the last stage that trained them left it.
        queries: applied to each batch in order.
        setup: builds structure from artifacts; runs at every start, resumed or not, and sees what was restored.
        begin: changes values, once, at step 0.
        finish: runs once after the last step or item.
        every: what is done in between, before the step: ``{"epoch": fn, 100: fn}``, functions of the context, called with
            the networks in evaluation mode at the beginning of every epoch, or of every so many steps, the first included.
            They may change `Method.state` and roles (an earlier self, a statistic of the whole data).
        choose: which items of ``data`` an epoch goes through (numbers, int64 [n]), a function of the context that is asked
            when it begins, with the networks in evaluation mode and without a graph. An epoch takes as many steps as its
            items fill; items keep their numbers. The choice is in the checkpoint.
        step: the step function, if not the method's own.
        items: the ids of the work to do.
        work: does one item and returns a tree of values and tensors that is stored.
        record: in place of ``items``: rows that are kept of ``data``, a function (batch, context) -> tensors [n, ...] by
            name, asked batch by batch with every role standing still; read back by `Context.recorded`. Only the stage's
            own ``queries`` change the batches.
        remember: the values by which what the stage leaves is known again in every other run, beside what the engine
            knows itself (`limbeck.engine.identity`); ``None``: it is kept in this run alone.
        roles: of a remembered stage: the roles whose state it depends on, those that learn in it included; ``None``: all.
        shuffle: permute the data each epoch.
        scope: what the keys of draws hold in place of the name: a baseline shares the batches of what it is compared to.
        section: the section of the recipe that sets its batch size; named in messages.
        judged: whether what the method delivers is scored on validation while it runs (``engine.eval_every``); off for a
            stage that prepares and delivers nothing yet.
        augmented: whether the recipe's queries change its batches; off where they must stay as they are (replayed crops,
            boxes, noise). The stage's own ``queries`` always do.
    """

    name: str
    steps: int | Callable[[Context], int] | None = None
    data: Data | Callable[[Context], Data] | None = None
    batch_size: int = 1
    optim: dict[str, Optim] = field(default_factory=dict)
    keep: Sequence[str] = ()
    queries: Sequence[Query] = ()
    setup: Callable[[Context], None] | None = None
    begin: Callable[[Context], None] | None = None
    finish: Callable[[Context], None] | None = None
    step: Callable[[Batch, Context], Terms | Iterator[Terms | Share | Gather]] | None = None
    items: Callable[[Context], Sequence[str]] | None = None
    work: Callable[[str, Context], Any] | None = None
    remember: Sequence[Any] | None = None
    roles: Sequence[str] | None = None
    shuffle: bool = True
    scope: str = ""
    section: str = "train"
    judged: bool = True
    augmented: bool = True
    epochs: float | None = None
    every: Mapping[str | int, Callable[[Context], None]] = field(default_factory=dict)
    choose: Callable[[Context], Tensor] | None = None
    record: Callable[[Batch, Context], Mapping[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        if self.record is not None:
            if self.data is None:
                raise ValueError(f"stage {self.name!r} has no data to record anything of")
            self.items, self.work = self._parts, self._rows
        if sum(x is not None for x in (self.steps, self.items, self.epochs)) != 1:
            raise ValueError(f"stage {self.name!r} needs steps, epochs or items, and one of them alone")
        if self.data is None and (self.epochs is not None or self.choose is not None):
            raise ValueError(f"stage {self.name!r} has no data, so nothing is gone through or chosen")
        if self.choose is not None and self.epochs is not None:
            raise ValueError(f"stage {self.name!r} chooses its items anew: how long it takes is told in steps")
        for key in self.every:
            if key != "epoch" and (not isinstance(key, int) or key < 1):
                raise ValueError(f"stage {self.name!r}.every: {key!r} is neither 'epoch' nor a number of steps")
        self.scope = self.scope or self.name

    def _parts(self, ctx: Context) -> list[str]:
        """The items of a stage that records: pieces of its data."""
        n = len(self.source) if self.source is not None else 0
        return [f"{a}-{min(n, a + RECORDED)}" for a in range(0, n, RECORDED)]

    def _rows(self, item: str, ctx: Context) -> dict[str, Tensor]:
        """One piece's rows."""
        assert self.record is not None and self.source is not None
        low, high = map(int, item.split("-"))
        parts: list[dict[str, Tensor]] = []
        for batch in ctx.over(self.source, self.batch_size, torch.arange(low, high)):
            for query in self.queries:
                batch = query(batch, ctx)
            with torch.no_grad():
                rows = dict(self.record(batch, ctx))
            n = len(batch["item"])
            for name, row in rows.items():
                if not isinstance(row, Tensor) or not row.ndim or len(row) != n:
                    given = list(row.shape) if isinstance(row, Tensor) else type(row).__name__
                    raise MethodError(f"stage {self.name!r}.record", f"{name!r}", given=given, expected=f"[{n}, ...]")
            parts.append({k: v.detach().cpu() for k, v in ({"item": batch["item"]} | rows).items()})
        return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}

    @property
    def total(self) -> int:
        """How many steps it takes; 0 where it has items, or where that is told only when it begins."""
        if self.epochs is not None and hasattr(self.data, "fetch"):
            return math.ceil(self.epochs * len(self.data) / self.batch_size)  # type: ignore[arg-type]
        return self.steps if isinstance(self.steps, int) else 0

    @property
    def source(self) -> Data | None:
        """Its data, once it has begun; ``None`` where it has none."""
        if self.data is not None and not hasattr(self.data, "fetch"):
            raise RuntimeError(f"the data of stage {self.name!r} are known only when it begins")
        return self.data  # type: ignore[return-value]


@dataclass
class Built:
    """A model as a recipe builds it: the module, its input contract, its labels, and where it came from.

    Attributes:
        model: the Model component, which knows the native format.
        notes: sentences for the screen, ``result.json`` and the report: what was loaded, what was assumed, what is new.
        members: of several models that answer as one, each by itself.
    """

    module: Any
    contract: Contract = field(default_factory=Contract)
    labels: list[str] | None = None
    model: Any = None
    notes: list[str] = field(default_factory=list)
    members: list[Built] = field(default_factory=list)

    @property
    def told(self) -> list[str]:
        """Its notes, and those of its members."""
        return [*self.notes, *(f"member {i}: {n}" for i, m in enumerate(self.members) for n in m.told)]


@dataclass(frozen=True)
class Participant:
    """Somebody who takes part in a method beside the student: a teacher, an expert, a peer, a critic, a reference model.

    Each is named by the recipe (``teacher``, or ``participants.NAME``), built before the student, tried at the door,
    taught by a remembered stage where it has no trained weights, and has a row, a size and a latency in the report.

    Attributes:
        taught: whether one without trained weights is trained on labels before the method begins.
        task: the part of the task that it is for (`Task.part`); empty for the whole.
        like: whose recipe node it takes where the recipe names none (``student``); empty takes the task's default teacher.
        data: the split that it is taught on (``teacher_train`` or ``train``).
        needed: whether there must be one; otherwise it takes part where the recipe names it.
        ready: whether it must come with trained weights (a reference that nobody here could train: a scorer, a large
            pre-trained network); one without is refused, and none is trained.
        judged: whether it is scored as the student is, on its own part of the task; ``None``: where it is taught or made
            like another, for one that only comes ready (a text encoder, a scorer) may answer something else.
    """

    taught: bool = True
    task: str = ""
    like: str = ""
    data: str = "teacher_train"
    needed: bool = True
    ready: bool = False
    judged: bool | None = None

    @property
    def scored(self) -> bool:
        """Whether it has a row of metrics."""
        return self.judged if self.judged is not None else self.taught or bool(self.like)


@dataclass
class Setup:
    """Everything a method is bound to before it runs.

    ``others``: participants beside student and teacher, by name; ``built`` holds all of them.
    """

    task: Task
    student: Built
    teacher: Built | None
    train: Optim
    seed: int = 0
    objectives: dict[str, Objective] = field(default_factory=dict)
    queries: dict[str, Query] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shard: Sequence[str] = ()  # roles that are split over the processes
    others: dict[str, Built] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # how the recipe tunes single stages

    @property
    def built(self) -> dict[str, Built]:
        """Every participant by name."""
        teacher = {} if self.teacher is None else {"teacher": self.teacher}
        return {"student": self.student, **teacher, **self.others}


class Method(Component, Generic[T]):
    """One paper: roles, stages, and a step from a batch to terms.

    A plain method names its settings (`limbeck.grammar.settings.settings`) and defines ``step``. Adaptive state lives in
    ``self.state`` (numbers, strings, tensors, nested), is read in ``step`` and moves only in ``observe``. A method for one
    family of tasks says so as ``Method[Language]``: other tasks are refused, and ``self.task`` has that type.

    Attributes:
        participants: who takes part beside the student: by default one teacher. An instance may have its own.
        learners: the roles that learn in the stage that a method has by default.
        student_taps, teacher_taps: modules whose activations ``step`` reads.
        stage_names: stages that it has under some settings: what a recipe says of one that is left out is passed over.
        delivered: the role whose network is the result (``average``, where that is better than the student).
        baseline: the row of its own that what it delivers is held against; empty takes the evaluator's (`rows`).
        called: row -> what a report calls it, where its own name does not say it.
        coupled: what the mathematics does with a batch as a whole, so that a batch that is cut gives another result;
            empty if nothing. A step that yields a `Share` or `Gather` of what it needs of the whole batch couples nothing.
        takes_unlabelled: what it does with ``task.unlabelled``: ``own``, it uses these items by itself; ``terms``, its terms read
            no labels but through the task's own loss, so that unlabelled items may stand in a batch beside labelled ones;
            empty, it cannot use them.
    """

    kind: ClassVar[str] = "method"
    participants: Mapping[str, Participant] = MappingProxyType({"teacher": Participant()})
    learners: Sequence[str] = ("student",)
    stage_names: Sequence[str] = ()
    delivered: str = "student"
    baseline: str = ""
    called: Mapping[str, str] = MappingProxyType({})
    coupled: str = ""
    takes_unlabelled: Literal["", "own", "terms"] = ""
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    roles: dict[str, Role]
    state: dict[str, Any]
    setup: Setup

    def accept(self, task: Task) -> None:
        """Refuse a task that the method is not for: asked as soon as the data are read, before anything is trained.

        Raises:
            ConfigError: what was given, what is expected.
        """
        wanted = self.task_type()
        if wanted is not None and not isinstance(task, wanted):
            names = [re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower() for cls in (wanted, type(task))]
            raise ConfigError(
                "task",
                f"the method is for {names[0]}, and the task is {names[1]}",
                expected=f"task={names[0]}",
            )

    @classmethod
    def task_type(cls) -> type[Task] | None:
        """The task that a method is for, where its class says so: ``class Taid(Method[Language])``."""
        for base in cls.__mro__:
            for made in base.__dict__.get("__orig_bases__", ()):
                args = get_args(made)
                if args and isinstance(args[0], type) and isinstance(get_origin(made), type):
                    return args[0]
        return None

    def judged_by(self, evaluator: Evaluator) -> None:
        """Hear how what it makes will be scored, before it is bound: for a method that must make as much as that needs.

        Raises:
            ConfigError: the evaluator cannot score it.
        """

    def bind(self, setup: Setup) -> None:
        """Take the participants. Override to add roles; call this first."""
        self.setup = setup
        self.state = {}
        self._copied: dict[str, str] = {}
        self.roles = {
            "student": Role(setup.student.module, contract=setup.student.contract, shard="student" in setup.shard)
        }
        for name, built in setup.built.items():
            if name in self.participants:
                self.roles[name] = Role(built.module, contract=built.contract, shard=name in setup.shard)
        for name in [n for n, p in self.participants.items() if p.needed and n not in self.roles]:
            setting = name if name == "teacher" else f"participants.{name}"
            raise ConfigError(
                setting,
                f"{type(self).__name__} needs a {name}",
                remedy=f"set {setting}=NAME, or {setting}.checkpoint=FILE; without a checkpoint a stage trains it",
            )

    @property
    def task(self) -> T:
        """What the student is for."""
        return self.setup.task  # type: ignore[return-value]

    def new(
        self,
        name: str,
        make: Callable[[], nn.Module] | None = None,
        *,
        like: str = "",
        adapter: Adapter | None = None,
        decay: float | Callable[[int, int], float] | None = None,
    ) -> Role:
        """Add a role: a network made here, a copy of another role's, its moving average, or it seen through an adapter.

        Its first weights are drawn from a key of its own (the run's seed and ``name``), whatever was drawn before.

        Args:
            name: the role's.
            make: makes its module, which is placed on the run's device when the run begins.
            like: the role that it is a copy of, and whose contract it has.
            adapter: not a copy then, but a view of that role's module: what learns, is hashed and saved is the adapter
                alone, and called as ``like`` the module answers without it.
            decay: not a mere copy then, but the moving average of that role, wherever it learns: the share of the old value
                kept each step, a number or a function (step, total) -> number.
        """
        if (make is None) == (not like) or ((adapter is not None or decay is not None) and not like):
            raise ValueError(f"role {name!r} is made by a function, or like another role")
        if adapter is not None and decay is not None:
            raise ValueError(
                f"role {name!r} is an average or a view: add the view, and then what is like it with a decay"
            )
        if like and like not in self.roles:
            raise ConfigError.unknown("role.like", like, self.roles, "role")
        source = self.roles[like] if like else None
        with torch.random.fork_rng(devices=[]):
            seed_modules(key_of(self.setup.seed, "init", name), torch.device("cpu"))
            if source is None:
                assert make is not None
                module = make()
            else:
                module = copy.deepcopy(source.module) if adapter is None else adapter.view(source.module)
        shard = name in self.setup.shard
        if like:
            self._copied[name] = like
        given: dict[str, Any] = {} if source is None else {"contract": source.contract, "feed": source.feed}
        role = Role(module, of=like if decay is not None else None, decay=decay, shard=shard, **given)
        self.roles[name] = role
        return role

    def dry(self, role: str, taps: Sequence[str] = (), items: int = 2) -> Signal:
        """What a role shows for a few training items, without a graph and in evaluation mode: to read shapes from.

        Args:
            role: whose module is asked, through its contract, as the task feeds it.
            taps: modules whose activations are shown too.
            items: how many.

        Raises:
            TapError: a tap names no module.
        """
        found, batch = self.roles[role], self.task.example(items)
        device = device_of(found.module)
        batch = found.contract.feed({k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})
        tap = Tap(found.module, taps)
        try:
            with torch.no_grad(), evaluating([found.module]), tap:
                out = found.contract.outputs((found.feed or self.task.feed)(found.module, batch))
            return Signal(out, dict(tap.acts))
        finally:
            tap.close()

    def stages(self) -> list[Stage]:
        """What is done, in order. By default one stage in which `learners` learn from the task's training data."""
        train = self.setup.train
        optim = dict.fromkeys(self.learners, train)
        return [Stage("distil", steps=train.steps, data=self.task.train, batch_size=train.batch_size, optim=optim)]

    def step(self, batch: Batch, ctx: Context) -> Terms | Iterator[Terms | Share | Gather]:
        """From a batch to terms. A step with several phases yields one Terms a phase.

        It may also yield a `Share` and receives its sums over the whole batch, or a `Gather` and receives all rows.
        """
        raise TypeError(f"{type(self).__name__} must define step, or give every stage its own")

    def recorded_bytes(self) -> float:
        """Bytes that ``limbeck cache`` writes per training item for it; 0 where nothing can be recorded."""
        return self.task.cache_bytes()

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        """Move adaptive state, once per optimiser step, from means over everything (all micro-batches and processes)."""

    def begin(self, ctx: Context) -> None:
        """Change values once, when the run begins, whatever its first stage is: not where it goes on."""

    def measures(self) -> dict[str, float]:
        """Further numbers by name, as they stand: they enter the log at every line, and the result at the end."""
        return {}

    def artifact(self) -> Artifact:
        """What the run made, as it stands: by default the network of the role `delivered`. It is scored, saved and exported."""
        return self.network(self.delivered)

    def rows(self) -> dict[str, Artifact]:
        """Further rows of the report, by name, each scored as the student is: a peer, an early exit, a greedy choice."""
        return {}

    def extras(self) -> dict[str, Any]:
        """Further entries of ``result.json`` from what was made, for the report: ``pictures`` (`limbeck.report.summary`)."""
        return {}

    def network(self, role: str) -> Artifact:
        """A role's network as an artifact: of the student, of an average of it, of a peer, of a copy that was made here.

        It has the labels and the model of the participant that it comes from. A view through an adapter is delivered with
        the adapter in its weights: a plain network of the same architecture.
        """
        from limbeck.grammar.artifact import NetworkArtifact

        own = self.roles[role]
        merged = getattr(own.module, "merged", None)
        module = merged() if callable(merged) else own.module
        contract = own.contract.with_(by_std="")  # which belongs to training: what is saved answers without it
        return NetworkArtifact(self.setup.task, replace(self._origin(role), module=module, contract=contract))

    def _origin(self, role: str) -> Built:
        """The participant that a role is, or is a copy, a view or an average of; else the student."""
        while role not in self.setup.built:
            role = self.roles[role].of or self._copied.get(role, "student")
        return self.setup.built[role]


def as_phases(result: Terms | Iterable[Terms | Share | Gather], who: str = "step") -> Iterator[Terms | Share | Gather]:
    """A step's result as an iterator of phases.

    Raises:
        MethodError: it is no step's result; the error says what ``who`` returned.
    """
    if isinstance(result, Terms):
        return iter([result])
    if isinstance(result, (Tensor, Term, Mapping, str)) or not isinstance(result, Iterable):
        raise phase_error(who, "returned", result)
    return iter(result)


def phase_error(who: str, did: str, given: Any) -> MethodError:
    """What to say of a step that gives something else than phases."""
    given_as = f"a tensor {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
    return MethodError(
        who,
        f"{did} {'nothing' if given is None else given_as}",
        expected="Terms",
        remedy="end it with `return Terms(name=Term(values))`, values being one number an item"
        if given is None or isinstance(given, (Tensor, Term))
        else "write Terms(name=Term(values)), which is a mapping with metrics beside it",
    )
