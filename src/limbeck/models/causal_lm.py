"""A small causal language model from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from limbeck.grammar.method import Built
from limbeck.grammar.settings import Count, Share, settings
from limbeck.grammar.task import Depth, Model, Task
from limbeck.models.forms import meet
from limbeck.models.pretrained import save_pretrained
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.weights import load_strict
from limbeck.tasks.causal import transformers_library

NAMES = {"model": {"causal-lm": "CausalLm"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class CausalLm(Model):
    """A small decoder of the Llama architecture (transformers), trained from scratch.

    Args:
        layers: number of blocks.
        width: size of the hidden states, a multiple of ``heads``.
        heads: attention heads.
        kv_heads: heads of keys and values (grouped-query attention); ``null`` for as many as ``heads``.
        mlp: size of the gated layer; ``null`` for 8/3 of the width, rounded up to a multiple of 16.
        tied: use the input embedding as output layer.
        dropout: of the attention weights while training.
        checkpoint: weights to load, strictly: safetensors or a torch file without pickled objects, or a folder with them.
        entry: the entry of a training checkpoint that holds them; ``null`` finds it, and says which it took.
        strip: a prefix to take off the names of the weights; those of known wrappers come off by themselves.
    """

    forms = ("tokens",)

    layers: Depth = 2
    width: Count = 64
    heads: Count = 4
    kv_heads: Count | None = None
    mlp: Count | None = None
    tied: bool = True
    dropout: Share = 0.0
    checkpoint: str | None = None
    entry: str | None = None
    strip: str = ""

    def validate(self) -> None:
        """Heads divide the width evenly, and those of keys and values the heads."""
        width, heads = self.width, self.heads
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width must be an even multiple of heads: {width} over {heads} heads does not go")
        if self.kv_heads is not None and heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads ({heads})")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokenizer: Any = None

    def build(self, task: Task) -> Built:
        """The network, with an output for every token of the task's tokenizer."""
        text = meet(self, task).tokens
        assert text is not None
        task.load()
        transformers = transformers_library("language models")
        self.tokenizer = text.tokenizer
        config = transformers.LlamaConfig(
            vocab_size=text.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.mlp or -(-8 * self.width // 48) * 16,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            max_position_embeddings=max(text.length, 512),
            tie_word_embeddings=self.tied,
            attention_dropout=self.dropout,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=None,
        )
        module = transformers.LlamaForCausalLM(config)
        notes = []
        if self.checkpoint is not None:
            path = expanded(self.checkpoint)
            path = path / "student" if (path / "student/model.safetensors").is_file() else path
            found = find_weights(path, module.state_dict(), entry=self.entry, strip=self.strip, role=self.role)
            load_strict(module, found.state, str(path), self.role)
            notes.append(str(found))
        return Built(module, labels=None, model=self, notes=notes)

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """The folder ``student/`` as transformers lays it out; ``from_pretrained`` reads it."""
        save_pretrained(module, self.tokenizer, Path(folder) / "student")
