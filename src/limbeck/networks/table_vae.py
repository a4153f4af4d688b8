"""Encoder and decoder of a fair variational autoencoder over rows of categories (FairDisCo, Liu et al., KDD 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

LOGVAR = 20.0
"""Log-variances are kept within so much of 0, where their exponential is finite and its gradient alive."""


class Latent(NamedTuple):
    """A posterior: mean and log-variance [N, z]."""

    mean: Tensor
    logvar: Tensor

    def at(self, eps: Tensor) -> Tensor:
        """The point [N, z] that standard normal noise [N, z] leads to."""
        return self.mean + (self.logvar / 2).exp() * eps


class TableEncoder(nn.Module):
    """One-hot columns, and the protected attribute where it is seen, to a diagonal Gaussian.

    Args:
        width: of a row x.
        latent: z.
        groups: values of the protected attribute that are appended one-hot; 0: it does not see them.
        hidden: sizes of the hidden layers.
    """

    def __init__(self, width: int, latent: int, groups: int, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        self.width, self.latent, self.groups = width, latent, groups
        self.body = _perceptron(width + groups, hidden, 2 * latent)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Rows [N, width] and groups int64 [N] to means and log-variances side by side [N, 2 z]."""
        if self.groups:
            x = torch.cat([x, nn.functional.one_hot(s, self.groups).to(x.dtype)], -1)
        out: Tensor = self.body(x)
        return out

    def posterior(self, out: Tensor) -> Latent:
        """What `forward` gave, as a posterior, log-variances clamped."""
        mean, logvar = out.float().chunk(2, -1)
        return Latent(mean, logvar.clamp(-LOGVAR, LOGVAR))


class TableDecoder(nn.Module):
    """Latents and the protected attribute to logits of every column; of the label, if it is told apart, from latents alone.

    Args:
        latent: z.
        groups: values of the protected attribute.
        widths: number of values of each column that sees the attribute.
        label: number of classes of a label that does not; 0: there is none.
        hidden: sizes of the hidden layers.
    """

    def __init__(
        self, latent: int, groups: int, widths: Sequence[int], label: int = 0, hidden: Sequence[int] = (64,)
    ) -> None:
        super().__init__()
        self.groups, self.widths = groups, list(widths)
        self.body = _perceptron(latent + groups, hidden, sum(widths))
        self.label = _perceptron(latent, hidden, label) if label else None

    def forward(self, z: Tensor, s: Tensor) -> Tensor:
        """Latents [N, z] and groups int64 [N] to logits [N, sum of widths (+ label)]."""
        out: Tensor = self.body(torch.cat([z, nn.functional.one_hot(s, self.groups).to(z.dtype)], -1))
        return out if self.label is None else torch.cat([out, self.label(z)], -1)


def _perceptron(width: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))


__all__ = ["Latent", "TableDecoder", "TableEncoder"]
