"""Estimators as teachers: a fitted one that the caller holds, one in a safe file, or scikit-learn's, fitted by name.

Nothing is unpickled: joblib and pickle files run whatever they hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from limbeck.data.arrays import read_names
from limbeck.data.cells import text_of
from limbeck.data.classes import match_classes
from limbeck.data.items import as_path
from limbeck.data.names import some
from limbeck.errors import ConfigError, DataError, TeacherMismatch, first_line, require
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.settings import settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Check, Model, Task
from limbeck.networks.estimators import EstimatorName, estimator

NAMES = {"model": {"predictor": "PredictorModel", "sklearn": "SklearnModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin")

SMALLEST = 1e-7
"""Probabilities below are raised to it, so that their logarithms are finite."""


class Predictor:
    """Answers batches by what an estimator predicts: log-probabilities of classes, log-odds of labels, numbers.

    Args:
        estimator: has ``predict_proba`` (for numbers ``predict``), as scikit-learn, XGBoost and LightGBM have it.
        task: whose items it is asked about.
        argument: what an error is about.

    Raises:
        ConfigError: it cannot predict.
        TeacherMismatch: its classes are not the task's, or it wants other columns.
    """

    def __init__(
        self, estimator: Any, task: Task, argument: str = "teacher", labels: Sequence[str] | None = None
    ) -> None:
        self.needs = needs = _answers(task)
        self.estimator, self.argument = estimator, argument
        self.kind = needs.target
        self.device = torch.device("cpu")
        wanted = "predict" if self.kind == "number" else "predict_proba"
        if not callable(getattr(estimator, wanted, None)):
            raise ConfigError(
                argument,
                f"{type(estimator).__name__} has no {wanted}",
                expected=f"an estimator with {wanted}",
                remedy="of SVC set probability=True; wrap others in sklearn.calibration.CalibratedClassifierCV"
                if self.kind != "number"
                else "",
            )
        self.names = [str(n) for n in getattr(estimator, "feature_names_in_", ())]
        width = getattr(estimator, "n_features_in_", None)
        self._rows: Callable[[Batch], Any] = self._raw if needs.table is not None else self._plain
        if needs.table is None and isinstance(width, (int, np.integer)) and width != np.prod(needs.inputs):
            raise TeacherMismatch(
                argument,
                f"{type(estimator).__name__} was fitted on {width} features, and the items have {np.prod(needs.inputs)}",
                remedy="fit it on the same columns, or choose them with task.data.features=[...]",
            )
        self.order: list[int] | None = None
        if self.kind == "label":
            own = list(labels) if labels is not None else [text_of(c) for c in getattr(estimator, "classes_", ())]
            found = match_classes(own, needs.names) if own else None
            self.order = None if found is None else list(found)
        try:
            self.answer(task.example(2))
        except (ConfigError, TeacherMismatch, DataError):
            raise
        except Exception as error:
            raise ConfigError(
                argument,
                f"{type(estimator).__name__} fails on the task's rows: {type(error).__name__}: {first_line(error)}",
                expected="an estimator that is fitted, on the same columns",
            ) from None

    def to(self, device: torch.device) -> Predictor:
        """Answers go to this device."""
        self.device = torch.device(device)
        return self

    def _plain(self, batch: Batch) -> Any:
        x = batch["x"].flatten(1).cpu().numpy()
        if not self.names:
            return x
        return require("pandas", "tabular", "estimators that were fitted on a DataFrame").DataFrame(
            x, columns=self.names
        )

    def _raw(self, batch: Batch) -> Any:
        """Rows of a table as DataFrame of the columns that the estimator was fitted on; of numbers alone as an array."""
        table = self.needs.table
        assert table is not None
        if not self.names and not all(c.number for c in table.columns):
            return batch["x"].cpu().numpy()  # fitted on rows as networks see them: one-hot
        frame = table.raw(batch)
        if not self.names:
            return frame[[c.name for c in table.columns]].to_numpy()
        missing = [n for n in self.names if n not in frame.columns]
        if missing:
            raise TeacherMismatch(
                self.argument,
                f"it was fitted on columns that the table has not: {some(missing)}",
                given=list(frame.columns),
                remedy="fit it on the table's own columns",
            )
        return frame[self.names]

    def answer(self, batch: Batch, taps: Sequence[str] = ()) -> Signal:
        """What it predicts of a batch [N, C], in the task's order of classes and units of numbers.

        Raises:
            ConfigError: activations are asked for, which an estimator has none of.
        """
        if taps:
            raise ConfigError(self.argument, "an estimator has no activations", given=list(taps), expected="a network")
        rows = self._rows(batch)
        if self.kind == "number":
            found = torch.from_numpy(np.asarray(self.estimator.predict(rows), dtype=np.float64)).reshape(
                len(batch["x"]), -1
            )
            mean, std = torch.tensor(self.needs.mean), torch.tensor(self.needs.std)
            return self._shown(((found - mean) / std).float())
        told = self.estimator.predict_proba(rows)
        if self.kind == "labels":
            # of several labels scikit-learn gives a list of [N, 2], or [N, C] of yes
            each = np.stack([t[:, -1] for t in told], 1) if isinstance(told, list) else np.asarray(told)
            yes = torch.from_numpy(each.astype(np.float64)).clamp(SMALLEST, 1 - SMALLEST)
            return self._shown(yes.logit().float())
        p = torch.from_numpy(np.asarray(told, dtype=np.float64))
        if p.ndim == 1:
            p = torch.stack([1 - p, p], 1)
        p = p if self.order is None else p[:, self.order]
        return self._shown(p.clamp_min(SMALLEST).log().float())

    def _shown(self, z: Tensor) -> Signal:
        if z.shape[1] != self.needs.outputs:
            raise TeacherMismatch(
                self.argument,
                f"it answers with {z.shape[1]} values, and the task has {self.needs.outputs}",
                expected=some(list(self.needs.names)),
            )
        return Signal(z.to(self.device))


class GivenEstimator(Model):
    """A fitted estimator that the caller holds.

    Args:
        estimator: it.
        labels: its classes in the order of its probabilities; by default its ``classes_``.
        check: as of every teacher.
    """

    held = True

    def __init__(self, estimator: Any, labels: Sequence[str] | None = None, check: Check = "on") -> None:
        self.estimator, self.names, self.check = estimator, labels, check

    @property
    def trained(self) -> bool:
        """It is fitted."""
        return True

    def setting(self, name: str) -> str:
        """As an argument of `limbeck.distill`."""
        return "teacher_labels" if name == "labels" else name

    def build(self, task: Task) -> Built:
        """The estimator, asked for an answer to two items."""
        return Built(
            Predictor(self.estimator, task, self.role or "teacher", self.names),
            labels=task.labels,
            model=self,
        )


@settings
class PredictorModel(Model):
    """A fitted estimator in a file that holds no code: skops, ONNX, or XGBoost's own JSON or UBJ.

    Args:
        path: the file: ``.skops`` (scikit-learn), ``.onnx``, ``.json`` or ``.ubj`` (XGBoost).
        labels: its class names in the order of its probabilities, or a file of them; by default those that it knows.
        check: try it on labelled items before anything is trained, and refuse it where it only guesses: ``on`` or ``off``.
    """

    paths: ClassVar[tuple[str, ...]] = ("path", "labels")

    path: str
    labels: str | list[str] | None = None
    check: Check = "on"

    @property
    def trained(self) -> bool:
        """It is fitted."""
        return True

    def build(self, task: Task) -> Built:
        """The estimator, asked for an answer to two items.

        Raises:
            ConfigError: another kind of file, or one that holds more than known types; pickles are never opened.
        """
        argument = self.setting("path")
        names = read_names(as_path(self.labels, "labels")) if isinstance(self.labels, str) else self.labels
        found = open_estimator(as_path(self.path, argument), argument)
        return Built(Predictor(found, task, self.role or "teacher", names), labels=task.labels, model=self)


@settings
class SklearnModel(Model):
    """One of scikit-learn's estimators (or XGBoost's), fitted on the teacher's training items where it is to teach.

    Args:
        name: ``gradient-boosting``, ``forest``, ``tree``, ``logistic``, ``svm``, ``knn``, ``mlp`` or ``xgboost``.
        options: arguments of the estimator (``{n_estimators: 300}``).
        check: try it on labelled items before anything is trained.
    """

    name: EstimatorName = "gradient-boosting"
    options: dict[str, Any] = {}  # noqa: RUF012 (copied, never changed)
    check: Check = "on"

    @property
    def trained(self) -> bool:
        """It is fitted when it is built: that takes seconds, and the same each time."""
        return True

    def build(self, task: Task) -> Built:
        """The estimator, fitted on all training items."""
        needs = _answers(task)
        data: Any = task.teacher_train
        batch = data.fetch(torch.arange(len(data)))
        number = needs.target == "number"
        if needs.table is not None:
            columns = needs.table.columns
            rows = needs.table.raw(batch)[[c.name for c in columns]]
            kinds = [k for k, c in enumerate(columns) if not c.number]
            from sklearn.compose import make_column_transformer
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import OrdinalEncoder

            codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
            order = make_column_transformer((codes, [columns[k].name for k in kinds]), remainder="passthrough")
            made = make_pipeline(order, estimator(self.name, 0, number, range(len(kinds)), **self.options))
        else:
            rows = batch["x"].flatten(1).numpy()
            made = estimator(self.name, 0, number, **self.options)
        y = batch["y"].numpy()
        made.fit(rows, y.squeeze(1) if number and y.shape[1] == 1 else y)
        labels = [needs.names[int(c)] for c in made.classes_] if needs.target == "label" else None
        return Built(Predictor(made, task, self.role or "teacher", labels), labels=task.labels, model=self)


def _answers(task: Task) -> Needs:
    """What a task of classes or numbers needs."""
    task.load()
    needs = task.needs
    if needs.form != "classes" or needs.tokens is not None:
        raise ConfigError(
            "teacher",
            "estimators answer with classes or numbers",
            given=type(task).__name__,
            expected="task=classification or task=table",
        )
    return needs


# ------------------------------------------------------------------------------------------------------------- files
def open_estimator(path: Path, argument: str = "teacher.path") -> Any:
    """A fitted estimator from a file that holds no code.

    Raises:
        ConfigError: a pickle, another kind of file, types that are not scikit-learn's own.
        DataError: there is no such file, or it cannot be read.
        MissingExtra: skops, onnxruntime or xgboost is not installed.
    """
    if not path.is_file():
        raise DataError(argument, "there is no such file", given=str(path), remedy="check the path")
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(2)
    if suffix in PICKLES or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        raise ConfigError(
            argument,
            "is a pickle (joblib writes such), which runs whatever it holds when it is opened: limbeck opens none",
            given=str(path),
            expected=".skops, .onnx, or XGBoost's .json or .ubj",
            remedy="where it is trusted, write it anew: skops.io.dump(joblib.load('model.joblib'), 'model.skops'); "
            "or hand the estimator itself to limbeck.distill(teacher=estimator, ...)",
        )
    openers = {".skops": _skops, ".onnx": Onnx, ".json": _xgboost, ".ubj": _xgboost}
    if suffix not in openers:
        raise ConfigError(argument, "is no known kind of file", given=str(path), expected=some(list(openers)))
    try:
        return openers[suffix](path, argument)
    except (ConfigError, DataError):
        raise
    except ImportError:
        raise
    except Exception as error:
        if type(error).__name__ == "MissingExtra":
            raise
        raise DataError(argument, f"cannot be read: {first_line(error)}", given=str(path)) from None


def _skops(path: Path, argument: str) -> Any:
    io = require("skops.io", "tabular", "opening skops files")
    strange = io.get_untrusted_types(file=path)
    if strange:
        raise ConfigError(
            argument,
            f"holds types that are not scikit-learn's own: {some(list(strange))}",
            given=str(path),
            remedy="look at them with skops.io.get_untrusted_types; what is trusted can be opened by you and handed to "
            "limbeck.distill(teacher=estimator, ...)",
        )
    return io.load(path, trusted=[])


def _xgboost(path: Path, argument: str) -> Any:
    library = require("xgboost", "tabular", "opening XGBoost's files")
    if path.suffix.lower() == ".json":
        try:
            learner = json.loads(path.read_text(encoding="utf-8"))["learner"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                argument, "is no model of XGBoost", given=str(path), expected="what save_model writes"
            ) from None
        number = str(learner["objective"]["name"]).startswith(("reg:", "count:", "survival:"))
    else:
        number = False
    made = library.XGBRegressor() if number else library.XGBClassifier()
    made.load_model(path)
    return made


class Onnx:
    """An ONNX graph as an estimator: its last output that has a row of numbers an item is what it predicts.

    Args:
        path: the graph, as skl2onnx and others write it: probabilities [N, C], or a list of mappings (zipmap).
        argument: what an error is about.
    """

    def __init__(self, path: Path, argument: str) -> None:
        runtime = require("onnxruntime", "export", "running ONNX graphs")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise ConfigError(
                argument,
                f"has {len(inputs)} inputs",
                given=[i.name for i in inputs],
                expected="one input [N, features]",
            )
        self.input = inputs[0]
        width = self.input.shape[-1] if self.input.shape else None
        if isinstance(width, int):
            self.n_features_in_ = width

    def _run(self, rows: Any) -> list[Any]:
        kind = np.float64 if "double" in self.input.type else np.float32
        found: list[Any] = self.session.run(None, {self.input.name: np.asarray(rows, dtype=kind)})
        return found

    def predict(self, rows: Any) -> Any:
        """The first output."""
        return self._run(rows)[0]

    def predict_proba(self, rows: Any) -> Any:
        """The last output that has a number for each class of each item."""
        for out in reversed(self._run(rows)):
            if isinstance(out, list) and out and isinstance(out[0], dict):
                return np.array([[row[k] for k in sorted(row)] for row in out])
            if isinstance(out, np.ndarray) and out.ndim == 2 and out.shape[1] > 1:
                return out
        return np.asarray(self._run(rows)[-1]).reshape(len(rows))


__all__ = ["GivenEstimator", "Onnx", "Predictor", "PredictorModel", "SklearnModel", "open_estimator"]
