"""A masked autoencoder of plain vision transformers, whose decoder can be stopped on the way and may predict hidden states.

Parameters are named as in MAE's checkpoints (He et al. 2022, arXiv 2111.06377), which therefore load by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.functional.pretraining import Masking
from limbeck.networks.vision_transformer import (
    Perceptron,
    TransformerBlock,
    VisionTransformer,
    draw_weights,
    sine_cosine_positions,
)

__all__ = ["MaskedAutoencoder", "MaskedDecoder"]


class _Decoding(nn.Module):
    """The decoder's parts and their names, alone or beside an encoder."""

    mask_token: nn.Parameter
    decoder_pos_embed: Tensor
    decoder_embed: nn.Linear
    decoder_blocks: nn.ModuleList

    def _make(self, inputs: int, grid: Any, width: int, depth: int, heads: int, ratio: float, eps: float) -> None:
        if heads < 1 or width % heads:
            raise ConfigError("decoder_heads", given=heads, expected=f"a divisor of the width {width}")
        self.decoder_embed = nn.Linear(inputs, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", sine_cosine_positions(width, grid))
        self.decoder_blocks = nn.ModuleList(TransformerBlock(width, heads, ratio, eps) for _ in range(depth))
        nn.init.normal_(self.mask_token, std=0.02)

    def decode(self, latent: Tensor, masking: Masking, layer: int | None = None) -> Tensor:
        """Hidden states [N, 1 + L, decoder_width] behind some decoder blocks, without a norm; those after are not run.

        Args:
            latent: what `encode` gives.
            masking: as there.
            layer: behind how many blocks, 1 to their number; left out, all.

        Raises:
            ConfigError: there are not as many blocks.
        """
        last = len(self.decoder_blocks) if layer is None else layer
        if not 1 <= last <= len(self.decoder_blocks):
            raise ConfigError(
                "layer", given=layer, expected=f"1 to {len(self.decoder_blocks)}: the decoder has as many blocks"
            )
        tokens = self.decoder_embed(latent)
        n, length = masking.restore.shape
        hidden = self.mask_token.to(tokens.dtype).expand(n, length + 1 - tokens.shape[1], -1)
        whole = torch.cat([tokens[:, 1:], hidden], 1)
        whole = whole.gather(1, masking.restore.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([tokens[:, :1], whole], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks[:last]:
            tokens = block(tokens)
        return tokens


class MaskedDecoder(_Decoding):
    """The decoder alone: from what an encoder says of visible patches to predictions for all.

    Args:
        inputs: width of the encoder.
        grid: patches along the sides of the image (rows, columns).
        width, depth, heads: of the decoder.
        ratio: of a perceptron's inner width to the channels.
        eps: of the layer norms.
        predicts: width of another decoder's hidden states, which a perceptron predicts behind the last block, without a
            norm in between, as in G2SD; or
        pixels: values of a patch, which are predicted behind a norm, as in MAE.
    """

    def __init__(
        self,
        inputs: int,
        grid: tuple[int, int],
        width: int = 256,
        depth: int = 4,
        heads: int = 8,
        ratio: float = 4.0,
        eps: float = 1e-6,
        predicts: int = 0,
        pixels: int = 0,
    ) -> None:
        super().__init__()
        if bool(predicts) == bool(pixels):
            raise ConfigError("predicts", given=(predicts, pixels), expected="either predicts or pixels above 0")
        self._make(inputs, grid, width, depth, heads, ratio, eps)
        self.decoder_norm = nn.LayerNorm(width, eps) if pixels else None
        self.decoder_pred = nn.Linear(width, pixels) if pixels else None
        self.decoder_predictor = Perceptron(width, predicts, predicts) if predicts else None
        draw_weights(self)

    def forward(self, latent: Tensor, masking: Masking) -> Tensor:
        """[N, 1 + L, predicts], with the class token; or pixels [N, L, pixels]."""
        hidden = self.decode(latent, masking)
        if self.decoder_predictor is not None:
            out: Tensor = self.decoder_predictor(hidden)
            return out
        assert self.decoder_norm is not None and self.decoder_pred is not None
        pixels: Tensor = self.decoder_pred(self.decoder_norm(hidden))[:, 1:]
        return pixels


class MaskedAutoencoder(_Decoding, VisionTransformer):
    """Encoder of the visible patches, decoder of all; further heads predict another network's hidden states.

    Args:
        size, patch: side of the square image, or (height, width), and of a patch, in pixels; L patches.
        channels: of the image.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        ratio: of a perceptron's inner width to the channels.
        eps: of the layer norms.
        predicts: width of the hidden states that are predicted from the decoder's, which then stay without a norm; 0 is
            no such head.
        predicts_encoder: likewise from the encoder's output.

    Raises:
        ConfigError: the patch does not divide the image, heads do not divide widths, widths are no multiples of 4.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 224,
        patch: int = 16,
        channels: int = 3,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        ratio: float = 4.0,
        eps: float = 1e-6,
        predicts: int = 0,
        predicts_encoder: int = 0,
    ) -> None:
        VisionTransformer.__init__(self, size, patch, channels, width, depth, heads, ratio, eps)
        self._make(width, self.grid, decoder_width, decoder_depth, decoder_heads, ratio, eps)
        self.decoder_norm = nn.LayerNorm(decoder_width, eps)
        self.decoder_pred = nn.Linear(decoder_width, patch * patch * channels)
        self.decoder_predictor = Perceptron(decoder_width, predicts, predicts) if predicts else None
        self.encoder_predictor = Perceptron(width, predicts_encoder, predicts_encoder) if predicts_encoder else None
        draw_weights(self)

    def hidden(self, x: Tensor, masking: Masking, layer: int | None = None) -> Tensor:
        """The decoder's hidden states [N, 1 + L, decoder_width] of images, as `decode` gives them."""
        return self.decode(self.encode(x, masking), masking, layer)

    def predict(self, x: Tensor, masking: Masking) -> Tensor:
        """Another decoder's hidden states [N, 1 + L, predicts], as this network sees them coming.

        Raises:
            ConfigError: the network has no such head.
        """
        if self.decoder_predictor is None:
            raise ConfigError("predicts", given=0, expected="the width of the hidden states that are to be predicted")
        out: Tensor = self.decoder_predictor(self.decode(self.encode(x, masking), masking))
        return out

    def predict_encoder(self, x: Tensor, masking: Masking) -> Tensor:
        """Another encoder's output [N, 1 + K, predicts_encoder], as this network sees it coming.

        Raises:
            ConfigError: the network has no such head.
        """
        if self.encoder_predictor is None:
            raise ConfigError(
                "predicts_encoder", given=0, expected="the width of the features that are to be predicted"
            )
        out: Tensor = self.encoder_predictor(self.encode(x, masking))
        return out

    def forward(self, x: Tensor, masking: Masking) -> Tensor:
        """Pixels of all patches [N, L, patch^2 channels], as MAE rebuilds them."""
        hidden = self.decode(self.encode(x, masking), masking)
        out: Tensor = self.decoder_pred(self.decoder_norm(hidden))[:, 1:]
        return out
