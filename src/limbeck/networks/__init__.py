"""Networks that no library offers, as plain ``torch.nn`` modules. What a recipe names is in ``limbeck.models``."""

from __future__ import annotations

from limbeck.networks.cifar_resnet import CifarResNet
from limbeck.networks.convnet import MLP, VGG11, AlexNet, ConvNet, LeNet, ResNet18, ResNet18AP
from limbeck.networks.feature_net import FeatureNet
from limbeck.networks.residual_mlp import ResidualMLP
from limbeck.networks.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "VGG11",
    "AlexNet",
    "CifarResNet",
    "ConvNet",
    "FeatureNet",
    "LeNet",
    "ResNet18",
    "ResNet18AP",
    "ResidualMLP",
    "WideResNet",
]
