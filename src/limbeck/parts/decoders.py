"""Decoders taken apart layer by layer: what goes into each block of a parent, variants of its blocks, what they cost.

`watching` shows a frozen parent's layers in one pass; `LayerLibrary` holds a layer's variants; `block_costs` tells what a block
takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.functional.blocks import (
    AttentionWeights,
    KvInit,
    init_ffn,
    init_kv,
    kept_channels,
    linear_attention,
    linear_ffn,
)
from limbeck.networks.decoder_blocks import (
    CORES,
    KINDS,
    NORMS,
    Kind,
    Nothing,
    Variant,
    block_of,
    layers_of,
    sizes_of,
)

Spec = dict[str, Variant]


@dataclass
class Seen:
    """What one pass showed of each layer.

    Attributes:
        inputs, outputs: of the layer ``[N, T, H]``.
        middle: between attention and feed-forward layer ``[N, T, H]``.
        given: what else the layer was called with (positions, mask).
        channels: what goes into the down-projection ``[N, T, I]``; kept where it is asked for.
        heads: what goes into the output projection ``[N, T, heads d]``; likewise.
    """

    inputs: list[Tensor] = field(default_factory=list)
    middle: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    given: list[dict[str, Any]] = field(default_factory=list)
    channels: list[Tensor] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)


@contextmanager
def watching(module: Any, inside: bool = False) -> Iterator[Seen]:
    """Hooks on a decoder's layers while it runs once.

    Args:
        module: the decoder.
        inside: keep what goes into the last projections too.
    """
    seen, hooks = Seen(), []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.inputs.append(args[0].detach() if args else kwargs["hidden_states"].detach())
        seen.given.append({k: v for k, v in kwargs.items() if k != "hidden_states"})

    def after(_: nn.Module, args: Any, out: Any) -> None:
        seen.outputs.append((out[0] if isinstance(out, tuple) else out).detach())

    def keep(where: list[Tensor]) -> Any:
        return lambda _, args: where.append(args[0].detach())

    for layer in module.model.layers:
        hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(layer.register_forward_hook(after))
        hooks.append(layer.post_attention_layernorm.register_forward_pre_hook(keep(seen.middle)))
        if inside:
            hooks.append(layer.mlp.down_proj.register_forward_pre_hook(keep(seen.channels)))
            hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(keep(seen.heads)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def attend(norm: nn.Module, core: nn.Module, h: Tensor, given: Mapping[str, Any]) -> Tensor:
    """The residual stream behind an attention."""
    return h + core(norm(h), **given)[0]


def feed(norm: nn.Module, core: nn.Module, h: Tensor) -> Tensor:
    """The residual stream behind a feed-forward layer."""
    return h + core(norm(h))


def onwards(module: Any, layer: int, h: Tensor, given: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """From the output of a layer to the last hidden states and the logits, through the layers behind it."""
    for i in range(layer + 1, len(module.model.layers)):
        h = module.model.layers[i](h, **given[i])
    h = module.model.norm(h)
    return h, module.lm_head(h)


class LayerLibrary(nn.Module):
    """What can stand in one layer's place and has weights of its own: single blocks or pairs of them, each with its norm.

    Args:
        layer: the parent's.
        specs: attention and feed-forward layer of each entry; blocks that are the parent's own or nothing have no weights here.
    """

    def __init__(self, layer: Any, specs: Sequence[Spec]) -> None:
        super().__init__()
        self.own = own_of(layer)
        self.specs = [dict(spec) for spec in specs]
        self.entries = nn.ModuleList()
        for spec in self.specs:
            blocks = {kind: block_of(layer, kind, spec[kind]) for kind in self.kinds(spec)}
            self.entries.append(
                nn.ModuleDict({k: nn.ModuleDict({"norm": n, "core": c}) for k, (n, c) in blocks.items()})
            )
        self.requires_grad_(True)

    def kinds(self, spec: Spec) -> list[Kind]:
        """Which blocks of a layer have weights of their own."""
        return [kind for kind in KINDS if spec[kind] not in (self.own[kind], "none")]

    def get(self, spec: Spec) -> dict[Kind, tuple[nn.Module, nn.Module]]:
        """Norm and core of a layer's own blocks: those of its entry, or of the entries that have one of its blocks alone."""
        found: dict[Kind, tuple[nn.Module, nn.Module]] = {}
        wanted = (
            [dict(spec)] if dict(spec) in self.specs else [{**self.own, kind: spec[kind]} for kind in self.kinds(spec)]
        )
        for one in wanted:
            entry: Any = self.entries[self.specs.index(one)]
            found |= {kind: (entry[kind]["norm"], entry[kind]["core"]) for kind in KINDS if kind in entry}
        return found

    def forward(self, layer: Any, h: Tensor, middle: Tensor, given: Mapping[str, Any]) -> Tensor:
        """The layer's output with each entry in its place ``[V, N, T, H]``.

        Args:
            layer: the parent's layer, which stands still.
            h: its input ``[N, T, H]``.
            middle: behind its attention ``[N, T, H]``.
            given: what else it was called with.
        """
        found = []
        for spec in self.specs:
            block = whole(layer, spec, self.get(spec))
            attention = spec["attention"] == self.own["attention"]
            found.append(feed(*block["ffn"], middle if attention else attend(*block["attention"], h, given)))
        return torch.stack(found)


def own_of(layer: Any) -> Spec:
    """The parent's own blocks: KV heads and channels."""
    size = sizes_of(layer)
    return {"attention": size["kv_heads"], "ffn": size["channels"]}


def whole(
    layer: Any, spec: Spec, own: Mapping[Kind, tuple[nn.Module, nn.Module]]
) -> dict[Kind, tuple[nn.Module, nn.Module]]:
    """Norm and core of both blocks: ``own``, nothing, or the parent's."""
    return {
        kind: (nn.Identity(), Nothing(kind == "attention"))
        if spec[kind] == "none"
        else own.get(kind) or (getattr(layer, NORMS[kind]), getattr(layer, CORES[kind]))
        for kind in KINDS
    }


@torch.no_grad()
def begin_block(
    layer: Any,
    kind: Kind,
    variant: Variant,
    block: tuple[nn.Module, nn.Module],
    channels: Tensor,
    heads: Tensor,
    kv_init: KvInit = "average",
    scale: bool = False,
) -> None:
    """A variant's first weights, from the parent's block.

    Args:
        layer: the parent's.
        kind, variant: which.
        block: its norm and core.
        channels: importance of the parent's channels ``[I]``.
        heads: importance of its KV heads.
        kv_init: see `limbeck.functional.blocks.init_kv`.
        scale: see `limbeck.functional.blocks.init_ffn`.
    """
    norm, core = block
    norm.load_state_dict(getattr(layer, NORMS[kind]).state_dict())
    old, new, size = getattr(layer, CORES[kind]), core, sizes_of(layer)
    own: Any = new
    if variant == "linear":
        weight = (
            linear_attention(old.v_proj.weight, old.o_proj.weight, head_dim=size["head_dim"])
            if kind == "attention"
            else linear_ffn(old.up_proj.weight, old.down_proj.weight)
        )
        own.linear.weight.copy_(weight)
    elif kind == "ffn":
        width = int(variant)
        up, down, gate = init_ffn(
            old.up_proj.weight, old.down_proj.weight, channels, width, gate=old.gate_proj.weight, scale=scale
        )
        assert gate is not None
        for name, value in (("up_proj", up), ("down_proj", down), ("gate_proj", gate)):
            getattr(own, name).weight.copy_(value)
        for name in ("up_proj", "gate_proj"):
            if getattr(old, name).bias is not None:
                getattr(own, name).bias.copy_(getattr(old, name).bias[kept_channels(channels, width)])
        if old.down_proj.bias is not None:
            own.down_proj.bias.copy_(old.down_proj.bias)
    else:
        projections = [getattr(old, f"{n}_proj") for n in "qkvo"]
        same = {k: v for k, v in old.state_dict().items() if not k.startswith(("k_proj", "v_proj"))}
        own.load_state_dict(same, strict=False)
        d, kv = size["head_dim"], int(variant)
        more: Any = {"head_dim": d, "how": kv_init, "importance": heads}
        made = init_kv(
            AttentionWeights(old.q_proj.weight, old.k_proj.weight, old.v_proj.weight, old.o_proj.weight), kv, **more
        )
        for p, value in zip("qkvo", made, strict=True):
            getattr(own, f"{p}_proj").weight.copy_(value)
        if projections[0].bias is not None:
            columns = [p.bias[:, None] for p in projections[:3]]
            biased = init_kv(AttentionWeights(columns[0], columns[1], columns[2], old.o_proj.weight), kv, **more)
            for p, value in zip("qkv", biased, strict=False):
                getattr(own, f"{p}_proj").bias.copy_(value[:, 0])


# ------------------------------------------------------------------------------------------------------------------ costs
@dataclass
class Scenario:
    """What a model is to be used for.

    Attributes:
        batch: sequences at once.
        length: tokens of each, prompt and answer.
        bytes: of one number, of weights and of the cache.
    """

    batch: int = 1
    length: int = 512
    bytes: int = 4


def block_costs(layer: Any, kind: Kind, variant: Variant, scenario: Scenario) -> dict[str, float]:
    """Parameters, and bytes of weights and of the cache of keys and values; nothing costs nothing."""
    if variant == "none":
        return {"parameters": 0.0, "memory": 0.0}
    norm, core = block_of(layer, kind, variant)
    parameters = float(sum(p.numel() for m in (norm, core) for p in m.parameters()))
    cache = 0.0
    if kind == "attention" and variant != "linear":
        cache = 2.0 * int(variant) * sizes_of(layer)["head_dim"] * scenario.length * scenario.batch
    return {"parameters": parameters, "memory": scenario.bytes * (parameters + cache)}


@torch.no_grad()
def block_ms(run: Any, h: Tensor, repeats: int = 9) -> float:
    """Median milliseconds of a block on hidden states ``[N, T, H]``, after two that do not count."""
    times = []
    for i in range(repeats + 2):
        begin = _now(h.device)
        run(h)
        if i > 1:
            times.append(1e3 * (_now(h.device) - begin))
    return median(times)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def drawn_blocks(layers: Sequence[Spec], own: Spec) -> list[list[list[int]]]:
    """Bars ``[3][H][W]``, whole numbers 0 to 255: each layer's blocks by their share of the parent's ``own``."""
    high, wide = 6, 40
    image = np.full((3, high * len(layers) + 1, 2 * wide + 3), 255, dtype=np.int64)
    colours = {"attention": (31, 119, 180), "ffn": (255, 127, 14), "linear": (150, 150, 150)}
    for i, spec in enumerate(layers):
        for side, kind in enumerate(KINDS):
            v = spec[kind]
            if v == "none":
                continue
            share = 1 / 8 if v == "linear" else int(v) / int(own[kind])
            left = 1 + side * (wide + 1)
            colour = colours["linear" if v == "linear" else kind]
            span = image[:, 1 + high * i : high * (i + 1), left : left + max(1, round(share * wide))]
            span[:] = np.array(colour)[:, None, None]
    return image.tolist()


__all__ = [
    "LayerLibrary",
    "Scenario",
    "Seen",
    "Spec",
    "attend",
    "begin_block",
    "block_costs",
    "block_ms",
    "drawn_blocks",
    "feed",
    "layers_of",
    "onwards",
    "own_of",
    "watching",
    "whole",
]
