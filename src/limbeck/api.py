"""``limbeck.distill``: a whole distillation from Python, as ``limbeck run`` does it from the command line."""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, Unpack

import torch
from torch import nn

from limbeck.errors import ConfigError, human
from limbeck.given import add_ons, modules_of, source_of, student_of, teacher_of, told
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Method, Objective, Query
from limbeck.grammar.random import own_generators
from limbeck.grammar.signal import evaluating, refuse_shared
from limbeck.grammar.task import Check

Node = Mapping[str, Any]
"""A recipe node: ``{"use": name, **arguments}``."""


class Estimator(Protocol):
    """What predicts as scikit-learn's estimators do."""

    def predict(self, x: Any) -> Any:
        """Classes, or numbers."""


Format = Literal["safetensors", "hub", "onnx", "onnx-int8", "images", "parquet", "csv"]
"""Formats of export."""


class TrainSettings(TypedDict, total=False):
    """Settings of ``train`` and ``teach``, as `limbeck.Optim` has them."""

    steps: int
    batch_size: int
    lr: float
    optimizer: str
    weight_decay: float
    momentum: float
    schedule: Literal["cosine", "linear", "constant", "step", "drop", "poly"]
    warmup: int
    clip: float | None
    options: dict[str, Any] | None
    keep_statistics: bool
    milestones: list[float]
    gamma: float
    power: float
    floor: float
    groups: dict[str, dict[str, Any]] | None
    only: list[str] | None
    weight_decay_end: float | None
    clip_by: Literal["role", "parameter"]
    epochs: float | None
    decay_vectors: bool
    layer_decay: float | None
    patience: int | None
    sampling: Literal["all", "balanced"]


class EngineOptions(TypedDict, total=False):
    """Settings of ``engine``, as `limbeck.EngineSettings` has them."""

    device: str
    devices: int
    accumulate: int
    precision: Literal["fp32", "bf16"]
    workers: int
    compile: bool
    save_every: int
    save_minutes: float
    keep: int
    log_every: int
    eval_every: int
    guard: bool
    shard: tuple[str, ...]
    sync_batchnorm: bool


@dataclass
class Distilled:
    """What ``distill`` returns. In a notebook it shows itself as the report's table.

    Attributes:
        student: the trained network (or what else the method made), in evaluation mode.
        metrics: ``student``, ``teacher`` and ``alone``, each a mapping from name to number, on the test split.
        result: everything that ``result.json`` holds.
        folder: the run folder: report.html, result.json, the student alone.
    """

    student: Any
    metrics: dict[str, dict[str, float]]
    result: dict[str, Any] = field(repr=False)
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

    @property
    def table(self) -> str:
        """The report's table as text: one row each for teacher, baselines and student."""
        from limbeck.report.table import plain_table

        return plain_table(self.result)

    @property
    def sentences(self) -> list[str]:
        """What the report says above its table, and what it advises to try next."""
        from limbeck.engine.logs import read_log
        from limbeck.report.advice import advice
        from limbeck.report.headline import headline

        log = self.folder / "log.jsonl"
        return [*headline(self.result), *advice(self.result, read_log(log) if log.is_file() else ())]

    def __repr__(self) -> str:
        """One line: the method, the deciding metric of each row, the student's size, the folder."""
        from limbeck.report.metrics import metric_of

        name = self.result["primary"]
        metric = metric_of(name, bool(self.result["higher_is_better"]))
        scores = {
            who: row.get(name, math.nan) for who, row in self.metrics.items() if who in ("student", "alone", "teacher")
        }
        said = [f"{who} {metric.value(value)}" for who, value in scores.items() if math.isfinite(value)]
        size = self.result["sizes"].get("student", {}).get("parameters")
        parts = [
            f"{metric.label}: {', '.join(said)}",
            *([f"{human(size)} parameters"] if size else []),
            str(self.folder),
        ]
        return f"<Distilled {self.result['recipe']}: {'; '.join(parts)}>"

    def __str__(self) -> str:
        """The table, and what it says."""
        return "\n".join([self.table, "", *self.sentences])

    def _repr_html_(self) -> str:
        """The report's table for a notebook, with what it says and the way to the whole page."""
        from limbeck.report.table import grid

        found = grid(self.result)
        titles = ["", *(f"{c.label} ({c.unit})" if c.unit else c.label for c in found.columns)]
        lines = [f"<tr>{''.join(f'<th>{html.escape(t)}</th>' for t in titles)}</tr>"]
        for row, cells in found.rows:
            texts = [" ".join(filter(None, (c.text, c.interval))) for c in cells]
            lines.append(
                f"<tr><th>{html.escape(row.name)}</th>{''.join(f'<td>{html.escape(t)}</td>' for t in texts)}</tr>"
            )
        said = "".join(f"<p>{html.escape(text)}</p>" for text in self.sentences)
        where = f'<p>Report: <a href="{html.escape(self.report.resolve().as_uri())}">{html.escape(str(self.report))}</a></p>'
        return f"<div><table>{''.join(lines)}</table>{said}{where}</div>"


@own_generators()
def distill(
    teacher: nn.Module | Callable[..., Any] | str | Node | Estimator | Sequence[Any] | None = None,
    student: nn.Module | str | Node | None = None,
    data: Any = None,
    method: str | Node | Method[Any] = "kd",
    *,
    task: str | Node | None = None,
    objectives: Mapping[str, str | Node | Objective | Callable[..., Any] | None] | Sequence[str] | None = None,
    queries: str | Mapping[str, str | Node | Query | Callable[..., Any] | None] | Sequence[str] | None = None,
    device: str | torch.device | None = None,
    export: Format | Sequence[Format] = (),
    preset: str = "",
    teach: TrainSettings | None = None,
    engine: EngineOptions | None = None,
    average: float | Node | None = None,
    baselines: Sequence[str] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    force: bool = True,
    quiet: bool = False,
    teacher_labels: Sequence[str] | None = None,
    check: Check = "on",
    overrides: Sequence[str] = (),
    **train: Unpack[TrainSettings],
) -> Distilled:
    """Distil a teacher into a student. The global random generators of torch, NumPy and Python stay as they were.

    Args:
        teacher: a module with trained weights, a function from inputs to logits (``lambda x: net(x)``), a name as in a
            recipe (``"timm:resnet50"``), a recipe node, a fitted estimator with ``predict_proba`` (``predict`` for numbers),
            or a list of these, whose answers are averaged. A module is used as it is, on the run's device, and comes back in
            its own mode.
        student: a module, a name or a recipe node. A module is copied, the caller's stays as it was. Its frozen weights
            (``requires_grad`` off) stay frozen; it may share none that are trained with the teacher.
        data: arrays ``(x, y)`` or ``(x, y, x_test, y_test)``, a torch Dataset or DataLoader of ``(x, y)``, a pair of these
            (train, test), a list of ``(x, y)`` pairs, a pandas DataFrame whose label is called ``label``, ``class`` or
            ``target``, a dict of splits, of arrays or of columns, or a name as in a recipe (``"folder:birds"``). Images are
            [N, C, H, W] or [N, H, W, C]: uint8, or float in [0, 1]; which of the two is told in the notes.
        method: a method's name, a recipe node with its settings, or a `Method` of your own.
        task: a task's name, or a recipe node with its settings; by default the method's.
        objectives: losses to add, by name: recipe nodes, `Objective` components, or functions from (student signal, teacher
            signal, batch, context) to values [N], which may take fewer; or a list of names.
        queries: changes to each batch, by name: recipe nodes, `Query` components, or functions from a batch to a batch; or
            the name of a preset (``"small-images"``).
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` or a ``torch.device``.
        export: formats to write at the end: ``"safetensors"``, ``"onnx"``, ``"onnx-int8"``, ``"hub"``...
        preset: one of the recipe's presets, such as the paper's settings for ``cifar100``.
        teach: training of a teacher that has no trained weights.
        engine: further settings of the loop, such as ``{"accumulate": 4, "eval_every": 100}``.
        average: also evaluate a moving average of the student's weights that keeps so much of itself at each step (0.999).
        baselines: which baselines are evaluated; by default all of them, ``[]`` none.
        out: the run folder; a temporary one when not given.
        seed: of the run.
        force: replace what lies in ``out``.
        quiet: print nothing.
        teacher_labels: the class names of a teacher that is a module, in the order of its outputs; by default the data's.
        check: ``off`` does not try a teacher that is a module on labelled items before anything is trained.
        overrides: further ``key=value`` settings, as on the command line.
        **train: settings of the student's training: ``epochs`` or ``steps``, ``batch_size``, ``lr`` and the others of
            `limbeck.Optim`.

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
    from limbeck.recipe.presets import expanded
    from limbeck.recipe.recipe import apply, build
    from limbeck.recipe.recipe import check as resolved
    from limbeck.run import run_recipe

    name = _method_name(method)
    models = {"teacher": teacher_of(teacher, teacher_labels, check), "student": student_of(student)}
    tree = {"name": name, **read_tree(recipe_path(name), preset=preset), "seed": seed}
    if isinstance(method, Mapping):
        tree["method"] = dict(method)
    gone: dict[str, Any] = {}
    if task is not None:
        tree["task"] = task if isinstance(task, str) else dict(task)
    if isinstance(data, Path):
        data = f"folder:{data}" if data.is_dir() else str(data)
    named = isinstance(data, str) or (isinstance(data, Mapping) and "use" in data)
    source = source_of(data) if data is not None and not named else None
    if data is not None:
        # the recipe's own settings (how few items its student sees) are about its own data
        own = dict(tree["task"]) if isinstance(tree["task"], Mapping) else {"use": tree["task"]}
        if task is None:
            gone = {limit: own[limit] for limit in LIMITS if limit in own and models["teacher"] is None}
        tree["task"] = {**(own if task is not None else {"use": own["use"]}), **({"data": data} if named else {})}
    tree["train"] = _training("train", tree.get("train"), train)
    if teach is not None:
        tree["teach"] = _training("teach", tree.get("teach"), teach)
    settings = dict(engine or {})
    if device is not None:
        settings["device"] = str(device)
    if settings:
        tree["engine"] = {**(tree.get("engine") or {}), **settings}
    if export:
        tree["export"] = [export] if isinstance(export, str) else list(export)
    if average is not None:
        tree["average"] = dict(average) if isinstance(average, Mapping) else {"decay": average}
    if baselines is not None:
        tree["baselines"] = list(baselines)
    held: dict[str, dict[str, Any]] = {}
    for section, given in (("objectives", objectives), ("queries", queries)):
        nodes, held[section] = add_ons(section, given)
        if isinstance(nodes, str):
            tree[section] = nodes
        elif nodes:
            tree[section] = {**(expanded(tree).get(section) or {}), **nodes}
    modules = modules_of(teacher)
    if isinstance(student, nn.Module):
        for module in modules:
            refuse_shared(student, module)
    for role, value in (("teacher", teacher), ("student", student)):
        if value is not None and models[role] is None:
            tree[role] = value if isinstance(value, str) else dict(value)  # type: ignore[arg-type]
        if value is not None and task is None and isinstance(tree["task"], Mapping):
            tree["task"] = {k: v for k, v in tree["task"].items() if k not in OF_MODELS}
    for token in overrides:
        apply(tree, token)
    note_gone(tree, gone)
    checked = resolved(tree)
    recipe = build(checked)
    for role, model in models.items():
        if model is not None:
            setattr(recipe, role, model)
            checked[role] = told(model)
    for section, things in held.items():
        getattr(recipe, section).update(things)
        if things:
            checked[section] = {**(checked.get(section) or {}), **{n: told(thing) for n, thing in things.items()}}
    if isinstance(method, Method):
        recipe.method = method
        checked["method"] = told(method)
    if source is not None:
        if not hasattr(recipe.task, "data"):
            raise ConfigError("data", f"the task of {name!r} takes no arrays", expected="a source's name")
        recipe.task.data = source
        checked["task"] = {**checked["task"], "data": {"use": "given", "items": len(source)}}  # type: ignore[arg-type]
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="limbeck-"))
    try:
        with _lent(modules):
            result, artifact = run_recipe(recipe, checked, folder, force, quiet, open=True)
    finally:
        if out is None:
            with contextlib.suppress(OSError):
                folder.rmdir()  # of a call that was refused: it is empty
    for tapped in getattr(recipe.method, "roles", {}).values():
        tapped.untap()
    made = artifact.built.module.eval() if isinstance(artifact, NetworkArtifact) else artifact
    metrics = {name: values for name, values in result["metrics"].items() if name != "rows"}
    return Distilled(made, metrics, result, folder)


def _method_name(method: Any) -> str:
    """The recipe that a method begins from.

    Raises:
        ConfigError: it is no method.
    """
    if isinstance(method, str):
        return method
    if isinstance(method, Mapping):
        return str(method.get("use", "recipe"))
    if isinstance(method, Method):
        return "kd"
    if isinstance(method, type) and issubclass(method, Method):
        raise ConfigError("method", f"{method.__name__} is a class", remedy=f"call it: method={method.__name__}(...)")
    raise ConfigError(
        "method",
        given=getattr(method, "__qualname__", type(method).__name__),
        expected="a method's name (limbeck methods lists them), a recipe node or a Method",
        remedy='a loss of your own goes into objectives={"mine": function}' if callable(method) else "",
    )


def _training(section: str, known: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings of training with the caller's; who gives steps means them, whatever epochs the recipe has.

    Raises:
        ConfigError: an unknown setting, or both steps and epochs.
    """
    settings = set(TrainSettings.__annotations__)
    unknown = sorted(set(given) - settings)
    if unknown:
        others = {"task", "objectives", "queries", "device", "export", "teach", "engine", "average", "out", "seed"}
        if section == "train":
            raise ConfigError.unknown(unknown[0], unknown[0], settings | others, "setting of limbeck.distill")
        raise ConfigError.unknown(f"{section}.{unknown[0]}", unknown[0], settings, f"setting of {section}")
    if given.get("steps") is not None and given.get("epochs") is not None:
        raise ConfigError("epochs", "steps and epochs are both given", expected="one of them", given=given["epochs"])
    found = {**(known or {}), **given}
    return {**found, "epochs": None} if given.get("steps") is not None and "epochs" in found else found


@contextlib.contextmanager
def _lent(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Teachers that the caller holds are frozen while they teach, and come back in their own mode."""
    wanted = [p for module in modules for p in module.parameters() if p.requires_grad]
    with evaluating(modules):
        try:
            yield
        finally:
            for p in wanted:
                p.requires_grad_(True)


__all__ = ["Distilled", "EngineOptions", "TrainSettings", "distill"]
