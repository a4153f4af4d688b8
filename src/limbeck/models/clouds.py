"""Networks for point clouds: encoders of one feature a cloud, with a linear layer behind them where a task has classes."""

from __future__ import annotations

from torch import nn

from limbeck.errors import ConfigError
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, Positive, settings
from limbeck.grammar.task import Depth, Task
from limbeck.models.classifier import Loaded
from limbeck.networks.clouds import CloudHead, Dgcnn, Norm, PointNet, PointTransformer

NAMES = {"model": {"pointnet": "PointNetModel", "dgcnn": "DgcnnModel", "vit3d": "Vit3dModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class CloudModel(Loaded):
    """Base of models of point clouds: a subclass makes the encoder."""

    forms = ("classes", "vector")
    takes = ("clouds",)

    def contract(self, module: nn.Module, task: Task) -> Contract:
        """Coordinates go in as the task gives them."""
        return Contract()

    def encoder(self, features: int | None) -> tuple[nn.Module, int]:
        """The encoder and the width of its feature: ``features``, or its own where that is ``None``."""
        raise TypeError(f"{type(self).__name__} must define encoder")

    def make(self, needs: Needs) -> nn.Module:
        """The encoder alone for features, with a `limbeck.networks.clouds.CloudHead` for classes."""
        if needs.form == "vector":
            module, width = self.encoder(needs.outputs or None)
            if needs.outputs and width != needs.outputs:
                raise ConfigError(
                    self.setting("width"), given=width, expected=f"the width that the task needs, {needs.outputs}"
                )
            return module
        module, width = self.encoder(None)
        return CloudHead(module, width, needs.outputs)


@settings
class PointNetModel(CloudModel):
    """PointNet (Qi et al., 2017), without its transforms of the input: a perceptron of each point, the maximum over points.

    Args:
        widths: of the layers before the last.
        features: width of the feature.
        norm: ``batch`` over all points of a batch, ``layer`` over each point's channels, or ``none``.
    """

    widths: list[Count] = [64, 64, 64, 128]  # noqa: RUF012 (copied, never changed)
    features: Count = 256
    norm: Norm = "batch"

    def encoder(self, features: int | None) -> tuple[nn.Module, int]:
        """A `limbeck.networks.clouds.PointNet`."""
        width = features or self.features
        return PointNet(width, self.widths, self.norm), width


@settings
class DgcnnModel(CloudModel):
    """DGCNN (Wang et al., 2019): each point looks at the k points whose features are nearest to its own, layer by layer.

    Args:
        k: neighbours, the point itself among them; no cloud may have fewer points.
        widths: of the edge convolutions.
        wide: of the layer over all of them.
        features: width of the feature.
        norm: ``batch`` over all points of a batch, ``layer`` over each point's channels, or ``none``.
    """

    k: Count = 20
    widths: list[Count] = [64, 64, 128, 256]  # noqa: RUF012 (copied, never changed)
    wide: Count = 1024
    features: Count = 256
    norm: Norm = "batch"

    def validate(self) -> None:
        """There is an edge convolution."""
        super().validate()
        if not self.widths:
            raise ValueError("widths must be one or more numbers")

    def encoder(self, features: int | None) -> tuple[nn.Module, int]:
        """A `limbeck.networks.clouds.Dgcnn`."""
        width = features or self.features
        return Dgcnn(width, self.k, self.widths, self.wide, self.norm), width


@settings
class Vit3dModel(CloudModel):
    """DCGLR's 3D-ViT: a transformer whose tokens are patches of neighbouring points; its feature is the class token.

    Args:
        width: channels of the tokens, and of the feature.
        depth: blocks.
        heads: of their attention; ``width`` is a multiple.
        ratio: of a block's inner width to ``width``.
        patch: points of a patch, and for how many points there is one; no cloud may have fewer.
        norm: of the layers before the tokens: ``batch``, ``layer`` or ``none``.
    """

    width: Count = 192
    depth: Depth = 4
    heads: Count = 4
    ratio: Positive = 2.0
    patch: Count = 32
    norm: Norm = "batch"

    def validate(self) -> None:
        """Heads divide the channels."""
        super().validate()
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")

    def encoder(self, features: int | None) -> tuple[nn.Module, int]:
        """A `limbeck.networks.clouds.PointTransformer`, whose feature is as wide as its tokens."""
        net = PointTransformer(self.width, self.depth, self.heads, self.ratio, self.patch, norm=self.norm)
        return net, self.width


__all__ = ["CloudModel", "DgcnnModel", "PointNetModel", "Vit3dModel"]
