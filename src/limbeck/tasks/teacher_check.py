"""A ready classifier tried on labelled items before anything is trained from it: refused where it only guesses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, TeacherMismatch
from limbeck.grammar.method import Built
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import device_of, evaluating
from limbeck.tasks import guessing
from limbeck.tasks.guessing import Trial

if TYPE_CHECKING:
    from limbeck.tasks.classification import Labelled

Answers = Callable[[Contract], Tensor]
"""A contract -> the teacher's answers [N, C] to the items of the trial."""

INPUTS: dict[str, tuple[list[float], list[float]]] = {
    "values from 0 to 1": ([0.0], [1.0]),
    "values from -1 to 1": ([0.5], [0.5]),
    "values from 0 to 255": ([0.0], [1 / 255]),
    "ImageNet's normalisation": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
"""What networks are usually trained on, as mean and std of images in [0, 1]."""


def check(task: Labelled, teacher: Built, device: torch.device | None = None) -> None:
    """Try a ready teacher on up to 512 labelled training or validation items; what is found goes into its notes.

    Raises:
        TeacherMismatch: it does no better than guessing, and a teacher worth learning from would have; or its answers are
            not finite.
    """
    ids, parts = _items(task)
    truth = torch.cat([part.fetch(i)["y"] for part, i in zip(parts, ids, strict=True)])
    hard = truth.argmax(-1) if task.kind_of_target == "label" and truth.is_floating_point() else truth
    place = device or device_of(teacher.module)

    def answers(contract: Contract) -> Tensor:
        shown = Built(teacher.module, contract, teacher.labels, teacher.model)
        with torch.no_grad(), evaluating([teacher.module]):
            return torch.cat([task.signal(shown, b).logits.float().cpu() for b in _batches(task, parts, ids, place)])

    if isinstance(teacher.module, torch.nn.Module):
        teacher.module.to(place)
    z = answers(teacher.contract)
    bad = (z.isnan() | (z == float("inf"))).any(-1)
    if bool(bad.any()):
        raise TeacherMismatch(
            teacher.model.role or "teacher",
            f"its answers are not finite (NaN or infinity) on {int(bad.sum())} of {len(z)} labelled items",
            expected="trained weights, and inputs as they were trained",
            remedy=f"check the checkpoint, or set {teacher.model.setting('check')}=off to go on all the same",
        )
    trial = _trial(task, z, hard)
    if trial is None:
        return
    told = _told(task, trial)
    if not (trial.guesses or trial.weak):
        teacher.notes.append(told)
        return
    cause = _cause(task, teacher, answers, z, hard)
    if trial.guesses and (cause or not teacher.model.held):
        setting = teacher.model.setting("check")
        raise TeacherMismatch(
            teacher.model.role or "teacher",
            f"it only guesses: {told}" + (f"; {cause[0]}" if cause else ""),
            expected="" if cause else "weights for these classes, fed as they were trained",
            remedy=f"{cause[1]}, or {setting}=off to go on all the same"
            if cause
            else f"set {setting}=off to go on all the same",
        )
    if cause:
        told += f": weak; {cause[0]} ({cause[1]})"
    elif trial.guesses:
        told += ": it only guesses, so its students learn nothing from it"
    elif trial.score < trial.half:
        told += ": weak, so its students learn little from it"
    else:
        told += ": too few to be sure that it does not guess"
    teacher.notes.append(told)


def _items(task: Labelled) -> tuple[list[Tensor], list[Any]]:
    """Which items of which splits: training items first, validation items where they are few."""
    parts: list[Any] = [task.teacher_train, task.valid]
    ids: list[Tensor] = []
    left = guessing.ITEMS
    for part in parts:
        y = part.y
        by_class = y.argmax(-1) if y.is_floating_point() and y.ndim == 2 else y if y.ndim == 1 else torch.zeros(len(y))
        ids.append(
            guessing.spread(by_class.long() if task.kind_of_target == "label" else torch.zeros(len(y)).long(), left)
        )
        left -= len(ids[-1])
    return ids, parts


def _batches(task: Labelled, parts: list[Any], ids: list[Tensor], device: torch.device) -> Iterator[dict[str, Any]]:
    for part, chosen in zip(parts, ids, strict=True):
        for some in (
            chosen.split(task.eval_batch) if len(chosen) else ()
        ):  # an endpoint may not know what to do with none
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in part.fetch(some).items()}
            yield {**batch, "item": some.to(device), "view": torch.zeros_like(some, device=device)}


def _trial(task: Labelled, z: Tensor, truth: Tensor) -> Trial | None:
    if task.kind_of_target == "label":
        return guessing.try_classes(z.argmax(-1), truth)
    if task.kind_of_target == "labels":
        return guessing.try_labels(z, truth)
    return guessing.try_numbers(z, task.standardise(truth))


def _told(task: Labelled, trial: Trial) -> str:
    """What the trial found, in words."""
    where = f"of {trial.items} labelled training and validation items"
    if task.kind_of_target == "label":
        return f"right on {_percent(trial.score)} {where} (guessing: {_percent(trial.chance)}; classes count alike)"
    if task.kind_of_target == "labels":
        return f"ranks an item's labels above the others on {_percent(trial.score)} {where} (guessing: 50 %)"
    return f"its numbers correlate with the data's by {trial.score:.2f} over {trial.items} labelled items"


# -------------------------------------------------------------------------------------------------------------- causes
def _cause(task: Labelled, teacher: Built, answers: Answers, z: Tensor, truth: Tensor) -> tuple[str, str] | None:
    """What is likely wrong, in words, and what to set; ``None`` where nothing that is tried explains it."""
    other = getattr(teacher.model, "other", "")
    if other:
        return "its file holds another model besides the one that was taken", f"set {other} to take that"
    if task.kind_of_target != "label":
        return None
    found = _order(task, teacher, z, truth)
    if found is not None:
        return found
    contract = teacher.contract
    if isinstance(teacher.module, torch.nn.Module) and len(task.shape) == 3:
        channels = contract.channels or task.shape[0]
        for name, (mean, std) in INPUTS.items():
            if len(mean) not in (1, channels):
                continue
            mean, std = (m * channels if len(m) == 1 else m for m in (mean, std))
            try:
                other = answers(contract.with_(mean=tuple(mean), std=tuple(std)))
            except LimbeckError:
                raise
            except Exception:  # a network that fails on other values says nothing of these
                continue
            todo = _fed(teacher, mean, std)
            trial = guessing.try_classes(other.argmax(-1), truth)
            if not trial.weak:
                return f"fed with {name} it is right on {_percent(trial.score)}", todo
            found = _order(task, teacher, other, truth)
            if found is not None:
                return f"fed with {name}, {found[0]}", f"{todo}, and {found[1]}"
    most = z.argmax(-1).bincount(minlength=task.outputs)
    if int(most.max()) > 0.95 * len(z):
        assert task.labels is not None
        name = task.labels[int(most.argmax())]
        return (
            f"it answers {name!r} for nearly every item",
            "check that its weights are trained, and the input that they were trained on",
        )
    return None


def _order(task: Labelled, teacher: Built, z: Tensor, truth: Tensor) -> tuple[str, str] | None:
    """Whether the outputs stand in another order, and the setting that says which."""
    order, trial = guessing.best_order(z.argmax(-1), truth, task.outputs)
    if trial.weak:
        return None
    labels = task.labels or []
    names = [labels[c] for c in order]
    mine = teacher.contract.classes  # for each of the task's classes the network's own output
    shown = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
    said = f"its outputs seem to be in another order: read as {shown} they are right on {_percent(trial.score)}"
    if not _settable(teacher, "labels"):
        return said, "give its class names in the order of its outputs where it is made"
    if mine is not None and (len(mine) != len(teacher.labels or ()) or len(mine) != len(names)):
        return said, f"set {teacher.model.setting('labels')}=FILE with the names of its outputs in their own order"
    if mine is not None:
        own = list(names)
        for c, output in enumerate(mine):
            own[output] = names[c]
        names = own
    return said, f"set {teacher.model.setting('labels')}=[{','.join(map(_typed, names))}]"


def _fed(teacher: Built, mean: list[float], std: list[float]) -> str:
    """How to feed a teacher otherwise."""
    if not _settable(teacher, "mean"):
        return f"normalise what it is fed by mean {_numbers(mean)} and std {_numbers(std)}"
    return f"set {teacher.model.setting('mean')}={_numbers(mean)} {teacher.model.setting('std')}={_numbers(std)}"


def _settable(teacher: Built, name: str) -> bool:
    return name in inspect.signature(type(teacher.model)).parameters


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _typed(name: str) -> str:
    """A class name as an override writes it."""
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else f'"{name}"'


def _numbers(values: list[float]) -> str:
    return "[" + ",".join(f"{v:.6g}" for v in values) + "]"
