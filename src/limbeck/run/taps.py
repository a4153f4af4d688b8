"""What a tap may name: the modules of a recipe's networks, with the shapes that they show."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.bench import build_model
from limbeck.grammar.method import Built
from limbeck.grammar.signal import evaluating
from limbeck.grammar.task import Task
from limbeck.recipe.recipe import Recipe
from limbeck.run.preparing import participants


@dataclass(frozen=True)
class Place:
    """One module of a network.

    Attributes:
        name: as ``named_modules()`` and a tap have it.
        module: its class.
        shape: of what it returns for two items; empty where it did not run or returns no tensor.
        calls: how often it runs in a pass.
        parameters: in it and below it.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    calls: int
    parameters: int


def networks(recipe: Recipe, roles: Collection[str] = ()) -> dict[str, tuple[Task, Built]]:
    """The networks of a recipe, built and not trained, each with its part of the task.

    Args:
        recipe: the recipe.
        roles: which; all of those that take part by default.
    """
    task = recipe.task
    task.load(recipe.seed)
    models = {**participants(recipe), "student": recipe.student}
    found: dict[str, tuple[Task, Built]] = {}
    for name, model in sorted(models.items(), key=lambda m: m[1] is None or not m[1].brings_tokenizer):
        if model is None or (roles and name not in roles):
            continue
        who = recipe.method.participants.get(name)
        part = task.part(who.task) if who is not None and who.task else task
        found[name] = (part, build_model(model, part, recipe.seed, name))
    return found


def places(task: Task, built: Built) -> list[Place]:
    """The modules of a network in their order, with the shapes that they show for two items of the data."""
    module = built.module
    if not isinstance(module, nn.Module):
        return []
    shapes: dict[str, tuple[int, ...]] = {}
    calls: dict[str, int] = {}

    def hook(name: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, out: Any) -> None:
            first = out[0] if isinstance(out, (tuple, list)) and out else out
            calls[name] = calls.get(name, 0) + 1
            if isinstance(first, Tensor):
                shapes[name] = tuple(first.shape)

        return record

    handles = [m.register_forward_hook(hook(name)) for name, m in module.named_modules() if name]
    try:
        with evaluating([module]), torch.no_grad():
            task.feed(module, built.contract.feed(task.example(2)))
    finally:
        for handle in handles:
            handle.remove()
    return [
        Place(name, type(m).__name__, shapes.get(name, ()), calls.get(name, 0), sum(p.numel() for p in m.parameters()))
        for name, m in module.named_modules()
        if name
    ]


__all__ = ["Place", "networks", "places"]
