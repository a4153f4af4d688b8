"""One linear layer as a model: projectors and heads of composed students, and softmax regression."""

from __future__ import annotations

import math

from torch import nn

from limbeck.grammar.needs import Needs
from limbeck.grammar.settings import settings
from limbeck.models.classifier import Normalised

NAMES = {"model": {"linear": "LinearModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class LinearModel(Normalised):
    """A linear layer over the flattened input.

    Args:
        norm: a batch normalisation after it.
    """

    forms = ("classes", "vector")
    takes = ("pictures", "rows", "table")

    norm: bool = False

    def make(self, needs: Needs) -> nn.Module:
        """``flatten``, ``head``, and ``norm`` where there is one: a plain ``nn.Sequential``."""
        layers: dict[str, nn.Module] = {
            "flatten": nn.Flatten(),
            "head": nn.Linear(math.prod(needs.inputs), needs.outputs),
        }
        if self.norm:
            layers["norm"] = nn.BatchNorm1d(needs.outputs)
        made = nn.Sequential()
        for name, layer in layers.items():
            made.add_module(name, layer)
        return made


__all__ = ["LinearModel"]
