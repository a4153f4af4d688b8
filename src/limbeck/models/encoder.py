"""A small Transformer encoder from scratch, in BERT's architecture: for text classes and for masked words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from torch import nn

from limbeck.grammar.method import Built
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, Share, settings
from limbeck.grammar.task import Check, Depth, Model, Task
from limbeck.models.adapting import adapt
from limbeck.models.forms import meet
from limbeck.models.pretrained import name_outputs, save_pretrained
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.weights import load_strict
from limbeck.tasks.causal import transformers_library
from limbeck.tasks.tokenizers import pad_id

NAMES = {"model": {"encoder": "Encoder"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class Encoder(Model):
    """A small encoder of BERT's architecture (transformers), from scratch.

    With ``task=masked-words`` it has a head for words (its weights are those of the embedding), with ``task=text-classes``
    one for classes. What is saved is an ordinary transformers folder.

    Args:
        layers: number of blocks.
        width: size of the hidden states, a multiple of ``heads``.
        heads: attention heads.
        mlp: size of the inner layer; ``null`` for four times the width.
        dropout: of hidden states and attention while training.
        positions: how many tokens it has positions for; ``null`` for the task's length.
        checkpoint: weights of body and head to load, strictly: a file, or a folder with them.
        labels: the checkpoint's class names in its order.
        check: try a ready teacher on labelled items before anything is trained.
    """

    paths: ClassVar[tuple[str, ...]] = ("checkpoint",)
    rehearsed = True
    forms = ("classes", "hidden-tokens")
    takes = ("tokens",)

    layers: Depth = 2
    width: Count = 48
    heads: Count = 4
    mlp: Count | None = None
    dropout: Share = 0.1
    positions: Annotated[int, Ge(4)] | None = None
    checkpoint: str | None = None
    labels: list[str] | None = None
    check: Check = "on"

    def validate(self) -> None:
        """Each head has as much of the width."""
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads: {self.width} over {self.heads} heads does not go")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokenizer: Any = None
        self.target = "label"

    def build(self, task: Task) -> Built:
        """The network, with an embedding for every token of the task's tokenizer."""
        needs = meet(self, task)
        text = needs.tokens
        assert text is not None
        transformers = transformers_library("encoders")
        task.load()
        self.tokenizer, self.target = text.tokenizer, needs.target
        if self.positions is not None:
            text.limit(self.positions, "the encoder")
        config = transformers.BertConfig(
            vocab_size=text.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp or 4 * self.width,
            max_position_embeddings=self.positions or max(text.length, 128),
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            pad_token_id=pad_id(self.tokenizer),
        )
        kind = "BertForMaskedLM"
        if needs.form == "classes":
            kind, config.num_labels = "BertForSequenceClassification", needs.outputs
        module = getattr(transformers, kind)(config)
        notes = []
        if self.checkpoint is not None:
            path = expanded(self.checkpoint)
            path = path / "student" if (path / "student/model.safetensors").is_file() else path
            found = find_weights(path, module.state_dict(), role=self.role)
            load_strict(module, found.state, str(path), self.role)
            notes.append(str(found))
        built = Built(module, Contract(), self.labels, self, notes)
        if needs.form == "classes":
            adapt(built, needs, needs.outputs, {}, type(self).__name__)
            task.rehearse(built)
        return built

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """The folder ``student/`` as transformers lays it out; ``AutoModel.from_pretrained`` reads it."""
        name_outputs(module.config, labels, self.target)
        save_pretrained(module, self.tokenizer, Path(folder) / "student")
