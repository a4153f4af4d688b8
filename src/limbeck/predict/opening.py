"""A trained network found in a run, an export or a file, and built again from what lies there, without its data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.data.items import as_path
from limbeck.engine import distributed as dist
from limbeck.errors import ConfigError, DataError, LimbeckError, nearest, shorten
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.task import Model, Task
from limbeck.models.adapting import adapt, contract_from, read_about
from limbeck.recipe.recipe import load_tree, make
from limbeck.storage.weights import load_state_dict, load_strict

BY_FORM = {
    "classes": "classification",
    "map": "dense",
    "pyramid": "anomaly",
    "boxes": "boxes",
    "keypoints": "keypoints",
    "poses": "poses",
    "graphs": "graphs",
    "tokens": "language",
    "hidden-tokens": "masked-words",
}
"""Task by the form of its networks, for folders that were written before the task's own name was."""

WEIGHTS = ("student.safetensors", "model.safetensors", "student/model.safetensors")


@dataclass
class Place:
    """Where a trained network lies.

    Attributes:
        folder: of the run or the export.
        about: its ``student.json``, what it says of the task on the same level; empty where there is none.
        onnx: the graph, where it is one.
        run: whether it is a run's folder.
        notes: what was assumed.
    """

    folder: Path
    about: dict[str, Any]
    onnx: Path | None = None
    run: bool = False
    notes: list[str] = field(default_factory=list)


def find(path: str | Path) -> Place:
    """The run, export or file of that name.

    Raises:
        ConfigError: nothing is there, or no trained network; near names are told.
    """
    try:
        at = as_path(path, "RUN")
    except DataError as error:
        raise ConfigError(
            "RUN", error.problem, given=str(path), expected="the folder of a run or of an export"
        ) from None
    file = at if at.is_file() else None
    folder = at.parent if file is not None else at
    if file is not None and file.suffix not in (".onnx", ".json", ".safetensors", ".yaml"):
        raise ConfigError(
            "RUN", f"{shorten(str(path))} is not a trained network", expected="a run's or export's folder"
        )
    if not folder.is_dir():
        beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        close = nearest(folder.name, beside)
        remedy = f"did you mean {str(folder.parent / close[0])!r}?" if close else "limbeck run makes one"
        raise ConfigError("RUN", f"there is no folder {shorten(str(path))}", remedy=remedy)
    run = (folder / "config.yaml").is_file()
    graphs = [file] if file is not None and file.suffix == ".onnx" else sorted(folder.glob("student*.onnx"))
    onnx = graphs[0] if graphs and not run else None
    about: dict[str, Any] = {}
    if (folder / "student.json").is_file():
        about = read_about(folder / "student.json")
    elif onnx is not None:
        about = _inside(onnx)
    if not about and not run:
        raise ConfigError(
            "RUN",
            f"the folder {shorten(str(path))} holds no student.json and no config.yaml",
            expected="the folder of a run or of an export",
        )
    return Place(folder, about, onnx, run)


def _inside(path: Path) -> dict[str, Any]:
    """What a graph says of its student in its own metadata; empty where it says nothing."""
    import json

    from limbeck.export.onnx import OnnxNetwork

    said = OnnxNetwork(path).session.get_modelmeta().custom_metadata_map.get("limbeck.student")
    try:
        found = json.loads(said) if said else {}
    except ValueError as error:
        raise DataError(str(path), f"its metadata are no JSON: {error}") from None
    task = found.get("task")
    return {**(task if isinstance(task, dict) else {}), **found}


def task_of(place: Place) -> Task:
    """The task that a network was made for, its settings as they were, its data left alone.

    Raises:
        ConfigError: its folder does not say which.
        Untrusted: it names code that this workspace has not run before.
    """
    about, node = place.about, None
    if about.get("use"):
        node = {"use": about["use"], **(about.get("settings") or {})}
    elif place.run:
        own = load_tree(place.folder / "config.yaml").get("task")
        node = dict(own) if isinstance(own, dict) else {"use": own}
        for name in ("data", "unlabelled"):
            node.pop(name, None)
    else:
        form = str(about.get("form") or "")
        guess = "text-classes" if about.get("length") and form == "classes" else BY_FORM.get(form)
        if guess is not None:
            node = {"use": guess}
            place.notes.append(f"student.json does not name its task: it is taken to be {guess}")
    if node is None:
        raise ConfigError(
            "RUN", "its student.json does not say what it was made for", given=str(place.folder),
            remedy="export it again: limbeck export RUN",
        )  # fmt: skip
    task = make(Task, node, "task", place.folder / "student.json")
    assert isinstance(task, Task)
    return task


def network(place: Place, task: Task, given: nn.Module | None = None) -> Built:
    """The network of a run's end or of an export, for a task that knows what it was made for (`Task.recall`).

    Args:
        place: where it lies.
        task: as `task_of` gave it.
        given: the network itself, where its folder cannot say how it is built (one that a program handed to ``distill``).

    Raises:
        ConfigError: the folder does not say how it is built.
        Untrusted: it is made by code that this workspace has not run before.
        CheckpointCorrupt, ShapeError: weights that do not fit.
    """
    about, folder = place.about, place.folder
    names = [str(n) for n in about.get("labels") or []] or None
    if place.onnx is not None:
        return _onnx(place, task, names)
    needs = task.needs
    if needs.tokens is not None:
        return _own_text(place, task) or _text(place, task)
    contract = contract_from(about, needs).with_(key=needs.key)
    if given is not None:
        load_strict(given, _weights(folder), str(folder), "student")
        return _adapted(Built(given, contract, names), needs, about, folder)
    model = _model(place)
    model.role = "student"
    width = len(names) if names and needs.form in ("classes", "map", "graphs") else needs.outputs
    try:
        module = _opened(model, place, needs.with_(outputs=width))
    except LimbeckError:
        raise
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError("RUN", f"{folder} cannot be opened: {type(error).__name__}: {error}") from None
    model.checkpoint = str(folder)
    return _adapted(Built(module, contract, names, model), needs, about, folder)


def _adapted(built: Built, needs: Needs, about: dict[str, Any], folder: Path) -> Built:
    built.module.eval()
    if needs.form in ("classes", "map", "graphs") and needs.names:
        adapt(built, needs, len(built.labels) if built.labels else needs.outputs, about, f"the student of {folder}")
        built.notes.clear()
    return built


def _model(place: Place) -> Any:
    node = place.about.get("model")
    if not isinstance(node, dict) or not node.get("use"):
        raise ConfigError(
            "RUN",
            "its student was a module that a program held, so its folder does not say how it is built",
            given=str(place.folder),
            remedy="hand the module over: limbeck.load(RUN, module=NET)",
        )
    bare: dict[str, Any] = {"checkpoint": None, "labels": None, "pretrained": False, "weights": None}
    plain = {k: bare.get(k, v) for k, v in node.items()}
    if node["use"] == "mesh":
        plain["source"] = str(place.folder / "student.safetensors")
    if node["use"] == "run":
        raise ConfigError(
            "RUN",
            f"its student.json names another run's network ({shorten(node.get('path'))})",
            given=str(place.folder),
        )
    return make(Model, plain, "model", place.folder / "student.json")


def _opened(model: Any, place: Place, needs: Needs) -> nn.Module:
    """The module with its weights: a library's folder by the library, else built and filled."""
    folder = place.folder
    if hasattr(model, "gguf_file") and any((f / "config.json").is_file() for f in (folder / "student", folder)):
        found: nn.Module = model.opened(folder, needs)
        return found
    module: nn.Module = model.make(needs)
    load_strict(module, _weights(folder), str(folder), "student")
    return module


def _weights(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError("RUN", f"{folder} holds no weights", expected="student.safetensors, or a library's folder")
    return dict(load_state_dict(file))


def _onnx(place: Place, task: Task, names: list[str] | None) -> Built:
    from limbeck.export.onnx import OnnxNetwork

    assert place.onnx is not None
    contract = contract_from(place.about, task.needs).with_(key=task.needs.key)
    _tokenizer(place, task)
    net = OnnxNetwork(place.onnx, task.onnx_names, contract)
    said = net.session.get_modelmeta().custom_metadata_map
    if said.get("limbeck.normalise") == "inside":
        contract = contract.with_(mean=(), std=())
    built = Built(net, contract, names)
    needs = task.needs
    if needs.form in ("classes", "map", "graphs") and needs.names:
        adapt(built, needs, len(names) if names else needs.outputs, place.about, f"the student of {place.folder}")
        built.notes.clear()
    net.contract = built.contract
    return built


def _tokenizer(place: Place, task: Any) -> None:
    """A text task's tokenizer, from beside the graph."""
    if not hasattr(task, "adopt"):
        return
    from limbeck.tasks.tokenizers import load_tokenizer

    for folder in (place.folder / "student", place.folder / "tokenizer", place.folder):
        if (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file():
            task.tokenizer_name = None
            task.adopt(load_tokenizer(str(folder)), str(folder))
            return
    raise ConfigError(
        "RUN", "no tokenizer lies beside the graph, so no text can be fed to it", given=str(place.folder),
        remedy="export it again: limbeck export RUN --format onnx",
    )  # fmt: skip


def _own_text(place: Place, task: Any) -> Built | None:
    """A network of texts that its own model reopens (`reopened`), because no library has its architecture."""
    node = place.about.get("model")
    if not isinstance(node, dict) or not node.get("use"):
        return None
    inside = place.folder / "student"
    if inside.is_dir() and not (inside / "modules.json").is_file():
        return None
    model = _model(place)
    if hasattr(model, "from_folder"):
        model.role = "student"
        opened: Built = model.from_folder(inside, task)
        return opened
    if not hasattr(model, "reopened"):
        return None
    model.role = "student"
    built: Built = model.reopened(place.folder, task, _weights(place.folder))
    return built


def _text(place: Place, task: Any) -> Built:
    """A network of texts: from the folder that transformers reads, or one of our own with its tokenizer beside it."""
    from limbeck.models.huggingface import HuggingFace

    node = place.about.get("model")
    if isinstance(node, dict) and node.get("use"):
        own = _model(place)
        if getattr(own, "own_text", False):
            _tokenizer(place, task)
            module = _opened(own, place, task.needs)
            module.eval()
            return Built(module, contract_from(place.about, task.needs), None, own)
    folder = next((f for f in (place.folder / "student", place.folder) if (f / "config.json").is_file()), None)
    if folder is None:
        raise ConfigError(
            "RUN",
            f"{place.folder} holds no folder student/ with the network and its tokenizer",
            expected="a run or an export of a network of texts",
        )
    model = HuggingFace(str(folder), dtype="auto", check="off")
    task.tokenizer_name = None
    built = model.build(task)
    built.module.eval()
    return built


def pick(device: str | torch.device | None) -> torch.device:
    """The device that is asked for; the best there is where none is."""
    return device if isinstance(device, torch.device) else dist.pick_device(device or "auto")


__all__ = ["Place", "find", "network", "pick", "task_of"]
