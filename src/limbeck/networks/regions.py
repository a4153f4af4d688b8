"""The head of a detector whose classes are embeddings: regions become unit vectors, and are named by those of texts."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import ShapeError
from limbeck.functional.regions import region_logits, unit

Norm = Literal["batch", "group", "none"]


class Regions(NamedTuple):
    """What a head says of regions.

    Attributes:
        embedding: [R, D], of unit length.
        offsets: of the box, [R, 4], the same for all classes.
    """

    embedding: Tensor
    offsets: Tensor


def _norm(kind: Norm, width: int) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm1d(width)]
    if kind == "none":
        return []
    # a group holds several values: one alone would be normalised to nothing
    groups = next((g for g in (32, 16, 8, 4, 2) if width % g == 0 and width // g >= 8), 1)
    return [nn.GroupNorm(groups, width)]


class RegionBranch(nn.Module):
    """Convolutions, linear layers and the projection of one branch.

    Args:
        channels, size: of the pooled features [R, channels, size, size].
        dim: of the embedding.
        convs, conv_width: 3x3 convolutions.
        fcs, width: linear layers; at least one.
        norm: after each of them: ``batch``, ``group`` or ``none``.
    """

    def __init__(
        self, channels: int, size: int, dim: int, convs: int, conv_width: int, fcs: int, width: int, norm: Norm
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convs):
            layers.append(nn.Conv2d(channels, conv_width, 3, padding=1, bias=norm == "none"))
            layers += [nn.BatchNorm2d(conv_width)] if norm == "batch" else _norm(norm, conv_width)
            layers.append(nn.ReLU())
            channels = conv_width
        layers.append(nn.Flatten())
        inputs = channels * size * size
        for _ in range(fcs):
            layers += [nn.Linear(inputs, width), *_norm(norm, width), nn.ReLU()]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.project = nn.Linear(inputs, dim)
        self.width = inputs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [R, width], and embeddings [R, dim] of unit length."""
        h = self.body(x)
        return h, unit(self.project(h))


class RegionHead(nn.Module):
    """Embeddings of regions, boxes for all classes alike, and logits against embeddings of class names.

    Until `name_classes` gives it those of texts, the classifier's embeddings are learnt, as an ordinary detector's are.

    Args:
        channels, size: of the pooled features.
        dim: of the embeddings.
        classes: how many, without the background.
        two: a second branch with weights of its own, for what is matched to images (ViLD-ensemble).
        convs, conv_width, fcs, width, norm: see `RegionBranch`.
        temperature: multiplies cosines.

    Attributes:
        text: [classes, dim]; ``background``: [dim], always learnt.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        dim: int,
        classes: int,
        *,
        two: bool = False,
        convs: int = 4,
        conv_width: int = 256,
        fcs: int = 2,
        width: int = 1024,
        norm: Norm = "batch",
        temperature: float = 100.0,
    ) -> None:
        super().__init__()
        self.dim, self.two, self.temperature = dim, two, temperature
        self.text_branch = RegionBranch(channels, size, dim, convs, conv_width, fcs, width, norm)
        self.image_branch = RegionBranch(channels, size, dim, convs, conv_width, fcs, width, norm) if two else None
        self.box = nn.Linear(self.text_branch.width, 4)
        self.background = nn.Parameter(unit(torch.randn(dim)))
        self.text = nn.Parameter(unit(torch.randn(classes, dim)))

    def name_classes(self, text: Tensor) -> None:
        """Name the classes by embeddings [C, dim], which stand still from then on; C may be another number than before.

        Raises:
            ShapeError: they have another width.
        """
        if text.ndim != 2 or text.shape[1] != self.dim:
            raise ShapeError("text", given=list(text.shape), expected=f"[classes, {self.dim}]")
        fixed = unit(text.detach().to(self.background))
        self.text = nn.Parameter(fixed, requires_grad=False)

    def forward(self, x: Tensor) -> Regions:
        """The branch of texts, for pooled features [R, channels, size, size]."""
        h, e = self.text_branch(x)
        return Regions(e, self.box(h))

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings [R, dim] by the branch that is matched to images: a second one, or the same."""
        e: Tensor = (self.image_branch if self.image_branch is not None else self.text_branch)(x)[1]
        return e

    def logits(self, e: Tensor) -> Tensor:
        """Of embeddings [..., dim]: [..., 1 + C], the background first."""
        return region_logits(e, self.text, self.background, temperature=self.temperature)

    def image_logits(self, e: Tensor) -> Tensor:
        """Of embeddings of the second branch: [..., C], without a background."""
        return region_logits(e, self.text, temperature=self.temperature)


__all__ = ["RegionBranch", "RegionHead", "Regions"]
