"""Decoders whose layers differ: other numbers of KV heads, other widths, a linear layer or nothing in a block's place.

Written for decoders of transformers that are laid out as Llama's: each layer adds an attention (``self_attn`` behind
``input_layernorm``), then a gated feed-forward layer (``mlp`` behind ``post_attention_layernorm``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError

Kind = Literal["attention", "ffn"]
Variant = int | Literal["linear", "none"]
"""KV heads or channels; a linear layer; nothing."""

KINDS: tuple[Kind, Kind] = ("attention", "ffn")
NORMS = {"attention": "input_layernorm", "ffn": "post_attention_layernorm"}
CORES = {"attention": "self_attn", "ffn": "mlp"}


class Nothing(nn.Module):
    """A block that adds nothing to the residual stream.

    Args:
        pair: answer as an attention does, with weights (``None``) beside.
    """

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Zero."""
        zero = hidden_states.new_zeros(())
        return (zero, None) if self.pair else zero


class Straight(nn.Module):
    """A linear layer in a block's place: an attention in which each token sees itself alone, a layer without a gate.

    Args:
        width: of the residual stream.
        pair: answer as an attention does.
    """

    def __init__(self, width: int, pair: bool) -> None:
        super().__init__()
        self.pair = pair
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``W x``."""
        out = self.linear(hidden_states)
        return (out, None) if self.pair else out


def layers_of(module: Any) -> nn.ModuleList:
    """The layers of a decoder.

    Raises:
        ConfigError: it is not laid out as Llama's, or not all parts are there.
    """
    layers = getattr(getattr(module, "model", None), "layers", None)
    first = layers[0] if isinstance(layers, nn.ModuleList) and len(layers) else None
    needed = [*NORMS.values(), *CORES.values()]
    attn, mlp = getattr(first, "self_attn", None), getattr(first, "mlp", None)
    parts = [getattr(attn, f"{n}_proj", None) for n in "qkvo"] + [
        getattr(mlp, f"{n}_proj", None) for n in ("gate", "up", "down")
    ]
    if first is None or not all(hasattr(first, n) for n in needed) or not all(type(p) is nn.Linear for p in parts):
        raise ConfigError(
            "student",
            "its layers are not laid out as Llama's (self_attn with q, k, v and o_proj, mlp with gate, up and down_proj)",
            given=type(module).__name__,
            expected="a decoder such as Llama, Mistral, Qwen2, Qwen3 or SmolLM",
            remedy="set student.use=causal-lm, or student=hf:FOLDER of such a model",
        )
    assert isinstance(layers, nn.ModuleList)
    return layers


def sizes_of(layer: Any) -> dict[str, int]:
    """Heads, KV heads, head width, channels and width of a layer as its parent has it."""
    d = int(layer.self_attn.head_dim)
    return {
        "heads": layer.self_attn.q_proj.out_features // d,
        "kv_heads": layer.self_attn.k_proj.out_features // d,
        "head_dim": d,
        "channels": layer.mlp.up_proj.out_features,
        "width": layer.mlp.up_proj.in_features,
    }


def _linear(like: nn.Linear, inputs: int, outputs: int) -> nn.Linear:
    weight = like.weight
    return nn.Linear(inputs, outputs, bias=like.bias is not None, device=weight.device, dtype=weight.dtype)


def block_of(layer: Any, kind: Kind, variant: Variant) -> tuple[nn.Module, nn.Module]:
    """The norm and the core of a block of another size, as copies; what changes its size has new weights.

    Raises:
        ConfigError: KV heads that do not divide the heads, channels below 1.
    """
    pair, size = kind == "attention", sizes_of(layer)
    norm = copy.deepcopy(getattr(layer, NORMS[kind]))
    old = getattr(layer, CORES[kind])
    if variant == "none":
        return nn.Identity(), Nothing(pair)
    if variant == "linear":
        weight = layer.mlp.up_proj.weight
        return norm, Straight(size["width"], pair).to(weight.device, weight.dtype)
    number = int(variant)
    config = getattr(old, "config", None)
    core: Any = copy.deepcopy(old, {} if config is None else {id(config): config})
    if pair:
        if number < 1 or size["heads"] % number:
            raise ConfigError("attention", given=number, expected=f"KV heads that divide {size['heads']} heads")
        if number != size["kv_heads"]:
            for name in ("k_proj", "v_proj"):
                setattr(core, name, _linear(getattr(core, name), size["width"], number * size["head_dim"]))
            core.num_key_value_groups = size["heads"] // number
    else:
        if number < 1:
            raise ConfigError("ffn", given=number, expected="1 or more channels")
        if number != size["channels"]:
            core.gate_proj, core.up_proj = (_linear(p, size["width"], number) for p in (core.gate_proj, core.up_proj))
            core.down_proj = _linear(core.down_proj, number, size["width"])
            if hasattr(core, "intermediate_size"):
                core.intermediate_size = number
    return norm, core


def put(layer: Any, kind: Kind, norm: nn.Module, core: nn.Module) -> None:
    """A block in a layer's place for it."""
    setattr(layer, NORMS[kind], norm)
    setattr(layer, CORES[kind], core)


def renumber(module: Any) -> None:
    """Layers with an attention are numbered through, for a cache of keys and values asks the first one how long it is."""
    at = 0
    for layer in module.model.layers:
        if hasattr(layer.self_attn, "layer_idx"):
            layer.self_attn.layer_idx = at
            at += 1
    if not at:
        module.config.use_cache = False


def assemble(module: Any, layers: Sequence[dict[str, Variant]]) -> None:
    """Give a decoder's layers these blocks, in place; blocks of another size have new weights.

    Raises:
        ConfigError: not as many as the decoder has layers.
    """
    own = layers_of(module)
    if len(layers) != len(own):
        raise ConfigError("layers", given=len(layers), expected=f"a description of each of {len(own)} layers")
    for layer, wanted in zip(own, layers, strict=True):
        made = {kind: block_of(layer, kind, wanted[kind]) for kind in KINDS}
        for kind, (norm, core) in made.items():
            put(layer, kind, norm, core)
    renumber(module)


def padded(module: Any, layers: Sequence[dict[str, Variant]]) -> nn.Module:
    """The same function as an ordinary decoder of the library, every layer as large as the largest one.

    KV heads are repeated, channels filled up with zeros, what adds nothing is an output of zeros, and layers without any
    block are left out.

    Raises:
        ConfigError: a linear block, which no ordinary layer can be.
    """
    if any(v == "linear" for spec in layers for v in spec.values()):
        raise ConfigError("layers", "a linear block cannot be written as an ordinary layer")
    kept = [i for i, spec in enumerate(layers) if set(spec.values()) != {"none"}] or [0]
    heads = [int(layers[i]["attention"]) for i in kept if layers[i]["attention"] != "none"]
    channels = [int(layers[i]["ffn"]) for i in kept if layers[i]["ffn"] != "none"]
    config = copy.deepcopy(module.config)
    config.num_key_value_heads = math.lcm(*heads) if heads else 1
    config.intermediate_size = max(channels, default=1)
    config.num_hidden_layers, config.use_cache = len(kept), True
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[i] for i in kept]
    with torch.random.fork_rng(devices=[]):
        made: Any = type(module)(config)
    made.to(next(module.parameters()).dtype)
    state = {k: v for k, v in module.state_dict().items() if not k.startswith("model.layers.")}
    for new, i in enumerate(kept):
        state |= _padded_layer(module.model.layers[i], layers[i], made.model.layers[new], f"model.layers.{new}.")
    made.load_state_dict(state)
    return made.eval()


def _padded_layer(layer: Any, spec: dict[str, Variant], target: Any, prefix: str) -> dict[str, Tensor]:
    found = {k: torch.zeros_like(v, device="cpu") for k, v in target.state_dict().items()}
    d = int(target.self_attn.head_dim)
    for kind in KINDS:
        if spec[kind] == "none":
            for name, value in found.items():  # norms of nothing: any will do
                if name.startswith(NORMS[kind]) or "_norm" in name:
                    value.fill_(1.0)
            continue
        for name, value in getattr(layer, CORES[kind]).state_dict().items():
            name, own, value = f"{CORES[kind]}.{name}", found[f"{CORES[kind]}.{name}"], value.detach().cpu()
            if name.startswith(("self_attn.k_proj", "self_attn.v_proj")):
                value = value.unflatten(0, (-1, d)).repeat_interleave(len(own) // len(value), 0).flatten(0, 1)
            own[tuple(slice(0, n) for n in value.shape)] = value
        for name, value in getattr(layer, NORMS[kind]).state_dict().items():
            found[f"{NORMS[kind]}.{name}"].copy_(value)
    return {prefix + k: v for k, v in found.items()}


def per_layer_config(config: Any, layers: Sequence[dict[str, Variant]]) -> dict[str, dict[str, Any]] | None:
    """What differs from layer to layer as transformers writes it down; ``None`` where it has no words for it (linear blocks)."""
    found: dict[str, dict[str, Any]] = {}
    for i, spec in enumerate(layers):
        if "linear" in spec.values():
            return None
        own: dict[str, Any] = {}
        if spec["attention"] != "none":
            own["num_key_value_heads"] = int(spec["attention"])
        if spec["ffn"] != "none":
            own["intermediate_size"] = int(spec["ffn"])
        skip = [name for name, kind in (("attention", "attention"), ("mlp", "ffn")) if spec[kind] == "none"]
        found[str(i)] = own | ({"skip": skip} if skip else {})
    return found


__all__ = [
    "KINDS",
    "Kind",
    "Nothing",
    "Straight",
    "Variant",
    "assemble",
    "block_of",
    "layers_of",
    "padded",
    "per_layer_config",
    "put",
    "renumber",
    "sizes_of",
]
