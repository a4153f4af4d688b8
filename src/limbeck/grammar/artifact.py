"""What a run makes: a network, an adapter, a data set, a sampler, a scene, a corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from limbeck.grammar.method import Built

if TYPE_CHECKING:
    from limbeck.grammar.task import Task


class Artifact:
    """Something that can be scored, saved and exported.

    Attributes:
        kind: ``network``, ``dataset``, ``sampler``... as shown in reports.
        formats: what ``export`` can write.
    """

    kind: ClassVar[str] = "artifact"
    formats: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write it alone, in its native format, into a folder that exists."""
        raise TypeError(f"{type(self).__name__} must define save")

    def state(self) -> dict[str, Any]:
        """Its tensors and modules by name: what is kept of it where it is the best so far."""
        raise TypeError(f"{type(self).__name__} must define state")

    def take(self, state: Mapping[str, Any], where: str = "best") -> None:
        """Put back what `state` gave of an artifact of the same make.

        Args:
            state: tensors by name, and modules as their own state.
            where: what an error is about.

        Raises:
            CheckpointCorrupt: it is of another make.
        """
        _lay(self.state(), state, where)

    def size(self) -> dict[str, float]:
        """Parameters, bytes and the like."""
        return {}

    def opened(self, form: str, folder: Path) -> Artifact | None:
        """What was exported, read back as whoever finds it would read it; ``None`` where its writer has checked it."""
        return None

    def lost(self, form: str) -> dict[str, Any]:
        """What a format cannot hold of it: facts for the report, and a ``note`` that names the format which can."""
        return {}


class NetworkArtifact(Artifact):
    """The student network.

    Args:
        task: what it is for.
        built: the network with its contract and labels.
        part: the part of the task that it is for (`Task.part`); empty for the whole.

    Attributes:
        metrics: what it scored on the test split, once that is known: it travels with the network.
    """

    kind: ClassVar[str] = "network"
    formats: tuple[str, ...] = ("safetensors", "onnx", "onnx-int8", "hub")

    def __init__(self, task: Task, built: Built, part: str = "") -> None:
        self.task, self.built, self.part = task, built, part
        self.metrics: dict[str, float] = {}

    def judge(self, task: Task) -> Task:
        """What evaluates it: the task, or the part of it that it is for."""
        return task.part(self.part) if self.part else task

    def save(self, folder: Path) -> None:
        """``student.safetensors`` (or the library's folder ``student/``), with labels and preprocessing beside it."""
        from limbeck.storage.store import atomic_write

        self.built.model.save(self.built.module, folder, self.built.labels)
        atomic_write(folder / "student.json", json.dumps(self.about(), indent=2).encode())

    def about(self) -> dict[str, Any]:
        """What must be known to use the network elsewhere: class names, preprocessing, how it is built, its task."""
        return {
            "kind": self.kind,
            "labels": self.built.labels,
            "preprocessing": self.task.preprocessing(self.built.contract),
            "model": _node(self.built.model),
            "task": {**_settings(self.task), "classes": self.task.labels, **self.task.describe()},
            **({"metrics": dict(self.metrics)} if self.metrics else {}),
        }

    def state(self) -> dict[str, Any]:
        """The network."""
        return {"network": self.built.module}

    def size(self) -> dict[str, float]:
        """Parameters and bytes of parameters and buffers."""
        if not isinstance(self.built.module, nn.Module):  # a recorded or remote teacher has none here
            return {}
        tensors = [*self.built.module.parameters(), *self.built.module.buffers()]
        return {
            "parameters": float(sum(p.numel() for p in self.built.module.parameters())),
            "bytes": float(sum(t.numel() * t.element_size() for t in tensors)),
        }


def _lay(into: Mapping[str, Any], state: Mapping[str, Any], where: str) -> None:
    """Values into the modules and tensors of the same names, strictly."""
    from limbeck.errors import CheckpointCorrupt
    from limbeck.storage.weights import load_strict

    if set(into) != set(state):
        raise CheckpointCorrupt(where, f"holds {sorted(state)}", expected=f"{sorted(into)}")
    for name, value in into.items():
        if isinstance(value, nn.Module):
            load_strict(value, state[name], f"{where} ({name})")
        elif isinstance(value, Mapping):
            _lay(value, state[name], f"{where} ({name})")
        elif isinstance(value, Tensor):
            value.data.copy_(state[name])


def _node(model: Any) -> dict[str, Any] | None:
    """A model as a recipe node; ``None`` for what can't stand in a recipe (a module that the caller holds)."""
    from limbeck.recipe.hints import Mismatch
    from limbeck.recipe.schema import node_of

    try:
        return node_of(model)
    except (Mismatch, AttributeError):
        return None


def _settings(task: Any) -> dict[str, Any]:
    """A task's name in recipes and its settings, without its data and whatever names a place on this machine."""
    given = task.config if isinstance(getattr(task, "config", None), dict) else {}
    away = {"use", "data", "unlabelled", "photos", "path", *type(task).paths}
    kept = {k: v for k, v in given.items() if k not in away and not isinstance(v, dict)}
    return {"use": given["use"], "settings": kept} if given.get("use") else {}
