"""Networks for point clouds: encoders of one feature a cloud, with a linear layer behind them where a task has classes."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import nn

from limbeck.errors import ConfigError
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.task import DEEPEST, Check, Task
from limbeck.models.classifier import Classifier
from limbeck.networks.clouds import CloudHead, Dgcnn, Norm, PointNet, PointTransformer

NAMES = {"model": {"pointnet": "PointNetModel", "dgcnn": "DgcnnModel", "vit3d": "Vit3dModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class CloudModel(Classifier):
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


class PointNetModel(CloudModel):
    """PointNet (Qi et al., 2017), without its transforms of the input: a perceptron of each point, the maximum over points.

    Args:
        widths: of the layers before the last.
        features: width of the feature.
        norm: ``batch`` over all points of a batch, ``layer`` over each point's channels, or ``none``.
    """

    def __init__(
        self,
        widths: list[int] = [64, 64, 64, 128],  # noqa: B006 (copied, never changed)
        features: Annotated[int, Ge(1)] = 256,
        norm: Norm = "batch",
        checkpoint: str | None = None,
        labels: str | list[str] | None = None,
        entry: str | None = None,
        strip: str = "",
        check: Check = "on",
    ) -> None:
        if any(w < 1 for w in widths):
            raise ValueError("widths must be 1 or more each")
        self.widths, self.features, self.norm = list(widths), features, norm
        self._source(checkpoint, labels, None, None, entry, strip, check)

    def encoder(self, features: int | None) -> tuple[nn.Module, int]:
        """A `limbeck.networks.clouds.PointNet`."""
        width = features or self.features
        return PointNet(width, self.widths, self.norm), width


class DgcnnModel(CloudModel):
    """DGCNN (Wang et al., 2019): each point looks at the k points whose features are nearest to its own, layer by layer.

    Args:
        k: neighbours, the point itself among them; no cloud may have fewer points.
        widths: of the edge convolutions.
        wide: of the layer over all of them.
        features: width of the feature.
        norm: ``batch`` over all points of a batch, ``layer`` over each point's channels, or ``none``.
    """

    def __init__(
        self,
        k: Annotated[int, Ge(1)] = 20,
        widths: list[int] = [64, 64, 128, 256],  # noqa: B006 (copied, never changed)
        wide: Annotated[int, Ge(1)] = 1024,
        features: Annotated[int, Ge(1)] = 256,
        norm: Norm = "batch",
        checkpoint: str | None = None,
        labels: str | list[str] | None = None,
        entry: str | None = None,
        strip: str = "",
        check: Check = "on",
    ) -> None:
        if not widths or any(w < 1 for w in widths):
            raise ValueError("widths must be one or more numbers of at least 1")
        self.k, self.widths, self.wide, self.features, self.norm = k, list(widths), wide, features, norm
        self._source(checkpoint, labels, None, None, entry, strip, check)

    def encoder(self, features: int | None) -> tuple[nn.Module, int]:
        """A `limbeck.networks.clouds.Dgcnn`."""
        width = features or self.features
        return Dgcnn(width, self.k, self.widths, self.wide, self.norm), width


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

    def __init__(
        self,
        width: Annotated[int, Ge(1)] = 192,
        depth: Annotated[int, Ge(1)] = 4,
        heads: Annotated[int, Ge(1)] = 4,
        ratio: float = 2.0,
        patch: Annotated[int, Ge(1)] = 32,
        norm: Norm = "batch",
        checkpoint: str | None = None,
        labels: str | list[str] | None = None,
        entry: str | None = None,
        strip: str = "",
        check: Check = "on",
    ) -> None:
        if width % heads:
            raise ValueError("width must be a multiple of heads")
        if depth > DEEPEST:
            raise ValueError(f"depth must be at most {DEEPEST:,}")
        if not ratio > 0:
            raise ValueError("ratio must be above 0")
        self.width, self.depth, self.heads, self.ratio, self.patch, self.norm = width, depth, heads, ratio, patch, norm
        self._source(checkpoint, labels, None, None, entry, strip, check)

    def encoder(self, features: int | None) -> tuple[nn.Module, int]:
        """A `limbeck.networks.clouds.PointTransformer`, whose feature is as wide as its tokens."""
        net = PointTransformer(self.width, self.depth, self.heads, self.ratio, self.patch, norm=self.norm)
        return net, self.width


__all__ = ["CloudModel", "DgcnnModel", "PointNetModel", "Vit3dModel"]
