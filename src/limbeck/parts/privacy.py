"""Which tokens of a text may be private: by patterns, or by a token classifier.

A scorer sees texts and where each token stands in them; a token takes the largest probability of the private spans that it
touches (`limbeck.functional.privacy.span_score`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.functional.privacy import span_score
from limbeck.grammar.component import Component
from limbeck.grammar.settings import Fraction, settings
from limbeck.tasks.causal import transformers_library

NAMES = {"scorer": {"patterns": "Patterns", "token-classifier": "TokenClassifier"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

PATTERNS = {
    "digits": r"\d(?:[\d .,:/-]*\d)?",
    "email": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "phone": r"\+?\d[\d ()/-]{5,}\d",
    "url": r"https?://\S+",
    "id": r"\b(?=\w*\d)(?=\w*[A-Z])\w{5,}\b",
}
"""Kinds of private spans, by regular expression."""

Spans = list[tuple[int, int, float]]


class PrivacyScorer(Component):
    """Base of the scorers: a subclass defines ``spans``.

    Attributes:
        version: named with reports.
    """

    kind: ClassVar[str] = "scorer"
    version: str = "1"

    def spans(self, text: str) -> Spans:
        """Private spans of a text: half-open character ranges with a probability."""
        raise TypeError(f"{type(self).__name__} must define spans")

    def score(self, texts: Sequence[str], offsets: Tensor) -> Tensor:
        """Privacy scores of tokens.

        Args:
            texts: N of them.
            offsets: character range of every token, int64 ``[N, T, 2]``; ``(0, 0)`` where there is none.

        Returns:
            Float32 ``[N, T]`` in [0, 1].
        """
        rows = []
        for text, at in zip(texts, offsets, strict=True):
            found = self.spans(text)
            ranges = torch.tensor([[a, b] for a, b, _ in found], dtype=torch.long).reshape(-1, 2)
            rows.append(span_score(at, ranges, torch.tensor([p for *_, p in found], dtype=torch.float32)))
        return torch.stack(rows) if rows else offsets.new_zeros(offsets.shape[:2]).float()


@settings
class Patterns(PrivacyScorer):
    """Private spans by regular expression.

    Args:
        kinds: of the known ones: digits, email, phone, url, id (letters with digits).
        also: further regular expressions (names that are known to be in the data).
        probability: of every match.
    """

    kinds: Sequence[str] = ("digits", "email", "phone")
    also: Sequence[str] = ()
    probability: Fraction = 1.0

    def validate(self) -> None:
        """Kinds are known, expressions can be read."""
        for kind in self.kinds:
            if kind not in PATTERNS:
                raise ValueError(f"kinds must be among {', '.join(PATTERNS)}; got {kind!r}")
        self.found: list[re.Pattern[str]] = [re.compile(PATTERNS[kind]) for kind in self.kinds]
        for text in self.also:
            try:
                self.found.append(re.compile(text))
            except re.error as error:
                raise ValueError(f"also must be regular expressions; {text!r}: {error}") from None

    def spans(self, text: str) -> Spans:
        """All matches of all expressions."""
        return [(*m.span(), self.probability) for pattern in self.found for m in pattern.finditer(text) if m.group()]


@settings
class TokenClassifier(PrivacyScorer):
    """A transformers token classifier (entities, personal data): the summed probability of its private classes.

    Args:
        path: a local folder or Hub id.
        private: regular expression of private class names; by default all but ``O``.
    """

    path: str
    private: str = r"^(?!O$).*"
    paths: ClassVar[tuple[str, ...]] = ("path",)

    def validate(self) -> None:
        """The model is read when it is first asked."""
        self._loaded: tuple[Any, Any, Tensor] | None = None

    def spans(self, text: str) -> Spans:
        """The classifier's own tokens with their probabilities of being private."""
        tokenizer, model, private = self._load()
        if not text:
            return []
        fed = tokenizer(text, return_tensors="pt", return_offsets_mapping=True, truncation=True)
        at = fed.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            p = model(**fed).logits[0].softmax(-1)[:, private].sum(-1).clamp(0, 1).tolist()
        return [(a, b, x) for (a, b), x in zip(at, p, strict=True) if b > a]

    def _load(self) -> tuple[Any, Any, Tensor]:
        if self._loaded is None:
            transformers = transformers_library("token classifiers")
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    self.path, use_fast=True, trust_remote_code=False
                )
                kind = transformers.AutoModelForTokenClassification
                model = kind.from_pretrained(self.path, trust_remote_code=False, use_safetensors=True).eval()
            except (OSError, ValueError) as error:
                raise ConfigError(
                    "method.scorer.path",
                    f"is no token classifier: {str(error).splitlines()[0]}",
                    given=self.path,
                    remedy="give a folder with config.json, weights and a fast tokenizer",
                ) from None
            names = [model.config.id2label[i] for i in range(model.config.num_labels)]
            chosen = [i for i, name in enumerate(names) if re.search(self.private, name)]
            if not chosen:
                raise ConfigError("method.scorer.private", given=self.private, expected=f"some of {', '.join(names)}")
            self._loaded = tokenizer, model, torch.tensor(chosen)
        return self._loaded


class Pieces:
    """What each token of a tokenizer writes, to find tokens in the text that a row of ids is.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        special = set(tokenizer.all_special_ids)
        anchor = tokenizer.encode("a", add_special_tokens=False)
        begun = len(tokenizer.decode(anchor))
        ids = range(len(tokenizer))
        # after another token, because some tokenizers drop a blank at the beginning
        self.texts = ["" if i in special else tokenizer.decode([*anchor, i])[begun:] for i in ids]
        self.sizes = torch.tensor([len(text) for text in self.texts])

    def read(self, ids: Tensor) -> tuple[list[str], Tensor]:
        """Texts of rows ``[N, T]``, and the character range of each token ``[N, T, 2]``."""
        ids = ids.cpu()
        sizes = self.sizes[ids]
        end = sizes.cumsum(1)
        offsets = torch.stack([end - sizes, end], -1)
        offsets = torch.where(sizes.unsqueeze(-1) > 0, offsets, torch.zeros_like(offsets))
        return ["".join(self.texts[i] for i in row) for row in ids.tolist()], offsets


__all__ = ["PATTERNS", "Patterns", "Pieces", "PrivacyScorer", "TokenClassifier"]
