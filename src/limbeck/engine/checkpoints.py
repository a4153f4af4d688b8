"""What a run is at this moment: written into checkpoints, and brought back from them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine import distributed as dist
from limbeck.engine import identity
from limbeck.engine.epochs import Epochs
from limbeck.engine.longer import going_on, lengthened
from limbeck.engine.remembered import Remembered
from limbeck.engine.rules import same_state
from limbeck.engine.settings import EngineSettings
from limbeck.engine.step import Seen, Stepper
from limbeck.errors import ConfigError, MethodError, StorageError
from limbeck.grammar.method import Method, Stage
from limbeck.grammar.optim import held_by
from limbeck.grammar.role import Role
from limbeck.storage import store
from limbeck.storage.records import Recorded


class RunState:
    """The part of the engine that knows where a run stands: roles, optimisers, the method's state, what entered it.

    Args:
        settings: where and how to run.
        seed: the run's seed.
        folder: where checkpoints go; ``None`` keeps none.
        workspace: where remembered stages go.
        say: prints a sentence.
        about: what else entered the run, by the sections of an identity.
    """

    def __init__(
        self,
        settings: EngineSettings | None,
        seed: int,
        folder: Path | None,
        workspace: Path | None,
        say: Callable[[str], None] | None,
        about: Mapping[str, Any] | None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.seed, self.folder, self.workspace = seed, folder, workspace
        self.say = say or (lambda text: None)
        self.device = dist.pick_device(self.settings.device)
        self.stages: list[Stage] = []
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.notes: list[str] = []  # what a reader of the result must know
        self.seconds: dict[str, float] = {}  # wall time of each stage
        self.meter = Seen()
        self._mark = ("", 0.0)
        self.about: dict[str, Any] = dict(about or {})
        self.identity: dict[str, Any] = {}
        self._first: dict[str, str] = {}  # the state in which each role entered
        self._hashes: dict[str, str] = {}  # the present state of those roles that nothing has touched since
        self._offset = 0  # steps of the stages before this one
        self.asked: set[str] = set()  # stages in which somebody asked for the number of their steps
        self._recorded: dict[str, Recorded] = {}
        self._left: dict[
            str, dict[str, nn.Parameter]
        ] = {}  # parameters of learning roles that stand still all the same
        self.epochs: Epochs | None = None  # where the present stage stands in its data
        self._doors: dict[str, Any] = {}  # the method's state as each stage's `setup` found it
        self._carried: dict[str, Any] = {}  # optimisers that a later stage goes on with
        self._before: dict[str, str] = {}  # the state of each role when a remembered stage of steps was reached
        self.remembered = Remembered(workspace)
        self.checkpoints = store.Checkpoints(folder / "checkpoints", keep=self.settings.keep) if folder else None

    def settle(self, stepper: Stepper) -> None:
        """Wait for what is still unknown of the steps before (the engine's)."""

    def agree(self, method: Method, stepper: Stepper) -> None:
        """Bring every process to the same state (the engine's)."""

    def place(self, method: Method) -> None:
        """Every role on the device."""
        for role in method.roles.values():
            if hasattr(role.module, "to"):
                role.module.to(self.device)

    def note(self, sentence: str) -> None:
        """Say something that belongs into the report too."""
        self.notes.append(sentence)
        self.say(f"note: {sentence}")

    def _tick(self) -> None:
        """Book the time since the last mark to its stage: loops alone, no imports and no checkpoints read."""
        name, since = self._mark
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - since
        self._mark = (name, now)

    def _opened(self, method: Method) -> Any:
        """The newest checkpoint, made from what is here now; ``None`` where there is none.

        Raises:
            StorageError: something else entered it; what differs is named.
        """
        found = self.checkpoints.latest() if self.checkpoints else None
        if found is None:
            return None
        assert self.checkpoints is not None
        saved = found[1]
        folder = str(self.checkpoints.folder.parent)
        if "identity" not in saved:
            raise StorageError(
                folder,
                f"its checkpoints are of an earlier limbeck (format 1, this is {identity.FORMAT}), which kept no record of what "
                "entered a run",
                remedy="finish it with that version, or start anew with --force",
            )
        changed, said = identity.differences(saved["identity"], self.identity), []
        if changed:
            then, now = saved["identity"], self.identity
            grown = lengthened(then.get("recipe", {}), now.get("recipe", {}))
            if not grown or identity.differences({**then, "recipe": {}}, {**now, "recipe": {}}):
                raise identity.refusal(folder, changed)
            saved, said = going_on(method, self.stages, saved, grown, folder)
        if int(saved["stage"]) < len(self.stages):
            self._say_how(saved)
        for sentence in said:
            self.note(sentence)
        return saved

    def _made_by(self) -> dict[str, Any]:
        """What changes how sums are rounded, and nothing else."""
        return {
            "threads": torch.get_num_threads(),
            "processes": dist.world(),
            "device": self.device.type,
            "torch": str(torch.__version__),
        }

    def _say_how(self, saved: Any) -> None:
        """Whoever goes on otherwise than the run began is told what that means."""
        self.notes = [*saved.get("notes", []), *(n for n in self.notes if n not in saved.get("notes", []))]
        then, now = saved.get("made_by", {}), self._made_by()
        other = [f"{k} {then[k]} then, {v} now" for k, v in now.items() if k in then and then[k] != v]
        if other:
            self.note(
                f"the run goes on under other conditions ({'; '.join(other)}): sums are rounded otherwise, so it is not bit for "
                "bit what it would have been"
            )

    def _ended(self, method: Method, stage: Stage) -> dict[str, Any]:
        """What a run needs to go on from its end to more steps (`limbeck.engine.longer`): of a run with a recipe of its own."""
        if not self.optimisers or not self.about or self.checkpoints is None or self.epochs is None:
            return {}
        before = {}
        if stage.finish is not None:  # it may change what has learnt
            whole = {n: dist.whole_state(method.roles[n].module) for n in self._changing(method)}
            before = {n: {k: v.clone() for k, v in state.items()} for n, state in whole.items()}
        return {
            "step": stage.total,
            "total": stage.total,
            "optimisers": {n: optimiser_state(o) for n, o in self.optimisers.items()},
            "epoch": self.epochs.state(),
            "state": copy.deepcopy(method.state),
            "roles": before,
        }

    def _hash(self, name: str, role: Role) -> str:
        """A role's present state; known without a look where nothing has touched it since the last one."""
        if name not in self._hashes:
            self._hashes[name] = identity.state_of(role.module)
        return self._hashes[name]

    def _standing(self, method: Method) -> dict[str, str]:
        """The roles that no step may change, and the state of each."""
        roles = method.roles
        found = {
            n: self._hash(n, r)
            for n, r in roles.items()
            if not r.learns and not r.batch_stats and not (r.of in roles and roles[r.of].learns)
        }
        left = {n: ps for n, ps in self._left.items() if ps and not roles[n].shard}
        return found | {
            f"{n} (beside what `only` names)": store.fingerprint(list(ps.values())) for n, ps in left.items()
        }

    def _changing(self, method: Method) -> list[str]:
        """The roles that a checkpoint must hold: who learns in any stage, averages, and whom a stage has changed."""
        ever = {n for s in self.stages if s.items is None for n in s.optim}
        return [
            n
            for n, r in method.roles.items()
            if isinstance(r.module, nn.Module)
            and (
                n in ever
                or n.startswith("projector:")
                or r.of is not None
                or r.batch_stats
                or self._hash(n, r) != self._first.get(n)
            )
        ]

    def _know(self, method: Method, stage: Stage) -> None:
        """The key of a stage that is remembered, from what there is when it is reached."""
        if stage.remember is None or self.workspace is None:
            return
        roles = {n: self._present(n, r) for n, r in method.roles.items() if stage.roles is None or n in stage.roles}
        index = next(i for i, s in enumerate(self.stages) if s.name == stage.name)
        kept = sorted({n for s in self.stages[index + 1 :] for n in s.keep if n in stage.optim})
        self.remembered.know(method, stage, roles, kept)

    def _present(self, name: str, role: Role) -> dict[str, Any]:
        """What a role is at this moment; of one that is split, as if it were whole."""
        if role.shard and dist.world() > 1:
            return {**self.identity["roles"][name], "state": store.fingerprint(dist.whole_state(role.module))}
        return identity.network(role.module, role.contract, state=False) | {"state": self._hash(name, role)}

    def _go_on(self, stage: Stage) -> None:
        """The optimisers that a stage keeps, from the state in which the last stage that trained their roles left them."""
        for name in stage.keep:
            opt, held = self.optimisers.get(name), self._carried.pop(name, None)
            problem = (
                "does not learn in it" if opt is None else "has learnt in no stage before it" if held is None else ""
            )
            if opt is not None and held is not None and held["optimizer"] != type(opt).__name__:
                problem = f"was optimised by {held['optimizer']} and is now by {type(opt).__name__}"
            if problem:
                raise MethodError(f"stage {stage.name}", f"`keep`: role {name!r} {problem}")
            assert opt is not None
            restore_optimiser(opt, held["state"])

    def _save(
        self,
        method: Method,
        index: int,
        step: int,
        stepper: Stepper | None,
        ended: dict[str, Any] | None = None,
    ) -> None:
        """A checkpoint before ``step`` of a stage; without a stepper the stage has not begun."""
        if stepper is not None:
            self.settle(stepper)
        if self.checkpoints is None:
            return
        if stepper is not None:
            self._tick()
            self.agree(method, stepper)
        roles = {n: dist.whole_state(method.roles[n].module) for n in self._changing(method)}
        optimisers = {n: optimiser_state(o) for n, o in self.optimisers.items()}
        tree = {
            "identity": self.identity,
            "stage": index,
            "stage_name": self.stages[index].name if index < len(self.stages) else "",
            "step": step,
            "total": self.stages[index].total if index < len(self.stages) else 0,
            "lengths": {s.name: s.total for s in self.stages[:index]},
            "asked": sorted(self.asked),
            "ended": ended or {},
            "offset": self._offset,
            "begun": stepper is not None,
            "seed": self.seed,
            "roles": roles,
            "optimisers": optimisers,
            "state": method.state,
            "doors": self._doors,
            "keys": self.remembered.keys,
            "carried": self._carried,
            "before": self._before,
            "meter": dict(self.meter),
            "epoch": self.epochs.state() if stepper is not None and self.epochs is not None else {},
            "seconds": self.seconds,
            "notes": self.notes,
            "made_by": self._made_by(),
        }
        if dist.world() > 1:
            same_state(str(tree["stage_name"]), method.state)
        if dist.rank() == 0:
            self.checkpoints.save(self._offset + step, tree)
        dist.barrier()

    def _restore(self, method: Method, saved: Any, partly: bool = False) -> None:
        """Roles and state as a checkpoint has them; ``partly``: those roles that are there and have that structure."""
        for name, state in saved["roles"].items():
            role = method.roles.get(name)
            if role is None and partly:
                continue
            if role is None:
                raise ConfigError(
                    "checkpoint",
                    f"it holds a role {name!r} that this method does not have",
                    expected=f"roles {sorted(method.roles)}",
                    remedy="use --force, or the recipe that made it",
                )
            own = role.module.state_dict()
            if partly and {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
                continue
            self._fill(role, state, f"role {name!r} of the checkpoint")
        method.state = copy.deepcopy(saved["state"]) if partly else saved["state"]
        self.seconds, self._doors, self._offset = (
            dict(saved["seconds"]),
            dict(saved.get("doors", {})),
            int(saved.get("offset", 0)),
        )
        self._carried = dict(saved.get("carried", {}))
        self.asked |= set(saved.get("asked", ()))
        self.remembered.keys.update(saved.get("keys", {}))
        self._hashes.clear()
        self.place(method)

    def _fill(self, role: Role, state: dict[str, Tensor], what: str) -> None:
        """Whole tensors into a role, which may be split."""
        if dist.world() > 1 and role.shard:
            own = role.module.state_dict()
            state = {k: dist.scattered(v, own[k]) for k, v in state.items()}
        store.load_strict(role.module, state, what)

    def discard_checkpoints(self) -> None:
        """Remove the checkpoints of a stage whose result is kept elsewhere."""
        if self.checkpoints is not None:
            self.checkpoints.clear()


def carried(opt: torch.optim.Optimizer) -> dict[str, Any]:
    """What a later stage needs to go on with an optimiser."""
    return {"optimizer": type(opt).__name__, "state": optimiser_state(opt)}


def optimiser_state(opt: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Its state of each parameter, in their order; of tensors that are split, whole."""
    params = held_by(opt)
    return [
        {k: dist.gathered(v) if isinstance(v, Tensor) else v for k, v in opt.state.get(p, {}).items()} for p in params
    ]


_LIKE_THE_PARAMETER = frozenset(
    (
        "exp_avg",
        "exp_avg_sq",
        "max_exp_avg_sq",
        "momentum_buffer",
        "square_avg",
        "grad_avg",
        "sum",
        "acc_delta",
        "exp_inf",
    )
)
"""Entries of torch's optimiser states that have their parameter's shape."""


def restore_optimiser(opt: torch.optim.Optimizer, saved: list[dict[str, Any]]) -> None:
    """Assign state directly: ``load_state_dict`` would cast it to the parameters' dtype (engine notes)."""
    params = held_by(opt)
    if len(params) != len(saved):
        raise ConfigError(
            "checkpoint",
            f"the optimiser's state is for {len(saved)} tensors, the role has {len(params)}",
            remedy="use --force, or the recipe that made it",
        )
    for p, state in zip(params, saved, strict=True):
        for name in _LIKE_THE_PARAMETER & set(state):
            if state[name].shape != p.shape:  # fused kernels would walk past its end without a word
                raise ConfigError(
                    "checkpoint",
                    f"the optimiser's state {name} is for a tensor {list(state[name].shape)}, the role has one of {list(p.shape)}",
                    remedy="a role whose parameters change their size begins its optimiser anew: leave it out of the stage's keep",
                )
    # step counters live where torch makes them: on the CPU unless the optimiser is capturable or fused
    waits = not (opt.defaults.get("capturable") or opt.defaults.get("fused"))
    for p, state in zip(params, saved, strict=True):
        if state:
            opt.state[p] = {
                k: _lay(v, p) if isinstance(v, Tensor) and not (k == "step" and waits) else v for k, v in state.items()
            }


def _lay(value: Tensor, p: nn.Parameter) -> Tensor:
    value = value.to(p.device)
    return dist.scattered(value, p) if value.shape == p.shape else value


__all__ = ["RunState", "carried", "optimiser_state", "restore_optimiser"]
