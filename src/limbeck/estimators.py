"""Distillation for those who think in scikit-learn: fit on a DataFrame, draw a fair one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.base import BaseEstimator

from limbeck.errors import ConfigError, DataError, require
from limbeck.grammar.random import own_generators


class FairSynthesizer(BaseEstimator):  # type: ignore[misc]
    """Draws rows like those of a DataFrame, on which a model becomes fair in the sense of demographic parity.

    A variational autoencoder whose latents do not depend on the protected attribute is distilled into a small encoder, and
    rows are decoded from its latents (`limbeck show fair-data`). scikit-learn's conventions: arguments are kept as they are,
    what is learnt has a trailing underscore, ``get_params``, ``set_params`` and ``clone`` work.

    Args:
        protected: the column of the protected attribute, or several whose combinations are the groups.
        target: the column of the class; needed where ``fit`` gets no ``y``.
        positive: the favourable class; by default the last.
        beta: weight of independence (1e7, not 7); 0 learns a table without it.
        bins: of each column of numbers.
        hidden, student_hidden: units of the teacher's and the student's encoder.
        latent: size of the latents.
        steps, batch_size, learning_rate: of the autoencoder and of the student.
        s_sampling, y_from, decode: as the method's settings.
        random_state: a whole number.
        options: further ``key=value`` settings, as on the command line (``["method.generator=ddpm"]``).
        verbose: say how far it is.

    Attributes:
        columns_: the columns of what is drawn. ``groups_``, ``classes_``: of the protected attribute and of the target.
        result_: what ``result.json`` of the run says. ``n_features_in_``, ``feature_names_in_``: of X.

    Example:
        >>> synthesizer = FairSynthesizer(protected="sex", target="income").fit(frame)  # doctest: +SKIP
        >>> fair = synthesizer.sample(1000, random_state=1)  # doctest: +SKIP
    """

    def __init__(
        self,
        protected: str | Sequence[str] = "sex",
        target: str | None = None,
        positive: str | None = None,
        *,
        beta: float = 1e7,
        bins: int = 8,
        hidden: int = 64,
        student_hidden: int = 8,
        latent: int = 8,
        steps: int = 1000,
        batch_size: int = 512,
        learning_rate: float = 1e-3,
        s_sampling: str = "marginal",
        y_from: str = "z",
        decode: str = "sample",
        random_state: int | None = None,
        options: Sequence[str] = (),
        verbose: bool = False,
    ) -> None:
        self.protected, self.target, self.positive, self.beta, self.bins = protected, target, positive, beta, bins
        self.hidden, self.student_hidden, self.latent, self.steps = hidden, student_hidden, latent, steps
        self.batch_size, self.learning_rate, self.s_sampling = batch_size, learning_rate, s_sampling
        self.y_from, self.decode, self.random_state = y_from, decode, random_state
        self.options, self.verbose = options, verbose

    def fit(self, X: Any, y: Any = None) -> FairSynthesizer:
        """Learn a table.

        Args:
            X: a DataFrame with the protected column, and with the target's where ``y`` is not given.
            y: the classes [N]; called as a Series is, else ``target``.

        Raises:
            DataError, ConfigError: what cannot be learnt from, before anything is trained.
        """
        from limbeck.data.tables import FrameTable
        from limbeck.grammar.card import recipe_path
        from limbeck.recipe.overrides import apply, read_tree
        from limbeck.recipe.recipe import build, check
        from limbeck.run import run_recipe

        pandas = require("pandas", "tabular", "tables as DataFrames")
        if not isinstance(X, pandas.DataFrame):
            raise DataError("X", given=type(X).__name__, expected="a pandas DataFrame, whose columns have names")
        frame, target = X, self.target
        if y is not None:
            if len(y) != len(X):
                raise DataError("y", f"{len(y)} classes for {len(X)} rows", expected="one class a row")
            target = target or str(getattr(y, "name", None) or "target")
            if target in X.columns:
                raise DataError("y", f"X has a column {target!r} too", remedy="leave it out of X, or give no y")
            frame = X.assign(**{target: getattr(y, "to_numpy", lambda: y)()})
        if target is None:
            raise ConfigError(
                "target",
                "which column is the class?",
                given=list(map(str, X.columns)),
                remedy="give y, or target=COLUMN",
            )
        train = {"steps": self.steps, "batch_size": min(self.batch_size, len(X)), "lr": self.learning_rate}
        protected = self.protected if isinstance(self.protected, str) else list(self.protected)
        tree = read_tree(recipe_path("fair-data"))
        tree |= {
            "name": "fair-data",
            "seed": 0 if self.random_state is None else int(self.random_state),
            "task": {
                "use": "table",
                "target": target,
                "protected": protected,
                "positive": None if self.positive is None else str(self.positive),
                "bins": self.bins,
                "unseen": "most-common",
            },
            "teacher": {"use": "table-encoder", "hidden": [self.hidden], "latent": self.latent},
            "student": {"use": "table-encoder", "hidden": [self.student_hidden], "latent": self.latent},
            "method": {
                "use": "fair-data",
                "beta": float(self.beta),
                "vae": train,
                "hidden": [self.hidden],
                "s_sampling": self.s_sampling,
                "y_from": self.y_from,
                "decode": self.decode,
            },
            "train": train,
            "evaluator": {"use": "fresh", "networks": 1, "baselines": ["real"]},
            "loggers": [],
        }
        for token in self.options:
            apply(tree, token)
        checked = check(tree)
        recipe = build(checked)
        recipe.task.data = FrameTable(frame)  # type: ignore[attr-defined]
        checked["task"] = {**checked["task"], "data": {"use": "given", "items": len(frame)}}
        with tempfile.TemporaryDirectory(prefix="limbeck-") as folder, own_generators():
            self.result_, made = run_recipe(recipe, checked, Path(folder) / "run", True, not self.verbose, open=True)
        task: Any = recipe.task
        self._artifact: Any = made
        self.columns_, self.groups_, self.classes_ = list(task.order), list(task.groups), list(task.labels)
        self.n_features_in_ = X.shape[1]
        self.feature_names_in_ = X.columns.to_numpy(dtype=object)
        return self

    def sample(self, n_samples: int = 1, random_state: int = 0) -> Any:
        """A DataFrame of so many rows; another ``random_state`` draws others.

        Raises:
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "result_")
        if n_samples < 1:
            raise ConfigError("n_samples", given=n_samples, expected="1 or more")
        return self._artifact.sample(n_samples, random_state)


__all__ = ["FairSynthesizer"]
