"""Plain vision transformers for classes, maps and boxes, from scratch or from a masked autoencoder's weights.

Each knows its masked autoencoder too: the same encoder with a decoder, which methods that pre-train ask for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from limbeck.data.items import as_path
from limbeck.errors import CheckpointCorrupt, ConfigError
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, Positive, settings
from limbeck.grammar.task import Check, Depth, Task
from limbeck.models.classifier import Normalised
from limbeck.models.pretrained import Wanted
from limbeck.networks.masked_autoencoder import MaskedAutoencoder, MaskedDecoder
from limbeck.networks.two_stage import pyramid_detector
from limbeck.networks.vision_transformer import (
    SimplePyramid,
    VisionTransformer,
    VitClassifier,
    VitDetector,
    VitMaps,
)
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.weights import load_strict
from limbeck.tasks.causal import transformers_library

NAMES = {"model": {"vit": "Vit", "vit-mae": "VitMae"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""By which images were normalised that published masked autoencoders were trained on."""

HOLDERS = ("", "encoder.", "backbone.encoder.", "module.", "model.", "backbone.")
"""What stands before an encoder's names in files: nothing, or the part of a network that it was."""


@settings
class Vit(Normalised):
    """A plain vision transformer: a classifier, a segmentation network (UPerNet) or a detector (Faster or Mask R-CNN on
    ViTDet's simple pyramid), with fixed positions.

    Args:
        patch: side of a patch in pixels; it divides the images' sides.
        width: channels, a multiple of 4 and of ``heads``.
        depth: blocks.
        heads: attention heads.
        ratio: of a perceptron's inner width to the channels.
        pool: what a classifier reads: the ``class`` token, or the ``mean`` of the patches.
        token: a classifier with a distillation token behind the patches, and a head for it; its answer is the mean of both.
        weights: of the encoder, to begin with: a file of MAE, of timm's vision transformers, or a run's folder (its student's
            encoder, whatever task it was for). Positions of another grid are interpolated; heads are left out. Where the
            file holds a decoder too, it is a ready masked autoencoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder that it has while it is pre-trained; by default two thirds
            of the width, 2 blocks, and heads of about the same width.
        head_width: channels of a segmentation or detection head.
        levels: of a detector's pyramid, of strides 4, 8, ...
        proposals: how many a detector's first stage hands on.
        pool_side: side of a detector's pooled features.
        masks: a detector with a mask head (Mask R-CNN).
    """

    forms = ("classes", "map", "boxes")
    takes = ("pictures",)
    paths: ClassVar[tuple[str, ...]] = ("checkpoint", "labels", "weights")

    patch: Count = 4
    width: Count = 48
    depth: Depth = 3
    heads: Count = 3
    ratio: Positive = 4.0
    pool: Literal["class", "mean"] = "class"
    token: bool = False
    weights: str | None = None
    decoder_width: int | None = None
    decoder_depth: Depth = 2
    decoder_heads: Count | None = None
    head_width: Count = 32
    levels: Annotated[int, Interval(ge=1, le=5)] = 2
    proposals: Count = 48
    pool_side: Count = 4
    masks: bool = False

    def validate(self) -> None:
        """Heads divide the width."""
        super().validate()
        if self.width % 4 or self.width % self.heads:
            said = f"{self.width} over {self.heads} heads does not go"
            raise ValueError(f"width must be a multiple of 4 and of heads: {said}")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.eps = 1e-6
        self._decoder(self.decoder_width, self.decoder_depth, self.decoder_heads)

    def _decoder(self, width: int | None, depth: int, heads: int | None) -> None:
        width = width if width is not None else max(4, 2 * self.width // 3 // 4 * 4)
        near = max(1, round(width * self.heads / self.width))
        heads = heads or next(h for h in range(near, 0, -1) if width % h == 0)
        if width < 4 or width % 4 or width % heads:
            raise ValueError(
                f"decoder_width must be a multiple of 4 and of decoder_heads: {width} over {heads} heads does not go"
            )
        self.decoder_width, self.decoder_depth, self.decoder_heads = width, depth, heads
        self.decoder_shape = width, depth, heads

    # ------------------------------------------------------------------------------------------------------- networks
    def channels(self, needs: Needs) -> int:
        """Of the images that the network takes."""
        return needs.inputs[0]

    def encoder(self, needs: Needs) -> VisionTransformer:
        """The encoder for a task's images, with first weights where some are named.

        Raises:
            ConfigError: the patch does not divide the images.
        """
        net = VisionTransformer(**self._shape(needs))
        given = self._given_weights()
        if given is not None:
            self._load(net, given)
        return net

    def _shape(self, needs: Needs) -> dict[str, Any]:
        high, wide = needs.inputs[1:]
        if high % self.patch or wide % self.patch:
            near = max(1, round(min(high, wide) / self.patch)) * self.patch
            raise ConfigError(
                self.setting("patch"),
                f"patches of {self.patch} pixels do not fill images of {high} x {wide}",
                given=self.patch,
                expected="a divisor of both sides",
                remedy=f"set task.size={near}, or task.sides for maps, or another patch",
            )
        return {
            "size": (high, wide),
            "patch": self.patch,
            "channels": self.channels(needs),
            "width": self.width,
            "depth": self.depth,
            "heads": self.heads,
            "ratio": self.ratio,
            "eps": self.eps,
        }

    def make(self, needs: Needs) -> nn.Module:
        """A `VitClassifier`, `VitMaps` or `VitDetector`."""
        encoder = self.encoder(needs)
        if needs.form == "classes":
            return VitClassifier(encoder, needs.outputs, self.pool, self.token)
        if needs.form == "map":
            return VitMaps(encoder, needs.outputs, self.head_width)
        try:
            body = SimplePyramid(encoder, self.head_width, self.levels)
        except ConfigError as error:
            error.argument = self.setting(error.argument)
            raise
        high, wide = needs.inputs[1:]
        net = pyramid_detector(
            body,
            needs.outputs,
            (high, wide),
            levels=self.levels,
            width=self.head_width,
            proposals=self.proposals,
            pool=self.pool_side,
            masks=self.masks,
            channels=encoder.channels,
        )
        return VitDetector(net)

    def decoder(self, encoder: VisionTransformer, *, predicts: int = 0, pixels: int = 0) -> MaskedDecoder:
        """The decoder that predicts from what the encoder says (`MaskedDecoder`)."""
        width, depth, heads = self.decoder_shape
        shape = (width, depth, heads, self.ratio, self.eps)
        return MaskedDecoder(encoder.width, encoder.grid, *shape, predicts=predicts, pixels=pixels)

    @property
    def prepared(self) -> bool:
        """Whether trained weights are named of a masked autoencoder, with its decoder."""
        return self.weights is not None

    def autoencoder(self, needs: Needs) -> MaskedAutoencoder:
        """The masked autoencoder of this shape: with the weights that are named, or new ones.

        Raises:
            ConfigError: weights are named, and a decoder is not among them.
        """
        shape = self._shape(needs)
        given = self._given_weights()
        if given is not None:
            self._fit_decoder(given)
        net = MaskedAutoencoder(
            **shape,
            decoder_width=self.decoder_shape[0],
            decoder_depth=self.decoder_shape[1],
            decoder_heads=self.decoder_shape[2],
        )
        if given is not None:
            self._load(net, given)
        return net

    def _fit_decoder(self, given: Mapping[str, Tensor]) -> None:
        """Take width and depth of the decoder from the weights.

        Raises:
            ConfigError: there is none.
        """
        if "decoder_embed.weight" not in given:
            raise no_decoder(self.setting("weights"), str(self.weights))
        width, depth = len(given["decoder_embed.weight"]), _blocks(given, "decoder_blocks")
        heads = self.decoder_heads if width == self.decoder_width else max(1, width // 32)
        self._decoder(width, depth, heads)

    # -------------------------------------------------------------------------------------------------------- weights
    def _given_weights(self) -> dict[str, Tensor] | None:
        """Named weights under MAE's names; ``None`` where none are named."""
        if self.weights is None:
            return None
        path = as_path(self.weights, "weights")
        state = find_weights(path, role=self.role).state
        if any(k.startswith("vit.") for k in state):
            raise ConfigError(
                self.setting("weights"),
                "it is a folder of transformers",
                given=self.weights,
                remedy=f"name the model vit-mae:{self.weights}, which reads its shape too",
            )
        for prefix in HOLDERS:
            if f"{prefix}patch_embed.proj.weight" in state:
                return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        raise CheckpointCorrupt(
            self.weights,
            "holds no vision transformer",
            expected="names as in MAE's and timm's files: patch_embed.proj.weight, blocks.0.attn.qkv.weight",
        )

    def _load(self, net: VisionTransformer, given: Mapping[str, Tensor]) -> None:
        """Weights into the network, strictly: all that it has must be there; what else the file holds is left out."""
        own = net.state_dict()
        taken = {k: v for k, v in given.items() if k in own}
        for name in ("pos_embed", "decoder_pos_embed"):
            if name in taken and taken[name].shape != own[name].shape and taken[name].shape[2] == own[name].shape[2]:
                taken[name] = interpolated(taken[name], net.grid)
            elif name == "pos_embed" and name in own and name not in taken:
                taken[name] = own[name]
        load_strict(net, taken, str(self.weights), self.role)
        kept = sum(k in own for k in given)
        note = f"began with {kept} of the {len(given)} tensors of {self.weights}"
        if note not in self.notes:
            self.notes.append(note)


class VitMae(Vit):
    """A masked autoencoder of transformers (``ViTMAEForPreTraining``, as facebook/vit-mae-base) by Hub id or folder.

    Its encoder is the network's, with a new head for the task; its decoder teaches where a method asks for it. A checkpoint
    without decoder, as fine-tuned ones are, is refused. Images are normalised by ImageNet's mean and deviation unless
    ``mean`` and ``std`` are given. Needs the extra ``language`` (transformers).

    Args:
        name: the Hub id, or a folder that ``from_pretrained`` reads.
        revision: branch, tag or commit on the Hub.
        pretrained: off, only the shape is taken, and weights are drawn anew.
    """

    paths: ClassVar[tuple[str, ...]] = ("name", "checkpoint", "labels")

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        pretrained: bool = True,
        pool: Literal["class", "mean"] = "mean",
        token: bool = False,
        head_width: int = 256,
        levels: int = 4,
        proposals: int = 300,
        pool_side: int = 7,
        masks: bool = False,
        checkpoint: str | None = None,
        labels: str | list[str] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        entry: str | None = None,
        strip: str = "",
        check: Check = "on",
    ) -> None:
        # written out: of the settings of its base it has half, and others by default
        super().__init__(
            pool=pool,
            token=token,
            head_width=head_width,
            levels=levels,
            proposals=proposals,
            pool_side=pool_side,
            masks=masks,
            checkpoint=checkpoint,
            labels=labels,
            mean=mean,
            std=std,
            entry=entry,
            strip=strip,
            check=check,
        )
        self.name, self.revision, self.pretrained = name, revision, pretrained
        self.weights = name
        self._channels = 3
        self._state: dict[str, Tensor] | None = None
        self._read = False

    @property
    def prepared(self) -> bool:
        """Whether weights are loaded, and not the shape alone."""
        return self.pretrained

    def channels(self, needs: Needs) -> int:
        """Those of its configuration."""
        return self._channels

    def contract(self, module: nn.Module, task: Task) -> Contract:
        """Colours normalised as ImageNet's; images of another number of channels by the data's statistics."""
        if self._channels == 3:
            return Contract(mean=MEAN, std=STD, channels=3)
        return super().contract(module, task).with_(channels=self._channels)

    def _shape(self, needs: Needs) -> dict[str, Any]:
        self._configure()
        return super()._shape(needs)

    def _configure(self) -> None:
        """Shape and weights, read once.

        Raises:
            ConfigError: transformers cannot read it, it is another model, or it holds no decoder.
        """
        if self._read:
            return
        transformers = transformers_library("masked autoencoders of transformers")
        local = expanded(self.name)
        place = str(local) if local.exists() else self.name
        options = {} if self.revision is None else {"revision": self.revision}
        wanted = Wanted(
            self.name, place, "a masked autoencoder", "ViTMAEForPreTraining", "float32", options, role=self.role
        )
        try:
            config: Any = transformers.AutoConfig.from_pretrained(place, **options)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise wanted.refused(error) from None
        kind = getattr(config, "model_type", "")
        if kind != "vit_mae":
            raise no_decoder(self.setting("name"), self.name, f"it is a {kind or 'model'} and no masked autoencoder")
        self.patch, self.width, self.depth = config.patch_size, config.hidden_size, config.num_hidden_layers
        self.heads, self.ratio = config.num_attention_heads, config.intermediate_size / config.hidden_size
        self.eps, self._channels = config.layer_norm_eps, config.num_channels
        self._decoder(config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads)
        self.decoder_ratio = config.decoder_intermediate_size / config.decoder_hidden_size
        if self.decoder_ratio != self.ratio:
            raise ConfigError(
                self.setting("name"),
                "encoder and decoder have perceptrons of different ratios",
                given=[self.ratio, self.decoder_ratio],
                expected="the same ratio of inner width to width",
            )
        if self.pretrained:
            try:
                module, notes = wanted.load()
            except CheckpointCorrupt as error:
                if "decoder" in str(error):
                    raise no_decoder(self.setting("name"), self.name) from None
                raise
            self._state = renamed(module.state_dict())
            self.notes += notes
        self._read = True

    def _given_weights(self) -> dict[str, Tensor] | None:
        self._configure()
        return self._state


def no_decoder(setting: str, given: str, why: str = "there is no decoder among its weights") -> ConfigError:
    """The refusal of a checkpoint that cannot teach hidden patches."""
    return ConfigError(
        setting,
        why,
        given=given,
        expected="the weights of pre-training, encoder and decoder (as facebook/vit-mae-base)",
        remedy="fine-tuned checkpoints have lost their decoder: name the masked autoencoder that they were tuned from",
    )


def interpolated(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions [1, 1 + L, D] of a square grid for another grid (bicubic), the class token's as it was."""
    side = round((positions.shape[1] - 1) ** 0.5)
    if side * side != positions.shape[1] - 1:
        raise CheckpointCorrupt(
            "pos_embed", "its grid is no square", given=list(positions.shape), expected="1 + side * side positions"
        )
    square = positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    grown = nn.functional.interpolate(square, grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grown.flatten(2).transpose(1, 2)], 1)


_RENAMED = (
    (r"^vit\.embeddings\.cls_token", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^vit\.(?:encoder\.)?layers?\.", "blocks."),
    (r"^vit\.layernorm", "norm"),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"^decoder\.", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.)?(?:q_proj|query)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.)?(?:k_proj|key)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.)?(?:v_proj|value)\.", ".attn.v."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
"""Names of transformers (versions 4 and 5) and what MAE calls the same."""


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' ViTMAE under MAE's names; queries, keys and values side by side.

    Example:
        >>> one = {f"vit.layers.0.attention.{n}_proj.bias": torch.ones(2) for n in "qkv"}
        >>> {k: v.shape for k, v in renamed(one).items()}
        {'blocks.0.attn.qkv.bias': torch.Size([6])}
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, put in _RENAMED:
            name = re.sub(pattern, put, name)
        found[name] = tensor
    for name in [n for n in found if ".attn.q." in n]:
        parts = [found.pop(name.replace(".attn.q.", f".attn.{x}.")) for x in "qkv"]
        found[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return found


def _blocks(state: Mapping[str, Tensor], of: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in state if name.startswith(f"{of}."))


def begin_with(module: VisionTransformer, source: VisionTransformer) -> None:
    """The weights of one encoder put into another of the same shape.

    Raises:
        ConfigError: they have other shapes.
    """
    own = module.state_dict()
    load_strict(module, {k: v for k, v in source.state_dict().items() if k in own}, "the masked autoencoder")


__all__ = ["Vit", "VitMae", "begin_with", "interpolated", "no_decoder", "renamed"]
