"""A run's folder: where it is, what it holds, and whether there is something to do in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from limbeck.errors import CheckpointCorrupt, StorageError
from limbeck.recipe.recipe import Recipe
from limbeck.storage import store

LEAVES = (
    *("config.yaml", "result.json", "report.html", "log.jsonl", "metrics.csv", "trackers.json", "tensorboard"),
    *(
        "checkpoints",
        "items",
        "best",
        "failure",
        "export",
        "student",
        "student.*",
        "sampler.json",
        "rounds",
        "parts",
        "samples.png",
        "per_item.safetensors",
    ),
)
"""What a run leaves in its folder. Only these are removed when it is repeated: a folder may hold a user's files too."""


def default_folder(recipe: Recipe) -> Path:
    """Where a run goes when no ``--out`` is given."""
    return Path("runs") / f"{recipe.name}-seed{recipe.seed}"


def finished(folder: Path, text: str, force: bool) -> dict[str, Any] | None:
    """The result of a run that is finished already; ``None`` where there is something to do in the folder.

    Args:
        folder: the run folder.
        text: the configuration that is to be run.
        force: repeat it, or replace what lies there.

    Raises:
        StorageError: the folder holds something else, or cannot be written.
    """
    config, result = folder / "config.yaml", folder / "result.json"
    if config.exists() and not force:
        # one that failed before it made anything holds nothing to lose: the corrected command takes its place
        if _settings_in(config.read_text()) != _settings_in(text) and _made(folder):
            raise StorageError(
                str(folder),
                "the folder holds a run with another configuration",
                remedy="choose --out, or --force to replace it",
            )
        if result.exists():
            return {**read_result(result), "folder": str(folder), "reused": True}
    elif folder.is_dir() and not config.exists() and any(folder.iterdir()) and not force:
        raise StorageError(
            str(folder), "the folder is not empty and holds no run", remedy="choose --out, or --force to use it"
        )
    store.check_writable(folder)
    return None


def _made(folder: Path) -> bool:
    """Whether a run has left more in its folder than its configuration."""
    found = (path for pattern in LEAVES if pattern != "config.yaml" for path in folder.glob(pattern))
    return any(not path.is_dir() or any(path.iterdir()) for path in found)


def _settings_in(text: str) -> str:
    """A configuration without comments and blank lines."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


def read_result(path: Path) -> dict[str, Any]:
    """A run's ``result.json``.

    Raises:
        CheckpointCorrupt: it is damaged.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointCorrupt(str(path), f"is no JSON: {error}", remedy="repeat the run with --force") from None
    if not isinstance(found, dict):
        raise CheckpointCorrupt(str(path), f"holds a {type(found).__name__}", remedy="repeat the run with --force")
    return found


def empty(folder: Path) -> None:
    """Remove what an earlier run left."""
    for path in (p for pattern in LEAVES for p in folder.glob(pattern)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
