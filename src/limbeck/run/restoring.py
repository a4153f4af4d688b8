"""A run read back from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.engine.bench import Bench
from limbeck.engine.engine import Engine
from limbeck.errors import CheckpointCorrupt, ConfigError
from limbeck.grammar.artifact import Artifact
from limbeck.recipe.recipe import Recipe, build, check, load_tree
from limbeck.run.preparing import prepare
from limbeck.storage import store
from limbeck.storage.disk import workspace


@dataclass
class Restored:
    """A run read back from its folder: recipe, participants, and what it made.

    Attributes:
        recipe, bench: as they were when it ran (the teacher only where it was asked for).
        artifact: what the run made, from its last checkpoint or a named one.
        stage, step: where that checkpoint stood; ``step`` counts within the stage.
        finished: whether the run had ended.
    """

    recipe: Recipe
    bench: Bench
    artifact: Artifact
    stage: str
    step: int
    finished: bool


def lay(into: Mapping[str, Any], state: Mapping[str, Any], where: str = "best") -> None:
    """Weights that a run kept of its best student, into what it made in the end, of the same make.

    Args:
        into: modules and tensors by name, as `limbeck.grammar.artifact.Artifact.state` gives them.
        state: likewise, modules as their state.
        where: what an error is about.

    Raises:
        CheckpointCorrupt: they are of another make.
    """
    from limbeck.storage.weights import load_strict

    if set(into) != set(state):
        raise CheckpointCorrupt(where, f"holds {sorted(state)}", expected=f"{sorted(into)}")
    for name, value in into.items():
        if isinstance(value, nn.Module):
            load_strict(value, state[name], f"{where} ({name})")
        elif isinstance(value, Mapping):
            lay(value, state[name], f"{where} ({name})")
        elif isinstance(value, Tensor):
            value.data.copy_(state[name])


def restore(folder: Path, checkpoint: int | Literal["best", "last"] | None = None, teacher: bool = False) -> Restored:
    """Read a run back from its folder, finished or interrupted in the middle.

    Args:
        folder: the run folder.
        checkpoint: the number of a checkpoint (``step-NUMBER`` in ``checkpoints/``); ``best``: the best student on the
            validation split, of a finished run; ``last`` or ``None``: the newest.
        teacher: build or train the teacher too; otherwise a method that needs one gets an untrained stand-in.

    Raises:
        ConfigError: the folder holds no run, or no such checkpoint.
        CheckpointCorrupt: the checkpoint is damaged.
    """
    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise ConfigError(str(folder), "no run lies here (config.yaml is missing)", expected="a run folder")
    recipe = build(check(load_tree(config)))
    bench = prepare(recipe, folder, say=lambda text: None, untaught=not teacher, check=False)
    return bring_back(recipe, bench, folder, checkpoint)


def best_of(folder: Path) -> dict[str, Any]:
    """What a run kept of its best student by the validation split: ``score``, ``step``, ``valid`` and ``state``.

    Raises:
        ConfigError: it kept none.
    """
    if not store.is_complete(folder / "best"):
        raise ConfigError(
            "--checkpoint",
            "the run kept no best student, for nothing was judged on its validation split",
            given="best",
            expected="last",
            remedy="set engine.eval_every, or take the last",
        )
    found: dict[str, Any] = store.load_tree(folder / "best")
    return found


def bring_back(
    recipe: Recipe, bench: Bench, folder: Path, checkpoint: int | Literal["best", "last"] | None = None
) -> Restored:
    """What a run made, read back into participants that are prepared. See `restore`.

    Raises:
        ConfigError: there is no such checkpoint.
        CheckpointCorrupt: it is damaged.
        StorageError: the networks or the user's code are not those that it was made with.
    """
    engine = Engine(recipe.engine, recipe.seed, folder, workspace())
    assert engine.checkpoints is not None
    best = best_of(folder) if checkpoint == "best" else None
    if isinstance(checkpoint, int):
        if checkpoint not in engine.checkpoints.steps():
            raise ConfigError("--checkpoint", given=checkpoint, expected=f"one of {engine.checkpoints.steps()}")
        saved = engine.checkpoints.load(checkpoint)
    else:
        found = engine.checkpoints.latest()
        if found is None:
            raise ConfigError(
                str(folder), "the run has no checkpoint yet", remedy="let it run on: type its command again"
            )
        saved = found[1]
    engine.restore(recipe.method, saved)
    finished = int(saved["stage"]) >= len(engine.stages)
    made, step = recipe.method.artifact(), int(saved["step"])
    if best is not None:
        lay(made.state(), best["state"], str(folder / "best"))
        step = int(best["step"])
    return Restored(recipe, bench, made, str(saved["stage_name"]), step, finished)
