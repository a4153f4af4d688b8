"""The one loop. It never knows a method: it gives a method its context, and does what its terms say.

A run is its stages, each remembered. A step: the items of the batch are a function of the step's number
(``limbeck.engine.batches``); the method's step yields phases; each phase is one backward pass of the weighted sum of its
terms divided by the global counts, one sum of gradients over processes, one check that everything is finite
(``limbeck.engine.guard``), one clip per role and one optimiser step of the roles that its terms may update
(``limbeck.engine.step``). Here are the stages, what is saved of them, and what people see.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.engine import distributed as dist
from limbeck.engine import identity, interrupt
from limbeck.engine.batches import batches, chances, pieces, to_device
from limbeck.engine.checkpoints import RunState, carried, restore_optimiser
from limbeck.engine.context import RunContext
from limbeck.engine.coupled import NEEDS_TWO, as_in_training, by_mathematics, layers, one_item, sentences, tried
from limbeck.engine.epochs import Epochs
from limbeck.engine.guard import Guard, reading_is_free
from limbeck.engine.memory import Memory, Watch, of_step
from limbeck.engine.remembered import RESULT
from limbeck.engine.room import bytes_of, telling
from limbeck.engine.rules import Still, same_roles
from limbeck.engine.settings import EngineSettings
from limbeck.engine.stages import check_patterns, learners, reached, tuned
from limbeck.engine.step import Seen, Stepper, add_ons
from limbeck.engine.timing import Timed, Trial, median, wait_for
from limbeck.errors import ConfigError, MethodError, Stopped, first_line
from limbeck.grammar.method import Batch, Method, Query, Stage
from limbeck.grammar.random import Draws, key_of, own_generators, seed_modules
from limbeck.grammar.role import Role, cast
from limbeck.grammar.signal import evaluating
from limbeck.storage import store
from limbeck.storage.memory import need
from limbeck.storage.records import Recorded


def _batch_setting(stage: Stage) -> str:
    """What a recipe calls a stage's batch size."""
    return f"{'teach' if stage.name == 'teacher' else 'train'}.batch_size"


class Engine(RunState):
    """Runs a method's stages, remembers where it was, and stops before anything is spoilt.

    Args:
        settings: where and how to run.
        seed: the run's seed: every draw's key begins with it.
        folder: where checkpoints and items go; ``None`` keeps nothing (an inner run, a test).
        workspace: where remembered items go, shared between runs.
        logs: called with (stage, step, values) every ``log_every`` steps.
        progress: shows how far it is (``limbeck.engine.progress.Progress``).
        evaluate: called every ``eval_every`` steps; returns metrics on the validation split.
        best_step: the step of the best of these evaluations; needed for ``train.patience``.
        say: prints a sentence.
        about: what else entered the run, by the sections of an identity (`limbeck.engine.identity`).
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
        about: Mapping[str, Any] | None = None,
        best_step: Callable[[], int | None] | None = None,
    ) -> None:
        super().__init__(settings, seed, folder, workspace, say, about)
        self.logs, self.progress, self.evaluate, self.best_step = logs, progress, evaluate, best_step
        self.stopped_early: dict[str, int] = {}  # stage -> the step after which `train.patience` ended it
        dist.start(self.device)

    # -- the run ---------------------------------------------------------------------------------------------------

    @own_generators()
    def run(self, method: Method) -> None:
        """All stages, from where an earlier run was interrupted.

        Raises:
            NonFinite: a value was infinite or NaN; no parameter and no optimizer was updated by it. Running statistics
                (BatchNorm) have seen the batch: keeping a copy of them for every step would cost every step.
            Stopped: a signal asked to stop; everything is saved.
        """
        self.prepare(method)
        self._identify(method)
        saved = self._opened(method)
        at = int(saved["stage"]) if saved else 0
        if saved is None and self.checkpoints is not None and self.stages and self.stages[0].items is not None:
            self._save(method, 0, 0, None)  # items that an interruption leaves say what they were made from
        for index in range(len(self.stages)):
            begun = saved is not None and (index < at or (index == at and bool(saved["begun"])))
            ctx = self._enter(method, index, saved if index <= at else None, begun)
            if index == 0 and at == 0 and not begun:
                with evaluating(r.module for r in method.roles.values()):
                    method.begin(ctx)
                    with torch.no_grad():
                        for objective in add_ons(method).values():
                            objective.begin(ctx)
                        for query in method.setup.queries.values():
                            query.begin(ctx)
                self._hashes.clear()
                self.place(method)
            if index >= at:
                self._pass(method, index, ctx, saved if begun else None)
        if saved is not None and at >= len(self.stages):
            self._restore(method, saved)
        self._end(method)

    def restore(self, method: Method, saved: Any) -> None:
        """Bring a bound method to where a checkpoint stands, without running on."""
        self.prepare(method)
        self._identify(method)
        # its teacher may be a stand-in, and nothing goes on from here: what matters is that the weights fit their networks
        changed = identity.differences(saved["identity"], self.identity, reading=True) if "identity" in saved else []
        if changed:
            folder = self.checkpoints.folder.parent if self.checkpoints else "checkpoint"
            raise identity.refusal(str(folder), changed)
        for index in range(int(saved["stage"]) + bool(saved["begun"])):
            self._enter(method, index, saved, True)
        self._restore(method, saved)
        self._end(method)

    def may_go_on(self, method: Method) -> None:
        """Whether what lies in the folder goes on under the settings of now, asked before anything there is changed.

        Raises:
            StorageError: it does not; why not is told.
        """
        self.prepare(method)
        self._identify(method)
        try:
            self._opened(method)
        finally:
            self._end(method)

    def _enter(self, method: Method, index: int, saved: Any, begun: bool) -> RunContext:
        """A stage's door: what was saved restored, as far as it fits by now, and structure built upon it.

        ``begun``: the checkpoint was saved later than here, so that of roles which change their structure on the way
        some do not fit yet; and what `setup` finds in the method's state is what it found then.
        """
        stage = self.stages[index]
        if saved is not None:
            self._restore(method, saved, partly=begun)
        for role in method.roles.values():
            role.rest()
        ctx = RunContext(self, method, stage, self.device)
        if stage.setup is not None:
            if saved is not None and stage.name in saved.get("doors", ()):
                method.state = copy.deepcopy(saved["doors"][stage.name])
            self._doors[stage.name] = copy.deepcopy(method.state)
            stage.setup(ctx)
            self._hashes.clear()
        self.place(method)
        if dist.world() > 1 and self.settings.synchronises(self.device):
            for name in learners(stage, method.roles):
                method.roles[name].synchronise()
        for name, role in method.roles.items():
            if name not in self._first:  # `setup` has made it
                self._first[name] = self._hash(name, role)
        return ctx

    def _pass(self, method: Method, index: int, ctx: RunContext, saved: Any) -> None:
        """One stage, from its door on; ``saved``: it had begun."""
        stage = self.stages[index] = reached(self.stages[index], ctx)
        self.epochs = Epochs(stage) if stage.items is None else None
        if stage.items is not None:
            self.run_items(method, stage, ctx)
        elif stage.remember is not None and self.workspace is not None:
            self._remembered_steps(method, stage, ctx, saved, index)
        else:
            self._steps(method, stage, ctx, saved, index)
        later = {n for s in self.stages[index + 1 :] for n in s.keep}
        self._carried |= {n: carried(o) for n, o in self.optimisers.items() if n in later}
        ended = self._ended(method, stage) if index + 1 == len(self.stages) else {}
        if stage.finish is not None:
            stage.finish(ctx)
            self._hashes.clear()
        self.optimisers = {}
        self._offset += max(1, stage.total)
        self._save(method, index + 1, 0, None, ended)

    def rehearse(self, method: Method) -> None:
        """Roles on the device, add-ons tried on a dry batch, stages asked for: what can be wrong is said here.

        Optimisers are tried too, on parameters without numbers, and whether batches can be cut as they must.
        """
        self.place(method)
        for query in method.setup.queries.values():
            query.attach(method)
        self._prepare_objectives(method)
        self.stages = tuned(method.stages(), method.setup.stages, method.stage_names)
        names = [s.name for s in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must be unique: {names}")
        for stage in self.stages:
            if stage.items is not None:
                continue
            pieces(stage, self.settings.accumulate)
            if hasattr(stage.data, "fetch"):
                chances(stage, stage.data)
            self._fits(stage)
            for name, optim in stage.optim.items():
                found = method.roles[name].parameters() if name in method.roles else {}
                if found:
                    check_patterns(method, stage, name)
                    bare = {
                        n: nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta")) for n, p in found.items()
                    }
                    optim.build(bare)
        for name in self.settings.shard:
            if name not in method.roles or not isinstance(method.roles[name].module, nn.Module):
                networks = [n for n, r in method.roles.items() if isinstance(r.module, nn.Module)]
                raise ConfigError.unknown("engine.shard", name, networks, "network of this method")
        self._rehearse_one_item(method)

    def _rehearse_one_item(self, method: Method) -> None:
        """BatchNorm cannot normalise, nor a relation compare, a single item: where a batch is cut into such parts."""
        student = method.roles["student"]
        for stage in self.stages:
            parts = dist.world() * self.settings.accumulate
            coupled = {n: o.fewest for n, o in add_ons(method).items() if o.coupled}
            wanted = max([2, *coupled.values()]) * parts
            if stage.items is not None or stage.data is None or stage.batch_size >= wanted:
                continue
            if "student" not in learners(stage, method.roles, early=True):
                continue
            for name, fewest in coupled.items():
                if stage.batch_size < fewest * parts:
                    raise one_item(stage.section, stage.batch_size, self.settings.accumulate, name, fewest)
            if stage.batch_size >= 2 * parts:
                continue
            with as_in_training(student):
                fed = bool(getattr(student.module, "fed_by", None))  # what another role feeds is checked by the method
                if fed or not layers(student.module).statistics:
                    continue
                ctx = RunContext(self, method, Stage("dry", steps=0), self.device)
                try:
                    with torch.no_grad():
                        ctx.signal("student", to_device(method.task.example(1), self.device))
                except ValueError as error:
                    if NEEDS_TWO in str(error):
                        raise one_item(stage.section, stage.batch_size, self.settings.accumulate) from None
                    raise

    def coupling(self, method: Method) -> list[str]:
        """What is coupled across a batch, by the mathematics or the networks, where batches are cut: for the report."""
        # a plan is made in one process for as many as are asked for
        accumulate, world = self.settings.accumulate, max(dist.world(), self.settings.devices)
        if accumulate == 1 and world == 1:
            return []
        together = world > 1 and self.settings.synchronises(self.device)
        self.rehearse(method)
        said: dict[str, None] = dict.fromkeys(by_mathematics(method, add_ons(method), accumulate, world))
        for name in dict.fromkeys(n for s in self.stages for n in learners(s, method.roles, early=True)):
            role = method.roles[name]
            with as_in_training(role), own_generators(self.seed):
                found = layers(role.module)
                if name == "student":
                    ctx = RunContext(self, method, Stage("dry", steps=0), self.device)
                    # a network that is not fed as the task feeds one, or has no room for two items, is known by its layers
                    with contextlib.suppress(Exception):
                        batch = to_device(method.task.example(2), self.device)
                        found = tried(role.module, lambda b, c=ctx: c.signal("student", b).logits, batch)  # type: ignore[misc]
            who = name if name in ("student", "teacher") else f"role {name!r}"
            said.update(dict.fromkeys(sentences(who, found, accumulate, world, together)))
        return list(said)

    def _fits(self, stage: Stage) -> None:
        """Refuse a stage whose batches alone, without any network, are more than there is memory."""
        rows = -(-stage.batch_size // dist.world())
        if rows < 1024:
            return
        data = stage.source
        one = bytes_of(dict(data.fetch(torch.zeros(1, dtype=torch.int64)))) if data is not None and len(data) else 0
        where = _batch_setting(stage)
        need((one + 16) * rows, where, f"{stage.batch_size:,} items a step", f"lower {where}")

    def prepare(self, method: Method) -> None:
        """All but the work: what `rehearse` checks, and taps set before anything is compiled."""
        self.rehearse(method)
        for name, role in method.roles.items():
            paths = method.student_taps if name == "student" else method.teacher_taps if name == "teacher" else ()
            if paths:
                role.want(tuple(paths))
            role.compile = self.settings.compile

    def _identify(self, method: Method) -> None:
        """What enters the run, taken before anything moves; then large roles are split over the processes."""
        self.identity = identity.of_run(method, self.stages, self.about)
        self._hashes, self._doors, self._offset, self._carried = {}, {}, 0, {}
        self._recorded.clear()
        self.asked.clear()
        self.remembered.keys.clear()
        ever = {n for s in self.stages for n in learners(s, method.roles, early=True)}
        for name in self.settings.shard:
            method.roles[name].shard = True
        for name, role in method.roles.items():
            state = self.identity["roles"][name]["state"]
            dist.same_everywhere(state, f"the first state of role {name!r}")
            if role.of in method.roles and method.roles[role.of].shard:
                role.shard = True  # an average is taken piece by piece, so it is cut alike
            if role.shard and dist.world() > 1 and isinstance(role.module, nn.Module):
                role.split(self.settings.synchronises(self.device) and name in ever)
            else:
                self._hashes[name] = state
        self._first = {name: self._hash(name, role) for name, role in method.roles.items()}

    def _end(self, method: Method) -> None:
        """Every role as it was made, and sharded ones as plain modules again, for evaluation and saving."""
        for role in method.roles.values():
            role.rest()
            before = role.module
            if role.join():
                for built in method.setup.built.values():
                    if built.module is before:
                        built.module = role.module

    def _prepare_objectives(self, method: Method) -> None:
        """One dry batch: objectives check shapes and make their projectors, which become roles."""
        objectives = add_ons(method)
        if not objectives:
            return
        for name, objective in objectives.items():
            objective.name = name
            if objective.needs_teacher and "teacher" not in method.roles:
                raise ConfigError(f"objectives.{name}", "it needs a teacher, and this run has none")
            teacher = method.roles["teacher"].module if "teacher" in method.roles else None
            objective.look(method.roles["student"].module, teacher)
            if isinstance(method.roles["student"].module, nn.Module):
                method.roles["student"].taps(tuple(objective.student_taps))
            if objective.teacher_taps:
                method.roles["teacher"].want(tuple(objective.teacher_taps))
        ctx = RunContext(self, method, Stage("dry", steps=0), self.device)
        batch = to_device(method.task.example(2), self.device)
        with evaluating(r.module for r in method.roles.values()), torch.no_grad():
            shown = ctx.signal("student", batch)
            taught = ctx.signal("teacher", batch) if "teacher" in method.roles else None
        for name, objective in objectives.items():
            seed_modules(key_of(self.seed, "projector", name), self.device)
            projector = objective.prepare(shown, taught, batch)
            if projector is not None:
                method.roles[objective.projector] = Role(projector.to(self.device))

    # -- stages of items -------------------------------------------------------------------------------------------

    def item_folder(self, method: Method, stage: str, item: str) -> Path:
        """Where an item of a stage is stored."""
        root = self.remembered.folder(stage) or (
            self.folder / "items" / store.safe_name(stage) if self.folder else None
        )
        if root is None:
            raise ConfigError("engine.folder", "a stage of items needs a folder to keep them in")
        return root / store.safe_name(item)

    def recorded(self, method: Method, stage: str, ctx: RunContext) -> Recorded:
        """The rows that an earlier stage of items left; opened once."""
        if stage not in self._recorded:
            index = next((i for i, s in enumerate(self.stages) if s.name == stage and s.items is not None), None)
            if index is None:
                known = [s.name for s in self.stages if s.items is not None]
                raise ConfigError.unknown("stage", stage, known, "stage of items")
            found = self.stages[index]
            if found.data is not None and not hasattr(found.data, "fetch"):  # of a run that goes on behind it
                found = self.stages[index] = replace(found, data=found.data(ctx))
            assert found.items is not None
            folders = {item: self.item_folder(method, stage, item) for item in found.items(ctx)}
            missing = [i for i, f in folders.items() if not store.is_complete(f)]
            if missing:
                raise MethodError(
                    f"stage {stage!r}",
                    f"{len(missing)} of its {len(folders)} items are not there yet: {', '.join(missing[:4])}",
                    expected="a stage that came before the one that asks for its rows",
                )
            self._recorded[stage] = Recorded(stage, folders)
        return self._recorded[stage]

    def run_items(self, method: Method, stage: Stage, ctx: RunContext) -> None:
        """The items of a stage that are not there yet; processes share them out.

        Of a stage that is remembered one run at a time makes them; whoever else wants them waits, and takes what is there.
        """
        assert stage.items is not None and stage.work is not None
        self._know(method, stage)
        cast(method.roles, ())
        ids = list(stage.items(ctx))
        if self.remembered.folder(stage.name) is None:
            self._work(method, stage, ctx, ids)
            return
        folders = [self.item_folder(method, stage.name, item) for item in ids]
        lock = self.remembered.turn(stage.name, lambda: all(map(store.is_complete, folders)), self.say)
        with lock or contextlib.nullcontext():
            self._work(method, stage, ctx, ids)

    def _work(self, method: Method, stage: Stage, ctx: RunContext, ids: list[str]) -> None:
        assert stage.work is not None
        mine = ids[dist.rank() :: dist.world()]
        done = [i for i in mine if store.is_complete(self.item_folder(method, stage.name, i))]
        self._show(stage.name, len(mine), len(done))
        self._mark = (stage.name, time.perf_counter())
        still: Still | None = Still(method.roles)
        for item in mine:
            if item in done:
                continue
            if interrupt.requested() is not None:  # processes work on unequal lists here: each stops by itself
                raise Stopped(interrupt.requested() or 0)
            seed_modules(key_of(ctx.seed, stage.name, item), self.device)
            inner = ctx.at(0)
            inner.draws = Draws(ctx.seed, (stage.name, item), self.device)
            made = stage.work(item, inner)
            if still is not None:  # the first one tells, before anything of it is kept
                still.check(stage.name, item)
                still = None
            store.save_tree(self.item_folder(method, stage.name, item), made)
            self._advance(1)
        self._tick()
        dist.barrier()

    # -- stages of steps -------------------------------------------------------------------------------------------

    def _remembered_steps(self, method: Method, stage: Stage, ctx: RunContext, saved: Any, index: int) -> None:
        """A stage of steps that is taken from the workspace where it is there, and left there where it is not."""
        self._know(method, stage)
        folder = self.remembered.folder(stage.name)
        assert folder is not None
        self._before = saved["before"] if saved is not None else {n: self._hash(n, r) for n, r in method.roles.items()}
        lock = self.remembered.turn(stage.name, lambda: store.is_complete(folder / RESULT), self.say)
        if lock is None:
            self.say(f"{stage.name}: reused from the workspace")
            found = store.load_tree(folder / RESULT)
            for name, state in found["roles"].items():
                self._fill(method.roles[name], state, f"role {name!r} of the remembered stage {stage.name!r}")
            method.state = found["state"]
            self._carried |= found["optimisers"]
            self.seconds[stage.name] = float(found["seconds"])
            self._hashes.clear()
            return
        with lock:
            self._steps(method, stage, ctx, saved, index)
            here = [n for n, r in method.roles.items() if self._hash(n, r) != self._before.get(n)]
            moved = sorted({n for told in dist.told_by_all(here) for n in told})
            beyond = sorted(set(moved) - set(stage.roles if stage.roles is not None else moved))
            if beyond:
                raise MethodError(
                    f"stage {stage.name}",
                    f"it is remembered, and has changed roles that its `roles` leave out: {beyond}",
                    remedy="name them in the stage's `roles`",
                )
            later = {n for s in self.stages[index + 1 :] for n in s.keep}
            made = {
                "roles": {n: dist.whole_state(method.roles[n].module) for n in moved},
                "state": method.state,
                "optimisers": {n: carried(o) for n, o in self.optimisers.items() if n in later},
                "seconds": self.seconds[stage.name],
            }
            if dist.rank() == 0:
                store.save_tree(folder / RESULT, made)
            dist.barrier()

    def _stepper(self, method: Method, stage: Stage, ctx: RunContext) -> Stepper:
        """Who learns in the stage, their optimisers, and its guard; everyone else stands still."""
        optim = learners(stage, method.roles)
        for name, settings in optim.items():
            method.roles[name].keep_statistics = settings.keep_statistics
        cast(method.roles, tuple(optim))
        self._left = {}
        for name, settings in optim.items():
            if settings.only is not None:
                known = method.roles[name].parameters()
                self._left[name] = method.roles[name].narrow(set(settings.learning(known)))
        stepper = Stepper(method, stage, ctx, optim)
        if self.settings.guard:
            stepper.guard = Guard(method, stage, self.seed, self.device, self.folder, stepper.optimisers.values())
        self.optimisers = stepper.optimisers
        return stepper

    def _steps(self, method: Method, stage: Stage, ctx: RunContext, saved: Any, index: int) -> None:
        """The steps of a stage; memory that runs out is told by its batch size."""
        with telling(_batch_setting(stage), f"lower it from {stage.batch_size:,}, or raise engine.accumulate"):
            self._run_steps(method, stage, ctx, saved, index)

    def _run_steps(self, method: Method, stage: Stage, ctx: RunContext, saved: Any, index: int) -> None:
        total, settings = stage.total, self.settings
        start, self.meter = 0, Seen()
        epochs = self.epochs = Epochs(stage)
        if saved is not None:
            self._restore(method, saved)
            start = int(saved["step"])
            self.meter = Seen({n: (s, c) for n, (s, c) in saved["meter"].items()})
            if saved.get("epoch"):
                epochs.restore(saved["epoch"])
        elif stage.begin is not None:
            cast(method.roles, tuple(learners(stage, method.roles)))
            stage.begin(ctx)
            self._hashes.clear()
            self.place(method)
        stepper = self._stepper(method, stage, ctx)  # after `begin`, which may have replaced modules
        for name, opt in self.optimisers.items():
            if saved is not None and name in saved["optimisers"]:
                restore_optimiser(opt, saved["optimisers"][name])
            self._hashes.pop(name, None)
        if saved is None:
            self._go_on(stage)
        still = self._standing(method)
        self._show(stage.name, total, start)
        if self.logs is not None and dist.rank() == 0:
            self.logs.resume(stage.name, start + 1)
        saved_at, overdue, done = time.monotonic(), False, start
        reading = reading_is_free(self.device)
        self._mark = (stage.name, time.perf_counter())
        for step, micro in self._walk(method, stepper, ctx, still, start):
            overdue = self._poll(
                partial(self._save, method, index, step, stepper),
                time.monotonic() - saved_at > 60 * settings.save_minutes,
            )
            for name, (sum_, count) in self._take(stepper, step, total, micro).items():
                # on a CPU reading a number is cheaper than adding two tensors; elsewhere it would wait
                self.meter.add(name, float(sum_) if reading else sum_, float(count) if reading else count)
            done = step + 1
            self._advance(1)
            if done % settings.log_every == 0 or done == total:
                self._settle(stepper, wait=True)
                values, self.meter = self.meter.means(), Seen()
                own = {n: float(v) for n, v in method.measures().items()}
                self._log(stage.name, done, {**stepper.rates(step, total), **values, **own})
                if self.progress is not None:
                    self.progress.advance(0, **values)
            every = settings.eval_every if stage.judged else 0
            if every and self.evaluate is not None and (done % every == 0 or done == total):
                self._settle(stepper, wait=True)
                self._log(stage.name, done, {f"valid/{k}": v for k, v in self.evaluate(done).items()})
                if done < total and self._waited_enough(stage, done, every):
                    break
            due = settings.save_every and done % settings.save_every == 0
            if self.checkpoints and done < total and (due or overdue):
                self._save(method, index, done, stepper)
                saved_at = time.monotonic()
        if (
            done < total and stage.name not in self.stopped_early
        ):  # a signal took the loader's processes, so no batch came
            self._poll(partial(self._save, method, index, done, stepper))
            raise RuntimeError(f"the batches of stage {stage.name!r} ended at step {done} of {total}")
        self._tick()
        self.agree(method, stepper)
        idle = sorted(set(stepper.optimisers) - stepper.moved)
        if idle and total and start == 0:  # of a stage that was resumed, the beginning is not known
            self.note(f"stage {stage.name!r} has an optimiser for {', '.join(map(repr, idle))}, and no term trained it")
        self._stood(method, stage, still)

    def _waited_enough(self, stage: Stage, done: int, every: int) -> bool:
        """Whether the best evaluation lies `Optim.patience` evaluations back; said where it does.

        It follows from the step of the best one alone, so that a resumed run stops at the same step.
        """
        patience = min((o.patience for o in stage.optim.values() if o.patience is not None), default=None)
        best = self.best_step() if self.best_step is not None and patience is not None else None
        if best is None or patience is None or done - best < patience * every:
            return False
        self.stopped_early[stage.name] = done
        told = f"no better evaluation since step {best} (train.patience={patience})"
        self.note(f"stage {stage.name!r} stopped early after {done} of {stage.total} steps: {told}")
        return True

    def _walk(
        self, method: Method, stepper: Stepper, ctx: RunContext, still: dict[str, str], start: int
    ) -> Iterator[tuple[int, list[Batch]]]:
        """The steps of a stage with their micro-batches; in between is done what the stage says."""
        stage, epochs = stepper.stage, self.epochs
        assert epochs is not None
        step = start
        while step < stage.total:
            due, choosing = epochs.doors(step), stage.choose is not None and epochs.begins(step)
            if due or choosing:
                self._settle(stepper, wait=True)
                if due:
                    self._stood(method, stage, still)  # so far: from here on they are what this makes of them
                inner = ctx.at(step)
                inner.draws = Draws(ctx.seed, (stage.scope, "between", step), self.device)
                seed_modules(key_of(ctx.seed, stage.scope, "between", step), self.device)
                with evaluating(r.module for r in method.roles.values()):
                    for between in due:
                        between(inner)
                    if choosing:
                        assert stage.choose is not None
                        with torch.no_grad():
                            epochs.choose(step, stage.choose(inner))
                        if dist.world() > 1:
                            dist.same_everywhere(store.hash_tree(epochs.ids), f"what stage {stage.name!r} chooses")
                epochs.done = step
                if due:
                    self._hashes.clear()
                    still.clear()
                    still.update(self._standing(method))
            stop = epochs.until(step)
            for micro in self.batches(stage, step, stop):
                yield step, micro
                step += 1
            if step < stop:  # a signal has taken the loader's processes
                return

    def _take(self, stepper: Stepper, step: int, total: int, micro: list[Batch], wait: bool = False) -> Seen:
        """One step with all that belongs to it: rates, update, the guard's answer, what watches, what follows."""
        method = stepper.method
        stepper.set_rates(step, total)
        seen = stepper.take(step, micro)
        self._settle(stepper, wait)
        if type(method).observe is not Method.observe:
            method.observe(seen.means(), stepper.ctx.at(step))
        for query in method.setup.queries.values():
            if type(query).observe is not Query.observe:
                query.observe(stepper.ctx.at(step))
        for role in method.roles.values():
            if role.of in method.roles and method.roles[role.of].learns:
                role.follow(method.roles[role.of], step, total)
        return seen

    def _settle(self, stepper: Stepper, wait: bool = False) -> None:
        """Where the guard's answer came late and is bad: take that step again, which says what was wrong with it."""
        guard = stepper.guard
        bad = guard.found(wait) if guard is not None else None
        if guard is None or bad is None:
            return
        guard.again()
        for micro in self.batches(stepper.stage, bad, bad + 1):
            stepper.take(bad, micro)
        guard.not_repeated(bad)

    def batches(self, stage: Stage, start: int, total: int) -> Iterator[list[Batch]]:
        """This process's micro-batches of a stage's steps, on the device."""
        found = self.settings
        seed = self.seed if stage.remember is None else 0  # as in the stage's context
        epochs = self.epochs if self.epochs is not None and self.epochs.stage.name == stage.name else None
        return batches(
            stage,
            seed,
            start,
            total,
            device=self.device,
            accumulate=found.accumulate,
            workers=found.workers,
            epochs=epochs,
        )

    # -- state -----------------------------------------------------------------------------------------------------

    def settle(self, stepper: Stepper) -> None:
        """Wait for the guard's answer."""
        self._settle(stepper, wait=True)

    def agree(self, method: Method, stepper: Stepper) -> None:
        """What is saved or evaluated is the same in every process, bit for bit."""
        stepper.buffers.agree(look=True)
        same_roles(stepper.stage.name, method.roles)

    def _stood(self, method: Method, stage: Stage, before: dict[str, str]) -> None:
        """Roles that had to stand still have done so.

        Raises:
            MethodError: they have not.
        """
        self._hashes.clear()
        now = self._standing(method)
        changed = [n for n, h in before.items() if now.get(n) != h]
        if changed:
            raise MethodError(
                f"stage {stage.name}",
                f"roles that do not learn in it have changed: {changed}",
                expected="roles that stand still where no optimiser of the stage moves them",
                remedy="change them in the stage's `begin`, give them an optimiser, or make them averages",
            )

    def time_steps(self, method: Method, steps: int) -> dict[str, Timed]:
        """What each stage will take, told from a few steps, or from one item; for ``limbeck plan``.

        What an item trains is trained for those few steps alone. A stage that needs what items leave is tried on what
        that one left; where this is not to be done, it says why.
        """
        found: dict[str, Timed] = {}
        left: dict[str, Any] = {}
        for index, stage in enumerate(self.stages):
            ctx = Trial(self, method, stage, self.device, left, steps)
            try:
                for role in method.roles.values():
                    role.rest()
                if stage.setup is not None:
                    stage.setup(ctx)
                    self.place(method)
                stage = self.stages[index] = reached(stage, ctx)
                self.epochs = Epochs(stage) if stage.items is None else None
                self._know(method, stage)
                if stage.items is not None:
                    cast(method.roles, ())
                    found[stage.name] = self._time_items(stage, ctx)
                else:
                    each, memory = self._time(method, stage, ctx)
                    found[stage.name] = Timed(each, stage.total, memory=memory)
                    if left and stage.total:
                        found[stage.name].note = f"on stand-ins for what {' and '.join(left)} will leave"
            except Exception as error:
                if not left:  # nothing stood in for anything: the run would meet this too
                    raise
                why = f"not measured: it needs what {' and '.join(left)} will leave ({first_line(error)})"
                found[stage.name] = Timed(None, stage.total, note=why)
        return found

    def _time_items(self, stage: Stage, ctx: Trial) -> Timed:
        assert stage.items is not None and stage.work is not None
        missing, total = ctx.missing(stage), len(stage.items(ctx))
        if not missing:
            return Timed(0.0, 0, total, "remembered from an earlier run")
        item = missing[0]
        seed_modules(key_of(ctx.seed, stage.name, item), self.device)
        inner = ctx.at(0)
        inner.draws = Draws(ctx.seed, (stage.name, item), self.device)
        began = time.perf_counter()
        ctx.left[stage.name] = stage.work(item, inner)
        wait_for(self.device)
        seconds = time.perf_counter() - began + sum(inner.beyond)
        there = total - len(missing)
        note = "a step is an item" + (f"; {there} more are remembered from an earlier run" if there else "")
        return Timed(max(0.0, seconds), len(missing), total, note)

    def _time(self, method: Method, stage: Stage, ctx: Trial) -> tuple[float | None, Memory | None]:
        if not stage.total:
            return 0.0, None
        if stage.begin is not None:
            cast(method.roles, tuple(learners(stage, method.roles)))
            stage.begin(ctx)
            self.place(method)
        stepper = self._stepper(method, stage, ctx)
        times = []
        for step, micro in enumerate(self.batches(stage, 0, ctx.few + 1)):
            began = time.perf_counter()
            self._take(stepper, step, ctx.few, micro, wait=True)
            wait_for(self.device)
            times.append(time.perf_counter() - began)
        return median(times[1:]), self._hold(stepper, ctx)

    def _hold(self, stepper: Stepper, ctx: Trial) -> Memory:
        """What a step holds on one device: of several processes each takes its share of the batch."""
        found = self.settings
        devices = max(1, found.devices // dist.world())
        modules = {n: r.module for n, r in stepper.method.roles.items() if isinstance(r.module, nn.Module)}
        parts = found.accumulate * devices
        pieces(stepper.stage, parts)
        cut = batches(stepper.stage, self.seed, 0, 1, device=self.device, accumulate=parts)
        ctx.shown.clear()
        with Watch(self.device, modules.values(), follow=not found.compile) as watch:
            for micro in cut:
                self._take(stepper, 0, ctx.few, micro[: found.accumulate], wait=True)
        return of_step(watch, modules, stepper.optimisers, ctx.shown, found.shard, devices)

    # -- people ----------------------------------------------------------------------------------------------------

    def _poll(self, save: Callable[[], None], overdue: bool = False) -> bool:
        """Stop where a signal asked for it. Returns whether any process finds it time to save."""
        asked = interrupt.requested()
        if dist.world() > 1:
            number, clock = dist.largest_over_ranks((asked or 0, int(overdue)))
            asked, overdue = number or None, bool(clock)
        if asked is not None:
            save()
            raise Stopped(asked)
        return overdue

    def _log(self, stage: str, step: int, values: dict[str, float]) -> None:
        if self.logs is not None and dist.rank() == 0:
            self.logs.log(stage, step, values)

    def _show(self, name: str, total: int, done: int) -> None:
        if self.progress is not None:
            self.progress.stage(name, total, done)

    def _advance(self, n: int) -> None:
        if self.progress is not None:
            self.progress.advance(n)

    @property
    def plain(self) -> bool:
        """Whether forward passes are in full precision."""
        return self.settings.precision == "fp32"

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of forward passes."""
        if self.plain:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
