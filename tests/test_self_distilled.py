"""Self-distilled kernel ridge regression as scikit-learn's estimators."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.utils.estimator_checks import check_estimator

from limbeck import SelfDistilledClassifier, SelfDistilledRegressor
from limbeck.errors import ConfigError, DataError


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator", [SelfDistilledRegressor(), SelfDistilledClassifier()], ids=lambda e: type(e).__name__
)
def test_scikit_learn_s_own_checks(estimator: object) -> None:
    check_estimator(estimator)


def test_the_first_step_and_the_limit_are_plain_ridge_regressions() -> None:
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:150] * 20, (y[:150] - y.mean()) / y.std()
    model = SelfDistilledRegressor(gamma=0.05, ridge=0.5, weight=0.25, steps=200).fit(X[:100], y[:100])
    plain = KernelRidge(kernel="rbf", gamma=0.05, alpha=0.5).fit(X[:100], y[:100])
    np.testing.assert_allclose(model.predict(X, step=1), plain.predict(X), rtol=1e-8, atol=1e-8)
    amplified = KernelRidge(kernel="rbf", gamma=0.05, alpha=0.5 / 0.25).fit(X[:100], y[:100])
    np.testing.assert_allclose(model.predict(X), amplified.predict(X), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(model.set_params(limit=True).predict(X), amplified.predict(X), rtol=1e-8, atol=1e-8)


def test_noisy_digits_gain_from_steps_with_chosen_weights() -> None:
    X, y = load_digits(return_X_y=True)
    draw = np.random.default_rng(0)
    train = draw.permutation(len(X))[:300]
    wrong = y[train].copy()
    flipped = draw.random(300) < 0.3
    wrong[flipped] = draw.integers(0, 10, flipped.sum())
    rest = np.setdiff1d(np.arange(len(X)), train)
    model = SelfDistilledClassifier(gamma=0.05 / 16**2 * 16, ridge=0.05, steps=3).fit(X[train], wrong)
    scores = [float((model.predict(X[rest], step=t) == y[rest]).mean()) for t in (1, 2, 3)]
    assert len(model.weights_) == 3 and ((model.weights_ >= 0) & (model.weights_ <= 1)).all()
    assert scores[-1] >= scores[0]


def test_bad_settings_are_rejected() -> None:
    X, y = np.zeros((4, 1)), np.arange(4.0)
    for settings, name in (
        ({"ridge": 0}, "ridge"),
        ({"weight": 2.0}, "weight"),
        ({"weight": "best"}, "weight"),
        ({"weight": [0.5]}, "weight"),
        ({"steps": 0, "weight": 0.5}, "steps"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
    ):
        with pytest.raises(ConfigError, match=name):
            SelfDistilledRegressor(**settings).fit(X, y)
    with pytest.raises(DataError, match="one class"):
        SelfDistilledClassifier().fit(X, np.zeros(4, int))
    with pytest.raises(ConfigError, match="step"):
        SelfDistilledRegressor(weight=0.5).fit(X, y).predict(X, step=9)
    with pytest.raises(DataError, match="GB"):
        SelfDistilledRegressor().fit(np.zeros((20_001, 1)), np.zeros(20_001))
