"""The estimator: scikit-learn's conventions, a DataFrame in and a DataFrame out."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck import FairSynthesizer
from limbeck.errors import ConfigError, DataError

pd = pytest.importorskip("pandas")


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    made = pd.DataFrame({"age": rng.integers(18, 80, 90), "job": rng.choice(["cook", "smith"], 90)})
    made["sex"] = rng.choice(["f", "m"], 90)
    return made


def test_conventions_fit_and_sample() -> None:
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError

    X = frame()
    y = pd.Series(np.where(X.age > 50, "high", "low"), name="income")
    asked = FairSynthesizer("sex", steps=3, batch_size=16, hidden=4, student_hidden=2, latent=2, positive="high")
    twin = clone(asked)
    assert twin.get_params() == asked.get_params() and twin.set_params(beta=3e6).beta == 3e6
    with pytest.raises(NotFittedError):
        asked.sample(3)
    before = X.copy()
    assert asked.fit(X, y) is asked
    pd.testing.assert_frame_equal(X, before)
    drawn = asked.sample(7, random_state=1)
    assert list(drawn.columns) == ["age", "job", "sex", "income"] == asked.columns_ and len(drawn) == 7
    assert drawn.age.between(18, 79).all() and drawn.age.dtype.kind == "i" and set(drawn.job) <= {"cook", "smith"}
    pd.testing.assert_frame_equal(drawn, asked.sample(7, random_state=1))
    assert not drawn.equals(asked.sample(7, random_state=2))
    assert asked.groups_ == ["f", "m"] and asked.classes_ == ["high", "low"] and asked.n_features_in_ == 3
    assert set(asked.result_["metrics"]["rows"]) == {"student", "teacher", "real"}


def test_what_cannot_be_learnt_from_is_refused() -> None:
    X = frame()
    with pytest.raises(DataError, match="DataFrame"):
        FairSynthesizer().fit(X.to_numpy())
    with pytest.raises(ConfigError, match="target"):
        FairSynthesizer().fit(X)
    with pytest.raises(DataError, match="classes for"):
        FairSynthesizer().fit(X, [0, 1])
    with pytest.raises(DataError, match="gender"):
        FairSynthesizer("gender", "job").fit(X)
    with pytest.raises(DataError, match="one value only"):
        FairSynthesizer("sex", "job").fit(X.assign(sex="f"))
