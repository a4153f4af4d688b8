"""What a caller of `limbeck.distill` holds: modules and functions as models, arrays and data sets as a source."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.arrays import from_datasets
from limbeck.data.columns import Target
from limbeck.data.items import Splits
from limbeck.data.sources import Source
from limbeck.engine import identity
from limbeck.errors import ConfigError, DataError, first_line, require
from limbeck.grammar.method import Batch, Built, Context, Objective, Query, Term
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Check, Model, Task
from limbeck.storage.store import hash_tree


# -------------------------------------------------------------------------------------------------------------- models
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
        if isinstance(self.module, Called):
            self.module.listen(task)
        if self.taught:
            return Built(self.module, self.contract, self.labels or task.labels, self)
        fresh = copy.deepcopy(self.module)
        fresh.load_state_dict(self.first)
        return Built(fresh, self.contract, self.labels or task.labels, self)


class Called(nn.Module):
    """A function as a teacher: from a batch of inputs to logits [N, C] (or numbers [N, K]), torch or NumPy.

    Args:
        function: called as a network of the task is.
    """

    heard: Tensor

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        # what it answers to a few items stands for its weights: two functions of one name may hold different networks
        self.register_buffer("heard", torch.zeros(0))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the function returns; arrays become tensors."""
        found = self.function(*inputs, **named)
        if isinstance(found, np.ndarray):
            device = next((t.device for t in (*inputs, *named.values()) if isinstance(t, Tensor)), None)
            return torch.from_numpy(found).to(device)
        return found

    def listen(self, task: Task) -> None:
        """Ask it about a few of the task's items.

        Raises:
            ConfigError: it fails, or returns no tensor.
        """
        task.load()
        try:
            with torch.no_grad():
                found = task.feed(self, task.example(4))
            answer = Signal(found).logits
        except Exception as error:
            raise ConfigError(
                "teacher",
                f"the function fails on a batch of the data: {type(error).__name__}: {first_line(error)}",
                expected="a function from inputs [N, ...] to logits [N, C], tensors or arrays",
            ) from None
        self.heard = answer.detach().float().cpu()


def is_estimator(teacher: Any) -> bool:
    """Whether it predicts as scikit-learn's estimators do, and is no module."""
    return not isinstance(teacher, (nn.Module, type)) and (
        hasattr(teacher, "predict_proba") or hasattr(teacher, "predict")
    )


def teacher_of(teacher: Any, labels: Sequence[str] | None, check: Check) -> Model | None:
    """A teacher that is no name and no recipe node as a model; ``None`` for those.

    Raises:
        ConfigError: it is nothing that teaches.
    """
    names = list(labels) if labels is not None else None
    if teacher is None or isinstance(teacher, (str, Mapping)):
        return None
    if isinstance(teacher, Model):
        return teacher
    if isinstance(teacher, type):
        raise _a_class("teacher", teacher)
    if isinstance(teacher, nn.Module):
        return Given(teacher, names, taught=True, check=check)
    if is_estimator(teacher):
        from limbeck.models.predictor import GivenEstimator

        return GivenEstimator(teacher, labels, check)
    if isinstance(teacher, (list, tuple)) and teacher:
        return _ensemble(teacher, labels, check)
    if callable(teacher):
        return Given(Called(teacher), names, taught=True, check=check)
    raise ConfigError(
        "teacher",
        given=type(teacher).__name__,
        expected='a module, a function from inputs to logits, a fitted estimator, a name ("timm:resnet50"), a recipe node, '
        "or a list of these for an ensemble",
    )


def _ensemble(teachers: Sequence[Any], labels: Sequence[str] | None, check: Check) -> Model:
    from limbeck.models.ensemble import EnsembleOf
    from limbeck.recipe.recipe import make

    members = []
    for i, one in enumerate(teachers):
        member = teacher_of(one, labels, check)
        members.append(member if member is not None else make(Model, one, f"teacher.{i}"))
    made = EnsembleOf(members, check=check)
    made.config = {"use": "ensemble"}
    return made


def student_of(student: Any) -> Model | None:
    """A student that is a module as a model; ``None`` for a name or a recipe node.

    Raises:
        ConfigError: it is nothing that learns.
    """
    if student is None or isinstance(student, (str, Mapping)):
        return None
    if isinstance(student, Model):
        return student
    if isinstance(student, nn.Module):
        return Given(student)
    if isinstance(student, type):
        raise _a_class("student", student)
    raise ConfigError(
        "student",
        "a function has no weights to train" if callable(student) else "",
        given=type(student).__name__,
        expected='a torch module, a name ("timm:resnet18") or a recipe node',
        remedy="if it makes a network, call it: student=make()" if callable(student) else "",
    )


def _a_class(argument: str, given: type) -> ConfigError:
    return ConfigError(
        argument,
        f"{given.__name__} is a class, and no network yet",
        expected="an instance",
        remedy=f"call it with its sizes: {argument}={given.__name__}(...)",
    )


def modules_of(teacher: Any) -> list[nn.Module]:
    """The modules of the caller's among teachers."""
    if isinstance(teacher, nn.Module):
        return [teacher]
    return [m for one in teacher for m in modules_of(one)] if isinstance(teacher, (list, tuple)) else []


def told(model: Any) -> dict[str, Any]:
    """What a run's configuration says of something the caller held: enough to tell two runs apart, not to run it again."""
    if isinstance(model, Given):
        held: Any = model.module.function if isinstance(model.module, Called) else model.module
        return {"use": "given", "class": _name(held)}
    if isinstance(model, (CalledObjective, CalledQuery)):
        return {"use": "given", "class": _name(model.function), "is": hash_tree(identity.function(model.function))[:16]}
    if isinstance(model, (Objective, Query)):
        return {"use": "given", "class": type(model).__qualname__, "is": hash_tree(identity.component(model))[:16]}
    if hasattr(model, "estimator"):
        return {"use": "given", "class": type(model.estimator).__qualname__}
    if hasattr(model, "members"):
        return {"use": "given", "class": "ensemble", "members": [told(m)["class"] for m in model.members]}
    return {"use": "given", "class": type(model).__qualname__}


def _name(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", "") or type(thing).__qualname__)


# --------------------------------------------------------------------------------------------- objectives and queries
class CalledObjective(Objective):
    """A function as an objective.

    Args:
        function: from (student signal, teacher signal), and as far as it takes them batch and context, to a Term or
            per-item values [N].
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.takes = _takes(function, 4)
        self.reads_labels = self.takes > 2

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> nn.Module | None:
        """Try it on the dry batch, unless it asks for the context."""
        if self.takes < 4:
            self._term(student, teacher, batch)
        return None

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The function's term."""
        return self._term(student, teacher, batch, ctx)

    def _term(self, *given: Any) -> Term:
        made = self.function(*given[: self.takes])
        where = f"objectives.{self.name}"
        if isinstance(made, Tensor) and made.ndim == 0:
            raise ConfigError(
                where,
                "the function returns one number for a batch",
                expected="one value an item, [N]",
                remedy="leave out the mean: the engine divides by the number of items over all micro-batches",
            )
        made = Term(made) if isinstance(made, Tensor) else made
        if not isinstance(made, Term):
            raise ConfigError(where, given=type(made).__name__, expected="a Term, or a tensor of per-item values [N]")
        return made


class CalledQuery(Query):
    """A function as a query.

    Args:
        function: from a batch (a mapping of tensors, ``x`` and ``y`` among them), and the context if it takes one, to the
            batch to use.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.takes = _takes(function, 2)

    def accept(self, task: Task) -> None:
        """Try it on a few items, unless it asks for the context."""
        if self.takes < 2:
            with torch.random.fork_rng(devices=[]):
                self._batch(task.example(2))

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """The function's batch."""
        return self._batch(batch, ctx)

    def _batch(self, *given: Any) -> Batch:
        found = self.function(*given[: self.takes])
        if not isinstance(found, Mapping):
            raise ConfigError(
                "queries",
                f"{_name(self.function)} returns {type(found).__name__}",
                expected='the batch, as {**batch, "x": ...}',
            )
        return dict(found)


def _takes(function: Callable[..., Any], most: int) -> int:
    """How many of the arguments, in their order, a function takes."""
    try:
        known = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of C, without a signature
        return most
    if any(p.kind is p.VAR_POSITIONAL for p in known):
        return most
    return min(most, sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in known))


def add_ons(argument: str, given: Any) -> tuple[Any, dict[str, Objective | Query]]:
    """Objectives or queries as the caller names them: what stands in a recipe, and what is an object already.

    Args:
        argument: ``objectives`` or ``queries``.
        given: a mapping by name of recipe nodes, components and functions; a list of recipe names; a preset's name.

    Raises:
        ConfigError: something else.
    """
    base, wrap = {"objectives": (Objective, CalledObjective), "queries": (Query, CalledQuery)}[argument]
    if given is None or isinstance(given, str):
        return given, {}
    if isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given):
        given = {name: name for name in given}
    if not isinstance(given, Mapping):
        raise ConfigError(
            argument,
            given=type(given).__name__,
            expected='a mapping by name ({"mine": ...}) of names, recipe nodes, components or functions, or a list of names',
        )
    nodes: dict[str, Any] = {}
    made: dict[str, Objective | Query] = {}
    for name, one in given.items():
        if isinstance(one, base):
            made[str(name)] = one  # type: ignore[assignment]
        elif one is None or isinstance(one, (str, Mapping)):
            nodes[str(name)] = one
        elif callable(one) and not isinstance(one, type):
            made[str(name)] = wrap(one)  # type: ignore[assignment]
        else:
            raise ConfigError(
                f"{argument}.{name}",
                given=one.__name__ if isinstance(one, type) else type(one).__name__,
                expected="a name, a recipe node, a component or a function",
            )
        if name in made:
            made[name].name = str(name)  # type: ignore[union-attr]
    return nodes, made


# ---------------------------------------------------------------------------------------------------------------- data
SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
"""What callers call the splits."""

FORMS = (
    "(x, y), (x, y, x_test, y_test), a torch Dataset or DataLoader, a pair (train, test) of these, a list of (x, y) pairs, "
    'a DataFrame, a dict of splits ({"train": ..., "test": ...}), of arrays ({"x": ..., "y": ...}) or of columns, '
    "or a source's name"
)
"""What `source_of` takes, in words."""


class GivenData(Source):
    """Arrays or data sets that the caller holds.

    Args:
        made: split (``train``, ``valid``, ``test``) -> pair of arrays (x, y), or a map-style torch Dataset of such pairs.
        told: how they were understood, for the notes of the task.
    """

    def __init__(self, made: dict[str, Any], told: Sequence[str] = ()) -> None:
        self.made, self.told = made, list(told)

    def __len__(self) -> int:
        train = self.made["train"]
        return len(train[0]) if isinstance(train, tuple) else len(train)

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """As every other source of arrays reads them: integers are classes, 0/1 matrices several labels, floats numbers."""
        found = from_datasets(self.made, target, size, memory_mb=4096, names=None, where="data")
        found.notes[:0] = self.told
        return found

    def maps(self, size: Any = None) -> Splits:
        """Images with a class at every pixel: integer ids [N, H, W], of which 255 does not count."""
        from limbeck.data.masks import splits_of

        pairs = {name: pair for name, pair in self.made.items() if isinstance(pair, tuple)}
        if len(pairs) < len(self.made):
            raise DataError("data", given="a torch Dataset", expected="arrays (x, y), y [N, H, W] of class ids")
        return splits_of(pairs, None, [255], size, "data")


class Listed:
    """A list of pairs, or a data set of another library, as a map-style data set with the names of its classes."""

    def __init__(self, items: Any, classes: Sequence[str] | None = None) -> None:
        self.items = items
        if classes:
            self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def source_of(data: Any) -> Source:
    """Arrays, data sets, loaders, frames, lists and mappings as a source.

    Raises:
        DataError: it is none of these.
    """
    if _is_frame(data):
        return _table([data])
    if isinstance(data, Mapping):
        return _of_mapping(data)
    told: list[str] = []
    if isinstance(data, (tuple, list)):
        if len(data) in (2, 3) and all(_is_set(one) for one in data):
            names = ("train", "test") if len(data) == 2 else ("train", "valid", "test")
            return GivenData({n: _set(one, told, n) for n, one in zip(names, data, strict=True)}, told)
        if isinstance(data, list) and data and all(_is_row(one) for one in data):
            return _table([require("pandas", "tabular", "rows as data").DataFrame(data)])
        if isinstance(data, list) and data and all(_is_item(one) for one in data):
            return GivenData({"train": Listed(data)}, told)
        if len(data) in (2, 4) and all(
            _is_frame(x) and not _is_frame(y) for x, y in zip(data[::2], data[1::2], strict=True)
        ):
            return _table([_labelled(x, y) for x, y in zip(data[::2], data[1::2], strict=True)])
        if len(data) in (2, 4) and all(_is_array(one) for one in data):
            made: dict[str, Any] = {"train": _pair(*data[:2])}
            if len(data) == 4:
                made["test"] = _pair(*data[2:])
            return GivenData(made)
        if len(data) == 2 and all(_is_frame(one) for one in data):
            return _table(data)
    elif _is_set(data):
        return GivenData({"train": _set(data, told, "train")}, told)
    raise DataError("data", given=_described(data), expected=FORMS, remedy=_cure(data))


def _described(data: Any) -> str:
    if isinstance(data, (tuple, list)):
        return f"{type(data).__name__} of {len(data)} ({', '.join(type(one).__name__ for one in data[:4])})"
    return type(data).__name__


def _cure(data: Any) -> str:
    """The likely meaning of what is no data."""
    if isinstance(data, (Tensor, np.ndarray)):
        return "these are inputs alone: give their targets too, data=(x, y)"
    if isinstance(data, torch.utils.data.IterableDataset):
        return "an IterableDataset has no length: collect its items, data=list(dataset)"
    if inspect.isgenerator(data) or (hasattr(data, "__next__") and not hasattr(data, "__len__")):
        return "a generator is empty after one pass: data=list(...)"
    return ""


def _of_mapping(data: Mapping[str, Any]) -> Source:
    told: list[str] = []
    names = {str(k): v for k, v in data.items()}
    if "train" in names and set(names) <= set(SPLITS):
        if all(_is_frame(one) for one in names.values()) and set(names) <= {"train", "test"}:
            return _table([names["train"], *([names["test"]] if "test" in names else [])])
        made = {}
        for name, one in names.items():
            inner = source_of(one)
            if not isinstance(inner, GivenData) or set(inner.made) != {"train"}:
                raise DataError(
                    f"data[{name!r}]", given=_described(one), expected="one split: (x, y), a Dataset or a list of pairs"
                )
            made[SPLITS[name]] = inner.made["train"]
            told += [line for line in inner.told if line not in told]
        return GivenData(made, told)
    if {"x", "y"} <= set(names) <= {"x", "y", "x_test", "y_test", "x_valid", "y_valid"}:
        made = {"train": _pair(names["x"], names["y"])}
        for split in ("valid", "test"):
            if (f"x_{split}" in names) != (f"y_{split}" in names):
                raise DataError("data", given=list(names), expected=f"x_{split} and y_{split} together, or neither")
            if f"x_{split}" in names:
                made[split] = _pair(names[f"x_{split}"], names[f"y_{split}"])
        return GivenData(made)
    columns = {k: np.asarray(v) if not isinstance(v, Tensor) else v.detach().cpu().numpy() for k, v in names.items()}
    if columns and all(v.ndim == 1 for v in columns.values()) and len({len(v) for v in columns.values()}) == 1:
        return _table([require("pandas", "tabular", "columns as data").DataFrame(columns)])
    raise DataError(
        "data",
        given={k: _described(v) if not hasattr(v, "shape") else list(v.shape) for k, v in names.items()},
        expected='splits ({"train": ..., "test": ...}), arrays ({"x": ..., "y": ...}), columns of one length, '
        'or a source ({"use": "folder", "path": ...})',
    )


def _table(frames: Sequence[Any]) -> Source:
    from limbeck.data.tables import FrameTable

    return FrameTable(*frames)


def _labelled(frame: Any, labels: Any) -> Any:
    """Columns and their labels, as scikit-learn is given them, as one frame.

    Raises:
        DataError: they differ in length, or the frame has a column of that name.
    """
    values = labels.to_numpy() if _is_series(labels) else np.asarray(labels)
    if len(values) != len(frame) or "label" in frame.columns:
        raise DataError(
            "data",
            f"{len(frame)} rows and {len(values)} targets"
            if len(values) != len(frame)
            else "the frame has a column 'label' of its own",
            expected="one target a row, in a frame without a column 'label'",
        )
    return frame.assign(label=values)


def _pair(x: Any, y: Any) -> tuple[Any, Any]:
    """Inputs and targets as arrays.

    Raises:
        DataError: inputs that are no numbers.
    """
    if isinstance(x, (list, tuple)):
        if x and all(isinstance(one, str) for one in x):
            raise DataError(
                "data",
                "texts come from files",
                given=x[0],
                remedy='for example task="text-classes", data="labelled-text:reviews.csv"',
            )
        try:
            x = torch.stack(list(x)) if x and all(isinstance(one, Tensor) for one in x) else np.asarray(x)
        except (ValueError, RuntimeError):
            raise DataError("data", "the inputs differ in shape", expected="inputs of one shape") from None
    if _is_series(y):
        y = y.to_numpy()
    return x, y


def _set(data: Any, told: list[str], split: str) -> Any:
    """A map-style data set; of a loader the one it loads from, of a Hugging Face one with its class names.

    Raises:
        DataError: it has no length.
    """
    if isinstance(data, torch.utils.data.DataLoader):
        inner = data.dataset
        said = f"data ({split}): of the DataLoader its data set is used; order, batches and workers are the run's own"
        usual = torch.utils.data.default_collate
        if data.collate_fn not in (usual, None):
            said += ", and its collate_fn is not called"
        told.append(said)
        data = inner
    if isinstance(data, torch.utils.data.IterableDataset) or not hasattr(data, "__len__"):
        raise DataError(
            "data",
            "an IterableDataset has no length",
            expected="a map-style Dataset, arrays, or a source's name",
            remedy="collect its items: data=list(dataset)",
        )
    features = getattr(data, "features", None)
    if isinstance(features, Mapping):
        names = next((getattr(features[k], "names", None) for k in ("label", "labels", "y") if k in features), None)
        return Listed(data, names if isinstance(names, list) else None)
    return data


def _is_set(data: Any) -> bool:
    """Whether items can be asked for one by one, or would have to be."""
    if isinstance(data, (torch.utils.data.Dataset, torch.utils.data.DataLoader)):
        return True
    plain = isinstance(data, (str, bytes, Mapping, list, tuple, Tensor, np.ndarray, Path)) or _is_frame(data)
    return not plain and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _is_item(one: Any) -> bool:
    """One item: (input, target), or a mapping with the usual names."""
    if isinstance(one, Mapping):
        return True
    return isinstance(one, (tuple, list)) and len(one) == 2 and not isinstance(one[0], (int, float, str))


def _is_row(one: Any) -> bool:
    """One row of a table: a mapping of numbers and texts."""
    return isinstance(one, Mapping) and all(
        isinstance(v, (int, float, str, type(None), np.number)) for v in one.values()
    )


def _is_array(one: Any) -> bool:
    return isinstance(one, (np.ndarray, Tensor, list, tuple)) or _is_series(one)


def _is_frame(data: Any) -> bool:
    return hasattr(data, "columns") and hasattr(data, "iloc")


def _is_series(data: Any) -> bool:
    return hasattr(data, "iloc") and hasattr(data, "to_numpy") and not _is_frame(data)


__all__ = [
    "Called",
    "CalledObjective",
    "CalledQuery",
    "Given",
    "GivenData",
    "add_ons",
    "modules_of",
    "source_of",
    "student_of",
    "teacher_of",
    "told",
]
