"""What every model of classes, maps and features does: weights loaded, inputs normalised, outputs matched to the task's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from limbeck.data.arrays import read_names
from limbeck.data.items import as_path
from limbeck.errors import ConfigError
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Form, Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Positive, settings
from limbeck.grammar.task import Check, Model, Task
from limbeck.models.adapting import (
    adapt,
    check_channels,
    check_input,
    contract_from,
    names_in_config,
    outputs_in,
    own_sizes,
    read_about,
    same_names,
)
from limbeck.models.forms import meet
from limbeck.storage.foreign import find_weights
from limbeck.storage.weights import load_state_dict, load_strict


class Classifier(Model):
    """Base of models that a task's `Needs` describe: a subclass makes the module for an input, so many outputs and a form.

    The number of outputs is the task's. A checkpoint with another number, or with classes in another order, is matched
    by the names of its classes: from ``labels``, or from what lies beside the checkpoint (``student.json`` of a run,
    ``labels.json``, ``classes.json``).

    Attributes:
        notes: sentences about what was loaded.
        other: the setting that takes another model that the checkpoint holds.
    """

    forms: ClassVar[tuple[Form, ...]] = ("classes",)
    checkpoint: str | None = None
    entry: str | None = None
    strip: str = ""
    labels: str | list[str] | None = None
    other = ""
    rehearsed = True  # build tries the network on two items

    def __post_init__(self) -> None:
        super().__post_init__()
        self.notes: list[str] = []

    def make(self, needs: Needs) -> nn.Module:
        """The module for inputs [N, *needs.inputs] and ``needs.outputs`` values, in the form ``needs.form``."""
        raise TypeError(f"{type(self).__name__} must define make")

    def contract(self, module: nn.Module, task: Task) -> Contract:
        """What the module expects: by default the data's own channels, normalised by its statistics."""
        mean, std = task.statistics()
        return Contract(mean=mean, std=std, channels=task.needs.inputs[0] if task.needs.pictures else None)

    def build(self, task: Task) -> Built:
        """The network for a task, weights loaded, classes matched by name, tried on two items.

        Raises:
            ConfigError: the task needs a form that it has not; or the network does not take the task's items.
            TeacherMismatch: the checkpoint's classes are not the task's.
            CheckpointCorrupt, ShapeError: the checkpoint is not this architecture's.
        """
        needs = meet(self, task)
        task.load()
        about = self._beside()
        check_input(about, needs, f"checkpoint {self.checkpoint}")
        self.notes = []
        module = self.make(needs)
        width = needs.outputs
        if self.checkpoint is not None:
            found = find_weights(
                as_path(self.checkpoint, "checkpoint"),
                module.state_dict(),
                entry=self.entry,
                strip=self.strip,
                role=self.role,
            )
            width = outputs_in(found.state, module, needs.outputs)
            if width != needs.outputs:
                module = self.make(needs.with_(outputs=width))
            load_strict(module, found.state, self.checkpoint, self.role)
            self.notes.append(str(found))
            self.other = found.other
        contract = self._normalised(self.contract(module, task), about, needs)
        check_channels(contract, needs)
        self._unresized(contract, needs)
        names = self._names(about)
        built = Built(module, contract.with_(key=needs.key), names, self, self.notes)
        width = self._kept() or width
        if needs.form in ("classes", "map"):
            what = f"checkpoint {self.checkpoint}" if self.checkpoint else type(self).__name__
            adapt(built, needs, width, about, what)
        self.rehearse(built, task)
        return built

    def opened(self, folder: Path, needs: Needs) -> nn.Module:
        """The network that `save` left in a run's folder."""
        module = self.make(needs)
        load_strict(module, load_state_dict(folder / "student.safetensors"), str(folder), self.role)
        return module

    def sizes(self, module: nn.Module) -> list[tuple[int, int]]:
        """The input sizes (height, width) that a network names as its own."""
        return own_sizes(module)

    def _unresized(self, contract: Contract, needs: Needs) -> None:
        """Refuse an input that is resized where the targets lie in its pixels.

        Raises:
            ConfigError: the size, and how to bring image and target to it together.
        """
        if needs.pixels and contract.size is not None and contract.size != needs.inputs[1:]:
            high, wide = contract.size
            raise ConfigError(
                self.setting("size"),
                f"its images would be resized to {high}x{wide}, and the targets lie in the task's pixels",
                given=f"{high}x{wide}",
                expected="the size of the task's own images, " + "x".join(map(str, needs.inputs[1:])),
                remedy=f"bring images and targets to that size together: task.size={high}"
                + ("" if high == wide else " (and choose a network for squares)"),
            )

    def rehearse(self, built: Built, task: Task) -> None:
        """Two items through the network; where it fails on images of their own size, at the size that it names itself.

        Raises:
            ConfigError, ShapeError: it takes the items at no size, or answers with another shape.
        """
        try:
            task.rehearse(built)
            return
        except ConfigError as error:
            first = error
        given, asked, needs = built.contract, getattr(self, "size", None), task.needs
        for size in self.sizes(built.module) if needs.pictures and not needs.pixels else []:
            built.contract = given.with_(size=size)
            try:
                task.rehearse(built)
            except ConfigError:
                continue
            if asked is None:
                was = "x".join(map(str, needs.inputs[1:]))
                built.notes.append(f"images of {was} are brought to the {size[0]}x{size[1]} that the network takes")
                return
            first.remedy = f"set {self.setting('size')}={size[0]}, the size that the network takes, or leave it out"
            break
        built.contract = given
        raise first

    def _kept(self) -> int | None:
        """The number of outputs of a pretrained head that was kept; ``None`` where there is none."""
        return None

    def _beside(self) -> dict[str, Any]:
        """What a run wrote beside the weights, if they are a run's."""
        if self.checkpoint is None:
            return {}
        path = as_path(self.checkpoint, "checkpoint")
        folder = path if path.is_dir() else path.parent
        return read_about(folder / "student.json") if (folder / "student.json").is_file() else {}

    def _given(self) -> list[str] | None:
        """The class names that ``labels`` gives, itself or as a file."""
        if self.labels is None or isinstance(self.labels, list):
            return self.labels
        return read_names(as_path(self.labels, "labels"))

    def _names(self, about: Mapping[str, Any]) -> list[str] | None:
        """The class names of the weights, where they can be known.

        Raises:
            TeacherMismatch: ``labels`` contradicts what a run wrote beside its own weights.
        """
        given = self._given()
        if given is not None:
            same_names(given, about, str(self.checkpoint))
            return given
        if about.get("labels"):
            return [str(n) for n in about["labels"]]
        if self.checkpoint is not None:
            path = as_path(self.checkpoint, "checkpoint")
            folder = path if path.is_dir() else path.parent
            for name in ("labels.json", "classes.json", "labels.txt", "classes.txt"):
                if (folder / name).is_file():
                    return read_names(folder / name)
            return names_in_config(folder / "config.json")
        return None

    def _normalised(self, contract: Contract, about: Mapping[str, Any], needs: Needs) -> Contract:
        return contract_from(about, needs) if about else contract


@settings
class Loaded(Classifier):
    """Base of models whose weights may come from a file.

    Args:
        checkpoint: file with weights: safetensors, or a torch file without pickled objects. Loading is strict.
        labels: class names of the checkpoint in the order of its outputs, or a file with them (a JSON list, or one name per
            line).
        entry: entry of a training checkpoint that contains the weights (``ema``); ``null`` finds it and reports which.
        strip: prefix to remove from the names of the weights (``net.``); prefixes of known wrappers are removed anyway.
        check: ``on`` tests a trained teacher on labelled items first and rejects it if it only guesses; ``off`` skips this.
    """

    _: KW_ONLY
    checkpoint: str | None = None
    labels: str | list[str] | None = None
    entry: str | None = None
    strip: str = ""
    check: Check = "on"

    def validate(self) -> None:
        """Names differ."""
        if isinstance(self.labels, list) and len(set(self.labels)) < max(1, len(self.labels)):
            raise ValueError("labels must be names that differ, one an output, or a file of them")


@settings
class Normalised(Loaded):
    """Base of models whose input is normalised before it goes in.

    Args:
        mean: normalisation of each channel; by default what the model's library says, else the training data's mean.
        std: likewise, the deviation.
    """

    _: KW_ONLY
    mean: list[float] | None = None
    std: list[Positive] | None = None

    def validate(self) -> None:
        """Both or neither, of one length."""
        super().validate()
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError("mean and std must have the same length")

    def _normalised(self, contract: Contract, about: Mapping[str, Any], needs: Needs) -> Contract:
        if self.mean is not None and self.std is not None:
            return contract.with_(mean=tuple(self.mean), std=tuple(self.std))
        return super()._normalised(contract, about, needs)
