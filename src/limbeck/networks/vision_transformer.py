"""Plain vision transformers: the encoder, and what stands on it for classes, maps and boxes.

The encoder's parameters are named as in MAE's checkpoints and in timm (``patch_embed.proj``, ``blocks.0.attn.qkv``, ``norm``).
Positions are fixed sines and cosines. It is shown all patches, or those that a masking leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, gelu, interpolate, max_pool2d, scaled_dot_product_attention

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.pretraining import Masking
from limbeck.networks.two_stage import maps_of, run_plain

__all__ = [
    "Perceptron",
    "SimplePyramid",
    "TransformerBlock",
    "UperHead",
    "VisionTransformer",
    "VitClassifier",
    "VitDetector",
    "VitMaps",
    "draw_weights",
    "encoder_of",
    "first_stage",
    "sides_of",
    "sine_cosine_positions",
]

Pool = Literal["class", "mean"]
"""What a classifier reads: the class token, or the mean of the patches."""


def sides_of(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a square by its side, or as given."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def sine_cosine_positions(width: int, grid: int | tuple[int, int], *, first: bool = True) -> Tensor:
    """Fixed positions of a grid ``[1, 1 + rows * columns, width]``: half of the channels tell the column, half the row.

    Args:
        width: channels, a multiple of 4.
        grid: places along a side, or (rows, columns).
        first: a position 0 in front, for the class token, which is all zeros.

    Raises:
        ConfigError: the width is no multiple of 4.
    """
    if width % 4:
        raise ConfigError("width", given=width, expected="a multiple of 4: sine and cosine of row and column")
    rows, columns = sides_of(grid)
    rate = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def wave(n: int) -> Tensor:
        along = torch.arange(n, dtype=torch.float64).unsqueeze(1) * rate
        return torch.cat([along.sin(), along.cos()], 1)  # [n, width / 2]

    row, column = wave(rows).unsqueeze(1).expand(-1, columns, -1), wave(columns).expand(rows, -1, -1)
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

    def mix(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, heads, T, D] each
        out: Tensor = self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.qkv(x))


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

    def with_projections(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output [N, T, width], and its queries, keys, values [N, T, 3 width] side by side."""
        qkv = self.attn.qkv(self.norm1(x))
        x = x + self.attn.mix(qkv)
        return x + self.mlp(self.norm2(x)), qkv

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


def draw_weights(module: nn.Module) -> None:
    """Linear layers as MAE draws them: Xavier's uniform weights, no bias."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


class VisionTransformer(nn.Module):
    """Patches, a class token, transformer blocks, a layer norm (Dosovitskiy et al. 2021), with fixed positions.

    Args:
        size: of images: the side of a square, or (height, width), in pixels.
        patch: side of a patch in pixels; L = (height / patch) * (width / patch) patches.
        channels: of images.
        width, depth, heads: channels, blocks, attention heads.
        ratio: of a perceptron's inner width to the channels.
        eps: of the layer norms.

    Raises:
        ConfigError: the patch does not divide the image, heads do not divide the width, the width is no multiple of 4.
    """

    pos_embed: Tensor

    def __init__(
        self,
        size: int | tuple[int, int] = 224,
        patch: int = 16,
        channels: int = 3,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        ratio: float = 4.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        high, wide = sides_of(size)
        if patch < 1 or min(high, wide) < patch or high % patch or wide % patch:
            shown = f"{high}" if high == wide else f"{high} x {wide}"
            raise ConfigError("patch", given=patch, expected=f"a divisor of the image's side {shown}")
        if heads < 1 or width % heads:
            raise ConfigError("heads", given=heads, expected=f"a divisor of the width {width}")
        self.size, self.patch, self.grid = (high, wide), patch, (high // patch, wide // patch)
        self.channels, self.width, self.depth = channels, width, depth
        self.patch_embed = _Patches(channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", sine_cosine_positions(width, self.grid))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, ratio, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps)
        draw_weights(self)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)

    @property
    def patches(self) -> int:
        """L, the number of patches."""
        return self.grid[0] * self.grid[1]

    def embed(self, x: Tensor, masking: Masking | None = None, last: Tensor | None = None) -> Tensor:
        """Tokens before the first block: the class token, the patches that are seen, and ``last`` [1, 1, width] at the end.

        Raises:
            ShapeError: images of another size, or a masking of another number of patches.
        """
        if x.ndim != 4 or tuple(x.shape[2:]) != self.size:
            raise ShapeError("x", given=list(x.shape), expected=f"images [N, C, {self.size[0]}, {self.size[1]}]")
        tokens = self.patch_embed(x) + self.pos_embed[:, 1:]
        if masking is not None:
            if masking.restore.shape != tokens.shape[:2]:
                raise ShapeError(
                    "masking",
                    given=f"of {list(masking.restore.shape)} patches",
                    expected=f"{list(tokens.shape[:2])}: {self.grid[0]} x {self.grid[1]} patches of {self.patch} pixels",
                    remedy="student and teacher must cut images into the same patches",
                )
            tokens = tokens.gather(1, masking.visible.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
        n = x.shape[0]  # not len(x), which a traced graph would hold as a constant
        parts = [(self.cls_token + self.pos_embed[:, :1]).expand(n, -1, -1), tokens]
        return torch.cat(parts if last is None else [*parts, last.expand(n, -1, -1)], 1)

    def encode(
        self, x: Tensor, masking: Masking | None = None, *, norm: bool = True, last: Tensor | None = None
    ) -> Tensor:
        """The class token and the visible patches [N, 1 + K, width], in the order of ``masking.visible``; without it, all.

        Args:
            x: images [N, channels, height, width].
            masking: which patches are seen; the same for two networks that are compared.
            norm: behind the last layer norm.
            last: a further token [1, 1, width], with its position, that stands at the end.

        Raises:
            ShapeError: images of another size, or a masking of another number of patches.
        """
        tokens = self.embed(x, masking, last)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens) if norm else tokens
        return out

    def between(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Maps [N, width, rows, columns] behind some blocks, counted from 1, without a norm."""
        tokens, found = self.embed(x), {}
        for i, block in enumerate(self.blocks, 1):
            tokens = block(tokens)
            if i in layers:
                found[i] = tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        return [found[i] for i in layers]

    def projections(self, x: Tensor, masking: Masking | None = None) -> Tensor:
        """Queries, keys and values of every block [depth, 3, N, 1 + K, width]."""
        tokens, found = self.embed(x, masking), []
        for block in self.blocks:
            tokens, qkv = block.with_projections(tokens)  # type: ignore[operator]
            found.append(qkv.unflatten(-1, (3, -1)).permute(2, 0, 1, 3))
        return torch.stack(found)


def encoder_of(module: Any) -> tuple[str, VisionTransformer] | None:
    """Where a network's vision transformer is (``encoder``; empty where it is one itself), and which; ``None``: nowhere."""
    if isinstance(module, nn.Module):
        for name, part in module.named_modules():
            if isinstance(part, VisionTransformer):
                return name, part
    return None


class _Encoded(nn.Module):
    """A network that stands on an encoder and hands masked images on to it."""

    def _inner(self) -> VisionTransformer:
        raise NotImplementedError

    def encode(self, x: Tensor, masking: Masking | None = None, *, norm: bool = True) -> Tensor:
        """As `VisionTransformer.encode`."""
        return self._inner().encode(x, masking, norm=norm)

    def projections(self, x: Tensor, masking: Masking | None = None) -> Tensor:
        """As `VisionTransformer.projections`."""
        return self._inner().projections(x, masking)


class VitClassifier(_Encoded):
    """A row of values from the class token or from the mean of the patches, and from a distillation token if there is one.

    The distillation token (Touvron et al. 2021, arXiv 2012.12877) stands at the end, behind the patches, as in G2SD, and has
    a position and a head of its own. The output is the mean of both heads'.

    Args:
        encoder: of the images.
        outputs: how many values.
        pool: ``class`` or ``mean``.
        token: with a distillation token.
    """

    def __init__(self, encoder: VisionTransformer, outputs: int, pool: Pool = "class", token: bool = False) -> None:
        super().__init__()
        self.encoder, self.pool = encoder, pool
        width = encoder.width
        self.dist_token: nn.Parameter | None = None
        self.token_head: nn.Linear | None = None
        if token:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
            self.dist_pos_embed = nn.Parameter(torch.zeros(1, 1, width))
            self.token_head = nn.Linear(width, outputs)
            for p in (self.dist_token, self.dist_pos_embed, self.token_head.weight):
                nn.init.trunc_normal_(p, std=0.02)
            nn.init.zeros_(self.token_head.bias)
        self.head = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def _inner(self) -> VisionTransformer:
        return self.encoder

    def forward(self, x: Tensor) -> Tensor:
        """[N, outputs] of images [N, C, H, W]."""
        last = None if self.dist_token is None else self.dist_token + self.dist_pos_embed
        tokens = self.encoder.encode(x, norm=False, last=last)
        patches = self.encoder.patches
        feature = tokens[:, 0] if self.pool == "class" else tokens[:, 1 : 1 + patches].mean(1)
        out: Tensor = self.head(self.encoder.norm(feature))
        if self.token_head is not None:
            out = (out + self.token_head(self.encoder.norm(tokens[:, -1]))) / 2
        return out


def _normed(width: int, groups: int = 8) -> nn.GroupNorm:
    return nn.GroupNorm(next(g for g in (groups, 4, 2, 1) if width % g == 0), width)


def _conv(before: int, after: int, side: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, side, padding=side // 2, bias=False), _normed(after), nn.ReLU())


class UperHead(nn.Module):
    """A map from a pyramid: its coarsest level seen at several scales, coarse added to fine, all levels joined.

    UPerNet (Xiao et al. 2018, arXiv 1807.10221), with group in place of batch normalisation, so that an image's answer does
    not depend on its batch.

    Args:
        widths: channels of the levels, the finest first.
        outputs: values at each place, on the finest level's grid.
        width: channels in between.
        bins: places along a side at which the coarsest level is pooled.
    """

    def __init__(
        self, widths: Sequence[int], outputs: int, width: int = 64, bins: Sequence[int] = (1, 2, 3, 6)
    ) -> None:
        super().__init__()
        self.bins = tuple(bins)
        # one group: of a level pooled to one place there is nothing else to normalise over
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.Conv2d(widths[-1], width, 1, bias=False), nn.GroupNorm(1, width), nn.ReLU()) for _ in bins
        )
        self.joined = _conv(widths[-1] + len(self.bins) * width, width, 3)
        self.lateral = nn.ModuleList(_conv(d, width, 1) for d in widths[:-1])
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in widths[:-1])
        self.fused = _conv(len(widths) * width, width, 3)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """[N, outputs, h, w] of maps [N, D_i, h_i, w_i]."""
        top = levels[-1]
        seen = [
            _as_large(layer(adaptive_avg_pool2d(top, bin_)), top)
            for bin_, layer in zip(self.bins, self.pooled, strict=True)
        ]
        found = [layer(f) for layer, f in zip(self.lateral, levels[:-1], strict=True)]
        found.append(self.joined(torch.cat([top, *seen], 1)))
        for i in reversed(range(len(found) - 1)):
            found[i] = found[i] + _as_large(found[i + 1], found[i])
        smooth = [layer(f) for layer, f in zip(self.smooth, found[:-1], strict=True)] + [found[-1]]
        out: Tensor = self.head(self.fused(torch.cat([_as_large(f, smooth[0]) for f in smooth], 1)))
        return out


def _as_large(x: Tensor, like: Tensor) -> Tensor:
    return x if x.shape[2:] == like.shape[2:] else interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def _rescaled(width: int, factor: float) -> nn.Module:
    """A map of tokens made ``factor`` times as large (a power of two): by transposed convolutions, or by pooling."""
    layers: list[nn.Module] = []
    while factor > 1:
        if layers:
            layers += [_normed(width, 1), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width, 2, 2))
        factor /= 2
    if factor < 1:
        layers.append(_Pooled(round(1 / factor)))
    return nn.Sequential(*layers)


class _Pooled(nn.Module):
    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(x, self.by, ceil_mode=True)


class VitMaps(_Encoded):
    """A map of values from an encoder's blocks at four depths, brought to four scales, under `UperHead`.

    As MAE is fine-tuned for segmentation (He et al. 2022, arXiv 2111.06377, appendix A.4): behind a quarter, half, three
    quarters and all of the blocks; at four times, twice, once and half the grid of patches, as far as patches have pixels.

    Args:
        encoder: of the images.
        outputs: values at each place.
        width: channels of the head.
    """

    def __init__(self, encoder: VisionTransformer, outputs: int, width: int = 64) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = [max(1, -(-encoder.depth * i // 4)) for i in (1, 2, 3, 4)]
        finest = 4 if encoder.patch >= 4 else 2 if encoder.patch >= 2 else 1
        self.scales = nn.ModuleList(_rescaled(encoder.width, min(finest, f)) for f in (4, 2, 1, 0.5))
        self.decoder = UperHead([encoder.width] * 4, outputs, width)

    def _inner(self) -> VisionTransformer:
        return self.encoder

    def forward(self, x: Tensor) -> Tensor:
        """[N, outputs, h, w] of images [N, C, H, W]."""
        levels = self.encoder.between(x, self.layers)
        out: Tensor = self.decoder([scale(f) for scale, f in zip(self.scales, levels, strict=True)])
        return out


class SimplePyramid(nn.Module):
    """A detector's pyramid from an encoder's last map alone (ViTDet, Li et al. 2022, arXiv 2203.16527): strides 4, 8, ...

    Args:
        encoder: of the images; its patch is a power of two.
        width: channels of the pyramid.
        levels: how many.

    Raises:
        ConfigError: the patch is no power of two, or the image's sides are no multiples of the coarsest stride.
    """

    def __init__(self, encoder: VisionTransformer, width: int, levels: int = 2) -> None:
        super().__init__()
        if encoder.patch & (encoder.patch - 1):
            raise ConfigError(
                "patch", given=encoder.patch, expected="a power of two, for a pyramid of strides 4, 8, ..."
            )
        coarsest = 4 * 2 ** (levels - 1)
        if any(side % coarsest for side in encoder.size):
            raise ConfigError(
                "levels",
                f"the coarsest of {levels} has a stride of {coarsest} pixels, and images have {encoder.size}",
                given=levels,
                expected="sides that are multiples of the stride",
                remedy=f"set task.size to a multiple of {coarsest}, or take fewer levels",
            )
        self.encoder, self.out_channels = encoder, width
        self.scales = nn.ModuleList(_rescaled(encoder.width, encoder.patch / (4 * 2**i)) for i in range(levels))
        self.lateral = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(encoder.width, width, 1, bias=False),
                _normed(width, 1),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                _normed(width, 1),
            )
            for _ in range(levels)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``0`` of stride 4, ``1`` of stride 8, ..."""
        tokens = self.encoder.encode(x)
        f = tokens[:, 1:].transpose(1, 2).unflatten(2, self.encoder.grid)
        return {str(i): self.lateral[i](scale(f)) for i, scale in enumerate(self.scales)}


class VitDetector(_Encoded):
    """torchvision's two-stage detector on a `SimplePyramid`, its parts and the names of its weights as they are there.

    Args:
        net: the detector.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.transform, self.backbone, self.rpn, self.roi_heads = net.transform, net.backbone, net.rpn, net.roi_heads

    def _inner(self) -> VisionTransformer:
        found: VisionTransformer = self.backbone.encoder
        return found

    def forward(self, x: Tensor, targets: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        """As `limbeck.networks.two_stage.run_plain`: losses by image while it trains, else detections."""
        return run_plain(self, x, targets)


def first_stage(net: Any, x: Tensor) -> dict[str, list[Tensor]]:
    """What a two-stage detector's first stage says of images, level by level, and nothing of what comes behind it.

    Args:
        net: a detector with torchvision's parts.
        x: images [N, C, H, W].

    Returns:
        ``features``: [N, D, h, w]; ``objectness``: logits [N, A, h, w].
    """
    features = list(maps_of(net, x).features.values())
    return {"features": features, "objectness": net.rpn.head(features)[0]}
