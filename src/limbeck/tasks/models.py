"""Ways to get a classifier: small networks of our own, libraries' models, the user's function, an earlier run."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from limbeck.core.method import Built
from limbeck.core.role import Contract
from limbeck.core.task import Model, Task
from limbeck.tasks.classification import Classification

Activation = Literal["relu", "gelu", "tanh", "silu"]


class Network(Model):
    """Base of the models of this file. A subclass makes the module from the input's shape and the number of outputs.

    Attributes:
        checkpoint: weights to load, strictly.
    """

    checkpoint: str | None = None
    normalise = True

    def make(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The module for inputs [N, *shape] and ``outputs`` values an item."""
        raise TypeError(f"{type(self).__name__} must define make")

    def contract(self, module: nn.Module, task: Classification) -> Contract:
        """What the module expects: by default the data's own channels, normalised by its statistics."""
        if not self.normalise:
            return Contract()
        mean, std = task.statistics()
        return Contract(mean=mean, std=std, channels=task.shape[0] if len(task.shape) == 3 else None)

    def build(self, task: Task) -> Built:
        """The network for a task."""
        assert isinstance(task, Classification)
        task.load()
        module = self.make(task.shape, task.outputs)
        return Built(module, self.contract(module, task), task.labels, self)


class Mlp(Network):
    """A multi-layer perceptron over the flattened input.

    Args:
        hidden: sizes of the hidden layers.
        activation: ``relu``, ``gelu``, ``tanh`` or ``silu``.
        dropout: share of hidden values dropped while training.
        normalise: normalise inputs by the training data's mean and deviation.
        checkpoint: weights to load, strictly.
    """

    def __init__(
        self,
        hidden: list[int] = [64],  # noqa: B006 (copied, never changed)
        activation: Activation = "relu",
        dropout: float = 0.0,
        normalise: bool = True,
        checkpoint: str | None = None,
    ) -> None:
        if any(h < 1 for h in hidden):
            raise ValueError("hidden layers need at least one unit each")
        if not 0 <= dropout < 1:
            raise ValueError("dropout must lie in [0, 1)")
        self.hidden, self.activation, self.dropout = list(hidden), activation, dropout
        self.normalise, self.checkpoint = normalise, checkpoint

    def make(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """``flatten``, then ``fc1``, ``act1``, ``drop1``, ..., ``head``."""
        width = 1
        for side in shape:
            width *= side
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        act = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}[self.activation]
        for i, size in enumerate(self.hidden, 1):
            layers[f"fc{i}"] = nn.Linear(width, size)
            layers[f"act{i}"] = act()
            if self.dropout:
                layers[f"drop{i}"] = nn.Dropout(self.dropout)
            width = size
        layers["head"] = nn.Linear(width, outputs)
        return nn.Sequential(layers)
