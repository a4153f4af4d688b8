"""scikit-learn's estimators by name: teachers of tables, and judges of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

EstimatorName = Literal["gradient-boosting", "forest", "tree", "logistic", "svm", "knn", "mlp", "xgboost"]

ESTIMATORS: tuple[str, ...] = ("gradient-boosting", "forest", "tree", "logistic", "svm", "knn", "mlp", "xgboost")


def estimator(name: str, seed: int = 0, number: bool = False, categories: Sequence[int] = (), **options: Any) -> Any:
    """An estimator that is not fitted yet.

    Args:
        name: one of ``ESTIMATORS``; ``xgboost`` needs that library.
        seed: of its own randomness.
        number: a regressor, not a classifier.
        categories: columns that hold codes of categories: trees split them as such, others see them one-hot.
        **options: arguments of the estimator.

    Raises:
        MissingExtra: xgboost is not installed.
        ConfigError: an option that the estimator does not take.
    """
    from sklearn import ensemble, linear_model, neighbors, neural_network, svm, tree
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from limbeck.errors import ConfigError, require

    own = {"random_state": seed} if name not in ("knn",) and not (name == "svm" and number) else {}
    classes: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "gradient-boosting": (
            ensemble.HistGradientBoostingClassifier,
            ensemble.HistGradientBoostingRegressor,
            {"categorical_features": list(categories) or None},
        ),
        "forest": (ensemble.RandomForestClassifier, ensemble.RandomForestRegressor, {"min_samples_leaf": 2}),
        "tree": (tree.DecisionTreeClassifier, tree.DecisionTreeRegressor, {"min_samples_leaf": 5}),
        "logistic": (linear_model.LogisticRegression, linear_model.Ridge, {} if number else {"max_iter": 1000}),
        "svm": (svm.SVC, svm.SVR, {} if number else {"probability": True}),
        "knn": (neighbors.KNeighborsClassifier, neighbors.KNeighborsRegressor, {"n_neighbors": 15}),
        "mlp": (neural_network.MLPClassifier, neural_network.MLPRegressor, {"hidden_layer_sizes": (64,)}),
    }
    if name == "xgboost":
        library = require("xgboost", "tabular", "estimators of XGBoost")
        cls, fixed = (library.XGBRegressor if number else library.XGBClassifier), {"n_jobs": 1}
    else:
        classifier, regressor, fixed = classes[name]
        cls = regressor if number else classifier
    try:
        made = cls(**{**fixed, **own, **options})
    except TypeError as error:
        raise ConfigError("options", f"{cls.__name__} does not take them: {error}", given=options) from None
    if name in ("gradient-boosting", "tree", "forest", "xgboost"):
        return made
    hot = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), list(categories)), remainder=StandardScaler(), sparse_threshold=0
    )
    return make_pipeline(hot if categories else StandardScaler(), made)


__all__ = ["ESTIMATORS", "EstimatorName", "estimator"]
