"""Networks that no library offers: those of data set distillation, and a residual MLP that denoises tiny images."""

from __future__ import annotations

from limbeck.models.convnet import MLP, VGG11, AlexNet, ConvNet, LeNet, ResNet18, ResNet18AP
from limbeck.models.residual_mlp import ResidualMLP

__all__ = ["MLP", "VGG11", "AlexNet", "ConvNet", "LeNet", "ResNet18", "ResNet18AP", "ResidualMLP"]
