"""The head of self-distillation: prototypes of length one, names of DINO's checkpoints."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import ConfigError
from limbeck.networks.heads import PrototypeHead


def test_logits_are_cosines_whatever_the_length_of_prototypes_and_embeddings() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(6, outputs=10, hidden=12, bottleneck=5).eval()
    x = torch.randn(4, 6)
    y = head(x)
    assert y.shape == (4, 10) and float(y.detach().abs().max()) <= 1 + 1e-6
    torch.testing.assert_close(head.compare(3 * head.embed(x)), y)
    with torch.no_grad():
        head.last_layer.weight_v.mul_(7)
    torch.testing.assert_close(head(x), y)
    names = set(head.state_dict())
    assert {"mlp.0.weight", "mlp.2.bias", "mlp.4.weight", "last_layer.weight_g", "last_layer.weight_v"} <= names
    assert "last_layer.weight_g" not in dict(head.named_parameters())  # the gain is fixed


def test_sizes() -> None:
    assert set(PrototypeHead(6, 10, bottleneck=5, layers=1).state_dict()) >= {"mlp.weight", "mlp.bias"}
    normed = PrototypeHead(6, 10, hidden=8, bottleneck=5, norm=True)
    assert normed(torch.randn(4, 6)).shape == (4, 10) and "mlp.1.running_mean" in normed.state_dict()
    with pytest.raises(ConfigError, match="layers"):
        PrototypeHead(6, layers=0)
