"""Rows of typed columns: numbers and categories, a protected attribute, and a class to be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.data.asked import columns_of
from limbeck.data.items import ArrayData, Part, Splits, digest
from limbeck.data.names import counted, same_letters, some
from limbeck.data.sources import Source
from limbeck.data.splits import ready, sizes_of, tell_classes
from limbeck.data.tables import ScikitTable
from limbeck.data.typed import Binning, Typed, Unseen, fit_category, fit_number, is_number
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError, DataError
from limbeck.functional.tables import alpha_precision, density_coverage, group_rates, parity
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.method import Batch, Built, Data
from limbeck.grammar.needs import Needs
from limbeck.grammar.random import Draws
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.signal import device_of, evaluating
from limbeck.networks.estimators import ESTIMATORS, estimator
from limbeck.networks.table_vae import TableEncoder
from limbeck.tasks.classification import Labelled
from limbeck.tasks.drawn_table import TableArtifact, parity_picture

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench

NAMES = {"task": {"table": "Table"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

GROUPS = 20
"""A protected attribute has at most so many values."""


@settings
class Table(Labelled):
    """Rows of numbers and categories with a protected attribute, answered with one class.

    What networks see of a row (``x``) are its columns one-hot, numbers in bins; beside it stand ``code`` [N, K], ``s`` [N]
    (the protected attribute, which is no part of ``x``) and ``row``. Any method for classes learns on it; tables that are
    made are evaluated by estimators trained on them and tested on real rows.

    Args:
        data: a table: ``csv``, ``parquet``, ``jsonl``, ``hf``, ``scikit-learn``.
        target: the column that is to be told.
        protected: the column of the protected attribute, or several whose combinations are the groups.
        positive: the class that is the favourable one; by default the last.
        numbers, categories: columns whose type is not what their cells show.
        drop: columns that are left out.
        bins: of each column of numbers; 0 leaves numbers as they are, standardised.
        binning: ``quantile`` or equal ``width``.
        log: columns whose bins of equal width are laid in log(1 + x).
        unseen: values of categories that no training row has: an ``error``, or taken for the ``most-common`` one.
        aware: whether estimators that evaluate a table see the protected attribute.
        student_items, valid_fraction, test_fraction, eval_batch, deal: as in classification.
    """

    scores_networks: ClassVar[bool] = True  # beside the tables that are made

    data: Source = ScikitTable(halves="mean texture")
    target: str = "class"
    protected: str | list[str] = "mean texture"
    positive: str | None = None
    numbers: list[str] = []  # noqa: RUF012 (copied, never changed)
    categories: list[str] = []  # noqa: RUF012
    drop: list[str] = []  # noqa: RUF012
    bins: Annotated[int, Ge(0)] = 8
    binning: Binning = "quantile"
    log: list[str] = []  # noqa: RUF012
    unseen: Unseen = "error"
    aware: bool = True
    student_items: Count | None = None
    eval_batch: Count = 1024

    judging = ("student_items", "eval_batch", "aware")
    told = ("auroc", "dpr", "eor")
    takes_unlabelled = False

    def validate(self) -> None:
        """Target and protected attribute are two columns."""
        if self.target in self.groupers:
            raise ValueError("protected must be another column than target")
        if not self.groupers:
            raise ValueError("protected must name a column")
        both = set(self.numbers) & set(self.categories)
        if both:
            raise ValueError(f"numbers and categories both name {some(sorted(both))}")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fixed = False  # columns are coded as those of a network that is known
        self.columns: list[Typed] = []
        self._look()

    def _recall(self, about: Mapping[str, Any]) -> None:
        super()._recall(about)
        known = about["table"]
        self.columns = [Typed.from_config(c) for c in known["columns"]]
        self.target_column = Typed.from_config(known["target"])
        self.fixed = True

    def describe(self) -> dict[str, Any]:
        """What must travel with a network: how every column is coded."""
        coded = {"columns": [c.as_config() for c in self.columns], "target": self.target_column.as_config()}
        return {**super().describe(), "table": coded}

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Rows of a table, by the names of its columns, coded as those that were trained on; target and protected attribute
        need not be there."""
        cells, names = columns_of(given, [c.name for c in self.columns])

        def place(row: int) -> str:
            return names[row]

        values = np.stack([c.read(cells[c.name], place, self.unseen) for c in self.columns], 1)
        none = torch.zeros(len(names), dtype=torch.int64)
        rows = TableRows(self, values, none, none)
        rows.names = names
        return rows

    @property
    def groupers(self) -> list[str]:
        """The protected columns."""
        return [self.protected] if isinstance(self.protected, str) else list(self.protected)

    @property
    def formats(self) -> tuple[str, ...]:
        """Networks' and tables'."""
        return (*super().formats, *TableArtifact.formats)

    # ---------------------------------------------------------------------------------------------------------- data
    def read(self) -> Splits:
        """The rows in three splits; what columns hold is learnt from the training rows."""
        if not hasattr(self.data, "table"):
            raise ConfigError(
                "task.data",
                "has no columns with names",
                given=type(self.data).__name__,
                expected="csv:FILE, parquet:FILE, jsonl:FILE, hf:NAME or scikit-learn:NAME",
            )
        found: Any = self.data.table()
        names = list(found.columns)
        notes: list[str] = []

        def known(name: str, argument: str) -> str:
            same = name if name in names else same_letters(name, names)
            if same is None:
                raise DataError.unknown(argument, name, names, "column")
            return same

        target = known(self.target, "task.target")
        groupers = [known(n, "task.protected") for n in self.groupers]
        for argument, listed in (("numbers", self.numbers), ("categories", self.categories), ("log", self.log)):
            leaks = [n for n in listed if known(n, f"task.{argument}") in groupers]
            if leaks:
                raise ConfigError(
                    f"task.{argument}",
                    f"{some(leaks)} is the protected attribute, which is no feature",
                    remedy=f"take it out of task.{argument}",
                )
        dropped = [known(n, "task.drop") for n in self.drop]
        self.order = [n for n in names if n not in dropped]
        if target in dropped or set(groupers) & set(dropped):
            raise ConfigError("task.drop", "the target and the protected column are needed", given=self.drop)
        everyone = np.arange(len(found.splits))
        fitted = (
            self.target_column if self.fixed else fit_category(target, found.columns[target], everyone, empty=False)
        )
        known_columns = self.columns if self.fixed else []
        if len(fitted.values) > 50:
            raise DataError(
                "task.target",
                f"column {target!r} has {len(fitted.values)} different values",
                expected="classes: at most 50",
                remedy="for numbers use task=classification",
            )
        y = torch.from_numpy(fitted.codes(fitted.read(found.columns[target], found.place)))
        self.target_column = fitted
        self._groups(found.columns, groupers, everyone)
        # divided by row numbers: how columns are coded is learnt from the training rows alone
        rows = ArrayData(torch.arange(len(y), dtype=torch.float64)[:, None], y)
        parts = {k: Part(rows, torch.from_numpy(np.flatnonzero(found.splits == k))) for k in ("train", "valid", "test")}
        from limbeck.data.arrays import judge_by_valid

        there = {k: p for k, p in parts.items() if len(p)}
        splits = ready(
            judge_by_valid(there, fitted.values, "label", [], False),
            self.valid_fraction,
            self.test_fraction,
            None,
            self.deal,
        )
        assert splits.valid is not None and splits.test is not None
        ids = {k: getattr(splits, k).ids for k in ("train", "valid", "test")}
        train = ids["train"].numpy()
        self.columns = list(known_columns) if self.fixed else []
        values: list[np.ndarray[Any, Any]] = []
        for column in self.columns:
            values.append(column.read(found.columns[known(column.name, "task.data")], found.place, self.unseen))
        for name in self.order if not self.fixed else ():
            if name == target or name in groupers:
                continue
            cells = found.columns[name]
            number = name in self.numbers or (name not in self.categories and is_number(cells))
            if number:
                column = fit_number(name, cells, train, found.place, self.bins, self.binning, name in self.log)
            else:
                column = fit_category(name, cells, train)
            if column.width < 2 and (self.bins or not number):
                notes.append(f"column {name} has one value only, and is left out")
                self.order = [n for n in self.order if n != name]
                continue
            self.columns.append(column)
            values.append(column.read(cells, found.place, self.unseen))
        if not self.columns:
            raise DataError("task.data", "there is no column beside target and protected attribute", given=names)
        labels = list(fitted.values)
        if self.positive is not None and self.positive not in labels:
            raise DataError.unknown("task.positive", self.positive, labels, "class")
        self.favourable = labels.index(self.positive if self.positive is not None else labels[-1])
        whole = TableRows(self, np.stack(values, 1), self.group_of_row, y)
        made = {k: Part(whole, ids[k]) for k in ("train", "valid", "test")}
        by_type = (("numbers", True), ("categories", False))
        kinds = {word: [c.name for c in self.columns if c.number is is_one] for word, is_one in by_type}
        told = [
            *found.notes,
            *(n for n in splits.notes if not n.startswith("items of each")),
            *tell_classes(labels, sizes_of(splits)),
            *(f"{counted(len(n), 'column')} of {word}: {some(n, 8)}" for word, n in kinds.items() if n),
            *notes,
            *self._tell_groups(made["train"], made["test"]),
        ]
        return Splits(made["train"], made["valid"], made["test"], labels, "label", told)

    def _groups(self, columns: Mapping[str, Any], groupers: list[str], everyone: np.ndarray[Any, Any]) -> None:
        """The protected attribute: columns, values, and the group of every row."""
        self.protected_columns = [fit_category(n, columns[n], everyone, empty=False) for n in groupers]
        read = [c.read(columns[c.name], str).astype(np.int64) for c in self.protected_columns]
        combined, inverse = np.unique(np.stack(read, 1), axis=0, return_inverse=True)
        self.group_values = combined  # [S, protected columns]
        self.groups = [
            " and ".join(c.values[v] for c, v in zip(self.protected_columns, row, strict=True))
            for row in combined.tolist()
        ]
        self.group_of_row = torch.from_numpy(inverse.reshape(-1).astype(np.int64))
        if len(self.groups) < 2:
            raise DataError(
                "task.protected",
                f"column {some(groupers)} has one value only: {self.groups[0]!r}",
                expected="at least two groups",
                remedy="name the column of another attribute",
            )
        if len(self.groups) > GROUPS:
            raise DataError(
                "task.protected",
                f"column {some(groupers)} has {len(self.groups)} different values",
                expected=f"at most {GROUPS} groups",
                remedy="make a column of groups of it (age: under 25, 25 and over)",
            )

    def _tell_groups(self, train: Part, test: Part) -> list[str]:
        said = []
        for split, data in (("training", train), ("test", test)):
            rows = torch.bincount(self.groups_of(data), minlength=len(self.groups)).tolist()
            said.append(
                f"groups of the {split} rows: {', '.join(f'{g} {n}' for g, n in zip(self.groups, rows, strict=True))}"
            )
            lacking = [g for g, n in zip(self.groups, rows, strict=True) if not n]
            if lacking:
                said.append(f"no {split} row is of the group {some(lacking)}: parity says nothing of it")
        whole: Any = train.data
        s = whole.s[train.ids].numpy()
        for k, column in enumerate(self.columns):
            code = whole.code[train.ids, k].numpy()
            table = np.zeros((column.width, len(self.groups)))
            np.add.at(table, (code, s), 1)
            if (table.max(1).sum() == len(s)) and (table.sum(1) > 0).sum() <= 2 * len(self.groups):
                said.append(
                    f"column {column.name} tells the protected attribute of every row: task.drop=[{column.name}] leaves it out"
                )
        return said

    @property
    def widths(self) -> list[int]:
        """How many codes each feature has."""
        return [c.width for c in self.columns]

    def groups_of(self, data: Any) -> Tensor:
        """The group [N] of every row of a split."""
        found: Tensor = data.fetch(torch.arange(len(data)))["s"]
        return found

    def seen(self, batch: Batch) -> Tensor:
        """What encoders of rows see: columns and class, one-hot [N, width]."""
        return torch.cat([batch["x"], torch.nn.functional.one_hot(batch["y"], self.outputs).to(batch["x"].dtype)], -1)

    @property
    def needs(self) -> Needs:
        """One row of values a row of the table."""
        return super().needs.with_(table=self)

    def feed(self, module: Any, batch: Batch) -> Any:
        """Columns go into networks for classes; encoders see class and protected attribute too."""
        return module(self.seen(batch), batch["s"]) if isinstance(module, TableEncoder) else module(batch["x"])

    def match(self, student: Built, teacher: Built) -> None:
        """Networks for classes as in classification; encoders answer with latents, which their method compares."""
        if not any(getattr(b.model, "latents", False) for b in (student, teacher)):
            super().match(student, teacher)

    def raw(self, batch: Batch) -> Any:
        """The rows of a batch as a DataFrame of all columns but the target, as the table has them."""
        rows = batch["row"].cpu()
        whole: Any = self.loaded().data  # type: ignore[attr-defined]
        drawn = Drawn(whole.values[rows], whole.s[rows].numpy(), whole.y[rows].numpy())
        return self.frame(drawn).drop(columns=[self.target_column.name])

    def frame(self, rows: Drawn) -> Any:
        """Rows as a DataFrame, columns in the table's own order."""
        from limbeck.errors import require

        return require("pandas", "tabular", "tables as DataFrames").DataFrame(self.cells(rows))

    def cells(self, rows: Drawn) -> dict[str, np.ndarray[Any, Any]]:
        """Rows as columns of cells, in the table's own order."""
        found = {c.name: c.cells(rows.values[:, k]) for k, c in enumerate(self.columns)}
        for k, c in enumerate(self.protected_columns):
            found[c.name] = c.cells(self.group_values[rows.s, k].astype(np.float64))
        found[self.target_column.name] = self.target_column.cells(rows.y.astype(np.float64))
        return {name: found[name] for name in self.order}

    # ------------------------------------------------------------------------------------------------------- scoring
    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Metrics of a network as in classification, and its parity between groups."""
        scores = super().evaluate(built, data, teacher, device)
        told, place = [], device or device_of(built.module)
        with torch.no_grad(), evaluating([built.module]):
            for ids in torch.arange(len(data)).split(self.eval_batch):
                batch = to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, place)
                told.append(self.signal(built, batch).logits.argmax(-1).cpu())
        yes = self.favourable
        y: Tensor = data.y  # type: ignore[attr-defined]
        found = parity(group_rates(y == yes, torch.cat(told) == yes, self.groups_of(data), groups=len(self.groups)))
        scores.update(found._asdict())
        return scores

    choices = ("real", "independent", "reweighed")
    called = MappingProxyType(
        {
            "real": "the real rows",
            "independent": "the real columns, each shuffled by itself",
            "reweighed": "real rows drawn so that label and group are independent",
            "teacher": "the table of its teacher",
        }
    )
    """Which tables of real values are evaluated beside one that was made."""

    def pool(self) -> dict[str, Callable[[], Any]]:
        """The estimators that evaluate a table; by default ``gradient-boosting``."""
        return {n: partial(self._estimator, n, 0) for n in ESTIMATORS}

    def _estimator(self, name: str, seed: int) -> Any:
        coded = [k for k, c in enumerate(self.columns) if not c.number] + ([len(self.columns)] if self.aware else [])
        return estimator(name, seed, categories=coded)

    def _split(self, split: str) -> Drawn:
        part: Any = self.loaded() if split == "train" else getattr(self, split)
        ids = part.ids
        return Drawn(part.data.values[ids], part.data.s[ids].numpy(), part.data.y[ids].numpy())

    def real(self, how: str, seed: int, made: Artifact | None = None) -> TableArtifact:
        """Training rows: as they are; every column shuffled by itself; or drawn so that label and group are independent.

        ``reweighed`` draws row i with weight P(s) P(y) / P(s, y) (Kamiran and Calders 2012).
        """
        real = self._split("train")

        def rows(k: int) -> Drawn:
            rng = Draws(seed, ("table", how)).numpy(f"{k}")
            if how == "real":
                return real
            if how == "independent":
                values = np.stack([rng.permutation(column) for column in real.values.T], 1)
                return Drawn(values, rng.permutation(real.s), rng.permutation(real.y))
            joint = np.zeros((len(self.groups), self.outputs))
            np.add.at(joint, (real.s, real.y), 1)
            weight = (joint.sum(1, keepdims=True) * joint.sum(0) / np.maximum(joint, 1))[real.s, real.y]
            return real.at(rng.choice(len(real.y), len(real.y), p=weight / weight.sum()))

        return TableArtifact(self, rows)

    def fresh(self, artifact: Any, name: str, k: int, seed: int, split: str) -> Scores:
        """An estimator trained on the k-th draw of a table and evaluated on a split: utility and parity of what it answers."""
        made, real = artifact.rows(k), self._split(split)
        x, judged = (np.concatenate([r.values, r.s[:, None]], 1) if self.aware else r.values for r in (made, real))
        prob = np.full((len(real.y), self.outputs), 1e-9)
        there = np.unique(made.y)
        if len(there) == 1:  # nothing can be learnt from one class
            prob[:, there[0]] = 1.0
        else:
            fitted = self._estimator(name or "gradient-boosting", seed + k).fit(x, np.searchsorted(there, made.y))
            prob[:, there] = np.clip(fitted.predict_proba(judged), 1e-9, 1.0)
        guess, yes = prob.argmax(1), self.favourable
        truth, told, right = real.y == yes, guess == yes, guess == real.y
        rates = group_rates(*map(torch.from_numpy, (truth, told, real.s)), groups=len(self.groups))
        if not name:
            artifact.rates = rates
        hits = float((truth & told).sum())
        precision, recall = hits / max(1, told.sum()), hits / max(1, truth.sum())
        nll = -np.log(prob[np.arange(len(real.y)), real.y] / prob.sum(1))
        found = {
            "accuracy": float(right.mean()),
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / max(1e-12, precision + recall),
            "auroc": _auroc(truth, prob[:, yes]),
            "nll": float(nll.mean()),
            **parity(rates)._asdict(),
        }
        return Scores(found, {"accuracy": torch.from_numpy(right), "nll": torch.from_numpy(nll)})

    def quality(self, artifact: Any, seed: int, split: str, most: int = 1000) -> dict[str, float]:
        """How like training rows those of a table are: alpha-precision, beta-recall, authenticity, density, coverage.

        On up to ``most`` rows each, numbers standardised and categories one-hot over the square root of 2.
        """
        real, made = self._split("train"), artifact.rows(0)
        n = min(len(real.y), len(made.y), most)
        rng = Draws(seed, ("table", "quality")).numpy(split)
        a, b = (self._embed(r.at(rng.choice(len(r.y), n, replace=False))) for r in (real, made))
        if n < 7:
            return {}
        alpha, near = alpha_precision(a, b), density_coverage(a, b)
        return {
            "alpha_precision": alpha.precision,
            "beta_recall": alpha.coverage,
            "authenticity": alpha.authenticity,
            "density": near.density,
            "coverage": near.coverage,
        }

    def _embed(self, rows: Drawn) -> Tensor:
        parts = [np.eye(self.outputs)[rows.y] / 2**0.5]
        for k, c in enumerate(self.columns):
            v = rows.values[:, k]
            parts.append(((v - c.mean) / c.std)[:, None] if c.number else np.eye(c.width)[v.astype(np.int64)] / 2**0.5)
        return torch.from_numpy(np.concatenate(parts, 1))

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """Of networks their calibration; of tables the share of favourable answers by group, and an image of it."""
        rates = {
            name: row.rates for name, row in rows.items() if isinstance(row, TableArtifact) and row.rates is not None
        }
        if not rates:
            return super().extras(rows, bench)
        told = {n: dict(zip(self.groups, r.selection.tolist(), strict=True)) for n, r in rates.items()}
        found: dict[str, Any] = {"selection_rates": told}
        if bench.folder is not None:
            parity_picture(rates, self.groups, bench.folder / "parity.png")
            favourable = (self.labels or [])[self.favourable]
            said = f"Share of the real test rows that is answered {favourable!r} by what learnt from each table."
            found["images"] = [{"file": "parity.png", "title": "Parity between groups", "caption": said}]
        return found


class Drawn:
    """Rows: values [N, K] (numbers, or codes of categories), groups [N], classes [N]."""

    def __init__(self, values: np.ndarray[Any, Any], s: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
        self.values, self.s, self.y = values, s, y

    def at(self, ids: np.ndarray[Any, Any]) -> Drawn:
        """Some of them."""
        return Drawn(self.values[ids], self.s[ids], self.y[ids])


class TableRows:
    """All rows of a table, coded.

    Args:
        task: whose columns they are.
        values: as `Typed.read` gives them [N, K].
        s, y: groups and classes [N].
    """

    def __init__(self, task: Table, values: np.ndarray[Any, Any], s: Tensor, y: Tensor) -> None:
        self.values, self.s, self.y = values, s, y
        self.names: list[str] = []  # of rows without a class, how they are called
        self.code = torch.from_numpy(np.stack([c.codes(values[:, k]) for k, c in enumerate(task.columns)], 1))
        hot = [k for k, c in enumerate(task.columns) if task.bins or not c.number]
        widths = torch.tensor([task.columns[k].width for k in hot], dtype=torch.int64)
        self._hot, self._start, self._width = hot, widths.cumsum(0) - widths, int(widths.sum())
        plain = [(k, c) for k, c in enumerate(task.columns) if k not in set(hot)]
        columns = [(values[:, k] - c.mean) / c.std for k, c in plain]
        self._numbers = torch.from_numpy(np.stack(columns, 1)).float() if columns else torch.zeros(len(y), 0)
        self.shape: tuple[int, ...] = (self._numbers.shape[1] + self._width,)

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, items: Tensor) -> Batch:
        """Rows as networks see them, with their codes, groups and numbers."""
        code = self.code.index_select(0, items)
        x = torch.zeros(len(items), self._width).scatter_(1, code[:, self._hot] + self._start, 1.0)
        x = torch.cat([self._numbers.index_select(0, items), x], 1)
        return {"x": x, "y": self.y[items], "s": self.s[items], "code": code, "row": items}

    @property
    def fingerprint(self) -> str:
        """A content hash."""
        return digest(self.values, self.s, self.y, list(self.shape), self.code)


def _auroc(truth: np.ndarray[Any, Any], score: np.ndarray[Any, Any]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, score)) if 0 < truth.sum() < len(truth) else float("nan")


__all__ = ["Drawn", "Table", "TableRows"]
