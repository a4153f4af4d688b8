"""A network with other classes, channels or units than the task's: read what it says of itself, and adapt to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.classes import match_classes
from limbeck.data.names import some
from limbeck.errors import ConfigError, DataError, TeacherMismatch
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.storage.plain import read_json


def outputs_in(state: Mapping[str, Tensor], module: nn.Module, outputs: int) -> int:
    """How many outputs a checkpoint has, if only that differs from the module's shapes; else ``outputs``."""
    mine = module.state_dict()
    found = set()
    for name, value in state.items():
        own = mine.get(name)
        if own is None or own.shape == value.shape:
            continue
        same_rest = own.ndim == value.ndim and own.ndim > 0 and own.shape[1:] == value.shape[1:]
        if not same_rest or own.shape[0] != outputs:
            return outputs
        found.add(int(value.shape[0]))
    return found.pop() if len(found) == 1 else outputs


def read_about(path: Path) -> dict[str, Any]:
    """A run's ``student.json``, with what it says of its task on the same level."""
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise DataError(str(path), "is no description of a student", given=type(found).__name__)
    task = found.get("task")
    return {**(task if isinstance(task, dict) else {}), **found}


def names_in_config(path: Path) -> list[str] | None:
    """The class names in a library's ``config.json``: transformers' ``id2label``, timm's ``label_names``.

    ``None`` where there are none, or only the placeholders ``LABEL_0``, ``LABEL_1`` that transformers puts there itself.
    """
    try:
        config = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    given = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    return [str(n) for n in given] if isinstance(given, list) and given else names_by_id(config.get("id2label"))


def names_by_id(id2label: Any) -> list[str] | None:
    """``id2label`` as a list in the order of its ids; ``None`` where it is none, has gaps, or holds placeholders."""
    if not isinstance(id2label, Mapping) or not id2label:
        return None
    try:
        by_id = {int(i): str(n) for i, n in id2label.items()}
    except (TypeError, ValueError):
        return None
    placeholders = all(n == f"LABEL_{i}" for i, n in by_id.items())
    return None if placeholders or sorted(by_id) != list(range(len(by_id))) else [by_id[i] for i in range(len(by_id))]


def own_sizes(module: nn.Module) -> list[tuple[int, int]]:
    """The input sizes (height, width) that a network names as its own, the surest first."""
    embed, config = getattr(module, "patch_embed", None), getattr(module, "config", None)
    named = [getattr(part, name, None) for part in (embed, module, config) for name in ("img_size", "image_size")]
    named.append(getattr(module, "input_size", None))
    for attribute in ("pretrained_cfg", "default_cfg"):
        found = getattr(module, attribute, None)
        if isinstance(found, Mapping) and found.get("input_size"):
            named.append(tuple(found["input_size"])[-2:])
    sizes = []
    for size in named:
        pair = (size, size) if isinstance(size, int) else size
        if isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(n, int) and n > 0 for n in pair):
            sizes.append((int(pair[0]), int(pair[1])))
    return list(dict.fromkeys(sizes))


def check_input(about: Mapping[str, Any], needs: Needs, what: str) -> None:
    """Refuse a run's network of another form, or where it takes images and the task gives rows, or the reverse, or rows
    of another length.

    Images of another size or of other channels are the contract's to adapt, or to refuse.

    Raises:
        TeacherMismatch: what the network was made for, and what the task gives.
    """
    try:
        own = tuple(int(n) for n in about.get("input") or ())
    except (TypeError, ValueError) as error:
        raise DataError("student.json", f"its input cannot be read: {error}", given=about.get("input")) from None
    form = str(about.get("form") or "classes")
    if about and form != needs.form:
        raise TeacherMismatch(
            "model", f"{what} has the form {form!r}, and the task needs {needs.form!r}", remedy="name another network"
        )
    if own and (len(own) != len(needs.inputs) or (len(own) == 1 and own != needs.inputs)):
        raise TeacherMismatch(
            "model",
            f"{what} was trained on {_items(own)}, and this task gives {_items(needs.inputs)}",
            remedy="name a network for such items, or the data that this one was trained on with task.data",
        )


def _items(shape: tuple[int, ...]) -> str:
    """The shape of an item in words."""
    if len(shape) == 1:
        return f"rows of {shape[0]} number{'s' if shape[0] != 1 else ''}"
    return f"images of {' x '.join(map(str, shape))} (channels, height, width)"


def same_names(given: Sequence[str], about: Mapping[str, Any], checkpoint: str) -> None:
    """Refuse class names that say otherwise than those which a run wrote beside its own network.

    Raises:
        TeacherMismatch: both lists.
    """
    own = [str(n) for n in about.get("labels") or ()]
    if own and [n.casefold() for n in own] != [n.casefold() for n in given]:
        raise TeacherMismatch(
            "labels",
            f"say {some(given)}, and student.json beside {checkpoint} says {some(own)}: of one network both can't be true",
            remedy="leave labels out, or take the names out of student.json if they are wrong",
        )


def contract_from(about: Mapping[str, Any], needs: Needs) -> Contract:
    """The input contract that a run wrote beside its student; images of another size are resized to the run's."""
    said = about.get("preprocessing") or {}
    try:
        size = tuple(said["size"]) if said.get("size") else None
        shape = tuple(about.get("input") or ())
        if size is None and len(shape) == 3 and needs.pictures and shape[1:] != needs.inputs[1:] and not needs.pixels:
            size = shape[1:]
        return Contract(
            mean=tuple(map(float, said.get("mean") or ())),
            std=tuple(map(float, said.get("std") or ())),
            size=(int(size[0]), int(size[1])) if size else None,
            channels=int(said["channels"]) if said.get("channels") else None,
        )
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError("student.json", f"its preprocessing cannot be read: {error}", given=said) from None


def check_channels(contract: Contract, needs: Needs) -> None:
    """Refuse images whose channels the contract cannot adapt."""
    if not needs.pictures:
        return
    given, wanted = needs.inputs[0], contract.channels
    if wanted and given != wanted and given != 1 and not (wanted == 1 and given == 3):
        raise DataError("task.data", f"images have {given} channels", expected=f"{wanted}, or 1 (grey)")
    channels = wanted or given
    if contract.mean and len(contract.mean) not in (1, channels):
        raise ConfigError("mean", given=list(contract.mean), expected=f"{channels} numbers, one a channel")


def adapt(built: Built, needs: Needs, width: int, about: Mapping[str, Any], what: str) -> None:
    """Bring a network's outputs into the task's order and units, in its contract.

    Args:
        built: the network; ``labels`` are the names of its own outputs, or ``None`` where they are not known.
        needs: whose names they must have; outputs without names (features) are left as they are.
        width: the number of its outputs.
        about: what was written beside it.
        what: what an error calls it.

    Raises:
        TeacherMismatch: classes are missing, or nothing says which output is which class.
    """
    if not needs.names:
        return
    names = list(needs.names)
    trained = built.model is not None and (built.model.trained or about)
    kind = about.get("target")
    if kind is not None and kind != needs.target:
        raise TeacherMismatch(
            "teacher",
            f"{what} answers with {_KINDS.get(str(kind), kind)}, and the task asks for {_KINDS[needs.target]}",
            remedy="name another checkpoint, or train one on this data",
        )
    if built.labels is not None and len(built.labels) != width:
        raise TeacherMismatch(
            "teacher.labels", f"{len(built.labels)} names for {width} outputs of {what}", expected="one name an output"
        )
    if built.labels is None:
        if width != needs.outputs:
            raise TeacherMismatch(
                "teacher.labels",
                f"{what} has {width} outputs, the task has {needs.outputs} classes, and nothing says which is which",
                remedy="name the classes of the checkpoint in order: labels=FILE (a JSON list, or one name a line), or labels=[A,B]",
            )
        if trained and needs.outputs > 1:
            shown = some([repr(n) for n in names], 6)
            built.notes.append(
                f"{what} comes without class names: its outputs are taken to be in the task's order ({shown})"
            )
        built.labels = names
    built.contract = built.contract.with_(classes=match_classes(built.labels, names), width=width)
    if needs.target == "number" and about.get("number_std"):
        order = built.contract.classes or range(width)
        mean, std = torch.tensor(needs.mean), torch.tensor(needs.std)
        scale = torch.tensor([float(about["number_std"][i]) for i in order]) / std
        shift = (torch.tensor([float(about["number_mean"][i]) for i in order]) - mean) / std
        if not (torch.allclose(scale, torch.ones_like(scale)) and torch.allclose(shift, torch.zeros_like(shift))):
            built.contract = built.contract.with_(scale=tuple(scale.tolist()), shift=tuple(shift.tolist()))


_KINDS = {"label": "one class", "labels": "several classes", "number": "numbers"}
