"""The masked autoencoder: what is hidden is not seen, the decoder stops where it is told, positions are MAE's."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.pretraining import random_masking
from limbeck.networks.masked_autoencoder import MaskedAutoencoder
from limbeck.networks.vision_transformer import sine_cosine_positions


def network(**options: int) -> MaskedAutoencoder:
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 8, "decoder_depth": 3, "decoder_heads": 2}
    return MaskedAutoencoder(16, 4, 1, **{**sizes, **options}).eval()  # type: ignore[arg-type]


def test_hidden_patches_are_not_seen_and_visible_ones_keep_their_place() -> None:
    net = network(predicts=12, predicts_encoder=20)
    x, m = torch.randn(2, 1, 16, 16), random_masking(torch.rand(2, 16))
    assert net.patches == 16 and net.encode(x, m).shape == (2, 5, 16) and net.encode(x).shape == (2, 17, 16)
    assert net(x, m).shape == (2, 16, 16) and net.predict(x, m).shape == (2, 17, 12)
    assert net.predict_encoder(x, m).shape == (2, 5, 20)
    pixels = m.hidden.view(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = torch.where(pixels, torch.randn(2, 1, 16, 16), x)
    torch.testing.assert_close(net.predict(other, m), net.predict(x, m))
    order = torch.tensor([2, 0, 3, 1])  # the order in which patches are handed on says nothing
    turned = m._replace(visible=m.visible[:, order], restore=m.restore.clone())
    turned.restore.scatter_(1, turned.visible, torch.arange(4).expand(2, -1))
    torch.testing.assert_close(net.predict(x, turned), net.predict(x, m))
    torch.testing.assert_close(net.norm(net.encode(x, m, norm=False)), net.encode(x, m))


def test_the_decoder_stops_behind_a_block() -> None:
    net = network()
    x, m = torch.randn(2, 1, 16, 16), random_masking(torch.rand(2, 16))
    latent = net.encode(x, m)
    states = [net.decode(latent, m, layer) for layer in (1, 2, 3)]
    torch.testing.assert_close(net.decoder_blocks[1](states[0]), states[1])
    torch.testing.assert_close(net.decode(latent, m), states[2])
    for layer in (0, 4):
        with pytest.raises(ConfigError, match="1 to 3"):
            net.decode(latent, m, layer)


def test_positions_tell_column_and_row() -> None:
    p = sine_cosine_positions(16, 3)
    assert p.shape == (1, 10, 16) and not bool(p[0, 0].any())
    assert torch.equal(p[0, 1:4, :8], p[0, 4:7, :8]) and torch.equal(p[0, 1:4, 8:], p[0, 1:2, 8:].expand(3, -1))
    assert p[0, 2, 0].item() == pytest.approx(0.841471, abs=1e-6)
    assert "pos_embed" in network().state_dict() and "pos_embed" not in dict(network().named_parameters())


def test_what_does_not_fit_is_refused() -> None:
    net = network()
    x, m = torch.randn(2, 1, 16, 16), random_masking(torch.rand(2, 16))
    with pytest.raises(ShapeError, match="same patches"):
        net.encode(x, random_masking(torch.rand(2, 49)))
    with pytest.raises(ShapeError, match="images"):
        net.encode(x[..., :12], m)
    with pytest.raises(ConfigError, match="predicts"):
        net.predict(x, m)
    with pytest.raises(ConfigError, match="predicts_encoder"):
        net.predict_encoder(x, m)
    for options in ({"heads": 3}, {"decoder_heads": 3}, {"width": 18}):
        with pytest.raises(ConfigError):
            network(**options)
    with pytest.raises(ConfigError, match="patch"):
        MaskedAutoencoder(16, 5)
