"""A sentence-transformers folder as it is, or as the beginning of a smaller student: fewer layers, fewer dimensions, another
tokenizer."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from limbeck.errors import ConfigError, first_line, require
from limbeck.grammar.method import Built
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, Natural, Share, settings
from limbeck.grammar.task import Depth, Task
from limbeck.models.embedder import EmbeddingModel, opened
from limbeck.models.st_folder import read_layout
from limbeck.networks.embedder import DenseLayer
from limbeck.storage.disk import expanded
from limbeck.storage.plain import check_folder
from limbeck.tasks.tokenized import positions_of
from limbeck.tasks.tokenizers import pad_id

NAMES = {"model": {"st": "SentenceTransformer"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class SentenceTransformer(EmbeddingModel):
    """A sentence-transformers model: a local folder, a run's folder, or a Hub id. The library itself is not needed.

    Args:
        name: the folder or Hub id.
        layers: begin with so many of its layers, spread evenly and ending with its last; ``null``: all.
        keep: which layers, counted from 0, in place of a number.
        dimensions: of its vectors, by a new dense layer at the end that is still to be trained; ``null``: its own.
        tokenizer: another one for it: a Hub id or local folder, or ``trained`` on the texts. Each new token begins with the
            mean of the vectors that spell it in the folder's own; ``null``: its own.
        dropout: of hidden states and attention while training; ``null``: as the folder says.
        pretrained: off, only the architecture is taken and the weights are drawn anew.
    """

    paths: ClassVar[tuple[str, ...]] = ("name", "tokenizer")

    name: str
    _: KW_ONLY
    layers: Depth | None = None
    keep: list[Natural] | None = None
    dimensions: Count | None = None
    tokenizer: str | None = None
    dropout: Share | None = None
    pretrained: bool = True

    def validate(self) -> None:
        """Layers are told once."""
        if self.layers is not None and self.keep is not None:
            raise ValueError("keep names the layers: leave out layers, or keep")
        if self.keep is not None and sorted(set(self.keep)) != self.keep:
            raise ValueError("keep must name layers in ascending order, each once")

    @property
    def trained(self) -> bool:
        """As a whole it is ready; a part of it is still to learn."""
        new = (self.layers, self.keep, self.dimensions, self.tokenizer)
        return self.pretrained and all(x is None for x in new)

    @property
    def brings_tokenizer(self) -> bool:
        """Its own is the task's, where nothing else is named: a student from scratch reads texts by it."""
        return self.tokenizer is None

    def build(self, task: Task) -> Built:
        """The network.

        Raises:
            ConfigError: no such folder, a part that is not known here, more layers than it has.
            CheckpointCorrupt, ShapeError: weights are missing, unexpected or of another shape.
        """
        text = self.text_of(task)
        place = self._place()
        self.layout = read_layout(place, self.role)
        module, own, notes = opened(self.layout, self.name, self.role, self.pretrained)
        if self.layout.similarity not in ("cosine", text.similarity):
            notes.append(f"it names the similarity {self.layout.similarity}, and is compared by {text.similarity} here")
        config: Any = module.body.config
        kept = self._kept(int(config.num_hidden_layers))
        if kept is not None:
            cut_layers(module.body, kept, self.setting("layers"))
            notes.append(f"begins with its layers {', '.join(map(str, kept))} of {self._depth}")
        tokenizer = own
        if self.tokenizer is not None:
            tokenizer = self.tokenizer_of(self.tokenizer, text)
            exact = take_tokenizer(module.body, own, tokenizer, self.pretrained)
            notes.append(
                f"reads by another tokenizer, of {len(tokenizer)} tokens; {exact} of them are its own tokens too"
            )
        else:
            text.adopt(own, f"st:{self.name}")
        if self.dropout is not None:
            for part in module.body.modules():
                if isinstance(part, nn.Dropout):
                    part.p = self.dropout
        if self.dimensions is not None:
            module.dense.append(DenseLayer(module.dimensions, self.dimensions))
            notes.append(f"a new layer of {self.dimensions} outputs is put on it; it is still to be trained")
        return Built(self.reading(module, text, tokenizer, positions_of(config)), Contract(), None, self, notes)

    def _place(self) -> Path:
        folder = expanded(self.name)
        inside = folder / "student"
        if inside.is_dir() and not (folder / "config.json").is_file():
            folder = inside
        if folder.is_dir():
            check_folder(folder, "name")
            return folder
        hub = require("huggingface_hub", "language", "models of the Hugging Face Hub")
        try:
            if self.name.startswith(("/", ".", "~")) or self.name.count("/") > 1:
                raise OSError("there is no such folder")
            found = hub.snapshot_download(self.name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"])
        except (OSError, ValueError) as error:
            raise ConfigError(
                self.setting("name"),
                f"it cannot be opened: {first_line(error)}",
                given=self.name,
                expected="a folder of sentence-transformers (with modules.json), or a Hub id",
            ) from None
        return Path(found)

    def _kept(self, depth: int) -> list[int] | None:
        self._depth = depth
        if self.layers is None and self.keep is None:
            return None
        kept = self.keep if self.keep is not None else spread(min(self.layers or 1, depth), depth)
        if (self.layers or 0) > depth or not kept or kept[-1] >= depth:
            raise ConfigError(
                self.setting("layers" if self.keep is None else "keep"),
                given=self.layers if self.keep is None else self.keep,
                expected=f"of the {depth} layers of {self.name}"
                + (", at most as many" if self.keep is None else f", numbers from 0 to {depth - 1}"),
            )
        return kept


def spread(count: int, depth: int) -> list[int]:
    """So many of the layers, evenly, with the last one at the end.

    Example:
        >>> spread(3, 6), spread(4, 12)
        ([1, 3, 5], [2, 5, 8, 11])
    """
    return [(i + 1) * depth // count - 1 for i in range(count)]


def cut_layers(body: nn.Module, kept: list[int], setting: str = "layers") -> None:
    """Keep some layers of a transformers encoder, in place; its configuration follows.

    Raises:
        ConfigError: they do not lie in one list.
    """
    config: Any = body.config
    depth = int(config.num_hidden_layers)
    lists = [
        (module, name)
        for module in body.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(lists) != 1:
        raise ConfigError(setting, f"the layers of {type(body).__name__} cannot be told", expected="one list of them")
    module, name = lists[0]
    setattr(module, name, nn.ModuleList([getattr(module, name)[i] for i in kept]))
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    config.num_hidden_layers = len(kept)


@torch.no_grad()
def take_tokenizer(body: Any, own: Any, other: Any, pretrained: bool = True) -> int:
    """An encoder's embedding for another tokenizer's ids, in place: each new token begins with the mean of the vectors of the
    old tokens that spell it, marks with those of the same part (padding, beginning, end).

    Args:
        body: the transformers encoder.
        own, other: the tokenizers.
        pretrained: whether its embedding is worth anything.

    Returns:
        How many new tokens are spelt by one old token.
    """
    old = body.get_input_embeddings()
    new = nn.Embedding(len(other), old.embedding_dim, padding_idx=pad_id(other))
    new.to(old.weight.device, old.weight.dtype)
    exact = 0
    if pretrained:
        marks = {getattr(other, f"{n}_token_id"): getattr(own, f"{n}_token_id") for n in MARKS}
        texts = other.batch_decode([[i] for i in range(len(other))], skip_special_tokens=False)
        spelt = own([t if t.strip() else "\u00a0" for t in texts], add_special_tokens=False, verbose=False)["input_ids"]
        middle = old.weight.mean(0)
        for i, ids in enumerate(spelt):
            mark = marks.get(i)
            ids = ids if mark is None else [mark]
            exact += len(ids) == 1
            new.weight[i] = old.weight[ids].mean(0) if ids else middle
    else:
        new.weight.normal_(std=float(getattr(body.config, "initializer_range", 0.02)))
    body.set_input_embeddings(new)
    body.config.vocab_size, body.config.pad_token_id = len(other), pad_id(other)
    return exact


MARKS = ("pad", "cls", "sep", "unk", "mask", "bos", "eos")
"""Tokens with a part to play, by their names in transformers."""

__all__ = ["SentenceTransformer", "cut_layers", "spread", "take_tokenizer"]
