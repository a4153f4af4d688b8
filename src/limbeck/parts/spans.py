"""Which neighbouring tokens of a text belong to one phrase: chunkers, and pairs of tokens in rows of ids.

A chunker sees a text and names character ranges; a token lies in the range that its last character lies in.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.errors import DataError
from limbeck.functional.revision import span_pairs
from limbeck.grammar.component import Component
from limbeck.grammar.settings import settings
from limbeck.parts.privacy import Pieces
from limbeck.recipe.imports import imported

NAMES = {
    "chunker": {"phrases": "Phrases", "sentences": "Sentences", "ngrams": "Ngrams", "import": "ImportedChunker"},
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

DETERMINERS = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "my",
        "your",
        "his",
        "her",
        "its",
        "our",
        "their",
        "some",
        "any",
        "no",
        "each",
        "every",
        "all",
        "both",
        "either",
        "neither",
        "such",
        "another",
        "other",
        "many",
        "much",
        "few",
        "several",
        "one",
        "two",
        "three",
    ]
)
PREPOSITIONS = frozenset(
    [
        "about",
        "above",
        "across",
        "after",
        "against",
        "along",
        "among",
        "around",
        "as",
        "at",
        "before",
        "behind",
        "below",
        "beneath",
        "beside",
        "between",
        "beyond",
        "by",
        "despite",
        "down",
        "during",
        "except",
        "for",
        "from",
        "in",
        "inside",
        "into",
        "like",
        "near",
        "of",
        "off",
        "on",
        "onto",
        "out",
        "outside",
        "over",
        "past",
        "per",
        "since",
        "through",
        "throughout",
        "to",
        "toward",
        "towards",
        "under",
        "until",
        "up",
        "upon",
        "via",
        "with",
        "within",
        "without",
    ]
)
CONJUNCTIONS = frozenset(
    [
        "and",
        "or",
        "but",
        "nor",
        "so",
        "yet",
        "if",
        "because",
        "although",
        "though",
        "while",
        "when",
        "where",
        "whereas",
        "unless",
        "whether",
        "than",
        "then",
        "however",
        "therefore",
        "which",
        "who",
        "whom",
        "whose",
        "what",
        "how",
        "why",
    ]
)
AUXILIARIES = frozenset(
    [
        "am",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "have",
        "has",
        "had",
        "having",
        "do",
        "does",
        "did",
        "will",
        "would",
        "shall",
        "should",
        "can",
        "could",
        "may",
        "might",
        "must",
        "ought",
        "not",
        "never",
        "cannot",
        "isn't",
        "aren't",
        "wasn't",
        "weren't",
        "don't",
        "doesn't",
        "didn't",
        "won't",
        "can't",
    ]
)
PRONOUNS = frozenset(["i", "you", "he", "she", "it", "we", "they", "me", "him", "us", "them", "there"])

_WORD = re.compile(r"[\w'’-]*\w[\w'’-]*")
_BREAK = re.compile(r"[^\w\s'’-]|\n")
_SENTENCE = re.compile(r"\S.*?(?:[.!?]+(?=\s|$)|\n\s*\n|$)", re.DOTALL)

Range = tuple[int, int]


class Chunker(Component):
    """Base of the chunkers: a subclass defines ``spans``.

    Attributes:
        version: kept in the method's state, beside its name.
    """

    kind: ClassVar[str] = "chunker"
    version: ClassVar[str] = "1"

    def spans(self, text: str) -> list[Range]:
        """Phrases of a text: half-open character ranges in ascending order, which do not overlap."""
        raise TypeError(f"{type(self).__name__} must define spans")

    def ranges(self, text: str, offsets: Tensor) -> Tensor:
        """Phrases as half-open ranges of tokens, int64 ``[S, 2]``.

        Args:
            text: what the tokens write.
            offsets: character range of every token ``[T, 2]``; ``(0, 0)`` for those that write nothing.

        Raises:
            DataError: a phrase does not lie in the text, or they overlap.
        """
        found = np.asarray(self.spans(text), dtype=np.int64).reshape(-1, 2)
        a, b = found[:, 0], found[:, 1]
        bad = (a < 0) | (b > len(text)) | (b < a)
        bad[1:] |= a[1:] < b[:-1]
        if bad.any():
            raise DataError(
                "method.chunker",
                f"{int(bad.sum())} of {len(found)} phrases lie outside the text or overlap the one before",
                given=found[bad][:4].tolist(),
                expected=f"ascending ranges within 0..{len(text)}",
            )
        last = np.maximum.accumulate(offsets[:, 1].numpy()) - 1  # of tokens that write nothing: the one before
        return torch.from_numpy(np.stack([np.searchsorted(last, a), np.searchsorted(last, b)], 1))


@settings
class Phrases(Chunker):
    """Noun, verb and prepositional phrases of English by its closed classes of words. [reconstructed]

    A phrase begins at a preposition, a determiner, a pronoun or an auxiliary and ends before the next one, at punctuation
    and at conjunctions. Words of the open classes stay with what precedes them; a verb phrase ends with its first one. There
    is no tagger: for one, name a function of your own with ``import``.
    """

    def spans(self, text: str) -> list[Range]:
        """Ranges of phrases."""
        found: list[Range] = []
        start, kind = -1, ""  # of the phrase that is open
        end = 0
        breaks = [m.start() for m in _BREAK.finditer(text)] + [len(text) + 1]
        at = 0
        for m in _WORD.finditer(text):
            word = m.group().lower()
            broken = breaks[at] < m.start()
            while breaks[at] < m.start():
                at += 1
            what = _kind(word)
            same = {"determiner": "preposition", "pronoun": "preposition", "auxiliary": "auxiliary"}.get(what, "")
            opens = what in ("preposition", "determiner", "pronoun", "auxiliary") and kind != (same or "none")
            if start >= 0 and (broken or opens or what == "conjunction" or (kind == "verb" and what == "word")):
                found.append((start, end))
                start, kind = -1, ""
            if what == "conjunction":
                continue
            if start < 0:
                start, kind = m.start(), what
            elif what == "word":
                kind = "verb" if kind == "auxiliary" else "noun"
            elif what in ("determiner", "pronoun"):
                kind = "noun"
            end = m.end()
        return [*found, (start, end)] if start >= 0 else found


def _kind(word: str) -> str:
    for name, words in (
        ("conjunction", CONJUNCTIONS),
        ("preposition", PREPOSITIONS),
        ("determiner", DETERMINERS),
        ("auxiliary", AUXILIARIES),
        ("pronoun", PRONOUNS),
    ):
        if word in words:
            return name
    return "word"


@settings
class Sentences(Chunker):
    """Whole sentences: up to a full stop, question or exclamation mark before white space, or an empty line.

    The source that the paper cites (Kiss and Strunk 2006) splits sentences, by a learned model in place of these marks.
    """

    def spans(self, text: str) -> list[Range]:
        """Ranges of sentences."""
        return [m.span() for m in _SENTENCE.finditer(text)]


@settings
class Ngrams(Chunker):
    """Runs of a fixed number of tokens, laid end to end.

    Args:
        n: tokens in a run.
    """

    n: Annotated[int, Ge(2)] = 4

    def ranges(self, text: str, offsets: Tensor) -> Tensor:
        """The runs."""
        start = torch.arange(0, len(offsets), self.n)
        return torch.stack([start, (start + self.n).clamp_max(len(offsets))], 1)


@settings
class ImportedChunker(Chunker):
    """The user's own: a function from a text to character ranges (noun chunks of spaCy, say). Naming it runs its module.

    Args:
        function: ``package.module:function``.
    """

    code: ClassVar[str] = "function"

    function: str

    def validate(self) -> None:
        """It is there."""
        self.called = imported(self.function, "function")

    def spans(self, text: str) -> list[Range]:
        """The user's ranges."""
        return [(int(a), int(b)) for a, b in self.called(text)]


def neighbours(chunker: Chunker, pieces: Pieces, ids: Tensor, where: Tensor) -> Tensor:
    """Which predictions and the next ones belong to one phrase.

    Args:
        chunker: finds phrases.
        pieces: what each token writes.
        ids: token ids ``[N, T]``.
        where: predictions that count ``[N, T-1]``; the prediction at t is of token t + 1.

    Returns:
        Bool ``[N, T-1]``, true at t where the tokens t + 1 and t + 2 lie in one phrase and both count.
    """
    texts, offsets = pieces.read(ids)
    n, width = where.shape
    spans = []
    for row, (text, at) in enumerate(zip(texts, offsets, strict=True)):
        # of predictions, and no phrase begins before a row's first one
        spans.append((chunker.ranges(text, at) - 1).clamp(0, width) + row * width)
    pairs = span_pairs(torch.cat(spans) if spans else torch.zeros(0, 2).long(), where.cpu().flatten())
    found = torch.zeros(n * width, dtype=torch.bool)
    found[pairs[:, 0]] = True
    return found.view(n, width).to(where.device)


__all__ = ["Chunker", "ImportedChunker", "Ngrams", "Phrases", "Sentences", "neighbours"]
