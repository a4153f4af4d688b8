"""limbeck distils anything in PyTorch: a network, a language model, a sampler, a data set."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from limbeck import functional
    from limbeck.api import distill
    from limbeck.engine.engine import Engine
    from limbeck.engine.inner import fit
    from limbeck.engine.settings import EngineSettings
    from limbeck.errors import LimbeckError
    from limbeck.estimators import FairSynthesizer
    from limbeck.grammar.artifact import Artifact
    from limbeck.grammar.card import Card, catalogue
    from limbeck.grammar.method import Method, Objective, Query, Stage, Term, Terms
    from limbeck.grammar.optim import Optim
    from limbeck.grammar.role import Contract, Role
    from limbeck.grammar.signal import Signal, Tap
    from limbeck.grammar.task import Model, Task
    from limbeck.objectives.criterion import Criterion
    from limbeck.predict import Loaded, load
    from limbeck.recipe.recipe import Recipe
    from limbeck.recipe.trust import trusting
    from limbeck.self_distilled import SelfDistilledClassifier, SelfDistilledRegressor

# name -> where it lives; nothing is imported until it is asked for, so that the catalogue starts without torch
_WHERE = {
    "Artifact": "limbeck.grammar.artifact",
    "Card": "limbeck.grammar.card",
    "Contract": "limbeck.grammar.role",
    "Criterion": "limbeck.objectives.criterion",
    "Engine": "limbeck.engine.engine",
    "EngineSettings": "limbeck.engine.settings",
    "FairSynthesizer": "limbeck.estimators",
    "LimbeckError": "limbeck.errors",
    "Loaded": "limbeck.predict",
    "Method": "limbeck.grammar.method",
    "Model": "limbeck.grammar.task",
    "Objective": "limbeck.grammar.method",
    "Optim": "limbeck.grammar.optim",
    "Query": "limbeck.grammar.method",
    "Recipe": "limbeck.recipe.recipe",
    "Role": "limbeck.grammar.role",
    "SelfDistilledClassifier": "limbeck.self_distilled",
    "SelfDistilledRegressor": "limbeck.self_distilled",
    "Signal": "limbeck.grammar.signal",
    "Stage": "limbeck.grammar.method",
    "Tap": "limbeck.grammar.signal",
    "Task": "limbeck.grammar.task",
    "Term": "limbeck.grammar.method",
    "Terms": "limbeck.grammar.method",
    "catalogue": "limbeck.grammar.card",
    "distill": "limbeck.api",
    "fit": "limbeck.engine.inner",
    "functional": "limbeck.functional",
    "load": "limbeck.predict",
    "trusting": "limbeck.recipe.trust",
}

__all__ = [
    "Artifact",
    "Card",
    "Contract",
    "Criterion",
    "Engine",
    "EngineSettings",
    "FairSynthesizer",
    "LimbeckError",
    "Loaded",
    "Method",
    "Model",
    "Objective",
    "Optim",
    "Query",
    "Recipe",
    "Role",
    "SelfDistilledClassifier",
    "SelfDistilledRegressor",
    "Signal",
    "Stage",
    "Tap",
    "Task",
    "Term",
    "Terms",
    "__version__",
    "catalogue",
    "distill",
    "fit",
    "functional",
    "load",
    "trusting",
]


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    module = importlib.import_module(where)
    value = module if where == f"limbeck.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
