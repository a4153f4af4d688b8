"""Heads that self-distillation puts on an encoder: a perceptron to a narrow embedding, compared with prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError

__all__ = ["PrototypeHead", "Prototypes"]


class Prototypes(nn.Module):
    """Linear map without bias whose rows have length one, whatever is learned: a weight normalisation with a fixed gain.

    Parameters are named as in DINO's checkpoints: ``weight_v`` the directions, ``weight_g`` the gain, which stays 1.

    Args:
        inputs: width of what comes in.
        outputs: number of prototypes.
    """

    weight_g: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(outputs, inputs))
        self.register_buffer("weight_g", torch.ones(outputs, 1))
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)

    def forward(self, x: Tensor, still: bool = False) -> Tensor:
        """[..., inputs] to [..., outputs]; ``still``: no gradient goes to the rows, so that no optimiser moves them."""
        rows = self.weight_v.detach() if still else self.weight_v
        return nn.functional.linear(x, rows * (self.weight_g / rows.norm(dim=1, keepdim=True)))


class PrototypeHead(nn.Module):
    """Perceptron with GELU, to a bottleneck of length one, to logits over prototypes.

    Source: Caron et al. 2021 (DINO, arXiv 2104.14294), section 3.2.

    Args:
        inputs: width of the encoder's output.
        outputs: K, number of prototypes.
        hidden: width between.
        bottleneck: width of the embedding.
        layers: of the perceptron, 1 or more.
        norm: batch norm after every hidden layer.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int = 512,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        norm: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "outputs": outputs, "hidden": hidden, "bottleneck": bottleneck, "layers": layers}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(name, given=value, expected="a number of at least 1")
        widths = [inputs, *[hidden] * (layers - 1), bottleneck]
        made: list[nn.Module] = []
        for i in range(layers):
            made.append(nn.Linear(widths[i], widths[i + 1]))
            if i < layers - 1:
                made += [*([nn.BatchNorm1d(hidden)] if norm else []), nn.GELU()]
        self.mlp = made[0] if layers == 1 else nn.Sequential(*made)
        self.last_layer = Prototypes(bottleneck, outputs)
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def embed(self, x: Tensor) -> Tensor:
        """The bottleneck [N, bottleneck] of encoder outputs [N, inputs], before it gets length one."""
        out: Tensor = self.mlp(x)
        return out

    def compare(self, z: Tensor, still: bool = False) -> Tensor:
        """Logits [N, outputs] of embeddings [N, bottleneck]; ``still``: the prototypes get no gradient."""
        out: Tensor = self.last_layer(nn.functional.normalize(z, dim=-1), still)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, outputs] of encoder outputs [N, inputs]."""
        return self.compare(self.embed(x))
