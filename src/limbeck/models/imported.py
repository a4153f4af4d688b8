"""The user's own network, by the function that makes it."""

from __future__ import annotations

import inspect
from dataclasses import KW_ONLY
from typing import Any, ClassVar

from torch import nn

from limbeck.errors import ConfigError, LimbeckError
from limbeck.grammar.method import Built
from limbeck.grammar.needs import FORMS, Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.task import Task
from limbeck.models.adapting import adapt, check_channels
from limbeck.models.classifier import Normalised
from limbeck.recipe.imports import imported

NAMES = {"model": {"import": "ImportedModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class ImportedModel(Normalised):
    """The user's own network: a function that returns a ``torch.nn.Module``. Naming it runs its code.

    The function gets ``options``, and the number of outputs and the input's shape where its signature has parameters
    called ``num_classes`` (``classes``, ``outputs``) and ``shape`` (``input_shape``).

    Args:
        function: ``package.module:function``, or a class.
        options: arguments of the function.
        ready: the function returns trained weights, so that a teacher is not trained again.
        size: side length inputs are resized to; ``null`` keeps the data's.
        channels: channels the network takes; ``null`` keeps the data's.
        normalise: normalise by the training data's statistics where no mean and std are given.
    """

    code: ClassVar[str] = "function"
    forms = FORMS

    function: str
    options: dict[str, Any] | None = None
    ready: bool = False
    _: KW_ONLY
    size: Count | None = None
    channels: Count | None = None
    normalise: bool = True

    @property
    def trained(self) -> bool:
        """Whether the function, or the checkpoint, brings trained weights."""
        return self.ready or self.checkpoint is not None

    def make(self, needs: Needs) -> nn.Module:
        """What the function returns."""
        function = imported(self.function, "function")
        arguments = dict(self.options or {})
        try:
            accepted = set(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            accepted = set()
        given = (("num_classes", "classes", "outputs"), needs.outputs), (("shape", "input_shape"), needs.inputs)
        for names, value in given:
            for name in names:
                if name in accepted:
                    arguments.setdefault(name, value)
                    break
        try:
            module = function(**arguments)
        except LimbeckError:
            raise
        except Exception as error:
            raise ConfigError("function", f"{self.function} failed: {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise ConfigError("function", given=type(module).__name__, expected="a torch.nn.Module")
        return module

    def build(self, task: Task) -> Built:
        """The network; its own number of outputs is matched to the task's classes by name."""
        names = self._given()
        if self.checkpoint is None and names is not None:
            task.load()
            needs = task.needs
            module = self.make(needs)
            contract = self._normalised(self.contract(module, task), {}, needs)
            check_channels(contract, needs)
            self._unresized(contract, needs)
            built = Built(module, contract.with_(key=needs.key), names, self)
            adapt(built, needs, len(names), {}, self.function)
            self.rehearse(built, task)
            return built
        return super().build(task)

    def contract(self, module: nn.Module, task: Task) -> Contract:
        """The data's statistics, and the channels and size that were asked for."""
        contract = super().contract(module, task) if self.normalise else Contract()
        size = (self.size, self.size) if self.size else None
        if self.channels and contract.mean and len(contract.mean) != self.channels:
            mean, std = sum(contract.mean) / len(contract.mean), sum(contract.std) / len(contract.std)
            contract = contract.with_(mean=(mean,) * self.channels, std=(std,) * self.channels)
        return contract.with_(size=size, channels=self.channels or contract.channels)
