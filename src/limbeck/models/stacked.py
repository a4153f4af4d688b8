"""Language models pooled for classes, and a translation encoder stacked under one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from limbeck.errors import ConfigError, LimbeckError
from limbeck.functional.pooling import Pooling
from limbeck.grammar.component import Settings
from limbeck.grammar.method import Built
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.task import Depth, Model, Task
from limbeck.models.adapting import adapt
from limbeck.models.forms import meet
from limbeck.networks.lora import Lora
from limbeck.networks.stacked import PooledLm, StackedEncoder
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.store import save_state_dict
from limbeck.storage.weights import load_strict
from limbeck.tasks.causal import transformers_library
from limbeck.tasks.tokenized import positions_of
from limbeck.tasks.tokenizers import load_tokenizer, pad_id

NAMES = {"model": {"pooled-lm": "PooledLmModel", "stacked": "Stacked"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class Lm(Settings):
    """A language model: a small decoder of the Llama architecture (transformers) from scratch, or a folder's.

    Args:
        path: a Hub id or local folder of a transformers model; ``null`` for one from scratch.
        layers, width, heads: of one from scratch.
        bidirectional: let every token see all others (LLM2Vec's way); off is causal.
        pooling: a text's vector: the ``mean`` of its tokens' last states, the ``first`` or the ``last``.
    """

    path: str | None = None
    layers: Depth = 2
    width: Count = 64
    heads: Count = 4
    bidirectional: bool = True
    pooling: Pooling = "mean"

    def validate(self) -> None:
        """Heads divide the width evenly."""
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"width must be an even multiple of heads: {self.width} over {self.heads} heads does not go"
            )


@settings
class Front(Settings):
    """A translation encoder: a small encoder of the M2M-100 architecture (transformers), or that of a folder (NLLB).

    Args:
        path: a Hub id or local folder of a translation model; ``null`` for one from scratch, which a method trains.
        layers, width, heads: of one from scratch.
    """

    path: str | None = None
    layers: Depth = 2
    width: Count = 64
    heads: Count = 4

    def validate(self) -> None:
        """Each head has as much of the width."""
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads: {self.width} over {self.heads} heads does not go")


def _loaded(path: str, role: str) -> tuple[Any, Any]:
    transformers = transformers_library("language models")
    if path.startswith(("/", "./", "../", "~")) and not Path(path).is_dir():  # else it is taken for a Hub id
        raise ConfigError(
            f"{role}.path", "there is no such folder", given=path,
            expected="a folder with config.json and safetensors, or a Hub id",
        )  # fmt: skip
    try:
        made = transformers.AutoModel.from_pretrained(path, trust_remote_code=False, use_safetensors=True)
        return made, load_tokenizer(path)
    except LimbeckError as error:
        error.argument = f"{role}.path"
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{role}.path", f"is no model of transformers: {str(error).splitlines()[0]}", given=path,
            expected="a folder with config.json and safetensors, or a Hub id",
        ) from None  # fmt: skip


def language_model(lm: Lm, task: Any, classes: int) -> PooledLm:
    """The network; a folder's tokenizer becomes the task's."""
    transformers = transformers_library("language models")
    if lm.path is not None:
        body, tokenizer = _loaded(lm.path, "lm")
        task.adopt(tokenizer, f"hf:{lm.path}")
        longest = positions_of(body.config)
        if longest is not None:
            task.limit(longest, f"hf:{lm.path}")
    else:
        body = transformers.LlamaModel(
            transformers.LlamaConfig(
                vocab_size=task.vocabulary,
                hidden_size=lm.width,
                intermediate_size=-(-8 * lm.width // 48) * 16,
                num_hidden_layers=lm.layers,
                num_attention_heads=lm.heads,
                max_position_embeddings=max(task.length, 128),
                pad_token_id=pad_id(task.tokenizer),
            )
        )
    body.config.use_cache = False
    return PooledLm(body, classes, lm.pooling, lm.bidirectional)


def translation_encoder(front: Front, task: Any) -> nn.Module:
    """The encoder; a folder's tokenizer reads for it."""
    transformers = transformers_library("translation encoders")
    if front.path is not None:
        whole, tokenizer = _loaded(front.path, "front")
        task.adopt_front(tokenizer)
        made: nn.Module = whole.get_encoder() if whole.config.is_encoder_decoder else whole
        return made
    from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder

    tokenizer = task.front_tokenizer
    config = transformers.M2M100Config(
        vocab_size=len(tokenizer),
        d_model=front.width,
        encoder_layers=front.layers,
        encoder_attention_heads=front.heads,
        encoder_ffn_dim=4 * front.width,
        max_position_embeddings=max(task.length, 128),
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        pad_token_id=pad_id(tokenizer),
    )
    return M2M100Encoder(config)


class _OfLanguages(Model):
    """What both have in common."""

    forms = ("classes",)
    takes = ("tokens",)
    rehearsed = True
    paths: ClassVar[tuple[str, ...]] = ("checkpoint",)

    checkpoint: str | None = None
    labels: list[str] | None = None
    tokenizers: Mapping[str, Any] = MappingProxyType({})

    def make(self, task: Any, classes: int) -> nn.Module:
        """The network."""
        raise TypeError(f"{type(self).__name__} must define make")

    def build(self, task: Task) -> Built:
        """The network for a task in several languages.

        Raises:
            ConfigError: the task is another one.
        """
        needs = meet(self, task)
        text = needs.tokens
        if not hasattr(type(text), "front_tokenizer"):
            raise ConfigError(
                "model", f"{type(self).__name__} is for texts in several languages", expected="task=cross-lingual"
            )
        task.load()
        module, notes = self.make(text, needs.outputs), []
        if self.checkpoint is not None:
            path = expanded(self.checkpoint)
            found = find_weights(path, module.state_dict(), role=self.role)
            load_strict(module, found.state, str(path), self.role)
            notes.append(str(found))
        built = Built(module, Contract(), self.labels, self, notes)
        adapt(built, needs, needs.outputs, {}, type(self).__name__)
        task.rehearse(built)
        return built

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """``student.safetensors``, and the tokenizers ``tokenizer/`` and ``front/``."""
        place = Path(folder)
        save_state_dict(place / "student.safetensors", {k: v.detach().clone() for k, v in module.state_dict().items()})
        for name, tokenizer in self.tokenizers.items():
            tokenizer.save_pretrained(place / name)

    def reopened(self, folder: Path, task: Any, weights: Any) -> Built:
        """The network that `save` left, for a task that has not read its data."""
        for name, adopt in (("tokenizer", lambda t: task.adopt(t, str(folder))), ("front", task.adopt_front)):
            if (folder / name).is_dir():
                adopt(load_tokenizer(str(folder / name)))
        module = self.make(task, task.outputs)
        load_strict(module, weights, str(folder), "student")
        return Built(module.eval(), Contract(), task.labels, self)


@settings
class PooledLmModel(_OfLanguages):
    """A language model that answers with classes by a linear head on the pooled states of a text.

    Args:
        lm: which.
        checkpoint: weights of all of it, strictly: a file, or a folder with them.
        labels: the checkpoint's class names in its order.
    """

    lm: Lm = Lm()
    checkpoint: str | None = None
    labels: list[str] | None = None

    def make(self, task: Any, classes: int) -> nn.Module:
        """The network."""
        made = language_model(self.lm, task, classes)
        self.tokenizers = {"tokenizer": task.tokenizer}
        return made


@settings
class Stacked(_OfLanguages):
    """A translation encoder, a linear layer, and a language model with a low-rank adapter, built like the teacher's.

    Args:
        front: the translation encoder.
        lm: the language model, with the settings of the teacher's.
        lora: its adapter.
        checkpoint: weights of all of it, strictly: a file, or a folder with them.
        labels: the checkpoint's class names in its order.
    """

    front: Front = Front()
    lm: Lm = Lm()
    lora: Lora = Lora(rank=16, alpha=32.0, dropout=0.05)
    checkpoint: str | None = None
    labels: list[str] | None = None

    def validate(self) -> None:
        """Nobody's weights are taken yet."""
        self.begins: StackedEncoder | None = None

    def make(self, task: Any, classes: int) -> nn.Module:
        """The network; where a method has said with what it begins, it begins so."""
        front, lm = translation_encoder(self.front, task), language_model(self.lm, task, classes)
        try:
            made = StackedEncoder(front, lm, self.lora)
        except ConfigError as error:
            if error.argument == "adapter.targets":
                error.argument = "lora.targets"
            raise
        self.tokenizers = {"tokenizer": task.tokenizer, "front": task.front_tokenizer}
        if self.begins is not None:
            made.take(front=self.begins.front, body=self.begins.lm.body)
        return made
