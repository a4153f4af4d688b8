"""The student of an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.data.items import as_path
from limbeck.errors import ConfigError, shorten
from limbeck.grammar.method import Built
from limbeck.grammar.needs import FORMS
from limbeck.grammar.settings import settings
from limbeck.grammar.task import Check, Model, Task
from limbeck.models.adapting import adapt, check_channels, check_input, contract_from, read_about
from limbeck.models.classifier import Classifier

NAMES = {"model": {"run": "FromRun"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class FromRun(Classifier):
    """The student of an earlier run, with the class names and the input contract it was saved with.

    Args:
        path: the run folder.
        check: try it on labelled items before anything is trained, and refuse it where it only guesses: ``on`` or ``off``.
    """

    forms = tuple(
        f for f in FORMS if f not in ("tokens", "hidden-tokens", "denoiser")
    )  # which are opened by kinds of their own

    path: str
    check: Check = "on"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.checkpoint = self.path

    def build(self, task: Task) -> Built:
        """The student, rebuilt from ``student.json`` and ``student.safetensors``.

        Raises:
            ConfigError: the folder holds no student that can be rebuilt.
            TeacherMismatch: its classes are not the task's.
            Untrusted: it is made by code that this workspace has not run before.
        """
        from limbeck.recipe.recipe import make

        folder = as_path(self.path, "path")
        task.load()
        needs = task.needs
        if needs.form not in self.forms:
            raise self._other(folder, type(task).__name__)
        if not (folder / "student.json").is_file():
            raise ConfigError("path", "the folder holds no student.json", given=self.path, expected="a finished run")
        about = read_about(folder / "student.json")
        node = about.get("model")
        if (folder / "sampler.json").is_file():
            raise ConfigError(
                "path",
                f"the run made a sampler, and a network of the form {needs.form!r} is wanted",
                given=self.path,
                expected="the run of such a network",
            )
        if not isinstance(node, dict) or not about.get("input") or not about.get("outputs"):
            raise ConfigError(
                "path",
                f"{folder / 'student.json'} does not say how its network is built",
                remedy="name the network yourself, with checkpoint=" + str(folder / "student.safetensors"),
            )
        bare = {"checkpoint": None, "labels": None, "pretrained": False, "weights": None}
        model = make(Model, {k: bare.get(k, v) for k, v in node.items()}, "model", folder / "student.json")
        if isinstance(model, FromRun):
            raise ConfigError(
                "path",
                f"{folder / 'student.json'} names another run's network ({shorten(model.path)}) in place of its own",
                remedy="name the network yourself, with checkpoint=" + str(folder / "student.safetensors"),
            )
        if not isinstance(model, Classifier):
            raise ConfigError(
                "path", f"the student is a {shorten(node.get('use'))}, which is not opened so", given=self.path
            )
        check_input(about, needs, f"the student of {folder}")
        names = [str(n) for n in about.get("labels") or []] or None
        width = len(names) if names else int(about["outputs"])
        own = needs.with_(inputs=tuple(int(s) for s in about["input"]), outputs=width)
        module = model.opened(folder, own)
        model.role, model.check, model.checkpoint = (
            self.role,
            self.check,
            str(folder),
        )  # it is ready, and here named by it
        built = Built(
            module, contract_from(about, needs).with_(key=needs.key), names, model
        )  # a student that begins here says how it is made
        check_channels(built.contract, needs)
        adapt(built, needs, width, about, f"the student of {folder}")
        task.rehearse(built)
        return built

    def _other(self, folder: Path, task: str) -> ConfigError:
        """What is to be said where language models and denoisers are wanted: how the network of that folder is named instead."""
        node: Any = None
        role = self.role or "student"
        if (folder / "student.json").is_file():
            node = read_about(folder / "student.json").get("model")
        said = f"run: opens networks of images and rows, and {task} wants another kind"
        if not isinstance(node, dict) or not isinstance(node.get("use"), str):
            return ConfigError("path", said, given=self.path, remedy="name the kind of network, with checkpoint=FILE")
        settings = [f"{role}={node['use']}"]
        settings += [
            f"{role}.{name}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in node.items()
            if name not in ("use", "checkpoint") and isinstance(value, (bool, int, float, str))
        ]
        if (folder / "student.safetensors").is_file():
            settings.append(f"{role}.checkpoint={folder / 'student.safetensors'}")
        elif (folder / "student").is_dir():
            settings = [f"{role}=hf:{folder / 'student'}"]
        return ConfigError("path", said, given=self.path, remedy=f"name its network: {' '.join(settings)}")
