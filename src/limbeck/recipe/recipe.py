"""The recipe: one YAML and dotted overrides over constructor signatures.

A recipe is a plain tree. ``load_tree`` reads and merges it, ``check`` fills in every default and lists everything that
is wrong at once, ``build`` makes the objects, ``dump`` writes it so that it reads back the same, ``describe`` explains.

How trees are read and merged is in ``limbeck.recipe.overrides``, what a signature says in ``limbeck.recipe.schema``, how trees
are resolved along signatures in ``limbeck.recipe.resolving``.

A component (task, method, model, source, query, objective) is written flat, ``{use: name, argument: value, ...}``, or
as ``name``, or ``name:rest``, where ``rest`` goes to the first parameter of the constructor. Only the classes that a
recipe names are imported, from tables of names; no class path is ever read from a recipe. The one way to a user's own
code is ``import:package.module:function``, which runs it; whether a folder that somebody sent may say so is decided by
``limbeck.recipe.trust``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import ConfigError, LimbeckError
from limbeck.grammar.component import Component, Settings
from limbeck.recipe.overrides import apply, find_recipe, is_run_folder, read_tree, split_recipe
from limbeck.recipe.presets import expanded
from limbeck.recipe.resolving import NAME, Builder, Checker, RecipeErrors, raise_all
from limbeck.recipe.schema import Param, find_class, schema, summary
from limbeck.recipe.stages import stage_settings
from limbeck.recipe.values import read_value, write_yaml
from limbeck.storage.disk import expanded as place_of

if TYPE_CHECKING:
    from limbeck.engine.settings import EngineSettings
    from limbeck.grammar.average import Average
    from limbeck.grammar.evaluator import Evaluator
    from limbeck.grammar.method import Method, Objective, Query
    from limbeck.grammar.optim import Optim
    from limbeck.grammar.task import Model, Task


class Recipe(Settings):
    """A run: task, method, models and training.

    Args:
        task: the student's task: data, loss and metrics.
        method: the distillation method and its settings.
        student: the model to train; by default the task's.
        teacher: the model to distil; by default the task's, if the method needs one. A teacher without a checkpoint is
            trained first.
        participants: further networks of the method by name (experts, peers, critics); by default the method builds them.
        train: training of the student.
        teach: training of the teacher, and of every other participant without a checkpoint.
        stages: settings of single stages, by name or pattern (``halve*``): ``steps``, ``batch_size``, and optimizer settings
            of each role that is trained there (``stages.distil.student.lr``).
        objectives: losses to add to those of the method, by name.
        queries: changes to each batch, such as augmentations, by name and in this order; or the name of a preset:
            ``timm-default``, ``trivial``, ``small-images``, ``colour``.
        evaluator: how every row of the report is evaluated; by default the task's evaluator.
        baselines: baselines to evaluate (``alone``, and others that the evaluator offers); ``null`` evaluates all of them,
            ``[]`` none.
        engine: where and how the training loop runs.
        average: evaluate a moving average of the student's weights beside it, or deliver it; ``null`` keeps none.
        seed: random seed.
        loggers: where to log: csv, jsonl, tensorboard, wandb, mlflow, trackio.
        export: formats to export at the end: safetensors, onnx, onnx-int8, hub.
        name: name of the recipe in reports.
        notes: sentences about the recipe for its reports.
        teacher_seed: random seed of a teacher that is trained here (initial weights, order of the data). It does not depend
            on the run's seed, so that runs and methods share one teacher.
    """

    def __init__(
        self,
        *,
        task: Task,
        method: Method,
        student: Model | None = None,
        teacher: Model | None = None,
        participants: dict[str, Model] = {},  # noqa: B006 (copied, never changed)
        train: Optim,
        teach: Optim,
        stages: dict[str, Any] | None = None,
        objectives: dict[str, Objective],
        queries: dict[str, Query],
        evaluator: Evaluator | None = None,
        baselines: tuple[str, ...] | None = None,
        engine: EngineSettings,
        average: Average | None = None,
        seed: int = 0,
        loggers: tuple[str, ...] = ("csv", "jsonl", "tensorboard"),
        export: tuple[str, ...] = (),
        name: str = "recipe",
        notes: tuple[str, ...] = (),
        teacher_seed: int = 0,
    ) -> None:
        if seed < 0:
            raise ValueError("seed must be 0 or more")
        if teacher_seed < 0:
            raise ValueError("teacher_seed must be 0 or more")
        if not NAME.fullmatch(name.replace(".", "_")):
            raise ValueError("name must be letters, digits, '-', '_' and '.', beginning with a letter")
        self.task, self.method, self.student, self.teacher = task, method, student, teacher
        self.participants = dict(participants)
        self.train, self.teach = train, teach
        self.stages = stage_settings(stages or {})
        self.evaluator = evaluator
        self.baselines = None if baselines is None else list(baselines)
        self.objectives, self.queries = dict(objectives), dict(queries)
        self.engine, self.seed, self.average = engine, seed, average
        self.loggers, self.export, self.name = list(loggers), list(export), name
        self.notes, self.teacher_seed = list(notes), teacher_seed

    @staticmethod
    def _hinted() -> dict[str, Any]:
        """What the constructor's hints mean."""
        from limbeck.engine.settings import EngineSettings
        from limbeck.grammar.average import Average
        from limbeck.grammar.evaluator import Evaluator
        from limbeck.grammar.method import Method, Objective, Query
        from limbeck.grammar.optim import Optim
        from limbeck.grammar.task import Model, Task

        return {
            c.__name__: c for c in (Average, EngineSettings, Evaluator, Method, Objective, Query, Optim, Model, Task)
        }


def load_tree(
    name_or_path: str | Path,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    preset: str = "",
    tiny: bool = False,
) -> dict[str, Any]:
    """A recipe as a plain tree, with overrides merged. Nothing of it is run yet.

    Where other ``task.data`` is named, a shipped recipe's own limits (`limbeck.recipe.overrides.LIMITS`) are let go: they
    belong to the data it ships with, and a sentence in the recipe's ``notes`` says so.

    Args:
        name_or_path: a shipped recipe's name, a YAML file, or a run folder (its ``config.yaml``); behind it settings of its
            own (``"kd method.temperature=2"``), which its name then shows.
        overrides: ``key=value``, ``key+=value`` (appends to a list), ``key=null``; keys are dotted paths. See `merge`.
        seed: takes the place of the recipe's.
        preset: one of the recipe's ``presets``: settings for another data set or scale, laid over it before overrides.
        tiny: lay the recipe's ``tiny`` settings over it, which shrink it to seconds.

    Raises:
        ConfigError: no such recipe or preset (the nearest names are listed), YAML that is refused, an override that is none.
        Untrusted: a run's folder would have code run, or data sent, that is not known here. See ``limbeck.recipe.trust``.
    """
    from limbeck.recipe.trust import admit_tree

    tokens = list(overrides)
    tree = read_tree(name_or_path, tokens, seed, preset, tiny)
    file = find_recipe(split_recipe(name_or_path)[0])
    if is_run_folder(file):
        admit_tree(tree, file, tokens)
    return tree


def check(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved tree: every default filled in, every value of its type, student and teacher named.

    Checking a resolved tree changes nothing. Imports the classes that the recipe names, and no other.

    Raises:
        ConfigError: something is wrong; all of it is listed (`RecipeErrors` where it is more than one thing).
    """
    checker = Checker()
    found = checker.recipe(Recipe, expanded(tree))
    raise_all(checker.problems)
    return found


def check_places(tree: Mapping[str, Any]) -> None:
    """Refuse files and folders that are named and are not there: of data, and checkpoints.

    Raises:
        ConfigError: there is no such file or folder; all of them are listed.
    """
    checker = Checker()
    checker.recipe(Recipe, expanded(tree))
    problems: list[LimbeckError] = []
    for path, cls, node in checker.met:
        asked = {"source": "path", "model": "checkpoint"}.get(getattr(cls, "kind", ""), "")
        value = node.get(asked)
        if not isinstance(value, str) or asked not in cls.paths or any(c in value for c in "*?[") or "://" in value:
            continue
        if asked == "checkpoint" and Path(value).suffix not in (".safetensors", ".pt", ".pth", ".bin"):
            continue  # a name that its library knows
        if not Path(place_of(value)).exists():
            problems.append(
                ConfigError(f"{path}.{asked}", "there is no such file or folder", given=value, remedy="check the path")
            )
    raise_all(problems)


def build(tree: Mapping[str, Any]) -> Recipe:
    """The objects of a recipe. Each instance's ``config`` is its resolved node.

    Raises:
        ConfigError: see `check`; or a constructor refused a value, with the dotted path.
    """
    resolved = check(tree)
    recipe = Builder().settings(Recipe, resolved, "")
    assert isinstance(recipe, Recipe)
    return recipe


def make(base: type[Component], node: Any, path: str, place: Path | None = None) -> Any:
    """A single component from its node (``name``, ``name:rest`` or a mapping), checked and built.

    Args:
        base: the class it must be a subclass of.
        node: the recipe node.
        path: what errors call it.
        place: the file of a run's folder that says so; ``None`` where it is the user's own word.

    Raises:
        ConfigError: it is wrong.
        Untrusted: it would run code, or send data, that is not known here.
    """
    from limbeck.recipe.trust import acts_of, admit

    checker = Checker(build=False)
    found = checker.component(base, node, path)
    if place is not None:
        admit(acts_of(checker.met), str(place))
    raise_all(checker.problems)
    assert found is not None
    return Builder().component(base, found, path)


def dump(tree: Mapping[str, Any]) -> str:
    """A tree as YAML that reads back as the same tree."""
    return write_yaml(dict(tree))


@dataclass(frozen=True)
class Row:
    """One line of a recipe's help.

    Attributes:
        key: the dotted path, as an override spells it.
        type: what it takes, in words.
        value: the recipe's value, as an override would write it.
        doc: its sentence in the docstring.
    """

    key: str
    type: str
    value: str
    doc: str


def describe(tree: Mapping[str, Any]) -> list[Row]:
    """Every key of a resolved recipe with its type, value and explanation."""
    rows: list[Row] = []
    _walk(Recipe, tree, "", rows)
    return rows


def _walk(cls: type, node: Mapping[str, Any], path: str, rows: list[Row]) -> None:
    for name, param in schema(cls).items():
        if name not in node:
            continue
        key, value = f"{path}.{name}" if path else name, node[name]
        if param.kind == "leaf":
            rows.append(Row(key, param.words, show(value), param.doc))
        elif value is None or param.kind in ("list", "dict"):
            empty = "null" if value is None else "[]" if param.kind == "list" else "{}"
            if not value:
                rows.append(Row(key, param.words, empty, param.doc))
                continue
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            for inner_key, inner in pairs:
                _describe_entry(param, inner, f"{key}.{inner_key}", rows)
        else:
            _describe_entry(param, value, key, rows)


def _describe_entry(param: Param, node: Any, key: str, rows: list[Row]) -> None:
    if node is None:
        rows.append(Row(key, param.words, "null", "removed"))
    elif param.inner == "component":
        cls = find_class(param.base, node["use"], key)
        rows.append(Row(key, param.base.kind, node["use"], summary(cls)))
        _walk(cls, node, key, rows)
    else:
        _walk(param.base, node, key, rows)


def show(value: Any) -> str:
    """A leaf as an override would write it."""
    if isinstance(value, str):
        return value if read_back(value) else write_yaml([value])[2:].strip()
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "null"
    if isinstance(value, list):
        return "[" + ", ".join(show(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {show(v)}" for k, v in value.items()) + "}"
    return repr(value)


def read_back(text: str) -> bool:
    """Whether a text may stand after ``key=`` as it is."""
    if not text or text != text.strip() or not text.isprintable() or text[:1] in "[{\"'":
        return False
    return isinstance(read_value(text, ""), str)


__all__ = [
    "Recipe",
    "RecipeErrors",
    "Row",
    "apply",
    "build",
    "check",
    "describe",
    "dump",
    "load_tree",
    "make",
    "show",
]
