"""Sentence embedders: what all have in common, and a small one from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from limbeck.errors import ConfigError
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, Share, settings
from limbeck.grammar.task import Depth, Model, Task
from limbeck.models.forms import meet
from limbeck.models.pretrained import Wanted, quiet
from limbeck.models.st_folder import UNPOOLED, Layout, read_layout, write_folder
from limbeck.networks.embedder import DenseLayer, Embedder, Pool
from limbeck.tasks.causal import transformers_library
from limbeck.tasks.tokenized import positions_of
from limbeck.tasks.tokenizers import load_tokenizer, pad_id, word_tokenizer

NAMES = {"model": {"embedder": "SmallEmbedder"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class EmbeddingModel(Model):
    """Base of the embedders of the task ``embedding``: each reads texts by a tokenizer of its own.

    A student is saved as a folder of sentence-transformers, ``student/``.
    """

    forms = ("vector",)
    takes = ("tokens",)
    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.read_by: Any = None
        self.layout = Layout(Path())
        self.own_length = 0

    def text_of(self, task: Task) -> Any:
        """The task's texts, its data read, where networks read them for themselves (``reading``).

        Raises:
            ConfigError: it is another.
        """
        needs: Needs = meet(self, task)
        if not hasattr(needs.tokens, "reading"):
            raise ConfigError(
                "model",
                f"{type(self).__name__} makes vectors of texts",
                given=type(task).__name__,
                expected="task=embedding",
            )
        task.load()
        return needs.tokens

    def tokenizer_of(self, name: str | None, text: Any) -> Any:
        """A named tokenizer; ``trained`` is one of the task's size that is trained on its texts, ``None`` the task's."""
        if name is None:
            return text.tokenizer
        return word_tokenizer(text.sample(), text.vocab_size) if name == "trained" else load_tokenizer(name)

    def reading(self, module: Embedder, text: Any, tokenizer: Any, positions: int | None) -> Embedder:
        """Have the task read texts for the network: by this tokenizer, in rows of at most so many tokens."""
        asked = [n for n in (self.layout.length, positions, text.length) if n]
        self.read_by, self.own_length = tokenizer, min(asked)
        module.reads = text.reading(tokenizer, self.own_length, self.layout.lower, self.layout.prompt)
        self.layout.similarity = text.similarity
        return module

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """``student/``, a folder of sentence-transformers."""
        assert isinstance(module, Embedder)
        said = self.layout
        with quiet():
            write_folder(
                module,
                self.read_by,
                Path(folder) / "student",
                self.own_length,
                said.similarity,
                said.lower,
                said.prompt,
            )

    def from_folder(self, folder: Path, task: Task) -> Built:
        """The network that `save` left."""
        text = self.text_of(task)
        self.layout = read_layout(folder, self.role)
        module, tokenizer, notes = opened(self.layout, str(folder), self.role)
        self.reading(module, text, tokenizer, positions_of(module.body.config))
        module.eval()
        return Built(module, Contract(), None, self, notes)


def opened(layout: Layout, name: str, role: str, pretrained: bool = True) -> tuple[Embedder, Any, list[str]]:
    """The network of a folder, its tokenizer, and what is to be told of it.

    Args:
        layout: what the folder says.
        name: as the user wrote it, for messages.
        role: who it is to be.
        pretrained: off, its weights are drawn anew.

    Raises:
        ConfigError: transformers cannot load it.
        CheckpointCorrupt, ShapeError: weights are missing, unexpected or of another shape.
    """
    transformers = transformers_library("sentence embedders")
    place = str(layout.body)
    wanted = Wanted(name, place, "an encoder of text", "AutoModel", "float32", {"trust_remote_code": False}, role=role)
    try:
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise wanted.refused(error) from None
    more = {"add_pooling_layer": False} if config.model_type in UNPOOLED else {}
    body: Any
    if pretrained:
        wanted.head = {"pooler.dense.weight", "pooler.dense.bias"} if more else ()
        body, notes = wanted.load(**more)
    else:
        body, notes = transformers.AutoModel.from_config(config, **more), []
    tokenizer = load_tokenizer(place)
    return Embedder(body, layout.pooling, layout.dense, layout.normalise), tokenizer, [*notes, *layout.notes]


@settings
class SmallEmbedder(EmbeddingModel):
    """A small sentence embedder of BERT's architecture (transformers), from scratch.

    Args:
        layers: number of blocks.
        width: size of the hidden states, a multiple of ``heads``.
        heads: attention heads.
        mlp: size of the inner layer; ``null`` for four times the width.
        dropout: of hidden states and attention while training.
        pooling: what is made of the token vectors: ``mean``, ``cls``, ``max``, ``lasttoken``, ``weightedmean`` or
            ``mean_sqrt_len_tokens``.
        dimensions: of its vectors, by a dense layer behind the pooling; ``null``: the width, without that layer.
        normalise: bring vectors to length one.
        tokenizer: a Hub id or local folder; ``trained``: one is trained on the texts; ``null``: the task's.
    """

    layers: Depth = 2
    width: Count = 64
    heads: Count = 4
    mlp: Count | None = None
    dropout: Share = 0.0
    pooling: Pool = "mean"
    dimensions: Count | None = None
    normalise: bool = True
    tokenizer: str | None = None

    def validate(self) -> None:
        """Each head has as much of the width."""
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads: {self.width} over {self.heads} heads does not go")

    def build(self, task: Task) -> Built:
        """The network, with an embedding for every token of its tokenizer."""
        text = self.text_of(task)
        transformers = transformers_library("sentence embedders")
        tokenizer = self.tokenizer_of(self.tokenizer, text)
        config = transformers.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp or 4 * self.width,
            max_position_embeddings=max(text.length, 128),
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            pad_token_id=pad_id(tokenizer),
        )
        body = transformers.BertModel(config, add_pooling_layer=False)
        dense = [] if self.dimensions is None else [DenseLayer(self.width, self.dimensions)]
        module = Embedder(body, (self.pooling,), dense, self.normalise)
        self.layout = Layout(Path(), module.pooling, dense, self.normalise)
        return Built(self.reading(module, text, tokenizer, None), Contract(), None, self, [])


__all__ = ["EmbeddingModel", "SmallEmbedder", "opened"]
