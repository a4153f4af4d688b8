"""The one loop. It never knows a method: it gives a method its context, and does what its terms say.

A step: the items of the batch are a function of the step's number; the method's step yields phases; each phase is one
backward of the weighted sum of its terms divided by the global counts, one sum of gradients over processes, one check
that everything is finite, one clip per role and one optimiser step of the roles that its terms may update.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from limbeck.core import distributed as dist
from limbeck.core import interrupt, store
from limbeck.core.component import Settings
from limbeck.core.errors import ConfigError, NonFinite, Stopped
from limbeck.core.method import Batch, Context, Data, Method, Objective, Query, Share, Stage, Term, Terms, as_phases
from limbeck.core.optim import Optim
from limbeck.core.random import Draws, Stream, key_of, seed_modules
from limbeck.core.role import Role
from limbeck.core.signal import Signal, through

Precision = Literal["fp32", "bf16"]


class EngineSettings(Settings):
    """Where and how the loop runs. Nothing here changes what is learnt, up to rounding.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        devices: processes on this machine; above 1 the command relaunches itself under torchrun.
        accumulate: micro-batches per optimiser step; the batch is cut, the result is the same.
        precision: ``fp32``, or ``bf16`` for the forward passes (losses and statistics stay in float32).
        workers: loader processes; 0 fetches in the loop. Any number gives the same batches.
        compile: compile the networks with torch.compile.
        save_every: steps between checkpoints; 0 saves by the clock alone.
        save_minutes: minutes between checkpoints.
        keep: how many checkpoints are kept.
        log_every: steps between log lines.
        eval_every: steps between evaluations on the validation split; 0 evaluates at the end alone.
        guard: stop before a step that is not finite.
        shard: roles (``student``, ``teacher``, ...) whose parameters, gradients and optimiser state are split over the
            processes, for networks too large for one device; with one process nothing is split.
    """

    def __init__(
        self,
        device: str = "auto",
        devices: int = 1,
        accumulate: int = 1,
        precision: Precision = "fp32",
        workers: int = 0,
        compile: bool = False,
        save_every: int = 0,
        save_minutes: float = 5.0,
        keep: int = 2,
        log_every: int = 20,
        eval_every: int = 0,
        guard: bool = True,
        shard: tuple[str, ...] = (),
    ) -> None:
        for name, value, low in (
            ("devices", devices, 1),
            ("accumulate", accumulate, 1),
            ("workers", workers, 0),
            ("save_every", save_every, 0),
            ("keep", keep, 1),
            ("log_every", log_every, 1),
            ("eval_every", eval_every, 0),
        ):
            if value < low:
                raise ValueError(f"{name} must be {low} or more")
        if not save_minutes > 0:
            raise ValueError("save_minutes must be above 0")
        self.device, self.devices, self.accumulate = device, devices, accumulate
        self.precision: Precision = precision
        self.workers, self.compile = workers, compile
        self.save_every, self.save_minutes, self.keep = save_every, save_minutes, keep
        self.log_every, self.eval_every, self.guard = log_every, eval_every, guard
        self.shard = tuple(shard)


class RunContext:
    """What a step may ask (see ``limbeck.core.method.Context``). One per micro-batch; cheap."""

    def __init__(self, engine: Engine, method: Method, stage: Stage, device: torch.device) -> None:
        self._engine, self._method, self.task = engine, method, method.task
        self.stage, self.step, self.total = stage.name, 0, stage.steps or 0
        self.seed, self.device = engine.seed, device
        self.roles = method.roles
        self.scope = stage.scope
        self.draws = Draws(engine.seed, (stage.scope,), device)
        self.signals: dict[str, Signal] = {}

    def at(self, step: int) -> RunContext:
        """The context of one micro-batch of one step."""
        made = object.__new__(
            RunContext
        )  # once a step: copy.copy goes through pickle's protocol and takes ten times as long
        made.__dict__.update(self.__dict__)
        made.step, made.signals = step, {}
        made.draws = Draws(self.seed, (self.scope, step), self.device)
        return made

    def _role(self, name: str) -> Role:
        try:
            return self.roles[name]
        except KeyError:
            raise ConfigError.unknown("role", name, self.roles, "role") from None

    def _graph(self, role: Role, grad: bool | None) -> contextlib.AbstractContextManager[Any]:
        wanted = role.mode == "trained" if grad is None else grad
        return contextlib.nullcontext() if wanted and torch.is_grad_enabled() else torch.no_grad()

    def call(self, role: str, *args: Any, grad: bool | None = None, **kwargs: Any) -> Any:
        """Call a role's module: with a graph when it is trained, without otherwise, unless ``grad`` says."""
        r = self._role(role)
        with self._graph(r, grad), self._engine.autocast():
            return _plain(r.call(*args, **kwargs))

    def signal(self, role: str, batch: Batch, taps: Sequence[str] = (), grad: bool | None = None) -> Signal:
        """Feed a batch to a role through its contract; outputs in the task's class order, and tapped activations."""
        r = self._role(role)
        answer = getattr(r.module, "answer", None)
        if answer is not None:
            signal: Signal = answer(batch, tuple(dict.fromkeys((*r.wanted, *taps))))
        else:
            tap = r.taps(tuple(taps)) if isinstance(r.module, nn.Module) else None
            feed = r.feed or self.task.feed
            fed = batch
            if "x" in batch and isinstance(batch["x"], Tensor):
                fed = {**batch, "x": r.contract.inputs(batch["x"])}
            with self._graph(r, grad), self._engine.autocast(), tap or contextlib.nullcontext():
                out = r.contract.outputs(feed(r.call, fed))
            signal = Signal(out, dict(tap.acts) if tap else {})
        self.signals[role] = signal
        return signal

    def through(self, role: str) -> contextlib.AbstractContextManager[nn.Module]:
        """Graph to the role's input, parameters frozen, evaluation mode."""
        return through(self._role(role).module)

    def artifact(self, stage: str, item: str) -> Any:
        """What an item of an earlier stage left."""
        return store.load_tree(self._engine.item_folder(self._method, stage, item))

    def items(self, stage: str) -> list[str]:
        """The ids of an earlier stage's items."""
        for s in self._engine.stages:
            if s.name == stage and s.items is not None:
                return list(s.items(self))
        raise ConfigError.unknown("stage", stage, [s.name for s in self._engine.stages], "stage of items")

    def fit(
        self, module: nn.Module, data: Data, loss: Loss, optim: Optim, *, scope: str, queries: Sequence[Query] = ()
    ) -> nn.Module:
        """The one inner loop: train a module in memory (an expert, a fresh network of an evaluation)."""
        return fit(module, data, loss, optim, seed=self.seed, scope=scope, device=self.device, queries=queries)


Loss = Callable[[nn.Module, Batch, RunContext], "Tensor | Term"]


def _plain(out: Any) -> Any:
    """Float32 outputs under autocast: losses and statistics are never taken in a lower precision."""
    if isinstance(out, Tensor) and out.dtype in (torch.bfloat16, torch.float16):
        return out.float()
    return out


class Engine:
    """Runs a method's stages, remembers where it was, and stops before anything is spoilt.

    Args:
        settings: where and how to run.
        seed: the run's seed: every draw's key begins with it.
        folder: where checkpoints and items go; ``None`` keeps nothing (an inner run, a test).
        workspace: where remembered items go, shared between runs.
        logs: called with (stage, step, values) every ``log_every`` steps.
        progress: shows how far it is (``limbeck.core.logs.Progress``).
        evaluate: called every ``eval_every`` steps; returns metrics on the validation split.
        say: prints a sentence.
    """

    def __init__(
        self,
        settings: EngineSettings | None = None,
        seed: int = 0,
        folder: Path | None = None,
        workspace: Path | None = None,
        logs: Any = None,
        progress: Any = None,
        evaluate: Callable[[int], dict[str, float]] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.seed, self.folder, self.workspace = seed, folder, workspace
        self.logs, self.progress, self.evaluate = logs, progress, evaluate
        self.say = say or (lambda text: None)
        self.device = dist.pick_device(self.settings.device)
        dist.start(self.device)
        self.stages: list[Stage] = []
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.seconds: dict[str, float] = {}  # wall time of each stage
        self.meter = _Meter()
        self._mark = ("", 0.0)
        self.checkpoints = store.Checkpoints(folder / "checkpoints", keep=self.settings.keep) if folder else None

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self, method: Method) -> None:
        """All stages, from where an earlier run was interrupted.

        Raises:
            NonFinite: a value was infinite or NaN; nothing was updated by it.
            Stopped: a signal asked to stop; everything is saved.
        """
        self._prepare(method)
        found = self.checkpoints.latest() if self.checkpoints else None
        saved = found[1] if found else None
        reached = int(saved["stage"]) if saved else 0
        for index, stage in enumerate(self.stages):
            ctx = RunContext(self, method, stage, self.device)
            if saved is not None and index == reached and not saved["begun"]:
                # saved between two stages: the next one's `setup` builds on these weights, as it did then
                self._restore(method, saved, {})
                saved = None
            if stage.setup is not None:
                stage.setup(ctx)
                self._place(method)
            if index < reached:
                continue
            if stage.items is not None:
                self._run_items(method, stage, ctx)
            else:
                self._run_steps(method, stage, ctx, saved if index == reached else None, index)
            if stage.finish is not None:
                stage.finish(ctx)
            self.optimisers = {}
            self._save(method, index + 1, 0)
        if saved is not None and reached >= len(self.stages):
            self._restore(method, saved, {})
        self._whole(method)

    def restore(self, method: Method, saved: Any) -> None:
        """Bring a bound method to where a checkpoint stands, without running on."""
        self._prepare(method)
        for stage in self.stages[: int(saved["stage"]) + bool(saved["begun"])]:
            if stage.setup is not None:
                stage.setup(RunContext(self, method, stage, self.device))
                self._place(method)
        self._restore(method, saved, {})
        self._whole(method)

    def _prepare(self, method: Method) -> None:
        self._place(method)
        self._prepare_objectives(method)
        self.stages = method.stages()
        names = [s.name for s in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must be unique: {names}")
        for name, role in method.roles.items():
            paths = method.student_taps if name == "student" else method.teacher_taps if name == "teacher" else ()
            if paths:
                role.want(tuple(paths))
            role.compile = self.settings.compile
        if dist.world() > 1:
            for name, role in method.roles.items():
                if isinstance(role.module, nn.Module):
                    dist.same_everywhere(store.fingerprint(role.module), f"the first state of role {name!r}")
        for name in self.settings.shard:
            if name not in method.roles or not isinstance(method.roles[name].module, nn.Module):
                networks = [n for n, r in method.roles.items() if isinstance(r.module, nn.Module)]
                raise ConfigError.unknown("engine.shard", name, networks, "network of this method")
            method.roles[name].shard = True
        for role in method.roles.values():
            if role.mode == "averaged" and role.of in method.roles and method.roles[role.of].shard:
                role.shard = True  # an average is taken piece by piece, so it is cut alike
            if role.shard and dist.world() > 1 and isinstance(role.module, nn.Module):
                role.split()

    def _whole(self, method: Method) -> None:
        """Sharded roles as plain modules again, for judging and saving."""
        for role in method.roles.values():
            before = role.module
            if role.join():
                for built in (method.setup.student, method.setup.teacher):
                    if built is not None and built.module is before:
                        built.module = role.module

    def _place(self, method: Method) -> None:
        for role in method.roles.values():
            if isinstance(role.module, nn.Module):
                role.module.to(self.device)
                role.freeze()
            elif hasattr(role.module, "to"):
                role.module.to(self.device)

    def _prepare_objectives(self, method: Method) -> None:
        """One dry batch: objectives check shapes and make their projectors, which become roles."""
        objectives = all_objectives(method)
        if not objectives:
            return
        for name, objective in objectives.items():
            objective.name = name
            if objective.needs_teacher and "teacher" not in method.roles:
                raise ConfigError(f"objectives.{name}", "it needs a teacher, and this run has none")
            if isinstance(method.roles["student"].module, nn.Module):
                method.roles["student"].taps(tuple(objective.student_taps))
            if objective.teacher_taps:
                method.roles["teacher"].want(tuple(objective.teacher_taps))
        ctx = RunContext(self, method, Stage("dry", steps=0), self.device)
        batch = self._to_device(method.task.example(2))
        modes = {
            m: m.training for r in method.roles.values() if isinstance(r.module, nn.Module) for m in r.module.modules()
        }
        for m in modes:
            m.training = False
        with torch.no_grad():
            student = ctx.signal("student", batch)
            teacher = ctx.signal("teacher", batch) if "teacher" in method.roles else None
        for m, was in modes.items():
            m.training = was
        for name, objective in objectives.items():
            seed_modules(key_of(self.seed, "projector", name), self.device)
            projector = objective.prepare(student, teacher, batch)
            if projector is not None:
                method.roles[objective.projector] = Role(projector.to(self.device), "trained")

    # -- stages of items -------------------------------------------------------------------------------------------

    def item_folder(self, method: Method, stage: str, item: str) -> Path:
        """Where an item of a stage is stored."""
        found = next((s for s in self.stages if s.name == stage), None)
        root = self.folder / "items" / stage if self.folder else None
        if found is not None and found.remember is not None and self.workspace is not None:
            root = self.workspace / f"{stage}-{found.remember}"
        if root is None:
            raise ConfigError("engine.folder", "a stage of items needs a folder to keep them in")
        return root / store.safe_name(item)

    def _run_items(self, method: Method, stage: Stage, ctx: RunContext) -> None:
        assert stage.items is not None and stage.work is not None
        ids = list(stage.items(ctx))
        mine = ids[dist.rank() :: dist.world()]
        done = [i for i in mine if store.is_complete(self.item_folder(method, stage.name, i))]
        self._show(stage.name, len(mine), len(done))
        self._mark = (stage.name, time.perf_counter())
        for item in mine:
            if item in done:
                continue
            if interrupt.requested() is not None:  # processes work on unequal lists here: each stops by itself
                raise Stopped(interrupt.requested() or 0)
            # what is remembered is shared by runs of every seed, so its draws know the item alone
            seed = self.seed if stage.remember is None else 0
            seed_modules(key_of(seed, stage.name, item), self.device)
            inner = ctx.at(0)
            inner.seed, inner.draws = seed, Draws(seed, (stage.name, item), self.device)
            store.save_tree(self.item_folder(method, stage.name, item), stage.work(item, inner))
            self._advance(1)
        self._tick()
        dist.barrier()

    # -- stages of steps -------------------------------------------------------------------------------------------

    def _run_steps(self, method: Method, stage: Stage, ctx: RunContext, saved: Any, index: int) -> None:
        total, settings = int(stage.steps or 0), self.settings
        trained = {n for n, r in method.roles.items() if r.mode == "trained" and r.parameters()}
        optim = dict(stage.optim)
        for name in trained - set(optim):
            if name.startswith("projector:") and "student" in optim:
                optim[name] = optim["student"]
        self.optimisers = {n: o.build(method.roles[n].parameters().values()) for n, o in optim.items() if n in trained}
        start, begun, self.meter = 0, False, _Meter()
        if saved is not None:
            self._restore(method, saved, self.optimisers)
            start, begun = int(saved["step"]), bool(saved["begun"])
            self.meter.sums, self.meter.counts = saved["meter"]
        if stage.begin is not None and not begun:
            stage.begin(ctx)
            self._place(method)
            # `begin` may have replaced modules: the optimisers must hold the parameters that will be trained
            self.optimisers = {
                n: o.build(method.roles[n].parameters().values()) for n, o in optim.items() if n in trained
            }
        if stage.batch_size < dist.world() * settings.accumulate and stage.data is not None:
            raise ConfigError(
                "train.batch_size",
                f"stage {stage.name!r} cuts {stage.batch_size} items over {dist.world()} processes x {settings.accumulate} micro-batches",
                expected=f"at least {dist.world() * settings.accumulate}",
            )
        frozen = self._fingerprints(method)
        self._show(stage.name, total, start)
        if self.logs is not None and dist.rank() == 0:
            self.logs.resume(stage.name, start + 1)
        watching = type(method).observe is not Method.observe
        meter = self.meter
        saved_at, late = time.monotonic(), False
        self._mark = (stage.name, time.perf_counter())
        for step, micro in zip(range(start, total), self._batches(stage, start, total), strict=False):
            late = self._poll(
                partial(self._save, method, index, step, begun=True),
                time.monotonic() - saved_at > 60 * settings.save_minutes,
            )
            for name, opt in self.optimisers.items():
                rate = optim[name].rate(step, total)
                for group in opt.param_groups:
                    group["lr"] = rate
            seen, counts = self._step(method, stage, ctx, step, total, micro, optim)
            meter.add(seen, counts)
            if watching:
                method.observe(_means(seen, counts), ctx.at(step))
            for role in method.roles.values():
                if role.mode == "averaged" and role.of in method.roles:
                    role.follow(method.roles[role.of], step, total)
            done = step + 1
            self._advance(1)
            if done % settings.log_every == 0 or done == total:
                values = meter.read()
                if self.logs is not None and dist.rank() == 0:
                    rates = {f"lr/{n}" if len(optim) > 1 else "lr": optim[n].rate(step, total) for n in self.optimisers}
                    self.logs.log(stage.name, done, {**rates, **values})
                if self.progress is not None:
                    self.progress.advance(0, **values)
            judged = settings.eval_every and (done % settings.eval_every == 0 or done == total)
            if judged and self.evaluate is not None:
                values = {f"valid/{k}": v for k, v in self.evaluate(done).items()}
                if self.logs is not None and dist.rank() == 0:
                    self.logs.log(stage.name, done, values)
            due = settings.save_every and done % settings.save_every == 0
            if self.checkpoints and done < total and (due or late):
                self._save(method, index, done, begun=True)
                saved_at = time.monotonic()
        self._tick()
        changed = [n for n, h in self._fingerprints(method).items() if frozen[n] != h]
        if changed:
            raise RuntimeError(
                f"frozen roles changed during stage {stage.name!r}: {changed}; this is a defect of the method"
            )

    def _step(
        self,
        method: Method,
        stage: Stage,
        ctx: RunContext,
        step: int,
        total: int,
        micro: list[Batch],
        optim: dict[str, Optim],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | float]]:
        """One optimiser step. Returns sums and counts of everything shown, over all micro-batches and processes."""
        single = len(micro) == 1 and dist.world() == 1
        contexts = [ctx.at(step) for _ in micro]
        phases: list[Generator[Terms | Share, Any, None]] = []
        batches: list[Batch] = []
        function = stage.step or method.step
        queries = [*method.setup.queries.values(), *stage.queries]
        for batch, c in zip(micro, contexts, strict=True):
            batch = self._to_device(batch)
            for query in queries:
                batch = query(batch, c)
            batches.append(batch)
            phases.append(_lazily(function, batch, c))
        known = {} if single else self._known(method, batches)
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor | float] = {}
        number = 0
        answers: list[Any] = [None] * len(phases)
        while True:
            shares: list[Share] = []
            held: list[tuple[Terms, RunContext]] = []
            touched: dict[str, None] = {}
            flags: list[Tensor] = []
            self._clear()
            ended = 0
            for j, phase in enumerate(phases):
                # dropout and its like draw from the global generator: keyed by step, phase and micro-batch
                seed_modules(key_of(self.seed, stage.scope, step, number, dist.rank() * len(micro) + j), self.device)
                try:
                    terms = phase.send(answers[j])
                except StopIteration:
                    ended += 1
                    continue
                if isinstance(terms, Share):
                    shares.append(terms)
                    continue
                self._add_objectives(method, terms, batches[j], contexts[j])
                touched.update((r, None) for t in terms.values() for r in t.to)
                if single:
                    totals, own = self._tally(terms, sums, counts)
                    flags.append(self._backward(terms, totals, own))
                elif all(self._global_count(n, t, known, batches[j]) is not None for n, t in terms.items()):
                    totals, _ = self._tally(terms, sums, counts)
                    shared = {n: self._global_count(n, t, known, batches[j]) for n, t in terms.items()}
                    flags.append(self._backward(terms, totals, shared))
                else:
                    held.append((terms, contexts[j]))
            if ended == len(phases):
                break
            answers = [None] * len(phases)
            if shares:
                if len(shares) != len(phases):
                    raise RuntimeError(
                        "the micro-batches of one step disagree on what they share; this is a defect of the method"
                    )
                answers = [_sum_shares(shares)] * len(phases)
                continue
            if ended:
                raise RuntimeError(
                    "the micro-batches of one step yielded different numbers of phases; this is a defect of the method"
                )
            if held:
                if len(held) != len(phases):
                    raise RuntimeError(
                        "a term has one value an item in some micro-batches and not in others; name it in `counts`"
                    )
                total_counts = self._sum_counts(held)
                for terms, _ in held:
                    totals, _ = self._tally(terms, sums, counts)
                    flags.append(self._backward(terms, totals, total_counts))
            self._update(method, list(touched), optim, step, stage, flags, batches, sums, counts)
            number += 1
        if dist.world() > 1:
            names = sorted(sums)
            packed = torch.stack(
                [
                    v
                    for n in names
                    for v in (sums[n].to(self._wide), torch.as_tensor(counts[n], dtype=self._wide, device=self.device))
                ]
            )
            dist.sum_over_ranks(packed)
            sums = {n: packed[2 * i].float() for i, n in enumerate(names)}
            counts = {n: packed[2 * i + 1] for i, n in enumerate(names)}
        return sums, counts

    def _known(self, method: Method, batches: list[Batch]) -> dict[str, Any]:
        """Global counts that the batches alone tell: what the method names, and the number of items."""
        local: dict[str, Any] = {}
        for batch in batches:
            for name, n in {**method.counts(batch), "": len(batch["item"])}.items():
                local[name] = local.get(name, 0) + n
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

    def _global_count(self, name: str, term: Term, known: dict[str, Any], batch: Batch) -> Tensor | float | None:
        """The count of a term over everything, where this micro-batch alone tells it; ``None``: all must be seen first.

        Told are what the method names, and one value an item. Of anything else the number may differ from one
        micro-batch to the next: masks, sums already taken, padded lengths, pairs of items.
        """
        if name in known and name:
            return known[name]
        plain = term.where is None and term.count is None and term.values.ndim == 1
        return known.get("") if plain and len(term.values) == len(batch["item"]) else None

    def _sum_counts(self, held: list[tuple[Terms, RunContext]]) -> dict[str, Tensor]:
        names = sorted({n for terms, _ in held for n in terms})
        packed = torch.zeros(len(names), dtype=self._wide, device=self.device)
        for terms, _ in held:
            for i, n in enumerate(names):
                if n in terms:
                    packed[i] += terms[n].n()
        dist.sum_over_ranks(packed)
        return {n: packed[i] for i, n in enumerate(names)}

    def _backward(self, terms: Terms, totals: dict[str, Tensor], counts: dict[str, Any]) -> Tensor:
        loss: Tensor | None = None
        for name, term in terms.items():
            count = counts[name]
            if isinstance(count, Tensor) or isinstance(term.weight, Tensor):
                scale = count.clamp(min=1).to(term.values.dtype) if isinstance(count, Tensor) else max(1, count)
                part = totals[name] * term.weight / scale
            else:
                part = totals[name] * (term.weight / max(1, count))
            loss = part if loss is None else loss + part
        if loss is None:
            return torch.zeros((), device=self.device)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    def _tally(
        self, terms: Terms, sums: dict[str, Tensor], counts: dict[str, Tensor | float]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Add what is shown to the sums. Returns each term's total, with its graph, and how many values count in it."""
        totals = {n: t.total() for n, t in terms.items()}
        own: dict[str, Any] = {n: t.n() for n, t in terms.items()}
        with torch.no_grad():
            pairs: list[tuple[str, Tensor, Tensor | float]] = [
                (n, totals[n].detach() if t.show is None else t.shown(), own[n]) for n, t in terms.items()
            ]
            pairs += [(n, self._scalar(s), c) for n, (s, c) in terms.metrics.items()]
            for name, s, n in pairs:
                sums[name] = sums[name] + s if name in sums else s
                counts[name] = counts[name] + n if name in counts else n
        return totals, own

    @property
    def _wide(self) -> torch.dtype:
        """What counts are summed in: double precision, where the device has it."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def _scalar(self, value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(self.device, torch.float32)
        return torch.full((), float(value), device=self.device)  # filled there: copying it would synchronise

    def _clear(self) -> None:
        for opt in self.optimisers.values():
            for p in _held_by(opt):
                p.grad = None

    def _add_objectives(self, method: Method, terms: Terms, batch: Batch, ctx: RunContext) -> None:
        """Add-ons: evaluated once a micro-batch, after the first phase that showed the student's signal."""
        extra = method.setup.objectives
        clash = sorted(set(extra) & set(terms))
        if clash:
            raise ConfigError(
                f"objectives.{clash[0]}", "the method already has a term of that name", remedy="choose another name"
            )
        if not extra or "student" not in ctx.signals or getattr(ctx, "added", False):
            return
        ctx.added = True  # type: ignore[attr-defined]
        teacher = ctx.signals.get("teacher")
        for name, objective in extra.items():
            if objective.needs_teacher and teacher is None:
                teacher = ctx.signal("teacher", batch)
            terms[name] = objective(ctx.signals["student"], teacher, batch, ctx)

    def _update(
        self,
        method: Method,
        touched: list[str],
        optim: dict[str, Optim],
        step: int,
        stage: Stage,
        flags: list[Tensor],
        batches: list[Batch],
        sums: dict[str, Tensor],
        counts: dict[str, Tensor | float],
    ) -> None:
        missing = [r for r in touched if r not in self.optimisers]
        if missing:
            raise ConfigError(
                "stage.optim",
                f"stage {stage.name!r} updates {missing}, which no optimiser holds",
                expected="an optimiser for every role that a term may update",
            )
        params = {r: _held_by(self.optimisers[r]) for r in touched}
        for r in touched:
            if not method.roles[r].shard:
                dist.sum_gradients(params[r])
        grads = {r: [p.grad for p in params[r] if p.grad is not None] for r in touched}
        norms = {r: dist.gathered(_norm(g)) for r, g in grads.items() if g}
        if self.settings.guard:
            checked = [n.float() for n in norms.values()]
            if flags:
                checked.append(dist.sum_over_ranks(sum(flags[1:], flags[0]).float()))
            # one number decides; reading it is the only synchronisation of a step
            if checked and not math.isfinite(sum(checked[1:], checked[0]).item()):
                self._not_finite(method, stage, step, batches, sums, counts, norms)
        for r in touched:
            clip = optim[r].clip
            if clip is not None and r in norms:
                scale = (clip / (norms[r] + 1e-6)).clamp(max=1.0)
                torch._foreach_mul_(grads[r], scale)
            self.optimisers[r].step()

    def _not_finite(
        self,
        method: Method,
        stage: Stage,
        step: int,
        batches: list[Batch],
        sums: dict[str, Tensor],
        counts: dict[str, Tensor | float],
        norms: dict[str, Tensor],
    ) -> None:
        means = _means(sums, counts)
        bad_terms = [n for n, v in means.items() if not math.isfinite(v)]
        bad_roles = {
            r: [
                n
                for n, p in method.roles[r].parameters().items()
                if p.grad is not None and not bool(torch.isfinite(p.grad).all())
            ][:5]
            for r in norms
            if not bool(torch.isfinite(norms[r]))
        }
        items = torch.cat([b["item"].reshape(-1) for b in batches]).tolist()
        bad_inputs = [
            k
            for b in batches
            for k, v in b.items()
            if isinstance(v, Tensor) and v.is_floating_point() and not bool(torch.isfinite(v).all())
        ]
        # every process is here, for what decided was summed over them: they tell each other what they hold
        own = (bad_terms, items, bad_inputs)
        told = dist.told_by_all(own)
        # statistics of the whole batch carry NaN everywhere, so a process whose input is not finite speaks first
        writer = max(range(len(told)), key=lambda r: (bool(told[r][2]), bool(told[r][0]), -r))
        bad_terms = list(dict.fromkeys(n for terms, _, _ in told for n in terms))
        _, items, bad_inputs = told[writer]
        states = {
            n: {k: dist.gathered(v) for k, v in r.module.state_dict().items()}
            for n, r in method.roles.items()
            if r.mode == "trained"
        }
        where = ""
        if self.folder is not None:
            where = f"; the batch and the weights before the step are in {self.folder / 'failure'}"
        if self.folder is not None and dist.rank() == writer:
            folder = self.folder / "failure"
            store.save_tree(
                folder,
                {
                    "stage": stage.name,
                    "step": step,
                    "seed": self.seed,
                    "terms": means,
                    "gradients": bad_roles,
                    "batches": [
                        {k: v for k, v in b.items() if isinstance(v, (Tensor, int, float, str))} for b in batches
                    ],
                    "roles": states,
                    "state": method.state,
                },
            )
        said = f"step {step} of stage {stage.name!r} is not finite: "
        said += f"term {', '.join(bad_terms)}" if bad_terms else "the gradient"
        if bad_roles:
            said += "; gradient of " + ", ".join(f"role {r!r} ({', '.join(names)})" for r, names in bad_roles.items())
        if bad_inputs:
            said += f"; the batch itself is not finite in {sorted(set(bad_inputs))}"
        raise NonFinite(
            f"stage {stage.name}",
            f"{said}; items {items[:16]}{'...' if len(items) > 16 else ''}; nothing was updated{where}",
            remedy="lower train.lr, set train.clip=1, or look at those items",
        )

    # -- data ------------------------------------------------------------------------------------------------------

    def _batches(self, stage: Stage, start: int, total: int) -> Iterator[list[Batch]]:
        parts = dist.world() * self.settings.accumulate
        n = len(stage.data) if stage.data is not None else stage.batch_size * max(1, total)
        stream = Stream(n, stage.batch_size, self.seed, stage.scope, stage.shuffle and stage.data is not None)
        plan = _Plan(stage.data, stream, dist.rank(), self.settings.accumulate, parts, start, total)
        if self.settings.workers == 0 or stage.data is None:
            for i in range(len(plan)):
                yield plan[i]
            return
        loader = torch.utils.data.DataLoader(
            plan,
            batch_size=None,
            num_workers=self.settings.workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=2,
        )
        try:
            yield from loader
        except RuntimeError as error:
            # schedulers send SIGTERM to the whole group: workers die first, and the loader raises for it
            if interrupt.requested() is None or "worker" not in str(error):
                raise

    def _to_device(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        return {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    # -- state -----------------------------------------------------------------------------------------------------

    def _fingerprints(self, method: Method) -> dict[str, str]:
        return {
            n: store.fingerprint(r.module)
            for n, r in method.roles.items()
            if r.mode == "frozen" and not r.batch_stats and isinstance(r.module, nn.Module)
        }

    def _tick(self) -> None:
        """Book the time since the last mark to its stage: loops alone, no imports and no checkpoints read."""
        name, since = self._mark
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - since
        self._mark = (name, now)

    def _save(self, method: Method, index: int, step: int, begun: bool = False) -> None:
        if self.checkpoints is None:
            return
        if begun:
            self._tick()
        done = sum(max(1, s.steps or 1) for s in self.stages[:index]) + step
        roles = {
            n: {k: dist.gathered(v) for k, v in r.module.state_dict().items()}
            for n, r in method.roles.items()
            if r.mode != "frozen" or r.changed
        }
        optimisers = {n: _optimiser_state(o) for n, o in self.optimisers.items()}
        tree = {
            "stage": index,
            "stage_name": self.stages[index].name if index < len(self.stages) else "",
            "step": step,
            "begun": begun,
            "seed": self.seed,
            "roles": roles,
            "optimisers": optimisers,
            "state": method.state,
            "meter": (self.meter.sums, self.meter.counts),
            "seconds": self.seconds,
        }
        if dist.world() > 1:
            dist.same_everywhere(store.hash_tree(_without_tensors(method.state)), "the method's state")
        if dist.rank() == 0:
            self.checkpoints.save(done, tree)
        dist.barrier()

    def _restore(self, method: Method, saved: Any, optimisers: dict[str, torch.optim.Optimizer]) -> None:
        for name, state in saved["roles"].items():
            role = method.roles.get(name)
            if role is None:
                raise ConfigError(
                    "checkpoint",
                    f"it holds a role {name!r} that this method does not have",
                    expected=f"roles {sorted(method.roles)}",
                    remedy="use --force, or the recipe that made it",
                )
            own = role.module.state_dict()
            if dist.world() > 1 and role.shard:
                state = {k: dist.scattered(v, own[k]) for k, v in state.items()}
            store.load_strict(role.module, state, f"role {name!r} of the checkpoint")
            role.changed = role.mode == "frozen"
            role.freeze()
        for name, opt in optimisers.items():
            if name in saved["optimisers"]:
                _restore_optimiser(opt, saved["optimisers"][name])
        method.state = saved["state"]
        self.seconds = dict(saved["seconds"])
        self._place(method)

    def discard_checkpoints(self) -> None:
        """Remove the checkpoints of a stage whose result is kept elsewhere."""
        if self.checkpoints is not None:
            self.checkpoints.clear()

    def time_steps(self, method: Method, steps: int) -> float | None:
        """Median seconds of a step of the first stage that has steps, by taking a few; for ``limbeck plan``."""
        stage = next((s for s in self.stages if s.steps and s.data is not None), None)
        if stage is None or stage.setup is not None:
            return None
        ctx = RunContext(self, method, stage, self.device)
        if stage.begin is not None:
            stage.begin(ctx)
        trained = {n for n, r in method.roles.items() if r.mode == "trained" and r.parameters()}
        optim = {n: o for n, o in stage.optim.items() if n in trained}
        optim |= {n: stage.optim["student"] for n in trained - set(optim) if n.startswith("projector:")}
        self.optimisers = {n: o.build(method.roles[n].parameters().values()) for n, o in optim.items()}
        times = []
        for step, micro in enumerate(self._batches(stage, 0, steps + 1)):
            began = time.perf_counter()
            self._step(method, stage, ctx, step, steps, micro, optim)
            times.append(time.perf_counter() - began)
        return sorted(times[1:])[len(times[1:]) // 2]

    # -- people ----------------------------------------------------------------------------------------------------

    def _poll(self, save: Callable[[], None], late: bool = False) -> bool:
        """Stop where a signal asked for it. Returns whether any process finds it time to save."""
        asked = interrupt.requested()
        if dist.world() > 1:
            both = torch.tensor([float(asked or 0), float(late)], device=self.device)
            number, clock = dist.largest_over_ranks(both).tolist()
            asked, late = int(number) or None, bool(clock)
        if asked is not None:
            save()
            raise Stopped(asked)
        return late

    def _show(self, name: str, total: int, done: int) -> None:
        if self.progress is not None:
            self.progress.stage(name, total, done)

    def _advance(self, n: int) -> None:
        if self.progress is not None:
            self.progress.advance(n)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of forward passes."""
        if self.settings.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def _sum_shares(shares: list[Share]) -> dict[str, Tensor]:
    """The sums over micro-batches and processes."""
    return {n: dist.sum_over_ranks(torch.stack([s[n].detach() for s in shares]).sum(0)) for n in shares[0]}


def _lazily(
    function: Callable[[Batch, RunContext], Any], batch: Batch, ctx: RunContext
) -> Generator[Terms | Share, Any, None]:
    """The phases of one micro-batch; nothing runs before the first is asked for, so that graphs are freed in turn."""
    yield from as_phases(function(batch, ctx))


class _Plan(torch.utils.data.Dataset[list[Batch]]):
    """Step by step, the micro-batches of this process: a pure function of the step's number."""

    def __init__(
        self, data: Data | None, stream: Stream, rank: int, accumulate: int, parts: int, start: int, total: int
    ) -> None:
        self.data, self.stream = data, stream
        self.rank, self.accumulate, self.parts = rank, accumulate, parts
        self.start, self.total = start, total

    def __len__(self) -> int:
        return max(0, self.total - self.start)

    def __getitem__(self, index: int) -> list[Batch]:
        ids, views = self.stream.items(self.start + index)
        if self.parts == 1:
            return [self._fetch(ids, views)]
        low = self.rank * self.accumulate
        pieces = list(zip(ids.tensor_split(self.parts), views.tensor_split(self.parts), strict=True))
        return [self._fetch(i, v) for i, v in pieces[low : low + self.accumulate]]

    def _fetch(self, ids: Tensor, views: Tensor) -> Batch:
        batch = dict(self.data.fetch(ids)) if self.data is not None else {}
        batch["item"], batch["view"] = ids, views
        return batch


class _Meter:
    """Running means between log lines, kept on the device: reading them is what synchronises."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor | float] = {}

    def add(self, sums: dict[str, Tensor], counts: dict[str, Tensor | float]) -> None:
        for n, s in sums.items():
            self.sums[n] = self.sums[n] + s if n in self.sums else s
            self.counts[n] = self.counts[n] + counts[n] if n in self.counts else counts[n]

    def read(self) -> dict[str, float]:
        means = _means(self.sums, self.counts)
        self.sums, self.counts = {}, {}
        return means


def _means(sums: dict[str, Tensor], counts: dict[str, Tensor | float]) -> dict[str, float]:
    return {n: float(s) / max(1.0, float(counts[n])) for n, s in sums.items()}


def _held_by(opt: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What an optimiser moves: a list to walk through, where asking the module would search it at every step."""
    return [p for group in opt.param_groups for p in group["params"]]


def _norm(grads: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))


def all_objectives(method: Method) -> dict[str, Objective]:
    """The method's own objectives (when it is a mapping of them) and the recipe's add-ons."""
    own = getattr(method, "objectives", None)
    mine = dict(own) if isinstance(own, dict) else {}
    clash = sorted(set(mine) & set(method.setup.objectives))
    if clash:
        raise ConfigError(
            f"objectives.{clash[0]}", "the method already has an objective of that name", remedy="choose another name"
        )
    return {**mine, **method.setup.objectives}


def _optimiser_state(opt: torch.optim.Optimizer) -> list[dict[str, Any]]:
    params = _held_by(opt)
    return [
        {k: dist.gathered(v) if isinstance(v, Tensor) else v for k, v in opt.state.get(p, {}).items()} for p in params
    ]


def _restore_optimiser(opt: torch.optim.Optimizer, saved: list[dict[str, Any]]) -> None:
    """Assign state directly: ``load_state_dict`` would cast it to the parameters' dtype (engine notes)."""
    params = _held_by(opt)
    if len(params) != len(saved):
        raise ConfigError(
            "checkpoint",
            f"the optimiser's state is for {len(saved)} tensors, the role has {len(params)}",
            remedy="use --force, or the recipe that made it",
        )
    for p, state in zip(params, saved, strict=True):
        if state:
            opt.state[p] = {k: _lay(v, p) if isinstance(v, Tensor) else v for k, v in state.items()}


def _lay(value: Tensor, p: nn.Parameter) -> Tensor:
    if value.shape == p.shape:
        return dist.scattered(value.to(p.device), p)
    # step counters live where torch makes them: on the CPU unless the optimiser is capturable or fused
    return value


def _without_tensors(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(k): _without_tensors(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_without_tensors(v) for v in tree]
    return "<tensor>" if isinstance(tree, Tensor) else tree


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
        NonFinite: the loss is not finite.
    """
    device = torch.device(device)
    module.to(device).train()
    params = [p for p in module.parameters() if p.requires_grad]
    opt = optim.build(params)
    stream = Stream(len(data), optim.batch_size, seed, scope)
    ctx = _FitContext(seed, scope, device, optim.steps)
    for step in range(optim.steps):
        ids, views = stream.items(step)
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in data.fetch(ids).items()}
        batch["item"], batch["view"] = ids.to(device), views.to(device)
        seed_modules(key_of(seed, scope, step), device)
        ctx.move(step)
        for query in queries:
            batch = query(batch, cast(Context, ctx))
        value = loss(module, batch, ctx)  # type: ignore[arg-type]
        term = value if isinstance(value, Term) else Term(value)
        n = term.n()
        total = term.total() * term.weight / (n.clamp(min=1) if isinstance(n, Tensor) else max(1, n))
        opt.zero_grad(set_to_none=True)
        total.backward()
        if not bool(torch.isfinite(total.detach())):
            raise NonFinite(scope, f"the loss of inner step {step} is not finite", remedy="lower its learning rate")
        if optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(params, optim.clip)
        for group in opt.param_groups:
            group["lr"] = optim.rate(step)
        opt.step()
        if each is not None:
            each(step + 1, module)
    return module.eval()


class _FitContext:
    """The context of an inner loop: draws and the step's number; there are no roles, and the loss is the caller's."""

    task = None

    def __init__(self, seed: int, scope: str, device: torch.device, total: int) -> None:
        self.seed, self.stage, self.device, self.total, self.step = seed, scope, device, total, 0
        self.roles: dict[str, Role] = {}
        self.signals: dict[str, Signal] = {}
        self.draws = Draws(seed, (scope, 0), device)

    def move(self, step: int) -> None:
        self.step = step
        self.draws = Draws(self.seed, (self.stage, step), self.device)
