"""A chain of models as one: what a run delivers whose student is composed of several networks."""

from __future__ import annotations

from typing import Annotated, Any

from torch import nn

from limbeck.grammar.component import Settings
from limbeck.grammar.needs import FORMS, Form, Needs
from limbeck.grammar.settings import NonEmpty, settings
from limbeck.grammar.signal import module_at
from limbeck.grammar.task import Model
from limbeck.models.classifier import Normalised
from limbeck.networks.chain import Chain, Until

NAMES = {"model": {"chain": "ChainOf"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class LinkSettings(Settings):
    """One model of a chain.

    Args:
        model: how it is made.
        until: run it up to this module; empty runs all of it.
        part: take this module of it alone; empty takes all of it.
        inputs: the shape of an item that it is made for; left out, the task's.
        outputs: the number of its own outputs; left out, the task's.
        form: the form that it is made for; left out, the task's.
    """

    model: Model
    until: str = ""
    part: str = ""
    inputs: list[int] | None = None
    outputs: int | None = None
    form: Form | None = None

    def validate(self) -> None:
        """One cut."""
        if self.until and self.part:
            raise ValueError("until and part exclude each other")

    def take(self, net: nn.Module) -> nn.Module:
        """What the chain runs of its network."""
        if self.until:
            return Until(net, self.until)
        return module_at(net, self.part) if self.part else net


@settings
class ChainOf(Normalised):
    """Models run one after the other, each fed what the one before returned.

    Args:
        links: name -> model, in order.
    """

    forms = FORMS

    links: Annotated[dict[str, LinkSettings], NonEmpty]

    def make(self, needs: Needs) -> nn.Module:
        """Each network made for its own inputs and outputs, joined."""
        made: dict[str, nn.Module] = {}
        for name, link in self.links.items():
            model: Any = link.model
            own = tuple(link.inputs) if link.inputs is not None else needs.inputs
            outputs = link.outputs if link.outputs is not None else needs.outputs
            own_needs = needs.with_(inputs=own, outputs=outputs, form=link.form or needs.form)
            made[name] = link.take(model.make(own_needs))
        return Chain(made)
