"""A run's folder: where it is, what it holds, and whether there is something to do in it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.engine import identity
from limbeck.engine.longer import lengthened
from limbeck.errors import CheckpointCorrupt, LimbeckError, StorageError
from limbeck.recipe.recipe import Recipe, check
from limbeck.recipe.values import read_yaml_file
from limbeck.storage import store
from limbeck.storage.disk import storing
from limbeck.storage.plain import read_json

LEAVES = (
    *(
        "config.yaml",
        "identity.json",
        "result.json",
        "report.html",
        "log.jsonl",
        "metrics.csv",
        "trackers.json",
        "tensorboard",
    ),
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


def finished(folder: Path, tree: Mapping[str, Any], force: bool) -> dict[str, Any] | None:
    """The result of a run with these settings that is finished already; ``None`` where there is something to do.

    Whether the same data, networks and code entered it, `admit` says.

    Args:
        folder: the run folder.
        tree: the resolved recipe that is to be run.
        force: repeat it, or replace what lies there.

    Raises:
        StorageError: the folder holds something else, or cannot be written.
    """
    config, result = folder / "config.yaml", folder / "result.json"
    if config.exists() and not force:
        # one that failed before it made anything holds nothing to lose: the corrected command takes its place
        changed = _changed(config, tree) if _made(folder) else []
        if changed and grown(folder, tree):
            return None
        if changed:
            raise identity.refusal(str(folder), changed, "the folder holds a run with another configuration")
        if result.exists():
            return {**read_result(result), "folder": str(folder), "reused": True}
    elif folder.is_dir() and not config.exists() and any(folder.iterdir()) and not force:
        raise StorageError(
            str(folder), "the folder is not empty and holds no run", remedy="choose --out, or --force to use it"
        )
    store.check_writable(folder)
    return None


def grown(folder: Path, tree: Mapping[str, Any]) -> list[str]:
    """The lengths that alone have grown since the run in a folder was begun (``train.steps``): it may go on to them."""
    config = folder / "config.yaml"
    if not config.is_file() or not _made(folder):
        return []
    try:
        there = read_yaml_file(config)
        return lengthened(settings(there), settings(tree)) or lengthened(settings(check(there)), settings(tree))
    except (LimbeckError, TypeError):
        return []


class Claim:
    """A run's folder as it was before the run: one that is refused before it has made anything leaves nothing behind.

    Args:
        folder: the run folder; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._missing = [p for p in (folder, *folder.parents) if not p.exists()]
        self._known = (folder / "config.yaml").exists()

    def take_back(self) -> None:
        """Remove what the run has put there, unless there is more than its configuration."""
        if self._known or not self.folder.is_dir() or _made(self.folder):
            return
        with contextlib.suppress(OSError, StorageError):
            with store.RunLock(self.folder):  # another run that holds the folder keeps it
                for name in ("config.yaml", _RECORD):
                    (self.folder / name).unlink(missing_ok=True)
                for path in (p for pattern in LEAVES for p in self.folder.glob(pattern)):
                    path.rmdir()  # empty, or something would have been made
            for path in self._missing:
                path.rmdir()


def _made(folder: Path) -> bool:
    """Whether a run has left more in its folder than its configuration."""
    found = (path for pattern in LEAVES if pattern not in ("config.yaml", _RECORD) for path in folder.glob(pattern))
    return any(not path.is_dir() or any(path.iterdir()) for path in found)


def _changed(config: Path, tree: Mapping[str, Any]) -> list[str]:
    """The settings of the run in a folder that differ from those that are asked for, with both values."""
    now = {"format": 0, "recipe": settings(tree)}
    try:
        there = read_yaml_file(config)
    except LimbeckError as error:
        return [f"its config.yaml cannot be read ({error.problem})"]
    found = identity.differences({"format": 0, "recipe": settings(there)}, now)
    if found:  # one of an earlier limbeck knows fewer settings: their defaults are what it ran with
        try:
            found = identity.differences({"format": 0, "recipe": settings(check(there))}, now)
        except (LimbeckError, TypeError):
            return found
    return found


_FREE = (
    *("loggers", "export", "notes"),
    *(f"engine.{name}" for name in ("workers", "save_every", "save_minutes", "keep", "log_every", "guard")),
)
"""Settings that change nothing of what is learnt, bit for bit: a run may go on under other values of them."""


def settings(tree: Any, path: str = "") -> dict[str, Any]:
    """Everything that a recipe's tree says, by dotted path; lists stay whole."""
    if path in _FREE:
        return {}
    if isinstance(tree, Mapping) and (tree or not path):
        return {k: v for name, node in tree.items() for k, v in settings(node, f"{path}.{name}".lstrip(".")).items()}
    return {path: tree}


def admit(folder: Path, tree: Mapping[str, Any], entering: dict[str, Any], write: bool = True) -> None:
    """Compare what enters a run with what entered the run that lies in its folder, and leave a record of it there.

    Lengths may have grown: whether the run goes on to them, its engine says. With ``write`` off no record is left yet.

    Raises:
        StorageError: something else enters; what differs is named.
    """
    place, now = folder / _RECORD, {**entering, "recipe": settings(tree)}
    now = json.loads(json.dumps(now))
    if _made(folder):
        then = _record(place)
        if then is None and not (folder / "result.json").exists():
            raise StorageError(
                str(folder),
                "the run in it is of an earlier limbeck, which kept no record of what entered a run, so it cannot be "
                "told whether data, networks and code are the same",
                remedy="choose another folder with --out, or replace the run with --force",
            )
        if then is not None:
            then = {**then, "recipe": _as_today(folder, then.get("recipe", {}), now["recipe"])}
            if lengthened(then["recipe"], now["recipe"]):
                then = {**then, "recipe": now["recipe"]}
        changed = identity.differences(then, now) if then is not None else []
        if changed:
            raise identity.refusal(str(folder), changed)
        if then is None:
            return
    if not write:
        return
    store.atomic_write(place, (json.dumps(now, indent=1) + "\n").encode())


def _as_today(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The settings on a run's record as this limbeck would have written them.

    Settings that a run may go on under other values of are left out, and those that an earlier limbeck did not know stand
    at their defaults, which is what the run was made with.
    """
    known = {k: v for k, v in then.items() if settings(v, k)}
    new = set(now) - set(known)
    if new:
        try:
            whole = settings(check(read_yaml_file(folder / "config.yaml")))
        except (LimbeckError, TypeError):
            return known
        known.update({k: json.loads(json.dumps(whole[k])) for k in new & set(whole)})
    return known


_RECORD = "identity.json"


def _record(place: Path) -> dict[str, Any] | None:
    try:
        found = read_json(place)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointCorrupt(str(place), f"cannot be read: {error}", remedy="repeat the run with --force") from None
    return found if isinstance(found, dict) else {}


def read_result(path: Path) -> dict[str, Any]:
    """A run's ``result.json``.

    Raises:
        CheckpointCorrupt: it is damaged.
    """
    try:
        with storing(path, "read"):
            found = read_json(path)
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
