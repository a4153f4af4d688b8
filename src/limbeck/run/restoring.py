"""A run read back from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from limbeck.engine.bench import Bench
from limbeck.engine.engine import Engine
from limbeck.errors import ConfigError
from limbeck.grammar.artifact import Artifact
from limbeck.recipe.recipe import Recipe, build, check, load_tree
from limbeck.run.preparing import prepare
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


def restore(folder: Path, checkpoint: int | None = None, teacher: bool = False) -> Restored:
    """Read a run back from its folder, finished or interrupted in the middle.

    Args:
        folder: the run folder.
        checkpoint: the number of a checkpoint (``step-NUMBER`` in ``checkpoints/``); the newest when ``None``.
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


def bring_back(recipe: Recipe, bench: Bench, folder: Path, checkpoint: int | None = None) -> Restored:
    """What a run made, read back into participants that are prepared. See `restore`.

    Raises:
        ConfigError: there is no such checkpoint.
        CheckpointCorrupt: it is damaged.
        StorageError: the networks or the user's code are not those that it was made with.
    """
    engine = Engine(recipe.engine, recipe.seed, folder, workspace())
    assert engine.checkpoints is not None
    if checkpoint is not None:
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
    return Restored(recipe, bench, recipe.method.artifact(), str(saved["stage_name"]), int(saved["step"]), finished)
