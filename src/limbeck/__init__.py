"""limbeck distils anything in PyTorch: a network, a language model, a sampler, a data set."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from limbeck import functional
    from limbeck.api import distill
    from limbeck.core.artifact import Artifact
    from limbeck.core.card import Card, catalogue
    from limbeck.core.engine import Engine, EngineSettings
    from limbeck.core.errors import LimbeckError
    from limbeck.core.inner import fit
    from limbeck.core.method import Method, Objective, Query, Stage, Term, Terms
    from limbeck.core.optim import Optim
    from limbeck.core.recipe import Recipe
    from limbeck.core.role import Contract, Role
    from limbeck.core.signal import Signal, Tap
    from limbeck.core.task import Model, Task
    from limbeck.objectives.criterion import Criterion

# name -> where it lives; nothing is imported until it is asked for, so that the catalogue starts without torch
_WHERE = {
    "Artifact": "limbeck.core.artifact",
    "Card": "limbeck.core.card",
    "Contract": "limbeck.core.role",
    "Criterion": "limbeck.objectives.criterion",
    "Engine": "limbeck.core.engine",
    "EngineSettings": "limbeck.core.engine",
    "LimbeckError": "limbeck.core.errors",
    "Method": "limbeck.core.method",
    "Model": "limbeck.core.task",
    "Objective": "limbeck.core.method",
    "Optim": "limbeck.core.optim",
    "Query": "limbeck.core.method",
    "Recipe": "limbeck.core.recipe",
    "Role": "limbeck.core.role",
    "Signal": "limbeck.core.signal",
    "Stage": "limbeck.core.method",
    "Tap": "limbeck.core.signal",
    "Task": "limbeck.core.task",
    "Term": "limbeck.core.method",
    "Terms": "limbeck.core.method",
    "catalogue": "limbeck.core.card",
    "distill": "limbeck.api",
    "fit": "limbeck.core.inner",
    "functional": "limbeck.functional",
}

__all__ = [
    "Artifact",
    "Card",
    "Contract",
    "Criterion",
    "Engine",
    "EngineSettings",
    "LimbeckError",
    "Method",
    "Model",
    "Objective",
    "Optim",
    "Query",
    "Recipe",
    "Role",
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
