"""A teacher's classifier, borrowed for a composed student."""

from __future__ import annotations

import torch
from torch import nn

from limbeck.errors import ConfigError
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.signal import module_at
from limbeck.models.linear import LinearModel


def copied_head(built: Built, path: str, classes: int, setting: str) -> nn.Module:
    """A network's linear classifier copied into a `LinearModel`, its outputs in the task's order.

    Args:
        built: whose classifier; its contract says which of its outputs is which of the task's classes.
        path: the module's name.
        classes: of the task.
        setting: the setting that names it, for messages.

    Raises:
        ConfigError: it does not answer with the task's classes.
    """
    layer = module_at(built.module, path)
    assert isinstance(layer, nn.Linear)
    order = built.contract.classes
    rows = torch.tensor(order) if order is not None else torch.arange(layer.out_features)
    if len(rows) != classes:
        raise ConfigError(
            setting,
            f"{path} does not answer with the task's classes",
            given=f"{len(rows)} outputs",
            expected=f"{classes}",
        )
    made = LinearModel().make(Needs((layer.in_features,), len(rows)))
    own = made.get_submodule("head")
    rows = rows.to(layer.weight.device)
    with torch.no_grad():
        own.weight.copy_(layer.weight[rows])  # type: ignore[operator]
        own.bias.copy_(layer.bias[rows] if layer.bias is not None else torch.zeros(len(rows)))  # type: ignore[operator]
    return made


__all__ = ["copied_head"]
