"""Queries, keys and values as they are tapped give the attention maps that the libraries themselves return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from limbeck.errors import ConfigError, ShapeError
from limbeck.parts.attention import Qkv, attention_map, projections, qkv

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
DECODER = {**SMALL, "num_key_value_heads": 2}
GPT = {"vocab_size": 50, "n_embd": 24, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
CONFIGS: dict[str, Any] = {
    "bert": lambda t: t.BertConfig(**SMALL),
    "roberta": lambda t: t.RobertaConfig(**SMALL),
    "distilbert": lambda t: t.DistilBertConfig(vocab_size=50, dim=24, n_layers=3, n_heads=4, hidden_dim=48),
    "gpt2": lambda t: t.GPT2Config(**GPT),
    "llama": lambda t: t.LlamaConfig(**DECODER),
    "qwen3": lambda t: t.Qwen3Config(**DECODER, head_dim=6),
}


def made(name: str, attention: str = "eager") -> nn.Module:
    torch.manual_seed(0)
    config = CONFIGS[name](transformers)
    config._attn_implementation = attention
    model: nn.Module = transformers.AutoModel.from_config(config).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.4) if p.ndim > 1 else None
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_maps_are_the_librarys_own(name: str) -> None:
    model = made(name)
    ids = torch.randint(2, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
        for layer in (0, -1):
            found = attention_map(model, layer, input_ids=ids, attention_mask=mask)
            for item, length in enumerate((7, 5)):
                torch.testing.assert_close(
                    found[item, :, :length, :length], own[layer][item, :, :length, :length], atol=1e-5, rtol=1e-4
                )
        fused = made(name, "sdpa")  # hands out no maps, and is read all the same
        again = attention_map(fused, -1, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(again, found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", [False, True])
def test_maps_of_timms_vit(norm: bool) -> None:
    timm = pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 3}
    vit = VisionTransformer(**size, qk_norm=norm).eval()
    timm.layers.set_fused_attn(False)
    attention = vit.blocks[1].attn
    attention.fused_attn = False
    seen: list[torch.Tensor] = []
    attention.attn_drop.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        found = attention_map(vit, -1, x)
    torch.testing.assert_close(found, seen[0], atol=1e-5, rtol=1e-4)


def test_where_projections_lie() -> None:
    model = made("llama")
    found = projections(model, -1)
    assert (found.layer, found.depth, found.heads, found.groups, found.width) == (2, 3, 4, 2, 24)
    assert found.block == "layers.2" and found.causal and found.rotary == "rotary_emb"
    assert projections(made("bert"), 1).block == "encoder.layer.1"
    shown = qkv(model, 0, input_ids=torch.arange(6).view(1, 6))
    assert [x.shape for x in shown] == [(1, 4, 6, 6)] * 3
    assert shown.joined(3).q.shape == (1, 3, 6, 8) and shown.joined(0) is shown
    assert torch.equal(shown.joined(4).k, shown.k)
    with pytest.raises(ShapeError):
        shown.joined(5)
    assert shown.pair("qk")[1] is shown.k
    assert isinstance(shown, Qkv)


def test_what_shows_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 layers"):
        projections(made("bert"), 3)
    with pytest.raises(ConfigError, match="inside one function"):
        projections(nn.TransformerEncoderLayer(8, 2), 0)
    with pytest.raises(ConfigError, match="no module holds projections"):
        projections(nn.Linear(2, 2), 0)


def test_attention_to_another_sequence_is_no_layer() -> None:
    config = transformers.BertConfig(**SMALL, is_decoder=True, add_cross_attention=True)
    model = transformers.BertModel(config)
    found = projections(model, -1)
    assert found.depth == 3 and "cross" not in found.path and found.causal
