"""``limbeck.distill``: the Python door onto the same rooms as ``limbeck run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.errors import ConfigError, DataError
from limbeck.core.method import Built
from limbeck.core.role import Contract
from limbeck.core.task import Model, Task


@dataclass
class Distilled:
    """What ``distill`` returns.

    Attributes:
        student: the trained network (or what else the method made), in evaluation mode.
        metrics: ``student``, ``teacher`` and ``alone``, each a mapping from name to number, on the test split.
        result: everything that ``result.json`` holds.
        folder: the run folder: report.html, result.json, the student alone.
    """

    student: Any
    metrics: dict[str, dict[str, float]]
    result: dict[str, Any]
    folder: Path

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.folder / "report.html"


class Given(Model):
    """A module that the caller holds.

    Args:
        module: the network.
        labels: its class names, where they are known.
        contract: what it expects at its input; by default it takes what the data give.
        taught: whether its weights are trained (a teacher's are).
    """

    def __init__(self, module: nn.Module, labels: list[str] | None = None, contract: Contract | None = None, taught: bool = False) -> None:
        self.module, self.labels, self.contract, self.taught = module, labels, contract or Contract(), taught
        import copy

        self.first = copy.deepcopy(module.state_dict())

    @property
    def trained(self) -> bool:
        """A given teacher is never trained."""
        return self.taught

    def build(self, task: Task) -> Built:
        """A teacher as it is; a student as a copy with its first weights, so that the baseline starts equal."""
        import copy

        if self.taught:
            return Built(self.module, self.contract, self.labels or task.labels, self)
        fresh = copy.deepcopy(self.module)
        fresh.load_state_dict(self.first)
        return Built(fresh, self.contract, self.labels or task.labels, self)


def distill(
    teacher: nn.Module | str | Mapping[str, Any] | None = None,
    student: nn.Module | str | Mapping[str, Any] | None = None,
    data: Any = None,
    method: str | Mapping[str, Any] = "kd",
    *,
    out: str | Path | None = None,
    seed: int = 0,
    force: bool = True,
    quiet: bool = False,
    overrides: Sequence[str] = (),
    **settings: Any,
) -> Distilled:
    """Distil a teacher into a student.

    Args:
        teacher: a module with trained weights, a name as in a recipe (``"timm:resnet50"``), or a recipe node.
        student: likewise; a module is copied, the caller's stays as it was.
        data: arrays ``(x, y)`` or ``(x, y, x_test, y_test)``, a torch Dataset of ``(x, y)``, or a name as in a recipe
            (``"folder:birds"``). Pictures are [N, C, H, W]: uint8, or float in [0, 1].
        method: a method's name, or a recipe node with its settings.
        out: the run folder; a temporary one when not given.
        seed: of the run.
        force: replace what lies in ``out``.
        quiet: print nothing.
        overrides: further ``key=value`` settings, as on the command line.
        **settings: ``steps``, ``batch_size``, ``lr`` and the other settings of ``train``; ``task`` (a recipe node).

    Returns:
        The student, the metrics against teacher and student alone, and the run folder.

    Raises:
        LimbeckError: something given does not fit; nothing was trained.

    Example:
        >>> import limbeck
        >>> done = limbeck.distill(teacher="mlp:[64]", student="mlp:[8]", data="digits", method="nkd", steps=5, quiet=True)
        >>> sorted(done.metrics)
        ['alone', 'student', 'teacher']
    """
    import tempfile

    from limbeck.core.recipe import apply, check, recipe_path
    from limbeck.core.values import read_yaml_file
    from limbeck.run import run_recipe

    name = method if isinstance(method, str) else str(method.get("use", "recipe"))
    tree: dict[str, Any] = dict(read_yaml_file(recipe_path(name)))
    tree = {"name": name, **tree, "seed": seed}
    if not isinstance(method, str):
        tree["method"] = dict(method)
    task = settings.pop("task", None)
    if task is not None:
        tree["task"] = task
    if isinstance(data, (str, Mapping)):
        use = tree["task"]["use"] if isinstance(tree["task"], dict) else tree["task"]
        tree["task"] = {"use": use, "data": data}
    train = dict(tree.get("train") or {})
    unknown = sorted(set(settings) - _train_settings())
    if unknown:
        raise ConfigError.unknown(unknown[0], unknown[0], _train_settings() | {"task"}, "setting of limbeck.distill")
    tree["train"] = {**train, **settings}
    given: dict[str, Any] = {}
    for role, value in (("teacher", teacher), ("student", student)):
        if isinstance(value, nn.Module):
            given[role] = Given(value, taught=role == "teacher")
            tree.pop(role, None)
        elif value is not None:
            tree[role] = value if isinstance(value, str) else dict(value)
    for token in overrides:
        apply(tree, token)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="limbeck-"))
    if data is not None and not isinstance(data, (str, Mapping)):
        given["data"] = _source(data)
        use = tree["task"] if isinstance(tree["task"], str) else tree["task"]["use"]
        tree["task"] = {"use": use}
    result, made = run_recipe(check(tree), folder, force, quiet, given)
    module = made.built.module.eval() if hasattr(made, "built") else made
    return Distilled(module, result["metrics"], result, folder)


def _train_settings() -> set[str]:
    import inspect

    from limbeck.core.optim import Optim

    return set(inspect.signature(Optim.__init__).parameters) - {"self"}


def _source(data: Any) -> Any:
    """Arrays or a Dataset as a source."""
    from limbeck.tasks.sources import Given as GivenArrays

    if isinstance(data, torch.utils.data.Dataset):
        if not hasattr(data, "__len__"):
            raise DataError("data", "an IterableDataset has no length", expected="a map-style Dataset, arrays, or a source's name")
        pairs = [data[i] for i in range(len(data))]
        x = torch.stack([torch.as_tensor(p[0]) for p in pairs])
        return GivenArrays(x, torch.stack([torch.as_tensor(p[1]) for p in pairs]))
    if isinstance(data, (tuple, list)) and len(data) in (2, 4):
        parts = [d if isinstance(d, Tensor) else torch.as_tensor(d) for d in data]
        return GivenArrays(*parts)
    raise DataError("data", given=type(data).__name__, expected="(x, y), (x, y, x_test, y_test), a torch Dataset, or a source's name")
