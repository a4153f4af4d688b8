"""A masked autoencoder of plain vision transformers, whose decoder can be stopped on the way and may predict hidden states.

Parameters are named as in MAE's checkpoints (He et al. 2022, arXiv 2111.06377), which therefore load by name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.pretraining import Masking

__all__ = ["MaskedAutoencoder", "Perceptron", "TransformerBlock", "sine_cosine_positions"]


def sine_cosine_positions(width: int, grid: int, *, first: bool = True) -> Tensor:
    """Fixed positions of a square grid ``[1, 1 + grid^2, width]``: half of the channels tell the column, half the row.

    Args:
        width: channels, a multiple of 4.
        grid: places along a side.
        first: a position 0 in front, for the class token, which is all zeros.

    Raises:
        ConfigError: the width is no multiple of 4.
    """
    if width % 4:
        raise ConfigError("width", given=width, expected="a multiple of 4: sine and cosine of row and column")
    rate = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    along = torch.arange(grid, dtype=torch.float64).unsqueeze(1) * rate
    wave = torch.cat([along.sin(), along.cos()], 1)  # [grid, width / 2]
    row, column = wave.unsqueeze(1).expand(-1, grid, -1), wave.expand(grid, -1, -1)
    both = torch.cat([column, row], -1).flatten(0, 1)
    if first:
        both = torch.cat([torch.zeros(1, width, dtype=torch.float64), both])
    return both.float().unsqueeze(0)


class Perceptron(nn.Module):
    """Linear, GELU, linear.

    Args:
        inputs, hidden, outputs: widths.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        out: Tensor = self.fc2(gelu(self.fc1(x)))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, heads, T, D] each
        out: Tensor = self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
    """Attention and perceptron, each behind a layer norm and beside a shortcut.

    Args:
        width: channels.
        heads: they are divided into.
        ratio: of the perceptron's inner width to it.
        eps: of the layer norms.
    """

    def __init__(self, width: int, heads: int, ratio: float = 4.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps), _Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps), Perceptron(width, int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width], as it came."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _Patches(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class MaskedAutoencoder(nn.Module):
    """Encoder of the visible patches, decoder of all; further heads predict another network's hidden states.

    Args:
        size, patch: sides of the square picture and of a patch, in pixels; L = (size / patch)^2 patches.
        channels: of the picture.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        ratio: of a perceptron's inner width to the channels.
        eps: of the layer norms.
        predicts: width of the hidden states that are predicted from the decoder's, which then stay without a norm; 0 is
            no such head.
        predicts_encoder: likewise from the encoder's output.

    Raises:
        ConfigError: the patch does not divide the picture, heads do not divide widths, widths are no multiples of 4.
    """

    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def __init__(
        self,
        size: int = 224,
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
        super().__init__()
        if patch < 1 or size < patch or size % patch:
            raise ConfigError("patch", given=patch, expected=f"a divisor of the picture's side {size}")
        for name, given, of in (("heads", heads, width), ("decoder_heads", decoder_heads, decoder_width)):
            if given < 1 or of % given:
                raise ConfigError(name, given=given, expected=f"a divisor of the width {of}")
        self.size, self.patch, grid = size, patch, size // patch
        self.patch_embed = _Patches(channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", sine_cosine_positions(width, grid))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, ratio, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.register_buffer("decoder_pos_embed", sine_cosine_positions(decoder_width, grid))
        self.decoder_blocks = nn.ModuleList(
            TransformerBlock(decoder_width, decoder_heads, ratio, eps) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps)
        self.decoder_pred = nn.Linear(decoder_width, patch * patch * channels)
        self.decoder_predictor = Perceptron(decoder_width, predicts, predicts) if predicts else None
        self.encoder_predictor = Perceptron(width, predicts_encoder, predicts_encoder) if predicts_encoder else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    @property
    def patches(self) -> int:
        """L, the number of patches."""
        return (self.size // self.patch) ** 2

    def encode(self, x: Tensor, masking: Masking | None = None, *, norm: bool = True) -> Tensor:
        """The class token and the visible patches [N, 1 + K, width], in the order of ``masking.visible``; without it, all.

        Args:
            x: pictures [N, channels, size, size].
            masking: which patches are seen; the same for two networks that are compared.
            norm: behind the last layer norm.

        Raises:
            ShapeError: pictures of another size, or a masking of another number of patches.
        """
        if x.ndim != 4 or x.shape[2:] != (self.size, self.size):
            raise ShapeError("x", given=list(x.shape), expected=f"pictures [N, C, {self.size}, {self.size}]")
        tokens = self.patch_embed(x) + self.pos_embed[:, 1:]
        if masking is not None:
            if masking.restore.shape != tokens.shape[:2]:
                raise ShapeError(
                    "masking",
                    given=f"of {list(masking.restore.shape)} patches",
                    expected=f"{list(tokens.shape[:2])}: {self.size} / {self.patch} pixels a side",
                    remedy="student and teacher must cut pictures into the same patches",
                )
            tokens = tokens.gather(1, masking.visible.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat([first, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens) if norm else tokens
        return out

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
