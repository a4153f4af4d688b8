"""Pairs of sentences that say the same in other words, found among many that a model wrote.

The filters of Impossible Distillation (Jung et al. 2024, arXiv 2305.16635). A critic of natural language inference gives the
probabilities of (contradiction, entailment, neutral) for each ordered pair of sentences; everything else is done here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from limbeck.errors import ShapeError
from limbeck.grammar.settings import Fraction, Positive, settings

__all__ = ["Pair", "PairFilters", "joined_digits", "rouge_l"]

CONTRADICTION, ENTAILMENT, NEUTRAL = range(3)
"""Columns of a critic's probabilities."""

_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")


def rouge_l(reference: str, other: str) -> float:
    """ROUGE-L F1 of two texts: lower case, words of letters a to z and digits, no stemming.

    Example:
        >>> round(rouge_l("The cat sat.", "the cat ran"), 4)
        0.6667
    """
    x, y = (re.findall(r"[a-z0-9]+", text.lower()) for text in (reference, other))
    if not x or not y:
        return 0.0
    row = [0] * (len(y) + 1)  # the longest common subsequence, a row of its table at a time
    for word in x:
        before = row
        row = [0]
        for j, own in enumerate(y):
            row.append(before[j] + 1 if word == own else max(row[j], before[j + 1]))
    common = row[-1]
    return 2 * common / (len(x) + len(y))


def joined_digits(text: str) -> str:
    """Digits that a tokenizer set apart, joined again: ``2 0 1 9`` becomes ``2019`` (BioGPT's texts).

    Example:
        >>> joined_digits("in 2 0 1 9 , 3 of 4")
        'in 2019 , 3 of 4'
    """
    return re.sub(r"(?<=\d) (?=\d)", "", text)


@dataclass(frozen=True)
class Pair:
    """A pair that passed.

    Attributes:
        original, new: places of the two sentences.
        entails: probability that the original entails the new one.
        entailed: probability that the new one entails the original.
        overlap: their ROUGE-L.
    """

    original: int
    new: int
    entails: float
    entailed: float
    overlap: float


@settings
class PairFilters:
    """Which pairs of sentences are paraphrases.

    Args:
        shortest: least length of the new sentence, as a multiple of the original's, in characters.
        longest: greatest length, likewise.
        entails: least probability that the original entails the new sentence.
        entailed: least probability that the new sentence entails the original.
        most_overlap: greatest ROUGE-L of the two.
        strict_numbers: every number of either sentence stands in the other, as the paper has it. False is the released
            code, in which numbers of the original may be missing from the new sentence.
    """

    shortest: Positive = 0.8
    longest: Positive = 1.5
    entails: Fraction = 0.75
    entailed: Fraction = 0.75
    most_overlap: Fraction = 0.75
    strict_numbers: bool = True

    def mine(self, texts: Sequence[str], nli: np.ndarray, told: Counter[str] | None = None) -> list[Pair]:
        """Paraphrases among all pairs of continuations of one context (stage 0), the earlier sentence as the original.

        Of pairs whose originals say the same (connected by entailment as the likeliest answer, either way), the one with
        the smallest ``entailed`` stays; then the same for the new sentences.

        Args:
            texts: N sentences.
            nli: probabilities [N, N, 3] of premise i and hypothesis j: contradiction, entailment, neutral.
            told: counts that the pairs before each filter (``pairs``) and after it are added to.

        Raises:
            ShapeError: the table does not fit the sentences.
        """
        _check(texts, nli)
        pairs = list(self._entailed(texts, combinations(range(len(texts)), 2), nli, told))
        pairs = _one_of_each([p.original for p in pairs], pairs, nli)
        pairs = _one_of_each([p.new for p in pairs], pairs, nli)
        if told is not None:
            told["one of each"] += len(pairs)
        return list(self._reworded(texts, pairs, told))

    def passing(self, texts: Sequence[str], nli: np.ndarray, told: Counter[str] | None = None) -> list[Pair]:
        """The pairs of ``texts[0]`` with each of the others that pass, in order; arguments as of `mine`."""
        _check(texts, nli)
        pairs = [(0, j) for j in range(1, len(texts))]
        return list(self._reworded(texts, list(self._entailed(texts, pairs, nli, told)), told))

    def best(self, texts: Sequence[str], nli: np.ndarray) -> Pair | None:
        """The student's paraphrase of ``texts[0]`` among the others that passes with the least overlap (later stages).

        Args:
            texts: the original, then the candidates.
            nli: as for `mine`.

        Returns:
            The pair, or None where no candidate passes.
        """
        return min(self.passing(texts, nli), key=lambda p: p.overlap, default=None)

    def _entailed(
        self,
        texts: Sequence[str],
        places: Iterator[tuple[int, int]] | list[tuple[int, int]],
        nli: np.ndarray,
        told: Counter[str] | None = None,
    ) -> Iterator[Pair]:
        told = Counter() if told is None else told
        for i, j in places:
            told["pairs"] += 1
            long = len(texts[j]) / len(texts[i]) if texts[i] else 0.0
            there, back = float(nli[i, j, ENTAILMENT]), float(nli[j, i, ENTAILMENT])
            if not self.shortest <= long <= self.longest:
                continue
            told["length"] += 1
            if there < self.entails:
                continue
            told["entails"] += 1
            if back >= self.entailed:
                told["entailed"] += 1
                yield Pair(i, j, there, back, 1.0)

    def _reworded(
        self, texts: Sequence[str], pairs: Iterator[Pair] | list[Pair], told: Counter[str] | None = None
    ) -> Iterator[Pair]:
        told = Counter() if told is None else told
        for p in pairs:
            mine, other = (set(_NUMBER.findall(texts[i])) for i in (p.new, p.original))
            if not mine <= other or (self.strict_numbers and not other <= mine):
                continue
            told["numbers"] += 1
            overlap = rouge_l(texts[p.original], texts[p.new])
            if overlap <= self.most_overlap:
                told["reworded"] += 1
                yield Pair(p.original, p.new, p.entails, p.entailed, overlap)


def _check(texts: Sequence[str], nli: np.ndarray) -> None:
    if nli.shape != (len(texts), len(texts), 3):
        raise ShapeError("nli", given=list(nli.shape), expected=f"probabilities [{len(texts)}, {len(texts)}, 3]")


def _one_of_each(places: Sequence[int], pairs: list[Pair], nli: np.ndarray) -> list[Pair]:
    """Of pairs whose sentences at ``places`` say the same, the one with the smallest ``entailed``."""
    known = sorted(set(places))
    entails = nli[np.ix_(known, known)].argmax(-1) == ENTAILMENT
    _, group = connected_components(coo_array(entails), directed=False)
    best: dict[int, Pair] = {}
    for place, p in zip(places, pairs, strict=True):
        mark = int(group[known.index(place)])
        if mark not in best or p.entailed < best[mark].entailed:
            best[mark] = p
    chosen = {id(p) for p in best.values()}
    return [p for p in pairs if id(p) in chosen]
