"""A run read back from its folder."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.engine.bench import Bench
from limbeck.engine.engine import Engine
from limbeck.errors import ConfigError, LimbeckError
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.recipe.recipe import Recipe, build, check, load_tree
from limbeck.run.folder import read_result
from limbeck.run.preparing import participants, prepare
from limbeck.storage import store
from limbeck.storage.disk import workspace
from limbeck.storage.weights import load_state_dict, load_strict


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
    found = bring_back(recipe, bench, folder, checkpoint)
    whole = checkpoint == "best" or (found.finished and not isinstance(checkpoint, int))
    if not teacher and not whole and _borrows(found):
        return restore(folder, checkpoint, teacher=True)
    return found


def _borrows(found: Restored) -> bool:
    """Whether what a run made has parts of a network that had to be trained before, and is only a stand-in here."""
    parts = getattr(found.artifact, "parts", None) or {}
    models = participants(found.recipe)
    return any(
        part.module is found.bench.built[name].module
        for part in parts.values()
        for name, model in models.items()
        if found.recipe.method.participants[name].taught and not model.trained
    )


def _as_left(made: Artifact, folder: Path) -> None:
    """What lies in a finished run's folder is what it made: its metrics, and of a chain the parts that are others' too."""
    if not isinstance(made, NetworkArtifact):
        return
    with contextlib.suppress(LimbeckError):
        made.metrics = dict(read_result(folder / "result.json")["metrics"]["student"])
    weights = folder / "student.safetensors"
    if hasattr(made, "parts") and weights.is_file():
        load_strict(made.built.module, load_state_dict(weights), str(folder), "student")


def best_of(folder: Path) -> dict[str, Any]:
    """What a run kept of its best student by the validation split: ``score``, ``step``, ``valid`` and ``state``.

    Raises:
        ConfigError: it kept none.
    """
    if not store.is_complete(folder / "best"):
        raise ConfigError(
            "--checkpoint",
            "the run kept no best student, for nothing was evaluated on its validation split",
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
        made.take(best["state"], str(folder / "best"))
        step = int(best["step"])
    elif finished and not isinstance(checkpoint, int):
        _as_left(made, folder)
    return Restored(recipe, bench, made, str(saved["stage_name"]), step, finished)
