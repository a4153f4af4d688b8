"""Encoders of point clouds [N, P, 3], of any number of points: PointNet, DGCNN, and a transformer over patches of points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, relu

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.points import check_clouds, nearest_points, sample_and_group
from limbeck.networks.vision_transformer import TransformerBlock

__all__ = ["CloudHead", "Dgcnn", "Norm", "PointNet", "PointTransformer"]

Norm = Literal["batch", "layer", "none"]
"""What is normalised behind a linear layer: each channel over all points of the batch, each point over its channels, nothing."""


class _Rows(nn.Module):
    """Linear, norm, activation, of the last axis.

    Args:
        inputs, outputs: widths.
        norm: see `Norm`.
        slope: of the activation below zero.
    """

    def __init__(self, inputs: int, outputs: int, norm: Norm = "batch", slope: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=norm != "batch")
        made: dict[Norm, nn.Module] = {"layer": nn.LayerNorm(outputs), "none": nn.Identity()}
        self.norm = nn.BatchNorm1d(outputs) if norm == "batch" else made[norm]
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        x = self.linear(x)
        flat: Tensor = self.norm(x.flatten(0, -2))
        return (leaky_relu(flat, self.slope) if self.slope else relu(flat)).view(x.shape)


def _check_widths(**given: int | Sequence[int]) -> None:
    for name, value in given.items():
        values = [value] if isinstance(value, int) else list(value)
        if not values or any(v < 1 for v in values):
            raise ConfigError(name, given=value, expected="widths of at least 1")


class PointNet(nn.Module):
    """A perceptron of each point by itself, the maximum over points: [N, P, 3] to [N, features].

    Source: Qi et al. 2017 (arXiv 1612.00593), without its transforms of the input.

    Args:
        features: D.
        widths: of the layers before the last.
        norm: see `Norm`.
    """

    least = 1
    """Points that a cloud must have."""

    def __init__(self, features: int = 256, widths: Sequence[int] = (64, 64, 64, 128), norm: Norm = "batch") -> None:
        super().__init__()
        _check_widths(features=features, widths=widths)
        sizes = [3, *widths, features]
        self.layers = nn.Sequential(*(_Rows(a, b, norm) for a, b in pairwise(sizes)))

    def forward(self, points: Tensor) -> Tensor:
        """[N, P, 3] to [N, features]."""
        check_clouds(points)
        out: Tensor = self.layers(points)
        return out.amax(1)


class Dgcnn(nn.Module):
    """Edge convolutions: each point looks at the k points whose features are nearest to its own, layer by layer.

    Of all layers together a wide one is made, whose maximum and mean over points are mapped to [N, features].

    Source: Wang et al. 2019 (arXiv 1801.07829).

    Args:
        features: D.
        k: neighbours, the point itself among them.
        widths: of the edge convolutions.
        wide: of the layer over all of them.
        norm: see `Norm`.
    """

    def __init__(
        self,
        features: int = 256,
        k: int = 20,
        widths: Sequence[int] = (64, 64, 128, 256),
        wide: int = 1024,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        _check_widths(features=features, k=k, widths=widths, wide=wide)
        self.k = self.least = k
        sizes = [3, *widths]
        self.edges = nn.ModuleList(_Rows(2 * a, b, norm, 0.2) for a, b in pairwise(sizes))
        self.wide = _Rows(sum(widths), wide, norm, 0.2)
        self.last = nn.Linear(2 * wide, features)

    def forward(self, points: Tensor) -> Tensor:
        """[N, P, 3] to [N, features].

        Raises:
            ShapeError: a cloud has fewer than k points.
        """
        check_clouds(points, self.k)
        rows = torch.arange(len(points), device=points.device)[:, None, None]
        x, found = points, []
        for i, layer in enumerate(self.edges):
            with torch.no_grad():
                near = nearest_points(x, x, self.k) if i == 0 else _nearest(x, self.k)
            own = x.unsqueeze(2).expand(-1, -1, self.k, -1)
            x = layer(torch.cat([x[rows, near] - own, own], -1)).amax(2)
            found.append(x)
        wide = self.wide(torch.cat(found, -1))
        out: Tensor = self.last(torch.cat([wide.amax(1), wide.mean(1)], -1))
        return out


def _nearest(x: Tensor, k: int) -> Tensor:
    """Ids [N, P, k] of the rows nearest to each row [N, P, D]; by scalar products, for features are wide."""
    x = x.float()
    square = x.square().sum(-1)
    return (2 * x @ x.transpose(1, 2) - square.unsqueeze(1)).topk(k, sorted=False).indices


class PointTransformer(nn.Module):
    """A vision transformer whose patches are neighbourhoods of points: [N, P, 3] to the class token [N, width].

    Each point gets a feature; of every ``patch`` points one, far from the others, is a centre, and its nearest ``patch``
    points with what they have beyond it become one token. Any number of points goes in, and makes as many tokens.

    Source: DCGLR's 3D-ViT (Fu et al. 2022, arXiv 2202.04241); sizes are those of POS-BERT, which shares its authors and
    patches. That positions are told by a perceptron of the centre is a [reconstruction].

    Args:
        width: channels of the tokens.
        depth: transformer blocks.
        heads: of their attention.
        ratio: of a block's inner width to ``width``.
        patch: points of a patch, and for how many points there is one.
        channels: of the feature of a point.
        norm: of the layers before the tokens, see `Norm`; blocks have layer norms.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 4,
        heads: int = 4,
        ratio: float = 2.0,
        patch: int = 32,
        channels: int = 64,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        _check_widths(width=width, depth=depth, heads=heads, patch=patch, channels=channels)
        if width % heads:
            raise ConfigError("width", given=width, expected=f"a multiple of heads={heads}")
        self.patch = self.least = patch
        self.points = nn.Sequential(_Rows(3, channels, norm), _Rows(channels, channels, norm))
        self.patches = nn.Sequential(_Rows(2 * channels, width, norm), _Rows(width, width, norm))
        self.position = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, points: Tensor) -> Tensor:
        """[N, P, 3] to [N, width]. The first point is the first centre: shuffled clouds have a random one.

        Raises:
            ShapeError: a cloud has fewer points than a patch.
        """
        check_clouds(points, self.patch)
        found = sample_and_group(points, self.points(points), max(1, points.shape[1] // self.patch), self.patch)
        tokens = self.patches(found.features).amax(2) + self.position(found.centres)
        tokens = torch.cat([self.cls_token.expand(len(points), -1, -1).to(tokens.dtype), tokens], 1)
        out: Tensor = self.norm(self.blocks(tokens)[:, 0])
        return out


class CloudHead(nn.Module):
    """An encoder with a linear layer behind it, for classes.

    Args:
        encoder: from clouds to [N, features].
        features: D.
        outputs: C.
    """

    def __init__(self, encoder: nn.Module, features: int, outputs: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(features, outputs)

    def forward(self, points: Tensor) -> Tensor:
        """[N, P, 3] to [N, outputs]."""
        x = self.encoder(points)
        if x.ndim != 2:
            raise ShapeError("student", given=list(x.shape), expected="one feature a cloud, [N, D]")
        out: Tensor = self.head(x)
        return out
