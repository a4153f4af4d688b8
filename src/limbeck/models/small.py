"""Small networks of our own: a perceptron, the ConvNet of data set distillation, the ResNets and wide ResNets of CIFAR."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Annotated, Literal

from annotated_types import Interval
from torch import nn

from limbeck.grammar.needs import Needs
from limbeck.grammar.settings import Count, Share, settings
from limbeck.grammar.task import DEEPEST, Depth
from limbeck.models.classifier import Normalised

NAMES = {
    "model": {
        "mlp": "MlpModel",
        "convnet": "ConvNetModel",
        "cifar-resnet": "CifarResNetModel",
        "wide-resnet": "WideResNetModel",
    }
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Activation = Literal["relu", "gelu", "tanh", "silu"]


@settings
class MlpModel(Normalised):
    """A multi-layer perceptron over the flattened input.

    Args:
        hidden: sizes of the hidden layers.
        activation: ``relu``, ``gelu``, ``tanh`` or ``silu``.
        dropout: share of hidden values dropped while training.
    """

    forms = ("classes", "vector", "keypoints")
    takes = ("pictures", "rows", "table")

    hidden: list[Count] = [64]  # noqa: RUF012 (copied, never changed)
    activation: Activation = "relu"
    dropout: Share = 0.0

    def make(self, needs: Needs) -> nn.Module:
        """``flatten``, then ``fc1``, ``act1``, ``drop1``, ..., ``head``: a plain ``nn.Sequential``."""
        width = math.prod(needs.inputs)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        act = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}[self.activation]
        for i, size in enumerate(self.hidden, 1):
            layers[f"fc{i}"] = nn.Linear(width, size)
            layers[f"act{i}"] = act()
            if self.dropout:
                layers[f"drop{i}"] = nn.Dropout(self.dropout)
            width = size
        layers["head"] = nn.Linear(width, needs.outputs)
        return nn.Sequential(layers)


@settings
class ConvNetModel(Normalised):
    """The ConvNet of data set distillation: blocks of 3x3 convolution, normalisation, activation, pooling.

    Args:
        width: channels of every convolution.
        depth: number of blocks; by default as many as bring the image down to about 4 pixels.
        norm: ``instance``, ``group``, ``layer``, ``batch`` or ``none``.
        activation: ``relu``, ``leakyrelu``, ``sigmoid`` or ``swish``.
        pooling: ``avg``, ``max`` or ``none``.
    """

    forms = ("classes", "vector", "keypoints")
    takes = ("pictures",)

    width: Count = 128
    depth: Depth | None = None
    norm: Literal["instance", "group", "layer", "batch", "none"] = "instance"
    activation: Literal["relu", "leakyrelu", "sigmoid", "swish"] = "relu"
    pooling: Literal["avg", "max", "none"] = "avg"

    def make(self, needs: Needs) -> nn.Module:
        """A ``limbeck.networks.convnet.ConvNet`` for images of this size."""
        from limbeck.networks.convnet import ConvNet

        shape = needs.inputs
        depth = self.depth or max(1, round(math.log2(min(shape[1:]))) - 2)
        return ConvNet(
            channels=shape[0],
            classes=needs.outputs,
            width=self.width,
            depth=depth,
            activation=self.activation,
            norm=self.norm,
            pooling=self.pooling,
            im_size=(shape[1], shape[2]),
        )


@settings
class CifarResNetModel(Normalised):
    """The ResNet of CIFAR (He et al., 2016): ResNet-20, 32, 44, 56, 110; RepDistiller's ResNet-8x4 and 32x4 by its options.

    Args:
        depth: 6n + 2.
        width: channels of the first stage.
        blocks: of each of the three stages, as ``[1, 3, 5]``, in place of ``depth``, which has n in each.
        stem: channels of the first convolution; ``null``: as many as the first stage (RepDistiller's x4 has 32 before 64).
        shortcut: where the size changes, ``pad`` has no parameters, ``conv`` is a 1x1 convolution with batch normalisation.
    """

    forms = ("classes", "vector", "keypoints")
    takes = ("pictures",)
    neutral = ("stem", "shortcut")

    depth: Annotated[int, Interval(ge=8, le=DEEPEST)] = 20
    width: Count = 16
    blocks: list[Count] | None = None
    stem: Count | None = None
    shortcut: Literal["pad", "conv"] = "pad"

    def validate(self) -> None:
        """Three stages of n blocks of two layers."""
        super().validate()
        if self.stem is not None and self.shortcut == "pad" and self.stem > self.width:
            raise ValueError(f"stem must be at most width, {self.width}: padding does not take channels away")
        if self.blocks is not None and (len(self.blocks) != 3 or sum(self.blocks) * 2 + 2 > DEEPEST):
            raise ValueError(f"blocks must be three numbers, one for each stage, of at most {DEEPEST} layers in all")
        if (self.depth - 2) % 6:
            raise ValueError("depth must be 6n + 2, as 20, 32, 44, 56 or 110")

    def make(self, needs: Needs) -> nn.Module:
        """A ``limbeck.networks.cifar_resnet.CifarResNet``."""
        from limbeck.networks.cifar_resnet import CifarResNet

        return CifarResNet(
            self.depth, needs.outputs, needs.inputs[0], self.width, self.blocks, self.stem, self.shortcut
        )


@settings
class WideResNetModel(Normalised):
    """A wide residual network for small images (Zagoruyko and Komodakis, 2016): WRN-16-2, 28-10, 40-1, 40-2.

    Args:
        depth: 6n + 4.
        widen: by how much every stage is wider than 16, 32 and 64 channels.
        dropout: share of values dropped inside blocks while training.
    """

    forms = ("classes", "vector", "keypoints")
    takes = ("pictures",)

    depth: Annotated[int, Interval(ge=10, le=DEEPEST)] = 40
    widen: Count = 1
    dropout: Share = 0.0

    def validate(self) -> None:
        """Three stages of n blocks of two layers, and a shortcut in each."""
        super().validate()
        if (self.depth - 4) % 6:
            raise ValueError("depth must be 6n + 4, as 10, 16, 22, 28 or 40")

    def make(self, needs: Needs) -> nn.Module:
        """A ``limbeck.networks.wide_resnet.WideResNet``."""
        from limbeck.networks.wide_resnet import WideResNet

        return WideResNet(self.depth, self.widen, needs.outputs, needs.inputs[0], self.dropout)
