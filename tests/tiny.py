"""Bound methods at the size of seconds, from the shipped recipes and their own ``tiny`` settings."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.engine import interrupt
from limbeck.engine.bench import Bench
from limbeck.engine.engine import Engine
from limbeck.engine.settings import EngineSettings
from limbeck.errors import Stopped
from limbeck.grammar.card import catalogue
from limbeck.grammar.method import Method
from limbeck.grammar.task import Task
from limbeck.recipe.overrides import merge
from limbeck.recipe.recipe import Recipe, build, check, dump, load_tree
from limbeck.run import prepare
from limbeck.storage.disk import workspace

CARDS = {name: card for card in catalogue() for name in card.methods}
NAMES = sorted(CARDS)


def quiet(text: str) -> None:
    """Say nothing."""


def tree_of(name: str, *overrides: str, seed: int = 0) -> dict[str, Any]:
    """The shipped recipe of a method, shrunk, and then changed."""
    tree = load_tree(name, ["engine.device=cpu", "loggers=[]"], seed, tiny=True)
    merge(tree, overrides)
    return check(tree)


@dataclass
class Tiny:
    """A prepared run that has not started."""

    recipe: Recipe
    bench: Bench
    engine: Engine

    @property
    def method(self) -> Method:
        return self.recipe.method

    def run(self) -> Tiny:
        self.engine.run(self.method)
        return self


_MADE = itertools.count(1)


@contextlib.contextmanager
def of_the_new_alone() -> Iterator[None]:
    """Garbage is collected among what is made inside, which is what `prepare` is after.

    All that is imported is looked at each time otherwise, and that takes longer than most tests. Every sixteenth time it is
    looked at, so that runs which are over do not pile up.
    """
    if gc.get_freeze_count() or next(_MADE) % 16 == 0:
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def tiny(name: str, folder: Path, *overrides: str, seed: int = 0, progress: Any = None) -> Tiny:
    """A method bound to its shrunk recipe, with an engine in ``folder``."""
    recipe = build(tree_of(name, *overrides, seed=seed))
    with of_the_new_alone():
        bench = prepare(recipe, folder, say=quiet)
    engine = Engine(recipe.engine, recipe.seed, folder, workspace(), progress=progress)
    return Tiny(recipe, bench, engine)


_SHARED: dict[str, Task] = {}  # the task of the method that was tried last, its data read


def shared_tiny(name: str, folder: Path, *overrides: str, seed: int = 0, progress: Any = None) -> Tiny:
    """As `tiny`, but the data are read once for all runs that ask for the same, one after another."""
    tree = tree_of(name, *overrides, seed=seed)
    recipe = build(tree)
    key = dump({k: tree[k] for k in ("task", "student", "teacher", "participants")} | {"workspace": str(workspace())})
    if key in _SHARED:
        recipe.task = copy.copy(_SHARED[key])
    with of_the_new_alone():
        bench = prepare(recipe, folder, say=quiet)
    if key not in _SHARED:
        _SHARED.clear()
        _SHARED[key] = copy.copy(recipe.task)
    engine = Engine(recipe.engine, recipe.seed, folder, workspace(), progress=progress)
    return Tiny(recipe, bench, engine)


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """What is imported by now is left out when garbage is collected, as every run does: that takes longer the more it is."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class StopAfter:
    """A progress display that asks the run to stop after so many advances."""

    def __init__(self, advances: int) -> None:
        self.left = advances

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """A stage begins."""

    def advance(self, n: int = 1, **metrics: Any) -> None:
        self.left -= n
        if n and self.left == 0:
            interrupt.request(signal.SIGTERM)

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def run_with_stop(name: str, folder: Path, advances: int, *overrides: str, then: tuple[str, ...] = ()) -> Tiny:
    """Run, stop after so many steps or items, and go on in a fresh engine with fresh objects."""
    interrupt.clear()
    first = tiny(name, folder, *overrides, progress=StopAfter(advances))
    try:
        first.run()
    except Stopped:
        interrupt.clear()
        return tiny(name, folder, *overrides, *then).run()
    finally:
        interrupt.clear()
    return first


def state_of(run: Tiny) -> dict[str, Any]:
    """Everything a run has learnt: weights and buffers of every role, and the method's state."""
    roles = {
        n: dict(r.module.state_dict()) for n, r in run.method.roles.items() if isinstance(r.module, torch.nn.Module)
    }
    return {"roles": roles, "state": run.method.state}


def differences(a: Any, b: Any, path: str = "", tolerance: float = 0.0) -> list[str]:
    """Where two trees differ."""
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or a.shape != b.shape:
            return [f"{path}: shapes"]
        if tolerance == 0.0:
            return [] if torch.equal(a, b) else [f"{path}: {float((a - b).abs().max()):.3g}"]
        gap = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
        scale = max(1.0, float(b.double().abs().max())) if b.numel() else 1.0
        return [] if gap <= tolerance * scale else [f"{path}: {gap:.3g}"]
    if isinstance(a, dict):
        if not isinstance(b, dict) or set(a) != set(b):
            return [f"{path}: keys"]
        return [d for k in a for d in differences(a[k], b[k], f"{path}.{k}", tolerance)]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: lengths"]
        return [
            d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]", tolerance)
        ]
    if isinstance(a, float) and isinstance(b, float) and tolerance:
        return [] if a == b or abs(a - b) <= tolerance * max(1.0, abs(b)) else [f"{path}: {a} {b}"]
    return [] if a == b or (a != a and b != b) else [f"{path}: {a!r} {b!r}"]


def trained(run: Tiny) -> dict[str, list[torch.nn.Parameter]]:
    """The parameters of every role that learns in the present stage."""
    return {n: list(r.parameters().values()) for n, r in run.method.roles.items() if r.learns}


def settings(**changes: Any) -> EngineSettings:
    """Engine settings for tests."""
    return EngineSettings(device="cpu", **changes)
