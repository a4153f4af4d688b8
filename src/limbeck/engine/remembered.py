"""The remembered stages of a run: by what each is known, where it lies, and what a stage of steps leaves there.

A key is made of what a stage depends on (`limbeck.engine.identity.of_stage`) when the run reaches it; nobody writes one by
hand. Runs that reach the same key share what was made, whatever method, seed or folder is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from limbeck.engine import identity
from limbeck.engine.turns import describe, take_turn, why_anew
from limbeck.errors import MethodError
from limbeck.grammar.method import Method, Stage
from limbeck.storage import store

RESULT = "result"
"""The folder, within a stage of steps' own, that holds what it left."""


class Remembered:
    """What a run knows of its remembered stages.

    Args:
        root: the workspace; ``None`` remembers nothing.

    Attributes:
        keys: of the stages that the run has reached, by name.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.keys: dict[str, str] = {}
        self._parts: dict[str, dict[str, Any]] = {}

    def know(self, method: Method, stage: Stage, roles: Mapping[str, Mapping[str, Any]], kept: list[str]) -> None:
        """Give a stage its key, where it is to be remembered and has none yet.

        Args:
            method: bound.
            stage: reached: its data and length are known.
            roles: what each role is at this moment, its state included.
            kept: whose optimisers a later stage goes on with.

        Raises:
            MethodError: it narrows the roles it depends on, and leaves out one that learns in it.
        """
        if stage.remember is None or self.root is None or stage.name in self.keys:
            return
        names = sorted(roles) if stage.roles is None else sorted(stage.roles)
        missing = [
            n for n in (*names, *(stage.optim if stage.items is None else ())) if n not in roles or n not in names
        ]
        if missing:
            raise MethodError(
                f"stage {stage.name}",
                f"it is remembered, and its `roles` {names} do not go with {missing}",
                expected=f"roles among {sorted(roles)}, with all that learn in it",
            )
        parts = identity.of_stage(method, stage, {n: roles[n] for n in names}, self.keys) | {"kept": kept}
        self._parts[stage.name] = parts
        self.keys[stage.name] = identity.key(parts)

    def folder(self, stage: str) -> Path | None:
        """Where a stage is remembered; ``None`` where it is not."""
        if stage not in self.keys or self.root is None:
            return None
        return self.root / f"{store.safe_name(stage)}-{self.keys[stage]}"

    def turn(self, stage: str, done: Any, say: Any) -> AbstractContextManager[Any] | None:
        """The right to make a stage, once nobody else is making it; ``None`` where it is made by then.

        ``done`` tells whether it is.
        """
        folder = self.folder(stage)
        assert folder is not None
        lock: AbstractContextManager[Any] | None = take_turn(folder, done, say, stage)
        if lock is not None and stage in self._parts and not (folder / "identity.json").exists():
            parts = self._parts[stage]
            reason = why_anew(folder, stage, parts)
            if reason:
                say(f"{stage}: making it{reason}")
            describe(folder, parts)
        return lock


__all__ = ["RESULT", "Remembered"]
