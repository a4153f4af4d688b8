"""Kernel ridge regression that distils itself, as estimators of scikit-learn (Borup and Andersen 2021, arXiv 2102.13088)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.validation import check_is_fitted, validate_data

from limbeck.errors import ConfigError, DataError
from limbeck.functional.kernel_ridge import self_distilled_ridge

MOST = 20_000
"""Training items: their kernel takes 3.2 GB, and its eigenvectors as much again."""


class _OneClass(DataError, ValueError):
    """Too few classes: scikit-learn expects a ValueError."""


class _SelfDistilled(BaseEstimator):  # type: ignore[misc]
    def __init__(
        self,
        kernel: str = "rbf",
        *,
        gamma: float | None = None,
        ridge: float = 1.0,
        weight: float | Sequence[float] | Literal["auto"] = "auto",
        steps: int = 3,
        limit: bool = False,
        validation_fraction: float = 0.2,
        random_state: int | None = 0,
    ) -> None:
        self.kernel, self.gamma, self.ridge, self.weight, self.steps = kernel, gamma, ridge, weight, steps
        self.limit, self.validation_fraction, self.random_state = limit, validation_fraction, random_state

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pairwise_kernels(a, b, metric=self.kernel, filter_params=True, gamma=self.gamma))

    def _learn(self, X: np.ndarray, Y: np.ndarray, strata: np.ndarray | None = None) -> None:
        """Coefficients of every step for targets ``Y`` [n, k]."""
        if len(X) > MOST:
            raise DataError(
                "X",
                f"{len(X)} items need {len(X) ** 2 * 16 / 2**30:.0f} GB for their kernel and its eigenvectors",
                expected=f"{MOST} or fewer",
            )
        weight: Any = self.weight
        if isinstance(weight, str):
            if weight != "auto":
                raise ConfigError("weight", given=weight, expected="a number in [0, 1], one per step, or auto")
            weight = self._chosen(X, Y, strata)
        found = self_distilled_ridge(
            self._kernel(X, X), torch.from_numpy(Y), ridge=self.ridge, weight=weight, steps=self.steps
        )
        self.X_fit_ = X
        self.coefficients_ = found.coefficients.numpy()
        self.limit_ = found.limit.numpy()
        self.weights_ = found.weights.numpy()
        self.diagonals_ = found.diagonals.numpy()

    def _chosen(self, X: np.ndarray, Y: np.ndarray, strata: np.ndarray | None) -> list[float]:
        """The weight of each step that fits held-out items best; 1 where there are too few items to hold any out."""
        held = int(np.ceil(len(X) * self.validation_fraction))
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(
                "validation_fraction", given=self.validation_fraction, expected="a share above 0 and below 1"
            )
        if self.steps == 1 or len(X) - held < 2:
            return [1.0] * self.steps
        split = {"test_size": held, "random_state": self.random_state}
        try:
            x, other, y, truth = train_test_split(X, Y, **split, stratify=strata)
        except ValueError:  # a class of one item, or more classes than held-out items
            x, other, y, truth = train_test_split(X, Y, **split)
        found = self_distilled_ridge(
            self._kernel(x, x),
            torch.from_numpy(y),
            ridge=self.ridge,
            weight=None,
            steps=self.steps,
            held_out=(self._kernel(other, x), torch.from_numpy(truth)),
        )
        return found.weights.tolist()

    def _values(self, X: Any, step: int | None) -> np.ndarray:
        """Predictions [m, k] of a step, counted from 1; of the last, or the limit, where none is named."""
        check_is_fitted(self, "coefficients_")
        X = validate_data(self, X, reset=False, dtype=np.float64)
        if step is None:
            coefficients = self.limit_ if self.limit else self.coefficients_[-1]
        elif 1 <= step <= len(self.coefficients_):
            coefficients = self.coefficients_[step - 1]
        else:
            raise ConfigError("step", given=step, expected=f"1 to {len(self.coefficients_)}")
        values: np.ndarray = self._kernel(X, self.X_fit_).numpy() @ coefficients
        return values


class SelfDistilledRegressor(RegressorMixin, _SelfDistilled):  # type: ignore[misc]
    """Kernel ridge regression whose next steps learn from a mix of the targets and of its own previous fit.

    All steps, and the limit after infinitely many, cost one eigendecomposition. With a constant weight the limit is the
    plain ridge regression with the penalty ``ridge / weight``, so repeated self-distillation amplifies the regularisation,
    and the true targets dampen it.

    Args:
        kernel: a name of ``sklearn.metrics.pairwise`` (``rbf``, ``linear``, ``polynomial``, ``laplacian``...).
        gamma: of the kernel; None is scikit-learn's own, 1 / number of columns.
        ridge: the penalty, above 0.
        weight: of the true targets in steps 2 and later, in [0, 1]: one number, one per step, or ``auto``, which takes the
            best one for held-out items at each step and then learns from all items.
        steps: 1 is plain kernel ridge regression.
        limit: predict as after infinitely many steps with the last weight.
        validation_fraction: share of the items that ``auto`` holds out.
        random_state: which items these are.

    Attributes:
        coefficients_: of every step ``[steps, n, k]``. ``limit_``: after infinitely many ``[n, k]``.
        weights_: of the true targets at every step. ``diagonals_``: what remains of each eigenvector ``[steps, n]``.
        X_fit_: the training inputs.

    Example:
        >>> X = np.linspace(0, 1, 20)[:, None]
        >>> model = SelfDistilledRegressor(ridge=0.1, weight=0.5, steps=4).fit(X, np.sin(6 * X[:, 0]))
        >>> model.predict(X[:2]).shape, model.predict(X, step=1).shape
        ((2,), (20,))
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags

    def fit(self, X: Any, y: Any) -> SelfDistilledRegressor:
        """Learn all steps. ``y`` is ``[n]`` or ``[n, k]``."""
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        self._flat = y.ndim == 1
        self._learn(X, np.asarray(y, np.float64).reshape(len(y), -1))
        return self

    def predict(self, X: Any, step: int | None = None) -> np.ndarray:
        """Values ``[m]`` or ``[m, k]``, as ``y`` was.

        Args:
            X: ``[m, columns]``.
            step: of which step, 1 to ``steps``; None is the last, or the limit.
        """
        values = self._values(X, step)
        return values[:, 0] if self._flat else values


class SelfDistilledClassifier(ClassifierMixin, _SelfDistilled):  # type: ignore[misc]
    """`SelfDistilledRegressor` on one-hot targets; the class with the largest value is the answer.

    Arguments and attributes are the regressor's.

    Attributes:
        classes_: the classes.

    Example:
        >>> X, y = np.array([[0.0], [0.1], [0.9], [1.0]]), np.array(["a", "a", "b", "b"])
        >>> SelfDistilledClassifier(ridge=0.1, weight=0.5).fit(X, y).predict([[0.05]])
        array(['a'], dtype='<U1')
    """

    def fit(self, X: Any, y: Any) -> SelfDistilledClassifier:
        """Learn all steps."""
        from sklearn.utils.multiclass import check_classification_targets

        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        binarizer = LabelBinarizer().fit(y)
        self.classes_ = binarizer.classes_
        if len(self.classes_) < 2:
            raise _OneClass(
                "y", "there is one class only", given=self.classes_.tolist(), expected="two classes or more"
            )
        Y = binarizer.transform(y).astype(np.float64)
        self._learn(X, np.hstack([1 - Y, Y]) if Y.shape[1] == 1 else Y, y)
        return self

    def decision_function(self, X: Any, step: int | None = None) -> np.ndarray:
        """Values of the classes ``[m, k]``; of two classes, how far the second is above the first ``[m]``."""
        values = self._values(X, step)
        return values[:, 1] - values[:, 0] if values.shape[1] == 2 else values

    def predict(self, X: Any, step: int | None = None) -> np.ndarray:
        """Classes ``[m]`` of a step, 1 to ``steps``; of the last, or the limit, where none is named."""
        values = self._values(X, step)
        found: np.ndarray = self.classes_[values.argmax(1)]
        return found


__all__ = ["SelfDistilledClassifier", "SelfDistilledRegressor"]
