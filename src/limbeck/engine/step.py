"""One optimiser step: a method's phases over all micro-batches, each with its backward pass, its check and its update."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limbeck.engine import distributed as dist
from limbeck.engine.context import RunContext
from limbeck.engine.coupled import NEEDS_TWO, one_item
from limbeck.engine.culprits import Phase
from limbeck.engine.gathering import Rows
from limbeck.engine.guard import Guard
from limbeck.engine.rules import Routing, same_phase
from limbeck.errors import ConfigError, MethodError
from limbeck.functional.precision import widest
from limbeck.grammar.method import (
    Batch,
    Gather,
    Gathered,
    Method,
    Objective,
    Share,
    Stage,
    Term,
    Terms,
    as_phases,
    phase_error,
)
from limbeck.grammar.optim import Optim, held_by, lay_out, set_rate
from limbeck.grammar.random import key_of, seed_modules


class Seen(dict[str, tuple["Tensor | float", "Tensor | float"]]):
    """What one step showed, over all micro-batches and processes: name -> (sum, count)."""

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add to what is there under that name."""
        if name in self:
            before, n = self[name]
            total, count = before + total, n + count
        self[name] = (total, count)

    def means(self) -> dict[str, float]:
        """The means as numbers. Reading them waits for the device."""
        return {name: float(total) / max(1.0, float(count)) for name, (total, count) in self.items()}


class Stepper:
    """Takes the steps of one stage.

    Args:
        method: bound to its participants.
        stage: the stage of steps.
        ctx: its context.
        optim: how each trained role is optimised.

    Attributes:
        optimisers: one a role.
        moved: the roles that some phase has sent a gradient so far.
        guard: what stops a step that is not finite; ``None`` lets everything pass.
    """

    guard: Guard | None = None

    def __init__(self, method: Method, stage: Stage, ctx: RunContext, optim: dict[str, Optim]) -> None:
        self.method, self.stage, self.ctx = method, stage, ctx
        self.device = ctx.device
        self.world, self.rank = dist.world(), dist.rank()
        self.optim = optim
        self.optimisers = {n: o.build(method.roles[n].parameters()) for n, o in optim.items()}
        self._held = {n: held_by(o) for n, o in self.optimisers.items()}
        self.moved: set[str] = set()
        self.routing = Routing(stage.name, method.roles, self._held)
        # who is in training mode moves its buffers, each process by its own part of the batch
        moving = [r.module for r in method.roles.values() if r.learns or r.batch_stats]
        self.buffers = dist.Buffers(moving)
        self._laid_out: dict[str, bool] = {}  # whether autograd lays a role's gradients out as its parameters
        self._wide = widest(self.device)  # for counts

    def set_rates(self, step: int, total: int) -> None:
        """The learning rates of a step."""
        for name, opt in self.optimisers.items():
            optim = self.optim[name]
            set_rate(opt, optim.rate(step, total), optim.decay(step, total))

    def rates(self, step: int, total: int) -> dict[str, float]:
        """The learning rates of a step, as they are logged."""
        return {f"lr/{n}" if len(self.optim) > 1 else "lr": o.rate(step, total) for n, o in self.optim.items()}

    def take(self, step: int, micro: Sequence[Batch]) -> Seen:
        """One optimiser step over its micro-batches, which hold what the stage's data gave.

        Raises:
            NonFinite: a value was infinite or NaN; the step updated nothing.
        """
        method, stage, many = self.method, self.stage, len(micro)
        single = many == 1 and self.world == 1
        contexts = [self.ctx.at(step) for _ in micro]
        batches: list[Batch] = []
        queries = [*(method.setup.queries.values() if stage.augmented else ()), *stage.queries]
        for given, ctx in zip(micro, contexts, strict=True):
            batch = given
            for query in queries:
                batch = query(batch, ctx)
            batches.append(batch)
        phases = [Phases(stage.step or method.step, b, c) for b, c in zip(batches, contexts, strict=True)]
        known = {} if single else self._known(batches)
        seen = Seen()
        turn = earlier = 0  # earlier: phases that have updated something
        answers: list[Any] = [None] * many
        rows = Rows()
        while True:
            found: list[Terms | Share | Gather | None] = []
            held: list[Terms] = []
            touched: dict[str, None] = {}
            losses: list[Tensor] = []
            self._clear()
            for j, phase in enumerate(phases):
                # dropout and its like draw from the global generator: keyed by step, turn and micro-batch
                seed_modules(key_of(self.ctx.seed, stage.scope, step, turn, self.rank * many + j), self.device)
                try:
                    terms = phase.send(answers[j])
                except ValueError as error:
                    if NEEDS_TWO in str(error):
                        raise one_item(stage.section, stage.batch_size, many) from None
                    raise
                found.append(terms)
                if not isinstance(terms, Terms):
                    continue
                self._add_objectives(terms, batches[j], contexts[j])
                touched.update((r, None) for t in terms.values() for r in t.to)
                if single:
                    losses.append(self._backward(terms, *self._tally(terms, seen)))
                elif not rows.whole and (
                    None
                    not in (shared := {n: self._global_count(t, known, batches[j]) for n, t in terms.items()}).values()
                ):
                    totals, _ = self._tally(terms, seen)
                    losses.append(self._backward(terms, totals, shared))
                else:
                    held.append(terms)
            turn += 1
            if self.world > 1:
                same_phase(stage.name, step, found, bool(held))
            if all(f is None for f in found):
                break
            answers = [None] * many
            shares = [f for f in found if isinstance(f, Share)]
            gathers = [f for f in found if isinstance(f, Gather)]
            if len(shares) not in (0, many) or len(gathers) not in (0, many) or None in found:
                raise MethodError(
                    f"stage {stage.name}",
                    f"the micro-batches of step {step} do not come to the same phase: some share, gather or go on, others do not",
                    expected="the same phases, Shares and Gathers, whatever items a micro-batch holds",
                )
            if shares:
                answers = [_sum_shares(shares)] * many
                continue
            if gathers:
                answers = [Gathered(gathers[0])] if single else rows.gather(gathers)
                continue
            if held:
                if len(held) != many:
                    raise MethodError(
                        f"stage {stage.name}",
                        f"a term of step {step} has one value an item in some micro-batches and not in others",
                        remedy="give it the same shape everywhere, or a `where` that the batch or its task gives",
                    )
                counts = self._sum_counts(held)
                if rows.whole:
                    sums = [self._loss(terms, self._tally(terms, seen, rows)[0], counts) for terms in held]
                    losses += rows.backward(sums, self.device)
                else:
                    losses += [self._backward(terms, self._tally(terms, seen)[0], counts) for terms in held]
            shown = [f if isinstance(f, Terms) else None for f in found]
            alone = partial(self._alone, step, turn)
            self._update(list(touched), step, earlier, losses, Phase(batches, shown, alone), seen)
            earlier += bool(touched)
            if self.world == 1 and all(p.over for p in phases):
                break  # nothing comes after this one; several processes say so to each other
        for role in method.roles.values():
            if role.shard:
                dist.reshard(role.module)  # heads are read after the pass; what comes now works on what is split
        if self.world == 1:
            return seen
        self.buffers.agree()
        return self._over_processes(seen)

    # -- counts ----------------------------------------------------------------------------------------------------

    def _known(self, batches: list[Batch]) -> dict[str, Any]:
        """Global counts that the batches alone tell: items (``""``), and the values that their masks mark."""
        local: dict[str, Any] = {}
        for batch in batches:
            for name, mask in self._masks(batch).items():
                local[name] = local.get(name, 0) + mask.sum()
            local[""] = local.get("", 0) + len(batch["item"])
        if dist.world() > 1:
            # where processes hold unequal parts, a shape may look per item in one and not in the other: nobody guesses
            sizes = {len(b["item"]) for b in batches}
            size = float(max(sizes)) if len(sizes) == 1 else -1.0
            names = sorted(local)
            values = [*(local[n] for n in names), size, size * size, float(size < 0)]
            packed = torch.stack([torch.as_tensor(v, dtype=self._wide, device=self.device) for v in values])
            dist.sum_over_ranks(packed)
            local = {n: packed[i] for i, n in enumerate(names)}
            # one micro-batch has no graphs to free early: nothing is read, and its counts are summed when seen
            first, squares, uneven = packed[-3:].tolist() if len(batches) > 1 else (0, 0, 1)
            if uneven or first * first != squares * dist.world():
                del local[""]
        return local

    def _masks(self, batch: Batch) -> dict[str, Tensor]:
        """The masks that are known before the forward pass: the batch's own, and the task's of what its loss counts."""
        task = self.method.task.counted(batch)
        own = batch.get("where")
        found = {"where": own, "task": task if task is not own else None}
        return {name: mask for name, mask in found.items() if isinstance(mask, Tensor)}

    def _global_count(self, term: Term, known: dict[str, Any], batch: Batch) -> Tensor | float | None:
        """The count of a term over everything, where this micro-batch alone tells it; ``None``: all must be seen first.

        Told are one value an item, and values under a mask that the batch or its task gives. Of anything else the number
        may differ from one micro-batch to the next: other masks, sums already taken, padded lengths, pairs of items.
        """
        if term.count is not None:
            return None
        if term.where is None:
            plain = term.values.ndim == 1 and len(term.values) == len(batch["item"])
            return known.get("") if plain else None
        for name, mask in self._masks(batch).items():
            if term.where is mask and mask.shape == term.values.shape:
                return known[name]
        return None

    def _sum_counts(self, held: list[Terms]) -> dict[str, Tensor]:
        names = sorted({n for terms in held for n in terms})
        packed = torch.zeros(len(names), dtype=self._wide, device=self.device)
        for terms in held:
            for i, n in enumerate(names):
                if n in terms:
                    packed[i] += terms[n].n()
        dist.sum_over_ranks(packed)
        return {n: packed[i] for i, n in enumerate(names)}

    def _tally(self, terms: Terms, seen: Seen, rows: Rows | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Add what is shown to ``seen``. Returns each term's total, with its graph, and how many values count in it."""
        totals = {n: t.total() for n, t in terms.items()}
        self.routing.check(terms, totals, rows.behind() if rows is not None else None)
        own: dict[str, Any] = {n: t.n() for n, t in terms.items()}
        for n, t in terms.items():
            seen.add(n, totals[n].detach() if t.show is None else t.shown(), own[n])
        for n, (total, count) in terms.metrics.items():
            seen.add(n, self._scalar(total), count.detach() if isinstance(count, Tensor) else count)
        return totals, own

    def _scalar(self, value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(self.device, torch.float32)
        return torch.full((), float(value), device=self.device)  # filled there: copying it would synchronise

    def _over_processes(self, seen: Seen) -> Seen:
        names = sorted(seen)
        values = [v for n in names for v in seen[n]]
        packed = torch.stack([torch.as_tensor(v, device=self.device).to(self._wide) for v in values])
        dist.sum_over_ranks(packed)
        return Seen({n: (packed[2 * i].float(), packed[2 * i + 1]) for i, n in enumerate(names)})

    # -- phases ----------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        for params in self._held.values():
            for p in params:
                p.grad = None

    def _add_objectives(self, terms: Terms, batch: Batch, ctx: RunContext) -> None:
        """Add-ons: evaluated once a micro-batch, after the first phase that showed the student's signal."""
        extra = self.method.setup.objectives
        if not extra:
            return
        clash = sorted(set(extra) & set(terms))
        if clash:
            raise ConfigError(
                f"objectives.{clash[0]}", "the method already has a term of that name", remedy="choose another name"
            )
        if "student" not in ctx.signals or ctx.added:
            return
        ctx.added = True
        teacher = ctx.signals.get("teacher")
        for name, objective in extra.items():
            if objective.needs_teacher and teacher is None:
                teacher = ctx.signal("teacher", batch)
            terms[name] = objective(ctx.signals["student"], teacher, batch, ctx)

    def _backward(self, terms: Terms, totals: dict[str, Tensor], counts: dict[str, Any]) -> Tensor:
        """The backward pass of the weighted sum of totals, each divided by its count. Returns the loss, detached."""
        loss = self._loss(terms, totals, counts)
        if loss is None:  # a phase of metrics alone
            return torch.zeros((), device=self.device)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    def _loss(self, terms: Terms, totals: dict[str, Tensor], counts: dict[str, Any]) -> Tensor | None:
        """The weighted sum of totals, each divided by its count; ``None`` where there is no term."""
        loss: Tensor | None = None
        for name, term in terms.items():
            count, weight = counts[name], term.weight
            if isinstance(count, Tensor) or isinstance(weight, Tensor):
                scale = count.clamp(min=1).to(term.values.dtype) if isinstance(count, Tensor) else max(1, count)
                part = totals[name] * weight / scale
            else:
                part = totals[name] * (weight / max(1, count))
            loss = part if loss is None else loss + part
        return loss

    def _alone(self, step: int, turns: int, batch: Batch) -> bool | None:
        """Whether a batch by itself has a gradient that is not finite, in the first phase of a step.

        ``None``: that cannot be asked, for it takes other phases, other processes, or more items. Nothing is updated.
        """
        if turns > 1 or dist.world() > 1:
            return None
        ctx = self.ctx.at(step)
        kept = [(b, b.clone()) for r in self.method.roles.values() if r.learns for b in r.module.buffers()]
        try:
            terms = next(as_phases((self.stage.step or self.method.step)(batch, ctx)))
            if not isinstance(terms, Terms):
                return None
            self._add_objectives(terms, batch, ctx)
            self._clear()
            self._backward(terms, *self._tally(terms, Seen()))
        except Exception:  # a layer that wants more than one item, a method that wants the whole batch
            return None
        finally:
            for buffer, value in kept:
                buffer.copy_(value)
        grads = [p.grad for params in self._held.values() for p in params if p.grad is not None]
        return bool(grads) and not bool(torch.isfinite(_norm(grads)))

    def _lay_out(self, role: str) -> None:
        """Gradients in their parameters' layout; whether anything is to be done for that shows at the first update."""
        if self._laid_out.get(role):
            return
        found = [(p, p.grad) for p in self._held[role] if p.grad is not None]
        mended = [(p, g, lay_out(p, g)) for p, g in found]
        self._laid_out[role] = all(g is new for _, g, new in mended)
        for p, _, new in mended:
            p.grad = new

    def _update(
        self, touched: list[str], step: int, earlier: int, losses: list[Tensor], phase: Phase, seen: Seen
    ) -> None:
        roles = self.method.roles
        missing = [r for r in touched if r not in self.optimisers]
        if missing:
            raise ConfigError(
                "stage.optim",
                f"stage {self.stage.name!r} updates {missing}, which no optimiser holds",
                expected="an optimiser for every role that a term may update",
                remedy="name them in the stage's optim, or in the method's learners",
            )
        if self.world > 1:
            for r in touched:
                if not roles[r].shard:
                    dist.sum_gradients(self._held[r])
        for r in touched:
            self._lay_out(r)
        grads = {r: [g for p in self._held[r] if (g := p.grad) is not None] for r in touched}
        grads = {r: g for r, g in grads.items() if g}
        self.moved.update(grads)
        # the norm is what is clipped by, and what a split role is looked at by; elsewhere the guard has a cheaper look
        clip = {r for r in grads if self.optim[r].clip is not None}
        norms = {r: dist.gathered(_norm(grads[r])) for r in grads if r in clip or roles[r].shard}
        if self.guard is not None:
            self.guard.check(step, earlier, losses, grads, norms, [self.optimisers[r] for r in touched], phase, seen)
        for r in touched:
            if r in clip:
                self.optim[r].shorten(grads[r], norms[r], dist.gathered)
            self.optimisers[r].step()


class Phases:
    """The phases of one micro-batch; nothing runs before the first is asked for, so that graphs are freed in turn.

    Attributes:
        over: whether it is known that no other phase follows.
    """

    def __init__(self, function: Callable[[Batch, RunContext], Any], batch: Batch, ctx: RunContext) -> None:
        self._start: Callable[[], Any] = partial(function, batch, ctx)
        self._rest: Iterator[Terms | Share | Gather] | None = None
        self.over = False

    def send(self, answer: Any) -> Terms | Share | Gather | None:
        """The next phase, which gets an answer to what the one before it shared; ``None`` after the last."""
        if self.over:
            return None
        if self._rest is None:
            made = self._start()
            if isinstance(made, Terms):
                self.over = True
                return made
            self._rest = as_phases(made, self._who())
        try:
            found = self._rest.send(answer) if isinstance(self._rest, Generator) else next(self._rest)
        except StopIteration:
            self.over = True
            return None
        if not isinstance(found, (Terms, Share, Gather)):
            raise phase_error(self._who(), "yielded", found)
        return found

    def _who(self) -> str:
        function: Any = getattr(self._start, "func", None)
        return str(getattr(function, "__qualname__", "step"))


def add_ons(method: Method) -> dict[str, Objective]:
    """The method's own objectives (when it is a mapping of them) and the recipe's add-ons."""
    own = getattr(method, "objectives", None)
    mine = dict(own) if isinstance(own, dict) else {}
    clash = sorted(set(mine) & set(method.setup.objectives))
    if clash:
        raise ConfigError(
            f"objectives.{clash[0]}", "the method already has an objective of that name", remedy="choose another name"
        )
    return {**mine, **method.setup.objectives}


def _sum_shares(shares: list[Share]) -> dict[str, Tensor]:
    """The sums over micro-batches and processes."""
    return {n: dist.sum_over_ranks(torch.stack([s[n].detach() for s in shares]).sum(0)) for n in shares[0]}


def _norm(grads: Iterable[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tuple(grads))))


__all__ = ["Phases", "Seen", "Stepper", "add_ons"]
