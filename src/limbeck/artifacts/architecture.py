"""An architecture that a search has found: the network, and the table of what it was chosen from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built
from limbeck.grammar.task import Task
from limbeck.storage.store import atomic_write


class Architecture(NetworkArtifact):
    """A network whose layers were chosen.

    It is saved as every network is; ``student.json`` says how it is built, and ``architecture.json`` what was found beside.

    Args:
        task: what it is for.
        built: the network; its model is the recipe node that makes it.
        table: architectures by ``name``, each with its ``layers``, ``estimate`` and ``costs``, one of them ``chosen``.
    """

    def __init__(self, task: Task, built: Built, table: Sequence[dict[str, Any]]) -> None:
        super().__init__(task, built)
        self.table = list(table)

    def save(self, folder: Path) -> None:
        """The network, and the table."""
        super().save(folder)
        atomic_write(folder / "architecture.json", json.dumps(self.table, indent=2).encode())
