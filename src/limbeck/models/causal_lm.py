"""Causal language models of transformers: a small one from scratch, and those of the Hub or of a folder."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from limbeck.errors import ConfigError, first_line, require
from limbeck.grammar.method import Built
from limbeck.grammar.task import Model, Task
from limbeck.storage.store import atomic_folder, load_state_dict, load_strict
from limbeck.tasks.causal import needs_code, transformers_library
from limbeck.tasks.language import Language
from limbeck.tasks.tokenizers import load_tokenizer


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
        checkpoint: weights to load, strictly: a ``.safetensors`` file, or a folder with ``model.safetensors``.
    """

    def __init__(
        self,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        kv_heads: int | None = None,
        mlp: int | None = None,
        tied: bool = True,
        dropout: float = 0.0,
        checkpoint: str | None = None,
    ) -> None:
        if layers < 1 or width < 1 or heads < 1:
            raise ValueError("layers, width and heads must be 1 or more")
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width must be an even multiple of heads: {width} over {heads} heads does not go")
        if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
            raise ValueError(f"kv_heads must divide heads ({heads})")
        if mlp is not None and mlp < 1:
            raise ValueError("mlp must be 1 or more, or null for 8/3 of the width")
        if not 0 <= dropout < 1:
            raise ValueError("dropout must lie in [0, 1)")
        self.layers, self.width, self.heads, self.kv_heads = layers, width, heads, kv_heads or heads
        self.mlp = mlp or -(-8 * width // 48) * 16
        self.tied, self.dropout, self.checkpoint = tied, dropout, checkpoint
        self.tokenizer: Any = None

    def build(self, task: Task) -> Built:
        """The network, with an output for every token of the task's tokenizer."""
        task = _language(task)
        transformers = transformers_library("language models")
        self.tokenizer = task.tokenizer
        config = transformers.LlamaConfig(
            vocab_size=task.size,
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=max(task.length, 512),
            tie_word_embeddings=self.tied,
            attention_dropout=self.dropout,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=None,
        )
        module = transformers.LlamaForCausalLM(config)
        if self.checkpoint is not None:
            file = Path(self.checkpoint).expanduser()
            inside = [file / part for part in ("model.safetensors", "student/model.safetensors")]
            file = next((path for path in inside if path.is_file()), file)
            load_strict(module, load_state_dict(file), str(file))
        return Built(module, labels=None, model=self)

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """The folder ``student/`` as transformers lays it out; ``from_pretrained`` reads it."""
        save_pretrained(module, self.tokenizer, Path(folder) / "student")


class HuggingFace(Model):
    """A causal language model of the Hugging Face Hub or of a local folder.

    Args:
        name: the Hub id, a folder that ``from_pretrained`` reads, or the folder of a run.
        dtype: of the weights: ``float32``, ``bfloat16``, ``float16``, or ``auto`` as they are stored.
        revision: branch, tag or commit on the Hub.
        gguf_file: name of a GGUF file in the folder or repository, whose weights are unpacked.
        pretrained: off, only the architecture is taken and the weights are drawn anew.
        lora: rank of low-rank adapters that are trained instead of the weights (peft); ``null`` trains the weights.
        lora_alpha: their scale; ``null`` for twice the rank.
        checkpoint: further weights to load, strictly: a ``.safetensors`` file.
    """

    paths: ClassVar[tuple[str, ...]] = ("name", "checkpoint")

    def __init__(
        self,
        name: str,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
        revision: str | None = None,
        gguf_file: str | None = None,
        pretrained: bool = True,
        lora: int | None = None,
        lora_alpha: float | None = None,
        checkpoint: str | None = None,
    ) -> None:
        if lora is not None and lora < 1:
            raise ValueError("lora must be a rank of 1 or more, or null to train the weights themselves")
        if lora_alpha is not None and not lora_alpha > 0:
            raise ValueError("lora_alpha must be above 0, or null for twice the rank")
        self.name, self.dtype, self.revision, self.gguf_file = name, dtype, revision, gguf_file
        self.pretrained, self.lora, self.lora_alpha, self.checkpoint = pretrained, lora, lora_alpha, checkpoint
        self.tokenizer: Any = None

    @property
    def trained(self) -> bool:
        """Whether the weights are already good for something."""
        return self.pretrained or self.checkpoint is not None

    def build(self, task: Task) -> Built:
        """The network and its tokenizer, which becomes the task's or must agree with it.

        No code from the Hub is run, and weights are read as safetensors or with ``weights_only``.
        """
        task = _language(task)
        transformers = transformers_library("models of the Hugging Face Hub")
        if self.gguf_file is not None and importlib.util.find_spec("gguf") is None:
            raise ConfigError(
                "hf.gguf_file",
                "reading GGUF files needs the package 'gguf'",
                given=self.gguf_file,
                remedy="pip install gguf",
            )
        place = self._place()
        # named, or the library asks on the terminal whether code from the folder may be run
        options: dict[str, Any] = {"trust_remote_code": False}
        if self.revision:
            options["revision"] = self.revision
        if self.gguf_file is not None:
            options["gguf_file"] = self.gguf_file
        self.tokenizer = load_tokenizer(place, **options)
        task.adopt(self.tokenizer, self.name)
        try:
            if self.pretrained:
                with _quiet(transformers):
                    module = transformers.AutoModelForCausalLM.from_pretrained(
                        place, dtype=self.dtype if self.dtype == "auto" else getattr(torch, self.dtype), **options
                    )
            else:
                config = transformers.AutoConfig.from_pretrained(place, **options)
                module = transformers.AutoModelForCausalLM.from_config(config)
                module = module if self.dtype == "auto" else module.to(getattr(torch, self.dtype))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            if "trust_remote_code" in str(error):
                raise needs_code("hf.name", self.name) from None
            raise ConfigError(
                "hf.name",
                f"transformers cannot load it as a causal language model: {first_line(error)}",
                given=self.name,
                remedy="give a Hub id or a folder with config.json; offline, the id must be in the local cache",
            ) from None
        if self.gguf_file is not None:
            # the weights are unpacked now: an ordinary model, which can be trained and saved as one
            module.hf_quantizer, module.is_quantized, module.quantization_method = None, False, None
            if hasattr(module.config, "quantization_config"):
                del module.config.quantization_config
        longest = getattr(module.config, "max_position_embeddings", None)
        if longest is not None and longest < task.length:
            raise ConfigError(
                "task.length", given=task.length, expected=f"at most the {longest} positions of hf:{self.name}"
            )
        if self.checkpoint is not None:
            load_strict(module, load_state_dict(Path(self.checkpoint).expanduser()), self.checkpoint)
        if self.lora is not None:
            peft = require("peft", "language", "low-rank adapters")
            settings = peft.LoraConfig(
                r=self.lora,
                lora_alpha=self.lora_alpha or 2 * self.lora,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in words that grow old
                module = peft.get_peft_model(module, settings)
        return Built(module, labels=None, model=self)

    def _place(self) -> str:
        folder = Path(self.name).expanduser()
        inside = folder / "student"
        if (inside / "config.json").is_file() and not (folder / "config.json").is_file():
            return str(inside)
        return str(folder) if folder.exists() else self.name

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """The folder ``student/`` as transformers lays it out; adapters are merged in, and in ``adapter/`` besides."""
        save_pretrained(module, self.tokenizer, Path(folder) / "student")
        if self.lora is not None:
            with atomic_folder(Path(folder) / "adapter") as place:
                module.save_pretrained(place)  # type: ignore[operator]


def save_pretrained(module: nn.Module, tokenizer: Any, folder: Path) -> None:
    """A transformers model and its tokenizer as one folder, complete or not there at all."""
    transformers = transformers_library("saving a language model")
    merge = getattr(module, "merge_and_unload", None)
    if callable(merge):
        module = copy.deepcopy(module).merge_and_unload()  # type: ignore[operator]
    with atomic_folder(folder) as place, _quiet(transformers):
        module.save_pretrained(place)  # type: ignore[operator]
        if tokenizer is not None:
            tokenizer.save_pretrained(place)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the library's own progress bars: ours is the one that is shown."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _language(task: Task) -> Language:
    if not isinstance(task, Language):
        raise ConfigError(
            "model",
            f"a causal language model cannot serve the task {type(task).__name__}",
            remedy="set task=language, or choose a model of that task",
        )
    return task
