"""What is asked of a causal language model: its logits, how many outputs it has."""

from __future__ import annotations

import os
from typing import Any

from limbeck.errors import ConfigError, require
from limbeck.grammar.heads import head_of
from limbeck.grammar.method import Batch


def transformers_library(purpose: str) -> Any:
    """The library; an error that names the extra where it is not installed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked loader processes do not mix
    return require("transformers", "language", purpose)


def needs_code(argument: str, name: str) -> ConfigError:
    """The error for a model or tokenizer that brings its own code, which a library would run if it were told to."""
    return ConfigError(
        argument,
        "is described by Python code that comes with it, and limbeck runs no such code",
        given=name,
        remedy="take a model that transformers knows, or load it yourself and hand it over: limbeck.distill(teacher=MODULE)",
    )


def call(module: Any, batch: Batch) -> Any:
    """Call a causal model on a batch: transformers models with mask and without cache, others on the ids alone."""
    if hasattr(module, "config") or hasattr(getattr(module, "_orig_mod", None), "config"):
        return module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return module(batch["input_ids"])


def output_size(module: Any) -> int | None:
    """How many values a model gives for each position, if that can be told without running it."""
    head = head_of(module)
    if head is not None:
        return int(head.weight.shape[0])
    config = getattr(module, "config", None)
    size = getattr(config, "vocab_size", None)
    return int(size) if size is not None else None
