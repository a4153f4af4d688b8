"""What tasks on the tokens of an encoder share: whose tokenizer, how long a row, how a batch goes in."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from limbeck.data.text import Document
from limbeck.errors import ConfigError, TeacherMismatch
from limbeck.grammar.method import Batch
from limbeck.grammar.role import Contract
from limbeck.tasks.tokenizers import load_tokenizer, shared_ids, text_steps, vocabulary_size, word_tokenizer

log = logging.getLogger("limbeck.data")

T = TypeVar("T", bound="Tokenized")

LENGTH = 128
"""Tokens in a row where neither a length was given nor a model has fewer positions."""


class Tokenized:
    """A task whose items are rows of tokens.

    Attributes:
        tokenizer_name: the one that the recipe names; ``None``: the first pretrained model's, or one trained on the text.
        vocab_size: size of one that is trained.
        length: tokens in a row, at most.
    """

    tokenizer_name: str | None
    vocab_size: int
    asked_length: int | None
    notes: Any
    _tokenizer: Any = None
    _whose: str = ""

    def _tokens(self, tokenizer: str | None, vocab_size: int, length: int | None) -> None:
        """Check and keep the settings."""
        if not 300 <= vocab_size <= 1 << 22:
            raise ValueError(f"vocab_size must lie between 300 (256 bytes and what marks a row) and {1 << 22:,}")
        if length is not None and length < 4:
            raise ValueError("length must be 4 or more: a word between the marks of a row, and one to compare it with")
        self.tokenizer_name, self.vocab_size = tokenizer, vocab_size
        self.asked_length, self.length = length, length or LENGTH

    def sample(self, most: int | None = None) -> list[str]:
        """Training texts: some to compare tokenizers by, or all to train one on."""
        raise TypeError(f"{type(self).__name__} must define sample")

    def forget(self) -> None:
        """Make the rows anew when they are next asked for."""

    def note(self, text: str) -> None:
        """Say how data was read, once."""
        if text not in self.notes:
            self.notes = [*self.notes, text]
            log.info(text)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer: the named one, else that of the first pretrained model, else one trained on this text."""
        if self._tokenizer is None:
            if self.tokenizer_name is not None:
                self._tokenizer, self._whose = load_tokenizer(self.tokenizer_name), "task.tokenizer"
            else:
                self._tokenizer = word_tokenizer(self.sample(), self.vocab_size)
                self._whose = "the tokenizer trained on this text"
        return self._tokenizer

    @property
    def adopted(self) -> bool:
        """Whether the tokenizer is that of a pretrained network: neither named by the recipe nor trained on the text."""
        return self._tokenizer is not None and self._whose not in (
            "task.tokenizer",
            "the tokenizer trained on this text",
        )

    def adopt(self, tokenizer: Any, name: str) -> None:
        """A pretrained model brings its tokenizer: it becomes the task's, or must agree with it.

        Raises:
            TeacherMismatch: text gets other token ids from it than from the task's tokenizer.
        """
        if self._tokenizer is None and self.tokenizer_name is None:
            self._tokenizer, self._whose = tokenizer, name
            return
        own = self.tokenizer
        if own is tokenizer:
            return
        try:
            shared_ids(own, tokenizer, self._whose, name, self.sample(10))
        except TeacherMismatch:
            if self.tokenizer_name is not None or self._whose != "the tokenizer trained on this text":
                raise
            raise TeacherMismatch(
                "task.tokenizer",
                f"a model from scratch would learn other tokens than {name} knows",
                remedy=f"set task.tokenizer={name.removeprefix('hf:')}, so that both use it",
            ) from None

    def follow(self, other: Tokenized, config: Any = None) -> None:
        """Read texts by another task's tokenizer, in rows that a model with such a configuration has positions for."""
        if self._tokenizer is not other.tokenizer:
            self._tokenizer, self._whose = other.tokenizer, other._whose
            self.forget()
        longest = positions_of(config)
        if longest is not None:
            self.limit(longest, "the network")

    def preprocessing(self, contract: Contract) -> dict[str, Any]:
        """How texts become rows of ids."""
        return text_steps(self.tokenizer, self.length, contract)

    @property
    def vocabulary(self) -> int:
        """How many token ids there are (the largest and one)."""
        return vocabulary_size(self.tokenizer)

    def limit(self, positions: int, name: str) -> None:
        """A model has so many positions: a length that nobody gave follows, one that was given must fit.

        Raises:
            ConfigError: ``task.length`` is larger.
        """
        if positions >= self.length:
            return
        if self.asked_length is not None:
            raise ConfigError(
                "task.length",
                given=self.asked_length,
                expected=f"at most the {positions} positions of {name}",
                remedy=f"set task.length={positions}, or task.length=null to take it from the models",
            )
        self.length = positions
        self.note(f"rows of at most {positions} tokens, as many as {name} has positions (task.length)")
        self.forget()


def positions_of(config: Any) -> int | None:
    """How many tokens a model has positions for; RoBERTa's begin behind its padding token's id."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None:
        return None
    late = getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "longformer")
    return int(longest) - (int(config.pad_token_id or 0) + 1 if late else 0)


def encode(module: Any, ids: Tensor, batch: Batch) -> Any:
    """Call an encoder on rows of ids [N, T]: transformers models with mask and segments, others on the ids alone."""
    inner = getattr(module, "_orig_mod", module)
    if not hasattr(inner, "config"):
        return module(ids)
    more = {"attention_mask": batch["attention_mask"]} if "attention_mask" in batch else {}
    if "token_type_ids" in batch and "token_type_ids" in _takes(type(inner)):
        more["token_type_ids"] = batch["token_type_ids"]
    return module(input_ids=ids, **more)


_KNOWN: dict[type, frozenset[str]] = {}


def _takes(cls: type) -> frozenset[str]:
    if cls not in _KNOWN:
        names = inspect.signature(cls.forward).parameters  # type: ignore[attr-defined]
        _KNOWN[cls] = frozenset(names)
    return _KNOWN[cls]


def trunk(module: Any) -> Any:
    """The encoder inside a transformers model, without what its task puts on top; any other model itself."""
    return getattr(module, "base_model", module) if hasattr(module, "config") else module


def hidden(out: Any) -> Tensor:
    """The last hidden states [N, T, D] of an encoder's output."""
    found = getattr(out, "last_hidden_state", None)
    states: Tensor = found if isinstance(found, Tensor) else out if isinstance(out, Tensor) else out[0]
    return states


class Rows:
    """Token rows of unequal length, trimmed to the longest of a batch (to a multiple of 8).

    Args:
        rows: token ids of each.
        types: which of two texts each token belongs to, where there are two.
        pad: what rows are filled up with.
    """

    def __init__(self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None, pad: int) -> None:
        self.sizes = torch.tensor([len(r) for r in rows], dtype=torch.long)
        width = int(self.sizes.max()) if len(rows) else 0
        self.ids = torch.full((len(rows), width), pad, dtype=torch.int32)
        self.types = torch.zeros((len(rows), width), dtype=torch.int8) if types is not None else None
        for i, row in enumerate(rows):
            self.ids[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
            if self.types is not None and types is not None:
                self.types[i, : len(row)] = torch.tensor(types[i], dtype=torch.int8)

    def __len__(self) -> int:
        return len(self.sizes)

    def fetch(self, items: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids [n, T], which of them are real [n, T] int64, and segments."""
        sizes = self.sizes[items]
        width = min(self.ids.shape[1], -(-int(sizes.max()) // 8) * 8)
        real = (torch.arange(width) < sizes[:, None]).long()
        ids = self.ids[items, :width].long()
        return ids, real, None if self.types is None else self.types[items, :width].long()


class LazyRows(Generic[T]):
    """Documents as rows of token ids, made by the task's tokenizer when they are first asked for.

    Args:
        task: whose tokenizer and length they are made with.
        documents: the texts.
    """

    def __init__(self, task: T, documents: Sequence[Document]) -> None:
        self.task: T | None = task
        self.documents = list(documents)
        self._made: Rows | None = None

    def __getstate__(self) -> dict[str, Any]:
        self.rows()  # loader processes get the rows, not the tokenizer
        return {**self.__dict__, "task": None, "documents": []}

    def forget(self) -> None:
        """Make the rows anew when they are next asked for."""
        self._made = None

    def make(self, task: T) -> Rows:
        """The rows."""
        raise TypeError(f"{type(self).__name__} must define make")

    def rows(self) -> Rows:
        """The rows, made now where that is still to be done."""
        if self._made is None:
            assert self.task is not None
            self._made = self.make(self.task)
        return self._made

    def __len__(self) -> int:
        return len(self.rows())


__all__ = ["LENGTH", "LazyRows", "Rows", "Tokenized", "encode", "hidden", "positions_of", "trunk"]
