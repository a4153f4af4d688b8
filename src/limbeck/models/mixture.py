"""A denoiser that needs no training: the exact score of the training images, each widened a little."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck.functional import diffusion
from limbeck.grammar.method import Built
from limbeck.grammar.settings import Positive, settings
from limbeck.grammar.task import Model, Task
from limbeck.models.forms import meet

NAMES = {"model": {"mixture": "MixtureModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Mixture(nn.Module):
    """The exact eps of a mixture of Gaussians around images, of one class or of all.

    Args:
        pictures: [M, C, H, W] in [-1, 1]. labels: [M].
        classes: how many; the number after the last stands for all.
        scale: standard deviation around each image.
    """

    mean_type = "eps"
    guided = False

    def __init__(self, pictures: Tensor, labels: Tensor, classes: int, scale: float) -> None:
        super().__init__()
        self.pictures: Tensor
        self.labels: Tensor
        self.register_buffer("pictures", pictures)
        self.register_buffer("labels", labels)
        self.null_condition, self.scale = classes, scale

    def forward(self, z: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        """[N, C, H, W]."""
        alpha, sigma = (c.to(z.dtype)[:, None] for c in diffusion.alpha_sigma(logsnr))
        flat, centres = z.flatten(1), self.pictures.flatten(1).to(z.dtype)
        var = alpha.square() * self.scale**2 + sigma.square()
        far = alpha.square() * centres.square().sum(1) - 2 * alpha * (flat @ centres.T)  # [N, M]
        other = (label[:, None] != self.labels) & (label[:, None] != self.null_condition)
        p = torch.softmax((-far / (2 * var)).masked_fill(other, -torch.inf), 1)
        return (-sigma * (alpha * (p @ centres) - flat) / var).reshape(z.shape)


@settings
class MixtureModel(Model):
    """The exact denoiser of the training pictures: what a perfect one of so few images would say. It is no network.

    Args:
        scale: standard deviation around each image, whose values lie in [-1, 1].
    """

    forms = ("denoiser",)
    scale: Positive = 0.15

    @property
    def trained(self) -> bool:
        """It has nothing to learn."""
        return True

    def build(self, task: Task) -> Built:
        """The mixture of the task's training images."""
        needs = meet(self, task)
        task.load()
        data: Any = task.teacher_train
        batch = data.fetch(torch.arange(len(data)))
        signed = cast(Any, task).signed(batch["x"])
        return Built(Mixture(signed, batch["y"], needs.outputs, self.scale), labels=task.labels, model=self)
