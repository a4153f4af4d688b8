"""``limbeck.distill``: the Python door onto the same rooms as ``limbeck run``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.data.columns import Target
from limbeck.data.items import Splits
from limbeck.data.sources import Source
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built
from limbeck.grammar.random import own_generators
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import evaluating, refuse_shared
from limbeck.grammar.task import Check, Model, Task


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
    def rows(self) -> dict[str, dict[str, float]]:
        """Every row of the report by name: student, teacher, baselines, and what the method adds."""
        found: dict[str, dict[str, float]] = self.result["metrics"]["rows"]
        return found

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
        check: try a ready one on labelled items; what only guesses is refused where the cause is known, else told.
    """

    held = True

    def __init__(
        self,
        module: nn.Module,
        labels: list[str] | None = None,
        contract: Contract | None = None,
        taught: bool = False,
        check: Check = "on",
    ) -> None:
        self.module, self.labels, self.contract, self.taught = module, labels, contract or Contract(), taught
        self.check = check
        import copy

        self.first = copy.deepcopy(module.state_dict())

    @property
    def trained(self) -> bool:
        """A given teacher is never trained."""
        return self.taught

    def setting(self, name: str) -> str:
        """As an argument of `distill`."""
        return "teacher_labels" if name == "labels" else name

    def build(self, task: Task) -> Built:
        """A teacher as it is; a student as a copy with its first weights, so that the baseline starts equal."""
        import copy

        if self.taught:
            return Built(self.module, self.contract, self.labels or task.labels, self)
        fresh = copy.deepcopy(self.module)
        fresh.load_state_dict(self.first)
        return Built(fresh, self.contract, self.labels or task.labels, self)


@own_generators()
def distill(
    teacher: Any = None,
    student: nn.Module | str | Mapping[str, Any] | None = None,
    data: Any = None,
    method: str | Mapping[str, Any] = "kd",
    *,
    out: str | Path | None = None,
    seed: int = 0,
    force: bool = True,
    quiet: bool = False,
    teacher_labels: Sequence[str] | None = None,
    check: Check = "on",
    overrides: Sequence[str] = (),
    **settings: Any,
) -> Distilled:
    """Distil a teacher into a student. The global random generators of torch, NumPy and Python stay as they were.

    Args:
        teacher: a module with trained weights, a name as in a recipe (``"timm:resnet50"``), a recipe node, or a fitted
            estimator with ``predict_proba`` (``predict`` for numbers). A module is used as it is, on the run's device, and
            comes back in its own mode.
        student: likewise; a module is copied, the caller's stays as it was. Its frozen weights (``requires_grad`` off)
            stay frozen; it may share none that are trained with the teacher.
        data: arrays ``(x, y)`` or ``(x, y, x_test, y_test)``, a torch Dataset of ``(x, y)``, a pandas DataFrame whose label
            is called ``label``, ``class`` or ``target``, or a name as in a recipe (``"folder:birds"``). Images are
            [N, C, H, W]: uint8, or float in [0, 1].
        method: a method's name, or a recipe node with its settings.
        out: the run folder; a temporary one when not given.
        seed: of the run.
        force: replace what lies in ``out``.
        quiet: print nothing.
        teacher_labels: the class names of a teacher that is a module, in the order of its outputs; by default the data's.
        check: ``off`` does not try a teacher that is a module on labelled items before anything is trained.
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

    from limbeck.grammar.card import recipe_path
    from limbeck.recipe.overrides import LIMITS, OF_MODELS, note_gone, read_tree
    from limbeck.recipe.recipe import apply, build
    from limbeck.recipe.recipe import check as resolved
    from limbeck.run import run_recipe

    name = method if isinstance(method, str) else str(method.get("use", "recipe"))
    tree = read_tree(recipe_path(name))
    tree = {"name": name, **tree, "seed": seed}
    if not isinstance(method, str):
        tree["method"] = dict(method)
    task = settings.pop("task", None)
    gone: dict[str, Any] = {}
    if task is not None:
        tree["task"] = task
    if data is not None:
        # the recipe's own settings (how few items its student sees) are about its own data
        own = tree["task"] if isinstance(tree["task"], Mapping) else {"use": tree["task"]}
        if task is None:
            gone = {limit: own[limit] for limit in LIMITS if limit in own and not isinstance(teacher, nn.Module)}
        named = {"data": data} if isinstance(data, (str, Mapping)) else {}
        tree["task"] = {**(own if task is not None else {"use": own["use"]}), **named}
    train = dict(tree.get("train") or {})
    unknown = sorted(set(settings) - _train_settings())
    if unknown:
        raise ConfigError.unknown(unknown[0], unknown[0], _train_settings() | {"task"}, "setting of limbeck.distill")
    tree["train"] = {**train, **settings}
    if isinstance(teacher, nn.Module) and isinstance(student, nn.Module):
        refuse_shared(student, teacher)
    models: dict[str, Any] = {}
    if not isinstance(teacher, nn.Module) and (hasattr(teacher, "predict_proba") or hasattr(teacher, "predict")):
        from limbeck.models.predictor import GivenEstimator

        models["teacher"] = GivenEstimator(teacher, teacher_labels, check)
    for role, value in (("teacher", teacher), ("student", student)):
        if isinstance(value, nn.Module):
            names = list(teacher_labels) if teacher_labels is not None and role == "teacher" else None
            models[role] = Given(value, names, taught=role == "teacher", check=check)
        elif value is not None and role not in models:
            tree[role] = value if isinstance(value, str) else dict(value)
        if value is not None and task is None and isinstance(tree["task"], Mapping):
            tree["task"] = {k: v for k, v in tree["task"].items() if k not in OF_MODELS}
    for token in overrides:
        apply(tree, token)
    note_gone(tree, gone)
    checked = resolved(tree)
    recipe = build(checked)
    for role, model in models.items():
        setattr(recipe, role, model)
        # what the folder's config says of it: enough to tell two runs apart, not enough to run it again
        held = model.module if isinstance(model, Given) else model.estimator
        checked[role] = {"use": "given", "class": type(held).__qualname__}
    if data is not None and not isinstance(data, (str, Mapping)):
        source = _source(data)
        if not hasattr(recipe.task, "data"):
            raise ConfigError("data", f"the task of {name!r} takes no arrays", expected="a source's name")
        recipe.task.data = source
        checked["task"] = {**checked["task"], "data": {"use": "given", "items": len(source)}}
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="limbeck-"))
    try:
        with _lent(teacher):
            result, artifact = run_recipe(recipe, checked, folder, force, quiet, open=True)
    finally:
        if out is None:
            with contextlib.suppress(OSError):
                folder.rmdir()  # of a call that was refused: it is empty
    for tapped in getattr(recipe.method, "roles", {}).values():
        tapped.untap()
    module = artifact.built.module.eval() if isinstance(artifact, NetworkArtifact) else artifact
    metrics = {name: values for name, values in result["metrics"].items() if name != "rows"}
    return Distilled(module, metrics, result, folder)


@contextlib.contextmanager
def _lent(teacher: Any) -> Iterator[None]:
    """A teacher that the caller holds is frozen while it teaches, and comes back in its own mode."""
    modules = [teacher] if isinstance(teacher, nn.Module) else []
    wanted = [p for module in modules for p in module.parameters() if p.requires_grad]
    with evaluating(modules):
        try:
            yield
        finally:
            for p in wanted:
                p.requires_grad_(True)


def _train_settings() -> set[str]:
    import inspect

    from limbeck.grammar.optim import Optim

    return set(inspect.signature(Optim.__init__).parameters) - {"self"}


class GivenData(Source):
    """Arrays or data sets that the caller holds.

    Args:
        made: split (``train``, ``test``) -> pair of arrays (x, y), or a map-style torch Dataset of such pairs.
    """

    def __init__(self, made: dict[str, Any]) -> None:
        self.made = made

    def __len__(self) -> int:
        train = self.made["train"]
        return len(train[0]) if isinstance(train, tuple) else len(train)

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """As every other source of arrays reads them: integers are classes, 0/1 matrices several labels, floats numbers."""
        from limbeck.data.arrays import from_datasets

        return from_datasets(self.made, target, size, memory_mb=4096, names=None, where="data")

    def maps(self, size: Any = None) -> Splits:
        """Images with a class at every pixel: integer ids [N, H, W], of which 255 does not count."""
        from limbeck.data.masks import splits_of

        pairs = {name: pair for name, pair in self.made.items() if isinstance(pair, tuple)}
        if len(pairs) < len(self.made):
            raise DataError("data", given="a torch Dataset", expected="arrays (x, y), y [N, H, W] of class ids")
        return splits_of(pairs, None, [255], size, "data")


def _source(data: Any) -> Any:
    """Arrays, a Dataset or a DataFrame as a source."""
    if hasattr(data, "columns") and hasattr(data, "iloc"):
        from limbeck.data.tables import FrameTable

        return FrameTable(data)
    if isinstance(data, torch.utils.data.Dataset):
        if not hasattr(data, "__len__"):
            raise DataError(
                "data", "an IterableDataset has no length", expected="a map-style Dataset, arrays, or a source's name"
            )
        return GivenData({"train": data})
    if isinstance(data, (tuple, list)) and len(data) in (2, 4):
        made: dict[str, Any] = {"train": tuple(data[:2])}
        if len(data) == 4:
            made["test"] = tuple(data[2:])
        return GivenData(made)
    raise DataError(
        "data",
        given=type(data).__name__,
        expected="(x, y), (x, y, x_test, y_test), a torch Dataset, a DataFrame, or a source's name",
    )
