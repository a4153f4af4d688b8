"""The frozen text encoder of a text-to-image pipeline, which prompts and class names go through once."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from limbeck.errors import require


def encode_prompts(where: Path, texts: list[str]) -> Tensor:
    """Hidden states [K, L, D] of a pipeline's own frozen text encoder."""
    transformers = require("transformers", "diffusion", "a pipeline's text encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(where / "tokenizer"), trust_remote_code=False)
    encoder = transformers.CLIPTextModel.from_pretrained(str(where / "text_encoder"), use_safetensors=True).eval()
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        states: Tensor = encoder(tokens.input_ids).last_hidden_state
    return states.float()
